"""Blobs as files of NGAS, the archive system of ALMA, the MWA and others: one or several servers, below one prefix.

A blob is one file, made once under an id of its own: two writers of one id lose data there.  Its locator, which is part
of the id, holds its length, and the CRC-32 if it is one block; the CRC-32s of the blocks of longer ones are in a file
beside it.  Every block is checked before a byte of it is given out: NGAS itself checks when a file arrives and never when
it is read.

It wants to know a file's length first.  A long blob whose length nobody announced waits in a nameless local file until it
is whole.  Empty blobs, which NGAS does not take, are their locators alone.
"""

import logging
import os
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from vosfs import checksum
from vosfs.backends.failover import Servers
from vosfs.backends.ngams import DEADLINE_S, Exchange, Server
from vosfs.backends.ngasblobs import BLOCK_BYTES, LOCATOR, SUMS, Reader, Writer, parts
from vosfs.backends.sums import KeptSums, blocks, checked, packed_bytes
from vosfs.config import StorageConfig, credentials
from vosfs.errors import (
    InternalFault,
    QuietError,
    VOSpaceError,
)

log = logging.getLogger(__name__)

PROMISES_MAX = 10_000
"""Removals that caches promised and that are looked after; the collector comes upon what is forgotten here."""
PROMISE_S = 15.0
"""When a promised removal is looked after, and asked for again."""
DEFAULT_PREFIX = "vosfs"
DEFAULT_PORT = 7777

# NGAS keeps ids of 64 characters at most: 12 + 1 + 45 + 5.  It finds out the type of what it sends on by the extension.
_PREFIX = re.compile(r"[a-z0-9][a-z0-9-]{0,11}")
EXTENSION = ".bin"


# -- the backend -----------------------------------------------------------------------------------------------------


