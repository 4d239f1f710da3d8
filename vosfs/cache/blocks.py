"""Clean bytes on the local disk: blocks of blobs, under a hard limit.

Blobs never change, so a block that is here is right for ever; nothing is ever invalidated, only evicted.  A segment
is one sparse file of up to SEGMENT_BYTES of one blob; eviction removes whole segments, oldest use first.

The bytes of long fetches stay in memory until they were read once, which read-ahead sees to, and go to the disk past the
page cache: the kernel has what programs read as pages of the mount's files, so a second copy costs memory and 0.2 to 0.4 s of
CPU a GiB, and is rarely looked at.  What comes faster than the disk takes it is not kept there: a cache that is slower than
what it is a cache of helps nobody, and its readers would wait for it.  What comes fast anyway is kept there when it comes again.
"""

import copy
import errno
import logging
import os
from collections import OrderedDict
from pathlib import Path

import trio

from vosfs.backends.blobs import Blobs, blob_of
from vosfs.cache.buffers import Buffers
from vosfs.cache.segments import BLOCK_BYTES, SEGMENT_BLOCKS, SEGMENT_BYTES, Fetch, Segment
from vosfs.errors import StorageFull, VOSpaceError
from vosfs.locks import take

log = logging.getLogger(__name__)

FETCH_BYTES_MAX = 4 << 20
"""Longest single range request, and its buffer, unless it is a long one."""
LONG_FETCH_BYTES_MAX = SEGMENT_BYTES
"""The longest where bytes come fast: a service has as much to do for a short one."""
FAST_BYTES_S = 250e6
"""At which they do, all connections together: twice what a gigabit brings, and half of what a SATA disk gives back."""
FETCHES_MAX = 8
"""Range requests at once; each holds a buffer."""
SHORT_BUFFERS_MAX, LONG_BUFFERS_MAX = 8, 3
"""Kept for further ones: 80 MiB.  A reader has one long one in hand and two under way."""
SEGMENTS_MAX = 50_000
OPEN_MAX = 512
"""Descriptors kept for segments."""
KEPT_BYTES_MIN = 1 << 20
"""Shorter fetches are not kept in memory: who reads 4 KiB of a block is likely to come back for more, to the page cache."""
FETCHED_BYTES_MAX = 64 << 20
"""In memory, under way or not read yet: more is not kept."""
WRITES_MAX, WRITES_WAITING_MAX = 2, 2
"""Past the page cache at once, and as soon as one of those ends; a disk that has so much to do is slower than the network."""
DIRECT_ALIGNMENT = 4096
"""Of the length, offset and memory of such a write (open(2), O_DIRECT)."""
RUN_BYTES = 4 << 20
"""Whoever wants a second block of such a run of a blob reads here and there, and is likely to want most of it: the rest is
brought along.  Block by block, 512 MiB took both sides 1.8 ms of CPU a block, and 4 KiB reads went at 2 000 to 6 000/s for
three seconds; now at 16 000 to 23 000."""
RUN_FETCHES_MAX = 4
"""Of such, under way, at which no more are begun: others wait for single blocks."""
EDGE_BYTES = 2 * BLOCK_BYTES
"""Whose reader waited for them leaves less than this, the edges of its blocks, which nobody may want."""
UNREAD_S = 2.0
"""Bytes that nobody read for so long make room for others."""

Buffer = bytes | memoryview
"""Bytes, perhaps in memory that is used again once nobody refers to it."""


