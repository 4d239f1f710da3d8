"""What is SQLite's alone: its log, when that is made durable, and when it goes into the database."""

import errno
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from vosfs.metadata import sqlite
from vosfs.metadata.node import CONTAINER, ROOT_ID, NewNode
from vosfs.metadata.sqlite import SYNC_HERE_S, SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "space.db")
    await made.begin_space("alice")
    yield made
    made.close()


async def change(store: SqliteStore, number: int) -> None:
    await store.create(ROOT_ID, b"%d" % number, NewNode(CONTAINER), durable=False)


class Disk:
    """Syncs that take as long as they are told, by a clock of their own, and who made them."""

    def __init__(self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self.takes_s = 0.0
        self.now_s = 0.0
        self.here: list[bool] = []
        monkeypatch.setattr(sqlite.os, "fdatasync", self.sync)
        monkeypatch.setattr(sqlite.time, "perf_counter", lambda: self.now_s)
        monkeypatch.setattr(store, "_sync_s", 0.0)

    def sync(self, fd: int) -> None:
        self.here.append(threading.current_thread() is threading.main_thread())
        self.now_s += self.takes_s


async def test_after_a_slow_sync_the_next_is_a_thread_s_and_after_a_quick_one_it_is_not(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(store, monkeypatch)
    for number, disk.takes_s in enumerate([0, 2 * SYNC_HERE_S, 0, 0]):
        await change(store, number)
        await store.sync()
    assert disk.here == [True, True, False, True]


async def test_one_sync_is_enough_for_all_who_wait(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(store, monkeypatch)
    disk.takes_s = 2 * SYNC_HERE_S
    await change(store, 0)
    await store.sync()
    del disk.here[:]

    async def durable(number: int) -> None:
        await change(store, number)
        await store.sync()

    async with trio.open_nursery() as nursery:
        for number in range(1, 9):
            nursery.start_soon(durable, number)
    assert len(disk.here) <= 2


async def test_the_log_goes_into_the_database_once_there_is_rest(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOG_BYTES_MIN", 16 << 10)
    for number in range(10):
        await change(store, number)
        assert not store._checkpoint_due(), "changes come"
    assert store._checkpoint_due()
    assert not store._checkpoint_due(), "it was done"
    await change(store, 10)
    monkeypatch.setattr(sqlite, "LOG_BYTES_BUSY", 16 << 10)
    assert store._checkpoint_due(), "a long log does not wait for rest"


async def test_a_short_log_is_left_alone(store: SqliteStore) -> None:
    await change(store, 0)
    assert not store._checkpoint_due() and not store._checkpoint_due()


async def test_a_checkpoint_follows_changes_by_itself(
    store: SqliteStore, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "LOG_BYTES_MIN", 16 << 10)
    done = trio.Event()
    token, real = trio.lowlevel.current_trio_token(), SqliteStore._checkpoint

    def checkpoint(self: SqliteStore) -> None:
        real(self)
        token.run_sync_soon(done.set)

    monkeypatch.setattr(SqliteStore, "_checkpoint", checkpoint)
    nursery.start_soon(store.keep)
    for number in range(10):
        await change(store, number)
    await done.wait()


async def test_the_log_has_its_blocks_before_they_are_needed(
    store: SqliteStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def length() -> int:
        return os.stat(tmp_path / "space.db-wal").st_size

    before = length()
    monkeypatch.setattr(sqlite, "LOG_BYTES_AHEAD", before - (16 << 10))
    for number in range(10):
        await change(store, number)
        assert not store._checkpoint_due()
    assert store._room_due()
    store._make_room()
    assert length() > before > store._log_bytes()
    reopened = SqliteStore(tmp_path / "space.db")
    try:
        assert len(await reopened.children(ROOT_ID, b"", 100)) == 10
    finally:
        reopened.close()


@pytest.mark.expect_log
async def test_no_room_for_the_log_ends_nothing(
    store: SqliteStore, nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    full = [OSError(errno.ENOSPC, "full"), OSError(errno.ENOSPC, "full")]
    asked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def make_room() -> None:
        if full:
            raise full.pop()
        token.run_sync_soon(asked.set)

    monkeypatch.setattr(store, "_room_due", lambda: True)
    monkeypatch.setattr(store, "_make_room", make_room)
    nursery.start_soon(store.keep)
    await asked.wait()
    assert caplog.text.count("full") == 2


async def test_the_disk_begins_with_a_log_that_nobody_syncs(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(sqlite, "begin_writing", lambda fd, start, length: begun.append((start, length)))
    monkeypatch.setattr(sqlite, "WRITE_OUT_BYTES", 64 << 10)
    for number in range(60):
        await change(store, number)
    assert len(begun) >= 3
    end = 0
    for start, length in begun:
        assert start == end and length >= 64 << 10
        end = start + length
    assert end <= store._log_bytes()
    # Once the log is in the database it begins anew, and so does this.
    begun.clear()
    store._db.execute("PRAGMA wal_checkpoint(RESTART)")
    for number in range(60, 120):
        await change(store, number)
    assert begun[0][0] == 0
