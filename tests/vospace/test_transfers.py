"""pushToVoSpace and pullFromVoSpace: what is negotiated, by document and by parameters, and what becomes of the job."""

import concurrent.futures
from urllib.parse import urlencode

import pytest

from tests.conftest import Daemon, eventually
from tests.server.support import ROOT, create, fetch, is_fault, store, update
from tests.vospace.support import (
    ANONYMOUS,
    FORM,
    PULL,
    PULL_TO,
    PUSH,
    PUSH_FROM,
    UWS,
    VOS,
    XML,
    Protocol,
    by_parameters,
    core,
    endpoints,
    exists,
    half_sent,
    is_busy,
    move,
    names,
    new_job,
    node_at,
    pull,
    push,
    ran,
    read,
    refused,
    synctrans,
    transfer,
    valid,
)
from vosfs.metadata.node import CORE

holds = pytest.mark.holds
BASIC, OAUTH, TOKEN = "ivo://ivoa.net/sso#BasicAA", "ivo://ivoa.net/sso#OAuth", "ivo://ivoa.net/sso#token"
BIG = bytes(range(256)) * 400


# -- common to all -------------------------------------------------------------------------------------------------


@holds("R166", "R169", "R171", "R353", "R355", "R350", "R182")
def test_the_whole_request_is_understood_and_echoed(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x")
    protocols: list[str | Protocol] = [
        Protocol("urn:x:gopher", methods=("urn:x:none", BASIC), params={"urn:x:p": "1"}),
        Protocol("httpget", methods=(BASIC, OAUTH)),
        Protocol("httpget"),
    ]
    document = transfer(
        f"{ROOT}{folder}/n", PULL, protocols, "binaryview", params={CORE + "length": "1", "urn:x:q": "a<b"}
    )
    job = ran(space, document)
    given, echoed = valid(document), job.document().find(f"{UWS}jobInfo/{VOS}transfer")
    assert echoed is not None

    def listing(root: object) -> list[tuple[str, str | None, str]]:
        return [(e.tag, e.get("uri"), (e.text or "").strip()) for e in root.iter()]  # type: ignore[attr-defined]

    assert listing(echoed)[1:] == listing(given)[1:]
    assert echoed.findtext(VOS + "target") == f"{ROOT}{folder}/n"


@holds("R350", "R353", "R166", "R169")
@pytest.mark.parametrize("original", ["", "true", "false"])
@pytest.mark.parametrize("uri", [CORE + "binaryview", "urn:x:view", "http://example.org/views#v"])
def test_a_view_is_understood_whole(space: Daemon, folder: str, uri: str, original: str) -> None:
    attribute = f' original="{original}"'.encode() if original else b""
    document = transfer(f"{ROOT}{folder}/n", PULL, ["httpget"], uri, view_params={"urn:x:a": "1 & 2", "urn:x:b": ""})
    job = new_job(space, document.replace(uri.encode() + b'"', uri.encode() + b'"' + attribute))
    (view,) = job.document().iterfind(f"{UWS}jobInfo/{VOS}transfer/{VOS}view")
    assert (view.get("uri"), view.get("original", "true")) == (uri, original or "true")
    assert [(e.get("uri"), e.text or "") for e in view] == [("urn:x:a", "1 & 2"), ("urn:x:b", "")]


@holds("R170", "R171", "R183", "R184", "R185", "R174", "R43", "R240", "R239")
@pytest.mark.parametrize("how", [synctrans, ran])
@pytest.mark.parametrize(("direction", "protocol"), [(PUSH, "httpput"), (PULL, "httpget")])
def test_the_result_of_a_negotiation(space: Daemon, folder: str, how: object, direction: str, protocol: str) -> None:
    assert callable(how)
    store(space, f"{folder}/n", BIG)
    params = {CORE + "length": str(len(BIG))}
    job = how(space, transfer(f"{ROOT}{folder}/n", direction, [protocol], "binaryview", params=params))
    job.reaches("EXECUTING") if direction == PUSH else eventually("details", lambda: bool(job.results()))
    results = job.results()
    assert results["transferDetails"] == job.url + "/results/transferDetails"
    assert results["dataNode"] == f"{ROOT}{folder}/n"
    details = job.details()
    assert details.findtext(VOS + "target") == f"{ROOT}{folder}/n"
    assert details.findtext(VOS + "direction") == direction
    assert [e.get("uri") for e in details.findall(VOS + "view")] == [core("binaryview")]
    assert {e.get("uri"): e.text for e in details.findall(VOS + "param")} == params
    assert details.findall(VOS + "protocol")
    for name, url in endpoints(details):
        assert name == protocol and url.startswith(space.url)
        if direction == PULL:
            assert space.request("GET", url, auth=False)[2] == BIG


@holds("R43", "R354")
def test_each_provided_protocol_gives_an_end_point(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x")
    provided = [e.get("uri") or "" for e in read(space, "/protocols").findall(f"{VOS}provides/{VOS}protocol")]
    core_ones = [uri.removeprefix(CORE) for uri in provided if uri.startswith(CORE)]
    assert {"httpget", "httpput"} <= set(core_ones)
    for name in core_ones:
        direction = PUSH if name.endswith("put") else PULL
        ((shown, url),) = endpoints(synctrans(space, transfer(f"{ROOT}{folder}/n", direction, [name])).details())
        assert (shown, url.split(":")[0] in ("http", "https")) == (name, True)
        # A secure end-point is never called a plain one.
        assert not (url.startswith("https:") and name in ("httpget", "httpput"))


@holds("R167")
@pytest.mark.parametrize(
    "direction", ["", "sideways", "PushToVoSpace", "pushToVoSpace ", "http://example.org/", "pullfromvospace"]
)
def test_no_other_direction(space: Daemon, folder: str, direction: str) -> None:
    store(space, f"{folder}/n", b"x")
    document = transfer(f"{ROOT}{folder}/n", direction, ["httpget", "httpput"], keep="false")
    answer = space.request("POST", "/transfers?PHASE=RUN", document, XML)
    if direction.strip() in (PUSH,):
        # White space around a token is no part of it, if it is let in at all.
        assert answer[0] in (303, 400)
    elif answer[0] == 303:
        job = new_job(space, document, query="?PHASE=RUN")
        job.failed("InvalidArgument")
    else:
        assert is_fault(answer, 400, "InvalidArgument")


@holds("R168", "R299", "R243")
@pytest.mark.parametrize(
    "target", ["vos://example.com!vospace/n", "ivo://vosfs.local/vospace", "http://example.com/n", "n"]
)
@pytest.mark.parametrize("how", [synctrans, ran])
def test_targets_are_nodes_of_this_space(space: Daemon, target: str, how: object) -> None:
    assert callable(how)
    how(space, transfer(target, PULL, ["httpget"])).failed("InvalidURI")
    how(space, transfer(target, PUSH, ["httpput"])).failed("InvalidURI")


@holds("R172", "R173", "R174", "R175", "R177", "R368", "R365")
def test_protocols_and_security_methods(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x")
    protocols: list[str | Protocol] = [
        "urn:x:unknown",
        Protocol("httpsget", methods=("urn:x:sso",)),
        Protocol("httpget", methods=("urn:x:sso", TOKEN)),
        Protocol("httpget", methods=(OAUTH,)),
        Protocol("httpget"),
        Protocol("httpput", methods=(OAUTH,)),
    ]
    details = synctrans(space, transfer(f"{ROOT}{folder}/n", PULL, protocols)).details()
    found = [
        ((p.get("uri") or "").removeprefix(CORE), [m.get("uri") for m in p.findall(VOS + "securityMethod")])
        for p in details.findall(VOS + "protocol")
    ]
    assert found == [("httpget", [TOKEN]), ("httpget", [OAUTH]), ("httpget", [])]
    for (_, url), (_, methods) in zip(endpoints(details), found, strict=True):
        assert space.request("GET", url, auth=bool(methods))[2] == b"x"


@holds("R178")
def test_an_end_point_of_the_client_is_ignored(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x")
    given: list[str | Protocol] = [
        Protocol("httpget", "http://example.org/mine"),
        Protocol("httpput", "http://example.org/mine"),
    ]
    for direction in (PULL, PUSH):
        ((_, url),) = endpoints(synctrans(space, transfer(f"{ROOT}{folder}/n", direction, given)).details())
        assert url.startswith(space.url)


@holds("R186", "R405")
def test_no_details_before_the_run(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x")
    job = new_job(space, transfer(f"{ROOT}{folder}/n", PULL, ["httpget"]))
    assert job.get("/results/transferDetails")[0] == 404
    assert job.results() == {}
    job.run()
    eventually("details", lambda: job.get("/results/transferDetails")[0] == 200)


@holds("R187", "R235", "R225", "R226", "R227", "R343")
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_push_from_the_job_to_the_bytes(space: Daemon, folder: str, old: bytes | None) -> None:
    if old is not None:
        store(space, f"{folder}/n", old)
    job = new_job(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    assert job.phase() == "PENDING"
    job.run().reaches("EXECUTING")
    assert "transferDetails" in job.results()
    assert space.request("PUT", job.endpoint(), BIG, auth=False)[0] == 201
    # No waiting from here on: all of it was true before the answer was sent.
    assert job.phase() == "COMPLETED"
    found = node_at(space, f"{folder}/n")
    assert (found.type, found.properties["length"]) == ("vos:DataNode", str(len(BIG)))
    assert fetch(space, f"{folder}/n") == pull(space, f"{folder}/n") == BIG


@holds("R189", "R196", "R188")
def test_a_push_is_done_once(space: Daemon, folder: str) -> None:
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput", "httpsput"]))
    first, second = (url for _, url in endpoints(job.details()))
    assert space.request("PUT", first, b"first", auth=False)[0] == 201
    for url in (first, second):
        assert 400 <= space.request("PUT", url, b"second", auth=False)[0] < 500
    assert (job.phase(), fetch(space, f"{folder}/n")) == ("COMPLETED", b"first")


@holds("R189", "R236", "R196")
def test_of_many_uploads_one_counts(space: Daemon, folder: str) -> None:
    url = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"])).endpoint()
    contents = [bytes([65 + number]) * 100_000 for number in range(6)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda data: space.request("PUT", url, data, auth=False)[0], contents))
    assert statuses.count(201) == 1 and all(status == 201 or 400 <= status < 500 for status in statuses)
    assert fetch(space, f"{folder}/n") == contents[statuses.index(201)]


@holds("R196", "R269")
def test_an_end_point_is_for_what_was_negotiated(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    store(space, f"{folder}/m", b"other")
    reads = synctrans(space, transfer(f"{ROOT}{folder}/n", PULL, ["httpget"])).endpoint()
    writes = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"])).endpoint()
    assert 400 <= space.request("PUT", reads, b"new", auth=False)[0] < 500
    assert 400 <= space.request("GET", writes, auth=False)[0] < 500
    assert 400 <= space.request("DELETE", writes, auth=False)[0] < 500
    base, _, name = writes.rpartition("/")
    assert (name, space.request("PUT", f"{base}/m", b"new", auth=False)[0] in (201, 403, 404)) == ("n", True)
    assert fetch(space, f"{folder}/m") == b"other"


@holds("R194", "R377", "R269")
def test_an_abort_before_the_bytes(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    url = job.endpoint()
    job.abort().reaches("ABORTED")
    assert 400 <= space.request("PUT", url, b"new", auth=False)[0] < 500
    assert (job.phase(), fetch(space, f"{folder}/n"), is_busy(space, f"{folder}/n")) == ("ABORTED", b"old", False)
    pending = new_job(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"])).abort().reaches("ABORTED")
    assert pending.results() == {}


@holds("R194", "R191")
def test_an_abort_under_the_bytes(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    with half_sent(space, job.endpoint(), BIG) as raw:
        eventually("busy", lambda: is_busy(space, f"{folder}/n"))
        job.abort().reaches("ABORTED")
        raw.send_anyway(BIG[len(BIG) // 2 :])
        assert refused(raw)
    eventually("not busy", lambda: not is_busy(space, f"{folder}/n"))
    assert (job.phase(), fetch(space, f"{folder}/n")) == ("ABORTED", b"old")


@holds("R195", "R373")
def test_run_on_creation(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x")
    new_job(space, transfer(f"{ROOT}{folder}/n", f"{ROOT}{folder}/m", keep="false"), query="?PHASE=RUN").completed()
    assert names(space, folder) == ["m"]
    job = new_job(space, transfer(f"{ROOT}{folder}/m", PUSH, ["httpput"]), query="?PHASE=RUN")
    job.reaches("EXECUTING")


@holds("R193", "R234")
def test_a_busy_node_is_read_as_it_was(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    with half_sent(space, job.endpoint(), BIG) as raw:
        eventually("busy", lambda: is_busy(space, f"{folder}/n"))
        assert pull(space, f"{folder}/n") == fetch(space, f"{folder}/n") == b"old"
        raw.send(BIG[len(BIG) // 2 :])
        assert raw.answer().status == 201
        assert pull(space, f"{folder}/n") == BIG


@holds("R197", "R320", "R333", "R332")
def test_a_link_to_a_local_node_is_followed(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    create(space, f"{folder}/l", "LinkNode", target=f"{ROOT}{folder}/n")
    create(space, f"{folder}/ll", "LinkNode", target=f"vos://vosfs.local!vospace{folder}/l")
    create(space, f"{folder}/c", "LinkNode", target=ROOT + folder)
    for path in ("l", "ll", "c/n", "c/ll"):
        assert pull(space, f"{folder}/{path}") == fetch(space, f"{folder}/{path}") == fetch(space, f"{folder}/n")
        _, answer = push(space, f"{folder}/{path}", path.encode())
        assert answer[0] == 201
        assert fetch(space, f"{folder}/n") == path.encode()
    assert node_at(space, f"{folder}/l").type == node_at(space, f"{folder}/ll").type == "vos:LinkNode"


@holds("R197", "R334")
@pytest.mark.parametrize(
    "target", ["vos://example.com!vospace/n", "http://127.0.0.1:1/x", "file:///etc/hostname", "ivo://a/b"]
)
def test_a_link_elsewhere_is_not_followed(space: Daemon, folder: str, target: str) -> None:
    create(space, f"{folder}/l", "LinkNode", target=target)
    for path in ("l", "l/n"):
        assert target in synctrans(space, transfer(f"{ROOT}{folder}/{path}", PULL, ["httpget"])).failed("InvalidURI")
        assert target in synctrans(space, transfer(f"{ROOT}{folder}/{path}", PUSH, ["httpput"])).failed("InvalidURI")
        answer = space.request("GET", f"/files{folder}/{path}")
        assert is_fault(answer, 400, "InvalidURI") and target in answer[2].decode()
    move(space, f"{folder}/l/n", f"{folder}/x").failed("InvalidURI")
    answer = space.request("GET", f"/nodes{folder}/l/n")
    assert is_fault(answer, 400, "InvalidURI") and target in answer[2].decode()


@holds("R198")
@pytest.mark.parametrize("view", ["", "binaryview", "defaultview", "anyview"])
def test_a_container_without_an_archive_view(space: Daemon, folder: str, view: str) -> None:
    synctrans(space, transfer(ROOT + folder, PULL, ["httpget"], view)).failed("ViewNotSupported")
    synctrans(space, transfer(ROOT + folder, PUSH, ["httpput"], view)).failed("ViewNotSupported")


@holds("R199")
def test_what_cannot_fit_fails_early(space: Daemon, folder: str) -> None:
    params = {CORE + "length": str(1 << 62)}
    synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"], params=params)).failed("QuotaExceeded")


# -- synctrans by document ---------------------------------------------------------------------------------------


@holds("R200", "R201", "R203", "R204", "R3", "R239")
@pytest.mark.parametrize("resource", ["/synctrans", "/sync"])
@pytest.mark.parametrize(("direction", "protocol"), [(PUSH, "httpput"), (PULL, "httpget")])
def test_by_document(space: Daemon, folder: str, resource: str, direction: str, protocol: str) -> None:
    store(space, f"{folder}/n", b"x")
    document = transfer(f"{ROOT}{folder}/n", direction, [protocol])
    status, headers, body = space.request("POST", resource, document, XML)
    location = headers["Location"]
    assert (status, location.endswith("/results/transferDetails")) == (303, True)
    assert endpoints(read(space, location))
    job = location.removesuffix("/results/transferDetails")
    assert space.request("GET", job + "/phase")[2].strip() in (b"EXECUTING", b"COMPLETED")
    assert space.request("GET", job + "/error")[0] == 404
    assert read(space, job).findtext(UWS + "jobId") == job.rpartition("/")[2]


@holds("R202", "R147", "R204")
def test_an_error_is_a_redirect_too(space: Daemon, folder: str) -> None:
    job = synctrans(space, transfer(f"{ROOT}{folder}/none", PULL, ["httpget"]))
    details = read(space, job.url + "/results/transferDetails")
    assert details.tag == VOS + "transfer" and endpoints(details) == []
    assert job.phase() == "ERROR"
    assert job.failed("NodeNotFound").split()[1] == f"{ROOT}{folder}/none"


@holds("R206", "R372")
@pytest.mark.parametrize("resource", ["/synctrans", "/transfers", "/transfers?PHASE=RUN"])
@pytest.mark.parametrize("body", [b"<", b"<a/>", b"", b"\0"])
def test_no_transfer_no_job(space: Daemon, bob: dict[str, str], resource: str, body: bytes) -> None:
    before = len(read(space, "/transfers", bob))
    assert is_fault(space.request("POST", resource, body, {**XML, **bob}), 400, "InvalidArgument")
    assert len(read(space, "/transfers", bob)) == before


# -- synctrans by parameters ---------------------------------------------------------------------------------------


@holds("R207", "R208", "R209", "R215", "R213", "R221", "R222")
def test_by_parameters(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/a%20b", b"bytes")
    for direction, protocol in ((PULL, "httpget"), (PUSH, "httpput")):
        form = {
            "TARGET": f"vos://vosfs.local!vospace{folder}/a%20b",
            "DIRECTION": direction,
            "PROTOCOL": core(protocol),
        }
        mixed = {name.title(): value for name, value in form.items()}
        for answer in (
            space.request("GET", "/synctrans?" + urlencode(form)),
            space.request("GET", "/synctrans?" + urlencode(mixed)),
            space.request("GET", "/synctrans?" + urlencode({**form, "VIEW": core("binaryview")})),
            space.request("POST", "/synctrans?" + urlencode(form), b"", FORM),
            space.request("POST", "/synctrans", urlencode(form).encode(), FORM),
            space.request("POST", "/synctrans", urlencode(mixed).encode(), FORM),
        ):
            assert (answer[0], answer[1].get("Location")) == (200, None), answer
            root = valid(answer[2])
            assert (root.tag, root.findtext(VOS + "direction")) == (VOS + "transfer", direction)
            ((name, url),) = endpoints(root)
            assert name == protocol
            if direction == PULL:
                assert space.request("GET", url, auth=False)[2] == b"bytes"


@holds("R210", "R211", "R212", "R220", "R219")
@pytest.mark.parametrize("more", [{}, {"REQUEST": "redirect"}])
def test_bad_parameters(space: Daemon, folder: str, more: dict[str, str]) -> None:
    store(space, f"{folder}/n", b"x")
    update(space, f"{folder}/n", properties={"publicread": "false"})
    good = {"TARGET": f"{ROOT}{folder}/n", "DIRECTION": PULL, "PROTOCOL": core("httpget"), **more}
    assert by_parameters(space, **good)[0] in (200, 303)
    for name in ("TARGET", "DIRECTION", "PROTOCOL"):
        left = {key: value for key, value in good.items() if key != name}
        assert is_fault(by_parameters(space, **left), 400, "InvalidArgument")
        assert is_fault(by_parameters(space, **{**good, name: ""}), 400, "InvalidArgument")
    for direction in (PULL_TO, PUSH_FROM, f"{ROOT}{folder}/m", "x"):
        assert is_fault(by_parameters(space, **{**good, "DIRECTION": direction}), 400, "InvalidArgument")
    pairs = [*good.items(), ("PROTOCOL", core("httpsget"))]
    for twice in (pairs, [(key.lower(), value) for key, value in pairs]):
        assert is_fault(space.request("GET", "/synctrans?" + urlencode(twice)), 400, "InvalidArgument")
        assert is_fault(space.request("POST", "/synctrans", urlencode(twice).encode(), FORM), 400, "InvalidArgument")
    assert is_fault(by_parameters(space, **{**good, "TARGET": f"{ROOT}{folder}/no"}), 404, "NodeNotFound")
    assert is_fault(by_parameters(space, ANONYMOUS, **good), 403, "PermissionDenied")
    assert is_fault(by_parameters(space, **{**good, "PROTOCOL": "urn:x:y"}), 400, "ProtocolNotSupported")
    assert is_fault(by_parameters(space, **{**good, "VIEW": "urn:x:y"}), 400, "ViewNotSupported")


@holds("R214", "R173")
def test_a_security_method_as_parameter(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x")
    good = {"TARGET": f"{ROOT}{folder}/n", "DIRECTION": PULL, "PROTOCOL": core("httpget")}
    for given, found in (({}, []), ({"SECURITYMETHOD": OAUTH}, [OAUTH])):
        root = valid(by_parameters(space, **good, **given)[2])
        assert [e.get("uri") for e in root.iter(VOS + "securityMethod")] == found
    assert is_fault(by_parameters(space, **good, SECURITYMETHOD="urn:x:sso"), 400, "ProtocolNotSupported")


@holds("R216", "R217", "R218", "R219", "R272")
def test_request_redirect(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"bytes")
    good = {"TARGET": f"{ROOT}{folder}/n", "DIRECTION": PULL, "PROTOCOL": core("httpget")}
    status, headers, _ = by_parameters(space, **good, REQUEST="redirect")
    assert (status, space.request("GET", headers["Location"], auth=False)[2]) == (303, b"bytes")
    for word in ("true", "1", "Redirected", ""):
        assert by_parameters(space, **good, REQUEST=word)[0] == 200
    put = {**good, "DIRECTION": PUSH, "PROTOCOL": core("httpput"), "REQUEST": "redirect"}
    assert by_parameters(space, **put)[0] == 200
    missing = {**good, "TARGET": f"{ROOT}{folder}/none", "REQUEST": "redirect"}
    assert is_fault(by_parameters(space, **missing), 404, "NodeNotFound")


@holds("R223")
def test_a_cookie_authorises_nothing(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"bytes")
    update(space, f"{folder}/n", properties={"publicread": "false"})
    query = urlencode({"TARGET": f"{ROOT}{folder}/n", "DIRECTION": PULL, "PROTOCOL": core("httpget")})
    for name in ("token", "access_token", "session", "CADC_SSO", "Authorization"):
        headers = {"Cookie": f"{name}={space.token}", "Origin": "http://evil.example", **ANONYMOUS}
        assert is_fault(space.request("GET", "/synctrans?" + query, headers=headers), 403, "PermissionDenied")


# -- push --------------------------------------------------------------------------------------------------------


@holds("R224", "R226", "R321")
def test_a_push_makes_the_default_type(space: Daemon, folder: str) -> None:
    job, answer = push(space, f"{folder}/n", b"x")
    assert (answer[0], job.phase(), node_at(space, f"{folder}/n").type) == (
        201,
        "COMPLETED",
        "vos:DataNode",
    )


@holds("R228", "R252")
def test_a_push_clears_at_the_commit(space: Daemon, folder: str) -> None:
    rights = {"groupread": "g", "groupwrite": "h", "publicread": "true"}
    create(space, f"{folder}/n", properties={"title": "t", "urn:x:a": "b", **rights})
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    assert node_at(space, f"{folder}/n").properties["title"] == "t"
    assert space.request("PUT", job.endpoint(), b"new", auth=False)[0] == 201
    found = node_at(space, f"{folder}/n").properties
    assert not {"title", "urn:x:a"} & found.keys()
    assert {name: found[name] for name in rights} == rights
    # Bytes by name are not this operation: they keep what is there.
    update(space, f"{folder}/n", properties={"title": "t"})
    store(space, f"{folder}/n", b"newer")
    assert node_at(space, f"{folder}/n").properties["title"] == "t"


@holds("R229", "R230", "R237")
def test_faults_of_a_push(space: Daemon, folder: str, home: str, alice: dict[str, str], bob: dict[str, str]) -> None:
    store(space, f"{home}/n", b"old", alice)
    said = synctrans(space, transfer(f"{ROOT}{folder}/none/n", PUSH, ["httpput"])).failed("ContainerNotFound")
    assert f"{ROOT}{folder}/none" in said
    for path in (f"{home}/n", f"{home}/new", f"{folder}/new"):
        synctrans(space, transfer(ROOT + path, PUSH, ["httpput"]), bob).failed("PermissionDenied")
    synctrans(space, transfer(f"{ROOT}{home}/n", PUSH, ["httpput"], "urn:x:v")).failed("ViewNotSupported")
    synctrans(space, transfer(f"{ROOT}{home}/n", PUSH, ["httpget"])).failed("ProtocolNotSupported")
    bad = {"urn:x:no-such": "v"}
    for document in (
        transfer(f"{ROOT}{home}/n", PUSH, ["httpput"], "binaryview", view_params=bad),
        transfer(f"{ROOT}{home}/n", PUSH, [Protocol("httpput", params=bad)]),
    ):
        synctrans(space, document).failed("InvalidArgument")
    assert fetch(space, f"{home}/n") == b"old"
    _, answer = push(space, f"{home}/n", b"new", headers=alice)
    assert (answer[0], fetch(space, f"{home}/n")) == (201, b"new")


@holds("R231", "R330", "R327")
def test_a_push_to_a_generated_name(space: Daemon, folder: str) -> None:
    job = synctrans(space, transfer(f"{ROOT}{folder}/.auto", PUSH, ["httpput"]))
    assert space.request("PUT", job.endpoint(), b"bytes", auth=False)[0] == 201
    target = job.results()["target"]
    assert target.startswith(f"{ROOT}{folder}/") and not target.endswith(".auto")
    assert fetch(space, target.removeprefix(ROOT)) == b"bytes"
    assert names(space, folder) == [target.rpartition("/")[2]]


@holds("R232", "R328", "R329")
def test_a_push_to_null(space: Daemon, folder: str) -> None:
    job, answer = push(space, f"{folder}/.null", BIG)
    assert (answer[0], job.phase(), names(space, folder)) == (201, "COMPLETED", [])
    assert not exists(space, f"{folder}/.null")


@holds("R233", "R323", "R351", "R277")
@pytest.mark.parametrize("view", ["", "anyview", "binaryview"])
@pytest.mark.parametrize("data", [b"", b"\0\r\n\xff\xfe", BIG])
def test_bytes_come_back_as_they_were(space: Daemon, folder: str, view: str, data: bytes) -> None:
    _, answer = push(space, f"{folder}/n", data, view)
    assert answer[0] == 201
    out = "" if view == "anyview" else view
    assert pull(space, f"{folder}/n", out) == fetch(space, f"{folder}/n") == data


@holds("R236", "R234")
def test_uploads_do_not_mix(space: Daemon, folder: str) -> None:
    contents = [bytes([65 + n]) * (100_000 + n) for n in range(6)]
    store(space, f"{folder}/n", contents[0])

    def send(data: bytes) -> int:
        job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
        found = endpoints(read(space, job.url + "/results/transferDetails"))
        return space.request("PUT", found[0][1], data, auth=False)[0] if found else 409

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        sending = [pool.submit(send, data) for data in contents]
        for _ in range(20):
            assert fetch(space, f"{folder}/n") in contents
        statuses = {future.result(20) for future in sending}
    assert 201 in statuses and statuses <= {201, 409}
    assert fetch(space, f"{folder}/n") in contents


# -- pull --------------------------------------------------------------------------------------------------------


@holds("R241", "R242", "R247", "R258")
@pytest.mark.parametrize("how", [synctrans, ran])
def test_faults_of_a_pull(space: Daemon, folder: str, home: str, how: object, bob: dict[str, str]) -> None:
    assert callable(how)
    store(space, f"{home}/n", b"secret")
    for path in (f"{folder}/none", f"{folder}/none/n"):
        assert ROOT + path in how(space, transfer(ROOT + path, PULL, ["httpget"])).failed("NodeNotFound")
    how(space, transfer(f"{ROOT}{home}/n", PULL, ["httpget"]), bob).failed("PermissionDenied")
    how(space, transfer(f"{ROOT}{home}/n", PULL, ["httpget"], "urn:x:v")).failed("ViewNotSupported")
    how(space, transfer(f"{ROOT}{home}/n", PULL, ["httpput"])).failed("ProtocolNotSupported")
    how(space, transfer(f"{ROOT}{home}/a b", PULL, ["httpget"])).failed("InvalidURI")


@holds("R245", "R248", "R264")
def test_the_type_of_what_is_pulled(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x", {"Content-Type": "text/x-it"})
    create(space, f"{folder}/m")
    for view in ("", "defaultview", "binaryview"):
        for name, kinds in (("n", {"text/x-it", "application/octet-stream"}), ("m", {"application/octet-stream"})):
            url = synctrans(space, transfer(f"{ROOT}{folder}/{name}", PULL, ["httpget"], view)).endpoint()
            status, headers, _ = space.request("GET", url, auth=False)
            assert status == 200 and headers["Content-Type"] in kinds
            assert (name, view) != ("n", "") or headers["Content-Type"] == "text/x-it"


@holds("R246")
def test_a_pull_is_complete_after_the_download(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", BIG)
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PULL, ["httpget"]))
    assert job.phase() in ("EXECUTING", "COMPLETED")
    assert space.request("GET", job.endpoint(), auth=False)[2] == BIG
    job.reaches("COMPLETED")


@holds("R356", "R358")
def test_a_public_share_that_is_not_served(space: Daemon, folder: str) -> None:
    share = "http://wiki.ivoa.net/twiki/bin/view/IVOA/VOSpacePublicShare"
    store(space, f"{folder}/n", b"x")
    served = {e.get("uri") for e in read(space, "/protocols").iter(VOS + "protocol")}
    for direction in (PUSH, PULL):
        if direction == PULL and share in served:
            continue
        job = synctrans(space, transfer(f"{ROOT}{folder}/n", direction, [share]))
        job.failed("ProtocolNotSupported")
        message = job.document().findtext(f"{UWS}errorSummary/{UWS}message") or ""
        assert "Protocol Not Supported" in message and "ProtocolNotSupported" in message
