"""An application of its own in a running server, ``twistd flow --app``, with the stock JavaScript client."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.clients.driver import Client
from tests.integration.flow_process import TWISTD, FlowProcess, eventually, free_port, run

CLIENTS = Path(__file__).parents[1] / "clients"

APPLICATION = """
from flowtx import Broadcast, Channel, Router, Stop, error, ok


class RoomChannel(Channel):
    intercept = ("whisper",)

    def __init__(self, services):
        self.services = services

    async def join(self, payload):
        if payload.get("password") == "wrong":
            return error({"reason": "wrong password"})
        self.assigns["messages"] = 0
        self.subscribe("news")
        self.send_info("after_join")
        return ok({"you": self.user_id})

    async def handle_in(self, event, payload):
        self.assigns["messages"] += 1
        match event:
            case "echo":
                return ok({"payload": payload, "messages": self.assigns["messages"]})
            case "shout" | "whisper":
                self.broadcast(event, payload)
            case "others":
                self.broadcast_from("shout", payload)
            case "later":
                self.send_after(0.05, self.ref)
            case "news":
                self.services.pubsub.broadcast("news", "flash", payload)
            case "notify":
                pushed = await self.services.notifications.push_notification(self.user_id, "note", payload)
                return ok({"seq": pushed.seq})
            case "crash":
                raise RuntimeError("the room is on fire")
            case "illegal":
                return {"not": "a reply"}
            case "stop":
                return Stop("normal", ok({"bye": True}))
        return None

    def handle_out(self, event, payload):
        if self.user_id in payload["to"]:
            self.push(event, {"text": payload["text"], "for": self.user_id})

    def handle_info(self, message):
        if isinstance(message, Broadcast):
            self.push("news", {"event": message.event, "payload": message.payload})
        elif message == "after_join":
            self.push("welcome", {})
        else:
            self.reply(message, ok({"late": True}))


def make_router(services):
    return Router().channel("room:*", lambda: RoomChannel(services))
