"""Configuration of the daemon: one TOML file, frozen dataclasses, every field documented under itself.

Unknown tables and keys, wrong types and impossible combinations are errors at start.  Secrets are named by file.
"""

import dataclasses
import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vosfs.errors import QuietError
from vosfs.log import LEVELS

ROLES = ("all", "metadata", "storage")


@dataclass(frozen=True)
class SpaceConfig:
    """``[space]``: what is served."""

    authority: str = "vosfs.local~vospace"
    """Authority of the space's URIs: ``vos://AUTHORITY/path``; the IVO identifier with ``~`` for ``/``."""
    owner: str = "admin"
    """User who owns the root when the space is made."""
    gateway: bool = True
    """Offer the gateway binding, which mounts use instead of plain VOSpace."""


@dataclass(frozen=True)
class ServerConfig:
    """``[server]``: where it is served."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8080
    """Port to listen on."""
    prefix: str = "/vos"
    """Path under which all resources lie.  Not ``/vospace``: with netrc credentials the vos client rewrites that."""
    public_url: str = ""
    """URL of the prefix as clients see it, when a proxy stands in front; default ``http://HOST:PORT/PREFIX``."""
    certificate: str = ""
    """PEM file with certificate chain; serves https."""
    key: str = ""
    """PEM file with the certificate's key."""
    client_ca: str = ""
    """PEM file with the authorities whose client certificates, and proxies of them, are accepted."""
    private_endpoints: bool = False
    """Let pullToVoSpace, pushFromVoSpace and callbacks go to addresses that are not public."""
    role: str = "all"
    """``all``, ``metadata`` or ``storage``."""
    log: str = "info"
    """Least level of log lines: debug, info, warning or error."""


@dataclass(frozen=True)
class DatabaseConfig:
    """``[database]``: where nodes are kept."""

    dsn: str = ""
    """libpq connection string or ``postgresql://`` URL; empty: SQLite.  Keep passwords in a libpq passfile."""
    file: str = "vosfs.db"
    """SQLite file, relative to the configuration file."""


@dataclass(frozen=True)
class StorageConfig:
    """``[storage]``: where bytes are kept."""

    directory: str = "storage"
    """Directory of the blobs, relative to the configuration file; with NGAS, of what waits to be sent there."""
    directories: tuple[str, ...] = ()
    """Several directories instead, one on each disk: all of them, an earlier ``directory`` too if there was one."""
    quota: str = ""
    """No more bytes than that are kept here (``20 GiB``, ``10T``): what is more is refused as by a full disk."""
    objects: str = ""
    """Keep blobs as objects of ``s3://BUCKET/PREFIX``, ``az://CONTAINER/PREFIX`` or ``gs://BUCKET/PREFIX``, not in
    the directory, or as files of ``ngas://HOST:PORT,HOST:PORT/PREFIX``.  The prefix is for one space: whatever looks like
    a blob there and is none of its blobs is removed."""
    endpoint: str = ""
    """URL of the object service, if it is not the cloud's own; default: ``AWS_ENDPOINT_URL``."""
    endpoint_ca: str = ""
    """PEM file with the authorities of the end-point's certificate, if they are not public ones."""
    region: str = ""
    """Region of an S3 bucket; default: ``AWS_REGION``, or us-east-1."""
    credentials_file: str = ""
    """File of lines ``NAME = value`` with the object service's key, named as in the environment
    (``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``; ``NGAS_USER``, ``NGAS_PASSWORD``); default: the environment."""
    direct: bool = True
    """Let mounts read long files from the object store itself, with URLs signed for one object and a few minutes.  A mount that
    does not reach ``endpoint`` under the same name reads through the daemon."""
    redirect: bool = False
    """Send HTTP clients there too (307), for contents that are one whole object.  They must reach ``endpoint``."""
    restore_days: int = 0
    """Ask S3 for objects that a lifecycle rule has put into an archive class (GLACIER, DEEP_ARCHIVE), for so many days; 0: such
    objects cannot be read."""
    stage_command: tuple[str, ...] = ()
    """Program and arguments that bring a file of the directory back from tape, ``{path}`` standing for it: the directory is
    of a file system that moves files there and leaves them without blocks.  Run without a shell."""
    url: str = ""
    """Public URL of the storage role, if it is another process; default: this one's."""
    offered: bool = True
    """Whether whoever may write a container may choose this storage for it; else only members of the group ``admin``."""


