"""A space whose bytes are all in NGAS: a mount, HTTP, daemons that are killed between any two steps, and nothing left over."""

import os
import signal
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator
from http.client import HTTPException
from pathlib import Path

import pytest
import trio

from server import daemon as composition
from server import housekeeping
from tests.conftest import BIN, Daemon, eventually, unmount
from tests.mount.test_objects import sums
from tests.services import start
from tests.services.ngas import Ngas, running
from tests.services.unreliable import ALWAYS, Fault, Unreliable
from vosfs.backends.ngas import NgasBackend
from vosfs.config import Config, StorageConfig

MIB = 1 << 20
BODY, OTHER = os.urandom(600_000), os.urandom(700_000)
LONG = os.urandom(17 * MIB)
COLLECT = """
import sys, trio
from pathlib import Path
from server import daemon, housekeeping
from vosfs.config import Config, StorageConfig

async def work():
    with daemon.opened(Config(storage=StorageConfig(objects=sys.argv[1]), base=Path(sys.argv[2]))) as (store, backend):
        await store.begin_space("x")
        await housekeeping.empty_trash(store)
        await housekeeping.collect(store, backend, 0)

trio.run(work)
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[Ngas]]:
    """Two servers that share a database."""
    with running(tmp_path, {}, {}) as servers:
        yield servers


@pytest.fixture
def network(cluster: list[Ngas]) -> Iterator[Unreliable]:
    """The network to the first server."""
    made = Unreliable(cluster[0].url)
    yield made
    made.close()


def url_of(*addresses: str) -> str:
    return f"ngas://{','.join(addresses)}/space-1"


def collected(space: Daemon, url: str) -> set[str]:
    """Ids of the files that nodes stand on, after a collection that waits for no lease."""
    cfg = Config(storage=StorageConfig(objects=url), base=space.directory)

    async def work() -> set[str]:
        with composition.opened(cfg) as (store, backend):
            files = backend.default
            assert isinstance(files, NgasBackend)
            await store.begin_space("x")
            await housekeeping.empty_trash(store)
            await housekeeping.collect(store, backend, 0)
            await housekeeping.collect_orphans(store, backend, -60)
            locators = list(backend.locators(1 << 62))
            assert all([await store.referenced(locator) for locator in locators])
            return {files.file_id(locator, kind) for locator in locators for kind in ("", "s")}

    return trio.run(work)


def blobs(*servers: Ngas) -> set[str]:
    """Ids of all files but the mark of the space."""
    return {file.id for server in servers for file in server.files() if "-space-" not in file.id}


def test_a_space_in_ngas(
    cluster: list[Ngas], make_daemon: Callable[..., Daemon], make_mount: Callable[..., Path], tmp_path: Path
) -> None:
    url = url_of(*(server.address for server in cluster))
    space = make_daemon("space", "--objects", url)
    tree = tmp_path / "tree"
    (tree / "d/e").mkdir(parents=True)
    for name, size in {
        "empty": 0,
        "d/inline": 900,
        "d/short": 200_000,
        "d/e/some": 3 * MIB,
        "long": 40 * MIB + 7,
    }.items():
        (tree / name).write_bytes(os.urandom(size))
    point = make_mount(space)
    subprocess.run(["cp", "-r", tree, point / "tree"], check=True)
    with open(point / "tree/long", "r+b") as stream, open(tree / "long", "r+b") as local:
        for file in (stream, local):
            file.seek(20 * MIB)
            file.write(b"patched")
    expected = sums(tree)
    unmount(point)
    # Another mount has another, empty cache; and one server is enough to write.
    cluster[1].online = False
    again = make_mount(space, "again")
    assert sums(again / "tree") == expected
    (again / "more").write_bytes(BODY)
    unmount(again)
    cluster[1].online = True

    assert space.request("PUT", "/files/put", LONG)[0] == 201
    assert space.request("GET", "/files/put")[2] == LONG
    for start_at, stop in ((0, 1), (262_143, 262_146), (5 * MIB, 16 * MIB), (17 * MIB - 1, 17 * MIB)):
        status, _, got = space.request("GET", "/files/put", headers={"Range": f"bytes={start_at}-{stop - 1}"})
        assert (status, got == LONG[start_at:stop]) == (206, True)
    archive = space.request("GET", "/pkg?TARGET=vos://vosfs.local~vospace/tree")[2]
    done = subprocess.run(["tar", "-xC", tmp_path, "--one-top-level=got"], input=archive)
    assert done.returncode == 0 and sums(tmp_path / "got" / "tree") == expected
    assert space.stop() == 0
    stood_on = collected(space, url)
    assert blobs(*cluster) <= stood_on and len(blobs(*cluster)) > 4
    spool = space.directory / "storage"
    assert not spool.exists() or list(spool.iterdir()) == []

    space = make_daemon("space", "--objects", url)
    point = make_mount(space, "third")
    subprocess.run(["rm", "-r", point / "tree", point / "put", point / "more"], check=True)
    unmount(point)
    space.stop()
    gc = [BIN / "vosfsd", "gc", "--dev", space.directory, "--objects", url]
    done = subprocess.run(gc, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("purged"), done.stderr
    assert collected(space, url) == blobs(*cluster) == set()


def test_servers_that_fail_cost_nothing_that_was_saved(network: Unreliable, make_daemon: Callable[..., Daemon]) -> None:
    space = make_daemon("space", "--objects", url_of(network.url.removeprefix("http://")))
    assert space.request("PUT", "/files/a", BODY)[0] == 201
    network.faults = [Fault("refused", "POST", at=503, times=ALWAYS)]
    status, _, text = space.request("PUT", "/files/a", OTHER)
    assert (status, text.split()[0]) == (503, b"ServiceBusy")
    network.faults = [Fault("refused", "GET", at=503, times=ALWAYS)]
    assert space.request("GET", "/files/a")[0] == 503
    network.faults = []
    assert space.request("GET", "/files/a")[2] == BODY


# -- kill -9 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["silent", "held"])
@pytest.mark.parametrize("step", ["data", "sums"])
@pytest.mark.parametrize("body", [OTHER, LONG], ids=["short", "long"])
def test_a_daemon_that_is_killed_between_the_steps_of_an_upload(
    cluster: list[Ngas], network: Unreliable, make_daemon: Callable[..., Daemon], body: bytes, step: str, how: str
) -> None:
    url = url_of(network.url.removeprefix("http://"))
    space = make_daemon("space", "--objects", url)
    for path in ("/files/kept", "/files/replaced"):
        assert space.request("PUT", path, BODY)[0] == 201
    before = blobs(cluster[0])
    ending = f"-{len(body):x}{'s' if step == 'sums' else ''}.bin"
    network.faults = [Fault(how, "POST", ending, times=ALWAYS)]
    answers: list[int] = []

    def upload() -> None:
        try:
            answers.append(space.request("PUT", "/files/replaced", body)[0])
        except (urllib.error.URLError, HTTPException, ConnectionError):
            answers.append(0)

    thread = threading.Thread(target=upload)
    thread.start()
    eventually("the step was reached", lambda: network.faults[0].times < ALWAYS)
    if how == "held":
        eventually("it is done", lambda: any(ending in name for name in blobs(cluster[0])))
    space.stop(signal.SIGKILL)
    thread.join()
    assert answers == [0]
    network.faults = []
    space = make_daemon("space", "--objects", url)
    assert space.request("GET", "/files/kept")[2] == space.request("GET", "/files/replaced")[2] == BODY
    assert space.stop() == 0
    assert collected(space, url) == blobs(*cluster) == before


@pytest.mark.parametrize("how", ["silent", "held"])
@pytest.mark.parametrize("step", ["find", "CACHEDEL", "DISCARD", "find sums", "DISCARD sums"])
def test_a_collector_that_is_killed_between_the_steps_of_a_removal(
    cluster: list[Ngas], network: Unreliable, make_daemon: Callable[..., Daemon], step: str, how: str
) -> None:
    url = url_of(network.url.removeprefix("http://"))
    space = make_daemon("space", "--objects", url)
    assert space.request("PUT", "/files/kept", BODY)[0] == 201
    kept = blobs(cluster[0])
    assert space.request("PUT", "/files/gone", OTHER)[0] == 201
    assert space.request("DELETE", "/nodes/gone")[0] == 204
    assert space.stop() == 0
    assert len(blobs(cluster[0])) == 4
    command, _, of_sums = step.partition(" ")
    target = f"-{len(OTHER):x}{'s' if of_sums else ''}.bin" if command == "find" else command
    # The first DISCARD is about the blob, the second about its sums.
    first = [Fault("", "GET", command)] if command == "DISCARD" and of_sums else []
    network.faults = [*first, Fault(how, "GET", target, times=ALWAYS)]
    process = start([sys.executable, "-c", COLLECT, url, str(space.directory)])
    eventually("the step was reached", lambda: network.faults[-1].times < ALWAYS, 30)
    process.kill()
    process.wait()
    network.faults = []
    assert collected(space, url) == blobs(*cluster) == kept
    space = make_daemon("space", "--objects", url)
    assert space.request("GET", "/files/kept")[2] == BODY
