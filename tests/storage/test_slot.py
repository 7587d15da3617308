"""The life of one slot, on a clock of its own and without a server."""

from __future__ import annotations

from psycopg2 import errors, extensions
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import ConfigError, UnknownOutcome
from flowtx.storage.link import Phase, connection_string
from flowtx.storage.slot import SETUP, Slot, SlotState, backoff
from tests.storage.fake_link import FakeServer


class ConnectionStringTests(SynchronousTestCase):
    def test_keepalives_are_added(self) -> None:
        dsn, _ = connection_string("postgresql://u:s3cret@127.0.0.1:6000/flow", "node-a")
        options = extensions.parse_dsn(dsn)
        self.assertEqual(options["keepalives_idle"], "5")
        self.assertEqual(options["keepalives_interval"], "2")
        self.assertEqual(options["keepalives_count"], "3")
        self.assertEqual(options["tcp_user_timeout"], "5000")
        self.assertEqual(options["application_name"], "node-a")
        self.assertEqual(options["password"], "s3cret")

    def test_what_the_url_sets_stays(self) -> None:
        dsn, _ = connection_string("postgresql://u@h/flow?keepalives_idle=60&tcp_user_timeout=0", "x")
        options = extensions.parse_dsn(dsn)
        self.assertEqual(options["keepalives_idle"], "60")
        self.assertEqual(options["tcp_user_timeout"], "0")

    def test_the_name_for_logs_has_no_password(self) -> None:
        _, label = connection_string("postgresql://u:s3cret@127.0.0.1:6000/flow", "x")
        self.assertEqual(label, "127.0.0.1:6000/flow")

    def test_an_unreadable_url_is_not_repeated(self) -> None:
        for url in (
            "postgres//u:s3cret@h/x",
            "host=h password='s3cret",
            "postgresql://u:s3cret@h/x?no_such_option=1",
            "postgresql://u:s3%zzcret@h/x",
            "postgresql://u:p@s3cret@h/x",
            "postgresql://u:p/s3cret@h/x",
            "postgresql://u:12/s3cret@h/x",
        ):
            with self.assertRaises(ConfigError, msg=url) as caught:
                connection_string(url, "x")
            self.assertNotIn("s3cret", str(caught.exception))
            self.assertIsNone(caught.exception.__cause__)


class BackoffTests(SynchronousTestCase):
    def test_doubles_up_to_the_cap(self) -> None:
        self.assertEqual([backoff(n, 1.0) for n in range(8)], [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])

    def test_full_jitter_and_no_overflow(self) -> None:
        self.assertEqual(backoff(10**6, 0.5), 2.5)
        self.assertEqual(backoff(3, 0.0), 0.0)


class SlotTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.server = FakeServer()
        self.seen: list[SlotState] = []
        self.slot = Slot(
            "the dsn",
            lambda slot: self.seen.append(slot.state),
            reactor=self.clock,
            random=lambda: 1.0,
            link=self.server,
        )

    def ready(self) -> None:
        self.slot.start()
        self.server.latest.opened()

    def test_start_connects_and_sets_up(self) -> None:
        self.slot.start()
        self.assertIs(self.slot.state, SlotState.CONNECTING)
        self.assertEqual((self.server.latest.dsn, self.server.latest.setup), ("the dsn", SETUP))
        self.assertFalse(self.slot.up)
        self.server.latest.opened()
        self.assertIs(self.slot.state, SlotState.READY)
        self.assertTrue(self.slot.up)
        self.assertEqual(self.seen, [SlotState.READY])

    def test_a_connect_without_an_answer_ends_after_3_s(self) -> None:
        self.slot.start()
        first = self.server.latest
        self.clock.advance(2.99)
        self.assertFalse(first.closed)
        self.clock.advance(0.02)
        self.assertTrue(first.closed)
        self.assertIs(self.slot.state, SlotState.BACKOFF)
        self.assertEqual(self.slot.reason, "no connection in 3 s")

    def test_every_life_has_a_link_of_its_own(self) -> None:
        self.slot.start()
        first = self.server.latest
        first.not_opened("FATAL:  sorry, too many clients already\n")
        self.assertEqual(self.slot.reason, "FATAL:  sorry, too many clients already")
        self.clock.advance(0.1)
        self.assertIs(self.slot.state, SlotState.CONNECTING)
        self.assertIsNot(self.server.latest, first)

    def test_a_late_answer_of_an_earlier_life_changes_nothing(self) -> None:
        self.slot.start()
        first = self.server.latest
        self.clock.advance(3)
        first.opened()
        self.assertIs(self.slot.state, SlotState.BACKOFF)
        first.lost("late")
        self.assertEqual(self.slot.reason, "no connection in 3 s")

    def test_waits_longer_after_each_failure_and_anew_after_success(self) -> None:
        self.slot.start()
        waits = []
        for _ in range(7):
            self.server.latest.not_opened("refused")
            [call] = self.clock.getDelayedCalls()
            waits.append(round(call.getTime() - self.clock.seconds(), 3))
            self.clock.advance(waits[-1])
        self.assertEqual(waits, [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0])
        self.server.latest.opened()
        self.server.latest.lose()
        [call] = self.clock.getDelayedCalls()
        self.assertAlmostEqual(call.getTime() - self.clock.seconds(), 0.1)

    def test_hurry_shortens_the_wait(self) -> None:
        self.slot.start()
        for _ in range(7):
            self.server.latest.not_opened("refused")
            self.clock.advance(5)
        self.server.latest.not_opened("refused")
        count = len(self.server.links)
        self.slot.hurry(0.5)
        self.clock.advance(0.5)
        self.assertEqual(len(self.server.links), count + 1)
        self.slot.hurry(0.5)  # no effect: it connects already
        self.assertIs(self.slot.state, SlotState.CONNECTING)

    def test_idle_connections_are_asked_every_5_s(self) -> None:
        self.ready()
        for _ in range(3):
            self.clock.advance(5)
            self.assertIs(self.slot.state, SlotState.CHECKING)
            self.server.latest.answer([(1,)])
            self.assertIs(self.slot.state, SlotState.READY)
        self.assertEqual(self.server.latest.said, [("SELECT 1", ())] * 3)
        self.assertEqual(len(self.server.links), 1)

    def test_no_answer_in_2_s_ends_the_life(self) -> None:
        self.ready()
        self.clock.advance(5)
        self.clock.advance(1.9)
        self.assertIs(self.slot.state, SlotState.CHECKING)
        self.clock.advance(0.1)
        self.assertIs(self.slot.state, SlotState.BACKOFF)
        self.assertTrue(self.server.latest.closed)
        self.assertEqual(self.slot.reason, "no answer in 2 s")

    def test_use_puts_the_check_off(self) -> None:
        self.ready()
        self.clock.advance(4)
        self.slot.take()
        self.clock.advance(4)
        self.slot.release()
        self.clock.advance(4)
        self.assertIs(self.slot.state, SlotState.READY)
        self.assertEqual(self.server.latest.said, [])

    def test_a_loss_while_idle_is_told(self) -> None:
        self.ready()
        self.server.latest.lose()
        self.assertIs(self.slot.state, SlotState.BACKOFF)
        self.assertEqual(self.slot.reason, "server closed the connection unexpectedly")
        self.assertEqual(self.seen, [SlotState.READY, SlotState.BACKOFF])
        self.assertTrue(self.server.latest.closed)

    def test_a_loss_between_the_statements_of_a_call(self) -> None:
        self.ready()
        self.slot.take()
        self.server.latest.lose()
        self.assertIs(self.slot.state, SlotState.BUSY)
        self.assertIs(self.slot.phase, Phase.LOST)
        self.failureResultOf(Deferred.fromCoroutine(self.slot.execute("SELECT 2")), UnknownOutcome)
        self.slot.release()
        self.assertIs(self.slot.state, SlotState.BACKOFF)
        self.assertEqual(self.slot.reason, "server closed the connection unexpectedly")

    def test_kept_only_when_idle(self) -> None:
        self.ready()
        for phase in (Phase.AT_WORK, Phase.IN_TRANSACTION, Phase.IN_FAILED_TRANSACTION, Phase.LOST):
            self.slot.take()
            link = self.server.latest
            link.phase = phase
            self.slot.release()
            self.assertIs(self.slot.state, SlotState.BACKOFF, phase)
            self.assertTrue(link.closed, phase)
            self.clock.advance(1)
            self.server.latest.opened()
        self.slot.take()
        self.slot.release()
        self.assertIs(self.slot.state, SlotState.READY)

    def test_an_error_of_the_server_passes(self) -> None:
        self.ready()
        self.slot.take()
        result = Deferred.fromCoroutine(self.slot.execute("INSERT", (1,)))
        self.server.latest.refuse(errors.UniqueViolation("twice"))
        self.failureResultOf(result, errors.UniqueViolation)
        self.slot.release()
        self.assertIs(self.slot.state, SlotState.READY)

    def test_a_loss_on_the_way_is_an_unknown_outcome(self) -> None:
        self.ready()
        self.slot.take()
        result = Deferred.fromCoroutine(self.slot.execute("INSERT", (1,)))
        self.server.latest.lose("server closed the connection unexpectedly\n\tThis probably means")
        error = self.failureResultOf(result, UnknownOutcome).value
        self.assertEqual(str(error), "the connection was lost: server closed the connection unexpectedly")

    def test_kill_fails_what_is_under_way(self) -> None:
        self.ready()
        self.slot.take()
        result = Deferred.fromCoroutine(self.slot.execute("INSERT", (1,)))
        self.slot.kill("too late")
        error = self.failureResultOf(result, UnknownOutcome).value
        self.assertEqual(str(error), "the connection was lost: too late")
        self.assertTrue(self.server.latest.closed)

    def test_a_caller_that_gives_up_closes_the_connection(self) -> None:
        self.ready()
        self.slot.take()
        result = Deferred.fromCoroutine(self.slot.execute("SELECT pg_sleep(9)"))
        result.cancel()
        self.failureResultOf(result, CancelledError)
        self.assertTrue(self.server.latest.closed)
        self.slot.release()
        self.assertIs(self.slot.state, SlotState.BACKOFF)

    def test_stop_leaves_nothing_behind_in_any_state(self) -> None:
        def connecting() -> None:
            self.slot.start()

        def waiting() -> None:
            self.slot.start()
            self.server.latest.not_opened("refused")

        def checking() -> None:
            self.ready()
            self.clock.advance(5)

        def busy() -> None:
            self.ready()
            self.slot.take()

        for arrange in (connecting, waiting, self.ready, checking, busy):
            self.setUp()
            arrange()
            self.slot.stop()
            self.assertIs(self.slot.state, SlotState.STOPPED)
            self.assertEqual(self.clock.getDelayedCalls(), [])
            self.assertEqual(self.server.live, [])
            self.slot.release()
            self.slot.stop()
            self.assertIs(self.slot.state, SlotState.STOPPED)

    def test_an_impossible_step_is_refused(self) -> None:
        with self.assertRaises(RuntimeError):
            self.slot.take()
