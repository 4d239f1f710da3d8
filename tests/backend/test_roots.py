"""Several directories as one storage, and a storage with a quota."""

import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vosfs.backends.backend import Backend, Slow
from vosfs.backends.bounded import Bounded, SlowBounded
from vosfs.backends.memory import MemoryBackend
from vosfs.backends.posix import PosixBackend
from vosfs.backends.roots import MARKER, ROOTS_MAX, Roots
from vosfs.backends.slow import SlowDirectory
from vosfs.backends.storages import LOCATOR_MAX
from vosfs.errors import BlobMissing, DataCorrupt, QuietError, ServiceUnavailable, StorageFull
from vosfs.metadata.node import Blob

MIB = 1 << 20
root_only = pytest.mark.skipif(os.getuid() != 0, reason="mounts small disks")


def later() -> int:
    """A time after everything that was done."""
    return time.time_ns() + 10**9


def put(backend: Backend, data: bytes) -> Blob:
    writer = backend.create(len(data))
    try:
        writer.write(data)
        return writer.finish(True)
    finally:
        writer.abort()


def get(backend: Backend, locator: str) -> bytes:
    reader = backend.open(locator)
    try:
        return reader.read(0, reader.length)
    finally:
        reader.close()


def opened(*paths: Path, space: str = "space-1") -> Roots:
    roots = Roots(list(paths), random.Random(1))
    roots.check(space)
    return roots


def where(roots: Roots, blob: Blob) -> str:
    """The directory that a blob is in."""
    return roots.path(blob.locator).parents[3].name


def files(path: Path) -> list[Path]:
    return [found for found in path.rglob("*") if found.is_file()]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [tmp_path / name for name in ("one", "two", "three")]


@pytest.fixture
def disks(paths: list[Path]) -> Iterator[list[Path]]:
    """Three small disks, the last one bigger."""
    for number, path in enumerate(paths):
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={(70, 70, 200)[number]}m", "none", path], check=True)
    yield paths
    for path in paths:
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


def test_blobs_are_spread_and_found_again_in_any_order(paths: list[Path]) -> None:
    roots = opened(*paths)
    blobs = [put(roots, b"%d" % number) for number in range(60)]
    assert {where(roots, blob) for blob in blobs} == {"one", "two", "three"}
    assert all(2 * (len("~") + 15 + len(blob.locator)) + len("+") <= LOCATOR_MAX for blob in blobs)
    roots.close()
    paths[0].rename(paths[0].with_name("moved"))
    again = opened(paths[2], paths[0].with_name("moved"), paths[1])
    assert [get(again, blob.locator) for blob in blobs] == [b"%d" % number for number in range(60)]
    assert sorted(again.locators(later())) == sorted(blob.locator for blob in blobs)
    for blob in blobs[1:]:
        again.remove(blob.locator)
    again.sync([blobs[0].locator])
    assert list(again.locators(later())) == [blobs[0].locator]
    with pytest.raises(BlobMissing):
        again.open(blobs[1].locator)
    again.close()


def test_a_directory_that_was_alone_is_one_of_several(paths: list[Path]) -> None:
    alone = PosixBackend(paths[0])
    old = put(alone, b"old")
    registered = paths[0].parent / "file"
    registered.write_bytes(b"registered")
    link = alone.register(registered)
    alone.close()
    roots = opened(paths[1], paths[0])
    assert (get(roots, old.locator), get(roots, link.locator)) == (b"old", b"registered")
    new = roots.register(registered)
    assert get(roots, new.locator) == b"registered"
    # And one more later.
    before = [put(roots, b"%d" % number) for number in range(20)]
    roots.close()
    more = opened(paths[1], paths[2], paths[0])
    after = [put(more, b"x") for _ in range(40)]
    assert {where(more, blob) for blob in after} == {"one", "two", "three"}
    assert [get(more, blob.locator) for blob in before] == [b"%d" % number for number in range(20)]
    more.close()


@pytest.mark.expect_log
def test_a_directory_that_is_not_mounted_is_not_taken_for_a_new_one(paths: list[Path]) -> None:
    roots = opened(*paths)
    blobs = [put(roots, b"%d" % number) for number in range(30)]
    away = [blob for blob in blobs if where(roots, blob) == "two"]
    roots.close()
    paths[1].rename(paths[1].with_name("disk"))
    paths[1].mkdir()
    roots = opened(*paths)
    assert not roots.fresh
    more = [put(roots, b"new") for _ in range(30)]
    assert {where(roots, blob) for blob in more} == {"one", "three"} and list(paths[1].iterdir()) == []
    for blob in away:
        with pytest.raises(ServiceUnavailable):
            roots.open(blob.locator)
        with pytest.raises(ServiceUnavailable):
            roots.remove(blob.locator)
    found = []
    with pytest.raises(ServiceUnavailable):
        found.extend(roots.locators(later()))
    roots.sweep(later())
    # Its disk is mounted while this goes on.
    paths[1].rmdir()
    paths[1].with_name("disk").rename(paths[1])
    assert [get(roots, blob.locator) for blob in blobs] == [b"%d" % number for number in range(30)]
    assert {where(roots, put(roots, b"y")) for _ in range(40)} == {"one", "two", "three"}
    roots.close()


