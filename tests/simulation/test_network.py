"""The network of the simulation does to bytes what TCP does, and what faults do to TCP."""

from __future__ import annotations

from random import Random
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from tests.simulation.clock import NodeClock, Time
from tests.simulation.network import Network, Route
from tests.simulation.trace import Trace


class Peer(Protocol):
    """Either end: notes what comes."""

    transport: Any

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.end: Failure | None = None
        self.failed = False

    def connectionMade(self, transport: Any = None) -> None:
        if transport is not None:  # a client is given its transport so
            self.transport = transport

    def connectionFailed(self) -> None:
        self.failed = True

    def dataReceived(self, data: bytes) -> None:
        self.pieces.append(data)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        self.end = reason

    @property
    def received(self) -> bytes:
        return b"".join(self.pieces)


class Producer:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


class NetworkTests(SynchronousTestCase):
    def setUp(self) -> None:
        chance = Random(1)
        self.time = Time(chance)
        self.clock = NodeClock(self.time)
        self.network = Network(self.clock, chance, Trace(lambda: self.time.now))
        self.route = Route("client")
        self.route.shredding = 0.0
        self.network.routes.append(self.route)
        self.server = Peer()
        self.node = NodeClock(self.time)
        self.network.listen(self._factory(), self.node)
        self.client = Peer()

    def connect(self) -> None:
        self.network.connect(self.route, self.client)
        self.clock.advance(1.0)

    def write(self, data: bytes, seconds: float = 1.0) -> None:
        """Have the server send."""
        transport = self.server.transport
        transport.write(data)
        self.clock.advance(seconds)

    def test_bytes_arrive_in_order_after_a_while(self) -> None:
        self.connect()
        self.route.latency = 0.5
        self.write(b"one", 0.4)
        assert self.client.received == b""
        self.write(b"two", 0.6)
        self.write(b"three")
        assert self.client.received == b"onetwothree"

    def test_bytes_arrive_in_pieces(self) -> None:
        self.connect()
        self.route.shredding = 1.0
        self.write(bytes(1_000))
        assert self.client.received == bytes(1_000)
        assert len(self.client.pieces) > 10

    def test_nobody_listens(self) -> None:
        self.network.close(self.node)
        self.connect()
        assert self.client.failed

    def test_a_black_hole_holds_what_is_sent_into_it(self) -> None:
        self.connect()
        self.route.block("down")
        self.write(b"held", 60.0)
        self.client.transport.write(b"up")
        self.clock.advance(1.0)
        assert (self.client.received, self.server.received) == (b"", b"up")
        self.route.open()
        self.clock.advance(1.0)
        assert self.client.received == b"held"

    def test_a_link_is_cut_at_a_byte(self) -> None:
        self.connect()
        [connection] = self.route.connections
        connection.down.cut_after = 5
        self.write(b"abc")
        self.write(b"defghi", 5.0)
        assert self.client.received == b"abcde"
        assert self.client.end is not None or self.server.end is not None

    def test_a_client_that_reads_nothing_has_the_producer_paused(self) -> None:
        self.route.window, self.route.buffer_size = 100, 50
        self.connect()
        producer = Producer()
        transport = self.server.transport
        transport.registerProducer(producer, True)
        self.client.transport.set_slow(True)
        self.write(bytes(100))
        assert producer.told == []
        self.write(bytes(51))
        assert producer.told == ["pause"]
        self.client.transport.set_slow(False)
        self.clock.advance(1.0)
        assert producer.told == ["pause", "resume"]
        assert len(self.client.received) == 151
        self.client.transport.abortConnection()
        self.clock.advance(1.0)
        assert producer.told[2:] == ["stop"]

    def test_what_waits_goes_out_before_the_end(self) -> None:
        self.route.window = 10
        self.connect()
        transport = self.server.transport
        transport.write(bytes(95))
        transport.loseConnection()
        self.clock.advance(5.0)
        assert len(self.client.received) == 95
        for peer in (self.client, self.server):
            assert peer.end is not None
            assert peer.end.check(ConnectionDone)
        assert not self.route.connections

    def test_who_does_not_read_hears_of_no_end(self) -> None:
        self.connect()
        transport = self.server.transport
        transport.pauseProducing()
        self.client.transport.write(b"last")
        self.client.transport.loseConnection()
        self.clock.advance(5.0)
        assert self.server.end is None
        transport.resumeProducing()
        self.clock.advance(1.0)
        assert self.server.received == b"last"
        assert self.server.end is not None

    def test_a_server_that_is_killed_resets_and_one_whose_host_dies_does_not(self) -> None:
        for silently in (False, True):
            self.client = Peer()
            self.server = Peer()
            self.network.listen(self._factory(), self.node)
            self.connect()
            self.network.crash(self.node, silently=silently)
            self.clock.advance(5.0)
            assert (self.client.end is None) is silently
            assert self.server.end is None

    def _factory(self) -> Factory:
        return Factory.forProtocol(lambda: self.server)
