"""Every program of the vos client does to a space what its manual says."""

import concurrent.futures
import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients.support import Client, make_home, with_token
from tests.conftest import Daemon
from tests.server.support import Shown, fetch, make_user, node, store, update

LOCKED = "ivo://cadc.nrc.ca/vospace/core#islocked"
GROUPS = "ivo://cadc.nrc.ca/gms?"


@pytest.fixture
def put(vos: Client, served: Daemon) -> Callable[..., None]:
    """Store files in the test's container, in the order given."""

    def put(**files: bytes) -> None:
        for name, data in files.items():
            store(served, f"{vos.folder}/{name}", data, {"Content-Type": "application/fits"})

    return put


@pytest.fixture
def seen(vos: Client, served: Daemon) -> Callable[..., Shown]:
    """A node below the test's container, as the service shows it."""
    return lambda path: node(served, f"{vos.folder}/{path}")


# -- vmkdir, vrmdir, vrm ---------------------------------------------------------------------------------------


def test_containers_are_made_and_removed(vos: Client, seen: Callable[..., Shown]) -> None:
    vos.run("vmkdir", vos.uri("one"))
    assert seen("one").type == "vos:ContainerNode"
    vos.fails("vmkdir", vos.uri("one"), says="DuplicateNode")
    done = vos.fails("vmkdir", vos.uri("no/such"), says="ContainerNotFound")
    assert done.code == errno.ENOENT
    vos.run("vmkdir", "-p", vos.uri("one/two/three"))
    vos.run("vmkdir", "-p", vos.uri("one/two"))
    assert (vos.names(), vos.names("one/two")) == (["one"], ["three"])
    # Its manual: the container need not be empty.
    vos.run("vrmdir", vos.uri("one/two/three"), vos.uri("one"))
    assert vos.names() == []


def test_files_are_removed(vos: Client, put: Callable[..., None]) -> None:
    put(a=b"1", b=b"2", c=b"3")
    vos.run("vrm", vos.uri("a"), vos.uri("c"))
    assert vos.names() == ["b"]
    vos.fails("vrmdir", vos.uri("b"), says="not a container")
    assert vos.fails("vrm", vos.uri("a"), says="NodeNotFound").code == errno.ENOENT
    assert vos.names() == ["b"]


# -- vls -------------------------------------------------------------------------------------------------------


def test_listings_are_sorted_by_name_size_and_time(vos: Client, put: Callable[..., None]) -> None:
    put(b=b"x" * 10, c=b"x" * 20_000, a=b"x" * 100)
    orders = {"": "abc", "-r": "cba", "-S": "cab", "-Sr": "bac", "-t": "acb", "-tr": "bca"}
    done = vos.together(*(("vls", *option.split(), vos.uri()) for option in orders))
    assert {option: "".join(one.lines) for option, one in zip(orders, done, strict=True)} == orders


def test_a_long_listing_shows_what_a_node_is(vos: Client, served: Daemon, put: Callable[..., None]) -> None:
    put(data=b"x" * 20_480)
    vos.run("vmkdir", vos.uri("folder"))
    vos.run("vln", vos.uri("data"), vos.uri("link"))
    owner = node(served, vos.folder).properties["creator"]
    # Without the creator; with a unit.
    long, groups, human = vos.together(
        ("vls", "-l", vos.uri()), ("vls", "-g", vos.uri("data")), ("vls", "-lh", vos.uri("data"))
    )
    rows = {row.split()[8]: row.split() for row in long.lines}
    assert [(name, row[0]) for name, row in rows.items()] == [
        ("data", "-rw-------"), ("folder", "drw-------"), ("link", "lrw-------"),
    ]  # fmt: skip
    assert {row[1] for row in rows.values()} == {owner}
    assert rows["data"][2:5] == ["NONE", "NONE", "20480"]
    assert rows["link"][-2:] == ["->", vos.uri("data")]
    assert groups.out.split()[:4] == ["-rw-------", "NONE", "NONE", "20480"]
    assert human.out.split()[4] == "20K"


