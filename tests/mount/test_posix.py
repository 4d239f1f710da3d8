"""The mount is a file system as POSIX has it: what programs may ask of one, under several users, and the errno of each.

The long list is pjdfstest's (``make posix``); here stands what it does not ask, and what once was wrong.
"""

import contextlib
import ctypes
import errno
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Daemon, eventually, unmount

OTHER = 65534
"""A user and a group that own nothing."""
root_only = pytest.mark.skipif(os.getuid() != 0, reason="takes several users")


def as_other(code: str, where: Path) -> str:
    """What a Python program prints as another user, who need not be able to start Python."""
    become = f"import os, stat, time\nos.setgroups([])\nos.setresgid(*[{OTHER}] * 3)\nos.setresuid(*[{OTHER}] * 3)\n"
    done = subprocess.run([sys.executable, "-c", become + code], cwd=where, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def errno_as_other(call: str, where: Path) -> int:
    """The errno of one call as another user, 0 if it succeeds."""
    return int(as_other(f"try:\n    {call}\nexcept OSError as exc:\n    print(exc.errno)\nelse:\n    print(0)", where))


@pytest.fixture
def shared(daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path) -> Path:
    """A mount that other users may use."""
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.getuid() and not path.stat().st_mode & stat.S_IXOTH:
            path.chmod(path.stat().st_mode | stat.S_IXOTH)
    return make_mount(daemon, "mnt", "allow_other")


@pytest.mark.needs_gateway("no pipes, sockets or devices")
def test_a_pipe_carries_bytes_between_programs(mount: Path) -> None:
    os.mkfifo(mount / "pipe", 0o640)
    status = os.stat(mount / "pipe")
    assert stat.S_ISFIFO(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o640 and status.st_size == 0
    writer = subprocess.Popen(["sh", "-c", "echo through > pipe"], cwd=mount)
    assert (mount / "pipe").read_text() == "through\n"
    assert writer.wait(30) == 0
    with pytest.raises(OSError) as caught:
        os.open(mount / "pipe", os.O_WRONLY | os.O_NONBLOCK)
    assert caught.value.errno == errno.ENXIO


@pytest.mark.needs_gateway("no pipes, sockets or devices")
def test_a_socket_is_bound_and_found(mount: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(mount / "socket"))
        server.listen()
        assert stat.S_ISSOCK(os.stat(mount / "socket").st_mode)
        client.connect(str(mount / "socket"))
        with server.accept()[0] as peer:
            client.sendall(b"hello")
            assert peer.recv(5) == b"hello"


@pytest.mark.needs_gateway("no pipes, sockets or devices")
@root_only
def test_special_nodes_survive_links_renames_and_a_remount(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    first = make_mount(daemon)
    wanted = {
        "character": (stat.S_IFCHR, os.makedev(4095, (1 << 20) - 1)), "block": (stat.S_IFBLK, os.makedev(8, 17)),
        "pipe": (stat.S_IFIFO, 0), "socket": (stat.S_IFSOCK, 0),
    }  # fmt: skip
    for name, (kind, device) in wanted.items():
        os.mknod(first / name, kind | 0o604, device)
        os.link(first / name, first / f"{name}-too")
        os.rename(first / f"{name}-too", first / f"{name}-moved")
        os.chown(first / name, 1, 2)
        os.utime(first / name, ns=(1, 2))
    unmount(first)
    second = make_mount(daemon, "second")
    for name, (kind, device) in wanted.items():
        status = os.lstat(second / f"{name}-moved")
        assert (status.st_mode, status.st_rdev, status.st_nlink) == (kind | 0o604, device, 2)
        assert (status.st_uid, status.st_gid, status.st_atime_ns, status.st_mtime_ns) == (1, 2, 1, 2)
    assert {entry.name: entry.is_file() for entry in os.scandir(second)} == dict.fromkeys(
        [*wanted, *(f"{name}-moved" for name in wanted)], False
    )
    subprocess.run(["cp", "-a", second / "character", second / "pipe", second / "socket", second / ".."], check=True)
    subprocess.run(["rm", *(second / name for name in os.listdir(second))], check=True)


@pytest.mark.needs_gateway("no pipes, sockets or devices")
@root_only
def test_vospace_shows_special_nodes_as_empty_data_nodes(daemon: Daemon, mount: Path) -> None:
    os.mknod(mount / "disk", stat.S_IFBLK | 0o600, os.makedev(8, 1))
    os.mkfifo(mount / "pipe")
    for name, what in (("disk", b"blockdev 8:1"), ("pipe", b"fifo")):
        _, _, body = daemon.request("GET", f"/nodes/{name}")
        assert b'xsi:type="vos:DataNode" busy="false"' in body and b'core#length" readOnly="true">0<' in body
        assert b'uri="ivo://vosfs/core#filetype" readOnly="true">' + what + b"<" in body
        assert daemon.request("POST", f"/nodes/{name}", body)[0] == 200
        changed = body.replace(what, b"fifo" if name == "disk" else b"socket")
        assert daemon.request("POST", f"/nodes/{name}", changed)[0] == 403
        status, _, body = daemon.request("GET", f"/files/{name}")
        assert (status, body) == (200, b"")
        assert daemon.request("PUT", f"/files/{name}", b"bytes")[0] == 400
        assert daemon.request("DELETE", f"/nodes/{name}")[0] == 204


@pytest.mark.needs_gateway("containers are not counted")
def test_links_of_a_directory_are_its_names_and_its_subdirectories(
    daemon: Daemon, make_mount: Callable[..., Path]
) -> None:
    here = make_mount(daemon)

    def links(*names: str) -> list[int]:
        found = [os.stat(here / name).st_nlink for name in names]
        if there:
            eventually("the same elsewhere", lambda: found == [os.stat(there / name).st_nlink for name in names])
        return found

    there: Path | None = None
    for name in ("a", "b", "a/c", "a/d"):
        (here / name).mkdir()
    (here / "a/file").touch()
    assert links("", "a", "b") == [4, 4, 2]
    os.rename(here / "a/c", here / "b/c")
    assert links("", "a", "b") == [4, 3, 3]
    os.rename(here / "a/d", here / "b/c")
    assert links("", "a", "b", "b/c") == [4, 2, 3, 2]
    there = make_mount(daemon, "there")
    assert links("", "a", "b", "b/c") == [4, 2, 3, 2]
    os.rmdir(there / "b/c")
    eventually("the other mount sees it", lambda: os.stat(here / "b").st_nlink == 2)
    open_directory = os.open(here / "b", os.O_RDONLY)
    os.rmdir(here / "b")
    assert os.fstat(open_directory).st_nlink == 0
    os.close(open_directory)
    assert links("", "a") == [3, 2]


def test_a_name_that_is_too_long_says_so(mount: Path) -> None:
    (mount / "a").touch()
    long = mount / ("n" * 256)
    for call in (
        lambda: os.stat(long), lambda: os.unlink(long), lambda: os.rmdir(long), lambda: os.mkdir(long),
        lambda: os.open(long, os.O_RDONLY), lambda: os.open(long, os.O_WRONLY | os.O_CREAT), lambda: os.mkfifo(long),
        lambda: os.symlink("a", long), lambda: os.link(mount / "a", long), lambda: os.rename(mount / "a", long),
        lambda: os.rename(long, mount / "a"), lambda: os.chmod(long, 0o600), lambda: os.truncate(long, 0),
    ):  # fmt: skip
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ENAMETOOLONG
    assert os.statvfs(mount).f_namemax == 255
    (mount / ("n" * 255)).touch()


@pytest.mark.needs_gateway("mode, owner and times are not kept")
@root_only
def test_setgid_of_a_container_is_handed_down(shared: Path) -> None:
    top = shared / "top"
    top.mkdir()
    os.chown(top, OTHER, 4321)
    os.chmod(top, 0o2777)
    code = "os.umask(0); os.mkdir('d', 0o755); os.close(os.open('f', os.O_CREAT | os.O_WRONLY, 0o644));"
    as_other(code + "os.symlink('x', 'l'); os.mkfifo('p', 0o644)", top)
    found = {name: os.lstat(top / name) for name in "dflp"}
    assert {(status.st_uid, status.st_gid) for status in found.values()} == {(OTHER, 4321)}
    assert [stat.S_IMODE(found[name].st_mode) for name in "dfp"] == [0o2755, 0o644, 0o644]


@pytest.mark.needs_gateway("mode, owner and times are not kept")
@root_only
def test_the_sticky_bit_protects_names(shared: Path) -> None:
    top = shared / "top"
    top.mkdir()
    top.chmod(0o1777)
    (top / "theirs").touch()
    assert errno_as_other("os.unlink('theirs')", top) == errno.EPERM
    assert errno_as_other("os.rename('theirs', 'mine')", top) == errno.EPERM
    top.chmod(0o777)
    assert errno_as_other("os.unlink('theirs')", top) == 0


@pytest.mark.needs_gateway("mode, owner and times are not kept")
@root_only
def test_setuid_goes_when_another_writes_or_the_owner_changes(shared: Path) -> None:
    file = shared / "file"
    file.touch()
    for change in ("os.write(os.open('file', os.O_WRONLY), b'x')", "os.truncate('file', 5)"):
        file.chmod(0o6777)
        as_other(change, shared)
        assert stat.S_IMODE(file.stat().st_mode) == 0o777
    os.chown(file, OTHER, OTHER)
    file.chmod(0o6777)
    as_other(f"os.chown('file', -1, {OTHER})", shared)
    assert stat.S_IMODE(file.stat().st_mode) == 0o777


@root_only
def test_the_suite_is_run_and_its_failures_are_told(tmp_path: Path) -> None:
    """``make posix``, with a suite of two files in place of the real one."""
    tests = tmp_path / "suite/tests/some"
    tests.mkdir(parents=True)
    (tmp_path / "suite/pjdfstest").touch(0o755)
    (tests / "00.t").write_text("echo 1..2\nmkdir d && echo ok 1\nmkfifo p && echo ok 2\n")
    (tests / "01.t").write_text("echo 1..3\nls d || echo ok 1\necho not ok 2 - tried this, got that\n")
    script = Path(__file__).parents[2] / "scripts/posix.py"
    command = [sys.executable, script, tmp_path / "suite"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[:2] == ["some/01.t 2: tried this, got that", "some/01.t 3: not run"]
    assert done.stdout.splitlines()[-2].split() == ["all", "2", "5", "2"]
    done = subprocess.run([*command, "some/00.t"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.splitlines()[-2].split() == ["all", "1", "2", "0"]


# -- an open file's attributes -------------------------------------------------------------------------------------------


def times(status: os.stat_result) -> tuple[int, int]:
    """atime and mtime."""
    return status.st_atime_ns, status.st_mtime_ns


@pytest.mark.needs_gateway("mode, owner and times are not kept")
def test_attributes_set_before_the_close_are_those_after_it(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    """As cp -p and tar do it: write, set mode and times through the descriptor, close."""
    first = make_mount(daemon)
    with open(first / "f", "w+b", buffering=0) as stream:
        stream.write(b"abc")
        os.utime(stream.fileno(), ns=(1, 2))
        os.fchmod(stream.fileno(), 0o4640)
        found = os.fstat(stream.fileno())
        assert (times(found), stat.S_IMODE(found.st_mode), found.st_size) == ((1, 2), 0o4640, 3)
        assert abs(found.st_ctime_ns - time.time_ns()) < 10**10
    unmount(first)
    found = os.stat(make_mount(daemon, "second") / "f")
    assert (times(found), stat.S_IMODE(found.st_mode), found.st_size) == ((1, 2), 0o4640, 3)


def test_a_time_that_cannot_be_kept_is_refused_and_costs_no_bytes(daemon: Daemon, mount: Path) -> None:
    with open(mount / "f", "wb", buffering=0) as stream:
        stream.write(b"abc")
        for seconds in (1 << 40, -(1 << 40)):
            with pytest.raises(OSError) as caught:
                os.utime(mount / "f", (seconds, seconds))
            assert caught.value.errno == errno.EINVAL
    assert daemon.request("GET", "/files/f")[2] == b"abc"


@pytest.mark.needs_gateway("mode, owner and times are not kept")
def test_one_time_alone_can_be_set_while_bytes_are_unsaved(mount: Path) -> None:
    with open(mount / "f", "w+b", buffering=0) as stream:
        stream.write(b"abc")
        before = os.fstat(stream.fileno())
        subprocess.run(["touch", "-a", "-d", "@5", mount / "f"], check=True)
        assert times(os.fstat(stream.fileno())) == (5 * 10**9, before.st_mtime_ns)
        subprocess.run(["touch", "-m", "-d", "@7", mount / "f"], check=True)
    assert times(os.stat(mount / "f")) == (5 * 10**9, 7 * 10**9)


@pytest.mark.needs_gateway("mode, owner and times are not kept")
def test_a_file_without_a_name_keeps_its_attributes(mount: Path) -> None:
    for how in ("unlink", "replace"):
        (mount / "f").write_bytes(b"abc")
        with open(mount / "f", "r+b", buffering=0) as stream:
            os.chmod(mount / "f", 0o640)
            before = os.fstat(stream.fileno())
            if how == "unlink":
                os.unlink(mount / "f")
            else:
                (mount / "g").touch()
                os.rename(mount / "g", mount / "f")
            gone = os.fstat(stream.fileno())
            assert (gone.st_nlink, stat.S_IMODE(gone.st_mode)) == (0, 0o640) and gone.st_ctime_ns > before.st_ctime_ns
            stream.write(b"xy")
            os.fchmod(stream.fileno(), 0o604)
            os.utime(stream.fileno(), ns=(3, 4))
            os.truncate(stream.fileno(), 2)
            os.utime(stream.fileno(), ns=(5, 6))
            found = os.fstat(stream.fileno())
            assert (stat.S_IMODE(found.st_mode), found.st_size, times(found)) == (0o604, 2, (5, 6))
            assert os.pread(stream.fileno(), 9, 0) == b"xy"


@pytest.mark.needs_gateway("no pipes, sockets or devices")
def test_a_directory_or_pipe_without_a_name_keeps_its_attributes(daemon: Daemon, mount: Path) -> None:
    """Also when the daemon has purged it, which it does every two seconds."""
    os.mkfifo(mount / "pipe", 0o640)
    os.mkdir(mount / "d", 0o750)
    pipe, directory = os.open(mount / "pipe", os.O_RDWR), os.open(mount / "d", os.O_RDONLY)
    try:
        os.unlink(mount / "pipe")
        os.rmdir(mount / "d")
        with contextlib.closing(sqlite3.connect(daemon.directory / "vosfs.db")) as database:
            left = "SELECT count(*) FROM node WHERE nlink = 0"
            eventually("purged", lambda: database.execute(left).fetchone() == (0,))
        for fd, mode in ((pipe, 0o640), (directory, 0o750)):
            assert (os.fstat(fd).st_nlink, stat.S_IMODE(os.fstat(fd).st_mode)) == (0, mode)
            os.fchmod(fd, 0o600)
            os.utime(fd, ns=(1, 2))
            assert (stat.S_IMODE(os.fstat(fd).st_mode), times(os.fstat(fd))) == (0o600, (1, 2))
        os.write(pipe, b"x")
        assert os.read(pipe, 1) == b"x"
        with pytest.raises(FileNotFoundError):
            os.mkdir("x", dir_fd=directory)
    finally:
        os.close(pipe)
        os.close(directory)


@pytest.mark.needs_gateway("no hard links")
def test_hard_links_of_a_file_with_unsaved_bytes(mount: Path) -> None:
    with open(mount / "f", "wb", buffering=0) as stream:
        stream.write(b"abc")
        before = os.fstat(stream.fileno()).st_ctime_ns
        os.link(mount / "f", mount / "g")
        linked = os.fstat(stream.fileno())
        assert (linked.st_nlink, linked.st_size) == (2, 3) and linked.st_ctime_ns > before
        os.unlink(mount / "f")
        assert (os.fstat(stream.fileno()).st_nlink, os.stat(mount / "g").st_size) == (1, 3)
        stream.write(b"def")
    assert (mount / "g").read_bytes() == b"abcdef"


@pytest.mark.needs_gateway("mode, owner and times are not kept")
@pytest.mark.parametrize("call", ["open", "truncate", "ftruncate"])
def test_a_truncation_to_the_same_length_moves_the_times(mount: Path, call: str) -> None:
    for content in (b"", b"abc"):
        file = mount / "f"
        file.write_bytes(content)
        os.utime(file, ns=(1, 2))
        if call == "open":
            os.close(os.open(file, os.O_WRONLY | os.O_TRUNC))
        elif call == "truncate":
            os.truncate(file, len(content))
        else:
            with open(file, "r+b") as stream:
                os.ftruncate(stream.fileno(), len(content))
        assert os.stat(file).st_mtime_ns > 2 and os.stat(file).st_atime_ns == 1
        assert file.read_bytes() == (b"" if call == "open" else content)


def test_a_file_that_would_be_too_long_says_so(mount: Path) -> None:
    with open(mount / "f", "wb", buffering=0) as stream:
        for call in (
            lambda: os.ftruncate(stream.fileno(), (1 << 60) + 1), lambda: os.truncate(mount / "f", (1 << 63) - 1),
            lambda: os.pwrite(stream.fileno(), b"x", 1 << 60),
        ):  # fmt: skip
            with pytest.raises(OSError) as caught:
                call()
            assert caught.value.errno == errno.EFBIG
    assert os.stat(mount / "f").st_size == 0


def test_a_listing_does_not_bring_back_what_was(mount: Path) -> None:
    """The kernel keeps the attributes that come with a listing: they must be those of now, unsaved bytes included."""
    for number in range(200):
        (mount / f"n{number:03}").touch()
    with open(mount / "n190", "wb", buffering=0) as unsaved, os.scandir(mount) as entries:
        unsaved.write(b"abc")
        next(entries)
        (mount / "n191").write_bytes(b"abcd")
        os.rename(mount / "n192", mount / "moved")
        assert len(list(entries)) >= 199
        assert [os.stat(mount / name).st_size for name in ("n190", "n191", "moved")] == [3, 4, 0]
        assert not (mount / "n192").exists()
    assert [(mount / name).read_bytes() for name in ("n190", "n191")] == [b"abc", b"abcd"]


@pytest.mark.needs_gateway("mode, owner and times are not kept")
@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_a_chown_of_nothing_clears_set_id_bits(mount: Path, kind: str) -> None:
    path = mount / kind
    os.mkfifo(path) if kind == "pipe" else path.touch()
    path.chmod(0o6711)
    os.chown(path, -1, -1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o711


# -- fallocate(2) and lseek(2) --------------------------------------------------------------------------------------------

KEEP_SIZE, PUNCH_HOLE, COLLAPSE_RANGE, ZERO_RANGE = 1, 2, 8, 16
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def fallocate(fd: int, mode: int, start: int, length: int) -> int:
    """Its errno."""
    return ctypes.get_errno() if _fallocate(fd, mode, start, length) else 0


@pytest.mark.needs_gateway("holes are not kept")
def test_holes_are_made_and_found(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    first = make_mount(daemon)
    data = bytearray(os.urandom(1_000_000))
    (first / "file").write_bytes(data)
    with open(first / "file", "r+b") as file:
        fd = file.fileno()
        before_ns = os.fstat(fd).st_mtime_ns
        assert fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 100_000, 50_000) == 0
        data[100_000:150_000] = bytes(50_000)
        assert os.fstat(fd).st_mtime_ns > before_ns
        # What was written here and is in no blob yet is punched as well, and a later write fills a hole again.
        os.pwrite(fd, b"new" * 1000, 200_000)
        assert fallocate(fd, ZERO_RANGE | KEEP_SIZE, 201_000, 300_000) == 0
        os.pwrite(fd, b"again", 300_000)
        data[200_000:203_000] = b"new" * 1000
        data[201_000:501_000] = bytes(300_000)
        data[300_000:300_005] = b"again"
        assert fallocate(fd, ZERO_RANGE, 990_000, 20_000) == 0
        data[990_000:] = bytes(20_000)
        # Beyond the end there is nothing to punch.
        assert fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 1_005_000, 50_000) == 0
        assert os.pread(fd, 2_000_000, 0) == data
        assert fallocate(fd, COLLAPSE_RANGE, 0, 4096) == errno.EOPNOTSUPP
    assert (first / "file").read_bytes() == data
    unmount(first)
    with open(make_mount(daemon) / "file", "rb") as file:
        fd = file.fileno()
        assert os.pread(fd, 2_000_000, 0) == data
        found = [
            os.lseek(fd, 0, os.SEEK_HOLE),
            os.lseek(fd, 100_000, os.SEEK_DATA),
            os.lseek(fd, 120_000, os.SEEK_HOLE),
        ]
        assert found == [100_000, 150_000, 120_000]
        with pytest.raises(OSError) as caught:
            os.lseek(fd, 1_000_000, os.SEEK_DATA)
        assert caught.value.errno == errno.ENXIO


@pytest.mark.needs_gateway("no size is told")
def test_space_is_reserved_where_there_is_some(mount: Path) -> None:
    with open(mount / "file", "w+b") as file:
        fd = file.fileno()
        file.write(b"abc")
        file.flush()
        assert fallocate(fd, KEEP_SIZE, 0, 10_000) == 0 and os.fstat(fd).st_size == 3
        assert fallocate(fd, 0, 2, 10_000) == 0 and os.fstat(fd).st_size == 10_002
        assert fallocate(fd, 0, 0, 10) == 0 and os.fstat(fd).st_size == 10_002
        assert os.pread(fd, 20_000, 0) == b"abc" + bytes(9_999)
        if os.fstatvfs(fd).f_blocks:
            # Where it is known how much there is.
            assert fallocate(fd, 0, 0, 1 << 50) == errno.ENOSPC
        assert fallocate(fd, 0, 0, 1 << 61) == errno.EFBIG
        assert os.fstat(fd).st_size == 10_002


@pytest.mark.needs_gateway("a save is of the whole file")
@pytest.mark.directory
def test_a_copy_in_the_space_moves_no_bytes(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    first = make_mount(daemon)
    data = bytearray(os.urandom(5 << 20))
    (first / "from").write_bytes(data)
    with open(first / "from", "r+b") as file:
        os.pwrite(file.fileno(), b"few", 2 << 20)
        assert fallocate(file.fileno(), PUNCH_HOLE | KEEP_SIZE, 3 << 20, 1 << 20) == 0
    data[2 << 20 : (2 << 20) + 3] = b"few"
    data[3 << 20 : 4 << 20] = bytes(1 << 20)

    def used() -> int:
        return sum(path.stat().st_size for path in (daemon.directory / "storage").rglob("*") if path.is_file())

    before, target = used(), bytearray(b"old" * 500_000)
    (first / "to").write_bytes(target)
    with open(first / "from", "rb") as source, open(first / "to", "r+b") as file:
        done = 0
        while count := os.copy_file_range(source.fileno(), file.fileno(), 6 << 20, done, 700_000 + done):
            done += count
        assert done == len(data)
        os.pwrite(file.fileno(), b"after", 1_000_000)
    target[700_000:] = data
    target[1_000_000:1_000_005] = b"after"
    assert (first / "to").read_bytes() == target
    assert before >= 5 << 20 and used() - before < 2 << 20, "what was written, and not what was copied"
    (first / "from").unlink()
    unmount(first)
    assert (make_mount(daemon) / "to").read_bytes() == target


@pytest.mark.needs_gateway("mode, owner and times are not kept")
@root_only
def test_space_reserved_by_another_takes_the_set_id_bits(shared: Path) -> None:
    (shared / "tool").write_bytes(b"x" * 5000)
    (shared / "tool").chmod(0o4777)
    grow = 'os.posix_fallocate(os.open("tool", os.O_RDWR), 0, 9000)\n'
    assert as_other(f'{grow}print(oct(os.stat("tool").st_mode), os.stat("tool").st_size)', shared) == "0o100777 9000"


# -- listings, which the kernel keeps -------------------------------------------------------------------------------------


@pytest.mark.needs_gateway("mode, owner and times are not kept")
def test_a_listing_that_the_kernel_keeps_shows_what_others_do(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    here, there = make_mount(daemon, "here"), make_mount(daemon, "there")
    (here / "box").mkdir()
    for name in "abc":
        (here / "box" / name).touch()
    eventually("the other mount has it", lambda: sorted(os.listdir(there / "box")) == ["a", "b", "c"])
    os.utime(here / "box", ns=(10**18, 10**18))
    eventually("its time is old there", lambda: os.stat(there / "box").st_mtime_ns == 10**18)
    assert len(os.listdir(there / "box")) == 3
    # As tar and rsync do: the time of the last change is put back.
    (here / "box/d").touch()
    (here / "box/a").unlink()
    os.utime(here / "box", ns=(10**18, 10**18))
    eventually("the change is seen there", lambda: sorted(os.listdir(there / "box")) == ["b", "c", "d"])
    assert os.stat(there / "box").st_mtime_ns == 10**18


def test_what_is_removed_while_it_is_listed(mount: Path) -> None:
    """As rm -r of a big directory: no name is left out, and none comes twice."""
    names = {f"{number:04}" for number in range(2500)}
    (mount / "box").mkdir()
    for name in names:
        (mount / "box" / name).touch()
    seen = []
    with os.scandir(mount / "box") as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
            # Somebody else begins to list it meanwhile.
            if len(seen) % 500 == 1:
                assert set(os.listdir(mount / "box")) == names - set(seen)
    assert sorted(seen) == sorted(names)
    os.rmdir(mount / "box")


def test_an_open_directory_is_read_from_anywhere(mount: Path) -> None:
    """telldir(3) and seekdir(3) go back to where they were, and rewinddir(3) shows what is new."""
    libc = ctypes.CDLL(None)
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    for number in range(300):
        (mount / f"{number:03}").touch()
    handle = ctypes.c_void_p(libc.opendir(os.fsencode(mount)))

    def name() -> bytes | None:
        # struct dirent: d_ino, d_off, d_reclen, d_type, d_name.
        entry = libc.readdir(handle)
        return ctypes.string_at(entry + 19) if entry else None

    read = [(libc.telldir(handle), name()) for _ in range(302)]
    assert name() is None and {found for _, found in read} >= {b".", b"..", b"000", b"299"}
    for place, found in read[::-37]:
        libc.seekdir(handle, ctypes.c_long(place))
        assert name() == found
    (mount / "new").touch()
    libc.rewinddir(handle)
    assert b"new" in iter(name, None)
    libc.closedir(handle)
