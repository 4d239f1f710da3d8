"""Two mounts of one space behave as one local directory does, call by call, errno by errno.

The same system calls are made in a local directory and through either mount.  What one mount does is there for its own
programs at once, and for whoever asks the service over HTTP at once; the other mount may hear of it by the change feed,
so whoever goes on through the other one waits until it shows what the local directory does.

The delegation is given and asked for without the usual patience (``eager.py``), so that it is held, recalled and given
back in the middle of everything.
"""

import contextlib
import errno
import itertools
import mmap
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from lxml import etree

from tests.conftest import Daemon, eventually, start_daemon, start_mount, unmount
from tests.mount.test_delegation import VOSFS, VOSFSD, status
from tests.server.support import shown

EXAMPLES = int(os.environ.get("VOSFS_MODEL_EXAMPLES", "150"))
STEPS = 40
DEPTH = 3
NAMES = "abc"
NOWHERE = "nowhere"
"""Where some symbolic links lead; made by who writes through one."""
OLD_NS = 10**18
"""Times that are set are before this (2001); all others are of today."""
View = dict[str, Any]
pytestmark = pytest.mark.needs_gateway("mode, owner and times are not kept")


# -- system calls ------------------------------------------------------------------------------------------------------


def create(path: Path, data: bytes) -> None:
    _written(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640), data)


def save(path: Path, data: bytes) -> None:
    _written(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), data)


def durable(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(fd, data, 0)
        os.fsync(fd)
    finally:
        os.close(fd)


def append(path: Path, data: bytes) -> None:
    _written(os.open(path, os.O_WRONLY | os.O_APPEND), data)


def patch(path: Path, at: int, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(fd, data, at)
    finally:
        os.close(fd)


def _written(fd: int, data: bytes) -> None:
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def read(path: Path) -> bytes:
    return path.read_bytes()


def set_times(path: Path, seconds: int) -> tuple[int, int]:
    os.utime(path, (seconds, seconds + 1))
    about = os.stat(path)
    return about.st_atime_ns, about.st_mtime_ns


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def enter(path: Path) -> None:
    os.close(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW))


def listing(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def about(path: Path) -> tuple[Any, ...]:
    """What lstat(2) says that both file systems must agree about."""
    found = os.lstat(path)
    kind = stat.S_IFMT(found.st_mode)
    if kind == stat.S_IFDIR:
        return kind, stat.S_IMODE(found.st_mode)
    when = found.st_mtime_ns if found.st_mtime_ns < OLD_NS else "today"
    return kind, stat.S_IMODE(found.st_mode), found.st_nlink, found.st_size, when if kind == stat.S_IFREG else None


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[str, Any]:
    """errno or nothing, and the result."""
    try:
        return "", call(*arguments)
    except OSError as exc:
        return errno.errorcode[exc.errno or 0], None


def view(base: Path) -> View:
    """All that can be seen of a tree: every name that could be there is looked up, and every directory listed."""
    seen: View = {}

    def look(prefix: str, depth: int) -> None:
        seen[prefix] = listing(base / prefix)
        for name in (*NAMES, NOWHERE):
            path = prefix + name
            seen[path + " "] = fault, what = outcome(about, base / path)
            if fault:
                # stat(2) may know that a node is gone before the kernel has forgotten its name.
                seen[path + "/ "] = outcome(enter, base / path)
                continue
            if what[0] == stat.S_IFDIR and depth < DEPTH:
                look(path + "/", depth + 1)
            elif what[0] == stat.S_IFLNK:
                seen[path] = os.readlink(base / path)
            elif what[0] == stat.S_IFREG:
                seen[path] = (base / path).read_bytes()

    look("", 1)
    return seen


def difference(one: View, other: View) -> str:
    """For people."""
    return "\n".join(
        f"{key!r}: {str(one.get(key))[:150]} | {str(other.get(key))[:150]}"
        for key in sorted(one.keys() | other.keys())
        if one.get(key) != other.get(key)
    )


# -- the space ---------------------------------------------------------------------------------------------------------


@dataclass
class Space:
    """A daemon, two mounts of it, and a local directory beside them."""

    daemon: Daemon
    points: tuple[Path, Path]
    local: Path
    numbers: Iterator[int] = field(default_factory=itertools.count)
    held: int = 0
    """How often a mount held the delegation when somebody else came."""


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Space]:
    directory = tmp_path_factory.mktemp("model")
    with contextlib.ExitStack() as stack:
        daemon = start_daemon(directory / "space", program=VOSFSD)
        stack.callback(daemon.stop)
        points = directory / "one", directory / "two"
        for point in points:
            start_mount(daemon, point, directory / f"{point.name}-cache", program=VOSFS)
            stack.callback(unmount, point)
        (directory / "local").mkdir()
        yield Space(daemon, points, directory / "local")


def over_http(daemon: Daemon, path: str) -> View:
    """What the service shows of a tree: names, kinds and bytes."""
    seen: View = {}

    def look(prefix: str) -> None:
        code, _, body = daemon.request("GET", f"/nodes{path}/{prefix}".rstrip("/"))
        assert code == 200, (prefix, code, body)
        children = [(c.uri.rpartition("/")[2], c.type) for c in shown(etree.fromstring(body)).children]
        seen[prefix] = sorted(name for name, _ in children)
        for name, kind in children:
            if kind == "vos:ContainerNode":
                look(f"{prefix}{name}/")
            elif kind == "vos:LinkNode":
                seen[prefix + name] = "link"
            else:
                code, _, seen[prefix + name] = daemon.request("GET", f"/files{path}/{prefix}{name}")
                assert code == 200, (prefix, name, code)

    look("")
    return seen


def in_short(base: Path) -> View:
    """The same of a local tree."""
    seen: View = {}

    def look(prefix: str) -> None:
        seen[prefix] = listing(base / prefix)
        for name in seen[prefix]:
            path = base / prefix / name
            if path.is_symlink():
                seen[prefix + name] = "link"
            elif path.is_dir():
                look(f"{prefix}{name}/")
            else:
                seen[prefix + name] = path.read_bytes()

    look("")
    return seen


# -- the machine -------------------------------------------------------------------------------------------------------

PATHS = st.one_of(
    st.sampled_from(["a", "b", "c", "a/a", "a/b", "b/a", "b/b"]),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=DEPTH).map("/".join),
)
DATA = st.builds(
    lambda byte, size: bytes([byte]) * size, st.integers(1, 255), st.sampled_from([0, 1, 5, 300, 5000, 17_000, 60_000])
)
OFFSETS = st.sampled_from([0, 1, 4, 299, 4096, 16_384, 40_000])
WHERE = st.sampled_from([0, 0, 0, 1])
"""Through which mount: mostly the same as before, counted from there."""