@dataclass(frozen=True)
class Config:
    """All of it."""

    space: SpaceConfig = field(default_factory=SpaceConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    storages: dict[str, StorageConfig] = field(default_factory=dict)
    """``[storages.NAME]``: further ones, which containers choose by the property ``ivo://vosfs/core#storage``."""
    base: Path = field(default_factory=Path)
    """Directory that relative paths start from (not a key of the file)."""

    @property
    def base_url(self) -> str:
        """Public URL of the resources' prefix."""
        scheme = "https" if self.server.certificate else "http"
        host = f"[{self.server.host}]" if ":" in self.server.host else self.server.host
        return (self.server.public_url or f"{scheme}://{host}:{self.server.port}{self.server.prefix}").rstrip("/")

    @property
    def data_url(self) -> str:
        """Public URL of the byte end-points' prefix."""
        return (self.storage.url or self.base_url).rstrip("/")


def _table(cls: type[Any], name: str, given: dict[str, Any]) -> Any:
    known = {f.name: f for f in dataclasses.fields(cls)}
    given = dict(given)
    for key, value in given.items():
        if key not in known:
            raise QuietError(f"[{name}] has no key {key!r}; it has: {', '.join(known)}")
        if known[key].type == tuple[str, ...]:
            if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
                raise QuietError(f"[{name}] {key}: {value!r} is not a list of strings")
            given[key] = tuple(value)
        elif type(value) is not known[key].type and type(value).__name__ != known[key].type:
            raise QuietError(
                f"[{name}] {key}: {value!r} is not a {getattr(known[key].type, '__name__', known[key].type)}"
            )
    return cls(**given)


STORAGE_NAME = re.compile(r"[a-z][a-z0-9-]{0,14}")
"""Short, as it is part of every locator there."""


def _check_storage(table: str, storage: StorageConfig) -> None:
    if storage.endpoint and not storage.endpoint.startswith(("https://", "http://")):
        raise QuietError(f"[{table}] endpoint: {storage.endpoint!r} is not an http or https URL")
    if storage.quota:
        size_of(storage.quota, f"[{table}] quota: ")
    if storage.directories:
        if storage.objects:
            raise QuietError(f"[{table}] has objects, and directories: it can have only one of them")
        if storage.directory != StorageConfig.directory:
            raise QuietError(f"[{table}] has directory, and directories: name it among the others")
        if storage.stage_command:
            raise QuietError(f"[{table}] stage_command goes with one directory")
    if storage.restore_days < 0:
        raise QuietError(f"[{table}] restore_days: {storage.restore_days} is no number of days")
    if storage.stage_command:
        if storage.objects:
            raise QuietError(f"[{table}] stage_command is about files in a directory, not about objects")
        if not any("{path}" in part for part in storage.stage_command[1:]):
            raise QuietError(f"[{table}] stage_command: no argument has {{path}} for the file")
    if not storage.objects:
        for name in ("endpoint", "endpoint_ca", "region", "credentials_file", "redirect", "restore_days"):
            if getattr(storage, name):
                raise QuietError(f"[{table}] {name} is about an object store: set [{table}] objects too")


UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
SIZE_MAX = 2**62


def size_of(text: str, what: str = "") -> int:
    """So many bytes: ``500000``, ``20 GiB``, ``3T``.  QuietError."""
    number = text.strip().upper().removesuffix("B").removesuffix("I").rstrip()
    unit = number[-1:] if number[-1:] in UNITS else ""
    digits = number.removesuffix(unit).rstrip()
    if digits.isascii() and digits.isdigit() and len(digits) < 20 and int(digits) * UNITS[unit] <= SIZE_MAX:
        return int(digits) * UNITS[unit]
    raise QuietError(f"{what}{text[:50]!r} is not a number of bytes: write 500000, 20 GiB or 3T")


def _places(storage: StorageConfig) -> list[tuple[str, str]]:
    if storage.objects:
        return [(storage.objects.rstrip("/"), storage.endpoint)]
    return [(os.path.normpath(path), "") for path in storage.directories or (storage.directory,)]


def _occupy(table: str, storage: StorageConfig, places: set[tuple[str, str]]) -> None:
    for place in _places(storage):
        if place in places:
            raise QuietError(f"[{table}] is the same place as another storage: each would collect the other's blobs")
        places.add(place)


def check(config: Config) -> Config:
    """QuietError for values that cannot be meant."""
    server = config.server
    if server.role not in ROLES:
        raise QuietError(f"[server] role: {server.role!r} is not one of {', '.join(ROLES)}")
    if server.log not in LEVELS:
        raise QuietError(f"[server] log: {server.log!r} is not one of {', '.join(LEVELS)}")
    if not 0 <= server.port <= 65535:
        raise QuietError(f"[server] port: {server.port} is not a port")
    if not server.prefix.startswith("/") or server.prefix.endswith("/"):
        raise QuietError(f"[server] prefix: {server.prefix!r} must start with '/' and not end with one")
    if bool(server.certificate) != bool(server.key):
        raise QuietError("[server] certificate and key go together")
    if server.client_ca and not server.certificate:
        raise QuietError("[server] client_ca needs a certificate of the server's own")
    if server.role != "all" and not config.database.dsn:
        raise QuietError("separate roles share a database: set [database] dsn to a PostgreSQL one")
    _check_storage("storage", config.storage)
    places: set[tuple[str, str]] = set()
    _occupy("storage", config.storage, places)
    for name, storage in config.storages.items():
        table = f"storages.{name}"
        if not STORAGE_NAME.fullmatch(name) or name == "default":
            raise QuietError(f"[{table}]: a name has up to 15 letters a-z, digits and '-', and is not 'default'")
        _check_storage(table, storage)
        if storage.url:
            raise QuietError(f"[{table}] url: the storage role has one, and all storages: set [storage] url")
        if not storage.objects and not storage.directories and storage.directory == StorageConfig.directory:
            raise QuietError(f"[{table}] needs a directory of its own, or objects")
        _occupy(table, storage, places)
    if server.role == "metadata" and not config.storage.url:
        raise QuietError("the metadata role must know where the storage role is: set [storage] url")
    return config


def load(path: Path) -> Config:
    """The configuration in a TOML file.  QuietError says what is wrong in one line."""
    try:
        with path.open("rb") as file:
            given = tomllib.load(file)
    except OSError as exc:
        raise QuietError(f"{path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise QuietError(f"{path}: {exc}") from exc
    tables = {"space": SpaceConfig, "server": ServerConfig, "database": DatabaseConfig, "storage": StorageConfig}
    made: dict[str, Any] = {}
    for name, table in given.items():
        if name == "storages" and isinstance(table, dict):
            for key, value in table.items():
                if not isinstance(value, dict):
                    raise QuietError(f"{path}: [storages] holds tables: [storages.NAME], not {key!r}")
            made[name] = {key: _table(StorageConfig, f"storages.{key}", value) for key, value in table.items()}
            continue
        if name not in tables or not isinstance(table, dict):
            raise QuietError(f"{path}: no table [{name}]; there are: {', '.join(tables)}, storages.NAME")
        made[name] = _table(tables[name], name, table)
    return check(Config(**made, base=path.resolve().parent))


def credentials(file: Path) -> dict[str, str]:
    """``[storage] credentials_file``: lines ``NAME = value``, the names in small letters; comments begin with ``#``."""
    try:
        lines = file.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise QuietError(f"[storage] credentials_file: {file}: {getattr(exc, 'strerror', 'not a text')}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        name, equals, value = line.partition("=")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not equals:
            # Not the line itself: it may be a secret.
            raise QuietError(f"[storage] credentials_file: {file}: line {number} is not like NAME = value")
        found[name.strip().lower()] = value.strip().strip("'\"")
    return found
