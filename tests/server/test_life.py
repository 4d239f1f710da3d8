"""The daemon starts, ends, restarts and is administered as promised, and keeps what it was given."""

import concurrent.futures
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import psycopg
import pytest

from tests.conftest import BIN, Daemon, free_port
from tests.server.support import (
    Raw,
    ask,
    assert_sound,
    create,
    fetch,
    head,
    is_fault,
    make_user,
    node,
    store,
    update,
    upload,
    vosfsd,
    where,
)
from vosfs.metadata import messages as m
from vosfs.metadata.node import NewNode

MIB = 1 << 20
END_S = 5


def one_line(done: "subprocess.CompletedProcess[str]") -> bool:
    """Whether a command failed with one line and no traceback."""
    assert done.returncode > 0, done
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith("vosfsd: ") and done.stderr.count("\n") == 1, done.stderr
    return True


def test_the_ready_line_and_the_token(tmp_path: Path) -> None:
    directory = tmp_path / "dir"
    process = subprocess.Popen(
        [BIN / "vosfsd", "--dev", directory, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"READY url=http://127\.0\.0\.1:([1-9][0-9]*)/vos token_file=(.*)\n", line)
        assert found is not None, line
        assert found.group(2) == str(directory / "token")
        assert (directory / "token").stat().st_mode & 0o777 == 0o600
        assert directory.stat().st_mode & 0o777 == 0o700
        for path in directory.rglob("*"):
            assert path.stat().st_mode & 0o077 == 0, path
    finally:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=END_S)
    assert (process.returncode, out) == (0, "")


