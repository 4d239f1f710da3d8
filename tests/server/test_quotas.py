"""Quotas of containers by HTTP, by jobs, by the command line and from a mount."""

import errno
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from server.quotas import parsed
from tests import storage
from tests.conftest import BIN, Daemon, eventually
from tests.server.support import NIL, ask, create, fetch, is_fault, make_user, node, store, update, vosfsd, where
from tests.vospace.support import move, push, synctrans, tar, transfer
from vosfs.errors import InvalidArgument
from vosfs.metadata import messages as m
from vosfs.metadata.node import DATA, ROOT_ID, Extent, NewNode
from vosfs.metadata.node import QUOTA as QUOTA_URI

KIB = 1 << 10
QUOTA = 100 * KIB


def shown(daemon: Daemon, path: str) -> tuple[str | None, ...]:
    """Quota, length and space of a container as a client sees them."""
    properties = node(daemon, path, "?limit=0").properties
    return tuple(properties.get(name) for name in ("quota", "length", "availableSpace"))


def boxed(daemon: Daemon, path: str = "/box", bytes_max: int = QUOTA) -> str:
    assert create(daemon, path, "ContainerNode", properties={"quota": bytes_max})[0] == 201
    return path


def test_numbers_of_bytes_are_read_as_people_write_them() -> None:
    given = {"0": 0, "500000": 500_000, "20 GiB": 20 << 30, "3T": 3 << 40, "7kb": 7 << 10, " 1 m ": 1 << 20, "12B": 12}
    assert {text: parsed(text) for text in given} == given
    for text in ("", "none", "-1", "1.5G", "G", "1X", "9" * 30, "5 P P", "٣", "5000000P"):
        with pytest.raises(InvalidArgument):
            parsed(text)


def test_a_quota_is_a_property_that_administrators_set(daemon: Daemon) -> None:
    assert create(daemon, "/box", "ContainerNode", properties={"groupwrite": "team"})[0] == 201
    assert update(daemon, "", "ContainerNode", {"publicread": "true"})[0] == 200
    alice = make_user(daemon, "alice", "team")
    assert is_fault(update(daemon, "/box", "ContainerNode", {"quota": "500"}, alice), 403, "PermissionDenied")
    document = update(daemon, "/box", "ContainerNode", {"quota": str(QUOTA)})
    assert document[0] == 200 and shown(daemon, "/box") == (str(QUOTA), "0", str(QUOTA))
    store(daemon, "/box/f", bytes(10 * KIB))
    assert shown(daemon, "/box") == (str(QUOTA), str(10 * KIB), str(90 * KIB))
    # A client sends back what it was shown, and perhaps it is not so any more.
    echo = {"quota": str(QUOTA), "length": "0", "availableSpace": "5", "title": "t"}
    assert update(daemon, "/box", "ContainerNode", echo, alice)[0] == 200
    assert is_fault(update(daemon, "/box", "ContainerNode", {"quota": NIL}, alice), 403, "PermissionDenied")
    assert is_fault(update(daemon, "/box", "ContainerNode", {"quota": "much"}), 400, "InvalidArgument")
    assert is_fault(update(daemon, "/box/f", properties={"quota": "5"}), 403, "PermissionDenied")
    assert shown(daemon, "/box") == (str(QUOTA), str(10 * KIB), str(90 * KIB))
    assert create(daemon, "/box/inner", "ContainerNode", properties={"quota": "1 MiB"})[0] == 201
    assert shown(daemon, "/box/inner") == (str(1 << 20), "0", str(90 * KIB))
    assert update(daemon, "/box", "ContainerNode", {"quota": NIL})[0] == 200
    assert shown(daemon, "/box") == (None, str(10 * KIB), None)
    assert update(daemon, "/box", "ContainerNode", {"length": str(10 * KIB), "title": "u"}, alice)[0] == 200


