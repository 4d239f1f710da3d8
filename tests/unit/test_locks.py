"""Locks that cost nothing while nobody else wants them."""

import pytest
import trio
import trio.testing

from vosfs.locks import Lock, take


async def test_one_has_it_and_the_others_in_the_order_they_came() -> None:
    lock, order = Lock(), []

    async def use(number: int) -> None:
        async with lock:
            assert lock.locked()
            order.append(number)
            await trio.testing.wait_all_tasks_blocked()

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(use, number)
            await trio.lowlevel.checkpoint()
    assert sorted(order) == [0, 1, 2, 3] and order == sorted(order) and not lock.locked()


async def test_who_comes_in_between_does_not_take_it_from_who_was_woken() -> None:
    lock, order = Lock(), []

    async def use(name: str) -> None:
        async with lock:
            order.append(name)

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(use, "first")
            await trio.testing.wait_all_tasks_blocked()
        # Woken, but it has not run yet.
        assert lock.locked()
        await use("second")
    assert order == ["first", "second"]


async def test_who_gives_up_waiting_is_passed_over() -> None:
    lock, order, gone = Lock(), [], trio.CancelScope()

    async def give_up() -> None:
        with gone:
            await use("gone")

    async def use(name: str) -> None:
        async with lock:
            order.append(name)

    async with trio.open_nursery() as nursery:
        async with lock:
            nursery.start_soon(give_up)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(use, "stays")
            await trio.testing.wait_all_tasks_blocked()
            gone.cancel()
    assert order == ["stays"] and not lock.locked()


async def test_an_error_inside_frees_it() -> None:
    lock = Lock()
    with pytest.raises(KeyError):
        async with lock:
            raise KeyError("x")
    assert not lock.locked()


async def test_what_is_free_is_taken_without_a_checkpoint() -> None:
    limit = trio.Semaphore(1)
    with trio.testing.assert_no_checkpoints():
        await take(limit)
    with trio.CancelScope(deadline=trio.current_time()) as scope:
        await take(limit)
    assert scope.cancelled_caught
    limit.release()
