"""A mount over content that is on tape: nobody hangs, programs are told, and reads work when it is here.

Whatever returns while the robot is busy has not waited for it.
"""

import errno
import json
import os
import secrets
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.clients.support import start_configured
from tests.conftest import BIN, Daemon, eventually
from tests.server.support import create, store, vosfsd
from tests.services.hsm import Robot
from vosfs.metadata.node import STORAGE

BYTES = 300_000
TAPE = "tape"
NAMES = ("a", "b", "c")


@pytest.fixture
def robot(tmp_path: Path) -> Robot:
    return Robot(tmp_path / "vault")


@pytest.fixture
def space(tmp_path: Path, robot: Robot) -> Iterator[Daemon]:
    settings = f'[storages.{TAPE}]\ndirectory = "{TAPE}"\nstage_command = {json.dumps(robot.command)}\n'
    daemon = start_configured(tmp_path / "space", settings)
    yield daemon
    daemon.stop()


@pytest.fixture
def contents(space: Daemon, robot: Robot) -> dict[str, bytes]:
    """Bytes of files in /t, which are on tape by the time that the test begins."""
    create(space, "/t", "ContainerNode", properties={STORAGE: TAPE})
    found = {name: secrets.token_bytes(BYTES) for name in NAMES}
    for name, data in found.items():
        store(space, f"/t/{name}", data)
    robot.move(*(path for path in (space.directory / TAPE / "blobs").rglob("*") if path.is_file()))
    return found


def status(point: Path) -> dict[str, object]:
    return json.loads(os.getxattr(point, "user.vosfs.status"))


def mount_log(point: Path) -> str:
    return (point.parent / f"{point.name}-cache" / "vosfs.log").read_text()


def readable(file: Path) -> bool:
    try:
        file.read_bytes()
    except OSError as exc:
        assert exc.errno == errno.EAGAIN, exc
        return False
    return True


@pytest.fixture(params=["gateway", "plain"])
def point(
    request: pytest.FixtureRequest, space: Daemon, make_mount: Callable[..., Path], contents: dict[str, bytes]
) -> Path:
    """The space, mounted by each binding."""
    return make_mount(space, "mnt", *(["plain"] if request.param == "plain" else []))


def test_reading_says_again_until_it_is_here(point: Path, robot: Robot, contents: dict[str, bytes]) -> None:
    file = point / "t/a"
    with robot.busy():
        assert file.stat().st_size == BYTES
        assert os.getxattr(file, "user.vosfs.locality") == b"NEARLINE" and robot.asked() == []
        for flags in (os.O_RDONLY, os.O_RDONLY, os.O_RDWR):
            with pytest.raises(BlockingIOError) as caught:
                os.open(file, flags)
            assert caught.value.errno == errno.EAGAIN
        assert os.getxattr(file, "user.vosfs.locality") == b"STAGING"
        for command in (["cat", file], ["cp", file, point.parent / "copy"]):
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 1 and "Resource temporarily unavailable" in done.stderr, done
        assert status(point)["staging"] == 1
        shown = subprocess.run([BIN / "vosfs", "status", point], capture_output=True, text=True, timeout=60).stdout
        assert "staging  1 file" in shown
        assert len(robot.asked()) == 1
    eventually("it is here", lambda: os.getxattr(file, "user.vosfs.locality") == b"ONLINE")
    assert file.read_bytes() == contents["a"]
    eventually("nothing is on its way", lambda: status(point)["staging"] == 0)
    log = mount_log(point)
    assert log.count("was asked for") == 1 and "/a is there (staging: 0 files)" in log, log
    assert "EAGAIN:" not in log, "one line a file, not one a read"


def test_no_program_takes_it_for_an_empty_file(point: Path, robot: Robot, contents: dict[str, bytes]) -> None:
    """read(2)'s EAGAIN is the end of a file to Python, and its copies were empty; open(2)'s is an error to all."""
    with robot.busy():
        for copy in (shutil.copyfile, shutil.copy2):
            with pytest.raises(BlockingIOError):
                copy(point / "t/a", point.parent / "copy")
            assert not (point.parent / "copy").exists()
        with pytest.raises(BlockingIOError):
            np.fromfile(point / "t/a", dtype="u1")
        with pytest.raises(BlockingIOError):
            (point / "t/a").read_text()
    eventually("it is here", lambda: readable(point / "t/a"))
    assert np.fromfile(point / "t/a", dtype="u1").tobytes() == contents["a"]


def test_a_file_that_goes_to_tape_while_it_is_open(
    space: Daemon, make_mount: Callable[..., Path], robot: Robot, contents: dict[str, bytes]
) -> None:
    """A descriptor that has it: read(2) says so at once, and reads on when it is back."""
    point = make_mount(space)
    big = secrets.token_bytes(40 << 20)
    store(space, "/t/big", big)
    (blob,) = [
        path for path in (space.directory / TAPE / "blobs").rglob("*") if path.is_file() and path.stat().st_blocks
    ]
    fd = os.open(point / "t/big", os.O_RDONLY)
    assert os.pread(fd, 100, 0) == big[:100]
    with robot.busy():
        robot.move(blob)
        with pytest.raises(BlockingIOError) as caught:
            os.pread(fd, 100, 30 << 20)
        assert caught.value.errno == errno.EAGAIN
        assert os.pread(fd, 100, 0) == big[:100], "what is cached"
        assert status(point)["staging"] == 1
    eventually("it is here", lambda: os.getxattr(point / "t/big", "user.vosfs.locality") == b"ONLINE")
    assert os.pread(fd, 100, 30 << 20) == big[30 << 20 :][:100]
    os.close(fd)


