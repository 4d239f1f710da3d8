"""What the daemon does on its own: empty the trash, collect blobs, trim the logs.

The collector removes a blob when no extent has stood on it for LEASE_S, the life of a signed blob name: a reader
that opened a file before it was replaced can finish.  A blob file that no row knows was uploaded and never
committed; its receipt must have expired first.
"""

import contextlib
import itertools
import logging
import time
from collections.abc import AsyncGenerator

import trio
import trio.lowlevel

from server.signing import LEASE_S, RECEIPT_S
from vosfs.backends.backend import Backend
from vosfs.backends.bounded import Bounded
from vosfs.backends.storages import DEFAULT, Storages
from vosfs.errors import VOSpaceError
from vosfs.metadata.node import parts
from vosfs.metadata.store import Store

log = logging.getLogger(__name__)

TRASH_EVERY_S = 2.0
TRASH_BATCH = 200
COLLECT_EVERY_S = 300.0
COLLECT_BATCH = 1000
COUNT_EVERY_S = 60.0
ORPHANS_EVERY_S = 6 * 3600.0
LOG_LIFE_S = 24 * 3600
MARGIN_S = 600
"""Clocks of a metadata and a storage host may differ by this much."""
GRACE_S = RECEIPT_S + MARGIN_S
"""A younger blob is no orphan: somebody may hold a receipt for it."""
UNFINISHED_S = LEASE_S + MARGIN_S
"""What a writer that no longer exists left unfinished has no receipt, and goes sooner."""


async def empty_trash(store: Store) -> int:
    """Purge everything in the trash, in small transactions; returns how many nodes went."""
    total = 0
    while count := await store.purge(TRASH_BATCH):
        total += count
        await trio.lowlevel.checkpoint()
    return total


async def collect(store: Store, backend: Backend, older_s: float = LEASE_S + MARGIN_S) -> int:
    """Remove blobs that nothing has stood on for ``older_s``; returns how many."""
    total = 0
    while locators := await store.unreferenced(time.time_ns() - int(older_s * 1e9), COLLECT_BATCH):
        # Row first: who still has a receipt finds no blob to commit, and a crash in between leaves an orphan.
        for locator in await store.forget_blobs(locators):
            for part in parts(locator):
                # A blob whose bad copy was replaced shares the good one with its successor.
                if not await store.referenced(part):
                    await trio.to_thread.run_sync(backend.remove, part)
        total += len(locators)
    return total


async def orphans(store: Store, backend: Backend, older_s: float = GRACE_S) -> AsyncGenerator[str, None]:
    """Blobs of the storage that were uploaded and never committed: nobody can any more, their receipts have expired."""
    found = backend.locators(time.time_ns() - int(older_s * 1e9))
    while page := await trio.to_thread.run_sync(lambda: list(itertools.islice(found, COLLECT_BATCH))):
        for locator in page:
            if not await store.referenced(locator):
                yield locator


async def collect_orphans(store: Store, backend: Backend, older_s: float = GRACE_S) -> int:
    """Remove blobs that were uploaded and never committed; returns how many."""
    await trio.to_thread.run_sync(backend.sweep, time.time_ns() - int(min(older_s, UNFINISHED_S) * 1e9))
    total = 0
    async with contextlib.aclosing(orphans(store, backend, older_s)) as found:
        async for locator in found:
            await trio.to_thread.run_sync(backend.remove, locator)
            total += 1
    return total


async def count_stored(store: Store, storages: Storages) -> None:
    """Tell storages with a quota what is in them."""
    for name, member in storages.members.items():
        if isinstance(member, Bounded):
            member.count(await store.stored("" if name == DEFAULT else name))


async def run(store: Store, backend: Backend) -> None:
    """Keep house until cancelled.  A failure is logged and tried again at the next turn."""

    async def every(seconds: float, name: str, work: object) -> None:
        assert callable(work)
        while True:
            await trio.sleep(seconds)
            try:
                done = await work()
            except (VOSpaceError, OSError) as exc:
                log.warning("%s: %s", name, exc)
            else:
                if done:
                    log.info("%s: %d", name, done)

    async def trim() -> int:
        await store.trim(time.time_ns() - LOG_LIFE_S * 10**9)
        return 0

    async def count() -> int:
        if isinstance(backend, Storages):
            await count_stored(store, backend)
        return 0

    async with trio.open_nursery() as nursery:
        nursery.start_soon(every, COUNT_EVERY_S, "bytes counted", count)
        nursery.start_soon(every, TRASH_EVERY_S, "nodes purged", lambda: empty_trash(store))
        nursery.start_soon(every, COLLECT_EVERY_S, "blobs collected", lambda: collect(store, backend))
        nursery.start_soon(every, ORPHANS_EVERY_S, "orphans collected", lambda: collect_orphans(store, backend))
        nursery.start_soon(every, COLLECT_EVERY_S, "log trimmed", trim)
