"""The daemon's host loses its power at any moment: what fsync(2) vouched for is there, and nothing is there by half.

The daemon's directory is on a disk that forgets what was not synced (``tests/services/powercut.py``).  The mount and
its cache go with it, so nothing helps but what the daemon had made durable.  ``test_crash.py`` has the workload, and says
which states are allowed.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import storage
from tests.conftest import eventually, start_daemon, unmount
from tests.mount.test_crash import VOSFSD, Rig, check

ROOT = Path(__file__).parents[2]
ROUNDS = int(os.environ.get("VOSFS_POWER_ROUNDS", "8"))
SEED = int(os.environ.get("VOSFS_CRASH_SEED", "0"))
pytestmark = pytest.mark.needs_gateway("replacing a file is not one step")


@contextmanager
def disk(point: Path, source: Path) -> Iterator[None]:
    """A disk whose power can fail, with the contents of a directory."""
    point.mkdir(exist_ok=True)
    process = subprocess.Popen([sys.executable, "-m", "tests.services.powercut", point, source], cwd=ROOT)
    try:
        eventually("the disk is there", lambda: os.path.ismount(point))
        yield
    finally:
        subprocess.run(["umount", "-l", point] if os.getuid() == 0 else ["fusermount3", "-uz", point], check=True)
        process.wait(30)


class Machine(Rig):
    """A daemon on such a disk, and a mount."""

    def __init__(self, directory: Path, space: Path, *options: str) -> None:
        self.daemon = start_daemon(space, *options, program=VOSFSD)
        self.point, self.cache = directory / "mnt", directory / "cache"
        self.mount()

    def stop(self) -> None:
        """At once, and nothing is left but the disk."""
        self.daemon.stop(signal.SIGKILL)
        self.kill_mount()


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
def test_what_was_synced_is_there_and_nothing_is_by_half(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    before, after, point = tmp_path / "before", tmp_path / "after", tmp_path / "disk"
    before.mkdir()
    with disk(point, before):
        machine = Machine(tmp_path, point / "space")
        worker = machine.begin(seed)
        worker.start()
        worker.history.reach(rng.randrange(20, 200), worker, 20)
        worker.interrupted.set()
        machine.stop()
        worker.finish(saving=False)
        unmount(machine.point)
        os.setxattr(point, "user.cut", f"{seed} {after}".encode())
    shutil.rmtree(machine.cache)
    # Another place for the same space: blobs in an object store are where they were.
    machine = Machine(tmp_path, after / "space", *storage.options(point / "space"))
    try:
        check(worker, worker.directory, worker.history.durable)
    finally:
        machine.end()
