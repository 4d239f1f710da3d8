"""The file system: what POSIX operations mean on a tree of nodes and their bytes.  Knows no FUSE and no network.

Inode numbers are node ids, so nothing has to be remembered per inode but what makes answers fast.  Attributes come
from the cached tree, and from the open file where it has unsaved bytes.
"""

import logging
import os
import stat
import time
from collections import OrderedDict
from collections.abc import Callable

import msgspec
import trio

from vosfs.cache.blocks import BlockCache, Buffer
from vosfs.cache.file import STREAM_BYTES, CachedFile, FileTable, changed
from vosfs.cache.readahead import ReadAhead
from vosfs.errors import (
    DuplicateNode,
    Immutable,
    InvalidArgument,
    IsContainer,
    NameTooLong,
    NodeNotFound,
    NotOnline,
    OperationNotSupported,
    PropertyNotFound,
    Stale,
    StorageFull,
    TooLarge,
    VOSpaceError,
)
from vosfs.listing import Listings
from vosfs.metadata import content, xattr
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.content import LENGTH_MAX
from vosfs.metadata.messages import Commit, Create, Mutation, Rename
from vosfs.metadata.node import ANYTHING, CONTAINER, DATA, LINK, Attributes, Change, Extent, NewNode, Node, Usage
from vosfs.metadata.store import check_guard
from vosfs.opening import Openings
from vosfs.staging import Awaited
from vosfs.standing import StandingHandles
from vosfs.uri import NAME_BYTES_MAX, RESERVED_NAMES, check_name

log = logging.getLogger(__name__)

DEADLINE_S = 30.0
"""Default for every operation that waits for the service."""
PREFETCHES_MAX = 32
"""Read-ahead runs at once, of all files; what they fetch at once the block cache limits."""

TIME_NS_MAX = (1 << 63) - 1
"""Times are kept as 64 bits."""
WHOLE_BYTES_MAX = 16 << 10
"""Of a short file, all of which the kernel gets with its open(2): what comes along with a look-up too."""
GONE_MAX = 1_000
"""Nodes without a name whose attributes are kept."""
SHARED_BYTES_MIN = 1 << 20
"""Copies of ranges shorter than this are read and written."""
PIECES_MAX = 1000
"""Of a range that is copied: as the list of a whole file's extents is, unless it is written all over."""


SET_ID = stat.S_ISUID | stat.S_ISGID


def without_set_id(mode: int) -> int:
    """A mode after a write or chown (write(2), chown(2)): set-group-ID without group execution is not one."""
    return mode & ~(SET_ID if mode & stat.S_IXGRP else stat.S_ISUID)


class FileHandle:
    """An open file description."""

    __slots__ = ("file", "readahead", "writable", "privileged", "losses")

    def __init__(self, file: CachedFile, writable: bool, privileged: bool) -> None:
        self.file = file
        self.readahead = ReadAhead()
        self.writable = writable
        """Whether it may change the bytes, be it by O_TRUNC alone; counted in ``file.writers``."""
        file.writers += writable
        self.privileged = privileged
        """Whether what it writes leaves set-ID bits alone."""
        self.losses = file.losses
        """How often unsaved bytes had been lost when this was opened: once more, and it may have lost some too."""

    def check(self) -> None:
        """Stale if this handle may have written bytes that were then lost."""
        if self.writable and self.losses != self.file.losses:
            raise Stale("somebody else changed the file first; what was written here was not saved: see vosfs recover")


