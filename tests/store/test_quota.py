"""Quotas of containers bound and count the bytes below them, whatever happens there, in every store."""

from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.conftest import SPACES, AnyStore
from tests.store.test_subtree import copy_all
from tests.store.tree import listing
from vosfs.errors import CrossDevice, NotContainer, QuotaExceeded, Stale, VOSpaceError
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import (
    CONTAINER,
    DATA,
    LINK,
    ROOT_ID,
    STAGING_ID,
    Extent,
    NewNode,
    Node,
    bytes_left,
)
from vosfs.metadata.postgres import PostgresStore
from vosfs.metadata.sqlite import SqliteStore
from vosfs.metadata.store import ANYONE, Step, Store

BOX, FILE = NewNode(CONTAINER, 0o755), NewNode(DATA)


async def save(store: Store, id: int, length: int) -> Node:
    """Give a node so many bytes."""
    return (await store.commit(id, None, length, [Extent(0, length, data=b"x" * length)] if length else [], [])).node


async def put(store: Store, parent: int, name: bytes, length: int) -> Node:
    """A new file of so many bytes."""
    return await save(store, (await store.create(parent, name, FILE)).id, length)


async def used(store: Store, id: int) -> int:
    """What a container's own quota counts."""
    quota = (await store.quotas(id))[0]
    assert quota.node == id
    return quota.used


async def boxed(store: Store, bytes_max: int, name: bytes = b"box", parent: int = ROOT_ID) -> int:
    """A container with a quota."""
    box = (await store.create(parent, name, BOX)).id
    await store.set_quota(box, bytes_max)
    return box


async def test_more_than_a_quota_allows_is_refused_and_changes_nothing(store: AnyStore) -> None:
    box = await boxed(store, 100)
    inner = (await store.create(box, b"inner", BOX)).id
    file = await put(store, inner, b"f", 60)
    with pytest.raises(QuotaExceeded):
        await save(store, file.id, 101)
    assert (await store.get(file.id)).length == 60 and await used(store, box) == 60
    with pytest.raises(QuotaExceeded):
        await store.put_data(inner, b"g", FILE, 41, [Extent(0, 41, data=b"y" * 41)], [], "")
    assert [name for name, _ in await listing(store, inner)] == [b"f"]
    await store.put_data(inner, b"g", FILE, 40, [Extent(0, 40, data=b"y" * 40)], [], "")
    assert await used(store, box) == 100
    # As long as it was, or shorter, is no more.
    await save(store, file.id, 60)
    await save(store, file.id, 10)
    assert bytes_left(await store.quotas(inner)) == 50
    await put(store, ROOT_ID, b"outside", 1000)
    assert await used(store, box) == 50 and await store.quotas(ROOT_ID) == []


async def test_a_quota_counts_what_is_there_when_it_is_set(store: AnyStore) -> None:
    box = (await store.create(ROOT_ID, b"box", BOX)).id
    inner = (await store.create(box, b"inner", BOX)).id
    file = await put(store, inner, b"f", 60)
    await store.link(file.id, box, b"g")
    await store.create(inner, b"l", NewNode(LINK, target=b"../../elsewhere"))
    with pytest.raises(NotContainer):
        await store.set_quota(file.id, 10)
    await store.set_quota(box, 10)
    assert await used(store, box) == 60, "a node with two names counts once, a link does not"
    with pytest.raises(QuotaExceeded):
        await put(store, inner, b"more", 1)
    await store.set_quota(box, 1000)
    await save(store, file.id, 600)
    await store.set_quota(box, -1)
    await save(store, file.id, 6000)
    assert await used(store, box) == 6000 and bytes_left(await store.quotas(box)) is None
    await store.set_quota(ROOT_ID, 7000)
    assert await used(store, ROOT_ID) == 6000
    with pytest.raises(QuotaExceeded):
        await save(store, file.id, 7001)


