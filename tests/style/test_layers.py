"""The architecture holds: imports go down only, each third-party package has one door, nothing catches everything."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(p for folder in ("vosfs", "server") for p in (ROOT / folder).rglob("*.py"))

LAYERS = [
    {"vosfs"},
    {"vosfs.errors", "vosfs.log", "vosfs.device", "vosfs.libfuse", "vosfs.checksum", "vosfs.heap", "vosfs.locks", "vosfs.disk"},
    {"vosfs.uri", "vosfs.config", "vosfs.wire", "vosfs.metadata", "vosfs.backends", "vosfs.cache"},
    {"vosfs.client", "vosfs.metadata.node", "vosfs.metadata.job", "vosfs.metadata.walk", "vosfs.cache.ranges", "vosfs.cache.buffers", "vosfs.cache.scratch", "vosfs.cache.journal", "vosfs.cache.segments"},
    {"vosfs.metadata.content", "vosfs.metadata.charges", "vosfs.metadata.allowance", "vosfs.metadata.xattr", "vosfs.metadata.xml", "vosfs.metadata.store", "vosfs.backends.backend"},
    {"vosfs.metadata.messages", "vosfs.metadata.sql", "vosfs.metadata.libpq", "vosfs.backends.memory", "vosfs.backends.posix", "vosfs.backends.uploads", "vosfs.backends.storages", "vosfs.backends.sums", "vosfs.cache.kept", "vosfs.cache.readahead"},
    {"vosfs.metadata.sqljobs", "vosfs.metadata.sqlaudit", "vosfs.metadata.sqlquota", "vosfs.metadata.sqlsteps", "vosfs.backends.roots", "vosfs.backends.bounded", "vosfs.metadata.subtree", "vosfs.metadata.behind", "vosfs.backends.ngams", "vosfs.backends.slow", "vosfs.backends.archived", "vosfs.backends.objecterrors"},
    {"vosfs.metadata.memory", "vosfs.metadata.sqlstore", "vosfs.metadata.gateway", "vosfs.session", "vosfs.backends.blobs", "vosfs.backends.objects", "vosfs.backends.failover"},
    {"vosfs.metadata.sqlite", "vosfs.metadata.cached", "vosfs.metadata.vospace", "vosfs.cache.blocks", "vosfs.backends.ngasblobs", "vosfs.backends.direct"},
    {"vosfs.metadata.postgres", "vosfs.metadata.ahead", "vosfs.backends.transfer", "vosfs.cache.file", "vosfs.backends.ngas"},
    {"vosfs.staging", "vosfs.opening", "vosfs.standing"},
    {"vosfs.listing"},
    {"vosfs.filesystem"},
    {"vosfs.fuse"},
    {"vosfs.mount"},
    {"vosfs.recover"},
    {"vosfs.cli"},
]  # fmt: skip
"""A module imports from layers above its own only."""

DOORS = {
    "pyfuse3": {"vosfs.libfuse"},
    "asks": {"vosfs.session"},
    "httptools": {"vosfs.wire"},
    "psycopg": {"vosfs.metadata.postgres", "vosfs.metadata.libpq"},
    "lxml": {"vosfs.metadata.xml", "vosfs.metadata.vospace"},
    "argon2": {"server.auth"},
    "obstore": {"vosfs.backends.objects", "vosfs.backends.objecterrors"},
    "sqlite3": {"vosfs.metadata.sqlite", "server.daemon"},
    "zlib_ng": {"vosfs.checksum"},
}
PORTS = {"vosfs.metadata.store", "vosfs.backends.backend"}
ADAPTERS = {
    "vosfs.metadata.sqlite", "vosfs.metadata.postgres", "vosfs.metadata.memory", "vosfs.backends.posix",
    "vosfs.backends.memory", "vosfs.backends.objects", "vosfs.backends.objecterrors", "vosfs.backends.uploads",
    "vosfs.backends.ngas",
    "vosfs.backends.ngasblobs", "vosfs.backends.failover", "vosfs.backends.ngams", "vosfs.backends.transfer",
    "vosfs.metadata.vospace", "vosfs.backends.roots", "vosfs.backends.slow", "vosfs.backends.archived",
}  # fmt: skip
COMPOSITION = {"vosfs.mount", "server.daemon", "server.importer"}
KIN = {
    "vosfs.backends.roots": {"vosfs.backends.posix"},
    "vosfs.metadata.postgres": {"vosfs.metadata.sqlite"},
    "vosfs.backends.transfer": {"vosfs.metadata.vospace"},
    "vosfs.backends.objects": {"vosfs.backends.uploads", "vosfs.backends.archived", "vosfs.backends.objecterrors"},
    "vosfs.backends.archived": {"vosfs.backends.uploads"},
    "vosfs.backends.ngas": {"vosfs.backends.ngasblobs", "vosfs.backends.failover", "vosfs.backends.ngams"},
    "vosfs.backends.ngasblobs": {"vosfs.backends.failover", "vosfs.backends.ngams"},
    "vosfs.backends.failover": {"vosfs.backends.ngams"},
    "vosfs.backends.slow": {"vosfs.backends.posix"},
}
"""Adapters that lean on one another: PostgreSQL renders statements as SQLite does; transfers go by the tree's paths; of
S3 there is one request that the library does not make; NGAS is a protocol, servers, blobs, and their backend; what is slow is
a directory with a command, and several directories are one each."""


def name_of(path: Path) -> str:
    """The dotted name of a module."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(path: Path) -> set[str]:
    """Every module that a module imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def layer_of(name: str) -> int:
    """The index of a vosfs module's layer."""
    return next(index for index, layer in enumerate(LAYERS) if name in layer)


