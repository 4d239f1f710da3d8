"""Blobs read straight from an object store: right whatever it and the network do, and read by the daemon's way if need be."""

import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import trio
import trio.testing

from tests.backend.test_backend import put
from tests.services import azurite, rgw
from tests.services.unreliable import ALWAYS, Fault, Unreliable
from vosfs.backends import direct, objects
from vosfs.backends.backend import Signed
from vosfs.backends.direct import BYTES_MIN, DirectBlobs
from vosfs.backends.objects import BLOCK_BYTES, ObjectsBackend
from vosfs.backends.storages import DEFAULT, Storages
from vosfs.errors import BlobMissing, ServiceUnavailable, Stale

MIB = 1 << 20
DATA = os.urandom(5 * MIB + 999)
SIGNED = "X-Amz-Signature="


class Daemon:
    """What the mount asks of a daemon, answered by a backend."""

    def __init__(self, backend: ObjectsBackend) -> None:
        self._backend = backend
        self.fetched: list[tuple[int, int]] = []
        self.asked = 0

    async def fetch(self, name: str, start: int, into: memoryview, arrived: Callable[[int], None]) -> None:
        self.fetched.append((start, start + len(into)))
        into[:] = self._backend.open(name).read(start, start + len(into))
        arrived(len(into))

    async def signed(self, name: str) -> Signed | None:
        self.asked += 1
        return await trio.to_thread.run_sync(self._backend.signed, name)


@pytest.fixture
def backend(network: Unreliable, open_s3: Callable[..., ObjectsBackend]) -> ObjectsBackend:
    """A storage that is reached through the network, and signs URLs of it."""
    return open_s3(network.url)


@pytest.fixture
def daemon(backend: ObjectsBackend) -> Daemon:
    return Daemon(backend)


@pytest.fixture
def blobs(
    daemon: Daemon, network: Unreliable, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DirectBlobs]:
    """The mount's side, which has reached the store."""
    monkeypatch.setattr(direct, "DEADLINE_S", 0.5)
    made = DirectBlobs(daemon, nursery)  # type: ignore[arg-type]
    made._stores[network.url] = direct._Store(network.url)
    made._stores[network.url].worked()
    yield made
    made.close()


async def read(blobs: DirectBlobs, name: str, start: int, stop: int) -> None:
    """A range, of which every byte is right at the moment it is told of."""
    into = bytearray(stop - start)
    told = [0]

    def arrived(count: int) -> None:
        told.append(count)
        assert into[:count] == DATA[start : start + count], "told of a wrong byte"

    await blobs.fetch(name, start, memoryview(into), arrived)
    assert into == DATA[start:stop] and max(told) == stop - start


# -- without trouble -------------------------------------------------------------------------------------------------


async def test_long_reads_go_to_the_store(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend, network: Unreliable
) -> None:
    name = put(backend, DATA).locator
    await read(blobs, name, 0, BLOCK_BYTES)
    assert daemon.fetched == [(0, BLOCK_BYTES)] and daemon.asked == 0, "a look at the beginning asks for no URL"
    network.seen.clear()
    await read(blobs, name, 0, 4 * MIB)
    await read(blobs, name, 4 * MIB, len(DATA))
    # Whoever has the URL uses it for short ones too.
    await read(blobs, name, 5 * BLOCK_BYTES, 6 * BLOCK_BYTES)
    assert len(daemon.fetched) == 1 and daemon.asked == 1
    assert sum(SIGNED in target for _, target in network.seen) == 3
    assert blobs.bytes_read == len(DATA) + BLOCK_BYTES


@pytest.mark.parametrize("reached", [True, False])
async def test_who_reads_on_finds_the_store_ready(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend, network: Unreliable, reached: bool
) -> None:
    blobs._stores[network.url].reached = reached
    name, other = put(backend, DATA).locator, put(backend, DATA).locator
    await read(blobs, other, 0, BLOCK_BYTES)
    for start, stop in ((0, BLOCK_BYTES), (2 * BLOCK_BYTES, 3 * BLOCK_BYTES)):
        await read(blobs, name, start, stop)
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert daemon.asked == 0, "these are looks here and there"
    await read(blobs, name, 3 * BLOCK_BYTES, 4 * BLOCK_BYTES)
    with trio.fail_after(5):
        while not (name in blobs._urls and blobs._stores[network.url].reached):
            await trio.testing.wait_all_tasks_blocked(0.01)
    told = len(daemon.fetched)
    await read(blobs, name, MIB, 4 * MIB)
    assert daemon.asked == 1 and len(daemon.fetched) == told


async def test_many_readers_ask_for_a_url_once(blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend) -> None:
    name = put(backend, DATA).locator
    async with trio.open_nursery() as nursery:
        for start in range(0, 4 * MIB, MIB):
            nursery.start_soon(read, blobs, name, start, start + MIB)
    assert daemon.asked == 1 and daemon.fetched == []


