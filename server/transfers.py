"""``/synctrans`` and the job resources behind it: pushToVoSpace and pullFromVoSpace (VOSpace 2.1 section 6.4).

Negotiation is finished before the answer, so a job's phase is final for errors and EXECUTING until bytes moved.
"""

import secrets
from urllib.parse import parse_qs

import msgspec

from server.access import Subject
from server.data import endpoint_url
from server.http import Request, Response
from server.nodes import parameters
from server.service import Service, text, xml
from server.signing import ENDPOINT_S
from vosfs.errors import (
    ContainerNotFound,
    DuplicateNode,
    InvalidArgument,
    InvalidURI,
    NodeNotFound,
    OperationNotSupported,
    PermissionDenied,
    ProtocolNotSupported,
    ViewNotSupported,
    VOSpaceError,
)
from vosfs.metadata import xml as documents
from vosfs.metadata.node import CONTAINER, CORE, DATA
from vosfs.metadata.store import READ, WRITE, Anyone
from vosfs.uri import Path, check_name

PUSH, PULL = "pushToVoSpace", "pullFromVoSpace"
PROTOCOLS = {
    PUSH: (CORE + "httpput", CORE + "httpsput"),
    PULL: (CORE + "httpget", CORE + "httpsget"),
}
"""The https ones are accepted on plain http too: real clients ask for nothing else (decision: docs/decisions.rst)."""
VIEWS = {
    PUSH: ("", CORE + "anyview", CORE + "binaryview"),
    PULL: ("", CORE + "defaultview", CORE + "binaryview"),
}
DIRECTIONS = (PUSH, PULL, "pullToVoSpace", "pushFromVoSpace")
SECURITY_METHODS = (
    "",
    "ivo://ivoa.net/sso#BasicAA",
    "ivo://ivoa.net/sso#OAuth",
    "ivo://ivoa.net/sso#token",
    "vos://cadc.nrc.ca~vospace/CADC/std/Auth#token-1.0",
)
FORM_BYTES_MAX = 64 * 1024


class Job(msgspec.Struct):
    """A transfer's job as it is stored."""

    transfer: documents.Transfer
    details: bytes
    """The transferDetails document; empty if negotiation failed."""
    fault: str = ""
    message: str = ""
    destination: str = ""
    """Where a moved node is now."""


async def sync(service: Service, request: Request) -> Response:
    """POST of a document, or GET or POST of parameters."""
    subject, _ = await service.caller(request)
    given = parameters(request.query)
    body = b""
    if request.method == "POST":
        body = await request.read(documents.DOCUMENT_BYTES_MAX)
        if request.header(b"content-type").startswith("application/x-www-form-urlencoded"):
            if len(body) > FORM_BYTES_MAX:
                raise InvalidArgument("form is too long")
            given = {**parameters(body.decode("utf-8", "replace")), **given}
            body = b""
    if given.get("target") or not body:
        return await _by_parameters(service, subject, given, request.query)
    transfer = documents.parse_transfer(body)
    job = Job(transfer, b"")
    id = secrets.token_hex(12)
    try:
        job.details = await _negotiate(service, transfer, subject, id)
        phase = "EXECUTING"
    except VOSpaceError as exc:
        job.fault, job.message, phase = exc.fault, str(exc), "ERROR"
    await service.store.put_job(id, subject.user, phase, msgspec.json.encode(job).decode())
    return Response(303, [("Location", f"{service.base_url}/transfers/{id}/results/transferDetails")])


async def _by_parameters(service: Service, subject: Subject, given: dict[str, str], query: str) -> Response:
    for name in ("target", "direction", "protocol"):
        if not given.get(name):
            raise InvalidArgument(f"parameter {name.upper()} is missing")
    if len(parse_qs(query).get("PROTOCOL", [])) > 1:
        raise InvalidArgument("PROTOCOL is given more than once")
    if given["direction"] not in (PUSH, PULL):
        raise InvalidArgument(f"DIRECTION is {PUSH} or {PULL}")
    methods = [given["securitymethod"]] if given.get("securitymethod") else []
    transfer = documents.Transfer(
        given["target"], given["direction"], given.get("view", ""),
        [documents.ProtocolRequest(given["protocol"], security_methods=methods)],
    )  # fmt: skip
    details = await _negotiate(service, transfer, subject, "")
    if given.get("request") == "redirect" and transfer.direction == PULL:
        root = documents.parse(details)
        location = root.findtext(f"{{{documents.NS}}}protocol/{{{documents.NS}}}endpoint") or ""
        return Response(303, [("Location", location)])
    return xml(details)


