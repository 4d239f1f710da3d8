"""The requests to S3 that obstore has no call for: multipart uploads that nobody finished are listed and dropped.

The parts of an upload whose writer died show in no listing of objects and are paid for until somebody ends it.  On
Azure and GCS the service itself drops them after a week.
"""

import hashlib
import hmac
import http.client
import re
import ssl
import time
from collections.abc import Iterator
from datetime import datetime
from html import unescape
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlencode, urlsplit

from vosfs.errors import ProtocolError, ServiceUnavailable, TimedOut, VOSpaceError, mapped

PAGE = 1000
PAGE_BYTES_MAX = 4 << 20
"""An upload takes some 500."""
OURS = re.compile(r"[0-9a-f]{32}m")
"""Keys, below the prefix, of uploads that may be dropped: a bucket may hold other things."""


class Key(NamedTuple):
    """An access key of S3.  Its text is what may be shown."""

    id: str
    secret: str
    token: str = ""

    def __repr__(self) -> str:
        return f"Key({self.id[:4]}...)"


def signed(
    method: str, url: str, query: dict[str, str], key: Key, region: str, now: float, body: bytes = b""
) -> tuple[str, dict[str, str]]:
    """Target and headers of a request, signed as AWS has it (Signature Version 4)."""
    parts = urlsplit(url)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    path, text = quote(parts.path or "/", safe="/~"), urlencode(sorted(query.items()), quote_via=quote, safe="~")
    digest = hashlib.sha256(body).hexdigest()
    headers = {"host": parts.netloc, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    if key.token:
        headers["x-amz-security-token"] = key.token
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = "\n".join((method, path, text, lines, names, digest))
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    to_sign = "\n".join(("AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()))
    secret = b"AWS4" + key.secret.encode()
    for part in (*scope.split("/"), to_sign):
        secret = hmac.digest(secret, part.encode(), "sha256")
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key.id}/{scope},SignedHeaders={names},Signature={secret.hex()}"
    )
    return path + ("?" + text if text else ""), headers


class Uploads:
    """The unfinished uploads of a bucket, below a prefix."""

    def __init__(
        self, bucket_url: str, prefix: str, region: str, key: Key, authority: Path | None, deadline_s: float
    ) -> None:
        self._url = bucket_url
        self._prefix = prefix
        self._region = region
        self._key = key
        self._deadline_s = deadline_s
        self._context: ssl.SSLContext | None = None
        if bucket_url.startswith("https:"):
            # 20 ms, for the public authorities.
            self._context = ssl.create_default_context()
            if authority is not None:
                self._context.load_verify_locations(authority)

    def request(self, method: str, key: str = "", query: dict[str, str] | None = None) -> bytes:
        """One request about uploads.  ServiceUnavailable, TimedOut, ProtocolError."""
        status, _, body = self._exchange(method, key, query or {}, b"")
        if status not in (200, 204, 404):
            raise ServiceUnavailable(f"unfinished uploads: the service answers {status}")
        return body

    def exchange(
        self, method: str, key: str, query: dict[str, str] | None = None, body: bytes = b""
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request about an object below the prefix: status, headers and body of the answer.

        ServiceUnavailable, TimedOut, ProtocolError.
        """
        return self._exchange(method, self._prefix + key, query or {}, body)

    def _exchange(
        self, method: str, key: str, query: dict[str, str], sent: bytes
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        url = urlsplit(self._url)
        target, headers = signed(
            method, self._url + ("/" + key if key else ""), query, self._key, self._region, time.time(), sent
        )
        connection: http.client.HTTPConnection
        if url.scheme == "https":
            connection = http.client.HTTPSConnection(url.netloc, timeout=self._deadline_s, context=self._context)
        else:
            connection = http.client.HTTPConnection(url.netloc, timeout=self._deadline_s)
        errors: dict[type[Exception], type[VOSpaceError]] = {
            TimeoutError: TimedOut, OSError: ServiceUnavailable, http.client.HTTPException: ProtocolError,
        }  # fmt: skip
        try:
            with mapped(errors, "the object store"):
                connection.request(method, target, sent or None, headers)
                answer = connection.getresponse()
                return answer.status, answer.headers, answer.read(PAGE_BYTES_MAX)
        finally:
            connection.close()

    def unfinished(self, name: str = "") -> Iterator[tuple[str, str, int]]:
        """(key, upload, when it began) of each whose key begins with ``name``, below the prefix."""
        query = {"uploads": "", "prefix": self._prefix + name, "max-uploads": str(PAGE)}
        while True:
            page = self.request("GET", query=query).decode("utf-8", "replace")
            for upload in re.findall(r"<Upload>(.*?)</Upload>", page, re.DOTALL):
                key = _field(upload, "Key")
                if OURS.fullmatch(key.removeprefix(self._prefix)):
                    begun = datetime.fromisoformat(_field(upload, "Initiated"))
                    yield key, _field(upload, "UploadId"), int(begun.timestamp() * 1e9)
            if _field(page, "IsTruncated") != "true":
                return
            query["key-marker"] = _field(page, "NextKeyMarker")
            query["upload-id-marker"] = _field(page, "NextUploadIdMarker")

    def drop(self, before_ns: int, name: str = "") -> int:
        """End what began before a time; returns how many."""
        stale = [(key, upload) for key, upload, begun_ns in self.unfinished(name) if begun_ns < before_ns]
        for key, upload in stale:
            self.request("DELETE", key, {"uploadId": upload})
        return len(stale)


def _field(text: str, name: str) -> str:
    found = re.search(f"<{name}>([^<]*)</{name}>", text)
    return unescape(found.group(1)) if found else ""
