"""Nobody sees or changes what is not theirs: by nodes, files, listings, transfers, jobs, gateway or change feed."""

import base64
from collections.abc import Callable, Iterator
from urllib.parse import urlencode

import msgspec
import pytest
from lxml import etree

from tests.conftest import Daemon, start_daemon
from tests.server.support import (
    ROOT,
    Raw,
    ask,
    ask_raw,
    assert_sound,
    create,
    head,
    is_fault,
    make_user,
    node,
    node_document,
    shown,
    store,
    transfer_document,
    update,
    upload,
    vosfsd,
    where,
)
from vosfs.metadata import messages as m
from vosfs.metadata.node import CORE, Attributes, Cursor, Extent, NewNode
from vosfs.metadata.xml import NS

ANONYMOUS = {"Authorization": ""}
SECRET = "between-alice-and-the-space"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A space whose root everybody may read, with users alice, bob (group team) and carol (group editors)."""
    daemon = start_daemon(tmp_path_factory.mktemp("rights") / "space")
    assert update(daemon, "", properties={"publicread": "true"})[0] == 200
    assert create(daemon, "/homes", "ContainerNode", properties={"groupwrite": "everybody"})[0] == 201
    yield daemon
    assert_sound(daemon)
    assert daemon.stop() == 0


@pytest.fixture(scope="module")
def alice(shared: Daemon) -> dict[str, str]:
    """She has a private tree with a file, and things in it that only she may see."""
    headers = make_user(shared, "alice", "everybody")
    private = {"publicread": "false", "groupwrite": "", "title": SECRET}
    assert create(shared, "/homes/alice", "ContainerNode", headers, private)[0] == 201
    store(shared, "/homes/alice/file", SECRET.encode(), headers)
    assert create(shared, f"/homes/alice/{SECRET}", headers=headers)[0] == 201
    assert update(shared, "/homes/alice/file", properties={"urn:x:note": SECRET}, headers=headers)[0] == 200
    return headers


@pytest.fixture(scope="module")
def bob(shared: Daemon) -> dict[str, str]:
    return make_user(shared, "bob", "everybody,team")


@pytest.fixture(scope="module")
def carol(shared: Daemon) -> dict[str, str]:
    return make_user(shared, "carol", "editors")


@pytest.fixture(params=["bob", "anonymous"])
def stranger(request: pytest.FixtureRequest, bob: dict[str, str]) -> dict[str, str]:
    """Somebody who is not alice."""
    return bob if request.param == "bob" else ANONYMOUS


@pytest.mark.holds("R22", "R23", "R94", "R114")
def test_strangers_are_refused(shared: Daemon, alice: dict[str, str], stranger: dict[str, str]) -> None:
    paths = ["/homes/alice", "/homes/alice/file", "/homes/alice/none", "/homes/alice/file/x"]
    for method, resource, body in [
        ("GET", "/nodes", None),
        ("PUT", "/nodes", b""),
        ("POST", "/nodes", b""),
        ("DELETE", "/nodes", None),
        ("GET", "/files", None),
        ("PUT", "/files", b"x"),
    ]:
        for path in paths:
            if (method, resource, path) == ("DELETE", "/nodes", "/homes/alice") and stranger is not ANONYMOUS:
                # Covered below: bob may write into /homes.
                continue
            if body == b"":
                body = b"<node/>"
            sent = shown_document(path) if body == b"<node/>" else body
            answer = shared.request(method, resource + path, sent, stranger)
            if (method, resource, path) == ("PUT", "/nodes", "/homes/alice") and stranger is not ANONYMOUS:
                assert is_fault(answer, 409, "DuplicateNode")
                continue
            assert answer[0] in (400, 403) and SECRET.encode() not in answer[2], (method, resource, path, answer)
            if answer[0] == 403:
                assert is_fault(answer, 403, "PermissionDenied") and "WWW-Authenticate" in answer[1]
            else:
                assert (resource, path) == ("/files", "/homes/alice")
    assert shared.request("GET", "/files/homes/alice/file", headers=alice)[2] == SECRET.encode()


def shown_document(path: str) -> bytes:
    return node_document(path, "Node" if path != "/homes/alice" else "ContainerNode", {"title": "mine"})


@pytest.mark.holds("R125")
def test_a_container_of_another_stays(shared: Daemon, alice: dict[str, str], bob: dict[str, str]) -> None:
    assert is_fault(shared.request("DELETE", "/nodes/homes/alice", headers=bob), 403, "PermissionDenied")
    assert shared.request("GET", "/nodes/homes/alice", headers=alice)[0] == 200


def test_a_listing_does_not_tell_of_private_children(
    shared: Daemon, alice: dict[str, str], stranger: dict[str, str]
) -> None:
    for query in ("", "?detail=max", "?detail=properties", "?detail=min"):
        status, _, body = shared.request("GET", "/nodes/homes" + query, headers=stranger)
        assert status == 200
        assert SECRET.encode() not in body, query
    _, _, body = shared.request("GET", "/nodes/homes", headers=alice)
    assert SECRET.encode() in body


@pytest.mark.holds("R230", "R242")
def test_strangers_negotiate_nothing(shared: Daemon, alice: dict[str, str], stranger: dict[str, str]) -> None:
    for direction, protocol in (("pullFromVoSpace", "httpget"), ("pushToVoSpace", "httpput")):
        for path in ("/homes/alice/file", "/homes/alice/new", "/homes/alice/new/x"):
            query = urlencode({"TARGET": ROOT + path, "DIRECTION": direction, "PROTOCOL": CORE + protocol})
            assert is_fault(shared.request("GET", "/synctrans?" + query, headers=stranger), 403, "PermissionDenied")
            document = transfer_document(ROOT + path, direction, [protocol])
            _, headers, _ = shared.request("POST", "/synctrans", document, {**stranger, "Content-Type": "text/xml"})
            job = headers["Location"].removesuffix("/results/transferDetails")
            assert shared.request("GET", job + "/phase", headers=stranger)[2].strip() == b"ERROR"
            assert shared.request("GET", job + "/error", headers=stranger)[2].startswith(b"PermissionDenied ")


@pytest.mark.holds("R406")
def test_jobs_are_their_owners(shared: Daemon, alice: dict[str, str], stranger: dict[str, str]) -> None:
    document = transfer_document(f"{ROOT}/homes/alice/file", "pushToVoSpace", ["httpput"])
    location = shared.request("POST", "/synctrans", document, {**alice, "Content-Type": "text/xml"})[1]["Location"]
    job = location.removesuffix("/results/transferDetails")
    for url in (job, location, job + "/phase", job + "/error"):
        assert shared.request("GET", url, headers=stranger)[0] in (403, 404)
    assert shared.request("GET", location, headers=alice)[0] == 200


@pytest.mark.holds("R196", "R269")
def test_an_end_point_is_good_for_its_user_only_while_allowed(
    shared: Daemon, alice: dict[str, str], bob: dict[str, str]
) -> None:
    store(shared, "/homes/alice/lent", b"lent", alice)
    assert update(shared, "/homes/alice", properties={"groupread": "team"}, headers=alice)[0] == 200
    assert update(shared, "/homes/alice/lent", properties={"groupread": "team"}, headers=alice)[0] == 200
    query = urlencode(
        {"TARGET": f"{ROOT}/homes/alice/lent", "DIRECTION": "pullFromVoSpace", "PROTOCOL": CORE + "httpget"}
    )
    status, _, body = shared.request("GET", "/synctrans?" + query, headers=bob)
    assert status == 200
    url = etree.fromstring(body).findtext(f".//{{{NS}}}endpoint") or ""
    assert shared.request("GET", url, auth=False)[2] == b"lent"
    for path in ("/homes/alice", "/homes/alice/lent"):
        assert update(shared, path, properties={"groupread": ""}, headers=alice)[0] == 200
    assert is_fault(shared.request("GET", url, auth=False), 403, "PermissionDenied")


@pytest.mark.holds("R68", "R340", "R346", "R369", "R370")
def test_groups_and_public(shared: Daemon, alice: dict[str, str], bob: dict[str, str], carol: dict[str, str]) -> None:
    rights = {"groupread": "ivo://x/gms?team other", "groupwrite": "editors", "publicread": "false"}
    assert create(shared, "/homes/project", "ContainerNode", alice, rights)[0] == 201
    store(shared, "/homes/project/f", b"1", alice)

    def may(method: str, path: str, body: bytes | None, who: dict[str, str]) -> bool:
        status = shared.request(method, path, body, who)[0]
        assert status in (200, 201, 204, 403), status
        return status != 403

    reads = [may("GET", "/files/homes/project/f", None, who) for who in (alice, bob, carol, ANONYMOUS)]
    assert reads == [True, True, True, False]
    writes = [may("PUT", "/files/homes/project/f", b"2", who) for who in (alice, bob, carol, ANONYMOUS)]
    assert writes == [True, False, True, False]
    makes = [
        create(shared, f"/homes/project/n{n}", headers=who)[0] for n, who in enumerate((alice, bob, carol, ANONYMOUS))
    ]
    assert makes == [201, 403, 201, 403]
    # A writer is not an owner: who may is not his to change.
    for change in ({"publicread": "true"}, {"groupread": "all"}, {"groupwrite": "all"}, {"immutable": "true"}):
        answer = update(shared, "/homes/project/f", properties={**change, "title": "t"}, headers=carol)
        assert is_fault(answer, 403, "PermissionDenied")
    assert "title" not in node(shared, "/homes/project/f").properties
    assert update(shared, "/homes/project/f", properties={"publicread": "true"}, headers=alice)[0] == 200
    assert not may("GET", "/files/homes/project/f", None, ANONYMOUS)
    assert update(shared, "/homes/project", properties={"ispublic": "true"}, headers=alice)[0] == 200
    assert may("GET", "/files/homes/project/f", None, ANONYMOUS)
    assert not may("PUT", "/files/homes/project/f", b"3", ANONYMOUS)
    assert not may("DELETE", "/nodes/homes/project/f", None, bob)
    assert may("DELETE", "/nodes/homes/project/f", None, carol)


# -- the gateway ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ids(shared: Daemon, alice: dict[str, str]) -> dict[str, int]:
    """Node ids of alice's things, and of the container that bob may write to."""
    homes = ask(shared, m.Lookup(1, b"homes")).node
    top = ask(shared, m.Lookup(homes.id, b"alice")).node
    file = ask(shared, m.Lookup(top.id, b"file"), alice).node
    return {"homes": homes.id, "alice": top.id, "file": file.id}


