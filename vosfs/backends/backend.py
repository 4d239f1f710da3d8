"""The port: a place for immutable blobs.

A blob is written once, in order, and never changes; a data node's bytes are extents over blobs, so replacing a file,
copying it or reading an old version never touches bytes that somebody may be reading.  All methods block and are
called in worker threads: bulk data moves fastest with one thread for a whole body (0.30 s of CPU per GiB against
0.59 with a hop per MiB).
"""

from collections.abc import Generator, Iterable, Iterator
from typing import Protocol, runtime_checkable

import msgspec

from vosfs.metadata.node import Blob, Extent


class BlobWriter(Protocol):
    """A blob being written.  It exists for nobody until ``finish`` returns."""

    def write(self, data: bytes | memoryview) -> None:
        """Append.  StorageFull."""

    def finish(self, durable: bool) -> Blob:
        """Publish it; with ``durable`` it also survives a power cut."""

    def abort(self) -> None:
        """Drop it; harmless after ``finish``."""


class BlobReader(Protocol):
    """An open blob.  If it is removed meanwhile, reads give its bytes or DataCorrupt, and never anything else."""

    length: int

    def fileno(self) -> int:
        """A descriptor for sendfile(2), where byte 0 of the file is byte 0 of the blob; -1 if there is none."""

    def read(self, start: int, stop: int) -> bytes:
        """Exactly these bytes.  DataCorrupt if the blob is shorter than it says."""

    def stream(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        """The same in pieces of some MiB at most; a backend far away is asked once.

        A piece may be a view of memory that is used again for the next one: see ``gathered``.
        """

    def close(self) -> None: ...


PIECE_BYTES = 1 << 20


def in_pieces(reader: BlobReader, start: int, stop: int) -> Iterator[bytes]:
    """``stream`` for who has the bytes at hand: one ``read`` after the other, of PIECE_BYTES."""
    for at in range(start, stop, PIECE_BYTES):
        yield reader.read(at, min(at + PIECE_BYTES, stop))


def gathered(stream: Iterable[bytes | memoryview]) -> bytes:
    """All of a stream together."""
    return b"".join(map(bytes, stream))


def pieces(backend: "Backend", extents: Iterable[Extent]) -> Generator[bytes | memoryview, None, None]:
    """The bytes of extents, one after the other, in pieces as ``stream`` has them; holes are zeros.  Blocks."""
    for e in extents:
        if e.data:
            yield e.data
            continue
        size = e.stop - e.start
        if not e.locator:
            for at in range(0, size, PIECE_BYTES):
                yield bytes(min(PIECE_BYTES, size - at))
            continue
        reader = backend.open(e.locator, e.offset, e.offset + size)
        try:
            yield from reader.stream(e.offset, e.offset + size)
        finally:
            reader.close()


class Backend(Protocol):
    """Where bytes are kept."""

    def check(self, space: str) -> None:
        """Look at the start whether it can be used, by a space of this name that nobody sees.

        QuietError says what keeps it from that, and the cure.  Where two spaces could come to share blobs unawares, the
        first one's name is kept: each would collect the other's.
        """

    def create(self, length: int = 0) -> BlobWriter:
        """Start a blob, of just this length if it is known: some storage must be told first, and spools if it is not."""

    def open(self, locator: str, start: int = 0, stop: int = 0) -> BlobReader:
        """Open a blob.  BlobMissing, a DataCorrupt, if it is not there: a node says that it must be.

        ``start`` and ``stop`` tell what will be read first, so that a backend far away asks for it at once.
        """

    def open_now(self, locator: str) -> BlobReader | None:
        """The same without waiting: None if that is not possible.  The one method for the event loop."""

    def sync(self, locators: Iterable[str]) -> None:
        """Make blobs durable that were finished without."""

    def remove(self, locator: str) -> None:
        """Delete a blob; no error if it is gone already."""

    def locators(self, before_ns: int) -> Iterator[str]:
        """Blobs written before a time, in no order: what the collector compares with the store."""

    def sweep(self, before_ns: int) -> None:
        """Remove what writers that no longer exist left behind before a time."""

    def space(self) -> tuple[int, int]:
        """(total, free) bytes; zeros if nobody knows."""


class Keeper(Backend, Protocol):
    """A backend with what it holds."""

    def close(self) -> None:
        """Give that back."""


class Over:
    """Backend over another one: as that is, but for what a subclass has of its own."""

    def __init__(self, inner: Keeper) -> None:
        # Dependencies
        self.inner = inner

    def check(self, space: str) -> None:
        self.inner.check(space)

    def create(self, length: int = 0) -> BlobWriter:
        return self.inner.create(length)

    def open(self, locator: str, start: int = 0, stop: int = 0) -> BlobReader:
        return self.inner.open(locator, start, stop)

    def open_now(self, locator: str) -> BlobReader | None:
        return self.inner.open_now(locator)

    def sync(self, locators: Iterable[str]) -> None:
        self.inner.sync(locators)

    def remove(self, locator: str) -> None:
        self.inner.remove(locator)

    def locators(self, before_ns: int) -> Iterator[str]:
        return self.inner.locators(before_ns)

    def sweep(self, before_ns: int) -> None:
        self.inner.sweep(before_ns)

    def space(self) -> tuple[int, int]:
        return self.inner.space()

    def close(self) -> None:
        self.inner.close()


ONLINE, NEARLINE, STAGING = "ONLINE", "NEARLINE", "STAGING"
"""Where a blob is, in the words of storage resource managers: readable at once; to be asked for first; asked for."""
UNAVAILABLE = "UNAVAILABLE"
"""Of a node: that cannot be told now."""
LOCALITIES = (ONLINE, NEARLINE, STAGING, UNAVAILABLE)


@runtime_checkable
class Slow(Protocol):
    """What a backend has besides, if blobs of it may have to be brought back before they can be read.

    ``open`` of such a blob raises NotOnline at once, and asks for nothing: whoever wants it says so.
    """

    def locality(self, locator: str) -> str:
        """Where a blob is.  BlobMissing."""

    def stage(self, locator: str) -> None:
        """Ask for a blob, and return; once, however often this is called while it is on its way.

        ServiceUnavailable if that cannot be asked now: too many are on their way, say.
        """


class Signed(msgspec.Struct, array_like=True):
    """A URL that gives one blob, and nothing else, to whoever has it, and what says whether its bytes are right.

    INVARIANT: the URL is shown to nobody but whom it is for: it is as good as a key.
    """

    url: str
    life_s: float
    length: int
    block_bytes: int
    sums: bytes
    """The packed CRC-32s of its blocks (``sums.py``)."""

    def __repr__(self) -> str:
        return f"Signed(..., {self.length} bytes)"


@runtime_checkable
class Signing(Protocol):
    """What a backend may offer besides: that others read from its service themselves."""

    signs: bool
    """Whether mounts are to."""
    redirects: bool
    """Whether HTTP clients are to."""

    def signed(self, locator: str, method: str = "GET") -> Signed:
        """A URL for one method, good for a few minutes.  BlobMissing, and what ``open`` raises."""
