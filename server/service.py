"""What every handler shares: the space's parts, and the way from a request to a caller and a node."""

from urllib.parse import quote_from_bytes

import msgspec
import trio

from server.access import Subject
from server.auth import Authenticator
from server.http import Request, Response
from server.signing import Signer
from vosfs.backends.backend import Backend
from vosfs.errors import ContainerNotFound, InvalidArgument, LinkFound, NodeNotFound, NotContainer, VOSpaceError
from vosfs.metadata.messages import ORIGIN_HEADER
from vosfs.metadata.node import CONTAINER, LINK, Node
from vosfs.metadata.store import READ, Anyone, Store
from vosfs.uri import Authority, Path

_LEGAL = "-._~:/?#[]@!$&'()*+,;=%"
"""What stands unencoded in a URI."""
ORIGIN_BYTES_MAX = 64
TARGET_BYTES_MAX = 4096


class Service:
    """One space, served."""

    def __init__(
        self, store: Store, backend: Backend, authority: Authority, base_url: str, data_url: str, secret: bytes,
        gateway: bool = True, keeps_bytes: bool = True,
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
        self.keeps_bytes = keeps_bytes
        """Whether ``backend`` is where the bytes are; not so in the metadata role."""
        self.gateway = gateway
        """Whether the gateway binding is offered."""
        # Mutable state
        self.feed = Feed()
        store.notify = self.feed.wake

    async def caller(self, request: Request) -> tuple[Subject, Anyone]:
        """Who is asking, and in whose name the store acts."""
        subject = await self.auth.subject(request.header(b"authorization"))
        origin = request.header(ORIGIN_HEADER.lower().encode())[:ORIGIN_BYTES_MAX]
        return subject, Anyone(origin, subject.permit)

    async def find(self, path: Path, subject: Subject) -> Node:
        """The node at ``path``.

        NodeNotFound (R93), PermissionDenied if an ancestor may not be read, LinkFound if one is a link.
        """
        node, missing = await self._walk(path, subject)
        if missing is not None:
            raise NodeNotFound(self.authority.uri(path))
        return node

    async def container_of(self, path: Path, subject: Subject) -> Node:
        """The container that holds, or would hold, the last name of ``path``.  ContainerNotFound (R65), LinkFound."""
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


CHALLENGES = [("WWW-Authenticate", 'Bearer realm="vosfs"'), ("WWW-Authenticate", 'Basic realm="vosfs"')]


def fault(exc: VOSpaceError) -> Response:
    """The HTTP form of a fault: its exact name first, then what and why (VOSpace 2.1 section 6; R19-R36)."""
    message = str(exc)
    headers = CHALLENGES if exc.status in (401, 403) else []
    if exc.status == 503:
        headers = [("Retry-After", "5")]
    return text(exc.status, f"{exc.fault} {message}".rstrip() + "\n", list(headers))


def packed(value: object, status: int = 200) -> Response:
    """A MessagePack answer."""
    return Response(status, [("Content-Type", "application/msgpack")], _encode(value))


_encode = msgspec.msgpack.Encoder().encode
