"""The channel ``group:<name>`` on the wire."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx.interfaces import Principal
from flowtx.testing.client import Client
from flowtx.testing.server import MemoryServer

SALES = "group:sales"
UNAUTHORIZED = {"reason": "unauthorized"}


class GroupChannelTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer(reconnect_window=0)
        self.addCleanup(self.server.stop)

    def do(self, work: Any) -> Any:
        begun: Deferred[Any] = Deferred.fromCoroutine(work)
        self.server.settle()
        return self.successResultOf(begun)

    def add(self, user_id: str, group: str = "sales") -> None:
        self.do(self.server.groups.add_member(group, user_id))

    def take_away(self, user_id: str, group: str = "sales") -> None:
        """Take a row away as another program does, and look, as its NOTIFY has the server do."""
        self.do(self.server.groups._store.remove(group, user_id))
        self.do(self.server.groups.wake())

    def refused(self, client: Client, topic: str = SALES, response: object = None) -> None:
        client.assert_reply(client.send_join(topic), "error", response or UNAUTHORIZED)

    def renew(self, client: Client, topic: str = SALES, **claims: Any) -> None:
        token = self.server.token(client.user_id, **claims)
        client.assert_reply(client.push(topic, "access_token", {"access_token": token}))

    def hears(self, client: Client) -> bool:
        """Whether a broadcast to the group reaches a client."""
        self.server.pubsub.broadcast(SALES, "new", {})
        return any(frame.event == "new" for frame in client.received())

    def test_a_member_by_the_table_joins_and_hears_the_group(self) -> None:
        self.add("alice")
        client = self.server.connect("alice")
        self.assertEqual(client.join(SALES), {})
        self.server.pubsub.broadcast(SALES, "new", {"n": 1})
        client.assert_push("new", {"n": 1}, topic=SALES)

    def test_a_member_by_their_token_joins_also_without_the_database(self) -> None:
        client = self.server.connect("alice", groups=("hr", "sales"))
        self.server.database.go_down()
        client.join(SALES)
        self.assertTrue(self.hears(client))
        client.leave(SALES)
        self.refused(client, "group:other", {"reason": "unavailable"})

    def test_others_are_refused(self) -> None:
        self.add("bob")
        client = self.server.connect("alice", groups=("hr",))
        for topic in (SALES, "group:", "group:hr ", "group:HR", "group:*", "group:hr\u200b", "group:a b"):
            self.refused(client, topic)
        self.refused(client, f"group:{'x' * 129}")
        self.server.database.go_down()
        self.refused(client, "group:no name")  # for which the database is not even asked
        self.server.database.come_back()
        self.assertFalse(self.hears(client))
        self.add("alice")
        client.join(SALES)

    def test_without_the_database_nobody_is_let_in_by_the_table(self) -> None:
        self.add("alice")
        client = self.server.connect("alice")
        self.server.database.go_down()
        self.refused(client, response={"reason": "unavailable"})
        self.server.database.come_back()
        client.join(SALES)

    def test_what_members_send_is_refused_and_reaches_nobody(self) -> None:
        clients = [self.server.connect(user_id, groups=("sales",)) for user_id in ("alice", "bob")]
        for client in clients:
            client.join(SALES)
        for event in ("new", "broadcast", "presence_diff", "disconnect"):
            ref = clients[0].push(SALES, event, {"text": "hello"})
            clients[0].assert_reply(ref, "error", UNAUTHORIZED)
        self.assertEqual(clients[1].received(), [])
        self.assertTrue(self.hears(clients[0]))

    def test_who_loses_their_row_is_sent_away_on_all_connections(self) -> None:
        self.add("alice")
        self.add("bob")
        clients = [self.server.connect("alice") for _ in range(2)]
        bob = self.server.connect("bob")
        for client in (*clients, bob):
            client.join(SALES)
        self.take_away("alice")
        for client in clients:
            client.assert_push("phx_close", {}, topic=SALES)
            self.refused(client)
            self.assertFalse(self.hears(client))
        self.assertTrue(self.hears(bob))
        self.add("alice")
        clients[0].join(SALES)
        self.assertTrue(self.hears(clients[0]))

    def test_who_is_removed_by_the_service_is_sent_away(self) -> None:
        self.add("alice")
        client = self.server.connect("alice")
        client.join(SALES)
        self.do(self.server.groups.remove_member("sales", "alice"))
        client.assert_push("phx_close", topic=SALES)

    def test_who_is_removed_and_added_again_joins_again(self) -> None:
        self.add("alice")
        client = self.server.connect("alice")
        client.join(SALES)
        changes = [
            Deferred.fromCoroutine(self.server.groups.remove_member("sales", "alice")),
            Deferred.fromCoroutine(self.server.groups.add_member("sales", "alice")),
        ]
        self.assertEqual([self.successResultOf(change) for change in changes], [True, True])
        client.assert_push("phx_close", topic=SALES)
        client.join(SALES)
        self.assertTrue(self.hears(client))

    def test_a_row_is_nothing_to_a_member_by_their_token(self) -> None:
        self.add("alice")
        client = self.server.connect("alice", groups=("sales",))
        client.join(SALES)
        self.take_away("alice")
        self.assertTrue(self.hears(client))

    def test_one_who_loses_their_row_while_joining(self) -> None:
        self.add("alice")
        client = self.server.connect("alice")
        self.server.database.hang()
        ref = client.send_join(SALES)
        removing = Deferred.fromCoroutine(self.server.groups.remove_member("sales", "alice"))
        client.refute_reply(ref)
        self.server.database.come_back()
        self.server.settle()
        self.successResultOf(removing)
        if client.received()[0].payload["status"] == "ok":
            self.assertFalse(self.hears(client))
        self.refused(client)

    def test_a_token_without_the_group_ends_the_membership_by_token(self) -> None:
        client = self.server.connect("alice", groups=("sales", "hr"))
        client.join(SALES)
        client.join("group:hr")
        self.renew(client, groups=("sales", "hr"))
        client.refute_push("phx_close")
        self.renew(client, groups=("hr",))
        client.assert_push("phx_close", {}, topic=SALES)
        client.refute_push("phx_close", topic="group:hr")
        self.refused(client)
        self.assertFalse(self.hears(client))

    def test_a_token_without_the_group_leaves_a_member_by_the_table(self) -> None:
        self.add("alice")
        client = self.server.connect("alice", groups=("sales",))
        client.join(SALES)
        self.renew(client)
        self.assertTrue(self.hears(client))
        self.take_away("alice")
        client.assert_push("phx_close", topic=SALES)

    def test_a_token_with_the_group_makes_the_table_irrelevant(self) -> None:
        self.add("alice")
        client = self.server.connect("alice")
        client.join(SALES)
        self.renew(client, groups=("sales",))
        self.assertEqual(self.server.groups._places, {})
        self.take_away("alice")
        self.assertTrue(self.hears(client))
        self.renew(client)
        client.assert_push("phx_close", topic=SALES)

    def test_who_cannot_be_checked_is_let_in_again_when_the_database_is_back(self) -> None:
        self.add("alice")
        client = self.server.connect("alice", groups=("sales",))
        client.join(SALES)
        # A token needs the database too: it goes down when the new one has been verified.
        socket = client.link.socket
        socket.principal = Principal("alice", expires_at=4e9)
        self.server.database.go_down()
        for call in socket._renewal.observers:
            call()
        client.assert_push("phx_error", topic=SALES)
        self.assertFalse(self.hears(client))
        self.server.database.come_back()
        client.join(SALES)
        self.assertTrue(self.hears(client))

    def test_nothing_is_left_of_those_who_went(self) -> None:
        self.add("alice")
        leaver, dropper, rejoiner = (self.server.connect("alice") for _ in range(3))
        for client in (leaver, dropper, rejoiner, rejoiner):
            client.join(SALES)
        self.assertEqual(len(self.server.groups._places["sales", "alice"]), 3)
        leaver.leave(SALES)
        dropper.lose()
        rejoiner.leave(SALES)
        self.server.settle()
        self.assertEqual(self.server.groups._places, {})
        self.assertEqual(leaver.link.socket._renewal.observers, ())
        self.assertEqual(rejoiner.link.socket._renewal.observers, ())
