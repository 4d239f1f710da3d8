"""Who is asking, and how safely: TLS, certificates and proxies of them, tokens, challenges, the public URL."""

import base64
import http.client
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import BIN, Daemon, free_port, start_daemon
from tests.server.support import ROOT, create, is_fault, log_text, node_document, store, vosfsd, where
from tests.vospace.support import (
    ANONYMOUS,
    PULL,
    PUSH,
    UWS,
    VOS,
    XML,
    Job,
    by_parameters,
    core,
    endpoints,
    move,
    push,
    read,
    synctrans,
    transfer,
    valid,
)

holds = pytest.mark.holds
PROXY = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\nproxyCertInfo=critical,language:id-ppl-inheritAll\n"
USER = "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
AUTHORITY = "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\n"
SERVER = "subjectAltName=IP:127.0.0.1\n"


class Authority:
    """Makes certificates with openssl, each in a directory of this run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def make(self, name: str, subject: str, extensions: str, issuer: str = "") -> None:
        """``name.pem`` and ``name.key``; signed by ``issuer``, or by itself."""
        conf = self.directory / f"{name}.conf"
        conf.write_text(extensions)
        self._openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-multivalue-rdn",
                      "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        signer = ["-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key"] if issuer else ["-signkey", f"{name}.key"]
        self._openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-set_serial", str(len(list(self.directory.iterdir()))),
                      "-days", "2", "-extfile", conf.name, "-out", f"{name}.pem")  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        done = subprocess.run(["openssl", *arguments], cwd=self.directory, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr

    def context(self, *chain: str) -> ssl.SSLContext:
        """A client that trusts the authority and shows this chain, its own certificate first."""
        context = ssl.create_default_context(cafile=str(self.directory / "ca.pem"))
        if chain:
            file = self.directory / ("-".join(chain) + ".chain")
            file.write_text("".join((self.directory / f"{name}.pem").read_text() for name in chain))
            context.load_cert_chain(file, self.directory / f"{chain[0]}.key")
        return context


@dataclass
class Secure:
    """A daemon that speaks TLS, and who made its certificate."""

    daemon: Daemon
    authority: Authority

    def ask(
        self, chain: tuple[str, ...], path: str, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """A request of somebody with a chain of certificates."""
        client = http.client.HTTPSConnection(
            "127.0.0.1", self.daemon.port, timeout=20, context=self.authority.context(*chain)
        )
        try:
            client.request(method, "/vos" + path, body, headers)
            with client.getresponse() as answer:
                return answer.status, answer.headers, answer.read()
        finally:
            client.close()


@pytest.fixture(scope="session")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    """A daemon with a certificate, for which Alice's certificate is user ``alice``."""
    directory = tmp_path_factory.mktemp("tls")
    authority = Authority(directory)
    authority.make("ca", "/O=Grid/CN=Root", AUTHORITY)
    authority.make("server", "/O=Grid/CN=127.0.0.1", SERVER, "ca")
    authority.make("alice", "/O=Grid/OU=People/CN=Alice A", USER, "ca")
    authority.make("proxy", "/O=Grid/OU=People/CN=Alice A/CN=1234", PROXY, "alice")
    authority.make("proxy2", "/O=Grid/OU=People/CN=Alice A/CN=1234/CN=5678", PROXY, "proxy")
    authority.make("sub", "/O=Grid/CN=Sub", AUTHORITY, "ca")
    authority.make("carol", "/O=Grid/OU=People/CN=Carol", USER, "sub")
    authority.make("mallory", "/O=Grid/OU=People/CN=Mallory", USER, "ca")
    authority.make("fake", "/O=Grid/OU=People/CN=Alice A", USER)
    authority.make("notproxy", "/O=Grid/OU=People/CN=Alice A/CN=9", USER, "alice")
    daemon = start_daemon(
        directory / "space", "--tls-cert", str(directory / "server.pem"), "--tls-key", str(directory / "server.key"),
        "--client-ca", str(directory / "ca.pem"),
    )  # fmt: skip
    for user, name in (("alice", "CN=Alice A,OU=People,O=Grid"), ("carol", "CN=Carol,OU=People,O=Grid")):
        done = vosfsd("user", *where(daemon), user, "--no-password", "--certificate", name)
        assert done.returncode == 0, done.stderr
    made = Secure(daemon, authority)
    bearer = {"Authorization": f"Bearer {daemon.token}"}
    assert (
        made.ask((), "/nodes", "POST", node_document("", "ContainerNode", {"publicread": "true"}), **bearer)[0] == 200
    )
    for user in ("alice", "carol"):
        rights = {"publicread": "false", "groupwrite": user}
        assert (
            made.ask((), f"/nodes/{user}", "PUT", node_document(f"/{user}", "ContainerNode", rights), **bearer)[0]
            == 201
        )
        assert vosfsd("user", *where(daemon), user, "--no-password", "--groups", user).returncode == 0
    yield made
    assert daemon.process.poll() is None and "Traceback" not in log_text(daemon)
    assert daemon.stop() == 0


