"""Objects in the archive classes of S3: nothing hangs on them, they are asked for once, and read when they are there."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import rgw
from tests.services.glacier import Glacier
from vosfs.backends import objects
from vosfs.backends.archived import ArchivedObjects
from vosfs.backends.backend import NEARLINE, ONLINE, STAGING, Slow
from vosfs.backends.objects import ObjectsBackend, connect
from vosfs.backends.storages import DEFAULT, Storages
from vosfs.config import StorageConfig
from vosfs.errors import BlobMissing, NotOnline, QuietError, ServiceUnavailable
from vosfs.metadata.node import Blob

SHORT, LONG = 300_000, objects.PART_BYTES + 1_000
DAYS = 3


@pytest.fixture
def glacier(s3: rgw.S3) -> Iterator[Glacier]:
    made = Glacier(s3.endpoint)
    yield made
    made.close()


@pytest.fixture
def config(s3: rgw.S3, glacier: Glacier, tmp_path: Path) -> StorageConfig:
    file = tmp_path / "s3.key"
    file.write_text(f"AWS_ACCESS_KEY_ID={s3.access_key}\nAWS_SECRET_ACCESS_KEY = '{s3.secret_key}'\n")
    url = f"s3://{rgw.BUCKET}/{secrets.token_hex(8)}"
    return StorageConfig(objects=url, endpoint=glacier.url, credentials_file=str(file), restore_days=DAYS)


@pytest.fixture
def backend(config: StorageConfig, tmp_path: Path) -> ArchivedObjects:
    """An empty prefix of a bucket with archive classes."""
    made = connect(config, tmp_path)
    assert isinstance(made, ArchivedObjects) and isinstance(made, Slow)
    return made


def put(backend: ArchivedObjects, data: bytes) -> Blob:
    writer = backend.create(len(data))
    writer.write(data)
    return writer.finish(True)


def read(backend: ArchivedObjects, blob: Blob) -> bytes:
    reader = backend.open(blob.locator, 0, blob.length)
    try:
        return reader.read(0, blob.length)
    finally:
        reader.close()


def paths(config: StorageConfig, backend: ArchivedObjects, blob: Blob) -> list[str]:
    """Those of a blob's objects, as a request names them."""
    prefix = config.objects.removeprefix("s3:/")
    return [f"{prefix}/{key}" for key in backend._objects.keys(blob.locator)]


def forget(backend: ArchivedObjects) -> None:
    """A minute passes: what was on-line need not be any more."""
    backend._online.clear()


@pytest.mark.parametrize("length", [SHORT, LONG])
def test_an_archived_blob_comes_when_it_is_asked_for(
    backend: ArchivedObjects, glacier: Glacier, config: StorageConfig, length: int
) -> None:
    data = secrets.token_bytes(length)
    blob = put(backend, data)
    assert backend.locality(blob.locator) == ONLINE and read(backend, blob) == data
    # The table of checksums, which an earlier reading left in memory, is archived with it.
    backend = ArchivedObjects(objects.opened(config, Path("/")), backend._requests, DAYS)
    found = paths(config, backend, blob)
    assert len(found) == (1 if length == SHORT else 2)
    glacier.freeze(*found)
    assert backend.locality(blob.locator) == NEARLINE
    with pytest.raises(NotOnline):
        backend.open(blob.locator, 0, 10)
    assert glacier.asked == []
    for _ in range(2):
        backend.stage(blob.locator)
        assert backend.locality(blob.locator) == STAGING
        with pytest.raises(NotOnline):
            backend.open(blob.locator, 0, 10)
    assert sorted(glacier.asked) == sorted((path, DAYS) for path in found)
    glacier.thaw()
    assert backend.locality(blob.locator) == ONLINE and read(backend, blob) == data
    assert list(backend.locators(1 << 62)) == [blob.locator]
    backend.remove(blob.locator)
    forget(backend)
    with pytest.raises(BlobMissing):
        backend.locality(blob.locator)


def test_what_is_online_is_asked_about_once_a_minute(backend: ArchivedObjects, glacier: Glacier) -> None:
    blob = put(backend, secrets.token_bytes(SHORT))
    for _ in range(3):
        assert backend.locality(blob.locator) == ONLINE
    # The upload asks for the length, as it may be told success by mistake.
    assert [method for method, target in glacier.seen if blob.locator in target].count("HEAD") <= 2


def test_a_key_that_may_not_restore(backend: ArchivedObjects, glacier: Glacier, config: StorageConfig) -> None:
    blob = put(backend, secrets.token_bytes(SHORT))
    glacier.freeze(*paths(config, backend, blob))
    glacier.refuses = True
    with pytest.raises(ServiceUnavailable, match="answers RestoreObject with 403"):
        backend.stage(blob.locator)
    storages = Storages({DEFAULT: backend})
    with pytest.raises(NotOnline, match="takes no more requests now"):
        storages.recall([blob.locator])
    assert storages.locality([blob.locator]) == NEARLINE


def test_without_the_setting_it_is_said_what_is_missing(
    config: StorageConfig, glacier: Glacier, backend: ArchivedObjects, tmp_path: Path
) -> None:
    blob = put(backend, secrets.token_bytes(SHORT))
    glacier.freeze(*paths(config, backend, blob))
    plain = objects.opened(config, tmp_path)
    assert isinstance(plain, ObjectsBackend) and not isinstance(plain, Slow)
    with pytest.raises(NotOnline, match="restore_days"):
        plain.open(blob.locator, 0, 10)


def test_only_s3_has_archives_to_restore_from(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("AZURE_STORAGE_ACCOUNT_NAME=a\nAZURE_STORAGE_ACCOUNT_KEY=YQ==\n")
    given = StorageConfig(objects="az://c/p", credentials_file=str(file), restore_days=1)
    with pytest.raises(QuietError, match="restore_days is for s3://"):
        connect(given, tmp_path)
