"""Blobs straight from the object store that keeps them, without the daemon between.

The daemon signs a URL for one blob (``Signed``), and the blob's own checksums come with it: nothing that arrives counts
before they agree.  Whatever goes wrong here, the daemon is asked instead, and can do more: it has other copies.  Nobody
waits for a store that may be out of reach: it is tried beside a read that the daemon does.
"""

import logging
from collections import OrderedDict
from urllib.parse import urlsplit

import trio

from vosfs.backends.backend import Signed
from vosfs.backends.blobs import GatewayBlobs, blob_of
from vosfs.backends.sums import Damaged, checked, verify
from vosfs.client import Arrived, HttpClient, Segment
from vosfs.errors import BlobMissing, Stale, TimedOut, VOSpaceError
from vosfs.metadata.messages import Stored

log = logging.getLogger(__name__)

BYTES_MIN = 1 << 20
"""Shorter reads are not worth asking for a URL: that is one request of the daemon's to the store, too."""
URLS_MAX = 300
SUMS_BYTES_MAX = 16 << 20
"""Of the blobs whose URLs are remembered, together; a blob of 32 MiB has 1 KiB."""
SLACK_S = 30.0
"""A URL is used no more when it has only so long to live."""
ATTEMPTS_MAX = 2
"""Of one read, as long as nobody was told of a byte of it: a kept connection may have ended, or a URL.  Silence counts at once."""
DEADLINE_S = 8.0
"""For one read of up to 4 MiB, connecting included; who waits for it waits for the daemon afterwards."""
AVOIDED_S_MIN, AVOIDED_S_MAX = 30.0, 3600.0
"""How long nobody tries the store after it failed; twice as long each time."""


class _Store:
    """An object store, as far as it is in reach.  Nobody waits for one that was not reached before."""

    def __init__(self, origin: str) -> None:
        # Dependencies
        self.client = HttpClient(origin, DEADLINE_S)
        # Mutable state
        self.reached = False
        """Whether it answered when it was last tried."""
        self.probing = False
        self.avoided_until = float("-inf")
        self.avoided_s = AVOIDED_S_MIN

    def worked(self) -> None:
        self.reached = True
        self.avoided_s = AVOIDED_S_MIN

    def failed(self, failure: str) -> None:
        self.reached = False
        now = trio.current_time()
        if now < self.avoided_until:
            # Another read failed at the same time.
            return
        log.info("%s; for %.0f s what is there is read through the daemon", failure, self.avoided_s)
        self.avoided_until = now + self.avoided_s
        self.avoided_s = min(2 * self.avoided_s, AVOIDED_S_MAX)


class _Url:
    """Where a blob is, and what is known of it."""

    __slots__ = ("store", "target", "until", "signed")

    def __init__(self, store: _Store, target: str, until: float, signed: Signed) -> None:
        self.store = store
        self.target = target
        self.until = until
        self.signed = signed

    def covers(self, start: int, stop: int) -> bool:
        """Whether a range is whole blocks, which can be checked."""
        block, length = self.signed.block_bytes, self.signed.length
        return start % block == 0 and (stop == length or (stop < length and stop % block == 0))


class _Checking:
    """Tells of bytes when their blocks are checked."""

    def __init__(self, url: _Url, start: int, into: memoryview, arrived: Arrived) -> None:
        # Constants
        self._signed = url.signed
        self._start = start
        self._into = into
        self._arrived = arrived
        # Mutable state
        self.good = 0
        """INVARIANT: so many bytes of the buffer are what was written."""

    def arrived(self, count: int) -> None:
        """The buffer's first ``count`` bytes are here.  Damaged."""
        block = self._signed.block_bytes
        whole = count if count == len(self._into) else count - count % block
        if whole > self.good:
            view = self._into[self.good : whole]
            verify(view, self._start + self.good, self._signed.sums, block, "a blob")
            self.good = whole
            self._arrived(whole)