async def test_every_quota_above_counts(store: AnyStore) -> None:
    project = await boxed(store, 100, b"project")
    alice, bob = await boxed(store, 80, b"alice", project), await boxed(store, 80, b"bob", project)
    file = await put(store, alice, b"f", 70)
    with pytest.raises(QuotaExceeded):
        await put(store, bob, b"g", 31)
    other = await put(store, bob, b"h", 30)
    assert [await used(store, id) for id in (project, alice, bob)] == [100, 70, 30]
    # Inside the project it is the same bytes.
    with pytest.raises(QuotaExceeded):
        await store.rename(alice, b"f", bob, b"f")
    await store.rename(bob, b"h", project, b"h")
    await store.rename(alice, b"f", bob, b"f")
    assert [await used(store, id) for id in (project, alice, bob)] == [100, 0, 70]
    await store.rename(project, b"bob", ROOT_ID, b"bob")
    assert await used(store, project) == 30 and await used(store, bob) == 70
    await save(store, file.id, 80)
    await save(store, other.id, 100)
    with pytest.raises(QuotaExceeded):
        await store.rename(ROOT_ID, b"bob", project, b"bob")
    await store.set_quota(project, 180)
    await store.rename(ROOT_ID, b"bob", project, b"bob")
    assert await used(store, project) == 180 and [q.node for q in await store.quotas(file.id)] == [bob, project]


async def test_what_moves_between_quotas_counts_where_it_is(store: AnyStore) -> None:
    one, two = await boxed(store, 100, b"one"), await boxed(store, 100, b"two")
    tree = (await store.create(one, b"tree", BOX)).id
    deep = (await store.create(tree, b"deep", BOX)).id
    await put(store, deep, b"f", 50)
    await put(store, tree, b"g", 20)
    await put(store, two, b"h", 40)
    with pytest.raises(QuotaExceeded):
        await store.rename(one, b"tree", two, b"tree")
    assert [await used(store, id) for id in (one, two)] == [70, 40]
    await store.rename(two, b"h", ROOT_ID, b"h")
    await store.rename(one, b"tree", two, b"tree")
    await store.rename(ROOT_ID, b"h", one, b"tree2")
    assert [await used(store, id) for id in (one, two)] == [40, 70]
    await put(store, deep, b"more", 30)
    with pytest.raises(QuotaExceeded):
        await put(store, deep, b"too much", 1)
    # One after the other: for a moment both are there.
    with pytest.raises(QuotaExceeded):
        await store.rename(two, b"tree", one, b"tree2", "exchange")
    assert [await used(store, id) for id in (one, two)] == [40, 100]
    await store.set_quota(one, 140)
    await store.rename(two, b"tree", one, b"tree2", "exchange")
    assert [await used(store, id) for id in (one, two)] == [100, 40]
    await store.rename(one, b"tree2", ROOT_ID, b"tree")
    assert [await used(store, id) for id in (one, two)] == [0, 40]
    await put(store, deep, b"freely", 1000)


async def test_names_of_one_node_are_under_one_quota(store: AnyStore) -> None:
    box = await boxed(store, 100)
    inner = (await store.create(box, b"inner", BOX)).id
    file = await put(store, inner, b"f", 50)
    await store.link(file.id, box, b"g")
    assert await used(store, box) == 50
    with pytest.raises(CrossDevice):
        await store.link(file.id, ROOT_ID, b"h")
    for parent, name in ((box, b"g"), (box, b"inner")):
        with pytest.raises(CrossDevice):
            await store.rename(parent, name, ROOT_ID, b"h")
    await store.rename(box, b"g", inner, b"g")
    await store.rename(box, b"inner", ROOT_ID, b"inner")
    assert await used(store, box) == 0
    assert (await store.get(file.id)).quota == 0
    await store.rename(ROOT_ID, b"inner", box, b"inner")
    await store.remove(inner, b"f", "leaf")
    assert await used(store, box) == 50
    await store.remove(inner, b"g", "leaf")
    assert await used(store, box) == 0
    while await store.purge(10):
        pass
    assert await used(store, box) == 0


