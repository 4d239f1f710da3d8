"""Documents of long listings, kept for as long as nothing is committed.

A listing of 10 000 children takes 0.15 s of this process, and is asked for again: by a portal's users, by a script on
every node of a cluster.  Nothing has to be known of what changes: the store says whether anything did.
"""

from collections import OrderedDict
from collections.abc import AsyncGenerator

import msgspec

from server.access import Subject
from vosfs.metadata.store import Store

LISTINGS_BYTES_MAX = 32 << 20
"""Of all documents that are kept."""
LISTING_BYTES_MAX = 16 << 20
"""Of one: 17 000 children."""
LONG_MAX = 1_000
"""Listings that are known to be long."""


class Asked(msgspec.Struct, frozen=True):
    """All that an answer depends on besides what is committed."""

    path: tuple[bytes, ...]
    query: str
    subject: Subject


class Document:
    """A listing, kept or on its way to a client."""

    def __init__(self, listings: "Listings", asked: Asked, snapshot: object, kept: list[bytes] | None) -> None:
        self._listings = listings
        self._asked = asked
        self._snapshot = snapshot
        self._pieces = kept or []
        self._bytes = 0
        self.kept = kept is not None

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Of one that is kept."""
        for piece in self._pieces:
            yield piece

    def add(self, text: str) -> bytes:
        """The next piece of one that is made, as it is sent."""
        piece = text.encode()
        self._bytes += len(piece)
        if self._snapshot is not None and self._bytes <= LISTING_BYTES_MAX:
            self._pieces.append(piece)
        else:
            self._pieces.clear()
        return piece

    def end(self) -> None:
        """That was all of it, and it was long."""
        if self._bytes <= LISTING_BYTES_MAX:
            self._listings.made(self._asked, self._snapshot, self._pieces)


class Listings:
    """What was listed since the last change, from the second time on: others are not asked whether they are kept."""

    def __init__(self, store: Store) -> None:
        # Dependencies
        self._store = store
        # Mutable state
        self._long: OrderedDict[Asked, None] = OrderedDict()
        """What was long before, the latest at the end; INVARIANT: at most LONG_MAX."""
        self._snapshot: object = None
        """What was committed before each of these was begun."""
        self._kept: OrderedDict[Asked, list[bytes]] = OrderedDict()
        """Pieces of documents; the one that was asked for last is at the end."""
        self.bytes = 0
        """INVARIANT: of all pieces, at most LISTINGS_BYTES_MAX."""

    async def document(self, asked: Asked) -> Document:
        """What is kept, or to be made; before anything is read for it."""
        if asked not in self._long:
            return Document(self, asked, None, None)
        snapshot = await self._store.snapshot()
        if snapshot != self._snapshot:
            self._kept.clear()
            self.bytes, self._snapshot = 0, snapshot
        if asked in self._kept:
            self._kept.move_to_end(asked)
        return Document(self, asked, snapshot, self._kept.get(asked))

    def made(self, asked: Asked, snapshot: object, pieces: list[bytes]) -> None:
        """Keep a document that was begun at a snapshot, if that is still the last one that was seen.

        What was committed since may be in a part of it; it is given to nobody then, since the store says so.
        """
        self._long[asked] = None
        self._long.move_to_end(asked)
        if len(self._long) > LONG_MAX:
            self._long.popitem(last=False)
        if snapshot is None or snapshot != self._snapshot or asked in self._kept:
            return
        self._kept[asked] = pieces
        self.bytes += sum(map(len, pieces))
        while self.bytes > LISTINGS_BYTES_MAX:
            _, oldest = self._kept.popitem(last=False)
            self.bytes -= sum(map(len, oldest))
