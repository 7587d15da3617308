"""Which Channel serves which topic."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import Channel
from flowtx.channels.router import Router


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
