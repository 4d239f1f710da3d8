"""Blobs in a dictionary, for tests and play."""

import secrets
import time
from collections.abc import Iterable, Iterator

from vosfs import checksum
from vosfs.backends.backend import in_pieces
from vosfs.errors import BlobMissing, DataCorrupt
from vosfs.metadata.node import Blob

TOTAL_BYTES = 1 << 40
"""What an imaginary disk of this backend holds, for statfs."""


class _Writer:
    def __init__(self, blobs: dict[str, tuple[bytes, int]]) -> None:
        self._blobs = blobs
        self._data = bytearray()

    def write(self, data: bytes | memoryview) -> None:
        self._data += data

    def finish(self, durable: bool) -> Blob:
        locator = secrets.token_hex(16)
        self._blobs[locator] = (bytes(self._data), time.time_ns())
        return Blob(locator, len(self._data), checksum.crc32(self._data))

    def abort(self) -> None:
        self._data.clear()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.length = len(data)

    def fileno(self) -> int:
        return -1

    def read(self, start: int, stop: int) -> bytes:
        if stop > self.length:
            raise DataCorrupt(f"blob ends at {self.length}, not {stop}")
        return self._data[start:stop]

    def stream(self, start: int, stop: int) -> Iterator[bytes]:
        return in_pieces(self, start, stop)

    def close(self) -> None:
        pass


class MemoryBackend:
    """Backend (see ``backend.py`` for every method's contract) that forgets everything when it goes."""

    def __init__(self) -> None:
        self._blobs: dict[str, tuple[bytes, int]] = {}

    def check(self, space: str) -> None:
        pass

    def create(self, length: int = 0) -> _Writer:
        return _Writer(self._blobs)

    def open(self, locator: str, start: int = 0, stop: int = 0) -> _Reader:
        try:
            return _Reader(self._blobs[locator][0])
        except KeyError:
            raise BlobMissing(f"blob {locator} is missing") from None

    def open_now(self, locator: str) -> _Reader:
        return self.open(locator)

    def sync(self, locators: Iterable[str]) -> None:
        pass

    def remove(self, locator: str) -> None:
        self._blobs.pop(locator, None)

    def locators(self, before_ns: int) -> Iterator[str]:
        return iter([locator for locator, (_, at) in self._blobs.items() if at < before_ns])

    def sweep(self, before_ns: int) -> None:
        pass

    def space(self) -> tuple[int, int]:
        return TOTAL_BYTES, TOTAL_BYTES - sum(len(data) for data, _ in self._blobs.values())
