"""Every store keeps the daemon's half of the port: change log, blobs, trash, accounts, and data across restarts."""

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest
import trio

from tests.store.conftest import AnyStore
from tests.store.tree import dump
from vosfs.errors import InternalFault, NodeNotFound, ServiceUnavailable, Stale
from vosfs.metadata import sql
from vosfs.metadata.job import ABORTED, EXECUTING, PENDING, PHASES, Chosen, Job
from vosfs.metadata.node import (
    CONTAINER,
    DATA,
    LINK,
    ROOT_ID,
    Attributes,
    Blob,
    Change,
    Cursor,
    Extent,
    NewNode,
    Used,
)
from vosfs.metadata.postgres import PostgresStore
from vosfs.metadata.sqlite import SqliteStore
from vosfs.metadata.store import Anyone

BOX, FILE = NewNode(CONTAINER, 0o755), NewNode(DATA)
SOON_S = 10


def later() -> int:
    """A time after everything that was done."""
    return time.time_ns() + 10**9


async def log_after(store: AnyStore, since: Cursor, count: int) -> list[Change]:
    """The next ``count`` changes: PostgreSQL shows them when no older transaction of the cluster runs."""
    found: list[Change] = []
    with trio.fail_after(SOON_S):
        while len(found) < count:
            since, page = await store.changes(since, 2)
            found += page
            await trio.lowlevel.checkpoint()
    return found


# -- change log ------------------------------------------------------------------------------------------------------


async def test_every_mutation_is_logged_with_its_origin(store: AnyStore) -> None:
    me, start = Anyone("me"), await store.cursor()
    box = await store.create(ROOT_ID, b"box", BOX, me)
    file = await store.create(box.id, b"\xff", FILE, me)
    await store.link(file.id, ROOT_ID, b"l", Anyone("you"))
    await store.set_attributes(file.id, Attributes(mode=0), me)
    await store.set_properties(file.id, {"urn:a": "b"}, False, me)
    await store.commit(file.id, None, 0, [], [], caller=me)
    await store.rename(ROOT_ID, b"l", box.id, b"r", "", me)
    await store.remove(box.id, b"r", "leaf")
    expected = [
        Change(box.id, ROOT_ID, b"box", "me"), Change(file.id, box.id, b"\xff", "me"),
        Change(file.id, ROOT_ID, b"l", "you"), Change(file.id, 0, b"", "me"), Change(file.id, 0, b"", "me"),
        Change(file.id, 0, b"", "me"), Change(file.id, ROOT_ID, b"l", "me"), Change(file.id, box.id, b"r", "me"),
        Change(file.id, box.id, b"r", ""),
    ]  # fmt: skip
    assert await log_after(store, start, len(expected)) == expected
    end = await store.cursor()
    assert await store.changes(end) == (end, [])
    assert (await store.changes(start))[0] == end


async def test_rename_logs_the_node_that_lost_its_name(store: AnyStore) -> None:
    a = await store.create(ROOT_ID, b"a", FILE)
    b = await store.create(ROOT_ID, b"b", FILE)
    start = await store.cursor()
    await store.rename(ROOT_ID, b"a", ROOT_ID, b"b", "")
    assert await log_after(store, start, 2) == [Change(a.id, ROOT_ID, b"a", ""), Change(b.id, ROOT_ID, b"b", "")]


async def test_the_log_comes_in_pages(store: AnyStore) -> None:
    start = await store.cursor()
    names = [b"%02d" % number for number in range(7)]
    for name in names:
        await store.create(ROOT_ID, name, FILE)
    await log_after(store, start, 7)
    cursor, first = await store.changes(start, 3)
    cursor, second = await store.changes(cursor, 3)
    cursor, third = await store.changes(cursor, 3)
    assert [change.name for change in first + second + third] == names
    assert cursor == await store.cursor()


async def test_notify_follows_changes_only(store: AnyStore) -> None:
    told: list[str] = []
    store.notify = told.append
    await store.create(ROOT_ID, b"a", FILE, Anyone("me"))
    assert set(told) == {"me"}
    told.clear()
    await store.lookup(ROOT_ID, b"a")
    with pytest.raises(NodeNotFound):
        await store.lookup(ROOT_ID, b"b")
    assert not told


