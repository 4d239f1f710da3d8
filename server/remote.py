"""The service as a client of third parties: pullToVoSpace, pushFromVoSpace and callbacks (VOSpace 2.1 section 3.5.3).

An end-point is whatever a user writes there, so it is looked up first and refused unless its address is public
(R256): otherwise anybody could read the service's own network through it.  The connection then goes to the very
address that was checked.  ``[server] private_endpoints`` lifts that.
"""

import hashlib
import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from functools import partial
from urllib.parse import urljoin, urlsplit

import trio

from server import archive, unpack
from server.access import Subject
from server.service import Service
from vosfs.backends.backend import BlobReader
from vosfs.client import Answer, HttpClient, Segment, Sink
from vosfs.errors import (
    DuplicateNode,
    InvalidArgument,
    InvalidData,
    InvalidURI,
    ProtocolNotSupported,
    TransferFailed,
    VOSpaceError,
)
from vosfs.metadata import content
from vosfs.metadata.node import CONTAINER, CORE, DATA, Extent, NewNode, Node
from vosfs.metadata.store import Anyone
from vosfs.metadata.xml import Transfer
from vosfs.uri import Path

log = logging.getLogger(__name__)

FETCH_PROTOCOLS = (CORE + "httpget", CORE + "httpsget")
SEND_PROTOCOLS = (CORE + "httpput", CORE + "httpsput")
REDIRECTS_MAX = 5
DEADLINE_S = 30.0
ENDPOINTS_MAX = 16
"""Tried in one transfer."""
_REDIRECTS = (301, 302, 303, 307, 308)


async def connect(service: Service, url: str) -> tuple[HttpClient, str]:
    """A client of a third party's server, and the target to ask it for.  InvalidURI if it must not be asked."""
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as exc:
        raise InvalidURI(f"{url[:200]!r}: {exc}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise InvalidURI(f"{url[:200]} is not an http or https URL without credentials")
    try:
        with trio.fail_after(DEADLINE_S):
            found = await trio.socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError, trio.TooSlowError) as exc:
        raise TransferFailed(f"{parts.hostname}: {exc}") from exc
    address = str(found[0][4][0])
    if not service.private_endpoints and not ipaddress.ip_address(address).is_global:
        raise InvalidURI(f"{parts.hostname} is not a public address")
    origin = f"{parts.scheme}://{parts.netloc}"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return HttpClient(origin, DEADLINE_S, address=address), target


def _endpoints(transfer: Transfer, protocols: tuple[str, ...]) -> list[tuple[str, str]]:
    """(protocol, URL) of each end-point to try."""
    wanted = [p for p in transfer.protocols if p.uri in protocols]
    if not wanted:
        raise ProtocolNotSupported(", ".join(p.uri[:100] for p in transfer.protocols[:10]) or "none was named")
    found = list(dict.fromkeys((p.uri, p.endpoint) for p in wanted if p.endpoint))[:ENDPOINTS_MAX]
    if not found:
        raise InvalidArgument("no protocol has an endpoint")
    for _, url in found:
        if any(c <= " " for c in url) or not url.isascii():
            raise InvalidURI(f"{url[:200]!r} is not a URL")
    return found


# -- pullToVoSpace ---------------------------------------------------------------------------------------------


async def fetch(
    service: Service, subject: Subject, transfer: Transfer, path: Path, node: Node | None,
    confirm: Callable[[], Awaitable[None]],
) -> None:  # fmt: skip
    """Fetch the bytes of a node from the first end-point that gives them (R251); ``node``: what is there now.

    ``confirm`` is asked before they show.

    InvalidURI, InvalidArgument and ProtocolNotSupported before anything is tried, InvalidData for a broken archive,
    TransferFailed when all were.
    """
    tried = []
    for protocol, url in _endpoints(transfer, FETCH_PROTOCOLS):
        try:
            with service.uploading(node):
                await _fetch_one(service, subject, url, transfer.view, path, node, confirm)
            return
        except (InvalidURI, InvalidData, DuplicateNode):
            raise
        except VOSpaceError as exc:
            tried.append(f"{protocol} {url}: {exc}")
    raise TransferFailed("; ".join(tried)[:2000])


async def _fetch_one(
    service: Service, subject: Subject, url: str, view: str, path: Path, node: Node | None,
    confirm: Callable[[], Awaitable[None]],
) -> None:  # fmt: skip
    if node is not None and node.kind == CONTAINER:
        receive = partial(_get, service, url)
        await unpack.upload(service, receive, node, archive.ARCHIVE_VIEWS[view], subject, confirm)
        return
    if path[-1] == b".null":
        await _get(service, url, lambda data: None)
        return
    trace = await service.trace(path, subject)
    parent = trace.parent()
    md5 = hashlib.md5(usedforsecurity=False)
    writer = await trio.to_thread.run_sync(service.backend.create, 0, (trace.found or parent).storage)

    def sink(data: memoryview) -> None:
        md5.update(data)
        writer.write(data)

    try:
        answer = await _get(service, url, sink)
        blob = await trio.to_thread.run_sync(writer.finish, True)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(writer.abort)
    kind = answer.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip()[:200]
    new = NewNode(
        DATA, owner=subject.user, content_type=kind if kind.isprintable() else "", public=parent.public,
        group_read=parent.group_read, group_write=parent.group_write,
    )  # fmt: skip
    extents = [Extent(0, blob.length, blob.locator)] if blob.length else []
    await confirm()
    await service.store.put_data(
        parent.id, path[-1], new, blob.length, extents, [blob], md5.hexdigest(), True, Anyone("", subject.permit)
    )


