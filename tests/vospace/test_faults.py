"""Faults: the exact name first, as plain text, with the details that the standard wants and nothing of the inside."""

import re
import shutil
from collections.abc import Callable

import psycopg
import pytest

from tests.conftest import Daemon, eventually
from tests.server.support import ROOT, Raw, create, head, is_fault, node_document, store
from tests.vospace.support import (
    ANONYMOUS,
    PULL,
    PULL_TO,
    PUSH,
    PUSH_FROM,
    VOS,
    XML,
    Protocol,
    by_parameters,
    core,
    half_sent,
    is_busy,
    ran,
    read,
    synctrans,
    transfer,
    valid,
)
from vosfs.metadata.node import CORE


@pytest.mark.holds("R19", "R20")
def test_a_fault_is_its_name_and_what_happened(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    create(space, f"{folder}/l", "LinkNode", target=ROOT + folder)
    for answer, status, name in [
        (space.request("GET", f"/nodes{folder}/none"), 404, "NodeNotFound"),
        (create(space, f"{folder}/none/n"), 404, "ContainerNotFound"),
        (create(space, f"{folder}/n"), 409, "DuplicateNode"),
        (create(space, f"{folder}/l/n"), 400, "LinkFound"),
        (create(space, f"{folder}/m", "TableNode"), 400, "TypeNotSupported"),
        (space.request("GET", f"/nodes{folder}?detail=x"), 400, "InvalidArgument"),
        (space.request("GET", f"/nodes{folder}/%00"), 400, "InvalidURI"),
        (space.request("DELETE", f"/nodes{folder}/n", headers=ANONYMOUS), 403, "PermissionDenied"),
    ]:
        assert is_fault(answer, status, name)
        assert re.fullmatch(rf"{name}\s.*", answer[2].decode("utf-8"), re.DOTALL)
        assert answer[1]["Content-Type"].replace(" ", "").lower() == "text/plain;charset=utf-8"


@pytest.mark.holds("R24", "R51")
@pytest.mark.parametrize("uri", ["vos://example.com!vospace/x", "http://example.com/x", "vos:x", "{root}/a b"])
def test_an_invalid_uri_is_named(space: Daemon, folder: str, uri: str) -> None:
    given = uri.format(root=ROOT)
    answer = space.request("PUT", f"/nodes{folder}/n", node_document("", uri=given), XML)
    assert is_fault(answer, 400, "InvalidURI") and given in answer[2].decode()
    answer = by_parameters(space, TARGET=given, DIRECTION=PULL, PROTOCOL=core("httpget"))
    assert is_fault(answer, 400, "InvalidURI") and given in answer[2].decode()
    assert given in synctrans(space, transfer(given, PULL, ["httpget"])).failed("InvalidURI")


@pytest.mark.holds("R25")
def test_a_missing_node_is_named(space: Daemon, folder: str) -> None:
    missing = f"{ROOT}{folder}/no%20ne"
    for answer in (
        space.request("GET", f"/nodes{folder}/no%20ne"),
        space.request("DELETE", f"/nodes{folder}/no%20ne"),
        space.request("POST", f"/nodes{folder}/no%20ne", node_document(f"{folder}/no%20ne"), XML),
        space.request("GET", f"/files{folder}/no%20ne"),
        by_parameters(space, TARGET=missing, DIRECTION=PULL, PROTOCOL=core("httpget")),
    ):
        assert is_fault(answer, 404, "NodeNotFound") and missing in answer[2].decode(), answer


@pytest.mark.holds("R26")
def test_the_first_missing_ancestor_is_named(space: Daemon, folder: str) -> None:
    for path in (f"{folder}/none/n", f"{folder}/none/of/these/n"):
        for answer in (create(space, path), space.request("DELETE", "/nodes" + path)):
            assert is_fault(answer, 404, "ContainerNotFound")
            assert answer[2].decode().split()[1] == f"{ROOT}{folder}/none"


@pytest.mark.holds("R27")
def test_a_duplicate_is_named(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/a%20b")
    answer = create(space, f"{folder}/a%20b")
    assert is_fault(answer, 409, "DuplicateNode") and f"{ROOT}{folder}/a%20b" in answer[2].decode()


@pytest.mark.holds("R28")
def test_a_link_in_the_way_is_shown(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/l", "LinkNode", target=ROOT + folder, properties={"title": "t"})
    for answer in (create(space, f"{folder}/l/n"), space.request("DELETE", f"/nodes{folder}/l/n")):
        assert is_fault(answer, 400, "LinkFound")
        first, _, rest = answer[2].decode().partition("\n")
        assert first.split() == ["LinkFound", f"{ROOT}{folder}/l", ROOT + folder]
        link = valid(rest.strip().encode())
        assert (link.get("uri"), link.findtext(VOS + "target")) == (f"{ROOT}{folder}/l", ROOT + folder)
        assert "t" in [e.text for e in link.iter(VOS + "property")]


@pytest.mark.holds("R29", "R54", "R322")
@pytest.mark.parametrize("kind", ["TableNode", "node", "Data Node"])
def test_an_unsupported_type_is_named(space: Daemon, folder: str, kind: str) -> None:
    answer = create(space, f"{folder}/n", kind)
    assert is_fault(answer, 400, "TypeNotSupported") and f"vos:{kind}" in answer[2].decode()
    answer = space.request("PUT", f"/nodes{folder}/n", node_document(f"{folder}/n").replace(b"vos:Un", b"no:Un"), XML)
    assert is_fault(answer, 400, "TypeNotSupported") and "no:UnstructuredDataNode" in answer[2].decode()


@pytest.mark.holds("R30", "R79", "R86", "R106")
def test_an_invalid_argument_is_described(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    bad = node_document(f"{folder}/n", properties={"publicread": "maybe"})
    for answer, words in [
        (space.request("GET", f"/nodes{folder}?detail=some"), ["detail", "some"]),
        (space.request("GET", f"/nodes{folder}?limit=-5"), ["limit", "-5"]),
        (space.request("POST", f"/nodes{folder}/n", bad, XML), ["publicread", "maybe"]),
    ]:
        assert is_fault(answer, 400, "InvalidArgument")
        assert all(word in answer[2].decode() for word in words), answer


@pytest.mark.holds("R30", "R181")
@pytest.mark.parametrize("what", ["view", "protocol"])
def test_a_bad_parameter_of_view_or_protocol_is_named(space: Daemon, folder: str, what: str) -> None:
    store(space, f"{folder}/n", b"x")
    bad = {"urn:x:no-such-parameter": "a value"}
    if what == "view":
        document = transfer(f"{ROOT}{folder}/n", PULL, ["httpget"], "binaryview", view_params=bad)
    else:
        document = transfer(f"{ROOT}{folder}/n", PULL, [Protocol("httpget", params=bad)])
    said = synctrans(space, document).failed("InvalidArgument")
    owner = core("binaryview") if what == "view" else core("httpget")
    assert all(word in said for word in (owner, *bad.keys(), *bad.values())), said


@pytest.mark.holds("R31", "R179", "R180")
@pytest.mark.parametrize(
    ("direction", "protocol", "view"),
    [(PULL, "httpget", "urn:x:view"), (PUSH, "httpput", "urn:x:view"), (PULL, "httpget", "anyview"), (PUSH, "httpput", "defaultview")],
)  # fmt: skip
def test_an_unsupported_view_is_named(space: Daemon, folder: str, direction: str, protocol: str, view: str) -> None:
    store(space, f"{folder}/n", b"x")
    target = f"{ROOT}{folder}/n"
    answer = by_parameters(space, TARGET=target, DIRECTION=direction, PROTOCOL=core(protocol), VIEW=core(view))
    assert is_fault(answer, 400, "ViewNotSupported") and core(view) in answer[2].decode()
    assert core(view) in synctrans(space, transfer(target, direction, [protocol], view)).failed("ViewNotSupported")
    assert core(view) in ran(space, transfer(target, direction, [protocol], view)).failed("ViewNotSupported")


@pytest.mark.holds("R32", "R176")
@pytest.mark.parametrize(
    ("direction", "protocols"), [(PULL, ["httpput", "urn:x:gopher"]), (PUSH, ["httpget"]), (PULL, []), (PUSH, ["urn:x:y"])]
)  # fmt: skip
def test_protocols_that_nobody_serves(space: Daemon, folder: str, direction: str, protocols: list[str]) -> None:
    store(space, f"{folder}/n", b"x")
    given: list[str | Protocol] = list(protocols)
    for send in (synctrans, ran):
        said = send(space, transfer(f"{ROOT}{folder}/n", direction, given)).failed("ProtocolNotSupported")
        assert all(core(name) in said for name in protocols)


@pytest.mark.holds("R33", "R205")
@pytest.mark.parametrize("direction", [PULL_TO, PUSH_FROM])
def test_what_synctrans_does_not_offer(space: Daemon, folder: str, direction: str) -> None:
    create(space, f"{folder}/n")
    protocols: list[str | Protocol] = [
        Protocol("httpget", "http://example.org/"),
        Protocol("httpput", "http://example.org/"),
    ]
    said = synctrans(space, transfer(f"{ROOT}{folder}/n", direction, protocols)).failed("OperationNotSupported")
    assert direction in said


@pytest.mark.holds("R34", "R192", "R236")
def test_a_busy_node_is_busy(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    document = transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"])
    job = synctrans(space, document)
    with half_sent(space, job.endpoint(), bytes(100_000)) as raw:
        eventually("busy", lambda: is_busy(space, f"{folder}/n"))
        answer = by_parameters(space, TARGET=f"{ROOT}{folder}/n", DIRECTION=PUSH, PROTOCOL=core("httpput"))
        assert is_fault(answer, 409, "NodeBusy")
        synctrans(space, document).failed("NodeBusy")
        ran(space, document).failed("NodeBusy")
        raw.send(bytes(50_000))
        assert raw.answer().status == 201
    assert not is_busy(space, f"{folder}/n")


@pytest.mark.holds("R35", "R10")
def test_faults_tell_nothing_of_the_inside(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", bytes(100_000))
    answers = [
        space.request(method, resource + path, body, XML)
        for method in ("GET", "PUT", "POST", "DELETE")
        for resource in ("/nodes", "/files", "/transfers", "/synctrans", "/data", "/protocols", "/gateway")
        for path in (f"{folder}/none", f"{folder}/n/x", "/%00", "/..", "/" + "x" * 300, "?uri='&limit=%27;--")
        for body in ((None,) if method in ("GET", "DELETE") else (b"", b"<x/>", b"\xff\0'\";--"))
    ]
    inside = (str(space.directory).encode(), b"Traceback", b".py", b"SELECT", b"sqlite", b"psycopg", b'File "')
    assert len(answers) > 100
    for status, _, body in answers:
        assert status < 500 or status == 501, body
        assert not [word for word in inside if word in body], body


@pytest.fixture
def broken(make_daemon: Callable[..., Daemon], database: str, postgres: str) -> Daemon:
    """A daemon whose database was taken away."""
    daemon = make_daemon("broken", "--dsn", database)
    assert create(daemon, "/n")[0] == 201
    name = database.rpartition("/")[2]
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
    return daemon


@pytest.mark.holds("R21", "R44", "R295", "R35")
def test_a_failure_of_the_database(broken: Daemon) -> None:
    status, _, body = broken.request("GET", "/availability", headers=ANONYMOUS)
    root = valid(body)
    assert (status, root.findtext("{*}available")) == (200, "false")
    for resource in ("/nodes/n", "/properties"):
        status, headers, body = broken.request("GET", resource, headers=ANONYMOUS)
        assert 500 <= status < 600, body
        assert body.split()[0] in (b"InternalFault", b"ServiceBusy"), body
        assert headers["Content-Type"].startswith("text/plain") and b"psycopg" not in body and len(body.split()) > 1


@pytest.mark.directory
@pytest.mark.holds("R21", "R295")
def test_a_failure_of_the_storage(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("space")
    store(daemon, "/f", bytes(100_000))
    assert read(daemon, "/availability").findtext("{*}available") == "true"
    daemon.stop()
    blobs = daemon.directory / "storage" / "blobs"
    blobs.rename(daemon.directory / "gone")
    daemon = make_daemon("space")
    status, headers, body = daemon.request("GET", "/files/f")
    assert is_fault((status, headers, body[:500]), 500, "InternalFault") and len(body.split()) > 1
    shutil.rmtree(daemon.directory / "storage")
    assert daemon.request("PUT", "/files/g", bytes(100_000))[0] >= 500
    assert read(daemon, "/availability", ANONYMOUS).findtext("{*}available") == "false"


@pytest.mark.holds("R22", "R23", "R366")
def test_a_refusal_says_why_and_challenges(space: Daemon, folder: str, bob: dict[str, str]) -> None:
    create(space, f"{folder}/n", properties={"publicread": "false"})
    for who in (bob, ANONYMOUS):
        for method, body in (("GET", None), ("DELETE", None), ("POST", node_document(f"{folder}/n"))):
            answer = space.request(method, f"/nodes{folder}/n", body, who)
            assert is_fault(answer, 403, "PermissionDenied") and len(answer[2].split()) > 2
            assert "WWW-Authenticate" in answer[1]
    with Raw(space) as raw:
        raw.send(head(space, "GET", f"/nodes{folder}/n", "Authorization: Bearer wrong", auth=False))
        wrong = raw.answer()
    assert wrong.status == 401 and "www-authenticate" in wrong.headers


@pytest.mark.holds("R182")
def test_a_length_is_a_hint_and_unknown_params_are_ignored(space: Daemon, folder: str) -> None:
    params = {CORE + "length": "5", "urn:x:unknown": "v"}
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"], params=params))
    shown = {e.get("uri"): e.text for e in job.document().iter(VOS + "param")}
    assert shown == params
    assert space.request("PUT", job.endpoint(), b"other length", auth=False)[0] == 201
    job.completed()
