"""Identifiers: what names a node, how it is written, and what names none."""

import pytest
from lxml import etree

from tests.conftest import Daemon
from tests.server.support import AUTHORITY, ROOT, Raw, create, fetch, head, is_fault, node_document, store
from tests.vospace.support import (
    PULL,
    PUSH,
    XML,
    by_parameters,
    core,
    encoded,
    endpoints,
    exists,
    move,
    names,
    node_at,
    push,
    ran,
    read,
    synctrans,
    transfer,
    valid,
)

holds = pytest.mark.holds
SPELLINGS = ("vosfs.local!vospace", "vosfs.local~vospace", "vosfs.local%21vospace", "vosfs.local%7Evospace")


def put_raw(space: Daemon, path: str, uri: str = "") -> tuple[int, bytes]:
    """createNode with a path that no library would send."""
    document = node_document(path, uri=uri or None)
    with Raw(space) as raw:
        raw.send(head(space, "PUT", f"/nodes{path}", f"Content-Length: {len(document)}") + document)
        answer = raw.answer()
    return answer.status, answer.body


def invalid(answer: tuple[int, bytes]) -> bool:
    assert (answer[0], answer[1].split()[0]) == (400, b"InvalidURI"), answer
    return True


@holds("R299", "R300")
@pytest.mark.parametrize(
    "uri", ["ivo://vosfs.local/vospace{f}/n", "http://vosfs.local!vospace{f}/n", "vos:{f}/n", "VOSPACE://x{f}/n", "{f}/n", "vos:///n"]
)  # fmt: skip
def test_nodes_have_vos_uris(space: Daemon, folder: str, uri: str) -> None:
    assert invalid(put_raw(space, f"{folder}/n", uri.format(f=folder)))
    given = uri.format(f=folder)
    answer = by_parameters(space, TARGET=given, DIRECTION=PULL, PROTOCOL=core("httpget"))
    assert is_fault(answer, 400, "InvalidURI")
    assert names(space, folder) == []


@holds("R300", "R302", "R303")
def test_the_authority_is_the_ivo_identifier(space: Daemon, folder: str) -> None:
    # ivo://vosfs.local/vospace, its slash replaced.
    assert node_at(space, folder).uri == f"vos://vosfs.local~vospace{folder}"


@holds("R301", "R50", "R222")
@pytest.mark.parametrize("authority", SPELLINGS)
def test_spellings_of_the_authority(space: Daemon, folder: str, authority: str) -> None:
    top = f"vos://{authority}{folder}"
    assert space.request("PUT", f"/nodes{folder}/a", node_document("", uri=f"{top}/a"), XML)[0] == 201
    assert space.request("POST", f"/nodes{folder}/a", node_document("", uri=f"{top}/a"), XML)[0] == 200
    assert names(space, folder, f"?uri={encoded(top + '/a')}") == ["a"]
    assert create(space, f"{folder}/l", "LinkNode", target=f"{top}/a")[0] == 201
    store(space, f"{folder}/a", b"bytes")
    assert fetch(space, f"{folder}/l") == b"bytes"
    answer = by_parameters(space, TARGET=f"{top}/a", DIRECTION=PULL, PROTOCOL=core("httpget"))
    assert answer[0] == 200 and endpoints(valid(answer[2]))
    assert endpoints(synctrans(space, transfer(f"{top}/a", PUSH, ["httpput"])).details())
    ran(space, transfer(f"{top}/a", f"{top}/b", keep="false")).completed()
    assert names(space, folder) == ["b", "l"]


