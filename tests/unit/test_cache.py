"""The pure parts of the cache: ranges, read-ahead, scratch, and blocks that are fetched once."""

import errno
import itertools
import math
import os
import resource
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from vosfs.cache import blocks, segments
from vosfs.cache.blocks import (
    FAST_BYTES_S,
    FETCH_BYTES_MAX,
    FETCHED_BYTES_MAX,
    LONG_FETCH_BYTES_MAX,
    RUN_BYTES,
    RUN_FETCHES_MAX,
    WRITES_MAX,
    WRITES_WAITING_MAX,
    BlockCache,
)
from vosfs.cache.ranges import Ranges
from vosfs.cache.readahead import LONG_WINDOW_BYTES, SEQUENTIAL_SLACK, WINDOW_BYTES_MAX, WINDOW_BYTES_MIN, ReadAhead
from vosfs.cache.scratch import MEMORY_BYTES_MAX, Scratch
from vosfs.cache.segments import BLOCK_BYTES, SEGMENT_BYTES, Fetch
from vosfs.client import Arrived, Segment
from vosfs.errors import ServiceUnavailable
from vosfs.metadata.messages import Stored

MIB, GIB = 1 << 20, 1 << 30
PATTERN = bytes(range(251))


# -- ranges ----------------------------------------------------------------------------------------------------------


def test_ranges_join_and_split() -> None:
    ranges = Ranges()
    assert not ranges and list(ranges) == []
    for start, stop in ((10, 20), (30, 40), (20, 25), (0, 5)):
        ranges.add(start, stop)
        ranges.check()
    assert list(ranges) == [(0, 5), (10, 25), (30, 40)] and ranges.size == 30
    assert ranges.split(3, 35) == [(3, 5, True), (5, 10, False), (10, 25, True), (25, 30, False), (30, 35, True)]
    ranges.add(4, 31)
    assert list(ranges) == [(0, 40)]
    ranges.remove(10, 20)
    ranges.check()
    assert list(ranges) == [(0, 10), (20, 40)] and ranges.size == 30
    assert ranges.covers(20, 40) and not ranges.covers(5, 25) and not ranges.covers(39, 41)
    ranges.clear()
    ranges.check()
    assert not ranges and ranges.size == 0


def test_a_file_written_in_order_is_one_range() -> None:
    ranges = Ranges()
    for at in range(0, 1000, 10):
        ranges.add(at, at + 10)
    assert list(ranges) == [(0, 1000)]


@pytest.mark.parametrize("at", [0, 5, 10, 15])
def test_an_empty_range_changes_nothing(at: int) -> None:
    ranges = Ranges()
    ranges.add(0, 10)
    ranges.add(at, at)
    ranges.check()
    ranges.remove(at, at)
    ranges.check()
    assert list(ranges) == [(0, 10)]


# -- read-ahead ------------------------------------------------------------------------------------------------------


def test_a_sequential_reader_gets_further_ahead_each_time() -> None:
    ahead, length, at, asked = ReadAhead(), 200 * MIB, 0, 0
    windows = []
    for _ in range(400):
        plan = ahead.plan(at, at + 128 * 1024, length)
        at += 128 * 1024
        if plan:
            start, stop = plan
            assert asked <= start < stop <= length and start >= at, "nothing is asked for twice"
            asked = stop
            windows.append(stop - at)
    assert windows[0] == WINDOW_BYTES_MIN
    assert max(windows) == WINDOW_BYTES_MAX
    assert asked > at


def test_all_of_a_file_is_planned_once() -> None:
    ahead, length, covered = ReadAhead(), 10 * MIB + 5, 0
    for at in range(0, length, 128 * 1024):
        plan = ahead.plan(at, min(at + 128 * 1024, length), length)
        if plan:
            assert plan[0] == max(covered, at + 128 * 1024) or plan[0] == covered
            covered = plan[1]
    assert covered == length
    assert ahead.plan(length, length, length) is None


@pytest.mark.parametrize("shift", [0, 1 * MIB, 5 * MIB + 7])
def test_where_bytes_come_fast_whole_segments_are_asked_for(shift: int) -> None:
    ahead, length, at, asked = ReadAhead(), 300 * MIB + 5, 0, 0
    plans = []
    while at < length:
        stop = min(at + 128 * 1024, length)
        plan = ahead.plan(at, stop, length, lambda at: (at + shift) % SEGMENT_BYTES)
        at = stop
        if plan:
            assert plan[0] == max(asked, at) or plan[0] == asked, "nothing is asked for twice, or left out"
            assert plan[1] - at <= LONG_WINDOW_BYTES
            asked = plan[1]
            plans.append(plan)
    assert asked == length
    steps = [(start, stop) for start, stop in plans[:-1] if stop - start == SEGMENT_BYTES]
    assert len(steps) >= len(plans) - 6 >= 10, "the first are shorter"
    assert all((start + shift) % SEGMENT_BYTES == 0 for start, _ in steps)


