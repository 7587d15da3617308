"""The end of a connection's token, and its renewal."""

from __future__ import annotations

import json
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx.channels.channel import error
from flowtx.channels.tokens import Tokens
from flowtx.errors import Refused, Unavailable
from flowtx.interfaces import Principal
from flowtx.protocol.close import HEARTBEAT_TIMEOUT, TOKEN_ENDED
from tests.channels.scripted import Client, Server, reply

GRACE = 15.0


class Verifier:
    """Knows tokens by their text; its answers may be held back.

    The wall clock is an hour ahead of the monotonic one.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.answers: dict[str, Principal | Exception | Deferred[Principal]] = {}
        self.asked: list[str] = []

    async def verify(self, token: str) -> Principal:
        self.asked.append(token)
        answer = self.answers.get(token, Refused("invalid_token"))
        if isinstance(answer, Exception):
            raise answer
        return await answer if isinstance(answer, Deferred) else answer

    def remaining(self, principal: Principal) -> float:
        return principal.expires_at + GRACE - (self.server.clock.seconds() + 3_600)


class TokenTests(SynchronousTestCase):
    vsn = "2.0.0"

    def setUp(self) -> None:
        self.server = Server()
        self.verifier = Verifier(self.server)
        self.client = self.connect()
        self.client.join("room:1", "1")

    def connect(self, **options: Any) -> Client:
        tokens = Tokens(self.verifier.verify, self.verifier.remaining)
        # The token of a client in memory lasts till 3600 by the wall clock: the time at which it comes.
        options = {"heartbeat_timeout": 1e9, "tokens": tokens, "vsn": self.vsn, **options}
        return self.server.connect(**options)

    def renew(self, token: Any = "good", topic: str = "room:1") -> list[Any]:
        self.client.send("1", "9", topic, "access_token", {"access_token": token})
        return self.client.received()

    def good(self, lasts: float = 100, **claims: Any) -> Principal:
        return Principal("42", expires_at=self.server.clock.seconds() + 3_600 + lasts, **claims)

    def reply(self, response: Any = None, status: str = "ok") -> list[Any]:
        return [reply("1", "9", "room:1", response, status)]

    def assert_ends_in(self, seconds: float) -> None:
        self.server.clock.advance(seconds - 0.1)
        self.assertIsNone(self.client.transport.closed)
        self.server.clock.advance(0.1)
        self.assertEqual(self.client.transport.closed, TOKEN_ENDED)

    def test_a_connection_ends_with_its_token_and_15_seconds(self) -> None:
        self.assert_ends_in(GRACE)
        self.assertEqual(TOKEN_ENDED, (1000, "token_ended"))
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_so_does_one_that_never_stops_talking(self) -> None:
        client = self.connect(heartbeat_timeout=10)
        for _ in range(14):
            self.server.clock.advance(1)
            client.send(None, "1", "phoenix", "heartbeat")
        self.server.clock.advance(0.9)
        self.assertIsNone(client.transport.closed)
        self.server.clock.advance(0.1)
        self.assertEqual(client.transport.closed, TOKEN_ENDED)

    def test_a_silent_one_ends_for_its_silence_first(self) -> None:
        client = self.connect(heartbeat_timeout=10)
        self.server.clock.advance(10)
        self.assertEqual(client.transport.closed, HEARTBEAT_TIMEOUT)

    def test_one_that_came_with_a_token_past_its_grace(self) -> None:
        self.server.clock.advance(100)
        tokens = Tokens(self.verifier.verify, lambda _: -1.0)
        client = self.connect(tokens=tokens)
        self.server.clock.advance(0)
        self.assertEqual(client.transport.closed, TOKEN_ENDED)

    def test_without_tokens_it_never_ends(self) -> None:
        client = self.connect(tokens=None)
        self.server.clock.advance(1e8)
        self.assertIsNone(client.transport.closed)
        client.join("room:1", "1")
        client.send("1", "9", "room:1", "access_token", {"access_token": "x"})
        [answer] = client.received()
        self.assertIn("unavailable", json.dumps(answer))

    def test_channels_are_told_of_a_renewal_before_the_client_is(self) -> None:
        told: list[tuple[str, ...]] = []

        def note() -> None:
            told.append(self.client.socket.principal.groups)

        self.client.socket.observe_token(note)
        self.assertEqual(self.renew("bad"), self.reply({"reason": "invalid_token"}, "error"))
        self.assertEqual(told, [])
        self.verifier.answers["good"] = self.good(groups=("sales",))
        self.assertEqual(self.renew(), self.reply())
        self.assertEqual(told, [("sales",)])
        self.client.socket.ignore_token(note)
        self.client.socket.ignore_token(note)
        self.renew()
        self.assertEqual(len(told), 1)

    def test_a_renewal_lets_it_live_on(self) -> None:
        self.server.clock.advance(10)
        self.verifier.answers["good"] = principal = self.good(100, token_id="new")
        self.assertEqual(self.renew(), self.reply())
        self.assertIs(self.client.socket.principal, principal)
        self.assert_ends_in(100 + GRACE)
        self.assertEqual(self.server.script.handled, [])  # it is not for the channel

    def test_a_renewal_may_shorten_it(self) -> None:
        self.verifier.answers["good"] = self.good(-10)
        self.renew()
        self.assert_ends_in(5)

    def test_many_renewals_leave_one_timer(self) -> None:
        self.verifier.answers["good"] = self.good()
        for _ in range(50):
            self.assertEqual(self.renew(), self.reply())
        self.assertEqual(len(self.server.clock.getDelayedCalls()), 1)

    def test_what_is_refused(self) -> None:
        self.verifier.answers |= {
            "expired": Refused("expired_token"),
            "revoked": Refused("revoked_token"),
            "other": Principal("43", expires_at=9e9),
            "later": Unavailable("no keys"),
        }
        before = self.client.socket.principal
        for token, reason in (
            ("expired", "expired_token"),
            ("revoked", "revoked_token"),
            ("nonsense", "invalid_token"),
            ("other", "invalid_token"),
            ("later", "unavailable"),
        ):
            self.assertEqual(self.renew(token), self.reply({"reason": reason}, "error"))
        self.assertIs(self.client.socket.principal, before)
        self.client.send(None, "1", "phoenix", "heartbeat")
        self.assertEqual(len(self.client.received()), 1)
        self.assert_ends_in(GRACE)

    def test_a_payload_of_another_form(self) -> None:
        payloads: list[Any] = [{}, {"access_token": None}, {"access_token": 7}, [], "token", None]
        for payload in payloads:
            self.client.transport.sent.clear()
            self.client.transport.text(self.raw(payload))
            [answer] = self.client.received()
            text = json.dumps(answer)
            self.assertIn("invalid_payload", text)
            self.assertIn("access_token takes", text)
        self.assertEqual(self.verifier.asked, [])
        self.assertIsNone(self.client.transport.closed)

    def raw(self, payload: Any) -> str:
        return json.dumps(["1", "9", "room:1", "access_token", payload])

    def test_a_fault_of_our_own_is_logged_and_answered(self) -> None:
        self.verifier.answers["bug"] = KeyError("bug")
        self.assertEqual(self.renew("bug"), self.reply({"reason": "unavailable"}, "error"))
        self.assertEqual(len(self.flushLoggedErrors(KeyError)), 1)
        self.verifier.answers["good"] = self.good()
        self.assertEqual(self.renew(), self.reply())

    def test_one_at_a_time(self) -> None:
        slow: Deferred[Principal] = Deferred()
        self.verifier.answers |= {"slow": slow, "good": self.good()}
        self.assertEqual(self.renew("slow"), [])
        self.assertEqual(self.renew("good"), self.reply({"reason": "unavailable"}, "error"))
        self.assertEqual(self.verifier.asked, ["slow"])
        slow.callback(self.good(50))
        self.assertEqual(self.client.received(), self.reply())
        self.assertEqual(self.renew("good"), self.reply())

    def test_messages_pass_one_that_takes_long(self) -> None:
        self.verifier.answers["slow"] = Deferred()
        self.renew("slow")
        self.client.send(None, "1", "phoenix", "heartbeat")
        self.assertEqual(len(self.client.received()), 1)

    def test_one_that_comes_too_late(self) -> None:
        slow: Deferred[Principal] = Deferred()
        self.verifier.answers["slow"] = slow
        self.renew("slow")
        self.assert_ends_in(GRACE)
        slow.callback(self.good())
        self.assertEqual(self.client.received(), [])
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_the_connection_goes_meanwhile(self) -> None:
        cancelled: list[str] = []
        self.verifier.answers["slow"] = Deferred(lambda _: cancelled.append("cancelled"))
        self.renew("slow")
        self.successResultOf(self.client.lose())
        self.assertEqual(cancelled, ["cancelled"])
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_on_a_topic_that_is_not_joined(self) -> None:
        self.verifier.answers["good"] = self.good()
        self.assertIn("unmatched topic", json.dumps(self.renew(topic="room:2")))
        self.assertEqual(self.verifier.asked, [])

    def test_of_another_join(self) -> None:
        self.client.send("0", "9", "room:1", "access_token", {"access_token": "good"})
        self.assertEqual((self.client.received(), self.verifier.asked), ([], []))

    def test_while_the_topic_is_being_joined_it_is_answered_after_the_join(self) -> None:
        joining: Deferred[Any] = Deferred()
        self.server.script.join = lambda _channel, _payload: joining
        self.verifier.answers["good"] = self.good()
        self.client.send("2", "2", "room:2", "phx_join")
        self.client.send("2", "3", "room:2", "access_token", {"access_token": "good"})
        self.assertEqual(self.client.received(), [])
        joining.callback(None)
        self.assertEqual(len(self.client.received()), 2)

    def test_where_that_join_is_refused_the_token_is_renewed_all_the_same(self) -> None:
        joining: Deferred[Any] = Deferred()
        self.server.script.join = lambda _channel, _payload: joining
        self.verifier.answers["good"] = self.good()
        self.client.send("2", "2", "room:2", "phx_join")
        self.client.send("2", "3", "room:2", "access_token", {"access_token": "good"})
        joining.callback(error())
        self.assert_ends_in(100 + GRACE)


class VersionOneTests(TokenTests):
    """The same with version 1 of the protocol."""

    vsn = "1.0.0"

    def reply(self, response: Any = None, status: str = "ok") -> list[Any]:
        body = {"status": status, "response": {} if response is None else response}
        return [{"topic": "room:1", "event": "phx_reply", "payload": body, "ref": "9"}]

    def raw(self, payload: Any) -> str:
        return json.dumps({"topic": "room:1", "event": "access_token", "payload": payload, "ref": "9"})

    def test_of_another_join(self) -> None:
        """A client of version 1 need not say for which join a message is."""
        self.verifier.answers["good"] = self.good()
        self.client.send(None, "9", "room:1", "access_token", {"access_token": "good"})
        self.assertEqual(self.client.received(), self.reply())
