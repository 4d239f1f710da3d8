"""Several changes at once (``Store.apply``): all together if all can be done, else each that can."""

import time

import pytest

from tests.store.conftest import AnyStore
from vosfs.errors import DuplicateNode, InvalidArgument, NodeNotFound, Stale
from vosfs.metadata.node import CONTAINER, DATA, ROOT_ID, Attributes, Content, Extent, NewNode, Node, Renamed, new_id
from vosfs.metadata.store import Anyone, Step, prepared_version

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
