#!/usr/bin/env python3
"""File system workload: runs on any directory and prints one JSON object.

Each step is capped in time, so that a slow file system yields a rate and not a hang.  A step that fails leaves
``STEP_error`` and the figures it had so far, and the run goes on.  Figures are better when higher, except names that
end in ``_s`` but not in ``per_s``: those are seconds.  "cold" is after dropping the kernel's caches; "rcold" is also
after ``--cold-hook``, a command that should remount the file system with its local cache wiped.

Dropping caches takes root.  Without it everything runs, but figures that need it are left out and named in ``skipped``.
Only the standard library, git, tar, find, grep, ls and rm are needed; the bench runs this on several file systems.
"""

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType

MIB = 1 << 20
STEP_S_MAX = 150
"""A step that takes longer is stuck.  Programs have no time limits of their own: subprocess then polls for their end, and a
``ls`` of 20 ms would take 31."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SMALL_FILES, BIG_DIRECTORY, TREE_FILES = 1000, 5000, 1500

COLD_ROWS = (
    "cold_seq_read_MBps", "par4_read_MBps", "rand4k_1t_iops", "rand4k_16t_iops", "rand1m_1t_MBps", "remount_s",
    "rcold_first_byte_s", "rcold_seq_read_MBps", "rcold_par4_read_MBps", "rcold_rand4k_1t_iops",
    "rcold_rand4k_16t_iops", "rcold_rand1m_1t_MBps", "cold_read_cpu_per_GiB_s", "stat_cold_per_s",
    "read_4k_files_cold_per_s", "rcold_read_4k_files_per_s", "readdir5k_cold_s", "ls_l5k_cold_s", "rcold_ls_l5k_s",
    "find_cold_s", "grep_r_cold_s", "git_status_cold_s", "rcold_ls_lR_1500_s", "rcold_grep_r_300_s",
)  # fmt: skip
"""Measured after dropping caches, so only by root."""

Figures = dict[str, object]
clock = time.perf_counter


# -- processes -------------------------------------------------------------------------------------------------------


def _process_table() -> dict[int, tuple[int, float]]:
    """(parent, CPU seconds) of each process."""
    table = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                table[int(entry)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    return table


def with_descendants(pids: Iterable[int]) -> set[int]:
    """Those processes and what they started, as far as they live."""
    table = _process_table()
    found: set[int] = set()
    pending = [pid for pid in pids if pid in table]
    while pending:
        pid = pending.pop()
        if pid not in found:
            found.add(pid)
            pending += [child for child, (parent, _) in table.items() if parent == pid]
    return found


class CpuMeter:
    """CPU seconds of client, server, this process and the rest of the machine, from one point to another.

    ``state`` is a JSON file, ``{"client": [pid, ...], "server": [pid, ...]}``; it is read anew each time because a
    remount changes it.  What a process used that ended in between is not seen.
    """

    def __init__(self, state: Path | None) -> None:
        self._state = state
        self._then = self._sample()

    def _sample(self) -> dict[str, dict[int, float]]:
        table = _process_table()
        pids: dict[str, list[int]] = {}
        if self._state:
            with contextlib.suppress(OSError, ValueError):
                pids = json.loads(self._state.read_text())
        sample = {
            kind: {pid: table[pid][1] for pid in with_descendants(pids.get(kind, [])) if pid in table}
            for kind in ("client", "server")
        }
        with open("/proc/stat") as lines:
            ticks = [int(field) for field in lines.readline().split()[1:]]
        own = os.times()
        sample["self"] = {0: own.user + own.system + own.children_user + own.children_system}
        sample["busy"] = {0: (sum(ticks[:3]) + sum(ticks[5:8])) / TICKS_PER_S}
        return sample

    @property
    def watches(self) -> bool:
        """Whether there is a client or a server."""
        return bool(self._then["client"] or self._then["server"])

    def seconds(self) -> dict[str, float]:
        """What was used since this was made."""
        now = self._sample()
        used = {
            kind: sum(after - self._then[kind].get(pid, 0) for pid, after in values.items())
            for kind, values in now.items()
        }
        used["other"] = 2 * used["busy"] - sum(used.values())
        del used["busy"]
        return {kind: round(value, 2) for kind, value in used.items()}


def _cpu_pressure_us() -> int:
    """Microseconds that something waited for a processor, since boot."""
    try:
        with open("/proc/pressure/cpu") as lines:
            return int(lines.readline().split("total=")[1])
    except (OSError, ValueError, IndexError):
        return 0


def in_parallel(count: int, work: Callable[[int], float]) -> tuple[float, float]:
    """``work(i)`` in that many processes at once: (sum of the results, seconds)."""
    running: dict[int, int] = {}
    start = clock()
    try:
        for index in range(count):
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _report(work, index, writing)
            os.close(writing)
            running[pid] = reading
        total = 0.0
        for pid, reading in list(running.items()):
            with open(reading, closefd=False) as answer:
                text = answer.read()
            os.waitpid(pid, 0)
            os.close(running.pop(pid))
            if not text.startswith("ok "):
                raise OSError(f"in process {pid}: {text or 'it died'}")
            total += float(text.removeprefix("ok "))
        return total, clock() - start
    finally:
        for pid, reading in running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reading)


def _report(work: Callable[[int], float], index: int, writing: int) -> None:
    """The forked half of in_parallel: do it, say how it went, end."""
    signal.alarm(STEP_S_MAX)
    try:
        os.write(writing, f"ok {work(index)!r}".encode())
    except BaseException as exc:
        os.write(writing, repr(exc).encode())
    finally:
        os._exit(0)


# -- data ------------------------------------------------------------------------------------------------------------

_NOISE = random.Random(1).randbytes(2 * MIB)


def block(number: int) -> bytes:
    """A MiB that neither compresses nor repeats."""
    start = (number * 4099) % MIB
    return number.to_bytes(8, "big") + _NOISE[start + 8 : start + MIB]


@contextlib.contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor, closed at the end; an error of close is an error of the step."""
    fd = os.open(path, flags, 0o644)
    try:
        yield fd
    finally:
        os.close(fd)


