"""A mount's core with the delegation, and the daemon's gateway, in one loop: what they make of each other's answers."""

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from server.access import Subject
from server.delegation import Delegation
from server.gateway import Gateway
from server.service import Feed
from server.signing import Signer
from tests.unit.rigs import file_system
from vosfs import filesystem
from vosfs.backends.memory import MemoryBackend
from vosfs.backends.storages import DEFAULT, Storages
from vosfs.cache.journal import Journal
from vosfs.client import Answer
from vosfs.errors import NodeNotFound, QuotaExceeded, ServiceUnavailable, Stale, VOSpaceError
from vosfs.metadata import messages as m
from vosfs.metadata.ahead import AheadTree
from vosfs.metadata.gateway import GatewayTree
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import CONTAINER, DATA, ROOT_ID, Attributes, Change, Cursor, Extent, NewNode, Node
from vosfs.metadata.store import CHANGES_MAX, Anyone

ME = "me"
OPEN_RW = 2
_decode = msgspec.msgpack.Decoder(m.AnyRequest).decode


@dataclass
class Service:
    """As much of the daemon's service as the gateway needs."""

    store: MemoryStore = field(default_factory=lambda: MemoryStore(ME))
    signer: Signer = field(default_factory=lambda: Signer(b"key"))
    backend: Storages = field(default_factory=lambda: Storages({DEFAULT: MemoryBackend()}))  # type: ignore[dict-item]
    delegation: Delegation = field(default_factory=lambda: Delegation(True))
    feed: Feed = field(default_factory=Feed)
    keeps_bytes: bool = False
    data_url: str = "http://nowhere"

    async def caller(self, request: Any) -> tuple[Subject, Anyone]:
        subject = Subject(ME)
        return subject, Anyone("mount", subject.permit)

    async def locality(self, node: Node) -> dict[str, str]:
        return {}


class Message:
    """A request whose body is here."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    async def read(self, limit: int) -> bytes:
        return self._body

    def deserted(self) -> bool:
        return False


class Line:
    """Carries messages to a gateway, unless it is cut, and can hold answers back."""

    deadline_s = 10.0

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.cut = False
        self.held: dict[type, trio.Event] = {}
        """Answers to such requests wait for that."""
        self.lost: set[type] = set()
        """Answers to such requests never come."""

    def head(self, *about: object) -> bytes:
        return b""

    async def request(self, head: bytes, body: bytes, **options: object) -> Answer:
        await trio.lowlevel.checkpoint()
        if self.cut:
            raise ServiceUnavailable("cut")
        answer = await self._gateway.handle(Message(body))  # type: ignore[arg-type]
        assert isinstance(answer.body, bytes)
        message = _decode(body)
        for request in [message, *getattr(message, "requests", [])]:
            if type(request) in self.lost:
                raise ServiceUnavailable("the answer is lost")
            if type(request) in self.held:
                await self.held[type(request)].wait()
        return Answer(answer.status, {}, answer.body)


class Rig:
    """A mount without FUSE."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.service = Service()
        self.store = self.service.store
        self.line = Line(Gateway(self.service))  # type: ignore[arg-type]
        self.remote = GatewayTree(self.line, "", "")  # type: ignore[arg-type]
        self.behind = self.remote.behind
        self.tree = AheadTree(self.remote, self.behind)
        self.tree.live = True
        self.fs = file_system(self.tree, directory, nursery)
        self.behind.on_lost = self.fs.lost
        self.told: list[Change] = []
        self.fs.on_invalid = self.told.append

    async def file(self, name: bytes, data: bytes = b"") -> int:
        """A saved file; all of it is known here, and in the space."""
        await self.tree.get(ROOT_ID)
        handle, node = await self.fs.create(ROOT_ID, name, 0o644, -1, -1, OPEN_RW)
        await self.fs.write(handle, 0, data)
        await self.fs.sync(handle)
        await self.fs.release(handle)
        await self.tree.lookup(ROOT_ID, name)
        return node.id

    async def save(self, id: int, data: bytes) -> int:
        """Write and flush; the handle stays open."""
        handle, _ = await self.fs.open(id, OPEN_RW)
        await self.fs.write(handle, 0, data)
        await self.fs.flush(handle)
        return handle


@pytest.fixture
async def rig(tmp_path: Path, autojump_clock: MockClock, nursery: trio.Nursery) -> AsyncIterator[Rig]:
    made = Rig(tmp_path, nursery)
    await made.remote.hello()
    nursery.start_soon(made.behind.run)
    yield made


