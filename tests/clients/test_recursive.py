"""What the vos client asks for whole trees: ``vrm -R``, ``vtag -R`` and ``vchmod -R``."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.support import Client, make_home, with_token
from tests.conftest import Daemon
from tests.server.support import Shown, create, make_user, node, store, update

BOB = "bob-in-trees"


@pytest.fixture
def tree(vos: Client, served: Daemon) -> list[str]:
    """A tree of five nodes, and a file that is no part of it; the paths of the five."""
    paths = ["tree", "tree/d", "tree/a", "tree/d/b", "tree/d/c"]
    for path in paths:
        full = f"{vos.folder}/{path}"
        if path in ("tree", "tree/d"):
            assert create(served, full, "ContainerNode")[0] == 201
        else:
            store(served, full, path.encode())
    store(served, f"{vos.folder}/other", b"other")
    return paths


@pytest.fixture
def seen(vos: Client, served: Daemon) -> Callable[[str], Shown]:
    return lambda path: node(served, f"{vos.folder}/{path}")


@pytest.fixture
def bob(vos: Client, served: Daemon, tmp_path: Path) -> Client:
    """Somebody who may read and write the test's container, by a group, and not all that is below it."""
    headers = make_user(served, BOB, "tree-staff")
    update(served, "/", properties={"groupread": "tree-staff"})
    update(served, vos.folder, properties={"groupwrite": "tree-staff"})
    return with_token(served, make_home(tmp_path / "bob", served.url), vos.folder, headers["Authorization"][7:])


def test_a_tree_is_deleted(vos: Client, tree: list[str]) -> None:
    done = vos.run("vrm", "-v", "-R", vos.uri("tree"))
    assert "deleted count: 5" in done.err
    assert vos.names() == ["other"]
    assert vos.fails("vrm", "-R", vos.uri("tree"), says="NodeNotFound").code == errno.ENOENT
    # A file is a small tree.
    done = vos.run("vrm", "-v", "-R", vos.uri("other"))
    assert "deleted count: 1" in done.err and vos.names() == []


def test_deleting_a_link_leaves_its_target(vos: Client, tree: list[str]) -> None:
    vos.run("vln", vos.uri("tree"), vos.uri("link"))
    vos.run("vrm", "-R", vos.uri("link"))
    assert vos.names() == ["other", "tree"] and vos.names("tree/d") == ["b", "c"]


def test_a_tree_that_may_not_be_deleted_stays(vos: Client, bob: Client, tree: list[str]) -> None:
    vos.run("vchmod", "g+rw", vos.uri("tree"), "tree-staff", "tree-staff")
    vos.run("vchmod", "g+r", vos.uri("tree/d"), "tree-staff")
    vos.run("vchmod", "g-w", vos.uri("tree/d"))
    done = bob.run("vrm", "-R", bob.uri("tree"), code=None)
    assert "Permission" in done.err or "failed count" in done.err, done.err
    assert vos.names("tree/d") == ["b", "c"]


def test_properties_of_a_tree_are_set_and_deleted(vos: Client, tree: list[str], seen: Callable[[str], Shown]) -> None:
    vos.run("vtag", vos.uri("tree/d/b"), "kept=yes")
    done = vos.run("vtag", "-v", "-R", vos.uri("tree"), "quality=good", "ivo://example.org/p#x=1")
    assert "updated count: 5" in done.err
    for path in tree:
        shown = seen(path).properties
        assert (shown["quality"], shown["ivo://example.org/p#x"]) == ("good", "1"), path
    assert seen("tree/d/b").properties["kept"] == "yes"
    assert "quality" not in seen("other").properties
    vos.run("vtag", "-R", "--remove", vos.uri("tree"), "quality")
    assert not [path for path in tree if "quality" in seen(path).properties]
    assert seen("tree/d/c").properties["ivo://example.org/p#x"] == "1"
    vos.run("vtag", "-R", vos.uri("tree"), "length=1", code=None)
    assert seen("tree/d/c").properties["length"] == str(len("tree/d/c"))


def test_rights_of_a_tree_are_given_and_taken(vos: Client, tree: list[str], seen: Callable[[str], Shown]) -> None:
    done = vos.run("vchmod", "-v", "-R", "og+r", vos.uri("tree"), "readers")
    assert "updated count: 5" in done.err
    for path in tree:
        shown = seen(path).properties
        assert (shown["ispublic"], shown["groupread"]) == ("true", "ivo://cadc.nrc.ca/gms?readers"), path
    assert seen("other").properties["ispublic"] == "false"
    vos.run("vchmod", "-R", "og-r", vos.uri("tree"))
    for path in tree:
        shown = seen(path).properties
        assert shown["ispublic"] == "false" and not shown.get("groupread"), path


def test_what_may_not_be_changed_is_counted(
    vos: Client, bob: Client, tree: list[str], seen: Callable[[str], Shown]
) -> None:
    vos.run("vchmod", "-R", "g+rw", vos.uri("tree"), "tree-staff", "tree-staff")
    vos.run("vchmod", "g-w", vos.uri("tree/d/b"))
    done = bob.run("vtag", "-R", bob.uri("tree"), "quality=bad", code=None)
    assert "updated count: 4, failed count: 1" in done.err
    assert "quality" not in seen("tree/d/b").properties
    assert seen("tree/d/c").properties["quality"] == "bad"
