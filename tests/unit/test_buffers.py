"""Memory that is used again, and never while somebody looks at it."""

import gc

from vosfs.cache.buffers import BUFFER_BYTES, SMALL_BYTES, Buffers


def test_what_nobody_refers_to_is_used_again() -> None:
    buffers = Buffers()
    first = buffers.take(SMALL_BYTES)
    first[:] = b"x" * SMALL_BYTES
    first.release()
    again = buffers.take(SMALL_BYTES + 1)
    assert len(again) == SMALL_BYTES + 1 and again[:SMALL_BYTES] == b"x" * SMALL_BYTES


def test_a_view_keeps_it_however_small() -> None:
    buffers = Buffers()
    first = buffers.take(BUFFER_BYTES)
    first[:4] = b"mine"
    part = first[1:3]
    del first
    gc.collect()
    other = buffers.take(BUFFER_BYTES)
    other[:4] = b"else"
    assert part == b"in"
    del part
    third = buffers.take(BUFFER_BYTES)
    assert third[:4] == b"mine"


def test_it_is_bounded_and_what_it_does_not_keep_is_handed_out_all_the_same() -> None:
    buffers = Buffers(SMALL_BYTES, 2)
    held = [buffers.take(SMALL_BYTES) for _ in range(3)]
    for number, view in enumerate(held):
        view[:1] = bytes([number])
    assert [view[0] for view in held] == [0, 1, 2]
    assert len(buffers._kept) == 2
    assert len(buffers.take(10 * SMALL_BYTES)) == 10 * SMALL_BYTES and len(buffers.take(10)) == 10
