"""Quotas of containers in SQL: transactions as in ``sql.py``.  How bytes are counted is in ``charges.py``."""

from collections import Counter

from vosfs.errors import NodeNotFound
from vosfs.metadata import charges
from vosfs.metadata.node import ANYTHING, STAGING_ID, Quota
from vosfs.metadata.sql import DEPTH_MAX, Frame, Transaction, container_of, get, log_change


def quotas(f: Frame, id: int) -> Transaction[list[Quota]]:
    node = yield from get(f, id)
    return (yield from charges.chain(f.space, node.quota))


def set_quota(f: Frame, id: int, bytes_max: int) -> Transaction[bool]:
    """Whether what is below must come under it still."""
    node = yield from container_of(f, id, "{update}")
    if not node.nlink:
        raise NodeNotFound(f"container {id} was deleted")
    begins = bytes_max >= 0 and not charges.has_own(node)
    if begins:
        yield (
            "INSERT INTO quota (space, node, above, bytes_max, used) VALUES (?, ?, ?, ?, 0)",
            (f.space, id, node.quota, bytes_max),
        )
        yield "UPDATE node SET quota = ? WHERE space = ? AND id = ?", (id, f.space, id)
    else:
        yield "UPDATE quota SET bytes_max = ? WHERE space = ? AND node = ?", (bytes_max, f.space, id)
    yield from log_change(f, id)
    return begins


def adopt_children(f: Frame, id: int, quota: int) -> Transaction[list[int]]:
    """Let the children of a container count under its quota; the containers among them, which come next."""
    rows = yield "SELECT quota FROM node WHERE space = ? AND id = ?{update}", (f.space, id)
    if not rows or rows[0][0] != quota:
        # It was moved away meanwhile, and took its own along.
        return []
    found = yield from charges.adopt_children(f.space, id, quota)
    for before, length in sorted(found.moved.items()):
        yield from charges.transfer(f.space, before, quota, length, checked=False)
    return found.containers


def tell(f: Frame) -> Transaction[None]:
    """Have everybody look at nodes anew: who acts first goes by what it remembers of them."""
    yield from log_change(f, ANYTHING)


def recount(f: Frame) -> Transaction[list[tuple[int, int, int]]]:
    # Nobody is charged from here on; who was not yet by now will be added to what is counted here.
    yield "SELECT 1 FROM quota WHERE space = ? ORDER BY node{update}", (f.space,)
    yield from _rename_strays(f)
    rows = yield "SELECT node, above, used FROM quota WHERE space = ?", (f.space,)
    above = {node: above for node, above, _ in rows}
    sums = yield (
        "SELECT quota, sum(length) FROM node WHERE space = ? AND quota <> 0 AND kind = 'data' AND nlink > 0 GROUP BY quota",
        (f.space,),
    )
    counted: Counter[int] = Counter()
    for quota, length in sums:
        seen = 0
        while quota in above and seen < DEPTH_MAX:
            counted[quota] += int(length)
            quota, seen = above[quota], seen + 1
    wrong = [(node, used, counted[node]) for node, _, used in rows if used != counted[node]]
    for node, _, used in wrong:
        yield "UPDATE quota SET used = ? WHERE space = ? AND node = ?", (used, f.space, node)
    return wrong


def _rename_strays(f: Frame) -> Transaction[None]:
    """Let nodes, and quotas, name the one that they are under, where they do not."""
    for _ in range(DEPTH_MAX):
        # One level of a tree at a time.
        strays = yield (
            (
                "SELECT n.id, p.quota FROM name m JOIN node p ON p.space = m.space + 0 AND p.id = m.parent"
                " JOIN node n ON n.space = m.space + 0 AND n.id = m.node"
                " WHERE m.space = ? AND m.parent <> ? AND n.quota <> p.quota AND n.quota <> n.id AND n.nlink = 1"
            ),
            (f.space, STAGING_ID),
        )
        for id, quota in strays:
            yield "UPDATE node SET quota = ? WHERE space = ? AND id = ?", (quota, f.space, id)
        if not strays:
            break
    rows = yield (
        (
            "SELECT q.node, p.quota FROM quota q JOIN node n ON n.space = q.space + 0 AND n.id = q.node"
            " JOIN node p ON p.space = q.space + 0 AND p.id = n.parent"
            " WHERE q.space = ? AND n.nlink > 0 AND q.above <> p.quota"
        ),
        (f.space,),
    )
    for id, quota in rows:
        yield "UPDATE quota SET above = ? WHERE space = ? AND node = ?", (quota, f.space, id)


READS = frozenset((quotas,))
