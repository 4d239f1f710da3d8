"""Asking ahead of a program that walks a tree: which containers and files, and how many round trips that saves."""

import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.unit.rigs import file_system
from vosfs.errors import NodeNotFound, PermissionDenied, ServiceUnavailable
from vosfs.listing import LISTINGS_KEPT_MAX
from vosfs.listing import LISTINGS_MAX as LISTED_AHEAD_MAX
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import CONTAINER, DATA, ROOT_ID, Change, Content, Extent, Found, NewNode, Node
from vosfs.metadata.store import PAGE_NODES_MAX
from vosfs.metadata.walk import (
    CONTAINERS_MAX,
    FILES_MAX,
    FILES_MIN,
    LISTINGS_MAX,
    LOOKUPS_MIN,
    PLACES_MAX,
    RECENT,
    SEEN_MAX,
    WINDOW_MAX,
    WINDOW_MIN,
    LookAhead,
    OpenAhead,
    WalkAhead,
)

# -- the decision ----------------------------------------------------------------------------------------------------


def _goes_on(walk: WalkAhead, id: int, *containers: int, most: int = 1000) -> list[int]:
    walk.begun(id)
    walk.found(containers)
    return walk.next(most)


def test_one_listing_is_no_walk() -> None:
    walk = WalkAhead()
    assert _goes_on(walk, 1, 11, 12, 13) == [] and _goes_on(walk, 2, 21) == []


def test_going_on_with_what_was_listed_doubles_the_window() -> None:
    walk = WalkAhead()
    _goes_on(walk, 1, *range(100, 200))
    assert _goes_on(walk, 100) == list(range(101, 101 + WINDOW_MIN))
    assert _goes_on(walk, 101) == list(range(101 + WINDOW_MIN, 102 + 2 * WINDOW_MIN)), "each once only"
    for id in range(102, 110):
        _goes_on(walk, id)
    assert _goes_on(walk, 110) == [110 + WINDOW_MAX]
    assert _goes_on(walk, 5) == [], "somewhere else: it begins anew"


def test_what_there_is_no_room_for_comes_later() -> None:
    walk = WalkAhead()
    _goes_on(walk, 1, 2, 3, 4, 5)
    assert _goes_on(walk, 2, most=2) == [3, 4] and walk.next(0) == [] and walk.next(2) == [5]


def test_a_walk_goes_down_before_it_goes_on() -> None:
    walk = WalkAhead()
    _goes_on(walk, 1, 2, 3, 4)
    assert _goes_on(walk, 2, 21, 22, most=3) == [21, 22, 3]
    assert _goes_on(walk, 21, 211) == [211, 4]


def test_what_was_seen_is_bounded() -> None:
    walk = WalkAhead()
    _goes_on(walk, 1, *range(10, 10 + 2 * SEEN_MAX))
    assert _goes_on(walk, 10 + SEEN_MAX) == [], "forgotten"
    assert _goes_on(walk, 10) == list(range(11, 11 + WINDOW_MIN))


def _ordered(*listings: tuple[int, Iterable[int]]) -> OpenAhead:
    order = OpenAhead()
    for container, files in listings:
        order.found(container, files, begins=True)
    return order


def test_one_file_is_no_sequence() -> None:
    order = _ordered((1, range(100, 200)))
    assert order.opened(100) == [] and order.opened(150) == [] and order.opened(7) == []


def test_going_on_with_the_next_file_doubles_the_window() -> None:
    order = _ordered((1, range(100, 300)))
    order.opened(100)
    assert order.opened(101) == list(range(102, 102 + FILES_MIN))
    asked = list(range(102, 102 + FILES_MIN))
    for id in range(102, 290):
        more = order.opened(id)
        assert len(more) <= FILES_MAX
        asked += more
    assert asked == list(range(102, 300)), "each once, and in order"
    assert order.opened(120) == [] and order.opened(280) == [], "here and there: it begins anew"


def test_files_are_asked_for_in_few_messages() -> None:
    order = _ordered((1, range(1000, 2000)))
    messages = [more for id in range(1000, 2000) if (more := order.opened(id))]
    assert sum(map(len, messages)) == 998 and len(messages) < 2 * 1000 / FILES_MAX + 5


def test_several_programs_that_share_the_work_are_one_sequence() -> None:
    order = _ordered((1, range(1000, 1100)))
    asked = [other for id in (1000, 1003, 1001, 1002, 1005, 1004, 1007, 1006) for other in order.opened(id)]
    assert asked and len(asked) == len(set(asked)) and min(asked) == 1004


