"""The programs of the vos client, unpatched, as subprocesses: each user of them has a home directory of their own.

The client finds a service through a registry on the network.  It keeps a copy of that registry in the home directory
and trusts the copy while it is young, so a copy dated into the future is all that it takes to lead it here.
"""

import concurrent.futures
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.conftest import BIN, Daemon, free_port
from tests.server.support import AUTHORITY, node, vosfsd

RESOURCE = "ivo://" + AUTHORITY.replace("~", "/")
SHORT = "gw"
"""The short name of the space in the client's own configuration: ``gw:path``."""
OWNER = "owner"
ANSWER_S = 60
CORES = 2
FAR_FUTURE_S = 4_000_000_000

T = TypeVar("T")


def present(value: T | None) -> T:
    """A value that must be there."""
    assert value is not None
    return value


@dataclass
class Done:
    """What a program left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return [line for line in self.out.splitlines() if line]


@dataclass
class Client:
    """The vos programs in the hands of one user, in one container of a space."""

    daemon: Daemon
    home: Path
    folder: str = ""
    options: tuple[str, ...] = ()
    """What is given to every program: the credentials."""

    def uri(self, path: str = "") -> str:
        """The long name of a node below the container."""
        return f"vos://{AUTHORITY}" + (f"{self.folder}/{path}".rstrip("/") or "/")

    def short(self, path: str = "") -> str:
        """The short name of a node below the container, which the client writes out with ``!``."""
        return f"{SHORT}:{self.folder.lstrip('/')}/{path}"

    def run(self, program: str, *arguments: object, code: int | None = 0, **env: str) -> Done:
        """Run a program; it must end with ``code`` (None: with any but 0), and never with a traceback."""
        done = subprocess.run(
            [str(BIN / program), *self.options, *map(str, arguments)], cwd=self.home, timeout=ANSWER_S,
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TZ": "UTC", **env},
        )  # fmt: skip
        as_wanted = done.returncode != 0 if code is None else done.returncode == code
        assert as_wanted, f"{program} {arguments} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def fails(self, program: str, *arguments: object, says: str) -> Done:
        """Run a program that must fail and name the reason."""
        done = self.run(program, *arguments, code=None)
        assert says in done.err, done.err
        return done

    def together(self, *commands: tuple[object, ...], code: int | None = 0) -> list[Done]:
        """Run programs that do not disturb each other, as many at once as there are cores; each ends with ``code``.

        The first goes ahead: it fetches the capabilities, which the client keeps in a file.
        """

        def run(command: tuple[object, ...]) -> Done:
            return self.run(str(command[0]), *command[1:], code=code)

        first = run(commands[0])
        with concurrent.futures.ThreadPoolExecutor(CORES) as pool:
            return [first, *pool.map(run, commands[1:])]

    def all_fail(self, *commands: tuple[object, ...], says: str) -> list[Done]:
        """Run programs together that must all fail for one reason."""
        done = self.together(*commands, code=None)
        for command, one in zip(commands, done, strict=True):
            assert says in one.err, (command, one.err)
        return done

    def names(self, path: str = "") -> list[str]:
        """The names in a container, as the service shows them to its owner: ``vls`` would take 0.3 s."""
        return [child.uri.rpartition("/")[2] for child in node(self.daemon, f"{self.folder}/{path}").children]


def with_token(daemon: Daemon, home: Path, folder: str, token: str) -> Client:
    """The client of somebody with a token: in one word with its option, because a token may begin with a hyphen."""
    return Client(daemon, home, folder, (f"--token={token}",))


def make_home(home: Path, url: str) -> Path:
    """A home directory in which the space's identifier leads to the daemon at ``url``."""
    registry, caches = home / ".config/cadc-registry", home / ".config/vos/caches"
    registry.mkdir(parents=True)
    caches.mkdir(parents=True)
    (registry / "resource-caps").write_text(f"{RESOURCE} = {url}/capabilities\n")
    # The other thing it would ask the network for: whether there is a newer client.
    (caches / ".pypi_versions.json").write_text('{"releases": {}}')
    for file in (registry / "resource-caps", caches / ".pypi_versions.json"):
        os.utime(file, (FAR_FUTURE_S, FAR_FUTURE_S))
    (home / ".config/vos/vos-config").write_text(f"[vos]\nresourceID = {RESOURCE} {SHORT}\n")
    return home


def start_configured(directory: Path, settings: str, port: int = 0) -> Daemon:
    """Start a daemon from a configuration file with more ``[server]`` settings; its token file is the owner's."""
    directory.mkdir(exist_ok=True)
    file = directory / "vosfsd.toml"
    file.write_text(f'[space]\nowner = "{OWNER}"\n[server]\nport = {port or free_port()}\n{settings}')
    done = vosfsd("user", "--config", file, OWNER, "--no-password", "--groups", "admin")
    assert done.returncode == 0, done.stderr
    done = vosfsd("token", "--config", file, OWNER, directory / "token")
    assert done.returncode == 0, done.stderr
    log = directory.parent / f"{directory.name}.log"
    with open(log, "a") as stream:
        process = subprocess.Popen(
            [BIN / "vosfsd", "--config", file], stdout=subprocess.PIPE, stderr=stream, text=True
        )  # fmt: skip
    line = present(process.stdout).readline()
    assert line.startswith("READY url="), f"{line!r}\n{log.read_text()[-3000:]}"
    return Daemon(line.split("=", 1)[1].strip(), directory / "token", directory, process)
