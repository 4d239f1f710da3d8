"""What the vos client does is what a mount of the same space shows at once, and the other way round."""

import errno
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from server import digests
from server.daemon import opened
from tests.clients.support import Client
from tests.conftest import Daemon, eventually
from tests.server.support import node
from tests.storage import config_of
from vosfs.config import Config

RNG = random.Random(73)


@pytest.fixture
def point(vos: Client, served: Daemon, make_mount: Callable[..., Path]) -> Path:
    """The test's container in a mount of the space."""
    return make_mount(served) / vos.folder.strip("/")


def test_a_copy_by_the_client_is_read_in_the_mount(vos: Client, point: Path) -> None:
    assert os.listdir(point) == []
    tree = vos.home / "tree"
    (tree / "d").mkdir(parents=True)
    files = {"empty": b"", "few": b"few", "d/blob": RNG.randbytes(3 << 20)}
    for name, data in files.items():
        (tree / name).write_bytes(data)
    vos.run("vcp", tree, vos.uri("tree"))
    assert {name: (point / "tree" / name).read_bytes() for name in files} == files
    # And again, over what the mount has in its cache; open() starts from the newest version.
    changed = RNG.randbytes(3 << 20)
    (tree / "d/blob").write_bytes(changed)
    vos.run("vcp", tree / "d/blob", vos.uri("tree/d/blob"))
    assert (point / "tree/d/blob").read_bytes() == changed


def test_a_copy_in_the_mount_is_read_by_the_client(vos: Client, point: Path) -> None:
    source = vos.home / "source"
    source.write_bytes(RNG.randbytes(3 << 20))
    subprocess.run(["cp", source, point / "blob"], check=True)
    subprocess.run(["sh", "-c", f"echo first > {point}/log; echo second >> {point}/log"], check=True)
    vos.run("vcp", vos.uri("blob"), vos.home / "back")
    assert (vos.home / "back").read_bytes() == source.read_bytes()
    vos.run("vcp", vos.uri("log"), vos.home / "log")
    assert (vos.home / "log").read_bytes() == b"first\nsecond\n"


def test_what_a_mount_saved_is_not_sent_again(vos: Client, served: Daemon, point: Path) -> None:
    """The client compares digests, so every data node must show one."""
    (vos.home / "tree").mkdir()
    for name, size in {"few": 10, "blob": 300_000, "blobs": 9 << 20}.items():
        (vos.home / "tree" / name).write_bytes(RNG.randbytes(size))
    subprocess.run(["cp", "-r", vos.home / "tree", point / "tree"], check=True)
    trio.run(digested, config_of(served.directory))
    done = vos.run("vsync", "-v", f"{vos.home}/tree/", vos.uri("tree"))
    assert "No files needed sending" in done.err, done.err


async def digested(config: Config) -> None:
    """Digest what was written in pieces now, not when it has rested.

    What a mount saved first has the time of its own guess of the daemon's clock, which may be a moment ahead.
    """
    with opened(config) as (store, backend), trio.fail_after(10):
        done = 0
        while done < 2:
            done += await digests.fill(store, backend, rest_s=0)
            await trio.lowlevel.checkpoint()


def test_a_rename_is_a_move(vos: Client, served: Daemon, point: Path) -> None:
    (point / "d").mkdir()
    (point / "f").write_bytes(b"content")
    before = node(served, f"{vos.folder}/f").properties
    inode = os.stat(point / "f").st_ino
    os.rename(point / "f", point / "g")
    assert vos.names() == ["d", "g"]
    vos.run("vmv", vos.uri("g"), vos.uri("d"))
    eventually("the move shows", lambda: os.listdir(point) == ["d"] and os.listdir(point / "d") == ["g"])
    assert (point / "d/g").read_bytes() == b"content" and os.stat(point / "d/g").st_ino == inode
    after = node(served, f"{vos.folder}/d/g").properties
    kept = ("MD5", "length", "date", "btime", "creator")
    assert [after[name] for name in kept] == [before[name] for name in kept]
    # What moves may be a whole tree, and an open file with it.
    with open(point / "d/g", "rb") as stream:
        vos.run("vmv", vos.uri("d"), vos.uri("e"))
        assert stream.read() == b"content"
    os.rename(point / "e/g", point / "e/h")
    assert vos.names("e") == ["h"]


def test_removals_show_on_both_sides(vos: Client, point: Path) -> None:
    (point / "d").mkdir()
    for name in ("a", "b", "d/c"):
        (point / name).write_bytes(b"x")
    vos.run("vrm", vos.uri("a"))
    vos.run("vrmdir", vos.uri("d"))
    eventually("the removals show", lambda: os.listdir(point) == ["b"])
    with pytest.raises(OSError) as caught:
        (point / "d/c").read_bytes()
    assert caught.value.errno == errno.ENOENT
    (point / "b").unlink()
    assert vos.names() == []


def test_links_are_the_same_on_both_sides(vos: Client, point: Path) -> None:
    """A link inside the space leads somewhere on both sides, wherever the mount is."""
    (point / "d").mkdir()
    (point / "f").write_bytes(b"content")
    os.symlink("../f", point / "d/from-mount")
    assert vos.run("vls", "-l", vos.uri("d/from-mount")).lines[0].endswith(f"from-mount -> {vos.uri('f')}")
    vos.run("vln", vos.uri("f"), vos.uri("d/from-client"))
    vos.run("vln", "https://example.org/data.fits", vos.uri("d/page"))
    assert os.readlink(point / "d/page") == "https://example.org/data.fits"
    assert (point / "d/from-client").is_symlink()
    assert (point / "d/from-client").read_bytes() == b"content"


def test_properties_are_attributes(vos: Client, point: Path) -> None:
    (point / "f").write_bytes(b"content")
    vos.run("vtag", vos.uri("f"), "title=a title", "ivo://example.org/p#x=1")
    eventually("the title shows", lambda: "user.vosfs.title" in os.listxattr(point / "f"))
    assert os.getxattr(point / "f", "user.vosfs.title") == b"a title"
    assert os.getxattr(point / "f", "user.vosfs.ivo://example.org/p#x") == b"1"
    os.setxattr(point / "f", "user.vosfs.description", b"from the mount")
    assert vos.run("vtag", vos.uri("f"), "description").lines == ["'from the mount'"]
