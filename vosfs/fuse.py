"""FUSE: a protocol adapter only.  The one module that knows pyfuse3.

Every handler is a call of ``FileSystem`` and a conversion.  pyfuse3 ends the whole mount when a handler raises
anything but FUSEError, so one wrapper catches, logs and answers; it is also the only place where an error becomes an
errno.  Handlers do not set deadlines: everything below that can wait has one.
"""

import errno
import functools
import json
import logging
import os
import select
import stat
import time
import types
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import trio

from vosfs import device, libfuse
from vosfs.cache.blocks import Buffer
from vosfs.errors import NodeNotFound, VOSpaceError
from vosfs.filesystem import FileSystem
from vosfs.libfuse import pyfuse3
from vosfs.metadata.node import (
    BLOCK_DEVICE,
    CHARACTER_DEVICE,
    CONTAINER,
    DATA,
    DEVICES,
    FIFO,
    LINK,
    ROOT_ID,
    SOCKET,
    Attributes,
    Change,
    Node,
)

log = logging.getLogger(__name__)

TASKS_MAX = 64
"""Requests in hand at once: at 10 ms a request, 64 give 2 900 random reads/s and 10 give 1 050."""
STATUS_XATTR = "user.vosfs.status"
DOTS = 2
"""Entries of a listing that are no nodes: "." and ".."."""
UNKNOWN_INODE = 0xFFFFFFFF
"""Number of ".." in a listing: a node does not know what it lies in, and 0 would be skipped (readdir(3))."""
BLOCK_SIZE = 512
COPY_BYTES_MAX = 1 << 30
"""Of one copy_file_range(2): its reply has 32 bits for what was copied."""
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE = 1, 2, 16
"""fallocate(2)."""
QUIET = frozenset((
    errno.ENOENT, errno.ENODATA, errno.EEXIST, errno.ENOTEMPTY, errno.EOPNOTSUPP, errno.ENAMETOOLONG,
    errno.EAGAIN,
))  # fmt: skip
"""Errors that are a normal program's day; of EAGAIN, bytes that are not on-line, there is one line a file (``staging.py``)."""

_TYPES = {
    CONTAINER: stat.S_IFDIR, DATA: stat.S_IFREG, LINK: stat.S_IFLNK, FIFO: stat.S_IFIFO, SOCKET: stat.S_IFSOCK,
    CHARACTER_DEVICE: stat.S_IFCHR, BLOCK_DEVICE: stat.S_IFBLK,
}  # fmt: skip
_KINDS = {type: kind for kind, type in _TYPES.items()}


F = TypeVar("F", bound=Callable[..., Awaitable[Any]])


def answers(method: F) -> F:
    """Turn what a handler raises into what FUSE can carry, once."""
    name = method.__name__

    @functools.wraps(method)
    async def handler(self: "Operations", *args: Any) -> Any:
        try:
            return await method(self, *args)
        except pyfuse3.FUSEError:
            raise
        except VOSpaceError as exc:
            if exc.errno not in QUIET:
                log.warning("%s: %s: %s", name, errno.errorcode.get(exc.errno, exc.errno), exc)
            raise pyfuse3.FUSEError(exc.errno) from None
        except trio.TooSlowError:
            log.warning("%s: no answer within the deadline", name)
            raise pyfuse3.FUSEError(errno.ETIMEDOUT) from None
        except OSError as exc:
            log.warning("%s: %s", name, exc)
            raise pyfuse3.FUSEError(exc.errno or errno.EIO) from None
        except Exception:
            log.exception("%s failed", name)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return cast(F, handler)


def answers_of_inode(method: F) -> F:
    """The same of a handler that is asked of an inode by its number, which the kernel has from a look-up before.

    If it is no more, it was replaced elsewhere since, and ENOENT would be of a name that was always there.  At ESTALE the
    kernel looks every name of the path up once more, and the program sees nothing.
    """

    @functools.wraps(method)
    async def handler(self: "Operations", inode: int, *args: Any) -> Any:
        try:
            return await method(self, inode, *args)
        except NodeNotFound:
            self._fs.tree.vanished(inode)
            raise pyfuse3.FUSEError(errno.ESTALE) from None

    return answers(cast(F, handler))


def _privileged(ctx: Any) -> bool:
    """Whether a caller's writes leave set-ID bits alone (CAP_FSETID, capabilities(7)); the kernel tells the uid only."""
    return ctx.uid == 0


