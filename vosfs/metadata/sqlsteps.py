"""Many changes in one transaction (``Tree.apply``), with each row read and written once.

A mount that extracts an archive sends create, commit and set_attributes of each file, hundreds in a message.  Done one
by one, each reads and writes the node's row and the container's: nine statements a file.  Here a node that the batch
itself makes is a draft until something else may look at its row, and what names do to a container's times is written
at the end: five.  PostgreSQL, which had two round trips a file, has one for every ``BATCH_MAX`` statements.

The checks are those of ``sql.py``, and so is the result, but for quotas, which judge what the batch leaves of its drafts
and not what they had in between.  If a step fails, the whole transaction does, and the caller goes on step by step.
"""

from collections.abc import Callable
from typing import Any

import msgspec

from vosfs.errors import DuplicateNode
from vosfs.metadata import charges, sql
from vosfs.metadata.node import CONTAINER, Attributes, Blob, Content, Extent, NewNode, Node, made, new_id
from vosfs.metadata.sql import Frame, Transaction
from vosfs.metadata.store import Outcome, Step

replace = msgspec.structs.replace


class _Draft:
    """A node that has a name, and no row yet."""

    __slots__ = ("node", "parent", "extents")

    def __init__(self, node: Node, parent: int) -> None:
        self.node = node
        self.parent = parent
        self.extents: list[Extent] = []


class _Batch(sql.Held):
    """What was done and is not written."""

    def __init__(self) -> None:
        super().__init__()
        self.drafts: dict[int, _Draft] = {}
        self.left_over: set[str] = set()
        """Blobs that lost their extents in a draft; another draft may have some."""
        self.charged: dict[int, int] = {}
        """Bytes of drafts, by quota."""

    def touch(self, id: int, now_ns: int, containers: int) -> None:
        draft = self.drafts.get(id)
        if draft is None:
            super().touch(id, now_ns, containers)
        else:
            node = draft.node
            draft.node = replace(node, mtime_ns=now_ns, ctime_ns=now_ns, containers=node.containers + containers)

    def write(self, f: Frame) -> Transaction[None]:
        """Write the drafts: what comes next may look for them."""
        if not self.drafts:
            return
        for id, draft in self.drafts.items():
            yield sql.INSERT_NODE, (f.space, *msgspec.structs.astuple(draft.node), draft.parent)
            for extent in draft.extents:
                yield from sql.write_extent(f, id, extent)
        yield from sql.release(f, self.left_over)
        # After the nodes, as everywhere: others under the same quotas wait from here on.
        for quota, length in sorted(self.charged.items()):
            yield from charges.charge(f.space, quota, length)
        self.drafts, self.left_over, self.charged = {}, set(), {}

    def flush(self, f: Frame) -> Transaction[None]:
        """Write everything."""
        yield from self.write(f)
        yield from self.settle(f)
        yield from sql.write_log(f, self.log)
        self.log = []


def apply(f: Frame, steps: list[Step]) -> Transaction[list[Outcome]]:
    """Make changes in their order; the outcome of each.  What the first that cannot be made raises."""
    batch = _Batch()
    outcomes: list[Outcome] = []
    for step in steps:
        outcome = yield from _apply(Frame(f.space, f.caller, step.at_ns, batch), batch, step)
        outcomes.append(outcome)
    yield from batch.flush(f)
    return outcomes


def _apply(f: Frame, batch: _Batch, step: Step) -> Transaction[Outcome]:
    operation, arguments = step.operation, step.arguments
    chosen = {key: value for key, value in (("id", step.id), ("version", step.version)) if value}
    if operation == "create" or (arguments[0] in batch.drafts and operation in _DRAFTED):
        return (yield from _DRAFTED[operation](f, batch, *arguments, **chosen))
    yield from batch.write(f)
    if operation == "set_attributes" or (operation == "remove" and arguments[2] != "leaf"):
        # It may be about a container, which must not be held for what it was.
        yield from batch.settle(f)
    return (yield from _WRITTEN[operation](f, *arguments, **chosen))


def _create(f: Frame, batch: _Batch, parent: int, name: bytes, new: NewNode, id: int = 0) -> Transaction[Node]:
    draft = batch.drafts.get(parent)
    if draft is None:
        container = yield from sql.writable(f, parent)
    else:
        container = draft.node
        sql.check_writable(f, parent, container)
    node = made(new, id or new_id(), f.now_ns, container)
    if node.id in batch.drafts:
        raise DuplicateNode(f"node {node.id}")
    yield sql.INSERT_NAME, (f.space, parent, name, node.id)
    batch.drafts[node.id] = _Draft(node, parent)
    yield from sql.describe(f, node.id, new.properties)
    yield from sql.touch(f, parent, int(new.kind == CONTAINER))
    yield from sql.log_change(f, node.id, parent, name)
    return node


def _commit(
    f: Frame, batch: _Batch, id: int, base_version: int | None, length: int, changes: list[Extent],
    blobs: list[Blob], mtime_ns: int | None, md5: str, atime_ns: int | None = None, version: int = 0,
) -> Transaction[Content]:  # fmt: skip
    draft = batch.drafts[id]
    node, old = draft.node, draft.extents
    sql.check_saved(f, node, base_version)
    done = sql.saved(f, node, old, length, changes, blobs, mtime_ns, md5, atime_ns, version)
    for blob in blobs:
        yield from sql.record(f, blob)
    batch.left_over |= sql.left_over(old, blobs, done.extents)
    if node.quota:
        batch.charged[node.quota] = batch.charged.get(node.quota, 0) + length - node.length
    draft.node, draft.extents = done.node, done.extents
    yield from sql.log_change(f, id)
    return done


def _set_attributes(f: Frame, batch: _Batch, id: int, change: Attributes) -> Transaction[Node]:
    draft = batch.drafts[id]
    draft.node = replace(draft.node, **sql.new_attributes(f, draft.node, change))
    yield from sql.log_change(f, id)
    return draft.node


_DRAFTED: dict[str, Callable[..., Transaction[Any]]] = {
    "create": _create, "commit": _commit, "set_attributes": _set_attributes,
}  # fmt: skip
"""Of nodes that the batch makes."""
_WRITTEN: dict[str, Callable[..., Transaction[Any]]] = {
    "link": sql.link, "remove": sql.remove, "rename": sql.rename, "set_attributes": sql.set_attributes,
    "commit": sql.commit,
}  # fmt: skip
