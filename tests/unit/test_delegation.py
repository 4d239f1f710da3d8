"""Who gets the delegation, and how it comes back: on a clock that jumps."""

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from server.delegation import DISTRUST_S, QUIET_S, RECALL_S, Delegation
from vosfs.metadata.messages import HELD, NOT_HELD, RECALLED

ALICE, BOB = ("alice", "one"), ("bob", "two")


@pytest.fixture
async def delegation() -> AsyncIterator[Delegation]:
    yield Delegation(True)


async def test_one_has_it_and_keeps_it(autojump_clock: MockClock, delegation: Delegation) -> None:
    assert delegation.state(ALICE) == NOT_HELD
    assert delegation.ask(ALICE) and delegation.ask(ALICE)
    assert not delegation.ask(BOB)
    assert (delegation.state(ALICE), delegation.state(BOB)) == (HELD, NOT_HELD)
    delegation.give_back(BOB)
    assert delegation.holder == ALICE
    delegation.give_back(ALICE)
    assert delegation.holder is None
    assert delegation.ask(BOB), "alice gave it back of her own accord"


async def test_who_follows_a_mount_that_ended_need_not_wait(autojump_clock: MockClock, delegation: Delegation) -> None:
    await trio.sleep(QUIET_S)
    with delegation.at_work(ALICE):
        pass
    assert not delegation.ask(BOB)
    delegation.give_back(ALICE)
    assert delegation.ask(BOB), "alice never held it, and is gone"


async def test_others_than_the_one_that_ended_still_count(autojump_clock: MockClock, delegation: Delegation) -> None:
    carol = ("carol", "three")
    await trio.sleep(QUIET_S)
    for who in (carol, ALICE):
        with delegation.at_work(who):
            pass
    delegation.give_back(ALICE)
    assert not delegation.ask(BOB), "carol was at work a moment ago"
    await trio.sleep(QUIET_S)
    assert delegation.ask(BOB)


async def test_nobody_has_it_where_others_serve_the_same_space(autojump_clock: MockClock) -> None:
    assert not Delegation(False).ask(ALICE)


async def test_only_when_everybody_else_is_quiet(autojump_clock: MockClock, delegation: Delegation) -> None:
    with delegation.at_work(ALICE):
        pass
    with delegation.at_work(BOB):
        assert not delegation.ask(ALICE)
        assert delegation.ask(BOB) is False, "alice was at work a moment ago"
    assert not delegation.ask(ALICE)
    with delegation.at_work(ALICE):
        pass
    assert not delegation.ask(ALICE), "bob was, and alice's own work since does not hide it"
    await trio.sleep(QUIET_S)
    with delegation.at_work(ALICE):
        assert delegation.ask(ALICE), "one's own work does not count"


async def test_a_recall_waits_for_the_holder(autojump_clock: MockClock, delegation: Delegation) -> None:
    woken = []
    delegation.on_recall = lambda: woken.append(delegation.state(ALICE))
    assert delegation.ask(ALICE)
    went_on = []

    async def other() -> None:
        await delegation.recall()
        went_on.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        nursery.start_soon(other)
        await trio.testing.wait_all_tasks_blocked()
        assert set(woken) == {RECALLED} and not went_on
        assert not delegation.ask(ALICE)
        delegation.give_back(ALICE)
    assert len(went_on) == 2 and max(went_on) < RECALL_S
    await delegation.recall()


async def test_nobody_gets_it_between_a_recall_and_what_that_was_for(
    autojump_clock: MockClock, delegation: Delegation
) -> None:
    assert delegation.ask(ALICE)
    asked = []

    async def bob() -> None:
        with delegation.at_work(BOB):
            await delegation.recall()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob)
        await trio.testing.wait_all_tasks_blocked()
        delegation.give_back(ALICE)
        # Bob is told, and has not gone on yet.
        asked.append(delegation.ask(ALICE))
    assert asked == [False]


async def test_who_had_it_recalled_waits_like_everybody(autojump_clock: MockClock, delegation: Delegation) -> None:
    with delegation.at_work(ALICE):
        assert delegation.ask(ALICE)
    await trio.sleep(10 * QUIET_S)

    async def bob() -> None:
        with delegation.at_work(BOB):
            await delegation.recall()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob)
        await trio.testing.wait_all_tasks_blocked()
        delegation.give_back(ALICE)
    assert not delegation.ask(BOB), "alice was at work with it until now"
    await trio.sleep(QUIET_S)
    assert delegation.ask(BOB)


async def test_who_does_not_answer_loses_it_and_is_not_given_it_again(
    autojump_clock: MockClock, delegation: Delegation, caplog: pytest.LogCaptureFixture
) -> None:
    assert delegation.ask(ALICE)
    began = trio.current_time()
    await delegation.recall()
    assert trio.current_time() - began >= RECALL_S and delegation.holder is None
    assert "did not give the delegation back" in caplog.text
    caplog.clear()
    assert not delegation.ask(ALICE) and delegation.ask(BOB)
    delegation.give_back(BOB)
    await trio.sleep(DISTRUST_S)
    assert delegation.ask(ALICE)


async def test_nor_for_one_that_went_before_its_next_poll(autojump_clock: MockClock, delegation: Delegation) -> None:
    with delegation.polled(ALICE, lambda: True):
        assert delegation.ask(ALICE)
        began = trio.current_time()
        await delegation.recall()
        assert trio.current_time() == began and delegation.holder is None


async def test_nobody_waits_for_a_holder_that_is_gone(autojump_clock: MockClock, delegation: Delegation) -> None:
    assert delegation.ask(ALICE)
    with delegation.polled(ALICE, lambda: True):
        began = trio.current_time()
        await delegation.recall()
        assert trio.current_time() == began and delegation.holder is None
    assert delegation.ask(BOB), "and it is not held against anybody"
