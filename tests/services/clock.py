"""A wall clock that jumps, of the programs that are started with it (``clock.c``)."""

import mmap
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def built(directory: Path) -> Path:
    """The library that stands between a program and its clock."""
    library = directory / "clock.so"
    subprocess.run(["cc", "-Wall", "-Werror", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
    return library


class Clock:
    """The wall clock of some programs."""

    def __init__(self, library: Path, file: Path) -> None:
        # Constants
        self._library = library
        self._file = file
        file.write_bytes(bytes(mmap.PAGESIZE))

    def jump(self, by_s: int) -> None:
        """So many seconds from the true time from now on."""
        with open(self._file, "r+b", buffering=0) as stream:
            stream.write(struct.pack("@l", by_s))

    def program(self, *command: str | Path) -> tuple[str | Path, ...]:
        """A program whose clock this is."""
        return "env", f"LD_PRELOAD={self._library}", f"VOSFS_CLOCK={self._file}", *command
