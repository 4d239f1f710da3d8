"""Jobs over whole trees that the vos client knows: ``/async-delete`` and ``/async-setprops`` (spec: clients, 1.5)."""

import msgspec

from server import nodes, uws
from server.access import Subject
from server.http import Request, Response
from server.jobs import Execution, Jobs, Result
from server.parameters import parameters
from server.service import Service
from server.uws import FORM_BYTES_MAX, spaced
from server.walk import below
from vosfs.errors import InvalidArgument, PermissionDenied
from vosfs.metadata import xml as documents
from vosfs.metadata.node import CONTAINER
from vosfs.metadata.store import WRITE, Anyone


class Deletion(msgspec.Struct):
    """What is to be deleted."""

    target: str


class _Kind:
    """What both kinds have in common (see ``jobs.Kind``)."""

    def heavy(self, request: object) -> bool:
        return True

    def needs_bytes(self, request: object) -> bool:
        return False

    def resumable(self, request: object) -> bool:
        return True

    async def ready(self, service: Service, subject: Subject, request: object) -> None:
        """No bytes are needed."""

    async def cut_off(self, service: Service, id: str) -> None:
        """Each step is a transaction: there is nothing to clean up."""

    def error_form(self, request: object, fault: str) -> str:
        return spaced(fault)


class RecursiveDelete(_Kind):
    """Deletes a node and all below it, in one step; or nothing, if any of it may not be deleted (R126)."""

    name = "async-delete"
    shape = Deletion

    def info(self, request: Deletion) -> str:
        return f"<target>{documents.escape(request.target)}</target>"

    async def run(self, service: Service, execution: Execution) -> None:
        subject = execution.subject
        trace = await service.trace(service.authority.path(execution.request.target), subject)
        if not trace.path:
            raise PermissionDenied("the root cannot be deleted")
        count = await nodes.remove_tree(service, trace, subject, Anyone("", subject.permit), counted=True)
        execution.results.append(Result("successcount", f"final:{count}"))


class RecursiveSetProperties(_Kind):
    """Sets properties on a node and all below it that the subject may write."""

    name = "async-setprops"
    shape = documents.NodeDocument

    def info(self, request: documents.NodeDocument) -> str:
        return documents.fragment(documents.new_node(CONTAINER, request.uri, request.properties, ""))

    async def run(self, service: Service, execution: Execution) -> None:
        subject, given = execution.subject, execution.request
        top = await service.find(service.authority.path(given.uri), subject)
        subject.permit(top, WRITE)
        done, failed = 0, 0
        unread: list[int] = []
        try:
            await nodes.set_properties(service, top, given.properties, subject)
            done += 1
            if top.kind == CONTAINER:
                async for _, node in below(service.store, top, subject, lambda node: unread.append(1)):
                    try:
                        subject.permit(node, WRITE)
                        await nodes.set_properties(service, node, given.properties, subject)
                        done += 1
                    except PermissionDenied:
                        failed += 1
        finally:
            execution.results.append(Result("successcount", f"final:{done}"))
            failed += len(unread)
            if failed:
                # Absent when there is none: the client takes any text for failures.
                execution.results.append(Result("errorcount", f"final:{failed}"))
        await service.store.sync()


DELETE, SET_PROPERTIES = RecursiveDelete(), RecursiveSetProperties()


async def create(service: Service, jobs: Jobs, request: Request, kind: str) -> Response:
    """POST: a job, PENDING until its phase is set to RUN."""
    subject, _ = await service.caller(request)
    asked: object
    if kind == DELETE.name:
        form = parameters((await request.read(FORM_BYTES_MAX)).decode("utf-8", "replace"))
        target = form.get("target") or parameters(request.query).get("target", "")
        if not target:
            raise InvalidArgument("parameter target is missing")
        service.authority.path(target)
        asked = Deletion(target)
    else:
        document = documents.parse_node(await request.read(documents.DOCUMENT_BYTES_MAX))
        service.authority.path(document.uri)
        asked = document
    return await uws.created(jobs, kind, subject, asked, request)
