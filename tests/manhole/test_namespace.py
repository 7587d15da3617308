"""The names at the prompt, over a whole server in memory."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Refused
from flowtx.interfaces import User
from flowtx.manhole.interpreter import Interpreter
from flowtx.manhole.namespace import (
    HELD_FOR,
    LOOK_EVERY,
    MAX_HELD,
    Config,
    Groups,
    Notifications,
    Presence,
    PubSub,
    Sessions,
    help_on,
)
from flowtx.settings import Settings
from flowtx.testing import MemoryServer

ALICE = User("alice", "Alice Adams", "alice@example.com")


class NamespaceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer(users=[ALICE])
        services = self.server.services
        self.sessions = Sessions(services)
        self.notifications = Notifications(services)
        self.presence = Presence(services, self.server.online)
        self.pubsub = PubSub(services)
        self.groups = Groups(services)

    def tearDown(self) -> None:
        self.sessions.release_all()
        self.server.stop()

    def result(self, call: Any) -> Any:
        deferred = Deferred.fromCoroutine(call)
        self.server.settle()
        return self.successResultOf(deferred)

    def test_the_sessions(self) -> None:
        self.assertEqual((self.sessions.count(), self.sessions.get_session("alice")), (0, None))
        self.server.connect("alice")
        session = self.sessions.get_session("alice")
        assert session is not None
        self.assertTrue(self.sessions.session_exists("alice"))
        self.assertEqual(self.sessions.which_children()[0][:2], ("alice", session))
        self.assertTrue(self.result(self.sessions.stop_session(session)))
        self.assertFalse(self.result(self.sessions.stop_session("alice")))

    def test_the_state_of_a_session(self) -> None:
        client = self.server.connect("alice", user_agent="Firefox")
        client.join("user:alice", {"device": "laptop"})
        self.result(self.notifications.push_notification("alice", "note", {"a": 1}))
        client.assert_push("notification", {"seq": 1})
        self.result(self.notifications.subscribe_to_notifications("alice", ["deal.*"]))
        session = self.sessions.get_session("alice")
        assert session is not None
        state = self.sessions.get_state("alice")
        self.assertEqual(self.sessions.get_state(session), state)
        self.assertEqual(state["user"], {"id": "alice", "name": "Alice Adams", "email": "alice@example.com"})
        self.assertEqual((state["state"], state["restarts"], state["connections_so_far"]), ("ready", 0, 1))
        self.assertEqual((state["inbox_cursors"], state["notification_subscriptions"]), ([1], ("deal.*",)))
        (connection,) = state["connections"]
        self.assertEqual(connection["device"], "laptop")
        self.assertEqual(connection["user_agent"], "Firefox")
        self.assertEqual(list(connection["topics"]), ["user:alice"])
        self.assertTrue(self.sessions.close_connection("alice", connection["id"]))
        error = self.assertRaises(LookupError, self.sessions.get_state, "nobody")
        self.assertEqual(str(error), "there is no Session of 'nobody' here")

    def test_a_session_that_is_started_waits_for_its_user(self) -> None:
        session = self.result(self.sessions.start_session("alice"))
        self.assertIs(self.sessions.get_session("alice"), session)
        client = self.server.connect("alice")
        self.assertEqual(client.join("user:alice")["session_id"], session.session_id)
        self.server.advance(HELD_FOR + 1)
        self.assertEqual(self.sessions.get_state("alice")["state"], "ready")
        client.lose()
        self.server.advance(31)
        self.assertEqual(self.sessions.count(), 0)

    def test_it_does_not_wait_for_ever(self) -> None:
        self.result(self.sessions.start_session("alice"))
        self.server.advance(HELD_FOR - 1)
        self.assertEqual(self.sessions.count(), 1)
        self.server.advance(1 + LOOK_EVERY)
        self.assertEqual(self.sessions.count(), 0)

    def test_it_keeps_nobody_from_ending_it(self) -> None:
        self.result(self.sessions.start_session("alice"))
        self.assertTrue(self.result(self.sessions.stop_session("alice")))
        self.result(self.sessions.start_session("alice"))
        stopping = Deferred.fromCoroutine(self.server.sessions.stop_session("alice"))
        self.assertNoResult(stopping)
        self.server.advance(LOOK_EVERY)
        self.assertTrue(self.successResultOf(stopping))

    def test_only_those_who_are_known_can_be_started_and_not_too_many(self) -> None:
        refused = Deferred.fromCoroutine(self.sessions.start_session("nobody"))
        self.server.settle()
        self.failureResultOf(refused, Refused)
        for _ in range(MAX_HELD):
            self.result(self.sessions.start_session("alice"))
        many = self.failureResultOf(
            Deferred.fromCoroutine(self.sessions.start_session("alice")), RuntimeError
        )
        self.assertIn("100 Sessions", many.getErrorMessage())

    def test_connections_are_closed_and_tokens_revoked(self) -> None:
        client = self.server.connect("alice")
        self.assertEqual(self.sessions.disconnect("alice"), 1)
        self.assertEqual(client.link.closed.code, 1001)  # type: ignore[union-attr]
        again = self.server.connect("alice")
        self.assertEqual(self.result(self.sessions.revoke("alice")), 1)
        self.assertEqual(again.link.closed.code, 1000)  # type: ignore[union-attr]

    def test_the_notifications(self) -> None:
        self.server.connect("alice").join("user:alice")
        session = self.sessions.get_session("alice")
        assert session is not None
        for number in (1, 2, 3):
            self.result(self.notifications.push_notification(session, "note", {"n": number}))
        listed = self.result(self.notifications.list_notifications(session, 2))
        self.assertEqual([one["payload"] for one in listed["notifications"]], [{"n": 3}, {"n": 2}])
        ids = [listed["notifications"][0]["id"]]
        self.assertEqual(self.result(self.notifications.mark_notifications_read(session, ids)), 2)
        self.assertEqual(self.result(self.notifications.mark_notifications_read("alice", up_to_seq=1)), 1)
        both = Deferred.fromCoroutine(self.notifications.mark_notifications_read("alice", ids, up_to_seq=1))
        self.failureResultOf(both, TypeError)
        self.assertEqual(self.result(self.notifications.mark_notifications_read("alice")), 0)

    def test_presence(self) -> None:
        client = self.server.connect("alice")
        client.join("users:online")
        self.server.advance(1)
        self.assertEqual(self.presence.count(), 1)
        self.assertEqual(list(self.presence.list()), ["alice"])
        (meta,) = self.presence.get_by_key("users:online", "alice")
        self.assertEqual(meta["status"], "online")
        self.assertEqual(self.presence.list("users:online", after="alice"), {})
        self.assertEqual(self.result(self.presence.status("alice"))["alice"].status, "online")

    def test_broadcasts(self) -> None:
        client = self.server.connect("alice")
        client.join("user:alice")
        for sent in (
            self.pubsub.broadcast("user:alice", "hello", {}),
            self.pubsub.broadcast_to_users(["alice"], "hello", {}),
            self.pubsub.broadcast_to_all("hello", {}),
        ):
            self.assertEqual(sent, 1)
            client.assert_push("hello", {})

    def test_groups(self) -> None:
        self.assertTrue(self.result(self.groups.add_member("sales", "alice")))
        self.assertTrue(self.result(self.groups.is_member("sales", "alice")))
        self.assertEqual(list(self.result(self.groups.members("sales"))), ["alice"])
        self.assertTrue(self.result(self.groups.remove_member("sales", "alice")))

    def test_help(self) -> None:
        shown: list[str] = []
        names: dict[str, object] = {
            "sessions": self.sessions,
            "notifications": self.notifications,
            "presence": self.presence,
            "pubsub": self.pubsub,
            "groups": self.groups,
            "recorder": object(),
            "config": Config(Settings(database="postgresql://u:canary@h/d").redacted()),
        }
        names["help"] = help_on(names, {"recorder": "What happened."})
        interpreter = Interpreter(names, shown.append, clock=self.server.clock, under_way=set())
        for source in ("help()", "help(sessions)", "sessions", "help(sessions.stop_session)", "config"):
            outcome = self.successResultOf(Deferred.fromCoroutine(interpreter.run(source)))
            self.assertFalse(outcome.failed, shown)
        everything, sessions, one, method, config = shown
        for name in names:
            self.assertRegex(everything, rf"(?m)^{name} +\S+ \S+")
        self.assertIn("What happened.", everything)
        self.assertNotIn("See the module", everything)
        self.assertIn("get_state(session)\n    All that a Session knows", sessions)
        self.assertNotIn("__", sessions)
        self.assertEqual(one, "<sessions: The Sessions of this node. help(sessions) lists what it does.>\n")
        self.assertTrue(method.startswith("End a Session"))
        self.assertIn("'database': 'postgresql://u@h/d'", config)
        self.assertNotIn("canary", config)

    def test_each_method_says_what_it_does(self) -> None:
        for thing in (self.sessions, self.notifications, self.presence, self.pubsub, self.groups):
            for name in dir(type(thing)):
                if not name.startswith("_"):
                    self.assertTrue(getattr(thing, name).__doc__, name)