async def test_a_trimmed_log_is_stale_for_who_was_behind(sql_store: AnyStore) -> None:
    store = sql_store
    await store.create(ROOT_ID, b"0", FILE)
    await log_after(store, Cursor(), 1)
    behind = await store.cursor()
    for name in (b"1", b"2", b"3"):
        await store.create(ROOT_ID, name, FILE)
    await log_after(store, behind, 3)
    end = await store.cursor()
    await store.trim(1)
    assert len((await store.changes(behind))[1]) == 3, "nothing was old enough"
    await store.trim(later())
    with pytest.raises(Stale):
        await store.changes(behind)
    assert await store.changes(end) == (end, []), "who had seen everything goes on"
    await store.create(ROOT_ID, b"4", FILE)
    assert [change.name for change in await log_after(store, end, 1)] == [b"4"]


async def test_a_trimmed_log_is_stale_for_who_began_with_an_empty_space(sql_store: AnyStore) -> None:
    store = sql_store
    start = await store.cursor()
    for name in (b"1", b"2", b"3"):
        await store.create(ROOT_ID, name, FILE)
    await log_after(store, start, 3)
    await store.trim(later())
    with pytest.raises(Stale):
        await store.changes(start)


# -- blobs -----------------------------------------------------------------------------------------------------------


async def blobs_free(store: AnyStore) -> set[str]:
    """Blobs that the collector may take."""
    return set(await store.unreferenced(later(), 100))


async def test_blobs_are_released_with_their_last_extent(store: AnyStore) -> None:
    a = await store.create(ROOT_ID, b"a", FILE)
    await store.commit(
        a.id, None, 20, [Extent(0, 10, "b1"), Extent(10, 20, "b2")], [Blob("b1", 10, 0), Blob("b2", 10, 0)]
    )
    assert [await store.referenced(b) for b in ("b1", "b2", "b3")] == [True, True, False]
    assert await blobs_free(store) == set()
    await store.commit(a.id, None, 15, [], [])
    assert await blobs_free(store) == set(), "half of b2 is still in use"
    await store.commit(a.id, None, 10, [], [])
    assert await blobs_free(store) == {"b2"}
    await store.commit(a.id, None, 5, [Extent(0, 5, data=b"inli!")], [])
    assert await blobs_free(store) == {"b1", "b2"}
    assert await store.unreferenced(1, 100) == []
    assert len(await store.unreferenced(later(), 1)) == 1


