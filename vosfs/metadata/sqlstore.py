"""The Store over SQL transactions: what SQLite and PostgreSQL share.

An adapter supplies ``_run(script, caller, durable, *arguments)``, which runs one transaction to its end.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import trio

from vosfs.errors import VOSpaceError
from vosfs.metadata import sql, sqlaudit, sqljobs, sqlquota, sqlsteps, subtree
from vosfs.metadata.job import Chosen, Job
from vosfs.metadata.node import (
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
from vosfs.metadata.store import ANYONE, CHANGES_MAX, OF_ALL, Caller, Moment, Outcome, Step

log = logging.getLogger(__name__)

READS = sql.READS | sqlaudit.READS | sqljobs.READS | sqlquota.READS


class SqlStore:
    """Store (see ``store.py`` for every method's contract) on ``sql.py``'s transactions."""

    space: int
    shared: bool
    notify: Callable[[str], None]
    """Called in the event loop after a transaction that wrote, with its caller's ``origin``."""

    async def _run(self, script: sql.Script, caller: Caller, durable: bool, *arguments: Any) -> Any:
        raise NotImplementedError

    async def sync(self) -> None:
        raise NotImplementedError

    async def snapshot(self) -> object:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    async def keep(self) -> None:
        """What the engine needs done beside transactions, until cancelled; nothing, by default."""

    def _frame(self, caller: Caller) -> sql.Frame:
        return sql.Frame(self.space, caller, time.time_ns())

    async def lookup(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        return await self._run(sql.lookup, caller, False, parent, name)

    async def find(self, parent: int, name: bytes, caller: Caller = ANYONE) -> Found:
        return await self._run(sql.find, caller, False, parent, name)

    async def get(self, id: int, caller: Caller = ANYONE) -> Node:
        return await self._run(sql.get, caller, False, id)

    async def children(
        self, parent: int, after: bytes, limit: int, caller: Caller = ANYONE
    ) -> list[tuple[bytes, Node]]:
        return await self._run(sql.children, caller, False, parent, after, limit)

    async def children_with_properties(
        self, parent: int, start: bytes, limit: int
    ) -> list[tuple[bytes, Node, dict[str, str]]]:
        return await self._run(sql.children_with_properties, ANYONE, False, parent, start, limit)

    async def trace(self, path: tuple[bytes, ...]) -> tuple[list[Node], dict[str, str]]:
        return await self._run(sql.trace, ANYONE, False, path)

    async def create(
        self, parent: int, name: bytes, new: NewNode, caller: Caller = ANYONE, id: int = 0, durable: bool = False
    ) -> Node:
        return await self._run(sql.create, caller, durable, parent, name, new, id)

    async def link(self, id: int, parent: int, name: bytes, caller: Caller = ANYONE) -> Node:
        return await self._run(sql.link, caller, False, id, parent, name)

    async def remove(
        self, parent: int, name: bytes, kind: str, caller: Caller = ANYONE, id: int = 0, durable: bool = False
    ) -> Node:
        return await self._run(sql.remove, caller, durable, parent, name, kind, id)

    async def rename(
        self, parent: int, name: bytes, to_parent: int, to_name: bytes, flag: str = "", caller: Caller = ANYONE,
        id: int = 0, durable: bool = False,
    ) -> Renamed:  # fmt: skip
        return await self._run(sql.rename, caller, durable, parent, name, to_parent, to_name, flag, id)

    async def set_attributes(self, id: int, change: Attributes, caller: Caller = ANYONE) -> Node:
        return await self._run(sql.set_attributes, caller, False, id, change)

    async def open(self, id: int, caller: Caller = ANYONE) -> Content:
        return await self._run(sql.open_data, caller, False, id)

    async def commit(
        self, id: int, base_version: int | None, length: int, changes: list[Extent], blobs: list[Blob],
        mtime_ns: int | None = None, md5: str = "", atime_ns: int | None = None, durable: bool = False,
        caller: Caller = ANYONE,
    ) -> Content:  # fmt: skip
        return await self._run(
            sql.commit, caller, durable, id, base_version, length, changes, blobs, mtime_ns, md5, atime_ns
        )

    async def put_data(
        self, parent: int, name: bytes, new: NewNode, length: int, extents: list[Extent], blobs: list[Blob], md5: str,
        clear: bool = False, caller: Caller = ANYONE, durable: bool = True,
        mtime_ns: int | None = None,
    ) -> Content:  # fmt: skip
        return await self._run(
            sql.put_data, caller, durable, parent, name, new, length, extents, blobs, md5, clear, mtime_ns
        )

    async def apply(self, steps: list[Step], caller: Caller = ANYONE, durable: bool = False) -> list[Outcome]:
        if len(steps) > 1:
            try:
                return await self._run(sqlsteps.apply, caller, durable, steps)
            except OF_ALL:
                raise
            except VOSpaceError as exc:
                log.debug("not all of %d steps can be done (%s): one by one", len(steps), exc)
        outcomes: list[Outcome] = []
        for step in steps:
            try:
                outcomes += await self._run(sqlsteps.apply, caller, False, [step])
            except OF_ALL:
                raise
            except VOSpaceError as exc:
                outcomes.append(exc)
        if durable:
            await self.sync()
        return outcomes

    async def happened(self, moments: set[Moment]) -> set[Moment]:
        return await self._run(sql.happened, ANYONE, False, moments)

    async def depth(self, id: int) -> int:
        return await self._run(sql.depth, ANYONE, False, id)

    async def update(
        self, id: int, attributes: Attributes, change: dict[str, str | None], caller: Caller = ANYONE,
        durable: bool = True,
    ) -> Node:  # fmt: skip
        return await self._run(sql.update, caller, durable, id, attributes, change)

    async def properties(self, id: int, caller: Caller = ANYONE) -> dict[str, str]:
        return await self._run(sql.properties, caller, False, id)

    async def set_properties(
        self, id: int, change: dict[str, str | None], clear: bool = False, caller: Caller = ANYONE
    ) -> Node:
        return await self._run(sql.set_properties, caller, False, id, change, clear)

    async def usage(self) -> Usage:
        return Usage(0, 0, await self._run(sql.used, ANYONE, False))

    async def changes(self, since: Cursor, limit: int = CHANGES_MAX) -> tuple[Cursor, list[Change]]:
        return await self._run(sql.changes, ANYONE, False, since, limit)

    async def cursor(self) -> Cursor:
        return await self._run(sql.cursor, ANYONE, False)

    async def undigested(self, rest_ns: int, limit: int) -> list[int]:
        return await self._run(sql.undigested, ANYONE, False, rest_ns, limit)

    async def put_digest(self, id: int, version: int, md5: str) -> None:
        await self._run(sql.put_digest, ANYONE, False, id, version, md5)

    async def properties_in_use(self) -> list[str]:
        return await self._run(sql.properties_in_use, ANYONE, False)

    async def referenced(self, locator: str) -> bool:
        return await self._run(sql.referenced, ANYONE, False, locator)

    async def used(self, after: str, limit: int) -> list[Used]:
        return await self._run(sqlaudit.used, ANYONE, False, after, limit)

    async def used_total(self) -> tuple[int, int]:
        return await self._run(sqlaudit.used_total, ANYONE, False)

    async def stored(self, storage: str) -> int:
        return await self._run(sqlaudit.stored, ANYONE, False, storage)

    async def users(self, locator: str, limit: int) -> list[tuple[bytes, ...] | int]:
        return await self._run(sqlaudit.users, ANYONE, False, locator, limit)

    async def path_of(self, id: int) -> tuple[bytes, ...] | None:
        return await self._run(sqlaudit.path_of, ANYONE, False, id)

    async def unreferenced(self, before_ns: int, limit: int) -> list[str]:
        return await self._run(sql.unreferenced, ANYONE, False, before_ns, limit)

    async def renew(self, locators: list[str]) -> None:
        await self._run(sql.renew, ANYONE, False, locators)

    async def blob(self, locator: str) -> Blob | None:
        return await self._run(sqlaudit.blob, ANYONE, False, locator)

    async def relocate(self, locator: str, blob: Blob, limit: int, node: int = 0) -> int:
        return await self._run(sqlaudit.relocate, ANYONE, False, locator, blob, limit, node)

    async def forget_blobs(self, locators: list[str]) -> list[str]:
        return await self._run(sql.forget_blobs, ANYONE, False, locators)

    async def purge(self, limit: int) -> int:
        return await self._run(sql.purge, ANYONE, False, limit)

    async def trim(self, before_ns: int) -> None:
        await self._run(sql.trim, ANYONE, False, before_ns)

    async def begin_space(self, owner: str) -> None:
        """Make the space's root, owned by ``owner``, unless it is there."""
        await self._run(sql.begin_space, ANYONE, True, owner)

    async def secret(self) -> bytes:
        return await self._run(sql.secret, ANYONE, False)

    async def put_account(self, name: str, password_hash: str, groups: str) -> None:
        row = {"name": name, "password": password_hash, "groups": groups}
        await self._run(sql.put, ANYONE, True, "account", ("name",), row)

    async def account(self, name: str) -> tuple[str, str] | None:
        return await self._run(sql.pick, ANYONE, False, "account", "password, groups", {"name": name})

    async def put_certificate(self, name: str, account: str) -> None:
        await self._run(sql.put, ANYONE, True, "certificate", ("name",), {"name": name, "account": account})

    async def certificate(self, name: str) -> str | None:
        row = await self._run(sql.pick, ANYONE, False, "certificate", "account", {"name": name})
        return row[0] if row else None

    async def put_token(self, digest: bytes, account: str, expires_ns: int) -> None:
        row = {"digest": digest, "account": account, "expires_ns": expires_ns}
        await self._run(sql.put, ANYONE, True, "token", ("digest",), row)

    async def token(self, digest: bytes) -> tuple[str, int] | None:
        return await self._run(sql.pick, ANYONE, False, "token", "account, expires_ns", {"digest": digest})

    async def quotas(self, id: int) -> list[Quota]:
        return await self._run(sqlquota.quotas, ANYONE, False, id)

    async def set_quota(self, id: int, bytes_max: int, caller: Caller = ANYONE) -> None:
        begins = await self._run(sqlquota.set_quota, caller, True, id, bytes_max)
        todo = [id] if begins else []
        while todo:
            # One container at a time: a tree of 10**6 nodes takes 10 s, and others get their turn.
            todo += await self._run(sqlquota.adopt_children, ANYONE, False, todo.pop(), id)
            await trio.lowlevel.checkpoint()
        if begins:
            await self._run(sqlquota.tell, ANYONE, True)

    async def recount(self) -> list[tuple[int, int, int]]:
        return await self._run(sqlquota.recount, ANYONE, True)

    async def copy_node(self, id: int, name: bytes, owner: str, caller: Caller = ANYONE, quota: int = 0) -> Node:
        return await self._run(subtree.copy_node, caller, False, id, name, owner, quota)

    async def copy_children(
        self, id: int, into: int, after: bytes, limit: int, owner: str, caller: Caller = ANYONE
    ) -> Copied:
        return await self._run(subtree.copy_children, caller, False, id, into, after, limit, owner)

    async def graft(self, id: int, into: int, caller: Caller = ANYONE) -> None:
        await self._run(subtree.graft, caller, True, id, into)

    async def drop_staged(self, name: bytes) -> None:
        await self._run(subtree.drop_staged, ANYONE, False, name)

    async def add_job(self, job: Job) -> None:
        await self._run(sqljobs.add_job, ANYONE, False, job)

    async def job(self, id: str) -> Job | None:
        return await self._run(sqljobs.job, ANYONE, False, id)

    async def change_job(self, job: Job, phases: tuple[str, ...]) -> bool:
        return await self._run(sqljobs.change_job, ANYONE, False, job, phases)

    async def jobs(self, chosen: Chosen) -> list[Job]:
        return await self._run(sqljobs.jobs, ANYONE, False, chosen)

    async def remove_job(self, id: str) -> None:
        await self._run(sqljobs.remove_job, ANYONE, False, id)
