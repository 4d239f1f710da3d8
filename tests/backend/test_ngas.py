"""Blobs in NGAS whatever its servers and the network do: none lost, no wrong byte, nothing left over, one kind of error."""

import io
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backend.test_backend import TRAVERSALS, get, later, put
from tests.conftest import eventually, free_port
from tests.services import ngas
from tests.services.ngas import Ngas, running, subscribe
from tests.services.unreliable import ALWAYS, Fault, Unreliable
from vosfs.backends import ngams
from vosfs.backends import ngas as driver
from vosfs.backends.backend import gathered
from vosfs.backends.ngas import NgasBackend, connect
from vosfs.backends.ngasblobs import BLOB_BYTES_MAX, BLOCK_BYTES, MEMORY_BYTES
from vosfs.config import StorageConfig
from vosfs.errors import (
    BlobMissing,
    DataCorrupt,
    InternalFault,
    QuietError,
    ServiceUnavailable,
    StorageFull,
    TimedOut,
    TooLarge,
    VOSpaceError,
)
from vosfs.metadata.node import Blob

SHORT = os.urandom(200_000)
LONG = os.urandom(2 * BLOCK_BYTES + 200_000)
HUGE = LONG * (MEMORY_BYTES // len(LONG) + 1)
DONE = None
"""The outcome of what succeeds."""
DEADLINE_S = 2
PASSWORD = "only-for-tests-0123"
Open = Callable[..., NgasBackend]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Ngas]:
    """One server."""
    with running(tmp_path, {}) as servers:
        yield servers[0]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[list[Ngas]]:
    """Two servers with a database each; what the first archives is sent to the second."""
    with running(tmp_path, {}, {}, shared=False) as servers:
        subscribe(*servers)
        yield servers


@pytest.fixture
def network(server: Ngas) -> Iterator[Unreliable]:
    """The network to the server."""
    made = Unreliable(server.url)
    yield made
    made.close()


@pytest.fixture
def behind(network: Unreliable, open_ngas: Open) -> NgasBackend:
    """The server's blobs, reached through the network, where a second is a long silence."""
    return open_ngas(network.url.removeprefix("http://"), deadline_s=DEADLINE_S)


@pytest.fixture
def direct(server: Ngas, open_ngas: Open) -> NgasBackend:
    """The same blobs, reached directly."""
    return open_ngas(server.address)


def outcome(work: Callable[[], object]) -> type[VOSpaceError] | None:
    """What it raises of ours; anything else goes through."""
    try:
        work()
    except VOSpaceError as exc:
        assert PASSWORD not in str(exc) and exc.__cause__ is None
        return type(exc)
    return DONE


def refusal_of(backend: NgasBackend, data: bytes) -> type[VOSpaceError] | None:
    """Why a blob cannot be made."""
    writer = backend.create()
    writer.write(data)
    try:
        return outcome(lambda: writer.finish(True))
    finally:
        writer.abort()


def ids(*servers: Ngas) -> list[str]:
    """Ids of all files on the servers' disks."""
    return sorted(file.id for server in servers for file in server.files())


def ending(data: bytes, what: str) -> str:
    """How the id of a blob's file, or of its sums, ends."""
    crc32 = f"-{zlib.crc32(data):08x}" if len(data) <= BLOCK_BYTES else ""
    return f"-{len(data):x}{crc32}{'s' if what == 'sums' else ''}.bin"


