"""What every handler shares: the space's parts, and the way from a request to a caller and a node."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import msgspec
import trio

from server.access import Subject
from server.auth import Authenticator
from server.http import Request, Response
from server.signing import Signer
from vosfs.backends.backend import Backend
from vosfs.errors import (
    ContainerNotFound,
    InvalidArgument,
    InvalidURI,
    LinkFound,
    NodeNotFound,
    NotContainer,
    VOSpaceError,
)
from vosfs.metadata.messages import ORIGIN_HEADER
from vosfs.metadata.node import CONTAINER, LINK, Node
from vosfs.metadata.store import READ, Anyone, Store
from vosfs.uri import Authority, Path

_LEGAL = "-._~:/?#[]@!$&'()*+,;=%"
"""What stands unencoded in a URI."""
ORIGIN_BYTES_MAX = 64
LINKS_MAX = 20
"""Links followed on the way to one node."""
TARGET_BYTES_MAX = 4096


class Service:
    """One space, served."""

    def __init__(
        self, store: Store, backend: Backend, authority: Authority, base_url: str, data_url: str, secret: bytes,
        gateway: bool = True, role: str = "all", private_endpoints: bool = False,
        certificates: bool = False,
    ) -> None:  # fmt: skip
        # Dependencies
        self.store = store
        self.backend = backend
        self.auth = Authenticator(store)
        self.signer = Signer(secret)
        # Constants
        self.authority = authority
        self.base_url = base_url
        """Public URL of the metadata role, without a slash at the end."""
        self.data_url = data_url
        """Public URL of the storage role."""
        self.role = role
        """``'all'``, ``'metadata'`` or ``'storage'``."""
        self.keeps_bytes = role != "metadata"
        """Whether ``backend`` is where the bytes are."""
        self.private_endpoints = private_endpoints
        """Whether third parties may be at addresses that are not public (``remote.py``)."""
        self.certificates = certificates
        """Whether client certificates are accepted."""
        self.gateway = gateway
        """Whether the gateway binding is offered."""
        # Mutable state
        self.busy: Counter[int] = Counter()
        """How many uploads to a node are under way in this process (R97)."""
        self.feed = Feed()
        store.notify = self.feed.wake

    @contextlib.contextmanager
    def uploading(self, node: Node | None) -> Iterator[None]:
        """Count an upload to a node while it lasts."""
        if node is None:
            yield
            return
        self.busy[node.id] += 1
        try:
            yield
        finally:
            self.busy[node.id] -= 1
            if not self.busy[node.id]:
                del self.busy[node.id]

    async def caller(self, request: Request) -> tuple[Subject, Anyone]:
        """Who is asking, and in whose name the store acts."""
        authorization = request.header(b"authorization")
        if authorization or not request.certificate:
            subject = await self.auth.subject(authorization)
        else:
            subject = await self.auth.certified(request.certificate)
        origin = request.header(ORIGIN_HEADER.lower().encode())[:ORIGIN_BYTES_MAX]
        return subject, Anyone(origin, subject.permit)

    async def find(self, path: Path, subject: Subject) -> Node:
        """The node at ``path``; ancestors that are links to containers of this space are followed (A10).

        NodeNotFound (R93), PermissionDenied if an ancestor may not be read, LinkFound, InvalidURI.
        """
        return (await self.locate(path, subject))[1]

    async def locate(self, path: Path, subject: Subject, leaf: bool = False) -> tuple[Path, Node]:
        """The real path of what ``path`` leads to, and the node; with ``leaf``, a link at its end is followed too."""
        real = await self.real_path(path, subject, leaf)
        node, missing = await self._walk(real, subject)
        if missing is not None:
            raise NodeNotFound(self.authority.uri(path))
        return real, node

    async def real_path(self, path: Path, subject: Subject, leaf: bool = False) -> Path:
        """``path`` with the links in it replaced by where they lead, as far as it exists (R332-R335).

        LinkFound after LINKS_MAX of them; InvalidURI for one that leaves the space.
        """
        for _ in range(LINKS_MAX + 1):
            chain = await self.store.resolve(path)
            for depth, node in enumerate(chain):
                if node.kind == LINK and (depth < len(path) or leaf):
                    break
                if node.kind == CONTAINER and depth < len(path) and not subject.may(node, READ):
                    subject.permit(node, READ)
            else:
                return path
            target = self.target_uri(node, path[:depth])
            try:
                path = (*self.authority.path(target), *path[depth:])
            except InvalidURI:
                raise InvalidURI(f"{self.authority.uri(path[:depth])} leads out of this space, to {target}") from None
        raise LinkFound(f"{self.authority.uri(path)} leads through more than {LINKS_MAX} links")

    async def container_of(self, path: Path, subject: Subject) -> Node:
        """The container that holds, or would hold, the last name of ``path``.

        ContainerNotFound (R65); LinkFound if an ancestor is a link, which creation and deletion must not follow (R67).
        """
        node, missing = await self._walk(path[:-1], subject)
        if missing is not None:
            raise ContainerNotFound(self.authority.uri(missing))
        if node.kind == LINK:
            raise self._link_found(node, path[:-1])
        if node.kind != CONTAINER:
            raise NotContainer(self.authority.uri(path[:-1]))
        return node

    async def _walk(self, path: Path, subject: Subject) -> tuple[Node, Path | None]:
        """The deepest node that exists along ``path``, and the path of the first that does not."""
        chain = await self.store.resolve(path)
        for depth, node in enumerate(chain[: len(path)]):
            if node.kind == LINK:
                raise self._link_found(node, path[:depth])
            if node.kind != CONTAINER:
                break
            if not subject.may(node, READ):
                subject.permit(node, READ)
        return chain[-1], None if len(chain) > len(path) else path[: len(chain)]

    def _link_found(self, node: Node, path: Path) -> LinkFound:
        return LinkFound(f"{self.authority.uri(path)} {self.target_uri(node, path)}")

    def target_uri(self, node: Node, path: Path) -> str:
        """A link's target as VOSpace shows it: a URI as it was given, a symbolic link's text resolved to one.

        A relative or absolute text that stays inside the space becomes a ``vos:`` URI, any other a ``file:`` one.
        """
        text = node.target
        scheme, colon, _ = text.partition(b":")
        if colon and scheme.isalpha() and b"/" not in scheme:
            return quote_from_bytes(text, _LEGAL)
        if text.startswith(b"/"):
            return "file://" + quote_from_bytes(text)
        parts = list(path[:-1])
        for part in text.split(b"/"):
            if part == b"..":
                if not parts:
                    return "file:" + quote_from_bytes(text)
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        return self.authority.uri(tuple(parts))


class Feed:
    """Wakes those who wait for a change."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def wake(self) -> None:
        """Something changed."""
        if self._event.statistics().tasks_waiting:
            self._event.set()
            self._event = trio.Event()

    async def wait(self, seconds: float) -> None:
        """Until something changes, or ``seconds`` passed (a change by another process is noticed only then)."""
        with trio.move_on_after(seconds):
            await self._event.wait()


