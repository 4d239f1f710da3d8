"""What a mount knows of files whose bytes are on their way from a slow storage, for its users: the log, ``vosfs status``."""

import logging

import trio

from vosfs.backends.backend import ONLINE, STAGING
from vosfs.errors import NodeNotFound, VOSpaceError
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.node import LOCALITY

log = logging.getLogger(__name__)

FILES_MAX = 1_000
"""Files looked after; of more their readers are told, and nobody else."""
LOOK_S = 2.0
"""Between looks at what has come."""
LOOKS_MAX = 50
"""Files asked about in one look: those that were not for longest."""


class Awaited:
    """Files that a program of this mount wanted to read, and that have to be brought back first."""

    def __init__(self, tree: CachedTree, nursery: trio.Nursery) -> None:
        # Dependencies
        self._tree = tree
        self._nursery = nursery
        # Mutable state
        self._files: dict[int, None] = {}
        """Node ids, in the order of the last look; INVARIANT: at most FILES_MAX, and ``_watch`` runs while there are any."""

    def __len__(self) -> int:
        return len(self._files)

    def wanted(self, id: int) -> None:
        """Reading a file said that it is not on-line, and asked for it."""
        if id in self._files or len(self._files) >= FILES_MAX:
            return
        self._files[id] = None
        if len(self._files) == 1:
            self._nursery.start_soon(self._watch)
        log.info("%s is on a slow storage and was asked for: reading it says EAGAIN until it is there (staging: %d files)",
                 self._tree.path_of(id), len(self._files))  # fmt: skip

    async def _watch(self) -> None:
        """Look until nothing is on its way."""
        while self._files:
            await trio.sleep(LOOK_S)
            try:
                for id in list(self._files)[:LOOKS_MAX]:
                    await self._look(id)
            except VOSpaceError as exc:
                # The service is away, say: what it fetches comes all the same.
                log.debug("staging: %s", exc)

    async def _look(self, id: int) -> None:
        try:
            where = (await self._tree.properties(id)).get(LOCALITY, ONLINE)
        except NodeNotFound:
            self._files.pop(id, None)
            return
        self._files.pop(id, None)
        if where == STAGING:
            # To the end: others are looked at first next time.
            self._files[id] = None
        elif where == ONLINE:
            log.info("%s is there (staging: %d files)", self._tree.path_of(id), len(self._files))
        else:
            log.warning("%s is not on its way from its slow storage any more: read it again", self._tree.path_of(id))
