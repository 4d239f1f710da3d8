"""The life of jobs, and the loop that runs them (UWS 1.1 section 2.1; their resources are ``uws.py``'s).

What a job does is its ``Kind``'s affair (``transfers.py``, ``recursive.py``); here is everything that jobs have in
common.  The store holds the truth, and every change of phase is a compare-and-set there, so that an abort, the end of
the work, another process and a restart may all come at once.

A job that was running when the daemon stopped is taken up again at the next start if its kind can do that, and
otherwise ends in ERROR; none is forgotten.
"""

import heapq
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import msgspec
import trio

from server.access import Subject
from server.http import Response
from server.service import Service
from vosfs.errors import (
    DigestMismatch,
    InternalFault,
    InvalidArgument,
    NodeNotFound,
    NotOnline,
    PermissionDenied,
    TransferFailed,
    VOSpaceError,
)
from vosfs.metadata.job import (
    ABORTED,
    ACTIVE,
    ARCHIVED,
    COMPLETED,
    ERROR,
    EXECUTING,
    HELD,
    PENDING,
    PHASES,
    QUEUED,
    SUSPENDED,
    Chosen,
    Job,
)

log = logging.getLogger(__name__)

DESTRUCTION_S = 7 * 86400
"""From a job's creation to its destruction; clients may ask for up to DESTRUCTION_S_MAX."""
DESTRUCTION_S_MAX = 30 * 86400
ARCHIVE_S = 30 * 86400
"""How long a destroyed job can still be looked up, as ARCHIVED."""
DURATION_S = 12 * 3600
DURATION_S_MAX = 7 * 86400
RUNNING_MAX = 4
"""Long jobs at once; more are QUEUED."""
QUEUED_MAX = 1000
"""More are HELD: their client must say RUN again."""
STAGED_S_MAX = 4 * 86400
"""Longest wait for bytes from a slow storage: the slowest class of AWS takes two days, and tapes have week-ends."""
STAGED_POLL_S = (0.25, 30.0)
"""How often is looked whether they are here: first, and after a while."""
CLOSING_S = 10.0
"""How long an abort that came too late waits for the job's end."""
EAGER_S = 0.1
"""How long an answer waits for its job's end: short jobs are over before the first poll."""
WAIT_S_MAX = 50.0
"""Longest WAIT; proxies begin to cut at 60."""
POLL_S = 0.25
"""How often a waiter looks for changes by other processes."""
HOUSEKEEPING_S = 30.0
SOON_MAX = 10_000
LIST_MAX = 10_000
RUN_ID_MAX = 64
CALLBACK_MAX = 2000
OPEN = (PENDING, QUEUED, EXECUTING, HELD, SUSPENDED)
"""Phases from which a job can still be aborted."""


class Result(msgspec.Struct):
    """One result: a reference (``xlink:href``), and its document if the service keeps it."""

    id: str
    href: str = ""
    document: str = ""
    """Served at ``results/ID``; ``href`` is then made from that."""


class Landing(msgspec.Struct):
    """The last step of a move or copy: this node gets that name.  If it has it, the job is done, whoever died since."""

    parent: int
    name: bytes
    node: int


class State(msgspec.Struct):
    """What a job's stored document holds."""

    request: msgspec.Raw
    """As its kind wrote it."""
    run_id: str = ""
    callback: str = ""
    started_ns: int = 0
    ended_ns: int = 0
    duration_s: int = DURATION_S
    staging_ns: int = 0
    """When it began to wait for bytes from a slow storage, QUEUED."""
    waiting: bool = False
    """EXECUTING, but nothing runs here: the client is to send or fetch bytes."""
    uploading: bool = False
    """It has begun to."""
    fault: str = ""
    message: str = ""
    results: list[Result] = []
    landing: Landing | None = None
    """Written before its last step, for who takes the job up again."""


class Execution:
    """A job while it runs."""

    def __init__(self, id: str, subject: Subject, request: Any, confirm: Callable[[], Awaitable[None]]) -> None:
        self.id = id
        self.subject = subject
        self.request = request
        self.results: list[Result] = []
        self.confirm = confirm
        """To be called last, before anything shows: raises if the job was aborted, by another process say (R194)."""
        self.waiting = False
        """Set by the kind: the work is done, and the client's turn has come."""
        self.landing: Landing | None = None
        """Set by the kind before it calls ``confirm``, if its last step must not be done twice."""


