"""Transfers: ``/synctrans``, and what the jobs of ``/transfers`` do (VOSpace 2.1 sections 6.2 and 6.4).

Negotiation of pushToVoSpace and pullFromVoSpace, moveNode, copyNode, and the two transfers in which the service is
the client of a third party (``remote.py``).
"""

import secrets
import time

import trio

from server import archive, copying, remote, uws
from server.access import Subject
from server.archive import ARCHIVE_VIEWS
from server.data import endpoint_url
from server.http import Request, Response
from server.jobs import Execution, Jobs, Landing, Result, State, encoded, fail, new_id
from server.nodes import remove_tree
from server.parameters import all_parameters, parameters
from server.quotas import check_room
from server.service import Service, xml
from server.uws import spaced
from vosfs.errors import (
    DuplicateNode,
    InvalidArgument,
    InvalidURI,
    LinkFound,
    NodeBusy,
    OperationNotSupported,
    PermissionDenied,
    ProtocolNotSupported,
    QuotaExceeded,
    ViewNotSupported,
    VOSpaceError,
)
from vosfs.metadata import content
from vosfs.metadata import xml as documents
from vosfs.metadata.job import COMPLETED as DONE
from vosfs.metadata.job import ERROR, EXECUTING
from vosfs.metadata.node import CONTAINER, CORE, DATA, LINK, Node
from vosfs.metadata.store import READ, WRITE, Anyone, check_guard
from vosfs.uri import Path, check_name

PUSH, PULL = "pushToVoSpace", "pullFromVoSpace"
FETCH, SEND = "pullToVoSpace", "pushFromVoSpace"
DIRECTIONS = (PUSH, PULL, FETCH, SEND)
PROTOCOLS: dict[str, tuple[str, ...]] = {
    PUSH: (CORE + "httpput", CORE + "httpsput"),
    PULL: (CORE + "httpget", CORE + "httpsget"),
}
"""What is served.  The https ones are accepted on plain http too: real clients ask for nothing else."""
PUBLIC_SHARE = "http://wiki.ivoa.net/twiki/bin/view/IVOA/VOSpacePublicShare"
VIEWS = {
    PUSH: ("", CORE + "anyview", CORE + "binaryview"),
    PULL: ("", CORE + "defaultview", CORE + "binaryview"),
    FETCH: ("", CORE + "anyview", CORE + "binaryview"),
    SEND: ("", CORE + "defaultview", CORE + "binaryview"),
}
"""Of data nodes; a container takes and gives ``archive.ARCHIVE_VIEWS``."""
SECURITY_METHODS = (
    "",
    "ivo://ivoa.net/sso#BasicAA",
    "ivo://ivoa.net/sso#OAuth",
    "ivo://ivoa.net/sso#token",
    "ivo://ivoa.net/sso#tls-with-certificate",
    "vos://cadc.nrc.ca~vospace/CADC/std/Auth#token-1.0",
)
AUTO = b".auto"
NULL = b".null"
FORM_BYTES_MAX = 64 * 1024


# -- synctrans ---------------------------------------------------------------------------------------------------


async def sync(service: Service, jobs: Jobs, request: Request) -> Response:
    """POST of a document, or GET or POST of parameters."""
    subject, _ = await service.caller(request)
    given = parameters(request.query)
    body = b""
    if request.method == "POST":
        body = await request.read(documents.DOCUMENT_BYTES_MAX)
        if request.header(b"content-type").startswith("application/x-www-form-urlencoded"):
            if len(body) > FORM_BYTES_MAX:
                raise InvalidArgument("form is too long")
            form = body.decode("utf-8", "replace")
            return await _by_parameters(service, subject, {**parameters(form), **given}, f"{request.query}&{form}")
    if given.get("target") or not body:
        return await _by_parameters(service, subject, given, request.query)
    transfer = documents.parse_transfer(body)
    # Nobody knows of this job yet who could abort it: there is nothing to confirm.
    execution = Execution(new_id(), subject, transfer, trio.lowlevel.checkpoint)
    state = State(encoded(transfer))
    state.started_ns = time.time_ns()
    phase = EXECUTING
    try:
        if transfer.direction in (FETCH, SEND):
            raise OperationNotSupported(f"{transfer.direction} goes to the transfers resource")
        await KIND.run(service, execution)
        state.results, state.waiting = execution.results, execution.waiting
        phase = EXECUTING if state.waiting else DONE
    except VOSpaceError as exc:
        fail(state, exc)
        phase = ERROR
    if not any(result.id == DETAILS for result in state.results):
        # Without an end-point: the job's phase and error tell the rest (R202), a move's its echo (R152).
        state.results.append(Result(DETAILS, document=documents.transfer_details(transfer, []).decode()))
    if phase != EXECUTING:
        state.ended_ns = time.time_ns()
    await jobs.keep(KIND.name, subject.user, phase, state, execution.id)
    return Response(303, [("Location", f"{service.base_url}/transfers/{execution.id}/results/{DETAILS}")])