class NgasBackend:
    """Backend (see ``backend.py`` for every method's contract) of files whose ids begin with a prefix."""

    def __init__(self, servers: Servers, prefix: str, spool: Path) -> None:
        # Dependencies
        self.servers = servers
        # Constants
        self._prefix = prefix
        self._spool = spool
        # Mutable state
        self._guard = threading.Lock()
        self._kept = KeptSums()
        self._promises: OrderedDict[tuple[Server, str], float] = OrderedDict()
        """Server and file id -> when its cache promised to remove it; INVARIANT: at most PROMISES_MAX, oldest first."""

    def __repr__(self) -> str:
        return f"NgasBackend({', '.join(map(repr, self.servers.all))}, {self._prefix})"

    def file_id(self, locator: str, kind: str = "") -> str:
        """What a blob, or its sums, is called there."""
        return f"{self._prefix}-{locator}{kind}{EXTENSION}"

    def spool(self) -> IO[bytes]:
        """A new file for what is written, which has no name and so cannot be left over."""
        self._spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        return tempfile.TemporaryFile(dir=self._spool, buffering=0)

    # -- the start ---------------------------------------------------------------------------------------------------

    def check(self, space: str) -> None:
        states, failure = self.servers.reachable(Server.status)
        online = [state for state in states if state.get("State") == "ONLINE"]
        if not online:
            why = "none of them is ONLINE" if states else str(failure)
            raise QuietError(f"{self}: {why}: see [storage] objects, and [storage] credentials_file for a password")
        if failure is not None or len(online) < len(self.servers.all):
            log.warning("%s: not all servers can be used: %s", self, failure or "one is OFFLINE")
        try:
            self._own(space)
            self._probe()
        except VOSpaceError as exc:
            raise QuietError(f"{self}: blobs cannot be kept there: {exc}") from None

    def _own(self, space: str) -> None:
        """Keep the space's name in the id of a file, as two ids need no order: of one id's two writers one may vanish."""
        name = sha256(space.encode()).hexdigest()[:32]
        mark = f"{self._prefix}-space-{name}{EXTENSION}"
        is_mark = re.compile(rf"{self._prefix}-space-[0-9a-f]{{32}}{re.escape(EXTENSION)}")

        def marked(server: Server) -> set[str]:
            rows = server.query("files_like", like=f"{self._prefix}-space-%") or []
            return {name for row in rows if is_mark.fullmatch(name := str(row.get("file_id")))}

        def make(server: Server) -> None:
            found = marked(server)
            made = not found
            if made:
                server.archive(mark, name.encode(), len(name), checksum.crc32(name.encode()))
                found = marked(server)
            if others := sorted(found - {mark}):
                if made:
                    server.remove(mark)
                raise QuietError(
                    f"{self}: the blobs of another space are there: choose another prefix in [storage] objects, or "
                    f"remove the file {others[0]!r} if that space is no more"
                )

        done, failure = self.servers.reachable(make)
        if not done and failure is not None:
            raise failure

    def _probe(self) -> None:
        writer = self.create()
        writer.write(b"vosfs")
        blob = writer.finish(False)
        reader = self.open(blob.locator, 0, blob.length)
        try:
            if reader.read(0, blob.length) != b"vosfs":
                raise InternalFault("what is written there comes back as something else")
        finally:
            reader.close()
        self._remove([self.file_id(blob.locator)], [server for server in self.servers.all if not server.failing()])

    # -- blobs -------------------------------------------------------------------------------------------------------

    def create(self, length: int = 0) -> Writer:
        return Writer(self, length)

    def open(self, locator: str, start: int = 0, stop: int = 0) -> Reader:
        length, crc32 = parts(locator)
        got, at = None, blocks(start, stop, length, BLOCK_BYTES)[0]
        if 0 <= start < min(stop, length):
            got = self.retrieve(locator, at)
        elif length:
            name = self.file_id(locator)
            self.servers.tried(lambda server: server.confirm(name, length, crc32), f"blob {locator}")
        return Reader(self, locator, got, at)

    def retrieve(self, locator: str, at: int) -> Exchange:
        """An answer with a blob's bytes from ``at`` on."""
        name, length = self.file_id(locator), parts(locator)[0]
        return self.servers.tried(lambda server: server.retrieve(name, at, length), f"blob {locator}")

    def sums(self, locator: str) -> bytes:
        """The packed sums of a blob."""
        length, crc32 = parts(locator)
        if crc32 is not None:
            return crc32.to_bytes(4, "little")
        known = self._kept.get(locator)
        if known is not None:
            return known
        name, size = self.file_id(locator, SUMS), packed_bytes(length, BLOCK_BYTES)

        def fetch(server: Server) -> bytes:
            exchange = server.retrieve(name, 0, size)
            buffer = bytearray(size)
            try:
                server.fill(exchange, memoryview(buffer))
            finally:
                exchange.close()
            return checked(bytes(buffer), length, BLOCK_BYTES, f"blob {locator}")

        packed = self.servers.tried(fetch, f"checksums of blob {locator}")
        self._kept.keep(locator, packed)
        return packed

    def open_now(self, locator: str) -> None:
        return None

    def sync(self, locators: Iterable[str]) -> None:
        """NGAS has no command for it."""

    # -- the end of blobs --------------------------------------------------------------------------------------------

    def remove(self, locator: str, patient: bool = True) -> None:
        """Without patience, servers that were silent a moment ago are not asked."""
        length = parts(locator)[0]
        self._kept.forget(locator)
        names = [self.file_id(locator), self.file_id(locator, SUMS)]
        self._keep_promises()
        servers = [s for s in self.servers.all if patient or not (s.silent and s.failing())]
        self._remove(names[: (length > 0) + (length > BLOCK_BYTES)], servers)

    def _remove(self, names: Sequence[str], servers: Sequence[Server]) -> None:
        """Remove files at servers.  The last failure, when all were asked: one that does not answer may have a copy."""

        def drop(server: Server) -> None:
            for name in names:
                if server.remove(name):
                    self._promised(server, name)

        _, failure = Servers(servers).reachable(drop)
        if failure is not None:
            raise failure

    def _promised(self, server: Server, name: str) -> None:
        with self._guard:
            self._promises[server, name] = time.monotonic()
            self._promises.move_to_end((server, name))
            if len(self._promises) > PROMISES_MAX:
                self._promises.popitem(last=False)

    def _keep_promises(self) -> None:
        """See that caches removed what they promised to, and ask again for what is still there."""
        late = time.monotonic() - PROMISE_S
        with self._guard:
            due = [key for key, at in self._promises.items() if at <= late]
            for key in due:
                del self._promises[key]
        for server, name in due:
            try:
                self._remove([name], [server])
            except VOSpaceError as exc:
                # The collector comes upon it in some hours.
                log.info("%s, which a cache was to remove: %s", name, exc)

    def locators(self, before_ns: int) -> Iterator[str]:
        self._keep_promises()
        return self._listed("", before_ns)

    def _listed(self, start: str, before_ns: int) -> Iterator[str]:
        """Blobs whose locators begin so; page by page, where a page is what begins with one more digit."""
        newest: dict[str, int] = {}
        pages, failure = self.servers.reachable(lambda server: server.files_like(f"{self._prefix}-{start}%"))
        if not pages and failure is not None:
            raise failure
        if None in pages:
            for digit in "0123456789abcdef":
                yield from self._listed(start + digit, before_ns)
            return
        for row in (row for page in pages for row in page or ()):
            name = str(row.get("file_id"))
            locator = name.removeprefix(self._prefix + "-").removesuffix(EXTENSION).removesuffix(SUMS)
            if LOCATOR.fullmatch(locator) and name in (self.file_id(locator), self.file_id(locator, SUMS)):
                newest[locator] = max(newest.get(locator, 0), _time_ns(row.get("ingestion_date")))
        for locator, at_ns in newest.items():
            if at_ns < before_ns:
                yield locator

    def sweep(self, before_ns: int) -> None:
        self._keep_promises()

    def space(self) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        """Nothing is held."""


