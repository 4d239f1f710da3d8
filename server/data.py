"""Byte end-points: bytes in with digests and atomic replacement, bytes out with ranges.

Bytes arrive as a new blob, or inline when few; nothing is visible before the commit, so a body that ends early or
does not match its digest leaves the old content as it was.
"""

import base64
import hashlib
import re
import socket
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote_from_bytes

import msgspec
import trio

from server import archive, unpack
from server.access import Subject
from server.http import Request, Response, Runs
from server.jobs import Jobs
from server.parameters import parameters
from server.quotas import check_room
from server.service import Service, packed, text
from server.signing import ENDPOINT_S, Endpoint
from vosfs import wire
from vosfs.backends.backend import BlobReader, Signed
from vosfs.errors import (
    DigestMismatch,
    InvalidArgument,
    InvalidURI,
    IsContainer,
    PermissionDenied,
)
from vosfs.metadata import content
from vosfs.metadata.job import Job
from vosfs.metadata.messages import Stored
from vosfs.metadata.node import CONTAINER, DATA, LINK, Blob, Content, Extent, NewNode, Node
from vosfs.metadata.store import READ, WRITE, Anyone, check_guard
from vosfs.uri import RESERVED_NAMES, Path, check_name

DIGEST_BYTES_MAX = 64 << 20
"""Longer bodies that nobody gave a digest for, or asks one of, get their MD5 in the background (``digests.py``): at
0.8 GB/s it would be two thirds of an upload's CPU."""
HOLE_BYTES = bytes(64 * 1024)
_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


# -- bytes in --------------------------------------------------------------------------------------------------


class Received(msgspec.Struct):
    """Bytes that arrived and are not yet anybody's content."""

    length: int
    md5: str
    extents: list[Extent]
    blobs: list[Blob]


async def receive(service: Service, request: Request, policy: str, node: Node | None = None) -> Received:
    """Take a request's body into the storages of a policy, durably; meanwhile ``node`` is busy (R191).

    ProtocolError if it ends early, DigestMismatch, StorageFull.
    """
    if request.length is not None and request.length <= content.INLINE_BYTES_MAX:
        body = await request.read(content.INLINE_BYTES_MAX)
        received = Received(len(body), hashlib.md5(body, usedforsecurity=False).hexdigest(), [], [])
        if body:
            received.extents.append(Extent(0, len(body), data=body))
        check_digest(request, received.md5)
        return received
    if request.length is not None and request.length > DIGEST_BYTES_MAX and not _wants_digest(request):
        with service.uploading(node):
            blob = await _store(service, request, policy, True)
        return Received(blob.length, "", [Extent(0, blob.length, blob.locator)], [blob])
    md5 = hashlib.md5(usedforsecurity=False)
    with service.uploading(node):
        blob = await _store(service, request, policy, True, md5.update, lambda: check_digest(request, md5.hexdigest()))
    extents = [Extent(0, blob.length, blob.locator)] if blob.length else []
    return Received(blob.length, md5.hexdigest(), extents, [blob])


def _wants_digest(request: Request) -> bool:
    """Whether the client announced a digest, or needs one in the answer."""
    return any(request.header(name) for name in (b"digest", b"content-md5", b"want-digest", b"x-put-txn-op"))


async def _store(
    service: Service, request: Request, policy: str, durable: bool,
    seen: Callable[[memoryview], None] = lambda data: None, check: Callable[[], None] = lambda: None,
) -> Blob:  # fmt: skip
    """A request's body as a blob.  ``seen`` is shown the bytes as they come, ``check`` may refuse them at the end."""
    writer = await trio.to_thread.run_sync(service.backend.create, request.length or 0, policy)

    def sink(data: memoryview) -> None:
        seen(data)
        writer.write(data)

    try:
        await request.receive(sink)
        check()
        return await trio.to_thread.run_sync(writer.finish, durable)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(writer.abort)


def check_digest(request: Request, md5: str) -> None:
    """DigestMismatch unless the body is what its Digest or Content-MD5 header says (RFC 3230)."""
    wanted = [part.strip() for part in request.header(b"digest").split(",") if part.strip()]
    values = [value for kind, _, value in (part.partition("=") for part in wanted) if kind.strip().lower() == "md5"]
    if request.header(b"content-md5"):
        values.append(request.header(b"content-md5"))
    for value in values:
        try:
            given = base64.b64decode(value.strip(), validate=True).hex()
        except ValueError:
            # Some clients send the hexadecimal form.
            given = value.strip().lower()
        if given != md5:
            raise DigestMismatch(f"the body's MD5 is {md5}, not {given}")


