#!/usr/bin/env python3
"""How fast is the daemon alone?  It has one core to itself; a client of raw sockets asks it from another.

Everything runs on this machine, on loopback, in a fresh directory that is removed at the end: in memory where there
is /dev/shm, so that the figures are the daemon's and not the disk's.  PostgreSQL is a private cluster on the client's
core.  The client itself is measured against a responder that does nothing: that rate is the ceiling of all others.
Bytes are compared with the same HTTP engine serving a bare file.
"""

import argparse
import contextlib
import itertools
import json
import os
import pwd
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from bench.processes import BIN
from bench.report import aligned, list_table, machine

MIB = 1 << 20
START_S_MAX = 60
"""For a process to answer."""
STOP_S_MAX = 30
ANSWER_S_MAX = 120
"""For any single answer; a recursive delete or a long listing is the slowest."""
RECEIVE_BYTES = 256 * 1024
SMALL_BYTES = 4096
MOVES = 9
"""Of the large container; the median counts."""
BIG_ROUNDS = 3
WARM_UP = 0.1
"""Part of the requests that come before memory is weighed."""

AUTHORITY = "vos://vosfs.local~vospace"
NS = "http://www.ivoa.net/xml/VOSpace/v2.0"
XSI = "http://www.w3.org/2001/XMLSchema-instance"
CORE = "ivo://ivoa.net/vospace/core%23"


class LoadError(Exception):
    """Something does not answer, or not as it should; the message is for the user."""


# -- the client ----------------------------------------------------------------------------------------------------

Unit = Callable[[int], Generator[bytes, bytes, None]]
"""One thing to measure: given its number it yields requests, and is sent the whole answer to each."""


@dataclass
class Measured:
    """What a drive found."""

    units: int
    seconds: float
    waits_s: list[float]
    cpu_s: float = 0.0

    @property
    def rate(self) -> float:
        return self.units / self.seconds

    def wait_ms(self, part: float) -> float:
        """The time within which this part of the units was done."""
        ordered = sorted(self.waits_s)
        return 1e3 * ordered[min(len(ordered) - 1, int(part * len(ordered)))]


class _Peer:
    """One connection, and the unit that is under way on it."""

    __slots__ = ("sock", "running", "begun_s", "pending", "length")

    def __init__(self, port: int) -> None:
        self.sock = connect(port)
        self.sock.setblocking(False)
        self.begun_s = 0.0
        self.pending = b""
        self.length = 0
        """Of the answer that is coming, with its head; 0 while the head is incomplete."""


def connect(port: int) -> socket.socket:
    """A connection that waits for an answer no longer than ANSWER_S_MAX."""
    sock = socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def answer_length(data: bytes) -> int:
    """Length of an answer whose head is complete, or 0."""
    end = data.find(b"\r\n\r\n") + 4
    if end == 3:
        return 0
    at = data.find(b"\r\nContent-Length: ", 0, end)
    return end + (int(data[at + 18 : data.index(b"\r", at + 18)]) if at >= 0 else 0)


def drive(port: int, unit: Unit, connections: int, seconds: float = 0, count: int = 0) -> Measured:
    """Keep a unit under way on each connection, for a time or until ``count`` are done."""
    numbers = iter(range(count)) if count else itertools.count()
    poller = select.epoll()
    peers: dict[int, _Peer] = {}
    waits: list[float] = []
    clock = time.perf_counter

    def begin(peer: _Peer) -> bool:
        number = next(numbers, None)
        if number is None or (seconds and clock() > end):
            return False
        peer.running = unit(number)
        peer.begun_s = clock()
        peer.sock.send(next(peer.running))
        return True

    with contextlib.ExitStack() as stack:
        stack.callback(poller.close)
        for _ in range(connections):
            peer = _Peer(port)
            stack.callback(peer.sock.close)
            poller.register(peer.sock, select.EPOLLIN)
            peers[peer.sock.fileno()] = peer
        begun = clock()
        end = begun + seconds
        busy = sum(begin(peer) for peer in peers.values())
        while busy:
            events = poller.poll(ANSWER_S_MAX)
            if not events:
                raise LoadError(f"no answer for {ANSWER_S_MAX} s")
            for fd, _ in events:
                peer = peers[fd]
                data = peer.sock.recv(RECEIVE_BYTES)
                if not data:
                    raise LoadError(f"the connection was closed after {peer.pending[:200]!r}")
                if peer.pending:
                    data = peer.pending + data
                length = peer.length or answer_length(data)
                if not length or len(data) < length:
                    peer.pending, peer.length = data, length
                    continue
                peer.pending, peer.length = b"", 0
                try:
                    peer.sock.send(peer.running.send(data))
                except StopIteration:
                    waits.append(clock() - peer.begun_s)
                    busy -= not begin(peer)
        return Measured(len(waits), clock() - begun, waits)


