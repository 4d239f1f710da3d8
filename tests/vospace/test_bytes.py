"""Byte end-points: what clients need of them beyond what the standard leaves open."""

import base64
import hashlib

import pytest

from tests.conftest import Daemon, eventually
from tests.server.support import ROOT, Raw, create, fetch, head, is_fault, store
from tests.vospace.support import PULL, PUSH, half_sent, node_at, push, synctrans, transfer

holds = pytest.mark.holds
DATA = bytes(range(256)) * 400


def digest(data: bytes) -> str:
    return "md5=" + base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def end_point(space: Daemon, path: str, direction: str) -> str:
    """URL of a negotiated end-point."""
    protocol = "httpget" if direction == PULL else "httpput"
    return synctrans(space, transfer(ROOT + path, direction, [protocol])).endpoint()


@pytest.fixture(params=["files", "end-point"])
def url(request: pytest.FixtureRequest, space: Daemon, folder: str) -> str:
    """Where DATA can be read."""
    store(space, f"{folder}/n%20%C3%A9", DATA, {"Content-Type": "text/x-it"})
    if request.param == "files":
        return f"{space.url}/files{folder}/n%20%C3%A9"
    return end_point(space, f"{folder}/n%20%C3%A9", PULL)


@holds("R263", "R266", "R272")
def test_put_answers_201_without_a_body(space: Daemon, folder: str) -> None:
    url = end_point(space, f"{folder}/n", PUSH)
    status, headers, body = space.request("PUT", url, DATA, auth=False)
    assert (status, body, headers["Digest"]) == (201, b"", digest(DATA))
    status, headers, body = space.request("PUT", f"/files{folder}/m", DATA)
    assert (status, body, headers["Digest"]) == (201, b"", digest(DATA))


@holds("R264", "R266", "R271", "R18")
def test_headers_of_a_get(space: Daemon, url: str) -> None:
    got, told = space.request("GET", url), space.request("HEAD", url)
    assert (got[0], got[2], told[0], told[2]) == (200, DATA, 200, b"")
    for headers in (got[1], told[1]):
        assert headers["Content-Length"] == str(len(DATA))
        assert headers["Content-Type"] == "text/x-it"
        assert headers["Last-Modified"].endswith(" GMT") and headers["ETag"].startswith('"')
        assert (headers["Accept-Ranges"], headers["Digest"]) == ("bytes", digest(DATA))
        assert "filename" in headers["Content-Disposition"] and "n%20%C3%A9" in headers["Content-Disposition"]
        assert "Content-Encoding" not in headers


@holds("R265")
@pytest.mark.parametrize(
    ("given", "start", "stop"), [("0-9", 0, 10), ("100-", 100, None), ("-5", -5, None), ("0-999999", 0, None)]
)
def test_ranges(space: Daemon, url: str, given: str, start: int, stop: int | None) -> None:
    status, headers, body = space.request("GET", url, headers={"Range": f"bytes={given}"})
    assert (status, body) == (206, DATA[start:stop])
    first = start % len(DATA)
    assert headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{len(DATA)}"
    assert headers["Content-Length"] == str(len(body))
    etag = headers["ETag"]
    both = {"Range": f"bytes={given}", "If-Range": etag}
    assert space.request("GET", url, headers=both)[0] == 206
    assert space.request("GET", url, headers={**both, "If-Range": '"other"'})[::2] == (200, DATA)
    status, headers, _ = space.request("GET", url, headers={"Range": f"bytes={len(DATA)}-"})
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")


@holds("R266")
def test_a_wrong_digest(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PUSH, ["httpput"]))
    url = job.endpoint()
    answer = space.request("PUT", url, DATA, {"Digest": digest(b"other")}, auth=False)
    assert answer[0] == 412 and fetch(space, f"{folder}/n") == b"old"
    # The client sends it again, up to three times.
    assert space.request("PUT", url, DATA, {"Digest": digest(DATA)}, auth=False)[0] == 201
    assert (fetch(space, f"{folder}/n"), job.phase()) == (DATA, "COMPLETED")


