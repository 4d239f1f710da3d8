"""Jobs and archives when metadata and storage are two processes on one PostgreSQL."""

import io
import tarfile
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import Daemon, eventually
from tests.server.support import ROOT, create, fetch
from tests.vospace.support import PULL_TO, PUSH_FROM, Protocol, ThirdParty, new_job, ran, transfer

BIG = bytes(range(256)) * 4000


@pytest.fixture
def third() -> Iterator[ThirdParty]:
    """A third party's web server."""
    party = ThirdParty()
    yield party
    party.close()


@pytest.fixture
def space(make_daemon: Callable[..., Daemon], database: str) -> Daemon:
    """The metadata role of a space whose storage is another process."""
    options = ("--dsn", database, "--allow-private-endpoints")
    storage = make_daemon("storage", *options, "--role", "storage")
    return make_daemon("metadata", *options, "--role", "metadata", "--storage-url", storage.url)


def upload(space: Daemon, path: str, data: bytes) -> None:
    """PUT of bytes, where the metadata role sends the client to."""
    status, headers, body = space.request("PUT", "/files" + path, data)
    assert status == 307, body
    assert space.request("PUT", headers["Location"], data)[0] == 201


def test_the_storage_role_runs_what_needs_bytes(space: Daemon, third: ThirdParty) -> None:
    third.files["/f"] = BIG
    get, put = [Protocol("httpget", third.url + "/f")], [Protocol("httpput", third.url + "/up")]
    ran(space, transfer(f"{ROOT}/n", PULL_TO, list(get))).completed()
    assert fetch(space, "/n") == BIG
    ran(space, transfer(f"{ROOT}/n", f"{ROOT}/copy", keep="true")).completed()
    ran(space, transfer(f"{ROOT}/copy", PUSH_FROM, list(put))).completed()
    assert third.files["/up"] == BIG
    ran(space, transfer(f"{ROOT}/none", PUSH_FROM, list(put))).failed("NodeNotFound")


def test_an_abort_reaches_the_other_process(space: Daemon, third: ThirdParty) -> None:
    third.files["/slow"] = BIG
    gate = third.gate("/slow")
    job = ran(space, transfer(f"{ROOT}/n", PULL_TO, [Protocol("httpget", third.url + "/slow")]))
    eventually("a request", lambda: third.asked("/slow", "GET") == 1)
    assert job.post("/phase", PHASE="ABORT")[0] == 303
    assert job.phase() == "ABORTED"
    gate.set()
    # Another job runs to its end after it: had the first one gone on, its node would be there by then.
    third.files["/quick"] = b"x"
    ran(space, transfer(f"{ROOT}/other", PULL_TO, [Protocol("httpget", third.url + "/quick")])).completed()
    assert space.request("GET", "/nodes/n")[0] == 404


def test_a_push_is_told_to_its_job(space: Daemon) -> None:
    job = ran(space, transfer(f"{ROOT}/n", "pushToVoSpace", ["httpput"]))
    assert job.phase() == "EXECUTING"
    endpoint = job.endpoint()
    assert space.request("PUT", endpoint, BIG)[0] == 201
    assert job.phase() == "COMPLETED"
    assert fetch(space, "/n") == BIG
    late = new_job(space, transfer(f"{ROOT}/n", "pushToVoSpace", ["httpput"])).run()
    endpoint = late.endpoint()
    late.post("/phase", PHASE="ABORT")
    assert space.request("PUT", endpoint, b"late")[0] == 403
    assert fetch(space, "/n") == BIG


def test_archives_come_from_the_storage_role(space: Daemon) -> None:
    assert create(space, "/box", "ContainerNode")[0] == 201
    upload(space, "/box/a", b"a")
    upload(space, "/box/big", BIG)
    job = ran(space, transfer(f"{ROOT}/box", "pullFromVoSpace", ["httpget"], view="tar"))
    endpoint = job.endpoint()
    status, _, data = space.request("GET", endpoint)
    assert status == 200
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert sorted(archive.getnames()) == ["box", "box/a", "box/big"]
    assert create(space, "/back", "ContainerNode")[0] == 201
    job = ran(space, transfer(f"{ROOT}/back", "pushToVoSpace", ["httpput"], view="tar"))
    endpoint = job.endpoint()
    assert space.request("PUT", endpoint, data)[0] == 201
    job.completed()
    assert fetch(space, "/back/box/big") == BIG
