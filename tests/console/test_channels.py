from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from flowtx.protocol.close import CONNECTION_CLOSED, DISCONNECT, SESSION_STOPPED
from flowtx.testing import Client
from tests.console.desk import EVERYTHING, Desk, events

WATCHED = ("console:overview", "console:sessions", "console:user:alice")


class ConsoleTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.desk = Desk()
        self.ops = self.desk.operator(*EVERYTHING)

    def parts(self, client: Client | None = None) -> dict[str, Any]:
        """What the parts of a portrait came to, by those that have come."""
        merged: dict[str, Any] = {}
        for parts in events(client or self.ops, "user"):
            merged.update(parts)
        return merged

    def ask(self, event: str, **payload: Any) -> Any:
        ref = self.ops.push("console:commands", event, payload)
        return self.ops.assert_reply(ref)


class ScopeTests(ConsoleTestCase):
    def test_only_a_key_for_it_may_look(self) -> None:
        for scopes in (("notify",), ()):
            client = self.desk.operator(*scopes)
            for topic in WATCHED:
                ref = client.send_join(topic)
                self.assertEqual(client.assert_reply(ref, "error"), {"reason": "unauthorized"})
            self.assertEqual(client.join("console:commands")["scopes"], list(scopes))

    def test_a_command_takes_its_scope(self) -> None:
        user = self.desk.user("alice")
        for scope, allowed in (("read", ()), ("notify", ("push_notification",))):
            client = self.desk.operator(scope)
            client.join("console:commands")
            for event, payload in (
                ("push_notification", {"user_id": "alice", "type": "t", "payload": 1}),
                ("disconnect", {"user_id": "alice"}),
                ("stop_session", {"user_id": "alice"}),
                ("close_connection", {"user_id": "alice", "connection_id": "x"}),
            ):
                ref = client.push("console:commands", event, payload)
                if event in allowed:
                    client.assert_reply(ref)
                else:
                    self.assertEqual(client.assert_reply(ref, "error")["reason"], "unauthorized")
        self.assertIsNone(user.closed)

    def test_the_join_tells_what_there_is(self) -> None:
        about = self.ops.join("console:commands")
        self.assertEqual(about, {"key": "ops", "scopes": ["admin", "notify", "read"], "node": "memory"})


class OverviewTests(ConsoleTestCase):
    def test_once_a_second_as_long_as_somebody_watches(self) -> None:
        self.ops.join("console:overview")
        [first] = events(self.ops, "figures")
        self.assertEqual((first["sessions"], first["online"], first["ready"]), (1, 0, True))
        user = self.desk.user("alice")
        self.desk.ready = False
        for _ in range(3):
            self.desk.advance(1)
        figures = events(self.ops, "figures")
        self.assertEqual(len(figures), 3)
        self.assertEqual(
            (figures[-1]["sessions"], figures[-1]["online"], figures[-1]["ready"]), (2, 1, False)
        )
        self.assertEqual(figures[-1]["at"] - figures[0]["at"], 2)
        user.lose()
        self.ops.leave("console:overview")
        self.desk.advance(3)
        self.assertEqual(events(self.ops, "figures"), [])

    def test_a_client_that_does_not_take_it_is_sent_no_more(self) -> None:
        self.ops.join("console:overview")
        events(self.ops, "figures")
        self.ops.link.stop_reading()
        for _ in range(5):
            self.desk.advance(1)
        self.ops.link.go_on_reading()
        self.assertEqual(len(events(self.ops, "figures")), 1)
        self.desk.advance(1)
        self.assertEqual(len(events(self.ops, "figures")), 1)


