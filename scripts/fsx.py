#!/usr/bin/env python3
"""Random operations on a mount and on local files beside it; whatever differs ends the run.

Files: reads, writes, appends, truncations, shared mappings, copies of ranges, closes, fsyncs, dropped caches.  Every
read is compared, every length after each operation, and all bytes at the end of each stretch: through the mount, after a
remount with an empty cache, and as the service hands them out.  fallocate(2) and hole punching are tried as programs
try them; a mount refuses both (docs/semantics.rst), and then, as programs do, posix_fallocate(3) writes and zeros are
written instead.  How often they were refused is in the last line.

Trees (--setting trees): several processes make, move, link and remove names, each in a subtree of its own, and then
the whole trees are compared.
"""

import argparse
import contextlib
import ctypes
import errno
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from demo import BIN, start_daemon
from fsstress import Differs, exercise_trees

MIB = 1 << 20
FILE_BYTES_MAX = 64 * MIB
STEP_BYTES = MIB
"""How much is compared or filled at a time."""
NOTES_MAX = 20_000
"""Operations that are remembered, to be told when something differs."""
TOLD_MAX = 40
LOG_LINES = 30
PATIENCE_S = 60.0
"""How long an operation is tried again while the network is cut now and then."""
PAUSE_S = 0.05
PIECE_BYTES = 256 * 1024
DOWN_S_MAX = 1.0
"""How long nobody gets through after a cut."""
CUT = frozenset((errno.EIO, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EFAULT))
"""What a cut may be told as.  EFAULT: how madvise(2) says that a page could not be read."""
MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23
PUNCH = 0x01 | 0x02
"""FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE."""
_fallocate = ctypes.CDLL(None, use_errno=True).fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True)
class Setting:
    """What a run is about."""

    files: int
    stretch: int
    """Operations between two remounts, each with a cache directory of its own, and whole comparisons."""
    drop: int = 1
    """Weight of dropping the kernel's pages."""
    fill_bytes: int = 0
    """Of all files together, before it begins."""
    options: tuple[str, ...] = ()
    cut_every_s: float = 0.0


SETTINGS = {
    "plain": Setting(files=6, stretch=25_000),
    "cold": Setting(files=6, stretch=2_000, drop=15),
    "small": Setting(files=16, stretch=25_000, fill_bytes=1024 * MIB, options=("cache_size=64M",)),
    "cut": Setting(files=6, stretch=10_000, options=("deadline=5",), cut_every_s=5.0),
}


# -- where it runs -----------------------------------------------------------------------------------------------------


