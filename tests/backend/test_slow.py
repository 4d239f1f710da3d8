"""A directory whose files may be on tape: nothing is read that is not here, and what is asked for comes once."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually
from tests.services.hsm import Robot
from vosfs.backends import slow
from vosfs.backends.backend import NEARLINE, ONLINE, STAGING, Slow
from vosfs.backends.memory import MemoryBackend
from vosfs.backends.posix import PosixBackend
from vosfs.backends.slow import SlowDirectory
from vosfs.backends.storages import DEFAULT, Storages
from vosfs.errors import BlobMissing, NotOnline, QuietError, ServiceUnavailable
from vosfs.metadata.node import Blob, parts

DATA = os.urandom(100_000)
TAPE = "tape"


@pytest.fixture
def robot(tmp_path: Path) -> Robot:
    return Robot(tmp_path / "vault")


@pytest.fixture
def make(tmp_path: Path, robot: Robot) -> Iterator[Callable[..., SlowDirectory]]:
    """Opens the slow directory of this test."""
    opened = []

    def open_it(command: tuple[str, ...] = ()) -> SlowDirectory:
        directory = PosixBackend(tmp_path / TAPE, open_max=0)
        opened.append(SlowDirectory(directory, command or tuple(robot.command)))
        return opened[-1]

    yield open_it
    for backend in opened:
        backend.close()


@pytest.fixture
def tape(make: Callable[..., SlowDirectory]) -> SlowDirectory:
    return make()


def put(backend: SlowDirectory, data: bytes = DATA) -> Blob:
    writer = backend.create()
    writer.write(data)
    return writer.finish(True)


def path(backend: SlowDirectory, locator: str) -> Path:
    return backend._directory.path(locator)


def read(backend: SlowDirectory | Storages, locator: str) -> bytes:
    reader = backend.open(locator)
    try:
        return reader.read(0, reader.length)
    finally:
        reader.close()


def comes(backend: SlowDirectory, locator: str) -> None:
    eventually(f"{locator} is here", lambda: backend.locality(locator) == ONLINE)


def test_which_backends_are_slow(tape: SlowDirectory, tmp_path: Path) -> None:
    assert isinstance(tape, Slow)
    assert not isinstance(MemoryBackend(), Slow) and not isinstance(PosixBackend(tmp_path / "x"), Slow)


def test_a_file_on_tape_comes_when_it_is_asked_for(tape: SlowDirectory, robot: Robot) -> None:
    blob = put(tape)
    assert tape.locality(blob.locator) == ONLINE
    robot.move(path(tape, blob.locator))
    assert tape.locality(blob.locator) == NEARLINE
    with pytest.raises(NotOnline):
        tape.open(blob.locator, 0, 10)
    assert robot.asked() == [], "opening asks for nothing"
    with robot.busy():
        for _ in range(3):
            tape.stage(blob.locator)
            assert tape.locality(blob.locator) == STAGING
        eventually("the command runs", lambda: len(robot.asked()) == 1)
        with pytest.raises(NotOnline):
            tape.open(blob.locator)
    comes(tape, blob.locator)
    assert read(tape, blob.locator) == DATA
    assert robot.asked() == [blob.locator]
    robot.move(path(tape, blob.locator))
    eventually("the first command is forgotten", lambda: tape.locality(blob.locator) == NEARLINE)
    tape.stage(blob.locator)
    comes(tape, blob.locator)
    assert robot.asked() == [blob.locator] * 2


def test_what_is_gone_is_missing_and_not_slow(tape: SlowDirectory) -> None:
    blob = put(tape)
    tape.remove(blob.locator)
    for ask in (tape.locality, tape.stage, tape.open):
        with pytest.raises(BlobMissing):
            ask(blob.locator)


def test_no_file_is_held_open(tape: SlowDirectory) -> None:
    """Systems that move files to tape leave those alone that somebody has open."""
    locators = [put(tape).locator for _ in range(3)]
    assert [read(tape, locator) for locator in locators] == [DATA] * 3
    held = {
        os.readlink(f"/proc/self/fd/{fd}")
        for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    }
    assert not held & {str(path(tape, locator)) for locator in locators}


def test_a_file_that_fits_into_an_inode_is_here(tape: SlowDirectory, robot: Robot) -> None:
    blob = put(tape, b"x" * (slow.INODE_BYTES - 1))
    file = path(tape, blob.locator)
    os.truncate(file, 0)
    os.truncate(file, slow.INODE_BYTES - 1)
    assert file.stat().st_blocks == 0
    assert tape.locality(blob.locator) == ONLINE


@pytest.mark.expect_log
def test_a_command_that_fails_is_not_run_again_at_once(
    tape: SlowDirectory, robot: Robot, caplog: pytest.LogCaptureFixture
) -> None:
    blob = put(tape)
    robot.move(path(tape, blob.locator))
    with robot.broken():
        tape.stage(blob.locator)
        eventually("it failed", lambda: tape.locality(blob.locator) == NEARLINE)
    assert "ended with status 1" in caplog.text
    with pytest.raises(ServiceUnavailable, match="failed a moment ago"):
        tape.stage(blob.locator)
    assert len(robot.asked()) == 1
    tape._requests[blob.locator].until = 0.0
    tape.stage(blob.locator)
    comes(tape, blob.locator)


def test_only_so_many_are_on_their_way(tape: SlowDirectory, robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow, "STAGING_MAX", 2)
    locators = [put(tape).locator for _ in range(4)]
    robot.move(*(path(tape, locator) for locator in locators))
    with robot.busy():
        for locator in locators[:2]:
            tape.stage(locator)
        with pytest.raises(ServiceUnavailable, match="2 files are on their way"):
            tape.stage(locators[2])
        tape.stage(locators[0])
    for request in list(tape._requests.values()):
        assert request.process is not None
        request.process.wait(10)
    tape.stage(locators[2])
    tape.stage(locators[3])
    for locator in locators:
        comes(tape, locator)
    assert sorted(robot.asked()) == sorted(locators)


def test_a_request_that_is_not_met_is_made_again(tape: SlowDirectory, robot: Robot) -> None:
    blob = put(tape)
    robot.move(path(tape, blob.locator))
    with robot.busy():
        tape.stage(blob.locator)
        process = tape._requests[blob.locator].process
        assert process is not None
        eventually("the command runs", lambda: len(robot.asked()) == 1)
        tape._requests[blob.locator].until = 0.0
        assert tape.locality(blob.locator) == NEARLINE
        assert process.returncode == -signal.SIGKILL, "nobody waits for it any more"
        tape.stage(blob.locator)
        assert tape.locality(blob.locator) == STAGING
    comes(tape, blob.locator)


def test_commands_end_with_the_daemon(make: Callable[..., SlowDirectory], robot: Robot) -> None:
    tape = make()
    blob = put(tape)
    robot.move(path(tape, blob.locator))
    with robot.busy():
        tape.stage(blob.locator)
        process = tape._requests[blob.locator].process
        assert process is not None
        tape.close()
        assert process.returncode is not None


def test_a_removed_blob_is_not_waited_for(tape: SlowDirectory, robot: Robot) -> None:
    blob = put(tape)
    robot.move(path(tape, blob.locator))
    with robot.busy():
        tape.stage(blob.locator)
        process = tape._requests[blob.locator].process
        assert process is not None
        tape.remove(blob.locator)
        assert process.returncode is not None and not tape._requests


def test_durability_of_what_went_to_tape_is_the_tapes(tape: SlowDirectory, robot: Robot) -> None:
    """Making a blob durable opens it, which must not wait for a robot."""
    here, away = put(tape), put(tape)
    robot.move(path(tape, away.locator))
    tape.sync([here.locator, away.locator])
    assert tape.locality(away.locator) == NEARLINE and robot.asked() == []


def test_a_program_that_is_not_there_is_said_at_the_start(make: Callable[..., SlowDirectory]) -> None:
    tape = make(("/nowhere/recall", "{path}"))
    with pytest.raises(QuietError, match="stage_command: there is no program /nowhere/recall"):
        tape.check("space")
    blob = put(tape)
    os.truncate(path(tape, blob.locator), 0)
    os.truncate(path(tape, blob.locator), len(DATA))
    with pytest.raises(ServiceUnavailable, match="/nowhere/recall: No such file"):
        tape.stage(blob.locator)
    assert tape.locality(blob.locator) == NEARLINE


def test_no_shell_sees_the_command(make: Callable[..., SlowDirectory], tmp_path: Path) -> None:
    tape = make(("/usr/bin/touch", "--", f"{tmp_path}/$(touch hurt) ; x", "{path}.asked"))
    blob = put(tape)
    os.truncate(path(tape, blob.locator), 0)
    os.truncate(path(tape, blob.locator), len(DATA))
    tape.stage(blob.locator)
    file = path(tape, blob.locator)
    eventually("it ran", lambda: file.with_name(file.name + ".asked").exists())
    assert (tmp_path / "$(touch hurt) ; x").exists()


# -- with other storages ---------------------------------------------------------------------------------------------


@pytest.fixture
def storages(tape: SlowDirectory, tmp_path: Path) -> Iterator[Storages]:
    """A directory, and one behind tape."""
    made = Storages({DEFAULT: PosixBackend(tmp_path / DEFAULT), TAPE: tape})
    yield made
    made.close()


def stored(storages: Storages, policy: str) -> Blob:
    writer = storages.create(0, policy)
    writer.write(DATA)
    return writer.finish(True)


def file(storages: Storages, part: str) -> Path:
    member = storages.members[storages.storage_of(part)]
    if isinstance(member, SlowDirectory):
        return path(member, part.rpartition("~")[2])
    assert isinstance(member, PosixBackend)
    member.close()
    return member.path(part)


def test_a_blob_is_where_its_nearest_copy_is(storages: Storages, robot: Robot) -> None:
    alone, both = stored(storages, TAPE), stored(storages, f"{TAPE} {DEFAULT}")
    robot.move(file(storages, alone.locator), file(storages, parts(both.locator)[0]))
    assert storages.slow and storages.may_be_away(alone.locator) and not storages.may_be_away(both.locator)
    assert storages.locality([both.locator]) == ONLINE and read(storages, both.locator) == DATA
    assert storages.locality([both.locator, alone.locator]) == NEARLINE
    storages.recall([both.locator])
    assert robot.asked() == [], "the other copy will do"
    with robot.busy():
        with pytest.raises(NotOnline, match="on their way back"):
            storages.recall([both.locator, alone.locator])
        assert storages.locality([alone.locator]) == STAGING
        with pytest.raises(NotOnline):
            storages.open(alone.locator)
    eventually("it is here", lambda: storages.locality([alone.locator]) == ONLINE)
    storages.recall([alone.locator])
    assert read(storages, alone.locator) == DATA
    assert robot.asked() == [alone.locator.removeprefix("tape~")]


@pytest.mark.expect_log
def test_the_copy_on_tape_is_asked_for_when_the_other_is_lost(storages: Storages, robot: Robot) -> None:
    both = stored(storages, f"{DEFAULT} {TAPE}")
    near, far = parts(both.locator)
    file(storages, near).unlink()
    robot.move(file(storages, far))
    with pytest.raises(NotOnline):
        storages.open(both.locator)
    eventually("it was asked for", lambda: len(robot.asked()) == 1)
    eventually("it is here", lambda: storages._locality_of(far) == ONLINE)
    assert read(storages, both.locator) == DATA


def test_a_space_without_slow_storages_looks_at_no_disk(tmp_path: Path) -> None:
    storages = Storages({DEFAULT: PosixBackend(tmp_path / DEFAULT)})
    assert not storages.slow and storages.locality(["0" * 32]) == ONLINE
    storages.recall(["0" * 32])
    storages.close()


def test_commands_inherit_no_descriptor(make: Callable[..., SlowDirectory], tmp_path: Path) -> None:
    """A robot that holds a database open would keep it locked."""
    listing = tmp_path / "listing"
    tape = make(("/bin/sh", "-c", 'ls -l /proc/$$/fd > "$1"', "{path}", str(listing)))
    blob = put(tape)
    os.truncate(path(tape, blob.locator), 0)
    os.truncate(path(tape, blob.locator), len(DATA))
    with open(tmp_path / "database", "w"):
        tape.stage(blob.locator)
        process = tape._requests[blob.locator].process
        assert isinstance(process, subprocess.Popen) and process.wait(10) == 0
    assert "database" not in listing.read_text() and "null" in listing.read_text()
