"""One walk through all the programs of the vos client: SQLite and PostgreSQL answer it alike."""

import concurrent.futures
import re
from collections.abc import Callable
from pathlib import Path

from tests.clients.conftest import in_new_folder
from tests.clients.support import Client
from tests.conftest import Daemon
from tests.server.support import node


def walk(vos: Client) -> list[str]:
    """Use every program once or more; what they printed."""
    tree = vos.home / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a.txt").write_bytes(b"first\n")
    (tree / "empty").write_bytes(b"")
    (tree / "sub/big.fits").write_bytes(bytes(range(256)) * 4 * 6000)
    said: list[str] = []

    def run(program: str, *arguments: object, code: int | None = 0) -> list[str]:
        done = vos.run(program, *arguments, code=code)
        said.append(f"{program}: {done.out}{done.err}")
        return done.lines

    run("vmkdir", "-p", vos.uri("d/e"))
    run("vcp", tree, vos.uri("tree"))
    run("vcp", tree / "a.txt", vos.uri("d/"))
    run("vcp", vos.uri("tree"), vos.home / "back")
    for file in ("a.txt", "empty", "sub/big.fits"):
        assert (vos.home / "back" / file).read_bytes() == (tree / file).read_bytes()
    (tree / "sub/new").write_bytes(b"new")
    run("vsync", "-v", "-r", f"{tree}/", vos.uri("tree"))
    assert [row.split()[4] for row in run("vls", "-l", vos.uri("tree"))] == ["6", "0", "0"]
    assert run("vls", "-S", vos.uri("tree/sub")) == ["big.fits", "new"]
    run("vmv", vos.uri("d/a.txt"), vos.uri("d/b.txt"))
    run("vmv", vos.uri("d/b.txt"), vos.uri("d/e"))
    run("vmv", vos.uri("d/e/b.txt"), vos.uri("tree/a.txt"), code=None)
    run("vln", vos.uri("tree/sub"), vos.uri("link"))
    assert run("vls", vos.uri("link")) == ["big.fits", "new"]
    run("vtag", vos.uri("d/e/b.txt"), "quality=good", "title=a < b")
    assert run("vtag", vos.uri("d/e/b.txt"), "quality", "title") == ["'good'", "'a < b'"]
    run("vchmod", "og+r", vos.uri("d/e/b.txt"), "staff")
    assert run("vls", "-g", vos.uri("d/e"))[0].split()[:2] == ["-rw-r--r--", "staff"]
    run("vlock", "--lock", vos.uri("d/e/b.txt"))
    run("vlock", "--unlock", vos.uri("d/e/b.txt"))
    run("vlock", vos.uri("d/e/b.txt"), code=255)
    run("vcat", vos.uri("d/e/b.txt"), code=None)
    run("vrm", vos.uri("d/e/b.txt"), vos.uri("link"))
    assert vos.names("d/e") == []
    run("vrmdir", vos.uri("d/e"))
    run("vtag", "-R", vos.uri("tree"), "quality=bad")
    assert node(vos.daemon, f"{vos.folder}/tree/sub/new").properties["quality"] == "bad"
    run("vrm", "-R", vos.uri("tree"))
    assert vos.names() == ["d"]
    return said


def test_both_databases_answer_alike(served: Daemon, served_by_postgres: Daemon, home: Callable[..., Path]) -> None:
    clients = [
        in_new_folder(daemon, home(daemon, name)) for daemon, name in ((served, "one"), (served_by_postgres, "two"))
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        transcripts = list(pool.map(walk, clients))
    for at, (one, two) in enumerate(zip(*transcripts, strict=True)):
        assert _general(one, clients[0]) == _general(two, clients[1]), at


def _general(said: str, client: Client) -> str:
    """What a program said, without places, times and speeds."""
    said = said.replace(client.folder, "/FOLDER").replace(str(client.home), "HOME")
    said = re.sub(r"[A-Z][a-z]{2} +\d+ +\d\d:\d\d|[\d.]+s|[\d.]+ ?[kM]B(ytes)?/s|Speedup.*", "TIME", said)
    # vsync works on several files at once.
    return "\n".join(sorted(said.splitlines()))
