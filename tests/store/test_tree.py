"""Every store keeps the Tree port's contract: names, attributes and bytes."""

import time

import pytest
import trio

from tests.store.conftest import AnyStore
from tests.store.tree import dump, listing
from vosfs.errors import (
    ContainerNotEmpty,
    DuplicateNode,
    Immutable,
    InvalidArgument,
    IsContainer,
    NodeLocked,
    NodeNotFound,
    NotContainer,
    PermissionDenied,
    Stale,
    VOSpaceError,
)
from vosfs.metadata.node import (
    CONTAINER,
    DATA,
    DEVICES,
    IMMUTABLE,
    LINK,
    LOCKED,
    ROOT_ID,
    SPECIAL,
    Attributes,
    Blob,
    Extent,
    NewNode,
    Node,
)
from vosfs.metadata.store import OWN, READ, WRITE, Anyone

MISSING = 12345
BOX, FILE = NewNode(CONTAINER, 0o755), NewNode(DATA)
ODD_NAMES = [b"\xff\xfe", b"\xc3\x28", b" ", b"\n", b"a\\b", b"'; DROP TABLE node; --", b"%s ? {update}", b"\x01" * 255]


def vetoing(right: str) -> Anyone:
    """A caller who lacks one right on everything."""

    def permit(node: Node, wanted: str) -> None:
        if wanted == right:
            raise PermissionDenied(f"no {wanted}")

    return Anyone("vetoed", permit)


async def refused(
    store: AnyStore, error: type[VOSpaceError], call: object, *arguments: object, **named: object
) -> None:
    """The call fails exactly like this, and leaves nothing changed and nothing logged."""
    before, at = await dump(store), await store.cursor()
    with pytest.raises(VOSpaceError) as caught:
        await call(*arguments, **named)  # type: ignore[operator]
    assert type(caught.value) is error
    assert await dump(store) == before
    assert await store.cursor() == at


# -- names -----------------------------------------------------------------------------------------------------------


async def test_the_root_is_there(store: AnyStore) -> None:
    root = await store.get(ROOT_ID)
    assert (root.kind, root.owner, root.nlink, root.immutable) == (CONTAINER, "alice", 1, 0)
    assert await store.children(ROOT_ID, b"", 10) == []
    assert (await store.trace(()))[0] == [root]


@pytest.mark.parametrize("kind", sorted(SPECIAL))
async def test_what_mknod_makes_is_kept_and_holds_no_bytes(store: AnyStore, kind: str) -> None:
    device = (4095 << 32) + (1 << 20) - 1 if kind in DEVICES else 0
    node = await store.create(ROOT_ID, b"special", NewNode(kind, 0o2640, 1, 2, device=device))
    assert (node.kind, node.device, node.length, node.mode, node.uid, node.gid) == (kind, device, 0, 0o2640, 1, 2)
    assert await store.lookup(ROOT_ID, b"special") == node
    found = await store.find(ROOT_ID, b"special")
    assert (found.node, found.extents) == (node, None)
    assert await listing(store, ROOT_ID) == [(b"special", node)]
    await refused(store, IsContainer, store.commit, node.id, None, 1, [Extent(0, 1, data=b"x")], [])
    await refused(store, IsContainer, store.put_data, ROOT_ID, b"special", FILE, 1, [Extent(0, 1, data=b"x")], [], "")
    assert (await store.link(node.id, ROOT_ID, b"again")).nlink == 2
    moved = await store.rename(ROOT_ID, b"special", ROOT_ID, b"moved")
    assert (moved.node.kind, moved.node.device, moved.node.nlink) == (kind, device, 2)
    copy = await store.copy_node(node.id, b"job", "bob")
    assert (copy.kind, copy.device) == (kind, device)


async def test_a_commit_carries_both_times(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"f", FILE)
    done = await store.commit(node.id, 1, 0, [], [], 2, atime_ns=1)
    assert (done.node.atime_ns, done.node.mtime_ns) == (1, 2)
    again = await store.commit(node.id, 2, 0, [], [], 3)
    assert (again.node.atime_ns, again.node.mtime_ns) == (1, 3)
    assert await store.get(node.id) == again.node


