"""``/nodes``: createNode, getNode, setNode, deleteNode (VOSpace 2.1 sections 6.2 and 6.3)."""

import secrets
from collections.abc import AsyncGenerator, Callable

import trio

from server import quotas, vosi
from server.access import ADMIN, Subject
from server.http import Request, Response
from server.listings import Asked, Document
from server.parameters import parameters
from server.service import XML, Service, Trace, check_texts, policy_of, xml
from server.walk import below
from vosfs.backends.backend import LOCALITIES
from vosfs.errors import (
    DuplicateNode,
    InvalidArgument,
    InvalidURI,
    NodeNotFound,
    PermissionDenied,
)
from vosfs.metadata import xml as documents
from vosfs.metadata.node import (
    CONTAINER,
    CORE,
    DATA,
    LINK,
    LOCALITY,
    LOCKED,
    SPECIAL,
    STAGE,
    STORAGE,
    Attributes,
    NewNode,
    Node,
)
from vosfs.metadata.store import PAGE_NODES_MAX, READ, WRITE, Anyone, check_guard
from vosfs.uri import RESERVED_NAMES, Path, check_name, encode

DETAILS = ("min", "max", "properties")


async def handle(service: Service, request: Request, path: Path) -> Response:
    """Answer one request for a node."""
    subject, caller = await service.caller(request)
    if request.method in ("GET", "HEAD"):
        return await get_node(service, request, path, subject)
    if request.method == "PUT":
        return await create_node(service, request, path, subject, caller)
    if request.method == "POST":
        return await set_node(service, request, path, subject, caller)
    return await delete_node(service, path, subject, caller)


def _document_path(service: Service, document: documents.NodeDocument, path: Path) -> None:
    if service.authority.path(document.uri) != path:
        raise InvalidURI(f"{document.uri[:200]} is not the node of this URL")


# -- createNode ------------------------------------------------------------------------------------------------


async def create_node(service: Service, request: Request, path: Path, subject: Subject, caller: Anyone) -> Response:
    """PUT: 201 and the node (R46-R73)."""
    document = documents.parse_node(await request.read(documents.DOCUMENT_BYTES_MAX))
    _document_path(service, document, path)
    if not path:
        raise DuplicateNode(service.authority.uri(path))
    if path[-1] == b".auto":
        path = (*path[:-1], secrets.token_hex(10).encode())
    kind = documents.TYPES[document.type]
    if kind == LINK and not document.target:
        raise InvalidArgument("a LinkNode needs a target")
    if path[-1] in RESERVED_NAMES:
        raise InvalidURI(f"{service.authority.uri(path)} is reserved")
    trace = await service.trace(path, subject, follow=False)
    parent = trace.parent()
    subject.permit(parent, WRITE)
    if trace.found is not None:
        raise DuplicateNode(service.authority.uri(path))
    quota = quotas.asked(subject, document.properties, kind, {})
    attributes, properties = _split(document.properties, None, {})
    _check_policy(service, subject, attributes)
    check_texts(
        (document.target or "").encode(), attributes.content_type, attributes.group_read, attributes.group_write
    )
    new = NewNode(
        kind, 0o755 if kind == CONTAINER else 0o777 if kind == LINK else 0o644, owner=subject.user,
        target=(document.target or "").encode() if kind == LINK else b"",
        properties={uri: value for uri, value in properties.items() if value is not None},
        content_type=attributes.content_type or "",
        public=parent.public if attributes.public is None else attributes.public,
        group_read=parent.group_read if attributes.group_read is None else attributes.group_read,
        group_write=parent.group_write if attributes.group_write is None else attributes.group_write,
        immutable=attributes.immutable or 0, storage=attributes.storage or "",
    )  # fmt: skip
    try:
        node = await service.store.create(parent.id, check_name(path[-1]), new, caller, durable=True)
    except DuplicateNode:
        raise DuplicateNode(service.authority.uri(path)) from None
    if quota is not None:
        await service.store.set_quota(node.id, quota, caller)
        node = await service.store.get(node.id)
    body = await _document(service, node, dict(sorted(new.properties.items())), path, "max")
    location = f"{service.base_url}/nodes{_encoded(service, path)}"
    return xml(body, 201, [("Location", location)])


def _encoded(service: Service, path: Path) -> str:
    return service.authority.uri(path).partition(service.authority.text)[2]


