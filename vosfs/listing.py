"""Listings of directories: read from the cached tree, page by page, with positions that need no open directory."""

import logging
from collections import OrderedDict

import trio

from vosfs.cache.file import FileTable
from vosfs.errors import VOSpaceError
from vosfs.metadata.cached import COMPLETE_MAX, CachedTree
from vosfs.metadata.node import CONTAINER, Node
from vosfs.metadata.store import PAGE_NODES_MAX
from vosfs.metadata.walk import LookAhead, WalkAhead
from vosfs.opening import Openings

log = logging.getLogger(__name__)

LISTINGS_MAX = 11
"""Containers listed ahead at once: fewer than the client has connections, so that nobody who waits finds none."""
ENTRIES_MAX = 32
"""Of a listing at a time: about what fits into the kernel's question (4 KiB)."""
LISTINGS_KEPT_MAX = 64
"""Directories that are being read; who goes on with one that was begun before so many others may see changes twice or
not at all."""
ORDINAL_BITS, SERIALS = 32, (1 << 30) - 1
"""A position is the serial number of its listing and an ordinal in it; an off_t must not become negative."""


class Listing:
    """A directory as it is read from its beginning: the pages, and where each began.

    Entries have ordinals.  Pages are forgotten as they are passed, so memory is one page; going back asks again from the
    remembered start of a page.  A listing that was read to its end has that end for ever: the kernel gives its pages to others
    too, who ask for the end again, and names that came since would have moved it.
    """

    __slots__ = ("id", "position", "starts", "page", "base", "complete", "epoch", "seen", "end")

    def __init__(self, id: int, serial: int, epoch: int) -> None:
        self.id = id
        self.position = serial << ORDINAL_BITS
        """Of its beginning, as telldir(3) has it: no other listing has positions from there to the next."""
        self.starts: list[bytes] = [b""]
        """Name after which page i begins."""
        self.page: list[tuple[bytes, Node]] = []
        self.base = -1
        """Ordinal of the page's first entry; -1: none is loaded."""
        self.complete = False
        """Whether the page is the last."""
        self.epoch = epoch
        self.seen = 0
        self.end: int | None = None
        """How many entries there were."""


