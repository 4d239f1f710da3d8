"""CRC-32s of a blob's blocks: what is read is checked before a byte of it is given out.

Storage far away checks a whole file at best, when it arrives, and nothing when a range of it is read.
"""

import logging
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

from vosfs import checksum
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


class Sums:
    """CRC-32s of the blocks of what is written, and of all of it."""

    def __init__(self, block_bytes: int) -> None:
        # Constants
        self._block_bytes = block_bytes
        # Mutable state
        self.length = 0
        self.crc32 = 0
        """Of all."""
        self._table = bytearray()
        self._open = 0

    def add(self, view: memoryview) -> None:
        self.crc32 = checksum.crc32(view, self.crc32)
        while view:
            part = view[: self._block_bytes - self.length % self._block_bytes]
            self._open = checksum.crc32(part, self._open)
            self.length += len(part)
            if self.length % self._block_bytes == 0:
                self._table += struct.pack("<I", self._open)
                self._open = 0
            view = view[len(part) :]

    def packed(self) -> bytes:
        """The table, with a sum of its own."""
        last = struct.pack("<I", self._open) if self.length % self._block_bytes else b""
        table = bytes(self._table) + last
        return table + struct.pack("<I", checksum.crc32(table))


def packed_bytes(length: int, block_bytes: int) -> int:
    """How long the packed sums of a blob are."""
    return 4 * -(-length // block_bytes) + 4


def checked(packed: bytes, length: int, block_bytes: int, what: str) -> bytes:
    """The packed sums of a blob of ``length`` bytes, if that is what they are."""
    table = packed[:-4]
    right = len(packed) == packed_bytes(length, block_bytes) and packed[-4:] == struct.pack("<I", checksum.crc32(table))
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
            checksum.crc32(view[low : low + block_bytes])
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