def whoami(secure: Secure, chain: tuple[str, ...], home: str) -> str:
    """Creator of a node that somebody made in a home."""
    name = f"/{home}/by-{'-'.join(chain)}"
    status, _, body = secure.ask(chain, "/nodes" + name, "PUT", node_document(name))
    assert status == 201, body
    found = {e.get("uri"): e.text for e in valid(body).iter(VOS + "property")}
    return found[core("creator")] or ""


@holds("R363")
def test_old_tls_is_refused(secure: Secure) -> None:
    def connects(version: str) -> bool:
        done = subprocess.run(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{secure.daemon.port}", version, "-cipher", "ALL:@SECLEVEL=0"],
            input=b"", capture_output=True, timeout=20,
        )  # fmt: skip
        return done.returncode == 0

    assert [connects(version) for version in ("-tls1", "-tls1_1", "-tls1_2")] == [False, False, True]
    assert secure.daemon.url.startswith("https://")


@holds("R364", "R362", "R361")
@pytest.mark.parametrize(
    ("chain", "user"),
    [(("alice",), "alice"), (("proxy", "alice"), "alice"), (("proxy2", "proxy", "alice"), "alice"), (("carol", "sub"), "carol")],
)  # fmt: skip
def test_certificates_and_proxies(secure: Secure, chain: tuple[str, ...], user: str) -> None:
    assert whoami(secure, chain, user) == user
    other = {"alice": "carol", "carol": "alice"}[user]
    status, _, body = secure.ask(chain, f"/nodes/{other}")
    assert (status, body.split()[0]) == (403, b"PermissionDenied")


@holds("R364", "R23")
def test_a_stranger_with_a_certificate(secure: Secure) -> None:
    status, headers, body = secure.ask(("mallory",), "/nodes/alice")
    assert status in (401, 403) and body.split()[0] in (b"NotAuthenticated", b"PermissionDenied")
    assert headers.get_all("WWW-Authenticate")
    assert secure.ask((), "/nodes/alice")[0] == 403
    assert secure.ask((), "/nodes?limit=0")[0] == 200


@holds("R364")
@pytest.mark.parametrize("chain", [("fake",), ("notproxy", "alice")])
def test_certificates_of_nobody_we_trust(secure: Secure, chain: tuple[str, ...]) -> None:
    """Neither a self-signed certificate with a good name, nor one that a user signed without its being a proxy."""
    try:
        status, _, _ = secure.ask(chain, "/nodes/alice")
    except (ssl.SSLError, ConnectionError):
        return
    assert status in (401, 403)


@holds("R354", "R174")
def test_a_secure_end_point_is_called_one(secure: Secure) -> None:
    name = "/alice/n"
    both = transfer(ROOT + name, PUSH, ["httpput", "httpsput"])
    status, headers, _ = secure.ask(("alice",), "/synctrans", "POST", both, **XML)
    assert status == 303 and headers["Location"].startswith(secure.daemon.url)
    status, _, body = secure.ask(("alice",), headers["Location"].removeprefix(secure.daemon.url))
    ((protocol, url),) = endpoints(valid(body))
    assert (status, protocol, url.startswith("https://")) == (200, "httpsput", True)
    assert secure.ask((), url.removeprefix(secure.daemon.url), "PUT", b"bytes")[0] == 201


