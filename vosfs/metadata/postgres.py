"""PostgreSQL: transactions run in the event loop, each on a connection of its own (``libpq.py``).

A transaction is a few batches of statements: what only writes goes with the next statement that reads, or with the
COMMIT.  So a node is created in two round trips.  Once begun, a transaction is not cancelled: it ends, within a
deadline, or its connection is closed.
"""

import random
from typing import Any

import psycopg
import trio

from vosfs.errors import DuplicateNode, InternalFault, InvalidArgument, ServiceUnavailable, StorageFull, TimedOut
from vosfs.locks import take
from vosfs.metadata import sql
from vosfs.metadata.libpq import Command, Connection
from vosfs.metadata.sqlite import render, rendered
from vosfs.metadata.sqlstore import READS, SqlStore
from vosfs.metadata.store import ANYONE, Caller

CONNECTIONS_MAX = 16
"""Transactions at once; more only queue inside the server."""
RETRIES_MAX = 10
"""Of a transaction that lost a serialization race or a deadlock."""
BATCH_MAX = 64
"""Statements of one round trip: their answers fit into any socket's buffer."""
STATEMENT_TIMEOUT_MS = 20_000
ANSWER_S_MAX = 30
"""For a round trip: the server gives up a statement before that, unless it hangs."""
CONNECT_TIMEOUT_S = 10
MIGRATION_LOCK = 0x766F736673
"""Advisory lock under which the schema is brought up to date."""

DIALECT = sql.Dialect(
    share=" FOR SHARE",
    update=" FOR UPDATE",
    blob="BYTEA",
    serial="BIGSERIAL PRIMARY KEY",
    xid="pg_current_xact_id()::text::bigint",
    settled=" AND xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint",
    without_rowid="",
    after="(xid, seq) > (?, ?)",
    order="xid, seq",
    change_index="CREATE INDEX change_order ON change (space, xid, seq)",
    placeholder="?",
)

_RETRY = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
_REFUSED = (*_RETRY, psycopg.errors.QueryCanceled, psycopg.errors.DiskFull)
"""Failures of a COMMIT after which nothing is committed; after others nobody knows."""

_BEGIN: Command = ("BEGIN", ())
_DURABLE: Command = ("SET LOCAL synchronous_commit = on", ())
_COMMIT: Command = ("COMMIT", ())
_ROLLBACK: Command = ("ROLLBACK", ())


