"""The tree in SQL: one schema and one set of transactions for SQLite and PostgreSQL.

A transaction is a generator that yields ``(statement, parameters)`` and is sent the rows; it decides, the adapter
(``sqlite.py``, ``postgres.py``) does the I/O.  So the logic exists once, runs inline on one engine and over a socket on
the other, and can be restarted from the top after a serialization failure.

A statement that only writes has no rows, and an adapter may keep it back until one that reads, or until the end: what
it fails with then ends the transaction.  A script that handles a taken key itself says so with ``Checked``.

Statements are written with ``?``, or ``?1`` and so on, and a few ``{tokens}`` that an adapter's ``Dialect`` fills in.
``space`` stands first in every key (it is the sharding key of distributed engines); ids are random numbers behind a clock
(``node.new_id``), made here or by a mount; names are bytes, so that any POSIX name fits and every engine sorts them alike.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

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
    Stale,
    TooManyLinks,
)
from vosfs.metadata import charges, content
from vosfs.metadata.node import (
    ANYTHING,
    CONTAINER,
    COPY,
    DATA,
    ROOT_ID,
    STAGING_ID,
    Attributes,
    Blob,
    Change,
    Content,
    Cursor,
    Extent,
    Found,
    NewNode,
    Node,
    Renamed,
    made,
    new_id,
    parts,
)
from vosfs.metadata.store import (
    FOUND_BYTES_MAX,
    FOUND_EXTENTS_MAX,
    HAPPENED_ROWS,
    OWN,
    READ,
    WRITE,
    Caller,
    Moment,
    check_base,
    check_guard,
    check_same,
    next_version,
    right_to_guard,
)

T = TypeVar("T")
Rows = list[Any]
Transaction = Generator[tuple[str, tuple[Any, ...]], Rows, T]


class Checked(str):
    """A statement that is not kept back: if its key is taken, DuplicateNode is thrown into the script."""

    __slots__ = ()


DEPTH_MAX = 2048
"""Half of PATH_MAX: no path is deeper."""
LINKS_MAX = 65_000
"""Names of one node; what ext4 allows."""


class Dialect(NamedTuple):
    """Where the engines differ."""

    share: str
    """Lock a row that must not go away."""
    update: str
    """Lock a row to change it."""
    blob: str
    serial: str
    xid: str
    """Number of the running transaction."""
    settled: str
    """Rows of the change log below which no transaction can still appear."""
    without_rowid: str
    after: str
    """Condition on a row of the change log, given a cursor's xid and seq."""
    order: str
    """Order of the change log."""
    change_index: str
    """What that order needs besides the primary key."""
    placeholder: str


MIGRATIONS = [
    """
    CREATE TABLE space (space INTEGER PRIMARY KEY, secret {blob} NOT NULL, created_ns BIGINT NOT NULL,
        synced BIGINT NOT NULL);
    CREATE TABLE node (space INTEGER NOT NULL, id BIGINT NOT NULL, kind TEXT NOT NULL, version BIGINT NOT NULL,
        length BIGINT NOT NULL, mode INTEGER NOT NULL, uid BIGINT NOT NULL, gid BIGINT NOT NULL,
        nlink INTEGER NOT NULL, atime_ns BIGINT NOT NULL, mtime_ns BIGINT NOT NULL, ctime_ns BIGINT NOT NULL,
        btime_ns BIGINT NOT NULL, owner TEXT NOT NULL, target {blob} NOT NULL, public INTEGER NOT NULL,
        group_read TEXT NOT NULL, group_write TEXT NOT NULL, immutable INTEGER NOT NULL, content_type TEXT NOT NULL,
        md5 TEXT NOT NULL, parent BIGINT NOT NULL, PRIMARY KEY (space, id)) {without_rowid};
    CREATE TABLE name (space INTEGER NOT NULL, parent BIGINT NOT NULL, name {blob} NOT NULL, node BIGINT NOT NULL,
        PRIMARY KEY (space, parent, name)) {without_rowid};
    CREATE TABLE property (space INTEGER NOT NULL, node BIGINT NOT NULL, uri TEXT NOT NULL, value TEXT NOT NULL,
        PRIMARY KEY (space, node, uri)) {without_rowid};
    CREATE TABLE extent (space INTEGER NOT NULL, node BIGINT NOT NULL, start BIGINT NOT NULL, stop BIGINT NOT NULL,
        locator TEXT NOT NULL, start_in_blob BIGINT NOT NULL, data {blob} NOT NULL,
        PRIMARY KEY (space, node, start)) {without_rowid};
    CREATE INDEX extent_locator ON extent (space, locator) WHERE locator <> '';
    CREATE TABLE blob (space INTEGER NOT NULL, locator TEXT NOT NULL, length BIGINT NOT NULL, crc32 BIGINT NOT NULL,
        unreferenced_ns BIGINT, PRIMARY KEY (space, locator)) {without_rowid};
    CREATE INDEX blob_unreferenced ON blob (space, unreferenced_ns) WHERE unreferenced_ns IS NOT NULL;
    CREATE TABLE trash (space INTEGER NOT NULL, node BIGINT NOT NULL, PRIMARY KEY (space, node)) {without_rowid};
    CREATE TABLE change (seq {serial}, space INTEGER NOT NULL, xid BIGINT NOT NULL, node BIGINT NOT NULL,
        parent BIGINT NOT NULL, name {blob} NOT NULL, origin TEXT NOT NULL, at_ns BIGINT NOT NULL);
    {change_index};
    CREATE TABLE account (name TEXT PRIMARY KEY, password TEXT NOT NULL, groups TEXT NOT NULL);
    CREATE TABLE token (digest {blob} PRIMARY KEY, account TEXT NOT NULL, expires_ns BIGINT NOT NULL);
    CREATE TABLE job (space INTEGER NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL, phase TEXT NOT NULL,
        document TEXT NOT NULL, created_ns BIGINT NOT NULL, PRIMARY KEY (space, id)) {without_rowid};
    """,
    """
    DROP TABLE trash;
    CREATE INDEX node_trash ON node (space, id) WHERE nlink = 0;
    DROP TABLE job;
    CREATE TABLE job (space INTEGER NOT NULL, id TEXT NOT NULL, kind TEXT NOT NULL, owner TEXT NOT NULL,
        phase TEXT NOT NULL, created_ns BIGINT NOT NULL, destruction_ns BIGINT NOT NULL, document TEXT NOT NULL,
        PRIMARY KEY (space, id)) {without_rowid};
    CREATE INDEX job_owner ON job (space, owner, created_ns);
    CREATE INDEX node_undigested ON node (space, ctime_ns) WHERE md5 = '' AND kind = 'data' AND length > 0
        AND immutable = 0 AND nlink > 0;
    CREATE TABLE certificate (name TEXT PRIMARY KEY, account TEXT NOT NULL);
    """,
    """
    ALTER TABLE node ADD COLUMN device BIGINT NOT NULL DEFAULT 0;
    """,
    """
    ALTER TABLE node ADD COLUMN containers BIGINT NOT NULL DEFAULT 0;
    UPDATE node SET containers = (SELECT count(*) FROM name m JOIN node n ON n.space = m.space AND n.id = m.node
        WHERE m.space = node.space AND m.parent = node.id AND n.kind = 'container') WHERE kind = 'container';
    """,
    """
    ALTER TABLE node ADD COLUMN storage TEXT NOT NULL DEFAULT '';
    CREATE TABLE part (space INTEGER NOT NULL, part TEXT NOT NULL, locator TEXT NOT NULL,
        PRIMARY KEY (space, part, locator)) {without_rowid};
    """,
    """
    ALTER TABLE node ADD COLUMN quota BIGINT NOT NULL DEFAULT 0;
    CREATE TABLE quota (space INTEGER NOT NULL, node BIGINT NOT NULL, above BIGINT NOT NULL,
        bytes_max BIGINT NOT NULL, used BIGINT NOT NULL, PRIMARY KEY (space, node)) {without_rowid};
    """,
]
"""Schema versions, oldest first: append, never edit."""

