"""Quotas in SQL: who is charged for bytes.  Parts of the transactions in ``sql.py`` and above.

A container with a quota has a row that counts the bytes below it, and every node names the nearest such container
(``Node.quota``), handed down when it is made.  So a change of a node under no quota costs no statement, and any other
one ``UPDATE`` for each quota above: all of them count, as a project's bound must hold whatever its users' are.

INVARIANT: a row's ``used`` is the sum of the lengths of the data nodes that name it, of those with a name, and of
``used`` of the rows whose ``above`` it is.

A node with several names has them all under one quota (CrossDevice otherwise, as project quotas of XFS and ext4 have
it), so it counts once, and moving one name never asks whose its bytes are.  Rows are locked after nodes, inner ones
before outer ones.
"""

from collections import Counter
from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

import msgspec

from vosfs.errors import CrossDevice
from vosfs.metadata.node import CONTAINER, DATA, Node, Quota, check_quota

T = TypeVar("T")
Transaction = Generator[tuple[str, tuple[Any, ...]], list[Any], T]

ADOPT_NODES = 50
_ADOPT = f"UPDATE node SET quota = ? WHERE space = ? AND id IN ({', '.join('?' * ADOPT_NODES)})"
_CHARGE = "UPDATE quota SET used = used + ? WHERE space = ? AND node = ? RETURNING node, above, bytes_max, used"


def has_own(node: Node) -> bool:
    """Whether a node is a container with a quota of its own, now or once."""
    return node.quota == node.id


def charge(space: int, quota: int, length: int, checked: bool = True) -> Transaction[None]:
    """So many bytes came (or went, below zero) under a quota and all above it.  QuotaExceeded if that is too many."""
    while quota and length:
        rows = yield _CHARGE, (length, space, quota)
        if not rows:
            # Its container is gone from the tree, and what is below on its way.
            return
        row = Quota(*rows[0])
        if checked and length > 0:
            check_quota(row)
        quota = row.above


def released(space: int, node: Node) -> Transaction[None]:
    """A node lost its last name: nobody pays for it any more."""
    if not node.quota:
        return
    if node.kind == DATA:
        yield from charge(space, node.quota, -node.length)
    elif has_own(node):
        # All of it at once, long before what is below is purged.
        rows = yield "SELECT above, used FROM quota WHERE space = ? AND node = ?{update}", (space, node.id)
        for above, used in rows:
            yield "UPDATE quota SET above = 0 WHERE space = ? AND node = ?", (space, node.id)
            yield from charge(space, above, -used)


def chain(space: int, quota: int) -> Transaction[list[Quota]]:
    """A quota and those above it, inner ones first."""
    found: list[Quota] = []
    while quota:
        rows = yield (
            "SELECT node, above, bytes_max, used FROM quota WHERE space = ? AND node = ?",
            (space, quota),
        )
        if not rows:
            break
        found.append(Quota(*rows[0]))
        quota = found[-1].above
    return found


def _locked(space: int, source: int, target: int) -> Transaction[tuple[list[int], list[int]]]:
    """The chains of two quotas, locked: one that comes under another meanwhile takes along what it counts by then."""
    locked: set[int] = set()
    while True:
        before = [row.node for row in (yield from chain(space, source))]
        after = [row.node for row in (yield from chain(space, target))]
        wanted = [*(node for node in before if node not in after), *after]
        if locked.issuperset(wanted):
            return before, after
        # Those above both are the last: as who writes below either of them has it.
        for node in wanted:
            yield "SELECT 1 FROM quota WHERE space = ? AND node = ?{update}", (space, node)
        locked.update(wanted)