async def test_containers_in_a_container_are_counted(store: AnyStore) -> None:
    async def counts() -> list[int]:
        return [(await store.get(id)).containers for id in (ROOT_ID, a.id, b.id)]

    a = await store.create(ROOT_ID, b"a", BOX)
    b = await store.create(ROOT_ID, b"b", BOX)
    assert (a.containers, await counts()) == (0, [2, 0, 0])
    await store.create(a.id, b"file", FILE)
    await store.create(a.id, b"c", BOX)
    await store.create(a.id, b"d", BOX)
    assert await counts() == [2, 2, 0]
    await store.rename(a.id, b"c", b.id, b"c")
    assert await counts() == [2, 1, 1]
    await store.rename(a.id, b"d", b.id, b"c")
    assert await counts() == [2, 0, 1]
    await store.rename(a.id, b"file", b.id, b"c", "exchange")
    assert await counts() == [2, 1, 0]
    await store.rename(a.id, b"file", a.id, b"e")
    assert await counts() == [2, 1, 0]
    copy = await store.copy_node(a.id, b"copy", "bob")
    assert copy.containers == 0
    await store.copy_children(a.id, copy.id, b"", 100, "bob")
    assert (await store.get(copy.id)).containers == 1
    await store.graft(copy.id, b.id)
    assert await counts() == [2, 1, 1]
    await store.remove(a.id, b"e", "empty")
    await store.remove(ROOT_ID, b"b", "tree")
    assert await counts() == [1, 0, 1]


async def test_create_keeps_what_the_creator_says(store: AnyStore) -> None:
    new = NewNode(
        DATA, 0o640, 1000, 1001, "bob", b"", {"ivo://a#b": "c", "urn:é": "ü\n"}, "image/fits", 1, "g1", "g2", 0, 42
    )
    before = time.time_ns()
    node = await store.create(ROOT_ID, b"a", new)
    assert node == await store.lookup(ROOT_ID, b"a") == await store.get(node.id)
    assert (node.kind, node.mode, node.uid, node.gid, node.owner) == (DATA, 0o640, 1000, 1001, "bob")
    assert (node.content_type, node.public, node.group_read, node.group_write) == ("image/fits", 1, "g1", "g2")
    assert (node.version, node.length, node.nlink, node.md5, node.mtime_ns) == (1, 0, 1, "", 42)
    assert before <= node.btime_ns == node.ctime_ns == node.atime_ns <= time.time_ns()
    assert await store.properties(node.id) == {"ivo://a#b": "c", "urn:é": "ü\n"}
    root = await store.get(ROOT_ID)
    assert root.mtime_ns == root.ctime_ns >= before


async def test_a_link_has_the_length_of_its_target(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"l", NewNode(LINK, 0o777, target=b"../\xff"))
    assert (node.kind, node.target, node.length) == (LINK, b"../\xff", 4)
    node = await store.set_attributes(node.id, Attributes(target=b"elsewhere"))
    assert (node.target, node.length) == (b"elsewhere", 9)
    assert await store.get(node.id) == node


async def test_create_refuses(store: AnyStore) -> None:
    file = await store.create(ROOT_ID, b"a", FILE)
    await refused(store, DuplicateNode, store.create, ROOT_ID, b"a", BOX)
    await refused(store, NodeNotFound, store.create, MISSING, b"a", FILE)
    await refused(store, NotContainer, store.create, file.id, b"a", FILE)


async def test_lookup_refuses(store: AnyStore) -> None:
    file = await store.create(ROOT_ID, b"a", FILE)
    await refused(store, NodeNotFound, store.lookup, ROOT_ID, b"b")
    await refused(store, NodeNotFound, store.lookup, MISSING, b"b")
    await refused(store, NotContainer, store.lookup, file.id, b"b")
    await refused(store, NodeNotFound, store.get, MISSING)


async def test_names_are_any_bytes(store: AnyStore) -> None:
    ids = {name: (await store.create(ROOT_ID, name, FILE)).id for name in ODD_NAMES}
    assert {name: (await store.lookup(ROOT_ID, name)).id for name in ODD_NAMES} == ids
    assert [(name, node.id) for name, node in await listing(store, ROOT_ID, 3)] == sorted(ids.items())
    for name in ODD_NAMES:
        await store.rename(ROOT_ID, name, ROOT_ID, name[::-1] + b"\xff" if len(name) < 255 else name, "")
    assert len(await listing(store, ROOT_ID)) == len(ODD_NAMES)


async def test_children_come_in_pages_by_name(store: AnyStore) -> None:
    names = sorted(b"n%d" % number for number in range(25))
    for name in names:
        await store.create(ROOT_ID, name, NewNode(DATA, properties={"urn:n": name.decode()}))
    assert [name for name, _ in await store.children(ROOT_ID, b"", 10)] == names[:10]
    assert [name for name, _ in await store.children(ROOT_ID, names[9], 10)] == names[10:20]
    assert [name for name, _ in await store.children(ROOT_ID, names[19], 10)] == names[20:]
    assert await store.children(ROOT_ID, names[-1], 10) == []
    await store.remove(ROOT_ID, names[9], "leaf")
    assert [name for name, _ in await store.children(ROOT_ID, names[9], 1)] == [names[10]]
    page = await store.children_with_properties(ROOT_ID, names[10], 3)
    assert [name for name, _, _ in page] == names[10:13]
    assert [properties for _, _, properties in page] == [{"urn:n": name.decode()} for name in names[10:13]]
    assert [node for _, node, _ in page] == [node for _, node in await store.children(ROOT_ID, names[9], 3)]