NODE_COLUMNS = ", ".join("n." + field for field in Node.__struct_fields__)
_NODE = f"SELECT {NODE_COLUMNS} FROM node n WHERE n.space = ? AND n.id = ?"
# Without statistics PostgreSQL finds a node by its space no dearer than by its whole key: a page of 1000 children read
# every node of the space for each child (1.8 s among 20 000, now 2 ms).  So a node's key is compared with values, and
# where a join gives it, the space is the result of an expression, which that plan cannot use.
_CHILD_ID = "(SELECT m.node FROM name m WHERE m.space = ? AND m.parent = ? AND m.name = ?)"
CHILD = f"SELECT {NODE_COLUMNS} FROM node n WHERE n.space = ? AND n.id = {_CHILD_ID}"
_FIND = f"SELECT {NODE_COLUMNS}, e.start, e.stop, e.locator, e.start_in_blob, e.data FROM node n LEFT JOIN extent e ON e.space = n.space AND e.node = n.id WHERE n.space = ? AND n.id = {_CHILD_ID} ORDER BY e.start LIMIT ?"
_CHILDREN = f"SELECT m.name, {NODE_COLUMNS} FROM name m JOIN node n ON n.space = m.space + 0 AND n.id = m.node WHERE m.space = ? AND m.parent = ? AND m.name {{op}} ? ORDER BY m.name LIMIT ?"
CHILDREN_AFTER, CHILDREN_FROM = _CHILDREN.replace("{op}", ">"), _CHILDREN.replace("{op}", ">=")
# A container's parent is in its row: no index on names by node, one page fewer to write at every create and rename.
INSERT_NODE = f"INSERT INTO node (space, {', '.join(Node.__struct_fields__)}, parent) VALUES ({', '.join('?' * (len(Node.__struct_fields__) + 2))})"
INSERT_NAME = "INSERT INTO name (space, parent, name, node) VALUES (?, ?, ?, ?)"
DELETE_NAME = "DELETE FROM name WHERE space = ? AND parent = ? AND name = ?"
_TOUCH = "UPDATE node SET mtime_ns = ?, ctime_ns = ?, containers = containers + ? WHERE space = ? AND id = ?"
LOG_ROWS_MAX = 8
"""Of the change log that one statement writes."""
_CHANGES = [
    f"INSERT INTO change (space, xid, node, parent, name, origin, at_ns) VALUES {', '.join(['(?, {xid}, ?, ?, ?, ?, ?)'] * rows)}"
    for rows in range(LOG_ROWS_MAX + 1)
]
_PROPERTIES = "SELECT uri, value FROM property WHERE space = ? AND node = ? ORDER BY uri"
_EXTENTS = "SELECT start, stop, locator, start_in_blob, data FROM extent WHERE space = ? AND node = ? ORDER BY start"
_INSERT_EXTENT = (
    "INSERT INTO extent (space, node, start, stop, locator, start_in_blob, data) VALUES (?, ?, ?, ?, ?, ?, ?)"
)


PURGE_NODES = 50
_IN = f"IN ({', '.join('?' * PURGE_NODES)})"


LogRow = tuple[int, int, bytes, int]
"""A node, the container and the name if one changed, and when."""


class Held:
    """What a transaction of several steps keeps from one to the next (``sqlsteps.py``)."""

    def __init__(self) -> None:
        self.containers: dict[int, Node] = {}
        """Locked, and found writable."""
        self.touched: dict[int, tuple[int, int]] = {}
        """Of containers whose names changed: when, and how many containers came in; their rows do not say so yet."""
        self.log: list[LogRow] = []
        """What is still to be written into the change log."""

    def touch(self, id: int, now_ns: int, containers: int) -> None:
        """Remember to ``touch``."""
        _, before = self.touched.get(id, (0, 0))
        self.touched[id] = now_ns, before + containers

    def settle(self, f: "Frame") -> Transaction[None]:
        """Write what is not, and look anew at containers."""
        for id, (now_ns, containers) in self.touched.items():
            yield from write_touch(f, id, now_ns, containers)
        self.touched.clear()
        self.containers.clear()


