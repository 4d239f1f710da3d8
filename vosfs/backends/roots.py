"""Several directories as one storage: disks of one host, without a volume manager between.

Each is a ``PosixBackend`` of its own.  A locator has a letter after its 32 digits that says which, so nobody searches;
the directory that was there before there were several has none.  The letter is in a marker file in the directory, not
in the configuration: a disk may be mounted elsewhere, and the order is nobody's business.

A mount point without its disk is an empty directory, like a new one.  So every marker lists all directories of the
storage: one that is listed and has no marker is not there, and nothing is written into it.
"""

import logging
import os
import random
import re
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from vosfs.backends.backend import BlobReader, BlobWriter
from vosfs.backends.posix import FULL, PosixBackend
from vosfs.errors import BlobMissing, DataCorrupt, QuietError, ServiceUnavailable, StorageFull
from vosfs.metadata.node import Blob

log = logging.getLogger(__name__)

LETTERS = "ghijklmnopqrstuvwxyz"
"""Those that are no hexadecimal digits: a locator stays as short as two copies need."""
ROOTS_MAX = len(LETTERS)
MARKER = "vosfs-root"
RESERVE_BYTES = 64 << 20
"""A directory with less space than that beyond what is to be written is full."""
AVOIDED_S = 30.0
"""Nothing new goes for so long where writing failed."""
_LOCATOR = re.compile(r"([0-9a-f]{32})([g-z]?)(-[0-9]+--?[0-9]+)?")


class Marker(msgspec.Struct):
    """What stands in a directory's marker file."""

    space: str
    letter: str
    roots: dict[str, str]
    """Letter -> path of all directories of the storage, as they were last seen."""


class _Root:
    """One directory, there or not."""

    def __init__(self, path: Path) -> None:
        # Constants
        self.path = path
        # Mutable state
        self.marker = self.read()
        self.backend: PosixBackend | None = None
        self.avoided = 0.0
        """Until when."""

    def read(self) -> Marker | None:
        """Its marker, if the directory is there and has one."""
        try:
            return msgspec.json.decode((self.path / MARKER).read_bytes(), type=Marker)
        except OSError:
            return None
        except msgspec.DecodeError as exc:
            raise QuietError(f"{self.path / MARKER} is damaged: {exc}") from None

    def write(self, marker: Marker) -> None:
        """Replace the marker, durably."""
        temporary = self.path / (MARKER + ".new")
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(marker))
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self.path / MARKER)
        self.marker = marker

    def there(self) -> bool:
        """Whether the directory is there now, which takes a look: disks go while a daemon runs."""
        return (self.path / MARKER).exists()

    def free(self) -> int:
        """Bytes that may still be written; 0 if it is not there."""
        try:
            status = os.statvfs(self.path)
        except OSError:
            return 0
        return status.f_bavail * status.f_frsize


class _Writer:
    """Writes to one of the directories."""

    def __init__(self, root: _Root, letter: str, inner: BlobWriter) -> None:
        self._root, self._letter, self._inner = root, letter, inner

    def write(self, data: bytes | memoryview) -> None:
        try:
            self._inner.write(data)
        except (StorageFull, OSError):
            self._root.avoided = time.monotonic() + AVOIDED_S
            raise

    def finish(self, durable: bool) -> Blob:
        blob = self._inner.finish(durable)
        return Blob(_located(blob.locator, self._letter), blob.length, blob.crc32)

    def abort(self) -> None:
        self._inner.abort()


