"""Bytes that could not be saved are kept, told of, and given back."""

import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import BIN, Daemon, eventually, start_daemon, unmount

MIB = 1 << 20
OLD = pytest.mark.needs_gateway("old versions are not kept")


def vosfs(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "vosfs", *map(str, arguments)], capture_output=True, text=True)


def kept(cache: Path) -> list[dict[str, object]]:
    done = vosfs("recover", "--cache-dir", cache, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def beaten(daemon: Daemon, point: Path, old: bytes, at: int, new: bytes) -> None:
    """Write into a file of ``old``, and have somebody else save it first."""
    (point / "d").mkdir()
    assert daemon.request("PUT", "/files/d/f", old)[0] in (200, 201)
    eventually("the mount sees it", (point / "d" / "f").exists)
    fd = os.open(point / "d" / "f", os.O_WRONLY)
    os.pwrite(fd, new, at)
    assert daemon.request("PUT", "/files/d/f", b"theirs")[0] in (200, 201)
    with pytest.raises(OSError) as caught:
        os.close(fd)
    assert caught.value.errno == errno.ESTALE
    assert daemon.request("GET", "/files/d/f")[2] == b"theirs"


@pytest.mark.parametrize(
    ("old", "at", "new"),
    [
        pytest.param(b"0123456789", 3, b"mine", marks=OLD),
        (b"", 0, b"n" * (3 * MIB)),
        pytest.param(b"o" * (3 * MIB), MIB, b"n" * 1000, marks=OLD),
        pytest.param(b"o" * (40 * MIB), MIB, b"n" * (36 * MIB), marks=OLD),
    ],
    ids=["few", "many", "in the middle of many", "uploaded in part"],
)
def test_the_loser_of_a_conflict_gets_its_whole_file(
    daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path, old: bytes, at: int, new: bytes
) -> None:
    point, cache = make_mount(daemon), tmp_path / "mnt-cache"
    assert kept(cache) == []
    beaten(daemon, point, old, at, new)
    (one,) = kept(cache)
    assert (one["path"], one["length"]) == ("d/f", max(len(old), at + len(new)))
    shown = vosfs("status", point).stdout
    assert "1 files could not be saved" in shown and "vosfs recover" in shown
    # Also when the mount is gone.
    unmount(point)
    token = tmp_path / "token"
    token.write_text(daemon.token)
    token.chmod(0o600)
    back = tmp_path / "back"
    done = vosfs("recover", "--cache-dir", cache, one["name"], back, "--token-file", token)
    assert done.returncode == 0, done.stderr
    mine = bytearray(old)
    mine[at : at + len(new)] = new
    assert back.read_bytes() == mine
    assert vosfs("recover", "--cache-dir", cache, one["name"], back).returncode == 1, "it exists"
    assert vosfs("recover", "--cache-dir", cache, one["name"], "--drop").returncode == 0
    assert kept(cache) == [] and list((cache / "kept").iterdir()) == []


def test_what_only_the_service_has_is_zeros_if_asked_so(
    daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path
) -> None:
    point, cache = make_mount(daemon), tmp_path / "mnt-cache"
    beaten(daemon, point, b"o" * (3 * MIB), MIB, b"new")
    (one,) = kept(cache)
    unmount(point)
    daemon.stop()
    back = tmp_path / "back"
    done = vosfs("recover", "--cache-dir", cache, one["name"], back)
    assert done.returncode == 1 and "--partial" in done.stderr and not back.exists()
    done = vosfs("recover", "--cache-dir", cache, one["name"], back, "--partial")
    assert done.returncode == 0 and f"{3 * MIB - 3} of them zeros" in done.stdout
    assert back.read_bytes() == bytes(MIB) + b"new" + bytes(2 * MIB - 3)


@pytest.mark.parametrize("size", [3, 2 * MIB])
def test_a_close_that_failed_keeps_the_bytes(
    daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path, size: int
) -> None:
    point, cache = make_mount(daemon, "mnt", "deadline=2", "sync"), tmp_path / "mnt-cache"
    fd = os.open(point / "f", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"n" * size)
    daemon.stop(signal.SIGKILL)
    with pytest.raises(OSError):
        os.close(fd)
    unmount(point)
    (one,) = kept(cache)
    assert one["path"] == "f"
    back = tmp_path / "back"
    assert vosfs("recover", "--cache-dir", cache, one["name"], back).returncode == 0
    assert back.read_bytes() == b"n" * size


def test_what_was_deleted_here_is_not_kept(daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path) -> None:
    point = make_mount(daemon)
    with open(point / "f", "wb") as stream:
        stream.write(b"x")
        stream.flush()
        (point / "f").unlink()
    assert kept(tmp_path / "mnt-cache") == []


@pytest.mark.needs_gateway("no delegation")
def test_what_an_earlier_mount_acknowledged_and_is_refused_is_kept(
    daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path
) -> None:
    point, cache = make_mount(daemon), tmp_path / "mnt-cache"
    (point / "f").write_bytes(b"old")
    with open(point / "f", "rb") as stream:
        # The service knows all of that.
        os.fsync(stream.fileno())
    status = json.loads(os.getxattr(point, "user.vosfs.status"))
    eventually("it may act first", lambda: json.loads(os.getxattr(point, "user.vosfs.status"))["delegation"])
    daemon.process.send_signal(signal.SIGSTOP)
    # Acknowledged, in the journal, and never told.
    for data in (b"my first", b"my second"):
        (point / "f").write_bytes(data)
    os.kill(status["pid"], signal.SIGKILL)
    daemon.stop(signal.SIGKILL)
    unmount(point)
    again = start_daemon(daemon.directory, port=daemon.port)
    try:
        assert again.request("PUT", "/files/f", b"theirs")[0] in (200, 201)
        make_mount(again)
        assert again.request("GET", "/files/f")[2] == b"theirs"
        backs = []
        for one in kept(cache):
            back = tmp_path / str(one["name"])
            assert vosfs("recover", "--cache-dir", cache, one["name"], back).returncode == 0
            backs.append(back.read_bytes())
        assert backs == [b"my first", b"my second"]
    finally:
        unmount(point)
        again.stop()


def test_fsck(daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path) -> None:
    point, cache = make_mount(daemon), tmp_path / "mnt-cache"
    done = vosfs("fsck", "--cache-dir", cache)
    assert (done.returncode, "a mount that runs" in done.stdout) == (0, True)
    beaten(daemon, point, b"old", 0, b"mine")
    beaten_name = str(kept(cache)[0]["name"])
    pid = json.loads(os.getxattr(point, "user.vosfs.status"))["pid"]
    os.kill(pid, signal.SIGKILL)
    unmount(point)
    (private,) = cache.glob("mount-*")
    with open(private / "journal", "ab") as stream:
        stream.write(b"half a record")
    (cache / "kept" / "stray.bytes").write_bytes(b"x")
    done = vosfs("fsck", "--cache-dir", cache)
    assert done.returncode == 1 and "--repair" in done.stderr
    assert "no record" in done.stdout and "part of nothing" in done.stdout and "d/f" in done.stdout
    assert vosfs("fsck", "--cache-dir", cache, "--repair").returncode == 0
    done = vosfs("fsck", "--cache-dir", cache)
    assert (done.returncode, private.exists()) == (0, False), done.stdout
    assert [one["name"] for one in kept(cache)] == [beaten_name]
    (cache / "kept" / f"{beaten_name}.bytes").unlink()
    assert "its bytes are gone" in vosfs("fsck", "--cache-dir", cache).stdout
    assert vosfs("fsck", "--cache-dir", cache, "--repair").returncode == 0
    assert kept(cache) == []
