"""Blobs as objects of S3 (AWS, Ceph, MinIO, Swift), Azure Blob Storage or GCS, below a prefix of one bucket.

A blob is one object that holds just its bytes, named by its locator.  CRC-32s of its blocks lie beside them and every
block is checked when it is read: Ceph 16 ignores the checksums that S3 has for this, and TLS ends at a proxy as often
as not.  A short blob is one conditional PUT with its sums as metadata.  A long one is a multipart upload, with parts
in parallel; its sums are known last, so they are an object of their own, ``LOCATOR.sums``, which is made first and only
if there is none: it also claims the name.

What a service answered with success is durable there, so ``sync`` has nothing to do.
"""

import base64
import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, UnknownConfigurationKeyError
from obstore.store import from_url

from vosfs.backends.archived import ArchivedObjects
from vosfs.backends.backend import Signed
from vosfs.backends.objecterrors import FOREIGN, NO_BUCKET, SKEWED, failure, passing, said, translated
from vosfs.backends.sums import Broken, Damaged, KeptSums, Sums, checked, mended, verify
from vosfs.backends.uploads import Key, Uploads
from vosfs.config import StorageConfig, credentials
from vosfs.errors import (
    DataCorrupt,
    DuplicateNode,
    QuietError,
    TimedOut,
    TooLarge,
    VOSpaceError,
)
from vosfs.metadata.node import Blob

log = logging.getLogger(__name__)

PART_BYTES = 16 << 20
"""Longer blobs go in parts of this, two at a time: 64 MiB of memory each.  S3 takes 10 000 parts, 156 GiB."""
PARTS_AT_ONCE = 2
PARTS_MAX = 10_000
BLOCK_BYTES = 128 << 10
"""What one checksum covers: 16 MiB make 688 characters of metadata, where S3 has room for 2048."""
CHUNK_BYTES = 512 << 10
"""What the library hands over at least; with 128 KiB the threads change places four times as often."""
DEADLINE_S = 60.0
"""A request is repeated until this much time has passed; a service that is silent for half of it is asked again."""
ATTEMPTS_MAX = 3
SIGNED_S = 300
"""Life of a signed URL: of the start of a download, not of its end."""
LIST_PAGE = 1000
OWNER = "space"
"""Key of the object that says whose blobs these are."""
ALL_NS = 1 << 62
"""A time after everything."""

_LOCATOR = re.compile(r"[0-9a-f]{32}m?")


# -- writing ---------------------------------------------------------------------------------------------------------


class _Writer:
    def __init__(self, backend: "ObjectsBackend") -> None:
        # Dependencies
        self._backend = backend
        # Mutable state
        self._locator = secrets.token_hex(16)
        self._sums = Sums(BLOCK_BYTES)
        self._pieces: list[bytes] = []
        """All of a short blob; INVARIANT: at most PART_BYTES together."""
        self._upload: Any = None
        """The multipart upload, of a long blob."""
        self._named = False
        """There may be an object of this name, and it is ours."""

    def write(self, data: bytes | memoryview) -> None:
        # A copy, as obstore keeps what it is given until it is sent, and callers fill their buffer again.
        piece = bytes(data)
        self._sums.add(memoryview(piece))
        if self._sums.length > PARTS_MAX * PART_BYTES:
            raise TooLarge(f"a blob has at most {PARTS_MAX * PART_BYTES >> 30} GiB in an object store")
        self._pieces.append(piece)
        if self._upload is not None or self._sums.length > PART_BYTES:
            self._send()

    def _send(self) -> None:
        with translated(f"blob {self._locator}"):
            if self._upload is None:
                self._locator += "m"
                self._upload = self._backend.upload(self._locator)
            for piece in self._pieces:
                self._upload.write(piece)
        self._pieces.clear()

    def finish(self, durable: bool) -> Blob:
        backend, locator, sums = self._backend, self._locator, self._sums
        if self._upload is None:
            self._publish(locator, self._pieces, {"sums": base64.b64encode(sums.packed()).decode()})
            if not backend.signs_bodies:
                self._confirm()
        else:
            self._publish(locator + ".sums", [sums.packed()], {})
            try:
                with translated(f"blob {locator}"):
                    self._upload.close()
            except VOSpaceError:
                # It may have been done all the same, and the answer got lost.
                if backend.size(locator) != sums.length:
                    raise
            self._confirm()
        self._named, self._upload = False, None
        self._pieces.clear()
        return Blob(locator, sums.length, sums.crc32)

    def _confirm(self) -> None:
        found = self._backend.size(self._locator)
        if found != self._sums.length:
            raise DataCorrupt(f"blob {self._locator}: {self._sums.length} bytes were sent, {found} are there")

    def _publish(self, key: str, pieces: Sequence[bytes], attributes: dict[str, str]) -> None:
        self._named = True
        try:
            self._backend.put(key, pieces, attributes)
        except DuplicateNode:
            self._named = False
            raise

    def abort(self) -> None:
        upload, named = self._upload, self._named
        self._upload, self._named = None, False
        try:
            if upload is not None:
                with contextlib.suppress(*FOREIGN):
                    upload.__exit__(ValueError, ValueError("aborted"), None)
                self._backend.drop_uploads(ALL_NS, self._locator)
            if named:
                self._backend.remove(self._locator)
        except VOSpaceError as exc:
            # The collector comes upon it in some hours.
            log.info("blob %s, which is not wanted: %s", self._locator, exc)


