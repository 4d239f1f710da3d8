"""What a mount remembers of a tree has its limits."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from vosfs.errors import NodeNotFound, TimedOut
from vosfs.metadata import cached
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import CONTAINER, DATA, ROOT_ID, Attributes, Change, Content, Extent, NewNode, Node


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


# -- answers that come late ---------------------------------------------------------------------------------------------


class Late:
    """A store whose answers to listings and openings ahead come when they are let go; they are of when they were asked for."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.go = trio.Event()
        self.error: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def children(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Node]]:
        found = await self._store.children(parent, after, limit)
        await self.go.wait()
        return found

    async def open_many(self, ids: list[int]) -> list[Content]:
        found = [await self._store.open(id) for id in ids]
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return found


NAMES = (b"a", b"b", b"c", b"d")


class Rig:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.store = MemoryStore()
        self.late = Late(self.store)
        self.tree = CachedTree(self.late)  # type: ignore[arg-type]
        self.tree.live = True
        self.ids: dict[bytes, int] = {}

    async def fill(self) -> None:
        for name in NAMES:
            node = await self.tree.create(ROOT_ID, name, NewNode(DATA, 0o644))
            await self.save(node.id, b"old")
            self.ids[name] = node.id
        self.tree.forget_all()
        for name in NAMES:
            await self.tree.lookup(ROOT_ID, name)
            # Look-ups bring contents along.
            self.tree._drop_content(self.ids[name])

    async def save(self, id: int, data: bytes) -> None:
        version = (await self.store.get(id)).version
        await self.tree.commit(id, version, len(data), [Extent(0, len(data), "", 0, data)], [], None, False)

    async def ahead(self, *names: bytes) -> None:
        """Begin to open files ahead."""
        wanted = self.tree.will_open([self.ids[name] for name in names])
        self.nursery.start_soon(self.tree.open_ahead, wanted)
        await trio.testing.wait_all_tasks_blocked()

    async def let_go(self) -> None:
        self.late.go.set()
        await trio.testing.wait_all_tasks_blocked()


@pytest.fixture
async def rig(nursery: trio.Nursery) -> AsyncIterator[Rig]:
    made = Rig(nursery)
    await made.fill()
    yield made


async def _unlink(rig: Rig) -> None:
    await rig.tree.remove(ROOT_ID, b"b", "leaf")


async def _rename(rig: Rig) -> None:
    await rig.tree.rename(ROOT_ID, b"b", ROOT_ID, b"e", "")


@pytest.mark.parametrize("change", [_unlink, _rename])
async def test_a_late_listing_brings_no_name_back(rig: Rig, change: Callable[[Rig], Awaitable[None]]) -> None:
    rig.nursery.start_soon(rig.tree.children, ROOT_ID, b"", 1000)
    await trio.testing.wait_all_tasks_blocked()
    await change(rig)
    await rig.let_go()
    with pytest.raises(NodeNotFound):
        await rig.tree.lookup(ROOT_ID, b"b")
    assert rig.tree.names_kept(ROOT_ID)[b"b"] == 0


async def test_a_late_listing_does_not_put_a_replaced_file_back(rig: Rig) -> None:
    rig.nursery.start_soon(rig.tree.children, ROOT_ID, b"", 1000)
    await trio.testing.wait_all_tasks_blocked()
    await rig.tree.rename(ROOT_ID, b"a", ROOT_ID, b"b", "")
    await rig.let_go()
    assert (await rig.tree.lookup(ROOT_ID, b"b")).id == rig.ids[b"a"]


@pytest.mark.parametrize("by", ["listing", "opening"])
async def test_a_late_answer_does_not_undo_a_change_here(rig: Rig, by: str) -> None:
    if by == "listing":
        rig.nursery.start_soon(rig.tree.children, ROOT_ID, b"", 1000)
    await rig.ahead(b"b", b"c")
    id = rig.ids[b"b"]
    await rig.tree.set_attributes(id, Attributes(mode=0o600))
    await rig.save(rig.ids[b"c"], b"newer")
    await rig.let_go()
    node = rig.tree.peek(id)
    assert node is None or node.mode == 0o600
    assert (await rig.tree.get(id)).mode == 0o600
    assert (await rig.tree.open(rig.ids[b"c"])).extents[0].data == b"newer"
    assert (await rig.tree.get(rig.ids[b"c"])).length == 5


async def test_what_changed_elsewhere_meanwhile_is_asked_for_again_and_nothing_else(rig: Rig) -> None:
    await rig.ahead(b"a", b"b", b"c")
    rig.tree.invalidate(Change(rig.ids[b"b"], 0, b"", ""))
    await rig.let_go()
    assert rig.tree._contents.keys() == {rig.ids[b"a"], rig.ids[b"c"]}


async def test_an_id_that_is_wanted_twice_is_opened_once(rig: Rig) -> None:
    await rig.ahead(b"a", b"b", b"a", b"b")
    await rig.let_go()
    assert (await rig.tree.open(rig.ids[b"a"])).extents[0].data == b"old" and not rig.tree._opening


async def test_who_waited_for_the_deadline_does_not_wait_for_another(rig: Rig) -> None:
    rig.late.error = TimedOut("silence")
    told: list[str] = []

    async def ahead() -> None:
        try:
            await rig.tree.open_ahead(rig.tree.will_open([rig.ids[b"a"]]))
        except TimedOut as exc:
            told.append(str(exc))

    async def opener() -> None:
        try:
            await rig.tree.open(rig.ids[b"a"])
        except TimedOut as exc:
            told.append(str(exc))

    rig.nursery.start_soon(ahead)
    await trio.testing.wait_all_tasks_blocked()
    rig.nursery.start_soon(opener)
    await trio.testing.wait_all_tasks_blocked()
    await rig.let_go()
    assert told == ["silence", "silence"]
    rig.late.error = None
    assert (await rig.tree.open(rig.ids[b"a"])).extents[0].data == b"old"


async def test_contents_are_kept_up_to_a_limit_and_not_for_long(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "CONTENTS_BYTES_MAX", 2 * (cached.EXTENT_BYTES + 3))
    await rig.ahead(*NAMES)
    await rig.let_go()
    assert len(rig.tree._contents) == 2
    assert rig.tree._contents_bytes == sum(size for _, size, _ in rig.tree._contents.values())
    rig.tree.forget_all()
    assert rig.tree._contents_bytes == 0
    monkeypatch.setattr(cached, "CONTENT_S", 0.0)
    await rig.ahead(b"a")
    await rig.let_go()
    assert rig.tree._drop_content(rig.ids[b"a"]) is None
