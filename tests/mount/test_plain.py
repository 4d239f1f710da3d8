"""A VOSpace that lacks the gateway binding can be mounted: the same programs, minus what the standard cannot carry."""

import errno
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Daemon


@pytest.fixture
def plain(make_daemon: Callable[..., Daemon], make_mount: Callable[..., Path]) -> tuple[Daemon, Path]:
    """A daemon that offers nodes and transfers alone, mounted."""
    daemon = make_daemon("plain", "--no-gateway")
    return daemon, make_mount(daemon)


def test_the_binding_is_discovered_not_assumed(plain: tuple[Daemon, Path]) -> None:
    daemon, point = plain
    assert b"Gateway" not in daemon.request("GET", "/capabilities")[2]
    assert daemon.request("POST", "/gateway", b"x")[0] == 404
    assert b'"plain VOSpace"' in os.getxattr(point, "user.vosfs.status")


def test_files_containers_and_links(plain: tuple[Daemon, Path], tmp_path: Path) -> None:
    daemon, point = plain
    source = tmp_path / "source"
    (source / "a/b").mkdir(parents=True)
    rng = random.Random(2)
    for number in range(30):
        (source / "a/b" / f"f {number}").write_bytes(rng.randbytes(rng.choice([0, 10, 30_000, 2_000_000])))
    (source / "a/link").symlink_to("b/f 1")
    subprocess.run(["cp", "-r", source, point / "copy"], check=True)
    subprocess.run(["diff", "-r", source, point / "copy"], check=True)
    assert os.readlink(point / "copy/a/link") == "b/f 1"
    subprocess.run(["rm", "-r", point / "copy/a"], check=True)
    assert os.listdir(point / "copy") == []


def test_partial_writes_rename_over_and_append(plain: tuple[Daemon, Path]) -> None:
    daemon, point = plain
    (point / "f").write_bytes(b"0123456789" * 50_000)
    with open(point / "f", "r+b") as stream:
        stream.seek(100_000)
        stream.write(b"XYZ")
    assert daemon.request("GET", "/files/f", headers={"Range": "bytes=99999-100003"})[2] == b"9XYZ3"
    with open(point / "f", "ab") as stream:
        stream.write(b"end")
    os.truncate(point / "f", 5)
    assert (point / "f").read_bytes() == b"01234"
    (point / "g").write_bytes(b"new")
    os.rename(point / "g", point / "f")
    assert (point / "f").read_bytes() == b"new" and os.listdir(point) == ["f"]


def test_what_it_cannot_do_is_refused(plain: tuple[Daemon, Path]) -> None:
    _, point = plain
    (point / "d").mkdir()
    (point / "d/f").write_bytes(b"x")
    with pytest.raises(OSError) as caught:
        os.rmdir(point / "d")
    assert caught.value.errno == errno.ENOTEMPTY
    with pytest.raises(OSError) as caught:
        os.link(point / "d/f", point / "d/g")
    assert caught.value.errno == errno.EOPNOTSUPP
    assert (point / "d/f").read_bytes() == b"x"


def test_a_failed_upload_keeps_the_old_content(plain: tuple[Daemon, Path]) -> None:
    daemon, point = plain
    (point / "f").write_bytes(b"old")
    fd = os.open(point / "f", os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"new")
    daemon.stop()
    with pytest.raises(OSError):
        os.close(fd)


def test_long_listings_are_paged(plain: tuple[Daemon, Path]) -> None:
    daemon, point = plain
    body = (
        '<vos:node xmlns:vos="http://www.ivoa.net/xml/VOSpace/v2.0" uri="vos://vosfs.local~vospace/{}"'
        ' xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="vos:{}"/>'
    )
    daemon.request("PUT", "/nodes/d", body.format("d", "ContainerNode").encode())
    for number in range(1100):
        daemon.request("PUT", f"/nodes/d/n{number:04}", body.format(f"d/n{number:04}", "DataNode").encode())
    assert os.listdir(point / "d") == [f"n{number:04}" for number in range(1100)]


def test_the_second_of_two_saves_is_told(plain: tuple[Daemon, Path]) -> None:
    daemon, point = plain
    (point / "f").write_bytes(b"old")
    fd = os.open(point / "f", os.O_WRONLY)
    os.pwrite(fd, b"mine", 0)
    assert daemon.request("PUT", "/files/f", b"theirs")[0] in (200, 201)
    with pytest.raises(OSError) as caught:
        os.close(fd)
    assert caught.value.errno == errno.ESTALE
    assert (point / "f").read_bytes() == b"theirs" == daemon.request("GET", "/files/f")[2]


def test_a_property_is_no_change_of_the_bytes(plain: tuple[Daemon, Path]) -> None:
    daemon, point = plain
    (point / "f").write_bytes(b"old")
    with open(point / "f", "r+b") as stream:
        os.setxattr(point / "f", "user.vosfs.title", b"A title")
        stream.write(b"new")
    assert daemon.request("GET", "/files/f")[2] == b"new"


def test_space_is_reserved_though_nobody_knows_how_much_there_is(plain: tuple[Daemon, Path]) -> None:
    daemon, point = plain
    with open(point / "f", "wb") as stream:
        stream.write(b"begun")
        stream.flush()
        os.posix_fallocate(stream.fileno(), 0, 1_000_000)
    assert os.statvfs(point).f_blocks == 0
    assert daemon.request("GET", "/files/f")[2] == b"begun".ljust(1_000_000, b"\0")
