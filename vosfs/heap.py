"""The process's memory: when it goes back to the kernel, and how often cycles of garbage are looked for."""

import ctypes
import gc

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)."""
COLLECT_AFTER = (10_000, 20, 20)
"""Objects that came and stayed, and collections of younger generations, before each generation is looked through.  After
700 objects, Python's own choice, the collector takes 4 % of a mount's CPU where files are created, and finds nothing:
cycles here are tracebacks, of errors that are no common day."""


def give_back_from(size: int) -> None:
    """Give freed blocks of at least this many bytes back at once, and keep smaller ones.

    glibc by itself raises the threshold to the largest block ever freed.
    """
    libc = ctypes.CDLL(None)
    # Who sets the one turns off that the other follows it.
    libc.mallopt(_M_MMAP_THRESHOLD, size)
    libc.mallopt(_M_TRIM_THRESHOLD, size)


def collect_rarely() -> None:
    """Once everything is imported: what is here by now stays."""
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
