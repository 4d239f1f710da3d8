"""The resources of the Universal Worker Service 1.1: a list of jobs, each with its document, limits and results.

How jobs live is ``jobs.py``'s affair; here they are shown, waited for and told what to do.
"""

import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import trio

from server.access import Subject
from server.http import Request, Response
from server.jobs import DESTRUCTION_S_MAX, DURATION_S_MAX, LIST_MAX, OPEN, POLL_S, Jobs, State, request_of, state_of
from server.parameters import all_parameters, instant_ns, is_count, parameters
from server.service import text, xml
from vosfs.errors import InvalidArgument, NodeNotFound
from vosfs.metadata import xml as documents
from vosfs.metadata.job import ACTIVE, ARCHIVED, PHASES, Chosen, Job

FORM_BYTES_MAX = 64 * 1024
KEEPALIVE_S = 15.0
"""Between comments on a silent event stream."""

_UWS = (
    'xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" xmlns:xlink="http://www.w3.org/1999/xlink"'
    f' xmlns:xsi="{documents.XSI}"'
)


def _element(name: str, text: str) -> str:
    return f"<uws:{name}>{text}</uws:{name}>" if text else f'<uws:{name} xsi:nil="true"/>'


def _time(ns: int) -> str:
    return documents.timestamp(ns) + "Z" if ns else ""


def spaced(fault: str) -> str:
    """``NodeNotFound`` -> ``Node Not Found``, the form of errorSummary."""
    return "".join(" " + c if c.isupper() else c for c in fault).strip().replace("U R I", "URI")


def document(jobs: Jobs, job: Job) -> bytes:
    """The ``uws:job`` document (R393)."""
    kind, state, escape = jobs.kinds[job.kind], state_of(job), documents.escape
    request = request_of(kind, state)
    parts = [
        f'<?xml version="1.0" encoding="UTF-8"?>\n<uws:job {_UWS} version="1.1"><uws:jobId>{job.id}</uws:jobId>',
        f"<uws:runId>{escape(state.run_id)}</uws:runId>" if state.run_id else "",
        _element("ownerId", escape(job.owner)),
        f"<uws:phase>{job.phase}</uws:phase>" + _element("quote", ""),
        _element("creationTime", _time(job.created_ns)),
        _element("startTime", _time(state.started_ns)),
        _element("endTime", _time(state.ended_ns)),
        f"<uws:executionDuration>{state.duration_s}</uws:executionDuration>",
        _element("destruction", _time(job.destruction_ns)),
        f"<uws:parameters/>{_results(jobs, job, state)}",
    ]
    if state.fault:
        summary = escape(kind.error_form(request, state.fault))
        parts.append(
            f'<uws:errorSummary type="fatal" hasDetail="true"><uws:message>{summary}</uws:message></uws:errorSummary>'
        )
    parts.append(f"<uws:jobInfo>{kind.info(request)}</uws:jobInfo></uws:job>")
    return "".join(parts).encode()


def _results(jobs: Jobs, job: Job, state: State, namespaces: str = "") -> str:
    base = f"{jobs.service.base_url}/{job.kind}/{job.id}/results/"
    lines = []
    for result in state.results:
        href = base + result.id if result.document else result.href
        lines.append(f'<uws:result id="{result.id}" xlink:href="{documents.escape(href)}"/>')
    return f"<uws:results{namespaces}>{''.join(lines)}</uws:results>"


async def handle(jobs: Jobs, request: Request, kind: str, rest: str, subject: Subject) -> Response:
    """``/KIND[/ID[/...]]``, but for the creation of a job."""
    id, _, what = rest.removesuffix("/").partition("/")
    if not id:
        return await _list(jobs, request, kind, subject)
    job = await jobs.get(kind, id, subject)
    if request.method == "DELETE":
        if what:
            return text(405, "PermissionDenied a job's resources cannot be deleted\n", [("Allow", "GET, POST")])
        await jobs.remove(job)
        return Response(303, [("Location", f"{jobs.service.base_url}/{kind}")])
    if request.method == "POST":
        return await _post(jobs, request, job, what, subject)
    if what == "":
        job = await _waited(jobs, request, job)
        return xml(document(jobs, job))
    if what == "phase":
        return text(200, (await _waited(jobs, request, job)).phase)
    return _resource(jobs, job, what)


async def _waited(jobs: Jobs, request: Request, job: Job) -> Job:
    given = parameters(request.query)
    seconds = given.get("wait", "")
    if not seconds or job.phase not in ACTIVE:
        return job
    if seconds != "-1" and not is_count(seconds):
        raise InvalidArgument(f"WAIT: {seconds[:20]!r} is not a number of seconds")
    if given.get("phase", job.phase).upper() != job.phase:
        return job
    # The engine ends a request that thinks for longer than its deadline, which is above WAIT_S_MAX.
    return await jobs.wait(job, float(seconds))


