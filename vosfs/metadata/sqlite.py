"""SQLite: the embedded default, no server to install.

Statements run inline in the event loop: a look-up at depth 8 takes 9 µs, a thread hop 50-80.  A commit under WAL and
synchronous=NORMAL writes no disk (40 µs); durability is one fdatasync of the write-ahead log, in a thread, shared by
all who wait for it (group commit).  That is what synchronous=FULL does at each commit, and recovery needs no more:
frames of the log are checksummed, and a checkpoint syncs log and database itself.
"""

import contextlib
import logging
import os
import sqlite3
import sys
import time
from pathlib import Path
from typing import Any

import trio

from vosfs.disk import begin_writing
from vosfs.errors import InternalFault, ServiceUnavailable, StorageFull
from vosfs.locks import Lock
from vosfs.metadata import sql
from vosfs.metadata.sqlstore import READS, SqlStore
from vosfs.metadata.store import Caller

log = logging.getLogger(__name__)

BUSY_TIMEOUT_S = 5.0
"""Another process (an administrator's ``vosfsd user``, say) may hold the write lock this long."""

CHECKPOINT_EVERY_S = 1.0
LOG_BYTES_MIN = 16 << 20
"""A shorter log is left alone.  Its file has this much from the start: fdatasync takes 150 µs where blocks of it are
overwritten, and 1 000 where each time the file grows and its length goes through the file system's own journal."""
LOG_BYTES_BUSY = 64 << 20
"""While changes come, a shorter one is left alone too: with a checkpoint each second a durable one took 770 µs of CPU instead of 540.  The file
gets so much when it is needed."""
LOG_BYTES_AHEAD = 8 << 20
"""Of the file, at least, lie before what is appended next: more than comes in CHECKPOINT_EVERY_S where each change is synced."""
LOG_STEP_BYTES = 1 << 20
WRITE_OUT_BYTES = 1 << 20
"""With so much new in a log that nobody syncs the disk begins: who does sync it would wait for all of it, 100 ms after some thousand
changes."""
LOG_BYTES_MAX = 256 << 20
"""A longer one is cut by a checkpoint that makes writers wait."""

DIALECT = sql.Dialect(
    share="",
    update="",
    blob="BLOB",
    # Trimming keeps the newest row, so the next number is never one that was used: no AUTOINCREMENT, a page fewer.
    serial="INTEGER PRIMARY KEY",
    xid="0",
    settled="",
    without_rowid="WITHOUT ROWID",
    after="0 * ? = 0 AND seq > ?",
    order="seq",
    change_index="",
    placeholder="?",
)


def render(statement: str, dialect: sql.Dialect) -> str:
    """The statement as one engine wants it."""
    statement = statement.replace("{descending}", ", ".join(f"{c} DESC" for c in dialect.order.split(", ")))
    for token in (
        "after",
        "order",
        "change_index",
        "share",
        "update",
        "blob",
        "serial",
        "xid",
        "settled",
        "without_rowid",
    ):
        statement = statement.replace("{" + token + "}", getattr(dialect, token))
    return statement.replace("?", dialect.placeholder)


def rendered(statement: str, dialect: sql.Dialect) -> tuple[str, bool]:
    """The statement as one engine wants it, and whether it only writes: then it answers with no rows."""
    text = render(statement, dialect)
    return text, text.startswith(("INSERT ", "UPDATE ", "DELETE ")) and " RETURNING " not in text


SYNC_HERE_S = 0.5e-3
"""After a sync quicker than this the next one is not worth a thread, which costs two wake-ups: 0.1 ms."""