@pytest.mark.holds("R36", "R199")
def test_more_than_a_quota_is_refused_whichever_way_it_comes(daemon: Daemon) -> None:
    box = boxed(daemon)
    store(daemon, f"{box}/f", b"a" * (60 * KIB))
    assert is_fault(daemon.request("PUT", f"/files{box}/g", bytes(41 * KIB)), 413, "QuotaExceeded")
    assert is_fault(daemon.request("PUT", f"/files{box}/f", bytes(101 * KIB)), 413, "QuotaExceeded")
    assert fetch(daemon, f"{box}/f") == b"a" * (60 * KIB)
    store(daemon, f"{box}/f", b"b" * (99 * KIB))
    store(daemon, f"{box}/f", b"a" * (60 * KIB))
    # Announced, it fails before a byte is sent.
    params = {"ivo://ivoa.net/vospace/core#length": str(41 * KIB)}
    document = transfer(f"vos://vosfs.local~vospace{box}/n", "pushToVoSpace", ["httpput"], params=params)
    synctrans(daemon, document).failed("QuotaExceeded")
    job, answer = push(daemon, box, tar({"a": bytes(30 * KIB), "b": bytes(30 * KIB)}), "tar")
    assert is_fault(answer, 413, "QuotaExceeded") and job.phase() == "ERROR"
    assert [child.uri.rpartition("/")[2] for child in node(daemon, box).children] == ["f"]
    create(daemon, "/tree", "ContainerNode")
    for name in "xyz":
        store(daemon, f"/tree/{name}", bytes(20 * KIB))
    move(daemon, "/tree", f"{box}/copy", keep="true").failed("QuotaExceeded")
    move(daemon, "/tree", f"{box}/moved").failed("QuotaExceeded")
    assert [child.uri.rpartition("/")[2] for child in node(daemon, "/tree").children] == ["x", "y", "z"]
    assert daemon.request("DELETE", "/nodes/tree/z")[0] == 204
    eventually("what was given up is purged", lambda: shown(daemon, box)[2] == str(40 * KIB))
    move(daemon, "/tree", f"{box}/copy", keep="true").completed()
    assert shown(daemon, box)[2] == "0"
    assert is_fault(daemon.request("PUT", f"/files{box}/copy/n", b"1"), 413, "QuotaExceeded")
    assert daemon.request("DELETE", f"/nodes{box}/copy")[0] == 204
    eventually("it is purged", lambda: shown(daemon, box)[2] == str(40 * KIB))
    move(daemon, "/tree", f"{box}/moved").completed()
    assert shown(daemon, box)[2] == "0"


def test_a_mount_cannot_say_which_quota_counts(daemon: Daemon) -> None:
    boxed(daemon, "/box", 10)
    boxed(daemon, "/other", 1 << 20)
    box, other = (ask(daemon, m.Lookup(ROOT_ID, name)).node for name in (b"box", b"other"))
    made = ask(daemon, m.Create(box.id, b"f", NewNode(DATA, quota=other.id)))
    assert made.quota == box.id == box.quota
    answer = ask(daemon, m.Commit(made.id, None, 11, [Extent(0, 11, data=b"x" * 11)], None, False))
    assert isinstance(answer, m.Failure) and answer.error == "QuotaExceeded"
    alice = make_user(daemon, "alice")
    assert update(daemon, "", "ContainerNode", {"publicread": "true"})[0] == 200
    answer = ask(daemon, m.SetProperties(box.id, {QUOTA_URI: "5000"}), alice)
    assert isinstance(answer, m.Failure) and answer.error == "PermissionDenied"
    ask(daemon, m.SetProperties(box.id, {QUOTA_URI: "1 KiB"}))
    assert shown(daemon, "/box") == ("1024", "0", "1024")


