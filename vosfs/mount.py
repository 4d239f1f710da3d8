"""The composition root of a mount: which tree, which blobs, which cache; and the tasks that live as long as it."""

import contextlib
import fcntl
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import msgspec
import trio

from vosfs import fuse, heap
from vosfs.backends.blobs import Blobs, GatewayBlobs
from vosfs.backends.direct import DirectBlobs
from vosfs.cache import journal
from vosfs.cache.blocks import BlockCache
from vosfs.cache.file import FileTable, Replacer
from vosfs.cache.journal import Journal
from vosfs.cache.kept import Kept
from vosfs.client import HttpClient
from vosfs.errors import QuietError, ServiceUnavailable, Stale, TimedOut, VOSpaceError
from vosfs.filesystem import DEADLINE_S, FileSystem
from vosfs.metadata import messages as m
from vosfs.metadata.ahead import AheadTree
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.gateway import GatewayTree
from vosfs.metadata.node import ROOT_ID, Cursor
from vosfs.metadata.store import Tree
from vosfs.session import NODES, Session

log = logging.getLogger(__name__)

CACHE_BYTES = 10 << 30
"""Default limit of the block cache; at most half of what the disk has free."""
CLOSE_S = 2.0
JOURNAL, LOCK = "journal", "lock"
"""Files of the private cache directory."""
KEPT = "kept"
"""Directory beside the private ones, of ``kept.py``."""
TOKEN_EVERY_S = 2.0
"""How often the token file is looked at."""
RETRY_S_MIN, RETRY_S_MAX = 0.2, 5.0
"""Between attempts to reach the change feed."""
FREE_BYTES_MAX = 32 << 20
"""Freed memory that is not given back: the buffers of all fetches.  Mapping them anew for each took 0.2 s of CPU a GiB."""


class Closing(Protocol):
    """Something with connections to drop at the end."""

    def close(self) -> None: ...


class Authenticated(Protocol):
    """Something that sends the token."""

    def use_token(self, token: str) -> None: ...


@dataclass(frozen=True)
class Options:
    """What ``vosfs mount`` was told."""

    url: str
    mountpoint: Path
    cache_dir: Path
    token: str = ""
    token_file: Path | None = None
    """Read again when it changes: tokens end."""
    cache_bytes: int = CACHE_BYTES
    deadline_s: float = DEADLINE_S
    read_only: bool = False
    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    fuse: frozenset[str] = frozenset()
    """Handed to the kernel as they are: allow_other and the like."""
    sync: bool = False
    """Let every change wait for the service: never ask for the delegation."""
    plain: bool = False
    """Use plain VOSpace even where the gateway binding is offered."""