async def _negotiate(service: Service, transfer: documents.Transfer, subject: Subject, job: str) -> bytes:
    """The transferDetails document.  Raises the faults of R237 and R247."""
    if transfer.direction not in DIRECTIONS:
        raise InvalidArgument(f"direction {transfer.direction[:100]!r} is not one that this resource serves")
    if transfer.direction not in PROTOCOLS:
        raise OperationNotSupported(f"{transfer.direction} on synctrans")
    if transfer.view not in VIEWS[transfer.direction]:
        raise ViewNotSupported(transfer.view[:200])
    path = service.authority.path(transfer.target)
    if transfer.direction == PULL:
        node = await service.find(path, subject)
        if node.kind == CONTAINER:
            raise ViewNotSupported(f"{transfer.target} is a container")
        if node.kind != DATA:
            raise InvalidURI(f"{transfer.target} is a link: ask for its target")
        subject.permit(node, READ)
    else:
        await _check_push(service, path, subject)
    url = endpoint_url(service, transfer.direction, path, subject, job)
    found: list[tuple[str, str, str]] = []
    for protocol in transfer.protocols:
        if protocol.uri in PROTOCOLS[transfer.direction]:
            # Each pair once, however often it was asked for.
            methods = [method for method in protocol.security_methods or [""] if method in SECURITY_METHODS]
            found += [(protocol.uri, method, url) for method in dict.fromkeys(methods)]
    found = list(dict.fromkeys(found))
    if not found:
        raise ProtocolNotSupported(", ".join(p.uri[:100] for p in transfer.protocols[:10]) or "none was named")
    return documents.transfer_details(transfer, found)


async def _check_push(service: Service, path: Path, subject: Subject) -> None:
    if not path:
        raise ViewNotSupported("the root is a container")
    parent = await service.container_of(path, subject)
    if path[-1] == b".auto":
        raise InvalidURI(f"{service.authority.uri(path)}: generated names are not offered")
    try:
        node = await service.store.lookup(parent.id, path[-1])
    except NodeNotFound:
        subject.permit(parent, WRITE)
        return
    if node.kind == CONTAINER:
        raise ViewNotSupported(f"{service.authority.uri(path)} is a container")
    if node.kind != DATA:
        raise InvalidURI(f"{service.authority.uri(path)} is a link: name its target")
    subject.permit(node, WRITE)


# -- moveNode ----------------------------------------------------------------------------------------------------


async def create_job(service: Service, request: Request) -> Response:
    """POST to ``/transfers``: a PENDING job (R131); it runs when its phase is set to RUN."""
    subject, _ = await service.caller(request)
    transfer = documents.parse_transfer(await request.read(documents.DOCUMENT_BYTES_MAX))
    id = secrets.token_hex(12)
    await service.store.put_job(id, subject.user, "PENDING", msgspec.json.encode(Job(transfer, b"")).decode())
    url = f"{service.base_url}/transfers/{id}"
    if parameters(request.query).get("phase", "").upper() == "RUN":
        await _run(service, subject, id)
    return Response(303, [("Location", url)])


async def set_phase(service: Service, request: Request, id: str) -> Response:
    """POST to ``/transfers/ID/phase``: RUN or ABORT; 303 to the job."""
    subject, _ = await service.caller(request)
    await _job(service, subject, id)
    given = parameters((await request.read(FORM_BYTES_MAX)).decode("utf-8", "replace"))
    phase = given.get("phase", "").upper()
    if phase not in ("RUN", "ABORT"):
        raise InvalidArgument(f"PHASE is RUN or ABORT, not {phase[:20]!r}")
    owner, now, document, _ = await _job(service, subject, id)
    if phase == "ABORT":
        if now in ("PENDING", "EXECUTING"):
            await service.store.put_job(id, owner, "ABORTED", document)
    elif now != "PENDING":
        raise PermissionDenied(f"the job is {now}: only a PENDING one can be run")
    else:
        await _run(service, subject, id)
    return Response(303, [("Location", f"{service.base_url}/transfers/{id}")])


async def _run(service: Service, subject: Subject, id: str) -> None:
    """Do what a job is for; every one is short, so it is finished before the first poll."""
    owner, _, document, _ = await _job(service, subject, id)
    job = msgspec.json.decode(document, type=Job)
    try:
        if job.transfer.direction.startswith("vos:"):
            job.destination = await _move(service, subject, job.transfer)
            phase = "COMPLETED"
        else:
            job.details = await _negotiate(service, job.transfer, subject, id)
            phase = "EXECUTING"
    except VOSpaceError as exc:
        job.fault, job.message, phase = exc.fault, str(exc), "ERROR"
    await service.store.put_job(id, owner, phase, msgspec.json.encode(job).decode())


