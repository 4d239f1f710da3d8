"""Capabilities, availability, and the lists of protocols, views and properties."""

from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from lxml import etree

from tests.conftest import Daemon, eventually
from tests.server.support import create, is_fault
from tests.vospace.support import ANONYMOUS, VOS, core, names, read
from vosfs.metadata.messages import PROTOCOL as GATEWAY
from vosfs.metadata.node import CORE

holds = pytest.mark.holds
VOSI = "{http://www.ivoa.net/xml/VOSICapabilities/v1.0}"
AVAILABILITY = "{http://www.ivoa.net/xml/VOSIAvailability/v1.0}"
XSI_TYPE = "{http://www.w3.org/2001/XMLSchema-instance}type"
STANDARD = {
    "ivo://ivoa.net/std/VOSI#capabilities": ("capabilities", "full"),
    "ivo://ivoa.net/std/VOSI#availability": ("availability", "full"),
    "ivo://ivoa.net/std/VOSpace/v2.0#protocols": ("protocols", ""),
    "ivo://ivoa.net/std/VOSpace/v2.0#views": ("views", ""),
    "ivo://ivoa.net/std/VOSpace/v2.0#properties": ("properties", ""),
    "ivo://ivoa.net/std/VOSpace/v2.0#nodes": ("nodes", "base"),
    "ivo://ivoa.net/std/VOSpace/v2.0#transfers": ("transfers", ""),
    "ivo://ivoa.net/std/VOSpace#sync-2.1": ("synctrans", ""),
    "ivo://ivoa.net/std/VOSpace/v2.0#sync": ("sync", ""),
    "ivo://ivoa.net/std/VOSpace#files-proto": ("files", "base"),
}


def uris(root: etree._Element, name: str) -> list[str]:
    """URIs of one of a document's lists."""
    return [e.get("uri") or "" for e in root.findall(f"{VOS}{name}/*")]


@holds("R287", "R290", "R291", "R292", "R293", "R2")
def test_capabilities(space: Daemon) -> None:
    root = read(space, "/capabilities", ANONYMOUS)
    assert root.tag == VOSI + "capabilities"
    found = {}
    for capability in root:
        (interface,) = capability.findall("interface")
        (url,) = interface.findall("accessURL")
        assert (capability.tag, interface.get(XSI_TYPE), interface.get("role")) == ("capability", "vs:ParamHTTP", "std")
        found[capability.get("standardID")] = (url.text, url.get("use"))
        assert all(e.tag == "securityMethod" for e in interface if e is not url)
    for standard, (resource, use) in STANDARD.items():
        url, shown = found[standard]
        assert (url, shown) == (f"{space.url}/{resource}", use or shown)
    for url, _ in found.values():
        assert space.request("GET", url or "")[0] != 404, url
    for standard in found:
        # A client parses every one as scheme, authority and path.
        assert standard and "://" in standard and "/" in standard.partition("://")[2]


@holds("R288", "R292", "R361", "R362")
def test_who_may_ask_for_what(space: Daemon) -> None:
    root = read(space, "/capabilities", ANONYMOUS)
    methods = {
        (c.get("standardID") or "").partition("#")[2]: [e.get("standardID") for e in c.iter("securityMethod")]
        for c in root
    }
    assert methods["capabilities"] == methods["availability"] == []
    # Without a standardID: anonymous.
    assert None in methods["nodes"] and "ivo://ivoa.net/sso#OAuth" in methods["nodes"]
    assert read(space, "/availability", ANONYMOUS).tag == AVAILABILITY + "availability"


@holds("R289")
def test_capabilities_say_when_they_changed(space: Daemon) -> None:
    for method in ("GET", "HEAD"):
        status, headers, _ = space.request(method, "/capabilities", headers=ANONYMOUS)
        assert status == 200 and parsedate_to_datetime(headers["Last-Modified"]) <= datetime.now(UTC)


@holds("R294", "R295")
def test_availability(space: Daemon) -> None:
    root = read(space, "/availability", ANONYMOUS)
    assert root.findtext(AVAILABILITY + "available") == "true"
    since = datetime.fromisoformat(root.findtext(AVAILABILITY + "upSince") or "")
    assert since <= datetime.now(UTC)


