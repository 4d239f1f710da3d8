"""The gateway binding's messages: what the mount asks of the daemon, one per operation of ``Tree``.

MessagePack arrays, decoded straight into these records with their types checked (msgspec: 1 µs, against 8 for JSON
into dataclasses).  One POST carries one request; an answer is the operation's result, or a ``Failure`` under the
fault's HTTP status.  ``PROTOCOL`` changes when any record here or in ``node.py`` does.
"""

from typing import Annotated

import msgspec

from vosfs.metadata.node import (
    Attributes,
    Change,
    Content,
    Cursor,
    Extent,
    Found,
    Id,
    NewNode,
    Node,
    Renamed,
    Size,
    Time,
    Usage,
)

PROTOCOL = "ivo://vosfs/std/Gateway#1"
"""Identifier of the binding: a standardID in /capabilities, and a protocol in /protocols."""

MEDIA_TYPE = "application/msgpack"
ORIGIN_HEADER = "Vosfs-Origin"
"""Names one mount, so that it can tell its own changes in the feed."""

WAIT_S_MAX = 25.0
"""Longest poll of the change feed; below the 30 s at which proxies begin to cut."""


class Request(msgspec.Struct, array_like=True, tag=True):
    """One operation."""


class Hello(Request):
    pass


class Lookup(Request):
    parent: Id
    name: bytes


class Get(Request):
    id: Id


class Children(Request):
    parent: Id
    after: bytes
    limit: int


class Create(Request):
    parent: Id
    name: bytes
    new: NewNode


class Link(Request):
    id: Id
    parent: Id
    name: bytes


class Remove(Request):
    parent: Id
    name: bytes
    kind: str


class Rename(Request):
    parent: Id
    name: bytes
    to_parent: Id
    to_name: bytes
    flag: str


class SetAttributes(Request):
    id: Id
    change: Attributes


class Open(Request):
    id: Id


class Commit(Request):
    id: Id
    base_version: Id | None
    length: Size
    changes: list[Extent]
    """Locators are receipts of this user's uploads."""
    mtime_ns: Time | None
    durable: bool
    atime_ns: Time | None = None


class Properties(Request):
    id: Id


class SetProperties(Request):
    id: Id
    change: dict[str, str | None]


class SpaceUsage(Request):
    pass


class Sync(Request):
    """Make a node's present bytes, and all metadata, durable; 0: metadata alone."""

    id: Id


class Renew(Request):
    """Keep blobs that somebody reads; answers with freshly leased names."""

    names: list[str]


class Changes(Request):
    since: Cursor
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)]


class Greeting(msgspec.Struct, array_like=True):
    """What a mount must know before it starts."""

    user: str
    data_url: str
    """Base of blob uploads and reads."""
    cursor: Cursor
    durable_uploads: bool
    """Whether every upload must be durable, because who commits cannot make it so."""


class Stored(msgspec.Struct, array_like=True):
    """Answer to a blob's upload."""

    receipt: str
    """To commit it with."""
    name: str
    """To read it by."""


class ChangePage(msgspec.Struct, array_like=True):
    cursor: Cursor
    changes: list[Change]


class Entry(msgspec.Struct, array_like=True):
    """A child in a listing."""

    name: bytes
    node: Node


class Failure(msgspec.Struct, array_like=True):
    """Why not: an error's class name (``errors.BY_NAME``) and text."""

    error: str
    message: str


AnyRequest = (
    Hello | Lookup | Get | Children | Create | Link | Remove | Rename | SetAttributes | Open | Commit | Properties
    | SetProperties | SpaceUsage | Sync | Renew | Changes
)  # fmt: skip

RESULTS: dict[type, object] = {
    Hello: Greeting, Lookup: Found, Get: Node, Children: list[Entry], Create: Node, Link: Node, Remove: Node,
    Rename: Renamed, SetAttributes: Node, Open: Content, Commit: Content, Properties: dict[str, str],
    SetProperties: Node, SpaceUsage: Usage, Sync: None, Renew: list[str], Changes: ChangePage,
}  # fmt: skip
"""What answers each request."""
