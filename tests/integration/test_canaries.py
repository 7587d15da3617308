"""Secrets that are watched for: whatever goes wrong, none of them turns up where somebody may read it.

A server runs with secrets that can be recognised, and is led into about a hundred failures of all
kinds. Then everything that it has said is searched for them: the log, what it printed, the bodies of
its errors, its metrics, what it shows of sessions, its arguments.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from hashlib import sha256
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import jwt
import pytest

from flowtx.config import load
from tests.integration.flow_process import TWISTD, FlowProcess, eventually, free_port, run, run_sql
from tests.integration.rawclient import TEXT, frame

FLOWTX = str(Path(sys.executable).with_name("flowtx"))

APPLICATION = """
from flowtx import Channel, Router, ok


class RoomChannel(Channel):
    async def join(self, payload):
        if "crash" in payload:
            raise RuntimeError("the join crashes")
        return ok({})

    async def handle_in(self, event, payload):
        if event == "crash":
            text = payload["text"]  # which stands in a frame of the traceback
            raise RuntimeError(f"the room crashes over {len(text)} characters")
        if event == "illegal":
            return payload
        return None


router = Router().channel("room:*", RoomChannel)
"""


class Canaries(dict[str, str]):
    """Secrets by what they are, and where they were found."""

    def forms(self, secret: str) -> Iterator[bytes]:
        """Yield the forms in which a secret may be written."""
        data = secret.encode()
        yield data
        yield quote(secret, safe="").encode()
        yield quote(secret).encode()
        yield json.dumps(secret)[1:-1].encode()
        yield repr(secret)[1:-1].encode()
        yield data.hex().encode()
        for ahead in range(3):
            # What is the same in base64 whatever stands before and after it.
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                whole = (len(data) + ahead) // 3 * 4
                yield encode(b"\0" * ahead + data)[4 if ahead else 0 : whole]

    def found(self, texts: Mapping[str, bytes]) -> list[str]:
        """Tell which of them are in which text, with what stands around."""
        hits = []
        for kind, secret in self.items():
            for form in set(self.forms(secret)):
                for place, text in texts.items():
                    at = text.find(form)
                    if at >= 0:
                        around = text[max(0, at - 120) : at + len(form) + 20]
                        hits.append(f"{kind} in {place}: {around!r}")
        return hits


def test_the_search_finds_each_form() -> None:
    secret = "a/b+c=d e@f:Ω\"'x0123456789"
    canaries = Canaries(secret=secret)
    for text in (
        secret.encode(),
        f"url={quote(secret)}".encode(),
        json.dumps({"x": secret}).encode(),
        secret.encode().hex().encode(),
        *(base64.b64encode(b"y" * ahead + secret.encode() + b"z" * 9) for ahead in range(5)),
        base64.urlsafe_b64encode(b"Bearer " + secret.encode()),
    ):
        assert canaries.found({"there": text}), text
    assert not canaries.found({"there": b"nothing of it"})


class Provocations:
    """Leads a server into failures, and keeps what it says to that."""

    def __init__(self, server: FlowProcess, canaries: Canaries, secret: str, api_key: str) -> None:
        self.server = server
        self.canaries = canaries
        self.answers: list[bytes] = []
        self.count = 0
        self._secret = secret
        self._api_key = api_key
        self.client_port = int(urlsplit(server.socket_url).port or 0)
        self.admin_port = int(server.admin_url.rpartition(":")[2])

    # --- tokens

    def token(self, user_id: str = "alice", key: str | None = None, **claims: object) -> str:
        body = {"sub": user_id, "exp": int(time.time()) + 600, "jti": f"jti-{len(self.canaries)}", **claims}
        return self.watch(jwt.encode(body, key or self._secret, "HS512"))

    def watch(self, token: str) -> str:
        """Count the parts of a token among the secrets."""
        for part in token.split(".")[1:]:
            if len(part) > 20:
                self.canaries[f"token {len(self.canaries)}"] = part[:200]
        return token

    def bad_tokens(self) -> Iterator[str]:
        good = self.token()
        yield good[:-6] + "AAAAAA"
        yield self.token(exp=int(time.time()) - 3_600)
        yield self.token(user_id="bob;DROP")
        yield self.token(key="another secret of sufficient length 0123456789 abcdefghijklmnopqrstuv")
        yield self.watch(jwt.encode({"sub": "alice", "exp": 9_999_999_999}, "", "none"))
        yield self.watch(f"{good}.{good.split('.')[1]}")
        yield self.watch("canary-that-is-no-token-AbCdEfGhIjKlMnOpQrStUvWxYz")
        yield self.watch(good + "A" * 9_000)
        yield self.token(exp="soon", aud="AudienceThatIsAlsoQuiteLong")
        yield good.replace(".", "%2E") + "%ff%00"

    # --- the socket

    def upgrade(self, token: str, place: str, *lines: str, line: str | None = None) -> bytes:
        target, headers = "/socket/websocket?vsn=2.0.0", list(lines)
        if place == "query":
            target += f"&token={token}"
        elif place == "subprotocol":
            encoded = base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")
            headers.append(f"Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.{encoded}")
        else:
            headers.append(f"Authorization: Bearer {token}")
        usual = [
            f"Host: 127.0.0.1:{self.client_port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
            f"Cookie: session={self.canaries['cookie']}",
        ]
        return "\r\n".join([line or f"GET {target} HTTP/1.1", *usual, *headers, "", ""]).encode()

    def knock(self, request: bytes) -> bytes:
        """Send a handshake that is refused, or given up."""
        with closing(socket.create_connection(("127.0.0.1", self.client_port), 10)) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            return self._take(connection)

    def _take(self, connection: socket.socket) -> bytes:
        connection.settimeout(10)
        got = b""
        with suppress(ConnectionResetError, TimeoutError):
            while part := connection.recv(65_536):
                got += part
        self.answers.append(got)
        self.count += 1
        return got

    def refused_handshakes(self) -> None:
        for token in self.bad_tokens():
            for place in ("query", "subprotocol", "header"):
                assert b" 101 " not in self.knock(self.upgrade(token, place)), (place, token)
        token = self.token()
        path = f"/socket/websocket?token={token}&vsn=2.0.0"
        for request in (
            self.upgrade(token, "query", "Origin: https://evil.example"),
            self.upgrade(token, "header", "Origin: null"),
            self.upgrade(token, "query", "Sec-WebSocket-Version: 8"),
            self.upgrade(token, "query", "Sec-WebSocket-Key: again"),
            self.upgrade(token, "query", "X: " + "y" * 20_000),
            self.upgrade(token, "query", "Transfer-Encoding: chunked"),
            self.upgrade(token, "query", line=f"POST {path} HTTP/1.1"),
            self.upgrade(token, "query", line=f"GET {path} HTTP/1.0"),
            self.upgrade(token, "query", line=f"GET /elsewhere?token={token} HTTP/1.1"),
            self.upgrade(token, "query", line=f"GET {path}#{token} HTTP/1.1"),
            self.upgrade(token, "query", line=f"GET http://evil.example{path} HTTP/1.1"),
            self.upgrade(token, "query", line=f"GET {path}&vsn=9 HTTP/1.1"),
            self.upgrade(token, "query", line=f"GET {path} nonsense HTTP/1.1"),
            f"GET /socket/{token} HTTP/1.1\r\n\r\n".encode(),
            f"GET {path} HTTP/1.1\r\nnonsense {token}\r\n\r\n".encode(),
            f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
            token.encode() + b"\r\n\r\n",
            f"GET {path}".encode(),
        ):
            self.knock(request)

    def messages(self) -> None:
        """Join, and send what is wrong in many ways."""
        payload = {"text": self.canaries["payload"]}
        for messages in (
            [["room:1", "crash", payload]],
            [["room:1", "illegal", payload]],
            [["room:1", "phx_join", {**payload, "crash": 1}]],
            [["room:1", "access_token", {"access_token": token}] for token in self.bad_tokens()],
            [["room:1", "access_token", {"access_token": self.token("bob")}]],
            [["user:alice", "mark_read", {"ids": [self.canaries["payload"]]}]],
            [["user:alice", "subscribe", {"types": payload}]],
            [["user:bob", "phx_join", payload]],
            [["room:none", "event", payload]],
            [["room:1", "phx_reply", payload]],
            [["room:1", "e" * 4_000, payload]],
            [[None, None, payload]],
        ):
            with closing(self._joined()) as connection:
                for topic, event, body in messages:
                    text = json.dumps(["1", "7", topic, event, body])
                    connection.sendall(frame(TEXT, text.encode()))
                self._drain(connection)
        raw = self.canaries["payload"].encode()
        for garbage in (
            frame(TEXT, raw) * 12,
            frame(TEXT, raw + b"\xff\xfe"),
            frame(TEXT, raw, masked=False),
            frame(TEXT, raw, rsv=4),
            frame(TEXT, b'["1","2","room:1","x",{"a":"' + raw * 3_000 + b'"}]'),
            frame(3, raw),
            frame(2, raw),
            raw,
        ):
            with closing(self._joined()) as connection:
                connection.sendall(garbage)
                self._drain(connection)

    def _joined(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.client_port), 10)
        connection.sendall(self.upgrade(self.token(), "query"))
        connection.settimeout(10)
        assert b" 101 " in connection.recv(4_096)
        for topic in ("room:1", "user:alice"):
            connection.sendall(frame(TEXT, json.dumps(["1", "1", topic, "phx_join", {}]).encode()))
        return connection

    def _drain(self, connection: socket.socket) -> None:
        # A Ping at the end: its Pong tells that all before it was read.
        with suppress(OSError):
            connection.sendall(frame(9, b"the end"))
            while b"the end" not in connection.recv(65_536):
                pass
        self.count += 1

    # --- the API

    def ask(self, method: str, path: str, body: object = None, key: str | None = "", **headers: str) -> int:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        given["Cookie"] = f"session={self.canaries['cookie']}"
        if key is not None:
            given.setdefault("Authorization", f"Bearer {key or self._api_key}")
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            given.setdefault("Content-Type", "application/json")
        with closing(HTTPConnection("127.0.0.1", self.admin_port, timeout=20)) as connection:
            connection.request(method, path, data, given)
            answer = connection.getresponse()
            self.answers.append(str(answer.getheaders()).encode() + answer.read())
        self.count += 1
        return answer.status

    def calls(self) -> None:
        payload = {"text": self.canaries["payload"]}
        push = {"user_ids": ["alice"], "type": "note", "payload": payload}
        wrong = self.canaries["wrong key"]
        key = self._api_key
        own = self.canaries["api key"]
        assert self.ask("POST", "/api/notifications", push, own) == 202
        assert self.ask("POST", "/api/notifications", {**push, "idempotency_key": "k"}) == 202
        other = {**push, "payload": {"more": payload}, "idempotency_key": "k"}
        assert self.ask("POST", "/api/notifications", other) == 409
        assert self.ask("GET", "/api/sessions", key=wrong) == 401
        assert self.ask("GET", "/api/sessions", Authorization=f"Basic {key}") == 401
        assert self.ask("GET", "/api/sessions", Authorization=f"{key} {own}") == 401
        assert self.ask("GET", "/api/sessions", key=None, X_Api_Key=key) == 401
        assert self.ask("GET", f"/api/sessions?api_key={key}&token={self.token()}", key=None) == 401
        assert self.ask("GET", f"/nowhere?key={key}") == 404
        assert self.ask("POST", "/api/tokens/revoke", {"jti": "x"}, self.canaries["listed key"]) == 401
        assert self.ask("GET", "/api/sessions", Origin="https://evil", Referer=f"https://x/?{own}") == 403
        assert self.ask("GET", "/metrics", Host="evil.example") == 403
        assert self.ask("GET", "/api/sessions?limit=zero") == 422
        assert self.ask("PUT", "/api/notifications", push) == 405
        for text in (
            json.dumps(push)[:-3],
            json.dumps({**push, "user_ids": payload}),
            json.dumps({**push, "more": payload}),
            json.dumps({**push, "expires_at": self.canaries["payload"]}),
            json.dumps({**push, "payload": f"\0{payload}"}),
            json.dumps({**push, "payload": self.canaries["payload"] * 2_000}),
            json.dumps({**push, "payload": payload}).replace('"note"', "NaN"),
            json.dumps(payload) * 2,
            self.canaries["payload"],
        ):
            assert self.ask("POST", "/api/notifications", text.encode()) == 422, text[:80]
        assert self.ask("POST", "/api/notifications", push, Content_Type="text/plain") == 415
        assert self.ask("POST", "/api/notifications", b"x" * 1_100_000) == 413
        for body in (payload, {"topic": "room:1", "event": "x", "payload": self.canaries["payload"]}):
            assert self.ask("POST", "/api/broadcasts", body) == 422
        assert self.ask("POST", "/api/tokens/revoke", payload) == 422
        for path in ("/metrics", "/api/openapi.json", "/api/sessions", "/api/users/alice/recorder", "/"):
            assert self.ask("GET", path) == 200
        for raw in (f"GET /?{key} HTTP/9\r\n", f"{key}\r\n\r\n", f"GET / HTTP/1.1\r\nX:{key}\r\n y\r\n\r\n"):
            with closing(socket.create_connection(("127.0.0.1", self.admin_port), 10)) as connection:
                connection.sendall(raw.encode())
                connection.shutdown(socket.SHUT_WR)
                self._take(connection)


def make_canaries() -> Canaries:
    def fresh(size: int = 36) -> str:
        return base64.b64encode(os.urandom(size)).decode()

    return Canaries(
        {
            "secret": fresh(66),
            "api key": fresh(),
            "listed key": fresh(),
            "wrong key": fresh(),
            "database password": f"p@ss/{fresh(18)}",
            "cookie": fresh(),
            "payload": f"payload-{os.urandom(18).hex()}",
            "jwks password": os.urandom(18).hex(),
        }
    )


def private(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return path


def with_password(url: str, password: str) -> str:
    parts = urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=f"{user.partition(':')[0]}:{quote(password, safe='')}@{host}").geturl()


def reload(server: FlowProcess) -> None:
    """Have a server read its settings again, and wait for what it says of them."""
    before = server.log.count("Reload: ")
    server.send_signal(signal.SIGHUP)
    eventually(lambda: server.log.count("Reload: ") > before, "it has read its settings")


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_no_secret_turns_up(tmp_path: Path, database_url: str, log_format: str) -> None:
    canaries = make_canaries()
    database = with_password(database_url, canaries["database password"])
    directory = tmp_path / "server"
    (directory / "data").mkdir(0o700, parents=True)
    (directory / "data").chmod(0o700)
    (directory / "canary_rooms.py").write_text(APPLICATION)
    secret = private(directory / "secret", canaries["secret"])
    private(directory / "data" / "api-key", canaries["api key"])
    keys = private(
        directory / "keys",
        f"listed notify {canaries['listed key']}\n"
        f"operator admin sha256:{sha256(canaries['wrong key'][::-1].encode()).hexdigest()}\n",
    )
    config = private(directory / "flow.toml", f'database = "{database}"\nrate-limit = "40/80"\n')
    options = [
        f"--config={config}",
        f"--secret-file={secret}",
        f"--api-keys={keys}",
        f"--log-format={log_format}",
        "--log-level=debug",
        "--app=canary_rooms:router",
        "--users-query=claims",
        "--idle-timeout=3600",
    ]
    seen: dict[str, bytes] = {}
    with ExitStack() as stack:
        server = FlowProcess(directory, *options)
        stack.callback(server.kill)
        server.start()
        provoked = Provocations(server, canaries, canaries["secret"], canaries["api key"])
        provoked.refused_handshakes()
        provoked.messages()
        provoked.calls()

        # The database goes away under it, and comes back.
        run_sql(
            database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        for _ in range(3):
            provoked.ask("POST", "/api/notifications", {"user_ids": ["a"], "type": "t", "payload": 1})

        # The file of settings breaks, with the password in it, and so does the file of keys.
        good = config.read_text()
        for text in (
            f"{good}nonsense",
            f'{good}databse = "{database}"\n',
            f'database = ["{database}"]\n',
            f'database = "mysql{database.removeprefix("postgresql")}"\n',
            f'{good}rate-limit = "lots"\n',
            good.replace("40/80", "41/80"),
        ):
            config.write_text(text)
            reload(server)
        for text in (
            f"listed notify {canaries['listed key']} x\n",
            f"{canaries['listed key']}\n",
            "x" * 300_000,
        ):
            keys.write_text(text)
            reload(server)
        assert server.request("GET", "/health/live") == (200, {"status": "ok"})

        proc = Path(f"/proc/{server.pid}")
        seen["arguments"] = (proc / "cmdline").read_bytes() + (proc / "comm").read_bytes()
        seen["ps"] = run(["ps", "-ww", "-o", "args", "-p", str(server.pid)], tmp_path).stdout.encode()
        assert b"flow" in seen["ps"]
        assert provoked.ask("GET", "/metrics") == 200
        server.send_signal(signal.SIGTERM)
        eventually(lambda: server.has_ended, "it ends", 30)
        seen["log"] = server.log.encode()

    # Starts that fail, and checks of settings that are wrong.
    environ = {"FLOWTX_DATABASE": database, "FLOWTX_DATA_DIR": str(tmp_path / "other")}
    nowhere = (
        f"postgresql://flow:{quote(canaries['database password'], safe='')}@127.0.0.1:{free_port()}/flow"
    )
    jwks = f"https://user:{canaries['jwks password']}@keys.example/jwks"
    weak = private(tmp_path / "weak", canaries["secret"][:24])
    listen = [
        f"--listen=tcp:{free_port()}:interface=127.0.0.1",
        f"--admin=tcp:{free_port()}:interface=127.0.0.1",
    ]
    flow = [*TWISTD, "--nodaemon", "--pidfile=", "flow"]
    starts: list[tuple[list[str], dict[str, str]]] = [
        ([*flow, *listen, f"--secret-file={weak}"], environ),
        ([*flow, *listen, f"--api-keys={keys}"], environ),
        ([*flow, *listen, f"--jwt-jwks={jwks}", "--jwt-algorithms=RS256"], environ),
        ([*flow, *listen, f"--jwt-jwks={jwks}"], environ),
        ([*flow, *listen, "--nonsense"], environ),
        ([*flow, *listen], {**environ, "FLOWTX_DATABASE": nowhere}),
        ([*flow, *listen], {**environ, "FLOWTX_DATABASE": database.replace("postgresql", "mysql")}),
        ([FLOWTX, "check-config"], {**environ, "FLOWTX_DATABASE": f"x{database}"}),
        ([FLOWTX, "check-config"], {**environ, "FLOWTX_RATE_LIMIT": "lots"}),
        ([FLOWTX, "check-config", f"--config={config}"], {"FLOWTX_DATABSE": database}),
        ([FLOWTX, "migrate"], {**environ, "FLOWTX_DATABASE": nowhere}),
    ]
    # At once, as some wait ten seconds for a database.
    with ThreadPoolExecutor(len(starts)) as pool:
        outcomes = list(pool.map(lambda start: run(start[0], tmp_path, start[1]), starts))
    for number, ((command, _), ended) in enumerate(zip(starts, outcomes, strict=True)):
        assert ended.status != 0, (command, ended)
        seen[f"start {number}: {command[-1]}"] = (ended.stdout + ended.stderr).encode()
    # It does without the server, which has ended.
    told = run([FLOWTX, "why", "alice"], tmp_path, environ)
    seen["why"] = (told.stdout + told.stderr).encode()
    config.write_text(good)
    checked = run([FLOWTX, "check-config", f"--config={config}"], directory)
    assert checked.status == 0, checked
    seen["check-config"] = (checked.stdout + checked.stderr).encode()
    settings = load({"config": str(config), "secret-file": str(secret), "api-keys": str(keys)}, environ)
    seen["repr"] = f"{settings!r} {settings} {vars(type(settings))}".encode()
    for number, answer in enumerate(provoked.answers):
        seen[f"answer {number}"] = answer

    assert provoked.count > 90
    assert seen["log"].count(b"\n") > 100
    assert b"the room crashes over" in seen["log"]
    assert canaries.found(seen) == []


def test_a_password_on_the_command_line_is_warned_of(tmp_path: Path, database_url: str) -> None:
    database = with_password(database_url, "a-password-that-all-can-list")
    with FlowProcess(tmp_path, database=database) as server:
        eventually(lambda: "every user of this machine can read" in server.log, "the warning is in the log")
        assert server.log.count("every user of this machine can read") == 1
        assert "a-password-that-all-can-list" not in server.log
    with FlowProcess(tmp_path / "other", database=database_url) as server:
        server.push("alice")
        assert "every user of this machine can read" not in server.log


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ([], []),
        (["--check-origin=false"], []),
        (["--admin=tcp:PORT", "--listen=tcp:0"], ["--admin: tcp:"]),
        (["--check-origin=false", "--listen=tcp:0"], ["--check-origin: false lets"]),
        (["--check-origin=https://example.com", "--listen=tcp:0"], []),
    ],
)
def test_what_is_left_open_is_warned_of(tmp_path: Path, options: list[str], warned: list[str]) -> None:
    given = [option.replace("PORT", str(free_port())) for option in options]
    checked = run([FLOWTX, "check-config", *_as_file(tmp_path, given)], tmp_path)
    said: Any = checked.stdout + checked.stderr
    assert checked.status == 0, said
    for line in ("--admin: tcp:", "--check-origin: false lets"):
        assert (line in said) == (line in warned), said


def _as_file(directory: Path, options: list[str]) -> list[str]:
    file = directory / "flow.toml"
    lines = [re.sub(r"^--([a-z-]+)=(.*)$", r'\1 = "\2"', option) for option in options]
    file.write_text("\n".join(lines))
    return [f"--config={file}"]
