"""What was acknowledged first and told later: order, backpressure, trouble, and the journal."""

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from vosfs.cache import journal
from vosfs.cache.journal import Journal
from vosfs.client import HttpClient
from vosfs.errors import (
    InvalidArgument,
    NodeNotFound,
    ProtocolError,
    ServiceUnavailable,
    Stale,
    StorageFull,
    VOSpaceError,
)
from vosfs.metadata import behind as behind_module
from vosfs.metadata import messages as m
from vosfs.metadata.behind import DELAY_S, OWED_MAX, WriteBehind
from vosfs.metadata.gateway import GatewayTree
from vosfs.metadata.node import CONTAINER, Attributes, NewNode

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(m.AnyRequest).decode


class Service:
    """Takes batches, unless it is down, and answers as it is told."""

    def __init__(self) -> None:
        self.down: VOSpaceError | None = None
        self.refuse: dict[int, m.Failure] = {}
        """Of the next batch."""
        self.batches: list[m.Batch] = []
        self.most: int | None = None
        """More requests than this in a batch are too many for something in between."""
        self.answering = trio.Event()
        """Cleared by who wants a batch to be under way for a while."""
        self.answering.set()
        self.asked = 0

    async def send(self, request: m.Request) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(request, m.Delegate):
            self.asked += 1
            return True
        batch = _decode(_encode(request))
        assert isinstance(batch, m.Batch)
        if self.down is not None:
            raise self.down
        if self.most is not None and len(batch.requests) > self.most:
            raise ProtocolError("status 413 with a body that is not ours")
        self.batches.append(batch)
        await self.answering.wait()
        failures, self.refuse = list(self.refuse.items()), {}
        failed = {number for number, _ in failures}
        results = [(n, msgspec.Raw(_encode({"n": str(n)}))) for n in batch.wanted if n not in failed]
        return m.Outcomes(failures, results)

    @property
    def names(self) -> list[bytes]:
        return [r.name for batch in self.batches for r in batch.requests if isinstance(r, m.Create)]


def create(number: int) -> m.Create:
    return m.Create(1, b"%d" % number, NewNode(CONTAINER), 100 + number)


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    yield Service()


@pytest.fixture
async def behind(service: Service, nursery: trio.Nursery) -> AsyncIterator[WriteBehind]:
    made = WriteBehind(service.send, {m.Properties: msgspec.msgpack.Decoder(dict[str, str]).decode}, 10.0)
    made.held = True
    nursery.start_soon(made.run)
    yield made


async def test_changes_gather_and_keep_their_order(
    autojump_clock: MockClock, service: Service, behind: WriteBehind
) -> None:
    for number in range(100):
        behind.add(create(number))
    assert behind.owed == 100 and not behind.idle
    began = trio.current_time()
    await behind.drain()
    assert behind.idle and len(service.batches) == 1
    assert service.names == [b"%d" % n for n in range(100)]
    behind.add(create(100))
    while not behind.idle:
        await trio.sleep(DELAY_S)
    assert trio.current_time() - began < 1, "and go out though nobody waits for them"


async def test_who_asks_travels_behind_what_is_owed(
    autojump_clock: MockClock, service: Service, behind: WriteBehind
) -> None:
    behind.add(create(1))
    assert await behind.ordered(m.Properties(101)) == {"n": "1"}
    (batch,) = service.batches
    assert [type(r) for r in batch.requests] == [m.Create, m.Properties] and batch.wanted == [1]


async def test_who_asks_needs_no_other_task_to_be_heard(service: Service) -> None:
    behind = WriteBehind(service.send, {m.Properties: msgspec.msgpack.Decoder(dict[str, str]).decode}, 10.0)
    behind.add(create(1))
    assert await behind.ordered(m.Properties(101)) == {"n": "1"}
    assert behind.idle


async def test_an_asker_that_is_cancelled_takes_nothing_along(
    autojump_clock: MockClock, service: Service, behind: WriteBehind
) -> None:
    service.answering = trio.Event()
    behind.add(create(1))
    with trio.move_on_after(1):
        await behind.ordered(m.Properties(101))
    service.answering.set()
    behind.add(create(2))
    await behind.drain()
    assert behind.owed == 0 and [batch.again for batch in service.batches] == [False, True]
    assert service.names == [b"1", b"1", b"2"], "sent again, and marked so: the service has it once"


async def test_changes_that_come_during_a_batch_gather_too(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, nursery: trio.Nursery
) -> None:
    service.answering = trio.Event()
    behind.add(create(1))
    nursery.start_soon(behind.ordered, m.Properties(101))
    await trio.testing.wait_all_tasks_blocked()
    behind.add(create(2))
    await trio.sleep(2 * DELAY_S)
    service.answering.set()
    await trio.sleep(DELAY_S / 2)
    behind.add(create(3))
    await trio.sleep(2 * DELAY_S)
    assert [len(batch.requests) for batch in service.batches] == [2, 2]


