"""Objects of S3 in its archive classes (GLACIER, DEEP_ARCHIVE), where a lifecycle rule of the bucket's has put them.

Such an object is listed and has a length, and a GET of it answers InvalidObjectState until it was asked for with
RestoreObject and, minutes to days later, is there for a number of days.  What has been asked for S3 itself remembers.
"""

import threading
import time
from collections import OrderedDict
from typing import Protocol

from vosfs.backends.backend import NEARLINE, ONLINE, STAGING, Keeper, Over
from vosfs.backends.uploads import Uploads
from vosfs.errors import BlobMissing, ServiceUnavailable

CLASSES = ("GLACIER", "DEEP_ARCHIVE")
"""GLACIER_IR is none: it is read at once."""
ONLINE_S = 60.0
"""An object that was on-line is taken to be for so long: each range that is read would ask, 10 ms a time."""
ONLINE_MAX = 10_000
"""Blobs of which that is remembered."""
RESTORE = (
    '<RestoreRequest xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Days>{days}</Days>'
    "<GlacierJobParameters><Tier>Standard</Tier></GlacierJobParameters></RestoreRequest>"
)


class Objects(Keeper, Protocol):
    """The backend that this is about."""

    def keys(self, locator: str) -> list[str]:
        """The keys of a blob's objects."""


class ArchivedObjects(Over):
    """Backend (see ``backend.py`` for every method's contract) on objects that may be archived."""

    def __init__(self, objects: Objects, requests: Uploads, days: int) -> None:
        super().__init__(objects)
        # Dependencies
        self._objects = objects
        self._requests = requests
        # Constants
        self._days = days
        # Mutable state
        self._guard = threading.Lock()
        self._online: OrderedDict[str, float] = OrderedDict()
        """Locator -> until when it is taken to be on-line; INVARIANT: at most ONLINE_MAX."""

    def __repr__(self) -> str:
        return f"ArchivedObjects({self._objects})"

    # -- where blobs are ---------------------------------------------------------------------------------------------

    def locality(self, locator: str) -> str:
        with self._guard:
            if self._online.get(locator, 0.0) > time.monotonic():
                return ONLINE
        found = {self._where(key) for key in self._objects.keys(locator)}
        where = next((where for where in (NEARLINE, STAGING) if where in found), ONLINE)
        with self._guard:
            self._online.pop(locator, None)
            if where == ONLINE:
                self._online[locator] = time.monotonic() + ONLINE_S
                if len(self._online) > ONLINE_MAX:
                    self._online.popitem(last=False)
        return where

    def _where(self, key: str) -> str:
        status, headers = self._requests.exchange("HEAD", key)[:2]
        if status == 404:
            raise BlobMissing(f"object {key} is missing")
        if status != 200:
            raise ServiceUnavailable(f"object {key}: the object store answers {status}")
        restored = headers.get("x-amz-restore", "")
        if headers.get("x-amz-storage-class", "") not in CLASSES or 'ongoing-request="false"' in restored:
            return ONLINE
        return STAGING if restored else NEARLINE

    def stage(self, locator: str) -> None:
        for key in self._objects.keys(locator):
            if self._where(key) != NEARLINE:
                continue
            body = RESTORE.format(days=self._days).encode()
            status = self._requests.exchange("POST", key, {"restore": ""}, body)[0]
            # 409: somebody else was faster.
            if status not in (200, 202, 409):
                raise ServiceUnavailable(f"object {key}: the object store answers RestoreObject with {status}")

    # -- Backend -----------------------------------------------------------------------------------------------------

    def remove(self, locator: str) -> None:
        with self._guard:
            self._online.pop(locator, None)
        super().remove(locator)
