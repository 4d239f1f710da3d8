"""Fixtures of the daemon's tests: one daemon for all that do not disturb each other, a container for each."""

import os
from collections.abc import Iterator

import pytest

from tests.conftest import Daemon, start_daemon
from tests.server.support import assert_sound, create, log_text


@pytest.fixture(scope="session")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on SQLite that many tests share."""
    daemon = start_daemon(tmp_path_factory.mktemp("server") / "space")
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
