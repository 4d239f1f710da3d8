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
    Quota,
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

BATCH_MAX = 1000
"""Requests in one batch."""
WAIT_S_MAX = 25.0
"""Longest poll of the change feed; below the 30 s at which proxies begin to cut."""


HEAD_BYTES = 16 * 1024
"""What the kernel reads first."""


class Request(msgspec.Struct, array_like=True, tag=True):
    """One operation."""


class Hello(Request):
    pass


class Lookup(Request):
    parent: Id
    name: bytes
    head: bool = False
    """Whether the first HEAD_BYTES of a long file are wanted too."""


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
    id: Id = 0
    """Of the new node, drawn at random by who sends this; 0: the service draws it."""
    at_ns: Time = 0
    """When it was done, by the service's clock (``Greeting.now_ns``); 0: now.  So in all that follow."""


class Link(Request):
    id: Id
    parent: Id
    name: bytes
    at_ns: Time = 0


class Remove(Request):
    parent: Id
    name: bytes
    kind: str
    id: Id = 0
    """Which node the name is; 0: whichever it is.  So in ``Rename``."""
    at_ns: Time = 0


class Rename(Request):
    parent: Id
    name: bytes
    to_parent: Id
    to_name: bytes
    flag: str
    id: Id = 0
    at_ns: Time = 0


class SetAttributes(Request):
    id: Id
    change: Attributes
    at_ns: Time = 0


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
    at_ns: Time = 0
    atime_ns: Time | None = None
    version: Size = 0
    """What the new version is to be, of a commit that others follow; 0: the service says."""


class Properties(Request):
    id: Id


class SetProperties(Request):
    id: Id
    change: dict[str, str | None]


class SpaceUsage(Request):
    pass


class Quotas(Request):
    """What quotas a node is under, and what is used of them."""

    id: Id


class Sync(Request):
    """Make all that was changed durable."""


class Renew(Request):
    """Keep blobs that somebody reads; answers with freshly leased names."""

    names: list[str]


class Share(Request):
    """Let what somebody may read be committed into another node; answers with a receipt for each name."""

    names: list[str]


NOT_HELD, HELD, RECALLED = 0, 1, 2
"""States of the delegation, as one mount sees it."""


class Changes(Request):
    since: Cursor
    wait_s: Annotated[float, msgspec.Meta(ge=0, le=60)]
    delegation: int = NOT_HELD
    """What the mount knows of it: the answer comes at once if that is wrong."""


Mutation = Create | Link | Remove | Rename | SetAttributes | Commit
Ordered = Mutation | Lookup | Get | Children | Open | Properties | SetProperties | SpaceUsage | Quotas | Sync


class Batch(Request):
    """Several requests, done in this order."""

    requests: list[Ordered]
    wanted: list[int]
    """Which of them need their results; of the others only failures are told."""
    again: bool = False
    """The answer to an earlier sending was lost: what is found done already was done by that."""


class Delegate(Request):
    """Ask for the delegation (``server/delegation.py``), whose state then comes with the change feed."""


class GiveBack(Request):
    """The delegation is no longer needed, and everything has been told; a mount's last word, whether it had it or not."""


class Greeting(msgspec.Struct, array_like=True):
    """What a mount must know before it starts."""

    user: str
    data_url: str
    """Base of blob uploads and reads."""
    cursor: Cursor
    inline_bytes_max: Size
    """Longest bytes that a commit may carry itself, rather than as an uploaded blob."""
    now_ns: Time = 0
    """The service's clock."""
    slow: bool = False
    """Whether bytes may have to be brought back from a slow storage before they can be read."""
    signs: bool = False
    """Whether blobs may have URLs of their store's own: ``/blobs/NAME?signed`` answers with a ``backend.Signed``, or nothing."""


class Stored(msgspec.Struct, array_like=True):
    """Answer to a blob's upload."""

    receipt: str
    """To commit it with."""
    name: str
    """To read it by."""


class ChangePage(msgspec.Struct, array_like=True):
    cursor: Cursor
    changes: list[Change]
    delegation: int = NOT_HELD
    """HELD means that every change by others is in this page or an earlier one."""


class Entry(msgspec.Struct, array_like=True):
    """A child in a listing."""

    name: bytes
    node: Node


class Failure(msgspec.Struct, array_like=True):
    """Why not: an error's class name (``errors.BY_NAME``) and text."""

    error: str
    message: str


class Outcomes(msgspec.Struct, array_like=True):
    """Answer to a ``Batch``."""

    failures: list[tuple[int, Failure]]
    results: list[tuple[int, msgspec.Raw]]
    """Of those that were wanted and did not fail."""


AnyRequest = Ordered | Hello | Renew | Share | Changes | Batch | Delegate | GiveBack

RESULTS: dict[type, object] = {
    Hello: Greeting, Lookup: Found, Get: Node, Children: list[Entry], Create: Node, Link: Node, Remove: Node,
    Rename: Renamed, SetAttributes: Node, Open: Content, Commit: Content, Properties: dict[str, str],
    SetProperties: Node, SpaceUsage: Usage, Quotas: list[Quota], Sync: None, Renew: list[str], Share: list[str], Changes: ChangePage, Batch: Outcomes,
    Delegate: bool, GiveBack: None,
}  # fmt: skip
"""What answers each request."""
