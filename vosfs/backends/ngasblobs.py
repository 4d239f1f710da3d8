"""Blobs on their way to NGAS and back."""

import errno
import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Protocol

from vosfs import checksum
from vosfs.backends.backend import gathered
from vosfs.backends.failover import ATTEMPTS_MAX, Servers
from vosfs.backends.ngams import Elsewhere, Exchange, Missing, Refused, Server
from vosfs.backends.sums import Broken, Damaged, Sums, mended, verify
from vosfs.errors import DataCorrupt, InternalFault, ServiceUnavailable, StorageFull, TimedOut, TooLarge, VOSpaceError
from vosfs.metadata.node import Blob

log = logging.getLogger(__name__)

BLOCK_BYTES = 256 << 10
"""What one checksum covers: what a mount asks for at least."""
READ_BYTES = 512 << 10
"""Read and checked at once, while the processor's cache has it: with 1 MiB it takes a tenth longer."""
MEMORY_BYTES = 16 << 20
"""Blobs up to this are kept in memory until they are sent."""
BLOB_BYTES_MAX = 1 << 40
"""The sums of this much are 16 MiB."""
SUMS = "s"
"""The kind of file that is beside a long blob."""

LOCATOR = re.compile(r"([0-9a-f]{24})-([0-9a-f]{1,11})(?:-([0-9a-f]{8}))?")


class Keeper(Protocol):
    """The backend, as writers and readers see it."""

    @property
    def servers(self) -> Servers: ...

    def file_id(self, locator: str, kind: str = "") -> str:
        """What a blob, or its sums, is called there."""

    def spool(self) -> IO[bytes]:
        """A new file for what is written, which has no name and so cannot be left over."""

    def retrieve(self, locator: str, at: int) -> Exchange:
        """An answer with a blob's bytes from ``at`` on."""

    def sums(self, locator: str) -> bytes:
        """The packed sums of a blob."""

    def remove(self, locator: str, patient: bool = True) -> None:
        """Without patience, servers that were silent a moment ago are not asked."""


def new_locator(length: int, crc32: int) -> str:
    """A new one.  Of a long blob the CRC-32 may not be known yet: its blocks' are beside it."""
    return f"{secrets.token_hex(12)}-{length:x}" + (f"-{crc32:08x}" if length <= BLOCK_BYTES else "")


def parts(locator: str) -> tuple[int, int | None]:
    """Length and CRC-32 of a blob.  DataCorrupt for what this backend never issued."""
    found = LOCATOR.fullmatch(locator)
    length = int(found.group(2), 16) if found else 0
    if not found or (length <= BLOCK_BYTES) != (found.group(3) is not None):
        raise DataCorrupt(f"{locator[:80]!r} is not a locator")
    return length, int(found.group(3), 16) if found.group(3) else None


# -- writing ---------------------------------------------------------------------------------------------------------


