"""The auditor finds what the storage lacks, what it has too much and what rotted, and nothing else; it changes nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from server.audit import (
    CORRUPT,
    MISSING,
    ORPHAN,
    UNREACHABLE,
    UNREACHABLE_MAX,
    UNRECORDED,
    WRONG_LENGTH,
    Bar,
    Report,
    audit,
    lines,
)
from tests.conftest import BIN, Daemon
from tests.server.support import create, fetch, store, upload, vosfsd, where
from tests.storage import config_of, kept
from vosfs.backends.memory import MemoryBackend
from vosfs.errors import ServiceUnavailable
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import DATA, ROOT_ID, Blob, Extent, NewNode

OLD_S = -60.0
"""As the grace of orphans: everything is older."""


class Space:
    """A store and a backend in memory, and files in them."""

    def __init__(self) -> None:
        self.store, self.backend = MemoryStore(), MemoryBackend()

    def blob(self, data: bytes) -> Blob:
        writer = self.backend.create()
        writer.write(data)
        return writer.finish(True)

    async def file(self, name: bytes, data: bytes, blob: Blob | None = None, reach: int = 0) -> Blob:
        blob = blob or self.blob(data)
        node = await self.store.create(ROOT_ID, name, NewNode(DATA))
        length = reach or blob.length
        await self.store.commit(node.id, None, length, [Extent(0, length, blob.locator)], [blob])
        return blob

    def replace(self, blob: Blob, data: bytes) -> None:
        self.backend._blobs[blob.locator] = (data, 0)


async def found(space: Space, deep: bool = False) -> dict[str, tuple[str, list[str]]]:
    report = await audit(space.store, space.backend, deep, older_s=OLD_S)
    assert sum(report.counts.values()) == len(report.findings)
    return {f.locator: (f.kind, f.paths) for f in report.findings}


async def test_a_sound_space() -> None:
    space = Space()
    for number in range(3):
        await space.file(b"f%d" % number, bytes(1000 * number + 1))
    for deep in (False, True):
        report = await audit(space.store, space.backend, deep, older_s=OLD_S)
        assert (report.blobs, report.bytes, report.findings, report.damaged) == (3, 3003, [], False)
        assert lines(report)[-1] == "the storage holds what the nodes say"


async def test_each_kind_of_damage() -> None:
    space = Space()
    missing = await space.file(b"missing", b"x" * 100)
    space.backend.remove(missing.locator)
    short = await space.file(b"short", b"x" * 100)
    space.replace(short, b"x" * 99)
    beyond = await space.file(b"beyond", b"x" * 100, reach=101)
    rotten = await space.file(b"rott\xff", b"x" * 100)
    space.replace(rotten, b"x" * 50 + b"y" + b"x" * 49)
    unrecorded = await space.file(b"unrecorded", b"x" * 100)
    for table in (space.store._blobs, space.store._recorded):
        del table[unrecorded.locator]  # type: ignore[attr-defined]
    orphan = space.blob(b"o")
    expected = {
        missing.locator: (MISSING, ["/missing"]),
        short.locator: (WRONG_LENGTH, ["/short"]),
        beyond.locator: (WRONG_LENGTH, ["/beyond"]),
        unrecorded.locator: (UNRECORDED, ["/unrecorded"]),
        orphan.locator: (ORPHAN, []),
    }
    assert await found(space) == expected
    assert await found(space, deep=True) == expected | {rotten.locator: (CORRUPT, ["/rott%FF"])}
    report = await audit(space.store, space.backend, True, older_s=OLD_S)
    assert report.damaged and report.counts[CORRUPT] == 1
    text = "\n".join(lines(report))
    assert f"corrupt: {rotten.locator} /rott%FF CRC-32" in text


async def test_a_young_blob_is_no_orphan() -> None:
    space = Space()
    space.blob(b"somebody holds its receipt")
    assert (await audit(space.store, space.backend)).findings == []


async def test_what_changes_meanwhile_is_no_damage() -> None:
    space = Space()
    old = await space.file(b"f", b"old")
    used = space.store.used

    async def replaced_after_the_look(after: str, limit: int) -> list:  # type: ignore[type-arg]
        page = await used(after, limit)
        if page:
            new = space.blob(b"new")
            await space.store.commit(
                (await space.store.lookup(ROOT_ID, b"f")).id, None, 3, [Extent(0, 3, new.locator)], [new]
            )
            space.backend.remove(old.locator)
        return page

    space.store.used = replaced_after_the_look  # type: ignore[method-assign]
    assert not (await audit(space.store, space.backend, True)).damaged


class Unreachable(MemoryBackend):
    def open(self, locator: str, start: int = 0, stop: int = 0) -> None:  # type: ignore[override]
        raise ServiceUnavailable("no connection")


async def test_a_storage_that_cannot_be_reached_is_not_damaged() -> None:
    space = Space()
    space.backend = Unreachable()
    await space.file(b"f", b"x")
    assert [(f.kind, f.paths) for f in (await audit(space.store, space.backend)).findings] == [(UNREACHABLE, ["/f"])]
    for number in range(UNREACHABLE_MAX):
        await space.file(b"f%d" % number, b"x")
    with pytest.raises(ServiceUnavailable):
        await audit(space.store, space.backend)


def test_the_bar_shows_on_a_terminal_only() -> None:
    class Terminal:
        def __init__(self, shows: bool) -> None:
            self.text, self.shows = "", shows

        def isatty(self) -> bool:
            return self.shows

        def write(self, text: str) -> int:
            self.text += text
            return len(text)

        def flush(self) -> None:
            pass

    for shows in (True, False):
        terminal = Terminal(shows)
        bar = Bar(terminal, 4, lambda report: report.blobs)  # type: ignore[arg-type]
        bar.show(Report(False, 2))
        bar.end()
        assert ("[###############---------------]  50%" in terminal.text) == shows
        assert bool(terminal.text) == shows


# -- the command -----------------------------------------------------------------------------------------------------


def audited(daemon: Daemon, *options: str) -> tuple[int, dict[str, object]]:
    done = vosfsd("audit", *where(daemon), "--json", *options)
    return done.returncode, json.loads(done.stdout)


def damage(daemon: Daemon, locator: str, data: bytes | None) -> None:
    """Change a blob behind the daemon's back, or take it away."""
    if not config_of(daemon.directory).storage.objects:
        file = daemon.directory / "storage/blobs" / locator[:2] / locator[2:4] / locator
        file.unlink() if data is None else file.write_bytes(data)
        return
    import obstore

    from server.daemon import backend_of

    cfg = config_of(daemon.directory)
    backend = backend_of(cfg.storage, cfg.base)
    if data is None:
        backend.remove(locator)
    else:
        attributes = obstore.get(backend._store, locator).attributes  # type: ignore[attr-defined]
        obstore.put(backend._store, locator, data, attributes=attributes)  # type: ignore[attr-defined]
    backend.close()


