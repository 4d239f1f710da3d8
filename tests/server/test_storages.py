"""Several storages: bytes go where their container wants them, by HTTP and from a mount, and bad copies are mended."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.support import start_configured
from tests.conftest import Daemon
from tests.server.support import create, fetch, is_fault, node, store, update, vosfsd
from tests.vospace.support import move, push, tar
from vosfs.backends.storages import DEFAULT
from vosfs.metadata.node import STORAGE

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
