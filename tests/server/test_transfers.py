"""synctrans negotiates, by document and by parameters, and its end-points do exactly what was negotiated."""

from urllib.parse import quote, urlencode

import pytest
from lxml import etree

from tests.conftest import Daemon
from tests.server.support import ROOT, Answer, create, fetch, is_fault, node, store, transfer_document, update
from vosfs.metadata.node import CORE
from vosfs.metadata.xml import NS

UWS = "{http://www.ivoa.net/xml/UWS/v1.0}"
PUSH, PULL = "pushToVoSpace", "pullFromVoSpace"
BASIC = "ivo://ivoa.net/sso#BasicAA"


def negotiate(space: Daemon, document: bytes, resource: str = "/synctrans") -> tuple[str, etree._Element]:
    """POST a transfer; the job's URL and the transferDetails."""
    status, headers, body = space.request("POST", resource, document, {"Content-Type": "text/xml"})
    assert status == 303, body
    location = headers["Location"]
    assert location.endswith("/results/transferDetails")
    status, headers, body = space.request("GET", location)
    assert (status, headers["Content-Type"]) == (200, "text/xml")
    return location.removesuffix("/results/transferDetails"), etree.fromstring(body)


def endpoints(details: etree._Element) -> list[tuple[str, str]]:
    return [
        ((p.get("uri") or "").removeprefix(CORE), p.findtext(f"{{{NS}}}endpoint") or "")
        for p in details.findall(f"{{{NS}}}protocol")
    ]


def by_parameters(
    space: Daemon, target: str, direction: str, protocol: str, **more: str
) -> tuple[int, dict[str, str], bytes]:
    query = urlencode({"TARGET": target, "DIRECTION": direction, "PROTOCOL": CORE + protocol, **more})
    return space.request("GET", f"/synctrans?{query}")


@pytest.mark.holds("R3", "R200", "R201", "R203", "R233", "R239", "R240", "R272")
@pytest.mark.parametrize("resource", ["/synctrans", "/sync"])
def test_push_and_pull_by_document(space: Daemon, folder: str, resource: str) -> None:
    target = f"{ROOT}{folder}/n"
    job, details = negotiate(space, transfer_document(target, PUSH, ["httpput", "httpsput"]), resource)
    assert (details.findtext(f"{{{NS}}}target"), details.findtext(f"{{{NS}}}direction")) == (target, PUSH)
    offered = endpoints(details)
    assert [name for name, _ in offered] == ["httpput", "httpsput"]
    assert space.request("GET", job + "/phase")[2].strip() in (b"EXECUTING", b"COMPLETED")
    status, headers, _ = space.request("PUT", offered[0][1], b"hello", auth=False)
    assert status == 201 and headers["Digest"].startswith("md5=")
    assert space.request("GET", job + "/phase")[2].strip() == b"COMPLETED"
    assert node(space, f"{folder}/n").properties["length"] == "5"
    _, details = negotiate(space, transfer_document(target, PULL, ["httpget", "httpsget"]), resource)
    for _, url in endpoints(details):
        assert space.request("GET", url, auth=False)[2] == b"hello"


@pytest.mark.holds("R169", "R171", "R183", "R185", "R405")
def test_the_job_document(space: Daemon, folder: str) -> None:
    target = f"{ROOT}{folder}/n"
    job, _ = negotiate(space, transfer_document(target, PUSH, ["httpput"], "anyview"))
    root = etree.fromstring(space.request("GET", job)[2])
    assert root.findtext(UWS + "jobId") == job.rpartition("/")[2]
    results = {r.get("id"): r.get("{http://www.w3.org/1999/xlink}href") for r in root.iter(UWS + "result")}
    assert results == {"transferDetails": job + "/results/transferDetails", "dataNode": target}
    echoed = root.find(f"{UWS}jobInfo/{{{NS}}}transfer")
    assert echoed is not None
    assert echoed.findtext(f"{{{NS}}}target") == target
    # R169: the whole request is echoed.
    assert [p.get("uri") for p in echoed.findall(f"{{{NS}}}protocol")] == [CORE + "httpput"]
    assert [v.get("uri") for v in echoed.findall(f"{{{NS}}}view")] == [CORE + "anyview"]
    assert space.request("GET", job + "/error")[0] == 404
    assert space.request("GET", job + "/nonsense")[0] == 404
    assert space.request("GET", "/transfers/" + "0" * 24)[0] == 404


