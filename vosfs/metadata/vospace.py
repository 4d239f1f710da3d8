"""The tree of any VOSpace 2 service, through nodes and transfers alone.

What the standard cannot carry is weaker here, and docs/semantics.rst says how: mode, owner and times are not kept,
a rename over an existing name takes three moves, rmdir looks before it deletes, there are no hard links and no
feed.  Node ids are made up by this mount, for as long as it lasts.
"""

import itertools
import secrets
from collections import OrderedDict
from datetime import datetime
from urllib.parse import quote, unquote_to_bytes

import msgspec
import trio
from lxml import etree

from vosfs.errors import (
    BY_FAULT,
    ContainerNotEmpty,
    DuplicateNode,
    IsContainer,
    NodeNotFound,
    NotContainer,
    OperationNotSupported,
    ProtocolError,
    ServiceUnavailable,
    Stale,
    StorageFull,
    TimedOut,
    VOSpaceError,
)
from vosfs.metadata import xml
from vosfs.metadata.node import (
    CONTAINER,
    CORE,
    DATA,
    LINK,
    ROOT_ID,
    SPECIAL,
    Attributes,
    Blob,
    Change,
    Content,
    Cursor,
    Extent,
    Found,
    NewNode,
    Node,
    Quota,
    Renamed,
    Usage,
)
from vosfs.metadata.store import ANYONE, CHANGES_MAX, Caller
from vosfs.session import NODES, SYNC, TRANSFERS, Reply, Session
from vosfs.uri import Authority, Path

IDS_MAX = 500_000
"""Nodes whose made-up ids are remembered; older ones answer ESTALE and are looked up anew."""
POLL_S_MIN, POLL_S_MAX = 0.02, 1.0
"""Between looks at a running job."""
JOB_S = 120.0
_NS = {"v": xml.NS}
_MODES = {CONTAINER: 0o755, DATA: 0o644, LINK: 0o777}


class Stamp(msgspec.Struct, frozen=True):
    """What a service says of a data node that changes with its bytes."""

    length: str
    md5: str
    etag: str
    date: str

    def same(self, other: "Stamp") -> bool:
        """Whether the bytes are, as far as that can be told: a checksum says more than a date, which properties move too."""
        if self.length != other.length:
            return False
        for one, two in ((self.md5, other.md5), (self.etag, other.etag)):
            if one and two:
                return one == two
        return self.date == other.date


