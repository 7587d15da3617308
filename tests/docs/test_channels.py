"""The Channels of the guides, each with a client in memory."""

from __future__ import annotations

import unittest
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from flowtx import Router
from flowtx.app import App
from flowtx.testing import ANY, MemoryServer
from tests.docs.examples import DOCS, examples, load, run_awaiting

CHANNELS = DOCS / "channels.md"


class Deals:
    """What the guide leaves to the reader: deals from somewhere."""

    async def find(self, deal_id: str) -> Any:
        return {"id": 7, "team": ["alice"]} if deal_id == "7" else None

    def all(self) -> Deferred[Any]:
        return succeed([{"id": 7}])


class GuideTestCase(SynchronousTestCase):
    def serve(self, app: App, **settings: Any) -> MemoryServer:
        server = MemoryServer(app, **settings)
        self.addCleanup(server.stop)
        return server

    def channel(self, name: str, make: str, *arguments: Any, topic: str = "t:*") -> MemoryServer:
        """Serve the class ``make`` of an example of the guide to Channels."""
        module = load(CHANNELS, "ten-lines", name)
        return self.serve(Router().channel(topic, lambda: getattr(module, make)(*arguments)))


class ChannelsTests(GuideTestCase):
    def test_ten_lines(self) -> None:
        text = examples(CHANNELS)["ten-lines"].text
        server = self.serve(load(CHANNELS, "ten-lines").router)
        alice, bob = server.connect("alice"), server.connect("bob")
        self.assertEqual(alice.join("room:1"), {"room": "room:1"})
        bob.join("room:1")
        alice.assert_reply(alice.push("room:1", "new_msg", {"text": "Hi"}))
        for client in (alice, bob):
            client.assert_push("new_msg", {"from": "alice", "text": "Hi"})
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        self.assertLessEqual(len(lines), 10)
        # The README shows the same.
        shown = text.replace("# rooms.py\n", "# rooms.py: twistd -n flow --app rooms:router\n").replace(
            " error,", ""
        )
        self.assertIn(shown, (DOCS.parent / "README.md").read_text(encoding="utf-8"))

    def test_who_may_join(self) -> None:
        server = self.channel("refuse", "DealChannel", Deals(), topic="deal:*")
        alice, bob = server.connect("alice"), server.connect("bob")
        self.assertEqual(alice.join("deal:7")["id"], 7)
        self.assertEqual(alice.channel("deal:7").assigns, {"deal": 7})
        bob.assert_reply(bob.send_join("deal:7"), "error", {"reason": "unauthorized"})
        alice.assert_reply(alice.send_join("deal:8"), "error", {"reason": "unauthorized"})

    def test_a_newer_one_takes_the_place_of_one_that_waits(self) -> None:
        server = self.channel("key", "CanvasChannel")
        alice, bob = server.connect("alice"), server.connect("bob")
        alice.join("t:1")
        bob.join("t:1")
        bob.link.stop_reading()
        for x in range(3):
            alice.push("t:1", "move", {"x": x})
        bob.link.go_on_reading()
        bob.assert_push("cursor", {"user": "alice", "x": 2})
        bob.refute_push("cursor")

    def test_after_the_join(self) -> None:
        server = self.channel("after-join", "BoardChannel", Deals())
        alice = server.connect("alice")
        alice.join("t:1")
        alice.assert_push("board", {"deals": [{"id": 7}]})

    def test_infos(self) -> None:
        server = self.channel("infos", "ReminderChannel")
        alice = server.connect("alice")
        alice.join("t:1")
        server.pubsub.broadcast("prices", "changed", {"acme": 7})
        alice.assert_push("price", {"acme": 7})
        alice.refute_push("remind")
        server.advance(60)
        alice.assert_push("remind")

    def test_a_later_reply(self) -> None:
        server = self.channel("later", "ExportChannel")
        alice = server.connect("alice")
        alice.join("t:1")
        first, second = alice.push("t:1", "export"), alice.push("t:1", "export")
        alice.refute_reply(first)
        server.advance(2)
        for ref in (first, second):
            alice.assert_reply(ref, "ok", {"url": "/exports/7.csv"})

    def test_intercepted(self) -> None:
        server = self.channel("intercept", "TicketChannel")
        staff, alice = server.connect("staff", groups=("staff",)), server.connect("alice")
        for client in (staff, alice):
            client.join("t:1")
        server.pubsub.broadcast("t:1", "note", {"text": "Hm", "internal": True})
        server.pubsub.broadcast("t:1", "note", {"text": "Done", "internal": False})
        staff.assert_push("note", {"text": "Hm", "internal": True})
        self.assertEqual(alice.assert_push("note"), {"text": "Done"})
        alice.refute_push("note")

    def test_errors_and_the_end(self) -> None:
        server = self.channel("stop", "AuctionChannel")
        alice = server.connect("alice")
        alice.join("t:1")
        refs = {name: alice.push("t:1", "bid", {"amount": name}) for name in (7, "much")}
        alice.assert_reply(refs[7], "accepted", {"amount": 7})
        wrong = {"reason": "invalid_payload", "detail": "amount: it takes a whole number"}
        alice.assert_reply(refs["much"], "error", wrong)
        printed = StringIO()
        with redirect_stdout(printed):
            alice.assert_reply(alice.push("t:1", "withdraw"))
            alice.assert_push("phx_close", topic="t:1")
        self.assertEqual(printed.getvalue(), "alice has left: normal\n")
        alice.join("t:1")
        with redirect_stdout(printed):
            alice.push("t:1", "elsewhere")
            alice.assert_push("phx_error", topic="t:1")
        self.assertEqual(printed.getvalue().splitlines()[1], "alice has left: crash")

    def test_the_services(self) -> None:
        module = load(CHANNELS, "ten-lines", "services")
        server = self.serve(module.make_router)
        alice, bob = server.connect("alice"), server.connect("bob")
        bob.join("user:bob")
        alice.join("nudge")
        alice.join("room:1")
        alice.assert_reply(alice.push("nudge", "now", {"to": "bob"}), "ok", {"seq": 1})
        bob.assert_push("notification", {"type": "nudge", "payload": {"by": "alice"}})

    def test_a_payload_may_be_anything_that_is_written_as_an_object(self) -> None:
        @dataclass
        class Deal:
            id: int

        server = self.serve(load(CHANNELS, "ten-lines").router)
        alice = server.connect("alice")
        alice.join("room:1")
        server.pubsub.broadcast("room:1", "deal", Deal(7))
        self.assertEqual(alice.assert_push("deal"), {"id": 7})


