"""Processes and mounts: how they are started, found, weighed and ended."""

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType

import workload

CHECKOUT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_S_MAX = 60
"""For a server or a mount to answer."""
STOP_S_MAX = 60
"""For a process to end by itself."""
AM_ROOT = os.getuid() == 0
UNMOUNT = ["umount"] if AM_ROOT else ["fusermount3", "-u"]
UNMOUNT_LAZILY = ["umount", "-l"] if AM_ROOT else ["fusermount3", "-uz"]


class BenchError(Exception):
    """A target does not come up, or does not go away; the message is for the user."""


def ended(pid: int) -> bool:
    """Whether a process is gone, waited for or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(condition: Callable[[], object], limit_s: float) -> bool:
    """Wait until it holds; whether it did in time."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _peak_rss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def mounted_under(directory: Path) -> list[str]:
    """The mount points in a directory, itself included."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        points = [line.split()[4] for line in lines]
    return [point for point in points if Path(point).is_relative_to(directory)]


def run(*command: object, limit_s: float = 2 * STOP_S_MAX, more: Mapping[str, str] | None = None) -> None:
    """Run to its end, out of reach of ^C; its last line is the error.  ``more``: of the environment."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=limit_s, start_new_session=True,
            env={**os.environ, **(more or {})},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise BenchError(f"{shlex.join(words)}: no end after {limit_s} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
        raise BenchError(f"{shlex.join(words)}: {said[-1]}")


class Processes:
    """The processes of a target, by kind ("client", "server"), and how large they were.

    ``state`` is kept up to date for the workload, which takes CPU seconds from it.
    """

    def __init__(self, directory: Path) -> None:
        self.logs = directory / "logs"
        self.logs.mkdir(parents=True)
        self.state = directory / "state.json"
        self.peak_bytes = {"client": 0, "server": 0}
        self._pids: dict[str, list[int]] = {"client": [], "server": []}
        self._started: list[subprocess.Popen[bytes]] = []

    def spawn(self, kind: str, *command: object, more: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start one, in a session of its own: ^C is for this program, which then ends the others in order.

        ``more``: of the environment.
        """
        with open(self.logs / f"{kind}.log", "ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
                env={**os.environ, **(more or {})},
            )  # fmt: skip
        self._started.append(process)
        self.adopt(kind, process.pid)
        return process

    def adopt(self, kind: str, pid: int) -> None:
        """Count one that a command of ours started."""
        self._pids[kind].append(pid)
        self._save()

    def _save(self) -> None:
        self.state.write_text(json.dumps(self._pids))

    def pids(self) -> dict[str, list[int]]:
        """Those that run, by kind."""
        return {kind: list(pids) for kind, pids in self._pids.items()}

    def weigh(self) -> None:
        """Update the peaks.  The kernel keeps the peak of a process, but forgets it with the process."""
        for kind, pids in self._pids.items():
            total = sum(_peak_rss_bytes(pid) for pid in workload.with_descendants(pids))
            self.peak_bytes[kind] = max(self.peak_bytes[kind], total)

    def dead(self) -> list[str]:
        """Which kinds have a process that ended although nobody asked."""
        self._reap()
        return [kind for kind, pids in self._pids.items() if any(ended(pid) for pid in pids)]

    def _reap(self) -> None:
        for process in self._started:
            process.poll()

    def _all_ended(self, pids: set[int]) -> bool:
        self._reap()
        return all(ended(pid) for pid in pids)

    def wait(self, kind: str) -> None:
        """Wait for those whose work is done, and end those that do not notice."""
        if not self._all_ended(set(self._pids[kind])):
            until(lambda: self._all_ended(set(self._pids[kind])), STOP_S_MAX)
        self.end(kind)

    def end(self, kind: str) -> None:
        """End those that still run, with their children."""
        pids = workload.with_descendants(pid for pid in self._pids[kind] if not ended(pid))
        for number, limit_s in ((signal.SIGTERM, STOP_S_MAX / 2), (signal.SIGKILL, STOP_S_MAX / 2)):
            for pid in pids:
                if not ended(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            if until(lambda: self._all_ended(pids), limit_s):
                break
        self._pids[kind] = []
        self._save()


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def free_port() -> int:
    """A port that nobody has at the moment."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ready_line(log: Path) -> str:
    """The line with which the daemon says where it is."""
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    return next((line for line in lines if line.startswith("READY ") and line.endswith("\n")), "").strip()


def last_line(log: Path) -> str:
    """The last words of a program."""
    return (log.read_text(errors="replace").strip().splitlines() or ["it says nothing"])[-1]


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """^C and SIGTERM wait; not ignored, because that would be inherited by programs that need them."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    came: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise KeyboardInterrupt


def remove(directory: Path) -> None:
    """Remove a directory of ours, but never through a mount that is still there."""
    left = mounted_under(directory)
    if left:
        print(f"still mounted, so {directory} stays: {', '.join(left)}", file=sys.stderr)
        return
    shutil.rmtree(directory, ignore_errors=True)
