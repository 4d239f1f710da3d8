#!/usr/bin/env python3
"""Hostile requests by the hundred thousand, to a daemon that keeps another user's secret.

A user who may little, and nobody at all, send what hypothesis makes up and mutates: documents, heads, paths, chunks,
ranges, parameters, jobs and gateway messages, over several connections at once.  The run ends with status 1, and the
exact bytes, at the first answer of 500, answer that holds the secret or a path of this machine, traceback in the log,
silence beyond the deadline, death of the daemon, or growth beyond its bound.
"""

import argparse
import base64
import contextlib
import io
import os
import re
import select
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.parse
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from load import BIN, CORE, NS, XSI, LoadError, Served, cluster, served
from lxml import etree

from vosfs.metadata import messages as m
from vosfs.metadata.node import Attributes, Cursor, Extent, NewNode

ANSWER_S_MAX = 20.0
"""All answers to a handful of small requests; two cores shared with others."""
PATIENCE_S = 0.5
"""For requests that may ask to wait: then the client goes away, which is one more thing to try."""
GROWTH_MIB_MAX = 100.0
"""Of the daemon's memory, over the whole run."""
RESET_EVERY = 40
"""Examples between two cleanings of the attacker's container."""
WEIGH_EVERY = 25
SHRINK_S_MAX = 15.0
"""For the search for a smaller case."""
BATCH = 500
"""Examples of one run of hypothesis: its memory of what it tried makes long runs slow."""
CORE_URI = urllib.parse.unquote(CORE)
SPACE = "vos://vosfs.local~vospace"


class Found(Exception):
    """Something that must not be; hypothesis looks for a smaller case."""


class Broken(BaseException):
    """Something after which there is nothing more to try; hypothesis lets it through."""


# -- the space that is attacked --------------------------------------------------------------------------------------


