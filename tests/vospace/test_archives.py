"""Containers as archives: tar and zip both ways, all or nothing, and nothing that leads out of the tree."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Daemon, eventually
from tests.server.support import ROOT, Raw, create, fetch, head, node, store, update
from tests.vospace.support import (
    ANONYMOUS,
    PULL,
    PUSH,
    PUSH_FROM,
    VOS,
    HTTPAnswer,
    Job,
    Protocol,
    ThirdParty,
    core,
    exists,
    half_sent,
    names,
    node_at,
    pull,
    push,
    ran,
    read,
    synctrans,
    tar,
    tar_bytes,
    transfer,
    untar,
    zip_bytes,
    zipped,
)

holds = pytest.mark.holds
formats = pytest.mark.parametrize("view", ["tar", "zip"])
BIG = bytes(range(256)) * 400
FILES: dict[str, bytes | None] = {"a": b"small", "d": None, "d/b é": BIG, "d/empty": b"", "d/e": None}
STREAM_MIB = 48


@pytest.fixture
def box(space: Daemon, folder: str) -> str:
    """A container to unpack into."""
    assert create(space, f"{folder}/box", "ContainerNode", properties={"title": "t", "urn:x:note": "v"})[0] == 201
    return f"{folder}/box"


def pack(view: str, files: dict[str, bytes | None]) -> bytes:
    return tar(files) if view == "tar" else zipped(files)


def unpack(view: str, data: bytes) -> dict[str, bytes]:
    """Files of an archive, by their path below the container."""
    found = tar_bytes(data) if view == "tar" else zip_bytes(data)
    return {name.partition("/")[2]: content for name, content in found.items()}


def refused(sent: tuple[Job, HTTPAnswer], fault: str) -> bool:
    """Whether an upload failed with this fault, in the answer and in the job."""
    job, answer = sent
    assert answer[0] >= 400 and answer[2].split()[0].decode() == fault, answer
    job.failed(fault)
    return True


@holds("R273", "R39", "R40", "R43")
def test_archive_views_are_listed(space: Daemon, box: str) -> None:
    root, views = read(space, f"/nodes{box}"), read(space, "/views")
    for name in ("accepts", "provides"):
        for document in (root, views):
            assert {core("tar"), core("zip")} <= {e.get("uri") for e in document.findall(f"{VOS}{name}/{VOS}view")}
    assert core("anyview") in {e.get("uri") for e in views.findall(f"{VOS}accepts/{VOS}view")}


@holds("R274", "R275", "R238", "R43")
@formats
def test_an_archive_becomes_nodes(space: Daemon, box: str, view: str) -> None:
    store(space, f"{box}/there", b"already")
    job, answer = push(space, box, pack(view, FILES), view)
    assert (answer[0], job.phase()) == (201, "COMPLETED"), answer
    assert names(space, box) == ["a", "d", "there"]
    assert names(space, f"{box}/d") == ["b%20%C3%A9", "e", "empty"]
    assert fetch(space, f"{box}/a") == b"small" == pull(space, f"{box}/a")
    assert fetch(space, f"{box}/d/b%20%C3%A9") == BIG and fetch(space, f"{box}/d/empty") == b""
    assert fetch(space, f"{box}/there") == b"already"
    assert node_at(space, f"{box}/d/e").type == "vos:ContainerNode"
    properties = node_at(space, box).properties
    assert (properties["title"], properties["urn:x:note"]) == ("t", "v")
    assert node_at(space, f"{box}/d/b%20%C3%A9").properties["length"] == str(len(BIG))


@holds("R276", "R240", "R43")
@formats
@pytest.mark.parametrize("how", ["synctrans", "transfers"])
def test_a_container_becomes_an_archive(space: Daemon, box: str, view: str, how: str) -> None:
    create(space, f"{box}/d", "ContainerNode")
    create(space, f"{box}/d/none", "ContainerNode")
    store(space, f"{box}/a%20%C3%A9", b"a")
    store(space, f"{box}/d/b", BIG)
    document = transfer(ROOT + box, PULL, ["httpget"], view)
    job = synctrans(space, document) if how == "synctrans" else ran(space, document)
    eventually("details", lambda: "transferDetails" in job.results())
    status, headers, body = space.request("GET", job.endpoint(), auth=False)
    assert (status, headers["Content-Type"]) == (200, "application/x-tar" if view == "tar" else "application/zip")
    assert unpack(view, body) == {"a é": b"a", "d/b": BIG}
    if view == "tar":
        assert set(untar(body)) == {"box", "box/a é", "box/d", "box/d/b", "box/d/none"}
    job.reaches("COMPLETED")


@holds("R277")
@formats
def test_an_archive_in_a_data_node_is_bytes(space: Daemon, folder: str, view: str) -> None:
    data = pack(view, FILES)
    _, answer = push(space, f"{folder}/n", data, "binaryview")
    assert (answer[0], fetch(space, f"{folder}/n")) == (201, data)
    synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"], view)).failed("ViewNotSupported")
    synctrans(space, transfer(f"{ROOT}{folder}/n", PULL, ["httpget"], view)).failed("ViewNotSupported")


@holds("R278")
@formats
def test_there_and_back(space: Daemon, folder: str, box: str, view: str) -> None:
    long: dict[str, bytes | None] = {"x" * 200: b"long", "d/" + "y" * 120: b"too", "日本": b"utf-8", "-rf *": b"odd"}
    given = {**FILES, **long}
    assert push(space, box, pack(view, given), view)[1][0] == 201
    data = pull(space, box, view)
    assert unpack(view, data) == {name: content for name, content in given.items() if content is not None}
    create(space, f"{folder}/again", "ContainerNode")
    inside = pack(view, {**unpack(view, data)})
    assert push(space, f"{folder}/again", inside, view)[1][0] == 201
    assert unpack(view, pull(space, f"{folder}/again", view)) == unpack(view, data)
    if view == "tar":
        found = untar(data)
        assert {found[f"box/{name}"].mtime for name in ("a", "d/b é")} == {1_500_000_000}
        assert found["box/d/e"].isdir()
    assert node_at(space, f"{box}/a").properties["mtime"].startswith("2017-07-14T02:40:00") or view == "zip"


@holds("R279", "R281")
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("/absolute", tarfile.REGTYPE), ("../out", tarfile.REGTYPE), ("d/../../out", tarfile.REGTYPE),
        ("fifo", tarfile.FIFOTYPE), ("device", tarfile.CHRTYPE), ("block", tarfile.BLKTYPE),
        ("out", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE), ("d/./../..", tarfile.DIRTYPE),
    ],
)  # fmt: skip
def test_dangerous_entries(space: Daemon, folder: str, box: str, name: str, kind: bytes) -> None:
    def tune(info: tarfile.TarInfo) -> None:
        if info.name == name:
            info.type, info.size, info.linkname = kind, 0, "../../../etc/passwd"

    data = tar({"good": b"good", name: b"", "late": b"late"}, tune)
    job, answer = push(space, box, data, "tar")
    assert 400 <= answer[0] < 500, answer
    assert job.ended() == "ERROR"
    assert names(space, box) == [] and names(space, folder) == ["box"]


@holds("R279", "R281")
@pytest.mark.parametrize("name", ["/absolute", "../out", "d/../../out", "a/./../../b"])
def test_dangerous_names_in_a_zip(space: Daemon, folder: str, box: str, name: str) -> None:
    job, answer = push(space, box, zipped({"good": b"good", name: b"bad"}), "zip")
    assert 400 <= answer[0] < 500, answer
    assert job.ended() == "ERROR"
    assert names(space, box) == [] and names(space, folder) == ["box"]


@holds("R280", "R281")
@formats
def test_existing_names(space: Daemon, box: str, view: str) -> None:
    store(space, f"{box}/a", b"old")
    create(space, f"{box}/d", "ContainerNode", properties={"title": "kept"})
    store(space, f"{box}/d/other", b"other")
    assert push(space, box, pack(view, FILES), view)[1][0] == 201
    assert fetch(space, f"{box}/a") == b"small"
    assert names(space, f"{box}/d") == ["b%20%C3%A9", "e", "empty", "other"]
    assert node_at(space, f"{box}/d").properties["title"] == "kept"


@holds("R280", "R281", "R138")
@formats
@pytest.mark.parametrize(("name", "kind"), [("a", "ContainerNode"), ("a", "LinkNode"), ("d", "DataNode")])
def test_existing_names_of_another_type(space: Daemon, box: str, view: str, name: str, kind: str) -> None:
    create(space, f"{box}/{name}", kind, target="urn:x:y" if kind == "LinkNode" else None)
    assert refused(push(space, box, pack(view, {"first": b"1", **FILES, "z": b"2"}), view), "DuplicateNode")
    assert names(space, box) == [name] and node_at(space, f"{box}/{name}").type == f"vos:{kind}"


@holds("R284", "R281")
@pytest.mark.parametrize(
    ("view", "data"),
    [
        ("tar", b"no archive " * 500),
        ("tar", tar({"a": b"x" * 5000, "b": b"y" * 5000})[:6000]),
        ("tar", b"\x1f\x8b" + bytes(2000)),
        ("zip", b"no archive " * 500),
        ("zip", zipped({"a": b"x" * 5000, "b": BIG})[:-60]),
        ("zip", zipped({"a": b"x" * 50}).replace(b"PK\x03\x04", b"PK\x03\x05")),
    ],
)  # fmt: skip
def test_broken_archives(space: Daemon, box: str, view: str, data: bytes) -> None:
    assert refused(push(space, box, data, view), "InvalidData")
    assert names(space, box) == []


@holds("R281", "R267")
@formats
def test_an_upload_that_breaks_off(space: Daemon, box: str, view: str) -> None:
    data = pack(view, {f"n{number}": BIG for number in range(20)})
    job = synctrans(space, transfer(ROOT + box, PUSH, ["httpput"], view))
    with half_sent(space, job.endpoint(), data) as raw:
        raw.sock.shutdown(1)
        assert b" 201 " not in raw.rest().partition(b"\r\n")[0]
    job.reaches("ERROR")
    assert names(space, box) == []


@holds("R282")
@formats
def test_what_may_not_be_read_is_left_out(space: Daemon, folder: str, box: str, view: str, bob: dict[str, str]) -> None:
    closed = {"publicread": "false"}
    store(space, f"{box}/public", b"public")
    create(space, f"{box}/secret", properties=closed)
    store(space, f"{box}/secret", b"SECRET")
    create(space, f"{box}/closed", "ContainerNode", properties=closed)
    create(space, f"{box}/closed/in", properties={"publicread": "true"})
    store(space, f"{box}/closed/in", b"SECRET")
    for who in (bob, ANONYMOUS):
        data = pull(space, box, view, who)
        assert unpack(view, data) == {"public": b"public"}
        assert b"SECRET" not in data and b"secret" not in data
    assert len(unpack(view, pull(space, box, view))) == 3


@holds("R283")
def test_links_in_a_tar(space: Daemon, folder: str, box: str) -> None:
    store(space, f"{box}/a", b"a")
    create(space, f"{box}/d", "ContainerNode")
    for name, target in [
        ("inside", f"{ROOT}{box}/a"),
        ("d/up", f"{ROOT}{box}/a"),
        ("outside", f"{ROOT}{folder}/other"),
        ("elsewhere", "http://example.org/"),
    ]:
        create(space, f"{box}/{name}", "LinkNode", target=target)
    found = untar(pull(space, box, "tar"))
    assert set(found) == {"box", "box/a", "box/d", "box/inside", "box/d/up"}
    assert (found["box/inside"].linkname, found["box/d/up"].linkname) == ("a", "../a")
    assert found["box/inside"].issym() and found["box/d/up"].issym()


@holds("R283")
def test_links_from_a_tar(space: Daemon, box: str) -> None:
    links = {"l": "a", "d/l": "../a"}

    def tune(info: tarfile.TarInfo) -> None:
        if info.name in links:
            info.type, info.linkname = tarfile.SYMTYPE, links[info.name]

    assert push(space, box, tar({"a": b"a", "d": None, "l": b"", "d/l": b""}, tune), "tar")[1][0] == 201
    for path in links:
        found = node_at(space, f"{box}/{path}")
        assert (found.type, found.target) == ("vos:LinkNode", f"{ROOT}{box}/a")
    assert fetch(space, f"{box}/l") == b"a"


@holds("R285")
@formats
def test_memory_does_not_grow(make_daemon: Callable[..., Daemon], view: str) -> None:
    daemon = make_daemon()
    create(daemon, "/box", "ContainerNode")
    data = pack(view, {f"n{number}": bytes([number]) * (STREAM_MIB << 18) for number in range(4)})
    if view == "tar":
        assert len(data) > STREAM_MIB << 20
    _warm(daemon, view)
    status = Path(f"/proc/{daemon.process.pid}/status")
    Path(f"/proc/{daemon.process.pid}/clear_refs").write_text("5")
    before = _peak_kib(status)
    job, answer = push(daemon, "/box", data, view)
    assert (answer[0], job.phase()) == (201, "COMPLETED")
    url = synctrans(daemon, transfer(f"{ROOT}/box", PULL, ["httpget"], view)).endpoint()
    with Raw(daemon) as raw:
        raw.send(head(daemon, "GET", url.removeprefix(daemon.url), "Connection: close", auth=False))
        assert raw.head().status == 200
        length = 0
        while piece := raw.sock.recv(1 << 20):
            length += len(piece)
    assert length > (STREAM_MIB << 20 if view == "tar" else 1000)
    assert _peak_kib(status) - before < (STREAM_MIB << 10) // 2


def _warm(daemon: Daemon, view: str) -> None:
    """The modules that both ways need are loaded before anything is measured."""
    create(daemon, "/warm", "ContainerNode")
    assert push(daemon, "/warm", pack(view, {"n": BIG}), view)[1][0] == 201
    assert len(pull(daemon, "/warm", view)) > 100


def _peak_kib(status: Path) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))


@holds("R230", "R242")
def test_archives_need_the_rights(
    space: Daemon, box: str, home: str, alice: dict[str, str], bob: dict[str, str]
) -> None:
    synctrans(space, transfer(ROOT + box, PUSH, ["httpput"], "tar"), bob).failed("PermissionDenied")
    synctrans(space, transfer(ROOT + home, PULL, ["httpget"], "tar"), bob).failed("PermissionDenied")
    assert push(space, home, tar({"n": b"x"}), "tar", alice)[1][0] == 201
    assert node(space, f"{home}/n").properties["creator"] == "alice"


@holds("R281", "R230", "R280")
@formats
def test_an_archive_below_what_may_not_be_written(space: Daemon, home: str, view: str, alice: dict[str, str]) -> None:
    closed = {"groupwrite": "", "groupread": "", "publicread": "false"}
    create(space, f"{home}/d", "ContainerNode", properties=closed)
    store(space, f"{home}/d/mine", b"mine")
    update(space, f"{home}/d/mine", properties=closed)
    for files in (FILES, {"first": b"1", "d/mine": b"overwritten"}):
        assert refused(push(space, home, pack(view, files), view, alice), "PermissionDenied")
    assert (names(space, home), names(space, f"{home}/d"), fetch(space, f"{home}/d/mine")) == (["d"], ["mine"], b"mine")


@holds("R281", "R280")
@formats
@pytest.mark.parametrize(
    "files", [{"a": b"1", "a/b": b"2"}, {"a/b": b"2", "a": b"1"}, {"z": b"0", "a": None, "a/b/c": b"1", "a/b": b"2"}]
)
def test_archives_that_contradict_themselves(
    space: Daemon, box: str, view: str, files: dict[str, bytes | None]
) -> None:
    job, answer = push(space, box, pack(view, files), view)
    assert 400 <= answer[0] < 500, answer
    assert job.ended() == "ERROR" and names(space, box) == []


@holds("R279", "R327", "R329")
@pytest.mark.parametrize("name", [".auto", ".null", "d/.auto"])
def test_reserved_names_in_an_archive(space: Daemon, box: str, name: str) -> None:
    _, answer = push(space, box, tar({"a": b"a", name: b"x"}), "tar")
    assert 400 <= answer[0] < 500
    assert names(space, box) == []


@holds("R261", "R276")
def test_an_archive_is_sent_to_a_third_party(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    store(open_space, f"{open_folder}/a", BIG)
    document = transfer(ROOT + open_folder, PUSH_FROM, [Protocol("httpput", third.url + "/out.tar")], "tar")
    ran(open_space, document).completed()
    assert unpack("tar", third.files["/out.tar"]) == {"a": BIG}


def test_an_archive_can_be_read_by_python(space: Daemon, box: str) -> None:
    """A tar of an empty container is still a tar."""
    with tarfile.open(fileobj=io.BytesIO(pull(space, box, "tar"))) as archive:
        assert [info.name.strip("/") for info in archive] == ["box"]
    assert exists(space, box)
