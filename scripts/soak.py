#!/usr/bin/env python3
"""The long checks: a big real tree, a file of more than 2 GiB, memory with 4 GiB and with 100 000 entries.

With --nodes N instead: memory with a tree of N nodes, and with N entries in one directory.  Each step prints what it
found; the first that does not hold ends the run with status 1.
"""

import argparse
import getpass
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import trio

from vosfs.metadata.node import CONTAINER, DATA, ROOT_ID, NewNode
from vosfs.metadata.sqlite import SqliteStore
from vosfs.metadata.store import Step

BIN = Path(sys.executable).parent
RSS_MIB_MAX = 150
BIG_MIB = 2100
STREAM_MIB = 4096
ENTRIES = 100_000
NODES_RSS_MIB_MAX = 200
"""Of --nodes."""
IN_CONTAINER = 1_000
"""Nodes of the tree of --nodes in each of its containers, which lie side by side."""
STEPS = 1_000
"""Nodes made in one transaction."""
LOOKED_UP = 2_000


def sh(command: str, **where: object) -> str:
    """A shell command that must succeed; its output."""
    began = time.monotonic()
    done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, errors="replace", **where)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"FAILED: {command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    print(f"  {time.monotonic() - began:7.1f} s  {command}", flush=True)
    return str(done.stdout)


