from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.router import Router
from flowtx.console.operators import (
    CHECK_EVERY,
    GONE_WITHIN,
    MAX_OPERATORS,
    Operator,
    Operators,
    OwnPages,
    Seat,
)
from flowtx.errors import Refused
from flowtx.protocol.close import DRAIN, TOKEN_REVOKED
from flowtx.testing.memory import MemoryTransport, connect
from flowtx.web.keys import ApiKeys

KEY = "k" * 20 + "ey-of-the-data-directory-" + "0123456789"


class OperatorsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.key = KEY
        self.keys = ApiKeys(lambda: self.key)
        self.operators = Operators(self.keys, clock=self.clock)
        self.operators.startService()

    def verify(self, key: str) -> Operator:
        return self.successResultOf(Deferred.fromCoroutine(self.operators.verify(key)))

    def claim(self) -> Seat:
        return self.successResultOf(Deferred.fromCoroutine(self.operators.claim(self.verify(self.key))))

    def open(self) -> tuple[Seat, MemoryTransport]:
        seat = self.claim()
        transport = connect(Router(), "api-key", self.clock, heartbeat_timeout=1e9)
        transport.socket.principal = self.verify(self.key)
        seat.attach(transport.socket)
        return seat, transport

    def refused(self, coroutine: object) -> str:
        problem = self.failureResultOf(Deferred.fromCoroutine(coroutine), Refused)  # type: ignore[arg-type]
        assert isinstance(problem, Failure)
        assert isinstance(problem.value, Refused)
        return problem.value.reason

    def test_a_key_names_an_operator_with_its_scopes(self) -> None:
        operator = self.verify(KEY)
        self.assertEqual((operator.user_id, operator.groups), ("api-key", ("admin", "notify", "read")))
        self.assertNotIn(KEY, repr(operator))

    def test_another_key_names_nobody(self) -> None:
        for key in ("", KEY[:-1], f"{KEY} ", "\u00e9"):
            self.assertEqual(self.refused(self.operators.verify(key)), "invalid_token")

    def test_a_key_that_is_taken_back_loses_its_connections(self) -> None:
        seat, transport = self.open()
        self.clock.advance(CHECK_EVERY)
        self.assertIsNone(transport.closed)
        self.key = KEY[::-1]
        self.keys.reload()
        self.clock.advance(CHECK_EVERY)
        self.assertEqual(transport.closed, TOKEN_REVOKED)
        seat.release()

    def test_nobody_there_no_timer(self) -> None:
        (first, one), (second, other) = self.open(), self.open()
        checks = [call for call in self.clock.getDelayedCalls() if call.getTime() <= CHECK_EVERY]
        self.assertEqual(len(checks), 1)
        for transport, seat in ((one, first), (other, second)):
            transport.lose()
            seat.release()
            seat.release()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.operators), 0)

    def test_there_are_only_so_many_seats(self) -> None:
        seats = [self.claim() for _ in range(MAX_OPERATORS)]
        self.assertTrue(self.operators.full)
        principal = self.verify(KEY)
        self.assertEqual(self.refused(self.operators.claim(principal)), "unavailable")
        seats[0].release()
        self.claim()

    def test_the_stop_closes_all_and_waits_for_them(self) -> None:
        seat, transport = self.open()
        stopping = self.operators.stopService()
        self.assertEqual(transport.closed, DRAIN)
        self.assertNoResult(stopping)
        self.assertEqual(self.refused(self.operators.claim(self.verify(KEY))), "unavailable")
        transport.lose()
        seat.release()
        self.successResultOf(stopping)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_the_stop_does_not_wait_for_ever(self) -> None:
        self.open()
        stopping = self.operators.stopService()
        self.clock.advance(GONE_WITHIN)
        self.successResultOf(stopping)

    def test_who_comes_in_during_the_stop_is_closed(self) -> None:
        seat = self.claim()
        self.operators.stopService()
        transport = connect(Router(), "api-key", self.clock)
        seat.attach(transport.socket)
        self.assertEqual(transport.closed, DRAIN)


class OwnPagesTests(SynchronousTestCase):
    def test_only_its_own_pages_are_let_in(self) -> None:
        pages = OwnPages(None)
        for origin, host, good in (
            (None, "ops.example.com", True),
            ("https://ops.example.com", "ops.example.com", True),
            ("http://127.0.0.1:4001", "127.0.0.1:4001", True),
            ("http://127.0.0.1:4000", "127.0.0.1:4001", False),
            ("http://evil.example.com", "ops.example.com", False),
            ("null", "ops.example.com", False),
            ("", "", False),
            ("http://", "", False),
        ):
            self.assertEqual(pages.allows(origin, host), good, (origin, host))

    def test_a_name_that_somebody_gave_this_address_is_not_its_own(self) -> None:
        pages = OwnPages(frozenset())
        self.assertFalse(pages.allows("http://rebound.example.com:4001", "rebound.example.com:4001"))
        self.assertTrue(pages.allows("http://localhost:4001", "localhost:4001"))
