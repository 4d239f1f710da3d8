"""Properties: any URI, any text, exact lengths and times, and what the service keeps for itself."""

import base64
import hashlib
import re

import pytest

from tests.conftest import Daemon, eventually
from tests.server.support import NIL, create, fetch, is_fault, node_document, shown, store, update
from tests.vospace.support import ANONYMOUS, VOS, XML, node_at, push, read, valid
from vosfs.metadata.node import CORE

holds = pytest.mark.holds
KEPT = ("length", "mtime", "ctime", "btime", "date", "creator", "MD5", "availableSpace", "quota")
KIB = 1024


@holds("R337", "R344")
def test_each_property_says_what_it_is(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"x")
    update(space, f"{folder}/n", properties={"title": "t", "urn:x:a": "b"})
    found = read(space, f"/nodes{folder}/n").findall(f"{VOS}properties/{VOS}property")
    assert len({e.get("uri") for e in found}) == len(found)
    for element in found:
        name = (element.get("uri") or "").removeprefix(CORE)
        assert element.get("readOnly") == ("true" if name in KEPT else "false"), name


@holds("R338", "R56", "R339")
@pytest.mark.parametrize(
    "uri", ["urn:my-property", "http://example.org/p?q=1&r=2#f", "ivo://other.auth/props#p", "urn:x:%C3%A9", "quality", "urn:x:" + "l" * 500]
)  # fmt: skip
def test_any_uri_is_a_property(space: Daemon, folder: str, uri: str) -> None:
    text = " <&>\"' \u00e9\U0001f600 "
    document = node_document(f"{folder}/n").replace(
        b"<vos:properties>",
        f'<vos:properties><vos:property uri="{uri.replace("&", "&amp;")}"> &lt;&amp;&gt;"\' \u00e9\U0001f600 </vos:property>'.encode(),
    )
    status, _, body = space.request("PUT", f"/nodes{folder}/n", document, XML)
    assert status == 201, body
    assert shown(valid(body)).properties[uri] == node_at(space, f"{folder}/n").properties[uri] == text


@holds("R340", "R369", "R370")
def test_lists_of_groups(space: Daemon, folder: str, alice: dict[str, str], bob: dict[str, str]) -> None:
    create(space, f"{folder}/n", properties={"publicread": "false"})
    for given in (
        "team",
        "others,team",
        "others team",
        "ivo://x/gms?others ivo://x/gms?team",
        "ivo://cadc.nrc.ca/gms?team",
        "a, team",
    ):
        assert update(space, f"{folder}/n", properties={"groupread": given})[0] == 200
        shown_back = node_at(space, f"{folder}/n").properties["groupread"]
        assert set(re.split(r"[, ]+", shown_back)) == set(re.split(r"[, ]+", given))
        statuses = [space.request("GET", f"/nodes{folder}/n", headers=who)[0] for who in (alice, bob, ANONYMOUS)]
        assert statuses == [200, 403, 403], given
    update(space, f"{folder}/n", properties={"groupread": "a b"})
    assert node_at(space, f"{folder}/n").properties["groupread"] in ("a,b", "a b")


