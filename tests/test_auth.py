"""Tokens: every malformed or hostile one is refused, and for its own fault only.

A refused token differs in one point from one that is taken; numbers are those of the list of bad input.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.auth import USER_ID_PATTERN, TokenVerifier, key_source, mint, signing_algorithm
from flowtx.config import Settings
from flowtx.errors import ConfigError, FlowtxError, InvalidPayload, Refused, StartupError
from flowtx.interfaces import Principal
from flowtx.keys import parse_jwks

NOW = 1_800_000_000
SECRET = base64.b64encode(hashlib.sha512(b"of the tests").digest())
HASHES = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}


def rsa_key(bits: int = 2048, number: int = 0) -> rsa.RSAPrivateKey:
    return _rsa_key(bits, number)


@cache
def _rsa_key(bits: int, number: int) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, bits)


@cache
def ec_key(curve: type[ec.EllipticCurve] = ec.SECP256R1) -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(curve())


@cache
def ed_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def public_pem(key: Any) -> bytes:
    pem: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return pem


def private_pem(key: Any) -> bytes:
    pem: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return pem


def jwk(key: Any, **members: object) -> dict[str, Any]:
    """Make the JWK of a key; of its public half where it is a private one."""
    public = key.public_key() if hasattr(key, "public_key") else key
    algorithm: Any = jwt.algorithms.OKPAlgorithm
    if isinstance(public, rsa.RSAPublicKey):
        algorithm = jwt.algorithms.RSAAlgorithm
    elif isinstance(public, ec.EllipticCurvePublicKey):
        algorithm = jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(public, as_dict=True), **members}


def jwks(*keys: Mapping[str, object]) -> bytes:
    return json.dumps({"keys": keys}).encode()


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(**changed: object) -> dict[str, object]:
    """Return good claims with some changed; None takes one out."""
    usual: dict[str, object] = {"sub": "alice", "exp": NOW + 3600}
    return {name: value for name, value in {**usual, **changed}.items() if value is not None}


def token(
    payload: Mapping[str, object] | bytes | None = None,
    header: Mapping[str, object] | bytes | None = None,
    *,
    secret: bytes = SECRET,
    algorithm: str = "HS512",
) -> str:
    """Sign whatever it is with an HMAC; bytes go in as they are."""
    payload = claims() if payload is None else payload
    header = {"alg": algorithm, "typ": "JWT"} if header is None else header
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (header, payload)]
    signed = ".".join(b64(part) for part in parts)
    return f"{signed}.{b64(hmac.new(secret, signed.encode(), HASHES[algorithm]).digest())}"


def with_header(**more: object) -> str:
    return token(header={"alg": "HS512", "typ": "JWT", **more})


def text_claims(text: str) -> bytes:
    """Put further JSON text into good claims, as it is."""
    return b'{"exp":%d,%s}' % (NOW + 3600, text.encode())


def hmac_verifier(*, secret: bytes = SECRET, **changed: Any) -> TokenVerifier:
    settings = Settings(**changed)
    return TokenVerifier(settings, key_source(settings, secret, reactor=Clock()), now=lambda: float(NOW))


class TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="flowtx-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def write(self, content: bytes) -> str:
        handle, path = tempfile.mkstemp(dir=self.directory)
        with open(handle, "wb") as file:
            file.write(content)
        return path

    def public_verifier(self, key: Any, *algorithms: str) -> TokenVerifier:
        settings = Settings(jwt_algorithms=algorithms, jwt_key_file=self.write(public_pem(key)))
        return TokenVerifier(settings, key_source(settings, None, reactor=Clock()), now=lambda: float(NOW))

    def accepted(self, given: str, verifier: TokenVerifier | None = None) -> Principal:
        """Verify that a token is taken, and return whom it names; without the id of the key."""
        deferred = Deferred.fromCoroutine((verifier or hmac_verifier()).verify(given))
        principal = self.successResultOf(deferred)
        self.assertTrue(principal.key_id)
        return msgspec.structs.replace(principal, key_id=None)

    def refused(self, given: str, verifier: TokenVerifier | None = None) -> str:
        """Verify that a token is refused with 403, and return the reason."""
        deferred = Deferred.fromCoroutine((verifier or hmac_verifier()).verify(given))
        refused = self.failureResultOf(deferred, Refused).value
        self.assertEqual((refused.status, refused.headers), (403, {}))
        return str(refused.reason)

    def assert_invalid(self, given: str, verifier: TokenVerifier | None = None) -> None:
        self.assertEqual(self.refused(given, verifier), "invalid_token", given[:200])

    def one_line(self, error: type[FlowtxError], word: str, function: Any, *args: Any, **kwargs: Any) -> None:
        text = str(self.assertRaises(error, function, *args, **kwargs))
        self.assertNotIn("\n", text)
        self.assertIn(word, text)


class GoodTokenTests(TestCase):
    def test_the_base_of_the_table(self) -> None:
        self.assertEqual(self.accepted(token()), Principal("alice", NOW + 3600))

    def test_hmac_algorithms(self) -> None:
        self.assertEqual(self.accepted(token(algorithm="HS256")).user_id, "alice")
        verifier = hmac_verifier(jwt_algorithms=("HS384",))
        self.assertEqual(self.accepted(token(algorithm="HS384"), verifier).user_id, "alice")

    def test_public_key_algorithms(self) -> None:
        for key, algorithm in (
            (rsa_key(), "RS256"),
            (rsa_key(), "RS512"),
            (rsa_key(), "PS256"),
            (ec_key(), "ES256"),
            (ec_key(ec.SECP384R1), "ES384"),
            (ec_key(ec.SECP521R1), "ES512"),
            (ed_key(), "EdDSA"),
            (ed448.Ed448PrivateKey.generate(), "EdDSA"),
        ):
            signed = jwt.encode(claims(), key, algorithm)
            self.assertEqual(self.accepted(signed, self.public_verifier(key, algorithm)).user_id, "alice")

    def test_a_signature_of_another_key_is_refused(self) -> None:
        for key, other, algorithm in (
            (rsa_key(), rsa_key(number=1), "RS256"),
            (rsa_key(), rsa_key(number=1), "PS256"),
            (ec_key(), ec.generate_private_key(ec.SECP256R1()), "ES256"),
            (ed_key(), ed25519.Ed25519PrivateKey.generate(), "EdDSA"),
        ):
            self.assert_invalid(jwt.encode(claims(), other, algorithm), self.public_verifier(key, algorithm))
        self.assert_invalid(token(secret=SECRET[::-1]))

    def test_a_changed_claim_or_header_is_refused(self) -> None:
        header, body, signature = token().split(".")
        forged = b64(json.dumps(claims(sub="bob")).encode())
        self.assert_invalid(f"{header}.{forged}.{signature}")
        other = b64(json.dumps({"alg": "HS512"}).encode())
        self.assert_invalid(f"{other}.{body}.{signature}")

    def test_a_token_of_guardian(self) -> None:
        guardian = token(
            {
                "aud": "crm",
                "exp": NOW + 3600,
                "iat": NOW,
                "iss": "crm",
                "jti": "4a2e7d2c-56b2-4b9b-8f0e-b2d5a3f7f4a1",
                "nbf": NOW - 1,
                "sub": "42",
                "typ": "access",
            }
        )
        principal = self.accepted(guardian)
        self.assertEqual(principal.user_id, "42")
        self.assertEqual(principal.token_id, "4a2e7d2c-56b2-4b9b-8f0e-b2d5a3f7f4a1")
        both = hmac_verifier(jwt_issuer="crm", jwt_audience="crm")
        self.assertEqual(self.accepted(guardian, both).user_id, "42")

    def test_what_is_taken_out_of_the_claims(self) -> None:
        given = claims(
            groups=["eu", "a:b", "eu"], name="Alice Ö", email="a@example.com", jti="x", other=[1, {}]
        )
        self.assertEqual(
            self.accepted(token(given)),
            Principal("alice", NOW + 3600, "x", ("eu", "a:b"), "Alice Ö", "a@example.com"),
        )

    def test_a_name_that_is_none_is_ignored(self) -> None:
        for odd in (17, ["x"], "a\0b", "a\nb", "a\x7f", "a\x85", "x" * 257, "\ud800", "", True):
            principal = self.accepted(token(claims(name=odd, email=odd)))
            self.assertEqual((principal.name, principal.email), (None, None), repr(odd))
        self.assertEqual(self.accepted(token(claims(name="x" * 256))).name, "x" * 256)

    def test_every_character_of_a_user_id(self) -> None:
        for user_id in ("a", "0", "A-z_0.9:@x", "x" * 128, "auth0:123", "alice@example.com"):
            self.assertEqual(self.accepted(token(claims(sub=user_id))).user_id, user_id)

    def test_a_kid_of_an_ordinary_form_does_not_matter(self) -> None:
        for kid in ("k1", "2026-11", "a.b_c+d=", "x" * 128):
            self.accepted(with_header(kid=kid))


class TimeTests(TestCase):
    def test_1_no_exp(self) -> None:
        self.assert_invalid(token(claims(exp=None)))

    def test_2_expired(self) -> None:
        self.assertEqual(self.refused(token(claims(exp=NOW - 11))), "expired_token")

    def test_3_expired_within_the_leeway(self) -> None:
        self.assertEqual(self.accepted(token(claims(exp=NOW - 9))).expires_at, NOW - 9)
        self.assertEqual(
            self.refused(token(claims(exp=NOW - 9)), hmac_verifier(jwt_leeway=5)), "expired_token"
        )

    def test_4_not_yet_valid(self) -> None:
        self.assert_invalid(token(claims(nbf=NOW + 11)))
        self.accepted(token(claims(nbf=NOW + 9)))

    def test_5_issued_in_the_future(self) -> None:
        self.assert_invalid(token(claims(iat=NOW + 61)))
        self.accepted(token(claims(iat=NOW + 59)))

    def test_9_times_that_are_no_numbers(self) -> None:
        odd: object
        for name in ("exp", "nbf", "iat"):
            for odd in (str(NOW + 60), True, [NOW + 60], {}):
                self.assert_invalid(token(claims(**{name: odd})))
            self.assert_invalid(token(b'{"sub":"alice","exp":%d,"%s":null}' % (NOW + 60, name.encode())))
        self.assert_invalid(token({"sub": "alice", "exp": None}))

    def test_9_a_fraction_is_a_number(self) -> None:
        self.assertEqual(self.accepted(token(claims(exp=NOW + 0.5, nbf=NOW - 0.5))).expires_at, NOW + 0.5)

    def test_10_numbers_that_are_none(self) -> None:
        forever = hmac_verifier(jwt_max_lifetime=0)
        self.accepted(token(b'{"sub":"alice","exp":253402300799}'), forever)
        for odd in (
            "Infinity",
            "-Infinity",
            "NaN",
            "1e400",
            "9" * 5000,
            "9" * 400,
            "9" * 41,
            "1e300",
            "253402300800",
        ):
            self.assert_invalid(token(b'{"sub":"alice","exp":%s}' % odd.encode()), forever)
            self.assert_invalid(token(text_claims(f'"sub":"alice","nbf":{odd}')))
        # Nor anywhere else in the token: not every reader takes them the same way.
        self.assert_invalid(token(text_claims('"sub":"alice","x":NaN')))
        self.assert_invalid(token(text_claims('"sub":"alice","x":[1e999]')))

    def test_10_numbers_in_the_far_past(self) -> None:
        for odd in ("-1e300", "0", "-0.0"):
            given = token(b'{"sub":"alice","exp":%s}' % odd.encode())
            self.assertEqual(self.refused(given), "expired_token")

    def test_11_a_lifetime_too_long(self) -> None:
        self.accepted(token(claims(exp=NOW + 86_410)))
        self.assert_invalid(token(claims(exp=NOW + 86_411)))
        self.accepted(token(claims(exp=NOW + 86_411)), hmac_verifier(jwt_max_lifetime=0))
        self.assert_invalid(token(claims(exp=NOW + 71)), hmac_verifier(jwt_max_lifetime=60))

    def test_what_is_not_signed_is_invalid_and_not_expired(self) -> None:
        self.assert_invalid(token(claims(exp=NOW - 11), secret=SECRET[::-1]))

    def test_the_time_is_asked_for_at_each_token(self) -> None:
        clock = Clock()
        clock.advance(NOW)
        settings = Settings()
        verifier = TokenVerifier(settings, key_source(settings, SECRET, reactor=clock), now=clock.seconds)
        given = token(claims(exp=NOW + 60))
        self.accepted(given, verifier)
        clock.advance(71)
        self.assertEqual(self.refused(given, verifier), "expired_token")


class ClaimTests(TestCase):
    def test_6_issuer(self) -> None:
        strict = hmac_verifier(jwt_issuer="crm")
        self.accepted(token(claims(iss="crm")), strict)
        for odd in ("crm2", "CRM", "", ["crm"], {"crm": 1}, None):
            self.assert_invalid(token(claims(iss=odd)), strict)
        self.accepted(token(claims(iss="whoever")))

    def test_7_audience(self) -> None:
        strict = hmac_verifier(jwt_audience="flowtx")
        self.accepted(token(claims(aud="flowtx")), strict)
        for odd in ("other", "", "flowtx,other", {"flowtx": 1}, None):
            self.assert_invalid(token(claims(aud=odd)), strict)
        self.accepted(token(claims(aud="whoever")))

    def test_8_audience_list(self) -> None:
        given = token(claims(aud=["flowtx", "other"]))
        self.assert_invalid(given, hmac_verifier(jwt_audience="flowtx"))
        listed = hmac_verifier(jwt_audience="flowtx", jwt_audience_list=True)
        self.accepted(given, listed)
        self.accepted(token(claims(aud="flowtx")), listed)
        self.assert_invalid(token(claims(aud=["other"])), listed)
        self.assert_invalid(token(claims(aud=[["flowtx"]])), listed)

    def test_16_to_18_user_ids_that_break_things(self) -> None:
        for odd in ("", "a\0b", "\ud800", "a b", "a/b", "a'b", "ä", "a\n", "x" * 129, "a*", "a,b"):
            self.assert_invalid(token(claims(sub=odd)))
            self.assertIsNone(USER_ID_PATTERN.match(odd))
        self.assert_invalid(token(claims(sub=None)))

    def test_19_a_claim_given_twice(self) -> None:
        self.accepted(token(text_claims('"sub":"alice"')))
        self.assert_invalid(token(text_claims('"sub":"bob","sub":"alice"')))
        self.assert_invalid(token(text_claims('"sub":"alice","s\\u0075b":"alice"')))
        self.assert_invalid(token(text_claims('"sub":"alice","x":{"a":1,"a":2}')))
        self.assert_invalid(token(header=b'{"alg":"HS512","alg":"HS512"}'))

    def test_20_user_ids_that_are_no_text(self) -> None:
        for odd in (42, ["alice"], {"id": "alice"}, True):
            self.assert_invalid(token(claims(sub=odd)))
        self.assert_invalid(token(text_claims('"sub":null')))

    def test_claims_that_are_no_object(self) -> None:
        for odd in (b"[]", b'"alice"', b"1", b"null", b"", b"{", b'{"sub":"alice"}{}', b"\xef\xbb\xbf{}"):
            self.assert_invalid(token(odd))
        for encoding in ("utf-16", "utf-16-le", "utf-32"):
            self.assert_invalid(token(json.dumps(claims()).encode(encoding)))

    def test_typ(self) -> None:
        self.accepted(token(claims(typ="access")))
        for odd in ("refresh", "", "Access", 1, ["access"]):
            self.assert_invalid(token(claims(typ=odd)))

    def test_jti(self) -> None:
        self.assertEqual(self.accepted(token(claims(jti="x" * 256))).token_id, "x" * 256)
        for odd in ("x" * 257, "", "a\0b", "\udfff", 7, ["x"]):
            self.assert_invalid(token(claims(jti=odd)))
        self.assert_invalid(token(text_claims('"sub":"alice","jti":null')))

    def test_groups(self) -> None:
        hundred = [f"g{number}" for number in range(100)]
        self.assertEqual(self.accepted(token(claims(groups=hundred))).groups, tuple(hundred))
        for odd in ([*hundred, "g100"], "eu", {"eu": 1}, [1], [None], ["a b"], [""], ["x" * 129], [["eu"]]):
            self.assert_invalid(token(claims(groups=odd)))
        self.assert_invalid(token(text_claims('"sub":"alice","groups":null')))


class HeaderTests(TestCase):
    def test_12_to_14_algorithms(self) -> None:
        for odd in (
            "none",
            "NoNe",
            "",
            "hs512",
            "HS384",
            "RS256",
            "HS512 ",
            ["HS512"],
            512,
            None,
            {"HS512": 1},
        ):
            self.assert_invalid(token(header={"alg": odd, "typ": "JWT"}))
        self.assert_invalid(token(header={"typ": "JWT"}))

    def test_12_no_signature(self) -> None:
        for odd in ("none", "HS512"):
            header, body, _ = token(header={"alg": odd}).split(".")
            self.assert_invalid(f"{header}.{body}.")
            self.assert_invalid(f"{header}.{body}")
            self.assert_invalid(f"{header}.{body}.AA")

    def test_15_a_public_key_as_a_shared_secret(self) -> None:
        public = rsa_key().public_key()
        pem = public_pem(rsa_key())
        verifier = self.public_verifier(rsa_key(), "RS256")
        self.accepted(jwt.encode(claims(), rsa_key(), "RS256"), verifier)
        for form in (
            pem,
            pem.strip(),
            pem.replace(b"\n", b"\r\n"),
            public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
            json.dumps(jwk(rsa_key())).encode(),
        ):
            self.assert_invalid(token(secret=form, algorithm="HS256"), verifier)

    def test_15_families_are_never_mixed(self) -> None:
        settings = Settings(jwt_algorithms=("HS256", "RS256"), jwt_key_file=self.write(public_pem(rsa_key())))
        self.one_line(ConfigError, "mixed", key_source, settings, SECRET, reactor=Clock())

    def test_15_an_algorithm_that_does_not_fit_the_key(self) -> None:
        verifier = self.public_verifier(rsa_key(), "RS256", "ES256")
        self.assert_invalid(jwt.encode(claims(), ec_key(), "ES256"), verifier)
        self.assert_invalid(jwt.encode(claims(), rsa_key(), "PS256"), verifier)

    def test_21_crit(self) -> None:
        for odd in (["exp"], ["b64"], ["x-unknown"], [], None, "b64"):
            self.assert_invalid(with_header(crit=odd))
        self.assert_invalid(with_header(crit=["b64"], b64=True))
        self.assert_invalid(with_header(b64=False))

    def test_22_kid(self) -> None:
        for odd in (
            "../../dev/null",
            "x' UNION SELECT 'k",
            "https://evil.example/k",
            "k" * 4096,
            "k" * 129,
            "a b",
            "k\n",
            "",
            "\0",
            7,
            None,
            ["k"],
        ):
            self.assert_invalid(with_header(kid=odd))

    def test_23_headers_that_bring_a_key(self) -> None:
        own = jwk(rsa_key())
        for name, odd in (
            ("jwk", own),
            ("jwk", None),
            ("jku", "https://evil.example/jwks.json"),
            ("x5u", "https://evil.example/x.pem"),
            ("x5c", ["MIIB"]),
        ):
            self.assert_invalid(with_header(**{name: odd}))

    def test_headers_that_are_no_object(self) -> None:
        for odd in (b"[]", b'"HS512"', b"null", b"{", b'{"alg":"HS512"'):
            self.assert_invalid(token(header=odd))


class FormTests(TestCase):
    def test_25_size(self) -> None:
        sizes = {}
        for padding in range(5900, 6100):
            given = token(claims(x="x" * padding))
            sizes[len(given)] = given
        longest = max(size for size in sizes if size <= 8192)
        shortest = min(size for size in sizes if size > 8192)
        self.assertGreater(longest, 8188)
        self.accepted(sizes[longest])
        self.assert_invalid(sizes[shortest])
        self.assert_invalid(token(claims(x="x" * 2**20)))

    def test_26_depth(self) -> None:
        def nested(depth: int) -> str:
            return "[" * depth + "]" * depth

        self.accepted(token(text_claims(f'"sub":"alice","x":{nested(31)}')))
        self.assert_invalid(token(text_claims(f'"sub":"alice","x":{nested(32)}')))
        self.assert_invalid(token(text_claims(f'"sub":"alice","x":{nested(2500)}')))
        self.assert_invalid(token(text_claims(f'"sub":"alice","x":{"[" * 5000}')))
        self.assert_invalid(token(text_claims(f'"sub":"alice","x":{nested(100_000)}')))
        self.assert_invalid(token(header=b'{"alg":"HS512","x":%s}' % nested(2000).encode()))
        self.assert_invalid(token(header=b"[" * 100_000))

    def test_26_brackets_in_text_are_no_depth(self) -> None:
        self.accepted(token(claims(x="[{" * 500 + '"' + "\\" + '"[' * 50)))
        self.accepted(token(claims(x=[[]] * 100)))

    def test_27_characters_that_are_none(self) -> None:
        for odd in ("\ud800", "é", "\0", "\N{FULLWIDTH LATIN SMALL LETTER A}", "\N{ARABIC-INDIC DIGIT ONE}"):
            self.assert_invalid(token() + odd)
            self.assert_invalid(odd + token())
            header, body, signature = token().split(".")
            self.assert_invalid(f"{header}.{body}{odd}.{signature}")
        self.assert_invalid(token(b'{"exp":%d,"sub":"alice","x":"\xff"}' % (NOW + 60)))
        self.assert_invalid(token(b'{"exp":%d,"sub":"alice","x":"\xed\xa0\x80"}' % (NOW + 60)))
        self.assert_invalid(token(header=b'{"alg":"HS512","x":"\xff"}'))

    def test_28_other_ways_to_write_it(self) -> None:
        given = token()
        header, body, signature = given.split(".")
        for odd in (
            f" {given}",
            f"{given} ",
            f"{given}\n",
            f"\n{given}",
            f"{given}=",
            f"{given}==",
            f"{header}=.{body}.{signature}",
            f"{header}.{body}\n.{signature}",
            f"Bearer {given}",
            f'"{given}"',
        ):
            self.assert_invalid(odd)

    def test_28_the_standard_alphabet(self) -> None:
        plain = next(
            given
            for given in (token(claims(x=number)) for number in range(1000))
            if "-" in given.split(".")[2] and "_" in given.split(".")[2]
        )
        self.accepted(plain)
        self.assert_invalid(plain.replace("-", "+").replace("_", "/"))

    def test_28_bits_that_nobody_reads(self) -> None:
        # A signature of 64 bytes ends in a character of which four bits are not used.
        given = token()
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        last = alphabet.index(given[-1])
        self.assertEqual(last % 16, 0)
        self.assert_invalid(given[:-1] + alphabet[last + 1])

    def test_29_other_numbers_of_parts(self) -> None:
        given = token()
        for odd in (
            "",
            ".",
            "..",
            "...",
            "a.b.c.d.e",
            f"{given}.",
            f".{given}",
            f"{given}.{given}",
            f"{given}.a.b",
        ):
            self.assert_invalid(odd)

    def test_what_is_no_text(self) -> None:
        odd: Any
        for odd in (None, 7, token().encode(), ["a.b.c"], {}):
            self.assert_invalid_value(odd)

    def assert_invalid_value(self, odd: Any) -> None:
        refused = self.failureResultOf(Deferred.fromCoroutine(hmac_verifier().verify(odd)), Refused)
        self.assertEqual(refused.value.reason, "invalid_token")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
CLAIM_NAMES = st.sampled_from(
    ["sub", "exp", "nbf", "iat", "jti", "typ", "groups", "name", "email", "iss", "aud"]
)
HEADER_NAMES = st.sampled_from(["alg", "kid", "typ", "crit", "b64", "jwk", "cty", "zip"])


class AnythingTests(TestCase):
    """Whatever comes: a Principal, or Refused with 403."""

    def check(self, given: str, verifier: TokenVerifier) -> Principal | None:
        outcomes: list[Any] = []
        Deferred.fromCoroutine(verifier.verify(given)).addBoth(outcomes.append)
        [outcome] = outcomes
        if isinstance(outcome, Principal):
            self.assertTrue(USER_ID_PATTERN.fullmatch(outcome.user_id))
            return outcome
        self.assertIsInstance(outcome.value, Refused)
        self.assertIn(outcome.value.reason, ("invalid_token", "expired_token"))
        self.assertEqual(outcome.value.status, 403)
        return None

    @hypothesis_settings(deadline=None)
    @given(st.text(st.characters()) | st.from_regex(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+"))
    def test_any_text(self, given: str) -> None:
        self.assertIsNone(self.check(given, hmac_verifier()))

    @hypothesis_settings(deadline=None)
    @given(st.binary(), st.binary())
    def test_any_bytes_signed(self, header: bytes, payload: bytes) -> None:
        self.assertIsNone(self.check(token(payload, header), hmac_verifier()))
        self.assertIsNone(self.check(token(payload), hmac_verifier()))

    @hypothesis_settings(max_examples=300, deadline=None)
    @given(st.dictionaries(CLAIM_NAMES, JSON), st.dictionaries(HEADER_NAMES, JSON), st.booleans())
    def test_any_claims_and_headers_signed(
        self, changed: dict[str, object], header: dict[str, object], sound: bool
    ) -> None:
        given = token({**claims(), **changed}, {"alg": "HS512"} if sound else {"alg": "HS512", **header})
        principal = self.check(given, hmac_verifier())
        if sound and not changed:
            self.assertIsNotNone(principal)

    @hypothesis_settings(deadline=None)
    @given(st.data())
    def test_any_change_of_a_good_token(self, data: st.DataObject) -> None:
        given = token()
        index = data.draw(st.integers(0, len(given) - 1))
        other = data.draw(st.characters())
        if other != given[index]:
            self.assertIsNone(self.check(given[:index] + other + given[index + 1 :], hmac_verifier()))

    @hypothesis_settings(deadline=None)
    @given(st.dictionaries(st.text(), JSON), st.lists(JSON))
    def test_any_jwks(self, members: dict[str, Any], keys: list[Any]) -> None:
        for document in (members, {"keys": keys}, {"keys": [{**jwk(ec_key()), **members}]}):
            try:
                parse_jwks(json.dumps(document).encode(), ("ES256", "RS256", "EdDSA"))
            except ValueError:
                self.assertNotIsInstance(document.get("keys"), list)


class MintTests(TestCase):
    def mint(self, **changed: Any) -> str:
        given = {"secret": SECRET, "algorithm": "HS512", "user_id": "alice", "ttl": 60.0, "now": float(NOW)}
        return mint(**{**given, **changed})

    def test_it_is_taken(self) -> None:
        principal = self.accepted(self.mint())
        self.assertEqual((principal.user_id, principal.expires_at), ("alice", NOW + 60))

    def test_each_can_be_revoked_alone(self) -> None:
        first, second = self.accepted(self.mint()).token_id, self.accepted(self.mint()).token_id
        self.assertIsNotNone(first)
        self.assertNotEqual(first, second)

    def test_claims(self) -> None:
        more = {"groups": ["eu"], "name": "Alice", "jti": "j", "iss": "crm", "sub": "bob", "exp": 1}
        principal = self.accepted(self.mint(claims=more), hmac_verifier(jwt_issuer="crm"))
        self.assertEqual(principal, Principal("alice", NOW + 60, "j", ("eu",), "Alice", None, NOW))

    def test_what_would_be_refused_is_not_made(self) -> None:
        self.one_line(InvalidPayload, "a\\nb", self.mint, user_id="a\nb")
        self.one_line(InvalidPayload, "8192", self.mint, claims={"x": "x" * 8000})
        self.one_line(StartupError, "64 for HS512", self.mint, secret=SECRET[:40])
        self.one_line(StartupError, "RS256", self.mint, algorithm="RS256")

    def test_the_algorithm_for_a_secret(self) -> None:
        self.assertEqual(signing_algorithm(("HS512", "HS256"), b"x" * 64), "HS512")
        self.assertEqual(signing_algorithm(("HS512", "HS256"), b"x" * 63), "HS256")
        self.one_line(StartupError, "64 for HS512", signing_algorithm, ("HS512",), b"x" * 63)
        self.one_line(StartupError, "RS256", signing_algorithm, ("RS256",), b"x" * 64)


class KeySourceTests(TestCase):
    def source(self, secret: bytes | None = None, **changed: Any) -> Any:
        return key_source(Settings(**changed), secret, reactor=Clock())

    def test_30_weak_secrets(self) -> None:
        self.one_line(StartupError, "31 bytes", self.source, SECRET[:31])
        self.one_line(StartupError, "well known", self.source, b"secret" * 20)
        self.source(SECRET[:32])

    def test_30_each_algorithm_has_its_shortest_secret(self) -> None:
        short = SECRET[:40]
        verifier = hmac_verifier(secret=short)
        self.accepted(token(secret=short, algorithm="HS256"), verifier)
        self.assert_invalid(token(secret=short), verifier)
        self.one_line(StartupError, "64 for HS512", self.source, short, jwt_algorithms=("HS512",))

    def test_no_secret(self) -> None:
        self.one_line(ConfigError, "secret", self.source, None)

    def test_a_public_key_as_a_secret(self) -> None:
        for form in (
            public_pem(rsa_key()),
            json.dumps(jwk(rsa_key())).encode(),
            b"ssh-rsa " + SECRET,
            b"sk-ssh-ed25519@x " + SECRET,
        ):
            self.one_line(StartupError, "public key", self.source, form.strip())
        for form in (b"sk-" + SECRET, b"{" + SECRET, b"[" + SECRET):
            self.source(form)

    def test_key_files(self) -> None:
        hundred_keys = public_pem(ec_key()) * 2
        for content, word in (
            (private_pem(rsa_key()), "private"),
            (SECRET, "no secret"),
            (b"", "PEM"),
            (hundred_keys, "one public key"),
            (public_pem(rsa_key(1024)), "1024 bits"),
            (public_pem(ec_key(ec.SECP256K1)), "256 bits"),
            (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "no public key"),
            (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no public key"),
            (b"\xff\x00", "PEM"),
        ):
            path = self.write(content)
            self.one_line(StartupError, word, self.source, jwt_algorithms=("RS256",), jwt_key_file=path)

    def test_a_key_that_does_not_fit_the_algorithms(self) -> None:
        for key, algorithm in (
            (ec_key(ec.SECP384R1), "ES256"),
            (rsa_key(), "ES256"),
            (ed_key(), "RS256"),
            (ec_key(), "EdDSA"),
        ):
            path = self.write(public_pem(key))
            self.one_line(ConfigError, algorithm, self.source, jwt_algorithms=(algorithm,), jwt_key_file=path)

    def test_files_that_cannot_be_read(self) -> None:
        for name in ("/nowhere/at/all", os.curdir, "a\0b"):
            for setting in ("jwt_key_file", "jwt_jwks"):
                given: dict[str, Any] = {"jwt_algorithms": ("RS256",), setting: name}
                option = f"--{setting.replace('_', '-')}"
                self.one_line(StartupError, option, self.source, **given)

    def test_urls(self) -> None:
        for url in (
            "https://idp.example/jwks.json",
            "http://127.0.0.1:81/jwks",
            "http://localhost/",
            "http://[::1]/",
        ):
            self.source(jwt_algorithms=("RS256",), jwt_jwks=url)
        for url in (
            "http://idp.example/jwks.json",
            "http://127.0.0.1.evil.example/",
            "http://10.0.0.1/",
            "ftp://127.0.0.1/",
            "file:///etc/jwks",
            "https://",
            "https://idp.example:99999/",
            "https://idp.example/a b",
            "https://idp.exämple/",
            "https://idp.example/\n",
            "https://[::1/",
        ):
            self.one_line(ConfigError, "--jwt-jwks", self.source, jwt_algorithms=("RS256",), jwt_jwks=url)

    def test_a_password_in_a_url_is_not_repeated(self) -> None:
        given: dict[str, Any] = {"jwt_algorithms": ("RS256",), "jwt_jwks": "https://u:hunter2@idp.example/"}
        error = self.assertRaises(ConfigError, self.source, **given)
        self.assertNotIn("hunter2", str(error))


class JwksFileTests(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.clock = Clock()

    def verifier(self, content: bytes, *algorithms: str) -> TokenVerifier:
        self.path = self.write(content)
        settings = Settings(jwt_algorithms=algorithms, jwt_jwks=self.path)
        source = key_source(settings, None, reactor=self.clock)
        return TokenVerifier(settings, source, now=lambda: float(NOW))

    def signed(self, key: Any, algorithm: str, **header: object) -> str:
        return jwt.encode(claims(), key, algorithm, headers={"typ": "JWT", **header})

    def rewrite(self, content: bytes) -> None:
        """Replace the file as an editor would, under another inode."""
        Path(f"{self.path}.new").write_bytes(content)
        os.replace(f"{self.path}.new", self.path)

    def test_the_key_of_that_name(self) -> None:
        verifier = self.verifier(
            jwks(jwk(rsa_key(), kid="r"), jwk(ec_key(), kid="../e"), jwk(ed_key(), kid="")),
            "RS256",
            "ES256",
            "EdDSA",
        )
        self.accepted(self.signed(rsa_key(), "RS256", kid="r"), verifier)
        self.accepted(self.signed(ec_key(), "ES256", kid="../e"), verifier)
        self.accepted(self.signed(ed_key(), "EdDSA", kid=""), verifier)
        for odd in ("R", "r ", "e", "x", "../../dev/null", "https://evil.example/", "k" * 4096):
            self.assert_invalid(self.signed(rsa_key(), "RS256", kid=odd), verifier)
        self.assert_invalid(self.signed(rsa_key(), "RS256", kid="../e"), verifier)
        self.assert_invalid(self.signed(ec_key(), "ES256", kid="r"), verifier)

    def test_without_a_name_there_must_be_no_choice(self) -> None:
        given = self.signed(rsa_key(), "RS256")
        for only in (jwk(rsa_key()), jwk(rsa_key(), kid="r")):
            self.accepted(given, self.verifier(jwks(only), "RS256"))
        # Keys that cannot be used are no choice.
        self.accepted(given, self.verifier(jwks(jwk(rsa_key()), jwk(ec_key())), "RS256"))
        two = jwks(jwk(rsa_key(), kid="a"), jwk(rsa_key(number=1), kid="b"))
        self.assert_invalid(given, self.verifier(two, "RS256"))

    def test_a_name_must_be_the_key_s(self) -> None:
        self.assert_invalid(
            self.signed(rsa_key(), "RS256", kid="x"), self.verifier(jwks(jwk(rsa_key())), "RS256")
        )

    def test_keys_that_cannot_be_used(self) -> None:
        good = jwk(rsa_key(), kid="r", use="sig", alg="RS256", key_ops=["verify"])
        self.accepted(self.signed(rsa_key(), "RS256", kid="r"), self.verifier(jwks(good), "RS256"))
        secret = {"kty": "oct", "k": b64(SECRET), "kid": "r"}
        for odd in (
            {**good, "use": "enc"},
            {**good, "alg": "RS512"},
            {**good, "alg": ["RS256"]},
            {**good, "key_ops": ["encrypt"]},
            {**good, "kty": ["RSA"]},
            {**good, "n": 7},
            {**good, "n": b64(b"\1")},
            jwk(rsa_key(1024), kid="r"),
            jwk(ec_key(), kid="r"),
            secret,
            "r",
        ):
            document: Any = odd
            self.one_line(StartupError, "no key that fits", self.verifier, jwks(document), "RS256")
        # A key may be kept for one algorithm of those that would fit.
        pinned = self.verifier(jwks(good), "RS256", "PS256")
        self.assert_invalid(self.signed(rsa_key(), "PS256", kid="r"), pinned)
        self.accepted(self.signed(rsa_key(), "RS256", kid="r"), pinned)
        # And next to a good one they do no harm.
        mixed = self.verifier(jwks(secret, good), "RS256")
        self.accepted(self.signed(rsa_key(), "RS256", kid="r"), mixed)
        self.assert_invalid(token(algorithm="HS256", header={"alg": "HS256", "kid": "r"}), mixed)

    def test_a_private_key(self) -> None:
        private: Any = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(rsa_key()))
        self.one_line(StartupError, "private", self.verifier, jwks(jwk(ec_key()), private), "RS256", "ES256")

    def test_files_that_are_no_jwks(self) -> None:
        for odd in (b"", b"[]", b"{}", b'{"keys":{}}', b"\xff", b"[" * 100_000, b" " * 300_000, SECRET):
            self.one_line(StartupError, "is not a JWKS", self.verifier, odd, "RS256")

    def test_31_rotation(self) -> None:
        old, new = jwk(rsa_key(), kid="old"), jwk(rsa_key(number=1), kid="new")
        first, second = (
            self.signed(rsa_key(), "RS256", kid="old"),
            self.signed(rsa_key(number=1), "RS256", kid="new"),
        )
        verifier = self.verifier(jwks(old), "RS256")
        self.accepted(first, verifier)
        self.assert_invalid(second, verifier)
        self.rewrite(jwks(old, new))
        self.clock.advance(1)
        self.accepted(second, verifier)
        self.accepted(first, verifier)
        self.rewrite(jwks(new))
        self.clock.advance(1)
        self.assert_invalid(first, verifier)
        self.accepted(second, verifier)

    def test_24_the_file_is_looked_at_once_a_second(self) -> None:
        verifier = self.verifier(jwks(jwk(rsa_key(), kid="old")), "RS256")
        self.rewrite(jwks(jwk(rsa_key(), kid="new")))
        given = self.signed(rsa_key(), "RS256", kid="new")
        self.clock.advance(0.9)
        self.assert_invalid(given, verifier)
        self.clock.advance(0.1)
        self.accepted(given, verifier)

    def test_a_file_that_breaks_leaves_the_old_keys(self) -> None:
        verifier = self.verifier(jwks(jwk(rsa_key(), kid="r")), "RS256")
        given = self.signed(rsa_key(), "RS256", kid="r")
        for breakage in (lambda: self.rewrite(b'{"keys": ['), lambda: os.unlink(self.path)):
            breakage()
            self.clock.advance(1)
            self.accepted(given, verifier)
        self.rewrite(jwks(jwk(rsa_key(), kid="s")))
        self.clock.advance(1)
        self.assert_invalid(given, verifier)


class QuietTests(TestCase):
    def test_nothing_warns(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            self.accepted(token())
            self.accepted(token(algorithm="HS256"))
