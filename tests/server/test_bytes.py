"""Bytes go in whole or not at all and come out as they went in: ranges, validators, digests, cut and slow bodies."""

import base64
import concurrent.futures
import hashlib
import http.client
import resource
from collections.abc import Callable, Iterator
from urllib.parse import quote

import msgspec
import pytest

from tests.conftest import Daemon, start_daemon
from tests.server.support import (
    ROOT,
    Raw,
    ask,
    ask_raw,
    assert_sound,
    create,
    fetch,
    head,
    is_fault,
    node,
    open_files,
    stays_sound,
    store,
    upload,
)
from tests.storage import kept
from vosfs.metadata import messages as m
from vosfs.metadata.node import Attributes, Extent, NewNode, Node
from vosfs.wire import STALL_S

MIB = 1 << 20
QUIET_S = m.WAIT_S_MAX - 3
SIZES = [100, 100_000]
"""One content inline, one in a blob."""


def content(size: int, seed: int = 1) -> bytes:
    return hashlib.shake_128(seed.to_bytes(4, "big")).digest(size)


def digest(data: bytes) -> str:
    return "md5=" + base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


# -- out -----------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R265")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("given", "start", "stop"),
    [("0-0", 0, 1), ("0-9", 0, 10), ("5-", 5, None), ("-7", -7, None), ("50-999999", 50, None), ("-999999", 0, None),
     ("99-99", 99, 100)],
)  # fmt: skip
def test_a_range(space: Daemon, folder: str, size: int, given: str, start: int, stop: int | None) -> None:
    data = content(size)
    store(space, f"{folder}/f", data)
    status, headers, body = space.request("GET", f"/files{folder}/f", headers={"Range": f"bytes={given}"})
    assert (status, body) == (206, data[start:stop])
    first = start % size
    assert headers["Content-Range"] == f"bytes {first}-{first + len(body) - 1}/{size}"


@pytest.mark.holds("R265")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "given", ["bytes=5-2", "bytes=", "bytes=-", "bytes=a-b", "lines=0-1", "bytes=0-1,3-4", "bytes=--1"]
)
def test_an_odd_range_gets_everything(space: Daemon, folder: str, size: int, given: str) -> None:
    store(space, f"{folder}/f", content(size))
    status, _, body = space.request("GET", f"/files{folder}/f", headers={"Range": given})
    assert (status, body) == (200, content(size))


@pytest.mark.holds("R265")
@pytest.mark.parametrize("size", [0, *SIZES])
@pytest.mark.parametrize("given", ["{size}-", "{size}-{size}", "999999999-", "-0"])
def test_a_range_outside_is_416(space: Daemon, folder: str, size: int, given: str) -> None:
    store(space, f"{folder}/f", content(size))
    answer = space.request("GET", f"/files{folder}/f", headers={"Range": "bytes=" + given.format(size=size)})
    assert (answer[0], answer[1]["Content-Range"]) == (416, f"bytes */{size}")


@pytest.mark.holds("R264", "R265", "R266")
@pytest.mark.parametrize("size", [0, *SIZES])
def test_headers_and_validators(space: Daemon, folder: str, size: int) -> None:
    data = content(size)
    store(space, f"{folder}/f", data, {"Content-Type": "text/x-it"})
    status, headers, body = space.request("GET", f"/files{folder}/f")
    assert (status, body, headers["Content-Length"]) == (200, data, str(size))
    assert (headers["Content-Type"], headers["Accept-Ranges"]) == ("text/x-it", "bytes")
    assert headers["Content-Disposition"].endswith("f") and headers["Last-Modified"].endswith("GMT")
    assert size == 0 or headers["Digest"] == digest(data)
    tag = headers["ETag"]
    with Raw(space) as raw:
        raw.send(head(space, "HEAD", f"/files{folder}/f") + head(space, "GET", f"/files{folder}/f"))
        told = raw.answer(head_only=True)
        assert (told.status, told.headers["content-length"], told.headers["etag"]) == (200, str(size), tag)
        assert raw.answer().body == data

    def conditional(**given: str) -> tuple[int, bytes]:
        status, _, body = space.request(
            "GET", f"/files{folder}/f", headers={name.replace("_", "-"): value for name, value in given.items()}
        )
        return status, body

    assert conditional(If_None_Match=tag) == (304, b"")
    assert conditional(If_None_Match="*") == (304, b"")
    assert conditional(If_None_Match='"other"') == (200, data)
    assert conditional(If_None_Match=f'"other", {tag}') == (304, b"")
    assert conditional(If_None_Match=f"W/{tag}") == (304, b"")
    if size:
        assert conditional(If_Range=tag, Range="bytes=0-4") == (206, data[:5])
        assert conditional(If_Range='"other"', Range="bytes=0-4") == (200, data)
    store(space, f"{folder}/f", data)
    assert space.request("GET", f"/files{folder}/f")[1]["ETag"] != tag
    assert conditional(If_None_Match=tag) == (200, data)


