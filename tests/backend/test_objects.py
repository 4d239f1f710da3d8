"""Blobs in an object store whatever the network does: none lost, no wrong byte, nothing left over, one kind of error."""

import ipaddress
import os
import ssl
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from tests.backend.test_backend import NEVER_ISSUED, TRAVERSALS, get, later, put
from tests.clients.test_certificates import issue
from tests.services import rgw
from tests.services.unreliable import ALWAYS, Fault, Unreliable
from vosfs.backends import uploads
from vosfs.backends.objecterrors import failure
from vosfs.backends.objects import BLOCK_BYTES, PART_BYTES, PARTS_MAX, ObjectsBackend, connect
from vosfs.config import StorageConfig
from vosfs.errors import (
    DataCorrupt,
    DuplicateNode,
    QuietError,
    ServiceUnavailable,
    StorageFull,
    TimedOut,
    TooLarge,
    VOSpaceError,
)

SHORT = os.urandom(300_000)
LONG = os.urandom(PART_BYTES + 300_000)
DONE = None
"""The outcome of what succeeds."""


@pytest.fixture
def behind(network: Unreliable, open_s3: Callable[..., ObjectsBackend]) -> ObjectsBackend:
    """The same blobs as ``on_s3``, reached through the network, where 0.3 s are a long silence."""
    return open_s3(network.url, 0.6)


def leftovers(backend: ObjectsBackend) -> list[str]:
    """Blobs, sums and unfinished uploads."""
    assert backend._uploads is not None
    return [*backend.locators(later()), *(key for key, _, _ in backend._uploads.unfinished())]


def outcome(work: Callable[[], object]) -> type[VOSpaceError] | None:
    """What it raises of ours; anything else goes through."""
    try:
        work()
    except VOSpaceError as exc:
        assert "SK" not in str(exc) and rgw.SECRET_KEY not in str(exc) and "Signature=" not in str(exc)
        assert exc.__cause__ is None and exc.__suppress_context__ or exc.__context__ is None
        return type(exc)
    return DONE


# -- writing through a bad network -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, expected",
    [
        (Fault("refused", "PUT", at=503), DONE),
        (Fault("refused", "PUT", at=503, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "PUT", at=429, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "PUT", at=403), ServiceUnavailable),
        (Fault("refused", "PUT", at=507), DONE),
        (Fault("failed", "PUT"), DONE),
        (Fault("failed", "PUT", times=ALWAYS), ServiceUnavailable),
        (Fault("lost", "PUT"), DONE),
        (Fault("lost", "PUT", times=ALWAYS), ServiceUnavailable),
        (Fault("twice", "PUT"), DONE),
        (Fault("wrong upload", "PUT", at=99), DONE),
        (Fault("wrong upload", "PUT", at=299_999, times=ALWAYS), ServiceUnavailable),
        (Fault("cut upload", "PUT", at=100_000), DONE),
        (Fault("cut upload", "PUT", at=100_000, times=ALWAYS), ServiceUnavailable),
        (Fault("silent", "PUT"), DONE),
        (Fault("silent", "PUT", times=ALWAYS), TimedOut),
    ],
    ids=lambda value: f"{value.how} {value.method}" if isinstance(value, Fault) else "",
)
def test_a_short_blob_is_there_or_is_not(
    network: Unreliable, behind: ObjectsBackend, on_s3: ObjectsBackend, fault: Fault,
    expected: type[VOSpaceError] | None,
) -> None:  # fmt: skip
    network.faults = [Fault(**vars(fault))]
    writer = behind.create()
    writer.write(SHORT)
    blobs = []
    began = time.monotonic()
    found = outcome(lambda: blobs.append(writer.finish(True)))
    assert time.monotonic() - began < 10
    assert found is expected
    writer.abort()
    if expected is DONE:
        assert get(on_s3, blobs[0].locator) == SHORT
    else:
        assert leftovers(on_s3) == []