class Frame(NamedTuple):
    """What every transaction knows: its space, its caller, its time."""

    space: int
    caller: Caller
    now_ns: int
    held: Held | None = None


def duplicate(statement: str, parameters: tuple[Any, ...], why: str) -> DuplicateNode:
    """What an adapter raises when a key is taken."""
    return DuplicateNode(repr(parameters[2]) if statement == INSERT_NAME else why)


# -- reading ---------------------------------------------------------------------------------------------------


def get(f: Frame, id: int, lock: str = "") -> Transaction[Node]:
    rows = yield _NODE + lock, (f.space, id)
    if not rows:
        raise NodeNotFound(f"node {id}")
    return Node(*rows[0])


def container_of(f: Frame, id: int, lock: str = "") -> Transaction[Node]:
    node = yield from get(f, id, lock)
    if node.kind != CONTAINER:
        raise NotContainer(f"node {id} is not a container")
    return node


def lookup(f: Frame, parent: int, name: bytes) -> Transaction[Node]:
    container = yield from container_of(f, parent)
    f.caller.permit(container, READ)
    rows = yield CHILD, (f.space, f.space, parent, name)
    if not rows:
        raise NodeNotFound(repr(name))
    return Node(*rows[0])


def find(f: Frame, parent: int, name: bytes) -> Transaction[Found]:
    container = yield from container_of(f, parent)
    f.caller.permit(container, READ)
    # One statement, so that node and extents are of one moment.
    rows = yield _FIND, (f.space, f.space, parent, name, FOUND_EXTENTS_MAX + 1)
    if not rows:
        raise NodeNotFound(repr(name))
    node = Node(*rows[0][:-5])
    extents = [Extent(a, b, locator, at, bytes(data)) for *_, a, b, locator, at, data in rows if a is not None]
    return Found(node, found_extents(node, extents, f.caller))


def found_extents(node: Node, extents: list[Extent], caller: Caller) -> list[Extent] | None:
    """What of a node's extents a look-up answers with."""
    short = len(extents) <= FOUND_EXTENTS_MAX and sum(len(e.data) for e in extents) <= FOUND_BYTES_MAX
    if node.kind != DATA or not short:
        return None
    try:
        caller.permit(node, READ)
    except PermissionDenied:
        return None
    return extents


def children(f: Frame, parent: int, after: bytes, limit: int) -> Transaction[list[tuple[bytes, Node]]]:
    container = yield from container_of(f, parent)
    f.caller.permit(container, READ)
    rows = yield CHILDREN_AFTER, (f.space, parent, after, limit)
    return [(bytes(row[0]), Node(*row[1:])) for row in rows]


def children_with_properties(
    f: Frame, parent: int, start: bytes, limit: int
) -> Transaction[list[tuple[bytes, Node, dict[str, str]]]]:
    yield from container_of(f, parent)
    rows = yield CHILDREN_FROM, (f.space, parent, start, limit)
    if not rows:
        return []
    found: dict[int, dict[str, str]] = {}
    properties = yield (
        (
            "SELECT p.node, p.uri, p.value FROM name m JOIN property p ON p.space = m.space + 0 AND p.node = m.node"
            " WHERE m.space = ? AND m.parent = ? AND m.name >= ? AND m.name <= ?"
        ),
        (f.space, parent, start, bytes(rows[-1][0])),
    )
    for node, uri, value in properties:
        found.setdefault(node, {})[uri] = value
    return [(bytes(row[0]), Node(*row[1:]), found.get(row[1], {})) for row in rows]


def trace(f: Frame, path: tuple[bytes, ...]) -> Transaction[tuple[list[Node], dict[str, str]]]:
    chain: list[Node] = []
    at = ROOT_ID
    for start in range(0, max(1, len(path)), TRACE_NAMES):
        names = path[start : start + TRACE_NAMES]
        rows = yield _TRACES[len(names)], (f.space, at, *names)
        nodes = {row[0]: Node(*row[1:-2]) for row in rows}
        found = [nodes[depth] for depth in sorted(nodes)]
        chain += found[1:] if chain else found
        if len(found) <= len(names):
            return chain, {}
        at = found[-1].id
    return chain, dict(sorted(row[-2:] for row in rows if row[-2] is not None))


TRACE_NAMES = 8
"""Of a path that are looked up by one statement."""


def _trace_statement(names: int) -> str:
    """The nodes along so many names, and the properties of the last.

    Each node is found by keys alone, from the root again: a recursive query is shorter, but without statistics
    PostgreSQL read the whole space for it (270 µs for four names among 1000 nodes, 70 this way).
    """
    ids = ["?2"]
    for name in range(names):
        ids.append(f"(SELECT node FROM name WHERE space = ?1 AND parent = {ids[-1]} AND name = ?{name + 3})")
    chain = [
        f"SELECT {depth}, {NODE_COLUMNS}, NULL, NULL FROM node n WHERE n.space = ?1 AND n.id = {id}"
        for depth, id in enumerate(ids[:-1])
    ]
    last = (
        f"SELECT {names}, {NODE_COLUMNS}, p.uri, p.value FROM node n LEFT JOIN property p ON p.space = n.space"
        f" AND p.node = n.id WHERE n.space = ?1 AND n.id = {ids[-1]}"
    )
    return " UNION ALL ".join([*chain, last])


_TRACES = [_trace_statement(names) for names in range(TRACE_NAMES + 1)]


def properties(f: Frame, id: int) -> Transaction[dict[str, str]]:
    yield from get(f, id)
    rows = yield _PROPERTIES, (f.space, id)
    return dict(rows)