async def test_nobody_waits_for_changes_to_gather_who_asks_during_a_batch(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, nursery: trio.Nursery
) -> None:
    service.answering = trio.Event()
    behind.add(create(1))
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(behind.ordered, m.Properties(101))
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(behind.ordered, m.Properties(102))
    await trio.testing.wait_all_tasks_blocked()
    service.answering.set()
    began = trio.current_time()
    for _ in range(10):
        await trio.testing.wait_all_tasks_blocked()
    assert behind.owed == 0 and trio.current_time() == began


async def test_who_asks_right_after_a_failure_has_it_tried_again_at_once(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, caplog: pytest.LogCaptureFixture
) -> None:
    service.down = ServiceUnavailable("gone")
    behind.add(create(1))
    with pytest.raises(ServiceUnavailable):
        await behind.ordered(m.Properties(101))
    service.down = None
    began = trio.current_time()
    assert await behind.ordered(m.Properties(101)) == {"n": "1"}
    assert trio.current_time() - began <= DELAY_S
    caplog.clear()


async def test_what_was_done_is_out_of_the_journal_before_the_delegation_goes(tmp_path: Path) -> None:
    left: list[list[bytes]] = []
    tree = GatewayTree(HttpClient("http://127.0.0.1:1"), "/gateway", "")
    service = Service()

    async def send(request: m.Request, *more: object, **others: object) -> Any:
        if isinstance(request, m.GiveBack):
            left.append(journal.records(tmp_path / "journal"))
            return None
        return await service.send(request)

    tree._send = tree.behind._send = send  # type: ignore[method-assign, assignment]
    tree.behind.journal = Journal(tmp_path / "journal", b"whose")
    tree.behind.held = True
    tree.behind.add(create(1))
    await tree.behind.ordered(m.Properties(101))
    assert len(journal.records(tmp_path / "journal")) == 2
    await tree.give_back()
    assert left == [[]]


async def test_a_refused_answer_is_the_askers_error(
    autojump_clock: MockClock, service: Service, behind: WriteBehind
) -> None:
    service.refuse = {1: m.Failure("NodeNotFound", "gone")}
    behind.add(create(1))
    with pytest.raises(NodeNotFound):
        await behind.ordered(m.Properties(101))
    assert behind.lost == 0


async def test_a_refused_change_is_reported(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[object, VOSpaceError]] = []
    behind.on_lost = lambda request, error: told.append((request, error))
    service.refuse = {0: m.Failure("Stale", "another node")}
    behind.add(create(1))
    behind.add(create(2))
    await behind.drain()
    assert behind.lost == 1 and [type(error) for _, error in told] == [Stale] and told[0][0] == create(1)
    assert "an acknowledged change is lost: Create: Stale" in caplog.text
    caplog.clear()


async def test_trouble_ends_the_delegation_tells_who_waits_and_loses_nothing(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, caplog: pytest.LogCaptureFixture
) -> None:
    service.down = ServiceUnavailable("down")
    behind.add(create(1))
    with pytest.raises(ServiceUnavailable):
        await behind.ordered(m.Properties(101))
    assert not behind.held and behind.owed == 1
    with pytest.raises(ServiceUnavailable):
        await behind.ordered(m.Properties(102))
    with pytest.raises(ServiceUnavailable):
        await behind.drain()
    behind.delegated(True)
    assert not behind.held, "not while it does not answer"
    service.down = None
    while not behind.idle:
        await trio.sleep(0.1)
    assert service.names == [b"1"] and service.batches[0].again, "it may have been done the first time"
    assert "does not take changes" in caplog.text
    caplog.clear()
    behind.delegated(True)
    assert behind.held