class Wire:
    """A relay to a port of this machine that breaks all connections now and then, and lets nobody through for a while.

    A process of its own: mmap.flush() holds the interpreter's lock while the mount waits for the network.
    """

    def __init__(self) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._guard = threading.Lock()
        self._down = False
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        self._cuts = multiprocessing.get_context("fork").Value("i", 0)
        self._process: BaseProcess | None = None
        self.port = self._server.getsockname()[1]

    @property
    def cuts(self) -> int:
        """How many there were."""
        return int(self._cuts.value)

    def start(self, target: int, every_s: float, rng: random.Random) -> None:
        """Relay to a port until ``close``."""
        self._process = multiprocessing.get_context("fork").Process(
            target=self._run, args=(target, every_s, rng), daemon=True
        )
        self._process.start()
        self._server.close()

    def _run(self, target: int, every_s: float, rng: random.Random) -> None:
        threading.Thread(target=self._accept, args=(target,), daemon=True).start()
        while True:
            time.sleep(every_s)
            with self._guard:
                self._down, pairs = True, list(self._pairs)
            for pair in pairs:
                self._break(pair)
            self._cuts.value += 1
            time.sleep(rng.random() * DOWN_S_MAX)
            with self._guard:
                self._down = False

    def _accept(self, target: int) -> None:
        while True:
            near, _ = self._server.accept()
            with self._guard:
                if self._down:
                    near.close()
                    continue
                pair = near, socket.create_connection(("127.0.0.1", target))
                for sink in pair:
                    # While nobody can have closed it.
                    sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._pairs.add(pair)
            for source, sink in (pair, pair[::-1]):
                threading.Thread(target=self._pump, args=(pair, source, sink), daemon=True).start()

    def _pump(self, pair: tuple[socket.socket, socket.socket], source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                sink.sendall(data)
        self._break(pair)

    def _break(self, pair: tuple[socket.socket, socket.socket]) -> None:
        with self._guard:
            self._pairs.discard(pair)
        for sock in pair:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def close(self) -> None:
        """Break everything off."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


class Bed:
    """A daemon and a mount of its space, or with ``local`` a directory in place of both."""

    def __init__(self, directory: Path, setting: Setting, rng: random.Random, local: bool) -> None:
        # Constants
        self.point = directory / "mnt"
        self._directory = directory
        self._options = [part for option in setting.options for part in ("-o", option)]
        self._local = local
        # Mutable state
        self.wire: Wire | None = None
        self._mounts = 0
        self._daemon: subprocess.Popen[str] | None = None
        self.point.mkdir()
        if local:
            return
        self._daemon, self._url, self._token = start_daemon(directory)
        self._direct = self._url
        if setting.cut_every_s:
            self._behind_wire(setting.cut_every_s, rng)
        self.mount()

    def _behind_wire(self, every_s: float, rng: random.Random) -> None:
        # The daemon must name itself as the relay, else the mount would go round it.
        assert self._daemon is not None
        self._stop_daemon()
        self.wire = Wire()
        port = int(self._direct.split(":")[2].split("/")[0])
        self._url = f"http://127.0.0.1:{self.wire.port}/vos"
        config = self._directory / "space/vosfsd.toml"
        config.write_text(f'[server]\nport = {port}\npublic_url = "{self._url}"\n')
        with open(self._directory / "vosfsd.log", "a") as log:
            self._daemon = subprocess.Popen(
                [BIN / "vosfsd", "--config", config], stdout=subprocess.PIPE, stderr=log, text=True,
                start_new_session=True,
            )  # fmt: skip
        assert self._daemon.stdout is not None
        if not self._daemon.stdout.readline().startswith("READY"):
            raise SystemExit(f"fsx: the daemon did not start\n{(self._directory / 'vosfsd.log').read_text()}")
        self.wire.start(port, every_s, rng)

    def mount(self) -> None:
        """Mount with an empty cache."""
        self._mounts += 1
        command = [BIN / "vosfs", "mount", self._url, self.point, "--token-file", self._token, *self._options]
        self._try([*command, "--cache-dir", self._directory / f"cache{self._mounts}"])

    def remount(self) -> None:
        """The same files with nothing remembered of them."""
        if not self._local:
            self._try([BIN / "vosfs", "umount", self.point])
            # What could not be sent at the unmount, the next mount with this cache directory would have to.
            self._mounts -= bool(self.wire)
            self.mount()

    def _try(self, command: list[str | Path]) -> None:
        end = time.monotonic() + (PATIENCE_S if self.wire else 0)
        while True:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0 or (self.wire and "is not a vosfs mount" in done.stderr):
                return
            if time.monotonic() >= end:
                raise SystemExit(f"fsx: {done.stderr.strip()}")
            time.sleep(PAUSE_S)

    @contextlib.contextmanager
    def served(self, name: str) -> Iterator[Any]:
        """A file's bytes as the service hands them out, past the mount."""
        token = Path(self._token).read_text().strip()
        request = urllib.request.Request(f"{self._direct}/files/{name}", headers={"Authorization": f"Bearer {token}"})
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            yield answer

    @property
    def has_service(self) -> bool:
        return not self._local

    def _stop_daemon(self) -> None:
        if self._daemon is not None:
            self._daemon.terminate()
            self._daemon.wait(30)
            if self._daemon.stdout is not None:
                self._daemon.stdout.close()

    def log(self) -> str:
        """The last that the mount and the daemon said."""
        paths = [self._directory / f"cache{self._mounts}/vosfs.log", self._directory / "vosfsd.log"]
        lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()[-LOG_LINES:]]
        return "\n".join(sorted(lines))

    def close(self) -> None:
        """Take it all away, whatever state it is in."""
        if self._local:
            return
        done = subprocess.run([BIN / "vosfs", "umount", self.point], capture_output=True)
        if done.returncode:
            lazy = ["umount", "-l"] if os.getuid() == 0 else ["fusermount3", "-uz"]
            subprocess.run([*lazy, self.point], capture_output=True)
        if self.wire is not None:
            self.wire.close()
        self._stop_daemon()