def test_sigterm_ends_it_whatever_goes_on(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    data = os.urandom(12 * MIB)
    store(daemon, "/f", data)
    store(daemon, "/old", b"old")
    raws = [Raw(daemon, receive_buffer=4096) for _ in range(24)]
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for number, raw in enumerate(raws):
            if number % 4 == 0:
                raw.send(head(daemon, "GET", "/files/f"))
                assert raw.head().status == 200
            elif number % 4 == 1:
                raw.send(head(daemon, "PUT", "/files/old", f"Content-Length: {10 * MIB}") + bytes(MIB))
            elif number % 4 == 2:
                raw.send(head(daemon, "PUT", "/files/old", "Transfer-Encoding: chunked") + b"5\r\nabc")
            else:
                raw.send(b"GET /vos/no")
        polling = pool.submit(
            daemon.request, "POST", "/gateway", b"\x93\xa7Changes\x92\x00\x00\xcb\x40\x39\0\0\0\0\0\0"
        )
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(END_S) == 0
        with pytest.raises(OSError):
            raise polling.exception() or OSError(polling.result()[0])
    for raw in raws:
        raw.sock.close()
    log = (daemon.directory.parent / f"{daemon.directory.name}.log").read_text()
    assert "Traceback" not in log, log[-3000:]
    again = make_daemon()
    assert (fetch(again, "/f"), fetch(again, "/old")) == (data, b"old")
    assert sorted(c.uri.rpartition("/")[2] for c in node(again, "").children) == ["f", "old"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_keeps_everything(make_daemon: Callable[..., Daemon], how: int) -> None:
    daemon = make_daemon()
    bob = make_user(daemon, "bob", "admin")
    create(daemon, "/c", "ContainerNode", properties={"title": "t", "publicread": "true"})
    store(daemon, "/c/small", b"small")
    store(daemon, "/c/big", bytes(range(256)) * 4096)
    create(daemon, "/c/l", "LinkNode", target="vos://a!b/c")
    token, before = daemon.token, daemon.request("GET", "/nodes/c")[2]
    since = ask(daemon, m.Hello()).cursor
    daemon.stop(how)
    again = make_daemon(port=daemon.port)
    assert again.url == daemon.url
    assert again.request("GET", "/nodes/c")[2] == before
    assert (fetch(again, "/c/small"), fetch(again, "/c/big")) == (b"small", bytes(range(256)) * 4096)
    assert again.request("GET", "/nodes/c", headers=bob)[0] == 200
    assert again.request("GET", "/nodes/c", headers={"Authorization": f"Bearer {token}"})[0] == 200
    store(again, "/c/new", b"")
    assert b"new" in {c.name for c in ask(again, m.Changes(since, 0.0)).changes}


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = vosfsd("--dev", tmp_path / "d", "--port", taken.getsockname()[1])
    assert one_line(done) and str(taken) and "in use" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "text",
    [
        b"[server]\nport = 'x'\n",
        b"[server]\nprot = 1\n",
        b"[sever]\n",
        b"x",
        b"[server]\nport = 99999\n",
        b"\xff\xfe\n",
        b"[server]\nrole = 'metadata'\n",
        b"[server]\ncertificate = 'x'\n",
        b"server = 1\n",
        b"[server]\nport = true\n",
        b"[server]\nlog = 'loud'\n",
        b"[server]\ncertificate = 'none'\nkey = 'none'\n",
        b"[database]\nfile = 'no/dir/x.db'\n",
        b"[storage]\ndirectory = 'vosfsd.toml/x'\n",
        b"[database]\ndsn = 'host=127.0.0.1 port=1 dbname=x'\n",
        b"[server]\nhost = 'no such host'\n",
        b"[server]\nhost = '192.0.2.1'\n",
    ],
)
def test_a_bad_configuration_is_one_line(tmp_path: Path, text: bytes) -> None:
    file = tmp_path / "vosfsd.toml"
    file.write_bytes(text)
    done = vosfsd("--config", file, timeout_s=15)
    assert one_line(done)


def test_other_mistakes_are_one_line(tmp_path: Path, daemon: Daemon) -> None:
    (tmp_path / "file").write_text("")
    assert one_line(vosfsd("--config", tmp_path / "none"))
    assert one_line(vosfsd("--config", tmp_path))
    assert one_line(vosfsd("--dev", tmp_path / "file"))
    assert one_line(vosfsd("--dev", tmp_path / "d", "--port", "99999"))
    assert one_line(vosfsd("--dev", tmp_path / "d", "--role", "storage"))
    assert one_line(vosfsd("user", *where(daemon), "a b", "--no-password"))
    assert one_line(vosfsd("token", *where(daemon), "root", tmp_path / "no" / "file"))
    assert one_line(vosfsd("import", *where(daemon), tmp_path / "none", "/c"))
    assert one_line(vosfsd("import", *where(daemon), tmp_path, "/"))
    assert one_line(vosfsd("import", *where(daemon), tmp_path, "/no/c"))
    assert one_line(vosfsd("import", *where(daemon), tmp_path, "/" + "x" * 300))


# -- import --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory to import."""
    top = tmp_path / "tree"
    (top / "sub" / "deep").mkdir(parents=True)
    for number in range(5):
        (top / "sub" / f"f{number}").write_bytes(hashlib.shake_128(bytes([number])).digest(number * 40_000))
    (top / "a b\u00e9").write_bytes(b"x")
    (Path(os.fsdecode(os.fsencode(top) + b"/\xff"))).write_bytes(b"not utf-8")
    (top / "link").symlink_to("sub/f1")
    os.mkfifo(top / "pipe")
    return top


@pytest.mark.directory
def test_an_imported_tree(daemon: Daemon, tree: Path) -> None:
    done = vosfsd("import", *where(daemon), tree, "/archive")
    assert done.returncode == 0, done.stderr
    assert "pipe" in done.stderr
    for number in range(5):
        assert fetch(daemon, f"/archive/sub/f{number}") == (tree / "sub" / f"f{number}").read_bytes()
    assert (fetch(daemon, "/archive/a%20b%C3%A9"), fetch(daemon, "/archive/%FF")) == (b"x", b"not utf-8")
    assert node(daemon, "/archive/link").type == "vos:LinkNode"
    assert [c.uri.rpartition("/")[2] for c in node(daemon, "/archive").children] == [
        "a%20b%C3%A9",
        "link",
        "sub",
        "%FF",
    ]
    assert one_line(vosfsd("import", *where(daemon), tree, "/archive"))
    for method, path, body in [
        ("PUT", "/files/archive/sub/f1", b"x" * 50_000),
        ("PUT", "/files/archive/sub/f1", b"x"),
        ("PUT", "/files/archive/sub/new", b"x"),
        ("PUT", "/files/archive/sub/deep/new", b"x"),
        ("PUT", "/files/archive/new", b"x"),
        ("DELETE", "/nodes/archive/sub/f1", None),
        ("DELETE", "/nodes/archive/sub", None),
        ("DELETE", "/nodes/archive/link", None),
    ]:
        assert is_fault(daemon.request(method, path, body), 403, "PermissionDenied"), (method, path)
    assert fetch(daemon, "/archive/sub/f1") == (tree / "sub" / "f1").read_bytes()
    assert is_fault(daemon.request("DELETE", "/nodes/archive"), 403, "PermissionDenied")
    assert update(daemon, "/archive", "ContainerNode", {"immutable": "false"})[0] == 200
    assert daemon.request("DELETE", "/nodes/archive")[0] == 204
    assert daemon.request("GET", "/files/archive/sub/f1")[0] == 404
    assert vosfsd("gc", *where(daemon)).returncode == 0
    assert (tree / "sub" / "f4").stat().st_size == 160_000
    assert_sound(daemon)


@pytest.mark.directory
@pytest.mark.parametrize("how", ["longer", "shorter", "rewritten", "replaced", "gone"])
def test_a_source_that_changed_is_refused(daemon: Daemon, tree: Path, how: str) -> None:
    assert vosfsd("import", *where(daemon), tree, "/archive").returncode == 0
    file = tree / "sub" / "f2"
    if how == "longer":
        file.write_bytes(file.read_bytes() + b"x")
    elif how == "shorter":
        os.truncate(file, 100)
    elif how == "rewritten":
        file.write_bytes(bytes(80_000))
    elif how == "replaced":
        os.replace(tree / "sub" / "f3", file)
    else:
        file.unlink()
    answer = daemon.request("GET", "/files/archive/sub/f2")
    assert is_fault(answer, 500, "InternalFault")
    assert str(tree).encode() not in answer[2]
    assert fetch(daemon, "/archive/sub/f1") == (tree / "sub" / "f1").read_bytes()
    assert_sound(daemon)


@pytest.mark.directory
def test_an_import_that_fails_leaves_nothing(daemon: Daemon, tree: Path) -> None:
    os.rename(tree / "sub" / "deep", tree / "sub" / "f9")
    (tree / "sub" / "f9" / ".null").write_text("reserved")
    done = vosfsd("import", *where(daemon), tree, "/archive")
    names = {c.uri.rpartition("/")[2] for c in node(daemon, "").children}
    # Refused whole, or imported without the name that no node may have.
    assert (done.returncode == 0) == (names == {"archive"})
    if names:
        assert node(daemon, "/archive/sub/f9").children == []
        assert ".null" in done.stderr


# -- housekeeping --------------------------------------------------------------------------------------------------


def test_gc_keeps_what_is_in_use(daemon: Daemon) -> None:
    store(daemon, "/kept", bytes(100_000))
    create(daemon, "/gone", "ContainerNode")
    for number in range(10):
        store(daemon, f"/gone/f{number}", bytes(50_000))
    upload(daemon, bytes(70_000))
    assert daemon.request("DELETE", "/nodes/gone")[0] == 204
    done = vosfsd("gc", *where(daemon))
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"purged \d+ nodes, \d+ blobs? .*|purged \d+ nodes, collected \d+ blobs and \d+ orphans\n", done.stdout
    )
    assert fetch(daemon, "/kept") == bytes(100_000)
    assert_sound(daemon)


