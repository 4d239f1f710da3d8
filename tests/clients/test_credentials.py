"""The vos client signs in with everything it knows: nothing, a token, a password in ``~/.netrc``."""

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.clients.support import Client, make_home, with_token
from tests.conftest import Daemon
from tests.server.support import create, fetch, node, store, update, vosfsd, where

CAROL, PASSWORD = "carol", "correct horse: battery#staple"


@pytest.fixture(scope="module")
def doors(served: Daemon) -> Iterator[str]:
    """A public container with a public and a private file, and a container that carol may write to; its path."""
    done = vosfsd("user", *where(served), CAROL, "--groups", "friends", data=PASSWORD + "\n")
    assert done.returncode == 0, done.stderr
    update(served, "/", properties={"ispublic": "true"})
    create(served, "/doors", "ContainerNode", properties={"ispublic": "true", "groupread": "", "groupwrite": ""})
    create(served, "/doors/shared", "ContainerNode", properties={"groupwrite": "friends"})
    store(served, "/doors/open", b"for all\n")
    store(served, "/doors/shut", b"for some\n")
    update(served, "/doors/shut", properties={"ispublic": "false"})
    yield "/doors"
    update(served, "/", properties={"ispublic": "false"})


@pytest.fixture
def nobody(served: Daemon, doors: str, tmp_path: Path) -> Client:
    """The client without credentials."""
    return Client(served, make_home(tmp_path / "nobody", served.url), doors)


@pytest.fixture
def carol(served: Daemon, doors: str, tmp_path: Path) -> Callable[[str], Client]:
    """The client with a password in a netrc file, which it looks up by the host's name without the port."""

    def make(password: str) -> Client:
        home = make_home(tmp_path / "carol", served.url)
        (home / ".netrc").write_text(f'machine 127.0.0.1 login {CAROL} password "{password}"\n')
        (home / ".netrc").chmod(0o600)
        return Client(served, home, doors)

    return make


def test_without_credentials_what_is_public_can_be_read(nobody: Client, served: Daemon) -> None:
    listed, _, printed = nobody.together(
        ("vls", "-l", nobody.uri()), ("vcp", nobody.uri("open"), nobody.home / "open"), ("vcat", nobody.uri("open"))
    )
    # What is shut is listed too: its rights are its own, its name is its container's.
    assert [(row.split()[0], row.split()[-1]) for row in listed.lines] == [
        ("-rw----r--", "open"), ("drw--w-r--", "shared"), ("-rw-------", "shut"),
    ]  # fmt: skip
    assert printed.out == "for all\n\n\n"
    assert (nobody.home / "open").read_bytes() == b"for all\n"
    (nobody.home / "new").write_bytes(b"new")
    nobody.all_fail(
        ("vcp", nobody.uri("shut"), nobody.home / "shut"),
        ("vls", "-l", nobody.uri("shut")),
        ("vcp", nobody.home / "new", nobody.uri("new")),
        ("vcp", nobody.home / "new", nobody.uri("open")),
        ("vmkdir", nobody.uri("d")),
        ("vmv", nobody.uri("open"), nobody.uri("closed")),
        ("vtag", nobody.uri("open"), "quality=bad"),
        says="PermissionDenied",
    )
    assert nobody.names() == ["open", "shared", "shut"]
    assert fetch(served, "/doors/open") == b"for all\n"


def test_a_token_is_its_users(nobody: Client, served: Daemon, tmp_path: Path) -> None:
    owner = with_token(served, nobody.home, nobody.folder, served.token)
    owner.run("vcp", owner.uri("shut"), owner.home / "shut")
    assert (owner.home / "shut").read_bytes() == b"for some\n"
    wrong = with_token(served, nobody.home, nobody.folder, "wrong" + served.token)
    # A word about the wrong credential, also for what nobody needs one for.
    done = wrong.all_fail(
        ("vls", wrong.uri()), ("vcp", wrong.uri("open"), wrong.home / "open"), says="NotAuthenticated"
    )
    assert done[0].code == errno.EACCES


def test_a_password_is_found_in_the_netrc_file(carol: Callable[[str], Client], served: Daemon) -> None:
    client = carol(PASSWORD)
    client.fails("vcp", client.uri("shut"), client.home / "shut", says="PermissionDenied")
    (client.home / "new").write_bytes(b"from carol")
    client.run("vcp", client.home / "new", client.uri("shared/new"))
    client.run("vmkdir", client.uri("shared/d"))
    client.run("vmv", client.uri("shared/new"), client.uri("shared/d"))
    assert fetch(served, "/doors/shared/d/new") == b"from carol"
    assert node(served, "/doors/shared/d/new").properties["creator"] == CAROL
    client.run("vchmod", "o-r", client.uri("shared/d/new"))
    assert client.run("vcat", client.uri("shared/d/new")).out == "from carol\n\n"
    client.run("vrmdir", client.uri("shared/d"))
    assert client.names("shared") == []


def test_a_wrong_password_is_refused(carol: Callable[[str], Client]) -> None:
    client = carol("wrong")
    assert client.fails("vls", client.uri(), says="NotAuthenticated").code == errno.EACCES
