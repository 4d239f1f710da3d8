"""CRC-32s of a blob's blocks: what is read is checked before a byte of it is given out.

Storage far away checks a whole file at best, when it arrives, and nothing when a range of it is read.
"""

import logging
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache

from vosfs.errors import DataCorrupt, VOSpaceError

log = logging.getLogger(__name__)

KEPT_MAX = 100
"""Tables of sums that a backend remembers; a GiB has 16 to 32 KiB of them."""


class Damaged(Exception):
    """What came back is not what was written; it may come back right when it is asked for again."""


class Broken(Exception):
    """A reading broke off, for a reason that another may not meet."""

    def __init__(self, reason: VOSpaceError) -> None:
        super().__init__(str(reason))
        self.reason = reason


@cache
def _tables(length: int) -> tuple[list[int], ...]:
    """What ``length`` bytes behind them make of CRC-32s: the map is linear, so a table for each byte of one."""
    zeros = bytes(length)
    base = zlib.crc32(zeros)
    bits = [zlib.crc32(zeros, 1 << bit) ^ base for bit in range(32)]
    tables = []
    for low in range(0, 32, 8):
        table = [0]
        for bit in bits[low : low + 8]:
            table += [value ^ bit for value in table]
        tables.append(table)
    return tuple(tables)


class Sums:
    """CRC-32s of the blocks of what is written, and of all of it.

    The latter is put together from the former: counting it too would take another 0.16 s a GiB.
    """

    def __init__(self, block_bytes: int) -> None:
        # Constants
        self._block_bytes = block_bytes
        # Mutable state
        self.length = 0
        self._table = bytearray()
        self._whole = 0
        """CRC-32 of the blocks in the table."""
        self._open = 0

    def add(self, view: memoryview) -> None:
        while view:
            part = view[: self._block_bytes - self.length % self._block_bytes]
            self._open = zlib.crc32(part, self._open)
            self.length += len(part)
            if self.length % self._block_bytes == 0:
                self._table += struct.pack("<I", self._open)
                self._whole = self._joined(self._block_bytes)
                self._open = 0
            view = view[len(part) :]

    def _joined(self, length: int) -> int:
        """CRC-32 of the blocks in the table and the ``length`` bytes of the open one."""
        if length == self._block_bytes:
            first, second, third, fourth = _tables(length)
            whole = self._whole
            return (
                first[whole & 255]
                ^ second[whole >> 8 & 255]
                ^ third[whole >> 16 & 255]
                ^ fourth[whole >> 24]
                ^ self._open
            )
        zeros = bytes(length)
        return zlib.crc32(zeros, self._whole) ^ zlib.crc32(zeros) ^ self._open

    @property
    def crc32(self) -> int:
        """Of all."""
        return self._joined(self.length % self._block_bytes)

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


def mended(
    what: str, start: int, stop: int, length: int, block_bytes: int, attempts: int,
    whole_blocks: Callable[[int, int], Iterator[bytes | memoryview]],
) -> Iterator[bytes | memoryview]:  # fmt: skip
    """``[start, stop)`` of a blob, out of its checked blocks; a reading that breaks off is taken up where it did.

    ``whole_blocks`` gives what lies between two bounds of blocks, or Broken; that often in a row, its reason is raised.
    """
    if stop > length:
        raise DataCorrupt(f"{what} ends at {length}, not {stop}")
    at, end = blocks(start, stop, length, block_bytes)
    failures = 0
    while start < stop and at < end:
        try:
            for data in whole_blocks(at, end):
                piece = data[max(start - at, 0) : stop - at]
                at += len(data)
                failures = 0
                yield piece
        except Broken as exc:
            failures += 1
            if failures == attempts:
                raise exc.reason from None
            log.info("%s is read again from %d: %s", what, at, exc)


class KeptSums:
    """The packed sums of the long blobs that were read last.  Used by several threads."""

    def __init__(self) -> None:
        # Mutable state
        self._guard = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        """Locator -> packed sums; INVARIANT: at most KEPT_MAX."""

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, locator: str) -> bool:
        return locator in self._kept

    def get(self, locator: str) -> bytes | None:
        with self._guard:
            packed = self._kept.get(locator)
            if packed is not None:
                self._kept.move_to_end(locator)
            return packed

    def keep(self, locator: str, packed: bytes) -> None:
        with self._guard:
            self._kept[locator] = packed
            if len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)

    def forget(self, locator: str) -> None:
        with self._guard:
            self._kept.pop(locator, None)
