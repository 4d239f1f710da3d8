"""The vos client signs in with client certificates, and with proxies of them, over TLS."""

import datetime
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.clients.support import Client, make_home
from tests.conftest import Daemon, start_daemon
from tests.server.support import vosfsd, where

INHERIT_ALL = bytes.fromhex("300c300a06082b06010505071501")
"""Of RFC 3820: a proxy certificate info that hands on all rights."""
PROXY_INFO = x509.ObjectIdentifier("1.3.6.1.5.5.7.1.14")
DAY = datetime.timedelta(days=1)
DORA = x509.Name(
    [
        x509.NameAttribute(NameOID.COUNTRY_NAME, "XX"),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Observatory, Inc."),
        x509.NameAttribute(NameOID.COMMON_NAME, "Dora Example"),
    ]
)


@dataclass
class Issued:
    """A certificate with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def save(self, file: Path, *chain: "Issued") -> Path:
        """Certificate, key and chain in one file, as the client wants it."""
        key = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        parts = [one.certificate.public_bytes(serialization.Encoding.PEM) for one in (self, *chain)]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"".join([parts[0], key, *parts[1:]]))
        file.chmod(0o600)
        return file


def issue(
    name: x509.Name, issuer: Issued | None = None, *extensions: tuple[x509.ExtensionType, bool], age: int = 0
) -> Issued:
    """A certificate good for a day, ``age`` days ago; signed by itself without an issuer."""
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC) - age * DAY
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(issuer.certificate.subject if issuer else name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - DAY / 2)
        .not_valid_after(now + DAY / 2)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return Issued(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def common(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def authority(name: str) -> Issued:
    usage = x509.KeyUsage(
        digital_signature=False, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    return issue(common(name), None, (x509.BasicConstraints(True, None), True), (usage, True))


def personal(issuer: Issued, name: x509.Name, age: int = 0) -> Issued:
    """Somebody's own certificate."""
    return issue(name, issuer, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False), age=age)


def proxy(of: Issued) -> Issued:
    """A proxy (RFC 3820): its holder signed it with his own certificate, and put a number behind his name."""
    serial = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, "1234567")])
    name = x509.Name([*of.certificate.subject.rdns, serial])
    return issue(name, of, (x509.UnrecognizedExtension(PROXY_INFO, INHERIT_ALL), True))


@pytest.fixture(scope="module")
def root() -> Issued:
    """The authority that the daemon trusts."""
    return authority("Authority of the tests")


@pytest.fixture(scope="module")
def secured(root: Issued, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on https that knows Dora by the name in her certificate."""
    files = tmp_path_factory.mktemp("tls")
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    own = issue(common("127.0.0.1"), root, (names, False)).save(files / "server.pem")
    root.save(files / "ca.pem")
    daemon = start_daemon(
        files / "space", "--tls-cert", str(own), "--tls-key", str(own), "--client-ca", str(files / "ca.pem")
    )
    done = vosfsd(
        "user", *where(daemon), "dora", "--no-password", "--groups", "admin",
        "--certificate", DORA.rfc4514_string(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    yield daemon
    assert daemon.stop() == 0


@pytest.fixture
def client(secured: Daemon, tmp_path: Path) -> Client:
    """The client without credentials; it cannot be told about another authority than the public ones."""
    assert secured.url.startswith("https://")
    return Client(secured, make_home(tmp_path / "home", secured.url), "", ("-k",))


@pytest.mark.parametrize("kind", ["own", "proxy"])
def test_a_certificate_is_its_holder(client: Client, root: Issued, kind: str) -> None:
    dora = personal(root, DORA)
    # Where the client looks by itself.
    file = client.home / ".ssl/cadcproxy.pem"
    if kind == "own":
        dora.save(file)
    else:
        proxy(dora).save(file, dora)
    (client.home / "tree/d").mkdir(parents=True)
    (client.home / "tree/d/f").write_bytes(b"by certificate" * 10_000)
    client.run("vcp", client.home / "tree", client.uri(kind))
    row, _, _ = client.together(
        ("vls", "-l", client.uri(f"{kind}/d")),
        ("vcp", client.uri(f"{kind}/d/f"), client.home / "back"),
        ("vcat", client.uri(f"{kind}/d/f")),
    )
    assert row.out.split()[1] == "dora"
    assert (client.home / "back").read_bytes() == b"by certificate" * 10_000
    client.run("vmv", client.uri(f"{kind}/d/f"), client.uri(f"{kind}/g"))
    client.run("vrm", "-R", client.uri(kind))
    assert kind not in client.run("vls", client.uri()).lines


def test_a_certificate_or_a_token_can_be_named(client: Client, secured: Daemon, root: Issued) -> None:
    file = personal(root, DORA).save(client.home / "other.pem")
    client.together(("vls", "--certfile", file, client.uri()), ("vls", f"--token={secured.token}", client.uri()))
    # Without them the root is shut.
    client.fails("vls", client.uri(), says="PermissionDenied")


def test_certificates_that_say_nothing_are_refused(client: Client, root: Issued) -> None:
    stranger = personal(root, common("Stranger")).save(client.home / "stranger.pem")
    client.fails("vls", "--certfile", stranger, client.uri(), says="NotAuthenticated")
    wrong = personal(authority("Authority of the tests"), DORA)
    files = {
        "of another authority": wrong.save(client.home / "foreign.pem"),
        "expired": personal(root, DORA, age=30).save(client.home / "old.pem"),
        # A proxy is worth as much as what signed it.
        "a proxy of the first": proxy(wrong).save(client.home / "proxy.pem", wrong),
    }
    client.together(*(("vls", "--certfile", file, client.uri()) for file in files.values()), code=None)


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    done = vosfsd("--dev", tmp_path / "space", "--port", "0", "--client-ca", tmp_path / "ca.pem")
    assert done.returncode != 0 and "certificate" in done.stderr
