"""The tree over the gateway binding: one POST per operation, on kept connections, or one for many (``behind.py``)."""

import secrets
import time
from typing import Any

import msgspec

from vosfs.client import HttpClient
from vosfs.errors import BY_NAME, NotAuthenticated, ProtocolError, ServiceUnavailable, Stale, TimedOut
from vosfs.metadata import messages as m
from vosfs.metadata.behind import WriteBehind, clock_ns
from vosfs.metadata.node import (
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
from vosfs.metadata.store import ANYONE, CHANGES_MAX, Caller, prepared_version

_encode = msgspec.msgpack.Encoder().encode
_DECODERS = {kind: msgspec.msgpack.Decoder(result).decode for kind, result in m.RESULTS.items()}
_READS = (
    m.Hello, m.Lookup, m.Get, m.Children, m.Open, m.Properties, m.SpaceUsage, m.Quotas, m.Sync, m.Renew, m.Changes,
    m.Delegate, m.GiveBack, m.Share,
)  # fmt: skip
"""Requests that may be sent again when a kept connection breaks under them."""

ALONE_S = 0.5
"""After this long without another, what is looked up is likely to be read next: its first bytes come along.  They save the
round trip that the first read waits for, 1 ms even on one host; with many look-ups in a row they would be in the way."""

IN_DOUBT_MAX = 1_000
"""Nodes of which it is remembered that a save may have been made."""


class GatewayTree:
    """Tree (see ``store.py`` for every method's contract) on a daemon; its caller is whoever the token names."""

    def __init__(self, client: HttpClient, path: str, token: str) -> None:
        # Dependencies
        self._client = client
        # Constants
        self.origin = secrets.token_hex(8)
        """What this mount's changes are logged under."""
        self._path = path
        # Mutable state
        self.use_token(token)
        self._looked_up = -ALONE_S
        """When something was last looked up."""
        self._in_doubt: dict[int, dict[int, int | None]] = {}
        """Of nodes, the versions that saves would have made whose answers did not come, and their mtime: who tries again
        knows them."""
        self.behind = WriteBehind(self._send, _DECODERS, client.deadline_s)

    def use_token(self, token: str) -> None:
        """Be whoever this names from now on."""
        headers = [("Content-Type", m.MEDIA_TYPE), (m.ORIGIN_HEADER, self.origin)]
        if token:
            headers.append(("Authorization", f"Bearer {token}"))
        self._head = self._client.head("POST", self._path, headers)

    async def _call(self, request: m.Ordered) -> Any:
        """A request about the tree: behind what is owed, if something is."""
        return await (self._send(request) if self.behind.idle else self.behind.ordered(request))

    async def _send(self, request: m.Request, deadline_s: float | None = None, reads: bool = False) -> Any:
        kind = type(request)
        answer = await self._client.request(
            self._head, _encode(request), idempotent=reads or kind in _READS, deadline_s=deadline_s
        )
        try:
            if answer.status == 200:
                return _DECODERS[kind](answer.body)
            failure = msgspec.msgpack.decode(answer.body, type=m.Failure)
        except msgspec.DecodeError as exc:
            if answer.status in (502, 503, 504):
                raise ServiceUnavailable(f"the service answers {answer.status}") from None
            raise ProtocolError(f"status {answer.status} with a body that is not of {m.PROTOCOL}: {exc}") from None
        raise BY_NAME.get(failure.error, ProtocolError)(failure.message)

    async def hello(self) -> m.Greeting:
        """Introduce oneself.  NotAuthenticated, PermissionDenied, and what a broken network gives."""
        try:
            greeting: m.Greeting = await self._send(m.Hello())
        except NotAuthenticated as exc:
            raise NotAuthenticated(
                f"{exc}; get a new one with vosfsd token, or from whoever runs the service"
            ) from None
        self.behind.user = greeting.user
        self.behind.offset_ns = (greeting.now_ns or time.time_ns()) - clock_ns()
        return greeting

    async def lookup(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        return (await self.find(parent, name)).node

    async def find(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Found:
        now, before = time.monotonic(), self._looked_up
        self._looked_up = now
        return await self._call(m.Lookup(parent, name, now - before >= ALONE_S))

    async def get(self, id: int, caller: Caller = ANYONE) -> Node:
        return await self._call(m.Get(id))

    async def children(
        self, parent: int, after: bytes, limit: int, caller: Caller = ANYONE
    ) -> list[tuple[bytes, Node]]:
        return [(entry.name, entry.node) for entry in await self._call(m.Children(parent, after, limit))]

    async def create(self, parent: int, name: bytes, new: NewNode, caller: Caller = ANYONE) -> Node:
        return await self._call(m.Create(parent, name, new))

    async def link(self, id: int, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        return await self._call(m.Link(id, parent, name))

    async def remove(self, parent: int, name: bytes, kind: str, caller: Caller = ANYONE) -> Node:
        return await self._call(m.Remove(parent, name, kind))

    async def rename(
        self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str = "", caller: Caller = ANYONE
    ) -> Renamed:
        return await self._call(m.Rename(parent, name, to_parent, to_name, flag))

    async def set_attributes(self, id: int, change: Attributes, caller: Caller = ANYONE) -> Node:
        return await self._call(m.SetAttributes(id, change))

    async def open(self, id: int, caller: Caller = ANYONE) -> Content:
        return await self._call(m.Open(id))

    async def open_many(self, ids: list[int]) -> list[Content]:
        """What ``open`` gives, of those that can be opened, in one message.

        None while changes are owed: the answer would be of what was before them.
        """
        if not self.behind.idle:
            return []
        batch = m.Batch([m.Open(id) for id in ids], list(range(len(ids))))
        outcomes: m.Outcomes = await self._send(batch, reads=True)
        try:
            return [_DECODERS[m.Open](raw) for _, raw in outcomes.results]
        except msgspec.DecodeError as exc:
            raise ProtocolError(f"an answer that is not of {m.PROTOCOL}: {exc}") from None

    async def commit(
        self, id: int, base_version: int | None, length: int, changes: list[Extent], blobs: list[Blob],
        mtime_ns: int | None = None, md5: str = "", atime_ns: int | None = None, durable: bool = False,
        caller: Caller = ANYONE,
    ) -> Content:  # fmt: skip
        version = 0 if base_version is None else prepared_version(base_version, self.behind.now_ns())
        request = m.Commit(id, base_version, length, changes, mtime_ns, durable, 0, atime_ns, version)
        try:
            try:
                done: Content = await self._call(request)
            except Stale:
                # Perhaps an answer was lost: then what is there is of this mount, and the changes are made once more on top.
                node, mine = (await self.open(id)).node, self._in_doubt.get(id, {})
                # One more, if the service made one blob of many pieces then (``server/gateway.py: compact``).
                if node.version not in mine and mine.get(node.version - 1) != node.mtime_ns:
                    raise
                request.base_version = node.version
                request.version = prepared_version(node.version, self.behind.now_ns())
                done = await self._call(request)
        except (ServiceUnavailable, TimedOut):
            self._in_doubt.setdefault(id, {})[request.version] = mtime_ns
            if len(self._in_doubt) > IN_DOUBT_MAX:
                del self._in_doubt[next(iter(self._in_doubt))]
            raise
        self._in_doubt.pop(id, None)
        return done

    async def properties(self, id: int, caller: Caller = ANYONE) -> dict[str, str]:
        return await self._call(m.Properties(id))

    async def set_properties(
        self, id: int, change: dict[str, str | None], clear: bool = False, caller: Caller = ANYONE
    ) -> Node:
        return await self._call(m.SetProperties(id, change))

    async def usage(self) -> Usage:
        return await self._call(m.SpaceUsage())

    async def quotas(self, id: int) -> list[Quota]:
        return await self._call(m.Quotas(id))

    async def changes(self, since: Cursor, limit: int = CHANGES_MAX, wait_s: float = 0) -> tuple[Cursor, list[Change]]:
        """As in the port; with ``wait_s`` the answer may wait that long for a change."""
        page = await self.feed(since, wait_s)
        return page.cursor, page.changes

    async def feed(self, since: Cursor, wait_s: float) -> m.ChangePage:
        """``changes``, and the state of the delegation."""
        known = m.HELD if self.behind.held else m.NOT_HELD
        return await self._send(m.Changes(since, wait_s, known), wait_s + self._client.deadline_s)

    async def give_back(self) -> None:
        """Send all that is owed, and with that the delegation."""
        self.behind.held = False
        await self.behind.drain()
        # From here on others work in the space, and this may be the last of this mount: what was done is not to be done again.
        self.behind.trim()
        await self._send(m.GiveBack())

    async def cursor(self) -> Cursor:
        return (await self.hello()).cursor

    async def sync(self) -> None:
        await self._call(m.Sync())

    async def renew(self, names: list[str]) -> list[str]:
        """Fresh leases for blobs that are still being read, in the same order."""
        return await self._send(m.Renew(names))

    async def share(self, names: list[str]) -> list[str]:
        """Receipts to commit into another node what these names may be read by, in the same order."""
        return await self._send(m.Share(names))