@holds("R302", "R303", "R304")
def test_all_output_is_written_one_way(space: Daemon, folder: str) -> None:
    other = f"vos://vosfs.local!vospace{folder}"
    documents = []
    document = node_document("", "ContainerNode", uri=f"{other}/a%20%C3%A9")
    documents.append(space.request("PUT", f"/nodes{folder}/a%20%C3%A9", document, XML)[2])
    job = synctrans(space, transfer(f"{other}/a%20%C3%A9/n", PUSH, ["httpput"]))
    assert space.request("PUT", job.endpoint(), b"x", auth=False)[0] == 201
    documents += [
        space.request("GET", f"/nodes{path}")[2] for path in (folder, f"{folder}/a%20%C3%A9", f"{folder}/a%20%C3%A9/n")
    ]
    documents.append(space.request("GET", f"/nodes{folder}/none")[2])
    documents.append(space.request("GET", job.url + "/results")[2])
    moved = ran(space, transfer(f"{other}/a%20%C3%A9", f"{other}/b", keep="false")).completed()
    documents.append(space.request("GET", moved.url + "/results")[2])
    for body in documents:
        assert b"vos://" in body and body.isascii(), body
        assert b"vosfs.local!" not in body and body.count(b"vos://") == body.count(f"vos://{AUTHORITY}/".encode())
        assert b"//t" not in body.replace(b"vos://", b"").replace(b"http://", b"")
    root = read(space, "/nodes?limit=0").get("uri")
    assert root in (ROOT, ROOT + "/")


@holds("R304", "R306", "R318", "R319")
@pytest.mark.parametrize(
    "name", ["%3F", "%23", "%25", "%5B%5D", "%01%7F", "%C3%A9", "%F0%9F%98%80", "%22%3C%3E", "%5C", "%5E%60%7B%7C%7D", "a%20b", "%25zz"]
)  # fmt: skip
def test_any_character_goes_round(space: Daemon, folder: str, name: str) -> None:
    status, headers, body = create(space, f"{folder}/{name}")
    assert status == 201, body
    for uri in (valid(body).get("uri") or "", node_at(space, folder).children[0].uri):
        assert uri.isascii() and uri == f"{ROOT}{folder}/{name}"
    assert read(space, headers["Location"]).get("uri") == f"{ROOT}{folder}/{name}"
    job, answer = push(space, f"{folder}/{name}", b"x")
    assert (answer[0], job.results()["dataNode"]) == (201, f"{ROOT}{folder}/{name}")
    assert space.request("GET", f"/files{folder}/{name}")[2] == b"x"
    move(space, f"{folder}/{name}", f"{folder}/{name}2").completed()
    assert names(space, folder) == [f"{name}2"]


@holds("R305")
def test_a_space_is_not_a_character_of_a_uri(space: Daemon, folder: str) -> None:
    assert is_fault(space.request("PUT", f"/nodes{folder}/n", node_document(f"{folder}/a b"), XML), 400, "InvalidURI")
    assert is_fault(
        by_parameters(space, TARGET=f"{ROOT}{folder}/a b", DIRECTION=PULL, PROTOCOL=core("httpget")), 400, "InvalidURI"
    )
    ran(space, transfer(f"{ROOT}{folder}/a b", PUSH, ["httpput"])).failed("InvalidURI")
    assert create(space, f"{folder}/a%20b")[0] == 201
    assert names(space, folder) == ["a%20b"]


@holds("R307", "R308")
@pytest.mark.parametrize("tail", ["#fragment", "?query=1", "?a#b", "#", "?"])
def test_fragments_and_queries_select_nothing(space: Daemon, folder: str, tail: str) -> None:
    store(space, f"{folder}/n", b"x")
    answer = by_parameters(space, TARGET=f"{ROOT}{folder}/n{tail}", DIRECTION=PULL, PROTOCOL=core("httpget"))
    assert answer[0] == 200 and endpoints(valid(answer[2]))
    document = node_document("", uri=f"{ROOT}{folder}/m{tail}")
    assert space.request("PUT", f"/nodes{folder}/m", document, XML)[0] == 201
    assert node_at(space, folder).children[0].uri == f"{ROOT}{folder}/m"