def test_beside_a_serving_daemon(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    blobs = {}
    for name in ("good", "rotten", "gone"):
        before = kept(daemon.directory)
        store(daemon, f"/{name}", os.urandom(100_000))
        (blobs[name],) = kept(daemon.directory) - before
    upload(daemon, bytes(50_000))
    create(daemon, "/box", "ContainerNode")
    status, report = audited(daemon, "--deep")
    assert (status, report["blobs"], report["findings"]) == (0, 3, [])
    damage(daemon, blobs["rotten"], bytes(100_000))
    damage(daemon, blobs["gone"], None)
    status, report = audited(daemon)
    assert status == 3 and report["counts"][MISSING] == 1  # type: ignore[index]
    status, report = audited(daemon, "--deep")
    kinds = {(f["kind"], f["locator"], *f["paths"]) for f in report["findings"]}  # type: ignore[attr-defined]
    assert (status, kinds) == (3, {(MISSING, blobs["gone"], "/gone"), (CORRUPT, blobs["rotten"], "/rotten")})
    assert len(fetch(daemon, "/good")) == 100_000
    done = vosfsd("audit", *where(daemon), "--deep")
    assert done.returncode == 3 and "1 missing, 1 corrupt" in done.stdout and done.stderr == ""
    done = vosfsd("gc", *where(daemon), "--json")
    assert json.loads(done.stdout)["orphans"] == 0, "the upload may still be committed"


def test_the_bar_on_a_real_terminal(daemon: Daemon, tmp_path: Path) -> None:
    store(daemon, "/f", bytes(100_000))
    script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    command = [sys.executable, "-c", script, BIN / "vosfsd", "audit", *where(daemon)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (done.returncode, b"] 100%" in done.stdout) == (0, True), done


@pytest.mark.parametrize("option", ["--json=x", "--shallow"])
def test_what_it_does_not_know_is_refused(daemon: Daemon, option: str) -> None:
    assert vosfsd("audit", *where(daemon), option).returncode == 2
