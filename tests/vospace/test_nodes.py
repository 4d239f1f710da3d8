"""createNode, getNode, setNode and deleteNode, as far as the tests of the daemon's nodes do not hold them already."""

import concurrent.futures
import re
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from lxml import etree

from tests.conftest import Daemon, eventually
from tests.server.support import NIL, ROOT, create, fetch, is_fault, node_document, shown, store, update
from tests.vospace.support import (
    ANONYMOUS,
    PULL,
    PUSH,
    VOS,
    XML,
    core,
    encoded,
    endpoints,
    exists,
    half_sent,
    is_busy,
    move,
    names,
    node_at,
    push,
    read,
    synctrans,
    transfer,
    valid,
)
from vosfs.metadata.node import CORE
from vosfs.metadata.xml import NS

VIEWS = (
    '<vos:accepts><vos:view uri="urn:x:mine"/></vos:accepts><vos:provides><vos:view uri="urn:x:yours"/></vos:provides>'
    '<vos:capabilities><vos:capability uri="urn:x:c"/></vos:capabilities>'
)


# -- createNode ------------------------------------------------------------------------------------------------


@pytest.mark.holds("R48")
def test_a_node_must_say_what_it_is(space: Daemon, folder: str) -> None:
    document = re.sub(rb' uri="vos:[^"]*"', b"", node_document(f"{folder}/n"))
    assert b"vos://" not in document
    assert is_fault(space.request("PUT", f"/nodes{folder}/n", document, XML), 400, "InvalidURI")
    assert not exists(space, f"{folder}/n")


@pytest.mark.holds("R50", "R301")
@pytest.mark.parametrize(
    ("sent", "named"), [("a%62c", "abc"), ("abc", "%61bc"), ("%c3%a9", "%C3%A9"), ("a+b", "a%2Bb"), ("a~!", "a%7E%21")]
)  # fmt: skip
def test_paths_are_compared_decoded(space: Daemon, folder: str, sent: str, named: str) -> None:
    uri = f"vos://vosfs.local!vospace{folder}/{named}"
    assert space.request("PUT", f"/nodes{folder}/{sent}", node_document("", uri=uri), XML)[0] == 201
    assert space.request("POST", f"/nodes{folder}/{sent}", node_document("", uri=uri), XML)[0] == 200


@pytest.mark.holds("R58", "R109")
@pytest.mark.parametrize("kind", ["UnstructuredDataNode", "ContainerNode"])
def test_views_and_capabilities_of_a_client_do_nothing(space: Daemon, folder: str, kind: str) -> None:
    create(space, f"{folder}/plain", kind)
    document = node_document(f"{folder}/n", kind).replace(b"</vos:node>", VIEWS.encode() + b"</vos:node>")
    for method, status in (("PUT", 201), ("POST", 200)):
        answer = space.request(method, f"/nodes{folder}/n", document, XML)
        assert answer[0] == status, answer
        found, plain = read(space, f"/nodes{folder}/n"), read(space, f"/nodes{folder}/plain")
        for name in ("accepts", "provides", "capabilities"):
            uris = [[e.get("uri") for e in root.findall(f"{VOS}{name}/*")] for root in (found, plain)]
            assert uris[0] == uris[1]
            assert "urn:x:mine" not in uris[0]


@pytest.mark.holds("R59", "R316", "R60")
def test_accepts_is_filled_in(space: Daemon, folder: str) -> None:
    root = valid(create(space, f"{folder}/n")[2])
    accepts = {e.get("uri") for e in root.findall(f"{VOS}accepts/{VOS}view")}
    assert core("anyview") in accepts
    listed = {e.get("uri") for e in read(space, "/views").findall(f"{VOS}accepts/{VOS}view")}
    assert accepts <= listed
    assert root.find(VOS + "provides") is not None


