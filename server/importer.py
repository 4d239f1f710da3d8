"""``vosfsd import``: register a directory tree that exists already, read-only, without copying a byte.

Every file becomes a data node over a blob that is a symbolic link to it.  The nodes are immutable, so nothing in
the space can change or delete them.  To undo it, the owner sets the container's property ``core#immutable`` to false
and deletes it: that takes the links away and leaves the files alone.
"""

import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vosfs.backends.posix import PosixBackend
from vosfs.backends.roots import Roots
from vosfs.errors import DuplicateNode, QuietError
from vosfs.metadata.node import CONTAINER, DATA, LINK, Attributes, Extent, NewNode
from vosfs.metadata.sqlstore import SqlStore
from vosfs.uri import RESERVED_NAMES, check_name
from vosfs.uri import Path as NodePath

PROGRESS_EVERY_S = 0.5


class Progress:
    """A line on a terminal that counts; silent elsewhere."""

    def __init__(self) -> None:
        self.nodes = self.bytes = self.skipped = 0
        self._next = 0.0

    def show(self, last: bool = False) -> None:
        if sys.stderr.isatty() and (last or time.monotonic() > self._next):
            self._next = time.monotonic() + PROGRESS_EVERY_S
            end = "\n" if last else ""
            print(f"\r{self.nodes} nodes, {self.bytes / 2**30:.2f} GiB", end=end, file=sys.stderr, flush=True)


async def import_tree(
    store: SqlStore,
    backend: PosixBackend | Roots,
    source: Path,
    path: NodePath,
    owner: str,
    warn: Callable[[str], None],
) -> Progress:
    """Register ``source`` as the new container ``path``.  QuietError if it exists or its parent does not."""
    if not path:
        raise QuietError("name a container to make, such as /archive")
    chain, _ = await store.trace(path[:-1])
    if len(chain) != len(path) or chain[-1].kind != CONTAINER:
        raise QuietError("the container's parent does not exist in the space")
    progress = Progress()
    status = os.stat(source)
    try:
        top = await store.create(chain[-1].id, check_name(path[-1]), _new(CONTAINER, status, owner))
    except DuplicateNode:
        raise QuietError("the container exists already: remove it, or name another") from None
    try:
        await _import_directory(store, backend, source, top.id, owner, warn, progress)
        await store.set_attributes(top.id, Attributes(immutable=1, mtime_ns=status.st_mtime_ns))
        await store.sync()
    except BaseException:
        await store.remove(chain[-1].id, path[-1], "tree")
        raise
    progress.show(last=True)
    return progress


def _new(kind: str, status: os.stat_result, owner: str, target: bytes = b"") -> NewNode:
    mode = stat.S_IMODE(status.st_mode) & ~0o222 if kind != LINK else 0o777
    return NewNode(kind, mode, status.st_uid, status.st_gid, owner, target, mtime_ns=status.st_mtime_ns)


async def _import_directory(
    store: SqlStore, backend: PosixBackend | Roots, source: Path, container: int, owner: str,
    warn: Callable[[str], None], progress: Progress,
) -> None:  # fmt: skip
    with os.scandir(os.fsencode(source)) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        status = entry.stat(follow_symlinks=False)
        path = Path(os.fsdecode(entry.path))
        progress.nodes += 1
        progress.show()
        if entry.name in RESERVED_NAMES:
            progress.skipped += 1
            warn(f"{path}: its name is reserved by VOSpace; left out")
            continue
        if stat.S_ISDIR(status.st_mode):
            node = await store.create(container, entry.name, _new(CONTAINER, status, owner))
            await _import_directory(store, backend, path, node.id, owner, warn, progress)
        elif stat.S_ISLNK(status.st_mode):
            node = await store.create(
                container, entry.name, _new(LINK, status, owner, os.fsencode(os.readlink(entry.path)))
            )
        elif stat.S_ISREG(status.st_mode):
            node = await store.create(container, entry.name, _new(DATA, status, owner))
            if status.st_size:
                blob = backend.register(path)
                await store.commit(
                    node.id, None, blob.length, [Extent(0, blob.length, blob.locator)], [blob], status.st_mtime_ns
                )
            progress.bytes += status.st_size
        else:
            progress.skipped += 1
            warn(f"{path}: neither file, directory nor link; left out")
            continue
        await store.set_attributes(node.id, Attributes(immutable=1, mtime_ns=status.st_mtime_ns))
