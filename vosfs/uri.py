"""VOSpace identifiers (VOSpace 2.1 section 3.1, RFC 3986).

Inside the tree a path is a tuple of byte names: any bytes but ``/`` and NUL, as POSIX has them.  Here is the only
place that turns them into percent-encoded text and back.
"""

import re
from functools import lru_cache
from urllib.parse import quote_from_bytes, unquote_to_bytes

from vosfs.errors import InvalidURI, NameTooLong

NAME_BYTES_MAX = 255
"""NAME_MAX of Linux."""
PATH_BYTES_MAX = 4096
"""PATH_MAX of Linux."""
RESERVED_NAMES = (b".auto", b".null")
"""VOSpace 2.1 section 3.1: never the name of a stored node."""

_UNESCAPED = "-._~!$&'()*+,;=:@"
_LEGAL = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/?#[]@!$&'()*+,;=%")
_BROKEN = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_BLANK = re.compile(r"[\0- ]")

Path = tuple[bytes, ...]


def check_name(name: bytes) -> bytes:
    """Return ``name`` if it can be the name of a node; else raise InvalidURI or NameTooLong."""
    if not name or name in (b".", b".."):
        raise InvalidURI(f"{name!r} is not a name")
    if b"/" in name or b"\0" in name:
        raise InvalidURI(f"{name!r} holds a '/' or a NUL")
    if len(name) > NAME_BYTES_MAX:
        raise NameTooLong(f"{name[:40]!r}... is longer than {NAME_BYTES_MAX} bytes")
    return name


@lru_cache(4096)
def _encoded(name: bytes) -> str:
    return "/" + quote_from_bytes(name, _UNESCAPED)


def encode(path: Path) -> str:
    """``(b'a b', b'c')`` -> ``/a%20b/c``; the root is the empty string."""
    return "".join([_encoded(name) for name in path])


@lru_cache(4096)
def decode(text: str) -> Path:
    """Percent-decode a path once, segment by segment; one trailing slash is ignored (R16, R310-R314).

    Raises InvalidURI for empty inner segments, ``.`` and ``..``, encoded slashes, NUL and characters that RFC 3986
    does not allow unencoded; NameTooLong over 255 bytes a name or 4096 a path.
    """
    raw = text.encode("utf-8", "surrogatepass")
    if not _LEGAL.issuperset(raw) or b"?" in raw or b"#" in raw:
        raise InvalidURI(f"{text[:200]!r} holds characters that must be percent-encoded")
    if raw in (b"", b"/"):
        return ()
    if not raw.startswith(b"/"):
        raise InvalidURI(f"{text[:200]!r} does not start with '/'")
    if _BROKEN.search(raw):
        raise InvalidURI(f"{text[:200]!r} holds a broken percent-encoding")
    path = tuple(check_name(unquote_to_bytes(part)) for part in raw[1:].removesuffix(b"/").split(b"/"))
    if sum(len(name) + 1 for name in path) > PATH_BYTES_MAX:
        raise NameTooLong(f"path is longer than {PATH_BYTES_MAX} bytes")
    return path


class Authority:
    """The authority of one space, written one way and read in all (``!`` and ``~`` are equivalent, R301)."""

    __slots__ = ("text", "_canonical")

    def __init__(self, text: str) -> None:
        self.text = text
        self._canonical = self._canon(text)

    @staticmethod
    def _canon(text: str) -> str:
        return text.replace("%21", "!").replace("%7E", "~").replace("%7e", "~").replace("~", "!").lower()

    @property
    def ivoid(self) -> str:
        """The IVO identifier of the service."""
        return "ivo://" + self.text.replace("~", "/").replace("!", "/")

    def uri(self, path: Path) -> str:
        """The ``vos:`` URI of a node in this space."""
        return f"vos://{self.text}{encode(path)}"

    def path(self, uri: str) -> Path:
        """The path a ``vos:`` URI names in this space; InvalidURI for other schemes and other spaces."""
        if not uri.startswith("vos://"):
            raise InvalidURI(f"{uri[:200]!r} is not a vos: URI")
        if _BLANK.search(uri):
            raise InvalidURI(f"{uri[:200]!r} holds white space or control characters")
        rest = uri[6:].split("#", 1)[0].split("?", 1)[0]
        authority, slash, path = rest.partition("/")
        if self._canon(authority) != self._canonical:
            raise InvalidURI(f"{uri[:200]!r} is not in the space {self.text}")
        return decode(slash + path)
