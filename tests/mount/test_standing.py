"""Handles that stand: what is opened without Python is counted, closed and taken back, and nobody reads what is not there."""

import errno
import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import BIN, Daemon, eventually
from tests.mount import counting
from vosfs.standing import STANDING_MAX

# -- what the library does -------------------------------------------------------------------------------------------


class Counted:
    """The file of the file system that counts."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._came: list[str] = []

    def read(self) -> bytes:
        return self.file.read_bytes()

    def withdraw(self) -> None:
        """Take its standing handle back."""
        os.setxattr(self.file, "user.withdraw", b"")

    def came(self) -> list[str]:
        """All that came to Python so far."""
        self._came += json.loads(os.getxattr(self.file, "user.events"))
        return self._came


@pytest.fixture
def counted(tmp_path: Path) -> Iterator[Counted]:
    """Mounted."""
    point = tmp_path / "counted"
    point.mkdir()
    program = [sys.executable, "-m", counting.__name__, str(point)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "mounted\n"
            yield Counted(point / "f")
        finally:
            subprocess.run(["fusermount3", "-u", point], check=True)
            assert process.wait(10) == 0


def test_opens_of_a_standing_handle_do_not_come_to_python(counted: Counted) -> None:
    for _ in range(100):
        assert counted.read() == counting.DATA
    assert counted.came() == ["open 1 stands"]


def test_who_writes_is_asked_about(counted: Counted) -> None:
    counted.read()
    os.close(os.open(counted.file, os.O_WRONLY))
    # A release follows its close(2) some time later.
    eventually("it is released", lambda: counted.came() == ["open 1 stands", "open 2", "release 2"])


def test_one_that_is_taken_back_idle_is_never_released(counted: Counted) -> None:
    counted.read()
    counted.withdraw()
    assert counted.read() == counting.DATA
    assert counted.came() == ["open 1 stands", "idle True", "open 2 stands"]


def test_one_that_is_taken_back_in_use_is_released_when_the_last_one_closes_it(counted: Counted) -> None:
    with ExitStack() as files:
        for _ in range(3):
            files.enter_context(open(counted.file, "rb"))
        counted.withdraw()
        # From here on there are two of the same file, of which one stands.
        with open(counted.file, "rb") as newer, open(counted.file, "rb"):
            assert newer.read() == counting.DATA
        before = ["open 1 stands", "idle False", "open 2 stands"]
        assert counted.came() == before
    eventually("it is released", lambda: counted.came() == [*before, "release 1"])
    counted.read()
    assert counted.came() == [*before, "release 1"]


def test_pages_that_the_kernel_lost_are_read_through_it(counted: Counted) -> None:
    counted.read()
    with open(counted.file, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == counting.DATA


def test_attributes_of_other_namespaces_do_not_come_to_python(counted: Counted) -> None:
    for name, code in (("security.capability", errno.EOPNOTSUPP), ("user.other", errno.ENODATA)):
        with pytest.raises(OSError) as caught:
            os.getxattr(counted.file, name)
        assert caught.value.errno == code
    assert counted.came() == ["user.other"]


# -- what the mount makes of it --------------------------------------------------------------------------------------


def standing(file: Path, data: bytes) -> None:
    """Have a handle of a file that stands."""
    for _ in range(2):
        assert file.read_bytes() == data


def status(point: Path) -> dict[str, object]:
    done = subprocess.run([BIN / "vosfs", "status", "--json", point], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout)[0])


@pytest.mark.parametrize("change", ["write", "append", "truncate", "cut by name", "replace", "shared mapping"])
def test_what_this_mount_changes_is_what_the_next_one_reads(mount: Path, change: str) -> None:
    file, other = mount / "f", mount / "g"
    file.write_bytes(b"a" * 5000)
    other.write_bytes(b"b" * 70)
    standing(file, b"a" * 5000)
    if change == "write":
        file.write_bytes(b"c" * 9000)
        expected = b"c" * 9000
    elif change == "append":
        with open(file, "ab") as appended:
            appended.write(b"d")
        expected = b"a" * 5000 + b"d"
    elif change == "truncate":
        with open(file, "wb"):
            pass
        expected = b""
    elif change == "cut by name":
        os.truncate(file, 3)
        expected = b"aaa"
    elif change == "replace":
        os.rename(other, file)
        expected = b"b" * 70
    else:
        with open(file, "r+b") as mapped, mmap.mmap(mapped.fileno(), 5000) as memory:
            memory[0:1] = b"e"
        expected = b"e" + b"a" * 4999
    assert file.read_bytes() == expected
    standing(file, expected)


def test_a_file_that_is_removed_while_it_stands_is_readable_for_who_has_it_open(mount: Path) -> None:
    file = mount / "f"
    file.write_bytes(b"a" * 5000)
    standing(file, b"a" * 5000)
    with open(file, "rb") as reader:
        file.unlink()
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert reader.read() == b"a" * 5000 and os.fstat(reader.fileno()).st_nlink == 0
    assert not file.exists()


def test_a_standing_handle_is_not_an_open_file(mount: Path) -> None:
    (mount / "f").write_bytes(b"a")
    standing(mount / "f", b"a")
    with open(mount / "f", "rb"):
        assert status(mount)["open_files"] == 1
    eventually("it is closed", lambda: status(mount)["open_files"] == 0)


def test_more_files_than_may_stand_are_all_read_again(mount: Path) -> None:
    for number in range(STANDING_MAX + 100):
        (mount / f"{number}").write_bytes(b"%d" % number)
    for _ in range(2):
        for number in range(STANDING_MAX + 100):
            assert (mount / f"{number}").read_bytes() == b"%d" % number
    assert status(mount)["open_files"] == 0


def test_what_changes_elsewhere_while_it_is_open_is_read_by_the_next_one(
    daemon: Daemon, make_mount: Callable[..., Path]
) -> None:
    here, there = make_mount(daemon, "here"), make_mount(daemon, "there")
    (there / "f").write_bytes(b"a" * 9000)
    eventually("it is seen", lambda: (here / "f").exists())
    standing(here / "f", b"a" * 9000)
    with open(here / "f", "rb"):
        for data in (b"%d" % number * 4000 for number in range(5)):
            (there / "f").write_bytes(data)
            eventually("it changed", lambda data=data: (here / "f").read_bytes() == data)
        (there / "f").unlink()
        eventually("it is gone", lambda: not (here / "f").exists())