def check(answer: bytes, status: bytes) -> None:
    """LoadError unless an answer has this status."""
    if answer[9:12] != status:
        raise LoadError(f"not {status.decode()}: {answer[:400]!r}")


def listing(port: int, request: bytes) -> tuple[float, float, int]:
    """Seconds to the first byte and to the last of a streamed answer, and how many nodes are in it."""
    with connect(port) as sock:
        begun = time.perf_counter()
        sock.sendall(request)
        parts = [sock.recv(RECEIVE_BYTES)]
        first = time.perf_counter() - begun
        check(parts[0], b"200")
        length = answer_length(parts[0]) if b"Transfer-Encoding: chunked" not in parts[0][:1000] else 0
        have = len(parts[0])
        while have < length or (not length and not b"".join(parts[-2:]).endswith(b"\r\n0\r\n\r\n")):
            data = sock.recv(RECEIVE_BYTES)
            if not data:
                raise LoadError("a listing broke off")
            parts.append(data)
            have += len(data)
        whole = time.perf_counter() - begun
    return first, whole, b"".join(parts).count(b"<vos:node ")


def upload(port: int, head: bytes, length: int) -> float:
    """Seconds that a PUT of ``length`` bytes takes until it is answered."""
    block = memoryview(os.urandom(MIB))
    with connect(port) as sock:
        begun = time.perf_counter()
        sock.sendall(head)
        for at in range(0, length, MIB):
            sock.sendall(block[: length - at])
        check(sock.recv(RECEIVE_BYTES), b"201")
        return time.perf_counter() - begun


def download(port: int, request: bytes, length: int) -> float:
    """Seconds that a GET of ``length`` bytes takes."""
    view = memoryview(bytearray(MIB))
    with connect(port) as sock:
        begun = time.perf_counter()
        sock.sendall(request)
        head = sock.recv(4096)
        check(head, b"200")
        left = answer_length(head) - len(head)
        while left > 0:
            count = sock.recv_into(view)
            if not count:
                raise LoadError("a download broke off")
            left -= count
        if left or answer_length(head) < length:
            raise LoadError(f"{answer_length(head) + left} bytes came, not {length}")
        return time.perf_counter() - begun


# -- processes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cores:
    """Who runs where: the daemon alone on one core, everybody else on the others."""

    daemon: set[int]
    others: set[int]


def _cores() -> Cores:
    """The last core for the daemon; on a machine of one core all share it."""
    usable = sorted(os.sched_getaffinity(0))
    return Cores({usable[-1]}, set(usable[:-1]) or {usable[-1]})


CORES = _cores()
"""As it was at the start: this process pins itself later."""


@contextlib.contextmanager
def on(chosen: set[int]) -> Iterator[None]:
    """What starts inside runs there."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, chosen)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass
class Served:
    """A process that serves HTTP and said so with a READY line."""

    process: subprocess.Popen[str]
    fields: dict[str, str]

    @property
    def port(self) -> int:
        return int(self.fields["url"].split(":")[2].split("/")[0])

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        parts = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mib(self) -> float:
        """Resident memory now."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise LoadError("the daemon ended")


@contextlib.contextmanager
def served(chosen: set[int], log: Path, *command: object) -> Iterator[Served]:
    """Start a process, wait for its READY line, and end it afterwards."""
    with on(chosen), open(log, "a") as errors:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
        )  # fmt: skip
    assert process.stdout is not None
    try:
        ready = select.select([process.stdout], [], [], START_S_MAX)[0]
        line = process.stdout.readline() if ready else ""
        if not line.startswith("READY "):
            raise LoadError(f"{command[0]} does not start: {log.read_text(errors='replace')[-500:]}")
        yield Served(process, dict(part.split("=", 1) for part in line.split()[1:]))
    finally:
        process.terminate()
        try:
            process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S_MAX)
        process.stdout.close()


