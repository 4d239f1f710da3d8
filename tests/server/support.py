"""What the daemon's tests say and ask: documents, raw connections, gateway messages, users."""

import contextlib
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import msgspec
from lxml import etree

from tests import storage
from tests.conftest import BIN, Daemon
from vosfs.metadata import messages as m
from vosfs.metadata.node import CORE
from vosfs.metadata.xml import NS, XSI

AUTHORITY = "vosfs.local~vospace"
ROOT = f"vos://{AUTHORITY}"
NIL = object()
"""As a property's value: delete it."""
ANSWER_S = 20.0


# -- documents ---------------------------------------------------------------------------------------------------


def node_document(
    path: str, kind: str = "UnstructuredDataNode", properties: dict[str, object] | None = None,
    target: str | None = None, uri: str | None = None, namespace: str = NS,
) -> bytes:  # fmt: skip
    """A node document for the encoded ``path``; bare property names are core ones."""
    lines = []
    for name, value in (properties or {}).items():
        key = name if ":" in name else CORE + name
        nil = ' xsi:nil="true"' if value is NIL else ""
        text = "" if value is NIL else escape(str(value), {"\r": "&#13;", "\n": "&#10;"})
        lines.append(f"<vos:property uri={quoteattr(key)}{nil}>{text}</vos:property>")
    type_ = f' xsi:type="vos:{kind}"' if kind else ""
    tail = f"<vos:target>{escape(target)}</vos:target>" if target is not None else ""
    shown = ROOT + path if uri is None else uri
    return (
        f'<vos:node xmlns:vos="{namespace}" xmlns:xsi="{XSI}"{type_} uri={quoteattr(shown)} version="2.1">'
        f"<vos:properties>{''.join(lines)}</vos:properties>{tail}</vos:node>"
    ).encode()


def transfer_document(
    target: str, direction: str, protocols: list[str] | None = None, view: str = "", security: list[str] | None = None
) -> bytes:
    """A transfer document; bare protocol and view names are core ones."""
    methods = "".join(f'<vos:securityMethod uri="{uri}"/>' for uri in security or [])
    offered = "".join(f'<vos:protocol uri="{_core(p)}">{methods}</vos:protocol>' for p in protocols or [])
    shown = f'<vos:view uri="{_core(view)}"/>' if view else ""
    return (
        f'<vos:transfer xmlns:vos="{NS}" version="2.1"><vos:target>{escape(target)}</vos:target>'
        f"<vos:direction>{direction}</vos:direction>{shown}{offered}</vos:transfer>"
    ).encode()


def _core(name: str) -> str:
    return name if ":" in name else CORE + name


@dataclass
class Shown:
    """A node as the service shows it."""

    uri: str
    type: str
    properties: dict[str, str]
    target: str | None
    children: list["Shown"]


def shown(element: etree._Element) -> Shown:
    """Read a node element."""
    properties = {
        (e.get("uri") or "").removeprefix(CORE): e.text or ""
        for e in element.findall(f"{{{NS}}}properties/{{{NS}}}property")
    }
    return Shown(
        element.get("uri") or "", element.get(f"{{{XSI}}}type") or "", properties,
        element.findtext(f"{{{NS}}}target"), [shown(e) for e in element.findall(f"{{{NS}}}nodes/{{{NS}}}node")],
    )  # fmt: skip


def create(
    daemon: Daemon, path: str, kind: str = "UnstructuredDataNode", headers: dict[str, str] | None = None,
    properties: dict[str, object] | None = None, target: str | None = None,
) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    """createNode."""
    return daemon.request("PUT", "/nodes" + path, node_document(path, kind, properties, target), headers)


def update(
    daemon: Daemon, path: str, kind: str = "Node", properties: dict[str, object] | None = None,
    headers: dict[str, str] | None = None, target: str | None = None,
) -> tuple[int, dict[str, str], bytes]:  # fmt: skip
    """setNode."""
    return daemon.request("POST", "/nodes" + path, node_document(path, kind, properties, target), headers)


def node(daemon: Daemon, path: str, query: str = "") -> Shown:
    """getNode, which must succeed."""
    status, _, body = daemon.request("GET", "/nodes" + path + query)
    assert status == 200, body
    return shown(etree.fromstring(body))


def store(daemon: Daemon, path: str, data: bytes, headers: dict[str, str] | None = None) -> None:
    """PUT of bytes, which must succeed."""
    status, _, body = daemon.request("PUT", "/files" + path, data, headers)
    assert status == 201, body


def fetch(daemon: Daemon, path: str) -> bytes:
    """GET of bytes, which must succeed; a redirect to the storage role is followed."""
    status, headers, body = daemon.request("GET", "/files" + path)
    if status in (303, 307):
        status, _, body = daemon.request("GET", headers["Location"])
    assert status == 200, body
    return body


def is_fault(answer: tuple[int, dict[str, str], bytes], status: int, name: str) -> bool:
    """Whether an answer is this fault: its exact name, then white space (R19), as text/plain (R20)."""
    assert answer[0] == status, answer
    assert answer[2].split(maxsplit=1)[:1] == [name.encode()], answer
    assert answer[1]["Content-Type"].startswith("text/plain"), answer
    return True


# -- users and health ----------------------------------------------------------------------------------------------


