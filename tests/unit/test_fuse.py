"""What the kernel is told, without a kernel."""

import errno
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from tests.unit.rigs import file_system
from vosfs.fuse import Operations
from vosfs.libfuse import pyfuse3
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import DATA, ROOT_ID, Change, NewNode

ROOT = SimpleNamespace(uid=0, gid=0, umask=0o22)


Asked = Callable[[Operations, int], Awaitable[object]]


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda operations, inode: operations.getattr(inode, ROOT), True),
        (lambda operations, inode: operations.readlink(inode, ROOT), True),
        (lambda operations, inode: operations.open(inode, os.O_RDONLY, ROOT), False),
        (lambda operations, inode: operations.getxattr(inode, b"user.a", ROOT), False),
        (lambda operations, inode: operations.listxattr(inode, ROOT), False),
        (lambda operations, inode: operations.setxattr(inode, b"user.a", b"b", ROOT), False),
    ],
)
async def test_an_inode_that_was_replaced_elsewhere_is_stale_and_its_name_looked_up_again(
    tmp_path: Path, ask: Asked, told: bool
) -> None:
    """``told``: that the old node changed; of the name nothing was heard yet."""
    store = MemoryStore()
    tree = CachedTree(store)
    tree.live = True
    async with trio.open_nursery() as nursery:
        operations = Operations(file_system(tree, tmp_path, nursery), 0, 0, {})
        old = await tree.create(ROOT_ID, b"f", NewNode(DATA, 0o644))
        new = await store.create(ROOT_ID, b"new", NewNode(DATA, 0o600))
        await store.rename(ROOT_ID, b"new", ROOT_ID, b"f", "")
        assert await store.purge(10) == 1
        if told:
            tree.invalidate(Change(old.id, 0, b"", "there"))
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await ask(operations, old.id)
        assert caught.value.errno == errno.ESTALE
        assert (await operations.lookup(ROOT_ID, b"f", ROOT)).st_ino == new.id
        nursery.cancel_scope.cancel()