def _boolean(uri: str, text: str) -> int:
    if text.strip().lower() not in ("true", "false", "1", "0"):
        raise InvalidArgument(f"{uri}: {text[:50]!r} is not a boolean")
    return int(text.strip().lower() in ("true", "1"))


def _split(
    given: dict[str, str | None], node: Node | None, stored: dict[str, str]
) -> tuple[Attributes, dict[str, str | None]]:
    """What a document changes: attributes, and properties to keep.

    A read-only property echoed with its present value changes nothing (R105); any other value is PermissionDenied.
    """
    attributes = Attributes()
    properties: dict[str, str | None] = {}
    present = {uri: value for uri, value, _ in documents.core_properties(node)} if node else {}
    for uri, value in given.items():
        if uri == LOCALITY and node is not None and value in LOCALITIES:
            # What it was when the client looked: robots do not wait for it to answer.
            continue
        if uri in documents.READ_ONLY:
            if node is None or uri not in present or present[uri] != value:
                raise PermissionDenied(f"{uri} is kept by the service")
        elif uri == STAGE:
            # Nothing is kept of it (``_stage``).
            _boolean(uri, value or "false")
        elif uri in documents.LOCKS:
            # Shown under one name, understood under both.
            lock = _boolean(uri, value or "false")
            if lock != (node is not None and node.immutable == LOCKED):
                attributes.immutable = LOCKED if lock else 0
        elif uri in documents.AS_ATTRIBUTES:
            if present.get(uri) == value:
                continue
            name = uri.removeprefix(CORE)
            if name in ("publicread", "ispublic"):
                attributes.public = _boolean(uri, value or "false")
            elif name == "immutable":
                attributes.immutable = _boolean(uri, value or "false")
            elif name == "type":
                attributes.content_type = (value or "").strip()[:200]
            elif uri == STORAGE:
                attributes.storage = value or ""
            elif name == "groupread":
                attributes.group_read = (value or "").strip()
            else:
                attributes.group_write = (value or "").strip()
        elif stored.get(uri) != value:
            properties[uri] = value
    return attributes, properties


async def _stage(service: Service, node: Node, given: dict[str, str | None]) -> None:
    """Ask for a node's bytes, if a document does."""
    if _boolean(STAGE, given.get(STAGE) or "false"):
        await service.stage(node)


def _check_policy(service: Service, subject: Subject, attributes: Attributes) -> None:
    if attributes.storage is not None:
        attributes.storage = policy_of(service, subject, attributes.storage)


# -- getNode ---------------------------------------------------------------------------------------------------


async def get_node(service: Service, request: Request, path: Path, subject: Subject) -> Response:
    """GET: the node; a container with its children, by page or all, streamed (R74-R99)."""
    given = parameters(request.query)
    detail = given.get("detail", "max").lower()
    if detail not in DETAILS:
        raise InvalidArgument(f"detail is one of {', '.join(DETAILS)}, not {detail[:50]!r}")
    limit: int | None = None
    if "limit" in given:
        if not (given["limit"].isascii() and given["limit"].isdigit()) or len(given["limit"]) > 9:
            raise InvalidArgument(f"limit: {given['limit'][:50]!r} is not a count")
        limit = int(given["limit"])
    if path and path[-1] in RESERVED_NAMES:
        raise NodeNotFound(service.authority.uri(path))
    document = await service.listings.find(Asked(path, request.query, subject))
    if document.kept:
        return Response(200, XML, service.listings.send(document))
    trace = await service.trace(path, subject)
    path, node = trace.path, trace.node()
    subject.permit(node, READ)
    if given.get("view") == "data":
        # Of VOSpace 2.0: the bytes (R99).
        return Response(303, [("Location", f"{service.base_url}/files{_encoded(service, path)}")])
    if node.kind != CONTAINER:
        # Of one node only: in a listing it would be a look at each file's disk.
        where = await service.locality(node) if detail != "min" else {}
        return xml(await _document(service, node, {**trace.properties, **where}, path, detail))
    start = b""
    if given.get("uri"):
        child = service.authority.path(given["uri"])
        if not child or child[:-1] != path:
            raise InvalidURI(f"{given['uri'][:200]} is not a child of {service.authority.uri(path)}")
        start = child[-1]
    # A key that means nothing here leaves the order as it is: a client would not survive a refusal.
    if given.get("sort", "") in ("", *SORT_KEYS) and (given.get("sort") or given.get("order", "").lower() == "desc"):
        descending = given.get("order", "asc").lower() == "desc"
        return await _sorted(service, subject, trace, detail, start, limit, given.get("sort", ""), descending)
    return await _listing(service, subject, trace, detail, start, limit, document)


