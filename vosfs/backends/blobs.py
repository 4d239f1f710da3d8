"""Blobs as the mount sees them: asynchronous, by range, over a network or beside it.

``Blobs`` is the mount's half of port 2.  A leased name's part before the first dot is the blob's own name: leases
change, blobs do not, and the cache goes by the blob.
"""

import os
from typing import Protocol
from urllib.parse import quote

import msgspec
import trio

from vosfs.backends.backend import Backend, Signed
from vosfs.client import Answer, Arrived, HttpClient, Segment
from vosfs.errors import BY_FAULT, NotOnline, ProtocolError, ServiceUnavailable, Stale, StorageFull, VOSpaceError
from vosfs.metadata.messages import Stored


def blob_of(name: str) -> str:
    """The blob behind a leased name."""
    return name.partition(".")[0]


HEADS_MAX = 100
"""Of uploads, one for each storage policy, that are kept made."""


class Blobs(Protocol):
    """Where the mount's bytes come from and go to."""

    async def fetch(self, name: str, start: int, into: memoryview, arrived: Arrived) -> None:
        """Fill ``into`` with a blob's bytes from ``start`` on, telling ``arrived``.  Stale if the lease has ended."""

    async def store(self, segments: list[Segment], storage: str = "") -> Stored:
        """Make one blob of runs of local files, one after the other, where a node with this ``storage`` wants it.

        It survives a power cut once it is committed.
        """


class GatewayBlobs:
    """Blobs of a daemon, over HTTP ranges."""

    def __init__(self, client: HttpClient, path: str, token: str) -> None:
        # Dependencies
        self._client = client
        # Constants
        self._path = path
        # Mutable state
        self._token = token
        self._puts: dict[str, bytes] = {}
        """Storage policy -> head of uploads; INVARIANT: at most HEADS_MAX."""

    def use_token(self, token: str) -> None:
        """Be whoever this names from now on."""
        self._token = token
        self._puts.clear()

    def _head(self, storage: str) -> bytes:
        head = self._puts.get(storage)
        if head is None:
            wanted = f"?storage={quote(','.join(storage.split()), safe=',')}" if storage else ""
            head = self._client.head("PUT", self._path + wanted, [("Authorization", f"Bearer {self._token}")])
            if len(self._puts) < HEADS_MAX:
                self._puts[storage] = head
        return head

    async def fetch(self, name: str, start: int, into: memoryview, arrived: Arrived) -> None:
        head = self._client.head("GET", f"{self._path}/{name}", [("Range", f"bytes={start}-{start + len(into) - 1}")])
        answer = await self._client.request(head, b"", "GET", idempotent=True, into=into, arrived=arrived)
        if answer.status == 403:
            raise Stale("the lease of a blob has ended")
        if answer.status == 200:
            raise ProtocolError("the service ignored a range")
        if answer.status != 206:
            raise _error(answer)

    async def signed(self, name: str) -> Signed | None:
        """Where a blob can be read without the daemon; None if it cannot.  Stale if the lease has ended."""
        head = self._client.head("GET", f"{self._path}/{name}?signed")
        answer = await self._client.request(head, b"", "GET", idempotent=True)
        if answer.status == 403:
            raise Stale("the lease of a blob has ended")
        if answer.status != 200:
            raise _error(answer)
        return msgspec.msgpack.decode(answer.body, type=Signed | None)

    async def store(self, segments: list[Segment], storage: str = "") -> Stored:
        answer = await self._client.upload(self._head(storage), segments)
        if answer.status != 201:
            raise _error(answer)
        return msgspec.msgpack.decode(answer.body, type=Stored)


def _error(answer: Answer) -> VOSpaceError:
    text = answer.body[:500].decode("utf-8", "replace").strip()
    fault, _, message = text.partition(" ")
    if answer.status in (502, 503, 504) and fault != NotOnline.fault:
        return ServiceUnavailable(f"the service answers {answer.status}")
    for cls in BY_FAULT.values():
        if cls.fault == fault and cls.status == answer.status:
            return cls(message)
    if fault == "QuotaExceeded" and answer.status == 507:
        return StorageFull(message)
    return BY_FAULT.get(fault, ProtocolError)(message or f"the service answers {answer.status}")


class LocalBlobs:
    """Blobs of a Backend in this process: for tests, and for mounting on the server's own host."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def fetch(self, name: str, start: int, into: memoryview, arrived: Arrived) -> None:
        def read() -> None:
            stop = start + len(into)
            reader = self._backend.open(blob_of(name), start, stop)
            try:
                into[:] = reader.read(start, stop)
            finally:
                reader.close()

        await trio.to_thread.run_sync(read)
        arrived(len(into))

    async def store(self, segments: list[Segment], storage: str = "") -> Stored:
        def write() -> Stored:
            writer = self._backend.create(sum(stop - start for _, start, stop in segments))
            try:
                for fd, start, stop in segments:
                    while start < stop:
                        data = os.pread(fd, min(1 << 20, stop - start), start)
                        if not data:
                            raise ProtocolError("file ended before its length")
                        writer.write(data)
                        start += len(data)
                blob = writer.finish(True)
            finally:
                writer.abort()
            return Stored(f"{blob.locator}.{blob.length}.{blob.crc32}", blob.locator)

        return await trio.to_thread.run_sync(write)
