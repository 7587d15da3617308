"""A network in memory: what TCP does to a stream of bytes, and all that can go wrong with it.

::

    End.write ─► what waits ─► Pipe: under way (late, held by a black hole, cut at a byte)
                                 └─► unread ─► dataReceived, in pieces
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any

from twisted.internet.address import IPv4Address

from tests.simulation.clock import NodeClock
from tests.simulation.ends import RESET, End
from tests.simulation.trace import Trace


class Route:
    """The way between one client and the servers, which all of the client's connections take.

    Attributes:
        latency: seconds that bytes take.
        jitter: up to so many more.
        blocked: the directions, ``up`` and ``down``, in which nothing arrives: it waits, and arrives
            when the way is open again.
        shredding: how probable it is that bytes arrive in pieces.
        window: bytes that one end may be ahead of the other one.
        buffer_size: of the server's transports; see `End`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.latency = 0.01
        self.jitter = 0.01
        self.blocked: set[str] = set()
        self.shredding = 0.05
        self.window = 65_536
        self.buffer_size = 65_536
        self.connections: dict[Connection, None] = {}

    def block(self, *directions: str) -> None:
        """Let nothing arrive."""
        self.blocked.update(directions)

    def open(self) -> None:
        """Let all arrive that waits, and what follows."""
        self.blocked.clear()
        for connection in tuple(self.connections):
            connection.up.go_on()
            connection.down.go_on()


class Pipe:
    """One direction of one connection.

    Attributes:
        cut_after: after so many more bytes have arrived, the connection breaks; None for never.
    """

    def __init__(self, connection: Connection, direction: str, clock: NodeClock) -> None:
        self._connection = connection
        self._route = connection.route
        self._chance = connection.chance
        self._direction = direction
        self._clock = clock  # of who receives
        self._flight: deque[tuple[float, bytes | str]] = deque()
        self._arriving = False
        self._last = 0.0
        self._ahead = 0
        self._untold = 0
        self.cut_after: int | None = None
        self.sender: End
        self.receiver: End
        self.back: Pipe

    @property
    def room(self) -> int:
        """How many bytes may be sent now."""
        return self._route.window - self._ahead

    @property
    def is_blocked(self) -> bool:
        return self._direction in self._route.blocked

    def put(self, what: bytes | str) -> None:
        """Send bytes, or an end: `FIN` or `RESET`."""
        route = self._route
        if isinstance(what, bytes):
            self._ahead += len(what)
        self._last = max(
            self._last, self._clock.seconds() + route.latency + route.jitter * self._chance.random()
        )
        self._flight.append((self._last, what))
        self._schedule()

    def _schedule(self) -> None:
        if not self._arriving and self._flight and not self.is_blocked:
            self._arriving = True
            self._clock.callLater(max(0.0, self._flight[0][0] - self._clock.seconds()), self._arrive)

    def go_on(self) -> None:
        """Note that the way is open again."""
        self._schedule()
        self._ahead -= self._untold
        self._untold = 0
        if self.sender.waits:
            self.sender.flush()

    def _arrive(self) -> None:
        self._arriving = False
        if self.is_blocked:
            return
        now = self._clock.seconds()
        while self._flight and self._flight[0][0] <= now:
            what = self._flight.popleft()[1]
            if isinstance(what, bytes) and self.cut_after is not None:
                self.cut_after -= len(what)
                if self.cut_after <= 0:
                    self.receiver.arrived(what[: len(what) + self.cut_after])
                    self._connection.break_off()
                    return
            self.receiver.arrived(what)
        self._schedule()

    def taken(self, size: int) -> None:
        """Note that the receiver has read bytes: there is room for as many, which the sender is told."""
        if self.back.is_blocked:
            self._untold += size
            return
        self._ahead -= size
        if self.sender.waits:
            self.sender.clock.callLater(self._route.latency, self.sender.flush)

    def drop(self) -> None:
        """Lose what is under way."""
        self._flight.clear()