async def test_children_refuses(store: AnyStore) -> None:
    file = await store.create(ROOT_ID, b"a", FILE)
    await refused(store, NodeNotFound, store.children, MISSING, b"", 10)
    await refused(store, NotContainer, store.children, file.id, b"", 10)


async def test_children_with_properties_refuses_what_is_no_container(store: AnyStore) -> None:
    file = await store.create(ROOT_ID, b"a", FILE)
    await refused(store, NotContainer, store.children_with_properties, file.id, b"", 10)


async def test_a_trace_goes_as_far_as_the_path_exists(store: AnyStore) -> None:
    root = await store.get(ROOT_ID)
    a = await store.create(ROOT_ID, b"a", BOX)
    b = await store.create(a.id, b"b", FILE)
    ids = [node.id for node in (await store.trace((b"a", b"b")))[0]]
    assert ids == [root.id, a.id, b.id]
    assert [node.id for node in (await store.trace((b"a", b"b", b"c")))[0]] == ids
    assert [node.id for node in (await store.trace((b"a", b"x", b"b")))[0]] == ids[:2]


async def test_a_deep_trace(store: AnyStore) -> None:
    ids = [ROOT_ID]
    for _ in range(50):
        ids.append((await store.create(ids[-1], b"d", BOX)).id)
    await store.set_properties(ids[32], {"urn:p": "32"})
    await store.set_properties(ids[40], {"urn:p": "40"})
    for depth in (15, 16, 17, 32, 33, 50):
        chain, properties = await store.trace((b"d",) * depth)
        assert [node.id for node in chain] == ids[: depth + 1]
        assert properties == ({"urn:p": "32"} if depth == 32 else {})
        chain, properties = await store.trace((*(b"d",) * depth, b"no", b"d"))
        assert [node.id for node in chain] == ids[: depth + 1] and properties == {}


