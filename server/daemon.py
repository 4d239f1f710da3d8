"""``vosfsd``: the composition root of the daemon, and its command line."""

import argparse
import contextlib
import getpass
import hashlib
import json
import logging
import os
import signal
import sqlite3
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

import msgspec
import trio

from server import app, audit, digests, housekeeping, quotas, recursive, relocation, remote, transfers, uws
from server.access import ADMIN, Subject
from server.auth import check_user, hash_password, issue_token
from server.http import Server, listen
from server.importer import import_tree
from server.jobs import Jobs, Kind
from server.service import Service
from vosfs import __version__, config, heap, log, uri
from vosfs.backends.backend import Keeper, Slow
from vosfs.backends.bounded import Bounded, SlowBounded
from vosfs.backends.posix import PosixBackend
from vosfs.backends.roots import Roots
from vosfs.backends.slow import SlowDirectory
from vosfs.backends.storages import DEFAULT, Storages
from vosfs.config import Config, StorageConfig
from vosfs.errors import QuietError, VOSpaceError
from vosfs.metadata.job import Job
from vosfs.metadata.node import Node, bytes_left
from vosfs.metadata.sqlite import SqliteStore
from vosfs.metadata.sqlstore import SqlStore

logger = logging.getLogger("vosfsd")

KINDS: list[Kind] = [transfers.KIND, recursive.DELETE, recursive.SET_PROPERTIES, relocation.KIND]
"""Of jobs."""
MMAP_BYTES = 4 << 20
"""Allocations above this are mapped, and unmapped when freed; buffers of bodies are below, and so much of them is kept: giving
each back to the kernel and mapping it anew took 0.35 s of CPU a GiB.  No larger: the 19 MiB of an argon2 hash would stay in
the arena of each thread that made one, 200 MiB after some thousand wrong passwords."""
DAMAGED = 3
"""Exit status of an audit that found bytes missing or damaged."""
DEFAULT_CONFIG = Path("/etc/vosfs/vosfsd.toml")


# -- composition -------------------------------------------------------------------------------------------------


def dev_config(args: argparse.Namespace) -> Config:
    """A configuration that needs nothing: all state in one directory, one user, loopback."""
    args.dev.mkdir(parents=True, exist_ok=True, mode=0o700)

    def file(path: Path | None) -> str:
        return str(path.resolve()) if path else ""

    return config.check(
        Config(
            config.SpaceConfig(owner=invoking_user(), gateway=not args.no_gateway),
            config.ServerConfig(
                port=args.port, role=args.role or "all", certificate=file(args.tls_cert), key=file(args.tls_key),
                client_ca=file(args.client_ca), private_endpoints=args.allow_private_endpoints,
            ),
            config.DatabaseConfig(dsn=args.dsn),
            config.StorageConfig(
                objects=args.objects, endpoint=args.objects_endpoint, url=args.storage_url, direct=not args.no_direct,
                redirect=args.redirect,
            ),
            base=args.dev.resolve(),
        )
    )  # fmt: skip


def invoking_user() -> str:
    """Name of the user who runs this."""
    try:
        return check_user(getpass.getuser())
    except (KeyError, OSError, VOSpaceError):
        return f"uid{os.getuid()}"


def backend_of(storage: StorageConfig, base: Path) -> Keeper:
    """The backend of one storage: of this package, or one that another package registered for its kind of URL."""
    scheme = storage.objects.partition(":")[0]
    if not scheme:
        if storage.directories:
            return Roots([base / path for path in storage.directories])
        if storage.stage_command:
            return SlowDirectory(PosixBackend(base / storage.directory, open_max=0), storage.stage_command)
        return PosixBackend(base / storage.directory)
    for plugin in entry_points(group="vosfs.backends", name=scheme):
        made: Keeper = plugin.load()(storage, base)
        return made
    raise QuietError(f"[storage] objects: {storage.objects!r}: there is no backend for {scheme}:// here")


def storages_of(cfg: Config) -> Storages:
    """All storages of a configuration, as one backend."""
    with contextlib.ExitStack() as stack:
        members: dict[str, Keeper] = {}
        for name, storage in {DEFAULT: cfg.storage, **cfg.storages}.items():
            members[name] = backend_of(storage, cfg.base)
            stack.callback(members[name].close)
            if storage.quota:
                bounded = SlowBounded if isinstance(members[name], Slow) else Bounded
                members[name] = bounded(members[name], config.size_of(storage.quota))
        stack.pop_all()
    return Storages(members, frozenset(name for name, storage in cfg.storages.items() if storage.offered))


