"""A Socket: one connection of one client, and the topics it has joined.

What happens with a message, in the order of the checks:

1. ``heartbeat`` on topic ``phoenix`` is answered.
2. ``phx_join`` of a joined topic ends the old channel, then joins anew: the new join's reply goes
   out first, the old one's ``phx_close`` after it.
3. ``phx_join`` otherwise: past ``max_topics`` refused, without a route "unmatched topic".
4. A message on a joined topic goes to its channel, unless it carries another join's ref: then it is
   late and is dropped.
5. ``phx_leave`` of a topic that is not joined is answered ``ok``, anything else "unmatched topic".
"""

from __future__ import annotations

from collections import deque
from typing import Final
from uuid import uuid4

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from flowtx.channels.membership import Membership
from flowtx.channels.router import Router
from flowtx.interfaces import IPubSub, ITransport, Principal
from flowtx.protocol.close import HEARTBEAT_TIMEOUT, TOO_MANY_MALFORMED, Close
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
    """

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
    ) -> None:
        self.id = uuid4().hex
        self.transport = transport
        self.serializer = serializer
        self.principal = principal
        self.pubsub = pubsub
        self.clock = clock
        self.connected_at = self.last_received_at = clock.seconds()
        self._router = router
        self._max_topics = max_topics
        self._heartbeat_timeout = heartbeat_timeout
        self._memberships: dict[str, Membership] = {}
        self._malformed: deque[float] | None = None
        self._queued = 0
        self._closed = False
        # One timer a connection, set anew only when it fires: a message costs one assignment.
        self._silence: IDelayedCall | None = clock.callLater(heartbeat_timeout, self._check_silence)

    @property
    def topics(self) -> tuple[str, ...]:
        """The topics joined, or being joined."""
        return tuple(self._memberships)

    # From the transport

    def text_received(self, data: bytes) -> None:
        """Take the payload of a text frame, which the transport has found to be UTF-8."""
        if self._closed:
            return
        self.touched()
        try:
            message = self.serializer.decode_text(data)
        except MalformedFrame:
            self._count_malformed()
        else:
            self.dispatch(message)

    def binary_received(self, data: bytes) -> None:
        """Take the payload of a binary frame."""
        if self._closed:
            return
        self.touched()
        try:
            message = self.serializer.decode_binary(data)
        except MalformedFrame:
            self._count_malformed()
        else:
            self.dispatch(message)

    def touched(self) -> None:
        """Note a sign of life: any frame of the client's, pings and pongs too."""
        self.last_received_at = self.clock.seconds()

    def connection_lost(self) -> Deferred[None]:
        """End all channels: the connection has gone.

        Returns:
            A Deferred that fires with None when all of them have ended.
        """
        self._closed = True
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        memberships = list(self._memberships.values())
        self._memberships.clear()
        ended = DeferredList([membership.stop("closed") for membership in memberships])
        return ended.addCallback(lambda _: None)

    # To the transport

    def send(self, frame: Frame) -> None:
        """Send a frame; without effect once the connection is closed or has gone."""
        if not self._closed:
            self.transport.send(frame)

    def close(self, close: Close) -> None:
        """Close the connection, once; its channels end when it has gone.

        What the client sends meanwhile is dropped.
        """
        if not self._closed:
            self._closed = True
            self.transport.close(close)

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

    # Within

    def dispatch(self, message: Message) -> None:
        """Do with a message what the module's list says."""
        topic, event = message.topic, message.event
        if topic == PHOENIX_TOPIC and event == HEARTBEAT:
            self.send(self.serializer.reply(NULL_REF, message.ref, PHOENIX_TOPIC, "ok", {}))
            return
        membership = self._memberships.get(topic)
        if event == JOIN:
            self._join(message, membership)
        elif membership is not None:
            if membership.accepts(message.join_ref):
                membership.receive(message)
        elif event == LEAVE:
            self.send(self.serializer.reply(message.join_ref, message.ref, topic, "ok", {}))
        else:
            self._refuse_unmatched(message)

    def _join(self, message: Message, replaced: Membership | None) -> None:
        topic = message.topic
        if replaced is None and len(self._memberships) >= self._max_topics:
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
        now = self.clock.seconds()
        if self._malformed is None:
            self._malformed = deque(maxlen=MAX_MALFORMED)
        self._malformed.append(now)
        if len(self._malformed) == MAX_MALFORMED and now - self._malformed[0] <= MALFORMED_PERIOD:
            self._log.warn(
                "Closing {address}: {count} malformed frames in {seconds} s",
                address=self.transport.address,
                count=MAX_MALFORMED,
                seconds=round(now - self._malformed[0]),
            )
            self.close(TOO_MANY_MALFORMED)

    def _check_silence(self) -> None:
        self._silence = None
        remaining = self.last_received_at + self._heartbeat_timeout - self.clock.seconds()
        if remaining > 0:
            self._silence = self.clock.callLater(remaining, self._check_silence)
        else:
            self.close(HEARTBEAT_TIMEOUT)
