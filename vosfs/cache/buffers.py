"""Memory for bytes on their way from a disk or the network to the kernel, used again and again.

A fresh MiB costs 256 page faults and is filled with zeros before it is filled with bytes.
"""

import sys

BUFFER_BYTES = 1 << 20
"""Of one buffer: the longest question of the kernel's."""
BUFFERS_MAX = 16
"""Kept at most: more than are under way at once when few programs read."""
SMALL_BYTES = 64 << 10
"""What is shorter comes from the heap without page faults."""


class Buffers:
    """Buffers that nobody refers to any more are handed out again.

    Who takes one keeps it by keeping a view of it; there is nothing to give back.
    """

    __slots__ = ("size", "_most", "_kept")

    def __init__(self, size: int = BUFFER_BYTES, most: int = BUFFERS_MAX) -> None:
        self.size = size
        self._most = most
        self._kept: list[bytearray] = []

    def take(self, length: int) -> memoryview:
        """Memory of this length, with anything in it."""
        if not SMALL_BYTES <= length <= self.size:
            return memoryview(bytearray(length))
        for index in range(len(self._kept)):
            # The list's own reference, and that of the call; a view holds one more.
            if sys.getrefcount(self._kept[index]) == 2:
                return memoryview(self._kept[index])[:length]
        buffer = bytearray(self.size)
        if len(self._kept) < self._most:
            self._kept.append(buffer)
        return memoryview(buffer)[:length]
