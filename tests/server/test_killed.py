"""kill -9 of the daemon between any two steps: afterwards the storage holds exactly what the nodes say.

``dying.py`` is the daemon, and ends before its n-th step, or a network between it and S3 ends it at the n-th request.  It
is started again, everything unused is collected, and what is left is compared: blobs with extents, and bytes with what
was acknowledged.  VOSFS_KILL_STEPS=0 tries every n; else it is so many, which VOSFS_CRASH_SEED chooses.
"""

import http.client
import os
import random
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from server import audit, housekeeping
from server import daemon as composition
from tests import storage
from tests.conftest import Daemon, eventually, start_daemon
from tests.server.dying import NOW_S
from tests.server.support import ask, create, fetch, store, upload
from tests.services.unreliable import Fault, Unreliable
from tests.vospace.support import exists, move, names
from vosfs.config import Config
from vosfs.metadata import messages as m
from vosfs.metadata.node import DATA, ROOT_ID, Content, Extent, NewNode

if TYPE_CHECKING:
    from tests.services import rgw

TRIED = int(os.environ.get("VOSFS_KILL_STEPS", "6"))
SEED = int(os.environ.get("VOSFS_CRASH_SEED", "0"))
DYING = Path(__file__).with_name("dying.py")
NEVER = 1 << 30
SHORT, LONG = 100_000, 40 << 20
"""Of one request to an object store, and of several."""
GONE = (OSError, http.client.HTTPException)
"""What a client sees of a daemon that dies."""


class Rig:
    """A daemon that dies when it is told to, and the options that it and its collector have."""

    def __init__(self, directory: Path, options: tuple[str, ...]) -> None:
        self.directory, self.options = directory / "space", options
        self.armed = directory / "armed"
        self.dying = (sys.executable, DYING, self.armed)
        self.daemon: Daemon
        self.start()

    def start(self) -> None:
        self.armed.unlink(missing_ok=True)
        self.daemon = start_daemon(self.directory, *self.options, program=self.dying)

    def arm(self, at: int) -> None:
        self.armed.with_name("new").write_text(str(at))
        self.armed.with_name("new").rename(self.armed)

    def steps(self) -> int:
        """How many there were since it was armed."""
        return int(self.armed.with_name("armed.steps").read_text())

    def disarm(self) -> None:
        self.armed.unlink(missing_ok=True)

    def kill(self) -> None:
        self.daemon.stop(signal.SIGKILL)

    def collect(self) -> int:
        """Collect, in a process that may die of it; its exit status."""
        told = storage.options(self.directory, self.options)
        command = [*map(str, self.dying), "gc", "--dev", str(self.directory), *self.options, *told]
        return subprocess.run(command, timeout=60).returncode

    def check(self) -> None:
        """After a collection there is in the storage what the nodes say, whole, and nothing else."""
        told = [*self.options, *storage.options(self.directory, self.options)]
        cfg = composition.dev_config(composition._parser().parse_args(["--dev", str(self.directory), *told]))

        async def work() -> tuple[set[str], audit.Report]:
            with composition.opened(cfg) as (nodes, backend):
                while await nodes.purge(100):
                    pass
                await housekeeping.collect(nodes, backend, NOW_S)
                await housekeeping.collect_orphans(nodes, backend, NOW_S)
                used = {used.locator for used in await nodes.used("", 1000)}
                return used, await audit.audit(nodes, backend, True, older_s=NOW_S)

        used, report = trio.run(work)
        assert report.findings == []
        assert storage.kept(Config(storage=cfg.storage, base=cfg.base)) == used