def test_the_command_shows_sets_and_puts_right(daemon: Daemon) -> None:
    def quota(*arguments: str) -> object:
        done = vosfsd("quota", *where(daemon), "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    create(daemon, "/box", "ContainerNode")
    store(daemon, "/box/f", bytes(5 * KIB))
    assert quota("/box") == {"quota": None, "used": None, "left": None}
    assert quota("/box", "8 KiB") == {"quota": 8 * KIB, "used": 5 * KIB, "left": 3 * KIB}
    assert is_fault(daemon.request("PUT", "/files/box/g", bytes(4 * KIB)), 413, "QuotaExceeded")
    assert quota("--check") == []
    assert quota("/box", "none") == {"quota": None, "used": 5 * KIB, "left": None}
    store(daemon, "/box/g", bytes(40 * KIB))
    for arguments in (("/nowhere",), ("/box/f", "5"), ("/box", "lots"), (), ("/box", "--check")):
        done = vosfsd("quota", *where(daemon), *arguments)
        assert done.returncode == 1 and done.stderr.startswith("vosfsd: ") and done.stderr.count("\n") == 1


def save(path: Path, data: bytes) -> None:
    """Write a file, not to be told of an error by the garbage collector."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        os.write(fd, data)
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)


@pytest.mark.parametrize("options", ["", "sync"])
def test_a_mount_is_told_at_close_and_keeps_the_bytes(
    daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path, options: str
) -> None:
    point = make_mount(daemon, "mnt", options)
    (point / "box").mkdir()
    save(point / "box" / "old", b"o" * (20 * KIB))
    with open(point / "warm", "w") as file:
        os.fsync(file.fileno())
    assert update(daemon, "/box", "ContainerNode", {"quota": str(QUOTA)})[0] == 200
    assert os.getxattr(point / "box", "user.vosfs.quota") == str(QUOTA).encode()
    assert os.getxattr(point / "box", "user.vosfs.availableSpace") == str(80 * KIB).encode()
    # The mount heard of it by the feed: what it makes and saves first is what is certain.
    eventually("the feed brings it", lambda: not (point / "box" / "absent").exists())
    (point / "box" / "sub").mkdir()
    save(point / "box" / "sub" / "fits", b"f" * (60 * KIB))
    for size in (30 * KIB, 3 << 20):
        with pytest.raises(OSError) as caught:
            save(point / "box" / "sub" / f"new{size}", b"n" * size)
        assert caught.value.errno == errno.EDQUOT
    with pytest.raises(OSError) as caught, open(point / "box" / "old", "ab", buffering=0) as file:
        file.write(b"+" * (30 * KIB))
        os.fsync(file.fileno())
    assert caught.value.errno == errno.EDQUOT
    assert fetch(daemon, "/box/old") == b"o" * (20 * KIB)
    done = subprocess.run(
        [BIN / "vosfs", "recover", "--cache-dir", tmp_path / "mnt-cache", "--json"], capture_output=True, text=True
    )
    lengths = sorted(each["length"] for each in json.loads(done.stdout))
    assert lengths == [30 * KIB, 50 * KIB, 3 << 20]
    # Shorter goes, and makes room.
    os.truncate(point / "box" / "old", 10)
    save(point / "box" / "sub" / "new", b"n" * (30 * KIB))
    (point / "box" / "sub" / "fits").unlink()
    save(point / "box" / "other", b"n" * (60 * KIB))
    status = json.loads(
        subprocess.run([BIN / "vosfs", "status", "--json", point], capture_output=True, text=True).stdout
    )
    assert status[0].get("lost", 0) == 0


def test_a_mount_moves_between_quotas_by_copying_what_has_other_names(
    daemon: Daemon, make_mount: Callable[..., Path]
) -> None:
    boxed(daemon, "/one")
    boxed(daemon, "/two")
    point = make_mount(daemon)
    save(point / "one" / "f", b"f" * KIB)
    os.link(point / "one" / "f", point / "one" / "g")
    with pytest.raises(OSError) as caught:
        os.link(point / "one" / "f", point / "two" / "f")
    assert caught.value.errno == errno.EXDEV
    with pytest.raises(OSError) as caught:
        os.rename(point / "one" / "f", point / "two" / "f")
    assert caught.value.errno == errno.EXDEV
    subprocess.run(["mv", point / "one" / "f", point / "two" / "f"], check=True)
    (point / "one" / "d").mkdir()
    save(point / "one" / "d" / "h", b"h" * (70 * KIB))
    os.rename(point / "one" / "d", point / "two" / "d")
    assert (shown(daemon, "/one")[1], shown(daemon, "/two")[1]) == (str(KIB), str(71 * KIB))
    # What is below is known to be under the other quota by now.
    with pytest.raises(OSError) as caught:
        save(point / "two" / "d" / "more", bytes(30 * KIB))
    assert caught.value.errno == errno.EDQUOT
    os.rename(point / "two" / "d", point / "d")
    save(point / "d" / "more", bytes(300 * KIB))
    assert shown(daemon, "/two")[1] == str(KIB)


def test_statfs_tells_the_quota_of_the_root(daemon: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(daemon)
    whole = os.statvfs(point)
    # Of an object store nobody knows a size.
    assert whole.f_blocks == 0 if storage.elsewhere() else whole.f_blocks * 4096 > 100 << 20
    assert update(daemon, "", "ContainerNode", {"quota": "10 MiB"})[0] == 200
    save(point / "f", bytes(1 << 20))
    found = os.statvfs(point)
    assert (found.f_blocks * 4096, found.f_bavail * 4096) == (10 << 20, 9 << 20)
    with pytest.raises(OSError) as caught:
        save(point / "g", bytes(10 << 20))
    assert caught.value.errno == errno.EDQUOT
