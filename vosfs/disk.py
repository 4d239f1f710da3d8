"""Telling the disk to begin before somebody waits for it."""

import ctypes

_SYNC_FILE_RANGE_WRITE = 2
_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def begin_writing(fd: int, start: int, length: int) -> None:
    """Begin to write so many bytes of the page cache (sync_file_range(2)); a hint, whose errors fdatasync(2) reports."""
    _sync_file_range(fd, start, length, _SYNC_FILE_RANGE_WRITE)
