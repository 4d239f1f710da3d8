"""Servers that stand in for one another: each request goes to the first that can do it."""

import socket
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from vosfs.backends.ngams import DEADLINE_S, Elsewhere, Missing, Refused, Server
from vosfs.backends.sums import Damaged
from vosfs.errors import (
    BlobMissing,
    DataCorrupt,
    InternalFault,
    ServiceUnavailable,
    StorageFull,
    TimedOut,
    VOSpaceError,
)

T = TypeVar("T")

ATTEMPTS_MAX = 3
"""At one server, for one request."""
PAUSE_S = 0.1
"""Before the second attempt at one server, and twice that before the third: more than MaxSimReqs at once get 503."""


class Servers:
    """Servers that are asked for the same files, the first named first."""

    def __init__(self, servers: Sequence[Server], deadline_s: float = DEADLINE_S) -> None:
        # Constants
        self.all = tuple(servers)
        self._deadline_s = deadline_s

    def named(self, host: str, port: int) -> Server | None:
        """The server of an address.  A redirection goes to one that is configured, and to no other."""
        for server in self.all:
            if server.port == port and (server.host == host or host in _addresses(server.host)):
                return server
        return None

    def tried(self, work: Callable[[Server], T], what: str, damaged: type[VOSpaceError] = DataCorrupt) -> T:
        """What the first server gives that can do it.

        BlobMissing if all of them say that it is missing; otherwise the last failure: ServiceUnavailable, TimedOut,
        StorageFull, or ``damaged`` if something else came than what was written.
        """
        end = time.monotonic() + self._deadline_s
        failures = dict.fromkeys(self.all, 0)
        without: set[Server] = set()
        first: Server | None = None
        last: VOSpaceError = BlobMissing(f"{what} is missing")
        while True:
            server = self._next(failures, without, first)
            if server is None:
                raise last
            first = None
            if failures[server]:
                time.sleep(PAUSE_S * 2 ** (failures[server] - 1))
            try:
                done = work(server)
                server.failed_at = float("-inf")
                return done
            except Missing:
                without.add(server)
                continue
            except Elsewhere as exc:
                without.add(server)
                first = self.named(exc.host, exc.port)
                if first is None:
                    last = ServiceUnavailable(
                        f"{what} is on {exc.host}:{exc.port}, which [storage] objects does not name"
                    )
                continue
            except Damaged as exc:
                last = damaged(f"{what}: {exc}")
            except (ServiceUnavailable, TimedOut) as exc:
                server.failed(isinstance(exc, TimedOut))
                last = type(exc)(f"{what}: {exc}")
            except StorageFull as exc:
                without.add(server)
                last = StorageFull(f"{what}: {exc}")
            except Refused as exc:
                without.add(server)
                last = InternalFault(f"{what}: {exc}")
            failures[server] += 1
            if failures[server] == ATTEMPTS_MAX:
                without.add(server)
            if time.monotonic() > end:
                raise last from None

    def _next(self, failures: dict[Server, int], without: set[Server], first: Server | None) -> Server | None:
        if first is not None and first not in without:
            return first
        left = [server for server in self.all if server not in without]
        # Those that failed are asked in turn.
        return min(left, key=lambda s: (failures[s], s.failed_at if s.failing() else 0.0), default=None)

    def reachable(self, work: Callable[[Server], T]) -> tuple[list[T], VOSpaceError | None]:
        """What each server gives, and the last failure of those that do not."""
        done: list[T] = []
        failure: VOSpaceError | None = None
        for server in self.all:
            try:
                done.append(work(server))
            except (Damaged, Missing, Elsewhere) as exc:
                failure = ServiceUnavailable(str(exc))
            except (ServiceUnavailable, TimedOut) as exc:
                server.failed(isinstance(exc, TimedOut))
                failure = exc
            except (Refused, StorageFull) as exc:
                failure = InternalFault(str(exc))
        return done, failure


def _addresses(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except OSError:
        return set()
