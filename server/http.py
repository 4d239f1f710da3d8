"""The HTTP/1.1 server engine on trio.

It owns sockets, deadlines and limits, and knows nothing of VOSpace: a request becomes a ``Request``, the
application's ``Response`` becomes bytes.  20 µs of CPU per small request, against 280-400 for Hypercorn.
"""

import contextlib
import logging
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from http import HTTPStatus

import trio

from vosfs import wire
from vosfs.errors import ProtocolError, TooLarge, VOSpaceError

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 1000
"""At once; more wait in the kernel's backlog."""
BACKLOG = 512
IDLE_S = 75.0
"""A kept connection without a request (nginx: 75 s), at least; up to SPARE_MAX times that after one."""
HEAD_S = 20.0
"""From a head's first byte to its last, and for a body that is read into memory."""
DRAIN_BYTES_MAX = 256 * 1024
"""An unread body up to this length is read away to keep the connection; a longer one costs it."""
LINGER_S = 5.0
LINGER_BYTES_MAX = 256 << 20
"""How long, and how much, a peer may go on sending to a connection that is being closed."""
INLINE_BURST = 16
"""Requests of one pipelining client before others get a turn."""
SPARE, SPARE_MAX = 1.5, 3.0
"""How much further ahead than it must be a deadline is set, so that the next request finds it far enough, and may be."""
SHORT_BYTES = 16 * 1024
"""An answer up to this length goes into the socket's buffer, and has what is left of the request's deadline."""
REPEATED_MAX = 512
"""Heads remembered as parsed, of up to REPEATED_BYTES_MAX each."""
REPEATED_BYTES_MAX = 1024
BULK_THREADS_MAX = 40
"""Bodies moved at once, each by a thread; more wait."""

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


_parse = wire.remembered(wire.parse_request, REPEATED_MAX, REPEATED_BYTES_MAX)


