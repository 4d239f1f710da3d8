"""Extended attributes and node properties: one to one, both ways.  Pure.

``user.vosfs.title`` is the core property ``title``, ``user.vosfs.storage`` and two more our own; ``user.vosfs.URI`` any property by its identifier; every other
``user.*`` attribute is a property under ``urn:x-xattr:``.  A value that XML cannot carry is kept as a data: URL.
"""

import base64
import re
from urllib.parse import quote, unquote

from vosfs.errors import OperationNotSupported
from vosfs.metadata.node import CORE, LOCALITY, STAGE, STORAGE

PREFIX = "user.vosfs."
OTHER = "urn:x-xattr:"
_OWN = {PREFIX + "storage": STORAGE, PREFIX + "locality": LOCALITY, PREFIX + "stage": STAGE}
"""Ours that have short names too."""
_DATA = "data:;base64,"
_UNSAFE = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def known(name: str) -> bool:
    """Whether an attribute of this namespace can exist.  The kernel asks for security.capability at every write."""
    return name.startswith("user.")


def uri_of(name: str) -> str:
    """The property behind an attribute's name.  OperationNotSupported outside the user namespace."""
    if not known(name):
        raise OperationNotSupported(f"{name}: only user.* attributes are kept")
    if name.startswith(PREFIX):
        if name in _OWN:
            return _OWN[name]
        rest = name[len(PREFIX) :]
        return rest if ":" in rest else CORE + rest
    return OTHER + quote(name[len("user.") :], safe="._-:", errors="surrogateescape")


def name_of(uri: str) -> str:
    """The attribute that shows a property."""
    if uri.startswith(OTHER):
        return "user." + unquote(uri[len(OTHER) :], errors="surrogateescape")
    for name, own in _OWN.items():
        if uri == own:
            return name
    if uri.startswith(CORE):
        return PREFIX + uri[len(CORE) :]
    return PREFIX + uri


def text_of(value: bytes) -> str:
    """An attribute's value as a property's."""
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = ""
    if (text or not value) and not _UNSAFE.search(text) and not text.startswith(_DATA):
        return text
    return _DATA + base64.b64encode(value).decode()


def value_of(text: str) -> bytes:
    """A property's value as an attribute's."""
    if text.startswith(_DATA):
        try:
            return base64.b64decode(text[len(_DATA) :], validate=True)
        except ValueError:
            pass
    return text.encode()