def check_texts(target: bytes, *texts: str | None) -> None:
    """InvalidArgument for what a header or an XML document could not carry."""
    if len(target) > TARGET_BYTES_MAX or b"\0" in target:
        raise InvalidArgument(f"a link's target has up to {TARGET_BYTES_MAX} bytes and no NUL")
    for text in texts:
        if text and not text.isprintable():
            raise InvalidArgument("a content type or a list of groups holds control characters")


def text(status: int, body: str, headers: list[tuple[str, str]] | None = None) -> Response:
    """A plain-text answer."""
    return Response(status, [("Content-Type", "text/plain; charset=utf-8"), *(headers or [])], body.encode())


def xml(body: bytes, status: int = 200, headers: list[tuple[str, str]] | None = None) -> Response:
    """An XML answer."""
    return Response(status, [("Content-Type", "text/xml"), *(headers or [])], body)


CHALLENGES = [
    ("WWW-Authenticate", 'Bearer realm="vosfs"'),
    ("WWW-Authenticate", 'Basic realm="vosfs"'),
    ("WWW-Authenticate", 'ivoa_bearer standard_id="ivo://ivoa.net/sso#OAuth"'),
]
"""SSO 2.1 section 2; ``X509_CHALLENGE`` with them where client certificates are accepted."""
X509_CHALLENGE = ("WWW-Authenticate", 'ivoa_x509 standard_id="ivo://ivoa.net/sso#tls-with-certificate"')


def fault(exc: VOSpaceError, certificates: bool = False) -> Response:
    """The HTTP form of a fault: its exact name first, then what and why (VOSpace 2.1 section 6; R19-R36)."""
    message = str(exc)
    headers = [*CHALLENGES, *[X509_CHALLENGE] * certificates] if exc.status in (401, 403) else []
    if exc.status == 503:
        headers = [("Retry-After", "5")]
    return text(exc.status, f"{exc.fault} {message}".rstrip() + "\n", list(headers))


def packed(value: object, status: int = 200) -> Response:
    """A MessagePack answer."""
    return Response(status, [("Content-Type", "application/msgpack")], _encode(value))


_encode = msgspec.msgpack.Encoder().encode
