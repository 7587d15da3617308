"""What an opening handshake asks for, as pure functions."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import ConfigError, Refused
from flowtx.transports.handshake import (
    MAX_HEADER_LINES,
    MAX_SUBPROTOCOLS,
    Accepted,
    Request,
    accept,
    check_head,
    refusal,
)
from flowtx.transports.origin import OriginRule

PATH = "/socket/websocket"
TOKEN = "eyJhbGciOiJIUzUxMiJ9.eyJzdWIiOiJ1In0.c2ln"
BEARER = "base64url.bearer.phx."


def asked(
    query: str = "", subprotocols: Sequence[str] = (), headers: Mapping[str, str] | None = None
) -> Accepted:
    return accept(Request(f"{PATH}?{query}", headers or {}, subprotocols))


def reason_of(function: Callable[..., object], *args: Any) -> tuple[int, str] | None:
    """The status and the reason of a refusal, None where there is none."""
    try:
        function(*args)
    except Refused as refused:
        return refused.status, refused.reason
    return None


class OriginTests(SynchronousTestCase):
    def check(
        self, rule: OriginRule, *, yes: Sequence[str], no: Sequence[str], host: str = "server:4000"
    ) -> None:
        for origin in yes:
            self.assertTrue(rule.allows(origin, host), origin)
        for origin in no:
            self.assertFalse(rule.allows(origin, host), origin)
        self.assertTrue(rule.allows(None, host), "no Origin")

    #: Never let in, but by a rule that looks at none.
    NONE = ("null", "", "://", "//", "https://", "file://", "localhost", "http://[::1", "http://a:port")

    def test_the_host_that_is_listened_on(self) -> None:
        rule = OriginRule(None, ["Example.com"])
        self.check(
            rule,
            yes=["https://example.com", "http://example.com:8080", "HTTPS://EXAMPLE.COM"],
            no=[
                *self.NONE,
                "https://example.com.evil.org",
                "https://evil-example.com",
                "https://www.example.com",
                "https://example.com@evil.org",
                "https://evil.org/example.com",
                "https://evil.org#example.com",
                "https://evil.org?example.com",
                "http://localhost",
                "http://server",
                "//example.com",
            ],
        )

    def test_a_loopback_stands_for_all_loopbacks(self) -> None:
        for listened in ("127.0.0.1", "localhost", "::1"):
            self.check(
                OriginRule(None, [listened]),
                yes=["http://localhost:3000", "http://127.0.0.1", "http://[::1]:4000"],
                no=[*self.NONE, "http://127.0.0.1.evil.org", "http://localhost.evil.org", "http://server"],
            )

    def test_a_wildcard_stands_for_the_host_that_is_asked_for(self) -> None:
        for listened in ("", "0.0.0.0", "::"):
            rule = OriginRule(None, [listened])
            self.check(
                rule,
                yes=["http://server", "https://server:4000", "https://SERVER"],
                no=[
                    *self.NONE,
                    "http://localhost",
                    "http://0.0.0.0",
                    "http://[::]",
                    "http://server.evil.org",
                ],
            )
            self.check(rule, yes=["http://[::2]"], no=[*self.NONE, "http://server"], host="[::2]:4000")
            self.check(rule, yes=[], no=[*self.NONE, "http://server"], host="")
            self.check(rule, yes=[], no=[*self.NONE, "http://server"], host="[::1")

    def test_listed_with_scheme(self) -> None:
        self.check(
            OriginRule(["https://example.com"], ["127.0.0.1"]),
            yes=["https://example.com", "https://example.com:443"],
            no=[
                *self.NONE,
                "http://example.com",
                "https://example.com:8443",
                "http://example.com:443",
                "https://www.example.com",
                "http://localhost",
            ],
        )

    def test_listed_with_port(self) -> None:
        self.check(
            OriginRule(["//example.com:80", "https://example.org:8443"], []),
            yes=["http://example.com", "https://example.com:80", "https://example.org:8443"],
            no=[*self.NONE, "https://example.com", "http://example.com:81", "https://example.org"],
        )

    def test_listed_without_scheme_and_port(self) -> None:
        self.check(
            OriginRule(["//example.com/"], []),
            yes=["https://example.com", "http://example.com:1234"],
            no=[*self.NONE, "https://a.example.com", "https://example.community"],
        )

    def test_listed_with_subdomains(self) -> None:
        self.check(
            OriginRule(["//*.example.com"], []),
            yes=["https://example.com", "https://a.example.com", "http://a.b.Example.com:81"],
            no=[
                *self.NONE,
                "https://evil-example.com",
                "https://example.com.evil.org",
                "https://xexample.com",
                "https://*.example.com.evil.org",
            ],
        )

    def test_an_empty_list_lets_none_in(self) -> None:
        self.check(OriginRule([], [""]), yes=[], no=["http://server"])

    def test_entries_that_are_no_origins(self) -> None:
        # Without "//" a host is a path, and would match any host.
        for entry in ("example.com", "*", "//*", "https://", "", "//a.*.com", "//a:port", "//a/path", "//[:"):
            message = str(self.assertRaises(ConfigError, OriginRule, [entry], []))
            self.assertIn("--check-origin", message)
            self.assertIn(repr(entry), message)


class HeadTests(SynchronousTestCase):
    rule = OriginRule(["https://example.com"], [])

    def refusal_of(self, line: str, *headers: str) -> tuple[int, str] | None:
        return reason_of(check_head, "\r\n".join([line, *headers]).encode("latin-1"), self.rule)

    def test_paths(self) -> None:
        for target, found in [
            (PATH, True),
            (f"{PATH}/", True),
            (f"{PATH}?token=a/b", True),
            (f"{PATH}/?a", True),
            (f"{PATH}//", False),
            ("/socket", False),
            ("/", False),
            (f"{PATH}x", False),
            (f"{PATH}/x", False),
            (f"/{PATH}", False),
            ("/socket%2fwebsocket", False),
            (f"http://example.com{PATH}", False),
            ("/SOCKET/WEBSOCKET", False),
            ("*", False),
        ]:
            expected = None if found else (404, "not_found")
            self.assertEqual(self.refusal_of(f"GET {target} HTTP/1.1"), expected, target)

    def test_request_lines_that_are_none(self) -> None:
        for line in [
            "",
            "GET",
            f"GET {PATH}",
            f"GET  {PATH} HTTP/1.1",
            f"GET {PATH}  HTTP/1.1",
            f"GET {PATH} HTTP/1.1 x",
            f"GET\t{PATH}\tHTTP/1.1",
            f" GET {PATH} HTTP/1.1",
            f"GET {PATH}?\x85 HTTP/1.1",
            f"GET {PATH}?\xe9 HTTP/1.1",
            f"GET {PATH} FTP/1.1",
            f"GET {PATH}\nHost: a HTTP/1.1",
        ]:
            self.assertEqual(self.refusal_of(line), (400, "bad_request"), line)

    def test_header_lines(self) -> None:
        line = f"GET {PATH} HTTP/1.1"
        for header in ["Host: a", "X:", "X:\t\xe4 \x85", "!#$%&'*+-.^_`|~: ~"]:
            self.assertIsNone(self.refusal_of(line, header), header)
        for header in ["", ":", " X: 1", "X : 1", "X", "X: a\nb", "X: a\rb", "X: \x00", "X: \x1c", "\xe4: 1"]:
            self.assertEqual(self.refusal_of(line, header), (400, "bad_request"), header)

    def test_how_many_header_lines(self) -> None:
        line = f"GET {PATH} HTTP/1.1"
        self.assertIsNone(self.refusal_of(line, *["X: 1"] * MAX_HEADER_LINES))
        too_many = self.refusal_of(line, *["X: 1"] * (MAX_HEADER_LINES + 1))
        self.assertEqual(too_many, (431, "too_many_headers"))

    def test_origins(self) -> None:
        line, good, bad = f"GET {PATH} HTTP/1.1", "Origin: https://example.com", "Origin: https://evil.org"
        forbidden = (403, "forbidden_origin")
        for headers, expected in [
            ([], None),
            ([good], None),
            (["oRIGIN:https://example.com \t"], None),
            (["X-Origin: https://evil.org"], None),
            ([bad], forbidden),
            (["Origin:"], forbidden),
            ([good, good], forbidden),
            ([good, bad], forbidden),
            ([good, "ORIGIN: https://example.com"], forbidden),
        ]:
            self.assertEqual(self.refusal_of(line, *headers), expected, headers)
            self.assertIsNone(reason_of(check_head, "\r\n".join([line, *headers]).encode(), None))

    def test_the_host_that_is_asked_for(self) -> None:
        rule = OriginRule(None, ["0.0.0.0"])
        head = f"GET {PATH} HTTP/1.1\r\nORIGIN: http://a\r\nHOST: %s".encode()
        self.assertIsNone(reason_of(check_head, head % b"a:1", rule))
        self.assertEqual(reason_of(check_head, head % b"b:1", rule), (403, "forbidden_origin"))


class AcceptTests(SynchronousTestCase):
    def test_versions(self) -> None:
        # As recorded, A12 to A20, A52 and A53.
        for query, version in [
            ("", "1"),
            ("vsn=1.0.0", "1"),
            ("vsn=1.0.7", "1"),
            ("vsn=2.0.0", "2"),
            ("vsn=2.0.7", "2"),
            ("vsn=1.0.0&vsn=2.0.0", "2"),
            ("vsn=2.0.0&vsn=1.0.0", "1"),
            ("vsn=2%2E0.0", "2"),
            ("vsn=3.0.0", None),
            ("vsn=2.1.0", None),
            ("vsn=2", None),
            ("vsn=2.0", None),
            ("vsn=abc", None),
            ("vsn=", None),
            ("vsn", None),
            ("vsn=2.0.0-dev", None),
            ("vsn=2.0.0%0A", None),
            ("vsn=%EF%BC%92.0.0", None),
            ("vsn=2.0.0&vsn=", None),
            ("vsn[]=2.0.0", None),
            ("vsn=2.0.0&vsn[]=2.0.0", None),
            ("vsn[a]=2.0.0", None),
            ("vsn%5B%5D=2.0.0", None),
        ]:
            full = f"token={TOKEN}&{query}"
            if version is None:
                self.assertEqual(reason_of(asked, full), (403, "unsupported_version"), query)
            else:
                frame = asked(full).serializer.reply(b"1", b"1", "topic", "ok", {})
                self.assertEqual(frame.payload[:1], {"1": b"{", "2": b"["}[version], query)

    def test_tokens_in_the_query(self) -> None:
        for query, token in [
            (f"token={TOKEN}", TOKEN),
            (f"vsn=2.0.0&token={TOKEN}&a=%zz&b", TOKEN),
            (f"token=x&token={TOKEN}", TOKEN),
            (f"token={TOKEN}&token=x", "x"),
            (f"token={TOKEN}&token[]=x", TOKEN),
            ("token=%78", "x"),
            (f"token={TOKEN}#x", f"{TOKEN}#x"),
        ]:
            self.assertEqual(asked(query).token, token, query)
        for query in ["", "token", "token=", f"token={TOKEN}&token=", "token[]=x", "token[a]=x", "Token=x"]:
            self.assertEqual(reason_of(asked, query), (403, "missing_token"), query)

    def test_tokens_in_the_subprotocol(self) -> None:
        # The text makes both of the characters in which the two alphabets differ.
        text = "~~~???>>>a"
        plain, url = (
            base64.b64encode(text.encode()).decode(),
            base64.urlsafe_b64encode(text.encode()).decode(),
        )
        self.assertNotEqual(plain, url)
        for encoded in (plain, url, plain.rstrip("="), url.rstrip("="), plain + "="):
            accepted = asked("", ["phoenix", BEARER + encoded])
            self.assertEqual((accepted.token, accepted.subprotocol), (text, "phoenix"), encoded)

    def test_tokens_in_the_subprotocol_that_cannot_be_read(self) -> None:
        for encoded in ("a", "abcde", "!!!!", "ab cd", "ab=cd", "\xe4\xf6\xfc", "/////w=="):
            self.assertEqual(reason_of(asked, "", [BEARER + encoded]), (403, "invalid_token"), encoded)
        self.assertEqual(reason_of(asked, "", [BEARER]), (403, "missing_token"))

    def test_subprotocols(self) -> None:
        token = BEARER + base64.b64encode(TOKEN.encode()).decode().rstrip("=")
        for offered, answer in [
            ([], None),
            (["phoenix"], "phoenix"),
            (["other", "phoenix"], "phoenix"),
            (["phoenix", token], "phoenix"),
            ([token, "phoenix"], "phoenix"),
            ([token], None),
        ]:
            self.assertEqual(asked("token=x", offered).subprotocol, answer, offered)
        for offered in (["other"], ["Phoenix"], [""], ["other", token]):
            self.assertEqual(reason_of(asked, "token=x", offered), (403, "unsupported_version"), offered)
        # Of two, none is taken.
        self.assertEqual(reason_of(asked, "", [token, BEARER + "eA"]), (403, "missing_token"))
        many = ["phoenix", *map(str, range(MAX_SUBPROTOCOLS))]
        self.assertEqual(reason_of(asked, "token=x", many), (400, "bad_request"))
        self.assertIsNone(reason_of(asked, "token=x", many[:-1]))

    def test_tokens_in_the_header(self) -> None:
        for value, token in [
            (f"Bearer {TOKEN}", TOKEN),
            (f"bearer   {TOKEN} ", TOKEN),
            (f"Basic {TOKEN}", None),
            (TOKEN, None),
            ("Bearer", None),
            ("Bearer ", None),
            ("", None),
        ]:
            headers = {"authorization": value}
            if token is None:
                self.assertEqual(reason_of(asked, "", [], headers), (403, "missing_token"), value)
            else:
                self.assertEqual(asked("", [], headers).token, token, value)

    def test_which_token_counts(self) -> None:
        headers, offered = {"authorization": "Bearer header"}, [BEARER + base64.b64encode(b"sub").decode()]
        self.assertEqual(asked("token=query", offered, headers).token, "query")
        self.assertEqual(asked("token=", offered, headers).token, "sub")
        self.assertEqual(asked("token=", [], headers).token, "header")


class RefusalTests(SynchronousTestCase):
    def parse(self, data: bytes) -> tuple[str, dict[str, str], object]:
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("ascii").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        self.assertEqual(int(headers["Content-Length"]), len(body))
        return first, headers, json.loads(body)

    def test_forms(self) -> None:
        for refused, first, extra in [
            (Refused("missing_token"), "HTTP/1.1 403 Forbidden", {}),
            (Refused("bad_request", 405), "HTTP/1.1 405 Method Not Allowed", {"Allow": "GET"}),
            (
                Refused("bad_request", 426),
                "HTTP/1.1 426 Upgrade Required",
                {"Upgrade": "websocket", "Connection": "Upgrade, close"},
            ),
            (
                Refused("unavailable", 503, {"Retry-After": "1"}),
                "HTTP/1.1 503 Service Unavailable",
                {"Retry-After": "1"},
            ),
        ]:
            line, headers, body = self.parse(refusal(refused, "call-1"))
            self.assertEqual((line, body), (first, {"reason": refused.reason}))
            usual = {"Connection": "close", "Content-Type": "application/json", "X-Request-Id": "call-1"}
            self.assertEqual(headers, {**usual, "Content-Length": headers["Content-Length"], **extra})