SORT_KEYS: dict[str, Callable[[tuple[bytes, Node, dict[str, str]]], object]] = {
    CORE + "date": lambda child: child[1].mtime_ns,
    CORE + "length": lambda child: child[1].length,
}
SORT_MAX = 50_000
"""Children that are sorted by anything but their names: 50 MB of memory."""


async def _sorted(
    service: Service, subject: Subject, trace: Trace, detail: str, start: bytes, limit: int | None, by: str,
    descending: bool,
) -> Response:  # fmt: skip
    """A listing in another order than by name, as the vos client asks for it."""
    path, node = trace.path, trace.chain[-1]
    found: list[tuple[bytes, Node, dict[str, str]]] = []
    after = b""
    while len(found) < SORT_MAX:
        page = await service.store.children_with_properties(node.id, after, PAGE_NODES_MAX)
        found += page
        if len(page) < PAGE_NODES_MAX:
            break
        after = page[-1][0] + b"\0"
        await trio.lowlevel.checkpoint()
    found.sort(key=SORT_KEYS.get(by, lambda child: child[0]), reverse=descending)  # type: ignore[arg-type]
    first = next((i for i, child in enumerate(found) if child[0] == start), 0) if start else 0
    page = found[first : None if limit is None else first + limit]
    head = await _open(service, trace, detail)
    return xml((head + _children(service, subject, path, page, detail) + _CLOSE).encode())


_CLOSE = "</vos:nodes></vos:node>"


async def _open(service: Service, trace: Trace, detail: str) -> str:
    """A container's document, up to its children."""
    node = trace.chain[-1]
    text = documents.node_open(node, service.authority.uri(trace.path), detail, True)
    kept = await quotas.shown(service.store, node)
    inner = documents.node_inner(node, trace.properties, detail, service.container_capabilities, kept)
    return f"{text}{inner}<vos:nodes>"


async def _listing(
    service: Service, subject: Subject, trace: Trace, detail: str, start: bytes, limit: int | None, document: Document
) -> Response:
    path, node = trace.path, trace.chain[-1]
    head = await _open(service, trace, detail)
    left = limit if limit is not None else 1 << 60
    want = min(left, PAGE_NODES_MAX)
    page = await service.store.children_with_properties(node.id, start, want) if want else []
    first = head + _children(service, subject, path, page, detail)
    if len(page) < PAGE_NODES_MAX or left <= PAGE_NODES_MAX:
        return xml((first + _CLOSE).encode())

    async def pieces() -> AsyncGenerator[str]:
        nonlocal page, left
        yield first
        while len(page) == PAGE_NODES_MAX and left > len(page):
            left -= len(page)
            # Names are never empty: the next page starts at the smallest name after the last one seen.
            after = page[-1][0] + b"\0"
            page = await service.store.children_with_properties(node.id, after, min(left, PAGE_NODES_MAX))
            yield _children(service, subject, path, page, detail)
        yield _CLOSE

    return Response(200, XML, service.listings.gather(document, pieces()))


def _children(
    service: Service, subject: Subject, path: Path, page: list[tuple[bytes, Node, dict[str, str]]], detail: str
) -> str:
    above, target = service.authority.uri(path), service.target_uri
    return "".join(
        documents.child(
            node,
            above + encode((name,)),
            target(node, (*path, name)) if node.kind == LINK else "",
            properties if subject.may(node, READ) else {},
            detail,
        )
        for name, node, properties in page
    )


async def _document(service: Service, node: Node, properties: dict[str, str], path: Path, detail: str) -> bytes:
    tail = "<vos:nodes/>" if node.kind == CONTAINER else ""
    if node.kind == LINK:
        tail = f"<vos:target>{documents.escape(service.target_uri(node, path))}</vos:target>"
    start = documents.node_open(node, service.authority.uri(path), detail, True, service.busy[node.id] > 0)
    capabilities = service.container_capabilities if node.kind == CONTAINER else ""
    kept = await quotas.shown(service.store, node)
    return f"{start}{documents.node_inner(node, properties, detail, capabilities, kept)}{tail}</vos:node>".encode()