def digest_header(node: Node) -> list[tuple[str, str]]:
    """The Digest header of a node's bytes, if the service knows it."""
    return [("Digest", "md5=" + base64.b64encode(bytes.fromhex(node.md5)).decode())] if node.md5 else []


async def put(
    service: Service,
    request: Request,
    path: Path,
    subject: Subject,
    caller: Anyone,
    clear: bool = False,
    confirm: Callable[[], Awaitable[None]] | None = None,
) -> Response:
    """Store a body as the content of the node at ``path``, made if need be: 201 with its digest.

    Rights are checked before the body is read, and again when it is committed.  ``clear``: drop the properties that
    clients set, as pushToVoSpace must (R228).  ``confirm`` is asked last, before anything shows.
    """
    if not path:
        raise IsContainer("the root holds no bytes")
    trace = await service.trace(path, subject, leaf=True)
    path, parent = trace.path, trace.parent()
    name = path[-1]
    if name == b".null":
        # Accepted and discarded (R232): for who may write here, and into nothing.
        subject.permit(parent, WRITE)
        await request.receive(lambda data: None)
        return Response(201)
    if name in RESERVED_NAMES:
        raise InvalidURI(f"{service.authority.uri(path)} is reserved")
    node = trace.found
    if node is None:
        subject.permit(parent, WRITE)
    else:
        if node.kind != DATA:
            raise IsContainer(f"{service.authority.uri(path)} holds no bytes")
        subject.permit(node, WRITE)
        check_guard(node, service.authority.uri(path))
        if request.header(b"x-put-txn-op") == "start" and request.length == 0:
            # The vos client announces a long upload: it must not empty the file (clients-and-demands, section 1.5).
            return Response(200)
    await check_room(service.store, node or parent, (request.length or 0) - (node.length if node else 0))
    received = await receive(service, request, (node or parent).storage, node)
    new = NewNode(
        DATA, owner=subject.user, content_type=_content_type(request), public=parent.public,
        group_read=parent.group_read, group_write=parent.group_write,
    )  # fmt: skip
    if confirm is not None:
        await confirm()
    done = await service.store.put_data(
        parent.id, check_name(name), new, received.length, received.extents, received.blobs, received.md5, clear, caller
    )
    return Response(201, [("ETag", etag(done.node)), *digest_header(done.node)])


def _content_type(request: Request) -> str:
    kind = request.header(b"content-type").partition(";")[0].strip()[:200]
    return kind if kind.isprintable() else ""


# -- bytes out -------------------------------------------------------------------------------------------------


def etag(node: Node) -> str:
    """(id, version) never names two contents, so neither does this."""
    return f'"{node.id:x}-{node.version:x}"'


def parse_range(header: str, length: int) -> tuple[int, int] | None:
    """[start, stop) of a single byte range; None to serve all.  ValueError if it cannot be satisfied.

    Several ranges, other units and malformed values are ignored, as RFC 9110 section 14.2 allows.
    """
    match = _RANGE.fullmatch(header.replace(" ", ""))
    if match is None or match.group(1) == match.group(2) == "":
        return None
    first, last = match.groups()
    if first == "":
        if int(last) == 0 or length == 0:
            raise ValueError(header)
        return max(0, length - int(last)), length
    start = int(first)
    stop = int(last) + 1 if last else length
    if last and stop <= start:
        return None
    if start >= length:
        raise ValueError(header)
    return start, min(stop, length)


def _announced(request: Request) -> tuple[int, int]:
    """[start, stop) of the usual kind of range, for a content whose length is not known yet; else nothing."""
    match = _RANGE.fullmatch(request.header(b"range"))
    if match is None or "" in match.groups() or request.method == "HEAD":
        return 0, 0
    return int(match.group(1)), int(match.group(2)) + 1