async def _move(service: Service, subject: Subject, transfer: documents.Transfer) -> str:
    """moveNode (R131-R151); returns the node's new URI."""
    if transfer.keep_bytes is None:
        raise InvalidArgument("keepBytes says whether to move or to copy")
    if transfer.keep_bytes:
        raise OperationNotSupported("copyNode is not offered yet")
    source, target = service.authority.path(transfer.target), service.authority.path(transfer.direction)
    if not source:
        raise PermissionDenied("the root cannot be moved")
    try:
        node = await service.find(target, subject)
    except (NodeNotFound, ContainerNotFound):
        node = None
    if node is not None:
        if node.kind != CONTAINER:
            raise DuplicateNode(transfer.direction)
        # Into an existing container, under its old name (R135).
        target = (*target, source[-1])
    await service.find(source, subject)
    old, new = await service.container_of(source, subject), await service.container_of(target, subject)
    caller = Anyone("", subject.permit)
    await service.store.rename(old.id, source[-1], new.id, check_name(target[-1]), "keep", caller)
    await service.store.sync()
    return service.authority.uri(target)


# -- jobs --------------------------------------------------------------------------------------------------------


async def jobs(service: Service, request: Request, rest: str) -> Response:
    """``/transfers/ID...``: what became of a synchronous transfer."""
    id, _, what = rest.strip("/").partition("/")
    if request.method == "POST":
        if not id:
            return await create_job(service, request)
        if what != "phase":
            raise InvalidArgument("POST goes to the job list, or to a job's phase")
        return await set_phase(service, request, id)
    subject, _ = await service.caller(request)
    owner, phase, document, created_ns = await _job(service, subject, id)
    job = msgspec.json.decode(document, type=Job)
    if what == "phase":
        return text(200, phase)
    if what == "error":
        if not job.fault:
            raise NodeNotFound(f"job {id} has no error")
        return text(200, f"{job.fault} {job.message}")
    if what == "results/transferDetails":
        return xml(job.details or documents.transfer_details(job.transfer, []))
    if what == "":
        return xml(_job_document(service, id, owner, phase, job, created_ns))
    raise NodeNotFound(f"job {id} has no {what[:50]}")


async def _job(service: Service, subject: Subject, id: str) -> tuple[str, str, str, int]:
    """A job that the subject may see; strangers' jobs do not exist for others."""
    row = await service.store.job(id) if id else None
    if row is None or (row[0] != subject.user and not subject.admin):
        raise NodeNotFound(f"job {id[:50]}")
    return row


def _spaced(fault: str) -> str:
    """``NodeNotFound`` -> ``Node Not Found``, the form of errorSummary."""
    return "".join(" " + c if c.isupper() else c for c in fault).strip().replace("U R I", "URI")


def _job_document(service: Service, id: str, owner: str, phase: str, job: Job, created_ns: int) -> bytes:
    escape = documents.escape
    created = documents.timestamp(created_ns) + "Z"
    destruction = documents.timestamp(created_ns + 7 * 86400 * 10**9) + "Z"
    results = error = ""
    if job.details:
        href = f"{service.base_url}/transfers/{id}/results/transferDetails"
        results = (
            f'<uws:result id="transferDetails" xlink:href="{escape(href)}"/>'
            f'<uws:result id="dataNode" xlink:href="{escape(job.transfer.target)}"/>'
        )
    if job.destination:
        results = f'<uws:result id="destination" xlink:href="{escape(job.destination)}"/>'
    if job.fault:
        error = (
            f'<uws:errorSummary type="fatal" hasDetail="true"><uws:message>{escape(_spaced(job.fault))}'
            "</uws:message></uws:errorSummary>"
        )
    request = documents.transfer_request(job.transfer)
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<uws:job xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0"'
        ' xmlns:xlink="http://www.w3.org/1999/xlink" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'
        f' version="1.1"><uws:jobId>{id}</uws:jobId>'
        + (f"<uws:ownerId>{escape(owner)}</uws:ownerId>" if owner else '<uws:ownerId xsi:nil="true"/>')
        + f"<uws:phase>{phase}</uws:phase>"
        f'<uws:quote xsi:nil="true"/><uws:creationTime>{created}</uws:creationTime>'
        f"<uws:startTime>{created}</uws:startTime><uws:executionDuration>{ENDPOINT_S}</uws:executionDuration>"
        f"<uws:destruction>{destruction}</uws:destruction><uws:parameters/>"
        f"<uws:results>{results}</uws:results>{error}"
        f"<uws:jobInfo>{documents.fragment(request)}</uws:jobInfo></uws:job>"
    ).encode()