class Space:
    """A daemon and one mount of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.point = directory / "mnt"
        self.point.mkdir()
        self.mounts = 0
        self.serve()

    def serve(self) -> None:
        """Start the daemon."""
        with open(self.directory / "vosfsd.log", "w") as log:
            self.daemon = subprocess.Popen(
                [BIN / "vosfsd", "--dev", self.directory / "space", "--port", "0"],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.daemon.stdout is not None
        fields = dict(part.split("=", 1) for part in self.daemon.stdout.readline().split()[1:])
        self.url, self.token = fields["url"], fields["token_file"]

    def stop(self) -> None:
        """End the daemon."""
        self.daemon.terminate()
        self.daemon.wait(60)

    def mount(self) -> None:
        """Mount with an empty cache of its own."""
        self.mounts += 1
        cache = self.directory / f"cache{self.mounts}"
        subprocess.run(
            [BIN / "vosfs", "mount", self.url, self.point, "--token-file", self.token, "--cache-dir", cache], check=True
        )

    def unmount(self) -> None:
        """Take it away."""
        subprocess.run([BIN / "vosfs", "umount", self.point], check=True)

    def memory(self, what: str, limit_mib: int = RSS_MIB_MAX) -> None:
        """Peak resident memory of daemon and mount so far; ends the run over the limit."""
        status = json.loads(os.getxattr(self.point, "user.vosfs.status"))
        peaks = []
        for pid in (self.daemon.pid, status["pid"]):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peaks.append(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))
        print(f"  peak RSS after {what}: daemon {peaks[0]:.0f} MiB, mount {peaks[1]:.0f} MiB", flush=True)
        if max(peaks) > limit_mib:
            sys.exit(f"FAILED: more than {limit_mib} MiB")


def tree(space: Space, source: Path) -> None:
    """cp -a, rsync --checksum twice, diff -r, and all of it again after a remount with an empty cache."""
    point = space.point
    files = int(sh(f"find {source} | wc -l"))
    print(f"a tree of {files} nodes, one of them {BIG_MIB} MiB")
    listing = "find . -mindepth 1 ! -type d -printf '%P %y %m %s %T@ %l\\n' -o -type d -printf '%P %y %m\\n' | LC_ALL=C sort | sha256sum"
    sh(f"cp -a {source} {point}/copied")
    sh(f"rsync -a --checksum {source}/ {point}/synced/")
    again = sh(f"rsync -a --checksum --itemize-changes {source}/ {point}/synced/")
    if again:
        sys.exit(f"FAILED: the second rsync copied\n{again[:2000]}")
    for _ in range(2):
        for name in ("copied", "synced"):
            sh(f"diff -r --no-dereference {source} {point}/{name}")
            if sh(listing, cwd=source) != sh(listing, cwd=point / name):
                sys.exit(f"FAILED: names, types, modes, sizes, times or links of {name} differ")
        space.unmount()
        space.mount()
    space.memory("the tree")
    sh(f"rm -rf {point}/copied {point}/synced")


def memory(space: Space) -> None:
    """4 GiB in both directions, then a directory of 100 000 entries."""
    point = space.point
    sh(f"dd if=/dev/urandom of={point}/stream bs=1M count={STREAM_MIB} status=none")
    space.memory(f"writing {STREAM_MIB} MiB")
    space.unmount()
    space.mount()
    sh(f"dd if={point}/stream of=/dev/null bs=1M status=none")
    space.memory(f"reading {STREAM_MIB} MiB")
    sh(f"rm {point}/stream; mkdir {point}/many")
    sh(f"cd {point}/many && seq {ENTRIES} | xargs touch")
    space.unmount()
    space.mount()
    for _ in range(2):
        count = int(sh(f"ls -l {point}/many | tail -n +2 | wc -l"))
        if count != ENTRIES:
            sys.exit(f"FAILED: {count} entries listed, {ENTRIES} made")
    space.memory(f"listing {ENTRIES} entries")


async def plant(database: Path, count: int) -> None:
    """Make nodes in the store itself: through a mount it would take an hour."""
    store = SqliteStore(database)
    owner, now_ns = getpass.getuser(), time.time_ns()

    async def make(parent: int, names: list[str], kind: str) -> list[int]:
        new = NewNode(kind, 0o755 if kind == CONTAINER else 0o644, os.getuid(), os.getgid(), owner)
        made = []
        for at in range(0, len(names), STEPS):
            steps = [Step("create", (parent, name.encode(), new), now_ns) for name in names[at : at + STEPS]]
            made += [node.id for node in await store.apply(steps)]  # type: ignore[union-attr]
        return made

    tree, many = await make(ROOT_ID, ["tree", "many"], CONTAINER)
    containers = await make(tree, [f"c{number:05}" for number in range(count // IN_CONTAINER)], CONTAINER)
    for container in containers:
        await make(container, [f"n{number:05}" for number in range(IN_CONTAINER - 1)], DATA)
    await make(many, [f"n{number:07}" for number in range(count)], DATA)
    await store.sync()
    store.close()


def nodes(space: Space, count: int) -> None:
    """All of a big tree, and of a big directory, looked up, listed and forgotten."""
    space.stop()
    began = time.monotonic()
    trio.run(plant, space.directory / "space/vosfs.db", count)
    print(f"  {time.monotonic() - began:7.1f} s  {count} nodes in a tree and as many in one directory made", flush=True)
    space.serve()
    space.mount()
    point = space.point

    def counted(command: str, expected: int) -> None:
        found = int(sh(command))
        if found != expected:
            sys.exit(f"FAILED: {found}, not {expected}")
        space.memory(command.replace(f"{point}/", ""), NODES_RSS_MIB_MAX)

    counted(f"ls -f {point}/many | wc -l", count + 2)
    counted(f"ls -U {point}/many | sort -u | wc -l", count)
    counted(f"ls -l {point}/many | tail -n +2 | wc -l", count)
    rng, began = random.Random(0), time.monotonic()
    for _ in range(LOOKED_UP):
        os.stat(point / f"many/n{rng.randrange(count):07}")
        if os.path.lexists(point / f"many/m{rng.randrange(count):07}"):
            sys.exit("FAILED: a name that nobody made")
    print(f"  {(time.monotonic() - began) / LOOKED_UP * 1000:7.2f} ms for a name that is there and one that is not")
    with os.scandir(point / "many") as entries:
        # A listing that began sees each name once, whatever comes and goes meanwhile.
        seen = [next(entries).name]
        (point / "many/a new one").touch()
        (point / f"many/n{count - 1:07}").unlink()
        seen += [entry.name for entry in entries]
    if len(seen) != len(set(seen)) or not count - 1 <= len(seen) <= count + 1:
        sys.exit(f"FAILED: {len(seen)} names listed, {len(set(seen))} of them different")
    in_tree = count // IN_CONTAINER * IN_CONTAINER + 1
    counted(f"ls -lR {point}/tree | grep -c '^[-d]'", in_tree - 1)
    if os.getuid() == 0:
        # The kernel forgets names and inodes.
        sh("echo 2 > /proc/sys/vm/drop_caches")
    counted(f"find {point}/tree | wc -l", in_tree)
    space.memory("all of it", NODES_RSS_MIB_MAX)


def many_nodes(directory: Path, count: int) -> None:
    """--nodes."""
    space = Space(directory)
    try:
        nodes(space, count)
        space.unmount()
    finally:
        subprocess.run(["umount", "-l", space.point], capture_output=True)
        space.stop()
    print("all of it holds")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where to work: needs about 20 GiB")
    parser.add_argument("--source", type=Path, nargs="*", default=[Path("/usr/share"), Path("/usr/lib/python3")])
    parser.add_argument("--nodes", type=int, metavar="N", help=f"N nodes in one space: at most {NODES_RSS_MIB_MAX} MiB")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vosfs-soak-", dir=args.dir) as name:
        directory = Path(name)
        if args.nodes:
            many_nodes(directory, args.nodes)
            return
        source = directory / "source"
        source.mkdir()
        for path in args.source:
            sh(f"cp -a {path} {source}/")
        odd = source / "odd names"
        odd.mkdir()
        for text in (b"new\nline", b"\xff\xfe not utf-8", b"%2f", b"a?b#c&d<e>", b"-rf", b"x" * 255, b" "):
            Path(os.fsdecode(bytes(odd) + b"/" + text)).write_bytes(text)
        os.link(odd / "%2f", odd / "hard link")
        sh(f"head -c {BIG_MIB}M /dev/urandom > {source}/big")
        space = Space(directory)
        try:
            space.mount()
            tree(space, source)
            memory(space)
            space.unmount()
        finally:
            subprocess.run(["umount", "-l", space.point], capture_output=True)
            space.daemon.terminate()
            space.daemon.wait(60)
    print("all of it holds")


if __name__ == "__main__":
    main()
