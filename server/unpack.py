"""Archives unpacked into containers: as they come, and all of it or nothing.

Only a zip, whose directory is at its end, is kept as a blob until it is unpacked; memory grows with neither.
"""

import calendar
import io
import queue
import secrets
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Awaitable, Callable, Iterator
from typing import IO, Any

import msgspec
import trio

from server.access import Subject
from server.archive import BLOCK, PIECE_BYTES, TAR, inside
from server.copying import stager
from server.service import Service
from vosfs.backends.backend import BlobReader, BlobWriter
from vosfs.client import Sink
from vosfs.errors import DuplicateNode, InvalidArgument, InvalidData, NodeNotFound, VOSpaceError
from vosfs.metadata import content
from vosfs.metadata.node import CONTAINER, DATA, LINK, STAGING_ID, Blob, Extent, NewNode, Node
from vosfs.metadata.store import ANYONE
from vosfs.uri import RESERVED_NAMES, Path, check_name

QUEUE_PIECES = 4
"""Of an upload that wait to be unpacked."""
ENTRIES_MAX = 1_000_000
RATIO_MAX = 200
"""An archive that unpacks to more than this many times its own size, beyond FREE_BYTES, is a bomb."""
FREE_BYTES = 1 << 30
CONTAINERS_KEPT = 10_000
"""Containers whose ids are remembered while an upload is unpacked."""
SYNC_BLOBS = 500


class _Incoming(io.RawIOBase):
    """An upload as a file to read from, in another thread than the one that fills it."""

    def __init__(self) -> None:
        self._pieces: queue.Queue[bytes | None] = queue.Queue(QUEUE_PIECES)
        self._rest = memoryview(b"")
        self.broken = False
        """The sender went away."""
        self.closed_early = False
        """The reader did."""
        self.received = 0

    def put(self, data: memoryview) -> None:
        """Add bytes; waits while QUEUE_PIECES are there."""
        self.received += len(data)
        while not self.closed_early:
            try:
                self._pieces.put(bytes(data), timeout=1)
                return
            except queue.Full:
                continue

    def end(self) -> None:
        """No more will come."""
        while not self.closed_early:
            try:
                self._pieces.put(None, timeout=1)
                return
            except queue.Full:
                continue

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            piece = self._pieces.get()
            if piece is None:
                self._pieces.put(None)
                if self.broken:
                    raise InvalidData("the upload broke off")
                return 0
            self._rest = memoryview(piece)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class _Member(msgspec.Struct):
    """One entry of an archive that is being unpacked."""

    path: Path
    kind: str
    mode: int
    mtime_ns: int
    target: bytes = b""
    hard: bool = False
    """``target`` is the path, in the archive, of what this is another name of."""
    stream: Any = None


async def upload(
    service: Service, receive: Callable[[Sink], Awaitable[object]], top: Node, format: str, subject: Subject,
    confirm: Callable[[], Awaitable[None]],
) -> None:  # fmt: skip
    """Unpack the body that ``receive`` moves into a container (R274-R285); ``confirm`` is asked before it shows.

    InvalidData, DuplicateNode, PermissionDenied.
    """
    name = b"upload-" + secrets.token_hex(12).encode()
    staged = await service.store.create(
        STAGING_ID, name, NewNode(CONTAINER, owner=subject.user, storage=top.storage, quota=top.quota, public=top.public, group_read=top.group_read,
                                  group_write=top.group_write),
    )  # fmt: skip
    incoming = _Incoming()
    unpacker = _Unpacker(service, staged, top, subject, incoming)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_unpack, unpacker, format)
            try:
                await receive(incoming.put)
            except BaseException:
                incoming.broken = True
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(incoming.end)
        await confirm()
        await service.store.graft(staged.id, top.id, stager(subject))
    except BaseExceptionGroup as group:
        raise _first(group) from None
    finally:
        with trio.CancelScope(shield=True):
            await service.store.drop_staged(name)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What went wrong first: the archive's fault rather than the connection's."""
    leaves = []
    todo: list[BaseException] = [group]
    while todo:
        exc = todo.pop()
        if isinstance(exc, BaseExceptionGroup):
            todo += exc.exceptions
        else:
            leaves.append(exc)
    return next((exc for exc in leaves if isinstance(exc, VOSpaceError)), leaves[0])


async def _unpack(unpacker: "_Unpacker", format: str) -> None:
    try:
        await trio.to_thread.run_sync(unpacker.run, format)
    finally:
        unpacker.incoming.closed_early = True


class _Header(tarfile.TarInfo):
    """A header of a tar that must be whole: ``tarfile`` itself takes a cut one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        if len(buf) != BLOCK:
            raise InvalidData("the archive ends without its end mark")
        return super().frombuf(buf, encoding, errors)


