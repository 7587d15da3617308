"""The settings: which source wins, what is taken, and that each error is one line that says what to do."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.config import ENVIRONMENT_PREFIX, Settings, load, options, redacted_url
from flowtx.errors import ConfigError

NAMES = [field.name for field in msgspec.structs.fields(Settings)]
PEM = {"jwt-algorithms": "RS256", "jwt-key-file": "key.pem"}


class TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="flowtx-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def file(self, text: str | bytes) -> str:
        path = self.directory / "flow.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    def refused(self, given: dict[str, object] | None = None, **environment: str) -> str:
        """Verify that it is refused in one line, and return that."""
        text = str(self.assertRaises(ConfigError, load, given or {}, environment))
        self.assertEqual(len(text.splitlines()), 1)
        self.assertTrue(text.isprintable())
        return text


class SourceTests(TestCase):
    def test_nothing_given(self) -> None:
        self.assertEqual(load({}, {}), Settings())

    def test_the_line_beats_the_environment_which_beats_the_file(self) -> None:
        path = self.file("max-topics = 1\nmax-frame-size = 2001\noutbox-limit = 3001\n")
        environment = {"FLOWTX_MAX_FRAME_SIZE": "2002", "FLOWTX_OUTBOX_LIMIT": "3002"}
        settings = load({"config": path, "outbox-limit": "3003"}, environment)
        self.assertEqual(
            (settings.max_topics, settings.max_frame_size, settings.outbox_limit), (1, 2002, 3003)
        )

    def test_the_file_is_named_on_the_line_or_in_the_environment(self) -> None:
        path = self.file("max-topics = 7")
        self.assertEqual(load({}, {"FLOWTX_CONFIG": path}).max_topics, 7)
        self.assertEqual(load({"config": path}, {"FLOWTX_CONFIG": "/nowhere"}).max_topics, 7)

    def test_the_environment_of_the_process(self) -> None:
        self.patch(__import__("os"), "environ", {"FLOWTX_MAX_TOPICS": "8", "HOME": "/", "flowtx_demo": "x"})
        self.assertEqual(load({}).max_topics, 8)

    def test_keys_of_a_file_are_written_either_way(self) -> None:
        self.assertEqual(load({"config": self.file("max_topics = 7")}, {}).max_topics, 7)
        text = self.refused({"config": self.file("max_topics = 7\nmax-topics = 8")})
        self.assertIn("twice", text)

    def test_lists(self) -> None:
        expected = ("tcp:1", "tcp:2")
        self.assertEqual(load({"listen": ["tcp:1", "tcp:2"]}, {}).listen, expected)
        self.assertEqual(load({}, {"FLOWTX_LISTEN": "tcp:1, tcp:2,"}).listen, expected)
        path = self.file('listen = ["tcp:1", "tcp:2"]')
        self.assertEqual(load({"config": path}, {}).listen, expected)

    def test_flags(self) -> None:
        self.assertTrue(load({"demo": True}, {}).demo)
        self.assertTrue(load({"config": self.file("demo = true")}, {}).demo)
        for text, expected in {"1": True, "TRUE": True, "yes": True, "0": False, "no": False}.items():
            self.assertIs(load({}, {"FLOWTX_DEMO": text}).demo, expected)

    def test_numbers(self) -> None:
        self.assertEqual(load({"jwt-leeway": "2.5"}, {}).jwt_leeway, 2.5)
        self.assertEqual(load({"config": self.file("jwt-leeway = 2")}, {}).jwt_leeway, 2.0)

    def test_each_setting_is_read_from_each_source(self) -> None:
        self.assertGreater(len(NAMES), 20)
        defaults = Settings()
        for name in NAMES:
            value = getattr(defaults, name)
            if value is None:
                continue
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            line = name.replace("_", "-")
            self.assertEqual(load({line: text}, {}), defaults)
            self.assertEqual(load({}, {ENVIRONMENT_PREFIX + name.upper(): text}), defaults)
            toml = msgspec.json.encode(value).decode()
            self.assertEqual(load({"config": self.file(f"{line} = {toml}")}, {}), defaults)

    def test_origins(self) -> None:
        for off in ("false", "False", False, ["false"]):
            settings = load({"check-origin": off}, {})
            self.assertFalse(settings.origins_checked)
        self.assertFalse(load({"config": self.file("check-origin = false")}, {}).origins_checked)
        settings = load({"check-origin": "//a.example,//*.b.example"}, {})
        self.assertEqual(settings.check_origin, ("//a.example", "//*.b.example"))
        self.assertTrue(settings.origins_checked)
        self.assertTrue(Settings().origins_checked)

    def test_the_options_of_the_command_line(self) -> None:
        shown = {option.name: option for option in options()}
        self.assertEqual([name.replace("-", "_") for name in shown], NAMES)
        self.assertTrue(all(option.help for option in shown.values()))
        self.assertEqual(shown["jwt-algorithms"].default, "HS512,HS256")
        self.assertIsNone(shown["database"].default)
        self.assertEqual([name for name, option in shown.items() if option.repeatable], ["listen"])
        self.assertEqual(
            [name for name, option in shown.items() if option.flag],
            ["jwt-audience-list", "manhole-anywhere", "demo"],
        )


class ErrorTests(TestCase):
    def test_what_is_wrong_is_named_as_it_was_given(self) -> None:
        takes = "got '0'; it takes a whole number, at least 1, at most 1000000"
        self.assertEqual(self.refused({"max-topics": "0"}), f"--max-topics: {takes}")
        self.assertEqual(self.refused(FLOWTX_MAX_TOPICS="0"), f"FLOWTX_MAX_TOPICS: {takes}")
        path = self.file("max-topics = 0")
        self.assertEqual(self.refused({"config": path}), f"{path}: max-topics: {takes}".replace("'0'", "0"))

    def test_an_error_in_a_source_that_is_beaten_is_none(self) -> None:
        self.assertEqual(load({"max-topics": "3"}, {"FLOWTX_MAX_TOPICS": "x"}).max_topics, 3)

    def test_unknown_keys_come_with_a_guess(self) -> None:
        path = self.file("max-topic = 3")
        guess = "there is no such setting; did you mean max-topics?"
        self.assertEqual(self.refused({"config": path}), f"{path}: max-topic: {guess}")
        self.assertEqual(self.refused(FLOWTX_MAX_TOPIC="3"), f"FLOWTX_MAX_TOPIC: {guess}")
        self.assertEqual(self.refused(FLOWTX_QQQQ="3"), "FLOWTX_QQQQ: there is no such setting")
        self.assertIn(
            "there is no such setting", self.refused({"config": self.file("[flowtx]\ndemo = true")})
        )
        self.assertIn("config", self.refused({"config": self.file('config = "x"')}))

    def test_wrong_values(self) -> None:
        for name, value, word in (
            ("max-topics", "many", "whole number"),
            ("max-topics", "1.5", "whole number"),
            ("max-topics", "1000001", "at most 1000000"),
            ("max-topics", 10**5000, "whole number"),
            ("max-topics", True, "whole number"),
            ("max-topics", None, "whole number"),
            ("heartbeat-timeout", "0", "more than 0"),
            ("heartbeat-timeout", "nan", "number"),
            ("heartbeat-timeout", "inf", "number"),
            ("jwt-leeway", "-1", "at least 0"),
            ("jwt-leeway", "301", "at most 300"),
            ("jwt-max-lifetime", "inf", "number"),
            ("jwt-max-lifetime", float("nan"), "number"),
            ("demo", "perhaps", "true or false"),
            ("demo", 1, "true or false"),
            ("demo", "\udcff", "true or false"),
            ("max-topics", "\udcff", "whole number"),
            ("admin", "", "text, not empty"),
            ("data-dir", "", "text, not empty"),
            ("admin", 4001, "text"),
            ("admin", ["tcp:1"], "text"),
            ("listen", "", "list of text, not empty"),
            ("listen", ",", "list of text, not empty"),
            ("listen", [], "list of text, not empty"),
            ("listen", [""], "list of text, not empty"),
            ("listen", ["tcp:1", " "], "list of text, not empty"),
            ("listen", [4000], "list of text"),
            ("listen", True, "list of text"),
            ("listen", "tcp:0\r0", "Twisted endpoint"),
            ("listen", "nowhere:1", "Twisted endpoint"),
            ("listen", "tcp:65536", "Twisted endpoint"),
            ("admin", "tcp", "Twisted endpoint"),
            ("check-origin", "", "list of text"),
            ("check-origin", True, "list of text"),
            ("check-origin", "false,//a.example", "either"),
            ("jwt-algorithms", "HS1", "HS256"),
            ("jwt-algorithms", "none", "HS256"),
            ("jwt-algorithms", "hs256", "HS256"),
            ("jwt-algorithms", "HS256,none", "HS256"),
            ("users-query", "", "text, not empty"),
            ("users-query", "SELECT 1", "exactly one %s"),
            ("users-query", "SELECT %s, %s", "exactly one %s"),
            ("users-query", "Claims", "word claims"),
            ("database", "mysql://h/d", "postgresql://"),
            ("rate-limit", "50", "such as 50/100"),
            ("rate-limit", "0/1", "such as 50/100"),
            ("rate-limit", "\n", "such as 50/100"),
            ("join-rate", "0", "at least 1"),
            ("trusted-proxies", "10.0.0.1/8", "such as 10.0.0.0/8"),
            ("trusted-proxies", "proxy.example", "such as 10.0.0.0/8"),
        ):
            text = self.refused({name: value})
            self.assertTrue(text.startswith(f"--{name}: "), text)
            self.assertIn(word, text)
            self.assertLess(len(text), 400)

    def test_files_that_cannot_be_read(self) -> None:
        for path in ("/nowhere/at/all", "", str(self.directory), "a\0b", "a\nb"):
            self.assertIn("--config", self.refused({"config": path}))
            self.assertIn("--config", self.refused(FLOWTX_CONFIG=path))

    def test_files_that_are_no_toml(self) -> None:
        for text in (
            b"max-topics",
            b"\xff",
            b"a = 1\na = 2\n",
            b"x = " + b"[" * 100_000,
            b"x = " + b"9" * 5000,
        ):
            self.assertIn("is not a TOML file", self.refused({"config": self.file(text)}))

    def test_names_and_values_that_are_long(self) -> None:
        long = "x" * 5_000
        for line, environment in (
            ({long: "1"}, {}),
            ({}, {f"FLOWTX_{long}": "1"}),
            ({"config": self.file(f"{long} = 1")}, {}),
            ({"jwt-algorithms": long}, {}),
            ({"jwt-algorithms": "RS256" + ",HS256" * 1_000}, {}),
            ({"trusted-proxies": long}, {}),
        ):
            message = str(self.assertRaises(ConfigError, load, line, environment))
            self.assertLess(len(message), 500, message)

    def test_names_that_break_a_line(self) -> None:
        self.assertIn("no such setting", self.refused({"a\nb": "1"}))
        self.assertIn("no such setting", self.refused({"config": self.file('"a\\nb" = 1')}))
        text = str(self.assertRaises(ConfigError, load, {}, {"FLOWTX_A\nB": "1"}))
        self.assertNotIn("\n", text)


class RelationTests(TestCase):
    def test_families_of_algorithms_are_not_mixed(self) -> None:
        text = self.refused({"jwt-algorithms": "HS256,RS256", "jwt-key-file": "key.pem"})
        self.assertIn("cannot be mixed", text)
        self.assertEqual(
            load({**PEM, "jwt-algorithms": "RS256,ES256,EdDSA"}, {}).jwt_algorithms,
            ("RS256", "ES256", "EdDSA"),
        )

    def test_a_public_key_needs_an_algorithm_for_it(self) -> None:
        for name in ("jwt-key-file", "jwt-jwks"):
            self.assertTrue(self.refused({name: "x"}).startswith(f"--{name}: "))

    def test_public_key_algorithms_need_one_key(self) -> None:
        self.assertIn("got 0 of them", self.refused({"jwt-algorithms": "RS256"}))
        self.assertIn("got 2 of them", self.refused({**PEM, "jwt-jwks": "x"}))
        self.assertEqual(load(PEM, {}).jwt_key_file, "key.pem")

    def test_a_secret_is_for_hmac(self) -> None:
        self.assertTrue(self.refused({**PEM, "secret-file": "x"}).startswith("--secret-file: "))

    def test_relations_hold_between_sources(self) -> None:
        path = self.file('jwt-algorithms = ["RS256"]')
        self.assertEqual(load({"config": path}, {"FLOWTX_JWT_JWKS": "x"}).jwt_jwks, "x")
        self.assertIn("got 2", self.refused({"config": path, "jwt-jwks": "x"}, FLOWTX_JWT_KEY_FILE="y"))

    def test_no_two_listen_in_the_same_place(self) -> None:
        twice = "tcp:4001:interface=127.0.0.1"
        cases: list[tuple[dict[str, object], str]] = [
            (
                {"listen": ["tcp:4001", "tcp:port=4001"]},
                "--listen: got 'tcp:port=4001', where --listen listens",
            ),
            ({"listen": [twice]}, f"--admin: got '{twice}', where --listen listens; give another one"),
            ({"manhole": twice, "manhole-keys": "keys"}, f"--manhole: got '{twice}', where --admin listens"),
            (
                {"listen": ["unix:/run/a"], "admin": "unix:/run/a"},
                "--admin: got 'unix:/run/a', where --listen",
            ),
            ({"listen": [r"tcp:9:interface=\:\:1"], "admin": r"ssl:9:interface=\:\:1"}, "--admin: got "),
        ]
        for together, said in cases:
            self.assertTrue(self.refused(together).startswith(said), said)
        for listen in (["tcp:0", "tcp:0"], ["tcp:4001:interface=127.0.0.2"], ["tcp:4011", "unix:/run/a"]):
            self.assertEqual(load({"listen": listen}, {}).listen, tuple(listen))

    def test_an_audience_that_may_be_a_list_is_named(self) -> None:
        self.assertTrue(self.refused({"jwt-audience-list": True}).startswith("--jwt-audience-list: "))
        self.assertTrue(load({"jwt-audience-list": True, "jwt-audience": "crm"}, {}).jwt_audience_list)

    def test_what_nobody_got_is_told_before_it_is_deleted(self) -> None:
        text = self.refused({"undelivered-after": "86400", "retention-days": "1"})
        self.assertTrue(text.startswith("--undelivered-after: got 86400, "), text)
        self.assertEqual(load({"undelivered-after": "0", "retention-days": "0.001"}, {}).undelivered_after, 0)
        self.assertEqual(load({"retention-days": "0"}, {}).retention_days, 0)

    def test_users(self) -> None:
        self.assertEqual(load({"users-query": "claims"}, {}).users_query, "claims")
        query = "SELECT id::text, name, email FROM accounts WHERE id::text = ANY(%s)"
        self.assertEqual(load({"users-query": query}, {}).users_query, query)


class RedactionTests(TestCase):
    URLS = (
        "postgresql://flow:hunter2@db.example:5432/flow",
        "postgresql://flow:hunter2@db.example:5432/flow?sslmode=require",
        "postgresql://flow@db.example:5432/flow?password=hunter2",
        "postgresql://flow@db.example:5432/flow?user=a@b&password=hunter2",
        "postgresql://flow@db.example:5432/flow?password=hunter2&user=a@b",
        "postgresql://flow:a@hunter2@db.example:5432/flow",
        "postgresql://flow:a/hunter2@db.example:5432/flow",
        "postgresql://flow:a?hunter2@db.example:5432/flow",
        "postgresql://flow:a#hunter2@db.example:5432/flow",
        "postgresql://flow:a:hunter2@db.example:5432/flow",
        "postgresql://:hunter2@[::1]:5432/flow",
        "postgresql://flow:[hunter2@db.example/flow",
        "host=db.example user=flow password=hunter2",
    )

    def test_the_password_is_not_shown(self) -> None:
        for url in self.URLS:
            for shown in (str(redacted_url(url)), repr(Settings(database=url)), str(Settings(database=url))):
                self.assertNotIn("hunter2", shown)

    def test_what_helps_is_shown(self) -> None:
        self.assertIsNone(redacted_url(None))
        self.assertEqual(redacted_url(self.URLS[0]), "postgresql://flow@db.example:5432/flow")
        self.assertEqual(redacted_url("postgresql://h/d"), "postgresql://h/d")
        self.assertIn("max_topics=100", repr(Settings()))
        self.assertIn("postgresql://flow@db.example:5432/flow", repr(Settings(database=self.URLS[0])))

    def test_errors_do_not_show_it(self) -> None:
        url = self.URLS[0]
        for value in (url.replace("postgresql", "mysql"), [url], {"url": url}, "host=h password=hunter2"):
            self.assertNotIn("hunter2", self.refused({"database": value}))
        text = self.refused({"config": self.file(f'database = ["{url}"]')})
        self.assertNotIn("hunter2", text)

    def test_a_password_in_the_url_of_a_jwks(self) -> None:
        self.assertNotIn("hunter2", repr(Settings(jwt_jwks="https://u:hunter2@idp.example/")))


TEXT = st.text(st.characters(exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.dates() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
PLAUSIBLE = st.sampled_from(["0", "1", "1e3", "nan", "-inf", "true", "false", "", ",", "HS256", "%s", "null"])
LINE_NAMES = st.sampled_from([name.replace("_", "-") for name in NAMES])


class AnythingTests(TestCase):
    """Whatever is given: Settings within their bounds, or ConfigError in one line."""

    def check(self, given: Any, environment: Any) -> None:
        try:
            settings = load(given, environment)
        except ConfigError as error:
            self.assertEqual(len(str(error).splitlines()), 1, repr(str(error)))
            self.assertLess(len(str(error)), 1000)
        else:
            self.assertTrue(0 < settings.heartbeat_timeout <= 31_536_000)
            self.assertTrue(0 <= settings.jwt_max_lifetime < float("inf"))
            self.assertTrue(settings.listen and all(settings.listen))
            self.assertTrue(settings.jwt_algorithms)
            repr(settings)

    @hypothesis_settings(deadline=None)
    @given(st.dictionaries(LINE_NAMES | TEXT, VALUES | PLAUSIBLE, max_size=3))
    def test_on_the_line(self, given: dict[str, object]) -> None:
        self.check(given, {})

    @hypothesis_settings(deadline=None)
    @given(st.dictionaries(LINE_NAMES | TEXT, TEXT | PLAUSIBLE, max_size=3))
    def test_in_the_environment(self, values: dict[str, str]) -> None:
        environment = {
            ENVIRONMENT_PREFIX + name.replace("-", "_").upper(): value for name, value in values.items()
        }
        environment.pop("FLOWTX_CONFIG", None)
        self.check({}, environment)

    @hypothesis_settings(deadline=None)
    @given(st.binary())
    def test_any_file(self, content: bytes) -> None:
        self.check({"config": self.file(content)}, {})

    @hypothesis_settings(deadline=None)
    @given(LINE_NAMES, st.from_regex(r"[\[\]{}\"'0-9a-z.,= -]{0,20}", fullmatch=True))
    def test_any_value_in_a_file(self, name: str, text: str) -> None:
        self.check({"config": self.file(f"{name} = {text}")}, {})
