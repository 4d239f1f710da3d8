"""Who may do what: pure decisions over a subject and a node (VOSpace 2.1 section 3.2.4, groupread and friends).

The owner may do everything with a node; so may a member of the group ``admin``.  ``groupwrite`` gives read and
write, ``groupread`` and ``publicread`` give read.  Only the owner changes who may.
"""

import re

import msgspec

from vosfs.errors import PermissionDenied
from vosfs.metadata.node import Node
from vosfs.metadata.store import OWN, READ, WRITE

ADMIN = "admin"
ANONYMOUS = ""

_SEPARATOR = re.compile(r"[,\s]+")


def groups_of(text: str) -> frozenset[str]:
    """A delimiter-separated list of groups; ``ivo://authority/gms?NAME`` also counts as ``NAME`` (R340)."""
    names = {name for name in _SEPARATOR.split(text) if name}
    return frozenset(names | {name.rpartition("?")[2] for name in names if "?" in name})


class Subject(msgspec.Struct, frozen=True):
    """Somebody with a request."""

    user: str
    groups: frozenset[str] = frozenset()

    @property
    def anonymous(self) -> bool:
        return self.user == ANONYMOUS

    @property
    def admin(self) -> bool:
        return ADMIN in self.groups

    def may(self, node: Node, right: str) -> bool:
        """Whether the subject has a right on a node."""
        if not self.anonymous and (self.user == node.owner or self.admin):
            return True
        if right == OWN:
            return False
        if right == READ and node.public:
            return True
        if not self.groups:
            return False
        if node.group_write and self.groups & groups_of(node.group_write):
            return True
        return right == READ and bool(node.group_read) and bool(self.groups & groups_of(node.group_read))

    def permit(self, node: Node, right: str) -> None:
        """Raise PermissionDenied unless the subject has a right on a node."""
        if not self.may(node, right):
            who = "anonymous" if self.anonymous else self.user
            verb = {READ: "read", WRITE: "write", OWN: "change the rights of"}[right]
            raise PermissionDenied(f"{who} may not {verb} this node")


NOBODY = Subject(ANONYMOUS)
