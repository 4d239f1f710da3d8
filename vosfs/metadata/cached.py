"""The tree, remembered: a decorator over any Tree.

While a change feed is followed (``live``), what is remembered is right until the feed says otherwise; without one it
is trusted for TTL_S.  Only what was asked for or made here is kept, in two bounded tables.  State changes in
synchronous steps between awaits; an answer that was under way while an invalidation came is used but not kept.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import msgspec
import trio

from vosfs.errors import (
    NodeNotFound,
    OperationNotSupported,
    ServiceUnavailable,
    Stale,
    TimedOut,
    VOSpaceError,
)
from vosfs.metadata import messages as m
from vosfs.metadata.node import (
    ANYTHING,
    CONTAINER,
    QUOTA,
    ROOT_ID,
    Attributes,
    Blob,
    Change,
    Content,
    Extent,
    NewNode,
    Node,
    Renamed,
    Usage,
)
from vosfs.metadata.store import Tree

TTL_S = 1.0
"""How long an unconfirmed answer is trusted: what NFS and sshfs users are used to."""
LIVE_TTL_S = 60.0
"""The same under a live feed; bounds what a lost invalidation can cost."""
NODES_MAX = 50_000
"""25 MB of attributes."""
CONTAINERS_MAX = 4_000
COMPLETE_MAX = 20_000
"""Longest listing that is kept whole."""
CONTENTS_MAX, CONTENTS_BYTES_MAX = 256, 8 << 20
"""Contents that nobody has opened yet."""
EXTENT_BYTES = 300
"""Of memory, besides its data."""
CONTENT_S = 10.0
"""How long a content waits to be opened: a feed is some 100 ms behind, and who opens wants the newest."""
DEPTH_MAX = 100
"""Containers above a node that its path shows."""
NAMES_MAX = 100_000
"""Names remembered in all containers together."""

_UNREACHABLE = (ServiceUnavailable, TimedOut)

replace = msgspec.structs.replace


class _Names:
    """What is known of one container's names."""

    __slots__ = ("ids", "complete", "expires")

    def __init__(self, complete: bool, expires: float) -> None:
        self.ids: dict[bytes, int] = {}
        """Name -> node id; 0: there is no such name."""
        self.complete = complete
        """INVARIANT: if set, ``ids`` has every name the container has."""
        self.expires = expires


class _Opening:
    """Nodes that are being opened ahead."""

    __slots__ = ("ended", "late", "spoilt")

    def __init__(self) -> None:
        self.ended = trio.Event()
        self.late: TimedOut | None = None
        """It took all of the deadline: whoever waited has waited long enough."""
        self.spoilt: set[int] = set()
        """What changed elsewhere meanwhile."""


