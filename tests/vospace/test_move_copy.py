"""moveNode and copyNode: where things end up, what travels along, and that nobody sees a tree half way."""

import concurrent.futures
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Daemon
from tests.server.support import ROOT, create, fetch, node_document, store, update
from tests.vospace.support import (
    ANONYMOUS,
    UWS,
    VOS,
    exists,
    move,
    names,
    new_job,
    node_at,
    pull,
    ran,
    synctrans,
    transfer,
)

MOVE, COPY = "false", "true"
holds = pytest.mark.holds


@pytest.fixture
def tree(space: Daemon, folder: str) -> str:
    """A container with data, a link and a container with data in it."""
    create(space, f"{folder}/tree", "ContainerNode", properties={"title": "top"})
    create(space, f"{folder}/tree/sub", "ContainerNode")
    store(space, f"{folder}/tree/a", b"small")
    store(space, f"{folder}/tree/sub/b%20%C3%A9", bytes(range(256)) * 400)
    create(space, f"{folder}/tree/l", "LinkNode", target=f"{ROOT}{folder}/tree/a")
    return f"{folder}/tree"


def is_tree(space: Daemon, path: str) -> bool:
    """Whether the whole tree is at a path."""
    assert names(space, path) == ["a", "l", "sub"] and names(space, f"{path}/sub") == ["b%20%C3%A9"]
    assert fetch(space, f"{path}/a") == b"small"
    assert fetch(space, f"{path}/sub/b%20%C3%A9") == bytes(range(256)) * 400
    assert node_at(space, path).properties["title"] == "top"
    return True