@holds("R366", "R23")
def test_challenges(secure: Secure, space: Daemon, folder: str) -> None:
    for path, extra, status in (("/nodes/alice", {}, 403), ("/nodes/alice", {"Authorization": "Bearer no"}, 401)):
        answer = secure.ask((), path, **extra)
        given = answer[1].get_all("WWW-Authenticate") or []
        assert answer[0] == status
        schemes = {text.split()[0].lower() for text in given}
        assert {"bearer", "ivoa_bearer", "ivoa_x509"} <= schemes
        for text in given:
            if text.startswith("ivoa_"):
                assert 'standard_id="ivo://ivoa.net/sso#' in text
    given = secure.ask((), "/capabilities")[1].get_all("WWW-Authenticate") or []
    assert {"bearer", "ivoa_x509"} <= {text.split()[0].lower() for text in given}
    # Where no certificate is asked for, none is promised.
    create(space, f"{folder}/n", properties={"publicread": "false"})
    client = http.client.HTTPConnection("127.0.0.1", space.port, timeout=20)
    try:
        client.request("GET", f"/vos/nodes{folder}/n")
        with client.getresponse() as answered:
            assert answered.status == 403 and answered.read()
            given = answered.headers.get_all("WWW-Authenticate") or []
    finally:
        client.close()
    assert "ivoa_x509" not in {text.split()[0] for text in given} and any(text.startswith("Bearer") for text in given)


@holds("R367")
def test_who_was_recognised(secure: Secure, space: Daemon, alice: dict[str, str]) -> None:
    for method in ("GET", "HEAD"):
        known = space.request(method, "/capabilities", headers=alice)[1]
        assert {name.lower(): value for name, value in known.items()}["x-vo-authenticated"] == "alice"
        unknown = space.request(method, "/capabilities", headers=ANONYMOUS)[1]
        assert "x-vo-authenticated" not in {name.lower() for name in unknown}
        assert secure.ask(("proxy", "alice"), "/capabilities", method)[1]["x-vo-authenticated"] == "alice"


@holds("R365", "R361", "R362")
def test_tokens(space: Daemon, folder: str, alice: dict[str, str]) -> None:
    token = alice["Authorization"].removeprefix("Bearer ")
    store(space, f"{folder}/n", b"x")
    assert space.request("PUT", f"/nodes{folder}", node_document(folder), {**alice, **XML})[0] in (403, 409)
    for scheme in ("Bearer", "bearer", "BEARER"):
        headers = {"Authorization": f"{scheme} {token}"}
        job = synctrans(space, transfer(f"{ROOT}{folder}/n", PULL, ["httpget"]), headers)
        assert job.text("/owner") == "alice"
    for method in (
        "ivo://ivoa.net/sso#OAuth",
        "ivo://ivoa.net/sso#token",
        "vos://cadc.nrc.ca~vospace/CADC/std/Auth#token-1.0",
    ):
        query = {
            "TARGET": f"{ROOT}{folder}/n",
            "DIRECTION": PULL,
            "PROTOCOL": core("httpget"),
            "SECURITYMETHOD": method,
        }
        status, _, body = by_parameters(space, alice, **query)
        assert (status, [e.get("uri") for e in valid(body).iter(VOS + "securityMethod")]) == (200, [method])


@holds("R23")
@pytest.mark.parametrize("value", ["Bearer nonsense", "Basic " + base64.b64encode(b"alice:wrong").decode(), "Digest x"])
def test_wrong_credentials(space: Daemon, value: str) -> None:
    for resource in ("/nodes?limit=0", "/transfers", "/synctrans?TARGET=x"):
        status, headers, body = space.request("GET", resource, headers={"Authorization": value})
        assert (status, body.split()[0]) == (401, b"NotAuthenticated") and "WWW-Authenticate" in headers


