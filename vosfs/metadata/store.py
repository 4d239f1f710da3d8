"""The port: a tree of nodes.

``Tree`` is what the mount needs, and every adapter offers it: memory, SQLite, PostgreSQL, the gateway binding and
plain VOSpace.  ``Store`` adds what only the daemon needs.  Nodes are named by id; the caller walks paths.

Contract, proved for every adapter by ``tests/store``:

* every operation is atomic, and visible to all later ones when it returns;
* it is durable once a later ``sync()`` returned (PostgreSQL and SQLite: or when ``durable`` was asked for);
* mutations append to the change log in the same transaction, under the caller's ``origin``;
* ``permit(node, right)`` is called inside the transaction for each node whose rights matter, and vetoes by raising.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from vosfs.errors import (
    Immutable,
    InternalFault,
    InvalidArgument,
    IsContainer,
    NodeLocked,
    NodeNotFound,
    ServiceUnavailable,
    Stale,
    StorageFull,
    TimedOut,
    VOSpaceError,
)
from vosfs.metadata.job import Chosen, Job
from vosfs.metadata.node import (
    DATA,
    LOCKED,
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
)

READ, WRITE, OWN = "read", "write", "own"
"""Rights: see a node's bytes or children; change them; change who may."""


def check_guard(node: Node, what: str) -> None:
    """Immutable or NodeLocked unless a node may be changed."""
    if node.immutable == LOCKED:
        raise NodeLocked(f"{what} is locked: vlock to unlock it")
    if node.immutable:
        raise Immutable(f"{what} is read-only")


def check_same(node: Node, id: int, name: bytes) -> None:
    """Stale unless a name is the node's that it is said to be; 0: nothing is said."""
    if id and node.id != id:
        raise Stale(f"{name!r} is another node by now")


def check_base(node: Node, base_version: int | None) -> None:
    """IsContainer, NodeNotFound or Stale unless bytes can be saved on top of this version of a node."""
    if node.kind != DATA:
        raise IsContainer(f"node {node.id} holds no bytes")
    if not node.nlink:
        # Whoever did not see it go would take bytes for saved that nobody can read.
        raise NodeNotFound(f"node {node.id} has no name any more")
    if base_version is not None and node.version != base_version:
        raise Stale(f"node {node.id} is at version {node.version}, not {base_version}")


def right_to_guard(node: Node, change: int) -> str:
    """What it takes to change ``immutable``: locks are everybody's who may write, the rest is the owner's."""
    return WRITE if {node.immutable, change} <= {0, LOCKED} else OWN


PAGE_NODES_MAX = 1000
"""Longest page of a listing: 0.6 ms of SQLite in the event loop."""

FOUND_EXTENTS_MAX = 8
"""Longest list, and FOUND_BYTES_MAX the most inline bytes, that a look-up answers with."""
FOUND_BYTES_MAX = 16 * 1024

HAPPENED_ROWS = 100_000
"""Rows of the change log that are looked through for a batch's changes: 8 ms of SQLite."""
Moment = tuple[int, int]
"""A node, and when it was changed."""

CHANGES_MAX = 1000
"""Longest page of the change log."""

Permit = Callable[[Node, str], None]


def allow(node: Node, right: str) -> None:
    """The permit of a caller who may do everything."""


class Caller(Protocol):
    """On whose behalf an operation runs."""

    permit: Permit
    origin: str


class Anyone:
    """A caller with every right: the mount's local stores, the daemon's own tasks, tests."""

    def __init__(self, origin: str = "", permit: Permit = allow) -> None:
        self.origin = origin
        self.permit = permit


ANYONE = Anyone()


def next_version(version: int, wanted: int) -> int:
    """What follows a content's version: what its maker chose (``prepared_version``), else the next number."""
    if wanted and wanted <= version:
        raise InvalidArgument(f"version {wanted} does not follow {version}")
    return wanted or version + 1


def prepared_version(version: int, now_ns: int) -> int:
    """The version of a save that the service has not heard of: the time, unless that is not later.

    Not the next number.  If somebody else saves first and this one is refused, the save prepared on top of it must not find
    theirs under the number that it counts on.
    """
    return max(version + 1, now_ns)