@pytest.mark.holds("R46", "R53", "R52", "R47")
@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("", "DataNode"), ("Node", "DataNode"), ("DataNode", "DataNode"), ("UnstructuredDataNode", "DataNode"),
        ("StructuredDataNode", "DataNode"),
        ("ContainerNode", "ContainerNode"), ("LinkNode", "LinkNode"),
    ],
)  # fmt: skip
def test_all_types_are_parsed(space: Daemon, folder: str, given: str, kept: str) -> None:
    status, headers, body = create(space, f"{folder}/n", given, target="urn:x:y" if given == "LinkNode" else None)
    assert (status, shown(valid(body)).type) == (201, "vos:" + kept)
    assert shown(read(space, headers["Location"])).uri == f"{ROOT}{folder}/n"


@pytest.mark.holds("R62", "R63", "R319")
@pytest.mark.parametrize(
    "target",
    ["vos://vosfs.local~vospace/no/such/node", "vos://elsewhere!space/x%20y", "http://example.org/a?b=c#d", "ivo://a/b",
     "file:///etc/hosts", "urn:x:y"],
)  # fmt: skip
def test_a_target_is_kept_verbatim(space: Daemon, folder: str, target: str) -> None:
    assert create(space, f"{folder}/l", "LinkNode", target=target)[0] == 201
    assert node_at(space, f"{folder}/l").target == target
    assert node_at(space, folder).children[0].target == target


