"""What is fuzzed: functions of any bytes, which fail where something else happens than may.

Each takes what comes from outside: it gives a value that holds what it promises, or the one error that its
callers answer for. Anything else is a fault.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.conch.ssh.keys import Key
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs

from flowtx.auth import USER_ID_PATTERN
from flowtx.channels.channel import UnhandledEvent, ok
from flowtx.config import ENVIRONMENT_PREFIX, load, options
from flowtx.errors import ConfigError, InvalidPayload, Refused, StartupError
from flowtx.interfaces import Principal
from flowtx.keys import parse_jwks
from flowtx.manhole import authorized_keys
from flowtx.protocol.message import MalformedFrame, Message
from flowtx.protocol.payload import read_json
from flowtx.protocol.serializer import Serializer, V1Serializer, V2Serializer
from flowtx.transports.handshake import Request, accept, call_in, check_head, forwarded_for
from flowtx.transports.origin import OriginRule
from flowtx.web.broadcasts import BroadcastBody
from flowtx.web.inboxes import PushBody, ReadBody
from flowtx.web.keys import read_keys
from flowtx.web.presence import StatusBody
from flowtx.web.requests import ApiError, read_body
from flowtx.web.sessions import RevokeBody
from tests.channels.scripted import Server
from tests.test_auth import claims, ec_key, hmac_verifier, jwk, jwks, token
from tests.transports.test_short import MAX_SIZE, Connection, LongRoad, Recording, cut, masked

V1, V2 = V1Serializer(), V2Serializer()
VERIFIER: Final = hmac_verifier()
BODIES: Final = (PushBody, ReadBody, BroadcastBody, StatusBody, RevokeBody)
ORIGINS: Final = OriginRule(None, ["https://app.example.com", "//*.example.com"])
NAMES: Final = tuple(option.name for option in options())


class Target(NamedTuple):
    """One function.

    Attributes:
        run: is given the bytes, and fails where there is a fault.
        seeds: good input, to begin with.
    """

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]


TARGETS: Final[dict[str, Target]] = {}


def target(*seeds: bytes) -> Callable[[Callable[[bytes], None]], Callable[[bytes], None]]:
    """Fuzz a function, by its name."""

    def add(run: Callable[[bytes], None]) -> Callable[[bytes], None]:
        TARGETS[run.__name__] = Target(run, seeds)
        return run

    return add


# --- messages -----------------------------------------------------------------------------------------


def _decoded(serializer: Serializer, data: bytes, *, binary: bool) -> Message | None:
    try:
        message = serializer.decode_binary(data) if binary else serializer.decode_text(data)
    except MalformedFrame:
        return None
    frame = serializer.reply(message.join_ref, message.ref, message.topic, "ok", {})
    answer = json.loads(frame.payload, parse_constant=_refuse_constant, parse_int=str)
    ref = answer["ref"] if serializer is V1 else answer[1]
    assert ref == json.loads(message.ref, parse_int=str), answer
    return message


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def _is_text(data: bytes) -> bool:
    """Whether it could come in a text frame: the transport has found it to be UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@target(
    b'["1","2","room:1","phx_join",{}]',
    b'[null,2,"phoenix","heartbeat",{"a":[1.5e3,"\\u00e9"]}]',
    b"[1,2,3,4,5,6]",
)
def text_v2(data: bytes) -> None:
    """A text frame of version 2."""
    message = _decoded(V2, data, binary=False) if _is_text(data) else None
    if message is not None:
        assert isinstance(json.loads(data, parse_int=str), list)


@target(
    b'{"topic":"room:1","event":"phx_join","payload":{},"ref":"1"}',
    b'{"topic":"a","event":"b","payload":[],"ref":1,"join_ref":null}',
)
def text_v1(data: bytes) -> None:
    """A text frame of version 1."""
    message = _decoded(V1, data, binary=False) if _is_text(data) else None
    if message is not None:
        assert isinstance(json.loads(data, parse_int=str), dict)


@target(b"\x00\x02\x03\x05\x0512123topicevent\x65\x66", b"\x00\x00\x00\x00\x00")
def binary_v2(data: bytes) -> None:
    """A binary frame of version 2."""
    message = _decoded(V2, data, binary=True)
    if message is not None:
        assert message.binary
        assert data.endswith(message.body)


@target(b'{"topic":"room:1","event":"phx_join","payload":{},"ref":"1"}')
def binary_v1(data: bytes) -> None:
    """A binary frame of version 1, which holds text."""
    _decoded(V1, data, binary=True)


@target(b'{"last_seq":7,"device":"web"}', b'[[[1,2.5,"\\ud83d\\ude00",null,true]]]', b'{"a":{"b":[{}]}}')
def payload(data: bytes) -> None:
    """The payload of a message."""
    try:
        value = read_json(data)
    except InvalidPayload as problem:
        assert "\n" not in problem.detail
        return
    _check_value(value, 0)
    json.loads(msgspec.json.encode(value), parse_constant=_refuse_constant, parse_int=str)


