"""pyfuse3, completed: operations of libfuse that it does not hand on, listings that say which directory they are of, and
requests that are answered before Python sees them.

pyfuse3 3.4 fills a table of operations and gives it to ``fuse_session_new()``.  ``_libfuse.c`` is a library of that
function's name which is loaded before: it adds what is missing to the table.  Without it (another libfuse, no compiler)
everything else works, the kernel is told that these operations are not there, directories are opened one by one, and
every request comes to Python.

The operations are called by libfuse in the middle of pyfuse3's own handling of a request; each must be answered once,
now or later, by one of the replies here.
"""

import ctypes
import errno
import functools
import importlib.util
import logging
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger(__name__)


def _load() -> ctypes.PyDLL | None:
    found = importlib.util.find_spec("vosfs._libfuse")
    if found is None or found.origin is None:
        return None
    try:
        # One that holds the interpreter's lock: what it keeps has no other, and no call of it waits.
        return ctypes.PyDLL(found.origin, mode=ctypes.RTLD_GLOBAL)
    except OSError as exc:
        log.debug("%s", exc)
        return None


_library = _load()

# Behind _load(), which must have been there first.
import pyfuse3  # noqa: E402

__all__ = ["active", "came_s", "provide", "pyfuse3", "stand", "withdraw"]


_REQUEST, _FH, _OFFSET, _INT, _SIZE = (
    ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int64, ctypes.c_int, ctypes.c_size_t,
)  # fmt: skip
_ADDED: dict[str, tuple[Any, str]] = {
    "fallocate": (ctypes.CFUNCTYPE(None, _REQUEST, _FH, _INT, _OFFSET, _OFFSET), ""),
    "lseek": (ctypes.CFUNCTYPE(None, _REQUEST, _FH, _OFFSET, _INT), "fuse_reply_lseek"),
    "copy_file_range": (ctypes.CFUNCTYPE(None, _REQUEST, _FH, _OFFSET, _FH, _OFFSET, _SIZE, _INT), "fuse_reply_write"),
}  # fmt: skip
"""Prototypes in ``_libfuse.c``, and how a number is replied; nothing else than success where there is none."""

_kept: list[object] = []
"""What the library calls, which ctypes does not keep alive: the operations of every mount of this process."""


def active() -> bool:
    """Whether the session has what is added here; after ``pyfuse3.init``."""
    return _library is not None and bool(ctypes.c_int.in_dll(_library, "vosfs_sessions").value)


def stand(inode: int, fh: int) -> bool:
    """Have a file's further opens for reading answered with a handle, whose own open is about to be answered.

    False if one stands already, or none can.
    """
    return _library is not None and bool(_library.vosfs_stand(_FH(inode), _FH(fh)))


def withdraw(inode: int, fh: int) -> bool:
    """End that.  True if no program has it open; else it is released when the last one closes it."""
    return _library is not None and bool(_library.vosfs_withdraw(_FH(inode), _FH(fh)))


_came_s = ctypes.c_double() if _library is None else ctypes.c_double.in_dll(_library, "vosfs_came_s")


def came_s() -> float:
    """When the last request came that the library received behind one that it answered, by ``time.perf_counter()``."""
    return _came_s.value


def provide(operations: object, spawn: Callable[..., None]) -> None:
    """Have the added operations answered by the methods of these names; before ``pyfuse3.init``.

    The methods are asynchronous and raise FUSEError only, as pyfuse3's are; ``spawn`` is a nursery's ``start_soon``.
    """
    if _library is None:
        log.warning(
            "vosfs._libfuse is not built: no fallocate, no SEEK_HOLE, copies are read and written, slower listings"
        )
        return
    for name, (prototype, reply) in _ADDED.items():
        call = prototype(functools.partial(_begin, spawn, getattr(operations, name), reply))
        _kept.append(call)
        ctypes.c_void_p.in_dll(_library, f"vosfs_{name}").value = ctypes.cast(call, ctypes.c_void_p).value


def _begin(spawn: Callable[..., None], method: Callable[..., Awaitable[int]], reply: str, req: int, *args: int) -> None:
    spawn(_answer, method, reply, req, args)


async def _answer(method: Callable[..., Awaitable[int]], reply: str, req: int, args: tuple[int, ...]) -> None:
    assert _library is not None
    error = errno.EINTR
    try:
        number = await method(*args)
        error = 0
    except pyfuse3.FUSEError as exc:
        error = exc.errno
    finally:
        # Cancelled or not: a request without an answer is a program that cannot be killed.
        if error or not reply:
            _library.fuse_reply_err(_REQUEST(req), error)
        else:
            getattr(_library, reply)(_REQUEST(req), _SIZE(number))