def _time_ns(date: object) -> int:
    """A time as NGAS writes it, which is UTC; what is not readable is young."""
    try:
        return int(datetime.fromisoformat(str(date)).replace(tzinfo=UTC).timestamp() * 1e9)
    except ValueError:
        return 1 << 62


# -- configuration ---------------------------------------------------------------------------------------------------


def connect(storage: StorageConfig, base: Path, deadline_s: float = DEADLINE_S) -> NgasBackend:
    """The backend that a configuration names.  QuietError for what cannot be meant; nothing is asked of the network."""
    likeness = f"[storage] objects: {storage.objects!r} is not like ngas://HOST:PORT,HOST:PORT/PREFIX"
    for name in ("endpoint", "endpoint_ca", "region", "redirect"):
        if getattr(storage, name):
            raise QuietError(f"[storage] {name} is about S3; NGAS servers are named in objects: ngas://HOST:PORT,...")
    url = urlsplit(storage.objects)
    prefix = url.path.strip("/") or DEFAULT_PREFIX
    if "@" in url.netloc:
        raise QuietError("[storage] objects: a password for NGAS belongs into credentials_file")
    if url.query or url.fragment or not _PREFIX.fullmatch(prefix):
        raise QuietError(f"{likeness}, with a PREFIX of up to 12 small letters, digits and hyphens")
    login = credentials(base / storage.credentials_file) if storage.credentials_file else {}
    if unknown := login.keys() - {"ngas_user", "ngas_password"}:
        raise QuietError(f"{storage.credentials_file}: unknown name among {', '.join(sorted(unknown))}")
    user = login.get("ngas_user") or os.environ.get("NGAS_USER", "")
    password = login.get("ngas_password") or os.environ.get("NGAS_PASSWORD", "")
    servers = []
    for part in url.netloc.split(","):
        try:
            address = urlsplit(f"//{part}")
            host, port = address.hostname, address.port or DEFAULT_PORT
        except ValueError:
            raise QuietError(likeness) from None
        if not host:
            raise QuietError(likeness)
        servers.append(Server(host, port, (user, password), deadline_s))
    return NgasBackend(Servers(servers, deadline_s), prefix, base / storage.directory)
