"""Containers as archives: the views ``core#tar`` and ``core#zip``, and ``/pkg`` (decision A17).

Written as they are read, so that memory does not grow with them; ``unpack.py`` is the way back.
"""

import io
import itertools
import stat
import tarfile
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import trio

from server.access import Subject
from server.http import Request, Response
from server.parameters import all_parameters
from server.service import Service
from server.walk import below
from vosfs.errors import InvalidArgument, NotOnline, VOSpaceError
from vosfs.metadata import content
from vosfs.metadata.node import CONTAINER, CORE, DATA, LINK, Node
from vosfs.metadata.store import ANYONE, READ
from vosfs.uri import Path

TAR, ZIP = "tar", "zip"
ARCHIVE_VIEWS = {
    CORE + "tar": TAR,
    CORE + "zip": ZIP,
    "ivo://ivoa.net/vospace/views/archive#tar": TAR,
    "ivo://ivoa.net/vospace/views/archive#zip": ZIP,
    "vos://cadc.nrc.ca~vospace/CADC/std/Pkg-1.0": TAR,
}
"""View -> format; only the first two are advertised."""
MEDIA_TYPES = {TAR: "application/x-tar", ZIP: "application/zip"}
BLOCK = tarfile.BLOCKSIZE
PIECE_BYTES = 1 << 20
TARGETS_MAX = 100


Tops = list[tuple[Path, Node]]
"""What an archive is made of: nodes, and where they are."""


def pack(service: Service, tops: Tops, format: str, subject: Subject) -> AsyncGenerator[bytes]:
    """An archive of nodes and all below them that the subject may read (R276, R282)."""
    members = _members(service, tops, subject)
    return _tar(service, members) if format == TAR else _zip(service, members)


async def readable(service: Service, tops: Tops, subject: Subject) -> None:
    """NotOnline, when they have been asked for, unless all bytes of an archive can be read at once.

    Half an archive helps nobody, and asked for one by one its files would take a tape each.
    """
    if not service.backend.slow:
        return
    away = 0
    async for _, node, _ in _members(service, tops, subject):
        if node.kind == DATA:
            try:
                await service.readable((await service.store.open(node.id, ANYONE)).extents)
            except NotOnline:
                away += 1
    if away:
        raise NotOnline(f"{away} files are on a slow storage, and on their way back: try again later")


