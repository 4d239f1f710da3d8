"""Fixtures of the conformance tests: shared daemons, users with tokens, a container for each test, a third party."""

import concurrent.futures
import os
import socket
import time
from collections.abc import Iterator

import pytest

from tests.conftest import Daemon, start_daemon
from tests.server.support import ROOT, Raw, assert_sound, create, head, log_text, make_user, update
from tests.vospace.support import PULL, WAIT_CAP_S, ThirdParty, new_job, transfer


@pytest.fixture(scope="session")
def dsn(request: pytest.FixtureRequest) -> str:
    """The database of the shared space; empty for SQLite."""
    return request.getfixturevalue("postgres") if request.config.getoption("--on-postgresql") else ""


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory, dsn: str) -> Iterator[Daemon]:
    """A daemon with the defaults, whose root everybody may read."""
    daemon = start_daemon(tmp_path_factory.mktemp("vospace") / "space", "--dsn", dsn)
    assert update(daemon, "", properties={"publicread": "true"})[0] == 200
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
def folder(space: Daemon) -> Iterator[str]:
    """The path of a fresh container in the shared space; afterwards the daemon must be sound."""
    start = len(log_text(space))
    path = f"/t{os.urandom(5).hex()}"
    assert create(space, path, "ContainerNode")[0] == 201
    yield path
    assert_sound(space, start)


@pytest.fixture(scope="session")
def alice(space: Daemon, dsn: str) -> dict[str, str]:
    """Headers of a user who is in the group ``team``."""
    return make_user(space, "alice", "team", dsn)


@pytest.fixture(scope="session")
def bob(space: Daemon, dsn: str) -> dict[str, str]:
    """Headers of a user who is in no group."""
    return make_user(space, "bob", "", dsn)


@pytest.fixture
def home(space: Daemon, folder: str, alice: dict[str, str]) -> str:
    """A private container that alice may write to, in a public one."""
    rights = {"publicread": "false", "groupwrite": "team", "groupread": "team"}
    assert create(space, f"{folder}/home", "ContainerNode", properties=rights)[0] == 201
    return f"{folder}/home"


@pytest.fixture(scope="session", autouse=True)
def endless_wait(space: Daemon) -> Iterator["concurrent.futures.Future[float]"]:
    """How many seconds a WAIT without end lasts, found out while the other tests run (R411)."""
    job = new_job(space, transfer(ROOT, PULL, ["httpget"]))
    resource = job.url.removeprefix(space.url) + "?WAIT=-1"
    with Raw(space, timeout_s=2 * WAIT_CAP_S) as raw:
        start = time.monotonic()
        raw.send(head(space, "GET", resource))

        def seconds() -> float:
            assert raw.answer().status == 200
            return time.monotonic() - start

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            yield pool.submit(seconds)
            # Ends the waiting, if nobody asked for its outcome.
            raw.sock.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="session")
def open_space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that may talk to servers on loopback."""
    daemon = start_daemon(tmp_path_factory.mktemp("open") / "space", "--allow-private-endpoints")
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
def open_folder(open_space: Daemon) -> Iterator[str]:
    """The path of a fresh container in it."""
    start = len(log_text(open_space))
    path = f"/t{os.urandom(5).hex()}"
    assert create(open_space, path, "ContainerNode")[0] == 201
    yield path
    assert_sound(open_space, start)


@pytest.fixture
def third() -> Iterator[ThirdParty]:
    """A third party's web server."""
    party = ThirdParty()
    yield party
    party.close()
