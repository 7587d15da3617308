"""What a connection sends goes into its socket at once, in order, and none of it twice."""

from __future__ import annotations

import socket
from typing import Any

import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import SynchronousTestCase

from flowtx.bursts import Bursts
from flowtx.transports.writer import MAX_JOINED, TransportWriter


class JoiningTests(SynchronousTestCase):
    """On a transport that is no socket, so that each write can be seen."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.bursts = Bursts(self.clock)
        self.written: list[bytes] = []
        transport = StringTransport()
        transport.write = self.written.append  # type: ignore[method-assign]
        self.writer = TransportWriter(transport, self.bursts)

    def test_what_is_written_alone_goes_alone(self) -> None:
        self.writer.write(b"a")
        self.writer.write(b"b")
        self.assertEqual(self.written, [b"a", b"b"])

    def test_what_a_burst_writes_goes_together_when_the_turn_is_over(self) -> None:
        self.bursts.begin()
        self.writer.write(b"1")
        self.bursts.end()
        self.bursts.begin()
        self.writer.write(b"2")
        self.bursts.end()
        # Behind it, though it is no broadcast.
        self.writer.write(b"3")
        self.assertEqual(self.written, [b"1"])
        self.clock.advance(0)
        self.assertEqual(self.written, [b"1", b"23"])
        self.writer.write(b"4")
        self.assertEqual(self.written, [b"1", b"23", b"4"])

    def test_what_is_joined_is_bounded(self) -> None:
        self.writer.cork()
        part = bytes(1_000)
        for _ in range(MAX_JOINED // 1_000 + 1):
            self.writer.write(part)
        self.assertEqual([len(data) for data in self.written], [(MAX_JOINED // 1_000 + 1) * 1_000])
        self.writer.write(b"a")
        self.writer.uncork()
        self.assertEqual(self.written[1:], [b"a"])

    def test_to_uncork_nothing_writes_nothing(self) -> None:
        self.writer.uncork()
        self.writer.cork()
        self.writer.uncork()
        self.assertEqual(self.written, [])

    @given(st.lists(st.sampled_from(["write", "large", "burst", "over", "turn", "cork", "uncork"])))
    def test_all_of_it_in_order_and_once(self, steps: list[str]) -> None:
        self.setUp()
        expected = b""
        for number, step in enumerate(steps):
            match step:
                case "write" | "large":
                    data = b"%d," % number + bytes(MAX_JOINED * (step == "large"))
                    expected += data
                    self.writer.write(data)
                case "burst":
                    self.bursts.begin()
                case "over":
                    self.bursts.end()
                case "turn":
                    self.clock.advance(0)
                case "cork":
                    self.writer.cork()
                case "uncork":
                    self.writer.uncork()
        self.clock.advance(0)
        self.writer.uncork()
        self.assertEqual(b"".join(self.written), expected)


async def connected(client: socket.socket) -> Any:
    """Connect a socket to a transport of Twisted's; the transport."""
    arrived: Deferred[Any] = Deferred()

    class Arriving(Protocol):
        def connectionMade(self) -> None:
            port.stopListening()
            arrived.callback(self.transport)

    factory = Factory.forProtocol(Arriving)
    port = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1").listen(factory)
    await deferToThread(client.connect, ("127.0.0.1", port.getHost().port))
    return await arrived


@pytest_twisted.ensureDeferred
async def test_it_is_sent_before_the_call_returns() -> None:
    with socket.socket() as client:
        transport = await connected(client)
        TransportWriter(transport).write(b"now")
        # The reactor has had no turn since.
        assert client.recv(10) == b"now"
        transport.abortConnection()


@pytest_twisted.ensureDeferred
async def test_what_the_socket_does_not_take_follows_in_order() -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        transport = await connected(client)
        transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
        writer = TransportWriter(transport)
        parts = [b"%06d," % number * 100 for number in range(1_000)]
        for part in parts:
            writer.write(part)
        assert transport.dataBuffer or transport._tempDataBuffer, "the socket took all of it"
        expected = b"".join(parts)

        def read() -> bytes:
            client.settimeout(60)
            got = b""
            while len(got) < len(expected) and (data := client.recv(65_536)):
                got += data
            return got

        assert await deferToThread(read) == expected
        # And now at once again.
        writer.write(b"end")
        assert client.recv(10) == b"end"
        transport.abortConnection()


@pytest_twisted.ensureDeferred
async def test_a_connection_that_has_gone() -> None:
    with socket.socket() as client:
        transport = await connected(client)
        lost: Deferred[None] = Deferred()
        transport.protocol.connectionLost = lambda reason: lost.callback(None)
        writer = TransportWriter(transport)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        client.close()
        # Twisted finds out, whoever writes meanwhile.
        writer.write(b"a")
        writer.write(b"b")
        await lost
        writer.write(b"c")
