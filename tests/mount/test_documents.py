"""What the documents tell people to type works as written."""

import itertools
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.conftest import BIN, Daemon, free_port, unmount
from vosfs import config

ROOT = Path(__file__).parents[2]


def literal_block(text: str, after: str) -> list[str]:
    """The lines of the literal block that follows a phrase."""
    rest = text.split(after, 1)[1].split("::\n", 1)[1]
    lines = []
    for line in rest.splitlines():
        if line and not line.startswith("    "):
            break
        lines.append(line.strip())
    return [line for line in lines if line]


def test_the_readme_serves_and_mounts(tmp_path: Path) -> None:
    lines = literal_block((ROOT / "README.rst").read_text(), "Nothing to configure")
    port, point, space = free_port(), tmp_path / "mnt", tmp_path / "space"
    point.mkdir()
    commands = []
    for line in lines:
        line = line.replace(".venv/bin", str(BIN)).replace("/tmp/space", str(space)).replace("8080", str(port))
        commands.append(re.sub(r"/mnt\b(?!/)", str(point), line).replace("/usr/share/doc", str(ROOT / "docs")))
    assert commands[0].startswith(f"{BIN}/vosfsd --dev {space} --port {port}")
    assert commands[-1] == "kill %1"
    # As it is pasted: the mount does not wait for anybody to see that the daemon is ready.
    script = "\n".join(
        [commands[0].replace("&", f">{tmp_path}/log 2>&1 &"), f"echo $! >{tmp_path}/pid", *commands[1:-1]]
    )
    try:
        done = subprocess.run(["sh", "-e", "-c", script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        token = (space / "token").read_text().strip()
        request = urllib.request.Request(f"http://127.0.0.1:{port}/vos/files/docs/index.rst")
        request.add_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.read() == (ROOT / "docs/index.rst").read_bytes()
    finally:
        unmount(point)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)


def test_the_configuration_example_is_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs/operations.rst").read_text().split(".. code-block:: toml\n", 1)[1].split("\nA password", 1)[0]
    file = tmp_path / "vosfsd.toml"
    file.write_text("\n".join(line[3:] for line in text.splitlines()))
    loaded = config.load(file)
    assert loaded.base_url == "https://vospace.example.org/vos" and loaded.space.owner == "alice"


def test_all_examples_of_storages_are_valid(tmp_path: Path) -> None:
    blocks = (ROOT / "docs/operations.rst").read_text().split(".. code-block:: toml\n")[1:]
    file = tmp_path / "vosfsd.toml"
    for block in blocks:
        lines = itertools.takewhile(lambda line: line.startswith("   ") or not line, block.splitlines())
        file.write_text("\n".join(line[3:] for line in lines))
        assert config.load(file) != config.Config(base=tmp_path.resolve())
    assert len(blocks) >= 5


def test_the_commands_for_users_work(daemon: Daemon, tmp_path: Path, make_mount: Callable[..., Path]) -> None:
    lines = literal_block((ROOT / "docs/operations.rst").read_text(), "Users and tokens")
    where = f"--dev {daemon.directory}"
    token = tmp_path / "alice.token"
    for line in lines:
        command = line.partition("#")[0].replace("alice.token", str(token)).replace("vosfsd", f"{BIN}/vosfsd", 1)
        done = subprocess.run(["sh", "-c", f"{command} {where}"], input="secret\n", capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert token.stat().st_mode & 0o777 == 0o600
    bearer = {"Authorization": f"Bearer {token.read_text().strip()}"}
    assert daemon.request("PUT", "/files/from-alice", b"hello", bearer)[0] == 201