def test_patterns_and_short_names(vos: Client, put: Callable[..., None]) -> None:
    put(f1=b"1", f2=b"2", g1=b"3")
    # A short name becomes a URI with '!' in its authority.
    wanted = {
        vos.uri("f*"): ["f1", "f2"],
        vos.uri("[fg]1"): ["f1", "g1"],
        vos.short(): ["f1", "f2", "g1"],
        vos.uri().replace("~", "!"): ["f1", "f2", "g1"],
        vos.uri() + "/": ["f1", "f2", "g1"],
    }
    found = vos.together(*(("vls", uri) for uri in wanted))
    assert [one.lines for one in found] == list(wanted.values())
    assert vos.folder.strip("/") in vos.run("vls", vos.uri().removesuffix(vos.folder) + "/").lines
    assert vos.fails("vls", vos.uri("nothing"), says="NodeNotFound").code == errno.ENOENT


def test_a_big_container_is_listed_whole(vos: Client, served: Daemon) -> None:
    """520 children: the client's own interface asks for a second page after 500."""
    names = [f"n{number:03}" for number in range(520)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: store(served, f"{vos.folder}/{name}", b"x"), names))
    assert vos.run("vls", vos.uri()).lines == names
    script = (
        "import sys, vos\n"
        "client = vos.Client(vospace_token=sys.argv[2])\n"
        "print(*[n.name for n in client.get_info_list(sys.argv[1])])\n"
        "print(*client.listdir(sys.argv[1], force=True))\n"
    )
    plain = Client(served, vos.home)
    found = plain.run("python", "-c", script, vos.uri(), served.token).lines
    assert [line.split() for line in found] == [names, names]


# -- vcat ------------------------------------------------------------------------------------------------------


def test_public_files_are_printed(vos: Client, served: Daemon, put: Callable[..., None]) -> None:
    """vcat ignores ``--token``: what it prints is public, the containers above too."""
    update(served, "/", properties={"ispublic": "true"})
    try:
        update(served, vos.folder, properties={"ispublic": "true"})
        put(text="na\u00efve\n".encode(), empty=b"", secret=b"s")
        update(served, f"{vos.folder}/secret", properties={"ispublic": "false"})
        vos.run("vln", vos.uri("text"), vos.uri("link"))
        done = vos.run("vcat", vos.uri("text"), vos.uri("empty"), vos.uri("link"))
        assert done.out == "na\u00efve\n\n\n" + "\n\n" + "na\u00efve\n\n\n"
        vos.fails("vcat", vos.uri("nothing"), says="NodeNotFound")
        done = vos.fails("vcat", vos.uri("secret"), vos.uri("text"), says="PermissionDenied")
        assert done.out == "na\u00efve\n\n\n"
    finally:
        update(served, "/", properties={"ispublic": "false"})


# -- vln -------------------------------------------------------------------------------------------------------


def test_links_are_made_followed_and_removed(
    vos: Client, served: Daemon, put: Callable[..., None], seen: Callable[..., Shown]
) -> None:
    put(file=b"content")
    vos.run("vmkdir", "-p", vos.uri("d/e"))
    vos.run("vln", vos.uri("file"), vos.uri("to-file"))
    vos.run("vln", vos.short("d"), vos.uri("to-folder"))
    vos.run("vln", "https://example.org/data.fits", vos.uri("to-page"))
    made = seen("to-file")
    assert (made.type, made.target) == ("vos:LinkNode", vos.uri("file"))
    assert seen("to-page").target == "https://example.org/data.fits"
    followed, shown = vos.together(("vls", vos.uri("to-folder")), ("vls", "-l", vos.uri("to-page")))
    assert followed.lines == ["e"]
    assert shown.lines[0].endswith("to-page -> https://example.org/data.fits")
    vos.fails("vln", vos.uri("file"), vos.uri("to-file"), says="DuplicateNode")
    # Links are not copied, unless they are to be followed.
    vos.run("vcp", vos.uri("to-file"), vos.home / "skipped")
    assert not (vos.home / "skipped").exists()
    vos.run("vcp", "-L", vos.uri("to-file"), vos.home / "followed")
    assert (vos.home / "followed").read_bytes() == b"content"
    vos.run("vrm", vos.uri("to-file"), vos.uri("to-folder"), vos.uri("to-page"))
    assert vos.names() == ["d", "file"] and fetch(served, f"{vos.folder}/file") == b"content"