class _Sender:
    """Sends slices of content over a socket, from a worker thread."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._backend = service.backend
        self._readers: dict[str, BlobReader] = {}
        self.slices: list[Extent] = []

    async def readable(self) -> None:
        """NotOnline, when they have been asked for, unless all slices can be read at once."""
        await self._service.readable(self.slices)

    async def open(self, locator: str, start: int, stop: int) -> BlobReader:
        """Open the first blob ahead, so that missing bytes are a fault and not a broken body."""
        reader = self._readers.get(locator)
        if reader is None:
            # A thread costs 0.15 ms when it has to be woken.
            reader = self._backend.open_now(locator)
            if reader is None:
                reader = await trio.to_thread.run_sync(self._backend.open, locator, start, stop)
            self._readers[locator] = reader
        return reader

    def _reader(self, locator: str, start: int, stop: int) -> BlobReader:
        reader = self._readers.get(locator)
        if reader is None:
            # Extents of one blob are neighbours: one open reader is enough.
            self.close()
            reader = self._readers[locator] = self._backend.open(locator, start, stop)
        return reader

    def send(self, sock: socket.socket) -> wire.Moving:
        for piece in self.slices:
            if piece.data:
                yield from wire.send_bytes(sock, piece.data)
            elif not piece.locator:
                for at in range(piece.start, piece.stop, len(HOLE_BYTES)):
                    yield from wire.send_bytes(sock, HOLE_BYTES[: piece.stop - at])
            else:
                stop = piece.offset + piece.stop - piece.start
                reader = self._reader(piece.locator, piece.offset, stop)
                if reader.fileno() >= 0:
                    yield from wire.send_file(sock, reader.fileno(), piece.offset, stop)
                else:
                    for data in reader.stream(piece.offset, stop):
                        yield from wire.send_bytes(sock, data)

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


async def send(
    request: Request, extents: list[Extent], length: int, headers: list[tuple[str, str]], tag: str, sender: _Sender
) -> Response:
    """Answer GET or HEAD with bytes of a content, or the range that was asked for.  The answer owns ``sender``."""
    headers = [("Accept-Ranges", "bytes"), ("ETag", tag), *headers]
    if _matches(request.header(b"if-none-match"), tag):
        sender.close()
        return Response(304, headers)
    start, stop, status = 0, length, 200
    wanted = request.header(b"range")
    if wanted and request.header(b"if-range") in ("", tag):
        try:
            found = parse_range(wanted, length)
        except ValueError:
            sender.close()
            return text(
                416, f"InvalidArgument the content has {length} bytes\n", [("Content-Range", f"bytes */{length}")]
            )
        if found is not None:
            start, stop = found
            status = 206
            headers.append(("Content-Range", f"bytes {start}-{stop - 1}/{length}"))
    sender.slices = content.slices(extents, start, stop)
    if request.method != "HEAD":
        # All of them before the first byte: an answer that breaks off in the middle helps nobody.
        try:
            await sender.readable()
        except BaseException:
            sender.close()
            raise
    if all(piece.data for piece in sender.slices):
        sender.close()
        return Response(status, headers, b"".join(piece.data for piece in sender.slices))
    first = sender.slices[0]
    if first.locator and request.method != "HEAD":
        end = first.offset + first.stop - first.start
        reader = await sender.open(first.locator, first.offset, end)
        wire.will_send(reader.fileno(), first.offset, end)
    return Response(status, headers, Runs(stop - start, sender.send, sender.close))


def _matches(header: str, tag: str) -> bool:
    """Whether an If-None-Match list names a tag, weakly (RFC 9110 section 13.1.2)."""
    wanted = {part.strip().removeprefix("W/") for part in header.split(",")}
    return "*" in wanted or tag in wanted


async def _signed(service: Service, request: Request, found: Content) -> Signed | None:
    """Where the client can fetch a content itself: if it is one whole object, and no condition on it is ours to judge."""
    node, backend = found.node, service.backend
    if (
        not backend.redirects
        or len(found.extents) != 1
        or request.header(b"if-none-match")
        or request.header(b"if-range")
    ):
        return None
    (extent,) = found.extents
    if not extent.locator or (extent.start, extent.stop, extent.offset) != (0, node.length, 0):
        return None
    signed = await trio.to_thread.run_sync(backend.redirected, extent.locator, request.method)
    # What was cut stands on a part of its object: the rest is not the content.
    return signed if signed is not None and signed.length == node.length else None


async def get(service: Service, request: Request, found: Content, name: bytes) -> Response:
    """Answer GET or HEAD with a data node's bytes."""
    node = found.node
    if node.kind in (CONTAINER, LINK):
        raise IsContainer("this node holds no bytes")
    headers = [
        ("Content-Type", node.content_type or "application/octet-stream"),
        ("Last-Modified", wire.http_date(node.mtime_ns / 1e9)),
        ("Content-Disposition", f"inline; filename*=UTF-8''{quote_from_bytes(name)}"),
        # Bytes of a stranger's choosing, served from this origin: never a page.
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Security-Policy", "sandbox"),
        *digest_header(node),
    ]
    signed = await _signed(service, request, found)
    if signed is not None:
        return Response(
            307, [("Location", signed.url), ("Cache-Control", "no-store"), ("ETag", etag(node)), *digest_header(node)]
        )
    return await send(request, found.extents, node.length, headers, etag(node), _Sender(service))


# -- the three kinds of URL --------------------------------------------------------------------------------------


