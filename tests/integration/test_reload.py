"""SIGHUP to a real process: what changes live, what a restart is needed for, and what a bad file does."""

from __future__ import annotations

import base64
import json
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.integration.blocking_client import BlockingClient, connected
from tests.integration.flow_process import FlowProcess, eventually

SWITCHED = "HTTP/1.1 101 Switching Protocols"
FORBIDDEN = "HTTP/1.1 403 Forbidden"


Connect = Callable[[FlowProcess, str], BlockingClient]


@pytest.fixture
def client() -> Iterator[Connect]:
    """Connects with a token."""
    with ExitStack() as stack:

        def opened(server: FlowProcess, token: str) -> BlockingClient:
            return stack.enter_context(connected(server.socket_url, token))

        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    directory = tmp_path_factory.mktemp("reload")
    (directory / "flow.toml").write_text("")
    with FlowProcess(directory, "--config=flow.toml", "--users-query=claims") as server:
        yield server


def reload(server: FlowProcess, settings: str | None = None) -> str:
    """Have the server read its settings again; what it logs of that.

    Args:
        settings: what the file says from then on; None for what it says already.
    """
    before = len(server.log)
    if settings is not None:
        (server.directory / "flow.toml").write_text(settings)
    server.send_signal(signal.SIGHUP)
    eventually(lambda: "Reload: " in server.log[before:], "the settings are read again")
    eventually(lambda: server.request("GET", "/health/live")[0] == 200, "the loop has turned")
    return "\n".join(
        line.partition("Reload: ")[2] for line in server.log[before:].splitlines() if "Reload: " in line
    )


def token(secret: str, user_id: str = "alice") -> str:
    return jwt.encode({"sub": user_id, "exp": int(time.time()) + 600}, secret, "HS512")


def new_secret() -> str:
    return base64.b64encode(secrets.token_bytes(64)).decode()


# --- keys ---------------------------------------------------------------------------------------------


def test_old_tokens_end_with_the_secret(server: FlowProcess, client: Connect) -> None:
    old = (server.data_dir / "secret").read_text().strip()
    alice = client(server, token(old))
    assert alice.join("user:alice")["status"] == "ok"
    fresh = new_secret()
    (server.data_dir / "secret").write_text(fresh)
    assert server.handshake(token(old)) == SWITCHED  # nothing has been read yet
    began = time.monotonic()
    line = reload(server)
    assert line.startswith(
        "the keys of tokens changed; connections closed, as the key of their token has gone: "
    )
    assert alice.closed_with(5.0) == (1000, "token_revoked")
    assert time.monotonic() - began < 5
    assert server.handshake(token(old)) == FORBIDDEN
    bob = client(server, token(fresh, "bob"))
    # The same again: nothing has changed, and nobody is closed.
    assert reload(server) == "nothing changed"
    assert bob.is_open()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.write_text("secret" * 20), "easily guessed"),
        (lambda path: path.write_bytes(b"\xff" * 64), "is not text"),
        (lambda path: path.unlink(), "there is no "),
    ],
)
def test_bad_secret_changes_nothing(
    server: FlowProcess, client: Connect, spoil: Callable[[Path], object], said: str
) -> None:
    path = server.data_dir / "secret"
    good = path.read_text()
    alice = client(server, token(good.strip()))
    spoil(path)
    try:
        line = reload(server, 'rate-limit = "1/1"')
        assert line.startswith("nothing has changed, as the settings are not good: --data-dir: ")
        assert said in line
        assert server.handshake(token(good.strip())) == SWITCHED
        assert all(alice.is_open() for _ in range(20))  # with the old rate limit
        assert spoil is None or path.exists() == (said != "there is no ")  # none is made
    finally:
        path.write_text(good)
        (server.directory / "flow.toml").write_text("")


def test_pem_key(tmp_path: Path, client: Connect) -> None:
    first, second = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def write(key: ec.EllipticCurvePrivateKey) -> None:
        pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / "key.pem").write_bytes(pem)

    def signed(key: ec.EllipticCurvePrivateKey) -> str:
        return jwt.encode({"sub": "alice", "exp": int(time.time()) + 600}, key, "ES256")

    write(first)
    options = ("--users-query=claims", "--jwt-algorithms=ES256", "--jwt-key-file=key.pem")
    with FlowProcess(tmp_path, *options) as server:
        alice = client(server, signed(first))
        assert alice.is_open()
        write(second)
        assert reload(server).endswith("the key of their token has gone: 1")
        assert alice.closed_with() == (1000, "token_revoked")
        assert server.handshake(signed(first)) == FORBIDDEN
        assert server.handshake(signed(second)) == SWITCHED