async def test_fsync_does_not_vouch_for_what_is_refused_on_the_way(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    id = await rig.file(b"f")
    rig.behind.held = True
    handle = await rig.save(id, b"mine")
    assert rig.behind.owed == 1
    await rig.store.commit(id, None, 6, [Extent(0, 6, data=b"theirs")], [])
    with pytest.raises(Stale):
        await rig.fs.sync(handle)
    assert rig.behind.lost == 1
    with pytest.raises(Stale):
        await rig.fs.write(handle, 0, b"x")
    await rig.fs.release(handle)
    assert (await rig.fs.attributes(id)).length == 6
    caplog.clear()


async def test_fsync_of_a_directory_does_not_either(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    await rig.file(b"f")
    rig.behind.held = True
    with pytest.raises(VOSpaceError):
        await rig.tree.lookup(ROOT_ID, b"new")
    mine = await rig.fs.make_leaf(ROOT_ID, b"new", 0o644, -1, -1)
    theirs = await rig.store.create(ROOT_ID, b"new", NewNode(DATA))
    with pytest.raises(Stale):
        await rig.fs.sync_directory()
    assert Change(mine.id, ROOT_ID, b"new", "") in rig.told, "the kernel must not go on showing it"
    assert (await rig.tree.lookup(ROOT_ID, b"new")).id == theirs.id
    await rig.fs.sync_directory()
    caplog.clear()


@pytest.mark.parametrize("change", ["mode", "name", "second name", "property"])
async def test_fsync_waits_for_attributes_and_names_too(
    rig: Rig, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    id = await rig.file(b"f", b"data")
    handle, _ = await rig.fs.open(id, OPEN_RW)
    with pytest.raises(VOSpaceError):
        await rig.tree.lookup(ROOT_ID, b"g")
    rig.line.cut = True
    await rig.fs.sync(handle)
    rig.line.cut, rig.behind.held = False, True
    if change == "mode":
        await rig.fs.set_attributes(id, Attributes(mode=0o600))
    elif change == "name":
        await rig.fs.rename(ROOT_ID, b"f", ROOT_ID, b"g", "")
    elif change == "second name":
        await rig.fs.link(id, ROOT_ID, b"g")
    else:
        await rig.fs.set_property(id, "user.x", b"1")
    rig.line.cut = True
    with pytest.raises(ServiceUnavailable):
        await rig.fs.sync(handle)
    rig.line.cut = False
    while not rig.behind.idle:
        await trio.sleep(1)
    await rig.fs.sync(handle)
    rig.line.cut = True
    await rig.fs.sync(handle)
    await rig.fs.release(handle)
    caplog.clear()


async def test_many_changes_of_ones_own_do_not_end_the_delegation(rig: Rig) -> None:
    assert rig.service.delegation.ask((ME, "mount"))
    rig.behind.held = True
    for number in range(CHANGES_MAX + 10):
        await rig.store.create(ROOT_ID, b"%d" % number, NewNode(DATA), Anyone("mount"))
    page = await rig.remote.feed(Cursor(), 0)
    assert page.delegation == m.HELD and not page.changes and page.cursor == await rig.store.cursor()


async def test_changes_by_others_are_all_told_before_the_delegation_is(rig: Rig) -> None:
    assert rig.service.delegation.ask((ME, "mount"))
    for number in range(CHANGES_MAX + 10):
        await rig.store.create(ROOT_ID, b"%d" % number, NewNode(DATA), Anyone("other"))
    first = await rig.remote.feed(Cursor(), 0)
    assert first.delegation == m.NOT_HELD and len(first.changes) == CHANGES_MAX
    second = await rig.remote.feed(first.cursor, 0)
    assert second.delegation == m.HELD and len(second.changes) == 10


class FullJournal(Journal):
    """A journal on a disk without room."""

    def add(self, record: bytes) -> None:
        raise OSError(errno.ENOSPC, "full")


async def test_a_full_disk_of_the_journal_only_costs_the_waiting(rig: Rig, tmp_path: Path) -> None:
    id = await rig.file(b"f", b"data")
    with pytest.raises(VOSpaceError):
        await rig.tree.lookup(ROOT_ID, b"g")
    rig.behind.held, rig.behind.journal = True, FullJournal(tmp_path / "journal", b"whose")
    await rig.fs.release(await rig.save(id, b"more data"))
    await rig.fs.set_attributes(id, Attributes(mode=0o600))
    await rig.fs.rename(ROOT_ID, b"f", ROOT_ID, b"g", "")
    there = await rig.store.lookup(ROOT_ID, b"g")
    assert (there.id, there.mode, there.length) == (id, 0o600, 9), "it is there already: nothing was acknowledged first"
    await rig.fs.make_container(ROOT_ID, b"f", 0o755, -1, -1)
    await rig.fs.unlink(ROOT_ID, b"g")
    assert [name for name, _ in await rig.store.children(ROOT_ID, b"", 9)] == [b"f"]
    rig.behind.journal.close()


Doing = Callable[[Rig, int], Awaitable[object]]
ASKED: dict[type, Doing] = {
    m.SetAttributes: lambda rig, id: rig.fs.set_attributes(id, Attributes(mode=0o600)),
    m.SetProperties: lambda rig, id: rig.fs.set_property(id, "user.x", b"1"),
    m.Link: lambda rig, id: rig.fs.link(id, ROOT_ID, b"second"),
    m.Rename: lambda rig, id: rig.fs.rename(ROOT_ID, b"f", ROOT_ID, b"g", ""),
}


NAMED: dict[type, Callable[[Rig], Awaitable[object]]] = {
    m.Create: lambda rig: rig.fs.make_leaf(ROOT_ID, b"new", 0o644, -1, -1),
    m.Link: lambda rig: rig.fs.link(rig.tree.peek_name(ROOT_ID, b"f") or 0, ROOT_ID, b"new"),
    m.Rename: lambda rig: rig.fs.rename(ROOT_ID, b"f", ROOT_ID, b"new", ""),
    m.Remove: lambda rig: rig.fs.unlink(ROOT_ID, b"f"),
}


@pytest.mark.parametrize("kind", NAMED)
async def test_an_answer_brings_back_no_name_that_was_taken_away_since(rig: Rig, kind: type) -> None:
    """Somebody else undid a change, and the feed said so, before the change's answer came."""
    id = await rig.file(b"f", b"data")
    gate = rig.line.held[kind] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(NAMED[kind], rig)
        await trio.testing.wait_all_tasks_blocked()
        if kind is m.Remove:
            done = await rig.store.create(ROOT_ID, b"f", NewNode(DATA))
            rig.fs.changed_elsewhere(Change(done.id, ROOT_ID, b"f", "other"))
        else:
            done = await rig.store.remove(ROOT_ID, b"new", "leaf")
            rig.fs.changed_elsewhere(Change(done.id, ROOT_ID, b"new", "other"))
        gate.set()
    if kind is m.Remove:
        assert (await rig.fs.lookup(ROOT_ID, b"f")).id != id
    else:
        with pytest.raises(NodeNotFound):
            await rig.fs.lookup(ROOT_ID, b"new")


@pytest.mark.parametrize("kind", ASKED)
@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_an_answer_undoes_nothing_that_happened_since(rig: Rig, kind: type, where: str) -> None:
    """A change was asked for; another was made before its answer came: both are seen."""
    id = await rig.file(b"f", b"data")
    gate = rig.line.held[kind] = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ASKED[kind], rig, id)
        await trio.testing.wait_all_tasks_blocked()
        if where == "here":
            rig.behind.held = True
            handle = await rig.save(id, b"longer data")
            assert rig.behind.owed == 1
            await rig.fs.release(handle)
        else:
            await rig.store.commit(id, None, 11, [Extent(0, 11, data=b"longer data")], [])
            rig.fs.changed_elsewhere(Change(id, 0, b"", "other"))
        gate.set()
    seen = await rig.fs.attributes(id)
    await rig.behind.drain()
    there = await rig.store.get(id)
    assert seen.length == there.length == 11
    assert (seen.mode, seen.nlink, seen.version) == (there.mode, there.nlink, there.version)


@pytest.mark.parametrize("joined", [False, True])
async def test_a_save_whose_answer_was_lost_is_no_one_elses(rig: Rig, joined: bool) -> None:
    """fsync(2) fails as often as the network does; tried again it saves, also what was written since.

    ``joined``: the service made one blob of many pieces, which is a version more of the same bytes.
    """
    data = b"new bytes"
    id = await rig.file(b"f", b"old")
    handle, _ = await rig.fs.open(id, OPEN_RW)
    await rig.fs.write(handle, 0, data)
    rig.line.lost.add(m.Commit)
    for _ in range(2):
        with pytest.raises(ServiceUnavailable):
            await rig.fs.sync(handle)
    if joined:
        node = (await rig.store.open(id)).node
        await rig.store.commit(id, node.version, node.length, [], [], node.mtime_ns)
    await rig.fs.write(handle, len(data), b"er")
    rig.line.lost.clear()
    await rig.fs.sync(handle)
    assert (await rig.store.open(id)).node.length == len(data) + 2
    assert await rig.fs.read(handle, 0, len(data) + 2) == data + b"er"
    await rig.fs.release(handle)


async def test_a_save_whose_answer_was_lost_does_not_hide_somebody_elses(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    id = await rig.file(b"f", b"old")
    handle, _ = await rig.fs.open(id, OPEN_RW)
    await rig.fs.write(handle, 0, b"mine")
    rig.line.lost.add(m.Commit)
    with pytest.raises(ServiceUnavailable):
        await rig.fs.sync(handle)
    rig.line.lost.clear()
    await rig.store.commit(id, None, 6, [Extent(0, 6, data=b"theirs")], [])
    with pytest.raises(Stale):
        await rig.fs.sync(handle)
    assert (await rig.store.open(id)).node.length == 6
    await rig.fs.release(handle)
    caplog.clear()


async def boxed(rig: Rig, bytes_max: int) -> list[int]:
    """Three files, known here, in a space with a quota."""
    await rig.store.set_quota(ROOT_ID, bytes_max)
    rig.tree.forget_all()
    return [await rig.file(name) for name in (b"a", b"b", b"c")]


async def test_what_a_quota_leaves_is_acknowledged_first_and_no_more(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    one, two, three = await boxed(rig, 1000)
    rig.behind.delegated(True)
    # The first waits, and what is left is asked for then.
    await rig.fs.release(await rig.save(one, b"1" * 300))
    assert rig.behind.owed == 0 and (await rig.store.quotas(one))[0].used == 300
    rig.line.held[m.Batch] = trio.Event()
    await rig.fs.release(await rig.save(two, b"2" * 400))
    await rig.fs.release(await rig.save(one, b"1" * 500))
    assert rig.behind.owed == 2, "nobody waited"
    rig.line.held.pop(m.Batch).set()
    handle = await rig.fs.open(three, OPEN_RW)
    await rig.fs.write(handle[0], 0, b"3" * 101)
    with pytest.raises(QuotaExceeded):
        await rig.fs.flush(handle[0])
    await rig.fs.release(handle[0])
    assert rig.behind.lost == 0 and (await rig.store.quotas(one))[0].used == 900
    await rig.fs.release(await rig.save(three, b"3" * 100))
    assert (await rig.store.quotas(one))[0].used == 1000 and rig.behind.lost == 0
    caplog.clear()


@pytest.mark.parametrize("how", ["feed", "term", "elsewhere"])
async def test_what_was_left_is_not_relied_on_after_others_may_have_come(rig: Rig, how: str) -> None:
    one, two, _ = await boxed(rig, 1000)
    rig.behind.delegated(True)
    await rig.fs.release(await rig.save(one, b"1" * 300))
    if how == "elsewhere":
        box = await rig.store.create(ROOT_ID, b"box", NewNode(CONTAINER, owner=ME))
        await rig.tree.lookup(ROOT_ID, b"box")
        await rig.fs.rename(ROOT_ID, b"a", box.id, b"a", "")
    elif how == "term":
        rig.behind.delegated(False)
        rig.behind.delegated(True)
    else:
        await rig.store.set_quota(ROOT_ID, 600)
        rig.tree.invalidate(Change(ROOT_ID, 0, b"", ""))
    await rig.tree.get(two)
    await rig.fs.release(await rig.save(two, b"2" * 250))
    assert rig.behind.owed == 0 and (await rig.store.get(two)).length == 250, "it waited"


async def test_the_kernel_gets_short_files_whole_while_nobody_else_has_them_open(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    id, other = await rig.file(b"f", b"data"), await rig.file(b"g", b"longer")
    monkeypatch.setattr(filesystem, "WHOLE_BYTES_MAX", 5)
    first, _ = await rig.fs.open(id, os.O_RDONLY)
    assert rig.fs.whole(first) == b"data"
    second, _ = await rig.fs.open(id, os.O_RDONLY)
    assert rig.fs.whole(second) is None, "the first may be waiting for a page"
    await rig.fs.release(first)
    assert rig.fs.whole(second) == b"data"
    await rig.fs.release(second)
    for writing in (OPEN_RW, os.O_RDONLY | os.O_TRUNC):
        handle, _ = await rig.fs.open(id, writing)
        assert rig.fs.whole(handle) is None
        await rig.fs.release(handle)
    handle, _ = await rig.fs.open(other, os.O_RDONLY)
    assert rig.fs.whole(handle) is None
    rig.fs.changed_elsewhere(Change(id, 0, b"", ""))
    rig.tree.live = False
    handle, _ = await rig.fs.open(id, os.O_RDONLY)
    assert rig.fs.whole(handle) is None, "nobody would tell the kernel that it changed"
