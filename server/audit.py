"""``vosfsd audit``: whether the storage holds what the nodes say.

Every copy of every blob that an extent names is opened, and read to its end when that is asked for; every blob of the storage that
no row knows is an orphan, once it is older than any receipt.  It runs beside a serving daemon, with connections of
its own: what looks wrong is judged only if nodes still stand on it when they are asked again.
"""

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import TextIO
from urllib.parse import quote_from_bytes

import msgspec
import trio

from server.housekeeping import GRACE_S, orphans
from vosfs import checksum
from vosfs.backends.backend import Backend
from vosfs.backends.storages import Storages
from vosfs.errors import BlobMissing, DataCorrupt, NotOnline, ServiceUnavailable, StorageFull, TimedOut
from vosfs.metadata.node import COPY, Blob, Used, parts
from vosfs.metadata.store import Store

log = logging.getLogger(__name__)

MISSING, WRONG_LENGTH, CORRUPT, UNRECORDED = "missing", "wrong length", "corrupt", "unrecorded"
DAMAGE = (MISSING, WRONG_LENGTH, CORRUPT, UNRECORDED)
"""What costs nodes their bytes, or may."""
REPAIRABLE = (MISSING, WRONG_LENGTH, CORRUPT)
UNREACHABLE, ORPHAN = "unreachable", "orphan"
AWAY = "near-line"
"""On tape, say: its name is there, and nothing is asked to be brought back for an audit.  Counted, and no finding."""
PAGE = 1000
AT_ONCE = 8
"""Blobs looked at together: a request to an object store is a journey."""
FINDINGS_MAX = 10_000
"""Listed; more are only counted."""
RELOCATED_AT_ONCE = 50
"""Nodes in one transaction."""
PATHS_MAX = 10
"""Listed of a blob that many nodes stand on."""
UNREACHABLE_MAX = 100
"""Each may have taken a minute: after so many there is no storage to audit."""


class Finding(msgspec.Struct):
    """One blob that is not as it should be."""

    kind: str
    locator: str
    why: str = ""
    paths: list[str] = []
    """Percent-encoded, of some nodes that stand on it."""
    repaired: bool = False


class Report(msgspec.Struct):
    """What an audit found."""

    deep: bool
    """Whether the bytes were read, or only lengths compared."""
    blobs: int = 0
    bytes: int = 0
    seconds: float = 0.0
    repaired: int = 0
    """Of the damage counted; the rest is still there."""
    counts: dict[str, int] = msgspec.field(
        default_factory=lambda: dict.fromkeys((*DAMAGE, UNREACHABLE, AWAY, ORPHAN), 0)
    )
    findings: list[Finding] = []

    @property
    def damaged(self) -> bool:
        """Whether nodes lack bytes, or a copy of them, or may."""
        return sum(self.counts[kind] for kind in DAMAGE) > self.repaired

    def add(self, finding: Finding) -> None:
        self.counts[finding.kind] += 1
        self.repaired += finding.repaired
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(finding)


def examine(backend: Backend, part: str, blob: Blob, deep: bool) -> tuple[str, str] | None:
    """What is wrong with a copy of a blob, and why; None if nothing is.  Blocks."""
    try:
        reader = backend.open(part, 0, blob.length if deep else 0)
        try:
            if reader.length != blob.length:
                return WRONG_LENGTH, f"{reader.length} bytes, recorded {blob.length}"
            if deep:
                crc32 = 0
                for data in reader.stream(0, blob.length):
                    crc32 = checksum.crc32(data, crc32)
                # Of what was registered in place no checksum was taken.
                if blob.crc32 not in (0, crc32):
                    return CORRUPT, f"CRC-32 {crc32:08x}, recorded {blob.crc32:08x}"
        finally:
            reader.close()
    except BlobMissing as exc:
        return MISSING, str(exc)
    except DataCorrupt as exc:
        return CORRUPT, str(exc)
    except NotOnline as exc:
        return AWAY, str(exc)
    except (ServiceUnavailable, TimedOut) as exc:
        return UNREACHABLE, str(exc)
    return None


def examined(backend: Backend, used: Used, deep: bool) -> list[Finding]:
    """What is wrong with a blob that nodes stand on.  Blocks."""
    blob = used.blob
    if blob is None:
        return [Finding(UNRECORDED, used.locator, "nothing says how long it should be, nor its checksum")]
    if used.reach > blob.length:
        return [Finding(WRONG_LENGTH, used.locator, f"{blob.length} bytes, nodes need {used.reach}")]
    found = [(part, examine(backend, part, blob, deep)) for part in parts(used.locator)]
    return [Finding(wrong[0], part, wrong[1]) for part, wrong in found if wrong is not None]


def rewritten(backend: Storages, blob: Blob, bad: str) -> Blob:
    """The same blob with a new copy instead of a bad one, written from one that is good.

    DataCorrupt if none is; NotOnline if it has to come from a slow storage, when it was asked for.  Blocks.
    """
    for good in parts(blob.locator):
        if good == bad:
            continue
        try:
            made = backend.copy(blob, good, backend.storage_of(bad))
            new = [made.locator if part == bad else part for part in parts(blob.locator)]
            return Blob(COPY.join(new), blob.length, blob.crc32)
        except NotOnline:
            backend.stage_part(good)
            raise
        except DataCorrupt as exc:
            log.info("copy %s cannot be used either: %s", good, exc)
    raise DataCorrupt(f"no copy of {blob.locator} is good")


