"""UWS 1.1: the jobs of ``/transfers``, their list, their sub-resources and their life."""

import concurrent.futures
import re
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlencode

import pytest
from lxml import etree

from tests.conftest import Daemon, eventually
from tests.server.support import ROOT, Raw, create, fetch, head, is_fault, store
from tests.vospace.support import (
    ANONYMOUS,
    END_S,
    FORM,
    HREF,
    PULL,
    PUSH,
    UWS,
    VOS,
    XML,
    XSI_NIL,
    Job,
    by_parameters,
    core,
    half_sent,
    is_busy,
    move,
    new_job,
    ran,
    read,
    refused,
    synctrans,
    transfer,
)

holds = pytest.mark.holds
MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


@pytest.fixture
def pending(space: Daemon, folder: str) -> Job:
    """A push that nobody started."""
    return new_job(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))


@pytest.fixture
def executing(space: Daemon, folder: str) -> Job:
    """A push that waits for its bytes."""
    return ran(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"])).reaches("EXECUTING")


@pytest.fixture
def completed(space: Daemon, folder: str) -> Job:
    """A move that was made."""
    create(space, f"{folder}/from")
    return move(space, f"{folder}/from", f"{folder}/to").completed()


@pytest.fixture
def failed(space: Daemon, folder: str) -> Job:
    """A move of nothing."""
    job = move(space, f"{folder}/none", f"{folder}/other")
    job.failed("NodeNotFound")
    return job


@pytest.fixture(params=["completed", "failed", "aborted"])
def ended(request: pytest.FixtureRequest) -> Job:
    """A job in each of its last phases."""
    if request.param == "aborted":
        job: Job = request.getfixturevalue("pending")
        return job.abort().reaches("ABORTED")
    return request.getfixturevalue(request.param)


def listed(daemon: Daemon, query: str = "", headers: dict[str, str] | None = None) -> list[str]:
    """URLs of the jobs in the list."""
    return [ref.get(HREF) or "" for ref in read(daemon, "/transfers" + query, headers)]


def moment(text: str | None) -> datetime:
    """A time of a document."""
    assert text and MOMENT.fullmatch(text), text
    return datetime.fromisoformat(text)


# -- making and running --------------------------------------------------------------------------------------------


@holds("R371", "R131", "R225")
def test_a_new_job_is_pending(space: Daemon, pending: Job) -> None:
    assert pending.phase() == "PENDING"
    root = pending.document()
    assert root.findtext(UWS + "phase") == "PENDING"
    assert root.findtext(UWS + "jobId") == pending.url.rpartition("/")[2]
    assert pending.url in listed(space)


@holds("R373")
def test_run_does_not_wait(space: Daemon, pending: Job) -> None:
    answer = pending.post("/phase", PHASE="RUN")
    assert (answer[0], answer[1]["Location"]) == (303, pending.url)
    assert pending.phase() in ("QUEUED", "EXECUTING")


@holds("R374")
def test_run_is_for_what_waits(ended: Job) -> None:
    phase = ended.phase()
    assert ended.post("/phase", PHASE="RUN")[0] == 403
    assert ended.phase() == phase


@holds("R374")
def test_run_twice(executing: Job) -> None:
    assert executing.post("/phase", PHASE="RUN")[0] == 403
    assert executing.phase() == "EXECUTING"


@holds("R373", "R374")
def test_of_many_runs_one_counts(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/from")
    job = new_job(space, transfer(f"{ROOT}{folder}/from", f"{ROOT}{folder}/to", keep="true"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: job.post("/phase", PHASE="RUN")[0], range(8)))
    assert sorted(statuses) == [303] + [403] * 7
    job.completed()


@holds("R377")
def test_abort_stops_and_keeps(executing: Job) -> None:
    before = executing.results()
    executing.abort().reaches("ABORTED")
    root = executing.document()
    assert root.findtext(UWS + "phase") == "ABORTED" and executing.results() == before != {}
    assert moment(root.findtext(UWS + "endTime"))


@holds("R378")
def test_abort_of_what_ended(ended: Job) -> None:
    phase = ended.phase()
    assert ended.post("/phase", PHASE="ABORT")[0] == 403
    assert ended.phase() == phase


@holds("R379")
@pytest.mark.parametrize(
    "body", ["PHASE=STOP", "PHASE=", "", "RUN", "PHASE=PENDING", "FASE=RUN", "PHASE=run me", "PHASE=COMPLETED"]
)
def test_other_phases_are_refused(pending: Job, body: str) -> None:
    answer = pending.daemon.request("POST", pending.url + "/phase", body.encode(), FORM)
    assert answer[0] == 400 and pending.phase() == "PENDING"


@holds("R379")
@pytest.mark.parametrize("body", ["phase=RUN", "PHASE=RUN&x=y", "x=y&PHASE=RUN", "PHASE=%52UN", "Phase=RUN\r\n"])
def test_phase_is_a_form(pending: Job, body: str) -> None:
    answer = pending.daemon.request("POST", pending.url + "/phase", body.encode(), FORM)
    assert answer[0] == 303
    pending.reaches("EXECUTING")


@holds("R372", "R206")
def test_a_rejected_job_is_none(space: Daemon, folder: str, bob: dict[str, str]) -> None:
    before = listed(space, headers=bob)
    answer = space.request("POST", "/transfers", b"<nothing/>", {**XML, **bob})
    assert is_fault(answer, 400, "InvalidArgument")
    assert listed(space, headers=bob) == before


# -- limits of a job -----------------------------------------------------------------------------------------------


@holds("R380", "R381")
def test_execution_ends_in_time(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    job = new_job(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    assert int(job.text("/executionduration")) >= 0
    answer = job.post("/executionduration", EXECUTIONDURATION="1")
    assert (answer[0], answer[1]["Location"]) == (303, job.url)
    assert job.text("/executionduration") == "1" == job.document().findtext(UWS + "executionDuration")
    job.run().reaches("EXECUTING")
    url, before = job.endpoint(), job.results()
    job.reaches("ABORTED")
    assert job.results() == before
    assert 400 <= space.request("PUT", url, b"new", auth=False)[0] < 500
    assert fetch(space, f"{folder}/n") == b"old"


@holds("R381")
@pytest.mark.parametrize("value", ["-1", "x", "", "1.5"])
def test_bad_durations(pending: Job, value: str) -> None:
    before = pending.text("/executionduration")
    assert pending.post("/executionduration", EXECUTIONDURATION=value)[0] == 400
    assert pending.text("/executionduration") == before
    assert pending.post("/executionduration", OTHER="5")[0] == 400


@holds("R381", "R380")
def test_a_duration_within_the_services_limits(pending: Job) -> None:
    for value in ("0", "60", "999999999999"):
        assert pending.post("/executionduration", EXECUTIONDURATION=value)[0] == 303
        assert re.fullmatch(r"\d+", pending.text("/executionduration"))


@holds("R382", "R383", "R389")
def test_a_job_is_destroyed_in_time(space: Daemon, folder: str) -> None:
    job = ran(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"])).reaches("EXECUTING")
    url = job.endpoint()
    assert moment(job.text("/destruction")) > datetime.now(UTC) + timedelta(minutes=1)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    answer = job.post("/destruction", DESTRUCTION=f"{soon:%Y-%m-%dT%H:%M:%S}.{soon.microsecond // 1000:03d}Z")
    assert (answer[0], answer[1]["Location"]) == (303, job.url)
    assert abs(moment(job.text("/destruction")) - soon) < timedelta(seconds=1)
    assert job.document().findtext(UWS + "destruction") == job.text("/destruction")

    def destroyed() -> bool:
        status, _, body = job.get("/phase")
        return status == 404 or body.strip() == b"ARCHIVED"

    eventually("destroyed", destroyed)
    assert 400 <= space.request("PUT", url, b"new", auth=False)[0] < 500
    assert job.url not in listed(space)
    # What is archived is found by that phase only.
    assert (job.url in listed(space, "?PHASE=ARCHIVED")) == (job.get("/phase")[0] == 200)
    assert job.get("/results/transferDetails")[0] == 404
    assert space.request("GET", f"/nodes{folder}/n")[0] == 404


@holds("R383")
@pytest.mark.parametrize("value", ["tomorrow", "2026-13-01T00:00:00Z", "", "12345"])
def test_bad_destructions(pending: Job, value: str) -> None:
    before = pending.text("/destruction")
    assert pending.post("/destruction", DESTRUCTION=value)[0] == 400
    assert pending.text("/destruction") == before


@holds("R383")
@pytest.mark.parametrize(
    "value", ["2999-01-01T00:00:00Z", "2999-01-01T00:00:00.000Z", "2999-01-01T00:00:00", "2999-01-01"]
)
def test_a_destruction_within_the_services_limits(pending: Job, value: str) -> None:
    assert pending.post("/destruction", DESTRUCTION=value)[0] == 303
    assert moment(pending.text("/destruction")) > datetime.now(UTC)


@holds("R384", "R399")
def test_nobody_knows_when_it_ends(pending: Job) -> None:
    assert pending.text("/quote") == ""
    quote = pending.document().find(UWS + "quote")
    assert quote is None or quote.get(XSI_NIL) == "true"


# -- deletion ------------------------------------------------------------------------------------------------------


@holds("R385", "R386")
@pytest.mark.parametrize("how", ["DELETE", "ACTION"])
def test_deletion(space: Daemon, folder: str, executing: Job, how: str) -> None:
    url = executing.endpoint()
    answer = space.request("DELETE", executing.url) if how == "DELETE" else executing.post("", ACTION="DELETE")
    assert (answer[0], answer[1]["Location"]) == (303, space.url + "/transfers")
    for what in ("", "/phase", "/results", "/error", "/results/transferDetails"):
        assert executing.get(what)[0] == 404
    assert executing.url not in listed(space)
    assert 400 <= space.request("PUT", url, b"new", auth=False)[0] < 500
    assert space.request("GET", f"/nodes{folder}/n")[0] == 404


@holds("R385", "R191")
def test_deletion_stops_what_goes_on(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    with half_sent(space, job.endpoint(), bytes(100_000)) as raw:
        eventually("busy", lambda: is_busy(space, f"{folder}/n"))
        assert space.request("DELETE", job.url)[0] == 303
        raw.send_anyway(bytes(50_000))
        assert refused(raw)
    eventually("not busy", lambda: not is_busy(space, f"{folder}/n"))
    assert fetch(space, f"{folder}/n") == b"old"


@holds("R386")
def test_other_actions_do_nothing(pending: Job) -> None:
    for form in ({"ACTION": "REMOVE"}, {}, {"ACTION": ""}):
        assert pending.post("", **form)[0] == 400
    assert pending.phase() == "PENDING"


@holds("R387")
@pytest.mark.parametrize(
    "what", ["phase", "executionduration", "destruction", "quote", "error", "owner", "parameters", "results"]
)
def test_sub_resources_stay(space: Daemon, completed: Job, what: str) -> None:
    assert space.request("DELETE", f"{completed.url}/{what}")[0] in (403, 405)
    assert completed.phase() == "COMPLETED" and "destination" in completed.results()


# -- the list ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def some(space: Daemon, bob: dict[str, str]) -> Iterator[list[Job]]:
    """Four jobs of bob's, oldest first: PENDING, ERROR, ABORTED, PENDING."""
    for url in listed(space, headers=bob):
        assert space.request("DELETE", url, headers=bob)[0] == 303
    jobs: list[Job] = []
    for number in range(4):
        job = new_job(space, transfer(f"{ROOT}/none/n{number}", PULL, ["httpget"]), bob)
        if number == 1:
            job.run().reaches("ERROR")
        elif number == 2:
            job.abort().reaches("ABORTED")
        jobs.append(job)
        # Times have milliseconds: the next job must come later.
        created = job.document().findtext(UWS + "creationTime") or ""
        eventually(
            "a later time", lambda created=created: datetime.now(UTC) > moment(created) + timedelta(milliseconds=2)
        )  # type: ignore[misc]
    yield jobs
    for job in jobs:
        space.request("DELETE", job.url, headers=bob)


@holds("R388", "R394", "R407", "R396")
def test_the_list(space: Daemon, some: list[Job], bob: dict[str, str]) -> None:
    root = read(space, "/transfers", bob)
    assert (root.tag, root.get("version")) == (UWS + "jobs", "1.1")
    assert {ref.get(HREF) for ref in root} == {job.url for job in some}
    for ref in root:
        job = Job(space, ref.get(HREF) or "", bob)
        document = job.document()
        assert ref.get("id") == document.findtext(UWS + "jobId")
        for name in ("phase", "ownerId", "creationTime"):
            assert ref.findtext(UWS + name) == document.findtext(UWS + name) != ""
    assert read(space, "/transfers/", bob).tag == UWS + "jobs"


@holds("R407", "R406")
def test_nobody_sees_anothers_jobs(space: Daemon, some: list[Job], alice: dict[str, str]) -> None:
    for who in (alice, ANONYMOUS):
        status, _, body = space.request("GET", "/transfers", headers=who)
        assert status == 403 or not {ref.get(HREF) for ref in etree.fromstring(body)} & {job.url for job in some}
        for job in some:
            for what in (
                "",
                "/phase",
                "/results",
                "/owner",
                "/error",
                "/parameters",
                "/events",
                "?WAIT=30",
                "/nonsense",
            ):
                assert space.request("GET", job.url + what, headers=who)[0] == 403
            assert space.request("DELETE", job.url, headers=who)[0] == 403
            for what, form in (
                ("/phase", {"PHASE": "RUN"}),
                ("", {"ACTION": "DELETE"}),
                ("/destruction", {"DESTRUCTION": "2999-01-01"}),
            ):
                assert space.request("POST", job.url + what, urlencode(form).encode(), {**FORM, **who})[0] == 403
    assert some[0].phase() == "PENDING"


@holds("R389")
def test_filter_by_phase(space: Daemon, some: list[Job], bob: dict[str, str]) -> None:
    urls = [job.url for job in some]
    for query, found in [
        ("PHASE=PENDING", {urls[0], urls[3]}),
        ("PHASE=ERROR", {urls[1]}),
        ("PHASE=ERROR&PHASE=ABORTED", {urls[1], urls[2]}),
        ("phase=ABORTED", {urls[2]}),
        ("PHASE=COMPLETED", set()),
        ("PHASE=ARCHIVED", set()),
    ]:
        assert set(listed(space, "?" + query, bob)) == found, query


@holds("R390")
def test_filter_by_time(space: Daemon, some: list[Job], bob: dict[str, str]) -> None:
    for number, job in enumerate(some):
        after = job.document().findtext(UWS + "creationTime") or ""
        assert set(listed(space, f"?AFTER={after}", bob)) == {later.url for later in some[number + 1 :]}
        assert set(listed(space, f"?AFTER={after.removesuffix('Z')}", bob)) == {
            later.url for later in some[number + 1 :]
        }
    assert set(listed(space, "?AFTER=2000-01-01T00:00:00Z", bob)) == {job.url for job in some}
    assert listed(space, "?AFTER=2999-01-01T00:00:00Z", bob) == []


@holds("R391")
def test_the_last_ones(space: Daemon, some: list[Job], bob: dict[str, str]) -> None:
    newest_first = [job.url for job in reversed(some)]
    for count in (1, 2, 4, 100):
        assert listed(space, f"?LAST={count}", bob) == newest_first[:count]


@holds("R392")
def test_filters_together(space: Daemon, some: list[Job], bob: dict[str, str]) -> None:
    urls = [job.url for job in some]
    after = some[0].document().findtext(UWS + "creationTime")
    assert listed(space, f"?PHASE=PENDING&AFTER={after}", bob) == [urls[3]]
    assert listed(space, "?PHASE=PENDING&LAST=1", bob) == [urls[3]]
    assert listed(space, f"?PHASE=ERROR&PHASE=ABORTED&AFTER={after}&LAST=1", bob) == [urls[2]]


@holds("R392")
@pytest.mark.parametrize(
    "query", ["LAST=0", "LAST=-1", "LAST=x", "LAST=1.5", "LAST=", "AFTER=yesterday", "AFTER=", "PHASE=DONE", "PHASE="]
)
def test_bad_filters(space: Daemon, query: str) -> None:
    assert space.request("GET", "/transfers?" + query)[0] == 400


# -- the documents -------------------------------------------------------------------------------------------------


@holds("R393", "R394", "R395", "R396", "R397", "R12")
def test_the_job_document(completed: Job, failed: Job, pending: Job) -> None:
    for job, started, over in ((completed, True, True), (failed, True, True), (pending, False, False)):
        root = job.document()
        assert (root.tag, root.get("version")) == (UWS + "job", "1.1")
        order = [etree.QName(e).localname for e in root]
        known = ["jobId", "runId", "ownerId", "phase", "quote", "creationTime", "startTime", "endTime", "executionDuration",
                 "destruction", "parameters", "results", "errorSummary", "jobInfo"]  # fmt: skip
        assert order == [name for name in known if name in order]
        assert {"ownerId", "startTime", "endTime", "destruction", "results", "jobInfo"} <= set(order)
        created = moment(root.findtext(UWS + "creationTime"))
        assert datetime.now(UTC) - timedelta(minutes=2) < created <= datetime.now(UTC)
        for name, known_now in (("startTime", started), ("endTime", over)):
            element = root.find(UWS + name)
            assert element is not None
            if known_now:
                assert moment(element.text) >= created
            else:
                assert (element.get(XSI_NIL), element.text) == ("true", None)
        assert moment(root.findtext(UWS + "destruction")) > created


@holds("R398", "R399")
def test_the_owner(space: Daemon, folder: str, alice: dict[str, str]) -> None:
    job = new_job(space, transfer(f"{ROOT}{folder}/n", PULL, ["httpget"]), alice)
    assert job.document().findtext(UWS + "ownerId") == job.text("/owner") == "alice"


@holds("R398", "R369")
def test_a_job_of_nobody(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"public")
    assert space.request("GET", f"/nodes{folder}/n", headers=ANONYMOUS)[0] == 200
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PULL, ["httpget"]), ANONYMOUS)
    owner = job.document().find(UWS + "ownerId")
    assert owner is not None and (owner.get(XSI_NIL), owner.text) == ("true", None)
    assert job.text("/owner") == ""
    assert space.request("GET", job.endpoint(), auth=False)[2] == b"public"


@holds("R399")
def test_which_are_text_and_which_xml(completed: Job, failed: Job) -> None:
    for what in ("phase", "executionduration", "destruction", "quote", "owner"):
        completed.text("/" + what)
    failed.text("/error")
    for what in ("", "/results", "/parameters"):
        status, headers, _ = completed.get(what)
        assert status == 200 and headers["Content-Type"].split(";")[0] in ("text/xml", "application/xml")


@holds("R400")
def test_results(space: Daemon, executing: Job, completed: Job, pending: Job) -> None:
    for job, ids in ((executing, {"transferDetails", "dataNode"}), (completed, {"destination"}), (pending, set())):
        root = read(space, job.url + "/results")
        assert root.tag == UWS + "results"
        found = [result.get("id") for result in root]
        assert set(found) >= ids and len(found) == len(set(found))
        assert all(result.get(HREF) for result in root)
        assert {result.get("id"): result.get(HREF) for result in root} == job.results()


@holds("R401")
def test_parameters(space: Daemon, pending: Job) -> None:
    assert read(space, pending.url + "/parameters").tag == UWS + "parameters"
    assert pending.document().find(f"{UWS}jobInfo/{VOS}transfer") is not None


@holds("R402", "R403", "R404", "R147")
def test_a_failed_job(failed: Job, completed: Job, pending: Job) -> None:
    summary = failed.document().find(UWS + "errorSummary")
    assert summary is not None
    assert summary.get("type") in ("fatal", "transient") and summary.get("hasDetail") == "true"
    assert summary.findtext(UWS + "message") == "Node Not Found"
    assert failed.text("/error").split()[0] == "NodeNotFound" and len(failed.text("/error").split()) > 1
    for job in (completed, pending):
        assert job.get("/error")[0] == 404
        assert job.document().find(UWS + "errorSummary") is None


@holds("R405")
def test_what_is_not_there(space: Daemon, completed: Job) -> None:
    for what in ("/nonsense", "/results/nonsense", "/phase/x", "/results/transferDetails/x"):
        assert completed.get(what)[0] == 404
    for url in ("/transfers/nonsense", "/transfers/" + "0" * 24, "/transfers/%00", "/transfers/0/phase"):
        assert space.request("GET", url)[0] == 404
        assert space.request("DELETE", url)[0] in (404, 405)
    assert space.request("POST", "/transfers/" + "0" * 24 + "/phase", b"PHASE=RUN", FORM)[0] == 404


@holds("R412")
def test_a_run_id_is_kept(space: Daemon, folder: str) -> None:
    text = "my run & \u00e9 <1>"
    query = "?" + urlencode({"RUNID": text})
    job = new_job(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]), query=query)
    assert job.document().findtext(UWS + "runId") == text
    (ref,) = [ref for ref in read(space, "/transfers") if ref.get(HREF) == job.url]
    assert ref.findtext(UWS + "runId") in (text, None)


@holds("R414")
@pytest.mark.parametrize("accept", ["application/xml,text/plain", "*/*", "text/xml", ""])
def test_xml_wins(space: Daemon, completed: Job, accept: str) -> None:
    headers = {"Accept": accept} if accept else {}
    for resource in (completed.url, "/transfers"):
        status, answered, body = space.request("GET", resource, headers=headers)
        assert (status, answered["Content-Type"].split(";")[0]) == (200, "text/xml")
        assert etree.fromstring(body).tag.startswith(UWS)


# -- waiting -------------------------------------------------------------------------------------------------------


def waited(job: Job, query: str) -> tuple[str, float]:
    """The phase that a blocking GET tells, and how long it took."""
    start = time.monotonic()
    root = job.document(query)
    return root.findtext(UWS + "phase") or "", time.monotonic() - start


@holds("R408")
def test_wait_ends_with_the_time(pending: Job) -> None:
    phase, seconds = waited(pending, "?WAIT=1")
    assert phase == "PENDING" and 0.9 < seconds < END_S
    assert waited(pending, "?WAIT=0")[1] < 0.9


@holds("R408")
@pytest.mark.parametrize("query", ["?WAIT=30", "?wait=30", "?WAIT=-1", "?WAIT=30&PHASE=PENDING"])
def test_wait_ends_with_the_phase(pending: Job, query: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool, Raw(pending.daemon, timeout_s=END_S) as raw:
        raw.send(head(pending.daemon, "GET", pending.url.removeprefix(pending.daemon.url) + query))
        # The next answer on this connection shows that nothing came before it was aborted.
        aborted = pool.submit(pending.abort)
        answer = raw.answer()
        aborted.result(END_S)
    assert answer.status == 200
    assert etree.fromstring(answer.body).findtext(UWS + "phase") == "ABORTED"


@holds("R408", "R187")
def test_wait_hears_of_the_bytes(space: Daemon, executing: Job) -> None:
    url = executing.endpoint()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waited, executing, "?WAIT=30")
        assert space.request("PUT", url, b"bytes", auth=False)[0] == 201
        phase, seconds = waiting.result(END_S)
    assert phase == "COMPLETED" and seconds < END_S


@holds("R409")
def test_wait_for_what_is_over(ended: Job) -> None:
    phase, seconds = waited(ended, "?WAIT=30")
    assert phase == ended.phase() and seconds < END_S
    assert waited(ended, f"?WAIT=30&PHASE={phase}")[1] < END_S
    assert waited(ended, "?WAIT=-1")[1] < END_S


@holds("R410")
def test_wait_in_another_phase(pending: Job, executing: Job) -> None:
    assert waited(pending, "?WAIT=30&PHASE=EXECUTING")[1] < END_S
    assert waited(executing, "?WAIT=30&PHASE=PENDING")[1] < END_S
    assert waited(executing, "?WAIT=1&PHASE=EXECUTING")[1] > 0.9


@holds("R408")
@pytest.mark.parametrize("query", ["WAIT=x", "WAIT=-2", "WAIT=1.5", "WAIT=-", "WAIT=%C2%B2"])
def test_bad_waits(pending: Job, query: str) -> None:
    assert is_fault(pending.get("?" + query), 400, "InvalidArgument")


# -- restarts ------------------------------------------------------------------------------------------------------


@holds("R413")
def test_jobs_survive_a_restart(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    store(daemon, "/n", b"old")
    pending = new_job(daemon, transfer(f"{ROOT}/n", PULL, ["httpget"]))
    failed = ran(daemon, transfer(f"{ROOT}/none", PULL, ["httpget"])).reaches("ERROR")
    create(daemon, "/m")
    moved = move(daemon, "/m", "/o").completed()
    uploading = synctrans(daemon, transfer(f"{ROOT}/n", PUSH, ["httpput"]))
    with half_sent(daemon, uploading.endpoint(), bytes(100_000)):
        eventually("busy", lambda: is_busy(daemon, "/n"))
        documents = {job.url: job.get()[2] for job in (pending, failed, moved)}
        daemon.stop(signal.SIGKILL)
    again = make_daemon(port=daemon.port)
    for job in (pending, failed, moved, uploading):
        job.daemon = again
    assert {job.url: job.get()[2] for job in (pending, failed, moved)} == documents
    uploading.reaches("ERROR")
    assert (fetch(again, "/n"), is_busy(again, "/n")) == (b"old", False)
    pending.run()
    eventually("details", lambda: "transferDetails" in pending.results())


@holds("R12", "R373")
def test_events_of_a_job(space: Daemon, pending: Job) -> None:
    """Server-sent events: each phase as it comes, until the last."""
    with Raw(space, timeout_s=END_S) as raw:
        raw.send(
            head(
                space,
                "GET",
                pending.url.removeprefix(space.url) + "/events",
                "Accept: text/event-stream",
                "Connection: close",
            )
        )
        start = raw.head()
        assert (start.status, start.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        pending.run().reaches("EXECUTING")
        assert space.request("PUT", pending.endpoint(), b"bytes", auth=False)[0] == 201
        text = raw.rest().decode()
    phases = re.findall(r"PENDING|QUEUED|EXECUTING|COMPLETED|ERROR|ABORTED", text)
    assert list(dict.fromkeys(phases)) == [p for p in ("PENDING", "QUEUED", "EXECUTING", "COMPLETED") if p in phases]
    assert phases[-1] == "COMPLETED" and "EXECUTING" in phases


@holds("R34", "R372")
def test_parameters_make_no_job(space: Daemon, folder: str, bob: dict[str, str]) -> None:
    before = listed(space, headers=bob)
    answer = by_parameters(space, bob, TARGET=f"{ROOT}{folder}/none", DIRECTION=PULL, PROTOCOL=core("httpget"))
    assert is_fault(answer, 404, "NodeNotFound")
    assert listed(space, headers=bob) == before
