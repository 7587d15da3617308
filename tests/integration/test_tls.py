"""TLS by ``ssl:`` endpoints of a real process, for clients and for the admin endpoint."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.flow_process import FlowProcess, free_port, run
from tests.integration.test_cli import FLOWTX
from tests.integration.test_websocket_endpoints import make_certificate


class TlsProcess(FlowProcess):
    """A server whose both endpoints speak TLS, with a certificate for ``localhost``."""

    def __init__(self, directory: Path) -> None:
        self.certificate = make_certificate(directory)
        with_key = f"privateKey={self.certificate}:certKey={self.certificate}:interface=127.0.0.1"
        self.wss_port, self.https_port = free_port(), free_port()
        super().__init__(
            directory, f"--listen=ssl:{self.wss_port}:{with_key}", f"--admin=ssl:{self.https_port}:{with_key}"
        )
        self.admin_url = f"https://localhost:{self.https_port}"
        self.trust = ssl.create_default_context(cafile=str(self.certificate))

    def request(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        request = urllib.request.Request(self.admin_url + path, method=method)
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
            request.add_header("Authorization", f"Bearer {self.api_key}")
        with urllib.request.urlopen(request, timeout=10, context=self.trust) as answer:
            return answer.status, json.load(answer)

    def connect(self, port: int, **versions: ssl.TLSVersion) -> ssl.SSLSocket:
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself would refuse what is old
        for name, version in versions.items():
            setattr(context, name, version)
        plain = socket.create_connection(("127.0.0.1", port), 10)
        try:
            return context.wrap_socket(plain, server_hostname="localhost")
        except BaseException:
            plain.close()
            raise


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsProcess]:
    with TlsProcess(tmp_path_factory.mktemp("tls")) as process:
        yield process


def read_until_closed(connection: socket.socket) -> tuple[bytes, float]:
    began, got = time.monotonic(), b""
    connection.settimeout(20)
    try:
        while part := connection.recv(65_536):
            got += part
    except ConnectionResetError:
        pass
    return got, time.monotonic() - began


def test_a_client_comes_in_by_wss(server: TlsProcess) -> None:
    token = server.token(server.new_user())
    with closing(server.connect(server.wss_port)) as connection:
        assert connection.version() == "TLSv1.3"
        connection.sendall(
            f"GET /socket/websocket?token={token}&vsn=2.0.0 HTTP/1.1\r\n"
            f"Host: localhost:{server.wss_port}\r\nOrigin: https://localhost:{server.wss_port}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert connection.recv(1_000).startswith(b"HTTP/1.1 101 ")
        connection.sendall(b"\x81\x80abcd")  # an empty message, which is none of Phoenix's
        connection.sendall(b"\x89\x80abcd")
        assert connection.recv(2) == b"\x8a\x00"


def test_the_api_answers_by_https(server: TlsProcess) -> None:
    user = server.new_user()
    assert server.push(user) == 1
    assert server.request("GET", "/health/ready") == (200, {"status": "ok"})


@pytest.mark.parametrize("port", ["wss_port", "https_port"])
def test_nothing_older_than_tls_1_2(server: TlsProcess, port: str) -> None:
    number = getattr(server, port)
    two = ssl.TLSVersion.TLSv1_2
    with closing(server.connect(number, minimum_version=two, maximum_version=two)) as connection:
        assert connection.version() == "TLSv1.2"
    with pytest.warns(DeprecationWarning), pytest.raises((ssl.SSLError, ConnectionResetError)):
        server.connect(number, minimum_version=ssl.TLSVersion.TLSv1, maximum_version=ssl.TLSVersion.TLSv1_1)


def test_what_is_no_tls_is_cut_off(server: TlsProcess) -> None:
    hello = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    greeting = hello.read()
    cases = [
        (f"GET /socket/websocket HTTP/1.1\r\nHost: localhost:{server.wss_port}\r\n\r\n".encode(), 2),
        (b"", 6),
        (greeting[: len(greeting) // 2], 6),
        (greeting, 6),  # which is answered, and then no more comes
        (b"\x16\x03\x01\xff\xff" + b"x" * 100, 6),
    ]

    def cut(port: int, sent: bytes) -> tuple[bytes, float]:
        with closing(socket.create_connection(("127.0.0.1", port), 10)) as connection:
            connection.sendall(sent)
            return read_until_closed(connection)

    def both(case: tuple[bytes, float]) -> list[tuple[bytes, float]]:
        return [cut(port, case[0]) for port in (server.wss_port, server.https_port)]

    with ThreadPoolExecutor(len(cases)) as pool:
        found = list(pool.map(both, cases))
    for (sent, most), answers in zip(cases, found, strict=True):
        for got, seconds in answers:
            assert seconds < most, (sent[:20], seconds)
            assert b"HTTP/" not in got
    assert server.request("GET", "/health/ready")[0] == 200


def test_refusals_come_over_tls_too(server: TlsProcess) -> None:
    asked: list[tuple[bytes, bytes]] = [
        (b"POST /api/notifications HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048577\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n", b"400"),
        (b"nonsense\r\n\r\n", b"400"),
    ]
    for request, status in asked:
        with closing(server.connect(server.https_port)) as connection:
            connection.sendall(request)
            got, _ = read_until_closed(connection)
        assert got.startswith(b"HTTP/1.1 " + status), request
        assert got.count(b"HTTP/1.1 4") == 1


def test_the_console_opens_over_tls(server: TlsProcess) -> None:
    key = base64.b64encode(server.api_key.encode()).decode().rstrip("=")
    with closing(server.connect(server.https_port)) as connection:
        connection.sendall(
            "GET /console/websocket?vsn=2.0.0 HTTP/1.1\r\n"
            f"Host: localhost:{server.https_port}\r\nOrigin: https://localhost:{server.https_port}\r\n"
            "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.{key}\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        assert connection.recv(1_000).startswith(b"HTTP/1.1 101 ")
        connection.sendall(b"\x89\x80abcd")
        assert connection.recv(2) == b"\x8a\x00"


def test_why_asks_over_tls(server: TlsProcess) -> None:
    """By the certificate that the settings name, and by no other."""
    (server.directory / "other").mkdir()
    other = make_certificate(server.directory / "other")
    for certificate, said in ((server.certificate, ""), (other, "flowtx: the server does not answer: ")):
        admin = f"ssl:{server.https_port}:privateKey={certificate}:interface=127.0.0.1"
        asked = run(
            [*FLOWTX, "why", "nobody", f"--data-dir={server.data_dir}", f"--admin={admin}"], server.directory
        )
        assert asked.status == 1
        assert asked.stderr.startswith(said)
        assert bool(asked.stderr) == bool(said)
