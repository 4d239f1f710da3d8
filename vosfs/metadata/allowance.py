"""How much of its quotas a mount that acts first may use up without asking.  Synchronous: state and rules alone.

While the mount holds the delegation nobody else uses a quota up, so what the service said is left stays left, less what
the mount acknowledged since.  Whatever else may change that, a save that waits for the service among it, ends it.
"""

import contextlib
from collections.abc import Iterator

from vosfs.metadata.node import Quota

ASK_EVERY_S = 1.0
"""How often the service is asked what is left: of a quota that is nearly full it would be at every save."""
QUOTAS_MAX = 1000
"""Known at once."""


class Allowance:
    """What is left of quotas."""

    def __init__(self) -> None:
        # Mutable state
        self._left: dict[int, int] = {}
        """Quota -> bytes; INVARIANT: no more than the service would allow, whatever it has not heard of yet."""
        self._above: dict[int, list[int]] = {}
        """Quota -> itself and those above, all of which are in ``_left`` unless they allow anything."""
        self._charges = 0
        """Under way at the service."""
        self.epoch = 0
        """Counts when all was forgotten: an answer to a question from before is not taken."""

    def clear(self) -> None:
        """Nothing is certain any more."""
        self._left.clear()
        self._above.clear()
        self.epoch += 1

    def spend(self, quota: int, length: int) -> bool:
        """Whether so many bytes may be acknowledged; then they are used up."""
        every = self._above.get(quota)
        if every is None or any(self._left[each] < length for each in every):
            return False
        for each in every:
            self._left[each] -= length
        return True

    def learn(self, epoch: int, quotas: list[Quota]) -> None:
        """What the service answered to a question that was asked at ``epoch``, behind all that was acknowledged."""
        if epoch != self.epoch or self._charges or not quotas or len(self._above) >= QUOTAS_MAX:
            return
        bounds = [quota for quota in quotas if quota.bytes_max >= 0]
        for quota in bounds:
            # What was spent of it since it was first told is in that.
            self._left.setdefault(quota.node, quota.bytes_max - quota.used)
        self._above[quotas[0].node] = [quota.node for quota in bounds]

    def concerns(self, node: int) -> bool:
        """Whether a node has a quota that is known."""
        return node in self._left or node in self._above

    @contextlib.contextmanager
    def charged_elsewhere(self) -> Iterator[None]:
        """While the service does what may use quotas up, nothing is known of them; nor what was asked meanwhile."""
        self.clear()
        self._charges += 1
        try:
            yield
        finally:
            self._charges -= 1
            self.clear()