async def test_what_cannot_be_checked_is_read_by_the_daemon(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend
) -> None:
    name = put(backend, DATA).locator
    for start, stop in ((1, BYTES_MIN + 1), (BLOCK_BYTES, 2 * BYTES_MIN + 5)):
        await read(blobs, name, start, stop)
        assert daemon.fetched[-1] == (start, stop)
    assert blobs.bytes_read == 0


async def test_urls_are_remembered_up_to_a_limit(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "URLS_MAX", 2)
    names = [put(backend, DATA).locator for _ in range(3)]
    for name in (*names, names[2], names[0]):
        await read(blobs, name, 0, BYTES_MIN)
    assert daemon.asked == 4 and len(blobs._urls) == 2
    assert blobs._sums_bytes == sum(len(url.signed.sums) for url in blobs._urls.values())


# -- with trouble ----------------------------------------------------------------------------------------------------


@pytest.mark.expect_log
@pytest.mark.parametrize(
    "fault, by_daemon, avoided",
    [
        # A URL that ended, or a connection, costs another one.
        (Fault("refused", "GET", SIGNED, at=403), 0, False),
        (Fault("lost", "GET", SIGNED), 0, False),
        (Fault("cut", "GET", SIGNED, at=1000), 0, False),
        # Once somebody was told of bytes nothing may come over them but what was checked elsewhere.
        (Fault("cut", "GET", SIGNED, at=BLOCK_BYTES + 1000), 1, True),
        (Fault("wrong", "GET", SIGNED, at=0), 1, False),
        (Fault("wrong", "GET", SIGNED, at=3 * BLOCK_BYTES), 1, False),
        (Fault("refused", "GET", SIGNED, at=403, times=ALWAYS), 1, True),
        (Fault("refused", "GET", SIGNED, at=503, times=ALWAYS), 1, True),
        (Fault("lost", "GET", SIGNED, times=ALWAYS), 1, True),
        (Fault("silent", "GET", SIGNED, times=ALWAYS), 1, True),
    ],
    ids=lambda value: f"{value.how} {value.at} {value.times == 1}" if isinstance(value, Fault) else "",
)
async def test_what_is_read_is_what_was_written(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend, network: Unreliable, fault: Fault, by_daemon: int,
    avoided: bool, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    name = put(backend, DATA).locator
    network.faults = [Fault(**vars(fault))]
    caplog.set_level("DEBUG")
    await read(blobs, name, 0, 4 * MIB)
    assert len(daemon.fetched) == by_daemon
    network.faults, network.seen = [], []
    await read(blobs, name, 4 * MIB, len(DATA))
    assert any(SIGNED in target for _, target in network.seen) is not avoided, "the store is left alone for a while"
    assert "Signature" not in caplog.text and rgw.ACCESS_KEY not in caplog.text


async def probed(blobs: DirectBlobs, network: Unreliable) -> None:
    """Wait for the probe that is under way."""
    with trio.fail_after(10):
        while blobs._stores[network.url].probing:
            await trio.lowlevel.checkpoint()


async def test_nobody_waits_for_a_store_that_was_not_reached_before(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend, network: Unreliable
) -> None:
    name = put(backend, DATA).locator
    store = blobs._stores[network.url]
    store.reached = False
    network.faults = [Fault("silent", "GET", SIGNED)]
    for _ in range(3):
        await read(blobs, name, 0, MIB)
    assert len(daemon.fetched) == 3 and store.probing
    await probed(blobs, network)
    assert not store.reached and sum(SIGNED in target for _, target in network.seen) == 1
    # Later it answers.
    store.avoided_until = 0
    await read(blobs, name, 0, MIB)
    await probed(blobs, network)
    assert store.reached and len(daemon.fetched) == 4
    await read(blobs, name, 0, MIB)
    assert len(daemon.fetched) == 4


async def test_a_store_that_cannot_be_reached_is_tried_ever_more_rarely(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend, network: Unreliable
) -> None:
    name = put(backend, DATA).locator
    store = blobs._stores[network.url]
    network.faults = [Fault("lost", "GET", SIGNED, times=ALWAYS)]
    pauses = []
    for _ in range(4):
        store.avoided_until = 0
        await read(blobs, name, 0, MIB)
        await probed(blobs, network)
        pauses.append(store.avoided_s)
    assert pauses == [60, 120, 240, 480] and len(daemon.fetched) == 4
    network.faults, store.avoided_until = [], 0
    await read(blobs, name, 0, MIB)
    await probed(blobs, network)
    assert store.reached and store.avoided_s == direct.AVOIDED_S_MIN


async def test_a_key_that_signs_nothing_costs_a_question(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(backend, DATA).locator

    async def refused(name: str) -> Signed | None:
        daemon.asked += 1
        raise ServiceUnavailable("no key")

    monkeypatch.setattr(daemon, "signed", refused)
    for _ in range(3):
        await read(blobs, name, 0, MIB)
    assert len(daemon.fetched) == 3 and daemon.asked == 1


async def test_a_url_is_renewed_before_it_ends(blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend) -> None:
    name = put(backend, DATA).locator
    await read(blobs, name, 0, MIB)
    now, first = trio.current_time(), blobs._urls[name]
    assert now < first.until <= now + objects.SIGNED_S - direct.SLACK_S
    first.until = now
    await read(blobs, name, MIB, 2 * MIB)
    assert blobs._urls[name].until > now and daemon.asked == 2 and daemon.fetched == []


async def test_a_url_that_ended_before_its_time_is_renewed(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend
) -> None:
    """Somebody's clock is wrong, or the key was changed: what the store itself says counts."""
    import obstore

    name = put(backend, DATA).locator
    await read(blobs, name, 0, MIB)
    url = obstore.sign(backend._store, "GET", name, timedelta(seconds=0))
    known = blobs._urls[name]
    known.target = url.removeprefix(known.store.client.origin)
    await read(blobs, name, MIB, 2 * MIB)
    assert daemon.asked == 2 and daemon.fetched == [] and blobs.bytes_read == 2 * MIB


async def test_a_blob_that_is_gone_is_missing(
    blobs: DirectBlobs, daemon: Daemon, backend: ObjectsBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = put(backend, DATA).locator
    await read(blobs, name, 0, MIB)
    backend.remove(name)
    with pytest.raises(BlobMissing):
        await read(blobs, name, 0, MIB)

    async def ended(name: str) -> Signed | None:
        raise Stale("the lease of a blob has ended")

    monkeypatch.setattr(daemon, "signed", ended)
    with pytest.raises(Stale):
        await read(blobs, name, 0, MIB)


# -- what a URL is good for ------------------------------------------------------------------------------------------


def answer(method: str, url: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """What the store says to a stranger."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=30) as got:
            return got.status, got.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, b""


def test_a_url_gives_one_object_and_nothing_else(on_s3: ObjectsBackend) -> None:
    blob, other = put(on_s3, DATA), put(on_s3, os.urandom(MIB))
    signed = on_s3.signed(blob.locator)
    assert signed.length == len(DATA) and "Signature" not in repr(signed) and signed.url not in str(signed)
    assert answer("GET", signed.url) == (200, DATA)
    assert answer("GET", signed.url, Range="bytes=5-9") == (206, DATA[5:10])
    place, _, query = signed.url.partition("?")
    container = place.rpartition("/")[0]
    for method, url, body in [
        ("GET", signed.url.replace(blob.locator, other.locator), None),
        ("GET", f"{container}/?{query}", None),
        ("GET", f"{container}?list-type=2&{query}", None),
        ("PUT", signed.url, b"else"),
        ("DELETE", signed.url, None),
        ("HEAD", signed.url, None),
        ("GET", place, None),
    ]:
        assert answer(method, url, body)[0] == 403, (method, url)
    assert answer("HEAD", on_s3.signed(blob.locator, "HEAD").url)[0] == 200
    assert on_s3.open(blob.locator).read(0, len(DATA)) == DATA


def test_a_url_of_azure(on_azure: ObjectsBackend) -> None:
    blob, other = put(on_azure, DATA), put(on_azure, os.urandom(MIB))
    signed = on_azure.signed(blob.locator)
    assert answer("GET", signed.url) == (200, DATA)
    assert answer("GET", signed.url, Range="bytes=5-9") == (206, DATA[5:10])
    assert answer("GET", signed.url.replace(blob.locator, other.locator))[0] == 403
    assert answer("DELETE", signed.url)[0] == 403


async def test_blobs_of_azure_are_read_from_there(
    on_azure: ObjectsBackend, azure: azurite.Azure, nursery: trio.Nursery
) -> None:
    daemon = Daemon(on_azure)
    blobs = DirectBlobs(daemon, nursery)  # type: ignore[arg-type]
    origin = azure.endpoint.removesuffix(f"/{azurite.ACCOUNT}")
    blobs._stores[origin] = direct._Store(origin)
    blobs._stores[origin].worked()
    name = put(on_azure, DATA).locator
    await read(blobs, name, 0, len(DATA))
    assert daemon.fetched == [] and blobs.bytes_read == len(DATA)
    blobs.close()


def test_who_signs_is_configured(on_s3: ObjectsBackend) -> None:
    blob = put(on_s3, DATA)
    storages = Storages({DEFAULT: on_s3})
    assert (storages.signs, storages.redirects) == (True, False)
    signed = storages.signed(blob.locator)
    assert signed is not None and signed.length == len(DATA) and storages.redirected(blob.locator, "GET") is None
    on_s3.signs, on_s3.redirects = False, True
    assert (storages.signs, storages.redirects) == (False, True)
    assert storages.signed(blob.locator) is None and storages.redirected(blob.locator, "GET") is not None
    # Which copy is good only a reader finds out.
    assert storages.redirected(f"{blob.locator}+{blob.locator}", "GET") is None
