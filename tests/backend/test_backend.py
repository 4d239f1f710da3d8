"""Every backend keeps the Backend port's contract; the POSIX one also keeps its directory in order."""

import os
import time
import zlib
from pathlib import Path

import pytest

from vosfs.backends.backend import Backend, gathered
from vosfs.backends.posix import PosixBackend
from vosfs.errors import BlobMissing, DataCorrupt
from vosfs.metadata.node import COPY, Blob, parts

NEVER_ISSUED = "0" * 32
TRAVERSALS = [
    "", ".", "..", "../../etc/passwd", "/etc/passwd", "a" * 31, "a" * 33, "A" * 32, "g" * 32, "a" * 30 + "/.",
    "a" * 32 + "\n", "a" * 32 + "-1", "a" * 32 + "-1-2-3", "a" * 32 + "-1-x", "../" + "a" * 29, "a" * 32 + "\0",
]  # fmt: skip


@pytest.fixture
def posix(tmp_path: Path) -> PosixBackend:
    """An empty directory of blobs."""
    return PosixBackend(tmp_path / "storage")


def later() -> int:
    """A time after everything that was done."""
    return time.time_ns() + 10**9


def put(backend: Backend, *pieces: bytes, durable: bool = False) -> Blob:
    """A blob of these pieces."""
    writer = backend.create()
    for piece in pieces:
        writer.write(piece)
    blob = writer.finish(durable)
    writer.abort()
    return blob


def get(backend: Backend, locator: str) -> bytes:
    """A whole blob."""
    reader = backend.open(locator)
    try:
        return reader.read(0, reader.length)
    finally:
        reader.close()


def listed(backend: Backend) -> list[str]:
    """Locators of all blobs, or of their copies."""
    return list(backend.locators(later()))


def other(locator: str) -> str:
    """A locator like this one, of nothing."""
    name, of, own = locator.rpartition("~")
    return name + of + ("1" if own[0] == "0" else "0") + own[1:]


def files(root: Path) -> list[str]:
    """Files below a directory."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir())


# -- the port --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True])
def test_the_life_of_a_blob(backend: Backend, durable: bool) -> None:
    writer = backend.create()
    for piece in (b"abc", memoryview(b"defgh")[1:4], bytearray(b"xyz")):
        writer.write(piece)
    blob = writer.finish(durable)
    assert (blob.length, blob.crc32) == (9, zlib.crc32(b"abcefgxyz"))
    writer.abort()
    assert get(backend, blob.locator) == b"abcefgxyz"
    assert listed(backend) == parts(blob.locator)
    backend.sync([blob.locator])
    backend.remove(blob.locator)
    backend.remove(blob.locator)
    with pytest.raises(DataCorrupt):
        backend.open(blob.locator)
    assert list(backend.locators(later())) == []


def test_an_empty_blob(backend: Backend) -> None:
    blob = put(backend)
    assert (blob.length, blob.crc32) == (0, 0)
    assert get(backend, blob.locator) == b""


def test_a_large_blob(backend: Backend) -> None:
    data = os.urandom(20 << 20)
    blob = put(backend, data[:1], data[1:])
    assert (blob.length, blob.crc32) == (len(data), zlib.crc32(data))
    assert get(backend, blob.locator) == data
    assert listed(backend) == parts(blob.locator)
    ranges = [(0, 5), (131_071, 131_073), (262_144, 1_000_000), (1_000_001, 18_000_000), (len(data) - 1, len(data))]
    for start, stop in ranges:
        reader = backend.open(blob.locator, start, stop)
        assert gathered(reader.stream(start, stop)) == data[start:stop]
        # And what was not announced.
        assert reader.read(7, 9) == data[7:9]
        reader.close()
    backend.remove(blob.locator)
    assert list(backend.locators(later())) == []


def test_a_stream_comes_in_pieces(backend: Backend) -> None:
    data = os.urandom(5 << 20)
    reader = backend.open(put(backend, data).locator, 0, len(data))
    pieces = [bytes(piece) for piece in reader.stream(0, len(data))]
    assert b"".join(pieces) == data and len(pieces) > 1
    assert max(map(len, pieces)) <= 4 << 20
    with pytest.raises(DataCorrupt):
        list(reader.stream(1, len(data) + 1))
    reader.close()


def test_the_range_that_is_announced_may_be_wrong(backend: Backend) -> None:
    blob = put(backend, bytes(range(256)))
    for start, stop in ((0, 10**18), (200, 300), (256, 300), (1000, 2000), (9, 3)):
        reader = backend.open(blob.locator, start, stop)
        assert reader.length == 256
        assert reader.read(250, 256) == bytes(range(250, 256))
        assert list(reader.stream(4, 4)) == []
        reader.close()
    empty = backend.open(put(backend).locator, 0, 10)
    assert (empty.length, empty.read(0, 0)) == (0, b"")
    empty.close()


def test_a_long_blob_that_is_aborted_leaves_nothing(backend: Backend) -> None:
    writer = backend.create()
    writer.write(os.urandom(40 << 20))
    assert list(backend.locators(later())) == []
    writer.abort()
    writer.abort()
    assert list(backend.locators(later())) == []


def test_check_finds_nothing(backend: Backend) -> None:
    backend.check("space-1")
    backend.check("space-1")
    assert list(backend.locators(later())) == []


def test_abort_leaves_nothing(backend: Backend) -> None:
    writer = backend.create()
    writer.write(b"abc")
    writer.abort()
    writer.abort()
    assert list(backend.locators(later())) == []
    if isinstance(backend, PosixBackend):
        assert files(backend.root) == []


def test_nothing_is_there_before_finish(backend: Backend) -> None:
    writer = backend.create()
    writer.write(b"x" * 100_000)
    assert list(backend.locators(later())) == []
    if isinstance(backend, PosixBackend):
        assert files(backend.root / "blobs") == []
    blob = writer.finish(False)
    assert listed(backend) == parts(blob.locator)
    if isinstance(backend, PosixBackend):
        assert files(backend.root / "incoming") == []


def test_ranges(backend: Backend) -> None:
    reader = backend.open(put(backend, bytes(range(256))).locator)
    try:
        assert reader.length == 256
        assert [reader.read(*r) for r in ((0, 1), (10, 13), (255, 256), (7, 7), (256, 256))] == [
            b"\x00", b"\x0a\x0b\x0c", b"\xff", b"", b"",
        ]  # fmt: skip
        for start, stop in ((0, 257), (256, 257), (300, 301)):
            with pytest.raises(DataCorrupt):
                reader.read(start, stop)
        if reader.fileno() >= 0:
            assert os.pread(reader.fileno(), 2, 10) == b"\x0a\x0b"
    finally:
        reader.close()
        reader.close()


def test_an_open_blob_stays_readable(backend: Backend) -> None:
    blob = put(backend, b"abc")
    reader = backend.open(blob.locator)
    backend.remove(blob.locator)
    if reader.fileno() >= 0:
        assert reader.read(0, 3) == b"abc"
    else:
        # Where nothing holds it, no other bytes than its own.
        try:
            assert reader.read(0, 3) == b"abc"
        except DataCorrupt as exc:
            assert "missing" in str(exc)
    reader.close()


def test_a_missing_blob_is_corrupt_data(backend: Backend) -> None:
    issued = put(backend, b"abc").locator
    never_issued = COPY.join(other(part) for part in parts(issued))
    for start, stop in ((0, 0), (0, 3)):
        with pytest.raises(BlobMissing):
            backend.open(never_issued, start, stop)
    backend.remove(never_issued)
    assert get(backend, issued) == b"abc"


def test_locators_by_age(backend: Backend) -> None:
    blobs = {put(backend, b"%d" % number).locator for number in range(20)}
    assert len(blobs) == 20
    assert set(backend.locators(later())) == {part for blob in blobs for part in parts(blob)}
    assert list(backend.locators(time.time_ns() - 3600 * 10**9)) == []


def test_equal_bytes_are_two_blobs(backend: Backend) -> None:
    first, second = put(backend, b"same"), put(backend, b"same")
    assert first.locator != second.locator
    backend.remove(first.locator)
    assert get(backend, second.locator) == b"same"


def test_space(backend: Backend) -> None:
    total, free = backend.space()
    assert 0 < free <= total or (total, free) == (0, 0)


# -- POSIX -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locator", TRAVERSALS)
def test_what_is_no_locator_is_refused(posix: PosixBackend, locator: str) -> None:
    for call in (posix.open, posix.remove, posix.path, lambda text: posix.sync([text])):
        with pytest.raises(DataCorrupt):
            call(locator)


def test_only_the_owner_may_look(posix: PosixBackend) -> None:
    old = os.umask(0o022)
    try:
        blob = put(posix, b"abc", durable=True)
    finally:
        os.umask(old)
    assert posix.path(blob.locator).stat().st_mode & 0o777 == 0o600
    modes = {str(p.relative_to(posix.root)): p.stat().st_mode & 0o777 for p in posix.root.rglob("*") if p.is_dir()}
    assert len(modes) == 4 and set(modes.values()) == {0o700}, modes


def test_a_durable_blob_has_durable_directories(posix: PosixBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def spy(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", spy)
    path = posix.path(put(posix, b"abc", durable=True).locator)
    made = {str(path.parent), str(path.parent.parent), str(posix.root / "blobs")}
    assert made <= set(synced), "a directory that was made for the blob must survive a power cut too"


def test_a_cut_blob_is_corrupt_data(posix: PosixBackend) -> None:
    blob = put(posix, b"abcdef")
    reader = posix.open(blob.locator)
    os.truncate(posix.path(blob.locator), 3)
    with pytest.raises(DataCorrupt):
        reader.read(0, 6)
    reader.close()


def test_a_blob_is_never_read_through_a_symbolic_link(posix: PosixBackend, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    blob = put(posix, b"abc")
    posix.path(blob.locator).unlink()
    posix.path(blob.locator).symlink_to(tmp_path / "secret")
    # One that has not got it open already.
    with pytest.raises(DataCorrupt):
        PosixBackend(posix.root).open(blob.locator)


def test_sync_of_a_missing_blob_is_corrupt_data(posix: PosixBackend) -> None:
    put(posix, b"abc")
    with pytest.raises(DataCorrupt):
        posix.sync([NEVER_ISSUED])


def test_registered_files_are_read_in_place(posix: PosixBackend, tmp_path: Path) -> None:
    file = tmp_path / "tree" / "a.fits"
    file.parent.mkdir()
    file.write_bytes(b"in place")
    blob = posix.register(file)
    assert (blob.length, blob.crc32) == (8, 0)
    assert get(posix, blob.locator) == b"in place"
    assert list(posix.locators(later())) == [blob.locator]
    posix.sync([blob.locator])
    posix.remove(blob.locator)
    assert file.read_bytes() == b"in place"
    assert list(posix.locators(later())) == []


@pytest.mark.parametrize("how", ["longer", "shorter", "touched", "gone", "replaced"])
def test_a_registered_file_that_changed_is_refused(posix: PosixBackend, tmp_path: Path, how: str) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"in place")
    stamp = file.stat().st_mtime_ns
    blob = posix.register(file)
    if how == "longer":
        file.write_bytes(b"in place!")
        os.utime(file, ns=(stamp, stamp))
    elif how == "shorter":
        os.truncate(file, 3)
        os.utime(file, ns=(stamp, stamp))
    elif how == "touched":
        os.utime(file, ns=(stamp, stamp + 1))
    elif how == "gone":
        file.unlink()
    else:
        (tmp_path / "b").write_bytes(b"other one")
        os.replace(tmp_path / "b", file)
    # One that has not got it open already.
    with pytest.raises(DataCorrupt):
        PosixBackend(posix.root).open(blob.locator)


def test_a_file_of_before_1970_can_be_registered(posix: PosixBackend, tmp_path: Path) -> None:
    file = tmp_path / "plate"
    file.write_bytes(b"1950")
    os.utime(file, ns=(0, -(10**18)))
    if file.stat().st_mtime_ns >= 0:
        pytest.skip("this file system has no time before 1970")
    assert get(posix, posix.register(file).locator) == b"1950"


def test_sweep_removes_what_writers_left(posix: PosixBackend) -> None:
    writer = posix.create()
    writer.write(b"left")
    posix.sweep(time.time_ns() - 3600 * 10**9)
    assert len(files(posix.root / "incoming")) == 1
    kept = put(posix, b"kept")
    posix.sweep(later())
    assert files(posix.root / "incoming") == []
    writer.abort()
    assert get(posix, kept.locator) == b"kept"


def test_another_backend_on_the_same_directory_sees_the_blobs(posix: PosixBackend) -> None:
    blob = put(posix, b"abc")
    assert get(PosixBackend(posix.root), blob.locator) == b"abc"
