"""What the log looks like: text and JSON, whatever is in an event."""

from __future__ import annotations

import json
from io import BytesIO, StringIO, TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.logger import Logger, LogLevel, LogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flowtx.logs import MAX_LINE, MAX_PLAIN, make_observer, observer_for, set_level
from flowtx.tracing import CALL, Call

HOSTILE = (
    "mallory\r\n2026-01-01T00:00:00+0000 [flowtx#info] forged"
    "\x1b[2J\x9b31m\x00\x7f\u2028\u202e{user_id}\ud800"
)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Log:
    """A log of its own, and a logger that writes to it."""

    def __init__(self, form: str, namespace: str = "flowtx.sessions.session.Session") -> None:
        self.out = StringIO()
        self.publisher = LogPublisher(make_observer(form, self.out))
        self.logger = Logger(namespace, observer=self.publisher)

    def publish(self, form: str, event: dict[str, Any]) -> None:
        """Log an event whose keys may be any."""
        own = {"log_level": LogLevel.info, "log_namespace": self.logger.namespace, "log_time": 1.7e9}
        self.publisher({**event, **own, "log_format": form})

    @property
    def lines(self) -> list[str]:
        text = self.out.getvalue()
        assert text == "" or text.endswith("\n")
        return text.split("\n")[:-1]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


def failure() -> Failure:
    try:
        raise ValueError("the cause\nin two lines \x1b[31m")
    except ValueError:
        return Failure()


class TextTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.log = Log("text")

    def test_line_is_as_twisted_writes_it(self) -> None:
        self.log.logger.info("Starting session for user: {user_id}", user_id="alice")
        [line] = self.log.lines
        self.assertRegex(
            line,
            r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[flowtx\.sessions\.session\.Session#info\] "
            "Starting session for user: alice$",
        )

    def test_hostile_value_makes_no_second_line(self) -> None:
        self.log.logger.info("Refused {address}: {reason}", address=HOSTILE, reason="bad_request")
        [line] = self.log.lines
        self.assertTrue(line.isprintable(), line)
        self.assertIn("mallory\\r\\n2026", line)
        self.assertIn("{user_id}", line)

    def test_line_is_bounded(self) -> None:
        for value in ("x" * 1_000_000, "ü" * 1_000_000, "\x1b" * 1_000_000):
            self.log.logger.warn("Refused {user_agent}", user_agent=value, request_id="r" * 128)
        self.assertEqual(len(self.log.lines), 3)
        for line in self.log.lines:
            self.assertLessEqual(len(line.encode()), MAX_PLAIN)

    def test_what_is_printed_is_not_cut(self) -> None:
        log = Log("text", "stdout")
        log.logger.info("{log_io}", log_io="x" * 1_000)
        self.assertIn("x" * 1_000, log.lines[0])

    def test_traceback_follows_indented(self) -> None:
        self.log.logger.failure("It failed", failure())
        first, *rest = self.log.lines
        self.assertTrue(first.endswith("#critical] It failed"))
        self.assertTrue(all(line.startswith("\t") and line[1:].isprintable() for line in rest), rest)
        self.assertIn("\tbuiltins.ValueError: the cause", rest)

    def test_request_id_stands_at_the_end(self) -> None:
        handled = CALL.set(Call("call-7"))
        try:
            self.log.logger.info("One")
        finally:
            CALL.reset(handled)
        self.log.logger.info("Two", request_id="own-8")
        self.log.logger.info("Three")
        ends = [line.rpartition("] ")[2] if "[call" not in line else line[-13:] for line in self.log.lines]
        self.assertTrue(self.log.lines[0].endswith(" One [call-7]"), ends)
        self.assertTrue(self.log.lines[1].endswith(" Two [own-8]"), ends)
        self.assertTrue(self.log.lines[2].endswith(" Three"), ends)

    def test_terminal_that_is_not_of_utf8(self) -> None:
        raw = BytesIO()
        out = TextIOWrapper(raw, "ascii", newline="\n")
        Logger("flowtx.x", observer=make_observer("text", out)).info("grüße")
        self.assertTrue(raw.getvalue().endswith(b"] gr\\xfc\\xdfe\n"), raw.getvalue())


class JsonTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.log = Log("json")

    def test_keys_of_the_event_are_keys(self) -> None:
        self.log.logger.info(
            "Starting session for user: {user_id}", user_id="alice", count=3, ok=True, none=None
        )
        [event] = self.log.events
        time = event.pop("time")
        self.assertRegex(time, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$")
        self.assertEqual(
            event,
            {
                "level": "info",
                "namespace": "flowtx.sessions.session.Session",
                "message": "Starting session for user: alice",
                "user_id": "alice",
                "count": 3,
                "ok": True,
                "none": None,
            },
        )

    def test_event_cannot_take_the_place_of_what_is_ours(self) -> None:
        fake = {"level": "fake", "time": "never", "message": "other", "namespace": "x"}
        self.log.publish("It is {level}", fake)
        [event] = self.log.events
        self.assertEqual((event["level"], event["message"]), ("info", "It is fake"))
        self.assertEqual(event["namespace"], "flowtx.sessions.session.Session")

    def test_call_of_the_moment(self) -> None:
        handled = CALL.set(Call("call-7", TRACEPARENT))
        try:
            self.log.logger.info("One")
            self.log.logger.info("Two", request_id="own-8")
        finally:
            CALL.reset(handled)
        self.log.logger.info("Three")
        one, two, three = self.log.events
        self.assertEqual((one["request_id"], one["traceparent"]), ("call-7", TRACEPARENT))
        self.assertEqual(two["request_id"], "own-8")
        self.assertNotIn("request_id", three)

    def test_traceback_is_one_field(self) -> None:
        self.log.logger.failure("It failed", failure())
        [event] = self.log.events
        self.assertEqual((event["message"], event["level"]), ("It failed", "critical"))
        self.assertIn("ValueError: the cause", event["traceback"])

    def test_secrets_are_left_out(self) -> None:
        self.log.logger.info("Hello", access_token="hunter2", Password="hunter2", payload={"a": "hunter2"})
        self.assertNotIn("hunter2", self.log.out.getvalue())

    def test_value_that_cannot_be_shown(self) -> None:
        class Hostile:
            def __str__(self) -> str:
                raise RuntimeError("no")

        self.log.logger.info("Hello", value=Hostile(), number=10**5_000, nan=float("nan"), many=[1, 2])
        [event] = self.log.events
        self.assertEqual((event["value"], event["nan"], event["many"]), ("(Hostile)", "nan", "[1, 2]"))

    @settings(max_examples=200, deadline=None)
    @given(
        st.dictionaries(
            st.text(min_size=1, max_size=80).filter(lambda name: not name.startswith("log_")),
            st.one_of(st.text(), st.integers(), st.floats(), st.binary(), st.none()),
            max_size=60,
        ),
        st.sampled_from(["", "x" * 100_000, "\x1b" * 100_000, HOSTILE * 5_000]),
    )
    def test_any_event_is_one_line(self, event: dict[str, Any], long: str) -> None:
        log = Log("json")
        log.publish("Hello {long}", {**event, "long": long})
        [line] = log.lines
        self.assertLess(len(line), MAX_PLAIN)
        self.assertTrue(line.isascii() and line.isprintable())
        self.assertTrue(json.loads(line)["message"].startswith("Hello "))

    def test_hostile_values_are_cut_before_others(self) -> None:
        for agent in ("x" * 1_000_000, "ü" * 400, HOSTILE * 9, "\U0001f600" * 150):
            self.log.logger.info(
                "Refused {address}: {reason}",
                address="2001:db8::1",
                reason="too_many_devices",
                user_agent=agent,
                request_id="r" * 64,
                traceparent=TRACEPARENT,
                connections=20,
            )
        for line, event in zip(self.log.lines, self.log.events, strict=True):
            self.assertLess(len(line), MAX_PLAIN)
            self.assertEqual(event["message"], "Refused 2001:db8::1: too_many_devices")
            self.assertEqual((event["request_id"], event["traceparent"]), ("r" * 64, TRACEPARENT))
            self.assertEqual((event["reason"], event["connections"]), ("too_many_devices", 20))
            self.assertTrue(event["user_agent"].endswith("…"))

    def test_lines_of_others_may_be_longer(self) -> None:
        log = Log("json", "an.application")
        log.logger.info("Told {much}", much="x" * 900)
        [line] = log.lines
        self.assertIn("x" * 900, line)

    def test_many_long_values_fit(self) -> None:
        values: dict[str, Any] = {f"value_{number}": "\x1b" * 100_000 for number in range(100)}
        self.log.logger.failure("It failed", failure(), **values)
        [line] = self.log.lines
        self.assertLess(len(line), MAX_LINE)
        self.assertEqual(json.loads(line)["message"], "It failed")


class LevelTests(SynchronousTestCase):
    def tearDown(self) -> None:
        set_level("info")

    def test_level_changes_while_it_runs(self) -> None:
        log, printed = Log("json"), Log("json", "stdout")
        for level in ("debug", "info", "warn", "error"):
            set_level(level)
            for name in ("debug", "info", "warn", "error"):
                getattr(log.logger, name)("{told} at {set}", told=name, set=level)
            printed.logger.info("printed")
        told = [event["message"] for event in log.events]
        self.assertEqual(
            told,
            [
                *("debug at debug", "info at debug", "warn at debug", "error at debug"),
                *("info at info", "warn at info", "error at info"),
                *("warn at warn", "error at warn", "error at error"),
            ],
        )
        # Whoever prints has no level to print at.
        self.assertEqual(len(printed.lines), 4)

    def test_there_is_no_other(self) -> None:
        self.assertRaises(KeyError, set_level, "loud")


class PlaceTests(SynchronousTestCase):
    def test_twistd_is_told_otherwise(self) -> None:
        for options in ({"logger": "x"}, {"syslog": 1}, {"logfile": "-", "nodaemon": False}):
            self.assertIsNone(observer_for("json", options, lambda _: None))

    def test_file(self) -> None:
        with TemporaryDirectory() as directory:
            path = Path(directory, "log")
            observer = observer_for("json", {"logfile": str(path), "nodaemon": True}, lambda _: None)
            Logger("flowtx.x", observer=observer).info("Hello")
            self.assertEqual(json.loads(path.read_text())["message"], "Hello")