def test_a_walk_goes_on_with_the_next_container() -> None:
    order = _ordered((1, range(100, 130)), (2, range(200, 300)), (3, range(300, 400)))
    for id in range(100, 130):
        order.opened(id)
    assert order.opened(200) == list(range(201, 201 + FILES_MAX))
    assert order.opened(300) == [], "it was not through with the one before"


def test_the_last_files_are_not_waited_for() -> None:
    order = _ordered((1, range(100, 100 + 4)))
    assert order.opened(100) == [] and order.opened(101) == [102, 103] and order.opened(102) == []


def test_a_listing_that_is_read_again_is_taken_as_it_is_now() -> None:
    order = _ordered((1, range(100, 110)))
    order.found(1, range(105, 115), begins=True)
    order.found(1, range(115, 120), begins=False)
    order.opened(105)
    assert order.opened(106) == list(range(107, 107 + FILES_MIN))
    assert order.opened(100) == [], "no longer there"


def test_places_are_bounded() -> None:
    order = _ordered(*((n, range(n * 10_000, n * 10_000 + 5_000)) for n in range(1, 10)))
    assert order._count == PLACES_MAX == sum(map(len, order._listings.values()))
    order.opened(90_000)
    assert order.opened(90_001) != [] and order.opened(10_000) == []


def test_containers_without_files_take_no_memory() -> None:
    order = _ordered(*((n, range(0)) for n in range(1, 1000)))
    assert not order._listings


def test_listings_are_bounded() -> None:
    order = _ordered(*((n, [n]) for n in range(1, 10 * LISTINGS_MAX)))
    assert len(order._listings) == LISTINGS_MAX == order._count


def test_every_second_file_is_a_sequence_and_every_eighth_is_none() -> None:
    order = _ordered((1, range(1000, 3000)))
    assert any(order.opened(id) for id in range(1000, 1100, 2))
    order = _ordered((1, range(1000, 3000)))
    assert not any(order.opened(id) for id in range(1000, 3000, RECENT))


def test_a_file_that_is_opened_twice_is_no_sequence() -> None:
    order = _ordered((1, range(100, 200)))
    assert [order.opened(id) for id in (100, 100, 100)] == [[], [], []]
    assert order.opened(101) == list(range(102, 102 + FILES_MIN)) and order.opened(101) == []
    assert order.opened(102) != []


def test_what_there_is_no_room_for_is_asked_for_later() -> None:
    order = _ordered((1, range(100, 200)))
    assert [order.opened(id, room=False) for id in range(100, 140)] == [[]] * 40
    assert order.opened(140) == list(range(141, 141 + FILES_MAX))


def test_a_file_of_two_names_and_a_listing_read_twice_add_nothing() -> None:
    order = _ordered((1, [10, 11, 12, 13, 12, 14, 11]))
    order.found(1, range(12, 18), begins=False)
    order.found(1, range(15, 18), begins=False)
    asked = [other for id in range(10, 18) for other in order.opened(id)]
    assert asked == [12, 13, 14, 15, 16, 17]


def _names(first: int, count: int) -> list[bytes]:
    return [b"f%05d" % number for number in range(first, first + count)]


def test_a_few_look_ups_bring_no_listing() -> None:
    ahead = LookAhead()
    assert [ahead.asked(1, name) for name in _names(0, LOOKUPS_MIN - 1)] == [None] * (LOOKUPS_MIN - 1)
    assert ahead.asked(2, b"elsewhere") is None


def test_many_look_ups_bring_the_listing_and_in_order_what_comes_next() -> None:
    ahead = LookAhead()
    first = [ahead.asked(1, name) for name in _names(5000, LOOKUPS_MIN)]
    assert first[-1] == b"" and first[:-1] == [None] * (LOOKUPS_MIN - 1)
    for at in (6000, 8000):
        names = _names(at, LOOKUPS_MIN)
        assert [after for name in names if (after := ahead.asked(1, name)) is not None] == [names[-1]]


def test_look_ups_in_no_order_bring_the_listing_less_and_less_often() -> None:
    ahead = LookAhead()
    names = [b"%d" % (number * 7919 % 10_007) for number in range(10_000)]
    listed = [number for number, name in enumerate(names, 1) if ahead.asked(1, name) is not None]
    assert listed[:4] == [LOOKUPS_MIN, 2 * LOOKUPS_MIN, 4 * LOOKUPS_MIN, 8 * LOOKUPS_MIN]