class _Unpacker:
    """Reads an archive in a worker thread and makes nodes of its entries."""

    def __init__(self, service: Service, staged: Node, top: Node, subject: Subject, incoming: _Incoming) -> None:
        self._service = service
        self._store = service.store
        self._staged = staged
        self._top = top
        self._subject = subject
        self.incoming = incoming
        self._containers: dict[Path, int] = {(): staged.id}
        self._entries = 0
        self._bytes = 0
        self._unsynced: list[str] = []

    def run(self, format: str) -> None:
        """Unpack everything.  InvalidData."""
        try:
            for member in self._tar() if format == TAR else self._zip():
                self._entries += 1
                if self._entries > ENTRIES_MAX:
                    raise InvalidData(f"more than {ENTRIES_MAX} entries")
                self._add(member)
        except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError) as exc:
            raise InvalidData(f"the archive: {exc}") from exc
        except OSError as exc:
            raise InvalidData(f"the archive: {exc}") from exc
        self._sync()

    def _sync(self) -> None:
        self._service.backend.sync(self._unsynced)
        self._unsynced.clear()

    def _tar(self) -> Iterator[_Member]:
        stream = io.BufferedReader(self.incoming, PIECE_BYTES)
        with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as archive:
            for info in archive:
                path = _path(info.name.encode("utf-8", "surrogateescape"))
                mtime_ns = int(float(info.mtime) * 1e9)
                target = info.linkname.encode("utf-8", "surrogateescape")
                mode = info.mode & 0o7777
                if info.isdir():
                    yield _Member(path, CONTAINER, mode, mtime_ns)
                elif info.issym():
                    yield _Member(path, LINK, 0o777, mtime_ns, target)
                elif info.islnk():
                    yield _Member(path, DATA, mode, mtime_ns, target, True)
                elif info.isreg():
                    yield _Member(path, DATA, mode, mtime_ns, stream=archive.extractfile(info))
                else:
                    raise InvalidData(f"{info.name!r} is neither file, directory nor link")
                # In a stream nothing is looked up again, and the list would grow with the archive.
                archive.members = []  # type: ignore[attr-defined]
        while stream.read(PIECE_BYTES):
            # What follows the end mark: padding, that the sender must get rid of.
            pass

    def _zip(self) -> Iterator[_Member]:
        backend = self._service.backend
        # For as long as it takes to unpack it: one copy will do.
        writer = backend.create()
        try:
            while data := self.incoming.read(PIECE_BYTES):
                writer.write(data)
            blob = writer.finish(False)
        finally:
            writer.abort()
        reader = backend.open(blob.locator)
        try:
            with zipfile.ZipFile(io.BufferedReader(_Seekable(reader), PIECE_BYTES)) as archive:
                for info in archive.infolist():
                    yield from self._zip_member(archive, info)
        finally:
            reader.close()
            backend.remove(blob.locator)

    def _zip_member(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[_Member]:
        path = _path(info.filename.encode("utf-8", "surrogateescape"))
        mtime_ns = calendar.timegm(info.date_time) * 10**9
        mode = info.external_attr >> 16
        if info.is_dir():
            yield _Member(path, CONTAINER, stat.S_IMODE(mode) or 0o755, mtime_ns)
        elif stat.S_ISLNK(mode):
            if info.file_size > 4096:
                raise InvalidData(f"{info.filename!r} is too long for a link")
            yield _Member(path, LINK, 0o777, mtime_ns, archive.read(info))
        elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
            with archive.open(info) as stream:
                yield _Member(path, DATA, stat.S_IMODE(mode) or 0o644, mtime_ns, stream=stream)
        else:
            raise InvalidData(f"{info.filename!r} is neither file, directory nor link")

    # -- making nodes; each call runs one store operation in the event loop

    def _call(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        return trio.from_thread.run(work, *arguments)

    def _add(self, member: _Member) -> None:
        if not member.path:
            return
        if member.kind == CONTAINER:
            self._container(member.path, member.mode)
            return
        parent, name = self._container(member.path[:-1]), member.path[-1]
        top = self._top
        new = NewNode(
            member.kind, member.mode, owner=self._subject.user, target=member.target, public=top.public,
            group_read=top.group_read, group_write=top.group_write, mtime_ns=member.mtime_ns,
        )  # fmt: skip
        if member.hard:
            self._link(member, parent, name)
        elif member.kind == LINK:
            if not inside(member.target, member.path):
                raise InvalidData(f"link {b'/'.join(member.path)!r} leads out of the archive")
            self._call(self._store.create, parent, name, new)
        else:
            self._data(member, parent, name, new)

    def _link(self, member: _Member, parent: int, name: bytes) -> None:
        at = self._staged.id
        try:
            for part in _path(member.target):
                node = self._call(self._store.lookup, at, part)
                at = node.id
        except NodeNotFound:
            raise InvalidData(f"hard link {b'/'.join(member.path)!r} to what was not before it") from None
        self._call(self._store.link, at, parent, name)

    def _container(self, path: Path, mode: int = 0o755) -> int:
        known = self._containers.get(path)
        if known is not None:
            return known
        parent = self._container(path[:-1])
        top = self._top
        new = NewNode(
            CONTAINER, mode, owner=self._subject.user, public=top.public, group_read=top.group_read,
            group_write=top.group_write,
        )  # fmt: skip
        try:
            node = self._call(self._store.create, parent, path[-1], new)
        except DuplicateNode:
            node = self._call(self._store.lookup, parent, path[-1])
            if node.kind != CONTAINER:
                raise InvalidData(f"{b'/'.join(path)!r} is a file and a directory") from None
        if len(self._containers) >= CONTAINERS_KEPT:
            self._containers = {(): self._staged.id}
        self._containers[path] = node.id
        return int(node.id)

    def _data(self, member: _Member, parent: int, name: bytes, new: NewNode) -> None:
        stream: IO[bytes] = member.stream
        first = stream.read(content.INLINE_BYTES_MAX + 1)
        self._grow(len(first))
        extents: list[Extent] = []
        blobs: list[Blob] = []
        length = len(first)
        if length <= content.INLINE_BYTES_MAX:
            extents = [Extent(0, length, data=first)] if first else []
        else:
            blob = self._blob(first, stream)
            length, blobs, extents = blob.length, [blob], [Extent(0, blob.length, blob.locator)]
        try:
            self._call(
                self._store.put_data, parent, name, new, length, extents, blobs, "", False, ANYONE, False,
                member.mtime_ns,
            )  # fmt: skip
        except InvalidArgument as exc:
            raise InvalidData(f"{b'/'.join(member.path)!r}: {exc}") from None

    def _blob(self, first: bytes, stream: IO[bytes]) -> Blob:
        writer: BlobWriter = self._service.backend.create(0, self._top.storage)
        try:
            data = first
            while data:
                writer.write(data)
                data = stream.read(PIECE_BYTES)
                self._grow(len(data))
            blob = writer.finish(False)
        finally:
            writer.abort()
        self._unsynced.append(blob.locator)
        if len(self._unsynced) >= SYNC_BLOBS:
            self._sync()
        return blob

    def _grow(self, count: int) -> None:
        self._bytes += count
        if self._bytes > FREE_BYTES and self._bytes > RATIO_MAX * self.incoming.received:
            raise InvalidData(f"the archive unpacks to more than {RATIO_MAX} times its size")


class _Seekable(io.RawIOBase):
    """A blob as a file that can seek."""

    def __init__(self, reader: BlobReader) -> None:
        self._reader = reader
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._reader.length)[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._reader.length)
        if stop <= self._at:
            return 0
        data = self._reader.read(self._at, stop)
        buffer[: len(data)] = data
        self._at = stop
        return len(data)


def _path(name: bytes) -> Path:
    """An entry's path.  InvalidData for one that is absolute or climbs (R279)."""
    if name.startswith(b"/"):
        raise InvalidData(f"{name[:200]!r} is absolute")
    parts = tuple(part for part in name.split(b"/") if part not in (b"", b"."))
    if any(part in RESERVED_NAMES for part in parts):
        raise InvalidData(f"{name[:200]!r} holds a reserved name")
    try:
        return tuple(check_name(part) for part in parts)
    except VOSpaceError as exc:
        raise InvalidData(f"{name[:200]!r}: {exc}") from None
