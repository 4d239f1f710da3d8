"""A cached file is a bytearray, whatever is written, cut, uploaded, saved, lost and opened again."""

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from vosfs.backends.blobs import LocalBlobs
from vosfs.backends.memory import MemoryBackend
from vosfs.cache.blocks import BlockCache
from vosfs.cache.file import CachedFile, FileTable
from vosfs.client import Arrived, Segment
from vosfs.errors import Stale, TransferFailed
from vosfs.metadata import content
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.messages import Stored
from vosfs.metadata.node import DATA, ROOT_ID, Content, Extent, NewNode

MAX = 300_000
LIMIT_BYTES = 200_000
"""Low, so that clean bytes are dropped from scratch."""


class GatedBlobs(LocalBlobs):
    """Local blobs that wait at a gate, or fail, when told to."""

    def __init__(self, backend: MemoryBackend) -> None:
        super().__init__(backend)
        self.gate: trio.Event | None = None
        self.fail = False

    async def _wait(self) -> None:
        if self.gate is not None:
            await self.gate.wait()

    async def fetch(self, name: str, start: int, into: memoryview, arrived: Arrived) -> None:
        await self._wait()
        await super().fetch(name, start, into, arrived)

    async def store(self, segments: list[Segment], storage: str = "") -> Stored:
        await self._wait()
        if self.fail:
            raise TransferFailed("told to")
        return await super().store(segments)


class GatedStore(MemoryStore):
    """A store whose answers to ``open`` take their time, and whose commits can be held."""

    def __init__(self) -> None:
        super().__init__()
        self.gate: trio.Event | None = None
        self.most_changes = 0
        """Of a commit."""

    async def commit(
        self, id: int, base_version: int | None, length: int, changes: list[Extent], *rest: Any, **more: Any
    ) -> Content:  # type: ignore[override]
        self.most_changes = max(self.most_changes, len(changes))
        return await super().commit(id, base_version, length, changes, *rest, **more)

    async def open(self, id: int, *arguments: Any) -> Content:
        found = await super().open(id, *arguments)
        if self.gate is not None:
            await self.gate.wait()
        return found