@dataclass
class World:
    """A daemon, its users, and what the attacker knows."""

    daemon: Served
    log: Path
    secret: str
    owner: str
    attacker: str = ""
    victim: str = ""
    needles: list[bytes] = field(default_factory=list)
    """What no answer to the attacker may hold."""
    ids: list[int] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)
    """Paths of end-points and leased blobs."""
    log_at: int = 0
    own_job: int = 0
    """How many of ``jobs`` are fixed; the rest is replaced as new ones are seen."""

    def ask(self, method: str, path: str, token: str, body: bytes = b"", kind: str = "text/xml") -> tuple[int, bytes]:
        """One honest request; status and body."""
        head = (
            f"{method} /vos{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: {kind}\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.daemon.port), ANSWER_S_MAX) as sock:
            sock.sendall(head.encode() + body)
            answer = b""
            while data := sock.recv(65536):
                answer += data
        return int(answer[9:12]), answer

    def must(self, method: str, path: str, token: str, body: bytes = b"", kind: str = "text/xml") -> bytes:
        """One honest request that must succeed."""
        status, answer = self.ask(method, path, token, body, kind)
        if status >= 400:
            raise LoadError(f"{method} {path}: {answer[:500]!r}")
        return answer

    def message(self, message: m.Request, token: str) -> Any:
        """One gateway message."""
        answer = self.must("POST", "/gateway", token, msgspec.msgpack.encode(message), "application/msgpack")
        return msgspec.msgpack.decode(answer.partition(b"\r\n\r\n")[2], type=m.RESULTS[type(message)])

    def make(self, path: str, token: str, kind: str = "UnstructuredDataNode", target: str = "", **given: str) -> None:
        """createNode."""
        self.must("PUT", "/nodes" + path, token, node_document(SPACE + path, kind, given, target))

    def set(self, path: str, token: str, **given: str) -> None:
        """setNode."""
        self.must("POST", "/nodes" + path, token, node_document(SPACE + path, "Node", given))

    def plant(self, leak: bool) -> None:
        """Two users; the victim's private nodes, properties, names, links and jobs with the secret in them."""
        owner, secret = self.owner, self.secret
        self.attacker, self.victim = self._user("mallory"), self._user("victor")
        self.set("", owner, publicread="true", groupwrite="guests")
        self.make("/fuzz", self.attacker, "ContainerNode", publicread="true", groupwrite="")
        self.make("/victim", self.victim, "ContainerNode", publicread="true" if leak else "false", groupwrite="")
        self.make("/vpub", self.victim, "ContainerNode", publicread="true", groupwrite="")
        self.set("", owner, groupwrite="")
        for path in ("/victim/f", "/vpub/f", f"/victim/{secret}"):
            self.make(path, self.victim, publicread="false", title=secret, **{"urn:secret": secret})
            self.must("PUT", "/files" + path, self.victim, secret.encode() * 3, "text/plain")
        self.make("/victim/big", self.victim, publicread="false")
        self.must("PUT", "/files/victim/big", self.victim, secret.encode() * 5000, "text/plain")
        self.make("/victim/l", self.victim, "LinkNode", f"http://{secret}/", publicread="false")
        for rest in ("", "?PHASE=RUN"):
            self.jobs.append(self._job("/transfers" + rest, self.victim, f"/victim/{secret}", "pullFromVoSpace"))
        self.jobs.append(self._job("/synctrans", self.victim, f"/victim/{secret}", "pullFromVoSpace"))
        top = self.message(m.Lookup(1, b"victim"), self.victim).node.id
        self.ids += [1, top]
        for parent, name in ((top, b"f"), (top, b"big"), (1, b"fuzz"), (1, b"vpub")):
            self.ids.append(self.message(m.Lookup(parent, name), self.victim).node.id)
        self.own_job = len(self.jobs)
        self.needles = [secret.encode(), secret.encode().hex().encode(), str(self.log.parent).encode()]
        # In base64 the same bytes look different at each of three offsets; the ends depend on the neighbours.
        for offset in range(3):
            self.needles.append(base64.b64encode(bytes(offset) + secret.encode())[4:-4])
        self.reset()

    def _user(self, name: str) -> str:
        file = self.log.parent / f"{name}.token"
        where = self._where()
        run = [str(BIN / "vosfsd")]
        for command in (
            ["user", *where, name, "--no-password", "--groups", "guests"],
            ["token", *where, name, str(file)],
        ):
            done = subprocess.run(run + command, capture_output=True, text=True, timeout=60)
            if done.returncode:
                raise LoadError(done.stderr)
        return file.read_text().strip()

    def _where(self) -> list[str]:
        given = self.daemon.process.args
        assert isinstance(given, list)
        words = [str(word) for word in given]
        dsn = ["--dsn", words[words.index("--dsn") + 1]] if "--dsn" in words else []
        return ["--dev", words[words.index("--dev") + 1], *dsn]

    def _job(self, path: str, token: str, target: str, direction: str, view: str = "") -> str:
        document = transfer_document(SPACE + target, direction, view, ["httpget", "httpput"])
        answer = self.must("POST", path, token, document)
        return answer.partition(b"/vos/transfers/")[2].split(b"\r")[0].split(b"/")[0].decode()

    def reset(self) -> None:
        """Empty the attacker's container, and put something into it."""
        self.set("/fuzz", self.attacker, immutable="false", publicread="true")
        listing = self.must("GET", "/nodes/fuzz?detail=min", self.attacker)
        for part in listing.split(b'<vos:node uri="vos://vosfs.local~vospace')[1:]:
            path = part.split(b'"')[0].decode().replace("&amp;", "&")
            self.set(path, self.attacker, immutable="false")
            if self.ask("DELETE", "/nodes" + path, self.attacker)[0] == 403:
                # Something below is read-only: no longer.
                document = node_document(SPACE + path, "Node", {"immutable": "false"})
                answer = self.must("POST", "/async-setprops?PHASE=RUN", self.attacker, document)
                job = answer.partition(b"/async-setprops/")[2].split(b"\r")[0].decode()
                self.must("GET", f"/async-setprops/{job}?WAIT=20", self.attacker)
                self.must("DELETE", "/nodes" + path, self.attacker)
        for path in ("/fuzz/w", "/fuzz/w/c", "/fuzz/w/c/d"):
            self.make(path, self.attacker, "ContainerNode")
        for path in ("/fuzz/w/f", "/fuzz/w/c/f"):
            self.must("PUT", "/files" + path, self.attacker, b"0123456789" * 4, "text/plain")
        self.must("PUT", "/files/fuzz/w/big", self.attacker, b"0123456789" * 5000, "text/plain")
        self.make("/fuzz/w/l", self.attacker, "LinkNode", f"{SPACE}/victim/f")
        del self.jobs[self.own_job :], self.ids[6:], self.urls[:]
        self.jobs.append(self._job("/transfers", self.attacker, "/fuzz/w/f", "pullFromVoSpace"))
        for direction in ("pullFromVoSpace", "pushToVoSpace"):
            job = self._job("/synctrans", self.attacker, "/fuzz/w/f", direction)
            self.jobs.append(job)
            details = self.must("GET", f"/transfers/{job}/results/transferDetails", self.attacker)
            url = details.partition(b"<vos:endpoint>")[2].partition(b"<")[0].decode()
            self.urls.append("/data/" + url.partition("/data/")[2])
        for format in ("tar", "tar", "zip", "zip"):
            view = f'<vos:view uri="{CORE_URI}{format}"/>'
            job = self._job("/synctrans", self.attacker, "/fuzz/w/c", "pushToVoSpace", view)
            details = self.must("GET", f"/transfers/{job}/results/transferDetails", self.attacker)
            self.urls.append("/data/" + details.partition(b"/data/")[2].partition(b"<")[0].decode())
        work = self.message(m.Lookup(self.ids[4], b"w"), self.attacker).node.id
        self.ids.append(work)
        for name in (b"f", b"c", b"big", b"l"):
            found = self.message(m.Lookup(work, name), self.attacker)
            self.ids.append(found.node.id)
            if name == b"big" and found.extents:
                self.urls.append("/blobs/" + found.extents[0].locator)

    def learn(self, answer: bytes) -> None:
        """Note new jobs: the next requests may go to them."""
        for part in answer.split(b"/vos/transfers/")[1:4]:
            job = part[:64].split(b"\r")[0].split(b"/")[0].split(b'"')[0].decode("latin-1")
            if job.isalnum() and job not in self.jobs:
                self.jobs.append(job)
                del self.jobs[self.own_job + 3 : -8]

    def check_log(self) -> None:
        """Found, if the daemon noted a failure since the last look."""
        size = self.log.stat().st_size
        if size <= self.log_at:
            return
        with open(self.log, "rb") as file:
            file.seek(self.log_at)
            text = file.read().decode(errors="replace")
        self.log_at = size
        if "Traceback" in text or " ERROR " in text or "CRITICAL" in text:
            raise Found(f"in the log:\n{text[-3000:]}")


def node_document(uri: str, kind: str, given: dict[str, str], target: str = "") -> bytes:
    """An honest node document; bare names are core properties."""
    lines = "".join(
        f'<vos:property uri="{name if ":" in name else CORE_URI + name}">{value}</vos:property>'
        for name, value in given.items()
    )
    tail = f"<vos:target>{target}</vos:target>" if target else ""
    return (
        f'<vos:node xmlns:vos="{NS}" xmlns:xsi="{XSI}" xsi:type="vos:{kind}" uri="{uri}" version="2.1">'
        f"<vos:properties>{lines}</vos:properties>{tail}</vos:node>"
    ).encode()


def transfer_document(target: str, direction: str, view: str, protocols: list[str]) -> bytes:
    """An honest transfer document."""
    offered = "".join(f'<vos:protocol uri="{CORE_URI}{name}"/>' for name in protocols)
    return (
        f'<vos:transfer xmlns:vos="{NS}" version="2.1"><vos:target>{target}</vos:target>'
        f"<vos:direction>{direction}</vos:direction>{view}{offered}</vos:transfer>"
    ).encode()


# -- what is sent ----------------------------------------------------------------------------------------------------

TOKENS = [
    b"\0", b"\r\n", b"\r\n\r\n", b"%00", b"%ff", b"..", b"/", b"//", b"%2e%2e", b"-1", b"99999999999999999999", b"\xff",
    b"<", b"&", b'"', b"&#0;", b"{", b"\xc1", b"\xcf" + b"\xff" * 8, b":", b";", b",", b"=", b"*", b"?", b"#", b"%", b" ",
    b"\t", b"x" * 300, b"%C2%B2", b"\xc2\xb2", b"nan", b"vos://", b"xsi:nil", b"bytes=", b"chunked", b"HTTP/1.1",
    b"Content-Length: 3\r\n", XSI.encode(), b"\xed\xa0\x80", b"<!DOCTYPE a [", b"<![CDATA[", b"]]>", b"<?", b"&a;",
    b"\x93\xa6", b"\xdd\xff\xff\xff\xff", b"0\r\n\r\n", b"victim", b"/victim/f", b".null", b".auto",
]  # fmt: skip
"""What a mutation puts in."""
Pool = tuple[Sequence[Any], Sequence[Any]]
"""Values that make sense, and odd ones: with odd ones only, nothing gets past the first check."""
NAMES: Pool = (
    ["f", "c", "c/d", "c/f", "l", "n", "m", "big"],
    ["%C3%A9", "a%20b", "%ff", "%00", "%2f", "..", ".", "%2e%2e", ".auto", ".null", "", "*", "x" * 255, "x" * 256, "%",
     "%zz", "a;b=c", "a:b", "a&amp;b"],
)  # fmt: skip
PLACES: Pool = (
    ["/fuzz/w"] * 5 + ["/victim", "/vpub"],
    ["/victim/f", "/vpub/f", "/victim/big", "/fuzz", "/none", "", "/"],
)
AUTHORITIES: Pool = (
    [SPACE, "vos://vosfs.local!vospace"],
    ["vos://other!vospace", "vos:", "http://127.0.0.1:9", "ivo://ivoa.net", "file://"],
)
KINDS: Pool = (
    ["DataNode", "UnstructuredDataNode", "ContainerNode", "LinkNode"],
    ["Node", "StructuredDataNode", "NoNode", ""],
)
KEYS: Pool = (
    [CORE_URI + name for name in ("title", "description", "publicread", "groupread", "groupwrite", "type")] + ["urn:a", "urn:secret"],
    [CORE_URI + name for name in ("ispublic", "immutable", "length", "MD5", "date", "mtime", "creator", "quota", "no-such")] + ["x", " ", ""],
)  # fmt: skip
VALUES: Pool = (
    ["", "true", "false", "guests", "a b,c", "text/plain"],
    [
        "1",
        "-1",
        "9" * 30,
        "\u00e9\U0001f600",
        "x" * 5000,
        "a&#13;b",
        "&#x1F600;",
        "2020-01-01T00:00:00",
        "]]&gt;",
        "ivo://x/gms?admin",
    ],
)
PROTOCOLS: Pool = (["httpget", "httpput", "httpsget", "httpsput"], ["no-such", "ftpget"])
VIEWS: Pool = (["anyview", "defaultview", "binaryview", "tar", "zip"], ["no-such", ""])
THIRD_PARTIES: Pool = (
    ["http://127.0.0.1:9/x"],
    [
        "http://[::1",
        "http://[x]/",
        "http://127.0.0.1:99999/",
        "http://a:b@127.0.0.1/",
        "http://0/",
        "http://[::ffff:127.0.0.1]/",
        "http://127.0.0.1:-1/",
        "ftp://127.0.0.1/",
        "http://" + "a" * 300 + "/",
        "http://\u00e9/",
        "file:///etc/passwd",
        "x",
        "",
    ],
)
"""Where the daemon is sent: nowhere outside this machine."""
DIRECTIONS: Pool = (["pushToVoSpace", "pullFromVoSpace", "pullToVoSpace", "pushFromVoSpace"], ["x", ""])
KINDS_OF_JOBS = ["transfers"] * 6 + ["async-delete", "async-setprops"]
PHASES: Pool = (["RUN", "ABORT"], ["run", "PENDING", "COMPLETED", "ARCHIVED", "", "X"])
NUMBERS: Pool = (
    ["0", "1", "2", "10"],
    [
        "-1",
        "99999999999999999999",
        "1e3",
        "nan",
        "",
        " 1",
        "0x1",
        "\u0662",
        "\u00b2",
        "1" + "0" * 5000,
        "0" * 5000 + "1",
    ],
)
TIMES: Pool = (
    ["2026-01-01T00:00:00Z", "2026-01-01T00:00:00.000Z"],
    [
        "1",
        "",
        "9999-12-31T23:59:59Z",
        "0000-00-00",
        "2100-02-30T25:61:61Z",
        "-1000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2026-W01-1",
        "20260101",
    ],
)
JOB_PARTS: Pool = (
    ["", "/phase", "/error", "/results", "/results/transferDetails", "/parameters", "/owner", "/quote", "/destruction",
     "/executionduration", "/events"],
    ["/jobInfo", "/x", "/results/x", "/phase/x", "//", "/.."],
)  # fmt: skip
FIXED: Pool = (
    ["/capabilities", "/availability", "/protocols", "/views", "/properties"], ["/", "", "/x", "/%6eodes", "/nodes;x"]
)  # fmt: skip
ODD_METHODS = ["HEAD", "OPTIONS", "PATCH", "TRACE", "get", "X" * 40, "GET", "PUT", "POST", "DELETE"]
METHODS: dict[str, Pool] = {
    "nodes": (["GET", "PUT", "PUT", "POST", "POST", "DELETE", "HEAD"], ODD_METHODS),
    "files": (["GET", "PUT", "HEAD"], ODD_METHODS),
    "forms": (["GET", "POST"], ODD_METHODS),
    "jobs": (["GET", "GET", "POST", "DELETE"], ODD_METHODS),
    "fixed": (["GET", "HEAD"], ODD_METHODS),
}
KEEP: Pool = (["false", "true", ""], ["1", "0", "x"])
SENSIBLE = [
    "Range: bytes=0-4", "Range: bytes=-5", "Range: bytes=5-", "Range: bytes=40-", 'If-Range: "1-2"', 'If-None-Match: "1-2", W/"3"',
    "If-None-Match: *", "Digest: md5=XUFAKrxLKna5cZ2REBfFkg==", "Content-MD5: 5d41402abc4b2a76b9719d911017c592",
    "Content-Type: text/xml", "Content-Type: application/x-www-form-urlencoded", "Content-Type: text/plain", "Accept: */*",
    "Accept: text/html", "Accept-Encoding: gzip", "Vosfs-Origin: x", "X-Put-Txn-Op: start", "X-Total-Length: 5", "Cookie: a=b",
]  # fmt: skip
"""Header lines of honest clients."""
STRANGE = [
    *("Range: " + text for text in (
        "bytes=3-2", "bytes=0-0,2-3", "bytes=-0", "items=0-1", "bytes=", "bytes=99999999999999999999-", "bytes = 1 - 2",
        "bytes=0-18446744073709551615", "bytes=\u0661-2")),
    "If-Range: x", "If-Match: *", "If-Modified-Since: x", "Digest: md5=!", "Digest: sha-256=x,md5=", "Content-MD5: \u00e9",
    "Expect: 100-continue", "Expect: x", "Content-Type: text/html; a=\u00e9", "Connection: close", "Connection: upgrade",
    "Upgrade: h2c", "Vosfs-Origin: " + "x" * 100, "Host: y", "A:b", ": x", "Transfer-Encoding: gzip", "Content-Length: 0",
    "Content-Encoding: gzip", "Depth: infinity", "Destination: /vos/nodes", "Forwarded: for=127.0.0.1",
    "X-Forwarded-Host: evil", "X-HTTP-Method-Override: DELETE", "Content-Range: bytes 0-1/2",
]  # fmt: skip


def _archives() -> list[bytes]:
    """Archives that want to leave their container, or are broken."""
    names = ["a", "c/d", "../../victim/x", "/etc/x", "a", "x" * 300, "", "c/../e", "%2e%2e/f"]
    found = []
    for mode in ("w", "w:gz"):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode=mode) as tar:
            for number, name in enumerate(names):
                member = tarfile.TarInfo(name)
                member.type = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE][
                    number % 5
                ]
                member.linkname = "../../victim/f"
                member.size = 5 if member.isreg() else 0
                tar.addfile(member, io.BytesIO(b"hello"))
        found.append(buffer.getvalue())
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        warnings.simplefilter("ignore")
        for name in names[:6]:
            packed.writestr(name, b"hello" * 20)
    return [*found, buffer.getvalue(), found[0][:700], buffer.getvalue()[:-30]]


