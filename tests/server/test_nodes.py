"""createNode, getNode, setNode and deleteNode answer as section 6 of VOSpace 2.1 and its fault tables say."""

import concurrent.futures
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import msgspec
import pytest
from lxml import etree

from tests.conftest import Daemon
from tests.server.support import (
    AUTHORITY,
    NIL,
    ROOT,
    Raw,
    ask,
    create,
    fetch,
    head,
    is_fault,
    node,
    node_document,
    shown,
    store,
    update,
)
from vosfs.metadata import messages as m
from vosfs.metadata.node import NewNode
from vosfs.metadata.xml import NS

CHILDREN = 3000


# -- createNode ------------------------------------------------------------------------------------------------


@pytest.mark.holds("R46", "R47", "R52", "R53", "R71", "R74", "R322", "R324")
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", "DataNode"),
        ("Node", "DataNode"),
        ("DataNode", "DataNode"),
        ("UnstructuredDataNode", "DataNode"),
        ("StructuredDataNode", "DataNode"),
        ("ContainerNode", "ContainerNode"),
        ("LinkNode", "LinkNode"),
    ],
)
def test_every_type_is_created(space: Daemon, folder: str, given: str, kept: str) -> None:
    target = "vos://elsewhere!space/x" if given == "LinkNode" else None
    status, headers, body = create(space, f"{folder}/n", given, properties={"description": "d"}, target=target)
    assert (status, headers["Location"]) == (201, f"{space.url}/nodes{folder}/n")
    made = shown(etree.fromstring(body))
    assert (made.uri, made.type, made.target) == (f"{ROOT}{folder}/n", f"vos:{kept}", target)
    assert made.properties["description"] == "d"
    assert made.properties["length"] == str(len(target or ""))
    assert {"date", "mtime", "ctime", "btime", "creator"} <= made.properties.keys()
    assert space.request("GET", headers["Location"])[0] == 200


@pytest.mark.holds("R64", "R27")
@pytest.mark.parametrize("kind", ["UnstructuredDataNode", "ContainerNode", "LinkNode"])
def test_a_taken_name_is_a_duplicate(space: Daemon, folder: str, kind: str) -> None:
    assert create(space, f"{folder}/n", kind, target="vos://a!b/c")[0] == 201
    assert is_fault(create(space, f"{folder}/n", "UnstructuredDataNode"), 409, "DuplicateNode")
    assert is_fault(create(space, "", "ContainerNode"), 409, "DuplicateNode")


@pytest.mark.holds("R70")
def test_of_many_creators_one_wins(space: Daemon, folder: str) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: create(space, f"{folder}/n")[0], range(8)))
    assert sorted(statuses) == [201] + [409] * 7


@pytest.mark.holds("R65", "R66", "R67", "R93", "R113", "R122", "R123", "R331", "R26", "R28")
def test_faults_along_the_path(space: Daemon, folder: str) -> None:
    assert create(space, f"{folder}/file")[0] == 201
    assert create(space, f"{folder}/link", "LinkNode", target=f"{ROOT}{folder}")[0] == 201
    for method in ("PUT", "POST", "DELETE"):
        for path, status, fault in [
            (f"{folder}/none/n", 404, "ContainerNotFound"),
            (f"{folder}/none/of/this/n", 404, "ContainerNotFound"),
            (f"{folder}/file/n", 404, "ContainerNotFound"),
            (f"{folder}/link/n", 400, "LinkFound"),
            (f"{folder}/link/deep/n", 400, "LinkFound"),
        ]:
            if method == "POST" and fault == "LinkFound":
                # Only creation and deletion stop at a link.
                status, fault = 404, "NodeNotFound" if path.endswith("link/n") else "ContainerNotFound"
            body = None if method == "DELETE" else node_document(path)
            assert is_fault(space.request(method, "/nodes" + path, body), status, fault), (method, path)
    missing = create(space, f"{folder}/none/of/this/n")[2].decode().split()[1]
    assert missing == f"{ROOT}{folder}/none"
    found = create(space, f"{folder}/link/n")[2].decode().split()
    assert found[1:3] == [f"{ROOT}{folder}/link", f"{ROOT}{folder}"]
    assert is_fault(space.request("GET", f"/nodes{folder}/none/n"), 404, "NodeNotFound")
    assert is_fault(space.request("GET", f"/nodes{folder}/file/n"), 404, "NodeNotFound")


