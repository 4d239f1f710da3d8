"""The HTTP engine by itself: what a connection may cost."""

import trio

from server.http import Request, Response, Server, listen
from vosfs.errors import StorageFull


async def test_a_body_that_nobody_could_take_leaves_the_connection_its_deadline() -> None:
    """Else who then does not read the answer would hold it for ever."""
    seen: list[float] = []

    async def refuse(request: Request) -> Response:
        def sink(data: memoryview) -> None:
            raise StorageFull("told to")

        try:
            await request.receive(sink)
        except StorageFull:
            seen.append(request._connection.scope.deadline)
        return Response(507)

    sock = listen("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Server(refuse, sock, deadline_s=50.0).run)
        async with await trio.open_tcp_stream(*sock.getsockname()) as client:
            await client.send_all(b"PUT /x HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n12345")
            assert (await client.receive_some()).startswith(b"HTTP/1.1 507 ")
        nursery.cancel_scope.cancel()
    assert len(seen) == 1 and seen[0] < trio.current_time() + 60
