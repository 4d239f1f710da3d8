"""What the vos client needs besides the standard: jobs over whole trees, and several nodes as one package."""

from urllib.parse import urlencode

import pytest

from tests.conftest import Daemon
from tests.server.support import NIL, ROOT, create, fetch, is_fault, node_document, store, update
from tests.vospace.support import (
    ANONYMOUS,
    FORM,
    UWS,
    XML,
    Job,
    exists,
    names,
    node_at,
    read,
    tar_bytes,
    untar,
    zip_bytes,
)


def new(daemon: Daemon, resource: str, body: bytes, headers: dict[str, str]) -> Job:
    """A job of one of the two resources."""
    answer = daemon.request("POST", resource, body, headers)
    assert answer[0] == 303 and answer[1]["Location"].startswith(daemon.url + resource + "/"), answer
    return Job(daemon, answer[1]["Location"], {k: v for k, v in headers.items() if k == "Authorization"})


def delete(daemon: Daemon, path: str, headers: dict[str, str] | None = None) -> Job:
    """A job that deletes a tree."""
    return new(daemon, "/async-delete", urlencode({"target": ROOT + path}).encode(), {**FORM, **(headers or {})})


def set_properties(
    daemon: Daemon, path: str, properties: dict[str, object], headers: dict[str, str] | None = None
) -> Job:
    """A job that sets properties of a tree."""
    document = node_document(path, "ContainerNode", properties)
    return new(daemon, "/async-setprops", document, {**XML, **(headers or {})})


@pytest.fixture
def tree(space: Daemon, home: str, alice: dict[str, str]) -> str:
    """Alice's tree of six nodes."""
    for path in ("/t", "/t/c"):
        assert create(space, home + path, "ContainerNode", alice)[0] == 201
    for path in ("/t/a", "/t/c/b"):
        store(space, home + path, path.encode(), alice)
    assert create(space, f"{home}/t/l", "LinkNode", alice, target=f"{ROOT}{home}/t/c")[0] == 201
    assert create(space, f"{home}/t/c/e", headers=alice)[0] == 201
    return f"{home}/t"


@pytest.mark.holds("R120", "R373", "R400", "R405")
def test_a_tree_is_deleted(space: Daemon, home: str, tree: str, alice: dict[str, str]) -> None:
    job = delete(space, tree, alice)
    assert job.phase() == "PENDING" and exists(space, tree)
    job.run().completed()
    # The client takes any errorcount for a failure, so there is none.
    assert job.results() == {"successcount": "final:6"}
    assert names(space, home) == []
    assert job.document("?WAIT=6").findtext(UWS + "phase") == "COMPLETED"
    assert job.url in [ref.get("{http://www.w3.org/1999/xlink}href") for ref in read(space, "/async-delete", alice)]
    transfers = job.url.replace("/async-delete/", "/transfers/")
    assert space.request("GET", transfers, headers=alice)[0] == 404


@pytest.mark.holds("R126", "R147")
def test_a_deletion_is_whole_or_none(space: Daemon, tree: str, alice: dict[str, str], bob: dict[str, str]) -> None:
    closed = {"groupwrite": "", "groupread": "", "publicread": "false"}
    create(space, f"{tree}/closed", "ContainerNode", properties=closed)
    create(space, f"{tree}/closed/n")
    delete(space, tree, alice).run().failed("PermissionDenied")
    delete(space, tree, bob).run().failed("PermissionDenied")
    delete(space, f"{tree}/none", alice).run().failed("NodeNotFound")
    delete(space, "").run().failed("PermissionDenied")
    assert names(space, tree) == ["a", "c", "closed", "l"] and names(space, f"{tree}/c") == ["b", "e"]


def test_what_is_no_deletion(space: Daemon, tree: str) -> None:
    for body, fault in (
        (b"", "InvalidArgument"),
        (b"target=x", "InvalidURI"),
        (b"target=" + ROOT.encode() + b"/../x", "InvalidURI"),
    ):
        assert is_fault(space.request("POST", "/async-delete", body, FORM), 400, fault)
    assert is_fault(space.request("POST", "/async-setprops", b"<x/>", XML), 400, "InvalidArgument")
    document = node_document("", uri="vos://elsewhere!space/x")
    assert is_fault(space.request("POST", "/async-setprops", document, XML), 400, "InvalidURI")
    assert exists(space, tree)