class Request:
    """One request.  The body is read at most once, by ``read`` or by ``receive``."""

    __slots__ = ("method", "path", "query", "headers", "user", "shown", "_head", "_connection", "_begun", "_whole")

    def __init__(self, head: wire.Head, connection: "Connection") -> None:
        self.method = head.method
        target = head.target
        if not target.startswith(b"/"):
            # Absolute form, as sent to proxies (RFC 9112 section 3.2.2).
            scheme, _, rest = target.partition(b"://")
            if scheme.lower() not in (b"http", b"https"):
                raise ProtocolError("request target is neither a path nor an http URL")
            target = b"/" + rest.partition(b"/")[2]
        path, _, query = target.partition(b"?")
        self.path = path.decode("latin-1")
        self.query = query.decode("latin-1")
        self.headers = head.headers
        self.user = ""
        """Who asks, once the application knows."""
        self.shown = self.path[:200]
        """The path, as logs show it."""
        self._head = head
        self._connection = connection
        self._begun = False
        self._whole = not (head.chunked or head.length)
        """INVARIANT: set when the connection stands behind the body's last byte."""

    def header(self, name: bytes) -> str:
        """A header's value, or the empty string."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def certificate(self) -> tuple[str, ...]:
        """Names that the client's certificate proves, see ``wire.certified_names``; empty without one."""
        return self._connection.certificate

    def deserted(self) -> bool:
        """Whether whoever sent this has closed the connection since, as far as that can be seen without reading."""
        sock = self._connection.stream.sock
        if isinstance(sock, ssl.SSLSocket):
            return False
        try:
            return sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    @property
    def length(self) -> int | None:
        """Content-Length; None for a chunked body."""
        return None if self._head.chunked else self._head.length

    @property
    def drainable(self) -> bool:
        """Whether what is left of the body is all of it, and short."""
        return not self._begun and self.length is not None and self.length <= DRAIN_BYTES_MAX

    @property
    def whole(self) -> bool:
        """Whether the next bytes on the connection are the next request's."""
        return self._whole

    async def _continue(self) -> None:
        self._begun = True
        if self.headers.get(b"expect", b"").lower() == b"100-continue":
            await self._connection.stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    async def read(self, limit: int) -> bytes:
        """The whole body.  TooLarge over ``limit`` bytes; ProtocolError if it ends early."""
        head, connection = self._head, self._connection
        if head.length is not None and head.length > limit:
            raise TooLarge(f"body of {head.length} bytes; the limit is {limit}")
        if self._whole:
            return b""
        if head.length is not None and head.length <= len(connection.stream.pending):
            # It came with the head, as a mount's do: nothing to wait for, so no deadline (10 µs for each that is set).
            self._begun = self._whole = True
            return connection.stream.take(head.length)
        connection.scope.deadline = trio.current_time() + HEAD_S
        await self._continue()
        if head.length is not None:
            body = await self._exactly(head.length)
        else:
            body = await self._all_chunks(limit)
        self._whole = True
        connection.scope.deadline = trio.current_time() + connection.server.deadline_s
        return body

    async def _exactly(self, length: int) -> bytes:
        stream = self._connection.stream
        body = stream.take(length)
        if len(body) == length:
            return body
        pieces, left = [body], length - len(body)
        while left:
            data = await stream.receive(min(left, wire.BULK_BYTES))
            if not data:
                raise ProtocolError("body ended early")
            pieces.append(data)
            left -= len(data)
        return b"".join(pieces)

    async def _all_chunks(self, limit: int) -> bytes:
        parts, size = [], 0
        chunks = wire.Chunks(self._connection.stream)
        while data := await chunks.read():
            size += len(data)
            if size > limit:
                raise TooLarge(f"body is longer than {limit} bytes")
            parts.append(data)
        return b"".join(parts)

    async def receive(self, sink: Callable[[memoryview], None]) -> None:
        """Move the body into ``sink``, which is called in a worker thread.  ProtocolError if it ends early."""
        head, connection = self._head, self._connection
        if self._whole:
            return
        # Each byte has its own: see wire.move.
        connection.scope.deadline = float("inf")
        try:
            await self._continue()
            stream = connection.stream
            if head.length is not None:
                first = stream.take(head.length)
                await wire.move(
                    stream.sock, wire.receive_body(stream.sock, first, head.length, sink), connection.server.bulk
                )
            else:
                await self._receive_chunks(sink)
            self._whole = True
        finally:
            connection.scope.deadline = trio.current_time() + connection.server.deadline_s

    async def _receive_chunks(self, sink: Callable[[memoryview], None]) -> None:
        chunks = wire.Chunks(self._connection.stream)
        parts: list[bytes] = []
        size = 0
        data = b"-"
        while data:
            with trio.fail_after(wire.STALL_S):
                data = await chunks.read()
            parts.append(data)
            size += len(data)
            if size >= wire.BULK_BYTES or (size and not data):
                whole = memoryview(b"".join(parts))
                await trio.to_thread.run_sync(sink, whole, limiter=self._connection.server.bulk)
                parts, size = [], 0


class Runs:
    """A response body made of byte runs, sent by a worker thread: files by sendfile(2), the rest from memory."""

    def __init__(self, length: int, send: Callable[[socket.socket], wire.Moving], close: Callable[[], None]) -> None:
        self.length = length
        self.send = send
        self.close = close


Body = bytes | Runs | AsyncGenerator[bytes]


class Response:
    """One answer.  An iterator body is sent chunked, as it comes."""

    __slots__ = ("status", "headers", "body")

    def __init__(self, status: int, headers: list[tuple[str, str]] | None = None, body: Body = b"") -> None:
        self.status = status
        # Its own: what answers on the way out add is of this one, and what they are given may be common to many.
        self.headers = [*headers] if headers is not None else []
        self.body = body


Application = Callable[[Request], Awaitable[Response]]