@contextlib.contextmanager
def opened(cfg: Config) -> Iterator[tuple[SqlStore, Storages]]:
    """Store and backend of a configuration."""
    store: SqlStore
    if cfg.database.dsn:
        from vosfs.metadata.postgres import PostgresStore

        store = PostgresStore(cfg.database.dsn)
    else:
        store = SqliteStore(cfg.base / cfg.database.file)
    backend = None
    try:
        backend = storages_of(cfg)
        yield store, backend
    finally:
        if backend is not None:
            backend.close()
        store.close()


@contextlib.asynccontextmanager
async def space(cfg: Config, checked: bool = True) -> AsyncIterator[tuple[SqlStore, Storages]]:
    """Store and backend of a configuration with the space in them, made if need be.

    QuietError unless the backend can be used for this very space, if that is ``checked``.
    """
    with opened(cfg) as (store, backend):
        await store.begin_space(cfg.space.owner)
        if checked:
            await check(store, backend)
        yield store, backend


async def check(store: SqlStore, backend: Storages) -> None:
    """QuietError unless the backend can be used for this very space."""
    for name, member in backend.members.items():
        inner = member.inner if isinstance(member, Bounded) else member
        if isinstance(inner, Roots) and inner.fresh and await store.stored("" if name == DEFAULT else name):
            raise QuietError(f"none of the directories of the storage {name!r} has its blobs: are the disks mounted?")
    name = hashlib.sha256(b"space" + await store.secret()).hexdigest()[:32]
    await trio.to_thread.run_sync(backend.check, name)
    await housekeeping.count_stored(store, backend)


async def serve(cfg: Config, ready: Callable[[Config, SqlStore], Awaitable[None]]) -> None:
    """Serve until SIGTERM or SIGINT.  ``ready`` is awaited once requests are answered."""
    async with space(cfg, cfg.server.role != "metadata") as (store, backend):
        try:
            sock = listen(cfg.server.host, cfg.server.port)
        except OSError as exc:
            raise QuietError(f"cannot listen on {cfg.server.host}:{cfg.server.port}: {exc.strerror}") from exc
        if cfg.server.port == 0:
            cfg = replace(cfg, server=replace(cfg.server, port=sock.getsockname()[1]))
        service = Service(
            store, backend, uri.Authority(cfg.space.authority), cfg.base_url, cfg.data_url, await store.secret(),
            cfg.space.gateway, cfg.server.role, cfg.server.private_endpoints, bool(cfg.server.client_ca),
        )  # fmt: skip

        async def notify(url: str, job: Job) -> None:
            await remote.notify(service, url, uws.document(jobs, job))

        jobs = Jobs(service, KINDS, notify)
        resources = {"all": tuple(app.METHODS), "metadata": app.METADATA, "storage": app.STORAGE}[cfg.server.role]
        server = Server(app.App(service, jobs, cfg.server.prefix, resources), sock, context=_context(cfg))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            nursery.start_soon(store.keep)
            nursery.start_soon(jobs.run)
            if cfg.server.role != "metadata":
                nursery.start_soon(housekeeping.run, store, backend)
                nursery.start_soon(digests.run, store, backend)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                logger.info("serving %s (%s)", cfg.base_url, cfg.server.role)
                await ready(cfg, store)
                async for number in signals:
                    logger.info("stopping on %s", signal.Signals(number).name)
                    nursery.cancel_scope.cancel()
                    break
        await store.sync()


def _context(cfg: Config) -> ssl.SSLContext | None:
    if not cfg.server.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cfg.base / cfg.server.certificate, cfg.base / cfg.server.key)
    except (OSError, ssl.SSLError) as exc:
        raise QuietError(f"certificate or key cannot be loaded: {exc}") from exc
    if cfg.server.client_ca:
        try:
            context.load_verify_locations(cfg.base / cfg.server.client_ca)
        except (OSError, ssl.SSLError) as exc:
            raise QuietError(f"client_ca cannot be loaded: {exc}") from exc
        context.verify_mode = ssl.CERT_OPTIONAL
        # Grid users come with proxies of their certificates (SSO 2.0 section 6).
        context.verify_flags |= ssl.VERIFY_ALLOW_PROXY_CERTS
    return context


