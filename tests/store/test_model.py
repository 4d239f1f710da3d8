"""Any run of operations gives the same results, errors and tree in every store: memory is the model."""

import time
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.conftest import SPACES, AnyStore
from tests.store.tree import dump
from vosfs.errors import VOSpaceError
from vosfs.metadata import content
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import (
    CONTAINER,
    DATA,
    LINK,
    ROOT_ID,
    Attributes,
    Blob,
    Content,
    Cursor,
    Extent,
    NewNode,
    Node,
    Renamed,
)
from vosfs.metadata.postgres import PostgresStore
from vosfs.metadata.sqlite import SqliteStore

LENGTH_MAX = 60
NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff"])
NODES = st.integers(0, 6)
"""Which of the nodes made so far; 0 is the root."""
URIS = st.sampled_from(["urn:p", "urn:q"])
BLOBS = [Blob(f"blob{number}", 100, number) for number in range(3)]
OPERATIONS_MAX = 25


@st.composite
def extents(draw: st.DrawFn) -> Extent:
    """A change as a mount could send it."""
    start = draw(st.integers(0, LENGTH_MAX - 1))
    stop = draw(st.integers(start + 1, LENGTH_MAX))
    kind = draw(st.sampled_from(["hole", "data", "blob"]))
    if kind == "data":
        return Extent(start, stop, data=bytes([draw(st.integers(65, 90))]) * (stop - start))
    if kind == "blob":
        return Extent(start, stop, draw(st.sampled_from(BLOBS)).locator, draw(st.integers(0, 30)))
    return Extent(start, stop)


CREATE = st.tuples(
    st.just("create"), NODES, NAMES,
    st.builds(
        NewNode, st.sampled_from([CONTAINER, CONTAINER, DATA, DATA, LINK]), st.just(0o644),
        immutable=st.sampled_from([0] * 9 + [1]), properties=st.dictionaries(URIS, st.text("x<\n", max_size=2)),
        mtime_ns=st.just(7),
    ),
)  # fmt: skip
OPERATION = st.one_of(
    CREATE,
    CREATE,
    st.tuples(st.just("link"), NODES, NODES, NAMES),
    st.tuples(st.just("remove"), NODES, NAMES, st.sampled_from(["leaf", "empty", "tree"])),
    st.tuples(st.just("rename"), NODES, NAMES, NODES, NAMES, st.sampled_from(["", "", "keep", "exchange"])),
    st.tuples(
        st.just("commit"), NODES, st.none() | st.integers(-1, 0), st.integers(0, LENGTH_MAX),
        st.lists(extents(), max_size=3), st.lists(st.sampled_from(BLOBS), max_size=3, unique_by=lambda b: b.locator),
    ),
    st.tuples(
        st.just("set_attributes"), NODES,
        st.builds(
            Attributes, mode=st.none() | st.integers(0, 0o7777), mtime_ns=st.none() | st.integers(-9, 9),
            immutable=st.sampled_from([None, 0, 0, 1]), group_read=st.none() | st.just("g"),
        ),
    ),
    st.tuples(
        st.just("set_properties"), NODES, st.dictionaries(URIS, st.none() | st.text("y", max_size=1)), st.booleans()
    ),
    st.tuples(st.just("lookup"), NODES, NAMES),
    st.tuples(st.just("children"), NODES, NAMES, st.integers(1, 3)),
    st.tuples(st.just("trace"), st.lists(NAMES, max_size=3).map(tuple)),
    st.tuples(st.just("get"), NODES),
    st.tuples(st.just("open"), NODES),
    st.tuples(st.just("unreferenced")),
    st.tuples(st.just("purge")),
)  # fmt: skip


PLANTED: list[tuple[Any, ...]] = [
    ("create", 0, b"a", NewNode(CONTAINER, mtime_ns=7)),
    ("create", 1, b"b", NewNode(CONTAINER, mtime_ns=7)),
    ("create", 2, b"c", NewNode(DATA, mtime_ns=7)),
    ("create", 0, b"b", NewNode(CONTAINER, mtime_ns=7)),
    ("create", 0, b"c", NewNode(DATA, mtime_ns=7)),
    ("commit", 5, None, 50, [Extent(0, 50, BLOBS[0].locator)], BLOBS[:1]),
]
"""What a trace starts from: with an empty tree most operations only fail."""


