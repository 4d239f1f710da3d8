"""Several storages as one: which of them a blob goes to is its container's policy, and a blob may have copies.

A locator of the default storage is that storage's own, as if it were the only one; another's is ``NAME~LOCATOR``, and a
blob with copies is known by the locators of all, ``A~x+B~y``.  So a locator alone says where to read, and a reader goes
on to the next copy when one is missing, damaged or out of reach.
"""

import logging
import threading
import time
from collections.abc import Iterable, Iterator

from vosfs.backends.backend import (
    NEARLINE,
    ONLINE,
    STAGING,
    BlobReader,
    BlobWriter,
    Keeper,
    Signed,
    Signing,
    Slow,
    gathered,
)
from vosfs.errors import (
    DataCorrupt,
    InternalFault,
    InvalidArgument,
    NotOnline,
    ServiceUnavailable,
    TimedOut,
    VOSpaceError,
)
from vosfs.metadata.node import COPY, Blob, parts

log = logging.getLogger(__name__)

DEFAULT = "default"
"""Name of the storage that ``[storage]`` is."""
COPIES_MAX = 2
"""Two names and locators fit into LOCATOR_MAX."""
LOCATOR_MAX = 100
AVOIDED_S = 30.0
"""A storage that did not answer is asked last for so long: each try may take its whole deadline."""
SUSPECTS_MAX = 10_000
"""Bad copies remembered until somebody looks after them."""
_OF = "~"
AWAY = (ServiceUnavailable, TimedOut)
FAILURES = (DataCorrupt, OSError, NotOnline, *AWAY)
"""What another copy may be free of."""


class _Writer:
    """Writes all copies, one after the other."""

    def __init__(self, storages: "Storages", names: tuple[str, ...], length: int) -> None:
        self._storages = storages
        self._writers: list[tuple[str, BlobWriter]] = []
        self._done: list[str] = []
        """Locators of copies that are finished, and nobody knows yet."""
        try:
            for name in names:
                self._writers.append((name, storages.members[name].create(length)))
        except BaseException:
            self.abort()
            raise

    def write(self, data: bytes | memoryview) -> None:
        for _, writer in self._writers:
            writer.write(data)

    def finish(self, durable: bool) -> Blob:
        blobs = []
        for name, writer in self._writers:
            blob = writer.finish(durable)
            blobs.append(blob)
            self._done.append(_located(name, blob.locator))
        locator = COPY.join(self._done)
        if len(locator) > LOCATOR_MAX or len({(blob.length, blob.crc32) for blob in blobs}) > 1:
            raise InternalFault(f"copies {locator[:200]} cannot be one blob")
        self._done = []
        return Blob(locator, blobs[0].length, blobs[0].crc32)

    def abort(self) -> None:
        for _, writer in self._writers:
            writer.abort()
        for locator in self._done:
            try:
                self._storages.remove(locator)
            except (VOSpaceError, OSError) as exc:
                # The collector comes upon it in some hours.
                log.info("copy %s, which is not wanted: %s", locator, exc)
        self._done = []


