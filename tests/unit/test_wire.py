"""HTTP heads and chunked bodies are read strictly: what two parsers could read differently is refused."""

import contextlib
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from vosfs.client import HttpClient
from vosfs.errors import InvalidArgument, ProtocolError, TimedOut, TooLarge, VOSpaceError
from vosfs.wire import (
    CHUNK_LINE_BYTES_MAX,
    HEAD_BYTES_MAX,
    HEADERS_MAX,
    TRAILER_BYTES_MAX,
    TURN_S,
    Chunks,
    Stream,
    handshake,
    http_date,
    move,
    parse_request,
    parse_response,
    receive_body,
    receive_into,
    send_bytes,
)

Pair = Callable[..., tuple[Stream, socket.socket]]


def head(*lines: str, start: str = "GET /a HTTP/1.1", host: str = "Host: h") -> bytes:
    """A request head."""
    return "".join(line + "\r\n" for line in (start, host, *lines, "")).encode("latin-1")


# -- heads -----------------------------------------------------------------------------------------------------------


def test_a_request() -> None:
    found = parse_request(head("Content-Length: 12", "X-A: 1", "x-a:  2 ", start="PUT /a%20b?c=d HTTP/1.1"))
    assert (found.method, found.target, found.length, found.chunked) == ("PUT", b"/a%20b?c=d", 12, False)
    assert found.headers == {b"host": b"h", b"content-length": b"12", b"x-a": b"1, 2"}
    assert found.keep_alive


def test_a_request_without_a_body_has_length_0() -> None:
    assert parse_request(head()).length == 0
    found = parse_request(head("Transfer-Encoding: Chunked"))
    assert (found.length, found.chunked) == (None, True)


