"""What every handler shares: the space's parts, and the way from a request to a caller and a node."""

import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote_from_bytes

import msgspec
import trio

from server.access import Subject
from server.auth import Authenticator
from server.delegation import Delegation
from server.http import Request, Response
from server.listings import Listings
from server.signing import Signer
from vosfs.backends.backend import UNAVAILABLE
from vosfs.backends.storages import Storages
from vosfs.errors import (
    ContainerNotFound,
    InvalidArgument,
    InvalidURI,
    LinkFound,
    NodeNotFound,
    NotContainer,
    NotOnline,
    OperationNotSupported,
    PermissionDenied,
    VOSpaceError,
)
from vosfs.metadata import content
from vosfs.metadata import xml as documents
from vosfs.metadata.messages import ORIGIN_HEADER
from vosfs.metadata.messages import PROTOCOL as GATEWAY
from vosfs.metadata.node import CONTAINER, DATA, LINK, LOCALITY, Extent, Node
from vosfs.metadata.store import READ, Anyone, Store
from vosfs.uri import Authority, Path

log = logging.getLogger(__name__)

_LEGAL = "-._~:/?#[]@!$&'()*+,;=%"
"""What stands unencoded in a URI."""
ORIGIN_BYTES_MAX = 64
_ORIGIN = ORIGIN_HEADER.lower().encode()
LINKS_MAX = 20
"""Links followed on the way to one node."""
TARGET_BYTES_MAX = 4096
RETRY_AFTER_S, STAGED_AFTER_S = "5", "30"
"""When a client is told to come again: to a service that was busy, and for bytes that a robot fetches."""