def test_a_file_that_is_open_while_it_is_moved_from_tape(
    space: Daemon, make_mount: Callable[..., Path], robot: Robot, contents: dict[str, bytes]
) -> None:
    """Its old bytes go back to tape before the collector has them; nobody waits for those."""
    point = make_mount(space)
    big = secrets.token_bytes(40 << 20)
    store(space, "/t/big", big)
    (blob,) = [
        path for path in (space.directory / TAPE / "blobs").rglob("*") if path.is_file() and path.stat().st_blocks
    ]
    fd = os.open(point / "t/big", os.O_RDONLY)
    assert os.pread(fd, 100, 0) == big[:100]
    done = vosfsd("move-storage", "--config", space.directory / "vosfsd.toml", "/t/big", "default")
    assert done.returncode == 0, done.stderr
    robot.move(blob)
    with robot.busy():
        assert os.pread(fd, 100, 30 << 20) == big[30 << 20 :][:100]
        assert (point / "t/big").read_bytes() == big
    os.close(fd)


def test_what_is_cached_is_read_as_ever(space: Daemon, make_mount: Callable[..., Path], robot: Robot) -> None:
    create(space, "/t", "ContainerNode", properties={STORAGE: TAPE})
    data = secrets.token_bytes(BYTES)
    store(space, "/t/f", data)
    point = make_mount(space)
    assert (point / "t/f").read_bytes() == data
    robot.move(*(path for path in (space.directory / TAPE / "blobs").rglob("*") if path.is_file()))
    with robot.busy():
        with open(point / "t/f", "rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert stream.read() == data
        with open(point / "t/f", "r+b") as stream:
            stream.seek(BYTES)
            stream.write(b"more")
        assert (point / "t/f").read_bytes() == data + b"more"
        assert robot.asked() == [] and status(point)["staging"] == 0


def test_a_file_is_asked_for_by_an_attribute(
    space: Daemon, make_mount: Callable[..., Path], robot: Robot, contents: dict[str, bytes]
) -> None:
    point = make_mount(space)
    file = point / "t/b"
    with robot.busy():
        os.setxattr(file, "user.vosfs.stage", b"true")
        assert os.getxattr(file, "user.vosfs.locality") == b"STAGING"
        eventually("the command runs", lambda: len(robot.asked()) == 1)
        with pytest.raises(OSError) as caught:
            os.setxattr(file, "user.vosfs.locality", b"ONLINE")
        assert caught.value.errno == errno.EACCES
        assert "user.vosfs.stage" not in os.listxattr(file) and "user.vosfs.locality" in os.listxattr(file)
    eventually("it is here", lambda: os.getxattr(file, "user.vosfs.locality") == b"ONLINE")
    assert file.read_bytes() == contents["b"]


def test_looking_at_a_tree_brings_no_tape(
    space: Daemon, make_mount: Callable[..., Path], robot: Robot, contents: dict[str, bytes]
) -> None:
    point = make_mount(space)
    subprocess.run(["ls", "-lR", point], check=True, capture_output=True)
    subprocess.run(["find", point, "-size", "+1k"], check=True, capture_output=True)
    os.rename(point / "t/a", point / "t/renamed")
    os.utime(point / "t/renamed")
    os.unlink(point / "t/b")
    assert robot.asked() == []


def test_a_tree_comes_while_a_program_tries_again(
    space: Daemon, make_mount: Callable[..., Path], robot: Robot, contents: dict[str, bytes]
) -> None:
    """What a user does: copy all that can be copied, and again until it was everything."""
    point = make_mount(space)
    with robot.busy():
        assert [readable(point / "t" / name) for name in NAMES] == [False] * 3
        assert status(point)["staging"] == 3
    eventually("all is here", lambda: all(readable(point / "t" / name) for name in NAMES))
    assert {name: (point / "t" / name).read_bytes() for name in NAMES} == contents
    assert sorted(robot.asked()) == sorted(set(robot.asked())) and len(robot.asked()) == 3
    eventually("nothing is on its way", lambda: status(point)["staging"] == 0)


def test_part_of_a_file_on_tape_is_written(
    space: Daemon, make_mount: Callable[..., Path], robot: Robot, contents: dict[str, bytes]
) -> None:
    """Saving needs none of the bytes that are there already."""
    point = make_mount(space)
    with robot.busy():
        fd = os.open(point / "t/c", os.O_WRONLY)
        os.pwrite(fd, b"patched", 1000)
        os.fsync(fd)
        os.close(fd)
        assert not readable(point / "t/c")
    eventually("it is here", lambda: readable(point / "t/c"))
    data = contents["c"]
    assert (point / "t/c").read_bytes() == data[:1000] + b"patched" + data[1007:]
