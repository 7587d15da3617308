"""Other endpoints than TCP: a Unix socket, and TLS with a certificate of its own."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import ssl
from twisted.internet.endpoints import clientFromString, connectProtocol, wrapClientTLS
from twisted.internet.task import deferLater

from flowtx.protocol.close import DISCONNECT
from flowtx.transports.websocket import FlowProtocol
from tests.integration.rawclient import TEXT, RawClient, close_frame, frame, request
from tests.integration.websocket_server import (
    HEARTBEAT,
    HEARTBEAT_REPLY,
    JOIN,
    JOINED,
    Server,
    SlowDirectory,
    reactor,
    until,
    users,
)


@pytest_twisted.ensureDeferred
async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with Server(endpoint=f"unix:{path}") as server:
        client = await server.connect(f"unix:{path}")
        client.send(request(server.target()))
        assert (await client.response()).status == 101
        assert await server.is_alive(client)
        assert server.protocols[0].address == "unix"


def make_certificate(directory: Path) -> Path:
    """Write a key and a certificate for localhost that it has signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    file = directory / "both.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + certificate.public_bytes(pem))
    return file


class SlowTls(FlowProtocol):
    head_timeout = 0.5
    close_timeout = 0.5


@pytest_twisted.ensureDeferred
async def test_tls(tmp_path: Path) -> None:
    file = make_certificate(tmp_path)
    directory = SlowDirectory(users())
    endpoint = f"ssl:PORT:privateKey={file}:certKey={file}:interface=127.0.0.1"
    async with Server(endpoint=endpoint, protocol=SlowTls, directory=directory) as server:
        client = RawClient(reactor)
        server.clients.append(client)
        context = ssl.optionsForClientTLS("localhost", ssl.Certificate.loadPEM(file.read_bytes()))
        tls = wrapClientTLS(context, clientFromString(reactor, f"tcp:127.0.0.1:{server.port}"))
        await connectProtocol(tls, client)
        client.send(request(server.target()) + frame(TEXT, HEARTBEAT.encode()))
        await until(lambda: directory.asked)
        client.send(frame(TEXT, HEARTBEAT.encode()))
        await until(lambda: len(server.protocols[0].data) > 60)
        directory.answer()
        assert (await client.response()).status == 101
        assert [(await client.frame()).payload for _ in range(2)] == [HEARTBEAT_REPLY] * 2
        assert await server.is_alive(client)
        # A reader that pauses, and all that has waited.
        client.text(JOIN)
        assert (await client.frame()).payload == JOINED
        client.stop_reading()
        client.text('["1",null,"room:1","flood",{"n":100,"size":9000}]')
        await deferLater(reactor, 0.1)
        client.go_on_reading()
        for number in range(100):
            assert f'"number":{number},'.encode() in (await client.frame()).payload
        server.protocols[0].close(DISCONNECT)
        assert (await client.frame()).code == 1001
        client.send(close_frame(1001))
        assert await client.ended() == "fin"

        # Neither half a handshake nor something else holds a connection for long.
        silent, plain = RawClient(reactor), RawClient(reactor)
        for other in (silent, plain):
            server.clients.append(other)
            await connectProtocol(clientFromString(reactor, f"tcp:127.0.0.1:{server.port}"), other)
        plain.send(request(server.target()))
        assert await plain.ended()
        assert await silent.ended(within=2)
