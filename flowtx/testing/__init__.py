"""What an application tests its Channels with: a server and clients in memory, under a Clock.

A test, whole::

    from twisted.trial.unittest import SynchronousTestCase

    from flowtx import Channel, Router, ok
    from flowtx.testing import ANY, MemoryServer


    class RoomChannel(Channel):
        def __init__(self, notifications):
            self.notifications = notifications

        def join(self, payload):
            self.send_after(60, "remind")
            return ok({"room": self.topic})

        async def handle_in(self, event, payload):
            self.broadcast("new_msg", {"from": self.user_id, "text": payload["text"]})
            pushed = await self.notifications.push_notification(payload["to"], "mention", payload)
            return ok({"seq": pushed.seq})

        def handle_info(self, message):
            self.push(message, {})


    def make_router(services):
        return Router().channel("room:*", lambda: RoomChannel(services.notifications))


    class RoomTests(SynchronousTestCase):
        def setUp(self):
            self.server = MemoryServer(make_router)
            self.addCleanup(self.server.stop)

        def test_a_mention_reaches_the_room_and_the_inbox(self):
            alice, bob = self.server.connect("alice"), self.server.connect("bob")
            self.assertEqual(alice.join("room:1"), {"room": "room:1"})
            bob.join("user:bob")
            ref = alice.push("room:1", "shout", {"text": "hi", "to": "bob"})
            alice.assert_reply(ref, "ok", {"seq": 1})
            alice.assert_push("new_msg", {"from": "alice", "text": str})
            bob.assert_push("notification", {"type": "mention", "payload": {"text": "hi"}, "read_at": None})
            bob.refute_push("new_msg")
            self.server.assert_broadcast("room:1", "new_msg", ANY)

        def test_a_minute_later(self):
            alice = self.server.connect("alice")
            alice.join("room:1")
            self.server.advance(60)
            alice.assert_push("remind")

        def test_what_a_slow_client_misses_stays_in_the_inbox(self):
            alice, bob = self.server.connect("alice"), self.server.connect("bob")
            alice.join("room:1")
            bob.join("user:bob")
            bob.link.hold()
            alice.push("room:1", "shout", {"text": "hi", "to": "bob"})
            bob.lose()
            again = self.server.connect("bob")
            again.join("user:bob")
            again.assert_push("notification", {"type": "mention"})

It needs no network, no database and no waiting: time passes in ``server.advance(seconds)``. What is real
here: Sessions, Channels, notifications, presence, groups, broadcasts, and the outbox of each
connection. Rates are not limited.

Faults: ``client.link`` can ``stop_reading`` (a slow client), ``hold`` and ``release`` (a slow network,
both ways; what one client is sent then comes behind what others are) and ``drop`` frames; ``client.lose()``
loses the connection with what is under way; ``server.database`` can ``go_down``, ``hang`` and
``come_back``.
"""

from __future__ import annotations

from flowtx.testing.client import Client, Received
from flowtx.testing.database import MemoryDatabase
from flowtx.testing.link import Link
from flowtx.testing.matching import ANY, matches
from flowtx.testing.memory import MemoryTransport, connect
from flowtx.testing.server import MemoryServer

__all__ = [
    "ANY",
    "Client",
    "Link",
    "MemoryDatabase",
    "MemoryServer",
    "MemoryTransport",
    "Received",
    "connect",
    "matches",
]
