"""A network that fails on demand, between a program and a real HTTP service."""

import http.client
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

HOP_S = 30
ALWAYS = 1 << 30


Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers, body."""


@dataclass
class Fault:
    """What goes wrong with the next requests of a kind.

    ``refused``: they are answered with ``at`` (a status).  ``silent``: no answer ever comes.  ``cut``: the answer's body
    breaks off at byte ``at``; ``wrong``: it has one bit turned there.  ``cut upload`` and ``wrong upload``: the same for the
    request's.  ``lost``: it is done, and the connection closed instead of an answer.  ``held``: it is done, and no answer ever
    comes.  ``failed``: it is done, and answered with 500.  ``twice``: it is done twice, and answered with what the second gave.
    """

    how: str
    method: str = ""
    target: str = ""
    """Part of it."""
    at: int = 0
    times: int = 1


class Unreliable:
    """Hands every request on to ``endpoint``, but for those that a fault is for; over TLS with a ``context``."""

    def __init__(self, endpoint: str, context: ssl.SSLContext | None = None) -> None:
        # Constants
        self.host = urlsplit(endpoint).netloc
        # Mutable state
        self.faults: list[Fault] = []
        self.seen: list[tuple[str, str]] = []
        """Method and target of each request."""
        self.over = threading.Event()
        self._guard = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"network": self}))
        self._server.daemon_threads = True
        self._scheme = "https" if context else "http"
        if context:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def fault(self, method: str, target: str) -> Fault | None:
        """The fault that a request meets."""
        with self._guard:
            self.seen.append((method, target))
            for fault in self.faults:
                if fault.times and fault.method in ("", method) and fault.target in target:
                    fault.times -= 1
                    return fault
        return None

    def instead(self, method: str, target: str, body: bytes, pass_on: Callable[[], Answer]) -> Answer | None:
        """What it answers itself, if it knows better than the service."""
        return None

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    network: Unreliable
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _handle(self) -> None:
        try:
            self._meet(self.network.fault(self.command, self.path) or Fault(""))
        except ConnectionError:
            # The program gave up.
            self._break_off()

    def _meet(self, fault: Fault) -> None:
        length = int(self.headers.get("content-length") or 0)
        if fault.how == "cut upload":
            self.rfile.read(min(fault.at, length))
            return self._break_off()
        body = self.rfile.read(length)
        answer = self.network.instead(self.command, self.path, body, lambda: self._pass_on(body))
        if answer is not None:
            return self._answer(*answer)
        if fault.how == "silent":
            self.network.over.wait(HOP_S)
            return self._break_off()
        if fault.how == "refused":
            return self._answer(fault.at, [], b"<Error><Code>SlowDown</Code></Error>")
        if fault.how == "wrong upload":
            body = _turned(body, fault.at)
        status, headers, answered = self._pass_on(body)
        if fault.how == "twice":
            status, headers, answered = self._pass_on(body)
        if fault.how == "held":
            self.network.over.wait(HOP_S)
        if fault.how in ("lost", "held"):
            return self._break_off()
        if fault.how == "failed":
            return self._answer(500, [], b"<Error><Code>InternalError</Code></Error>")
        if fault.how == "wrong":
            answered = _turned(answered, fault.at)
        return self._answer(status, headers, answered, fault.at if fault.how == "cut" else None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _handle

    def _pass_on(self, body: bytes) -> Answer:
        connection = http.client.HTTPConnection(self.network.host, timeout=HOP_S)
        try:
            # The host as the client named it: that is what it signed.
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        named = {name.lower() for name, _ in headers}
        for name, value in headers:
            if name.lower() not in ("connection", "keep-alive", "transfer-encoding"):
                self.send_header(name, value)
        if "content-length" not in named:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self._break_off()

    def _break_off(self) -> None:
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


def _turned(body: bytes, at: int) -> bytes:
    """The same with one bit turned."""
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :] if at < len(body) else body