class SessionsTests(ConsoleTestCase):
    def test_a_page_and_then_what_changes_in_it(self) -> None:
        alice = self.desk.user("alice", "phone", name="Alice")
        self.ops.join("console:sessions", {"limit": 2})
        [page] = events(self.ops, "page")
        self.assertEqual((page["ids"], page["total"], page["matched"]), (["alice", "ops"], 2, 2))
        self.assertEqual([row["user_id"] for row in page["rows"]], ["alice", "ops"])
        self.assertEqual(page["rows"][0]["devices"], ["phone"])
        # Nothing has changed: nothing is sent.
        self.ops.link.socket.last_activity_at = 0.0
        self.desk.advance(2)
        events(self.ops, "page")
        self.desk.advance(3)
        self.assertEqual(events(self.ops, "page"), [])
        # One who comes pushes the last one out; only the new row is told.
        self.desk.user("bob")
        self.desk.advance(1)
        [page] = events(self.ops, "page")
        self.assertEqual((page["ids"], page["total"]), (["bob", "alice"], 3))
        self.assertEqual([row["user_id"] for row in page["rows"]], ["bob"])
        alice.lose()
        self.desk.advance(1)
        [page] = events(self.ops, "page")
        self.assertEqual([(row["user_id"], row["state"]) for row in page["rows"]], [("alice", "away")])

    def test_another_query_is_answered_at_once(self) -> None:
        for user in ("alice", "bob"):
            self.desk.user(user)
        self.ops.join("console:sessions")
        events(self.ops, "page")
        ref = self.ops.push("console:sessions", "query", {"search": "BO", "sort": "user_id"})
        self.ops.assert_reply(ref)
        [page] = events(self.ops, "page")
        self.assertEqual((page["ids"], page["matched"], page["total"]), (["bob"], 1, 3))
        self.assertEqual(page["query"]["search"], "BO")
        self.desk.advance(1)
        self.assertEqual([page["ids"] for page in events(self.ops, "page")], [])

    def test_a_query_of_another_form_is_refused(self) -> None:
        self.ops.join("console:sessions")
        wrong: list[Any] = [
            {"limit": 101},
            {"limit": 0},
            {"sort": "name"},
            {"search": "x" * 129},
            {"serach": "x"},
            [],
        ]
        for payload in wrong:
            ref = self.ops.push("console:sessions", "query", payload)
            self.assertEqual(self.ops.assert_reply(ref, "error")["reason"], "invalid_payload")
            client = self.desk.operator("read")
            ref = client.send_join("console:sessions", payload)
            self.assertEqual(client.assert_reply(ref, "error")["reason"], "invalid_payload")


class UserTests(ConsoleTestCase):
    def test_all_there_is_to_know(self) -> None:
        alice = self.desk.user("alice", "phone", name="Alice", user_agent="Test/1")
        self.ops.join("console:commands")
        self.ask("push_notification", user_id="alice", type="deal.won", payload={"deal": 7})
        self.ops.join("console:user:alice")
        parts = self.parts()
        session = parts["session"]
        self.assertEqual((session["user_id"], session["name"], session["state"]), ("alice", "Alice", "ready"))
        [connection] = session["connections"]
        shown = {name: connection[name] for name in ("device", "user_agent", "topics", "cursor", "reading")}
        self.assertEqual(
            shown,
            {
                "device": "phone",
                "user_agent": "Test/1",
                "topics": ["user:alice"],
                "cursor": 1,
                "reading": True,
            },
        )
        self.assertEqual((parts["inbox"]["unread"], parts["inbox"]["presence"]), (1, "online"))
        [entry] = parts["inbox"]["entries"]
        self.assertEqual((entry["seq"], entry["type"], entry["payload"]), (1, "deal.won", '{"deal":7}'))
        self.assertEqual([event["event"] for event in parts["recorder"]["events"]][-1], "joined")
        # Only what changes comes again; a heartbeat is a message, too.
        alice.is_silent = True
        self.desk.advance(1)
        self.parts()
        self.desk.recorder.note("alice", "left")
        self.desk.advance(1)
        self.assertEqual(set(self.parts()), {"recorder"})
        alice.lose()
        self.desk.advance(1)
        self.assertEqual(self.parts()["session"]["connections"], [])

    def test_a_notification_is_seen_as_soon_as_it_is_given(self) -> None:
        self.desk.user("alice")
        self.ops.join("console:commands")
        self.ops.join("console:user:alice")
        self.parts()
        self.ask("push_notification", user_id="alice", type="t", payload="x" * 2_000)
        self.desk.advance(1)
        [entry] = self.parts()["inbox"]["entries"]
        self.assertEqual(len(entry["payload"]), 401)

    def test_who_is_not_here(self) -> None:
        self.ops.join("console:commands")
        self.ask("push_notification", user_id="zoe", type="t", payload=1)
        self.ops.join("console:user:zoe")
        parts = self.parts()
        self.assertIsNone(parts["session"])
        self.assertEqual((parts["inbox"]["unread"], parts["inbox"]["presence"]), (1, "offline"))

    def test_without_the_database_the_rest_is_shown(self) -> None:
        self.desk.user("alice")
        self.desk.database.go_down()
        self.ops.join("console:user:alice")
        parts = self.parts()
        self.assertEqual(parts["inbox"], {"unavailable": True})
        self.assertEqual(parts["session"]["user_id"], "alice")
        self.desk.database.come_back()
        self.desk.advance(6)
        self.assertEqual(self.parts()["inbox"]["unread"], 0)

    def test_an_id_that_nobody_can_have(self) -> None:
        for user_id in ("", "a b", "x" * 129, "<b>"):
            ref = self.ops.send_join(f"console:user:{user_id}")
            self.assertEqual(self.ops.assert_reply(ref, "error")["reason"], "invalid_payload")


