"""Extent lists are cut, laid over each other and joined as bytes would be."""

import pytest

from vosfs.metadata import content
from vosfs.metadata.content import INLINE_BYTES_MAX
from vosfs.metadata.node import Extent

BLOB = Extent(10, 30, "b", 100)
TEXT = Extent(40, 45, data=b"hello")


def test_cut() -> None:
    assert content.cut(BLOB, 0, 99) is BLOB
    assert content.cut(BLOB, 15, 20) == Extent(15, 20, "b", 105)
    assert content.cut(TEXT, 41, 99) == Extent(41, 45, data=b"ello")
    assert content.cut(Extent(5, 9), 0, 7) == Extent(5, 7)


def test_clip() -> None:
    assert content.clip([BLOB, TEXT], 100) == [BLOB, TEXT]
    assert content.clip([BLOB, TEXT], 40) == [BLOB]
    assert content.clip([BLOB, TEXT], 42) == [BLOB, Extent(40, 42, data=b"he")]
    assert content.clip([BLOB, TEXT], 10) == content.clip([BLOB], 0) == []


def test_slices_has_no_gaps() -> None:
    assert content.slices([BLOB, TEXT], 0, 50) == [Extent(0, 10), BLOB, Extent(30, 40), TEXT, Extent(45, 50)]
    assert content.slices([BLOB, TEXT], 12, 13) == [Extent(12, 13, "b", 102)]
    assert content.slices([BLOB, TEXT], 30, 40) == content.slices([], 30, 40) == [Extent(30, 40)]
    assert content.slices([BLOB], 10, 10) == []


def test_overlay() -> None:
    change = Extent(15, 18, data=b"xyz")
    assert content.overlay([BLOB], [change]) == [Extent(10, 15, "b", 100), change, Extent(18, 30, "b", 108)]
    assert content.overlay([BLOB, TEXT], [Extent(0, 50)]) == []
    assert content.overlay([BLOB], [Extent(30, 40, "c")]) == [BLOB, Extent(30, 40, "c")]
    assert content.overlay([BLOB], [Extent(20, 21)]) == [Extent(10, 20, "b", 100), Extent(21, 30, "b", 111)]


def test_join() -> None:
    assert content.join([Extent(0, 5, "b", 3), Extent(5, 9, "b", 8)]) == [Extent(0, 9, "b", 3)]
    assert content.join([Extent(0, 1, data=b"a"), Extent(1, 2, data=b"b")]) == [Extent(0, 2, data=b"ab")]
    apart = [Extent(0, 5, "b", 3), Extent(5, 9, "b", 9)]
    assert content.join(apart) == apart
    gap = [Extent(0, 5, "b", 0), Extent(6, 9, "b", 6)]
    assert content.join(gap) == gap
    others = [Extent(0, 5, "b", 0), Extent(5, 9, "c", 5), Extent(9, 10, data=b"x")]
    assert content.join(others) == others
    full = [
        Extent(0, INLINE_BYTES_MAX, data=b"x" * INLINE_BYTES_MAX),
        Extent(INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, data=b"y"),
    ]
    assert content.join(full) == full


def test_apply_changes_no_argument() -> None:
    extents, changes = [BLOB, TEXT], [Extent(0, 100, data=b"z" * 100)]
    assert content.apply(extents, changes, 50) == [Extent(0, 50, data=b"z" * 50)]
    assert extents == [BLOB, TEXT] and changes == [Extent(0, 100, data=b"z" * 100)]


@pytest.mark.parametrize(
    "bad",
    [
        [Extent(5, 5, "b")], [Extent(5, 4, "b")], [Extent(-1, 4, "b")], [BLOB, BLOB], [TEXT, BLOB],
        [Extent(0, 10, "b"), Extent(9, 11, "b")], [Extent(0, 2, data=b"x")], [Extent(0, 1, "b", 0, b"x")],
    ],
)  # fmt: skip
def test_check_refuses(bad: list[Extent]) -> None:
    content.check([])
    content.check([BLOB, TEXT])
    with pytest.raises(ValueError):
        content.check(bad)


def test_locators() -> None:
    assert content.locators([BLOB, TEXT, Extent(50, 60, "c")]) == {"b", "c"}
    assert content.relocated(BLOB, "signed") == Extent(10, 30, "signed", 100)
