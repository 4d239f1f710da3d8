"""The CRC-32 of everything, put together from those of blocks, is what zlib counts."""

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vosfs.backends.sums import Damaged, Sums, checked, packed_bytes, verify

BLOCK = 16


@given(st.lists(st.binary(max_size=50)))
def test_the_sum_of_all_is_that_of_its_blocks_together(pieces: list[bytes]) -> None:
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
