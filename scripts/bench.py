#!/usr/bin/env python3
"""How fast is the mount?  The workload of workload.py on the local disk, sshfs and vosfs, in turns.

Everything runs on this machine, on loopback, with data on one disk, in a fresh directory that is removed at the end.
Round 1 goes over all targets, then round 2, so that what else the machine does falls on all of them.  sshfs gets an
sshd of its own, vosfs a daemon with SQLite; each round begins with an empty server.

As root caches can be dropped; other users get the table without the rows that need it.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import pwd
import select
import shlex
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Protocol

import workload

CHECKOUT = Path(__file__).resolve().parent.parent
RESULTS = CHECKOUT / "bench-results"
BIN = Path(sys.executable).parent
START_S_MAX = 60
"""For a server or a mount to answer."""
STOP_S_MAX = 60
"""For a process to end by itself."""
WORKLOAD_S_MAX = 2400
SLOW = 0.5
"""Rows below this part of the best peer are marked."""
RCLONE_DRAIN_S_MAX = 240
"""For rclone to bring its cache to the server before it is unmounted."""
AM_ROOT = os.getuid() == 0
UNMOUNT = ["umount"] if AM_ROOT else ["fusermount3", "-u"]
UNMOUNT_LAZILY = ["umount", "-l"] if AM_ROOT else ["fusermount3", "-uz"]

ROWS = [
    "seq_write_MBps",
    "par4_write_MBps",
    "cold_seq_read_MBps",
    "warm_seq_read_MBps",
    "par4_read_MBps",
    "rcold_first_byte_s",
    "rcold_seq_read_MBps",
    "rcold_par4_read_MBps",
    "rand4k_1t_iops",
    "rand4k_16t_iops",
    "rcold_rand4k_1t_iops",
    "rand1m_1t_MBps",
    "create_4k_per_s",
    "create_fsync_per_s",
    "create_empty_per_s",
    "stat_cold_per_s",
    "stat_warm_per_s",
    "read_4k_files_cold_per_s",
    "read_4k_files_warm_per_s",
    "chmod_per_s",
    "rename_per_s",
    "unlink_per_s",
    "unlink_empty_per_s",
    "mkdir_per_s",
    "readdir5k_cold_s",
    "ls_l5k_cold_s",
    "ls_l5k_warm_s",
    "tar_x_1500_s",
    "find_cold_s",
    "find_warm_s",
    "grep_r_cold_s",
    "rm_rf_s",
    "git_clone_s",
    "git_status_cold_s",
    "git_status_warm_s",
    "sqlite_tx_per_s",
    "append100_per_s",
    "append_open_close_per_s",
]

Result = dict[str, object]


class BenchError(Exception):
    """A target does not come up, or does not go away; the message is for the user."""


# -- processes and mounts ------------------------------------------------------------------------------------------


def _ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _until(condition: Callable[[], object], limit_s: float) -> bool:
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


def _mounted_under(directory: Path) -> list[str]:
    with open("/proc/self/mountinfo", errors="surrogateescape") as lines:
        points = [line.split()[4] for line in lines]
    return [point for point in points if Path(point).is_relative_to(directory)]


def _run(*command: object, limit_s: float = 2 * STOP_S_MAX) -> None:
    """Run to its end, out of reach of ^C; its last line is the error."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit_s, start_new_session=True)
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

    def spawn(self, kind: str, *command: object) -> subprocess.Popen[bytes]:
        """Start one, in a session of its own: ^C is for this program, which then ends the others in order."""
        with open(self.logs / f"{kind}.log", "ab") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/",
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

    def weigh(self) -> None:
        """Update the peaks.  The kernel keeps the peak of a process, but forgets it with the process."""
        for kind, pids in self._pids.items():
            total = sum(_peak_rss_bytes(pid) for pid in workload.with_descendants(pids))
            self.peak_bytes[kind] = max(self.peak_bytes[kind], total)

    def dead(self) -> list[str]:
        """Which kinds have a process that ended although nobody asked."""
        self._reap()
        return [kind for kind, pids in self._pids.items() if any(_ended(pid) for pid in pids)]

    def _reap(self) -> None:
        for process in self._started:
            process.poll()

    def _all_ended(self, pids: set[int]) -> bool:
        self._reap()
        return all(_ended(pid) for pid in pids)

    def wait(self, kind: str) -> None:
        """Wait for those whose work is done, and end those that do not notice."""
        if not self._all_ended(set(self._pids[kind])):
            _until(lambda: self._all_ended(set(self._pids[kind])), STOP_S_MAX)
        self.end(kind)

    def end(self, kind: str) -> None:
        """End those that still run, with their children."""
        pids = workload.with_descendants(pid for pid in self._pids[kind] if not _ended(pid))
        for number, limit_s in ((signal.SIGTERM, STOP_S_MAX / 2), (signal.SIGKILL, STOP_S_MAX / 2)):
            for pid in pids:
                if not _ended(pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            if _until(lambda: self._all_ended(pids), limit_s):
                break
        self._pids[kind] = []
        self._save()


# -- targets -------------------------------------------------------------------------------------------------------


class Target(Protocol):
    """A file system to measure.  ``stop`` may be called at any time, and again."""

    point: Path
    processes: Processes
    remounts: bool

    def start(self) -> None: ...
    def remount(self) -> None: ...
    def stop(self) -> None: ...


class Local:
    """A directory on the disk."""

    remounts = False

    def __init__(self, directory: Path) -> None:
        self.processes = Processes(directory)
        self.point = directory / "mnt"

    def start(self) -> None:
        self.point.mkdir()

    def remount(self) -> None:
        raise BenchError("the local disk is not remounted")

    def stop(self) -> None:
        """Nothing runs."""


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Mounted:
    """What mounts have in common: a server, a client, a mount point, and their end."""

    remounts = True

    def __init__(self, directory: Path) -> None:
        self.processes = Processes(directory)
        self.point = directory / "mnt"

    def _await(self, kind: str, process: subprocess.Popen[bytes], holds: Callable[[], object], fails: str) -> None:
        """Wait until a process does its work.  BenchError with its last words if it ends before, or takes too long."""
        if not _until(lambda: process.poll() is not None or holds(), START_S_MAX) or process.poll() is not None:
            raise BenchError(f"{fails}: {_last_line(self.processes.logs / f'{kind}.log')}")

    def _unmount(self) -> None:
        self.processes.weigh()
        _run(*UNMOUNT, self.point)
        self.processes.wait("client")

    def stop(self) -> None:
        with _uninterrupted():
            try:
                if _mounted_under(self.point):
                    self._unmount()
            finally:
                _detach(self.point)
                self.processes.end("client")
                self.processes.weigh()
                self.processes.end("server")


class Sshfs(Mounted):
    """sshfs with default caching, on an sshd of our own."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._data = directory / "data"
        self._keys = directory / "ssh"
        self._port = 0

    def start(self) -> None:
        for path in (self.point, self._data, self._keys):
            path.mkdir()
        if AM_ROOT:
            Path("/run/sshd").mkdir(exist_ok=True)  # for privilege separation; Debian's service makes it otherwise
        for name in ("host", "user"):
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._keys / name)
        self._port = _free_port()
        config = self._keys / "sshd_config"
        config.write_text(
            f"Port {self._port}\nListenAddress 127.0.0.1\nHostKey {self._keys}/host\n"
            f"AuthorizedKeysFile {self._keys}/user.pub\nPidFile none\nStrictModes no\nUsePAM no\nUseDNS no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 100\n"
            "Subsystem sftp internal-sftp\n"
        )
        server = self.processes.spawn("server", shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", config)
        self._await("server", server, lambda: _listens(self._port), "sshd does not start")
        self._mount()

    def _mount(self) -> None:
        user = pwd.getpwuid(os.getuid()).pw_name
        options = ["-o", "allow_other,default_permissions"] if AM_ROOT else []
        client = self.processes.spawn(
            "client", "sshfs", "-f", "-F", "/dev/null", "-p", self._port,
            f"{user}@127.0.0.1:{self._data}", self.point,
            "-o", f"IdentityFile={self._keys}/user,IdentitiesOnly=yes,BatchMode=yes",
            "-o", "StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null", *options,
        )  # fmt: skip
        self._await("client", client, lambda: _mounted_under(self.point), "sshfs does not mount")
        os.statvfs(self.point)

    def remount(self) -> None:
        """Data is cached in the kernel only, so this is all."""
        self._unmount()
        self._mount()


class Vosfs(Mounted):
    """The mount, on a daemon of our own with SQLite and a directory of files."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._directory = directory
        self._url = self._token_file = ""
        self._mounts = 0

    def start(self) -> None:
        self.point.mkdir()
        command = [BIN / "vosfsd", "--dev", self._directory / "space", "--port", 0]
        log = self.processes.logs / "server.log"
        server = self.processes.spawn("server", *command)
        self._await("server", server, lambda: _ready(log), "vosfsd does not start")
        fields = dict(part.split("=", 1) for part in _ready(log).split()[1:])
        self._url, self._token_file = fields["url"], fields["token_file"]
        self._mount()

    def _cache(self) -> Path:
        return self._directory / f"cache-{self._mounts}"

    def _mount(self) -> None:
        self._mounts += 1
        options = ["-o", "allow_other"] if AM_ROOT else []
        _run(
            BIN / "vosfs", "mount", self._url, self.point, "--token-file", self._token_file,
            "--cache-dir", self._cache(), *options,
        )  # fmt: skip
        status = subprocess.run(
            [BIN / "vosfs", "status", "--json", self.point], capture_output=True, check=True, timeout=START_S_MAX
        )
        self.processes.adopt("client", int(json.loads(status.stdout)[0]["pid"]))

    def remount(self) -> None:
        """With a cache directory that was not there before."""
        self._unmount()
        self._mount()

    def _unmount(self) -> None:
        self.processes.weigh()
        try:
            _run(BIN / "vosfs", "umount", self.point)
        finally:
            with contextlib.suppress(OSError), open(self.processes.logs / "client.log", "a") as log:
                log.write((self._cache() / "vosfs.log").read_text())
        self.processes.wait("client")
        shutil.rmtree(self._cache(), ignore_errors=True)


class Rclone(Mounted):
    """rclone mount with its full cache, over ``rclone serve webdav``: it acknowledges what only its cache has."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._data = directory / "data"
        self._cache = directory / "cache"
        self._port = 0

    def start(self) -> None:
        for path in (self.point, self._data, self._cache):
            path.mkdir()
        self._port = _free_port()
        server = self._spawn("server", "serve", "webdav", self._data, "--addr", f"127.0.0.1:{self._port}",
                             "--dir-cache-time", "1s")  # fmt: skip
        self._await("server", server, lambda: _listens(self._port), "rclone does not serve")
        self._mount()

    def _spawn(self, kind: str, *words: object) -> subprocess.Popen[bytes]:
        environment = {"RCLONE_CONFIG": "/dev/null", "XDG_CACHE_HOME": str(self._cache / "xdg")}
        return self.processes.spawn(kind, "env", *(f"{k}={v}" for k, v in environment.items()), "rclone", *words)

    def _mount(self) -> None:
        client = self._spawn(
            "client", "mount", ":webdav:", self.point, "--webdav-url", f"http://127.0.0.1:{self._port}",
            "--webdav-vendor", "other", "--vfs-cache-mode", "full", "--cache-dir", self._cache / "c",
            "--vfs-cache-max-size", "20G", "-q", *(["--allow-other", "--default-permissions"] if AM_ROOT else []),
        )  # fmt: skip
        self._await("client", client, lambda: _mounted_under(self.point), "rclone does not mount")
        os.statvfs(self.point)

    def remount(self) -> None:
        """With an empty cache."""
        self._unmount()
        shutil.rmtree(self._cache / "c", ignore_errors=True)
        self._mount()

    def _clean(self) -> bool:
        """Whether everything in the cache is on the server: it goes there 5 s after a close."""
        for path in (self._cache / "c" / "vfsMeta").rglob("*"):
            with contextlib.suppress(OSError, ValueError):
                if path.is_file() and json.loads(path.read_text()).get("Dirty"):
                    return False
        return True

    def _unmount(self) -> None:
        _until(self._clean, RCLONE_DRAIN_S_MAX)
        super()._unmount()


TARGETS: dict[str, Callable[[Path], Target]] = {"local": Local, "sshfs": Sshfs, "rclone": Rclone, "vosfs": Vosfs}
DEFAULT = ["local", "sshfs", "vosfs"]


def _ready(log: Path) -> str:
    """The line with which the daemon says where it is."""
    lines = log.read_text(errors="replace").splitlines(keepends=True)
    return next((line for line in lines if line.startswith("READY ") and line.endswith("\n")), "").strip()


def _last_line(log: Path) -> str:
    return (log.read_text(errors="replace").strip().splitlines() or ["it says nothing"])[-1]


def _detach(point: Path) -> None:
    """What is left of a mount that could not be taken down in order."""
    if _mounted_under(point):
        with contextlib.suppress(BenchError):
            _run(*UNMOUNT_LAZILY, point)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
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


# -- measuring -----------------------------------------------------------------------------------------------------


def _run_workload(target: Target, directory: Path, args: argparse.Namespace) -> Result:
    """The workload in a process of its own; when it asks for a remount, it gets one."""
    script = Path(workload.__file__)
    door = directory / "door"
    command = [
        sys.executable, script, target.point, "--steps", ",".join(args.steps), "--cap", args.cap, "--big", args.big,
        "--state", target.processes.state, "--material", directory.parent / "material",
    ]  # fmt: skip
    if target.remounts:
        command += ["--cold-hook", shlex.join([sys.executable, str(Path(__file__).resolve()), "--remount", str(door)])]
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(str(door))
        listener.listen()
        output = stack.enter_context(open(directory / "workload.json", "w+"))
        log = stack.enter_context(open(target.processes.logs / "workload.log", "w"))
        process = subprocess.Popen(
            [str(word) for word in command], stdout=output, stderr=log, start_new_session=True, cwd="/"
        )
        stack.callback(_end_group, process)
        deadline = time.monotonic() + WORKLOAD_S_MAX
        while process.poll() is None:
            if time.monotonic() > deadline:
                raise BenchError(f"workload: no end after {WORKLOAD_S_MAX} s")
            if select.select([listener], [], [], 0.2)[0]:
                _answer(listener, target)
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode or not lines:
        raise BenchError(f"workload, exit status {process.returncode}: {_last_line(Path(log.name))}")
    return json.loads(lines[-1])


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the workload and what it runs, if it did not end by itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_S_MAX / 6)


def _answer(listener: socket.socket, target: Target) -> None:
    """Remount for the workload's cold hook, and tell it how that went."""
    connection, _ = listener.accept()
    with connection:
        try:
            target.remount()
            said = "ok"
        except (BenchError, OSError, subprocess.SubprocessError) as exc:
            said = f"remount: {exc}"
            print(f"  {said}", flush=True)
        with contextlib.suppress(OSError):
            connection.sendall(said.encode())


def ask_remount(door: str) -> None:
    """The cold hook: have the bench that runs us remount, and wait for it."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(door)
        said = connection.recv(4096).decode()
    if said != "ok":
        sys.exit(said or "the bench went away")


def measure(name: str, directory: Path, args: argparse.Namespace) -> Result:
    """One round on one target: all figures, or as many as there are and an ``error``."""
    begin = time.monotonic()
    result: Result = {"label": name}
    directory.mkdir()
    target = TARGETS[name](directory)
    problems = []
    try:
        target.start()
        result |= _run_workload(target, directory, args)
        problems += [f"{kind} process ended" for kind in target.processes.dead()]
    except (BenchError, OSError, ValueError, subprocess.SubprocessError) as exc:
        problems.append(str(exc))
    finally:
        try:
            target.stop()
        except BenchError as exc:
            problems.append(str(exc))
    if problems:
        result["error"] = "; ".join(problems)
    mib = {kind: round(peak / workload.MIB, 1) for kind, peak in target.processes.peak_bytes.items()}
    return result | {"label": name, "rss_peak_MiB": mib, "wall_s": time.monotonic() - begin}


def errors_of(result: Result) -> dict[str, str]:
    """What failed in a round, by name."""
    return {name: str(value) for name, value in result.items() if name == "error" or name.endswith("_error")}


def cut_short(result: Result, big_mib: int) -> list[str]:
    """What the cap ended before it was complete: its figure is still a rate."""
    whole = {"bigdir_n": workload.BIG_DIRECTORY, "find_n": workload.TREE_FILES, "seq_write_MiB": big_mib}
    return [
        f"{name}={value}"
        for name, value in result.items()
        if (name in whole and value != whole[name]) or (name not in whole and name.endswith(("_per_s_n", "_truncated")))
    ]


def _keep_logs(result: Result, directory: Path, prefix: Path) -> None:
    """Save the logs of a round that went wrong or has warnings of ours."""
    text = ""
    for log in sorted((directory / "logs").glob("*.log")):
        content = log.read_text(errors="replace")
        if errors_of(result) or any(word in content for word in (" WARNING ", " ERROR ", "Traceback")):
            text += f"==> {log.name}\n{content}\n"
    if text:
        prefix.with_name(prefix.name + ".log").write_text(text)


def run_rounds(args: argparse.Namespace, work: Path, prefix: Path) -> list[Result]:
    """All rounds, each saved as soon as it is done."""
    results = []
    for number in range(1, args.rounds + 1):
        for name in args.targets:
            directory = work / f"{name}-{number}"
            result = measure(name, directory, args) | {"round": number}
            saved = prefix.with_name(f"{prefix.name}-{name}-{number}")
            saved.with_name(saved.name + ".json").write_text(json.dumps(result, indent=1) + "\n")
            _keep_logs(result, directory, saved)
            results.append(result)
            errors = errors_of(result)
            print(
                f"round {number}/{args.rounds}  {name:6}  {result['wall_s']:4.0f} s  load {os.getloadavg()[0]:.1f}  "
                + (f"{len(errors)} ERRORS" if errors else "no errors"),
                flush=True,
            )
            for step, text in errors.items():
                print(f"  {step}: {text}", flush=True)
            _remove(directory)
    return results


def _remove(directory: Path) -> None:
    """Remove a directory of ours, but never through a mount that is still there."""
    left = _mounted_under(directory)
    if left:
        print(f"still mounted, so {directory} stays: {', '.join(left)}", file=sys.stderr)
        return
    shutil.rmtree(directory, ignore_errors=True)


# -- the table -----------------------------------------------------------------------------------------------------


def lower_is_better(row: str) -> bool:
    """Seconds, not a rate."""
    return row.endswith("_s") and not row.endswith("per_s")


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 3
    return f"{value:.{digits}f}"


def values_of(results: Sequence[Result], target: str, row: str) -> list[float]:
    """A figure in all rounds that have it."""
    found = [result.get(row) for result in results if result["label"] == target]
    return [float(value) for value in found if isinstance(value, (int, float))]


def ratio_of(results: Sequence[Result], row: str, peers: Sequence[str]) -> float | None:
    """How many times the best peer's speed vosfs has, by the medians."""
    ours = values_of(results, "vosfs", row)
    medians = [statistics.median(theirs) for peer in peers if (theirs := values_of(results, peer, row))]
    if not ours or not medians:
        return None
    mine, other = statistics.median(ours), min(medians) if lower_is_better(row) else max(medians)
    above, below = (other, mine) if lower_is_better(row) else (mine, other)
    return above / below if below else None


def peers_of(targets: Sequence[str]) -> list[str]:
    """What vosfs is compared with."""
    return [target for target in targets if target not in ("local", "vosfs")]


def table_of(results: Sequence[Result], targets: Sequence[str]) -> list[list[str]]:
    """Rows of texts, the first a heading; the last column is a mark or empty."""
    peers = peers_of(targets)
    table = [["row", *targets, f"vosfs/{peers[0] if len(peers) == 1 else 'best'}", ""]]
    for row in ROWS:
        cells = []
        for target in targets:
            values = values_of(results, target, row)
            cell = _number(statistics.median(values)) if values else "-"
            if len(values) > 1:
                cell += f" ({_number(min(values))}–{_number(max(values))})"
            cells.append(cell)
        if all(cell == "-" for cell in cells):
            continue
        ratio = ratio_of(results, row, peers)
        mark = f"<-- slower than {SLOW} of it" if ratio is not None and ratio < SLOW else ""
        table.append([row, *cells, "-" if ratio is None else f"{ratio:.2f}", mark])
    return table


def costs_of(results: Sequence[Result], targets: Sequence[str], steps: Sequence[str]) -> list[list[str]]:
    """CPU seconds of client + server in each step, and peak memory; medians."""

    def median(target: str, pick: Callable[[Result], float]) -> str:
        values = []
        for result in results:
            if result["label"] == target:
                with contextlib.suppress(KeyError):
                    values.append(pick(result))
        return _number(statistics.median(values)) if values else "-"

    def cpu(step: str, kind: str) -> Callable[[Result], float]:
        return lambda result: result["cpu_s"][step][kind]  # type: ignore[index]

    def rss(kind: str) -> Callable[[Result], float]:
        return lambda result: result["rss_peak_MiB"][kind]  # type: ignore[index]

    mounted = [target for target in targets if TARGETS[target] is not Local]
    table = [["CPU s, client + server", *mounted]]
    for step in steps:
        table.append([step, *(f"{median(t, cpu(step, 'client'))} + {median(t, cpu(step, 'server'))}" for t in mounted)])
    table.append(["peak RSS, MiB", *(f"{median(t, rss('client'))} + {median(t, rss('server'))}" for t in mounted)])
    return table


def aligned(table: Sequence[Sequence[str]]) -> str:
    """For a terminal: names to the left, figures to the right."""
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = []
    for first, *rest in table:
        cells = [
            f"{cell:>{width}}" if cell[:3] != "<--" else cell for cell, width in zip(rest, widths[1:], strict=True)
        ]
        lines.append("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())
    return "\n".join(lines)


def list_table(table: Sequence[Sequence[str]]) -> str:
    """The same in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in table:
        for number, cell in enumerate(row):
            lines.append(f"   {'* -' if number == 0 else '  -'} {cell}".rstrip())
    return "\n".join(lines)


def _first(path: str, key: str) -> str:
    with contextlib.suppress(OSError), open(path) as lines:
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
    return ""


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    cpu = _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    memory = _first("/proc/meminfo", "MemTotal").split()
    git = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    return {
        "cpu": cpu, "cores": os.cpu_count(), "memory_GiB": round(int(memory[0]) / 2**20) if memory else None,
        "kernel": platform.release(), "python": platform.python_version(), "commit": commit,
        "load_before": round(os.getloadavg()[0], 2), "date": datetime.date.today().isoformat(),
    }  # fmt: skip


def _rst(summary: dict[str, object], table: list[list[str]], costs: list[list[str]], args: argparse.Namespace) -> str:
    about: dict[str, object] = summary["machine"]  # type: ignore[assignment]
    plain = [[row[0], *row[1:-2], row[-2] + (" (slow)" if row[-1] else "")] for row in table]
    rounds = "one round" if args.rounds == 1 else f"medians of {args.rounds} rounds (least–most)"
    return (
        f"{about['cpu']}, {about['cores']} cores, {about['memory_GiB']} GiB, Linux {about['kernel']}, "
        f"Python {about['python']}; {about['date']}, load {about['load_before']} before; "
        f"{rounds}, large file {args.big} MiB.\n\n"
        f"{list_table(plain)}\n\n{list_table(costs)}\n"
    )


def report(results: list[Result], about: dict[str, object], args: argparse.Namespace, prefix: Path) -> None:
    """Print the tables, what failed and what was cut short; save the summary."""
    table = table_of(results, args.targets)
    costs = costs_of(results, args.targets, args.steps)
    rows: dict[str, dict[str, float | None]] = {}
    for row in ROWS:
        rows[row] = {t: statistics.median(found) for t in args.targets if (found := values_of(results, t, row))}
        rows[row]["ratio"] = ratio_of(results, row, peers_of(args.targets))
    summary = {
        "machine": about, "rounds": args.rounds, "big_MiB": args.big, "cap_s": args.cap, "steps": args.steps,
        "rows": rows, "errors": {f"{r['label']}-{r['round']}": e for r in results if (e := errors_of(r))},
    }  # fmt: skip
    path = prefix.with_name(prefix.name + "-summary.json")
    path.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{aligned(table)}\n\n{aligned(costs)}\n")
    for result in results:
        name = f"{result['label']}, round {result['round']}"
        for step, text in errors_of(result).items():
            print(f"ERROR  {name}: {step}: {text}")
        if short := cut_short(result, args.big):
            print(f"cut short by the cap  {name}: {', '.join(short)}")
    if not AM_ROOT:
        print(f"Not root, so caches were not dropped; left out: {', '.join(workload.COLD_ROWS)}.")
    if not summary["errors"]:
        print("No step failed.")
    if args.rst:
        args.rst.write_text(_rst(summary, table, costs, args))
    print(
        f"Names ending in _s but not in per_s are seconds; a ratio above 1 means that vosfs is faster.\nSaved: {path}"
    )


# -- command line --------------------------------------------------------------------------------------------------


def _chosen_targets(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in TARGETS]:
        raise argparse.ArgumentTypeError(f"no target {', '.join(unknown)}; there are {', '.join(TARGETS)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Compare the mount with sshfs and the local disk.")
    parser.add_argument("--rounds", type=int, default=3, help="over all targets (default 3)")
    parser.add_argument("--targets", type=_chosen_targets, default=DEFAULT, help=f"of {','.join(TARGETS)}")
    parser.add_argument("--steps", type=workload.chosen_steps, default=list(workload.STEPS), help="see workload.py")
    parser.add_argument("--big", type=int, default=512, metavar="MIB", help="of the large file (default 512)")
    parser.add_argument("--cap", type=float, default=8, metavar="S", help="for a loop of small operations (default 8)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where to make the work directory")
    parser.add_argument("--rst", type=Path, metavar="FILE", help="write the tables there in reStructuredText")
    parser.add_argument("--remount", metavar="SOCKET", help=argparse.SUPPRESS)
    return parser


def _check_programs(targets: Sequence[str]) -> None:
    needed = {"git", "tar", "find", "grep", "ls", "rm"}
    needed |= {"sshfs", "ssh-keygen"} if "sshfs" in targets else set()
    needed |= {"rclone"} if "rclone" in targets else set()
    if missing := sorted(program for program in needed if not shutil.which(program)):
        sys.exit(f"bench: missing: {', '.join(missing)}; as root, make bench and make bench-peers install them")


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> None:
    """Entry point."""
    args = _parser().parse_args()
    if args.remount:
        return ask_remount(args.remount)
    _check_programs(args.targets)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _terminated)
    RESULTS.mkdir(exist_ok=True)
    prefix = RESULTS / time.strftime("%Y%m%dT%H%M%S")
    about = machine()
    work = Path(tempfile.mkdtemp(prefix="vosfs-bench-", dir=args.dir)).resolve()
    try:
        results = run_rounds(args, work, prefix)
    except KeyboardInterrupt:
        sys.exit("bench: interrupted")
    finally:
        with _uninterrupted():
            _remove(work)
    report(results, about, args, prefix)
    if any(errors_of(result) for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