def read_all(path: Path, cap_s: float) -> tuple[float, float]:
    """Read a file to its end, or for that long: (MiB, seconds)."""
    buffer = bytearray(MIB)
    count = 0
    start = clock()
    with opened(path, os.O_RDONLY) as fd:
        while got := os.readv(fd, [buffer]):
            count += got
            if clock() - start > cap_s:
                break
    return count / MIB, clock() - start


def read_rate(path: Path, cap_s: float) -> float:
    """MiB per second of reading a file."""
    mib, seconds = read_all(path, cap_s)
    return mib / seconds


def make_tar(directory: Path) -> Path:
    """An archive of 50 directories with 30 text files each, about 3 KB in the median; made once."""
    path = directory / "tree.tar"
    if path.exists():
        return path
    sizes = random.Random(5)
    unfinished = directory / f"tree.tar.{os.getpid()}"
    with tarfile.open(unfinished, "w") as archive:
        for number in range(50):
            info = tarfile.TarInfo(f"tree/dir{number:02}")
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
            for index in range(TREE_FILES // 50):
                info = tarfile.TarInfo(f"tree/dir{number:02}/file{index:02}.txt")
                info.size = min(int(sizes.lognormvariate(8, 1.2)), 200000)
                info.mode, info.mtime = 0o644, 1700000000 + index
                line = f"{number} {index} lorem ipsum dolor\n".encode()
                archive.addfile(info, io.BytesIO((line * (info.size // len(line) + 1))[: info.size]))
    unfinished.rename(path)
    return path


def make_repository(directory: Path) -> Path:
    """A git repository of 10 commits and 300 files; made once."""
    path, done = directory / "repo", directory / "repo.done"
    if done.exists():
        return path
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    git = ["git", "-C", str(path), "-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    git += ["-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
    subprocess.run([*git, "init", "-q"], check=True)
    numbers = random.Random(6)
    for commit in range(10):
        for index in range(30):
            file = path / f"src{index % 10:02}" / f"f{index:03}_{commit}.py"
            file.parent.mkdir(exist_ok=True)
            lines = numbers.randrange(20, 200)
            file.write_text("\n".join(f"x{line} = {int(numbers.random() * 1e9)}" for line in range(lines)))
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "-q", "-m", f"c{commit}"], check=True)
    done.touch()
    return path


# -- the workload ----------------------------------------------------------------------------------------------------


class Workload:
    """The steps.  Each adds its figures to ``figures`` as it gets them.

    Attributes: ``cap_s``, seconds for a loop of small operations; ``big_mib``, size of the large file;
    ``material``, a directory elsewhere for the archive and the repository; ``cold_hook``, see above; ``state``, see
    CpuMeter.
    """

    def __init__(
        self, directory: Path, material: Path, cap_s: float, big_mib: int, cold_hook: str, state: Path | None = None
    ) -> None:
        self.directory = directory.absolute()
        self.material = material
        self.cap_s = cap_s
        self.big_mib = big_mib
        self.cold_hook = cold_hook
        self.state = state
        self.can_drop = os.getuid() == 0
        self.figures: Figures = {}
        self.big = self.directory / "big"
        self.parts = [self.directory / f"p{index}" for index in range(4)]
        material.mkdir(parents=True, exist_ok=True)

    def drop_caches(self) -> None:
        """Write back this file system's dirty pages (not sync(2)), then drop the kernel's clean caches."""
        subprocess.run(["sync", "-f", self.directory], stderr=subprocess.DEVNULL, timeout=120)
        if self.can_drop:
            Path("/proc/sys/vm/drop_caches").write_text("3\n")

    def remount(self) -> None:
        """Run the cold hook."""
        subprocess.run(self.cold_hook, shell=True, check=True, stdout=sys.stderr)

    def rate(self, name: str, operation: Callable[[int], object], count: int, cap_s: float | None = None) -> int:
        """Do it ``count`` times or until the cap, and note how often per second; how often it was done."""
        start = clock()
        done = self.repeat(operation, count, cap_s)
        self.figures[name] = done / (clock() - start)
        if done < count:
            self.figures[name + "_n"] = done
        return done

    def repeat(self, operation: Callable[[int], object], count: int, cap_s: float | None = None) -> int:
        """The same without a note."""
        start = clock()
        for index in range(count):
            operation(index)
            if clock() - start > (cap_s or self.cap_s):
                return index + 1
        return count

    @contextlib.contextmanager
    def seconds(self, name: str, scale: float = 1) -> Iterator[None]:
        """Note how long the body takes, unless it fails."""
        start = clock()
        yield
        self.figures[name] = (clock() - start) * scale

    def note_cpu(self, name: str, meter: CpuMeter, per: float, kinds: Sequence[str] = ("client", "server")) -> None:
        """Note the CPU seconds of those processes together, for each ``per``; nothing where there are none."""
        used = meter.seconds()
        if meter.watches:
            self.figures[name] = sum(used[kind] for kind in kinds) / per

    # -- large files --

    def seq_write(self) -> None:
        """One large file, then fsync."""
        meter = CpuMeter(self.state)
        start = clock()
        written = 0
        with opened(self.big, os.O_CREAT | os.O_TRUNC | os.O_WRONLY) as fd:
            for number in range(self.big_mib):
                os.write(fd, block(number))
                written += 1
                if clock() - start > 3 * self.cap_s:
                    break
            unsynced_s = clock() - start
            os.fsync(fd)
        self.figures["seq_write_MBps"] = written / (clock() - start)
        self.figures["seq_write_nosync_MBps"] = written / unsynced_s
        self.figures["seq_write_MiB"] = written
        self.note_cpu("write_cpu_per_GiB_s", meter, written / 1024)

    def par_write(self) -> None:
        """Four files at once, each an eighth of the large one; also the data of par_read."""

        def write(index: int) -> float:
            start = clock()
            written = 0
            with opened(self.parts[index], os.O_CREAT | os.O_TRUNC | os.O_WRONLY) as fd:
                for number in range(self.big_mib // 8):
                    os.write(fd, block(1000 * (index + 1) + number))
                    written += 1
                    if clock() - start > 2 * self.cap_s:
                        break
                os.fsync(fd)
            return written

        mib, seconds = in_parallel(4, write)
        self.figures["par4_write_MBps"] = mib / seconds

    def seq_read(self) -> None:
        """The large file, cold and again."""
        self.drop_caches()
        self.figures["cold_seq_read_MBps"] = read_rate(self.big, 2 * self.cap_s)
        self.figures["warm_seq_read_MBps"] = read_rate(self.big, self.cap_s)

    def _read_parts(self, name: str) -> None:
        mib, seconds = in_parallel(4, lambda index: read_all(self.parts[index], 2 * self.cap_s)[0])
        self.figures[name] = mib / seconds

    def par_read(self) -> None:
        """The four files at once, cold."""
        self.drop_caches()
        self._read_parts("par4_read_MBps")

    def _random_reads(self, name: str, size_bytes: int, processes: int, warm: bool = False, cap_s: float = 3) -> None:
        share = self.big.stat().st_size // size_bytes // processes
        if warm:
            read_all(self.big, 2 * self.cap_s)
        else:
            self.drop_caches()

        def read(index: int) -> float:
            order = random.Random(index).sample(range(index * share, (index + 1) * share), min(share, 60000))
            with opened(self.big, os.O_RDONLY) as fd:
                start = clock()
                done = 0
                for number in order:
                    if len(os.pread(fd, size_bytes, number * size_bytes)) != size_bytes:
                        raise OSError("short read")
                    done += 1
                    if clock() - start > cap_s:
                        break
                return done / (clock() - start)

        self.figures[name] = in_parallel(processes, read)[0]

    def rand(self) -> None:
        """Random reads in the large file, each place at most once: from the local cache, then from the page cache."""
        self._random_reads("rand4k_1t_iops", 4096, 1)
        self._random_reads("rand4k_16t_iops", 4096, 16)
        self._random_reads("rand1m_1t_MBps", MIB, 1)
        self._random_reads("rand4k_warm_1t_iops", 4096, 1, warm=True)
        self._random_reads("rand4k_warm_16t_iops", 4096, 16, warm=True)

    def rcold(self) -> None:
        """Reading right after a remount without the local cache."""
        if not self.cold_hook:
            return
        with self.seconds("remount_s"):
            self.remount()
        self.drop_caches()
        with self.seconds("rcold_first_byte_s"):
            fd = os.open(self.big, os.O_RDONLY)
            os.read(fd, 1)
        os.close(fd)
        meter = CpuMeter(self.state)
        mib, seconds = read_all(self.big, 2 * self.cap_s)
        self.figures["rcold_seq_read_MBps"] = mib / seconds
        self.note_cpu("cold_read_cpu_per_GiB_s", meter, mib / 1024)
        self._reread()
        self.drop_caches()
        self._read_parts("rcold_par4_read_MBps")

    def _reread(self) -> None:
        """The large file for a second, again and again: what that costs client and server."""
        meter, start, mib = CpuMeter(self.state), clock(), 0.0
        while clock() - start < 1:
            mib += read_all(self.big, 1)[0]
        self.note_cpu("warm_reread_server_cpu_per_GiB_s", meter, mib / 1024, ["server"])

    def rcold_rand(self) -> None:
        """Random reads, each right after a remount without the local cache."""
        if not self.cold_hook:
            return
        for name, size_bytes, processes in (
            ("rcold_rand4k_1t_iops", 4096, 1), ("rcold_rand4k_16t_iops", 4096, 16), ("rcold_rand1m_1t_MBps", MIB, 1),
        ):  # fmt: skip
            self.remount()
            self._random_reads(name, size_bytes, processes)

    # -- many small files --

    def small(self) -> None:
        """What is done to a thousand files of 4 KiB."""
        directory = self.directory / "s"
        directory.mkdir(exist_ok=True)
        data = block(7)[:4096]
        files = [directory / f"f{index:05}" for index in range(SMALL_FILES)]
        renamed = [directory / f"g{index:05}" for index in range(SMALL_FILES)]

        def create(path: Path, sync: bool = False) -> None:
            with opened(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
                os.write(fd, data)
                if sync:
                    os.fsync(fd)

        def read(index: int) -> None:
            with opened(files[index], os.O_RDONLY) as fd:
                os.read(fd, 8192)

        count = self.rate("create_4k_per_s", lambda index: create(files[index]), SMALL_FILES)
        self.drop_caches()
        self.rate("stat_cold_per_s", lambda index: os.stat(files[index]), count)
        start = clock()
        done = 0
        while clock() - start < 1.0:
            for path in files[:count]:
                os.stat(path)
            done += count
        self.figures["stat_warm_per_s"] = done / (clock() - start)
        self.drop_caches()
        self.rate("read_4k_files_cold_per_s", read, count)
        self.rate("read_4k_files_warm_per_s", read, count)
        self.rate("chmod_per_s", lambda index: os.chmod(files[index], 0o600), count)
        moved = self.rate("rename_per_s", lambda index: os.rename(files[index], renamed[index]), count)
        self.rate("unlink_per_s", lambda index: os.unlink(renamed[index]), moved)
        self.rate("mkdir_per_s", lambda index: os.mkdir(directory / f"d{index:05}"), 300)
        self.rate("create_fsync_per_s", lambda index: create(directory / f"y{index:05}", sync=True), 200)

    def bigdir(self) -> None:
        """A directory of five thousand empty files; times are scaled to that when the cap ended creation."""
        directory = self.directory / "D"
        directory.mkdir(exist_ok=True)
        entries = [directory / f"entry_{index:06}" for index in range(BIG_DIRECTORY)]

        def create(index: int) -> None:
            os.close(os.open(entries[index], os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

        count = self.rate("create_empty_per_s", create, BIG_DIRECTORY, 2 * self.cap_s)
        self.figures["bigdir_n"] = count
        scale = BIG_DIRECTORY / count
        self.drop_caches()
        with self.seconds("readdir5k_cold_s", scale):
            listed = len(os.listdir(directory))
        if listed != count:
            self.figures["bigdir_error"] = f"listed {listed} of {count}"
        self.drop_caches()
        for name in ("ls_l5k_cold_s", "ls_l5k_warm_s"):
            with self.seconds(name, scale):
                subprocess.run(["ls", "-l", directory], stdout=subprocess.DEVNULL, check=True)
        self.rate("unlink_empty_per_s", lambda index: os.unlink(entries[index]), count)

    def rcold_small(self) -> None:
        """A thousand files and a listing of five thousand, right after a remount without the local cache.

        What is made first takes as long as it takes in ``small`` and ``bigdir``, with the same cap and scale.
        """
        if not self.cold_hook:
            return
        small, large = self.directory / "rs", self.directory / "rD"
        small.mkdir()
        large.mkdir()
        files, data = [small / f"f{index:05}" for index in range(SMALL_FILES)], block(8)[:4096]
        count = self.repeat(lambda index: files[index].write_bytes(data), SMALL_FILES)
        listed = self.repeat(lambda index: (large / f"entry_{index:06}").touch(), BIG_DIRECTORY, 2 * self.cap_s)
        self.remount()
        self.drop_caches()
        self.rate("rcold_read_4k_files_per_s", lambda index: files[index].read_bytes(), count)
        with self.seconds("rcold_ls_l5k_s", BIG_DIRECTORY / listed):
            subprocess.run(["ls", "-l", large], stdout=subprocess.DEVNULL, check=True)

    # -- programs --

    def _unpack(self, where: Path) -> bool:
        """Unpack the tree there; whether it is there then, in whole or in part."""
        limit_s = 6 * self.cap_s
        start = clock()
        try:
            subprocess.run(
                ["tar", "xf", make_tar(self.material), "-C", where, "--no-same-owner"],
                check=True, timeout=limit_s, stderr=subprocess.PIPE,
            )  # fmt: skip
            self.figures["tar_x_1500_s"] = clock() - start
        except subprocess.TimeoutExpired:
            done = sum(len(files) for _, _, files in os.walk(where / "tree"))
            self.figures["tar_x_1500_s"] = (clock() - start) * TREE_FILES / max(done, 1)
            self.figures["tar_x_truncated"] = done
        except subprocess.CalledProcessError as exc:
            self.figures["tar_x_error"] = _text(exc.stderr)
            return False
        return True

    def tree(self) -> None:
        """Unpack, find, grep and remove a tree of 1500 files; a time is scaled to that when tar was cut short."""
        tree = self.directory / "tree"
        if not self._unpack(self.directory):
            return
        self.drop_caches()
        for name in ("find_cold_s", "find_warm_s"):
            with self.seconds(name):
                find = ["find", str(tree), "-type", "f", "-size", "+0"]
                self.figures["find_n"] = subprocess.run(find, check=True, stdout=subprocess.PIPE).stdout.count(b"\n")
        self.drop_caches()
        with self.seconds("grep_r_cold_s"):
            grep = subprocess.run(["grep", "-r", "nothing-there", tree], capture_output=True)
        if grep.returncode != 1:
            self.figures["grep_error"] = f"exit status {grep.returncode}: {_text(grep.stderr)}"
        with self.seconds("rm_rf_s"):
            subprocess.run(["rm", "-rf", tree], check=True)

    def git(self) -> None:
        """Clone a repository into the directory, and git status there."""
        clone = self.directory / "clone"
        environment = {
            **os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
        }  # fmt: skip

        def git(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
            return subprocess.run(["git", *arguments], capture_output=True, env=environment)

        source = make_repository(self.material)
        start = clock()
        done = git("clone", "-q", f"file://{source}", clone)
        if done.returncode:
            self.figures["git_clone_error"] = _text(done.stderr)
            return
        self.figures["git_clone_s"] = clock() - start
        self.drop_caches()
        for name in ("git_status_cold_s", "git_status_warm_s"):
            with self.seconds(name):
                done = git("-C", clone, "status", "--porcelain")
            if done.returncode or done.stdout:
                self.figures["git_status_error"] = _text(done.stderr + done.stdout)

    def sqlite(self) -> None:
        """Transactions of one row for three seconds, with a rollback journal and full syncing."""
        with contextlib.closing(sqlite3.connect(self.directory / "t.db", timeout=5)) as database:
            database.execute("pragma journal_mode=delete")
            database.execute("pragma synchronous=full")
            database.execute("create table t(a integer primary key, b text)")
            database.commit()

            def insert(_: int) -> None:
                database.execute("insert into t(b) values(?)", ("x" * 100,))
                database.commit()

            self.rate("sqlite_tx_per_s", insert, 100000, 3)
            self.figures.pop("sqlite_tx_per_s_n", None)

    def append(self) -> None:
        """Lines of 100 bytes, to an open file and with open and close for each."""
        line = b"y" * 99 + b"\n"
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
        with opened(self.directory / "log", flags) as fd:
            self.rate("append100_per_s", lambda _: os.write(fd, line), 1000)
        path = self.directory / "log2"

        def append(_: int) -> None:
            with opened(path, flags) as fd:
                os.write(fd, line)

        expected = 100 * self.rate("append_open_close_per_s", append, 200)
        if path.stat().st_size != expected:
            self.figures["append_error"] = f"size {path.stat().st_size}, expected {expected}"

    # -- far away: what the bench runs when the server is behind a relay that delays; the first of them without delay --

    def far_prepare(self) -> None:
        """The large file and the tree that the other steps look at."""
        self.seq_write()
        self._unpack(self.directory)

    def far_read(self) -> None:
        """The large file, cold and again."""
        self.remount()
        self.drop_caches()
        self.figures["rcold_seq_read_MBps"] = read_rate(self.big, 6 * self.cap_s)
        self.figures["warm_seq_read_MBps"] = read_rate(self.big, self.cap_s)

    def far_list(self) -> None:
        """``ls -lR`` of the tree, cold and again, and the attributes of its files."""
        tree = self.directory / "tree"
        self.remount()
        self.drop_caches()
        for name in ("rcold_ls_lR_1500_s", "ls_lR_1500_warm_s"):
            with self.seconds(name):
                listed = subprocess.run(["ls", "-lR", tree], stdout=subprocess.PIPE, check=True).stdout
        if listed.count(b".txt\n") != TREE_FILES:
            self.figures["far_list_error"] = f"listed {listed.count(b'.txt')} files of {TREE_FILES}"
        files = list(tree.rglob("*.txt"))
        start, done = clock(), 0
        while clock() - start < 1.0:
            for path in files:
                os.stat(path)
            done += len(files)
        self.figures["stat_warm_per_s"] = done / (clock() - start)

    def far_grep(self) -> None:
        """Three hundred small files, read by a program that goes through their directories."""
        some = [self.directory / "tree" / f"dir{number:02}" for number in range(10)]
        self.remount()
        self.drop_caches()
        with self.seconds("rcold_grep_r_300_s"):
            grep = subprocess.run(["grep", "-r", "nothing-there", *some], capture_output=True)
        if grep.returncode != 1:
            self.figures["far_grep_error"] = f"exit status {grep.returncode}: {_text(grep.stderr)}"

    def far_unpack(self) -> None:
        """Unpack the tree once more, and wait until the last of it is safe."""
        where = self.directory / "again"
        where.mkdir()
        start = clock()
        self._unpack(where)
        with opened(where / "last", os.O_CREAT | os.O_WRONLY) as fd:
            os.write(fd, b"last")
            os.fsync(fd)
        if "tar_x_truncated" not in self.figures:
            self.figures["tar_x_1500_fsync_s"] = clock() - start

    # -- on an object store --

    def objects(self) -> None:
        """A large file, cold and warm, and small ones: what is stored where a request takes a millisecond."""
        self.seq_write()
        self.remount()
        self.drop_caches()
        self.figures["rcold_seq_read_MBps"] = read_rate(self.big, 3 * self.cap_s)
        self.figures["warm_seq_read_MBps"] = read_rate(self.big, self.cap_s)
        for name, size_bytes in (("create_4k_per_s", 4096), ("create_64k_per_s", 65536)):
            data, directory = block(9)[:size_bytes], self.directory / name
            directory.mkdir()

            def create(index: int, data: bytes = data, directory: Path = directory) -> None:
                with opened(directory / f"f{index:03}", os.O_CREAT | os.O_EXCL | os.O_WRONLY) as fd:
                    os.write(fd, data)

            self.rate(name, create, 200, 2 * self.cap_s)


def _text(output: bytes) -> str:
    """The beginning of what a program said."""
    return output.decode(errors="replace").strip()[:300]


# -- running it ------------------------------------------------------------------------------------------------------

STEPS: dict[str, Callable[[Workload], None]] = {
    step.__name__: step
    for step in (
        Workload.seq_write, Workload.par_write, Workload.seq_read, Workload.par_read, Workload.rand, Workload.rcold,
        Workload.rcold_rand, Workload.small, Workload.bigdir, Workload.tree, Workload.git, Workload.sqlite,
        Workload.append, Workload.rcold_small, Workload.far_prepare, Workload.far_read, Workload.far_list, Workload.far_grep,
        Workload.far_unpack,
        Workload.objects,
    )
}  # fmt: skip
EVERYDAY = [name for name in STEPS if not name.startswith("far_") and name != "objects"]
FAR = ["far_read", "far_list", "far_grep", "far_unpack"]


def _too_long(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError(f"step not done after {STEP_S_MAX} s")


def run_steps(workload: Workload, names: list[str], state: Path | None) -> Figures:
    """All figures of these steps, and what each cost."""
    step_s: dict[str, float] = {}
    cpu_s: dict[str, dict[str, float]] = {}
    pressure_pct: dict[str, float] = {}
    signal.signal(signal.SIGALRM, _too_long)
    begin = clock()
    for name in names:
        start, waited_us, meter = clock(), _cpu_pressure_us(), CpuMeter(state)
        signal.alarm(STEP_S_MAX)
        try:
            STEPS[name](workload)
        except Exception as exc:
            workload.figures[f"{name}_error"] = f"{type(exc).__name__}: {exc}"
        finally:
            signal.alarm(0)
        seconds = clock() - start
        step_s[name] = round(seconds, 2)
        cpu_s[name] = meter.seconds()
        pressure_pct[name] = round((_cpu_pressure_us() - waited_us) / 1e4 / seconds, 1)
    figures = {"step_s": step_s, "cpu_s": cpu_s, "psi_cpu_pct": pressure_pct, **workload.figures}
    if not workload.can_drop:
        figures["skipped"] = [name for name in COLD_ROWS if figures.pop(name, None) is not None]
    return {**figures, "total_s": clock() - begin}


def chosen_steps(text: str) -> list[str]:
    """The steps in a comma-separated list."""
    names = text.split(",")
    unknown = [name for name in names if name not in STEPS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no step {', '.join(unknown)}; there are {', '.join(STEPS)}")
    return names


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Run a file system workload on a directory; print figures as JSON.")
    parser.add_argument("directory", type=Path, help="on the file system; a new directory wl is made in it")
    parser.add_argument("--steps", type=chosen_steps, default=EVERYDAY, help=f"of {','.join(STEPS)}")
    parser.add_argument("--cold-hook", default="", metavar="COMMAND", help="remounts with the local cache wiped")
    parser.add_argument("--cap", type=float, default=8, metavar="S", help="for a loop of small operations (default 8)")
    parser.add_argument("--big", type=int, default=512, metavar="MIB", help="of the large file (default 512)")
    parser.add_argument("--label", default="", help="copied into the result")
    parser.add_argument("--state", type=Path, metavar="FILE", help="JSON with pids, for CPU seconds of each step")
    default_material = Path(tempfile.gettempdir()) / f"vosfs-workload-{os.getuid()}"
    parser.add_argument("--material", type=Path, default=default_material, help="directory for input files, kept")
    args = parser.parse_args()
    directory = args.directory / "wl"
    directory.mkdir(parents=True, exist_ok=True)
    about = {"label": args.label, "dir": str(args.directory), "start": time.time(), "load": os.getloadavg()[0]}
    workload = Workload(directory, args.material, args.cap, args.big, args.cold_hook, args.state)
    print(json.dumps({**about, **run_steps(workload, args.steps, args.state)}))


if __name__ == "__main__":
    main()
