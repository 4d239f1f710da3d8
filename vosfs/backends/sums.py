"""CRC-32s of a blob's blocks: what is read is checked before a byte of it is given out.

Storage far away checks a whole file at best, when it arrives, and nothing when a range of it is read.
"""

import struct
import zlib


class Damaged(Exception):
    """What came back is not what was written; it may come back right when it is asked for again."""


class Sums:
    """CRC-32s of the blocks of what is written, and of all of it."""

    def __init__(self, block_bytes: int) -> None:
        # Constants
        self._block_bytes = block_bytes
        # Mutable state
        self.length = 0
        self.crc32 = 0
        self._table = bytearray()
        self._open = 0

    def add(self, view: memoryview) -> None:
        self.crc32 = zlib.crc32(view, self.crc32)
        while view:
            part = view[: self._block_bytes - self.length % self._block_bytes]
            self._open = zlib.crc32(part, self._open)
            self.length += len(part)
            if self.length % self._block_bytes == 0:
                self._table += struct.pack("<I", self._open)
                self._open = 0
            view = view[len(part) :]

    def packed(self) -> bytes:
        """The table, with a sum of its own."""
        last = struct.pack("<I", self._open) if self.length % self._block_bytes else b""
        table = bytes(self._table) + last
        return table + struct.pack("<I", zlib.crc32(table))


def packed_bytes(length: int, block_bytes: int) -> int:
    """How long the packed sums of a blob are."""
    return 4 * -(-length // block_bytes) + 4


def checked(packed: bytes, length: int, block_bytes: int, what: str) -> bytes:
    """The packed sums of a blob of ``length`` bytes, if that is what they are."""
    table = packed[:-4]
    right = len(packed) == packed_bytes(length, block_bytes) and packed[-4:] == struct.pack("<I", zlib.crc32(table))
    if not right:
        raise Damaged(f"{what}: its checksums do not belong to {length} bytes")
    return packed


def blocks(start: int, stop: int, length: int, block_bytes: int) -> tuple[int, int]:
    """The range of whole blocks around a range; the last block of a blob may be short."""
    return start - start % block_bytes, min(-(-stop // block_bytes) * block_bytes, length)


def verify(view: memoryview, at: int, packed: bytes, block_bytes: int, what: str) -> None:
    """Damaged unless these blocks, the first of them at ``at``, are what was written."""
    for low in range(0, len(view), block_bytes):
        if (
            zlib.crc32(view[low : low + block_bytes])
            != struct.unpack_from("<I", packed, 4 * ((at + low) // block_bytes))[0]
        ):
            raise Damaged(f"{what}: the block at {at + low} is not what was written")
