"""What is known of a blob's bytes here: which blocks of a segment there are, and which are on their way.

State only: who asks for bytes, writes and evicts them is ``blocks.py``.
"""

import copy
import threading
from pathlib import Path

import trio

from vosfs.errors import ServiceUnavailable, VOSpaceError

BLOCK_BYTES = 256 * 1024
"""What a miss fetches: 0.4 ms on loopback, where 4 KiB would cost 0.2 and 1 MiB 1.0."""
SEGMENT_BYTES = 16 << 20
SEGMENT_BLOCKS = SEGMENT_BYTES // BLOCK_BYTES


class Fetch:
    """Bytes ``[start, stop)`` of a blob on their way here.

    Readers take them from the buffer as they arrive: a first read need not wait for the end of its block, nor for the
    disk.
    """

    __slots__ = (
        "start", "stop", "of_run", "buffer", "unread", "ended_s", "on_disk", "error",
        "_here", "_waiting", "_ended", "_token", "_thread",
    )  # fmt: skip

    def __init__(self, start: int, stop: int, of_run: bool = False) -> None:
        self.start = start
        self.stop = stop
        self.of_run = of_run
        """Whether its bytes will be read here and there, again and again, rather than once from their beginning on."""
        self.buffer = memoryview(b"")
        self.unread = stop - start
        """Bytes less those that were read; what was read twice counts twice."""
        self.ended_s = 0.0
        """When all of it was here."""
        self.on_disk = False
        self.error: VOSpaceError | OSError | None = None
        self._here = start
        """INVARIANT: the buffer holds the blob's bytes up to here."""
        self._waiting: list[tuple[int, trio.Event]] = []
        self._ended = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._thread = threading.get_ident()

    def arrived(self, count: int) -> None:
        """The first ``count`` bytes of the buffer are right.  Called in any thread."""
        # A request that is tried again on a new connection begins anew.
        self._here = max(self._here, self.start + count)
        if any(stop <= self._here for stop, _ in self._waiting):
            if threading.get_ident() == self._thread:
                self._wake()
            else:
                self._token.run_sync_soon(self._wake)

    def _wake(self) -> None:
        for stop, event in self._waiting:
            if stop <= self._here:
                event.set()
        self._waiting = [item for item in self._waiting if item[0] > self._here]

    def end(self) -> None:
        """Nothing more will come."""
        for _, event in self._waiting:
            event.set()
        self._waiting.clear()
        self._ended.set()

    async def reach(self, stop: int) -> None:
        """Wait for the bytes up to ``stop``, at most this fetch's own; raises what it failed with."""
        if self._here < stop:
            event = trio.Event()
            self._waiting.append((stop, event))
            # Once more: they may have come in a thread that saw nobody waiting.
            if self._here < stop and not self._ended.is_set():
                await event.wait()
            if self._here < stop:
                raise self._failure()

    async def finish(self) -> None:
        """Wait until the bytes are on the disk, or in memory if it is too slow."""
        await self._ended.wait()
        if self.error is not None:
            raise self._failure()

    def _failure(self) -> Exception:
        # A copy, as what is kept is one: an error that was raised holds all that was near, this fetch and its memory too.
        return copy.copy(self.error) or ServiceUnavailable("the mount is going away")

    @property
    def size(self) -> int:
        """Of the memory that its buffer is part of; 0 before it has one."""
        return memoryview(self.buffer.obj).nbytes if self.buffer else 0

    def blocks(self) -> range:
        """Blocks of the blob that it has bytes of."""
        return range(self.start // BLOCK_BYTES, (self.stop - 1) // BLOCK_BYTES + 1)

    def bytes(self, start: int, stop: int) -> memoryview:
        """Bytes that ``reach`` or ``finish`` waited for."""
        return self.buffer[start - self.start : stop - self.start]


class Segment:
    """A run of up to SEGMENT_BYTES of one blob, in a sparse file."""

    __slots__ = ("path", "fd", "present", "passed", "filling", "unread", "bytes", "reach")

    def __init__(self) -> None:
        self.path: Path | None = None
        """None as long as the disk has nothing of it."""
        self.fd = -1
        self.present = 0
        """Bit i: block i is here, whole."""
        self.passed = 0
        """Bit i: block i came once, and only passed through memory."""
        self.filling: dict[int, Fetch] = {}
        """Blocks under way; INVARIANT: a segment with any is not evicted."""
        self.unread: dict[int, Fetch] = {}
        """Blocks that are in memory; INVARIANT: those that are not on the disk too are present for so long only."""
        self.bytes = 0
        """On the disk."""
        self.reach = 0
        """The blob was taken to end here: a block that this cuts is whole only up to it."""

    def holds(self, start: int, stop: int) -> bool:
        """Whether the file has all of ``[start, stop)``, counted from the segment's beginning."""
        mask = (2 << (stop - 1) // BLOCK_BYTES) - (1 << start // BLOCK_BYTES)
        return self.present & mask == mask

    def passes(self, fetch: Fetch) -> bool:
        """Whether a fetch brings none of these blocks again; they count as passed from now on."""
        bits = sum(1 << block % SEGMENT_BLOCKS for block in fetch.blocks())
        again = self.passed & bits
        self.passed |= bits
        return not again

    def lacks(self, block: int) -> bool:
        """Whether a block of the blob is neither here nor on its way."""
        bit = block % SEGMENT_BLOCKS
        return not self.present >> bit & 1 and bit not in self.filling

    def has_any(self, start: int, stop: int) -> bool:
        """Whether a block of the blob's ``[start, stop)``, which must not leave the segment, is here."""
        blocks = (1 << (stop - start) // BLOCK_BYTES) - 1
        return bool(self.present >> start // BLOCK_BYTES % SEGMENT_BLOCKS & blocks)

    def in_memory(self, start: int, stop: int) -> tuple[Fetch | None, int]:
        """The fetch that has ``start`` in memory, if one has, and up to where of ``stop`` that is so."""
        block = start // BLOCK_BYTES
        fetch = self.unread.get(block % SEGMENT_BLOCKS)
        if fetch is not None and start < fetch.stop:
            return fetch, min(stop, fetch.stop)
        end = (block + 1) * BLOCK_BYTES
        while end < stop and end // BLOCK_BYTES % SEGMENT_BLOCKS not in self.unread:
            end += BLOCK_BYTES
        return None, min(stop, end)

    def whole_until(self, start: int, stop: int) -> int:
        """Up to where of ``stop`` is here what begins at ``start``, which is."""
        end = (start // BLOCK_BYTES + 1) * BLOCK_BYTES
        while end < stop and self.present >> end // BLOCK_BYTES % SEGMENT_BLOCKS & 1:
            end += BLOCK_BYTES
        return min(stop, end)

    def extend(self, length: int) -> None:
        """The blob reaches further than was known: its cut block must be fetched again."""
        if length > self.reach:
            if self.reach % BLOCK_BYTES:
                self.present &= ~(1 << (self.reach // BLOCK_BYTES % SEGMENT_BLOCKS))
            self.reach = length