@contextlib.contextmanager
def cluster(chosen: set[int]) -> Iterator[str]:
    """DSN of a private PostgreSQL cluster, in a directory of its own that goes with it."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        raise LoadError("PostgreSQL is missing: make init installs it")
    programs = found[-1].parent
    memory = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="vosfs-load-pg-", dir=memory if memory.is_dir() else None))
    demoted: dict[str, object] = {}
    if os.getuid() == 0:
        # initdb refuses root; 'nobody' owns nothing else.
        user = pwd.getpwnam("nobody")
        os.chown(directory, user.pw_uid, user.pw_gid)
        demoted = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={directory} -c fsync=off"

    def run(*command: object) -> None:
        subprocess.run(
            [str(word) for word in command], check=True, stdout=subprocess.DEVNULL, cwd=directory,
            timeout=START_S_MAX, **demoted,
        )  # type: ignore[call-overload] # fmt: skip

    try:
        with on(chosen):
            run(programs / "initdb", "-D", directory / "data", "-A", "trust", "-U", "vosfs", "--no-sync")
            run(programs / "pg_ctl", "-D", directory / "data", "-l", directory / "log", "-w", "-o", options, "start")
        try:
            yield f"postgresql://vosfs@127.0.0.1:{port}/postgres"
        finally:
            run(programs / "pg_ctl", "-D", directory / "data", "-m", "immediate", "stop")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


# -- what the daemon is compared with --------------------------------------------------------------------------------


def serve_nothing() -> None:
    """Answer every request with the same bytes, as fast as this language can: the ceiling of the client."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"READY url=http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    body = b"x" * 1800
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    peers: dict[int, socket.socket] = {listener.fileno(): listener}
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    while True:
        for fd, _ in poller.poll():
            sock = peers[fd]
            if sock is listener:
                sock, _ = listener.accept()
                peers[sock.fileno()] = sock
                poller.register(sock, select.EPOLLIN)
            elif sock.recv(RECEIVE_BYTES):
                sock.send(answer)
            else:
                del peers[fd]
                sock.close()


def serve_bare(path: Path) -> None:
    """The daemon's HTTP engine with a file behind it, and nothing else."""
    import trio

    from server.http import Request, Response, Runs, Server, listen
    from vosfs import wire

    files = [path]

    async def application(request: Request) -> Response:
        if request.method == "PUT":
            # A new file each time, as the daemon's blobs are: a virtual machine writes five times
            # faster to memory that it used before.
            files.append(path.with_name(f"{path.name}-{len(files)}"))
            with open(files[-1], "wb", 0) as target:  # noqa: ASYNC230 (in memory, and nobody else waits)
                await request.receive(lambda data: _write_all(target.fileno(), data))
                await trio.to_thread.run_sync(os.fdatasync, target.fileno())
            return Response(201)
        fd = os.open(files[-1], os.O_RDONLY)
        length = os.fstat(fd).st_size
        return Response(200, [], Runs(length, lambda sock: wire.send_file(sock, fd, 0, length), lambda: os.close(fd)))

    async def serve() -> None:
        sock = listen("127.0.0.1", 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Server(application, sock).run)
            print(f"READY url=http://127.0.0.1:{sock.getsockname()[1]}/", flush=True)

    trio.run(serve)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


# -- requests --------------------------------------------------------------------------------------------------------