def test_a_directory_that_goes_away_meanwhile_takes_its_own_blobs_only(paths: list[Path]) -> None:
    roots = opened(*paths)
    blobs = [put(roots, b"%d" % number) for number in range(30)]
    gone = [blob for blob in blobs if where(roots, blob) == "three"]
    roots.close()
    shutil.rmtree(paths[2])
    paths[2].mkdir()
    for number, blob in enumerate(blobs):
        if blob in gone:
            with pytest.raises(ServiceUnavailable):
                roots.open(blob.locator)
        else:
            assert get(roots, blob.locator) == b"%d" % number
    assert {where(roots, put(roots, b"y")) for _ in range(30)} == {"one", "two"}
    assert files(paths[2]) == []
    for path in paths[:2]:
        shutil.rmtree(path)
    with pytest.raises(ServiceUnavailable):
        put(roots, b"z")
    assert roots.space() == (0, 0)
    roots.close()


def test_what_cannot_be_one_storage_is_told_in_a_line(paths: list[Path], tmp_path: Path) -> None:
    opened(*paths[:2]).close()
    assert Roots(paths[2:]).fresh and not Roots(paths[:1]).fresh
    with pytest.raises(QuietError, match="another space"):
        opened(*paths, space="space-2")
    shutil.copytree(paths[0], tmp_path / "copy")
    with pytest.raises(QuietError, match="the same directory, or a copy"):
        Roots([*paths, tmp_path / "copy"])
    for name in ("x", "y"):
        PosixBackend(tmp_path / name)
    with pytest.raises(QuietError, match="cannot be one storage"):
        opened(tmp_path / "x", tmp_path / "y")
    with pytest.raises(QuietError, match=f"up to {ROOTS_MAX}"):
        Roots([tmp_path / str(number) for number in range(ROOTS_MAX + 1)])
    (paths[1] / MARKER).write_bytes(b"{")
    with pytest.raises(QuietError, match="damaged"):
        Roots(paths)


@pytest.mark.parametrize("locator", ["", "../x", "a" * 31, "a" * 32 + "~", "a" * 32 + "gg", "a" * 32 + "g-1", "g" * 33])
def test_what_is_no_locator(paths: list[Path], locator: str) -> None:
    roots = opened(*paths)
    with pytest.raises(DataCorrupt):
        roots.open(locator)
    assert roots.open_now(locator) is None
    with pytest.raises(BlobMissing):
        roots.open("a" * 32 + "z")
    roots.close()


@root_only
def test_a_full_disk_makes_new_blobs_go_elsewhere(disks: list[Path]) -> None:
    roots = opened(*disks)
    total, free = roots.space()
    assert total == 340 * MIB and 330 * MIB < free <= total
    # Of the small ones nearly all is the reserve.
    placed = [where(roots, put(roots, bytes(MIB))) for _ in range(60)]
    assert placed.count("three") > 50
    writer = roots.create()
    with pytest.raises(StorageFull):
        for _ in range(400):
            writer.write(bytes(MIB))
    writer.abort()
    # Whichever that was, the next one goes where there is room.
    blob = put(roots, bytes(10 * MIB))
    assert get(roots, blob.locator) == bytes(10 * MIB)
    for path in disks:
        left = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
        (path / "ballast").write_bytes(bytes(left))
    with pytest.raises(StorageFull):
        put(roots, bytes(MIB))
    (disks[0] / "ballast").unlink()
    assert where(roots, put(roots, bytes(MIB))) == "one"
    roots.close()


@root_only
def test_a_disk_that_is_unmounted_is_not_written_below(disks: list[Path]) -> None:
    roots = opened(*disks)
    put(roots, b"x")
    subprocess.run(["umount", "-l", disks[2]], check=True)
    assert {where(roots, put(roots, b"y")) for _ in range(20)} <= {"one", "two"}
    assert list(disks[2].iterdir()) == []
    roots.close()


def test_a_storage_with_a_quota_is_full_when_it_is_reached(tmp_path: Path) -> None:
    bounded = Bounded(PosixBackend(tmp_path / "storage"), 100)
    bounded.count(30)
    first = put(bounded, bytes(60))
    assert bounded.space() == (100, 10)
    with pytest.raises(StorageFull):
        bounded.create(11)
    writer = bounded.create()
    writer.write(bytes(10))
    with pytest.raises(StorageFull):
        writer.write(b"1")
    writer.abort()
    writer.abort()
    put(bounded, bytes(10))
    assert bounded.space()[1] == 0 and get(bounded, first.locator) == bytes(60)
    bounded.remove(first.locator)
    bounded.count(40)
    assert bounded.space() == (100, 60)
    bounded.close()
    total, free = Bounded(MemoryBackend(), 10).space()  # type: ignore[arg-type]
    assert (total, free) == (10, 10)


def test_a_slow_storage_with_a_quota_is_still_slow(tmp_path: Path) -> None:
    slow = SlowDirectory(PosixBackend(tmp_path / "tape", open_max=0), ("/bin/false", "{path}"))
    bounded = SlowBounded(slow, 100)
    blob = put(bounded, b"x")
    assert isinstance(bounded, Slow) and not isinstance(Bounded(slow, 100), Slow)
    assert bounded.locality(blob.locator) == slow.locality(blob.locator)
    bounded.close()
