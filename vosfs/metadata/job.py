"""What a job is to the store: plain values (UWS 1.1 section 2.1).

The store keeps what it must choose by; everything else is in ``document``, which only ``server/uws.py`` reads.
"""

import msgspec

PENDING, QUEUED, EXECUTING, COMPLETED, ERROR, ABORTED = (
    "PENDING", "QUEUED", "EXECUTING", "COMPLETED", "ERROR", "ABORTED"
)  # fmt: skip
UNKNOWN, HELD, SUSPENDED, ARCHIVED = "UNKNOWN", "HELD", "SUSPENDED", "ARCHIVED"
PHASES = (PENDING, QUEUED, EXECUTING, COMPLETED, ERROR, UNKNOWN, HELD, SUSPENDED, ABORTED, ARCHIVED)
ACTIVE = (PENDING, QUEUED, EXECUTING)
"""Phases in which a client may wait for the next (UWS 1.1 section 2.2.1.2)."""


class Job(msgspec.Struct):
    """One job.  Order of fields = order of columns in ``sqljobs``."""

    id: str
    kind: str
    """The resource it was posted to: ``'transfers'``, say."""
    owner: str
    phase: str
    created_ns: int
    destruction_ns: int
    document: str


class Chosen(msgspec.Struct, frozen=True):
    """Which jobs to list, all conditions together; by creation, oldest first unless ``newest``."""

    kind: str = ""
    owner: str | None = None
    phases: tuple[str, ...] = ()
    after_ns: int = -1
    """Created later than this."""
    due_ns: int = 0
    """If set: to be destroyed before this."""
    newest: bool = False
    limit: int = 1000
