"""Nothing that a peer can send makes the daemon fail, stall, grow or answer 500."""

import concurrent.futures
import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Daemon
from tests.server.support import (
    AUTHORITY,
    ROOT,
    Raw,
    ask,
    ask_raw,
    assert_sound,
    create,
    fetch,
    head,
    is_fault,
    node,
    node_document,
    store,
    transfer_document,
)
from vosfs.metadata import messages as m
from vosfs.metadata.node import Attributes, Cursor, Extent, NewNode, Node
from vosfs.metadata.xml import NS, XSI

STALL_S_MAX = 1.0
"""Nobody waits longer than this for a small answer, whatever another client does; 2 cores shared with others."""
PROBE = b"GET /vos/capabilities HTTP/1.1\r\nHost: x\r\n\r\n"


# -- documents ---------------------------------------------------------------------------------------------------

BOMB = b'<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">%s]>' % b"".join(
    b'<!ENTITY %c "%s">' % (98 + n, b"&%c;" % (97 + n) * 10) for n in range(12)
)
EXTERNAL = b'<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
OUTSIDE = b'<!DOCTYPE b SYSTEM "http://127.0.0.1:9/x.dtd">'


def _valid(entity: bytes = b"x") -> bytes:
    return node_document("/n", "Node", {"title": "TITLE"}).replace(b"TITLE", entity)


DOCUMENTS = [
    b"",
    b" ",
    b"<",
    b"<a",
    b"\0",
    b"\xff\xfe",
    b"text",
    b"<node/>",
    b"<vos:node/>",
    _valid()[:-5],
    _valid() + b"<x/>",
    _valid().replace(NS.encode(), b"http://www.ivoa.net/xml/VOSpace/v2.1"),
    _valid().replace(NS.encode(), b""),
    _valid().replace(b"vos:node ", b"vos:nodes ").replace(b"vos:node>", b"vos:nodes>"),
    BOMB + _valid(b"&l;"),
    EXTERNAL + _valid(b"&a;"),
    OUTSIDE + _valid(),
    _valid(b"&a;"),
    _valid(b"&#0;"),
    _valid(b"&#xFFFF;"),
    (EXTERNAL + _valid(b"&a;")).decode().encode("utf-16"),
    (BOMB + _valid(b"&l;")).decode().encode("utf-16-le"),
    b'<?xml version="1.0" encoding="no-such"?>' + _valid(),
    b'<?xml version="9.9"?><?xml?>' + _valid(),
    b"<a>" * 10_000,
    b"<a>" * 10_000 + b"</a>" * 10_000,
    b"<a " + b" ".join(b'a%d=""' % n for n in range(50_000)) + b"/>",
    _valid(b"x" * 70_000),
    _valid(b"x" * 2_000_000),
    _valid().replace(b"ivo://ivoa.net/vospace/core#title", b""),
    _valid().replace(b"core#title", b"x" * 3000),
    _valid().replace(b'<vos:property uri="', b'<vos:property x="'),
    _valid().replace(
        b"</vos:properties>",
        b'<vos:property uri="urn:x">y</vos:property>' * 1
        + b"".join(b'<vos:property uri="urn:%d"/>' % n for n in range(400))
        + b"</vos:properties>",
    ),
    b"<!-- --><?pi?>" * 1000,
    _valid().replace(b"<vos:properties>", b"<vos:properties " + b"xmlns:a%d='b'" % 1 * 2 + b">"),
    node_document("/n", "Node", {"title": "x"}, uri="vos://[::1"),
    node_document("/n", "Node", uri="vos://" + "a" * 100_000),
]


@pytest.mark.parametrize("number", range(len(DOCUMENTS)))
def test_a_bad_document_is_refused(space: Daemon, folder: str, number: int) -> None:
    document = DOCUMENTS[number].replace(b"/n", f"{folder}/n".encode(), 1)
    for method, path in (("PUT", f"/nodes{folder}/n"), ("POST", f"/nodes{folder}"), ("POST", "/synctrans")):
        status, _, body = space.request(method, path, document, {"Content-Type": "text/xml"})
        assert 400 <= status < 500, (method, status, body)
        assert body.split()[0] in (b"InvalidArgument", b"InvalidURI"), body
        assert b"root:" not in body
    assert node(space, folder).children == []