def test_a_random_reader_gets_nothing() -> None:
    ahead = ReadAhead()
    for at in (500, 100, 900, 300):
        assert ahead.plan(at * MIB, at * MIB + 4096, 1000 * MIB) is None


def test_the_kernel_may_reorder_within_a_window() -> None:
    ahead = ReadAhead()
    assert ahead.plan(0, 131072, 100 * MIB) is None, "one read is no sequence"
    ahead.plan(262144, 393216, 100 * MIB)
    ahead.plan(131072, 262144, 100 * MIB)
    plans = [ahead.plan(at, at + 131072, 100 * MIB) for at in range(393216, 8 * MIB, 131072)]
    assert any(plans), "it is still taken for sequential"
    assert ahead.plan(50 * MIB + SEQUENTIAL_SLACK, 50 * MIB + SEQUENTIAL_SLACK + 1, 100 * MIB) is None


# -- scratch ---------------------------------------------------------------------------------------------------------


def test_few_bytes_stay_in_memory(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "s")
    scratch.write(10, b"abc")
    assert scratch.in_memory and scratch.read(0, 20) == bytes(10) + b"abc" + bytes(7)
    scratch.write(11, memoryview(b"X"))
    scratch.write(MEMORY_BYTES_MAX - 1, b"z")
    assert scratch.in_memory and scratch.read(10, 13) == b"aXc"
    assert os.listdir(tmp_path) == []
    scratch.close()


def test_many_bytes_spill_to_a_private_file(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "s")
    scratch.write(0, b"start")
    scratch.write(MEMORY_BYTES_MAX, b"more")
    assert not scratch.in_memory
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o600
    assert scratch.read(0, 6) == b"start\0"
    assert scratch.read(MEMORY_BYTES_MAX - 1, MEMORY_BYTES_MAX + 10) == b"\0more" + bytes(6)
    scratch.close()
    assert os.listdir(tmp_path) == []
    scratch.close()


def test_a_descriptor_has_the_bytes(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "s")
    scratch.write(2, b"abc")
    fd = scratch.descriptor()
    assert os.pread(fd, 10, 0) == b"\0\0abc"
    scratch.write(5, b"def")
    assert os.pread(fd, 10, 0) == b"\0\0abcdef" and scratch.descriptor() == fd
    scratch.close()


def test_punch_gives_space_back(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "s")
    scratch.write(0, b"x" * MIB)
    before = (tmp_path / "s").stat().st_blocks
    scratch.punch(4096, MIB)
    assert (tmp_path / "s").stat().st_blocks < before
    assert scratch.read(4095, 4097) == b"x\0"
    assert (tmp_path / "s").stat().st_size == MIB
    scratch.close()


def test_punch_makes_zeros_in_memory_too(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "s")
    scratch.write(0, b"abcdef")
    scratch.punch(2, 4)
    scratch.punch(5, 100)
    scratch.punch(200, 300)
    assert scratch.read(0, 8) == b"ab\0\0e\0\0\0" and scratch.in_memory
    scratch.close()


def test_scratch_reaches_as_far_as_is_wanted(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "s")
    scratch.write(0, b"abc")
    for stop in (GIB, 10):
        scratch.reach(stop)
        status = os.fstat(scratch.descriptor())
        assert status.st_size == GIB and status.st_blocks * 512 < MIB
    assert os.pread(scratch.descriptor(), 5, 0) == b"abc\0\0"
    scratch.close()


def test_a_spill_that_fails_loses_nothing(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "s")
    scratch.write(0, b"precious")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, limits[1]))
    try:
        with pytest.raises(Exception, match="(?i)large|full|short") as caught:
            scratch.write(MEMORY_BYTES_MAX, b"more")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value is not None
    assert scratch.read(0, 8) == b"precious"
    scratch.close()
    assert os.listdir(tmp_path) == []


# -- blocks ----------------------------------------------------------------------------------------------------------


