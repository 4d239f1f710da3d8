"""A disk whose power can fail: a FUSE file system in memory that knows what fsync(2) vouched for.

``python -m tests.services.powercut POINT FROM`` mounts at POINT what is in the directory FROM.  Setting the attribute
``user.cut`` of its root to ``SEED DIRECTORY`` writes to that directory what a disk could have after a power cut:

* of a file's pages written since its last fsync, any, each by itself;
* of its lengths, the last that was synced or the present one;
* of the changes of names, those up to the last fsync of a directory, and then as many as chance has it, in order, as a
  journalling file system keeps them.
"""

import errno
import os
import random
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pyfuse3
import trio

PAGE = 4096


class File:
    """Bytes, and what they were when they were last safe."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = bytearray(data)
        self.mode = stat.S_IFREG | 0o600
        self._before: dict[int, bytes] = {}
        """Pages that changed since the last sync, as they were then."""
        self._synced_length = len(data)

    def _changing(self, start: int, stop: int) -> None:
        for page in range(start // PAGE, (stop + PAGE - 1) // PAGE):
            if page not in self._before:
                self._before[page] = bytes(self.data[page * PAGE : (page + 1) * PAGE])

    def write(self, at: int, data: bytes) -> None:
        self._changing(at, at + len(data))
        self.data.extend(bytes(max(0, at - len(self.data))))
        self.data[at : at + len(data)] = data

    def truncate(self, length: int) -> None:
        self._changing(length, len(self.data))
        del self.data[length:]
        self.data.extend(bytes(length - len(self.data)))

    def sync(self) -> None:
        self._before.clear()
        self._synced_length = len(self.data)

    def survives(self, rng: random.Random) -> bytes:
        """What the disk could have."""
        data = bytearray(self.data)
        data.extend(bytes(max(0, self._synced_length - len(data))))
        for page, before in self._before.items():
            if rng.random() < 0.5:
                data[page * PAGE : (page + 1) * PAGE] = before.ljust(PAGE, b"\0")
        return bytes(data[: rng.choice([self._synced_length, len(self.data)])])


class Directory:
    """Names."""

    def __init__(self) -> None:
        self.names: dict[bytes, int] = {}
        self.mode = stat.S_IFDIR | 0o700


class Disk(pyfuse3.Operations):
    """The file system."""

    def __init__(self, source: Path) -> None:
        super().__init__()
        self._inodes: dict[int, File | Directory] = {}
        self._safe: dict[int, dict[bytes, int]] = {}
        """The names of each directory as they surely are."""
        self._changes: list[list[tuple[int, bytes, int]]] = []
        """Changes that may be lost, each of names that survive together: in which directory, which name, and what it became
        (0: nothing)."""
        self._began_ns = time.time_ns()
        self._load(source)
        self._commit(len(self._changes))

    # -- state -------------------------------------------------------------------------------------------------------

    def _load(self, path: Path) -> int:
        number = len(self._inodes) + 1
        if path.is_dir():
            directory = self._inodes[number] = Directory()
            for child in sorted(path.iterdir()):
                directory.names[os.fsencode(child.name)] = inode = self._load(child)
                self._changes.append([(number, os.fsencode(child.name), inode)])
        else:
            self._inodes[number] = file = File(path.read_bytes())
            file.mode = path.stat().st_mode
        return number

    def _commit(self, count: int) -> None:
        for parent, name, inode in (one for change in self._changes[:count] for one in change):
            names = self._safe.setdefault(parent, {})
            if inode:
                names[name] = inode
            else:
                names.pop(name, None)
        del self._changes[:count]

    def _dump(self, inode: int, path: Path, rng: random.Random) -> None:
        node = self._inodes[inode]
        if isinstance(node, File):
            path.write_bytes(node.survives(rng))
        else:
            path.mkdir()
            for name, child in self._safe.get(inode, {}).items():
                self._dump(child, path / os.fsdecode(name), rng)
        path.chmod(stat.S_IMODE(node.mode))

    def _directory(self, inode: int) -> Directory:
        node = self._inodes[inode]
        assert isinstance(node, Directory)
        return node

    def _file(self, inode: int) -> File:
        node = self._inodes[inode]
        assert isinstance(node, File)
        return node

    def _change(self, *changes: tuple[int, bytes, int]) -> None:
        for parent, name, inode in changes:
            names = self._directory(parent).names
            if inode:
                names[name] = inode
            else:
                del names[name]
        self._changes.append(list(changes))

    def _find(self, parent: int, name: bytes) -> int:
        try:
            return self._directory(parent).names[name]
        except KeyError:
            raise pyfuse3.FUSEError(errno.ENOENT) from None

    def _add(self, parent: int, name: bytes, node: File | Directory, mode: int, ctx: Any) -> int:
        if name in self._directory(parent).names:
            raise pyfuse3.FUSEError(errno.EEXIST)
        number = len(self._inodes) + 1
        node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(mode & ~ctx.umask)
        self._inodes[number] = node
        self._change((parent, name, number))
        return number

    # -- what the kernel asks ------------------------------------------------------------------------------------------

    def _entry(self, inode: int) -> pyfuse3.EntryAttributes:
        node, entry = self._inodes[inode], pyfuse3.EntryAttributes()
        entry.st_ino, entry.st_mode, entry.st_nlink = inode, node.mode, 1
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_size = len(node.data) if isinstance(node, File) else 0
        entry.st_blksize, entry.st_blocks = PAGE, -(-entry.st_size // 512)
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = self._began_ns
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(self._find(parent, name))

    async def getattr(self, inode: int, ctx: Any = None) -> pyfuse3.EntryAttributes:
        return self._entry(inode)

    async def setattr(self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any) -> pyfuse3.EntryAttributes:
        node = self._inodes[inode]
        if fields.update_mode:
            node.mode = attr.st_mode
        if fields.update_size:
            self._file(inode).truncate(attr.st_size)
        return self._entry(inode)

    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._entry(self._add(parent, name, Directory(), mode, ctx))

    async def create(self, parent: int, name: bytes, mode: int, flags: int, ctx: Any) -> Any:
        inode = self._add(parent, name, File(), mode, ctx)
        return pyfuse3.FileInfo(fh=inode), self._entry(inode)

    async def unlink(self, parent: int, name: bytes, ctx: Any) -> None:
        self._find(parent, name)
        self._change((parent, name, 0))

    async def rmdir(self, parent: int, name: bytes, ctx: Any) -> None:
        if self._directory(self._find(parent, name)).names:
            raise pyfuse3.FUSEError(errno.ENOTEMPTY)
        self._change((parent, name, 0))

    async def rename(self, parent: int, name: bytes, to: int, to_name: bytes, flags: int, ctx: Any) -> None:
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        inode = self._find(parent, name)
        self._change((to, to_name, inode), (parent, name, 0))

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        if flags & os.O_TRUNC:
            self._file(inode).truncate(0)
        return pyfuse3.FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        return bytes(self._file(fh).data[offset : offset + size])

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        self._file(fh).write(offset, data)
        return len(data)

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._file(fh).sync()

    async def opendir(self, inode: int, ctx: Any) -> int:
        return inode

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._commit(len(self._changes))

    async def readdir(self, fh: int, start: int, token: Any) -> None:
        names = sorted(self._directory(fh).names.items())
        for number, (name, inode) in enumerate(names[start:], start + 1):
            if not pyfuse3.readdir_reply(token, name, self._entry(inode), number):
                return

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = PAGE
        data.f_blocks = data.f_bfree = data.f_bavail = 1 << 20
        data.f_namemax = 255
        return data

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: Any) -> None:
        if name != b"user.cut":
            raise pyfuse3.FUSEError(errno.EOPNOTSUPP)
        seed, _, directory = os.fsdecode(value).partition(" ")
        rng = random.Random(int(seed))
        self._commit(rng.randrange(len(self._changes) + 1))
        self._dump(pyfuse3.ROOT_INODE, Path(directory), rng)


def main() -> None:
    """Mount until unmounted."""
    point, source = sys.argv[1:]
    pyfuse3.init(Disk(Path(source)), point, {"fsname=powercut", "default_permissions"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


if __name__ == "__main__":
    main()