def extents_of(f: Frame, id: int) -> Transaction[list[Extent]]:
    rows = yield _EXTENTS, (f.space, id)
    return [Extent(start, stop, locator, at, bytes(data)) for start, stop, locator, at, data in rows]


def open_data(f: Frame, id: int) -> Transaction[Content]:
    node = yield from get(f, id, "{share}")
    if node.kind == CONTAINER:
        raise IsContainer(f"node {id} is a container")
    f.caller.permit(node, READ)
    extents = yield from extents_of(f, id)
    return Content(node, extents)


# -- changing the tree -----------------------------------------------------------------------------------------


def log_change(f: Frame, node: int, parent: int = 0, name: bytes = b"") -> Transaction[None]:
    row = node, parent, name, f.now_ns
    if f.held is None:
        yield from write_log(f, [row])
    else:
        f.held.log.append(row)


def write_log(f: Frame, rows: list[LogRow]) -> Transaction[None]:
    """``log_change`` of many, in their order."""
    for at in range(0, len(rows), LOG_ROWS_MAX):
        some = rows[at : at + LOG_ROWS_MAX]
        values: list[Any] = []
        for node, parent, name, at_ns in some:
            values += f.space, node, parent, name, f.caller.origin, at_ns
        yield _CHANGES[len(some)], tuple(values)


def writable(f: Frame, id: int) -> Transaction[Node]:
    """The container ``id``, locked, in which the caller may change names."""
    if f.held is not None and id in f.held.containers:
        return f.held.containers[id]
    rows = yield _NODE + "{update}", (f.space, id)
    container = _writable(f, id, rows)
    if f.held is not None:
        f.held.containers[id] = container
    return container


def _writable(f: Frame, id: int, rows: Rows) -> Node:
    if not rows:
        raise NodeNotFound(f"node {id}")
    container = Node(*rows[0])
    check_writable(f, id, container)
    return container


def check_writable(f: Frame, id: int, container: Node) -> None:
    """NodeNotFound, NotContainer, PermissionDenied, Immutable or NodeLocked unless the caller may change names in it."""
    if container.kind != CONTAINER:
        raise NotContainer(f"node {id} is not a container")
    f.caller.permit(container, WRITE)
    check_guard(container, f"container {id}")
    if container.nlink == 0:
        raise NodeNotFound(f"container {id} was deleted")


def touch(f: Frame, id: int, containers: int = 0) -> Transaction[None]:
    """Names in a container changed, and that many containers came into it."""
    if f.held is not None:
        f.held.touch(id, f.now_ns, containers)
        return
    yield from write_touch(f, id, f.now_ns, containers)


def write_touch(f: Frame, id: int, now_ns: int, containers: int) -> Transaction[None]:
    """``touch`` as of a moment."""
    yield _TOUCH, (now_ns, now_ns, containers, f.space, id)


def create(f: Frame, parent: int, name: bytes, new: NewNode, id: int = 0) -> Transaction[Node]:
    container = yield from writable(f, parent)
    node = made(new, id or new_id(), f.now_ns, container)
    yield INSERT_NAME, (f.space, parent, name, node.id)
    yield INSERT_NODE, (f.space, *msgspec.structs.astuple(node), parent)
    yield from describe(f, node.id, new.properties)
    yield from touch(f, parent, int(new.kind == CONTAINER))
    yield from log_change(f, node.id, parent, name)
    return node


def describe(f: Frame, id: int, properties: dict[str, str]) -> Transaction[None]:
    """Give a node its first properties."""
    for uri, value in properties.items():
        yield "INSERT INTO property (space, node, uri, value) VALUES (?, ?, ?, ?)", (f.space, id, uri, value)


def link(f: Frame, id: int, parent: int, name: bytes) -> Transaction[Node]:
    container = yield from writable(f, parent)
    node = yield from get(f, id, "{update}")
    if node.kind == CONTAINER:
        raise PermissionDenied("a container has one name")
    # A name in one's own container would make a stranger's node readable by path.
    f.caller.permit(node, WRITE)
    if node.nlink == 0:
        raise NodeNotFound(f"node {id} was deleted")
    if node.nlink >= LINKS_MAX:
        raise TooManyLinks(f"node {id} has {node.nlink} names")
    if node.quota != container.quota:
        raise CrossDevice(f"node {id} is under another quota")
    yield INSERT_NAME, (f.space, parent, name, id)
    node = msgspec.structs.replace(node, nlink=node.nlink + 1, ctime_ns=f.now_ns)
    yield from _set_links(f, node)
    yield from touch(f, parent)
    yield from log_change(f, id, parent, name)
    return node


def _set_links(f: Frame, node: Node) -> Transaction[None]:
    yield (
        "UPDATE node SET nlink = ?, ctime_ns = ? WHERE space = ? AND id = ?",
        (node.nlink, node.ctime_ns, f.space, node.id),
    )


def _empty(f: Frame, id: int) -> Transaction[bool]:
    rows = yield "SELECT 1 FROM name WHERE space = ? AND parent = ? LIMIT 1", (f.space, id)
    return not rows


def drop(f: Frame, node: Node) -> Transaction[Node]:
    """One name fewer."""
    node = yield from _unname(f, node)
    if not node.nlink:
        yield from charges.released(f.space, node)
    return node


def _unname(f: Frame, node: Node) -> Transaction[Node]:
    node = msgspec.structs.replace(node, nlink=node.nlink - 1, ctime_ns=f.now_ns)
    yield from _set_links(f, node)
    return node


