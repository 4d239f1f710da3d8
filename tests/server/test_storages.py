"""Several storages: bytes go where their container wants them, by HTTP and from a mount, and bad copies are mended."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest
import trio

from server import daemon as composition
from server import housekeeping
from tests.clients.support import start_configured
from tests.conftest import Daemon
from tests.server.dying import NOW_S
from tests.server.support import ROOT, ask, create, fetch, is_fault, node, store, update, vosfsd
from tests.server.test_killed import DYING, SEED, TRIED
from tests.vospace.support import FORM, Job, move, push, tar
from vosfs import config
from vosfs.backends.storages import DEFAULT
from vosfs.metadata import messages as m
from vosfs.metadata.node import DATA, ROOT_ID, STORAGE, Attributes, NewNode, parts

BYTES = 100_000
SETTINGS = """
[storages.fast]
directory = "fast"
[storages.tape]
directory = "tape"
offered = false
"""


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with three directories."""
    daemon = start_configured(tmp_path / "space", SETTINGS)
    yield daemon
    daemon.stop()


def files(daemon: Daemon, name: str) -> list[Path]:
    """The blobs of a storage."""
    top = daemon.directory / ("storage" if name == DEFAULT else name) / "blobs"
    return sorted(path for path in top.rglob("*") if path.is_file())


def counts(daemon: Daemon) -> tuple[int, ...]:
    return tuple(len(files(daemon, name)) for name in (DEFAULT, "fast", "tape"))


def config_of(daemon: Daemon) -> list[object]:
    return ["--config", daemon.directory / "vosfsd.toml"]


def audited(daemon: Daemon, *options: str) -> tuple[int, dict[str, int], int]:
    done = vosfsd("audit", *config_of(daemon), "--json", *options)
    assert done.returncode in (0, 3), done.stderr
    report = json.loads(done.stdout)
    return done.returncode, {kind: count for kind, count in report["counts"].items() if count}, report["repaired"]


def test_bytes_go_where_their_container_wants_them(space: Daemon) -> None:
    assert create(space, "/c", "ContainerNode", properties={STORAGE: "fast"})[0] == 201
    store(space, "/plain", os.urandom(BYTES))
    assert counts(space) == (1, 0, 0)
    data = os.urandom(BYTES)
    store(space, "/c/f", data)
    create(space, "/c/sub", "ContainerNode")
    store(space, "/c/sub/g", data)
    assert counts(space) == (1, 2, 0) and fetch(space, "/c/sub/g") == data
    for path in ("/c", "/c/f", "/c/sub", "/c/sub/g"):
        assert node(space, path).properties[STORAGE] == "fast"
    assert STORAGE not in node(space, "/plain").properties
    assert update(space, "/c/sub", "ContainerNode", {STORAGE: f"{DEFAULT}  fast "})[0] == 200
    assert node(space, "/c/sub").properties[STORAGE] == "default fast"
    store(space, "/c/sub/h", data)
    assert counts(space) == (2, 3, 0) and fetch(space, "/c/sub/h") == data
    job, answer = push(space, "/c/sub", tar({"from-tar": data}), "tar")
    assert (answer[0], job.phase()) == (201, "COMPLETED")
    assert counts(space) == (3, 4, 0) and fetch(space, "/c/sub/from-tar") == data
    move(space, "/c/sub/h", "/c/copied", keep="true").completed()
    assert (counts(space), fetch(space, "/c/copied")) == ((3, 4, 0), data)
    assert update(space, "/c", "ContainerNode", {STORAGE: ""})[0] == 200
    store(space, "/c/new", data)
    assert counts(space) == (4, 4, 0)
    assert audited(space, "--deep") == (0, {}, 0)


def test_what_is_no_policy_is_refused(space: Daemon) -> None:
    create(space, "/c", "ContainerNode", properties={"groupwrite": "team", "groupread": "team"})
    for policy in ("none", "fast fast", "fast tape default", "../x"):
        answer = update(space, "/c", "ContainerNode", {STORAGE: policy})
        assert is_fault(answer, 400, "InvalidArgument"), policy
    assert b"there are: default, fast, tape" in update(space, "/c", "ContainerNode", {STORAGE: "none"})[2]
    assert is_fault(create(space, "/d", "ContainerNode", properties={STORAGE: "none"}), 400, "InvalidArgument")
    done = vosfsd("user", *config_of(space), "alice", "--no-password", "--groups", "team")
    assert done.returncode == 0, done.stderr
    assert update(space, "", "ContainerNode", {"publicread": "true"})[0] == 200
    token = space.directory / "alice.token"
    assert vosfsd("token", *config_of(space), "alice", token).returncode == 0
    alice = {"Authorization": "Bearer " + token.read_text().strip()}
    assert is_fault(update(space, "/c", "ContainerNode", {STORAGE: "tape"}, alice), 403, "PermissionDenied")
    assert update(space, "/c", "ContainerNode", {STORAGE: "fast"}, alice)[0] == 200
    assert update(space, "/c", "ContainerNode", {STORAGE: "tape"})[0] == 200
    status, _, body = space.request("PUT", "/blobs?storage=none", bytes(BYTES))
    assert status == 503 and b"there is no storage" in body
    status, _, body = space.request("PUT", "/blobs?storage=../fast", bytes(BYTES))
    assert status == 503