class Roots:
    """Backend (see ``backend.py`` for every method's contract) in several directories."""

    def __init__(self, paths: list[Path], chance: random.Random | None = None) -> None:
        if not 1 <= len(paths) <= ROOTS_MAX:
            raise QuietError(f"a storage has up to {ROOTS_MAX} directories, not {len(paths)}")
        # Constants
        self._chance = chance or random.Random()  # noqa: S311 (spreads load, hides nothing)
        # Mutable state
        self._guard = threading.Lock()
        self._new = [_Root(path) for path in paths]
        """Without a letter yet: ``check`` gives them one."""
        self._roots: dict[str, _Root] = {}
        """By letter; INVARIANT: each has a marker with that letter, or is listed in another's and not there."""
        self._sort()

    @property
    def fresh(self) -> bool:
        """Whether no directory has a marker or blobs: all are new, or no disk is mounted."""
        return not self._roots and not any((root.path / "blobs").exists() for root in self._new)

    def _sort(self) -> None:
        """Give what has a marker its letter, and what is listed and not there too."""
        listed: dict[str, str] = {}
        for root in self._new:
            if root.marker is not None:
                if root.marker.letter in self._roots:
                    other = self._roots[root.marker.letter].path
                    raise QuietError(f"{root.path} and {other} are the same directory, or a copy of it")
                self._roots[root.marker.letter] = root
                listed.update({path: letter for letter, path in root.marker.roots.items()})
        self._new = [root for root in self._new if root.marker is None]
        for root in list(self._new):
            letter = listed.get(str(root.path))
            if letter is not None and letter not in self._roots:
                log.warning("%s is not there: is its disk mounted?", root.path)
                self._roots[letter] = root
                self._new.remove(root)

    def _usable(self, letter: str) -> PosixBackend:
        """The backend of a directory.  ServiceUnavailable if it is not there, BlobMissing for a letter of none."""
        root = self._roots.get(letter)
        if root is None:
            raise BlobMissing(f"no directory has the letter {letter!r}: is one missing from the configuration?")
        if root.backend is None:
            with self._guard:
                if not root.there():
                    raise ServiceUnavailable(f"the directory {root.path} is not there")
                root.backend = root.backend or PosixBackend(root.path)
        return root.backend

    def check(self, space: str) -> None:
        """Mark the new directories."""
        for root in self._roots.values():
            if root.marker is not None and root.marker.space != space:
                raise QuietError(f"{root.path} belongs to another space: {root.path / MARKER} says so")
        known = {letter: str(root.path) for letter, root in self._roots.items()}
        for root in self._roots.values():
            # What another disk was called that is no longer configured is remembered.
            known = {**(root.marker.roots if root.marker is not None else {}), **known}
        for root in self._new:
            old = (root.path / "blobs").exists()
            if old and "" in known:
                raise QuietError(
                    f"{root.path} has blobs of its own, and so has {known['']}: they cannot be one storage"
                )
            letter = "" if old else next(letter for letter in LETTERS if letter not in known)
            known[letter] = str(root.path)
            try:
                root.path.mkdir(parents=True, exist_ok=True, mode=0o700)
                root.write(Marker(space, letter, {letter: str(root.path)}))
            except OSError as exc:
                raise QuietError(f"{root.path}: {exc.strerror}") from exc
            self._roots[letter] = root
        self._new = []
        for letter, root in self._roots.items():
            if root.marker is not None and root.marker.roots != known and root.there():
                root.write(Marker(space, letter, known))

    def create(self, length: int = 0) -> BlobWriter:
        """By chance, in proportion to the free space.

        So all disks work and are full at one time; where most is free, a new disk would get all there is to write.
        """
        left = dict(self._roots)
        why: Exception = ServiceUnavailable("no directory of the storage is there")
        while left:
            letter = self._choose(left, length)
            root = left.pop(letter)
            if not root.there():
                continue
            try:
                return _Writer(root, letter, self._usable(letter).create(length))
            except (OSError, ServiceUnavailable) as exc:
                why = StorageFull("the storage is full") if getattr(exc, "errno", 0) in FULL else exc
                root.avoided = time.monotonic() + AVOIDED_S
                log.warning("nothing is written to %s: %s", root.path, exc)
        raise why

    def _choose(self, roots: dict[str, _Root], length: int) -> str:
        now = time.monotonic()
        free = {letter: max(0, root.free() - length - RESERVE_BYTES) for letter, root in roots.items()}
        good = {
            letter: room
            for letter, room in free.items()
            if room and roots[letter].avoided <= now and roots[letter].there()
        }
        if good:
            return self._chance.choices(list(good), list(good.values()))[0]
        # All are nearly full, or were in trouble: the best of them says how it is.
        room = {letter: root.free() for letter, root in roots.items()}
        return max(room, key=lambda letter: (room[letter] > length, roots[letter].avoided <= now, room[letter]))

    # -- locators ------------------------------------------------------------------------------------------------------

    def path(self, locator: str) -> Path:
        """Where a blob's file is."""
        backend, own = self._placed(locator)
        return backend.path(own)

    def _placed(self, locator: str) -> tuple[PosixBackend, str]:
        match = _LOCATOR.fullmatch(locator)
        if match is None:
            raise DataCorrupt(f"{locator[:80]!r} is not a locator")
        return self._usable(match.group(2)), match.group(1) + (match.group(3) or "")

    def open(self, locator: str, start: int = 0, stop: int = 0) -> BlobReader:
        backend, own = self._placed(locator)
        try:
            return backend.open(own, start, stop)
        except (BlobMissing, DataCorrupt) as exc:
            if not (backend.root / MARKER).exists():
                # Its disk went away: that is no loss of bytes.
                raise ServiceUnavailable(f"the directory {backend.root} is not there") from exc
            raise

    def open_now(self, locator: str) -> BlobReader | None:
        match = _LOCATOR.fullmatch(locator)
        root = self._roots.get(match.group(2)) if match is not None else None
        if match is None or root is None or root.backend is None:
            return None
        return root.backend.open_now(match.group(1) + (match.group(3) or ""))

    def sync(self, locators: Iterable[str]) -> None:
        found: dict[int, tuple[PosixBackend, list[str]]] = {}
        for locator in locators:
            backend, own = self._placed(locator)
            found.setdefault(id(backend), (backend, []))[1].append(own)
        for backend, own_locators in found.values():
            backend.sync(own_locators)

    def remove(self, locator: str) -> None:
        backend, own = self._placed(locator)
        if not (backend.root / MARKER).exists():
            raise ServiceUnavailable(f"the directory {backend.root} is not there")
        backend.remove(own)

    def locators(self, before_ns: int) -> Iterator[str]:
        away = None
        for letter in list(self._roots):
            try:
                backend = self._usable(letter)
            except ServiceUnavailable as exc:
                away = exc
                continue
            for own in backend.locators(before_ns):
                yield _located(own, letter)
        if away is not None:
            # Who asks must know that these are not all.
            raise away

    def register(self, file: Path) -> Blob:
        """A blob that is an existing file: in the first directory that is there."""
        for letter, root in self._roots.items():
            if root.there():
                blob = self._usable(letter).register(file)
                return Blob(_located(blob.locator, letter), blob.length, blob.crc32)
        raise ServiceUnavailable("no directory of the storage is there")

    # -- all of them ---------------------------------------------------------------------------------------------------

    def _there(self) -> Iterator[PosixBackend]:
        for letter, root in list(self._roots.items()):
            if root.there():
                yield self._usable(letter)

    def sweep(self, before_ns: int) -> None:
        for backend in self._there():
            backend.sweep(before_ns)

    def space(self) -> tuple[int, int]:
        # Two directories of one file system are not twice the space.
        spaces = {os.stat(backend.root).st_dev: backend.space() for backend in self._there()}
        return sum(total for total, _ in spaces.values()), sum(free for _, free in spaces.values())

    def close(self) -> None:
        """Close the kept descriptors."""
        for root in self._roots.values():
            if root.backend is not None:
                root.backend.close()


def _located(own: str, letter: str) -> str:
    return own[:32] + letter + own[32:]
