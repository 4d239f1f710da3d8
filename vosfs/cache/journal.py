"""The journal: what was acknowledged here and is not yet in the space, in a file that outlives the process.

A record is its length, its CRC-32 and its bytes.  Written without fsync: the file is for the death of this process,
not of the machine; who needs more than that calls fsync(2), which waits for the service.
"""

import errno
import os
import struct
from pathlib import Path

from vosfs import checksum

RECORDS_BYTES_MAX = 64 << 20
"""Longest journal that is read back."""
_HEADER = struct.Struct("<II")


class Journal:
    """Records in a file of this process alone."""

    def __init__(self, path: Path, first: bytes) -> None:
        # Constants
        self._path = path
        self._first = first
        """Says whose records follow."""
        # Mutable state
        self._fd = _create(path)
        self.bytes = 0
        """INVARIANT: length of the file."""

    def add(self, record: bytes) -> None:
        """Append a record.  OSError if the disk is full; the file is then as it was."""
        data = _framed(record) if self.bytes else _framed(self._first) + _framed(record)
        if self.bytes + len(data) > RECORDS_BYTES_MAX:
            raise OSError(errno.EFBIG, "the journal is longer than is read back")
        written = os.write(self._fd, data)
        if written != len(data):
            os.ftruncate(self._fd, self.bytes)
            raise OSError(errno.ENOSPC, "the journal does not fit on the disk")
        self.bytes += written

    def rewrite(self, kept: list[bytes]) -> None:
        """Forget all records but these.  OSError if that cannot be; the file is then as it was.

        In one step: a process that is killed in the middle leaves all of them or these.
        """
        if not kept:
            if self.bytes:
                os.ftruncate(self._fd, 0)
                self.bytes = 0
            return
        data = b"".join(map(_framed, (self._first, *kept)))
        aside = self._path.with_name(self._path.name + ".new")
        fd = _create(aside)
        try:
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, "the journal does not fit on the disk twice")
            os.rename(aside, self._path)
        except BaseException:
            os.close(fd)
            raise
        os.close(self._fd)
        self._fd, self.bytes = fd, len(data)

    def close(self) -> None:
        """Close; the records stay."""
        os.close(self._fd)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def _framed(record: bytes) -> bytes:
    return _HEADER.pack(len(record), checksum.crc32(record)) + record


def records(path: Path) -> list[bytes]:
    """The records of a journal that nobody writes, up to the first broken one; the first says whose they are."""
    return _read(path)[0]


def broken(path: Path) -> bool:
    """Whether something follows the last whole record."""
    _, end, length = _read(path)
    return end != length


def mend(path: Path) -> None:
    """Cut what follows the last whole record."""
    os.truncate(path, _read(path)[1])


def _read(path: Path) -> tuple[list[bytes], int, int]:
    """The whole records, where they end, and how long the file is."""
    try:
        with open(path, "rb") as file:
            data = file.read(RECORDS_BYTES_MAX)
    except FileNotFoundError:
        return [], 0, 0
    found, at = [], 0
    while at + _HEADER.size <= len(data):
        length, crc = _HEADER.unpack_from(data, at)
        record = data[at + _HEADER.size : at + _HEADER.size + length]
        if len(record) != length or checksum.crc32(record) != crc:
            break
        found.append(record)
        at += _HEADER.size + length
    return found, at, len(data)