"""


class Member(Client):
    """npm ``phoenix`` in a process of its own, in the room."""

    TOPIC = "room:1"

    def __init__(self) -> None:
        super().__init__(["node", str(CLIENTS / "phoenix_client.mjs")])

    def push(self, event: str, payload: object = None) -> int:
        """Push an event; the id of its reply."""
        number = len(self.all("sent"))
        self.do("push", topic=self.TOPIC, event=event, payload=payload or {}, id=number)
        return number

    def ask(self, event: str, payload: object = None) -> Any:
        """Push an event; its reply."""
        return self.expect("reply", id=self.push(event, payload))

    def heard(self, event: str) -> list[Any]:
        """The payloads of an event that have come by now."""
        self.do("ping")
        self.expect("pong")
        return [message["payload"] for message in self.all("message", topic=self.TOPIC, event=event)]


@pytest.fixture(scope="module", autouse=True)
def npm_packages() -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("there is no node or npm here")
    if not (CLIENTS / "node_modules" / "phoenix").exists():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=CLIENTS, check=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    directory = tmp_path_factory.mktemp("app")
    (directory / "crm_rooms.py").write_text(APPLICATION)
    server = FlowProcess(directory, "--app=crm_rooms:make_router", "--users-query=claims")
    server.start()
    yield server
    # Not `stop`, which takes a traceback in the log for a fault: here are crashes on purpose.
    server.kill()


@pytest.fixture
def join(server: FlowProcess) -> Iterator[Callable[[str], Member]]:
    """Makes members who have joined the room; they end with the test."""
    with ExitStack() as stack:

        def join(user_id: str) -> Member:
            member = stack.enter_context(Member())
            member.do("connect", url=server.socket_url, params={"token": server.token(user_id)})
            member.expect("open")
            member.do("join", topic=Member.TOPIC)
            answer = member.expect("join", topic=Member.TOPIC)
            assert (answer["status"], answer["response"]) == ("ok", {"you": user_id})
            return member

        yield join


def test_join_push_and_reply(join: Callable[[str], Member]) -> None:
    alice = join("alice")
    alice.expect("message", event="welcome")
    assert alice.ask("echo", {"n": 1})["response"] == {"payload": {"n": 1}, "messages": 1}
    assert alice.ask("echo", {"n": 2})["response"] == {"payload": {"n": 2}, "messages": 2}
    assert alice.ask("later")["response"] == {"late": True}


def test_a_join_that_is_refused(join: Callable[[str], Member]) -> None:
    alice = join("alice")
    alice.do("join", topic="room:2", payload={"password": "wrong"})
    answer = alice.expect("join", topic="room:2")
    assert (answer["status"], answer["response"]) == ("error", {"reason": "wrong password"})


def test_broadcasts(join: Callable[[str], Member]) -> None:
    alice, bob = join("alice"), join("bob")
    alice.push("shout", {"n": 1})
    alice.push("others", {"n": 2})
    alice.push("shout", {"n": 3})
    bob.expect("message", event="shout", ref=None)
    assert alice.ask("echo")["status"] == "ok"
    assert alice.heard("shout") == [{"n": 1}, {"n": 3}]
    assert bob.heard("shout") == [{"n": 1}, {"n": 2}, {"n": 3}]


def test_broadcasts_that_are_intercepted(join: Callable[[str], Member]) -> None:
    alice, bob, carol = join("alice"), join("bob"), join("carol")
    alice.push("whisper", {"to": ["bob", "carol"], "text": "psst"})
    alice.push("shout", {"n": 1})
    for member, whispers in ((alice, 0), (bob, 1), (carol, 1)):
        member.expect("message", event="shout")
        assert len(member.heard("whisper")) == whispers
    assert bob.heard("whisper") == [{"text": "psst", "for": "bob"}]
    assert carol.heard("whisper") == [{"text": "psst", "for": "carol"}]


def test_what_happens_on_another_topic(join: Callable[[str], Member]) -> None:
    alice, bob = join("alice"), join("bob")
    alice.push("news", {"n": 1})
    for member in (alice, bob):
        message = member.expect("message", event="news")
        assert message["payload"] == {"event": "flash", "payload": {"n": 1}}


def test_a_notification_from_a_channel(join: Callable[[str], Member]) -> None:
    dave = join("dave")
    dave.do("join", topic="user:dave")
    dave.expect("join", topic="user:dave")
    assert dave.ask("notify", {"deal": 7})["response"] == {"seq": 1}
    assert dave.expect("notification")["notification"]["payload"] == {"deal": 7}


@pytest.mark.parametrize(
    ("event", "logged"),
    [
        ("crash", "RuntimeError: the room is on fire"),
        ("illegal", "handle_in returned dict; it may return None, ok(…), error(…), a Reply or a Stop"),
    ],
)
def test_a_crash_ends_that_channel_alone_and_its_client_joins_again(
    server: FlowProcess, join: Callable[[str], Member], event: str, logged: str
) -> None:
    alice, bob = join("alice"), join("bob")
    alice.do("join", topic="room:2")
    alice.expect("join", topic="room:2")
    alice.push(event)
    error = alice.expect("message", topic=Member.TOPIC, event="phx_error")
    assert error["payload"] == {"reason": "channel_crash"}
    assert alice.expect("join", topic=Member.TOPIC)["status"] == "ok"
    assert alice.ask("echo")["response"]["messages"] == 1
    assert alice.all("message", topic="room:2", event="phx_error") == []
    assert bob.heard("phx_error") == []
    assert bob.ask("echo")["response"]["messages"] == 1
    eventually(lambda: server.log.count(logged) == 1, "the crash is logged, once")


def test_a_channel_that_stops_is_not_joined_again(join: Callable[[str], Member]) -> None:
    alice = join("alice")
    assert alice.ask("stop")["response"] == {"bye": True}
    alice.expect("message", topic=Member.TOPIC, event="phx_close")
    assert len(alice.all("join", topic=Member.TOPIC)) == 1


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import nosuch", "cannot be imported: ModuleNotFoundError: No module named 'nosuch'"),
        ("router = None", "is of type NoneType; it takes a Router"),
        (
            "from flowtx import Channel, Router\nrouter = Router().channel('user:*', Channel)",
            "which are flowtx's own",
        ),
        ("def router(services): return services.nosuch", "router failed: AttributeError"),
    ],
)
def test_an_app_that_cannot_be_used_is_one_line_and_exit_1(
    tmp_path: Path, source: str, expected: str
) -> None:
    (tmp_path / "crm_broken.py").write_text(source)
    command = [
        *TWISTD,
        "--nodaemon",
        "--pidfile=",
        "flow",
        "--app=crm_broken:router",
        f"--listen=tcp:{free_port()}:interface=127.0.0.1",
        f"--admin=tcp:{free_port()}:interface=127.0.0.1",
    ]
    outcome = run(command, tmp_path)
    assert outcome.status == 1, outcome
    [line] = outcome.stderr.splitlines()
    assert line.startswith("flowtx: --app: ")
    assert expected in line