def test_keep_alive() -> None:
    assert not parse_request(head("Connection: close")).keep_alive
    assert not parse_request(b"GET / HTTP/1.0\r\n\r\n").keep_alive
    assert parse_request(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep_alive


REFUSED = {
    "length and coding": head("Content-Length: 5", "Transfer-Encoding: chunked"),
    "coding and length": head("Transfer-Encoding: chunked", "Content-Length: 5"),
    "two lengths": head("Content-Length: 5", "Content-Length: 5"),
    "two different lengths": head("Content-Length: 5", "Content-Length: 6"),
    "a list of lengths": head("Content-Length: 5, 5"),
    "a signed length": head("Content-Length: +5"),
    "a negative length": head("Content-Length: -5"),
    "a hexadecimal length": head("Content-Length: 0x5"),
    "an empty length": head("Content-Length: "),
    "a length with a space": head("Content-Length: 5 5"),
    "a length out of range": head("Content-Length: 99999999999999999999"),
    "two codings": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "a coding twice": head("Transfer-Encoding: chunked, chunked"),
    "another coding": head("Transfer-Encoding: gzip, chunked"),
    "chunked not last": head("Transfer-Encoding: chunked, identity"),
    "an unknown coding": head("Transfer-Encoding: xchunked"),
    "an empty coding": head("Transfer-Encoding: "),
    "identity": head("Transfer-Encoding: identity"),
    "a coding with a control character": head("Transfer-Encoding: \x0bchunked"),
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": head("Host: h"),
    "two ranges": head("Range: bytes=0-1", "Range: bytes=0-1"),
    "two authorizations": head("Authorization: a", "Authorization: b"),
    "a folded header": head("X-A: b", " c"),
    "a folded length": head("Content-Length:", " 5"),
    "a space before the colon": head("Content-Length : 5"),
    "a space before the name": b"GET / HTTP/1.1\r\n Host: h\r\n\r\n",
    "no colon": head("nonsense"),
    "an empty name": head(": v"),
    "a bare LF": b"GET / HTTP/1.1\nHost: h\n\nGET /b HTTP/1.1\r\nHost: h\r\n\r\n",
    "a bare LF after a header": b"GET / HTTP/1.1\r\nHost: h\nContent-Length: 5\r\n\r\n",
    "a bare CR": head("X-A: b\rContent-Length: 5"),
    "a NUL": head("X-A: b\0c"),
    "a NUL in the target": b"GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
    "no request line": b"\r\n\r\n",
    "empty lines": b"\r\n\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 in words": b"GET / HTTP/0.9\r\n\r\n",
    "HTTP/2": b"GET / HTTP/2.0\r\nHost: h\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "an unknown method": b"FROBNICATE / HTTP/1.1\r\nHost: h\r\n\r\n",
    "a lower case method": b"get / HTTP/1.1\r\nHost: h\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("data", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_ambiguous_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_request(data)


@given(st.binary(max_size=60))
@settings(deadline=None)
def test_any_bytes_are_a_request_or_a_protocol_error(data: bytes) -> None:
    for whole in (data + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n" + data.replace(b"\r\n\r\n", b"") + b"\r\n\r\n"):
        try:
            found = parse_request(whole)
        except VOSpaceError as exc:
            assert isinstance(exc, (ProtocolError, TooLarge))
        else:
            assert found.target


def test_too_many_headers() -> None:
    lines = [f"X-{n}: 1" for n in range(HEADERS_MAX - 1)]
    assert len(parse_request(head(*lines)).headers) == HEADERS_MAX
    with pytest.raises(TooLarge):
        parse_request(head(*lines, "X: 1"))


def test_responses() -> None:
    found = parse_response(b"HTTP/1.1 206 Partial\r\nContent-Length: 5\r\n\r\n", "GET")
    assert (found.status, found.length, found.chunked) == (206, 5, False)
    assert parse_response(b"HTTP/1.1 200 OK\r\n\r\n", "GET").length is None
    assert parse_response(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "GET").chunked
    for status in (204, 304, 100):
        found = parse_response(b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status, "GET")
        assert (found.length, found.chunked) == (0, False)
    found = parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HEAD")
    assert found.length == 0


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 99999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", b"SSH-2.0-OpenSSH\r\n\r\n",
    ],
)  # fmt: skip
def test_malformed_responses(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        parse_response(data, "GET")


def test_a_client_sends_no_line_breaks() -> None:
    client = HttpClient("http://h:1/x")
    assert client.head("GET", "/a", [("A", "b")]) == b"GET /a HTTP/1.1\r\nHost: h:1\r\nA: b\r\n"
    for target, headers in (("/a\r\nX: y", []), ("/a", [("A", "b\nX: y")]), ("/a", [("A\r", "b")])):
        with pytest.raises(InvalidArgument):
            client.head("GET", target, headers)


@pytest.mark.parametrize("origin", ["", "h", "ftp://h", "http://", "file:///etc/passwd", "http:/h"])
def test_a_client_speaks_http_only(origin: str) -> None:
    with pytest.raises(InvalidArgument):
        HttpClient(origin)


def test_http_date() -> None:
    assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"


# -- streams ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A stream with bytes in it, and its peer."""
    made: list[socket.socket] = []

    def make(data: bytes = b"", end: bool = True) -> tuple[Stream, socket.socket]:
        ours, theirs = socket.socketpair()
        made.extend((ours, theirs))
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        theirs.sendall(data)
        if end:
            theirs.shutdown(socket.SHUT_WR)
        return Stream(ours), theirs

    yield make
    for sock in made:
        sock.close()


async def test_an_answer_that_stalls_in_its_body_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for who waits longer for a head than bodies may stall: a poll of the change feed, say."""
    monkeypatch.setattr("vosfs.client.STALL_S", 0.01)
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = HttpClient(f"http://127.0.0.1:{server.getsockname()[1]}", deadline_s=60)
        peers: list[socket.socket] = []

        async def answer() -> None:
            peers.append((await trio.to_thread.run_sync(server.accept))[0])
            peers[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            with pytest.raises(TimedOut, match="stalled"):
                await client.request(client.head("GET", "/"), method="GET")
        peers[0].close()


async def test_heads_one_after_the_other(pair: Pair) -> None:
    first, second = head("A: 1"), head("B: 2")
    stream, _ = pair(first + b"body" + second)
    assert await stream.receive_head() == first
    assert stream.take(4) == b"body"
    assert await stream.receive_head() == second
    assert await stream.receive_head() == b""


async def test_a_head_byte_by_byte(pair: Pair) -> None:
    stream, peer = pair(end=False)
    data = head("A: 1")
    found: list[bytes] = []

    async def read() -> None:
        found.append(await stream.receive_head())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for at in range(len(data)):
            await trio.testing.wait_all_tasks_blocked()
            assert not found
            peer.send(data[at : at + 1])
    assert found == [data]


async def test_a_cut_head(pair: Pair) -> None:
    for data in (b"GET / HTTP/1.1\r\nHost", b"G", b"GET / HTTP/1.1\r\n"):
        with pytest.raises(ProtocolError):
            await pair(data)[0].receive_head()
    for data in (b"", b"\r\n"):
        assert await pair(data)[0].receive_head() == b""


async def test_a_head_that_is_too_long(pair: Pair) -> None:
    for data in (b"x" * (HEAD_BYTES_MAX + 70_000), b"x" * (HEAD_BYTES_MAX + 1) + b"\r\n\r\n"):
        with pytest.raises(TooLarge):
            await pair(data, end=False)[0].receive_head()
    longest = b"x" * HEAD_BYTES_MAX + b"\r\n\r\n"
    assert await pair(longest)[0].receive_head() == longest


async def test_send_and_receive_more_than_fits(pair: Pair) -> None:
    stream, peer = pair(end=False)
    data = bytes(range(256)) * 40_000
    other, got = Stream(peer), bytearray()

    async def read() -> None:
        while len(got) < len(data):
            got.extend(await other.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await stream.send(data)
    assert got == data


async def test_shutdown_wakes_who_waits(pair: Pair) -> None:
    stream, _ = pair(end=False)
    found: list[bytes] = []

    async def read() -> None:
        found.append(await stream.receive())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        stream.shutdown()
    assert found == [b""]


async def test_bodies_move_in_threads(pair: Pair) -> None:
    stream, peer = pair(end=False)
    peer.setblocking(False)
    data, got = bytes(range(256)) * 12_000, bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(move, peer, send_bytes(peer, data))
        await move(stream.sock, receive_body(stream.sock, b"first", 5 + len(data), got.extend))
    assert bytes(got) == b"first" + data


async def test_a_cut_body(pair: Pair) -> None:
    stream, _ = pair(b"12345")
    got = bytearray()
    with pytest.raises(ProtocolError):
        await move(stream.sock, receive_body(stream.sock, b"", 6, got.extend))


async def test_a_deadline_ends_a_body_that_trickles(pair: Pair) -> None:
    stream, peer = pair(end=False)
    came = 0

    def arrived(count: int) -> None:
        nonlocal came
        came = count

    async def trickle() -> None:
        while True:
            with contextlib.suppress(BlockingIOError):
                peer.send(b"x")
            await trio.lowlevel.checkpoint()

    peer.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trickle)
        with trio.move_on_after(2 * TURN_S) as scope:
            await move(stream.sock, receive_into(stream.sock, memoryview(bytearray(1 << 24)), arrived))
        nursery.cancel_scope.cancel()
    assert scope.cancelled_caught and 0 < came < 1 << 24


# -- chunks ----------------------------------------------------------------------------------------------------------


async def whole(stream: Stream) -> bytes:
    chunks, parts = Chunks(stream), []
    while data := await chunks.read():
        parts.append(data)
    assert await chunks.read() == b""
    return b"".join(parts)


async def test_a_chunked_body(pair: Pair) -> None:
    stream, _ = pair(b"5\r\nhello\r\n00A\r\n, world 12\r\n1\r\n!\r\n0\r\nA: trailer\r\n\r\nNEXT")
    assert await whole(stream) == b"hello, world 12!"
    assert stream.take(10) == b"NEXT"


async def test_an_empty_chunked_body(pair: Pair) -> None:
    assert await whole(pair(b"0\r\n\r\n")[0]) == b""


async def test_a_long_chunk(pair: Pair) -> None:
    data = b"x" * 100_000
    assert await whole(pair(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))[0]) == data


@pytest.mark.parametrize(
    "data",
    [
        b"", b"5", b"5\r\n", b"5\r\nhel", b"5\r\nhello", b"5\r\nhello\r\n", b"5\r\nhello\r\n0", b"5\r\nhello\r\n0\r\n",
        b"5;x=y\r\nhello\r\n0\r\n\r\n", b"5 \r\nhello\r\n0\r\n\r\n", b" 5\r\nhello\r\n0\r\n\r\n", b"+5\r\nhello\r\n",
        b"-5\r\nhello\r\n", b"0x5\r\nhello\r\n", b"5_0\r\nhello\r\n", b"\r\nhello\r\n", b"g\r\nhello\r\n",
        b"5\nhello\n0\n\n", b"5\r\nhello!\r\n0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n", b"4\r\nhello\r\n0\r\n\r\n",
        b"1000000000000000\r\n", b"fffffffffffffffff\r\n", b"5\r\nhello\n0\r\n\r\n", b"1" * (CHUNK_LINE_BYTES_MAX + 9),
    ],
)  # fmt: skip
async def test_malformed_chunks(pair: Pair, data: bytes) -> None:
    with pytest.raises(ProtocolError):
        await whole(pair(data)[0])


async def test_trailers_are_bounded(pair: Pair) -> None:
    with pytest.raises(TooLarge):
        await whole(pair(b"0\r\n" + b"A: b\r\n" * TRAILER_BYTES_MAX)[0])


async def test_who_reads_on_after_a_shutdown_is_not_given_what_is_encrypted(tmp_path: Path) -> None:
    """``ssl.SSLSocket.shutdown`` would make a plain socket of it, with TLS records still to be received."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 1"
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    ours, theirs = (ssl.SSLContext(protocol) for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER))
    ours.load_verify_locations(certificate)
    theirs.load_cert_chain(certificate, key)
    left, right = socket.socketpair()
    with left, right:
        for sock in (left, right):
            sock.setblocking(False)
        client = ours.wrap_socket(left, server_hostname="localhost", do_handshake_on_connect=False)
        server = theirs.wrap_socket(right, server_side=True, do_handshake_on_connect=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handshake, client)
            nursery.start_soon(handshake, server)
        stream = Stream(client)
        await Stream(server).send(b"secret" * 1000)
        stream.shutdown()
        seen = b""
        with contextlib.suppress(OSError):
            while data := await stream.receive():
                seen += data
        assert seen in (b"", b"secret" * 1000)
        client.close()
        server.close()
