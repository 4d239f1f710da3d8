"""Mount and daemon are killed at any moment, and what the programs of the mount were told is true afterwards.

A round is a workload of random system calls in a directory of its own.  Somewhere in it one side is killed, or
stopped first, so that much is owed.  ``History`` knows every state that the directory had after each call that
returned; what is found afterwards must be one of them, and which ones are allowed is what the rounds differ in:

* the mount is killed, and mounted again with the same cache directory: the last one;
* the daemon is killed and started again while the mount lives: the last one, and nothing counts as lost;
* the mount is killed and its cache directory is gone too: any since the last fsync(2).

A call during which the kill came may have happened or not; nothing may have happened by half.
"""

import contextlib
import os
import random
import shutil
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import eventually, start_daemon, start_mount, unmount
from tests.mount.test_delegation import VOSFS, VOSFSD, status

ROUNDS = int(os.environ.get("VOSFS_CRASH_ROUNDS", "54"))
SEED = int(os.environ.get("VOSFS_CRASH_SEED", "0"))
"""Of the first round; the n-th after it has ``SEED + n``."""
CALLS_MAX = 400
"""In one round."""

Entry = tuple[int, bytes] | int
"""A file's mode and content, or a directory's mode."""
State = dict[str, Entry]
"""By path below the round's directory."""
NAMES = [f"{directory}{name}" for directory in ("", "d/", "e/") for name in "abc"]
pytestmark = pytest.mark.needs_gateway("replacing a file is not one step")


class History:
    """The states of a directory that programs could know of."""

    def __init__(self) -> None:
        self.states: list[State] = [{}]
        self.durable = 0
        """Index of the last state that fsync(2) vouched for."""
        self.known = 0
        """Index of the last state that a call which returned made; later ones are of the call that did not."""
        self.calls = 0
        self.advanced = threading.Condition()

    def will(self, change: Callable[[State], object]) -> None:
        """A call is about to make this change."""
        state = dict(self.states[-1])
        change(state)
        self.states.append(state)

    def returned(self) -> None:
        """The call returned."""
        self.known = len(self.states) - 1
        with self.advanced:
            self.calls += 1
            self.advanced.notify_all()

    def synced(self, name: str = "") -> None:
        """fsync(2) of a file returned, or of a directory: the file is as it is, or all names are, for good."""
        self.returned()
        at = self.known
        while name and at and self.states[at - 1].get(name) == self.states[-1][name]:
            at -= 1
        self.durable = max(self.durable, at)

    def also(self, change: Callable[[State], object]) -> None:
        """This happened besides, whether the call in doubt did or not."""
        self.states[self.known :] = [dict(state) for state in self.states[self.known :]]
        for state in self.states[self.known :]:
            change(state)

    def reach(self, calls: int, worker: threading.Thread, seconds: float) -> None:
        """Wait for so many calls, or until there are no more for a while."""
        with self.advanced:
            self.advanced.wait_for(lambda: self.calls >= calls or not worker.is_alive(), seconds)


def _saved(name: str, data: bytes) -> Callable[[State], object]:
    return lambda state: state.update({name: (0o640, data)})


def found(directory: Path) -> State:
    """What is there."""
    state: State = {}
    for path in sorted(directory.rglob("*")):
        about = path.lstat()
        mode = stat.S_IMODE(about.st_mode)
        state[str(path.relative_to(directory))] = mode if path.is_dir() else (mode, path.read_bytes())
    return state


