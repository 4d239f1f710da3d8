"""The port: a place for immutable blobs.

A blob is written once, in order, and never changes; a data node's bytes are extents over blobs, so replacing a file,
copying it or reading an old version never touches bytes that somebody may be reading.  All methods block and are
called in worker threads: bulk data moves fastest with one thread for a whole body (0.30 s of CPU per GiB against
0.59 with a hop per MiB).
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

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
    """An open blob; it stays readable while open, whatever happens to the backend's copy."""

    length: int

    def fileno(self) -> int:
        """A descriptor for sendfile(2), where byte 0 of the file is byte 0 of the blob; -1 if there is none."""

    def read(self, start: int, stop: int) -> bytes:
        """Exactly these bytes.  DataCorrupt if the blob is shorter than it says."""

    def close(self) -> None: ...


PIECE_BYTES = 1 << 20


def pieces(backend: "Backend", extents: Iterable[Extent]) -> Iterator[bytes]:
    """The bytes of extents, one after the other, in pieces of up to PIECE_BYTES; holes are zeros.  Blocks."""
    for e in extents:
        if e.data:
            yield e.data
            continue
        size = e.stop - e.start
        reader = backend.open(e.locator) if e.locator else None
        try:
            for at in range(0, size, PIECE_BYTES):
                stop = min(at + PIECE_BYTES, size)
                yield reader.read(e.offset + at, e.offset + stop) if reader else bytes(stop - at)
        finally:
            if reader is not None:
                reader.close()


class Backend(Protocol):
    """Where bytes are kept."""

    def create(self) -> BlobWriter:
        """Start a blob."""

    def open(self, locator: str) -> BlobReader:
        """Open a blob.  DataCorrupt if it is not there: a node says that it must be."""

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
        """(total, free) bytes."""
