"""The metrics: their names in one place, each a counter, gauge or histogram of Prometheus.

No label takes what a client can choose: reasons and results are out of fixed lists.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from flowtx.pauses import Pauses

_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
RESULTS = frozenset(
    {"ok", "bad_request", "expired_token", "forbidden_origin", "handshake_timeout", "internal_error"}
    | {"invalid_token", "missing_token", "not_found", "overloaded", "rate_limited", "request_too_large"}
    | {"revoked_token", "too_many_devices", "too_many_headers", "unavailable", "unknown_user"}
    | {"unsupported_version"}
)
"""What becomes of handshakes; all else is "other"."""
DATABASE_ERRORS = ("unavailable", "unknown_outcome", "timeout", "in_the_way", "refused")
MAX_ROUTES = 20
"""Paths of the HTTP API that are told apart."""
STATUSES = ("2xx", "4xx", "5xx")
_QUERIES = (0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 5)
_REQUESTS = (0.005, 0.025, 0.1, 0.5, 2.5, 10)
RATE_LIMITS = ("messages", "joins", "pings", "addresses")
_LAGS = (0.001, 0.005, 0.02, 0.1, 0.5, 1, 5, 10)
_DURATIONS = (60, 900, 3_600, 14_400, 86_400)


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

        self.reactor_lag = Histogram(
            "flowtx_reactor_lag_seconds",
            "By how much a timer of the event loop fires after its time",
            buckets=_LAGS,
            registry=registry,
        )

        self.database_connections = Gauge(
            "flowtx_database_connections",
            "Connections to the database, by what they are doing",
            ["state"],
            registry=registry,
        )
        self.database_waiters = Gauge(
            "flowtx_database_waiters", "Calls that wait for a connection to the database", registry=registry
        )
        self.database_seconds = Histogram(
            "flowtx_database_query_seconds",
            "Statements and transactions, the wait for a connection included",
            buckets=_QUERIES,
            registry=registry,
        )
        self.database_errors = Counter(
            "flowtx_database_errors_total", "What went wrong with the database", ["kind"], registry=registry
        )
        for kind in DATABASE_ERRORS:
            self.database_errors.labels(kind)
        self.http_requests = Counter(
            "flowtx_http_requests_total",
            "Calls of the HTTP API, by path and class of status",
            ["route", "status"],
            registry=registry,
        )
        self.http_seconds = Histogram(
            "flowtx_http_request_seconds",
            "How long calls of the HTTP API took",
            buckets=_REQUESTS,
            registry=registry,
        )
        self._routes: set[str] = set()
        self.recorder_bytes = Gauge(
            "flowtx_recorder_bytes", "About what the flight recorder takes", registry=registry
        )
        self.draining = Gauge("flowtx_draining", "1 while the server stops", registry=registry)
        self.build = Gauge(
            "flowtx_build_info",
            "1; what runs here",
            ["version", "python", "twisted", "reactor"],
            registry=registry,
        )
        self.pauses = Pauses()
        registry.register(self.pauses)
        ProcessCollector(registry=registry)

    def handshake_ended(self, result: str) -> None:
        """Count a handshake.

        Args:
            result: ``ok``, or the reason of its refusal.
        """
        self.connects.labels(result if result in RESULTS else "other").inc()

    def http_answered(self, route: str | None, status: int, seconds: float) -> None:
        """Count a call of the HTTP API.

        Args:
            route: the path with its parameters' names; None where there is no such.
            status: of HTTP.
            seconds: that it took.
        """
        if route is None:
            route = "unmatched"
        elif route not in self._routes:
            if len(self._routes) < MAX_ROUTES:
                self._routes.add(route)
            else:
                route = "others"
        kind = f"{status // 100}xx"
        self.http_requests.labels(route, kind if kind in STATUSES else "other").inc()
        self.http_seconds.observe(seconds)

    def describe_build(self, reactor: str) -> None:
        """Say what runs here."""
        self.build.labels(version("flowtx"), platform.python_version(), version("twisted"), reactor).set(1)

    def expose(self) -> bytes:
        """Write all of them in the text format that Prometheus reads."""
        return generate_latest(_Shown(self.registry))


class _Shown:
    """A registry without the time at which each counter was made: a third of all series."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric
