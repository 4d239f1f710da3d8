"""Several storages as one: policies, and readers that go on to the next copy."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vosfs.backends.backend import gathered
from vosfs.backends.memory import MemoryBackend
from vosfs.backends.posix import PosixBackend
from vosfs.backends.storages import DEFAULT, LOCATOR_MAX, Storages
from vosfs.errors import BlobMissing, DataCorrupt, InvalidArgument, ServiceUnavailable, StorageFull
from vosfs.metadata.node import Blob, parts

DATA = os.urandom(3 << 20)
A, B = DEFAULT, "b" * 15


class Away(PosixBackend):
    """A directory that is out of reach when it is told to be; it counts who asks."""

    away = False
    asked = 0

    def open(self, locator: str, start: int = 0, stop: int = 0):  # type: ignore[no-untyped-def]
        self.asked += 1
        if self.away:
            raise ServiceUnavailable("no connection")
        return super().open(locator, start, stop)


@pytest.fixture
def storages(tmp_path: Path) -> Iterator[Storages]:
    made = Storages({A: Away(tmp_path / "a"), B: Away(tmp_path / "b")}, frozenset((B,)))
    yield made
    made.close()


def put(storages: Storages, policy: str) -> Blob:
    writer = storages.create(0, policy)
    writer.write(DATA[:5])
    writer.write(DATA[5:])
    blob = writer.finish(True)
    writer.abort()
    return blob


def read(storages: Storages, locator: str, start: int = 0, stop: int = len(DATA)) -> bytes:
    reader = storages.open(locator, start, stop)
    try:
        return gathered(reader.stream(start, stop))
    finally:
        reader.close()


def file(storages: Storages, part: str) -> Path:
    backend = storages.members[storages.storage_of(part)]
    assert isinstance(backend, PosixBackend)
    backend.close()
    return backend.path(part.rpartition("~")[2])


def test_a_policy_says_where(storages: Storages) -> None:
    default, second, both = put(storages, ""), put(storages, B), put(storages, f"{B} {A}")
    assert "~" not in default.locator and second.locator.startswith(B + "~")
    assert [storages.storage_of(part) for part in parts(both.locator)] == [B, A]
    assert len(both.locator) <= LOCATOR_MAX and "." not in both.locator
    for blob in (default, second, both):
        assert (blob.length, read(storages, blob.locator)) == (len(DATA), DATA)
        assert read(storages, blob.locator, 100, 2_000_000) == DATA[100:2_000_000]
    assert storages.open_now(both.locator) is None and storages.open_now(second.locator) is not None
    storages.sync([default.locator, both.locator])


@pytest.mark.parametrize("policy", ["none", f"{A} {A}", f"{A} {B} {A}", "../x", "a~b"])
def test_what_is_no_policy(storages: Storages, policy: str) -> None:
    with pytest.raises(InvalidArgument):
        storages.names(policy)
    with pytest.raises(ServiceUnavailable):
        storages.create(0, policy)


@pytest.mark.parametrize(
    "locator", ["none~" + "0" * 32, f"{A}~" + "0" * 32, B + "~../../x", "~" + "0" * 32, "+", "x+y"]
)
@pytest.mark.expect_log
def test_what_is_no_locator(storages: Storages, locator: str) -> None:
    with pytest.raises(DataCorrupt):
        storages.open(locator)


@pytest.mark.expect_log
@pytest.mark.parametrize("how", ["gone", "short", "away"])
@pytest.mark.parametrize("which", [0, 1])
def test_a_reader_goes_on_to_the_next_copy(storages: Storages, how: str, which: int) -> None:
    blob = put(storages, f"{A} {B}")
    bad = parts(blob.locator)[which]
    if how == "gone":
        file(storages, bad).unlink()
    elif how == "short":
        os.truncate(file(storages, bad), 1_500_000)
    else:
        storages.members[storages.storage_of(bad)].away = True  # type: ignore[attr-defined]
    for start, stop in ((0, len(DATA)), (0, 10), (1_499_000, 1_501_000), (len(DATA) - 1, len(DATA))):
        assert read(storages, blob.locator, start, stop) == DATA[start:stop]
    reader = storages.open(blob.locator, 0, len(DATA))
    assert (reader.length, reader.read(7, 9)) == (len(DATA), DATA[7:9])
    reader.close()


@pytest.mark.expect_log
def test_a_copy_that_goes_in_the_middle(storages: Storages) -> None:
    blob = put(storages, f"{A} {B}")
    reader = storages.open(blob.locator, 0, len(DATA))
    stream = reader.stream(0, len(DATA))
    got = next(stream)
    os.truncate(file(storages, parts(blob.locator)[0]), 100)
    assert got + b"".join(stream) == DATA
    reader.close()


@pytest.mark.expect_log
def test_no_copy_is_left(storages: Storages) -> None:
    blob = put(storages, f"{A} {B}")
    for part in parts(blob.locator):
        file(storages, part).unlink()
    with pytest.raises(BlobMissing):
        storages.open(blob.locator)


def test_a_storage_that_is_away_is_asked_last(storages: Storages) -> None:
    blob = put(storages, f"{A} {B}")
    first = storages.members[A]
    assert isinstance(first, Away)
    first.away = True
    for _ in range(5):
        assert read(storages, blob.locator) == DATA
    assert first.asked == 1


class Full(MemoryBackend):
    def create(self, length=0):  # type: ignore[no-untyped-def]
        writer = super().create()

        def finish(durable: bool) -> Blob:
            raise StorageFull("full")

        writer.finish = finish  # type: ignore[method-assign]
        return writer


def test_all_copies_or_none(tmp_path: Path) -> None:
    first = PosixBackend(tmp_path / "a")
    storages = Storages({A: first, B: Full()})  # type: ignore[dict-item]
    writer = storages.create(0, f"{A} {B}")
    writer.write(b"x")
    with pytest.raises(StorageFull):
        writer.finish(True)
    writer.abort()
    assert list(first.locators(1 << 62)) == [] and not list((tmp_path / "a/incoming").iterdir())
    first.close()


def test_the_collector_sees_copies(storages: Storages) -> None:
    blobs = [put(storages, policy) for policy in ("", B, f"{A} {B}")]
    every = {part for blob in blobs for part in parts(blob.locator)}
    assert set(storages.locators(1 << 62)) == every and len(every) == 4
    storages.remove(parts(blobs[2].locator)[0])
    assert read(storages, parts(blobs[2].locator)[1]) == DATA
    for blob in blobs:
        storages.remove(blob.locator)
    assert list(storages.locators(1 << 62)) == []