class Kind(Protocol):
    """What jobs of one resource do."""

    name: str
    """Of the resource: ``'transfers'``."""

    @property
    def shape(self) -> type[Any]:
        """Class of its requests."""

    def heavy(self, request: Any) -> bool:
        """Whether it may take long: it then waits for one of RUNNING_MAX places."""

    def needs_bytes(self, request: Any) -> bool:
        """Whether it must run where the bytes are."""

    def resumable(self, request: Any) -> bool:
        """Whether it can begin again after it was cut off."""

    async def ready(self, service: Service, subject: Subject, request: Any) -> None:
        """NotOnline, when they have been asked for, while it must wait for bytes from a slow storage.

        Raises VOSpaceError; ``run`` comes upon the others too.
        """

    async def run(self, service: Service, execution: Execution) -> None:
        """Do it, as ``execution.subject``; the results go to ``execution``.  Raises VOSpaceError."""

    async def cut_off(self, service: Service, id: str) -> None:
        """Clean up what a killed process may have left of a job."""

    def info(self, request: Any) -> str:
        """The content of ``jobInfo``."""

    def error_form(self, request: Any, fault: str) -> str:
        """The text of ``errorSummary``."""


Notify = Callable[[str, Job], Awaitable[None]]
"""Tells a callback URL how a job ended."""


