"""The figures of the overview: what the server has counted since its start, and what there is now."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
from prometheus_client import Counter, Gauge, Histogram

from flowtx.metrics import Metrics
from flowtx.presence.online import OnlineUsers
from flowtx.sessions.service import SessionService


class Quantities(msgspec.Struct, frozen=True):
    """A histogram since the start.

    Attributes:
        bounds: the upper bound of each bucket in seconds; the last one has none.
        counts: how many were in each bucket.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]


class Figures(msgspec.Struct, frozen=True):
    """What a server says of itself once a second.

    Attributes:
        at: seconds since the epoch.
        ready: whether it takes work.
        sessions: how many there are.
        connections: how many are open.
        online: how many users are present.
        messages: messages from clients, since the start.
        frames: frames to clients, since the start.
        dropped: frames that a slow client was not sent, since the start.
        pushed: notifications appended to inboxes, since the start.
        delivered: notifications sent to connections, since the start.
        opened: handshakes that were let in, since the start.
        refused: handshakes that were not, since the start.
        slow: connections closed because they did not read, since the start.
        restarts: Sessions restarted after a crash, since the start.
        outbox: bytes that wait to be sent.
        latency: from the insertion of a notification to its being sent.
        lag: by how much the event loop is late.
    """

    at: float
    ready: bool
    sessions: int
    connections: int
    online: int
    messages: int
    frames: int
    dropped: int
    pushed: int
    delivered: int
    opened: int
    refused: int
    slow: int
    restarts: int
    outbox: int
    latency: Quantities
    lag: Quantities


class Readings:
    """Reads the figures.

    Args:
        metrics: what is counted.
        sessions: the Sessions.
        online: who is online.
        is_ready: tells whether the server takes work.
        wall: seconds since the epoch.
    """

    def __init__(
        self,
        metrics: Metrics,
        sessions: SessionService,
        online: OnlineUsers,
        is_ready: Callable[[], bool],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._metrics = metrics
        self._sessions = sessions
        self._online = online
        self._is_ready = is_ready
        self._wall = wall

    def read(self) -> Figures:
        """Read all of them, which costs the same however many Sessions there are."""
        metrics = self._metrics
        opened, refused = _connects(metrics.connects)
        return Figures(
            at=round(self._wall(), 3),
            ready=self._is_ready(),
            sessions=len(self._sessions.namedServices),
            connections=_value(metrics.connections),
            online=len(self._online),
            messages=metrics.messages_received,
            frames=metrics.frames_sent,
            dropped=metrics.frames_dropped,
            pushed=_value(metrics.notifications_pushed),
            delivered=_value(metrics.notifications_delivered),
            opened=opened,
            refused=refused,
            slow=_value(metrics.slow_consumers),
            restarts=_value(metrics.session_restarts),
            outbox=metrics.outbox_waiting,
            latency=quantities(metrics.notify_latency),
            lag=quantities(metrics.reactor_lag),
        )


def _value(metric: Counter | Gauge) -> int:
    """What a metric without labels stands at."""
    return round(next(iter(metric.collect())).samples[0].value)


def _connects(metric: Counter) -> tuple[int, int]:
    """How many handshakes were let in, and how many not."""
    opened = refused = 0
    for sample in next(iter(metric.collect())).samples:
        if sample.name.endswith("_total"):
            if sample.labels.get("result") == "ok":
                opened += round(sample.value)
            else:
                refused += round(sample.value)
    return opened, refused


def quantities(metric: Histogram) -> Quantities:
    """Read a histogram without labels."""
    buckets = [sample for sample in next(iter(metric.collect())).samples if sample.name.endswith("_bucket")]
    bounds = tuple(float(sample.labels["le"]) for sample in buckets[:-1])
    below = [round(sample.value) for sample in buckets]
    # Prometheus counts what is below each bound.
    return Quantities(
        bounds, tuple(count - before for count, before in zip(below, [0, *below], strict=False))
    )