class Asking:
    """Requests to one daemon, as bytes."""

    def __init__(self, token: str, spread: int) -> None:
        self.spread = spread
        """Nodes that the small requests go round."""
        self._lines = f"Host: x\r\nAuthorization: Bearer {token}\r\n".encode()
        self.get_node = self._head("GET", "/nodes/get/n%d?limit=0")
        self.moved: deque[str] = deque()
        """Names of the nodes that are moved, where they are now."""

    def _head(self, method: str, path: str, more: str = "") -> bytes:
        return f"{method} /vos{path} HTTP/1.1\r\n".encode() + self._lines + more.encode() + b"\r\n"

    def get(self, path: str) -> bytes:
        """A GET."""
        return self._head("GET", path)

    def put_head(self, path: str, length: int) -> bytes:
        """The head of a PUT."""
        return self._head("PUT", path, f"Content-Length: {length}\r\n")

    def send(self, method: str, path: str, body: bytes) -> bytes:
        """A request with a document."""
        return self._head(method, path, f"Content-Type: text/xml\r\nContent-Length: {len(body)}\r\n") + body

    @staticmethod
    def node(path: str, kind: str = "UnstructuredDataNode", title: str = "") -> bytes:
        """A node document."""
        given = f'<vos:property uri="ivo://ivoa.net/vospace/core#title">{title}</vos:property>' if title else ""
        return (
            f'<vos:node xmlns:vos="{NS}" xmlns:xsi="{XSI}" xsi:type="vos:{kind}" uri="{AUTHORITY}{path}"'
            f' version="2.1"><vos:properties>{given}</vos:properties></vos:node>'
        ).encode()

    @staticmethod
    def transfer(path: str, direction: str, rest: str) -> bytes:
        """A transfer document."""
        return (
            f'<vos:transfer xmlns:vos="{NS}" version="2.1"><vos:target>{AUTHORITY}{path}</vos:target>'
            f"<vos:direction>{direction}</vos:direction>{rest}</vos:transfer>"
        ).encode()

    # Units.

    def get_node_unit(self, number: int) -> Generator[bytes, bytes, None]:
        """getNode of a data node, limit=0."""
        check((yield self.get_node % (number % self.spread)), b"200")

    def create_in(self, paths: Sequence[str], kind: str = "UnstructuredDataNode") -> Unit:
        """createNode in turn in containers."""

        def unit(number: int) -> Generator[bytes, bytes, None]:
            path = f"{paths[number % len(paths)]}/n{number}"
            check((yield self.send("PUT", "/nodes" + path, self.node(path, kind))), b"201")

        return unit

    def set_node_unit(self, number: int) -> Generator[bytes, bytes, None]:
        """setNode of one property."""
        path = f"/get/n{number % self.spread}"
        check((yield self.send("POST", "/nodes" + path, self.node(path, "Node", f"t{number}"))), b"200")

    def run_move(self, source: str, target: str) -> Generator[bytes, bytes, None]:
        """A move's job, until it says that it is done."""
        document = self.transfer(source, AUTHORITY + target, "<vos:keepBytes>false</vos:keepBytes>")
        answer = yield self.send("POST", "/transfers?PHASE=RUN", document)
        check(answer, b"303")
        path = location(answer)
        while True:
            answer = yield self.get(path + "/phase")
            check(answer, b"200")
            phase = answer.rpartition(b"\r\n\r\n")[2].strip()
            if phase == b"COMPLETED":
                return
            if phase not in (b"PENDING", b"QUEUED", b"EXECUTING"):
                raise LoadError(f"a move is {phase.decode()}: {source} -> {target}")

    def move_unit(self, number: int) -> Generator[bytes, bytes, None]:
        """moveNode of an empty data node to a new name in the same container."""
        source = self.moved.popleft()
        target = f"/mv/m{number}"
        yield from self.run_move(source, target)
        self.moved.append(target)

    def pull_unit(self, number: int) -> Generator[bytes, bytes, None]:
        """Negotiation by parameters, answered with a redirect, and the bytes."""
        target = f"{AUTHORITY}/bytes/n{number % self.spread}".replace(":", "%3A")
        query = f"TARGET={target}&DIRECTION=pullFromVoSpace&PROTOCOL={CORE}httpget&REQUEST=redirect"
        answer = yield self.get("/synctrans?" + query)
        check(answer, b"303")
        answer = yield b"GET /vos%s HTTP/1.1\r\nHost: x\r\n\r\n" % location(answer).encode()
        check(answer, b"200")

    def pull_document_unit(self, number: int) -> Generator[bytes, bytes, None]:
        """Negotiation by a document, the transfer details, and the bytes."""
        rest = '<vos:protocol uri="ivo://ivoa.net/vospace/core#httpget"/>'
        document = self.transfer(f"/bytes/n{number % self.spread}", "pullFromVoSpace", rest)
        answer = yield self.send("POST", "/synctrans", document)
        check(answer, b"303")
        answer = yield self.get(location(answer))
        check(answer, b"200")
        answer = yield b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % endpoint(answer)
        check(answer, b"200")

    def push_unit(self, number: int) -> Generator[bytes, bytes, None]:
        """Negotiation by parameters, and the bytes."""
        target = f"{AUTHORITY}/push/n{number % self.spread}".replace(":", "%3A")
        answer = yield self.get(f"/synctrans?TARGET={target}&DIRECTION=pushToVoSpace&PROTOCOL={CORE}httpput")
        check(answer, b"200")
        head = b"PUT %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (endpoint(answer), SMALL_BYTES)
        check((yield head + bytes(SMALL_BYTES)), b"201")

    def put_unit(self, container: str) -> Unit:
        """PUT of a small file by name."""

        def unit(number: int) -> Generator[bytes, bytes, None]:
            head = self.put_head(f"/files{container}/n{number}", SMALL_BYTES)
            check((yield head + bytes(SMALL_BYTES)), b"201")

        return unit

    def mixed_unit(self, number: int) -> Generator[bytes, bytes, None]:
        """One request of each kind in turn."""
        kinds = (self.get_node_unit, self.pull_unit, self.set_node_unit, self.push_unit)
        yield from kinds[number % len(kinds)](number)