class SqliteStore(SqlStore):
    """The store in one SQLite file (``":memory:"`` for tests of SQL alone)."""

    shared = False

    def __init__(self, path: str | Path, space: int = 1) -> None:
        # Dependencies
        self.path = str(path)
        self._db = sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_TIMEOUT_S, cached_statements=256)
        # Constants
        self.space = space
        # Mutable state
        self._cursor = self._db.cursor()
        """Of every statement: a new one for each costs as much as a short statement."""
        self._statements: dict[str, tuple[str, bool]] = {}
        """As this engine wants them, and whether they only write."""
        self._log_fd = self._index_fd = -1
        self.notify = lambda origin: None
        self._commits = 0
        self._durable = 0
        """INVARIANT: the first ``_durable`` of ``_commits`` transactions are on disk."""
        self._seen = self._moved = 0
        """How many transactions there were at the last look at the log, and at the last checkpoint."""
        self._begun = 0
        """Up to where in the log the disk was told to write."""
        self._syncing = Lock()
        self._sync_s = SYNC_HERE_S
        """How long the last one took."""
        self._prepare()

    def _prepare(self) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "cache_size=-32768", "wal_autocheckpoint=0"):
            self._db.execute("PRAGMA " + pragma)
        if self.path != ":memory:":
            os.chmod(self.path, 0o600)
        self._db.execute("CREATE TABLE IF NOT EXISTS migration (version INTEGER PRIMARY KEY)")
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if self.path != ":memory:":
                self._open_log()
            done = self._db.execute("SELECT count(*) FROM migration").fetchone()[0]
            if done > len(sql.MIGRATIONS):
                raise InternalFault(f"{self.path} was written by a newer vosfs (schema {done})")
            for version, script in list(enumerate(sql.MIGRATIONS))[done:]:
                for statement in render(script, DIALECT).split(";"):
                    if statement.strip():
                        self._db.execute(statement)
                self._db.execute("INSERT INTO migration VALUES (?)", (version,))
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        if self.path != ":memory:":
            os.fsync(self._log_fd)
            self._page_bytes = self._db.execute("PRAGMA page_size").fetchone()[0]
            directory = os.open(os.path.dirname(os.path.abspath(self.path)), os.O_RDONLY)
            os.fsync(directory)
            os.close(directory)

    def _open_log(self) -> None:
        """Inside a transaction, as ``_lengthen``."""
        self._log_fd = os.open(self.path + "-wal", os.O_RDWR)
        self._index_fd = os.open(self.path + "-shm", os.O_RDONLY)
        self._lengthen(LOG_BYTES_MIN)

    def _lengthen(self, length: int) -> None:
        """Give the log's file blocks.  Inside a transaction: nobody else may append a frame where this writes."""
        size = os.fstat(self._log_fd).st_size
        # Zeros are no frames: whoever reads the log back stops there.
        os.pwrite(self._log_fd, bytes(max(0, length - size)), size)

    def _make_room(self) -> None:
        """Keep the end of the log's file before what is appended; in a worker thread, as ``_checkpoint``.

        In pieces, since writers wait meanwhile, and made durable here, since they would wait for that too.
        """
        size = os.fstat(self._log_fd).st_size
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=BUSY_TIMEOUT_S)) as db:
            for length in range(size + LOG_STEP_BYTES, size + LOG_BYTES_MIN + 1, LOG_STEP_BYTES):
                db.execute("BEGIN IMMEDIATE")
                self._lengthen(length)
                db.execute("ROLLBACK")
                os.fdatasync(self._log_fd)

    def _checkpoint(self) -> None:
        """Move the log into the database, in a worker thread, beside the event loop's own connection.

        SQLite would do it inline, at a commit: 50 ms for every 4 000 pages.
        """
        mode = "RESTART" if self._log_bytes() > LOG_BYTES_MAX else "PASSIVE"
        with contextlib.closing(sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S)) as db:
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(f"PRAGMA wal_checkpoint({mode})")

    def _log_bytes(self) -> int:
        """How much of the log is in use: its index has the number of frames, ``mxFrame`` (sqlite.org/walformat.html)."""
        frames = int.from_bytes(os.pread(self._index_fd, 4, 16), sys.byteorder)
        return frames * (self._page_bytes + 24)

    async def keep(self) -> None:
        """Keep the log short, until cancelled: the daemon runs this beside its other tasks."""
        while True:
            await trio.sleep(CHECKPOINT_EVERY_S)
            try:
                if self._checkpoint_due():
                    await trio.to_thread.run_sync(self._checkpoint)
                elif self._room_due():
                    await trio.to_thread.run_sync(self._make_room)
            except (sqlite3.OperationalError, OSError) as exc:
                # A full disk, say: whoever makes changes is told.
                log.warning("the log of %s: %s", self.path, exc)

    def _checkpoint_due(self) -> bool:
        """Whether the log is to go into the database now; called every so often."""
        busy, self._seen = self._commits != self._seen, self._commits
        if self._seen == self._moved or self._log_bytes() < (LOG_BYTES_BUSY if busy else LOG_BYTES_MIN):
            return False
        self._moved = self._seen
        return True

    def _room_due(self) -> bool:
        size = os.fstat(self._log_fd).st_size
        return self._seen != self._moved and size < LOG_BYTES_BUSY and self._log_bytes() > size - LOG_BYTES_AHEAD

    def close(self) -> None:
        """Close the database; SQLite checkpoints it."""
        if self._log_fd >= 0:
            os.close(self._log_fd)
            os.close(self._index_fd)
            self._log_fd = self._index_fd = -1
        self._db.close()

    def transact(self, script: sql.Script, caller: Caller, *arguments: Any) -> Any:
        """Run one transaction, without awaiting anything."""
        transaction = script(self._frame(caller), *arguments)
        execute, rows_of, statements = self._cursor.execute, self._cursor.fetchall, self._statements
        writing = script not in READS
        try:
            if writing:
                execute("BEGIN IMMEDIATE")
            statement, parameters = next(transaction)
            while True:
                known = statements.get(statement)
                if known is None:
                    known = statements[statement] = rendered(statement, DIALECT)
                try:
                    execute(known[0], parameters)
                    rows = [] if known[1] else rows_of()
                except sqlite3.IntegrityError as exc:
                    statement, parameters = transaction.throw(sql.duplicate(statement, parameters, str(exc)))
                    continue
                statement, parameters = transaction.send(rows)
        except StopIteration as result:
            if writing:
                execute("COMMIT")
                self._commits += 1
                self.notify(caller.origin)
            return result.value
        except sqlite3.OperationalError as exc:
            self._rollback()
            if exc.sqlite_errorcode == sqlite3.SQLITE_FULL:
                raise StorageFull(f"{self.path}: {exc}") from exc
            if exc.sqlite_errorcode in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ServiceUnavailable(f"{self.path}: {exc}") from exc
            raise InternalFault(f"{self.path}: {exc}") from exc
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    async def _run(self, script: sql.Script, caller: Caller, durable: bool, *arguments: Any) -> Any:
        result = self.transact(script, caller, *arguments)
        if durable:
            await self.sync()
        elif script not in READS:
            self._write_out()
        return result

    def _write_out(self) -> None:
        if self._log_fd < 0:
            return
        end = self._log_bytes()
        if end < self._begun:
            # A checkpoint let it begin anew.
            self._begun = 0
        if end - self._begun >= WRITE_OUT_BYTES:
            begin_writing(self._log_fd, self._begun, end - self._begun)
            self._begun = end

    def _sync_log(self) -> None:
        if self._log_fd < 0:
            self._sync_s = 0.0
            return
        # The hop to a thread and back is not the disk's: with it in, one slow sync was followed by threads for good.
        began = time.perf_counter()
        os.fdatasync(self._log_fd)
        self._sync_s = time.perf_counter() - began

    async def snapshot(self) -> object:
        # The pragma counts what other connections commit (sqlite.org/pragma.html#pragma_data_version).
        return self._commits, self._cursor.execute("PRAGMA data_version").fetchone()[0]

    async def sync(self) -> None:
        target = self._commits
        if self._durable < target and self._sync_s < SYNC_HERE_S and not self._syncing.locked():
            self._sync_log()
            self._durable = target
        while self._durable < target:
            async with self._syncing:
                if self._durable >= target:
                    return
                covered = self._commits
                await trio.to_thread.run_sync(self._sync_log)
                self._durable = covered