class Gate:
    """Blobs of which every fetch can be made to wait, or to fail; the bytes at i are i modulo 251."""

    def __init__(self) -> None:
        self.first = 0
        """How much of a fetch comes before it waits."""
        self.open = trio.Event()
        self.fail = False
        self.asked: list[tuple[str, int, int]] = []

    async def fetch(self, name: str, start: int, into: memoryview, arrived: Arrived) -> None:
        self.asked.append((name, start, start + len(into)))
        into[: self.first] = expected(start, start + self.first)
        arrived(self.first)
        await self.open.wait()
        if self.fail:
            raise ServiceUnavailable("told to")
        into[:] = expected(start, start + len(into))
        arrived(len(into))

    async def store(self, segments: list[Segment], storage: str = "") -> Stored:
        raise NotImplementedError


def expected(start: int, stop: int) -> bytes:
    """What a gate's blob holds there."""
    first = start % len(PATTERN)
    return (PATTERN * ((stop - start) // len(PATTERN) + 2))[first : first + stop - start]


@pytest.fixture
def blobs() -> Gate:
    return Gate()


@pytest.fixture
async def cache(tmp_path: Path, blobs: Gate, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[BlockCache]:
    # A gate's bytes come at the speed of memory; what is done then has tests of its own.
    monkeypatch.setattr(blocks, "FAST_BYTES_S", math.inf)
    async with trio.open_nursery() as nursery:
        cache = BlockCache(tmp_path, blobs, 0, nursery)
        yield cache
    cache.check()
    cache.close()
    assert cache.fetched_bytes == 0
    assert os.listdir(tmp_path) == [] and cache.used_bytes == 0


async def test_a_block_is_fetched_once(cache: BlockCache, blobs: Gate) -> None:
    results: list[bytes] = []

    async def read(start: int, stop: int) -> None:
        results.append(await cache.read("b.lease", 1000, start, stop))

    async with trio.open_nursery() as nursery:
        for start in (0, 10, 500):
            nursery.start_soon(read, start, start + 100)
        await trio.testing.wait_all_tasks_blocked()
        blobs.open.set()
    assert sorted(map(bytes, results)) == sorted(expected(s, s + 100) for s in (0, 10, 500))
    assert blobs.asked == [("b.lease", 0, 1000)]
    assert await cache.read("b.other-lease", 1000, 900, 1000) == expected(900, 1000)
    await cache.fill("b", 1000, 0, 1000)
    assert cache.read_now("b", 0, 1000) == expected(0, 1000)
    assert len(blobs.asked) == 1 and cache.used_bytes == 1000


async def test_bytes_are_read_as_they_come(cache: BlockCache, blobs: Gate) -> None:
    blobs.first = 100
    with trio.fail_after(5):
        assert await cache.read("b", 1000, 0, 50) == expected(0, 50)
        assert await cache.read("b", 1000, 50, 100) == expected(50, 100)
    with trio.move_on_after(0) as scope:
        await cache.read("b", 1000, 50, 101)
    assert scope.cancelled_caught and len(blobs.asked) == 1
    blobs.open.set()
    assert await cache.read("b", 1000, 50, 1000) == expected(50, 1000)
    assert len(blobs.asked) == 1, "the reader who went away did not take the fetch along"


async def test_a_read_of_two_fetches_does_not_wait_for_the_disk(
    cache: BlockCache, blobs: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = threading.Event()
    write = blocks._write

    def slow(fd: int, data: bytearray, offset: int) -> None:
        assert disk.wait(10)
        write(fd, data, offset)

    monkeypatch.setattr(blocks, "_write", slow)
    blobs.open.set()
    length = 2 * BLOCK_BYTES
    assert await cache.read("b", length, 0, 10) == expected(0, 10)
    assert await cache.read("b", length, BLOCK_BYTES, BLOCK_BYTES + 10) == expected(BLOCK_BYTES, BLOCK_BYTES + 10)
    results: list[bytes] = []

    async def read() -> None:
        results.append(await cache.read("b", length, BLOCK_BYTES - 5, BLOCK_BYTES + 5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with trio.fail_after(5):
            while not results:
                await trio.testing.wait_all_tasks_blocked(0.01)
        disk.set()
    assert results == [expected(BLOCK_BYTES - 5, BLOCK_BYTES + 5)] and len(blobs.asked) == 2


async def test_a_fetch_that_fails_halfway_keeps_nothing(cache: BlockCache, blobs: Gate) -> None:
    blobs.first, blobs.fail = 100, True
    with trio.fail_after(5):
        assert await cache.read("b", 1000, 0, 50) == expected(0, 50)
        blobs.open.set()
        with pytest.raises(ServiceUnavailable, match="told to"):
            await cache.fill("b", 1000, 0, 50)
    assert cache.read_now("b", 0, 50) is None and cache.used_bytes == 0
    blobs.fail = False
    assert await cache.read("b", 1000, 0, 1000) == expected(0, 1000)


async def test_a_read_across_blocks_and_segments(cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    start, stop = SEGMENT_BYTES - BLOCK_BYTES - 5, SEGMENT_BYTES + 7
    assert await cache.read("b", SEGMENT_BYTES + 100, start, stop) == expected(start, stop)
    assert len(blobs.asked) == 2, blobs.asked


async def test_the_second_block_of_a_run_brings_the_rest_behind_itself(cache: BlockCache, blobs: Gate) -> None:
    length = 3 * RUN_BYTES - 10
    blobs.open.set()
    for run in range(3):
        low = run * RUN_BYTES
        at = low + 3 * BLOCK_BYTES + 5
        assert await cache.read("b", length, at, at + 10) == expected(at, at + 10)
        await cache.fill("b", length, at, at + 10)
        assert blobs.asked == [("b", low + 3 * BLOCK_BYTES, low + 4 * BLOCK_BYTES)], "one block is no run"
        at = low + 9 * BLOCK_BYTES + 5
        blobs.asked.clear()
        blobs.open, blobs.first = trio.Event(), BLOCK_BYTES
        with trio.fail_after(5):
            assert await cache.read("b", length, at, at + 10) == expected(at, at + 10), (
                "as soon as its own block is here"
            )
        blobs.open.set()
        await cache.fill("b", length, low, min(low + RUN_BYTES, length))
        assert sorted(blobs.asked) == [
            ("b", low, low + 3 * BLOCK_BYTES),
            ("b", low + 4 * BLOCK_BYTES, low + 9 * BLOCK_BYTES),
            ("b", low + 9 * BLOCK_BYTES, min(low + RUN_BYTES, length)),
        ]
        assert cache.fetched_bytes == 0, "what is read here and there is the page cache's"
        blobs.asked.clear()


async def test_runs_leave_room_for_who_waits_for_a_block(cache: BlockCache, blobs: Gate) -> None:
    length = 10 * RUN_BYTES
    blobs.open.set()
    for run in range(10):
        await cache.fill("b", length, run * RUN_BYTES, run * RUN_BYTES + 10)
    blobs.asked.clear()
    blobs.open, blobs.first = trio.Event(), BLOCK_BYTES
    for run in range(10):
        at = run * RUN_BYTES + 2 * BLOCK_BYTES
        with trio.move_on_after(0.01):
            await cache.read("b", length, at, at + 10)
    blobs.open.set()
    # Of each run what is behind its block, and the one before it; the others wait for single blocks.
    assert sum(stop - start > BLOCK_BYTES for _, start, stop in blobs.asked) == RUN_FETCHES_MAX // 2


async def test_the_cache_stays_below_its_limit(tmp_path: Path, cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    cache.limit_bytes = 10_000
    for number in range(20):
        assert await cache.read(f"b{number}", 1000, 0, 1000) == expected(0, 1000)
        await cache.fill(f"b{number}", 1000, 0, 1000)
        assert cache.used_bytes <= 10_000
    assert cache.read_now("b0", 0, 10) is None
    assert cache.read_now("b19", 0, 10) == expected(0, 10)
    assert len(os.listdir(tmp_path)) <= 10 + 1, "and one made ahead"


async def test_a_failed_fetch_is_tried_again(cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    blobs.fail = True
    with pytest.raises(ServiceUnavailable, match="told to"):
        await cache.read("b", 100, 0, 100)
    blobs.fail = False
    assert await cache.read("b", 100, 0, 100) == expected(0, 100)


async def test_a_blob_that_turns_out_longer(cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    assert await cache.read("b", 100, 0, 100) == expected(0, 100)
    assert await cache.read("b", 300, 50, 300) == expected(50, 300)


async def test_a_blob_that_turns_out_longer_while_it_is_fetched(cache: BlockCache, blobs: Gate) -> None:
    results: dict[int, bytes] = {}

    async def read(length: int) -> None:
        results[length] = await cache.read("b", length, 0, length)

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, 100)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(read, 300)
            await trio.testing.wait_all_tasks_blocked()
            blobs.open.set()
    assert results == {100: expected(0, 100), 300: expected(0, 300)}


async def test_a_blob_of_which_less_is_asked_than_before(cache: BlockCache, blobs: Gate) -> None:
    """Its end seemed to be in the same block, and further: that block is kept as any other."""
    blobs.open.set()
    await cache.read("b", 2 * BLOCK_BYTES - 10, 0, 10)
    with trio.fail_after(10):
        data = await cache.read("b", BLOCK_BYTES + 50, BLOCK_BYTES - 20, BLOCK_BYTES + 50)
    assert data == expected(BLOCK_BYTES - 20, BLOCK_BYTES + 50)
    await cache.fill("b", BLOCK_BYTES + 50, 0, BLOCK_BYTES + 50)
    assert cache.read_now("b", BLOCK_BYTES - 20, BLOCK_BYTES + 50) == data
    assert cache.used_bytes == 2 * BLOCK_BYTES - 10


# -- long fetches, which stay in memory until they were read -------------------------------------------------------------


@pytest.mark.parametrize("direct", [True, False])
async def test_what_was_fetched_ahead_is_in_memory_until_it_was_read(
    cache: BlockCache, blobs: Gate, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_direct", direct)
    blobs.open.set()
    length = 4 * BLOCK_BYTES + 10
    await cache.fill("b", length, 0, length)
    cache.check()
    half = length // 2
    for start, stop in ((0, half), (half, length)):
        assert cache.fetched_bytes == FETCH_BYTES_MAX, "a buffer"
        assert cache.read_now("b", start, stop) == expected(start, stop)
    assert cache.fetched_bytes == 0
    assert await cache.read("b", length, 0, length) == expected(0, length), "the disk has it too"
    assert len(blobs.asked) == 1


async def test_a_read_across_what_two_fetches_left(cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    length = 8 * BLOCK_BYTES
    await cache.fill("b", length, 0, length // 2)
    await cache.fill("b", length, length // 2, length)
    start, stop = length // 2 - 7, length // 2 + 7
    assert cache.read_now("b", start, stop) == expected(start, stop)
    assert cache.fetched_bytes == 2 * FETCH_BYTES_MAX
    cache.check()


async def test_bytes_that_nobody_reads_make_room(
    cache: BlockCache, blobs: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "FETCHED_BYTES_MAX", 2 * FETCH_BYTES_MAX)
    blobs.open.set()
    length = 4 * BLOCK_BYTES
    for name in ("a", "b", "c"):
        await cache.fill(name, length, 0, length)
    assert cache.fetched_bytes == 2 * FETCH_BYTES_MAX, "the third is on the disk only"
    assert await cache.read("c", length, 0, length) == expected(0, length)
    monkeypatch.setattr(blocks, "UNREAD_S", 0.0)
    await cache.fill("d", length, 0, length)
    assert cache.fetched_bytes == 2 * FETCH_BYTES_MAX
    assert await cache.read("a", length, 0, length) == expected(0, length), "which was forgotten"
    assert len(blobs.asked) == 4
    cache.check()


async def test_the_edges_of_a_random_read_are_not_kept(cache: BlockCache, blobs: Gate) -> None:
    length, start = 8 * BLOCK_BYTES, 100
    stop = start + 4 * BLOCK_BYTES
    blobs.open.set()
    assert await cache.read("b", length, start, stop) == expected(start, stop)
    await cache.fill("b", length, start, stop)
    assert cache.fetched_bytes == 0


async def test_what_is_evicted_is_not_kept_in_memory(cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    length = 4 * BLOCK_BYTES
    cache.limit_bytes = length
    for name in ("a", "b"):
        await cache.fill(name, length, 0, length)
    assert cache.fetched_bytes == FETCH_BYTES_MAX and cache.used_bytes == length
    cache.check()


async def test_a_kept_blob_that_turns_out_longer(cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    length = 4 * BLOCK_BYTES + 10
    await cache.fill("b", length, 0, length)
    longer = 5 * BLOCK_BYTES
    assert await cache.read("b", longer, length - 20, longer) == expected(length - 20, longer)
    await cache.fill("b", longer, 0, longer)
    cache.check()


@pytest.mark.parametrize("kept", ["all", "every other", "none"])
async def test_reads_that_begin_in_one_fetch_and_end_in_the_next_leave_nothing_in_memory(
    cache: BlockCache, blobs: Gate, kept: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel's read-ahead begins with 128 KiB, and goes on by the MiB."""
    decide, turns = BlockCache._may_be_kept, itertools.count()

    def may_be_kept(self: BlockCache, fetch: Fetch) -> bool:
        return decide(self, fetch) and (kept == "all" or (kept == "every other" and next(turns) % 2 == 0))

    monkeypatch.setattr(BlockCache, "_may_be_kept", may_be_kept)
    blobs.open.set()
    length = 3 * FETCH_BYTES_MAX
    await cache.fill("b", length, 0, 2 * FETCH_BYTES_MAX)
    at = 0
    while at < length:
        stop = min(at + MIB if at else 128 * 1024, length)
        assert await cache.read("b", length, at, stop) == expected(at, stop)
        at = stop
    await cache.fill("b", length, 0, length)
    assert cache.fetched_bytes == 0
    cache.check()


class SlowDisk:
    """Takes what goes past the page cache when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ready = threading.Event()
        self.written = 0
        real = blocks._write_direct

        def write(fd: int, view: memoryview, offset: int) -> bool:
            assert self.ready.wait(10)
            self.written += 1
            return real(fd, view, offset)

        monkeypatch.setattr(blocks, "_write_direct", write)


async def test_what_comes_faster_than_the_disk_takes_it_is_read_from_memory(
    cache: BlockCache, blobs: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    blobs.open.set()
    count = WRITES_MAX + WRITES_WAITING_MAX + 3
    length = count * FETCH_BYTES_MAX
    cache.fetch("b", length, 0, length)
    with trio.fail_after(5):
        for at in range(0, length, MIB):
            assert await cache.read("b", length, at, at + MIB) == expected(at, at + MIB)
    assert len(blobs.asked) == count and not cache.used_bytes
    disk.ready.set()
    with trio.fail_after(5):
        while cache.used_bytes < (WRITES_MAX + WRITES_WAITING_MAX) * FETCH_BYTES_MAX:
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert disk.written == WRITES_MAX + WRITES_WAITING_MAX
    assert not cache.holds("b", 0, length) and not cache.fetched_bytes
    assert await cache.read("b", length, 0, length) == expected(0, length), "the others come once more"
    assert len(blobs.asked) == count + 3
    await cache.fill("b", length, 0, length)


@pytest.fixture
def busy_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes nothing past the page cache."""
    monkeypatch.setattr(blocks, "WRITES_WAITING_MAX", 0)


@pytest.mark.usefixtures("busy_disk")
async def test_what_is_only_in_memory_makes_room_whole(cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    length = 4 * MIB
    await cache.fill("b", length, 0, length)
    assert cache.holds("b", 0, length) and not cache.used_bytes
    (fetch,) = cache._unread
    cache._forget(fetch)
    assert not cache.holds("b", 0, 1) and cache.read_now("b", 0, 1) is None
    assert await cache.read("b", length, 5, 10) == expected(5, 10) and len(blobs.asked) == 2


@pytest.mark.usefixtures("busy_disk")
async def test_what_was_read_as_it_came_and_the_disk_did_not_take_is_not_here(cache: BlockCache, blobs: Gate) -> None:
    blobs.first = length = 2 * MIB
    assert await cache.read("b", length, 0, length) == expected(0, length)
    blobs.open.set()
    (fetch,) = cache.fetch("b", length, 0, length)
    await fetch.finish()
    assert not cache.holds("b", 0, 1)
    blobs.first = 0
    assert await cache.read("b", length, 5, 10) == expected(5, 10) and len(blobs.asked) == 2


@pytest.mark.usefixtures("busy_disk")
async def test_what_was_read_while_it_ended_is_not_kept(cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    length = 2 * MIB
    assert await cache.read("b", length, 0, length) == expected(0, length)
    await trio.testing.wait_all_tasks_blocked()
    assert cache.fetched_bytes == 0
    cache.check()


# -- bytes that come fast ------------------------------------------------------------------------------------------------


@pytest.fixture
def fast(cache: BlockCache, blobs: Gate, monkeypatch: pytest.MonkeyPatch) -> BlockCache:
    monkeypatch.setattr(blocks, "FAST_BYTES_S", 0.0)
    blobs.open.set()
    return cache


@pytest.mark.parametrize("direct", [True, False])
async def test_what_comes_fast_is_on_the_disk_when_it_comes_again(
    fast: BlockCache, blobs: Gate, tmp_path: Path, direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast, "_direct", direct)
    length = 2 * SEGMENT_BYTES + MIB + 5
    for asked, on_disk in ((3, 0), (6, length), (6, length)):
        await fast.fill("b", length, 0, length)
        fast.check()
        for at in range(0, length, MIB):
            assert await fast.read("b", length, at, min(at + MIB, length)) == expected(at, min(at + MIB, length))
        assert len(blobs.asked) == asked and fast.used_bytes == on_disk
        assert not fast.fetched_bytes


async def test_one_request_brings_a_segment_of_what_comes_fast(fast: BlockCache, blobs: Gate) -> None:
    length = 3 * SEGMENT_BYTES
    await fast.fill("b", length, BLOCK_BYTES, length - BLOCK_BYTES)
    edge = SEGMENT_BYTES - BLOCK_BYTES
    assert sorted(stop - start for _, start, stop in blobs.asked) == [edge, edge, SEGMENT_BYTES]
    assert fast.fetched_bytes == 3 * LONG_FETCH_BYTES_MAX > FETCHED_BYTES_MAX // 2
    assert not fast.fast, "there is no memory for more"
    await fast.fill("c", length, 0, SEGMENT_BYTES)
    assert {stop - start for name, start, stop in blobs.asked if name == "c"} == {FETCH_BYTES_MAX}


@pytest.mark.parametrize("bytes_s", [FAST_BYTES_S * 2, FAST_BYTES_S / 2])
async def test_how_fast_bytes_come_is_seen(
    cache: BlockCache, blobs: Gate, bytes_s: float, autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(blocks, "FAST_BYTES_S", FAST_BYTES_S)
    fetch = blobs.fetch

    async def slow(name: str, start: int, into: memoryview, arrived: Arrived) -> None:
        # Four at once share what there is.
        await trio.sleep(len(into) * 4 / bytes_s)
        await fetch(name, start, into, arrived)

    monkeypatch.setattr(blobs, "fetch", slow)
    blobs.open.set()
    length = 12 * FETCH_BYTES_MAX
    for first in range(0, 12, 4):
        await cache.fill("b", length, first * FETCH_BYTES_MAX, (first + 4) * FETCH_BYTES_MAX)
        for start in range(first * FETCH_BYTES_MAX, (first + 4) * FETCH_BYTES_MAX, MIB):
            await cache.read("b", length, start, start + MIB)
    assert cache.fast == (bytes_s > FAST_BYTES_S)


async def test_segments_that_only_passed_are_forgotten_in_the_end(
    fast: BlockCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "SEGMENTS_MAX", 4)
    for name in map(str, range(10)):
        assert await fast.read(name, MIB, 0, MIB) == expected(0, MIB)
        assert len(fast._segments) <= 4


async def test_the_next_segments_file_is_made_in_a_thread(
    cache: BlockCache, blobs: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, threads = blocks._create, []

    def counted(path: Path) -> int:
        threads.append(threading.get_ident())
        return create(path)

    monkeypatch.setattr(blocks, "_create", counted)
    blobs.open.set()
    length = 4 * SEGMENT_BYTES
    for start in range(0, length, SEGMENT_BYTES):
        await cache.fill("b", length, start, start + SEGMENT_BYTES)
        await trio.testing.wait_all_tasks_blocked()
    assert len(threads) == 3, "the first was there, and nothing follows the last"
    assert threading.get_ident() not in threads


async def test_a_spare_file_that_cannot_be_made_is_missed_by_nobody_yet(
    cache: BlockCache, blobs: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, loop = blocks._create, threading.get_ident()

    def failing(path: Path) -> int:
        if threading.get_ident() != loop:
            raise OSError(errno.EMFILE, "too many open files")
        return create(path)

    monkeypatch.setattr(blocks, "_create", failing)
    blobs.open.set()
    length = 2 * SEGMENT_BYTES
    for start in (0, SEGMENT_BYTES):
        await cache.fill("b", length, start, start + SEGMENT_BYTES)
        await trio.testing.wait_all_tasks_blocked()
    assert cache.used_bytes == length


async def test_a_failed_fetch_holds_no_memory_and_nobody(cache: BlockCache, blobs: Gate) -> None:
    blobs.open.set()
    blobs.fail = True
    (fetch,) = cache.fetch("b", 2 * MIB, 0, 2 * MIB)
    for wait in (fetch.finish, lambda: fetch.reach(2 * MIB)):
        with trio.fail_after(5), pytest.raises(ServiceUnavailable, match="told to"):
            await wait()
    assert fetch.error is not None and fetch.error.__traceback__ is None and fetch.error.__context__ is None


SMALL = {
    "BLOCK_BYTES": 1 << 10, "FETCH_BYTES_MAX": 8 << 10, "SEGMENT_BYTES": 32 << 10, "SEGMENT_BLOCKS": 32,
    "LONG_FETCH_BYTES_MAX": 32 << 10, "RUN_BYTES": 8 << 10, "KEPT_BYTES_MIN": 2 << 10, "EDGE_BYTES": 1 << 10, "FETCHED_BYTES_MAX": 64 << 10, "DIRECT_ALIGNMENT": 512,
}  # fmt: skip
"""The same proportions, of less."""
READS = st.lists(st.tuples(st.integers(0, 100_000), st.integers(1, 20_000), st.booleans()), min_size=1, max_size=30)


@given(
    st.lists(READS, min_size=1, max_size=4), st.sampled_from([0, 1, 2]), st.booleans(), st.booleans(), st.booleans(),
    st.integers(4, 12),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_whatever_is_read_in_whatever_order_is_what_the_blob_has(
    readers: list[list[tuple[int, int, bool]]], waiting: int, direct: bool, quick: bool, fast: bool, kept: int
) -> None:
    """Readers beside one another, with evictions, a disk that takes some of it, and read-ahead that is not read.

    ``quick``: the page cache has what was written.  ``fast``: the disk is given what comes again.
    """
    length = 110_000

    async def main(directory: Path) -> None:
        blobs = Gate()
        blobs.open.set()
        async with trio.open_nursery() as nursery:
            cache = BlockCache(directory, blobs, 0, nursery)
            cache.limit_bytes = kept * blocks.SEGMENT_BYTES // 4
            cache._direct = direct

            async def read(reads: list[tuple[int, int, bool]]) -> None:
                for start, size, ahead in reads:
                    stop = min(start + size, length)
                    if ahead:
                        cache.fetch("b", length, start, stop)
                    assert await cache.read("b", length, start, stop) == expected(start, stop)

            async with trio.open_nursery() as reading:
                for reads in readers:
                    reading.start_soon(read, reads)
        cache.check()
        cache.close()
        assert cache.used_bytes == 0 and cache.fetched_bytes == 0

    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        for module in (blocks, segments):
            for name in SMALL.keys() & vars(module).keys():
                patch.setattr(module, name, SMALL[name])
        patch.setattr(blocks, "WRITES_WAITING_MAX", waiting)
        patch.setattr(blocks, "FAST_BYTES_S", 0.0 if fast else math.inf)
        if not quick:
            patch.setattr(BlockCache, "_read_file_now", lambda *arguments: None)
        trio.run(main, Path(directory))


def test_a_disk_that_wants_it_another_way_gets_it_through_the_page_cache(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    data = memoryview(os.urandom(2 * blocks.DIRECT_ALIGNMENT + 5))
    with open(path, "wb") as file:
        assert not blocks._write_direct(file.fileno(), data, 100), "100 is no multiple of anything"
    assert path.read_bytes() == bytes(100) + data


def test_a_file_that_lost_its_name_is_written_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    data = memoryview(os.urandom(2 * blocks.DIRECT_ALIGNMENT + 5))
    with open(path, "w+b") as file:
        path.unlink()
        blocks._write_direct(file.fileno(), data, 0)
        assert file.read() == data


async def test_bytes_that_arrive_in_a_thread_are_read_as_they_come(cache: BlockCache, blobs: Gate) -> None:
    at: list[int] = []
    gates = [threading.Event() for _ in range(4)]

    async def fetch(name: str, start: int, into: memoryview, arrived: Arrived) -> None:
        def receive() -> None:
            into[:] = expected(start, start + len(into))
            for number, gate in enumerate(gates):
                assert gate.wait(10)
                arrived((number + 1) * len(into) // len(gates))

        await trio.to_thread.run_sync(receive)

    blobs.fetch = fetch  # type: ignore[method-assign]
    length = BLOCK_BYTES
    with trio.fail_after(10):
        for number, gate in enumerate(gates):
            start, stop = number * length // len(gates), (number + 1) * length // len(gates)
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def read(start: int = start, stop: int = stop) -> None:
                    assert await cache.read("b", length, start, stop) == expected(start, stop)
                    at.append(stop)

                await trio.testing.wait_all_tasks_blocked()
                assert len(at) == number
                gate.set()
    assert at[-1] == length
