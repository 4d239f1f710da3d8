"""What the conformance tests say and ask: valid documents, jobs, archives, and a third party with a web server."""

import contextlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, urlencode
from xml.sax.saxutils import escape, quoteattr

from lxml import etree

from tests.conftest import Daemon, eventually
from tests.server.support import ROOT, Raw, Shown, head, shown
from vosfs.metadata.node import CORE
from vosfs.metadata.xml import NS

VOS, UWS = f"{{{NS}}}", "{http://www.ivoa.net/xml/UWS/v1.0}"
HREF = "{http://www.w3.org/1999/xlink}href"
XSI_NIL = "{http://www.w3.org/2001/XMLSchema-instance}nil"
PUSH, PULL, PULL_TO, PUSH_FROM = "pushToVoSpace", "pullFromVoSpace", "pullToVoSpace", "pushFromVoSpace"
XML = {"Content-Type": "text/xml"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
ANONYMOUS = {"Authorization": ""}
ACTIVE = ("PENDING", "QUEUED", "EXECUTING", "HELD", "SUSPENDED")
PUBLIC_SHARE = "http://wiki.ivoa.net/twiki/bin/view/IVOA/VOSpacePublicShare"
END_S = 10.0
WAIT_CAP_S = 60.0
"""Connections live as long everywhere (R411)."""

_SCHEMA = etree.XMLSchema(etree.parse(Path(__file__).parent / "schemas" / "all.xsd"))

HTTPAnswer = tuple[int, dict[str, str], bytes]
Headers = dict[str, str] | None


# -- documents ---------------------------------------------------------------------------------------------------


def valid(body: bytes) -> etree._Element:
    """The root of a document, which the schemas allow (R12); the request in a job's jobInfo too."""
    root = etree.fromstring(body)
    assert _SCHEMA.validate(root), f"{_SCHEMA.error_log.last_error}\n{body.decode()}"
    return root


def read(daemon: Daemon, resource: str, headers: Headers = None) -> etree._Element:
    """GET of a document."""
    status, answered, body = daemon.request("GET", resource, headers=headers)
    assert status == 200, (resource, body)
    assert answered["Content-Type"].split(";")[0] == "text/xml", answered
    return valid(body)


def node_at(daemon: Daemon, path: str, query: str = "", headers: Headers = None) -> Shown:
    """getNode."""
    return shown(read(daemon, f"/nodes{path}{query}", headers))


def exists(daemon: Daemon, path: str) -> bool:
    """Whether there is a node."""
    status, _, body = daemon.request("GET", f"/nodes{path}?limit=0")
    assert status in (200, 404), body
    return status == 200


def names(daemon: Daemon, path: str, query: str = "", headers: Headers = None) -> list[str]:
    """Encoded names of a container's children."""
    return [child.uri.rpartition("/")[2] for child in node_at(daemon, path, query, headers).children]


@dataclass
class Protocol:
    """One protocol of a transfer document; bare names are core ones."""

    uri: str
    endpoint: str = ""
    methods: tuple[str, ...] = ()
    params: dict[str, str] = field(default_factory=dict)


def transfer(
    target: str, direction: str, protocols: list[str | Protocol] | None = None, view: str = "", keep: str = "",
    params: dict[str, str] | None = None, view_params: dict[str, str] | None = None,
) -> bytes:  # fmt: skip
    """A transfer document."""
    lines = [f"<vos:target>{escape(target)}</vos:target><vos:direction>{escape(direction)}</vos:direction>"]
    if view:
        lines.append(f"<vos:view uri={quoteattr(core(view))}>{_params(view_params)}</vos:view>")
    for given in protocols or []:
        protocol = Protocol(given) if isinstance(given, str) else given
        endpoint = f"<vos:endpoint>{escape(protocol.endpoint)}</vos:endpoint>" if protocol.endpoint else ""
        methods = "".join(f"<vos:securityMethod uri={quoteattr(uri)}/>" for uri in protocol.methods)
        inner = endpoint + _params(protocol.params) + methods
        lines.append(f"<vos:protocol uri={quoteattr(core(protocol.uri))}>{inner}</vos:protocol>")
    if keep:
        lines.append(f"<vos:keepBytes>{keep}</vos:keepBytes>")
    lines.append(_params(params))
    return f'<vos:transfer xmlns:vos="{NS}" version="2.1">{"".join(lines)}</vos:transfer>'.encode()


def _params(given: dict[str, str] | None) -> str:
    return "".join(f"<vos:param uri={quoteattr(uri)}>{escape(text)}</vos:param>" for uri, text in (given or {}).items())


def core(name: str) -> str:
    """A core URI from its bare name."""
    return name if ":" in name else CORE + name


def endpoints(details: etree._Element) -> list[tuple[str, str]]:
    """(bare protocol, URL) of a transfer document."""
    return [
        ((p.get("uri") or "").removeprefix(CORE), p.findtext(VOS + "endpoint") or "")
        for p in details.findall(VOS + "protocol")
    ]


# -- jobs --------------------------------------------------------------------------------------------------------


@dataclass
class Job:
    """A job of ``/transfers``, as its owner sees it."""

    daemon: Daemon
    url: str
    headers: Headers = None

    def get(self, what: str = "") -> HTTPAnswer:
        """GET of the job or a sub-resource."""
        return self.daemon.request("GET", self.url + what, headers=self.headers)

    def post(self, what: str, **form: str) -> HTTPAnswer:
        """POST of a form to the job or a sub-resource."""
        return self.daemon.request("POST", self.url + what, urlencode(form).encode(), {**FORM, **(self.headers or {})})

    def text(self, what: str) -> str:
        """GET of a text sub-resource."""
        status, headers, body = self.get(what)
        assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain"), (what, body)
        return body.decode().strip()

    def document(self, query: str = "") -> etree._Element:
        """The job document."""
        return read(self.daemon, self.url + query, self.headers)

    def phase(self) -> str:
        return self.text("/phase")

    def run(self) -> "Job":
        """PHASE=RUN."""
        answer = self.post("/phase", PHASE="RUN")
        assert (answer[0], answer[1].get("Location")) == (303, self.url), answer
        return self

    def abort(self) -> "Job":
        """PHASE=ABORT."""
        answer = self.post("/phase", PHASE="ABORT")
        assert (answer[0], answer[1].get("Location")) == (303, self.url), answer
        return self

    def reaches(self, phase: str) -> "Job":
        """Wait for a phase."""
        eventually(f"{phase} of {self.url}", lambda: self.phase() == phase, END_S)
        return self

    def ended(self) -> str:
        """Wait for the end; the phase it ended in."""
        eventually(f"end of {self.url}", lambda: self.phase() not in ACTIVE, END_S)
        return self.phase()

    def completed(self) -> "Job":
        """Wait for the end, which must be a good one."""
        assert self.ended() == "COMPLETED", self.get("/error")
        return self

    def failed(self, fault: str) -> str:
        """Wait for the end, which must be this fault (R147); the fault's text."""
        assert self.ended() == "ERROR", self.get()
        text = self.text("/error")
        assert text.split()[0] == fault, text
        spaced = "".join(" " + c if c.isupper() else c for c in fault).strip().replace("U R I", "URI")
        message = self.document().findtext(f"{UWS}errorSummary/{UWS}message") or ""
        assert message.startswith(spaced), message
        return text

    def results(self) -> dict[str, str]:
        """Result id -> its reference."""
        return {r.get("id") or "": r.get(HREF) or "" for r in self.document().iter(UWS + "result")}

    def details(self) -> etree._Element:
        """The transferDetails document."""
        return read(self.daemon, self.results()["transferDetails"], self.headers)

    def endpoint(self) -> str:
        """URL of the first end-point."""
        return endpoints(self.details())[0][1]


def new_job(daemon: Daemon, document: bytes, headers: Headers = None, query: str = "") -> Job:
    """POST of a transfer to ``/transfers``."""
    answer = daemon.request("POST", "/transfers" + query, document, {**XML, **(headers or {})})
    assert answer[0] == 303, answer
    assert answer[1]["Location"].startswith(daemon.url + "/transfers/"), answer
    return Job(daemon, answer[1]["Location"], headers)


def ran(daemon: Daemon, document: bytes, headers: Headers = None) -> Job:
    """A job that was told to run."""
    return new_job(daemon, document, headers).run()


def synctrans(daemon: Daemon, document: bytes, headers: Headers = None) -> Job:
    """POST of a transfer to ``/synctrans``."""
    answer = daemon.request("POST", "/synctrans", document, {**XML, **(headers or {})})
    assert answer[0] == 303, answer
    job, found, rest = answer[1]["Location"].partition("/results/transferDetails")
    assert (bool(found), rest) == (True, ""), answer
    return Job(daemon, job, headers)


def by_parameters(daemon: Daemon, headers: Headers = None, **given: str) -> HTTPAnswer:
    """GET of ``/synctrans`` with parameters."""
    return daemon.request("GET", "/synctrans?" + urlencode(given), headers=headers)


def move(daemon: Daemon, source: str, target: str, keep: str = "false", headers: Headers = None) -> Job:
    """moveNode or copyNode between two paths, run."""
    return ran(daemon, transfer(ROOT + source, ROOT + target, keep=keep), headers)


def push(
    daemon: Daemon, path: str, data: bytes, view: str = "", headers: Headers = None
) -> tuple[Job, HTTPAnswer]:  # fmt: skip
    """pushToVoSpace of ``data``: the job, and the answer to the PUT."""
    job = synctrans(daemon, transfer(ROOT + path, PUSH, ["httpput"], view), headers)
    return job, daemon.request("PUT", job.endpoint(), data, auth=False)


def pull(daemon: Daemon, path: str, view: str = "", headers: Headers = None) -> bytes:
    """pullFromVoSpace, which must succeed."""
    job = synctrans(daemon, transfer(ROOT + path, PULL, ["httpget"], view), headers)
    status, _, body = daemon.request("GET", job.endpoint(), auth=False)
    assert status == 200, body
    return body


@contextlib.contextmanager
def half_sent(daemon: Daemon, url: str, data: bytes) -> Iterator[Raw]:
    """A PUT to an end-point whose body has come half way."""
    with Raw(daemon) as raw:
        path = url.removeprefix(daemon.url)
        raw.send(head(daemon, "PUT", path, f"Content-Length: {len(data)}", auth=False) + data[: len(data) // 2])
        yield raw


def refused(raw: Raw) -> bool:
    """Whether an upload ends without success: with a fault, or with the connection."""
    try:
        return raw.answer().status >= 400
    except (EOFError, ConnectionResetError):
        return True


def is_busy(daemon: Daemon, path: str) -> bool:
    """The busy attribute of a node."""
    return read(daemon, f"/nodes{path}").get("busy") == "true"


def encoded(uri: str) -> str:
    """A URI as a query value."""
    return quote(uri, safe="")


# -- archives ----------------------------------------------------------------------------------------------------


def tar(entries: dict[str, bytes | None], tune: Callable[[tarfile.TarInfo], None] | None = None) -> bytes:
    """A tar of name -> bytes; None: a directory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in entries.items():
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
            info.size, info.mtime = len(data or b""), 1_500_000_000
            if tune:
                tune(info)
            archive.addfile(info, io.BytesIO(data or b"") if info.isreg() else None)
    return stream.getvalue()


def untar(data: bytes) -> dict[str, tarfile.TarInfo]:
    """The entries of a tar, by name without slashes at the ends."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {info.name.strip("/").removeprefix("./"): info for info in archive}


def tar_bytes(data: bytes) -> dict[str, bytes]:
    """The files of a tar."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        files = {info.name: archive.extractfile(info) for info in archive if info.isreg()}
        return {name.removeprefix("./"): file.read() for name, file in files.items() if file}


def zipped(entries: dict[str, bytes | None]) -> bytes:
    """A zip of name -> bytes; None: a directory."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name + "/" if data is None else name, data or b"")
    return stream.getvalue()


def zip_bytes(data: bytes) -> dict[str, bytes]:
    """The files of a zip."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {info.filename: archive.read(info) for info in archive.infolist() if not info.is_dir()}


# -- a third party -------------------------------------------------------------------------------------------------


class ThirdParty:
    """A web server that is no VOSpace: it gives what is put into ``files`` and keeps what it is sent.

    A path in ``gates`` answers only when its event is set, so that a transfer can be looked at under way.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.refused: set[str] = set()
        self.gates: dict[str, threading.Event] = {}
        self.requests: list[tuple[str, str]] = []
        """(method, path) of each request that came."""
        self.headers: list[dict[str, str]] = []
        party = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                party.note(self)
                data = party.files.get(self.path)
                if data is None:
                    self.reply(404, b"none")
                    return
                gate = party.gates.get(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Content-Type", "text/x-third")
                self.end_headers()
                half = len(data) // 2
                self.wfile.write(data[:half])
                self.wfile.flush()
                if gate:
                    gate.wait(END_S)
                self.wfile.write(data[half:])

            def do_HEAD(self) -> None:
                party.note(self)
                self.send_response(200 if self.path in party.files else 404)
                self.send_header("Content-Length", str(len(party.files.get(self.path, b""))))
                self.end_headers()

            def do_PUT(self) -> None:
                party.note(self)
                data = self.body()
                gate = party.gates.get(self.path)
                if gate:
                    gate.wait(END_S)
                if self.path in party.refused:
                    self.reply(403, b"no")
                    return
                party.files[self.path] = data
                self.reply(201, b"")

            def body(self) -> bytes:
                if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                    return self.rfile.read(int(self.headers.get("Content-Length", "0")))
                parts = []
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            def reply(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    def note(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append((handler.command, handler.path))
        self.headers.append(dict(handler.headers))

    def asked(self, path: str, method: str) -> int:
        """How often a path was asked for."""
        return self.requests.count((method, path))

    def gate(self, path: str) -> threading.Event:
        """Make a path wait half way."""
        return self.gates.setdefault(path, threading.Event())

    def close(self) -> None:
        for event in self.gates.values():
            event.set()
        self._server.shutdown()
        self._thread.join(END_S)
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A daemon that hangs up is no error of ours."""