class Connection:
    """One connection between a client and a server."""

    def __init__(
        self,
        number: int,
        route: Route,
        chance: Random,
        trace: Trace,
        *,
        client_clock: NodeClock,
        server_clock: NodeClock,
    ) -> None:
        self.route = route
        self.chance = chance
        self.trace = trace
        self.address = IPv4Address("TCP", "127.0.0.1", 10_000 + number)
        self.client = End(f"{route.name}#{number}<", self, client_clock, 65_536)
        self.server = End(f"{route.name}#{number}>", self, server_clock, route.buffer_size)
        self.up = Pipe(self, "up", server_clock)
        self.down = Pipe(self, "down", client_clock)
        self.up.back, self.down.back = self.down, self.up
        self.server.reading = False  # until it has been accepted
        self.up.sender = self.down.receiver = self.client
        self.down.sender = self.up.receiver = self.server
        self.client.to = self.server.by = self.up
        self.server.to = self.client.by = self.down
        route.connections[self] = None

    def ended(self, _: End) -> None:
        """Note that one end has gone."""
        if not self.client.connected and not self.server.connected:
            self.route.connections.pop(self, None)

    def break_off(self) -> None:
        """Break, so that the two ends notice, each in its own time or one of them not at all."""
        self.up.drop()
        self.down.drop()
        ends = [self.client, self.server]
        self.chance.shuffle(ends)
        ends[0].clock.callLater(0, ends[0].break_off)
        if self.chance.random() < 0.7:
            ends[1].clock.callLater(self.chance.random(), ends[1].break_off)


class Network:
    """Connects clients with whoever listens.

    Attributes:
        routes: the ways of all clients.
    """

    def __init__(self, outside: NodeClock, chance: Random, trace: Trace) -> None:
        self._outside = outside
        self._chance = chance
        self._trace = trace
        self._number = 0
        self.routes: list[Route] = []
        self._listening: tuple[Any, NodeClock] | None = None

    def listen(self, factory: Any, clock: NodeClock) -> None:
        """Let clients connect to a server."""
        self._listening = factory, clock

    def close(self, clock: NodeClock) -> None:
        """Let nobody connect to a server any more; another one may have taken its place."""
        if self._listening is not None and self._listening[1] is clock:
            self._listening = None

    def connect(self, route: Route, protocol: Any) -> None:
        """Connect a client: its ``connectionMade`` is called, or its ``connectionFailed``."""
        self._outside.callLater(route.latency, self._arrive, route, protocol)

    def _arrive(self, route: Route, protocol: Any) -> None:
        if route.blocked:
            return  # the client gives up at some time
        if self._listening is None:
            self._outside.callLater(route.latency, protocol.connectionFailed)
            return
        factory, clock = self._listening
        self._number += 1
        connection = Connection(
            self._number,
            route,
            self._chance,
            self._trace,
            client_clock=self._outside,
            server_clock=clock,
        )
        connection.client.protocol = protocol
        # The kernel takes it, whatever the server does just now.
        clock.callLater(0, self._accept, factory, connection)
        self._outside.callLater(route.latency, self._connected, connection, protocol)

    def _accept(self, factory: Any, connection: Connection) -> None:
        server = connection.server
        if server.connected:
            server.reading = True
            protocol = server.protocol = factory.buildProtocol(connection.address)
            protocol.makeConnection(server)
            server._read_soon()

    def crash(self, clock: NodeClock, *, silently: bool) -> None:
        """End the connections of a server that has died, with its host where that is silent."""
        self.close(clock)
        for route in self.routes:
            for connection in tuple(route.connections):
                if connection.server.clock is clock:
                    connection.server.die()
                    connection.ended(connection.server)
                    if not silently and connection.client.connected:
                        connection.down.put(RESET)

    @staticmethod
    def _connected(connection: Connection, protocol: Any) -> None:
        if connection.client.connected:
            protocol.connectionMade(connection.client)
