"""Signed text: end-point URLs, blob names and upload receipts that prove themselves.

A metadata and a storage process share only the database, which keeps the key; whatever one of them signs the other
can check without asking.  HMAC-SHA256 cut to 128 bits, compared in constant time; 2 µs each way.
"""

import base64
import hmac
import time

import msgspec

from vosfs.errors import PermissionDenied
from vosfs.metadata.node import Blob

ENDPOINT_S = 3600
"""Life of a transfer's end-point."""
LEASE_S = 2 * 3600
"""Life of a signed blob name; a mount renews what it holds open every 20 minutes."""
RECEIPT_S = 7 * 86_400
"""From a blob's upload to the commit that uses it: how long a file may be written before it is closed, and how long what a
mount acknowledged may wait for a daemon that is away.  A blob that was committed and replaced since is collected sooner, but
then nobody can commit it again: the version it was to follow is no longer the last.  Into another node (Share) it can, so
those receipts end with the lease."""


class Endpoint(msgspec.Struct, array_like=True):
    """What a transfer's end-point URL allows: one direction, one node, one user, for a while."""

    direction: str
    path: tuple[bytes, ...]
    user: str
    job: str
    expires: int
    view: str = ""
    """Format of the archive that a container is sent or received as."""


def _now() -> int:
    return int(time.time())


class Signer:
    """Signs and checks with one space's key."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def _seal(self, purpose: str, text: str) -> str:
        digest = hmac.digest(self._secret, f"{purpose}:{text}".encode("utf-8", "replace"), "sha256")
        return base64.urlsafe_b64encode(digest[:16]).rstrip(b"=").decode()

    def _open(self, purpose: str, sealed: str) -> str:
        text, _, seal = sealed.rpartition(".")
        if not text or not hmac.compare_digest(self._seal(purpose, text).encode(), seal.encode("utf-8", "replace")):
            raise PermissionDenied("the URL was not issued by this service")
        return text

    @staticmethod
    def _fresh(expires: str) -> None:
        if int(expires, 16) < _now():
            raise PermissionDenied("the URL has expired: negotiate again")

    def lease(self, locator: str) -> str:
        """A blob's name that may be read by whoever holds it, for LEASE_S."""
        text = f"{locator}.{_now() + LEASE_S:x}"
        return f"{text}.{self._seal('read', text)}"

    def leased(self, name: str) -> str:
        """The locator in a leased name.  PermissionDenied."""
        locator, _, expires = self._open("read", name).partition(".")
        self._fresh(expires)
        return locator

    def receipt(self, blob: Blob, user: str, life_s: int = RECEIPT_S) -> str:
        """Proof that this user uploaded a blob, or may commit one that nodes stand on: that for LEASE_S, see RECEIPT_S."""
        text = f"{blob.locator}.{blob.length:x}.{blob.crc32:x}.{_now() + life_s:x}"
        return f"{text}.{self._seal('receipt:' + user, text)}"

    def received(self, receipt: str, user: str) -> Blob:
        """The blob a receipt is for.  PermissionDenied."""
        locator, length, crc32, expires = self._open("receipt:" + user, receipt).split(".")
        self._fresh(expires)
        return Blob(locator, int(length, 16), int(crc32, 16))

    def endpoint(self, endpoint: Endpoint) -> str:
        """The secret part of an end-point URL."""
        text = base64.urlsafe_b64encode(msgspec.msgpack.encode(endpoint)).rstrip(b"=").decode()
        return f"{text}.{self._seal('endpoint', text)}"

    def endpoint_of(self, token: str) -> Endpoint:
        """What an end-point URL allows.  PermissionDenied."""
        text = self._open("endpoint", token)
        endpoint = msgspec.msgpack.decode(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), type=Endpoint)
        if endpoint.expires < _now():
            raise PermissionDenied("the URL has expired: negotiate again")
        return endpoint
