"""A lock that costs nothing while nobody else wants it."""

import trio


class Lock:
    """``trio.Lock`` without its checkpoint when it is free: a pass of the scheduler, 40 µs in the path of every save."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = trio.Lock()

    def locked(self) -> bool:
        """Whether somebody has it."""
        return self._lock.locked()

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *exc: object) -> None:
        self._lock.release()