@pytest.mark.holds("R54")
@pytest.mark.parametrize("kind", ["Bogus", "vos:Node:x", "TableNode"])
def test_an_unknown_type_is_not_supported(space: Daemon, folder: str, kind: str) -> None:
    assert is_fault(create(space, f"{folder}/n", kind), 400, "TypeNotSupported")
    assert space.request("GET", f"/nodes{folder}/n")[0] == 404


@pytest.mark.holds("R6", "R54")
def test_xsi_type_is_a_qname(space: Daemon, folder: str) -> None:
    body = (
        f'<node xmlns="{NS}" xmlns:i="http://www.w3.org/2001/XMLSchema-instance"'
        f' i:type="ContainerNode" uri="{ROOT}{folder}/n"/>'
    ).encode()
    assert space.request("PUT", f"/nodes{folder}/n", body)[0] == 201
    assert node(space, f"{folder}/n").type == "vos:ContainerNode"
    foreign = node_document(f"{folder}/m").replace(b'"vos:Unstr', b'"xsi:Unstr')
    assert is_fault(space.request("PUT", f"/nodes{folder}/m", foreign), 400, "TypeNotSupported")


@pytest.mark.holds("R62")
def test_a_link_needs_a_target(space: Daemon, folder: str) -> None:
    assert is_fault(create(space, f"{folder}/n", "LinkNode"), 400, "InvalidArgument")


@pytest.mark.holds("R48", "R49", "R51", "R299", "R303", "R305", "R310", "R311", "R312")
@pytest.mark.parametrize(
    "uri",
    [
        "{root}{folder}/other",
        "{root}{folder}",
        "vos://example.com!vospace{folder}/n",
        "ivo://vosfs.local/vospace{folder}/n",
        "{folder}/n",
        "",
        "{root}{folder}/./n",
        "{root}{folder}/../n",
        "{root}{folder}/x/%2E%2e/n",
        "{root}{folder}//n",
        "{root}{folder}/n%00",
        "{root}{folder}%2Fn",
        "{root}{folder}/n n",
        "{root}{folder}/%zz",
    ],
)
def test_a_uri_that_is_not_the_urls_is_invalid(space: Daemon, folder: str, uri: str) -> None:
    document = node_document("", uri=uri.format(root=ROOT, folder=folder))
    assert is_fault(space.request("PUT", f"/nodes{folder}/n", document), 400, "InvalidURI")
    assert node(space, folder).children == []


@pytest.mark.holds("R310", "R312", "R314")
@pytest.mark.parametrize(
    "name",
    ["..", ".", "%2e%2E", ".%2e", "a%00b", "a%2Fb", "%", "a%4", "a//b", "x" * 256, "%C3%A9" * 128, ".null",
     "a\\b", 'a"b', "/a", "a/../b", "a" + "/b" * 2100],
)  # fmt: skip
def test_an_unfit_name_is_an_invalid_uri(space: Daemon, folder: str, name: str) -> None:
    path = f"{folder}/{name}"
    with Raw(space) as raw:
        document = node_document(path)
        raw.send(head(space, "PUT", f"/nodes{path}", f"Content-Length: {len(document)}") + document)
        answer = raw.answer()
    assert answer.status == 400, answer
    assert answer.body.split()[0] == b"InvalidURI", answer
    assert node(space, folder).children == []


@pytest.mark.holds("R304", "R306", "R313")
@pytest.mark.parametrize(
    "name",
    ["a b", "é", "日本語", "?#%[]", "a'b\"c", "<&>", "\x7f\x01\n", "x" * 255, "+", "a;b", "-rf", "…", "a\u0301", "á"],
)
def test_any_name_goes_round(space: Daemon, folder: str, name: str) -> None:
    encoded = f"{folder}/{quote(name)}"
    assert create(space, encoded)[0] == 201
    store(space, encoded, name.encode())
    (child,) = node(space, folder).children
    assert child.uri.partition(AUTHORITY)[2].isascii()
    path = child.uri.partition(AUTHORITY)[2]
    assert node(space, path).uri == child.uri
    assert fetch(space, path) == name.encode()
    assert space.request("DELETE", "/nodes" + path)[0] == 204
    assert node(space, folder).children == []


