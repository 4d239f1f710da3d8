"""Looking at a whole tree, whatever keeps it."""

from typing import Any

from vosfs.metadata.node import CONTAINER, ROOT_ID
from vosfs.metadata.store import Store


async def listing(store: Store, parent: int, page: int = 100) -> list[tuple[bytes, Any]]:
    """All children of a container, by pages."""
    result: list[tuple[bytes, Any]] = []
    while True:
        found = await store.children(parent, result[-1][0] if result else b"", page)
        result += found
        if len(found) < page:
            return result


async def dump(store: Store) -> dict[tuple[bytes, ...], tuple[Any, ...]]:
    """Everything that can be seen from the root, without times; ids are numbered in the order of the walk."""
    numbers: dict[int, int] = {}
    result: dict[tuple[bytes, ...], tuple[Any, ...]] = {}
    todo = [((), await store.get(ROOT_ID))]
    while todo:
        path, node = todo.pop()
        number = numbers.setdefault(node.id, len(numbers))
        extents: list[Any] = []
        if node.kind == CONTAINER:
            todo += [((*path, name), child) for name, child in reversed(await listing(store, node.id))]
        else:
            extents = (await store.open(node.id)).extents
        fields = [getattr(node, f) for f in node.__struct_fields__ if f != "id" and not f.endswith("_ns")]
        result[path] = (number, *fields, extents, await store.properties(node.id))
    return result
