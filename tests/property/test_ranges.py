"""Ranges are a set of integers, and extent lists are bytes, whatever is done to them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vosfs.cache.ranges import Ranges
from vosfs.metadata import content
from vosfs.metadata.node import Extent

MAX = 60
BLOBS = {name: bytes((7 * at + ord(name)) % 256 for at in range(2 * MAX)) for name in "abc"}


@st.composite
def pieces(draw: st.DrawFn) -> tuple[int, int]:
    """A half-open piece, sometimes empty."""
    start = draw(st.integers(0, MAX))
    return start, draw(st.integers(start, MAX))


@given(st.lists(st.tuples(st.sampled_from(["add", "add", "remove"]), pieces()), max_size=30), pieces())
@settings(max_examples=400, deadline=None)
def test_ranges_are_a_set(trace: list[tuple[str, tuple[int, int]]], probe: tuple[int, int]) -> None:
    ranges, model = Ranges(), set[int]()
    for name, (start, stop) in trace:
        getattr(ranges, name)(start, stop)
        (model.update if name == "add" else model.difference_update)(range(start, stop))
        ranges.check()
        assert {at for a, b in ranges for at in range(a, b)} == model
        assert ranges.size == len(model) and bool(ranges) == bool(model)
    start, stop = probe
    if start < stop:
        assert ranges.covers(start, stop) == (set(range(start, stop)) <= model)
    split = ranges.split(start, stop)
    assert [at for a, b, _ in split for at in range(a, b)] == list(range(start, stop))
    assert all(a < b for a, b, _ in split)
    assert all((at in model) == inside for a, b, inside in split for at in range(a, b))
    assert all(x[2] != y[2] for x, y in zip(split, split[1:], strict=False)), "pieces are as long as they can be"


@st.composite
def extents(draw: st.DrawFn) -> Extent:
    """A hole, bytes or a slice of a blob."""
    start = draw(st.integers(0, MAX - 1))
    stop = draw(st.integers(start + 1, MAX))
    kind = draw(st.sampled_from(["hole", "data", *BLOBS]))
    if kind == "hole":
        return Extent(start, stop)
    if kind == "data":
        return Extent(start, stop, data=bytes(draw(st.integers(1, 255)) for _ in range(stop - start)))
    return Extent(start, stop, kind, draw(st.integers(0, MAX)))


def rendered(found: list[Extent], length: int) -> bytes:
    """The bytes of an extent list."""
    result = bytearray(length)
    for e in found:
        if e.data or e.locator:
            result[e.start : e.stop] = e.data or BLOBS[e.locator][e.offset : e.offset + e.stop - e.start]
    return bytes(result)


@given(st.lists(st.tuples(st.lists(extents(), max_size=4), st.integers(0, MAX)), max_size=8), pieces())
@settings(max_examples=400, deadline=None)
def test_extents_are_bytes(commits: list[tuple[list[Extent], int]], probe: tuple[int, int]) -> None:
    found: list[Extent] = []
    model = b""
    for changes, length in commits:
        written = bytearray(model.ljust(MAX, b"\0"))
        for change in changes:
            written[change.start : change.stop] = rendered([change], MAX)[change.start : change.stop]
        model = bytes(written[:length])
        found = content.apply(found, changes, length)
        content.check(found)
        assert all(e.stop <= length for e in found)
        assert rendered(found, length) == model
        assert content.join(found) == found, "nothing is left to join"
    start, stop = probe
    if start == stop:
        return
    slices = content.slices(found, start, stop)
    assert [at for e in slices for at in range(e.start, e.stop)] == list(range(start, stop))
    content.check(slices)
    assert rendered(slices, MAX)[start:stop] == model.ljust(MAX, b"\0")[start:stop]


@given(st.lists(extents(), max_size=6), extents())
@settings(max_examples=300, deadline=None)
def test_overlay_and_clip(changes: list[Extent], last: Extent) -> None:
    found = content.apply([], changes, MAX)
    before = rendered(found, MAX)
    after = content.overlay(found, [last])
    content.check(after)
    part = rendered([last], MAX)[last.start : last.stop]
    assert rendered(after, MAX) == before[: last.start] + part + before[last.stop :]
    clipped = content.clip(found, last.start)
    content.check(clipped)
    assert rendered(clipped, MAX) == before[: last.start].ljust(MAX, b"\0")
    for extent in found:
        if extent.start < last.stop and last.start < extent.stop:
            cut = content.cut(extent, last.start, last.stop)
            assert last.start <= cut.start < cut.stop <= last.stop
            assert rendered([cut], MAX)[cut.start : cut.stop] == before[cut.start : cut.stop]