def turned(data: bytes, at: int) -> bytes:
    """The same with one bit turned."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def name(fault: object) -> str:
    """What a test with this fault is called."""
    return f"{fault.how} {fault.target} {fault.at}" if isinstance(fault, Fault) else ""


# -- writing through a bad network -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, expected",
    [
        (Fault("refused", "POST", at=503), DONE),
        (Fault("refused", "POST", at=503, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "POST", at=429, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "POST", at=401, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "POST", at=507), StorageFull),
        (Fault("refused", "POST", at=400), InternalFault),
        (Fault("refused", "POST", at=200), DONE),
        (Fault("refused", "POST", at=200, times=ALWAYS), ServiceUnavailable),
        (Fault("failed", "POST"), DONE),
        (Fault("failed", "POST", times=ALWAYS), ServiceUnavailable),
        (Fault("lost", "POST"), DONE),
        (Fault("lost", "POST", times=ALWAYS), ServiceUnavailable),
        (Fault("twice", "POST"), DONE),
        (Fault("wrong upload", "POST", at=99), DONE),
        (Fault("wrong upload", "POST", at=199_999, times=ALWAYS), ServiceUnavailable),
        (Fault("cut upload", "POST", at=100_000), DONE),
        (Fault("cut upload", "POST", at=100_000, times=ALWAYS), ServiceUnavailable),
        (Fault("cut", "POST", at=200), DONE),
        (Fault("cut", "POST", at=200, times=ALWAYS), ServiceUnavailable),
        (Fault("silent", "POST"), DONE),
        (Fault("silent", "POST", times=ALWAYS), TimedOut),
    ],
    ids=name,
)
@pytest.mark.parametrize("what", ["short", "long", "sums"])
def test_a_blob_is_there_or_is_not(
    server: Ngas, network: Unreliable, behind: NgasBackend, direct: NgasBackend, what: str, fault: Fault,
    expected: type[VOSpaceError] | None,
) -> None:  # fmt: skip
    data = SHORT if what == "short" else LONG
    fault = replace(fault, target=ending(data, what))
    if what == "sums" and fault.how in ("wrong upload", "cut upload"):
        fault = replace(fault, at=5)
    network.faults = [replace(fault)]
    writer = behind.create()
    writer.write(data)
    blobs = []
    assert outcome(lambda: blobs.append(writer.finish(True))) is expected
    writer.abort()
    assert network.faults[0].times < fault.times
    if expected is DONE:
        assert (blobs[0].length, blobs[0].crc32) == (len(data), zlib.crc32(data))
        assert get(direct, blobs[0].locator) == data
        direct.remove(blobs[0].locator)
    if fault.how == "silent":
        # Whoever does not answer is not waited for again only to tidy up.
        for locator in direct.locators(later()):
            direct.remove(locator)
    assert ids(server) == []


@pytest.mark.parametrize("times", [1, ALWAYS])
def test_what_arrived_without_an_answer_is_not_left(
    server: Ngas, network: Unreliable, behind: NgasBackend, direct: NgasBackend, times: int
) -> None:
    network.faults = [Fault("held", "POST", times=times)]
    writer = behind.create()
    writer.write(SHORT)
    blobs = []
    assert outcome(lambda: blobs.append(writer.finish(True))) is (DONE if times == 1 else TimedOut)
    writer.abort()
    if times == 1:
        assert ids(server) == [direct.file_id(blobs[0].locator)]
    else:
        assert len(ids(server)) > 0
        for locator in direct.locators(later()):
            direct.remove(locator)
        assert ids(server) == []


def test_full_disks_are_a_full_storage(server: Ngas, direct: NgasBackend) -> None:
    server.full = True
    assert refusal_of(direct, SHORT) is StorageFull
    assert ids(server) == []


def test_a_full_spool_is_a_full_storage(direct: NgasBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "spool", lambda: io.FileIO("/dev/full", "r+"))
    writer = direct.create()
    with pytest.raises(StorageFull, match="directory, where blobs wait to be sent, is full"):
        writer.write(HUGE)
    writer.abort()


def test_a_blob_that_is_too_large_is_refused(direct: NgasBackend) -> None:
    writer = direct.create()
    writer._sums.length = BLOB_BYTES_MAX
    with pytest.raises(TooLarge):
        writer.write(b"x")
    writer.abort()


def test_many_writers_at_once_lose_nothing(server: Ngas, direct: NgasBackend) -> None:
    # Of eight writers of one id, the real server lost three files and answered 200 seven times.
    server.racing = True
    bodies = [os.urandom(1000) + bytes([number]) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        blobs = list(pool.map(lambda body: put(direct, body), bodies))
    assert [get(direct, blob.locator) for blob in blobs] == bodies
    assert len(ids(server)) == 8 and {file.version for file in server.files()} == {1}


def test_an_empty_blob_is_its_locator_alone(server: Ngas, direct: NgasBackend) -> None:
    blob = put(direct, b"")
    assert get(direct, blob.locator) == b""
    direct.remove(blob.locator)
    assert server.seen == []


def test_nothing_of_an_upload_is_left_in_the_spool(server: Ngas, direct: NgasBackend, tmp_path: Path) -> None:
    writer = direct.create()
    writer.write(HUGE)
    assert list((tmp_path / "spool").iterdir()) == []
    assert server.seen == []
    writer.abort()


# -- long blobs whose length is known --------------------------------------------------------------------------------


def send(backend: NgasBackend, data: bytes, announced: int) -> Blob:
    """A blob whose length is announced, in pieces."""
    writer = backend.create(announced)
    try:
        for at in range(0, len(data), 1 << 20):
            writer.write(memoryview(data)[at : at + (1 << 20)])
        return writer.finish(True)
    finally:
        writer.abort()


@pytest.mark.parametrize(
    "fault, expected",
    [
        # It is on its way while it comes, so what was sent is gone when the server says at the end that it was in vain.
        (Fault("refused", at=503), ServiceUnavailable),
        (Fault("refused", at=507), StorageFull),
        (Fault("refused", at=400), InternalFault),
        (Fault("cut upload", at=1 << 20), DONE),
        (Fault("cut upload", at=1 << 20, times=ALWAYS), ServiceUnavailable),
        (Fault("wrong upload", at=MEMORY_BYTES + 5), ServiceUnavailable),
        (Fault("lost"), DONE),
        (Fault("failed"), DONE),
        (Fault("twice"), DONE),
        (Fault("cut", at=200), ServiceUnavailable),
        (Fault("silent"), TimedOut),
    ],
    ids=name,
)
def test_a_long_blob_on_its_way_is_there_or_is_not(
    server: Ngas, network: Unreliable, direct: NgasBackend, open_ngas: Open, fault: Fault,
    expected: type[VOSpaceError] | None,
) -> None:  # fmt: skip
    network.faults = [replace(fault, target=ending(HUGE, "huge"))]
    behind = open_ngas(network.url.removeprefix("http://"), deadline_s=2 * DEADLINE_S)
    blobs = []
    assert outcome(lambda: blobs.append(send(behind, HUGE, len(HUGE)))) is expected
    assert network.faults[0].times < fault.times
    if expected is DONE:
        assert (blobs[0].length, blobs[0].crc32) == (len(HUGE), zlib.crc32(HUGE))
        assert get(direct, blobs[0].locator) == HUGE
        direct.remove(blobs[0].locator)
    assert ids(server) == []


@pytest.mark.parametrize("what", ["offline", "busy", "gone"])
def test_the_next_server_takes_a_long_blob_that_the_first_refuses(tmp_path: Path, open_ngas: Open, what: str) -> None:
    with running(tmp_path, {}, {}, shared=False) as (first, second):
        first.online = what != "offline"
        first.requests_max = 0 if what == "busy" else 50
        address = f"127.0.0.1:{free_port()}" if what == "gone" else first.address
        backend = open_ngas(address, second.address, deadline_s=2 * DEADLINE_S)
        blob = send(backend, HUGE, len(HUGE))
        assert get(backend, blob.locator) == HUGE
        assert (ids(first), len(ids(second))) == ([], 2)


def test_what_was_announced_is_held_to(server: Ngas, direct: NgasBackend) -> None:
    assert outcome(lambda: send(direct, HUGE, len(HUGE) - 1)) is TooLarge
    assert outcome(lambda: send(direct, HUGE, len(HUGE) + 1)) is InternalFault
    assert outcome(lambda: send(direct, SHORT, len(SHORT) + 1)) is InternalFault
    assert ids(server) == []


@pytest.mark.parametrize("times", [1, ALWAYS])
def test_a_long_blob_in_the_spool_is_sent_again(
    server: Ngas, network: Unreliable, direct: NgasBackend, open_ngas: Open, times: int
) -> None:
    network.faults = [Fault("refused", target=ending(HUGE, "huge"), at=503, times=times)]
    behind = open_ngas(network.url.removeprefix("http://"), deadline_s=2 * DEADLINE_S)
    if times == 1:
        assert get(direct, put(behind, HUGE[:99], HUGE[99:]).locator) == HUGE
    else:
        assert refusal_of(behind, HUGE) is ServiceUnavailable
        assert ids(server) == []


# -- reading through a bad network -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, expected",
    [
        (Fault("refused", "GET", at=503), DONE),
        (Fault("refused", "GET", at=503, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "GET", at=401, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "GET", at=400, times=ALWAYS), InternalFault),
        (Fault("cut", "GET", at=0), DONE),
        (Fault("cut", "GET", at=11), DONE),
        (Fault("cut", "GET", at=11, times=2), DONE),
        (Fault("cut", "GET", at=11, times=ALWAYS), ServiceUnavailable),
        (Fault("wrong", "GET", at=0), DONE),
        (Fault("wrong", "GET", at=11), DONE),
        (Fault("wrong", "GET", at=0, times=ALWAYS), DataCorrupt),
        (Fault("lost", "GET"), DONE),
        (Fault("lost", "GET", times=ALWAYS), ServiceUnavailable),
        (Fault("silent", "GET"), DONE),
        (Fault("silent", "GET", times=ALWAYS), TimedOut),
    ],
    ids=name,
)
@pytest.mark.parametrize("what", ["short", "long", "sums"])
def test_what_is_read_is_what_was_written(
    network: Unreliable, behind: NgasBackend, direct: NgasBackend, what: str, fault: Fault,
    expected: type[VOSpaceError] | None,
) -> None:  # fmt: skip
    data = SHORT if what == "short" else LONG
    blob = put(direct, data)
    network.faults = [replace(fault, target=ending(data, what))]
    start, stop = 5, len(data) - 7
    read = bytearray()

    def work() -> None:
        reader = behind.open(blob.locator, start, stop)
        try:
            for piece in reader.stream(start, stop):
                read.extend(piece)
        finally:
            reader.close()

    found = outcome(work)
    assert found is expected
    assert bytes(read) == data[start:stop][: len(read)], "a wrong byte was given out"
    assert expected is not DONE or len(read) == stop - start


def test_a_range_is_one_request(network: Unreliable, behind: NgasBackend, direct: NgasBackend) -> None:
    short, long = put(direct, SHORT), put(direct, LONG)
    reader = behind.open(short.locator, 7, 90_000)
    assert gathered(reader.stream(7, 90_000)) == SHORT[7:90_000]
    reader.close()
    assert len(network.seen) == 1
    # The sums of a long one are another, once.
    for expected in (3, 4):
        reader = behind.open(long.locator, BLOCK_BYTES + 1, 2 * BLOCK_BYTES)
        assert gathered(reader.stream(BLOCK_BYTES + 1, 2 * BLOCK_BYTES)) == LONG[BLOCK_BYTES + 1 : 2 * BLOCK_BYTES]
        reader.close()
        assert len(network.seen) == expected


# -- what happened to the files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SHORT, LONG], ids=["short", "long"])
def test_a_file_that_was_replaced_or_cut_is_corrupt_data(server: Ngas, direct: NgasBackend, data: bytes) -> None:
    blob = put(direct, data)
    (file,) = [file for file in server.files() if file.size == len(data)]
    for other in (data[:-1], data + b"x", b"", turned(data, 1000), turned(data, len(data) - 1000)):
        file.path.write_bytes(other)
        with pytest.raises(DataCorrupt):
            get(direct, blob.locator)
    # What is whole can be read.
    file.path.write_bytes(turned(data, len(data) - 1))
    reader = direct.open(blob.locator, 0, 10)
    assert data is SHORT or reader.read(0, BLOCK_BYTES) == data[:BLOCK_BYTES]
    reader.close()


def test_another_file_of_its_name_is_corrupt_data(server: Ngas, direct: NgasBackend) -> None:
    blob = put(direct, SHORT)
    ngams.Server(*address(server)).archive(
        direct.file_id(blob.locator), SHORT[::-1], len(SHORT), zlib.crc32(SHORT[::-1])
    )
    for start, stop in ((0, 0), (0, len(SHORT))):
        with pytest.raises(DataCorrupt):
            direct.open(blob.locator, start, stop).read(0, len(SHORT))


def address(server: Ngas) -> tuple[str, int]:
    """Host and port."""
    return "127.0.0.1", server.port


# -- several servers -------------------------------------------------------------------------------------------------


def test_the_next_server_takes_what_the_first_does_not(
    server: Ngas, tmp_path: Path, network: Unreliable, open_ngas: Open
) -> None:
    with running(tmp_path / "second", {}) as (second,):
        backend = open_ngas(network.url.removeprefix("http://"), second.address, deadline_s=DEADLINE_S)
        network.faults = [Fault("refused", "POST", at=503, times=ALWAYS)]
        first = put(backend, LONG)
        tries = len(network.seen)
        assert tries and ids(server) == [] and len(ids(second)) == 2
        # It is asked last from now on, although it would answer.
        network.faults = []
        blob = put(backend, SHORT)
        assert get(backend, blob.locator) == SHORT
        assert len(network.seen) == tries and ids(server) == []
        # But for removals: nobody else knows what it has.
        backend.remove(first.locator)
        assert len(network.seen) > tries and ids(second) == [backend.file_id(blob.locator)]


def test_replicas_are_read_when_the_first_server_is_gone(pair: list[Ngas], open_ngas: Open) -> None:
    backend = open_ngas(*(server.address for server in pair), deadline_s=DEADLINE_S)
    blobs = [put(backend, data) for data in (SHORT, LONG)]
    eventually("both have all", lambda: ids(pair[0]) == ids(pair[1]))
    pair[0].online = False
    assert [get(backend, blob.locator) for blob in blobs] == [SHORT, LONG]
    again = open_ngas(f"127.0.0.1:{free_port()}", pair[1].address, deadline_s=DEADLINE_S)
    assert [get(again, blob.locator) for blob in blobs] == [SHORT, LONG]
    pair[1].online = False
    assert outcome(lambda: again.open(blobs[0].locator, 0, 9)) is ServiceUnavailable


def test_a_replica_is_read_when_a_copy_is_damaged(pair: list[Ngas], open_ngas: Open) -> None:
    for data in (SHORT, LONG):
        blob = put(open_ngas(pair[0].address), data)
        eventually("both have it", lambda: ids(pair[0]) == ids(pair[1]))
        for file in pair[0].files():
            path = file.path
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        backend = open_ngas(*(server.address for server in pair), deadline_s=DEADLINE_S)
        assert get(backend, blob.locator) == data


def test_a_replica_is_read_on_from_where_the_first_server_broke_off(pair: list[Ngas], open_ngas: Open) -> None:
    backend = open_ngas(*(server.address for server in pair), deadline_s=DEADLINE_S)
    data = os.urandom(3 << 20)
    blob = put(backend, data)
    eventually("both have it", lambda: ids(pair[0]) == ids(pair[1]))
    pair[0].cut_at = (1 << 20) + 5
    reader = backend.open(blob.locator, 0, len(data))
    assert gathered(reader.stream(0, len(data))) == data
    reader.close()


def test_what_one_server_has_not_yet_is_read_from_another(tmp_path: Path, open_ngas: Open) -> None:
    with running(tmp_path, {}, {}, shared=False) as servers:
        blob = put(open_ngas(servers[1].address), LONG)
        both = open_ngas(*(server.address for server in servers), deadline_s=DEADLINE_S)
        assert get(both, blob.locator) == LONG
        # Missing is what all say; one that does not answer may have it.
        servers[1].online = False
        assert outcome(lambda: both.open(blob.locator, 0, 9)) is ServiceUnavailable
        assert outcome(lambda: open_ngas(servers[0].address).open(blob.locator, 0, 9)) is BlobMissing


def test_redirections_are_followed_to_servers_that_are_named(cluster: list[Ngas], open_ngas: Open) -> None:
    first, second = (server.address for server in cluster)
    blob = put(open_ngas(second), LONG)
    assert get(open_ngas(first, second.replace("127.0.0.1", "localhost")), blob.locator) == LONG
    alone = open_ngas(first, deadline_s=DEADLINE_S)
    with pytest.raises(ServiceUnavailable, match=f"is on {second}, which .* does not name"):
        alone.open(blob.locator, 0, 9)
    cluster[0].proxy = True
    for start, stop in ((0, len(LONG)), (BLOCK_BYTES + 1, BLOCK_BYTES + 2)):
        reader = alone.open(blob.locator, start, stop)
        assert reader.read(start, stop) == LONG[start:stop]
        reader.close()


def test_more_requests_than_a_server_takes_come_again(server: Ngas, direct: NgasBackend, open_ngas: Open) -> None:
    blob = put(direct, SHORT)
    server.requests_max = 0
    busy = open_ngas(server.address, deadline_s=DEADLINE_S)
    assert outcome(lambda: busy.open(blob.locator)) is ServiceUnavailable
    assert refusal_of(busy, SHORT) is ServiceUnavailable
    server.requests_max = 50
    assert get(busy, blob.locator) == SHORT


def test_a_server_with_a_password(
    server: Ngas, open_ngas: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.login = f"vosfs:{PASSWORD}"
    assert refusal_of(open_ngas(server.address), SHORT) is ServiceUnavailable
    (tmp_path / "key").write_text(f"NGAS_USER = vosfs\nNGAS_PASSWORD = {PASSWORD}\n")
    url = f"ngas://{server.address}/test"
    backend = connect(StorageConfig(objects=url, credentials_file="key", directory="spool"), tmp_path)
    backend.check("space-1")
    assert get(backend, put(backend, LONG).locator) == LONG
    shown = f"{backend!r} {backend.servers.all!r} {backend.servers.all[0]!r}"
    assert PASSWORD not in shown and "vosfs:" not in shown
    monkeypatch.setenv("NGAS_USER", "vosfs")
    monkeypatch.setenv("NGAS_PASSWORD", PASSWORD)
    put(open_ngas(server.address), SHORT)


# -- removing --------------------------------------------------------------------------------------------------------


def test_all_copies_and_versions_are_removed(server: Ngas, direct: NgasBackend) -> None:
    blob = put(direct, LONG)
    (node,) = direct.servers.all
    for file in list(server.files()):
        node.command("CLONE", file_id=file.id)
        node.archive(file.id, b"more", 4, zlib.crc32(b"more"))
    assert len(server.files()) == 6
    direct.remove(blob.locator)
    assert server.files() == []
    assert {command for command, _ in server.seen} >= {"CACHEDEL", "DISCARD"}
    # That there is no cache is remembered.
    asked = [command for command, _ in server.seen].count("CACHEDEL")
    assert asked == 1
    direct.remove(put(direct, SHORT).locator)
    assert [command for command, _ in server.seen].count("CACHEDEL") == asked


def test_copies_on_other_servers_of_the_cluster_are_removed(cluster: list[Ngas], on_ngas: NgasBackend) -> None:
    blob = put(on_ngas, LONG)
    for file in list(cluster[0].files()):
        on_ngas.servers.all[1].command("CLONE", file_id=file.id)
    assert len(cluster[1].files()) == 2
    assert list(on_ngas.locators(later())) == [blob.locator]
    on_ngas.remove(blob.locator)
    assert ids(*cluster) == []


def test_copies_on_servers_that_are_not_named_are_left_alone(cluster: list[Ngas], open_ngas: Open) -> None:
    blob = put(open_ngas(cluster[0].address), SHORT)
    ngams.Server(*address(cluster[1])).command("CLONE", file_id=ids(cluster[0])[0])
    first = open_ngas(cluster[0].address)
    first.remove(blob.locator)
    assert (ids(cluster[0]), len(ids(cluster[1]))) == ([], 1)
    # Nor are they listed: they could never be collected.
    assert list(first.locators(later())) == []


def test_a_copy_behind_a_server_that_is_away_is_removed_when_it_is_back(pair: list[Ngas], open_ngas: Open) -> None:
    backend = open_ngas(*(server.address for server in pair), deadline_s=DEADLINE_S)
    blob = put(backend, LONG)
    eventually("both have it", lambda: ids(pair[0]) == ids(pair[1]))
    pair[1].requests_max = 0
    assert outcome(lambda: backend.remove(blob.locator)) is ServiceUnavailable
    assert ids(pair[0]) == [] and len(ids(pair[1])) == 2
    assert list(backend.locators(later())) == []
    pair[1].requests_max = 50
    assert list(backend.locators(later())) == [blob.locator]
    backend.remove(blob.locator)
    assert ids(*pair) == []


@pytest.mark.parametrize("fault", [Fault("lost"), Fault("failed"), Fault("refused", at=503), Fault("silent")], ids=name)
@pytest.mark.parametrize("command", ["QUERY?", "STATUS", "disks_list", "CACHEDEL", "DISCARD"])
def test_a_removal_that_fails_is_done_when_it_is_asked_again(
    server: Ngas, network: Unreliable, behind: NgasBackend, direct: NgasBackend, command: str, fault: Fault
) -> None:
    blob = put(direct, LONG)
    network.faults = [replace(fault, target=command)]
    assert outcome(lambda: behind.remove(blob.locator)) in (ServiceUnavailable, TimedOut)
    behind.remove(blob.locator)
    assert ids(server) == []


def test_a_cache_that_forgot_a_removal_is_asked_again(
    tmp_path: Path, open_ngas: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "PROMISE_S", 0.0)
    with running(tmp_path, {"caching": True}) as (server,):
        backend = open_ngas(server.address)
        blob = put(backend, LONG)
        # Its cache does not know the file yet.
        backend.remove(blob.locator)
        server.cache_pass()
        server.cache_pass()
        assert len(ids(server)) == 2
        assert outcome(lambda: backend.open(blob.locator)) is DONE
        backend.sweep(0)
        server.cache_pass()
        assert ids(server) == [] and len(backend._promises) == 2
        backend.sweep(0)
        assert not backend._promises
        assert "DISCARD" not in {command for command, _ in server.seen}


def test_what_a_cache_still_has_is_collected_by_another_process(tmp_path: Path, open_ngas: Open) -> None:
    with running(tmp_path, {"caching": True}) as (server,):
        blob = put(open_ngas(server.address), LONG)
        open_ngas(server.address).remove(blob.locator)
        server.cache_pass()
        again = open_ngas(server.address)
        assert list(again.locators(later())) == [blob.locator]
        again.remove(blob.locator)
        server.cache_pass()
        assert list(again.locators(later())) == []


def test_promises_have_a_limit(tmp_path: Path, open_ngas: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "PROMISES_MAX", 3)
    with running(tmp_path, {"caching": True}) as (server,):
        backend = open_ngas(server.address)
        for _ in range(5):
            backend.remove(put(backend, SHORT).locator)
        assert len(backend._promises) == 3


# -- listing ---------------------------------------------------------------------------------------------------------


def test_many_blobs_come_page_by_page(server: Ngas, direct: NgasBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    blobs = sorted(put(direct, b"%d" % number).locator for number in range(40))
    monkeypatch.setattr(ngams, "LIST_BYTES_MAX", 3000)
    server.seen.clear()
    assert sorted(direct.locators(later())) == blobs
    assert len([pars for _, pars in server.seen if pars.get("query") == "files_like"]) > 16


def test_what_others_keep_there_is_left_alone(server: Ngas, direct: NgasBackend, open_ngas: Open) -> None:
    (node,) = direct.servers.all
    blob = put(direct, SHORT)
    mine = direct.file_id(blob.locator)
    others = [
        mine.replace("-", "_"),
        mine.replace("-", "x"),
        "x" + mine,
        mine.upper(),
        mine + ".bin",
        mine.replace(".bin", "ss.bin"),
    ]
    for other in others:
        node.archive(other, b"mine", 4, zlib.crc32(b"mine"))
    open_ngas(server.address, prefix="test-more").check("another space")
    kept = put(open_ngas(server.address, prefix="test-more"), SHORT)
    assert list(direct.locators(later())) == [blob.locator]
    direct.remove(blob.locator)
    assert set(others) <= set(ids(server)) and mine not in ids(server)
    assert kept.locator in "".join(ids(server))


def test_sums_without_their_blob_are_collected(server: Ngas, direct: NgasBackend) -> None:
    blob = put(direct, LONG)
    server.archive.drop(next(file for file in server.files() if file.id == direct.file_id(blob.locator)))
    assert list(direct.locators(later())) == [blob.locator]
    assert outcome(lambda: direct.open(blob.locator)) is BlobMissing
    direct.remove(blob.locator)
    assert ids(server) == []


@pytest.mark.parametrize(
    "locator",
    [
        *TRAVERSALS,
        "0" * 32,
        "0" * 24 + "-5",
        "0" * 24 + "-5-" + "0" * 8 + "s",
        "0" * 24 + "-fffffff-" + "0" * 8,
        "_" * 24 + "-5-" + "0" * 8,
    ],
)
def test_what_is_no_locator_is_refused(server: Ngas, direct: NgasBackend, locator: str) -> None:
    for call in (direct.open, direct.remove, lambda text: direct.open(text, 0, 9)):
        with pytest.raises(DataCorrupt):
            call(locator)
    assert server.seen == []


def test_ids_fit_where_ngas_keeps_them(direct: NgasBackend) -> None:
    longest = f"{'f' * 24}-{BLOB_BYTES_MAX:x}-{'f' * 8}"
    backend = NgasBackend(direct.servers, "p" * 12, Path())
    assert len(backend.file_id(longest, "s")) <= 64 and len(longest) <= 100 and "." not in longest


# -- the start -------------------------------------------------------------------------------------------------------


def refusal(base: Path, url: str, space: str = "space-1", **more: str) -> str:
    """What the daemon would say at its start."""
    with pytest.raises(QuietError) as caught:
        connect(StorageConfig(objects=url, **more), base, 0.5).check(space)
    text = str(caught.value)
    assert "\n" not in text and PASSWORD not in text
    return text


def test_errors_at_the_start_name_cause_and_cure(server: Ngas, network: Unreliable, tmp_path: Path) -> None:
    (tmp_path / "unknown").write_text(f"NGAS_SECRET={PASSWORD}\n")
    (tmp_path / "broken").write_text(f"{PASSWORD}\n")
    good = f"ngas://{server.address}/p"
    likeness = "is not like ngas://HOST:PORT,HOST:PORT/PREFIX"
    for url in (
        "ngas:///p",
        "ngas://a:x/p",
        "ngas://a,/p",
        "ngas://a:1/p?x=1",
        "ngas://a:1/p/q",
        "ngas://a:1/P",
        "ngas://a/p_",
    ):
        assert likeness in refusal(tmp_path, url)
    assert likeness in refusal(tmp_path, "ngas://a:1/" + "p" * 13)
    assert "belongs into credentials_file" in refusal(tmp_path, f"ngas://me:{PASSWORD}@a:1/p")
    assert "endpoint is about S3" in refusal(tmp_path, good, endpoint="http://a")
    assert "unknown name among ngas_secret" in refusal(tmp_path, good, credentials_file="unknown")
    assert "line 1 is not like NAME = value" in refusal(tmp_path, good, credentials_file="broken")
    assert "see [storage] objects" in refusal(tmp_path, f"ngas://127.0.0.1:{free_port()}/p")
    network.faults = [Fault("silent", times=ALWAYS)]
    assert "does not answer" in refusal(tmp_path, network.url.replace("http", "ngas") + "/p")
    network.faults = [Fault("refused", "GET", "DISCARD", at=400, times=ALWAYS)]
    assert "blobs cannot be kept there" in refusal(tmp_path, network.url.replace("http", "ngas") + "/p")
    server.online = False
    assert "none of them is ONLINE" in refusal(tmp_path, good)
    server.online = True
    server.login = f"me:{PASSWORD}"
    assert "401" in refusal(tmp_path, good)


def test_a_prefix_is_for_one_space(pair: list[Ngas], open_ngas: Open, tmp_path: Path) -> None:
    both = f"ngas://{pair[0].address},{pair[1].address}/test"
    connect(StorageConfig(objects=both), tmp_path).check("space-1")
    for url in (both, f"ngas://{pair[0].address}/test", f"ngas://{pair[1].address}/test"):
        assert "the blobs of another space are there" in refusal(tmp_path, url, "space-2")
        open_ngas(pair[0].address).check("space-1")


@pytest.mark.expect_log
def test_a_server_that_is_away_is_said_at_the_start(
    server: Ngas, open_ngas: Open, caplog: pytest.LogCaptureFixture
) -> None:
    backend = open_ngas(f"127.0.0.1:{free_port()}", server.address, deadline_s=DEADLINE_S)
    backend.check("space-1")
    assert "not all servers can be used" in caplog.text
    assert get(backend, put(backend, SHORT).locator) == SHORT


# -- the stand-in ----------------------------------------------------------------------------------------------------


def test_the_stand_in_has_the_traps_of_the_real_server(server: Ngas) -> None:
    node = ngams.Server(*address(server))
    node.archive("a.bin", SHORT, len(SHORT), zlib.crc32(SHORT))
    for asked, status, length in (("bytes=9-", 200, "199991"), ("bytes=9-20", 400, None), ("bytes=200009-", 200, "-9")):
        with node.ask("RETRIEVE", {"file_id": "a.bin"}, {"Range": asked}) as exchange:
            assert exchange.status == status
            assert length is None or exchange.headers["content-length"] == length
    with pytest.raises(ngams.Missing):
        node.command("RETRIEVE", file_id="b.bin")
    with pytest.raises(ngams.Damaged):
        node.archive("c.bin", SHORT, len(SHORT), 1)
    with pytest.raises(ngams.Refused):
        # Refused, with status 200.
        node.command("REMFILE", **node.copies("a.bin")[0], execute="1")
    server.files()[0].path.write_bytes(b"other")
    with pytest.raises(ngams.Refused, match="4057"):
        # Corrupt, with status 200 and SUCCESS.
        node.command("CHECKFILE", file_id="a.bin")
    assert ngas.crc32c(b"123456789") == 0xE3069283
