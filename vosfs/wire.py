"""HTTP/1.1 on trio sockets: framing for both sides, and the client.

The only module that knows httptools (llhttp).  A parser sees one head at a time; bodies are counted here, received
straight into the caller's buffer, and bulk ones are moved by one worker thread each: 0.3 s of CPU per GiB, against
0.7-1.5 through asks and 1.6 with a hop per 64 KiB (spec: stack, sections 1 and 2).

What llhttp leaves open and request smuggling needs is refused here: missing or repeated Host, any transfer coding
but a single ``chunked``, bodies beside both length and coding, chunk extensions, heads over the named limits.
"""

import copy
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

import httptools
import trio

from vosfs.errors import InvalidArgument, ProtocolError, ServiceUnavailable, TimedOut, TooLarge

HEAD_BYTES_MAX = 32 * 1024
"""Request line and headers together (nginx: 32 KiB, Apache: 8 KiB a line)."""
HEADERS_MAX = 100
"""As Apache's LimitRequestFields."""
CHUNK_LINE_BYTES_MAX = 1024
CHUNKS_IN_A_ROW = 500
TRAILER_BYTES_MAX = 8 * 1024
BULK_BYTES = 1 << 20
"""Buffer of a thread that moves a body: with 64 KiB a PUT costs 2.05 s of CPU per GiB, with 1 MiB 0.59."""
RECEIVE_BYTES = 64 * 1024
PATIENCE_MS = 20
"""How long a worker thread waits for a slow peer before trio does."""
STALL_S = 30.0
"""A peer that moves no byte of a body for this long is given up."""
CONNECT_S = 10.0
CONNECTIONS_MAX = 16
"""Of one client to one server, idle ones included."""
ANSWER_BYTES_MAX = 64 << 20
"""Longest answer that is read into memory whole."""

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
            self.sock.shutdown(socket.SHUT_RDWR)
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


def _readable(sock: socket.socket) -> bool:
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


async def move(sock: socket.socket, moving: Moving, limiter: trio.CapacityLimiter | None = None) -> None:
    """See a body through.  TimedOut when no byte moves for STALL_S."""
    while event := await trio.to_thread.run_sync(next, moving, 0, limiter=limiter):
        wait = trio.lowlevel.wait_readable if event == select.POLLIN else trio.lowlevel.wait_writable
        with trio.move_on_after(STALL_S) as scope:
            await wait(sock)
        if scope.cancelled_caught:
            raise TimedOut(f"no byte moved for {STALL_S:.0f} s")


def receive_body(sock: socket.socket, first: bytes, length: int, sink: Callable[[memoryview], None]) -> Moving:
    """Move ``length`` bytes, of which ``first`` are here already, into ``sink``, in pieces of up to 1 MiB."""
    if first:
        sink(memoryview(first))
    left = length - len(first)
    if left <= 0:
        return
    view = memoryview(bytearray(min(BULK_BYTES, left)))
    filled = 0
    while left:
        try:
            count = sock.recv_into(view[filled:], min(len(view) - filled, left))
        except (BlockingIOError, ssl.SSLWantReadError):
            if _blocked(sock, select.POLLIN):
                yield select.POLLIN
            continue
        except ssl.SSLWantWriteError:
            yield select.POLLOUT
            continue
        if count == 0:
            raise ProtocolError(f"connection closed {left} bytes before the end of the body")
        filled += count
        left -= count
        if filled == len(view) or not left:
            sink(view[:filled])
            filled = 0


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
    while start < stop:
        if heed and _readable(sock):
            return
        try:
            if tls:
                data = os.pread(fd, min(BULK_BYTES, stop - start), start)
                count = len(data)
                yield from send_bytes(sock, data)
            else:
                count = os.sendfile(sock.fileno(), fd, start, min(8 * BULK_BYTES, stop - start))
        except BlockingIOError:
            if _blocked(sock, select.POLLOUT):
                yield select.POLLOUT
            continue
        if count == 0:
            raise ProtocolError("file ended before its length")
        start += count


# -- the client --------------------------------------------------------------------------------------------------


class Answer:
    """A response whose body was read."""

    __slots__ = ("status", "headers", "body")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