@pytest.fixture(params=["posix", "s3"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    options: tuple[str, ...] = ()
    if request.param == "s3":
        from tests.services import rgw

        service = request.getfixturevalue("s3")
        patch = request.getfixturevalue("monkeypatch")
        for name, value in service.environment.items():
            patch.setenv(name, value)
        options = ("--objects", f"s3://{rgw.BUCKET}/{secrets.token_hex(8)}")
    elif storage.chosen(request.config) != "posix":
        pytest.skip("about the directory of blobs")
    made = Rig(tmp_path, options)
    yield made
    made.daemon.stop(signal.SIGKILL)


def chosen(total: int) -> list[int]:
    """The steps before which it dies."""
    return list(range(total)) if not TRIED else sorted(random.Random(SEED).sample(range(total), min(TRIED, total)))


def died(rig: Rig) -> bool:
    return rig.daemon.process.poll() is not None


def tried(
    rig: Rig, prepare: Callable[[int], None], act: Callable[[int], object], judge: Callable[[int, bool], None]
) -> None:
    """Do something once to count its steps, and then again and again, dying on the way; ``judge`` knows if it was told
    that all went well."""
    prepare(-1)
    rig.arm(NEVER)
    act(-1)
    total = rig.steps()
    rig.disarm()
    judge(-1, True)
    deaths = 0
    for at in chosen(total):
        prepare(at)
        rig.arm(at)
        try:
            act(at)
            told = True
        except GONE:
            told = False
        except AssertionError:
            # The helpers' own: an answer that was none.
            assert died(rig)
            told = False
        deaths += died(rig) or not told
        rig.kill()
        rig.start()
        judge(at, told)
        rig.check()
    assert deaths, "nothing was interrupted"


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_an_upload(rig: Rig, length: int) -> None:
    old, new = b"o" * SHORT, secrets.token_bytes(1 << 10) * (length >> 10)

    def judge(at: int, told: bool) -> None:
        found = fetch(rig.daemon, "/f")
        assert found == new or (found == old and not told)

    tried(
        rig, lambda at: store(rig.daemon, "/f", old), lambda at: store(rig.daemon, "/f", new), judge
    )  # fmt: skip


def test_a_blob_and_its_commit(rig: Rig) -> None:
    """What a mount does to save."""
    data = secrets.token_bytes(SHORT)
    nodes: dict[int, int] = {}

    def commit(at: int) -> None:
        stored = upload(rig.daemon, data)
        extent = Extent(0, SHORT, stored.receipt)
        done = ask(rig.daemon, m.Commit(nodes[at], None, SHORT, [extent], None, False))
        assert isinstance(done, Content), done

    def prepare(at: int) -> None:
        nodes[at] = ask(rig.daemon, m.Create(ROOT_ID, b"n%d" % at, NewNode(DATA))).id

    def judge(at: int, told: bool) -> None:
        found = fetch(rig.daemon, f"/n{at}")
        assert found == data or (found == b"" and not told)

    tried(rig, prepare, commit, judge)


def test_a_copy(rig: Rig) -> None:
    data = secrets.token_bytes(SHORT)
    create(rig.daemon, "/tree", "ContainerNode")
    create(rig.daemon, "/tree/sub", "ContainerNode")
    store(rig.daemon, "/tree/sub/f", data)
    store(rig.daemon, "/tree/g", b"inline")

    def judge(at: int, told: bool) -> None:
        # What was running is taken up again, or was never begun; nobody sees half of it.
        eventually("no copy is under way", lambda: b"EXECUTING" not in rig.daemon.request("GET", "/transfers")[2])
        if told or exists(rig.daemon, f"/copy{at}"):
            assert names(rig.daemon, f"/copy{at}") == ["g", "sub"]
            assert fetch(rig.daemon, f"/copy{at}/sub/f") == data
        assert fetch(rig.daemon, "/tree/sub/f") == data

    tried(rig, lambda at: None, lambda at: move(rig.daemon, "/tree", f"/copy{at}", keep="true").completed(), judge)


def test_a_deletion(rig: Rig) -> None:
    data = secrets.token_bytes(SHORT)

    def prepare(at: int) -> None:
        create(rig.daemon, "/box", "ContainerNode")
        for number in range(3):
            store(rig.daemon, f"/box/f{number}", data)

    def act(at: int) -> None:
        status, _, _ = rig.daemon.request("DELETE", "/nodes/box")
        assert status == 204
        if rig.collect():
            raise ConnectionError("the collector died")

    def judge(at: int, told: bool) -> None:
        if exists(rig.daemon, "/box"):
            assert not told and [fetch(rig.daemon, f"/box/f{number}") for number in range(3)] == [data] * 3

    tried(rig, prepare, act, judge)


# -- between the requests to an object store -------------------------------------------------------------------------


class Deadly(Unreliable):
    """A network that kills the daemon when its n-th request passes; the service has it all the same, or never hears of it."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.kill: Callable[[], None] = lambda: None
        self.at, self.count, self.passes = NEVER, 0, False

    def arm(self, at: int, passes: bool) -> None:
        self.at, self.count, self.passes = at, 0, passes

    def fault(self, method: str, target: str) -> Fault | None:
        self.count += 1
        if self.count == self.at + 1:
            self.kill()
        if self.count > self.at:
            return Fault("lost") if self.passes and self.count == self.at + 1 else Fault("cut upload")
        return None


@pytest.mark.parametrize("passes", [True, False], ids=["the service does it", "the service never hears of it"])
@pytest.mark.parametrize("length", [SHORT, LONG])
def test_an_upload_between_two_requests(
    s3: "rgw.S3", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: bool, length: int
) -> None:
    from tests.services import rgw

    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    network = Deadly(s3.endpoint)
    url = f"s3://{rgw.BUCKET}/{secrets.token_hex(8)}"
    rig = Rig(tmp_path, ("--objects", url, "--objects-endpoint", network.url))
    try:
        old, new = b"o" * SHORT, secrets.token_bytes(1 << 10) * (length >> 10)
        network.kill = lambda: rig.daemon.process.kill()
        store(rig.daemon, "/f", old)
        network.arm(NEVER, False)
        store(rig.daemon, "/f", new)
        for at in chosen(network.count):
            store(rig.daemon, "/f", old)
            network.arm(at, passes)
            with pytest.raises((*GONE, AssertionError)):
                store(rig.daemon, "/f", new)
            rig.kill()
            network.arm(NEVER, False)
            rig.start()
            assert fetch(rig.daemon, "/f") == old
            rig.check()
    finally:
        rig.kill()
        network.close()
