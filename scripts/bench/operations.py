"""Where the time of single operations goes: ``python -m bench.operations``, as root, with py-spy and strace.

Each runs in a loop on a mount with a daemon of its own, both on this machine.  The table has the time of one operation,
the CPU microseconds of mount and daemon in it, in user space and in the kernel, and the mount's system calls; then come
the modules in which the mount's Python was found, by samples.
"""

import collections
import contextlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workload import MIB, TICKS_PER_S, block, with_descendants

from bench.processes import CHECKOUT, remove
from bench.report import aligned, machine
from bench.targets import Vosfs

SECONDS = 3.0
FILES = 1000
SAMPLES_PER_S = 500
MODULES_SHOWN = 8


@dataclass
class Cost:
    """Of one operation, in microseconds."""

    name: str
    wall: float
    mount_user: float
    mount_system: float
    daemon_user: float
    daemon_system: float
    calls: dict[str, float] = field(default_factory=dict)
    """System calls of the mount, each by name."""
    modules: list[tuple[str, float]] = field(default_factory=list)
    """Parts of the mount's samples."""


def _times(pids: set[int]) -> tuple[float, float]:
    """User and system seconds."""
    user = system = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            user += int(fields[11]) / TICKS_PER_S
            system += int(fields[12]) / TICKS_PER_S
    return user, system