@pytest.mark.holds("R320", "R72")
def test_what_holds_no_bytes(space: Daemon, folder: str) -> None:
    create(space, f"{folder}/l", "LinkNode", target="http://example.org/")
    create(space, f"{folder}/empty")
    for method, body in (("GET", None), ("PUT", b"x")):
        for path in (folder, ""):
            assert is_fault(space.request(method, "/files" + path, body), 400, "InvalidArgument")
        assert is_fault(space.request(method, f"/files{folder}/l", body), 400, "InvalidURI")
    assert is_fault(space.request("GET", f"/files{folder}/none"), 404, "NodeNotFound")
    assert is_fault(space.request("PUT", f"/files{folder}/none/n", b""), 404, "ContainerNotFound")
    assert is_fault(space.request("PUT", f"/files{folder}/l/n", b""), 400, "InvalidURI")
    assert fetch(space, f"{folder}/empty") == b""


# -- in ------------------------------------------------------------------------------------------------------------


@pytest.mark.holds("R266")
@pytest.mark.parametrize("size", [0, *SIZES])
@pytest.mark.parametrize("name", ["Digest", "Content-MD5"])
def test_a_digest_is_checked(space: Daemon, folder: str, size: int, name: str) -> None:
    data = content(size)
    right = digest(data) if name == "Digest" else digest(data)[4:]
    wrong = digest(b"other") if name == "Digest" else digest(b"other")[4:]
    store(space, f"{folder}/f", b"old")
    before = kept(space.directory)
    assert is_fault(space.request("PUT", f"/files{folder}/f", data, {name: wrong}), 412, "PreconditionFailed")
    assert fetch(space, f"{folder}/f") == b"old"
    assert kept(space.directory) == before
    assert space.request("PUT", f"/files{folder}/new", data, {name: wrong})[0] == 412
    assert space.request("GET", f"/nodes{folder}/new")[0] == 404
    status, headers, _ = space.request("PUT", f"/files{folder}/f", data, {name: right})
    assert (status, headers["Digest"]) == (201, digest(data))
    assert fetch(space, f"{folder}/f") == data
    assert node(space, f"{folder}/f").properties["MD5"] == hashlib.md5(data, usedforsecurity=False).hexdigest()