def remove(f: Frame, parent: int, name: bytes, kind: str, id: int = 0) -> Transaction[Node]:
    yield from writable(f, parent)
    rows = yield CHILD + "{update}", (f.space, f.space, parent, name)
    if not rows:
        raise NodeNotFound(repr(name))
    node = Node(*rows[0])
    check_same(node, id, name)
    check_guard(node, repr(name))
    if kind == "leaf" and node.kind == CONTAINER:
        raise IsContainer(f"{name!r} is a container")
    if kind == "empty":
        if node.kind != CONTAINER:
            raise NotContainer(f"{name!r} is not a container")
        if not (yield from _empty(f, node.id)):
            raise ContainerNotEmpty(repr(name))
    if kind == "tree" and node.kind == CONTAINER:
        f.caller.permit(node, WRITE)
    yield DELETE_NAME, (f.space, parent, name)
    node = yield from drop(f, node)
    yield from touch(f, parent, -int(node.kind == CONTAINER))
    yield from log_change(f, node.id, parent, name)
    return node


def _no_cycle(f: Frame, moved: int, into: int) -> Transaction[None]:
    """InvalidArgument if ``into`` is ``moved`` or below it (EINVAL of rename(2))."""
    at = into
    while at != ROOT_ID:
        if at == moved:
            raise InvalidArgument("Cannot move container node into its descendants")
        rows = yield "SELECT parent, nlink FROM node WHERE space = ? AND id = ?", (f.space, at)
        if not rows or not rows[0][1]:
            raise NodeNotFound(f"container {into} was deleted")
        at = rows[0][0]


def rename(
    f: Frame, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str, id: int = 0
) -> Transaction[Renamed]:
    # Two crossing moves of containers would each pass the cycle check under READ COMMITTED: one at a time.
    if parent != to_parent:
        yield "SELECT 1 FROM space WHERE space = ?{update}", (f.space,)
    # Locked in the order of their ids, so that no two moves wait for each other; judged in the order they were named.
    held = {} if f.held is None else f.held.containers
    found = {}
    for container in sorted({parent, to_parent} - held.keys()):
        found[container] = yield _NODE + "{update}", (f.space, container)
    source, target = (held.get(at) or _writable(f, at, found[at]) for at in (parent, to_parent))
    rows = yield CHILD + "{update}", (f.space, f.space, parent, name)
    if not rows:
        raise NodeNotFound(repr(name))
    node = Node(*rows[0])
    check_same(node, id, name)
    rows = yield CHILD + "{update}", (f.space, f.space, to_parent, to_name)
    other = Node(*rows[0]) if rows else None
    if f.held is not None:
        if CONTAINER not in (node.kind, other and other.kind):
            held[parent], held[to_parent] = source, target
        elif held or f.held.touched:
            # One of them may be held, and its row not say what happened in it.
            yield from f.held.settle(f)
            return (yield from rename(f, parent, name, to_parent, to_name, flag, id))
    check_guard(node, repr(name))
    if other is not None:
        check_guard(other, repr(to_name))
    if node.kind == CONTAINER and parent != to_parent:
        yield from _no_cycle(f, node.id, to_parent)
    if flag == "exchange":
        if other is None:
            raise NodeNotFound(repr(to_name))
        if other.kind == CONTAINER and parent != to_parent:
            yield from _no_cycle(f, other.id, parent)
        yield from _point(f, parent, name, other.id)
        yield from _point(f, to_parent, to_name, node.id)
        gone = None
    elif other is None:
        yield (
            "UPDATE name SET parent = ?, name = ? WHERE space = ? AND parent = ? AND name = ?",
            (to_parent, to_name, f.space, parent, name),
        )
        gone = None
    else:
        gone = yield from _replace(f, node, other, parent, name, to_parent, to_name, flag)
        if gone is None:
            return Renamed(node, None)
    before, node = node, (yield from charges.move(f.space, node, source.quota, target.quota))
    if node.kind == CONTAINER and node.quota != before.quota:
        yield from log_change(f, ANYTHING)
    yield (
        "UPDATE node SET ctime_ns = ?, parent = ? WHERE space = ? AND id = ?",
        (f.now_ns, to_parent, f.space, node.id),
    )
    if flag == "exchange" and other is not None:
        after = yield from charges.move(f.space, other, target.quota, source.quota)
        if other.kind == CONTAINER and after.quota != other.quota:
            yield from log_change(f, ANYTHING)
        yield (
            "UPDATE node SET ctime_ns = ?, parent = ? WHERE space = ? AND id = ?",
            (f.now_ns, parent, f.space, other.id),
        )
    came = {parent: 0, to_parent: 0}
    for moved, left, joined in ((node, parent, to_parent), (other, to_parent, parent)):
        if moved is not None and moved.kind == CONTAINER:
            came[left] -= 1
            came[joined] += int(moved is node or flag == "exchange")
    for id in sorted(came):
        yield from touch(f, id, came[id])
    yield from log_change(f, node.id, parent, name)
    yield from log_change(f, other.id if other else node.id, to_parent, to_name)
    return Renamed(msgspec.structs.replace(node, ctime_ns=f.now_ns), gone)


def _point(f: Frame, parent: int, name: bytes, node: int) -> Transaction[None]:
    yield "UPDATE name SET node = ? WHERE space = ? AND parent = ? AND name = ?", (node, f.space, parent, name)


def _replace(
    f: Frame, node: Node, other: Node, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str
) -> Transaction[Node | None]:
    """rename over ``other``; None when both names are already the same node, which rename(2) leaves alone."""
    if flag == "keep":
        raise DuplicateNode(repr(to_name))
    if other.id == node.id:
        return None
    if other.kind == CONTAINER:
        if node.kind != CONTAINER:
            raise IsContainer(repr(to_name))
        if not (yield from _empty(f, other.id)):
            raise ContainerNotEmpty(repr(to_name))
    elif node.kind == CONTAINER:
        raise NotContainer(repr(to_name))
    yield DELETE_NAME, (f.space, parent, name)
    yield from _point(f, to_parent, to_name, node.id)
    return (yield from drop(f, other))


# -- changing a node -------------------------------------------------------------------------------------------


def check_changeable(f: Frame, node: Node, right: str) -> None:
    """PermissionDenied, Immutable or NodeLocked unless the caller may change this of a node."""
    f.caller.permit(node, right)
    check_guard(node, f"node {node.id}")