class Operations(pyfuse3.Operations):
    """What the kernel asks."""

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, filesystem: FileSystem, uid: int, gid: int, about: dict[str, object]) -> None:
        super().__init__()
        # Dependencies
        self._fs = filesystem
        # Constants
        self._uid = uid
        self._gid = gid
        self._about = about
        self.lists_unopened = False
        """Whether the kernel need not open directories, and may keep their listings."""

    def keep_handles(self) -> None:
        """Have short files that are opened again answered for by the library."""
        self._fs.standing.stand, self._fs.standing.withdraw = libfuse.stand, libfuse.withdraw

    # -- conversions -----------------------------------------------------------------------------------------------

    def _entry(self, node: Node) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = node.id
        entry.generation = 0
        entry.entry_timeout = entry.attr_timeout = self._fs.tree.ttl_s
        entry.st_mode = _TYPES.get(node.kind, stat.S_IFREG) | node.mode
        entry.st_nlink = node.nlink
        if node.kind == CONTAINER and node.nlink and node.containers >= 0:
            # Its name, its "." and the ".." of each.  Where they are not counted 1, as btrfs has it: find(1) then counts
            # no subdirectories by it.
            entry.st_nlink = 2 + node.containers
        entry.st_uid = self._uid if node.uid < 0 else node.uid
        entry.st_gid = self._gid if node.gid < 0 else node.gid
        entry.st_rdev = os.makedev(node.device >> 32, node.device & 0xFFFFFFFF) if node.device else 0
        entry.st_size = node.length
        entry.st_blksize = 1 << 17
        entry.st_blocks = (node.length + BLOCK_SIZE - 1) // BLOCK_SIZE
        entry.st_atime_ns = node.atime_ns
        entry.st_mtime_ns = node.mtime_ns
        entry.st_ctime_ns = node.ctime_ns
        return entry

    def _absent(self) -> pyfuse3.EntryAttributes:
        """A name that is known not to exist: the kernel may remember that too."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self._fs.tree.ttl_s if self._fs.tree.live else 0
        return entry

    @staticmethod
    def _dot(inode: int) -> pyfuse3.EntryAttributes:
        """A listing's own directory, or the one above: of these the kernel takes number and type."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    # -- names -----------------------------------------------------------------------------------------------------

    @answers
    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        try:
            if name == b".":
                return self._entry(await self._fs.attributes(parent))
            return self._entry(self._fs.lookup_now(parent, name) or await self._fs.lookup(parent, name))
        except NodeNotFound:
            return self._absent()

    @answers_of_inode
    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.attributes(inode))

    @answers_of_inode
    async def setattr(
        self, inode: int, attr: pyfuse3.EntryAttributes, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        change = Attributes()
        if fields.update_mode:
            change.mode = stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            change.uid = attr.st_uid
        if fields.update_gid:
            change.gid = attr.st_gid
        if fields.update_atime:
            change.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            change.mtime_ns = attr.st_mtime_ns
        length = attr.st_size if fields.update_size else None
        return self._entry(await self._fs.set_attributes(inode, change, length, _privileged(ctx)))

    async def forget(self, inode_list: Any) -> None:
        """Nothing is kept per inode, whose number is the node's id, unless it lost its last name."""
        for inode, _ in inode_list:
            self._fs.forget(inode)

    @answers
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.make_container(parent, name, mode & ~ctx.umask, ctx.uid, ctx.gid))

    @answers
    async def mknod(self, parent: int, name: bytes, mode: int, rdev: int, ctx: Any) -> pyfuse3.EntryAttributes:
        # No type at all means a regular file.
        kind = _KINDS.get(stat.S_IFMT(mode), DATA)
        device = os.major(rdev) << 32 | os.minor(rdev) if kind in DEVICES else 0
        made = await self._fs.make_leaf(parent, name, stat.S_IMODE(mode) & ~ctx.umask, ctx.uid, ctx.gid, kind, device)
        return self._entry(made)

    @answers
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.make_link(parent, name, target, ctx.uid, ctx.gid))

    @answers_of_inode
    async def readlink(self, inode: int, ctx: Any) -> bytes:
        return await self._fs.read_link(inode)

    @answers
    async def link(self, inode: int, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(await self._fs.link(inode, parent, name))

    @answers
    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        await self._fs.unlink(parent, name)

    @answers
    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        await self._fs.remove_container(parent, name)

    @answers
    async def rename(self, parent: int, name: bytes, to_parent: int, to_name: bytes, flags: int, ctx: Any) -> None:
        if flags & ~(pyfuse3.RENAME_NOREPLACE | pyfuse3.RENAME_EXCHANGE):
            raise pyfuse3.FUSEError(errno.EINVAL)
        flag = ""
        if flags & pyfuse3.RENAME_EXCHANGE:
            flag = "exchange"
        elif flags & pyfuse3.RENAME_NOREPLACE:
            flag = "keep"
        await self._fs.rename(parent, name, to_parent, to_name, flag)

    # -- files -----------------------------------------------------------------------------------------------------

    @answers_of_inode
    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        handle, keep = await self._fs.open(inode, flags, _privileged(ctx))
        if not keep and (data := self._fs.whole(handle)) is not None:
            keep = _stored(inode, data)
        return pyfuse3.FileInfo(fh=handle, keep_cache=keep)

    @answers
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        handle, node = await self._fs.create(parent, name, mode & ~ctx.umask, ctx.uid, ctx.gid, flags, _privileged(ctx))
        return pyfuse3.FileInfo(fh=handle, keep_cache=True), self._entry(node)

    @answers
    async def read(self, fh: int, offset: int, size: int) -> Buffer:  # type: ignore[override]  # it takes any buffer
        data = self._fs.read_now(fh, offset, offset + size)
        return data if data is not None else await self._fs.read(fh, offset, offset + size)

    @answers
    async def write(self, fh: int, offset: int, data: bytes) -> int:
        return await self._fs.write(fh, offset, data)

    @answers
    async def flush(self, fh: int) -> None:
        await self._fs.flush(fh)

    @answers
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._fs.sync(fh)

    @answers
    async def release(self, fh: int) -> None:
        await self._fs.release(fh)

    # -- directories -------------------------------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: Any) -> int:
        if self.lists_unopened:
            # The kernel then opens directories by itself, and keeps what they list.
            raise pyfuse3.FUSEError(errno.ENOSYS)
        return inode

    @answers
    async def readdir(self, fh: int, start: int, token: Any) -> None:
        listing, at = self._fs.listings.at(fh, start)
        reply, base = pyfuse3.readdir_reply, listing.position
        for dot, (name, inode) in enumerate(((b".", fh), (b"..", UNKNOWN_INODE))):
            if at <= dot and not reply(token, name, self._dot(inode), base + dot + 1):
                return
        at = max(at, DOTS)
        while entries := await self._fs.listings.entries(listing, at - DOTS):
            for name, node, current in entries:
                at += 1
                entry = self._entry(node)
                if not current:
                    entry.entry_timeout = entry.attr_timeout = 0
                if not reply(token, name, entry, base + at):
                    return

    # -- what pyfuse3 does not hand on (libfuse.py) ----------------------------------------------------------------------

    @answers
    async def fallocate(self, fh: int, mode: int, offset: int, length: int) -> int:
        if mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        keep = bool(mode & FALLOC_FL_KEEP_SIZE)
        if mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE):
            await self._fs.punch(fh, offset, offset + length, keep)
        else:
            await self._fs.reserve(fh, offset + length, keep)
        return 0

    @answers
    async def copy_file_range(self, fh: int, offset: int, to_fh: int, to_offset: int, length: int, flags: int) -> int:
        return await self._fs.copy_range(fh, offset, to_fh, to_offset, min(length, COPY_BYTES_MAX))

    @answers
    async def lseek(self, fh: int, offset: int, whence: int) -> int:
        found = self._fs.seek(fh, offset, whence == os.SEEK_DATA)
        if found is None:
            raise pyfuse3.FUSEError(errno.ENXIO)
        return found

    @answers
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._fs.sync_directory()

    @answers
    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        usage = await self._fs.usage()
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = usage.total_bytes // 4096
        data.f_bfree = data.f_bavail = usage.free_bytes // 4096
        data.f_files = usage.nodes + (1 << 31)
        data.f_ffree = data.f_favail = 1 << 31
        data.f_namemax = 255
        return data

    # -- extended attributes -------------------------------------------------------------------------------------------

    async def getxattr(self, inode: int, name: bytes, ctx: Any) -> bytes:
        if name[:5] != b"user.":
            # EOPNOTSUPP rather than ENODATA: ls then asks for a label and an ACL once per file system, not once per file
            # (0.57 s against 0.05 for 5 000 names).  _libfuse.c answers the same, where it is there.
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        return await self._get_property(inode, name)

    @answers_of_inode
    async def _get_property(self, inode: int, name: bytes) -> bytes:
        text = os.fsdecode(name)
        if inode == ROOT_ID and text == STATUS_XATTR:
            return json.dumps({**self._about, **self._fs.status()}).encode()
        return await self._fs.get_property(inode, text)

    @answers_of_inode
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        await self._fs.set_property(inode, os.fsdecode(name), value)

    @answers_of_inode
    async def removexattr(self, inode: int, name: bytes, ctx: Any) -> None:
        await self._fs.remove_property(inode, os.fsdecode(name))

    @answers_of_inode
    async def listxattr(self, inode: int, ctx: Any) -> list[bytes]:
        return [os.fsencode(name) for name in await self._fs.property_names(inode)]

    @answers
    async def access(self, inode: int, mode: int, ctx: Any) -> bool:
        return True


