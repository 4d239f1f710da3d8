"""What a node is: plain values, no I/O.

The same records are rows in a database, messages of the gateway binding and the mount's cached attributes, so a
change of field is a change of the schema (``sql.py``) and of the binding's version (``server/gateway.py``).
"""

import os
import time
from typing import Annotated

import msgspec

from vosfs.errors import QuotaExceeded

Id = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Time = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""Nanoseconds since 1970."""
Mode = Annotated[int, msgspec.Meta(ge=0, le=0o7777)]
Owner = Annotated[int, msgspec.Meta(ge=-1, le=2**32 - 1)]
Flag = Annotated[int, msgspec.Meta(ge=0, le=1)]
Guard = Annotated[int, msgspec.Meta(ge=0, le=2)]
Device = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Major number * 2**32 + minor number: no system's own packing."""
Text = Annotated[str, msgspec.Meta(max_length=4096)]
"""The bounds are checked where a message is decoded: what a database could not hold never gets that far."""

CONTAINER, DATA, LINK = "container", "data", "link"
"""Kinds of node: ContainerNode, the DataNodes and LinkNode of VOSpace 2.1."""
FIFO, SOCKET, CHARACTER_DEVICE, BLOCK_DEVICE = "fifo", "socket", "chardev", "blockdev"
"""What mknod(2) makes besides: without bytes, and to VOSpace clients a DataNode of length 0 with a property that says
what it is."""
DEVICES = frozenset((CHARACTER_DEVICE, BLOCK_DEVICE))
SPECIAL = DEVICES | {FIFO, SOCKET}

IMMUTABLE, LOCKED = 1, 2
"""Why a node may not be changed: its owner said so for good (core#immutable), or somebody who may write it for a while
(islocked, as the vos client has it)."""

ROOT_ID = 1
"""Node id of every space's root, which is also FUSE's root inode."""

STAGING_ID = 2
"""A container that no path leads to: trees that are being copied or unpacked hang there until they are whole."""

CORE = "ivo://ivoa.net/vospace/core#"
"""Prefix of the standard property identifiers (VOSpace 2.1 section 3.2.4)."""
STORAGE = "ivo://vosfs/core#storage"
"""The property that shows ``Node.storage``."""
QUOTA, AVAILABLE, LENGTH = CORE + "quota", CORE + "availableSpace", CORE + "length"
"""Properties of a container with a quota: how many bytes may be below it, how many more may come, and how many there
are, as clients of CADC's services expect it."""
LOCALITY = "ivo://vosfs/core#locality"
"""The property that says whether a data node's bytes can be read at once; its values are in ``backends/backend.py``."""
STAGE = "ivo://vosfs/core#stage"
"""Set to true, this property asks for bytes that cannot; it is never shown."""


class Node(msgspec.Struct, array_like=True):
    """One node as everybody sees it.  Treated as a value: a change makes a new record.

    Order of fields = order of columns in ``sql.NODE_COLUMNS``.
    """

    id: int
    kind: str
    version: int
    """Identity of the bytes: (id, version) never names two contents."""
    length: int
    mode: int
    """Permission bits, 0..0o7777."""
    uid: int
    """-1: not known to the space; the mount shows its own user."""
    gid: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int
    owner: str
    """VOSpace user who created the node."""
    target: bytes
    """Raw text of a symbolic link or LinkNode; empty for the others."""
    public: int
    group_read: str
    group_write: str
    immutable: int
    """0, IMMUTABLE or LOCKED: name, bytes and children stay as they are."""
    content_type: str
    md5: str
    """Hexadecimal; empty while not known."""
    device: int = 0
    """Of a device node: which one (see ``Device``)."""
    containers: int = -1
    """How many of a container's children are containers; -1: not known.  Not kept for STAGING_ID."""
    storage: str = ""
    """Names of the storages that new bytes of it go to, a copy to each; empty: the default one.  Handed down like the
    group of a directory with the setgid bit, to what is made in it from then on."""
    quota: Id = 0
    """The nearest container above with a quota, or the node itself if it has one; 0: there is none (``charges.py``)."""


class Extent(msgspec.Struct, array_like=True):
    """The bytes ``[start, stop)`` of a data node: a slice of a blob, or the bytes themselves, or (neither) a hole."""

    start: Size
    stop: Size
    locator: str = ""
    offset: Size = 0
    """Where ``start`` lies in the blob."""
    data: bytes = b""


class Blob(msgspec.Struct, array_like=True):
    """A stored, immutable run of bytes."""

    locator: str
    length: int
    crc32: int


COPY = "+"
"""Stands between the locators of a blob's copies (``backends/storages.py``)."""


def parts(locator: str) -> list[str]:
    """The locators of a blob's copies; most have one, which is the blob's own."""
    return locator.split(COPY)


class Used(msgspec.Struct, array_like=True):
    """A blob that nodes stand on."""

    locator: str
    reach: int
    """How many bytes, from its first one on, their extents need."""
    blob: Blob | None
    """What is recorded of it; None: nothing, which should not be."""