async def _dev_ready(cfg: Config, store: SqlStore) -> None:
    owner = cfg.space.owner
    if await store.account(owner) is None:
        # No password until one is set: the token in the file is the way in.
        await store.put_account(owner, "", "admin")
    file = cfg.base / "token"
    write_secret(file, await issue_token(store, owner))
    print(f"READY url={cfg.base_url} token_file={file}", flush=True)


def write_secret(file: Path, text: str) -> None:
    """Replace a file that only this user may read."""
    temporary = file.with_name(file.name + ".new")
    temporary.unlink(missing_ok=True)
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(fd, "w") as stream:
        stream.write(text + "\n")
    os.replace(temporary, file)


# -- command line ------------------------------------------------------------------------------------------------


def _where(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(
        port=0, role=None, storage_url="", no_gateway=False, tls_cert=None, tls_key=None, client_ca=None,
        allow_private_endpoints=False, redirect=False, no_direct=False,
    )  # fmt: skip
    parser.add_argument("--dev", metavar="DIR", type=Path, help="the state directory of a --dev daemon")
    parser.add_argument("--config", metavar="FILE", type=Path, help=f"configuration (default {DEFAULT_CONFIG})")
    parser.add_argument("--dsn", default="", help="with --dev: a PostgreSQL database instead of SQLite")
    parser.add_argument(
        "--objects", metavar="URL", default="",
        help="with --dev: keep blobs as objects of s3://BUCKET/PREFIX (or az://, gs://), the environment has the key; or as files "
        "of ngas://HOST:PORT,HOST:PORT/PREFIX",
    )  # fmt: skip
    parser.add_argument("--objects-endpoint", metavar="URL", default="", help="with --objects: where the service is")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "vosfsd", description="Serve a VOSpace: metadata and storage over HTTP.",
        epilog="Other commands: vosfsd import, vosfsd user, vosfsd token, vosfsd gc, vosfsd audit, vosfsd move-storage, vosfsd quota; each has its --help.",
    )  # fmt: skip
    _where(parser)
    parser.add_argument("--port", type=int, default=8080, help="with --dev: port on 127.0.0.1 (0: a free one)")
    parser.add_argument("--role", choices=config.ROLES, help="run one half; both share a PostgreSQL database")
    parser.add_argument("--storage-url", default="", help="with --dev --role metadata: URL of the storage role")
    parser.add_argument(
        "--redirect", action="store_true", help="with --objects: send HTTP clients to the store for whole objects"
    )
    parser.add_argument(
        "--no-direct", action="store_true", help="with --objects: let mounts read through the daemon only"
    )
    parser.add_argument("--no-gateway", action="store_true", help="with --dev: offer plain VOSpace only")
    parser.add_argument("--tls-cert", type=Path, metavar="FILE", help="with --dev: certificate chain; serves https")
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="with --dev: the certificate's key")
    parser.add_argument(
        "--client-ca", type=Path, metavar="FILE", help="with --dev: authorities of the client certificates to accept"
    )
    parser.add_argument(
        "--allow-private-endpoints", action="store_true",
        help="with --dev: let third-party transfers go to addresses that are not public",
    )  # fmt: skip
    parser.add_argument("--log", choices=log.LEVELS, help="least level of log lines (default info)")
    parser.add_argument("--version", action="version", version=f"vosfsd {__version__}")
    return parser


def _configured(args: argparse.Namespace) -> Config:
    if args.dev:
        return dev_config(args)
    cfg = config.load(args.config or DEFAULT_CONFIG)
    if args.role:
        cfg = config.check(replace(cfg, server=replace(cfg.server, role=args.role)))
    return cfg


def _run_daemon(argv: list[str]) -> None:
    args = _parser().parse_args(argv)
    cfg = _configured(args)
    log.start(args.log or cfg.server.log)
    os.umask(0o077)
    heap.give_back_from(MMAP_BYTES)
    heap.collect_rarely()

    async def ready(final: Config, store: SqlStore) -> None:
        if args.dev:
            await _dev_ready(final, store)
        else:
            print(f"READY url={final.base_url}", flush=True)

    trio.run(serve, cfg, ready)