class Connection:
    """One client."""

    def __init__(self, server: "Server", stream: wire.Stream) -> None:
        self.server = server
        self.stream = stream
        self.scope = trio.CancelScope()
        self.certificate: tuple[str, ...] = ()

    def allow(self, seconds: float) -> None:
        """Have a deadline that far ahead, or up to SPARE_MAX times as far: setting one takes 20 calls, and would twice a request."""
        now = trio.current_time()
        if not seconds <= self.scope.deadline - now <= SPARE_MAX * seconds:
            self.scope.deadline = now + SPARE * seconds

    async def serve(self) -> None:
        """Answer requests until one side has enough."""
        with self.scope:
            try:
                if isinstance(self.stream.sock, ssl.SSLSocket):
                    self.scope.deadline = trio.current_time() + HEAD_S
                    await wire.handshake(self.stream.sock)
                    self.certificate = wire.certified_names(self.stream.sock)
                served = 0
                while await self._serve_one():
                    served += 1
                    if served % INLINE_BURST == 0:
                        await trio.lowlevel.checkpoint()
            except (OSError, trio.ClosedResourceError, trio.BrokenResourceError, trio.TooSlowError) as exc:
                log.debug("connection ended: %s", exc)
        with trio.move_on_after(LINGER_S):
            await self._linger()

    async def _linger(self) -> None:
        """Let the peer read the last answer: closing with its bytes unread would reset the connection under it."""
        sock = self.stream.sock
        try:
            if isinstance(sock, ssl.SSLSocket):
                return
            sock.shutdown(socket.SHUT_WR)
            left = LINGER_BYTES_MAX
            while left > 0 and (data := await self.stream.receive(wire.BULK_BYTES)):
                left -= len(data)
        except OSError:
            pass

    async def _serve_one(self) -> bool:
        stream = self.stream
        if not stream.pending:
            self.allow(IDLE_S)
            stream.pending = await stream.receive()
            if not stream.pending:
                return False
        if b"\r\n\r\n" not in stream.pending:
            self.scope.deadline = trio.current_time() + HEAD_S
        request = None
        try:
            data = await stream.receive_head()
            if not data:
                return False
            head = _parse(data)
            request = Request(head, self)
            self.allow(self.server.deadline_s)
            response = await self.server.application(request)
        except VOSpaceError as exc:
            # Not even a request: the application never saw it, or its body broke off under it.
            self.scope.deadline = trio.current_time() + wire.STALL_S
            body = f"{exc.fault} {exc}\n".encode("utf-8", "replace")
            await self._send_head(exc.status, [("Content-Type", "text/plain; charset=utf-8")], len(body), False, body)
            return False
        try:
            keep = head.keep_alive and await self._drained(request)
            await self._send(request, response, keep)
        finally:
            if isinstance(response.body, Runs):
                response.body.close()
        return keep

    async def _drained(self, request: Request) -> bool:
        """Whether the connection stands at the start of the next request."""
        if request.whole:
            return True
        if not request.drainable or request.headers.get(b"expect", b"").lower() == b"100-continue":
            # Told the final status instead of 100, the client may or may not send its body.
            return False
        try:
            await request.read(DRAIN_BYTES_MAX)
        except VOSpaceError:
            return False
        return True

    async def _send_head(
        self, status: int, headers: list[tuple[str, str]], length: int | None, keep: bool, body: bytes = b""
    ) -> None:
        lines = [b"HTTP/1.1 %d %s\r\nDate: %s" % (status, _REASONS.get(status, b"Unknown"), self.server.date())]
        for name, value in headers:
            if "\r" in value or "\n" in value or "\0" in value:
                raise ValueError(f"header {name} holds a line break")
            lines.append(f"{name}: {value}".encode("latin-1", "replace"))
        if length is None:
            lines.append(b"Transfer-Encoding: chunked")
        elif status != 204:
            lines.append(b"Content-Length: %d" % length)
        if not keep:
            lines.append(b"Connection: close")
        lines.append(b"\r\n")
        await self.stream.send(b"\r\n".join(lines) + body)

    async def _send(self, request: Request, response: Response, keep: bool) -> None:
        body, headers = response.body, response.headers
        silent = request.method == "HEAD" or response.status in (204, 304)
        if isinstance(body, bytes):
            if len(body) > SHORT_BYTES:
                self.scope.deadline = trio.current_time() + wire.STALL_S
            await self._send_head(response.status, headers, len(body), keep, b"" if silent else body)
        else:
            try:
                await self._send_long(request, response, keep, silent)
            except VOSpaceError as exc:
                # The head is out: all that is left is to break off, so that the client sees a short body.
                log.warning("%s %s broke off: %s", request.method, request.shown, exc)
                raise trio.BrokenResourceError(str(exc)) from exc

    async def _send_long(self, request: Request, response: Response, keep: bool, silent: bool) -> None:
        body = response.body
        assert not isinstance(body, bytes)
        self.scope.deadline = trio.current_time() + wire.STALL_S
        await self._send_head(response.status, response.headers, body.length if isinstance(body, Runs) else None, keep)
        if silent:
            return
        if isinstance(body, Runs):
            self.scope.deadline = float("inf")
            await wire.move(self.stream.sock, body.send(self.stream.sock), self.server.bulk)
            return
        async with contextlib.aclosing(body) as pieces:
            async for data in pieces:
                self.scope.deadline = trio.current_time() + wire.STALL_S
                if data:
                    await self.stream.send(b"%x\r\n%s\r\n" % (len(data), data))
        await self.stream.send(b"0\r\n\r\n")


