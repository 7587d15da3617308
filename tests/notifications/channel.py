"""What the tests of the channel ``user:<id>`` share: Sessions, an inbox, and clients in memory."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.router import Router
from flowtx.interfaces import Principal, User
from flowtx.notifications.service import NotificationService
from flowtx.notifications.user_channel import UserChannel
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.sessions.service import SessionService
from flowtx.storage.memory import MemoryUserDirectory
from flowtx.testing.memory import MemoryTransport, connect
from tests.notifications.inbox import SlowStore


class ChannelTestCase(SynchronousTestCase):
    """Has the users alice and bob, whose inboxes are in a `SlowStore`."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pubsub = MemoryPubSub()
        self.store = SlowStore()
        self.notifications = NotificationService(self.store, self.pubsub, clock=self.clock)
        users = [User("alice", "Alice Adams", "alice@example.com"), User("bob", "Bob", None)]
        self.sessions = SessionService(MemoryUserDirectory(users), pubsub=self.pubsub, clock=self.clock)
        self.sessions.startService()
        self.router = Router().channel("user:*", lambda: UserChannel(self.sessions, self.notifications))
        self.wake()

    def connect(self, user_id: str = "alice") -> MemoryTransport:
        claim = self.successResultOf(
            Deferred.fromCoroutine(self.sessions.claim(Principal(user_id, expires_at=4e9)))
        )
        client = connect(self.router, user_id, self.clock, pubsub=self.pubsub)
        claim.attach(client.socket)
        self.addCleanup(client.lose)
        return client

    def push(self, user_id: str = "alice", type_: str = "deal.won", **payload: object) -> str:
        pushing = self.notifications.push_notification(user_id, type_, payload)
        return self.successResultOf(Deferred.fromCoroutine(pushing)).id

    def wake(self) -> None:
        self.successResultOf(Deferred.fromCoroutine(self.notifications.wake()))

    def ask(self, client: MemoryTransport, event: str, payload: object, topic: str = "user:alice") -> Any:
        client.text(json.dumps(["1", "9", topic, event, payload]))
        return self.frames(client)

    def frames(self, client: MemoryTransport) -> Any:
        return [json.loads(frame.payload)[3:] for frame in client.take()]

    def join(self, client: MemoryTransport, payload: object = None, user_id: str = "alice") -> Any:
        [[event, reply], *rest] = self.ask(client, "phx_join", payload, f"user:{user_id}")
        self.assertEqual((event, reply["status"]), ("phx_reply", "ok"))
        self.assertEqual({name for name, _ in rest} - {"notification"}, set())
        return reply["response"], [entry["seq"] for _, entry in rest]

    def refused(self, frames: Any, named: str) -> None:
        [[event, reply]] = frames
        self.assertEqual((event, reply["status"]), ("phx_reply", "error"))
        self.assertEqual(reply["response"]["reason"], "invalid_payload")
        self.assertIn(named, reply["response"]["detail"])
