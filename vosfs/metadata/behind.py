"""Changes that were acknowledged here and are on their way to the service.

While this mount holds the delegation (``server/delegation.py``) nobody else works in the space, so what a change will
do is known here (``cached.py`` decides that), and its caller need not wait.  The changes go out in order, in batches
some milliseconds apart.  Whatever must see them, a look-up of something not known here or an fsync, travels behind
them in the same batch; so everybody still sees one history.

A batch whose answer is lost is sent again, marked so, until it is answered: each step names the node it is about, and
the service tells what was done already from what cannot be done.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio

from vosfs.cache.journal import Journal
from vosfs.errors import (
    BY_NAME,
    InternalFault,
    InvalidArgument,
    NotAuthenticated,
    ProtocolError,
    ServiceUnavailable,
    StorageFull,
    TimedOut,
    VOSpaceError,
)
from vosfs.metadata import messages as m

log = logging.getLogger(__name__)

DELAY_S = 0.005
"""How long changes gather when nobody waits for them: 50 of a quick program, a fiftieth of the round trips."""
OWED_MAX = 1000
OWED_BYTES_MAX = 8 << 20
"""How much may be owed to the service; whoever wants to add to that waits."""
ASK_EVERY_S = 0.5
"""How often the delegation is asked for while there are changes to make."""
RETRY_S_MIN, RETRY_S_MAX = 0.1, 2.0
JOURNAL_TRIM_BYTES = 1 << 20
"""A longer one does not wait for rest to lose what the service has."""
JOURNAL_BYTES_MAX = 32 << 20
"""A journal that never runs empty is written anew when it is longer."""
_AGAIN = (ServiceUnavailable, TimedOut, StorageFull, NotAuthenticated, InternalFault, ProtocolError)
"""Why a batch may fail now and succeed later.  ProtocolError: something in between answers for the service."""
REPLAY_BYTES_MAX = 4 << 20
"""A journal may be longer than one message may be."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(m.Ordered).decode

Decode = Callable[[bytes], Any]
"""Of one kind of result."""


def _checked(request: m.Ordered) -> bytes:
    """A request as it travels.  InvalidArgument for a value that the service cannot take, a time after 2262 say: it would
    have all of its batch refused."""
    try:
        raw = _encode(request)
        # 2 µs.
        _decode(raw)
    except (OverflowError, msgspec.DecodeError) as exc:
        raise InvalidArgument(f"out of bounds: {exc}") from None
    return raw


_SYNC = _checked(m.Sync())


class _Owed:
    """One request, and who waits for its answer if somebody does."""

    __slots__ = ("request", "raw", "done", "sent", "result", "error")

    def __init__(self, request: m.Ordered, done: trio.Event | None) -> None:
        self.raw = _SYNC if type(request) is m.Sync else _checked(request)
        self.request = request
        self.done = done
        """None: it was acknowledged, nobody waits."""
        self.sent = False
        """Whether the service may have had it."""
        self.result: Any = None
        self.error: VOSpaceError | None = None


