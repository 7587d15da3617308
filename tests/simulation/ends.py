"""One end of a connection in memory, which behaves as Twisted's TCP transport does.

A producer is paused when more waits than ``buffer_size``, and told to go on when nothing does;
`loseConnection` lets go what waits; a FIN is seen by who reads, a reset by who reads or writes.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IConsumer, ITCPTransport
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.simulation.clock import NodeClock

if TYPE_CHECKING:
    from tests.simulation.network import Connection, Pipe

FIN: Final = "fin"
RESET: Final = "reset"


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
