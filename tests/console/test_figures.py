from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram
from twisted.trial.unittest import SynchronousTestCase

from flowtx.console.figures import Readings, quantities
from tests.console.desk import Desk


class FiguresTests(SynchronousTestCase):
    def test_they_are_those_of_the_metrics(self) -> None:
        desk = Desk()
        readings = Readings(desk.metrics, desk.sessions, desk.online, lambda: True, wall=lambda: 12.3456)
        metrics = desk.metrics
        for result, times in (("ok", 3), ("invalid_token", 2), ("overloaded", 4)):
            metrics.connects.labels(result).inc(times)
        metrics.connections.set(7)
        metrics.messages_received = 11
        metrics.frames_sent = 13
        metrics.frames_dropped = 1
        metrics.outbox_waiting = 17
        metrics.notifications_pushed.inc(19)
        metrics.notifications_delivered.inc(23)
        metrics.slow_consumers.inc(2)
        metrics.session_restarts.inc()
        metrics.reactor_lag.observe(0.0)
        desk.user("alice")
        figures = readings.read()
        self.assertEqual((figures.at, figures.sessions, figures.online), (12.346, 1, 1))
        self.assertEqual((figures.opened, figures.refused, figures.connections), (3, 6, 7))
        self.assertEqual((figures.frames, figures.dropped, figures.outbox), (13, 1, 17))
        self.assertEqual((figures.messages, figures.slow, figures.restarts), (11, 2, 1))
        self.assertEqual((figures.pushed, figures.delivered), (19, 23))
        self.assertEqual(figures.lag.counts[0], 1)

    def test_a_histogram_is_told_by_its_buckets(self) -> None:
        histogram = Histogram("h", "h", buckets=(0.1, 1), registry=CollectorRegistry())
        for value in (0.05, 0.5, 0.6, 1.0, 7):
            histogram.observe(value)
        told = quantities(histogram)
        self.assertEqual((told.bounds, told.counts), ((0.1, 1.0), (1, 3, 1)))
