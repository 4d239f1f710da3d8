"""A file system of one file that says which requests came to Python: ``counting.py MOUNTPOINT``.

Its extended attribute ``user.events`` is what came since it was last read, and setting ``user.withdraw`` takes its
standing handle back.
"""

import errno
import json
import os
import stat
import sys

import trio

from vosfs import libfuse
from vosfs.libfuse import pyfuse3

FILE, DATA = 2, b"here"


class Counting(pyfuse3.Operations):
    """``f`` in the root: whoever opens it to read leaves a handle that stands."""

    def __init__(self) -> None:
        super().__init__()
        self._events: list[str] = []
        self._opened = 0
        self._standing = 0

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o666 if inode == FILE else stat.S_IFDIR | 0o755
        entry.st_size = len(DATA) if inode == FILE else 0
        entry.entry_timeout = entry.attr_timeout = 3600
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        if name != b"f":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(FILE)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        self._opened += 1
        stands = flags & os.O_ACCMODE == os.O_RDONLY and libfuse.stand(inode, self._opened)
        self._standing = self._opened if stands else self._standing
        self._events.append(f"open {self._opened}" + " stands" * stands)
        return pyfuse3.FileInfo(fh=self._opened)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return DATA[offset : offset + size]

    async def release(self, fh: int) -> None:
        self._events.append(f"release {fh}")

    async def getxattr(self, inode: int, name: bytes, ctx: object) -> bytes:
        if name != b"user.events":
            self._events.append(name.decode())
            raise pyfuse3.FUSEError(errno.ENODATA)
        events, self._events = self._events, []
        return json.dumps(events).encode()

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: object) -> None:
        self._events.append(f"idle {libfuse.withdraw(FILE, self._standing)}")


async def _serve(mountpoint: str) -> None:
    async with trio.open_nursery() as nursery:
        operations = Counting()
        # The operations that are added here are not asked for.
        for name in ("fallocate", "lseek", "copy_file_range"):
            setattr(operations, name, None)
        libfuse.provide(operations, nursery.start_soon)
        pyfuse3.init(operations, mountpoint, {"fsname=counting"})
        assert libfuse.active()
        print("mounted", flush=True)
        try:
            await pyfuse3.main(1, 4)
        finally:
            pyfuse3.close(unmount=False)


if __name__ == "__main__":
    trio.run(_serve, sys.argv[1])