@pytest.mark.parametrize(
    "headers", [{"Content-Type": "text/xml"}, {"Content-Type": "application/xml"}, {"Content-Type": "x"}, {}]
)
def test_any_content_type_is_xml_for_nodes(space: Daemon, folder: str, headers: dict[str, str]) -> None:
    body = node_document(f"{folder}/n", "DataNode", {"quality": "bare"}).replace(
        b"ivo://ivoa.net/vospace/core#quality", b"quality"
    )
    with Raw(space) as raw:
        lines = [f"{name}: {value}" for name, value in headers.items()]
        raw.send(head(space, "PUT", f"/nodes{folder}/n", f"Content-Length: {len(body)}", "size: 17", *lines) + body)
        assert raw.answer().status == 201
    assert node(space, f"{folder}/n").properties["quality"] == "bare"


# -- HTTP ----------------------------------------------------------------------------------------------------------

H = b"Host: x\r\n"
REFUSED = {
    "many headers": b"GET /vos/nodes HTTP/1.1\r\n" + H + b"A: b\r\n" * 10_000 + b"\r\n",
    "101 headers": b"GET /vos/nodes HTTP/1.1\r\n" + H + b"A: b\r\n" * 101 + b"\r\n",
    "long header": b"GET /vos/nodes HTTP/1.1\r\n" + H + b"A: " + b"b" * 100 * 1024 + b"\r\n\r\n",
    "long target": b"GET /vos/nodes?" + b"b" * 100 * 1024 + b" HTTP/1.1\r\n" + H + b"\r\n",
    "long method": b"G" * 100_000 + b" /vos/nodes HTTP/1.1\r\n" + H + b"\r\n",
    "both lengths": b"POST /vos/synctrans HTTP/1.1\r\n"
    + H
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, turned": b"POST /vos/synctrans HTTP/1.1\r\n"
    + H
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two lengths": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
    "same lengths": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "list of lengths": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Content-Length: 5, 5\r\n\r\nhello",
    "negative length": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Content-Length: -5\r\n\r\nhello",
    "plus length": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Content-Length: +5\r\n\r\nhello",
    "hex length": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Content-Length: 0x5\r\n\r\nhello",
    "empty length": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Content-Length: \r\n\r\nhello",
    "overflow": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "huge length": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Content-Length: 999999999999\r\n\r\nhello",
    "gzip": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "identity": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Transfer-Encoding: identity\r\n\r\n",
    "chunked twice": b"POST /vos/synctrans HTTP/1.1\r\n"
    + H
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "smuggled coding": b"POST /vos/synctrans HTTP/1.1\r\n" + H + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "folded": b"GET /vos/nodes HTTP/1.1\r\n" + H + b"A: b\r\n c\r\n\r\n",
    "bare LF": b"GET /vos/nodes HTTP/1.1\nHost: x\n\n\r\n\r\n",
    "no host": b"GET /vos/nodes HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /vos/nodes HTTP/1.1\r\n" + H + H + b"\r\n",
    "two authorizations": b"GET /vos/nodes HTTP/1.1\r\n" + H + b"Authorization: a\r\nAuthorization: b\r\n\r\n",
    "NUL in header": b"GET /vos/nodes HTTP/1.1\r\n" + H + b"A: \0\r\n\r\n",
    "NUL in target": b"GET /vos/\0 HTTP/1.1\r\n" + H + b"\r\n",
    "HTTP/3.0": b"GET /vos/nodes HTTP/3.0\r\n" + H + b"\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "garbage": bytes(range(256)) * 20 + b"\r\n\r\n",
    "TLS hello": bytes.fromhex("16030100c8010000c40303") + bytes(200) + b"\r\n\r\n",
    "only ends": b"\r\n\r\n\r\n\r\n",
    "options star": b"OPTIONS * HTTP/1.1\r\n" + H + b"\r\n",
    "connect": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\n" + H + b"\r\n",
    "foreign scheme": b"GET ftp://x/vos/nodes HTTP/1.1\r\n" + H + b"\r\n",
    "header without colon": b"GET /vos/nodes HTTP/1.1\r\n" + H + b"nonsense\r\n\r\n",
    "empty header name": b"GET /vos/nodes HTTP/1.1\r\n" + H + b": x\r\n\r\n",
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_http_is_refused_and_the_connection_ends(space: Daemon, folder: str, what: str) -> None:
    with Raw(space) as raw:
        raw.send_anyway(REFUSED[what] + PROBE)
        try:
            answer = raw.answer()
        except (EOFError, ConnectionResetError) as exc:
            raise AssertionError(f"no answer: {exc!r}") from exc
        assert 400 <= answer.status < 500, answer
        # R19: the body of every fault begins with its name.
        assert answer.body.split()[0] in (b"InvalidArgument", b"InvalidURI", b"PermissionDenied"), answer
        assert raw.rest() == b""


CHUNKS = [
    b"-1",
    b"+5",
    b"0x5",
    b" 5",
    b"5 ",
    b"5;a=b",
    b"",
    b"g",
    b"5\n",
    b"F" * 16,
    b"0" * 1000,
    b"0" * 5000,
    b"5\r",
    b"\xff",
]


@pytest.mark.parametrize("size", CHUNKS)
@pytest.mark.parametrize("target", ["POST /gateway", "PUT /files{folder}/n", "PUT /nodes{folder}/n", "POST /synctrans"])
def test_a_bad_chunk_ends_the_connection(space: Daemon, folder: str, target: str, size: bytes) -> None:
    method, _, path = target.format(folder=folder).partition(" ")
    for before in (b"", b"3\r\nabc\r\n"):
        with Raw(space, timeout_s=3) as raw:
            raw.send_anyway(
                head(space, method, path, "Transfer-Encoding: chunked") + before + size + b"\r\n" + PROBE * 2
            )
            try:
                assert raw.answer().status in (400, 413)
            except (EOFError, ConnectionResetError):
                pass
            assert b"<accessURL" not in raw.rest()
    assert node(space, folder).children == []


def test_http_1_0_and_older(space: Daemon, folder: str) -> None:
    with Raw(space, timeout_s=3) as raw:
        raw.send(b"GET /vos/availability HTTP/1.0\r\n\r\n")
        assert raw.answer().status == 200 and raw.ended()
    with Raw(space, timeout_s=3) as raw:
        raw.send(b"GET /vos/availability\r\n\r\n")
        assert raw.rest()
    with Raw(space, timeout_s=3) as raw:
        raw.send(b"GET /vos/availability HTTP/1.1\r\nConnection: close\r\nHost: x\r\n\r\n")
        assert raw.answer().status == 200 and raw.ended()


def test_the_absolute_form(space: Daemon, folder: str) -> None:
    with Raw(space) as raw:
        for target in (b"http://elsewhere:80/vos/availability", b"HTTPS://x/vos/availability?a=b"):
            raw.send(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            assert raw.answer().status == 200
        for target in (
            b"http://x",
            b"http://x/",
            b"/",
            b"//vos/nodes",
            b"/vos",
            b"/vos/",
            b"/vosx/nodes",
            b"/vos/nodesx",
            b"/vos//nodes",
            b"/vos/../vos/nodes",
            b"/vos/%6eodes",
            b"/vos/availability/x",
            b"/vos/transfers/none",
        ):
            raw.send(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = raw.answer()
            assert (answer.status, answer.body.split()[0]) == (404, b"NodeNotFound"), target


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/nodes", "PUT"),
        ("DELETE", "/files/x", "PUT"),
        ("POST", "/files/x", "PUT"),
        ("GET", "/gateway", "POST"),
        ("PUT", "/capabilities", "GET"),
        ("DELETE", "/availability", "GET"),
        ("OPTIONS", "/nodes", "GET"),
        ("TRACE", "/nodes", "GET"),
        ("PROPFIND", "/nodes", "GET"),
        ("DELETE", "/synctrans", "POST"),
        ("POST", "/protocols", "GET"),
        ("DELETE", "/data/x", "PUT"),
    ],
)
def test_an_undefined_method_is_405(space: Daemon, folder: str, method: str, path: str, allowed: str) -> None:
    status, headers, _ = space.request(method, path)
    assert status == 405 and allowed in headers["Allow"].split(", ")


def test_pipelined_requests_are_answered_in_order(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/f", b"0123456789")
    with Raw(space) as raw:
        raw.send(
            b"".join(
                head(space, "PUT", f"/files{folder}/n{n}", "Content-Length: 3")
                + b"%03d" % n
                + head(space, "GET", f"/files{folder}/f", f"Range: bytes={n % 10}-{n % 10}")
                + head(space, "GET", f"/files{folder}/n{n}")
                for n in range(60)
            )
        )
        for n in range(60):
            assert raw.answer().status == 201
            assert raw.answer().body == b"%d" % (n % 10)
            assert raw.answer().body == b"%03d" % n


def test_an_unread_body_is_not_a_request(space: Daemon, folder: str) -> None:
    body = PROBE * 100
    with Raw(space) as raw:
        for path in ("/files/none/n", "/nonsense", "/capabilities"):
            raw.send(head(space, "PUT", path, f"Content-Length: {len(body)}") + body)
            assert raw.answer().status in (404, 405)
        raw.send(PROBE)
        assert b"<accessURL" in raw.answer().body


def test_slow_and_idle_clients_block_nobody(space: Daemon, folder: str) -> None:
    clients = [Raw(space) for _ in range(200)]
    try:
        for number, raw in enumerate(clients):
            raw.send(
                [
                    b"",
                    b"G",
                    b"GET /vos/nodes HTTP/1.1\r\nHost: x\r\n",
                    b"\x16",
                    b"POST /vos/gateway HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nx",
                ][number % 5]
            )
        started = time.monotonic()
        for number in range(20):
            store(space, f"{folder}/f{number}", b"x")
        assert time.monotonic() - started < 20 * STALL_S_MAX
        # Those that send the rest after all are answered.
        clients[2].send(b"\r\n")
        assert clients[2].answer().status in (200, 403)
        clients[1].send(PROBE[1:])
        assert clients[1].answer().status == 200
    finally:
        for raw in clients:
            raw.sock.close()


# -- stalls and growth -----------------------------------------------------------------------------------------------


def _longest_wait(space: Daemon, sending: Callable[[], object]) -> float:
    """The longest time a small request of another client took while ``sending`` ran."""
    longest = 0.0
    with concurrent.futures.ThreadPoolExecutor(1) as pool, Raw(space) as raw:
        running = pool.submit(sending)
        while not running.done():
            started = time.monotonic()
            raw.send(PROBE)
            assert raw.answer().status == 200
            longest = max(longest, time.monotonic() - started)
        running.result()
    return longest


@pytest.mark.parametrize("target", ["POST /gateway", "PUT /nodes/x", "PUT /files{folder}/f"])
def test_tiny_chunks_do_not_stall_others(space: Daemon, folder: str, target: str) -> None:
    method, _, path = target.format(folder=folder).partition(" ")
    count = 300_000 if method == "PUT" and "files" in path else 900_000
    body = b"1\r\nx\r\n" * count + b"0\r\n\r\n"

    def send() -> None:
        with Raw(space, timeout_s=60) as raw:
            raw.send_anyway(head(space, method, path, "Transfer-Encoding: chunked") + body)
            with contextlib.suppress(ConnectionResetError):
                assert raw.answer().status in (201, 400)

    assert _longest_wait(space, send) < STALL_S_MAX


def test_long_messages_do_not_stall_others(space: Daemon, folder: str) -> None:
    length = 16 << 20

    def send() -> None:
        for _ in range(3):
            with Raw(space, timeout_s=60) as raw:
                raw.send_anyway(
                    head(space, "POST", "/gateway", f"Content-Length: {length}", auth=False) + bytes(length)
                )
                assert raw.answer().status == 400

    assert _longest_wait(space, send) < STALL_S_MAX


def _resident_mib(daemon: Daemon) -> float:
    for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


def test_memory_stays_bounded(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    store(daemon, "/f", bytes(2 << 20))
    before = _resident_mib(daemon)
    for _ in range(3):
        for document in (DOCUMENTS[14], b"<a/>" * 100_000, transfer_document("x" * 500_000, "y")):
            daemon.request("PUT", "/nodes/n", document)
        with Raw(daemon, receive_buffer=4096) as raw:
            # Answers that nobody reads wait in the kernel, not here.
            raw.sock.settimeout(2)
            with contextlib.suppress(TimeoutError, OSError):
                raw.send(head(daemon, "GET", "/files/f") * 20_000)
    for _ in range(500):
        daemon.request("GET", "/nodes", headers={"Authorization": "Bearer " + os.urandom(8).hex()})
    assert _resident_mib(daemon) - before < 100
    assert_sound(daemon)


# -- the gateway ---------------------------------------------------------------------------------------------------

GARBAGE = [
    b"",
    b"\xc1",
    b"\xc0",
    b"\x90",
    b"\x91\xa5Hello\x00",
    b"\x92\xa5Hello\x01",
    b"\x91\xa4Nope",
    b"\x92\xa3Get\xa1x",
    b"\x92\xa3Get\xc0",
    b"\x92\xa3Get\xca\x7f\xc0\0\0",
    b"\xdd\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff",
    b"\xdf\x7f\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x93\xa6Lookup\x01\xa1\xff",
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"{}",
    b"<xml/>",
    b"\x92\xa3Get\xcf" + b"\xff" * 8,
]


@pytest.mark.parametrize("number", range(len(GARBAGE)))
def test_gateway_garbage(space: Daemon, folder: str, number: int) -> None:
    status, body = ask_raw(space, GARBAGE[number])
    assert status in (200, 400, 404), body
    if status != 200:
        assert msgspec.msgpack.decode(body, type=m.Failure).error in ("InvalidArgument", "NodeNotFound")


@pytest.mark.parametrize("wait_s", [math.nan, -math.nan, math.inf, -math.inf, -1.0, 1e300])
def test_a_poll_waits_a_sane_time(space: Daemon, folder: str, wait_s: float) -> None:
    body = msgspec.msgpack.encode(m.Changes(ask(space, m.Hello()).cursor, wait_s))
    with Raw(space) as raw:
        raw.send(head(space, "POST", "/gateway", f"Content-Length: {len(body)}") + body)
        if wait_s > 1:
            store(space, f"{folder}/wake", b"")
        assert raw.answer().status in (200, 400)


BIG = 2**64 - 1
SMALL = -(2**63)


def _messages(made: Node, top: Node) -> list[m.Request]:
    far = (BIG, SMALL, 2**63, -1, 0)
    found: list[m.Request] = [
        m.Changes(Cursor(), math.nan),
        m.Changes(Cursor(), -math.inf),
        m.Children(top.id, b"", 0),
        m.Children(top.id, b"", BIG),
        m.Lookup(top.id, b""),
        m.Lookup(top.id, b"x" * 100_000),
        m.Lookup(top.id, b".."),
        m.Create(top.id, b"", NewNode("data")),
        m.Create(top.id, b"..", NewNode("data")),
        m.Create(top.id, b"a/b", NewNode("data")),
        m.Create(top.id, b".null", NewNode("data")),
        m.Create(top.id, b"x" * 256, NewNode("data")),
        m.Create(top.id, b"k", NewNode("device")),
        m.Create(top.id, b"k", NewNode("link")),
        m.Create(top.id, b"k", NewNode("data", target=b"x")),
        m.Create(top.id, b"k", NewNode("data", properties={"a b": "c"})),
        m.Create(top.id, b"k", NewNode("data", properties={"u:x": "\0"})),
        m.Create(top.id, b"k", NewNode("link", target=b"x" * 4097)),
        m.Create(made.id, b"k", NewNode("data")),
        m.Remove(top.id, b"f", "tree"),
        m.Remove(top.id, b"f", "x"),
        m.Rename(top.id, b"f", top.id, b"g", "x"),
        m.Rename(top.id, b"f", made.id, b"g", ""),
        m.Rename(1, top.uid.to_bytes(8, "big", signed=True), top.id, b"g", ""),
        m.Link(top.id, top.id, b"l"),
        m.SetProperties(made.id, {"": "x"}),
        m.SetProperties(made.id, {"ivo://ivoa.net/vospace/core#length": "1"}),
        m.Renew(["x"] * 600),
        m.Renew(["a" * 32 + ".ffffffff.x"]),
        m.Open(top.id),
    ]
    for n in far:
        found += [
            m.Get(n),
            m.Lookup(n, b"x"),
            m.Children(n, b"", 10),
            m.Open(n),
            m.Properties(n),
            m.Commit(made.id, n, 0, [], None, False) if n else m.Get(0),
            m.Commit(n, None, 0, [], None, False),
            m.Link(n, top.id, b"l"),
            m.Link(made.id, n, b"l"),
            m.Rename(n, b"a", top.id, b"b", ""),
            m.Remove(n, b"a", "leaf"),
            m.Create(n, b"x", NewNode("data")),
            m.SetAttributes(n, Attributes(mtime_ns=1)),
            m.SetProperties(n, {"u:x": "y"}),
        ]
    for n in (BIG, SMALL - 0, 2**63):
        found += [m.Changes(Cursor(n, n), 0.0), m.Commit(made.id, None, n, [], None, False)]
        found += [
            m.Commit(made.id, None, 10, [Extent(0, n, "")], None, False),
            m.Commit(made.id, None, 10, [Extent(n, n, "")], None, False),
        ]
    return found


def test_well_formed_messages_that_make_no_sense(space: Daemon, folder: str) -> None:
    top = ask(space, m.Lookup(1, folder[1:].encode())).node
    store(space, f"{folder}/f", b"content")
    made = ask(space, m.Lookup(top.id, b"f")).node
    wrong = []
    for message in _messages(made, top):
        status, _ = ask_raw(space, msgspec.msgpack.encode(message))
        harmless = isinstance(message, m.Changes)
        if not (400 <= status < 500 or (harmless and status == 200)):
            wrong.append((status, message))
    assert wrong == []
    assert fetch(space, f"{folder}/f") == b"content"


@pytest.mark.parametrize("field", ["mode", "uid", "gid", "atime_ns", "mtime_ns", "public", "immutable"])
@pytest.mark.parametrize("value", [BIG, 2**63, SMALL, -1, 1 << 33])
def test_attributes_are_in_range(space: Daemon, folder: str, field: str, value: int) -> None:
    made = ask(space, m.Create(ask(space, m.Lookup(1, folder[1:].encode())).node.id, b"f", NewNode("data")))
    status, _ = ask_raw(space, msgspec.msgpack.encode(m.SetAttributes(made.id, Attributes(**{field: value}))))
    assert status in (200, 400)
    if field in ("uid", "gid", "mtime_ns"):
        new = msgspec.structs.replace(NewNode("data"), **{field: value})
        assert ask_raw(space, msgspec.msgpack.encode(m.Create(made.id + 0, b"x", new)))[0] in (400, 404)
        parent = ask(space, m.Lookup(1, folder[1:].encode())).node.id
        assert ask_raw(space, msgspec.msgpack.encode(m.Create(parent, b"x", new)))[0] in (200, 400)
    after = ask(space, m.Get(made.id))
    assert 0 <= after.mode <= 0o7777 and after.public in (0, 1) and after.immutable in (0, 1)
    assert node(space, f"{folder}/f").properties["length"] == "0"
    ask(space, m.SetAttributes(made.id, Attributes(immutable=0)))


@pytest.mark.parametrize("text", ["\x01", "\0", "\ufffe", "a\r\nX: y", "\x1b[2J"])
def test_what_a_mount_writes_is_still_xml(space: Daemon, folder: str, text: str) -> None:
    top = ask(space, m.Lookup(1, folder[1:].encode())).node
    made = ask(space, m.Create(top.id, b"f", NewNode("data", content_type=text)))
    if isinstance(made, m.Failure):
        made = ask(space, m.Create(top.id, b"f", NewNode("data")))
    for change in (Attributes(content_type=text), Attributes(group_read=text), Attributes(group_write=text)):
        ask(space, m.SetAttributes(made.id, change))
    for number, target in enumerate([text, f"http:{text}", f"a:{text}", f"/{text}", f"../{text}"]):
        made = ask(space, m.Create(top.id, b"l%d" % number, NewNode("link", target=target.encode())))
        assert isinstance(made, Node) or "\0" in target
    assert ask(space, m.Create(top.id, b"raw", NewNode("link", target=b"a:\xff\x01"))).kind == "link"
    assert len(node(space, folder).children) >= 2
    for child in node(space, folder).children:
        assert node(space, child.uri.partition(AUTHORITY)[2]).uri == child.uri
    with Raw(space) as raw:
        raw.send(head(space, "GET", f"/files{folder}/f"))
        answer = raw.answer()
    assert (answer.status, "x" in answer.headers) == (200, False)


# -- fuzz ------------------------------------------------------------------------------------------------------------

SEEDS = [
    b"GET /vos/nodes?detail=max&limit=10&uri=%s HTTP/1.1\r\nHost: x\r\n\r\n"
    % (ROOT + "/fuzz/f").encode().replace(b":", b"%3A"),
    b"GET /vos/nodes/fuzz/f HTTP/1.1\r\nHost: x\r\n\r\n",
    b'GET /vos/files/fuzz/f HTTP/1.1\r\nHost: x\r\nRange: bytes=0-4\r\nIf-Range: "1-2"\r\nIf-None-Match: "3"\r\n\r\n',
    b"PUT /vos/files/fuzz/g HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nDigest: md5=XUFAKrxLKna5cZ2REBfFkg==\r\n\r\n"
    b"hello",
    b"PUT /vos/files/fuzz/g HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HEAD /vos/files/fuzz/f HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
    b"DELETE /vos/nodes/fuzz/none HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /vos/synctrans?TARGET=vos://vosfs.local~vospace/fuzz/f&DIRECTION=pullFromVoSpace&PROTOCOL=ivo://ivoa.net/vospace/core%23httpget"
    b"&REQUEST=redirect HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /vos/transfers/0123456789abcdef01234567/results/transferDetails HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /vos/data/la1wdXNo.x/f HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /vos/blobs/0123456789abcdef0123456789abcdef.7fffffff.AAAAAAAAAAAAAAAAAAAAAA HTTP/1.1\r\nHost: x\r\n\r\n",
]


def _with_body(method: bytes, path: bytes, body: bytes) -> bytes:
    return b"%s /vos%s HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (
        method,
        path,
        len(body),
        body,
    )


BODIES = [
    (
        b"PUT",
        b"/nodes/fuzz/n",
        node_document("/fuzz/n", "LinkNode", {"title": "t", "publicread": "true"}, "vos://a!b/c"),
    ),
    (b"POST", b"/nodes/fuzz/f", node_document("/fuzz/f", "Node", {"title": "t", "length": "0", "groupread": "g"})),
    (b"POST", b"/synctrans", transfer_document(ROOT + "/fuzz/f", "pullFromVoSpace", ["httpget"], "defaultview", ["x"])),
    *[
        (b"POST", b"/gateway", msgspec.msgpack.encode(x))
        for x in (
            m.Hello(),
            m.Get(1),
            m.Lookup(1, b"fuzz"),
            m.Children(1, b"", 10),
            m.Changes(Cursor(1, 1), 0.0),
            m.SpaceUsage(),
            m.Quotas(1),
            m.Renew(["a.b.c"]),
            m.Create(5, b"x", NewNode("data", properties={"u:x": "y"})),
            m.SetAttributes(5, Attributes(mode=1)),
            m.Commit(5, None, 3, [Extent(0, 3, data=b"abc")], None, True),
            m.Rename(5, b"a", 6, b"b", "keep"),
        )
    ],
]
TOKENS = [
    b"\0",
    b"\r\n",
    b"\r\n\r\n",
    b"%00",
    b"%ff",
    b"..",
    b"/",
    b"//",
    b"%2e%2e",
    b"-1",
    b"99999999999999999999",
    b"\xff",
    b"<",
    b"&",
    b'"',
    b"&#0;",
    b"{",
    b"\xc1",
    b"\xcf" + b"\xff" * 8,
    b":",
    b";",
    b",",
    b"=",
    b"*",
    b"?",
    b"#",
    b"%",
    b" ",
    b"\t",
    b"x" * 300,
    b"%C2%B2",
    b"\xc2\xb2",
    b"nan",
    b"vos://",
    b"xsi:nil",
    b"bytes=",
    b"chunked",
    b"Content-Length: 3\r\n",
    b"HTTP/1.1",
    XSI.encode(),
    b"\xed\xa0\x80",
]


@st.composite
def mutated(draw: st.DrawFn, text: bytes) -> bytes:
    """A text with up to five wounds."""
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 6))
        new = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=4)))
        text = text[:at] + new + text[at + cut :]
    return text


