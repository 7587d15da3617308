"""Where a channel's infos come from, other than directly: its timers and the topics it listens to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from flowtx.errors import FlowtxError

if TYPE_CHECKING:
    from flowtx.channels.membership import Membership
    from flowtx.interfaces import IPubSub

MAX_TIMERS: Final = 1_000
MAX_SUBSCRIPTIONS: Final = 1_000


class TooManySources(FlowtxError):  # noqa: N818
    """A channel asks for more timers or subscriptions than one may have."""


class Sources:
    """See the module; all of them end with `close`, after which there are no new ones."""

    __slots__ = ("_clock", "_closed", "_membership", "_pubsub", "_timers", "_topics")

    def __init__(self, membership: Membership, pubsub: IPubSub, clock: IReactorTime) -> None:
        self._membership = membership
        self._pubsub = pubsub
        self._clock = clock
        self._timers: set[IDelayedCall] = set()
        self._topics: set[str] = set()
        self._closed = False

    def send_after(self, seconds: float, message: Any) -> IDelayedCall:
        if len(self._timers) >= MAX_TIMERS:
            self._timers = {timer for timer in self._timers if timer.active()}
            if len(self._timers) >= MAX_TIMERS:
                raise TooManySources(f"a channel has at most {MAX_TIMERS} timers at a time")

        def due() -> None:
            self._timers.discard(timer)
            self._membership.send_info(message)

        timer = self._clock.callLater(seconds, due)
        if self._closed:
            timer.cancel()
        else:
            self._timers.add(timer)
        return timer

    def subscribe(self, topic: str) -> None:
        if self._closed:
            return
        if topic not in self._topics and len(self._topics) >= MAX_SUBSCRIPTIONS:
            raise TooManySources(f"a channel subscribes to at most {MAX_SUBSCRIPTIONS} topics")
        self._topics.add(topic)
        self._pubsub.subscribe(topic, self._membership)

    def unsubscribe(self, topic: str) -> None:
        if topic in self._topics:
            self._topics.remove(topic)
            self._pubsub.unsubscribe(topic, self._membership)

    def close(self) -> None:
        self._closed = True
        for timer in self._timers:
            if timer.active():
                timer.cancel()
        self._timers.clear()
        for topic in self._topics:
            self._pubsub.unsubscribe(topic, self._membership)
        self._topics.clear()
