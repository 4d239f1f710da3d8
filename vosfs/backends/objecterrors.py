"""What the object store's library raises, as errors of ours.

Its own text tells everything that was sent, which may be a signed URL: only status and code are taken over.
"""

import contextlib
import re
from collections.abc import Iterator

from obstore.exceptions import BaseError

from vosfs.backends.sums import Damaged
from vosfs.errors import (
    BlobMissing,
    DataCorrupt,
    InternalFault,
    NotOnline,
    ServiceUnavailable,
    StorageFull,
    TimedOut,
    VOSpaceError,
)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})")
FOREIGN = (BaseError, OSError, ValueError)
"""What obstore raises: its own errors, FileNotFoundError, and OSError from its writer."""
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "ContainerBeingDeleted")
_DAMAGED = ("XAmzContentSHA256Mismatch", "BadDigest", "InvalidDigest", "IncompleteBody", "RequestTimeout")
"""What arrived was not what was sent: it is sent again."""
SKEWED = "RequestTimeTooSkewed"
"""A signature is of another time than now, by more than 15 minutes."""
_FULL = ("QuotaExceeded", "InsufficientCapacity", "XMinioStorageFull", "AccountQuotaExceeded")


def said(exc: Exception) -> tuple[int, str]:
    """The HTTP status and the service's own code for a failure; 0 and nothing if there was no answer."""
    text = str(exc)
    status, code = _STATUS.search(text), _CODE.search(text)
    return int(status.group(1)) if status else 0, code.group(1) if code else ""


def failure(exc: Exception, what: str) -> VOSpaceError:
    """An error of obstore's as one of ours."""
    if isinstance(exc, Damaged):
        return DataCorrupt(str(exc))
    status, code = said(exc)
    if code in _FULL or status == 507:
        return StorageFull(f"{what}: the object store is full ({status} {code})")
    if code in NO_BUCKET:
        return ServiceUnavailable(f"{what}: the bucket is not there ({code})")
    if isinstance(exc, FileNotFoundError) or status == 404:
        return BlobMissing(f"{what} is missing")
    if code == "InvalidObjectState":
        return NotOnline(f"{what} is in an archive class of the object store, which [storage] restore_days is for")
    if status == 416:
        return DataCorrupt(f"{what} is shorter than it should be")
    if code == SKEWED:
        return ServiceUnavailable(f"{what}: the object store's clock and this host's differ: one of them is wrong")
    if status in (401, 403):
        # Not PermissionDenied: the caller has every right, and a mount keeps what it could not save yet.
        return ServiceUnavailable(f"{what}: the object store refuses the service's key ({status} {code})")
    if status >= 500 or status == 429 or code in _DAMAGED:
        return ServiceUnavailable(f"{what}: the object store answers {status} {code}".rstrip())
    if status:
        return InternalFault(f"{what}: the object store answers {status} {code}".rstrip())
    text = str(exc)
    if "kind: Timeout" in text or "operation timed out" in text:
        return TimedOut(f"{what}: the object store does not answer")
    return ServiceUnavailable(f"{what}: no connection to the object store")


def passing(exc: Exception, ours: VOSpaceError) -> bool:
    """Whether the same request may do better in a moment."""
    return isinstance(ours, ServiceUnavailable | TimedOut) and said(exc)[0] not in (401, 403, 404)


@contextlib.contextmanager
def translated(what: str) -> Iterator[None]:
    try:
        yield
    except (*FOREIGN, Damaged) as exc:
        raise failure(exc, what) from None
