"""Paths of any bytes become VOSpace identifiers and come back; everything else is refused."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vosfs.errors import InvalidURI, NameTooLong, VOSpaceError
from vosfs.uri import NAME_BYTES_MAX, PATH_BYTES_MAX, Authority, check_name, decode, encode

NAMES = st.binary(min_size=1, max_size=NAME_BYTES_MAX).filter(
    lambda n: b"/" not in n and b"\0" not in n and n not in (b".", b"..")
)
SPACE = Authority("example.org~vospace")


@given(st.lists(NAMES, max_size=8).map(tuple))
@settings(deadline=None)
def test_round_trip(path: tuple[bytes, ...]) -> None:
    text = encode(path)
    assert text.isascii()
    assert decode(text) == path
    assert SPACE.path(SPACE.uri(path)) == path
    if path:
        assert decode(text + "/") == path


@given(st.text(max_size=30))
@settings(deadline=None)
def test_any_text_is_read_or_refused(text: str) -> None:
    for candidate in (text, "/" + text):
        try:
            path = decode(candidate)
        except VOSpaceError as exc:
            assert isinstance(exc, InvalidURI)
        else:
            assert decode(encode(path)) == path


def test_encode_leaves_what_needs_no_encoding() -> None:
    assert encode(()) == ""
    assert encode((b"a b", b"c%d", b"\xff")) == "/a%20b/c%25d/%FF"
    assert encode((b"-._~!$&'()*+,;=:@",)) == "/-._~!$&'()*+,;=:@"
    assert encode((b"a?b#c[d]",)) == "/a%3Fb%23c%5Bd%5D"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", ()), ("/", ()), ("/a", (b"a",)), ("/a/", (b"a",)), ("/a/b", (b"a", b"b")), ("/%61", (b"a",)),
        ("/%c3%a9", (b"\xc3\xa9",)), ("/%2541", (b"%41",)), ("/+", (b"+",)), ("/...", (b"...",)), ("/%20", (b" ",)),
    ],
)  # fmt: skip
def test_decode(text: str, path: tuple[bytes, ...]) -> None:
    assert decode(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "a", "//", "//a", "/a//b", "/a//", "/.", "/..", "/a/../b", "/%2e", "/%2E%2E", "/a%2Fb", "/%00", "/%", "/%4",
        "/%4g", "/%%41", "/a b", "/é", "/a\n", "/a?b", "/a#b", "/a\\b", "/a\x7f", '/"', "/<", "/{a}", "/a|b", "/`",
        "/\udcff", "/\ud800", "/%+1",
    ],
)  # fmt: skip
def test_decode_refuses(text: str) -> None:
    with pytest.raises(InvalidURI):
        decode(text)


def test_lengths() -> None:
    assert decode("/" + "a" * NAME_BYTES_MAX) == (b"a" * NAME_BYTES_MAX,)
    with pytest.raises(NameTooLong):
        decode("/" + "a" * (NAME_BYTES_MAX + 1))
    # What counts is bytes, not their escapes.
    assert len(decode("/" + "%FF" * NAME_BYTES_MAX)[0]) == NAME_BYTES_MAX
    most = PATH_BYTES_MAX // 128
    assert len(decode(("/" + "a" * 127) * most)) == most
    with pytest.raises(NameTooLong):
        decode(("/" + "a" * 127) * most + "/a")


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/", b"\0", b"a\0"])
def test_check_name_refuses(name: bytes) -> None:
    with pytest.raises(InvalidURI):
        check_name(name)


def test_check_name_takes_any_other_bytes() -> None:
    every = bytes(range(1, 256)).replace(b"/", b"")
    assert check_name(every) == every
    with pytest.raises(NameTooLong):
        check_name(every + b"aa")


@pytest.mark.parametrize(
    "uri",
    [
        "vos://example.org~vospace/a", "vos://example.org!vospace/a", "vos://EXAMPLE.org!vospace/a",
        "vos://example.org%7Evospace/a", "vos://example.org%21vospace/a", "vos://example.org~vospace/a?x=y#z",
    ],
)  # fmt: skip
def test_the_authority_is_read_in_all_its_forms(uri: str) -> None:
    assert SPACE.path(uri) == (b"a",)


@pytest.mark.parametrize(
    "uri",
    [
        "", "/a", "ivo://example.org~vospace/a", "vos:/a", "vos:example.org~vospace/a", "vos://other~vospace/a",
        "vos://example.org~vospacex/a", "vos:///a", "vos://example.org~vospace/a b", "vos://example.org~vospace/\n",
        "VOS//example.org~vospace/a", " vos://example.org~vospace/a", "vos://u@example.org~vospace/a",
    ],
)  # fmt: skip
def test_other_identifiers_are_refused(uri: str) -> None:
    with pytest.raises(InvalidURI):
        SPACE.path(uri)


def test_the_root_and_the_ivoid() -> None:
    assert SPACE.path("vos://example.org~vospace") == SPACE.path("vos://example.org~vospace/") == ()
    assert SPACE.uri(()) == "vos://example.org~vospace"
    assert SPACE.ivoid == Authority("example.org!vospace").ivoid == "ivo://example.org/vospace"