class CachedTree:
    """Tree that answers from memory when it may."""

    def __init__(self, inner: Tree) -> None:
        # Dependencies
        self.inner = inner
        # Mutable state
        self.live = False
        """Whether a feed invalidates what changes elsewhere."""
        self.away = False
        """Whether the service cannot be reached: what is remembered is then all there is."""
        self.on_remembered: Callable[[Node], None] = lambda node: None
        """Hears of every record that comes."""
        self._nodes: OrderedDict[int, tuple[Node, float, int]] = OrderedDict()
        """Attributes, until when they are trusted, and the change made here that they were last part of."""
        self._serial = 0
        """Counts the changes made here: an answer that was asked for before one does not undo it."""
        self._names: OrderedDict[int, _Names] = OrderedDict()
        self._contents: OrderedDict[int, tuple[Content, int, float]] = OrderedDict()
        """What look-ups brought along, or was opened ahead, until it is opened or the node changes; its size, and how long it
        is of use."""
        self._contents_bytes = 0
        """INVARIANT: sum of the sizes, at most CONTENTS_BYTES_MAX."""
        self._opening: dict[int, _Opening] = {}
        """Nodes that are being opened ahead."""
        self._count = 0
        """INVARIANT: sum of len(ids) over ``_names``, at most NAMES_MAX."""
        self._mutations = 0
        self._durable = 0
        """INVARIANT: the first ``_durable`` of this mount's ``_mutations`` are durable."""
        self._epoch = 0
        """Counts invalidations: an answer from an older epoch is not kept."""

    @property
    def ttl_s(self) -> float:
        """How long an answer may be trusted, by the kernel too."""
        return LIVE_TTL_S if self.live else TTL_S

    # -- remembering (synchronous) -------------------------------------------------------------------------------

    def remember(self, node: Node, since: int | None = None) -> Node:
        """Keep a node's attributes, as they are now or were asked for at ``since``; returns the freshest known."""
        nodes = self._nodes
        if since is not None and since != self._serial:
            kept = nodes.get(node.id)
            if kept is not None and kept[2] > since:
                return kept[0]
        nodes[node.id] = (node, time.monotonic() + (LIVE_TTL_S if self.live else TTL_S), self._serial)
        nodes.move_to_end(node.id)
        self.on_remembered(node)
        if len(nodes) > NODES_MAX:
            nodes.popitem(last=False)
        return node

    def _made(self) -> None:
        """A change was made, or may have been, that the service was waited for."""
        self._mutations += 1
        self._serial += 1

    def _asked(self) -> tuple[int, int]:
        """When a change was asked for: see ``_answered``."""
        return self._epoch, self._serial

    def _answered(self, node: Node, asked: tuple[int, int]) -> Node:
        """Keep what a change answered, unless the node may have changed meanwhile, here or elsewhere.

        Then neither what is remembered nor the answer has all of it: whoever wants to know asks again.
        """
        epoch, since = asked
        kept = self._nodes.get(node.id)
        if epoch == self._epoch and (kept is None or kept[2] <= since):
            return self.remember(node)
        self._nodes.pop(node.id, None)
        return node

    def _now(self) -> float:
        """What expiry is compared with."""
        return 0.0 if self.away else time.monotonic()

    def peek(self, id: int) -> Node | None:
        """The node, if it is remembered and fresh."""
        kept = self._nodes.get(id)
        if kept is None or kept[1] < self._now():
            return None
        return kept[0]

    def _container(self, id: int, complete: bool = False) -> _Names:
        names = self._names.get(id)
        if names is None or names.expires < self._now():
            self._drop_names(id)
            names = self._names[id] = _Names(complete, time.monotonic() + self.ttl_s)
            while len(self._names) > CONTAINERS_MAX:
                self._drop_names(next(iter(self._names)))
        return names

    def _drop_names(self, id: int) -> None:
        names = self._names.pop(id, None)
        if names is not None:
            self._count -= len(names.ids)

    def _set_name(self, parent: int, name: bytes, id: int) -> None:
        while self._count >= NAMES_MAX:
            # Its own, if one container has more: a directory of 10**6 entries would hold 150 MiB.
            self._drop_names(next(iter(self._names)))
        names = self._container(parent)
        if name not in names.ids:
            self._count += 1
        names.ids[name] = id

    def _touch(self, parent: int, ns: int, came: int = 0) -> None:
        """A container's names changed at ``ns``, by this mount: its new times are known without asking.

        ``came``: how many containers came into it.
        """
        kept = self._nodes.get(parent)
        if kept is not None:
            containers = kept[0].containers + came if kept[0].containers >= 0 else -1
            node = replace(kept[0], mtime_ns=ns, ctime_ns=ns, containers=containers)
            self._nodes[parent] = (node, kept[1], self._serial)

    def forget(self, id: int) -> None:
        """A node changed elsewhere, or an operation on it ended in doubt."""
        self._epoch += 1
        self._nodes.pop(id, None)
        self._spoil(id)
        self._drop_names(id)

    def forget_name(self, parent: int, name: bytes) -> None:
        """A name changed elsewhere."""
        self._epoch += 1
        self._nodes.pop(parent, None)
        names = self._names.get(parent)
        if names is not None:
            if names.ids.pop(name, None) is not None:
                self._count -= 1
            names.complete = False

    def vanished(self, id: int) -> None:
        """A node is no more, and nobody has told yet: whatever leads to it is another's by now, or nobody's."""
        self.forget(id)
        for parent, names in list(self._names.items()):
            for name in [name for name, of in names.ids.items() if of == id]:
                self.forget_name(parent, name)

    def containers(self) -> list[int]:
        """Containers of which names are known."""
        return list(self._names)

    def forget_all(self) -> None:
        """Nothing is known any more (the feed lost its place)."""
        self._epoch += 1
        self._nodes.clear()
        for id in (*self._contents, *self._opening):
            self._spoil(id)
        self._names.clear()
        self._count = 0

    def invalidate(self, change: Change) -> None:
        """Apply one row of the change log."""
        if change.node == ANYTHING:
            # Which nodes, only the service knows.
            self.forget_all()
            return
        self._epoch += 1
        self._nodes.pop(change.node, None)
        self._spoil(change.node)
        if change.parent:
            self.forget_name(change.parent, change.name)

    def names_known(self, parent: int) -> dict[bytes, int] | None:
        """All names of a container, if they are known."""
        names = self._names.get(parent)
        if names is None or not names.complete or names.expires < self._now():
            return None
        return names.ids

    def names_kept(self, parent: int) -> dict[bytes, int]:
        """The names of a container that are known, be they all or not."""
        names = self._names.get(parent)
        return {} if names is None or names.expires < self._now() else names.ids

    def peek_name(self, parent: int, name: bytes) -> int | None:
        """The id under a name; 0 if there is no such name; None if not known."""
        names = self._names.get(parent)
        if names is None or names.expires < self._now():
            return None
        return names.ids.get(name, 0 if names.complete else None)

    def path_of(self, id: int) -> str:
        """Where a node is, for people, as far as that is remembered."""
        parts: list[str] = []
        while id != ROOT_ID and len(parts) < DEPTH_MAX:
            parent, name = next(
                ((p, name) for p, names in self._names.items() for name, of in names.ids.items() if of == id), (0, b"")
            )
            parts.append(os.fsdecode(name) if parent else f"(node {id})")
            if not parent:
                break
            id = parent
        return "/".join(reversed(parts))

    # -- what a tree that changes first adds (``ahead.py``) ------------------------------------------------------------

    async def room(self) -> None:
        """Wait until a change may be made."""

    def commit_ahead(
        self, id: int, base_version: int, length: int, changes: list[Extent], mtime_ns: int | None,
        atime_ns: int | None = None,
    ) -> Node | None:  # fmt: skip
        """The node with its bytes changed, if that could be done here first; ``changes`` as ``commit`` has them."""
        return None

    def _lost(self) -> int:
        """How many changes that were made here first the service has refused."""
        return 0

    def debt(self) -> dict[str, object]:
        """How far this mount is ahead of the service, for ``vosfs status``."""
        return {}

    def lost(self, request: m.Mutation) -> None:
        """The service refused what was changed here first: nothing that it touched is known any more."""
        if isinstance(request, (m.SetAttributes, m.Commit, m.Link)):
            self.forget(request.id)
        if isinstance(request, (m.Create, m.Remove, m.Rename, m.Link)):
            self.forget_name(request.parent, request.name)
            if isinstance(request, (m.Create, m.Remove, m.Rename)):
                self.forget(request.id)
        if isinstance(request, m.Rename):
            self.forget_name(request.to_parent, request.to_name)

    # -- Tree ----------------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Node:
        id = self.peek_name(parent, name)
        if id == 0:
            raise NodeNotFound(repr(name))
        if id is not None:
            node = self.peek(id)
            if node is not None:
                return node
        epoch, since, before = self._epoch, self._serial, self._kept_name(parent, name)
        try:
            found = await self.inner.find(parent, name)
        except NodeNotFound:
            if epoch == self._epoch and self.live and before == self._kept_name(parent, name):
                self._set_name(parent, name, 0)
            raise
        except _UNREACHABLE:
            # Which may be news: then what is remembered is all there is.
            node = self.peek(self.peek_name(parent, name) or 0)
            if node is None:
                raise
            return node
        node = found.node
        if epoch == self._epoch:
            if before == self._kept_name(parent, name):
                self._set_name(parent, name, node.id)
            node = self.remember(node, since)
            if found.extents is not None and node is found.node:
                self._keep_content(Content(node, found.extents, found.head))
        return node

    def _keep_content(self, found: Content) -> None:
        if not self.live:
            return
        self._drop_content(found.node.id)
        size = len(found.head) + sum(EXTENT_BYTES + len(e.data) for e in found.extents)
        self._contents[found.node.id] = found, size, time.monotonic() + CONTENT_S
        self._contents_bytes += size
        while len(self._contents) > CONTENTS_MAX or self._contents_bytes > CONTENTS_BYTES_MAX:
            self._drop_content(next(iter(self._contents)))

    def _drop_content(self, id: int) -> Content | None:
        """Forget a content; returns it if it is of use."""
        found, size, until = self._contents.pop(id, (None, 0, 0.0))
        self._contents_bytes -= size
        return found if until > time.monotonic() else None

    def _spoil(self, id: int) -> None:
        """What is known of a node's content, or about to be, is not what it is."""
        self._drop_content(id)
        if id in self._opening:
            self._opening[id].spoilt.add(id)

    def _kept_name(self, parent: int, name: bytes) -> int | None:
        names = self._names.get(parent)
        return None if names is None else names.ids.get(name)

    async def get(self, id: int) -> Node:
        node = self.peek(id)
        if node is not None:
            return node
        epoch, since = self._epoch, self._serial
        try:
            node = await self.inner.get(id)
        except _UNREACHABLE:
            node = self.peek(id)
            if node is None:
                raise
            return node
        return self.remember(node, since) if epoch == self._epoch else node

    async def children(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Node]]:
        epoch, since = self._epoch, self._serial
        page = await self.inner.children(parent, after, limit)
        if epoch == self._epoch:
            for name, node in page:
                self.remember(node, since)
                if since == self._serial or self._kept_name(parent, name) is None:
                    self._set_name(parent, name, node.id)
        return page

    def listed(self, parent: int, epoch: int, names: int) -> None:
        """A listing that began at ``epoch`` saw all ``names`` names: keep it as complete if nothing changed since."""
        known = self._names.get(parent)
        if known is None or epoch != self._epoch or names > COMPLETE_MAX:
            return
        if sum(1 for id in known.ids.values() if id) == names:
            known.complete = True

    @property
    def epoch(self) -> int:
        """See ``listed``."""
        return self._epoch

    async def create(self, parent: int, name: bytes, new: NewNode) -> Node:
        asked = self._asked()
        try:
            node = await self.inner.create(parent, name, new)
        except VOSpaceError:
            self.forget_name(parent, name)
            raise
        finally:
            self._made()
        if asked[0] != self._epoch:
            # Somebody may have taken it away since.  So below.
            self.forget_name(parent, name)
            return node
        return self._created(parent, name, node)

    def _created(self, parent: int, name: bytes, node: Node) -> Node:
        self._set_name(parent, name, node.id)
        self._touch(parent, node.ctime_ns, int(node.kind == CONTAINER))
        if node.kind == CONTAINER and self.live:
            self._container(node.id, complete=True)
        return self.remember(node)

    async def link(self, id: int, parent: int, name: bytes) -> Node:
        asked = self._asked()
        try:
            node = await self.inner.link(id, parent, name)
        except VOSpaceError:
            self.forget_name(parent, name)
            raise
        finally:
            self._made()
        answered = self._answered(node, asked)
        if asked[0] == self._epoch:
            self._set_name(parent, name, id)
            self._touch(parent, node.ctime_ns)
        else:
            self.forget_name(parent, name)
        return answered

    async def remove(self, parent: int, name: bytes, kind: str) -> Node:
        asked = self._asked()
        try:
            node = await self.inner.remove(parent, name, kind)
        except VOSpaceError:
            self.forget_name(parent, name)
            raise
        finally:
            self._made()
        if asked[0] == self._epoch:
            self._removed(parent, name, node, asked)
        else:
            self._after_drop(node, asked)
            self.forget_name(parent, name)
        return node

    def _removed(self, parent: int, name: bytes, node: Node, asked: tuple[int, int] | None = None) -> None:
        self._after_drop(node, asked or self._asked())
        self._unname(parent, name)
        self._touch(parent, node.ctime_ns, -int(node.kind == CONTAINER))

    def _unname(self, parent: int, name: bytes) -> None:
        if self.live:
            self._set_name(parent, name, 0)
        else:
            self.forget_name(parent, name)

    def _after_drop(self, node: Node, asked: tuple[int, int]) -> None:
        if node.nlink == 0:
            self._nodes.pop(node.id, None)
            self._drop_names(node.id)
        else:
            self._answered(node, asked)

    async def rename(self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str) -> Node | None:
        """As in the port; returns the node that lost its name."""
        asked, other = self._asked(), self.peek_name(to_parent, to_name)
        moved = self._nodes.get(self.peek_name(parent, name) or 0)
        try:
            done = await self.inner.rename(parent, name, to_parent, to_name, flag)
        except VOSpaceError:
            self.forget_name(parent, name)
            self.forget_name(to_parent, to_name)
            raise
        finally:
            self._made()
        if done.node.kind == CONTAINER and (moved is None or moved[0].quota != done.node.quota):
            # What is below came under another quota with it.
            self.forget_all()
        same = done.gone is None and self.peek_name(to_parent, to_name) == done.node.id
        if flag == "exchange" or same or asked[0] != self._epoch:
            self._answered(done.node, asked)
            if done.gone is not None:
                self._after_drop(done.gone, asked)
            self.forget_name(parent, name)
            self.forget_name(to_parent, to_name)
            self._nodes.pop(other or 0, None)
        else:
            self._renamed(parent, name, to_parent, to_name, done, asked)
            return done.gone
        for id in (parent, to_parent):
            self._touch(id, done.node.ctime_ns)
        return done.gone

    def _renamed(
        self, parent: int, name: bytes, to_parent: int, to_name: bytes, done: Renamed,
        asked: tuple[int, int] | None = None,
    ) -> None:  # fmt: skip
        asked = asked or self._asked()
        self._answered(done.node, asked)
        if done.gone is not None:
            self._after_drop(done.gone, asked)
        self._unname(parent, name)
        self._set_name(to_parent, to_name, done.node.id)
        # An exchange made both containers forgotten: nothing is counted then.
        moved = int(done.node.kind == CONTAINER)
        self._touch(parent, done.node.ctime_ns, -moved)
        self._touch(to_parent, done.node.ctime_ns, moved - int(done.gone is not None and done.gone.kind == CONTAINER))

    async def set_attributes(self, id: int, change: Attributes) -> Node:
        asked = self._asked()
        try:
            node = await self.inner.set_attributes(id, change)
        except VOSpaceError:
            self.forget(id)
            raise
        finally:
            self._made()
        return self._answered(node, asked)

    def will_open(self, ids: list[int]) -> list[int]:
        """Which of these ``open_ahead`` must be called with, at once; whoever opens one of them waits for that."""
        if not hasattr(self.inner, "open_many"):
            return []
        wanted = [id for id in dict.fromkeys(ids) if id not in self._contents and id not in self._opening]
        self._opening.update(dict.fromkeys(wanted, _Opening()))
        return wanted

    async def open_ahead(self, ids: list[int]) -> list[Content]:
        """Have contents here when they are opened; those that came, and are not known to have changed since."""
        opening, since = self._opening[ids[0]], self._serial
        try:
            found: list[Content] = await cast(Any, self.inner).open_many(ids)
            kept = [
                content for content in found
                if content.node.id not in opening.spoilt and self.remember(content.node, since) is content.node
            ]  # fmt: skip
            for content in kept:
                self._keep_content(content)
            return kept
        except TimedOut as exc:
            opening.late = exc
            raise
        finally:
            for id in ids:
                del self._opening[id]
            opening.ended.set()

    async def open(self, id: int) -> Content:
        opening = self._opening.get(id)
        if opening is not None:
            await opening.ended.wait()
            if opening.late is not None:
                raise TimedOut(str(opening.late))
        known, node = self._drop_content(id), self.peek(id)
        if known is not None and node is not None and self.live and known.node.version == node.version:
            return Content(node, known.extents, known.head)
        epoch, since = self._epoch, self._serial
        found = await self.inner.open(id)
        if epoch == self._epoch:
            self.remember(found.node, since)
        return found

    async def commit(
        self, id: int, base_version: int | None, length: int, changes: list[Extent], blobs: list[Blob],
        mtime_ns: int | None, durable: bool, atime_ns: int | None = None,
    ) -> Content:  # fmt: skip
        before, since = self._mutations, self._serial
        try:
            done = await self.inner.commit(
                id, base_version, length, changes, blobs, mtime_ns, durable=durable, atime_ns=atime_ns
            )
        except VOSpaceError:
            self.forget(id)
            raise
        self._serial += 1
        if durable:
            # It took everything that was committed before it along.
            self._durable = max(self._durable, before)
        else:
            self._mutations += 1
        node = self.remember(done.node, since)
        if node is not done.node:
            # Its mode, say, was changed here meanwhile.
            new = done.node
            self.remember(replace(node, version=new.version, length=new.length, mtime_ns=new.mtime_ns, md5=new.md5))
        return done

    async def properties(self, id: int) -> dict[str, str]:
        return await self.inner.properties(id)

    async def set_properties(self, id: int, change: dict[str, str | None]) -> Node:
        if QUOTA in change:
            # The nodes below are about to come under it.
            self.forget_all()
        asked = self._asked()
        try:
            node = await self.inner.set_properties(id, change)
        finally:
            self._made()
            if QUOTA in change:
                self.forget_all()
        return self._answered(node, asked)

    async def share(self, names: list[str]) -> list[str]:
        """Receipts to commit blobs with that the space has already.  OperationNotSupported."""
        share = getattr(self.inner, "share", None)
        if share is None:
            raise OperationNotSupported("sharing blobs")
        receipts: list[str] = await share(names)
        return receipts

    async def usage(self) -> Usage:
        return await self.inner.usage()

    async def sync(self) -> None:
        before = self._mutations
        if self._durable < before:
            lost = self._lost()
            await self.inner.sync()
            if self._lost() != lost:
                raise Stale("changes that were acknowledged were refused by the service")
            self._durable = max(self._durable, before)
