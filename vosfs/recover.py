"""Looking after a cache directory from outside: giving kept bytes back (``vosfs recover``), and ``vosfs fsck``."""

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from vosfs.cache import journal
from vosfs.cache.kept import Kept, KeptFile
from vosfs.errors import QuietError, VOSpaceError
from vosfs.mount import CLOSE_S, JOURNAL, KEPT, Closing, Options, claimed, connect, private_caches
from vosfs.session import Session


async def restore(file: KeptFile, target: Path, options: Options, zeros: bool) -> int:
    """Write a kept file to a path that does not exist; returns how many bytes of it are zeros because nobody has them.

    QuietError if that cannot be, with the cure; the path then does not exist.
    """
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise QuietError(f"{target}: {exc.strerror}") from exc
    try:
        if zeros or not file.missing():
            return await file.restore(fd, None)
        return await _with_the_service(file, fd, options)
    except BaseException as exc:
        os.unlink(target)
        if isinstance(exc, OSError):
            raise QuietError(f"{target}: {exc.strerror}") from exc
        raise
    finally:
        os.close(fd)


async def _with_the_service(file: KeptFile, fd: int, options: Options) -> int:
    """The same with what was not changed fetched from the service."""
    clients: list[Closing] = []
    sessions: list[Session] = []
    try:
        _, blobs, _ = await connect(options, clients, sessions)

        async def fetch(name: str, start: int, stop: int) -> bytes:
            buffer = bytearray(stop - start)
            await blobs.fetch(name, start, memoryview(buffer), lambda count: None)
            return bytes(buffer)

        return await file.restore(fd, fetch)
    except VOSpaceError as exc:
        size = sum(e.stop - e.start for e in file.missing())
        raise QuietError(
            f"{size} bytes of it were not written by the mount and are to come from {options.url}, which gives: {exc};"
            " --partial writes zeros for them"
        ) from exc
    finally:
        for client in clients:
            client.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
            for session in sessions:
                await session.close()


@dataclass(frozen=True)
class Finding:
    """Something about a cache directory."""

    path: Path
    what: str
    repair: Callable[[], object] | None = None
    """How it is put right; None: there is nothing wrong."""


def check(directory: Path) -> list[Finding]:
    """Look through a cache directory.  What a running mount works in is left alone."""
    found: list[Finding] = []
    for private in private_caches(directory):
        with claimed(private) as gone:
            if not gone:
                found.append(Finding(private, "a mount that runs"))
                continue
            changes = max(0, len(journal.records(private / JOURNAL)) - 1)
            if journal.broken(private / JOURNAL):
                found.append(Finding(private / JOURNAL, "its end is no record: the mount was killed while it wrote one",
                                     partial(journal.mend, private / JOURNAL)))  # fmt: skip
            if changes:
                found.append(
                    Finding(private, f"{changes} changes for the service: the next mount of that space sends them")
                )
            else:
                found.append(Finding(private, "what a mount that died left",
                                     partial(shutil.rmtree, private, ignore_errors=True)))  # fmt: skip
    kept = Kept(directory / KEPT)
    for file in kept.files():
        if file.whole():
            found.append(
                Finding(directory / KEPT / file.name, f"unsaved bytes of {file.record.path}: see vosfs recover")
            )
        else:
            found.append(Finding(directory / KEPT / file.name, "its bytes are gone", file.drop))
    found += [Finding(path, "part of nothing", partial(path.unlink, missing_ok=True)) for path in kept.strays()]
    return found


def repair(findings: list[Finding]) -> int:
    """Put right what can be; returns how many were."""
    wrong = [finding for finding in findings if finding.repair is not None]
    for finding in wrong:
        assert finding.repair is not None
        with contextlib.suppress(OSError):
            finding.repair()
    return len(wrong)