@pytest.mark.directory
def test_gc_collects_what_is_old(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    store(daemon, "/kept", bytes(100_000))
    orphan = upload(daemon, bytes(70_000))
    assert orphan.receipt
    daemon.stop()
    blobs = [path for path in (daemon.directory / "storage" / "blobs").rglob("*") if path.is_file()]
    assert len(blobs) == 2
    for path in blobs:
        os.utime(path, (0, 0))
    left_over = daemon.directory / "storage" / "incoming" / ("0" * 32)
    left_over.write_bytes(b"half")
    os.utime(left_over, (0, 0))
    assert vosfsd("gc", *where(daemon)).returncode == 0
    assert [p.stat().st_size for p in (daemon.directory / "storage" / "blobs").rglob("*") if p.is_file()] == [100_000]
    assert not left_over.exists()
    assert fetch(make_daemon(), "/kept") == bytes(100_000)


@pytest.mark.directory
def test_a_broken_storage_is_a_fault(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    store(daemon, "/f", bytes(100_000))
    daemon.stop()
    shutil.rmtree(daemon.directory / "storage" / "blobs")
    daemon = make_daemon()
    answer = daemon.request("GET", "/files/f")
    assert is_fault((answer[0], answer[1], answer[2][:500]), 500, "InternalFault")
    assert str(daemon.directory).encode() not in answer[2]
    assert_sound(daemon)


def test_a_database_that_goes_away_costs_requests_not_the_daemon(
    make_daemon: Callable[..., Daemon], database: str, postgres: str
) -> None:
    daemon = make_daemon("pg", "--dsn", database)
    name = database.rpartition("/")[2]
    for number in range(2500):
        if number % 500 == 0:
            raw = Raw(daemon)
        body = _create(b"n%04d" % number)
        raw.send(head(daemon, "POST", "/gateway", f"Content-Length: {len(body)}") + body)
        assert raw.answer().status == 200
        if number % 500 == 499:
            raw.sock.close()
    with Raw(daemon, receive_buffer=4096) as reader, psycopg.connect(postgres, autocommit=True) as admin:
        reader.send(head(daemon, "GET", "/nodes"))
        assert reader.head().status == 200
        admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))
        try:
            # A listing that broke off must not look complete.
            assert not reader.rest().endswith(b"0\r\n\r\n")
            assert daemon.process.poll() is None
            status, _, body = daemon.request("GET", "/nodes?limit=1")
            assert (status, body.split()[0]) in ((503, b"ServiceBusy"), (500, b"InternalFault"))
        finally:
            admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
    assert daemon.request("GET", "/nodes?limit=1")[0] == 200
    assert_sound(daemon)


def _create(name: bytes) -> bytes:
    return msgspec.msgpack.encode(m.Create(1, name, NewNode("data", properties={"urn:x:long": "v" * 400})))


def test_two_daemons_start_on_one_new_database(make_daemon: Callable[..., Daemon], database: str) -> None:
    ports = [free_port(), free_port()]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        a, b = pool.map(lambda n: make_daemon(f"d{n}", "--dsn", database, port=ports[n]), range(2))
    assert create(a, "/c", "ContainerNode")[0] == 201
    assert node(b, "/c").type == "vos:ContainerNode"