async def download(service: Service, request: Request, tops: Tops, format: str, subject: Subject) -> Response:
    """The same as an answer, named after what is in it."""
    if request.method != "HEAD":
        await readable(service, tops, subject)
    name = "package" if len(tops) > 1 else _top_name(tops[0][0]).decode("utf-8", "replace")
    body = pack(service, tops, format, subject)
    headers = [
        ("Content-Type", MEDIA_TYPES[format]),
        ("Content-Disposition", f"attachment; filename*=UTF-8''{quote(name)}.{format}"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return Response(200, headers, body)


def _top_name(path: Path) -> bytes:
    return path[-1] if path else b"vospace"


async def _members(service: Service, tops: Tops, subject: Subject) -> AsyncIterator[tuple[Path, Node, bytes]]:
    """(path in the archive, node, link text) of each member."""
    seen: set[bytes] = set()
    for place, top in tops:
        name = _top_name(place)
        for number in itertools.count(2):
            if name not in seen:
                break
            name = b"%s-%d" % (_top_name(place), number)
        seen.add(name)
        yield (name,), top, b""
        if top.kind != CONTAINER:
            continue
        async for path, node in below(service.store, top, subject):
            text = b""
            if node.kind == LINK:
                text = inside(_relative(service, node.target, place, path), path)
                if not text:
                    # It would lead out of the archive (R283).
                    continue
            yield (name, *path), node, text


def _relative(service: Service, target: bytes, top: Path, path: Path) -> bytes:
    """A link's text; a ``vos:`` URI below ``top`` as seen from the link at ``path``."""
    if not target.startswith(b"vos://"):
        return target
    try:
        place = service.authority.path(target.decode("ascii", "replace"))
    except VOSpaceError:
        return b""
    if place[: len(top)] != top:
        return b""
    return b"/".join([b".."] * (len(path) - 1) + list(place[len(top) :])) or b"."


def inside(target: bytes, path: Path) -> bytes:
    """A relative link's text if it stays below the archive's top, else nothing."""
    if not target or target.startswith(b"/") or b":" in target.split(b"/")[0]:
        return b""
    depth = len(path) - 1
    for part in target.split(b"/"):
        if part == b"..":
            depth -= 1
            if depth < 0:
                return b""
        elif part not in (b"", b"."):
            depth += 1
    return target


async def _bytes(service: Service, node: Node) -> AsyncGenerator[bytes]:
    """A data node's bytes, in pieces."""
    found = await service.store.open(node.id, ANYONE)
    # As long as it was said to be, whatever has happened to it since.
    for piece in content.slices(found.extents, 0, node.length) if node.length else ():
        if not piece.locator:
            for start in range(piece.start, piece.stop, PIECE_BYTES):
                stop = min(start + PIECE_BYTES, piece.stop)
                yield piece.data[start - piece.start : stop - piece.start] if piece.data else bytes(stop - start)
            continue
        end = piece.offset + piece.stop - piece.start
        reader = await trio.to_thread.run_sync(service.backend.open, piece.locator, piece.offset, end)
        try:
            stream = reader.stream(piece.offset, end)
            while data := await trio.to_thread.run_sync(next, stream, b""):
                yield bytes(data)
        finally:
            reader.close()


async def _tar(service: Service, members: AsyncIterator[tuple[Path, Node, bytes]]) -> AsyncGenerator[bytes]:
    async for path, node, text in members:
        info = tarfile.TarInfo(b"/".join(path).decode("utf-8", "surrogateescape"))
        info.mode, info.mtime = node.mode, node.mtime_ns / 1e9
        if node.kind == CONTAINER:
            info.type = tarfile.DIRTYPE
        elif node.kind == LINK:
            info.type, info.linkname = tarfile.SYMTYPE, text.decode("utf-8", "surrogateescape")
        else:
            info.size = node.length
        yield info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if node.kind == DATA:
            async for data in _bytes(service, node):
                yield data
            yield bytes(-node.length % BLOCK)
    yield bytes(2 * BLOCK)


class _Outgoing(io.RawIOBase):
    """A file that cannot seek, for ``zipfile`` to write to; what is in it is taken out after each step."""

    def __init__(self) -> None:
        self._data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


async def _zip(service: Service, members: AsyncIterator[tuple[Path, Node, bytes]]) -> AsyncGenerator[bytes]:
    out = _Outgoing()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        async for path, node, text in members:
            info = zipfile.ZipInfo(b"/".join(path).decode("utf-8", "replace"))
            moment = max(node.mtime_ns // 10**9, 315532800)
            info.date_time = tuple(map(int, _utc(moment)))  # type: ignore[assignment]
            kind = {CONTAINER: stat.S_IFDIR, LINK: stat.S_IFLNK}.get(node.kind, stat.S_IFREG)
            info.external_attr = (kind | node.mode) << 16
            if node.kind == CONTAINER:
                info.filename += "/"
                info.external_attr |= 0x10
            with archive.open(info, "w", force_zip64=node.length >= 1 << 31) as member:
                if node.kind == LINK:
                    member.write(text)
                elif node.kind == DATA:
                    async for data in _bytes(service, node):
                        member.write(data)
                        yield out.take()
            yield out.take()
    yield out.take()


def _utc(seconds: int) -> list[str]:
    """Year, month, day, hour, minute and second; a zip knows the years 1980 to 2107."""
    return f"{datetime.fromtimestamp(min(seconds, 4354819198), UTC):%Y %m %d %H %M %S}".split()


# -- /pkg ------------------------------------------------------------------------------------------------------


async def package(service: Service, request: Request) -> Response:
    """``/pkg?TARGET=URI[&TARGET=URI...][&RESPONSEFORMAT=application/zip]``: several nodes as one archive."""
    subject, _ = await service.caller(request)
    given = all_parameters(request.query, TARGETS_MAX + 10)
    wanted = given.get("responseformat", [MEDIA_TYPES[TAR]])[0]
    format = next((f for f, media in MEDIA_TYPES.items() if wanted in (media, f)), "")
    if not format:
        raise InvalidArgument(f"RESPONSEFORMAT is one of {', '.join(MEDIA_TYPES.values())}")
    targets = given.get("target", [])
    if not 0 < len(targets) <= TARGETS_MAX:
        raise InvalidArgument(f"1 to {TARGETS_MAX} parameters TARGET are needed")
    tops = []
    for target in targets:
        trace = await service.trace(service.authority.path(target), subject, leaf=True)
        path, node = trace.path, trace.node()
        subject.permit(node, READ)
        tops.append((path, node))
    return await download(service, request, tops, format, subject)
