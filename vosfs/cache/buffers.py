"""Memory for bytes on their way from a disk or the network to the kernel, used again and again.

A fresh MiB costs 256 page faults and is filled with zeros before it is filled with bytes.
"""

import contextlib
import mmap
import sys

BUFFER_BYTES = 1 << 20
"""Of one buffer: the longest question of the kernel's."""
BUFFERS_MAX = 16
"""Kept at most: more than are under way at once when few programs read."""
SMALL_BYTES = 64 << 10
"""What is shorter comes from the heap without page faults."""
HUGE_BYTES = 2 << 20
"""From here on huge pages fit."""


class Buffers:
    """Buffers that nobody refers to any more are handed out again.

    Who takes one keeps it by keeping a view of it; there is nothing to give back.  They begin at a page, so that a disk can
    take them as they are, and long ones are made of huge pages.
    """

    __slots__ = ("size", "_most", "_kept")

    def __init__(self, size: int = BUFFER_BYTES, most: int = BUFFERS_MAX) -> None:
        self.size = size
        self._most = most
        self._kept: list[mmap.mmap] = []

    def take(self, length: int) -> memoryview:
        """Memory of this length, with anything in it."""
        if not SMALL_BYTES <= length <= self.size:
            return memoryview(bytearray(length))
        for index in range(len(self._kept)):
            # The list's own reference, and that of the call; a view holds one more.
            if sys.getrefcount(self._kept[index]) == 2:
                return memoryview(self._kept[index])[:length]
        buffer = mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if self.size >= HUGE_BYTES:
            with contextlib.suppress(OSError):
                # A kernel may be built without them.
                buffer.madvise(mmap.MADV_HUGEPAGE)
        if len(self._kept) < self._most:
            self._kept.append(buffer)
        return memoryview(buffer)[:length]
