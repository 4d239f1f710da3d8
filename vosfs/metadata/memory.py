"""The tree in dictionaries: for tests, for play, and as the model that the SQL adapters are compared with.

Written for plainness, not speed: every method is one synchronous step, so each is atomic on trio by itself.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from vosfs.errors import (
    ContainerNotEmpty,
    CrossDevice,
    DuplicateNode,
    InvalidArgument,
    IsContainer,
    NodeNotFound,
    NotContainer,
    PermissionDenied,
    TooManyLinks,
    VOSpaceError,
)
from vosfs.metadata import content
from vosfs.metadata.job import Chosen, Job
from vosfs.metadata.node import (
    ANYTHING,
    CONTAINER,
    DATA,
    ROOT_ID,
    STAGING_ID,
    Attributes,
    Blob,
    Change,
    Content,
    Copied,
    Cursor,
    Extent,
    Found,
    NewNode,
    Node,
    Quota,
    Renamed,
    Usage,
    Used,
    check_quota,
    made,
    new_id,
    parts,
)
from vosfs.metadata.sql import LINKS_MAX, OWNER_FIELDS, found_extents
from vosfs.metadata.store import (
    ANYONE,
    CHANGES_MAX,
    HAPPENED_ROWS,
    OWN,
    READ,
    WRITE,
    Caller,
    Moment,
    Outcome,
    Step,
    check_base,
    check_guard,
    check_same,
    next_version,
    right_to_guard,
)

replace = msgspec.structs.replace


class MemoryStore:
    """Store (see ``store.py`` for every method's contract) that forgets everything when it goes."""

    shared = False

    def __init__(self, owner: str = "") -> None:
        now = time.time_ns()
        root = Node(
            ROOT_ID, CONTAINER, 1, 0, 0o755, -1, -1, 1, now, now, now, now, owner, b"", 0, "", "", 0, "", "", 0, 0
        )  # fmt: skip
        self._nodes = {ROOT_ID: root}
        self._nodes[STAGING_ID] = replace(self._nodes[ROOT_ID], id=STAGING_ID, owner="")
        self._names: dict[int, dict[bytes, int]] = {ROOT_ID: {}, STAGING_ID: {}}
        self._parent: dict[int, int] = {}
        """Of containers only: others may have several."""
        self._extents: dict[int, list[Extent]] = {}
        self._properties: dict[int, dict[str, str]] = {}
        self._changes: list[Change] = []
        self._moments: list[tuple[int, int]] = []
        """Node and time of each."""
        self._trash: list[int] = []
        self._blobs: dict[str, int | None] = {}
        """Locator -> since when nothing stands on it."""
        self._recorded: dict[str, Blob] = {}
        self._secret = secrets.token_bytes(32)
        self.notify: Callable[[str], None] = lambda origin: None
        self._tables: dict[str, dict[Any, Any]] = {"account": {}, "token": {}, "certificate": {}}
        self._jobs: dict[str, Job] = {}
        self._quotas: dict[int, Quota] = {}
        """Of containers."""
        self._at_ns = 0
        """When the step that is being applied happened; 0: none is."""

    def close(self) -> None:
        """Nothing to do."""

    # -- helpers ---------------------------------------------------------------------------------------------

    def _now(self) -> int:
        return self._at_ns or time.time_ns()

    def _node(self, id: int) -> Node:
        try:
            return self._nodes[id]
        except KeyError:
            raise NodeNotFound(f"node {id}") from None

    def _children(self, id: int) -> dict[bytes, int]:
        if self._node(id).kind != CONTAINER:
            raise NotContainer(f"node {id} is not a container")
        return self._names[id]

    def _child(self, parent: int, name: bytes) -> Node:
        try:
            return self._nodes[self._children(parent)[name]]
        except KeyError:
            raise NodeNotFound(repr(name)) from None

    def _writable(self, id: int, caller: Caller) -> dict[bytes, int]:
        names = self._children(id)
        container = self._nodes[id]
        caller.permit(container, WRITE)
        check_guard(container, f"container {id}")
        if container.nlink == 0:
            raise NodeNotFound(f"container {id} was deleted")
        return names

    def _changeable(self, id: int, caller: Caller, right: str) -> Node:
        node = self._node(id)
        caller.permit(node, right)
        check_guard(node, f"node {id}")
        return node

    def _touch(self, *ids: int) -> None:
        now = self._now()
        for id in ids:
            self._nodes[id] = replace(self._nodes[id], mtime_ns=now, ctime_ns=now, containers=self._containers(id))

    def _containers(self, id: int) -> int:
        return sum(1 for child in self._names[id].values() if self._nodes[child].kind == CONTAINER)

    def _log(self, caller: Caller, node: int, parent: int = 0, name: bytes = b"") -> None:
        self._changes.append(Change(node, parent, name, caller.origin))
        self._moments.append((node, self._now()))
        self.notify(caller.origin)

    def _set_links(self, id: int, nlink: int) -> Node:
        node = self._nodes[id] = replace(self._nodes[id], nlink=nlink, ctime_ns=self._now())
        if nlink == 0:
            self._trash.append(id)
            self._parent.pop(id, None)
            if node.kind == DATA:
                self._charge(node.quota, -node.length)
            elif node.quota == id:
                own = self._quotas[id]
                self._charge(own.above, -own.used)
                self._quotas[id] = replace(own, above=0)
        return node

    # -- quotas: what is refused is refused before anything changes

    def _chain(self, quota: int) -> list[Quota]:
        found: list[Quota] = []
        while quota in self._quotas:
            found.append(self._quotas[quota])
            quota = found[-1].above
        return found

    def _charge(self, quota: int, length: int, outside: frozenset[int] = frozenset()) -> None:
        """So many bytes came under a quota and all above it, but for those ``outside``."""
        rows = [replace(row, used=row.used + length) for row in self._chain(quota) if row.node not in outside]
        if length > 0:
            for row in rows:
                check_quota(row)
        self._quotas.update((row.node, row) for row in rows)

    def _transfer(self, source: int, target: int, length: int) -> None:
        before, after = ({row.node for row in self._chain(quota)} for quota in (source, target))
        common = frozenset(before & after)
        if length:
            self._charge(target, length, common)
            self._charge(source, -length, common)

    def _below(self, id: int) -> list[tuple[int, int]]:
        """Each node below a container and under no other quota, with how many names it has there."""
        found: Counter[int] = Counter()
        todo = [id]
        while todo:
            for child in self._names[todo.pop()].values():
                found[child] += 1
                if self._nodes[child].kind == CONTAINER and self._nodes[child].quota != child:
                    todo.append(child)
        return list(found.items())

    def _move(self, node: Node, source: int, target: int) -> None:
        """A name of a node goes from under one quota to under another."""
        if node.quota == node.id:
            own = self._quotas[node.id]
            self._transfer(own.above, target, own.used)
            self._quotas[node.id] = replace(self._quotas[node.id], above=target)
            return
        if node.kind != CONTAINER and node.nlink > 1:
            if source != target:
                raise CrossDevice(f"node {node.id} has other names, which stay under another quota")
            return
        if node.quota == target:
            return
        below = self._below(node.id) if node.kind == CONTAINER else []
        for id, names in below:
            if self._nodes[id].kind != CONTAINER and self._nodes[id].nlink > names:
                raise CrossDevice(f"node {id} has other names, which stay under another quota")
        self._adopt([node.id, *(id for id, _ in below)], target)
        if below:
            self._log(ANYONE, ANYTHING)

    def _adopt(self, ids: list[int], target: int, checked: bool = True) -> None:
        came: Counter[int] = Counter()
        for id in ids:
            node = self._nodes[id]
            if node.quota == id:
                came[self._quotas[id].above] += self._quotas[id].used
            elif node.kind == DATA:
                came[node.quota] += node.length
        if checked:
            rows: dict[int, Quota] = {}
            for quota, length in came.items():
                before = {row.node for row in self._chain(quota)}
                for row in self._chain(target):
                    if row.node not in before and length:
                        known = rows.get(row.node, row)
                        rows[row.node] = replace(known, used=known.used + length)
                        check_quota(rows[row.node])
        allowed, self._quotas = self._quotas, {id: replace(row, bytes_max=-1) for id, row in self._quotas.items()}
        for quota, length in came.items():
            self._transfer(quota, target, length)
        self._quotas = {id: replace(row, bytes_max=allowed[id].bytes_max) for id, row in self._quotas.items()}
        for id in ids:
            if self._nodes[id].quota == id:
                self._quotas[id] = replace(self._quotas[id], above=target)
            else:
                self._nodes[id] = replace(self._nodes[id], quota=target)

    async def quotas(self, id: int) -> list[Quota]:
        return self._chain(self._node(id).quota)

    async def set_quota(self, id: int, bytes_max: int, caller: Caller = ANYONE) -> None:
        self._children(id)
        node = self._nodes[id]
        if not node.nlink:
            raise NodeNotFound(f"container {id} was deleted")
        if node.quota == id:
            self._quotas[id] = replace(self._quotas[id], bytes_max=bytes_max)
        elif bytes_max >= 0:
            self._quotas[id] = Quota(id, node.quota, bytes_max, 0)
            self._adopt([child for child, _ in self._below(id)], id, checked=False)
            self._nodes[id] = replace(node, quota=id)
            self._log(caller, ANYTHING)
        self._log(caller, id)

    async def recount(self) -> list[tuple[int, int, int]]:
        used: Counter[int] = Counter()
        for node in self._nodes.values():
            if node.kind == DATA and node.nlink:
                used.update({row.node: node.length for row in self._chain(node.quota)})
        wrong = [(id, row.used, used[id]) for id, row in sorted(self._quotas.items()) if row.used != used[id]]
        for id, _, now in wrong:
            self._quotas[id] = replace(self._quotas[id], used=now)
        return wrong

    # -- Tree ------------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        self._children(parent)
        caller.permit(self._nodes[parent], READ)
        return self._child(parent, name)

    async def find(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Found:
        node = await self.lookup(parent, name, caller)
        return Found(node, found_extents(node, self._extents.get(node.id, []), caller))

    async def get(self, id: int, caller: Caller = ANYONE) -> Node:
        return self._node(id)

    async def children(
        self, parent: int, after: bytes, limit: int, caller: Caller = ANYONE
    ) -> list[tuple[bytes, Node]]:
        names = self._children(parent)
        caller.permit(self._nodes[parent], READ)
        return [(name, self._nodes[names[name]]) for name in sorted(names) if name > after][:limit]

    async def create(
        self, parent: int, name: bytes, new: NewNode, caller: Caller = ANYONE, id: int = 0, durable: bool = False
    ) -> Node:
        names = self._writable(parent, caller)
        if name in names or id in self._nodes:
            raise DuplicateNode(repr(name))
        node = made(new, id or new_id(), self._now(), self._nodes[parent])
        self._nodes[node.id] = node
        names[name] = node.id
        if new.kind == CONTAINER:
            self._names[node.id] = {}
            self._parent[node.id] = parent
        if new.properties:
            self._properties[node.id] = dict(new.properties)
        self._touch(parent)
        self._log(caller, node.id, parent, name)
        return node

    async def link(self, id: int, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        names = self._writable(parent, caller)
        node = self._node(id)
        if node.kind == CONTAINER:
            raise PermissionDenied("a container has one name")
        caller.permit(node, WRITE)
        if node.nlink == 0:
            raise NodeNotFound(f"node {id} was deleted")
        if node.nlink >= LINKS_MAX:
            raise TooManyLinks(f"node {id} has {node.nlink} names")
        if node.quota != self._nodes[parent].quota:
            raise CrossDevice(f"node {id} is under another quota")
        if name in names:
            raise DuplicateNode(repr(name))
        names[name] = id
        self._touch(parent)
        self._log(caller, id, parent, name)
        return self._set_links(id, node.nlink + 1)

    async def remove(
        self, parent: int, name: bytes, kind: str, caller: Caller = ANYONE, id: int = 0, durable: bool = False
    ) -> Node:
        names = self._writable(parent, caller)
        node = self._child(parent, name)
        check_same(node, id, name)
        check_guard(node, repr(name))
        if kind == "leaf" and node.kind == CONTAINER:
            raise IsContainer(f"{name!r} is a container")
        if kind == "empty" and self._children(node.id):
            raise ContainerNotEmpty(repr(name))
        if kind == "tree" and node.kind == CONTAINER:
            caller.permit(node, WRITE)
        del names[name]
        self._touch(parent)
        self._log(caller, node.id, parent, name)
        return self._set_links(node.id, node.nlink - 1)

    def _no_cycle(self, moved: int, into: int) -> None:
        at = into
        while at != ROOT_ID:
            if at == moved:
                raise InvalidArgument("Cannot move container node into its descendants")
            if at not in self._parent:
                raise NodeNotFound(f"container {into} was deleted")
            at = self._parent[at]

    async def rename(
        self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str = "", caller: Caller = ANYONE,
        id: int = 0, durable: bool = False,
    ) -> Renamed:  # fmt: skip
        for container in (parent, to_parent):
            self._writable(container, caller)
        names, to_names = self._names[parent], self._names[to_parent]
        node = self._child(parent, name)
        check_same(node, id, name)
        other = self._nodes[to_names[to_name]] if to_name in to_names else None
        check_guard(node, repr(name))
        if other is not None:
            check_guard(other, repr(to_name))
        if node.kind == CONTAINER and parent != to_parent:
            self._no_cycle(node.id, to_parent)
        if flag == "exchange":
            if other is None:
                raise NodeNotFound(repr(to_name))
            if other.kind == CONTAINER and parent != to_parent:
                self._no_cycle(other.id, parent)
        elif other is not None:
            if flag == "keep":
                raise DuplicateNode(repr(to_name))
            if other.id == node.id:
                return Renamed(node, None)
            if other.kind == CONTAINER:
                if node.kind != CONTAINER:
                    raise IsContainer(repr(to_name))
                if self._names[other.id]:
                    raise ContainerNotEmpty(repr(to_name))
            elif node.kind == CONTAINER:
                raise NotContainer(repr(to_name))
        source, target = self._nodes[parent].quota, self._nodes[to_parent].quota
        quotas, nodes = dict(self._quotas), dict(self._nodes)
        try:
            gone = None
            if other is not None and flag != "exchange":
                gone = self._set_links(other.id, other.nlink - 1)
            self._move(node, source, target)
            if other is not None and flag == "exchange":
                self._move(other, target, source)
        except VOSpaceError:
            self._quotas, self._nodes = quotas, nodes
            if gone is not None and gone.nlink == 0:
                self._trash.remove(gone.id)
            raise
        del names[name]
        to_names[to_name] = node.id
        if node.kind == CONTAINER:
            self._parent[node.id] = to_parent
        if flag == "exchange" and other is not None:
            names[name] = other.id
            self._nodes[other.id] = replace(self._nodes[other.id], ctime_ns=time.time_ns())
            if other.kind == CONTAINER:
                self._parent[other.id] = parent
        self._touch(parent, to_parent)
        self._nodes[node.id] = replace(self._nodes[node.id], ctime_ns=self._now())
        self._log(caller, node.id, parent, name)
        self._log(caller, other.id if other else node.id, to_parent, to_name)
        return Renamed(self._nodes[node.id], gone)

    async def apply(self, steps: list[Step], caller: Caller = ANYONE, durable: bool = False) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for step in steps:
            self._at_ns = step.at_ns
            try:
                chosen = {key: value for key, value in (("id", step.id), ("version", step.version)) if value}
                outcomes.append(await getattr(self, step.operation)(*step.arguments, caller=caller, **chosen))
            except VOSpaceError as exc:
                outcomes.append(exc)
            finally:
                self._at_ns = 0
        return outcomes

    async def set_attributes(self, id: int, change: Attributes, caller: Caller = ANYONE) -> Node:
        fields = {key: value for key, value in msgspec.structs.asdict(change).items() if value is not None}
        if "immutable" in fields:
            caller.permit(self._node(id), right_to_guard(self._node(id), fields["immutable"]))
        else:
            self._changeable(id, caller, OWN if any(key in fields for key in OWNER_FIELDS) else WRITE)
        if "target" in fields:
            fields["length"] = len(fields["target"])
        self._nodes[id] = replace(self._nodes[id], ctime_ns=self._now(), **fields)
        self._log(caller, id)
        return self._nodes[id]

    async def open(self, id: int, caller: Caller = ANYONE) -> Content:
        node = self._node(id)
        if node.kind == CONTAINER:
            raise IsContainer(f"node {id} is a container")
        caller.permit(node, READ)
        return Content(node, self._extents.get(id, []))

    async def commit(
        self, id: int, base_version: int | None, length: int, changes: list[Extent], blobs: list[Blob],
        mtime_ns: int | None = None, md5: str = "", atime_ns: int | None = None, durable: bool = False,
        caller: Caller = ANYONE, version: int = 0,
    ) -> Content:  # fmt: skip
        node = self._changeable(id, caller, WRITE)
        check_base(node, base_version)
        version = next_version(node.version, version)
        old = self._extents.get(id, []) if node.length else []
        if not content.locators(changes) <= content.locators(old) | {b.locator for b in blobs}:
            raise InvalidArgument("an extent names a blob that was not uploaded for it")
        new = content.apply(old, changes, length)
        if node.nlink:
            self._charge(node.quota, length - node.length)
        for blob in blobs:
            self._blobs[blob.locator] = None
            self._recorded.setdefault(blob.locator, blob)
        self._extents[id] = new
        self._release(content.locators(old) | {b.locator for b in blobs})
        now = self._now()
        self._nodes[id] = replace(
            node, length=length, version=version, mtime_ns=now if mtime_ns is None else mtime_ns,
            ctime_ns=now, md5=md5, atime_ns=node.atime_ns if atime_ns is None else atime_ns,
        )  # fmt: skip
        self._log(caller, id)
        return Content(self._nodes[id], new)

    async def put_data(
        self, parent: int, name: bytes, new: NewNode, length: int, extents: list[Extent], blobs: list[Blob], md5: str,
        clear: bool = False, caller: Caller = ANYONE, durable: bool = True,
        mtime_ns: int | None = None,
    ) -> Content:  # fmt: skip
        if name in self._children(parent):
            node = self._child(parent, name)
            if node.kind != DATA:
                raise IsContainer(f"{name!r} holds no bytes")
            if clear:
                await self.set_properties(node.id, {}, True, caller)
        else:
            # Together, as it is one step.
            quota = new.quota or self._nodes[parent].quota
            self._charge(quota, length)
            self._charge(quota, -length)
            node = await self.create(parent, name, new, caller)
        changes = [Extent(0, max(node.length, length, 1)), *extents]
        return await self.commit(node.id, None, length, changes, blobs, mtime_ns, md5, None, True, caller)

    async def happened(self, moments: set[Moment]) -> set[Moment]:
        return moments & set(self._moments[-HAPPENED_ROWS:])

    async def depth(self, id: int) -> int:
        at = next((parent for parent, names in self._names.items() if id in names.values()), ROOT_ID)
        steps = 0
        while at != ROOT_ID and at in self._parent:
            at, steps = self._parent[at], steps + 1
        return steps

    async def update(
        self, id: int, attributes: Attributes, change: dict[str, str | None], caller: Caller = ANYONE,
        durable: bool = True,
    ) -> Node:  # fmt: skip
        if change:
            await self.set_properties(id, change, False, caller)
        if attributes != Attributes():
            await self.set_attributes(id, attributes, caller)
        return self._node(id)

    def _release(self, locators: set[str]) -> None:
        inuse = {e.locator for extents in self._extents.values() for e in extents}
        for locator in locators - inuse:
            self._blobs[locator] = self._now()

    async def properties(self, id: int, caller: Caller = ANYONE) -> dict[str, str]:
        self._node(id)
        return dict(sorted(self._properties.get(id, {}).items()))

    async def set_properties(
        self, id: int, change: dict[str, str | None], clear: bool = False, caller: Caller = ANYONE
    ) -> Node:
        node = self._node(id)
        caller.permit(node, WRITE)
        kept = {} if clear else self._properties.get(id, {})
        self._properties[id] = {key: value for key, value in {**kept, **change}.items() if value is not None}
        self._nodes[id] = replace(node, ctime_ns=self._now())
        self._log(caller, id)
        return self._nodes[id]

    async def usage(self) -> Usage:
        return Usage(0, 0, len(self._nodes) - 1)

    async def changes(self, since: Cursor, limit: int = CHANGES_MAX) -> tuple[Cursor, list[Change]]:
        page = self._changes[since.seq : since.seq + limit]
        return Cursor(0, since.seq + len(page)), page

    async def cursor(self) -> Cursor:
        return Cursor(0, len(self._changes))

    async def sync(self) -> None:
        """Nothing is durable here."""

    # -- Store -----------------------------------------------------------------------------------------------

    async def trace(self, path: tuple[bytes, ...]) -> tuple[list[Node], dict[str, str]]:
        chain = [self._nodes[ROOT_ID]]
        for name in path:
            id = self._names.get(chain[-1].id, {}).get(name)
            if id is None:
                break
            chain.append(self._nodes[id])
        whole = len(chain) > len(path)
        return chain, dict(sorted(self._properties.get(chain[-1].id, {}).items())) if whole else {}

    async def snapshot(self) -> object:
        return object()

    async def children_with_properties(
        self, parent: int, start: bytes, limit: int
    ) -> list[tuple[bytes, Node, dict[str, str]]]:
        names = self._children(parent)
        chosen = [name for name in sorted(names) if name >= start][:limit]
        return [(name, self._nodes[names[name]], dict(self._properties.get(names[name], {}))) for name in chosen]

    async def undigested(self, rest_ns: int, limit: int) -> list[int]:
        latest = time.time_ns() - rest_ns
        found = [
            node for node in self._nodes.values()
            if node.kind == DATA and not node.md5 and node.length and not node.immutable and node.nlink
            and node.ctime_ns < latest
        ]  # fmt: skip
        return [node.id for node in sorted(found, key=lambda node: node.ctime_ns)][:limit]

    async def put_digest(self, id: int, version: int, md5: str) -> None:
        node = self._nodes.get(id)
        if node is not None and node.version == version:
            self._nodes[id] = replace(node, md5=md5)

    async def properties_in_use(self) -> list[str]:
        return sorted({uri for properties in self._properties.values() for uri in properties})

    async def referenced(self, locator: str) -> bool:
        known = set(self._blobs).union(*(content.locators(extents) for extents in self._extents.values()))
        return any(locator == blob or locator in parts(blob) for blob in known)

    async def used(self, after: str, limit: int) -> list[Used]:
        reach: dict[str, int] = {}
        for extents in self._extents.values():
            for e in extents:
                if e.locator > after:
                    reach[e.locator] = max(reach.get(e.locator, 0), e.offset + e.stop - e.start)
        return [Used(locator, reach[locator], self._recorded.get(locator)) for locator in sorted(reach)[:limit]]

    async def used_total(self) -> tuple[int, int]:
        blobs = [self._recorded[locator] for locator, since in self._blobs.items() if since is None]
        return len(blobs), sum(blob.length for blob in blobs)

    async def stored(self, storage: str) -> int:
        known = [self._recorded[locator] for locator in self._blobs]
        return sum(blob.length for blob in known if storage in [p.rpartition("~")[0] for p in parts(blob.locator)])

    async def users(self, locator: str, limit: int) -> list[tuple[bytes, ...] | int]:
        nodes = [id for id, extents in self._extents.items() if locator in content.locators(extents)]
        return [self._path(id) or id for id in nodes[:limit]]

    def _path(self, id: int) -> tuple[bytes, ...]:
        path: list[bytes] = []
        while id != ROOT_ID:
            parent, name = next(
                ((p, name) for p, names in self._names.items() for name, child in names.items() if child == id),
                (0, b""),
            )
            if not parent:
                return ()
            path.append(name)
            id = parent
        return tuple(reversed(path))

    async def path_of(self, id: int) -> tuple[bytes, ...] | None:
        return self._path(id) if id == ROOT_ID or self._path(id) else None

    async def unreferenced(self, before_ns: int, limit: int) -> list[str]:
        return [b for b, since in self._blobs.items() if since is not None and since < before_ns][:limit]

    async def renew(self, locators: list[str]) -> None:
        for locator in locators:
            if self._blobs.get(locator) is not None:
                self._blobs[locator] = time.time_ns()

    async def blob(self, locator: str) -> Blob | None:
        return self._recorded.get(locator)

    async def relocate(self, locator: str, blob: Blob, limit: int, node: int = 0) -> int:
        users = [id for id, extents in self._extents.items() if locator in content.locators(extents)]
        nodes = sorted(id for id in users if node in (0, id))[:limit]
        for id in nodes:
            self._extents[id] = [
                replace(e, locator=blob.locator) if e.locator == locator else e for e in self._extents[id]
            ]
        if nodes:
            self._blobs[blob.locator] = None
            self._recorded.setdefault(blob.locator, blob)
            self._release({locator})
        return len(nodes)

    async def forget_blobs(self, locators: list[str]) -> list[str]:
        forgotten = [locator for locator in locators if self._blobs.get(locator) is not None]
        for locator in forgotten:
            del self._blobs[locator]
            self._recorded.pop(locator, None)
        return forgotten

    async def purge(self, limit: int) -> int:
        done = 0
        while self._trash and done < limit:
            id = self._trash.pop(0)
            for child in self._names.pop(id, {}).values():
                self._set_links(child, self._nodes[child].nlink - 1)
                done += 1
            old = self._extents.pop(id, [])
            self._properties.pop(id, None)
            self._quotas.pop(id, None)
            del self._nodes[id]
            self._release(content.locators(old))
            done += 1
        return done

    async def trim(self, before_ns: int) -> None:
        """The log of a test is short."""

    async def begin_space(self, owner: str) -> None:
        """Give the root an owner."""
        self._nodes[ROOT_ID] = replace(self._nodes[ROOT_ID], owner=owner)

    async def secret(self) -> bytes:
        return self._secret

    async def put_account(self, name: str, password_hash: str, groups: str) -> None:
        self._tables["account"][name] = (password_hash, groups)

    async def account(self, name: str) -> tuple[str, str] | None:
        return self._tables["account"].get(name)

    async def put_certificate(self, name: str, account: str) -> None:
        self._tables["certificate"][name] = account

    async def certificate(self, name: str) -> str | None:
        return self._tables["certificate"].get(name)

    async def put_token(self, digest: bytes, account: str, expires_ns: int) -> None:
        self._tables["token"][digest] = (account, expires_ns)

    async def token(self, digest: bytes) -> tuple[str, int] | None:
        return self._tables["token"].get(digest)

    async def copy_node(self, id: int, name: bytes, owner: str, caller: Caller = ANYONE, quota: int = 0) -> Node:
        node = self._node(id)
        self._charge(quota, node.length if node.kind == DATA else 0)
        try:
            return self._copy(node, STAGING_ID, name, owner, caller, quota)
        except VOSpaceError:
            self._charge(quota, -node.length if node.kind == DATA else 0)
            raise

    async def copy_children(
        self, id: int, into: int, after: bytes, limit: int, owner: str, caller: Caller = ANYONE
    ) -> Copied:
        page = await self.children(id, after, limit, caller)
        for _, node in page:
            caller.permit(node, READ)
        quota = self._node(into).quota
        self._charge(quota, sum(node.length for _, node in page if node.kind == DATA))
        copies = [(node, self._copy(node, into, name, owner, caller, quota)) for name, node in page]
        containers = [(node.id, copy.id) for node, copy in copies if node.kind == CONTAINER]
        return Copied(page[-1][0] if len(page) == limit else None, containers)

    def _copy(self, node: Node, into: int, name: bytes, owner: str, caller: Caller, quota: int) -> Node:
        caller.permit(node, READ)
        if node.nlink == 0:
            raise NodeNotFound(repr(name))
        now = time.time_ns()
        copy = replace(
            node, id=new_id(), version=1, nlink=1, ctime_ns=now, btime_ns=now, owner=owner, immutable=0,
            containers=0, quota=quota,
        )  # fmt: skip
        if name in self._names[into]:
            raise DuplicateNode(repr(name))
        self._names[into][name] = copy.id
        self._nodes[copy.id] = copy
        if node.kind == CONTAINER:
            self._names[copy.id] = {}
            self._parent[copy.id] = into
            self._nodes[into] = replace(self._nodes[into], containers=self._containers(into))
        self._properties[copy.id] = dict(self._properties.get(node.id, {}))
        self._extents[copy.id] = list(self._extents.get(node.id, []))
        return copy

    async def graft(self, id: int, into: int, caller: Caller = ANYONE) -> None:
        self._check_graft(id, into, caller)
        names = {parent: dict(known) for parent, known in self._names.items()}
        kept = dict(self._nodes), dict(self._parent), dict(self._extents), dict(self._quotas), list(self._trash)
        try:
            await self._graft(id, into, caller)
        except VOSpaceError:
            self._names = names
            self._nodes, self._parent, self._extents, self._quotas, self._trash = kept
            raise

    def _check_graft(self, id: int, into: int, caller: Caller) -> None:
        names = self._writable(into, caller)
        for name, child in self._names[id].items():
            if name not in names:
                continue
            node, other = self._nodes[child], self._nodes[names[name]]
            if node.kind != other.kind or node.kind not in (CONTAINER, DATA):
                raise DuplicateNode(repr(name))
            if node.kind == CONTAINER:
                self._check_graft(node.id, other.id, caller)
            else:
                self._changeable(other.id, caller, WRITE)

    async def _graft(self, id: int, into: int, caller: Caller) -> None:
        names = self._names[into]
        for name, child in sorted(self._names[id].items()):
            node = self._nodes[child]
            if name not in names:
                del self._names[id][name]
                names[name] = child
                if node.kind == CONTAINER:
                    self._parent[child] = into
                self._move(node, self._nodes[id].quota, self._nodes[into].quota)
                self._log(caller, child, into, name)
            elif node.kind == CONTAINER:
                await self._graft(child, names[name], caller)
            else:
                extents = self._extents.get(child, [])
                del self._names[id][name]
                self._set_links(child, node.nlink - 1)
                blobs = [Blob(locator, 0, 0) for locator in content.locators(extents)]
                whole = Extent(0, max(node.length, self._nodes[names[name]].length, 1))
                await self.commit(
                    names[name], None, node.length, [whole, *extents], blobs, node.mtime_ns, node.md5, caller=caller
                )
        self._touch(into)

    async def drop_staged(self, name: bytes) -> None:
        child = self._names[STAGING_ID].pop(name, None)
        if child is not None:
            self._set_links(child, 0)

    async def add_job(self, job: Job) -> None:
        self._jobs[job.id] = replace(job)

    async def job(self, id: str) -> Job | None:
        job = self._jobs.get(id)
        return None if job is None else replace(job)

    async def change_job(self, job: Job, phases: tuple[str, ...]) -> bool:
        known = self._jobs.get(job.id)
        if known is None or known.phase not in phases:
            return False
        self._jobs[job.id] = replace(
            known, phase=job.phase, destruction_ns=job.destruction_ns, document=job.document
        )  # fmt: skip
        return True

    async def jobs(self, chosen: Chosen) -> list[Job]:
        found = [
            replace(job)
            for job in self._jobs.values()
            if (not chosen.kind or job.kind == chosen.kind)
            and (chosen.owner is None or job.owner == chosen.owner)
            and (not chosen.phases or job.phase in chosen.phases)
            and job.created_ns > chosen.after_ns
            and (not chosen.due_ns or job.destruction_ns < chosen.due_ns)
        ]
        return sorted(found, key=lambda job: (job.created_ns, job.id), reverse=chosen.newest)[: chosen.limit]

    async def remove_job(self, id: str) -> None:
        self._jobs.pop(id, None)
