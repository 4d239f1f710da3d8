"""vcp and vsync bring files there and back, whole, and send no more than they must."""

import base64
import hashlib
import random
from collections.abc import Iterator

import pytest

from tests.clients.relay import BYTES_PATHS, Passed, Relay
from tests.clients.support import Client
from tests.conftest import Daemon
from tests.server.support import fetch, node, store

MIB = 1 << 20
BORDER = {"CADC_MAX_MD5_COMPUTE_SIZE": "100000"}
"""Files above this are sent without their digest: the client compares the one in the answer."""
RNG = random.Random(37)


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def uploads(passed: list[Passed]) -> list[Passed]:
    """The requests that brought bytes of files."""
    return [p for p in passed if p.method == "PUT" and p.path.startswith(BYTES_PATHS) and p.sent_bytes]


def downloads(passed: list[Passed]) -> list[Passed]:
    """The requests for bytes of files."""
    return [p for p in passed if p.method == "GET" and p.path.startswith(BYTES_PATHS)]


@pytest.fixture
def watched(relay: Relay) -> Iterator[list[Passed]]:
    """What passes between the client and the daemon during the test."""
    with relay.watched() as passed:
        yield passed


# -- there and back --------------------------------------------------------------------------------------------


def test_files_of_every_size_go_and_return(vos: Client, served: Daemon) -> None:
    """Inline content, one blob, and 6 MiB, which the client sends without a digest of its own."""
    source, back = vos.home / "source", vos.home / "back"
    source.mkdir()
    contents = {f"f{size}": RNG.randbytes(size) for size in (1, 5000, 100_000, 6 * MIB)}
    for name, data in contents.items():
        (source / name).write_bytes(data)
    vos.run("vcp", *sorted(source.iterdir()), vos.uri() + "/")
    for name, data in contents.items():
        shown = node(served, f"{vos.folder}/{name}").properties
        assert (shown["MD5"], shown["length"]) == (md5(data), str(len(data)))
        assert fetch(served, f"{vos.folder}/{name}") == data
    back.mkdir()
    vos.run("vcp", *(vos.uri(name) for name in contents), back)
    assert {path.name: path.read_bytes() for path in back.iterdir()} == contents


