"""Who may do what: every kind of subject against every kind of node."""

import pytest

from server.access import NOBODY, Subject, groups_of
from vosfs.errors import PermissionDenied
from vosfs.metadata.node import DATA, Node
from vosfs.metadata.store import OWN, READ, WRITE

BOB, EVE = Subject("bob"), Subject("eve")
READER, WRITER = Subject("r", frozenset({"readers"})), Subject("w", frozenset({"writers", "x"}))
ADMIN = Subject("root", frozenset({"admin"}))


def node(owner: str = "bob", public: int = 0, read: str = "", write: str = "") -> Node:
    return Node(5, DATA, 1, 0, 0o777, 0, 0, 1, 0, 0, 0, 0, owner, b"", public, read, write, 0, "", "")


@pytest.mark.parametrize(
    ("subject", "rights"),
    [(BOB, {READ, WRITE, OWN}), (ADMIN, {READ, WRITE, OWN}), (WRITER, {READ, WRITE}), (READER, {READ}), (EVE, set()),
     (NOBODY, set())],
    ids=["owner", "admin", "writer", "reader", "other", "anonymous"],
)  # fmt: skip
@pytest.mark.parametrize("public", [0, 1])
def test_rights(subject: Subject, rights: set[str], public: int) -> None:
    there = node(public=public, read="other readers", write="writers,ivo://a/gms?more")
    expected = rights | ({READ} if public else set())
    assert {right for right in (READ, WRITE, OWN) if subject.may(there, right)} == expected
    for right in (READ, WRITE, OWN):
        if right in expected:
            subject.permit(there, right)
        else:
            with pytest.raises(PermissionDenied):
                subject.permit(there, right)


def test_nobody_owns_what_has_no_owner() -> None:
    for right in (READ, WRITE, OWN):
        assert not NOBODY.may(node(owner=""), right)
    assert not Subject("", frozenset({"admin"})).may(node(), OWN)


def test_an_empty_group_lets_nobody_in() -> None:
    for text in ("", " ", ",", " , "):
        for subject in (READER, Subject("x", frozenset({""}))):
            assert not subject.may(node(read=text, write=text), READ)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("", set()), ("a", {"a"}), ("a b,c\td\n e", {"a", "b", "c", "d", "e"}),
        ("ivo://x/gms?staff", {"ivo://x/gms?staff", "staff"}), ("ivo://x/gms#staff", {"ivo://x/gms#staff"}),
    ],
)  # fmt: skip
def test_groups_of(text: str, groups: set[str]) -> None:
    assert groups_of(text) == groups


def test_a_group_s_identifier_is_also_its_name() -> None:
    there = node(read="ivo://cadc.nrc.ca/gms?readers", write="")
    assert READER.may(there, READ) and not READER.may(there, WRITE)
    assert not Subject("r", frozenset({"reader"})).may(there, READ)
