"""What PostgreSQL adds: batches whose errors come late, transactions that outlive a cancellation, servers that go."""

import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import psycopg
import pytest
import trio
import trio.testing

from vosfs.errors import (
    DuplicateNode,
    InvalidArgument,
    NodeNotFound,
    ServiceUnavailable,
    StorageFull,
    TimedOut,
    VOSpaceError,
)
from vosfs.metadata import sql
from vosfs.metadata.job import PENDING, Job
from vosfs.metadata.libpq import STATEMENTS_MAX, numbered_parameters
from vosfs.metadata.node import CONTAINER, DATA, ROOT_ID, Attributes, NewNode, Node
from vosfs.metadata.postgres import ANSWER_S_MAX, BATCH_MAX, CONNECTIONS_MAX, PostgresStore

BOX, FILE = NewNode(CONTAINER, 0o755), NewNode(DATA)
SOON_S = 10
OURS = "FROM pg_stat_activity WHERE application_name = 'vosfsd' AND datname = current_database()"

Admin = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
def admin(database: str) -> Iterator[Admin]:
    """A connection beside the store's."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def holder(database: str) -> Iterator[Admin]:
    """Another one, to hold locks: inside a transaction ``pg_stat_activity`` stands still."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    """An empty space in a database of its own."""
    made = PostgresStore(database)
    await made.begin_space("alice")
    yield made
    made.close()


def on_insert(admin: Admin, table: str, does: str) -> None:
    """Let PostgreSQL do this at each row inserted; ``n`` is how many times it has, whatever was rolled back."""
    admin.execute("CREATE SEQUENCE IF NOT EXISTS times")
    admin.execute(
        "CREATE FUNCTION happens() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ DECLARE n BIGINT := nextval('times'); BEGIN {does}; RETURN NEW; END $$".encode()
    )
    admin.execute(f"CREATE TRIGGER happens BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION happens()".encode())


def one(admin: Admin, query: str) -> Any:
    """A single value."""
    row = admin.execute(query.encode()).fetchone()
    return row[0] if row else None


@contextlib.contextmanager
def root_locked(holder: Admin) -> Iterator[None]:
    """Nobody can create anything in the root."""
    with holder.transaction():
        holder.execute("SELECT 1 FROM node WHERE space = 1 AND id = %s FOR UPDATE", (ROOT_ID,))
        yield


async def until(admin: Admin, query: str, value: Any) -> None:
    """Look again until a query's answer is this."""
    end = time.monotonic() + SOON_S
    while one(admin, query) != value:
        assert time.monotonic() < end, f"never {value}: {query}"
        await trio.lowlevel.checkpoint()


WAITING = f"SELECT count(*) {OURS} AND wait_event_type = 'Lock'"
IN_TRANSACTION = f"SELECT count(*) {OURS} AND state <> 'idle'"


async def usable(store: PostgresStore, admin: Admin) -> None:
    """All connections there may be run transactions at once, and none is left in one."""
    async with trio.open_nursery() as nursery:
        for number in range(CONNECTIONS_MAX):
            nursery.start_soon(store.create, ROOT_ID, b"usable %d" % number, FILE)
    assert len(await store.children(ROOT_ID, b"usable", 100)) == CONNECTIONS_MAX
    await until(admin, IN_TRANSACTION, 0)
    assert 0 < one(admin, f"SELECT count(*) {OURS}") <= CONNECTIONS_MAX


