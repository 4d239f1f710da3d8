"""Blobs as files: ``blobs/ab/cd/<locator>`` under one directory.

A blob is written to ``incoming/`` and renamed when it is whole, so ``blobs/`` never holds half of one.  A registered
tree (``vosfsd import``) is a symbolic link per file: the locator then records size and mtime, and a file that no
longer has them is refused instead of served as something that it is not.

No part of a path comes from a client: locators are made here, and checked against their grammar before use.
"""

import errno
import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from vosfs import checksum
from vosfs.backends.backend import in_pieces
from vosfs.disk import begin_writing
from vosfs.errors import BlobMissing, DataCorrupt, StorageFull
from vosfs.metadata.node import Blob

OPEN_MAX = 200
"""Blobs kept open for their next range: a cold path costs four disk reads, 1.5 ms."""

WRITE_OUT_BYTES = 8 << 20
"""With so much of a blob the disk begins while more of it arrives: 256 MiB that came at 1.2 GB/s were durable after 0.22 s
instead of 0.39."""

_LOCATOR = re.compile(r"[0-9a-f]{32}(?:-([0-9]+)-(-?[0-9]+))?")


FULL = (errno.ENOSPC, errno.EDQUOT)


class _Writer:
    def __init__(self, backend: "PosixBackend") -> None:
        self._backend = backend
        self._locator = secrets.token_hex(16)
        self._path = backend.root / "incoming" / self._locator
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._length = 0
        self._begun = 0
        """Up to where the disk was told to write."""
        self._crc32 = 0

    def write(self, data: bytes | memoryview) -> None:
        # CRC-32 runs at 25 GB/s here, MD5 at 0.8: the blob's checksum is free, the file's digest is not.
        self._crc32 = checksum.crc32(data, self._crc32)
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                self._length += written
                view = view[written:]
        except OSError as exc:
            if exc.errno in FULL:
                raise StorageFull("the storage is full") from exc
            raise
        if self._length - self._begun >= WRITE_OUT_BYTES:
            begin_writing(self._fd, self._begun, self._length - self._begun)
            self._begun = self._length

    def finish(self, durable: bool) -> Blob:
        if durable:
            os.fdatasync(self._fd)
        fd, self._fd = self._fd, -1
        path = self._backend.path(self._locator)
        try:
            os.rename(self._path, path)
        except FileNotFoundError:
            self._backend.make_directories(path.parent)
            os.rename(self._path, path)
        if durable:
            self._backend.sync_directories({path.parent})
        self._backend.keep_open(self._locator, fd)
        return Blob(self._locator, self._length, self._crc32)

    def abort(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._path.unlink(missing_ok=True)


class _Reader:
    def __init__(self, locator: str, fd: int) -> None:
        self._locator = locator
        self._fd = fd
        status = os.fstat(fd)
        self.length = status.st_size
        if "-" in locator:
            size, mtime_ns = locator[33:].split("-", 1)
            if (status.st_size, status.st_mtime_ns) != (int(size), int(mtime_ns)):
                os.close(fd)
                raise DataCorrupt(f"registered file {locator} was changed since it was imported: import it again")

    def fileno(self) -> int:
        return self._fd

    def read(self, start: int, stop: int) -> bytes:
        data = os.pread(self._fd, stop - start, start)
        if len(data) != stop - start:
            raise DataCorrupt(f"blob {self._locator} ends at {start + len(data)}, not {stop}")
        return data

    def stream(self, start: int, stop: int) -> Iterator[bytes]:
        return in_pieces(self, start, stop)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class PosixBackend:
    """Backend (see ``backend.py`` for every method's contract) in a directory of its own."""

    def __init__(self, root: str | Path, open_max: int = OPEN_MAX) -> None:
        # Constants
        self.root = Path(root)
        self._open_max = open_max
        # Mutable state
        self._guard = threading.Lock()
        self._kept: OrderedDict[str, int] = OrderedDict()
        """Locator -> descriptor, by last use; INVARIANT: at most ``_open_max``, none of a registered file."""
        for name in ("blobs", "incoming"):
            (self.root / name).mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, locator: str) -> Path:
        """Where a blob's file is.  DataCorrupt for what this backend never issued."""
        if not _LOCATOR.fullmatch(locator):
            raise DataCorrupt(f"{locator[:80]!r} is not a locator")
        return self.root / "blobs" / locator[:2] / locator[2:4] / locator

    def make_directories(self, path: Path) -> None:
        """``blobs/ab/cd``, each private (``mkdir(parents=True)`` gives the mode to the last one only)."""
        for directory in (path.parent, path):
            directory.mkdir(exist_ok=True, mode=0o700)

    def sync_directories(self, paths: set[Path]) -> None:
        """Make names durable, with the directories that may have been made for them: clean ones cost next to nothing."""
        for directory in {d for path in paths for d in (path, path.parent, self.root / "blobs")}:
            _sync_directory(directory)

    def check(self, space: str) -> None:
        """Its directories are there by now."""

    def create(self, length: int = 0) -> _Writer:
        return _Writer(self)

    def register(self, file: Path) -> Blob:
        """A blob that is an existing file, not a copy of it; its checksum is not known (0)."""
        status = file.stat()
        locator = f"{secrets.token_hex(16)}-{status.st_size}-{status.st_mtime_ns}"
        path = self.path(locator)
        self.make_directories(path.parent)
        path.symlink_to(file.resolve())
        return Blob(locator, status.st_size, 0)

    def keep_open(self, locator: str, fd: int) -> None:
        """Take over a descriptor of a blob, for readers to come."""
        with self._guard:
            old = self._kept.pop(locator, -1)
            self._kept[locator] = fd
            if old < 0 and len(self._kept) > self._open_max:
                old = self._kept.popitem(last=False)[1]
        if old >= 0:
            os.close(old)

    def open(self, locator: str, start: int = 0, stop: int = 0) -> _Reader:
        path = self.path(locator)
        kept = self.open_now(locator)
        if kept is not None:
            return kept
        follow = 0 if "-" in locator else os.O_NOFOLLOW
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | follow)
        except FileNotFoundError as exc:
            raise BlobMissing(f"blob {locator} is missing") from exc
        except OSError as exc:
            raise DataCorrupt(f"blob {locator} cannot be opened: {exc.strerror}") from exc
        if not follow:
            # A registered file may be replaced under its name, and that must be noticed.
            return _Reader(locator, fd)
        reader = _Reader(locator, os.dup(fd))
        self.keep_open(locator, fd)
        return reader

    def open_now(self, locator: str) -> _Reader | None:
        with self._guard:
            kept = self._kept.get(locator, -1)
            if kept < 0:
                return None
            self._kept.move_to_end(locator)
            return _Reader(locator, os.dup(kept))

    def close(self) -> None:
        """Close the kept descriptors."""
        with self._guard:
            while self._kept:
                os.close(self._kept.popitem()[1])

    def sync(self, locators: Iterable[str]) -> None:
        directories = set()
        for locator in locators:
            path = self.path(locator)
            try:
                fd = os.open(path, os.O_RDONLY)
            except OSError as exc:
                raise DataCorrupt(f"blob {locator} cannot be opened: {exc.strerror}") from exc
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
            directories.add(path.parent)
        self.sync_directories(directories)

    def remove(self, locator: str) -> None:
        with self._guard:
            kept = self._kept.pop(locator, -1)
        if kept >= 0:
            os.close(kept)
        self.path(locator).unlink(missing_ok=True)

    def locators(self, before_ns: int) -> Iterator[str]:
        for directory, _, files in os.walk(self.root / "blobs"):
            for name in files:
                try:
                    status = os.lstat(os.path.join(directory, name))
                except FileNotFoundError:
                    continue
                if status.st_mtime_ns < before_ns and _LOCATOR.fullmatch(name):
                    yield name

    def sweep(self, before_ns: int) -> None:
        for path in (self.root / "incoming").iterdir():
            try:
                if path.lstat().st_mtime_ns < before_ns:
                    path.unlink()
            except FileNotFoundError:
                continue

    def space(self) -> tuple[int, int]:
        status = os.statvfs(self.root)
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