def location(answer: bytes) -> str:
    """The path in an answer's Location, below the service's prefix."""
    at = answer.index(b"\r\nLocation: ") + 12
    return answer[at : answer.index(b"\r", at)].decode().partition("/vos")[2]


def endpoint(answer: bytes) -> bytes:
    """The path of the first end-point in transfer details."""
    at = answer.index(b"<vos:endpoint>") + 14
    url = answer[at : answer.index(b"<", at)].replace(b"&amp;", b"&")
    return url[url.index(b"/", 8) :]


# -- measuring -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    seconds: float
    """For one rate."""
    spread: int
    """Nodes that small requests go round."""
    listed: int
    """Children of the listing that has a target."""
    many: int
    """Children of the large container."""
    growth: int
    """Requests over which memory is weighed."""
    big_mib: int


FULL = Sizes(4, 1000, 10_000, 100_000, 100_000, 1024)
QUICK = Sizes(0.35, 200, 1_000, 4_000, 3_000, 256)
CONNECTIONS = (1, 8)


@dataclass(frozen=True)
class Row:
    """A figure: its name, and per engine what it should reach."""

    name: str
    sqlite: float | None = None
    postgres: float | None = None
    most: bool = False
    """The target is a limit, not a goal."""


RATES = [
    Row("getNode limit=0, /s", 8000, 4000),
    Row("createNode, containers of their own, /s", 3000, 2000),
    Row("createNode, one container, /s"),
    Row("setNode, /s"),
    Row("move job and its phase, /s"),
    Row("pull redirect + GET 4 KiB, /s", 1500, 1500),
    Row("pull document + details + GET 4 KiB, /s"),
    Row("push + PUT 4 KiB, /s"),
]
SINGLES = [
    Row("listing {listed}: first byte, s"),
    Row("listing {listed}: whole, s", 0.3, 0.3, True),
    Row("listing {listed}: again, nothing changed, s"),
    Row("listing 100 of {listed}, s"),
    Row("listing {many}: first byte, s"),
    Row("listing {many}: whole, s"),
    Row("listing {many}: RSS grew by, MiB"),
    Row("move of {many} descendants, ms", 20, 20, True),
    Row("{growth} requests: RSS grew by, MiB"),
    Row("RSS at the end, MiB"),
]
BYTES = [
    Row("{big} MiB up, MB/s"),
    Row("{big} MiB up, bare, MB/s"),
    Row("{big} MiB up, % of bare", 70),
    Row("{big} MiB down, MB/s"),
    Row("{big} MiB down, bare, MB/s"),
    Row("{big} MiB down, % of bare", 70),
]


@dataclass
class Figures:
    """All that was measured, by engine, row and number of connections (0: not a rate)."""

    values: dict[tuple[str, str, int], float] = field(default_factory=dict)
    cpu_us: dict[tuple[str, str, int], float] = field(default_factory=dict)
    slow_ms: dict[tuple[str, str, int], float] = field(default_factory=dict)

    def rate(self, engine: str, row: str, connections: int, found: Measured) -> None:
        """Note a rate, with the CPU time and the slowest hundredth that go with it."""
        key = engine, row, connections
        self.values[key] = found.rate
        self.cpu_us[key] = 1e6 * found.cpu_s / found.units
        self.slow_ms[key] = found.wait_ms(0.99)
        say(f"{engine:10} {row:42} x{connections}  {found.rate:9.0f}  {self.cpu_us[key]:6.0f} us CPU")

    def single(self, engine: str, row: str, value: float) -> None:
        """Note a figure that is not a rate."""
        self.values[engine, row, 0] = value
        say(f"{engine:10} {row:42}     {value:9.3g}")