class VOSpaceTree:
    """Tree (see ``store.py`` for every method's contract) on plain VOSpace."""

    def __init__(self, session: Session, offered: dict[str, str]) -> None:
        # Dependencies
        self._session = session
        # Constants
        self._nodes = offered[NODES]
        self.sync_url = offered.get(SYNC, "")
        self._transfers = offered.get(TRANSFERS, "")
        # Mutable state
        self.authority: Authority | None = None
        """Known once the root was read."""
        self._places: OrderedDict[int, tuple[int, bytes]] = OrderedDict()
        """Id -> (parent's id, name)."""
        self._ids: dict[tuple[int, bytes], int] = {}
        """INVARIANT: the inverse of ``_places``."""
        self._serial = itertools.count(2)
        self._versions: dict[int, tuple[int, Stamp]] = {}
        """Of data nodes: the version that this mount counts, and what the service said of its bytes.  INVARIANT: only of
        ids that have a place, but for the root's."""

    # -- ids and paths (synchronous) ---------------------------------------------------------------------------------

    def path(self, id: int) -> Path:
        """Where a node is now.  Stale if its id was forgotten."""
        names: list[bytes] = []
        while id != ROOT_ID:
            try:
                id, name = self._places[id]
            except KeyError:
                raise Stale(f"node {id}") from None
            names.append(name)
        return tuple(reversed(names))

    def _id(self, parent: int, name: bytes) -> int:
        id = self._ids.get((parent, name))
        if id is None:
            id = next(self._serial)
            self._ids[parent, name] = id
            self._places[id] = (parent, name)
            if len(self._places) > IDS_MAX:
                old, place = self._places.popitem(last=False)
                self._ids.pop(place, None)
                self._versions.pop(old, None)
        return id

    def _forget(self, parent: int, name: bytes) -> None:
        id = self._ids.pop((parent, name), None)
        if id is not None:
            self._places.pop(id, None)
            self._versions.pop(id, None)

    def _version(self, id: int, stamp: "Stamp") -> int:
        """Greater each time that the bytes are seen to be others: who has a file open goes by that order."""
        version, before = self._versions.get(id, (1, stamp))
        version += not stamp.same(before)
        self._versions[id] = version, stamp
        return version

    # -- requests ------------------------------------------------------------------------------------------------------

    def _url(self, path: Path) -> str:
        return self._nodes + "".join("/" + quote(name, safe="") for name in path)

    def uri(self, path: Path) -> str:
        """The ``vos:`` URI of a path.  ProtocolError before the root was read."""
        if self.authority is None:
            raise ProtocolError("the service has not named its authority yet")
        return self.authority.uri(path)

    async def request(self, method: str, url: str, body: bytes = b"", params: dict[str, str] | None = None) -> Reply:
        """One request; a fault becomes the error that it names."""
        reply = await self._session.request(method, url, body, "text/xml" if body else "", params)
        if reply.status >= 400:
            raise fault_of(reply)
        return reply

    async def _document(self, path: Path, params: dict[str, str]) -> etree._Element:
        reply = await self.request("GET", self._url(path), params=params)
        root = xml.parse_answer(reply.body)
        if self.authority is None and not path:
            self.authority = Authority(root.get("uri", "").removeprefix("vos://").partition("/")[0])
        return root

    def _node(self, element: etree._Element, id: int, path: Path) -> Node:
        node = parse_node(element, id, path, self.authority)
        if node.kind == DATA:
            node.version = self._version(id, stamp_of(properties_of(element)))
        return node

    # -- Tree ----------------------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        path = (*self.path(parent), name)
        return self._node(await self._document(path, {"limit": "0"}), self._id(parent, name), path)

    async def find(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Found:
        return Found(await self.lookup(parent, name), None)

    async def get(self, id: int, caller: Caller = ANYONE) -> Node:
        path = self.path(id)
        return self._node(await self._document(path, {"limit": "0"}), id, path)

    async def children(
        self, parent: int, after: bytes, limit: int, caller: Caller = ANYONE
    ) -> list[tuple[bytes, Node]]:
        path = self.path(parent)
        if self.authority is None:
            await self.get(ROOT_ID)
        params = {"limit": str(limit + 1), "detail": "properties"}
        if after:
            # The standard's page starts at the named child, inclusive.
            params["uri"] = self.uri((*path, after))
        root = await self._document(path, params)
        if not (root.get(f"{{{xml.XSI}}}type") or "").endswith("ContainerNode"):
            raise NotContainer("not a container")
        assert self.authority is not None
        found = []
        for element in root.iterfind("v:nodes/v:node", _NS):
            child = self.authority.path(element.get("uri", ""))
            if child[:-1] == path:
                found.append((child[-1], element))
        names = [name for name, _ in found]
        if after in names:
            # A service that ignores uri= lists from the start; one that heeds it repeats the named child.
            found = found[names.index(after) + 1 :]
        return [(name, self._node(element, self._id(parent, name), (*path, name))) for name, element in found[:limit]]

    async def create(self, parent: int, name: bytes, new: NewNode, caller: Caller = ANYONE) -> Node:
        if new.kind in SPECIAL:
            raise OperationNotSupported("plain VOSpace has no pipes, sockets or devices")
        path = (*self.path(parent), name)
        if self.authority is None:
            await self.get(ROOT_ID)
        target = self._target_uri(new.target, path) if new.kind == LINK else ""
        body = xml.new_node(new.kind, self.uri(path), new.properties, target)
        await self.request("PUT", self._url(path), body)
        self._forget(parent, name)
        return await self.lookup(parent, name)

    def _target_uri(self, target: bytes, path: Path) -> str:
        """A symbolic link's text as a LinkNode's target."""
        if target.startswith(b"/"):
            return "file://" + quote(target)
        parts = list(path[:-1])
        for part in target.split(b"/"):
            if part == b"..":
                if not parts:
                    raise OperationNotSupported("plain VOSpace cannot carry a link that leaves the space")
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        return self.uri(tuple(parts))

    async def link(self, id: int, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        raise OperationNotSupported("plain VOSpace has no hard links")

    async def remove(self, parent: int, name: bytes, kind: str, caller: Caller = ANYONE) -> Node:
        path = (*self.path(parent), name)
        root = await self._document(path, {"limit": "1"})
        node = self._node(root, self._id(parent, name), path)
        if kind == "leaf" and node.kind == CONTAINER:
            raise IsContainer(repr(name))
        if kind == "empty":
            if node.kind != CONTAINER:
                raise NotContainer(repr(name))
            if root.find("v:nodes/v:node", _NS) is not None:
                raise ContainerNotEmpty(repr(name))
        await self.request("DELETE", self._url(path))
        self._forget(parent, name)
        node.nlink = 0
        return node

    async def rename(
        self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str = "", caller: Caller = ANYONE
    ) -> Renamed:
        if flag == "exchange":
            raise OperationNotSupported("plain VOSpace cannot exchange two nodes")
        node = await self.lookup(parent, name)
        try:
            other: Node | None = await self.lookup(to_parent, to_name)
        except NodeNotFound:
            other = None
        source, target = (*self.path(parent), name), (*self.path(to_parent), to_name)
        aside: Path | None = None
        if other is not None:
            if flag == "keep":
                raise DuplicateNode(repr(to_name))
            await self._may_replace(node, other, to_parent, to_name)
            # moveNode never overwrites.  Deleting the old node first would lose it if the move then failed.
            aside = (*target[:-1], b".vosfs-replaced-" + secrets.token_hex(6).encode())
            await self._move(target, aside)
        try:
            await self._move(source, target)
        except VOSpaceError:
            if aside is not None:
                await self._move(aside, target)
            raise
        if aside is not None:
            await self.request("DELETE", self._url(aside))
        moved = self._ids.pop((parent, name), None)
        self._forget(to_parent, to_name)
        if moved is not None:
            self._ids[to_parent, to_name] = moved
            self._places[moved] = (to_parent, to_name)
        if other is not None:
            other.nlink = 0
        return Renamed(await self.lookup(to_parent, to_name), other)

    async def _may_replace(self, node: Node, other: Node, to_parent: int, to_name: bytes) -> None:
        if other.kind == CONTAINER:
            if node.kind != CONTAINER:
                raise IsContainer(repr(to_name))
            if await self.children(other.id, b"", 1):
                raise ContainerNotEmpty(repr(to_name))
        elif node.kind == CONTAINER:
            raise NotContainer(repr(to_name))

    async def _move(self, source: Path, target: Path) -> None:
        """A moveNode job, to its end (VOSpace 2.1 section 6.2.2)."""
        if not self._transfers:
            raise OperationNotSupported("the service offers no transfers")
        body = xml.move_document(self.uri(source), self.uri(target))
        reply = await self.request("POST", self._transfers, body)
        job = reply.headers.get("location", "")
        if reply.status != 303 or not job.startswith(("http://", "https://")):
            raise ProtocolError("the service did not make a job of a move")
        await self._session.request("POST", job + "/phase", b"PHASE=RUN", "application/x-www-form-urlencoded")
        pause = POLL_S_MIN
        with trio.move_on_after(JOB_S):
            while True:
                phase = (await self.request("GET", job + "/phase")).body.decode("ascii", "replace").strip()
                if phase == "COMPLETED":
                    return
                if phase in ("ERROR", "ABORTED"):
                    reply = await self._session.request("GET", job + "/error")
                    raise fault_of(Reply(409, {}, reply.body))
                await trio.sleep(pause)
                pause = min(pause * 2, POLL_S_MAX)
        raise TimedOut("a move has not ended in time")

    async def set_attributes(self, id: int, change: Attributes, caller: Caller = ANYONE) -> Node:
        # Accepted and not kept, as a FAT file system does: refusing would break cp -p, tar and rsync.
        return await self.get(id)

    async def open(self, id: int, caller: Caller = ANYONE) -> Content:
        node = await self.get(id)
        if node.kind == CONTAINER:
            raise IsContainer("a container")
        extents = [Extent(0, node.length, f"{id}-{node.version}")] if node.length else []
        return Content(node, extents)

    async def commit(
        self, id: int, base_version: int | None, length: int, changes: list[Extent], blobs: list[Blob],
        mtime_ns: int | None = None, md5: str = "", atime_ns: int | None = None, durable: bool = False,
        caller: Caller = ANYONE,
    ) -> Content:  # fmt: skip
        raise OperationNotSupported("plain VOSpace replaces whole files only")

    async def properties(self, id: int, caller: Caller = ANYONE) -> dict[str, str]:
        return properties_of(await self._document(self.path(id), {"limit": "0"}))

    async def set_properties(
        self, id: int, change: dict[str, str | None], clear: bool = False, caller: Caller = ANYONE
    ) -> Node:
        node = await self.get(id)
        path = self.path(id)
        await self.request("POST", self._url(path), xml.new_node(node.kind, self.uri(path), change, ""))
        return await self.get(id)

    async def usage(self) -> Usage:
        properties = await self.properties(ROOT_ID)

        def number(name: str) -> int:
            text = properties.get(CORE + name, "")
            return int(text) if text.isdigit() else 0

        free = number("availableSpace")
        return Usage(max(number("quota"), free), free, 0)

    async def quotas(self, id: int) -> list[Quota]:
        return []

    async def changes(self, since: Cursor, limit: int = CHANGES_MAX) -> tuple[Cursor, list[Change]]:
        raise OperationNotSupported("plain VOSpace has no change feed")

    async def cursor(self) -> Cursor:
        raise OperationNotSupported("plain VOSpace has no change feed")

    async def sync(self) -> None:
        """Every VOSpace write is as durable as the service makes it."""


def fault_of(reply: Reply) -> VOSpaceError:
    """The error in a fault response: the exact fault name comes first in its body."""
    text = reply.body[:500].decode("utf-8", "replace").strip()
    fault = text.replace(":", " ").partition(" ")[0]
    if fault == "QuotaExceeded" and reply.status == 507:
        return StorageFull(text)
    if fault in BY_FAULT:
        return BY_FAULT[fault](text[len(fault) :].strip(" :"))
    for status, cls in (
        (401, "NotAuthenticated"),
        (403, "PermissionDenied"),
        (404, "NodeNotFound"),
        (409, "DuplicateNode"),
    ):
        if reply.status == status:
            return BY_FAULT[cls](text)
    if reply.status in (502, 503, 504):
        return ServiceUnavailable(f"the service answers {reply.status}")
    return ProtocolError(f"the service answers {reply.status}: {text[:200]}")


def properties_of(element: etree._Element) -> dict[str, str]:
    """A node element's properties."""
    return {p.get("uri", ""): "".join(map(str, p.itertext())) for p in element.iterfind("v:properties/v:property", _NS)}


def _date(properties: dict[str, str]) -> str:
    return properties.get(CORE + "mtime") or properties.get(CORE + "date", "")


def stamp_of(properties: dict[str, str]) -> Stamp:
    """A data node's stamp."""
    length, md5, etag = (properties.get(CORE + name, "").strip() for name in ("length", "MD5", "etag"))
    return Stamp(length, md5, etag, _date(properties))


def _nanoseconds(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text.strip().removesuffix("Z") + "+00:00")
    except ValueError:
        return 0
    return int(moment.timestamp()) * 1_000_000_000 + moment.microsecond * 1000


def parse_node(element: etree._Element, id: int, path: Path, authority: Authority | None) -> Node:
    """A service's node element as a node; its version is for the tree to count."""
    properties = properties_of(element)
    kind = xml.TYPES.get((element.get(f"{{{xml.XSI}}}type") or "").rpartition(":")[2], DATA)
    date = _date(properties)
    length = properties.get(CORE + "length", "0").strip()
    md5 = properties.get(CORE + "MD5", "")
    target = b""
    if kind == LINK:
        target = _link_text(element.findtext("v:target", "", _NS), path, authority)
    mtime_ns = _nanoseconds(date)
    return Node(
        id, kind, 1, len(target) if kind == LINK else int(length) if length.isdigit() and kind == DATA else 0,
        _MODES[kind], -1, -1, 1, mtime_ns, mtime_ns, mtime_ns, mtime_ns, properties.get(CORE + "creator", ""), target,
        0, "", "", 0, properties.get(CORE + "type", ""), md5,
    )  # fmt: skip


def _link_text(uri: str, path: Path, authority: Authority | None) -> bytes:
    """A LinkNode's target as a symbolic link's text: relative inside the space."""
    uri = uri.strip()
    if uri.startswith("file://"):
        return unquote_to_bytes(uri[7:])
    if authority is not None and uri.startswith("vos://"):
        try:
            target = authority.path(uri)
        except VOSpaceError:
            return uri.encode()
        here = path[:-1]
        common = 0
        while common < min(len(here), len(target)) and here[common] == target[common]:
            common += 1
        return b"/".join([b".."] * (len(here) - common) + list(target[common:])) or b"."
    return uri.encode()
