"""Every adapter of the store behind one fixture."""

import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psycopg
import pytest

from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.postgres import PostgresStore
from vosfs.metadata.sqlite import SqliteStore

AnyStore = MemoryStore | SqliteStore | PostgresStore
SPACES = itertools.count(1)
"""Numbers of spaces that no test has used."""


@pytest.fixture(scope="session")
def shared_database(postgres: str) -> str:
    """DSN of a database of which each test has one space; accounts and tokens are common to all."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE shared")
    return postgres.rpartition("/")[0] + "/shared"


def _opener(kind: str, request: pytest.FixtureRequest, path: Path) -> Callable[[], AnyStore]:
    if kind == "memory":
        return MemoryStore
    if kind == "sqlite":
        return lambda: SqliteStore(path / "space.db")
    # A space of its own, not a database: 5 ms instead of 200.
    dsn, number = request.getfixturevalue("shared_database"), next(SPACES)
    return lambda: PostgresStore(dsn, number)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def any_opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], AnyStore]:
    """Opens the store of this test."""
    return _opener(request.param, request, tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], AnyStore]:
    """Opens the store of this test, each time with the same data."""
    return _opener(request.param, request, tmp_path)


@pytest.fixture
async def store(any_opener: Callable[[], AnyStore]) -> AsyncIterator[AnyStore]:
    """An empty space in each adapter."""
    made = any_opener()
    await made.begin_space("alice")
    yield made
    made.close()


@pytest.fixture
async def sql_store(opener: Callable[[], AnyStore]) -> AsyncIterator[AnyStore]:
    """An empty space in each adapter that keeps a log of bounded length."""
    made = opener()
    await made.begin_space("alice")
    yield made
    made.close()
