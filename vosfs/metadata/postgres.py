"""PostgreSQL: a whole transaction is one hop to a worker thread with a connection of its own (``libpq.py``).

No cancellation can leave a connection inside a transaction, and the event loop never waits for the server.
"""

import random
import threading
import time
from typing import Any

import psycopg
import trio

from vosfs.errors import DuplicateNode, InternalFault, InvalidArgument, ServiceUnavailable, StorageFull, TimedOut
from vosfs.metadata import sql
from vosfs.metadata.libpq import Connection
from vosfs.metadata.sqlite import render
from vosfs.metadata.sqlstore import READS, SqlStore
from vosfs.metadata.store import ANYONE, Caller

CONNECTIONS_MAX = 16
"""Transactions at once; more only queue inside the server."""
RETRIES_MAX = 10
"""Of a transaction that lost a serialization race or a deadlock."""
STATEMENT_TIMEOUT_MS = 20_000
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


_BEGIN_DURABLE = "BEGIN; SET LOCAL synchronous_commit = on"


class PostgresStore(SqlStore):
    """The store in a PostgreSQL database, named by a libpq DSN."""

    shared = True

    def __init__(self, dsn: str, space: int = 1) -> None:
        # Dependencies
        self._dsn = dsn
        # Constants
        self.space = space
        # Mutable state
        self._limiter = trio.CapacityLimiter(CONNECTIONS_MAX)
        self._idle: list[Connection] = []
        """INVARIANT: at most CONNECTIONS_MAX, each outside a transaction."""
        self._guard = threading.Lock()
        self._rendered: dict[str, str] = {}
        self.notify = lambda: None
        self._prepare()

    def _connect(self) -> Connection:
        try:
            return Connection(
                self._dsn,
                {
                    "connect_timeout": str(CONNECT_TIMEOUT_S),
                    "application_name": "vosfsd",
                    # Sessions do not wait for the disk unless a transaction says so.
                    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={STATEMENT_TIMEOUT_MS}"
                    " -c synchronous_commit=off",
                    # A peer that vanished must not hold a worker thread for longer than a hung statement would.
                    "tcp_user_timeout": str(STATEMENT_TIMEOUT_MS),
                    "keepalives_idle": "10",
                },
            )
        except psycopg.OperationalError as exc:
            # libpq's text names host, port and user, never the password.
            raise ServiceUnavailable(f"PostgreSQL: {' '.join(str(exc).split())}") from exc

    def _prepare(self) -> None:
        connection = self._connect()
        try:
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    @staticmethod
    def _migrate(connection: Connection) -> None:
        connection.script("BEGIN")
        connection.execute("SELECT 1 FROM pg_advisory_xact_lock(?)", (MIGRATION_LOCK,))
        connection.script("CREATE TABLE IF NOT EXISTS migration (version INTEGER PRIMARY KEY)")
        done = connection.execute("SELECT count(*) FROM migration", ())[0][0]
        if done > len(sql.MIGRATIONS):
            raise InternalFault(f"the database was written by a newer vosfs (schema {done})")
        for version, script in list(enumerate(sql.MIGRATIONS))[done:]:
            connection.script(render(script, DIALECT))
            connection.execute("INSERT INTO migration VALUES (?)", (version,))
        connection.script("COMMIT")

    def close(self) -> None:
        """Close the idle connections."""
        with self._guard:
            for connection in self._idle:
                connection.close()
            self._idle.clear()

    def transact(self, script: sql.Script, caller: Caller, durable: bool, *arguments: Any) -> tuple[Any, bool]:
        """Run one transaction, in the calling thread, again if it lost a race; its result, and whether it wrote."""
        for attempt in range(RETRIES_MAX + 1):
            with self._guard:
                connection = self._idle.pop() if self._idle else None
            fresh = connection is None
            if connection is None:
                connection = self._connect()
            try:
                result = self._attempt(connection, script, caller, durable, *arguments)
            except _RETRY as exc:
                self._return(connection)
                if attempt == RETRIES_MAX:
                    raise ServiceUnavailable(f"PostgreSQL: {exc}") from exc
                time.sleep(random.uniform(0, 0.002 * 2**attempt))  # noqa: S311 (spreads retries, hides nothing)
            except psycopg.errors.QueryCanceled as exc:
                self._return(connection)
                raise TimedOut(f"PostgreSQL: {exc}") from exc
            except psycopg.DataError as exc:
                # A NUL in a text, say: nothing that a database could hold.
                self._return(connection)
                raise InvalidArgument(f"PostgreSQL: {str(exc).strip().splitlines()[0]}") from exc
            except psycopg.errors.DiskFull as exc:
                self._return(connection)
                raise StorageFull(f"PostgreSQL: {exc}") from exc
            except psycopg.OperationalError as exc:
                connection.close()
                # A server that restarted took all idle connections with it: drop them, try a new one.
                self.close()
                if fresh or self._was_sent(exc):
                    raise ServiceUnavailable(f"PostgreSQL: {str(exc).strip()}") from exc
            except psycopg.Error as exc:
                self._return(connection)
                raise InternalFault(f"PostgreSQL: {str(exc).strip()}") from exc
            except BaseException:
                self._return(connection)
                raise
            else:
                self._return(connection)
                return result
        raise ServiceUnavailable("PostgreSQL: no usable connection")

    @staticmethod
    def _was_sent(exc: Exception) -> bool:
        """Whether a COMMIT may have been under way when the connection broke."""
        return getattr(exc, "vosfs_committing", False)

    def _return(self, connection: Connection) -> None:
        if not connection.idle:
            connection.close()
            return
        with self._guard:
            self._idle.append(connection)

    def _attempt(
        self, connection: Connection, script: sql.Script, caller: Caller, durable: bool, *arguments: Any
    ) -> Any:
        transaction = script(self._frame(caller), *arguments)
        execute, rendered = connection.execute, self._rendered
        open_ = script not in READS
        try:
            if open_:
                connection.script(_BEGIN_DURABLE if durable else "BEGIN")
            statement, parameters = next(transaction)
            while True:
                text = rendered.get(statement)
                if text is None:
                    text = rendered[statement] = render(statement, DIALECT)
                try:
                    rows = execute(text, parameters)
                except psycopg.errors.UniqueViolation as exc:
                    statement, parameters = transaction.throw(DuplicateNode(str(exc)))
                    continue
                statement, parameters = transaction.send(rows)
        except StopIteration as result:
            if open_:
                try:
                    connection.script("COMMIT")
                except psycopg.OperationalError as exc:
                    exc.vosfs_committing = True  # type: ignore[attr-defined]
                    raise
            return result.value, open_
        except BaseException:
            if open_:
                try:
                    connection.script("ROLLBACK")
                except psycopg.Error:
                    connection.close()
            raise

    async def _run(self, script: sql.Script, caller: Caller, durable: bool, *arguments: Any) -> Any:
        result, wrote = await trio.to_thread.run_sync(
            lambda: self.transact(script, caller, durable, *arguments), limiter=self._limiter
        )
        if wrote:
            self.notify()
        return result

    async def sync(self) -> None:
        await self._run(_flush, ANYONE, True)


def _flush(f: sql.Frame) -> sql.Transaction[None]:
    """A synchronous commit that writes: it takes everything committed before it to disk."""
    yield "UPDATE space SET synced = synced + 1 WHERE space = ?", (f.space,)