def test_a_file_is_fetched_through_a_linked_container(vos: Client, put: Callable[..., None]) -> None:
    vos.run("vmkdir", vos.uri("d"))
    put(**{"d/file": b"content"})
    vos.run("vln", vos.uri("d"), vos.uri("link"))
    vos.run("vcp", "-L", vos.uri("link"), vos.home / "copy")
    assert (vos.home / "copy/file").read_bytes() == b"content"


# -- vmv -------------------------------------------------------------------------------------------------------


def test_nodes_are_renamed_and_moved(
    vos: Client, served: Daemon, put: Callable[..., None], seen: Callable[..., Shown]
) -> None:
    vos.run("vmkdir", "-p", vos.uri("d/e"))
    put(**{"f": b"f", "d/g": b"g"})
    before = seen("f").properties
    vos.run("vmv", vos.uri("f"), vos.uri("h"))
    assert seen("h").properties["date"] == before["date"] and vos.names() == ["d", "h"]
    # Into a container that exists, under the old name; short names too.
    vos.run("vmv", vos.short("h"), vos.short("d"))
    vos.run("vmv", vos.uri("d"), vos.uri("moved"))
    assert (vos.names(), vos.names("moved")) == (["moved"], ["e", "g", "h"])
    assert fetch(served, f"{vos.folder}/moved/h") == b"f"


def test_moves_that_cannot_be_are_refused(vos: Client, served: Daemon, put: Callable[..., None]) -> None:
    vos.run("vmkdir", "-p", vos.uri("d/e"))
    put(f=b"f", g=b"g")
    onto_file, nothing, below_itself = vos.together(
        ("vmv", vos.uri("f"), vos.uri("g")),
        ("vmv", vos.uri("nothing"), vos.uri("h")),
        ("vmv", vos.uri("d"), vos.uri("d/e/d")),
        code=None,
    )
    assert "DuplicateNode" in onto_file.err and "NodeNotFound" in nothing.err and below_itself.err
    assert (vos.names(), vos.names("d")) == (["d", "f", "g"], ["e"])
    assert (fetch(served, f"{vos.folder}/f"), fetch(served, f"{vos.folder}/g")) == (b"f", b"g")


# -- vtag ------------------------------------------------------------------------------------------------------


def test_properties_are_set_shown_and_deleted(
    vos: Client, put: Callable[..., None], seen: Callable[..., Shown]
) -> None:
    put(f=b"content")
    uri = "ivo://example.org/properties#seeing"
    vos.run("vtag", vos.uri("f"), "quality=good <&> fine", f"{uri}=0.7", "title=na\u00efve")
    read = vos.run("vtag", vos.uri("f"), "quality", uri, "title", "nothing").lines
    assert read == ["'good <&> fine'", "'0.7'", "'na\u00efve'", "None"]
    # What is not named stays.
    vos.run("vtag", vos.uri("f"), "quality=bad", "title=")
    vos.run("vtag", "--remove", vos.uri("f"), uri)
    kept = seen("f").properties
    assert kept["quality"] == "bad" and "title" not in kept and uri not in kept
    assert (kept["length"], kept["type"]) == ("7", "application/fits")
    listed = vos.run("vtag", vos.uri("f")).out
    assert "'quality': 'bad'" in listed and "'length': '7'" in listed and "'MD5'" in listed


def test_what_the_service_keeps_is_not_for_tagging(
    vos: Client, put: Callable[..., None], seen: Callable[..., Shown]
) -> None:
    put(f=b"content")
    before = seen("f").properties
    vos.fails("vtag", vos.uri("f"), "creator=someone", says="PermissionDenied")
    vos.fails("vtag", vos.uri("nothing"), "quality=good", says="NodeNotFound")
    assert seen("f").properties == before


# -- vchmod ----------------------------------------------------------------------------------------------------