# -- errors of statements that nobody waited for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "state, error",
    [
        ("23505", DuplicateNode), ("22P05", InvalidArgument), ("53100", StorageFull), ("57014", TimedOut),
        ("40001", None), ("40P01", None),
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", ["name", "change"])
async def test_a_late_error_is_what_it_would_be_at_once(
    store: PostgresStore, admin: Admin, table: str, state: str, error: type[VOSpaceError] | None
) -> None:
    on_insert(admin, table, f"IF n < 3 THEN RAISE EXCEPTION 'no' USING ERRCODE = '{state}'; END IF")
    new = NewNode(DATA, properties={"urn:a": "b"})
    if error is not None:
        for _ in range(2):
            with pytest.raises(error) as caught:
                await store.create(ROOT_ID, b"a", new)
            assert type(caught.value) is error
            with pytest.raises(NodeNotFound):
                await store.lookup(ROOT_ID, b"a")
    node = await store.create(ROOT_ID, b"a", new)
    assert one(admin, "SELECT last_value FROM times") == 3
    assert await store.trace((b"a",)) == ([await store.get(ROOT_ID), node], {"urn:a": "b"})
    assert (await store.usage()).nodes == 2
    await usable(store, admin)


async def test_a_nul_in_a_late_statement_is_refused(store: PostgresStore, admin: Admin) -> None:
    with pytest.raises(InvalidArgument):
        await store.create(ROOT_ID, b"a", NewNode(DATA, owner="a\0b"))
    with pytest.raises(InvalidArgument):
        await store.create(ROOT_ID, b"a", NewNode(DATA, properties={"urn:a": "\0"}))
    assert await store.children(ROOT_ID, b"", 10) == []
    await usable(store, admin)


async def test_a_taken_key_is_a_duplicate_in_the_last_batch(store: PostgresStore, admin: Admin) -> None:
    job = Job("id", "kind", "alice", PENDING, 1, 2, "{}")
    await store.add_job(job)
    pid = one(admin, f"SELECT pid {OURS}")
    with pytest.raises(DuplicateNode):
        await store.add_job(job)
    assert await store.job("id") == job
    assert one(admin, f"SELECT pid {OURS}") == pid, "a refusal costs no connection"
    await usable(store, admin)


async def test_of_creations_of_one_name_at_once_one_wins(store: PostgresStore, admin: Admin) -> None:
    made: list[Node] = []
    refused: list[str] = []

    async def create() -> None:
        try:
            made.append(await store.create(ROOT_ID, b"a", FILE))
        except DuplicateNode as exc:
            refused.append(str(exc))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(create)
    assert refused == ["b'a'"] * 7
    assert [await store.lookup(ROOT_ID, b"a")] == made
    await usable(store, admin)


# -- batches -----------------------------------------------------------------------------------------------------------


async def test_more_writes_than_a_batch_holds(store: PostgresStore) -> None:
    properties = {f"urn:{number:04}": "x" * 1000 for number in range(3 * BATCH_MAX)}
    node = await store.create(ROOT_ID, b"a", NewNode(DATA, properties=properties))
    assert (await store.properties(node.id)) == properties
    assert (await store.trace((b"a",)))[1] == properties


async def test_a_batch_larger_than_the_sockets_buffers(store: PostgresStore) -> None:
    properties = {f"urn:{number}": "x" * 1_000_000 for number in range(BATCH_MAX // 2)}
    node = await store.create(ROOT_ID, b"a", NewNode(DATA, properties=properties))
    assert (await store.properties(node.id)) == properties


async def test_more_statements_than_a_connection_keeps(store: PostgresStore, admin: Admin) -> None:
    node = await store.create(ROOT_ID, b"a", FILE)
    fields = ("mode", "uid", "gid", "atime_ns", "mtime_ns", "public", "immutable", "group_read")
    for number in range(1, STATEMENTS_MAX + 30):
        chosen = [field for at, field in enumerate(fields) if number >> at & 1]
        values: dict[str, Any] = {field: "g" if field == "group_read" else 0 for field in chosen}
        await store.set_attributes(node.id, Attributes(**values))
    assert one(admin, f"SELECT count(*) {OURS}") == 1
    assert (await store.lookup(ROOT_ID, b"a")).group_read == "g"


async def test_a_statement_first_met_in_a_batch_that_fails(store: PostgresStore) -> None:
    # Skipped statements were not made known to the server, whatever had been sent.
    await store.create(ROOT_ID, b"a", FILE)
    for name in (b"a", b"a", b"b"):
        new = NewNode(DATA, properties={"urn:a": "b"})
        try:
            await store.create(ROOT_ID, name, new)
        except DuplicateNode:
            assert name == b"a"
    assert (await store.trace((b"b",)))[1] == {"urn:a": "b"}


async def test_nodes_are_found_by_their_keys_without_statistics(store: PostgresStore, admin: Admin) -> None:
    # A node's index begins with the space: by that alone it is the whole table.
    admin.execute("SET plan_cache_mode = force_generic_plan")
    for statement in (sql.CHILD, sql.CHILDREN_AFTER, sql.CHILDREN_FROM, sql._FIND, *sql._TRACES):
        numbered = numbered_parameters(statement)
        admin.execute(f"PREPARE s AS {numbered}".encode())
        nulls = ", ".join(["NULL"] * len(set(re.findall(r"\$\d+", numbered))))
        plan = [row[0] for row in admin.execute(f"EXPLAIN EXECUTE s ({nulls})".encode())]
        admin.execute("DEALLOCATE s")
        looks = [plan[at + 1] for at, line in enumerate(plan) if "on node " in line]
        assert looks and all("Index Cond: ((space =" in look and "(id =" in look for look in looks), "\n".join(plan)


# -- cancellation ------------------------------------------------------------------------------------------------------


async def test_a_cancelled_transaction_ends_all_the_same(store: PostgresStore, admin: Admin, holder: Admin) -> None:
    scopes = [trio.CancelScope() for _ in range(2 * CONNECTIONS_MAX)]
    ended: list[int] = []

    async def create(number: int) -> None:
        with scopes[number]:
            try:
                await store.create(ROOT_ID, b"%d" % number, FILE)
            finally:
                ended.append(number)

    async with trio.open_nursery() as nursery:
        with root_locked(holder):
            for number in range(len(scopes)):
                nursery.start_soon(create, number)
            await until(admin, WAITING, CONNECTIONS_MAX)
            for scope in scopes:
                scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert len(ended) == CONNECTIONS_MAX, "who waited for a connection has gone, who had one has not"
    assert len(await store.children(ROOT_ID, b"", 100)) == CONNECTIONS_MAX
    await usable(store, admin)


async def test_who_is_cancelled_before_does_nothing(store: PostgresStore) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.create(ROOT_ID, b"a", FILE)
    assert await store.children(ROOT_ID, b"", 10) == []


async def test_a_server_that_does_not_answer(
    store: PostgresStore, admin: Admin, holder: Admin, mock_clock: trio.testing.MockClock
) -> None:
    async def create() -> None:
        with pytest.raises(TimedOut):
            await store.create(ROOT_ID, b"a", FILE)

    async with trio.open_nursery() as nursery:
        with root_locked(holder):
            nursery.start_soon(create)
            await until(admin, WAITING, 1)
            mock_clock.jump(ANSWER_S_MAX)
            await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks
    assert await store.children(ROOT_ID, b"", 10) == []
    await usable(store, admin)


async def test_a_statement_that_is_cancelled_has_timed_out(store: PostgresStore, admin: Admin, holder: Admin) -> None:
    async def create() -> None:
        with pytest.raises(TimedOut):
            await store.create(ROOT_ID, b"a", FILE)

    async with trio.open_nursery() as nursery:
        with root_locked(holder):
            nursery.start_soon(create)
            await until(admin, WAITING, 1)
            admin.execute(f"SELECT pg_cancel_backend(pid) {OURS}".encode())
            with trio.fail_after(SOON_S):
                while nursery.child_tasks:
                    await trio.lowlevel.checkpoint()
    await usable(store, admin)


# -- lost connections --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "work",
    [
        lambda store: store.lookup(ROOT_ID, b"a"),
        lambda store: store.create(ROOT_ID, b"b", FILE),
        lambda store: store.sync(),
        lambda store: store.put_account("bob", "hash", ""),
    ],
    ids=["read", "create", "sync", "single"],
)
async def test_a_restarted_server_is_not_noticed(
    store: PostgresStore, admin: Admin, work: Callable[[PostgresStore], Any]
) -> None:
    async with trio.open_nursery() as nursery:
        for name in (b"a", b"x", b"y"):
            nursery.start_soon(store.create, ROOT_ID, name, FILE)
    assert one(admin, f"SELECT count(*) {OURS}") == 3
    admin.execute(f"SELECT pg_terminate_backend(pid, {SOON_S * 1000}) {OURS}".encode())
    await work(store)
    assert one(admin, f"SELECT count(*) {OURS}") == 1


async def test_a_connection_lost_before_the_commit_is_replaced(store: PostgresStore, admin: Admin) -> None:
    on_insert(admin, "name", "IF n = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF")
    content = await store.put_data(ROOT_ID, b"a", FILE, 0, [], [], "")
    assert await store.lookup(ROOT_ID, b"a") == content.node
    assert one(admin, "SELECT last_value FROM times") == 2


async def test_a_connection_lost_at_the_commit_is_an_error(store: PostgresStore, admin: Admin) -> None:
    on_insert(admin, "change", "IF n = 1 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF")
    with pytest.raises(ServiceUnavailable):
        await store.create(ROOT_ID, b"a", FILE)
    assert one(admin, "SELECT last_value FROM times") == 1, "nobody tried again"
    await store.create(ROOT_ID, b"a", FILE)
    await usable(store, admin)
