"""The delegation: leave for one mount to act first and tell the service afterwards.

While one mount alone works in a space, each of its changes need not wait for the service: it holds the delegation,
answers its programs at once and sends its changes in batches some milliseconds later (``vosfs/metadata/behind.py``).
Anybody else's request first has the delegation recalled: it waits until the holder has sent what it owes, so nobody
ever sees less than what the holder's programs were told.  RFC 8881 section 10 has delegations of files and CB_RECALL
for NFS; here there is one for the whole space, because one mount at work is the common case.

The rules are advice as far as safety goes: late batches of a holder that did not answer in time are checked step by
step against what is there now, as anybody's changes are.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterator

import trio

from vosfs.metadata.messages import HELD, NOT_HELD, RECALLED

log = logging.getLogger(__name__)

RECALL_S = 5.0
"""How long others wait for the holder.  A holder on the same site answers in 2-5 ms."""
QUIET_S = 2.0
"""Nobody gets the delegation until others have been quiet for this long."""
DISTRUST_S = 600.0
"""Nor, for this long, who did not answer a recall."""
DISTRUSTED_MAX = 1000

Holder = tuple[str, str]
"""User and origin."""
SOMEBODY: Holder = ("", "")
"""Whoever comes by no gateway."""


def _here() -> bool:
    return False


class Delegation:
    """Who may act ahead."""

    def __init__(self, possible: bool) -> None:
        # Constants
        self._possible = possible
        """Whether this process sees every request for the space."""
        # Mutable state
        self.holder: Holder | None = None
        self._recalled = False
        self._returned = trio.Event()
        self._working: Counter[Holder] = Counter()
        """Requests and jobs under way, by who they are of."""
        self._latest: Holder = SOMEBODY
        self._latest_at = -QUIET_S
        """Who was at work last, and until when."""
        self._others_at = -QUIET_S
        """INVARIANT: when anybody but ``_latest`` last was."""
        self._distrusted: dict[Holder, float] = {}
        self.on_recall: Callable[[], None] = lambda: None
        """Wakes the holder's poll of the change feed."""
        self._polls: dict[Holder, Callable[[], bool]] = {}
        """Whether the other end of an open poll of the feed is seen to be gone."""

    def ask(self, who: Holder) -> bool:
        """Give the delegation to ``who``, if nobody has it and everybody else is quiet."""
        now = trio.current_time()
        if self.holder == who:
            return not self._recalled
        others_at = self._others_at if who == self._latest else self._latest_at
        quiet = now - others_at >= QUIET_S and not self._working.keys() - {who}
        if not self._possible or self.holder is not None or not quiet or self._distrusted.get(who, -1) > now:
            return False
        self.holder, self._recalled, self._returned = who, False, trio.Event()
        return True

    def state(self, who: Holder) -> int:
        """NOT_HELD, HELD or RECALLED."""
        if self.holder != who:
            return NOT_HELD
        return RECALLED if self._recalled else HELD

    def give_back(self, who: Holder) -> None:
        """The holder has told everything; or a mount ends, which says so whether it is the holder or not."""
        recalled = self.holder == who and self._recalled
        if self.holder == who:
            self._end()
        if recalled:
            # Who had it recalled is not to have it the next moment, and lose it the moment after.
            self._worked(who)
        elif self._latest == who:
            # It will do no more work: the mount that follows it need not wait QUIET_S for the delegation.
            self._latest, self._latest_at = SOMEBODY, self._others_at

    def _end(self) -> None:
        self.holder = None
        self._returned.set()

    async def recall(self) -> None:
        """Wait until the holder, if there is one, has told everything, at most RECALL_S."""
        who = self.holder
        if who is None:
            return
        if self._polls.get(who, _here)():
            log.info("a mount of %s went away with the delegation", who[0])
            self._end()
            return
        self._recalled = True
        self.on_recall()
        with trio.move_on_after(RECALL_S):
            await self._returned.wait()
            return
        if self.holder == who:
            log.warning(
                "a mount of %s did not give the delegation back within %.0f s: going on without", who[0], RECALL_S
            )
            if len(self._distrusted) >= DISTRUSTED_MAX:
                self._distrusted.clear()
            self._distrusted[who] = trio.current_time() + DISTRUST_S
            self._end()

    @contextlib.contextmanager
    def polled(self, who: Holder, gone: Callable[[], bool]) -> Iterator[None]:
        """While a poll of the feed is open: how to see that its other end is not.

        Whoever holds it or not: who is given the delegation in the middle of a poll may die before the next one.
        """
        self._polls[who] = gone
        try:
            yield
        finally:
            if self._polls.get(who) is gone:
                del self._polls[who]

    @contextlib.contextmanager
    def at_work(self, who: Holder = SOMEBODY) -> Iterator[None]:
        """While this lasts, and for QUIET_S after, nobody else gets the delegation.

        Around ``recall``, so that nobody gets it between the recall and what it was for.
        """
        self._working[who] += 1
        try:
            yield
        finally:
            self._working[who] -= 1
            if not self._working[who]:
                del self._working[who]
            self._worked(who)

    def _worked(self, who: Holder) -> None:
        if who != self._latest:
            self._others_at, self._latest = self._latest_at, who
        self._latest_at = trio.current_time()
