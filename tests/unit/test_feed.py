"""Who is woken by a change: on a clock that jumps."""

import trio
import trio.testing
from trio.testing import MockClock

from server.service import Feed


async def test_who_made_a_change_is_not_woken_by_it(autojump_clock: MockClock) -> None:
    feed, woken = Feed(), []

    async def wait(origin: str) -> None:
        await feed.wait(60, origin)
        woken.append((origin, trio.current_time() - began))

    async with trio.open_nursery() as nursery:
        began = trio.current_time()
        for origin in ("mine", "theirs", ""):
            nursery.start_soon(wait, origin)
        await trio.testing.wait_all_tasks_blocked()
        feed.wake("mine")
    assert sorted(woken) == [("", 0), ("mine", 60), ("theirs", 0)]


async def test_what_has_no_origin_wakes_everybody(autojump_clock: MockClock) -> None:
    feed = Feed()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for origin in ("mine", ""):
            nursery.start_soon(feed.wait, 60, origin)
        await trio.testing.wait_all_tasks_blocked()
        feed.wake()
    assert trio.current_time() == began
    # Nobody is left to be woken.
    feed.wake()
    with trio.testing.assert_checkpoints():
        await feed.wait(1, "mine")