async def test_the_auditor_sees_what_nodes_stand_on(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    a = await store.create(box.id, b"a", FILE)
    b = await store.create(ROOT_ID, b"b", FILE)
    one, two = Blob("b1", 10, 7), Blob("b2", 30, 8)
    await store.commit(a.id, None, 20, [Extent(0, 10, "b1"), Extent(10, 20, "b2", 15)], [one, two])
    await store.commit(b.id, None, 5, [Extent(0, 5, "b2")], [two])
    assert await store.used("", 100) == [Used("b1", 10, one), Used("b2", 25, two)]
    assert await store.used("", 1) == [Used("b1", 10, one)]
    assert await store.used("b1", 1) == [Used("b2", 25, two)]
    assert await store.used("b2", 1) == []
    assert await store.used_total() == (2, 40)
    assert await store.users("b1", 9) == [(b"box", b"a")]
    assert set(await store.users("b2", 9)) == {(b"box", b"a"), (b"b",)}
    assert len(await store.users("b2", 1)) == 1
    assert await store.users("b3", 9) == []
    await store.commit(a.id, None, 0, [], [])
    assert await store.used("", 100) == [Used("b2", 5, two)]
    assert await store.used_total() == (1, 30)
    await store.remove(ROOT_ID, b"b", "leaf")
    assert await store.users("b2", 9) == [b.id], "in the trash, it has no path"
    await store.purge(100)
    assert (await store.used("", 100), await store.users("b2", 9)) == ([], [])


async def test_nodes_are_told_of_another_blob_of_the_same_bytes(store: AnyStore) -> None:
    ids = []
    for name in (b"a", b"b"):
        ids.append((await store.create(ROOT_ID, name, FILE)).id)
        await store.commit(
            ids[-1], None, 20, [Extent(0, 10, "old", 5), Extent(10, 20, "b2")], [Blob("old", 15, 7), Blob("b2", 10, 8)]
        )
    before, version = await store.cursor(), (await store.get(ids[0])).version
    new = Blob("new", 15, 7)
    assert await store.relocate("old", new, 1) == 1
    assert await blobs_free(store) == set(), "one node still stands on the old one"
    assert (await store.relocate("old", new, 9), await store.relocate("old", new, 9)) == (1, 0)
    for id in ids:
        assert (await store.open(id)).extents == [Extent(0, 10, "new", 5), Extent(10, 20, "b2")]
    assert await blobs_free(store) == {"old"}
    assert (await store.get(ids[0])).version == version and (await store.changes(before))[1] == []
    assert [used.blob for used in await store.used("", 9)] == [Blob("b2", 10, 8), new]
    assert await store.forget_blobs(["old", "new", "none"]) == ["old"]
    assert [await store.referenced(blob) for blob in ("old", "new")] == [False, True]


async def test_copies_are_known_by_their_own_names(store: AnyStore) -> None:
    a = await store.create(ROOT_ID, b"a", FILE)
    await store.commit(a.id, None, 10, [Extent(0, 10, "x+s~y")], [Blob("x+s~y", 10, 7)])
    assert [await store.referenced(part) for part in ("x", "s~y", "x+s~y", "y", "s~x")] == [True] * 3 + [False] * 2
    assert await store.relocate("x+s~y", Blob("x+s~z", 10, 7), 9) == 1
    assert await store.forget_blobs(["x+s~y"]) == ["x+s~y"]
    assert [await store.referenced(part) for part in ("x", "s~y", "s~z")] == [True, False, True]


async def test_a_storage_policy_is_handed_down(store: AnyStore) -> None:
    box = await store.create(ROOT_ID, b"box", BOX)
    before = await store.create(box.id, b"before", FILE)
    assert (await store.set_attributes(box.id, Attributes(storage="fast slow"))).storage == "fast slow"
    inner = await store.create(box.id, b"inner", BOX)
    file = await store.create(inner.id, b"f", FILE)
    put = await store.put_data(inner.id, b"p", FILE, 0, [], [], "")
    own = await store.create(inner.id, b"own", NewNode(DATA, storage="other"))
    assert [node.storage for node in (inner, file, put.node, own)] == ["fast slow"] * 3 + ["other"]
    assert (await store.get(before.id)).storage == ""
    moved = (await store.rename(inner.id, b"f", ROOT_ID, b"f")).node
    assert (await store.get(moved.id)).storage == "fast slow", "as a group is kept"
    copied = await store.copy_node(file.id, b"job", "bob")
    assert copied.storage == "fast slow"


async def test_a_blob_of_two_nodes_is_released_by_the_second(store: AnyStore) -> None:
    ids = []
    for name in (b"a", b"b"):
        ids.append((await store.create(ROOT_ID, name, FILE)).id)
        await store.commit(ids[-1], None, 5, [Extent(0, 5, "b1")], [Blob("b1", 5, 0)])
    await store.commit(ids[0], None, 0, [], [])
    assert await blobs_free(store) == set()
    await store.commit(ids[1], None, 0, [], [])
    assert await blobs_free(store) == {"b1"}
    await store.commit(ids[1], None, 5, [Extent(0, 5, "b1")], [Blob("b1", 5, 0)])
    assert await blobs_free(store) == set(), "it is in use again"


async def test_a_blob_that_a_commit_brings_and_does_not_keep_is_released(store: AnyStore) -> None:
    a = await store.create(ROOT_ID, b"a", FILE)
    await store.commit(a.id, None, 0, [Extent(0, 10, "cut"), Extent(0, 10)], [Blob("cut", 10, 0)])
    assert await blobs_free(store) == {"cut"}
    over = [Extent(0, 10, "under"), Extent(0, 10, "over")]
    await store.commit(a.id, None, 10, over, [Blob("under", 10, 0), Blob("over", 10, 0)])
    assert await blobs_free(store) == {"cut", "under"}


async def test_purge_releases_blobs(store: AnyStore) -> None:
    a = await store.create(ROOT_ID, b"a", FILE)
    await store.commit(a.id, None, 5, [Extent(0, 5, "b1")], [Blob("b1", 5, 0)])
    await store.remove(ROOT_ID, b"a", "leaf")
    assert await blobs_free(store) == set(), "somebody may have it open"
    while await store.purge(10):
        pass
    assert await blobs_free(store) == {"b1"}


async def test_renew_and_forget(store: AnyStore) -> None:
    a = await store.create(ROOT_ID, b"a", FILE)
    await store.commit(a.id, None, 10, [Extent(0, 5, "b1"), Extent(5, 10, "b2")], [Blob("b1", 5, 0), Blob("b2", 5, 0)])
    await store.renew(["b1", "none"])
    assert await blobs_free(store) == set(), "renewing does not release what is in use"
    await store.commit(a.id, None, 0, [], [])
    between = time.time_ns() + 1
    await store.renew(["b1"])
    assert await store.unreferenced(between, 100) == ["b2"]
    assert await blobs_free(store) == {"b1", "b2"}
    await store.forget_blobs(["b2", "none"])
    assert await blobs_free(store) == {"b1"}
    assert [await store.referenced(b) for b in ("b1", "b2")] == [True, False]


async def test_usage_counts_nodes(store: AnyStore) -> None:
    before = (await store.usage()).nodes
    await store.create(ROOT_ID, b"a", FILE)
    assert (await store.usage()).nodes == before + 1


# -- accounts, tokens, jobs ------------------------------------------------------------------------------------------


async def test_accounts_tokens_and_jobs(store: AnyStore) -> None:
    assert await store.account("bob") is None
    await store.put_account("bob", "hash", "g1 g2")
    await store.put_account("eve", "h", "")
    await store.put_account("bob", "hash2", "g3")
    assert await store.account("bob") == ("hash2", "g3")
    assert await store.token(b"\x00\xff") is None
    await store.put_token(b"\x00\xff", "bob", 2**62)
    assert await store.token(b"\x00\xff") == ("bob", 2**62)
    assert await store.token(b"\x00\xfe") is None
    assert await store.certificate("CN=bob") is None
    await store.put_certificate("CN=bob", "eve")
    await store.put_certificate("CN=bob", "bob")
    assert await store.certificate("CN=bob") == "bob"


def a_job(id: str, phase: str = PENDING, **other: Any) -> Job:
    """A job of bob's."""
    return msgspec.structs.replace(Job(id, "transfers", "bob", phase, 100, 1000, "é"), **other)


async def test_jobs_change_only_from_the_phase_they_are_in(store: AnyStore) -> None:
    assert await store.job("j") is None
    assert not await store.change_job(a_job("j"), PHASES)
    await store.add_job(a_job("j"))
    assert await store.job("j") == a_job("j")
    assert not await store.change_job(a_job("j", ABORTED), (EXECUTING,))
    assert await store.change_job(a_job("j", EXECUTING, document="{}", destruction_ns=5), (PENDING, EXECUTING))
    assert await store.job("j") == a_job("j", EXECUTING, document="{}", destruction_ns=5)
    assert not await store.change_job(a_job("j", ABORTED), (PENDING,))
    await store.remove_job("j")
    await store.remove_job("j")
    assert await store.job("j") is None


async def test_jobs_are_chosen_by_all_conditions(store: AnyStore) -> None:
    made = [
        a_job("a", created_ns=10), a_job("b", ABORTED, created_ns=30), a_job("c", created_ns=20, owner="eve"),
        a_job("d", EXECUTING, created_ns=40, destruction_ns=7), a_job("e", created_ns=50, kind="other"),
    ]  # fmt: skip
    for job in made:
        await store.add_job(job)

    async def ids(**conditions: Any) -> str:
        return "".join(job.id for job in await store.jobs(Chosen(**conditions)))

    assert await ids() == "acbde"
    assert await ids(kind="transfers", owner="bob") == "abd"
    assert await ids(phases=(ABORTED, EXECUTING)) == "bd"
    assert await ids(after_ns=30) == "de"
    assert await ids(newest=True, limit=2) == "ed"
    assert await ids(due_ns=8) == "d"
    assert await ids(owner="eve", phases=(ABORTED,)) == ""


async def test_the_secret_stays(store: AnyStore) -> None:
    secret = await store.secret()
    assert isinstance(secret, bytes) and len(secret) == 32
    await store.begin_space("somebody")
    assert await store.secret() == secret


async def test_trim_drops_what_has_expired(sql_store: AnyStore) -> None:
    store = sql_store
    await store.put_token(b"old", "bob", time.time_ns() - 1)
    await store.put_token(b"new", "bob", later())
    await store.trim(1)
    assert await store.token(b"old") is None
    assert await store.token(b"new") is not None


# -- across restarts -------------------------------------------------------------------------------------------------


async def test_reopening_keeps_everything(opener: Callable[[], AnyStore]) -> None:
    first = opener()
    await first.begin_space("alice")
    box = await first.create(ROOT_ID, b"\xff", NewNode(CONTAINER, properties={"urn:a": "b"}))
    file = await first.create(box.id, b"f", FILE)
    await first.commit(
        file.id, None, 9, [Extent(0, 5, "b1"), Extent(5, 9, data=b"1234")], [Blob("b1", 5, 0)], durable=True
    )
    await first.create(box.id, b"l", NewNode(LINK, target=b"t\xfe"))
    await first.put_account("carol", "hash", "")
    await first.sync()
    seen, secret, at = await dump(first), await first.secret(), await first.cursor()
    first.close()
    second = opener()
    await second.begin_space("mallory")
    try:
        assert await dump(second) == seen
        assert await second.secret() == secret
        assert await second.cursor() == at
        assert await second.account("carol") == ("hash", "")
        assert (await second.get(ROOT_ID)).owner == "alice"
    finally:
        second.close()


async def test_two_spaces_in_one_database_do_not_meet(database: str) -> None:
    first, second = PostgresStore(database, 1), PostgresStore(database, 2)
    try:
        for store in (first, second):
            await store.begin_space("alice")
        node = await first.create(ROOT_ID, b"a", FILE)
        with pytest.raises(NodeNotFound):
            await second.get(node.id)
        assert (await second.usage()).nodes == 1
        await log_after(first, Cursor(), 1)
        assert node.id not in [change.node for change in (await second.changes(Cursor()))[1]]
        assert await first.secret() != await second.secret()
    finally:
        first.close()
        second.close()


async def test_what_was_committed_is_in_the_files(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a.db")
    try:
        await store.begin_space("alice")
        file = await store.create(ROOT_ID, b"f", FILE)
        await store.commit(file.id, 1, 1, [Extent(0, 1, data=b"x")], [], durable=True)
        for name in ("a.db", "a.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / name.replace("a", "copy", 1))
    finally:
        store.close()
    # As after kill -9: nothing was closed or checkpointed.
    copy = SqliteStore(tmp_path / "copy.db")
    try:
        assert (await copy.open(file.id)).extents == [Extent(0, 1, data=b"x")]
    finally:
        copy.close()


async def test_sync_is_shared_and_returns(store: AnyStore) -> None:
    done: list[int] = []

    async def write(number: int) -> None:
        node = await store.create(ROOT_ID, b"%d" % number, FILE)
        await store.commit(node.id, 1, 1, [Extent(0, 1, data=b"x")], [], durable=number % 2 == 0)
        await store.sync()
        done.append(number)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(write, number)
    assert sorted(done) == list(range(10))


def test_the_sqlite_file_is_private(tmp_path: Path) -> None:
    SqliteStore(tmp_path / "a.db").close()
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600


def test_the_sqlite_schema_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    for _ in range(2):
        SqliteStore(path).close()
    db = sqlite3.connect(path)
    assert db.execute("SELECT version FROM migration").fetchall() == [(v,) for v in range(len(sql.MIGRATIONS))]
    db.execute("INSERT INTO migration VALUES (?)", (len(sql.MIGRATIONS),))
    db.commit()
    db.close()
    with pytest.raises(InternalFault, match="newer"):
        SqliteStore(path)


async def test_an_older_sqlite_schema_is_brought_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by the first schema, row by row, and then opened: nothing is lost, what is new has its default."""
    path = tmp_path / "a.db"
    with monkeypatch.context() as patch:
        patch.setattr(sql, "MIGRATIONS", sql.MIGRATIONS[:2])
        SqliteStore(path).close()
    db = sqlite3.connect(path)
    row = "INSERT INTO node VALUES (1, ?, ?, 1, 0, 493, -1, -1, 1, 0, 0, 0, 0, 'alice', x'', 0, '', '', 0, '', '', ?)"
    db.execute("INSERT INTO space VALUES (1, x'00', 0, 0)")
    db.executemany(row, [(1, "container", 0), (5, "container", 1), (6, "container", 5), (7, "data", 5)])
    name = "INSERT INTO name VALUES (1, ?, ?, ?)"
    db.executemany(name, [(1, b"a", 5), (5, b"b", 6), (5, b"c", 7)])
    db.commit()
    db.close()
    store = SqliteStore(path)
    try:
        await store.begin_space("alice")
        nodes = [await store.get(id) for id in (1, 5, 6, 7)]
        assert [(node.device, node.containers) for node in nodes] == [(0, 1), (0, 1), (0, 0), (0, 0)]
        assert [node.kind for node in nodes] == ["container"] * 3 + ["data"]
        assert [name for name, _ in await store.children(5, b"", 9)] == [b"b", b"c"]
    finally:
        store.close()


async def test_the_postgres_schema_is_made_once(database: str) -> None:
    stores: list[PostgresStore] = []
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(lambda: trio.to_thread.run_sync(lambda: stores.append(PostgresStore(database))))
    for store in stores:
        store.close()
    with psycopg.connect(database) as connection:
        rows = connection.execute("SELECT version FROM migration").fetchall()
        assert rows == [(v,) for v in range(len(sql.MIGRATIONS))]
        connection.execute("INSERT INTO migration VALUES (%s)", (len(sql.MIGRATIONS),))
    with pytest.raises(InternalFault, match="newer"):
        PostgresStore(database)


async def test_processes_that_begin_a_space_at_once_agree(database: str) -> None:
    stores = [PostgresStore(database) for _ in range(4)]
    try:
        async with trio.open_nursery() as nursery:
            for store in stores:
                nursery.start_soon(store.begin_space, "alice")
        assert len({await store.secret() for store in stores}) == 1
    finally:
        for store in stores:
            store.close()


async def test_postgres_survives_a_lost_connection(database: str) -> None:
    store = PostgresStore(database)
    try:
        await store.begin_space("alice")
        with psycopg.connect(database, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'vosfsd'")
        node = await store.create(ROOT_ID, b"a", FILE)
        assert await store.lookup(ROOT_ID, b"a") == node
    finally:
        store.close()


def test_postgres_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(ServiceUnavailable):
        PostgresStore("postgresql://nobody@127.0.0.1:1/none")


async def test_what_nodes_stand_on_is_no_orphan_even_without_its_row(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "a.db")
    try:
        await store.begin_space("alice")
        node = await store.create(ROOT_ID, b"a", FILE)
        await store.commit(node.id, None, 10, [Extent(0, 10, "b1")], [Blob("b1", 10, 0)])
        store._db.execute("DELETE FROM blob")
        assert await store.used("", 9) == [Used("b1", 10, None)]
        assert [await store.referenced(locator) for locator in ("b1", "b2")] == [True, False]
    finally:
        store.close()


async def test_two_stores_on_one_sqlite_file_see_each_other(tmp_path: Path) -> None:
    first, second = SqliteStore(tmp_path / "a.db"), SqliteStore(tmp_path / "a.db")
    try:
        await first.begin_space("alice")
        node = await first.create(ROOT_ID, b"a", FILE)
        assert (await second.lookup(ROOT_ID, b"a")).id == node.id
        await second.remove(ROOT_ID, b"a", "leaf")
        assert (await first.get(node.id)).nlink == 0
    finally:
        first.close()
        second.close()


OPENER = """
import os, sys, trio
from vosfs.metadata.node import DATA, ROOT_ID, NewNode
from vosfs.metadata.sqlite import SqliteStore

async def main():
    for times in range(8):
        store = SqliteStore(sys.argv[1])
        await store.begin_space("alice")
        for number in range(5):
            await store.create(ROOT_ID, f"{os.getpid()}-{times}-{number}".encode(), NewNode(DATA, 0o644))
        store.close()

trio.run(main)
"""


async def test_processes_that_open_it_while_others_write(tmp_path: Path) -> None:
    """Each makes the log longer as it starts, where another may be about to add to it."""
    command = [sys.executable, "-c", OPENER, str(tmp_path / "a.db")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    store = SqliteStore(tmp_path / "a.db")
    try:
        assert store._db.execute("SELECT count(*) FROM name").fetchone()[0] == 4 * 8 * 5
        assert store._db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    finally:
        store.close()


async def test_what_is_stored_is_summed_for_each_storage(store: AnyStore) -> None:
    node = await store.create(ROOT_ID, b"f", NewNode(DATA))
    locators = ["aa", "fast~b", "c+fast~d", "fast~e+f", "fast~g+tape~h", "tape~i", "fast-er~j"]
    blobs = [Blob(locator, 10**number, 0) for number, locator in enumerate(locators)]
    extents = [Extent(number, number + 1, blob.locator) for number, blob in enumerate(blobs)]
    await store.commit(node.id, None, len(blobs), extents, blobs)
    found = [await store.stored(name) for name in ("", "fast", "tape", "fast-er", "none")]
    assert found == [1101, 11110, 110000, 1000000, 0]