def _resource(jobs: Jobs, job: Job, what: str) -> Response:
    state = state_of(job)
    plain = {
        "executionduration": str(state.duration_s),
        "destruction": _time(job.destruction_ns),
        "quote": "",
        "owner": job.owner,
    }
    if what in plain:
        return text(200, plain[what])
    if what == "error" and state.fault:
        return text(200, f"{state.fault} {state.message}".rstrip())
    if what == "parameters":
        return xml(f'<?xml version="1.0" encoding="UTF-8"?>\n<uws:parameters {_UWS}/>'.encode())
    if what == "results":
        inner = _results(jobs, job, state, " " + _UWS)
        return xml(f'<?xml version="1.0" encoding="UTF-8"?>\n{inner}'.encode())
    if what == "events":
        return Response(200, [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store")], _events(jobs, job))
    for result in state.results:
        if what == f"results/{result.id}":
            if result.document:
                return xml(result.document.encode())
            return Response(303, [("Location", result.href)])
    raise NodeNotFound(f"job {job.id} has no {what[:50]}")


async def _events(jobs: Jobs, job: Job) -> AsyncGenerator[bytes]:
    """Every phase as a server-sent event, until the last."""
    yield b"event: phase\ndata: %s\n\n" % job.phase.encode()
    quiet = trio.current_time()
    while job.phase in OPEN:
        now = await jobs.service.store.job(job.id)
        if now is None:
            return
        if now.phase != job.phase:
            job, quiet = now, trio.current_time()
            yield b"event: phase\ndata: %s\n\n" % job.phase.encode()
            continue
        if trio.current_time() - quiet > KEEPALIVE_S:
            quiet = trio.current_time()
            yield b": still here\n\n"
        with trio.move_on_after(POLL_S):
            await jobs.changed.wait()


async def _post(jobs: Jobs, request: Request, job: Job, what: str, subject: Subject) -> Response:
    given = parameters((await request.read(FORM_BYTES_MAX)).decode("utf-8", "replace"))
    given = {**parameters(request.query), **given}
    name = {"phase": "phase", "executionduration": "executionduration", "destruction": "destruction"}.get(what)
    if what == "":
        name = next((n for n in ("action", "phase", "destruction", "executionduration") if n in given), None)
    elif name is None:
        return text(405, "InvalidArgument this resource only answers GET\n", [("Allow", "GET, HEAD")])
    if name is None or name not in given:
        raise InvalidArgument("a job takes PHASE, DESTRUCTION, EXECUTIONDURATION or ACTION=DELETE")
    value = given[name].strip()
    if name == "action":
        if value.upper() != "DELETE":
            raise InvalidArgument(f"ACTION is DELETE, not {value[:20]!r}")
        await jobs.remove(job)
        return Response(303, [("Location", f"{jobs.service.base_url}/{job.kind}")])
    if name == "phase":
        await _set_phase(jobs, job, value.upper())
    else:
        await _set_limit(jobs, job, name, value)
    return Response(303, [("Location", f"{jobs.service.base_url}/{job.kind}/{job.id}")])


async def _set_phase(jobs: Jobs, job: Job, phase: str) -> None:
    if phase == "RUN":
        await jobs.start(job)
    elif phase == "ABORT":
        await jobs.abort(job)
    else:
        raise InvalidArgument(f"PHASE is RUN or ABORT, not {phase[:20]!r}")


async def _set_limit(jobs: Jobs, job: Job, name: str, value: str) -> None:
    """Destruction time or duration; what is beyond the service's limits is replaced by them (R381, R383)."""
    state = state_of(job)
    if name == "executionduration":
        if not is_count(value):
            raise InvalidArgument(f"EXECUTIONDURATION: {value[:20]!r} is not a number of seconds")
        state.duration_s = min(int(value) or DURATION_S_MAX, DURATION_S_MAX)
    else:
        longest = time.time_ns() + DESTRUCTION_S_MAX * 10**9
        job = msgspec.structs.replace(job, destruction_ns=min(instant_ns(value), longest))
    await jobs.change(job, state, job.phase, (job.phase,))
    jobs.look_again(job.destruction_ns, job.id)
    if state.started_ns:
        jobs.look_again(state.started_ns + state.duration_s * 10**9, job.id)
    if job.destruction_ns < time.time_ns():
        await jobs.destroy_due()


async def _list(jobs: Jobs, request: Request, kind: str, subject: Subject) -> Response:
    """The caller's jobs, chosen by PHASE, AFTER and LAST (R388-R392)."""
    given = all_parameters(request.query)
    phases = tuple(value.upper() for value in given.get("phase", []))
    if any(phase not in PHASES for phase in phases):
        raise InvalidArgument(f"PHASE is one of {', '.join(PHASES)}")
    after_ns = instant_ns(given["after"][0]) if "after" in given else -1
    last = given.get("last", [""])[0]
    if "last" in given and not (is_count(last) and int(last)):
        raise InvalidArgument(f"LAST: {last[:20]!r} is not a positive number")
    found: list[Job] = []
    if not subject.anonymous:
        chosen = Chosen(
            kind, subject.user, phases or tuple(p for p in PHASES if p != ARCHIVED), after_ns, newest=bool(last),
            limit=min(int(last or LIST_MAX), LIST_MAX),
        )  # fmt: skip
        found = await jobs.service.store.jobs(chosen)
    lines = [
        f'<uws:jobref id="{job.id}" xlink:href="{documents.escape(jobs.service.base_url)}/{kind}/{job.id}">'
        f"<uws:phase>{job.phase}</uws:phase>{_element('ownerId', documents.escape(job.owner))}"
        f"<uws:creationTime>{_time(job.created_ns)}</uws:creationTime></uws:jobref>"
        for job in found
    ]
    return xml(
        f'<?xml version="1.0" encoding="UTF-8"?>\n<uws:jobs {_UWS} version="1.1">{"".join(lines)}</uws:jobs>'.encode()
    )


async def created(jobs: Jobs, kind: str, subject: Subject, asked: Any, request: Request) -> Response:
    """A new job, run at once if the URL says so: 303 to it (R131, R195)."""
    given = parameters(request.query)
    if given.get("phase", "").upper() == "RUN":
        job = await jobs.create_and_run(kind, subject, asked, given)
    else:
        job = await jobs.create(kind, subject.user, asked, given)
    return Response(303, [("Location", f"{jobs.service.base_url}/{kind}/{job.id}")])
