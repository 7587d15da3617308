"""A JWKS at a URL, from a real server on this machine: rotation, storms, and servers that misbehave."""

from __future__ import annotations

import datetime
import gc
import ipaddress
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from twisted.internet import reactor as global_reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import PrivateCertificate
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, capturedLogs, formatEvent
from twisted.python.failure import Failure
from zope.interface import directlyProvides, providedBy

from flowtx import jwks as jwks_module
from flowtx.auth import TokenVerifier, key_source
from flowtx.config import Settings
from flowtx.errors import Refused
from flowtx.interfaces import Principal
from flowtx.jwks import FETCH_TIMEOUT, MAX_SIZE, JwksUrl
from tests.test_auth import NOW, claims, ec_key, jwk, jwks, private_pem, rsa_key

reactor: Any = global_reactor


class ShiftedReactor:
    """The real reactor, whose clock can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0
        directlyProvides(self, providedBy(reactor))

    def seconds(self) -> float:
        now: float = reactor.seconds()
        return now + self.ahead

    def __getattr__(self, name: str) -> Any:
        return getattr(reactor, name)


class Server(Factory):
    """Speaks as much HTTP as is needed to misspeak it.

    Attributes:
        answer: what follows each request, as bytes; None to say nothing.
        requests: how many there were.
        open: how many connections there are now.
        ever: how many connections there have been.
    """

    def __init__(self) -> None:
        self.answer: bytes | None = None
        self.stuffing = b""
        self.closing = False
        self.requests = 0
        self.open = 0
        self.ever = 0
        self.asked: Deferred[None] = Deferred()
        self.left: Deferred[None] = Deferred()
        self.heads: list[bytes] = []

    def buildProtocol(self, addr: object) -> Connection:
        return Connection(self)

    def say(self, body: bytes, status: str = "200 OK", headers: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        self.answer = head.encode() + body


class Connection(Protocol):
    transport: Any

    def __init__(self, server: Server) -> None:
        self.server = server

    def connectionMade(self) -> None:
        self.server.open += 1
        self.server.ever += 1

    def dataReceived(self, data: bytes) -> None:
        server = self.server
        server.requests += data.count(b"\r\n\r\n")
        server.heads.append(data)
        if server.answer is not None:
            self.transport.write(server.answer)
        if server.stuffing:
            self.transport.registerProducer(self, False)
        if server.closing:
            self.transport.loseConnection()
        if not server.asked.called:
            server.asked.callback(None)

    def resumeProducing(self) -> None:
        self.transport.write(self.server.stuffing)

    def stopProducing(self) -> None:
        self.server.stuffing = b""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.server.open -= 1
        if not self.server.left.called:
            self.server.left.callback(None)


def listen(make: Callable[[int], Any]) -> Any:
    for _ in range(100):
        try:
            return make(random.randrange(10_000, 32_000))
        except CannotListenError:
            continue
    raise AssertionError("no port is free")


class World:
    """A server, a source of keys that asks it, and a clock."""

    def __init__(self, port: Any, server: Server, scheme: str) -> None:
        self.port = port
        self.server = server
        self.url = f"{scheme}://127.0.0.1:{port.getHost().port}/jwks.json"
        self.reactor = ShiftedReactor()
        settings = Settings(jwt_algorithms=("RS256",), jwt_jwks=self.url)
        self.source = key_source(settings, None, reactor=self.reactor)  # type: ignore[arg-type]
        self.verifier = TokenVerifier(settings, self.source, now=lambda: float(NOW))

    def verify(self, given: str) -> Deferred[Principal]:
        return Deferred.fromCoroutine(self.verifier.verify(given))

    async def refused(self, given: str) -> tuple[str, int]:
        try:
            principal = await self.verify(given)
        except Refused as refused:
            assert refused.headers == ({"Retry-After": "1"} if refused.status == 503 else {})
            return refused.reason, refused.status
        raise AssertionError(f"{principal} was let in")


INVALID = ("invalid_token", 403)
UNAVAILABLE = ("unavailable", 503)


def signed(number: int = 0, **header: object) -> str:
    return jwt.encode(claims(), rsa_key(number=number), "RS256", headers=header)


OLD = jwk(rsa_key(), kid="old")
NEW = jwk(rsa_key(number=1), kid="new")


def certificate() -> bytes:
    """Make a certificate for 127.0.0.1 that is its own authority, with its key, as PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    today = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(ec_key().public_key())
        .serial_number(7)
        .not_valid_before(today - datetime.timedelta(days=1))
        .not_valid_after(today + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(ec_key(), hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM) + private_pem(ec_key())


@pytest.fixture(autouse=True)
def _nothing_goes_unhandled() -> Iterator[None]:
    with capturedLogs() as events:
        yield
        gc.collect()
    assert not [formatEvent(event) for event in events if event["log_level"] >= LogLevel.error]


@pytest.fixture
def plain() -> Iterator[World]:
    yield from world(
        "http", lambda server: lambda port: reactor.listenTCP(port, server, interface="127.0.0.1")
    )


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    pem = tmp_path / "server.pem"
    pem.write_bytes(certificate())
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    options = PrivateCertificate.loadPEM(pem.read_bytes()).options()
    yield from world(
        "https",
        lambda server: lambda port: reactor.listenSSL(port, server, options, interface="127.0.0.1"),
    )


def world(scheme: str, make: Callable[[Server], Callable[[int], Any]]) -> Iterator[World]:
    server = Server()
    port = listen(make(server))
    made = World(port, server, scheme)
    yield made
    made.source.stop()
    if port.connected:
        pytest_twisted.blockon(port.stopListening())


async def gone(server: Server) -> None:
    """Wait until the server has seen the end of every connection."""
    if server.open:
        await server.left.addTimeout(5, reactor)
    assert server.open == 0


@pytest_twisted.ensureDeferred
async def test_a_key_over_https(secure: World) -> None:
    secure.server.say(jwks(OLD))
    assert (await secure.verify(signed(kid="old"))).user_id == "alice"
    assert secure.server.heads[0].startswith(b"GET /jwks.json HTTP/1.1\r\n")
    await gone(secure.server)


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_nobody_vouches_for(secure: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    secure.server.say(jwks(OLD))
    assert await secure.refused(signed(kid="old")) == UNAVAILABLE
    assert secure.server.requests == 0


@pytest_twisted.ensureDeferred
async def test_a_certificate_for_another_name(secure: World) -> None:
    secure.server.say(jwks(OLD))
    source = JwksUrl(secure.url.replace("127.0.0.1", "localhost"), ("RS256",), secure.reactor)  # type: ignore[arg-type]
    with pytest.raises(Refused) as caught:
        await source.find("old")
    assert caught.value.status == 503
    assert secure.server.requests == 0


@pytest_twisted.ensureDeferred
async def test_keys_are_fetched_once(plain: World) -> None:
    plain.server.say(jwks(OLD))
    for _ in range(3):
        await plain.verify(signed(kid="old"))
    assert plain.server.requests == 1


@pytest_twisted.ensureDeferred
async def test_rotation_by_kid(plain: World) -> None:
    plain.server.say(jwks(OLD))
    await plain.verify(signed(kid="old"))
    plain.server.say(jwks(OLD, NEW))
    await plain.verify(signed(1, kid="new"))
    await plain.verify(signed(kid="old"))
    assert plain.server.requests == 2

    plain.server.say(jwks(NEW))
    assert await plain.refused(signed(kid="newer")) == INVALID
    assert plain.server.requests == 2
    plain.reactor.ahead += 60
    assert await plain.refused(signed(kid="newer")) == INVALID
    assert plain.server.requests == 3
    assert await plain.refused(signed(kid="old")) == INVALID
    await plain.verify(signed(1, kid="new"))


@pytest_twisted.ensureDeferred
async def test_a_key_that_is_gone_dies_in_five_minutes(plain: World) -> None:
    plain.server.say(jwks(OLD))
    await plain.verify(signed(kid="old"))
    plain.server.say(jwks(NEW))
    plain.reactor.ahead += 290
    await plain.verify(signed(kid="old"))
    plain.reactor.ahead += 10
    assert await plain.refused(signed(kid="old")) == INVALID


@pytest_twisted.ensureDeferred
async def test_an_empty_set_is_believed(plain: World) -> None:
    plain.server.say(jwks(OLD))
    await plain.verify(signed(kid="old"))
    plain.server.say(jwks())
    plain.reactor.ahead += 300
    assert await plain.refused(signed(kid="old")) == INVALID


@pytest_twisted.ensureDeferred
async def test_many_who_wait_share_one_fetch(plain: World) -> None:
    plain.server.say(jwks(OLD))
    principals = await gatherResults([plain.verify(signed(kid="old")) for _ in range(50)])
    assert len(principals) == 50
    assert (plain.server.requests, plain.server.ever) == (1, 1)


@pytest_twisted.ensureDeferred
async def test_a_storm_of_unknown_names(plain: World) -> None:
    plain.server.say(jwks(OLD))
    unknown = [signed(kid=f"k{number}") for number in range(1000)]
    storm = [plain.refused(given) for given in unknown]
    assert set(await gatherResults([Deferred.fromCoroutine(each) for each in storm])) == {INVALID}
    # And one after the other, while those that are known go on being let in.
    for given in unknown:
        assert await plain.refused(given) == INVALID
    await plain.verify(signed(kid="old"))
    assert (plain.server.requests, plain.server.ever) == (1, 1)

    plain.reactor.ahead += 59
    assert await plain.refused(unknown[0]) == INVALID
    assert plain.server.requests == 1
    plain.reactor.ahead += 1
    for given in unknown[:100]:
        assert await plain.refused(given) == INVALID
    assert plain.server.requests == 2


@pytest_twisted.ensureDeferred
async def test_answers_between_fetches_are_immediate(plain: World) -> None:
    plain.server.say(jwks(OLD))
    assert await plain.refused(signed(kid="x")) == INVALID
    assert plain.verify(signed(kid="old")).called
    refused = plain.verify(signed(kid="y"))
    assert refused.called
    refused.addErrback(lambda failure: failure.trap(Refused))


@pytest_twisted.ensureDeferred
async def test_a_slow_server(secure: World) -> None:
    begun = reactor.seconds()
    assert await secure.refused(signed(kid="old")) == UNAVAILABLE
    assert FETCH_TIMEOUT - 0.1 < reactor.seconds() - begun < FETCH_TIMEOUT + 0.5
    await gone(secure.server)


@pytest_twisted.ensureDeferred
async def test_a_body_that_does_not_end(secure: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwks_module, "FETCH_TIMEOUT", 0.3)
    secure.server.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + jwks(OLD)[:50]
    assert await secure.refused(signed(kid="old")) == UNAVAILABLE
    await gone(secure.server)


@pytest_twisted.ensureDeferred
async def test_after_a_failure_the_server_is_asked_once_a_second(plain: World) -> None:
    plain.server.say(b"", "500 Oops")
    for _ in range(10):
        assert await plain.refused(signed(kid="old")) == UNAVAILABLE
    assert plain.server.requests == 1
    plain.server.say(jwks(OLD))
    plain.reactor.ahead += 1
    await plain.verify(signed(kid="old"))


@pytest_twisted.ensureDeferred
async def test_a_failure_keeps_the_old_keys(plain: World) -> None:
    plain.server.say(jwks(OLD))
    await plain.verify(signed(kid="old"))
    plain.server.say(b"", "503 Gone fishing")
    plain.reactor.ahead += 300
    await plain.verify(signed(kid="old"))
    assert plain.server.requests == 2
    # Of a name that is not known there is no telling now, which costs no further request for a minute.
    for _ in range(10):
        assert await plain.refused(signed(1, kid="new")) == UNAVAILABLE
    assert plain.server.requests == 2
    plain.server.say(jwks(OLD, NEW))
    plain.reactor.ahead += 60
    await plain.verify(signed(1, kid="new"))


@pytest_twisted.ensureDeferred
async def test_no_server(plain: World) -> None:
    await plain.port.stopListening()
    assert await plain.refused(signed(kid="old")) == UNAVAILABLE


@pytest.mark.parametrize(
    "answer",
    [
        b"\0\xff" * 500 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\xff\xfe\0\0",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 206 Partial Content\r\nContent-Length: 2\r\n\r\n{}",
        b"",
    ],
)
@pytest_twisted.ensureDeferred
async def test_garbage(plain: World, answer: bytes) -> None:
    plain.server.answer, plain.server.closing = answer, True
    assert await plain.refused(signed(kid="old")) == UNAVAILABLE
    plain.server.say(jwks(OLD))
    plain.reactor.ahead += 1
    await plain.verify(signed(kid="old"))


@pytest_twisted.ensureDeferred
async def test_a_body_without_a_length(plain: World) -> None:
    plain.server.answer, plain.server.closing = b"HTTP/1.1 200 OK\r\n\r\n" + jwks(OLD), True
    await plain.verify(signed(kid="old"))


@pytest_twisted.ensureDeferred
async def test_the_largest_body(plain: World) -> None:
    content = jwks(OLD)
    plain.server.say(content + b" " * (MAX_SIZE - len(content)))
    await plain.verify(signed(kid="old"))


@pytest_twisted.ensureDeferred
async def test_a_body_too_large(plain: World) -> None:
    content = jwks(OLD)
    plain.server.say(content + b" " * (MAX_SIZE + 1 - len(content)))
    assert await plain.refused(signed(kid="old")) == UNAVAILABLE


@pytest.mark.parametrize("head", [b"", b"Content-Length: 1000000000000\r\n"])
@pytest_twisted.ensureDeferred
async def test_a_body_without_an_end(secure: World, head: bytes) -> None:
    secure.server.answer = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n"
    secure.server.stuffing = b" " * 65_536
    begun = reactor.seconds()
    assert await secure.refused(signed(kid="old")) == UNAVAILABLE
    assert reactor.seconds() - begun < FETCH_TIMEOUT - 1
    await gone(secure.server)


@pytest_twisted.ensureDeferred
async def test_a_redirect_is_not_followed(plain: World) -> None:
    plain.server.say(jwks(OLD), "302 Found", f"Location: {plain.url}?again\r\n")
    assert await plain.refused(signed(kid="old")) == UNAVAILABLE
    await deferLater(reactor, 0.05)
    assert plain.server.ever == 1


@pytest_twisted.ensureDeferred
async def test_one_who_gives_up_leaves_the_fetch_to_the_others(plain: World) -> None:
    first, second = plain.verify(signed(kid="old")), plain.verify(signed(kid="old"))
    await plain.server.asked
    first.cancel()
    with pytest.raises(CancelledError):
        await first
    assert not second.called
    plain.source.stop()
    with pytest.raises(Refused):
        await second


@pytest_twisted.ensureDeferred
async def test_stopping_ends_a_fetch(plain: World) -> None:
    waiting = plain.verify(signed(kid="old"))
    await plain.server.asked
    plain.source.stop()
    with pytest.raises(Refused) as caught:
        await waiting
    assert caught.value.status == 503
    await gone(plain.server)
    plain.server.say(jwks(OLD))
    plain.reactor.ahead += 1000
    assert await plain.refused(signed(kid="old")) == UNAVAILABLE
    assert plain.server.ever == 1


@pytest_twisted.ensureDeferred
async def test_nothing_in_a_token_says_where_to_ask(plain: World) -> None:
    other = Server()
    port = listen(lambda number: reactor.listenTCP(number, other, interface="127.0.0.1"))
    other.say(jwks(NEW))
    plain.server.say(jwks(OLD))
    url = f"http://127.0.0.1:{port.getHost().port}/jwks.json"
    assert await plain.refused(signed(1, kid=url)) == INVALID
    for name in ("jku", "x5u"):
        assert await plain.refused(signed(1, kid="new", **{name: url})) == INVALID
    await deferLater(reactor, 0.05)
    assert other.ever == 0
    await port.stopListening()
