"""What all tests share: a private PostgreSQL, daemons and mounts as subprocesses, and stacks when something hangs."""

import contextlib
import faulthandler
import gc
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import plain, storage
from tests.vospace import conformance

if TYPE_CHECKING:
    from tests.services import azurite, rgw
    from tests.services.unreliable import Unreliable

BIN = Path(sys.executable).parent
START_S = 30
faulthandler.register(signal.SIGUSR1, all_threads=True)


@pytest.fixture(autouse=True)
def _leaks_show_where_they_happen() -> Iterator[None]:
    """A resource that a test forgot warns inside that test, where warnings are errors."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def _expected_log_records_only(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Iterator[None]:
    """A warning or error in the log fails the test, unless it is marked ``expect_log``."""
    yield
    if request.node.get_closest_marker("expect_log"):
        return
    records = [r for r in caplog.get_records("call") if r.levelno >= 30 and r.name.split(".")[0] in ("vosfs", "server")]
    assert not records, [r.getMessage() for r in records]


def pytest_addoption(parser: pytest.Parser) -> None:
    conformance.add_option(parser)
    storage.add_option(parser)
    plain.add_option(parser)


def pytest_collection_finish() -> None:
    # What is loaded by now lives as long as the run: the collection after each test need not look at it (40 ms each).
    gc.collect()
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    conformance.configure(config)
    storage.configure(config)
    plain.configure(config)
    config.addinivalue_line("markers", "expect_log: the test provokes warnings in the log")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    storage.skip_what_needs_a_directory(config, items)
    plain.skip_what_needs_the_gateway(config, items)


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


# -- PostgreSQL ------------------------------------------------------------------------------------------------------


def _pg_bin() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if found:
        return found[-1].parent
    which = shutil.which("initdb")
    return Path(which).parent if which else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """DSN of a private cluster, made for this run, as a non-root user, on a free port."""
    programs = _pg_bin()
    if programs is None:
        pytest.fail("PostgreSQL's programs are missing: make init installs them, or apt-get install postgresql")
    directory = Path(tempfile.mkdtemp(prefix="vosfs-pg-", dir="/tmp"))
    demote: dict[str, object] = {}
    if os.getuid() == 0:
        # initdb refuses root; 'nobody' owns nothing else.
        user = pwd.getpwnam("nobody")
        os.chown(directory, user.pw_uid, user.pw_gid)
        demote = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    port = free_port()
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={directory} -c fsync=off"

    def run(*command: object) -> None:
        subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, cwd=directory, **demote)  # type: ignore[call-overload]

    try:
        run(programs / "initdb", "-D", directory / "data", "-A", "trust", "-U", "vosfs", "--no-sync")
        run(programs / "pg_ctl", "-D", directory / "data", "-l", directory / "log", "-w", "-o", options, "start")
        try:
            yield f"postgresql://vosfs@127.0.0.1:{port}/postgres"
        finally:
            run(programs / "pg_ctl", "-D", directory / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def database(postgres: str) -> Iterator[str]:
    """DSN of an empty database in the private cluster."""
    import psycopg

    name = f"t{os.urandom(6).hex()}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgres.rpartition("/")[0] + "/" + name
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


# -- object stores ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3() -> Iterator["rgw.S3"]:
    """An S3 service with a bucket, if Ceph is installed."""
    from tests.services import rgw

    if absent := rgw.missing():
        pytest.skip(f"no S3: {absent}")
    with rgw.running() as service:
        yield service


@pytest.fixture
def network(s3: "rgw.S3") -> Iterator["Unreliable"]:
    """The network to the S3 service."""
    from tests.services.unreliable import Unreliable

    made = Unreliable(s3.endpoint)
    yield made
    made.close()


@pytest.fixture(scope="session")
def azure() -> Iterator["azurite.Azure"]:
    """An Azure Blob service with a container, if Azurite is installed."""
    from tests.services import azurite

    if absent := azurite.missing():
        pytest.skip(f"no Azure: {absent}")
    with azurite.running() as service:
        yield service


@pytest.fixture(scope="session", autouse=True)
def _storage(request: pytest.FixtureRequest) -> None:
    """The storage that the run was asked for."""
    if storage.chosen(request.config) == "s3":
        storage.use(request.getfixturevalue("s3"))


# -- daemons and mounts ------------------------------------------------------------------------------------------------


@dataclass
class Daemon:
    """A running vosfsd."""

    url: str
    token_file: Path
    directory: Path
    process: subprocess.Popen[str]

    @property
    def token(self) -> str:
        return self.token_file.read_text().strip()

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].split("/")[0])

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        auth: bool = True,
    ) -> tuple[int, dict[str, str], bytes]:
        """One request; redirects are not followed, errors are answers."""
        given = dict(headers or {})
        if auth:
            given.setdefault("Authorization", f"Bearer {self.token}")
        url = path if path.startswith("http") else self.url + path
        request = urllib.request.Request(url, body, given, method=method)
        opener = urllib.request.build_opener(_NoRedirect)
        try:
            with opener.open(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as exc:
            with exc:
                return exc.code, dict(exc.headers), exc.read()

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Signal it and wait; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(START_S)
        if self.process.stdout:
            self.process.stdout.close()
        return code


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: object) -> None:  # type: ignore[override]
        return None


Program = Sequence[str | Path]
"""How a program is started, before its arguments."""


def start_daemon(
    directory: Path, *options: str, port: int = 0, program: Program = (BIN / "vosfsd",)
) -> Daemon:  # fmt: skip
    """Start ``vosfsd --dev`` and wait for its READY line."""
    log = open(directory.parent / f"{directory.name}.log", "a")
    process = subprocess.Popen(
        [
            *program, "--dev", directory, "--port", str(port), *options, *storage.options(directory, options),
            *plain.options(options),
        ],
        stdout=subprocess.PIPE, stderr=log, text=True,
    )  # fmt: skip
    log.close()
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("READY "), f"{line!r}\n{(directory.parent / f'{directory.name}.log').read_text()[-3000:]}"
    fields = dict(part.split("=", 1) for part in line.split()[1:])
    return Daemon(fields["url"], Path(fields["token_file"]), directory, process)


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Start daemons that end with the test."""
    running: list[Daemon] = []

    def make(name: str = "space", *options: str, port: int = 0) -> Daemon:
        daemon = start_daemon(tmp_path / name, *options, port=port)
        running.append(daemon)
        return daemon

    yield make
    for daemon in running:
        daemon.stop()