@pytest.mark.holds("R267")
@pytest.mark.parametrize("length", [1000, 100_000, 10 * MIB])
@pytest.mark.parametrize("how", ["close", "reset", "chunked"])
def test_a_cut_body_changes_nothing(space: Daemon, folder: str, length: int, how: str) -> None:
    store(space, f"{folder}/f", b"old")
    for path in (f"{folder}/f", f"{folder}/new"):
        with Raw(space) as raw:
            framing = "Transfer-Encoding: chunked" if how == "chunked" else f"Content-Length: {length}"
            raw.send(head(space, "PUT", f"/files{path}", framing))
            if how == "chunked":
                raw.send(b"%x\r\n%s" % (length, bytes(length // 2)))
            else:
                raw.send(bytes(length // 2))
            if how == "reset":
                raw.reset()
            else:
                raw.sock.shutdown(1)
                assert b" 201 " not in raw.rest()
    assert fetch(space, f"{folder}/f") == b"old"
    assert [c.uri for c in node(space, folder).children] == [f"{ROOT}{folder}/f"]


@pytest.mark.holds("R268")
@pytest.mark.parametrize("size", [0, 1, *SIZES, 3 * MIB])
def test_chunked(space: Daemon, folder: str, size: int) -> None:
    data = content(size)
    with Raw(space) as raw:
        raw.send(head(space, "PUT", f"/files{folder}/f", "Transfer-Encoding: chunked"))
        at, step = 0, 7
        while at < size:
            piece = data[at : at + step]
            raw.send(b"%X\r\n%s\r\n" % (len(piece), piece))
            at, step = at + step, step * 3
        raw.send(b"0\r\nTrailer: x\r\n\r\n" + head(space, "GET", f"/files{folder}/f"))
        answer = raw.answer()
        assert (answer.status, answer.headers["digest"]) == (201, digest(data))
        assert raw.answer().body == data


@pytest.mark.holds("R268")
@pytest.mark.parametrize("size", SIZES)
def test_expect_100_continue(space: Daemon, folder: str, size: int) -> None:
    with Raw(space) as raw:
        raw.send(head(space, "PUT", f"/files{folder}/f", f"Content-Length: {size}", "Expect: 100-continue"))
        assert raw.head().status == 100
        raw.send(content(size))
        assert raw.answer().status == 201
        raw.send(head(space, "GET", f"/nodes{folder}", "Expect: 100-continue"))
        assert raw.answer().status == 200
    with Raw(space) as raw:
        raw.send(head(space, "PUT", f"/files{folder}/no/f", f"Content-Length: {size}", "Expect: 100-continue"))
        assert raw.answer().status == 404


def test_fifty_mebibytes(space: Daemon, folder: str) -> None:
    data = content(50 * MIB)
    with stays_sound(space):
        status, headers, _ = space.request("PUT", f"/files{folder}/f", data)
        assert (status, headers["Digest"]) == (201, digest(data))
        status, headers, body = space.request("GET", f"/files{folder}/f")
        assert body == data and headers["Digest"] == digest(data)


@pytest.mark.holds("R234")
def test_a_slow_reader_gets_all_of_the_old_content(space: Daemon, folder: str) -> None:
    old, new = content(8 * MIB, 1), content(8 * MIB, 2)
    store(space, f"{folder}/f", old)
    with Raw(space, receive_buffer=4096) as raw:
        raw.send(head(space, "GET", f"/files{folder}/f"))
        answer = raw.head()
        store(space, f"{folder}/f", new)
        assert fetch(space, f"{folder}/f") == new
        assert raw._take(int(answer.headers["content-length"])) == old


@pytest.mark.holds("R234", "R236")
def test_readers_see_one_content_or_the_other(space: Daemon, folder: str) -> None:
    versions = [content(60_000 + 7000 * n, n) for n in range(4)]
    store(space, f"{folder}/f", versions[0])
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        writing = [pool.submit(store, space, f"{folder}/f", versions[n % 4]) for n in range(24)]
        reading = [pool.submit(fetch, space, f"{folder}/f") for _ in range(40)]
        assert {reader.result() in versions for reader in reading} == {True}
        assert all(writer.result() is None for writer in writing)


def test_a_new_file_is_never_seen_empty(space: Daemon, folder: str) -> None:
    # R234: whole old or whole new; a new node appears with its bytes.
    data = content(40_000)
    top = ask(space, m.Lookup(1, folder[1:].encode())).node
    seen = set()
    for number in range(30):
        since = ask(space, m.Hello()).cursor
        store(space, f"{folder}/f{number}", data)
        page = ask(space, m.Changes(since, 0.0))
        # Made and filled in one transaction: one row, not a creation and then a commit.
        seen.add(sum(1 for change in page.changes if change.parent in (0, top.id)))
    assert seen == {1}


# -- refusals that do not wait for the body ----------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/files{folder}/none/f", "/files/", "/nodes{folder}/f", "/gateway", "/nonsense"])
def test_a_refusal_of_a_long_body_is_heard(space: Daemon, folder: str, path: str) -> None:
    # A close with unread bytes sends RST, which takes the answer with it: clients then see a reset, not a fault.
    for _ in range(3):
        client = http.client.HTTPConnection("127.0.0.1", space.port, timeout=20)
        try:
            client.request(
                "PUT" if path != "/gateway" else "POST", "/vos" + path.format(folder=folder), bytes(20 * MIB),
                {"Authorization": f"Bearer {space.token}"},
            )  # fmt: skip
            with client.getresponse() as answer:
                assert 400 <= answer.status < 500
                assert answer.read()
        finally:
            client.close()


@pytest.mark.parametrize("path", [".null", "n/.null"])
def test_nobody_fills_the_storage_through_null(space: Daemon, folder: str, path: str) -> None:
    before = kept(space.directory)
    answer = space.request("PUT", f"/files{folder}/{path}", bytes(MIB), auth=False)
    assert answer[0] in (401, 403, 404), answer
    assert space.request("PUT", f"/files{folder}/.null", bytes(MIB))[0] == 201
    assert kept(space.directory) == before


@pytest.mark.directory
def test_a_failed_write_ends_the_connection(make_daemon: Callable[..., Daemon]) -> None:
    # The body's rest must never be read as the next request.
    daemon = make_daemon()
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (4 * MIB, 4 * MIB))
    smuggled = b"GET /vos/availability HTTP/1.1\r\nHost: x\r\nPad: 12345678901234\r\n\r\n"
    assert len(smuggled) == 64
    length = 8 * MIB
    with Raw(daemon, timeout_s=5) as raw:
        raw.send(head(daemon, "PUT", "/files/f", f"Content-Length: {length}", "Expect: 100-continue"))
        assert raw.head().status == 100
        # Whole requests at every multiple of 64 bytes: wherever the daemon stops reading, the next one looks valid.
        raw.send_anyway(smuggled * (length // len(smuggled)))
        assert 500 <= raw.head().status < 600
        assert b"upSince" not in raw.rest()
    assert daemon.process.poll() is None
    assert daemon.request("GET", "/files/f")[0] == 404


def test_a_reader_that_leaves_costs_no_descriptor(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/f", content(MIB))
    for _ in range(30):
        for lines in (("Content-Length: 5",), ()):
            with Raw(space, receive_buffer=4096) as raw:
                raw.send(head(space, "GET", f"/files{folder}/f", *lines))
                if not lines:
                    assert raw.head().status == 200
                raw.reset()
    store(space, f"{folder}/g", b"")
    # The storage keeps one descriptor of a blob for its next range; a leak would show as more of the same.
    held = [name for name in open_files(space) if "/storage/blobs/" in name]
    assert len(held) - len(set(held)) < 5, held


def test_stalled_bodies_leave_room_for_others(space: Daemon, folder: str) -> None:
    data = content(MIB)
    store(space, f"{folder}/f", data)
    stalled = []
    try:
        for _ in range(45):
            raw = Raw(space)
            raw.send(head(space, "PUT", f"/files{folder}/s", "Content-Length: 1000000") + b"x")
            stalled.append(raw)
        for _ in range(3):
            with Raw(space, timeout_s=STALL_S / 3) as other:
                other.send(head(space, "GET", f"/files{folder}/f"))
                assert other.answer().body == data
    finally:
        for raw in stalled:
            raw.reset()


def test_stalled_readers_leave_room_for_others(space: Daemon, folder: str) -> None:
    data = content(12 * MIB)
    store(space, f"{folder}/f", data)
    stalled = []
    try:
        for _ in range(45):
            raw = Raw(space, receive_buffer=4096)
            raw.send(head(space, "GET", f"/files{folder}/f"))
            stalled.append(raw)
        with Raw(space, timeout_s=STALL_S / 3) as other:
            other.send(head(space, "PUT", f"/files{folder}/g", "Content-Length: 100000") + data[:100_000])
            assert other.answer().status == 201
    finally:
        for raw in stalled:
            raw.reset()


# -- blobs and the gateway's commits ------------------------------------------------------------------------------


def _data_node(space: Daemon, folder: str, name: bytes) -> Node:
    top = ask(space, m.Lookup(1, folder[1:].encode())).node
    made = ask(space, m.Create(top.id, name, NewNode("data")))
    assert isinstance(made, Node)
    return made


def test_blobs_are_committed_and_leased(space: Daemon, folder: str) -> None:
    made = _data_node(space, folder, b"f")
    stored = upload(space, content(100_000))
    done = ask(space, m.Commit(made.id, 1, 100_010, [Extent(10, 100_010, stored.receipt)], None, True))
    assert done.node.version == 2
    assert fetch(space, f"{folder}/f") == bytes(10) + content(100_000)
    (extent,) = done.extents
    status, _, body = space.request("GET", f"/blobs/{extent.locator}", headers={"Range": "bytes=5-9"}, auth=False)
    assert (status, body) == (206, content(100_000)[5:10])
    assert space.request("GET", f"/blobs/{extent.locator}x", auth=False)[0] == 403
    stale = ask(space, m.Commit(made.id, 1, 1, [Extent(0, 1, data=b"x")], None, False))
    assert stale.error == "Stale"
    for bad in (
        Extent(0, 100_001, stored.receipt), Extent(0, 10, stored.receipt, 99_999), Extent(0, 5, stored.receipt, -1),
        Extent(5, 5, data=b""), Extent(-1, 2, data=b"abc"), Extent(0, 5, data=b"abc"), Extent(0, 5, extent.locator),
        Extent(0, 5, "a" * 32), Extent(0, 5, stored.receipt, data=b"abcde"), Extent(0, 1 << 61),
    ):  # fmt: skip
        refused = ask(space, m.Commit(made.id, None, 100, [bad], None, False))
        assert isinstance(refused, m.Failure), bad
    assert fetch(space, f"{folder}/f") == bytes(10) + content(100_000)


def test_a_durable_commit_on_two_processes(make_daemon: Callable[..., Daemon], database: str) -> None:
    storage = make_daemon("storage", "--dsn", database, "--role", "storage")
    meta = make_daemon("metadata", "--dsn", database, "--role", "metadata", "--storage-url", storage.url)
    made = ask(meta, m.Create(1, b"f", NewNode("data")))
    assert ask(meta, m.Hello()).data_url == storage.url
    status, _, body = storage.request("PUT", "/blobs", content(100_000))
    receipt = msgspec.msgpack.decode(body, type=m.Stored).receipt
    done = ask(meta, m.Commit(made.id, 1, 100_000, [Extent(0, 100_000, receipt)], None, True))
    assert not isinstance(done, m.Failure), done
    assert ask(meta, m.Sync()) is None
    assert storage.request("GET", f"/blobs/{done.extents[0].locator}")[2] == content(100_000)


def test_a_sparse_file_of_many_runs_stays_sparse(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (64 * MIB, 64 * MIB))
    made = ask(daemon, m.Create(1, b"f", NewNode("data")))
    length = 1 << 40
    step = length // 600
    for first in (0, 300):
        changes = [Extent(n * step, n * step + 4, data=b"%04d" % n) for n in range(first, first + 300)]
        done = ask(daemon, m.Commit(made.id, None, length, changes, None, False))
        assert not isinstance(done, m.Failure), done
    for n in (0, 1, 299, 599):
        wanted = {"Range": f"bytes={n * step}-{n * step + 3}"}
        assert daemon.request("GET", "/files/f", headers=wanted)[2] == b"%04d" % n
    assert_sound(daemon)


def test_only_a_link_gets_a_target(space: Daemon, folder: str) -> None:
    made = _data_node(space, folder, b"f")
    store(space, f"{folder}/f", content(5000))
    answer = ask(space, m.SetAttributes(made.id, Attributes(target=b"short")))
    assert isinstance(answer, m.Failure)
    assert fetch(space, f"{folder}/f") == content(5000)


@pytest.fixture(scope="module", autouse=True)
def quiet_poll(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Raw]:
    """A long poll of a space where nothing happens, under way while the other tests run."""
    quiet = start_daemon(tmp_path_factory.mktemp("quiet") / "space")
    try:
        body = msgspec.msgpack.encode(m.Changes(ask(quiet, m.Hello()).cursor, QUIET_S))
        with Raw(quiet, timeout_s=QUIET_S + 10) as raw:
            raw.send(head(quiet, "POST", "/gateway", f"Content-Length: {len(body)}") + body)
            yield raw
    finally:
        quiet.stop()


def test_a_long_poll_hears_of_a_change(space: Daemon, folder: str) -> None:
    since = ask(space, m.Hello()).cursor
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask, space, m.Changes(since, m.WAIT_S_MAX))
        store(space, f"{folder}/{quote('é')}", b"x")
        page = waiting.result(10)
    assert "é".encode() in [change.name for change in page.changes]


def test_gateway_and_files_show_one_content(space: Daemon, folder: str) -> None:
    made = _data_node(space, folder, b"f")
    store(space, f"{folder}/f", content(100))
    found = ask(space, m.Open(made.id))
    assert found.extents == [Extent(0, 100, data=content(100))]
    assert ask_raw(space, msgspec.msgpack.encode(m.Commit(made.id, None, 50, [], None, False)))[0] == 200
    assert fetch(space, f"{folder}/f") == content(50 + 50)[:50]


def test_a_long_poll_outlasts_its_wait(quiet_poll: Raw) -> None:
    # Mounts wait WAIT_S_MAX for a change; only an answer tells them that nothing happened.
    answer = quiet_poll.answer()
    assert answer.status == 200
    assert msgspec.msgpack.decode(answer.body, type=m.ChangePage).changes == []


def test_many_appends_do_not_pile_up_in_the_metadata(space: Daemon, folder: str) -> None:
    """Each commit answers with the whole list: without a limit a thousand appends would send 50 MB."""
    top = ask(space, m.Lookup(1, folder[1:].encode())).node
    made = ask(space, m.Create(top.id, b"f", NewNode("data")))
    data = content(100_000)
    for at in range(0, len(data), 1000):
        change = Extent(at, at + 1000, data=data[at : at + 1000])
        done = ask(space, m.Commit(made.id, None, at + 1000, [change], None, False))
        assert sum(len(e.data) for e in done.extents) <= 33_000
    assert 1 < len(done.extents) < 20
    assert fetch(space, f"{folder}/f") == data
