"""PostgreSQL through psycopg 3.

A whole transaction is one hop to a worker thread with a synchronous connection: 184-209 µs for BEGIN, three
statements and COMMIT against 190-218 for psycopg's generators driven on trio (spec: stack, section 3), with nothing
private of psycopg used and no cancellation that could leave a connection inside a transaction.
"""

import random
import threading
import time
from typing import Any

import psycopg
import trio

from vosfs.errors import DuplicateNode, InternalFault, InvalidArgument, ServiceUnavailable, StorageFull, TimedOut
from vosfs.metadata import sql
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
    placeholder="%s",
)

_RETRY = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


_BEGIN_DURABLE = "BEGIN; SET LOCAL synchronous_commit = on"


class PostgresStore(SqlStore):
    """The store in a PostgreSQL database, named by a libpq DSN."""

    def __init__(self, dsn: str, space: int = 1) -> None:
        # Dependencies
        self._dsn = dsn
        # Constants
        self.space = space
        # Mutable state
        self._limiter = trio.CapacityLimiter(CONNECTIONS_MAX)
        self._idle: list[psycopg.Connection[tuple[Any, ...]]] = []
        """INVARIANT: at most CONNECTIONS_MAX, each outside a transaction."""
        self._guard = threading.Lock()
        self._rendered: dict[str, str] = {}
        self.notify = lambda: None
        self._prepare()

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        try:
            connection = psycopg.connect(
                self._dsn,
                autocommit=True,
                prepare_threshold=2,
                connect_timeout=CONNECT_TIMEOUT_S,
                options=(
                    f"-c statement_timeout={STATEMENT_TIMEOUT_MS} -c lock_timeout={STATEMENT_TIMEOUT_MS}"
                    " -c synchronous_commit=off"
                ),
                application_name="vosfsd",
            )
        except psycopg.OperationalError as exc:
            # libpq's text names host, port and user, never the password.
            raise ServiceUnavailable(f"PostgreSQL: {' '.join(str(exc).split())}") from exc
        return connection

    def _prepare(self) -> None:
        connection = self._connect()
        try:
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        self._idle.append(connection)

    @staticmethod
    def _migrate(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
            connection.execute("CREATE TABLE IF NOT EXISTS migration (version INTEGER PRIMARY KEY)")
            row = connection.execute("SELECT count(*) FROM migration").fetchone()
            done = row[0] if row else 0
            if done > len(sql.MIGRATIONS):
                raise InternalFault(f"the database was written by a newer vosfs (schema {done})")
            for version, script in list(enumerate(sql.MIGRATIONS))[done:]:
                for statement in render(script, DIALECT).split(";"):
                    if statement.strip():
                        connection.execute(statement)
                connection.execute("INSERT INTO migration VALUES (%s)", (version,))

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

    def _return(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        if connection.closed or connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
            connection.close()
            return
        with self._guard:
            self._idle.append(connection)

    def _attempt(
        self,
        connection: psycopg.Connection[tuple[Any, ...]],
        script: sql.Script,
        caller: Caller,
        durable: bool,
        *arguments: Any,
    ) -> Any:
        transaction = script(self._frame(caller), *arguments)
        cursor = connection.cursor(binary=True)
        rendered = self._rendered
        open_ = script not in READS
        try:
            if open_:
                # One round trip; sessions do not wait for the disk unless a transaction says so.
                connection.execute(_BEGIN_DURABLE if durable else "BEGIN", prepare=False)
            statement, parameters = next(transaction)
            while True:
                text = rendered.get(statement)
                if text is None:
                    text = rendered[statement] = render(statement, DIALECT)
                try:
                    cursor.execute(text, parameters)
                    rows = cursor.fetchall() if cursor.description else []
                except psycopg.errors.UniqueViolation as exc:
                    statement, parameters = transaction.throw(DuplicateNode(str(exc.diag.message_primary)))
                    continue
                statement, parameters = transaction.send(rows)
        except StopIteration as result:
            if open_:
                try:
                    cursor.execute("COMMIT")
                except psycopg.OperationalError as exc:
                    exc.vosfs_committing = True  # type: ignore[attr-defined]
                    raise
            return result.value, open_
        except BaseException:
            if open_ and not connection.closed:
                try:
                    cursor.execute("ROLLBACK")
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