# -- reading ---------------------------------------------------------------------------------------------------------


class _Reader:
    def __init__(self, backend: "ObjectsBackend", locator: str, got: Any, sums: bytes) -> None:
        # Dependencies
        self._backend = backend
        # Constants
        self.length: int = got.meta["size"]
        self._locator = locator
        self._what = f"blob {locator}"
        self.sums = sums
        # Mutable state
        self._got: Any = got
        """An answer whose bytes nobody has taken yet."""

    def fileno(self) -> int:
        return -1

    def read(self, start: int, stop: int) -> bytes:
        return b"".join(self.stream(start, stop))

    def stream(self, start: int, stop: int) -> Iterator[bytes | memoryview]:
        return mended(self._what, start, stop, self.length, BLOCK_BYTES, ATTEMPTS_MAX, self._whole_blocks)

    def _whole_blocks(self, at: int, end: int) -> Iterator[bytes | memoryview]:
        try:
            yield from self._checked(at, end)
        except (*FOREIGN, Damaged) as exc:
            ours = failure(exc, self._what)
            # The library has asked a silent service again by itself.
            if isinstance(exc, Damaged) or (passing(exc, ours) and not isinstance(ours, TimedOut)):
                raise Broken(ours) from None
            raise ours from None

    def _checked(self, at: int, end: int) -> Iterator[bytes | memoryview]:
        """The bytes from ``at`` to ``end``, which are bounds of blocks, each block checked."""
        got, self._got = self._got, None
        if got is None or got.range != (at, end):
            got = self._backend.get(self._locator, at, end)
        # Views, but for the block that a chunk cuts: 0.1 s of CPU less per GiB than with copies.
        rest = b""
        for chunk in got.stream(min_chunk_size=CHUNK_BYTES):
            view = memoryview(chunk)
            if rest:
                missing = min(BLOCK_BYTES - len(rest), len(view))
                rest, view = rest + view[:missing], view[missing:]
                if len(rest) < BLOCK_BYTES and at + len(rest) < end:
                    continue
                verify(memoryview(rest), at, self.sums, BLOCK_BYTES, self._what)
                yield rest
                at += len(rest)
            whole = len(view) if at + len(view) == end else len(view) - len(view) % BLOCK_BYTES
            if whole:
                verify(view[:whole], at, self.sums, BLOCK_BYTES, self._what)
                yield view[:whole]
                at += whole
            rest = bytes(view[whole:])
        if at != end:
            raise Damaged(f"{self._what}: {end - at} bytes of {end} are not there")

    def close(self) -> None:
        self._got = None