class ComingFromTests(GuideTestCase):
    def test_phoenix(self) -> None:
        server = self.serve(load(DOCS / "from-phoenix.md", "deal").router)
        alice, bob = server.connect("alice"), server.connect("bob")
        for client in (alice, bob):
            client.join("deal:7")
            client.assert_push("hello", {"deal": "7"})
        alice.assert_reply(alice.push("deal:7", "note", {"text": "Hi"}), "ok", {"length": 2})
        bob.assert_push("note", {"text": "Hi", "deal": "7"})
        alice.refute_push("note")

    def test_django_channels(self) -> None:
        server = self.serve(load(DOCS / "from-django-channels.md", "chat").router)
        alice, bob = server.connect("alice"), server.connect("bob")
        for client in (alice, bob):
            client.join("chat:1")
        alice.push("chat:1", "say", {"message": "Hi"})
        for client in (alice, bob):
            self.assertEqual(client.assert_push("message"), {"message": "Hi"})


class PresenceTests(GuideTestCase):
    def test_a_topic_of_ones_own(self) -> None:
        server = self.serve(load(DOCS / "presence.md", "document").make_router)
        alice, bob = server.connect("alice"), server.connect("bob")
        for client in (alice, bob):
            client.join("document:1")
            client.assert_push("presence_state")
            server.advance(0.1)
            client.assert_push("presence_diff", {"joins": {client.user_id: {"metas": [{"editing": False}]}}})
        bob.assert_reply(bob.push("document:1", "edit"))
        server.advance(0.1)
        alice.received()
        self.assertTrue(server.presence.list("document:1")["bob"]["metas"][0]["editing"])
        bob.lose()
        server.advance(0.1)
        alice.assert_push("presence_diff", {"leaves": {"bob": {"metas": [ANY]}}})
        self.assertEqual(list(server.presence.list("document:1")), ["alice"])


class SessionsTests(GuideTestCase):
    def setUp(self) -> None:
        self.server = self.serve(Router())
        self.client = self.server.connect("42")
        self.sessions = self.server.sessions
        self.examples = examples(DOCS / "sessions.md")

    def run_example(self, name: str, **given: Any) -> None:
        running = Deferred.fromCoroutine(run_awaiting(self.examples[name], **given))
        self.server.settle()
        self.successResultOf(running)

    def test_the_registry(self) -> None:
        self.assertTrue(self.sessions.session_exists("42"))
        self.run_example("registry", sessions=self.sessions)
        self.assertFalse(self.sessions.session_exists("42"))
        assert self.client.closed is not None
        self.assertEqual(self.client.closed.code, 1000)

    def test_what_runs_for_a_session(self) -> None:
        pending: Deferred[None] = Deferred()
        reminded: list[Any] = []

        async def refresh(_: Any) -> None:
            await pending

        session = self.sessions.get_session("42")
        self.run_example("supervised", session=session, refresh=refresh, remind=reminded.append)
        self.server.advance(60)
        self.assertEqual(reminded, [session])
        stopping = Deferred.fromCoroutine(self.sessions.stop_session("42"))
        self.server.settle()
        self.successResultOf(stopping)
        # It was given to the Session, so it has ended with it.
        self.assertTrue(pending.called)


class TestingTests(SynchronousTestCase):
    """The tests of the guide to testing: they pass, and fail where the Channel is broken."""

    page: Path = DOCS / "testing.md"

    def run_cases(self, module: SimpleNamespace, case: str) -> tuple[int, list[str]]:
        """Run a TestCase; how many tests ran, and the names of those that failed."""
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(getattr(module, case)).run(result)
        failed = [test.id().rpartition(".")[2] for test, _ in (*result.failures, *result.errors)]
        return result.testsRun, sorted(failed)

    def test_they_pass(self) -> None:
        module = load(self.page, "test", "faults", __name__="guide")
        self.assertEqual(self.run_cases(module, "RoomTests"), (3, []))
        self.assertEqual(self.run_cases(module, "FaultTests"), (4, []))

    def test_they_notice(self) -> None:
        def break_it(method: str, do: Callable[..., Any]) -> list[str]:
            module = load(self.page, "test", __name__="guide")
            setattr(module.RoomChannel, method, do)
            return self.run_cases(module, "RoomTests")[1]

        self.assertEqual(break_it("join", lambda *_: None), ["test_a_minute_later", "test_a_refused_join"])
        self.assertEqual(break_it("handle_in", lambda *_: None), ["test_a_mention"])
        self.assertEqual(break_it("handle_info", lambda *_: None), ["test_a_minute_later"])
