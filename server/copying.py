"""Copies of nodes and trees (copyNode, VOSpace 2.1 section 6.2.3).

Bytes are shared: a blob never changes, so a copy is a second list of extents.  A tree is copied page by page under
the staging container and then moved to its place in one step; failure and abort leave nothing.
"""

from collections.abc import Awaitable, Callable

import trio

from server.access import Subject
from vosfs.metadata.node import CONTAINER, STAGING_ID, Node
from vosfs.metadata.store import Anyone, Store

PAGE_NODES = 200
"""Children copied in one transaction: 10 ms of SQLite in the event loop."""


def stager(subject: Subject) -> Anyone:
    """The subject as a caller who may also use the staging container."""

    def permit(node: Node, right: str) -> None:
        if node.id != STAGING_ID:
            subject.permit(node, right)

    return Anyone("", permit)


async def copy(
    store: Store, subject: Subject, node: Node, parent: Node, name: bytes, job: str,
    confirm: Callable[[int], Awaitable[None]],
) -> None:  # fmt: skip
    """Copy ``node`` and all below it to ``name`` in ``parent``; ``confirm`` is asked before the new node shows.

    DuplicateNode, PermissionDenied, NodeNotFound.
    """
    caller, staged = stager(subject), job.encode()
    try:
        copied = await store.copy_node(node.id, staged, subject.user, caller, parent.quota)
        todo = [(node.id, copied.id)] if node.kind == CONTAINER else []
        while todo:
            source, target = todo.pop()
            after: bytes | None = b""
            while after is not None:
                page = await store.copy_children(source, target, after, PAGE_NODES, subject.user, caller)
                after = page.after
                todo += page.containers
                await trio.lowlevel.checkpoint()
        await confirm(copied.id)
        await store.rename(STAGING_ID, staged, parent.id, name, "keep", caller)
        await store.sync()
    except BaseException:
        with trio.CancelScope(shield=True):
            await store.drop_staged(staged)
        raise