class FileSystem:
    """One space as a POSIX tree.  Raises VOSpaceError."""

    def __init__(
        self, tree: CachedTree, blocks: BlockCache, files: FileTable, nursery: trio.Nursery,
        read_only: bool = False,
    ) -> None:  # fmt: skip
        # Dependencies
        self.tree = tree
        self.blocks = blocks
        self.files = files
        self._nursery = nursery
        self.openings = Openings(tree, files, nursery)
        self.listings = Listings(tree, files, self.openings, nursery)
        # Constants
        self._read_only = read_only
        # Mutable state
        self._handles: dict[int, FileHandle] = {}
        self._gone: OrderedDict[int, Node] = OrderedDict()
        """Nodes without bytes here whose last name this mount took away, until the kernel forgets them: a directory or
        pipe may still be open."""
        self._next_handle = 1
        self.standing = StandingHandles(self._end_handle)
        files.on_full = self.standing.end_all
        tree.on_remembered = self.standing.seen
        self._prefetching = 0
        self.awaited = Awaited(tree, nursery)
        self.on_invalid: Callable[[Change], None] = lambda change: None
        """Tells the kernel; set by the composition root."""

    # -- names -----------------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Node:
        """The node under a name."""
        self._not_too_long(name)
        if self.tree.peek_name(parent, name) is None:
            self.listings.looked_up(parent, name)
        node = await self.tree.lookup(parent, name)
        file = self.files.get(node.id)
        return file.attributes() if file is not None and file.changed else node

    def lookup_now(self, parent: int, name: bytes) -> Node | None:
        """The same without waiting: None if that is not possible.  NodeNotFound if it is known not to exist."""
        id = self.tree.peek_name(parent, name)
        if id is None or len(name) > NAME_BYTES_MAX:
            return None
        if id == 0:
            raise NodeNotFound("")
        node = self.tree.peek(id)
        if node is not None:
            file = self.files.get(id)
            if file is not None and file.changed:
                return file.attributes()
        return node

    async def attributes(self, id: int) -> Node:
        """An inode's attributes, unsaved changes included."""
        file = self.files.get(id)
        if file is not None and (file.changed or file.unlinked):
            return file.attributes()
        try:
            return self._gone.get(id) or await self.tree.get(id)
        except NodeNotFound:
            # Removed or replaced elsewhere, and purged: who has it open goes on reading.
            if file is None or not file.handles:
                raise
            return msgspec.structs.replace(file.attributes(), nlink=0)

    def _writable(self) -> None:
        if self._read_only:
            raise Immutable("the mount is read-only")

    @staticmethod
    def _name(name: bytes) -> bytes:
        if name in RESERVED_NAMES:
            raise InvalidArgument(f"{name.decode()} is reserved by VOSpace")
        return check_name(name)

    @staticmethod
    def _not_too_long(name: bytes) -> None:
        # Of a name that is looked for: it cannot be there, but POSIX wants to hear why.
        if len(name) > NAME_BYTES_MAX:
            raise NameTooLong(f"{name[:40]!r}... is longer than {NAME_BYTES_MAX} bytes")

    async def _new(self, parent: int, new: NewNode) -> NewNode:
        """A new node as its container wants it: under setgid the group is the container's (mkdir(2), open(2))."""
        container = self.tree.peek(parent) or await self.tree.get(parent)
        new.mode &= 0o7777
        if container.mode & stat.S_ISGID:
            new.gid = container.gid
            if new.kind == CONTAINER:
                new.mode |= stat.S_ISGID
        return new

    async def make_container(self, parent: int, name: bytes, mode: int, uid: int, gid: int) -> Node:
        """mkdir(2)."""
        self._writable()
        return await self.tree.create(
            parent, self._name(name), await self._new(parent, NewNode(CONTAINER, mode, uid, gid))
        )

    async def make_link(self, parent: int, name: bytes, target: bytes, uid: int, gid: int) -> Node:
        """symlink(2)."""
        self._writable()
        new = await self._new(parent, NewNode(LINK, 0o777, uid, gid, target=target))
        return await self.tree.create(parent, self._name(name), new)

    async def make_leaf(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, kind: str = DATA, device: int = 0
    ) -> Node:
        """mknod(2)."""
        self._writable()
        new = await self._new(parent, NewNode(kind, mode, uid, gid, device=device))
        return await self.tree.create(parent, self._name(name), new)

    async def link(self, id: int, parent: int, name: bytes) -> Node:
        """link(2)."""
        self._writable()
        node = await self.tree.link(id, parent, self._name(name))
        file = self.files.get(id)
        if file is not None:
            file.renew(node)
        return await self.attributes(id)

    async def read_link(self, id: int) -> bytes:
        """readlink(2)."""
        node = await self.tree.get(id)
        if node.kind != LINK:
            raise InvalidArgument("not a symbolic link")
        return node.target

    async def unlink(self, parent: int, name: bytes) -> None:
        """unlink(2).  An open file keeps its bytes until it is closed."""
        self._writable()
        self._not_too_long(name)
        self._dropped(await self.tree.remove(parent, name, "leaf"))

    def _dropped(self, node: Node) -> None:
        """A node lost a name."""
        self.standing.end(node.id)
        self.files.unlinked(node)
        if node.nlink == 0 and self.files.get(node.id) is None:
            self._gone[node.id] = node
            if len(self._gone) > GONE_MAX:
                self._gone.popitem(last=False)

    def forget(self, id: int) -> None:
        """The kernel has no use for an inode any more."""
        self._gone.pop(id, None)

    async def remove_container(self, parent: int, name: bytes) -> None:
        """rmdir(2)."""
        self._writable()
        self._not_too_long(name)
        self._dropped(await self.tree.remove(parent, name, "empty"))

    async def rename(self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str) -> None:
        """rename(2)."""
        self._writable()
        self._not_too_long(name)
        gone = await self.tree.rename(parent, name, to_parent, self._name(to_name), flag)
        if gone is not None:
            self._dropped(gone)

    # -- attributes --------------------------------------------------------------------------------------------------

    async def set_attributes(
        self, id: int, change: Attributes, length: int | None = None, privileged: bool = True
    ) -> Node:
        """chmod(2), chown(2), utimensat(2), truncate(2) in one."""
        self._writable()
        for at_ns in (change.atime_ns, change.mtime_ns):
            # Also of a file whose times only go out with its bytes: they could not go any more.
            if at_ns is not None and not -TIME_NS_MAX <= at_ns <= TIME_NS_MAX:
                raise InvalidArgument("a time before 1678 or after 2262")
        if length is not None:
            await self._truncate(id, length, change)
        # Nothing at all: only chown(2) of neither owner nor group comes so, and it clears the bits as well.
        owned = (change.uid, change.gid) != (None, None) or (length is None and change == Attributes())
        if change.mode is None and (owned or (length is not None and not privileged)):
            node = await self.attributes(id)
            if node.kind != CONTAINER and node.mode & SET_ID:
                change.mode = without_set_id(node.mode)
        if id in self._gone:
            self._gone[id] = changed(self._gone[id], change)
            return self._gone[id]
        file = self.files.get(id)
        if file is not None and file.unlinked:
            file.set_attributes(change)
            return file.attributes()
        if file is not None and file.handles and file.changed and (change.atime_ns, change.mtime_ns) != (None, None):
            # They go out with the bytes at the close: cp and tar would pay a request a file for them.
            file.set_times(change.atime_ns, change.mtime_ns)
            change.mtime_ns = change.atime_ns = None
        if change != Attributes():
            node = await self.tree.set_attributes(id, change)
            if file is not None:
                file.renew(node)
        return await self.attributes(id)

    async def _truncate(self, id: int, length: int, change: Attributes) -> None:
        if length > LENGTH_MAX:
            raise TooLarge(f"{length} bytes")
        self.standing.end(id)
        file = await self.files.open(id)
        try:
            if file.length == length and not file.changed:
                # Its bytes stay as they are; only the time moves.
                change.mtime_ns = time.time_ns() if change.mtime_ns is None else change.mtime_ns
                return
            file.truncate(length)
            if not file.writers:
                # There will be no close to commit it.
                try:
                    await file.sync(False)
                except VOSpaceError as exc:
                    if file.changed and not file.writers:
                        self._give_up(file, str(exc))
                    raise
        finally:
            self.files.release(file)

    async def usage(self) -> Usage:
        """statfs(2)."""
        return await self.tree.usage()

    async def get_property(self, id: int, name: str) -> bytes:
        """getxattr(2).  PropertyNotFound."""
        if not xattr.known(name):
            raise PropertyNotFound(name)
        properties = await self.tree.properties(id)
        uri = xattr.uri_of(name)
        if uri not in properties:
            raise PropertyNotFound(name)
        return xattr.value_of(properties[uri])

    async def set_property(self, id: int, name: str, value: bytes, flags: int = 0) -> None:
        """setxattr(2), with XATTR_CREATE and XATTR_REPLACE."""
        self._writable()
        uri = xattr.uri_of(name)
        if flags:
            present = uri in await self.tree.properties(id)
            if flags & os.XATTR_CREATE and present:
                raise DuplicateNode(name)
            if flags & os.XATTR_REPLACE and not present:
                raise PropertyNotFound(name)
        await self.tree.set_properties(id, {uri: xattr.text_of(value)})

    async def remove_property(self, id: int, name: str) -> None:
        """removexattr(2).  PropertyNotFound."""
        self._writable()
        uri = xattr.uri_of(name)
        if uri not in await self.tree.properties(id):
            raise PropertyNotFound(name)
        await self.tree.set_properties(id, {uri: None})

    async def property_names(self, id: int) -> list[str]:
        """listxattr(2)."""
        return [xattr.name_of(uri) for uri in await self.tree.properties(id)]

    # -- files ---------------------------------------------------------------------------------------------------------

    async def open(self, id: int, flags: int, privileged: bool = True) -> tuple[int, bool]:
        """open(2): a handle, and whether the kernel may keep the pages it has.

        NotOnline for reading bytes that have to come from a slow storage: they were asked for.
        """
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        if writable or flags & os.O_TRUNC:
            self._writable()
        node = self.tree.peek(id)
        if node is not None and node.kind == CONTAINER:
            raise IsContainer("a container")
        if writable and node is not None:
            check_guard(node, "the node")
        if not writable:
            self.openings.opened(id)
        file = await self.files.open(id)
        if flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_TRUNC:
            try:
                await self.awaited.check(file)
            except BaseException:
                self.files.release(file)
                raise
        if writable or flags & os.O_TRUNC:
            # Behind what this waited for, where one may have come to stand; none will while this counts as a handle.
            self.standing.end(id)
        keep = file.kernel_version == file.node.version
        file.kernel_version = file.node.version
        if flags & os.O_TRUNC:
            file.truncate(0)
            keep = False
            if not privileged:
                await self._clear_set_id(file)
        handle = FileHandle(file, writable or bool(flags & os.O_TRUNC), privileged)
        if not handle.writable and (file.head or file.read_now(0, 1) is None):
            # Whoever opens a file reads its beginning.
            file.expect(0, 1)
        number = self._new_handle(handle)
        if not handle.writable and self.tree.live and self.openings.bytes_too and self.files.current(file):
            # A change that came while this was asked for is in the answer or not: the tree knows.
            self.standing.offer(file, number)
        return number, keep

    async def create(
        self, parent: int, name: bytes, mode: int, uid: int, gid: int, flags: int, privileged: bool = True
    ) -> tuple[int, Node]:
        """open(2) with O_CREAT of a name that did not exist: a handle and the new node."""
        self._writable()
        try:
            node = await self.make_leaf(parent, name, mode, uid, gid)
        except DuplicateNode:
            if flags & os.O_EXCL:
                raise
            node = await self.tree.lookup(parent, name)
            handle, _ = await self.open(node.id, flags, privileged)
            return handle, await self.attributes(node.id)
        file = self.files.made(node)
        file.kernel_version = node.version
        return self._new_handle(FileHandle(file, True, privileged)), node

    def _new_handle(self, handle: FileHandle) -> int:
        number = self._next_handle
        self._next_handle += 1
        self._handles[number] = handle
        return number

    def _handle(self, number: int) -> FileHandle:
        try:
            return self._handles[number]
        except KeyError:
            raise Stale(f"handle {number}") from None

    def whole(self, number: int) -> Buffer | None:
        """All bytes of a file that was just opened to be read, if the kernel may as well have them at once.

        Only while nobody else has it open: the kernel locks a page that it asks for, and who gave it that page unasked would
        wait for its own answer.
        """
        handle = self._handles[number]
        file = handle.file
        if handle.writable or file.handles > 1 or file.changed or not file.fresh or not self.tree.live:
            return None
        return file.read_now(0, file.length) if 0 < file.length <= WHOLE_BYTES_MAX else None

    def read_now(self, number: int, start: int, stop: int) -> Buffer | None:
        """Bytes of an open file if they are here: no waiting, no thread."""
        handle = self._handles.get(number)
        if handle is None:
            return None
        data = handle.file.read_now(start, stop)
        if data:
            self._read_ahead(handle, start, stop)
        return data

    async def read(self, number: int, start: int, stop: int) -> Buffer:
        """Bytes of an open file; fewer at its end.  NotOnline if they went to a slow storage since."""
        handle = self._handle(number)
        self._read_ahead(handle, start, stop)
        try:
            return await self._read(handle, start, stop)
        except NotOnline:
            self.awaited.wanted(handle.file.node.id)
            raise

    async def _read(self, handle: FileHandle, start: int, stop: int) -> Buffer:
        try:
            return await handle.file.read(start, stop)
        except (Stale, NotOnline):
            # A lease ended, after a long suspension say, or the bytes were moved to a faster storage and nobody was told:
            # ask for the content again, once.
            file = handle.file
            found = await self.tree.open(file.node.id)
            if found.node.version != file.node.version:
                raise
            if file.changed:
                file.renew_leases(found)
            else:
                file.rebase(found)
            return await file.read(start, stop)

    def _read_ahead(self, handle: FileHandle, start: int, stop: int) -> None:
        file = handle.file
        plan = handle.readahead.plan(start, stop, file.length, file.into_segment if self.blocks.fast else None)
        if plan is not None and self._prefetching < PREFETCHES_MAX:
            self._prefetching += 1
            self._nursery.start_soon(self._prefetch, file, *plan)

    async def _prefetch(self, file: CachedFile, start: int, stop: int) -> None:
        try:
            await file.prefetch(start, stop)
        except (VOSpaceError, OSError) as exc:
            log.debug("read-ahead of %d failed: %s", file.node.id, exc)
        finally:
            self._prefetching -= 1

    async def write(self, number: int, start: int, data: bytes) -> int:
        """Write to an open file; waits only when unsaved bytes are at their limit."""
        file = await self._changing(number, start + len(data))
        file.write(start, data)
        if file.dirty_bytes >= STREAM_BYTES:
            if self.files.dirty_bytes > self.files.limit_bytes // 2:
                await file.upload(wait=True)
            else:
                self._nursery.start_soon(self._upload, file)
        return len(data)

    async def punch(self, number: int, start: int, stop: int, keep_size: bool) -> None:
        """fallocate(2) of a hole, or of zeros, which are a hole too; unless ``keep_size``, the file reaches ``stop``."""
        file = await self._changing(number, stop)
        if not keep_size and stop > file.length:
            file.truncate(stop)
        file.punch(start, stop)

    async def reserve(self, number: int, stop: int, keep_size: bool) -> None:
        """fallocate(2) of space: the file reaches ``stop``.

        The space must be there now, as far as the service tells; nobody keeps it for this file, which no service can.
        """
        file = await self._changing(number, stop)
        if stop > file.length:
            usage = await self.usage()
            # Of no size at all is what nobody knows the size of: an object store, a service that does not tell.
            if usage.total_bytes and stop - file.length > usage.free_bytes:
                raise StorageFull(f"{stop - file.length} bytes more, and {usage.free_bytes} are free")
            if not keep_size and stop > file.length:
                file.truncate(stop)

    async def copy_range(self, number: int, start: int, to_number: int, to: int, length: int) -> int:
        """copy_file_range(2) of bytes that the service has: none of them moves; how many there were.

        OperationNotSupported where that cannot be, or is not worth a request: the kernel then reads and writes.
        """
        source, target = self._handle(number).file, self._handle(to_number).file
        stop = min(start + length, source.length)
        pieces = source.pieces(start, stop) if stop - start >= SHARED_BYTES_MIN else None
        alike = source is not target and source.node.storage == target.node.storage and not source.node.immutable
        if pieces is None or not alike or len(pieces) > PIECES_MAX or not self.files.shares:
            raise OperationNotSupported("copy_file_range")
        names = sorted(content.locators(pieces))
        try:
            receipts = dict(zip(names, await self.tree.share(names), strict=True))
        except VOSpaceError as exc:
            raise OperationNotSupported(f"copy_file_range: {exc}") from exc
        target = await self._changing(to_number, to + stop - start)
        for piece in pieces:
            at, end = to + piece.start - start, to + piece.stop - start
            if piece.data:
                target.write(at, piece.data)
            elif piece.locator:
                target.share(Extent(at, end, piece.locator, piece.offset), receipts[piece.locator])
            else:
                if end > target.length:
                    target.truncate(end)
                target.punch(at, end)
        return stop - start

    def seek(self, number: int, start: int, data: bool) -> int | None:
        """lseek(2) with SEEK_DATA or SEEK_HOLE; None for ENXIO."""
        return self._handle(number).file.seek(start, data)

    async def _changing(self, number: int, stop: int) -> CachedFile:
        """The file of a handle that is about to change bytes before ``stop``."""
        handle = self._handle(number)
        handle.check()
        if stop > LENGTH_MAX:
            raise TooLarge(f"{stop} bytes")
        if not handle.privileged:
            await self._clear_set_id(handle.file)
        return handle.file

    async def _clear_set_id(self, file: CachedFile) -> None:
        """Somebody without privileges changes the bytes: what ran as another user must not any more."""
        if file.node.mode & SET_ID or not file.fresh:
            node = await self.attributes(file.node.id)
            if (mode := without_set_id(node.mode)) != node.mode:
                await self.set_attributes(node.id, Attributes(mode=mode))

    async def _upload(self, file: CachedFile) -> None:
        try:
            await file.upload()
        except VOSpaceError as exc:
            # The bytes are dirty again, and the close will report what it meets.
            log.warning("early upload of %d failed: %s", file.node.id, exc)

    async def flush(self, number: int) -> None:
        """close(2): commit what was written; its error is the close's."""
        handle = self._handle(number)
        handle.check()
        if handle.writable and handle.file.changed:
            await self._save(handle.file, False)

    async def sync(self, number: int) -> None:
        """fsync(2): commit, and wait until it is durable."""
        handle = self._handle(number)
        handle.check()
        await self._save(handle.file, True)
        # What was acknowledged before may have been refused just now, on the way there.
        handle.check()

    async def _save(self, file: CachedFile, durable: bool) -> None:
        try:
            await file.sync(durable)
        except Stale as exc:
            # Its base is gone: no later attempt can succeed, and every writer must learn of it.
            self._give_up(file, str(exc))
            raise

    def _give_up(self, file: CachedFile, why: str) -> None:
        """What was not saved is kept, and who reads the file sees what the space has."""
        self.standing.end(file.node.id)
        file.discard(why)
        self.on_invalid(Change(file.node.id, 0, b"", ""))

    async def release(self, number: int) -> None:
        """The last reference to a handle went."""
        handle = self._handles.pop(number, None)
        if handle is None:
            return
        file = handle.file
        file.writers -= handle.writable
        if handle.writable and not file.writers and file.changed and not file.unlinked:
            # mmap'd pages may be written back after the last flush.
            try:
                await file.sync(False)
            except VOSpaceError as exc:
                log.warning("node %d is not saved: %s", file.node.id, exc)
                if file.changed and not file.writers:
                    # Nobody is left to try again, and whoever reads it is to see what the space has.
                    self._give_up(file, "the service did not take it")
        self.files.release(file)
        self.blocks.make_spare()

    def _end_handle(self, number: int) -> None:
        """Release a handle that cannot have written; whoever asks for room asks for this too."""
        self.files.let_go(self._handles.pop(number).file)

    async def renew_leases(self) -> None:
        """Keep what is open readable; what nobody has open is asked for again."""
        self.standing.end_all()
        await self.files.renew_leases()

    # -- directories ---------------------------------------------------------------------------------------------------

    async def sync_directory(self) -> None:
        """fsync(2) of a directory: all names are durable."""
        await self.tree.sync()

    # -- changes elsewhere ---------------------------------------------------------------------------------------------

    def changed_elsewhere(self, change: Change) -> None:
        """Apply one row of the change feed, and tell the kernel."""
        self.tree.invalidate(change)
        if change.node == ANYTHING:
            self.standing.end_all()
            return
        self.standing.end(change.node)
        self.files.changed_elsewhere(change.node)
        self.on_invalid(change)

    def distrust(self, forget: bool) -> None:
        """Nobody tells of changes any more, or some were missed: the kernel is not to keep listings.

        ``forget``: nor is this tree to keep anything.
        """
        self.standing.end_all()
        listed = self.tree.containers()
        if forget:
            self.tree.forget_all()
        for id in listed:
            self.on_invalid(Change(id, 0, b"", ""))

    def lost(self, request: Mutation, error: VOSpaceError) -> None:
        """The service refused a change that was acknowledged to a program."""
        if isinstance(request, (Commit, Create)):
            self.standing.end(request.id)
            self.files.lost(request.id, request if isinstance(request, Commit) else None, str(error))
        self.tree.lost(request)
        names = [(getattr(request, "parent", 0), getattr(request, "name", b""))]
        if isinstance(request, Rename):
            names.append((request.to_parent, request.to_name))
        for parent, name in names:
            self.on_invalid(Change(request.id, parent, name, ""))

    def status(self) -> dict[str, object]:
        """What ``vosfs status`` shows."""
        # Else they would count as open.
        self.standing.end_all()
        return {
            "live": self.tree.live,
            "away": self.tree.away,
            **self.tree.debt(),
            "open_files": self.files.open_files(),
            "dirty_bytes": self.files.dirty_bytes,
            "scratch_bytes": self.files.local_bytes,
            "staging": len(self.awaited),
            "kept": sum(1 for _ in self.files.kept.files()),
            "cache_bytes": self.blocks.used_bytes,
            "cache_limit_bytes": self.blocks.limit_bytes,
            "time": time.time(),
        }
