"""Contents of files that a program is about to open: they are here when it does.

A small file costs a round trip to open and, above 16 KiB, one more to read; a program that goes through a container
waits for both at each.  One message brings the contents of many.
"""

import logging

import trio

from vosfs.cache.file import FileTable
from vosfs.cache.segments import BLOCK_BYTES
from vosfs.errors import VOSpaceError
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.node import DATA, Content, Node
from vosfs.metadata.walk import OpenAhead

log = logging.getLogger(__name__)

MESSAGES_MAX = 2
"""Under way at once: with listings ahead and the feed fewer than the client has connections."""


class Openings:
    """What programs of this mount open, and what they will."""

    def __init__(self, tree: CachedTree, files: FileTable, nursery: trio.Nursery) -> None:
        # Dependencies
        self._tree = tree
        self._files = files
        self._nursery = nursery
        # Mutable state
        self._order = OpenAhead()
        self._messages = 0
        self.bytes_too = False
        """Whether bytes may be fetched that nobody has asked for yet: not where they may come from a slow storage."""

    def found(self, container: int, entries: list[tuple[bytes, Node]], begins: bool) -> None:
        """A listing has these entries next, or first."""
        self._order.found(container, (node.id for _, node in entries if node.kind == DATA), begins)

    def opened(self, id: int) -> None:
        """A program opens a file to read it."""
        if not self._tree.live:
            # What comes would not be kept long enough.
            return
        following = self._order.opened(id, self._messages < MESSAGES_MAX)
        if following and (wanted := self._tree.will_open([other for other in following if self._unknown(other)])):
            self._messages += 1
            self._nursery.start_soon(self._bring, wanted)

    def _unknown(self, id: int) -> bool:
        node = self._tree.peek(id)
        return node is not None and node.length > 0 and not self._files.knows(id)

    async def _bring(self, ids: list[int]) -> None:
        try:
            for found in await self._tree.open_ahead(ids):
                if self.bytes_too:
                    self._fetch(found)
        except VOSpaceError as exc:
            # Whoever opens them will be told.
            log.debug("opening %d files ahead failed: %s", len(ids), exc)
        finally:
            self._messages -= 1

    def _fetch(self, found: Content) -> None:
        """Begin to fetch the first block of a file that did not come along."""
        first = found.extents[0] if found.extents else None
        # What programs wait for comes first.
        if first is not None and first.locator and not self._files.blocks.busy:
            end = first.offset + first.stop - first.start
            self._files.blocks.fetch(first.locator, end, first.offset, min(end, first.offset + BLOCK_BYTES))
