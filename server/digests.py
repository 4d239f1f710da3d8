"""Fills in the MD5 of contents that were written in pieces, through a mount say, when they have rested for a while.

Clients compare it to skip what they have (vsync), so a file without one is sent again and again.  What is registered
in place is left alone: nobody asked for terabytes to be read.
"""

import contextlib
import hashlib
import itertools
import logging
import time
from collections.abc import Callable
from typing import TypeVar

import trio

from vosfs.backends.backend import Backend, pieces
from vosfs.errors import VOSpaceError
from vosfs.metadata import content
from vosfs.metadata.node import Content
from vosfs.metadata.store import Store

log = logging.getLogger(__name__)

REST_S = 30
"""Without a change: a file that is being written would be read over and over."""
EVERY_S = 10.0
BATCH = 100
AWAY_MAX = 10_000
"""Contents left out because they could not be read, on tape say: for AWAY_S, and the rest gets its turn."""
AWAY_S = 3600.0


STEP_PIECES = 4
"""Digested between two looks at what else there is to do: 5 ms of 4 MiB."""
BUSY_SHARE = 0.05
"""Of a processor, taken by the rest of the daemon: then there are clients who wait for it."""
PAUSE_STEPS = 9
"""As long as how many steps a pause is then: digests have a tenth of a processor."""
PAUSE_S_MAX = 1.0
"""Where a step waits for a slow storage, the daemon's processor is not what others lack."""

T = TypeVar("T")


class Pace:
    """How fast work goes that nobody waits for: as it can while the daemon has little else to do, a tenth of the time while
    it has.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, process: Callable[[], float] = time.process_time,
        thread: Callable[[], float] = time.thread_time,
    ) -> None:  # fmt: skip
        """``process`` and ``thread``: processor time taken by the daemon, and by the thread that asks."""
        self._clock, self._process, self._thread = clock, process, thread
        self._looked = clock(), process()

    async def step(self, work: Callable[[], T]) -> T:
        """Do a piece of the work in a thread, and wait as long as is due."""

        def timed() -> tuple[T, float]:
            began = self._thread()
            return work(), self._thread() - began

        began = self._clock()
        done, own_s = await trio.to_thread.run_sync(timed)
        now, taken_s = self._clock(), self._process()
        before, taken_before_s = self._looked
        self._looked = now, taken_s
        if taken_s - taken_before_s - own_s > BUSY_SHARE * (now - before):
            await trio.sleep(min(PAUSE_STEPS * (now - began), PAUSE_S_MAX))
        return done


async def digest(backend: Backend, found: Content, pace: Pace) -> str:
    """The MD5 of a content, hexadecimal: 1.3 s a GiB at the least."""
    md5 = hashlib.md5(usedforsecurity=False)
    with contextlib.closing(pieces(backend, content.slices(found.extents, 0, found.node.length))) as stream:

        def some() -> bool:
            count = 0
            for data in itertools.islice(stream, STEP_PIECES):
                md5.update(data)
                count += 1
            return count == STEP_PIECES

        while await pace.step(some):
            pass
    return md5.hexdigest()


async def fill(store: Store, backend: Backend, rest_s: float = REST_S, away: set[int] | None = None) -> int:
    """Digest what has rested, but for nodes in ``away``, which are those that cannot be read; returns how many contents."""
    done, pace = 0, Pace()
    away = set() if away is None else away
    for id in await store.undigested(int(rest_s * 1e9), BATCH + len(away)):
        if id in away:
            continue
        try:
            found = await store.open(id)
            await store.put_digest(id, found.node.version, await digest(backend, found, pace))
            done += 1
        except VOSpaceError as exc:
            log.debug("digest of node %d: %s", id, exc)
            if len(away) < AWAY_MAX:
                away.add(id)
    return done


async def run(store: Store, backend: Backend) -> None:
    """Keep digesting until cancelled."""
    away: set[int] = set()
    since = time.monotonic()
    while True:
        if time.monotonic() - since > AWAY_S:
            away, since = set(), time.monotonic()
        try:
            full = await fill(store, backend, away=away) >= BATCH
        except (VOSpaceError, OSError) as exc:
            log.warning("digests: %s", exc)
            full = False
        await trio.sleep(0.1 if full else EVERY_S)