async def _get(service: Service, url: str, sink: Sink) -> Answer:
    for _ in range(REDIRECTS_MAX + 1):
        client, target = await connect(service, url)
        try:
            head = client.head("GET", target, [("Accept-Encoding", "identity"), ("User-Agent", "vosfs")])
            answer = await client.download(head, sink)
        finally:
            client.close()
        if answer.status == 200:
            return answer
        location = answer.headers.get(b"location", b"").decode("latin-1")
        if answer.status not in _REDIRECTS or not location:
            raise TransferFailed(f"the answer is {answer.status}")
        try:
            url = urljoin(url, location)
        except ValueError as exc:
            # Without its query, which may be a signature.
            raise TransferFailed(f"redirect to {location.partition('?')[0][:200]!r}: {exc}") from None
    raise TransferFailed(f"more than {REDIRECTS_MAX} redirects")


# -- pushFromVoSpace -------------------------------------------------------------------------------------------


async def send(service: Service, subject: Subject, transfer: Transfer, path: Path, node: Node) -> None:
    """Send a data node's bytes to the first end-point that takes them, each being tried once (R259)."""
    tried = []
    for protocol, url in _endpoints(transfer, SEND_PROTOCOLS):
        try:
            await _send_one(service, subject, url, transfer.view, path, node)
            return
        except InvalidURI:
            raise
        except VOSpaceError as exc:
            tried.append(f"{protocol} {url}: {exc}")
    raise TransferFailed("; ".join(tried)[:2000])


async def _send_one(service: Service, subject: Subject, url: str, view: str, path: Path, node: Node) -> None:
    client, target = await connect(service, url)
    with ExitStack() as stack:
        stack.callback(client.close)
        if node.kind == CONTAINER:
            format = archive.ARCHIVE_VIEWS[view]
            kind = archive.MEDIA_TYPES[format]
            segments = await _spooled(archive.pack(service, [(path, node)], format, subject), stack)
        else:
            found = await service.store.open(node.id, Anyone("", subject.permit))
            kind = found.node.content_type or "application/octet-stream"
            segments = await trio.to_thread.run_sync(_segments, service, found.extents, found.node.length, stack)
        head = client.head("PUT", target, [("Content-Type", kind), ("User-Agent", "vosfs")])
        answer = await client.upload(head, segments)
    if answer.status not in (200, 201, 204):
        raise TransferFailed(f"the answer is {answer.status}")


async def _spooled(body: AsyncGenerator[bytes], stack: ExitStack) -> list[Segment]:
    """A body whose length must be known before it is sent, in a file that has no name."""
    spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    async with aclosing(body) as pieces:
        async for data in pieces:
            await trio.to_thread.run_sync(spool.write, data)
    spool.flush()
    return [(spool.fileno(), 0, spool.tell())]


def _segments(service: Service, extents: list[Extent], length: int, stack: ExitStack) -> list[Segment]:
    """A content as runs of open files; what lies in no file is put into one that has no name."""
    spool = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 (the stack closes it)
    readers: dict[str, BlobReader] = {}
    result = []
    at = 0
    for piece in content.slices(extents, 0, length) if length else ():
        size = piece.stop - piece.start
        if piece.locator:
            reader = readers.get(piece.locator)
            if reader is None:
                reader = service.backend.open(piece.locator, piece.offset, piece.offset + size)
                readers[piece.locator] = reader
                stack.callback(reader.close)
            if reader.fileno() >= 0:
                result.append((reader.fileno(), piece.offset, piece.offset + size))
                continue
            filled = at
            for data in reader.stream(piece.offset, piece.offset + size):
                filled += os.pwrite(spool.fileno(), data, filled)
        elif piece.data:
            os.pwrite(spool.fileno(), piece.data, at)
        else:
            os.ftruncate(spool.fileno(), at + size)
        result.append((spool.fileno(), at, at + size))
        at += size
    return result


# -- callbacks -------------------------------------------------------------------------------------------------


async def notify(service: Service, url: str, body: bytes) -> None:
    """POST a job's document to its client's callback URL, once; best effort."""
    try:
        client, target = await connect(service, url)
        try:
            head = client.head("POST", target, [("Content-Type", "text/xml"), ("User-Agent", "vosfs")])
            await client.request(head, body)
        finally:
            client.close()
    except VOSpaceError as exc:
        log.info("callback to %s: %s", url[:200], exc)