def ours(path: Path) -> set[str]:
    """The imports that are modules of this project."""
    known = {name_of(p) for p in MODULES}
    return {name for name in imports_of(path) if name in known} - {name_of(path)}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    name = name_of(path)
    packages = {"vosfs", "vosfs.metadata", "vosfs.backends", "vosfs.cache", "server"}
    for imported in ours(path) - packages:
        if name.startswith("vosfs"):
            assert not imported.startswith("server"), f"{name} imports {imported}"
            assert layer_of(imported) < layer_of(name), f"{name} imports {imported}, which is not below it"
        else:
            assert imported not in ("vosfs.filesystem", "vosfs.fuse", "vosfs.mount", "vosfs.cli"), (
                f"{name} imports {imported}"
            )
            assert not imported.startswith("vosfs.cache"), f"{name} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_third_party_packages_have_one_door(path: Path) -> None:
    for imported in imports_of(path):
        doors = DOORS.get(imported.split(".")[0])
        assert doors is None or name_of(path) in doors, f"{name_of(path)} imports {imported}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_composition_roots_name_adapters(path: Path) -> None:
    name = name_of(path)
    named = ours(path) & ADAPTERS - KIN.get(name, set())
    assert name in COMPOSITION or not named, f"{name} imports {named}"
    if name in PORTS:
        assert not ours(path) & ADAPTERS


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_swallows_everything(path: Path) -> None:
    """``except Exception`` stands only at the boundaries, which log it; BaseException is always raised again."""
    allowed = {"server.app": 1, "server.jobs": 2, "server.http": 1, "vosfs.fuse": 1}
    broad = 0
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ExceptHandler):
            continue
        assert node.type is not None, f"{path}:{node.lineno}: bare except"
        caught = ast.unparse(node.type)
        if caught == "BaseException":
            ends = any(isinstance(inner, ast.Raise) for inner in ast.walk(node)) or "_exit" in ast.unparse(
                path_function(path, node)
            )
            assert ends, f"{path}:{node.lineno}: BaseException is not raised again"
        if caught == "Exception":
            broad += 1
    assert broad <= allowed.get(name_of(path), 0), f"{path}: {broad} broad handlers"


def path_function(path: Path, handler: ast.AST) -> ast.AST:
    """The function around a handler."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.lineno <= handler.lineno <= (
            node.end_lineno or 0
        ):  # type: ignore[attr-defined]
            return node
    return handler


def test_documents_name_every_configuration_key() -> None:
    """Each field of the configuration has its docstring, and the limits of the mount's options are in the help."""
    tree = ast.parse((ROOT / "vosfs/config.py").read_text())
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        fields = [(a, b) for a, b in zip(cls.body, cls.body[1:] + [None], strict=True) if isinstance(a, ast.AnnAssign)]
        for field, after in fields:
            if cls.name != "Config" or ast.unparse(field.target) == "base":
                assert isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant), (
                    f"{cls.name}.{ast.unparse(field.target)}"
                )


def test_no_leftovers() -> None:
    """No markers of unfinished work, and no paths of one machine."""
    words = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|/wo" + r"rk/|NotImplemented" + r"\b")
    for folder in ("vosfs", "server", "scripts", "docs"):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in (".py", ".rst", ".sh") and "_build" not in path.parts:
                for number, line in enumerate(path.read_text().splitlines(), 1):
                    assert not words.search(line), f"{path}:{number}: {line.strip()}"