def vosfsd(*arguments: object, data: str = "", timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    """Run one of the daemon's other commands."""
    return subprocess.run(
        [str(BIN / "vosfsd"), *map(str, arguments)], input=data, capture_output=True, text=True, timeout=timeout_s
    )


def where(daemon: Daemon, dsn: str = "") -> list[str]:
    """The options that point a command at a daemon's space."""
    told = storage.options(daemon.directory)
    return ["--dev", str(daemon.directory), *(["--dsn", dsn] if dsn else []), *told]


def make_user(daemon: Daemon, name: str, groups: str = "", dsn: str = "") -> dict[str, str]:
    """A user with a token; the headers to come in with."""
    file = daemon.directory.parent / f"{daemon.directory.name}-{name}.token"
    done = vosfsd("user", *where(daemon, dsn), name, "--no-password", "--groups", groups)
    assert done.returncode == 0, done.stderr
    done = vosfsd("token", *where(daemon, dsn), name, file)
    assert done.returncode == 0, done.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    return {"Authorization": "Bearer " + file.read_text().strip()}


def log_text(daemon: Daemon) -> str:
    return (daemon.directory.parent / f"{daemon.directory.name}.log").read_text(errors="replace")


def assert_sound(daemon: Daemon, log_from: int = 0) -> None:
    """The daemon runs, answers at once, and has not failed since ``log_from``."""
    assert daemon.process.poll() is None, log_text(daemon)[-3000:]
    with Raw(daemon) as raw:
        raw.send(b"GET /vos/availability HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = raw.answer()
        assert (answer.status, b">true<" in answer.body) == (200, True)
    log = log_text(daemon)[log_from:]
    assert "Traceback" not in log and " failed\n" not in log, log[-3000:]


@contextlib.contextmanager
def stays_sound(daemon: Daemon) -> Iterator[None]:
    """Nothing inside may break the daemon."""
    start = len(log_text(daemon))
    yield
    assert_sound(daemon, start)


# -- raw connections -----------------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class Raw:
    """A TCP connection to a daemon, for what no HTTP library would send."""

    def __init__(self, daemon: Daemon, timeout_s: float = ANSWER_S, receive_buffer: int = 0) -> None:
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout_s)
        self.sock.connect(("127.0.0.1", daemon.port))
        self._pending = b""

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *args: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_anyway(self, data: bytes) -> None:
        """Send to a peer that may have had enough."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.sock.sendall(data)

    def _more(self) -> None:
        data = self.sock.recv(65536)
        if not data:
            raise EOFError(self._pending)
        self._pending += data

    def _take(self, count: int) -> bytes:
        while len(self._pending) < count:
            self._more()
        data, self._pending = self._pending[:count], self._pending[count:]
        return data

    def head(self) -> Answer:
        """An answer up to its body.  EOFError at the end of the connection."""
        while b"\r\n\r\n" not in self._pending:
            self._more()
        text, _, self._pending = self._pending.partition(b"\r\n\r\n")
        first, *lines = text.decode("latin-1").split("\r\n")
        assert first.startswith("HTTP/1.1 "), first
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(int(first.split()[1]), headers)

    def answer(self, head_only: bool = False) -> Answer:
        """A whole answer."""
        answer = self.head()
        if head_only or answer.status in (100, 204, 304):
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            while size := self._chunk_size():
                answer.body += self._take(size)
                assert self._take(2) == b"\r\n"
            assert self._take(2) == b"\r\n"
        else:
            answer.body = self._take(int(answer.headers["content-length"]))
        return answer

    def _chunk_size(self) -> int:
        while b"\r\n" not in self._pending:
            self._more()
        line, _, self._pending = self._pending.partition(b"\r\n")
        return int(line, 16)

    def ended(self) -> bool:
        """Whether the daemon closed the connection, with nothing more to say."""
        try:
            return self._pending == b"" and self.sock.recv(65536) == b""
        except ConnectionResetError:
            return True

    def rest(self) -> bytes:
        """All that still comes until the daemon closes."""
        with contextlib.suppress(ConnectionResetError):
            while data := self.sock.recv(65536):
                self._pending += data
        return self._pending

    def reset(self) -> None:
        """Close with RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()


def head(daemon: Daemon, method: str, path: str, *lines: str, auth: bool = True) -> bytes:
    """A request's head, from its resource on."""
    given = [f"{method} /vos{path} HTTP/1.1", "Host: x", *lines]
    if auth:
        given.append(f"Authorization: Bearer {daemon.token}")
    return ("\r\n".join(given) + "\r\n\r\n").encode("latin-1")


# -- the gateway ---------------------------------------------------------------------------------------------------


def ask(daemon: Daemon, message: m.Request, headers: dict[str, str] | None = None) -> Any:
    """One gateway message; its result, or the ``Failure``."""
    status, body = ask_raw(daemon, msgspec.msgpack.encode(message), headers)
    if status != 200:
        try:
            return msgspec.msgpack.decode(body, type=m.Failure)
        except msgspec.DecodeError:
            return m.Failure(f"status {status}", body.decode())
    return msgspec.msgpack.decode(body, type=m.RESULTS[type(message)])


def ask_raw(daemon: Daemon, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    status, _, answer = daemon.request("POST", "/gateway", body, headers)
    return status, answer


def upload(daemon: Daemon, data: bytes, headers: dict[str, str] | None = None, url: str = "") -> m.Stored:
    """PUT of a blob."""
    status, _, body = daemon.request("PUT", f"{url}/blobs", data, headers)
    assert status == 201, body
    return msgspec.msgpack.decode(body, type=m.Stored)


def open_files(daemon: Daemon) -> list[str]:
    """What the daemon's descriptors stand for."""
    found = []
    for entry in Path(f"/proc/{daemon.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return found