async def test_what_is_deleted_is_free_again(store: AnyStore) -> None:
    outer = await boxed(store, 1000, b"outer")
    tree = (await store.create(outer, b"tree", BOX)).id
    own = await boxed(store, 500, b"own", tree)
    below = (await store.create(own, b"below", BOX)).id
    await put(store, below, b"f", 100)
    await put(store, tree, b"g", 10)
    await put(store, outer, b"victim", 5)
    await put(store, outer, b"new", 7)
    await store.rename(outer, b"new", outer, b"victim")
    assert await used(store, outer) == 117
    await store.remove(tree, b"own", "tree")
    assert await used(store, outer) == 17, "a container with a quota of its own goes in one piece"
    await store.remove(outer, b"tree", "tree")
    for _ in range(20):
        await store.purge(1)
    assert await used(store, outer) == 7
    assert await store.recount() == []


async def test_copies_count_from_the_start(store: AnyStore) -> None:
    source = (await store.create(ROOT_ID, b"source", BOX)).id
    for number in range(4):
        await put(store, source, b"f%d" % number, 30)
    box = await boxed(store, 100)
    with pytest.raises(QuotaExceeded):
        await copy_all(store, source, b"job", quota=box)
    await store.drop_staged(b"job")
    while await store.purge(10):
        pass
    assert await used(store, box) == 0
    await store.remove(source, b"f0", "leaf")
    await copy_all(store, source, b"job", quota=box)
    assert await used(store, box) == 90
    await store.rename(STAGING_ID, b"job", box, b"copy", "keep")
    assert await used(store, box) == 90
    copied = await store.lookup(box, b"copy")
    with pytest.raises(QuotaExceeded):
        await put(store, copied.id, b"more", 11)
    # What was copied before there was a quota comes under it when it is put there.
    await copy_all(store, source, b"late")
    with pytest.raises(QuotaExceeded):
        await store.rename(STAGING_ID, b"late", box, b"late", "keep")
    single = await store.copy_node((await store.lookup(source, b"f1")).id, b"single", "carol", quota=ROOT_ID)
    await store.drop_staged(b"single")
    assert single.length == 30 and await used(store, box) == 90


async def test_what_is_unpacked_over_files_does_not_count_twice(store: AnyStore) -> None:
    box = await boxed(store, 109)
    old = await put(store, box, b"f", 40)
    staged = await store.create(STAGING_ID, b"upload", NewNode(CONTAINER, quota=box))
    new = await put(store, staged.id, b"f", 50)
    await store.link(new.id, staged.id, b"same")
    assert await used(store, box) == 90
    inner = await store.create(staged.id, b"inner", BOX)
    await put(store, inner.id, b"g", 10)
    with pytest.raises(QuotaExceeded):
        await store.graft(staged.id, box)
    assert await used(store, box) == 100 and (await store.get(old.id)).length == 40
    await store.set_quota(box, 110)
    await store.graft(staged.id, box)
    await store.drop_staged(b"upload")
    while await store.purge(10):
        pass
    assert (await store.get(old.id)).length == 50
    assert await used(store, box) == 110
    assert await store.recount() == []


async def test_steps_that_a_quota_refuses_leave_the_others(store: AnyStore) -> None:
    box = await boxed(store, 100)
    first, second = await store.create(box, b"a", FILE), await store.create(box, b"b", FILE)
    steps = [
        Step("commit", (node.id, node.version, 70, [Extent(0, 70, data=b"z" * 70)], [], None, "", None), 1)
        for node in (first, second)
    ]
    outcomes = await store.apply([*steps, Step("remove", (box, b"a", "leaf"), 2)])
    assert isinstance(outcomes[1], QuotaExceeded)
    assert not isinstance(outcomes[0], VOSpaceError) and not isinstance(outcomes[2], VOSpaceError)
    assert await used(store, box) == 0