def test_a_mount_writes_where_its_container_wants_it(space: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(space)
    (point / "c").mkdir()
    os.setxattr(point / "c", "user.vosfs.storage", b"fast default")
    assert os.getxattr(point / "c", "user.vosfs.storage") == b"fast default"
    with pytest.raises(OSError):
        os.setxattr(point / "c", "user.vosfs.storage", b"none")
    data = os.urandom(BYTES)
    (point / "c/d").mkdir()
    (point / "c/d/f").write_bytes(data)
    (point / "plain").write_bytes(data)
    os.sync()
    assert os.getxattr(point / "c/d/f", "user.vosfs.storage") == b"fast default"
    fd = os.open(point / "c/d/f", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)
    assert fetch(space, "/c/d/f") == data == fetch(space, "/plain")
    assert counts(space) == (2, 1, 0)
    other = make_mount(space, "other")
    files(space, "fast")[0].unlink()
    assert (other / "c/d/f").read_bytes() == data, "of the other copy"


@pytest.mark.parametrize("name", [DEFAULT, "fast"])
@pytest.mark.parametrize("how", ["gone", "short", "rotten"])
def test_a_bad_copy_is_mended(space: Daemon, name: str, how: str) -> None:
    create(space, "/c", "ContainerNode", properties={STORAGE: "default fast"})
    data = os.urandom(BYTES)
    store(space, "/c/f", data)
    move(space, "/c/f", "/c/g", keep="true").completed()
    (file,) = files(space, name)
    if how == "gone":
        file.unlink()
    elif how == "short":
        os.truncate(file, 10)
    else:
        file.write_bytes(bytes(BYTES))
    kind = {"gone": "missing", "short": "wrong length", "rotten": "corrupt"}[how]
    assert audited(space, "--deep") == (3, {kind: 1}, 0)
    assert audited(space, "--deep", "--repair") == (0, {kind: 1}, 1)
    assert audited(space, "--deep") == (0, {}, 0)
    assert (fetch(space, "/c/f"), fetch(space, "/c/g")) == (data, data)
    assert len(files(space, name)) == (1 if how == "gone" else 2), "the bad one is the collector's"


def test_two_bad_copies_cannot_be_mended(space: Daemon) -> None:
    create(space, "/c", "ContainerNode", properties={STORAGE: "default fast"})
    store(space, "/c/f", os.urandom(BYTES))
    for name in (DEFAULT, "fast"):
        files(space, name)[0].write_bytes(bytes(BYTES))
    assert audited(space, "--deep", "--repair") == (3, {"corrupt": 2}, 0)
    assert counts(space) == (1, 1, 0), "what was begun is gone"


def test_a_storage_that_is_no_longer_configured(space: Daemon) -> None:
    create(space, "/c", "ContainerNode", properties={STORAGE: "fast"})
    store(space, "/c/f", bytes(BYTES))
    space.stop()
    text = (space.directory / "vosfsd.toml").read_text()
    (space.directory / "vosfsd.toml").write_text(text.partition("[storages")[0])
    assert audited(space) == (3, {"corrupt": 1}, 0)
    (space.directory / "vosfsd.toml").write_text(text)
    assert audited(space) == (0, {}, 0)


# -- moving what is there --------------------------------------------------------------------------------------------


def moved(daemon: Daemon, path: str, storage: str, headers: dict[str, str] | None = None) -> Job:
    """The job that moves a tree, told to run."""
    body = urlencode({"target": ROOT + path, "storage": storage}).encode()
    answer = daemon.request("POST", "/async-storage", body, {**FORM, **(headers or {})})
    assert answer[0] == 303, answer
    return Job(daemon, answer[1]["Location"], headers).run()


@pytest.fixture
def tree(space: Daemon) -> dict[str, bytes]:
    """A tree in the default storage, two of its files copies of each other; bytes by path."""
    create(space, "/t", "ContainerNode")
    create(space, "/t/sub", "ContainerNode")
    contents = {"/t/a": os.urandom(BYTES), "/t/sub/b": os.urandom(3 * BYTES), "/t/small": b"inline"}
    for path, data in contents.items():
        store(space, path, data)
    move(space, "/t/a", "/t/sub/a", keep="true").completed()
    move(space, "/t/a", "/outside", keep="true").completed()
    return contents | {"/t/sub/a": contents["/t/a"], "/outside": contents["/t/a"]}


@pytest.mark.parametrize("by", ["job", "command"])
def test_a_tree_is_moved(space: Daemon, tree: dict[str, bytes], by: str) -> None:
    with_versions = {path: space.request("HEAD", "/files" + path)[1]["ETag"] for path in tree}
    if by == "job":
        assert moved(space, "/t", "fast").completed().results()["successcount"] == "final:6"
    else:
        done = vosfsd("move-storage", *config_of(space), "/t", "fast")
        assert (done.returncode, done.stdout) == (0, f"moved 6 nodes, {4 * BYTES} bytes\n"), done.stderr
    assert counts(space)[1] == 2, "what shared a blob shares its copy"
    for path, data in tree.items():
        assert fetch(space, path) == data
        assert node(space, path).properties.get(STORAGE) == ("fast" if path.startswith("/t/") else None)
    assert {path: space.request("HEAD", "/files" + path)[1]["ETag"] for path in tree} == with_versions
    assert audited(space, "--deep") == (0, {}, 0)
    store(space, "/t/sub/new", bytes(BYTES))
    assert counts(space)[1] == 3
    moved(space, "/t", "fast").completed()
    assert counts(space)[1] == 3, "nothing is moved twice"
    moved(space, "/t", "fast default").completed()
    files(space, "fast")[0].unlink()
    for path, data in tree.items():
        assert fetch(space, path) == data


def test_a_single_file_is_moved(space: Daemon, tree: dict[str, bytes]) -> None:
    assert moved(space, "/t/sub/b", "fast").completed().results()["successcount"] == "final:1"
    assert counts(space) == (2, 1, 0) and fetch(space, "/t/sub/b") == tree["/t/sub/b"]
    assert STORAGE not in node(space, "/t/sub").properties


def test_who_may_not_move_what(space: Daemon, tree: dict[str, bytes]) -> None:
    vosfsd("user", *config_of(space), "alice", "--no-password")
    token = space.directory / "alice.token"
    assert vosfsd("token", *config_of(space), "alice", token).returncode == 0
    alice = {"Authorization": "Bearer " + token.read_text().strip()}
    update(space, "", "ContainerNode", {"publicread": "true"})
    update(space, "/t", "ContainerNode", {"publicread": "true"})
    assert moved(space, "/t", "fast", alice).ended() == "ERROR"
    body = urlencode({"target": ROOT + "/t", "storage": "tape"}).encode()
    assert is_fault(space.request("POST", "/async-storage", body, {**FORM, **alice}), 403, "PermissionDenied")
    body = urlencode({"target": ROOT + "/t", "storage": "none"}).encode()
    assert is_fault(space.request("POST", "/async-storage", body, FORM), 400, "InvalidArgument")
    assert counts(space) == (2, 0, 0)
    done = vosfsd("move-storage", *config_of(space), "/none", "fast")
    assert done.returncode == 1 and "no such node" in done.stderr


def test_a_rotten_file_is_left_and_the_rest_moved(space: Daemon, tree: dict[str, bytes]) -> None:
    rotten = next(file for file in files(space, DEFAULT) if file.stat().st_size == 3 * BYTES)
    rotten.write_bytes(bytes(3 * BYTES))
    results = moved(space, "/t", "fast").completed().results()
    assert (results["successcount"], results["errorcount"]) == ("final:5", "final:1")
    assert counts(space)[1] == 1


def test_a_mount_reads_and_writes_on_while_its_files_move(
    space: Daemon, tree: dict[str, bytes], make_mount: Callable[..., Path]
) -> None:
    point = make_mount(space)
    with open(point / "t/sub/b", "r+b") as stream:
        stream.write(b"before")
        stream.flush()
        moved(space, "/t", "fast").completed()
        stream.seek(BYTES)
        stream.write(b"after")
        os.fsync(stream.fileno())
    data = bytearray(tree["/t/sub/b"])
    data[:6], data[BYTES : BYTES + 5] = b"before", b"after"
    assert fetch(space, "/t/sub/b") == data == (point / "t/sub/b").read_bytes()
    assert audited(space, "--deep") == (0, {}, 0)


def left_after_a_collection(daemon: Daemon) -> tuple[set[str], set[str]]:
    """What the storages hold when everything unused was collected, and what the nodes say."""
    cfg = config.load(daemon.directory / "vosfsd.toml")

    async def work() -> tuple[set[str], set[str]]:
        with composition.opened(cfg) as (nodes, backend):
            await housekeeping.collect(nodes, backend, NOW_S)
            await housekeeping.collect_orphans(nodes, backend, NOW_S)
            used = {part for used in await nodes.used("", 1000) for part in parts(used.locator)}
            return set(backend.locators(1 << 62)), used

    return trio.run(work)


def test_a_move_that_is_killed_between_two_steps(space: Daemon, tree: dict[str, bytes], tmp_path: Path) -> None:
    armed, rng = tmp_path / "armed", random.Random(SEED)
    killed = 0
    for turn in range(TRIED or 60):
        armed.write_text(str(turn if not TRIED else rng.randrange(60)))
        command = [
            sys.executable,
            DYING,
            armed,
            "move-storage",
            *config_of(space),
            "/t",
            ("fast default", "fast", "")[turn % 3],
        ]
        status = subprocess.run([str(part) for part in command], capture_output=True, timeout=60).returncode
        assert status in (0, -signal.SIGKILL)
        killed += status != 0
        for path, data in tree.items():
            assert fetch(space, path) == data
        there, used = left_after_a_collection(space)
        assert there == used
    assert killed
    assert audited(space, "--deep") == (0, {}, 0)


def test_the_gateway_takes_no_policy_unchecked(space: Daemon) -> None:
    made = ask(space, m.Create(ROOT_ID, b"n", NewNode(DATA, storage="tape")))
    assert made.storage == ""
    refused = ask(space, m.SetAttributes(made.id, Attributes(storage="../x")))
    assert isinstance(refused, m.Failure) and refused.error == "InvalidArgument"
    assert STORAGE not in node(space, "/n").properties


def test_several_directories_are_one_storage(tmp_path: Path) -> None:
    settings = """
[storage]
directories = ["one", "two"]
[storages.small]
directory = "small"
quota = "1 MiB"
"""
    daemon = start_configured(tmp_path / "space", settings)
    data = {f"/f{number}": os.urandom(BYTES + number) for number in range(30)}
    try:
        for path, content in data.items():
            store(daemon, path, content)
        assert all((daemon.directory / name / "vosfs-root").exists() for name in ("one", "two"))
        assert all(list((daemon.directory / name / "blobs").rglob("*")) for name in ("one", "two"))
        assert not (daemon.directory / "storage").exists()
        assert create(daemon, "/small", "ContainerNode", properties={STORAGE: "small"})[0] == 201
        store(daemon, "/small/f", bytes(900_000))
        assert is_fault(daemon.request("PUT", "/files/small/g", bytes(200_000)), 507, "QuotaExceeded")
        assert daemon.request("DELETE", "/nodes/f0")[0] == 204
        done = vosfsd("import", *config_of(daemon), Path(config.__file__).parent / "metadata", "/imported")
        assert done.returncode == 0, done.stderr
        assert b"class Store" in fetch(daemon, "/imported/store.py")
    finally:
        daemon.stop()
    # In another order, with one more; and what is used of the quota is known again.
    again = start_configured(tmp_path / "space", settings.replace('"one", "two"', '"three", "two", "one"'))
    try:
        for path, content in list(data.items())[1:]:
            assert fetch(again, path) == content
        assert is_fault(again.request("PUT", "/files/small/g", bytes(200_000)), 507, "QuotaExceeded")
        assert audited(again, "--deep") == (0, {}, 0)
        (again.directory / "two").rename(again.directory / "away")
        done = vosfsd("audit", *config_of(again))
        assert done.returncode == 1 and "two" in done.stdout + done.stderr, done
        store(again, "/new", os.urandom(BYTES))
        (again.directory / "away").rename(again.directory / "two")
        assert audited(again) == (0, {}, 0)
    finally:
        again.stop()


def test_a_storage_whose_disks_are_not_mounted_is_not_begun_anew(tmp_path: Path) -> None:
    settings = '[storage]\ndirectories = ["one"]\n'
    daemon = start_configured(tmp_path / "space", settings)
    try:
        store(daemon, "/f", os.urandom(BYTES))
    finally:
        daemon.stop()
    (daemon.directory / "one").rename(daemon.directory / "disk")
    (daemon.directory / "one").mkdir()
    for command in ("gc", "audit"):
        done = vosfsd(command, *config_of(daemon))
        assert done.returncode == 1 and "are the disks mounted?" in done.stderr, done.stderr
    assert list((daemon.directory / "one").iterdir()) == []
