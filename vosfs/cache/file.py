"""One file's bytes as the mount sees them: the space's extents, under what was written here and not yet committed.

A read takes each byte from the freshest place: scratch (``local``), else the extent list over the block cache, else
zeros.  A write goes to scratch.  ``sync`` uploads what is dirty and commits it as one new version; until then nobody
else sees any of it, and if it fails the space keeps the old content and the caller gets the error.

Long writes upload while they go on (``upload``), so that a close waits for the tail only; uploaded blobs are nobody's
content until the commit names them.
"""

import itertools
import os
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from vosfs.backends.blobs import Blobs, blob_of
from vosfs.cache.blocks import BlockCache, Buffer
from vosfs.cache.kept import Kept
from vosfs.cache.ranges import Ranges
from vosfs.cache.scratch import Scratch
from vosfs.cache.segments import SEGMENT_BYTES, Fetch
from vosfs.client import Segment
from vosfs.errors import NodeNotFound, Stale, VOSpaceError
from vosfs.locks import Lock
from vosfs.metadata import content
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.messages import Commit
from vosfs.metadata.node import Attributes, Blob, Content, Extent, Node

replace = msgspec.structs.replace

STREAM_BYTES = 32 << 20
"""A file with this much dirty starts to upload before it is closed."""
BLOB_BYTES_MAX = 256 << 20
"""Longest blob: a failed upload repeats at most this."""
FILES_MAX = 4_000
"""Files whose content is remembered, and then only of those that are open; each may hold a descriptor."""
AHEAD_INLINE_MAX = 4 << 20
"""Bytes of an open file that were committed and are still in memory: more wait for the service, which has blobs of them."""
WHOLE_STEP_BYTES = 4 << 20
"""How much of a file is brought here at a time before it is sent whole."""
RESTING_BYTES_MAX = 32 << 20
"""Bytes of closed files in memory; the oldest go."""
LIST_INLINE_MAX = 64
"""More small runs than this at one commit are uploaded as one blob instead."""


def changed(node: Node, change: Attributes) -> Node:
    """A node with changed attributes, as the space would answer."""
    fields = {key: value for key, value in msgspec.structs.asdict(change).items() if value is not None}
    return replace(node, **fields, ctime_ns=time.time_ns())


class Replacer(Protocol):
    """How whole files are saved where parts of files cannot be."""

    async def replace(self, id: int, segments: list[Segment]) -> None:
        """Make local bytes the whole content of a node."""


