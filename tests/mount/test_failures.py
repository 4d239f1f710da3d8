"""What breaks is reported, in time, and costs nothing that was saved: dead, hung and lying servers, full caches, kills."""

import errno
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import plain
from tests.conftest import BIN, Daemon, eventually, start_daemon, unmount

MIB = 1 << 20
DEADLINE_S = 2


def restart(daemon: Daemon) -> Daemon:
    """The same space again, on the same port."""
    return start_daemon(daemon.directory, port=daemon.port)


def test_a_dead_daemon_is_an_errno_and_a_restarted_one_works(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon, "mnt", f"deadline={DEADLINE_S}", "sync")
    (point / "kept").write_bytes(b"kept")
    daemon.stop(signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(OSError) as caught:
        (point / "new").write_bytes(b"x")
    assert caught.value.errno in (errno.EHOSTUNREACH, errno.ETIMEDOUT)
    assert time.monotonic() - began < 3 * DEADLINE_S
    again = restart(daemon)
    try:
        assert (point / "kept").read_bytes() == b"kept"
        (point / "new").write_bytes(b"y")
        assert again.request("GET", "/files/new")[2] == b"y"
    finally:
        unmount(point)
        again.stop()


def test_a_hung_daemon_answers_with_an_errno_and_kill_9_works(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon, "mnt", f"deadline={DEADLINE_S}", "sync")
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        with pytest.raises(OSError) as caught:
            os.mkdir(point / "d")
        assert caught.value.errno == errno.ETIMEDOUT
        assert time.monotonic() - began < 3 * DEADLINE_S
        blocked = subprocess.Popen(["mkdir", point / "e"], stderr=subprocess.DEVNULL)
        blocked.kill()
        blocked.wait(3 * DEADLINE_S)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    eventually(
        "the mount works again",
        lambda: subprocess.run(["touch", point / "f"], stderr=subprocess.DEVNULL).returncode == 0,
    )


@pytest.mark.parametrize("size", [3, 40 * MIB])
def test_a_failed_close_says_so_and_keeps_the_old_content(
    daemon: Daemon, make_mount: Callable[..., Path], size: int
) -> None:
    point = make_mount(daemon, "mnt", f"deadline={DEADLINE_S}", "sync")
    (point / "f").write_bytes(b"old")
    fd = os.open(point / "f", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"n" * min(size, MIB))
    daemon.stop(signal.SIGKILL)
    for at in range(MIB, size, MIB):
        os.pwrite(fd, b"n" * MIB, at)
    with pytest.raises(OSError):
        os.close(fd)
    again = restart(daemon)
    try:
        assert again.request("GET", "/files/f")[2] == b"old"
        eventually("the mount shows the old content", lambda: (point / "f").read_bytes() == b"old")
    finally:
        unmount(point)
        again.stop()


def test_a_daemon_that_hangs_in_an_upload_fails_the_close_in_time(
    daemon: Daemon, make_mount: Callable[..., Path]
) -> None:
    point = make_mount(daemon, "mnt", f"deadline={DEADLINE_S}", "sync")
    (point / "f").write_bytes(b"old")
    fd = os.open(point / "f", os.O_WRONLY | os.O_TRUNC)
    for at in range(0, 40 * MIB, MIB):
        os.pwrite(fd, b"n" * MIB, at)
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        for at in range(40 * MIB, 100 * MIB, MIB):
            os.pwrite(fd, b"n" * MIB, at)
        began = time.monotonic()
        with pytest.raises(OSError) as caught:
            os.close(fd)
        assert caught.value.errno == errno.ETIMEDOUT
        assert time.monotonic() - began < 3 * DEADLINE_S
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    eventually("the old content is there", lambda: daemon.request("GET", "/files/f")[2] == b"old")


def test_fsync_reports_too(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon, "mnt", f"deadline={DEADLINE_S}", "sync")
    fd = os.open(point / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"new")
    os.fsync(fd)
    os.write(fd, b"er")
    daemon.stop(signal.SIGKILL)
    with pytest.raises(OSError):
        os.fsync(fd)
    with pytest.raises(OSError):
        os.close(fd)
    again = restart(daemon)
    assert again.request("GET", "/files/f")[2] == b"new"
    again.stop()


def test_nobody_sees_a_half_written_file(daemon: Daemon, mount: Path) -> None:
    (mount / "f").write_bytes(b"old")
    with open(mount / "f", "wb", buffering=0) as stream:
        for _ in range(80):
            stream.write(b"n" * MIB)
        assert daemon.request("GET", "/files/f")[2] == b"old"
    assert daemon.request("HEAD", "/files/f")[1]["Content-Length"] == str(80 * MIB)


def test_two_mounts_see_each_other_and_the_second_writer_is_told(
    daemon: Daemon, make_mount: Callable[..., Path]
) -> None:
    one, two = make_mount(daemon, "one"), make_mount(daemon, "two")
    assert os.listdir(two) == []
    (one / "f").write_bytes(b"from one")
    eventually("the other mount sees a new file", lambda: os.listdir(two) == ["f"])
    assert (two / "f").read_bytes() == b"from one"
    (two / "f").write_bytes(b"and back")
    eventually("the first sees the change", lambda: (one / "f").read_bytes() == b"and back")
    os.rename(one / "f", one / "g")
    eventually("the other sees the rename", lambda: os.listdir(two) == ["g"] and not (two / "f").exists())
    first, second = os.open(one / "g", os.O_WRONLY), os.open(two / "g", os.O_WRONLY)
    os.write(first, b"FIRST")
    os.write(second, b"SECOND!")
    os.close(first)
    with pytest.raises(OSError) as caught:
        os.close(second)
    assert caught.value.errno == errno.ESTALE
    eventually("the first writer's bytes are there", lambda: (two / "g").read_bytes() == b"FIRSTack")


@pytest.mark.needs_gateway("a save is of the whole file")
def test_the_cache_stays_under_its_limit(daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path) -> None:
    point = make_mount(daemon, "mnt", "cache_size=128M")
    block = os.urandom(MIB)

    def used() -> int:
        out = subprocess.run(["du", "-sm", tmp_path / "mnt-cache"], capture_output=True, text=True)
        return int(out.stdout.split()[0])

    most = 0
    with open(point / "f", "wb", buffering=0) as stream:
        for number in range(400):
            stream.write(number.to_bytes(4, "big") + block[4:])
            if number % 50 == 0:
                most = max(most, used())
    most = max(most, used())
    with open(point / "f", "rb", buffering=0) as stream:
        for number in range(400):
            assert stream.read(MIB) == number.to_bytes(4, "big") + block[4:]
            if number % 50 == 0:
                most = max(most, used())
    # The write buffers of one upload may stand beside the limit.
    assert most <= 128 + 40, f"{most} MiB"


def _errno_of(point: Path) -> int:
    try:
        os.listdir(point)
    except OSError as exc:
        return exc.errno or 0
    return 0


def test_a_killed_mount_is_cleared_and_mounted_again(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon)
    (point / "f").write_bytes(b"saved")
    status = json.loads(os.getxattr(point, "user.vosfs.status"))
    os.kill(status["pid"], signal.SIGKILL)
    eventually("the mount is dead", lambda: _errno_of(point) == errno.ENOTCONN)
    done = subprocess.run([BIN / "vosfs", "umount", point], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (make_mount(daemon) / "f").read_bytes() == b"saved"


def test_a_killed_mount_is_replaced_by_the_next(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon)
    (point / "f").write_bytes(b"saved")
    standing = subprocess.Popen(["sleep", "60"], cwd=point)
    try:
        for _ in range(2):
            os.kill(json.loads(os.getxattr(point, "user.vosfs.status"))["pid"], signal.SIGKILL)
            # Until there is another one: an empty directory could be taken for an empty space.
            eventually("the mount is dead", lambda: _errno_of(point) == errno.ENOTCONN)
            assert (make_mount(daemon) / "f").read_bytes() == b"saved"
    finally:
        standing.kill()
        standing.wait()
    unmount(point)
    assert os.listdir(point) == [] and not os.path.ismount(point)


def test_what_is_mounted_and_alive_is_left_alone(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon)
    command = [BIN / "vosfs", "mount", daemon.url, point, "--token-file", daemon.token_file]
    done = subprocess.run([*command, "--cache-dir", point.parent / "other"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "is mounted already" in done.stderr
    (point / "f").write_bytes(b"works")


def test_umount_waits_for_open_files_and_status_tells(mount: Path) -> None:
    with open(mount / "f", "wb") as stream:
        stream.write(b"x")
        busy = subprocess.run([BIN / "vosfs", "umount", mount], capture_output=True, text=True)
        assert busy.returncode and len(busy.stderr.strip().splitlines()) == 1
        out = subprocess.run([BIN / "vosfs", "status", mount], capture_output=True, text=True)
        assert "1 open" in out.stdout and out.returncode == 0
    assert subprocess.run([BIN / "vosfs", "umount", mount]).returncode == 0
    assert str(mount) not in subprocess.run([BIN / "vosfs", "status"], capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"url": "http://127.0.0.1:9/vos"}, "refused"),
        ({"url": "ftp://127.0.0.1/vos"}, "not an http"),
        ({"token": "wrong"}, "token is unknown"),
        ({"token_file": "/nonexistent"}, "No such file"),
        ({"mountpoint": "/nonexistent/point"}, "not a directory"),
        ({"option": "colour=blue"}, "unknown option"),
        ({"option": "cache_size=lots"}, "not a size"),
        ({"path": "/nothing"}, "is this the URL of a VOSpace?"),
    ],
)
def test_a_mount_that_cannot_be_says_why_in_one_line(
    daemon: Daemon, tmp_path: Path, change: dict[str, str], reason: str
) -> None:
    token = tmp_path / "token"
    token.write_text(change.get("token", daemon.token))
    token.chmod(0o600)
    point = tmp_path / "point"
    point.mkdir()
    command = [
        BIN / "vosfs", "mount", change.get("url", daemon.url + change.get("path", "")),
        change.get("mountpoint", point), "--token-file", change.get("token_file", token),
        "--cache-dir", tmp_path / "cache", "-o", change.get("option", "deadline=3"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and reason in lines[0], done.stderr
    assert not os.path.ismount(point)


@pytest.mark.directory
def test_a_registered_tree_is_readable_and_read_only(
    make_daemon: Callable[..., Daemon], make_mount: Callable[..., Path], tmp_path: Path
) -> None:
    source = tmp_path / "archive"
    (source / "sub").mkdir(parents=True)
    (source / "sub/data").write_bytes(b"d" * 100_000)
    (source / "link").symlink_to("sub/data")
    daemon = make_daemon()
    subprocess.run(
        [BIN / "vosfsd", "import", "--dev", daemon.directory, source, "/archive"], check=True, capture_output=True
    )
    point = make_mount(daemon)
    subprocess.run(["diff", "-r", source, point / "archive"], check=True)
    for refused in (
        lambda: (point / "archive/sub/new").write_bytes(b""),
        lambda: (point / "archive/sub/data").write_bytes(b""),
        lambda: os.unlink(point / "archive/sub/data"),
        *([] if plain.on() else [lambda: os.chmod(point / "archive/sub/data", 0o777)]),
    ):
        with pytest.raises(OSError) as caught:
            refused()
        # A user who is not root already meets the missing write bits, and VOSpace's faults have one word for both.
        other = (errno.EACCES, errno.EPERM) if os.getuid() or plain.on() else ()
        assert caught.value.errno in (errno.EROFS, *other)
    assert (source / "sub/data").read_bytes() == b"d" * 100_000


@pytest.mark.needs_gateway("no bytes come with a look-up")
def test_the_first_bytes_come_with_the_look_up(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    data = os.urandom(MIB)
    first = make_mount(daemon, "first")
    (first / "d").mkdir()
    (first / "d/big").write_bytes(data)
    # Its root was listed when it was mounted; what is below is looked up.
    point = make_mount(daemon) / "d"
    fd = os.open(point / "big", os.O_RDONLY)
    try:
        daemon.process.send_signal(signal.SIGSTOP)
        try:
            assert os.pread(fd, 100, 50) == data[50:150]
        finally:
            daemon.process.send_signal(signal.SIGCONT)
        with open(point / "big", "r+b") as file:
            file.write(b"changed")
        assert os.pread(fd, 100, 0) == b"changed" + data[7:100]
        os.truncate(point / "big", 3)
        os.truncate(point / "big", 20)
        assert os.pread(fd, 100, 0) == b"cha" + bytes(17)
    finally:
        os.close(fd)
    # Seen by another mount, for which the head comes anew.
    assert (make_mount(daemon, "other") / "d/big").read_bytes() == b"cha" + bytes(17)
