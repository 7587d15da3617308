"""What the metrics tell of the database."""

from __future__ import annotations

import psycopg2
from psycopg2 import errors
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Unavailable, UnknownOutcome
from flowtx.metrics import DATABASE_ERRORS, Metrics
from flowtx.storage.measured import MeasuredDatabase
from flowtx.storage.transaction import Transaction
from tests.storage.fake_link import FakeServer


class MeasuredTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.server = FakeServer()
        self.database = MeasuredDatabase(
            "postgresql://localhost/flow",
            reactor=self.clock,
            metrics=self.metrics,
            slots=2,
            random=lambda: 0.5,
            link=self.server,
        )

    def value(self, name: str, **labels: str) -> float:
        found = self.metrics.registry.get_sample_value(name, labels)
        assert found is not None, (name, labels)
        return found

    def states(self) -> tuple[float, ...]:
        """Ready, busy, connecting, and the calls that wait."""
        names = ("ready", "busy", "connecting")
        states = [self.value("flowtx_database_connections", state=name) for name in names]
        return (*states, self.value("flowtx_database_waiters"))

    def errors(self) -> dict[str, float]:
        counts = {kind: self.value("flowtx_database_errors_total", kind=kind) for kind in DATABASE_ERRORS}
        return {kind: count for kind, count in counts.items() if count}

    def query(self) -> Deferred[object]:
        return Deferred.fromCoroutine(self.database.query("SELECT 1"))

    def start(self) -> None:
        self.database.startService()
        self.server.open_all()

    def test_states_of_the_connections(self) -> None:
        self.assertEqual(self.states(), (0, 0, 0, 0))
        self.database.startService()
        self.assertEqual(self.states(), (0, 0, 2, 0))
        self.server.links[0].opened()
        self.assertEqual(self.states(), (1, 0, 1, 0))
        self.server.links[1].opened()
        calls = [self.query() for _ in range(3)]
        self.assertEqual(self.states(), (0, 2, 0, 1))
        for link in self.server.links:
            link.answer()
        self.assertEqual(self.states()[3], 0)
        for link in self.server.links:
            if link.at_work:
                link.answer()
        for call in calls:
            self.successResultOf(call)
        self.assertEqual(self.states(), (2, 0, 0, 0))

    def test_time_of_a_call(self) -> None:
        self.start()
        call = self.query()
        self.clock.advance(0.25)
        self.server.links[0].answer()
        self.successResultOf(call)
        self.assertEqual(self.value("flowtx_database_query_seconds_sum"), 0.25)
        self.assertEqual(self.value("flowtx_database_query_seconds_bucket", le="0.1"), 0)
        self.assertEqual(self.value("flowtx_database_query_seconds_bucket", le="0.5"), 1)
        self.assertEqual(self.errors(), {})

    def test_kinds_of_errors(self) -> None:
        call = self.query()
        self.failureResultOf(call, Unavailable)
        self.start()
        call = self.query()
        self.server.links[0].refuse(psycopg2.ProgrammingError("no such table"))
        self.failureResultOf(call, psycopg2.Error)
        call = self.query()
        self.server.links[0].refuse(errors.LockNotAvailable("in the way"))
        self.failureResultOf(call, psycopg2.Error)
        call = self.query()
        self.server.links[0].lose("gone")
        self.failureResultOf(call, UnknownOutcome)
        expected = {"unavailable": 1, "refused": 1, "in_the_way": 1, "unknown_outcome": 1}
        self.assertEqual(self.errors(), expected)

    def test_fault_of_the_caller_is_no_error_of_the_database(self) -> None:
        self.start()

        async def work(_: Transaction) -> None:
            raise KeyError("mine")

        call = Deferred.fromCoroutine(self.database.transaction(work))
        while self.server.links[0].at_work:
            self.server.links[0].answer()
        self.failureResultOf(call, KeyError)
        self.assertEqual(self.errors(), {})
        self.assertEqual(self.value("flowtx_database_query_seconds_count"), 1)