class CachedFile:
    """The content of one data node."""

    def __init__(self, table: "FileTable", found: Content) -> None:
        # Dependencies
        self._table = table
        # Mutable state
        self.node = found.node
        """The node at the version this content starts from."""
        self.length = found.node.length
        self.mtime_ns: int | None = None
        """To be committed with the bytes; None if they did not change."""
        self.atime_ns: int | None = None
        """The same; None if nobody set it."""
        self.ctime_ns = 0
        """When something here changed last that is not committed."""
        self.handles = self.writers = 0
        """Open file descriptions, and those of them that may change it."""
        self.fresh = True
        """False once the node changed elsewhere: the next open must look."""
        self.kernel_version = 0
        """Version that the kernel's page cache was filled from; 0: it must drop what it has."""
        self.resting_bytes = 0
        """In memory with the extents, when it was last closed."""
        self.losses = 0
        """How often unsaved bytes were given up."""
        self.unlinked = False
        """No name is left: there is nothing to commit to."""
        self._saved = found.extents
        """The space's extents at ``node.version``."""
        self._extents = self._saved
        """INVARIANT: ``_saved`` with ``_changes`` applied; the very same list if there are none."""
        self.head = found.head
        """The first bytes, if they came along and nothing was changed since."""
        self._changes: list[Extent] = []
        """Not yet committed: holes left by truncation, and uploaded blobs."""
        self._receipts: dict[str, str] = {}
        """Leased name -> receipt, of the blobs in ``_changes``."""
        self._scratch: Scratch | None = None
        self._local = Ranges()
        """Where scratch has the freshest bytes."""
        self._dirty = Ranges()
        """INVARIANT: part of ``_local``; in no blob yet."""
        self._counted = (0, 0)
        """Dirty and local bytes as the table's totals have them."""
        self._resized = False
        self._lock = Lock()
        """Held while uploading and committing: one at a time, in order."""
        self._uploading = False
        self._saving = False
        """Bytes are on their way, neither dirty nor in the space: a close that did not wait for them would not hear of their
        end, and a version from elsewhere must not take their place."""
        self._in_doubt = False
        """Whether a whole file was sent and no answer came: what is there now may be that."""
        self._upload_error: VOSpaceError | None = None
        """How the last early upload failed, for a save that was waiting for it."""

    @property
    def changed(self) -> bool:
        """Whether anything here is not in the space."""
        return self._resized or self._saving or bool(self._dirty) or bool(self._changes)

    def attributes(self) -> Node:
        """The node as this mount sees it."""
        node = None if self.unlinked else self._table.tree.peek(self.node.id)
        node = node or self.node
        if not self.changed:
            return node
        return replace(
            node, length=self.length, ctime_ns=max(node.ctime_ns, self.ctime_ns),
            mtime_ns=node.mtime_ns if self.mtime_ns is None else self.mtime_ns,
            atime_ns=node.atime_ns if self.atime_ns is None else self.atime_ns,
        )  # fmt: skip

    def renew(self, node: Node) -> None:
        """Take a newer record of the node's attributes; the content stays at its version."""
        self.node = replace(node, version=self.node.version, length=self.node.length)

    def set_attributes(self, change: Attributes) -> None:
        """Of a file without a name: they last as long as it is open, and nobody else can see them."""
        self.node = changed(self.node, change)
        self.set_times(change.atime_ns, change.mtime_ns)

    def check(self) -> None:
        """Raise ValueError unless the invariants hold."""
        content.check(self._extents)
        self._local.check()
        self._dirty.check()
        if any(not self._local.covers(*piece) for piece in self._dirty):
            raise ValueError("dirty bytes are not in scratch")
        if self._counted != (self._dirty.size, self._local.size):
            raise ValueError(f"{self._counted} bytes counted, {self._dirty.size}, {self._local.size} there")

    # -- reading ---------------------------------------------------------------------------------------------------

    def read_now(self, start: int, stop: int) -> Buffer | None:
        """``[start, stop)``, cut at the end of the file, if no waiting is needed."""
        stop = min(stop, self.length)
        if start >= stop:
            return b""
        if stop <= len(self.head):
            return self.head[start:stop]
        if self._local:
            if self._scratch is not None and self._local.covers(start, stop):
                return self._scratch.read(start, stop)
            return None
        index = content.first_after(self._extents, start)
        if index == len(self._extents):
            return None
        extent = self._extents[index]
        if not extent.start <= start or stop > extent.stop:
            return None
        skip = start - extent.start
        if extent.data:
            return extent.data[skip : skip + stop - start]
        at = extent.offset + skip
        return self._table.blocks.read_now(extent.locator, at, at + stop - start)

    @property
    def here(self) -> bool:
        """Whether all bytes are on this host."""
        if self.length <= len(self.head):
            return True
        for low, high, local in self._local.split(0, self.length):
            for piece in content.slices(self._extents, low, high) if not local else ():
                end = piece.offset + piece.stop - piece.start
                if piece.locator and not self._table.blocks.holds(piece.locator, piece.offset, end):
                    return False
        return True

    async def read(self, start: int, stop: int) -> Buffer:
        """``[start, stop)``, cut at the end of the file."""
        stop = min(stop, self.length)
        if start >= stop:
            return b""
        parts = await self._parts(start, stop)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _parts(self, start: int, stop: int) -> list[Buffer]:
        parts: list[Buffer] = []
        for low, high, local in self._local.split(start, stop):
            if not local:
                parts += [await self._piece(piece) for piece in content.slices(self._extents, low, high)]
            elif self._scratch is not None and self._local.covers(low, high):
                parts.append(self._scratch.read(low, high))
            else:
                # It was given up while this read waited for what is before it: a blob has it by now.
                parts += await self._parts(low, high)
        return parts

    async def _piece(self, piece: Extent) -> Buffer:
        if piece.data:
            return piece.data
        size = piece.stop - piece.start
        if not piece.locator:
            return bytes(size)
        # A blob's length is not known here; what extents reach of it is enough to bound its blocks.
        # Nor does a truncation while this read waited take back what it began with.
        end = max(self._reach(piece.locator), piece.offset + size)
        return await self._table.blocks.read(piece.locator, end, piece.offset, piece.offset + size)

    def _reach(self, name: str) -> int:
        return max((e.offset + e.stop - e.start for e in self._extents if e.locator == name), default=0)

    def seek(self, start: int, data: bool) -> int | None:
        """Where data, or else a hole, begins from ``start`` on (lseek(2)); None where there is neither.

        The end of the file is a hole.
        """
        for low, high, local in self._local.split(start, self.length) if start < self.length else ():
            for piece in content.slices([] if local else self._extents, low, high):
                if (local or bool(piece.locator or piece.data)) == data:
                    return piece.start
        return None if data or start >= self.length else self.length

    def into_segment(self, at: int) -> int:
        """How far a byte is into its segment of the block cache; 0 of what is in no blob."""
        index = content.first_after(self._extents, at)
        if index == len(self._extents):
            return 0
        extent = self._extents[index]
        return (extent.offset + at - extent.start) % SEGMENT_BYTES if extent.locator and extent.start <= at else 0

    def expect(self, start: int, stop: int) -> list[Fetch]:
        """Begin to bring bytes into the block cache; what is under way is returned, and need not be waited for."""
        stop = min(stop, self.length)
        fetches: list[Fetch] = []
        for low, high, local in self._local.split(start, stop) if start < stop else ():
            if local:
                continue
            for piece in content.slices(self._extents, low, high):
                if piece.locator:
                    size = piece.stop - piece.start
                    end = max(self._reach(piece.locator), piece.offset + size)
                    fetches += self._table.blocks.fetch(piece.locator, end, piece.offset, piece.offset + size)
        return fetches

    async def prefetch(self, start: int, stop: int) -> None:
        """Bring bytes here; the disk of the block cache may have them later."""
        for fetch in self.expect(start, stop):
            await fetch.reach(fetch.stop)

    # -- writing (synchronous) ---------------------------------------------------------------------------------------

    def write(self, start: int, data: bytes | memoryview) -> None:
        """Put bytes at an offset.  StorageFull if the cache's disk is."""
        stop = start + len(data)
        if start == stop:
            return
        if self._scratch is None:
            self._scratch = self._table.new_scratch()
        self._scratch.write(start, data)
        self.head = b""
        self._local.add(start, stop)
        self._dirty.add(start, stop)
        self._count()
        if stop > self.length:
            self.length = stop
            self._resized = True
        self.mtime_ns = self.ctime_ns = time.time_ns()

    def truncate(self, length: int) -> None:
        """Cut or extend; an extension reads as zeros.  A change of the file even if it is that long already."""
        if length < self.length:
            # Reads of what is not local come from the extents: the cut bytes cannot come back when the file grows again.
            self._local.remove(length, self.length)
            self._dirty.remove(length, self.length)
            self._count()
            if self._scratch is not None:
                self._scratch.punch(length, self.length)
            self._change(Extent(length, self.length))
        self.length, self.head = length, b""
        self._resized = True
        self.mtime_ns = self.ctime_ns = time.time_ns()

    def punch(self, start: int, stop: int) -> None:
        """Make bytes a hole, which reads as zeros; what is beyond the end stays there."""
        stop = min(stop, self.length)
        if start >= stop:
            return
        if len(self._changes) >= content.CHANGES_MAX // 2:
            # One commit could not tell of so many.
            for at in range(start, stop, WHOLE_STEP_BYTES):
                self.write(at, bytes(min(WHOLE_STEP_BYTES, stop - at)))
            return
        self._cover(Extent(start, stop))

    def share(self, piece: Extent, receipt: str) -> None:
        """Have bytes of a blob that the space has already."""
        self._receipts[piece.locator] = receipt
        self._cover(piece)
        if piece.stop > self.length:
            self.length, self._resized = piece.stop, True

    def _cover(self, change: Extent) -> None:
        """Put a hole, or a part of a blob, in the place of what is there."""
        self._local.remove(change.start, change.stop)
        self._dirty.remove(change.start, change.stop)
        self._count()
        if self._scratch is not None:
            self._scratch.punch(change.start, change.stop)
        self._change(change)
        self.head = b""
        self.mtime_ns = self.ctime_ns = time.time_ns()

    def pieces(self, start: int, stop: int) -> list[Extent] | None:
        """What the space has of a range, holes included; None if the file is not saved."""
        return None if self.changed else content.slices(self._extents, start, stop)

    def _change(self, *changes: Extent) -> None:
        if not changes:
            return
        self._changes += changes
        self._extents = content.overlay(self._extents, changes)

    def set_times(self, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Override the times that the next commit carries; None leaves one as it is."""
        self.atime_ns = self.atime_ns if atime_ns is None else atime_ns
        self.mtime_ns = self.mtime_ns if mtime_ns is None else mtime_ns
        self.ctime_ns = time.time_ns()

    def rebase(self, found: Content) -> None:
        """Start from another version; only when nothing is changed here."""
        if found.node.version < self.node.version:
            # Asked before this mount's own last commit, answered after.
            return
        if found.node.version != self.node.version:
            self.close()
            self.length = found.node.length
        self.node = found.node
        self._saved = self._extents = found.extents
        self.head = found.head
        self.fresh = True

    def discard(self, why: str) -> None:
        """Give up saving what was not committed: the space keeps what it has, and the bytes go to ``kept.py``."""
        if self._local or any(e.locator or e.data for e in self._changes):
            path = self._table.tree.path_of(self.node.id)
            self._table.kept.keep(
                path, self.node.id, self.node.version, self.length, why, self._extents, list(self._local), self._scratch
            )
            self._scratch = None
        self.close()
        self.losses += 1
        self._changes.clear()
        self._receipts.clear()
        self._extents, self.head = self._saved, b""
        self._resized = False
        self.mtime_ns = self.atime_ns = None
        self.length = self.node.length
        self.fresh = False
        self.kernel_version = 0

    # -- saving ------------------------------------------------------------------------------------------------------

    async def upload(self, wait: bool = False) -> None:
        """Move what is dirty into blobs, without committing; unless ``wait``, nothing if that is under way."""
        if self._table.replacer is not None or (self._uploading and not wait):
            return
        self._uploading = True
        try:
            async with self._lock:
                self._saving = True
                try:
                    await self._upload(0)
                except VOSpaceError as exc:
                    self._upload_error = exc
                    raise
                finally:
                    self._saving = False
        finally:
            self._uploading = False

    async def _upload(self, keep_inline: int) -> list[Extent]:
        """Upload dirty runs; runs of up to ``keep_inline`` bytes in all are returned as inline extents instead."""
        ranges = list(self._dirty)
        if not ranges or self._scratch is None:
            return []
        room = content.CHANGES_MAX - len(self._changes)
        if self._dirty.size <= keep_inline and len(ranges) <= min(LIST_INLINE_MAX, room):
            return [Extent(start, stop, data=self._scratch.read(start, stop)) for start, stop in ranges]
        if len(ranges) > room:
            # Half of what is left, so that more can follow before the next commit.
            await self._join_dirty(max(room // 2, 1))
            ranges = list(self._dirty)
        for group in _groups(ranges):
            await self._upload_group(group)
        return []

    async def _join_dirty(self, most: int) -> None:
        """Make dirty runs at most so many, by the bytes of the shortest gaps between them."""
        ranges = list(self._dirty)
        gaps = [(low - stop, stop, low) for (_, stop), (low, _) in itertools.pairwise(ranges)]
        for _, start, stop in sorted(gaps)[: max(0, len(ranges) - most)]:
            for at in range(start, stop, WHOLE_STEP_BYTES):
                end = min(at + WHOLE_STEP_BYTES, stop)
                if await self._bring(at, end):
                    self._dirty.add(at, end)
        self._count()

    async def _bring(self, start: int, stop: int) -> bool:
        """Put into scratch what of a range is not there; False if it was cut meanwhile, and may be gone."""
        assert self._scratch is not None
        cuts = len(self._changes)
        data = await self.read(start, stop)
        if len(self._changes) != cuts or len(data) != stop - start:
            return False
        for low, high, local in self._local.split(start, stop):
            # What was written meanwhile is fresher.
            if not local:
                self._scratch.write(low, data[low - start : high - start])
                self._local.add(low, high)
        return True

    async def _upload_group(self, group: list[tuple[int, int]]) -> None:
        assert self._scratch is not None
        # No longer dirty from here on: a write during the upload makes its range dirty again, on top of the blob.
        for start, stop in group:
            self._dirty.remove(start, stop)
        self._count()
        fd = os.dup(self._scratch.descriptor())
        try:
            segments = [(fd, start, stop) for start, stop in group]
            stored = await self._table.blobs.store(segments, self.node.storage)
        except BaseException:
            for start, stop in group:
                for low, high, local in self._local.split(start, stop):
                    if local:
                        self._dirty.add(low, high)
            self._count()
            raise
        finally:
            os.close(fd)
        self._receipts[stored.name] = stored.receipt
        offset, changes = 0, []
        for start, stop in group:
            # A truncation meanwhile took what it cut out of scratch: that part of the blob is nobody's, even if the
            # file has grown again.
            for low, high, local in self._local.split(start, stop):
                if local:
                    changes.append(Extent(low, high, stored.name, offset + low - start))
            offset += stop - start
        self._change(*changes)
        self._table.uploaded(self, group)

    def _count(self) -> None:
        """Bring the table's totals up to date."""
        table = self._table
        table.dirty_bytes += self._dirty.size - self._counted[0]
        table.local_bytes += self._local.size - self._counted[1]
        self._counted = (self._dirty.size, self._local.size)

    def drop_local(self, start: int, stop: int) -> None:
        """Give up clean bytes in scratch: their blob has them."""
        for low, high, dirty in self._dirty.split(start, stop):
            if not dirty and self._scratch is not None:
                self._local.remove(low, high)
                self._scratch.punch(low, high)
        self._count()

    async def sync(self, durable: bool) -> None:
        """Commit everything written before this call.  Stale if somebody else committed since the open."""
        waited = self._lock.locked()
        self._upload_error = None if not waited else self._upload_error
        async with self._lock:
            error, self._upload_error = self._upload_error, None
            if waited and error is not None:
                # The early upload that this waited for failed: the service is not there, and one deadline is enough.
                raise error
            if self.unlinked:
                return
            if self.changed:
                self._saving = True
                try:
                    if self._table.replacer is not None:
                        await self._replace(self._table.replacer)
                    else:
                        await self._commit(durable)
                finally:
                    self._saving = False
            if durable:
                await self._table.tree.sync()

    async def _commit(self, durable: bool) -> None:
        tree = self._table.tree
        await tree.room()
        inline = await self._upload(self._table.inline_bytes_max)
        taken = [(e.start, e.stop) for e in inline]
        for start, stop in taken:
            self._dirty.remove(start, stop)
        self._count()
        pending, length, mtime_ns, atime_ns = list(self._changes), self.length, self.mtime_ns, self.atime_ns
        self._resized, self.mtime_ns, self.atime_ns = False, None, None
        receipts = {} if self._table.local else self._receipts
        changes = [content.relocated(e, receipts.get(e.locator, e.locator)) for e in pending] + inline
        blobs = [_blob(self._receipts[e.locator]) for e in pending if e.locator and self._table.local]
        # A durable one too: the request that makes it so travels behind it, in the same batch.
        done = self._commit_ahead(inline, length, changes, mtime_ns, atime_ns)
        try:
            if done is None:
                done = await tree.commit(
                    self.node.id, self.node.version, length, changes, blobs, mtime_ns, durable, atime_ns
                )
        except BaseException as exc:
            for start, stop in taken:
                for low, high, local in self._local.split(start, stop):
                    if local:
                        self._dirty.add(low, high)
            self._count()
            self._resized = True
            if self.mtime_ns is None:
                self.mtime_ns = mtime_ns
            if self.atime_ns is None:
                self.atime_ns = atime_ns
            if not isinstance(exc, NodeNotFound):
                raise
            if self.unlinked:
                # By a program of this mount, while this was on its way.
                return
            self.unlinked = True
            raise Stale("the file was deleted elsewhere") from None
        self.node = done.node
        if self.kernel_version:
            # The kernel's pages hold what it wrote through to here.
            self.kernel_version = done.node.version
        rest = self._changes[len(pending) :]
        self._changes = []
        self._saved = self._extents = done.extents
        self._change(*rest)
        kept = {e.locator for e in rest}
        self._receipts = {name: receipt for name, receipt in self._receipts.items() if name in kept}

    def _commit_ahead(
        self, inline: list[Extent], length: int, changes: list[Extent], mtime_ns: int | None, atime_ns: int | None
    ) -> Content | None:
        """The content after a commit that the service hears of later, if that can be."""
        extents = content.apply(self._extents, inline, length)
        sizes = [len(e.data) for e in extents]
        few = sum(size for size in sizes if size <= content.INLINE_BYTES_MAX) <= content.INLINE_TOTAL_MAX
        if len(extents) > content.EXTENTS_MAX or not few or sum(sizes) > AHEAD_INLINE_MAX:
            # The service makes one blob of many pieces, and answers with it.
            return None
        node = self._table.tree.commit_ahead(self.node.id, self.node.version, length, changes, mtime_ns, atime_ns)
        return None if node is None else Content(node, extents)

    async def _replace(self, replacer: "Replacer") -> None:
        """Save to a service that takes whole files only: bring what is missing here, then send all of it."""
        if self._scratch is None:
            self._scratch = self._table.new_scratch()
        await self._check_base()
        fetched = False
        self._fill_holes()
        while missing := [(a, b) for a, b, local in self._local.split(0, self.length) if not local]:
            start, stop = missing[0][0], min(missing[0][0] + WHOLE_STEP_BYTES, missing[0][1])
            # Again if it was cut meanwhile.
            fetched = True
            await self._bring(start, stop)
        self._count()
        if fetched:
            await self._check_base()
        sent, pending = list(self._dirty), len(self._changes)
        length, self._resized = self.length, False
        for start, stop in sent:
            self._dirty.remove(start, stop)
        fd = os.dup(self._scratch.descriptor())
        try:
            self._in_doubt = True
            await replacer.replace(self.node.id, [(fd, 0, length)] if length else [])
            found = await self._table.tree.inner.open(self.node.id)
            self._in_doubt = False
        except BaseException:
            self._resized = True
            for start, stop in sent:
                for low, high, local in self._local.split(start, stop):
                    if local:
                        self._dirty.add(low, high)
            raise
        finally:
            os.close(fd)
            self._count()
        rest, self._changes = self._changes[pending:], []
        if not self._dirty and not rest and not self._resized:
            self.mtime_ns = None
        self.node = self._table.tree.remember(found.node)
        self._saved = self._extents = found.extents
        self._change(*rest)

    def _fill_holes(self) -> None:
        """Have the zeros of holes in scratch, where they take no room: a sparse file may be longer than the disk."""
        assert self._scratch is not None
        for low, high, local in self._local.split(0, self.length):
            for piece in content.slices(self._extents, low, high) if not local else ():
                if not piece.locator and not piece.data:
                    self._scratch.punch(piece.start, piece.stop)
                    self._local.add(piece.start, piece.stop)
        self._scratch.reach(self.length)

    async def _check_base(self) -> None:
        """Stale if somebody else was first; who comes between this look and the upload is not seen, and loses."""
        if self._in_doubt:
            return
        try:
            node = await self._table.tree.inner.get(self.node.id)
        except NodeNotFound:
            self.unlinked = True
            raise Stale("the file was deleted elsewhere") from None
        if node.version != self.node.version:
            raise Stale(f"node {node.id} is at version {node.version}, not {self.node.version}")

    def leased(self) -> list[str]:
        """The leased names this content stands on."""
        return sorted(content.locators(self._extents) | content.locators(self._saved))

    def release_lease(self, fresh: dict[str, str]) -> None:
        """Put renewed names in place of old ones."""
        unchanged = self._extents is self._saved
        self._saved = [content.relocated(e, fresh.get(e.locator, e.locator)) for e in self._saved]
        self._extents = (
            self._saved if unchanged else [content.relocated(e, fresh.get(e.locator, e.locator)) for e in self._extents]
        )

    def renew_leases(self, found: Content) -> None:
        """Read the same blobs by the names that the space gives them now."""
        names = {blob_of(e.locator): e.locator for e in found.extents}
        self.release_lease({name: names.get(blob_of(name), name) for name in self.leased()})

    def close(self) -> None:
        """Free everything local, dirty or not."""
        if self._scratch is None and not self._local:
            # Nothing was written, as of most files.
            return
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None
        self._local.clear()
        self._dirty.clear()
        self._count()

    def rest(self) -> None:
        """Nobody has it open: what is in memory is quickly fetched again."""
        if not self.scratch_file:
            self.close()
        self.resting_bytes = sum(len(e.data) for e in self._extents)

    @property
    def has_local(self) -> bool:
        """Whether scratch has any bytes of this file."""
        return bool(self._local)

    @property
    def dirty_bytes(self) -> int:
        """Bytes in no blob yet."""
        return self._dirty.size

    @property
    def scratch_file(self) -> bool:
        """Whether this file holds a local file."""
        return self._scratch is not None and not self._scratch.in_memory


def _groups(ranges: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Ranges in groups of up to BLOB_BYTES_MAX, each to become one blob."""
    groups: list[list[tuple[int, int]]] = []
    room = 0
    for start, stop in ranges:
        while start < stop:
            if room == 0:
                groups.append([])
                room = BLOB_BYTES_MAX
            end = min(stop, start + room)
            groups[-1].append((start, end))
            room -= end - start
            start = end
    return groups


def _blob(receipt: str) -> Blob:
    """What a local backend's receipt says (``LocalBlobs.store``)."""
    locator, length, crc32 = receipt.split(".")
    return Blob(locator, int(length), int(crc32))


class FileTable:
    """All files with local content, open or recently closed, and the limits they share."""

    def __init__(
        self, tree: CachedTree, blobs: Blobs, blocks: BlockCache, directory: Path, limit_bytes: int,
        replacer: Replacer | None = None, local: bool = False, kept: Kept | None = None,
        inline_bytes_max: int = content.INLINE_BYTES_MAX,
    ) -> None:  # fmt: skip
        # Dependencies
        self.tree = tree
        self.blobs = blobs
        self.blocks = blocks
        self.kept = kept or Kept(directory.parent / "kept")
        # Constants
        self._directory = directory
        self.limit_bytes = limit_bytes
        """Of scratch bytes, clean and dirty together."""
        self.inline_bytes_max = inline_bytes_max
        """The longest bytes that go with the commit."""
        self.replacer = replacer
        """Set where the space cannot change parts of files."""
        self.local = local
        """Whether blobs are of this process: a commit then carries their description itself."""
        # Mutable state
        self._files: OrderedDict[int, CachedFile] = OrderedDict()
        self.dirty_bytes = 0
        self.local_bytes = 0
        """INVARIANT: sum over the files of their bytes in scratch."""
        self._opening: dict[int, trio.Event] = {}
        self._resting_bytes = 0
        """INVARIANT: sum of the files' own."""
        self._serial = 0
        self.on_full: Callable[[], None] = lambda: None
        """Lets go of files that nobody uses; set by the file system."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def shares(self) -> bool:
        """Whether files can stand on the same blobs: a service that takes whole files knows no blobs."""
        return self.replacer is None and not self.local

    def new_scratch(self) -> Scratch:
        """A place for one file's unsaved bytes."""
        self._serial += 1
        return Scratch(self._directory / f"{self._serial:08x}")

    def get(self, id: int) -> CachedFile | None:
        """The file, if it has local content."""
        return self._files.get(id)

    def knows(self, id: int) -> bool:
        """Whether a file's content is here, or somebody is asking for it."""
        file = self._files.get(id)
        return id in self._opening or (file is not None and file.fresh)

    async def open(self, id: int) -> CachedFile:
        """A file at the space's present version, or with this mount's unsaved changes; counts one handle."""
        while id in self._opening:
            await self._opening[id].wait()
        file = self._files.get(id)
        if file is not None:
            file.handles += 1
            if file.changed or file.unlinked or self.current(file):
                return file
        event = self._opening[id] = trio.Event()
        try:
            found = await self.tree.open(id)
            if file is None:
                file = self._files[id] = CachedFile(self, found)
                file.handles += 1
            elif not file.changed:
                file.rebase(found)
        except BaseException:
            if file is not None:
                self.release(file)
            raise
        finally:
            del self._opening[id]
            event.set()
        self._files.move_to_end(id)
        return file

    def made(self, node: Node) -> CachedFile:
        """A file that was just created: nothing to ask for."""
        file = self._files[node.id] = CachedFile(self, Content(node, []))
        file.handles = 1
        return file

    def current(self, file: CachedFile) -> bool:
        """Whether a file can be opened as it is here, without a question."""
        node = self.tree.peek(file.node.id)
        return (
            (self.tree.live or self.tree.away) and file.fresh and node is not None and node.version == file.node.version
        )

    def release(self, file: CachedFile) -> None:
        """One handle fewer; the last one's going makes the content evictable."""
        self.let_go(file)
        if not file.handles:
            self.trim()

    def let_go(self, file: CachedFile) -> None:
        """The same, and the limits are looked after by somebody else."""
        file.handles -= 1
        if file.handles:
            return
        if file.unlinked or file.node.nlink == 0:
            self._drop(file)
        else:
            if file.changed:
                # Its last flush failed, and said so.
                file.discard("the service did not take it")
            self._resting_bytes -= file.resting_bytes
            file.rest()
            self._resting_bytes += file.resting_bytes

    def _drop(self, file: CachedFile) -> None:
        file.close()
        if self._files.get(file.node.id) is file:
            del self._files[file.node.id]
            self._resting_bytes -= file.resting_bytes

    def trim(self) -> None:
        """Bring closed files' content under its limits, oldest first."""
        while self._over():
            oldest = self._oldest_closed()
            if oldest is None:
                self.on_full()
                oldest = self._oldest_closed()
            if oldest is None:
                return
            self._drop(oldest)

    def _oldest_closed(self) -> CachedFile | None:
        return next((file for file in self._files.values() if not file.handles), None)

    def _over(self) -> bool:
        return (
            len(self._files) > FILES_MAX
            or self.local_bytes > self.limit_bytes
            or self._resting_bytes > RESTING_BYTES_MAX
        )

    def uploaded(self, file: CachedFile, group: list[tuple[int, int]]) -> None:
        """A blob has these bytes now: keep them as cache only while there is room."""
        if self.local_bytes > self.limit_bytes // 2:
            for start, stop in group:
                file.drop_local(start, stop)

    def changed_elsewhere(self, id: int) -> None:
        """The feed says so."""
        file = self._files.get(id)
        if file is not None:
            file.fresh = False
            file.kernel_version = 0

    def lost(self, id: int, commit: Commit | None, why: str) -> None:
        """The service refused a change of this node that was acknowledged here: what is open has lost bytes."""
        file = self._files.get(id)
        if commit is not None and (file is None or not file.has_local):
            path = self.tree.path_of(id)
            self.kept.keep(path, id, commit.base_version or 0, commit.length, why, commit.changes, [], None)
        if file is not None:
            file.discard(why)
            # Older than any: the next open takes what the service has.
            file.node = Node(*(getattr(file.node, name) for name in Node.__struct_fields__))
            file.node.version = 0

    def unlinked(self, node: Node) -> None:
        """This mount took a node's last name away."""
        file = self._files.get(node.id)
        if file is not None:
            file.renew(node)
            if node.nlink == 0:
                file.unlinked = True
                if not file.handles:
                    self._drop(file)

    async def renew_leases(self) -> None:
        """Keep the blobs of open files readable."""
        renew = getattr(self.tree.inner, "renew", None)
        if renew is None:
            return
        for file in list(self._files.values()):
            if not file.handles:
                # A closed file asks again when it is opened.
                file.fresh = False
                continue
            names = file.leased()
            for at in range(0, len(names), 500):
                page = names[at : at + 500]
                try:
                    file.release_lease(dict(zip(page, await renew(page), strict=True)))
                except VOSpaceError:
                    file.fresh = False

    def open_files(self) -> int:
        """Files with a handle."""
        return sum(1 for file in self._files.values() if file.handles)

    def close(self) -> None:
        """Free everything local."""
        for file in list(self._files.values()):
            file.close()
        self._files.clear()
