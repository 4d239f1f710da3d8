#!/usr/bin/env python3
"""The long checks: a big real tree, a file of more than 2 GiB, memory with 4 GiB and with 100 000 entries.

Each step prints what it found; the first that does not hold ends the run with status 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
RSS_MIB_MAX = 150
BIG_MIB = 2100
STREAM_MIB = 4096
ENTRIES = 100_000


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
        with open(directory / "vosfsd.log", "w") as log:
            self.daemon = subprocess.Popen(
                [BIN / "vosfsd", "--dev", directory / "space", "--port", "0"],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        assert self.daemon.stdout is not None
        fields = dict(part.split("=", 1) for part in self.daemon.stdout.readline().split()[1:])
        self.url, self.token = fields["url"], fields["token_file"]

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

    def memory(self, what: str) -> None:
        """Peak resident memory of daemon and mount so far; ends the run over the limit."""
        status = json.loads(os.getxattr(self.point, "user.vosfs.status"))
        peaks = []
        for pid in (self.daemon.pid, status["pid"]):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            peaks.append(next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")))
        print(f"  peak RSS after {what}: daemon {peaks[0]:.0f} MiB, mount {peaks[1]:.0f} MiB", flush=True)
        if max(peaks) > RSS_MIB_MAX:
            sys.exit(f"FAILED: more than {RSS_MIB_MAX} MiB")


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


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where to work: needs about 20 GiB")
    parser.add_argument("--source", type=Path, nargs="*", default=[Path("/usr/share"), Path("/usr/lib/python3")])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vosfs-soak-", dir=args.dir) as name:
        directory = Path(name)
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