def test_a_name_that_is_not_utf8_is_refused_or_goes_round(space: Daemon, folder: str) -> None:
    status, _, body = create(space, f"{folder}/a%FF%FEb")
    if status == 201:
        (child,) = node(space, folder).children
        assert child.uri == f"{ROOT}{folder}/a%FF%FEb"
        assert node(space, f"{folder}/a%ff%feb").uri == child.uri
    else:
        assert (status, body.split()[0]) == (400, b"InvalidURI")


@pytest.mark.holds("R50", "R301", "R302")
def test_exclamation_mark_and_tilde_are_one(space: Daemon, folder: str) -> None:
    for number, authority in enumerate(["vosfs.local!vospace", "vosfs.local~vospace", "vosfs.local%21vospace"]):
        document = node_document("", uri=f"vos://{authority}{folder}/n{number}")
        status, _, body = space.request("PUT", f"/nodes{folder}/n{number}", document)
        assert status == 201, body
        assert shown(etree.fromstring(body)).uri == f"{ROOT}{folder}/n{number}"
        start = quote(f"vos://{authority}{folder}/n{number}", safe="")
        assert node(space, folder, f"?uri={start}&limit=1").children[0].uri == f"{ROOT}{folder}/n{number}"


@pytest.mark.holds("R57", "R344")
def test_a_read_only_property_is_not_set_at_creation(space: Daemon, folder: str) -> None:
    for name in ("length", "creator", "MD5", "quota", "date"):
        assert is_fault(create(space, f"{folder}/n", properties={name: "1"}), 403, "PermissionDenied"), name
    assert node(space, folder).children == []


@pytest.mark.holds("R61")
def test_children_in_a_template_are_ignored(space: Daemon, folder: str) -> None:
    document = node_document(f"{folder}/n", "ContainerNode").replace(
        b"</vos:node>", f'<vos:nodes><vos:node uri="{ROOT}{folder}/n/c"/></vos:nodes></vos:node>'.encode()
    )
    assert space.request("PUT", f"/nodes{folder}/n", document)[0] == 201
    assert node(space, f"{folder}/n").children == []


# -- getNode ---------------------------------------------------------------------------------------------------