def _stored(inode: int, data: Buffer) -> bool:
    """Give the kernel the pages of a short file that is being opened: it need not ask, which is a third of reading one."""
    try:
        pyfuse3.notify_store(inode, 0, data)  # type: ignore[arg-type]  # it takes any buffer
    except OSError as exc:
        log.debug("inode %d: %s", inode, exc)
        return False
    return True


# -- telling the kernel ------------------------------------------------------------------------------------------------


class Invalidator:
    """Carries changes made elsewhere to the kernel's caches, from a thread: a notification can wait for a page lock."""

    QUEUE_MAX = 10_000

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Change](self.QUEUE_MAX)

    def __call__(self, change: Change) -> None:
        try:
            self._send.send_nowait(change)
        except trio.WouldBlock:
            log.warning("too many changes at once: the kernel may show old attributes for a minute")

    async def run(self) -> None:
        """Deliver until cancelled."""
        async for change in self._receive:
            batch = [change]
            while len(batch) < 500:
                try:
                    batch.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            await trio.to_thread.run_sync(_invalidate, batch, abandon_on_cancel=True)


def _invalidate(batch: list[Change]) -> None:
    for change in batch:
        try:
            pyfuse3.invalidate_inode(change.node)
        except OSError as exc:
            log.debug("inode %d: %s", change.node, exc)
        if change.parent:
            try:
                # Its listing too, which the kernel has as pages of the directory: some programs put mtime back.
                pyfuse3.invalidate_inode(change.parent)
            except OSError as exc:
                log.debug("inode %d: %s", change.parent, exc)
            pyfuse3.invalidate_entry_async(change.parent, change.name, ignore_enoent=True)


