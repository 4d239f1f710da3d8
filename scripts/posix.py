#!/usr/bin/env python3
"""Run pjdfstest, the public POSIX suite, on a mount of a fresh daemon, and say what failed.

The suite is not part of this project: give a directory of it in which its program was built (``autoreconf -ifs &&
./configure && make pjdfstest``).  Its tests take root, several users and no network.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from demo import BIN, start_daemon

FILE_S_MAX = 600
"""One file of the suite makes 2 400 checks at most, at 20 ms each."""


def results(output: str) -> tuple[int, dict[int, str]]:
    """How many checks a file of TAP has, and those that failed with what was said; what never ran failed too."""
    planned = re.search(r"^1\.\.(\d+)", output, re.MULTILINE)
    if planned is None:
        return 1, {1: "no plan: the file did not run"}
    count = int(planned.group(1))
    failed = dict.fromkeys(range(1, count + 1), "not run")
    for line in output.splitlines():
        found = re.match(r"(not )?ok (\d+)(.*)", line)
        if found is None:
            continue
        number = int(found.group(2))
        if found.group(1) and not re.search("# *todo", line, re.IGNORECASE):
            failed[number] = found.group(3).strip(" -")
        else:
            failed.pop(number, None)
    return count, failed


def run_file(file: Path, where: Path) -> tuple[int, dict[int, str]]:
    """One file of the suite, in a directory of its own."""
    where.mkdir(mode=0o755)
    try:
        done = subprocess.run(
            ["sh", file], cwd=where, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FILE_S_MAX
        )
    except subprocess.TimeoutExpired:
        return 1, {1: f"no end within {FILE_S_MAX} s"}
    return results(done.stdout)


def run_all(files: list[Path], tests: Path, top: Path) -> bool:
    """Run the files, print a table; whether nothing failed."""
    checks: dict[str, list[int]] = {}
    for number, file in enumerate(files):
        name = str(file.relative_to(tests))
        count, failed = run_file(file, top / f"t{number}")
        row = checks.setdefault(file.parent.name, [0, 0, 0])
        row[0] += 1
        row[1] += count
        row[2] += len(failed)
        for check, said in sorted(failed.items()):
            print(f"{name} {check}: {said}", flush=True)
    print(f"\n{'':16}{'files':>8}{'checks':>8}{'failed':>8}")
    checks["all"] = [sum(row[column] for row in checks.values()) for column in range(3)]
    for name, row in checks.items():
        print(f"{name:16}{row[0]:8}{row[1]:8}{row[2]:8}")
    return checks["all"][2] == 0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", type=Path, help="directory of pjdfstest, built")
    parser.add_argument("only", nargs="*", help="directories or files of its tests, such as rename or chmod/12.t")
    parser.add_argument("--dsn", default="", help="keep the metadata in this PostgreSQL database instead of SQLite")
    parser.add_argument("--local", type=Path, help="run in this local directory instead, to compare")
    args = parser.parse_args()
    tests = args.suite.resolve() / "tests"
    if os.getuid() != 0:
        sys.exit("posix: the suite acts as several users: run it as root")
    if not os.access(args.suite / "pjdfstest", os.X_OK):
        sys.exit(f"posix: {args.suite}/pjdfstest is missing: build it first")
    found = [tests / part for part in args.only] or [tests]
    files = sorted(file for path in found for file in ([path] if path.is_file() else path.rglob("*.t")))
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vosfs-posix-", dir=args.local) as name:
        directory = Path(name)
        # Other users must reach the mount.
        directory.chmod(0o755)
        point = directory / "mnt"
        point.mkdir()
        if args.local:
            fine = run_all(files, tests, point)
        else:
            daemon, url, token = start_daemon(directory, *(["--dsn", args.dsn] if args.dsn else []))
            try:
                command = [BIN / "vosfs", "mount", url, point, "--token-file", token, "-o", "allow_other"]
                subprocess.run([*command, "--cache-dir", directory / "cache"], check=True)
                try:
                    fine = run_all(files, tests, point)
                finally:
                    subprocess.run([BIN / "vosfs", "umount", point], check=True)
            finally:
                daemon.terminate()
                daemon.wait(30)
    print(f"{time.monotonic() - began:.0f} s")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