async def test_only_so_much_is_owed(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(OWED_MAX):
        await behind.room()
        behind.add(create(number))
    await behind.room()
    assert len(service.batches) == 1, "room was made by sending"
    service.down = ServiceUnavailable("down")
    for number in range(OWED_MAX):
        behind.add(create(number))
    with pytest.raises(ServiceUnavailable):
        while True:
            await behind.room()
            await trio.sleep(0.1)
    caplog.clear()


async def test_it_ends_though_others_go_on_asking(
    autojump_clock: MockClock, service: Service, behind: WriteBehind
) -> None:
    async def ask() -> None:
        while True:
            await behind.ordered(m.Properties(101))

    async with trio.open_nursery() as asking:
        for _ in range(3):
            asking.start_soon(ask)
        behind.add(create(1))
        with trio.fail_after(10):
            await behind.drain()
        asking.cancel_scope.cancel()
    assert service.names == [b"1"]


async def test_who_asks_waits_for_nothing_but_changes(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, nursery: trio.Nursery
) -> None:
    service.answering = trio.Event()
    nursery.start_soon(behind.ordered, m.Properties(101))
    await trio.testing.wait_all_tasks_blocked()
    assert behind.owed == 1 and behind.idle
    behind.add(create(1))
    assert behind.owed == 2 and not behind.idle
    service.answering.set()
    await behind.drain()


async def test_who_asks_has_it_tried_again_at_once(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, caplog: pytest.LogCaptureFixture
) -> None:
    service.down = ServiceUnavailable("down")
    behind.add(create(1))
    await trio.sleep(100)
    service.down, began = None, trio.current_time()
    assert await behind.ordered(m.Properties(101)) == {"n": "1"}, "and is not told of the last try"
    assert trio.current_time() == began and service.names == [b"1"]
    caplog.clear()


@pytest.mark.parametrize("at_ns", [2**63, 2**64, -(2**63) - 1])
async def test_what_the_service_could_not_even_read_is_refused_at_once(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, at_ns: int
) -> None:
    request = m.SetAttributes(101, Attributes(mtime_ns=at_ns), 1)
    behind.add(create(1))
    with pytest.raises(InvalidArgument):
        behind.add(request)
    with pytest.raises(InvalidArgument):
        await behind.ordered(request)
    await behind.drain()
    assert service.names == [b"1"] and behind.lost == 0


async def test_what_is_too_many_for_something_in_between_goes_in_pieces(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, caplog: pytest.LogCaptureFixture
) -> None:
    service.most = 3
    for number in range(50):
        behind.add(create(number))
    while not behind.idle:
        await trio.sleep(1)
    assert service.names == [b"%d" % n for n in range(50)] and behind.lost == 0
    assert "413" in caplog.text
    caplog.clear()


async def test_one_that_is_refused_takes_no_other_along(
    autojump_clock: MockClock, service: Service, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    async def send(request: m.Request) -> Any:
        if isinstance(request, m.Batch) and any(r.name == b"3" for r in _decode(_encode(request)).requests):
            raise InvalidArgument("not a message")
        return await service.send(request)

    behind = WriteBehind(send, {}, 10.0)
    nursery.start_soon(behind.run)
    for number in range(8):
        behind.add(create(number))
    await behind.drain()
    assert sorted(service.names) == [b"%d" % n for n in range(8) if n != 3] and behind.lost == 1
    caplog.clear()


async def test_the_delegation_is_asked_for_now_and_then(
    autojump_clock: MockClock, service: Service, behind: WriteBehind
) -> None:
    behind.held = False
    for _ in range(10):
        behind.want()
        await trio.testing.wait_all_tasks_blocked()
    assert service.asked == 1


# -- the journal -------------------------------------------------------------------------------------------------------


async def test_the_journal_has_what_is_owed_and_nothing_else(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    behind.journal = Journal(tmp_path / "journal", b"whose")
    behind.add(create(1))
    behind.add(create(2))
    kept = journal.records(tmp_path / "journal")
    assert kept[0] == b"whose" and [_decode(record) for record in kept[1:]] == [create(1), create(2)]
    await behind.drain()
    assert journal.records(tmp_path / "journal") == []
    service.down = ServiceUnavailable("down")
    behind.add(create(3))
    with pytest.raises(ServiceUnavailable):
        await behind.ordered(m.Properties(101))
    assert [_decode(record) for record in journal.records(tmp_path / "journal")[1:]] == [create(3)]
    caplog.clear()


async def test_a_long_journal_is_written_anew(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behind_module, "JOURNAL_BYTES_MAX", 1)
    behind.journal = Journal(tmp_path / "journal", b"whose")
    for number in range(m.BATCH_MAX + 5):
        behind.add(create(number))
    while not service.batches:
        await trio.sleep(DELAY_S)
    await trio.testing.wait_all_tasks_blocked(0.0)
    assert len(journal.records(tmp_path / "journal")) in (0, 1 + 5)


async def test_a_journal_that_is_written_anew_has_what_is_under_way(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(behind_module, "JOURNAL_BYTES_MAX", 1)
    behind.journal = Journal(tmp_path / "journal", b"whose")
    service.down = ServiceUnavailable("down")
    behind.add(create(1))
    with pytest.raises(ServiceUnavailable):
        await behind.ordered(m.Properties(101))
    assert [_decode(record) for record in journal.records(tmp_path / "journal")[1:]] == [create(1)]
    caplog.clear()


async def test_a_disk_that_is_full_stops_nothing_but_the_acknowledging(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(behind_module, "JOURNAL_BYTES_MAX", 1)
    behind.journal = FullJournal(tmp_path / "journal", b"whose")
    service.answering = trio.Event()
    behind.add(create(1))
    await trio.sleep(1)
    behind.add(create(2))
    behind.journal.full = True
    with pytest.raises(StorageFull):
        behind.add(create(3))
    # What is left of the journal cannot be written either, and the batches go on.
    service.answering.set()
    await behind.drain()
    assert service.names == [b"1", b"2"] and behind.lost == 0
    # Once more when there is rest.
    await trio.testing.wait_all_tasks_blocked()
    assert "stays as long as it is" in caplog.text
    caplog.clear()


class FullJournal(Journal):
    """A journal on a disk that is full, from when it is said."""

    full = False

    def add(self, record: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        super().add(record)

    def rewrite(self, kept: list[bytes]) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "full")
        super().rewrite(kept)


def test_a_journal_is_as_it_was_when_it_cannot_be_written_anew(tmp_path: Path) -> None:
    written = Journal(tmp_path / "journal", b"whose")
    for record in (b"one", b"two", b"three"):
        written.add(record)
    (tmp_path / "journal.new").mkdir()
    with pytest.raises(OSError):
        written.rewrite([b"two"])
    assert journal.records(tmp_path / "journal") == [b"whose", b"one", b"two", b"three"]
    (tmp_path / "journal.new").rmdir()
    written.rewrite([b"two"])
    written.add(b"four")
    assert journal.records(tmp_path / "journal") == [b"whose", b"two", b"four"]
    assert written.bytes == (tmp_path / "journal").stat().st_size
    written.close()


def test_a_journal_is_no_longer_than_is_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "RECORDS_BYTES_MAX", 100)
    written = Journal(tmp_path / "journal", b"whose")
    with pytest.raises(OSError):
        for _ in range(100):
            written.add(b"record")
    there = journal.records(tmp_path / "journal")
    assert there and (tmp_path / "journal").stat().st_size <= 100
    written.close()


def refused(record: bytes, why: str) -> None:
    """Of replays that nothing is refused of."""
    raise AssertionError(why)


async def test_a_long_journal_goes_in_messages_of_bounded_length(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [_encode(create(number)) for number in range(100)]
    monkeypatch.setattr(behind_module, "REPLAY_BYTES_MAX", 10 * len(records[10]))
    assert await behind.replay(records, refused) == 0
    assert service.names == [b"%d" % n for n in range(100)]
    assert max(len(batch.requests) for batch in service.batches) <= 10


async def test_what_a_dead_mount_left_is_sent_marked_so(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, tmp_path: Path
) -> None:
    written = Journal(tmp_path / "journal", b"whose")
    for number in range(3):
        written.add(_encode(create(number)))
    written.close()
    assert await behind.replay(journal.records(tmp_path / "journal")[1:], refused) == 0
    assert service.names == [b"0", b"1", b"2"] and service.batches[0].again


async def test_a_record_of_another_version_costs_no_other(
    autojump_clock: MockClock, service: Service, behind: WriteBehind, caplog: pytest.LogCaptureFixture
) -> None:
    records = [_encode(create(number)) for number in range(6)]
    behind = WriteBehind(strict(service), {}, 10.0)
    told: list[bytes] = []
    unheard = _encode(["Unheard-of", 1])
    assert await behind.replay([*records[:4], unheard, *records[4:]], lambda record, why: told.append(record)) == 1
    assert told == [unheard]
    assert service.names == [b"%d" % n for n in range(6)]
    caplog.clear()


def strict(service: Service) -> Callable[[m.Request], Awaitable[Any]]:
    async def send(request: m.Request) -> Any:
        try:
            _decode(_encode(request))
        except msgspec.DecodeError as exc:
            raise InvalidArgument(f"not a message: {exc}") from None
        return await service.send(request)

    return send


@pytest.mark.parametrize("cut", [1, 5, 9, 20])
def test_a_torn_record_ends_a_journal(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "journal"
    written = Journal(path, b"whose")
    written.add(b"first record")
    whole = path.stat().st_size
    written.add(b"second record")
    written.close()
    data = path.read_bytes()
    path.write_bytes(data[:-cut])
    assert journal.records(path) == [b"whose", b"first record"]
    path.write_bytes(data[:whole] + data[whole:].replace(b"second", b"sXcond"))
    assert journal.records(path) == [b"whose", b"first record"], "so does one whose bytes are not what was written"
