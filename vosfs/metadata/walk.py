"""Which containers to list ahead of a program that walks a tree: a pure decision, as read-ahead is for bytes.

``ls -R``, ``find`` and ``grep -r`` list one container after the other and each time wait for the answer: 52 round trips
for 52 containers.  What they list next is known, though: the containers that were in the last listing.
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
