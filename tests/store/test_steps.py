"""Several changes at once (``Store.apply``): all together if all can be done, else each that can."""

import itertools
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.store.conftest import AnyStore
from tests.store.test_model import LENGTH_MAX, NAMES, extents
from vosfs.errors import DuplicateNode, InvalidArgument, NodeNotFound, QuotaExceeded, Stale, VOSpaceError
from vosfs.metadata import sqlsteps
from vosfs.metadata.node import (
    CONTAINER,
    DATA,
    ROOT_ID,
    Attributes,
    Blob,
    Content,
    Extent,
    NewNode,
    Node,
    Renamed,
    new_id,
)
from vosfs.metadata.sqlite import SqliteStore
from vosfs.metadata.store import ANYONE, Anyone, Step, prepared_version

BOX, FILE = NewNode(CONTAINER, 0o755), NewNode(DATA)
AT_NS = 1_700_000_000_000_000_005


async def names(store: AnyStore, parent: int) -> list[bytes]:
    return [name for name, _ in await store.children(parent, b"", 100)]


async def test_steps_see_each_other_and_happen_when_they_say(store: AnyStore) -> None:
    box, file = new_id(), new_id()
    outcomes = await store.apply(
        [
            Step("create", (ROOT_ID, b"box", BOX), AT_NS, box),
            Step("create", (box, b"f", FILE), AT_NS + 1, file),
            Step("commit", (file, 1, 3, [Extent(0, 3, data=b"abc")], [], AT_NS + 2, ""), AT_NS + 2),
            Step("set_attributes", (file, Attributes(mode=0o600)), AT_NS + 3),
            Step("link", (file, box, b"g"), AT_NS + 4),
            Step("rename", (box, b"f", ROOT_ID, b"h", ""), AT_NS + 5, file),
            Step("remove", (box, b"g", "leaf"), AT_NS + 6, file),
        ],
        durable=True,
    )
    kinds = [Node, Node, Content, Node, Node, Renamed, Node]
    assert [type(outcome) for outcome in outcomes] == kinds
    assert await names(store, ROOT_ID) == [b"box", b"h"] and await names(store, box) == []
    found = await store.open(file)
    assert found.extents == [Extent(0, 3, data=b"abc")]
    node = found.node
    assert (node.btime_ns, node.mtime_ns, node.ctime_ns) == (AT_NS + 1, AT_NS + 2, AT_NS + 6)
    assert (node.version, node.mode, node.nlink) == (2, 0o600, 1)
    assert (await store.get(box)).mtime_ns == AT_NS + 6 and (await store.get(ROOT_ID)).mtime_ns == AT_NS + 5


async def test_what_cannot_be_done_keeps_nothing_else_from_it(store: AnyStore) -> None:
    taken = await store.create(ROOT_ID, b"taken", FILE)
    first, second, gone = new_id(), new_id(), new_id()
    outcomes = await store.apply(
        [
            Step("create", (ROOT_ID, b"first", FILE), AT_NS, first),
            Step("create", (ROOT_ID, b"taken", FILE), AT_NS, gone),
            Step("commit", (gone, 1, 0, [], [], AT_NS, ""), AT_NS),
            Step("remove", (ROOT_ID, b"taken", "leaf"), AT_NS, first),
            Step("rename", (ROOT_ID, b"taken", ROOT_ID, b"elsewhere", ""), AT_NS, second),
            Step("create", (ROOT_ID, b"second", FILE), AT_NS, second),
        ]
    )
    classes = [Node, DuplicateNode, NodeNotFound, Stale, Stale, Node]
    assert [type(outcome) for outcome in outcomes] == classes
    assert await names(store, ROOT_ID) == [b"first", b"second", b"taken"]
    assert (await store.lookup(ROOT_ID, b"taken")).id == taken.id


async def test_every_step_is_in_the_change_log_under_its_origin(store: AnyStore) -> None:
    at = await store.cursor()
    node = new_id()
    await store.apply(
        [
            Step("create", (ROOT_ID, b"f", FILE), AT_NS, node),
            Step("set_attributes", (node, Attributes(mode=0o640)), AT_NS),
        ],
        Anyone("me"),
    )
    _, changes = await store.changes(at)
    assert await store.happened({(node, AT_NS), (node, AT_NS + 1), (node + 1, AT_NS)}) == {(node, AT_NS)}
    assert await store.happened(set()) == set()
    assert [(c.node, c.parent, c.name, c.origin) for c in changes] == [
        (node, ROOT_ID, b"f", "me"),
        (node, 0, b"", "me"),
    ]


