"""Contents without an MD5 get one when they have rested, in every store."""

import hashlib

import pytest

from server import digests
from tests.store.conftest import AnyStore
from vosfs.backends.memory import MemoryBackend
from vosfs.metadata.node import DATA, ROOT_ID, Attributes, Blob, Extent, NewNode


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