class _Reader:
    """Reads whichever copy is good.  Bytes that were given out are never given out again."""

    def __init__(self, storages: "Storages", copies: list[str], start: int, stop: int) -> None:
        # Dependencies
        self._storages = storages
        # Mutable state
        self._copies = copies
        """Left to try, the one in use first."""
        self._reader: BlobReader | None = None
        self._alone = False
        """The copies that were tried are no good: one that is not on-line is needed."""
        self.length = self._open(start, stop).length
        self._prefer_longer(stop)

    def _open(self, start: int, stop: int) -> BlobReader:
        while self._reader is None:
            try:
                self._reader = self._storages.open_part(self._copies[0], start, stop)
            except FAILURES as exc:
                self._failed(exc)
        return self._reader

    def _prefer_longer(self, stop: int) -> None:
        """A copy that ends before what will be read may have been cut short: the next one says."""
        while stop > self.length and len(self._copies) > 1:
            try:
                other = self._storages.open_part(self._copies[1], 0, 0)
            except NotOnline:
                self.close()
                self._storages.stage_part(self._copies[1])
                raise
            except FAILURES as exc:
                self._storages.suspect(self._copies.pop(1), exc)
                continue
            if other.length <= self.length:
                other.close()
                return
            self._failed(DataCorrupt(f"{self._copies[0]} ends at {self.length}, its copy at {other.length}"))
            self._reader, self.length = other, other.length

    def _failed(self, exc: Exception) -> None:
        """On to the next copy; the same error again if there is none."""
        self.close()
        self._storages.suspect(self._copies[0], exc)
        if len(self._copies) == 1:
            if self._alone and isinstance(exc, NotOnline):
                self._storages.stage_part(self._copies[0])
            raise exc
        self._alone = self._alone or not isinstance(exc, NotOnline)
        del self._copies[0]

    def fileno(self) -> int:
        # What sendfile(2) sends nobody can begin again.
        return -1

    def read(self, start: int, stop: int) -> bytes:
        return gathered(self.stream(start, stop))

    def stream(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        self._prefer_longer(stop)
        if stop > self.length:
            raise DataCorrupt(f"blob {self._copies[0]} ends at {self.length}, not {stop}")
        while start < stop:
            try:
                for piece in self._open(start, stop).stream(start, stop):
                    start += len(piece)
                    yield piece
            except FAILURES as exc:
                self._failed(exc)

    def close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()


class Storages:
    """Backend (see ``backend.py`` for every method's contract) made of others, by name."""

    def __init__(self, members: dict[str, Keeper], offered: frozenset[str] = frozenset()) -> None:
        # Dependencies
        self.members = members
        # Constants
        self.offered = offered | {DEFAULT}
        """Those that whoever may write a container may choose for it."""
        self._slow = {name: member for name, member in members.items() if isinstance(member, Slow)}
        # Mutable state
        self._guard = threading.Lock()
        self._suspects: dict[str, str] = {}
        """Locator of a bad copy -> what is wrong; INVARIANT: at most SUSPECTS_MAX."""
        self._avoided: dict[str, float] = {}
        """Name -> until when it is asked last."""

    @property
    def default(self) -> Keeper:
        """The storage of ``[storage]``."""
        return self.members[DEFAULT]

    # -- policies ------------------------------------------------------------------------------------------------------

    def names(self, policy: str) -> tuple[str, ...]:
        """The storages that a policy names; the default one if it is empty.  InvalidArgument says what is wrong with it."""
        names = tuple(policy.split()) or (DEFAULT,)
        for name in names:
            if name not in self.members:
                known = ", ".join(sorted(self.members))
                raise InvalidArgument(f"there is no storage {name[:40]!r}; there are: {known}")
        if len(set(names)) < len(names) or len(names) > COPIES_MAX:
            raise InvalidArgument(
                f"{policy[:100]!r}: a policy names up to {COPIES_MAX} different storages, one for each copy"
            )
        return names

    def create(self, length: int = 0, policy: str = "") -> BlobWriter:
        """Start a blob where a policy wants it.  ServiceUnavailable if it names what is not configured (any more)."""
        try:
            names = self.names(policy)
        except InvalidArgument as exc:
            raise ServiceUnavailable(str(exc)) from exc
        return self.default.create(length) if names == (DEFAULT,) else _Writer(self, names, length)

    def copy(self, blob: Blob, source: str, policy: str) -> Blob:
        """A new blob of the same bytes where a policy wants it, read from ``source``: the blob, or one of its copies.

        DataCorrupt, with nothing left, if they are not what was recorded.
        """
        writer = self.create(blob.length, policy)
        try:
            reader = self.open(source, 0, blob.length)
            try:
                for data in reader.stream(0, blob.length):
                    writer.write(data)
            finally:
                reader.close()
            made = writer.finish(True)
        finally:
            writer.abort()
        if (made.length, made.crc32) != (blob.length, blob.crc32):
            self.remove(made.locator)
            raise DataCorrupt(f"blob {source} is not what was written")
        return made

    # -- locators ------------------------------------------------------------------------------------------------------

    def _member(self, part: str) -> tuple[str, str]:
        """The name and the own locator of one copy.  DataCorrupt for what names no storage."""
        name, of, own = part.rpartition(_OF)
        if not of:
            return DEFAULT, own
        if name == DEFAULT or name not in self.members:
            raise DataCorrupt(f"{part[:80]!r} is in no storage that is configured")
        return name, own

    def storage_of(self, part: str) -> str:
        """The name of the storage that has a copy."""
        return self._member(part)[0]

    def open_part(self, part: str, start: int, stop: int) -> BlobReader:
        """Open one copy."""
        name, own = self._member(part)
        return self.members[name].open(own, start, stop)

    def open(self, locator: str, start: int = 0, stop: int = 0) -> BlobReader:
        copies = parts(locator)
        if len(copies) == 1:
            return self.open_part(locator, start, stop)
        now = time.monotonic()
        copies.sort(key=lambda part: (part in self._suspects, self._avoided.get(self.storage_of(part), 0) > now))
        return _Reader(self, copies, start, stop)

    def open_now(self, locator: str) -> BlobReader | None:
        if COPY in locator:
            return None
        name, own = self._member(locator)
        return self.members[name].open_now(own)

    @property
    def signs(self) -> bool:
        """Whether there is a storage that mounts may read from themselves."""
        return any(isinstance(member, Signing) and member.signs for member in self.members.values())

    @property
    def redirects(self) -> bool:
        """The same of HTTP clients."""
        return any(isinstance(member, Signing) and member.redirects for member in self.members.values())

    def signed(self, locator: str) -> Signed | None:
        """A URL of a blob for a mount (``backend.Signed``); None if its storage gives none."""
        member, own = self._signing(locator)
        return member.signed(own) if member is not None and member.signs else None

    def redirected(self, locator: str, method: str) -> Signed | None:
        """The same for an HTTP client."""
        member, own = self._signing(locator)
        return member.signed(own, method) if member is not None and member.redirects else None

    def _signing(self, locator: str) -> tuple[Signing | None, str]:
        """The storage that can sign URLs of a blob, and the blob's own locator there."""
        if COPY in locator:
            # Which copy is good only a reader finds out.
            return None, locator
        name, own = self._member(locator)
        member = self.members[name]
        return (member if isinstance(member, Signing) else None), own

    def sync(self, locators: Iterable[str]) -> None:
        found: dict[str, list[str]] = {}
        for locator in locators:
            for part in parts(locator):
                name, own = self._member(part)
                found.setdefault(name, []).append(own)
        for name, own_locators in found.items():
            self.members[name].sync(own_locators)

    def remove(self, locator: str) -> None:
        for part in parts(locator):
            name, own = self._member(part)
            self.members[name].remove(own)
            with self._guard:
                self._suspects.pop(part, None)

    def locators(self, before_ns: int) -> Iterator[str]:
        for name, member in self.members.items():
            for own in member.locators(before_ns):
                yield _located(name, own)

    # -- slow storages -------------------------------------------------------------------------------------------------

    @property
    def slow(self) -> bool:
        """Whether any storage may have to bring bytes back before they can be read."""
        return bool(self._slow)

    def may_be_away(self, locator: str) -> bool:
        """Whether every copy of a blob is in a slow storage; without looking at any."""
        return bool(self._slow) and all(self._member(part)[0] in self._slow for part in parts(locator))

    def _locality_of(self, locator: str) -> str:
        """Where that copy of a blob is which can be read first."""
        if not self.may_be_away(locator):
            return ONLINE
        members = [self._member(part) for part in parts(locator)]
        found = {self._slow[name].locality(own) for name, own in members}
        return next(locality for locality in (ONLINE, STAGING, NEARLINE) if locality in found)

    def locality(self, locators: Iterable[str]) -> str:
        """Where blobs are that are all needed."""
        found = {self._locality_of(locator) for locator in locators}
        return next((locality for locality in (NEARLINE, STAGING) if locality in found), ONLINE)

    def stage(self, locators: Iterable[str]) -> list[str]:
        """Ask for blobs, unless a copy is here or on its way; returns those that are not here.  ServiceUnavailable."""
        found = {locator: self._locality_of(locator) for locator in locators}
        for locator, locality in found.items():
            if locality == NEARLINE:
                self.stage_part(parts(locator)[0])
        return [locator for locator, locality in found.items() if locality != ONLINE]

    def stage_part(self, part: str) -> None:
        """Ask for one copy, in a slow storage.  ServiceUnavailable."""
        name, own = self._member(part)
        self._slow[name].stage(own)
        log.info("blob %s was asked for", part)

    def recall(self, locators: Iterable[str]) -> None:
        """Nothing if all of these blobs can be read; else NotOnline, when those that cannot have been asked for."""
        try:
            away = self.stage(locators)
        except ServiceUnavailable as exc:
            raise NotOnline(f"the bytes are on a slow storage, which takes no more requests now: {exc}") from exc
        if away:
            raise NotOnline("the bytes are on a slow storage, and on their way back: try again later")

    # -- bad copies ----------------------------------------------------------------------------------------------------

    def suspect(self, part: str, exc: Exception) -> None:
        """A copy could not be read: others are tried first from now on, unless it is only far away."""
        if isinstance(exc, NotOnline):
            return
        with self._guard:
            if isinstance(exc, AWAY):
                self._avoided[self.storage_of(part)] = time.monotonic() + AVOIDED_S
                return
            new = part not in self._suspects and len(self._suspects) < SUSPECTS_MAX
            if new:
                self._suspects[part] = str(exc)
        if new:
            log.warning("copy %s is bad: vosfsd audit --repair mends it: %s", part, exc)

    # -- all of them ---------------------------------------------------------------------------------------------------

    def check(self, space: str) -> None:
        for member in self.members.values():
            member.check(space)

    def sweep(self, before_ns: int) -> None:
        for member in self.members.values():
            member.sweep(before_ns)

    def space(self) -> tuple[int, int]:
        return self.default.space()

    def close(self) -> None:
        for member in self.members.values():
            member.close()


def _located(name: str, own: str) -> str:
    return own if name == DEFAULT else f"{name}{_OF}{own}"