Segment = tuple[int, int, int]
"""(descriptor, start, stop): a run of a file to send."""

_FAILED = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError)


class HttpClient:
    """Kept connections to one origin.

    Every call has a deadline for its answer's head, and one for each stall of a body.  Raises ServiceUnavailable,
    TimedOut and ProtocolError; HTTP errors are answers.
    """

    def __init__(self, origin: str, deadline_s: float = STALL_S, context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgument(f"{origin!r} is not an http or https URL")
        # Constants
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.deadline_s = deadline_s
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (context or ssl.create_default_context()) if parts.scheme == "https" else None
        self._host_header = parts.netloc.rpartition("@")[2].encode("ascii")
        # Mutable state
        self._idle: list[Stream] = []
        """INVARIANT: connected, nothing pending, not in use."""
        self._slots = trio.CapacityLimiter(CONNECTIONS_MAX)

    def beside(self) -> "HttpClient":
        """A client of the same origin that shares the idle connections and has slots of its own."""
        other = copy.copy(self)
        other._slots = trio.CapacityLimiter(CONNECTIONS_MAX)
        return other

    def close(self) -> None:
        """Drop the idle connections."""
        while self._idle:
            self._idle.pop().close()

    def head(self, method: str, target: str, headers: Iterable[tuple[str, str]] = ()) -> bytes:
        """The invariable part of a request head, for callers who send many alike."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self._host_header.decode('ascii')}"]
        lines += [f"{name}: {value}" for name, value in headers]
        if any("\r" in line or "\n" in line for line in lines):
            raise InvalidArgument("a header holds a line break")
        return ("\r\n".join(lines) + "\r\n").encode("latin-1")

    async def _connect(self) -> Stream:
        try:
            with trio.fail_after(min(CONNECT_S, self.deadline_s)):
                stream = await trio.open_tcp_stream(self._host, self._port)
                # The socket leaves trio's object: from here on it is ours.
                raw = socket.socket(fileno=os.dup(stream.socket.fileno()))
                stream.socket.close()
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._tls is not None:
                    raw.setblocking(False)
                    raw = self._tls.wrap_socket(raw, server_hostname=self._host, do_handshake_on_connect=False)
                    await handshake(raw)
                return Stream(raw)
        except trio.TooSlowError as exc:
            raise TimedOut(f"{self.origin}: no connection within the deadline") from exc
        except OSError as exc:
            raise ServiceUnavailable(f"{self.origin}: {_reason(exc)}") from exc

    def _reusable(self) -> Stream | None:
        while self._idle:
            stream = self._idle.pop()
            # Readable while idle: the server closed it, or speaks out of turn.
            if _readable(stream.sock):
                stream.close()
                continue
            return stream
        return None

    async def request(
        self,
        head: bytes,
        body: bytes = b"",
        method: str = "POST",
        idempotent: bool = False,
        into: memoryview | None = None,
        deadline_s: float | None = None,
    ) -> Answer:
        """One request (``head`` from ``head()``) and its answer.

        With ``into``, a 206 body must fill it exactly and ``Answer.body`` is then empty.  ``idempotent``: try once
        more on a new connection when a kept one breaks.
        """
        message = b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body)
        # The wait for a connection counts too: behind sixteen hung requests the seventeenth must not start anew.
        # A bare scope and a slot taken without a checkpoint, because this is in every look-up's path: 20 µs less.
        with trio.CancelScope(deadline=trio.current_time() + (deadline_s or self.deadline_s)) as scope:
            try:
                self._slots.acquire_nowait()
            except trio.WouldBlock:
                await self._slots.acquire()
            try:
                return await self._attempt(message, method, idempotent, into)
            except _FAILED as exc:
                raise ServiceUnavailable(f"{self.origin}: {_reason(exc)}") from exc
            finally:
                self._slots.release()
        assert scope.cancelled_caught
        raise TimedOut(f"{self.origin}: no answer within the deadline")

    async def _attempt(self, message: bytes, method: str, idempotent: bool, into: memoryview | None) -> Answer:
        stream = self._reusable()
        if stream is not None:
            try:
                return await self._exchange(stream, message, method, into)
            except _FAILED:
                if not idempotent:
                    raise
        return await self._exchange(await self._connect(), message, method, into)

    async def _exchange(self, stream: Stream, message: bytes, method: str, into: memoryview | None) -> Answer:
        done = False
        try:
            await stream.send(message)
            answer, done = await self._answer(stream, method, into)
            return answer
        finally:
            if done:
                self._idle.append(stream)
            else:
                stream.close()

    async def upload(self, head: bytes, segments: list[Segment], method: str = "PUT") -> Answer:
        """Send runs of files as one body; the answer may come early (a refusal)."""
        length = sum(stop - start for _, start, stop in segments)
        message = b"%sContent-Length: %d\r\n\r\n" % (head, length)
        async with self._slots:
            stream = self._reusable() or await self._connect()
            done = False
            try:
                with trio.fail_after(self.deadline_s):
                    await stream.send(message)

                for fd, start, stop in segments:
                    await move(stream.sock, send_file(stream.sock, fd, start, stop, True))
                with trio.fail_after(self.deadline_s):
                    answer, done = await self._answer(stream, method, None)
                    # A refusal may have come before the body's end: then the connection is in the middle of it.
                    done = done and answer.status < 300
                return answer
            except trio.TooSlowError as exc:
                raise TimedOut(f"{self.origin}: no answer within the deadline") from exc
            except _FAILED as exc:
                raise ServiceUnavailable(f"{self.origin}: {_reason(exc)}") from exc
            finally:
                if done:
                    self._idle.append(stream)
                else:
                    stream.close()

    async def _answer(self, stream: Stream, method: str, into: memoryview | None) -> tuple[Answer, bool]:
        """Read an answer; whether the connection can be used again."""
        while True:
            data = await stream.receive_head()
            if not data:
                raise ProtocolError("connection closed before an answer")
            head = parse_response(data, method)
            if head.status >= 200:
                break
        if head.chunked:
            body = await _whole(Chunks(stream))
        elif head.length is None:
            body = await _rest(stream)
            return Answer(head.status, head.headers, body), False
        elif into is not None and head.status == 206:
            if head.length != len(into):
                raise ProtocolError(f"{head.length} bytes came, {len(into)} were asked for")
            await _fill(stream, into)
            body = b""
        else:
            if head.length > ANSWER_BYTES_MAX:
                raise TooLarge(f"answer of {head.length} bytes")
            body = stream.take(head.length)
            if len(body) < head.length:
                buffer = bytearray(head.length)
                buffer[: len(body)] = body
                await _fill(stream, memoryview(buffer)[len(body) :])
                body = bytes(buffer)
        return Answer(head.status, head.headers, body), head.keep_alive and not stream.pending


async def _fill(stream: Stream, view: memoryview) -> None:
    first = stream.take(len(view))
    view[: len(first)] = first
    at = len(first)
    while at < len(view):
        try:
            count = stream.sock.recv_into(view[at:])
        except (BlockingIOError, ssl.SSLWantReadError):
            with trio.fail_after(STALL_S):
                await trio.lowlevel.wait_readable(stream.sock)
            continue
        if count == 0:
            raise ProtocolError("connection closed inside a body")
        at += count


async def _whole(chunks: Chunks) -> bytes:
    parts, size = [], 0
    while data := await chunks.read():
        size += len(data)
        if size > ANSWER_BYTES_MAX:
            raise TooLarge("answer is too long")
        parts.append(data)
    return b"".join(parts)


async def _rest(stream: Stream) -> bytes:
    body = stream.take(len(stream.pending))
    while data := await stream.receive():
        body += data
        if len(body) > ANSWER_BYTES_MAX:
            raise TooLarge("answer is too long")
    return body


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


def _reason(exc: BaseException) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    if isinstance(exc, BaseExceptionGroup):
        return _reason(exc.exceptions[0])
    cause = exc.__cause__
    return _reason(cause) if isinstance(cause, (OSError, BaseExceptionGroup)) else str(exc)


def http_date(seconds: float) -> str:
    """RFC 9110 section 5.6.7."""
    return time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(seconds))
