"""A space whose bytes are all in an object store: a mount, HTTP, and nothing left when everything is deleted."""

import hashlib
import os
import secrets
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from server import daemon as composition
from server import housekeeping
from tests.conftest import BIN, Daemon, unmount
from tests.services import rgw
from tests.services.unreliable import ALWAYS, Fault, Unreliable
from vosfs.backends.objects import ObjectsBackend
from vosfs.config import Config, StorageConfig

MIB = 1 << 20


@pytest.fixture
def url(s3: rgw.S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix, to which the environment has the key."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{rgw.BUCKET}/{secrets.token_hex(8)}"


def sums(root: Path) -> dict[str, str]:
    """SHA-256 of all files below a directory."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*") if path.is_file()
    }  # fmt: skip


def collected(space: Daemon, url: str) -> tuple[list[str], list[str]]:
    """What is in the bucket after a collection that waits for no lease: blobs and unfinished uploads."""
    cfg = Config(storage=StorageConfig(objects=url), base=space.directory)

    async def work() -> tuple[list[str], list[str]]:
        with composition.opened(cfg) as (store, backend):
            objects = backend.default
            assert isinstance(objects, ObjectsBackend) and objects._uploads is not None
            await store.begin_space("x")
            await housekeeping.empty_trash(store)
            await housekeeping.collect(store, backend, 0)
            await housekeeping.collect_orphans(store, backend, -60)
            found = list(backend.locators(1 << 62))
            assert all([await store.referenced(locator) for locator in found])
            return found, [key for key, _, _ in objects._uploads.unfinished()]

    return trio.run(work)


def test_a_space_in_a_bucket(
    url: str, make_daemon: Callable[..., Daemon], make_mount: Callable[..., Path], tmp_path: Path
) -> None:
    space = make_daemon("space", "--objects", url)
    tree = tmp_path / "tree"
    (tree / "d/e").mkdir(parents=True)
    for name, size in {
        "empty": 0,
        "d/inline": 900,
        "d/short": 200_000,
        "d/e/part": 16 * MIB,
        "long": 50 * MIB + 7,
    }.items():
        (tree / name).write_bytes(os.urandom(size))
    expected = sums(tree)
    point = make_mount(space)
    subprocess.run(["cp", "-r", tree, point / "tree"], check=True)
    with open(point / "tree/long", "r+b") as stream, open(tree / "long", "r+b") as local:
        for file in (stream, local):
            file.seek(20 * MIB)
            file.write(b"patched")
    expected = sums(tree)
    unmount(point)
    # Another mount has another, empty cache.
    again = make_mount(space, "again")
    assert sums(again / "tree") == expected
    unmount(again)

    body = os.urandom(20 * MIB)
    assert space.request("PUT", "/files/put", body)[0] == 201
    assert space.request("GET", "/files/put")[2] == body
    for start, stop in ((0, 1), (131_071, 131_074), (5 * MIB, 19 * MIB), (20 * MIB - 1, 20 * MIB)):
        status, _, got = space.request("GET", "/files/put", headers={"Range": f"bytes={start}-{stop - 1}"})
        assert (status, got == body[start:stop]) == (206, True)
    assert space.request("GET", "/files/put", headers={"Range": f"bytes={20 * MIB}-"})[0] == 416
    archive = space.request("GET", "/pkg?TARGET=vos://vosfs.local~vospace/tree")[2]
    done = subprocess.run(["tar", "-xC", tmp_path, "--one-top-level=got"], input=archive)
    assert done.returncode == 0 and sums(tmp_path / "got" / "tree") == expected
    assert space.stop() == 0
    blobs, uploads = collected(space, url)
    assert len(blobs) >= 4 and uploads == []
    assert not (space.directory / "storage").exists()

    space = make_daemon("space", "--objects", url)
    point = make_mount(space, "third")
    subprocess.run(["rm", "-r", point / "tree", point / "put"], check=True)
    unmount(point)
    space.stop()
    gc = [BIN / "vosfsd", "gc", "--dev", space.directory, "--objects", url]
    done = subprocess.run(gc, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.startswith("purged"), done.stderr
    assert collected(space, url) == ([], [])


def test_a_bucket_that_fails_costs_nothing_that_was_saved(
    url: str, s3: rgw.S3, make_daemon: Callable[..., Daemon]
) -> None:
    network = Unreliable(s3.endpoint)
    try:
        space = make_daemon("space", "--objects", url, "--objects-endpoint", network.url)
        body = os.urandom(3 * MIB)
        assert space.request("PUT", "/files/a", body)[0] == 201
        network.faults = [Fault("refused", "PUT", at=503, times=ALWAYS)]
        status, _, text = space.request("PUT", "/files/a", body[::-1])
        assert (status, text.split()[0]) == (503, b"ServiceBusy")
        network.faults = [Fault("refused", "GET", at=503, times=ALWAYS)]
        assert space.request("GET", "/files/a")[0] == 503
        network.faults = []
        assert space.request("GET", "/files/a")[2] == body
    finally:
        network.close()


def test_two_spaces_do_not_share_a_prefix(url: str, make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    make_daemon("space", "--objects", url).stop()
    where = ["--dev", tmp_path / "other", "--objects", url]
    for command in ([BIN / "vosfsd", "gc", *where], [BIN / "vosfsd", *where, "--port", "0"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "the blobs of another space are there" in done.stderr, done.stderr
    make_daemon("space", "--objects", url)


def test_files_are_not_registered_in_a_bucket(url: str, tmp_path: Path) -> None:
    command = [BIN / "vosfsd", "import", "--dev", tmp_path / "space", "--objects", url, tmp_path, "/here"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "needs [storage] directory" in done.stderr


def test_a_bucket_that_is_not_there_is_said_at_once(s3: rgw.S3, url: str, tmp_path: Path) -> None:
    command = [BIN / "vosfsd", "--dev", tmp_path / "space", "--port", "0", "--objects", "s3://nobody/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "s3://nobody/x: the bucket does not exist: make it, or correct [storage] objects" in done.stderr


def test_a_scheme_that_nobody_serves_is_said_at_once(tmp_path: Path) -> None:
    command = [BIN / "vosfsd", "--dev", tmp_path / "space", "--port", "0", "--objects", "swift://container/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no backend for swift:// here" in done.stderr