class Writer:
    """A blob being written: up to MEMORY_BYTES in memory, longer ones on their way at once if their length was announced, or
    else in the spool.

    From memory and spool the next server gets it if one fails.  What is on its way is lost then, and sent again by whoever
    sent it: a copy on a local disk would halve the rate of all that does not fail.
    """

    def __init__(self, backend: Keeper, length: int) -> None:
        # Dependencies
        self._backend = backend
        # Constants
        self._announced = length
        # Mutable state
        self._sums = Sums(BLOCK_BYTES)
        self._pieces: list[bytes] = []
        """INVARIANT: at most MEMORY_BYTES together."""
        self._spool: IO[bytes] | None = None
        """A file without a name: it goes with the process."""
        self._stream: Exchange | None = None
        self._locator = ""
        """Of the stream."""
        self._tried: list[str] = []
        """Locators under which something may have arrived that nobody wants."""

    def write(self, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        if self._sums.length + len(view) > (self._announced or BLOB_BYTES_MAX):
            raise TooLarge(f"a blob in NGAS has at most {self._announced or BLOB_BYTES_MAX} bytes")
        self._sums.add(view)
        if self._stream is not None:
            self._send(self._stream, view)
        elif self._spool is not None:
            self._spill(self._spool, view)
        else:
            # A copy: callers fill their buffer again.
            self._pieces.append(bytes(view))
            if self._sums.length > MEMORY_BYTES:
                self._overflow()

    def _overflow(self) -> None:
        if self._announced:
            self._stream = self._backend.servers.tried(self._begin, "a long blob", damaged=ServiceUnavailable)
        else:
            self._spool = self._backend.spool()
            for piece in self._pieces:
                self._spill(self._spool, memoryview(piece))
        self._pieces.clear()

    @staticmethod
    def _spill(spool: IO[bytes], view: memoryview) -> None:
        try:
            while view:
                view = view[spool.write(view) :]
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise StorageFull("[storage] directory, where blobs wait to be sent, is full") from exc
            raise

    def _begin(self, server: Server) -> Exchange:
        # A server that does not want it says so while these are sent: then the next one gets them.
        self._locator = self._named()
        stream = server.archiving(self._backend.file_id(self._locator), self._announced)
        try:
            for piece in self._pieces:
                server.send(stream, memoryview(piece))
        except (VOSpaceError, Damaged, Missing, Elsewhere):
            stream.close()
            raise
        return stream

    def _send(self, stream: Exchange, view: memoryview) -> None:
        with self._alone(stream.server):
            stream.server.send(stream, view)

    @contextmanager
    def _alone(self, server: Server) -> Iterator[None]:
        """Errors of what no other server can do instead."""
        try:
            yield
        except (Damaged, Missing, Elsewhere) as exc:
            raise ServiceUnavailable(f"blob {self._locator}: {exc}") from None
        except Refused as exc:
            raise InternalFault(f"blob {self._locator}: {exc}") from None
        except (ServiceUnavailable, TimedOut) as exc:
            server.failed(isinstance(exc, TimedOut))
            raise

    def _named(self) -> str:
        """A locator that no attempt had before: one that failed may still be going on there."""
        locator = new_locator(self._announced or self._sums.length, self._sums.crc32)
        self._tried.append(locator)
        return locator

    def finish(self, durable: bool) -> Blob:
        sums = self._sums
        if self._announced and sums.length != self._announced:
            raise InternalFault(f"a blob of {self._announced} bytes was announced, and {sums.length} came")
        if not sums.length:
            locator = new_locator(0, 0)
        elif self._stream is not None:
            locator = self._end(self._stream)
        else:
            body = self._spool or b"".join(self._pieces)
            what = f"a blob of {sums.length} bytes"
            locator = self._backend.servers.tried(lambda s: self._archive(s, body), what, damaged=ServiceUnavailable)
        if locator in self._tried:
            self._tried.remove(locator)
        self.abort()
        return Blob(locator, sums.length, sums.crc32)

    def _archive(self, server: Server, body: bytes | IO[bytes]) -> str:
        locator = self._named()
        server.archive(self._backend.file_id(locator), body, self._sums.length, self._sums.crc32)
        self._archive_sums(server, locator)
        return locator

    def _archive_sums(self, server: Server, locator: str) -> None:
        if self._sums.length > BLOCK_BYTES:
            packed = self._sums.packed()
            server.archive(self._backend.file_id(locator, SUMS), packed, len(packed), checksum.crc32(packed))

    def _end(self, stream: Exchange) -> str:
        sums, server, locator, what = self._sums, stream.server, self._locator, f"blob {self._locator}"
        name = self._backend.file_id(locator)
        with self._alone(server):
            try:
                server.archived(stream, name, sums.length, sums.crc32)
            except ServiceUnavailable as exc:
                # It may have been done all the same, and the answer got lost.
                log.info("%s: %s", what, exc)
                server.confirm(name, sums.length, sums.crc32)
        self._backend.servers.tried(lambda s: self._archive_sums(s, locator), what, damaged=ServiceUnavailable)
        return locator

    def abort(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        self._pieces.clear()
        while self._tried:
            locator = self._tried.pop()
            try:
                self._backend.remove(locator, patient=False)
            except VOSpaceError as exc:
                # The collector comes upon it in some hours.
                log.info("blob %s, which is not wanted: %s", locator, exc)


# -- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    def __init__(self, backend: Keeper, locator: str, got: Exchange | None, at: int) -> None:
        # Dependencies
        self._backend = backend
        # Constants
        self.length = parts(locator)[0]
        self._locator = locator
        self._what = f"blob {locator}"
        # Mutable state
        self._got = got
        """An answer whose bytes nobody has taken yet."""
        self._at = at
        """The byte that it begins with."""

    def fileno(self) -> int:
        return -1

    def read(self, start: int, stop: int) -> bytes:
        return gathered(self.stream(start, stop))

    def stream(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        attempts = ATTEMPTS_MAX + len(self._backend.servers.all) - 1
        return mended(self._what, start, stop, self.length, BLOCK_BYTES, attempts, self._whole_blocks)

    def _whole_blocks(self, at: int, end: int) -> Iterator[memoryview]:
        packed = self._backend.sums(self._locator)
        got = self._take(at)
        try:
            yield from self._checked(got, at, end, packed)
        except (Damaged, ServiceUnavailable, TimedOut) as exc:
            # Another server may have it right.
            got.server.failed()
            raise Broken(DataCorrupt(str(exc)) if isinstance(exc, Damaged) else exc) from None
        finally:
            got.close()

    def _take(self, at: int) -> Exchange:
        """An answer that begins at a byte."""
        got, self._got = self._got, None
        if got is not None and self._at == at:
            return got
        if got is not None:
            got.close()
        return self._backend.retrieve(self._locator, at)

    def _checked(self, got: Exchange, at: int, end: int, packed: bytes) -> Iterator[memoryview]:
        """The bytes from ``at`` to ``end``, which are bounds of blocks, each block checked; in one buffer."""
        buffer = memoryview(bytearray(min(READ_BYTES, end - at)))
        while at < end:
            view = buffer[: end - at]
            got.server.fill(got, view)
            verify(view, at, packed, BLOCK_BYTES, self._what)
            yield view
            at += len(view)

    def close(self) -> None:
        if self._got is not None:
            self._got.close()
            self._got = None
