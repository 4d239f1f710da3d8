"""Extended attributes and properties turn into each other without loss."""

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vosfs.errors import OperationNotSupported
from vosfs.metadata import xattr
from vosfs.metadata.node import CORE
from vosfs.metadata.xml import check_property

NAME = (
    st.binary(min_size=1, max_size=60)
    .filter(lambda b: b"\0" not in b)
    .map(lambda b: b.decode("utf-8", "surrogateescape"))
)


@given(NAME)
@example("vosfs.title")
@example("a b%20\udcff")
@example("é:ü")
@settings(deadline=None)
def test_names_round_trip(rest: str) -> None:
    name = "user." + rest
    uri = xattr.uri_of(name)
    if not name.startswith(xattr.PREFIX):
        check_property(uri, "")
        assert xattr.name_of(uri) == name
    assert xattr.uri_of(xattr.name_of(uri)) == uri


@given(st.binary(max_size=200))
@example(b"")
@example(b"data:;base64,")
@example(b"data:;base64,AAAA")
@example(b"a\rb")
@example(b"\xef\xbf\xbe")
@example(b"\0")
@example("é\U0001f52d\n\t".encode())
@settings(deadline=None)
def test_values_round_trip(value: bytes) -> None:
    text = xattr.text_of(value)
    assert not re.search("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text), "XML can carry it"
    assert xattr.value_of(text) == value


def test_plain_text_stays_plain() -> None:
    assert xattr.text_of("Crab Nebula é".encode()) == "Crab Nebula é"
    assert xattr.value_of("Crab Nebula é") == "Crab Nebula é".encode()
    assert xattr.value_of("data:;base64,%%%") == b"data:;base64,%%%"


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("user.vosfs.title", CORE + "title"),
        ("user.vosfs.ivo://a.b/c#d", "ivo://a.b/c#d"),
        ("user.vosfs.locality", "ivo://vosfs/core#locality"),
        ("user.vosfs.stage", "ivo://vosfs/core#stage"),
        ("user.comment", "urn:x-xattr:comment"),
        ("user.a b", "urn:x-xattr:a%20b"),
        ("user.mime_type", "urn:x-xattr:mime_type"),
    ],
)
def test_uri_of(name: str, uri: str) -> None:
    assert xattr.uri_of(name) == uri
    assert xattr.name_of(uri) == name


@pytest.mark.parametrize("name", ["security.capability", "trusted.a", "system.posix_acl_access", "userx.a", "user", ""])
def test_other_namespaces_are_refused(name: str) -> None:
    assert not xattr.known(name)
    with pytest.raises(OperationNotSupported):
        xattr.uri_of(name)
