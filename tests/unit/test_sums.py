"""CRC-32s of everything and of blocks are what zlib counts, and a wrong bit is seen."""

import zlib
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vosfs.backends import sums as module
from vosfs.backends.sums import Broken, Damaged, KeptSums, Sums, checked, mended, packed_bytes, verify
from vosfs.errors import DataCorrupt, ServiceUnavailable

BLOCK = 16


@given(st.lists(st.binary(max_size=50)))
def test_the_sum_of_all_is_what_zlib_counts(pieces: list[bytes]) -> None:
    sums, data = Sums(BLOCK), b"".join(pieces)
    for piece in pieces:
        sums.add(memoryview(piece))
    assert (sums.length, sums.crc32) == (len(data), zlib.crc32(data))
    packed = checked(sums.packed(), len(data), BLOCK, "it")
    assert len(packed) == packed_bytes(len(data), BLOCK)
    verify(memoryview(data), 0, packed, BLOCK, "it")
    verify(memoryview(data)[BLOCK:], BLOCK, packed, BLOCK, "it")


@given(st.binary(min_size=1, max_size=100), st.data())
def test_one_wrong_bit_is_seen(data: bytes, choose: st.DataObject) -> None:
    sums = Sums(BLOCK)
    sums.add(memoryview(data))
    at, bit = choose.draw(st.integers(0, len(data) - 1)), choose.draw(st.integers(0, 7))
    wrong = bytearray(data)
    wrong[at] ^= 1 << bit
    with pytest.raises(Damaged):
        verify(memoryview(wrong), 0, sums.packed(), BLOCK, "it")
    table = bytearray(sums.packed())
    table[at % len(table)] ^= 1 << bit
    for packed in (bytes(table), sums.packed()[:-1], sums.packed() + b"x"):
        with pytest.raises(Damaged):
            checked(packed, len(data), BLOCK, "it")


def test_tables_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_MAX", 2)
    kept = KeptSums()
    kept.keep("a", b"1")
    kept.keep("b", b"2")
    assert kept.get("a") == b"1"
    kept.keep("c", b"3")
    assert [kept.get(name) for name in "abc"] == [b"1", None, b"3"]
    kept.forget("a")
    assert kept.get("a") is None and len(kept) == 1


@given(st.binary(max_size=100), st.data())
def test_a_reading_that_breaks_off_is_taken_up_where_it_did(data: bytes, choose: st.DataObject) -> None:
    start = choose.draw(st.integers(0, len(data)))
    stop = choose.draw(st.integers(start, len(data)))

    def whole_blocks(at: int, end: int) -> Iterator[bytes]:
        assert at % BLOCK == 0 and (end % BLOCK == 0 or end == len(data))
        while at < end:
            if choose.draw(st.booleans()):
                raise Broken(ServiceUnavailable("for now"))
            yield data[at : min(at + BLOCK, end)]
            at += BLOCK

    try:
        read = b"".join(mended("it", start, stop, len(data), BLOCK, 3, whole_blocks))
    except ServiceUnavailable:
        return
    assert read == data[start:stop]


def test_a_reading_that_always_breaks_off_ends() -> None:
    asked = []

    def broken(at: int, end: int) -> Iterator[bytes]:
        asked.append(at)
        if len(asked) == 1:
            yield bytes(BLOCK)
        raise Broken(ServiceUnavailable("always"))

    with pytest.raises(ServiceUnavailable):
        list(mended("it", 0, 3 * BLOCK, 3 * BLOCK, BLOCK, 2, broken))
    assert asked == [0, BLOCK]
    with pytest.raises(DataCorrupt):
        list(mended("it", 0, 5, 4, BLOCK, 2, broken))