def test_rights_are_given_and_taken(vos: Client, put: Callable[..., None], seen: Callable[..., Shown]) -> None:
    put(f=b"content")
    vos.run("vchmod", "o+r", vos.uri("f"))
    assert seen("f").properties["ispublic"] == "true"
    vos.run("vchmod", "g+rw", vos.uri("f"), "readers others", "writers")
    shown = seen("f").properties
    assert set(shown["groupread"].split()) == {GROUPS + "readers", GROUPS + "others"}
    assert (shown["groupwrite"], shown["ispublic"]) == (GROUPS + "writers", "true")
    vos.run("vchmod", "g-r", vos.uri("f"))
    assert vos.run("vls", "-g", vos.uri("f")).out.split()[:3] == ["-rw--w-r--", "NONE", "writers"]
    vos.run("vchmod", "og-rw", vos.uri("f"))
    shown = seen("f").properties
    assert shown["ispublic"] == "false" and not shown.get("groupread") and not shown.get("groupwrite")


def test_a_group_may_do_what_it_was_given(
    vos: Client, served: Daemon, put: Callable[..., None], tmp_path: Path
) -> None:
    headers = make_user(served, "bob", "staff")
    update(served, "/", properties={"groupread": "staff"})
    bob = with_token(served, make_home(tmp_path / "bob", served.url), vos.folder, headers["Authorization"][7:])
    vos.run("vchmod", "g+r", vos.uri(), "staff")
    put(f=b"content")
    update(served, f"{vos.folder}/f", properties={"groupread": ""})
    bob.fails("vcp", bob.uri("f"), bob.home / "f", says="PermissionDenied")
    vos.run("vchmod", "g+r", vos.uri("f"), "staff")
    bob.run("vcp", bob.uri("f"), bob.home / "f")
    assert (bob.home / "f").read_bytes() == b"content"
    (bob.home / "g").write_bytes(b"from bob")
    bob.all_fail(
        ("vcp", bob.home / "g", bob.uri("f")), ("vmkdir", bob.uri("d")), ("vrm", bob.uri("f")), says="PermissionDenied"
    )
    assert fetch(served, f"{vos.folder}/f") == b"content"
    vos.together(("vchmod", "g+w", vos.uri(), "staff"), ("vchmod", "g+w", vos.uri("f"), "staff"))
    bob.together(("vcp", bob.home / "g", bob.uri("f")), ("vmkdir", bob.uri("d")))
    assert fetch(served, f"{vos.folder}/f") == b"from bob"
    assert node(served, f"{vos.folder}/d").properties["creator"] == "bob"


# -- vlock -----------------------------------------------------------------------------------------------------


def test_a_lock_is_shown_and_taken_off(vos: Client, put: Callable[..., None], seen: Callable[..., Shown]) -> None:
    put(f=b"content")
    vos.run("vlock", vos.uri("f"), code=255)
    vos.run("vlock", "--lock", vos.uri("f"))
    assert seen("f").properties[LOCKED] == "true"
    _, row = vos.together(("vlock", vos.uri("f")), ("vls", "-l", vos.uri("f")))
    assert "LOCKED" in row.out
    vos.run("vlock", "--unlock", vos.uri("f"))
    assert LOCKED not in seen("f").properties


def test_a_locked_node_is_not_changed(vos: Client, served: Daemon, put: Callable[..., None]) -> None:
    """The manual of vlock: while a node is locked, it cannot be copied to, moved or deleted."""
    put(f=b"content")
    (vos.home / "new").write_bytes(b"other")
    vos.run("vlock", "--lock", vos.uri("f"))
    copied, moved, removed = vos.together(
        ("vcp", vos.home / "new", vos.uri("f")),
        ("vmv", vos.uri("f"), vos.uri("g")),
        ("vrm", vos.uri("f")),
        code=None,
    )
    assert "vlock to unlock" in copied.err and "NodeLocked" in moved.err and "NodeLocked" in removed.err
    assert vos.names() == ["f"]
    # Reading goes on.
    vos.run("vcp", vos.uri("f"), vos.home / "old")
    assert (vos.home / "old").read_bytes() == b"content"
    vos.run("vlock", "--unlock", vos.uri("f"))
    vos.run("vcp", vos.home / "new", vos.uri("f"))
    assert fetch(served, f"{vos.folder}/f") == b"other"
    vos.run("vrm", vos.uri("f"))
    assert vos.names() == []