@holds("R369")
def test_anonymous_reading(space: Daemon, folder: str) -> None:
    store(space, f"{folder}/n", b"public")
    assert space.request("GET", f"/files{folder}/n", headers=ANONYMOUS)[2] == b"public"
    job = synctrans(space, transfer(f"{ROOT}{folder}/n", PULL, ["httpget"]), ANONYMOUS)
    assert space.request("GET", job.endpoint(), auth=False)[2] == b"public"
    for method, resource in (("PUT", "/files"), ("DELETE", "/nodes")):
        answer = space.request(method, f"{resource}{folder}/n", b"x" if method == "PUT" else None, ANONYMOUS)
        assert is_fault(answer, 403, "PermissionDenied")


# -- the public URL ------------------------------------------------------------------------------------------------


@pytest.fixture
def behind(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose clients know it by another URL."""
    port = free_port()
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "vosfsd.toml").write_text(
        f"[server]\nport = {port}\npublic_url = 'https://vo.example.org/my/space/'\n[space]\nowner = 'boss'\n"
    )
    conf = tmp_path / "space" / "vosfsd.toml"
    token = tmp_path / "token"
    assert vosfsd("user", "--config", conf, "boss", "--no-password", "--groups", "admin").returncode == 0
    assert vosfsd("token", "--config", conf, "boss", token).returncode == 0
    with open(tmp_path / "space.log", "w") as log:
        process = subprocess.Popen(
            [BIN / "vosfsd", "--config", conf], stdout=subprocess.PIPE, stderr=log, text=True
        )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("READY ")
    daemon = Daemon(f"http://127.0.0.1:{port}/vos", token, tmp_path / "space", process)
    yield daemon
    assert daemon.stop() == 0


@holds("R17")
def test_urls_are_the_public_ones(behind: Daemon) -> None:
    public = "https://vo.example.org/my/space"
    assert create(behind, "/n")[1]["Location"] == f"{public}/nodes/n"
    location = behind.request("POST", "/synctrans", transfer(f"{ROOT}/n", PUSH, ["httpsput"]), XML)[1]["Location"]
    assert location.startswith(f"{public}/transfers/")
    job = Job(behind, behind.url + location.removeprefix(public).removesuffix("/results/transferDetails"))
    assert job.results()["transferDetails"] == location
    ((_, url),) = endpoints(read(behind, location.replace(public, "")))
    assert url.startswith(public + "/")
    assert behind.request("PUT", url.replace(public, ""), b"bytes", auth=False)[0] == 201
    answer = job.post("/phase", PHASE="RUN")
    assert answer[0] == 403
    assert behind.request("DELETE", job.url)[1]["Location"] == f"{public}/transfers"
    for element in read(behind, "/capabilities").iter("accessURL"):
        assert (element.text or "").startswith(public + "/")
    made = behind.request("POST", "/transfers", transfer(f"{ROOT}/n", f"{ROOT}/m", keep="0"), XML)[1]["Location"]
    assert made.startswith(f"{public}/transfers/")
    for ref in read(behind, "/transfers").iter(UWS + "jobref"):
        assert (ref.get("{http://www.w3.org/1999/xlink}href") or "").startswith(f"{public}/transfers/")


@holds("R236", "R335")
def test_rights_are_looked_at_when_the_bytes_come(space: Daemon, home: str, alice: dict[str, str]) -> None:
    store(space, f"{home}/n", b"old", alice)
    job = synctrans(space, transfer(f"{ROOT}{home}/n", PUSH, ["httpput"]), alice)
    url = job.endpoint()
    closed = node_document(home, "ContainerNode", {"groupwrite": "", "groupread": "", "publicread": "false"})
    assert space.request("POST", f"/nodes{home}", closed, XML)[0] == 200
    assert space.request("PUT", url, b"new", auth=False)[0] == 403
    assert space.request("GET", f"/files{home}/n")[2] == b"old"


@holds("R200", "R140")
def test_jobs_act_for_their_owner(space: Daemon, home: str, alice: dict[str, str], bob: dict[str, str]) -> None:
    _, answer = push(space, f"{home}/n", b"x", headers=alice)
    assert answer[0] == 201
    move(space, f"{home}/n", f"{home}/m", headers=bob).failed("PermissionDenied")
    move(space, f"{home}/n", f"{home}/m", headers=alice).completed()
    assert space.request("GET", f"/nodes{home}/m", headers=alice)[0] == 200
