"""A Ping goes the way of all frames: behind what was sent before it, within the same bound."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from flowtx.bursts import Bursts
from flowtx.metrics import Metrics
from flowtx.protocol.close import DRAIN
from flowtx.protocol.message import Frame
from flowtx.transports.framing import CLOSE
from flowtx.transports.guards import GuardedFactory, GuardedProtocol
from flowtx.transports.outbox import Bounds
from tests.transports.test_short import REQUEST

TEXT = b"\x81\x01a"
PING = b"\x89\x0264"


class PingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.transport: Any = StringTransport()
        self.protocol: Any = GuardedProtocol()
        clock = Clock()
        self.bounds = Bounds(100, 10.0, clock, Metrics())
        self.protocol.factory = GuardedFactory(1_000, reactor=clock)
        self.protocol.transport = self.transport

    def test_it_follows_what_was_sent_before(self) -> None:
        self.protocol.open_outbox(self.bounds)
        self.protocol.send(Frame(b"a"))
        self.protocol.ping(b"64")
        self.protocol.send(Frame(b"a"))
        self.assertEqual(self.transport.value(), TEXT + PING + TEXT)

    def test_it_waits_with_what_waits(self) -> None:
        self.protocol.open_outbox(self.bounds)
        self.transport.producer.pauseProducing()
        self.protocol.send(Frame(b"a"))
        self.protocol.ping(b"64")
        self.protocol.send(Frame(b"a"))
        self.assertEqual((self.transport.value(), self.protocol.waiting_bytes), (b"", 10))
        self.transport.producer.resumeProducing()
        self.assertEqual(self.transport.value(), TEXT + PING + TEXT)

    def test_before_the_connection_is_open_and_after_its_end_it_is_nothing(self) -> None:
        self.protocol.ping(b"64")
        self.protocol.open_outbox(self.bounds)
        self.protocol.onClose(True, None, None)
        self.protocol.ping(b"64")
        self.assertEqual(self.transport.value(), b"")


class CloseTests(SynchronousTestCase):
    def test_what_a_burst_has_joined_goes_before_the_close_frame(self) -> None:
        transport: Any = StringTransport()
        clock = Clock()
        factory = GuardedFactory(1_000, reactor=clock)
        factory.bursts = bursts = Bursts(clock)
        connection: Any = factory.buildProtocol(None)
        connection.makeConnection(transport)
        connection.dataReceived(REQUEST)
        connection.open_outbox(Bounds(100, 10.0, clock, Metrics()))
        transport.clear()
        bursts.begin()
        bursts.begin()
        connection.send(Frame(b"a"))
        connection.close(DRAIN)
        clock.advance(0)
        sent = transport.value()
        self.assertEqual(sent[:3], TEXT)
        self.assertEqual(sent[3] & 0x0F, CLOSE)
        self.assertEqual(sent.count(TEXT), 1)
