"""``vosfs``: mount, umount and status, for people and scripts."""

import argparse
import contextlib
import errno
import ipaddress
import json
import os
import re
import select
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import trio

from vosfs import __version__, log
from vosfs.errors import QuietError, VOSpaceError

if TYPE_CHECKING:
    from vosfs.cache.kept import KeptFile

START_S_MAX = 90.0
"""A mount that has not answered by then is given up."""
SERVICE_S_MAX, SERVICE_LOOK_S = 5.0, 0.05
"""How long a mount waits for a daemon of this host that is not there yet, and between looks."""
SIZE = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)
DEAD_MAX = 10
"""Dead mounts on one another that a new one clears away."""
CACHE_HELP = "default: $XDG_CACHE_HOME/vosfs or ~/.cache/vosfs"
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def _size(text: str) -> int:
    match = SIZE.fullmatch(text)
    if match is None:
        raise QuietError(f"{text!r} is not a size: write 500M or 20G")
    return int(match.group(1)) << UNITS[match.group(2).upper()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("vosfs", description="Mount a VOSpace and look after mounts.")
    parser.add_argument("--version", action="version", version=f"vosfs {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    mount = commands.add_parser(
        "mount", help="mount a space", description="Mount a space; returns when the mount answers.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="options (-o a,b=c):\n"
        "  ro               read-only\n"
        "  allow_other      let other users in (needs user_allow_other in /etc/fuse.conf, or root)\n"
        "  suid, dev        let setuid programs and device nodes in it work (root only)\n"
        "  cache_size=SIZE  limit of the local cache (default 10G, at most half of the disk's free space)\n"
        "  deadline=S       seconds after which an operation without an answer fails (default 30)\n"
        "  uid=N, gid=N     owner shown for nodes that name none\n"
        "  plain            use plain VOSpace even where the gateway binding is offered\n"
        "  sync             every change waits for the service, even where nobody could tell\n",
    )  # fmt: skip
    mount.add_argument("url", help="base URL of the space, such as http://127.0.0.1:8080/vos")
    mount.add_argument("mountpoint", type=Path)
    mount.add_argument(
        "--token-file", type=Path, help="file with the bearer token, read again when it changes; none: anonymous"
    )
    mount.add_argument("--cache-dir", type=Path, help=CACHE_HELP)
    mount.add_argument("-o", dest="options", action="append", default=[], metavar="OPT,...")
    mount.add_argument("--foreground", "-f", action="store_true", help="stay, and log to stderr")
    mount.add_argument("--log", choices=log.LEVELS, default="info", help="least level of log lines")
    umount = commands.add_parser("umount", help="unmount, when everything written is safe")
    umount.add_argument("mountpoint", type=Path)
    status = commands.add_parser("status", help="show this host's mounts, or one of them")
    status.add_argument("mountpoint", type=Path, nargs="?")
    status.add_argument("--json", action="store_true", help="for programs")
    recover = commands.add_parser(
        "recover", help="get back what could not be saved",
        description="List what mounts wrote and could not save (without NAME), or write one of them to a file.",
    )  # fmt: skip
    recover.add_argument("name", nargs="?", help="as listed")
    recover.add_argument("file", type=Path, nargs="?", help="where to write it; it must not exist")
    recover.add_argument("--drop", action="store_true", help="remove it (after FILE is written, if one is named)")
    recover.add_argument("--partial", action="store_true", help="zeros for what only the service has")
    recover.add_argument("--token-file", type=Path, help="to fetch the unchanged parts of the file")
    recover.add_argument("--cache-dir", type=Path, help=CACHE_HELP)
    recover.add_argument("--json", action="store_true", help="for programs")
    fsck = commands.add_parser(
        "fsck", help="check a cache directory",
        description="Check a cache directory. Exit status: 0 all is well or was repaired, 1 something is to be repaired.",
    )  # fmt: skip
    fsck.add_argument("--cache-dir", type=Path, help=CACHE_HELP)
    fsck.add_argument("--repair", action="store_true", help="put right what is wrong")
    return parser


# -- mount ---------------------------------------------------------------------------------------------------------------


def _token(file: Path | None) -> str:
    from vosfs.mount import read_token

    if file is None:
        return ""
    token = read_token(file)
    if file.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        print(f"vosfs: warning: others can read {file}: chmod 600 it", file=sys.stderr)
    return token


def _await_start(url: str, token_file: Path | None) -> None:
    """Give a daemon of this host, which may have been started on the line before, time to begin; whatever is wrong is told later."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
        here = host == "localhost" or ipaddress.ip_address(host).is_loopback
        if parts.scheme not in ("http", "https") or not here:
            return
    except ValueError:
        return
    end = time.monotonic() + SERVICE_S_MAX
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, port), SERVICE_S_MAX):
            if token_file is None or token_file.exists():
                return
            # It listens, so it writes the token now if ever.
            end = min(end, time.monotonic() + 1)
        time.sleep(SERVICE_LOOK_S)


def _mount(args: argparse.Namespace) -> None:
    from vosfs import mount

    given: dict[str, str] = {}
    kernel: set[str] = set()
    for option in ",".join(args.options).split(","):
        key, equals, value = option.partition("=")
        if key in ("cache_size", "deadline", "uid", "gid") and equals:
            given[key] = value
        elif key in ("ro", "plain", "sync") and not equals:
            given[key] = "1"
        elif (
            key in ("allow_other", "allow_root", "nosuid", "nodev", "noexec", "noatime", "debug", "suid", "dev")
            and not equals
        ):
            kernel.add(key)
        elif key not in ("", "rw", "defaults", "_netdev", "user", "users", "noauto", "auto", "nofail"):
            raise QuietError(f"unknown option {option!r}; vosfs mount --help lists them")
    if "ro" in given:
        kernel.add("ro")
    _await_start(args.url, args.token_file)
    try:
        options = mount.Options(
            args.url, args.mountpoint.absolute(), _cache_dir(args.cache_dir),
            _token(args.token_file), args.token_file and args.token_file.absolute(), _size(given.get("cache_size", "10G")), float(given.get("deadline", "30")),
            "ro" in given, int(given.get("uid", os.getuid())), int(given.get("gid", os.getgid())),
            frozenset(kernel), "sync" in given, "plain" in given,
        )  # fmt: skip
    except ValueError as exc:
        raise QuietError(f"an option's value is not a number: {exc}") from exc
    if options.deadline_s <= 0:
        raise QuietError("deadline must be above 0")
    _check_mountpoint(options.mountpoint)
    if args.foreground:
        log.start(args.log)
        trio.run(mount.run, options, _complain)
        return
    _in_background(options, args.log)


def _cache_dir(given: Path | None) -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vosfs"
    return (given or default).absolute()


def _complain(reason: str) -> None:
    if reason:
        print(f"vosfs: {reason}", file=sys.stderr)


def _check_mountpoint(path: Path) -> None:
    _clear_dead(path)
    try:
        if not path.is_dir():
            raise QuietError(f"mount point {path} is not a directory")
    except OSError as exc:
        raise QuietError(f"mount point {path}: {exc.strerror}") from exc
    if _mounted(path):
        raise QuietError(f"{path} is mounted already")


def _clear_dead(path: Path) -> None:
    """Take away what a mount that died left: its programs see ENOTCONN until another one is here, and no empty directory."""
    for _ in range(DEAD_MAX):
        try:
            # What stat(2) says may be remembered by the kernel.
            if not _mounted(path) or _status_of(str(path)):
                return
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:
                return
        # Lazily: a shell may still stand in it.
        lazy = ["umount", "-l", str(path)] if os.getuid() == 0 else ["fusermount3", "-u", "-z", "--", str(path)]
        done = subprocess.run(lazy, capture_output=True, text=True)
        if done.returncode:
            raise QuietError((done.stderr.strip().splitlines() or ["umount failed"])[0])
        print(f"vosfs: {path}: the mount that was here had died", file=sys.stderr)


def _in_background(options: object, level: str) -> None:
    """Fork the mount off and wait until it answers, or says why it cannot."""
    from vosfs import mount

    assert isinstance(options, mount.Options)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        sys.exit(_wait_for(pid, reading))
    os.close(reading)
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    os.chdir("/")
    options.cache_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    log.start(level, str(options.cache_dir / "vosfs.log"))
    for fd in (0, 1, 2):
        os.dup2(null, fd)

    def report(reason: str) -> None:
        os.write(writing, (reason or "ok").encode() + b"\n")

    code = 0
    try:
        trio.run(mount.run, options, report)
    except BaseException as exc:
        code = 1
        quiet = _quiet(exc)
        if quiet is None:
            import logging

            logging.getLogger(__name__).exception("the mount ended")
        os.write(writing, f"{quiet or f'the mount ended: {exc!r}'}\n".encode())
    os._exit(code)


def _quiet(exc: BaseException) -> QuietError | None:
    """The user's mistake inside what trio raises, if it is one."""
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc if isinstance(exc, QuietError) else None


def _wait_for(pid: int, reading: int) -> int:
    ready, _, _ = select.select([reading], [], [], START_S_MAX)
    line = os.read(reading, 4096).decode("utf-8", "replace").strip().splitlines() if ready else ["no answer in time"]
    if line and line[0] == "ok":
        return 0
    print(f"vosfs: {line[0] if line else 'the mount process died'}", file=sys.stderr)
    return 1


# -- umount, status --------------------------------------------------------------------------------------------------------


def _mounts() -> list[tuple[str, str]]:
    """(mount point, source) of this host's vosfs mounts."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.partition(" - ")
            kind, source, *_ = right.split()
            if kind == "fuse.vosfs":
                point = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), left.split()[4])
                found.append((point, source))
    return found


def _mounted(path: Path) -> bool:
    return any(point == os.path.realpath(path.parent) + "/" + path.name or point == str(path) for point, _ in _mounts())


def _status_of(point: str) -> dict[str, object]:
    from vosfs.fuse import STATUS_XATTR

    return json.loads(os.getxattr(point, STATUS_XATTR))


def _umount(args: argparse.Namespace) -> None:
    from vosfs.mount import alive, unsent

    path = args.mountpoint.absolute()
    if not _mounted(path):
        raise QuietError(f"{path} is not a vosfs mount")
    pid, cache = 0, Path()
    try:
        found = _status_of(str(path))
        pid, cache = int(str(found["pid"])), Path(str(found["cache_dir"]))
    except (OSError, ValueError, KeyError):
        pass
    command = ["umount", str(path)] if os.getuid() == 0 else ["fusermount3", "-u", str(path)]
    # Closing saves: whatever is unsaved belongs to an open file, and then the kernel says that the mount is busy.
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise QuietError((done.stderr.strip().splitlines() or ["umount failed"])[0])
    deadline = time.monotonic() + START_S_MAX
    while pid and alive(pid):
        if time.monotonic() > deadline:
            raise QuietError(f"unmounted, but process {pid} has not ended")
        time.sleep(0.02)
    if pid and (kept := unsent(cache, pid)):
        raise QuietError(
            f"unmounted, but the service did not take {kept} changes: they are kept in {cache}, and the next mount of this"
            " space with that --cache-dir sends them"
        )


def _show(point: str, status: dict[str, object]) -> None:
    def mib(key: str) -> str:
        return f"{int(str(status[key])) / 2**20:.1f} MiB"

    live = (
        "live: changes elsewhere show at once" if status["live"] else "down: attributes are asked for again each second"
    )
    if status["away"]:
        live = "down: the service cannot be reached, what is in the cache can be read"
    print(f"{point}\n  space    {status['url']} ({status['binding']} binding)")
    print(f"  feed     {live}")
    if "delegation" in status:
        ahead = "held: changes are acknowledged first and sent in batches" if status["delegation"] else "not held"
        lost = f"; {status['lost']} changes were refused, see the log" if status["lost"] else ""
        print(f"  ahead    delegation {ahead}; {status['owed']} changes on their way{lost}")
    print(f"  files    {status['open_files']} open, {mib('dirty_bytes')} not yet saved")
    print(
        f"  cache    {mib('cache_bytes')} of blocks, {mib('scratch_bytes')} of files written here, in {status['cache_dir']}"
    )
    if status.get("staging"):
        print(
            f"  staging  {status['staging']} files are on their way from a slow storage: opening them says EAGAIN till then"
        )
    if status["kept"]:
        print(f"  kept     {status['kept']} files could not be saved: vosfs recover --cache-dir {status['cache_dir']}")
    print(f"  process  {status['pid']}")


def _status(args: argparse.Namespace) -> None:
    points = [point for point, _ in _mounts()]
    if args.mountpoint:
        wanted = str(args.mountpoint.absolute())
        if wanted not in points:
            raise QuietError(f"{wanted} is not a vosfs mount")
        points = [wanted]
    found = []
    for point in points:
        try:
            found.append({"mountpoint": point, **_status_of(point)})
        except OSError as exc:
            if not args.json:
                print(f"{point}\n  does not answer: {exc.strerror}; vosfs umount {point} clears it")
            found.append({"mountpoint": point, "error": exc.strerror})
    if args.json:
        print(json.dumps(found))
        return
    for status in found:
        if "error" not in status:
            _show(str(status["mountpoint"]), status)
    if not points:
        print("nothing is mounted")


# -- recover, fsck -------------------------------------------------------------------------------------------------------


def _recover(args: argparse.Namespace) -> None:
    from vosfs.cache.kept import Kept
    from vosfs.mount import KEPT, Options
    from vosfs.recover import restore

    kept = Kept(_cache_dir(args.cache_dir) / KEPT)
    if args.name is None:
        _list_kept(list(kept.files()), args.json)
        return
    file = kept.find(args.name)
    if file is None:
        raise QuietError(f"there is no {args.name}: vosfs recover lists what there is")
    if args.file is None and not args.drop:
        raise QuietError("name a file to write it to, or --drop it")
    if args.file is not None:
        options = Options(file.record.url, Path(), Path(), _token(args.token_file))
        lost = trio.run(restore, file, args.file, options, args.partial)
        print(f"{args.file}: {file.record.length} bytes" + (f", {lost} of them zeros" if lost else ""))
    if args.drop:
        file.drop()


def _list_kept(files: list["KeptFile"], as_json: bool) -> None:
    if as_json:
        print(json.dumps([
            {"name": file.name, "bytes": file.size, **{
                key: getattr(file.record, key) for key in ("url", "path", "node", "version", "length", "at_ns", "why")
            }}
            for file in files
        ]))  # fmt: skip
        return
    for file in files:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(file.record.at_ns / 1e9))
        print(f"{file.name}\n  {file.record.path} of {file.record.url}\n  {file.size} bytes, {when}: {file.record.why}")
    if not files:
        print("nothing is kept")


def _fsck(args: argparse.Namespace) -> None:
    from vosfs.recover import check, repair

    findings = check(_cache_dir(args.cache_dir))
    for finding in findings:
        print(f"{finding.path}: {finding.what}")
    if args.repair:
        print(f"{repair(findings)} repaired")
    elif any(finding.repair for finding in findings):
        raise QuietError("something is to be repaired: --repair")


def main() -> None:
    """Entry point of ``vosfs``."""
    args = _parser().parse_args()
    try:
        commands = {"mount": _mount, "umount": _umount, "status": _status, "recover": _recover, "fsck": _fsck}
        commands[args.command](args)
    except (QuietError, VOSpaceError) as exc:
        print(f"vosfs: {exc}", file=sys.stderr)
        sys.exit(getattr(exc, "code", 1))
    except BaseExceptionGroup as exc:
        quiet = _quiet(exc)
        if quiet is None:
            raise
        print(f"vosfs: {quiet}", file=sys.stderr)
        sys.exit(quiet.code)
