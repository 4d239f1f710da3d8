"""Bytes of any VOSpace 2 service: negotiated end-points, ranges to read, whole files to write."""

import time
from urllib.parse import urljoin, urlsplit

from vosfs.backends.blobs import blob_of
from vosfs.client import Arrived, HttpClient, Segment
from vosfs.errors import OperationNotSupported, ProtocolError, ProtocolNotSupported, Stale
from vosfs.metadata import xml
from vosfs.metadata.messages import Stored
from vosfs.metadata.node import CORE
from vosfs.metadata.vospace import VOSpaceTree, fault_of
from vosfs.session import Reply

ENDPOINT_S = 300.0
"""How long a negotiated end-point is used again."""
ENDPOINTS_MAX = 1000
REDIRECTS = (301, 302, 303, 307, 308)
REDIRECTS_MAX = 5
PULL, PUSH = "pullFromVoSpace", "pushToVoSpace"


class TransferBlobs:
    """Blobs (see ``blobs.py``): a blob is a version of a node, named ``ID-VERSION``."""

    def __init__(self, tree: VOSpaceTree, deadline_s: float) -> None:
        # Dependencies
        self._tree = tree
        # Constants
        self._deadline_s = deadline_s
        # Mutable state
        self._clients: dict[str, HttpClient] = {}
        self._endpoints: dict[str, tuple[str, float]] = {}
        self._tags: dict[str, bytes] = {}
        """Entity tag of a blob's bytes, of the first answer that had one; INVARIANT: at most ENDPOINTS_MAX, as above."""

    def close(self) -> None:
        """Drop the idle connections."""
        for client in self._clients.values():
            client.close()

    def _client(self, url: str) -> tuple[HttpClient, str]:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        if origin not in self._clients:
            self._clients[origin] = HttpClient(origin, self._deadline_s)
        return self._clients[origin], url.removeprefix(origin) or "/"

    async def _negotiate(self, id: int, direction: str) -> str:
        """An end-point for a node.  ProtocolNotSupported if none is offered."""
        tree = self._tree
        if not tree.sync_url:
            raise OperationNotSupported("the service offers no synchronous transfers")
        kind = "get" if direction == PULL else "put"
        schemes = ["https", "http"] if tree.sync_url.startswith("https:") else ["http", "https"]
        wanted = [f"{CORE}{scheme}{kind}" for scheme in schemes]
        body = xml.push_or_pull(tree.uri(tree.path(id)), direction, wanted)
        reply = await tree.request("POST", tree.sync_url, body)
        if reply.status == 303:
            location = reply.headers.get("location", "")
            details = await tree.request("GET", location)
            root = xml.parse_answer(details.body)
            if root.find(f"{{{xml.NS}}}protocol/{{{xml.NS}}}endpoint") is None:
                job = location.removesuffix("/results/transferDetails")
                error = await tree.request("GET", job + "/error")
                raise fault_of(Reply(400, {}, error.body))
        else:
            root = xml.parse_answer(reply.body)
        for endpoint in root.iterfind(f"{{{xml.NS}}}protocol/{{{xml.NS}}}endpoint"):
            if endpoint.text and endpoint.text.startswith(("http://", "https://")):
                return endpoint.text.strip()
        raise ProtocolNotSupported("the service offered no HTTP end-point")

    async def fetch(self, name: str, start: int, into: memoryview, arrived: Arrived) -> None:
        blob = blob_of(name)
        known = self._endpoints.get(blob)
        if known is None or known[1] < time.monotonic():
            url = await self._negotiate(int(blob.partition("-")[0]), PULL)
            if len(self._endpoints) >= ENDPOINTS_MAX:
                self._endpoints.clear()
            self._endpoints[blob] = (url, time.monotonic() + ENDPOINT_S)
        url, stop, tag = self._endpoints[blob][0], start + len(into), None
        for _ in range(REDIRECTS_MAX + 1):
            client, target = self._client(url)
            head = client.head("GET", target, [("Range", f"bytes={start}-{stop - 1}")])
            answer = await client.request(head, b"", "GET", idempotent=True, into=into)
            # The service's own: a store has others for the same bytes.
            tag = answer.headers.get(b"etag", b"") if tag is None else tag
            if answer.status not in REDIRECTS:
                break
            # To where the bytes are, an object store say: for this once, as such URLs do not live long.
            url = urljoin(url, answer.headers.get(b"location", b"").decode("latin-1"))
        if answer.status in (200, 206):
            self._check_tag(blob, tag or b"")
        if answer.status == 206:
            arrived(len(into))
            return
        if answer.status == 200:
            # No ranges there: the whole file came, if it is short enough to be taken whole.
            if len(answer.body) < stop:
                raise Stale("the file is shorter than it was")
            into[:] = answer.body[start:stop]
            arrived(len(into))
            return
        self._endpoints.pop(blob, None)
        if answer.status == 416:
            raise Stale("the file is shorter than it was")
        raise fault_of(Reply(answer.status, {}, answer.body))

    def _check_tag(self, blob: str, tag: bytes) -> None:
        """Pieces that were fetched at different times are of one version.  Stale."""
        if tag and tag != self._tags.setdefault(blob, tag):
            raise Stale("the file was changed elsewhere while it was read")
        if len(self._tags) > ENDPOINTS_MAX:
            del self._tags[next(iter(self._tags))]

    async def store(self, segments: list[Segment], storage: str = "") -> Stored:
        raise OperationNotSupported("plain VOSpace replaces whole files only")

    async def replace(self, id: int, segments: list[Segment]) -> None:
        """Make local bytes the whole content of a node."""
        client, target = self._client(await self._negotiate(id, PUSH))
        answer = await client.upload(
            client.head("PUT", target, [("Content-Type", "application/octet-stream")]), segments
        )
        if answer.status not in (200, 201, 202, 204):
            raise fault_of(Reply(answer.status, {}, answer.body))
        if answer.status == 202:
            raise ProtocolError("the service answers 202 to an upload: whether it arrived is not known")
