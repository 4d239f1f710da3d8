"""The mount works on PostgreSQL, with metadata and storage in one process and apart."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Daemon, unmount

MIB = 1 << 20


@pytest.fixture(params=["together", "apart"])
def space(request: pytest.FixtureRequest, make_daemon: Callable[..., Daemon], database: str) -> Daemon:
    """The daemon that mounts talk to."""
    if request.param == "together":
        return make_daemon("all", "--dsn", database)
    storage = make_daemon("storage", "--dsn", database, "--role", "storage")
    return make_daemon("metadata", "--dsn", database, "--role", "metadata", "--storage-url", storage.url)


def test_files_of_every_size(space: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(space)
    contents = {f"f{size}": os.urandom(size) for size in (0, 1, 5000, 100_000, 3 * MIB, 70 * MIB)}
    (point / "d").mkdir()
    for name, data in contents.items():
        with open(point / "d" / name, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    with open(point / "d/f3145728", "r+b") as stream:
        stream.seek(MIB)
        stream.write(b"patched")
        os.fsync(stream.fileno())
    patched = bytearray(contents["f3145728"])
    patched[MIB : MIB + 7] = b"patched"
    contents["f3145728"] = bytes(patched)
    subprocess.run(["mv", point / "d", point / "e"], check=True)
    unmount(point)
    again = make_mount(space, "again")
    assert {path.name: path.read_bytes() for path in (again / "e").iterdir()} == contents
    subprocess.run(["rm", "-r", again / "e"], check=True)
    assert os.listdir(again) == []


def test_git_on_postgres(space: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(space)
    script = (
        "git init -q r && cd r && seq 200 | xargs -I{} sh -c 'echo {} > f{}' && git add -A"
        " && git -c user.name=a -c user.email=a@example.invalid commit -qm one && git gc -q && git fsck --strict"
        ' && test -z "$(git status --porcelain)"'
    )
    env = {**os.environ, "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
    done = subprocess.run(["sh", "-ec", script], cwd=point, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_space_is_reserved_where_nobody_knows_how_much_there_is(space: Daemon, make_mount: Callable[..., Path]) -> None:
    with open(make_mount(space) / "file", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, 10_000)
        assert os.fstat(file.fileno()).st_size == 10_000
