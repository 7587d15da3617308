"""Presence on a channel, as clients see it: the frames that Phoenix was recorded to send.

flowtx differs in three ways, each of which clients of Phoenix take as well: changes are collected, the
state is that before the client's own join, and broadcasts carry the receiver's join_ref.
"""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import Channel, Reply, ok
from flowtx.channels.router import Router
from flowtx.presence.presence import Presence
from flowtx.presence.tracker import PERIOD, Tracker
from flowtx.pubsub.memory import MemoryPubSub
from flowtx.testing.memory import MemoryTransport, connect

TOPIC = "users:online"
ONLINE_AT = 1_795_336_168


def metas(**refs: str) -> dict[str, Any]:
    """Keys, each with one meta that has this ref."""
    return {
        key.replace("_", "-"): {"metas": [{"online_at": ONLINE_AT, "phx_ref": ref}]}
        for key, ref in refs.items()
    }


def diff(join_ref: str, joins: dict[str, Any], leaves: dict[str, Any]) -> list[Any]:
    return [join_ref, None, TOPIC, "presence_diff", {"joins": joins, "leaves": leaves}]


def state(join_ref: str, presences: dict[str, Any]) -> list[Any]:
    return [join_ref, None, TOPIC, "presence_state", presences]


def reply(join_ref: str, ref: str) -> list[Any]:
    return [join_ref, ref, TOPIC, "phx_reply", {"response": {}, "status": "ok"}]


class Online(Channel):
    """The channel that was recorded: tracks whoever joins, updates and untracks when told to."""

    def __init__(self, presence: Presence) -> None:
        self.presence = presence

    def join(self, payload: Any) -> None:
        user_id = self.socket.principal.user_id
        self.push("presence_state", self.presence.state(self.topic))
        self.presence.track(self.topic, user_id, {"online_at": ONLINE_AT}, owner=self)

    def handle_in(self, event: str, payload: Any) -> Reply:
        user_id = self.socket.principal.user_id
        if event == "presence_update":
            self.presence.update(self.topic, user_id, lambda meta: meta | payload, owner=self)
        elif event == "presence_untrack":
            self.presence.untrack(self.topic, user_id, owner=self)
        else:
            raise RuntimeError(event)
        return ok()

    def terminate(self, reason: str) -> None:
        self.presence.untrack_all(self)