class CommandTests(ConsoleTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.ops.join("console:commands")
        self.alice = self.desk.user("alice")

    def test_push_notification(self) -> None:
        self.assertEqual(self.ask("push_notification", user_id="alice", type="t", payload={"a": 1})["seq"], 1)
        self.assertEqual(self.alice.assert_push("notification")["payload"], {"a": 1})

    def test_disconnect(self) -> None:
        self.assertEqual(self.ask("disconnect", user_id="alice"), {"delivered": 1})
        self.assertEqual(self.alice.closed, DISCONNECT)
        self.assertEqual(self.ask("disconnect", user_id="nobody"), {"delivered": 0})

    def test_stop_session(self) -> None:
        self.alice.link.on_close = self.alice.lose
        self.assertEqual(self.ask("stop_session", user_id="alice"), {"stopped": True})
        self.assertEqual(self.alice.closed, SESSION_STOPPED)
        self.assertEqual(self.ask("stop_session", user_id="alice"), {"stopped": False})

    def test_close_connection(self) -> None:
        other = self.desk.user("alice")
        asked = {"user_id": "alice", "connection_id": other.link.socket.id}
        self.assertEqual(self.ask("close_connection", **asked), {"closed": True})
        self.assertEqual((other.closed, self.alice.closed), (CONNECTION_CLOSED, None))
        self.assertEqual(self.ask("close_connection", **asked), {"closed": False})

    def test_what_is_wrong_is_said_and_nothing_is_done(self) -> None:
        for event, payload in (
            ("disconnect", {}),
            ("disconnect", {"user_id": "a b"}),
            ("disconnect", {"user_id": "alice", "all": True}),
            ("stop_session", "alice"),
            ("push_notification", {"user_id": "alice", "type": "", "payload": 1}),
            ("push_notification", {"user_id": "alice", "type": "t"}),
        ):
            ref = self.ops.push("console:commands", event, payload)
            self.assertEqual(self.ops.assert_reply(ref, "error")["reason"], "invalid_payload")
        self.assertIsNone(self.alice.closed)

    def test_without_the_database_that_is_said(self) -> None:
        self.desk.database.go_down()
        ref = self.ops.push(
            "console:commands", "push_notification", {"user_id": "a", "type": "t", "payload": 1}
        )
        self.assertEqual(self.ops.assert_reply(ref, "error"), {"reason": "unavailable"})