DETAILS = "transferDetails"


async def _by_parameters(service: Service, subject: Subject, given: dict[str, str], query: str) -> Response:
    for name in ("target", "direction", "protocol"):
        if not given.get(name):
            raise InvalidArgument(f"parameter {name.upper()} is missing")
    if len(all_parameters(query).get("protocol", [])) > 1:
        raise InvalidArgument("PROTOCOL is given more than once")
    if given["direction"] not in (PUSH, PULL):
        raise InvalidArgument(f"DIRECTION is {PUSH} or {PULL}")
    methods = [given["securitymethod"]] if given.get("securitymethod") else []
    transfer = documents.Transfer(
        given["target"], given["direction"], given.get("view", ""),
        [documents.ProtocolRequest(given["protocol"], security_methods=methods)],
    )  # fmt: skip
    endpoints, _, _ = await negotiate(service, transfer, subject, "")
    if given.get("request") == "redirect" and transfer.direction == PULL:
        return Response(303, [("Location", endpoints[0][2])])
    return xml(documents.transfer_details(transfer, endpoints))


# -- negotiation -------------------------------------------------------------------------------------------------


async def negotiate(
    service: Service, transfer: documents.Transfer, subject: Subject, job: str
) -> tuple[list[tuple[str, str, str]], Path, Node | None]:
    """(protocol, security method, URL) of each end-point, the real path, and the node if there is one.

    Raises the faults of R237 and R247.
    """
    _check_params(service, transfer)
    path = service.authority.path(transfer.target)
    node: Node | None
    if transfer.direction == PULL:
        path, node = await source_of(service, path, subject, transfer.view)
    else:
        path, node = await destination_of(service, path, subject, transfer.view)
        await _check_room(service, transfer, path, node)
    view = transfer.view if node is not None and node.kind == CONTAINER else ""
    url = endpoint_url(service, transfer.direction, path, subject, job, ARCHIVE_VIEWS.get(view, ""))
    offered = PROTOCOLS[transfer.direction]
    if service.data_url.startswith("https:"):
        # Never a label of http for an https URL (R354).
        offered = tuple(uri for uri in offered if "#https" in uri)
    found: list[tuple[str, str, str]] = []
    for protocol in transfer.protocols:
        if protocol.uri in offered:
            # Each pair once, however often it was asked for.
            methods = [method for method in protocol.security_methods or [""] if method in SECURITY_METHODS]
            found += [(protocol.uri, method, url) for method in dict.fromkeys(methods)]
    found = list(dict.fromkeys(found))
    if not found:
        raise ProtocolNotSupported(", ".join(p.uri[:100] for p in transfer.protocols[:10]) or "none was named")
    return found, path, node


def _check_params(service: Service, transfer: documents.Transfer) -> None:
    """InvalidArgument for a parameter of a view or a known protocol that means nothing here (R30, R181).

    QuotaExceeded if the bytes that are announced would not fit (R199).
    """
    known = {uri for uris in PROTOCOLS.values() for uri in uris}
    for subject, params in [
        *((p.uri, p.params) for p in transfer.protocols if p.uri in known), (transfer.view, transfer.view_params)
    ]:  # fmt: skip
        for uri, value in params.items():
            raise InvalidArgument(f"{subject} has no parameter {uri[:200]} ({value[:100]})")
    length = transfer.params.get(CORE + "length", "").strip()
    if length.isascii() and length.isdigit() and service.keeps_bytes and transfer.direction in (PUSH, FETCH):
        total, free = service.backend.space()
        # An object store does not know what is free.
        fits = free if total else content.LENGTH_MAX
        if int(length[:20]) > fits:
            raise QuotaExceeded(f"{length[:20]} bytes are announced, {fits} are free")