async def run(options: Options, report: Callable[[str], None]) -> None:
    """Mount and serve until unmounted or told to stop.  ``report('')`` once the root was listed through the kernel.

    Raises QuietError before that, with the reason in one line.
    """
    heap.give_back_from(FREE_BYTES_MAX)
    heap.collect_rarely()
    cache, lock = _private_cache(options.cache_dir)
    clients: list[Closing] = []
    sessions: list[Session] = []
    try:
        try:
            tree, blobs, greeting = await connect(options, clients, sessions)
            cached = CachedTree(tree)
            if isinstance(tree, GatewayTree) and not options.sync:
                cached = AheadTree(tree, tree.behind)
            await tree.children(ROOT_ID, b"", 1)
        except VOSpaceError as exc:
            raise QuietError(f"cannot mount {options.url}: {exc}") from exc
        limit = min(options.cache_bytes, shutil.disk_usage(cache).free // 2)
        kept = Kept(options.cache_dir / KEPT, options.url)
        replacer = None if isinstance(blobs, GatewayBlobs) else cast(Replacer, blobs)
        if isinstance(tree, GatewayTree):
            whose = f"{options.url} {tree.behind.user}".encode()
            try:
                await _replay(tree, options.cache_dir, whose, kept)
            except VOSpaceError as exc:
                raise QuietError(f"cannot send what an earlier mount of {options.url} left: {exc}") from exc
            tree.behind.journal = Journal(cache / JOURNAL, whose)
        async with trio.open_nursery() as nursery:
            source = blobs
            if greeting is not None and greeting.signs and isinstance(blobs, GatewayBlobs):
                source = DirectBlobs(blobs, nursery)
                clients.append(source)
            blocks = BlockCache(cache / "blocks", source, limit // 2, nursery)
            files = FileTable(cached, blobs, blocks, cache / "scratch", limit // 2, replacer, kept=kept)
            if greeting is not None:
                files.inline_bytes_max = greeting.inline_bytes_max
            filesystem = FileSystem(cached, blocks, files, nursery, options.read_only)
            filesystem.awaited.slow = greeting.slow if greeting is not None else None
            filesystem.openings.bytes_too = greeting is not None and not greeting.slow
            about = {
                "url": options.url, "pid": os.getpid(), "binding": "gateway" if greeting else "plain VOSpace", "mountpoint": str(options.mountpoint),
                "cache_dir": str(options.cache_dir), "since": time.time(),
            }  # fmt: skip
            operations = fuse.Operations(filesystem, options.uid, options.gid, about)
            try:
                mounted = fuse.Mount(
                    operations, str(options.mountpoint), options.url, set(options.fuse), nursery, greeting is not None
                )
            except (OSError, RuntimeError) as exc:
                raise QuietError(f"cannot mount at {options.mountpoint}: {exc}") from exc
            clean = False
            try:
                nursery.start_soon(_stop_on_signal, mounted)
                for client in clients:
                    if isinstance(client, HttpClient):
                        nursery.start_soon(client.keep_deadlines)
                if greeting is not None and isinstance(tree, GatewayTree):
                    invalidator = fuse.Invalidator()
                    filesystem.on_invalid = invalidator
                    tree.behind.on_lost = filesystem.lost
                    nursery.start_soon(tree.behind.run)
                    nursery.start_soon(invalidator.run)
                    nursery.start_soon(follow, tree, filesystem, greeting.cursor)
                    nursery.start_soon(_keep_leases, filesystem)
                else:
                    nursery.start_soon(watch, sessions[0], cached)
                if options.token_file is not None:
                    holders: list[Authenticated] = [sessions[0]]
                    if isinstance(tree, GatewayTree) and isinstance(blobs, GatewayBlobs):
                        holders = [tree, blobs]
                    nursery.start_soon(_renew_token, options.token_file, holders)
                nursery.start_soon(_announce, options, mounted, report)
                await mounted.serve()
                clean = True
            finally:
                # After a crash the mount point stays, answering ENOTCONN: an empty directory in its place would be
                # taken for an empty space.
                mounted.close(unmount=clean)
                if isinstance(tree, GatewayTree):
                    await _settle(tree, options.deadline_s, filesystem.tree.live)
                nursery.cancel_scope.cancel()
        files.close()
        blocks.close()
    finally:
        for client in clients:
            client.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_S):
            for session in sessions:
                await session.close()
        if not journal.records(cache / JOURNAL):
            shutil.rmtree(cache, ignore_errors=True)
        os.close(lock)


def alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def unsent(directory: Path, pid: int) -> int:
    """How many changes a mount process that is gone has left in its journal."""
    paths = [path for path in private_caches(directory) if path.name.split("-")[1] == str(pid)]
    return sum(max(0, len(journal.records(path / JOURNAL)) - 1) for path in paths)


def private_caches(directory: Path) -> list[Path]:
    """The directories of single mounts, running or dead."""
    return sorted(directory.glob("mount-*"))


@contextlib.contextmanager
def claimed(old: Path) -> Iterator[bool]:
    """Whether the process is gone whose private cache directory this is; for that long it is nobody else's.

    Told by a lock.  In a container the next mount has the number of the one that died, and a cache directory that
    several containers or hosts share has numbers that mean nothing here.
    """
    try:
        fd = os.open(old / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        number = old.name.removeprefix("mount-")
        yield number.isdigit() and not alive(int(number))
        return
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


def _private_cache(directory: Path) -> tuple[Path, int]:
    """A directory of this process alone, and the descriptor that keeps it so.

    Those of dead processes are removed, unless they still owe something.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for old in private_caches(directory):
            with claimed(old) as gone:
                if gone and not journal.records(old / JOURNAL):
                    shutil.rmtree(old, ignore_errors=True)
        cache, number = directory / f"mount-{os.getpid()}", 0
        while cache.exists():
            number += 1
            cache = directory / f"mount-{os.getpid()}-{number}"
        cache.mkdir(mode=0o700)
        lock = os.open(cache / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        raise QuietError(f"cache directory {directory}: {exc.strerror}") from exc
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    return cache, lock


async def connect(
    options: Options, clients: list[Closing], sessions: list[Session]
) -> tuple[Tree, Blobs, m.Greeting | None]:
    """The best tree and blobs that a service offers; a greeting only where it speaks the gateway binding."""
    session = Session(options.url, options.token, options.deadline_s)
    sessions.append(session)
    offered = await session.capabilities()

    def client(url: str) -> tuple[HttpClient, str]:
        made = HttpClient(url, options.deadline_s)
        for known in clients:
            if isinstance(known, HttpClient) and known.origin == made.origin:
                # Slots apart for messages and bytes: uploads must not keep look-ups waiting.
                made = known.beside()
        clients.append(made)
        return made, url.removeprefix(made.origin)

    if m.PROTOCOL in offered and not options.plain:
        tree = GatewayTree(*client(offered[m.PROTOCOL]), options.token)
        greeting = await tree.hello()
        data, path = client(greeting.data_url + "/blobs")
        return tree, GatewayBlobs(data, path, options.token), greeting
    if NODES not in offered:
        raise QuietError(f"{options.url} offers neither nodes nor the gateway binding")
    # Imported here: lxml costs 10 MiB that a mount with the gateway binding does not need.
    from vosfs.backends.transfer import TransferBlobs
    from vosfs.metadata.vospace import VOSpaceTree

    plain = VOSpaceTree(session, offered)
    await plain.get(ROOT_ID)
    transfers = TransferBlobs(plain, options.deadline_s)
    clients.append(transfers)
    log.warning("plain VOSpace: mode, owner and times are not kept, and changes elsewhere show after a second")
    return plain, transfers, None


async def follow(tree: GatewayTree, filesystem: FileSystem, cursor: Cursor) -> None:
    """Follow the change feed until cancelled: apply what others did, skip what this mount did."""
    filesystem.tree.live = True
    pause = RETRY_S_MIN
    while True:
        try:
            page = await tree.feed(cursor, m.WAIT_S_MAX)
        except Stale:
            log.warning("the change log was trimmed while the feed was down: everything is asked for again")
            filesystem.distrust(forget=True)
            cursor = Cursor()
            try:
                cursor = await tree.cursor()
            except VOSpaceError as exc:
                log.debug("feed: %s", exc)
        except VOSpaceError as exc:
            if filesystem.tree.live:
                log.warning("change feed lost, attributes are trusted for a second only: %s", exc)
                filesystem.distrust(forget=False)
            filesystem.tree.live = tree.behind.held = False
            filesystem.tree.away = isinstance(exc, (ServiceUnavailable, TimedOut))
            await trio.sleep(pause)
            pause = min(pause * 2, RETRY_S_MAX)
        else:
            if not filesystem.tree.live:
                log.info("change feed is back")
            filesystem.tree.live, filesystem.tree.away = True, False
            pause, cursor = RETRY_S_MIN, page.cursor
            for change in page.changes:
                if change.origin != tree.origin:
                    filesystem.changed_elsewhere(change)
            # After the changes: who acts first must know all that others did.
            tree.behind.delegated(page.delegation == m.HELD)
            if page.delegation == m.RECALLED:
                try:
                    await tree.give_back()
                except VOSpaceError as exc:
                    log.warning("the delegation was not given back: %s", exc)
                    await trio.sleep(RETRY_S_MIN)


async def watch(session: Session, tree: CachedTree) -> None:
    """Know whether a plain service is there: it has no feed that would break.  Asks only once a request had no answer."""
    lost = trio.Event()

    def on_lost() -> None:
        tree.away = True
        lost.set()

    session.on_lost = on_lost
    while True:
        await lost.wait()
        log.warning("the service cannot be reached: what is in the cache can be read")
        pause = RETRY_S_MIN
        while tree.away:
            await trio.sleep(pause)
            pause = min(pause * 2, RETRY_S_MAX)
            try:
                await session.capabilities()
            except (ServiceUnavailable, TimedOut):
                continue
            except VOSpaceError as exc:
                log.debug("it answers, if only %s", exc)
            tree.away, lost = False, trio.Event()
        log.info("the service is back")


async def _replay(tree: GatewayTree, directory: Path, whose: bytes, kept: Kept) -> None:
    """Tell the service what mounts of this space and user acknowledged before they died."""

    def refuse(record: bytes, why: str) -> None:
        try:
            request = msgspec.msgpack.decode(record, type=m.Ordered)
        except msgspec.DecodeError:
            # Of another version: there is nothing that this one could read in it.
            return
        if isinstance(request, m.Commit):
            path = f"(node {request.id})"
            kept.keep(path, request.id, request.base_version or 0, request.length, why, request.changes, [], None)

    for old in private_caches(directory):
        with claimed(old) as gone:
            owed = journal.records(old / JOURNAL) if gone else []
            if not owed or owed[0] != whose:
                continue
            refused = await tree.behind.replay(owed[1:], refuse)
            log.warning("a mount died before the service had its last %d changes: sent, %d of them refused",
                        len(owed) - 1, refused)  # fmt: skip
            shutil.rmtree(old, ignore_errors=True)


async def _settle(tree: GatewayTree, deadline_s: float, live: bool) -> None:
    """Send what is owed before the end, cancelled or not, and the delegation back; the last word of this mount."""
    nothing = tree.behind.idle and not tree.behind.held
    if nothing and not live:
        return
    # Nobody waits long for a word that only saves the next mount a moment.
    deadline_s = min(deadline_s, CLOSE_S) if nothing else deadline_s
    with trio.CancelScope(shield=True, deadline=trio.current_time() + deadline_s):
        try:
            await tree.give_back()
        except VOSpaceError as exc:
            log.debug("the end: %s", exc)
    if not tree.behind.idle:
        log.error("%d changes did not reach the service: the next mount of this space will send them", tree.behind.owed)


def read_token(file: Path) -> str:
    """The token in a file.  QuietError if there is none."""
    try:
        text = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise QuietError(f"token file {file}: {getattr(exc, 'strerror', 'not text')}") from exc
    if not text or any(c <= " " or c > "~" for c in text):
        raise QuietError(f"token file {file} does not hold one token")
    return text


async def _renew_token(file: Path, holders: Iterable[Authenticated]) -> None:
    """Look now and then whether the token file has another token."""
    seen = _changed_ns(file)
    while True:
        await trio.sleep(TOKEN_EVERY_S)
        now = _changed_ns(file)
        if now == seen:
            continue
        try:
            token = read_token(file)
        except QuietError as exc:
            # Perhaps it is being written.
            log.warning("%s", exc)
            continue
        seen = now
        for holder in holders:
            holder.use_token(token)
        log.info("%s has a new token", file)


def _changed_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


async def _keep_leases(filesystem: FileSystem) -> None:
    while True:
        await trio.sleep(1200)
        await filesystem.renew_leases()


async def _stop_on_signal(mounted: fuse.Mount) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            mounted.stop()
            return


_LOOK = """
import os, sys
try:
    with os.scandir(sys.argv[1]) as entries:
        next(entries, None)
    print(os.stat(sys.argv[1]).st_dev)
except OSError as exc:
    sys.exit(exc.strerror)
"""
"""Of a process of its own: one that waits for its own mount when it is killed can not die, since only its death would end
the wait."""


async def _announce(options: Options, mounted: fuse.Mount, report: Callable[[str], None]) -> None:
    """Say that the mount works, when it does: its root was listed through the kernel."""

    def look() -> None:
        command = [sys.executable, "-I", "-S", "-c", _LOOK, str(options.mountpoint)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip())
        fuse.tune(int(done.stdout))

    try:
        with trio.fail_after(options.deadline_s):
            await trio.to_thread.run_sync(look, abandon_on_cancel=True)
    except (OSError, trio.TooSlowError) as exc:
        report(f"mounted, but the root cannot be listed: {exc}")
        mounted.stop()
        return
    log.info("mounted %s at %s", options.url, options.mountpoint)
    report("")
