"""A space whose bytes are all in a storage far away: what holds whichever it is."""

import hashlib
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

import trio

from server import daemon as composition
from server import housekeeping
from tests.conftest import BIN, Daemon, unmount
from tests.services.unreliable import ALWAYS, Fault, Unreliable
from vosfs.backends.backend import Keeper
from vosfs.config import Config, StorageConfig

MIB = 1 << 20
BODY = os.urandom(20 * MIB)
T = TypeVar("T")
MakeDaemon = Callable[..., Daemon]
MakeMount = Callable[..., Path]


def sums(root: Path) -> dict[str, str]:
    """SHA-256 of all files below a directory."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*") if path.is_file()
    }  # fmt: skip


def collected(space: Daemon, url: str, look: Callable[[Keeper], T]) -> T:
    """What is in the storage after a collection that waits for no lease; nodes stand on every blob of it."""
    cfg = Config(storage=StorageConfig(objects=url), base=space.directory)

    async def work() -> T:
        with composition.opened(cfg) as (store, backend):
            await store.begin_space("x")
            await housekeeping.empty_trash(store)
            await housekeeping.collect(store, backend, 0)
            await housekeeping.collect_orphans(store, backend, -60)
            assert all([await store.referenced(locator) for locator in backend.locators(1 << 62)])
            return look(backend.default)

    return trio.run(work)


def filled(
    url: str, make_daemon: MakeDaemon, make_mount: MakeMount, tmp_path: Path, sizes: dict[str, int], edge: int,
    impaired: AbstractContextManager[object],
) -> Daemon:  # fmt: skip
    """A space, filled and read by mounts and by HTTP, and stopped.  ``edge``: a bound of blocks of the storage's.

    ``impaired``: while a second mount reads what the first one wrote, and writes itself.
    """
    space = make_daemon("space", "--objects", url)
    tree = tmp_path / "tree"
    (tree / "d/e").mkdir(parents=True)
    for name, size in sizes.items():
        (tree / name).write_bytes(os.urandom(size))
    point = make_mount(space)
    subprocess.run(["cp", "-r", tree, point / "tree"], check=True)
    with open(point / "tree/long", "r+b") as stream, open(tree / "long", "r+b") as local:
        for file in (stream, local):
            file.seek(20 * MIB)
            file.write(b"patched")
    expected = sums(tree)
    unmount(point)
    # Another mount has another, empty cache.
    with impaired:
        again = make_mount(space, "again")
        assert sums(again / "tree") == expected
        (again / "more").write_bytes(BODY[:MIB])
        unmount(again)

    size = len(BODY)
    assert space.request("PUT", "/files/put", BODY)[0] == 201
    assert space.request("GET", "/files/put")[2] == BODY
    for start, stop in ((0, 1), (edge - 1, edge + 2), (5 * MIB, 19 * MIB), (size - 1, size)):
        status, _, got = space.request("GET", "/files/put", headers={"Range": f"bytes={start}-{stop - 1}"})
        assert (status, got == BODY[start:stop]) == (206, True)
    assert space.request("GET", "/files/put", headers={"Range": f"bytes={size}-"})[0] == 416
    archive = space.request("GET", "/pkg?TARGET=vos://vosfs.local~vospace/tree")[2]
    done = subprocess.run(["tar", "-xC", tmp_path, "--one-top-level=got"], input=archive)
    assert done.returncode == 0 and sums(tmp_path / "got" / "tree") == expected
    assert space.stop() == 0
    return space


def emptied(url: str, make_daemon: MakeDaemon, make_mount: MakeMount) -> None:
    """Delete everything in a space that was filled, and collect it by command."""
    space = make_daemon("space", "--objects", url)
    point = make_mount(space, "third")
    subprocess.run(["rm", "-r", point / "tree", point / "put", point / "more"], check=True)
    unmount(point)
    space.stop()
    gc = [BIN / "vosfsd", "gc", "--dev", space.directory, "--objects", url]
    done = subprocess.run(gc, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("purged"), done.stderr


def fails_and_costs_nothing(space: Daemon, network: Unreliable, writes: str) -> None:
    """While a storage refuses its requests, of the method that ``writes`` or to read, what was saved stays."""
    body = BODY[: 3 * MIB]
    assert space.request("PUT", "/files/a", body)[0] == 201
    network.faults = [Fault("refused", writes, at=503, times=ALWAYS)]
    status, _, text = space.request("PUT", "/files/a", body[::-1])
    assert (status, text.split()[0]) == (503, b"ServiceBusy")
    network.faults = [Fault("refused", "GET", at=503, times=ALWAYS)]
    assert space.request("GET", "/files/a")[0] == 503
    network.faults = []
    assert space.request("GET", "/files/a")[2] == body
