"""pyvo's parsers read the service's VOSI and UWS documents, and its session finds the right way to sign in."""

import datetime
import io
from collections.abc import Iterator

import pytest
import requests
from pyvo.auth import AuthSession
from pyvo.io import uws, vosi

from tests.clients.support import ANSWER_S, Client
from tests.conftest import Daemon
from tests.server.support import create, node_document, store, transfer_document

NODES = "ivo://ivoa.net/std/VOSpace/v2.0#nodes"
OURS = {
    "ivo://ivoa.net/std/VOSI#capabilities": "capabilities",
    "ivo://ivoa.net/std/VOSI#availability": "availability",
    NODES: "nodes",
    "ivo://ivoa.net/std/VOSpace/v2.0#transfers": "transfers",
    "ivo://ivoa.net/std/VOSpace#sync-2.1": "synctrans",
    "ivo://ivoa.net/std/VOSpace#files-proto": "files",
    "ivo://ivoa.net/std/VOSpace#recursive-delete-proto": "async-delete",
    "ivo://ivoa.net/std/VOSpace#recursive-nodeprops-proto": "async-setprops",
}
TOKEN = "ivo://ivoa.net/sso#token"
XML = {"Content-Type": "text/xml"}


def document(daemon: Daemon, path: str) -> io.BytesIO:
    status, _, body = daemon.request("GET", path)
    assert status == 200, body
    return io.BytesIO(body)


@pytest.fixture
def session(served: Daemon) -> Iterator[AuthSession]:
    """pyvo's session with a token: by the capabilities it decides which URLs to show it to."""
    session = AuthSession()
    session.update_from_capabilities(vosi.parse_capabilities(document(served, "/capabilities").read))
    by_token = requests.Session()
    by_token.headers["Authorization"] = f"Bearer {served.token}"
    session.credentials.set(TOKEN, by_token)
    yield session
    for one in session.credentials.credentials.values():
        one.close()


def test_capabilities(served: Daemon) -> None:
    found = {c.standardid: c for c in vosi.parse_capabilities(document(served, "/capabilities").read)}
    for standard, path in OURS.items():
        (interface,) = found[standard].interfaces
        (url,) = interface.accessurls
        assert url.content == f"{served.url}/{path}"
    (interface,) = found[NODES].interfaces
    # Without the use, URLs below this one would be taken for those of strangers.
    assert interface.accessurls[0].use == "base"
    methods = {method.standardid for method in interface.securitymethods}
    assert {None, "ivo://ivoa.net/sso#BasicAA", TOKEN} <= methods


def test_availability(served: Daemon) -> None:
    found = vosi.parse_availability(document(served, "/availability").read)
    assert found.available is True
    up_since = datetime.datetime.fromisoformat(found.upsince)
    assert up_since <= datetime.datetime.now(datetime.UTC)
    assert found.notes


def test_a_session_signs_in_wherever_it_must(vos: Client, served: Daemon, session: AuthSession) -> None:
    store(served, f"{vos.folder}/f", b"content")
    path = f"{vos.folder}/d"
    made = session.put(f"{served.url}/nodes{path}", data=node_document(path, "ContainerNode"), timeout=ANSWER_S)
    assert made.status_code == 201, made.text
    assert session.get(f"{served.url}/files{vos.folder}/f", timeout=ANSWER_S).content == b"content"
    # A job is its owner's: who comes without the token is not shown it.
    made = session.post(
        f"{served.url}/transfers", data=moving(vos, "f", "d"), headers=XML, allow_redirects=False, timeout=ANSWER_S
    )
    location = made.headers["Location"]
    for url in (location, f"{location}/phase"):
        answer = session.get(url, timeout=ANSWER_S)
        assert (answer.status_code, "PENDING" in answer.text) == (200, True), url


def moving(vos: Client, name: str, to: str) -> bytes:
    """The document that asks for a move."""
    body = transfer_document(vos.uri(name), vos.uri(to))
    return body.replace(b"</vos:direction>", b"</vos:direction><vos:keepBytes>false</vos:keepBytes>")


def job(daemon: Daemon, location: str, query: str = "") -> uws.JobSummary:
    """A job, as pyvo reads it."""
    return uws.parse_job(document(daemon, location.removeprefix(daemon.url) + query).read)


def test_a_job_from_creation_to_end(vos: Client, served: Daemon) -> None:
    store(served, f"{vos.folder}/f", b"content")
    status, headers, _ = served.request("POST", "/transfers", moving(vos, "f", "g"), XML)
    assert status == 303
    location = headers["Location"]
    made = job(served, location)
    assert (made.phase, made.jobid) == ("PENDING", location.rpartition("/")[2])
    assert made.creationtime is not None and made.destruction is not None and made.starttime is None
    assert served.request("POST", f"{location}/phase", b"PHASE=RUN")[0] == 303
    done = job(served, location, "?WAIT=10")
    assert done.phase == "COMPLETED" and done.starttime <= done.endtime
    assert done.ownerid == made.ownerid and done.executionduration
    assert vos.names() == ["g"]


def test_a_job_that_fails_says_why(vos: Client, served: Daemon) -> None:
    _, headers, _ = served.request("POST", "/transfers", moving(vos, "nothing", "g"), XML)
    assert served.request("POST", f"{headers['Location']}/phase", b"PHASE=RUN")[0] == 303
    done = job(served, headers["Location"], "?WAIT=10")
    assert done.phase == "ERROR"
    assert done.errorsummary.type_ == "fatal" and "Not Found" in done.errorsummary.message.content


def test_a_recursive_job_and_the_list_of_jobs(vos: Client, served: Daemon) -> None:
    create(served, f"{vos.folder}/d", "ContainerNode")
    store(served, f"{vos.folder}/d/f", b"content")
    status, headers, _ = served.request(
        "POST", "/async-delete", f"target={vos.uri('d')}".encode(),
        {"Content-Type": "application/x-www-form-urlencoded"},
    )  # fmt: skip
    assert status == 303
    location = headers["Location"]
    pending = uws.parse_job_list(document(served, "/async-delete?PHASE=PENDING").read)
    assert location.rpartition("/")[2] in [one.jobid for one in pending]
    assert served.request("POST", f"{location}/phase", b"phase=RUN")[0] == 303
    done = job(served, location, "?WAIT=10")
    assert done.phase == "COMPLETED"
    assert {result.id_: result.href for result in done.results}["successcount"].endswith(":2")
    assert vos.names() == []