def test_strangers_change_nothing_through_the_gateway(
    shared: Daemon, alice: dict[str, str], ids: dict[str, int], stranger: dict[str, str]
) -> None:
    before = ask(shared, m.Get(ids["file"]), alice), ask(shared, m.Children(ids["alice"], b"", 100), alice)
    messages = [
        m.Lookup(ids["alice"], b"file"),
        m.Children(ids["alice"], b"", 10),
        m.Open(ids["file"]),
        m.Create(ids["alice"], b"x", NewNode("data")),
        m.Remove(ids["alice"], b"file", "leaf"),
        m.Link(ids["file"], ids["alice"], b"y"),
        m.Rename(ids["alice"], b"file", ids["homes"], b"mine", ""),
        m.SetAttributes(ids["file"], Attributes(public=1)),
        m.SetAttributes(ids["file"], Attributes(mode=0o777)),
        m.SetAttributes(ids["file"], Attributes(mtime_ns=1)),
        m.SetAttributes(ids["file"], Attributes(immutable=1)),
        m.SetProperties(ids["file"], {"urn:x:a": "b"}),
        m.Commit(ids["file"], None, 1, [Extent(0, 1, data=b"x")], None, False),
    ]
    for message in messages:
        answer = ask(shared, message, stranger)
        assert isinstance(answer, m.Failure) and answer.error == "PermissionDenied", (message, answer)
    assert before == (ask(shared, m.Get(ids["file"]), alice), ask(shared, m.Children(ids["alice"], b"", 100), alice))