OWNER_FIELDS = ("mode", "uid", "gid", "public", "group_read", "group_write")


def set_attributes(f: Frame, id: int, change: Attributes) -> Transaction[Node]:
    node = yield from get(f, id, "{update}")
    fields = new_attributes(f, node, change)
    assignments = ", ".join(f"{key} = ?" for key in fields)
    yield f"UPDATE node SET {assignments} WHERE space = ? AND id = ?", (*fields.values(), f.space, id)
    yield from log_change(f, id)
    return msgspec.structs.replace(node, **fields)


def new_attributes(f: Frame, node: Node, change: Attributes) -> dict[str, Any]:
    """What a change makes of a node's fields.  PermissionDenied, Immutable, NodeLocked."""
    fields = {key: value for key, value in msgspec.structs.asdict(change).items() if value is not None}
    if "immutable" in fields:
        f.caller.permit(node, right_to_guard(node, fields["immutable"]))
    else:
        check_changeable(f, node, OWN if any(key in fields for key in OWNER_FIELDS) else WRITE)
    if "target" in fields:
        fields["length"] = len(fields["target"])
    fields["ctime_ns"] = f.now_ns
    return fields


def set_properties(f: Frame, id: int, change: dict[str, str | None], clear: bool) -> Transaction[Node]:
    # A read-only node can still be described (R326).
    node = yield from get(f, id, "{update}")
    f.caller.permit(node, WRITE)
    if clear:
        yield "DELETE FROM property WHERE space = ? AND node = ?", (f.space, id)
    for uri, value in change.items():
        yield "DELETE FROM property WHERE space = ? AND node = ? AND uri = ?", (f.space, id, uri)
        if value is not None:
            yield "INSERT INTO property (space, node, uri, value) VALUES (?, ?, ?, ?)", (f.space, id, uri, value)
    yield "UPDATE node SET ctime_ns = ? WHERE space = ? AND id = ?", (f.now_ns, f.space, id)
    yield from log_change(f, id)
    return msgspec.structs.replace(node, ctime_ns=f.now_ns)


def commit(
    f: Frame, id: int, base_version: int | None, length: int, changes: list[Extent], blobs: list[Blob],
    mtime_ns: int | None, md5: str, atime_ns: int | None = None, version: int = 0, log: bool = True,
) -> Transaction[Content]:  # fmt: skip
    node = yield from get(f, id, "{update}")
    check_saved(f, node, base_version)
    old = (yield from extents_of(f, id)) if node.length else []
    done = saved(f, node, old, length, changes, blobs, mtime_ns, md5, atime_ns, version)
    for blob in blobs:
        yield from record(f, blob)
    yield from _swap_extents(f, id, old, done.extents)
    # Also a blob that later changes of the same commit covered, or that lies beyond the end.
    yield from release(f, left_over(old, blobs, done.extents))
    yield (
        "UPDATE node SET length = ?, version = ?, atime_ns = ?, mtime_ns = ?, ctime_ns = ?, md5 = ?"
        " WHERE space = ? AND id = ?",
        (length, done.node.version, done.node.atime_ns, done.node.mtime_ns, f.now_ns, md5, f.space, id),
    )
    if log:
        yield from log_change(f, id)
    if node.quota:
        # Last: others under the same quota wait from here on.
        yield from charges.charge(f.space, node.quota, length - node.length)
    return done


def check_saved(f: Frame, node: Node, base_version: int | None) -> None:
    """Raise unless the caller may save bytes on top of this version of a node."""
    check_changeable(f, node, WRITE)
    check_base(node, base_version)


def saved(
    f: Frame, node: Node, old: list[Extent], length: int, changes: list[Extent], blobs: list[Blob],
    mtime_ns: int | None, md5: str, atime_ns: int | None, version: int,
) -> Content:  # fmt: skip
    """What a commit makes of a content.  InvalidArgument."""
    if not content.locators(changes) <= content.locators(old) | {b.locator for b in blobs}:
        raise InvalidArgument("an extent names a blob that was not uploaded for it")
    node = msgspec.structs.replace(
        node, length=length, version=next_version(node.version, version), ctime_ns=f.now_ns, md5=md5,
        mtime_ns=f.now_ns if mtime_ns is None else mtime_ns,
        atime_ns=node.atime_ns if atime_ns is None else atime_ns,
    )  # fmt: skip
    return Content(node, content.apply(old, changes, length))


def left_over(old: list[Extent], blobs: list[Blob], new: list[Extent]) -> set[str]:
    """Blobs that a commit leaves nothing of."""
    return (content.locators(old) | {b.locator for b in blobs}) - content.locators(new)


def record(f: Frame, blob: Blob) -> Transaction[None]:
    """Nodes stand on a blob from now on."""
    yield (
        "INSERT INTO blob (space, locator, length, crc32, unreferenced_ns) VALUES (?, ?, ?, ?, NULL)"
        " ON CONFLICT (space, locator) DO UPDATE SET unreferenced_ns = NULL",
        (f.space, blob.locator, blob.length, blob.crc32),
    )
    if COPY in blob.locator:
        for part in parts(blob.locator):
            yield (
                "INSERT INTO part (space, part, locator) VALUES (?, ?, ?) ON CONFLICT (space, part, locator) DO NOTHING",
                (f.space, part, blob.locator),
            )


def _swap_extents(f: Frame, id: int, old: list[Extent], new: list[Extent]) -> Transaction[None]:
    """Write the difference, not the list: a 4 KiB change of a file of 500 extents touches two rows."""
    before = {e.start: e for e in old}
    after = {e.start: e for e in new}
    for start, extent in before.items():
        if after.get(start) != extent:
            yield "DELETE FROM extent WHERE space = ? AND node = ? AND start = ?", (f.space, id, start)
    for start, e in after.items():
        if before.get(start) != e:
            yield from write_extent(f, id, e)