@holds("R267", "R187")
@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_cut_upload(space: Daemon, folder: str, how: str) -> None:
    store(space, f"{folder}/n", b"old")
    for name in ("n", "new"):
        job = synctrans(space, transfer(f"{ROOT}{folder}/{name}", PUSH, ["httpput"]))
        with half_sent(space, job.endpoint(), DATA) as raw:
            if how == "reset":
                raw.reset()
            else:
                raw.sock.shutdown(1)
                assert b" 201 " not in raw.rest().partition(b"\r\n")[0]
        job.reaches("ERROR")
        assert job.get("/error")[0] == 200
    assert fetch(space, f"{folder}/n") == b"old"
    assert space.request("GET", f"/nodes{folder}/new")[0] == 404


@holds("R268")
def test_chunks_and_continue(space: Daemon, folder: str) -> None:
    path = end_point(space, f"{folder}/n", PUSH).removeprefix(space.url)
    with Raw(space) as raw:
        raw.send(head(space, "PUT", path, "Transfer-Encoding: chunked", "Expect: 100-continue", auth=False))
        assert raw.head().status == 100
        for at in range(0, len(DATA), 30_000):
            piece = DATA[at : at + 30_000]
            raw.send(b"%x\r\n%s\r\n" % (len(piece), piece))
        raw.send(b"0\r\n\r\n")
        assert raw.answer().status == 201
    assert fetch(space, f"{folder}/n") == DATA


@holds("R269", "R196")
def test_an_end_point_is_bound(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    store(space, f"{folder}/m", b"other")
    url = end_point(space, f"{folder}/n", PULL)
    # The name at the end is for people: it selects nothing.
    assert space.request("GET", url[:-1] + "m", auth=False)[2] != b"other"
    token = url.removeprefix(space.url + "/data/").partition("/")[0]
    for forged in (token[:-2] + "AA", token[2:], "x"):
        assert space.request("GET", f"/data/{forged}/n", auth=False)[0] in (403, 404)
    for method in ("POST", "DELETE"):
        assert space.request(method, url, b"x" if method == "POST" else None, auth=False)[0] in (400, 403, 405)


@holds("R270", "R323")
def test_an_empty_upload(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"old")
    job, answer = push(space, f"{folder}/n", b"")
    assert (answer[0], job.phase()) == (201, "COMPLETED")
    for url in (f"/files{folder}/n", end_point(space, f"{folder}/n", PULL)):
        status, headers, body = space.request("GET", url)
        assert (status, headers["Content-Length"], body) == (200, "0", b"")
    assert node_at(space, f"{folder}/n").properties["length"] == "0"


@holds("R271", "R320", "R99")
def test_files_are_bytes_by_name(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", DATA)
    assert fetch(space, f"{folder}/n") == DATA
    assert is_fault(space.request("GET", f"/files{folder}/none"), 404, "NodeNotFound")
    assert is_fault(space.request("GET", f"/files{folder}"), 400, "InvalidArgument")
    create(space, f"{folder}/l", "LinkNode", target=f"{ROOT}{folder}/n")
    assert fetch(space, f"{folder}/l") == DATA


@holds("R234", "R267")
def test_a_slow_reader_sees_one_version(space: Daemon, folder: str) -> None:
    old, new = b"o" * (4 << 20), b"n" * (4 << 20)
    store(space, f"{folder}/n", old)
    path = end_point(space, f"{folder}/n", PULL).removeprefix(space.url)
    with Raw(space, receive_buffer=4096) as raw:
        raw.send(head(space, "GET", path, "Connection: close", auth=False))
        answer = raw.head()
        store(space, f"{folder}/n", new)
        assert raw.rest() == old and int(answer.headers["content-length"]) == len(old)
    eventually("the new bytes", lambda: fetch(space, f"{folder}/n") == new)