@holds("R296")
@pytest.mark.parametrize("resource", ["/capabilities", "/availability"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_vosi_is_read_only(space: Daemon, resource: str, method: str) -> None:
    status, headers, _ = space.request(method, resource, None if method == "DELETE" else b"x")
    assert (status, "GET" in headers["Allow"]) == (405, True)


@holds("R286", "R297")
@pytest.mark.parametrize("resource", ["searches", "tables", "search"])
def test_what_a_vospace_has_not(space: Daemon, resource: str) -> None:
    for method in ("GET", "POST"):
        assert space.request(method, f"/{resource}", b"<x/>" if method == "POST" else None)[0] == 404
    listed = [c.get("standardID") or "" for c in read(space, "/capabilities")]
    assert not [standard for standard in listed if standard.endswith(f"#{resource}")]


@holds("R298")
def test_the_access_policy_is_written_down(space: Daemon) -> None:
    docs = Path(__file__).parents[2] / "docs"
    written = [file for file in docs.glob("*.rst") if "access policy" in file.read_text().lower()]
    assert [file for file in written if file.name != "conformance.rst"]
    for word in ("groupread", "groupwrite", "publicread"):
        assert any(word in file.read_text() for file in written)


@holds("R37", "R38")
def test_protocols(space: Daemon) -> None:
    root = read(space, "/protocols", ANONYMOUS)
    assert [etree.QName(e).localname for e in root] == ["accepts", "provides"]
    four = {core(name) for name in ("httpget", "httpput", "httpsget", "httpsput")}
    assert {core("httpget"), core("httpput")} <= set(uris(root, "accepts")) <= four
    assert four <= set(uris(root, "provides"))
    assert GATEWAY not in uris(root, "accepts")


@holds("R39", "R40", "R43")
def test_views(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/d")
    root = read(space, "/views", ANONYMOUS)
    assert [etree.QName(e).localname for e in root] == ["accepts", "provides"]
    assert {core("anyview"), core("binaryview")} <= set(uris(root, "accepts"))
    assert {core("defaultview"), core("binaryview")} <= set(uris(root, "provides"))
    assert not [uri for uri in (*uris(root, "accepts"), *uris(root, "provides")) if uri.startswith("ivo://net.ivoa")]
    for name in ("accepts", "provides"):
        shown = {uri for path in (folder, f"{folder}/d") for uri in uris(read(space, f"/nodes{path}"), name)}
        assert set(uris(root, name)) == shown


@holds("R41", "R42")
def test_properties(space: Daemon, folder: str) -> None:
    for name in "ab":
        create(space, f"{folder}/{name}", properties={f"urn:x:used{folder}": name, "title": "t"})
    create(space, f"{folder}/c", properties={f"urn:x:unused{folder}": "x"})
    assert space.request("DELETE", f"/nodes{folder}/c")[0] == 204
    root = read(space, "/properties", ANONYMOUS)
    assert [etree.QName(e).localname for e in root] == ["accepts", "provides", "contains"]
    contains = uris(root, "contains")
    assert (
        contains.count(f"urn:x:used{folder}") == contains.count(CORE + "title") == contains.count(CORE + "length") == 1
    )
    assert len(contains) == len(set(contains))
    gone = f"urn:x:unused{folder}"
    eventually("not in use", lambda: gone not in uris(read(space, "/properties"), "contains"))
    for name in ("groupread", "groupwrite", "publicread"):
        assert CORE + name in uris(root, "accepts")
    for name in ("length", "mtime", "ctime", "btime", "date", "creator"):
        assert CORE + name in uris(root, "provides")
    assert names(space, folder) == ["a", "b"]


@holds("R45")
def test_a_private_space_still_says_what_it_is(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    create(daemon, "/n", properties={"urn:x:private": "v"})
    assert is_fault(daemon.request("GET", "/nodes", headers=ANONYMOUS), 403, "PermissionDenied")
    for resource in ("/protocols", "/views", "/properties"):
        read(daemon, resource, ANONYMOUS)


@holds("R360")
def test_our_own_interface_is_announced(space: Daemon, folder: str) -> None:
    assert GATEWAY in uris(read(space, "/protocols"), "provides")
    assert GATEWAY in [c.get("standardID") for c in read(space, "/capabilities")]
    found = read(space, f"/nodes{folder}").findall(f"{VOS}capabilities/{VOS}capability")
    assert [(e.get("uri"), e.findtext(VOS + "endpoint")) for e in found] == [(GATEWAY, space.url + "/gateway")]


@holds("R315", "R316", "R317", "R359")
def test_capabilities_of_nodes(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/d")
    create(space, f"{folder}/l", "LinkNode", target="urn:x:y")
    for path, has in ((folder, True), (f"{folder}/d", True), (f"{folder}/l", False)):
        root = read(space, f"/nodes{path}")
        assert (root.find(VOS + "capabilities") is not None) == has
        assert root.get("uri") and root.find(VOS + "properties") is not None
        for capability in root.findall(f"{VOS}capabilities/{VOS}capability"):
            assert capability.get("uri") and (capability.findtext(VOS + "endpoint") or "").startswith("http")
