"""Going through a tree, page by page, so that others get their turn and memory stays flat."""

from collections.abc import AsyncIterator, Callable

import trio

from server.access import Subject
from vosfs.metadata.node import CONTAINER, Node
from vosfs.metadata.store import PAGE_NODES_MAX, READ, Store
from vosfs.uri import Path

DEPTH_MAX = 2048
"""Half of PATH_MAX: no path in the space is deeper."""


async def below(
    store: Store, top: Node, subject: Subject, left_out: Callable[[Node], None] = lambda node: None
) -> AsyncIterator[tuple[Path, Node]]:
    """Every node below ``top``, parents first, with its path from there.

    What the subject may not read, and whatever is below that, is left out; ``left_out`` is told.
    """
    todo: list[tuple[Path, int, bytes]] = [((), top.id, b"")]
    while todo:
        path, id, after = todo.pop()
        page = await store.children(id, after, PAGE_NODES_MAX)
        if len(page) == PAGE_NODES_MAX:
            todo.append((path, id, page[-1][0]))
        for name, node in page:
            if not subject.may(node, READ):
                left_out(node)
                continue
            yield (*path, name), node
            if node.kind == CONTAINER and len(path) < DEPTH_MAX:
                todo.append(((*path, name), node.id, b""))
        await trio.lowlevel.checkpoint()