class ChannelTests(SynchronousTestCase):
    """The names say which case of the recording is played."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.pubsub = MemoryPubSub()
        self.presence = Presence(Tracker(self.pubsub, clock=self.clock))
        self.presence.startService()
        self.router = Router().channel(TOPIC, lambda: Online(self.presence))
        self.refs: dict[str, str] = {}

    def connect(self, user_id: str, vsn: str = "2.0.0") -> MemoryTransport:
        return connect(self.router, user_id, self.clock, vsn=vsn, pubsub=self.pubsub)

    def join(self, client: MemoryTransport, join_ref: str = "1") -> None:
        client.text(json.dumps([join_ref, join_ref, TOPIC, "phx_join", {}]))

    def joined(self, *user_ids: str) -> list[MemoryTransport]:
        """Clients that have joined and read all of it; their refs are @1, @2 and so on."""
        clients = [self.connect(user_id) for user_id in user_ids]
        for client in clients:
            self.join(client)
        self.settle()
        for client in clients:
            self.take(client)
        return clients

    def settle(self) -> None:
        """Let the period end."""
        self.clock.advance(PERIOD)

    def take(self, client: MemoryTransport) -> list[Any]:
        return [self.named(json.loads(frame.payload)) for frame in client.take()]

    def named(self, value: Any) -> Any:
        """Put names in the place of refs: @1 for the first one ever seen, and so on."""
        if isinstance(value, list):
            return [self.named(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            name: self.refs.setdefault(item, f"@{len(self.refs) + 1}")
            if name in ("phx_ref", "phx_ref_prev")
            else self.named(item)
            for name, item in value.items()
        }

    def test_k01_first_join(self) -> None:
        client = self.connect("k01-c")
        self.join(client)
        self.assertEqual(self.take(client), [reply("1", "1"), state("1", {})])
        self.settle()
        self.assertEqual(self.take(client), [diff("1", metas(k01_c="@1"), {})])

    def test_k02_a_second_user_joins_and_leaves(self) -> None:
        [a] = self.joined("k02-a")
        b = self.connect("k02-b")
        self.join(b, "5")
        self.settle()
        joins, leaves = metas(k02_b="@2"), metas()
        self.assertEqual(self.take(a), [diff("1", joins, leaves)])
        self.assertEqual(
            self.take(b), [reply("5", "5"), state("5", metas(k02_a="@1")), diff("5", joins, leaves)]
        )
        b.text('["5","6","users:online","phx_leave",{}]')
        self.settle()
        self.assertEqual(self.take(a), [diff("1", {}, metas(k02_b="@2"))])
        self.assertEqual(self.take(b), [reply("5", "6"), ["5", "5", TOPIC, "phx_close", {}]])

    def test_k03_a_second_socket_of_the_same_user(self) -> None:
        [a] = self.joined("k03")
        b = self.connect("k03")
        self.join(b, "5")
        self.settle()
        self.assertEqual(self.take(a), [diff("1", metas(k03="@2"), {})])
        self.take(b)
        a.text('["1","2","users:online","phx_leave",{}]')
        self.settle()
        self.assertEqual(self.take(b), [diff("5", {}, metas(k03="@1"))])
        self.join(a, "7")
        self.assertEqual(self.take(a)[-1], state("7", metas(k03="@2")))

    def test_k04_update(self) -> None:
        a, b = self.joined("k04-a", "k04-b")
        a.text('["1","2","users:online","presence_update",{"status":"away"}]')
        self.settle()
        new = {"online_at": ONLINE_AT, "phx_ref": "@3", "phx_ref_prev": "@1", "status": "away"}
        update = diff("1", {"k04-a": {"metas": [new]}}, metas(k04_a="@1"))
        self.assertEqual(self.take(a), [reply("1", "2"), update])
        self.assertEqual(self.take(b), [update])

    def test_k05_untrack(self) -> None:
        [a] = self.joined("k05-a")
        a.text('["1","2","users:online","presence_untrack",{}]')
        self.settle()
        self.assertEqual(self.take(a), [reply("1", "2"), diff("1", {}, metas(k05_a="@1"))])

    def test_k06_a_connection_goes(self) -> None:
        a, b = self.joined("k06-a", "k06-b")
        self.successResultOf(b.lose())
        self.settle()
        self.assertEqual(self.take(a), [diff("1", {}, metas(k06_b="@2"))])

    def test_k09_duplicate_join(self) -> None:
        a, b = self.joined("k09", "other")
        self.join(a, "2")
        self.settle()
        self.assertEqual(self.take(b), [diff("1", metas(k09="@3"), metas(k09="@1"))])

    def test_k10_version_1(self) -> None:
        client = self.connect("k10-a", vsn="1.0.0")
        client.text('{"topic":"users:online","event":"phx_join","payload":{},"ref":"1"}')
        self.settle()
        sent = [(frame["event"], frame["payload"], frame["ref"]) for frame in self.take(client)]
        self.assertEqual(
            sent,
            [
                ("phx_reply", {"response": {}, "status": "ok"}, "1"),
                ("presence_state", {}, None),
                ("presence_diff", {"joins": metas(k10_a="@1"), "leaves": {}}, None),
            ],
        )

    def test_k11_the_channel_crashes(self) -> None:
        a, b = self.joined("k11-a", "k11-b")
        b.text('["1","2","users:online","crash",{}]')
        self.settle()
        self.assertEqual(self.take(a), [diff("1", {}, metas(k11_b="@2"))])
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_k14_three_at_once(self) -> None:
        [a] = self.joined("k14-a")
        for name in "bcd":
            self.join(self.connect(f"k14-{name}"))
        self.settle()
        self.assertEqual(self.take(a), [diff("1", metas(k14_b="@2", k14_c="@3", k14_d="@4"), {})])

    def test_k16_left_and_joined_again(self) -> None:
        b, a = self.joined("k16-b", "k16-a")
        a.text('["1","2","users:online","phx_leave",{}]')
        self.settle()
        self.join(a, "3")
        self.settle()
        self.assertEqual(self.take(b), [diff("1", {}, metas(k16_a="@2")), diff("1", metas(k16_a="@3"), {})])
        self.assertEqual(self.take(a)[-2:], [state("3", metas(k16_b="@1")), diff("3", metas(k16_a="@3"), {})])

    def test_who_joins_within_a_period_misses_nothing(self) -> None:
        a, b = self.joined("a", "b")
        self.successResultOf(b.lose())
        self.clock.advance(PERIOD / 2)
        c = self.connect("c")
        self.join(c)
        self.assertEqual(self.take(c)[-1], state("1", metas(b="@2", a="@1")))
        self.settle()
        self.assertEqual(self.take(c), [diff("1", metas(c="@3"), metas(b="@2"))])
        self.assertEqual(self.take(a), [diff("1", metas(c="@3"), metas(b="@2"))])
