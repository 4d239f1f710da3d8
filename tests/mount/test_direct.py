"""``redirect = true``: HTTP clients are sent to the store, mounts read from it, and nobody gets more than the content."""

import hashlib
import os
import secrets
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Daemon, eventually, unmount
from tests.services import rgw
from tests.services.unreliable import ALWAYS, Fault, Unreliable

MIB = 1 << 20
BODY = os.urandom(24 * MIB + 5)
SIGNED = "X-Amz-Signature="


@pytest.fixture
def options(s3: rgw.S3, network: Unreliable, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a daemon with an empty prefix."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return ["--objects", f"s3://{rgw.BUCKET}/{secrets.token_hex(8)}", "--objects-endpoint", network.url, "--redirect"]


@pytest.fixture
def space(make_daemon: Callable[..., Daemon], options: list[str]) -> Daemon:
    return make_daemon("space", *options)


def elsewhere(answer: tuple[int, dict[str, str], bytes]) -> str:
    """Where an answer sends its client."""
    status, headers, body = answer
    assert (status, body) == (307, b"")
    assert headers["Cache-Control"] == "no-store"
    return headers["Location"]


def read(url: str, **headers: str) -> bytes:
    """What a stranger gets there."""
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as got:
        return bytes(got.read())


def signed_reads(network: Unreliable) -> list[str]:
    return [target for method, target in network.seen if method == "GET" and SIGNED in target]


# -- HTTP ------------------------------------------------------------------------------------------------------------


def test_whole_objects_are_fetched_from_the_store(space: Daemon) -> None:
    for name, body in (("short", BODY[: 3 * MIB]), ("long", BODY)):
        assert space.request("PUT", f"/files/{name}", body)[0] == 201
        answer = space.request("GET", f"/files/{name}")
        # Its life is short.
        assert "X-Amz-Expires=300&" in answer[1]["Location"]
        assert read(elsewhere(answer)) == body
        digest = answer[1].get("Digest")
        assert digest == space.request("GET", f"/files/{name}", headers={"If-Range": '"x"'})[1].get("Digest")
        url = elsewhere(space.request("GET", f"/files/{name}", headers={"Range": "bytes=7-99"}))
        assert read(url, Range="bytes=7-99") == body[7:100]
        url = elsewhere(space.request("HEAD", f"/files/{name}"))
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as got:
            assert int(got.headers["Content-Length"]) == len(body)


def test_negotiated_end_points_lead_to_the_store(space: Daemon) -> None:
    assert space.request("PUT", "/files/f", BODY)[0] == 201
    query = (
        "TARGET=vos://vosfs.local~vospace/f&DIRECTION=pullFromVoSpace&PROTOCOL=ivo://ivoa.net/vospace/core%23httpget"
    )
    # The end-point is the daemon's own: it outlives signed URLs, which are kept in no job.
    document = space.request("GET", f"/synctrans?{query}")[2].decode()
    assert SIGNED not in document
    status, headers, _ = space.request("GET", f"/synctrans?{query}&REQUEST=redirect")
    assert status == 303 and headers["Location"].startswith(space.url)
    assert read(elsewhere(space.request("GET", headers["Location"], auth=False))) == BODY


def test_what_is_not_one_whole_object_comes_from_the_daemon(space: Daemon, make_mount: Callable[..., Path]) -> None:
    point = make_mount(space)
    expected = {"empty": b"", "inline": BODY[:900], "holes": BODY[:MIB] + bytes(MIB), "cut": BODY[: 2 * MIB]}
    (point / "empty").touch()
    (point / "inline").write_bytes(expected["inline"])
    (point / "holes").write_bytes(BODY[:MIB])
    os.truncate(point / "holes", 2 * MIB)
    assert space.request("PUT", "/files/cut", BODY)[0] == 201
    # An object of 24 MiB of which the content is the first two: the rest is nobody's any more.
    os.truncate(point / "cut", 2 * MIB)
    assert space.request("PUT", "/files/patched", BODY)[0] == 201
    with open(point / "patched", "r+b") as stream:
        stream.seek(MIB)
        stream.write(b"patched")
    expected["patched"] = BODY[:MIB] + b"patched" + BODY[MIB + 7 :]
    unmount(point)
    for name, body in expected.items():
        status, _, got = space.request("GET", f"/files/{name}")
        assert (status, got == body) == (200, True), name


def test_rights_and_conditions_are_judged_first(space: Daemon) -> None:
    assert space.request("PUT", "/files/f", BODY)[0] == 201
    assert space.request("GET", "/files/f", auth=False)[0] in (401, 403)
    tag = space.request("GET", "/files/f")[1]["ETag"]
    assert space.request("GET", "/files/f", headers={"If-None-Match": tag})[0] == 304
    assert space.request("GET", "/files/f", headers={"If-None-Match": '"other"'})[2] == BODY
    status, _, got = space.request("GET", "/files/f", headers={"If-Range": tag, "Range": "bytes=0-9"})
    assert (status, got) == (206, BODY[:10])


def test_nobody_is_sent_anywhere_if_that_is_not_wanted(
    make_daemon: Callable[..., Daemon], make_mount: Callable[..., Path], options: list[str], network: Unreliable
) -> None:
    space = make_daemon("space", *options[:-1], "--no-direct")
    assert space.request("PUT", "/files/f", BODY)[0] == 201
    assert space.request("GET", "/files/f")[2] == BODY
    assert (make_mount(space) / "f").read_bytes() == BODY
    assert signed_reads(network) == []


# -- mounts ----------------------------------------------------------------------------------------------------------


def words_of(process_names: tuple[str, ...]) -> str:
    """The command lines of what runs, and their environments are nobody's business."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if any(name.encode() in line for name in process_names):
            found.append(line.decode(errors="replace"))
    return "\n".join(found)


def test_a_mount_reads_from_the_store_and_tells_nobody(
    space: Daemon, make_mount: Callable[..., Path], network: Unreliable, tmp_path: Path
) -> None:
    assert space.request("PUT", "/files/f", BODY)[0] == 201
    point = make_mount(space)
    network.faults = [
        Fault("refused", "GET", SIGNED, at=403),
        Fault("wrong", "GET", SIGNED, at=200_000),
        Fault("cut", "GET", SIGNED, at=300_000),
    ]
    assert hashlib.sha256((point / "f").read_bytes()).digest() == hashlib.sha256(BODY).digest()
    # The daemon serves until the store was reached: on a busy machine that may be all of the file.
    eventually("the store is tried", lambda: bool(signed_reads(network)))
    status = os.getxattr(point, "user.vosfs.status").decode()
    shown = words_of(("vosfs",)) + status
    unmount(point)
    space.request("GET", "/files/f")
    assert space.stop() == 0
    shown += "".join(path.read_text() for path in [*tmp_path.glob("*.log"), *tmp_path.glob("*-cache/*.log")])
    assert "space" in shown
    for secret in (SIGNED, "Signature", rgw.SECRET_KEY, rgw.ACCESS_KEY):
        assert secret not in shown, secret
    # What the signatures were, wherever else they may have been written to.
    for target in signed_reads(network):
        signature = urlsplit(target).query.rpartition("=")[2]
        assert signature not in shown
        assert signature.encode() not in (space.directory / "vosfs.db").read_bytes()


@pytest.mark.parametrize("how", ["refused", "lost"])
def test_a_mount_that_does_not_reach_the_store_reads_through_the_daemon(
    space: Daemon, make_mount: Callable[..., Path], network: Unreliable, how: str
) -> None:
    assert space.request("PUT", "/files/f", BODY)[0] == 201
    point = make_mount(space)
    network.faults = [Fault(how, "GET", SIGNED, at=403, times=ALWAYS)]
    assert (point / "f").read_bytes() == BODY
    eventually("the store is tried", lambda: bool(signed_reads(network)))


def test_a_plain_mount_follows_to_the_store(
    space: Daemon, make_mount: Callable[..., Path], network: Unreliable
) -> None:
    assert space.request("PUT", "/files/f", BODY)[0] == 201
    assert (make_mount(space, "mnt", "plain") / "f").read_bytes() == BODY
    assert signed_reads(network)


def test_end_points_that_fail_are_not_logged_whole(space: Daemon, network: Unreliable, tmp_path: Path) -> None:
    """Who reads the log must not be able to read the file."""
    assert space.request("PUT", "/files/f", BODY)[0] == 201
    query = (
        "TARGET=vos://vosfs.local~vospace/f&DIRECTION=pullFromVoSpace&PROTOCOL=ivo://ivoa.net/vospace/core%23httpget"
    )
    url = space.request("GET", f"/synctrans?{query}&REQUEST=redirect")[1]["Location"]
    network.faults = [Fault("refused", at=503, times=ALWAYS)]
    assert space.request("GET", url, auth=False)[0] == 503
    space.stop()
    log = (tmp_path / "space.log").read_text()
    token = url.partition("/data/")[2].partition("/")[0]
    assert f"/data/{token[:8]}..." in log and token[8:24] not in log
