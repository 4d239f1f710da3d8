"""Which handles stand, and that each ends once."""

import os
import types
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.rigs import file_system
from vosfs import standing
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import DATA, ROOT_ID, Change, Content, Extent, NewNode
from vosfs.standing import LENGTH_MAX, STANDING_MAX, StandingHandles


class Carrier:
    """What the library does, told by hand: programs that open a file again and close it."""

    def __init__(self) -> None:
        self.released: list[int] = []
        self.standing: dict[int, int] = {}
        self._opens: dict[int, int] = {}
        self._withdrawn: set[int] = set()
        self._next = 1
        self.handles = StandingHandles(self.released.append)
        self.handles.stand, self.handles.withdraw = self._stand, self._withdraw

    def _stand(self, id: int, handle: int) -> bool:
        assert id not in self.standing
        self.standing[id] = handle
        return True

    def _withdraw(self, id: int, handle: int) -> bool:
        assert self.standing.pop(id) == handle
        self._withdrawn.add(handle)
        return not self._opens.get(handle)

    def open(self, id: int, length: int = 10, **other: object) -> int:
        """A program opens a file to read it."""
        handle = self.standing.get(id, 0)
        if not handle:
            handle, self._next = self._next, self._next + 1
            state = {
                "handles": 1,
                "changed": False,
                "unlinked": False,
                "has_local": False,
                "scratch_file": False,
                **other,
            }
            file = types.SimpleNamespace(node=types.SimpleNamespace(id=id, length=length, version=1), **state)
            self._opens[handle] = 1
            self.handles.offer(file, handle)  # type: ignore[arg-type]  # what is asked of a file
        else:
            self._opens[handle] += 1
        return handle

    def close(self, handle: int) -> None:
        """And closes it; the last release of one that does not stand comes to Python."""
        self._opens[handle] -= 1
        if not self._opens[handle] and handle not in self.standing.values():
            assert handle in self._withdrawn or handle not in self.released
            self.released.append(handle)

    def open_handles(self) -> list[int]:
        return [handle for handle, opens in self._opens.items() if opens]


@pytest.mark.parametrize(
    ("why", "other"),
    [
        ("somebody else has it open", {"handles": 2}),
        ("it is not saved", {"changed": True}),
        ("it is no more", {"unlinked": True}),
        ("it is long", {"length": LENGTH_MAX + 1}),
        ("its bytes are in memory for as long as it is open", {"has_local": True}),
    ],
)
def test_some_do_not_stand(why: str, other: dict[str, object]) -> None:
    carrier = Carrier()
    carrier.open(1, **other)  # type: ignore[arg-type]
    assert not carrier.standing, why


def test_one_in_a_scratch_file_stands() -> None:
    carrier = Carrier()
    carrier.open(1, LENGTH_MAX, has_local=True, scratch_file=True)
    assert list(carrier.standing) == [1]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["open", "open", "open", "close", "end", "end all"]), st.integers(1, 9), st.integers(0, 400)
    ),
    max_size=60,
)


