"""Which Channel serves which topic."""

from __future__ import annotations

from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import Channel
from flowtx.channels.router import Router
from flowtx.testing.memory import connect


class RoomChannel(Channel):
    pass


class LobbyChannel(Channel):
    pass


class RouterTests(SynchronousTestCase):
    def test_the_first_pattern_that_matches(self) -> None:
        router = Router().channel("room:lobby", LobbyChannel).channel("room:*", RoomChannel)
        self.assertIsInstance(router.route("room:lobby"), LobbyChannel)
        self.assertIsInstance(router.route("room:1"), RoomChannel)
        router = Router().channel("room:*", RoomChannel).channel("room:lobby", LobbyChannel)
        self.assertIsInstance(router.route("room:lobby"), RoomChannel)

    def test_none(self) -> None:
        self.assertIsNone(Router().route("room:1"))
        self.assertIsNone(Router().channel("room:*", RoomChannel).route("room"))

    def test_each_join_has_its_own_channel(self) -> None:
        router = Router().channel("room:*", RoomChannel)
        self.assertIsNot(router.route("room:1"), router.route("room:1"))

    def test_another_routers_routes_come_after_its_own(self) -> None:
        other = Router().channel("room:*", LobbyChannel).channel("lobby", LobbyChannel)
        router = Router().channel("room:*", RoomChannel).extend(other)
        self.assertIsInstance(router.route("room:1"), RoomChannel)
        self.assertIsInstance(router.route("lobby"), LobbyChannel)

    def test_a_bad_pattern_fails_when_it_is_declared(self) -> None:
        self.assertRaises(ValueError, Router().channel, "room:*:x", RoomChannel)

    def test_what_cannot_make_a_channel_fails_when_it_is_declared(self) -> None:
        channel: Any = RoomChannel()
        problem = self.assertRaises(TypeError, Router().channel, "room:*", channel)
        self.assertIn("'room:*': got <", str(problem))
        self.assertIn("it takes a Channel class, or a function that makes a Channel", str(problem))

    def test_what_makes_no_channel_fails_when_it_is_joined(self) -> None:
        nothing: Any = dict
        problem = self.assertRaises(TypeError, Router().channel("room:*", nothing).route, "room:1")
        self.assertEqual(str(problem), "room:*: got dict; it takes a Channel")

    def test_a_channel_that_serves_already_is_refused(self) -> None:
        channel = RoomChannel()
        router = Router().channel("room:*", lambda: channel)
        client = connect(router, "42", Clock())
        for ref in ("1", "2"):
            client.text(f'["{ref}","{ref}","room:{ref}","phx_join",{{}}]')
        self.assertEqual(
            [b"join crashed" in frame.payload for frame in client.take()],
            [False, True],
        )
        [failure] = self.flushLoggedErrors(TypeError)
        self.assertEqual(str(failure.value), "room:*: got a RoomChannel that a client has already")

    def test_patterns(self) -> None:
        router = Router().channel("room:lobby", LobbyChannel).channel("room:*", RoomChannel)
        self.assertEqual([str(pattern) for pattern in router.patterns], ["room:lobby", "room:*"])