def _run_import(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("vosfsd import", description="Register a directory tree in place, read-only.")
    _where(parser)
    parser.add_argument("source", type=Path, metavar="DIR", help="directory that exists on the storage host")
    parser.add_argument("container", metavar="/CONTAINER", help="container to make in the space")
    parser.add_argument("--owner", help="VOSpace user who will own it (default: the root's owner)")
    args = parser.parse_args(argv)
    if not args.source.is_dir():
        raise QuietError(f"{args.source} is not a directory")

    async def work() -> None:
        cfg = _configured(args)
        async with space(cfg, False) as (store, backend):
            directory = backend.default.inner if isinstance(backend.default, Bounded) else backend.default
            if not isinstance(directory, (PosixBackend, Roots)):
                raise QuietError("vosfsd import registers files where they are, which needs [storage] directory")
            await check(store, backend)
            path = tuple(os.fsencode(name) for name in args.container.strip("/").split("/") if name)

            def warn(line: str) -> None:
                print(line, file=sys.stderr)

            done = await import_tree(store, directory, args.source, path, args.owner or cfg.space.owner, warn)
            print(f"imported {done.nodes - done.skipped} nodes, {done.bytes} bytes, into {args.container}")

    trio.run(work)


def _run_user(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("vosfsd user", description="Make a user, or change password and groups.")
    _where(parser)
    parser.add_argument("name")
    parser.add_argument("--groups", default="", help="comma-separated; the group 'admin' may do everything")
    parser.add_argument("--no-password", action="store_true", help="the user signs in by token or certificate only")
    parser.add_argument(
        "--certificate", action="append", default=[], metavar="DN",
        help="name of a client certificate of the user's, as openssl x509 -subject -nameopt RFC2253 prints it",
    )  # fmt: skip
    args = parser.parse_args(argv)
    check_user(args.name)
    password = ""
    if not args.no_password:
        # Never an argument: those show in ps and in shell histories.
        password = getpass.getpass("Password: ") if sys.stdin.isatty() else sys.stdin.readline().rstrip("\n")
        if not password:
            raise QuietError("the password is empty")

    async def work() -> None:
        async with space(_configured(args), False) as (store, _):
            await store.put_account(args.name, hash_password(password) if password else "", args.groups)
            for name in args.certificate:
                await store.put_certificate(name.removeprefix("subject=").strip(), args.name)

    trio.run(work)


def _run_token(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("vosfsd token", description="Issue a bearer token and write it to a file.")
    _where(parser)
    parser.add_argument("name", help="an existing user")
    parser.add_argument("file", type=Path, help="written with mode 0600")
    parser.add_argument("--days", type=int, default=30, help="life of the token (default 30)")
    args = parser.parse_args(argv)

    async def work() -> None:
        async with space(_configured(args), False) as (store, _):
            if await store.account(args.name) is None:
                raise QuietError(f"no user {args.name!r}: make one with vosfsd user")
            write_secret(args.file, await issue_token(store, args.name, args.days * 86400))

    trio.run(work)


def _run_gc(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("vosfsd gc", description="Collect what nothing refers to, now.")
    _where(parser)
    parser.add_argument("--json", action="store_true", help="report as JSON")
    args = parser.parse_args(argv)

    async def work() -> None:
        async with space(_configured(args)) as (store, backend):
            nodes = await housekeeping.empty_trash(store)
            blobs = await housekeeping.collect(store, backend)
            orphans = await housekeeping.collect_orphans(store, backend)
            if args.json:
                print(json.dumps({"nodes": nodes, "blobs": blobs, "orphans": orphans}))
            else:
                print(f"purged {nodes} nodes, collected {blobs} blobs and {orphans} orphans")

    trio.run(work)


def _run_audit(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "vosfsd audit", description="Compare what the nodes say with what the storages have.",
        epilog="Exit status: 0 all is there (there may be orphans, for the collector), 3 bytes or copies are missing or damaged, "
        "1 not everything could be looked at.",
    )  # fmt: skip
    _where(parser)
    parser.add_argument("--deep", action="store_true", help="read all bytes and compare their checksums")
    parser.add_argument("--repair", action="store_true", help="write bad copies anew from good ones")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    args = parser.parse_args(argv)

    async def work() -> audit.Report:
        async with space(_configured(args)) as (store, backend):
            blobs, length = await store.used_total()
            bar = audit.Bar(sys.stderr, length if args.deep else blobs, lambda r: r.bytes if args.deep else r.blobs)
            try:
                return await audit.audit(store, backend, args.deep, bar.show, repair=backend if args.repair else None)
            finally:
                bar.end()

    report = trio.run(work)
    if args.json:
        print(msgspec.json.encode(report).decode())
    else:
        print("\n".join(audit.lines(report)))
    if report.damaged:
        sys.exit(DAMAGED)
    if report.counts[audit.UNREACHABLE] or (args.deep and report.counts[audit.AWAY]):
        sys.exit(1)


async def _node_at(store: SqlStore, text: str) -> Node:
    path = tuple(os.fsencode(name) for name in text.strip("/").split("/") if name)
    chain, _ = await store.trace(path)
    if len(chain) <= len(path):
        raise QuietError(f"{text}: no such node")
    return chain[-1]


def _run_move_storage(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "vosfsd move-storage", description="Move a node and all below it to other storages, readable all the time.",
    )  # fmt: skip
    _where(parser)
    parser.add_argument("path", metavar="/PATH", help="of the node, not percent-encoded")
    parser.add_argument("storage", metavar="NAME", help="of a storage, or two ('default vault') for a copy in each")
    args = parser.parse_args(argv)

    async def work() -> int:
        cfg = _configured(args)
        async with space(cfg) as (store, backend):
            node = await _node_at(store, args.path)
            mover = relocation.Mover(store, backend, " ".join(backend.names(args.storage)))
            await mover.tree(node, Subject(cfg.space.owner, frozenset((ADMIN,))))
            left = f", {mover.failed} were left" if mover.failed else ""
            print(f"moved {mover.done} nodes, {mover.bytes} bytes{left}")
            return mover.failed

    if trio.run(work):
        sys.exit(1)


def _run_quota(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "vosfsd quota", description="Show or set how many bytes may be below a container.",
        epilog="Every quota above a file counts. What is there when one is set stays, even if it is more.",
    )  # fmt: skip
    _where(parser)
    parser.add_argument("path", metavar="/PATH", nargs="?", help="of the container, not percent-encoded")
    parser.add_argument("bytes", metavar="BYTES", nargs="?", help="500000, '20 GiB', 3T; or none")
    parser.add_argument("--check", action="store_true", help="count anew what is used, of all quotas, and put it right")
    parser.add_argument("--json", action="store_true", help="report as JSON")
    args = parser.parse_args(argv)
    if (args.path is None) != args.check:
        raise QuietError("name a container, or --check")

    async def work() -> None:
        async with space(_configured(args), False) as (store, _):
            if args.check:
                wrong = [
                    {"path": "/" + os.fsdecode(b"/".join(await store.path_of(node) or ())), "used": was, "counted": now}
                    for node, was, now in await store.recount()
                ]
                print(json.dumps(wrong) if args.json else "\n".join(
                    "{path}: {used} bytes were counted, {counted} there are".format(**each) for each in wrong
                ) or "all quotas count what is there")  # fmt: skip
                return
            node = await _node_at(store, args.path)
            if args.bytes is not None:
                await store.set_quota(node.id, -1 if args.bytes == "none" else quotas.parsed(args.bytes))
            found = await store.quotas(node.id)
            own = found[0] if found and found[0].node == node.id else None
            told = {
                "quota": own.bytes_max if own and own.bytes_max >= 0 else None,
                "used": own.used if own else None, "left": bytes_left(found),
            }  # fmt: skip
            if args.json:
                print(json.dumps(told))
            else:
                print(", ".join(f"{name} {'none' if value is None else value}" for name, value in told.items()))

    trio.run(work)


COMMANDS = {
    "quota": _run_quota,
    "import": _run_import,
    "user": _run_user,
    "token": _run_token,
    "gc": _run_gc,
    "audit": _run_audit,
    "move-storage": _run_move_storage,
}


def main() -> None:
    """Entry point of ``vosfsd``."""
    argv = sys.argv[1:]
    try:
        if argv and argv[0] in COMMANDS:
            COMMANDS[argv[0]](argv[1:])
        else:
            _run_daemon(argv)
    except QuietError as exc:
        print(f"vosfsd: {exc}", file=sys.stderr)
        sys.exit(exc.code)
    except (VOSpaceError, OSError, EOFError, sqlite3.Error) as exc:
        reason = f"{exc.filename}: {exc.strerror}" if isinstance(exc, OSError) and exc.filename else str(exc)
        print(f"vosfsd: {' '.join(reason.split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