@pytest.mark.holds("R147", "R167", "R198", "R202", "R237", "R247", "R352")
@pytest.mark.parametrize(
    ("target", "direction", "protocols", "view", "fault", "spaced"),
    [
        ("/none", PULL, ["httpget"], "", "NodeNotFound", "Node Not Found"),
        ("/none/n", PUSH, ["httpput"], "", "ContainerNotFound", "Container Not Found"),
        ("/n", PUSH, ["httpget"], "", "ProtocolNotSupported", "Protocol Not Supported"),
        ("/n", PULL, ["httpput", "ftp", "urn:x"], "", "ProtocolNotSupported", "Protocol Not Supported"),
        ("/n", PUSH, [], "", "ProtocolNotSupported", "Protocol Not Supported"),
        ("/n", PUSH, ["httpput"], "defaultview", "ViewNotSupported", "View Not Supported"),
        ("/n", PULL, ["httpget"], "anyview", "ViewNotSupported", "View Not Supported"),
        ("/n", PULL, ["httpget"], "urn:x:view", "ViewNotSupported", "View Not Supported"),
        ("", PULL, ["httpget"], "", "ViewNotSupported", "View Not Supported"),
        ("", PUSH, ["httpput"], "", "ViewNotSupported", "View Not Supported"),
        ("/../n", PULL, ["httpget"], "", "InvalidURI", "Invalid URI"),
        ("/%2e%2e/n", PUSH, ["httpput"], "", "InvalidURI", "Invalid URI"),
        ("/n", "pullToVoSpace", ["httpget"], "", "OperationNotSupported", "Operation Not Supported"),
        ("/n", "pushFromVoSpace", ["httpput"], "", "OperationNotSupported", "Operation Not Supported"),
        ("/n", "sideways", ["httpput"], "", "InvalidArgument", "Invalid Argument"),
        ("/link", PULL, ["httpget"], "", "InvalidURI", "Invalid URI"),
        ("/link", PUSH, ["httpput"], "", "InvalidURI", "Invalid URI"),
    ],
)
def test_a_refused_transfer_is_a_failed_job(
    space: Daemon, folder: str, target: str, direction: str, protocols: list[str], view: str, fault: str, spaced: str
) -> None:
    create(space, f"{folder}/n")
    create(space, f"{folder}/link", "LinkNode", target="http://example.org/x")
    job, details = negotiate(space, transfer_document(f"{ROOT}{folder}{target}", direction, protocols, view))
    assert endpoints(details) == []
    assert space.request("GET", job + "/phase")[2].strip() == b"ERROR"
    assert space.request("GET", job + "/error")[2].split()[0].decode() == fault
    root = etree.fromstring(space.request("GET", job)[2])
    assert root.findtext(f"{UWS}errorSummary/{UWS}message") == spaced
    assert root.findtext(UWS + "phase") == "ERROR"


@pytest.mark.holds("R168")
def test_a_foreign_target_is_an_invalid_uri(space: Daemon, folder: str) -> None:
    job, _ = negotiate(space, transfer_document(f"vos://example.com!vospace{folder}/n", PULL, ["httpget"]))
    assert space.request("GET", job + "/error")[2].startswith(b"InvalidURI ")


@pytest.mark.holds("R206", "R10")
@pytest.mark.parametrize(
    "body", [b"", b"<a/>", b"<", b"target", b"\0", transfer_document("x", "y").replace(b"v2.0", b"v2.1")]
)
def test_a_body_that_is_no_transfer(space: Daemon, folder: str, body: bytes) -> None:
    assert is_fault(space.request("POST", "/synctrans", body, {"Content-Type": "text/xml"}), 400, "InvalidArgument")