class Worker(threading.Thread):
    """Makes system calls until one fails."""

    def __init__(self, directory: Path, seed: int) -> None:
        super().__init__(daemon=True)
        self.directory = directory
        self.history = History()
        self.interrupted = threading.Event()
        """Set before anything is stopped or killed: no call may fail until then."""
        self.failed: list[BaseException] = []
        """What should not have happened."""
        self._left: list[tuple[int, str, bytes]] = []
        """Descriptors of files that are written and not closed, their names and what was written."""
        self._rng = random.Random(seed)

    def run(self) -> None:
        try:
            for _ in range(CALLS_MAX):
                self._step()
        except OSError as exc:
            if not self.interrupted.is_set():
                self.failed.append(exc)
        except BaseException as exc:
            self.failed.append(exc)
        with self.history.advanced:
            self.history.advanced.notify_all()

    def finish(self, saving: bool) -> None:
        """No call hangs, and what was left open is closed; with ``saving`` that may still save it."""
        self.join(60)
        assert not self.is_alive(), "a call hangs"
        assert not self.failed, self.failed
        for fd, name, data in self._left:
            try:
                os.close(fd)
            except OSError:
                continue
            if saving:
                self.history.also(_saved(name, data))
        self._left.clear()

    def _files(self, state: State) -> list[str]:
        return [name for name, entry in state.items() if not isinstance(entry, int)]

    def _free(self, state: State) -> list[str]:
        return [name for name in NAMES if name not in state and ("/" not in name or name[0] in state)]

    def _step(self) -> None:
        rng, history = self._rng, self.history
        state = {name: entry for name, entry in history.states[-1].items() if not name.startswith("left")}
        files, free = self._files(state), self._free(state)
        kind = rng.choice(
            ["save", "save", "save", "patch", "patch", "append", "replace", "rename", "unlink", "chmod", "mkdir",
             "rmdir", "link", "fsync", "leave", "sync directory", "move directory"]
        )  # fmt: skip
        data = bytes([rng.randrange(1, 256)]) * rng.choice([0, 1, 7, 500, 5000, 20_000, 70_000])
        if kind == "save" and free:
            self._save(rng.choice(free), data, rng.random() < 0.1)
        elif kind == "patch" and files:
            self._patch(rng.choice(files), rng.randrange(30_000), data[:9000])
        elif kind == "append" and files:
            self._patch(rng.choice(files), -1, data[:600])
        elif kind == "replace" and files and free:
            # How editors save.
            name, aside = rng.choice(files), rng.choice(free)
            self._save(aside, data, rng.random() < 0.3)
            self._rename(aside, name)
        elif kind == "rename" and files:
            self._rename(rng.choice(files), rng.choice(files + free * 2))
        elif kind == "unlink" and files:
            name = rng.choice(files)
            history.will(lambda s: s.pop(name))
            os.unlink(self.directory / name)
            history.returned()
        elif kind == "chmod" and state:
            name, mode = rng.choice(list(state)), rng.randrange(0o100) | 0o700
            entry = state[name]
            history.will(lambda s: s.update({name: mode if isinstance(entry, int) else (mode, entry[1])}))
            os.chmod(self.directory / name, mode)
            history.returned()
        elif kind in ("mkdir", "rmdir", "move directory"):
            self._directory(kind)
        elif kind == "fsync" and files:
            name = rng.choice(files)
            fd = os.open(self.directory / name, os.O_RDONLY)
            try:
                os.fsync(fd)
                history.synced(name)
            finally:
                os.close(fd)
        elif kind == "sync directory":
            fd = os.open(self.directory, os.O_RDONLY)
            try:
                os.fsync(fd)
                history.synced()
            finally:
                os.close(fd)
        elif kind == "link" and files and free:
            # A second name of a file is more than this model has: taken away again at once.
            self._link(rng.choice(files), rng.choice(free))
        elif kind == "leave" and len(self._left) < 3 and data:
            # Until it is closed nobody sees any of it, and after a crash there is none.
            name = f"left{len(self._left)}"
            self._save(name, b"", False)
            fd = os.open(self.directory / name, os.O_WRONLY)
            self._left.append((fd, name, data))
            os.pwrite(fd, data, 0)

    def _save(self, name: str, data: bytes, durable: bool) -> None:
        history, path = self.history, self.directory / name
        history.will(lambda s: s.update({name: (0o640, b"")}))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        history.returned()
        self._write(fd, name, data, 0, durable)

    def _patch(self, name: str, at: int, data: bytes) -> None:
        entry = self.history.states[-1][name]
        assert not isinstance(entry, int)
        fd = os.open(self.directory / name, os.O_WRONLY)
        self._write(fd, name, data, len(entry[1]) if at < 0 else at, False)

    def _write(self, fd: int, name: str, data: bytes, at: int, durable: bool) -> None:
        """Write and close; the mode stays."""
        history = self.history
        entry = history.states[-1][name]
        assert not isinstance(entry, int)
        mode, old = entry
        new = (old.ljust(at, b"\0")[:at] + data + old[at + len(data) :]) if data else old
        history.will(lambda s: s.update({name: (mode, new)}))
        try:
            if data:
                os.pwrite(fd, data, at)
            if durable:
                os.fsync(fd)
                history.synced(name)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(fd)
            raise
        os.close(fd)
        history.returned()

    def _rename(self, name: str, to: str) -> None:
        def change(state: State) -> None:
            state[to] = state.pop(name)

        if name != to:
            self.history.will(change)
            os.rename(self.directory / name, self.directory / to)
            self.history.returned()

    def _link(self, name: str, to: str) -> None:
        history = self.history
        history.will(lambda s: s.update({to: s[name]}))
        os.link(self.directory / name, self.directory / to)
        history.returned()
        history.will(lambda s: s.pop(to))
        os.unlink(self.directory / to)
        history.returned()

    def _directory(self, kind: str) -> None:
        history, rng = self.history, self._rng
        state = history.states[-1]
        there = [name for name in "de" if name in state]
        absent = [name for name in "de" if name not in state]
        if kind == "mkdir" and absent:
            name = rng.choice(absent)
            history.will(lambda s: s.update({name: 0o750}))
            os.mkdir(self.directory / name, 0o750)
            history.returned()
        elif kind == "rmdir" and (empty := [d for d in there if not any(n.startswith(d + "/") for n in state)]):
            name = rng.choice(empty)
            history.will(lambda s: s.pop(name))
            os.rmdir(self.directory / name)
            history.returned()
        elif kind == "move directory" and there and absent:
            old, new = there[0], absent[0]

            def change(state: State) -> None:
                for name in [n for n in state if n == old or n.startswith(old + "/")]:
                    state[new + name[1:]] = state.pop(name)

            history.will(change)
            os.rename(self.directory / old, self.directory / new)
            history.returned()