# -- a faster wait ---------------------------------------------------------------------------------------------------
#
# pyfuse3 takes a trio.Lock and a wait_readable per request: two scheduler passes.  It finds both through its own
# module's name ``trio``, so a stand-in can be put there.  With it a trivial file system answers 61-87 k getattr/s
# instead of 19-34, 60-96 k random reads instead of 24 (spec: bench).


class _Turn:
    """The two methods of trio.Lock that pyfuse3 uses, without a checkpoint when it is free."""

    __slots__ = ("_held", "_called", "_lot")

    def __init__(self) -> None:
        self._held = False
        self._called = False
        """Whether somebody was woken who has not run yet: the others would wake only to find the turn taken."""
        self._lot = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            try:
                await self._lot.park()
            finally:
                self._called = False
        self._held = True

    async def __aexit__(self, *exc: object) -> None:
        self._held = False
        if self._lot and not self._called:
            self._called = True
            self._lot.unpark()


REQUESTS_IN_A_ROW = 32
"""Before other tasks get a turn."""
QUICK_S = 60e-6
"""A request that was answered sooner was answered from memory, and the caller's next one is on its way."""
SPIN_S = 40e-6
"""How long to look out for it: sleeping and being woken costs both sides 25 µs each on an idle machine (a getxattr
takes 57 µs instead of 12, and there is one before every write)."""


