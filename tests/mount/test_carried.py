"""Bytes that travel with the commit: in the journal before they are sent, in blobs once they are there."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import plain
from tests.conftest import Daemon, eventually, start_daemon, unmount
from tests.mount.test_delegation import status
from tests.server.support import ask
from vosfs.metadata import messages as m
from vosfs.metadata.content import CARRIED_BYTES_MAX, INLINE_BYTES_MAX

SIZES = [INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, 100_000, CARRIED_BYTES_MAX, CARRIED_BYTES_MAX + 1]

AHEAD = pytest.mark.needs_gateway("no delegation")


def held(point: Path) -> None:
    """Change something until the mount may act first."""
    (point / "touched").touch()
    eventually("the delegation", lambda: (os.utime(point / "touched"), status(point)["delegation"])[1] is True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", [pytest.param((), marks=AHEAD), ("sync",)], ids=["first", "sync"])
def test_bytes_of_any_length_arrive(
    daemon: Daemon, make_mount: Callable[..., Path], size: int, options: tuple[str, ...]
) -> None:
    point = make_mount(daemon, "mnt", *options)
    if not options:
        held(point)
    data = os.urandom(size)
    (point / "f").write_bytes(data)
    assert (point / "f").read_bytes() == data
    assert daemon.request("GET", "/files/f")[2] == data
    if not plain.on():
        node = ask(daemon, m.Lookup(1, b"f")).node
        found = ask(daemon, m.Open(node.id))
        # What is longer than a row should hold is in a blob.
        assert all(bool(e.locator) == (size > INLINE_BYTES_MAX) for e in found.extents)
    with open(point / "f", "r+b") as stream:
        stream.seek(size // 2)
        stream.write(b"changed")
        os.fsync(stream.fileno())
    data = data[: size // 2] + b"changed" + data[size // 2 + 7 :]
    assert (point / "f").read_bytes() == data == daemon.request("GET", "/files/f")[2]


def test_a_save_in_many_places_is_carried_too(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon)
    if not plain.on():
        held(point)
    data = bytearray(2_000_000)
    (point / "f").write_bytes(data)
    for number in range(10):
        with open(point / "f", "r+b") as stream:
            for at in range(number * 1000, 2_000_000, 100_000):
                piece = bytes([number + 1]) * 3000
                stream.seek(at)
                stream.write(piece)
                data[at : at + 3000] = piece
        assert (point / "f").read_bytes() == data
    assert daemon.request("GET", "/files/f")[2] == data


@pytest.mark.needs_gateway("no delegation")
def test_what_was_acknowledged_and_not_sent_survives_both(
    daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path
) -> None:
    point = make_mount(daemon)
    held(point)
    (point / "d").mkdir()
    daemon.process.send_signal(signal.SIGSTOP)
    files = {f"f{size}": os.urandom(size) for size in SIZES[:-1]}
    for name, data in files.items():
        (point / "d" / name).write_bytes(data)
    os.kill(int(str(status(point)["pid"])), signal.SIGKILL)
    daemon.stop(signal.SIGKILL)
    unmount(point)
    again = start_daemon(daemon.directory, port=daemon.port)
    try:
        make_mount(again)
        for name, data in files.items():
            assert again.request("GET", f"/files/d/{name}")[2] == data
    finally:
        unmount(point)
        again.stop()


def test_closed_files_leave_memory(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon)
    if not plain.on():
        held(point)
    pid = int(str(status(point)["pid"]))

    def resident() -> int:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    before = resident()
    for number in range(300):
        (point / f"f{number}").write_bytes(os.urandom(1_000_000))
    eventually("all is sent", lambda: status(point).get("owed", 0) == 0)
    assert resident() - before < 100 << 20


def test_many_small_changes_are_one_save(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    """Of a database, say: more runs than the list of a file's extents is to have."""
    first = make_mount(daemon)
    data = bytearray(os.urandom(4 << 20))
    (first / "file").write_bytes(data)
    with open(first / "file", "r+b") as file:
        for at in range(0, len(data) - 100, 2000):
            os.pwrite(file.fileno(), b"x" * 100, at)
            data[at : at + 100] = b"x" * 100
        os.fsync(file.fileno())
        for at in range(1000, len(data) - 100, 2000):
            os.pwrite(file.fileno(), b"y" * 100, at)
            data[at : at + 100] = b"y" * 100
    assert (first / "file").read_bytes() == data
    unmount(first)
    assert (make_mount(daemon) / "file").read_bytes() == data