class Operations:
    """The loops, on one mount.  Each yields the function that does it once, with a number."""

    def __init__(self, target: Vosfs) -> None:
        self.target = target
        self.point = target.point
        self._made = 0
        self._open: list[int] = []

    def close(self) -> None:
        """What the loops left open, so that the mount can go."""
        while self._open:
            os.close(self._open.pop())

    def _opened(self, path: Path, flags: int) -> int:
        self._open.append(os.open(path, flags))
        return self._open[-1]

    def prepare(self) -> None:
        """What is looked at."""
        (self.point / "s").mkdir()
        for number in range(FILES):
            (self.point / "s" / f"f{number:04}").write_bytes(b"x")
        with open(self.point / "big", "wb", 0) as file:
            for number in range(512):
                file.write(block(number))

    def _dropped(self, what: int) -> None:
        subprocess.run(["sync", "-f", self.point], check=True)
        Path("/proc/sys/vm/drop_caches").write_text(f"{what}\n")

    def lookup_known(self) -> Callable[[int], object]:
        """stat of a name that the mount knows and the kernel does not."""
        names = [self.point / "s" / f"f{number:04}" for number in range(FILES)]

        def look(number: int) -> None:
            if number % FILES == 0:
                self._dropped(2)
            os.stat(names[number % FILES])

        return look

    def lookup_asked(self) -> Callable[[int], object]:
        """stat of a name that only the daemon knows: there is none, and its container was not listed."""
        return lambda number: os.path.exists(self.point / "s" / f"none{number}")

    def create(self) -> Callable[[int], object]:
        """A file made and closed."""
        directory = self._directory()

        def make(number: int) -> None:
            os.close(os.open(directory / f"c{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))

        return make

    def create_4k(self) -> Callable[[int], object]:
        """A file of 4 KiB made and closed."""
        directory, data = self._directory(), block(3)[:4096]

        def make(number: int) -> None:
            fd = os.open(directory / f"c{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            os.write(fd, data)
            os.close(fd)

        return make

    def _directory(self) -> Path:
        self._made += 1
        directory = self.point / f"made{self._made}"
        directory.mkdir()
        return directory

    def write_4k(self) -> Callable[[int], object]:
        """4 KiB written behind the last, to one open file."""
        fd, data = self._opened(self._directory() / "w", os.O_CREAT | os.O_WRONLY), block(4)[:4096]
        return lambda number: os.pwrite(fd, data, number % 65536 * 4096)

    def read_4k(self) -> Callable[[int], object]:
        """4 KiB read at random from the local cache, not from the kernel's."""
        return self._reads(4096, 65536)

    def read_1m(self) -> Callable[[int], object]:
        """1 MiB read at random from the local cache, not from the kernel's."""
        return self._reads(MIB, 256)

    def _reads(self, size_bytes: int, places: int) -> Callable[[int], object]:
        (self.point / "big").read_bytes()
        fd = self._opened(self.point / "big", os.O_RDONLY)
        order = random.Random(1).sample(range(places), places)

        def read(number: int) -> None:
            if number % places == 0:
                self._dropped(1)
            os.pread(fd, size_bytes, order[number % places] * size_bytes)

        return read


NAMES = ("lookup_known", "lookup_asked", "create", "create_4k", "write_4k", "read_4k", "read_1m")


def _loop(operation: Callable[[int], object], first: int, seconds: float) -> int:
    end, number = time.perf_counter() + seconds, first
    while time.perf_counter() < end:
        operation(number)
        number += 1
    return number


@contextlib.contextmanager
def _beside(*command: object) -> Iterator[None]:
    """A program that watches until it is interrupted, and then writes what it saw."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)  # py-spy and strace do not say when they have begun
    try:
        yield
    finally:
        process.send_signal(2)
        process.wait(30)


def cost_of(name: str, operations: Operations, client: int, server: int, work: Path) -> Cost:
    """Three loops: alone for the times, under py-spy for the modules, under strace for the system calls."""
    operation = getattr(operations, name)()
    number = _loop(operation, 0, 0.3)
    pids = {"mount": with_descendants([client]), "daemon": with_descendants([server])}
    before = {kind: _times(found) for kind, found in pids.items()}
    begun, first = time.perf_counter(), number
    number = _loop(operation, number, SECONDS)
    wall, count = time.perf_counter() - begun, number - first
    used = {
        kind: [1e6 * (now - then) / count for now, then in zip(_times(found), before[kind], strict=True)]
        for kind, found in pids.items()
    }
    cost = Cost(name, 1e6 * wall / count, *used["mount"], *used["daemon"])
    samples, calls = work / "samples", work / "calls"
    with _beside("py-spy", "record", "-p", client, "-r", SAMPLES_PER_S, "-d", 600, "-f", "raw", "-o", samples):
        number = _loop(operation, number, SECONDS)
    cost.modules = _modules(samples)
    with _beside("strace", "-f", "-c", "-o", calls, "-p", client):
        first = number
        number = _loop(operation, number, SECONDS)
    cost.calls = {call: made / (number - first) for call, made in _calls(calls).items()}
    return cost


def _modules(file: Path) -> list[tuple[str, float]]:
    """Parts of the samples by the module of their innermost frame."""
    found: collections.Counter[str] = collections.Counter()
    for line in file.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        inner = re.search(r"\(([^():]+):?\d*\)$", stack)
        found[inner.group(1) if inner else stack.rpartition(";")[2]] += int(count)
    total = sum(found.values()) or 1
    return [(name.replace("site-packages/", ""), count / total) for name, count in found.most_common(MODULES_SHOWN)]


def _calls(file: Path) -> dict[str, int]:
    found = {}
    for line in file.read_text().splitlines():
        fields = line.split()
        if len(fields) >= 5 and fields[3].isdigit() and fields[-1] != "total":
            found[fields[-1]] = int(fields[3])
    return found


def main() -> None:
    """Entry point."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), str(CHECKOUT)])
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if missing := [program for program in ("py-spy", "strace") if not shutil.which(program)]:
        sys.exit(f"operations: missing: {', '.join(missing)}")
    about = machine()
    work = Path(tempfile.mkdtemp(prefix="vosfs-bench-", dir="/var/tmp"))
    target = Vosfs(work / "vosfs")
    costs = []
    try:
        target.start()
        operations = Operations(target)
        operations.prepare()
        for name in sys.argv[1:] or NAMES:
            if name == "lookup_asked":
                target.remount()
            pids = target.processes.pids()
            try:
                costs.append(cost_of(name, operations, pids["client"][0], pids["server"][0], work))
            finally:
                operations.close()
            print(f"{name}: {costs[-1]}", file=sys.stderr, flush=True)
    finally:
        target.stop()
        remove(work)
    print(f"{about['cpu']}, {about['cores']} cores, commit {about['commit']}, load {about['load_before']} before\n")
    rows = [["µs", "one", "mount: user", "kernel", "daemon: user", "kernel"]]
    for c in costs:
        times = (c.wall, c.mount_user, c.mount_system, c.daemon_user, c.daemon_system)
        rows.append([c.name, *(f"{value:.0f}" for value in times)])
    print(aligned(rows) + "\n")
    for c in costs:
        calls = sorted(((made, call) for call, made in c.calls.items() if made >= 0.05), reverse=True)
        print(f"{c.name}\n  calls  " + ", ".join(f"{call} {made:.1f}" for made, call in calls))
        print("  in     " + ", ".join(f"{name} {100 * part:.0f} %" for name, part in c.modules))


if __name__ == "__main__":
    main()