# -- setNode, deleteNode -----------------------------------------------------------------------------------------


async def set_node(service: Service, request: Request, path: Path, subject: Subject, caller: Anyone) -> Response:
    """POST: union of old and new properties; 200 and the whole node (R100-R118)."""
    body = await request.read(documents.DOCUMENT_BYTES_MAX)
    if documents.is_protocols(body):
        return await _protocols(service, path, subject)
    document = documents.parse_node(body)
    _document_path(service, document, path)
    trace = await service.trace(path, subject)
    if path:
        trace.parent()
    node = trace.node()
    shown = DATA if node.kind in SPECIAL else node.kind
    if document.type != "Node" and documents.TYPES[document.type] != shown:
        raise InvalidArgument(f"the node is a {documents.TYPE_OF[shown]}, and stays one")
    subject.permit(node, WRITE)
    quota = quotas.asked(subject, document.properties, node.kind, await quotas.shown(service.store, node))
    attributes, properties = _split(document.properties, node, trace.properties)
    _check_policy(service, subject, attributes)
    if node.kind == LINK and document.target and document.target != service.target_uri(node, path):
        attributes.target = document.target.encode()
    check_texts(attributes.target or b"", attributes.content_type, attributes.group_read, attributes.group_write)
    if properties or attributes != Attributes():
        node = await service.store.update(node.id, attributes, properties, caller)
    if quota is not None:
        await service.store.set_quota(node.id, quota, caller)
        node = await service.store.get(node.id)
    await _stage(service, node, document.properties)
    now = {**trace.properties, **properties, **await service.locality(node)}
    kept = {uri: value for uri, value in sorted(now.items()) if value is not None}
    return xml(await _document(service, node, kept, path, "max"))


async def _protocols(service: Service, path: Path, subject: Subject) -> Response:
    """What a node's bytes can be moved by (R98, A26)."""
    node = await service.find(path, subject)
    subject.permit(node, READ)
    return vosi.protocol_lists([] if node.kind == LINK else list(vosi.SERVED))


async def set_properties(service: Service, node: Node, given: dict[str, str | None], subject: Subject) -> None:
    """Change some properties of a node, as setNode does; what is the same already is left alone."""
    stored = await service.store.properties(node.id)
    attributes, properties = _split(given, node, stored)
    _check_policy(service, subject, attributes)
    check_texts(b"", attributes.content_type, attributes.group_read, attributes.group_write)
    if properties or attributes != Attributes():
        await service.store.update(node.id, attributes, properties, Anyone("", subject.permit), durable=False)
    await _stage(service, node, given)


async def check_tree(service: Service, top: Node, subject: Subject) -> int:
    """How many nodes are below a container.  PermissionDenied if any of them may not be deleted (R126)."""
    count = 0
    async for _, node in below(service.store, top, Subject(subject.user, subject.groups | {ADMIN})):
        count += 1
        if node.kind == CONTAINER:
            subject.permit(node, WRITE)
        check_guard(node, "something below the node")
    return count


async def remove_tree(service: Service, trace: Trace, subject: Subject, caller: Anyone, counted: bool = False) -> int:
    """Delete a node and all below it; how many that were, if they are to be counted.  NodeNotFound, PermissionDenied."""
    parent = trace.parent()
    subject.permit(parent, WRITE)
    top = trace.node()
    count = 1
    # An administrator may delete anything: there is nothing to look at but the number.
    if top.kind == CONTAINER and (counted or not subject.admin):
        count += await check_tree(service, top, subject)
    try:
        await service.store.remove(parent.id, trace.path[-1], "tree", caller, durable=True)
    except NodeNotFound:
        raise NodeNotFound(service.authority.uri(trace.path)) from None
    return count


async def delete_node(service: Service, path: Path, subject: Subject, caller: Anyone) -> Response:
    """DELETE: the node and all its descendants; 204 (R119-R130)."""
    if not path:
        raise PermissionDenied("the root cannot be deleted")
    trace = await service.trace(path, subject, follow=False)
    await remove_tree(service, trace, subject, caller)
    return Response(204)
