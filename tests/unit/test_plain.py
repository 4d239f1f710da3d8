"""What a mount knows of a plain VOSpace service: which bytes are others, and what they must not be mixed with."""

from collections.abc import Callable

import pytest

from tests.conftest import Daemon
from vosfs.backends.transfer import TransferBlobs
from vosfs.errors import ServiceUnavailable, Stale, StorageFull
from vosfs.metadata.cached import CachedTree
from vosfs.metadata.memory import MemoryStore
from vosfs.metadata.node import DATA, ROOT_ID, NewNode, Node
from vosfs.metadata.store import ANYONE, Caller
from vosfs.metadata.vospace import Stamp, VOSpaceTree, fault_of
from vosfs.session import Reply, Session


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("3", "aa", "", "1"), ("3", "aa", "", "2"), True),
        (("3", "aa", "", "1"), ("3", "bb", "", "1"), False),
        (("3", "", "", "1"), ("3", "aa", "", "1"), True),
        (("3", "", "", "1"), ("3", "aa", "", "2"), False),
        (("3", "", "x", "1"), ("3", "", "y", "1"), False),
        (("3", "aa", "", "1"), ("4", "aa", "", "1"), False),
    ],
    ids=["a property changed", "other bytes", "the sum comes later", "and the date moved", "other tag", "other length"],
)
def test_bytes_are_others_by_what_says_most_of_them(one: tuple[str, ...], other: tuple[str, ...], same: bool) -> None:
    assert Stamp(*one).same(Stamp(*other)) is Stamp(*other).same(Stamp(*one)) is same


def test_a_full_storage_is_not_a_quota() -> None:
    assert isinstance(fault_of(Reply(507, {}, b"QuotaExceeded: no room")), StorageFull)
    assert not isinstance(fault_of(Reply(413, {}, b"QuotaExceeded: no more for you")), StorageFull)


async def test_versions_grow_whatever_the_bytes(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("plain", "--no-gateway")
    session = Session(daemon.url, daemon.token, 10)
    tree = VOSpaceTree(session, await session.capabilities())
    await tree.get(ROOT_ID)
    seen: list[int] = []
    for number in range(8):
        assert daemon.request("PUT", "/files/f", b"%d" % number)[0] in (200, 201)
        seen += [(await tree.lookup(ROOT_ID, b"f")).version for _ in range(2)]
    assert seen == sorted(seen) and len(set(seen)) == 8
    await session.close()


async def test_two_versions_are_not_mixed(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon("plain", "--no-gateway")
    session = Session(daemon.url, daemon.token, 10)
    tree = VOSpaceTree(session, await session.capabilities())
    await tree.get(ROOT_ID)
    blobs = TransferBlobs(tree, 10)
    daemon.request("PUT", "/files/f", b"old bytes")
    (extent,) = (await tree.open((await tree.lookup(ROOT_ID, b"f")).id)).extents
    into = bytearray(3)
    await blobs.fetch(extent.locator, 0, memoryview(into), lambda count: None)
    assert into == b"old"
    daemon.request("PUT", "/files/f", b"new bytes")
    with pytest.raises(Stale):
        await blobs.fetch(extent.locator, 4, memoryview(into), lambda count: None)
    blobs.close()
    await session.close()


class Away(MemoryStore):
    """A service that can be away, of which its tree is told."""

    tree: CachedTree
    gone = False

    async def get(self, id: int, caller: Caller = ANYONE) -> Node:
        if self.gone:
            self.tree.away = True
            raise ServiceUnavailable("gone")
        return await super().get(id, caller)


async def test_who_hears_first_that_the_service_is_away_is_answered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vosfs.metadata.cached.TTL_S", 0.0)
    store = Away()
    store.tree = tree = CachedTree(store)
    node = await store.create(ROOT_ID, b"f", NewNode(DATA))
    assert (await tree.get(node.id)).id == node.id
    store.gone = True
    assert (await tree.get(node.id)).id == node.id
    with pytest.raises(ServiceUnavailable):
        await tree.get(4711)
