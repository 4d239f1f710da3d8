"""The control plane: asks still needs its alias, errors name their cause, tokens stay with their origin."""

import subprocess
import sys
from collections.abc import AsyncIterator, Callable

import pytest

from tests.conftest import Daemon, free_port
from vosfs.errors import InvalidArgument, NotAuthenticated, ProtocolError, ServiceUnavailable
from vosfs.session import NODES, Session

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
