"""When the listener looks, on a clock and without a server."""

from __future__ import annotations

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import ConfigError, StartupError, Unavailable
from flowtx.storage.listener import Listener
from tests.storage.fake_link import FakeServer

URL = "postgresql://flow:s3cret@127.0.0.1:6000/flow"


class ListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.server = FakeServer()
        self.runs: list[Deferred[None]] = []
        self.connected: list[int] = []
        self.listener = Listener(
            URL,
            "flow",
            self.wake,
            reactor=self.clock,
            connected=lambda: self.connected.append(len(self.runs)),
            random=lambda: 1.0,
            link=self.server,
        )
        self.events = self.enterContext(capturedLogs())

    @property
    def lines(self) -> list[str]:
        return [
            f"{event['log_level'].name}: {formatEvent(event)}"
            for event in self.events
            if event["log_namespace"].startswith("flowtx.storage")
        ]

    def wake(self) -> Deferred[None]:
        run: Deferred[None] = Deferred()
        self.runs.append(run)
        return run

    def start(self) -> None:
        started = self.listener.startService()
        self.server.latest.opened()
        self.runs[-1].callback(None)
        self.successResultOf(started)

    def notify(self, times: int = 1) -> None:
        for _ in range(times):
            self.server.latest.notified()

    def test_listens_then_reads_then_has_started(self) -> None:
        started = self.listener.startService()
        self.assertEqual(self.runs, [])
        self.assertTrue(self.server.latest.setup.endswith(';LISTEN "flow"'))
        self.server.latest.opened()
        self.assertEqual(len(self.runs), 1)
        self.assertNoResult(started)
        self.runs[0].callback(None)
        self.successResultOf(started)
        self.assertTrue(self.listener.listening)

    def test_names_of_channels(self) -> None:
        Listener(URL, 'a"b', self.wake, reactor=self.clock, link=self.server).startService()
        self.assertTrue(self.server.latest.setup.endswith(';LISTEN "a""b"'))
        for channel in ("", "x" * 64, "ü" * 32, "a\0b"):
            with self.assertRaises(ConfigError):
                Listener(URL, channel, self.wake, reactor=self.clock)

    def test_a_notify_wakes(self) -> None:
        self.start()
        self.notify()
        self.assertEqual(len(self.runs), 2)

    def test_what_comes_during_a_run_leads_to_one_more(self) -> None:
        self.start()
        self.notify(50)
        self.assertEqual(len(self.runs), 2)
        self.notify(50)
        self.runs[1].callback(None)
        self.clock.advance(0)
        self.assertEqual(len(self.runs), 3)
        self.runs[2].callback(None)
        self.clock.advance(4.9)
        self.assertEqual(len(self.runs), 3)

    def test_looks_after_5_s_without_a_notify(self) -> None:
        self.start()
        self.clock.advance(4)
        self.notify()
        self.runs[1].callback(None)
        self.clock.advance(4.9)
        self.assertEqual(len(self.runs), 2)
        self.clock.advance(0.1)
        self.assertEqual(len(self.runs), 3)

    def test_looks_while_the_link_is_down(self) -> None:
        self.start()
        self.server.latest.lose()
        self.assertFalse(self.listener.listening)
        self.clock.advance(5)
        self.assertEqual(len(self.runs), 2)

    def test_looks_after_each_listen(self) -> None:
        self.start()
        self.server.latest.lose()
        self.clock.advance(0.1)
        self.server.latest.opened()
        self.assertEqual(len(self.runs), 2)
        self.assertEqual(len(self.lines), 2, self.lines)

    def test_each_listen_is_told_before_the_look_after_it(self) -> None:
        self.start()
        self.notify()
        self.runs[-1].callback(None)
        self.clock.advance(5)
        self.server.latest.answer([(1,)])
        self.assertEqual(self.connected, [0])
        looks = len(self.runs)
        self.server.latest.lose()
        self.clock.advance(0.1)
        self.server.latest.opened()
        self.assertEqual(self.connected, [0, looks])

    def test_a_listen_during_a_run_leads_to_one_more(self) -> None:
        self.start()
        self.notify()
        self.server.latest.lose()
        self.clock.advance(0.1)
        self.server.latest.opened()
        self.assertEqual(len(self.runs), 2)
        self.runs[1].callback(None)
        self.clock.advance(0)
        self.assertEqual(len(self.runs), 3)

    def test_the_check_of_the_link_is_no_reason_to_look(self) -> None:
        self.start()
        self.clock.advance(5)
        self.assertEqual(self.server.latest.said, [("SELECT 1", ())])
        self.assertEqual(len(self.runs), 2)  # the poll
        self.server.latest.answer([(1,)])
        self.runs[1].callback(None)
        self.clock.advance(0)
        self.assertEqual(len(self.runs), 2)

    def test_a_silent_link_is_given_up_after_7_s(self) -> None:
        self.start()
        self.clock.advance(5)
        self.clock.advance(2)
        self.assertFalse(self.listener.listening)
        self.assertEqual(self.lines, ["warn: LISTEN flow is lost: no answer in 2 s"])

    def test_a_failing_wake_is_logged_once_and_repeated(self) -> None:
        self.start()
        for n in range(1, 4):
            self.notify()
            self.runs[n].errback(RuntimeError("no"))
        self.notify()
        self.runs[4].errback(LookupError("another kind"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)
        self.clock.advance(5)
        self.assertEqual(len(self.runs), 6)

    def test_a_database_that_is_down_is_one_line_without_a_traceback(self) -> None:
        self.start()
        for n in range(1, 4):
            self.notify()
            self.runs[n].errback(Unavailable("nothing was sent"))
        self.assertEqual(self.lines, ["warn: What flow wakes failed: nothing was sent"])
        self.notify()
        self.runs[4].callback(None)
        self.notify()
        self.runs[5].errback(Unavailable("again"))
        self.assertEqual(len(self.lines), 2)

    def test_no_start_within_10_s(self) -> None:
        started = self.listener.startService()
        for _ in range(101):
            for link in self.server.live:
                link.not_opened("FATAL:  password authentication failed")
            for run in self.runs:
                if not run.called:
                    run.callback(None)
            self.clock.advance(0.1)
        error = self.failureResultOf(started, StartupError).value
        self.assertEqual(
            str(error),
            "cannot listen to the database at 127.0.0.1:6000/flow: FATAL:  password authentication failed",
        )
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.successResultOf(self.listener.stopService())

    def test_no_start_while_wake_fails(self) -> None:
        started = self.listener.startService()
        self.server.latest.opened()
        self.runs[0].errback(LookupError("no such table"))
        self.clock.advance(5)
        self.runs[1].errback(LookupError("no such table"))
        self.clock.advance(5)
        self.assertIn("no such table", str(self.failureResultOf(started, StartupError).value))
        self.assertEqual(len(self.flushLoggedErrors(LookupError)), 1)

    def test_stop_waits_for_the_run(self) -> None:
        self.start()
        self.notify(2)
        stopped = self.listener.stopService()
        self.assertEqual(self.server.live, [])
        self.clock.advance(1.9)
        self.assertNoResult(stopped)
        self.runs[1].callback(None)
        self.successResultOf(stopped)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.runs), 2)

    def test_but_not_for_ever(self) -> None:
        self.start()
        self.notify()
        stopped = self.listener.stopService()
        self.clock.advance(2)
        self.successResultOf(stopped)
        self.assertTrue(self.runs[1].called)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.lines, [])

    def test_a_cancelled_start_leaves_nothing_behind(self) -> None:
        started = self.listener.startService()
        started.cancel()
        self.failureResultOf(started, CancelledError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.server.live, [])
