"""Quotas of containers as clients see them: properties that only administrators set, and room that is asked for early.

The store is what counts and refuses (``vosfs/metadata/charges.py``).
"""

from collections.abc import Mapping

from server.access import Subject
from vosfs.config import size_of
from vosfs.errors import InvalidArgument, PermissionDenied, QuietError, QuotaExceeded
from vosfs.metadata.node import AVAILABLE, CONTAINER, LENGTH, QUOTA, Node, bytes_left
from vosfs.metadata.store import Store


async def shown(store: Store, node: Node) -> dict[str, str]:
    """The properties that tell of a container's own quota: its bytes, what is used (``length``), what is left."""
    if node.kind != CONTAINER or node.quota != node.id:
        return {}
    quotas = await store.quotas(node.id)
    found = {LENGTH: str(quotas[0].used)}
    if quotas[0].bytes_max >= 0:
        found[QUOTA] = str(quotas[0].bytes_max)
    left = bytes_left(quotas)
    return found if left is None else {**found, AVAILABLE: str(left)}


def asked(subject: Subject, given: dict[str, str | None], kind: str, present: Mapping[str, str]) -> int | None:
    """Take a quota out of the properties that a client wants set: the bytes, -1 for none, None if it asks for no change.

    PermissionDenied for who is no administrator, InvalidArgument.
    """
    if present:
        # Echoed (R105), and perhaps as they were a moment ago.
        given.pop(LENGTH, None)
        given.pop(AVAILABLE, None)
    if QUOTA not in given or (given[QUOTA] is None and QUOTA not in present) or given[QUOTA] == present.get(QUOTA):
        given.pop(QUOTA, None)
        return None
    if not subject.admin or kind != CONTAINER:
        raise PermissionDenied(f"{QUOTA} is of containers, and set by administrators")
    text = given.pop(QUOTA)
    return -1 if text is None else parsed(text)


def parsed(text: str) -> int:
    """So many bytes: ``10737418240``, ``10 GiB``, ``10G``.  InvalidArgument."""
    try:
        return size_of(text)
    except QuietError as exc:
        raise InvalidArgument(str(exc)) from None


async def check_room(store: Store, node: Node, length: int) -> None:
    """QuotaExceeded if so many bytes more would not fit below a node, or into it."""
    if not node.quota or length <= 0:
        return
    left = bytes_left(await store.quotas(node.id))
    if left is not None and length > left:
        raise QuotaExceeded(f"{length} bytes more are {length - left} too many")