class Content(msgspec.Struct, array_like=True):
    """A data node and where its bytes are."""

    node: Node
    extents: list[Extent]
    head: bytes = b""
    """The first bytes, where they came along."""


class Found(msgspec.Struct, array_like=True):
    """What a look-up found."""

    node: Node
    extents: list[Extent] | None
    """Of a data node whose list is short and whose bytes the caller may read; else None, and ``open`` tells."""
    head: bytes = b""
    """The first bytes, if they are in a blob and were asked for (``messages.Lookup``)."""


class Renamed(msgspec.Struct, array_like=True):
    """What rename(2) did."""

    node: Node
    """The moved node, as it is now."""
    gone: Node | None
    """The node that lost the name, if one did."""


class Copied(msgspec.Struct, array_like=True):
    """One page of a tree's copy."""

    after: bytes | None
    """Where the next page begins; None: this was the last."""
    containers: list[tuple[int, int]]
    """(original, copy) of the containers in it, whose children are still to be copied."""


class NewNode(msgspec.Struct, array_like=True):
    """What a creator says about a node."""

    kind: str
    mode: Mode = 0o644
    uid: Owner = -1
    gid: Owner = -1
    owner: str = ""
    target: bytes = b""
    properties: dict[str, str] = {}
    content_type: Text = ""
    public: Flag = 0
    group_read: Text = ""
    group_write: Text = ""
    immutable: Flag = 0
    mtime_ns: Time | None = None
    device: Device = 0
    storage: Text = ""
    """Empty: that of the container it is made in."""
    quota: Id = 0
    """0: that of the container it is made in.  Else the one it is to come under: of what is staged."""


def made(new: NewNode, id: int, now_ns: int, container: Node) -> Node:
    """The node that a creation makes in a container."""
    return Node(
        id, new.kind, 1, len(new.target), new.mode, new.uid, new.gid, 1, now_ns,
        now_ns if new.mtime_ns is None else new.mtime_ns, now_ns, now_ns, new.owner, new.target, new.public,
        new.group_read, new.group_write, new.immutable, new.content_type, "", new.device, 0,
        new.storage or container.storage, new.quota or container.quota,
    )  # fmt: skip


ID_TIME_SHIFT, ID_RANDOM_BITS, ID_BITS = 24, 40, 62
"""A node id is a random number behind a clock of 17 ms that begins anew every 20 hours.  What is made together then lies
together in the tables, whose keys begin with it: where there are 50 000, SQLite's log is a quarter as long.
Nobody guesses 40 bits, and with 10\\ :sup:`9` nodes two draw the same id as rarely as with 62 of them."""


def new_id() -> int:
    """A node id; the root's and STAGING_ID are never drawn."""
    clock = time.time_ns() >> ID_TIME_SHIFT & (1 << ID_BITS - ID_RANDOM_BITS) - 1
    return (clock << ID_RANDOM_BITS | int.from_bytes(os.urandom(ID_RANDOM_BITS // 8))) + 3


class Attributes(msgspec.Struct, array_like=True):
    """A change of attributes; None leaves a field as it is."""

    mode: Mode | None = None
    uid: Owner | None = None
    gid: Owner | None = None
    atime_ns: Time | None = None
    mtime_ns: Time | None = None
    public: Flag | None = None
    group_read: Text | None = None
    group_write: Text | None = None
    content_type: Text | None = None
    target: bytes | None = None
    immutable: Guard | None = None
    storage: Text | None = None


ANYTHING = 0
"""As a change's node: many may have changed, in what is handed down to them."""


class Change(msgspec.Struct, array_like=True):
    """One row of the change log."""

    node: int
    parent: int
    """0 where no name changed."""
    name: bytes
    origin: str
    """Who did it: a mount skips the changes that it made itself."""


class Cursor(msgspec.Struct, array_like=True, order=True, frozen=True):
    """A place in the change log."""

    xid: Id = 0
    seq: Id = 0


class Usage(msgspec.Struct, array_like=True):
    """What statfs(2) tells."""

    total_bytes: int
    free_bytes: int
    nodes: int


class Quota(msgspec.Struct, array_like=True):
    """A container's quota, and what of it is used."""

    node: int
    """The container."""
    above: int
    """The next container above that has one; 0: none has."""
    bytes_max: int
    """-1: none any more, but bytes are still counted."""
    used: int


def check_quota(quota: Quota) -> None:
    """QuotaExceeded if more is used than may be."""
    if 0 <= quota.bytes_max < quota.used:
        raise QuotaExceeded(f"this would be {quota.used} bytes where {quota.bytes_max} may be")


def bytes_left(quotas: list[Quota]) -> int | None:
    """How many more bytes all of these allow; None: any number."""
    left = [max(0, quota.bytes_max - quota.used) for quota in quotas if quota.bytes_max >= 0]
    return min(left) if left else None
