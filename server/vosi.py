"""Service metadata: VOSI capabilities and availability, and the protocols, views and properties lists."""

import time

import trio

from server.http import Request, Response
from server.service import CHALLENGES, X509_CHALLENGE, Service, xml
from vosfs.errors import NotAuthenticated, VOSpaceError
from vosfs.metadata import xml as documents
from vosfs.metadata.messages import PROTOCOL as GATEWAY
from vosfs.metadata.node import CORE, ROOT_ID
from vosfs.wire import http_date

_XSI = f'xmlns:xsi="{documents.XSI}"'
UP_SINCE_NS = time.time_ns()

METHODS = (
    "<securityMethod/>"
    '<securityMethod standardID="ivo://ivoa.net/sso#OAuth"/><securityMethod standardID="ivo://ivoa.net/sso#token"/>'
    '<securityMethod standardID="ivo://ivoa.net/sso#BasicAA"/>'
)
CERTIFICATE_METHOD = '<securityMethod standardID="ivo://ivoa.net/sso#tls-with-certificate"/>'

CAPABILITIES = [
    ("ivo://ivoa.net/std/VOSI#capabilities", "capabilities", "full", False),
    ("ivo://ivoa.net/std/VOSI#availability", "availability", "full", False),
    ("ivo://ivoa.net/std/VOSpace/v2.0#protocols", "protocols", "full", True),
    ("ivo://ivoa.net/std/VOSpace/v2.0#views", "views", "full", True),
    ("ivo://ivoa.net/std/VOSpace/v2.0#properties", "properties", "full", True),
    ("ivo://ivoa.net/std/VOSpace/v2.0#nodes", "nodes", "base", True),
    ("ivo://ivoa.net/std/VOSpace/v2.0#transfers", "transfers", "base", True),
    ("ivo://ivoa.net/std/VOSpace#sync-2.1", "synctrans", "base", True),
    ("ivo://ivoa.net/std/VOSpace/v2.0#sync", "sync", "full", True),
    ("ivo://ivoa.net/std/VOSpace#files-proto", "files", "base", True),
    ("ivo://ivoa.net/std/VOSpace#recursive-delete-proto", "async-delete", "base", True),
    ("ivo://ivoa.net/std/VOSpace#recursive-nodeprops-proto", "async-setprops", "base", True),
    ("vos://cadc.nrc.ca~vospace/CADC/std/Pkg-1.0", "pkg", "full", True),
]
"""(standardID, path, use, whether credentials are heeded) of each end-point (spec: vospace-2.1, section 1.0)."""


async def capabilities(service: Service, request: Request) -> Response:
    """VOSI 1.1 section 3.1, in the shape that cadcutils can parse: unqualified children, the prefix ``xsi``."""
    entries = list(CAPABILITIES)
    methods = METHODS + CERTIFICATE_METHOD * service.certificates
    headers = [("Last-Modified", http_date(UP_SINCE_NS / 1e9)), *CHALLENGES]
    headers += [X509_CHALLENGE] * service.certificates
    try:
        await service.caller(request)
    except NotAuthenticated:
        # Readable by all the same (R288): that is where a client learns how to identify itself.
        pass
    if service.gateway:
        entries.append((GATEWAY, "gateway", "full", True))
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>\n<vosi:capabilities'
        ' xmlns:vosi="http://www.ivoa.net/xml/VOSICapabilities/v1.0"'
        f' xmlns:vs="http://www.ivoa.net/xml/VODataService/v1.1" {_XSI}>'
    ]
    for standard, path, use, secured in entries:
        lines.append(
            f'<capability standardID="{standard}"><interface xsi:type="vs:ParamHTTP" role="std">'
            f'<accessURL use="{use}">{documents.escape(service.base_url)}/{path}</accessURL>'
            f"{methods if secured else ''}</interface></capability>"
        )
    lines.append("</vosi:capabilities>")
    return xml("".join(lines).encode(), 200, headers)


async def availability(service: Service, request: Request) -> Response:
    """VOSI 1.1 section 3.2: whether database and storage answer."""
    note, available = "accepting requests", True
    try:
        await service.store.get(ROOT_ID)
        await trio.to_thread.run_sync(service.backend.space)
    except VOSpaceError:
        note, available = "the database does not answer", False
    except OSError:
        note, available = "the storage does not answer", False
    return xml(
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<vosi:availability xmlns:vosi="http://www.ivoa.net/xml/VOSIAvailability/v1.0">'
        f"<vosi:available>{'true' if available else 'false'}</vosi:available>"
        f"<vosi:upSince>{documents.timestamp(UP_SINCE_NS)}Z</vosi:upSince>"
        f"<vosi:note>{note}</vosi:note></vosi:availability>".encode()
    )


def _lists(name: str, item: str, lists: list[tuple[str, list[str]]]) -> Response:
    parts = [f'<?xml version="1.0" encoding="UTF-8"?>\n<vos:{name} xmlns:vos="{documents.NS}">']
    for kind, uris in lists:
        items = "".join(f'<vos:{item} uri="{documents.escape(uri)}"/>' for uri in uris)
        parts.append(f"<vos:{kind}>{items}</vos:{kind}>")
    return xml("".join([*parts, f"</vos:{name}>"]).encode())


SERVED = tuple(CORE + name for name in ("httpget", "httpput", "httpsget", "httpsput"))
"""Protocols of byte end-points here, and of third parties' (``remote.py``)."""


def protocol_lists(provides: list[str]) -> Response:
    """A protocols document."""
    return _lists("protocols", "protocol", [("accepts", list(SERVED)), ("provides", provides)])


async def protocols(service: Service, request: Request) -> Response:
    """getProtocols: what the service serves, and what it uses as a client (R37, R38)."""
    return protocol_lists([*SERVED, *[GATEWAY] * service.gateway])


async def views(service: Service, request: Request) -> Response:
    """getViews (R39)."""
    return _lists(
        "views",
        "view",
        [
            ("accepts", [*documents.DATA_VIEWS[0], *documents.ARCHIVES]),
            ("provides", [*documents.DATA_VIEWS[1], *documents.ARCHIVES]),
        ],
    )


async def properties(service: Service, request: Request) -> Response:
    """getProperties: understood and set by the service (R41)."""
    understood = sorted(documents.AS_ATTRIBUTES)
    kept = sorted(documents.READ_ONLY)
    in_use = sorted({*kept, *(await service.store.properties_in_use())})
    return _lists("properties", "property", [("accepts", understood), ("provides", kept), ("contains", in_use)])