class Service:
    """One space, served."""

    def __init__(
        self, store: Store, backend: Storages, authority: Authority, base_url: str, data_url: str, secret: bytes,
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
        self.container_capabilities = (
            f'<vos:capability uri="{GATEWAY}"><vos:endpoint>{documents.escape(base_url)}/gateway</vos:endpoint>'
            "</vos:capability>"
        ) * gateway
        """What else can be done with a container (R360)."""
        # Mutable state
        self.busy: Counter[int] = Counter()
        """How many uploads to a node are under way in this process (R97)."""
        self.listings = Listings(store)
        self.feed = Feed()
        store.notify = self.feed.wake
        self.delegation = Delegation(role == "all" and not store.shared)
        self.delegation.on_recall = self.feed.wake

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

    # -- bytes in slow storages --------------------------------------------------------------------------------------

    async def readable(self, extents: list[Extent]) -> None:
        """NotOnline, when they have been asked for, unless all bytes of these extents can be read at once."""
        away = [locator for locator in content.locators(extents) if self.backend.may_be_away(locator)]
        if away:
            await trio.to_thread.run_sync(self.backend.recall, away)

    async def locality(self, node: Node) -> dict[str, str]:
        """The property that says whether a data node's bytes can be read at once, where that is not always so."""
        if node.kind != DATA or not self.keeps_bytes or not self.backend.slow:
            return {}
        try:
            locators = content.locators((await self.store.open(node.id)).extents)
            return {LOCALITY: await trio.to_thread.run_sync(self.backend.locality, locators)}
        except VOSpaceError as exc:
            # Whoever reads the bytes will be told why.
            log.debug("locality of node %d: %s", node.id, exc)
            return {LOCALITY: UNAVAILABLE}

    async def stage(self, node: Node) -> None:
        """Ask for a data node's bytes, if they cannot be read at once.  ServiceUnavailable if that cannot be done now."""
        if not self.keeps_bytes:
            raise OperationNotSupported("the bytes are kept elsewhere: reading them asks for them")
        if node.kind == DATA:
            locators = content.locators((await self.store.open(node.id)).extents)
            await trio.to_thread.run_sync(self.backend.stage, locators)

    # -- callers and nodes -------------------------------------------------------------------------------------------

    async def caller(self, request: Request) -> tuple[Subject, Anyone]:
        """Who is asking, and in whose name the store acts."""
        authorization = request.headers.get(b"authorization", b"")
        if authorization or not request.certificate:
            subject = await self.auth.subject(authorization)
        else:
            subject = await self.auth.certified(request.certificate)
        request.user = subject.user
        origin = request.header(_ORIGIN)[:ORIGIN_BYTES_MAX]
        return subject, Anyone(origin, subject.permit)

    async def trace(self, path: Path, subject: Subject, leaf: bool = False, follow: bool = True) -> "Trace":
        """Go along ``path``, in one look at the store unless links must be followed (A10, R332-R335).

        Ancestors that are links to containers of this space are followed, and with ``leaf`` a link at the end too;
        without ``follow`` an ancestor link is LinkFound, as creation and deletion want it (R67).  PermissionDenied if
        an ancestor may not be read, LinkFound after LINKS_MAX links, InvalidURI for one that leaves the space.
        """
        for _ in range(LINKS_MAX + 1):
            chain, properties = await self.store.trace(path)
            for depth, node in enumerate(chain):
                if node.kind == LINK and (depth < len(path) or leaf):
                    break
                if node.kind == CONTAINER and depth < len(path):
                    subject.permit(node, READ)
            else:
                return Trace(self, path, chain, properties)
            target = self.target_uri(node, path[:depth])
            if not follow:
                raise LinkFound(await self._link_details(node, path[:depth], target, subject))
            try:
                path = (*self.authority.path(target), *path[depth:])
            except InvalidURI:
                raise InvalidURI(f"{self.authority.uri(path[:depth])} leads out of this space, to {target}") from None
        raise LinkFound(f"{self.authority.uri(path)} leads through more than {LINKS_MAX} links")

    async def _link_details(self, node: Node, path: Path, target: str, subject: Subject) -> str:
        """What LinkFound says: both URIs, and the whole node for who may read it (A7)."""
        text = f"{self.authority.uri(path)} {target}"
        if not subject.may(node, READ):
            return text
        document = documents.node_open(node, self.authority.uri(path), "max", True)
        document += documents.node_inner(node, await self.store.properties(node.id), "max")
        return f"{text}\n{document}<vos:target>{documents.escape(target)}</vos:target></vos:node>"

    async def find(self, path: Path, subject: Subject) -> Node:
        """The node at ``path``, ancestor links followed.  NodeNotFound (R93) and what ``trace`` raises."""
        return (await self.trace(path, subject)).node()

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


class Trace:
    """What lies along a path."""

    __slots__ = ("path", "chain", "properties", "_service")

    def __init__(self, service: Service, path: Path, chain: list[Node], properties: dict[str, str]) -> None:
        self._service = service
        self.path = path
        """The real one: links are replaced by where they lead."""
        self.chain = chain
        """The nodes from the root down, as far as there are any."""
        self.properties = properties
        """Of the node at the end, if it is there."""

    @property
    def found(self) -> Node | None:
        """The node at the end of the path, if it is there."""
        return self.chain[-1] if len(self.chain) > len(self.path) else None

    def node(self) -> Node:
        """The node at the end of the path.  NodeNotFound."""
        if self.found is None:
            raise NodeNotFound(self._service.authority.uri(self.path))
        return self.chain[-1]

    def parent(self) -> Node:
        """The container that holds, or would hold, the last name.  ContainerNotFound (R65), NotContainer."""
        uri = self._service.authority.uri
        if len(self.chain) < len(self.path):
            at = self.chain[-1]
            raise (ContainerNotFound if at.kind == CONTAINER else NotContainer)(uri(self.path[: len(self.chain)]))
        parent = self.chain[len(self.path) - 1]
        if parent.kind != CONTAINER:
            raise NotContainer(uri(self.path[:-1]))
        return parent


class Feed:
    """Wakes those who wait for a change."""

    def __init__(self) -> None:
        self._waiting: dict[trio.Event, str] = {}

    def wake(self, origin: str = "") -> None:
        """Something changed; ``origin`` did it, and knows.

        A mount that makes 500 changes a second would be told nothing fifty times a second.
        """
        for event, theirs in self._waiting.items():
            if not origin or theirs != origin:
                event.set()

    async def wait(self, seconds: float, origin: str = "") -> None:
        """Until somebody else changes something, or ``seconds`` passed (another process' change is noticed only then)."""
        event = trio.Event()
        self._waiting[event] = origin
        try:
            with trio.move_on_after(seconds):
                await event.wait()
        finally:
            del self._waiting[event]


def policy_of(service: Service, subject: Subject, text: str) -> str:
    """A storage policy as it is kept, from what a user wrote.  InvalidArgument, PermissionDenied."""
    names = service.backend.names(text) if text.strip() else ()
    for name in names:
        if name not in service.backend.offered and not subject.admin:
            raise PermissionDenied(f"the storage {name!r} is not offered to everybody")
    return " ".join(names)


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


XML = [("Content-Type", "text/xml")]


def xml(body: bytes, status: int = 200, headers: list[tuple[str, str]] | None = None) -> Response:
    """An XML answer."""
    return Response(status, [*XML, *(headers or [])], body)


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
        headers = [("Retry-After", STAGED_AFTER_S if isinstance(exc, NotOnline) else RETRY_AFTER_S)]
    return text(exc.status, f"{exc.fault} {message}".rstrip() + "\n", list(headers))


def packed(value: object, status: int = 200) -> Response:
    """A MessagePack answer."""
    return Response(status, [("Content-Type", "application/msgpack")], _encode(value))


_encode = msgspec.msgpack.Encoder().encode
