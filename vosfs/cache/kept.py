"""Bytes that could not be saved, kept for whoever wrote them.

A close that failed, a conflict that somebody else won, an acknowledged change that the service refused: the space goes on
without these bytes, and nothing retries them.  They stay in the cache directory, named and described, until
``vosfs recover`` gives them back or drops them.

Each is two files: ``NAME.bytes``, sparse, addressed by file offset, and ``NAME.record``, written last and in one step.
"""

import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import msgspec

from vosfs.cache.scratch import Scratch
from vosfs.metadata import content
from vosfs.metadata.node import Extent, Size, Time

log = logging.getLogger(__name__)

KEPT_BYTES_MAX = 4 << 30
"""Of a cache directory: beyond, the oldest go.  The latest stays however long it is."""
COPY_BYTES = 1 << 20
RECORD_BYTES_MAX = 64 << 20
_RECORD, _ASIDE, _BYTES = ".record", ".new", ".bytes"


class Record(msgspec.Struct):
    """What is known of the kept bytes."""

    url: str
    """The space."""
    path: str
    """Where in it, as far as the mount knew."""
    node: int
    version: Size
    """The version that the writer began with; the rest of the file is as it was there."""
    length: Size
    mtime_ns: Time
    at_ns: Time
    """When saving them was given up."""
    why: str
    local: list[tuple[int, int]]
    """What of the file is in ``NAME.bytes``."""
    extents: list[Extent]
    """What the rest is: inline, holes, or blobs whose leases may have ended since."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


class KeptFile:
    """One of them."""

    def __init__(self, path: Path, record: Record) -> None:
        self._path = path
        self.record = record

    @property
    def name(self) -> str:
        """What ``vosfs recover`` calls it."""
        return self._path.stem

    @property
    def size(self) -> int:
        """Bytes of it that are here."""
        return sum(stop - start for start, stop in self.record.local) + sum(len(e.data) for e in self.record.extents)

    def missing(self) -> list[Extent]:
        """What has to be fetched from the service to have the whole file."""
        found: list[Extent] = []
        at = 0
        for start, stop in [*self.record.local, (self.record.length, self.record.length)]:
            found += [e for e in content.slices(self.record.extents, at, start) if e.locator] if at < start else []
            at = max(at, stop)
        return found

    async def restore(self, target: int, fetch: Callable[[str, int, int], Awaitable[bytes]] | None) -> int:
        """Write the whole file to a descriptor; returns how many bytes are zeros because nobody has them.

        ``fetch(name, start, stop)`` asks the service for a piece of a blob; None: do not ask.  OSError.
        """
        os.ftruncate(target, self.record.length)
        for e in self.record.extents:
            if e.data:
                os.pwrite(target, e.data, e.start)
        lost = 0
        for e in self.missing():
            for at in range(e.start, e.stop, COPY_BYTES):
                stop = min(at + COPY_BYTES, e.stop)
                if fetch is None:
                    lost += stop - at
                else:
                    os.pwrite(target, await fetch(e.locator, e.offset + at - e.start, e.offset + stop - e.start), at)
        source = os.open(self._path.with_suffix(_BYTES), os.O_RDONLY | os.O_CLOEXEC)
        try:
            for start, stop in self.record.local:
                for at in range(start, stop, COPY_BYTES):
                    os.pwrite(target, os.pread(source, min(COPY_BYTES, stop - at), at), at)
        finally:
            os.close(source)
        return lost

    def whole(self) -> bool:
        """Whether the bytes that should be here are."""
        try:
            size = self._path.with_suffix(_BYTES).stat().st_size
        except OSError:
            return False
        return all(stop <= size for _, stop in self.record.local)

    def drop(self) -> None:
        """Remove it."""
        self._path.unlink(missing_ok=True)
        self._path.with_suffix(_BYTES).unlink(missing_ok=True)


class Kept:
    """The kept bytes of one cache directory, which several mounts may share."""

    def __init__(self, directory: Path, url: str = "", limit_bytes: int = KEPT_BYTES_MAX) -> None:
        # Constants
        self._directory = directory
        self._url = url
        self._limit_bytes = limit_bytes
        # Mutable state
        self._serial = 0

    def keep(
        self, path: str, node: int, version: int, length: int, why: str, extents: list[Extent],
        local: list[tuple[int, int]], scratch: Scratch | None,
    ) -> None:  # fmt: skip
        """Take a file's bytes over; ``scratch`` is empty afterwards.  Never raises: the caller has an error to tell."""
        now_ns = time.time_ns()
        record = Record(self._url, path, node, version, length, now_ns, now_ns, why, local, extents)
        self._serial += 1
        base = self._directory / f"{now_ns:x}-{os.getpid()}-{self._serial}"
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            data = base.with_suffix(_BYTES)
            if scratch is None:
                data.touch(0o600)
            else:
                scratch.move_to(data)
            aside = base.with_suffix(_ASIDE)
            aside.write_bytes(_encode(record))
            aside.rename(base.with_suffix(_RECORD))
            self._trim()
        except OSError as exc:
            log.error("%s: what was written is lost (%s), and could not be kept: %s", path, why, exc.strerror)
            # Mostly because the disk is full: bytes without a record would only keep it so.
            for suffix in (_BYTES, _ASIDE, _RECORD):
                base.with_suffix(suffix).unlink(missing_ok=True)
            return
        log.warning("%s: not saved: %s; kept as %s: see vosfs recover", path, why, base.name)

    def _trim(self) -> None:
        kept = list(self.files())
        total = sum(file.size for file in kept)
        for file in kept[:-1]:
            if total <= self._limit_bytes:
                return
            log.error("%s: kept bytes of %s are dropped for newer ones", file.record.path, file.name)
            total -= file.size
            file.drop()

    def files(self) -> Iterator[KeptFile]:
        """All of them, oldest first; what cannot be read is passed over."""
        for path in sorted(self._directory.glob("*" + _RECORD)):
            with contextlib.suppress(OSError, msgspec.DecodeError), open(path, "rb") as file:
                yield KeptFile(path, _decode(file.read(RECORD_BYTES_MAX)))

    def strays(self) -> list[Path]:
        """Files here that are not part of any of them: a mount was killed while it wrote one."""
        known = {file.name for file in self.files()}
        return [path for path in sorted(self._directory.glob("*")) if path.stem not in known]

    def find(self, name: str) -> KeptFile | None:
        """The one of this name."""
        return next((file for file in self.files() if file.name == name), None)