def test_key_of_a_jwks(tmp_path: Path, client: Connect) -> None:
    keys = {kid: ec.generate_private_key(ec.SECP256R1()) for kid in ("one", "two", "three")}

    def write(*kids: str) -> None:
        entries = [
            {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(keys[kid].public_key())), "kid": kid}
            for kid in kids
        ]
        (tmp_path / "jwks.json").write_text(json.dumps({"keys": entries}))

    def signed(kid: str, user_id: str) -> str:
        claims = {"sub": user_id, "exp": int(time.time()) + 600}
        return jwt.encode(claims, keys[kid], "ES256", {"kid": kid})

    write("one", "two")
    options = ("--users-query=claims", "--jwt-algorithms=ES256", "--jwt-jwks=jwks.json")
    with FlowProcess(tmp_path, *options) as server:
        alice, bob = client(server, signed("one", "alice")), client(server, signed("two", "bob"))
        write("two", "three")
        assert reload(server).endswith("the key of their token has gone: 1")
        assert alice.closed_with() == (1000, "token_revoked")
        assert bob.is_open()
        assert server.handshake(signed("three", "carol")) == SWITCHED


class _Keys(BaseHTTPRequestHandler):
    """Hands out what a file says."""

    def do_GET(self) -> None:
        body = self.server.file.read_bytes()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


def test_key_at_a_url(tmp_path: Path, client: Connect) -> None:
    keys = {kid: ec.generate_private_key(ec.SECP256R1()) for kid in ("one", "two")}
    file = tmp_path / "jwks.json"

    def write(kid: str) -> None:
        entry = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(keys[kid].public_key()))
        file.write_text(json.dumps({"keys": [{**entry, "kid": kid}]}))

    def signed(kid: str, user_id: str) -> str:
        claims = {"sub": user_id, "exp": int(time.time()) + 600}
        return jwt.encode(claims, keys[kid], "ES256", {"kid": kid})

    write("one")
    web = HTTPServer(("127.0.0.1", 0), _Keys)
    web.file = file  # type: ignore[attr-defined]
    thread = Thread(target=web.serve_forever)
    thread.start()
    url = f"http://127.0.0.1:{web.server_port}/"
    try:
        (tmp_path / "flow.toml").write_text(f'jwt-jwks = "{url}"')
        options = ("--users-query=claims", "--jwt-algorithms=ES256", "--config=flow.toml")
        with FlowProcess(tmp_path, *options) as server:
            alice = client(server, signed("one", "alice"))
            write("two")
            assert reload(server).endswith("the key of their token has gone: 1")
            assert alice.closed_with() == (1000, "token_revoked")
            bob = client(server, signed("two", "bob"))
            wrong = reload(server, f'jwt-jwks = "{url}"\njwt-issuer = "x"\nrate-limit = "0"')
            assert "--rate-limit" in wrong
            file.write_text("no JWKS")  # an identity provider that is broken takes nobody down
            assert reload(server, f'jwt-jwks = "{url}"') == "nothing changed"
            line = reload(server, f'jwt-jwks = "{url}elsewhere"\nrate-limit = "1/1"')
            assert line.endswith("--jwt-jwks: the keys cannot be fetched, as the line before says")
            assert all(bob.is_open() for _ in range(10))
            assert server.handshake(signed("two", "bob")) == SWITCHED
            write("one")
            line = reload(server, f'jwt-jwks = "{url}elsewhere"')
            assert line.startswith("jwt-jwks, the keys of tokens changed; connections closed")
            assert bob.closed_with() == (1000, "token_revoked")
            assert server.handshake(signed("one", "alice")) == SWITCHED
    finally:
        web.shutdown()
        thread.join()
        web.server_close()


# --- limits -------------------------------------------------------------------------------------------


def test_limits_of_open_connections(server: FlowProcess, client: Connect) -> None:
    secret = (server.data_dir / "secret").read_text().strip()
    alice = client(server, token(secret))
    assert alice.join("user:alice")["status"] == "ok"
    assert [alice.ask("user:alice", "activity")["status"] for _ in range(6)] == ["ok"] * 6
    assert reload(server, 'rate-limit = "0.1/2"\nmax-topics = 1') == "max-topics, rate-limit changed"
    replies = [alice.ask("user:alice", "activity") for _ in range(3)]
    assert replies[-1]["response"]["reason"] == "rate_limited"
    assert alice.join("users:online")["response"] == {"reason": "too many channels joined"}
    # Both are undone.
    assert reload(server, "") == "max-topics, rate-limit changed"
    bob = client(server, token(secret, "bob"))
    assert bob.join("user:bob")["status"] == bob.join("users:online")["status"] == "ok"


