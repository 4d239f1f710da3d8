"""HTTP/1.1 on trio sockets: framing, and moving of bodies, for both sides.

The only module that knows httptools (llhttp).  A parser sees one head at a time; bodies are counted here, received
straight into the caller's buffer, and bulk ones are moved by one worker thread each: 0.3 s of CPU per GiB, against
0.7-1.5 through asks and 1.6 with a hop per 64 KiB (spec: stack, sections 1 and 2).

What llhttp leaves open and request smuggling needs is refused here: missing or repeated Host, any transfer coding
but a single ``chunked``, bodies beside both length and coding, chunk extensions, heads over the named limits.
"""

import functools
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import httptools
import trio

from vosfs.errors import ProtocolError, TimedOut, TooLarge

HEAD_BYTES_MAX = 32 * 1024
"""Request line and headers together (nginx: 32 KiB, Apache: 8 KiB a line)."""
HEADERS_MAX = 100
"""As Apache's LimitRequestFields."""
CHUNK_LINE_BYTES_MAX = 1024
CHUNKS_IN_A_ROW = 500
TRAILER_BYTES_MAX = 8 * 1024
BULK_BYTES = 1 << 20
"""Buffer of a thread that moves a body: with 64 KiB a PUT costs 2.05 s of CPU per GiB, with 1 MiB 0.59."""
SEND_BYTES = 16 * BULK_BYTES
"""Of a file are sent by one call, and asked of the disk beforehand: a mount's longest fetch."""
FIRST_BYTES = 16 * 1024
"""Of a file go out by themselves: a cold disk gives them in 0.2 ms, and 256 KiB in 1.2."""
RECEIVE_BYTES = 64 * 1024
PATIENCE_MS = 20
"""How long a worker thread waits for a slow peer before trio does."""
TURN_S = 0.1
"""How long a worker thread waits for bytes that trickle before trio is asked whether anybody still wants them."""
STALL_S = 30.0
"""A peer that moves no byte of a body for this long is given up."""

Headers = dict[bytes, bytes]


class Head:
    """The start of a message, parsed."""

    __slots__ = ("method", "target", "status", "headers", "keep_alive", "length", "chunked")

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.status = 0
        self.headers: Headers = {}
        self.keep_alive = True
        self.length: int | None = None
        """Content-Length, if there is one."""
        self.chunked = False


class _Callbacks:
    """What httptools calls while it reads a head."""

    __slots__ = ("head", "complete", "_count")

    def __init__(self, head: Head) -> None:
        self.head = head
        self.complete = False
        self._count = 0

    def on_headers_complete(self) -> None:
        self.complete = True

    def on_url(self, url: bytes) -> None:
        self.head.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count += 1
        if self._count > HEADERS_MAX:
            raise TooLarge(f"more than {HEADERS_MAX} headers")
        headers = self.head.headers
        name, value = name.lower(), value.strip(b" \t")
        if name in headers:
            if name in (b"host", b"content-length", b"authorization", b"transfer-encoding", b"range"):
                raise ProtocolError(f"repeated header {name.decode('latin-1')}")
            value = headers[name] + b", " + value
        headers[name] = value


def _parse(parser_type: Any, data: bytes) -> tuple[Any, Head]:
    head = Head()
    callbacks = _Callbacks(head)
    parser = parser_type(callbacks)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserCallbackError as exc:
        if isinstance(exc.__context__, (TooLarge, ProtocolError)):
            raise exc.__context__ from None
        raise ProtocolError(f"malformed HTTP: {exc}") from exc
    except httptools.HttpParserError as exc:
        raise ProtocolError(f"malformed HTTP: {exc}") from exc
    version = parser.get_http_version()
    if not callbacks.complete or version not in ("1.0", "1.1"):
        raise ProtocolError("not a head of HTTP/1.0 or 1.1")
    # Asked after a message without a body, llhttp says yes whatever Connection says.
    connection = head.headers.get(b"connection", b"").lower()
    head.keep_alive = b"close" not in connection if version == "1.1" else b"keep-alive" in connection
    coding = head.headers.get(b"transfer-encoding")
    length = head.headers.get(b"content-length")
    if coding is not None:
        if coding.lower() != b"chunked" or length is not None or version == "1.0":
            raise ProtocolError("transfer coding other than a single 'chunked'")
        head.chunked = True
    elif length is not None:
        if not length.isdigit() or len(length) > 19:
            raise ProtocolError("Content-Length is not a number")
        head.length = int(length)
    return parser, head


