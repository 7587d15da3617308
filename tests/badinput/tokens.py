"""Tokens: 1 to 37."""

from __future__ import annotations

import base64
import json
import signal
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.badinput.ground import Ground
from tests.badinput.table import row
from tests.integration.flow_process import eventually
from tests.integration.rawclient import request

INVALID = (403, "invalid_token")
EXPIRED = (403, "expired_token")


def rsa_key() -> tuple[bytes, bytes, rsa.RSAPrivateKey]:
    """A new key: private PEM, public PEM, the key."""
    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), key


def jwks_of(**keys: rsa.RSAPrivateKey) -> str:
    listed = [
        {**jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": "RS256"}
        for kid, key in keys.items()
    ]
    return json.dumps({"keys": listed})


@row(1, "no exp")
def _(ground: Ground) -> None:
    assert ground.refused(ground.token(exp=None)) == INVALID


@row(2, "expired by 11 s, with a leeway of 10")
def _(ground: Ground) -> None:
    assert ground.refused(ground.token(exp=int(time.time()) - 12)) == EXPIRED


@row(3, "expired within the leeway is taken")
def _(ground: Ground) -> None:
    ground.enter(token=ground.token(exp=int(time.time()) - 5)).leave()


@row(4, "nbf in the future")
def _(ground: Ground) -> None:
    assert ground.refused(ground.token(nbf=int(time.time()) + 60)) == INVALID


@row(5, "iat more than 60 s in the future")
def _(ground: Ground) -> None:
    assert ground.refused(ground.token(iat=int(time.time()) + 70)) == INVALID


@row(6, "another iss, or none")
def _(ground: Ground) -> None:
    for issuer in ("other", None, ["crm"], "crm "):
        assert ground.refused(ground.token(iss=issuer)) == INVALID


@row(7, "another aud, or none")
def _(ground: Ground) -> None:
    for audience in ("other", None, 7):
        assert ground.refused(ground.token(aud=audience)) == INVALID


@row(8, "an aud that is a list")
def _(ground: Ground) -> None:
    for audience in (["flow", "other"], ["flow"]):
        assert ground.refused(ground.token(aud=audience)) == INVALID


@row(9, "exp as text")
def _(ground: Ground) -> None:
    assert ground.refused(ground.token(exp="99999999999")) == INVALID


@row(10, "exp that is no finite number")
def _(ground: Ground) -> None:
    good = json.dumps(ground.claims(exp=7))
    for text in ("Infinity", "NaN", "-Infinity", "1e400", "1" * 5_000, "true", "null"):
        assert ground.refused(ground.signed(good.replace('"exp": 7', f'"exp": {text}'))) == INVALID


@row(11, "exp more than 24 h ahead")
def _(ground: Ground) -> None:
    assert ground.refused(ground.token(exp=int(time.time()) + 86_500)) == INVALID


def _unsigned(ground: Ground, algorithm: object) -> str:
    header = json.dumps({"typ": "JWT", **({} if algorithm is ... else {"alg": algorithm})})
    parts = [header.encode(), json.dumps(ground.claims()).encode(), b"x" * 64]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@row(12, "alg none")
def _(ground: Ground) -> None:
    token = _unsigned(ground, "none")
    for form in (token, f"{token.rpartition('.')[0]}."):
        assert ground.refused(form) == INVALID


@row(13, "alg NoNe")
def _(ground: Ground) -> None:
    for algorithm in ("NoNe", "NONE", "nONE"):
        assert ground.refused(_unsigned(ground, algorithm)) == INVALID


@row(14, "alg that is a list, a number, or absent")
def _(ground: Ground) -> None:
    odd: tuple[object, ...] = (["HS512"], 512, None, {}, ...)
    for algorithm in odd:
        assert ground.refused(_unsigned(ground, algorithm)) == INVALID


@row(15, "HS256 with our public key as the secret; families mixed")
def _(ground: Ground) -> None:
    _, public, _ = rsa_key()
    pem = ground.private("public.pem", public)
    options = ("--jwt-algorithms=RS256", f"--jwt-key-file={pem}")
    with ground.another("rs256", *options) as server:
        port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
        for material in (public, public.strip(), public.replace(b"\n", b"\r\n")):
            token = _hs256(material, json.dumps(ground.claims()))
            answer = ground.knock(request(f"/socket/websocket?vsn=2.0.0&token={token}"), port)
            assert (answer.status, answer.reason) == INVALID
    ground.refuses("--jwt-algorithms=HS512,RS256", f"--jwt-key-file={pem}", says="--jwt-algorithms")
    ground.refuses(f"--secret-file={pem}", says="secret")


def _hs256(material: bytes, body: str) -> str:
    import hashlib  # noqa: PLC0415 - PyJWT itself refuses to make such a token
    import hmac  # noqa: PLC0415

    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=")
    signed = head + b"." + base64.urlsafe_b64encode(body.encode()).rstrip(b"=")
    signature = hmac.new(material, signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@row(16, "an empty sub")
def _(ground: Ground) -> None:
    assert ground.refused(ground.token("")) == INVALID


@row(17, "sub with NUL")
def _(ground: Ground) -> None:
    assert ground.refused(ground.token("ali\0ce")) == INVALID


@row(18, "sub with a lone surrogate, and other characters that ids do not have")
def _(ground: Ground) -> None:
    for user_id in ("\ud800", "a b", "a/b", "ä", "x" * 129, "alice\n"):
        assert ground.refused(ground.token(user_id)) == INVALID


@row(19, "sub twice")
def _(ground: Ground) -> None:
    body = json.dumps(ground.claims())
    assert ground.refused(ground.signed(f'{body[:-1]}, "sub": "bob"}}')) == INVALID


@row(20, "sub that is no text")
def _(ground: Ground) -> None:
    for user_id in (7, ["alice"], {"id": "alice"}, True, None):
        assert ground.refused(ground.token(user_id)) == INVALID


@row(21, "crit")
def _(ground: Ground) -> None:
    for crit in (["exp"], ["b64"], [], "exp"):
        header = base64.urlsafe_b64encode(json.dumps({"alg": "HS512", "crit": crit}).encode()).rstrip(b"=")
        token = f"{header.decode()}.{ground.token().partition('.')[2]}"
        assert ground.refused(token) == INVALID


@row(22, "kid that is a path, SQL, a URL, or long")
def _(ground: Ground) -> None:
    _, _, key = rsa_key()
    jwks = ground.private("jwks-22", jwks_of(good=key))
    with ground.another("kid", "--jwt-algorithms=RS256", f"--jwt-jwks={jwks}") as server:
        port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
        for kid in ("../../dev/null", "' OR 1=1 --", "https://evil.example/key", "k" * 4_096, ""):
            token = jwt.encode(ground.claims(), key, "RS256", {"kid": kid})
            answer = ground.knock(request(f"/socket/websocket?vsn=2.0.0&token={token}"), port)
            assert (answer.status, answer.reason) == INVALID, kid


@row(23, "a header that brings a key along")
def _(ground: Ground) -> None:
    for header in ({"jwk": {"kty": "oct", "k": "AAAA"}}, {"jku": "https://evil.example"}, {"x5u": "x"}):
        assert ground.refused(ground.signed(json.dumps(ground.claims()), header)) == INVALID


@row(24, "a storm of unknown kids fetches the JWKS once")
def _(ground: Ground) -> None:
    _, _, key = rsa_key()
    fetched: list[str] = []

    class Keys(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched.append(self.path)
            body = jwks_of(good=key).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    keys = HTTPServer(("127.0.0.1", 0), Keys)
    thread = Thread(target=keys.serve_forever, daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{keys.server_port}/jwks"
    try:
        with ground.another("storm", "--jwt-algorithms=RS256", f"--jwt-jwks={url}") as server:
            port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])
            for number in range(200):
                token = jwt.encode(ground.claims(), key, "RS256", {"kid": f"unknown-{number}"})
                answer = ground.knock(request(f"/socket/websocket?vsn=2.0.0&token={token}"), port)
                assert (answer.status, answer.reason) == INVALID
            assert len(fetched) <= 2, fetched
    finally:
        keys.shutdown()
        keys.server_close()
        thread.join()


@row(25, "a token of 1 MiB")
def _(ground: Ground) -> None:
    assert ground.knock(ground.handshake("a" * 2**20)).status == 431
    assert ground.refused(f"{'a' * 8_200}.b.c") == INVALID


@row(26, "JSON that is nested deeply")
def _(ground: Ground) -> None:
    deep = "[" * 1_500 + "]" * 1_500
    body = json.dumps(ground.claims())
    assert ground.refused(ground.signed(f'{body[:-1]}, "x": {deep}}}')) == INVALID


@row(27, "a token that is no ASCII")
def _(ground: Ground) -> None:
    for token in ("%ff%fe.a.b", "ä.b.c", "%ed%a0%80.a.b"):
        target = f"/socket/websocket?vsn=2.0.0&token={token}"
        answer = ground.knock(request(target.encode().decode("latin-1")))
        assert answer.status in (400, 403)


@row(28, "a space, a line end, padding, the other alphabet")
def _(ground: Ground) -> None:
    good = ground.token()
    for token in (
        f"%20{good}",
        f"{good}%0A",
        f"{good}==",
        good.replace(".", "=.", 1),
        f"{good[:-4]}%2B%2Fab",
    ):
        assert ground.refused(token) == INVALID


@row(29, "five parts")
def _(ground: Ground) -> None:
    assert ground.refused("a.b.c.d.e") == INVALID


@row(30, "a secret that is weak or well known")
def _(ground: Ground) -> None:
    for secret in (b"short", b"x" * 31, b"your-256-bit-secret"):
        ground.refuses(f"--secret-file={ground.private('weak', secret)}", says="secret")


@row(31, "keys rotate: the old one goes, and its connections with it")
def _(ground: Ground) -> None:
    _, _, old = rsa_key()
    _, _, new = rsa_key()
    jwks = ground.private("jwks-31", jwks_of(old=old, new=new))
    with ground.another("rotate", "--jwt-algorithms=RS256", f"--jwt-jwks={jwks}") as server:
        port = int(server.socket_url.removesuffix("/socket").rpartition(":")[2])

        def token(kid: str, key: rsa.RSAPrivateKey) -> str:
            return jwt.encode(ground.claims(), key, "RS256", {"kid": kid})

        one, other = (
            ground.enter(token=token("old", old), port=port),
            ground.enter(token=token("new", new), port=port),
        )
        jwks.write_text(jwks_of(new=new))
        server.send_signal(signal.SIGHUP)
        assert one.closed() == 1000
        assert other.beats()
        answer = ground.knock(request(f"/socket/websocket?vsn=2.0.0&token={token('old', old)}"), port)
        assert (answer.status, answer.reason) == INVALID
        one.leave()
        other.leave()


@row(32, "a token in the URL is in no log")
def _(ground: Ground) -> None:
    token = ground.token()
    ground.enter(token=token).leave()
    assert ground.refused(f"{token}A") == INVALID
    assert ground.knock(request(f"/elsewhere?token={token}")).status == 404
    assert token[-40:] not in ground.server.log


@row(33, "a token that ends during the connection")
def _(ground: Ground) -> None:
    wire = ground.enter(token=ground.token("briefly", exp=int(time.time()) - 9))
    assert wire.closed() == 1000
    wire.leave()
    ground.tried += 1


@row(34, "renewed by somebody else's token")
def _(ground: Ground) -> None:
    with ground.joined() as wire:
        answer = wire.ask("room:1", "access_token", {"access_token": ground.token("bob")})
        assert (answer["status"], answer["response"]["reason"]) == ("error", "invalid_token")
        assert wire.beats()


@row(35, "a revoked jti comes again")
def _(ground: Ground) -> None:
    token = ground.token("carol", jti="stolen")
    wire = ground.enter(token=token)
    assert ground.api("POST", "/api/tokens/revoke", {"jti": "stolen"}).status == 200
    assert wire.closed() == 1000
    wire.leave()
    assert ground.refused(token) == (403, "revoked_token")


@row(36, "how long a refusal takes tells nothing: the signature is checked before anything is looked up")
def _(ground: Ground) -> None:
    # Both are refused at the same step, whoever they name.
    for user_id in ("alice", "nobody-knows-them"):
        token = ground.token(user_id)
        assert ground.refused(f"{token[:-8]}AAAAAAAA") == INVALID


@row(37, "a storm of bad tokens from one address")
def _(ground: Ground) -> None:
    statuses = {
        ground.knock(
            ground.handshake("a.b.c", ("X-Forwarded-For", "198.51.100.7".replace("198.51.100", "8.8.4")))
        ).status
        for _ in range(160)
    }
    assert statuses == {403, 429}, statuses
    wire = ground.enter("dave")
    eventually(wire.beats, "others are let in")
    wire.leave()