def test_properties_of_a_tree(space: Daemon, tree: str, alice: dict[str, str]) -> None:
    update(space, f"{tree}/a", properties={"urn:x:old": "o", "urn:x:gone": "g"}, headers=alice)
    job = set_properties(space, tree, {"urn:x:new": "n", "urn:x:gone": NIL, "groupread": "team"}, alice)
    job.run().completed()
    assert job.results() == {"successcount": "final:6"}
    for path in ("", "/a", "/c", "/c/b", "/c/e", "/l"):
        found = node_at(space, tree + path).properties
        assert (found["urn:x:new"], found["groupread"], "urn:x:gone" in found) == ("n", "team", False), path
    assert node_at(space, f"{tree}/a").properties["urn:x:old"] == "o"
    assert node_at(space, f"{tree}/l").target == f"{ROOT}{tree}/c"


def test_properties_of_what_is_not_all_ones_own(
    space: Daemon, tree: str, alice: dict[str, str], bob: dict[str, str]
) -> None:
    closed = {"groupwrite": "", "groupread": "", "publicread": "false"}
    create(space, f"{tree}/closed", "ContainerNode", properties=closed)
    job = set_properties(space, tree, {"urn:x:new": "n"}, alice).run()
    job.completed()
    assert job.results() == {"successcount": "final:6", "errorcount": "final:1"}
    assert "urn:x:new" not in node_at(space, f"{tree}/closed").properties
    set_properties(space, tree, {"urn:x:new": "bob"}, bob).run().failed("PermissionDenied")
    set_properties(space, tree, {"length": "5"}, alice).run().failed("PermissionDenied")
    assert node_at(space, tree).properties["urn:x:new"] == "n"


@pytest.mark.holds("R406", "R407")
def test_jobs_of_others(space: Daemon, tree: str, alice: dict[str, str], bob: dict[str, str]) -> None:
    job = delete(space, tree, alice)
    for who in (bob, ANONYMOUS):
        assert space.request("GET", job.url, headers=who)[0] == 403
        assert space.request("POST", job.url + "/phase", b"PHASE=RUN", {**FORM, **who})[0] == 403
    assert exists(space, tree) and job.phase() == "PENDING"


def test_a_package(space: Daemon, tree: str, alice: dict[str, str], bob: dict[str, str]) -> None:
    def package(*targets: str, **more: str) -> tuple[int, dict[str, str], bytes]:
        query = urlencode([("TARGET", ROOT + target) for target in targets] + list(more.items()))
        return space.request("GET", "/pkg?" + query, headers=alice)

    status, headers, body = package(f"{tree}/a", f"{tree}/c")
    assert (status, headers["Content-Type"]) == (200, "application/x-tar")
    assert tar_bytes(body) == {"a": b"/t/a", "c/b": b"/t/c/b", "c/e": b""}
    status, headers, body = package(f"{tree}/c", RESPONSEFORMAT="application/zip")
    assert (status, headers["Content-Type"]) == (200, "application/zip")
    assert zip_bytes(body) == {"c/b": b"/t/c/b", "c/e": b""}
    assert set(untar(package(f"{tree}/a")[2])) == {"a"}
    assert is_fault(package(f"{tree}/none"), 404, "NodeNotFound")
    assert is_fault(package(), 400, "InvalidArgument")
    assert is_fault(package(f"{tree}/a", RESPONSEFORMAT="text/html"), 400, "InvalidArgument")
    for who in (bob, ANONYMOUS):
        answer = space.request("GET", "/pkg?" + urlencode({"TARGET": f"{ROOT}{tree}/a"}), headers=who)
        assert is_fault(answer, 403, "PermissionDenied")


def test_names_in_a_package_are_told_apart(space: Daemon, tree: str, alice: dict[str, str]) -> None:
    store(space, f"{tree}/c/a", b"other", alice)
    for form, files in (("application/x-tar", tar_bytes), ("application/zip", zip_bytes)):
        query = [("TARGET", f"{ROOT}{tree}/a"), ("TARGET", f"{ROOT}{tree}/c/a"), ("RESPONSEFORMAT", form)]
        status, _, body = space.request("GET", "/pkg?" + urlencode(query), headers=alice)
        if status == 200:
            assert sorted(files(body).values()) == [b"/t/a", b"other"]
        else:
            assert status == 400
    assert fetch(space, f"{tree}/c/a") == b"other"