class BlockCache:
    """Blocks of blobs, fetched once however many readers wait for them."""

    def __init__(self, directory: Path, blobs: Blobs, limit_bytes: int, nursery: trio.Nursery) -> None:
        # Dependencies
        self._blobs = blobs
        self._nursery = nursery
        # Constants
        self._directory = directory
        self.limit_bytes = max(limit_bytes, 4 * SEGMENT_BYTES)
        # Mutable state
        self._segments: OrderedDict[tuple[str, int], Segment] = OrderedDict()
        self.used_bytes = 0
        """INVARIANT: sum of the segments' bytes; at most limit_bytes between fetches."""
        self._open: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._serial = 0
        self._fetches = trio.CapacityLimiter(FETCHES_MAX)
        self._reads = Buffers()
        self._short = Buffers(FETCH_BYTES_MAX, SHORT_BUFFERS_MAX)
        self._long = Buffers(LONG_FETCH_BYTES_MAX, LONG_BUFFERS_MAX)
        self._bytes_s = 0.0
        """How fast the latest of those came that are kept in memory."""
        self._unread: OrderedDict[Fetch, Segment] = OrderedDict()
        """Fetches that are over and not read yet, the oldest first."""
        self.fetched_bytes = 0
        """INVARIANT: in memory, of fetches under way and of ``_unread``."""
        self._run_fetches = 0
        """INVARIANT: how many of the fetches under way are of runs."""
        self._writes = trio.CapacityLimiter(WRITES_MAX)
        """Of those past the page cache."""
        self._direct = True
        """Whether the disk can be written past the page cache, as far as is known."""
        self._spare = (Path(), -1)
        """A segment's file made ahead: on a cold disk that takes 1.3 ms, a third of a first read."""
        self._making_spare = False
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.make_spare()

    def close(self) -> None:
        """Drop everything."""
        path, fd = self._spare
        if fd >= 0:
            os.close(fd)
            path.unlink(missing_ok=True)
            self._spare = (Path(), -1)
        for segment in self._segments.values():
            self._remove(segment)
        self._segments.clear()
        self._open.clear()
        self.used_bytes = 0

    def check(self) -> None:
        """Raise ValueError unless the invariants hold; while nothing is under way."""
        if self.used_bytes != sum(segment.bytes for segment in self._segments.values()):
            raise ValueError(f"{self.used_bytes} bytes are counted, and not there")
        if self.fetched_bytes != sum(fetch.size for fetch in self._unread):
            raise ValueError(f"{self.fetched_bytes} bytes are counted as fetched, and not there")
        kept = {fetch for segment in self._segments.values() for fetch in segment.unread.values()}
        if not kept <= set(self._unread):
            raise ValueError("what segments have in memory is not what is counted")

    @property
    def fast(self) -> bool:
        """Whether bytes come fast, and there is memory for long fetches."""
        return self._bytes_s >= FAST_BYTES_S and self.fetched_bytes <= FETCHED_BYTES_MAX // 2

    @property
    def busy(self) -> bool:
        """Whether one more fetch would have to wait."""
        return not self._fetches.available_tokens

    # -- synchronous state -----------------------------------------------------------------------------------------

    def _segment(self, key: tuple[str, int]) -> Segment:
        segment = self._segments.get(key)
        if segment is None:
            self.make_room(0)
            segment = self._segments[key] = Segment()
        else:
            self._segments.move_to_end(key)
        return segment

    def _next_path(self) -> Path:
        self._serial += 1
        return self._directory / f"{self._serial:08x}"

    def make_spare(self) -> None:
        """Make the next segment's file, if there is none; for moments when nobody waits for bytes."""
        if self._spare[1] < 0:
            path = self._next_path()
            self._spare = (path, _create(path))

    async def _make_spare(self) -> None:
        """The same while somebody does: a disk that has much to do lets the event loop wait for it."""
        path = self._next_path()
        try:
            fd = await trio.to_thread.run_sync(_create, path)
        except OSError as exc:
            # Whoever fills the segment will meet it, too.
            log.debug("no spare file: %s", exc)
            return
        finally:
            self._making_spare = False
        if self._spare[1] < 0:
            self._spare = (path, fd)
        else:
            # Somebody was faster.
            os.close(fd)
            path.unlink()

    def _descriptor(self, key: tuple[str, int], segment: Segment) -> int:
        if segment.fd < 0:
            if segment.path is None:
                self.make_spare()
                segment.path, segment.fd = self._spare
                self._spare = (Path(), -1)
                if segment.reach > (key[1] + 1) * SEGMENT_BYTES and not self._making_spare:
                    # Who reads on comes to the next segment.
                    self._making_spare = True
                    self._nursery.start_soon(self._make_spare)
            else:
                segment.fd = os.open(segment.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._open[key] = None
            if len(self._open) > OPEN_MAX:
                self._close_one(key)
        return segment.fd

    def _close_one(self, keep: tuple[str, int]) -> None:
        """Close the descriptor of a segment that nobody is filling."""
        for key in self._open:
            segment = self._segments.get(key)
            if key != keep and (segment is None or not segment.filling):
                del self._open[key]
                if segment is not None and segment.fd >= 0:
                    os.close(segment.fd)
                    segment.fd = -1
                return

    def _remove(self, segment: Segment) -> None:
        if segment.fd >= 0:
            os.close(segment.fd)
            segment.fd = -1
        for fetch in set(segment.unread.values()):
            self._forget(fetch)
        if segment.path is not None:
            segment.path.unlink(missing_ok=True)
        self.used_bytes -= segment.bytes
        segment.bytes = 0
        segment.present = 0

    def make_room(self, wanted: int) -> None:
        """Evict until ``wanted`` more bytes fit; what is being filled stays."""
        while self._segments and (self.used_bytes + wanted > self.limit_bytes or len(self._segments) >= SEGMENTS_MAX):
            key = next((key for key, segment in self._segments.items() if not segment.filling), None)
            if key is None:
                return
            segment = self._segments.pop(key)
            self._open.pop(key, None)
            self._remove(segment)

    def _keep(self, segment: Segment, fetch: Fetch) -> None:
        """Keep the bytes of a fetch that is over until they were read."""
        fetch.ended_s = trio.current_time()
        self._unread[fetch] = segment
        for block in fetch.blocks():
            segment.unread[block % SEGMENT_BLOCKS] = fetch

    def _forget(self, fetch: Fetch) -> None:
        segment = self._unread.pop(fetch)
        for block in fetch.blocks():
            # The last block of a blob that turned out longer may have been fetched again.
            if segment.unread.get(block % SEGMENT_BLOCKS) is fetch:
                del segment.unread[block % SEGMENT_BLOCKS]
                if not fetch.on_disk:
                    segment.present &= ~(1 << block % SEGMENT_BLOCKS)
        self.fetched_bytes -= fetch.size

    def _may_be_kept(self, fetch: Fetch) -> bool:
        """Whether a fetch can stay in memory until it was read, and so need not be in the page cache."""
        if fetch.of_run or fetch.stop - fetch.start < KEPT_BYTES_MIN:
            return False
        while self.fetched_bytes > FETCHED_BYTES_MAX and self._unread:
            oldest = next(iter(self._unread))
            if trio.current_time() - oldest.ended_s < UNREAD_S:
                return False
            self._forget(oldest)
        return self.fetched_bytes <= FETCHED_BYTES_MAX

    def _came(self, count: int, elapsed_s: float) -> None:
        """Learn how fast bytes come, from one of the fetches under way."""
        if count >= KEPT_BYTES_MIN:
            bytes_s = count * self._fetches.borrowed_tokens / max(elapsed_s, 1e-4)
            self._bytes_s += (bytes_s - self._bytes_s) / 4

    # -- reading ---------------------------------------------------------------------------------------------------

    def holds(self, name: str, start: int, stop: int) -> bool:
        """Whether all of ``[start, stop)`` of a blob is here."""
        for index in range(start // SEGMENT_BYTES, (stop - 1) // SEGMENT_BYTES + 1):
            base = index * SEGMENT_BYTES
            segment = self._segments.get((blob_of(name), index))
            if segment is None or not segment.holds(max(start - base, 0), min(stop - base, SEGMENT_BYTES)):
                return False
        return True

    def read_now(self, name: str, start: int, stop: int) -> memoryview | None:
        """``[start, stop)`` of a blob if it is here and in memory, without waiting: 13 µs for 128 KiB."""
        first = start // SEGMENT_BYTES
        if (stop - 1) // SEGMENT_BYTES != first:
            return None
        key = (blob_of(name), first)
        segment = self._segments.get(key)
        if segment is None:
            return None
        base = first * SEGMENT_BYTES
        if not segment.holds(start - base, stop - base):
            return None
        self._segments.move_to_end(key)
        if not segment.unread:
            return self._read_file_now(key, segment, start, stop)
        parts: list[memoryview] = []
        at = start
        while at < stop:
            fetch, end = segment.in_memory(at, stop)
            data = self._read_file_now(key, segment, at, end) if fetch is None else fetch.bytes(at, end)
            if data is None:
                return None
            parts.append(data)
            at = end
        self._were_read(segment, start, stop)
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _read_file_now(self, key: tuple[str, int], segment: Segment, start: int, stop: int) -> memoryview | None:
        buffer = self._reads.take(stop - start)
        try:
            fd = self._descriptor(key, segment)
            count = os.preadv(fd, [buffer], start - key[1] * SEGMENT_BYTES, os.RWF_NOWAIT)
        except OSError as exc:
            # Not in memory; or a file system that cannot tell, as tmpfs.
            if exc.errno in (errno.EAGAIN, errno.EOPNOTSUPP):
                return None
            raise
        return buffer if count == stop - start else None

    def _were_read(self, segment: Segment, start: int, stop: int) -> None:
        """Count what is in memory of it as read, and forget what was read to its end."""
        at = start
        while at < stop and segment.unread:
            fetch, end = segment.in_memory(at, stop)
            if fetch is not None:
                self._was_read(fetch, end - at)
            at = end

    def _was_read(self, fetch: Fetch, count: int) -> None:
        fetch.unread -= count
        # One that is not over is not in there yet; one that was over before its reader went on is, and seemed to be unread.
        if fetch.unread <= 0 and fetch in self._unread:
            self._forget(fetch)

    async def read(self, name: str, length: int, start: int, stop: int) -> Buffer:
        """``[start, stop)`` of a blob of ``length`` bytes, fetched if need be."""
        data = self.read_now(name, start, stop)
        if data is not None:
            return data
        parts: list[Buffer] = []
        at = start
        while at < stop:
            index = at // SEGMENT_BYTES
            end = min(stop, (index + 1) * SEGMENT_BYTES)
            parts.append(await self._read_segment(name, length, index, at, end))
            at = end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_segment(self, name: str, length: int, index: int, start: int, stop: int) -> Buffer:
        key = (blob_of(name), index)
        parts: list[Buffer] = []
        at = start
        while at < stop:
            # What was here may be evicted while this waits.
            self._want(name, length, at, stop)
            segment = self._segments[key]
            fetch = segment.filling.get(at // BLOCK_BYTES % SEGMENT_BLOCKS)
            if fetch is None:
                kept, end = segment.in_memory(at, segment.whole_until(at, stop))
                data = await self._read_file(key, segment, at, end) if kept is None else kept.bytes(at, end)
                self._were_read(segment, at, end)
            elif at < fetch.stop:
                # Not its end, and not the disk's: who reads on is waiting.
                end = min(stop, fetch.stop)
                await fetch.reach(end)
                data = fetch.bytes(at, end)
                self._was_read(fetch, end - at)
            else:
                # The blob is longer than was known when this block was asked for: it must be fetched again.
                await fetch.finish()
                continue
            parts.append(data)
            at = end
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def _read_file(self, key: tuple[str, int], segment: Segment, start: int, stop: int) -> Buffer:
        now = self._read_file_now(key, segment, start, stop)
        if now is not None:
            return now
        fd = os.dup(self._descriptor(key, segment))
        try:
            # The duplicate stays readable if the segment is evicted meanwhile.
            data = await trio.to_thread.run_sync(os.pread, fd, stop - start, start - key[1] * SEGMENT_BYTES)
        finally:
            os.close(fd)
        if len(data) != stop - start:
            raise OSError(errno.EIO, "a file of the cache is shorter than what was written to it")
        return data

    async def fill(self, name: str, length: int, start: int, stop: int) -> None:
        """Bring ``[start, stop)`` of a blob here, in parallel; blocks under way are waited for, not fetched again."""
        for fetch in self.fetch(name, length, start, stop):
            await fetch.finish()

    def _want(self, name: str, length: int, start: int, stop: int) -> None:
        """Begin to fetch what is missing of ``[start, stop)``, which somebody waits for, and what is likely to be wanted."""
        block = start // BLOCK_BYTES
        segment = self._segments.get((blob_of(name), block // SEGMENT_BLOCKS))
        if segment is not None and segment.lacks(block) and self._run_fetches < RUN_FETCHES_MAX:
            low = start // RUN_BYTES * RUN_BYTES
            if segment.has_any(low, low + RUN_BYTES):
                # Its own block first: who reads there waits for no other.
                self.fetch(name, length, block * BLOCK_BYTES, min(low + RUN_BYTES, max(length, stop)), of_run=True)
                if low < block * BLOCK_BYTES:
                    self.fetch(name, length, low, block * BLOCK_BYTES, of_run=True)
        self.fetch(name, length, start, stop)

    def fetch(self, name: str, length: int, start: int, stop: int, of_run: bool = False) -> list[Fetch]:
        """Begin to fetch what is missing of ``[start, stop)``; returns that and what is under way already.

        ``of_run``: what is read here and there, see RUN_BYTES.
        """
        blob = blob_of(name)
        most = LONG_FETCH_BYTES_MAX if self.fast else FETCH_BYTES_MAX
        missing: list[tuple[int, int]] = []
        fetches: list[Fetch] = []
        for block in range(start // BLOCK_BYTES, (stop - 1) // BLOCK_BYTES + 1):
            index, bit = divmod(block, SEGMENT_BLOCKS)
            segment = self._segments.get((blob, index))
            if segment is not None:
                segment.extend(length)
                if segment.present >> bit & 1:
                    continue
                if bit in segment.filling:
                    if segment.filling[bit] not in fetches:
                        fetches.append(segment.filling[bit])
                    continue
            if (
                missing and missing[-1][1] == block and bit
                and (block - missing[-1][0]) * BLOCK_BYTES < most
            ):  # fmt: skip
                missing[-1] = (missing[-1][0], block + 1)
            else:
                missing.append((block, block + 1))
        begun: list[tuple[tuple[str, int], Segment, Fetch]] = []
        for first, last in missing:
            key = (blob, first // SEGMENT_BLOCKS)
            segment = self._segment(key)
            segment.extend(length)
            # Up to where the blob is known to reach: a file may have been cut, and know of less of it than before.
            fetch = Fetch(first * BLOCK_BYTES, min(last * BLOCK_BYTES, segment.reach), of_run)
            self._run_fetches += of_run
            for block in range(first, last):
                segment.filling[block % SEGMENT_BLOCKS] = fetch
            begun.append((key, segment, fetch))
        if begun:
            self._nursery.start_soon(self._run, name, begun)
            fetches += [fetch for _, _, fetch in begun]
        return fetches

    async def _run(self, name: str, begun: list[tuple[tuple[str, int], Segment, Fetch]]) -> None:
        """See the first of some fetches through: from the network into its buffer, from there to the disk."""
        (key, segment, fetch), *others = begun
        if others:
            # When this one is under way: started all at once, every second time the last would be the first to ask.
            self._nursery.start_soon(self._run, name, others)
        start, stop, at = fetch.start, fetch.stop, fetch.start - key[1] * SEGMENT_BYTES
        keep = False
        try:
            await take(self._fetches)
            try:
                fetch.buffer = (self._short if stop - start <= FETCH_BYTES_MAX else self._long).take(stop - start)
                self.fetched_bytes += fetch.size
                begun_s = trio.current_time()
                await self._blobs.fetch(name, start, fetch.buffer, fetch.arrived)
                fetch.arrived(stop - start)
                self._came(stop - start, trio.current_time() - begun_s)
                may_be_kept = self._may_be_kept(fetch)
                passing = may_be_kept and self._bytes_s >= FAST_BYTES_S and segment.passes(fetch)
                direct = may_be_kept and self._direct and not passing
                if not (direct or passing):
                    self.make_room(stop - start)
                    await trio.to_thread.run_sync(_write, self._descriptor(key, segment), fetch.buffer, at)
                    fetch.on_disk = True
            finally:
                self._fetches.release()
            if direct and self._writes.statistics().tasks_waiting < WRITES_WAITING_MAX:
                async with self._writes:
                    self.make_room(stop - start)
                    fd = self._descriptor(key, segment)
                    self._direct = await trio.to_thread.run_sync(_write_direct, fd, fetch.buffer, at)
                    fetch.on_disk = True
            keep = may_be_kept and fetch.unread > EDGE_BYTES
            if fetch.on_disk:
                segment.bytes += stop - start
                self.used_bytes += stop - start
            for block in fetch.blocks() if keep or fetch.on_disk else ():
                # Somebody may have learnt meanwhile that the blob reaches further than this block was filled.
                if stop >= min((block + 1) * BLOCK_BYTES, segment.reach):
                    segment.present |= 1 << block % SEGMENT_BLOCKS
                    segment.unread.pop(block % SEGMENT_BLOCKS, None)
        except (VOSpaceError, OSError) as exc:
            fetch.error = copy.copy(exc)
        finally:
            for block in fetch.blocks():
                segment.filling.pop(block % SEGMENT_BLOCKS, None)
            if keep:
                self._keep(segment, fetch)
            else:
                self.fetched_bytes -= fetch.size
            self._run_fetches -= fetch.of_run
            fetch.end()


def _create(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _write(fd: int, view: memoryview, offset: int) -> None:
    while view:
        try:
            count = os.pwrite(fd, view, offset)
        except OSError as exc:
            raise StorageFull(f"the cache's disk: {exc.strerror}") from exc
        view = view[count:]
        offset += count


def _write_direct(fd: int, view: memoryview, offset: int) -> bool:
    """The same past the page cache; False if the file system has no such way, and it went the other."""
    whole, count = len(view) - len(view) % DIRECT_ALIGNMENT, 0
    try:
        # The same file, whatever has become of its name.
        direct = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        # tmpfs, for one; or there are no more descriptors.
        _write(fd, view, offset)
        return False
    try:
        count = os.pwrite(direct, view[:whole], offset)
    except OSError as exc:
        if exc.errno != errno.EINVAL:
            raise StorageFull(f"the cache's disk: {exc.strerror}") from exc
    finally:
        os.close(direct)
    _write(fd, view[count:], offset + count)
    return count > 0
