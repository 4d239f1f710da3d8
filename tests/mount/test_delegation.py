"""A mount that acts first and tells the service later: nobody else ever notices, whatever dies in between."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tests.conftest import BIN, Daemon, eventually, start_daemon, unmount
from tests.mount.test_failures import restart
from tests.server.support import ask
from vosfs.client import HttpClient
from vosfs.metadata import messages as m
from vosfs.metadata.gateway import GatewayTree
from vosfs.metadata.node import CONTAINER, DATA, ROOT_ID, Attributes, Extent, NewNode

FILES = 200
EAGER = (sys.executable, Path(__file__).with_name("eager.py"))
VOSFS = (*EAGER, "vosfs.metadata.behind.ASK_EVERY_S=0", "vosfs.metadata.behind.DELAY_S=0.02", "vosfs")
"""Asks for the delegation at once, and gathers for longer: more is owed at any moment."""
VOSFSD = (
    *EAGER, "server.delegation.QUIET_S=0", "server.gateway.BATCH_S=0.001", "server.housekeeping.TRASH_EVERY_S=0.01",
    "vosfsd",
)  # fmt: skip
"""Gives it at once, and empties the trash at once: what was deleted cannot help to tell what was done before."""
_encode = msgspec.msgpack.Encoder().encode
pytestmark = pytest.mark.needs_gateway("no delegation")


def status(point: Path) -> dict[str, object]:
    found = json.loads(os.getxattr(point, "user.vosfs.status"))
    assert isinstance(found, dict)
    return found


def hold(point: Path, name: str) -> Path:
    """A directory of a mount that holds the delegation."""
    directory = point / name
    directory.mkdir()
    tries = iter(range(10**6))

    def held() -> bool:
        # Each change that has to wait asks for it.
        os.chmod(directory, 0o755 - next(tries) % 2)
        return status(point)["delegation"] is True

    eventually("the mount gets the delegation", held)
    return directory


def fill(directory: Path) -> None:
    for number in range(FILES):
        (directory / f"f{number}").write_bytes(b"x" * number)
    for number in range(0, FILES, 4):
        (directory / f"f{number}").unlink()
        (directory / f"f{number + 1}").rename(directory / f"g{number + 1}")


def expected() -> dict[str, bytes]:
    return {f"{'g' if n % 4 == 1 else 'f'}{n}": b"x" * n for n in range(FILES) if n % 4}


def content(directory: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in directory.iterdir()}


def test_others_see_what_was_acknowledged(daemon: Daemon, mount: Path) -> None:
    directory = hold(mount, "d")
    fill(directory)
    assert int(str(status(mount)["owed"])) > 0, "or nothing was tested"
    code, _, body = daemon.request("GET", "/nodes/d?limit=1000")
    assert code == 200
    for name in expected():
        assert f'/d/{name}"'.encode() in body
    assert b'/d/f0"' not in body
    for name, data in expected().items():
        assert daemon.request("GET", f"/files/d/{name}")[2] == data
    assert status(mount)["delegation"] is False and status(mount)["lost"] == 0


def test_mounts_take_turns(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    first, second = make_mount(daemon, "first"), make_mount(daemon, "second")
    directory = hold(first, "d")
    assert (second / "d").is_dir()
    for number in range(20):
        # A name that the reader has never looked for: it must be there at the first look.
        (directory / f"a{number}").write_bytes(b"a%d" % number)
        assert (second / f"d/a{number}").read_bytes() == b"a%d" % number
        (second / f"d/b{number}").write_bytes(b"b%d" % number)
        # This one knows all names of the directory it made: it hears of others by the feed.
        eventually("the change feed tells", (directory / f"b{number}").exists)
        assert (directory / f"b{number}").read_bytes() == b"b%d" % number
    for point in (first, second):
        assert len(list((point / "d").iterdir())) == 40 and status(point)["lost"] == 0


def test_a_killed_mount_loses_nothing_that_it_acknowledged(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon)
    directory = hold(point, "d")
    daemon.process.send_signal(signal.SIGSTOP)
    fill(directory)
    os.kill(int(str(status(point)["pid"])), signal.SIGKILL)
    daemon.process.send_signal(signal.SIGCONT)
    unmount(point)
    again = make_mount(daemon)
    assert content(again / "d") == expected()
    assert [path.name for path in (point.parent / "mnt-cache").glob("mount-*")] == [f"mount-{status(again)['pid']}"]


def test_a_dead_daemon_gets_it_all_when_it_is_back(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon)
    directory = hold(point, "d")
    daemon.process.send_signal(signal.SIGSTOP)
    fill(directory)
    daemon.process.send_signal(signal.SIGCONT)
    daemon.stop(signal.SIGKILL)
    again = restart(daemon)
    try:
        eventually("nothing is owed", lambda: status(point)["owed"] == 0)
        assert status(point)["lost"] == 0
        for name, data in expected().items():
            assert again.request("GET", f"/files/d/{name}")[2] == data
        assert again.request("GET", "/nodes/d/f0")[0] == 404
    finally:
        unmount(point)
        again.stop()


def test_unmounting_sends_what_is_owed(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon)
    fill(hold(point, "d"))
    unmount(point)
    assert content(make_mount(daemon, "again") / "d") == expected()
    assert list((point.parent / "mnt-cache").glob("mount-*")) == []


def test_an_unmount_without_the_daemon_keeps_it_for_the_next_mount(
    daemon: Daemon, make_mount: Callable[..., Path]
) -> None:
    point = make_mount(daemon, "mnt", "deadline=2")
    directory = hold(point, "d")
    daemon.process.send_signal(signal.SIGSTOP)
    fill(directory)
    daemon.process.send_signal(signal.SIGCONT)
    daemon.stop(signal.SIGKILL)
    done = subprocess.run([BIN / "vosfs", "umount", point], capture_output=True, text=True)
    assert done.returncode == 1 and "the next mount of this space" in done.stderr and not os.path.ismount(point)
    again = restart(daemon)
    try:
        second = make_mount(again, "mnt")
        assert content(second / "d") == expected()
        unmount(second)
    finally:
        again.stop()


def test_a_synchronous_mount_owes_nothing(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon, "mnt", "sync")
    for number in range(50):
        (point / f"f{number}").write_bytes(b"x")
        assert daemon.request("GET", f"/files/f{number}")[2] == b"x"
    assert "owed" not in status(point)


def test_fsync_waits_for_the_service(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon, "mnt", "deadline=2")
    directory = hold(point, "d")
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        fd = os.open(directory / "f", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"x")
        with pytest.raises(OSError):
            os.fsync(fd)
        with pytest.raises(OSError):
            os.fsync(fd)
        # What was not made durable is owed nevertheless.
        os.close(fd)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    subprocess.run(["sync", "-f", point], check=False)


def refused(record: bytes, why: str) -> None:
    """Of replays that nothing is refused of."""
    raise AssertionError(why)


async def test_a_batch_may_come_twice(daemon: Daemon) -> None:
    client = HttpClient(daemon.url)
    tree = GatewayTree(client, daemon.url.removeprefix(client.origin) + "/gateway", daemon.token)
    now_ns = (await tree.hello()).now_ns
    box, file, other = 1001, 1002, 1003
    requests: list[m.Mutation] = [
        m.Create(ROOT_ID, b"box", NewNode(CONTAINER, 0o755), box, now_ns),
        m.Create(box, b"f", NewNode(DATA), file, now_ns),
        m.Commit(file, 1, 3, [Extent(0, 3, data=b"abc")], now_ns, False, now_ns),
        m.Rename(box, b"f", box, b"g", "", file, now_ns),
        m.SetAttributes(file, Attributes(mode=0o600), now_ns),
        m.Create(box, b"gone", NewNode(DATA), other, now_ns),
        m.Remove(box, b"gone", "leaf", other, now_ns),
        m.Commit(file, 2, 1, [], now_ns + 1, False, now_ns),
    ]
    records = [_encode(request) for request in requests]
    for _ in range(3):
        assert await tree.behind.replay(records, refused) == 0
        assert [name for name, _ in await tree.children(box, b"", 10)] == [b"g"]
        found = await tree.open(file)
        assert (found.node.version, found.node.length, found.extents) == (3, 1, [Extent(0, 1, data=b"a")])
    # What somebody did since stays.
    await tree.set_attributes(file, Attributes(mode=0o640))
    assert await tree.behind.replay(records, refused) == 0
    assert (await tree.get(file)).mode == 0o640
    client.close()


async def test_what_comes_twice_brings_no_deleted_node_back(tmp_path: Path) -> None:
    """A file is saved twice by way of another name; what the second save replaced is purged; then all comes again."""
    daemon = start_daemon(tmp_path / "space", program=VOSFSD)
    client = HttpClient(daemon.url)
    tree = GatewayTree(client, daemon.url.removeprefix(client.origin) + "/gateway", daemon.token)
    now_ns = (await tree.hello()).now_ns
    requests: list[m.Mutation] = []
    for number, (id, data) in enumerate(((1001, b"first"), (1002, b"second"))):
        at_ns = now_ns + 10 * number
        requests += [
            m.Create(ROOT_ID, b"aside", NewNode(DATA), id, at_ns),
            m.Commit(id, 1, len(data), [Extent(0, len(data), data=data)], at_ns, False, at_ns + 1),
            m.Rename(ROOT_ID, b"aside", ROOT_ID, b"f", "", id, at_ns + 2),
        ]
    records = [_encode(request) for request in requests]
    try:
        assert await tree.behind.replay(records, refused) == 0
        eventually("the first is purged", lambda: getattr(ask(daemon, m.Get(1001)), "error", "") == "NodeNotFound")
        assert await tree.behind.replay(records, refused) == 0
        assert daemon.request("GET", "/files/f")[2] == b"second"
        assert [name for name, _ in await tree.children(ROOT_ID, b"", 10)] == [b"f"]
    finally:
        client.close()
        daemon.stop()


def test_two_processes_on_one_database_grant_none(
    tmp_path: Path, database: str, make_mount: Callable[..., Path]
) -> None:
    daemon = start_daemon(tmp_path / "space", "--dsn", database)
    try:
        point = make_mount(daemon)
        for number in range(50):
            (point / f"f{number}").write_bytes(b"x")
        assert status(point)["delegation"] is False and status(point)["owed"] == 0
        unmount(point)
    finally:
        daemon.stop()
