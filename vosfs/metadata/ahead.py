"""The tree of a mount that may act first: a cached tree that changes what it remembers, and tells the service later.

While this mount holds the delegation (``server/delegation.py``) nobody else changes the space.  A change whose effect is
certain from what is remembered is then made here at once, in one synchronous step, and owed to the service
(``behind.py``); any other waits for the service, behind all that is owed.
"""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import trio

from vosfs.errors import StorageFull, VOSpaceError
from vosfs.metadata import messages as m
from vosfs.metadata.allowance import ASK_EVERY_S, Allowance
from vosfs.metadata.behind import WriteBehind
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.node import (
    CONTAINER,
    DATA,
    Attributes,
    Blob,
    Change,
    Content,
    Extent,
    NewNode,
    Node,
    Renamed,
    made,
    new_id,
)
from vosfs.metadata.store import Tree, prepared_version

log = logging.getLogger(__name__)

T = TypeVar("T")
replace = msgspec.structs.replace


class AheadTree(CachedTree):
    """Tree that need not wait for the service where nobody could tell."""

    def __init__(self, inner: Tree, behind: WriteBehind) -> None:
        super().__init__(inner)
        # Dependencies
        self._behind = behind
        # Mutable state
        self._allowance = Allowance()
        self._term = 0
        """Of the delegation, that the allowance is of."""
        self._asked_room_at = -ASK_EVERY_S

    def _now(self) -> float:
        # Nothing expires that nobody else can change.
        return 0.0 if self._behind.held else super()._now()

    async def room(self) -> None:
        if self._behind.held:
            await self._behind.room()
        else:
            self._behind.want()

    def _mine(self, id: int) -> Node | None:
        """A node that this mount may change first: known, its user's own, and free."""
        if not self._behind.held:
            return None
        node = self.peek(id)
        if node is None or node.owner != self._behind.user or node.immutable or not node.nlink:
            return None
        return node

    @staticmethod
    def _ahead(make: Callable[..., T | None], *arguments: Any) -> T | None:
        """What a ``_..._ahead`` makes, if it can."""
        try:
            return make(*arguments)
        except StorageFull as exc:
            # The journal's disk is full.  The service's may have room, and what waits for the service needs no journal.
            log.debug("not ahead: %s", exc)
            return None

    def _owe(self, request: m.Mutation) -> None:
        self._behind.add(request)
        self._serial += 1
        self._mutations += 1

    async def create(self, parent: int, name: bytes, new: NewNode) -> Node:
        await self.room()
        ahead = self._ahead(self._create_ahead, parent, name, new)
        return ahead if ahead is not None else await super().create(parent, name, new)

    def _create_ahead(self, parent: int, name: bytes, new: NewNode) -> Node | None:
        container = self._mine(parent)
        if container is None or container.kind != CONTAINER or self.peek_name(parent, name) != 0:
            return None
        node = made(replace(new, owner=self._behind.user), new_id(), self._behind.now_ns(), container)
        self._owe(m.Create(parent, name, new, node.id, node.btime_ns))
        return self._created(parent, name, node)

    def _child_ahead(self, parent: int, name: bytes) -> Node | None:
        """The node under a name, if name and node may be changed here first."""
        container, id = self._mine(parent), self.peek_name(parent, name)
        if container is None or not id:
            return None
        node = self.peek(id)
        return None if node is None or node.immutable else node

    async def remove(self, parent: int, name: bytes, kind: str) -> Node:
        await self.room()
        ahead = self._ahead(self._remove_ahead, parent, name, kind)
        return ahead if ahead is not None else await super().remove(parent, name, kind)

    def _remove_ahead(self, parent: int, name: bytes, kind: str) -> Node | None:
        node = self._child_ahead(parent, name)
        if node is None or (node.kind == CONTAINER) != (kind == "empty"):
            return None
        if kind == "empty":
            names = self.names_known(node.id)
            if names is None or any(names.values()):
                return None
        now_ns = self._behind.now_ns()
        self._owe(m.Remove(parent, name, kind, node.id, now_ns))
        node = replace(node, nlink=node.nlink - 1, ctime_ns=now_ns)
        self._removed(parent, name, node)
        return node

    async def rename(self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str) -> Node | None:
        await self.room()
        ahead = self._ahead(self._rename_ahead, parent, name, to_parent, to_name, flag)
        if ahead is not None:
            return ahead.gone
        with self._allowance.charged_elsewhere():
            return await super().rename(parent, name, to_parent, to_name, flag)

    def _rename_ahead(self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str) -> Renamed | None:
        node, into, other_id = (
            self._child_ahead(parent, name),
            self._mine(to_parent),
            self.peek_name(to_parent, to_name),
        )
        if node is None or into is None or other_id is None or flag == "exchange":
            return None
        if node.kind == CONTAINER and parent != to_parent:
            # Whether it goes below itself is not known here.
            return None
        other = None
        if node.quota != into.quota:
            # Whether its bytes may come there neither.
            return None
        if other_id:
            other = self._child_ahead(to_parent, to_name)
            if other is None or other.id == node.id or flag or CONTAINER in (node.kind, other.kind):
                return None
        now_ns = self._behind.now_ns()
        self._owe(m.Rename(parent, name, to_parent, to_name, flag, node.id, now_ns))
        gone = None if other is None else replace(other, nlink=other.nlink - 1, ctime_ns=now_ns)
        done = Renamed(replace(node, ctime_ns=now_ns), gone)
        self._renamed(parent, name, to_parent, to_name, done)
        return done

    async def set_attributes(self, id: int, change: Attributes) -> Node:
        await self.room()
        ahead = self._ahead(self._set_attributes_ahead, id, change)
        return ahead if ahead is not None else await super().set_attributes(id, change)

    def _set_attributes_ahead(self, id: int, change: Attributes) -> Node | None:
        node = self._mine(id)
        if node is None or change.target is not None or change.immutable is not None:
            return None
        now_ns = self._behind.now_ns()
        fields = {key: value for key, value in msgspec.structs.asdict(change).items() if value is not None}
        self._owe(m.SetAttributes(id, change, now_ns))
        return self.remember(replace(node, **fields, ctime_ns=now_ns))

    def commit_ahead(
        self, id: int, base_version: int, length: int, changes: list[Extent], mtime_ns: int | None,
        atime_ns: int | None = None,
    ) -> Node | None:  # fmt: skip
        return self._ahead(self._commit_ahead, id, base_version, length, changes, mtime_ns, atime_ns)

    def _commit_ahead(
        self, id: int, base_version: int, length: int, changes: list[Extent], mtime_ns: int | None,
        atime_ns: int | None,
    ) -> Node | None:  # fmt: skip
        node = self._mine(id)
        if node is None or node.kind != DATA or node.version != base_version:
            return None
        if node.quota and length > node.length and not self._allows(node.quota, length - node.length):
            # What the service may refuse is not acknowledged here.
            return None
        now_ns = self._behind.now_ns()
        mtime_ns = now_ns if mtime_ns is None else mtime_ns
        version = prepared_version(base_version, now_ns)
        self._owe(m.Commit(id, base_version, length, changes, mtime_ns, False, now_ns, atime_ns, version))
        self._spoil(id)
        atime_ns = node.atime_ns if atime_ns is None else atime_ns
        return self.remember(replace(
            node, version=version, length=length, mtime_ns=mtime_ns, atime_ns=atime_ns, ctime_ns=now_ns, md5="",
        ))  # fmt: skip

    def _allows(self, quota: int, length: int) -> bool:
        """Whether so many bytes more will not be refused; then they are used up."""
        self._renew_allowance()
        return self._allowance.spend(quota, length)

    def _renew_allowance(self) -> None:
        if self._term != self._behind.term:
            self._term = self._behind.term
            self._allowance.clear()

    async def commit(
        self, id: int, base_version: int | None, length: int, changes: list[Extent], blobs: list[Blob],
        mtime_ns: int | None, durable: bool, atime_ns: int | None = None,
    ) -> Content:  # fmt: skip
        with self._allowance.charged_elsewhere():
            done = await super().commit(id, base_version, length, changes, blobs, mtime_ns, durable, atime_ns)
        if done.node.quota and self._behind.held:
            await self._ask_room(done.node.id)
        return done

    async def _ask_room(self, id: int) -> None:
        """Ask the service what is left of the quotas above a node, for the saves to come."""
        if trio.current_time() - self._asked_room_at < ASK_EVERY_S:
            return
        self._renew_allowance()
        self._asked_room_at, epoch = trio.current_time(), self._allowance.epoch
        try:
            quotas = await self.inner.quotas(id)
        except VOSpaceError as exc:
            log.debug("what is left of the quotas: %s", exc)
            return
        self._renew_allowance()
        if self._behind.held:
            self._allowance.learn(epoch, quotas)

    def forget_all(self) -> None:
        super().forget_all()
        self._allowance.clear()

    def invalidate(self, change: Change) -> None:
        super().invalidate(change)
        if self._allowance.concerns(change.node):
            self._allowance.clear()

    def _lost(self) -> int:
        return self._behind.lost

    def debt(self) -> dict[str, object]:
        return {"delegation": self._behind.held, "owed": self._behind.owed, "lost": self._behind.lost}
