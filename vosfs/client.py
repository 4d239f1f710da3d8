"""The HTTP client: kept connections to one origin, deadlines for everything.

Small requests cost 50-70 µs of CPU, bulk reads go straight into the caller's buffer, bulk writes from file to socket by
sendfile(2) in one worker thread.
"""

import copy
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

import trio

from vosfs.errors import InvalidArgument, ProtocolError, ServiceUnavailable, TimedOut, TooLarge
from vosfs.locks import take
from vosfs.wire import (
    STALL_S,
    Chunks,
    Headers,
    Stream,
    handshake,
    move,
    parse_response,
    readable,
    receive_body,
    receive_into,
    remembered,
    send_file,
)

CONNECT_S = 10.0
WATCH_S = 0.5
"""How late a deadline may be noticed."""
CONNECTIONS_MAX = 16
"""Of one client to one server, idle ones included."""
REFUSAL_BYTES = 4096
"""Of the body of an answer that is not what was asked for."""
ANSWER_BYTES_MAX = 64 << 20
"""Longest answer that is read into memory whole."""


class Answer:
    """A response whose body was read."""

    __slots__ = ("status", "headers", "body")

    def __init__(self, status: int, headers: Headers, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body


Segment = tuple[int, int, int]
"""(descriptor, start, stop): a run of a file to send."""

Sink = Callable[[memoryview], None]
"""Takes a body's bytes as they come, in a worker thread."""

Arrived = Callable[[int], None]
"""Told how many bytes of a body are here, as they come, perhaps in a worker thread."""

THREAD_BYTES_MIN = 512 << 10
"""A body with so much to come is received by a worker thread: the event loop, which is the mount's bottleneck, saves
0.2 s a GiB, and a thread costs 0.1 ms."""

REPEATED_MAX, REPEATED_BYTES_MAX = 64, 512
"""Heads of answers remembered as parsed: those to a mount's messages differ by their length, and by a date that changes once a
second (30 µs)."""
_parse = remembered(parse_response, REPEATED_MAX, REPEATED_BYTES_MAX)

_FAILED = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ProtocolError)


class Watch:
    """Ends exchanges that are late, by a look every WATCH_S: a scope for each is 45 of the 300 calls that an fsync(2) takes."""

    def __init__(self) -> None:
        self.running = False
        self.until: dict[Stream, float] = {}
        """When what is under way on a connection is late."""

    async def run(self) -> None:
        """Until cancelled."""
        if self.running:
            return
        self.running = True
        try:
            while True:
                await trio.sleep(WATCH_S)
                now = trio.current_time()
                for stream in [stream for stream, until in self.until.items() if until <= now]:
                    # Whoever waits is told at once, a thread too.
                    stream.shutdown()
        finally:
            self.running = False


