"""Requests on kept connections while ``keep_deadlines`` runs: late ones end, broken ones are tried once more."""

from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio
import trio.testing

from vosfs.client import HttpClient
from vosfs.errors import ServiceUnavailable, TimedOut

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Peer:
    """A server that answers the first request of its first connection, and then does as it is told."""

    def __init__(self) -> None:
        self.requests: list[int] = []
        """Of each, the number of its connection."""
        self.breaks = self.hangs = False

    async def serve(self, stream: trio.SocketStream) -> None:
        number = len(set(self.requests))
        while await stream.receive_some():
            self.requests.append(number)
            if len(self.requests) > 1 and number == 0:
                if self.breaks:
                    await stream.aclose()
                    return
                if self.hangs:
                    await trio.sleep_forever()
            await stream.send_all(OK)


@pytest.fixture
async def peer() -> AsyncIterator[tuple[Peer, HttpClient]]:
    peer = Peer()
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, peer.serve, 0, host="127.0.0.1"))
        client = HttpClient(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        nursery.start_soon(client.keep_deadlines)
        nursery.start_soon(client.beside().keep_deadlines)
        await trio.testing.wait_all_tasks_blocked()
        yield peer, client
        client.close()
        nursery.cancel_scope.cancel()


async def get(client: HttpClient, idempotent: bool = False, deadline_s: float = 30) -> bytes:
    head = client.head("GET", "/")
    return (await client.request(head, method="GET", idempotent=idempotent, deadline_s=deadline_s)).body


async def test_a_late_answer_is_a_timeout(peer: tuple[Peer, HttpClient]) -> None:
    server, client = peer
    assert await get(client) == b"hi"
    server.hangs = True
    with pytest.raises(TimedOut, match="no answer"):
        await get(client, idempotent=True, deadline_s=0.01)
    assert server.requests == [0, 0], "it was late, not broken: once more would be later still"
    server.hangs = False
    assert await get(client) == b"hi"
    assert server.requests == [0, 0, 1]


async def test_what_broke_is_tried_once_more_if_that_does_no_harm(peer: tuple[Peer, HttpClient]) -> None:
    server, client = peer
    assert await get(client) == b"hi"
    server.breaks = True
    assert await get(client, idempotent=True) == b"hi"
    assert server.requests == [0, 0, 1]


async def test_what_broke_and_may_have_been_done_is_said_to_be_so(peer: tuple[Peer, HttpClient]) -> None:
    server, client = peer
    assert await get(client) == b"hi"
    server.breaks = True
    with pytest.raises(ServiceUnavailable):
        await get(client)
    assert server.requests == [0, 0]


async def test_who_gives_up_leaves_no_connection_in_the_middle_of_an_answer(peer: tuple[Peer, HttpClient]) -> None:
    server, client = peer
    assert await get(client) == b"hi"
    server.hangs = True
    with trio.move_on_after(0.01):
        await get(client)
    server.hangs = False
    assert await get(client) == b"hi"
    assert server.requests == [0, 0, 1]
