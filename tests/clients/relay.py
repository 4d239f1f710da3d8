"""A relay between a client and a daemon: it notes what passes, and damages or cuts what it is told to."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP_S = 30
PIECE_BYTES = 64 * 1024
BYTES_PATHS = ("/vos/files/", "/vos/data/")


@dataclass
class Passed:
    """One request and its answer."""

    method: str
    path: str
    headers: dict[str, str]
    sent_bytes: int
    """Length of the request's body."""
    status: int
    answered_bytes: int
    """How much of the answer's body was let through."""


class Relay:
    """Hands every request to the daemon at ``port``.  Only bytes of files are ever tampered with."""

    def __init__(self, port: int) -> None:
        # Constants
        self.port = port
        # Mutable state
        self.passed: list[Passed] = []
        self.damaged_uploads = 0
        """How many uploads, from now on, arrive with one bit of theirs turned."""
        self.damaged_downloads = 0
        self.cut_bytes = 0
        """After how many bytes the connection of a download breaks; 0: never."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"relay": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/vos"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextlib.contextmanager
    def watched(self) -> Iterator[list[Passed]]:
        """What passes inside; afterwards nothing is tampered with any more."""
        self.passed = found = []
        try:
            yield found
        finally:
            self.passed = []
            self.damaged_uploads = self.damaged_downloads = self.cut_bytes = 0

    def take_damage(self, upload: bool) -> bool:
        """Whether this body is to be damaged."""
        if upload:
            self.damaged_uploads -= 1
            return self.damaged_uploads >= 0
        self.damaged_downloads -= 1
        return self.damaged_downloads >= 0


class _Handler(BaseHTTPRequestHandler):
    relay: Relay
    protocol_version = "HTTP/1.1"
    timeout = HOP_S

    def _serve(self) -> None:
        assert "Transfer-Encoding" not in self.headers
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        of_file = self.path.startswith(BYTES_PATHS)
        if self.command == "PUT" and of_file and body and self.relay.take_damage(True):
            body = _turned(body)
        given = {name: value for name, value in self.headers.items() if name.lower() not in ("expect", "host")}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.relay.port, timeout=HOP_S)) as connection:
            connection.request(self.command, self.path, body, {**given, "Host": self.headers["Host"]})
            answer = connection.getresponse()
            content = answer.read()
        download = self.command == "GET" and of_file and answer.status in (200, 206)
        if download and content and self.relay.take_damage(False):
            content = _turned(content)
        whole = content
        if download and 0 < self.relay.cut_bytes < len(content):
            content = content[: self.relay.cut_bytes]
            self.close_connection = True
        self.relay.passed.append(
            Passed(
                self.command, self.path, {name.lower(): value for name, value in self.headers.items()}, len(body),
                answer.status, len(content),
            )
        )  # fmt: skip
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(whole))
        if length is not None and answer.status != 204:
            self.send_header("Content-Length", length)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: what passed is in the list."""


def _turned(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