@pytest.mark.holds("R75", "R76", "R77", "R78", "R79", "R80", "R82", "R83")
def test_levels_of_detail(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/d", properties={"title": "t"})
    create(space, f"{folder}/l", "LinkNode", target="http://example.org/")
    for query in ("", "?detail=max", "?detail=properties", "?detail=min", "?detail=MAX", "?detail=max&sort=x&view=y"):
        root = etree.fromstring(space.request("GET", f"/nodes{folder}{query}")[2])
        least = "min" in query
        found = shown(root)
        assert [child.type for child in found.children] == ["vos:DataNode", "vos:LinkNode"]
        assert found.children[1].target == "http://example.org/"
        assert ("date" in found.properties, found.children[0].properties.get("title")) == (
            not least,
            None if least else "t",
        )
        views = bool(root.findall(f"{{{NS}}}accepts"))
        assert views == ("detail=min" not in query and "detail=properties" not in query)
        child = etree.fromstring(space.request("GET", f"/nodes{folder}/d{query}")[2])
        assert (child.get("busy") == "false") == views
    assert is_fault(space.request("GET", f"/nodes{folder}?detail=all"), 400, "InvalidArgument")


@pytest.mark.holds("R86")
@pytest.mark.parametrize("limit", ["-1", "x", "1.5", "%C2%B2", "%D9%A3", "9" * 30, "", "0x1"])
def test_a_limit_is_a_count(space: Daemon, folder: str, limit: str) -> None:
    assert is_fault(space.request("GET", f"/nodes{folder}?limit={limit}"), 400, "InvalidArgument")


@pytest.mark.holds("R84", "R85", "R88", "R90", "R91")
def test_pages_start_inclusive_and_miss_nothing(space: Daemon, folder: str) -> None:
    names = ["a", "a b", "b%C3%A9", "c", "d", "e"]
    for name in names:
        assert create(space, f"{folder}/{quote(name, safe='%')}")[0] == 201
    every = [child.uri for child in node(space, folder).children]
    assert len(every) == len(names)
    assert node(space, folder, "?limit=0").children == []
    assert [c.uri for c in node(space, folder, "?limit=2").children] == every[:2]
    seen = [c.uri for c in node(space, folder, "?limit=2").children]
    while True:
        page = [c.uri for c in node(space, folder, f"?limit=2&uri={quote(seen[-1], safe='')}").children]
        assert page[0] == seen[-1]
        if len(page) == 1:
            break
        seen += page[1:]
    assert seen == every
    # A start that vanished resumes at its successor.
    assert space.request("DELETE", f"/nodes{folder}/c")[0] == 204
    assert node(space, folder, f"?uri={quote(ROOT + folder + '/c', safe='')}&limit=1").children[0].uri == every[4]


@pytest.mark.holds("R92")
@pytest.mark.parametrize(
    "uri", ["{root}{folder}", "{root}/other/x", "{root}{folder}/a/b", "vos://x!y{folder}/a", "a", "{root}"]
)
def test_a_page_starts_at_a_child(space: Daemon, folder: str, uri: str) -> None:
    start = quote(uri.format(root=ROOT, folder=folder), safe="")
    assert is_fault(space.request("GET", f"/nodes{folder}?uri={start}"), 400, "InvalidURI")


@pytest.mark.holds("R92")
def test_a_page_of_the_root_does_not_start_at_the_root(space: Daemon, folder: str) -> None:
    for uri in (ROOT, ROOT + "/"):
        assert is_fault(space.request("GET", f"/nodes?uri={quote(uri, safe='')}"), 400, "InvalidURI")


@pytest.mark.holds("R1", "R311")
def test_the_root_and_trailing_slashes(space: Daemon, folder: str) -> None:
    assert node(space, "", "?limit=0").type == node(space, "/", "?limit=0").type == "vos:ContainerNode"
    assert node(space, folder + "/").uri == ROOT + folder


@pytest.mark.holds("R95", "R124")
def test_a_link_is_shown_not_followed(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/l", "LinkNode", target=f"{ROOT}{folder}")
    assert node(space, f"{folder}/l").type == "vos:LinkNode"
    assert space.request("DELETE", f"/nodes{folder}/l")[0] == 204
    assert node(space, folder).children == []


@pytest.fixture(scope="module")
def full(space: Daemon) -> str:
    """A container of 3000 children."""
    assert create(space, "/full", "ContainerNode")[0] == 201
    top = ask(space, m.Lookup(1, b"full")).node
    new = NewNode("data", properties={"urn:x:long": "v" * 200})
    with Raw(space) as raw:
        for first in range(0, CHILDREN, 100):
            bodies = [msgspec.msgpack.encode(m.Create(top.id, b"n%04d" % n, new)) for n in range(first, first + 100)]
            raw.send(b"".join(head(space, "POST", "/gateway", f"Content-Length: {len(b)}") + b for b in bodies))
            assert all(raw.answer().status == 200 for _ in bodies)
    return "/full"


@pytest.mark.holds("R81", "R83", "R87")
def test_a_long_listing_is_streamed_and_complete(space: Daemon, full: str) -> None:
    with Raw(space, receive_buffer=4096) as raw:
        raw.send(head(space, "GET", "/nodes" + full))
        answer = raw.answer()
    assert answer.headers["transfer-encoding"] == "chunked"
    children = shown(etree.fromstring(answer.body)).children
    assert [c.uri for c in children] == [f"{ROOT}{full}/n{n:04d}" for n in range(CHILDREN)]
    assert all("date" in c.properties and c.properties["urn:x:long"] == "v" * 200 for c in children)


@pytest.mark.holds("R84", "R87")
@pytest.mark.parametrize("limit", [999, 1000, 1001, 1500, 2000, 2999, 3000, 5000])
def test_a_limit_across_pages(space: Daemon, full: str, limit: int) -> None:
    children = node(space, full, f"?limit={limit}&detail=min").children
    assert [c.uri for c in children] == [f"{ROOT}{full}/n{n:04d}" for n in range(min(limit, CHILDREN))]


def test_a_listing_that_nobody_reads_costs_nothing(space: Daemon, full: str) -> None:
    for _ in range(20):
        with Raw(space, receive_buffer=4096) as raw:
            raw.send(head(space, "GET", "/nodes" + full))
            assert raw.head().status == 200
            raw.reset()
    assert node(space, full, "?limit=1").children


def test_a_long_listing_that_is_asked_for_again_shows_what_changed(space: Daemon, full: str) -> None:
    def listed() -> dict[str, dict[str, str]]:
        return {child.uri.rpartition("/")[2]: child.properties for child in node(space, full).children}

    first = listed()
    # The second is kept, and the third is that.
    assert listed() == listed() == first
    top = ask(space, m.Lookup(1, full[1:].encode())).node
    child = ask(space, m.Lookup(top.id, b"n0007")).node
    assert update(space, f"{full}/n0007", properties={"title": "new"})[0] == 200
    assert listed()["n0007"]["title"] == "new"
    ask(space, m.Create(top.id, b"made", NewNode("data")))
    assert listed().keys() - first.keys() == {"made"}
    ask(space, m.Remove(top.id, b"made", "leaf"))
    ask(space, m.SetProperties(child.id, {"ivo://ivoa.net/vospace/core#title": None}))
    again = listed()
    assert again.keys() == first.keys() and "title" not in again["n0007"]
    store(space, f"{full}/n0008", b"bytes")
    assert listed()["n0008"]["length"] == "5"
    store(space, f"{full}/n0008", b"")
    # A listing's own container is part of it.
    assert update(space, full, properties={"title": "top"})[0] == 200
    assert node(space, full).properties["title"] == "top"


def test_every_long_listing_has_its_own_headers(space: Daemon, full: str) -> None:
    for _ in range(4):
        with Raw(space) as raw:
            raw.send(head(space, "GET", "/nodes" + full, "Connection: close"))
            top = raw.rest().partition(b"\r\n\r\n")[0].lower()
        assert top.count(b"x-vo-authenticated") == top.count(b"content-type") == 1, top


@pytest.mark.holds("R18")
def test_head_answers_like_get(space: Daemon, full: str) -> None:
    with Raw(space) as raw:
        for path in (full, full + "/n0000", "/none"):
            raw.send(head(space, "HEAD", "/nodes" + path) + head(space, "GET", "/nodes/none"))
            assert raw.answer(head_only=True).status == (404 if path == "/none" else 200)
            assert raw.answer().status == 404


# -- setNode -----------------------------------------------------------------------------------------------------


@pytest.mark.holds("R100", "R101", "R102", "R103")
def test_properties_are_united(space: Daemon, folder: str) -> None:
    path = f"{folder}/n"
    create(space, path, properties={"title": "a", "urn:x:keep": "k", "urn:x:gone": "g"})
    status, _, body = update(
        space, path, properties={"title": "b", "urn:x:empty": "", "urn:x:gone": NIL, "urn:x:no": NIL}
    )
    assert status == 200
    for found in (shown(etree.fromstring(body)).properties, node(space, path).properties):
        assert (found["title"], found["urn:x:keep"], found["urn:x:empty"]) == ("b", "k", "")
        assert not {"urn:x:gone", "urn:x:no"} & found.keys()


@pytest.mark.holds("R103")
def test_nil_false_sets(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    document = node_document(f"{folder}/n", "", {"urn:x:a": "1"}).replace(b'x:a"', b'x:a" xsi:nil="false"')
    assert space.request("POST", f"/nodes{folder}/n", document)[0] == 200
    assert node(space, f"{folder}/n").properties["urn:x:a"] == "1"


@pytest.mark.holds("R105")
def test_a_whole_node_can_be_sent_back(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"content", {"Content-Type": "text/plain"})
    update(space, f"{folder}/n", properties={"title": "<&\r\n\t'é\U0001f600 ", "groupread": "ivo://a/b?g"})
    before = node(space, f"{folder}/n").properties
    status, _, body = space.request("GET", f"/nodes{folder}/n")
    answer = space.request("POST", f"/nodes{folder}/n", body)
    assert answer[0] == 200, answer
    assert node(space, f"{folder}/n").properties == before
    assert fetch(space, f"{folder}/n") == b"content"


KEPT = ("length", "date", "mtime", "ctime", "btime", "creator", "MD5")


@pytest.mark.holds("R104", "R344")
# Deleting what is not there is no change: only what the node has is also deleted.
@pytest.mark.parametrize(
    ("name", "value"),
    [(name, "77") for name in (*KEPT, "quota", "availableSpace")] + [(name, NIL) for name in KEPT],
)
def test_read_only_properties_stay(space: Daemon, folder: str, name: str, value: object) -> None:
    store(space, f"{folder}/n", b"x" if name != "quota" else b"")
    before = node(space, f"{folder}/n").properties
    answer = update(space, f"{folder}/n", properties={name: value, "title": "t"})
    assert is_fault(answer, 403, "PermissionDenied")
    assert node(space, f"{folder}/n").properties == before


@pytest.mark.holds("R116", "R106")
def test_a_change_is_made_whole_or_not_at_all(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    before = node(space, f"{folder}/n").properties
    for bad in ({"publicread": "maybe"}, {"length": "5"}, {"urn:x:\u00a0 y": "1"}):
        answer = update(space, f"{folder}/n", properties={"title": "t", "groupread": "g", **bad})
        assert answer[0] in (400, 403), answer
        assert node(space, f"{folder}/n").properties == before, bad
    status, *_ = update(space, f"{folder}/n", properties={"title": "t", "immutable": "true"})
    after = node(space, f"{folder}/n").properties
    assert ("title" in after, "immutable" in after) == ((status == 200),) * 2


@pytest.mark.holds("R107", "R108", "R111", "R112", "R115")
def test_type_and_uri_stay(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/d")
    create(space, f"{folder}/l", "LinkNode", target="vos://a!b/c")
    for path, wrong in [("d", "ContainerNode"), ("d", "LinkNode"), ("l", "DataNode"), ("", "DataNode")]:
        answer = update(space, f"{folder}/{path}".rstrip("/"), wrong, {"title": "t"}, target="x:y")
        assert is_fault(answer, 400, "InvalidArgument")
    for fine in ("", "Node", "DataNode", "UnstructuredDataNode"):
        assert update(space, f"{folder}/d", fine, {"title": "t"})[0] == 200
    assert is_fault(space.request("POST", f"/nodes{folder}/d", node_document(f"{folder}/e")), 400, "InvalidURI")
    assert is_fault(update(space, f"{folder}/none"), 404, "NodeNotFound")
    assert update(space, f"{folder}/l", "LinkNode", target="vos://x!y/z")[0] == 200
    assert node(space, f"{folder}/l").target == "vos://x!y/z"


@pytest.mark.holds("R118")
def test_metadata_changes_ctime_not_mtime(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/d")
    before = ask(space, m.Lookup(ask(space, m.Lookup(1, folder[1:].encode())).node.id, b"d")).node
    update(space, f"{folder}/d", properties={"title": "t"})
    after = ask(space, m.Get(before.id))
    assert (after.mtime_ns, after.ctime_ns > before.ctime_ns) == (before.mtime_ns, True)


@pytest.mark.parametrize("text", ["text/html\r\nSet-Cookie: a=b", "a\nb", "text/plain\r\n\r\n<script>", "\t", "é\x85"])
def test_a_content_type_cannot_split_the_answer(space: Daemon, folder: str, text: str) -> None:
    store(space, f"{folder}/d", b"x")
    status, *_ = update(space, f"{folder}/d", properties={"type": text})
    assert status in (200, 400)
    with Raw(space) as raw:
        raw.send(head(space, "GET", f"/files{folder}/d"))
        answer = raw.answer()
    assert (answer.status, answer.body) == (200, b"x")
    assert "set-cookie" not in answer.headers
    assert "\n" not in answer.headers["content-type"]


# -- deleteNode ----------------------------------------------------------------------------------------------------


@pytest.mark.holds("R119", "R120", "R121", "R122")
def test_delete_takes_the_whole_tree(space: Daemon, folder: str) -> None:
    for path in ("/c", "/c/c", "/c/c/c"):
        create(space, folder + path, "ContainerNode")
        store(space, f"{folder}{path}/f", b"x" * 20000)
    status, _, body = space.request("DELETE", f"/nodes{folder}/c")
    assert (status, body) == (204, b"")
    for path in ("/c", "/c/c", "/c/c/f"):
        assert is_fault(space.request("GET", f"/nodes{folder}{path}"), 404, "NodeNotFound")
    assert is_fault(space.request("DELETE", f"/nodes{folder}/c"), 404, "NodeNotFound")
    assert is_fault(space.request("DELETE", f"/nodes{folder}/c/c"), 404, "ContainerNotFound")


@pytest.mark.holds("R127")
def test_the_root_stays(space: Daemon, folder: str) -> None:
    for path in ("/nodes", "/nodes/"):
        assert is_fault(space.request("DELETE", path), 403, "PermissionDenied")
    assert node(space, folder).uri


# -- the same on PostgreSQL, in one process and in two -----------------------------------------------------------


def _core(meta: Daemon) -> None:
    """A round through all node operations and bytes of both sizes."""
    assert create(meta, "/c", "ContainerNode", properties={"title": "t"})[0] == 201
    assert is_fault(create(meta, "/c", "ContainerNode"), 409, "DuplicateNode")
    assert is_fault(create(meta, "/x/y"), 404, "ContainerNotFound")
    assert create(meta, "/c/l", "LinkNode", target="vos://a!b/c")[0] == 201
    assert is_fault(create(meta, "/c/l/y"), 400, "LinkFound")
    for name in ("a%FFb", "%C3%A9", "z"):
        assert create(meta, f"/c/{name}")[0] == 201
    assert [c.uri.rpartition("/")[2] for c in node(meta, "/c").children] == ["a%FFb", "l", "z", "%C3%A9"]
    assert len(node(meta, "/c", f"?limit=2&uri={quote(ROOT + '/c/z', safe='')}").children) == 2
    assert update(meta, "/c/z", properties={"title": "x", "urn:x:e": ""})[0] == 200
    assert update(meta, "/c/z", properties={"title": NIL})[0] == 200
    assert (node(meta, "/c/z").properties["urn:x:e"], "title" in node(meta, "/c/z").properties) == ("", False)
    assert is_fault(update(meta, "/c/z", properties={"length": "9"}), 403, "PermissionDenied")
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(lambda _: create(meta, "/c/race")[0], range(6)))
    assert sorted(statuses) == [201] + [409] * 5


def _bytes(meta: Daemon) -> None:
    for size in (0, 5, 200_000):
        data = bytes(range(256)) * (size // 256 + 1)
        assert create(meta, f"/c/s{size}")[0] == 201
        answer = meta.request("PUT", f"/files/c/s{size}", data[:size])
        if answer[0] in (303, 307):
            answer = meta.request("PUT", answer[1]["Location"], data[:size])
        assert answer[0] == 201, answer
        assert fetch(meta, f"/c/s{size}") == data[:size]
    assert meta.request("DELETE", "/nodes/c")[0] == 204
    assert node(meta, "").children == []


def test_nodes_and_bytes_on_postgresql(make_daemon: Callable[..., Daemon], database: str) -> None:
    daemon = make_daemon("pg", "--dsn", database)
    _core(daemon)
    _bytes(daemon)


@pytest.fixture
def halves(make_daemon: Callable[..., Daemon], database: str, tmp_path: Path) -> tuple[Daemon, Daemon]:
    """A metadata and a storage process, each with a directory of its own, on one database."""
    storage = make_daemon("storage", "--dsn", database, "--role", "storage")
    meta = make_daemon("metadata", "--dsn", database, "--role", "metadata", "--storage-url", storage.url)
    return meta, storage


def test_nodes_on_two_processes(halves: tuple[Daemon, Daemon]) -> None:
    meta, storage = halves
    _core(meta)
    assert storage.request("GET", "/nodes")[0] == 404
    assert meta.request("GET", "/blobs/x")[0] == 404


def test_bytes_on_two_processes(halves: tuple[Daemon, Daemon]) -> None:
    meta, storage = halves
    create(meta, "/c", "ContainerNode")
    _bytes(meta)


def test_an_end_point_of_the_other_process(halves: tuple[Daemon, Daemon]) -> None:
    meta, storage = halves
    data = bytes(100_000)
    query = f"TARGET={quote(ROOT + '/n', safe='')}&PROTOCOL={quote('ivo://ivoa.net/vospace/core#', safe='')}"
    status, _, body = meta.request("GET", f"/synctrans?{query}httpput&DIRECTION=pushToVoSpace")
    assert status == 200
    url = etree.fromstring(body).findtext(f".//{{{NS}}}endpoint") or ""
    assert url.startswith(storage.url)
    assert storage.request("PUT", url, data, auth=False)[0] == 201
    status, headers, _ = meta.request("GET", f"/synctrans?{query}httpget&DIRECTION=pullFromVoSpace&REQUEST=redirect")
    assert (status, storage.request("GET", headers["Location"], auth=False)[2]) == (303, data)
    assert fetch(meta, "/n") == data
