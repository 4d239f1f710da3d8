"""The archive classes of S3, in front of a real S3 service that has none: what AWS answers about objects in them.

Written after the documentation of AWS (GetObject, HeadObject, RestoreObject): nobody has seen it beside the original.
"""

import re
from collections.abc import Callable
from urllib.parse import urlsplit

from tests.services.unreliable import Answer, Unreliable

FROZEN, THAWING, THAWED = "frozen", "thawing", "thawed"


def _error(status: int, code: str) -> Answer:
    return status, [("Content-Type", "application/xml")], f"<Error><Code>{code}</Code></Error>".encode()


class Glacier(Unreliable):
    """Hands requests on, but for those about objects that are archived."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self.objects: dict[str, str] = {}
        """Path -> state, of objects in an archive class."""
        self.asked: list[tuple[str, int]] = []
        """Path and days of each RestoreObject."""
        self.refuses = False
        """RestoreObject is not allowed to the key."""

    def freeze(self, *paths: str) -> None:
        """The lifecycle rule comes by."""
        self.objects |= dict.fromkeys(paths, FROZEN)

    def thaw(self) -> None:
        """What was asked for is there."""
        self.objects = {path: THAWED if state == THAWING else state for path, state in self.objects.items()}

    def instead(self, method: str, target: str, body: bytes, pass_on: Callable[[], Answer]) -> Answer | None:
        path, query = urlsplit(target).path, urlsplit(target).query
        state = self.objects.get(path)
        if state is None:
            return None
        if method == "POST" and query.startswith("restore"):
            # The service does not know the request, and finds the signature right before it says so.
            assert b"SignatureDoesNotMatch" not in pass_on()[2]
            return self._restored(path, state, body)
        if method == "GET" and state != THAWED:
            return _error(403, "InvalidObjectState")
        if method == "HEAD":
            status, headers, answer = pass_on()
            headers.append(("x-amz-storage-class", "DEEP_ARCHIVE"))
            if state != FROZEN:
                headers.append(("x-amz-restore", f'ongoing-request="{"true" if state == THAWING else "false"}"'))
            return status, headers, answer
        return None

    def _restored(self, path: str, state: str, body: bytes) -> Answer:
        if self.refuses:
            return _error(403, "AccessDenied")
        if state == THAWING:
            return _error(409, "RestoreAlreadyInProgress")
        days = re.search(rb"<Days>(\d+)</Days>.*<Tier>Standard</Tier>", body)
        if days is None:
            return _error(400, "MalformedXML")
        self.asked.append((path, int(days.group(1))))
        self.objects[path] = THAWING if state == FROZEN else state
        return (202 if state == FROZEN else 200), [], b""
