"""VOSpace documents: read with lxml under limits, written by template.

The only module that parses XML that came over the wire.  A document with a DOCTYPE is refused before it is parsed
(and once more after, which catches other encodings): no entities, no external references.  Listings are written by
string template, 1.5 µs a node against 15 for lxml trees.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache

import msgspec
from lxml import etree

from vosfs.errors import InvalidArgument, InvalidURI, ProtocolError, TooLarge, TypeNotSupported
from vosfs.metadata.node import CONTAINER, CORE, DATA, DEVICES, LINK, LOCALITY, LOCKED, SPECIAL, STAGE, STORAGE, Node

NS = "http://www.ivoa.net/xml/VOSpace/v2.0"
"""Of every VOSpace document, 2.0 and 2.1 (R4)."""
XSI = "http://www.w3.org/2001/XMLSchema-instance"
DOCUMENT_BYTES_MAX = 1 << 20
PROTOCOLS_MAX = 64
"""In one transfer document; security methods and parameters too."""
PROPERTIES_MAX = 256
VALUE_BYTES_MAX = 64 * 1024

TYPES = {
    "Node": DATA,
    "DataNode": DATA,
    "UnstructuredDataNode": DATA,
    "StructuredDataNode": DATA,
    "ContainerNode": CONTAINER,
    "LinkNode": LINK,
}
TYPE_OF = {CONTAINER: "vos:ContainerNode", DATA: "vos:DataNode", LINK: "vos:LinkNode"}
"""Types that are shown.  DataNode rather than a subtype: the vos client compares with that (docs/decisions.rst)."""

_HEAD = f'<?xml version="1.0" encoding="UTF-8"?>\n<vos:{{}} xmlns:vos="{NS}" xmlns:xsi="{XSI}"'
_UNSAFE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class NodeDocument(msgspec.Struct):
    """A node as a client describes it."""

    uri: str
    type: str
    """Local name of ``xsi:type``; ``'Node'`` if there was none."""
    properties: dict[str, str | None]
    """None: to be deleted (``xsi:nil``)."""
    target: str | None


class ProtocolRequest(msgspec.Struct):
    """One protocol a client can use, with the security methods it has for it."""

    uri: str
    endpoint: str = ""
    security_methods: list[str] = []
    params: dict[str, str] = {}


class Transfer(msgspec.Struct):
    """A transfer document (VOSpace 2.1 section 3.5)."""

    target: str
    direction: str
    view: str = ""
    protocols: list[ProtocolRequest] = []
    keep_bytes: bool | None = None
    params: dict[str, str] = {}
    view_params: dict[str, str] = {}
    view_original: bool = True


# -- reading ---------------------------------------------------------------------------------------------------


_PARSER = etree.XMLParser(
    resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, attribute_defaults=False,
    huge_tree=False, remove_comments=True, remove_pis=True,
)  # fmt: skip
"""Kept, and used by the event loop only: a new one for each document costs as much as the parsing."""


def parse(body: bytes, limit: int = DOCUMENT_BYTES_MAX) -> etree._Element:
    """A document's root.  InvalidArgument for anything that is not plain, well-formed XML."""
    if len(body) > limit:
        raise TooLarge(f"document of {len(body)} bytes; the limit is {limit}")
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise InvalidArgument("a document type declaration is not allowed")
    try:
        root = etree.fromstring(body, _PARSER)
    except (etree.XMLSyntaxError, ValueError) as exc:
        raise InvalidArgument(f"not well-formed XML: {str(exc)[:200]}") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise InvalidArgument("a document type declaration is not allowed")
    return root


ANSWER_BYTES_MAX = 64 << 20
"""Longest listing taken from another service."""


def parse_answer(body: bytes) -> etree._Element:
    """The root of another service's document.  ProtocolError instead of InvalidArgument: the fault is not ours."""
    try:
        return parse(body, ANSWER_BYTES_MAX)
    except (InvalidArgument, TooLarge) as exc:
        raise ProtocolError(f"the service's answer: {exc}") from None