@pytest.mark.parametrize("call", ["remove", "rename"])
async def test_a_name_must_be_the_node_that_it_is_said_to_be(store: AnyStore, call: str) -> None:
    node = await store.create(ROOT_ID, b"f", FILE)
    arguments = (ROOT_ID, b"f", "leaf") if call == "remove" else (ROOT_ID, b"f", ROOT_ID, b"g", "")
    with pytest.raises(Stale):
        await getattr(store, call)(*arguments, id=node.id + 1)
    await getattr(store, call)(*arguments, id=node.id)
    with pytest.raises(NodeNotFound):
        await store.lookup(ROOT_ID, b"f")


async def test_a_save_that_was_prepared_on_a_refused_one_does_not_fit_what_came_instead(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"f", NewNode(DATA))
    now_ns = time.time_ns()
    first, second = (
        prepared_version(node.version, now_ns),
        prepared_version(prepared_version(node.version, now_ns), now_ns + 5),
    )
    theirs = await store.commit(node.id, None, 6, [Extent(0, 6, data=b"theirs")], [])
    steps = [
        Step("commit", (node.id, node.version, 1, [Extent(0, 1, data=b"1")], [], None, "", None), now_ns, 0, first),
        Step("commit", (node.id, first, 1, [Extent(0, 1, data=b"2")], [], None, "", None), now_ns + 5, 0, second),
    ]
    assert [type(outcome) for outcome in await store.apply(steps)] == [Stale, Stale]
    assert await store.open(node.id) == theirs


async def test_saves_that_follow_one_another_have_the_versions_they_were_promised(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"f", NewNode(DATA))
    now_ns = time.time_ns()
    first = prepared_version(node.version, now_ns)
    second = prepared_version(first, now_ns - 10**12)
    assert second == first + 1
    steps = [
        Step("commit", (node.id, node.version, 1, [Extent(0, 1, data=b"1")], [], None, "", None), now_ns, 0, first),
        Step("commit", (node.id, first, 1, [Extent(0, 1, data=b"2")], [], None, "", None), now_ns, 0, second),
        Step("commit", (node.id, second, 1, [Extent(0, 1, data=b"3")], [], None, "", None), now_ns, 0, second),
    ]
    one, two, three = await store.apply(steps)
    assert isinstance(one, Content) and one.node.version == first
    assert isinstance(two, Content) and two.node.version == second
    assert isinstance(three, InvalidArgument)


async def test_a_node_is_made_once(store: AnyStore) -> None:
    twice = new_id()
    steps = [Step("create", (ROOT_ID, name, FILE), AT_NS, twice) for name in (b"f", b"g")]
    assert [type(outcome) for outcome in await store.apply(steps)] == [Node, DuplicateNode]
    assert await names(store, ROOT_ID) == [b"f"]


async def test_a_blob_that_one_new_file_lost_stays_for_another(store: AnyStore) -> None:
    one, two, blob = new_id(), new_id(), Blob("blob", 3, 7)
    whole = [Extent(0, 3, "blob")]
    await store.apply(
        [
            Step("create", (ROOT_ID, b"one", FILE), AT_NS, one),
            Step("create", (ROOT_ID, b"two", FILE), AT_NS, two),
            Step("commit", (one, 1, 3, whole, [blob], AT_NS, ""), AT_NS),
            Step("commit", (two, 1, 3, whole, [blob], AT_NS, ""), AT_NS),
            Step("commit", (two, 2, 0, [], [], AT_NS, ""), AT_NS),
        ]
    )
    assert (await store.open(one)).extents == whole and (await store.open(two)).extents == []
    assert await store.unreferenced(time.time_ns() + 10**9, 10) == []
    await store.apply([Step("commit", (one, 2, 0, [], [], AT_NS, ""), AT_NS)])
    assert await store.unreferenced(time.time_ns() + 10**9, 10) == ["blob"]


