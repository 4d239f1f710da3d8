"""A storage that takes so many bytes and no more: a backend over another one.

What is in it the daemon tells now and then, from what is recorded of blobs (``server/housekeeping.py``); in between,
what is written here is added.  What was uploaded and never committed is therefore counted for a minute only.
"""

import threading

from vosfs.backends.backend import BlobWriter, Keeper, Over, Slow
from vosfs.errors import StorageFull
from vosfs.metadata.node import Blob


class _Writer:
    """Takes room for what it writes, and gives it back if that is given up."""

    def __init__(self, bounded: "Bounded", inner: BlobWriter) -> None:
        self._bounded, self._inner = bounded, inner
        self._taken = 0

    def write(self, data: bytes | memoryview) -> None:
        self._bounded.take(len(data))
        self._taken += len(data)
        self._inner.write(data)

    def finish(self, durable: bool) -> Blob:
        blob = self._inner.finish(durable)
        self._taken = 0
        return blob

    def abort(self) -> None:
        self._inner.abort()
        self._bounded.take(-self._taken)
        self._taken = 0


class Bounded(Over):
    """Backend (see ``backend.py`` for every method's contract) with a quota."""

    def __init__(self, inner: Keeper, bytes_max: int) -> None:
        super().__init__(inner)
        # Constants
        self.bytes_max = bytes_max
        # Mutable state
        self._guard = threading.Lock()
        self._used = 0

    def count(self, used: int) -> None:
        """So many bytes are in it."""
        with self._guard:
            self._used = used

    def take(self, length: int) -> None:
        """So many more will be.  StorageFull."""
        with self._guard:
            if length > 0 and self._used + length > self.bytes_max:
                raise StorageFull(f"the storage has a quota of {self.bytes_max} bytes")
            self._used += length

    def create(self, length: int = 0) -> BlobWriter:
        with self._guard:
            if self._used + length > self.bytes_max:
                raise StorageFull(f"the storage has a quota of {self.bytes_max} bytes")
        return _Writer(self, self.inner.create(length))

    def space(self) -> tuple[int, int]:
        total, free = self.inner.space()
        left = max(0, self.bytes_max - self._used)
        # Nobody knows what is free in an object store: then the quota is all there is.
        return (min(total, self.bytes_max), min(free, left)) if total else (self.bytes_max, left)


class SlowBounded(Bounded):
    """The same of a storage whose blobs may have to be brought back first (see ``backend.Slow``)."""

    def locality(self, locator: str) -> str:
        assert isinstance(self.inner, Slow)
        return self.inner.locality(locator)

    def stage(self, locator: str) -> None:
        assert isinstance(self.inner, Slow)
        self.inner.stage(locator)
