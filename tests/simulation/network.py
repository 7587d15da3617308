"""A network in memory: what TCP does to a stream of bytes, and all that can go wrong with it.

::

    End.write ─► what waits ─► Pipe: under way (late, held by a black hole, cut at a byte)
                                 └─► unread ─► dataReceived, in pieces

An `End` behaves as Twisted's TCP transport does: a producer is paused when more waits than
``buffer_size`` and told to go on when nothing does, `loseConnection` lets go what waits, a FIN is seen by
who reads, a reset by who reads or writes.
"""

from __future__ import annotations

from collections import deque
from random import Random
from typing import Any, Final

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.simulation.clock import NodeClock
from tests.simulation.trace import Trace

FIN: Final = "fin"
RESET: Final = "reset"


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


@implementer(ITCPTransport, IConsumer)
class End:
    """One end of a connection; see the module.

    Attributes:
        protocol: whose transport it is.
        clock: of who has it.
        connected: whether the protocol has not been told of the end.
    """

    _log = Logger()

    def __init__(self, name: str, connection: Connection, clock: NodeClock, buffer_size: int) -> None:
        self.name = name
        self.clock = clock
        self.connected = True
        self.disconnecting = False
        self.protocol: Any = None
        self.producer: Any = None
        self.streamingProducer = False
        self.producerPaused = False
        self.bufferSize = buffer_size
        self.reading = True
        self.is_slow = False
        self._connection = connection
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._unread: deque[bytes] = deque()
        self._ended: str | None = None
        self._reading_on = False
        self.to: Pipe
        self.by: Pipe

    @property
    def waits(self) -> bool:
        """Whether something waits that is to be sent."""
        return self._waiting_bytes > 0

    # ITransport and IConsumer

    def write(self, data: bytes) -> None:
        if not self.connected or not data:
            return
        if self._ended == RESET:
            self.clock.callLater(0, self._lost, ConnectionLost())
            return
        if self._waiting_bytes:
            self._wait(data)
            return
        room = self.to.room
        if room >= len(data):
            self.to.put(data)
            return
        if room > 0:
            self.to.put(data[:room])
            data = data[room:]
        self._wait(data)

    def _wait(self, data: bytes) -> None:
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        if (
            self.producer is not None
            and self.streamingProducer
            and not self.producerPaused
            and self._waiting_bytes > self.bufferSize
        ):
            self.producerPaused = True
            self.producer.pauseProducing()

    def writeSequence(self, data: Any) -> None:
        self.write(b"".join(data))

    def flush(self) -> None:
        """Send what waits, as far as there is room."""
        if not self.connected:
            return
        while self._waiting and (room := self.to.room) > 0:
            data = self._waiting.popleft()
            if len(data) > room:
                self._waiting.appendleft(data[room:])
                data = data[:room]
            self._waiting_bytes -= len(data)
            self.to.put(data)
        if not self._waiting:
            if self.producer is not None and (not self.streamingProducer or self.producerPaused):
                self.producerPaused = False
                self.producer.resumeProducing()
            elif self.disconnecting:
                self._finish()

    def loseConnection(self) -> None:
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            self.reading = False
            self.clock.callLater(0, self.flush)

    def _finish(self) -> None:
        self.to.put(FIN)
        self._lost(ConnectionDone())

    def abortConnection(self) -> None:
        if self.connected and not (self.disconnecting and self._ended == "aborted"):
            self.disconnecting = True
            self.reading = False
            self._ended = "aborted"
            self._waiting.clear()
            self._waiting_bytes = 0
            self.to.put(RESET)
            self.clock.callLater(0, self._lost, ConnectionAborted())

    def getPeer(self) -> IPv4Address:
        return self._connection.address

    def getHost(self) -> IPv4Address:
        return IPv4Address("TCP", "127.0.0.1", 4000)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        if self.producer is not None:
            raise RuntimeError("there is a producer already")
        self.producer = producer
        self.streamingProducer = streaming
        if not streaming:
            producer.resumeProducing()

    def unregisterProducer(self) -> None:
        self.producer = None
        if self.connected and self.disconnecting:
            self.clock.callLater(0, self.flush)

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        if self.connected and not self.disconnecting:
            self.reading = True
            self._read_soon()

    def stopProducing(self) -> None:
        self.loseConnection()

    def setTcpNoDelay(self, enabled: bool) -> None: ...

    def getTcpNoDelay(self) -> bool:
        return True

    def setTcpKeepAlive(self, enabled: bool) -> None: ...

    def getTcpKeepAlive(self) -> bool:
        return False

    def loseWriteConnection(self) -> None:
        self.loseConnection()

    # From the network

    def arrived(self, what: bytes | str) -> None:
        """Take bytes, or an end."""
        if not self.connected:
            if isinstance(what, bytes) and self._ended is None:
                self._ended = "gone"
                self.to.put(RESET)  # as a kernel answers for a socket that is no more
            return
        if isinstance(what, bytes):
            self._unread.append(what)
        elif what == RESET:
            self._ended = RESET
            self._unread.clear()
            if self._waiting_bytes:
                self._lost(ConnectionLost())
                return
        elif self._ended is None:
            self._ended = what
        self._read()

    def _read_soon(self) -> None:
        if (self._unread or self._ended) and not self._reading_on:
            self._reading_on = True
            self.clock.callLater(0, self._read_on)

    def _read_on(self) -> None:
        self._reading_on = False
        self._read()

    def _read(self) -> None:
        connection = self._connection
        route, chance = connection.route, connection.chance
        while self._unread and self.reading and self.connected and not self.is_slow:
            data = self._unread.popleft()
            if len(data) > 1 and chance.random() < route.shredding:
                size = chance.randint(1, min(len(data) - 1, 64))
                self._unread.appendleft(data[size:])
                data = data[:size]
            connection.trace.data(self.name, data)
            try:
                self.protocol.dataReceived(data)
            except Exception as problem:  # as a reactor does it
                self._log.failure("{name} failed", name=self.name)
                self._lost(problem)
                return
            self.by.taken(len(data))
        if self.connected and self.reading and not self._unread:
            if self._ended == FIN:
                self._lost(ConnectionDone())
            elif self._ended == RESET:
                self._lost(ConnectionLost())

    def set_slow(self, is_slow: bool) -> None:
        """Have the program at this end take nothing from its socket, or go on."""
        self.is_slow = is_slow
        if not is_slow:
            self._read_soon()

    def _lost(self, reason: Exception) -> None:
        if not self.connected:
            return
        self.connected = False
        self.reading = False
        self._waiting.clear()
        self._waiting_bytes = 0
        self._unread.clear()
        producer, self.producer = self.producer, None
        if producer is not None:
            producer.stopProducing()
        protocol, self.protocol = self.protocol, None
        self._connection.trace.note(f"{self.name} lost: {type(reason).__name__}")
        self._connection.ended(self)
        if protocol is not None:
            protocol.connectionLost(Failure(reason))

    def break_off(self) -> None:
        """Have the connection broken at this end, as by a cable that is pulled."""
        self._ended = RESET
        self._lost(ConnectionLost())

    def die(self) -> None:
        """Be gone with the process, which hears nothing of it; what comes is answered with a reset."""
        self.connected = False
        self.protocol = self.producer = None
        self._waiting.clear()
        self._unread.clear()


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