@pytest.mark.holds("R173", "R175", "R176", "R177", "R368")
def test_unknown_protocols_and_methods_are_passed_over(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    names = ["urn:x:gopher", "httpsget", "ftpget", "httpget"]
    _, details = negotiate(space, transfer_document(f"{ROOT}{folder}/n", PULL, names, security=["urn:x:sso", BASIC]))
    assert [name for name, _ in endpoints(details)] == ["httpsget", "httpget"]
    assert [e.get("uri") for e in details.iter(f"{{{NS}}}securityMethod")] == [BASIC] * 2
    job, details = negotiate(space, transfer_document(f"{ROOT}{folder}/n", PULL, ["httpget"], security=["urn:x:sso"]))
    assert endpoints(details) == []


@pytest.mark.holds("R208", "R209", "R215", "R221", "R222")
def test_parameters_by_get_post_and_form(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"bytes")
    form = urlencode(
        {"TARGET": f"vos://vosfs.local!vospace{folder}/n", "DIRECTION": PULL, "PROTOCOL": CORE + "httpsget"}
    )
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    for answer in (
        space.request("GET", "/synctrans?" + form),
        space.request("GET", "/synctrans?" + form.lower().replace("pullfromvospace", PULL)),
        space.request("POST", "/synctrans?" + form, b"", kind),
        space.request("POST", "/synctrans", form.encode(), kind),
        space.request("POST", "/synctrans", form.encode(), {"Content-Type": kind["Content-Type"] + "; charset=utf-8"}),
    ):
        assert answer[0] == 200, answer
        ((name, url),) = endpoints(etree.fromstring(answer[2]))
        assert (name, space.request("GET", url, auth=False)[2]) == ("httpsget", b"bytes")


@pytest.mark.holds("R216", "R217", "R218", "R219")
def test_request_redirect(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/a%20%3F", b"bytes")
    target = f"{ROOT}{folder}/a%20%3F"
    status, headers, _ = by_parameters(space, target, PULL, "httpget", REQUEST="redirect")
    assert (status, space.request("GET", headers["Location"], auth=False)[2]) == (303, b"bytes")
    assert by_parameters(space, target, PULL, "httpget", REQUEST="true")[0] == 200
    assert by_parameters(space, target, PUSH, "httpput", REQUEST="redirect")[0] == 200
    assert is_fault(
        by_parameters(space, ROOT + folder + "/no", PULL, "httpget", REQUEST="redirect"), 404, "NodeNotFound"
    )


@pytest.mark.holds("R210", "R212", "R214", "R220")
def test_faults_of_parameters_are_direct(space: Daemon, folder: str) -> None:
    target = f"{ROOT}{folder}/n"
    assert is_fault(by_parameters(space, target, PULL, "httpget"), 404, "NodeNotFound")
    assert is_fault(by_parameters(space, target, PUSH, "httpget"), 400, "ProtocolNotSupported")
    assert is_fault(by_parameters(space, target, "pullToVoSpace", "httpget"), 400, "InvalidArgument")
    assert is_fault(by_parameters(space, target, PUSH, "httpput", VIEW="urn:x"), 400, "ViewNotSupported")
    assert is_fault(by_parameters(space, "", PUSH, "httpput"), 400, "InvalidArgument")
    assert is_fault(by_parameters(space, target, PUSH, "httpput", SECURITYMETHOD="urn:x"), 400, "ProtocolNotSupported")
    assert is_fault(space.request("GET", "/synctrans"), 400, "InvalidArgument")


@pytest.mark.holds("R211")
def test_exactly_one_protocol(space: Daemon, folder: str) -> None:
    query = urlencode(
        [
            ("TARGET", f"{ROOT}{folder}/n"),
            ("DIRECTION", PUSH),
            ("PROTOCOL", CORE + "httpput"),
            ("PROTOCOL", CORE + "httpsput"),
        ]
    )
    assert is_fault(space.request("GET", f"/synctrans?{query}"), 400, "InvalidArgument")


# -- end-points ----------------------------------------------------------------------------------------------------


def end_point(space: Daemon, path: str, direction: str) -> str:
    answer = by_parameters(space, ROOT + path, direction, "httpput" if direction == PUSH else "httpget")
    assert answer[0] == 200, answer
    return endpoints(etree.fromstring(answer[2]))[0][1]


@pytest.mark.holds("R196", "R269")
def test_an_end_point_has_one_direction(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    assert space.request("PUT", end_point(space, f"{folder}/n", PULL), b"new", auth=False)[0] in (400, 403, 405)
    assert space.request("GET", end_point(space, f"{folder}/n", PUSH), auth=False)[0] in (400, 403, 405)
    assert fetch(space, f"{folder}/n") == b"old"


def test_a_client_may_ask_first_what_a_push_would_replace(space: Daemon, folder: str) -> None:
    # vos 3.7 sends HEAD to the end-point before its PUT, to skip what is there already (spec: clients, 1.5).
    store(space, f"{folder}/n", b"old")
    status, headers, _ = space.request("HEAD", end_point(space, f"{folder}/n", PUSH), auth=False)
    assert status == 200 and headers["Digest"].startswith("md5=")


@pytest.mark.holds("R196")
def test_a_tampered_end_point_is_refused(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    url = end_point(space, f"{folder}/n", PUSH)
    before, _, rest = url.partition("/data/")
    token, _, name = rest.partition("/")
    text, _, seal = token.rpartition(".")
    flipped = text[:10] + ("A" if text[10] != "A" else "B") + text[11:]
    for forged in (
        f"{flipped}.{seal}",
        f"{text}.{seal[:-1]}",
        f"{text}.",
        text,
        ".",
        "",
        f"{seal}.{text}",
        "%00",
        token + "A",
        token.upper(),
        f"{text}..{seal}",
        "\xe9".encode().hex(),
    ):
        answer = space.request("PUT", f"{before}/data/{quote(forged)}/{name}", b"new", auth=False)
        assert answer[0] in (403, 404), (forged, answer)
    assert fetch(space, f"{folder}/n") == b"old"


@pytest.mark.holds("R228", "R266")
def test_a_push_clears_properties_and_keeps_rights(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n", properties={"title": "t", "urn:x:a": "b", "groupread": "g"})
    assert space.request("PUT", end_point(space, f"{folder}/n", PUSH), b"new", auth=False)[0] == 201
    found = node(space, f"{folder}/n").properties
    assert ("title" in found, "urn:x:a" in found, found["groupread"]) == (False, False, "g")
    update(space, f"{folder}/n", properties={"title": "t"})
    url = end_point(space, f"{folder}/n", PUSH)
    assert space.request("PUT", url, b"newer", {"Digest": "md5=" + "A" * 22 + "=="}, auth=False)[0] == 412
    assert node(space, f"{folder}/n").properties["title"] == "t"
    assert fetch(space, f"{folder}/n") == b"new"


@pytest.mark.holds("R128")
def test_an_end_point_dies_with_its_node(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    pull = end_point(space, f"{folder}/n", PULL)
    space.request("DELETE", f"/nodes{folder}/n")
    assert is_fault(space.request("GET", pull, auth=False), 404, "NodeNotFound")


@pytest.mark.holds("R232", "R328")
def test_a_push_to_null_leaves_nothing(space: Daemon, folder: str) -> None:
    assert space.request("PUT", end_point(space, f"{folder}/.null", PUSH), b"x" * 100_000, auth=False)[0] == 201
    assert node(space, folder).children == []
    assert is_fault(space.request("GET", f"/nodes{folder}/.null"), 404, "NodeNotFound")


def test_a_start_of_a_segmented_put_does_not_truncate(space: Daemon, folder: str) -> None:
    # vos 3.7, files over 5 GiB: an empty PUT announces the upload (spec: clients, 1.5).
    store(space, f"{folder}/n", b"old")
    headers = {"x-put-txn-op": "start", "x-total-length": "6000000000"}
    space.request("PUT", end_point(space, f"{folder}/n", PUSH), b"", headers, auth=False)
    assert fetch(space, f"{folder}/n") == b"old"


def test_a_transfer_of_many_protocols_stays_small(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    document = transfer_document(f"{ROOT}{folder}/n", PULL, ["httpget"], security=[""] * 30_000)
    status, headers, _ = space.request("POST", "/synctrans", document, {"Content-Type": "text/xml"})
    answer = Answer(status)
    if status == 303:
        answer.body = space.request("GET", headers["Location"])[2]
    assert status in (303, 400) and len(answer.body) < 2 * len(document)