def say(text: str) -> None:
    """Progress, on stderr: stdout is for the table."""
    print(text, file=sys.stderr, flush=True)


class Run:
    """One daemon under load."""

    def __init__(self, engine: str, daemon: Served, sizes: Sizes, figures: Figures) -> None:
        self.engine = engine
        self.daemon = daemon
        self.sizes = sizes
        self.figures = figures
        self.ask = Asking(Path(daemon.fields["token_file"]).read_text().strip(), sizes.spread)

    def drive(self, unit: Unit, connections: int, seconds: float = 0, count: int = 0) -> Measured:
        """Drive it, and count the daemon's CPU time."""
        before = self.daemon.cpu_s()
        found = drive(self.daemon.port, unit, connections, seconds, count)
        found.cpu_s = self.daemon.cpu_s() - before
        return found

    def _rate(self, row: int, unit: Unit, connections: int) -> None:
        found = self.drive(unit, connections, self.sizes.seconds)
        self.figures.rate(self.engine, RATES[row].name, connections, found)

    def _containers(self, *paths: str) -> None:
        for path in paths:
            body = self.ask.node(path, "ContainerNode")

            def unit(_: int, path: str = path, body: bytes = body) -> Generator[bytes, bytes, None]:
                check((yield self.ask.send("PUT", "/nodes" + path, body)), b"201")

            self.drive(unit, 1, count=1)

    def rates(self) -> None:
        """Every rate, with one connection and with eight."""
        ask, sizes = self.ask, self.sizes
        self._containers("/get", "/bytes", "/push", "/mv", "/moved", "/many", "/listed")
        self.drive(ask.create_in(["/get"]), 8, count=sizes.spread)
        self.drive(ask.create_in(["/mv"]), 8, count=sizes.spread)
        self.drive(ask.put_unit("/bytes"), 8, count=sizes.spread)
        ask.moved.extend(f"/mv/n{number}" for number in range(sizes.spread))
        for connections in CONNECTIONS:
            own = [f"/own{connections}-{number}" for number in range(connections)]
            shared = f"/shared{connections}"
            self._containers(shared, *own)
            self._rate(0, ask.get_node_unit, connections)
            self._rate(1, ask.create_in(own), connections)
            self._rate(2, ask.create_in([shared]), connections)
            self._rate(3, ask.set_node_unit, connections)
            taken = itertools.count(connections * 10_000_000)
            self._rate(4, lambda _, taken=taken: ask.move_unit(next(taken)), connections)
            self._rate(5, ask.pull_unit, connections)
            self._rate(6, ask.pull_document_unit, connections)
            self._rate(7, ask.push_unit, connections)
        self.drive(ask.create_in(["/listed"]), 8, count=sizes.listed)
        self.drive(ask.create_in(["/many"]), 8, count=sizes.many)

    def singles(self) -> None:
        """Listings, the large move, memory."""
        sizes, ask = self.sizes, self.ask
        values: list[float] = []
        for path, count in (("/listed", sizes.listed), ("/many", sizes.many)):
            before = self.daemon.rss_mib()
            # Three ways to ask for the same: none is the second time that it is asked for, from which on it is kept.
            ways = ("", "?detail=max", "?detail=Max")
            found = [listing(self.daemon.port, ask.get(f"/nodes{path}{way}")) for way in ways]
            if any(nodes != count + 1 for _, _, nodes in found):
                raise LoadError(f"{found[0][2] - 1} nodes listed, {count} made")
            values += [statistics.median(first for first, _, _ in found), statistics.median(w for _, w, _ in found)]
            if path == "/listed":
                again = [listing(self.daemon.port, ask.get("/nodes" + path))[1] for _ in range(4)]
                values.append(statistics.median(again[1:]))
                pages = [listing(self.daemon.port, ask.get(f"/nodes{path}?limit=100")) for _ in range(9)]
                values.append(statistics.median(whole for _, whole, _ in pages))
            grown = self.daemon.rss_mib() - before
        values.append(grown)
        values.append(1e3 * statistics.median(self._large_move(number) for number in range(MOVES)))
        self.drive(ask.mixed_unit, 8, count=int(WARM_UP * sizes.growth))
        before = self.daemon.rss_mib()
        self.drive(ask.mixed_unit, 8, count=sizes.growth)
        values += [self.daemon.rss_mib() - before, self.daemon.rss_mib()]
        for row, value in zip(SINGLES, values, strict=True):
            self.figures.single(self.engine, row.name, value)

    def _large_move(self, number: int) -> float:
        """Seconds for the large container to go into another one, or back."""
        there, back = ("/many", "/moved/many"), ("/moved/many", "/many")
        found = self.drive(lambda _: self.ask.run_move(*(back if number % 2 else there)), 1, count=1)
        return found.waits_s[0]

    def big(self, bare: Served) -> None:
        """One large file in both directions, in turns with the bare engine."""
        length = self.sizes.big_mib * MIB
        heads = {
            self.daemon.port: (self.ask.put_head("/files/big", length), self.ask.get("/files/big")),
            bare.port: (
                b"PUT / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length,
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            ),
        }
        rows = iter(BYTES)
        for way in (0, 1):
            speeds: dict[int, list[float]] = {port: [] for port in heads}
            for _ in range(BIG_ROUNDS):
                for port, requests in heads.items():
                    seconds = (download if way else upload)(port, requests[way], length)
                    speeds[port].append(length / 1e6 / seconds)
            ours, theirs = (statistics.median(found) for found in speeds.values())
            for value in (ours, theirs, 100 * ours / theirs):
                self.figures.single(self.engine, next(rows).name, value)