def test_an_id_alone_tells_nothing(
    shared: Daemon, alice: dict[str, str], ids: dict[str, int], stranger: dict[str, str]
) -> None:
    answer = ask(shared, m.Properties(ids["file"]), stranger)
    assert SECRET not in repr(answer)
    assert isinstance(answer, m.Failure)


def test_a_stranger_cannot_name_what_he_may_not_read(
    shared: Daemon, alice: dict[str, str], bob: dict[str, str], ids: dict[str, int]
) -> None:
    answer = ask(shared, m.Link(ids["file"], ids["homes"], b"stolen"), bob)
    assert isinstance(answer, m.Failure) and answer.error == "PermissionDenied", answer


def test_the_change_feed_hides_what_may_not_be_read(
    shared: Daemon, alice: dict[str, str], ids: dict[str, int], stranger: dict[str, str]
) -> None:
    since = ask(shared, m.Hello(), stranger).cursor
    store(shared, "/homes/alice/another", b"x", alice)
    update(shared, "/homes/alice/file", properties={"urn:x:n": "1"}, headers=alice)
    shared.request("DELETE", "/nodes/homes/alice/another", headers=alice)
    page = ask(shared, m.Changes(since, 0.0), stranger)
    assert [c for c in page.changes if c.name or c.parent] == []
    # An id is what the gateway takes for proof of having been let in.
    assert [c.node for c in page.changes if c.node] == []
    page = ask(shared, m.Changes(Cursor(), 0.0), stranger)
    assert not {c.node for c in page.changes} & {ids["file"]}
    assert b"another" not in {c.name for c in page.changes}
    page = ask(shared, m.Changes(since, 0.0))
    assert {b"another"} <= {c.name for c in page.changes}


