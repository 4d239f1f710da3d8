"""Moving bytes that are there already to other storages, while they stay readable: ``/async-storage``, ``vosfsd move-storage``.

Each blob is copied and each node then told of the copy, in a transaction that changes nothing if the node no longer
stands on the old one: what was written meanwhile is where the policy wants it already, or is looked at again.  A crash
leaves a copy that nobody knows, which the collector takes.
"""

import time

import msgspec
import trio

from server import uws
from server.access import Subject
from server.http import Request, Response
from server.jobs import STAGED_POLL_S, STAGED_S_MAX, Execution, Jobs, Result
from server.parameters import parameters
from server.service import Service, policy_of
from server.uws import FORM_BYTES_MAX, spaced
from server.walk import below
from vosfs.backends.storages import Storages
from vosfs.errors import (
    BlobMissing,
    DataCorrupt,
    Immutable,
    InvalidArgument,
    NodeLocked,
    NodeNotFound,
    NotOnline,
    PermissionDenied,
)
from vosfs.metadata import content
from vosfs.metadata import xml as documents
from vosfs.metadata.node import CONTAINER, DATA, IMMUTABLE, Attributes, Blob, Node, parts
from vosfs.metadata.store import WRITE, Anyone, Store

ROUNDS_MAX = 5
"""A file that changes all the time is left after so many looks."""
KEPT_S = 600.0
"""How long a copy is remembered for other nodes on the same blob: far shorter than the collector waits."""
AWAITED_MAX = 1000
"""Nodes whose bytes have been asked for; the rest of the tree waits."""
SKIPPED = (PermissionDenied, NodeLocked, NodeNotFound, DataCorrupt)
"""What keeps one node from being moved, and no other."""


class Relocation(msgspec.Struct):
    """What is to be moved, and where."""

    target: str
    storage: str


class Mover:
    """Moves nodes to the storages of one policy."""

    def __init__(self, store: Store, backend: Storages, policy: str) -> None:
        # Dependencies
        self._store = store
        self._backend = backend
        # Constants
        self._policy = policy
        self._names = list(backend.names(policy))
        # Mutable state
        self.done = self.failed = self.bytes = 0
        self._awaited: list[Node] = []
        """On their way from a slow storage; INVARIANT: at most AWAITED_MAX."""
        self._copies: dict[str, Blob] = {}
        self._since = time.monotonic()

    async def tree(self, top: Node, subject: Subject) -> None:
        """Move a node and all below it that the subject may write; what has to come from a slow storage last."""
        await self._node(top, subject)
        if top.kind == CONTAINER:
            async for _, node in below(self._store, top, subject, self._left_out):
                await self._node(node, subject)
                if len(self._awaited) >= AWAITED_MAX:
                    await self._arrivals(subject)
        await self._arrivals(subject)
        await self._store.sync()

    async def _arrivals(self, subject: Subject) -> None:
        """Move what was asked for as it comes.  What does not within STAGED_S_MAX is left, and counted."""
        pause, end = STAGED_POLL_S[0], trio.current_time() + STAGED_S_MAX
        while self._awaited and trio.current_time() < end:
            await trio.sleep(pause)
            pause = min(2 * pause, STAGED_POLL_S[1])
            awaited, self._awaited = self._awaited, []
            for node in awaited:
                await self._node(node, subject)
            if len(self._awaited) < len(awaited):
                end = trio.current_time() + STAGED_S_MAX
        self.failed += len(self._awaited)
        self._awaited = []

    def _left_out(self, node: Node) -> None:
        self.failed += 1

    async def _node(self, node: Node, subject: Subject) -> None:
        try:
            subject.permit(node, WRITE)
            if node.immutable == IMMUTABLE:
                # Registered where it is, perhaps: nobody asked for it to be copied.
                raise Immutable(f"node {node.id} is read-only")
            if node.storage != self._policy:
                # First, so that what is written from now on goes there.
                change = Attributes(storage=self._policy)
                node = await self._store.set_attributes(node.id, change, Anyone("", subject.permit))
            if node.kind == DATA:
                await self._bytes(node.id)
        except NotOnline:
            self._awaited.append(node)
        except SKIPPED:
            self.failed += 1
        else:
            self.done += 1

    async def _bytes(self, id: int) -> None:
        for _ in range(ROUNDS_MAX):
            extents = (await self._store.open(id)).extents
            misplaced = [locator for locator in content.locators(extents) if not self._placed(locator)]
            if not misplaced:
                return
            if self._backend.slow:
                await trio.to_thread.run_sync(self._backend.recall, misplaced)
            for locator in misplaced:
                blob = await self._copy(locator)
                if not await self._store.relocate(locator, blob, 1, id) and not await self._store.referenced(
                    blob.locator
                ):
                    self._copies.pop(locator, None)
                    await trio.to_thread.run_sync(self._backend.remove, blob.locator)
        raise NodeLocked(f"node {id} changes all the time")

    def _placed(self, locator: str) -> bool:
        return [self._backend.storage_of(part) for part in parts(locator)] == self._names

    async def _copy(self, locator: str) -> Blob:
        if time.monotonic() - self._since > KEPT_S:
            self._copies, self._since = {}, time.monotonic()
        blob = self._copies.get(locator)
        if blob is None:
            recorded = await self._store.blob(locator)
            if recorded is None:
                raise BlobMissing(f"nothing is recorded of {locator}")
            blob = self._copies[locator] = await trio.to_thread.run_sync(
                self._backend.copy, recorded, locator, self._policy
            )
            self.bytes += blob.length
        return blob


class MoveStorage:
    """The kind of job that ``/async-storage`` holds (see ``jobs.Kind``)."""

    name = "async-storage"
    shape = Relocation

    def heavy(self, request: Relocation) -> bool:
        return True

    def needs_bytes(self, request: Relocation) -> bool:
        return True

    def resumable(self, request: Relocation) -> bool:
        # What was moved is not moved again.
        return True

    async def ready(self, service: Service, subject: Subject, request: object) -> None:
        """Files come one by one, and are moved as they come."""

    async def cut_off(self, service: Service, id: str) -> None:
        """Each step is a transaction: there is nothing to clean up."""

    def info(self, request: Relocation) -> str:
        target, storage = documents.escape(request.target), documents.escape(request.storage)
        return f"<target>{target}</target><storage>{storage}</storage>"

    def error_form(self, request: Relocation, fault: str) -> str:
        return spaced(fault)

    async def run(self, service: Service, execution: Execution) -> None:
        subject, request = execution.subject, execution.request
        policy = policy_of(service, subject, request.storage)
        top = await service.find(service.authority.path(request.target), subject)
        subject.permit(top, WRITE)
        mover = Mover(service.store, service.backend, policy)
        try:
            await mover.tree(top, subject)
        finally:
            execution.results.append(Result("successcount", f"final:{mover.done}"))
            if mover.failed:
                execution.results.append(Result("errorcount", f"final:{mover.failed}"))


KIND = MoveStorage()


async def create(service: Service, jobs: Jobs, request: Request) -> Response:
    """POST of TARGET (a URI) and STORAGE (a policy): a job, PENDING until its phase is set to RUN."""
    subject, _ = await service.caller(request)
    form = parameters((await request.read(FORM_BYTES_MAX)).decode("utf-8", "replace"))
    if not form.get("target") or "storage" not in form:
        raise InvalidArgument("parameters target and storage are needed")
    service.authority.path(form["target"])
    asked = Relocation(form["target"], policy_of(service, subject, form["storage"]))
    return await uws.created(jobs, KIND.name, subject, asked, request)
