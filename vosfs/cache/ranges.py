"""Sets of byte ranges: sorted, disjoint, coalesced, half-open.  Pure."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class Ranges:
    """Which bytes of a file.  A file written in order is one range, whatever the number of writes.

    INVARIANT: ``_starts`` and ``_stops`` ascend together: start < stop < next start.
    """

    __slots__ = ("_starts", "_stops", "size")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        self.size = 0
        """INVARIANT: bytes in the set."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._stops, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, start: int, stop: int) -> None:
        """Put ``[start, stop)`` in."""
        if start >= stop:
            return
        starts, stops = self._starts, self._stops
        if starts and starts[-1] <= start <= stops[-1]:
            # The next write of a file that is written in order.
            if stop > stops[-1]:
                self.size += stop - stops[-1]
                stops[-1] = stop
            return
        low = bisect_left(stops, start)
        high = bisect_right(starts, stop)
        if low < high:
            start = min(start, starts[low])
            stop = max(stop, stops[high - 1])
        self.size += stop - start - sum(stops[low:high]) + sum(starts[low:high])
        starts[low:high] = [start]
        stops[low:high] = [stop]

    def remove(self, start: int, stop: int) -> None:
        """Take ``[start, stop)`` out."""
        if start >= stop:
            return
        starts, stops = self._starts, self._stops
        if starts and start <= starts[0] and stop >= stops[-1]:
            self.clear()
            return
        low = bisect_right(stops, start)
        high = bisect_left(starts, stop)
        if low >= high:
            return
        kept = []
        if starts[low] < start:
            kept.append((starts[low], start))
        if stops[high - 1] > stop:
            kept.append((stop, stops[high - 1]))
        self.size += sum(b - a for a, b in kept) - sum(stops[low:high]) + sum(starts[low:high])
        starts[low:high] = [a for a, _ in kept]
        stops[low:high] = [b for _, b in kept]

    def clear(self) -> None:
        """Empty the set."""
        self._starts.clear()
        self._stops.clear()
        self.size = 0

    def covers(self, start: int, stop: int) -> bool:
        """Whether all of ``[start, stop)`` is in."""
        at = bisect_right(self._starts, start) - 1
        return at >= 0 and self._stops[at] >= stop

    def split(self, start: int, stop: int) -> list[tuple[int, int, bool]]:
        """``[start, stop)`` cut into pieces that are wholly in or wholly out."""
        result = []
        at = start
        index = bisect_right(self._stops, start)
        while at < stop:
            if index == len(self._starts) or self._starts[index] >= stop:
                result.append((at, stop, False))
                break
            if self._starts[index] > at:
                result.append((at, self._starts[index], False))
                at = self._starts[index]
            end = min(self._stops[index], stop)
            result.append((at, end, True))
            at = end
            index += 1
        return result

    def check(self) -> None:
        """Raise ValueError unless the invariant holds."""
        flat = [x for pair in self for x in pair]
        if any(a >= b for a, b in zip(flat, flat[1:], strict=False)):
            raise ValueError(f"ranges overlap, touch or are empty: {flat}")
        if sum(b - a for a, b in self) != self.size:
            raise ValueError(f"{self.size} bytes counted in {flat}")