def measure(engine: str, directory: Path, sizes: Sizes, figures: Figures) -> None:
    """All figures of one engine."""
    command: list[object] = [BIN / "vosfsd", "--dev", directory / engine, "--port", 0, "--log", "warning"]
    with contextlib.ExitStack() as stack:
        if engine == "PostgreSQL":
            command += ["--dsn", stack.enter_context(cluster(CORES.others))]
        daemon = stack.enter_context(served(CORES.daemon, directory / f"{engine}.log", *command))
        run = Run(engine, daemon, sizes, figures)
        run.rates()
        run.singles()
        if engine == "SQLite":
            # Bytes do not pass through the database: once is enough.
            bare = stack.enter_context(
                served(CORES.daemon, directory / "bare.log", *serving("bare", directory / "bare"))
            )
            run.big(bare)
        log = (directory / f"{engine}.log").read_text(errors="replace")
        if log.strip():
            say(f"the daemon's log:\n{log[-2000:]}")


def serving(what: str, file: Path | None = None) -> list[object]:
    """The command that runs one of the things to compare with."""
    return [sys.executable, Path(__file__).resolve(), "--serve", what, *([file] if file else [])]


def ceiling(directory: Path, sizes: Sizes) -> dict[int, float]:
    """Requests per second of the client, by connections, when answers cost nothing."""
    request = b"GET /vos/nodes/get/n1?limit=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n" % (b"x" * 43)

    def unit(number: int) -> Generator[bytes, bytes, None]:
        check((yield request), b"200")

    with served(CORES.daemon, directory / "nothing.log", *serving("nothing")) as nothing:
        return {n: drive(nothing.port, unit, n, sizes.seconds).rate for n in CONNECTIONS}


# -- tables ----------------------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.{0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 3}f}"


def _named(row: Row, sizes: Sizes) -> str:
    counts = {"listed": sizes.listed, "many": sizes.many, "growth": sizes.growth}
    return row.name.format(big=sizes.big_mib, **{key: f"{value:,}".replace(",", " ") for key, value in counts.items()})


def misses(row: Row, engine: str, figures: Figures) -> bool | None:
    """Whether a target is missed, with eight connections; None without a target or a figure."""
    target = row.sqlite if engine == "SQLite" else row.postgres
    value = figures.values.get((engine, row.name, CONNECTIONS[-1] if row in RATES else 0))
    if target is None or value is None:
        return None
    return value > target if row.most else value < target


def _target(row: Row, engines: Sequence[str]) -> str:
    texts = [f"{'<=' if row.most else '>='} {t:g}" for t in (row.sqlite, row.postgres) if t is not None]
    return " / ".join(dict.fromkeys(texts)) if texts else ""