async def _check_room(service: Service, transfer: documents.Transfer, path: Path, node: Node | None) -> None:
    """QuotaExceeded if the bytes that are announced are more than a quota above leaves (R199)."""
    length = transfer.params.get(CORE + "length", "").strip()
    if length.isascii() and length.isdigit():
        into = node or (await service.store.trace(path))[0][-1]
        await check_room(service.store, into, int(length[:20]) - into.length)


async def source_of(service: Service, path: Path, subject: Subject, view: str) -> tuple[Path, Node]:
    """The node that bytes come from, which the subject may read; links are followed (R197)."""
    trace = await service.trace(path, subject, leaf=True)
    node = trace.node()
    if view not in (ARCHIVE_VIEWS if node.kind == CONTAINER else VIEWS[PULL]):
        raise ViewNotSupported(f"{view or 'none'} of {service.authority.uri(trace.path)}"[:300])
    subject.permit(node, READ)
    return trace.path, node


async def destination_of(service: Service, path: Path, subject: Subject, view: str) -> tuple[Path, Node | None]:
    """The node that bytes go to, None if it is to be made; which the subject may write."""
    if path and path[-1] == AUTO:
        path = (*path[:-1], generated_name())
    trace = await service.trace(path, subject, leaf=True)
    path, node = trace.path, trace.found
    if node is None:
        subject.permit(trace.parent(), WRITE)
    if node is None or node.kind == DATA:
        if view not in VIEWS[PUSH]:
            raise ViewNotSupported(view[:200])
    elif node.kind == CONTAINER and view not in ARCHIVE_VIEWS:
        raise ViewNotSupported(f"{view or 'none'} of the container {service.authority.uri(path)}"[:300])
    if node is not None:
        subject.permit(node, WRITE)
        check_guard(node, service.authority.uri(path))
        if service.busy[node.id]:
            raise NodeBusy(service.authority.uri(path))
    return path, node


def generated_name() -> bytes:
    """A name for ``.auto``: 80 random bits, so that no two are alike (R327)."""
    return secrets.token_hex(10).encode()


# -- what jobs do ------------------------------------------------------------------------------------------------


class Transfers:
    """The kind of job that ``/transfers`` holds (see ``jobs.Kind``)."""

    name = "transfers"
    shape = documents.Transfer

    def heavy(self, request: documents.Transfer) -> bool:
        return request.direction in (FETCH, SEND) or bool(request.keep_bytes)

    def needs_bytes(self, request: documents.Transfer) -> bool:
        return request.direction in (FETCH, SEND)

    def resumable(self, request: documents.Transfer) -> bool:
        # An end-point of pushFromVoSpace may be used once only (R259).
        return request.direction != SEND

    def info(self, request: documents.Transfer) -> str:
        return documents.fragment(documents.transfer_request(request))

    def error_form(self, request: documents.Transfer, fault: str) -> str:
        if fault == "ProtocolNotSupported" and any(p.uri == PUBLIC_SHARE for p in request.protocols):
            # Here the standard wants it without spaces (A19).
            return f"{spaced(fault)} ({fault})"
        return spaced(fault)

    async def cut_off(self, service: Service, id: str) -> None:
        await service.store.drop_staged(id.encode())

    async def ready(self, service: Service, subject: Subject, request: documents.Transfer) -> None:
        if request.direction not in (PULL, SEND):
            return
        path, node = await source_of(service, service.authority.path(request.target), subject, request.view)
        if node.kind == CONTAINER:
            await archive.readable(service, [(path, node)], subject)
        elif node.kind == DATA:
            await service.readable((await service.store.open(node.id)).extents)

    async def run(self, service: Service, execution: Execution) -> None:
        transfer: documents.Transfer = execution.request
        if transfer.direction.startswith("vos:"):
            await _move_or_copy(service, execution, transfer)
        elif transfer.direction in (PUSH, PULL):
            endpoints, path, _ = await negotiate(service, transfer, execution.subject, execution.id)
            _report(service, transfer, endpoints, path, execution)
            # What is offered for reading may be read many times: its job is over (R246).
            execution.waiting = transfer.direction == PUSH
        elif transfer.direction == FETCH:
            _check_params(service, transfer)
            path, node = await destination_of(
                service, service.authority.path(transfer.target), execution.subject, transfer.view
            )
            await _check_room(service, transfer, path, node)
            execution.results.append(Result("dataNode", service.authority.uri(path)))
            if transfer.target.endswith("/.auto"):
                execution.results.append(Result("target", service.authority.uri(path)))
            await remote.fetch(service, execution.subject, transfer, path, node, execution.confirm)
        elif transfer.direction == SEND:
            _check_params(service, transfer)
            path, source = await source_of(
                service, service.authority.path(transfer.target), execution.subject, transfer.view
            )
            execution.results.append(Result("dataNode", service.authority.uri(path)))
            await remote.send(service, execution.subject, transfer, path, source)
        else:
            raise InvalidArgument(f"direction is one of {', '.join(DIRECTIONS)} or a vos: URI")