def test_a_receipt_is_its_uploaders(
    shared: Daemon, alice: dict[str, str], bob: dict[str, str], ids: dict[str, int]
) -> None:
    stored = upload(shared, SECRET.encode(), alice)
    mine = ask(shared, m.Create(ids["homes"], b"bobs", NewNode("data", owner="alice")), bob)
    assert mine.owner == "bob"
    extent = Extent(0, len(SECRET), stored.receipt)
    answer = ask(shared, m.Commit(mine.id, None, len(SECRET), [extent], None, False), bob)
    assert isinstance(answer, m.Failure) and answer.error == "PermissionDenied"
    assert shared.request("PUT", "/blobs", b"x", ANONYMOUS)[0] == 403


def test_a_private_root_shows_nothing(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    store(daemon, "/f", SECRET.encode())
    bob = make_user(daemon, "bob")
    for who in (bob, ANONYMOUS):
        for path in ("/nodes", "/nodes/f", "/files/f", "/nodes/none"):
            assert is_fault(daemon.request("GET", path, headers=who), 403, "PermissionDenied")
        for message in (
            m.Hello(),
            m.Lookup(1, b"f"),
            m.Children(1, b"", 10),
            m.Changes(Cursor(), 0.0),
            m.Properties(1),
            m.Quotas(1),
        ):
            answer = ask(daemon, message, who)
            assert isinstance(answer, m.Failure) and answer.error == "PermissionDenied", (message, answer)
        assert SECRET.encode() not in ask_raw(daemon, msgspec.msgpack.encode(m.SpaceUsage()), who)[1]


# -- who is asking -------------------------------------------------------------------------------------------------


def _basic(text: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}


@pytest.mark.holds("R361")
def test_passwords(shared: Daemon) -> None:
    assert vosfsd("user", *where(shared), "dave", data="pass:wörd\n").returncode == 0
    assert shared.request("GET", "/nodes", headers=_basic("dave:pass:wörd"))[0] == 200
    for wrong in ("dave:", "dave:pass", "dave", "nobody:pass:wörd", ":", "", "dave:pass:wörd\n", "da\0ve:x"):
        status, headers, body = shared.request("GET", "/nodes", headers=_basic(wrong))
        assert (status, body.split()[0]) == (401, b"NotAuthenticated"), wrong
        assert "WWW-Authenticate" in headers
    # bob signs in by token only: no password is his.
    for wrong in ("bob:", "bob: ", "bob:x"):
        assert shared.request("GET", "/nodes", headers=_basic(wrong))[0] == 401
    done = vosfsd("user", *where(shared), "eve", data="\n")
    assert (done.returncode != 0, done.stderr.count("\n")) == (True, 1)


@pytest.mark.holds("R23")
@pytest.mark.parametrize(
    "value",
    [
        "Bearer x",
        "Bearer",
        "Bearer ",
        "bearer \xe9\xff",
        "Basic !!!",
        "Basic",
        "Digest x",
        "x",
        "Bearer " + "x" * 8000,
        "Basic " + "=" * 9,
        "Negotiate YII",
        "Basic /w==",
        "Basic gICA",
    ],
)
def test_wrong_credentials_are_401(shared: Daemon, value: str) -> None:
    for path in ("/nodes", "/nodes/homes/alice", "/files/x", "/synctrans?TARGET=x", "/transfers/x"):
        with Raw(shared) as raw:
            raw.send(head(shared, "GET", path, f"Authorization: {value}", auth=False))
            answer = raw.answer()
        assert (answer.status, answer.body.split()[0]) == (401, b"NotAuthenticated"), path
        assert "www-authenticate" in answer.headers


@pytest.mark.holds("R23")
def test_an_expired_token_is_401(shared: Daemon, bob: dict[str, str]) -> None:
    file = shared.directory.parent / "old.token"
    assert vosfsd("token", *where(shared), "bob", file, "--days", "-1").returncode == 0
    headers = {"Authorization": f"Bearer {file.read_text().strip()}"}
    status, answered, body = shared.request("GET", "/nodes", headers=headers)
    assert (status, body.split()[0]) == (401, b"NotAuthenticated") and "WWW-Authenticate" in answered
    done = vosfsd("token", *where(shared), "nobody-here", file)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_credentials_with_nul_on_postgresql(make_daemon: Callable[..., Daemon], database: str) -> None:
    daemon = make_daemon("pg", "--dsn", database)
    assert daemon.request("GET", "/nodes", headers=_basic("a\0b:c"))[0] == 401
    made = ask(daemon, m.Create(1, b"f", NewNode("data")))
    for change in (Attributes(content_type="a\0b"), Attributes(group_read="\0"), Attributes(mode=1 << 40)):
        answer = ask(daemon, m.SetAttributes(made.id, change))
        assert isinstance(answer, m.Failure) and answer.error == "InvalidArgument", (change, answer)
    assert shown(etree.fromstring(daemon.request("GET", "/nodes/f")[2])).uri == f"{ROOT}/f"
    assert_sound(daemon)
