"""A file system that moves files to tape, as far as a storage can tell: ``hsm.py VAULT PATH`` brings one back.

A file that was moved has its length and no blocks; its bytes are in VAULT.  While the robot is ``Robot.busy`` they stay there
and the program waits, as those of real systems do.  The file comes back whole, in one step.
"""

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROBOT, BROKEN, ASKED = "robot", "broken", "asked"


def recall(vault: Path, path: Path) -> None:
    """What the stage command does."""
    with open(vault / ASKED, "a") as asked:
        asked.write(f"{path.name}\n")
    if (vault / BROKEN).exists():
        sys.exit(1)
    with open(vault / ROBOT) as robot:
        fcntl.flock(robot, fcntl.LOCK_SH)
        back = vault / f"{path.name}.{os.getpid()}"
        back.write_bytes((vault / path.name).read_bytes())
        status = path.stat()
        os.utime(back, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.rename(back, path)


class Robot:
    """The other side: moves files to tape, and lets them come back."""

    def __init__(self, vault: Path) -> None:
        self.vault = vault
        vault.mkdir()
        (vault / ROBOT).touch()

    @property
    def command(self) -> list[str]:
        """The stage command of a storage."""
        return [sys.executable, __file__, str(self.vault), "{path}"]

    def move(self, *paths: Path) -> None:
        """Move files to tape."""
        for path in paths:
            status = path.stat()
            (self.vault / path.name).write_bytes(path.read_bytes())
            os.truncate(path, 0)
            os.truncate(path, status.st_size)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
            assert path.stat().st_blocks == 0

    @contextlib.contextmanager
    def busy(self) -> Iterator[None]:
        """Nothing comes back inside."""
        with open(self.vault / ROBOT) as robot:
            fcntl.flock(robot, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def broken(self) -> Iterator[None]:
        """The command fails inside."""
        (self.vault / BROKEN).touch()
        yield
        (self.vault / BROKEN).unlink()

    def asked(self) -> list[str]:
        """The names of the files that were asked for, each time."""
        file = self.vault / ASKED
        return file.read_text().split() if file.exists() else []


if __name__ == "__main__":
    recall(Path(sys.argv[1]), Path(sys.argv[2]))