def test_containers_whose_look_ups_are_counted_are_bounded() -> None:
    ahead = LookAhead()
    for container in range(2 * CONTAINERS_MAX):
        ahead.asked(container, b"a")
    assert len(ahead._containers) == CONTAINERS_MAX


# -- a mount that does it --------------------------------------------------------------------------------------------

ROUND_TRIP_S = 1.0
DOTS = 2
CONTAINERS, FILES = 50, 3


class Distant:
    """A tree whose listings take a round trip each."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.asked: list[int] = []
        self.at_once = self.most_at_once = 0
        self.refused: set[int] = set()
        self.looked_up: list[bytes] = []
        self.opened: list[int] = []
        self.opened_ahead: list[int] = []
        self.purged: set[int] = set()
        self.broken = False

    async def open(self, id: int) -> Content:
        if id in self.purged:
            raise NodeNotFound(f"node {id}")
        self.opened.append(id)
        await trio.sleep(ROUND_TRIP_S)
        return await self._store.open(id)

    async def open_many(self, ids: list[int]) -> list[Content]:
        self.opened_ahead += ids
        await trio.sleep(ROUND_TRIP_S)
        if self.broken:
            raise ServiceUnavailable("told to")
        return [await self._store.open(id) for id in ids]

    async def find(self, parent: int, name: bytes) -> Found:
        self.looked_up.append(name)
        await trio.sleep(ROUND_TRIP_S)
        return Found(await self._store.lookup(parent, name), None)

    async def get(self, id: int) -> Node:
        if id in self.purged:
            raise NodeNotFound(f"node {id}")
        return await self._store.get(id)

    async def children(self, parent: int, after: bytes, limit: int) -> list[tuple[bytes, Node]]:
        self.asked.append(parent)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await trio.sleep(ROUND_TRIP_S)
        self.at_once -= 1
        if parent in self.refused:
            raise PermissionDenied("not yours")
        return await self._store.children(parent, after, limit)


class Rig:
    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.store = MemoryStore("me")
        self.distant = Distant(self.store)
        self.tree = CachedTree(self.distant)  # type: ignore[arg-type]
        self.tree.live = True
        self.fs = file_system(self.tree, directory, nursery)
        self.containers: list[int] = []

    async def fill(self) -> None:
        for number in range(CONTAINERS):
            container = await self.store.create(ROOT_ID, b"d%02d" % number, NewNode(CONTAINER))
            self.containers.append(container.id)
            for index in range(FILES):
                await self.store.create(container.id, b"f%d" % index, NewNode(DATA))

    async def list(self, id: int) -> list[bytes]:
        """As readdir(3) does."""
        (listing, _), names = self.fs.listings.at(id, 0), []
        while entries := await self.fs.listings.entries(listing, len(names)):
            names += [name for name, _, _ in entries]
        return names


@pytest.fixture
async def rig(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Rig]:
    made = Rig(tmp_path, nursery)
    await made.fill()
    yield made


async def _walk(rig: Rig) -> float:
    """Seconds for all containers, one after the other."""
    begun = trio.current_time()
    assert len(await rig.list(ROOT_ID)) == CONTAINERS
    for id in rig.containers:
        assert await rig.list(id) == [b"f%d" % index for index in range(FILES)]
    return trio.current_time() - begun


async def test_a_walk_waits_for_few_of_its_listings(rig: Rig, autojump_clock: MockClock) -> None:
    """51 listings of one round trip each: they take eight at most, and none is asked for twice."""
    assert await _walk(rig) <= 8 * ROUND_TRIP_S
    assert sorted(rig.distant.asked) == sorted([ROOT_ID, *rig.containers])
    assert rig.distant.most_at_once <= LISTED_AHEAD_MAX + 1


async def test_without_a_feed_nothing_is_listed_ahead(rig: Rig, autojump_clock: MockClock) -> None:
    """It would not be kept."""
    rig.tree.live = False
    assert await _walk(rig) == (1 + CONTAINERS) * ROUND_TRIP_S
    assert rig.distant.asked == [ROOT_ID, *rig.containers]


async def test_a_look_into_one_container_asks_for_no_other(rig: Rig, autojump_clock: MockClock) -> None:
    await rig.list(rig.containers[7])
    await rig.list(rig.containers[3])
    assert rig.distant.asked == [rig.containers[7], rig.containers[3]]


async def test_what_cannot_be_listed_ahead_fails_when_it_is_asked_for(rig: Rig, autojump_clock: MockClock) -> None:
    secret = rig.containers[2]
    rig.distant.refused.add(secret)
    await rig.list(ROOT_ID)
    for id in rig.containers[:2]:
        await rig.list(id)
    with pytest.raises(PermissionDenied):
        await rig.list(secret)
    assert len(await rig.list(rig.containers[3])) == FILES


async def test_a_container_too_large_to_be_kept_is_asked_for_once_ahead(rig: Rig, autojump_clock: MockClock) -> None:
    large = rig.containers[-1]
    for number in range(PAGE_NODES_MAX):
        await rig.store.create(large, b"n%05d" % number, NewNode(DATA))
    await rig.list(ROOT_ID)
    for id in rig.containers[:-1]:
        await rig.list(id)
    assert rig.distant.asked.count(large) == 1
    assert len(await rig.list(large)) == PAGE_NODES_MAX + FILES


# -- files of it that are opened -----------------------------------------------------------------------------------------

SMALL_FILES = 100


async def _small_files(rig: Rig) -> list[int]:
    """A container of files, listed."""
    files = []
    for number in range(SMALL_FILES):
        node = await rig.store.create(rig.containers[0], b"s%03d" % number, NewNode(DATA))
        data = b"content of %d" % number
        await rig.store.commit(node.id, node.version, len(data), [Extent(0, len(data), "", 0, data)], [])
        files.append(node.id)
    await rig.list(rig.containers[0])
    return files


async def _read(rig: Rig, id: int) -> bytes:
    handle, _ = await rig.fs.open(id, os.O_RDONLY)
    data = bytes(await rig.fs.read(handle, 0, 100))
    await rig.fs.release(handle)
    return data


async def test_files_are_opened_in_few_round_trips(rig: Rig, autojump_clock: MockClock) -> None:
    files = await _small_files(rig)
    begun = trio.current_time()
    for number, id in enumerate(files):
        assert await _read(rig, id) == b"content of %d" % number
    assert trio.current_time() - begun <= 10 * ROUND_TRIP_S
    assert sorted(rig.distant.opened + rig.distant.opened_ahead) == sorted(files), "each was asked for once"


async def test_look_ups_become_a_listing(rig: Rig, autojump_clock: MockClock) -> None:
    """Files that are opened by name, and never listed by a program."""
    files = await _small_files(rig)
    rig.tree.forget_all()
    begun = trio.current_time()
    for number, id in enumerate(files):
        node = await rig.fs.lookup(rig.containers[0], b"s%03d" % number)
        assert node.id == id and await _read(rig, id) == b"content of %d" % number
    assert trio.current_time() - begun <= (2 * LOOKUPS_MIN + 12) * ROUND_TRIP_S
    assert len(rig.distant.looked_up) <= LOOKUPS_MIN + 1
    new = await rig.store.create(rig.containers[0], b"new", NewNode(DATA))
    assert (await rig.fs.lookup(rig.containers[0], b"new")).id == new.id, "though no feed has told of it"


async def test_what_changed_since_is_asked_for_again(rig: Rig, autojump_clock: MockClock) -> None:
    files = await _small_files(rig)
    for id in files[:2]:
        await _read(rig, id)
    await trio.sleep(2 * ROUND_TRIP_S)
    assert files[2] in rig.distant.opened_ahead
    await rig.store.commit(files[2], (await rig.store.get(files[2])).version, 3, [Extent(0, 3, "", 0, b"new")], [])
    rig.fs.changed_elsewhere(Change(files[2], 0, b"", ""))
    assert await _read(rig, files[2]) == b"new"


async def test_what_changes_while_it_is_opened_ahead_is_asked_for_again(rig: Rig, autojump_clock: MockClock) -> None:
    files = await _small_files(rig)
    await _read(rig, files[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_read, rig, files[1])
        await trio.sleep(ROUND_TRIP_S / 2)
        rig.fs.changed_elsewhere(Change(files[3], 0, b"", ""))
    for number in (2, 3):
        assert await _read(rig, files[number]) == b"content of %d" % number
    assert files[2] not in rig.distant.opened and files[3] in rig.distant.opened


async def test_a_file_of_two_names_is_opened_ahead_once(rig: Rig, autojump_clock: MockClock) -> None:
    files = await _small_files(rig)
    await rig.store.link(files[4], rig.containers[0], b"s004-again")
    rig.tree.forget_all()
    await rig.list(rig.containers[0])
    for number, id in enumerate(files[:10]):
        assert await _read(rig, id) == b"content of %d" % number
    assert rig.distant.opened_ahead.count(files[4]) == 1


async def test_opening_ahead_that_fails_is_nobodys_error(rig: Rig, autojump_clock: MockClock) -> None:
    files = await _small_files(rig)
    rig.distant.broken = True
    for number, id in enumerate(files[:20]):
        assert await _read(rig, id) == b"content of %d" % number
    assert rig.distant.opened == files[:20]


async def test_without_a_feed_nothing_is_opened_ahead(rig: Rig, autojump_clock: MockClock) -> None:
    files = await _small_files(rig)
    rig.tree.live = False
    for id in files:
        await _read(rig, id)
    assert rig.distant.opened_ahead == []


async def test_a_file_that_is_open_and_purged_is_read_on(rig: Rig, autojump_clock: MockClock) -> None:
    """Another mount replaced it."""
    files = await _small_files(rig)
    handle, _ = await rig.fs.open(files[5], os.O_RDONLY)
    rig.distant.purged.add(files[5])
    rig.fs.changed_elsewhere(Change(files[5], rig.containers[0], b"s005", ""))
    node = await rig.fs.attributes(files[5])
    assert (node.nlink, node.length) == (0, len(b"content of 5"))
    assert bytes(await rig.fs.read(handle, 3, 100)) == b"content of 5"[3:]
    await rig.fs.release(handle)
    with pytest.raises(NodeNotFound):
        await rig.fs.attributes(files[5])


# -- positions in a listing, where no directory is opened -----------------------------------------------------------------


async def test_a_listing_goes_on_where_it_was_though_others_begin(rig: Rig, autojump_clock: MockClock) -> None:
    first, _ = rig.fs.listings.at(ROOT_ID, 0)
    begun = await rig.fs.listings.entries(first, 0)
    second, _ = rig.fs.listings.at(ROOT_ID, 0)
    assert second is not first
    assert rig.fs.listings.at(ROOT_ID, first.position + DOTS + len(begun)) == (first, DOTS + len(begun))
    assert rig.fs.listings.at(rig.containers[0], first.position + DOTS)[0] not in (first, second), (
        "of another directory"
    )


async def test_a_listing_that_is_forgotten_is_begun_again_where_it_was(rig: Rig, autojump_clock: MockClock) -> None:
    old, _ = rig.fs.listings.at(ROOT_ID, 0)
    begun = await rig.fs.listings.entries(old, 0)
    for _ in range(LISTINGS_KEPT_MAX):
        rig.fs.listings.at(rig.containers[0], 0)
    new, at = rig.fs.listings.at(ROOT_ID, old.position + DOTS + len(begun))
    assert new is not old and at == DOTS + len(begun)
    rest = []
    while entries := await rig.fs.listings.entries(new, at - DOTS + len(rest)):
        rest += entries
    assert [name for name, _, _ in (*begun, *rest)] == [b"d%02d" % number for number in range(CONTAINERS)]


@pytest.mark.parametrize("count", [100, PAGE_NODES_MAX + 200])
async def test_names_that_come_later_do_not_move_the_end(rig: Rig, autojump_clock: MockClock, count: int) -> None:
    """Of a listing that one program has read to its end and another is in the middle of."""
    parent = rig.containers[0]
    for number in range(count):
        await rig.store.create(parent, b"m%05d" % number, NewNode(DATA))
    listing, _ = rig.fs.listings.at(parent, 0)
    names: list[bytes] = []
    while entries := await rig.fs.listings.entries(listing, len(names)):
        names += [name for name, _, _ in entries]
    assert len(names) == count + FILES
    for number in range(20):
        new = await rig.store.create(parent, b"a%02d" % number, NewNode(DATA))
        rig.fs.changed_elsewhere(Change(new.id, parent, b"a%02d" % number, ""))
    assert await rig.fs.listings.entries(listing, len(names)) == []
    if count < PAGE_NODES_MAX:
        middle = [name for name, _, _ in await rig.fs.listings.entries(listing, 50)]
        assert middle == names[50 : 50 + len(middle)], "short ones are kept as they were"
    assert len(await rig.list(parent)) == count + FILES + 20