@pytest.mark.parametrize(
    "fault, expected",
    [
        (Fault("refused", "POST", "uploads", at=503), DONE),
        (Fault("refused", "POST", "uploads", at=503, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "PUT", "partNumber=2", at=503), DONE),
        (Fault("refused", "PUT", "partNumber=2", at=503, times=ALWAYS), ServiceUnavailable),
        (Fault("lost", "PUT", "partNumber=1"), DONE),
        (Fault("twice", "PUT", "partNumber=1"), DONE),
        (Fault("wrong upload", "PUT", "partNumber=1", at=9_999_999), ServiceUnavailable),
        (Fault("cut upload", "PUT", "partNumber=2", at=100), DONE),
        (Fault("lost", "PUT", ".sums"), DONE),
        (Fault("refused", "PUT", ".sums", at=503, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "POST", "uploadId", at=503), DONE),
        (Fault("refused", "POST", "uploadId", at=503, times=ALWAYS), ServiceUnavailable),
        (Fault("lost", "POST", "uploadId"), DONE),
        (Fault("lost", "POST", "uploadId", times=ALWAYS), DONE),
        (Fault("twice", "POST", "uploadId"), DONE),
        (Fault("refused", "HEAD", at=500), DONE),
        (Fault("refused", "HEAD", at=500, times=ALWAYS), ServiceUnavailable),
        (Fault("silent", "HEAD", times=ALWAYS), TimedOut),
        # Of its writer's failures the library does not tell which were silence.
        (Fault("silent", "POST", "uploadId", times=ALWAYS), ServiceUnavailable),
    ],
    ids=lambda value: f"{value.how} {value.method} {value.target}" if isinstance(value, Fault) else "",
)
def test_a_long_blob_is_there_or_is_not(
    network: Unreliable, open_s3: Callable[..., ObjectsBackend], on_s3: ObjectsBackend, fault: Fault,
    expected: type[VOSpaceError] | None,
) -> None:  # fmt: skip
    network.faults = [Fault(**vars(fault))]
    # A part of 16 MiB needs its time through a network of Python.
    writer = open_s3(network.url, 2).create()
    blobs = []

    def work() -> None:
        for at in range(0, len(LONG), 1 << 20):
            writer.write(LONG[at : at + (1 << 20)])
        blobs.append(writer.finish(True))

    assert outcome(work) is expected
    writer.abort()
    if expected is DONE:
        assert blobs[0].crc32 == zlib.crc32(LONG)
        assert get(on_s3, blobs[0].locator) == LONG
        on_s3.remove(blobs[0].locator)
    assert leftovers(on_s3) == []


def test_a_quota_that_is_reached_is_a_full_storage(s3: rgw.S3, tmp_path: Path) -> None:
    poor = s3.poor(1 << 20)
    (tmp_path / "key").write_text(f"AWS_ACCESS_KEY_ID={poor.access_key}\nAWS_SECRET_ACCESS_KEY={poor.secret_key}\n")
    config = StorageConfig(objects="s3://poor", endpoint=poor.endpoint, credentials_file="key")
    backend = connect(config, tmp_path)
    assert get(backend, put(backend, SHORT).locator) == SHORT
    for data in (bytes(2 << 20), LONG):
        writer = backend.create()
        writer.write(data)
        assert outcome(lambda: writer.finish(True)) is StorageFull  # noqa: B023
        writer.abort()
    assert len(leftovers(backend)) == 1


def test_a_blob_of_too_many_parts_is_refused(on_s3: ObjectsBackend) -> None:
    writer = on_s3.create()
    writer._sums.length = PARTS_MAX * PART_BYTES
    with pytest.raises(TooLarge):
        writer.write(b"x")
    writer.abort()
    assert leftovers(on_s3) == []


def test_nothing_is_ever_overwritten(on_s3: ObjectsBackend) -> None:
    for data in (b"first", LONG):
        blob = put(on_s3, data)
        writer = on_s3.create()
        writer.write(b"second" if data == b"first" else LONG[::-1])
        writer._locator = blob.locator
        with pytest.raises(DuplicateNode):
            writer.finish(True)
        writer.abort()
        assert get(on_s3, blob.locator) == data


