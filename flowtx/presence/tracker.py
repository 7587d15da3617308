"""The presence of all topics of this node: changes come in one by one and go out period by period."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

from msgspec import Raw
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from flowtx.interfaces import IPubSub
from flowtx.presence.state import Meta, Presences, TopicState
from flowtx.protocol.message import Broadcast

PRESENCE_DIFF: Final = "presence_diff"
PERIOD: Final = 0.1


class PresenceObserver(Protocol):
    """Is told of the keys that got their first meta on a topic, and of those that lost their last one.

    It is told once a period what that comes to: of a key that went and came back meanwhile, nothing.
    """

    def __call__(self, topic: str, arrived: Sequence[str], departed: Sequence[str]) -> object: ...


class PresenceChanges(Protocol):
    """What takes the changes that are made on this node: its `Tracker`.

    A presence that spans nodes stands in between: it passes each change on to the Tracker and to the
    other nodes, and gives the Tracker what the others report. As no ref is used twice, a change that
    comes again, or undoes one that never came, has no effect.
    """

    def track(self, topic: str, key: str, ref: str, body: bytes) -> None: ...

    def update(self, topic: str, key: str, ref: str, new_ref: str, body: bytes) -> None: ...

    def untrack(self, topic: str, key: str, ref: str) -> None: ...


class Tracker:
    """Keeps who is present, and broadcasts ``presence_diff`` to the topics where that has changed.

    Args:
        pubsub: carries the broadcasts to the clients of this node.
        clock: the time.
        period: seconds for which changes are collected.
    """

    _log = Logger()

    def __init__(self, pubsub: IPubSub, *, clock: IReactorTime, period: float = PERIOD) -> None:
        self._pubsub = pubsub
        self._clock = clock
        self._period = period
        self._topics: dict[str, TopicState] = {}
        # A dict, not a set: topics are told in the order in which they changed.
        self._changed: dict[str, None] = {}
        self._observers: list[PresenceObserver] = []
        self._timer: IDelayedCall | None = None
        self._running = False

    def start(self) -> None:
        """Tell of changes from now on, those made before too."""
        self._running = True
        self._schedule()

    def stop(self) -> None:
        """Tell of the changes so far at once, and of none that follow."""
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        self._flush()

    def observe(self, observer: PresenceObserver) -> None:
        """Have ``observer`` told from now on; what it raises is logged."""
        self._observers.append(observer)

    # Changes

    def track(self, topic: str, key: str, ref: str, body: bytes) -> None:
        """Add a meta; without effect where it is here already. See `TopicState.track`."""
        state = self._topics.get(topic)
        if state is None:
            state = self._topics[topic] = TopicState()
        if state.find(key, ref) is None:
            state.track(key, ref, body)
            self._note(topic)

    def update(self, topic: str, key: str, ref: str, new_ref: str, body: bytes) -> None:
        """Replace a meta; without effect where it is not here. See `TopicState.update`."""
        state = self._topics.get(topic)
        if state is not None and state.update(key, ref, new_ref, body):
            self._note(topic)

    def untrack(self, topic: str, key: str, ref: str) -> None:
        """Take a meta away; without effect where it is not here."""
        state = self._topics.get(topic)
        if state is None or not state.untrack(key, ref):
            return
        if state.empty:
            # It came and went unseen.
            del self._topics[topic]
            self._changed.pop(topic, None)
        else:
            self._note(topic)

    # What is known

    def find(self, topic: str, key: str, ref: str) -> Meta | None:
        """The meta that ``ref`` names, or None."""
        state = self._topics.get(topic)
        return None if state is None else state.find(key, ref)

    def get_by_key(self, topic: str, key: str) -> Sequence[Raw]:
        """The metas of one key, in the order in which they came."""
        state = self._topics.get(topic)
        return [] if state is None else [meta.encoded for meta in state.get(key)]

    def keys(self, topic: str) -> Iterable[str]:
        """The keys that are present on a topic."""
        state = self._topics.get(topic)
        return () if state is None else state.keys()

    def list(self, topic: str) -> Presences:
        """All metas of a topic, with the changes that clients have not been told yet."""
        state = self._topics.get(topic)
        return {} if state is None else state.list()

    def shown(self, topic: str) -> Raw:
        """The payload of ``presence_state``. See `TopicState.shown`."""
        state = self._topics.get(topic)
        return Raw(b"{}") if state is None else state.shown()

    # Telling

    def _note(self, topic: str) -> None:
        self._changed[topic] = None
        self._schedule()

    def _schedule(self) -> None:
        if self._running and self._changed and self._timer is None:
            self._timer = self._clock.callLater(self._period, self._flush)

    def _flush(self) -> None:
        self._timer = None
        # Those who are told may make changes: these wait for the next period.
        changed, self._changed = self._changed, {}
        for topic in changed:
            state = self._topics.get(topic)
            diff = None if state is None else state.flush()
            if state is None or diff is None:
                continue
            if state.empty:
                del self._topics[topic]
            broadcast = Broadcast(topic, PRESENCE_DIFF, diff.payload)
            self._tell(self._pubsub.publish, broadcast, None, self._pubsub.node)
            if diff.arrived or diff.departed:
                for observer in self._observers:
                    self._tell(observer, topic, diff.arrived, diff.departed)

    def _tell(self, listener: Callable[..., object], *args: Any) -> None:
        try:
            listener(*args)
        except Exception:
            # One that fails must not keep the others from being told, now or ever after.
            self._log.failure("Presence: {listener} failed", listener=getattr(listener, "__qualname__", "?"))
