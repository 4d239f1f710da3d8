"""How far to read ahead: a pure decision per open file."""

from collections.abc import Callable

from vosfs.cache.segments import SEGMENT_BYTES

WINDOW_BYTES_MIN = 1 << 20
WINDOW_BYTES_MAX = 16 << 20
"""With 10 ms per request, 128 KiB ahead gives 23 MB/s, 1 MiB 155, 4 MiB 437 (spec: stack); 16 MiB covers 50 ms."""
STEPS = 4
"""Of a window: when so much of it was read, as much more is asked for.  In halves, everything that was under way could come to
its end before more was asked for."""
LONG_WINDOW_BYTES = 2 * SEGMENT_BYTES
"""In steps of whole segments, where bytes come fast and there is memory for them (``blocks.py``, FAST_BYTES_S)."""
SEQUENTIAL_SLACK = 1 << 20
"""The kernel's own read-ahead sends requests out of order within this."""


class ReadAhead:
    """Follows the reads of one handle; a sequential one has four times the window at each step."""

    __slots__ = ("_next", "_window", "_ahead", "_begun")

    def __init__(self) -> None:
        self._next = 0
        self._window = 0
        self._ahead = 0
        """Everything below this was asked for already."""
        self._begun = False

    def plan(
        self, start: int, stop: int, length: int, into_segment: Callable[[int], int] | None = None
    ) -> tuple[int, int] | None:
        """After a read of ``[start, stop)`` of ``length`` bytes: what to fetch now, or None.

        ``into_segment``: how far a byte of the file is into its segment; only where the long window is of use.
        """
        # One read is no sequence: most small files, and every look at a header, end there, and the first byte must not
        # share the way with a megabyte that nobody may want.
        if not self._begun or abs(start - self._next) > SEQUENTIAL_SLACK:
            self._begun = True
            self._next, self._window, self._ahead = stop, 0, stop
            return None
        self._next = max(stop, self._next)
        if self._window and self._ahead - stop > self._window - self._window // STEPS:
            return None
        long = into_segment is not None and self._window >= WINDOW_BYTES_MAX
        if long and self._ahead - stop > LONG_WINDOW_BYTES - SEGMENT_BYTES:
            return None
        self._window = min(max(self._window * 4, WINDOW_BYTES_MIN), WINDOW_BYTES_MAX)
        first = max(self._ahead, stop)
        last = stop + self._window
        if long and into_segment is not None:
            last = stop + LONG_WINDOW_BYTES
            last -= into_segment(last)
        last = min(last, length)
        if first >= last:
            return None
        self._ahead = last
        return first, last
