"""A real Azure Blob service for one run of the tests: Azurite, which needs node and comes by npm."""

import base64
import contextlib
import email.utils
import hmac
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import free_port
from tests.services import answers, start, until

ACCOUNT = "devstoreaccount1"
KEY = base64.b64encode(b"only for tests, of no account at all: 0123456789").decode()
CONTAINER = "vosfs"
PLACES = (Path(sys.prefix) / "azurite" / "node_modules" / ".bin", Path("/usr/local/bin"), Path("/usr/bin"))
"""Where the program may be; ``make test`` puts it into the first."""


@dataclass
class Azure:
    """A running service, with an account and a container."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """The variables that let a program in."""
        return {"AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT, "AZURE_STORAGE_ACCOUNT_KEY": KEY}


def program() -> str | None:
    """The service's program."""
    return shutil.which("azurite-blob", path=os.pathsep.join(map(str, PLACES)))


def missing() -> str:
    """What keeps the service from being started; empty if nothing."""
    if shutil.which("node") is None:
        return "node is not installed (apt-get install nodejs npm)"
    if program() is None:
        return f"azurite is not installed (npm install --prefix {PLACES[0].parents[1]} azurite)"
    return ""


@contextlib.contextmanager
def running() -> Iterator[Azure]:
    """The service, until the block ends."""
    directory, port = tempfile.mkdtemp(prefix="vosfs-azurite-"), free_port()
    command = [
        program() or "", "--silent", "--inMemoryPersistence", "--disableTelemetry", "--skipApiVersionCheck",
        "--blobHost", "127.0.0.1", "--blobPort", str(port),
    ]  # fmt: skip
    environment = os.environ | {"AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    process = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd=directory)
    try:
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        until("Azurite answers", lambda: answers(endpoint), [process])
        _make_container(endpoint)
        yield Azure(endpoint)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _make_container(endpoint: str) -> None:
    """The one request that obstore has no call for, signed with the account's key."""
    headers = {"x-ms-date": email.utils.formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    canonical = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
    text = f"PUT{chr(10) * 12}{canonical}/{ACCOUNT}/{ACCOUNT}/{CONTAINER}\nrestype:container"
    signature = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), "sha256")).decode()
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{signature}", "Content-Length": "0"}
    request = urllib.request.Request(f"{endpoint}/{CONTAINER}?restype=container", None, headers, method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
