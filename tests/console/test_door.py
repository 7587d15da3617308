from __future__ import annotations

from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from flowtx.console.door import FIRST_BYTES_TIMEOUT, Door


class Room(Protocol):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.ends: list[Failure] = []

    def dataReceived(self, data: bytes) -> None:
        self.heard.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ends.append(reason)


class Rooms(Factory):
    noisy = False

    def __init__(self) -> None:
        self.rooms: list[Room] = []

    def buildProtocol(self, addr: object) -> Room:
        self.rooms.append(Room())
        return self.rooms[-1]


class Closed(Factory):
    noisy = False

    def buildProtocol(self, addr: object) -> None:
        return None


class DoorTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.site, self.console = Rooms(), Rooms()
        self.door = Door(self.site, self.console, clock=self.clock)

    def knock(self, door: Door | None = None) -> tuple[Protocol, StringTransport]:
        protocol = (door or self.door).buildProtocol(None)
        transport = StringTransport()
        protocol.makeConnection(transport)
        return protocol, transport

    def test_the_first_bytes_tell_and_are_passed_on_as_they_came(self) -> None:
        for data, for_console in (
            (b"GET /console/websocket HTTP/1.1\r\n", True),
            (b"GET /console/websocket?vsn=2.0.0 HTTP/1.1\r\n\r\n\x81\x00", True),
            (b"GET / HTTP/1.1\r\n", False),
            (b"GET /console HTTP/1.1\r\n", False),
            (b"POST /console/websocket HTTP/1.1\r\n", False),
            (b"\r\nGET /console/websocket HTTP/1.1\r\n", False),
            (b"\x16\x03\x01", False),
        ):
            for size in (1, 7, len(data)):
                protocol, _ = self.knock()
                for first in range(0, len(data), size):
                    protocol.dataReceived(data[first : first + size])
                chosen, other = (self.console, self.site) if for_console else (self.site, self.console)
                self.assertEqual(b"".join(chosen.rooms.pop().heard), data)
                self.assertEqual((chosen.rooms, other.rooms), ([], []))

    def test_who_says_nothing_or_half_of_it_is_sent_away(self) -> None:
        for data in (b"", b"GET /console/web"):
            protocol, transport = self.knock()
            protocol.dataReceived(data)
            self.clock.advance(FIRST_BYTES_TIMEOUT - 0.1)
            self.assertFalse(transport.disconnected)
            self.clock.advance(0.2)
            self.assertTrue(transport.disconnected)
            protocol.connectionLost(Failure(connectionDone.value))
        self.assertEqual(self.site.rooms + self.console.rooms, [])

    def test_who_has_been_let_in_has_all_the_time_of_those_within(self) -> None:
        protocol, transport = self.knock()
        protocol.dataReceived(b"GET / ")
        self.clock.advance(2 * FIRST_BYTES_TIMEOUT)
        self.assertFalse(transport.disconnected)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        reason = Failure(connectionDone.value)
        protocol.connectionLost(reason)
        self.assertEqual(self.site.rooms[0].ends, [reason])

    def test_who_leaves_before_leaves_nothing(self) -> None:
        protocol, _ = self.knock()
        protocol.dataReceived(b"GET /con")
        protocol.connectionLost(Failure(connectionDone.value))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_a_room_that_takes_nobody(self) -> None:
        protocol, transport = self.knock(Door(Closed(), self.console, clock=self.clock))
        protocol.dataReceived(b"GET / HTTP/1.1\r\n")
        self.assertTrue(transport.disconnected)

    def test_both_are_started_and_stopped_with_it(self) -> None:
        started: list[IProtocolFactory] = []

        class Told(Rooms):
            def startFactory(self) -> None:
                started.append(self)

            def stopFactory(self) -> None:
                started.remove(self)

        site, console = Told(), Told()
        door = Door(site, console, clock=self.clock)
        door.doStart()
        self.assertEqual(started, [site, console])
        door.doStop()
        self.assertEqual(started, [])
