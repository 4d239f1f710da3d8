"""The one error tree.

Classes are named after the faults of VOSpace 2.1 (section 5.5 and the fault tables of section 6), plus the few
that only POSIX knows.  Each class carries the three things an edge needs: the fault name and HTTP status (read by
``server/app.py``), and the errno (read by ``vosfs/fuse.py``).  Nothing else in the tree translates errors.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class VOSpaceError(Exception):
    """Something that was asked for could not be done; ``str()`` says what and to which URI."""

    fault = "InternalFault"
    status = 500
    errno = errno.EIO


class InternalFault(VOSpaceError):
    """The service failed; the caller did nothing wrong."""


class PermissionDenied(VOSpaceError):
    fault, status, errno = "PermissionDenied", 403, errno.EACCES


class Immutable(PermissionDenied):
    """The node, or its container, was registered read-only."""

    errno = errno.EROFS


class NodeLocked(VOSpaceError):
    """Somebody locked the node; whoever may write it can unlock it."""

    fault, status, errno = "NodeLocked", 423, errno.EPERM


class NotAuthenticated(VOSpaceError):
    """Credentials were presented and are wrong or expired (decision A6: 401 with a challenge)."""

    fault, status, errno = "NotAuthenticated", 401, errno.EACCES


class InvalidURI(VOSpaceError):
    fault, status, errno = "InvalidURI", 400, errno.EINVAL


class NameTooLong(InvalidURI):
    errno = errno.ENAMETOOLONG


class InvalidArgument(VOSpaceError):
    fault, status, errno = "InvalidArgument", 400, errno.EINVAL


class TypeNotSupported(VOSpaceError):
    fault, status, errno = "TypeNotSupported", 400, errno.EOPNOTSUPP


class ViewNotSupported(VOSpaceError):
    fault, status, errno = "ViewNotSupported", 400, errno.EOPNOTSUPP


class ProtocolNotSupported(VOSpaceError):
    fault, status, errno = "ProtocolNotSupported", 400, errno.EOPNOTSUPP


class OperationNotSupported(VOSpaceError):
    fault, status, errno = "OperationNotSupported", 501, errno.EOPNOTSUPP


class NodeNotFound(VOSpaceError):
    fault, status, errno = "NodeNotFound", 404, errno.ENOENT


class ContainerNotFound(VOSpaceError):
    fault, status, errno = "ContainerNotFound", 404, errno.ENOENT


class NotContainer(ContainerNotFound):
    """A component of the path exists but holds no children (POSIX ENOTDIR)."""

    errno = errno.ENOTDIR


class IsContainer(InvalidArgument):
    """The operation needs a node that is not a container (POSIX EISDIR)."""

    errno = errno.EISDIR


class ContainerNotEmpty(VOSpaceError):
    """rmdir(2), or rename(2) over a container that has children."""

    fault, status, errno = "ContainerNotEmpty", 409, errno.ENOTEMPTY


class DuplicateNode(VOSpaceError):
    fault, status, errno = "DuplicateNode", 409, errno.EEXIST


class LinkFound(VOSpaceError):
    fault, status, errno = "LinkFound", 400, errno.ELOOP


class NodeBusy(VOSpaceError):
    fault, status, errno = "NodeBusy", 409, errno.EBUSY


class TooManyLinks(VOSpaceError):
    fault, status, errno = "InvalidArgument", 400, errno.EMLINK


class TransferFailed(VOSpaceError):
    fault, status, errno = "TransferFailed", 500, errno.EIO


class InvalidData(VOSpaceError):
    """Bytes that arrived are not of the format that was announced."""

    fault, status, errno = "InvalidData", 400, errno.EIO


class DigestMismatch(VOSpaceError):
    """The bytes that arrived are not the bytes whose digest was announced (412, as cadcutils expects)."""

    fault, status, errno = "PreconditionFailed", 412, errno.EIO


class Stale(VOSpaceError):
    """The node's bytes are no longer the version the caller started from."""

    fault, status, errno = "PreconditionFailed", 412, errno.ESTALE


class CrossDevice(VOSpaceError):
    """A node would have names under two quotas; programs copy instead (EXDEV of rename(2) and link(2))."""

    fault, status, errno = "InvalidArgument", 409, errno.EXDEV


class QuotaExceeded(VOSpaceError):
    """A container above has a quota, and this would be more (413, CADC's choice)."""

    fault, status, errno = "QuotaExceeded", 413, errno.EDQUOT


class StorageFull(VOSpaceError):
    fault, status, errno = "QuotaExceeded", 507, errno.ENOSPC


class TooLarge(VOSpaceError):
    """A document, a header block or a value is over its named limit."""

    fault, status, errno = "InvalidArgument", 413, errno.EFBIG


class PropertyNotFound(VOSpaceError):
    fault, status, errno = "PropertyNotFound", 404, errno.ENODATA


class ServiceUnavailable(VOSpaceError):
    """The space cannot be reached, or says that it cannot serve now."""

    fault, status, errno = "ServiceBusy", 503, errno.EHOSTUNREACH


class NotOnline(VOSpaceError):
    """The bytes are on a slow storage, such as tape: they can be read once they were brought back."""

    fault, status, errno = "NotOnline", 503, errno.EAGAIN


class TimedOut(VOSpaceError):
    """No answer before the deadline."""

    fault, status, errno = "InternalFault", 504, errno.ETIMEDOUT


class ProtocolError(VOSpaceError):
    """The other side does not speak the protocol it should."""

    fault, status, errno = "InvalidArgument", 400, errno.EPROTO


class DataCorrupt(VOSpaceError):
    """Stored bytes do not match what was recorded about them."""

    fault, status, errno = "InternalFault", 500, errno.EIO


class BlobMissing(DataCorrupt):
    """The bytes that a node stands on are not there at all."""


class QuietError(Exception):
    """A user's mistake: the command line prints this one line, with no traceback."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code


def _leaves(cls: type[VOSpaceError]) -> Iterator[type[VOSpaceError]]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _leaves(sub)


BY_NAME: dict[str, type[VOSpaceError]] = {cls.__name__: cls for cls in _leaves(VOSpaceError)}
"""Class by its own name: how an error crosses the gateway binding unchanged."""

BY_FAULT: dict[str, type[VOSpaceError]] = {}
for _cls in _leaves(VOSpaceError):
    BY_FAULT.setdefault(_cls.fault, _cls)


@contextmanager
def mapped(table: dict[type[Exception], type[VOSpaceError]], subject: str = "") -> Iterator[None]:
    """Turn foreign exceptions into ours, with the foreign one as the cause (httpcore's device)."""
    try:
        yield
    except tuple(table) as exc:
        for foreign, ours in table.items():
            if isinstance(exc, foreign):
                raise ours(f"{subject}: {exc}" if subject else str(exc)) from exc
        raise
