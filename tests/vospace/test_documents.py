"""Every document that goes out is valid and in the one dialect; what comes in is read as the standards allow."""

import pytest
from lxml import etree

from tests.conftest import Daemon
from tests.server.support import ROOT, Raw, create, fetch, head, is_fault, node_document, store
from tests.vospace.support import (
    ANONYMOUS,
    PULL,
    PUSH,
    UWS,
    VOS,
    XML,
    by_parameters,
    core,
    new_job,
    node_at,
    push,
    ran,
    read,
    synctrans,
    transfer,
    valid,
)
from vosfs.metadata.node import CORE
from vosfs.metadata.xml import NS

RESOURCES = ("nodes", "transfers", "synctrans", "protocols", "views", "properties")


@pytest.mark.holds("R2", "R293")
@pytest.mark.parametrize("resource", [*RESOURCES, "capabilities", "availability"])
def test_all_resources_stand_under_one_base(space: Daemon, resource: str) -> None:
    assert space.request("GET", f"/{resource}")[0] in (200, 400)
    assert space.request("GET", f"/{resource}-not")[0] == 404


@pytest.mark.holds("R1")
def test_the_root_is_a_container(space: Daemon, folder: str) -> None:
    for resource in ("/nodes", "/nodes/"):
        root = read(space, resource + "?limit=0")
        assert root.get("{http://www.w3.org/2001/XMLSchema-instance}type") == "vos:ContainerNode"
        assert (root.get("uri") or "").rstrip("/") == ROOT
    assert node_at(space, folder).uri == ROOT + folder


