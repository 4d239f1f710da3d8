"""The protocol of NGAS 12 (NG/AMS), and what is known of a server.

NGAS speaks HTTP/1.0 with a connection for each request.  The status of an answer says little: "not found" is 400, a
command that was refused may be 200, and a file found corrupt is a SUCCESS.  So status, document and NGAMS code are judged
together (``_judged``).  A range has only a start, and is answered with 200.
"""

import base64
import html
import json
import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from vosfs.backends.sums import Damaged
from vosfs.errors import InternalFault, ServiceUnavailable, StorageFull, TimedOut, VOSpaceError

T = TypeVar("T")

DEADLINE_S = 60.0
"""A request is tried until this much time has passed; a server that is silent for half of it is given up.  Bodies may take
longer, as long as each SEND_BYTES, or each piece that is read, arrives within it."""
CONNECT_S = 5.0
RETRY_AFTER_S = 30.0
"""A server that failed is asked last for so long."""
SEND_BYTES = 8 << 20
HEAD_BYTES_MAX = 64 << 10
DOCUMENT_BYTES_MAX = 1 << 20
LIST_BYTES_MAX = 32 << 20
"""Of one answer to QUERY: 60 000 rows."""
DISKS_S = 60.0
"""For so long it is remembered which disks are a server's: they are carried from host to host."""
MIME = "application/octet-stream"

_ELEMENT = r'<{}((?:\s+\w+="[^"]*")*)\s*/?>'
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_CODE = re.compile(r"NGAMS_(?:ER|AL)_\w{1,40}:(\d{4})")
_FULL = re.compile(r"Errno 28\b|No space left|DISK_SPACE|NO_DISKS|NO_TARG_DISK")
"""What it says of full disks: the system's own words, and what its messages are named."""
_UNAVAILABLE_FILE, _IMPROPER_STATE = "4019", "4015"


class Missing(Exception):
    """This server knows no such file."""


class Elsewhere(Exception):
    """Another server has the file: host and port."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(f"{host}:{port}")
        self.host, self.port = host, port


class Refused(InternalFault):
    """The server knows the request and does not want it; it would not do so at a second attempt."""


class Exchange:
    """One request and its answer, on a connection of their own.  Raises OSError; TimeoutError or BlockingIOError if it is too slow."""

    def __init__(self, server: "Server") -> None:
        # Dependencies
        self.server = server
        # Mutable state
        self.status = 0
        self.headers: dict[str, str] = {}
        self._rest = b""
        """What arrived behind the head."""
        self._sock = socket.create_connection((server.host, server.port), min(CONNECT_S, server.deadline_s))
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self.more_time()

    def more_time(self) -> None:
        """Bytes moved: the deadline is counted from now."""
        self._end = time.monotonic() + self.server.deadline_s

    def _limit(self) -> None:
        # The kernel keeps the time: Python's own timeouts make the socket non-blocking, and each MiB a dozen calls.
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        seconds, rest = divmod(min(left, self.server.deadline_s / 2), 1)
        limit = struct.pack("ll", int(seconds), max(int(rest * 1e6), 1))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._sock.setsockopt(socket.SOL_SOCKET, option, limit)

    def send(self, body: bytes | memoryview | IO[bytes], length: int) -> None:
        """Send bytes.  A server that refuses closes before it has read all: then its answer is there already."""
        try:
            for at in range(0, length, SEND_BYTES):
                size = min(SEND_BYTES, length - at)
                if self._poll.poll(0):
                    # It refuses, without reading all.
                    return self.answer()
                self.more_time()
                self._limit()
                if isinstance(body, bytes | memoryview):
                    self._sock.sendall(memoryview(body)[at : at + size])
                else:
                    while size:
                        sent = os.sendfile(self._sock.fileno(), body.fileno(), at, size)
                        at, size = at + sent, size - sent
        except (BrokenPipeError, ConnectionResetError):
            self.answer()
        return None

    def answer(self) -> None:
        """Wait for status and headers."""
        if not self.status:
            self.more_time()
            self._head()

    def _head(self) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            self._limit()
            got = self._sock.recv(HEAD_BYTES_MAX)
            if not got or len(data) > HEAD_BYTES_MAX:
                raise ConnectionError("no answer")
            data += got
        head, _, self._rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        found = re.match(r"HTTP/1\.[01] (\d{3})\b", first)
        if not found:
            raise ConnectionError("not HTTP")
        self.status = int(found.group(1))
        for line in lines:
            name, _, value = line.partition(":")
            self.headers.setdefault(name.lower(), value.strip())

    def receive(self, view: memoryview) -> int:
        """Read until it is full, or to the end; returns how many bytes came."""
        self.more_time()
        at = min(len(self._rest), len(view))
        if at:
            view[:at] = self._rest[:at]
            self._rest = self._rest[at:]
        while at < len(view):
            self._limit()
            got = self._sock.recv_into(view[at:], 0, socket.MSG_WAITALL)
            if not got:
                break
            at += got
        return at

    def document(self, bytes_max: int = DOCUMENT_BYTES_MAX) -> bytes:
        """The answer's body, which is short.  Damaged if it breaks off."""
        length = self.headers.get("content-length", "")
        size = int(length) if length.isdecimal() else bytes_max
        if size > bytes_max:
            raise Damaged(f"{self.server} answers with {size} bytes")
        buffer = bytearray(size)
        got = self.receive(memoryview(buffer))
        if length and got < size:
            raise Damaged(f"{self.server}: its answer breaks off")
        return bytes(buffer[:got])

    def close(self) -> None:
        self._sock.close()


