"""Ordinary programs work in a real mount, and what they wrote is there after a remount with an empty cache."""

import filecmp
import hashlib
import mmap
import os
import random
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

from tests import plain
from tests.conftest import Daemon, eventually, unmount

MIB = 1 << 20


def sh(command: str, cwd: Path, **variables: str) -> str:
    """Run a shell command that must succeed; its output."""
    env = {
        **os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@example.invalid",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@example.invalid", "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*", **variables,
    }  # fmt: skip
    done = subprocess.run(
        ["sh", "-ec", command], cwd=cwd, env=env, capture_output=True, text=True, errors="surrogateescape", timeout=120
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


def make_tree(root: Path, files: int = 300) -> None:
    """A tree with what real ones have: empty files, links of both kinds, odd names, odd modes, old times."""
    rng = random.Random(4)
    for number in range(files):
        directory = root / f"d{number % 17}" / f"e{number % 5}"
        directory.mkdir(parents=True, exist_ok=True)
        size = rng.choice([0, 1, 100, 4096, 16384, 16385, 70_000, 300_000])
        file = directory / f"f{number}"
        file.write_bytes(rng.randbytes(size))
        file.chmod(rng.choice([0o644, 0o600, 0o755, 0o444]))
        os.utime(file, ns=(rng.randrange(10**18), rng.randrange(10**18)))
    odd = root / "odd"
    odd.mkdir()
    for raw in (
        b"sp ace",
        b"new\nline",
        b"\xff\xfe not utf-8",
        "ünï☃".encode(),
        b"%41",
        b"a?b#c&d<e>",
        b"-rf",
        b"x" * 255,
    ):
        Path(os.fsdecode(bytes(odd) + b"/" + raw)).write_bytes(raw)
    (odd / "link").symlink_to("sp ace")
    (odd / "dangling").symlink_to("../nowhere/at all")
    (odd / "absolute").symlink_to("/etc/hostname")
    for name in ("link", "dangling", "absolute"):
        # rsync leaves the time of a link that is right to the second.
        os.utime(odd / name, ns=(10**18, 10**18 + 7), follow_symlinks=False)
    if not plain.on():
        os.link(odd / "%41", odd / "hard")
    (root / "empty").mkdir()


def same(left: Path, right: Path) -> None:
    """Both trees have the same names, types, link texts and bytes, and where they are kept modes and times."""
    listing = (
        "find . -mindepth 1 ! -type d -printf '%P %y %m %s %T@ %l\\n' -o -type d -printf '%P %y %m\\n' | LC_ALL=C sort"
    )
    if plain.on():
        listing = "find . -mindepth 1 -printf '%P %y %l\\n' | LC_ALL=C sort"
    assert sh(listing, left) == sh(listing, right)
    subprocess.run(["diff", "-r", "--no-dereference", left, right], check=True)


def test_cp_rsync_and_diff_of_a_tree_survive_a_remount(
    daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_tree(source)
    first = make_mount(daemon)
    sh(f"cp -a {source} copied", first)
    same(source, first / "copied")
    how = "-rl" if plain.on() else "-a"
    sh(f"rsync {how} --checksum {source}/ synced/", first)
    again = sh(f"rsync {how} --checksum --itemize-changes {source}/ synced/", first)
    assert again == ""
    assert plain.on() or os.stat(first / "copied/odd/hard").st_nlink == 2
    unmount(first)
    second = make_mount(daemon, "second")
    same(source, second / "copied")
    same(source, second / "synced")


def test_tar_git_and_make(mount: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    make_tree(source, 60)
    sh(
        f"tar --format=posix -cf {tmp_path}/t.tar -C {source} . && mkdir out && tar xf {tmp_path}/t.tar -C out && tar cf - -C out . | tar tf - >/dev/null",
        mount,
    )
    same(source, mount / "out")
    origin = tmp_path / "origin"
    sh(
        f"git init -q {origin} && cd {origin} && cp -r {source}/d1 {source}/d2 . && git add -A && git commit -qm one",
        tmp_path,
    )
    sh(
        f"git clone -q {origin} clone && cd clone && echo more >> d1/e1/f1 && git commit -qam two && git gc -q && git fsck --strict && git status --porcelain",
        mount,
    )
    assert sh("git log --format=%s", mount / "clone").split() == ["two", "one"]
    (mount / "Makefile").write_text("b: a\n\tcp a b\n")
    (mount / "a").write_text("1")
    sh("make -s", mount)
    assert "up to date" in sh("make", mount)


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_sqlite(mount: Path, journal: str) -> None:
    path = mount / "t.db"
    with sqlite3.connect(path) as db:
        assert db.execute(f"pragma journal_mode={journal}").fetchone()[0] == journal
        db.execute("create table t (a integer primary key, b blob)")
    for number in range(40):
        with sqlite3.connect(path) as db:
            db.execute("insert into t (b) values (?)", (os.urandom(2000),))
            if number % 5 == 4:
                db.execute("delete from t where a % 3 = 0")
        db.close()
    out = subprocess.run(
        ["sqlite3", path, "pragma integrity_check; select count(*) from t"], capture_output=True, text=True
    )
    count = sqlite3.connect(path)
    rows = count.execute("select count(*) from t").fetchone()[0]
    count.close()
    assert out.stdout.split() == ["ok", str(rows)] and rows > 20


def test_editors_save(mount: Path) -> None:
    file = mount / "text"
    file.write_text("one\ntwo\n")
    os.chmod(file, 0o640)
    # As vim does with backupcopy=no: move the old aside, write the new, drop the old.
    os.rename(file, mount / "text~")
    with open(file, "w") as new:
        new.write("one\nTWO\n")
        new.flush()
        os.fsync(new.fileno())
    os.chmod(file, 0o640)
    os.unlink(mount / "text~")
    sh("sed -i s/one/ONE/ text", mount)
    assert file.read_text() == "ONE\nTWO\n"
    assert plain.on() or os.stat(file).st_mode & 0o777 == 0o640
    assert sorted(os.listdir(mount)) == ["text"]


def test_writes_at_any_offset(mount: Path, tmp_path: Path) -> None:
    """Random writes, truncations, appends and dd conv=notrunc, beside the same on the local disk."""
    rng = random.Random(9)
    twin = tmp_path / "twin"
    files = [mount / "f", twin]
    for file in files:
        file.write_bytes(b"")
    for _ in range(120):
        kind, at, data = rng.randrange(5), rng.randrange(3 * MIB), rng.randbytes(rng.choice([1, 10, 5000, 200_000]))
        for file in files:
            if kind < 3:
                with open(file, "r+b") as stream:
                    stream.seek(at)
                    stream.write(data)
            elif kind == 3:
                with open(file, "ab") as stream:
                    stream.write(data)
            else:
                os.truncate(file, at)
        assert os.stat(files[0]).st_size == os.stat(files[1]).st_size
    assert filecmp.cmp(*files, shallow=False)
    for file in files:
        sh(f"dd if=/dev/zero of={file} bs=1000 seek=7 count=3 conv=notrunc status=none", tmp_path)
    assert filecmp.cmp(*files, shallow=False)


def test_mapped_files(mount: Path) -> None:
    data = numpy.arange(500_000, dtype="f8")
    data.tofile(mount / "array")
    mapped = numpy.memmap(mount / "array", dtype="f8", mode="r")
    assert (mapped == data).all()
    del mapped
    with open(mount / "array", "r+b") as stream, mmap.mmap(stream.fileno(), 0) as view:
        view[8:16] = numpy.float64(-1).tobytes()
        view.flush()
    assert numpy.fromfile(mount / "array")[1] == -1


def test_big_file_both_ways(daemon: Daemon, make_mount: Callable[..., Path], tmp_path: Path) -> None:
    """300 MiB through an early upload, read back from the space and by HTTP."""
    point = make_mount(daemon)
    source = tmp_path / "big"
    rng = random.Random(1)
    with open(source, "wb") as stream:
        for _ in range(300):
            stream.write(rng.randbytes(MIB))
    shutil.copyfile(source, point / "big")
    unmount(point)
    again = make_mount(daemon, "again", "cache_size=128M")
    assert filecmp.cmp(source, again / "big", shallow=False)
    status, headers, body = daemon.request("GET", "/files/big", headers={"Range": "bytes=100000000-100999999"})
    with open(source, "rb") as stream:
        stream.seek(100_000_000)
        assert (status, body) == (206, stream.read(1_000_000))
    for offset in (0, 5_000_000, 299 * MIB, 17):
        with open(again / "big", "rb") as mounted, open(source, "rb") as local:
            mounted.seek(offset)
            local.seek(offset)
            assert mounted.read(70_000) == local.read(70_000)


def test_names_links_and_errors(mount: Path) -> None:
    (mount / "d").mkdir()
    (mount / "d/f").write_bytes(b"x")
    with pytest.raises(OSError, match="not empty"):
        os.rmdir(mount / "d")
    with pytest.raises(FileExistsError):
        os.mkdir(mount / "d")
    with pytest.raises(IsADirectoryError):
        os.unlink(mount / "d")
    with pytest.raises(NotADirectoryError):
        os.rmdir(mount / "d/f")
    with pytest.raises(FileNotFoundError):
        os.stat(mount / "nothing")
    with pytest.raises(OSError, match="too long"):
        (mount / ("n" * 256)).write_bytes(b"")
    with pytest.raises(OSError, match="Invalid argument"):
        (mount / ".auto").write_bytes(b"")
    with pytest.raises(OSError, match="Invalid argument"):
        os.rename(mount / "d", mount / "d/inside")
    os.rename(mount / "d/f", mount / "g")
    os.rmdir(mount / "d")
    (mount / "h").write_bytes(b"old")
    os.rename(mount / "g", mount / "h")
    assert (mount / "h").read_bytes() == b"x" and os.listdir(mount) == ["h"]


def test_an_unlinked_file_lives_while_open(mount: Path) -> None:
    with open(mount / "f", "w+b") as stream:
        stream.write(b"a" * 300_000)
        stream.flush()
        os.unlink(mount / "f")
        assert os.listdir(mount) == []
        stream.seek(0)
        assert stream.read() == b"a" * 300_000
        stream.write(b"more")
        stream.flush()
        assert os.fstat(stream.fileno()).st_size == 300_004


def test_properties_are_extended_attributes(daemon: Daemon, mount: Path) -> None:
    (mount / "f").write_bytes(b"x")
    os.setxattr(mount / "f", "user.vosfs.title", b"A title")
    os.setxattr(mount / "f", "user.raw", b"\x00\xff")
    assert os.getxattr(mount / "f", "user.raw") == b"\x00\xff"
    assert {"user.raw", "user.vosfs.title", "user.vosfs.length"} <= set(os.listxattr(mount / "f"))
    _, _, body = daemon.request("GET", "/nodes/f")
    assert b'core#title" readOnly="false">A title<' in body
    os.removexattr(mount / "f", "user.raw")
    with pytest.raises(OSError, match="No data"):
        os.getxattr(mount / "f", "user.raw")
    with pytest.raises(OSError, match="Permission denied"):
        os.setxattr(mount / "f", "user.vosfs.length", b"7")
    with pytest.raises(OSError, match="not supported|not permitted"):
        os.setxattr(mount / "f", "trusted.x", b"7")


def test_a_long_directory(mount: Path) -> None:
    """More entries than a page, listed once each, also while it changes."""
    names = {f"n{number:05}" for number in range(2500)}
    (mount / "d").mkdir()
    for name in names:
        (mount / "d" / name).touch()
    assert set(os.listdir(mount / "d")) == names
    seen = []
    with os.scandir(mount / "d") as entries:
        for entry in entries:
            seen.append(entry.name)
            if len(seen) == 100:
                os.unlink(mount / "d/n02400")
                (mount / "d/zz").touch()
    assert len(seen) == len(set(seen)) and names - {"n02400"} <= set(seen) | {"zz"}
    subprocess.run(["rm", "-r", mount / "d"], check=True)
    assert os.listdir(mount) == []


def test_a_listing_has_dot_and_dot_dot(mount: Path) -> None:
    (mount / "d").mkdir()
    (mount / "d/.hidden").touch()
    assert sh("ls -f d", mount).split() == [".", "..", ".hidden"] == sh("ls -a d", mount).split()
    inode = os.stat(mount / "d").st_ino
    assert sh("ls -fi d", mount).split()[:2] == [str(inode), "."]


def test_checksums_agree_with_the_service(daemon: Daemon, mount: Path) -> None:
    data = os.urandom(50_000)
    (mount / "sum").write_bytes(data)
    status, headers, body = daemon.request("GET", "/files/sum")
    assert hashlib.sha256(body).digest() == hashlib.sha256(data).digest()
    assert daemon.request("PUT", "/files/sum", b"replaced")[0] == 201
    eventually("the change through HTTP", lambda: (mount / "sum").read_bytes() == b"replaced")