REQUESTS = st.one_of(
    st.sampled_from(SEEDS).flatmap(mutated),
    st.sampled_from(BODIES).flatmap(lambda b: mutated(b[2]).map(lambda body: _with_body(b[0], b[1], body))),
)


@pytest.fixture(scope="module")
def fuzzed(space: Daemon) -> Daemon:
    """The shared daemon, with something to find."""
    assert create(space, "/fuzz", "ContainerNode", properties={"publicread": "true"})[0] == 201
    store(space, "/fuzz/f", b"0123456789")
    return space


@settings(max_examples=750, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(requests=st.lists(REQUESTS, min_size=2, max_size=2))
def test_mutated_requests(fuzzed: Daemon, requests: list[bytes]) -> None:
    for request in requests:
        first, _, rest = request.partition(b"\r\n")
        with Raw(fuzzed, timeout_s=10) as raw:
            authorization = f"Authorization: Bearer {fuzzed.token}\r\n".encode()
            raw.send_anyway(first + b"\r\n" + authorization + rest)
            with contextlib.suppress(OSError):
                raw.sock.shutdown(1)
            # Whatever comes, it comes before the deadline, and is not a failure of ours.
            answer = raw.rest()
            assert not answer.startswith(b"HTTP/1.1 5"), (request, answer)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 "), (request, answer)


def test_the_daemon_survived_the_fuzz(fuzzed: Daemon, folder: str) -> None:
    assert_sound(fuzzed, 0 if not folder else len((fuzzed.directory.parent / "space.log").read_text()))
    assert is_fault(fuzzed.request("GET", "/nodes/none"), 404, "NodeNotFound")


def _campaign(*options: str) -> "subprocess.CompletedProcess[str]":
    script = Path(__file__).parents[2] / "scripts" / "fuzz.py"
    return subprocess.run(
        [sys.executable, str(script), "--quiet", *options], capture_output=True, text=True, timeout=150
    )


def test_a_stranger_breaks_nothing_and_learns_nothing() -> None:
    # The short form of make fuzz, which sends a hundred thousand and never the same.
    done = _campaign("--count", "1000", "--seed", "0")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]


def test_the_fuzz_finds_a_leak() -> None:
    done = _campaign("--count", "1500", "--seed", "2", "--leak", "--all")
    assert done.returncode == 1 and "b'canary" in done.stdout, done.stdout[-5000:] + done.stderr[-2000:]