def test_limits_of_newcomers(server: FlowProcess, client: Connect) -> None:
    secret = (server.data_dir / "secret").read_text().strip()
    alice = client(server, token(secret))
    assert reload(server, 'max-devices = 1\ndevice-policy = "refuse"') == "max-devices, device-policy changed"
    assert server.handshake(token(secret)) == FORBIDDEN
    assert alice.is_open()
    assert reload(server, "max-sessions = 1") == "max-sessions, max-devices, device-policy changed"
    assert server.handshake(token(secret, "dave")).startswith("HTTP/1.1 503")
    assert reload(server, "handshake-rate = 0.001") == "max-sessions, handshake-rate changed"
    assert server.handshake(token(secret, "dave")) == SWITCHED
    assert server.handshake(token(secret, "dave")).startswith("HTTP/1.1 503")
    reload(server, "")


def test_log_level(server: FlowProcess) -> None:
    assert reload(server, 'log-level = "error"') == "log-level changed"
    secret = (server.data_dir / "secret").read_text().strip()
    before = len(server.log)
    assert server.handshake(token(secret, "erin")) == SWITCHED
    assert reload(server, 'log-level = "info"') == "log-level changed"
    assert "Starting session for user: erin" not in server.log[before:]
    assert server.handshake(token(secret, "frank")) == SWITCHED
    assert "Starting session for user: frank" in server.log


# --- what is not live, and what is not good -----------------------------------------------------------


def test_what_needs_a_restart_is_said(server: FlowProcess) -> None:
    lines = reload(server, "join-rate = 20\nidle-timeout = 7\nretention-days = 3").splitlines()
    assert lines == ["join-rate changed", "a restart is needed for idle-timeout, retention-days"]
    # Keys and their algorithms belong together.
    lines = reload(
        server, 'jwt-algorithms = ["ES256"]\njwt-key-file = "key.pem"\njoin-rate = 20'
    ).splitlines()
    assert lines == ["nothing changed", "a restart is needed for jwt-algorithms, jwt-key-file"]
    reload(server, "join-rate = 20\nidle-timeout = 7\nretention-days = 3")
    # As long as they differ.
    lines = reload(server).splitlines()
    assert lines == ["nothing changed", "a restart is needed for idle-timeout, retention-days"]
    assert reload(server, "") == "join-rate changed"


def test_listen_needs_a_restart(tmp_path: Path) -> None:
    server = FlowProcess(tmp_path, "--config=flow.toml")
    port = server.socket_url.removesuffix("/socket").rpartition(":")[2]
    server._command = [word for word in server._command if not word.startswith("--listen")]
    (tmp_path / "flow.toml").write_text(f'listen = ["tcp:{port}:interface=127.0.0.1"]')
    with server:
        lines = reload(server, 'listen = ["tcp:0:interface=127.0.0.1"]\nping-rate = 9').splitlines()
        assert lines == ["ping-rate changed", "a restart is needed for listen"]
        assert server.handshake("none") == FORBIDDEN  # the port is the old one


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('rate-limit = "many"', "--rate-limit: got 'many'"),
        ("rate-limit = ", "is not a TOML file"),
        ("rate-limits = 1", "there is no such setting; did you mean rate-limit?"),
        ('rate-limit = "0.1/1"\njwt-key-file = "key.pem"', "holds public keys"),
        ('rate-limit = "0.1/1"\ncheck-origin = ["*"]', "--check-origin: got '*'"),
        ('rate-limit = "0.1/1"\nsecret-file = "/nowhere/secret"', "there is no '/nowhere/secret'"),
    ],
)
def test_bad_file_changes_nothing(server: FlowProcess, client: Connect, settings: str, said: str) -> None:
    secret = (server.data_dir / "secret").read_text().strip()
    alice = client(server, token(secret))
    line = reload(server, settings)
    assert line.startswith("nothing has changed, as the settings are not good: ")
    assert said in line
    assert "\n" not in line
    assert all(alice.is_open() for _ in range(10))
    assert server.handshake(token(secret)) == SWITCHED
    assert reload(server, "") == "nothing changed"


def test_missing_file_changes_nothing(server: FlowProcess) -> None:
    (server.directory / "flow.toml").unlink()
    assert "--config: cannot read" in reload(server)
    assert reload(server, "") == "nothing changed"


def test_many_signals_and_one_amid_the_start(tmp_path: Path) -> None:
    (tmp_path / "flow.toml").write_text("")
    server = FlowProcess(tmp_path, "--config=flow.toml")
    server.spawn()
    try:
        eventually((server.data_dir / "lock").exists, "it starts", 20)
        (tmp_path / "flow.toml").write_text("join-rate = 20")
        server.send_signal(signal.SIGHUP)
        eventually(lambda: "Reload: join-rate changed" in server.log, "it is read once started", 30)
        for number in range(30):
            (tmp_path / "flow.toml").write_text(f"join-rate = {30 + number}")
            server.send_signal(signal.SIGHUP)
        eventually(lambda: server.request("GET", "/health/ready")[0] == 200, "it lives")
        assert reload(server, "join-rate = 10").endswith("join-rate changed")
        assert server.stop() in (0, -15)
    finally:
        server.kill()