@given(STEPS)
def test_every_handle_ends_once_and_the_limits_hold(steps: list[tuple[str, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standing, "STANDING_MAX", 4)
        patch.setattr(standing, "STANDING_BYTES_MAX", 1000)
        carrier, lengths = Carrier(), dict[int, int]()
        for step, number, length in steps:
            if step == "open":
                if number not in carrier.standing:
                    lengths[number] = length
                carrier.open(number, length)
            elif step == "close" and (opened := carrier.open_handles()):
                carrier.close(opened[number % len(opened)])
            elif step == "end":
                carrier.handles.end(number)
                assert number not in carrier.standing
            elif step == "end all":
                carrier.handles.end_all()
            assert len(carrier.standing) <= 4 and sum(lengths[id] for id in carrier.standing) <= 1000
        for handle in carrier.open_handles():
            while handle in carrier.open_handles():
                carrier.close(handle)
        carrier.handles.end_all()
        assert sorted(carrier.released) == list(range(1, carrier._next))


# -- in a file system ------------------------------------------------------------------------------------------------


class Answering:
    """A tree of which one answer is on its way for as long as a test likes."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.answered: trio.Event | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    async def open(self, id: int) -> Content:
        found = await self._store.open(id)
        if self.answered is not None:
            await self.answered.wait()
        return found


class Rig:
    """A mount without FUSE, whose library has every handle stand that is offered."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.store = MemoryStore("me")
        self.line = Answering(self.store)
        self.tree = CachedTree(self.line)  # type: ignore[arg-type]
        self.tree.live = True
        self.fs = file_system(self.tree, directory, nursery)
        self.files = self.fs.files
        self.fs.openings.bytes_too = True
        self.stands: dict[int, int] = {}
        self.fs.standing.stand = lambda id, handle: self.stands.setdefault(id, handle) == handle
        self.fs.standing.withdraw = lambda id, handle: self.stands.pop(id) == handle

    async def saved(self, name: bytes, data: bytes) -> int:
        """A file in the space, made elsewhere."""
        node = await self.store.create(ROOT_ID, name, NewNode(DATA))
        await self.save(node.id, data)
        await self.tree.get(node.id)
        return node.id

    async def save(self, id: int, data: bytes) -> None:
        await self.store.commit(id, None, len(data), [Extent(0, len(data), data=data)], [])

    async def read(self, id: int) -> bytes:
        """What a program reads that opens it now; a handle that stands is not released."""
        handle = self.stands.get(id) or (await self.fs.open(id, os.O_RDONLY))[0]
        return bytes(await self.fs.read(handle, 0, 1000))


@pytest.fixture
def rig(tmp_path: Path, nursery: trio.Nursery) -> Rig:
    return Rig(tmp_path, nursery)


async def test_more_unsaved_bytes_than_there_is_room_for_end_all_that_stands(rig: Rig) -> None:
    """Each that ended asked for room again, within the request for room: a mount died of it."""
    ids = [await rig.saved(b"f%d" % number, b"x") for number in range(500)]
    for id in ids:
        assert await rig.read(id) == b"x"
    assert len(rig.stands) == len(ids) <= STANDING_MAX
    _, node = await rig.fs.create(ROOT_ID, b"big", 0o644, -1, -1, os.O_RDWR)
    big = rig.files.get(node.id)
    assert big is not None
    big.write(0, bytes(2 * rig.files.limit_bytes))
    rig.fs.changed_elsewhere(Change(ids[0], ROOT_ID, b"f0", "them"))
    other, _ = await rig.fs.open(await rig.saved(b"last", b"x" * (LENGTH_MAX + 1)), os.O_RDONLY)
    await rig.fs.release(other)
    assert not rig.stands and rig.files.open_files() == 1


async def test_a_change_that_comes_while_a_file_is_opened_is_not_forgotten(rig: Rig, nursery: trio.Nursery) -> None:
    id = await rig.saved(b"f", b"old")
    rig.line.answered = trio.Event()
    nursery.start_soon(rig.fs.open, id, os.O_RDONLY)
    await trio.testing.wait_all_tasks_blocked()
    await rig.save(id, b"new")
    # The answer of before, and behind it nobody who would tell of the change once more.
    rig.fs.changed_elsewhere(Change(id, ROOT_ID, b"f", "them"))
    rig.line.answered.set()
    await trio.testing.wait_all_tasks_blocked()
    assert not rig.stands and await rig.read(id) == b"new"


async def test_a_record_of_another_version_ends_it_before_the_feed_does(rig: Rig) -> None:
    id = await rig.saved(b"f", b"old")
    assert await rig.read(id) == b"old" and rig.stands
    node = rig.tree.peek(id)
    assert node is not None
    rig.tree.remember(msgspec.structs.replace(node, mode=0o600))
    assert rig.stands, "its attributes alone changed"
    await rig.save(id, b"new")
    rig.tree.remember(await rig.store.get(id))
    assert not rig.stands and await rig.read(id) == b"new"


async def test_what_comes_to_stand_while_a_writer_waits_ends_when_it_has_it(rig: Rig, nursery: trio.Nursery) -> None:
    id = await rig.saved(b"f", b"old")
    rig.line.answered = trio.Event()
    nursery.start_soon(rig.fs.open, id, os.O_RDONLY)
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(rig.fs.open, id, os.O_RDWR)
    await trio.testing.wait_all_tasks_blocked()
    rig.line.answered.set()
    await trio.testing.wait_all_tasks_blocked()
    file = rig.files.get(id)
    assert file is not None and file.writers == 1 and not rig.stands