@pytest.fixture
def daemon(make_daemon: Callable[..., Daemon]) -> Daemon:
    """One daemon on SQLite."""
    return make_daemon()


def start_mount(
    daemon: Daemon, point: Path, cache: Path, *options: str, program: Program = (BIN / "vosfs",)
) -> None:  # fmt: skip
    """Mount a daemon's space, which must work."""
    # Not exist_ok, which asks what is there: a mount that died says nothing of itself.
    with contextlib.suppress(FileExistsError):
        point.mkdir()
    command = [*program, "mount", daemon.url, point, "--token-file", daemon.token_file, "--cache-dir", cache]
    command += [part for option in options for part in ("-o", option)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=START_S + 60)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def make_mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount daemons' spaces at points that go with the test."""
    if not os.path.exists("/dev/fuse"):
        pytest.fail("/dev/fuse is missing: these tests mount for real")
    points: list[Path] = []

    def make(daemon: Daemon, name: str = "mnt", *options: str) -> Path:
        point = tmp_path / name
        start_mount(daemon, point, tmp_path / f"{name}-cache", *options)
        points.append(point)
        return point

    yield make
    for point in points:
        unmount(point)


def unmount(point: Path) -> None:
    """Take a mount away, whatever state it is in."""
    done = subprocess.run([BIN / "vosfs", "umount", point], capture_output=True, text=True, timeout=START_S + 90)
    if done.returncode:
        with contextlib.suppress(FileNotFoundError):
            lazy = ["umount", "-l", point] if os.getuid() == 0 else ["fusermount3", "-uz", point]
            subprocess.run(lazy, capture_output=True)


def eventually(what: str, holds: Callable[[], bool], seconds: float = 10) -> None:
    """Look again until it holds; fail when it never does."""
    pause = threading.Event()
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        pause.wait(0.01)


@pytest.fixture
def mount(daemon: Daemon, make_mount: Callable[..., Path]) -> Path:
    """A mounted space on SQLite."""
    return make_mount(daemon)