def _check_value(value: Any, depth: int) -> None:
    assert depth <= 32
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            _check_value(part, depth + 1)
    assert not isinstance(value, float) or math.isfinite(value)


@target(
    b'["1","1","room:1","phx_join",{}]\n["1","2","room:1","echo",{"a":1}]\n["1","3","room:1","phx_leave",{}]',
    b'["1","1","room:1","phx_join",{}]\n["2","2","room:1","phx_join",{}]\n[null,"3","phoenix","heartbeat",{}]',
    b'["1","1","room:1","phx_join",{}]\n["1","2","room:1","phx_reply",{}]\n["1","3","nope","x",{}]',
)
def conversation(data: bytes) -> None:
    """Messages of one client, a line each, to a channel that answers ``echo``."""
    server = Server()
    server.script.events["echo"] = lambda _, payload: ok(payload)
    client = server.connect()
    with nothing_unforeseen():
        for line in data.split(b"\n")[:100]:
            if _is_text(line):
                client.transport.text(line.decode())
    for frame in client.received():
        _, _, topic, event, body = frame
        assert isinstance(event, str)
        assert isinstance(body, dict), frame
        assert topic is None or not isinstance(topic, dict | list)
        assert event != "phx_reply" or set(body) == {"response", "status"}
    client.lose()
    assert len(server.script.terminated) <= len(server.script.joined)


@contextmanager
def nothing_unforeseen() -> Iterator[None]:
    """Fail where an exception is logged, but for that of an event that no channel knows."""
    with capturedLogs() as events:
        yield
    failures = [event["log_failure"] for event in events if "log_failure" in event]
    for failure in failures:
        assert failure.check(UnhandledEvent), failure.getTraceback()


# --- frames and handshakes ----------------------------------------------------------------------------

MASK: Final = b"abcd"


@target(
    b"\x02\x03\x09" + masked(1, b"hello", mask=MASK) + masked(10, b"", mask=MASK),
    b"\x01\x20\x05" + masked(1, b"a", mask=MASK, fin=False) + masked(0, b"b", mask=MASK),
    b"\x03\x01\x02" + masked(1, b"x" * 200, mask=MASK) + masked(8, b"\x03\xe8", mask=MASK),
    b"\x00\x00\x00" + masked(9, b"ping", mask=MASK) + masked(2, b"\x00\xff", mask=MASK),
)
def frames(data: bytes) -> None:
    """What comes on a connection, in pieces: the short road leads where Autobahn's long one does."""
    sizes, stream = data[:3], data[3:]
    pieces = cut(stream, [size * 7 for size in sizes])
    most = (MAX_SIZE, 2_000, 100)[sizes[0] % 3] if sizes else MAX_SIZE
    short, long = Connection(Recording, most).take(*pieces), Connection(LongRoad, most).take(*pieces)
    assert short == long, (short, long)


