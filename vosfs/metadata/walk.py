"""What to ask for ahead of a program that walks a tree: pure decisions, as read-ahead is for bytes.

``ls -R``, ``find`` and ``grep -r`` list one container after the other and each time wait for the answer: 52 round trips
for 52 containers.  What they list next is known, though: the containers that were in the last listing.  ``grep -r``, ``cp
-r`` and whoever opens the files of a container one after the other do so in the order of its listing.
"""

import itertools
from collections import OrderedDict
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

        From its beginning at first, which is all of most containers, and shows what names are not there; then from where
        look-ups in order are.  Of others twice as many bring it again: it did not help, or others change the container.
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
NEIGHBOURS = 8
"""Files so far apart in a listing may still be opened one after the other, by several programs that share the work."""
PLACES_MAX = 20_000
"""Files whose place in a listing is remembered; listings that were read first are forgotten first."""


class OpenAhead:
    """Follows which files of listings are opened.  One file is no sequence; each that goes on with one doubles the window."""

    __slots__ = ("_listings", "_places", "_last", "_window", "_asked")

    def __init__(self) -> None:
        self._listings: OrderedDict[int, list[int]] = OrderedDict()
        """Container -> its files in order."""
        self._places: dict[int, tuple[int, int]] = {}
        """File -> its container and place there; INVARIANT: for each file of ``_listings``, but at most PLACES_MAX."""
        self._last = (0, 0)
        self._window = 0
        self._asked = 0
        """Up to which place of the container of ``_last`` files were asked for."""

    def found(self, container: int, files: Iterable[int], begins: bool) -> None:
        """The next files of a listing, or the first ones."""
        if begins:
            self._forget(container)
        known = self._listings.setdefault(container, [])
        for id in files:
            self._places[id] = (container, len(known))
            known.append(id)
        while len(self._places) > PLACES_MAX:
            self._forget(next(iter(self._listings)))

    def _forget(self, container: int) -> None:
        if container == self._last[0]:
            self._asked = 0
        for id in self._listings.pop(container, ()):
            if self._places.get(id, (0, 0))[0] == container:
                del self._places[id]

    def opened(self, id: int) -> list[int]:
        """A program opens a file: which to ask for now, each once only."""
        place = self._places.get(id)
        if place is None:
            self._window = 0
            return []
        (container, index), (before, at) = place, self._last
        self._last = place
        files, passed = self._listings[container], self._listings.get(before)
        if container == before:
            goes_on = 0 < abs(index - at) <= NEIGHBOURS
        else:
            # With the next container, once it is through with this one.
            goes_on = index < NEIGHBOURS and passed is not None and len(passed) - at <= NEIGHBOURS
            self._asked = 0
        self._asked = max(self._asked, index + 1) if goes_on else index + 1
        if not goes_on:
            self._window = 0
            return []
        self._window = min(max(2 * self._window, FILES_MIN), FILES_MAX)
        last = min(index + 1 + self._window, len(files))
        if last < len(files) and last - self._asked < self._window // 2:
            # Few more: with the next ones, in one message.
            return []
        wanted = files[self._asked : last]
        self._asked = max(self._asked, last)
        return wanted
