"""A stand-in for NGAS 12, which no package registry has: its wire, its commands and its traps, on loopback.

What it does was seen on a real server: HTTP/1.0 that closes, 400 for nearly every failure, ranges that only have a
start, removal that is lost.  ``Archive`` is what servers of one cluster share; ``Ngas`` is one server.  ``python -m
tests.services.ngas ROOT PORT`` runs three: two of a cluster, and a caching one of its own on the third port.
"""

import base64
import contextlib
import hashlib
import http.client
import json
import os
import re
import secrets
import socket
import socketserver
import struct
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit
from xml.sax.saxutils import quoteattr

VERSION = "12.0/2022-11-29T07:00:00"
MIME = "application/octet-stream"
EXTENSION = ".bin"
WAIT_S = 30
BUFFER_BYTES = 1 << 20
VOLUMES = 3
COLUMNS = (
    "disk_id", "file_name", "file_id", "file_version", "format", "file_size", "uncompressed_file_size", "compression",
    "ingestion_date", "file_ignore", "checksum", "checksum_plugin", "file_status", "creation_date", "io_time",
    "ingestion_rate", "container_id",
)  # fmt: skip


def now() -> str:
    """The time as NGAS writes it: UTC, with milliseconds and no zone."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")


@dataclass
class Disk:
    """A volume of a server."""

    id: str
    slot: str
    path: Path
    server: "Ngas"


@dataclass
class File:
    """One copy of one version of a file."""

    disk: Disk
    name: str
    id: str
    version: int
    size: int
    checksum: str
    plugin: str
    date: str = field(default_factory=now)

    @property
    def path(self) -> Path:
        return self.disk.path / self.name

    @property
    def key(self) -> tuple[str, str, int]:
        return self.disk.id, self.id, self.version

    def row(self) -> dict[str, Any]:
        """The columns of QUERY."""
        values = (
            self.disk.id, self.name, self.id, self.version, MIME, self.size, self.size, "NONE", self.date, 0,
            self.checksum, self.plugin, "00000000", self.date, 0, 1, None,
        )  # fmt: skip
        return dict(zip(COLUMNS, values, strict=True))


class Archive:
    """The database of a cluster."""

    def __init__(self) -> None:
        self.guard = threading.RLock()
        self.files: list[File] = []
        self.servers: list[Ngas] = []

    def find(self, file_id: str, version: int | None = None, disk: str = "") -> list[File]:
        """All copies, of the latest version first."""
        with self.guard:
            found = [
                f for f in self.files
                if f.id == file_id and version in (None, f.version) and disk in ("", f.disk.id)
            ]  # fmt: skip
        return sorted(found, key=lambda f: -f.version)

    def like(self, pattern: str) -> list[File]:
        """As SQLite has it: ``_`` is any character, ``%`` any text, and capitals are small letters."""
        regex = "".join({"%": ".*", "_": "."}.get(c, re.escape(c)) for c in pattern)
        with self.guard:
            return [f for f in self.files if re.fullmatch(regex, f.id, re.DOTALL | re.IGNORECASE)]

    def put(self, file: File) -> None:
        """Add a row, instead of one with the same key."""
        with self.guard:
            self.files = [f for f in self.files if f.key != file.key]
            self.files.append(file)

    def drop(self, file: File) -> None:
        """Remove a copy."""
        with self.guard:
            self.files = [f for f in self.files if f is not file]
        file.path.unlink(missing_ok=True)


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.status = message, status


class Redirected(Exception):
    """The file is on another server."""


class Broken(Exception):
    """The connection ends without another byte."""


@dataclass
class Request:
    """What was asked."""

    method: str
    command: str
    pars: dict[str, str]
    headers: dict[str, str]
    body: Any
    target: str

    @property
    def length(self) -> int:
        return int(self.headers.get("content-length") or 0)

    def number(self, name: str) -> int | None:
        return int(self.pars[name]) if self.pars.get(name) else None


@dataclass
class Subscription:
    """Whom to send what is archived."""

    url: str
    id: str
    start: str


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc32c_table()


def crc32c(data: bytes | memoryview, value: int = 0) -> int:
    """CRC-32C, a byte at a time."""
    value ^= 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ _CRC32C[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF


SUMS: dict[str, Callable[[memoryview, int], int] | None] = {
    "crc32": zlib.crc32, "crc32z": zlib.crc32, "crc32c": crc32c, "-1": None,
}  # fmt: skip


class Ngas:
    """One server, from its making until ``close``.

    Attributes are switches of tests: ``online``; ``login`` ("user:password"); ``proxy``: files of other servers are
    served through instead of redirected to; ``requests_max``: more at once get 503; ``caching``: CACHEDEL works, by
    passes of the cache, ``cache_pass``, every ``period_s`` if that is not 0; ``racing``: two writers of one file id
    can be given one version; ``cut_at``: answers of RETRIEVE break off at this byte; ``full``: no space is left.
    """

    def __init__(
        self, root: Path, archive: Archive | None = None, port: int = 0, caching: bool = False, period_s: float = 0,
    ) -> None:  # fmt: skip
        # Dependencies
        self.archive = archive or Archive()
        # Switches
        self.online = True
        self.login = ""
        self.proxy = False
        self.requests_max = 50
        self.caching = caching
        self.racing = False
        self.cut_at: int | None = None
        self.full = False
        # Mutable state
        self.seen: list[tuple[str, dict[str, str]]] = []
        """Command and parameters of each request."""
        self.running = 0
        self._guard = threading.Lock()
        self._registered: set[tuple[str, str, int]] = set()
        """What the cache knows, and so can remove."""
        self._unwanted: set[tuple[str, str, int]] = set()
        self._subscriptions: dict[str, Subscription] = {}
        self._deliveries: SimpleQueue[tuple[Subscription, File] | None] = SimpleQueue()
        self._over = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.ngas = self
        self.port = self._server.server_address[1]
        self.id = f"standin:{self.port}"
        self.disks = []
        for number in range(1, VOLUMES + 1):
            path = root / f"volume{number}"
            (path / "staging").mkdir(parents=True)
            name = hashlib.md5(f"{self.id}{number}".encode(), usedforsecurity=False).hexdigest()
            self.disks.append(Disk(name, f"volume{number}", path, self))
        self.archive.servers.append(self)
        self._threads = [
            threading.Thread(target=self._server.serve_forever, args=(0.02,)),
            threading.Thread(target=self._deliver),
        ]
        if caching and period_s:
            self._threads.append(threading.Thread(target=self._keep_cache, args=(period_s,)))
        for thread in self._threads:
            thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def files(self) -> list[File]:
        """What lies on this server's disks."""
        return [f for f in self.archive.like("%") if f.disk in self.disks]

    def close(self) -> None:
        self._over.set()
        self._deliveries.put(None)
        self._server.shutdown()
        self._server.server_close()
        for thread in self._threads:
            thread.join()

    # -- requests ----------------------------------------------------------------------------------------------------

    def enter(self) -> bool:
        """Whether one more request may be worked at."""
        with self._guard:
            self.running += 1
            return self.running <= self.requests_max

    def leave(self) -> None:
        with self._guard:
            self.running -= 1

    def check(self, request: Request) -> None:
        """Refused to who has no password."""
        expected = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.login and request.headers.get("authorization") != expected:
            raise Refused("Unauthorized", 401)

    def status(self, message: str, success: bool = True, file: File | None = None, more: str = "") -> bytes:
        """The document of an answer."""
        dtd = f"{self.url}/RETRIEVE?internal=ngamsStatus.dtd"
        inner = ""
        if file is not None:
            more += f' RequestId="{secrets.token_hex(16)}" RequestTime="{now()}"'
            inner = self._disk_status(file.disk, file)
        state = "ONLINE" if self.online else "OFFLINE"
        return (
            f'<?xml version="1.0" ?>\n<!DOCTYPE NgamsStatus SYSTEM "{dtd}">\n<NgamsStatus>\n  <Status Date="{now()}" '
            f'Version="{VERSION}" HostId="{self.id}" Message={quoteattr(message, {chr(34): "&quot;"})} '
            f'Status="{"SUCCESS" if success else "FAILURE"}" State="{state}" SubState="IDLE"{more}/>\n{inner}'
            "</NgamsStatus>\n"
        ).encode()

    def _disk_status(self, disk: Disk, file: File | None = None) -> str:
        inner = ""
        if file is not None:
            inner = (
                f'    <FileStatus FileName="{file.name}" FileId="{file.id}" FileVersion="{file.version}" '
                f'Format="{MIME}" FileSize="{file.size}" UncompressedFileSize="{file.size}" Compression="NONE" '
                f'IngestionDate="{file.date}" Ignore="0" Checksum="{file.checksum}" ChecksumPlugIn="{file.plugin}" '
                f'FileStatus="00000000" CreationDate="{file.date}" ModificationDate="" ContainerId="None"/>\n'
            )
        return (
            f'  <DiskStatus DiskId="{disk.id}" Archive="MyArchive" HostId="{disk.server.id}" SlotId="{disk.slot}" '
            f'Mounted="1" MountPoint="{disk.path}" AvailableMb="72741">\n{inner}  </DiskStatus>\n'
        )

    def answer(self, request: Request) -> tuple[str, bytes]:
        """Type and body of what a command other than RETRIEVE gives."""
        work: Any = getattr(self, f"_on_{request.command.lower()}", None)
        if work is None or not request.command.isupper():
            raise Refused("Command not found", 404)
        made = work(request)
        if isinstance(made, str):
            made = self.status(made)
        return made if isinstance(made, tuple) else ("text/xml", made)

    def _needs_online(self, what: str) -> None:
        if not self.online:
            raise Refused(
                f"NGAMS_ER_IMPROPER_STATE:4015:ERROR: {what} not allowed when in State/Sub-State: OFFLINE/IDLE. "
                "Allowed State(s)/Sub-State(s) are: ['ONLINE']/['IDLE', 'BUSY']."
            )

    # -- archiving ---------------------------------------------------------------------------------------------------

    def _on_archive(self, request: Request) -> str | bytes:
        return self._archived(request, "ngamsGenCrc32")

    def _on_qarchive(self, request: Request) -> str | bytes:
        return self._archived(request, "crc32")

    def _archived(self, request: Request, plugin: str) -> str | bytes:
        self._needs_online("Archive Request")
        pars = request.pars
        if request.method == "GET":
            if not pars.get("probe"):
                raise Refused("the stand-in pulls nothing")
            return f"NGAMS_INFO_ARCH_REQ_OK:4068:INFO: Handling of Archive Request for mime-type: {MIME} is possible"
        disposition = re.search(r'filename="([^"]*)"', request.headers.get("content-disposition", ""))
        name = pars.get("filename") or (disposition.group(1) if disposition else "")
        if not request.length:
            raise Refused("Content-Length is 0 or unknown", 411)
        if not name:
            raise Refused("NGAMS_ER_MISSING_URI:4013:ERROR: Must specify a URI for the data file to archive!")
        file_id = os.path.basename(name)
        mime = pars.get("mime_type") or request.headers.get("content-type", "")
        if not mime and not file_id.endswith(EXTENSION):
            raise Refused(
                "NGAMS_ER_UNKNOWN_MIME_TYPE1:4014:ERROR: Could not determine mime-type for data file with URI: "
                f"{name}. Check NG/AMS Configuration."
            )
        if mime not in ("", MIME):
            raise Refused(f"NGAMS_ER_UNKNOWN_MIME_TYPE2:4047:ERROR: Mime-type: {mime} is not known")
        if self.full:
            raise Refused("[Errno 28] No space left on device")
        stored = file_id if file_id.endswith(EXTENSION) else file_id + EXTENSION
        early = self._version(request, file_id) if self.racing else None
        disk = secrets.choice(self.disks)
        temporary = disk.path / "staging" / secrets.token_hex(8)
        variant = pars.get("crc_variant", "")
        add = SUMS[variant or "crc32"]
        try:
            checksum = str(self._receive(request, temporary, add)) if add else "None"
            if not add:
                self._receive(request, temporary, lambda data, value: 0)
            told = request.headers.get("ngas-file-crc")
            if told is not None and told != checksum:
                raise Refused(
                    f"Checksum error for file {file_id}, local crc = {checksum}, but remote crc = {told}"
                )  # fmt: skip
            kind = "None" if not add else variant or plugin
            with self.archive.guard:
                version = early or self._version(request, file_id)
                place = f"MWAArchive/{now()[:10]}/{version}/{stored}"
                file = File(disk, place, file_id, version, request.length, checksum, kind)
                file.path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary, file.path)
                if "no_versioning" in pars or pars.get("versioning") == "0" or self.racing:
                    for old in self.archive.find(file_id, version):
                        if old.disk is not disk:
                            self.archive.drop(old)
                self.archive.put(file)
        finally:
            temporary.unlink(missing_ok=True)
        for subscription in list(self._subscriptions.values()):
            if subscription.start <= now():
                self._deliveries.put((subscription, file))
        return self.status(
            f"Successfully handled Archive Push Request for data file with URI: {name}", file=file
        )  # fmt: skip

    def _version(self, request: Request, file_id: str) -> int:
        found = self.archive.find(file_id)
        if request.pars.get("no_versioning") == "1" or request.pars.get("versioning") == "0":
            wanted = request.number("file_version")
            versions = [f.version for f in found if wanted in (None, f.version)]
            if not versions:
                raise Refused(f"no version of {file_id} to overwrite")
            return versions[0]
        return found[0].version + 1 if found else 1

    @staticmethod
    def _receive(request: Request, path: Path, add: Callable[[memoryview, int], int]) -> int:
        buffer, value, rest = memoryview(bytearray(BUFFER_BYTES)), 0, request.length
        with path.open("wb", buffering=0) as stream:
            while rest:
                got = request.body.readinto(buffer[: min(rest, BUFFER_BYTES)])
                if not got:
                    raise Refused(f"{rest} bytes of the body are missing")
                value = add(buffer[:got], value)
                stream.write(buffer[:got])
                rest -= got
        return value

    # -- reading -----------------------------------------------------------------------------------------------------

    def located(self, request: Request) -> File:
        """The copy that RETRIEVE is about; Redirected if another server has it."""
        self._needs_online("Command RETRIEVE")
        file_id, version = request.pars.get("file_id", ""), request.number("file_version")
        if not file_id:
            raise Refused("NGAMS_ER_RETRIEVE_CMD:4018:ERROR: Incorrect parameter given for RETRIEVE command.")
        found = self._found(file_id, version, request.pars.get("disk_id", ""))
        newest = [f for f in found if f.version == found[0].version]
        for file in newest:
            if file.disk in self.disks:
                return file
        raise Redirected(newest[0].disk.server.url)

    def _found(self, file_id: str, version: int | None = None, disk: str = "") -> list[File]:
        found = self.archive.find(file_id, version, disk)
        if not found:
            named = file_id + (f"/Version: {version}" if version else "") + (f"/Disk ID: {disk}" if disk else "")
            raise Refused(f"NGAMS_ER_UNAVAIL_FILE:4019:ERROR: File with ID: {named} appears not to be available.")
        return found

    def _on_status(self, request: Request) -> str | bytes:
        pars, done = request.pars, "Successfully handled command STATUS"
        if pars.get("host_id", self.id) != self.id:
            for server in self.archive.servers:
                if server.id == pars["host_id"]:
                    raise Redirected(server.url)
        if "file_access" in pars:
            file = self._found(pars["file_access"])[0]
            return (
                f"NGAMS_INFO_FILE_AVAIL:4029:INFO: File with File ID: {file.id}/Version: {file.version}, is available "
                f"on NGAS Host with Host ID: {file.disk.server.id}."
            )
        if "file_id" in pars:
            return self.status(done, file=self._found(pars["file_id"], request.number("file_version"))[0])
        return done

    def _on_query(self, request: Request) -> tuple[str, bytes]:
        pars = request.pars
        query, form = pars.get("query"), pars.get("format", "python")
        servers = self.archive.servers
        rows: list[dict[str, Any]]
        if query == "files_list":
            rows = [f.row() for f in self.archive.like("%")]
        elif query == "files_like":
            rows = [f.row() for f in self.archive.like(pars.get("like", "%"))]
        elif query == "files_stats":
            files = self.archive.like("%")
            rows = [{"Number of files": len(files), "Total volume [MB]": sum(f.size for f in files) / 2**20}]
        elif query == "disks_list":
            rows = [
                {"disk_id": d.id, "host_id": s.id, "slot_id": d.slot, "mounted": 1, "available_mb": 72741}
                for s in servers for d in s.disks
            ]  # fmt: skip
        elif query == "hosts_list":
            rows = [{"host_id": s.id, "ip_address": "127.0.0.1", "srv_port": s.port} for s in servers]
        else:
            raise Refused("Invalid query specified. Valid queries are: files_list, files_like, files_stats, ...")
        if form == "json":
            return "application/json", json.dumps(rows).encode()
        if form == "python":
            return "application/python-list", repr([tuple(row.values()) for row in rows]).encode()
        return "text/plain", "\n".join(" ".join(map(str, row.values())) for row in rows).encode()

    def _on_checkfile(self, request: Request) -> str:
        pars = request.pars
        file = self._found(pars.get("file_id", ""), request.number("file_version"), pars.get("disk_id", ""))[0]
        if str(zlib.crc32(file.path.read_bytes())) == file.checksum:
            return f"NGAMS_INFO_FILE_OK:4056:INFO: Checked file with File ID: {file.id} - file found to be consistent."
        return f"NGAMS_ER_FILE_NOK:4057:ERROR: Checked file with File ID: {file.id} - file found to be inconsistent."

    # -- copies and their end ----------------------------------------------------------------------------------------

    def _on_clone(self, request: Request) -> str:
        found = self.archive.find(request.pars.get("file_id", ""), request.number("file_version"))
        taken = {f.disk.id for f in found}
        targets = [disk for disk in self.disks if disk.id not in taken]
        if not found or not targets:
            raise Refused("NGAMS_ER_CMD_EXEC:4036:ERROR: Problem(s) encountered executing command: CLONE.")
        one = found[0]
        copy = File(targets[0], one.name, one.id, one.version, one.size, one.checksum, one.plugin)
        copy.path.parent.mkdir(parents=True, exist_ok=True)
        copy.path.write_bytes(one.path.read_bytes())
        self.archive.put(copy)
        return "Successfully handled command CLONE"

    def _on_remfile(self, request: Request) -> str | bytes:
        pars = request.pars
        if not (pars.get("disk_id") and pars.get("file_id")):
            raise Refused("NGAMS_ER_CMD_SYNTAX:4035:ERROR: The combination of parameters is illegal.")
        found = self._found(pars["file_id"], request.number("file_version"), pars["disk_id"])
        if len(self.archive.find(found[0].id, found[0].version)) < 3:
            return self.status(
                "NGAMS_WA_FILE_COPIES:4046:WARNING: One or more files requested to be deleted are not available in at "
                "least 3 independent copies within this NGAS system.", success=False,
            )  # fmt: skip
        deleted = 0
        if pars.get("execute") == "1":
            self.archive.drop(found[0])
            deleted = 1
        return (
            "NGAMS_INFO_FILE_DEL_STAT:4040:INFO: File deletion status. Files Selected: 1, Files Deleted: "
            f"{deleted}, Failed File Deletions: 0."
        )

    def _on_discard(self, request: Request) -> str:
        pars = request.pars
        found = self._found(pars.get("file_id", ""), request.number("file_version"), pars.get("disk_id", ""))
        local = [f for f in found if f.disk in self.disks]
        if not local:
            raise Refused("NGAMS_ER_UNAVAIL_FILE:4019:ERROR: the file is not on a disk of this server")
        if pars.get("execute") != "1":
            return "NGAMS_INFO_DISCARD_GRANTED:4065:INFO: File discard request granted."
        self.archive.drop(local[0])
        return "NGAMS_INFO_DISCARD_OK:4066:INFO: File discarded."

    def _on_cachedel(self, request: Request) -> str:
        pars = request.pars
        if not (pars.get("disk_id") and pars.get("file_id") and pars.get("file_version")):
            raise Refused("Must specify disk_id/file_id/file_version for CACHEDEL Command")
        key = (pars["disk_id"], pars["file_id"], int(pars["file_version"]))
        if not self.caching:
            self._found(key[1], key[2], key[0])
            raise Refused("'NoneType' object has no attribute 'execute'")
        with self._guard:
            if key in self._registered:
                self._unwanted.add(key)
        return "Successfully handled request"

    def cache_pass(self) -> None:
        """What the cache's thread does every period: remove what is unwanted, and come to know what is new."""
        with self._guard:
            unwanted, self._unwanted = self._unwanted, set()
            for file in self.files():
                if file.key in unwanted:
                    self.archive.drop(file)
                    self._registered.discard(file.key)
                else:
                    self._registered.add(file.key)

    def _keep_cache(self, period_s: float) -> None:
        while not self._over.wait(period_s):
            self.cache_pass()

    # -- subscriptions and states ------------------------------------------------------------------------------------

    def _on_subscribe(self, request: Request) -> str | tuple[str, bytes]:
        url = request.pars.get("url", "")
        if not url:
            raise Refused("NGAMS_ER_CMD_SYNTAX:4035:ERROR: Parameter(s): Missing parameter: url.")
        if "://" not in url:
            raise Refused(f"No scheme found in URL {url}.")
        name = request.pars.get("subscr_id") or url
        made = Subscription(url, name, request.pars.get("start_date") or now())
        with self._guard:
            known = self._subscriptions.setdefault(name, made)
        if known is made:
            return "Handled SUBSCRIBE command"
        if known == made:
            raise Refused(f"Identical subscription with ID '{name}' existed", 201)
        raise Refused(f"Different subscription with ID '{name}' existed", 409)

    def _on_unsubscribe(self, request: Request) -> str:
        with self._guard:
            if self._subscriptions.pop(request.pars.get("subscr_id", ""), None) is None:
                raise Refused("UNSUBSCRIBE command failed", 200)
        return "Successfully handled UNSUBSCRIBE command"

    def _deliver(self) -> None:
        while (job := self._deliveries.get()) is not None:
            subscription, file = job
            url = urlsplit(subscription.url)
            connection = http.client.HTTPConnection(url.netloc, timeout=WAIT_S)
            headers = {
                "NGAS-File-CRC": file.checksum, "Content-Type": MIME,
                "Content-Disposition": f'attachment; filename="{file.path.name}"; file_id={file.id}',
            }  # fmt: skip
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection.request("POST", f"{url.path}?crc_variant=crc32", file.path.read_bytes(), headers)
                connection.getresponse().read()
            connection.close()

    def _on_offline(self, request: Request) -> str:
        self.online = False
        return "Successfully handled command OFFLINE"

    def _on_online(self, request: Request) -> str:
        self.online = True
        return "Successfully handled command ONLINE"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 100
    ngas: Ngas

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(socketserver.StreamRequestHandler):
    server: _Server
    rbufsize = 1 << 16
    timeout = WAIT_S
    disable_nagle_algorithm = True

    def handle(self) -> None:
        ngas = self.server.ngas
        may = ngas.enter()
        try:
            if not may:
                self.wfile.write(b"HTTP/1.0 503 Service Unavailable\r\n\r\n")
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif (request := self._request()) is not None:
                self._meet(ngas, request)
        finally:
            ngas.leave()

    def _request(self) -> Request | None:
        line = self.rfile.readline(8192).decode("latin-1").split()
        if len(line) != 3 or line[0] not in ("GET", "POST", "PUT"):
            return None
        headers = {}
        while (text := self.rfile.readline(8192).decode("latin-1").strip()) != "":
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        path, _, query = line[1].partition("?")
        pars = dict(parse_qsl(query, keep_blank_values=True))
        return Request(line[0], path.lstrip("/"), pars, headers, self.rfile, line[1])

    def _meet(self, ngas: Ngas, request: Request) -> None:
        ngas.seen.append((request.command, request.pars))
        try:
            ngas.check(request)
            if request.command == "RETRIEVE":
                self._retrieve(ngas, request)
            else:
                kind, body = ngas.answer(request)
                self._send("200 OK", [("Content-Type", kind), ("Content-Length", str(len(body)))], body)
        except Refused as exc:
            body = ngas.status(exc.message, success=exc.status == 201)
            words = {200: "OK", 201: "Created", 401: "Unauthorized", 404: "Not Found", 409: "Conflict"}
            words[411] = "Length Required"
            line = f"{exc.status} {words.get(exc.status, 'Bad Request')}"
            self._send(line, [("Content-Type", "text/xml"), ("Content-Length", str(len(body)))], body)
            # What nobody read resets the connection, and may take the answer with it: not that of short bodies.
            self.connection.shutdown(socket.SHUT_WR)
            self.rfile.read(min(request.length, BUFFER_BYTES))
        except Redirected as exc:
            if ngas.proxy:
                self._pass_on(str(exc), request)
            else:
                self._send("303 See Other", [("Location", f"{exc}{request.target}")], b"")

    def _send(self, line: str, headers: list[tuple[str, str]], body: bytes) -> None:
        date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
        fields = [("Server", f"NGAMS/{VERSION}"), ("Date", date), *headers]
        head = "".join(f"{name}: {value}\r\n" for name, value in fields)
        self.wfile.write(f"HTTP/1.0 {line}\r\n{head}\r\n".encode() + body)

    def _retrieve(self, ngas: Ngas, request: Request) -> None:
        file = ngas.located(request)
        wanted, start = request.headers.get("range"), 0
        headers = [("Content-Type", MIME), ("Content-Disposition", f'attachment; filename="{file.path.name}"')]
        size = file.path.stat().st_size
        if wanted is not None:
            found = re.fullmatch(r"bytes=(\d+)-", wanted)
            if not found:
                raise Refused("Invalid Range header, must have the form 'bytes=start-' (start offset only)")
            start = int(found.group(1))
        headers.append(("Content-Length", str(size - start)))
        if wanted is not None:
            headers += [("Accept-Ranges", "bytes"), ("Content-Range", f"bytes {start}-{size - 1}/{size}")]
        self._send("200 OK", headers, b"")
        stop = size if ngas.cut_at is None else min(size, ngas.cut_at)
        with file.path.open("rb") as stream:
            if start < stop:
                self.connection.sendfile(stream, start, stop - start)

    def _pass_on(self, url: str, request: Request) -> None:
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=WAIT_S)
        names = {"range", "authorization"} & request.headers.keys()
        try:
            connection.request("GET", request.target, headers={name: request.headers[name] for name in names})
            answer = connection.getresponse()
            self._send(f"{answer.status} {answer.reason}", answer.getheaders(), answer.read())
        finally:
            connection.close()