class HttpClient:
    """Kept connections to one origin.

    Every call has a deadline for its answer's head, and one for each stall of a body.  Raises ServiceUnavailable,
    TimedOut and ProtocolError; HTTP errors are answers.
    """

    def __init__(
        self, origin: str, deadline_s: float = STALL_S, context: ssl.SSLContext | None = None, address: str = ""
    ) -> None:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InvalidArgument(f"{origin!r} is not an http or https URL")
        # Constants
        self.origin = f"{parts.scheme}://{parts.netloc}"
        self.deadline_s = deadline_s
        self._host = parts.hostname
        self._address = address or parts.hostname
        """Where to connect, if the name was looked up already."""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._tls = (context or ssl.create_default_context()) if parts.scheme == "https" else None
        self._host_header = parts.netloc.rpartition("@")[2].encode("ascii")
        # Mutable state
        self._idle: list[Stream] = []
        """INVARIANT: connected, nothing pending, not in use."""
        self._slots = trio.Semaphore(CONNECTIONS_MAX)
        self._watch = Watch()

    def beside(self) -> "HttpClient":
        """A client of the same origin that shares the idle connections and has slots of its own."""
        other = copy.copy(self)
        other._slots = trio.Semaphore(CONNECTIONS_MAX)
        return other

    async def keep_deadlines(self) -> None:
        """Run this beside the requests, until cancelled, and they need no scope each.

        For as long as there are requests: what is under way when it ends has no deadline any more.
        """
        await self._watch.run()

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
                stream = await trio.open_tcp_stream(self._address, self._port)
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
            if readable(stream.sock):
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
        arrived: Arrived = lambda count: None,
    ) -> Answer:
        """One request (``head`` from ``head()``) and its answer.

        With ``into``, a 206 body must fill it exactly and ``Answer.body`` is then empty; ``arrived`` is told as it
        fills.  ``idempotent``: try once more on a new connection when a kept one breaks.
        """
        message = b"%sContent-Length: %d\r\n\r\n%s" % (head, len(body), body)
        deadline, kept = trio.current_time() + (deadline_s or self.deadline_s), True
        if self._watch.running and into is None and self._slots.value and (stream := self._reusable()) is not None:
            answer = await self._watched(stream, message, method, idempotent, deadline)
            if answer is not None:
                return answer
            kept = False
        # The wait for a connection counts too: behind sixteen hung requests the seventeenth must not start anew.
        with trio.CancelScope(deadline=deadline) as scope:
            await take(self._slots)
            try:
                return await self._attempt(message, method, idempotent, into, arrived, kept)
            except trio.TooSlowError as exc:
                # In the middle of a body.
                raise TimedOut(f"{self.origin}: the answer stalled") from exc
            except _FAILED as exc:
                raise ServiceUnavailable(f"{self.origin}: {_reason(exc)}") from exc
            finally:
                self._slots.release()
        assert scope.cancelled_caught
        raise TimedOut(f"{self.origin}: no answer within the deadline")

    async def _watched(
        self, stream: Stream, message: bytes, method: str, idempotent: bool, deadline: float
    ) -> Answer | None:
        """One exchange on a kept connection, as nearly all are; None if it broke, and may be tried once more."""
        self._slots.acquire_nowait()
        self._watch.until[stream] = deadline
        try:
            return await self._exchange(stream, message, method)
        except trio.TooSlowError as exc:
            raise TimedOut(f"{self.origin}: the answer stalled") from exc
        except _FAILED as exc:
            if trio.current_time() >= deadline:
                raise TimedOut(f"{self.origin}: no answer within the deadline") from exc
            if idempotent:
                return None
            raise ServiceUnavailable(f"{self.origin}: {_reason(exc)}") from exc
        finally:
            del self._watch.until[stream]
            self._slots.release()

    async def _attempt(
        self, message: bytes, method: str, idempotent: bool, into: memoryview | None, arrived: Arrived, kept: bool
    ) -> Answer:
        stream = self._reusable() if kept else None
        if stream is not None:
            try:
                return await self._exchange(stream, message, method, into, arrived)
            except _FAILED:
                if not idempotent:
                    raise
        return await self._exchange(await self._connect(), message, method, into, arrived)

    async def _exchange(
        self, stream: Stream, message: bytes, method: str, into: memoryview | None = None,
        arrived: Arrived = lambda count: None,
    ) -> Answer:  # fmt: skip
        done = False
        try:
            await stream.send(message)
            answer, done = await self._answer(stream, method, into, arrived)
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
                    await move(stream.sock, send_file(stream.sock, fd, start, stop, True), stall_s=self.deadline_s)
                with trio.fail_after(self.deadline_s):
                    answer, done = await self._answer(stream, method)
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

    async def download(self, head: bytes, sink: Sink) -> Answer:
        """GET on a connection of its own; a 200 body goes to ``sink``, in worker threads, any other into the answer."""
        stream = await self._connect()
        try:
            with trio.fail_after(self.deadline_s):
                await stream.send(head + b"\r\n")
                data = await stream.receive_head()
                if not data:
                    raise ProtocolError("connection closed before an answer")
                answer = parse_response(data, "GET")
                if answer.status != 200:
                    body = b"" if answer.length is None else stream.take(min(answer.length, REFUSAL_BYTES))
                    return Answer(answer.status, answer.headers, body)
            if answer.length is not None and not answer.chunked:
                first = stream.take(answer.length)
                moving = receive_body(stream.sock, first, answer.length, sink)
                await move(stream.sock, moving, stall_s=self.deadline_s)
            else:
                await self._download_open(stream, answer.chunked, sink)
            return Answer(200, answer.headers, b"")
        except trio.TooSlowError as exc:
            raise TimedOut(f"{self.origin}: no answer within the deadline") from exc
        except _FAILED as exc:
            raise ServiceUnavailable(f"{self.origin}: {_reason(exc)}") from exc
        finally:
            stream.close()

    async def _download_open(self, stream: Stream, chunked: bool, sink: Sink) -> None:
        """A body whose length nobody said."""
        chunks = Chunks(stream) if chunked else None
        data = b"" if chunks is not None else stream.take(len(stream.pending))
        while True:
            if data:
                await trio.to_thread.run_sync(sink, memoryview(data))
            with trio.fail_after(self.deadline_s):
                data = await (chunks.read() if chunks is not None else stream.receive())
            if not data:
                return

    async def _answer(
        self, stream: Stream, method: str, into: memoryview | None = None, arrived: Arrived = lambda count: None
    ) -> tuple[Answer, bool]:
        """Read an answer; whether the connection can be used again."""
        while True:
            data = await stream.receive_head()
            if not data:
                raise ProtocolError("connection closed before an answer")
            head = _parse(data, method)
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
            await _fill(stream, into, arrived)
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


async def _fill(stream: Stream, view: memoryview, arrived: Arrived = lambda count: None) -> None:
    first = stream.take(len(view))
    view[: len(first)] = first
    at = len(first)
    arrived(at)
    if len(view) - at >= THREAD_BYTES_MIN:
        return await move(stream.sock, receive_into(stream.sock, view[at:], lambda count: arrived(at + count)))
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
        arrived(at)
    return None


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


def _reason(exc: BaseException) -> str:
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    if isinstance(exc, BaseExceptionGroup):
        return _reason(exc.exceptions[0])
    cause = exc.__cause__
    return _reason(cause) if isinstance(cause, (OSError, BaseExceptionGroup)) else str(exc)
