"""A space whose bytes are all in NGAS: a mount, HTTP, daemons that are killed between any two steps, and nothing left over."""

import os
import signal
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import pytest

from tests.conftest import Daemon, eventually
from tests.mount.elsewhere import collected, emptied, fails_and_costs_nothing, filled
from tests.services import start
from tests.services.ngas import Ngas, running
from tests.services.unreliable import ALWAYS, Fault, Unreliable
from vosfs.backends.backend import Keeper
from vosfs.backends.ngas import NgasBackend
from vosfs.backends.ngasblobs import BLOCK_BYTES

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


def ids(backend: Keeper) -> set[str]:
    """Ids of the files that its blobs and their sums would have."""
    assert isinstance(backend, NgasBackend)
    return {backend.file_id(locator, kind) for locator in backend.locators(1 << 62) for kind in ("", "s")}


@contextmanager
def without(server: Ngas) -> Iterator[None]:
    """One server is away."""
    server.online = False
    yield
    server.online = True


def blobs(*servers: Ngas) -> set[str]:
    """Ids of all files but the mark of the space."""
    return {file.id for server in servers for file in server.files() if "-space-" not in file.id}


def test_a_space_in_ngas(
    cluster: list[Ngas], make_daemon: Callable[..., Daemon], make_mount: Callable[..., Path], tmp_path: Path
) -> None:
    url = url_of(*(server.address for server in cluster))
    sizes = {"empty": 0, "d/inline": 900, "d/short": 200_000, "d/e/some": 3 * MIB, "long": 40 * MIB + 7}
    # One server is enough, to write too.
    space = filled(url, make_daemon, make_mount, tmp_path, sizes, BLOCK_BYTES, without(cluster[1]))
    stood_on = collected(space, url, ids)
    assert blobs(*cluster) <= stood_on and len(blobs(*cluster)) > 4
    spool = space.directory / "storage"
    assert not spool.exists() or list(spool.iterdir()) == []
    emptied(url, make_daemon, make_mount)
    assert collected(space, url, ids) == blobs(*cluster) == set()


def test_servers_that_fail_cost_nothing_that_was_saved(network: Unreliable, make_daemon: Callable[..., Daemon]) -> None:
    space = make_daemon("space", "--objects", url_of(network.url.removeprefix("http://")))
    fails_and_costs_nothing(space, network, "POST")


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
    assert collected(space, url, ids) == blobs(*cluster) == before


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
    assert collected(space, url, ids) == blobs(*cluster) == kept
    space = make_daemon("space", "--objects", url)
    assert space.request("GET", "/files/kept")[2] == BODY