class PostgresStore(SqlStore):
    """The store in a PostgreSQL database, named by a libpq DSN."""

    shared = True

    def __init__(self, dsn: str, space: int = 1) -> None:
        # Dependencies
        self._dsn = dsn
        # Constants
        self.space = space
        # Mutable state
        self._slots = trio.Semaphore(CONNECTIONS_MAX)
        self._idle: list[Connection] = []
        """INVARIANT: at most CONNECTIONS_MAX, each outside a transaction."""
        self._statements: dict[str, tuple[str, bool]] = {}
        """As this engine wants them, and whether they only write."""
        self.notify = lambda origin: None
        self._prepare()

    def _connect(self) -> "psycopg.Connection[Any]":
        try:
            return psycopg.connect(
                self._dsn,
                autocommit=True,
                connect_timeout=CONNECT_TIMEOUT_S,
                application_name="vosfsd",
                client_encoding="utf8",
                # Sessions do not wait for the disk unless a transaction says so.
                options=f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={STATEMENT_TIMEOUT_MS}"
                " -c synchronous_commit=off",
                # A peer that vanished must not hold a connection for longer than a hung statement would.
                tcp_user_timeout=STATEMENT_TIMEOUT_MS,
                keepalives_idle=10,
            )
        except psycopg.OperationalError as exc:
            # libpq's text names host, port and user, never the password.
            raise ServiceUnavailable(f"PostgreSQL: {' '.join(str(exc).split())}") from exc

    def _prepare(self) -> None:
        owner = self._connect()
        try:
            with owner.transaction():
                self._migrate(owner)
        except BaseException:
            owner.close()
            raise
        self._idle.append(Connection(owner))

    @staticmethod
    def _migrate(owner: "psycopg.Connection[Any]") -> None:
        owner.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        owner.execute("CREATE TABLE IF NOT EXISTS migration (version INTEGER PRIMARY KEY)")
        done = owner.execute("SELECT count(*) FROM migration").fetchall()[0][0]
        if done > len(sql.MIGRATIONS):
            raise InternalFault(f"the database was written by a newer vosfs (schema {done})")
        for version, script in list(enumerate(sql.MIGRATIONS))[done:]:
            owner.execute(render(script, DIALECT).encode())
            owner.execute("INSERT INTO migration VALUES (%s)", (version,))

    def close(self) -> None:
        """Close the idle connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _run(self, script: sql.Script, caller: Caller, durable: bool, *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        await take(self._slots)
        try:
            result = await self._transact(script, caller, durable, *arguments)
        finally:
            self._slots.release()
        if script not in _READS and script is not _flush:
            self.notify(caller.origin)
        return result

    async def sync(self) -> None:
        await self._run(_flush, ANYONE, True)

    async def snapshot(self) -> object:
        return await self._run(_snapshot, ANYONE, False)

    def _reuse(self) -> Connection | None:
        """An idle connection, if there is one that the server has not closed: after its restart it closed all."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.lost():
                return connection
            connection.close()
        return None

    def _release(self, connection: Connection) -> None:
        if connection.idle:
            self._idle.append(connection)
        else:
            connection.close()

    async def _transact(self, script: sql.Script, caller: Caller, durable: bool, *arguments: Any) -> Any:
        """Run one transaction, again if it lost a race or its connection; its result."""
        for attempt in range(RETRIES_MAX + 1):
            connection = self._reuse()
            fresh = connection is None
            if connection is None:
                connection = Connection(await trio.to_thread.run_sync(self._connect))
            try:
                with trio.CancelScope(shield=True) as scope:
                    return await self._attempt(connection, scope, script, caller, durable, *arguments)
                raise TimedOut(f"PostgreSQL: no answer for {ANSWER_S_MAX} s")
            except _RETRY as exc:
                if attempt == RETRIES_MAX:
                    raise ServiceUnavailable(f"PostgreSQL: {exc}") from exc
                await trio.sleep(random.uniform(0, 0.002 * 2**attempt))  # noqa: S311 (spreads retries, hides nothing)
            except psycopg.errors.QueryCanceled as exc:
                raise TimedOut(f"PostgreSQL: {exc}") from exc
            except psycopg.DataError as exc:
                # A NUL in a text, say: nothing that a database could hold.
                raise InvalidArgument(f"PostgreSQL: {str(exc).strip().splitlines()[0]}") from exc
            except psycopg.errors.DiskFull as exc:
                raise StorageFull(f"PostgreSQL: {exc}") from exc
            except psycopg.OperationalError as exc:
                connection.close()
                # What took this connection may have taken all: try a new one.
                self.close()
                if fresh:
                    raise ServiceUnavailable(f"PostgreSQL: {str(exc).strip()}") from exc
            except psycopg.Error as exc:
                raise InternalFault(f"PostgreSQL: {str(exc).strip()}") from exc
            finally:
                self._release(connection)
        raise ServiceUnavailable("PostgreSQL: no usable connection")

    async def _attempt(
        self, connection: Connection, scope: trio.CancelScope, script: sql.Script, caller: Caller, durable: bool,
        *arguments: Any,
    ) -> Any:  # fmt: skip
        transaction = script(self._frame(caller), *arguments)
        if script in _READS:
            return await self._follow(transaction, connection, scope, [])
        batch = [_BEGIN, _DURABLE] if durable else [_BEGIN]
        try:
            result = await self._follow(transaction, connection, scope, batch)
            batch.append(_COMMIT)
            try:
                await self._send(connection, scope, batch)
            except psycopg.OperationalError as exc:
                if isinstance(exc, _REFUSED):
                    raise
                raise ServiceUnavailable(f"PostgreSQL: {str(exc).strip()}") from exc
            return result
        except BaseException:
            if connection.open:
                try:
                    await self._send(connection, scope, [_ROLLBACK])
                except psycopg.Error:
                    connection.close()
            raise

    async def _follow(
        self, transaction: sql.Transaction[Any], connection: Connection, scope: trio.CancelScope, batch: list[Command]
    ) -> Any:
        """Run a script to its end; its result.  What it wrote since it last read is left in ``batch``."""
        try:
            statement, parameters = next(transaction)
            while True:
                text, writes = self._statement(statement)
                batch.append((text, parameters))
                checked = isinstance(statement, sql.Checked)
                if writes and not checked and len(batch) < BATCH_MAX:
                    statement, parameters = transaction.send([])
                    continue
                try:
                    rows = await self._send(connection, scope, batch)
                except DuplicateNode as exc:
                    if not checked or connection.refused != len(batch) - 1:
                        raise
                    batch.clear()
                    statement, parameters = transaction.throw(exc)
                else:
                    batch.clear()
                    statement, parameters = transaction.send(rows)
        except StopIteration as result:
            return result.value

    @staticmethod
    async def _send(connection: Connection, scope: trio.CancelScope, batch: list[Command]) -> sql.Rows:
        scope.deadline = trio.current_time() + ANSWER_S_MAX
        try:
            return await connection.run(batch)
        except psycopg.errors.UniqueViolation as exc:
            raise sql.duplicate(*batch[connection.refused], str(exc)) from exc

    def _statement(self, statement: str) -> tuple[str, bool]:
        known = self._statements.get(statement)
        if known is None:
            known = self._statements[statement] = rendered(statement, DIALECT)
        return known


def _snapshot(f: sql.Frame) -> sql.Transaction[str]:
    """Which transactions are over, those of other databases of the server included.

    A server that crashed may give the numbers of transactions that it lost once more.
    """
    rows = yield "SELECT pg_current_snapshot()::text || ' ' || pg_postmaster_start_time()::text", ()
    return str(rows[0][0])


_READS = READS | {_snapshot}


def _flush(f: sql.Frame) -> sql.Transaction[None]:
    """A synchronous commit that writes: it takes everything committed before it to disk."""
    yield "UPDATE space SET synced = synced + 1 WHERE space = ?", (f.space,)
