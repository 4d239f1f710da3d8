"""A configuration is taken whole or refused in one line."""

from pathlib import Path

import pytest

from vosfs.config import Config, ServerConfig, check, load
from vosfs.errors import QuietError


def write(path: Path, text: str | bytes) -> Path:
    file = path / "vosfs.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    found = load(write(tmp_path, ""))
    assert found == Config(base=tmp_path.resolve())
    assert found.base_url == "http://127.0.0.1:8080/vos" == found.data_url


def test_every_key_is_read(tmp_path: Path) -> None:
    text = """
    [space]
    authority = "a~b"
    gateway = false
    [server]
    host = "::1"
    port = 1
    certificate = "c.pem"
    key = "k.pem"
    role = "metadata"
    [database]
    dsn = "postgresql://h/d"
    [storage]
    url = "https://data/vos/"
    objects = "s3://b/p"
    endpoint = "https://h"
    endpoint_ca = "ca.pem"
    region = "r"
    credentials_file = "k"
    """
    found = load(write(tmp_path, text))
    assert (found.space.authority, found.space.gateway, found.server.port) == ("a~b", False, 1)
    assert found.base_url == "https://[::1]:1/vos"
    assert found.data_url == "https://data/vos"
    assert (found.storage.objects, found.storage.endpoint, found.storage.region) == ("s3://b/p", "https://h", "r")


def test_what_brings_bytes_back(tmp_path: Path) -> None:
    text = """
    [storage]
    objects = "s3://b/p"
    restore_days = 3
    [storages.tape]
    directory = "tape"
    stage_command = ["recall", "--file={path}"]
    """
    found = load(write(tmp_path, text))
    assert found.storage.restore_days == 3 and found.storage.stage_command == ()
    assert found.storages["tape"].stage_command == ("recall", "--file={path}")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[space]\nauthorty = 'x'", "authorty"),
        ("[spaces]\n", "spaces"),
        ("port = 1", "port"),
        ("server = 1", "server"),
        ("[server]\nport = '80'", "port"),
        ("[server]\nport = 80.0", "port"),
        ("[server]\nport = true", "port"),
        ("[space]\ngateway = 1", "gateway"),
        ("[space]\nowner = ['a']", "owner"),
        ("[server]\nport = 65536", "65536"),
        ("[server]\nport = -1", "-1"),
        ("[server]\nprefix = 'vos'", "prefix"),
        ("[server]\nprefix = '/vos/'", "prefix"),
        ("[server]\nprefix = '/'", "prefix"),
        ("[server]\ncertificate = 'c'", "certificate"),
        ("[server]\nkey = 'k'", "certificate"),
        ("[server]\nrole = 'both'", "role"),
        ("[server]\nlog = 'loud'", "log"),
        ("[server]\nrole = 'storage'", "dsn"),
        ("[server]\nrole = 'metadata'\n[database]\ndsn = 'x'", "url"),
        ("[storages.Fast]\ndirectory = 'f'", "up to 15 letters"),
        ("[storages.default]\ndirectory = 'f'", "is not 'default'"),
        ("[storages.'a~b']\ndirectory = 'f'", "up to 15 letters"),
        ("[storages.fast]", "needs a directory of its own"),
        ("[storages]\nfast = 1", "holds tables"),
        ("[storages.fast]\nfolder = 'f'", "has no key 'folder'"),
        ("[storages.fast]\ndirectory = './x/../s'\n[storage]\ndirectory = 's'", "the same place"),
        ("[storages.a]\nobjects = 's3://b/p'\n[storages.c]\nobjects = 's3://b/p/'", "the same place"),
        ("[storages.fast]\ndirectory = 'f'\nurl = 'https://h'", "set [storage] url"),
        ("[storages.fast]\ndirectory = 'f'\nregion = 'r'", "set [storages.fast] objects"),
        ("[storage]\nendpoint = 'https://h'", "set [storage] objects"),
        ("[storage]\nredirect = true", "set [storage] objects"),
        ("[storages.fast]\ndirectory = 'f'\nredirect = true", "set [storages.fast] objects"),
        ("[storage]\ncredentials_file = 'f'", "set [storage] objects"),
        ("[storage]\nobjects = 's3://b/p'\nendpoint = 'h:9000'", "not an http or https URL"),
        ("[storage]\ndirectories = 'a'", "not a list of strings"),
        ("[storage]\ndirectories = ['a']\nstage_command = ['recall', '{path}']", "goes with one directory"),
        ("[storage]\ndirectories = ['a', 1]", "not a list of strings"),
        ("[storage]\ndirectories = ['a', './a']", "the same place"),
        ("[storage]\ndirectories = ['a']\ndirectory = 'b'", "name it among the others"),
        ("[storage]\ndirectories = ['a']\nobjects = 's3://b/p'", "only one of them"),
        ("[storages.x]\ndirectories = ['storage']", "the same place"),
        ("[storage]\nquota = 'much'", "[storage] quota: 'much' is not a number of bytes"),
        ("[storage]\nquota = 5", "quota"),
        ("[storage]\nstage_command = 'recall {path}'", "is not a list of strings"),
        ("[storage]\nstage_command = ['recall', 1]", "is not a list of strings"),
        ("[storage]\nstage_command = ['recall']", "no argument has {path}"),
        ("[storages.a]\nobjects = 's3://b/p'\nstage_command = ['recall', '{path}']", "files in a directory"),
        ("[storage]\nrestore_days = 3", "set [storage] objects"),
        ("[storage]\nobjects = 's3://b/p'\nrestore_days = -1", "no number of days"),
        ("[config]\nbase = 'x'", "config"),
        ("base = 'x'", "base"),
        ("[server\n", "vosfs.toml"),
        ("a = 1\na = 2", "vosfs.toml"),
        (b"[space]\nowner = '\xff'", "vosfs.toml"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(QuietError) as caught:
        load(write(tmp_path, text))
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_a_user_s_mistake(tmp_path: Path) -> None:
    with pytest.raises(QuietError, match="none.toml"):
        load(tmp_path / "none.toml")
    with pytest.raises(QuietError):
        load(tmp_path)


def test_check_returns_what_it_checked() -> None:
    config = Config(server=ServerConfig(port=0))
    assert check(config) is config
