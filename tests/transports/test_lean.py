"""What a connection keeps once it is open, and that the rest is there when it is needed."""

from __future__ import annotations

from typing import Any

from autobahn.twisted.websocket import WebSocketServerProtocol
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from flowtx.transports.guards import GuardedFactory, GuardedProtocol
from flowtx.transports.lean import AT_REST, SPENT, slim
from tests.transports.test_short import REQUEST


class Slim(GuardedProtocol):
    def succeedHandshake(self, res: Any) -> None:
        super().succeedHandshake(res)
        slim(self)


def opened(protocol: type[GuardedProtocol]) -> Any:
    factory = GuardedFactory(1_000, reactor=Clock())
    factory.protocol = protocol
    connection: Any = factory.buildProtocol(None)
    connection.makeConnection(StringTransport())
    connection.dataReceived(REQUEST)
    return connection


class LeanTests(SynchronousTestCase):
    def test_an_open_connection_keeps_what_it_has_of_its_own(self) -> None:
        self.assertEqual(set(vars(opened(Slim))) - {"_call"}, {"connected", "factory", "state", "transport"})

    def test_autobahn_has_no_others(self) -> None:
        """Whoever sees this fail has a new Autobahn: look at what it keeps, and what that is at rest."""
        known = (
            SPENT
            | AT_REST.keys()
            | {"_call", "connected", "factory", "state", "transport", "send_queue", "is_closed"}
        )
        self.assertEqual(set(vars(opened(GuardedProtocol))) - known, set())

    def test_at_rest_it_is_as_autobahn_makes_it(self) -> None:
        kept = vars(opened(GuardedProtocol))
        self.assertEqual({name: kept[name] for name in AT_REST if name in kept}, AT_REST)

    def test_the_options_are_those_of_the_factory(self) -> None:
        connection = opened(Slim)
        for name in WebSocketServerProtocol.CONFIG_ATTRS:
            self.assertEqual(getattr(connection, name), getattr(connection.factory, name), name)
        self.assertEqual(connection.maxMessagePayloadSize, 1_000)
        self.assertTrue(connection.tcpNoDelay)

    def test_what_the_class_sets_has_the_say(self) -> None:
        class Own(GuardedProtocol):
            failByDrop = True  # noqa: N815

        self.assertTrue(opened(Own).failByDrop)

    def test_factories_do_not_share_their_options(self) -> None:
        def connection(size: int) -> Any:
            return GuardedFactory(size, reactor=Clock()).buildProtocol(None)

        self.assertEqual([connection(size).maxMessagePayloadSize for size in (1, 2)], [1, 2])

    def test_it_is_made_when_it_is_needed(self) -> None:
        one, other = opened(Slim), opened(Slim)
        self.assertIsInstance(one.is_closed, Deferred)
        self.assertIs(one.is_closed, one.is_closed)
        self.assertIsNot(one.utf8validator, other.utf8validator)
