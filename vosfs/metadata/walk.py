"""What to ask for ahead of a program that walks a tree: pure decisions, as read-ahead is for bytes.

``ls -R``, ``find`` and ``grep -r`` list one container after the other and each time wait for the answer: 52 round trips
for 52 containers.  What they list next is known, though: the containers that were in the last listing.  ``grep -r``, ``cp
-r`` and whoever opens the files of a container one after the other do so in the order of its listing.
"""

import itertools
from collections import OrderedDict, deque
from collections.abc import Iterable

WINDOW_MIN, WINDOW_MAX = 8, 32
"""Containers ahead.  With 10 ms to the service ``ls -lR`` of 52 containers took 0.66 s when it waited for each, 0.19 with
two ahead at first and 0.15 with eight, of which 0.08 are not waiting.  32 listings of 30 names keep it busy for a round
trip of 50 ms."""
SEEN_MAX = 4000
"""Containers that were seen in listings and not listed yet; those seen first are forgotten first."""


class WalkAhead:
    """Follows the listings of one mount.  One listing is no walk; each that goes on with one doubles the window."""

    __slots__ = ("_seen", "_window")

    def __init__(self) -> None:
        self._seen: OrderedDict[int, bool] = OrderedDict()
        """Containers in the order in which a walk comes to them, the latest listing's first; and whether ``next`` had it."""
        self._window = 0

    def begun(self, id: int) -> None:
        """A program lists a container."""
        if self._seen.pop(id, None) is None:
            self._window = 0
        else:
            self._window = min(max(2 * self._window, WINDOW_MIN), WINDOW_MAX)

    def found(self, containers: Iterable[int]) -> None:
        """These are in what it lists: if it goes on, then with them."""
        for id in reversed(list(containers)):
            self._seen[id] = False
            self._seen.move_to_end(id, last=False)
        while len(self._seen) > SEEN_MAX:
            self._seen.popitem()

    def next(self, most: int) -> list[int]:
        """Which to list ahead now, each once only: one that has too many names to be kept must not be asked for again."""
        wanted = [id for id, had in itertools.islice(self._seen.items(), self._window) if not had][:most]
        for id in wanted:
            self._seen[id] = True
        return wanted


LOOKUPS_MIN, LOOKUPS_MAX = 8, 4096
"""Names of one container that the service was asked about one by one, before its listing is asked for: that answers up to
1000 of them, for what three or four look-ups cost on one host, and one round trip on any other."""
CONTAINERS_MAX = 1000
"""Of which look-ups are counted."""


class _Asked:
    __slots__ = ("count", "wanted", "last", "ascending", "listed")

    def __init__(self) -> None:
        self.count = 0
        """Since the last listing."""
        self.wanted = LOOKUPS_MIN
        """How many bring the next one."""
        self.last = b""
        self.ascending = True
        """Whether each name since the last listing was behind the one before it."""
        self.listed = False


class LookAhead:
    """Follows look-ups that the service had to be asked for."""

    __slots__ = ("_containers",)

    def __init__(self) -> None:
        self._containers: OrderedDict[int, _Asked] = OrderedDict()

    def asked(self, container: int, name: bytes) -> bytes | None:
        """One more: after which name to list the container now, if at all.

        From its beginning at first, which is all of most containers; then from where look-ups in order are.  Of others
        twice as many bring it again: it did not help, or others change the container.
        """
        asked = self._containers.pop(container, None) or _Asked()
        self._containers[container] = asked
        if len(self._containers) > CONTAINERS_MAX:
            self._containers.popitem(last=False)
        asked.ascending &= name > asked.last
        asked.last = name
        asked.count += 1
        if asked.count < asked.wanted:
            return None
        after = b""
        if asked.listed and asked.ascending:
            after = name
        elif asked.listed:
            asked.wanted = min(2 * asked.wanted, LOOKUPS_MAX)
        asked.count, asked.ascending, asked.listed = 0, True, True
        return after


FILES_MIN, FILES_MAX = 4, 32
"""Files ahead.  One message asks for many: 32 contents of 16 KiB are what fits into a few milliseconds."""
RECENT = 8
"""Files that were opened last; they are a sequence if they are at least every second one of where they are.  In no strict
order, as several programs may share the work."""
LISTINGS_MAX, PLACES_MAX = 64, 20_000
"""Listings that are remembered, and files in all of them; those that were read first are forgotten first."""


class OpenAhead:
    """Follows which files of listings are opened.  One file is no sequence; each that goes on with one doubles the window."""

    __slots__ = ("_listings", "_count", "_container", "_recent", "_window", "_asked")

    def __init__(self) -> None:
        self._listings: OrderedDict[int, dict[int, int]] = OrderedDict()
        """Container -> its files and their places in it; INVARIANT: at most LISTINGS_MAX, none empty."""
        self._count = 0
        """INVARIANT: sum of their lengths, at most PLACES_MAX."""
        self._container = 0
        """Where files were opened last."""
        self._recent: deque[int] = deque(maxlen=RECENT)
        """Their places there."""
        self._window = 0
        self._asked = 0
        """Up to which place files were asked for there."""

    def found(self, container: int, files: Iterable[int], begins: bool) -> None:
        """The next files of a listing, or the first ones."""
        known = self._listings.pop(container, {})
        self._count -= len(known)
        if begins:
            known = {}
            if container == self._container:
                self._asked = 0
        # One that has another name there, or a listing that is read twice at once, adds nothing.
        new = [id for id in dict.fromkeys(files) if id not in known]
        known.update(zip(new, range(len(known), len(known) + len(new)), strict=True))
        if known:
            self._listings[container] = known
            self._count += len(known)
        while len(self._listings) > LISTINGS_MAX or self._count > PLACES_MAX:
            self._count -= len(self._listings.popitem(last=False)[1])

    def _place(self, id: int) -> tuple[int, int]:
        """Container and place of a file; (0, -1) if it is in no listing."""
        if id in (files := self._listings.get(self._container, {})):
            return self._container, files[id]
        for container, files in self._listings.items():
            if id in files:
                return container, files[id]
        return 0, -1

    def opened(self, id: int, room: bool = True) -> list[int]:
        """A program opens a file: which to ask for now if there is room for that, each once only."""
        container, index = self._place(id)
        if container == self._container and index in self._recent:
            # Again: that is no step.
            return []
        if not self._goes_on(container, index):
            self._window, self._asked = 0, index + 1
            return []
        files = self._listings[container]
        self._asked = max(self._asked, index + 1)
        self._window = min(max(2 * self._window, FILES_MIN), FILES_MAX)
        last = min(index + 1 + self._window, len(files))
        if not room or (last < len(files) and last - self._asked < self._window // 2):
            # Few more are asked for with the next ones, in one message.
            return []
        wanted = list(itertools.islice(files, self._asked, last))
        self._asked = max(self._asked, last)
        return wanted

    def _goes_on(self, container: int, index: int) -> bool:
        """Whether a file is opened after others of a sequence; it is remembered for the next ones."""
        recent, before = self._recent, self._listings.get(self._container, ())
        if container != self._container:
            # With the next container, once a program is through with this one.
            goes_on = len(recent) > 1 and 0 <= index < RECENT and len(before) - max(recent) <= RECENT
            self._container, self._asked = container, 0
            recent.clear()
            recent.append(index)
            return goes_on
        recent.append(index)
        if max(recent) - min(recent) < 2 * len(recent):
            return len(recent) > 1 and index >= 0
        recent.clear()
        recent.append(index)
        return False