class Server:
    """A listening socket and its connections."""

    def __init__(
        self, application: Application, sock: socket.socket, deadline_s: float = 120.0,
        context: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        # Dependencies
        self.application = application
        self._sock = sock
        self._context = context
        # Constants
        self.deadline_s = deadline_s
        """How long the application may think about one request, at least; up to SPARE_MAX times that."""
        # Mutable state
        self.bulk = trio.CapacityLimiter(BULK_THREADS_MAX)
        self._connections: set[Connection] = set()
        self._date = (0, b"")

    def date(self) -> bytes:
        """The Date header, made once a second."""
        now = int(time.time())
        if now != self._date[0]:
            self._date = (now, wire.http_date(now).encode())
        return self._date[1]

    async def run(self) -> None:
        """Accept until cancelled; then every connection is closed at once."""
        self._sock.setblocking(False)
        room = trio.Semaphore(CONNECTIONS_MAX)
        try:
            async with trio.open_nursery() as nursery:
                try:
                    while True:
                        await room.acquire()
                        sock = await self._accept()
                        nursery.start_soon(self._one, sock, room)
                finally:
                    # Threads that move bodies end when their sockets do.
                    for connection in self._connections:
                        connection.stream.shutdown()
        finally:
            self._sock.close()

    async def _accept(self) -> socket.socket:
        while True:
            try:
                sock, _ = self._sock.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._sock)
            except OSError as exc:
                # Out of descriptors, or the client is gone already: neither may end the service.
                log.warning("accept: %s", exc)
                await trio.sleep(0.05)

    async def _one(self, sock: socket.socket, room: trio.Semaphore) -> None:
        sock.setblocking(False)
        try:
            if self._context is not None:
                sock = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            connection = Connection(self, wire.Stream(sock))
            self._connections.add(connection)
            try:
                await connection.serve()
            finally:
                self._connections.discard(connection)
        except OSError as exc:
            log.debug("connection refused: %s", exc)
        except Exception:
            # One connection's bug is not the service's end.
            log.exception("a connection failed")
        finally:
            sock.close()
            room.release()


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket; port 0 picks a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    os.set_inheritable(sock.fileno(), False)
    return sock
