"""Where the daemons of a run keep their bytes: ``--storage s3`` gives each one a prefix of one bucket, instead of a directory.

Only the daemons that tests start by ``start_daemon`` go there; tests about one kind of storage say which themselves.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from vosfs.config import Config, StorageConfig

if TYPE_CHECKING:
    from tests.services import rgw

KINDS = ("posix", "s3")
_bucket = ""
"""URL of the bucket of this run; empty: directories."""


def add_option(parser: pytest.Parser) -> None:
    parser.addoption("--storage", choices=KINDS, default="posix", help="where the daemons of the tests keep bytes")


def configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "directory: the test is about the files that bytes are kept in")


def chosen(config: pytest.Config) -> str:
    """The storage of this run."""
    return str(config.getoption("--storage"))


def skip_what_needs_a_directory(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    if chosen(config) != "posix":
        for item in items:
            if item.get_closest_marker("directory"):
                item.add_marker(pytest.mark.skip(reason="about the directory of blobs"))


def use(service: "rgw.S3") -> None:
    """Let all daemons from now on keep their bytes there."""
    from tests.services import rgw

    global _bucket
    os.environ.update(service.environment)
    _bucket = f"s3://{rgw.BUCKET}"


def elsewhere() -> bool:
    """Whether bytes are not on this host."""
    return bool(_bucket)


def options(directory: Path, given: Sequence[Any] = ()) -> list[str]:
    """What a daemon, or a command for one, with this state directory is told about its storage.

    The same directory has the same prefix for the whole run: a daemon that is started again finds its bytes.
    """
    if not _bucket or "--objects" in given or "metadata" in given:
        return []
    return ["--objects", f"{_bucket}/{hashlib.sha256(str(directory).encode()).hexdigest()[:20]}"]


def config_of(directory: Path) -> Config:
    """As much of the configuration of a daemon with this state directory as says where its bytes are."""
    told = options(directory)
    return Config(storage=StorageConfig(objects=told[1] if told else ""), base=directory)


def kept(where: Path | Config) -> set[str]:
    """What is in a daemon's storage: the blobs, and what was begun and not finished."""
    from server.daemon import backend_of
    from vosfs.backends.objects import ObjectsBackend

    cfg = where if isinstance(where, Config) else config_of(where)
    backend = backend_of(cfg.storage, cfg.base)
    try:
        found = set(backend.locators(1 << 62))
        if isinstance(backend, ObjectsBackend):
            assert backend._uploads is not None
            return found | {f"unfinished {key}" for key, _, _ in backend._uploads.unfinished()}
        return found | {f"unfinished {path.name}" for path in (cfg.base / "storage/incoming").iterdir()}
    finally:
        backend.close()
