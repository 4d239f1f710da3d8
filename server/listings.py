"""Documents of long listings, kept for as long as nothing is committed.

A listing of 10 000 children takes 0.15 s of this process, and is asked for again: by a portal's users, by a script on
every node of a cluster.  Nothing has to be known of what changes: the store says whether anything did.
"""

import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator

import msgspec

from server.access import Subject
from vosfs.metadata.store import Store

LISTINGS_BYTES_MAX = 32 << 20
"""Of all documents that are kept, gathered, or sent though they are kept no more."""
LISTING_BYTES_MAX = 16 << 20
"""Of one: 17 000 children."""
LONG_MAX = 1_000
"""Listings that are known to be long."""
QUERY_LENGTH_MAX = 500
"""Of a query that is remembered."""


class Asked(msgspec.Struct, frozen=True):
    """All that an answer depends on besides what is committed."""

    path: tuple[bytes, ...]
    query: str
    subject: Subject


class Document:
    """A listing's pieces."""

    __slots__ = ("asked", "snapshot", "pieces", "size", "users", "kept")

    def __init__(self, asked: Asked, snapshot: object) -> None:
        self.asked = asked
        self.snapshot = snapshot
        """What was committed before it was begun."""
        self.pieces: list[bytes] = []
        self.size = 0
        self.users = 0
        """Answers that are made of it just now."""
        self.kept = False


class Listings:
    """What was listed since the last change, from the second time on: others are not asked whether they are kept."""

    def __init__(self, store: Store) -> None:
        # Dependencies
        self._store = store
        # Mutable state
        self._long: OrderedDict[Asked, None] = OrderedDict()
        """What was long before, and not too long, the latest at the end; INVARIANT: at most LONG_MAX."""
        self._snapshot: object = None
        """The last that was seen; INVARIANT: of all that is kept."""
        self._kept: OrderedDict[Asked, Document] = OrderedDict()
        """The one that was asked for last is at the end."""
        self._gathered: set[Asked] = set()
        """By one answer each, of the many that may be made at once."""
        self.bytes = 0
        """INVARIANT: of ``_kept``, what is gathered, and what has users still; at most LISTINGS_BYTES_MAX."""

    async def find(self, asked: Asked) -> Document:
        """The document, kept or to be made; before anything is read for it."""
        if asked not in self._long:
            return Document(asked, None)
        snapshot = await self._store.snapshot()
        if snapshot != self._snapshot:
            self._snapshot = snapshot
            while self._kept:
                self._drop_oldest()
        if asked in self._kept:
            self._kept.move_to_end(asked)
            return self._kept[asked]
        return Document(asked, snapshot)

    async def send(self, document: Document) -> AsyncGenerator[bytes]:
        """The pieces of one that is kept."""
        self._use(document)
        try:
            for piece in document.pieces:
                yield piece
        finally:
            self._used(document)

    async def gather(self, document: Document, make: AsyncGenerator[str]) -> AsyncGenerator[bytes]:
        """The pieces of a long one as they are made; it is kept if it was long before, and nobody gathers it already."""
        asked = document.asked
        gathers = document.snapshot is not None and asked not in self._gathered
        if gathers:
            self._gathered.add(asked)
        self._use(document)
        length = 0
        try:
            async with contextlib.aclosing(make) as texts:
                async for text in texts:
                    piece = text.encode()
                    length += len(piece)
                    if gathers and not self._add(document, piece):
                        gathers = False
                        self._gathered.discard(asked)
                    yield piece
            if length <= LISTING_BYTES_MAX:
                # Of one that is longer nothing would be kept, and what was gathered is in the way of others.
                self._was_long(asked)
            # What was committed since may be in a part of it; it is given to nobody then, since the store says so.
            if gathers and document.snapshot == self._snapshot and asked not in self._kept:
                document.kept = True
                self._kept[asked] = document
        finally:
            if gathers:
                self._gathered.discard(asked)
            self._used(document)

    def _add(self, document: Document, piece: bytes) -> bool:
        """One piece more, if there is room for it."""
        if document.size + len(piece) > LISTING_BYTES_MAX:
            return False
        while self.bytes + len(piece) > LISTINGS_BYTES_MAX and self._kept:
            self._drop_oldest()
        if self.bytes + len(piece) > LISTINGS_BYTES_MAX:
            # What is sent to slow clients takes it.
            return False
        document.pieces.append(piece)
        document.size += len(piece)
        self.bytes += len(piece)
        return True

    def _use(self, document: Document) -> None:
        if not document.kept and not document.users:
            # It may have been dropped since it was found.
            self.bytes += document.size
        document.users += 1

    def _used(self, document: Document) -> None:
        document.users -= 1
        self._count_out(document)

    def _drop_oldest(self) -> None:
        _, document = self._kept.popitem(last=False)
        document.kept = False
        self._count_out(document)

    def _count_out(self, document: Document) -> None:
        if not document.kept and not document.users:
            self.bytes -= document.size

    def _was_long(self, asked: Asked) -> None:
        if len(asked.query) > QUERY_LENGTH_MAX:
            return
        self._long[asked] = None
        self._long.move_to_end(asked)
        if len(self._long) > LONG_MAX:
            self._long.popitem(last=False)