# -- files ---------------------------------------------------------------------------------------------------------------


class Pair:
    """One file of the mount and its model."""

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        self.model = os.open(model, os.O_RDWR | os.O_CREAT, 0o600)
        self.model_path = model
        self.fd = -1
        """-1: closed."""
        self.notes: deque[tuple[int, str, int, int]] = deque(maxlen=NOTES_MAX)
        """Number, name and extent of operations."""

    @property
    def size(self) -> int:
        return os.fstat(self.model).st_size


class Exerciser:
    """Makes the operations, here and there."""

    def __init__(self, bed: Bed, models: Path, setting: Setting, seed: int, shown: bool) -> None:
        # Dependencies
        self.bed = bed
        # Constants
        self.setting = setting
        self._shown = shown
        self._terminal = sys.stderr.isatty()
        # Mutable state
        self.rng = random.Random(seed)
        self.done = 0
        self.bytes_compared = 0
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.cut: Counter[str] = Counter()
        self._began = time.monotonic()
        models.mkdir()
        self.pairs = [Pair(bed.point / f"f{n}", models / f"f{n}") for n in range(setting.files)]
        weights: dict[Callable[[Pair], None], int] = {
            self.read: 24, self.write: 24, self.append: 4, self.truncate: 6, self.map_read: 8, self.map_write: 8,
            self.look: 4, self.sync: 4, self.close: 6, self.duplicate: 2, self.reserve: 1, self.punch: 2,
            self.copy_range: 2, self.drop: setting.drop,
        }  # fmt: skip
        self._operations, self._weights = list(weights), list(weights.values())

    # -- the run -------------------------------------------------------------------------------------------------------

    def run(self, count: int, spoil: bool) -> None:
        """Differs, with the operations that matter."""
        self._fill()
        for number in range(count):
            pair = self.rng.choice(self.pairs)
            operation = self.rng.choices(self._operations, self._weights)[0]
            if spoil and number == count - 1:
                self._spoil()
            try:
                operation(pair)
            except OSError as exc:
                raise Differs(self._story(pair, f"{operation.__name__}: {exc}")) from exc
            self.done += 1
            self.counts[operation.__name__] += 1
            if self.done % self.setting.stretch == 0 or self.done == count:
                self._whole()
            if self.done % (1000 if self._terminal else 50_000) == 0:
                self.show("" if self._terminal else "\n")

    def show(self, end: str = "") -> None:
        """The progress bar."""
        if not self._shown:
            return
        rate = self.done / (time.monotonic() - self._began)
        cuts = f", {self.bed.wire.cuts} cuts" if self.bed.wire else ""
        text = f"\r{self.done} operations, {rate:.0f}/s, {self.bytes_compared / 2**30:.1f} GiB compared{cuts} "
        print(text, end=end, file=sys.stderr, flush=True)

    def _fill(self) -> None:
        each = self.setting.fill_bytes // len(self.pairs)
        for pair in self.pairs:
            for at in range(0, each, STEP_BYTES):
                self._write_both(pair, at, self.rng.randbytes(min(STEP_BYTES, each - at)))
            self._close(pair)

    def _spoil(self) -> None:
        model = max(self.pairs, key=lambda pair: pair.size).model
        os.pwrite(model, bytes([os.pread(model, 1, 0)[0] ^ 1]), 0)

    def _whole(self) -> None:
        """Compare everything: as it is open, after a remount, and as the service has it."""
        for pair in self.pairs:
            if pair.fd >= 0 and self.rng.random() < 0.3:
                self._compare(pair, 0, pair.size)
            self._close(pair)
        self.bed.remount()
        for pair in self.pairs:
            if pair.path.exists() or pair.size:
                self._open(pair)
                self._compare(pair, 0, pair.size)
                self._check_size(pair)
                self._close(pair)
                if self.bed.has_service:
                    self._compare_served(pair)

    def _compare_served(self, pair: Pair) -> None:
        with self.bed.served(pair.path.name) as answer:
            at = 0
            while data := answer.read(STEP_BYTES):
                self._same(pair, at, data, "the service")
                at += len(data)
        if at != pair.size:
            raise Differs(self._story(pair, f"the service has {at} bytes, not {pair.size}"))

    # -- comparing -------------------------------------------------------------------------------------------------------

    def _compare(self, pair: Pair, start: int, stop: int) -> None:
        for at in range(start, stop, STEP_BYTES):
            self._same(pair, at, self._read(pair.fd, min(STEP_BYTES, stop - at), at), "read")

    def _same(self, pair: Pair, at: int, data: bytes, what: str) -> None:
        expected = os.pread(pair.model, len(data), at)
        self.bytes_compared += len(data)
        if data != expected:
            first = next((n for n, (a, b) in enumerate(zip(data, expected, strict=False)) if a != b), len(expected))
            wrong = sum(a != b for a, b in zip(data, expected, strict=False)) + abs(len(data) - len(expected))
            raise Differs(self._story(
                pair, f"{what} [{at}, {at + len(data)}): {wrong} bytes differ, the first at {at + first}: "
                f"{data[first : first + 8].hex()} instead of {expected[first : first + 8].hex()}", at + first,
            ))  # fmt: skip

    def _check_size(self, pair: Pair) -> None:
        size = os.fstat(pair.fd).st_size if pair.fd >= 0 else self._patiently(os.stat, pair.path).st_size
        if size != pair.size:
            raise Differs(self._story(pair, f"{size} bytes long, not {pair.size}"))

    def _story(self, pair: Pair, what: str, at: int = -1) -> str:
        """What was done to a file, as far as it can matter for the byte at ``at``."""
        whole = ("close", "sync", "drop", "truncate", "remount", "duplicate")
        told = [note for note in pair.notes if at < 0 or note[1] in whole or note[2] <= at < note[3]]
        writers = [n for n, note in enumerate(told) if note[1] not in (*whole, "read", "look", "map_read")]
        told = told[max(0, min(len(told) - TOLD_MAX, writers[-1] - 3 if writers else len(told))) :][-3 * TOLD_MAX :]
        lines = [f"  {number} {name} [{start}, {stop})" for number, name, start, stop in told]
        return "\n".join([f"{pair.path.name} at operation {self.done}: {what}", *lines])

    def _note(self, pair: Pair, what: str, start: int = 0, stop: int = 0) -> None:
        pair.notes.append((self.done, what, start, stop))

    # -- while the network is cut --------------------------------------------------------------------------------------------

    def _patiently(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """A call that may fail while the network is cut, tried again until it works; all of them may be repeated."""
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                return call(*arguments)
            except OSError as exc:
                if not self.setting.cut_every_s or exc.errno not in CUT or time.monotonic() > end:
                    raise
                self.cut[errno.errorcode[exc.errno]] += 1
                time.sleep(PAUSE_S)

    def _open(self, pair: Pair, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        if pair.fd < 0:
            pair.fd = self._patiently(os.open, pair.path, flags, 0o600)
        return pair.fd

    def _close(self, pair: Pair) -> None:
        if pair.fd < 0:
            return
        if self.setting.cut_every_s:
            # What a close could not save is gone with it (close(2)): who wants to try again asks fsync(2).
            self._patiently(os.fsync, pair.fd)
        os.close(pair.fd)
        pair.fd = -1

    def _read(self, fd: int, size: int, at: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self._patiently(os.pread, fd, size - len(data), at + len(data))
            if not piece:
                break
            data += piece
        return data

    def _write(self, fd: int, data: bytes, at: int) -> None:
        view = memoryview(data)
        while view:
            count = self._patiently(os.pwrite, fd, view, at)
            view, at = view[count:], at + count

    def _write_both(self, pair: Pair, at: int, data: bytes) -> None:
        self._write(self._open(pair), data, at)
        self._write(pair.model, data, at)

    # -- operations -----------------------------------------------------------------------------------------------------------

    def _some(self) -> int:
        """A length, mostly small."""
        rng = self.rng
        return rng.randint(1, rng.choice((16, 512, 512, 4096, 8192, 65536, 65536, 131072, 131072, 700_000)))

    def _extent(self, pair: Pair, inside: bool) -> tuple[int, int]:
        """Where to act; ``inside`` the file, or perhaps beyond its end."""
        rng, size = self.rng, pair.size
        kind = rng.randrange(10)
        if kind < 2 and pair.notes:
            at = pair.notes[-1][3]
        elif kind < 4:
            at = max(0, size - rng.randrange(10_000))
        elif kind == 4 and not inside:
            at = min(size + rng.randrange(200_000), FILE_BYTES_MAX - 1)
        else:
            at = rng.randrange(size + 1)
        if rng.randrange(4) == 0:
            at -= at % 4096
        at = min(at, size if inside else FILE_BYTES_MAX - 1)
        return at, min(at + self._some(), size if inside else FILE_BYTES_MAX)

    def read(self, pair: Pair) -> None:
        start, stop = self._extent(pair, True)
        self._note(pair, "read", start, stop)
        data = self._read(self._open(pair), stop - start + 5, start)
        if len(data) != min(stop + 5, pair.size) - start:
            raise Differs(self._story(pair, f"read [{start}, {stop + 5}): {len(data)} bytes"))
        self._same(pair, start, data, "read")

    def look(self, pair: Pair) -> None:
        """Through a descriptor of its own, as another program would."""
        if not pair.size:
            return
        start, stop = self._extent(pair, True)
        self._note(pair, "look", start, stop)
        fd = self._patiently(os.open, pair.path, os.O_RDONLY)
        try:
            self._same(pair, start, self._read(fd, stop - start, start), "read")
        finally:
            with contextlib.suppress(*((OSError,) if self.setting.cut_every_s else ())):
                os.close(fd)

    def write(self, pair: Pair) -> None:
        start, stop = self._extent(pair, False)
        self._note(pair, "write", start, stop)
        self._write_both(pair, start, self.rng.randbytes(stop - start))
        self._check_size(pair)

    def append(self, pair: Pair) -> None:
        data = self.rng.randbytes(min(self._some(), FILE_BYTES_MAX - pair.size))
        self._note(pair, "append", pair.size, pair.size + len(data))
        fd = self._patiently(os.open, pair.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        view = memoryview(data)
        while view:
            view = view[self._patiently(os.write, fd, view) :]
        os.pwrite(pair.model, data, pair.size)
        if self.setting.cut_every_s:
            self._patiently(os.fsync, fd)
        os.close(fd)
        self._check_size(pair)

    def truncate(self, pair: Pair) -> None:
        """Down or up, mostly a little; by name or by descriptor."""
        rng, size = self.rng, pair.size
        reach = rng.choice((100, 5000, 300_000, 300_000, 4 * MIB, 4 * MIB, 4 * MIB, 4 * MIB, 4 * MIB, FILE_BYTES_MAX))
        length = min(FILE_BYTES_MAX, max(0, size + rng.randint(-reach, reach)))
        self._note(pair, "truncate", min(size, length), max(size, length))
        fd = self._open(pair)
        self._patiently(os.truncate, pair.path if rng.randrange(2) else fd, length)
        os.truncate(pair.model, length)
        self._check_size(pair)

    @contextlib.contextmanager
    def _mapped(self, pair: Pair, start: int, stop: int, how: int) -> Iterator[tuple[mmap.mmap, int]]:
        base = start - start % mmap.PAGESIZE
        with mmap.mmap(self._open(pair), stop - base, offset=base) as mapped:
            if self.setting.cut_every_s:
                # A page that cannot be read would be a SIGBUS.
                self._patiently(mapped.madvise, how)
            yield mapped, base

    def map_read(self, pair: Pair) -> None:
        start, stop = self._extent(pair, True)
        if start == stop:
            return
        self._note(pair, "map_read", start, stop)
        with self._mapped(pair, start, stop, MADV_POPULATE_READ) as (mapped, base):
            self._same(pair, start, mapped[start - base : stop - base], "mapped")

    def map_write(self, pair: Pair) -> None:
        """With msync(2) or without: then the kernel writes the pages when it likes, at the close at the latest."""
        start, stop = self._extent(pair, True)
        if start == stop:
            return
        self._note(pair, "map_write", start, stop)
        data = self.rng.randbytes(stop - start)
        with self._mapped(pair, start, stop, MADV_POPULATE_WRITE) as (mapped, base):
            mapped[start - base : stop - base] = data
            if self.rng.randrange(2):
                self._patiently(mapped.flush)
        self._write(pair.model, data, start)

    def sync(self, pair: Pair) -> None:
        if pair.fd >= 0:
            self._note(pair, "sync")
            self._patiently(os.fsync if self.rng.randrange(2) else os.fdatasync, pair.fd)

    def close(self, pair: Pair) -> None:
        self._note(pair, "close")
        self._close(pair)
        if pair.size:
            self._check_size(pair)

    def duplicate(self, pair: Pair) -> None:
        """The close of a duplicate saves; if it cannot, the bytes are still there."""
        if pair.fd < 0:
            return
        self._note(pair, "duplicate")
        try:
            os.close(os.dup(pair.fd))
        except OSError as exc:
            if not self.setting.cut_every_s or exc.errno not in CUT:
                raise
            self.cut[f"close {errno.errorcode[exc.errno]}"] += 1

    @staticmethod
    def _takes(fd: int, mode: int, start: int, stop: int) -> bool:
        """fallocate(2); False where it is not for this file system."""
        if not _fallocate(fd, mode, start, stop - start):
            return True
        if ctypes.get_errno() != errno.EOPNOTSUPP:
            raise OSError(ctypes.get_errno(), "fallocate")
        return False

    def reserve(self, pair: Pair) -> None:
        start, stop = self._extent(pair, False)
        self._note(pair, "reserve", start, stop)
        fd = self._open(pair)
        if not self._patiently(self._takes, fd, 0, start, stop):
            self.refused["fallocate"] += 1
        self._patiently(os.posix_fallocate, fd, start, stop - start)
        os.posix_fallocate(pair.model, start, stop - start)
        self._check_size(pair)

    def punch(self, pair: Pair) -> None:
        start, stop = self._extent(pair, True)
        if start == stop:
            return
        self._note(pair, "punch", start, stop)
        fd = self._open(pair)
        if not self._patiently(self._takes, fd, PUNCH, start, stop):
            self.refused["punch"] += 1
            self._write(fd, bytes(stop - start), start)
        self._write(pair.model, bytes(stop - start), start)

    def copy_range(self, pair: Pair) -> None:
        """copy_file_range(2), from another file."""
        source = self.rng.choice(self.pairs)
        start, stop = self._extent(source, True)
        to = min(pair.size, FILE_BYTES_MAX - (stop - start))
        if source is pair or start == stop:
            return
        self._note(pair, "copy_range", to, to + stop - start)
        done = 0
        while done < stop - start:
            count = self._patiently(
                os.copy_file_range, self._open(source), self._open(pair), stop - start - done, start + done, to + done
            )
            if not count:
                raise Differs(self._story(pair, f"copy_file_range stopped {stop - start - done} bytes too soon"))
            done += count
        self._write(pair.model, os.pread(source.model, stop - start, start), to)
        self._check_size(pair)

    def drop(self, pair: Pair) -> None:
        """The kernel forgets the file's pages."""
        fd = self._open(pair)
        self._note(pair, "drop")
        self._patiently(os.fsync, fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


# -- the script ------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="settings: cold: caches dropped all the time; small: 1 GiB of files, a cache of 64 MiB; cut: the network\n"
        "breaks every 5 s; trees: names instead of bytes; plain: none of these",
    )  # fmt: skip
    parser.add_argument("--ops", type=int, default=1_000_000, help="operations to make (default %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: a random one, which is printed)")
    parser.add_argument("--setting", choices=[*SETTINGS, "trees"], default="cold", help="default: %(default)s")
    parser.add_argument("--mib", type=int, default=None, help="of files before it begins (default: the setting's)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between cuts (default %(default)s)")
    parser.add_argument("--processes", type=int, default=4, help="of --setting trees (default %(default)s)")
    parser.add_argument("--dir", type=Path, default=None, help="where to work; needs about 10 GiB")
    parser.add_argument("--standard", action="store_true", help="mount with VOSpace's own calls alone (-o plain)")
    parser.add_argument("--local", action="store_true", help="no mount: exercise the local file system, to compare")
    parser.add_argument("--spoil", action="store_true", help="change a local file in secret: the run must find it")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def _spoil_tree(local: Path) -> None:
    (local / "p0").chmod(0o711)


def _files(bed: Bed, directory: Path, setting: Setting, args: argparse.Namespace, seed: int) -> str:
    exerciser = Exerciser(bed, directory / "models", setting, seed, not args.quiet)
    try:
        exerciser.run(args.ops, args.spoil)
    finally:
        exerciser.show("\n")
        for pair in exerciser.pairs:
            os.close(pair.model)
            if pair.fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(pair.fd)
    refused = ", ".join(f"{name} refused {count} times" for name, count in sorted(exerciser.refused.items()))
    told = "; ".join(part for part in (
        f"{exerciser.bytes_compared / 2**30:.1f} GiB compared", refused,
        f"{bed.wire.cuts} cuts, told as {dict(exerciser.cut)}" if bed.wire else "",
    ) if part)  # fmt: skip
    return f"{exerciser.done} operations on {len(exerciser.pairs)} files: nothing differs; {told}"


def main() -> None:
    """Entry point."""
    args = _parser().parse_args()
    seed = int.from_bytes(os.urandom(4), "big") if args.seed is None else args.seed
    print(f"seed {seed}", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    setting = SETTINGS.get(args.setting, SETTINGS["plain"])
    if args.mib is not None:
        setting = replace(setting, fill_bytes=args.mib * MIB)
    if setting.cut_every_s:
        setting = replace(setting, cut_every_s=args.every)
    if args.standard:
        setting = replace(setting, options=(*setting.options, "plain"))
    directory = Path(tempfile.mkdtemp(prefix="vosfs-fsx-", dir=args.dir))
    began = time.monotonic()
    try:
        bed = Bed(directory, setting, random.Random(seed), args.local)
        try:
            if args.setting == "trees":
                spoil = _spoil_tree if args.spoil else None
                said = exercise_trees(
                    bed.point, directory / "local", args.ops, args.processes, seed, bed.remount, spoil
                )
            else:
                said = _files(bed, directory, setting, args, seed)
        except Differs as exc:
            raise Differs(f"{exc}\n{bed.log()}") from exc
        finally:
            bed.close()
    except Differs as exc:
        sys.exit(f"fsx: FAILED, --setting {args.setting} --seed {seed}\n{exc}")
    except KeyboardInterrupt:
        sys.exit("fsx: interrupted")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print(f"{args.setting}: {said}; {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