ARCHIVES = _archives()
BASIC = "Basic " + base64.b64encode(b"victor:victor").decode()


def build(world: World) -> st.SearchStrategy[list[tuple[list[bytes], int]]]:
    """What one example sends: for each connection, its requests, and how they are sent."""
    whole = st.integers

    def of(pool: Pool) -> st.SearchStrategy[Any]:
        """One of a pool; one in eight is odd."""
        sensible, odd = pool
        return st.sampled_from([*odd, *list(sensible) * (1 + 7 * len(odd) // len(sensible))])

    pick = st.sampled_from
    names, places, authorities, kinds, keys, values = (of(p) for p in (NAMES, PLACES, AUTHORITIES, KINDS, KEYS, VALUES))
    protocols, views, directions, phases, numbers = (of(p) for p in (PROTOCOLS, VIEWS, DIRECTIONS, PHASES, NUMBERS))
    times, job_parts, fixed, keeps = (of(p) for p in (TIMES, JOB_PARTS, FIXED, KEEP))
    third_parties = pick([*THIRD_PARTIES[0], *THIRD_PARTIES[1]])
    methods = {resource: of(pool) for resource, pool in METHODS.items()}
    paths = st.builds(lambda place, rest: "/".join([place, *rest]), places, st.lists(names, max_size=2))
    uris = st.builds(str.__add__, authorities, paths)
    nils = pick(["", "", "", ' xsi:nil="true"', ' xsi:nil="x"', ' readOnly="true"'])
    properties = st.builds('<vos:property uri="{}"{}>{}</vos:property>'.format, keys, nils, values)
    extras = pick(
        ["", "", "", "<vos:accepts/><vos:provides/>", "<vos:nodes><vos:node/></vos:nodes>", "<x/>", "<!-- -->"]
    )

    @st.composite
    def node_documents(draw: st.DrawFn, uri: str) -> bytes:
        kind = draw(kinds)
        lines = "".join(draw(st.lists(properties, max_size=3)))
        target = f"<vos:target>{draw(uris)}</vos:target>" if kind == "LinkNode" or draw(whole(0, 9)) == 7 else ""
        type_ = f' xsi:type="vos:{kind}"' if kind else ""
        return (
            f'<vos:node xmlns:vos="{NS}" xmlns:xsi="{XSI}" uri="{uri}"{type_}>'
            f"<vos:properties>{lines}</vos:properties>{draw(extras)}{target}</vos:node>"
        ).encode()

    offers = st.builds(
        '<vos:protocol uri="{}{}"><vos:endpoint>{}</vos:endpoint><vos:securityMethod uri="{}"/></vos:protocol>'.format,
        st.just(CORE_URI), protocols, third_parties, pick(["", "ivo://ivoa.net/sso#BasicAA", "x"]),
    )  # fmt: skip

    @st.composite
    def transfer_documents(draw: st.DrawFn) -> bytes:
        node = draw(st.booleans())
        direction = draw(uris if node else directions)
        view = f'<vos:view uri="{CORE_URI}{draw(views)}"/>' if draw(whole(0, 4)) == 3 else ""
        offered = "" if node else "".join(draw(st.lists(offers, min_size=1, max_size=2)))
        keep = draw(keeps) if node else ""
        kept = f"<vos:keepBytes>{keep}</vos:keepBytes>" if keep else ""
        param = f'<vos:param uri="{CORE_URI}length">{draw(numbers)}</vos:param>' if draw(whole(0, 4)) == 3 else ""
        return (
            f'<vos:transfer xmlns:vos="{NS}"><vos:target>{draw(uris)}</vos:target>'
            f"<vos:direction>{direction}</vos:direction>{view}{offered}{kept}{param}</vos:transfer>"
        ).encode()

    def known(of_what: list[Any]) -> st.SearchStrategy[Any]:
        """One of a list that changes while the run goes on."""
        return whole(0, 20).map(lambda n: of_what[n % len(of_what)])

    odd_ids = [0, 1, -1, 2**63, 2**64 - 1, -(2**63)]
    ids = whole(0, 90).map(lambda n: odd_ids[n] if n < len(odd_ids) else world.ids[n % len(world.ids)])
    raw_names = of(
        ([b"f", b"c", b"n", b"m", b"l", b"big", b"w"], [b"", b".", b"..", b"a/b", b"\0", b"\xff", b"x" * 256, b".null"])
    )
    texts = of((["", "x", "true"], ["\0", "a\r\nb", "x" * 5000, "\u00e9"]))
    counts = of(([0, 1, 4, 40], [16384, -1, 2**31, 2**62, 2**63]))
    extents = st.builds(Extent, counts, counts, texts, counts, st.binary(max_size=8))
    new_nodes = st.builds(
        NewNode, of((["data", "container", "link"], ["x"])), mode=of(([0o644], [0o7777, -1, 2**40])),
        target=raw_names, owner=pick(["victor", "root", ""]), public=pick([0, 1, 2]), immutable=pick([0, 0, 1]),
        content_type=texts, properties=st.dictionaries(keys, texts, max_size=2),
    )  # fmt: skip
    attributes = st.builds(
        Attributes, mode=st.none() | pick([0, 0o777, -1]), uid=st.none() | pick([0, -1, 2**32]),
        mtime_ns=st.none() | counts, public=st.none() | pick([0, 1, 9]), group_read=st.none() | texts,
        immutable=st.none() | pick([0, 1]), target=st.none() | raw_names,
    )  # fmt: skip
    tags = pick([kind.__name__ for kind in m.RESULTS])
    scalars = (
        st.none()
        | st.booleans()
        | whole(-(2**63), 2**64 - 1)
        | st.floats()
        | st.text(max_size=4)
        | st.binary(max_size=4)
    )
    plain = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
        max_leaves=6,
    )
    leases = whole(0, 20).map(lambda n: world.urls[n % len(world.urls)].rpartition("/")[2])
    messages = st.one_of(
        st.builds(m.Hello), st.builds(m.SpaceUsage), st.builds(m.Get, ids), st.builds(m.Open, ids), st.builds(m.Sync),
        st.builds(m.Properties, ids), st.builds(m.Quotas, ids), st.builds(m.Lookup, ids, raw_names), st.builds(m.Children, ids, raw_names, counts),
        st.builds(m.Create, ids, raw_names, new_nodes), st.builds(m.Link, ids, ids, raw_names),
        st.builds(m.Remove, ids, raw_names, of((["leaf", "empty"], ["tree", ""]))),
        st.builds(m.Rename, ids, raw_names, ids, raw_names, of((["", "keep", "exchange"], ["x"]))),
        st.builds(m.SetAttributes, ids, attributes),
        st.builds(m.Commit, ids, st.none() | counts, counts, st.lists(extents, max_size=3), st.none() | counts, st.booleans()),
        st.builds(m.SetProperties, ids, st.dictionaries(keys, st.none() | texts, max_size=2)),
        st.builds(m.Renew, st.lists(leases, max_size=2)),
        st.builds(m.Changes, st.builds(Cursor, counts, counts), of(([0.0, 0.01], [-1.0, float("nan"), float("inf"), 1e300]))),
        st.tuples(tags, plain, plain).map(list), st.tuples(tags, ids, raw_names, plain).map(list), plain,
    ).map(msgspec.msgpack.encode)  # fmt: skip

    words = pick(["min", "max", "properties", "x", "", "redirect", "DELETE", "data", "\u00e9"])
    given_as = {
        "uri": uris, "TARGET": uris, "limit": numbers, "WAIT": numbers, "LAST": numbers, "EXECUTIONDURATION": numbers,
        "AFTER": times, "DESTRUCTION": times, "PHASE": phases, "DIRECTION": directions,
        "PROTOCOL": protocols.map(lambda name: CORE_URI + name), "VIEW": views.map(lambda name: CORE_URI + name),
        "detail": words, "REQUEST": words, "ACTION": words, "RUNID": words, "view": words, "x": words, "SECURITYMETHOD": words,
        "durable": words, "CALLBACK": third_parties, "RESPONSEFORMAT": views, "responseformat": views,
    }  # fmt: skip
    parameter = pick(sorted(given_as)).flatmap(lambda key: st.tuples(st.just(key), given_as[key]))
    safe = pick(["", ":/", ":/#&"])
    forms = st.builds(
        lambda found, kept: "&".join(f"{key}={urllib.parse.quote(value, safe=kept)}" for key, value in found),
        st.tuples(st.lists(parameter, min_size=1, max_size=4), whole(0, 30)).map(lambda two: two[0] * (60 if two[1] == 17 else 1)), safe,
    )  # fmt: skip
    transfer_forms = st.builds(
        lambda *found: "&".join(f"{k}={urllib.parse.quote(v)}" for k, v in zip(("TARGET", "DIRECTION", "PROTOCOL", "REQUEST"), found, strict=True)),
        uris, directions, given_as["PROTOCOL"], words,
    )  # fmt: skip
    uws = {
        "PHASE": pick([*PHASES[0], *PHASES[1]]), "WAIT": pick([*NUMBERS[0], *NUMBERS[1]]), "LAST": pick([*NUMBERS[0], *NUMBERS[1]]),
        "AFTER": pick([*TIMES[0], *TIMES[1]]), "DESTRUCTION": pick([*TIMES[0], *TIMES[1]]), "ACTION": pick(["DELETE", "x"]),
        "EXECUTIONDURATION": pick([*NUMBERS[0], *NUMBERS[1]]), "RUNID": pick(["x", "\0", "\x01", "\uffff", "<&>", "x" * 5000]),
        "CALLBACK": third_parties,
    }  # fmt: skip
    uws_forms = st.builds(
        lambda found: "&".join(f"{key}={urllib.parse.quote(value)}" for key, value in found),
        st.lists(pick(sorted(uws)).flatmap(lambda key: st.tuples(st.just(key), uws[key])), min_size=1, max_size=3),
    )
    job_forms = st.one_of(pick(["PHASE=RUN", "PHASE=ABORT", "ACTION=DELETE"]), uws_forms, uws_forms, forms)
    odd_jobs = ["x", "0" * 24, "%00"]
    jobs = whole(0, 40).map(lambda n: odd_jobs[n] if n < len(odd_jobs) else world.jobs[n % len(world.jobs)])
    job_paths = st.builds("/{}/{}{}".format, pick(KINDS_OF_JOBS), jobs, job_parts)
    urls = st.builds(str.__add__, known(world.urls), of(([""], ["x", "/x"]))) | pick(["/blobs", "/blobs/x", "/data/x"])

    @st.composite
    def targets(draw: st.DrawFn) -> tuple[str, str, bytes]:
        """(method, path, body) that belong together, mostly."""
        what = draw(whole(0, 9))
        if what <= 2:
            method = draw(methods["nodes"])
            path = draw(paths)
            about = SPACE + "/victim/f" if draw(whole(0, 9)) == 7 else SPACE + path
            return method, "/nodes" + path, draw(node_documents(about)) if method in ("PUT", "POST") else b""
        if what == 3:
            method = draw(methods["files"])
            return method, "/files" + draw(paths), draw(st.binary(max_size=40)) if method == "PUT" else b""
        if what == 4:
            path = draw(pick(["/synctrans", "/transfers", "/transfers", "/transfers", "/sync", "/async-setprops"]))
            body = draw(node_documents(draw(uris)) if "setprops" in path else transfer_documents())
            if path[1:] in KINDS_OF_JOBS and draw(whole(0, 3)) != 3:
                path += "?PHASE=RUN" + draw(st.just("") | uws_forms.map(lambda form: "&" + form))
            return "POST", path, body
        if what == 5:
            method, query = draw(methods["forms"]), draw(st.one_of(transfer_forms, forms))
            path = draw(
                of((["/synctrans", "/transfers", "/pkg", "/async-delete", "/async-setprops"], ["/nodes", "/sync"]))
            )
            return ("POST", path, query.encode()) if method == "POST" else (method, f"{path}?{query}", b"")
        if what == 6:
            method = draw(methods["jobs"])
            path, form = draw(job_paths), draw(job_forms)
            if method == "GET" and draw(whole(0, 4)) == 3:
                path = "/" + draw(pick(KINDS_OF_JOBS))
            return (method, path, form.encode()) if method == "POST" else (method, f"{path}?{form}", b"")
        if what == 7:
            method = draw(methods["files"])
            return method, draw(urls), draw(pick(ARCHIVES) | st.binary(max_size=30)) if method == "PUT" else b""
        if what == 8:
            return "POST", "/gateway", draw(messages)
        return draw(methods["fixed"]), draw(fixed), b""

    @st.composite
    def framed(draw: st.DrawFn, body: bytes, hostile: bool) -> tuple[list[str], bytes]:
        """Framing of a body: header lines, and what follows the head."""
        how = draw(whole(0, 9))
        if how <= 1:
            cuts = sorted(draw(st.lists(whole(0, len(body)), max_size=3)))
            pieces = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
            size = draw(pick(["%x", "%X", "%x;a=b", "0%x", "%x ", "+%x"])) if hostile else "%x"
            ends = [b"0\r\nA: b\r\n\r\n", b"0\r\n", b"", b"-1\r\n\r\n"] if hostile else [b"0\r\n\r\n"]
            data = b"".join((size % len(piece)).encode() + b"\r\n" + piece + b"\r\n" for piece in pieces if piece)
            return ["Transfer-Encoding: chunked"], data + draw(pick(ends))
        if hostile and how == 2:
            return [f"Content-Length: {len(body) + draw(whole(-3, 3))}"], body
        return [f"Content-Length: {len(body)}"] if body or (hostile and how == 3) else [], body

    @st.composite
    def mutated(draw: st.DrawFn, data: bytes, most: int) -> bytes:
        for _ in range(draw(whole(1, most))):
            at = draw(whole(0, len(data)))
            cut = draw(whole(0, 6))
            data = data[:at] + draw(st.one_of(pick(TOKENS), st.binary(max_size=4))) + data[at + cut :]
        return data

    bad_credentials = pick(["Bearer x", "Bearer", BASIC, "Basic \u00e9", "Digest a=b", "Bearer " + "x" * 5000])

    @st.composite
    def requests(draw: st.DrawFn, hostile: bool) -> bytes:
        method, path, body = draw(targets())
        if body and draw(whole(0, 4)) == 3:
            body = draw(mutated(body, 4))
        lines, data = draw(framed(body, hostile))
        lines += draw(
            st.lists(pick(SENSIBLE + STRANGE if hostile else SENSIBLE), max_size=2, unique_by=lambda t: t.split(":")[0])
        )
        who = draw(whole(0, 19))
        if who not in (7, 13):
            lines.append(f"Authorization: Bearer {world.attacker}")
        elif who == 13:
            lines.append("Authorization: " + draw(bad_credentials))
        if draw(whole(0, 6)) == 3:
            path += ("&" if "?" in path else "?") + draw(forms)
        version = draw(pick(["HTTP/1.0", "HTTP/2.0", "HTTP/1.1", "HTTP/1.1"])) if hostile else "HTTP/1.1"
        head = "\r\n".join([f"{method} /vos{path} {version}", "Host: x", *lines]) + "\r\n\r\n"
        whole_request = head.encode("utf-8", "surrogatepass") + data
        return draw(mutated(whole_request, 5)) if hostile and draw(st.booleans()) else whole_request

    # A request that is not HTTP ends its connection, so it comes last.
    last = st.lists(requests(True), max_size=1)
    plans = st.tuples(st.builds(list.__add__, st.lists(requests(False), min_size=1, max_size=5), last), whole(0, 200))
    return st.lists(plans, min_size=1, max_size=4)


# -- sending ---------------------------------------------------------------------------------------------------------


class Line:
    """One connection of an example: what is still to be sent, what came."""

    def __init__(self, port: int, data: bytes, how: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX)
        self.sock.setblocking(False)
        self.left = data
        self.step = len(data) if how < 150 else how - 149
        """Bytes at a time: everything, or up to 50."""
        self.answer = bytearray()
        self.patient = any(word in data.lower() for word in (b"wait", b"changes", b"events"))
        self.open = True

    def push(self) -> bool:
        """Send some more; whether there is more to send."""
        try:
            self.left = self.left[self.sock.send(self.left[: self.step]) :]
        except BlockingIOError:
            pass
        except OSError:
            self.left = b""
        if not self.left:
            with contextlib.suppress(OSError):
                self.sock.shutdown(socket.SHUT_WR)
        return bool(self.left)

    def pull(self) -> bool:
        """Take what came; whether more may come."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self.answer += data
        self.open = bool(data)
        return self.open


def exchange(port: int, plans: list[tuple[list[bytes], int]]) -> list[Line]:
    """Send all plans at once, each on its connection, and take all answers.  Broken at the deadline."""
    lines = [Line(port, b"".join(requests), how) for requests, how in plans]
    poller = select.poll()
    waiting = {line.sock.fileno(): line for line in lines}
    try:
        for fd in waiting:
            poller.register(fd, select.POLLIN | select.POLLOUT)
        begun = time.monotonic()
        while waiting:
            for fd, events in poller.poll(50):
                line = waiting[fd]
                if events & select.POLLOUT and line.left and not line.push():
                    poller.modify(fd, select.POLLIN)
                if events & ~select.POLLOUT and not line.pull():
                    poller.unregister(fd)
                    del waiting[fd]
            passed = time.monotonic() - begun
            for fd, line in list(waiting.items()):
                if line.patient and passed > PATIENCE_S:
                    poller.unregister(fd)
                    del waiting[fd]
            if waiting and passed > ANSWER_S_MAX:
                raise Broken(
                    f"no end of the answers after {ANSWER_S_MAX} s; so far: {[bytes(w.answer[-300:]) for w in waiting.values()]}"
                )
        return lines
    finally:
        for line in lines:
            line.sock.close()


def _check_documents(answer: bytes) -> None:
    """Found, if what is called XML is none."""
    for part in answer.split(b"HTTP/1.1 ")[1:]:
        head, _, body = part.partition(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)", head)
        if b"\r\nContent-Type: text/xml" in head and length and 0 < int(length[1]) <= len(body):
            try:
                etree.fromstring(body[: int(length[1])])
            except etree.XMLSyntaxError as exc:
                raise Found(f"not well-formed ({exc}): {body[:1000]!r}") from None


def judge(world: World, lines: list[Line]) -> None:
    """Found, if an answer is a failure of ours or tells what it should not."""
    for line in lines:
        answer = bytes(line.answer)
        if answer and not answer.startswith(b"HTTP/1.1 "):
            raise Found(f"not an answer: {answer[:300]!r}")
        for part in answer.split(b"HTTP/1.1 5")[1:]:
            # An optional operation that is not offered is the one honest 5xx.
            if part[:2] != b"01" and b"\r\nDate: " in part[:60]:
                raise Found(f"HTTP/1.1 5{part[:600]!r}")
        _check_documents(answer)
        for needle in world.needles:
            if needle in answer:
                at = answer.index(needle)
                raise Found(f"{needle!r} in an answer: {answer[max(0, at - 500) : at + 100]!r}")
        world.learn(answer)


# -- the run ---------------------------------------------------------------------------------------------------------


def _size(plans: list[tuple[list[bytes], int]]) -> int:
    return sum(len(request) for requests, _ in plans for request in requests)


class Campaign:
    """All requests of one run."""

    def __init__(self, world: World, count: int, shown: bool, all_: bool) -> None:
        self.world = world
        self.count = count
        self.all = all_
        """Go on after a failure, and report each kind once."""
        self.found: dict[str, tuple[str, list[tuple[list[bytes], int]]]] = {}
        self.sent = 0
        self.examples = 0
        self.worst: tuple[str, list[tuple[list[bytes], int]]] | None = None
        """What went wrong, in its smallest form so far."""
        self.statuses: dict[bytes, int] = {}
        self._shown = shown
        self._begun = time.monotonic()
        self._begun_mib = world.daemon.rss_mib()
        self._hunt_end = 0.0
        """Set when something was found: until then hypothesis looks for a smaller case."""

    def one(self, plans: list[tuple[list[bytes], int]]) -> None:
        """Send one example and judge it."""
        if self.sent >= self.count and not self._hunt_end:
            return
        if self._hunt_end and time.monotonic() > self._hunt_end:
            raise Broken("found")
        world = self.world
        self.examples += 1
        try:
            if self.examples % RESET_EVERY == 0:
                world.reset()
            lines = exchange(world.daemon.port, plans)
            self.sent += sum(len(requests) for requests, _ in plans)
            for line in lines:
                for part in bytes(line.answer).split(b"HTTP/1.1 ")[1:]:
                    if part[3:4] == b" ":
                        self.statuses[part[:3]] = self.statuses.get(part[:3], 0) + 1
            judge(world, lines)
            world.check_log()
            self._weigh()
        except Found as exc:
            if self.all:
                self._note(str(exc), plans)
                return
            self._hunt_end = self._hunt_end or time.monotonic() + SHRINK_S_MAX
            if self.worst is None or _size(plans) <= _size(self.worst[1]):
                self.worst = str(exc), plans
            # What the log says is of this example, not of the next.
            world.log_at = world.log.stat().st_size
            raise
        except (Broken, OSError, LoadError) as exc:
            with contextlib.suppress(Found):
                world.check_log()
            died = world.daemon.process.poll()
            log = world.log.read_text(errors="replace")[-2000:]
            self.worst = f"{exc}; the daemon {'runs' if died is None else f'ended with {died}'}; its log:\n{log}", plans
            raise Broken(str(exc)) from exc

    def _note(self, what: str, plans: list[tuple[list[bytes], int]]) -> None:
        """Keep a failure of a kind that was not seen before, with the one request that is enough for it."""
        try:
            self.world.check_log()
        except Found as exc:
            what = f"{what}\n{exc}"
        kind = (
            what.rstrip().splitlines()[-1][:80]
            + "|".join(line for line in what.splitlines() if "/server/" in line)[-300:]
        )
        if kind in self.found:
            return
        for request in [request for requests, _ in plans for request in requests]:
            try:
                judge(self.world, exchange(self.world.daemon.port, [([request], 0)]))
                self.world.check_log()
            except Found:
                plans = [([request], 0)]
                self.world.log_at = self.world.log.stat().st_size
                break
        self.found[kind] = what, plans

    def _weigh(self) -> None:
        if self.examples % WEIGH_EVERY:
            return
        status, answer = self.world.ask("GET", "/availability", self.world.owner)
        if status != 200 or b">true<" not in answer:
            raise Broken(f"not available: {answer[:500]!r}")
        mib = self.world.daemon.rss_mib()
        if mib - self._begun_mib > GROWTH_MIB_MAX:
            raise Broken(f"resident memory grew from {self._begun_mib:.0f} to {mib:.0f} MiB")
        self.show(mib)

    def show(self, mib: float, end: str = "") -> None:
        """The progress bar."""
        if not self._shown or not (end or sys.stderr.isatty()):
            return
        part = min(1.0, self.sent / self.count)
        rate = self.sent / (time.monotonic() - self._begun)
        bar = "#" * int(30 * part)
        text = f"\r[{bar:<30}] {100 * part:3.0f} %  {self.sent} requests, {rate:.0f}/s, daemon {mib:.0f} MiB "
        print(text, end=end, file=sys.stderr, flush=True)

    def run(self, first_seed: int) -> None:
        """Send them all.  Found or Broken."""
        strategy = build(self.world)
        number = 0
        while self.sent < self.count:
            body = given(strategy)(lambda plans: self.one(plans))
            chosen = settings(
                max_examples=BATCH, deadline=None, database=None, phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck), report_multiple_bugs=False,
            )  # fmt: skip
            seed(first_seed + number)(chosen(body))()
            number += 1


@contextlib.contextmanager
def attacked(directory: Path, engine: str, leak: bool) -> Iterator[World]:
    """A daemon with something to find."""
    log = directory / "space.log"
    command: list[object] = [BIN / "vosfsd", "--dev", directory / "space", "--port", 0]
    with contextlib.ExitStack() as stack:
        if engine == "PostgreSQL":
            command += ["--dsn", stack.enter_context(cluster(os.sched_getaffinity(0)))]
        daemon = stack.enter_context(served(os.sched_getaffinity(0), log, *command))
        owner = Path(daemon.fields["token_file"]).read_text().strip()
        world = World(daemon, log, "canary" + os.urandom(9).hex(), owner)
        world.plant(leak)
        yield world


def tell(campaign: Campaign, first_seed: int) -> None:
    """Print what was found, with the bytes."""
    for what, plans in campaign.found.values():
        print(f"\nFAILED within {campaign.sent} requests, seed {first_seed}: {what}\n")
        for number, (requests, how) in enumerate(plans, 1):
            print(f"connection {number}, {'at once' if how < 150 else f'{how - 149} bytes at a time'}:")
            for request in requests:
                print(f"  {request!r}")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000, help="requests to send (default %(default)s)")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: a random one, which is printed)")
    parser.add_argument("--engine", choices=["SQLite", "PostgreSQL"], default="SQLite")
    parser.add_argument("--leak", action="store_true", help="make the secret public: the run must find it")
    parser.add_argument("--all", action="store_true", help="go on after a failure, and report each kind once")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    args = parser.parse_args()
    first_seed = int.from_bytes(os.urandom(4), "big") if args.seed is None else args.seed
    directory = Path(tempfile.mkdtemp(prefix="vosfs-fuzz-"))
    campaign = None
    try:
        with attacked(directory, args.engine, args.leak) as world:
            campaign = Campaign(world, args.count, not args.quiet, args.all)
            print(f"seed {first_seed}", file=sys.stderr)
            campaign.run(first_seed)
            mib = world.daemon.rss_mib()
            campaign.show(mib, "\n")
            world.check_log()
    except (Found, Broken, Flaky, LoadError, OSError) as exc:
        print("", file=sys.stderr)
        if campaign is None or campaign.worst is None:
            sys.exit(f"fuzz: {exc}")
        campaign.found["last"] = campaign.worst
    except KeyboardInterrupt:
        sys.exit("fuzz: interrupted")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if campaign.found:
        tell(campaign, first_seed)
        sys.exit(1)
    counts = ", ".join(f"{status.decode()}: {n}" for status, n in sorted(campaign.statuses.items()))
    print(f"{campaign.sent} requests on {args.engine}: no failure; answers: {counts}")


if __name__ == "__main__":
    main()