def test_trees_go_and_return(vos: Client) -> None:
    tree = vos.home / "tree"
    files = {"a.txt": b"a", "empty": b"", "d/b.fits": RNG.randbytes(70_000), "d/e/c": b"c", "d/e/name-(1).x": b"n"}
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    (tree / "hollow").mkdir()
    vos.run("vcp", tree, vos.uri("tree"))
    assert (vos.names("tree"), vos.names("tree/hollow")) == (["a.txt", "d", "empty", "hollow"], [])
    vos.run("vcp", vos.uri("tree"), vos.home / "back")
    found = {str(p.relative_to(vos.home / "back")): p for p in (vos.home / "back").rglob("*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == files
    assert found["hollow"].is_dir()
    # Into a container that exists: below it, under the old name (the client breaks long names here, not short ones).
    vos.run("vcp", "--exclude", "name", tree / "d", vos.short("tree/hollow"))
    assert vos.names("tree/hollow/d/e") == ["c"]
    # A pattern is the client's business: one download for each name that fits.
    (vos.home / "some").mkdir()
    vos.run("vcp", vos.uri("tree/*t*"), vos.home / "some")
    assert sorted(path.name for path in (vos.home / "some").iterdir()) == ["a.txt", "empty"]


def test_an_empty_file_replaces_and_is_replaced(vos: Client, served: Daemon) -> None:
    empty, full = vos.home / "empty", vos.home / "full"
    empty.write_bytes(b"")
    full.write_bytes(b"full")
    vos.run("vcp", empty, vos.uri("f"))
    assert node(served, f"{vos.folder}/f").properties["length"] == "0"
    vos.run("vcp", full, vos.uri("f"))
    assert fetch(served, f"{vos.folder}/f") == b"full"
    vos.run("vcp", empty, vos.uri("f"))
    assert (node(served, f"{vos.folder}/f").properties["length"], fetch(served, f"{vos.folder}/f")) == ("0", b"")
    vos.run("vcp", vos.uri("f"), full)
    assert full.read_bytes() == b""


def test_names_with_special_characters(vos: Client, served: Daemon) -> None:
    """The client encodes names in URLs and not in documents: what needs encoding it can only read."""
    there, back = vos.home / "there", vos.home / "back"
    legal, others = ["a+b&c=d;e@f$g!h~i,j'k.x", "..."], {"a b": "a%20b", "na\u00efve": "na%C3%AFve"}
    there.mkdir()
    back.mkdir()
    for name in legal:
        (there / name).write_bytes(name.encode())
    vos.run("vcp", *(there / name for name in legal), vos.uri() + "/")
    for name, encoded in others.items():
        store(served, f"{vos.folder}/{encoded}", name.encode())
    vos.run("vcp", *(vos.uri(name) for name in [*legal, *others]), back)
    assert {path.name: path.read_bytes().decode() for path in back.iterdir()} == {n: n for n in [*legal, *others]}


def test_copies_that_cannot_be_are_refused(vos: Client, served: Daemon) -> None:
    (vos.home / "f").write_bytes(b"f")
    (vos.home / "d").mkdir()
    store(served, f"{vos.folder}/f", b"content")
    reasons = [
        ("ContainerNotFound", vos.home / "f", vos.uri("no/such/f")),
        ("NodeNotFound", vos.uri("nothing"), vos.home),
        ("Can't write a directory", vos.home / "d", vos.uri("f")),
        ("Can not (yet) copy from VOSpace to VOSpace", vos.uri("f"), vos.uri("g")),
    ]
    done = vos.together(*(("vcp", source, to) for _, source, to in reasons), code=None)
    for (reason, *_), one in zip(reasons, done, strict=True):
        assert reason in one.err, one.err
    assert vos.names() == ["f"] and fetch(served, f"{vos.folder}/f") == b"content"


# -- no more than needed -----------------------------------------------------------------------------------------


def test_the_same_content_is_not_sent_again(far: Client, watched: list[Passed]) -> None:
    source = far.home / "f"
    source.write_bytes(RNG.randbytes(200_000))
    far.run("vcp", source, far.uri("f"))
    assert [(p.status, p.sent_bytes) for p in uploads(watched)] == [(201, 200_000)]
    done = far.run("vcp", "-v", source, far.uri("f"))
    assert len(uploads(watched)) == 1 and "Skip transfer" in done.err
    # It says so to the service instead, which takes the node back as it gave it.
    assert [(p.method, p.status) for p in watched][-1] == ("POST", 200)
    # The other way, the client breaks its download off.
    done = far.run("vcp", "-v", far.uri("f"), source)
    assert "Skip transfer" in done.err
    # As long and different: sent, with its digest.
    data = RNG.randbytes(200_000)
    source.write_bytes(data)
    far.run("vcp", source, far.uri("f"))
    last = uploads(watched)[-1]
    assert last.headers["digest"] == "md5=" + base64.b64encode(bytes.fromhex(md5(data))).decode()
    assert len(uploads(watched)) == 2


def test_a_big_file_is_sent_once_and_checked_by_the_answer(far: Client, watched: list[Passed]) -> None:
    source = far.home / "f"
    source.write_bytes(RNG.randbytes(200_000))
    far.run("vcp", source, far.uri("f"), **BORDER)
    (sent,) = uploads(watched)
    assert (sent.status, sent.headers["x-put-txn-op"], "digest" in sent.headers) == (201, "start", False)
    far.run("vcp", far.uri("f"), far.home / "back")
    assert (far.home / "back").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("old", [None, b"old content"], ids=["new", "replaced"])
def test_a_huge_file_is_announced_first(far: Client, watched: list[Passed], old: bytes | None) -> None:
    """Above 5 GiB (here: 100 kB) the client first sends an empty request, which must not empty the file."""
    source = far.home / "f"
    source.write_bytes(RNG.randbytes(200_000))
    if old is not None:
        store(far.daemon, f"{far.folder}/f", old)
    script = (
        "import sys, cadcutils.net.ws as ws, vos.commands\nws.FILE_SEGMENT_THRESHOLD = 100_000\nvos.commands.vcp()\n"
    )
    Client(far.daemon, far.home).run("python", "-c", script, *far.options, source, far.uri("f"), **BORDER)
    announced = next(p for p in watched if p.headers.get("x-put-txn-op") == "start")
    assert (announced.sent_bytes, announced.headers["x-total-length"]) == (0, "200000")
    far.run("vcp", far.uri("f"), far.home / "back")
    assert (far.home / "back").read_bytes() == source.read_bytes()


def test_vsync_sends_what_changed(far: Client, watched: list[Passed]) -> None:
    tree = far.home / "tree"
    (tree / "d").mkdir(parents=True)
    for name in ("a", "d/b", "d/c", "d/skip.tmp"):
        (tree / name).write_bytes(RNG.randbytes(20_000))
    options = ("-v", "-r", "--exclude", ".tmp", f"{tree}/", far.uri("copy"))
    far.run("vmkdir", far.uri("copy"))
    done = far.run("vsync", *options)
    assert len(uploads(watched)) == 3 and "Sent 3 files" in done.err
    assert (far.names("copy"), far.names("copy/d")) == (["a", "d"], ["b", "c"])
    watched.clear()
    done = far.run("vsync", *options)
    assert "No files needed sending" in done.err
    assert uploads(watched) == [] and not [p for p in watched if "synctrans" in p.path]
    data = RNG.randbytes(20_000)
    (tree / "d/c").write_bytes(data)
    done = far.run("vsync", *options)
    assert "Sent 1 files" in done.err and "(skipped 2 files)" in done.err
    far.run("vcp", far.uri("copy/d/c"), far.home / "c")
    assert (far.home / "c").read_bytes() == data


# -- when the line is bad ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("border", [{}, BORDER], ids=["digest-sent", "digest-compared"])
def test_an_upload_that_arrives_damaged_is_sent_again(
    far: Client, relay: Relay, watched: list[Passed], border: dict[str, str]
) -> None:
    source = far.home / "f"
    source.write_bytes(RNG.randbytes(200_000))
    relay.damaged_uploads = 1
    far.run("vcp", source, far.uri("f"), **border)
    assert [p.status for p in uploads(watched)] == ([201, 201] if border else [412, 201])
    far.run("vcp", far.uri("f"), far.home / "back")
    assert (far.home / "back").read_bytes() == source.read_bytes()


def test_an_upload_that_always_arrives_damaged_changes_nothing(
    far: Client, relay: Relay, watched: list[Passed]
) -> None:
    source = far.home / "f"
    source.write_bytes(RNG.randbytes(50_000))
    store(far.daemon, f"{far.folder}/f", b"old content")
    watched.clear()
    relay.damaged_uploads = 1000
    far.fails("vcp", source, far.uri("f"), says="PreconditionFailed")
    assert {p.status for p in uploads(watched)} == {412} and len(uploads(watched)) > 1
    assert fetch(far.daemon, f"{far.folder}/f") == b"old content"


def test_a_download_that_arrives_damaged_is_not_kept(far: Client, relay: Relay, watched: list[Passed]) -> None:
    source, back = far.home / "f", far.home / "back"
    source.write_bytes(RNG.randbytes(200_000))
    far.run("vcp", source, far.uri("f"))
    relay.damaged_downloads = 1000
    far.run("vcp", far.uri("f"), back, code=None)
    assert not back.exists()
    # Damaged once: the client negotiates another end-point and reads again.
    relay.damaged_downloads = 1
    watched.clear()
    far.run("vcp", far.uri("f"), back)
    assert back.read_bytes() == source.read_bytes() and len(downloads(watched)) == 2


def test_an_interrupted_download_goes_on_where_it_stopped(far: Client, relay: Relay, watched: list[Passed]) -> None:
    source, back = far.home / "f", far.home / "back"
    data = RNG.randbytes(500_000)
    source.write_bytes(data)
    far.run("vcp", source, far.uri("f"))
    relay.cut_bytes = 100_000
    far.run("vcp", far.uri("f"), back, code=None)
    (part,) = far.home.glob("back-*.part")
    have = part.stat().st_size
    assert part.name == f"back-{md5(data)}.part" and 0 < have < len(data) and not back.exists()
    assert part.read_bytes() == data[:have]
    relay.cut_bytes = 0
    watched.clear()
    far.run("vcp", far.uri("f"), back)
    assert back.read_bytes() == data and not part.exists()
    resumed = [p for p in downloads(watched) if "range" in p.headers]
    assert [(p.headers["range"], p.status, p.answered_bytes) for p in resumed] == [
        (f"bytes={have}-", 206, len(data) - have)
    ]