class Rig:
    """A daemon and a mount that are killed and started again."""

    def __init__(self, directory: Path) -> None:
        self.daemon = start_daemon(directory / "space", program=VOSFSD)
        self.point, self.cache = directory / "mnt", directory / "cache"
        self.mount()

    def mount(self) -> None:
        start_mount(self.daemon, self.point, self.cache, "deadline=5", program=VOSFS)
        self.pid = int(str(status(self.point)["pid"]))

    def kill_mount(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def kill_daemon(self) -> None:
        self.daemon.stop(signal.SIGKILL)

    def restart_daemon(self) -> None:
        self.daemon = start_daemon(self.daemon.directory, port=self.daemon.port, program=VOSFSD)

    def stop_daemon(self, stopped: bool) -> None:
        self.daemon.process.send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)

    def begin(self, seed: int) -> Worker:
        """A directory, and somebody who will work in it with the delegation."""
        directory = self.point / f"r{seed}"
        directory.mkdir()
        tries = iter(range(10**6))

        def held() -> bool:
            os.chmod(directory, 0o755 - next(tries) % 2)
            return status(self.point)["delegation"] is True

        eventually("the mount gets the delegation", held)
        return Worker(directory, seed)

    def end(self) -> None:
        unmount(self.point)
        self.daemon.stop()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    made = Rig(tmp_path_factory.mktemp("crash"))
    yield made
    made.end()


def check(worker: Worker, directory: Path, first: int) -> None:
    """What is there is a state of the history, from ``first`` on."""
    states, there = worker.history.states, found(directory)
    if there not in states[first:]:
        near = {
            name: (brief(states[worker.history.known].get(name)), brief(there.get(name)))
            for name in states[worker.history.known].keys() | there.keys()
            if states[worker.history.known].get(name) != there.get(name)
        }
        at = [index for index, state in enumerate(states) if state == there]
        raise AssertionError(f"found state {at} of {first}..{len(states) - 1}; expected and found: {near}")


def brief(entry: Entry | None) -> object:
    """An entry, for people."""
    if entry is None or isinstance(entry, int):
        return entry
    return oct(entry[0]), len(entry[1]), entry[1][:4]


def the_mount_dies(rig: Rig, worker: Worker, rng: random.Random, cache_too: bool) -> None:
    stopped = rng.random() < 0.5
    worker.start()
    worker.history.reach(rng.randrange(120), worker, 10)
    worker.interrupted.set()
    if stopped:
        rig.stop_daemon(True)
        # Until it waits for the service, or so far.
        worker.history.reach(worker.history.calls + rng.randrange(60), worker, 0.2)
    rig.kill_mount()
    if stopped:
        rig.stop_daemon(False)
    worker.finish(saving=False)
    unmount(rig.point)
    if cache_too:
        shutil.rmtree(rig.cache)
    rig.mount()
    check(worker, worker.directory, worker.history.durable if cache_too else worker.history.known)
    left = [path.name for path in rig.cache.glob("mount-*")]
    assert left == [f"mount-{rig.pid}"], left


def the_daemon_dies(rig: Rig, worker: Worker, rng: random.Random) -> None:
    stopped = rng.random() < 0.5
    worker.start()
    worker.history.reach(rng.randrange(120), worker, 10)
    worker.interrupted.set()
    if stopped:
        rig.stop_daemon(True)
        worker.history.reach(worker.history.calls + rng.randrange(60), worker, 0.2)
        # It may go on for some instructions before it dies, in the middle of a batch perhaps.
        rig.stop_daemon(False)
    rig.kill_daemon()
    worker.join(60)
    rig.restart_daemon()
    eventually("nothing is owed", lambda: status(rig.point)["owed"] == 0)
    assert status(rig.point)["lost"] == 0, "nobody else changed anything"
    worker.finish(saving=True)
    check(worker, worker.directory, worker.history.known)


def both_die(rig: Rig, worker: Worker, rng: random.Random) -> None:
    worker.start()
    worker.history.reach(rng.randrange(120), worker, 10)
    worker.interrupted.set()
    rig.kill_daemon()
    worker.history.reach(worker.history.calls + rng.randrange(30), worker, 0.05)
    rig.kill_mount()
    worker.finish(saving=False)
    unmount(rig.point)
    rig.restart_daemon()
    rig.mount()
    check(worker, worker.directory, worker.history.known)


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
def test_what_was_acknowledged_is_there(rig: Rig, seed: int) -> None:
    rng = random.Random(-seed)
    worker = rig.begin(seed)
    if seed % 6 in (0, 2):
        the_mount_dies(rig, worker, rng, cache_too=False)
    elif seed % 6 == 4:
        the_mount_dies(rig, worker, rng, cache_too=True)
    elif seed % 6 == 5:
        both_die(rig, worker, rng)
    else:
        the_daemon_dies(rig, worker, rng)
    assert status(rig.point)["lost"] == 0
    assert rig.daemon.request("GET", f"/nodes/r{seed}")[0] == 200
