"""A store says whether anything was committed: by itself, by another process, and not by who only read."""

from collections.abc import Awaitable, Callable

import pytest

from tests.store.conftest import AnyStore
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import CONTAINER, DATA, ROOT_ID, Attributes, Extent, NewNode

Change = Callable[[AnyStore, int], Awaitable[object]]
CHANGES: dict[str, Change] = {
    "create": lambda store, id: store.create(ROOT_ID, b"new", NewNode(CONTAINER)),
    "rename": lambda store, id: store.rename(ROOT_ID, b"f", ROOT_ID, b"g"),
    "remove": lambda store, id: store.remove(ROOT_ID, b"f", "leaf"),
    "attributes": lambda store, id: store.set_attributes(id, Attributes(mode=0o600)),
    "properties": lambda store, id: store.set_properties(id, {"ivo://x#y": "z"}),
    "bytes": lambda store, id: store.commit(id, None, 3, [Extent(0, 3, data=b"abc")], []),
    "digest": lambda store, id: store.put_digest(id, 1, "0" * 32),
}


async def rested(store: AnyStore) -> object:
    """A snapshot that is equal to the one before: PostgreSQL's own housekeeping commits now and then too."""
    for _ in range(1000):
        before = await store.snapshot()
        await store.get(ROOT_ID)
        if before == (after := await store.snapshot()):
            return after
    pytest.fail("never twice the same")


@pytest.mark.parametrize("change", CHANGES)
async def test_it_differs_after_a_change(opener: Callable[[], AnyStore], change: str) -> None:
    store, other = opener(), opener()
    try:
        await store.begin_space("alice")
        file = await store.create(ROOT_ID, b"f", NewNode(DATA))
        seen = await rested(store), await rested(other)
        await CHANGES[change](store, file.id)
        assert await store.snapshot() != seen[0], "its own"
        assert await other.snapshot() != seen[1], "another's"
    finally:
        store.close()
        other.close()


async def test_a_store_that_cannot_tell_says_so() -> None:
    store = MemoryStore()
    assert await store.snapshot() != await store.snapshot()