class Jobs:
    """The jobs of a space."""

    def __init__(self, service: Service, kinds: list[Kind], notify: Notify) -> None:
        # Dependencies
        self.service = service
        self._store = service.store
        self.kinds = {kind.name: kind for kind in kinds}
        self._notify = notify
        # Mutable state
        self._nursery: trio.Nursery | None = None
        self._running: dict[str, trio.CancelScope] = {}
        self._mine: set[str] = set()
        """Jobs that this process runs, or will when there is a place."""
        self._places = trio.Semaphore(RUNNING_MAX)
        self._queued = 0
        self.changed = trio.Event()
        """Replaced by a fresh one when any job changes."""
        self._closing: dict[str, trio.Event] = {}
        """Jobs whose work is becoming visible, until they are over: too late for an abort."""
        self._soon: list[tuple[int, str]] = []
        """Heap of (when, id) of limits that clients set and that end before house-keeping comes by."""
        self._sooner = trio.Event()

    # -- the life of a job -----------------------------------------------------------------------------------------

    async def create(self, kind: str, owner: str, request: Any, given: dict[str, str]) -> Job:
        """A PENDING job (R371)."""
        return await self.keep(kind, owner, PENDING, _new_state(request, given))

    async def create_and_run(self, name: str, subject: Subject, asked: Any, given: dict[str, str]) -> Job:
        """The same, and RUN: a short job is over before it is stored, in one write instead of three."""
        kind = self.kinds[name]
        if kind.heavy(asked) or not self._runs(kind, asked) or not await self._ready(kind, asked, subject.user):
            job = await self.create(kind.name, subject.user, asked, given)
            await self.start(job)
            return job
        state = _new_state(asked, given)
        state.started_ns = time.time_ns()
        job = Job(new_id(), kind.name, subject.user, EXECUTING, state.started_ns, 0, "")
        phase = await self._work(job, state, kind, asked)
        state.ended_ns = 0 if phase == EXECUTING else time.time_ns()
        job = await self.keep(kind.name, subject.user, phase, state, job.id)
        if phase != EXECUTING:
            self._tell(job, state)
        return job

    async def keep(self, kind: str, owner: str, phase: str, state: State, id: str = "") -> Job:
        """Store a job in any phase."""
        # As precise as it is shown: who asks for jobs after this one must not get this one (R390).
        now = time.time_ns() // 10**6 * 10**6
        job = Job(id or new_id(), kind, owner, phase, now, now + DESTRUCTION_S * 10**9, _text(state))
        await self._store.add_job(job)
        return job

    async def change(self, job: Job, state: State, phase: str, since: tuple[str, ...]) -> bool:
        """Give a job another phase, if its stored one is in ``since``."""
        job = msgspec.structs.replace(job, phase=phase, document=_text(state))
        if not await self._store.change_job(job, since):
            return False
        self.changed.set()
        self.changed = trio.Event()
        if phase in (COMPLETED, ERROR, ABORTED):
            self._tell(job, state)
        return True

    def _tell(self, job: Job, state: State) -> None:
        """Call back who wanted to know the end."""
        if state.callback and self._nursery is not None:
            self._nursery.start_soon(self._guarded, self._notify, state.callback, job)

    async def start(self, job: Job) -> None:
        """RUN: the job is EXECUTING, or QUEUED behind others, or HELD when there are too many (R373-R375)."""
        kind, state = self.kinds[job.kind], state_of(job)
        request = request_of(kind, state)
        here = self._runs(kind, request)
        # Not HELD for bytes that are to come, as nobody has to say RUN again; not EXECUTING, which has clients of a pull
        # ask for its end-points.
        waits = kind.heavy(request) or (here and not await self._ready(kind, request, job.owner))
        phase = HELD if waits and self._queued >= QUEUED_MAX else QUEUED if waits or not here else EXECUTING
        if phase == EXECUTING:
            state.started_ns = time.time_ns()
        if not await self.change(job, state, phase, (PENDING, HELD)):
            raise PermissionDenied(f"the job is {job.phase}: only a PENDING or HELD one can be run")
        if not here or phase == HELD or self._nursery is None:
            return
        done = trio.Event()
        self._nursery.start_soon(
            self._guarded, self._execute, msgspec.structs.replace(job, phase=phase), state, done
        )  # fmt: skip
        with trio.move_on_after(EAGER_S):
            await done.wait()

    async def abort(self, job: Job) -> None:
        """ABORT: what runs is stopped, what it made so far stays invisible (R194, R377)."""
        closing = self._closing.get(job.id)
        if closing is not None:
            with trio.move_on_after(CLOSING_S):
                await closing.wait()
        state = state_of(job)
        state.ended_ns = time.time_ns()
        if not await self.change(job, state, ABORTED, OPEN):
            raise PermissionDenied(f"the job is {job.phase} and can no longer be aborted")
        scope = self._running.get(job.id)
        if scope is not None:
            scope.cancel()

    async def remove(self, job: Job) -> None:
        """DELETE: the job and its results go; if it runs it is stopped first (R385)."""
        if job.phase in OPEN:
            try:
                await self.abort(job)
            except PermissionDenied:
                # It ended just now.
                pass
        await self._store.remove_job(job.id)

    def _runs(self, kind: Kind, request: Any) -> bool:
        return self.service.role == "all" or kind.needs_bytes(request) == (self.service.role == "storage")

    async def _guarded(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """One job's trouble is not the daemon's end: a database that restarts, say, or a bug."""
        try:
            await work(*arguments)
        except VOSpaceError as exc:
            log.warning("a job's task: %s", exc)
        except Exception:
            log.exception("a job's task failed")

    async def _execute(self, job: Job, state: State, done: trio.Event | None = None) -> None:
        self._mine.add(job.id)
        kind = self.kinds[job.kind]
        request = request_of(kind, state)
        try:
            if job.phase == QUEUED:
                self._queued += 1
                try:
                    if not await self._staged(job, state, kind, request):
                        return
                    await self._places.acquire()
                finally:
                    self._queued -= 1
                try:
                    state.started_ns = time.time_ns()
                    if await self.change(job, state, EXECUTING, (QUEUED,)):
                        await self._run(job, state, kind, request)
                finally:
                    self._places.release()
            else:
                await self._run(job, state, kind, request)
        finally:
            self._mine.discard(job.id)
            if done is not None:
                done.set()

    async def _ready(self, kind: Kind, request: Any, owner: str) -> bool:
        """Whether a job need not wait for bytes from a slow storage."""
        if not self.service.keeps_bytes or not self.service.backend.slow:
            return True
        try:
            await kind.ready(self.service, await self.service.auth.known_user(owner), request)
        except NotOnline:
            return False
        except VOSpaceError as exc:
            log.debug("a job of %s: %s", owner, exc)
        return True

    async def _staged(self, job: Job, state: State, kind: Kind, request: Any) -> bool:
        """Wait until a QUEUED job can read its bytes; False if it is over before that."""
        pause = STAGED_POLL_S[0]
        while not await self._ready(kind, request, job.owner):
            now = time.time_ns()
            if not state.staging_ns:
                state.staging_ns = now
                if not await self.change(job, state, QUEUED, (QUEUED,)):
                    return False
            elif now - state.staging_ns > STAGED_S_MAX * 10**9:
                fail(state, NotOnline(f"the bytes did not come from their slow storage in {STAGED_S_MAX // 3600} h"))
                state.ended_ns = now
                await self.change(job, state, ERROR, (QUEUED,))
                return False
            await trio.sleep(pause)
            pause = min(2 * pause, STAGED_POLL_S[1])
            known = await self._store.job(job.id)
            if known is None or known.phase != QUEUED:
                return False
        return True

    async def _run(self, job: Job, state: State, kind: Kind, request: Any) -> None:
        phase, whole = SUSPENDED, False
        seconds = state.duration_s or DURATION_S_MAX
        try:
            with trio.move_on_after(seconds) as scope:
                self._running[job.id] = scope
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._heed, job.id, scope)
                    phase = await self._work(job, state, kind, request)
                    nursery.cancel_scope.cancel()
            if scope.cancelled_caught:
                # Aborted: the phase says so already.  Or out of time.
                phase, state.message = ABORTED, f"it ran for longer than {seconds} s"
            whole = True
        finally:
            self._running.pop(job.id, None)
            closing = self._closing.pop(job.id, None)
            state.ended_ns = 0 if phase in (SUSPENDED, EXECUTING) else time.time_ns()
            if whole or kind.resumable(request):
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
                    await self.change(job, state, phase, (EXECUTING,))
            if closing is not None:
                closing.set()

    async def _work(self, job: Job, state: State, kind: Kind, request: Any) -> str:
        """Do the job's work; the phase that it ends in."""
        try:
            if state.landing is not None and await self._landed(state.landing):
                return COMPLETED
            state.results, state.landing = [], None
            subject = await self.service.auth.known_user(job.owner)

            async def confirm() -> None:
                if job.document:
                    state.results, state.landing = execution.results, execution.landing
                    await self.close(job, state)

            execution = Execution(job.id, subject, request, confirm)
            with self.service.delegation.at_work():
                await self.service.delegation.recall()
                await kind.run(self.service, execution)
        except VOSpaceError as exc:
            fail(state, exc)
        except Exception:
            log.exception("job %s failed", job.id)
            fail(state, InternalFault("the job could not be completed"))
        else:
            state.results, state.waiting = execution.results, execution.waiting
            return EXECUTING if state.waiting else COMPLETED
        state.results = []
        return ERROR

    async def _landed(self, landing: Landing) -> bool:
        try:
            return (await self._store.lookup(landing.parent, landing.name)).id == landing.node
        except VOSpaceError:
            return False

    async def close(self, job: Job, state: State) -> None:
        """The job's work is about to show: from here on no abort is taken.  PermissionDenied if one came before."""
        self._closing[job.id] = trio.Event()
        if not await self.change(job, state, EXECUTING, (EXECUTING,)):
            self._closing.pop(job.id).set()
            raise PermissionDenied("the job was aborted")

    async def _heed(self, id: str, scope: trio.CancelScope) -> None:
        """Stop a job that another process aborted or deleted."""
        while True:
            await trio.sleep(1)
            try:
                job = await self._store.job(id)
            except VOSpaceError as exc:
                log.debug("job %s: %s", id, exc)
                continue
            if job is None or job.phase != EXECUTING:
                scope.cancel()

    # -- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run jobs until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self._keep_house)
                if self.service.role != "all":
                    nursery.start_soon(self._claim)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _take_up(self) -> None:
        """Go on with what the last process left (R413), or what was lost when the database was away."""
        for job in await self._store.jobs(Chosen(phases=(QUEUED, EXECUTING, SUSPENDED), limit=LIST_MAX)):
            kind, state = self.kinds.get(job.kind), state_of(job)
            if kind is None or job.id in self._mine or job.id in self._running:
                continue
            request = request_of(kind, state)
            if not self._runs(kind, request) and not (state.waiting and self.service.role != "metadata"):
                continue
            if state.waiting and not state.uploading:
                # The client still holds its end-point.
                continue
            await kind.cut_off(self.service, job.id)
            if state.waiting or (job.phase == EXECUTING and not kind.resumable(request)):
                fail(state, TransferFailed("the service stopped in the middle of it"))
                state.ended_ns = time.time_ns()
                await self.change(job, state, ERROR, (job.phase,))
            elif await self.change(job, state, QUEUED, (job.phase,)):
                assert self._nursery is not None
                self._nursery.start_soon(
                    self._guarded, self._execute, msgspec.structs.replace(job, phase=QUEUED), state
                )  # fmt: skip

    async def _claim(self) -> None:
        """Run what the other role's process queued for this one."""
        assert self._nursery is not None
        while True:
            await trio.sleep(POLL_S)
            try:
                found = await self._store.jobs(Chosen(phases=(QUEUED,), limit=RUNNING_MAX * 4))
            except VOSpaceError as exc:
                log.warning("queued jobs: %s", exc)
                continue
            for job in found:
                kind = self.kinds.get(job.kind)
                state = state_of(job)
                if kind is not None and job.id not in self._mine and self._runs(kind, request_of(kind, state)):
                    self._nursery.start_soon(self._guarded, self._execute, job, state)

    async def _keep_house(self) -> None:
        while True:
            try:
                await self._take_up()
                await self.destroy_due()
            except VOSpaceError as exc:
                log.warning("jobs that are due: %s", exc)
            pause = HOUSEKEEPING_S
            if self._soon:
                pause = min(pause, max(0.0, (self._soon[0][0] - time.time_ns()) / 1e9))
            with trio.move_on_after(pause):
                await self._sooner.wait()
            self._sooner = trio.Event()

    async def destroy_due(self) -> None:
        """Archive jobs at their destruction time, and forget archived ones (R382); end those out of time (R380)."""
        now = time.time_ns()
        while self._soon and self._soon[0][0] <= now:
            known = await self._store.job(heapq.heappop(self._soon)[1])
            if known is not None:
                await self._overdue(known)
        for job in await self._store.jobs(Chosen(due_ns=now, limit=LIST_MAX)):
            if job.phase == ARCHIVED:
                await self._store.remove_job(job.id)
                continue
            if job.phase in OPEN:
                await self.abort(job)
            state = state_of(job)
            state.results = []
            job = msgspec.structs.replace(job, destruction_ns=now + ARCHIVE_S * 10**9)
            await self.change(job, state, ARCHIVED, PHASES)

    async def _overdue(self, job: Job) -> Job:
        """The job, ABORTED if its client did not send the bytes in time."""
        state = state_of(job)
        ends_ns = state.started_ns + state.duration_s * 10**9
        if job.phase != EXECUTING or not state.waiting or not state.duration_s or time.time_ns() < ends_ns:
            return job
        state.ended_ns, state.message = time.time_ns(), f"no bytes came for {state.duration_s} s"
        if await self.change(job, state, ABORTED, (EXECUTING,)) and job.id in self._running:
            self._running[job.id].cancel()
        return await self._store.job(job.id) or job

    def look_again(self, when_ns: int, id: str) -> None:
        """Look at a job again at a time, if house-keeping would be too late."""
        if when_ns < time.time_ns() + 2 * HOUSEKEEPING_S * 10**9 and len(self._soon) < SOON_MAX:
            heapq.heappush(self._soon, (when_ns, id))
            self._sooner.set()

    # -- looking ---------------------------------------------------------------------------------------------------

    async def get(self, kind: str, id: str, subject: Subject) -> Job:
        """A job that the subject may see.  NodeNotFound, PermissionDenied (R405, R406)."""
        job = await self._store.job(id) if id.isalnum() else None
        if job is None or job.kind != kind:
            raise NodeNotFound(f"no job {id[:50]}")
        if job.owner != subject.user and not subject.admin:
            raise PermissionDenied("this is somebody else's job")
        return await self._overdue(job)

    async def wait(self, job: Job, seconds: float) -> Job:
        """The job when its phase is another one, or it is no longer active, or ``seconds`` passed (R408-R411)."""
        with trio.move_on_after(min(seconds, WAIT_S_MAX) if seconds >= 0 else WAIT_S_MAX):
            phase, now = job.phase, job
            while now.phase == phase and phase in ACTIVE:
                event = self.changed
                fresh = await self._store.job(job.id)
                if fresh is None:
                    break
                job = now = fresh
                if now.phase == phase:
                    with trio.move_on_after(POLL_S):
                        await event.wait()
        return job

    # -- end-points of transfers -----------------------------------------------------------------------------------

    async def endpoint_job(self, id: str) -> Job | None:
        """A job that may still move bytes, None if there is none.  PermissionDenied if it is over (R189)."""
        if not id:
            return None
        job = await self._store.job(id)
        if job is None or job.phase not in (EXECUTING, COMPLETED):
            raise PermissionDenied("the transfer is over")
        return job

    async def upload(
        self, job: Job, work: Callable[[Callable[[], Awaitable[None]]], Awaitable[Response]], again: bool = False
    ) -> Response:
        """Take the bytes of a push job, which ``work`` does; an abort of the job stops it.

        ``work`` is given what it must await before anything shows.

        PermissionDenied if they came already: a push end-point is for one upload (R196); unless ``again``.
        """
        state = state_of(job)
        state.uploading, state.waiting = True, True
        scope = trio.CancelScope()
        if self._running.setdefault(job.id, scope) is not scope:
            raise PermissionDenied("an upload to this end-point is under way")
        if not await self.change(job, state, EXECUTING, (EXECUTING, COMPLETED) if again else (EXECUTING,)):
            self._running.pop(job.id)
            raise PermissionDenied("the transfer that this end-point was for is over")
        error: VOSpaceError = TransferFailed("the upload broke off")
        response: Response | None = None
        try:
            with scope:
                response = await work(partial(self.close, job, state))
            if response is None:
                raise PermissionDenied("the transfer was aborted")
            return response
        except VOSpaceError as exc:
            error = exc
            raise
        finally:
            self._running.pop(job.id, None)
            closing = self._closing.pop(job.id, None)
            state.uploading = False
            phase = COMPLETED
            if response is None:
                fail(state, error)
                # Who announced another digest than that of the bytes may send them again.
                phase = EXECUTING if isinstance(error, DigestMismatch) else ERROR
            if phase != EXECUTING:
                state.ended_ns = time.time_ns()
            with trio.CancelScope(shield=True):
                await self.change(job, state, phase, (EXECUTING,))
            if closing is not None:
                closing.set()


def new_id() -> str:
    """A job's id: 96 random bits."""
    return secrets.token_hex(12)


def fail(state: State, exc: VOSpaceError) -> None:
    """Note why a job failed."""
    state.fault, state.message = exc.fault, str(exc)


def encoded(request: Any) -> msgspec.Raw:
    """A kind's request as ``State`` keeps it."""
    return msgspec.Raw(msgspec.json.encode(request))


def _new_state(request: Any, given: dict[str, str]) -> State:
    run_id = given.get("runid", "")
    if not run_id.isprintable() or len(run_id) > RUN_ID_MAX:
        raise InvalidArgument(f"RUNID has up to {RUN_ID_MAX} printable characters")
    return State(encoded(request), run_id, given.get("callback", "")[:CALLBACK_MAX])


def _text(state: State) -> str:
    return msgspec.json.encode(state).decode()


def state_of(job: Job) -> State:
    """What a job's document holds."""
    return msgspec.json.decode(job.document, type=State)


def request_of(kind: Kind, state: State) -> Any:
    """What was asked for."""
    return msgspec.json.decode(state.request, type=kind.shape)