async def mend(store: Store, backend: Storages, blob: Blob, bad: str) -> Blob:
    """Replace a bad copy: nodes stand on the new blob then, and the collector takes the copy.  DataCorrupt."""
    new = await trio.to_thread.run_sync(rewritten, backend, blob, bad)
    while await store.relocate(blob.locator, new, RELOCATED_AT_ONCE):
        await trio.lowlevel.checkpoint()
    await store.sync()
    return new


async def audit(
    store: Store, backend: Backend, deep: bool = False, show: Callable[[Report], None] = lambda report: None,
    older_s: float = GRACE_S, repair: Storages | None = None,
) -> Report:  # fmt: skip
    """Compare what nodes stand on with what the storage has; ``show`` is called as it goes on.

    With ``repair``, which is then ``backend``, bad copies are written anew from good ones.
    ServiceUnavailable if too much of the storage cannot be reached.
    """
    report, began = Report(deep), time.monotonic()
    limit = trio.CapacityLimiter(AT_ONCE)

    async def look(used: Used) -> None:
        async with limit:
            if report.counts[UNREACHABLE] > UNREACHABLE_MAX:
                return
            found = await trio.to_thread.run_sync(examined, backend, used, deep)
            findings = [finding for finding in found if finding.kind != AWAY]
            report.counts[AWAY] += len(found) - len(findings)
            if findings:
                await judge(used, findings)
        report.blobs += 1
        report.bytes += used.blob.length if used.blob else 0
        show(report)

    async def judge(used: Used, findings: list[Finding]) -> None:
        paths = await store.users(used.locator, PATHS_MAX)
        if not paths:
            # Replaced or deleted meanwhile, and perhaps collected.
            return
        blob = used.blob
        for finding in findings:
            finding.paths = [_shown(path) for path in paths]
            if repair is not None and blob is not None and finding.kind in REPAIRABLE and COPY in blob.locator:
                try:
                    blob = await mend(store, repair, blob, finding.locator)
                    finding.repaired = True
                except (DataCorrupt, NotOnline, StorageFull, ServiceUnavailable, TimedOut, OSError) as exc:
                    finding.why += f"; not repaired: {exc}"
            report.add(finding)

    after = ""
    while page := await store.used(after, PAGE):
        after = page[-1].locator
        async with trio.open_nursery() as nursery:
            for used in page:
                nursery.start_soon(look, used)
        if report.counts[UNREACHABLE] > UNREACHABLE_MAX:
            raise ServiceUnavailable("the storage cannot be reached")
    async with contextlib.aclosing(orphans(store, backend, older_s)) as found:
        async for locator in found:
            report.add(Finding(ORPHAN, locator))
    report.seconds = round(time.monotonic() - began, 3)
    return report


def _shown(path: tuple[bytes, ...] | int) -> str:
    return f"node {path}" if isinstance(path, int) else "/" + "/".join(quote_from_bytes(name) for name in path)


def lines(report: Report) -> list[str]:
    """The report for people."""
    about = "bytes compared" if report.deep else "lengths compared; --deep reads the bytes too"
    text = [f"{report.blobs} blobs of {report.bytes} bytes in {report.seconds:.1f} s ({about})"]
    text += [
        f"{f.kind}{', repaired' * f.repaired}: {f.locator} {' '.join(f.paths)} {f.why}".rstrip()
        for f in report.findings
    ]
    left_out = Counter(report.counts) - Counter(f.kind for f in report.findings)
    del left_out[AWAY]
    text += [f"{kind}: {count} more" for kind, count in left_out.items()]
    found = ", ".join(
        f"{count} {kind}" for kind, count in (*report.counts.items(), ("repaired", report.repaired)) if count
    )
    return [*text, found or "the storage holds what the nodes say"]


class Bar:
    """A bar on a terminal that says how far it is; silent elsewhere."""

    WIDTH = 30
    EVERY_S = 0.2

    def __init__(self, stream: TextIO, total: int, amount: Callable[[Report], int]) -> None:
        # Dependencies
        self._stream = stream
        # Constants
        self._total = max(total, 1)
        self._amount = amount
        self._shows = stream.isatty()
        # Mutable state
        self._next = 0.0

    def show(self, report: Report) -> None:
        if self._shows and time.monotonic() > self._next:
            self._next = time.monotonic() + self.EVERY_S
            self._draw(min(self._amount(report) / self._total, 1.0), report)

    def _draw(self, part: float, report: Report) -> None:
        full = round(part * self.WIDTH)
        bar = "#" * full + "-" * (self.WIDTH - full)
        self._stream.write(f"\r[{bar}] {part:4.0%}  {report.blobs} blobs, {report.bytes / 2**30:.2f} GiB\x1b[K")
        self._stream.flush()

    def end(self) -> None:
        """Take it away."""
        if self._shows:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
