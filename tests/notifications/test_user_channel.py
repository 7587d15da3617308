"""The channel ``user:<id>``, through a Socket in memory: joining, and what is read."""

from __future__ import annotations

from flowtx.errors import Unavailable
from flowtx.testing.memory import MemoryTransport
from tests.notifications.channel import ChannelTestCase


class UserChannelTests(ChannelTestCase):
    def test_the_reply_to_a_join(self) -> None:
        client = self.connect()
        session = self.sessions.get_session("alice")
        assert session is not None
        response, seen = self.join(client, {})
        self.assertEqual(
            response,
            {
                "session_id": session.session_id,
                "user": {"id": "alice", "name": "Alice Adams", "email": "alice@example.com"},
                "resumed": False,
                "unread": 0,
                "last_seq": 0,
                "reconnect_jitter_max_ms": 1000,
            },
        )
        self.assertEqual(seen, [])

    def test_a_notification_has_the_documented_form(self) -> None:
        client = self.connect()
        self.join(client)
        notification_id = self.push(title="Acme")
        self.wake()
        [[event, entry]] = self.frames(client)
        inserted_at = entry.pop("inserted_at")
        self.assertEqual(
            (event, entry),
            (
                "notification",
                {
                    "id": notification_id,
                    "seq": 1,
                    "type": "deal.won",
                    "payload": {"title": "Acme"},
                    "read_at": None,
                },
            ),
        )
        self.assertRegex(inserted_at, r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$")

    def test_unread_ones_come_with_the_join(self) -> None:
        ids = [self.push() for _ in range(3)]
        first = self.connect()
        self.assertEqual(self.join(first)[1], [1, 2, 3])
        self.assertEqual(self.ask(first, "mark_read", {"ids": [ids[1]]})[0][1]["response"], {"unread": 2})
        response, seen = self.join(self.connect(), {"device": "phone"})
        self.assertEqual((response["unread"], response["last_seq"], seen), (2, 3, [1, 3]))

    def test_last_seq_gets_what_follows_read_or_not(self) -> None:
        for _ in range(3):
            self.push()
        self.ask_ok(self.connect(), {"all": True})
        self.assertEqual(self.join(self.connect(), {"last_seq": 1})[1], [2, 3])
        self.assertEqual(self.join(self.connect(), {"last_seq": 99})[1], [])

    def ask_ok(self, client: MemoryTransport, marks: object) -> None:
        self.join(client)
        self.assertEqual(self.ask(client, "mark_read", marks)[0][1]["status"], "ok")

    def test_more_than_a_thousand_are_cut_to_the_newest(self) -> None:
        for _ in range(1_003):
            self.push()
        response, seen = self.join(self.connect(), {"last_seq": 1})
        self.assertTrue(response["truncated"])
        self.assertEqual(seen, list(range(4, 1_004)))
        self.assertNotIn("truncated", self.join(self.connect(), {"last_seq": 3})[0])

    def test_the_reply_comes_before_the_backlog(self) -> None:
        self.push()
        frames = self.ask(self.connect(), "phx_join", {})
        self.assertEqual([event for event, _ in frames], ["phx_reply", "notification"])

    def test_reading_is_told_to_the_users_other_connections(self) -> None:
        ids = [self.push() for _ in range(4)]
        reader, other, bob = self.connect(), self.connect(), self.connect("bob")
        self.join(reader)
        self.join(other)
        self.join(bob, user_id="bob")
        for marks, told in (
            ({"ids": [ids[0]]}, {"ids": [ids[0]], "unread": 3}),
            ({"up_to_seq": 2}, {"up_to_seq": 2, "unread": 2}),
            ({"all": True}, {"all": True, "unread": 0}),
        ):
            [[_, reply]] = self.ask(reader, "mark_read", marks)
            self.assertEqual(reply, {"status": "ok", "response": {"unread": told["unread"]}})
            self.assertEqual(self.frames(other), [["notifications_read", told]])
        self.assertEqual(self.frames(bob), [])

    def test_the_topic_of_another_user_is_refused(self) -> None:
        client = self.connect()
        for topic in (
            "user:bob",
            "user:",
            "user:*",
            "user:ALICE",
            "user:alice ",
            "user:alice\u200b",
            "user:" + "a" * 900,
        ):
            self.assertEqual(
                self.ask(client, "phx_join", {}, topic),
                [["phx_reply", {"status": "error", "response": {"reason": "unauthorized"}}]],
            )

    def test_bad_payloads_are_named_and_the_connection_lives_on(self) -> None:
        client = self.connect()
        joins: list[tuple[object, str]] = [
            ({"last_seq": -1}, "last_seq: "),
            ({"last_seq": "1"}, "last_seq: "),
            ({"last_seq": 1.5}, "last_seq: "),
            ({"last_seq": True}, "last_seq: "),
            ({"last_seq": 2**63}, "last_seq: "),
            ({"device": 7}, "device: "),
            ({"device": "x" * 129}, "device: "),
            ([], "array"),
            ("x", "str"),
        ]
        for payload, named in joins:
            self.refused(self.ask(client, "phx_join", payload), named)
        self.join(client)
        marks: list[tuple[object, str]] = [
            ({}, "exactly one"),
            ({"ids": [], "all": True}, "exactly one"),
            ({"ids": ["x"]}, "ids[0]: "),
            ({"ids": [1]}, "ids[0]: "),
            ({"ids": ["00000000-0000-4000-8000-000000000000\n"]}, "ids[0]: "),
            ({"ids": ["00000000-0000-4000-8000-000000000000"] * 1_001}, "ids: "),
            ({"up_to_seq": -1}, "up_to_seq: "),
            ({"up_to_seq": 2**63}, "up_to_seq: "),
            ({"all": False}, "all: "),
            (None, "null"),
            ([1], "array"),
        ]
        for payload, named in marks:
            self.refused(self.ask(client, "mark_read", payload), named)
        self.assertEqual(self.ask(client, "mark_read", {"all": True})[0][1]["status"], "ok")

    def test_an_unknown_event_ends_the_channel_only(self) -> None:
        client = self.connect()
        self.join(client)
        self.assertEqual(self.ask(client, "nonsense", {}), [["phx_error", {"reason": "channel_crash"}]])
        self.join(client)
        self.assertIsNone(client.closed)

    def test_a_database_that_is_down(self) -> None:
        client = self.connect()
        self.store.slow = True
        self.assertEqual(self.ask(client, "phx_join", {}), [])
        self.store.waiting.pop().errback(Unavailable("down"))
        self.assertEqual(
            self.frames(client),
            [["phx_reply", {"status": "error", "response": {"reason": "unavailable"}}]],
        )
        self.assertEqual((self.notifications.delivery.readers("alice"), client.socket.on_pong), ((), None))
        self.store.slow = False
        self.push()
        self.wake()
        self.assertEqual(self.join(client)[1], [1])

    def test_nothing_comes_after_a_leave(self) -> None:
        client = self.connect()
        self.join(client)
        self.ask(client, "phx_leave", {})
        self.push()
        self.wake()
        self.assertEqual(self.frames(client), [])

    def test_a_connection_that_is_lost_during_its_join_leaves_nothing(self) -> None:
        client = self.connect()
        self.store.slow = True
        self.ask(client, "phx_join", {})
        lost = client.lose()
        self.store.waiting.pop().callback(None)
        self.successResultOf(lost)
        self.assertEqual((self.notifications.delivery.readers("alice"), client.socket.on_pong), ((), None))

    def test_another_join_takes_the_place_of_the_first(self) -> None:
        client = self.connect()
        self.join(client)
        self.push()
        client.text('["2","2","user:alice","phx_join",{"last_seq":0}]')
        self.assertEqual(
            [event for event, _ in self.frames(client)], ["phx_reply", "notification", "phx_close"]
        )
        self.push()
        self.wake()
        self.assertEqual([entry["seq"] for _, entry in self.frames(client)], [2])
        self.assertEqual(len(tuple(self.notifications.delivery.readers("alice"))), 1)

    def test_another_join_waits_for_the_first_and_leaves_one_reader(self) -> None:
        self.push()
        client = self.connect()
        self.store.slow = True
        self.ask(client, "phx_join", {})
        client.text('["2","2","user:alice","phx_join",{}]')
        self.store.waiting.pop().callback(None)
        self.assertEqual(self.frames(client), [])
        self.store.waiting.pop().callback(None)
        self.assertEqual(
            [event for event, _ in self.frames(client)], ["phx_reply", "notification", "phx_close"]
        )
        self.assertEqual(len(tuple(self.notifications.delivery.readers("alice"))), 1)
        self.assertEqual(client.pings, [])
