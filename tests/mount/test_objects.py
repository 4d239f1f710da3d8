"""A space whose bytes are all in an object store: a mount, HTTP, and nothing left when everything is deleted."""

import secrets
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.conftest import BIN, Daemon
from tests.mount.elsewhere import collected, emptied, fails_and_costs_nothing, filled
from tests.services import rgw
from tests.services.unreliable import Unreliable
from vosfs.backends.backend import Keeper
from vosfs.backends.objects import BLOCK_BYTES, PART_BYTES, ObjectsBackend


@pytest.fixture
def url(s3: rgw.S3, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty prefix, to which the environment has the key."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{rgw.BUCKET}/{secrets.token_hex(8)}"


def left(backend: Keeper) -> tuple[list[str], list[str]]:
    """What is in the bucket: blobs and unfinished uploads."""
    assert isinstance(backend, ObjectsBackend) and backend._uploads is not None
    return list(backend.locators(1 << 62)), [key for key, _, _ in backend._uploads.unfinished()]


def test_a_space_in_a_bucket(
    url: str, make_daemon: Callable[..., Daemon], make_mount: Callable[..., Path], tmp_path: Path
) -> None:
    sizes = {"empty": 0, "d/inline": 900, "d/short": 200_000, "d/e/part": PART_BYTES, "long": 3 * PART_BYTES + 7}
    space = filled(url, make_daemon, make_mount, tmp_path, sizes, BLOCK_BYTES, nullcontext())
    blobs, uploads = collected(space, url, left)
    assert len(blobs) >= 4 and uploads == []
    assert not (space.directory / "storage").exists()
    emptied(url, make_daemon, make_mount)
    assert collected(space, url, left) == ([], [])


def test_a_bucket_that_fails_costs_nothing_that_was_saved(
    url: str, s3: rgw.S3, make_daemon: Callable[..., Daemon]
) -> None:
    network = Unreliable(s3.endpoint)
    try:
        space = make_daemon("space", "--objects", url, "--objects-endpoint", network.url)
        fails_and_costs_nothing(space, network, "PUT")
    finally:
        network.close()


def test_two_spaces_do_not_share_a_prefix(url: str, make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    make_daemon("space", "--objects", url).stop()
    where = ["--dev", tmp_path / "other", "--objects", url]
    for command in ([BIN / "vosfsd", "gc", *where], [BIN / "vosfsd", *where, "--port", "0"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "the blobs of another space are there" in done.stderr, done.stderr
    make_daemon("space", "--objects", url)


def test_files_are_not_registered_in_a_bucket(url: str, tmp_path: Path) -> None:
    command = [BIN / "vosfsd", "import", "--dev", tmp_path / "space", "--objects", url, tmp_path, "/here"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "needs [storage] directory" in done.stderr


def test_a_bucket_that_is_not_there_is_said_at_once(s3: rgw.S3, url: str, tmp_path: Path) -> None:
    command = [BIN / "vosfsd", "--dev", tmp_path / "space", "--port", "0", "--objects", "s3://nobody/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "s3://nobody/x: the bucket does not exist: make it, or correct [storage] objects" in done.stderr


def test_a_scheme_that_nobody_serves_is_said_at_once(tmp_path: Path) -> None:
    command = [BIN / "vosfsd", "--dev", tmp_path / "space", "--port", "0", "--objects", "swift://container/x"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "there is no backend for swift:// here" in done.stderr
