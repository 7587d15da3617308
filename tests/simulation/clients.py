"""Clients that behave as phoenix.js does: its schedules to connect and to join again, its heartbeats.

Each is a device of a user, on the topics ``user:<id>`` and ``users:online``. A durable one keeps what
it was shown and resumes after it; a forgetful one gives no ``last_seq`` and is shown what is unread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import msgspec

from tests.faults.history import Join, Reader, Seen
from tests.integration.rawclient import request
from tests.presence.client import ModelClient
from tests.simulation.clock import NodeClock
from tests.simulation.ends import End
from tests.simulation.frames import CLOSE, PING, PONG, TEXT, Incoming, masked
from tests.simulation.network import Network, Route
from tests.simulation.opening import Opening
from tests.simulation.topics import TIMEOUT, Timer, Topic

RECONNECT_AFTER: Final = (0.01, 0.05, 0.1, 0.15, 0.2, 0.25, 0.5, 1.0, 2.0)
RECONNECT_MOST: Final = 5.0
HEARTBEAT_EVERY: Final = 4.0

_encode = msgspec.json.encode
_decode = msgspec.json.decode


@dataclass
class Shown:
    """What a device was shown.

    Attributes:
        reader: of a durable one, for the checker.
        seqs: all that it was ever shown.
        faults: what was wrong with what it was sent.
    """

    reader: Reader
    seqs: set[int] = field(default_factory=set)
    faults: list[str] = field(default_factory=list)


class Device:
    """One client.

    Args:
        name: of the device.
        user: whose it is.
        token: makes a fresh token.
        forgetful: whether it forgets what it was shown when its connection goes.

    Attributes:
        shown: what it was shown.
        presence: whom it takes for present.
        status: what it last said of its user; None while it is not known whether that was heard.
        marked: the highest seq up to which it has asked to mark all as read.
        renews: whether it renews its token before that ends.
    """

    def __init__(
        self,
        name: str,
        user: str,
        *,
        network: Network,
        clock: NodeClock,
        chance: Random,
        token: Callable[[str], tuple[str, float]],
        forgetful: bool,
    ) -> None:
        self.name = name
        self.user = user
        self.clock = clock
        self.route = Route(name)
        self.forgetful = forgetful
        self.shown = Shown(Reader(name, user))
        self.presence = ModelClient()
        self.status: str | None = "online"
        self.marked = 0
        self.renews = chance.random() < 0.7
        self._network = network
        self._chance = chance
        self._token = token
        self._transport: End | None = None
        self._incoming = Incoming()
        self._is_up = False
        self._tries = 0
        self._ref = 0
        self._heartbeat: str | None = None
        self._saying: tuple[str, str] | None = None
        self._wanted = False
        self._join: Join | None = None
        self._live_after = 0
        self._highest = 0
        self._news: int | None = None
        self._opening: Opening | None = None
        self._reconnect = Timer(clock, self._connect)
        self._beat = Timer(clock, self._beats)
        self._patience = Timer(clock, self._gives_up)
        self._renewal = Timer(clock, self._renew)
        self._ack = Timer(clock, self._acknowledge)
        self.inbox = Topic(self, f"user:{user}", self._join_payload)
        self.online = Topic(self, "users:online", self._online_payload)
        network.routes.append(self.route)

    # For whoever drives it

    def start(self) -> None:
        """Connect, and stay connected."""
        self._wanted = True
        self._connect()

    def stop(self, how: str) -> None:
        """Go for good: ``close`` with a handshake, ``drop`` the connection, or ``vanish`` without a word."""
        self._wanted = False
        if how == "vanish":
            self.route.block("up", "down")
        if how == "close" and self.is_open:
            self._write(CLOSE, b"\x03\xe8")
        self._drop()

    @property
    def is_open(self) -> bool:
        """Whether messages can be sent."""
        return self._is_up

    @property
    def is_settled(self) -> bool:
        """Whether it has joined all that it wants."""
        return self._is_up and self.inbox.state == self.online.state == "joined"

    @property
    def transport(self) -> End | None:
        """Its end of the connection."""
        return self._transport

    def do(self, what: str) -> None:
        """Do something of what users do, where it is connected."""
        if self.inbox.state != "joined":
            return
        if what == "status":
            status = self._chance.choice(["online", "away"])
            self.status = None
            self._saying = self.inbox.push("activity", {"status": status}), status
        elif what == "read":
            self.marked = max(self.marked, self._highest)
            self.inbox.push("mark_read", {"up_to_seq": self._highest})
        elif what == "list":
            self.inbox.push("list_notifications", {"limit": 5})
        elif what == "burst":
            for _ in range(80):
                self.inbox.push("list_notifications", {"limit": 1})
        elif what == "reload":
            self._drop()
        elif what == "rejoin":
            self.inbox.join()

    # The connection

    def _connect(self) -> None:
        self._incoming = Incoming()
        self._opening = Opening(self)
        self._patience.set(TIMEOUT)
        self._network.connect(self.route, self._opening)

    def opened(self, transport: End) -> None:
        """Send the handshake: the connection is there."""
        self._transport = transport
        token, ttl = self._token(self.user)
        if self.renews:
            self._renewal.set(ttl * 0.7)
        if self._chance.random() < 0.1:  # somebody opens the page and leaves it
            self._patience.set(self._chance.uniform(0.0, 0.1))
        transport.write(request(f"/socket/websocket?token={token}&vsn=2.0.0"))

    def received(self, data: bytes) -> None:
        incoming = self._incoming
        incoming.add(data)
        if not self._is_up:
            status = incoming.answer()
            if status is None:
                return
            if status != 101:
                self._drop()
                return
            self._up()
        for opcode, payload in incoming.frames():
            if opcode == TEXT:
                self._message(_decode(payload))
            elif opcode == PING:
                self._write(PONG, payload)
            elif opcode == CLOSE:
                self._write(CLOSE, payload[:2])
                self._drop()
            if not self._is_up:
                return

    def lost(self) -> None:
        """Note that the connection has gone, or could not be made."""
        self._transport = None
        self._down()

    def _up(self) -> None:
        self._is_up = True
        self._tries = 0
        self._heartbeat = self._saying = None
        self.status = "online"
        self._patience.unset()
        self._beat.set(HEARTBEAT_EVERY)
        self.inbox.join()
        self.online.join()

    def _down(self) -> None:
        self._is_up = False
        if self._opening is not None:
            self._opening.device = None
            self._opening = None
        for timer in (self._patience, self._beat, self._renewal, self._ack):
            timer.unset()
        self.inbox.disconnected()
        self.online.disconnected()
        self._reconnect.unset()
        if self._wanted:
            after = RECONNECT_AFTER[self._tries] if self._tries < len(RECONNECT_AFTER) else RECONNECT_MOST
            self._tries += 1
            self._reconnect.set(after)

    def _drop(self) -> None:
        """Close the connection, and count it as gone at once, as phoenix.js does."""
        transport, self._transport = self._transport, None
        self._down()
        if transport is not None:
            transport.set_slow(False)
            transport.loseConnection()

    def _gives_up(self) -> None:
        self._drop()

    def _beats(self) -> None:
        if self._heartbeat is not None:
            self._drop()
            return
        self._heartbeat = self.next_ref()
        self.send([None, self._heartbeat, "phoenix", "heartbeat", {}])
        self._beat.set(HEARTBEAT_EVERY)

    def _renew(self) -> None:
        if self.inbox.state == "joined":
            token, ttl = self._token(self.user)
            self.inbox.push("access_token", {"access_token": token})
            self._renewal.set(ttl * 0.7)

    def next_ref(self) -> str:
        self._ref += 1
        return str(self._ref)

    def send(self, message: list[Any]) -> None:
        self._write(TEXT, _encode(message))

    def _write(self, opcode: int, payload: bytes) -> None:
        if self._transport is not None:
            self._transport.write(masked(opcode, payload))

    # Messages

    def _message(self, message: list[Any]) -> None:
        join_ref, ref, name, event, payload = message
        if name == "phoenix":
            if ref == self._heartbeat:
                self._heartbeat = None
            return
        topic = self.inbox if name == self.inbox.name else self.online
        if join_ref is not None and join_ref != topic.join_ref:
            return
        if event == "phx_reply":
            if ref == topic.join_ref:
                if topic is self.inbox and payload["status"] == "ok":
                    self._live_after = payload["response"]["last_seq"]
                topic.answered(payload["status"])
            elif self._saying is not None and ref == self._saying[0] and payload["status"] == "ok":
                self.status = self._saying[1]
        elif event in {"phx_error", "phx_close"}:
            topic.crashed()
        elif event == "notification":
            self._notified(payload)
        elif event == "news":
            self._heard(payload.get("number"))
        elif event == "presence_state":
            self.presence.receive_state(payload)
        elif event == "presence_diff":
            self.presence.receive_diff(payload)

    def _join_payload(self) -> dict[str, Any]:
        self._news = None
        if self.forgetful:
            self._join = Join(0)
            self._highest = 0
            return {"device": self.name}
        self._join = Join(self.shown.reader.taken)
        self.shown.reader.joins.append(self._join)
        return {"last_seq": self._join.after, "device": self.name}

    def _online_payload(self) -> dict[str, Any]:
        self.presence.joined()
        return {}

    def _notified(self, payload: dict[str, Any]) -> None:
        seen = Seen.of(payload)
        assert self._join is not None
        if self.forgetful:
            live = seen.seq > self._live_after
            if seen.seq <= self._highest:
                self.shown.faults.append(f"{self.name}: seq {seen.seq} came after {self._highest}")
            elif live and seen.seq != max(self._highest, self._live_after) + 1:
                self.shown.faults.append(f"{self.name}: seq {seen.seq} came next to {self._highest}")
        self._join.take(seen)
        self._highest = self._join.taken
        self.shown.seqs.add(seen.seq)
        if self._chance.random() < 0.3:
            self._ack.set(0.2)

    def _heard(self, number: int | None) -> None:
        if number is not None:
            if self._news not in (None, number - 1):
                self.shown.faults.append(f"{self.name}: news {number} came next to {self._news}")
            self._news = number

    def _acknowledge(self) -> None:
        if self.inbox.state == "joined":
            self.inbox.push("ack", {"seq": self._highest})
