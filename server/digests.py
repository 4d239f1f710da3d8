"""Fills in the MD5 of contents that were written in pieces, through a mount say, when they have rested for a while.

Clients compare it to skip what they have (vsync), so a file without one is sent again and again.  What is registered
in place is left alone: nobody asked for terabytes to be read.
"""

import hashlib
import logging
import time

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


def digest(backend: Backend, found: Content) -> str:
    """The MD5 of a content, hexadecimal.  Blocks: 1.3 s a GiB."""
    md5 = hashlib.md5(usedforsecurity=False)
    for data in pieces(backend, content.slices(found.extents, 0, found.node.length)):
        md5.update(data)
    return md5.hexdigest()


async def fill(store: Store, backend: Backend, rest_s: float = REST_S, away: set[int] | None = None) -> int:
    """Digest what has rested, but for nodes in ``away``, which are those that cannot be read; returns how many contents."""
    done = 0
    away = set() if away is None else away
    for id in await store.undigested(int(rest_s * 1e9), BATCH + len(away)):
        if id in away:
            continue
        try:
            found = await store.open(id)
            await store.put_digest(id, found.node.version, await trio.to_thread.run_sync(digest, backend, found))
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