class WriteBehind:
    """What this mount owes the service."""

    def __init__(
        self, send: Callable[[m.Request], Awaitable[Any]], decoders: Mapping[type, Decode], deadline_s: float
    ) -> None:  # fmt: skip
        # Dependencies
        self._send = send
        self._decoders = decoders
        # Constants
        self._deadline_s = deadline_s
        self.user = ""
        """Who the service takes this mount for."""
        self.offset_ns = 0
        """The service's clock less ``clock_ns``."""
        # Mutable state
        self.held = False
        """Whether changes may be made here first."""
        self.term = 0
        """Counts how often that became so: others may have worked in between."""
        self.on_lost: Callable[[m.Mutation, VOSpaceError], None] = lambda request, error: None
        """Told of acknowledged changes that the service then refused."""
        self.lost = 0
        """How many there were."""
        self.journal: Journal | None = None
        """Keeps what is owed for the next mount, should this process die."""
        self._owed: list[_Owed] = []
        """In order; the batch under way is its beginning."""
        self._bytes = 0
        """INVARIANT: encoded bytes in ``_owed``."""
        self._promised = 0
        """INVARIANT: how many of ``_owed`` were acknowledged."""
        self._batch_max = m.BATCH_MAX
        """Fewer after a batch failed, in case it was too many."""
        self._pause_s = RETRY_S_MIN
        self._delivering = False
        """Whether a batch is under way."""
        self._gathering_since = 0.0
        """When the first of what is owed came."""
        self._hurry = trio.Event()
        """Somebody waits."""
        self._work = trio.Event()
        """Something is owed, or the delegation wanted."""
        self._progress = trio.Event()
        """A batch was answered; replaced by a fresh one then."""
        self._trouble: VOSpaceError | None = None
        """Why the service did not take the last batch."""
        self._wanted = False
        self._asked_at = -ASK_EVERY_S

    @property
    def idle(self) -> bool:
        """Whether nothing is owed that was acknowledged.

        A request that somebody waits for need not travel behind others that somebody waits for.
        """
        return not self._promised

    @property
    def owed(self) -> int:
        """How many requests are owed."""
        return len(self._owed)

    def now_ns(self) -> int:
        """The service's time."""
        return clock_ns() + self.offset_ns

    def delegated(self, held: bool) -> None:
        """Whether this mount has the delegation, as the service says."""
        held = held and self._trouble is None
        self.term += held and not self.held
        self.held = held

    def want(self) -> None:
        """A change is being made that has to wait: ask for the delegation."""
        if not self.held and not self._wanted and time.monotonic() - self._asked_at >= ASK_EVERY_S:
            self._wanted = True
            self._work.set()

    async def room(self) -> None:
        """Wait until more may be owed.  TimedOut, or what keeps the service from taking it."""
        while len(self._owed) >= OWED_MAX or self._bytes >= OWED_BYTES_MAX:
            if self._trouble is not None:
                raise self._trouble
            self._hurry.set()
            with trio.move_on_after(self._deadline_s) as scope:
                await self._progress.wait()
            if scope.cancelled_caught:
                raise TimedOut("the service takes no changes")

    def add(self, request: m.Mutation) -> None:
        """Owe a change.  StorageFull if the journal's disk is: then the change may not be acknowledged."""
        owed = _Owed(request, None)
        if self.journal is not None:
            try:
                self.journal.add(owed.raw)
            except OSError as exc:
                raise StorageFull(f"the journal of changes: {exc.strerror}") from exc
        self._push(owed)

    def _push(self, owed: _Owed) -> None:
        if not self._owed:
            self._gathering_since = trio.current_time()
        self._owed.append(owed)
        self._promised += owed.done is None
        self._bytes += len(owed.raw)
        self._work.set()

    async def ordered(self, request: m.Ordered) -> Any:
        """Send a request behind all that is owed, at once, and wait for its result."""
        owed = _Owed(request, trio.Event())
        self._push(owed)
        assert owed.done is not None
        if not self._delivering and self._trouble is None and len(self._owed) <= self._batch_max:
            # Not by the task that delivers otherwise: waking it, and being woken by it, is 0.1 ms of an fsync(2).
            await self._deliver()
        if not owed.done.is_set():
            self._hurry.set()
            with trio.move_on_after(self._deadline_s) as scope:
                await owed.done.wait()
            if scope.cancelled_caught:
                raise TimedOut("no answer within the deadline")
        if owed.error is not None:
            raise owed.error
        return owed.result

    async def drain(self) -> None:
        """Until nothing is owed that was acknowledged.  What keeps the service from taking it.

        Others may go on asking all the while: with the delegation gone that adds nothing to wait for.
        """
        while self._promised:
            self._hurry.set()
            await self._progress.wait()
            if self._trouble is not None:
                raise self._trouble

    async def run(self) -> None:
        """Send what is owed until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            if self._wanted:
                await self._ask()
            while self._owed:
                await self._gathered()
                if self._delivering:
                    await self._progress.wait()
                elif self._trouble is not None:
                    await self._pause()
                    await self._deliver()
                elif self._owed and (self._hurry.is_set() or self._due_at() <= trio.current_time()):
                    await self._deliver()
            self.trim()

    def _due_at(self) -> float:
        return self._gathering_since + DELAY_S

    async def _gathered(self) -> None:
        """Until what is owed is to be sent, by itself or because somebody waits."""
        if not self._hurry.is_set():
            with trio.move_on_at(self._due_at()):
                await self._hurry.wait()

    async def _ask(self) -> None:
        self._wanted, self._asked_at = False, time.monotonic()
        try:
            await self._send(m.Delegate())
        except VOSpaceError as exc:
            log.debug("delegation: %s", exc)

    async def _deliver(self) -> None:
        """Send a batch; what was acknowledged stays owed until it is answered."""
        self._delivering = True
        self._hurried()
        try:
            await self._send_batch()
        finally:
            self._delivering, self._gathering_since = False, trio.current_time()
            self._progress.set()
            self._progress = trio.Event()

    def _hurried(self) -> None:
        """Whoever hurried has what it wanted.  Others may be waiting for an event that is not set yet."""
        if self._hurry.is_set():
            self._hurry = trio.Event()

    async def _send_batch(self) -> None:
        batch = self._owed[: self._batch_max]
        wanted = [number for number, owed in enumerate(batch) if owed.done is not None]
        again = any(owed.sent for owed in batch)
        for owed in batch:
            owed.sent = True
        try:
            outcomes = await self._send(_batch([owed.raw for owed in batch], wanted, again))
        except VOSpaceError as exc:
            if not isinstance(exc, ServiceUnavailable):
                # Too many for the service, or for something in between; or one among them that it cannot take.
                self._batch_max = max(1, len(batch) // 2)
            if isinstance(exc, _AGAIN):
                self._undelivered(exc)
            elif len(batch) == 1:
                self._owed.pop(0)
                self._settle(batch, [], [(0, exc)])
            else:
                self._hurry.set()
            return
        if self._trouble is not None:
            log.warning("the service takes changes again")
        self._trouble, self._pause_s, self._batch_max = None, RETRY_S_MIN, min(2 * self._batch_max, m.BATCH_MAX)
        # Others came behind it meanwhile.
        del self._owed[: len(batch)]
        failures = [(number, BY_NAME.get(why.error, ProtocolError)(why.message)) for number, why in outcomes.failures]
        self._settle(batch, outcomes.results, failures)

    def _undelivered(self, exc: VOSpaceError) -> None:
        """The service does not answer: who waits is told, and what was acknowledged stays."""
        if self._trouble is None:
            log.warning("the service does not take changes, %d are owed: %s", self._promised, exc)
        self.held, self._trouble = False, exc
        told = [owed for owed in self._owed if owed.done is not None]
        self._owed = [owed for owed in self._owed if owed.done is None]
        self._settle(told, [], [(number, exc) for number in range(len(told))])
        self._hurried()
        if not self._owed:
            self._trouble, self._pause_s = None, RETRY_S_MIN

    async def _pause(self) -> None:
        """Before the next try; whoever asks for something meanwhile has it tried at once: the service may be back."""
        with trio.move_on_after(self._pause_s):
            await self._hurry.wait()
        self._pause_s = min(2 * self._pause_s, RETRY_S_MAX)

    def _settle(
        self, batch: list[_Owed], results: list[tuple[int, msgspec.Raw]], failures: list[tuple[int, VOSpaceError]]
    ) -> None:
        """What is owed no more, and why."""
        for number, raw in results:
            owed = batch[number]
            try:
                owed.result = self._decoders[type(owed.request)](bytes(raw))
            except msgspec.DecodeError as exc:
                owed.error = ProtocolError(f"an answer that is not of {m.PROTOCOL}: {exc}")
        for number, error in failures:
            owed = batch[number]
            owed.error = error
            if owed.done is None:
                self.lost += 1
                log.error("an acknowledged change is lost: %s: %s: %s",
                          type(owed.request).__name__, type(error).__name__, error)  # fmt: skip
                self.on_lost(owed.request, error)  # type: ignore[arg-type]
        for owed in batch:
            self._promised -= owed.done is None
            self._bytes -= len(owed.raw)
            if owed.done is not None:
                owed.done.set()
        if self.journal is not None and self.journal.bytes >= JOURNAL_TRIM_BYTES:
            self.trim()

    def trim(self) -> None:
        """Take out of the journal what the service has.

        When there is a moment's rest, or it is long: each time costs 20 µs that somebody may wait for, and who reads in it
        what was done already has it recognised.
        """
        if self.journal is None or (self._promised and self.journal.bytes < JOURNAL_BYTES_MAX):
            return
        try:
            self.journal.rewrite([owed.raw for owed in self._owed if owed.done is None])
        except OSError as exc:
            # It has more than it needs, which is no loss: what was done is not done again.
            log.warning("the journal of changes stays as long as it is: %s", exc.strerror)

    async def replay(self, records: list[bytes], refuse: Callable[[bytes, str], None]) -> int:
        """Send what a mount that died had acknowledged; returns how many changes the service refused.

        ``refuse`` is told each of them, as it was recorded, and why.
        """
        refused = at = 0
        most = m.BATCH_MAX
        while at < len(records):
            batch, size = [records[at]], len(records[at])
            for record in records[at + 1 : at + most]:
                size += len(record)
                if size > REPLAY_BYTES_MAX:
                    break
                batch.append(record)
            try:
                outcomes = await self._send(_batch(batch, [], True))
            except _AGAIN:
                raise
            except VOSpaceError as exc:
                most = len(batch) // 2
                if most:
                    continue
                # Of another version, say.
                outcomes = m.Outcomes([(0, m.Failure(type(exc).__name__, str(exc)))], [])
            most = min(2 * max(most, 1), m.BATCH_MAX)
            for number, why in outcomes.failures:
                log.error("a change that a mount acknowledged before it died is lost: %d: %s: %s",
                          at + number, why.error, why.message)  # fmt: skip
                refuse(batch[number], f"{why.error}: {why.message}")
            refused += len(outcomes.failures)
            at += len(batch)
        return refused


def clock_ns() -> int:
    """A clock that nobody sets."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _batch(requests: list[bytes], wanted: list[int], again: bool) -> m.Batch:
    # Encoded once, for the journal and for the wire.
    return m.Batch([msgspec.Raw(raw) for raw in requests], wanted, again)  # type: ignore[misc]
