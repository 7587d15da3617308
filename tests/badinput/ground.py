"""Where bad input is tried: a real server, a bystander who must not notice, and the server's log."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import jwt

from tests.integration.flow_process import TWISTD, FlowProcess, Outcome, free_port, run
from tests.integration.rawclient import CLOSE, PING, PONG, TEXT, frame, request

PATIENCE = 20.0
KEYS = {scope: f"{scope}-key-of-the-table-Qm9vZ2llLXdvb2dpZQ" for scope in ("notify", "read", "admin")}
#: What the log says of connections and Sessions that are as they should be, and of faults that are over.
USUAL = ("Starting session", "Session initialized", "Session terminating", "is back after")
MAX_LINE = 512


class Answer(NamedTuple):
    """An answer of HTTP; no answer at all has the status 0."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str:
        return str(self.json["reason"])


class Wire:
    """A WebSocket connection, byte by byte."""

    def __init__(self, connection: socket.socket, early: bytes) -> None:
        self._socket = connection
        self._data = early
        connection.settimeout(PATIENCE)

    def send(self, data: bytes) -> None:
        with suppress(ConnectionError):
            self._socket.sendall(data)

    def text(self, value: object) -> None:
        """Send a text frame: text as it is, anything else as JSON."""
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        self.send(frame(TEXT, data))

    def frame(self) -> tuple[int, bytes] | None:
        """Wait for a frame; None where the connection has ended."""
        while (found := self._whole()) is None:
            try:
                data = self._socket.recv(65_536)
            except ConnectionError:
                return None
            if not data:
                return None
            self._data += data
        return found

    def _whole(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        size, head = data[1], 2
        if size > 125:
            head = 4 if size == 126 else 10
            if len(data) < head:
                return None
            size = int.from_bytes(data[2:head], "big")
        if len(data) < head + size:
            return None
        self._data = data[head + size :]
        return data[0] & 15, data[head : head + size]

    def message(self) -> list[Any]:
        """Wait for a message; Pings are answered on the way."""
        while (found := self.frame()) is not None:
            if found[0] == TEXT:
                message: list[Any] = json.loads(found[1])
                return message
            if found[0] == PING:
                self.send(frame(PONG, found[1]))
            elif found[0] == CLOSE:
                raise AssertionError(f"closed with {found[1]!r}")
        raise AssertionError("the connection ended")

    def ask(self, topic: object, event: object, payload: object = None, join_ref: object = "1") -> Any:
        """Send a message and wait for its reply: ``{"status", "response"}``."""
        ref = f"r{time.monotonic_ns()}"
        self.text([join_ref, ref, topic, event, {} if payload is None else payload])
        while (message := self.message())[1] != ref:
            pass
        return message[4]

    def beats(self) -> bool:
        """Whether the connection lives."""
        return bool(self.ask("phoenix", "heartbeat", join_ref=None)["status"] == "ok")

    def closed(self) -> int:
        """Wait for the end; the close code, 1006 where there was none."""
        while (found := self.frame()) is not None:
            if found[0] == CLOSE:
                self.send(frame(CLOSE, found[1][:2]))
                return int.from_bytes(found[1][:2], "big")
        return 1006

    def leave(self) -> None:
        self._socket.close()


class Ground:
    """See the module.

    Attributes:
        server: the server that most rows share.
        directory: a place for files.
        tried: how many bad inputs the row has sent so far: so many lines may be logged.
        slowest: the bystander's slowest round trip, seconds.
    """

    def __init__(self, directory: Path, database_url: str) -> None:
        self.directory = directory
        self.database_url = database_url
        keys = self.private("api-keys", "".join(f"{scope} {scope} {key}\n" for scope, key in KEYS.items()))
        self.server = FlowProcess(
            directory / "server",
            "--users-query=claims",
            "--jwt-issuer=crm",
            "--jwt-audience=flow",
            "--trusted-proxies=127.0.0.1",
            "--app=tests.badinput.rooms:router",
            f"--api-keys={keys}",
            "--rate-limit=1000/5000",
            database=database_url,
            environ={"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        self.tried = 0
        self.slowest = 0.0
        self._read = {"stdout": 0, "stderr": 0}

    def __enter__(self) -> Ground:
        self.server.start()
        self.secret = (self.server.data_dir / "secret").read_text().strip()
        self.port = int(urlsplit(self.server.socket_url).port or 0)
        self.admin_port = int(urlsplit(self.server.admin_url).port or 0)
        self._bystander = self.enter("bystander")
        self._bystander.ask("user:bystander", "phx_join")
        return self

    def __exit__(self, *problem: object) -> None:
        self._bystander.leave()
        self.server.__exit__(*problem)

    # Around each row

    def begin(self) -> None:
        self.tried = 0
        self._quiet_lines()

    def check(self) -> None:
        """See that the bystander is well, and that the log is short and quiet."""
        began = time.monotonic()
        assert self._bystander.beats(), "the bystander is not answered"
        self.slowest = max(self.slowest, time.monotonic() - began)
        lines = self._quiet_lines()
        assert len(lines) <= max(1, self.tried), "\n".join(lines)

    def _quiet_lines(self) -> list[str]:
        """Take the unusual lines that are new in the log, also late ones of the row before."""
        log = ""
        for name, start in self._read.items():
            text = (self.server.directory / name).read_text("utf-8", "replace")
            self._read[name] = len(text)
            log += text[start:]
        assert "Traceback" not in log, log
        lines = [line for line in log.splitlines() if line and not any(usual in line for usual in USUAL)]
        assert all(len(line.encode()) <= MAX_LINE for line in lines), max(lines, key=len)[:1_000]
        return lines

    # Files and servers

    def private(self, name: str, text: str | bytes) -> Path:
        path = self.directory / name
        path.touch(0o600)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def refuses(self, *options: str, says: str, environ: Mapping[str, str] | None = None) -> None:
        """Start a server that must not start, and say why in one line."""
        self.tried += 1
        data = self.directory / f"refused-{time.monotonic_ns()}"
        command = [
            *TWISTD,
            "--nodaemon",
            "--pidfile=",
            "flow",
            f"--data-dir={data}",
            f"--listen=tcp:{free_port()}:interface=127.0.0.1",
            f"--admin=tcp:{free_port()}:interface=127.0.0.1",
            *options,
        ]
        ended: Outcome = run(
            command, self.directory, {"FLOWTX_DATABASE": self.database_url, **(environ or {})}
        )
        lines = [line for line in ended.stderr.splitlines() if line]
        assert ended.status == 1, ended
        assert says in lines[-1], ended
        assert "Traceback" not in ended.stdout + ended.stderr, ended

    @contextmanager
    def another(self, name: str, *options: str, **more: Any) -> Iterator[FlowProcess]:
        """A server of the row's own, on the same database."""
        with FlowProcess(
            self.directory / name, "--users-query=claims", *options, database=self.database_url, **more
        ) as server:
            yield server

    # Clients

    def claims(self, user_id: object = "alice", **changed: object) -> dict[str, object]:
        """Good claims with some changed; None takes one out."""
        now = int(time.time())
        usual = {"sub": user_id, "exp": now + 600, "iat": now, "iss": "crm", "aud": "flow"}
        return {name: value for name, value in {**usual, **changed}.items() if value is not None}

    def token(self, user_id: object = "alice", **changed: object) -> str:
        return self.signed(json.dumps(self.claims(user_id, **changed)))

    def signed(self, body: str | bytes, header: Mapping[str, Any] | None = None) -> str:
        """Sign whatever it is with the server's secret."""
        data = body if isinstance(body, bytes) else body.encode()
        return jwt.PyJWS().encode(data, self.secret, "HS512", dict(header or {}))

    def handshake(self, token: str = "", *extra: tuple[str, str], **form: Any) -> bytes:
        target = f"/socket/websocket?vsn=2.0.0&token={token or self.token()}"
        return request(target, ("Origin", f"http://127.0.0.1:{self.port}"), *extra, **form)

    def knock(
        self, data: bytes | Sequence[bytes], port: int | None = None, *, finish: bool = False
    ) -> Answer:
        """Send bytes on a new connection and read the answer to its end, or its 101."""
        self.tried += 1
        with closing(socket.create_connection(("127.0.0.1", port or self.port), PATIENCE)) as connection:
            with suppress(ConnectionError):
                for part in [data] if isinstance(data, bytes) else data:
                    connection.sendall(part)
                if finish:
                    connection.shutdown(socket.SHUT_WR)
            return read_answer(connection)

    def refused(self, token: str) -> tuple[int, str]:
        """Knock with a token; the status and the reason."""
        answer = self.knock(self.handshake(token))
        return answer.status, answer.reason

    def enter(self, user_id: str = "alice", token: str = "", port: int | None = None) -> Wire:
        """Open a WebSocket."""
        connection = socket.create_connection(("127.0.0.1", port or self.port), PATIENCE)
        target = f"/socket/websocket?vsn=2.0.0&token={token or self.token(user_id)}"
        connection.sendall(request(target))
        head = b""
        while b"\r\n\r\n" not in head:
            data = connection.recv(4_096)
            assert data, head
            head += data
        assert head.startswith(b"HTTP/1.1 101"), head
        return Wire(connection, head.partition(b"\r\n\r\n")[2])

    @contextmanager
    def joined(self, topic: str = "room:1", user_id: str = "alice") -> Iterator[Wire]:
        """A connection that has joined a topic, and is about to do something wrong."""
        self.tried += 1
        wire = self.enter(user_id)
        try:
            assert wire.ask(topic, "phx_join")["status"] == "ok"
            yield wire
        finally:
            wire.leave()

    def api(
        self, method: str, path: str, body: object = None, key: str | None = KEYS["admin"], **headers: str
    ) -> Answer:
        """Call the HTTP API; names of headers have _ for -."""
        self.tried += 1
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            given.setdefault("Authorization", f"Bearer {key}")
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        if data is not None:
            given.setdefault("Content-Type", "application/json")
        with closing(HTTPConnection("127.0.0.1", self.admin_port, timeout=PATIENCE)) as connection:
            connection.request(method, path, data, {k: v for k, v in given.items() if v})
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())

    def push(self, body: object = None, **changed: object) -> Answer:
        """Push a notification that has something wrong."""
        usual = {"user_ids": ["alice"], "type": "note", "payload": {"n": 1}}
        return self.api("POST", "/api/notifications", {**usual, **changed} if body is None else body)

    def inbox(self, user_id: str) -> list[Any]:
        """A user's notifications, the newest first."""
        found: list[Any] = self.api("GET", f"/api/users/{user_id}/notifications").json["notifications"]
        return found


def read_answer(connection: socket.socket) -> Answer:
    """Read one answer of HTTP; status 0 where there is none."""
    data = b""
    with suppress(ConnectionError, TimeoutError):
        while b"\r\n\r\n" not in data:
            part = connection.recv(65_536)
            if not part:
                break
            data += part
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/"):
        return Answer(0, {}, data)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    with suppress(ConnectionError, TimeoutError):
        while len(body) < int(headers.get("content-length", 0)):
            part = connection.recv(65_536)
            if not part:
                break
            body += part
    return Answer(int(first.split()[1]), headers, body)