# -- reading through a bad network -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault, expected",
    [
        (Fault("refused", "GET", at=503), DONE),
        (Fault("refused", "GET", at=503, times=ALWAYS), ServiceUnavailable),
        (Fault("refused", "GET", at=403, times=ALWAYS), ServiceUnavailable),
        (Fault("cut", "GET", at=0), DONE),
        (Fault("cut", "GET", at=200_000), DONE),
        (Fault("cut", "GET", at=200_000, times=3), DONE),
        (Fault("cut", "GET", at=10, times=ALWAYS), ServiceUnavailable),
        (Fault("wrong", "GET", at=0), DONE),
        (Fault("wrong", "GET", at=150_000), DONE),
        (Fault("wrong", "GET", at=0, times=ALWAYS), DataCorrupt),
        (Fault("lost", "GET"), DONE),
        (Fault("lost", "GET", times=ALWAYS), ServiceUnavailable),
        (Fault("silent", "GET"), DONE),
        (Fault("silent", "GET", times=ALWAYS), TimedOut),
        # The same of a long blob, and of its sums, which are read after its first answer.
        (Fault("cut", "GET", "m", at=200_000), DONE),
        (Fault("wrong", "GET", "m", at=150_000), DONE),
        (Fault("wrong", "GET", ".sums", at=5), DONE),
        (Fault("cut", "GET", ".sums", at=5), DONE),
        (Fault("refused", "GET", ".sums", at=404, times=ALWAYS), DataCorrupt),
        (Fault("wrong", "GET", ".sums", at=5, times=ALWAYS), DataCorrupt),
    ],
    ids=lambda value: f"{value.how} {value.target} {value.at}" if isinstance(value, Fault) else "",
)
def test_what_is_read_is_what_was_written(
    network: Unreliable, behind: ObjectsBackend, on_s3: ObjectsBackend, fault: Fault,
    expected: type[VOSpaceError] | None,
) -> None:  # fmt: skip
    data = LONG if fault.target else SHORT
    blob = put(on_s3, data)
    network.faults = [Fault(**vars(fault))]
    start, stop = 5, 299_000
    read = bytearray()

    def work() -> None:
        reader = behind.open(blob.locator, start, stop)
        try:
            for piece in reader.stream(start, stop):
                read.extend(piece)
        finally:
            reader.close()

    began = time.monotonic()
    assert outcome(work) is expected
    assert time.monotonic() - began < 10
    assert bytes(read) == data[start:stop][: len(read)], "a wrong byte was given out"
    assert expected is not DONE or len(read) == stop - start


def test_a_short_blob_is_one_request_and_a_range_too(
    network: Unreliable, behind: ObjectsBackend, on_s3: ObjectsBackend
) -> None:
    put(behind, SHORT)
    assert [method for method, _ in network.seen] == ["PUT"]
    network.seen.clear()
    blob, long = put(on_s3, SHORT), put(on_s3, LONG)
    reader = behind.open(blob.locator, 0, len(SHORT))
    assert b"".join(reader.stream(0, len(SHORT))) == SHORT
    assert len(network.seen) == 1
    # The sums of a long one are another, once.
    for expected in (3, 4):
        reader = behind.open(long.locator, 1 << 20, 16 << 20)
        assert b"".join(reader.stream(1 << 20, 16 << 20)) == LONG[1 << 20 : 16 << 20]
        assert len(network.seen) == expected


# -- what somebody did to the bucket ---------------------------------------------------------------------------------


def test_a_blob_that_was_replaced_or_cut_is_corrupt_data(on_s3: ObjectsBackend) -> None:
    import obstore

    for data in (SHORT, LONG):
        blob = put(on_s3, data)
        attributes = dict(obstore.get(on_s3._store, blob.locator).attributes)
        for other in (data[:-1], data + b"x", b"", data[: BLOCK_BYTES - 1] + b"?" + data[BLOCK_BYTES:]):
            if other == data:
                continue
            obstore.put(on_s3._store, blob.locator, other, attributes=attributes, use_multipart=False)
            with pytest.raises(DataCorrupt):
                get(on_s3, blob.locator)
        if len(data) <= PART_BYTES:
            obstore.put(on_s3._store, blob.locator, data)
            with pytest.raises(DataCorrupt):
                on_s3.open(blob.locator)


def test_sums_without_their_blob_are_collected(on_s3: ObjectsBackend) -> None:
    import obstore

    blob = put(on_s3, LONG)
    obstore.delete(on_s3._store, blob.locator)
    assert list(on_s3.locators(later())) == [blob.locator]
    with pytest.raises(DataCorrupt):
        on_s3.open(blob.locator)
    on_s3.remove(blob.locator)
    assert leftovers(on_s3) == []


def test_sweep_ends_the_uploads_of_the_dead(on_s3: ObjectsBackend) -> None:
    writer = on_s3.create()
    writer.write(LONG)
    del writer
    assert len(leftovers(on_s3)) == 1
    on_s3.sweep(time.time_ns() - 3600 * 10**9)
    assert len(leftovers(on_s3)) == 1
    on_s3.sweep(later())
    assert leftovers(on_s3) == []


