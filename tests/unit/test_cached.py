"""What a mount remembers of a tree has its limits."""

import pytest

from vosfs.metadata import cached
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import CONTAINER, DATA, ROOT_ID, NewNode


@pytest.mark.parametrize("containers", [1, 5], ids=["one long container", "several"])
async def test_names_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch, containers: int) -> None:
    monkeypatch.setattr(cached, "NAMES_MAX", 100)
    store = MemoryStore()
    tree = CachedTree(store)
    tree.live = True
    parents = []
    for number in range(containers):
        parent = (await store.create(ROOT_ID, b"c%d" % number, NewNode(CONTAINER))).id
        parents.append(parent)
        for child in range(300 // containers):
            await store.create(parent, b"n%d" % child, NewNode(DATA))
    for parent in parents:
        await tree.children(parent, b"", 1000)
        assert sum(len(tree.names_kept(each)) for each in parents) <= 100
    for parent in parents:
        assert (await tree.lookup(parent, b"n0")).nlink == 1