class Listings:
    """What programs of this mount are listing."""

    def __init__(self, tree: CachedTree, files: FileTable, openings: Openings, nursery: trio.Nursery) -> None:
        # Dependencies
        self._tree = tree
        self._files = files
        self._openings = openings
        self._nursery = nursery
        # Mutable state
        self._listings: OrderedDict[int, Listing] = OrderedDict()
        """The latest, by their serial numbers; INVARIANT: at most LISTINGS_KEPT_MAX."""
        self._serial = 0
        self._walk = WalkAhead()
        self._lookups = LookAhead()
        self._listed_ahead: dict[int, trio.Event] = {}
        """Containers that are being listed ahead; INVARIANT: at most LISTINGS_MAX."""

    def at(self, id: int, position: int) -> tuple[Listing, int]:
        """What a position of readdir(3) is in, and how many entries are before it there, the dots included.

        A directory is not opened, since the kernel then keeps what it lists.  So the beginning begins a listing, and
        every position in it names it; one that is no longer kept is begun anew at the same ordinal.
        """
        serial, ordinal = position >> ORDINAL_BITS, position & (1 << ORDINAL_BITS) - 1
        listing = self._listings.get(serial)
        if listing is not None and listing.id == id and position:
            return listing, ordinal
        self._serial = self._serial % SERIALS + 1
        listing = self._listings[self._serial] = Listing(id, self._serial, self._tree.epoch)
        if len(self._listings) > LISTINGS_KEPT_MAX:
            self._listings.popitem(last=False)
        return listing, ordinal

    async def entries(self, listing: Listing, at: int) -> list[tuple[bytes, Node, bool]]:
        """Entries from ordinal ``at`` on, some, or none at the end; and whether each may be remembered by the kernel.

        They are as this mount knows them now, unsaved changes included, not as they were when the page was asked for.
        """
        if listing.end is not None and at >= listing.end:
            return []
        if listing.base < 0 or not listing.base <= at <= listing.base + len(listing.page):
            await self._load(listing, at // PAGE_NODES_MAX)
        if at == listing.base + len(listing.page) and not listing.complete:
            await self._load(listing, at // PAGE_NODES_MAX)
        first = at - listing.base
        names, peek, opened = self._tree.names_kept(listing.id), self._tree.peek, self._files.get
        found = []
        for name, node in listing.page[first : first + ENTRIES_MAX]:
            file = opened(node.id)
            known = file.attributes() if file is not None and file.changed else peek(node.id)
            found.append((name, known or node, known is not None and names.get(name) == node.id))
        if not found:
            listing.end = at
            if listing.base or len(listing.page) > PAGE_NODES_MAX:
                listing.page, listing.base = [], -1
        return found

    async def _load(self, listing: Listing, wanted: int) -> None:
        if wanted == 0:
            self._walk.begun(listing.id)
            self._list_ahead()
            if listing.id in self._listed_ahead:
                await self._listed_ahead[listing.id].wait()
            known = self._known_page(listing.id)
            if known is not None:
                listing.page, listing.base, listing.complete = known, 0, True
                self._found(listing, known)
                return
        page = min(wanted, len(listing.starts) - 1)
        while True:
            if page == 0:
                listing.epoch, listing.seen = self._tree.epoch, 0
            entries = await self._tree.children(listing.id, listing.starts[page], PAGE_NODES_MAX)
            listing.page, listing.base = entries, page * PAGE_NODES_MAX
            self._found(listing, entries)
            listing.complete = len(entries) < PAGE_NODES_MAX
            if page == listing.seen // PAGE_NODES_MAX and listing.seen == listing.base:
                listing.seen += len(entries)
            if listing.complete:
                if listing.seen == listing.base + len(entries):
                    self._tree.listed(listing.id, listing.epoch, listing.seen)
                return
            if len(listing.starts) == page + 1:
                listing.starts.append(entries[-1][0])
            if page >= wanted:
                return
            page += 1

    def _found(self, listing: Listing, entries: list[tuple[bytes, Node]]) -> None:
        self._openings.found(listing.id, entries, listing.base == 0)
        self._walk.found(node.id for _, node in entries if node.kind == CONTAINER)
        self._list_ahead()

    def _list_ahead(self) -> None:
        """Begin to list what a program that walks a tree will list next, where that is not known."""
        if not self._tree.live:
            # It would not be kept long enough.
            return
        for id in self._walk.next(LISTINGS_MAX - len(self._listed_ahead)):
            if id not in self._listed_ahead and self._tree.names_known(id) is None:
                self._begin(id, b"", names_all=True)

    def looked_up(self, parent: int, name: bytes) -> None:
        """The service is asked for a name: with many in a row, it is asked for the listing too."""
        if self._tree.live:
            after = self._lookups.asked(parent, name)
            if after is not None and parent not in self._listed_ahead and len(self._listed_ahead) < LISTINGS_MAX:
                # Not to know what names are not there: one that somebody else makes must be there at the first look, and a feed
                # is some 100 ms behind.
                self._begin(parent, after, names_all=False)

    def _begin(self, id: int, after: bytes, names_all: bool) -> None:
        self._listed_ahead[id] = trio.Event()
        self._nursery.start_soon(self._list, id, after, names_all)

    async def _list(self, id: int, after: bytes, names_all: bool) -> None:
        epoch = self._tree.epoch
        try:
            entries = await self._tree.children(id, after, PAGE_NODES_MAX)
            self._openings.found(id, entries, not after)
            if names_all and len(entries) < PAGE_NODES_MAX:
                self._tree.listed(id, epoch, len(entries))
        except VOSpaceError as exc:
            # Whoever asks for it will be told.
            log.debug("listing %d ahead failed: %s", id, exc)
        finally:
            self._listed_ahead.pop(id).set()
        self._list_ahead()

    def _known_page(self, id: int) -> list[tuple[bytes, Node]] | None:
        """The whole listing from memory, if every name and node of it is known."""
        names = self._tree.names_known(id)
        if names is None or len(names) > COMPLETE_MAX:
            return None
        page = []
        for name in sorted(names):
            if names[name]:
                node = self._tree.peek(names[name])
                if node is None:
                    return None
                page.append((name, node))
        return page