# -- the backend -----------------------------------------------------------------------------------------------------


class ObjectsBackend:
    """Backend (see ``backend.py`` for every method's contract) below a prefix of a bucket."""

    def __init__(
        self, url: str, store: Any, uploads: Uploads | None, deadline_s: float = DEADLINE_S, signs: bool = False,
        redirects: bool = False, signs_bodies: bool = False,
    ) -> None:  # fmt: skip
        # Dependencies
        self._store = store
        self._uploads = uploads
        # Constants
        self._url = url
        self._deadline_s = deadline_s
        self.signs = signs
        self.redirects = redirects
        self.signs_bodies = signs_bodies
        """Whether the service takes a body only if it is what was signed: then its length need not be looked up."""
        # Mutable state
        self._kept = KeptSums()

    def __repr__(self) -> str:
        return f"ObjectsBackend({self._url})"

    def check(self, space: str) -> None:
        key = f"probe-{secrets.token_hex(8)}"
        try:
            obstore.put(self._store, key, b"vosfs", mode="create")
            read = bytes(obstore.get(self._store, key).bytes())
            obstore.delete(self._store, [key])
        except FOREIGN as exc:
            raise QuietError(self._cure(exc)) from None
        if self.redirects:
            try:
                self._sign(key, "GET")
            except VOSpaceError:
                raise QuietError(
                    f"{self._url}: no URLs can be signed with this key: [storage] redirect needs one that can"
                ) from None
        if read != b"vosfs":
            raise QuietError(f"{self._url}: what is written there comes back as something else")
        try:
            self.put(OWNER, [space.encode()], {})
        except DuplicateNode:
            raise QuietError(
                f"{self._url}: the blobs of another space are there: choose another prefix in [storage] objects, or "
                f"remove the object {OWNER!r} if that space is no more"
            ) from None
        except VOSpaceError as exc:
            raise QuietError(f"{self._url}: {exc}") from None

    def _cure(self, exc: Exception) -> str:
        status, code = said(exc)
        if code in NO_BUCKET:
            return f"{self._url}: the bucket does not exist: make it, or correct [storage] objects"
        if code == SKEWED:
            return f"{self._url}: the object store's clock and this host's differ: set the wrong one right, by NTP say"
        if status in (401, 403):
            return (
                f"{self._url}: the key is refused ({status} {code}): see [storage] credentials_file, or the "
                "environment's variables, and what the key may do"
            )
        if status == 0:
            return (
                f"{self._url}: no answer from the object store: see [storage] endpoint, its certificate's "
                "endpoint_ca, and whether this host reaches it"
            )
        return f"{self._url}: the object store answers {status} {code}: blobs cannot be kept there"

    @staticmethod
    def _key(locator: str) -> str:
        if not _LOCATOR.fullmatch(locator):
            raise DataCorrupt(f"{locator[:80]!r} is not a locator")
        return locator

    def create(self, length: int = 0) -> _Writer:
        return _Writer(self)

    def upload(self, key: str) -> Any:
        """Begin a multipart upload."""
        return obstore.open_writer(self._store, key, buffer_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)

    def put(self, key: str, pieces: Sequence[bytes], attributes: dict[str, str]) -> None:
        """Make an object that is not there yet, of pieces: joined they would be in memory twice.  DuplicateNode if it is, with other content."""
        end = time.monotonic() + self._deadline_s
        for attempt in range(1, ATTEMPTS_MAX + 1):
            try:
                obstore.put(self._store, key, iter(pieces), mode="create", attributes=attributes, use_multipart=False)
                return
            except AlreadyExistsError:
                # Ours, if the answer to an earlier attempt got lost, here or in the library.
                with translated(f"object {key}"):
                    if bytes(obstore.get(self._store, key).bytes()) == b"".join(pieces):
                        return
                raise DuplicateNode(f"object {key} is there already") from None
            except FOREIGN as exc:
                ours = failure(exc, f"object {key}")
                if not passing(exc, ours) or attempt == ATTEMPTS_MAX or time.monotonic() > end:
                    raise ours from None
                log.info("%s; sent again", ours)

    def size(self, key: str) -> int:
        """Length of an object; -1 if there is none."""
        try:
            return obstore.head(self._store, key)["size"]
        except FileNotFoundError:
            return -1
        except FOREIGN as exc:
            raise failure(exc, f"object {key}") from None

    def get(self, locator: str, start: int, stop: int) -> Any:
        """An answer with bytes of a blob."""
        return obstore.get(self._store, locator, options={"range": (start, stop)})

    def open(self, locator: str, start: int = 0, stop: int = 0) -> _Reader:
        key = self._key(locator)
        with translated(f"blob {locator}"):
            for attempt in range(1, ATTEMPTS_MAX + 1):
                got = self._first(key, start, stop)
                try:
                    return _Reader(self, locator, got, self._sums_of(locator, got))
                except Damaged:
                    if attempt == ATTEMPTS_MAX:
                        raise
        raise AssertionError("unreachable")

    def _first(self, key: str, start: int, stop: int) -> Any:
        """The answer that says how long a blob is, with the blocks around a range if there is one."""
        if start < stop:
            try:
                return self.get(key, start - start % BLOCK_BYTES, -(-stop // BLOCK_BYTES) * BLOCK_BYTES)
            except BaseError as exc:
                if said(exc)[0] != 416:
                    raise
        return obstore.get(self._store, key, options={"head": True})

    def _sums_of(self, locator: str, got: Any) -> bytes:
        length, what = got.meta["size"], f"blob {locator}"
        if not locator.endswith("m"):
            try:
                return checked(
                    base64.b64decode(got.attributes.get("sums", ""), validate=True), length, BLOCK_BYTES, what
                )
            except ValueError:
                raise Damaged(f"{what}: its checksums are not readable") from None
        packed = self._kept.get(locator)
        if packed is None:
            try:
                packed = bytes(obstore.get(self._store, locator + ".sums").bytes())
            except FileNotFoundError:
                raise DataCorrupt(f"{what}: its checksums are missing") from None
        checked(packed, length, BLOCK_BYTES, what)
        self._kept.keep(locator, packed)
        return packed

    def signed(self, locator: str, method: str = "GET") -> Signed:
        reader = self.open(locator)
        return Signed(self._sign(locator, method), SIGNED_S, reader.length, BLOCK_BYTES, reader.sums)

    def _sign(self, key: str, method: str) -> str:
        # Any: the type of it is a list of all methods.
        wanted: Any = method
        with translated(f"a URL of {key}"):
            return obstore.sign(self._store, wanted, key, timedelta(seconds=SIGNED_S))

    def open_now(self, locator: str) -> None:
        return None

    def sync(self, locators: Iterable[str]) -> None:
        pass

    def keys(self, locator: str) -> list[str]:
        """The keys of a blob's objects."""
        key = self._key(locator)
        return [key, key + ".sums"] if key.endswith("m") else [key]

    def remove(self, locator: str) -> None:
        keys = self.keys(locator)
        self._kept.forget(locator)
        for name in keys:
            try:
                obstore.delete(self._store, name)
            except FileNotFoundError:
                continue
            except FOREIGN as exc:
                raise failure(exc, f"object {name}") from None

    def locators(self, before_ns: int) -> Iterator[str]:
        last = ""
        with translated(self._url):
            for page in obstore.list(self._store, chunk_size=LIST_PAGE):
                for found in page:
                    # Sums without their blob are what a crash left of one.
                    locator = found["path"].rpartition("/")[2].removesuffix(".sums")
                    old = found["last_modified"].timestamp() * 1e9 < before_ns
                    if old and locator != last and _LOCATOR.fullmatch(locator):
                        last = locator
                        yield locator

    def sweep(self, before_ns: int) -> None:
        self.drop_uploads(before_ns)

    def drop_uploads(self, before_ns: int, locator: str = "") -> None:
        """End multipart uploads that began before a time: all, or those of one blob."""
        if self._uploads is not None and (dropped := self._uploads.drop(before_ns, locator)):
            log.info("%d unfinished uploads dropped", dropped)

    def space(self) -> tuple[int, int]:
        return 0, 0

    def archived(self, days: int) -> ArchivedObjects:
        """The same, when objects may have to be restored, for so many days, before they can be read."""
        if self._uploads is None:
            raise QuietError(f"{self._url}: [storage] restore_days is for s3:// with an access key")
        return ArchivedObjects(self, self._uploads, days)

    def close(self) -> None:
        """Nothing is held."""


# -- configuration ---------------------------------------------------------------------------------------------------

SCHEMES = ("s3", "az", "gs")
_UNSIGNED = ("AWS_UNSIGNED_PAYLOAD", "AWS_SKIP_SIGNATURE")
"""What keeps the library from signing bodies."""


def connect(storage: StorageConfig, base: Path, deadline_s: float = DEADLINE_S) -> ObjectsBackend | ArchivedObjects:
    """The backend of a configuration, with what brings objects back from archive classes if that is wanted."""
    objects = opened(storage, base, deadline_s)
    return objects if not storage.restore_days else objects.archived(storage.restore_days)


def opened(storage: StorageConfig, base: Path, deadline_s: float = DEADLINE_S) -> ObjectsBackend:
    """The backend that a configuration names.  QuietError for what cannot be meant; nothing is asked of the network."""
    url = urlsplit(storage.objects)
    if url.scheme not in SCHEMES or not url.netloc or url.query or "@" in url.netloc:
        raise QuietError(f"[storage] objects: {storage.objects!r} is not like s3://BUCKET/PREFIX (or az://, gs://)")
    settings = credentials(base / storage.credentials_file) if storage.credentials_file else {}
    known = os.environ | {name.upper(): value for name, value in settings.items()}
    endpoint = storage.endpoint or known.get("AWS_ENDPOINT_URL", "") if url.scheme == "s3" else storage.endpoint
    region = storage.region or known.get("AWS_REGION") or known.get("AWS_DEFAULT_REGION") or "us-east-1"
    if endpoint:
        settings.pop("aws_endpoint_url", None)
        settings["endpoint"] = endpoint.rstrip("/")
    if url.scheme == "s3":
        settings["aws_region"] = region
    seconds = timedelta(seconds=deadline_s)
    # Any: each service has a type of its own for the same thing.
    config: Any = settings
    client: Any = {
        "allow_http": endpoint.startswith("http:"), "connect_timeout": min(seconds, timedelta(seconds=5)),
        "read_timeout": seconds / 2, "timeout": 10 * seconds,
    }  # fmt: skip
    retry: Any = {
        "max_retries": ATTEMPTS_MAX - 1, "retry_timeout": seconds,
        "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2},
    }  # fmt: skip
    authority = base / storage.endpoint_ca if storage.endpoint_ca else None
    try:
        if authority is not None:
            client["root_certificate"] = _authority(authority)
        store = from_url(storage.objects, config=config, client_options=client, retry_config=retry)
    except UnknownConfigurationKeyError:
        raise QuietError(f"{storage.credentials_file}: unknown name among {', '.join(sorted(settings))}") from None
    except FOREIGN as exc:
        raise QuietError(f"[storage] objects: {storage.objects}: {str(exc).splitlines()[0][:300]}") from None
    uploads = None
    key = Key(*(known.get(f"AWS_{name}", "") for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN")))
    if url.scheme == "s3" and key.id:
        host = endpoint.rstrip("/") or f"https://s3.{region}.amazonaws.com"
        prefix = url.path.strip("/")
        uploads = Uploads(f"{host}/{url.netloc}", prefix + "/" if prefix else "", region, key, authority, deadline_s)
    signs_bodies = url.scheme == "s3" and not any(known.get(name) for name in _UNSIGNED)
    return ObjectsBackend(storage.objects, store, uploads, deadline_s, storage.direct, storage.redirect, signs_bodies)


def _authority(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as exc:
        raise QuietError(f"[storage] endpoint_ca: {file}: {exc.strerror}") from None
