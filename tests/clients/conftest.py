"""Fixtures of the clients' tests: daemons for all of them, a container and a home directory for each."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.relay import Relay
from tests.clients.support import Client, make_home, start_configured, with_token
from tests.conftest import Daemon, free_port, start_daemon
from tests.server.support import assert_sound, create, log_text


def new_database(postgres: str) -> str:
    """DSN of an empty database in the private cluster; it goes when the cluster goes."""
    import psycopg

    name = f"c{os.urandom(6).hex()}"
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return postgres.rpartition("/")[0] + "/" + name


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on SQLite that many tests share."""
    daemon = start_daemon(tmp_path_factory.mktemp("clients") / "space")
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture(scope="session")
def served_by_postgres(tmp_path_factory: pytest.TempPathFactory, postgres: str) -> Iterator[Daemon]:
    """A daemon on PostgreSQL."""
    daemon = start_daemon(tmp_path_factory.mktemp("clients") / "postgres", "--dsn", new_database(postgres))
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
def home(tmp_path: Path) -> Callable[[Daemon], Path]:
    """Make home directories in which the client finds a daemon."""

    def make(daemon: Daemon, name: str = "home") -> Path:
        return make_home(tmp_path / name, daemon.url)

    return make


def in_new_folder(daemon: Daemon, home: Path) -> Client:
    """The owner's client, by token, in a fresh container."""
    folder = f"/t{os.urandom(5).hex()}"
    # Whatever other tests have made of the root, from which a container takes its rights.
    shut: dict[str, object] = {"ispublic": "false", "groupread": "", "groupwrite": ""}
    assert create(daemon, folder, "ContainerNode", properties=shut)[0] == 201
    return with_token(daemon, home, folder, daemon.token)


@pytest.fixture
def vos(served: Daemon, home: Callable[[Daemon], Path]) -> Iterator[Client]:
    """The owner's client in a fresh container; afterwards the daemon must be sound."""
    start = len(log_text(served))
    yield in_new_folder(served, home(served))
    assert_sound(served, start)


@pytest.fixture(scope="session")
def relayed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Relay, Daemon]]:
    """A daemon whose public address is a relay."""
    relay = Relay(free_port())
    try:
        directory = tmp_path_factory.mktemp("clients") / "relayed"
        daemon = start_configured(directory, f'public_url = "{relay.url}"\n', relay.port)
        try:
            yield relay, daemon
        finally:
            assert daemon.stop() == 0
    finally:
        relay.close()


@pytest.fixture
def relay(relayed: tuple[Relay, Daemon]) -> Relay:
    return relayed[0]


@pytest.fixture
def far(relayed: tuple[Relay, Daemon], home: Callable[[Daemon], Path]) -> Iterator[Client]:
    """The owner's client in a fresh container, behind the relay; afterwards the daemon must be sound."""
    daemon = relayed[1]
    start = len(log_text(daemon))
    yield in_new_folder(daemon, home(daemon))
    assert_sound(daemon, start)
