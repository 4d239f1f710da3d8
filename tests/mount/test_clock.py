"""The wall clock of a mount or a daemon jumps while it works: nothing is lost, and nothing waits for the clock to catch up.

The jump is real for the one program (``tests/services/clock.py``); the clocks that nobody sets go on, as they do when
an administrator or NTP sets the time.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from tests import plain, storage
from tests.conftest import Daemon, Program, eventually, start_daemon, start_mount, unmount
from tests.mount.test_delegation import EAGER, VOSFSD, refused, status
from tests.server.support import ask
from tests.services.clock import Clock, built
from vosfs.client import HttpClient
from vosfs.metadata import messages as m
from vosfs.metadata.gateway import GatewayTree
from vosfs.metadata.node import DATA, ROOT_ID, Extent, NewNode

MIB = 1 << 20
HOUR_S, DAY_S = 3600, 86_400
JUMPS = [-HOUR_S, DAY_S]


@dataclass
class Bed:
    """A daemon and two mounts, each with its own clock."""

    daemon: Daemon
    points: tuple[Path, Path]
    clocks: dict[str, Clock]
    directory: Path

    def mount(self) -> None:
        """The first mount again."""
        program = self.clocks["mount"].program(*EAGER, "vosfs.metadata.behind.ASK_EVERY_S=0", "vosfs")
        start_mount(self.daemon, self.points[0], self.directory / "one-cache", "deadline=10", program=program)

    def restart(self) -> None:
        """The daemon again, after it was killed."""
        self.daemon.stop(signal.SIGKILL)
        self.daemon = start_daemon(self.daemon.directory, port=self.daemon.port, program=self.vosfsd())

    def vosfsd(self) -> Program:
        return self.clocks["daemon"].program(*EAGER, "server.delegation.QUIET_S=0", "vosfsd")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("clock"))


@pytest.fixture
def bed(tmp_path: Path, library: Path) -> Iterator[Bed]:
    clocks = {who: Clock(library, tmp_path / f"{who}.clock") for who in ("daemon", "mount")}
    made = Bed(None, (tmp_path / "one", tmp_path / "two"), clocks, tmp_path)  # type: ignore[arg-type]
    made.daemon = start_daemon(tmp_path / "space", program=made.vosfsd())
    try:
        made.mount()
        start_mount(made.daemon, made.points[1], tmp_path / "two-cache", "sync")
        yield made
    finally:
        for point in made.points:
            unmount(point)
        made.daemon.stop()


def _may_be_wrong(who: str) -> None:
    """Skip where a clock may not be: S3 refuses what was signed more than 15 minutes before or after its own time."""
    if who == "daemon" and storage.elsewhere():
        pytest.skip("S3 takes no signature of a wrong clock")


def agree(bed: Bed, name: str, data: bytes) -> None:
    """Everybody has these bytes."""
    assert (bed.points[0] / name).read_bytes() == data
    assert bed.daemon.request("GET", f"/files/{name}")[2] == data
    eventually("the other mount has them", lambda: (bed.points[1] / name).read_bytes() == data)


@pytest.mark.parametrize("by", JUMPS)
@pytest.mark.parametrize("who", ["daemon", "mount"])
def test_what_was_begun_is_finished(bed: Bed, who: str, by: int) -> None:
    _may_be_wrong(who)
    here, there = bed.points
    data, new = os.urandom(70 * MIB), os.urandom(50 * MIB)
    assert bed.daemon.request("PUT", "/files/read", data)[0] == 201
    assert bed.daemon.request("PUT", "/files/patched", data)[0] == 201
    reading = os.open(here / "read", os.O_RDONLY)
    assert os.pread(reading, 1000, 0) == data[:1000]
    # Long enough to be on its way before the close.
    with open(here / "written", "wb", buffering=0) as long, open(here / "patched", "r+b", buffering=0) as patched:
        for at in range(0, len(new), MIB):
            long.write(new[at : at + MIB])
        patched.seek(5 * MIB)
        patched.write(b"patch")
        if not plain.on():
            eventually("some of it is on its way", lambda: int(str(status(here)["dirty_bytes"])) < len(new))
        bed.clocks[who].jump(by)
        # What is not in the cache yet, with a lease of before.
        assert os.pread(reading, MIB, 60 * MIB) == data[60 * MIB : 61 * MIB]
        assert os.pread(patched.fileno(), MIB, 50 * MIB) == data[50 * MIB : 51 * MIB]
    os.close(reading)
    agree(bed, "written", new)
    agree(bed, "patched", data[: 5 * MIB] + b"patch" + data[5 * MIB + 5 :])
    agree(bed, "read", data)
    for number in range(30):
        (here / f"f{number}").write_bytes(b"%d" % number)
        os.rename(here / f"f{number}", here / "g")
        if not number % 10:
            agree(bed, "g", b"%d" % number)
    agree(bed, "g", b"29")
    # Elsewhere to here, and back to the true time.
    (there / "g").write_bytes(b"from there")
    eventually("changes elsewhere show", lambda: (here / "g").read_bytes() == b"from there")
    bed.clocks[who].jump(0)
    (here / "g").write_bytes(b"and back")
    agree(bed, "g", b"and back")
    assert status(here).get("lost", 0) == 0 and status(here)["kept"] == 0 == status(there)["kept"]


@pytest.mark.needs_gateway("no delegation")
@pytest.mark.parametrize("by", JUMPS)
@pytest.mark.parametrize("who", ["daemon", "mount"])
def test_what_was_acknowledged_arrives(bed: Bed, who: str, by: int) -> None:
    """Changes that are owed when the clock jumps and both die; the daemon may have done some of them before."""
    _may_be_wrong(who)
    here = bed.points[0]
    (here / "d").mkdir()
    data = os.urandom(3 * MIB)

    def held() -> bool:
        os.utime(here / "d")
        return status(here)["delegation"] is True

    eventually("the mount may act first", held)
    (here / "d/uploaded").write_bytes(data)
    bed.clocks[who].jump(by)
    for number in range(50):
        (here / f"d/f{number}").write_bytes(b"%d" % number)
    bed.daemon.process.send_signal(signal.SIGSTOP)
    for number in range(50):
        os.rename(here / f"d/f{number}", here / f"d/g{number}")
        (here / f"d/h{number}").touch()
        (here / f"d/h{number}").unlink()
    bed.daemon.process.send_signal(signal.SIGCONT)
    bed.daemon.stop(signal.SIGKILL)
    os.kill(int(str(status(here)["pid"])), signal.SIGKILL)
    unmount(here)
    bed.restart()
    bed.mount()
    assert sorted(os.listdir(here / "d")) == sorted(["uploaded", *(f"g{number}" for number in range(50))])
    assert (here / "d/uploaded").read_bytes() == data
    assert [(here / f"d/g{number}").read_bytes() for number in range(50)] == [b"%d" % number for number in range(50)]
    assert status(here)["lost"] == 0 and status(here)["kept"] == 0


@pytest.mark.parametrize("by", JUMPS)
def test_times_are_those_of_the_host_as_on_a_local_disk(bed: Bed, by: int) -> None:
    here = bed.points[0]
    (here / "before").write_bytes(b"x")
    bed.clocks["mount"].jump(by)
    (here / "after").write_bytes(b"x")
    if not plain.on():
        moved = os.stat(here / "after").st_mtime_ns - os.stat(here / "before").st_mtime_ns
        assert abs(moved - by * 10**9) < 60 * 10**9
    os.utime(here / "after", ns=(1, 2_000_000_000))
    assert plain.on() or os.stat(here / "after").st_mtime_ns == 2_000_000_000
    agree(bed, "after", b"x")


@pytest.mark.needs_gateway("no delegation")
@pytest.mark.parametrize("by", JUMPS)
async def test_what_comes_twice_is_known_again(tmp_path: Path, library: Path, by: int) -> None:
    """The daemon's clock jumps after a mount was told the time; a file is saved twice by way of another name, and all of
    that comes again when what the second save replaced was purged."""
    clock = Clock(library, tmp_path / "clock")
    daemon = start_daemon(tmp_path / "space", program=clock.program(*VOSFSD))
    client = HttpClient(daemon.url)
    tree = GatewayTree(client, daemon.url.removeprefix(client.origin) + "/gateway", daemon.token)
    try:
        now_ns = (await tree.hello()).now_ns
        clock.jump(by)
        requests: list[m.Mutation] = []
        for number, (id, data) in enumerate(((1001, b"first"), (1002, b"second"))):
            at_ns = now_ns + 10 * number
            requests += [
                m.Create(ROOT_ID, b"aside", NewNode(DATA), id, at_ns),
                m.Commit(id, 1, len(data), [Extent(0, len(data), data=data)], at_ns, False, at_ns + 1),
                m.Rename(ROOT_ID, b"aside", ROOT_ID, b"f", "", id, at_ns + 2),
            ]
        records = [msgspec.msgpack.encode(request) for request in requests]
        assert await tree.behind.replay(records, refused) == 0
        eventually("the first is purged", lambda: getattr(ask(daemon, m.Get(1001)), "error", "") == "NodeNotFound")
        assert await tree.behind.replay(records, refused) == 0
        assert daemon.request("GET", "/files/f")[2] == b"second"
    finally:
        client.close()
        daemon.stop()