@holds("R340")
def test_groups_are_written_with_commas(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n", properties={"groupread": "a,b", "groupwrite": "c,d"})
    found = node_at(space, f"{folder}/n").properties
    assert (found["groupread"], found["groupwrite"]) == ("a,b", "c,d")


@holds("R341", "R342")
def test_core_properties(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"12345", {"Content-Type": "text/x-it"})
    update(space, f"{folder}/n", properties={"groupread": "g", "groupwrite": "h"})
    found = node_at(space, f"{folder}/n").properties
    assert {
        "length",
        "mtime",
        "ctime",
        "btime",
        "date",
        "creator",
        "groupread",
        "groupwrite",
        "publicread",
    } <= found.keys()
    for name in ("mtime", "ctime", "btime"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found[name]), name
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?", found["date"])
    assert found["publicread"] in ("true", "false")


@holds("R343", "R235")
@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
def test_lengths_are_exact(space: Daemon, folder: str, size: int) -> None:
    push(space, f"{folder}/n", bytes(size))
    assert node_at(space, f"{folder}/n").properties["length"] == str(size)
    store(space, f"{folder}/n", bytes(size + 1))
    assert node_at(space, f"{folder}/n").properties["length"] == str(size + 1)


@holds("R344", "R104", "R57", "R105")
@pytest.mark.parametrize("name", KEPT)
def test_what_the_service_keeps(space: Daemon, folder: str, name: str) -> None:
    assert is_fault(create(space, f"{folder}/m", properties={name: "1"}), 403, "PermissionDenied")
    store(space, f"{folder}/n", b"x")
    before = node_at(space, f"{folder}/n").properties
    assert is_fault(update(space, f"{folder}/n", properties={name: "77", "title": "t"}), 403, "PermissionDenied")
    assert node_at(space, f"{folder}/n").properties == before
    if name in before:
        assert update(space, f"{folder}/n", properties={name: before[name], "title": "t"})[0] == 200
        assert node_at(space, f"{folder}/n").properties["title"] == "t"


@holds("R345")
def test_type_and_checksum(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"bytes", {"Content-Type": "image/fits"})
    found = node_at(space, f"{folder}/n").properties
    assert (found["type"], found["MD5"]) == ("image/fits", hashlib.md5(b"bytes", usedforsecurity=False).hexdigest())
    assert update(space, f"{folder}/n", properties={"type": "text/plain"})[0] == 200
    _, headers, _ = space.request("GET", f"/files{folder}/n")
    assert headers["Content-Type"] == "text/plain"
    assert headers["Digest"] == "md5=" + base64.b64encode(bytes.fromhex(found["MD5"])).decode()


@holds("R346", "R369")
@pytest.mark.parametrize(("name", "other"), [("publicread", "ispublic"), ("ispublic", "publicread")])
def test_public_by_either_name(space: Daemon, folder: str, name: str, other: str) -> None:
    store(space, f"{folder}/n", b"x")
    for value, status in (("true", 200), ("false", 403), ("1", 200), ("0", 403)):
        assert update(space, f"{folder}/n", properties={name: value})[0] == 200
        found = node_at(space, f"{folder}/n").properties
        assert found[name] == found[other] == ("true" if status == 200 else "false")
        assert space.request("GET", f"/files{folder}/n", headers=ANONYMOUS)[0] == status


@holds("R347", "R106", "R116")
@pytest.mark.parametrize(("name", "value"), [("publicread", "maybe"), ("ispublic", "2"), ("immutable", "x")])
def test_values_are_checked(space: Daemon, folder: str, name: str, value: str) -> None:
    create(space, f"{folder}/n")
    before = node_at(space, f"{folder}/n").properties
    answer = update(space, f"{folder}/n", properties={"title": "t", name: value})
    assert is_fault(answer, 400, "InvalidArgument")
    assert node_at(space, f"{folder}/n").properties == before
    assert is_fault(create(space, f"{folder}/m", properties={name: value}), 400, "InvalidArgument")


@holds("R348")
def test_much_fits(space: Daemon, folder: str) -> None:
    long = "v" * (64 * KIB)
    assert create(space, f"{folder}/n", properties={"urn:x:long": long})[0] == 201
    assert node_at(space, f"{folder}/n").properties["urn:x:long"] == long
    many = {f"urn:x:n{number}": str(number) for number in range(256)}
    assert create(space, f"{folder}/m", properties=many)[0] == 201
    found = node_at(space, f"{folder}/m").properties
    assert {uri: found[uri] for uri in many} == many
    answer = create(space, f"{folder}/o", properties={"urn:x:long": long + "v"})
    assert answer[0] in (400, 413) and answer[2].split()[0] == b"InvalidArgument"
    answer = create(space, f"{folder}/o", properties={f"urn:x:n{number}": "" for number in range(257)})
    assert answer[0] in (400, 413) and answer[2].split()[0] == b"InvalidArgument"


@holds("R349", "R102", "R103")
def test_what_xml_carries(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/n")
    for text in ("  both ends  ", "\ttab\nline", "a\rb", "", "]]>", "\ufffd"):
        assert update(space, f"{folder}/n", properties={"urn:x:a": text})[0] == 200
        assert node_at(space, f"{folder}/n").properties["urn:x:a"] == text
    for code in ("&#1;", "&#11;", "&#xFFFE;", "&#xD800;", "\x02", "\x0b"):
        document = node_document(f"{folder}/n", properties={"urn:x:a": "@"}).replace(b"@", code.encode())
        assert is_fault(space.request("POST", f"/nodes{folder}/n", document, XML), 400, "InvalidArgument")
    assert update(space, f"{folder}/n", properties={"urn:x:a": NIL})[0] == 200
    assert "urn:x:a" not in node_at(space, f"{folder}/n").properties


@holds("R370", "R22")
def test_rights_are_set_by_their_owner(space: Daemon, folder: str, alice: dict[str, str], bob: dict[str, str]) -> None:
    create(space, f"{folder}/c", "ContainerNode", properties={"groupwrite": "team", "publicread": "false"})
    assert create(space, f"{folder}/c/n", headers=alice)[0] == 201
    store(space, f"{folder}/c/n", b"x", alice)
    # She owns the node, and writes to the container without owning it.
    assert update(space, f"{folder}/c/n", properties={"groupwrite": "", "publicread": "true"}, headers=alice)[0] == 200
    assert is_fault(
        update(space, f"{folder}/c", properties={"publicread": "true"}, headers=alice), 403, "PermissionDenied"
    )
    assert is_fault(space.request("GET", f"/nodes{folder}/c", headers=bob), 403, "PermissionDenied")
    assert update(space, f"{folder}/c", properties={"publicread": "true"})[0] == 200
    assert space.request("GET", f"/files{folder}/c/n", headers=bob)[2] == b"x" == fetch(space, f"{folder}/c/n")


@holds("R342", "R235")
def test_mtime_follows_the_bytes(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"1")
    before = node_at(space, f"{folder}/n").properties

    def later() -> bool:
        store(space, f"{folder}/n", b"2")
        return node_at(space, f"{folder}/n").properties["mtime"] > before["mtime"]

    eventually("a later mtime", later)
    after = node_at(space, f"{folder}/n").properties
    assert after["date"] == after["mtime"].removesuffix("Z") and after["btime"] == before["btime"]


@pytest.mark.parametrize("uri", ["ivo://cadc.nrc.ca/vospace/core#islocked", CORE + "islocked"])
def test_a_locked_node(space: Daemon, folder: str, uri: str) -> None:
    """The vos client's lock: who may write may also unlock."""
    store(space, f"{folder}/n", b"old")
    assert update(space, f"{folder}/n", properties={uri: "true"})[0] == 200
    for answer in (space.request("PUT", f"/files{folder}/n", b"new"), space.request("DELETE", f"/nodes{folder}/n")):
        assert is_fault(answer, 423, "NodeLocked")
    assert fetch(space, f"{folder}/n") == b"old"
    assert any(
        name.endswith("islocked") and text == "true" for name, text in node_at(space, f"{folder}/n").properties.items()
    )
    assert update(space, f"{folder}/n", properties={uri: NIL})[0] == 200
    assert space.request("PUT", f"/files{folder}/n", b"new")[0] == 201
    assert space.request("DELETE", f"/nodes{folder}/n")[0] == 204
