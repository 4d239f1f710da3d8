#!/usr/bin/env python3
"""Serve a space, mount it, put real files through it, and say in one screen what happened.

``--stay`` leaves daemon and mount up until ^C.
"""

import argparse
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent
BIG_MIB = 64


def say(text: str = "") -> None:
    """A line, at once."""
    print(text, flush=True)


def run(*command: object) -> str:
    """A program that must succeed; its output."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"demo: {' '.join(str(part) for part in command)}\n{done.stderr.strip()}")
    return done.stdout


def checksums(root: Path) -> dict[str, str]:
    """SHA-256 of every file below ``root``, by relative name."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


def material(directory: Path) -> Path:
    """Real files to copy: a package of Python's own library, and one large file."""
    source = directory / "material"
    library = Path(os.__file__).parent
    shutil.copytree(library / "email", source / "email", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(library / "json", source / "json", ignore=shutil.ignore_patterns("__pycache__"))
    with open(source / "observation.dat", "wb") as file:
        for _ in range(BIG_MIB):
            file.write(os.urandom(1 << 20))
    return source


def start_daemon(directory: Path, *options: str) -> tuple[subprocess.Popen[str], str, str]:
    """A daemon, its URL and its token file; ^C does not reach it."""
    with open(directory / "vosfsd.log", "w") as log:
        daemon = subprocess.Popen(
            [BIN / "vosfsd", "--dev", directory / "space", "--port", "0", *options],
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
    assert daemon.stdout is not None
    line = daemon.stdout.readline()
    if not line.startswith("READY"):
        sys.exit(f"{Path(sys.argv[0]).stem}: the daemon did not start\n{(directory / 'vosfsd.log').read_text()}")
    fields = dict(part.split("=", 1) for part in line.split()[1:])
    return daemon, fields["url"], fields["token_file"]


def show(directory: Path, url: str, token: str, point: Path) -> None:
    """Copy, list, compare, and tell."""
    source = material(directory)
    began = time.monotonic()
    run("cp", "-a", source, point / "demo")
    seconds = time.monotonic() - began
    before, after = checksums(source), checksums(point / "demo")
    if before != after:
        sys.exit("demo: FAILED: what came back is not what went in")
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / 2**20
    listing = run("ls", "-l", point / "demo", point / "demo/json").rstrip()
    header = f"Authorization: Bearer {Path(token).read_text().strip()}"
    request = subprocess.run(
        [sys.executable, "-c", _GET, f"{url}/nodes/demo?limit=2&detail=min"],
        env={**os.environ, "DEMO_HEADER": header}, capture_output=True, text=True,
    )  # fmt: skip
    say(f"A VOSpace is served at {url}\nand mounted at {point}\n")
    say(
        f"cp -a: {len(before)} files, {size:.0f} MiB, in {seconds:.1f} s. Read back: all {len(after)} SHA-256 sums match.\n"
    )
    say(f"$ ls -l {point}/demo\n{listing}\n")
    say(
        f"The same container through the standard's own interface (GET /nodes/demo?limit=2&detail=min):\n{request.stdout.strip()}\n"
    )


_GET = """
import os, sys, urllib.request
name, value = os.environ["DEMO_HEADER"].split(": ", 1)
text = urllib.request.urlopen(urllib.request.Request(sys.argv[1], headers={name: value})).read().decode()
print(text.partition("<vos:nodes>")[2].replace("</vos:nodes></vos:node>", "").replace("<vos:node ", "\\n  <vos:node ").strip())
"""


def advice(url: str, token: str, point: Path, stay: bool) -> str:
    """What to try next."""
    if stay:
        return (
            f"Try, in another shell:\n  cd {point}\n  git init project; vim notes.txt; sqlite3 my.db\n"
            f'  {BIN}/vosfs status\n  curl -H "Authorization: Bearer $(cat {token})" {url}/nodes/demo\n'
            "^C here ends daemon and mount, and removes both."
        )
    return (
        "What to try next:\n  make run     leaves a daemon and a mount up to play with\n"
        "  make test    runs every test\n  README.rst   how to serve and mount a space of your own"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--stay", action="store_true", help="leave daemon and mount up until ^C")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="vosfs-demo-") as name:
        directory = Path(name)
        point = directory / "mnt"
        point.mkdir()
        daemon, url, token = start_daemon(directory)
        try:
            run(BIN / "vosfs", "mount", url, point, "--token-file", token, "--cache-dir", directory / "cache")
            try:
                show(directory, url, token, point)
                say(advice(url, token, point, args.stay))
                while args.stay:
                    signal.pause()
            except KeyboardInterrupt:
                say()
            finally:
                done = subprocess.run([BIN / "vosfs", "umount", point], capture_output=True, text=True)
                if done.returncode:
                    say(f"demo: {done.stderr.strip()}; taken away all the same")
                    subprocess.run(["fusermount3", "-uz", point], capture_output=True)
        finally:
            daemon.terminate()
            daemon.wait(30)


if __name__ == "__main__":
    main()
