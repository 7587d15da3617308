"""A Socket: one connection of one client, and the topics it has joined.

What happens with a message, in the order of the checks:

1. ``heartbeat`` on topic ``phoenix`` is answered.
2. ``phx_join`` of a joined topic ends the old channel, then joins anew: the new join's reply goes
   out first, the old one's ``phx_close`` after it.
3. ``phx_join`` otherwise: past ``max_topics`` refused, without a route "unmatched topic".
4. A message on a joined topic goes to its channel, unless it carries another join's ref: then it is
   late and is dropped. ``access_token`` is for the connection itself: it renews its token.
5. ``phx_leave`` of a topic that is not joined is answered ``ok``, anything else "unmatched topic".

Before all of them, a message must be within the client's limits (`flowtx.channels.throttle`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from flowtx.channels.channel import Channel
from flowtx.channels.liveness import PING, Liveness, timeouts_of
from flowtx.channels.membership import Membership
from flowtx.channels.router import Router
from flowtx.channels.throttle import Quota, Throttle
from flowtx.channels.tokens import Renewal, Tokens
from flowtx.ids import new_id
from flowtx.interfaces import IPubSub, ITransport, Principal
from flowtx.limits import Strikes
from flowtx.protocol.close import TOO_MANY_MALFORMED, Close
from flowtx.protocol.message import (
    HEARTBEAT,
    JOIN,
    LEAVE,
    NULL_REF,
    PHOENIX_TOPIC,
    Frame,
    MalformedFrame,
    Message,
)
from flowtx.protocol.serializer import Serializer
from flowtx.recorder import Detail, FlightRecorder

ACCESS_TOKEN: Final = "access_token"  # noqa: S105 - an event
MAX_MALFORMED: Final = 10
MALFORMED_PERIOD: Final = 60.0
MAX_QUEUED: Final = 64
MAX_TOPIC_LENGTH: Final = 1024


class Socket:
    """See the module.

    Attributes:
        id: names the connection.
        principal: whom the connection's token names.
        transport: what carries it.
        connected_at: seconds of ``clock``.
        last_received_at: when anything last came from the client, seconds of ``clock``.
        last_activity_at: when anything but a heartbeat last came.
        messages_received: how many messages have come, heartbeats too.
        device: what the client calls its device, or None.
        on_pong: called with the payload of each Pong; None for nobody.
        max_topics: how many topics it may join.
        cause: what a close is for, where its reason does not tell; or None.
    """

    cause: str | None = None

    _log = Logger()

    def __init__(
        self,
        transport: ITransport,
        serializer: Serializer,
        principal: Principal,
        *,
        router: Router,
        pubsub: IPubSub,
        clock: IReactorTime,
        max_topics: int,
        heartbeat_timeout: float,
        ping_interval: float = 0.0,
        pong_timeout: float = 10.0,
        quota: Quota | None = None,
        tokens: Tokens | None = None,
        recorder: FlightRecorder | None = None,
    ) -> None:
        self.id = new_id()
        self.transport = transport
        self.serializer = serializer
        self.principal = principal
        self.pubsub = pubsub
        self.clock = clock
        self.device: str | None = None
        self.on_pong: Callable[[bytes], None] | None = None
        self.messages_received = 0
        self.connected_at = self.last_received_at = self.last_activity_at = clock.seconds()
        self._recorder = recorder
        self._router = router
        self.max_topics = max_topics
        self._memberships: dict[str, Membership] = {}
        self._malformed: Strikes | None = None
        self._throttle = None if quota is None else Throttle(self, quota)
        self._queued = 0
        self._closed = False
        self._closed_with: Close | None = None
        self._when_closing: tuple[Callable[[Socket, Close | None], None], ...] = ()
        self._renewal = Renewal(self, tokens)
        timeouts = timeouts_of(heartbeat_timeout, ping_interval, pong_timeout)
        self._liveness = Liveness(self, self._renewal, timeouts)

    @property
    def closed(self) -> bool:
        """Whether nothing reaches the client any more."""
        return self._closed

    @property
    def closed_with(self) -> Close | None:
        """Why it was closed; None while it is open, and where it has simply gone."""
        return self._closed_with

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics joined, or being joined."""
        return tuple(self._memberships)

    def channel(self, topic: str) -> Channel | None:
        """Find the channel of a topic that is joined, or being joined."""
        membership = self._memberships.get(topic)
        return None if membership is None else membership.channel

    def note(self, event: str, **detail: Detail) -> None:
        """Keep an event with what last happened to the user; see `flowtx.recorder`."""
        if self._recorder is not None:
            self._recorder.note(self.principal.user_id, event, connection=self.id, **detail)

    # From the transport

    def text_received(self, data: bytes) -> None:
        """Take the payload of a text frame, which the transport has found to be UTF-8."""
        self._received(data, self.serializer.decode_text)

    def binary_received(self, data: bytes) -> None:
        """Take the payload of a binary frame."""
        self._received(data, self.serializer.decode_binary)

    def _received(self, data: bytes, decode: Callable[[bytes], Message]) -> None:
        if self._closed:
            return
        now = self.last_received_at = self.clock.seconds()
        try:
            message = decode(data)
        except MalformedFrame:
            self._count_malformed()
            return
        throttle = self._throttle
        if throttle is None or throttle.admits(message, now):
            self.dispatch(message)

    def ping_received(self) -> None:
        """Take a Ping, which the transport answers."""
        if not self._closed:
            self.touched()
            if self._throttle is not None:
                self._throttle.pinged(self.last_received_at)

    def pong_received(self, payload: bytes) -> None:
        """Take the answer to a Ping."""
        self.touched()
        self._liveness.ponged(self.last_received_at)
        if payload != PING and self.on_pong is not None and not self._closed:
            self.on_pong(payload)

    def read_again(self) -> None:
        """Note that the transport, which had not read, reads again."""
        self.touched()
        self._liveness.read_again(self.last_received_at)

    def touched(self) -> None:
        """Note a sign of life: any frame of the client's, pings and pongs too."""
        self.last_received_at = self.clock.seconds()

    def connection_lost(self) -> Deferred[None]:
        """End all channels: the connection has gone.

        Returns:
            A Deferred that fires with None when all of them have ended.
        """
        self.closing(None)
        self._liveness.cancel()
        self._renewal.cancel()
        if self._throttle is not None:
            self._throttle.cancel()
        memberships = list(self._memberships.values())
        self._memberships.clear()
        ended = DeferredList([membership.stop("closed") for membership in memberships])
        return ended.addCallback(lambda _: None)

    # To the transport

    def send(self, frame: Frame) -> None:
        """Send a frame; without effect once the connection is closed or has gone."""
        if not self._closed:
            self.transport.send(frame)

    def ping(self, payload: bytes) -> None:
        """Send a Ping after what was sent before; `on_pong` gets the answer."""
        if not self._closed:
            self.transport.ping(payload)

    def close(self, close: Close) -> None:
        """Close the connection, once; its channels end when it has gone.

        What the client sends meanwhile is dropped.
        """
        if self.closing(close):
            self.transport.close(close)

    def closing(self, close: Close | None) -> bool:
        """Note that nothing reaches the client any more; for a transport that closes by itself.

        Args:
            close: why, or None where the connection has simply gone.

        Returns:
            Whether that is news.
        """
        if self._closed:
            return False
        self._closed, self._closed_with = True, close
        for call in self._when_closing:
            call(self, close)
        return True

    def when_closing(self, call: Callable[[Socket, Close | None], None]) -> None:
        """Have ``call`` called, at once or later, when nothing reaches the client any more.

        It comes before the channels end, so that what is broadcast meanwhile can be kept.
        """
        self._when_closing += (call,)
        if self._closed:
            call(self, self._closed_with)

    # From the memberships

    def forget(self, membership: Membership) -> None:
        """Drop ``membership``, unless another join has taken its topic."""
        if self._memberships.get(membership.topic) is membership:
            del self._memberships[membership.topic]

    def queued(self, change: int) -> None:
        """Count messages that wait in mailboxes; past a bound nothing more is read."""
        before, self._queued = self._queued, self._queued + change
        if before <= MAX_QUEUED < self._queued:
            self.transport.pause_reading()
        elif before > MAX_QUEUED >= self._queued:
            self.transport.resume_reading()

    def crash_channels(self) -> None:
        """End all channels as if they had crashed: their clients join again."""
        for membership in tuple(self._memberships.values()):
            membership.crash()

    # From the channels

    def observe_token(self, call: Callable[[], object]) -> None:
        """Have ``call``, which must not raise, called when the client has renewed its token."""
        self._renewal.observers += (call,)

    def ignore_token(self, call: Callable[[], object]) -> None:
        """Undo `observe_token`; without effect where there is nothing to undo."""
        self._renewal.observers = tuple(other for other in self._renewal.observers if other != call)

    # From the renewal

    def token_renewed(self) -> None:
        """Go by the new token's end."""
        if not self._closed:
            self._liveness.reset()

    # Within

    def dispatch(self, message: Message) -> None:
        """Do with a message what the module's list says."""
        topic, event = message.topic, message.event
        self.messages_received += 1
        if topic == PHOENIX_TOPIC and event == HEARTBEAT:
            self.send(self.serializer.reply(NULL_REF, message.ref, PHOENIX_TOPIC, "ok", {}))
            return
        self.last_activity_at = self.last_received_at
        membership = self._memberships.get(topic)
        if event == JOIN:
            self._join(message, membership)
        elif membership is not None:
            if not membership.accepts(message.join_ref):
                return
            if event == ACCESS_TOKEN:
                self._renewal.renew(message, membership)
            else:
                membership.receive(message)
        elif event == LEAVE:
            self.send(self.serializer.reply(message.join_ref, message.ref, topic, "ok", {}))
        else:
            self._refuse_unmatched(message)

    def _join(self, message: Message, replaced: Membership | None) -> None:
        topic = message.topic
        if replaced is None and len(self._memberships) >= self.max_topics:
            response = {"reason": "too many channels joined"}
            self.send(self.serializer.reply(message.join_ref, message.ref, message.topic, "error", response))
            return
        channel = None
        if isinstance(topic, str) and len(topic) <= MAX_TOPIC_LENGTH:
            try:
                channel = self._router.route(topic)
            except Exception:
                self._log.failure("No channel could be made for a join")
                response = {"reason": "join crashed"}
                self.send(self.serializer.reply(message.join_ref, message.ref, topic, "error", response))
                return
        if channel is None:
            self._refuse_unmatched(message)
            return
        membership = self._memberships[topic] = Membership(self, channel, message)
        membership.start(message, replaced)

    def _refuse_unmatched(self, message: Message) -> None:
        response = {"reason": "unmatched topic"}
        self.send(self.serializer.reply(NULL_REF, message.ref, message.topic, "error", response))

    def _count_malformed(self) -> None:
        if self._malformed is None:
            self._malformed = Strikes(MAX_MALFORMED, MALFORMED_PERIOD)
        within = self._malformed.add(self.last_received_at)
        if within is not None:
            self._log.warn(
                "Closing {address}: {count} malformed frames in {seconds} s",
                address=self.transport.address,
                count=MAX_MALFORMED,
                seconds=round(within),
            )
            self.close(TOO_MANY_MALFORMED)
