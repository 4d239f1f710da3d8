"""Whole trees are copied and merged in steps that nobody sees half of, in every store."""

import time

import pytest

from tests.store.conftest import AnyStore
from tests.store.tree import dump, listing
from vosfs.errors import DuplicateNode, PermissionDenied
from vosfs.metadata.node import CONTAINER, DATA, LINK, ROOT_ID, STAGING_ID, Blob, Extent, NewNode, Node
from vosfs.metadata.store import Anyone


def later() -> int:
    """A time after everything that was done."""
    return time.time_ns() + 10**9


async def copy_all(store: AnyStore, id: int, name: bytes, page: int = 2, quota: int = 0) -> Node:
    """Stage a copy of a tree, by small pages."""
    copied = await store.copy_node(id, name, "carol", quota=quota)
    todo = [(id, copied.id)] if copied.kind == CONTAINER else []
    while todo:
        source, target = todo.pop()
        after: bytes | None = b""
        while after is not None:
            done = await store.copy_children(source, target, after, page, "carol")
            after, todo = done.after, todo + done.containers
    return copied


async def a_tree(store: AnyStore, parent: int) -> int:
    """A container with files, an inline one among them, a link and a container."""
    top = await store.create(parent, b"top", NewNode(CONTAINER, properties={"urn:p": "1"}))
    for index in range(5):
        file = await store.create(top.id, b"f%d" % index, NewNode(DATA, mode=0o600 + index))
        await store.commit(file.id, None, 3, [Extent(0, 3, f"blob{index}", 0)], [Blob(f"blob{index}", 3, 0)])
    inner = await store.create(top.id, b"inner", NewNode(CONTAINER))
    await store.create(inner.id, b"link", NewNode(LINK, target=b"../f0"))
    small = await store.create(inner.id, b"small", NewNode(DATA))
    await store.commit(small.id, None, 2, [Extent(0, 2, data=b"ab")], [])
    return top.id


async def test_a_copied_tree_is_another_one(store: AnyStore) -> None:
    top = await a_tree(store, ROOT_ID)
    staged = await copy_all(store, top, b"job")
    assert [name for name, _ in await listing(store, ROOT_ID)] == [b"top"], "nobody sees it yet"
    await store.rename(STAGING_ID, b"job", ROOT_ID, b"copy", "keep")
    seen = await dump(store)
    for path, values in list(seen.items()):
        if path[:1] == (b"top",):
            other = seen[(b"copy", *path[1:])]
            assert other[1:2] + other[4:8] == values[1:2] + values[4:8], path
            assert other[-2:] == values[-2:], path
    assert (await store.get(staged.id)).owner == "carol"
    await store.remove(ROOT_ID, b"top", "tree")
    while await store.purge(10):
        pass
    assert await store.unreferenced(later(), 100) == [], "the copy stands on the same blobs"
    await store.remove(ROOT_ID, b"copy", "tree")
    while await store.purge(10):
        pass
    assert sorted(await store.unreferenced(later(), 100)) == [f"blob{index}" for index in range(5)]


async def test_what_may_not_be_read_is_not_copied(store: AnyStore) -> None:
    top = await a_tree(store, ROOT_ID)

    def permit(node: Node, right: str) -> None:
        if node.mode == 0o602:
            raise PermissionDenied("no")

    copied = await store.copy_node(top, b"job", "carol")
    with pytest.raises(PermissionDenied):
        await store.copy_children(top, copied.id, b"", 100, "carol", Anyone("", permit))
    assert await listing(store, copied.id) == [], "one transaction: all or none"
    await store.drop_staged(b"job")
    await store.drop_staged(b"job")
    assert await listing(store, STAGING_ID) == []


async def test_a_grafted_tree_merges_or_nothing_happens(store: AnyStore) -> None:
    old = await store.create(ROOT_ID, b"old", NewNode(CONTAINER))
    into = await a_tree(store, old.id)
    new = await store.create(STAGING_ID, b"new", NewNode(CONTAINER))
    from_ = await a_tree(store, new.id)
    fresh = await store.create(from_, b"fresh", NewNode(DATA))
    changed = await store.lookup(from_, b"f1")
    await store.commit(changed.id, None, 4, [Extent(0, 4, data=b"new!")], [])
    kept = (await store.lookup(into, b"f1")).id
    clash = await store.lookup((await store.lookup(from_, b"inner")).id, b"link")
    before = await dump(store)
    with pytest.raises(DuplicateNode):
        await store.graft(new.id, old.id)
    assert await dump(store) == before
    await store.remove((await store.lookup(from_, b"inner")).id, b"link", "leaf")
    await store.graft(new.id, old.id)
    assert clash.kind == LINK
    assert (await store.lookup(into, b"fresh")).id == fresh.id
    assert (await store.lookup(into, b"f1")).id == kept
    assert (await store.open(kept)).extents == [Extent(0, 4, data=b"new!")]
    await store.drop_staged(b"new")