@holds("R309", "R65")
def test_there_are_no_implied_containers(space: Daemon, folder: str) -> None:
    assert is_fault(create(space, f"{folder}/a/b/c"), 404, "ContainerNotFound")
    assert is_fault(space.request("PUT", f"/files{folder}/a/b", b"x"), 404, "ContainerNotFound")
    assert push_fails(space, f"{folder}/a/b")
    assert names(space, folder) == []
    for path in ("/a", "/a/b"):
        assert create(space, folder + path, "ContainerNode")[0] == 201
    assert create(space, f"{folder}/a/b/c")[0] == 201
    for path in ("", folder, f"{folder}/a", f"{folder}/a/b"):
        assert node_at(space, path, "?limit=0").type == "vos:ContainerNode"


def push_fails(space: Daemon, path: str) -> bool:
    return bool(synctrans(space, transfer(ROOT + path, PUSH, ["httpput"])).failed("ContainerNotFound"))


@holds("R310", "R312")
@pytest.mark.parametrize("part", ["..", ".", "%2e%2e", "%2E", ".%2e", "a%2Fb", "a%2fb", "%00", "a%00b"])
def test_segments_that_name_nothing(space: Daemon, folder: str, part: str) -> None:
    create(space, f"{folder}/n", "ContainerNode")
    for path in (f"{folder}/{part}", f"{folder}/n/{part}", f"{folder}/{part}/n", f"{folder}/n/{part}/x"):
        assert invalid(put_raw(space, path))
        for resource in ("/nodes", "/files"):
            with Raw(space) as raw:
                raw.send(head(space, "GET", resource + path))
                answer = raw.answer()
            assert (answer.status, answer.body.split()[0]) == (400, b"InvalidURI")
        ran(space, transfer(ROOT + path, PULL, ["httpget"])).failed("InvalidURI")
        ran(space, transfer(f"{ROOT}{folder}/n", ROOT + path, keep="false")).failed("InvalidURI")
    assert names(space, folder) == ["n"]


@holds("R311")
def test_slashes(space: Daemon, folder: str) -> None:
    assert create(space, f"{folder}/c/", "ContainerNode")[0] == 201
    for path in (f"{folder}/c", f"{folder}/c/"):
        assert node_at(space, path).uri == f"{ROOT}{folder}/c"
    for path in (f"{folder}//c", f"{folder}/c//", f"{folder}/c//n"):
        assert invalid(put_raw(space, path))
    document = node_document(f"{folder}//n")
    assert is_fault(space.request("PUT", f"/nodes{folder}/n", document, XML), 400, "InvalidURI")


@holds("R313")
def test_names_are_bytes_of_utf_8(space: Daemon, folder: str) -> None:
    composed, decomposed = "%C3%A1", "a%CC%81"
    for name in (composed, decomposed, "File", "file"):
        assert create(space, f"{folder}/{name}")[0] == 201
    assert set(names(space, folder)) == {composed, decomposed, "File", "file"}
    assert not exists(space, f"{folder}/FILE")


@holds("R313")
def test_a_name_that_is_not_utf_8(space: Daemon, folder: str) -> None:
    """Mounts keep any bytes in a name, so such a name is kept and shown exactly, never changed."""
    status, body = put_raw(space, f"{folder}/a%FF")
    if status == 400:
        assert body.split()[0] == b"InvalidURI"
    else:
        assert status == 201 and names(space, folder) == ["a%FF"]
        assert etree.fromstring(body).get("uri") == f"{ROOT}{folder}/a%FF"


@holds("R314")
def test_lengths(space: Daemon, folder: str) -> None:
    for name in ("x" * 255, "%C3%A9" * 127):
        assert create(space, f"{folder}/{name}")[0] == 201
    for name in ("x" * 256, "%C3%A9" * 128, "/".join(["y" * 200] * 25)):
        assert invalid(put_raw(space, f"{folder}/{name}"))
        ran(space, transfer(f"{ROOT}{folder}/{name}", PULL, ["httpget"])).failed("InvalidURI")
    assert len(names(space, folder)) == 2
