"""Extent lists: what a data node's bytes are made of.  Pure functions on sorted, disjoint lists.

INVARIANT of every list here: sorted by start, disjoint, each start < stop; gaps read as zeros.
"""

import operator
from bisect import bisect_left, bisect_right
from collections.abc import Iterable

import msgspec

from vosfs.metadata.node import Extent

LENGTH_MAX = 1 << 60
"""Longest content."""

INLINE_BYTES_MAX = 16 * 1024
"""Runs up to this length live in the metadata row: a small file then costs one transaction and no file."""

JOINED_BYTES_MAX = 4 * 1024
"""Neighbouring inline runs are joined up to this: an append then rewrites one database page, not four."""

CARRIED_BYTES_MAX = 128 * 1024
"""Runs up to this length travel with the commit instead of before it, and a mount that acts first (``ahead.py``) need not
wait for them: twice the saves of 20 KB a second.  The daemon makes blobs of them."""

INLINE_TOTAL_MAX = 32 * 1024
"""More inline bytes than this in one node are moved into a blob by the daemon: each commit answers with the whole list,
and a file of many appends would send half a megabyte for each."""

EXTENTS_MAX = 512
"""Lists of more blobs and inline runs are compacted into one blob by the daemon."""

CHANGES_MAX = 65_536
"""Most changes of one commit, as many runs of a file were written: 256 MiB of single pages, 10 MB of message."""


_start, _stop = operator.attrgetter("start"), operator.attrgetter("stop")


def cut(extent: Extent, start: int, stop: int) -> Extent:
    """The part of ``extent`` inside ``[start, stop)``, which must overlap it."""
    low, high = max(start, extent.start), min(stop, extent.stop)
    if (low, high) == (extent.start, extent.stop):
        return extent
    skip = low - extent.start
    data = extent.data[skip : skip + high - low] if extent.data else b""
    return Extent(low, high, extent.locator, extent.offset + skip if extent.locator else 0, data)


def clip(extents: list[Extent], length: int) -> list[Extent]:
    """The list cut at ``length``: what truncation leaves."""
    return [cut(e, 0, length) for e in extents if e.start < length]


def slices(extents: list[Extent], start: int, stop: int) -> list[Extent]:
    """What covers ``[start, stop)``, holes included, so the result has no gaps."""
    result: list[Extent] = []
    at = start
    for index in range(first_after(extents, start), len(extents)):
        extent = extents[index]
        if extent.start >= stop:
            break
        if extent.start > at:
            result.append(Extent(at, extent.start))
        piece = cut(extent, at, stop)
        result.append(piece)
        at = piece.stop
    if at < stop:
        result.append(Extent(at, stop))
    return result


def first_after(extents: list[Extent], at: int) -> int:
    """Index of the first extent that ends after ``at``."""
    return bisect_right(extents, at, key=_stop)


def overlay(extents: list[Extent], changes: Iterable[Extent]) -> list[Extent]:
    """The list after all changes were written over it, in order; a hole erases."""
    result = list(extents)
    for change in changes:
        first = first_after(result, change.start)
        last = bisect_left(result, change.stop, lo=first, key=_start)
        pieces = [change] if change.locator or change.data else []
        if first < last:
            if result[first].start < change.start:
                pieces.insert(0, cut(result[first], 0, change.start))
            if result[last - 1].stop > change.stop:
                pieces.append(cut(result[last - 1], change.stop, result[last - 1].stop))
        result[first:last] = pieces
    return result


def join(extents: list[Extent]) -> list[Extent]:
    """Adjacent runs made one where they are one: consecutive in a blob, or both inline and small."""
    result: list[Extent] = []
    for extent in extents:
        if result and result[-1].stop == extent.start:
            last = result[-1]
            if (
                last.locator
                and last.locator == extent.locator
                and last.offset + last.stop - last.start == extent.offset
            ):
                result[-1] = Extent(last.start, extent.stop, last.locator, last.offset)
                continue
            if last.data and extent.data and extent.stop - last.start <= JOINED_BYTES_MAX:
                result[-1] = Extent(last.start, extent.stop, data=last.data + extent.data)
                continue
        result.append(extent)
    return result


def apply(extents: list[Extent], changes: list[Extent], length: int) -> list[Extent]:
    """The list after all changes, in order, and truncation or extension to ``length``."""
    if not extents and len(changes) == 1 and changes[0].stop <= length:
        # A new file, saved at once, as most are.
        return changes[:] if changes[0].locator or changes[0].data else []
    return join(clip(overlay(extents, changes), length))


def check(extents: list[Extent]) -> None:
    """Raise ValueError unless the module's invariant holds."""
    at = 0
    for extent in extents:
        if extent.start < at or extent.stop <= extent.start:
            raise ValueError(f"extents overlap or are empty at {extent.start}: {extents!r}")
        if extent.data and (extent.locator or len(extent.data) != extent.stop - extent.start):
            raise ValueError(f"inline extent of the wrong length at {extent.start}")
        at = extent.stop


def locators(extents: list[Extent]) -> set[str]:
    """The blobs a list stands on."""
    return {e.locator for e in extents if e.locator}


def relocated(extent: Extent, locator: str) -> Extent:
    """The same extent over a blob known by another name (a signed one, say)."""
    return msgspec.structs.replace(extent, locator=locator)
