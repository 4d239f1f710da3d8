"""What is measured: the local disk, and mounts with a server of their own."""

import abc
import contextlib
import json
import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from bench.processes import (
    AM_ROOT,
    BIN,
    START_S_MAX,
    UNMOUNT,
    UNMOUNT_LAZILY,
    BenchError,
    Processes,
    free_port,
    last_line,
    listens,
    mounted_under,
    ready_line,
    run,
    uninterrupted,
    until,
)
from bench.relay import Relay

RCLONE_DRAIN_S_MAX = 240
"""For rclone to bring its cache to the server before it is unmounted."""


class Target(Protocol):
    """A file system to measure.  ``stop`` may be called at any time, and again."""

    point: Path
    processes: Processes
    remounts: bool

    def start(self) -> None: ...
    def remount(self) -> None: ...
    def far(self, round_trip_ms: float) -> None: ...
    def stop(self) -> None: ...


class Local:
    """A directory on the disk."""

    remounts = False

    def __init__(self, directory: Path) -> None:
        self.processes = Processes(directory)
        self.point = directory / "mnt"

    def start(self) -> None:
        self.point.mkdir()

    def remount(self) -> None:
        raise BenchError("the local disk is not remounted")

    def far(self, round_trip_ms: float) -> None:
        raise BenchError("the local disk is not far away")

    def stop(self) -> None:
        """Nothing runs."""


class Mounted(abc.ABC):
    """What mounts have in common: a server, perhaps far away, a client, a mount point, and their end."""

    remounts = True

    def __init__(self, directory: Path, may_be_far: bool = False) -> None:
        self.processes = Processes(directory)
        self.point = directory / "mnt"
        self._directory = directory
        self._may_be_far = may_be_far
        self._relay: Relay | None = None

    @abc.abstractmethod
    def start(self) -> None:
        """Start the server and mount."""

    @abc.abstractmethod
    def _mount(self) -> None: ...

    def _seen(self, port: int) -> int:
        """Where the client finds a port of the server's: behind the relay if it may be far away."""
        if not self._may_be_far:
            return port
        self._relay = Relay(port)
        return self._relay.port

    def far(self, round_trip_ms: float) -> None:
        """The server is that far away from now on."""
        if self._relay is None:
            raise BenchError("started without a relay")
        self._relay.far(round_trip_ms)

    def _await(self, kind: str, process: subprocess.Popen[bytes], holds: Callable[[], object], fails: str) -> None:
        """Wait until a process does its work.  BenchError with its last words if it ends before, or takes too long."""
        if not until(lambda: process.poll() is not None or holds(), START_S_MAX) or process.poll() is not None:
            raise BenchError(f"{fails}: {last_line(self.processes.logs / f'{kind}.log')}")

    def _await_mount(self, client: subprocess.Popen[bytes], fails: str) -> None:
        self._await("client", client, lambda: mounted_under(self.point), fails)
        os.statvfs(self.point)

    def _unmount(self) -> None:
        self.processes.weigh()
        run(*UNMOUNT, self.point)
        self.processes.wait("client")

    def remount(self) -> None:
        """Without the local cache: this is all where there is none on the disk."""
        self._unmount()
        self._mount()

    def stop(self) -> None:
        with uninterrupted():
            try:
                if mounted_under(self.point):
                    self._unmount()
            finally:
                _detach(self.point)
                self.processes.end("client")
                self.processes.weigh()
                self.processes.end("server")
                if self._relay is not None:
                    self._relay.close()