def write_extent(f: Frame, id: int, e: Extent) -> Transaction[None]:
    """A node has this extent from now on."""
    yield _INSERT_EXTENT, (f.space, id, e.start, e.stop, e.locator, e.offset, e.data)


def release(f: Frame, locators: set[str]) -> Transaction[None]:
    """These lost an extent: start the collector's clock for those that have none left."""
    for locator in locators:
        yield (
            "UPDATE blob SET unreferenced_ns = ? WHERE space = ? AND locator = ? AND NOT EXISTS"
            " (SELECT 1 FROM extent e WHERE e.space = ? AND e.locator = ? AND e.locator <> '')",
            (f.now_ns, f.space, locator, f.space, locator),
        )


def put_data(
    f: Frame, parent: int, name: bytes, new: NewNode, length: int, extents: list[Extent], blobs: list[Blob], md5: str,
    clear: bool, mtime_ns: int | None = None,
) -> Transaction[Content]:  # fmt: skip
    rows = yield CHILD + "{update}", (f.space, f.space, parent, name)
    if rows:
        node = Node(*rows[0])
        if node.kind != DATA:
            raise IsContainer(f"{name!r} holds no bytes")
        if clear:
            yield from set_properties(f, node.id, {}, True)
    else:
        node = yield from create(f, parent, name, new)
    made = not rows
    # A hole over everything first: the new bytes replace the old, they do not lie on top of them.
    changes = [Extent(0, max(node.length, length, 1)), *extents]
    return (yield from commit(f, node.id, None, length, changes, blobs, mtime_ns, md5, log=not made))


def update(f: Frame, id: int, attributes: Attributes, change: dict[str, str | None]) -> Transaction[Node]:
    node = yield from get(f, id, "{update}")
    if change:
        node = yield from set_properties(f, id, change, False)
    if attributes != Attributes():
        node = yield from set_attributes(f, id, attributes)
    return node


# -- housekeeping ----------------------------------------------------------------------------------------------


def purge(f: Frame, limit: int) -> Transaction[int]:
    rows = yield "SELECT id, kind, quota FROM node WHERE space = ? AND nlink = 0 LIMIT ?", (f.space, limit)
    done = 0
    ready = []
    freed_bytes: Counter[int] = Counter()
    for id, kind, quota in rows:
        names: Rows = []
        if kind == CONTAINER:
            names = yield "SELECT name, node FROM name WHERE space = ? AND parent = ? LIMIT ?", (f.space, id, limit)
            for name, child in names:
                yield DELETE_NAME, (f.space, id, bytes(name))
                node = yield from _unname(f, (yield from get(f, child, "{update}")))
                if not node.nlink and node.kind == DATA:
                    freed_bytes[node.quota] += node.length
                elif not node.nlink:
                    yield from charges.released(f.space, node)
        if len(names) < limit:
            ready.append(id)
            if kind == CONTAINER and quota == id:
                yield "DELETE FROM quota WHERE space = ? AND node = ?", (f.space, id)
        done += 1 + len(names)
        if done >= limit:
            break
    # Many at a time: one by one they cost more than their deletion by the user did.
    for at in range(0, len(ready), PURGE_NODES):
        batch = (f.space, *ready[at : at + PURGE_NODES], *[0] * (at + PURGE_NODES - len(ready)))
        yield f"DELETE FROM property WHERE space = ? AND node {_IN}", batch
        yield f"DELETE FROM node WHERE space = ? AND id {_IN}", batch
        freed = yield f"DELETE FROM extent WHERE space = ? AND node {_IN} RETURNING locator", batch
        yield from release(f, {row[0] for row in freed if row[0]})
    for quota, length in sorted(freed_bytes.items()):
        yield from charges.charge(f.space, quota, -length)
    return done


def changes(f: Frame, since: Cursor, limit: int) -> Transaction[tuple[Cursor, list[Change]]]:
    if since != Cursor():
        # The row that a cursor names is kept until a newer one is: gone means that rows after it may be gone too.
        known = yield "SELECT 1 FROM change WHERE space = ? AND seq = ?", (f.space, since.seq)
        if not known:
            raise Stale("the change log no longer reaches back that far")
    rows = yield (
        (
            "SELECT xid, seq, node, parent, name, origin FROM change"
            " WHERE space = ? AND {after}{settled} ORDER BY {order} LIMIT ?"
        ),
        (f.space, since.xid, since.seq, limit),
    )
    if not rows:
        return since, []
    return Cursor(rows[-1][0], rows[-1][1]), [Change(r[2], r[3], bytes(r[4]), r[5]) for r in rows]


def happened(f: Frame, moments: set[Moment]) -> Transaction[set[Moment]]:
    if not moments:
        return set()
    times = [at_ns for _, at_ns in moments]
    # No index on times: one look through the rows for all of a batch, which is of a few seconds.
    rows = yield (
        (
            "SELECT node, at_ns FROM change WHERE space = ? AND seq > (SELECT max(seq) FROM change) - ?"
            " AND at_ns >= ? AND at_ns <= ?"
        ),
        (f.space, HAPPENED_ROWS, min(times), max(times)),
    )
    return moments & {(node, at_ns) for node, at_ns in rows}


def cursor(f: Frame) -> Transaction[Cursor]:
    rows = yield (
        "SELECT xid, seq FROM change WHERE space = ?{settled} ORDER BY {descending} LIMIT 1",
        (f.space,),
    )
    return Cursor(*rows[0]) if rows else Cursor()


def trim(f: Frame, before_ns: int) -> Transaction[None]:
    # The newest row stays, so that a reader at the end of the log is never told that it fell off.
    yield (
        "DELETE FROM change WHERE space = ? AND at_ns < ? AND seq < (SELECT max(seq) FROM change WHERE space = ?)",
        (f.space, before_ns, f.space),
    )
    yield "DELETE FROM token WHERE expires_ns < ?", (f.now_ns,)