class _QuickWait:
    """Waits for the FUSE descriptor: by poll(2) while requests come thick, through trio when they do not."""

    def __init__(self, handshake: device.Handshake) -> None:
        self._handshake: device.Handshake | None = handshake
        self._poller = select.poll()
        self._fd = -1
        self._row = 0
        self._began = 0.0
        """When the last request arrived."""

    async def __call__(self, fd: int) -> None:
        if self._handshake is not None and self._handshake.complete():
            # This was called for the first request after libfuse's reply, which it gives before it returns.
            self._handshake = None
        if self._fd != fd:
            if self._fd >= 0:
                self._poller.unregister(self._fd)
            self._poller.register(fd, select.POLLIN)
            self._fd = fd
        self._row += 1
        if self._row < REQUESTS_IN_A_ROW and self._poll():
            return
        self._row = 0
        await trio.lowlevel.wait_readable(fd)
        self._began = time.perf_counter()

    def _poll(self) -> bool:
        poll, clock = self._poller.poll, time.perf_counter
        now = clock()
        end = now + SPIN_S if now - max(self._began, libfuse.came_s()) < QUICK_S else now
        while True:
            if poll(0):
                self._began = clock()
                return True
            if clock() >= end:
                return False


def hasten(wait: _QuickWait) -> None:
    """Give pyfuse3 the faster wait; before ``init``."""
    lowlevel = types.SimpleNamespace(
        current_task=trio.lowlevel.current_task,
        current_trio_token=trio.lowlevel.current_trio_token,
        notify_closing=trio.lowlevel.notify_closing,
        wait_readable=wait,
    )
    shim = types.ModuleType("trio_for_pyfuse3")
    shim.__getattr__ = lambda name: getattr(trio, name)  # type: ignore[method-assign]
    shim.Lock = _Turn  # type: ignore[attr-defined]
    shim.lowlevel = lowlevel  # type: ignore[attr-defined]
    pyfuse3.trio = shim  # type: ignore[attr-defined]


# -- mounting ------------------------------------------------------------------------------------------------------------


class Mount:
    """A mount of this process: pyfuse3 knows one at a time."""

    def __init__(
        self, operations: Operations, mountpoint: str, source: str, options: set[str], nursery: trio.Nursery, fed: bool
    ) -> None:
        """Mount.  OSError or RuntimeError if the kernel, fusermount3 or libfuse refuses.

        ``fed``: changes made elsewhere are heard of, so the kernel may keep listings: it asks for nothing but a
        directory's mtime before it trusts one.
        """
        # Constants
        self._mountpoint = os.path.abspath(mountpoint)
        # Mutable state
        # libfuse itself keeps others than root out.
        own = options & {"allow_root", "debug"}
        kernel = (options - own) | ({"allow_other"} if "allow_root" in own else set())
        wanted = [f"fsname={source}", "subtype=vosfs", "default_permissions", *sorted(kernel)]
        self._device = device.mount(self._mountpoint, wanted)
        handshake = device.Handshake(self._device)
        try:
            hasten(_QuickWait(handshake))
            libfuse.provide(operations, nursery.start_soon)
            pyfuse3.init(operations, f"/dev/fd/{handshake.descriptor}", own)
            handshake.begin()
            if libfuse.active():
                operations.lists_unopened = fed and bool(handshake.offered & device.NO_OPENDIR_SUPPORT)
                operations.keep_handles()
        except BaseException:
            handshake.close()
            device.unmount(self._mountpoint, self._device)
            raise
        self._open = True

    async def serve(self) -> None:
        """Answer the kernel until the mount goes away."""
        await pyfuse3.main(4, TASKS_MAX)

    def stop(self) -> None:
        """Make ``serve`` return.  Nothing once the session is closed, which libfuse does not survive."""
        if self._open:
            pyfuse3.terminate()

    def close(self, unmount: bool) -> None:
        """Close the session; with ``unmount``, also take the mount away."""
        self._open = False
        pyfuse3.close(unmount=False)
        if unmount:
            device.unmount(self._mountpoint, self._device)
        else:
            os.close(self._device)


def tune(device: int) -> None:
    """Widen the kernel's own limits for the mount with this device number, where this user may."""
    number = f"{os.major(device)}:{os.minor(device)}"
    for path, value in (
        (f"/sys/class/bdi/{number}/read_ahead_kb", "1024"),
        (f"/sys/fs/fuse/connections/{os.minor(device)}/max_background", str(TASKS_MAX)),
        (f"/sys/fs/fuse/connections/{os.minor(device)}/congestion_threshold", str(TASKS_MAX * 3 // 4)),
    ):
        try:
            with open(path, "w") as file:
                file.write(value)
        except OSError as exc:
            log.debug("%s: %s", path, exc)