def test_many_unfinished_uploads_come_page_by_page(on_s3: ObjectsBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    made = on_s3._uploads
    assert made is not None
    monkeypatch.setattr(uploads, "PAGE", 2)
    for number in range(5):
        made.request("POST", made._prefix + f"{number:032x}m", {"uploads": ""})
    made.request("POST", made._prefix + "somebody-else-s", {"uploads": ""})
    assert len(leftovers(on_s3)) == 5
    on_s3.sweep(later())
    assert leftovers(on_s3) == []


def test_what_others_keep_below_the_prefix_is_left_alone(on_s3: ObjectsBackend) -> None:
    import obstore

    obstore.put(on_s3._store, "README", b"mine")
    assert list(on_s3.locators(later())) == []


@pytest.mark.parametrize("locator", [*TRAVERSALS, NEVER_ISSUED + ".sums", NEVER_ISSUED + "mm"])
def test_what_is_no_locator_is_refused(on_s3: ObjectsBackend, locator: str) -> None:
    for call in (on_s3.open, on_s3.remove):
        with pytest.raises(DataCorrupt):
            call(locator)


def test_a_wrong_clock_is_not_taken_for_a_wrong_key() -> None:
    said = "Client error with status code: 403 Forbidden: <Error><Code>RequestTimeTooSkewed</Code></Error>"
    found = failure(PermissionError(said), "blob 7")
    assert isinstance(found, ServiceUnavailable) and "clock" in str(found) and "key" not in str(found)


# -- the start -------------------------------------------------------------------------------------------------------


def refusal(config: StorageConfig, base: Path) -> str:
    """What the daemon would say at its start."""
    with pytest.raises(QuietError) as caught:
        connect(config, base, 0.5).check("space-1")
    text = str(caught.value)
    assert "\n" not in text and rgw.SECRET_KEY not in text and "wrong-secret" not in text
    return text


def test_errors_at_the_start_name_cause_and_cure(s3: rgw.S3, tmp_path: Path, network: Unreliable) -> None:
    good = f"AWS_ACCESS_KEY_ID={s3.access_key}\nAWS_SECRET_ACCESS_KEY={s3.secret_key}\n"
    (tmp_path / "good").write_text(good)
    (tmp_path / "wrong").write_text(f"AWS_ACCESS_KEY_ID={s3.access_key}\nAWS_SECRET_ACCESS_KEY=wrong-secret\n")
    (tmp_path / "unknown").write_text(good + "AWS_SECRET = wrong-secret\n")
    (tmp_path / "broken").write_text("wrong-secret\n")

    def said(url: str = "s3://vosfs/p", endpoint: str = s3.endpoint, file: str = "good", **more: str) -> str:
        return refusal(StorageConfig(objects=url, endpoint=endpoint, credentials_file=file, **more), tmp_path)

    assert "bucket does not exist: make it" in said("s3://nobody/p")
    assert "key is refused (403 SignatureDoesNotMatch)" in said(file="wrong")
    assert "no answer from the object store: see [storage] endpoint" in said(endpoint="http://127.0.0.1:9")
    assert "unknown name" in said(file="unknown")
    assert "line 1 is not like NAME = value" in said(file="broken")
    assert "No such file" in said(file="absent")
    assert "is not like s3://" in said("s3:///p")
    assert "is not like s3://" in said("ftp://x/p")
    network.faults = [Fault("silent", times=ALWAYS)]
    assert "no answer" in said(endpoint=network.url)
    network.faults = [Fault("refused", "PUT", at=501, times=ALWAYS)]
    assert "answers 501" in said(endpoint=network.url)


def test_a_prefix_is_for_one_space(open_s3: Callable[..., ObjectsBackend]) -> None:
    open_s3().check("space-1")
    with pytest.raises(QuietError, match="the blobs of another space are there"):
        open_s3().check("space-2")
    open_s3().check("space-1")


def test_an_end_point_with_a_certificate_of_a_private_authority(s3: rgw.S3, tmp_path: Path) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    authority = issue(name, None, (x509.BasicConstraints(ca=True, path_length=None), True))
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway")])
    issue(name, authority, (address, False)).save(tmp_path / "gateway.pem")
    (tmp_path / "ca.pem").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key").write_text(f"AWS_ACCESS_KEY_ID={s3.access_key}\nAWS_SECRET_ACCESS_KEY={s3.secret_key}\n")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "gateway.pem")
    network = Unreliable(s3.endpoint, context)
    try:
        config = StorageConfig(objects="s3://vosfs/tls", endpoint=network.url, credentials_file="key")
        assert "no answer from the object store" in refusal(config, tmp_path)
        backend = connect(replace(config, endpoint_ca="ca.pem"), tmp_path, 2)
        backend.check("space-1")
        assert get(backend, put(backend, SHORT).locator) == SHORT
        backend.sweep(later())
        assert "endpoint_ca" in refusal(replace(config, endpoint_ca="absent.pem"), tmp_path)
    finally:
        network.close()


def test_nothing_shows_a_secret(on_s3: ObjectsBackend) -> None:
    shown = f"{on_s3!r} {on_s3} {on_s3._uploads!r} {on_s3._uploads._key!r} {on_s3._store!r}"
    assert rgw.SECRET_KEY not in shown
