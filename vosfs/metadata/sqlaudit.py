"""What the auditor asks, in SQL: transactions as in ``sql.py``."""

from vosfs.metadata.node import ROOT_ID, Blob, Used
from vosfs.metadata.sql import DEPTH_MAX, Frame, Transaction, record, release


def used(f: Frame, after: str, limit: int) -> Transaction[list[Used]]:
    # One statement, so that extents and what is recorded of their blobs are of one moment.
    rows = yield (
        (
            "SELECT u.locator, u.reach, b.length, b.crc32 FROM (SELECT e.locator AS locator,"
            " max(e.start_in_blob + e.stop - e.start) AS reach FROM extent e WHERE e.space = ? AND e.locator > ?"
            " AND e.locator <> '' GROUP BY e.locator ORDER BY e.locator LIMIT ?) u"
            " LEFT JOIN blob b ON b.space = ? AND b.locator = u.locator ORDER BY u.locator"
        ),
        (f.space, after, limit, f.space),
    )
    return [
        Used(locator, reach, None if length is None else Blob(locator, length, crc32))
        for locator, reach, length, crc32 in rows
    ]


def used_total(f: Frame) -> Transaction[tuple[int, int]]:
    rows = yield (
        "SELECT count(*), coalesce(sum(length), 0) FROM blob WHERE space = ? AND unreferenced_ns IS NULL",
        (f.space,),
    )
    return int(rows[0][0]), int(rows[0][1])


_IN_DEFAULT = "locator NOT LIKE '%~%' OR locator LIKE '%+%' AND (locator NOT LIKE '%~%+%' OR locator NOT LIKE '%+%~%')"
"""A copy without a storage's name."""


def stored(f: Frame, storage: str) -> Transaction[int]:
    where, values = _IN_DEFAULT, list[str]()
    if storage:
        # Names of storages hold nothing that LIKE takes for a pattern.
        where, values = "locator LIKE ? OR locator LIKE ?", [f"{storage}~%", f"%+{storage}~%"]
    rows = yield f"SELECT coalesce(sum(length), 0) FROM blob WHERE space = ? AND ({where})", (f.space, *values)
    return int(rows[0][0])


def users(f: Frame, locator: str, limit: int) -> Transaction[list[tuple[bytes, ...] | int]]:
    rows = yield (
        "SELECT DISTINCT node FROM extent WHERE space = ? AND locator = ? AND locator <> '' LIMIT ?",
        (f.space, locator, limit),
    )
    found: list[tuple[bytes, ...] | int] = []
    for (node,) in rows:
        path = yield from path_of(f, node)
        found.append(node if path is None else path)
    return found


def path_of(f: Frame, id: int) -> Transaction[tuple[bytes, ...] | None]:
    """Where a node is; None if its row does not lead to a name (it is in the trash, or its last name was another)."""
    path: list[bytes] = []
    while id != ROOT_ID and len(path) < DEPTH_MAX:
        # No index on names by node: one look through the container's names, for the few blobs that are damaged.
        rows = yield (
            (
                "SELECT m.parent, m.name FROM node n JOIN name m ON m.space = n.space + 0 AND m.parent = n.parent"
                " AND m.node = n.id WHERE n.space = ? AND n.id = ? LIMIT 1"
            ),
            (f.space, id),
        )
        if not rows:
            return None
        id = rows[0][0]
        path.append(bytes(rows[0][1]))
    return tuple(reversed(path))


def blob(f: Frame, locator: str) -> Transaction[Blob | None]:
    rows = yield "SELECT length, crc32 FROM blob WHERE space = ? AND locator = ?", (f.space, locator)
    return Blob(locator, *rows[0]) if rows else None


def relocate(f: Frame, locator: str, blob: Blob, limit: int, node: int = 0) -> Transaction[int]:
    one, values = (" AND node = ?", (node,)) if node else ("", ())
    users = (
        f"SELECT DISTINCT node FROM extent WHERE space = ? AND locator = ? AND locator <> ''{one} ORDER BY node LIMIT ?"
    )
    rows = yield users, (f.space, locator, *values, limit)
    changed = 0
    for (id,) in rows:
        # As a commit does: who changes the node's extents meanwhile sees all of them on either blob.
        yield "SELECT 1 FROM node WHERE space = ? AND id = ?{update}", (f.space, id)
        changed += len(
            (
                yield (
                    "UPDATE extent SET locator = ? WHERE space = ? AND node = ? AND locator = ? RETURNING node",
                    (blob.locator, f.space, id, locator),
                )
            )
        )
    if changed:
        yield from record(f, blob)
        yield from release(f, {locator, blob.locator})
    return len(rows)


READS = frozenset((blob, path_of, stored, used, used_total, users))