async def test_link_gives_a_node_one_more_name(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    node = await store.create(ROOT_ID, b"a", FILE)
    linked = await store.link(node.id, box.id, b"b")
    assert (linked.id, linked.nlink) == (node.id, 2)
    assert await store.lookup(box.id, b"b") == await store.lookup(ROOT_ID, b"a") == linked
    gone = await store.remove(ROOT_ID, b"a", "leaf")
    assert (gone.id, gone.nlink) == (node.id, 1)
    assert (await store.lookup(box.id, b"b")).nlink == 1


async def test_link_refuses(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    node = await store.create(ROOT_ID, b"a", FILE)
    dead = await store.create(ROOT_ID, b"dead", FILE)
    await store.remove(ROOT_ID, b"dead", "leaf")
    await refused(store, PermissionDenied, store.link, box.id, ROOT_ID, b"b")
    await refused(store, DuplicateNode, store.link, node.id, ROOT_ID, b"box")
    await refused(store, NodeNotFound, store.link, MISSING, ROOT_ID, b"b")
    await refused(store, NodeNotFound, store.link, node.id, MISSING, b"b")
    await refused(store, NodeNotFound, store.link, dead.id, ROOT_ID, b"b")
    await refused(store, NotContainer, store.link, node.id, node.id, b"b")


async def test_remove_by_kind(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    await store.create(ROOT_ID, b"file", FILE)
    await store.create(box.id, b"in", FILE)
    await refused(store, IsContainer, store.remove, ROOT_ID, b"box", "leaf")
    await refused(store, NotContainer, store.remove, ROOT_ID, b"file", "empty")
    await refused(store, ContainerNotEmpty, store.remove, ROOT_ID, b"box", "empty")
    await refused(store, NodeNotFound, store.remove, ROOT_ID, b"none", "leaf")
    await refused(store, NodeNotFound, store.remove, MISSING, b"none", "leaf")
    assert (await store.remove(box.id, b"in", "leaf")).nlink == 0
    gone = await store.remove(ROOT_ID, b"box", "empty")
    assert (gone.id, gone.nlink) == (box.id, 0)
    await refused(store, NodeNotFound, store.create, box.id, b"late", FILE)
    assert (await store.remove(ROOT_ID, b"file", "tree")).nlink == 0
    assert await listing(store, ROOT_ID) == []


async def test_remove_a_tree_and_purge_it(store: AnyStore) -> None:
    top = await store.create(ROOT_ID, b"top", BOX)
    kept = await store.create(ROOT_ID, b"kept", FILE)
    await store.link(kept.id, top.id, b"link")
    ids, at = [top.id], top.id
    for depth in range(5):
        at = (await store.create(at, b"d%d" % depth, NewNode(CONTAINER, properties={"urn:p": "v"}))).id
        ids.append(at)
        ids.append((await store.create(at, b"f", FILE)).id)
    before = (await store.usage()).nodes
    assert (await store.remove(ROOT_ID, b"top", "tree")).nlink == 0
    rounds = 0
    while await store.purge(3):
        rounds += 1
        assert rounds < 100
    for id in ids:
        with pytest.raises(NodeNotFound):
            await store.get(id)
    assert (await store.get(kept.id)).nlink == 1
    assert before - (await store.usage()).nodes == len(ids)
    assert await store.purge(3) == 0


# -- rename ----------------------------------------------------------------------------------------------------------


async def test_rename_moves(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    node = await store.create(ROOT_ID, b"a", FILE)
    done = await store.rename(ROOT_ID, b"a", box.id, b"b")
    assert (done.node.id, done.gone) == (node.id, None)
    assert done.node == await store.lookup(box.id, b"b")
    assert done.node.ctime_ns >= node.ctime_ns
    assert [name for name, _ in await listing(store, ROOT_ID)] == [b"box"]
    inner = await store.create(ROOT_ID, b"inner", BOX)
    await store.rename(ROOT_ID, b"inner", box.id, b"inner", "keep")
    assert [n.id for n in (await store.trace((b"box", b"inner")))[0]] == [ROOT_ID, box.id, inner.id]


async def test_rename_replaces(store: AnyStore) -> None:
    a = await store.create(ROOT_ID, b"a", FILE)
    b = await store.create(ROOT_ID, b"b", FILE)
    done = await store.rename(ROOT_ID, b"a", ROOT_ID, b"b", "")
    assert done.gone is not None
    assert (done.node.id, done.gone.id, done.gone.nlink) == (a.id, b.id, 0)
    assert [(name, node.id) for name, node in await listing(store, ROOT_ID)] == [(b"b", a.id)]
    while await store.purge(10):
        pass
    with pytest.raises(NodeNotFound):
        await store.get(b.id)


async def test_rename_over_one_of_two_names(store: AnyStore) -> None:
    b = await store.create(ROOT_ID, b"b", FILE)
    await store.link(b.id, ROOT_ID, b"c")
    await store.create(ROOT_ID, b"a", FILE)
    done = await store.rename(ROOT_ID, b"a", ROOT_ID, b"b", "")
    assert done.gone is not None and (done.gone.id, done.gone.nlink) == (b.id, 1)
    assert (await store.lookup(ROOT_ID, b"c")).nlink == 1


async def test_rename_keeps_when_asked(store: AnyStore) -> None:
    await store.create(ROOT_ID, b"a", FILE)
    await store.create(ROOT_ID, b"b", FILE)
    await refused(store, DuplicateNode, store.rename, ROOT_ID, b"a", ROOT_ID, b"b", "keep")
    await refused(store, DuplicateNode, store.rename, ROOT_ID, b"a", ROOT_ID, b"a", "keep")


async def test_rename_exchanges(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    inner = await store.create(box.id, b"inner", BOX)
    file = await store.create(ROOT_ID, b"file", FILE)
    done = await store.rename(ROOT_ID, b"file", box.id, b"inner", "exchange")
    assert (done.node.id, done.gone) == (file.id, None)
    assert (await store.lookup(ROOT_ID, b"file")).id == inner.id
    assert (await store.lookup(box.id, b"inner")).id == file.id
    # Parents were exchanged too: the container knows its new place.
    await refused(store, InvalidArgument, store.rename, ROOT_ID, b"file", inner.id, b"x", "")
    await store.rename(ROOT_ID, b"box", inner.id, b"box", "")
    assert [n.id for n in (await store.trace((b"file", b"box", b"inner")))[0]] == [ROOT_ID, inner.id, box.id, file.id]
    await refused(store, NodeNotFound, store.rename, ROOT_ID, b"file", ROOT_ID, b"none", "exchange")


async def test_exchange_with_an_ancestor_is_refused(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    inner = await store.create(box.id, b"inner", BOX)
    await store.create(inner.id, b"deep", BOX)
    for flag in ("", "exchange", "keep"):
        await refused(store, InvalidArgument, store.rename, ROOT_ID, b"box", box.id, b"inner", flag)
        await refused(store, InvalidArgument, store.rename, ROOT_ID, b"box", inner.id, b"deep", flag)
    await refused(store, InvalidArgument, store.rename, box.id, b"inner", ROOT_ID, b"box", "exchange")
    await refused(store, ContainerNotEmpty, store.rename, box.id, b"inner", ROOT_ID, b"box", "")


async def test_rename_into_an_own_descendant_is_refused(store: AnyStore) -> None:
    a = await store.create(ROOT_ID, b"a", BOX)
    b = await store.create(a.id, b"b", BOX)
    c = await store.create(b.id, b"c", BOX)
    for into in (a.id, b.id, c.id):
        await refused(store, InvalidArgument, store.rename, ROOT_ID, b"a", into, b"x", "")
    await refused(store, InvalidArgument, store.rename, a.id, b"b", c.id, b"x", "")


async def test_rename_over_containers(store: AnyStore) -> None:
    empty = await store.create(ROOT_ID, b"empty", BOX)
    full = await store.create(ROOT_ID, b"full", BOX)
    await store.create(full.id, b"x", FILE)
    await store.create(ROOT_ID, b"file", FILE)
    await refused(store, IsContainer, store.rename, ROOT_ID, b"file", ROOT_ID, b"empty", "")
    await refused(store, NotContainer, store.rename, ROOT_ID, b"full", ROOT_ID, b"file", "")
    await refused(store, ContainerNotEmpty, store.rename, ROOT_ID, b"empty", ROOT_ID, b"full", "")
    done = await store.rename(ROOT_ID, b"full", ROOT_ID, b"empty", "")
    assert done.gone is not None and (done.gone.id, done.gone.nlink) == (empty.id, 0)
    assert [n.id for n in (await store.trace((b"empty", b"x")))[0]][1] == full.id


async def test_rename_to_the_same_node_changes_nothing(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    await store.link(node.id, ROOT_ID, b"b")
    before, at = await dump(store), await store.cursor()
    for to_name in (b"a", b"b"):
        done = await store.rename(ROOT_ID, b"a", ROOT_ID, to_name, "")
        assert (done.node.id, done.gone) == (node.id, None)
    assert await dump(store) == before
    assert await store.cursor() == at
    done = await store.rename(ROOT_ID, b"a", ROOT_ID, b"b", "exchange")
    assert (done.node.id, done.gone) == (node.id, None)
    assert await dump(store) == before


async def test_rename_refuses(store: AnyStore) -> None:
    file = await store.create(ROOT_ID, b"a", FILE)
    dead = await store.create(ROOT_ID, b"dead", BOX)
    await store.remove(ROOT_ID, b"dead", "empty")
    await refused(store, NodeNotFound, store.rename, ROOT_ID, b"none", ROOT_ID, b"b", "")
    await refused(store, NodeNotFound, store.rename, ROOT_ID, b"a", MISSING, b"b", "")
    await refused(store, NodeNotFound, store.rename, ROOT_ID, b"a", dead.id, b"b", "")
    await refused(store, NotContainer, store.rename, ROOT_ID, b"a", file.id, b"b", "")


async def test_a_container_does_not_move_into_a_removed_tree(store: AnyStore) -> None:
    top = await store.create(ROOT_ID, b"top", BOX)
    below = await store.create(top.id, b"below", BOX)
    await store.create(ROOT_ID, b"a", BOX)
    await store.remove(ROOT_ID, b"top", "tree")
    await refused(store, NodeNotFound, store.rename, ROOT_ID, b"a", below.id, b"a", "")


# -- attributes and properties ---------------------------------------------------------------------------------------


async def test_set_attributes_changes_only_what_is_given(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", NewNode(DATA, 0o600, 1, 2, "bob", group_read="g"))
    changed = await store.set_attributes(node.id, Attributes(mode=0o644, mtime_ns=-5))
    assert changed == await store.get(node.id)
    assert (changed.mode, changed.mtime_ns, changed.uid, changed.owner) == (0o644, -5, 1, "bob")
    assert changed.ctime_ns >= node.ctime_ns and changed.version == node.version
    every = Attributes(0, 0, 0, 1, 2, 1, "", "w", "text/plain", None, 0)
    changed = await store.set_attributes(node.id, every)
    assert changed == await store.get(node.id)
    assert (changed.mode, changed.uid, changed.gid, changed.atime_ns, changed.mtime_ns) == (0, 0, 0, 1, 2)
    assert (changed.public, changed.group_read, changed.group_write) == (1, "", "w")
    assert changed.content_type == "text/plain"
    await refused(store, NodeNotFound, store.set_attributes, MISSING, Attributes(mode=0))


async def test_set_attributes_of_nothing_moves_ctime(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    changed = await store.set_attributes(node.id, Attributes())
    assert changed == await store.get(node.id)
    assert changed.ctime_ns >= node.ctime_ns


async def test_properties_are_a_union(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", NewNode(DATA, properties={"urn:a": "1", "urn:b": "2"}))
    done = await store.set_properties(node.id, {"urn:b": "3", "urn:c": "", "urn:a": None, "urn:none": None})
    assert done == await store.get(node.id)
    assert done.ctime_ns >= node.ctime_ns and done.mtime_ns == node.mtime_ns
    assert await store.properties(node.id) == {"urn:b": "3", "urn:c": ""}
    await store.set_properties(node.id, {"urn:z": "9", "urn:c": None}, clear=True)
    assert await store.properties(node.id) == {"urn:z": "9"}
    await store.set_properties(node.id, {}, clear=True)
    assert await store.properties(node.id) == {}
    await refused(store, NodeNotFound, store.set_properties, MISSING, {"urn:a": "1"})


async def test_properties_of_no_node(store: AnyStore) -> None:
    await refused(store, NodeNotFound, store.properties, MISSING)


async def test_a_large_property(store: AnyStore) -> None:
    value = "é\n" * 30_000
    node = await store.create(ROOT_ID, b"a", NewNode(DATA, properties={"urn:a": value}))
    assert await store.properties(node.id) == {"urn:a": value}


# -- immutable and permit --------------------------------------------------------------------------------------------


async def test_immutable_nodes_stay_as_they_are(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    file = await store.create(box.id, b"a", NewNode(DATA, immutable=1))
    other = await store.create(ROOT_ID, b"other", FILE)
    await refused(store, Immutable, store.remove, box.id, b"a", "leaf")
    await refused(store, Immutable, store.rename, box.id, b"a", box.id, b"b", "")
    await refused(store, Immutable, store.rename, ROOT_ID, b"other", box.id, b"a", "")
    await refused(store, Immutable, store.set_attributes, file.id, Attributes(mode=0))
    await store.set_properties(file.id, {"urn:a": "1"})
    assert await store.properties(file.id) == {"urn:a": "1"}, "but it can be described"
    await refused(store, Immutable, store.commit, file.id, None, 1, [Extent(0, 1, data=b"x")], [])
    await store.set_attributes(box.id, Attributes(immutable=1))
    await refused(store, Immutable, store.create, box.id, b"new", FILE)
    await refused(store, Immutable, store.link, other.id, box.id, b"new")
    await refused(store, Immutable, store.rename, ROOT_ID, b"other", box.id, b"new", "")
    await refused(store, Immutable, store.remove, ROOT_ID, b"box", "tree")
    await refused(store, PermissionDenied, store.set_attributes, box.id, Attributes(immutable=0), vetoing(OWN))
    await store.set_attributes(box.id, Attributes(immutable=0))
    await store.set_attributes(file.id, Attributes(immutable=0))
    assert (await store.remove(box.id, b"a", "leaf")).nlink == 0


async def test_a_veto_leaves_nothing_changed(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    file = await store.create(ROOT_ID, b"a", FILE)
    await store.create(box.id, b"in", FILE)
    writer, reader, owner = vetoing(WRITE), vetoing(READ), vetoing(OWN)
    denied = PermissionDenied
    await refused(store, denied, store.create, ROOT_ID, b"new", FILE, writer)
    await refused(store, denied, store.link, file.id, box.id, b"new", writer)
    await refused(store, denied, store.remove, ROOT_ID, b"a", "leaf", writer)
    await refused(store, denied, store.rename, ROOT_ID, b"a", box.id, b"b", "", writer)
    await refused(store, denied, store.set_attributes, file.id, Attributes(mtime_ns=1), writer)
    await refused(store, denied, store.set_attributes, file.id, Attributes(mode=1), owner)
    await refused(store, denied, store.set_attributes, file.id, Attributes(group_write="x"), owner)
    await refused(store, denied, store.set_properties, file.id, {"urn:a": "1"}, True, writer)
    await refused(store, denied, store.commit, file.id, None, 1, [Extent(0, 1, data=b"x")], [], caller=writer)
    await refused(store, denied, store.open, file.id, reader)
    await refused(store, denied, store.lookup, ROOT_ID, b"a", reader)
    await refused(store, denied, store.children, ROOT_ID, b"", 9, reader)
    # Rights that do not matter are not asked for.
    await store.set_attributes(file.id, Attributes(mtime_ns=1), owner)
    await store.create(ROOT_ID, b"new", FILE, reader)


async def test_a_veto_of_one_node_of_several(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    await store.create(ROOT_ID, b"a", FILE)
    await store.create(box.id, b"in", FILE)

    def permit(node: Node, right: str) -> None:
        if node.id == box.id and right == WRITE:
            raise PermissionDenied("not in the box")

    caller = Anyone("x", permit)
    await refused(store, PermissionDenied, store.rename, ROOT_ID, b"a", box.id, b"a", "", caller)
    await refused(store, PermissionDenied, store.rename, box.id, b"in", ROOT_ID, b"in", "", caller)
    await refused(store, PermissionDenied, store.remove, ROOT_ID, b"box", "tree", caller)
    await store.rename(ROOT_ID, b"a", ROOT_ID, b"b", "", caller)
    assert (await store.lookup(ROOT_ID, b"b")).nlink == 1


# -- bytes -----------------------------------------------------------------------------------------------------------


async def test_commit_swaps_the_bytes(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    blob = Blob("b1", 100_000, 7)
    done = await store.commit(node.id, 1, 90_000, [Extent(0, 90_000, "b1", 10)], [blob], 42, "d41d")
    assert (done.node.version, done.node.length, done.node.mtime_ns, done.node.md5) == (2, 90_000, 42, "d41d")
    assert done.extents == [Extent(0, 90_000, "b1", 10)]
    opened = await store.open(node.id)
    assert (opened.node, opened.extents) == (done.node, done.extents)
    assert await store.get(node.id) == done.node


async def test_commit_from_another_version_is_stale(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    change = [Extent(0, 1, data=b"x")]
    await refused(store, Stale, store.commit, node.id, 2, 1, change, [])
    await store.commit(node.id, 1, 1, change, [])
    await refused(store, Stale, store.commit, node.id, 1, 1, change, [])
    assert (await store.commit(node.id, None, 0, [], [])).node.version == 3
    assert (await store.commit(node.id, 3, 0, [], [])).node.version == 4


async def test_commit_overlays_in_order(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    await store.commit(node.id, None, 30_000, [Extent(0, 30_000, "b1")], [Blob("b1", 30_000, 0)])
    done = await store.commit(
        node.id, 2, 30_000,
        [Extent(10, 20, data=b"0123456789"), Extent(15, 16, data=b"x"), Extent(100, 200), Extent(150, 160, "b2", 5)],
        [Blob("b2", 15, 0)],
    )  # fmt: skip
    expected = [
        Extent(0, 10, "b1"), Extent(10, 20, data=b"01234x6789"), Extent(20, 100, "b1", 20),
        Extent(150, 160, "b2", 5), Extent(200, 30_000, "b1", 200),
    ]  # fmt: skip
    assert done.extents == expected
    assert (await store.open(node.id)).extents == expected


async def test_commit_truncates_and_extends(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    await store.commit(node.id, None, 100, [Extent(0, 100, "b1")], [Blob("b1", 100, 0)])
    done = await store.commit(node.id, None, 40, [], [])
    assert (done.node.length, done.extents) == (40, [Extent(0, 40, "b1")])
    done = await store.commit(node.id, None, 1000, [Extent(990, 1010, data=b"y" * 20)], [])
    assert done.extents == [Extent(0, 40, "b1"), Extent(990, 1000, data=b"y" * 10)]
    done = await store.commit(node.id, None, 0, [], [])
    assert (done.node.length, done.extents) == (0, [])
    done = await store.commit(node.id, None, 50, [], [])
    assert (await store.open(node.id)).extents == done.extents == []


async def test_commit_of_bytes_that_the_node_stands_on(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    await store.commit(node.id, None, 100, [Extent(0, 100, "b1")], [Blob("b1", 100, 0)])
    done = await store.commit(node.id, None, 200, [Extent(150, 200, "b1", 50)], [])
    assert done.extents == [Extent(0, 100, "b1"), Extent(150, 200, "b1", 50)]


async def test_commit_refuses(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    link = await store.create(ROOT_ID, b"link", NewNode(LINK, target=b"t"))
    node = await store.create(ROOT_ID, b"a", FILE)
    other = await store.create(ROOT_ID, b"b", FILE)
    await store.commit(other.id, None, 9, [Extent(0, 9, "theirs")], [Blob("theirs", 9, 0)])
    await refused(store, InvalidArgument, store.commit, node.id, None, 9, [Extent(0, 9, "theirs")], [])
    await refused(store, InvalidArgument, store.commit, node.id, None, 9, [Extent(0, 9, "x")], [Blob("y", 9, 0)])
    await refused(store, IsContainer, store.commit, box.id, None, 0, [], [])
    await refused(store, IsContainer, store.commit, link.id, None, 0, [], [])
    await refused(store, NodeNotFound, store.commit, MISSING, None, 0, [], [])
    await refused(store, IsContainer, store.open, box.id)
    await refused(store, NodeNotFound, store.open, MISSING)
    assert (await store.open(link.id)).extents == []


async def test_many_small_appends_make_few_extents(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    for at in range(0, 2000, 100):
        done = await store.commit(node.id, None, at + 100, [Extent(at, at + 100, data=b"%d" % (at % 7) * 100)], [])
    assert len(done.extents) == 1
    assert done.extents[0].data == b"".join(b"%d" % (at % 7) * 100 for at in range(0, 2000, 100))


async def test_an_unlinked_node_is_read_until_it_is_purged(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    done = await store.commit(node.id, 1, 1, [Extent(0, 1, data=b"x")], [])
    await store.remove(ROOT_ID, b"a", "leaf")
    assert (await store.open(node.id)).extents == done.extents
    while await store.purge(10):
        pass
    with pytest.raises(NodeNotFound):
        await store.open(node.id)


# -- races -----------------------------------------------------------------------------------------------------------


async def test_of_several_creators_of_a_name_one_wins(store: AnyStore) -> None:
    results: list[object] = []

    async def create() -> None:
        try:
            results.append((await store.create(ROOT_ID, b"same", FILE)).id)
        except DuplicateNode:
            results.append(None)

    for turn in range(3):
        results.clear()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(create)
        winners = [id for id in results if id is not None]
        assert len(results) == 8 and len(winners) == 1, turn
        assert (await store.lookup(ROOT_ID, b"same")).id == winners[0]
        await store.remove(ROOT_ID, b"same", "leaf")


async def test_bytes_for_a_node_without_a_name_are_refused(store: AnyStore) -> None:
    """Nobody could read them: a mount that did not see it go must not take them for saved."""
    node = await store.create(ROOT_ID, b"file", FILE)
    await store.create(ROOT_ID, b"other", FILE)
    await store.rename(ROOT_ID, b"other", ROOT_ID, b"file", "")
    await refused(store, NodeNotFound, store.commit, node.id, node.version, 3, [Extent(0, 3, data=b"abc")], [])


async def test_of_several_commits_from_a_version_one_wins(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    won: list[bytes] = []

    async def commit(byte: bytes) -> None:
        try:
            await store.commit(node.id, 1, 1, [Extent(0, 1, data=byte)], [])
        except Stale:
            return
        won.append(byte)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(commit, b"%d" % number)
    assert [e.data for e in (await store.open(node.id)).extents] == won
    assert (await store.get(node.id)).version == 2


async def test_crossing_moves_make_no_cycle(store: AnyStore) -> None:
    for turn in range(6):
        a = await store.create(ROOT_ID, b"a%d" % turn, BOX)
        b = await store.create(ROOT_ID, b"b%d" % turn, BOX)
        x = await store.create(a.id, b"x", BOX)
        y = await store.create(b.id, b"y", BOX)
        outcome: list[str] = []

        async def move(name: bytes, into: int, flag: str, outcome: list[str] = outcome, turn: int = turn) -> None:
            try:
                await store.rename(ROOT_ID, name, into, b"moved", flag)
                outcome.append("moved")
            except InvalidArgument:
                outcome.append("refused")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(move, b"a%d" % turn, y.id, "keep")
            nursery.start_soon(move, b"b%d" % turn, x.id, "")
        assert sorted(outcome) == ["moved", "refused"]
        seen = {n for n in (await dump(store)) if n and n[0] in (b"a%d" % turn, b"b%d" % turn)}
        assert len(seen) == 4, "a cycle cannot be reached from the root"


async def test_links_are_counted_under_concurrency(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    boxes = [(await store.create(ROOT_ID, b"box%d" % i, BOX)).id for i in range(6)]

    async def work(box: int) -> None:
        for turn in range(3):
            await store.link(node.id, box, b"l%d" % turn)
        await store.remove(box, b"l0", "leaf")

    async with trio.open_nursery() as nursery:
        for box in boxes:
            nursery.start_soon(work, box)
    assert (await store.get(node.id)).nlink == 1 + 2 * len(boxes)


async def test_a_lock_is_for_who_may_write(store: AnyStore) -> None:
    file = await store.create(ROOT_ID, b"a", FILE)
    writer = vetoing(OWN)
    await store.set_attributes(file.id, Attributes(immutable=LOCKED), writer)
    await refused(store, NodeLocked, store.remove, ROOT_ID, b"a", "leaf")
    await refused(store, NodeLocked, store.rename, ROOT_ID, b"a", ROOT_ID, b"b", "")
    await refused(store, NodeLocked, store.commit, file.id, None, 1, [Extent(0, 1, data=b"x")], [])
    await refused(store, PermissionDenied, store.set_attributes, file.id, Attributes(immutable=IMMUTABLE), writer)
    await store.set_attributes(file.id, Attributes(immutable=0), writer)
    await store.set_attributes(file.id, Attributes(immutable=IMMUTABLE))
    await refused(store, PermissionDenied, store.set_attributes, file.id, Attributes(immutable=0), writer)
    await refused(store, PermissionDenied, store.set_attributes, file.id, Attributes(immutable=LOCKED), writer)


async def test_depth(store: AnyStore) -> None:
    a = await store.create(ROOT_ID, b"a", BOX)
    b = await store.create(a.id, b"b", BOX)
    link = await store.create(b.id, b"l", NewNode(LINK, target=b"x"))
    assert [await store.depth(id) for id in (a.id, b.id, link.id)] == [0, 1, 2]
    await store.rename(b.id, b"l", ROOT_ID, b"m")
    assert await store.depth(link.id) == 0