@pytest.mark.holds("R66")
def test_a_data_node_is_no_ancestor(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/d")
    answer = create(space, f"{folder}/d/n")
    assert is_fault(answer, 404, "ContainerNotFound") and f"{ROOT}{folder}/d" in answer[2].decode()


@pytest.mark.holds("R69")
def test_faults_have_an_order(space: Daemon, folder: str, home: str, bob: dict[str, str]) -> None:
    create(space, f"{home}/taken")
    create(space, f"{folder}/link", "LinkNode", target=ROOT + folder)
    wrong = node_document(f"{home}/other", "TableNode", {"length": "1"})
    read_only = {"length": "1"}
    # Syntax comes first, then the walk from the root, then rights, then the name, then properties.
    assert space.request("PUT", f"/nodes{home}/none/n", wrong, {**XML, **bob})[2].split()[0] in (
        b"InvalidURI",
        b"TypeNotSupported",
    )
    assert is_fault(create(space, f"{folder}/link/n", headers=bob, properties=read_only), 400, "LinkFound")
    assert is_fault(create(space, f"{folder}/none/n", headers=bob, properties=read_only), 404, "ContainerNotFound")
    assert is_fault(create(space, f"{home}/none/n", headers=bob), 403, "PermissionDenied")
    assert is_fault(create(space, f"{home}/taken", headers=bob), 403, "PermissionDenied")
    assert is_fault(create(space, f"{home}/taken", properties=read_only), 409, "DuplicateNode")
    assert is_fault(create(space, f"{home}/new", properties=read_only), 403, "PermissionDenied")


@pytest.mark.holds("R71", "R341", "R343")
def test_the_service_keeps_times_and_length(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    found = node_at(space, f"{folder}/n").properties
    assert found["length"] == "0"
    now = datetime.now(UTC)
    for name in ("btime", "ctime", "mtime", "date"):
        moment = datetime.fromisoformat(found[name].removesuffix("Z")).replace(tzinfo=UTC)
        assert now - timedelta(minutes=1) < moment <= now + timedelta(seconds=1), (name, found[name])


@pytest.mark.holds("R72", "R244", "R270")
def test_a_new_data_node_is_empty(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    assert fetch(space, f"{folder}/n") == b""
    end_point = synctrans(space, transfer(f"{ROOT}{folder}/n", PULL, ["httpget"])).endpoint()
    status, headers, body = space.request("GET", end_point, auth=False)
    assert (status, headers["Content-Length"], body) == (200, "0", b"")


@pytest.mark.holds("R73", "R327", "R330", "R329", "R47")
@pytest.mark.parametrize("kind", ["UnstructuredDataNode", "ContainerNode"])
def test_a_generated_name(space: Daemon, folder: str, kind: str) -> None:
    made = set()
    for _ in range(3):
        status, headers, body = create(space, f"{folder}/.auto", kind)
        assert status == 201, body
        uri = shown(valid(body)).uri
        assert uri.startswith(f"{ROOT}{folder}/") and not uri.endswith(".auto")
        assert shown(read(space, headers["Location"])).uri == uri
        made.add(uri)
    assert {child.uri for child in node_at(space, folder).children} == made and len(made) == 3
    assert is_fault(space.request("GET", f"/nodes{folder}/.auto"), 404, "NodeNotFound")


@pytest.mark.holds("R328", "R329")
def test_null_is_never_a_node(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/.null")
    create(space, f"{folder}/.null", "ContainerNode")
    assert names(space, folder) == []
    for resource in ("/nodes", "/files"):
        assert is_fault(space.request("GET", f"{resource}{folder}/.null"), 404, "NodeNotFound")


# -- getNode ---------------------------------------------------------------------------------------------------


@pytest.mark.holds("R74", "R75", "R78", "R316", "R317", "R318")
def test_no_parameters_mean_everything(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/d", b"x")
    for path in (folder, f"{folder}/d"):
        assert space.request("GET", f"/nodes{path}")[2] == space.request("GET", f"/nodes{path}?detail=max")[2]
    data = read(space, f"/nodes{folder}/d")
    assert {"accepts", "provides", "properties"} <= {etree.QName(e).localname for e in data}
    assert data.get("busy") == "false"
    container = read(space, f"/nodes{folder}")
    assert container.find(VOS + "accepts") is not None and container.find(VOS + "nodes") is not None


@pytest.mark.holds("R76", "R77", "R82", "R83", "R80")
@pytest.mark.parametrize("detail", ["min", "properties", "max"])
def test_what_each_detail_shows(space: Daemon, folder: str, detail: str) -> None:
    create(space, f"{folder}/c", "ContainerNode", properties={"title": "t"})
    create(space, f"{folder}/c/deep", "ContainerNode")
    store(space, f"{folder}/d", b"x")
    create(space, f"{folder}/l", "LinkNode", target="urn:x:y")
    root = read(space, f"/nodes{folder}?detail={detail}")
    children = list(root.iterfind(f"{VOS}nodes/{VOS}node"))
    assert [shown(child).type for child in children] == [
        "vos:ContainerNode",
        "vos:DataNode",
        "vos:LinkNode",
    ]
    inner = children[0].find(VOS + "nodes")
    assert inner is not None and len(inner) == 0
    assert children[2].findtext(VOS + "target") == "urn:x:y"
    for element in (root, *children, read(space, f"/nodes{folder}/d?detail={detail}")):
        assert (element.find(VOS + "properties") is not None) == (detail != "min")
        if detail != "max":
            assert element.find(VOS + "accepts") is None and element.find(VOS + "provides") is None
            assert element.find(VOS + "capabilities") is None and element.get("busy") is None
    if detail != "min":
        assert [shown(child).properties.get("title") for child in children] == ["t", None, None]
        assert shown(children[1]).properties["length"] == "1"
    link = read(space, f"/nodes{folder}/l?detail={detail}")
    assert link.findtext(VOS + "target") == "urn:x:y"


@pytest.mark.holds("R81", "R318", "R309")
def test_direct_children_only(space: Daemon, folder: str) -> None:
    for path in ("/a", "/a/b", "/a/b/c"):
        create(space, folder + path, "ContainerNode")
    assert names(space, folder) == ["a"]
    assert [c.uri for c in node_at(space, f"{folder}/a").children] == [f"{ROOT}{folder}/a/b"]
    assert names(space, f"{folder}/a/b") == ["c"]


@pytest.mark.holds("R89")
def test_there_is_no_offset(space: Daemon, folder: str) -> None:
    for name in "abc":
        create(space, f"{folder}/{name}")
    assert names(space, folder, "?offset=1") == names(space, folder, "?offset=-7&limit=5") == ["a", "b", "c"]


@pytest.mark.holds("R85", "R84")
def test_limits(space: Daemon, folder: str) -> None:
    for name in "abc":
        create(space, f"{folder}/{name}")
    for limit in range(5):
        assert names(space, folder, f"?limit={limit}") == ["a", "b", "c"][:limit]
    root = read(space, f"/nodes{folder}?limit=0")
    assert root.find(VOS + "nodes") is not None and root.find(VOS + "properties") is not None


@pytest.mark.holds("R91", "R90", "R88", "R87")
def test_a_listing_under_changes_misses_nothing(space: Daemon, folder: str) -> None:
    stays = [f"s{number:03d}" for number in range(0, 200, 2)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda name: create(space, f"{folder}/{name}")[0], stays)) == {201}
    done = threading.Event()

    def disturb() -> int:
        count = 0
        while not done.is_set():
            name = f"s{count % 100 * 2 + 1:03d}"
            assert create(space, f"{folder}/{name}")[0] == 201
            assert space.request("DELETE", f"/nodes{folder}/{name}")[0] == 204
            count += 1
        return count

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        disturbing = pool.submit(disturb)
        try:
            for _ in range(3):
                seen = names(space, folder, "?limit=7&detail=min")
                while True:
                    start = encoded(f"{ROOT}{folder}/{seen[-1]}")
                    page = names(space, folder, f"?limit=7&detail=min&uri={start}")
                    # The first is the last one seen, unless that one vanished.
                    fresh = page[1:] if page[:1] == seen[-1:] else page
                    if not fresh:
                        break
                    seen += fresh
                assert [name for name in seen if name in stays] == stays
                assert seen == sorted(set(seen))
        finally:
            done.set()
        assert disturbing.result(10) > 0


@pytest.mark.holds("R92", "R301")
def test_a_page_may_start_in_either_spelling(space: Daemon, folder: str) -> None:
    for name in ("a", "b%20!", "c"):
        create(space, f"{folder}/{name}")
    for authority in ("vosfs.local!vospace", "vosfs.local~vospace", "vosfs.local%21vospace"):
        for uri in (f"vos://{authority}{folder}/b%20!", f"vos://{authority}{folder}/b%20%21"):
            assert names(space, folder, f"?limit=2&uri={encoded(uri)}")[1:] == ["c"]
    create(space, f"{folder}/a2", "ContainerNode")
    create(space, f"{folder}/a2/x")
    for uri in (f"{ROOT}{folder}/a2/x", f"vos://elsewhere!space{folder}/a", "vos:a", ROOT + folder):
        assert is_fault(space.request("GET", f"/nodes{folder}?uri={encoded(uri)}"), 400, "InvalidURI")


@pytest.mark.holds("R90", "R15")
def test_a_listing_in_another_order(space: Daemon, folder: str) -> None:
    """As the vos client asks for it; what cannot be sorted by is not refused."""
    for name, size in (("b", 3), ("c", 1), ("a", 2)):
        store(space, f"{folder}/{name}", b"x" * size)
        made = node_at(space, f"{folder}/{name}").properties["date"]
        eventually("a later time", lambda made=made: datetime.now(UTC).replace(tzinfo=None).isoformat() > made + "5")  # type: ignore[misc]
    for by, order, found in [
        ("length", "asc", "cab"), ("length", "desc", "bac"), ("date", "desc", "acb"), ("date", "asc", "bca"), ("length", "", "cab"),
    ]:  # fmt: skip
        query = f"?sort={encoded(core(by))}" + (f"&order={order}" if order else "")
        assert names(space, folder, query) == list(found), query
        assert names(space, folder, query + "&limit=2") == list(found)[:2]
        start = encoded(f"{ROOT}{folder}/{found[1]}")
        assert names(space, folder, f"{query}&uri={start}") == list(found)[1:]
    for order in ("asc", "desc"):
        assert set(names(space, folder, f"?sort={encoded(core('title'))}&order={order}")) == set("abc")


@pytest.mark.holds("R94")
def test_reading_needs_the_right(
    space: Daemon, folder: str, home: str, alice: dict[str, str], bob: dict[str, str]
) -> None:
    store(space, f"{home}/n", b"x", alice)
    for path in (home, f"{home}/n"):
        assert node_at(space, path, headers=alice).uri == ROOT + path
        for who in (bob, ANONYMOUS):
            assert is_fault(space.request("GET", f"/nodes{path}", headers=who), 403, "PermissionDenied")


@pytest.mark.holds("R97", "R191", "R235", "R317")
def test_busy_while_bytes_come_in(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    assert not is_busy(space, f"{folder}/n")
    with half_sent(space, job.endpoint(), bytes(100_000)) as raw:
        eventually("busy", lambda: is_busy(space, f"{folder}/n"))
        assert job.phase() == "EXECUTING"
        raw.send(bytes(50_000))
        assert raw.answer().status == 201
        assert (job.phase(), is_busy(space, f"{folder}/n")) == ("COMPLETED", False)
        assert node_at(space, f"{folder}/n").properties["length"] == "100000"


@pytest.mark.holds("R191", "R267")
def test_busy_ends_with_a_broken_upload(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    with half_sent(space, job.endpoint(), bytes(100_000)) as raw:
        eventually("busy", lambda: is_busy(space, f"{folder}/n"))
        raw.reset()
    eventually("not busy", lambda: not is_busy(space, f"{folder}/n"))
    job.reaches("ERROR")
    assert fetch(space, f"{folder}/n") == b"old"


@pytest.mark.holds("R98", "R359", "R355")
def test_protocols_of_a_node(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x")
    served = {e.get("uri") for e in read(space, "/protocols").iter(VOS + "protocol")}
    empty = f'<vos:protocols xmlns:vos="{NS}"/>'.encode()
    status, headers, body = space.request("POST", f"/nodes{folder}/n", empty, XML)
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/xml"), body
    root = valid(body)
    found = {e.get("uri") for e in root.iter(VOS + "protocol")}
    assert root.tag == VOS + "protocols" and {core("httpget"), core("httpput")} <= found <= served
    assert is_fault(space.request("POST", f"/nodes{folder}/none", empty, XML), 404, "NodeNotFound")
    assert space.request("POST", f"/nodes{folder}/n", empty, {**XML, **ANONYMOUS})[0] in (200, 403)


@pytest.mark.holds("R99")
def test_view_data_redirects_to_the_bytes(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/a%20b", b"bytes")
    status, headers, _ = space.request("GET", f"/nodes{folder}/a%20b?view=data")
    assert (status, headers["Location"].partition("?")[0]) == (303, f"{space.url}/files{folder}/a%20b")
    assert space.request("GET", headers["Location"])[2] == b"bytes"
    assert is_fault(space.request("GET", f"/nodes{folder}/none?view=data"), 404, "NodeNotFound")


# -- setNode -----------------------------------------------------------------------------------------------------


@pytest.mark.holds("R100", "R101", "R102", "R103", "R56", "R339")
def test_set_answers_with_everything(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n", properties={"urn:x:old": "o", "urn:x:gone": "g"})
    status, _, body = update(space, f"{folder}/n", properties={"urn:x:new": "n", "urn:x:empty": "", "urn:x:gone": NIL})
    assert status == 200
    found = shown(valid(body)).properties
    assert found == node_at(space, f"{folder}/n").properties
    assert (found["urn:x:old"], found["urn:x:new"], found["urn:x:empty"]) == (
        "o",
        "n",
        "",
    ) and "urn:x:gone" not in found
    document = node_document(f"{folder}/n", properties={"urn:x:old": NIL}).replace(b'nil="true"', b'nil="1"')
    assert space.request("POST", f"/nodes{folder}/n", document, XML)[0] == 200
    assert "urn:x:old" not in node_at(space, f"{folder}/n").properties


@pytest.mark.holds("R110", "R61")
def test_children_in_a_document_are_not_made(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/c", "ContainerNode")
    inner = node_document(f"{folder}/c/x", "ContainerNode").decode()
    document = node_document(f"{folder}/c", "ContainerNode").decode()
    given = document.replace("</vos:node>", f"<vos:nodes>{inner}</vos:nodes></vos:node>").encode()
    assert space.request("POST", f"/nodes{folder}/c", given, XML)[0] == 200
    assert names(space, f"{folder}/c") == []


@pytest.mark.holds("R117", "R325", "R111")
def test_a_link_has_properties_of_its_own(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/d", properties={"title": "of the data"})
    create(space, f"{folder}/l", "LinkNode", target=f"{ROOT}{folder}/d", properties={"title": "of the link"})
    assert (
        update(space, f"{folder}/l", "LinkNode", {"title": "new", "urn:x:a": "b"}, target=f"{ROOT}{folder}/d")[0] == 200
    )
    found = node_at(space, f"{folder}/d").properties
    assert found["title"] == "of the data" and "urn:x:a" not in found
    assert node_at(space, f"{folder}/l").properties["title"] == "new"
    assert update(space, f"{folder}/l", "LinkNode", target="urn:x:elsewhere")[0] == 200
    assert node_at(space, f"{folder}/l").target == "urn:x:elsewhere"


@pytest.mark.holds("R114", "R68", "R125")
def test_writing_needs_the_right(
    space: Daemon, folder: str, home: str, alice: dict[str, str], bob: dict[str, str]
) -> None:
    assert create(space, f"{home}/n", headers=alice)[0] == 201
    assert update(space, f"{home}/n", properties={"publicread": "true"}, headers=alice)[0] == 200
    for who in (bob, ANONYMOUS):
        assert is_fault(create(space, f"{folder}/m", headers=who), 403, "PermissionDenied")
        assert is_fault(update(space, f"{home}/n", properties={"title": "t"}, headers=who), 403, "PermissionDenied")
        assert is_fault(space.request("DELETE", f"/nodes{home}/n", headers=who), 403, "PermissionDenied")
    assert "title" not in node_at(space, f"{home}/n").properties
    assert not exists(space, f"{folder}/m")


@pytest.mark.holds("R118")
def test_properties_change_ctime_only(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    before = node_at(space, f"{folder}/n").properties
    eventually("a later ctime", lambda: _touched(space, f"{folder}/n")["ctime"] > before["ctime"])
    after = node_at(space, f"{folder}/n").properties
    assert (after["mtime"], after["btime"], after["date"]) == (before["mtime"], before["btime"], before["date"])


def _touched(space: Daemon, path: str) -> dict[str, str]:
    found = node_at(space, path).properties
    update(space, path, properties={"title": found.get("title", "") + "x"})
    return node_at(space, path).properties


# -- deleteNode ----------------------------------------------------------------------------------------------------


@pytest.mark.holds("R124")
def test_a_deleted_link_leaves_its_target(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/c", "ContainerNode")
    store(space, f"{folder}/c/d", b"x")
    create(space, f"{folder}/l", "LinkNode", target=f"{ROOT}{folder}/c")
    assert space.request("DELETE", f"/nodes{folder}/l")[0] == 204
    assert (names(space, folder), fetch(space, f"{folder}/c/d")) == (["c"], b"x")


@pytest.mark.holds("R126")
def test_a_tree_goes_whole_or_not_at_all(space: Daemon, folder: str, home: str, alice: dict[str, str]) -> None:
    assert create(space, f"{home}/t", "ContainerNode", alice)[0] == 201
    assert create(space, f"{home}/t/mine", headers=alice)[0] == 201
    closed = {"groupwrite": "", "groupread": "", "publicread": "false"}
    assert create(space, f"{home}/t/closed", "ContainerNode", properties=closed)[0] == 201
    assert create(space, f"{home}/t/closed/n")[0] == 201
    assert is_fault(space.request("DELETE", f"/nodes{home}/t", headers=alice), 403, "PermissionDenied")
    assert names(space, f"{home}/t") == ["closed", "mine"] and names(space, f"{home}/t/closed") == ["n"]


@pytest.mark.holds("R128", "R269", "R119", "R120")
def test_deleted_bytes_are_gone(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/c", "ContainerNode")
    _, answer = push(space, f"{folder}/c/d", bytes(100_000))
    assert answer[0] == 201
    reads = synctrans(space, transfer(f"{ROOT}{folder}/c/d", PULL, ["httpget"])).endpoint()
    writes = endpoints(synctrans(space, transfer(f"{ROOT}{folder}/c/e", PUSH, ["httpput"])).details())[0][1]
    assert space.request("DELETE", f"/nodes{folder}/c")[::2] == (204, b"")
    assert space.request("GET", reads, auth=False)[0] == 404
    assert space.request("PUT", writes, b"x", auth=False)[0] == 404
    for resource in ("/nodes", "/files"):
        assert is_fault(space.request("GET", f"{resource}{folder}/c/d"), 404, "NodeNotFound")


@pytest.mark.holds("R129")
def test_a_crash_leaves_nodes_and_bytes_in_agreement(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    for number in range(12):
        create(daemon, f"/c{number}", "ContainerNode")
        for name in "ab":
            store(daemon, f"/c{number}/{name}", bytes([number]) * 50_000)
    first = threading.Event()

    def remove() -> int:
        gone = 0
        for number in range(12):
            try:
                if daemon.request("DELETE", f"/nodes/c{number}")[0] == 204:
                    gone += 1
            except OSError:
                break
            first.set()
        return gone

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        removing = pool.submit(remove)
        assert first.wait(10)
        daemon.stop(signal.SIGKILL)
        gone = removing.result(10)
    again = make_daemon()
    left = [int(name[1:]) for name in names(again, "")]
    assert len(left) in (12 - gone, 11 - gone) and gone > 0
    for number in left:
        assert names(again, f"/c{number}") == ["a", "b"]
        for name in "ab":
            assert fetch(again, f"/c{number}/{name}") == bytes([number]) * 50_000
    for number in set(range(12)) - set(left):
        assert again.request("GET", f"/files/c{number}/a")[0] == 404


@pytest.mark.holds("R326")
def test_what_is_immutable_stays(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/c", "ContainerNode", properties={"immutable": "true"})
    store(space, f"{folder}/d", b"old")
    assert update(space, f"{folder}/d", properties={"immutable": "true"})[0] == 200
    create(space, f"{folder}/l", "LinkNode", target="urn:x:y", properties={"immutable": "true"})
    for answer in (
        create(space, f"{folder}/c/n"),
        space.request("PUT", f"/files{folder}/d", b"new"),
        space.request("DELETE", f"/nodes{folder}/d"),
        space.request("DELETE", f"/nodes{folder}/c"),
        update(space, f"{folder}/l", "LinkNode", target="urn:x:z"),
    ):
        assert is_fault(answer, 403, "PermissionDenied")
    move(space, f"{folder}/d", f"{folder}/e").failed("PermissionDenied")
    job = synctrans(space, transfer(f"{ROOT}{folder}/d", PUSH, ["httpput"]))
    found = endpoints(read(space, job.url + "/results/transferDetails"))
    assert not found or is_fault(space.request("PUT", found[0][1], b"new", auth=False), 403, "PermissionDenied")
    assert update(space, f"{folder}/d", properties={"title": "t"})[0] == 200
    assert (fetch(space, f"{folder}/d"), node_at(space, f"{folder}/l").target) == (b"old", "urn:x:y")
    assert node_at(space, f"{folder}/d").properties["immutable"] == "true"
    assert CORE + "immutable" in {e.get("uri") for e in read(space, "/properties").iter(VOS + "property")}