@pytest.mark.holds("R12", "R13", "R4", "R321")
def test_every_document_is_valid(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/c", "ContainerNode", properties={"title": "t"})
    create(space, f"{folder}/l", "LinkNode", target="http://example.org/a?b=c&d")
    job, _ = push(space, f"{folder}/d", b"bytes")
    failed = synctrans(space, transfer(f"{ROOT}{folder}/none", PULL, ["httpget"]))
    pending = new_job(space, transfer(f"{ROOT}{folder}/d", PULL, ["httpget"]))
    moved = ran(space, transfer(f"{ROOT}{folder}/c", f"{ROOT}{folder}/e", keep="0")).completed()
    seen = set()
    for resource in (
        *[f"/nodes{folder}{name}?detail={level}" for name in ("", "/d", "/l", "/e") for level in ("min", "max", "properties")],
        "/protocols", "/views", "/properties", "/capabilities", "/availability", "/transfers",
        *[j.url + what for j in (job, failed, pending, moved) for what in ("", "/results", "/parameters")],
        job.url + "/results/transferDetails",
    ):  # fmt: skip
        root = read(space, resource)
        seen.add(etree.QName(root).localname)
        for element in root.iter():
            if etree.QName(element).namespace and "VOSpace" in etree.QName(element).namespace:
                assert etree.QName(element).namespace == NS
    assert seen == {
        "node", "protocols", "views", "properties", "capabilities", "availability", "jobs", "job", "results", "parameters",
        "transfer",
    }  # fmt: skip
    by_query = by_parameters(space, TARGET=f"{ROOT}{folder}/d", DIRECTION=PULL, PROTOCOL=core("httpget"))
    assert valid(by_query[2]).tag == VOS + "transfer"
    made = create(space, f"{folder}/new")
    assert valid(made[2]).tag == VOS + "node"
    posted = space.request("POST", f"/nodes{folder}/new", made[2], XML)
    assert posted[0] == 200 and valid(posted[2]).tag == VOS + "node"


@pytest.mark.holds("R13")
def test_elements_come_in_the_schemas_order(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/d")
    create(space, f"{folder}/l", "LinkNode", target="vos://a!b/c")

    def order(path: str) -> list[str]:
        return [etree.QName(e).localname for e in read(space, f"/nodes{path}")]

    assert order(folder) == ["properties", "accepts", "provides", "capabilities", "nodes"]
    assert order(f"{folder}/d") == ["properties", "accepts", "provides", "capabilities"]
    assert order(f"{folder}/l") == ["properties", "target"]
    params = {CORE + "length": "5"}
    details = synctrans(space, transfer(f"{ROOT}{folder}/d", PULL, ["httpget"], "binaryview", params=params)).details()
    found = [etree.QName(e).localname for e in details]
    assert found == ["target", "direction", "view", "protocol", "param"]


@pytest.mark.holds("R4")
def test_another_namespace_is_another_dialect(space: Daemon, folder: str) -> None:
    document = node_document(f"{folder}/n", namespace="http://www.ivoa.net/xml/VOSpace/v2.1")
    assert is_fault(space.request("PUT", f"/nodes{folder}/n", document, XML), 400, "InvalidArgument")
    document = transfer(f"{ROOT}{folder}", PULL, ["httpget"]).replace(b"v2.0", b"v2.1")
    assert is_fault(space.request("POST", "/transfers", document, XML), 400, "InvalidArgument")


@pytest.mark.holds("R5")
@pytest.mark.parametrize("version", ["", "2.0", "2.1"])
def test_any_version_comes_in_and_2_1_goes_out(space: Daemon, folder: str, version: str) -> None:
    given = f' version="{version}"'.encode() if version else b""
    document = node_document(f"{folder}/n").replace(b' version="2.1"', given)
    status, _, body = space.request("PUT", f"/nodes{folder}/n", document, XML)
    assert (status, valid(body).get("version")) == (201, "2.1")
    asked = transfer(f"{ROOT}{folder}/n", PULL, ["httpget"]).replace(b' version="2.1"', given)
    job = synctrans(space, asked)
    assert job.details().get("version") == "2.1"
    assert job.document().find(f"{UWS}jobInfo/{VOS}transfer") is not None
    assert read(space, f"/nodes{folder}").get("version") == "2.1"


@pytest.mark.holds("R6")
@pytest.mark.parametrize("prefix", ["", "v", "vos", "xsi"])
def test_any_prefix_names_a_type(space: Daemon, folder: str, prefix: str) -> None:
    colon, name = (f"{prefix}:", f":{prefix}") if prefix else ("", "")
    body = (
        f'<{colon}node xmlns{name}="{NS}" xmlns:i="http://www.w3.org/2001/XMLSchema-instance"'
        f' i:type="{colon}ContainerNode" uri="{ROOT}{folder}/n"/>'
    ).encode()
    assert space.request("PUT", f"/nodes{folder}/n", body, XML)[0] == 201
    assert node_at(space, f"{folder}/n").type == "vos:ContainerNode"


@pytest.mark.holds("R7")
def test_types_go_out_with_the_prefix_vos(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/c", "ContainerNode")
    create(space, f"{folder}/d")
    create(space, f"{folder}/l", "LinkNode", target="vos://a!b/c")
    body = space.request("GET", f"/nodes{folder}")[2]
    for kind in (b"ContainerNode", b"DataNode", b"LinkNode"):
        assert b'xsi:type="vos:' + kind + b'"' in body


@pytest.mark.holds("R9")
@pytest.mark.parametrize("kind", ["text/xml", "application/xml", "text/xml; charset=utf-8", "image/png", ""])
@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_xml_for_nodes_comes_under_any_name(space: Daemon, folder: str, method: str, kind: str) -> None:
    if method == "POST":
        create(space, f"{folder}/n")
    document = node_document(f"{folder}/n", properties={"title": "t"})
    lines = [f"Content-Type: {kind}"] if kind else []
    with Raw(space) as raw:
        raw.send(head(space, method, f"/nodes{folder}/n", f"Content-Length: {len(document)}", *lines) + document)
        assert raw.answer().status == (201 if method == "PUT" else 200)
    assert node_at(space, f"{folder}/n").properties["title"] == "t"


@pytest.mark.holds("R10")
@pytest.mark.parametrize("resource", ["/nodes{folder}/n", "/transfers", "/synctrans"])
@pytest.mark.parametrize(
    "body",
    [b"<", b"no xml", b"<a/>", b"<node/>", b'<node xmlns="urn:x"/>', b"\xff\xfe\0", b"<a>&b;</a>", b"<a><b></a>", b"<a b='1' b='2'/>"],
)  # fmt: skip
def test_bad_xml_is_an_invalid_argument(space: Daemon, folder: str, resource: str, body: bytes) -> None:
    method = "PUT" if "nodes" in resource else "POST"
    answer = space.request(method, resource.format(folder=folder), body, XML)
    assert is_fault(answer, 400, "InvalidArgument")


@pytest.mark.holds("R11")
def test_documents_have_no_entities_and_a_limit(space: Daemon, folder: str) -> None:
    document = node_document(f"{folder}/n", properties={"title": "&x;"}).replace(b"&amp;x;", b"&x;")
    for declared in (
        b'<!DOCTYPE node [<!ENTITY x "y">]>',
        b'<!DOCTYPE node [<!ENTITY x SYSTEM "file:///etc/hostname">]>',
        b'<!DOCTYPE node SYSTEM "http://127.0.0.1:9/x.dtd">',
        b'<!DOCTYPE node [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;"><!ENTITY x "&b;&b;&b;">]>',
    ):
        assert is_fault(space.request("PUT", f"/nodes{folder}/n", declared + document, XML), 400, "InvalidArgument")
    long = node_document(f"{folder}/n", properties={f"urn:x:{n}": "v" * 60_000 for n in range(80)})
    assert space.request("PUT", f"/nodes{folder}/n", long, XML)[0] in (400, 413)
    assert node_at(space, folder).children == []


@pytest.mark.holds("R15")
def test_unknown_parameters_change_nothing(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    plain = space.request("GET", f"/nodes{folder}")
    assert space.request("GET", f"/nodes{folder}?foo=bar&x")[2] == plain[2]
    document = node_document(f"{folder}/m")
    assert space.request("PUT", f"/nodes{folder}/m?foo=bar", document, XML)[0] == 201
    assert space.request("POST", f"/nodes{folder}/m?foo=bar", document, XML)[0] == 200
    assert space.request("DELETE", f"/nodes{folder}/m?foo=bar")[0] == 204


@pytest.mark.holds("R16")
def test_a_path_is_decoded_once(space: Daemon, folder: str) -> None:
    assert create(space, f"{folder}/%2541")[0] == 201
    assert space.request("GET", f"/nodes{folder}/A")[0] == 404
    assert space.request("GET", f"/nodes{folder}/%41")[0] == 404
    assert node_at(space, f"{folder}/%25%34%31").uri == f"{ROOT}{folder}/%2541"
    store(space, f"{folder}/%C3%A9%2B+", b"x")
    assert fetch(space, f"{folder}/%c3%a9+%2b") == b"x"


@pytest.mark.holds("R18")
def test_head_wherever_get(space: Daemon, folder: str) -> None:
    job, _ = push(space, f"{folder}/d", b"bytes")
    end_point = synctrans(space, transfer(f"{ROOT}{folder}/d", PULL, ["httpget"])).endpoint()
    query = f"TARGET={ROOT}{folder}/d&DIRECTION={PULL}&PROTOCOL={CORE.replace('#', '%23')}httpget"
    for resource in (
        f"/nodes{folder}", f"/nodes{folder}/d", f"/nodes{folder}/none", f"/files{folder}/d", "/protocols", "/views",
        "/properties", "/capabilities", "/availability", "/transfers", job.url, job.url + "/phase",
        job.url + "/results/transferDetails", job.url + "/error", job.url + "/owner", end_point, f"/synctrans?{query}",
    ):  # fmt: skip
        got, told = space.request("GET", resource), space.request("HEAD", resource)
        assert (told[0], told[2]) == (got[0], b""), resource
        assert told[1].get("Content-Type") == got[1].get("Content-Type"), resource


@pytest.mark.holds("R14")
@pytest.mark.parametrize(
    ("method", "resource"),
    [
        ("DELETE", "/protocols"), ("PUT", "/views"), ("POST", "/properties"), ("PUT", "/transfers"), ("PATCH", "/nodes"),
        ("DELETE", "/synctrans"), ("PUT", "/synctrans"), ("DELETE", "/capabilities"), ("POST", "/availability"),
        ("DELETE", "/files/x"),
    ],
)  # fmt: skip
def test_what_a_resource_does_not_define_is_405(space: Daemon, method: str, resource: str) -> None:
    status, headers, _ = space.request(method, resource)
    assert status == 405
    allowed = {name.strip() for name in headers["Allow"].split(",")}
    assert allowed and method not in allowed
    for name in allowed & {"GET", "HEAD"}:
        assert space.request(name, resource)[0] != 405


@pytest.mark.holds("R45", "R287", "R294")
def test_service_metadata_is_public(space: Daemon) -> None:
    for resource in ("/protocols", "/views", "/properties", "/capabilities", "/availability"):
        read(space, resource, ANONYMOUS)


@pytest.mark.holds("R8")
def test_xml_is_sent_as_text_xml(space: Daemon, folder: str) -> None:
    for answer in (
        create(space, f"{folder}/n"),
        space.request("GET", f"/nodes{folder}"),
        space.request("GET", "/transfers"),
        space.request("GET", "/protocols"),
        space.request("POST", f"/nodes{folder}/n", node_document(f"{folder}/n"), XML),
        by_parameters(space, TARGET=f"{ROOT}{folder}/n", DIRECTION=PUSH, PROTOCOL=core("httpput")),
    ):
        assert answer[0] in (200, 201) and answer[1]["Content-Type"].split(";")[0] == "text/xml", answer
