"""Signed text proves itself: no other key, purpose, user or byte will do, nor a later hour."""

import time

import pytest

from server.signing import ENDPOINT_S, LEASE_S, RECEIPT_S, Endpoint, Signer
from vosfs.errors import PermissionDenied
from vosfs.metadata.node import Blob

SIGNER = Signer(b"k" * 32)
BLOB = Blob("0123456789abcdef" * 2, 10**12, 0xFFFFFFFF)
REGISTERED = Blob("0123456789abcdef" * 2 + "-12-1600000000000000000", 12, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1_000_000.5]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def endpoint(expires: int) -> Endpoint:
    return Endpoint("pushToVoSpace", (b"a", b"\xff\xfe"), "böb", "job1", expires)


def test_round_trips(clock: list[float]) -> None:
    for blob in (BLOB, REGISTERED):
        assert SIGNER.leased(SIGNER.lease(blob.locator)) == blob.locator
        assert SIGNER.received(SIGNER.receipt(blob, "bob"), "bob") == blob
    there = endpoint(int(clock[0]) + ENDPOINT_S)
    token = SIGNER.endpoint(there)
    assert SIGNER.endpoint_of(token) == there
    assert all(c.isalnum() or c in "-_." for c in token), "it stands in a URL as it is"


def test_another_process_with_the_key_agrees() -> None:
    other = Signer(b"k" * 32)
    assert other.leased(SIGNER.lease(BLOB.locator)) == BLOB.locator


def test_another_key_does_not() -> None:
    other = Signer(b"K" * 32)
    for call in (
        lambda: other.leased(SIGNER.lease(BLOB.locator)),
        lambda: other.received(SIGNER.receipt(BLOB, "bob"), "bob"),
        lambda: other.endpoint_of(SIGNER.endpoint(endpoint(2**40))),
    ):
        with pytest.raises(PermissionDenied):
            call()


def test_each_purpose_has_its_own_seal() -> None:
    lease, receipt, token = SIGNER.lease(BLOB.locator), SIGNER.receipt(BLOB, "bob"), SIGNER.endpoint(endpoint(2**40))
    for text in (receipt, token):
        with pytest.raises(PermissionDenied):
            SIGNER.leased(text)
    for text in (lease, token):
        with pytest.raises(PermissionDenied):
            SIGNER.received(text, "bob")
    for text in (lease, receipt):
        with pytest.raises(PermissionDenied):
            SIGNER.endpoint_of(text)
    with pytest.raises(PermissionDenied):
        SIGNER.received(receipt, "eve")


def test_every_byte_counts() -> None:
    lease = SIGNER.lease(BLOB.locator)
    for position in range(len(lease)):
        changed = lease[:position] + ("A" if lease[position] != "A" else "B") + lease[position + 1 :]
        with pytest.raises(PermissionDenied):
            SIGNER.leased(changed)
    for text in (lease[:-1], lease + "A", lease + ".", "." + lease, lease.upper(), lease + "=", " " + lease):
        with pytest.raises(PermissionDenied):
            SIGNER.leased(text)


@pytest.mark.parametrize(
    "text", ["", ".", "..", "a", "a.", ".a", "a.b", "a.b.c", "é.ü", "\udcff.\udcff", "a.\ud800", "x" * 10_000]
)
def test_nonsense_is_refused(text: str) -> None:
    for call in (SIGNER.leased, lambda t: SIGNER.received(t, "bob"), SIGNER.endpoint_of):
        with pytest.raises(PermissionDenied):
            call(text)


def test_everything_ends(clock: list[float]) -> None:
    start = clock[0]
    lease, receipt, token = (
        SIGNER.lease(BLOB.locator), SIGNER.receipt(BLOB, "bob"), SIGNER.endpoint(endpoint(int(start) + ENDPOINT_S)),
    )  # fmt: skip
    shared = SIGNER.receipt(BLOB, "bob", LEASE_S)
    for life, call in (
        (LEASE_S, lambda: SIGNER.leased(lease)),
        (RECEIPT_S, lambda: SIGNER.received(receipt, "bob")),
        (LEASE_S, lambda: SIGNER.received(shared, "bob")),
        (ENDPOINT_S, lambda: SIGNER.endpoint_of(token)),
    ):
        clock[0] = start + life - 1
        assert call()
        clock[0] = start + life + 2
        with pytest.raises(PermissionDenied, match="expired"):
            call()
