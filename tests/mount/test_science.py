"""What astronomers keep their data with works in a mount: HDF5, netCDF, FITS and SQLite, with locks and from two processes."""

import fcntl
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy
import pytest

CHILD_S_MAX = 90


def start(code: str, where: Path, *arguments: object) -> "subprocess.Popen[str]":
    """Another process, in a directory."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    env = {**os.environ, "HDF5_USE_FILE_LOCKING": "TRUE"}
    return subprocess.Popen(command, cwd=where, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run(code: str, where: Path, *arguments: object) -> str:
    """Another process that must succeed; what it printed."""
    child = start(code, where, *arguments)
    out, _ = child.communicate(timeout=CHILD_S_MAX)
    assert child.returncode == 0, out
    return out


def test_hdf5_is_appended_by_another_process_and_locked(mount: Path) -> None:
    run("""
        import h5py, numpy
        with h5py.File("f.h5", "w") as file:
            file.create_dataset("d", data=numpy.arange(100_000.0), maxshape=(None,), chunks=(1000,), compression="gzip")
    """, mount)  # fmt: skip
    writer = start("""
        import h5py, sys
        with h5py.File("f.h5", "a") as file:
            file["d"].resize((100_001,))
            file["d"][-1] = -1
            print("open", flush=True)
            sys.stdin.readline()
    """, mount)  # fmt: skip
    assert writer.stdout is not None and writer.stdout.readline() == "open\n"
    # Whoever writes it has it alone.
    assert run("""
        import h5py
        try:
            h5py.File("f.h5", "r")
        except BlockingIOError as exc:
            print(exc.errno)
    """, mount) == "11\n"  # fmt: skip
    writer.communicate("go on\n", timeout=CHILD_S_MAX)
    assert run("""
        import h5py
        with h5py.File("f.h5", "r") as file:
            print(file["d"].shape[0], file["d"][99_999], file["d"][-1])
    """, mount) == "100001 99999.0 -1.0\n"  # fmt: skip


def test_netcdf_is_appended_by_another_process(mount: Path) -> None:
    run("""
        import netCDF4, numpy
        with netCDF4.Dataset("f.nc", "w") as file:
            file.createDimension("time", None)
            file.createDimension("x", 1000)
            file.createVariable("v", "f8", ("time", "x"), zlib=True)[:50] = numpy.ones((50, 1000))
    """, mount)  # fmt: skip
    run("""
        import netCDF4
        with netCDF4.Dataset("f.nc", "a") as file:
            file["v"][50] = 7
            file.title = "appended"
    """, mount)  # fmt: skip
    assert run("""
        import netCDF4
        with netCDF4.Dataset("f.nc") as file:
            print(file.title, file["v"].shape, file["v"][:].sum())
    """, mount) == "appended (51, 1000) 57000.0\n"  # fmt: skip


def test_fits_through_a_mapping(mount: Path) -> None:
    run("""
        import numpy
        from astropy.io import fits
        table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=numpy.arange(10_000))])
        image = fits.PrimaryHDU(numpy.arange(500_000, dtype="f4").reshape(500, 1000))
        fits.HDUList([image, table]).writeto("f.fits", checksum=True)
        with fits.open("f.fits", memmap=True, mode="update") as file:
            file[0].data[3, 4] = -5
            file[0].header["OBJECT"] = "M31"
            file[1].data["a"][7] = 77
            file.append(fits.ImageHDU(numpy.ones(10)))
    """, mount)  # fmt: skip
    assert run("""
        from astropy.io import fits
        with fits.open("f.fits", memmap=True, mode="readonly") as file:
            print(len(file), file[0].header["OBJECT"], file[0].data[3, 4], file[0].data[499, 999], file[1].data["a"][7])
    """, mount) == "3 M31 -5.0 499999.0 77\n"  # fmt: skip


def test_an_array_that_two_processes_map(mount: Path) -> None:
    numpy.zeros(1000, "i8").tofile(mount / "array")
    shared = numpy.memmap(mount / "array", "i8", "r+")
    run("""
        import numpy
        shared = numpy.memmap("array", "i8", "r+")
        shared[500] = 5
    """, mount)  # fmt: skip
    assert shared[500] == 5
    shared[600] = 6
    assert numpy.fromfile(mount / "array", "i8")[600] == 6
    del shared


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_written_by_two_processes_at_once(mount: Path, journal: str) -> None:
    with sqlite3.connect(mount / "t.db") as db:
        assert db.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
        db.execute("create table t (who text, n integer)")
    db.close()
    code = """
        import sqlite3, sys
        db = sqlite3.connect("t.db", timeout=60, isolation_level=None)
        for number in range(60):
            db.execute("begin immediate")
            db.execute("insert into t values (?, ?)", (sys.argv[1], number))
            db.execute("commit")
    """
    children = [start(code, mount, who) for who in "ab"]
    for child in children:
        child.communicate(timeout=CHILD_S_MAX)
        assert child.returncode == 0
    db = sqlite3.connect(mount / "t.db")
    assert db.execute("pragma integrity_check").fetchone() == ("ok",)
    found = db.execute("select who, count(*), count(distinct n) from t group by who order by who").fetchall()
    db.close()
    assert found == [("a", 60, 60), ("b", 60, 60)]
    assert [name for name in os.listdir(mount) if name.startswith("t.db-")] == []


@pytest.mark.parametrize("kind", ["flock", "lockf"])
def test_locks_hold_between_processes(mount: Path, kind: str) -> None:
    """fcntl(2) locks byte ranges, flock(2) all of a file."""
    (mount / "f").touch()
    other = f"""
        import fcntl
        file = open("f", "r+b")
        try:
            fcntl.{kind}(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            print("mine")
        except BlockingIOError:
            print("taken")
        if "{kind}" == "lockf":
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 100)
    """
    with open(mount / "f", "r+b") as file:
        lock = fcntl.flock if kind == "flock" else lambda f, how: fcntl.lockf(f, how, 10)
        lock(file, fcntl.LOCK_EX)
        assert run(other, mount) == "taken\n"
        lock(file, fcntl.LOCK_UN)
        assert run(other, mount) == "mine\n"


def test_jupyters_file_manager(mount: Path) -> None:
    """As its server does it: save (also in pieces), checkpoint, rename, copy, delete."""
    (mount / "home").mkdir()
    assert run("""
        import base64, sys
        from jupyter_server.services.contents.largefilemanager import LargeFileManager
        root = sys.argv[1]
        files = LargeFileManager(root_dir=root, delete_to_trash=False)
        files.save({"type": "directory"}, "d")
        notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        for title in ("one", "two"):
            notebook["metadata"]["title"] = title
            files.save({"type": "notebook", "content": notebook}, "d/n.ipynb")
            if title == "one":
                checkpoint = files.create_checkpoint("d/n.ipynb")
        assert files.get("d/n.ipynb")["content"]["metadata"]["title"] == "two"
        files.restore_checkpoint(checkpoint["id"], "d/n.ipynb")
        assert files.get("d/n.ipynb")["content"]["metadata"]["title"] == "one"
        files.rename("d/n.ipynb", "d/renamed.ipynb")
        copied = files.copy("d/renamed.ipynb", "d")
        piece = base64.b64encode(b"x" * 1_000_000).decode()
        for number in (1, 2, -1):
            files.save({"type": "file", "format": "base64", "chunk": number, "content": piece}, "d/big")
        assert files.get("d/big", content=False)["size"] == 3_000_000
        files.save({"type": "file", "format": "text", "content": "gone"}, "d/gone.txt")
        files.delete("d/gone.txt")
        print(sorted(entry["name"] for entry in files.get("d")["content"]))
    """, mount / "home", mount / "home") == "['big', 'renamed-Copy1.ipynb', 'renamed.ipynb']\n"  # fmt: skip


# -- what few programs ask for, as docs/semantics.rst has it ------------------------------------------------------------


def test_copy_file_range_and_holes(mount: Path) -> None:
    data = os.urandom(300_000)
    (mount / "from").write_bytes(data)
    with open(mount / "from", "rb") as source, open(mount / "to", "w+b") as target:
        done = 0
        while count := os.copy_file_range(source.fileno(), target.fileno(), 200_000, 1000 + done, 500_000 + done):
            done += count
            if done >= 200_000:
                break
        assert os.pread(target.fileno(), 200_000, 500_000) == data[1000:201_000]
        assert os.lseek(target.fileno(), 0, os.SEEK_DATA) == 500_000
        assert os.lseek(target.fileno(), 0, os.SEEK_HOLE) == 0
        assert os.lseek(target.fileno(), 500_000, os.SEEK_HOLE) == 700_000
        with pytest.raises(OSError, match="No such device or address"):
            os.lseek(target.fileno(), 10**9, os.SEEK_DATA)


def test_a_file_that_never_had_a_name_is_refused(mount: Path) -> None:
    with pytest.raises(OSError, match="not supported"):
        os.open(mount, os.O_TMPFILE | os.O_RDWR)