def _attributes(document: str, element: str) -> dict[str, str]:
    """The attributes of the first element of a name; no entity of the document's own is looked at."""
    found = re.search(_ELEMENT.replace("{}", element), document)
    return {name: html.unescape(value) for name, value in _ATTRIBUTE.findall(found.group(1))} if found else {}


def _archiving(file_id: str) -> dict[str, str]:
    return {"filename": file_id, "mime_type": MIME, "crc_variant": "crc32"}


class Server:
    """One NGAS server, as far as is known of it."""

    def __init__(self, host: str, port: int, login: tuple[str, str] = ("", ""), deadline_s: float = DEADLINE_S) -> None:
        # Constants
        self.host = host
        self.port = port
        self.deadline_s = deadline_s
        self._authorization = ""
        if login[0]:
            self._authorization = "Authorization: Basic " + base64.b64encode(":".join(login).encode()).decode() + "\r\n"
        # Mutable state
        self.failed_at = float("-inf")
        self.silent = False
        """It failed by not answering."""
        self.caches: bool | None = None
        """Whether it is a caching server, which removes by CACHEDEL; None: not known yet."""
        self._disks: frozenset[str] = frozenset()
        self._disks_at = float("-inf")

    def __repr__(self) -> str:
        return f"NGAS {self.host}:{self.port}"

    def failing(self) -> bool:
        """Whether it failed a short time ago."""
        return time.monotonic() - self.failed_at < RETRY_AFTER_S

    def failed(self, silent: bool = False) -> None:
        """It is asked last for a while; when it is back it may be set up differently."""
        self.failed_at, self.silent = time.monotonic(), silent
        self._disks_at, self.caches = float("-inf"), None

    @contextmanager
    def _translated(self) -> Iterator[None]:
        # Without the cause: it tells nothing more, and may hold what was sent.
        try:
            yield
        except (TimeoutError, BlockingIOError):
            raise TimedOut(f"{self} does not answer") from None
        except OSError:
            raise ServiceUnavailable(f"no connection to {self}, or it breaks off") from None

    @contextmanager
    def ask(
        self, command: str, pars: dict[str, str], headers: dict[str, str] | None = None,
        body: bytes | IO[bytes] = b"", length: int = 0,
    ) -> Iterator[Exchange]:  # fmt: skip
        """The answer to one command, whatever it says, while the block lasts."""
        exchange = self.begin(command, pars, headers, length)
        try:
            with self._translated():
                exchange.send(body, length)
                exchange.answer()
                yield exchange
        finally:
            exchange.close()

    def begin(
        self, command: str, pars: dict[str, str], headers: dict[str, str] | None = None, length: int = 0
    ) -> Exchange:
        """A request whose body, of ``length`` bytes, is still to be sent, for whoever closes it."""
        fields = {"Host": f"{self.host}:{self.port}", "Connection": "close"} | (headers or {})
        if length:
            fields |= {"Content-Length": str(length)}
        target = f"/{command}?{urlencode(pars, quote_via=quote)}" if pars else f"/{command}"
        head = f"{'POST' if length else 'GET'} {target} HTTP/1.1\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + self._authorization + "\r\n"
        with self._translated():
            exchange = Exchange(self)
            try:
                exchange.send(head.encode(), len(head))
            except OSError:
                exchange.close()
                raise
        return exchange

    def send(self, exchange: Exchange, data: memoryview) -> None:
        """Send some bytes of a body."""
        with self._translated():
            exchange.send(data, len(data))
            if exchange.status:
                self._judged(exchange)
                raise ConnectionError

    def fill(self, exchange: Exchange, view: memoryview) -> None:
        """Read so many bytes of an answer."""
        with self._translated():
            if exchange.receive(view) < len(view):
                raise ConnectionError

    def _judged(self, exchange: Exchange) -> str:
        """The document of an answer that means success."""
        if exchange.status == 303:
            url = urlsplit(exchange.headers.get("location", ""))
            raise Elsewhere(url.hostname or "", url.port or 80)
        # One of 503 has no document, and the connection is reset behind it.
        text = "" if exchange.status >= 500 else exchange.document().decode("utf-8", "replace")
        status = _attributes(text, "Status")
        message = " ".join(status.get("Message", "").split())[:300]
        found = _CODE.search(message)
        code = found.group(1) if found else ""
        if exchange.status == 200 and status.get("Status") == "SUCCESS" and not code:
            return text
        said = f"{self} answers {exchange.status} {message}".rstrip()
        if code == _UNAVAILABLE_FILE:
            raise Missing(said)
        if message.startswith("Checksum error") or exchange.status == 200 and not status:
            raise Damaged(said)
        if _FULL.search(message) or exchange.status == 507:
            raise StorageFull(said)
        # Not PermissionDenied: the caller has every right, and a mount keeps what it could not save yet.
        if code == _IMPROPER_STATE or exchange.status >= 500 or exchange.status in (401, 403, 429):
            raise ServiceUnavailable(said)
        raise Refused(said)

    def command(self, command: str, **pars: str) -> str:
        """The document that a command gives."""
        with self.ask(command, pars) as exchange:
            return self._judged(exchange)

    def status(self) -> dict[str, str]:
        """``State``, ``HostId`` and more of the server itself."""
        return _attributes(self.command("STATUS"), "Status")

    def query(self, query: str, **pars: str) -> list[dict[str, Any]] | None:
        """Rows of its database; None if they are more than fit LIST_BYTES_MAX."""
        with self.ask("QUERY", {"query": query, "format": "json"} | pars) as exchange:
            if exchange.status != 200:
                self._judged(exchange)
            length = exchange.headers.get("content-length", "")
            if length.isdecimal() and int(length) > LIST_BYTES_MAX:
                return None
            try:
                rows = json.loads(exchange.document(LIST_BYTES_MAX))
            except ValueError:
                raise Damaged(f"{self}: its rows are not readable") from None
        if not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise Damaged(f"{self}: its rows are not readable")
        return rows

    def files_like(self, pattern: str) -> list[dict[str, Any]] | None:
        """Rows of files on its own disks whose id is like a pattern of SQL; None if they are too many."""
        rows = self.query("files_like", like=pattern)
        disks = self.disks() if rows else frozenset()
        return None if rows is None else [row for row in rows if row.get("disk_id") in disks]

    def disks(self) -> frozenset[str]:
        """Its own disks: servers of a cluster share their database, and list the others' too."""
        if time.monotonic() - self._disks_at > DISKS_S:
            name = self.status().get("HostId")
            rows = self.query("disks_list") or []
            self._disks = frozenset(str(row.get("disk_id")) for row in rows if row.get("host_id") == name)
            self._disks_at = time.monotonic()
        return self._disks

    def archive(self, file_id: str, body: bytes | IO[bytes], length: int, crc32: int) -> None:
        """Make a file, once.  Damaged if the server got anything else than these bytes."""
        with self.ask("QARCHIVE", _archiving(file_id), {"NGAS-File-CRC": str(crc32)}, body, length) as exchange:
            self._same(self._judged(exchange), file_id, length, crc32)

    def archiving(self, file_id: str, length: int) -> Exchange:
        """The same for bytes that come one after the other: ``send`` and ``archived``."""
        return self.begin("QARCHIVE", _archiving(file_id), length=length)

    def archived(self, exchange: Exchange, file_id: str, length: int, crc32: int) -> None:
        """All bytes were sent."""
        with self._translated():
            exchange.answer()
            self._same(self._judged(exchange), file_id, length, crc32)

    def confirm(self, file_id: str, length: int, crc32: int | None) -> None:
        """Missing if nobody in its cluster has a file, Damaged if it has another."""
        self._same(self.command("STATUS", file_id=file_id), file_id, length, crc32)

    def _same(self, document: str, file_id: str, length: int, crc32: int | None) -> None:
        got = _attributes(document, "FileStatus")
        checksum = got.get("Checksum") if crc32 is None else str(crc32)
        if (got.get("FileId"), got.get("FileSize"), got.get("Checksum")) != (file_id, str(length), checksum):
            raise Damaged(f"{self}: file {file_id} is not what was written")

    def retrieve(self, file_id: str, start: int, length: int) -> Exchange:
        """The bytes from ``start`` on of a file of this length, for whoever closes it."""
        # A start at the end or behind it is answered with a negative length.
        assert start < length
        exchange = self.begin("RETRIEVE", {"file_id": file_id}, {"Range": f"bytes={start}-"} if start else None)
        try:
            with self._translated():
                exchange.answer()
                if exchange.status != 200:
                    self._judged(exchange)
            ranges = exchange.headers.get("content-range", f"bytes {start}-{length - 1}/{length}" if not start else "")
            if exchange.headers.get("content-length") != str(length - start) or ranges != (
                f"bytes {start}-{length - 1}/{length}"
            ):
                raise Damaged(f"{self}: file {file_id} has not {length} bytes")
        except (VOSpaceError, Damaged, Missing, Elsewhere):
            exchange.close()
            raise
        return exchange

    def remove(self, file_id: str) -> list[dict[str, str]]:
        """Remove its own copies of a file, in all versions.  Returns those that a cache only promised to remove.

        On a caching server CACHEDEL is done at the next pass of its cache, or never if the cache did not know the file yet;
        on others it fails, and DISCARD removes at once.  REMFILE would ask for three copies.
        """
        promised = []
        for copy in self.copies(file_id):
            if self.caches is not False:
                try:
                    self.command("CACHEDEL", **copy)
                    self.caches = True
                    promised.append(copy)
                    continue
                except Missing:
                    continue
                except Refused:
                    # 'NoneType' object has no attribute 'execute': there is no cache.
                    if self.caches:
                        raise
            try:
                self.command("DISCARD", **copy, execute="1")
                self.caches = False
            except Missing:
                continue
        if not promised and self.copies(file_id):
            raise ServiceUnavailable(f"{self} removed file {file_id} and has it still")
        return promised

    def copies(self, file_id: str) -> list[dict[str, str]]:
        """Its own copies of a file, as the parameters that name them."""
        # ``_`` and ``%`` are anything in a pattern.
        rows = [row for row in self.files_like(file_id) or [] if row.get("file_id") == file_id]
        return [
            {"disk_id": str(r["disk_id"]), "file_id": file_id, "file_version": str(r.get("file_version", 1))}
            for r in rows
        ]
