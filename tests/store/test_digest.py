"""Contents without an MD5 get one when they have rested, in every store."""

import hashlib
import os
from collections.abc import Callable
from typing import TypeVar

import msgspec
import pytest
import trio
from trio.testing import MockClock

from server import digests
from tests.store.conftest import AnyStore
from vosfs.backends.memory import MemoryBackend
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import DATA, ROOT_ID, Attributes, Blob, Content, Extent, NewNode, Node

T = TypeVar("T")


async def test_what_has_rested_is_digested(store: AnyStore) -> None:
    backend = MemoryBackend()
    writer = backend.create()
    writer.write(b"0123456789")
    blob = writer.finish(True)
    file = await store.create(ROOT_ID, b"f", NewNode(DATA))
    changes = [Extent(5, 10, blob.locator, 2), Extent(12, 14, data=b"ab")]
    await store.commit(file.id, None, 20, changes, [Blob(blob.locator, 10, 0)])
    imported = await store.create(ROOT_ID, b"imported", NewNode(DATA))
    await store.commit(imported.id, None, 3, [Extent(0, 3, data=b"abc")], [])
    await store.set_attributes(imported.id, Attributes(immutable=1))
    await store.create(ROOT_ID, b"empty", NewNode(DATA))
    assert await digests.fill(store, backend, 3600) == 0, "it was written just now"
    before = await store.get(file.id)
    assert await digests.fill(store, backend, -1) == 1
    node = await store.get(file.id)
    expected = bytes(5) + b"23456" + bytes(2) + b"ab" + bytes(6)
    assert node.md5 == hashlib.md5(expected, usedforsecurity=False).hexdigest()
    assert (node.version, node.ctime_ns) == (before.version, before.ctime_ns)
    assert await digests.fill(store, backend, -1) == 0
    assert (await store.get(imported.id)).md5 == ""


async def test_a_digest_of_older_bytes_is_dropped(store: AnyStore) -> None:
    file = await store.create(ROOT_ID, b"f", NewNode(DATA))
    first = await store.commit(file.id, None, 1, [Extent(0, 1, data=b"a")], [])
    await store.commit(file.id, None, 1, [Extent(0, 1, data=b"b")], [])
    await store.put_digest(file.id, first.node.version, "0" * 32)
    assert (await store.get(file.id)).md5 == ""


async def test_what_cannot_be_read_does_not_keep_the_others_waiting(
    store: AnyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The longest come first, and may be on tape, a batch of them."""
    backend = MemoryBackend()
    monkeypatch.setattr(digests, "BATCH", 2)
    for number in range(3):
        node = await store.create(ROOT_ID, b"away%d" % number, NewNode(DATA))
        blob = Blob(f"{number:032x}", 1000, 0)
        await store.commit(node.id, 1, 1000, [Extent(0, 1000, blob.locator)], [blob])
    writer = backend.create()
    writer.write(b"here")
    blob = writer.finish(True)
    node = await store.create(ROOT_ID, b"here", NewNode(DATA))
    await store.commit(node.id, 1, 4, [Extent(0, 4, blob.locator)], [blob])
    away: set[int] = set()
    done = [await digests.fill(store, backend, -1, away) for _ in range(3)]
    assert done == [0, 1, 0] and len(away) == 3
    assert (await store.get(node.id)).md5


class Processor:
    """Time that passes, and processor time that is taken, as told."""

    def __init__(self) -> None:
        self.now = self.taken = self.own = 0.0

    def work(self, seconds: float, others: float) -> None:
        """A step that computes, while the rest of the daemon takes its share of a processor."""
        self.now += seconds
        self.own += seconds
        self.taken += seconds * (1 + others)


@pytest.mark.parametrize(("others", "pause"), [(0.0, 0.0), (0.04, 0.0), (0.06, 9 * 0.01), (1.0, 9 * 0.01)])
async def test_digests_give_way_to_what_clients_wait_for(
    others: float, pause: float, autojump_clock: MockClock
) -> None:
    processor = Processor()
    pace = digests.Pace(lambda: processor.now, lambda: processor.taken, lambda: processor.own)
    for _ in range(3):
        began = trio.current_time()
        await pace.step(lambda: processor.work(0.01, others))
        assert trio.current_time() - began == pytest.approx(pause)
        # The pause is part of what is looked at next.
        processor.now += pause
        processor.taken += pause * others


async def test_digests_of_a_slow_storage_do_not_wait_as_long_again(autojump_clock: MockClock) -> None:
    processor = Processor()
    pace = digests.Pace(lambda: processor.now, lambda: processor.taken, lambda: processor.own)
    began = trio.current_time()
    await pace.step(lambda: processor.work(20.0, 1.0))
    assert trio.current_time() - began == digests.PAUSE_S_MAX


async def a_node(length: int) -> Node:
    return msgspec.structs.replace(await MemoryStore().create(ROOT_ID, b"f", NewNode(DATA)), length=length)


@pytest.mark.parametrize("mib", [0.5, 3, 4, 5, 8])
async def test_a_digest_is_of_all_pieces(mib: float) -> None:
    backend, data = MemoryBackend(), os.urandom(int(mib * (1 << 20)))
    writer = backend.create()
    writer.write(data)
    blob = writer.finish(True)
    found = Content(await a_node(len(data)), [Extent(0, len(data), blob.locator)])
    assert await digests.digest(backend, found, digests.Pace()) == hashlib.md5(data, usedforsecurity=False).hexdigest()


async def test_a_daemon_that_stops_does_not_wait_for_the_digest_of_a_long_file(autojump_clock: MockClock) -> None:
    """Holes, whose zeros have no end here."""
    found = Content(await a_node(1 << 60), [])
    with trio.move_on_after(0.5) as scope:
        await digests.digest(MemoryBackend(), found, Busy())
    assert scope.cancelled_caught


class Busy(digests.Pace):
    """Always has others who wait."""

    async def step(self, work: Callable[[], T]) -> T:
        done = await super().step(work)
        await trio.sleep(0.1)
        return done
