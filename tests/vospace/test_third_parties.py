"""pullToVoSpace and pushFromVoSpace: the service as the client of somebody else's web server."""

import concurrent.futures
import socket
from collections.abc import Callable

import pytest

from server.jobs import QUEUED_MAX, RUNNING_MAX
from tests.conftest import Daemon, eventually, free_port
from tests.server.support import ROOT, create, fetch, is_fault, store, update
from tests.vospace.support import (
    PULL_TO,
    PUSH_FROM,
    UWS,
    VOS,
    XML,
    Protocol,
    ThirdParty,
    core,
    exists,
    is_busy,
    names,
    new_job,
    node_at,
    ran,
    read,
    synctrans,
    transfer,
)

holds = pytest.mark.holds
BIG = bytes(range(256)) * 4000


def get(url: str) -> list[str | Protocol]:
    """Protocols of a transfer that fetches from here."""
    return [Protocol("httpget", url)]


def put(url: str) -> list[str | Protocol]:
    """Protocols of a transfer that sends to here."""
    return [Protocol("httpput", url)]


# -- pullToVoSpace -------------------------------------------------------------------------------------------------


@holds("R249", "R250", "R251", "R252", "R253", "R183", "R185", "R38", "R233")
@pytest.mark.parametrize("data", [b"", b"small", BIG])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_fetch(open_space: Daemon, open_folder: str, third: ThirdParty, data: bytes, old: bytes | None) -> None:
    third.files["/a%20b"] = data
    path = f"{open_folder}/n"
    if old is not None:
        store(open_space, path, old)
        update(open_space, path, properties={"urn:x:note": "v", "groupread": "g"})
    job = new_job(open_space, transfer(ROOT + path, PULL_TO, get(third.url + "/a%20b")))
    assert job.phase() == "PENDING" and third.requests == []
    job.run().completed()
    assert fetch(open_space, path) == data
    found = node_at(open_space, path)
    assert (found.type, found.properties["length"]) == ("vos:DataNode", str(len(data)))
    assert "urn:x:note" not in found.properties and (old is None or found.properties["groupread"] == "g")
    assert job.results()["dataNode"] == ROOT + path
    assert third.asked("/a%20b", "GET") == 1
    accepted = {e.get("uri") for e in read(open_space, "/protocols").findall(f"{VOS}accepts/{VOS}protocol")}
    assert core("httpget") in accepted and core("httpput") in accepted