def _expect(root: etree._Element, name: str) -> None:
    if root.tag != f"{{{NS}}}{name}":
        raise InvalidArgument(f"root element is {root.tag[:200]!r}, not {name} in the namespace {NS}")


def _text(element: etree._Element | None) -> str:
    return "" if element is None or element.text is None else element.text


def _true(text: str) -> bool:
    if text.strip() not in ("true", "false", "1", "0"):
        raise InvalidArgument(f"{text[:50]!r} is not a boolean")
    return text.strip() in ("true", "1")


def _type(element: etree._Element) -> str:
    """The local name of ``xsi:type``, its prefix resolved through the namespaces in scope (R6)."""
    text = element.get(f"{{{XSI}}}type", "").strip()
    if not text:
        return "Node"
    prefix, _, local = text.rpartition(":")
    if element.nsmap.get(prefix or None) != NS or local not in TYPES:
        raise TypeNotSupported(text[:200])
    return local


def check_property(uri: str, value: str) -> None:
    """InvalidArgument or TooLarge unless this can be kept as a property."""
    if not uri or len(uri) > 1024 or any(c <= " " for c in uri) or _UNSAFE.search(uri):
        raise InvalidArgument(f"{uri[:200]!r} is not a property identifier")
    if len(value.encode("utf-8", "surrogatepass")) > VALUE_BYTES_MAX:
        raise InvalidArgument(f"value of {uri} is longer than {VALUE_BYTES_MAX} bytes")
    if _UNSAFE.search(value):
        raise InvalidArgument(f"value of {uri} holds characters that XML cannot carry")


def parse_node(body: bytes) -> NodeDocument:
    """A node document.  InvalidArgument, InvalidURI, TypeNotSupported."""
    root = parse(body)
    _expect(root, "node")
    uri = root.get("uri")
    if not uri:
        raise InvalidURI("the node has no uri")
    properties: dict[str, str | None] = {}
    for element in root.findall(f"{{{NS}}}properties/{{{NS}}}property"):
        key = element.get("uri", "")
        value = "".join(map(str, element.itertext()))
        check_property(key, value)
        properties[key] = None if _true(element.get(f"{{{XSI}}}nil", "false")) else value
        if len(properties) > PROPERTIES_MAX:
            raise InvalidArgument(f"more than {PROPERTIES_MAX} properties")
    target = root.find(f"{{{NS}}}target")
    return NodeDocument(uri, _type(root), properties, None if target is None else _text(target).strip())


def is_protocols(body: bytes) -> bool:
    """Whether a document is a list of protocols, which a client posts to a node to ask for its own (R98)."""
    return b"protocols" in body[:1000] and parse(body).tag == f"{{{NS}}}protocols"


def parse_transfer(body: bytes) -> Transfer:
    """A transfer document.  InvalidArgument."""
    root = parse(body)
    _expect(root, "transfer")

    def text(name: str) -> str:
        return _text(root.find(f"{{{NS}}}{name}")).strip()

    def params(element: etree._Element) -> dict[str, str]:
        return {param.get("uri", ""): _text(param) for param in element.findall(f"{{{NS}}}param")}

    for name in ("protocol", "securityMethod", "param"):
        if len(root.findall(f".//{{{NS}}}{name}")) > PROTOCOLS_MAX:
            raise InvalidArgument(f"more than {PROTOCOLS_MAX} elements {name}")
    keep = text("keepBytes")
    view = root.find(f"{{{NS}}}view")
    protocols = [
        ProtocolRequest(
            element.get("uri", ""),
            _text(element.find(f"{{{NS}}}endpoint")).strip(),
            [method.get("uri", "") for method in element.findall(f"{{{NS}}}securityMethod")],
            params(element),
        )
        for element in root.findall(f"{{{NS}}}protocol")
    ]
    return Transfer(
        text("target"), text("direction"), "" if view is None else view.get("uri", ""), protocols,
        _true(keep) if keep else None, params(root), {} if view is None else params(view),
        view is None or _true(view.get("original", "true")),
    )  # fmt: skip