def tables(figures: Figures, sizes: Sizes, engines: Sequence[str]) -> list[list[list[str]]]:
    """The figures; then what each unit costs."""
    columns = [(engine, n) for engine in engines for n in CONNECTIONS]
    rates = [["", *(f"{engine} x{n}" for engine, n in columns), "target (x8)", ""]]
    costs = [["daemon's CPU, µs (slowest 1 %, ms)", *(f"{engine} x{n}" for engine, n in columns)]]
    for row in RATES:
        keys = [(engine, row.name, n) for engine, n in columns]
        missed = [engine for engine in engines if misses(row, engine, figures)]
        rates.append(
            [_named(row, sizes), *(_number(figures.values.get(key)) for key in keys), _target(row, engines),
             f"<-- {', '.join(missed)}" if missed else ""]
        )  # fmt: skip
        costs.append(
            [_named(row, sizes), *(f"{figures.cpu_us.get(k, 0):.0f} ({figures.slow_ms.get(k, 0):.1f})" for k in keys)]
        )
    singles = [["", *engines, "target", ""]]
    for row in SINGLES + BYTES:
        cells = [_number(figures.values.get((engine, row.name, 0))) for engine in engines]
        missed = [engine for engine in engines if misses(row, engine, figures)]
        if any(cell != "-" for cell in cells):
            mark = f"<-- {', '.join(missed)}" if missed else ""
            singles.append([_named(row, sizes), *cells, _target(row, engines), mark])
    return [rates, singles, costs]


def report(
    figures: Figures, sizes: Sizes, engines: Sequence[str], limits: dict[int, float], about: dict[str, object],
    args: argparse.Namespace,
) -> None:  # fmt: skip
    """Print the tables; save them."""
    alone = "shares its only core with the client" if CORES.daemon == CORES.others else "has one core of its own"
    text = (
        f"{about['cpu']}, {about['cores']} cores, Linux {about['kernel']}, Python {about['python']}; {about['date']}, "
        f"commit {about['commit']}, load {about['load_before']} before.  The daemon {alone}; files in {args.dir}; "
        f"the client alone reaches {limits[1]:.0f} requests/s on one connection and {limits[8]:.0f} on eight."
    )
    made = tables(figures, sizes, engines)
    print(text + "\n\n" + "\n\n".join(aligned(table) for table in made))
    if args.rst:
        plain = [[[cell.replace("<-- ", "missed: ") for cell in row] for row in table] for table in made]
        args.rst.write_text(text + "\n\n" + "\n\n".join(list_table(table) for table in plain) + "\n")
    if args.json:
        kept = {f"{engine}|{row}|{n}": value for (engine, row, n), value in figures.values.items()}
        args.json.write_text(json.dumps({"machine": about, "client": limits, "figures": kept}, indent=1) + "\n")


# -- command line ----------------------------------------------------------------------------------------------------


def _terminated(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    memory = Path("/dev/shm")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--engines", default="SQLite,PostgreSQL", help="default SQLite,PostgreSQL")
    parser.add_argument(
        "--dir", type=Path, default=memory if memory.is_dir() else Path(tempfile.gettempdir()),
        help="where to work (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--rst", type=Path, metavar="FILE", help="write the tables there in reStructuredText")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Entry point."""
    args = _parser().parse_args()
    if args.serve:
        return serve_nothing() if args.serve[0] == "nothing" else serve_bare(Path(args.serve[1]))
    engines = args.engines.split(",")
    if unknown := set(engines) - {"SQLite", "PostgreSQL"}:
        sys.exit(f"load: no engine {', '.join(unknown)}; there are SQLite and PostgreSQL")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _terminated)
    about = machine()
    sizes = QUICK if args.quick else FULL
    figures = Figures()
    os.sched_setaffinity(0, CORES.others)
    directory = Path(tempfile.mkdtemp(prefix="vosfs-load-", dir=args.dir))
    try:
        limits = ceiling(directory, sizes)
        for engine in engines:
            measure(engine, directory, sizes, figures)
    except (LoadError, OSError, subprocess.SubprocessError) as exc:
        sys.exit(f"load: {exc}")
    except KeyboardInterrupt:
        sys.exit("load: interrupted")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    report(figures, sizes, engines, limits, about, args)


if __name__ == "__main__":
    main()