class Twins(RuleBasedStateMachine):
    """The same calls here and there."""

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.space = space
        self.place = f"m{next(space.numbers)}"
        self.local = space.local / self.place
        self.local.mkdir()
        self.at = 0
        """The mount that the last call went through."""
        self.behind = False
        """Whether it may not have heard of the last change."""
        self.open: tuple[int, int] | None = None
        """A file that is open here and there."""
        self.calls: list[str] = []
        """What was done, for people: not every failure comes twice."""
        self.base.mkdir()

    @property
    def base(self) -> Path:
        return self.space.points[self.at] / self.place

    def go(self, where: int) -> None:
        """Go on through this mount, or through the other one."""
        if where:
            self.close_file()
            self.space.held += status(self.space.points[self.at])["delegation"] is True
            self.at, self.behind = 1 - self.at, True
        if self.behind:
            self.settle()

    def settle(self) -> None:
        """Wait until this mount shows what the local directory has."""
        expected = view(self.local)
        last: tuple[str, Any] = "never looked", None

        def agrees() -> bool:
            nonlocal last
            last = outcome(view, self.base)
            return last == ("", expected)

        try:
            eventually("the mounts agree", agrees, 3)
        except AssertionError:
            seen = difference(last[1] or {}, expected)
            raise AssertionError(f"mount {self.at} {last[0]}:\n{seen}\n{self.story()}") from None
        self.did("agreed")
        self.behind = False

    def did(self, *what: object) -> None:
        """Note it."""
        self.calls.append(f"{self.at}: " + " ".join(str(word)[:30] for word in what))

    def story(self) -> str:
        """The last calls."""
        return "\n".join(self.calls[-40:])

    def both(self, where: int, call: Callable[..., Any], path: str, *arguments: Any) -> None:
        """One call, here and there."""
        self.go(where)
        there = outcome(call, self.base / path, *arguments)
        here = outcome(call, self.local / path, *arguments)
        self.did(call.__name__, path, *arguments, here[0])
        assert there == here, f"{str(there)[:200]}, not {str(here)[:200]}\n{self.story()}"

    def two_paths(self, where: int, call: Callable[..., Any], path: str, to: str) -> None:
        self.go(where)
        there = outcome(call, self.base / path, self.base / to)
        here = outcome(call, self.local / path, self.local / to)
        self.did(call.__name__, path, to, here[0])
        assert there[0] == here[0], f"{there[0]}, not {here[0]}\n{self.story()}"

    @initialize(data=DATA)
    def plant(self, data: bytes) -> None:
        # In an empty tree most calls only fail.
        for path in ("a", "a/b", "b"):
            self.both(0, os.mkdir, path, 0o750)
        for path in ("c", "a/a", "a/b/a"):
            self.both(0, create, path, data)

    @rule(where=WHERE, call=st.sampled_from([create, save, save, durable, append]), path=PATHS, data=DATA)
    def write(self, where: int, call: Callable[..., Any], path: str, data: bytes) -> None:
        self.both(where, call, path, data)

    @rule(where=WHERE, path=PATHS, at=OFFSETS, data=DATA)
    def write_at(self, where: int, path: str, at: int, data: bytes) -> None:
        self.both(where, patch, path, at, data)

    @rule(where=WHERE, path=PATHS, length=OFFSETS)
    def truncate(self, where: int, path: str, length: int) -> None:
        self.both(where, os.truncate, path, length)

    @rule(where=WHERE, call=st.sampled_from([read, listing, about, sync_directory]), path=PATHS)
    def look(self, where: int, call: Callable[..., Any], path: str) -> None:
        self.both(where, call, path)

    @rule(where=WHERE, call=st.sampled_from([os.rmdir, os.unlink]), path=PATHS)
    def remove(self, where: int, call: Callable[..., Any], path: str) -> None:
        self.both(where, call, path)

    @rule(where=WHERE, path=PATHS, mode=st.sampled_from([0o700, 0o755, 0o711]))
    def make_directory(self, where: int, path: str, mode: int) -> None:
        self.both(where, os.mkdir, path, mode)

    @rule(where=WHERE, path=PATHS, mode=st.sampled_from([0o600, 0o644, 0o755]))
    def change_mode(self, where: int, path: str, mode: int) -> None:
        # Who is not root must still be able to go through a directory.
        self.both(where, os.chmod, path, mode | (0o100 if (self.local / path).is_dir() else 0))

    @rule(where=WHERE, path=PATHS, seconds=st.integers(1, 9))
    def change_times(self, where: int, path: str, seconds: int) -> None:
        self.both(where, set_times, path, seconds)

    @rule(where=WHERE, call=st.sampled_from([os.rename, os.rename, os.link]), path=PATHS, to=PATHS)
    def give_name(self, where: int, call: Callable[..., Any], path: str, to: str) -> None:
        self.two_paths(where, call, path, to)

    @rule(where=WHERE, path=PATHS, to=PATHS, data=DATA)
    def replace(self, where: int, path: str, to: str, data: bytes) -> None:
        # How editors save.
        self.both(where, save, path, data)
        self.two_paths(0, os.rename, path, to)

    @rule(where=WHERE, path=PATHS, to=st.sampled_from(["a", "b", "../a", NOWHERE, "."]))
    def make_link(self, where: int, path: str, to: str) -> None:
        self.both(where, lambda p: os.symlink(to, p), path)

    @precondition(lambda self: self.open is None)
    @rule(where=WHERE, path=PATHS)
    def open_file(self, where: int, path: str) -> None:
        self.go(where)
        there, here = (outcome(os.open, base / path, os.O_RDWR) for base in (self.base, self.local))
        assert there[0] == here[0]
        if not here[0]:
            self.open = there[1], here[1]
            self.did("open", path)

    @precondition(lambda self: self.open is not None)
    @rule(at=OFFSETS, data=DATA)
    def write_open(self, at: int, data: bytes) -> None:
        assert self.open is not None
        for fd in self.open:
            os.pwrite(fd, data, at)

    @precondition(lambda self: self.open is not None)
    @rule()
    def read_open(self) -> None:
        assert self.open is not None
        there, here = ((os.fstat(fd).st_size, os.fstat(fd).st_nlink, os.pread(fd, 100_000, 0)) for fd in self.open)
        assert there == here

    @precondition(lambda self: self.open is not None)
    @rule(at=OFFSETS, data=DATA)
    def write_mapped(self, at: int, data: bytes) -> None:
        assert self.open is not None
        for fd in self.open:
            if at + len(data) <= os.fstat(fd).st_size and data:
                with mmap.mmap(fd, 0) as mapped:
                    mapped[at : at + len(data)] = data
                    mapped.flush()

    @precondition(lambda self: self.open is not None)
    @rule()
    def sync_open(self) -> None:
        assert self.open is not None
        for fd in self.open:
            os.fsync(fd)

    @rule()
    def close_file(self) -> None:
        if self.open is not None:
            for fd in self.open:
                os.close(fd)
            self.open = None
            self.did("close")

    @rule()
    def ask_the_service(self) -> None:
        """Whoever asks over HTTP sees all of it at once."""
        self.close_file()
        self.space.held += status(self.space.points[self.at])["delegation"] is True
        seen, expected = over_http(self.space.daemon, "/" + self.place), in_short(self.local)
        self.did("GET")
        assert seen == expected, f"{difference(seen, expected)}\n{self.story()}"

    @rule(path=PATHS, data=DATA)
    def upload(self, path: str, data: bytes) -> None:
        """Somebody else saves a file over HTTP."""
        there = self.local / path
        if (
            os.path.realpath(there.parent) != str(there.parent)
            or not there.parent.is_dir()
            or there.is_dir()
            or there.is_symlink()
        ):
            return
        self.close_file()
        new = not there.exists()
        code, _, body = self.space.daemon.request("PUT", f"/files/{self.place}/{path}", data)
        self.did("PUT", path)
        assert code in (200, 201), (code, body)
        there.write_bytes(data)
        if new:
            there.chmod(0o644)
        self.behind = True

    @rule(path=PATHS)
    def delete(self, path: str) -> None:
        """Somebody else deletes a node over HTTP, and all below it."""
        there = self.local / path
        if os.path.realpath(there.parent) != str(there.parent) or not os.path.lexists(there):
            return
        self.close_file()
        code, _, body = self.space.daemon.request("DELETE", f"/nodes/{self.place}/{path}")
        self.did("DELETE", path)
        assert code in (200, 204), (code, body)
        if there.is_dir() and not there.is_symlink():
            shutil.rmtree(there)
        else:
            there.unlink()
        self.behind = True

    def teardown(self) -> None:
        self.ask_the_service()
        for _ in self.space.points:
            self.go(1)


# -- the tests ---------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(0 if EXAMPLES > 100 else 180)
def test_two_mounts_and_a_local_directory(space: Space) -> None:
    run_state_machine_as_test(
        lambda: Twins(space),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            # The same examples each time, unless somebody asks for more of them.
            derandomize="VOSFS_MODEL_EXAMPLES" not in os.environ,
        ),
    )
    for point in space.points:
        assert status(point)["lost"] == 0
    assert space.held > EXAMPLES, "the delegation was never held: nothing was tested"


def test_the_comparison_can_fail(space: Space) -> None:
    twins = Twins(space)
    twins.both(0, create, "a", b"here and there")
    (twins.local / "a").write_bytes(b"only here, and longer")
    with pytest.raises(AssertionError, match="read a"):
        twins.both(0, read, "a")
    with pytest.raises(AssertionError, match="only here"):
        twins.ask_the_service()
