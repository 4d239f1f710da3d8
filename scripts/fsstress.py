"""Trees that several processes change at once, each in a subtree of its own, on a mount and beside it on a local disk.

Part of ``fsx.py`` (--setting trees), which has the mount.  Every call's errno is compared, and what stat(2) and readdir(3)
say; in the end, and after a remount, the whole trees are.
"""

import ctypes
import errno
import multiprocessing
import os
import random
import stat
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

NAMES = ("a", "b", "c", "d", "e", "f", "ünï☃", "sp ace", "x" * 255)
DEPTH = 4
OLD_NS = 10**18
"""Times that are set are before this (2001); all others are of today."""
TOLD_MAX = 40
AT_FDCWD = -100
NOREPLACE, EXCHANGE = 1, 2
_renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


class Differs(Exception):
    """The mount and the local file system do not agree; the message is for the user."""


# -- system calls --------------------------------------------------------------------------------------------------------


def create(path: str, data: bytes, flags: int) -> None:
    """Open and perhaps make a file, write, close; of a pipe nobody reads, ENXIO."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | flags, 0o640)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def unnamed(path: str, data: bytes) -> bytes:
    """Write and read a file whose name is gone."""
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
    os.close(fd)
    fd = os.open(path, os.O_RDWR)
    try:
        os.unlink(path)
        os.pwrite(fd, data, 3)
        os.fchmod(fd, 0o606)
        about = os.fstat(fd)
        return os.pread(fd, 1 << 20, 0) + repr((about.st_size, about.st_nlink, stat.S_IMODE(about.st_mode))).encode()
    finally:
        os.close(fd)


def rename(path: str, to: str, flags: int) -> None:
    """renameat2(2)."""
    if _renameat2(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(to), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def set_times(path: str, atime_ns: int, mtime_ns: int) -> tuple[int | None, int]:
    """utimensat(2), of a link itself; what stat(2) says then.

    Not the access time where the way there leads over links: it may lead over this one, which a local disk counts as read.
    """
    os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)
    found, above = os.lstat(path), os.path.dirname(path)
    return found.st_atime_ns if os.path.realpath(above) == above else None, found.st_mtime_ns


def about(path: str) -> tuple[Any, ...]:
    """What lstat(2) says that both must agree about."""
    found = os.lstat(path)
    kind = stat.S_IFMT(found.st_mode)
    when = found.st_mtime_ns if found.st_mtime_ns < OLD_NS else "today"
    length = found.st_size if kind != stat.S_IFDIR else None
    return kind, stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_nlink, length, when


def listing(path: str) -> list[tuple[str, int]]:
    """Names and types, as readdir(3) has them."""
    with os.scandir(path) as entries:
        return sorted((entry.name, stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)) for entry in entries)


def properties(path: str) -> list[tuple[str, bytes]]:
    """The extended attributes that somebody set."""
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.t")]
    return sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """errno or nothing, and the result."""
    try:
        return "", call(*arguments)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0], None


def view(base: Path) -> dict[str, Any]:
    """All of a tree, hard links included."""
    seen: dict[str, Any] = {}
    names: dict[tuple[int, int], str] = {}
    for top, directories, files in os.walk(base):
        directories.sort()
        for name in sorted([*directories, *files]):
            path = os.path.join(top, name)
            short = os.path.relpath(path, base)
            found = os.lstat(path)
            first = names.setdefault((found.st_dev, found.st_ino), short)
            seen[short] = [about(path), first, properties(path)]
            if stat.S_ISLNK(found.st_mode):
                seen[short].append(os.readlink(path))
            elif stat.S_ISREG(found.st_mode):
                seen[short].append(Path(path).read_bytes())
    return seen


# -- one process -----------------------------------------------------------------------------------------------------------


class Worker:
    """Makes the same calls below two directories."""

    def __init__(self, bases: tuple[Path, Path], seed: int) -> None:
        self.bases = bases
        self.rng = random.Random(seed)
        self.paths: list[str] = [""]
        """Names that may be there: most calls shall succeed."""
        self.calls: deque[str] = deque(maxlen=TOLD_MAX)
        self.outcomes: Counter[str] = Counter()
        root = os.getuid() == 0
        self._weights = {
            self.write: 16, self.truncate: 4, self.mkdir: 8, self.rmdir: 3, self.unlink: 5, self.unnamed: 1,
            self.link: 4, self.symlink: 3, self.rename: 10, self.chmod: 4, self.chown: 3 if root else 0,
            self.utime: 4, self.setxattr: 4, self.removexattr: 1, self.mknod: 1, self.look: 8, self.list: 5,
        }  # fmt: skip

    def run(self, count: int) -> None:
        """Differs, with the last calls."""
        steps, weights = list(self._weights), list(self._weights.values())
        for _ in range(count):
            self.rng.choices(steps, weights)[0]()

    def both(self, call: Callable[..., Any], paths: tuple[str, ...], *arguments: Any) -> str:
        """One call here and there; its errno."""
        there, here = (outcome(call, *(f"{base}/{path}" for path in paths), *arguments) for base in self.bases)
        said = " ".join([call.__name__, *(repr(path[:60]) for path in paths), *(str(a)[:20] for a in arguments)])
        self.calls.append(f"{said}: {here[0] or 'done'}")
        self.outcomes[here[0] or "done"] += 1
        if there != here:
            raise Differs("\n  ".join([f"{str(there)[:300]} instead of {str(here)[:300]}", *self.calls]))
        return here[0]

    def some(self) -> str:
        """A path that was there, or may be."""
        return self.rng.choice(self.paths) if self.rng.random() < 0.9 else self.fresh()

    def fresh(self) -> str:
        """A path to make something at."""
        parent = self.rng.choice(self.paths)
        while parent.count("/") >= DEPTH:
            parent = parent.rpartition("/")[0]
        return f"{parent}/{self.rng.choice(NAMES)}"

    def remember(self, path: str, error: str) -> None:
        """A name was made, unless there was an error."""
        if error or path in self.paths:
            return
        if len(self.paths) >= 200:
            self.paths[self.rng.randrange(1, 200)] = path
        else:
            self.paths.append(path)

    def data(self) -> bytes:
        """Of a file: empty, inline, or a blob."""
        return self.rng.randbytes(self.rng.choice((0, 1, 100, 5000, 17_000, 70_000)))

    def write(self) -> None:
        path = self.rng.choice((self.some, self.fresh))()
        flags = self.rng.choice((0, os.O_TRUNC, os.O_TRUNC, os.O_EXCL, os.O_APPEND, os.O_NOFOLLOW))
        self.remember(path, self.both(create, (path,), self.data(), flags))

    def truncate(self) -> None:
        self.both(os.truncate, (self.some(),), self.rng.choice((0, 1, 300, 16_384, 60_000)))

    def mkdir(self) -> None:
        path = self.fresh()
        self.remember(path, self.both(os.mkdir, (path,), self.rng.choice((0o755, 0o700, 0o2775))))

    def rmdir(self) -> None:
        self.both(os.rmdir, (self.some(),))

    def unlink(self) -> None:
        self.both(os.unlink, (self.some(),))

    def unnamed(self) -> None:
        self.both(unnamed, (self.some(),), self.data())

    def link(self) -> None:
        to = self.fresh()
        self.remember(to, self.both(os.link, (self.some(), to)))

    def symlink(self) -> None:
        path, to = self.fresh(), self.rng.choice(("a", "../b", "nowhere", ".", "c/d", "x" * 300))
        self.remember(path, self.both(lambda place: os.symlink(to, place), (path,)))

    def rename(self) -> None:
        path, to = self.some(), self.rng.choice((self.some, self.fresh))()
        if not path or not to:
            return
        self.remember(to, self.both(rename, (path, to), self.rng.choice((0, 0, 0, NOREPLACE, EXCHANGE, 3))))

    def chmod(self) -> None:
        self.both(os.chmod, (self.some(),), self.rng.choice((0o600, 0o644, 0o755, 0o4711, 0o1777, 0o2770)) | 0o700)

    def chown(self) -> None:
        owner, group = self.rng.choice((-1, 0, 1, 12345)), self.rng.choice((-1, 0, 7, 54321))
        self.both(os.lchown, (self.some(),), owner, group)

    def utime(self) -> None:
        self.both(set_times, (self.some(),), self.rng.randrange(OLD_NS), self.rng.randrange(OLD_NS))

    def setxattr(self) -> None:
        name = self.rng.choice(("user.t1", "user.t2", "nothing"))
        flags = self.rng.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        self.both(os.setxattr, (self.some(),), name, self.rng.randbytes(self.rng.choice((0, 1, 300))), flags)

    def removexattr(self) -> None:
        self.both(os.removexattr, (self.some(),), self.rng.choice(("user.t1", "user.t2")))

    def mknod(self) -> None:
        path = self.fresh()
        self.remember(path, self.both(os.mkfifo, (path,), 0o640))

    def look(self) -> None:
        self.both(self.rng.choice((about, properties, os.readlink)), (self.some(),))

    def list(self) -> None:
        self.both(listing, (self.some(),))


def _work(bases: tuple[Path, Path], count: int, seed: int) -> tuple[str, Counter[str]]:
    worker = Worker(bases, seed)
    try:
        worker.run(count)
    except Differs as exc:
        return str(exc), worker.outcomes
    return "", worker.outcomes


def _compare(point: Path, local: Path) -> int:
    there, here = view(point), view(local)
    wrong = sorted(path for path in there.keys() | here.keys() if there.get(path) != here.get(path))
    if wrong:
        lines = [
            f"  {path[:80]!r}: {str(there.get(path))[:200]} instead of {str(here.get(path))[:200]}" for path in wrong
        ]
        raise Differs("\n".join([f"{len(wrong)} of {len(here)} nodes differ", *lines[:20]]))
    return len(here)


def exercise_trees(
    point: Path, local: Path, count: int, processes: int, seed: int, remount: Callable[[], None],
    spoil: Callable[[Path], None] | None,
) -> str:  # fmt: skip
    """``count`` calls in all; what to say when nothing differs.  Differs.

    ``spoil`` changes the local tree in secret, which must be found.
    """
    os.umask(0o022)
    bases = [(point / f"p{number}", local / f"p{number}") for number in range(processes)]
    for base in (base for pair in bases for base in pair):
        base.mkdir(parents=True)
    jobs = [(pair, count // processes, seed + number) for number, pair in enumerate(bases)]
    # Not a Pool: it ends its workers with SIGTERM, and one with a handler for that may miss it just before it waits.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork")) as pool:
        results = list(pool.map(_work, *zip(*jobs, strict=True)))
    for number, (failure, _) in enumerate(results):
        if failure:
            raise Differs(f"process {number}: {failure}")
    outcomes: Counter[str] = sum((found for _, found in results), Counter())
    if spoil is not None:
        spoil(local)
    _compare(point, local)
    remount()
    nodes = _compare(point, local)
    told = ", ".join(f"{count} {name}" for name, count in outcomes.most_common())
    return (
        f"{sum(outcomes.values())} calls from {processes} processes: nothing differs, {nodes} nodes in the end; {told}"
    )