@contextlib.contextmanager
def running(root: Path, *servers: dict[str, Any], shared: bool = True) -> Iterator[list[Ngas]]:
    """Servers with these settings, of one cluster or each with a database of its own, until the block ends."""
    archive = Archive()
    made: list[Ngas] = []
    try:
        for number, settings in enumerate(servers):
            made.append(Ngas(root / f"ngas{number}", archive if shared else None, **settings))
        yield made
    finally:
        for server in made:
            server.close()


def subscribe(source: Ngas, target: Ngas) -> None:
    """From now on, what ``source`` archives is also sent to ``target``."""
    connection = http.client.HTTPConnection(source.address, timeout=WAIT_S)
    query = urlencode({"query": "", "url": f"{target.url}/QARCHIVE", "subscr_id": secrets.token_hex(4)})
    connection.request("GET", f"/SUBSCRIBE?{query}")
    assert connection.getresponse().status == 200
    connection.close()


def main() -> None:
    root, port = Path(sys.argv[1]), int(sys.argv[2])
    cluster = Archive()
    made = [
        Ngas(root / "a", cluster, port), Ngas(root / "b", cluster, port and port + 1),
        Ngas(root / "c", None, port and port + 2, caching=True, period_s=5),
    ]  # fmt: skip
    print("READY", *(server.url for server in made), flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
    for server in made:
        server.close()


if __name__ == "__main__":
    main()
