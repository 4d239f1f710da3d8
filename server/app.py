"""From a URL to a handler, and from an error to a fault: the only place where errors become HTTP."""

import logging
import time

import trio

from server import archive, data, nodes, recursive, relocation, transfers, uws, vosi
from server.gateway import Gateway
from server.http import Request, Response
from server.jobs import Jobs
from server.service import Service, fault, text
from vosfs import uri
from vosfs.errors import InternalFault, NotOnline, ProtocolError, TimedOut, VOSpaceError

log = logging.getLogger(__name__)

METHODS = {
    "nodes": ("GET", "HEAD", "PUT", "POST", "DELETE"),
    "files": ("GET", "HEAD", "PUT"),
    "data": ("GET", "HEAD", "PUT"),
    "blobs": ("GET", "HEAD", "PUT"),
    "gateway": ("POST",),
    "synctrans": ("GET", "HEAD", "POST"),
    "sync": ("POST",),
    "transfers": ("GET", "HEAD", "POST", "DELETE"),
    "async-delete": ("GET", "HEAD", "POST", "DELETE"),
    "async-setprops": ("GET", "HEAD", "POST", "DELETE"),
    "async-storage": ("GET", "HEAD", "POST", "DELETE"),
    "pkg": ("GET",),
    "capabilities": ("GET", "HEAD"),
    "availability": ("GET", "HEAD"),
    "protocols": ("GET", "HEAD"),
    "views": ("GET", "HEAD"),
    "properties": ("GET", "HEAD"),
}
STORAGE = ("data", "blobs", "pkg", "capabilities", "availability")
"""What the storage role answers."""
METADATA = tuple(name for name in METHODS if name not in ("data", "blobs", "pkg"))
SIGNED = ("data", "blobs")
"""What is named here is as good as a key: logs show its first SHOWN characters."""
SHOWN = 8
JOBS = ("transfers", "async-delete", "async-setprops", "async-storage")

ALIVE = {"capabilities": vosi.capabilities, "availability": vosi.availability, "protocols": vosi.protocols,
         "views": vosi.views, "properties": vosi.properties}  # fmt: skip


class App:
    """The application that the HTTP engine calls."""

    def __init__(self, service: Service, jobs: Jobs, prefix: str, resources: tuple[str, ...]) -> None:
        self._service = service
        self._jobs = jobs
        self._prefix = prefix + "/"
        self._resources = frozenset(resources)
        self._gateway = Gateway(service)

    async def __call__(self, request: Request) -> Response:
        response = await self._answer(request)
        if request.user:
            # SSO 2.1 section 2.3.
            response.headers.append(("x-vo-authenticated", request.user))
        return response

    async def _answer(self, request: Request) -> Response:
        started = time.perf_counter()
        try:
            return await self._dispatch(request)
        except VOSpaceError as exc:
            # 5xx is ours to look at; 4xx is a normal day, and so is a tape.
            level = logging.WARNING if exc.status >= 500 and not isinstance(exc, NotOnline) else logging.DEBUG
            log.log(level, "%s %s: %s %s (%.1f ms)", request.method, request.shown, exc.fault, exc,
                    1e3 * (time.perf_counter() - started))  # fmt: skip
            if isinstance(exc, ProtocolError):
                raise
            return fault(exc, self._service.certificates)
        except trio.TooSlowError:
            log.warning("%s %s: a body stalled", request.method, request.shown)
            return fault(TimedOut("the body stalled"))
        except ConnectionError as exc:
            # The client went away in the middle of its body.
            log.debug("%s %s: %s", request.method, request.shown, exc)
            raise
        except Exception:
            log.exception("%s %s failed", request.method, request.shown)
            return fault(InternalFault("the request could not be completed"))

    async def _dispatch(self, request: Request) -> Response:
        if not request.path.startswith(self._prefix):
            return text(404, "NodeNotFound no such resource\n")
        resource, slash, rest = request.path[len(self._prefix) :].partition("/")
        if resource in SIGNED:
            request.shown = f"{self._prefix}{resource}/{rest[:SHOWN]}..."
        if resource not in self._resources:
            return text(404, "NodeNotFound no such resource\n")
        if request.method not in METHODS[resource]:
            return text(405, "InvalidArgument method not allowed\n", [("Allow", ", ".join(METHODS[resource]))])
        service = self._service
        if resource == "gateway":
            if not service.gateway:
                return text(404, "NodeNotFound no such resource\n")
            return await self._gateway.handle(request)
        if resource == "blobs":
            return await data.blobs(service, request, rest)
        if resource in ALIVE:
            if rest:
                return text(404, "NodeNotFound no such resource\n")
            return await ALIVE[resource](service, request)
        if resource in JOBS:
            return await self._job(resource, request, rest)
        with service.delegation.at_work():
            await service.delegation.recall()
            return await self._on_tree(service, resource, request, slash, rest)

    async def _on_tree(self, service: Service, resource: str, request: Request, slash: str, rest: str) -> Response:
        """What looks at the tree or changes it."""
        if resource == "nodes":
            return await nodes.handle(service, request, uri.decode(slash + rest))
        if resource == "files":
            return await data.files(service, request, uri.decode(slash + rest))
        if resource == "data":
            return await data.endpoint(service, self._jobs, request, rest)
        if resource in ("synctrans", "sync"):
            return await transfers.sync(service, self._jobs, request)
        return await archive.package(service, request)

    async def _job(self, resource: str, request: Request, rest: str) -> Response:
        if request.method == "POST" and not rest.strip("/"):
            if resource == transfers.KIND.name:
                return await transfers.create(self._service, self._jobs, request)
            if resource == relocation.KIND.name:
                return await relocation.create(self._service, self._jobs, request)
            return await recursive.create(self._service, self._jobs, request, resource)
        subject, _ = await self._service.caller(request)
        return await uws.handle(self._jobs, request, resource, rest, subject)
