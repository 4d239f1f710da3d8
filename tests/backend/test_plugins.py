"""A backend of another package serves the URLs of its scheme."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.backend.conftest import example
from tests.conftest import Daemon


def test_a_backend_of_another_package(
    make_daemon: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "site"
    (installed / "vosfs_rows-1.dist-info").mkdir(parents=True)
    (installed / "vosfs_rows-1.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: vosfs-rows\nVersion: 1\n"
    )
    (installed / "vosfs_rows-1.dist-info" / "entry_points.txt").write_text(
        "[vosfs.backends]\nrows = vosfs_rows:connect\n"
    )
    (installed / "vosfs_rows.py").write_text(example())
    monkeypatch.setenv("PYTHONPATH", str(installed), prepend=os.pathsep)
    space = make_daemon("space", "--objects", "rows:blobs.db")
    body = os.urandom(3_000_000)
    assert space.request("PUT", "/files/a", body)[0] == 201
    assert space.request("GET", "/files/a", headers={"Range": "bytes=1000000-2999998"})[2] == body[1_000_000:-1]
    assert (space.directory / "blobs.db").stat().st_size > 3_000_000