@holds("R251", "R188", "R189", "R190")
def test_end_points_are_tried_in_turn(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.files.update({"/second": b"second", "/third": b"third"})
    protocols: list[str | Protocol] = [
        Protocol("urn:x:gopher", third.url + "/gopher"),
        Protocol("httpget", f"http://127.0.0.1:{free_port()}/nobody"),
        Protocol("httpget", third.url + "/first"),
        Protocol("httpget", third.url + "/second"),
        Protocol("httpget", third.url + "/third"),
    ]
    ran(open_space, transfer(f"{ROOT}{open_folder}/n", PULL_TO, protocols)).completed()
    assert fetch(open_space, f"{open_folder}/n") == b"second"
    assert [third.asked(path, "GET") for path in ("/first", "/second", "/third", "/gopher")] == [1, 1, 0, 0]


@holds("R190", "R251", "R254", "R147")
def test_a_fetch_from_nobody(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    store(open_space, f"{open_folder}/n", b"old")
    protocols: list[str | Protocol] = [Protocol("httpget", third.url + "/x"), Protocol("httpsget", third.url + "/y")]
    job = ran(open_space, transfer(f"{ROOT}{open_folder}/n", PULL_TO, protocols))
    said = job.failed("TransferFailed")
    assert core("httpget") in said or third.url + "/x" in said
    assert (fetch(open_space, f"{open_folder}/n"), is_busy(open_space, f"{open_folder}/n")) == (b"old", False)
    ran(open_space, transfer(f"{ROOT}{open_folder}/new", PULL_TO, protocols)).failed("TransferFailed")
    assert names(open_space, open_folder) == ["n"]


@holds("R254", "R237")
def test_faults_of_a_fetch(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.files["/f"] = b"x"
    good = get(third.url + "/f")
    create(open_space, f"{open_folder}/c", "ContainerNode")
    for target, protocols, view, fault in [
        (f"{open_folder}/none/n", good, "", "ContainerNotFound"),
        (f"{open_folder}/a b", good, "", "InvalidURI"),
        (f"{open_folder}/n", put(third.url + "/f"), "", "ProtocolNotSupported"),
        (f"{open_folder}/n", [], "", "ProtocolNotSupported"),
        (f"{open_folder}/n", good, "urn:x:view", "ViewNotSupported"),
        (f"{open_folder}/n", good, "defaultview", "ViewNotSupported"),
        (f"{open_folder}/c", good, "", "ViewNotSupported"),
        (f"{open_folder}/n", get(""), "", "InvalidArgument"),
    ]:  # fmt: skip
        ran(open_space, transfer(ROOT + target, PULL_TO, protocols, view)).failed(fault)
    assert third.requests == [] and names(open_space, open_folder) == ["c"]


@holds("R254", "R284")
def test_a_fetch_of_a_broken_archive(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.files["/f.tar"] = b"this is no tar " * 1000
    create(open_space, f"{open_folder}/c", "ContainerNode")
    ran(open_space, transfer(f"{ROOT}{open_folder}/c", PULL_TO, get(third.url + "/f.tar"), "tar")).failed("InvalidData")
    assert names(open_space, f"{open_folder}/c") == []


@holds("R255", "R191", "R192", "R97")
def test_busy_under_a_fetch(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.files["/f"] = BIG
    gate = third.gate("/f")
    path = f"{open_folder}/n"
    store(open_space, path, b"old")
    job = ran(open_space, transfer(ROOT + path, PULL_TO, get(third.url + "/f")))
    eventually("busy", lambda: is_busy(open_space, path))
    assert (job.phase(), fetch(open_space, path)) == ("EXECUTING", b"old")
    ran(open_space, transfer(ROOT + path, PULL_TO, get(third.url + "/f"))).failed("NodeBusy")
    gate.set()
    job.completed()
    assert (fetch(open_space, path), is_busy(open_space, path)) == (BIG, False)


@holds("R194", "R191", "R385")
@pytest.mark.parametrize("how", ["abort", "delete"])
def test_a_fetch_that_is_stopped(open_space: Daemon, open_folder: str, third: ThirdParty, how: str) -> None:
    third.files["/f"] = BIG
    gate = third.gate("/f")
    path = f"{open_folder}/n"
    store(open_space, path, b"old")
    job = ran(open_space, transfer(ROOT + path, PULL_TO, get(third.url + "/f")))
    eventually("busy", lambda: is_busy(open_space, path))
    if how == "abort":
        job.abort().reaches("ABORTED")
    else:
        assert open_space.request("DELETE", job.url)[0] == 303
    eventually("not busy", lambda: not is_busy(open_space, path))
    gate.set()
    assert fetch(open_space, path) == b"old"


@holds("R380")
def test_a_fetch_that_takes_too_long(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.files["/f"] = BIG
    third.gate("/f")
    job = new_job(open_space, transfer(f"{ROOT}{open_folder}/n", PULL_TO, get(third.url + "/f")))
    assert job.post("/executionduration", EXECUTIONDURATION="1")[0] == 303
    job.run().reaches("ABORTED")
    eventually("no node that is busy", lambda: not exists(open_space, f"{open_folder}/n"))


@holds("R330", "R328", "R231")
def test_a_fetch_to_reserved_names(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.files["/f"] = b"bytes"
    job = ran(open_space, transfer(f"{ROOT}{open_folder}/.auto", PULL_TO, get(third.url + "/f"))).completed()
    made = job.results()["target"]
    assert fetch(open_space, made.removeprefix(ROOT)) == b"bytes" and not made.endswith(".auto")
    ran(open_space, transfer(f"{ROOT}{open_folder}/.null", PULL_TO, get(third.url + "/f"))).completed()
    assert names(open_space, open_folder) == [made.rpartition("/")[2]]


@holds("R256", "R35")
@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "[::1]", "10.0.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0", "[::ffff:127.0.0.1]",
     "2130706433", "0x7f.1", "[fe80::1]"],
)  # fmt: skip
def test_no_fetch_from_private_addresses(space: Daemon, folder: str, third: ThirdParty, host: str) -> None:
    third.files["/f"] = b"secret"
    url = f"http://{host}:{third.url.rpartition(':')[2]}/f"
    job = ran(space, transfer(f"{ROOT}{folder}/n", PULL_TO, get(url)))
    assert job.ended() == "ERROR"
    assert third.requests == [] and not exists(space, f"{folder}/n")


@holds("R256")
@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://example.org/f", "gopher://example.org/", "http:///f", "/etc/hostname"]
)
def test_no_fetch_by_other_schemes(open_space: Daemon, open_folder: str, url: str) -> None:
    assert ran(open_space, transfer(f"{ROOT}{open_folder}/n", PULL_TO, get(url))).ended() == "ERROR"
    assert not exists(open_space, f"{open_folder}/n")


# -- pushFromVoSpace -----------------------------------------------------------------------------------------------


@holds("R257", "R258", "R259", "R38", "R182")
@pytest.mark.parametrize("data", [b"", b"small", BIG])
def test_a_delivery(open_space: Daemon, open_folder: str, third: ThirdParty, data: bytes) -> None:
    path = f"{open_folder}/n"
    store(open_space, path, data)
    job = new_job(open_space, transfer(ROOT + path, PUSH_FROM, put(third.url + "/out")))
    assert job.phase() == "PENDING"
    job.run().completed()
    assert third.files == {"/out": data}
    assert third.asked("/out", "PUT") == 1
    assert job.document().findtext(f"{UWS}jobInfo/{VOS}transfer/{VOS}protocol/{VOS}endpoint") == third.url + "/out"
    assert fetch(open_space, path) == data


@holds("R259", "R188", "R189")
def test_a_delivery_tries_in_turn(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.refused.add("/no")
    store(open_space, f"{open_folder}/n", BIG)
    protocols: list[str | Protocol] = [
        Protocol("httpput", f"http://127.0.0.1:{free_port()}/nobody"),
        Protocol("httpput", third.url + "/no"),
        Protocol("httpput", third.url + "/yes"),
        Protocol("httpput", third.url + "/late"),
    ]
    ran(open_space, transfer(f"{ROOT}{open_folder}/n", PUSH_FROM, protocols)).completed()
    assert third.files == {"/yes": BIG}
    assert [third.asked(path, "PUT") for path in ("/no", "/yes", "/late")] == [1, 1, 0]


@holds("R260", "R190")
def test_a_delivery_that_nobody_takes(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.refused.add("/no")
    store(open_space, f"{open_folder}/n", b"x")
    job = ran(open_space, transfer(f"{ROOT}{open_folder}/n", PUSH_FROM, put(third.url + "/no")))
    said = job.failed("TransferFailed")
    assert core("httpput") in said
    assert third.files == {}


@holds("R261")
def test_faults_of_a_delivery(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    store(open_space, f"{open_folder}/n", b"x")
    good = put(third.url + "/out")
    for target, protocols, view, fault in [
        (f"{open_folder}/none", good, "", "NodeNotFound"),
        (f"{open_folder}/a b", good, "", "InvalidURI"),
        (f"{open_folder}/n", get(third.url + "/out"), "", "ProtocolNotSupported"),
        (f"{open_folder}/n", good, "urn:x:view", "ViewNotSupported"),
        (f"{open_folder}/n", good, "anyview", "ViewNotSupported"),
        (open_folder, good, "", "ViewNotSupported"),
    ]:
        ran(open_space, transfer(ROOT + target, PUSH_FROM, protocols, view)).failed(fault)
    assert third.requests == []


@holds("R262")
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "[::ffff:7f00:1]"])
def test_no_delivery_to_private_addresses(space: Daemon, folder: str, third: ThirdParty, host: str) -> None:
    store(space, f"{folder}/n", b"x")
    url = f"http://{host}:{third.url.rpartition(':')[2]}/out"
    assert ran(space, transfer(f"{ROOT}{folder}/n", PUSH_FROM, put(url))).ended() == "ERROR"
    assert third.requests == []


@holds("R193", "R194")
def test_a_delivery_that_is_aborted(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.gate("/out")
    store(open_space, f"{open_folder}/n", b"x")
    job = ran(open_space, transfer(f"{ROOT}{open_folder}/n", PUSH_FROM, put(third.url + "/out")))
    eventually("a request", lambda: third.asked("/out", "PUT") == 1)
    assert not is_busy(open_space, f"{open_folder}/n")
    job.abort().reaches("ABORTED")
    assert fetch(open_space, f"{open_folder}/n") == b"x"


@holds("R250", "R258", "R205")
@pytest.mark.parametrize(("direction", "protocol"), [(PULL_TO, "httpget"), (PUSH_FROM, "httpput")])
def test_third_parties_are_for_transfers_only(
    open_space: Daemon, open_folder: str, third: ThirdParty, direction: str, protocol: str
) -> None:
    third.files["/f"] = b"x"
    store(open_space, f"{open_folder}/n", b"old")
    document = transfer(f"{ROOT}{open_folder}/n", direction, [Protocol(protocol, third.url + "/f")])
    synctrans(open_space, document).failed("OperationNotSupported")
    query = f"?TARGET={ROOT}{open_folder}/n&DIRECTION={direction}&PROTOCOL={core(protocol).replace('#', '%23')}"
    assert is_fault(open_space.request("GET", "/synctrans" + query), 400, "InvalidArgument")
    assert third.requests == [] and fetch(open_space, f"{open_folder}/n") == b"old"
    assert open_space.request("POST", "/transfers", document, XML)[0] == 303


@holds("R256", "R259")
def test_a_secret_of_the_caller_stays_here(open_space: Daemon, open_folder: str, third: ThirdParty) -> None:
    third.files["/f"] = b"x"
    ran(open_space, transfer(f"{ROOT}{open_folder}/n", PULL_TO, get(third.url + "/f"))).completed()
    ran(open_space, transfer(f"{ROOT}{open_folder}/n", PUSH_FROM, put(third.url + "/out"))).completed()
    for headers in third.headers:
        assert open_space.token not in str(headers) and "Cookie" not in headers


@holds("R267", "R190")
def test_a_fetch_that_breaks_off(open_space: Daemon, open_folder: str) -> None:
    """A third party that promises more than it sends."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(10)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/f"
        store(open_space, f"{open_folder}/n", b"old")
        job = ran(open_space, transfer(f"{ROOT}{open_folder}/n", PULL_TO, get(url)))
        peer, _ = server.accept()
        with peer:
            peer.settimeout(10)
            assert b"GET /f" in peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf")
        job.failed("TransferFailed")
    assert fetch(open_space, f"{open_folder}/n") == b"old"


# -- jobs that must wait -------------------------------------------------------------------------------------------


@holds("R376", "R413")
def test_a_fetch_goes_on_after_a_restart(make_daemon: Callable[..., Daemon], third: ThirdParty) -> None:
    """SUSPENDED is left without anything a client would do."""
    third.files["/f"] = BIG
    gate = third.gate("/f")
    daemon = make_daemon("space", "--allow-private-endpoints")
    job = ran(daemon, transfer(f"{ROOT}/n", PULL_TO, get(third.url + "/f")))
    eventually("a request", lambda: third.asked("/f", "GET") == 1)
    daemon.stop()
    gate.set()
    job.daemon = make_daemon("space", "--allow-private-endpoints", port=daemon.port)
    job.completed()
    assert (fetch(job.daemon, "/n"), third.asked("/f", "GET")) == (BIG, 2)


@holds("R375", "R374")
def test_what_is_held_waits_for_another_run(make_daemon: Callable[..., Daemon], third: ThirdParty) -> None:
    """More long jobs than the queue takes: the last ones are HELD, and only their client sets them off."""
    gates = [third.gate(f"/slow{number}") for number in range(RUNNING_MAX)]
    third.files.update({f"/slow{number}": BIG for number in range(RUNNING_MAX)})
    daemon = make_daemon("space", "--allow-private-endpoints")
    running = [
        ran(daemon, transfer(f"{ROOT}/slow{number}", PULL_TO, get(f"{third.url}/slow{number}")))
        for number in range(RUNNING_MAX)
    ]
    for job in running:
        job.reaches("EXECUTING")
    document = transfer(f"{ROOT}/n", PULL_TO, get(third.url + "/none"))
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        queued = list(pool.map(lambda _: new_job(daemon, document, query="?PHASE=RUN"), range(QUEUED_MAX)))
    assert {queued[0].phase(), queued[-1].phase()} == {"QUEUED"}
    held = ran(daemon, document)
    assert held.phase() == "HELD"
    for gate in gates:
        gate.set()
    for job in (*running, queued[-1]):
        job.ended()
    eventually("an empty queue", lambda: len(read(daemon, "/transfers?PHASE=QUEUED")) == 0)
    assert held.phase() == "HELD"
    held.run()
    held.failed("TransferFailed")