async def test_new_files_that_are_too_long_for_a_quota_are_those_that_are_refused(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    await store.set_quota(box.id, 5)
    one, two, three = new_id(), new_id(), new_id()
    outcomes = await store.apply(
        [
            Step("create", (box.id, b"one", FILE), AT_NS, one),
            Step("commit", (one, 1, 3, [Extent(0, 3, data=b"abc")], [], AT_NS, ""), AT_NS),
            Step("create", (box.id, b"two", FILE), AT_NS, two),
            Step("commit", (two, 1, 3, [Extent(0, 3, data=b"abc")], [], AT_NS, ""), AT_NS),
            Step("create", (box.id, b"three", FILE), AT_NS, three),
            Step("commit", (three, 1, 2, [Extent(0, 2, data=b"ab")], [], AT_NS, ""), AT_NS),
        ]
    )
    assert [type(outcome) for outcome in outcomes] == [Node, Content, Node, QuotaExceeded, Node, Content]
    assert [quota.used for quota in await store.quotas(box.id)] == [5]


@st.composite
def some_steps(draw: st.DrawFn) -> list[Step]:
    """Changes of a small tree, more of them of what the same changes make than of anything else."""
    steps: list[Step] = []
    ids = [ROOT_ID, *TREE]
    places = [(ROOT_ID, b"a"), (TREE[0], b"b")]
    moment = itertools.count(AT_NS)
    for number in range(draw(st.integers(1, 14))):
        operation = draw(
            st.sampled_from(
                ["create"] * 3 + ["commit", "commit", "set_attributes", "remove", "rename", "rename", "link"]
            )
        )
        at_ns, node, place = next(moment), draw(st.sampled_from(ids[-3:] + ids[:1])), draw(st.sampled_from(places))
        arguments: tuple[Any, ...]
        if operation == "create":
            kind = draw(st.sampled_from([CONTAINER, DATA, DATA]))
            new = NewNode(kind, 0o755, properties=draw(st.dictionaries(st.just("urn:p"), st.just("v"))))
            ids.append(100 + number)
            places.append((node, draw(NAMES)))
            steps.append(Step(operation, (*places[-1], new), at_ns, 100 + number))
            continue
        if operation == "commit":
            length, changes = draw(st.integers(0, LENGTH_MAX)), draw(st.lists(extents(), max_size=2))
            blobs = [Blob(locator, 100, 1) for locator in sorted({e.locator for e in changes if e.locator})]
            arguments = (node, None, length, changes, blobs, at_ns, "m", draw(st.none() | st.just(5)))
        elif operation == "set_attributes":
            change = Attributes(mode=draw(st.none() | st.just(0o700)), mtime_ns=draw(st.none() | st.just(9)),
                                immutable=draw(st.sampled_from([None] * 5 + [1])))  # fmt: skip
            arguments = (node, change)
        elif operation == "remove":
            arguments = (*place, draw(st.sampled_from(["leaf", "leaf", "empty"])))
        elif operation == "rename":
            places.append((draw(st.sampled_from(ids)), draw(NAMES)))
            arguments = (*place, *places[-1], draw(st.sampled_from(["", "", "exchange"])))
        else:
            arguments = (node, ROOT_ID, draw(NAMES))
        steps.append(Step(operation, arguments, at_ns))
    return steps


TREE = (3, 4)
"""A container with a quota, and a file in it."""
TABLES = ("node", "name", "property", "extent", "part", "quota")


async def planted() -> SqliteStore:
    store = SqliteStore(":memory:")
    await store.begin_space("alice")
    store._db.execute("UPDATE node SET atime_ns = 0, mtime_ns = 0, ctime_ns = 0, btime_ns = 0")
    box, file = TREE
    await store.apply([Step("create", (ROOT_ID, b"a", BOX), 1, box), Step("create", (box, b"b", FILE), 2, file)])
    await store.set_quota(box, 3 * LENGTH_MAX)
    store._db.execute("UPDATE change SET at_ns = 0")
    return store


def rows(store: SqliteStore) -> dict[str, list[Any]]:
    """All that a store has, but for the moments at which blobs lost their last extent."""
    found = {table: store._db.execute(f"SELECT * FROM {table} ORDER BY 1, 2, 3").fetchall() for table in TABLES}
    found["blob"] = store._db.execute("SELECT locator, unreferenced_ns IS NULL FROM blob ORDER BY 1").fetchall()
    found["change"] = store._db.execute("SELECT node, parent, name, at_ns FROM change ORDER BY seq").fetchall()
    return found


@given(some_steps(), st.integers(1, 6))
@settings(max_examples=300, deadline=None)
async def test_steps_made_together_leave_what_they_leave_one_by_one(steps: list[Step], together: int) -> None:
    one, all_ = await planted(), await planted()
    try:
        can_be_made = []
        outcomes = []
        for step in steps:
            (outcome,) = await one.apply([step])
            if not isinstance(outcome, VOSpaceError):
                can_be_made.append(step)
                outcomes.append(outcome)
        found = []
        for at in range(0, len(can_be_made), together):
            # Not by ``apply``, which would go on one by one if all at once is refused.
            found += all_.transact(sqlsteps.apply, ANYONE, can_be_made[at : at + together])
        assert found == outcomes
        # Steps that failed wrote nothing, but may have had a place in the order of the log.
        assert rows(all_) == rows(one)
    finally:
        one.close()
        all_.close()
