"""Links in paths: createNode and deleteNode stop at them, everything else follows those that stay in the space."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Daemon
from tests.server.support import ROOT, create, fetch, is_fault, log_text, node_document, store, update
from tests.vospace.support import (
    PULL,
    PUSH,
    XML,
    core,
    encoded,
    move,
    names,
    node_at,
    pull,
    push,
    ran,
    synctrans,
    transfer,
)

holds = pytest.mark.holds
HOPS_MAX = 20


@pytest.fixture
def maze(space: Daemon, folder: str) -> str:
    """``real`` holds ``n``; ``link`` leads to it, ``far`` leads to ``link``, ``leaf`` to the data."""
    create(space, f"{folder}/real", "ContainerNode")
    store(space, f"{folder}/real/n", b"bytes")
    create(space, f"{folder}/link", "LinkNode", target=f"{ROOT}{folder}/real")
    create(space, f"{folder}/far", "LinkNode", target=f"vos://vosfs.local!vospace{folder}/link")
    create(space, f"{folder}/leaf", "LinkNode", target=f"{ROOT}{folder}/far/n")
    return folder


@holds("R331", "R67", "R123", "R28")
@pytest.mark.parametrize("path", ["link/x", "far/x", "link/x/y", "link/n", "leaf/x"])
def test_create_and_delete_stop(space: Daemon, maze: str, path: str) -> None:
    name = path.partition("/")[0]
    for answer in (create(space, f"{maze}/{path}"), space.request("DELETE", f"/nodes{maze}/{path}")):
        assert is_fault(answer, 400, "LinkFound")
        assert answer[2].decode().split()[1] == f"{ROOT}{maze}/{name}"
    assert names(space, f"{maze}/real") == ["n"]


@holds("R332", "R96")
@pytest.mark.parametrize("way", ["link", "far"])
def test_the_others_follow(space: Daemon, maze: str, way: str) -> None:
    found = node_at(space, f"{maze}/{way}/n")
    assert (found.type, found.properties["length"]) == ("vos:DataNode", "5")
    assert update(space, f"{maze}/{way}/n", properties={"title": "t"})[0] == 200
    assert node_at(space, f"{maze}/real/n").properties["title"] == "t"
    assert fetch(space, f"{maze}/{way}/n") == pull(space, f"{maze}/{way}/n") == b"bytes"
    assert push(space, f"{maze}/{way}/new", b"new")[1][0] == 201
    assert fetch(space, f"{maze}/real/new") == b"new"
    move(space, f"{maze}/{way}/new", f"{maze}/{way}/newer").completed()
    assert names(space, f"{maze}/real") == ["n", "newer"]
    assert is_fault(space.request("GET", f"/nodes{maze}/{way}/none"), 404, "NodeNotFound")


@holds("R333", "R95", "R117", "R124")
def test_leaf_links_are_themselves(space: Daemon, maze: str) -> None:
    found = node_at(space, f"{maze}/leaf")
    assert (found.type, found.target) == ("vos:LinkNode", f"{ROOT}{maze}/far/n")
    assert node_at(space, f"{maze}/link").type == "vos:LinkNode"
    assert update(space, f"{maze}/leaf", "LinkNode", {"title": "t"}, target=f"{ROOT}{maze}/far/n")[0] == 200
    assert "title" not in node_at(space, f"{maze}/real/n").properties
    move(space, f"{maze}/leaf", f"{maze}/leaf2").completed()
    assert (node_at(space, f"{maze}/leaf2").type, fetch(space, f"{maze}/real/n")) == ("vos:LinkNode", b"bytes")
    assert space.request("DELETE", f"/nodes{maze}/leaf2")[0] == 204
    assert fetch(space, f"{maze}/real/n") == b"bytes"


@holds("R333", "R197", "R320")
def test_leaf_links_of_bytes_are_followed(space: Daemon, maze: str) -> None:
    assert fetch(space, f"{maze}/leaf") == pull(space, f"{maze}/leaf") == b"bytes"
    assert push(space, f"{maze}/leaf", b"pushed")[1][0] == 201
    assert (fetch(space, f"{maze}/real/n"), node_at(space, f"{maze}/leaf").type) == (b"pushed", "vos:LinkNode")
    store(space, f"{maze}/leaf", b"put")
    assert fetch(space, f"{maze}/real/n") == b"put"
    # To a name that is still free: the bytes go where the link points.
    create(space, f"{maze}/dangling", "LinkNode", target=f"{ROOT}{maze}/real/made")
    job = synctrans(space, transfer(f"{ROOT}{maze}/dangling", PUSH, ["httpput"]))
    assert job.phase() in ("EXECUTING", "ERROR")
    assert node_at(space, f"{maze}/dangling").type == "vos:LinkNode"
    assert is_fault(space.request("GET", f"/files{maze}/dangling"), 404, "NodeNotFound")


@holds("R332")
def test_a_limit_of_hops(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/l0", "ContainerNode")
    store(space, f"{folder}/l0/n", b"x")
    for number in range(1, HOPS_MAX + 2):
        create(space, f"{folder}/l{number}", "LinkNode", target=f"{ROOT}{folder}/l{number - 1}")
    assert node_at(space, f"{folder}/l{HOPS_MAX}/n").properties["length"] == "1"
    assert is_fault(space.request("GET", f"/nodes{folder}/l{HOPS_MAX + 1}/n"), 400, "LinkFound")
    create(space, f"{folder}/round", "LinkNode", target=f"{ROOT}{folder}/about")
    create(space, f"{folder}/about", "LinkNode", target=f"{ROOT}{folder}/round")
    create(space, f"{folder}/self", "LinkNode", target=f"{ROOT}{folder}/self/x")
    for name in ("round", "self"):
        assert is_fault(space.request("GET", f"/nodes{folder}/{name}/n"), 400, "LinkFound")
        assert is_fault(space.request("GET", f"/files{folder}/{name}"), 400, "LinkFound")
        ran(space, transfer(f"{ROOT}{folder}/{name}", PULL, ["httpget"])).failed("LinkFound")
        document = node_document(f"{folder}/{name}/n")
        assert is_fault(space.request("POST", f"/nodes{folder}/{name}/n", document, XML), 400, "LinkFound")


@holds("R334")
@pytest.mark.parametrize(
    "target", ["vos://example.com!vospace/c", "http://127.0.0.1/c", "file:///etc", "ivo://vosfs.local/vospace"]
)
def test_foreign_links_are_not_followed(space: Daemon, folder: str, target: str) -> None:
    create(space, f"{folder}/l", "LinkNode", target=target)
    for answer in (
        space.request("GET", f"/nodes{folder}/l/n"),
        space.request("POST", f"/nodes{folder}/l/n", node_document(f"{folder}/l/n"), XML),
        space.request("GET", f"/files{folder}/l"),
        space.request("GET", f"/files{folder}/l/n"),
        space.request("PUT", f"/files{folder}/l", b"x"),
    ):
        assert is_fault(answer, 400, "InvalidURI") and target in answer[2].decode()
    assert names(space, folder) == ["l"]


@holds("R335")
def test_rights_count_along_the_real_path(
    space: Daemon, folder: str, home: str, alice: dict[str, str], bob: dict[str, str]
) -> None:
    store(space, f"{home}/n", b"secret", alice)
    assert update(space, f"{home}/n", properties={"publicread": "true"}, headers=alice)[0] == 200
    create(space, f"{folder}/open", "ContainerNode", properties={"publicread": "true", "groupwrite": "team"})
    create(space, f"{folder}/open/way", "LinkNode", target=ROOT + home, properties={"publicread": "true"})
    create(space, f"{folder}/open/leaf", "LinkNode", target=f"{ROOT}{home}/n", properties={"publicread": "true"})
    for path in ("way/n", "leaf"):
        resource = f"{folder}/open/{path}"
        assert space.request("GET", f"/files{resource}", headers=alice)[2] == b"secret"
        answer = space.request("GET", f"/files{resource}", headers=bob)
        assert is_fault(answer, 403, "PermissionDenied") and b"secret" not in answer[2]
        ran(space, transfer(ROOT + resource, PULL, ["httpget"]), bob).failed("PermissionDenied")
    assert is_fault(space.request("GET", f"/nodes{folder}/open/way/n", headers=bob), 403, "PermissionDenied")
    assert is_fault(space.request("GET", f"/nodes{folder}/open/way/none", headers=bob), 403, "PermissionDenied")


@holds("R332", "R92")
def test_a_page_below_a_link(space: Daemon, maze: str) -> None:
    create(space, f"{maze}/real/c", "ContainerNode")
    for name in "xyz":
        create(space, f"{maze}/real/c/{name}")
    children = node_at(space, f"{maze}/link/c").children
    assert [child.uri.rpartition("/")[2] for child in children] == ["x", "y", "z"]
    assert names(space, f"{maze}/link/c", f"?uri={encoded(children[1].uri)}") == ["y", "z"]


@holds("R336")
def test_a_mount_resolves_links_itself(make_daemon: Callable[..., Daemon], make_mount: Callable[..., Path]) -> None:
    """What a program reads through a symbolic link is asked for by its real path."""
    daemon = make_daemon("space", "--log", "debug")
    mount = make_mount(daemon)
    (mount / "real").mkdir()
    (mount / "real" / "n").write_bytes(b"bytes")
    (mount / "link").symlink_to("real")
    start = len(log_text(daemon))
    assert (mount / "link" / "n").read_bytes() == b"bytes"
    (mount / "link" / "m").write_bytes(b"more")
    assert (mount / "link").is_symlink() and (mount / "real" / "m").read_bytes() == b"more"
    assert "/link/" not in log_text(daemon)[start:]
    # The link is a link for VOSpace clients too, with the target as a URI.
    assert node_at(daemon, "/link").target == f"{ROOT}/real"


@holds("R332", "R219")
def test_parameters_follow_too(space: Daemon, maze: str) -> None:
    query = {"TARGET": f"{ROOT}{maze}/far/n", "DIRECTION": PULL, "PROTOCOL": core("httpget"), "REQUEST": "redirect"}
    status, headers, _ = space.request("GET", "/synctrans?" + "&".join(f"{k}={encoded(v)}" for k, v in query.items()))
    assert (status, space.request("GET", headers["Location"], auth=False)[2]) == (303, b"bytes")
