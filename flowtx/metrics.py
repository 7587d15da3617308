"""The metrics: their names in one place, each a counter, gauge or histogram of Prometheus.

No label takes what a client can choose: reasons and results are out of fixed lists.
"""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
RATE_LIMITS = ("messages", "joins", "pings", "addresses")
_DURATIONS = (1, 5, 30, 60, 300, 900, 1_800, 3_600, 14_400, 43_200, 86_400)


class _Hot(Collector):
    """Shows the plain numbers of `Metrics` as counters."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        metrics = self._metrics
        yield CounterMetricFamily(
            "flowtx_messages_received", "Messages from clients", value=metrics.messages_received
        )
        yield CounterMetricFamily("flowtx_frames_sent", "Frames to clients", value=metrics.frames_sent)
        yield CounterMetricFamily(
            "flowtx_frames_dropped",
            "Frames that may be dropped, and that a slow client was not sent",
            value=metrics.frames_dropped,
        )


class Metrics:
    """What one server counts; see each metric's own help text."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.sessions = Gauge("flowtx_sessions", "Sessions on this node", registry=registry)
        self.connections = Gauge("flowtx_connections", "Open connections of clients", registry=registry)
        self.users_online = Gauge(
            "flowtx_users_online", "Users who are present on this node", registry=registry
        )
        self.session_duration = Histogram(
            "flowtx_session_duration_seconds",
            "How long Sessions lasted, by the reason of their end",
            ["reason"],
            buckets=_DURATIONS,
            registry=registry,
        )
        self.connects = Counter(
            "flowtx_connects_total", "Handshakes, by their result", ["result"], registry=registry
        )
        # Plain numbers: what each message counts must cost next to nothing.
        self.messages_received = 0
        self.frames_sent = 0
        self.frames_dropped = 0
        self.outbox_waiting = 0
        registry.register(_Hot(self))
        self.notifications_pushed = Counter(
            "flowtx_notifications_pushed_total", "Notifications appended to inboxes here", registry=registry
        )
        self.notifications_delivered = Counter(
            "flowtx_notifications_delivered_total", "Notifications sent to connections", registry=registry
        )
        self.notifications_undelivered = Counter(
            "flowtx_notifications_undelivered_total",
            "Notifications that nobody got in time",
            registry=registry,
        )
        self.notify_latency = Histogram(
            "flowtx_notify_latency_seconds",
            "From the insertion of a notification to its being sent to those who are here",
            buckets=_LATENCIES,
            registry=registry,
        )
        self.outbox_bytes = Gauge(
            "flowtx_outbox_bytes", "Bytes that wait to be sent, of all connections", registry=registry
        )
        self.outbox_bytes.set_function(lambda: self.outbox_waiting)
        self.slow_consumers = Counter(
            "flowtx_slow_consumers_total", "Connections closed because they did not read", registry=registry
        )
        self.rate_limited = Counter(
            "flowtx_rate_limited_total",
            "What went over a limit: messages, joins and pings of a connection, handshakes of an address",
            ["limit"],
            registry=registry,
        )
        for limit in RATE_LIMITS:
            self.rate_limited.labels(limit)
        self.session_restarts = Counter(
            "flowtx_session_restarts_total", "Sessions restarted after a crash", registry=registry
        )
        self.sessions_given_up = Counter(
            "flowtx_sessions_given_up_total", "Sessions that crashed too often", registry=registry
        )

    def expose(self) -> bytes:
        """Write all of them in the text format that Prometheus reads."""
        return generate_latest(self.registry)
