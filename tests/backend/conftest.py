"""Every backend behind one fixture."""

import secrets
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.services import azurite, ngas, rgw
from vosfs.backends import ngas as driver
from vosfs.backends.backend import Backend, BlobWriter
from vosfs.backends.memory import MemoryBackend
from vosfs.backends.objects import DEADLINE_S, ObjectsBackend, connect
from vosfs.backends.posix import PosixBackend
from vosfs.backends.roots import Roots
from vosfs.backends.slow import SlowDirectory
from vosfs.backends.storages import DEFAULT, Storages
from vosfs.config import StorageConfig

DOCUMENT = Path(__file__).parents[2] / "docs" / "storage-backends.rst"


@pytest.fixture
def open_s3(s3: rgw.S3, tmp_path: Path) -> Callable[..., ObjectsBackend]:
    """Opens the backend of this test on S3, each time with the same blobs."""
    file = tmp_path / "s3.key"
    file.write_text(f"AWS_ACCESS_KEY_ID={s3.access_key}\nAWS_SECRET_ACCESS_KEY = '{s3.secret_key}'\n")
    prefix = secrets.token_hex(8)

    def open_it(endpoint: str = s3.endpoint, deadline_s: float = DEADLINE_S) -> ObjectsBackend:
        url = f"s3://{rgw.BUCKET}/{prefix}"
        return connect(StorageConfig(objects=url, endpoint=endpoint, credentials_file=str(file)), tmp_path, deadline_s)

    return open_it


@pytest.fixture
def on_s3(open_s3: Callable[..., ObjectsBackend]) -> ObjectsBackend:
    """An empty prefix of a bucket of S3."""
    return open_s3()


@pytest.fixture
def on_azure(azure: azurite.Azure, tmp_path: Path) -> ObjectsBackend:
    """An empty prefix of a container of Azure."""
    file = tmp_path / "azure.key"
    file.write_text("# of Azurite\n\n" + "".join(f"{name}={value}\n" for name, value in azure.environment.items()))
    url = f"az://{azurite.CONTAINER}/{secrets.token_hex(8)}"
    return connect(StorageConfig(objects=url, endpoint=azure.endpoint, credentials_file=str(file)), tmp_path)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[ngas.Ngas]]:
    """Two NGAS servers that share a database."""
    with ngas.running(tmp_path, {}, {}) as servers:
        yield servers


@pytest.fixture
def open_ngas(tmp_path: Path) -> Callable[..., driver.NgasBackend]:
    """Opens a backend on servers, by their addresses, each time with the same blobs."""

    def open_it(*addresses: str, deadline_s: float = DEADLINE_S, prefix: str = "test") -> driver.NgasBackend:
        url = f"ngas://{','.join(addresses)}/{prefix}"
        return driver.connect(StorageConfig(objects=url, directory="spool"), tmp_path, deadline_s)

    return open_it


@pytest.fixture
def on_ngas(cluster: list[ngas.Ngas], open_ngas: Callable[..., driver.NgasBackend]) -> driver.NgasBackend:
    """An empty archive of the cluster."""
    return open_ngas(*(server.address for server in cluster))


@pytest.fixture(scope="session")
def documented() -> ModuleType:
    """The example of docs/storage-backends.rst, as a module."""
    module = ModuleType("documented")
    exec(compile(example(), str(DOCUMENT), "exec"), module.__dict__)
    return module


def example() -> str:
    """Its text."""
    block = DOCUMENT.read_text().split(".. code-block:: python\n", 1)[1].split("\nFrom another package", 1)[0]
    text = textwrap.dedent(block).strip() + "\n"
    assert text.count("\n") < 100, "a tiny backend"
    return text


class _Placed:
    """A backend whose blobs all go where one policy wants them."""

    def __init__(self, storages: Storages, policy: str) -> None:
        self._storages, self._policy = storages, policy

    def create(self, length: int = 0) -> BlobWriter:
        return self._storages.create(length, self._policy)

    def __getattr__(self, name: str) -> object:
        return getattr(self._storages, name)


@pytest.fixture(params=["memory", "posix", "roots", "slow", "s3", "azure", "ngas", "documented", "another", "copies"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """An empty backend of each kind."""
    if request.param == "memory":
        yield MemoryBackend()
    elif request.param == "posix":
        yield PosixBackend(tmp_path / "storage")
    elif request.param == "roots":
        roots = Roots([tmp_path / "one", tmp_path / "two"])
        roots.check("space-1")
        yield roots
        roots.close()
    elif request.param == "slow":
        made = SlowDirectory(PosixBackend(tmp_path / "storage", open_max=0), ("/bin/false", "{path}"))
        yield made
        made.close()
    elif request.param in ("another", "copies"):
        # What is taken away on purpose is a bad copy.
        request.node.add_marker(pytest.mark.expect_log)
        members = {DEFAULT: PosixBackend(tmp_path / "storage"), "second": PosixBackend(tmp_path / "second")}
        storages = Storages(members)  # type: ignore[arg-type]
        yield _Placed(storages, "second" if request.param == "another" else "default second")  # type: ignore[misc]
        storages.close()
    elif request.param == "documented":
        config = StorageConfig(objects="rows:blobs.db")
        yield request.getfixturevalue("documented").connect(config, tmp_path)
    else:
        yield request.getfixturevalue(f"on_{request.param}")