class DirectBlobs:
    """Blobs (see ``blobs.py``) of a daemon, long reads from its store."""

    def __init__(self, daemon: GatewayBlobs, nursery: trio.Nursery) -> None:
        # Dependencies
        self._daemon = daemon
        self._nursery = nursery
        # Mutable state
        self._stores: dict[str, _Store] = {}
        """By origin; as many as the daemon has storages."""
        self._urls: OrderedDict[str, _Url] = OrderedDict()
        """Blob -> its URL; INVARIANT: at most URLS_MAX, and SUMS_BYTES_MAX of sums."""
        self._sums_bytes = 0
        self._without: OrderedDict[str, None] = OrderedDict()
        """Blobs that have none; INVARIANT: at most URLS_MAX."""
        self._asking: dict[str, trio.Event] = {}
        """Blobs whose URL somebody is asking for."""
        self._short: tuple[str, int] = ("", 0)
        """Where the last short read ended."""
        self.bytes_read = 0
        """Straight from stores."""

    def close(self) -> None:
        """Drop the idle connections."""
        for store in self._stores.values():
            store.client.close()

    async def store(self, segments: list[Segment], storage: str = "") -> Stored:
        return await self._daemon.store(segments, storage)

    async def fetch(self, name: str, start: int, into: memoryview, arrived: Arrived) -> None:
        blob, stop = blob_of(name), start + len(into)
        if (len(into) >= BYTES_MIN and not self._hopeless()) or blob in self._urls:
            url = await self._url(name)
            if url is not None and url.store.reached:
                if url.covers(start, stop) and await self._read(name, start, into, arrived):
                    return
            elif url is not None:
                self._reach(name, url.store)
        else:
            if self._short == (blob, start) and not self._hopeless():
                # Somebody reads on, and will soon read more at once.
                self._nursery.start_soon(self._prepare, name)
            self._short = (blob, stop)
        await self._daemon.fetch(name, start, into, arrived)

    async def _prepare(self, name: str) -> None:
        """Have what a long read of a blob will want."""
        try:
            url = await self._url(name)
        except VOSpaceError as exc:
            # Whoever reads the blob is told.
            log.debug("no URL: %s", exc)
            return
        if url is not None and not url.store.reached:
            self._reach(name, url.store)

    def _reach(self, name: str, store: _Store) -> None:
        """Have a store tried, unless that is under way, or was in vain of late."""
        if not store.probing and trio.current_time() >= store.avoided_until:
            store.probing = True
            self._nursery.start_soon(self._probe, name, store)

    def _hopeless(self) -> bool:
        """Whether a URL would be of no use now."""
        now = trio.current_time()
        return bool(self._stores) and all(now < store.avoided_until for store in self._stores.values())

    async def _probe(self, name: str, store: _Store) -> None:
        """See whether a store can be reached, by the beginning of a blob that somebody reads through the daemon meanwhile."""
        try:
            url = await self._url(name)
            if url is not None:
                size = min(url.signed.block_bytes, url.signed.length)
                await self._read(name, 0, memoryview(bytearray(size)), lambda count: None)
        except VOSpaceError as exc:
            # Whoever reads the blob is told.
            log.debug("no URL: %s", exc)
        finally:
            store.probing = False

    async def _read(self, name: str, start: int, into: memoryview, arrived: Arrived) -> bool:
        """Read from the store; False if it cannot be had there."""
        stop, failure = start + len(into), ""
        for _ in range(ATTEMPTS_MAX):
            url = await self._url(name)
            if url is None:
                return False
            store, checking = url.store, _Checking(url, start, into, arrived)
            head = store.client.head("GET", url.target, [("Range", f"bytes={start}-{stop - 1}")])
            try:
                answer = await store.client.request(head, b"", "GET", into=into, arrived=checking.arrived)
            except Damaged as exc:
                log.warning("%s: %s; it is read through the daemon", store.client.origin, exc)
                self._forget(blob_of(name))
                return False
            except VOSpaceError as exc:
                failure = str(exc)
                if checking.good or isinstance(exc, TimedOut):
                    break
                continue
            if answer.status == 206 and checking.good == len(into):
                store.worked()
                self.bytes_read += len(into)
                return True
            failure = f"{store.client.origin} answers {answer.status}"
            self._forget(blob_of(name))
        store.failed(failure)
        return False

    # -- URLs ----------------------------------------------------------------------------------------------------------

    async def _url(self, name: str) -> _Url | None:
        """Where a blob is; None if the daemon does not say.  BlobMissing, Stale."""
        blob = blob_of(name)
        while True:
            if blob in self._without:
                return None
            known = self._urls.get(blob)
            if known is not None and trio.current_time() < known.until:
                self._urls.move_to_end(blob)
                return known
            asking = self._asking.get(blob)
            if asking is None:
                break
            await asking.wait()
        self._asking[blob] = trio.Event()
        try:
            return await self._ask(name)
        finally:
            self._asking.pop(blob).set()

    async def _ask(self, name: str) -> _Url | None:
        blob, asked = blob_of(name), trio.current_time()
        self._forget(blob)
        try:
            signed = await self._daemon.signed(name)
            if signed is not None:
                checked(signed.sums, signed.length, signed.block_bytes, f"the URL of blob {blob}")
                return self._remember(blob, signed, asked)
        except (BlobMissing, Stale):
            raise
        except (VOSpaceError, Damaged) as exc:
            # A key that signs nothing, say.  The daemon can read it all the same, or tells why not.
            log.info("no URL: %s", exc)
        self._without[blob] = None
        if len(self._without) > URLS_MAX:
            self._without.popitem(last=False)
        return None

    def _remember(self, blob: str, signed: Signed, asked: float) -> _Url:
        parts = urlsplit(signed.url)
        origin = f"{parts.scheme}://{parts.netloc}"
        store = self._stores.get(origin)
        if store is None:
            store = self._stores[origin] = _Store(origin)
        url = _Url(store, signed.url.removeprefix(origin), asked + signed.life_s - SLACK_S, signed)
        self._urls[blob] = url
        self._sums_bytes += len(signed.sums)
        while len(self._urls) > URLS_MAX or (self._sums_bytes > SUMS_BYTES_MAX and len(self._urls) > 1):
            self._forget(next(iter(self._urls)))
        return url

    def _forget(self, blob: str) -> None:
        url = self._urls.pop(blob, None)
        if url is not None:
            self._sums_bytes -= len(url.signed.sums)