class Sshfs(Mounted):
    """sshfs with default caching, on an sshd of our own.  Data is cached in the kernel only."""

    def __init__(self, directory: Path, may_be_far: bool = False) -> None:
        super().__init__(directory, may_be_far)
        self._data = directory / "data"
        self._keys = directory / "ssh"
        self._port = 0

    def start(self) -> None:
        for path in (self.point, self._data, self._keys):
            path.mkdir()
        if AM_ROOT:
            Path("/run/sshd").mkdir(exist_ok=True)  # for privilege separation; Debian's service makes it otherwise
        for name in ("host", "user"):
            run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._keys / name)
        port = free_port()
        config = self._keys / "sshd_config"
        config.write_text(
            f"Port {port}\nListenAddress 127.0.0.1\nHostKey {self._keys}/host\n"
            f"AuthorizedKeysFile {self._keys}/user.pub\nPidFile none\nStrictModes no\nUsePAM no\nUseDNS no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nMaxStartups 100\n"
            "Subsystem sftp internal-sftp\n"
        )
        server = self.processes.spawn("server", shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-e", "-f", config)
        self._await("server", server, lambda: listens(port), "sshd does not start")
        self._port = self._seen(port)
        self._mount()

    def _mount(self) -> None:
        user = pwd.getpwuid(os.getuid()).pw_name
        options = ["-o", "allow_other,default_permissions"] if AM_ROOT else []
        client = self.processes.spawn(
            "client", "sshfs", "-f", "-F", "/dev/null", "-p", self._port,
            f"{user}@127.0.0.1:{self._data}", self.point,
            "-o", f"IdentityFile={self._keys}/user,IdentitiesOnly=yes,BatchMode=yes",
            "-o", "StrictHostKeyChecking=no,UserKnownHostsFile=/dev/null", *options,
        )  # fmt: skip
        self._await_mount(client, "sshfs does not mount")


class Vosfs(Mounted):
    """The mount, on a daemon of our own with SQLite and a directory of files."""

    def __init__(self, directory: Path, may_be_far: bool = False) -> None:
        super().__init__(directory, may_be_far)
        self._url = ""
        self._token_file: object = ""
        self._mounts = 0

    def start(self) -> None:
        self.point.mkdir()
        self._serve()
        self._mount()

    def _serve(self) -> None:
        if self._may_be_far:
            return self._serve_behind_relay()
        fields = self._ready("--dev", self._directory / "space", "--port", 0)
        self._url, self._token_file = fields["url"], fields["token_file"]

    def _ready(self, *options: object, more: Mapping[str, str] | None = None) -> dict[str, str]:
        """Start the daemon; what it says of itself."""
        log = self.processes.logs / "server.log"
        server = self.processes.spawn("server", BIN / "vosfsd", *options, more=more)
        self._await("server", server, lambda: ready_line(log), "vosfsd does not start")
        return dict(part.split("=", 1) for part in ready_line(log).split()[1:])

    def _serve_behind_relay(self) -> None:
        """With a configuration, because the daemon tells clients its URL: that is the relay's."""
        space, port = self._directory / "space", free_port()
        space.mkdir()
        self._url = f"http://127.0.0.1:{self._seen(port)}/vos"
        config, self._token_file = space / "vosfsd.toml", space / "token"
        config.write_text(
            f'[server]\nport = {port}\npublic_url = "{self._url}"\n[storage]\ndirectory = "{space}/blobs"\n'
        )
        self._ready("--config", config)
        run(BIN / "vosfsd", "user", "--config", config, "admin", "--no-password")
        run(BIN / "vosfsd", "token", "--config", config, "admin", self._token_file)

    def _cache(self) -> Path:
        return self._directory / f"cache-{self._mounts}"

    def _mount(self) -> None:
        self._mounts += 1
        options = ["-o", "allow_other"] if AM_ROOT else []
        run(
            BIN / "vosfs", "mount", self._url, self.point, "--token-file", self._token_file,
            "--cache-dir", self._cache(), *options,
        )  # fmt: skip
        status = subprocess.run(
            [BIN / "vosfs", "status", "--json", self.point], capture_output=True, check=True, timeout=START_S_MAX
        )
        self.processes.adopt("client", int(json.loads(status.stdout)[0]["pid"]))

    def _unmount(self) -> None:
        """The next mount has a cache directory that was not there before."""
        self.processes.weigh()
        try:
            run(BIN / "vosfs", "umount", self.point)
        finally:
            with contextlib.suppress(OSError), open(self.processes.logs / "client.log", "a") as log:
                log.write((self._cache() / "vosfs.log").read_text())
        self.processes.wait("client")
        shutil.rmtree(self._cache(), ignore_errors=True)


class Rclone(Mounted):
    """rclone mount with its full cache, over ``rclone serve webdav``: it acknowledges what only its cache has."""

    def __init__(self, directory: Path, may_be_far: bool = False) -> None:
        super().__init__(directory, may_be_far)
        self._cache = directory / "cache"
        self._remote: list[object] = []

    def start(self) -> None:
        for path in (self.point, self._cache):
            path.mkdir()
        self._remote = self._serve()
        self._mount()

    def _serve(self) -> list[object]:
        """Start the server; the words that tell rclone where it is."""
        data, port = self._directory / "data", free_port()
        data.mkdir()
        server = self._spawn("server", "serve", "webdav", data, "--addr", f"127.0.0.1:{port}",
                             "--dir-cache-time", "1s")  # fmt: skip
        self._await("server", server, lambda: listens(port), "rclone does not serve")
        return [":webdav:", "--webdav-url", f"http://127.0.0.1:{self._seen(port)}", "--webdav-vendor", "other"]

    def _spawn(self, kind: str, *words: object) -> subprocess.Popen[bytes]:
        return self.processes.spawn(kind, "rclone", *words, more=self._environment())

    def _environment(self) -> dict[str, str]:
        return {"RCLONE_CONFIG": "/dev/null", "XDG_CACHE_HOME": str(self._cache / "xdg")}

    def _mount(self) -> None:
        where, *how = self._remote
        client = self._spawn(
            "client", "mount", where, self.point, *how, "--vfs-cache-mode", "full", "--cache-dir", self._cache / "c",
            "--vfs-cache-max-size", "20G", "-q", *(["--allow-other", "--default-permissions"] if AM_ROOT else []),
        )  # fmt: skip
        self._await_mount(client, "rclone does not mount")

    def remount(self) -> None:
        self._unmount()
        shutil.rmtree(self._cache / "c", ignore_errors=True)
        self._mount()

    def _clean(self) -> bool:
        """Whether everything in the cache is on the server: it goes there 5 s after a close."""
        for path in (self._cache / "c" / "vfsMeta").rglob("*"):
            with contextlib.suppress(OSError, ValueError):
                if path.is_file() and json.loads(path.read_text()).get("Dirty"):
                    return False
        return True

    def _unmount(self) -> None:
        until(self._clean, RCLONE_DRAIN_S_MAX)
        super()._unmount()


def _detach(point: Path) -> None:
    """What is left of a mount that could not be taken down in order."""
    if mounted_under(point):
        with contextlib.suppress(BenchError):
            run(*UNMOUNT_LAZILY, point)
