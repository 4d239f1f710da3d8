"""What a mount does while something that it needs is missing: the service, a valid token, room on a disk."""

import errno
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import plain
from tests.conftest import BIN, Daemon, eventually, start_daemon, unmount
from tests.mount.test_delegation import status
from vosfs.cache.kept import Kept

MIB = 1 << 20
root_only = pytest.mark.skipif(os.getuid() != 0, reason="mounts a small disk")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """64 MiB."""
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", point], check=True)
    yield point
    subprocess.run(["umount", "-l", point], check=True)


def evict(path: Path) -> None:
    """Out of the kernel's cache: the next read asks the mount."""
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "silent"])
def test_what_is_cached_is_read_while_the_service_is_away(
    daemon: Daemon, make_mount: Callable[..., Path], how: signal.Signals
) -> None:
    point = make_mount(daemon, "mnt", "deadline=2")
    data = os.urandom(3 * MIB)
    (point / "d").mkdir()
    (point / "d" / "long").write_bytes(data)
    (point / "d" / "short").write_bytes(b"short")
    unmount(point)
    point = make_mount(daemon, "mnt", "deadline=2")
    for name in sorted(os.listdir(point / "d")):
        (point / "d" / name).read_bytes()
    daemon.process.send_signal(how)
    try:
        eventually("the mount notices", lambda: status(point)["away"] is True, 60)
        # The kernel's own memory of it ends within a second or two of that.
        subprocess.run(["sh", "-c", "echo 2 > /proc/sys/vm/drop_caches"], check=False, capture_output=True)
        evict(point / "d" / "long")
        assert (point / "d" / "long").read_bytes() == data
        assert (point / "d" / "short").read_bytes() == b"short"
        assert sorted(os.listdir(point / "d")) == ["long", "short"]
        assert (
            "cannot be reached"
            in subprocess.run([BIN / "vosfs", "status", point], capture_output=True, text=True).stdout
        )
        with pytest.raises(OSError) as caught:
            (point / "d" / "unknown").stat()
        assert caught.value.errno in (errno.ENOENT, errno.EHOSTUNREACH, errno.ETIMEDOUT)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
        daemon.stop(signal.SIGKILL)
    again = start_daemon(daemon.directory, port=daemon.port)
    try:
        assert again.request("PUT", "/files/d/short", b"changed")[0] in (200, 201)
        eventually("it is back", lambda: status(point)["live"] is not plain.on() and status(point)["away"] is False)
        eventually("and tells what changed", lambda: (point / "d" / "short").read_bytes() == b"changed")
    finally:
        unmount(point)
        again.stop()


def test_a_token_that_ended_is_renewed_in_its_file(daemon: Daemon, tmp_path: Path) -> None:
    token, point = tmp_path / "token", tmp_path / "mnt"
    point.mkdir()
    token.write_text(daemon.token)
    token.chmod(0o600)
    space = ["--dev", daemon.directory]
    fresh = tmp_path / "fresh"
    owner = sqlite3.connect(daemon.directory / "vosfs.db")
    subprocess.run(
        [
            BIN / "vosfs",
            "mount",
            daemon.url,
            point,
            "--token-file",
            token,
            "--cache-dir",
            tmp_path / "cache",
            "-o",
            "sync",
        ],
        check=True,
    )
    try:
        (point / "before").write_bytes(b"x")
        (user,) = owner.execute("SELECT DISTINCT account FROM token").fetchone()
        with owner:
            owner.execute("UPDATE token SET expires_ns = ?", (time.time_ns(),))

        def refused() -> bool:
            try:
                (point / f"refused{time.monotonic_ns()}").touch()
            except PermissionError:
                return True
            return False

        eventually("the token has ended", refused, 90)
        subprocess.run([BIN / "vosfsd", "token", user, fresh, *space], check=True, capture_output=True)
        os.replace(fresh, token)
        eventually("the mount has the new one", lambda: not refused(), 30)
        (point / "after").write_bytes(b"y" * MIB)
        assert (point / "before").read_bytes() == b"x"
    finally:
        owner.close()
        unmount(point)


@root_only
@pytest.mark.directory
def test_a_full_storage_is_told_and_costs_nothing_saved(small_disk: Path, make_mount: Callable[..., Path]) -> None:
    daemon = start_daemon(small_disk / "space")
    try:
        point = make_mount(daemon, "mnt", "sync")
        (point / "kept").write_bytes(b"k" * 100_000)
        with pytest.raises(OSError) as caught:
            (point / "kept").write_bytes(b"n" * (80 * MIB))
        assert caught.value.errno == errno.ENOSPC
        assert daemon.request("GET", "/files/kept")[2] == b"k" * 100_000
        eventually("the mount shows that too", lambda: (point / "kept").read_bytes() == b"k" * 100_000)
        # What had been uploaded of it goes, and then there is room again.
        eventually("there is room", lambda: _saves(point / "new", 100_000))
        assert daemon.request("GET", "/files/new")[2] == b"s" * 100_000
        unmount(point)
    finally:
        daemon.stop()


def _saves(path: Path, size: int) -> bool:
    try:
        path.write_bytes(b"s" * size)
    except OSError as exc:
        assert exc.errno == errno.ENOSPC
        return False
    return True


@root_only
def test_a_full_cache_disk_is_told_and_reads_go_on(daemon: Daemon, small_disk: Path, tmp_path: Path) -> None:
    data = os.urandom(60 * MIB)
    assert daemon.request("PUT", "/files/big", data)[0] in (200, 201)
    token, point = tmp_path / "token", tmp_path / "mnt"
    point.mkdir()
    token.write_text(daemon.token)
    token.chmod(0o600)
    subprocess.run(
        [BIN / "vosfs", "mount", daemon.url, point, "--token-file", token, "--cache-dir", small_disk / "cache"],
        check=True,
    )
    try:
        (small_disk / "filler").write_bytes(bytes(40 * MIB))
        with pytest.raises(OSError) as caught, open(point / "f", "wb", buffering=0) as stream:
            for at in range(64):
                stream.seek(at * 100 * MIB)
                stream.write(b"w" * MIB)
        assert caught.value.errno == errno.ENOSPC
        (small_disk / "filler").unlink()
        (point / "g").write_bytes(b"fits")
        assert (point / "g").read_bytes() == b"fits"
        assert (point / "big").read_bytes() == data
        assert Kept(small_disk / "cache/kept").strays() == []
    finally:
        unmount(point)
