"""Long listings are kept from the second time on, until something is committed, and their bytes are counted."""

from collections.abc import AsyncGenerator
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


class Service:
    """Answers as ``nodes.py`` does: a document says which commit its pieces were made at."""

    def __init__(self) -> None:
        self.store = Committing()
        self.listings = Listings(cast(Store, self.store))

    async def ask(self, question: Asked, pieces: int = 2, size: int = 1) -> tuple[Document, AsyncGenerator[bytes]]:
        document = await self.listings.find(question)
        if document.kept:
            return document, self.listings.send(document)
        return document, self.listings.gather(document, self._made(pieces, size))

    async def _made(self, pieces: int, size: int) -> AsyncGenerator[str]:
        for _ in range(pieces):
            yield f"{self.store.commits}" * size

    async def answer(self, question: Asked, pieces: int = 2, size: int = 1) -> tuple[bool, bytes]:
        """Whether it was kept, and all of it."""
        document, body = await self.ask(question, pieces, size)
        kept = document.kept
        return kept, b"".join([piece async for piece in body])


@pytest.fixture
def service() -> Service:
    return Service()


def asked(query: str = "", user: str = "alice") -> Asked:
    return Asked((b"box",), query, Subject(user))


async def test_the_third_is_the_second(service: Service) -> None:
    assert [await service.answer(asked()) for _ in range(3)] == [(False, b"00"), (False, b"00"), (True, b"00")]
    assert service.listings.bytes == 2


async def test_the_store_is_not_asked_about_what_is_not_known_to_be_long(service: Service) -> None:
    await service.answer(asked())
    long_query = asked("x" * 501)
    for _ in range(3):
        assert await service.answer(long_query) == (False, b"00")
    assert service.store.looks == 0


@pytest.mark.parametrize("other", [asked("detail=min"), asked(user="bob"), Asked((b"other",), "", Subject("alice"))])
async def test_what_is_asked_otherwise_is_another(service: Service, other: Asked) -> None:
    for _ in range(2):
        await service.answer(asked())
    assert not (await service.answer(other))[0]


async def test_nothing_is_kept_beyond_a_commit(service: Service) -> None:
    for _ in range(2):
        await service.answer(asked())
    service.store.commits += 1
    assert [await service.answer(asked()) for _ in range(2)] == [(False, b"11"), (True, b"11")]


async def test_what_was_begun_before_a_commit_is_never_given_after_it(service: Service) -> None:
    await service.answer(asked())
    _, body = await service.ask(asked())
    assert await anext(body) == b"0"
    service.store.commits += 1
    assert [piece async for piece in body] == [b"1"]
    assert await service.answer(asked()) == (False, b"11")


async def test_one_that_was_found_before_a_commit_that_another_saw_is_not_kept_as_of_after_it(service: Service) -> None:
    await service.answer(asked())
    await service.answer(asked("other"))
    # Its first page was read by now.
    _, body = await service.ask(asked())
    service.store.commits += 1
    await service.answer(asked("other"))
    assert b"".join([piece async for piece in body]) == b"11"
    assert not (await service.answer(asked()))[0]


async def test_one_of_many_at_once_gathers(service: Service) -> None:
    await service.answer(asked())
    bodies = [(await service.ask(asked()))[1] for _ in range(5)]
    for body in bodies:
        assert await anext(body) == b"0"
    assert service.listings.bytes == 1
    for body in reversed(bodies):
        assert [piece async for piece in body] == [b"0"]
    assert service.listings.bytes == 2 and (await service.answer(asked()))[0]


async def test_one_that_is_broken_off_is_not_kept_nor_counted(service: Service) -> None:
    await service.answer(asked())
    _, body = await service.ask(asked())
    await anext(body)
    await body.aclose()
    assert service.listings.bytes == 0
    assert [(await service.answer(asked()))[0] for _ in range(2)] == [False, True]
    # Nor one that nobody began to read, as for HEAD.
    for _ in range(3):
        await (await service.ask(asked()))[1].aclose()
    assert service.listings.bytes == 2


async def test_what_is_dropped_while_it_is_sent_is_counted_until_then(service: Service) -> None:
    for _ in range(2):
        await service.answer(asked())
    found, body = await service.ask(asked())
    late, unread = await service.ask(asked())
    assert found is late and await anext(body) == b"0"
    service.store.commits += 1
    await service.answer(asked())
    assert service.listings.bytes == 4
    await body.aclose()
    assert service.listings.bytes == 2
    # One that was dropped between its being found and its being sent.
    assert await anext(unread) == b"0" and service.listings.bytes == 4
    await unread.aclose()
    assert service.listings.bytes == 2


async def test_the_limits(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "LISTING_BYTES_MAX", 10)
    monkeypatch.setattr(listings, "LISTINGS_BYTES_MAX", 16)
    monkeypatch.setattr(listings, "LONG_MAX", 3)
    for _ in range(2):
        await service.answer(asked("long"), 3, 4)
        for query in ("a", "b"):
            await service.answer(asked(query), 2, 4)
    assert not (await service.answer(asked("long"), 3, 4))[0]
    # To know of a fourth, one is forgotten; the one that was asked for least lately makes room.
    for _ in range(2):
        assert (await service.answer(asked("b")))[0]
        await service.answer(asked("c"), 1, 1)
    assert service.listings.bytes == 9 and (await service.answer(asked("c")))[0]
    # Those that are sent are not dropped for others.
    _, body = await service.ask(asked("b"))
    await anext(body)
    service.store.commits += 1
    for query in ("c", "c"):
        await service.answer(asked(query), 1, 9)
    assert service.listings.bytes == 8 and not (await service.answer(asked("c"), 1, 9))[0]
    await body.aclose()
    assert service.listings.bytes == 0