def parse_request(data: bytes) -> Head:
    """A request head (all of it, nothing more).  ProtocolError, TooLarge."""
    parser, head = _parse(httptools.HttpRequestParser, data)
    head.method = parser.get_method().decode("ascii")
    if b"host" not in head.headers and parser.get_http_version() == "1.1":
        raise ProtocolError("no Host header")
    if head.length is None and not head.chunked:
        head.length = 0
    return head


def parse_response(data: bytes, method: str) -> Head:
    """A response head.  ProtocolError, TooLarge."""
    parser, head = _parse(httptools.HttpResponseParser, data)
    head.status = parser.get_status_code()
    if method == "HEAD" or head.status in (204, 304) or head.status < 200:
        head.length, head.chunked = 0, False
    return head


def remembered(parse: Callable[..., Head], heads_max: int, bytes_max: int) -> Callable[..., Head]:
    """``parse`` with so many of its latest answers kept, of heads up to ``bytes_max``: heads are values, and some come over and over."""
    again = functools.lru_cache(heads_max)(parse)
    return lambda data, *more: (again if len(data) <= bytes_max else parse)(data, *more)


# -- sockets ---------------------------------------------------------------------------------------------------


class Stream:
    """A connected non-blocking socket, plain or TLS, that trio waits for.

    TLS is an ``ssl.SSLSocket`` here: trio.SSLStream costs twice the CPU (spec: stack, section 1.4).
    """

    __slots__ = ("sock", "tls", "pending")

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.tls = isinstance(sock, ssl.SSLSocket)
        self.pending = b""
        """Received and not yet consumed."""

    async def receive(self, maximum: int = RECEIVE_BYTES) -> bytes:
        """Some bytes; empty at the end of the stream."""
        while True:
            try:
                return self.sock.recv(maximum)
            except (BlockingIOError, ssl.SSLWantReadError):
                await trio.lowlevel.wait_readable(self.sock)
            except ssl.SSLWantWriteError:
                await trio.lowlevel.wait_writable(self.sock)

    async def send(self, data: bytes | memoryview) -> None:
        """All of ``data``."""
        try:
            sent = self.sock.send(data)
            if sent == len(data):
                return
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            sent = 0
        view = memoryview(data)[sent:]
        while view:
            try:
                view = view[self.sock.send(view) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await trio.lowlevel.wait_writable(self.sock)
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(self.sock)

    async def receive_head(self) -> bytes:
        """Up to and including the empty line; empty if the peer closed before a byte.  TooLarge, ProtocolError."""
        data = self.pending or await self.receive()
        end = data.find(b"\r\n\r\n")
        while end < 0:
            if len(data) > HEAD_BYTES_MAX:
                raise TooLarge(f"head is longer than {HEAD_BYTES_MAX} bytes")
            more = await self.receive()
            if not more:
                if data.strip():
                    raise ProtocolError("connection closed inside a head")
                return b""
            # Only the tail can complete the empty line: a head sent byte by byte stays linear.
            searched = max(0, len(data) - 3)
            data += more
            end = data.find(b"\r\n\r\n", searched)
        if end > HEAD_BYTES_MAX:
            raise TooLarge(f"head is longer than {HEAD_BYTES_MAX} bytes")
        self.pending = data[end + 4 :]
        return data[: end + 4]

    def take(self, maximum: int) -> bytes:
        """What has arrived already, up to ``maximum``."""
        data = self.pending[:maximum]
        self.pending = self.pending[maximum:]
        return data

    def shutdown(self) -> None:
        """End all traffic: whoever waits on the socket, a thread too, is told at once."""
        try:
            # Not SSLSocket's own, which takes TLS away first: who reads on would be given what is encrypted for content.
            socket.socket.shutdown(self.sock, socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        """Close; nobody may be using the socket."""
        self.shutdown()
        self.sock.close()


class Chunks:
    """A chunked body, read strictly: hexadecimal sizes, no extensions, bounded trailers.

    What arrived is read by position and given back at the end, so that a million one-byte chunks cost a million
    steps and not a million copies; every CHUNKS_IN_A_ROW of them, others get a turn.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._data, self._at = stream.pending, 0
        stream.pending = b""
        self._left = 0
        self._count = 0
        self._done = False

    async def _more(self) -> None:
        data = await self._stream.receive()
        if not data:
            raise ProtocolError("connection closed inside a chunked body")
        self._data, self._at = self._data[self._at :] + data, 0

    async def _line(self) -> bytes:
        while (end := self._data.find(b"\r\n", self._at)) < 0:
            if len(self._data) - self._at > CHUNK_LINE_BYTES_MAX:
                raise ProtocolError("chunk size line is too long")
            await self._more()
        line = self._data[self._at : end]
        self._at = end + 2
        return line

    async def read(self) -> bytes:
        """Some bytes; empty at the end of the body.  ProtocolError if it is cut or malformed."""
        if self._done:
            return b""
        if self._left == 0:
            await self._next_chunk()
            if self._done:
                return b""
        if self._at == len(self._data):
            await self._more()
        data = self._data[self._at : self._at + self._left]
        self._at += len(data)
        self._left -= len(data)
        return data

    async def _next_chunk(self) -> None:
        if self._count and await self._line():
            raise ProtocolError("chunk is longer than its size")
        self._count += 1
        if self._count % CHUNKS_IN_A_ROW == 0:
            await trio.lowlevel.checkpoint()
        size = await self._line()
        if not size or len(size) > 15 or not all(c in b"0123456789abcdefABCDEF" for c in size):
            raise ProtocolError("malformed chunk size")
        self._left = int(size, 16)
        if self._left:
            return
        seen = 0
        while line := await self._line():
            seen += len(line)
            if seen > TRAILER_BYTES_MAX:
                raise TooLarge("trailers are too long")
        self._done = True
        self._stream.pending = self._data[self._at :]


# -- moving bodies, in worker threads ----------------------------------------------------------------------------


def readable(sock: socket.socket) -> bool:
    """Whether a read would not wait.  poll(2): select(2) cannot take descriptors above 1023."""
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(0))


def _blocked(sock: socket.socket, event: int) -> bool:
    """Whether the peer keeps a thread waiting for longer than is worth a thread."""
    poller = select.poll()
    poller.register(sock, event)
    return not poller.poll(PATIENCE_MS)


Moving = Iterator[int]
"""A body on its way: advanced in worker threads, it yields the event to wait for when the peer is slow, and trio
waits instead: forty slow clients must not hold forty threads."""


async def move(
    sock: socket.socket, moving: Moving, limiter: trio.CapacityLimiter | None = None, stall_s: float = STALL_S
) -> None:
    """See a body through.  TimedOut when no byte moves for ``stall_s``."""
    while event := await trio.to_thread.run_sync(next, moving, 0, limiter=limiter):
        wait = trio.lowlevel.wait_readable if event == select.POLLIN else trio.lowlevel.wait_writable
        with trio.move_on_after(stall_s) as scope:
            await wait(sock)
        if scope.cancelled_caught:
            raise TimedOut(f"no byte moved for {stall_s:.0f} s")


def receive_into(sock: socket.socket, view: memoryview, arrived: Callable[[int], None] = lambda count: None) -> Moving:
    """Fill ``view``, telling ``arrived`` how much of it is filled.  ProtocolError if the stream ends before."""
    at, turn_ends = 0, time.monotonic() + TURN_S
    while at < len(view):
        try:
            count = sock.recv_into(view[at:])
        except (BlockingIOError, ssl.SSLWantReadError):
            if _blocked(sock, select.POLLIN):
                yield select.POLLIN
            elif time.monotonic() > turn_ends:
                # Bytes that trickle: whoever waits for them has a deadline, which only trio can keep.
                yield select.POLLIN
                turn_ends = time.monotonic() + TURN_S
            continue
        except ssl.SSLWantWriteError:
            yield select.POLLOUT
            continue
        if count == 0:
            raise ProtocolError(f"connection closed {len(view) - at} bytes before the end of the body")
        at += count
        arrived(at)


def receive_body(sock: socket.socket, first: bytes, length: int, sink: Callable[[memoryview], None]) -> Moving:
    """Move ``length`` bytes, of which ``first`` are here already, into ``sink``, in pieces of up to 1 MiB."""
    if first:
        sink(memoryview(first))
    left = length - len(first)
    view = memoryview(bytearray(max(0, min(BULK_BYTES, left))))
    while left > 0:
        piece = view[:left]
        yield from receive_into(sock, piece)
        sink(piece)
        left -= len(piece)


def send_bytes(sock: socket.socket, data: bytes | memoryview) -> Moving:
    """Send all of ``data``."""
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except (BlockingIOError, ssl.SSLWantWriteError):
            if _blocked(sock, select.POLLOUT):
                yield select.POLLOUT
        except ssl.SSLWantReadError:
            yield select.POLLIN


def send_file(sock: socket.socket, fd: int, start: int, stop: int, heed: bool = False) -> Moving:
    """Send bytes of a file; with ``heed``, stop when the peer talks back."""
    tls = isinstance(sock, ssl.SSLSocket)
    most = FIRST_BYTES
    while start < stop:
        if heed and readable(sock):
            return
        try:
            if tls:
                data = os.pread(fd, min(BULK_BYTES, stop - start), start)
                count = len(data)
                yield from send_bytes(sock, data)
            else:
                count = os.sendfile(sock.fileno(), fd, start, min(most, stop - start))
        except BlockingIOError:
            if _blocked(sock, select.POLLOUT):
                yield select.POLLOUT
            continue
        if count == 0:
            raise ProtocolError("file ended before its length")
        start += count
        most = SEND_BYTES


_SHORT = {
    "commonName": "CN", "countryName": "C", "organizationName": "O", "organizationalUnitName": "OU",
    "localityName": "L", "stateOrProvinceName": "ST", "domainComponent": "DC", "emailAddress": "emailAddress",
    "userId": "UID",
}  # fmt: skip


def certified_names(sock: ssl.SSLSocket) -> tuple[str, ...]:
    """The distinguished names (RFC 4514) that a peer's verified certificate may speak for; empty without one.

    Its subject, and while that is a proxy's (RFC 3820: the issuer's name and one more CN) the issuer's.
    """
    found: dict[str, Any] = sock.getpeercert() or {}
    if not found.get("subject"):
        return ()
    names = [_name(found["subject"])]
    # The way down the chain that OpenSSL verified; before Python 3.13 only its own modules were told of it.
    for link in sock._sslobj.get_verified_chain():  # type: ignore[attr-defined]
        found = link.get_info()
        subject, issuer = found["subject"], found["issuer"]
        if subject[:-1] != issuer or subject[-1][0][0] != "commonName":
            break
        names.append(_name(issuer))
    return tuple(names)


def _name(parts: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    lines = ["+".join(f"{_SHORT.get(kind, kind)}={_escaped(value)}" for kind, value in part) for part in parts]
    return ",".join(reversed(lines))


def _escaped(value: str) -> str:
    return "".join("\\" + c if c in ',+"\\<>;' else c for c in value)


def will_send(fd: int, start: int, stop: int) -> None:
    """Have the disk begin with what ``send_file`` will be asked for, while its thread wakes up."""
    if fd >= 0:
        first = min(start + FIRST_BYTES, stop)
        os.posix_fadvise(fd, start, first - start, os.POSIX_FADV_WILLNEED)
        if first < stop:
            os.posix_fadvise(fd, first, min(SEND_BYTES, stop - first), os.POSIX_FADV_WILLNEED)


async def handshake(sock: socket.socket) -> None:
    """Finish a TLS handshake on a non-blocking socket."""
    assert isinstance(sock, ssl.SSLSocket)
    while True:
        try:
            sock.do_handshake()
            return
        except ssl.SSLWantReadError:
            await trio.lowlevel.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await trio.lowlevel.wait_writable(sock)


def http_date(seconds: float) -> str:
    """RFC 9110 section 5.6.7."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))
