"""Fills in the MD5 of contents that were written in pieces, through a mount say, when they have rested for a while.

Clients compare it to skip what they have (vsync), so a file without one is sent again and again.  What is registered
in place is left alone: nobody asked for terabytes to be read.
"""

import hashlib
import logging

import trio

from vosfs.backends.backend import Backend
from vosfs.errors import VOSpaceError
from vosfs.metadata import content
from vosfs.metadata.node import Content
from vosfs.metadata.store import Store

log = logging.getLogger(__name__)

REST_S = 30
"""Without a change: a file that is being written would be read over and over."""
EVERY_S = 10.0
BATCH = 100
PIECE_BYTES = 1 << 20


def digest(backend: Backend, found: Content) -> str:
    """The MD5 of a content, hexadecimal.  Blocks: 1.3 s a GiB."""
    md5 = hashlib.md5(usedforsecurity=False)
    for piece in content.slices(found.extents, 0, found.node.length):
        if piece.data:
            md5.update(piece.data)
            continue
        size = piece.stop - piece.start
        reader = backend.open(piece.locator) if piece.locator else None
        try:
            for at in range(0, size, PIECE_BYTES):
                stop = min(at + PIECE_BYTES, size)
                md5.update(reader.read(piece.offset + at, piece.offset + stop) if reader else bytes(stop - at))
        finally:
            if reader is not None:
                reader.close()
    return md5.hexdigest()


async def fill(store: Store, backend: Backend, rest_s: float = REST_S) -> int:
    """Digest what has rested; returns how many contents."""
    done = 0
    for id in await store.undigested(int(rest_s * 1e9), BATCH):
        try:
            found = await store.open(id)
            await store.put_digest(id, found.node.version, await trio.to_thread.run_sync(digest, backend, found))
            done += 1
        except VOSpaceError as exc:
            log.debug("digest of node %d: %s", id, exc)
    return done


async def run(store: Store, backend: Backend) -> None:
    """Keep digesting until cancelled."""
    while True:
        try:
            full = await fill(store, backend) == BATCH
        except (VOSpaceError, OSError) as exc:
            log.warning("digests: %s", exc)
            full = False
        await trio.sleep(0.1 if full else EVERY_S)
