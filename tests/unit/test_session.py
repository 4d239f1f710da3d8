"""The control plane: asks still needs its alias, errors name their cause, tokens stay with their origin."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable

import pytest
import trio

from tests.conftest import Daemon, free_port
from vosfs.errors import InvalidArgument, NotAuthenticated, ProtocolError, ServiceUnavailable
from vosfs.session import CONNECTIONS_MAX, NODES, Session

_BARE = """
import trio, asks
async def main():
    await asks.Session().get("http://127.0.0.1:1/")
try:
    trio.run(main)
except BaseException as exc:
    print(type(exc).__name__, exc)
"""


def test_asks_still_needs_the_alias() -> None:
    """When this fails, asks or anyio was mended: take the alias of trio.MultiError out of vosfs/session.py."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _BARE], capture_output=True, text=True, timeout=60)
    assert "MultiError" in done.stdout + done.stderr


@pytest.fixture
async def session() -> AsyncIterator[Callable[..., Session]]:
    """Make sessions that are closed with the test."""
    made: list[Session] = []

    def make(url: str, token: str, deadline_s: float = 10) -> Session:
        made.append(Session(url, token, deadline_s))
        return made[-1]

    yield make
    for one in made:
        await one.close()


Make = Callable[..., Session]


async def test_capabilities_are_found(daemon: Daemon, session: Make) -> None:
    found = await session(daemon.url, daemon.token).capabilities()
    assert found[NODES] == f"{daemon.url}/nodes"


async def test_what_is_no_vospace_is_said_so(daemon: Daemon, session: Make) -> None:
    with pytest.raises(ProtocolError, match="is this the URL of a VOSpace"):
        await session(daemon.url + "/nodes", daemon.token).capabilities()


async def test_nobody_there(session: Make) -> None:
    with pytest.raises(ServiceUnavailable, match="refused"):
        await session(f"http://127.0.0.1:{free_port()}/vos", "").capabilities()


async def test_redirects_are_answers_and_tokens_stay_at_home(daemon: Daemon, session: Make) -> None:
    target = "vos://vosfs.local~vospace/f"
    assert daemon.request("PUT", "/files/f", b"x")[0] == 201
    params = {"TARGET": target, "DIRECTION": "pullFromVoSpace", "REQUEST": "redirect"}
    params["PROTOCOL"] = "ivo://ivoa.net/vospace/core#httpget"
    reply = await session(daemon.url, daemon.token).request("GET", f"{daemon.url}/synctrans", params=params)
    assert reply.status == 303 and reply.headers["location"].startswith(daemon.url + "/data/")
    # The same server under another name is another origin: the token must not go there.
    stranger = session(daemon.url.replace("127.0.0.1", "localhost"), "not-the-token")
    assert (await stranger.request("GET", f"{daemon.url}/nodes")).status == 403
    assert (await session(daemon.url, "not-the-token").request("GET", f"{daemon.url}/nodes")).status == 401


@pytest.mark.parametrize("url", ["ftp://h/x", "http:///x", "http://user:secret@h/x"])
def test_urls_that_cannot_be_meant(url: str) -> None:
    with pytest.raises(InvalidArgument):
        Session(url, "", 5)


async def test_a_wrong_token_is_told_by_the_gateway(daemon: Daemon) -> None:
    from vosfs.client import HttpClient
    from vosfs.metadata.gateway import GatewayTree

    client = HttpClient(daemon.url)
    with pytest.raises(NotAuthenticated, match="vosfsd token"):
        await GatewayTree(client, "/vos/gateway", "wrong").hello()
    client.close()


class Service:
    """Answers 200 to the first request of each connection, and closes it at the second, or at the first once it is ``off``."""

    def __init__(self) -> None:
        self.off = False
        self.url = ""

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        await trio.serve_listeners(self._serve, [listener], task_status=task_status)

    async def _serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            if await stream.receive_some() and not self.off:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await stream.receive_some()


async def test_a_kept_connection_that_the_service_closed_costs_nothing(session: Make, nursery: trio.Nursery) -> None:
    service = Service()
    await nursery.start(service.run)
    one = session(service.url, "")
    async with trio.open_nursery() as together:
        for _ in range(CONNECTIONS_MAX):
            together.start_soon(one.request, "GET", service.url + "/x")
    for method in ("GET", "PUT", "DELETE", "POST"):
        assert (await one.request(method, service.url + "/x")).body == b"ok"


async def test_a_service_that_closes_every_connection_is_away(session: Make, nursery: trio.Nursery) -> None:
    service, told = Service(), []
    await nursery.start(service.run)
    one = session(service.url, "")
    one.on_lost = lambda: told.append(True)
    assert (await one.request("GET", service.url + "/x")).status == 200
    service.off = True
    for number in range(1, 4):
        with pytest.raises(ServiceUnavailable):
            await one.request("GET", service.url + "/x")
        assert len(told) == number


async def test_a_new_token_is_used_at_once(daemon: Daemon, session: Make) -> None:
    one = session(daemon.url, "not-the-token")
    assert (await one.request("GET", f"{daemon.url}/nodes")).status == 401
    one.use_token(daemon.token)
    assert (await one.request("GET", f"{daemon.url}/nodes")).status == 200
