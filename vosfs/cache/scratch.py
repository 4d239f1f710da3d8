"""Where a file's unsaved bytes are kept: in memory while few, then in a sparse file of the cache directory."""

import ctypes
import errno
import os
from pathlib import Path

from vosfs.errors import StorageFull

MEMORY_BYTES_MAX = 128 * 1024
"""Most files are smaller: they never cost a local file (60 µs each)."""

_PUNCH = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE."""
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _write(fd: int, data: bytes | bytearray | memoryview, start: int) -> None:
    view = memoryview(data)
    try:
        while view:
            written = os.pwrite(fd, view, start)
            view, start = view[written:], start + written
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull("the cache's disk is full") from exc
        raise


class Scratch:
    """A sparse run of bytes addressed by file offset.  What was never written reads as zeros."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory: bytearray | None = bytearray()
        self._fd = -1

    def write(self, start: int, data: bytes | memoryview) -> None:
        """Put bytes at an offset.  StorageFull if the cache's disk is."""
        memory = self._memory
        if memory is not None:
            stop = start + len(data)
            if stop <= MEMORY_BYTES_MAX:
                if start > len(memory):
                    memory.extend(bytes(start - len(memory)))
                memory[start:stop] = data
                return
            self._spill()
        _write(self._fd, data, start)

    @property
    def in_memory(self) -> bool:
        """Whether no local file is held."""
        return self._memory is not None

    def _spill(self) -> None:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write(fd, self._memory or b"", 0)
        except BaseException:
            # The bytes are still in memory.
            os.close(fd)
            self._path.unlink(missing_ok=True)
            raise
        self._fd, self._memory = fd, None

    def read(self, start: int, stop: int) -> bytes:
        """Bytes at an offset; they were written before, so the page cache has them."""
        memory = self._memory
        data = os.pread(self._fd, stop - start, start) if memory is None else bytes(memory[start:stop])
        return data if len(data) == stop - start else data + bytes(stop - start - len(data))

    def descriptor(self) -> int:
        """A file that has the bytes, for sendfile(2)."""
        if self._memory is not None:
            self._spill()
        return self._fd

    def reach(self, stop: int) -> None:
        """Be so long at least, with zeros, which take no room."""
        fd = self.descriptor()
        if os.fstat(fd).st_size < stop:
            os.ftruncate(fd, stop)

    def move_to(self, path: Path) -> None:
        """Leave the bytes in a file of their own, on the same file system, and forget them here."""
        fd = self.descriptor()
        os.rename(self._path, path)
        os.close(fd)
        self._fd, self._memory = -1, None

    def punch(self, start: int, stop: int) -> None:
        """Make ``[start, stop)`` zeros, and give its space back to the disk."""
        if self._memory is not None:
            stop = min(stop, len(self._memory))
            self._memory[start:stop] = bytes(max(0, stop - start))
        elif self._fd >= 0:
            _fallocate(self._fd, _PUNCH, start, stop - start)

    def close(self) -> None:
        """Forget all of it."""
        self._memory = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink(missing_ok=True)