@pytest.fixture(params=[MOVE, COPY], ids=["move", "copy"])
def keep(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


@holds("R131", "R134", "R136", "R146", "R153", "R154", "R158", "R132", "R371")
def test_a_tree(space: Daemon, folder: str, tree: str, keep: str) -> None:
    job = new_job(space, transfer(ROOT + tree, f"{ROOT}{folder}/new", keep=keep))
    assert job.phase() == "PENDING" and not exists(space, f"{folder}/new")
    job.run().completed()
    assert job.results()["destination"] == f"{ROOT}{folder}/new"
    assert is_tree(space, f"{folder}/new")
    assert node_at(space, f"{folder}/new").type == "vos:ContainerNode"
    if keep == COPY:
        assert is_tree(space, tree)
    else:
        assert not exists(space, tree) and not exists(space, f"{tree}/a")
    echoed = job.document().find(f"{UWS}jobInfo/{VOS}transfer")
    assert echoed is not None and echoed.findtext(VOS + "keepBytes") in ("true", "false")


@holds("R155", "R156", "R158", "R136", "R240")
def test_one_data_node(space: Daemon, folder: str, keep: str) -> None:
    for name, data in (("small", b"x"), ("big", bytes(range(256)) * 400), ("empty", b"")):
        store(space, f"{folder}/{name}", data, {"Content-Type": "text/x-it"})
        move(space, f"{folder}/{name}", f"{folder}/{name}%20new", keep).completed()
        assert fetch(space, f"{folder}/{name}%20new") == pull(space, f"{folder}/{name}%20new") == data
        assert node_at(space, f"{folder}/{name}%20new").type == "vos:DataNode"
        assert exists(space, f"{folder}/{name}") == (keep == COPY)


@holds("R132")
@pytest.mark.parametrize(
    ("word", "stays"), [("true", True), ("1", True), ("false", False), ("0", False), (" true ", True)]
)
def test_every_boolean(space: Daemon, folder: str, word: str, stays: bool) -> None:
    store(space, f"{folder}/a", b"x")
    move(space, f"{folder}/a", f"{folder}/b", word).completed()
    assert (exists(space, f"{folder}/a"), fetch(space, f"{folder}/b")) == (stays, b"x")


@holds("R133")
def test_keep_bytes_must_be_said(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/a", b"x")
    ran(space, transfer(f"{ROOT}{folder}/a", f"{ROOT}{folder}/b")).failed("InvalidArgument")
    assert names(space, folder) == ["a"]


@holds("R135", "R157", "R146")
def test_into_an_existing_container(space: Daemon, folder: str, tree: str, keep: str) -> None:
    create(space, f"{folder}/into", "ContainerNode")
    job = move(space, tree, f"{folder}/into", keep).completed()
    assert job.results()["destination"] == f"{ROOT}{folder}/into/tree"
    assert is_tree(space, f"{folder}/into/tree")


@holds("R137", "R138", "R159", "R148", "R165")
def test_nothing_is_overwritten(space: Daemon, folder: str, keep: str) -> None:
    store(space, f"{folder}/a", b"a")
    store(space, f"{folder}/b", b"b")
    create(space, f"{folder}/l", "LinkNode", target="urn:x:y")
    create(space, f"{folder}/c", "ContainerNode")
    store(space, f"{folder}/c/a", b"inner")
    for target in ("b", "l", "c"):
        move(space, f"{folder}/a", f"{folder}/{target}", keep).failed("DuplicateNode")
    assert [fetch(space, f"{folder}/{name}") for name in ("a", "b", "c/a")] == [b"a", b"b", b"inner"]


@holds("R139", "R141", "R142", "R159", "R143", "R164", "R144", "R147", "R404", "R402", "R403")
@pytest.mark.parametrize(
    ("source", "target", "fault"),
    [
        ("{f}/none", "{f}/x", "NodeNotFound"),
        ("{f}/a", "{f}/none/x", "ContainerNotFound"),
        ("{f}/tree", "{f}/tree/sub/x", "InvalidURI"),
        ("{f}/tree", "{f}/tree/sub", "InvalidURI"),
        ("{f}/tree", "{f}/tree", "InvalidURI"),
        ("", "{f}/x", "PermissionDenied"),
        ("{f}/a", "{f}/../x", "InvalidURI"),
        ("{f}/a b", "{f}/x", "InvalidURI"),
    ],
)  # fmt: skip
def test_faults(space: Daemon, folder: str, tree: str, keep: str, source: str, target: str, fault: str) -> None:
    store(space, f"{folder}/a", b"a")
    job = move(space, source.format(f=folder), target.format(f=folder), keep)
    said = job.failed(fault)
    assert fault != "InvalidURI" or "tree" not in target or "into its descendants" in said
    assert job.get()[0] == 200
    assert is_tree(space, tree) and names(space, folder) == ["a", "tree"] and "destination" not in job.results()


@holds("R141", "R159", "R299")
@pytest.mark.parametrize("uri", ["vos://example.com!vospace/x", "http://example.com/x", "vos:x"])
def test_other_spaces(space: Daemon, folder: str, keep: str, uri: str) -> None:
    store(space, f"{folder}/a", b"a")
    ran(space, transfer(uri, f"{ROOT}{folder}/b", keep=keep)).failed("InvalidURI")
    if uri.startswith("vos:"):
        ran(space, transfer(f"{ROOT}{folder}/a", uri, keep=keep)).failed("InvalidURI")
    assert names(space, folder) == ["a"]


@holds("R140", "R159", "R335")
def test_rights(space: Daemon, folder: str, home: str, keep: str, alice: dict[str, str], bob: dict[str, str]) -> None:
    store(space, f"{home}/a", b"a", alice)
    create(space, f"{folder}/closed", "ContainerNode")
    store(space, f"{folder}/closed/s", b"s")
    # From where she may write to where she may not, and the other way round.
    move(space, f"{home}/a", f"{folder}/closed/x", keep, alice).failed("PermissionDenied")
    move(space, f"{home}/a", f"{home}/x", keep, bob).failed("PermissionDenied")
    if keep == MOVE:
        move(space, f"{folder}/closed/s", f"{home}/x", keep, alice).failed("PermissionDenied")
    answer = space.request(
        "POST", "/transfers?PHASE=RUN", transfer(f"{ROOT}{home}/a", f"{ROOT}{home}/x", keep=keep), ANONYMOUS
    )
    assert answer[0] in (303, 403)
    assert (names(space, home), names(space, f"{folder}/closed")) == (["a"], ["s"])
    move(space, f"{home}/a", f"{home}/x", keep, alice).completed()


@holds("R165", "R159")
def test_a_copy_of_what_may_not_be_read(space: Daemon, folder: str, home: str, alice: dict[str, str]) -> None:
    create(space, f"{home}/t", "ContainerNode", alice)
    store(space, f"{home}/t/mine", b"mine", alice)
    closed = {"groupread": "", "groupwrite": "", "publicread": "false"}
    create(space, f"{home}/t/closed", "ContainerNode", properties=closed)
    store(space, f"{home}/t/closed/secret", b"secret")
    move(space, f"{home}/t", f"{home}/copy", COPY, alice).failed("PermissionDenied")
    assert names(space, home) == ["t"]


@holds("R145", "R160", "R330", "R327")
def test_a_generated_name(space: Daemon, folder: str, tree: str, keep: str) -> None:
    found = move(space, tree, f"{folder}/.auto", keep).completed().results()["destination"]
    assert found.startswith(f"{ROOT}{folder}/") and not found.endswith(".auto")
    assert is_tree(space, found.removeprefix(ROOT))
    assert exists(space, tree) == (keep == COPY)


@holds("R130", "R328")
def test_a_move_to_null_deletes(space: Daemon, folder: str, tree: str) -> None:
    move(space, tree, f"{folder}/.null").completed()
    assert names(space, folder) == []


@holds("R328")
def test_a_copy_to_null_is_nothing(space: Daemon, folder: str, tree: str) -> None:
    move(space, tree, f"{folder}/.null", COPY).completed()
    assert names(space, folder) == ["tree"] and is_tree(space, tree)


@holds("R149", "R163", "R333")
def test_a_link_is_taken_as_a_link(space: Daemon, folder: str, tree: str, keep: str) -> None:
    create(space, f"{folder}/link", "LinkNode", target=ROOT + tree, properties={"title": "t"})
    move(space, f"{folder}/link", f"{folder}/new", keep).completed()
    found = node_at(space, f"{folder}/new")
    assert (found.type, found.target, found.properties["title"]) == ("vos:LinkNode", ROOT + tree, "t")
    assert exists(space, f"{folder}/link") == (keep == COPY)
    move(space, tree, f"{folder}/other", keep).completed()
    inner = node_at(space, f"{folder}/other/l")
    assert (inner.type, inner.target) == ("vos:LinkNode", f"{ROOT}{tree}/a")


@holds("R150", "R332", "R333")
def test_links_on_the_way_are_followed(space: Daemon, folder: str, tree: str, keep: str) -> None:
    create(space, f"{folder}/into", "ContainerNode")
    create(space, f"{folder}/from", "LinkNode", target=ROOT + tree)
    create(space, f"{folder}/to", "LinkNode", target=f"{ROOT}{folder}/into")
    job = move(space, f"{folder}/from/a", f"{folder}/to/new", keep).completed()
    assert fetch(space, f"{folder}/into/new") == b"small"
    assert job.results()["destination"] == f"{ROOT}{folder}/into/new"
    move(space, f"{folder}/from/sub", f"{folder}/to", keep).completed()
    assert names(space, f"{folder}/into") == ["new", "sub"]
    assert exists(space, f"{tree}/sub") == (keep == COPY)


@holds("R151")
def test_what_travels_with_a_move(space: Daemon, folder: str, home: str, alice: dict[str, str]) -> None:
    store(space, f"{home}/n", b"x", alice)
    update(
        space,
        f"{home}/n",
        properties={"urn:x:note": "v", "groupread": "team,others", "publicread": "true"},
        headers=alice,
    )
    before = node_at(space, f"{home}/n").properties
    assert before["creator"] == "alice"
    move(space, f"{home}/n", f"{home}/m").completed()
    after = node_at(space, f"{home}/m").properties
    assert {**after, "ctime": ""} == {**before, "ctime": ""}


@holds("R162", "R161")
def test_what_a_copy_takes_along(space: Daemon, folder: str, home: str, alice: dict[str, str]) -> None:
    store(space, f"{folder}/n", b"old", {"Content-Type": "text/x-it"})
    update(space, f"{folder}/n", properties={"urn:x:note": "v", "title": "t", "publicread": "true"})
    before = node_at(space, f"{folder}/n").properties
    move(space, f"{folder}/n", f"{home}/m", COPY, alice).completed()
    after = node_at(space, f"{home}/m").properties
    for name in ("urn:x:note", "title", "type", "length", "MD5"):
        assert after[name] == before[name]
    assert (before["creator"], after["creator"]) != ("alice", before["creator"]) and after["creator"] == "alice"
    assert after["btime"] > before["btime"]
    store(space, f"{folder}/n", b"new")
    update(space, f"{folder}/n", properties={"title": "changed"})
    assert fetch(space, f"{home}/m") == b"old" and node_at(space, f"{home}/m").properties["title"] == "t"
    store(space, f"{home}/m", b"newer")
    assert fetch(space, f"{folder}/n") == b"new"
    assert space.request("DELETE", f"/nodes{folder}/n")[0] == 204
    assert fetch(space, f"{home}/m") == b"newer"


@holds("R161")
def test_a_copy_outlives_the_original(space: Daemon, folder: str, tree: str) -> None:
    move(space, tree, f"{folder}/copy", COPY).completed()
    store(space, f"{tree}/sub/b%20%C3%A9", b"changed")
    assert is_tree(space, f"{folder}/copy")
    assert space.request("DELETE", f"/nodes{tree}")[0] == 204
    assert is_tree(space, f"{folder}/copy")


@holds("R148")
def test_a_move_is_seen_before_or_after(space: Daemon, folder: str, tree: str) -> None:
    done = threading.Event()

    def look() -> set[tuple[str, ...]]:
        seen = set()
        while not done.is_set():
            seen.add(tuple(names(space, folder)))
        return seen

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        looking = [pool.submit(look) for _ in range(2)]
        try:
            for _ in range(10):
                move(space, tree, f"{folder}/other").completed()
                move(space, f"{folder}/other", tree).completed()
        finally:
            done.set()
        seen = set().union(*(looker.result(10) for looker in looking))
    assert seen <= {("tree",), ("other",)} and is_tree(space, tree)


@holds("R165", "R148")
def test_a_copy_is_seen_whole_or_not_at_all(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/tree", "ContainerNode")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda n: create(space, f"{folder}/tree/n{n:03d}")[0], range(300))) == {201}
    done = threading.Event()

    def look() -> set[int]:
        seen = set()
        while not done.is_set():
            status, _, body = space.request("GET", f"/nodes{folder}/copy?detail=min")
            seen.add(-1 if status == 404 else body.count(b"<vos:node ") - 1)
        return seen

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            move(space, f"{folder}/tree", f"{folder}/copy", COPY).completed()
        finally:
            done.set()
        assert looking.result(10) <= {-1, 300}
    assert len(names(space, f"{folder}/copy")) == 300


@holds("R165", "R194")
def test_a_copy_that_is_aborted(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/tree", "ContainerNode")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda n: create(space, f"{folder}/tree/n{n:03d}")[0], range(200))) == {201}
    for number in range(3):
        job = new_job(space, transfer(f"{ROOT}{folder}/tree", f"{ROOT}{folder}/copy{number}", keep=COPY))
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            running = pool.submit(job.post, "/phase", PHASE="RUN")
            aborting = pool.submit(job.post, "/phase", PHASE="ABORT")
            assert {running.result()[0], aborting.result()[0]} <= {303, 403}
        phase = job.ended()
        assert exists(space, f"{folder}/copy{number}") == (phase == "COMPLETED") and phase in ("COMPLETED", "ABORTED")
        assert phase == "ABORTED" or len(names(space, f"{folder}/copy{number}")) == 200


@holds("R152")
def test_a_move_on_synctrans(space: Daemon, folder: str, tree: str, keep: str) -> None:
    job = synctrans(space, transfer(ROOT + tree, f"{ROOT}{folder}/new", keep=keep))
    status, _, body = space.request("GET", job.url + "/results/transferDetails")
    assert (status, job.phase()) == (200, "COMPLETED")
    assert f"{ROOT}{folder}/new".encode() in body and (ROOT + tree).encode() in body
    assert is_tree(space, f"{folder}/new")


@holds("R143", "R164")
def test_not_into_itself_through_a_link(space: Daemon, folder: str, tree: str, keep: str) -> None:
    create(space, f"{folder}/back", "LinkNode", target=f"{ROOT}{tree}/sub")
    move(space, tree, f"{folder}/back", keep).failed("InvalidURI")
    move(space, tree, f"{folder}/back/x", keep).failed("InvalidURI")
    assert is_tree(space, tree)


@holds("R107", "R153")
def test_a_copy_is_a_node_like_any_other(space: Daemon, folder: str, tree: str) -> None:
    move(space, tree, f"{folder}/copy", COPY).completed()
    assert update(space, f"{folder}/copy", "DataNode", {"title": "t"})[0] == 400
    assert space.request("POST", f"/nodes{folder}/copy", node_document(f"{folder}/copy", "ContainerNode"))[0] == 200
    move(space, f"{folder}/copy/a", f"{folder}/copy/sub", MOVE).completed()
    assert names(space, f"{folder}/copy/sub") == ["a", "b%20%C3%A9"]


@holds("R413")
@pytest.mark.parametrize("keep", [MOVE, COPY], ids=["move", "copy"])
def test_one_that_was_done_when_the_daemon_died_is_not_done_again(
    make_daemon: Callable[..., Daemon], keep: str
) -> None:
    daemon = make_daemon()
    create(daemon, "/tree", "ContainerNode")
    store(daemon, "/tree/f", b"x")
    job = move(daemon, "/tree", "/new", keep).completed()
    daemon.stop()
    with contextlib.closing(sqlite3.connect(daemon.directory / "vosfs.db")) as database, database:
        # Killed before it could write that it was done.
        assert database.execute("UPDATE job SET phase = 'EXECUTING'").rowcount == 1
    again = make_daemon(port=daemon.port)
    job.daemon = again
    job.completed()
    assert job.results()["destination"] == f"{ROOT}/new"
    assert names(again, "/new") == ["f"]
