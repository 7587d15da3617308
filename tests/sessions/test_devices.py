"""The connections of one user: how many, which goes, and closing one."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx.protocol.close import REPLACED
from flowtx.sessions.session import Limits
from tests.sessions.node import Client, Node

TWO = Limits(max_devices=2)


class NewestWinsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node(limits=TWO)

    def closed(self, clients: list[Client]) -> list[bool]:
        return [client.closed is not None for client in clients]

    def test_the_oldest_connection_goes_and_stays_away(self) -> None:
        clients = [self.node.connect() for _ in range(3)]
        self.assertEqual(self.closed(clients), [True, False, False])
        self.assertEqual((clients[0].closed, REPLACED.code), (REPLACED, 1000))

    def test_a_burst_leaves_no_more_than_are_allowed(self) -> None:
        clients = [self.node.connect() for _ in range(6)]
        self.assertEqual(self.closed(clients), [True] * 4 + [False] * 2)

    def test_a_burst_of_handshakes(self) -> None:
        claims = [self.successResultOf(self.node.claim()) for _ in range(4)]
        clients = [self.node.open(claim) for claim in claims]
        self.assertEqual(self.closed(clients), [True, True, False, False])

    def test_those_of_others_do_not_count(self) -> None:
        clients = [self.node.connect(user) for user in ("alice", "bob") for _ in range(2)]
        self.assertEqual(self.closed(clients), [False] * 4)

    def test_the_session_goes_on(self) -> None:
        clients = [self.node.connect() for _ in range(3)]
        clients[0].lose()
        self.assertEqual(self.node.session().sockets, [client.socket for client in clients[1:]])
        self.assertEqual(self.node.session().connections, 3)


class RefuseTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node(limits=TWO, refuse_devices=True)

    def assert_refused(self) -> None:
        refused = self.node.refusal()
        self.assertEqual((refused.reason, refused.status), ("too_many_devices", 403))

    def test_one_too_many_is_refused(self) -> None:
        first, second = self.node.connect(), self.node.connect()
        self.assert_refused()
        self.assertEqual((first.closed, second.closed), (None, None))
        self.node.connect("bob")
        second.lose()
        self.node.connect()
        self.assert_refused()

    def test_handshakes_count(self) -> None:
        claims = [self.successResultOf(self.node.claim()) for _ in range(2)]
        self.assert_refused()
        claims[0].release()
        self.node.connect()
        self.assert_refused()

    def test_a_connection_that_is_being_closed_does_not(self) -> None:
        clients = [self.node.connect() for _ in range(2)]
        self.node.sessions.close_connection("alice", clients[0].socket.id)
        self.node.connect()
        self.assert_refused()


class CloseConnectionTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.node = Node()
        self.clients = [self.node.connect() for _ in range(3)]

    def test_one_of_several(self) -> None:
        first, chosen, last = self.clients
        self.assertTrue(self.node.sessions.close_connection("alice", chosen.socket.id))
        self.assertEqual((first.closed, last.closed), (None, None))
        self.assertEqual(chosen.closed, (1000, "connection_closed"))
        self.assertEqual(self.node.session().sockets, [first.socket, last.socket])
        self.assertFalse(self.node.sessions.close_connection("alice", chosen.socket.id))

    def test_what_there_is_not(self) -> None:
        bob = self.node.connect("bob")
        for user, connection in (("alice", "nonsense"), ("alice", bob.socket.id), ("nobody", bob.socket.id)):
            self.assertFalse(self.node.sessions.close_connection(user, connection))
        self.assertEqual([client.closed for client in (*self.clients, bob)], [None] * 4)

    def test_all_of_them_leave_the_session_waiting(self) -> None:
        for client in self.clients:
            self.node.sessions.close_connection("alice", client.socket.id)
            client.lose()
        self.assertEqual(self.node.session().state.value, "away")

    def test_the_teardown_waits_for_connections_that_are_being_closed(self) -> None:
        for client in self.clients:
            self.node.sessions.close_connection("alice", client.socket.id)
        stopping = Deferred.fromCoroutine(self.node.sessions.stop_session("alice"))
        self.assertNoResult(stopping)
        for client in self.clients:
            client.lose()
        self.successResultOf(stopping)