def depth(f: Frame, id: int) -> Transaction[int]:
    at, steps = id, -1
    while at != ROOT_ID and steps < DEPTH_MAX:
        rows = yield "SELECT parent FROM node WHERE space = ? AND id = ?", (f.space, at)
        if not rows:
            break
        at, steps = rows[0][0], steps + 1
    return max(steps, 0)


def undigested(f: Frame, rest_ns: int, limit: int) -> Transaction[list[int]]:
    rows = yield (
        "SELECT id FROM node WHERE space = ? AND md5 = '' AND kind = 'data' AND length > 0 AND immutable = 0"
        " AND nlink > 0 AND ctime_ns < ? ORDER BY ctime_ns LIMIT ?",
        (f.space, f.now_ns - rest_ns, limit),
    )
    return [row[0] for row in rows]


def put_digest(f: Frame, id: int, version: int, md5: str) -> Transaction[None]:
    yield "UPDATE node SET md5 = ? WHERE space = ? AND id = ? AND version = ?", (md5, f.space, id, version)


def properties_in_use(f: Frame) -> Transaction[list[str]]:
    rows = yield "SELECT DISTINCT uri FROM property WHERE space = ? LIMIT 5000", (f.space,)
    return [row[0] for row in rows]


def referenced(f: Frame, locator: str) -> Transaction[bool]:
    # Its row says so, or that of the blob it is a copy of; but what extents name is no orphan even without one.
    rows = yield (
        (
            "SELECT 1 FROM blob WHERE space = ? AND locator = ?"
            " UNION ALL SELECT 1 FROM part WHERE space = ? AND part = ?"
            " UNION ALL SELECT 1 FROM extent WHERE space = ? AND locator = ? AND locator <> '' LIMIT 1"
        ),
        (f.space, locator) * 3,
    )
    return bool(rows)


def unreferenced(f: Frame, before_ns: int, limit: int) -> Transaction[list[str]]:
    rows = yield (
        "SELECT locator FROM blob WHERE space = ? AND unreferenced_ns < ? LIMIT ?",
        (f.space, before_ns, limit),
    )
    return [row[0] for row in rows]


def renew(f: Frame, locators: list[str]) -> Transaction[None]:
    for locator in locators:
        yield (
            "UPDATE blob SET unreferenced_ns = ? WHERE space = ? AND locator = ? AND unreferenced_ns IS NOT NULL",
            (f.now_ns, f.space, locator),
        )


def forget_blobs(f: Frame, locators: list[str]) -> Transaction[list[str]]:
    forgotten = []
    for locator in locators:
        rows = yield (
            "DELETE FROM blob WHERE space = ? AND locator = ? AND unreferenced_ns IS NOT NULL RETURNING locator",
            (f.space, locator),
        )
        forgotten += [row[0] for row in rows]
        if rows and COPY in locator:
            for part in parts(locator):
                yield "DELETE FROM part WHERE space = ? AND part = ? AND locator = ?", (f.space, part, locator)
    return forgotten


def used(f: Frame) -> Transaction[int]:
    rows = yield "SELECT count(*) FROM node WHERE space = ?", (f.space,)
    return rows[0][0] - 1


def begin_space(f: Frame, owner: str) -> Transaction[None]:
    """Make the space and its root, once."""
    rows = yield "SELECT 1 FROM space WHERE space = ?{update}", (f.space,)
    if not rows:
        try:
            yield (
                Checked("INSERT INTO space (space, secret, created_ns, synced) VALUES (?, ?, ?, 0)"),
                (f.space, secrets.token_bytes(32), f.now_ns),
            )
        except DuplicateNode:
            # Another process made it at the same moment.
            return
        yield from _begin_container(f, ROOT_ID, owner)
        # The log is never empty: Cursor() means its beginning and nothing else, so a reader that stood there and was
        # overtaken by trim() can be told.
        yield from log_change(f, ROOT_ID)
    staging = yield "SELECT 1 FROM node WHERE space = ? AND id = ?", (f.space, STAGING_ID)
    if not staging:
        yield from _begin_container(f, STAGING_ID, "")


def _begin_container(f: Frame, id: int, owner: str) -> Transaction[None]:
    node = Node(
        id, CONTAINER, 1, 0, 0o755, -1, -1, 1, f.now_ns, f.now_ns, f.now_ns, f.now_ns, owner, b"", 0, "", "", 0, "",
        "", 0, 0,
    )  # fmt: skip
    yield INSERT_NODE, (f.space, *msgspec.structs.astuple(node), 0)


def secret(f: Frame) -> Transaction[bytes]:
    rows = yield "SELECT secret FROM space WHERE space = ?", (f.space,)
    return bytes(rows[0][0])


def put(f: Frame, table: str, key: tuple[str, ...], row: dict[str, Any]) -> Transaction[None]:
    """Insert or replace one row of a small table."""
    columns = ", ".join(row)
    values = ", ".join("?" * len(row))
    rest = ", ".join(f"{c} = excluded.{c}" for c in row if c not in key)
    yield (
        f"INSERT INTO {table} ({columns}) VALUES ({values}) ON CONFLICT ({', '.join(key)}) DO UPDATE SET {rest}",
        tuple(row.values()),
    )


def pick(f: Frame, table: str, columns: str, where: dict[str, Any]) -> Transaction[tuple[Any, ...] | None]:
    """One row of a small table, or None."""
    condition = " AND ".join(f"{c} = ?" for c in where)
    rows = yield f"SELECT {columns} FROM {table} WHERE {condition}", tuple(where.values())
    return tuple(rows[0]) if rows else None


Script = Callable[..., Transaction[Any]]

READS: frozenset[Script] = frozenset((
    get, lookup, find, children, children_with_properties, trace, properties, changes, cursor, referenced, unreferenced,
    used, secret, pick, properties_in_use, undigested, depth, happened,
))  # fmt: skip
"""Scripts that only look: single statements, or ones that need not see the same moment.  All others begin a
transaction before their first statement, so that what they checked still holds when they write."""