# -- writing ---------------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Text as it may stand in an element or a quoted attribute."""
    if "&" in text:
        text = text.replace("&", "&amp;")
    if "<" in text:
        text = text.replace("<", "&lt;")
    if ">" in text:
        text = text.replace(">", "&gt;")
    if '"' in text:
        text = text.replace('"', "&quot;")
    return text.replace("\r", "&#13;") if "\r" in text else text


@lru_cache(4096)
def _seconds(seconds: int) -> str:
    # strftime(3) four times was a tenth of a getNode; a node's times, and its neighbours', are mostly the same.
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(0, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}"


def timestamp(ns: int) -> str:
    """``YYYY-MM-DDThh:mm:ss.sss``, UTC, without the Z (A21: the vos client cannot read one in ``date``)."""
    seconds, rest = divmod(ns, 1_000_000_000)
    return _seconds(seconds) + _MILLISECONDS[rest // 1_000_000]


_MILLISECONDS = [f".{number:03d}" for number in range(1000)]


LOCK = "ivo://cadc.nrc.ca/vospace/core#islocked"
"""What the vos client locks by."""

FILE_TYPE = "ivo://vosfs/core#filetype"
"""What a data node is that holds no bytes: ``fifo``, ``socket``, ``chardev MAJOR:MINOR`` or ``blockdev MAJOR:MINOR``."""

READ_ONLY = frozenset((
    *(CORE + name for name in ("length", "mtime", "ctime", "btime", "date", "creator", "MD5", "availableSpace", "quota")),
    FILE_TYPE, LOCALITY,
))  # fmt: skip
"""Kept by the service (R344)."""

LOCKS = (LOCK, CORE + "islocked")
AS_ATTRIBUTES = frozenset(
    (
        *LOCKS,
        *(CORE + name for name in ("publicread", "ispublic", "groupread", "groupwrite", "type", "immutable")),
        STORAGE,
        STAGE,
    )
)
"""Understood, and kept as attributes of the node; ``STAGE`` is done."""


def core_properties(node: Node) -> list[tuple[str, str, bool]]:
    """(URI, value, read-only) of what the service itself says about a node."""
    named = zip(_ALWAYS, _always(node), strict=True)
    return [(CORE + name, value, fixed) for (name, fixed), value in named] + _sometimes(node)


_ALWAYS = (
    ("length", True), ("date", True), ("mtime", True), ("ctime", True), ("btime", True), ("creator", True),
    ("publicread", False), ("ispublic", False),
)  # fmt: skip
"""Names, and whether they are read-only, of the properties that every node has."""


def _always(node: Node) -> tuple[str, str, str, str, str, str, str, str]:
    date = timestamp(node.mtime_ns)
    mtime = date + "Z"
    # Of most nodes, which nobody has changed, these are one.
    ctime = mtime if node.ctime_ns == node.mtime_ns else timestamp(node.ctime_ns) + "Z"
    btime = ctime if node.btime_ns == node.ctime_ns else timestamp(node.btime_ns) + "Z"
    public = "true" if node.public else "false"
    return str(node.length), date, mtime, ctime, btime, node.owner, public, public


def _sometimes(node: Node) -> list[tuple[str, str, bool]]:
    result = []
    if node.md5:
        result.append((CORE + "MD5", node.md5, True))
    if node.kind in SPECIAL:
        number = f" {node.device >> 32}:{node.device & 0xFFFFFFFF}" if node.kind in DEVICES else ""
        result.append((FILE_TYPE, node.kind + number, True))
    if node.content_type:
        result.append((CORE + "type", node.content_type, False))
    if node.group_read:
        result.append((CORE + "groupread", node.group_read, False))
    if node.group_write:
        result.append((CORE + "groupwrite", node.group_write, False))
    if node.storage:
        result.append((STORAGE, node.storage, False))
    if node.immutable:
        result.append((LOCK if node.immutable == LOCKED else CORE + "immutable", "true", False))
    return result


DATA_VIEWS = ((CORE + "anyview", CORE + "binaryview"), (CORE + "defaultview", CORE + "binaryview"))
ARCHIVES = (CORE + "tar", CORE + "zip")
"""Views of containers, in both directions."""


def _views(accepts: tuple[str, ...], provides: tuple[str, ...]) -> str:
    lists = [("accepts", accepts), ("provides", provides)]
    return "".join(
        f"<vos:{name}>{''.join(f'<vos:view uri={chr(34)}{uri}{chr(34)}/>' for uri in uris)}</vos:{name}>"
        for name, uris in lists
    )


_VIEWS = {
    DATA: _views(*DATA_VIEWS),
    CONTAINER: _views(ARCHIVES, ARCHIVES),
}


NOTHING: Mapping[str, str] = {}


@lru_cache(4096)
def _open_property(uri: str, fixed: bool) -> str:
    return f'<vos:property uri="{escape(uri)}" readOnly="{"true" if fixed else "false"}">'


_BEGINNINGS = [_open_property(CORE + name, fixed) for name, fixed in _ALWAYS]


def _core(node: Node) -> str:
    """The core properties, at once: a quarter of what they take one by one."""
    a, b, c, d, e, f, g, h = _BEGINNINGS
    length, date, mtime, ctime, btime, owner, public, same = _always(node)
    end = "</vos:property>"
    written = (
        f"{a}{length}{end}{b}{date}{end}{c}{mtime}{end}{d}{ctime}{end}{e}{btime}{end}{f}{escape(owner)}{end}"
        f"{g}{public}{end}{h}{same}{end}"
    )
    for uri, value, fixed in _sometimes(node):
        written += f"{_open_property(uri, fixed)}{escape(value)}{end}"
    return written


def node_inner(
    node: Node, properties: dict[str, str], detail: str, capabilities: str = "", kept: Mapping[str, str] = NOTHING
) -> str:
    """What stands inside a node element, up to its children or target.

    ``kept``: properties that the service knows besides those in the node's record, or better.
    """
    parts = []
    if detail != "min":
        parts.append("<vos:properties>")
        if not kept:
            parts.append(_core(node))
        else:
            for uri, value, fixed in core_properties(node):
                if uri not in kept:
                    parts.append(f"{_open_property(uri, fixed)}{escape(value)}</vos:property>")
        for uri, value in kept.items():
            parts.append(f"{_open_property(uri, True)}{escape(value)}</vos:property>")
        for uri, value in properties.items():
            parts.append(f"{_open_property(uri, uri in READ_ONLY)}{escape(value)}</vos:property>")
        parts.append("</vos:properties>")
    if detail == "max" and node.kind != LINK:
        parts.append(_VIEWS.get(node.kind, _VIEWS[DATA]))
        parts.append(f"<vos:capabilities>{capabilities}</vos:capabilities>" if capabilities else "<vos:capabilities/>")
    return "".join(parts)


def node_open(node: Node, uri: str, detail: str, root: bool, busy: bool = False) -> str:
    """The start tag of a node, with namespaces if it is a document's root."""
    head = _HEAD.format("node") + ' version="2.1"' if root else "<vos:node"
    shown = f' busy="{"true" if busy else "false"}"' if detail == "max" and node.kind not in (CONTAINER, LINK) else ""
    return f'{head} uri="{escape(uri)}" xsi:type="{TYPE_OF.get(node.kind, TYPE_OF[DATA])}"{shown}>'


def child(node: Node, uri: str, target: str, properties: dict[str, str], detail: str) -> str:
    """A child in a listing: R82, a link with its target and a container with an empty list at every detail."""
    tail = "<vos:nodes/>" if node.kind == CONTAINER else ""
    if node.kind == LINK:
        tail = f"<vos:target>{escape(target)}</vos:target>"
    # Children show properties, not views: the schema's type-specific parts cost 300 bytes a node and no client reads them.
    inner = node_inner(node, properties, "min" if detail == "min" else "properties")
    return f"{node_open(node, uri, 'properties', False)}{inner}{tail}</vos:node>"


def new_node(kind: str, uri: str, properties: Mapping[str, str | None], target: str) -> bytes:
    """A node document as a client sends it; None deletes a property."""
    lines = [
        f'<vos:property uri="{escape(key)}" xsi:nil="true"/>' if value is None
        else f'<vos:property uri="{escape(key)}">{escape(value)}</vos:property>'
        for key, value in properties.items()
    ]  # fmt: skip
    tail = f"<vos:target>{escape(target)}</vos:target>" if target else "<vos:nodes/>" * (kind == CONTAINER)
    return (
        f'{_HEAD.format("node")} version="2.1" uri="{escape(uri)}" xsi:type="{TYPE_OF[kind]}">'
        f"<vos:properties>{''.join(lines)}</vos:properties>{tail}</vos:node>"
    ).encode()


def move_document(source: str, target: str) -> bytes:
    """A transfer document that moves a node."""
    return (
        f'{_HEAD.format("transfer")} version="2.1"><vos:target>{escape(source)}</vos:target>'
        f"<vos:direction>{escape(target)}</vos:direction><vos:keepBytes>false</vos:keepBytes></vos:transfer>"
    ).encode()


def push_or_pull(target: str, direction: str, protocols: list[str]) -> bytes:
    """A transfer document that asks for end-points."""
    wanted = "".join(f'<vos:protocol uri="{escape(protocol)}"/>' for protocol in protocols)
    return (
        f'{_HEAD.format("transfer")} version="2.1"><vos:target>{escape(target)}</vos:target>'
        f"<vos:direction>{direction}</vos:direction>{wanted}</vos:transfer>"
    ).encode()


def _params(params: dict[str, str]) -> str:
    return "".join(f'<vos:param uri="{escape(uri)}">{escape(value)}</vos:param>' for uri, value in params.items())


def transfer_request(transfer: Transfer) -> bytes:
    """A client's transfer document, as it was understood (R169)."""
    lines = [
        _HEAD.format("transfer") + ' version="2.1">',
        f"<vos:target>{escape(transfer.target)}</vos:target><vos:direction>{escape(transfer.direction)}</vos:direction>",
    ]
    if transfer.view:
        original = "" if transfer.view_original else ' original="false"'
        lines.append(f'<vos:view uri="{escape(transfer.view)}"{original}>{_params(transfer.view_params)}</vos:view>')
    for protocol in transfer.protocols:
        endpoint = f"<vos:endpoint>{escape(protocol.endpoint)}</vos:endpoint>" if protocol.endpoint else ""
        methods = "".join(f'<vos:securityMethod uri="{escape(uri)}"/>' for uri in protocol.security_methods)
        inner = f"{endpoint}{_params(protocol.params)}{methods}"
        lines.append(f'<vos:protocol uri="{escape(protocol.uri)}">{inner}</vos:protocol>')
    if transfer.keep_bytes is not None:
        lines.append(f"<vos:keepBytes>{'true' if transfer.keep_bytes else 'false'}</vos:keepBytes>")
    return f"{''.join(lines)}{_params(transfer.params)}</vos:transfer>".encode()


def transfer_details(transfer: Transfer, endpoints: Iterable[tuple[str, str, str]]) -> bytes:
    """The result of a negotiation; ``endpoints`` are (protocol, security method or empty, URL)."""
    lines = [
        _HEAD.format("transfer") + ' version="2.1">',
        f"<vos:target>{escape(transfer.target)}</vos:target><vos:direction>{escape(transfer.direction)}</vos:direction>",
    ]
    if transfer.view:
        lines.append(f'<vos:view uri="{escape(transfer.view)}"/>')
    for protocol, method, url in endpoints:
        security = f'<vos:securityMethod uri="{escape(method)}"/>' if method else ""
        lines.append(
            f'<vos:protocol uri="{escape(protocol)}"><vos:endpoint>{escape(url)}</vos:endpoint>{security}</vos:protocol>'
        )
    return f"{''.join(lines)}{_params(transfer.params)}</vos:transfer>".encode()


def fragment(document: bytes) -> str:
    """A document of ours without its XML declaration, to stand inside another."""
    return document.decode().partition("?>")[2].lstrip()