async def files(service: Service, request: Request, path: Path) -> Response:
    """``/files/PATH``: bytes by name (what the vos client reads first, R271)."""
    subject, caller = await service.caller(request)
    if not service.keeps_bytes:
        return await _elsewhere(service, request, path, subject)
    if request.method == "PUT":
        return await put(service, request, path, subject, caller)
    trace = await service.trace(path, subject, leaf=True)
    path, node = trace.path, trace.node()
    subject.permit(node, READ)
    if node.kind == CONTAINER:
        raise IsContainer(f"{service.authority.uri(path)} holds no bytes")
    return await get(service, request, await service.store.open(node.id, caller), path[-1])


async def _elsewhere(service: Service, request: Request, path: Path, subject: Subject) -> Response:
    """Send the client to the storage role, with an end-point that lets it in there."""
    push = request.method == "PUT"
    trace = await service.trace(path, subject, leaf=True)
    path = trace.path
    if not push:
        subject.permit(trace.node(), READ)
    location = endpoint_url(service, "pushToVoSpace" if push else "pullFromVoSpace", path, subject, "")
    return Response(307 if push else 303, [("Location", location)])


def endpoint_url(service: Service, direction: str, path: Path, subject: Subject, job: str, format: str = "") -> str:
    """An end-point for one node, one direction and one user; ``format``: of a container's archive."""
    allowed = Endpoint(direction, path, subject.user, job, int(time.time()) + ENDPOINT_S, format)
    name = quote_from_bytes(path[-1]) if path else ""
    return f"{service.data_url}/data/{service.signer.endpoint(allowed)}/{name}"


async def endpoint(service: Service, jobs: Jobs, request: Request, token: str) -> Response:
    """``/data/TOKEN``: a negotiated end-point, good for one node, one direction and one hour (R269)."""
    allowed = service.signer.endpoint_of(token.partition("/")[0])
    wanted = "pushToVoSpace" if request.method == "PUT" else "pullFromVoSpace"
    if allowed.direction != wanted and request.method != "HEAD":
        raise InvalidArgument(f"this end-point is for {allowed.direction}")
    job = await jobs.endpoint_job(allowed.job)
    subject = await service.auth.known_user(allowed.user)
    if request.method == "PUT":
        return await _push(service, jobs, job, request, allowed, subject)
    node = await service.find(allowed.path, subject)
    subject.permit(node, READ)
    if allowed.view:
        return await archive.download(service, request, [(allowed.path, node)], allowed.view, subject)
    caller = Anyone("", subject.permit)
    return await get(service, request, await service.store.open(node.id, caller), allowed.path[-1])


async def _push(
    service: Service, jobs: Jobs, job: Job | None, request: Request, allowed: Endpoint, subject: Subject
) -> Response:
    """A push end-point's PUT; its job, if it has one, tells how it went (R235, R267) and can stop it (R194)."""

    async def receive_all(confirm: Callable[[], Awaitable[None]]) -> Response:
        if allowed.view:
            node = await service.find(allowed.path, subject)
            subject.permit(node, WRITE)
            await unpack.upload(service, request.receive, node, allowed.view, subject, confirm)
            return Response(201)
        return await put(service, request, allowed.path, subject, Anyone("", subject.permit), True, confirm)

    announced = request.header(b"x-put-txn-op") == "start" and request.length == 0
    if job is None or announced:
        return await receive_all(trio.lowlevel.checkpoint)
    # The vos client compares digests afterwards, and sends the same again when the first time went wrong.
    return await jobs.upload(job, receive_all, again=bool(request.header(b"x-put-txn-op")))


async def blobs(service: Service, request: Request, name: str) -> Response:
    """``/blobs[/NAME]``: the gateway binding's bytes; PUT stores a blob, GET reads a leased one by range."""
    if request.method == "PUT":
        subject, _ = await service.caller(request)
        if subject.anonymous:
            raise PermissionDenied("anonymous may not upload")
        # The mount knows the node, which the service may not have heard of yet; what it names must be configured.
        policy = parameters(request.query).get("storage", "").replace(",", " ")
        # Who commits it makes it durable first; who commits elsewhere cannot.
        blob = await _store(service, request, policy, durable=service.role != "all")
        signer = service.signer
        return packed(Stored(signer.receipt(blob, subject.user), signer.lease(blob.locator)), 201)
    locator = service.signer.leased(name)
    if "signed" in parameters(request.query):
        return packed(await trio.to_thread.run_sync(service.backend.signed, locator))
    if request.method != "HEAD":
        await service.readable([Extent(0, 0, locator)])
    sender = _Sender(service)
    reader = await sender.open(locator, *_announced(request))
    return await send(request, [Extent(0, reader.length, locator)], reader.length, [], f'"{locator}"', sender)