async def test_a_count_that_went_wrong_is_put_right(sql_store: SqliteStore | PostgresStore) -> None:
    store = sql_store
    outer = await boxed(store, 1000, b"outer")
    inner = await boxed(store, 1000, b"inner", outer)
    sub = (await store.create(inner, b"sub", BOX)).id
    file = await put(store, sub, b"f", 100)
    assert await store.recount() == []

    def spoil(f: Any) -> Any:
        yield "UPDATE quota SET used = used + 7 WHERE space = ? AND node = ?", (f.space, outer)
        yield "UPDATE node SET quota = 0 WHERE space = ? AND id IN (?, ?)", (f.space, sub, file.id)
        yield "UPDATE quota SET above = 0 WHERE space = ? AND node = ?", (f.space, inner)

    await store._run(spoil, ANYONE, False)
    assert await store.recount() == [(outer, 107, 100)]
    assert await store.recount() == []
    await save(store, file.id, 200)
    assert [await used(store, id) for id in (outer, inner)] == [200, 200]


# -- any run of operations ------------------------------------------------------------------------------------------

NAMES = st.sampled_from([b"a", b"b", b"c"])
NODES = st.integers(0, 7)
OPERATION = st.one_of(
    st.tuples(st.just("create"), NODES, NAMES, st.sampled_from([BOX, FILE, FILE])),
    st.tuples(st.just("save"), NODES, st.integers(0, 60)),
    st.tuples(st.just("save"), NODES, st.integers(0, 60)),
    st.tuples(st.just("link"), NODES, NODES, NAMES),
    st.tuples(st.just("remove"), NODES, NAMES, st.sampled_from(["leaf", "tree"])),
    st.tuples(st.just("rename"), NODES, NAMES, NODES, NAMES, st.sampled_from(["", "", "keep", "exchange"])),
    st.tuples(st.just("set_quota"), NODES, st.integers(-1, 100)),
    st.tuples(st.just("copy"), NODES, NODES, NAMES),
    st.tuples(st.just("purge")),
)
PLANTED: list[tuple[Any, ...]] = [
    ("create", 0, b"a", BOX),
    ("create", 1, b"b", BOX),
    ("create", 2, b"c", FILE),
    ("create", 0, b"b", BOX),
    ("save", 3, 30),
    ("set_quota", 1, 60),
    ("set_quota", 4, 80),
]


class Run:
    """One store, and the nodes it made, by number."""

    def __init__(self, store: AnyStore) -> None:
        self.store = store
        self.ids = [ROOT_ID]

    def id(self, number: int) -> int:
        return self.ids[number % len(self.ids)]

    async def step(self, operation: tuple[Any, ...]) -> str:
        """Do it; empty, or its error's class."""
        try:
            await self._do(*operation)
        except VOSpaceError as exc:
            return type(exc).__name__
        return ""

    async def _do(self, name: str, *arguments: Any) -> None:
        store = self.store
        if name == "create":
            self.ids.append((await store.create(self.id(arguments[0]), arguments[1], arguments[2])).id)
        elif name == "save":
            await save(store, self.id(arguments[0]), arguments[1])
        elif name == "link":
            await store.link(self.id(arguments[0]), self.id(arguments[1]), arguments[2])
        elif name == "rename":
            parent, child, to_parent, to_child, flag = arguments
            await store.rename(self.id(parent), child, self.id(to_parent), to_child, flag)
        elif name == "copy":
            target = await store.get(self.id(arguments[1]))
            try:
                await copy_all(store, self.id(arguments[0]), b"job", quota=target.quota)
                await store.rename(STAGING_ID, b"job", target.id, arguments[2], "keep")
            finally:
                await store.drop_staged(b"job")
        elif name == "purge":
            while await store.purge(2):
                pass
        else:
            await getattr(store, name)(self.id(arguments[0]), *arguments[1:])

    async def counted(self) -> dict[int, int]:
        """What each quota that can be reached counts, by the number of its node."""
        found = {}
        for number, id in enumerate(self.ids):
            try:
                quotas = await self.store.quotas(id)
            except VOSpaceError:
                continue
            if quotas and quotas[0].node == id and (await self.store.get(id)).nlink:
                found[number] = quotas[0].used
        return found

    async def summed(self) -> dict[int, int]:
        """The same as a plain sum over the trees below them."""
        found = {}
        for number in await self.counted():
            below: dict[int, int] = {}
            todo = [self.ids[number]]
            while todo:
                for _, node in await listing(self.store, todo.pop()):
                    if node.kind == CONTAINER:
                        todo.append(node.id)
                    else:
                        below[node.id] = node.length
            found[number] = sum(below.values())
        return found


