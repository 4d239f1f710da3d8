"""What a mount does about files whose bytes are on a slow storage: their users are told, and see when they are here.

They are told by open(2).  A read(2) that answers EAGAIN is for many programs one that has nothing more to give: Python's
``shutil.copyfile`` then makes an empty copy and says nothing.
"""

import logging

import trio

from vosfs.backends.backend import NEARLINE, ONLINE, STAGING
from vosfs.cache.file import CachedFile
from vosfs.errors import NodeNotFound, NotOnline, PermissionDenied, VOSpaceError
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.node import LOCALITY, STAGE

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
        self.slow: bool | None = None
        """Whether the service has slow storages; None: the first look at a file will tell."""
        self._files: dict[int, None] = {}
        """Node ids, in the order of the last look; INVARIANT: at most FILES_MAX, and ``_watch`` runs while there are any."""

    def __len__(self) -> int:
        return len(self._files)

    async def check(self, file: CachedFile) -> None:
        """NotOnline, when they were asked for, unless all bytes of a file can be read at once."""
        if self.slow is False or self._tree.away or file.here:
            return
        id = file.node.id
        where = (await self._tree.properties(id)).get(LOCALITY)
        self.slow = where is not None
        if where not in (NEARLINE, STAGING):
            return
        if where == NEARLINE:
            try:
                await self._tree.set_properties(id, {STAGE: "true"})
            except PermissionDenied:
                # A plain service lets none but writers say so; reading asks too.
                for fetch in file.expect(0, 1):
                    await fetch.finish()
                return
        self.wanted(id)
        raise NotOnline(f"node {id} is on a slow storage, and on its way back")

    def wanted(self, id: int) -> None:
        """A program wanted to read a file that is not on-line, and it was asked for."""
        if id in self._files or len(self._files) >= FILES_MAX:
            return
        self._files[id] = None
        if len(self._files) == 1:
            self._nursery.start_soon(self._watch)
        log.info("%s is on a slow storage and was asked for: opening it says EAGAIN until it is there (staging: %d files)",
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
            log.warning("%s is not on its way from its slow storage any more: open it again", self._tree.path_of(id))
