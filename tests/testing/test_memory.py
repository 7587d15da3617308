"""The client in memory that applications test with."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.channels.channel import Channel, InResult, JoinResult, ok
from flowtx.channels.router import Router
from flowtx.interfaces import ITransport
from flowtx.protocol.close import DRAIN, HEARTBEAT_TIMEOUT, SESSION_STOPPED
from flowtx.protocol.message import Frame
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.testing.memory import MemoryTransport, connect


class EchoChannel(Channel):
    ending: Deferred[None] | None = None

    def join(self, payload: Any) -> JoinResult:
        return ok({"you": self.socket.principal.user_id})

    def handle_in(self, event: str, payload: Any) -> InResult:
        self.broadcast(event, payload)
        return None

    def terminate(self, reason: str) -> Deferred[None] | None:
        return self.ending


JOIN = '["1","1","room:1","phx_join",{}]'
JOINED = Frame(b'["1","1","room:1","phx_reply",{"response":{"you":"42"},"status":"ok"}]')


class MemoryTransportTests(SynchronousTestCase):
    def test_provides_the_interface(self) -> None:
        self.assertTrue(verifyObject(ITransport, MemoryTransport()))

    def test_what_was_sent_is_taken_once(self) -> None:
        transport = MemoryTransport()
        transport.send(Frame(b"1"))
        transport.send(Frame(b"2", binary=True))
        self.assertEqual(transport.sent, [Frame(b"1"), Frame(b"2", binary=True)])
        self.assertEqual(transport.take(), [Frame(b"1"), Frame(b"2", binary=True)])
        self.assertEqual((transport.take(), transport.sent), ([], []))

    def test_nothing_is_sent_once_closed(self) -> None:
        transport = MemoryTransport()
        transport.close(DRAIN)
        transport.close(SESSION_STOPPED)
        transport.send(Frame(b"1"))
        self.assertEqual((transport.closed, transport.take()), (DRAIN, []))

    def test_pausing(self) -> None:
        transport = MemoryTransport()
        self.assertTrue(transport.reading)
        transport.pause_reading()
        self.assertFalse(transport.reading)
        transport.resume_reading()
        self.assertTrue(transport.reading)

    def test_pings_are_answered_at_once_unless_it_is_told_otherwise(self) -> None:
        client = connect(Router(), "42", Clock())
        answers: list[bytes] = []
        client.socket.on_pong = answers.append
        client.socket.ping(b"1")
        self.assertEqual((answers, client.pings), ([b"1"], []))
        client.answers_pings = False
        client.socket.ping(b"2")
        client.socket.ping(b"3")
        self.assertEqual((answers, client.pings), ([b"1"], [b"2", b"3"]))
        client.pong()
        client.pong()
        self.assertEqual((answers, client.pings), ([b"1", b"2", b"3"], []))

    def test_no_ping_and_no_pong_once_closed(self) -> None:
        client = connect(Router(), "42", Clock())
        answers: list[bytes] = []
        client.socket.on_pong = answers.append
        client.answers_pings = False
        client.socket.ping(b"1")
        client.socket.close(DRAIN)
        client.socket.ping(b"2")
        client.ping(b"3")
        self.assertEqual(client.pings, [b"1"])
        client.pong()
        self.assertEqual(answers, [])

    def test_a_pong_is_a_sign_of_life(self) -> None:
        clock = Clock()
        client = connect(Router(), "42", clock, heartbeat_timeout=10)
        client.answers_pings = False
        client.socket.ping(b"1")
        clock.advance(6)
        client.pong()
        clock.advance(6)
        self.assertIsNone(client.closed)
        clock.advance(4)
        self.assertEqual(client.closed, HEARTBEAT_TIMEOUT)

    def test_who_it_is(self) -> None:
        transport = MemoryTransport("192.0.2.1", "browser")
        self.assertEqual((transport.address, transport.user_agent), ("192.0.2.1", "browser"))


class ConnectTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.router = Router().channel("room:*", EchoChannel)

    def test_a_client_joins(self) -> None:
        client = connect(self.router, "42", self.clock)
        client.text(JOIN)
        self.assertEqual(client.take(), [JOINED])
        self.assertIs(client.socket.transport, client)
        self.assertGreater(client.socket.principal.expires_at, self.clock.seconds())

    def test_binary(self) -> None:
        client = connect(self.router, "42", self.clock)
        client.text(JOIN)
        client.binary(b"\x00\x01\x01\x06\x0412room:1blob\xff")
        self.assertEqual(client.take(), [JOINED, Frame(b"\x02\x06\x04room:1blob\xff", binary=True)])

    def test_version_1(self) -> None:
        client = connect(self.router, "42", self.clock, vsn="1.0.0")
        client.text('{"topic":"phoenix","event":"heartbeat","payload":{},"ref":"1"}')
        [frame] = client.take()
        self.assertTrue(frame.payload.startswith(b'{"event":"phx_reply"'))

    def test_another_version(self) -> None:
        error = self.assertRaises(ValueError, connect, self.router, "42", self.clock, vsn="3.0.0")
        self.assertIn("'3.0.0'", str(error))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_clients_hear_each_other_where_they_share_a_pubsub(self) -> None:
        pubsub = MemoryPubSub()
        clients = [connect(self.router, "42", self.clock, pubsub=pubsub) for _ in range(2)]
        clients.append(connect(self.router, "42", self.clock))
        for client in clients:
            client.text(JOIN)
        clients[0].text('["1",null,"room:1","new",{}]')
        expected = Frame(b'["1",null,"room:1","new",{}]')
        self.assertEqual([client.take()[1:] for client in clients], [[expected], [expected], []])

    def test_bounds(self) -> None:
        client = connect(self.router, "42", self.clock, max_topics=0, heartbeat_timeout=5)
        client.text(JOIN)
        self.assertIn(b"too many channels joined", client.take()[0].payload)
        self.clock.advance(5)
        self.assertEqual(client.closed, HEARTBEAT_TIMEOUT)

    def test_losing_the_connection_waits_for_the_channels(self) -> None:
        channel = EchoChannel()
        channel.ending = Deferred()
        client = connect(Router().channel("room:*", lambda: channel), "42", self.clock)
        client.text(JOIN)
        lost = client.lose()
        self.assertNoResult(lost)
        channel.ending.callback(None)
        self.successResultOf(lost)
        self.assertEqual(self.clock.getDelayedCalls(), [])