async def check(run: Run, trace: list[tuple[Any, ...]], model: Run | None = None) -> None:
    for each in filter(None, (run, model)):
        await each.store.begin_space("alice")
    for number, operation in enumerate(PLANTED + trace):
        outcome = await run.step(operation)
        if model is not None:
            assert outcome == await model.step(operation), (number, operation)
    await run.step(("purge",))
    # A node whose other name is outside is counted where the quota that was set met it.
    if not await outside_names(run):
        assert await run.counted() == await run.summed()
    if model is not None:
        await model.step(("purge",))
        assert await run.counted() == await model.counted()
    assert await run.store.recount() == []


async def outside_names(run: Run) -> bool:
    """Whether a node has, or was left, a name under another quota than its own, as only setting one makes it."""
    todo = [await run.store.get(ROOT_ID)]
    while todo:
        container = todo.pop()
        for _, node in await listing(run.store, container.id):
            if node.quota not in (container.quota, node.id):
                return True
            if node.kind == CONTAINER:
                todo.append(node)
    return False


@given(st.lists(OPERATION, max_size=30))
@settings(max_examples=300, deadline=None)
async def test_sqlite_counts_what_a_sum_counts(trace: list[tuple[Any, ...]]) -> None:
    other = SqliteStore(":memory:")
    try:
        await check(Run(other), trace, Run(MemoryStore()))
    finally:
        other.close()


@given(trace=st.lists(OPERATION, max_size=30))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_postgres_counts_what_a_sum_counts(shared_database: str, trace: list[tuple[Any, ...]]) -> None:
    other = PostgresStore(shared_database, next(SPACES))
    try:
        await check(Run(other), trace, Run(MemoryStore()))
    finally:
        other.close()


# -- many at once -----------------------------------------------------------------------------------------------------


async def test_writers_at_once_neither_exceed_a_quota_nor_lose_count(opener: Callable[[], AnyStore]) -> None:
    """Two processes' worth of connections write, delete and move trees across quotas."""
    stores = [opener()]
    await stores[0].begin_space("alice")
    if stores[0].shared:
        assert isinstance(stores[0], PostgresStore)
        stores.append(PostgresStore(stores[0]._dsn, stores[0].space))
    store = stores[0]
    outer = await boxed(store, 1000, b"outer")
    one, two = await boxed(store, 600, b"one", outer), (await store.create(outer, b"two", BOX)).id
    free = (await store.create(ROOT_ID, b"free", BOX)).id
    tree = (await store.create(one, b"tree", BOX)).id
    homes = (one, two, free)
    refused = 0

    async def writer(number: int) -> None:
        nonlocal refused
        mine = stores[number % len(stores)]
        for turn in range(8):
            name = b"%d-%d" % (number, turn)
            try:
                parent = tree if turn % 2 else one
                node = await mine.create(parent, name, FILE)
                await save(mine, node.id, 40)
                await save(mine, node.id, 30 + number)
                if turn % 3 == 0:
                    await mine.remove(parent, name, "leaf")
                await trio.lowlevel.checkpoint()
            except (QuotaExceeded, Stale):
                refused += 1

    async def mover() -> None:
        for turn in range(6):
            source, target = homes[turn % 3], homes[(turn + 1) % 3]
            try:
                await stores[-1].rename(source, b"tree", target, b"tree")
            except QuotaExceeded:
                return

    try:
        async with trio.open_nursery() as nursery:
            for number in range(6):
                nursery.start_soon(writer, number)
            nursery.start_soon(mover)
            # In the middle of all that two more come, with trees below.
            nursery.start_soon(stores[-1].set_quota, tree, 400)
            nursery.start_soon(stores[0].set_quota, ROOT_ID, 2000)
        run = Run(store)
        run.ids = [ROOT_ID, outer, one, tree]
        assert await run.counted() == await run.summed()
        assert await store.recount() == []
        assert await used(store, outer) <= 1000 and await used(store, one) <= 600
    finally:
        for each in stores:
            each.close()