KIND = Transfers()


def _report(
    service: Service,
    transfer: documents.Transfer,
    endpoints: list[tuple[str, str, str]],
    path: Path,
    execution: Execution,
) -> None:
    execution.results.append(Result(DETAILS, document=documents.transfer_details(transfer, endpoints).decode()))
    uri = service.authority.uri(path)
    execution.results.append(Result("dataNode", uri))
    if transfer.target.endswith("/.auto"):
        execution.results.append(Result("target", uri))


async def _move_or_copy(service: Service, execution: Execution, transfer: documents.Transfer) -> None:
    """moveNode and copyNode (R131-R165)."""
    subject = execution.subject
    if transfer.keep_bytes is None:
        raise InvalidArgument("keepBytes says whether to move or to copy")
    source = await service.trace(service.authority.path(transfer.target), subject)
    if not source.path:
        raise PermissionDenied("the root stays where it is")
    caller = Anyone("", subject.permit)
    wanted = service.authority.path(transfer.direction)
    node = source.node()
    if wanted and wanted[-1] == NULL:
        # A move to .null deletes (R130), a copy is thrown away (R328).
        if transfer.keep_bytes:
            subject.permit(node, READ)
        else:
            await remove_tree(service, source, subject, caller)
        return
    parent, target = await _destination(service, subject, wanted, source.path[-1])
    if target[: len(source.path)] == source.path and (target != source.path or transfer.keep_bytes):
        if target == source.path:
            raise DuplicateNode(transfer.direction)
        raise InvalidURI(f"{transfer.direction}: Cannot move container node into its descendants")
    name = check_name(target[-1])

    async def confirm(id: int) -> None:
        execution.results.append(Result("destination", service.authority.uri(target)))
        # Done twice, a copy would go into the first one.
        execution.landing = Landing(parent.id, name, id)
        await execution.confirm()

    if transfer.keep_bytes:
        subject.permit(parent, WRITE)
        if node.kind == DATA:
            await check_room(service.store, parent, node.length)
        await copying.copy(service.store, subject, node, parent, name, execution.id, confirm)
        return
    await confirm(node.id)
    try:
        await service.store.rename(
            source.parent().id, source.path[-1], parent.id, name, "keep", caller, durable=True
        )  # fmt: skip
    except InvalidArgument as exc:
        # Found by the store: somebody moved an ancestor meanwhile (R143).
        raise InvalidURI(f"{transfer.direction}: {exc}") from None


async def _destination(service: Service, subject: Subject, path: Path, name: bytes) -> tuple[Node, Path]:
    """Where a node named ``name`` is to go: into an existing container (R135), or under a free name of one."""
    if path and path[-1] == AUTO:
        path = (*path[:-1], generated_name())
    trace = await service.trace(path, subject)
    if trace.found is None:
        return trace.parent(), trace.path
    if trace.found.kind == LINK:
        try:
            trace = await service.trace(trace.path, subject, leaf=True)
        except (InvalidURI, LinkFound):
            raise DuplicateNode(service.authority.uri(path)) from None
    if trace.found is None or trace.found.kind != CONTAINER:
        raise DuplicateNode(service.authority.uri(path))
    return trace.found, (*trace.path, name)


async def create(service: Service, jobs: Jobs, request: Request) -> Response:
    """POST to ``/transfers``: a job (R131)."""
    subject, _ = await service.caller(request)
    transfer = documents.parse_transfer(await request.read(documents.DOCUMENT_BYTES_MAX))
    return await uws.created(jobs, KIND.name, subject, transfer, request)
