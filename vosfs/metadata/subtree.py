"""Whole trees in SQL: transactions as in ``sql.py``.

A tree is copied or unpacked in many small transactions, so that others get their turn, under a container that no
path leads to (``STAGING_ID``); one last transaction puts it where it belongs.  Nobody sees half of it, and what a
crash leaves there is found by its name, the job's.
"""

import msgspec

from vosfs.errors import DuplicateNode, NodeNotFound
from vosfs.metadata import charges
from vosfs.metadata.node import CONTAINER, DATA, STAGING_ID, Blob, Copied, Extent, Node
from vosfs.metadata.sql import (
    CHILD,
    CHILDREN_AFTER,
    DELETE_NAME,
    INSERT_NAME,
    INSERT_NODE,
    Frame,
    Transaction,
    commit,
    container_of,
    drop,
    extents_of,
    get,
    log_change,
    new_id,
    touch,
    writable,
)
from vosfs.metadata.store import READ, WRITE


def copy_node(f: Frame, id: int, name: bytes, owner: str, quota: int = 0) -> Transaction[Node]:
    node = yield from get(f, id)
    copy = yield from _copy(f, node, STAGING_ID, name, owner, quota)
    yield from charges.charge(f.space, quota, copy.length if copy.kind == DATA else 0)
    return copy


def copy_children(f: Frame, id: int, into: int, after: bytes, limit: int, owner: str) -> Transaction[Copied]:
    container = yield from container_of(f, id)
    f.caller.permit(container, READ)
    quota = (yield from get(f, into)).quota
    rows = yield CHILDREN_AFTER, (f.space, id, after, limit)
    containers = []
    length = 0
    for name, *columns in rows:
        node = Node(*columns)
        copied = yield from _copy(f, node, into, bytes(name), owner, quota)
        length += node.length if node.kind == DATA else 0
        if node.kind == CONTAINER:
            containers.append((node.id, copied.id))
    yield from charges.charge(f.space, quota, length)
    return Copied(bytes(rows[-1][0]) if len(rows) == limit else None, containers)


def _copy(f: Frame, node: Node, into: int, name: bytes, owner: str, quota: int) -> Transaction[Node]:
    f.caller.permit(node, READ)
    # Held until the end: who takes these blobs from the original then sees that the copy stands on them.
    held = yield "SELECT 1 FROM node WHERE space = ? AND id = ? AND nlink > 0{share}", (f.space, node.id)
    if not held:
        raise NodeNotFound(repr(name))
    copy = msgspec.structs.replace(
        node, id=new_id(), version=1, nlink=1, ctime_ns=f.now_ns, btime_ns=f.now_ns, owner=owner, immutable=0,
        containers=0, quota=quota,
    )  # fmt: skip
    yield INSERT_NAME, (f.space, into, name, copy.id)
    yield INSERT_NODE, (f.space, *msgspec.structs.astuple(copy), into)
    yield (
        "INSERT INTO property (space, node, uri, value) SELECT space, ?, uri, value FROM property"
        " WHERE space = ? AND node = ?",
        (copy.id, f.space, node.id),
    )
    if node.kind == DATA and node.length:
        yield (
            "INSERT INTO extent (space, node, start, stop, locator, start_in_blob, data)"
            " SELECT space, ?, start, stop, locator, start_in_blob, data FROM extent"
            " WHERE space = ? AND node = ?",
            (copy.id, f.space, node.id),
        )
    if node.kind == CONTAINER and into != STAGING_ID:
        yield "UPDATE node SET containers = containers + 1 WHERE space = ? AND id = ?", (f.space, into)
    return copy


def graft(f: Frame, id: int, into: int) -> Transaction[None]:
    """Move all children of ``id`` into ``into``: containers merge, bytes replace bytes, anything else is DuplicateNode."""
    target = yield from writable(f, into)
    staged = yield from get(f, id)
    came = 0
    for name, *columns in (yield CHILDREN_AFTER, (f.space, id, b"", 1 << 31)):
        name, node = bytes(name), Node(*columns)
        rows = yield CHILD + "{update}", (f.space, f.space, into, name)
        if not rows:
            yield (
                "UPDATE name SET parent = ? WHERE space = ? AND parent = ? AND name = ?",
                (into, f.space, id, name),
            )
            yield "UPDATE node SET parent = ? WHERE space = ? AND id = ?", (into, f.space, node.id)
            yield from charges.move(f.space, node, staged.quota, target.quota)
            yield from log_change(f, node.id, into, name)
            came += int(node.kind == CONTAINER)
            continue
        other = Node(*rows[0])
        if node.kind == other.kind == CONTAINER:
            yield from graft(f, node.id, other.id)
        elif node.kind == other.kind == DATA:
            f.caller.permit(other, WRITE)
            extents = yield from extents_of(f, node.id)
            blobs = [Blob(locator, 0, 0) for locator in {e.locator for e in extents if e.locator}]
            changes = [Extent(0, max(node.length, other.length, 1)), *extents]
            # Not counted twice; its blobs stay until it is purged.
            yield DELETE_NAME, (f.space, id, name)
            yield from drop(f, (yield from get(f, node.id, "{update}")))
            yield from commit(f, other.id, None, node.length, changes, blobs, node.mtime_ns, node.md5)
        else:
            raise DuplicateNode(repr(name))
    yield from touch(f, into, came)


def drop_staged(f: Frame, name: bytes) -> Transaction[None]:
    """Give up what was staged under a name, if anything."""
    rows = yield CHILD + "{update}", (f.space, f.space, STAGING_ID, name)
    for row in rows:
        yield DELETE_NAME, (f.space, STAGING_ID, name)
        yield "UPDATE node SET nlink = 0 WHERE space = ? AND id = ?", (f.space, row[0])
        yield from charges.released(f.space, Node(*row))