class Run:
    """One store, and the nodes it made."""

    def __init__(self, store: AnyStore) -> None:
        self.store = store
        self.ids = [ROOT_ID]

    def id(self, number: int) -> int:
        return self.ids[number % len(self.ids)]

    def plain(self, value: Any) -> Any:
        """A result without what differs between stores: ids and the clock."""
        if isinstance(value, Node):
            kept = {f: v for f, v in msgspec.structs.asdict(value).items() if not f.endswith("time_ns")}
            return {**kept, "id": self.ids.index(value.id)}
        if isinstance(value, Content):
            content.check(value.extents)
            return self.plain(value.node), value.extents
        if isinstance(value, Renamed):
            return self.plain(value.node), self.plain(value.gone)
        if isinstance(value, (list, tuple)):
            return [self.plain(item) for item in value]
        return value

    async def step(self, operation: tuple[Any, ...]) -> Any:
        """Do it; its result, or its error's class."""
        try:
            return self.plain(await self._call(*operation))
        except VOSpaceError as exc:
            return type(exc).__name__

    async def _call(self, name: str, *arguments: Any) -> Any:
        store = self.store
        if name == "create":
            number, child, new = arguments
            node = await store.create(self.id(number), child, new)
            self.ids.append(node.id)
            return node
        if name == "link":
            return await store.link(self.id(arguments[0]), self.id(arguments[1]), arguments[2])
        if name == "rename":
            number, child, to_number, to_child, flag = arguments
            return await store.rename(self.id(number), child, self.id(to_number), to_child, flag)
        if name == "commit":
            number, base, length, changes, blobs = arguments
            if base is not None:
                base += (await store.get(self.id(number))).version
            return await store.commit(self.id(number), base, length, changes, blobs, 11, "m")
        if name == "trace":
            return await store.trace(arguments[0])
        if name == "unreferenced":
            return sorted(await store.unreferenced(time.time_ns() + 10**9, 100))
        if name == "purge":
            while await store.purge(2):
                pass
            return None
        return await getattr(store, name)(self.id(arguments[0]), *arguments[1:])


async def compare(model: Run, other: Run, trace: list[tuple[Any, ...]]) -> None:
    """Run a trace on both."""
    for run in (model, other):
        await run.store.begin_space("alice")
    for number, operation in enumerate(PLANTED + trace):
        assert await other.step(operation) == await model.step(operation), (number, operation)
    assert await dump(other.store) == await dump(model.store)
    logs = []
    for run in (model, other):
        changes = (await run.store.changes(Cursor()))[1]
        logs.append([(run.ids.index(c.node), run.ids.index(c.parent), c.name) for c in changes if c.parent])
    if isinstance(other.store, SqliteStore):
        assert logs[0] == logs[1]


@given(st.lists(OPERATION, max_size=OPERATIONS_MAX))
@settings(max_examples=300, deadline=None)
async def test_sqlite_does_as_memory_does(trace: list[tuple[Any, ...]]) -> None:
    other = SqliteStore(":memory:")
    try:
        await compare(Run(MemoryStore()), Run(other), trace)
    finally:
        other.close()


@given(trace=st.lists(OPERATION, max_size=OPERATIONS_MAX))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_postgres_does_as_memory_does(shared_database: str, trace: list[tuple[Any, ...]]) -> None:
    other = PostgresStore(shared_database, next(SPACES))
    try:
        await compare(Run(MemoryStore()), Run(other), trace)
    finally:
        other.close()


async def test_the_comparison_can_fail() -> None:
    one, two = Run(MemoryStore()), Run(MemoryStore())
    await two.store.set_attributes(ROOT_ID, Attributes(immutable=1))
    with pytest.raises(AssertionError):
        await compare(one, two, [])