class Rig:
    """One file of one mount over a store in memory."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.store = GatedStore()
        self.backend = MemoryBackend()
        self.blobs = GatedBlobs(self.backend)
        self.tree = CachedTree(self.store)
        self.blocks = BlockCache(directory / "blocks", self.blobs, 0, nursery)
        self.table = FileTable(self.tree, self.blobs, self.blocks, directory / "scratch", LIMIT_BYTES, local=True)
        self.id = 0

    async def open(self) -> CachedFile:
        if not self.id:
            self.id = (await self.store.create(ROOT_ID, b"f", NewNode(DATA))).id
        return await self.table.open(self.id)

    async def saved(self) -> bytes:
        """What the space has."""
        found = await self.store.open(self.id)
        result = bytearray()
        for e in content.slices(found.extents, 0, found.node.length):
            data = e.data or bytes(e.stop - e.start)
            if e.locator:
                data = self.backend.open(e.locator).read(e.offset, e.offset + e.stop - e.start)
            result += data
        return bytes(result)

    async def kept(self) -> bytes | None:
        """What was kept of the last unsaved bytes; it then is no more."""

        async def fetch(name: str, start: int, stop: int) -> bytes:
            return self.backend.open(name).read(start, stop)

        for file in self.table.kept.files():
            with tempfile.TemporaryFile() as target:
                assert file.whole() and await file.restore(target.fileno(), fetch) == 0
                file.drop()
                return target.read()
        return None

    async def elsewhere(self, data: bytes) -> None:
        """Another mount replaces the bytes."""
        writer = self.backend.create()
        writer.write(data)
        blob = writer.finish(True)
        changes = [Extent(0, len(data), blob.locator)] if data else []
        await self.store.commit(self.id, None, len(data), changes, [blob])
        self.tree.forget(self.id)
        self.table.changed_elsewhere(self.id)


@asynccontextmanager
async def rigged(directory: Path) -> AsyncIterator[Rig]:
    """A rig, until what it fetches is here."""
    async with trio.open_nursery() as nursery:
        rig = Rig(directory, nursery)
        yield rig
    rig.table.close()
    rig.blocks.close()


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as rig:
        yield rig


OFFSETS = st.one_of(st.integers(0, 50), st.integers(0, MAX), st.sampled_from([16 * 1024, 128 * 1024, 256 * 1024]))
SIZES = st.one_of(st.integers(1, 100), st.integers(1, 60_000))
OPERATION = st.one_of(
    st.tuples(st.just("write"), OFFSETS, SIZES, st.integers(1, 255)),
    st.tuples(st.just("write"), OFFSETS, SIZES, st.integers(1, 255)),
    st.tuples(st.just("scatter"), OFFSETS, st.integers(2, 40), st.integers(1, 255)),
    st.tuples(st.just("truncate"), OFFSETS),
    st.tuples(st.just("punch"), OFFSETS, SIZES),
    st.tuples(st.just("read"), OFFSETS, SIZES),
    st.tuples(st.just("prefetch"), OFFSETS, SIZES),
    st.tuples(st.just("upload")),
    st.tuples(st.just("sync"), st.booleans()),
    st.tuples(st.just("failing sync")),
    st.tuples(st.just("reopen")),
    st.tuples(st.just("lose")),
    st.tuples(st.just("elsewhere"), SIZES, st.integers(1, 255)),
)


@pytest.mark.expect_log
@given(st.lists(OPERATION, max_size=20), st.sampled_from([content.CHANGES_MAX, 16]))
@settings(max_examples=200, deadline=None)
async def test_a_cached_file_is_a_bytearray(trace: list[tuple[Any, ...]], changes_max: int) -> None:
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as directory:
        patch.setattr(content, "CHANGES_MAX", changes_max)
        async with rigged(Path(directory)) as rig:
            await run(rig, trace)
        assert rig.table.dirty_bytes == rig.table.local_bytes == 0


async def run(rig: Rig, trace: list[tuple[Any, ...]]) -> None:
    file, model, saved = await rig.open(), bytearray(), b""
    for name, *arguments in trace:
        if name == "write":
            at, size, byte = arguments
            file.write(at, bytes([byte]) * size)
            model.extend(bytes(max(0, at + size - len(model))))
            model[at : at + size] = bytes([byte]) * size
        elif name == "scatter":
            at, count, byte = arguments
            for number in range(count):
                start = at + number * 300
                file.write(start, bytes([byte]) * 7)
                model.extend(bytes(max(0, start + 7 - len(model))))
                model[start : start + 7] = bytes([byte]) * 7
        elif name == "punch":
            at, size = arguments
            file.punch(at, at + size)
            stop = min(at + size, len(model))
            model[at:stop] = bytes(max(0, stop - at))
        elif name == "truncate":
            file.truncate(arguments[0])
            model = model[: arguments[0]].ljust(arguments[0], b"\0")
        elif name == "read":
            at, size = arguments
            assert await file.read(at, at + size) == model[at : at + size]
        elif name == "prefetch":
            await file.prefetch(arguments[0], sum(arguments))
        elif name == "upload":
            await file.upload()
        elif name == "sync":
            await file.sync(arguments[0])
            saved = bytes(model)
            assert not file.changed and await rig.saved() == saved
            assert rig.store.most_changes <= content.CHANGES_MAX
        elif name == "failing sync":
            rig.blobs.fail = True
            try:
                await file.sync(True)
                saved = bytes(model)
            except TransferFailed:
                assert file.changed
            rig.blobs.fail = False
            assert await rig.saved() == saved
        elif name == "reopen":
            await file.sync(False)
            saved = bytes(model)
            rig.table.release(file)
            file = await rig.open()
        elif name == "lose":
            dirty = file.dirty_bytes
            rig.table.release(file)
            kept = await rig.kept()
            assert kept == model if dirty else kept in (None, model)
            file = await rig.open()
            model = bytearray(saved)
        elif not file.changed:
            saved = bytes([arguments[1]]) * arguments[0]
            model = bytearray(saved)
            await rig.elsewhere(saved)
            rig.table.release(file)
            file = await rig.open()
        file.check()
        assert file.length == len(model) == file.attributes().length
        assert rig.table.dirty_bytes == file.dirty_bytes
        ready = file.read_now(0, len(model))
        assert ready is None or ready == model
    assert await file.read(0, MAX * 2) == model
    await file.sync(True)
    assert await rig.saved() == model
    rig.table.release(file)


# -- races, one by one -----------------------------------------------------------------------------------------------

BIG = 100_000


async def test_a_file_that_is_cut_while_it_is_uploaded_stays_cut(rig: Rig) -> None:
    file = await rig.open()
    file.write(0, b"x" * BIG)
    rig.blobs.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.upload)
        await trio.testing.wait_all_tasks_blocked()
        file.truncate(0)
        file.truncate(BIG)
        rig.blobs.gate.set()
    file.check()
    assert await file.read(0, BIG) == bytes(BIG)
    await file.sync(False)
    assert await rig.saved() == bytes(BIG)


async def test_bytes_written_while_they_are_uploaded_are_saved(rig: Rig) -> None:
    file = await rig.open()
    file.write(0, b"x" * BIG)
    rig.blobs.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.sync, False)
        await trio.testing.wait_all_tasks_blocked()
        file.write(10, b"new")
        rig.blobs.gate.set()
    file.check()
    expected = b"x" * 10 + b"new" + b"x" * (BIG - 13)
    assert await file.read(0, BIG) == expected and file.changed
    await file.sync(False)
    assert await rig.saved() == expected


@pytest.mark.parametrize("how", ["upload", "sync"])
@pytest.mark.expect_log
async def test_a_file_is_changed_while_all_of_its_bytes_are_on_their_way(rig: Rig, how: str) -> None:
    file = await rig.open()
    file.write(0, b"x" * BIG)
    await file.sync(False)
    file.write(0, b"y" * BIG)
    rig.blobs.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_uploaded if how == "upload" else _refused, file)
        await trio.testing.wait_all_tasks_blocked()
        # A close must wait, and what somebody else saved must not take their place.
        assert file.changed
        await rig.elsewhere(b"theirs")
        again = await rig.open()
        assert again is file and await file.read(0, BIG) == b"y" * BIG
        rig.table.release(again)
        rig.blobs.gate.set()
    with pytest.raises(Stale):
        await file.sync(False)
    assert await rig.saved() == b"theirs"
    rig.table.release(file)
    assert await rig.kept() == b"y" * BIG


async def _uploaded(file: CachedFile) -> None:
    await file.upload()


async def _refused(file: CachedFile) -> None:
    with pytest.raises(Stale):
        await file.sync(False)


async def test_a_read_goes_on_when_the_file_is_cut_meanwhile(rig: Rig) -> None:
    file = await rig.open()
    for at in (0, BIG):
        file.write(at, b"x" * BIG)
        await file.sync(False)
    rig.table.release(file)
    rig.table.close()
    rig.blocks.close()
    file = await rig.open()
    rig.blobs.gate = trio.Event()
    found: list[bytes] = []

    async def read() -> None:
        found.append(await file.read(0, 2 * BIG))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            file.truncate(0)
            rig.blobs.gate.set()
    assert len(found) == 1 and set(found[0]) <= {0, ord("x")}
    assert await file.read(0, BIG) == b""


async def test_a_read_finds_what_is_given_up_while_it_waits(rig: Rig) -> None:
    """Saved bytes leave scratch when there are too many: who was about to read them takes them from their blob."""
    file = await rig.open()
    file.write(0, b"x" * BIG)
    await file.sync(False)
    rig.table.release(file)
    rig.table.close()
    rig.blocks.close()
    file = await rig.open()
    file.write(BIG, b"y" * LIMIT_BYTES)
    gate = rig.blobs.gate = trio.Event()
    found: list[bytes] = []

    async def read() -> None:
        found.append(await file.read(0, BIG + LIMIT_BYTES))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            rig.blobs.gate = None
            await file.sync(False)
            assert rig.table.local_bytes == 0, "nothing was given up"
            gate.set()
    assert found == [b"x" * BIG + b"y" * LIMIT_BYTES]


async def test_an_open_that_took_long_brings_no_older_version(rig: Rig) -> None:
    file = await rig.open()
    file.write(0, b"old")
    await file.sync(False)
    rig.store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.open)
        await trio.testing.wait_all_tasks_blocked()
        file.write(0, b"newer")
        await file.sync(False)
        rig.store.gate.set()
    assert await rig.saved() == b"newer"
    assert await file.read(0, 10) == b"newer"
    file.write(5, b"!")
    await file.sync(False)
    assert await rig.saved() == b"newer!"


@pytest.mark.expect_log
async def test_a_commit_elsewhere_makes_ours_stale_and_loses_nothing_of_theirs(rig: Rig) -> None:
    file = await rig.open()
    file.write(0, b"mine")
    await rig.elsewhere(b"theirs")
    with pytest.raises(Stale):
        await file.sync(False)
    assert file.changed and await file.read(0, 10) == b"mine"
    rig.table.release(file)
    assert await rig.kept() == b"mine"
    file = await rig.open()
    assert await file.read(0, 10) == b"theirs" == await rig.saved()


class WholeFiles:
    """A service that takes whole files only."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.gate: trio.Event | None = None

    async def replace(self, id: int, segments: list[Segment]) -> None:
        data = b"".join(os.pread(fd, stop - start, start) for fd, start, stop in segments)
        if self.gate is not None:
            await self.gate.wait()
        await self._rig.elsewhere(data)