@target(
    b"GET /socket/websocket?token=a.b.c&vsn=2.0.0 HTTP/1.1\r\nHost: localhost\r\n"
    b"Origin: https://app.example.com\r\nX-Forwarded-For: 10.0.0.1, 8.8.8.8\r\n"
    b"Authorization: Bearer a.b.c\r\nX-Request-Id: 7",
    b"GET /socket/websocket/?vsn=1.0.0 HTTP/1.1\r\n"
    b"Sec-WebSocket-Protocol: phoenix, base64url.bearer.phx.YS5iLmM\r\n"
    b"traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
def handshake(data: bytes) -> None:
    """The head of an opening handshake."""
    forwarded_for(data)
    assert call_in(data).request_id.isprintable()
    try:
        check_head(data, ORIGINS)
        first, *lines = data.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        offered = [
            name.strip() for name in headers.get("sec-websocket-protocol", "").split(",") if name.strip()
        ]
        accepted = accept(Request(first.split(" ")[1], headers, offered))
    except Refused as refused:
        assert refused.reason.isidentifier()
        assert refused.status in (400, 403, 404, 431)
    else:
        assert accepted.token
        assert accepted.subprotocol in (None, "phoenix")


# --- tokens and keys ----------------------------------------------------------------------------------


def _verified(given: str) -> Principal | None:
    outcomes: list[Any] = []
    Deferred.fromCoroutine(VERIFIER.verify(given)).addBoth(outcomes.append)
    [outcome] = outcomes
    if isinstance(outcome, Principal):
        assert USER_ID_PATTERN.fullmatch(outcome.user_id)
        assert all(USER_ID_PATTERN.fullmatch(group) for group in outcome.groups)
        return outcome
    assert isinstance(outcome.value, Refused), outcome.getTraceback()
    assert (outcome.value.reason, outcome.value.status) in (("invalid_token", 403), ("expired_token", 403))
    return None


@target(token().encode(), b"a.b.c", b"eyJhbGciOiJub25lIn0.e30.")
def tokens(data: bytes) -> None:
    """The text of a token, which nobody but a signer can make."""
    given = data.decode("latin-1")
    assert _verified(given) is None or given == token()


@target(
    b'{"alg":"HS512","typ":"JWT"}\n' + json.dumps(claims()).encode(),
    b'{"alg":"HS512","kid":"k"}\n'
    + json.dumps(claims(nbf=1, iat=1, jti="x", groups=["a"], name="A")).encode(),
    b'{"alg":"none"}\n{"sub":"a","exp":1e400}',
)
def signed_tokens(data: bytes) -> None:
    """A header and claims, which are signed well."""
    header, _, body = data.partition(b"\n")
    _verified(token(body, header))


@target(
    jwks(jwk(ec_key(), kid="a")),
    b'{"keys":[{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":"AA"}]}',
)
def key_sets(data: bytes) -> None:
    """A JWKS."""
    try:
        parse_jwks(data, ("ES256", "RS256", "EdDSA"))
    except ValueError:
        return


@contextmanager
def _file(data: bytes) -> Iterator[Path]:
    handle, name = tempfile.mkstemp(dir=_DIRECTORY)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        yield Path(name)
    finally:
        os.unlink(name)


_DIRECTORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _one_line(problem: Exception) -> None:
    text = str(problem)
    assert len(text.splitlines()) == 1, repr(text)
    assert len(text) < 1_000, repr(text)


ED25519: Final[bytes] = Key(Ed25519PrivateKey.from_private_bytes(bytes(32))).public().toString("openssh")


@target(ED25519, b"# ours\nno-pty " + ED25519 + b"\n\nrestrict " + ED25519)
def manhole_keys(data: bytes) -> None:
    """A file of those who may use the manhole."""
    with _file(data) as path:
        try:
            keys = authorized_keys.read_keys(str(path))
        except StartupError as problem:
            _one_line(problem)
        else:
            assert keys
            assert all(key.comment.isprintable() for key in keys)


@target(
    b"# NAME SCOPES KEY\nbilling notify sha256:"
    + b"0f" * 32
    + b"\ndash read,notify Qm9vZ2llLXdvb2dpZS1idWdsZS1ib3ktMTk0MQ\n"
)
def api_keys(data: bytes) -> None:
    """A file of keys of the HTTP API."""
    with _file(data) as path:
        try:
            keys = read_keys(path)
        except StartupError as problem:
            _one_line(problem)
        else:
            assert len({key.name for key in keys}) == len(keys)


# --- settings -----------------------------------------------------------------------------------------


def _loaded(given: dict[str, object], environ: dict[str, str]) -> None:
    try:
        settings = load(given, environ)
    except ConfigError as problem:
        _one_line(problem)
    else:
        assert 0 < settings.heartbeat_timeout <= 31_536_000
        assert settings.listen
        repr(settings)


@target(
    b'listen = ["tcp:4000"]\nmax-topics = 5\n',
    b"rate-limit = '50/100'\njwt_leeway = 1e1\n[x]\n",
    b"heartbeat-timeout = 1979-05-27",
)
def settings_file(data: bytes) -> None:
    """A TOML file of settings."""
    with _file(data) as path:
        _loaded({"config": str(path)}, {})


def _pairs(data: bytes) -> list[tuple[str, str]]:
    """Read lines ``name=value``; a name that is a number is the setting of that number."""
    found = []
    for line in data.decode("utf-8", "replace").replace("\0", "").split("\n")[:5]:
        name, _, value = line.partition("=")
        found.append((NAMES[int(name) % len(NAMES)] if name.isdecimal() and len(name) < 4 else name, value))
    return found


@target(
    b"3=x\n7=HS256,HS512", b"max-topics=5\nrate-limit=1/2", b"12=1e3\n20=nan", b"trusted-proxies=10.0.0.0/8"
)
def settings_line(data: bytes) -> None:
    """Options of a command line."""
    _loaded({name: value for name, value in _pairs(data) if name != "config"}, {})


@target(b"3=x\n7=HS256,HS512", b"max_topics=5\nrate_limit=1/2", b"20=nan")
def settings_environment(data: bytes) -> None:
    """Variables of the environment."""
    names = {ENVIRONMENT_PREFIX + name.upper().replace("-", "_"): value for name, value in _pairs(data)}
    names.pop(f"{ENVIRONMENT_PREFIX}CONFIG", None)
    _loaded({}, names)


# --- the HTTP API -------------------------------------------------------------------------------------


@target(
    b'{"user_ids":["a"],"type":"t","payload":{},"idempotency_key":"k","expires_at":"2030-01-01T00:00:00Z"}',
    b'{"topic":"group:a","event":"e","payload":{}}',
    b'{"ids":["00000000-0000-0000-0000-000000000000"]}',
    b'{"up_to_seq":9223372036854775807}',
    b'{"jti":"x"}',
)
def bodies(data: bytes) -> None:
    """The body of a call, by each of the forms that there are."""
    for form in BODIES:
        request: Any = SimpleNamespace(getHeader=lambda _: b"application/json", content=BytesIO(data))
        try:
            read = read_body(request, form)
        except ApiError as problem:
            assert (problem.status, problem.code) == (422, "invalid_payload")
            assert problem.detail
        else:
            assert isinstance(read, form)
