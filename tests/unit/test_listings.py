"""Long listings are kept from the second time on, until something is committed."""

from typing import cast

import pytest

from server import listings
from server.access import Subject
from server.listings import Asked, Document, Listings
from vosfs.metadata.store import Store


class Committing:
    """As much of a store as is asked."""

    def __init__(self) -> None:
        self.commits = 0
        self.looks = 0

    async def snapshot(self) -> object:
        self.looks += 1
        return self.commits


@pytest.fixture
def store() -> Committing:
    return Committing()


@pytest.fixture
def kept(store: Committing) -> Listings:
    return Listings(cast(Store, store))


def asked(query: str = "", user: str = "alice") -> Asked:
    return Asked((b"box",), query, Subject(user))


async def make(listings: Listings, question: Asked, *pieces: str) -> Document:
    """As the service does; an answer that is kept is not made."""
    document = await listings.document(question)
    if not document.kept:
        for piece in pieces:
            assert document.add(piece) == piece.encode()
        document.end()
    return document


async def text(document: Document) -> bytes:
    return b"".join([piece async for piece in document.pieces()])


async def test_the_third_is_the_second(kept: Listings) -> None:
    assert not (await make(kept, asked(), "a", "b")).kept
    assert not (await make(kept, asked(), "c", "d")).kept
    third = await make(kept, asked())
    assert third.kept and await text(third) == b"cd" and kept.bytes == 2


async def test_the_store_is_not_asked_about_what_is_not_known_to_be_long(kept: Listings, store: Committing) -> None:
    for _ in range(3):
        await kept.document(asked())
    assert store.looks == 0


@pytest.mark.parametrize("other", [asked("detail=min"), asked(user="bob"), Asked((b"other",), "", Subject("alice"))])
async def test_what_is_asked_otherwise_is_another(kept: Listings, other: Asked) -> None:
    for _ in range(2):
        await make(kept, asked(), "a")
    assert not (await make(kept, other, "b")).kept


async def test_nothing_is_kept_beyond_a_commit(kept: Listings, store: Committing) -> None:
    for _ in range(2):
        await make(kept, asked(), "a")
    store.commits += 1
    assert not (await make(kept, asked(), "b")).kept and await text(await make(kept, asked())) == b"b"


async def test_what_was_begun_before_a_commit_is_never_given_after_it(kept: Listings, store: Committing) -> None:
    await make(kept, asked(), "a")
    document = await kept.document(asked())
    document.add("b")
    store.commits += 1
    document.add("c")
    document.end()
    assert not (await kept.document(asked())).kept
    # And the same when somebody else noticed meanwhile.
    late = await kept.document(asked())
    store.commits += 1
    await make(kept, asked(), "d")
    late.add("e")
    late.end()
    assert await text(await kept.document(asked())) == b"d"


async def test_the_limits(kept: Listings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "LISTING_BYTES_MAX", 10)
    monkeypatch.setattr(listings, "LISTINGS_BYTES_MAX", 16)
    monkeypatch.setattr(listings, "LONG_MAX", 3)
    for _ in range(2):
        await make(kept, asked("long"), "x" * 6, "x" * 6, "x")
        for query in ("a", "b"):
            await make(kept, asked(query), "x" * 8)
    assert not (await kept.document(asked("long"))).kept
    assert (await kept.document(asked("a"))).kept and (await kept.document(asked("b"))).kept and kept.bytes == 16
    for _ in range(2):
        await make(kept, asked("c"), "y")
    # The one that was asked for least lately made room.
    assert not (await kept.document(asked("a"))).kept and kept.bytes == 9
    assert not (await make(kept, asked("long"), "z")).kept