async def test_bytes_written_while_the_rest_is_fetched_are_saved(rig: Rig) -> None:
    rig.table.replacer = WholeFiles(rig)
    file = await rig.open()
    await rig.elsewhere(b"x" * BIG)
    rig.table.release(file)
    file = await rig.open()
    file.write(0, b"mine")
    rig.blobs.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.sync, False)
        await trio.testing.wait_all_tasks_blocked()
        file.write(50, b"new")
        rig.blobs.gate.set()
    file.check()
    await file.sync(False)
    expected = b"mine" + b"x" * 46 + b"new" + b"x" * (BIG - 53)
    assert await file.read(0, BIG) == expected == await rig.saved()


@pytest.mark.parametrize("when", ["while it is fetched", "while it is sent"])
async def test_a_file_that_is_cut_while_it_is_saved_whole_stays_cut(rig: Rig, when: str) -> None:
    whole = rig.table.replacer = WholeFiles(rig)
    file = await rig.open()
    await rig.elsewhere(b"x" * BIG)
    rig.table.release(file)
    file = await rig.open()
    file.write(0, b"mine")
    gate = trio.Event()
    if when == "while it is sent":
        whole.gate = gate
    else:
        rig.blobs.gate = gate
    async with trio.open_nursery() as nursery:
        nursery.start_soon(file.sync, False)
        await trio.testing.wait_all_tasks_blocked()
        file.truncate(2)
        file.truncate(BIG)
        gate.set()
    file.check()
    await file.sync(False)
    expected = b"mi" + bytes(BIG - 2)
    assert await file.read(0, BIG) == expected == await rig.saved()


async def test_an_empty_write_changes_nothing(rig: Rig) -> None:
    file = await rig.open()
    file.write(100, b"")
    file.check()
    assert file.length == 0 and not file.changed


@pytest.mark.expect_log
async def test_who_reads_on_after_a_lost_save_sees_what_the_space_has(rig: Rig) -> None:
    """Not zeros where the writer had cut, nor what was uploaded of the rest."""
    file = await rig.open()
    file.write(0, b"saved" * 10_000)
    await file.sync(False)
    reader = await rig.open()
    assert reader is file
    file.truncate(7)
    file.write(20_000, b"lost" * 10_000)
    await file.upload()
    file.write(3, b"too")
    file.discard("told to")
    assert await reader.read(0, 1 << 20) == b"saved" * 10_000 == await rig.saved()
    assert not file.changed