def transfer(space: int, source: int, target: int, length: int, checked: bool = True) -> Transaction[None]:
    """Bytes went from under one quota to under another: those above both do not notice."""
    if source == target or not length:
        return
    before, after = yield from _locked(space, source, target)
    for node in before:
        if node not in after:
            yield "UPDATE quota SET used = used - ? WHERE space = ? AND node = ?", (length, space, node)
    for node in after:
        if node not in before:
            rows = yield _CHARGE, (length, space, node)
            if checked:
                check_quota(Quota(*rows[0]))


def move(space: int, node: Node, source: int, target: int) -> Transaction[Node]:
    """A name of a node goes from a container under one quota into one under another; the node as it is then.

    QuotaExceeded; CrossDevice if something that goes has names that stay.
    """
    if has_own(node):
        rows = yield "SELECT above, used FROM quota WHERE space = ? AND node = ?{update}", (space, node.id)
        for above, used in rows:
            yield "UPDATE quota SET above = ? WHERE space = ? AND node = ?", (target, space, node.id)
            yield from transfer(space, above, target, used)
        return node
    if node.kind != CONTAINER and node.nlink > 1:
        if source != target:
            raise CrossDevice(f"node {node.id} has other names, which stay under another quota")
        return node
    if node.quota == target:
        return node
    moved = Counter({node.quota: node.length if node.kind == DATA else 0})
    if node.kind == CONTAINER:
        moved = yield from _adopt(space, node.id, target)
    yield "UPDATE node SET quota = ? WHERE space = ? AND id = ?", (target, space, node.id)
    for quota, length in sorted(moved.items()):
        yield from transfer(space, quota, target, length)
    return msgspec.structs.replace(node, quota=target)


class Adopted(NamedTuple):
    """Children that name another quota now."""

    moved: Counter[int]
    """How many bytes named which one before."""
    containers: list[int]
    """Those among them, whose own children are still to come."""
    shared: Counter[int]
    """Nodes with several names: how many of them were met."""
    nlinks: dict[int, int]
    """How many these have."""


def adopt_children(space: int, container: int, target: int) -> Transaction[Adopted]:
    """Let the children of a container, which is locked, name a quota: what is made in it meanwhile waits for that."""
    rows = yield (
        (
            "SELECT n.id, n.kind, n.length, n.nlink, n.quota FROM name m JOIN node n ON n.space = m.space + 0"
            " AND n.id = m.node WHERE m.space = ? AND m.parent = ?{update}"
        ),
        (space, container),
    )
    found = Adopted(Counter(), [], Counter(), {})
    changed: dict[int, None] = {}
    for id, kind, length, nlink, quota in rows:
        if kind == CONTAINER and quota == id:
            own = yield "SELECT above, used FROM quota WHERE space = ? AND node = ?{update}", (space, id)
            for above, used in own:
                found.moved[above] += used
                yield "UPDATE quota SET above = ? WHERE space = ? AND node = ?", (target, space, id)
            continue
        if kind == CONTAINER:
            found.containers.append(id)
        elif nlink > 1:
            found.shared[id] += 1
            found.nlinks[id] = nlink
        if quota != target and id not in changed:
            changed[id] = None
            found.moved[quota] += length if kind == DATA else 0
    ids = list(changed)
    for at in range(0, len(ids), ADOPT_NODES):
        batch = ids[at : at + ADOPT_NODES]
        yield _ADOPT, (target, space, *batch, *[0] * (ADOPT_NODES - len(batch)))
    return found


def _adopt(space: int, top: int, target: int) -> Transaction[Counter[int]]:
    """The same with all below; how many bytes named which quota before.  CrossDevice if a node has names elsewhere."""
    every = Adopted(Counter(), [top], Counter(), {})
    while every.containers:
        found = yield from adopt_children(space, every.containers.pop(), target)
        every.moved.update(found.moved)
        every.containers.extend(found.containers)
        every.shared.update(found.shared)
        every.nlinks.update(found.nlinks)
    for id, names in every.shared.items():
        if names < every.nlinks[id]:
            raise CrossDevice(f"node {id} has other names, which stay under another quota")
    return every.moved