class Step(NamedTuple):
    """One change of a tree, among several that are applied together."""

    operation: str
    """``create``, ``link``, ``remove``, ``rename``, ``set_attributes`` or ``commit``."""
    arguments: tuple[Any, ...]
    """As that method of ``Tree`` has them, without the caller."""
    at_ns: int
    """When it happened: what the times of the nodes become."""
    id: int = 0
    """The ``id`` of create, remove and rename."""
    version: int = 0
    """Of a commit: what the new version is to be; 0: the next."""


Outcome = Node | Renamed | Content | VOSpaceError
"""What a step gave, or why it could not be done."""


OF_ALL = (ServiceUnavailable, TimedOut, StorageFull, InternalFault)
"""Errors that concern every step of several, not one."""


class Tree(Protocol):
    """Names, attributes and extent lists."""

    async def lookup(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        """The child ``name`` of a container.  NodeNotFound, NotContainer."""

    async def find(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Found:
        """``lookup`` and, where that costs next to nothing more, ``open``: most files are looked up to be opened."""

    async def get(self, id: int, caller: Caller = ANYONE) -> Node:
        """One node.  NodeNotFound."""

    async def children(
        self, parent: int, after: bytes, limit: int, caller: Caller = ANYONE
    ) -> list[tuple[bytes, Node]]:
        """Up to ``limit`` children with names above ``after``, by name.  A shorter page is the last."""

    async def create(self, parent: int, name: bytes, new: NewNode, caller: Caller = ANYONE) -> Node:
        """A new node.  DuplicateNode, NodeNotFound (no such parent), NotContainer."""

    async def link(self, id: int, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        """One more name for a node that is not a container (link(2))."""

    async def remove(self, parent: int, name: bytes, kind: str, caller: Caller = ANYONE) -> Node:
        """Take a name away; a node without names goes to the trash.  Returns it as it is then.

        ``kind``: ``'leaf'`` (unlink(2): IsContainer), ``'empty'`` (rmdir(2): NotContainer, ContainerNotEmpty) or
        ``'tree'`` (deleteNode: anything, with all its descendants).
        """

    async def rename(
        self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str = "", caller: Caller = ANYONE
    ) -> Renamed:
        """rename(2) in one transaction; returns what moved and what lost the name.

        ``flag``: ``''`` replaces, ``'keep'`` raises DuplicateNode, ``'exchange'`` swaps.
        """

    async def set_attributes(self, id: int, change: Attributes, caller: Caller = ANYONE) -> Node:
        """Change attributes; ctime moves."""

    async def open(self, id: int, caller: Caller = ANYONE) -> Content:
        """A data node and its extents, seen together."""

    async def commit(
        self,
        id: int,
        base_version: int | None,
        length: int,
        changes: list[Extent],
        blobs: list[Blob],
        mtime_ns: int | None = None,
        md5: str = "",
        atime_ns: int | None = None,
        durable: bool = False,
        caller: Caller = ANYONE,
    ) -> Content:
        """Swap a data node's bytes: old list, ``changes`` over it in order, cut or extended to ``length``.

        Stale if the node is not at ``base_version`` (None: whatever it is at).  ``blobs`` describes every blob that
        ``changes`` names and the node does not stand on yet.  ``mtime_ns`` None: now; ``atime_ns`` None: as it was.
        Returns the new content.
        """

    async def properties(self, id: int, caller: Caller = ANYONE) -> dict[str, str]:
        """The properties somebody set, by URI."""

    async def set_properties(
        self, id: int, change: dict[str, str | None], clear: bool = False, caller: Caller = ANYONE
    ) -> Node:
        """Union with what is there; None deletes; ``clear`` drops all others first."""

    async def usage(self) -> Usage:
        """Space used and left."""

    async def quotas(self, id: int) -> list[Quota]:
        """The quotas that a node is under, a container's own first, the outermost last."""

    async def changes(self, since: Cursor, limit: int = CHANGES_MAX) -> tuple[Cursor, list[Change]]:
        """The settled part of the change log after ``since``, and where to go on.  Stale if it was trimmed."""

    async def cursor(self) -> Cursor:
        """The end of the change log."""

    async def sync(self) -> None:
        """Everything that returned before is durable when this returns."""


class Store(Tree, Protocol):
    """A tree kept here, with what its daemon needs besides."""

    notify: Callable[[str], None]
    """Called in the event loop after a change of the tree, with the caller's ``origin``."""

    shared: bool
    """Whether other processes may change the tree too."""

    async def apply(self, steps: list[Step], caller: Caller = ANYONE, durable: bool = False) -> list[Outcome]:
        """Do one step after another, in one transaction if all can be done; otherwise each that can.

        Raises only what concerns them all: ServiceUnavailable, TimedOut, StorageFull, InternalFault.
        """

    async def put_data(
        self, parent: int, name: bytes, new: NewNode, length: int, extents: list[Extent], blobs: list[Blob], md5: str,
        clear: bool = False, caller: Caller = ANYONE, durable: bool = True,
        mtime_ns: int | None = None,
    ) -> Content:  # fmt: skip
        """Make bytes the whole content of the data node ``name``, made if need be, in one step.

        ``clear`` drops the properties of a node that was there.  IsContainer if a node of another kind is.
        """

    # -- as in Tree; with ``durable`` on disk when they return; with ``id`` the new node has that one, and a name that is
    # taken or moved must be that node's (Stale)

    async def create(
        self, parent: int, name: bytes, new: NewNode, caller: Caller = ANYONE, id: int = 0, durable: bool = False
    ) -> Node: ...

    async def remove(
        self, parent: int, name: bytes, kind: str, caller: Caller = ANYONE, id: int = 0, durable: bool = False
    ) -> Node: ...

    async def rename(
        self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str = "", caller: Caller = ANYONE,
        id: int = 0, durable: bool = False,
    ) -> Renamed: ...  # fmt: skip

    async def happened(self, moments: set[Moment]) -> set[Moment]:
        """Those of which the change log's last HAPPENED_ROWS rows have a change of that node at exactly that time."""

    async def depth(self, id: int) -> int:
        """How many containers lie between the root and a node: 0 for what is in the root."""

    async def update(
        self, id: int, attributes: Attributes, change: dict[str, str | None], caller: Caller = ANYONE,
        durable: bool = True,
    ) -> Node:  # fmt: skip
        """``set_properties`` and ``set_attributes`` in one step: all of it or nothing."""

    async def trace(self, path: tuple[bytes, ...]) -> tuple[list[Node], dict[str, str]]:
        """The nodes from the root down along ``path``, as far as it exists; if it all does, the last one's properties."""

    async def children_with_properties(
        self, parent: int, start: bytes, limit: int
    ) -> list[tuple[bytes, Node, dict[str, str]]]:
        """Like ``children``, but from ``start`` inclusive, with each child's properties."""

    async def snapshot(self) -> object:
        """What is committed by now: while it is equal, every read gives what it gave.  Never equal where nobody knows."""

    async def undigested(self, rest_ns: int, limit: int) -> list[int]:
        """Data nodes whose MD5 is not known and that have not changed for ``rest_ns``, longest first."""

    async def put_digest(self, id: int, version: int, md5: str) -> None:
        """Note the MD5 of a node's content, unless it is at another version by now.  Not a change of the node."""

    async def properties_in_use(self) -> list[str]:
        """The URIs of all properties that somebody set on any node, some thousands at most."""

    async def referenced(self, locator: str) -> bool:
        """Whether a blob is known: nodes stand on it, or did until a moment ago."""

    async def used(self, after: str, limit: int) -> list[Used]:
        """Up to ``limit`` blobs that extents name, with locators above ``after``, in order.  A shorter page is the last."""

    async def used_total(self) -> tuple[int, int]:
        """How many blobs are recorded as in use, and their bytes."""

    async def stored(self, storage: str) -> int:
        """The bytes of all blobs that are recorded in a storage (empty: the default one), those left to be collected too."""

    async def users(self, locator: str, limit: int) -> list[tuple[bytes, ...] | int]:
        """The paths of up to ``limit`` nodes that stand on a blob; the id of one that no path is found of."""

    async def path_of(self, id: int) -> tuple[bytes, ...] | None:
        """Where a node is; None if that is not found, as of one in the trash."""

    async def unreferenced(self, before_ns: int, limit: int) -> list[str]:
        """Blobs that nothing has stood on since before ``before_ns``."""

    async def renew(self, locators: list[str]) -> None:
        """Count blobs as just used: a reader still holds them."""

    async def blob(self, locator: str) -> Blob | None:
        """What is recorded of a blob."""

    async def relocate(self, locator: str, blob: Blob, limit: int, node: int = 0) -> int:
        """Let up to ``limit`` of the nodes that stand on a blob, or just that one, stand on another of the same bytes.

        Returns on how many, 0 if none did any more.
        Nothing else of them changes, and nobody is told: names of the old blob are good until it is collected.
        """

    async def forget_blobs(self, locators: list[str]) -> list[str]:
        """The collector is about to remove these; returns those on which still nothing stands."""

    async def purge(self, limit: int) -> int:
        """Empty some of the trash; returns how many nodes went."""

    async def trim(self, before_ns: int) -> None:
        """Drop old rows of the change log, tokens and jobs."""

    async def secret(self) -> bytes:
        """The key that signs this space's end-point URLs and blob receipts."""

    async def put_account(self, name: str, password_hash: str, groups: str) -> None: ...

    async def account(self, name: str) -> tuple[str, str] | None:
        """(password hash, groups) of a user."""

    async def put_certificate(self, name: str, account: str) -> None:
        """Let the holder of a certificate with this distinguished name (RFC 4514) be that user."""

    async def certificate(self, name: str) -> str | None:
        """The user a certificate's name stands for."""

    async def put_token(self, digest: bytes, account: str, expires_ns: int) -> None: ...

    async def token(self, digest: bytes) -> tuple[str, int] | None:
        """(user, expiry) of a bearer token, by the SHA-256 of its text."""

    # -- quotas (``charges.py``).  What makes content longer, or brings it below a container, raises QuotaExceeded if a
    # quota above does not allow that many bytes; CrossDevice if a node would have names under two.

    async def set_quota(self, id: int, bytes_max: int, caller: Caller = ANYONE) -> None:
        """Let no more bytes come below a container than that; what is there stays.  -1: any number.  NotContainer.

        In steps, the first time: until it returns, some of what is there may not count yet.
        """

    async def recount(self) -> list[tuple[int, int, int]]:
        """Count anew what is used of all quotas; the container, what it was, and what it is, where that differs."""

    # -- whole trees, in steps, under STAGING_ID (``subtree.py``)

    async def copy_node(self, id: int, name: bytes, owner: str, caller: Caller = ANYONE, quota: int = 0) -> Node:
        """A copy of one node, without children, staged as ``name`` and owned by ``owner``.  The bytes are shared.

        It and what is copied into it count under ``quota``, where it is to go.
        """

    async def copy_children(
        self, id: int, into: int, after: bytes, limit: int, owner: str, caller: Caller = ANYONE
    ) -> Copied:
        """Copy up to ``limit`` children with names above ``after``.  PermissionDenied if one may not be read."""

    async def graft(self, id: int, into: int, caller: Caller = ANYONE) -> None:
        """Move all children of ``id`` into ``into``, in one step, and what is below them.

        Containers of one name merge and bytes replace bytes; DuplicateNode for any other two nodes of one name.
        """

    async def drop_staged(self, name: bytes) -> None:
        """Throw away what is staged as ``name``; no error if nothing is."""

    # -- jobs

    async def add_job(self, job: Job) -> None:
        """Keep a new job."""

    async def job(self, id: str) -> Job | None: ...

    async def change_job(self, job: Job, phases: tuple[str, ...]) -> bool:
        """Write phase, destruction time and document, if the stored phase is one of ``phases``; whether it was."""

    async def jobs(self, chosen: Chosen) -> list[Job]:
        """The jobs that all conditions choose."""

    async def remove_job(self, id: str) -> None:
        """Forget a job; no error if it is gone."""
