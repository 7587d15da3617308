"""Presence in the whole server: the stock JavaScript client, the API, restarts, many users."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_twisted

from tests.integration.flow_process import FlowProcess, eventually
from tests.integration.test_npm_phoenix import NpmClient, npm_packages
from tests.integration.test_session_life import Phone, Run, Server, run, until

__all__ = ["npm_packages", "run"]

TOPIC = "users:online"
WINDOW = 2.0

Connect = Callable[..., NpmClient]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlowProcess]:
    with FlowProcess(tmp_path_factory.mktemp("presence"), f"--reconnect-window={WINDOW}") as server:
        yield server


@pytest.fixture
def connect() -> Iterator[Connect]:
    with ExitStack() as stack:

        def connect(
            server: FlowProcess, user_id: str, *, watches: bool = False, **payload: object
        ) -> NpmClient:
            client = stack.enter_context(NpmClient())
            client.do("connect", url=server.socket_url, params={"token": server.token(user_id)})
            client.expect("open")
            if watches:
                client.do("join", topic=TOPIC, presence=True)
                assert client.expect("join", topic=TOPIC)["status"] == "ok"
            client.join(user_id, payload)
            return client

        yield connect


def seen(client: NpmClient, user_id: str) -> list[tuple[str | None, str]] | None:
    """The devices and statuses of a user, as a client's Presence has them now; None for who is not there."""
    syncs = client.all("presence_sync", topic=TOPIC)
    found = syncs[-1]["state"].get(user_id) if syncs else None
    return found and [(meta["device"], meta["status"]) for meta in found["metas"]]


def sees(client: NpmClient, user_id: str, *metas: tuple[str | None, str]) -> None:
    """Wait until a client sees a user so."""
    eventually(lambda: seen(client, user_id) == (list(metas) or None), f"{user_id} is seen as {metas}")


def events(server: FlowProcess, user_id: str) -> list[str]:
    rows = server.sql("SELECT event FROM flow.presence_events WHERE user_id = %s ORDER BY id", user_id)
    return [event for (event,) in rows]


def statuses(server: FlowProcess, *user_ids: str) -> Any:
    status, answer = server.request("POST", "/api/presence/status", {"user_ids": list(user_ids)})
    assert status == 200, answer
    return answer["statuses"]


def ago(last_seen: str) -> float:
    assert last_seen.endswith("Z")
    return (datetime.now(UTC) - datetime.fromisoformat(last_seen)) / timedelta(seconds=1)


# --- the stock client ------------------------------------------------------------------------------


def test_two_users_with_two_devices(server: FlowProcess, connect: Connect) -> None:
    alice, bob = server.new_user(), server.new_user()
    watcher = connect(server, bob, watches=True, device="desk")
    sees(watcher, bob, ("desk", "online"))

    web = connect(server, alice, device="web")
    sees(watcher, alice, ("web", "online"))
    assert watcher.expect("presence_join", key=alice)["others"] == 0
    phone = connect(server, alice, watches=True, device="phone")
    sees(watcher, alice, ("web", "online"), ("phone", "online"))
    sees(phone, bob, ("desk", "online"))
    sees(phone, alice, ("web", "online"), ("phone", "online"))

    assert web.push(alice, "activity", {"status": "away"})["status"] == "ok"
    sees(watcher, alice, ("phone", "online"), ("web", "away"))
    assert statuses(server, alice)[alice]["status"] == "online"
    phone.do("disconnect")
    sees(watcher, alice, ("web", "away"))
    assert watcher.all("presence_leave", key=alice)[-1]["others"] == 1
    assert statuses(server, alice)[alice]["status"] == "away"

    # The last one drops, and its client comes back by itself.
    leaves = len(watcher.all("presence_leave", key=alice))
    web.do("drop")
    web.expect("close")
    web.expect("open")
    web.expect("join", topic=f"user:{alice}")
    sees(watcher, alice, ("web", "online"))
    eventually(lambda: events(server, alice) == ["online"], "the event is written")
    # A new connection begins as online: one update, and nobody was seen to go.
    assert [event["others"] for event in watcher.all("presence_leave", key=alice)[leaves:]] == [1]

    # This time it stays away.
    web.do("disconnect")
    left_at = time.time()
    watcher.round_trip()
    assert seen(watcher, alice) == [("web", "online")]
    sees(watcher, alice)
    assert time.time() - left_at > WINDOW - 0.5
    gone = [event for event in watcher.all("presence_leave", key=alice) if event["others"] == 0]
    assert len(gone) == 1
    eventually(lambda: events(server, alice) == ["online", "offline"], "the event is written")
    assert WINDOW - 1 < ago(statuses(server, alice)[alice]["last_seen"]) < 60
    [(row_status, recent)] = server.sql(
        "SELECT status, now() - last_seen < '1 min' FROM flow.presence WHERE user_id = %s", alice
    )
    assert (row_status, recent) == ("offline", True)
    assert events(server, bob) == ["online"]


def test_a_drop_and_a_return_with_the_same_device_are_no_news(server: FlowProcess, connect: Connect) -> None:
    alice, bob = server.new_user(), server.new_user()
    watcher = connect(server, bob, watches=True)
    web = connect(server, alice, device="web")
    sees(watcher, alice, ("web", "online"))
    for _ in range(3):
        web.do("drop")
        web.expect("close")
        web.expect("join", topic=f"user:{alice}")
    # Somebody else comes after that, so whatever there was to tell of alice has been told.
    carol = server.new_user()
    connect(server, carol)
    sees(watcher, carol, (None, "online"))
    assert watcher.all("presence_leave", key=alice) == []
    assert len(watcher.all("presence_join", key=alice)) == 1
    assert events(server, alice) == ["online"]


# --- the API ---------------------------------------------------------------------------------------


def test_who_is_on_a_topic(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    connect(server, user, device="web")

    def get(path: str) -> tuple[int, Any]:
        return server.request("GET", f"/api/presence/{path}")

    assert get(TOPIC)[0] == 401
    ask = authorized(server)
    for encoded in (TOPIC, quote(TOPIC, safe="")):
        status, answer = ask(f"/api/presence/{encoded}")
        assert (status, answer["topic"], answer["next"]) == (200, TOPIC, None)
        [meta] = answer["presences"][user]["metas"]
        assert (meta["device"], meta["status"]) == ("web", "online")
        assert abs(meta["online_at"] - time.time()) < 60
    for topic in ("room:1", "room/1", "röm 1", "status", "a%2Fb"):
        status, answer = ask(f"/api/presence/{quote(topic, safe='')}")
        assert (status, answer) == (200, {"topic": topic, "presences": {}, "next": None})
    status, answer = ask(f"/api/presence/{TOPIC}?limit=1&after=%00")
    assert (status, len(answer["presences"])) == (200, 1)
    for parameters in ("limit=0", "limit=1001", "limit=x"):
        status, answer = ask(f"/api/presence/{TOPIC}?{parameters}")
        assert (status, answer["error"]) == (422, "invalid_parameter")


def authorized(server: FlowProcess) -> Callable[[str], tuple[int, Any]]:
    def ask(path: str) -> tuple[int, Any]:
        request = urllib.request.Request(server.admin_url + path)
        request.add_header("Authorization", f"Bearer {server.api_key}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as problem:
            with problem:
                return problem.code, json.load(problem)

    return ask


def test_statuses_of_500_and_of_one_more(server: FlowProcess, connect: Connect) -> None:
    user = server.new_user()
    connect(server, user)
    unknown = [f"nobody-{number}" for number in range(499)]
    answer = statuses(server, user, *unknown)
    assert len(answer) == 500
    assert answer[user]["status"] == "online"
    assert abs(ago(answer[user]["last_seen"])) < 10
    assert all(answer[name] == {"status": "offline", "last_seen": None} for name in unknown)
    status, problem = server.request("POST", "/api/presence/status", {"user_ids": [user, *unknown, "x"]})
    assert (status, problem["error"]) == (413, "too_many_users")
    assert "501" in problem["detail"]
    wrong: tuple[Any, ...] = (
        {},
        {"user_ids": []},
        {"user_ids": ["a b"]},
        {"user_ids": "x"},
        {"users": ["x"]},
    )
    for body in wrong:
        status, problem = server.request("POST", "/api/presence/status", body)
        assert (status, problem["error"]) == (422, "invalid_payload"), body


# --- restarts --------------------------------------------------------------------------------------


def test_after_kill_9_those_who_do_not_come_back_are_offline_once(
    tmp_path: Path, database_url: str, connect: Connect
) -> None:
    """The rule: taken for dead after 10 s of silence, then the window; who comes back is not mentioned."""
    with FlowProcess(tmp_path, f"--reconnect-window={WINDOW}", database=database_url) as server:
        stays, goes, away = (server.new_user() for _ in range(3))
        staying, going = connect(server, stays, device="web"), connect(server, goes)
        connect(server, away).push(away, "activity", {"status": "away"})
        for user in (stays, goes, away):
            eventually(lambda user=user: events(server, user) == ["online"], f"{user} is online")  # type: ignore[misc]
        [(status,)] = server.sql("SELECT status FROM flow.presence WHERE user_id = %s", away)
        assert status == "away"
        going.close()
        server.kill()
        killed_at = time.time()
        server.start()
        staying.expect("join", topic=f"user:{stays}")
        assert statuses(server, goes)[goes]["status"] == "online"
        eventually(lambda: events(server, goes) == ["online", "offline"], "it is offline", 30)
        assert time.time() - killed_at > WINDOW
        assert statuses(server, goes)[goes]["status"] == "offline"
        assert ago(statuses(server, goes)[goes]["last_seen"]) > WINDOW
        assert (events(server, stays), statuses(server, stays)[stays]["status"]) == (["online"], "online")
        # Another one goes: by then whatever there was to tell of the others has been told.
        connect(server, last := server.new_user()).do("disconnect")
        eventually(lambda: events(server, last) == ["online", "offline"], "the last one is offline")
        assert events(server, goes) == ["online", "offline"]
        assert events(server, stays) == ["online"]


def test_a_restart_that_is_quick_leaves_no_event(tmp_path: Path, database_url: str, connect: Connect) -> None:
    with FlowProcess(tmp_path, "--reconnect-window=20", database=database_url) as server:
        user = server.new_user()
        client = connect(server, user)
        eventually(lambda: events(server, user) == ["online"], "it is online")
        server.stop()
        [(expires,)] = server.sql("SELECT expires_at > now() FROM flow.user_presence")
        assert expires
        server.start()
        client.expect("join", topic=f"user:{user}")
        eventually(
            lambda: server.sql("SELECT expires_at IS NULL FROM flow.user_presence") == [(True,)],
            "it is told of again",
        )
        assert events(server, user) == ["online"]
        assert server.sql("SELECT count(*) FROM flow.presence_instances") == [(1,)]


def test_after_a_long_stop_everybody_has_been_offline(
    tmp_path: Path, database_url: str, connect: Connect
) -> None:
    with FlowProcess(tmp_path, "--reconnect-window=0.2", database=database_url) as server:
        stays, goes = server.new_user(), server.new_user()
        client, other = connect(server, stays), connect(server, goes)
        for user in (stays, goes):
            eventually(lambda user=user: events(server, user) == ["online"], f"{user} is online")  # type: ignore[misc]
        other.close()
        server.stop()
        eventually(
            lambda: server.sql("SELECT DISTINCT status FROM flow.presence") == [("offline",)],
            "their time is up",
        )
        server.start()
        client.expect("join", topic=f"user:{stays}")
        eventually(lambda: events(server, stays) == ["online", "offline", "online"], "it is written")
        eventually(lambda: events(server, goes) == ["online", "offline"], "it is written")


# --- many users ------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_state_of_ten_thousand_users_reaches_a_client_that_reads(run: Run) -> None:
    """It is larger than all that may wait for one connection."""
    async with run(outbox_limit=262_144) as server:
        for number in range(10_000):
            meta = {"online_at": 1_795_336_168, "device": "web", "status": "online"}
            server.presence.track(TOPIC, f"user-{number}", meta, owner=number)
        phone = await server.phone()
        await until(lambda: len(bytes(server.online.state())) > 1_000_000)
        for _ in range(100):
            await server.notifications.push_notification("alice", "note", {"text": "x" * 1_000})
        # What was sent before fills the transport: the state has to wait.
        phone.raw.stop_reading()
        await ask_join(phone, "user:alice", "1", last_seq=0)
        await ask_join(phone, TOPIC, "2")
        await until(lambda: {"user:alice", TOPIC} <= topics(server))
        phone.raw.go_on_reading()
        found: Any = None
        while found is None:
            event, payload = await phone.event()
            if event == "presence_state":
                found = payload
        assert len(found) == 10_000
        event, payload = await next_diff(phone)
        assert list(payload["joins"]) == ["alice"]
        await phone.leave()


def topics(server: Server) -> set[str]:
    session = server.sessions.get_session("alice")
    return {topic for socket in session.sockets for topic in socket.topics} if session else set()


async def ask_join(phone: Phone, topic: str, ref: str, **payload: object) -> None:
    phone.raw.text(json.dumps([ref, ref, topic, "phx_join", payload]))


async def next_diff(phone: Phone) -> tuple[str, Any]:
    while True:
        event, payload = await phone.event()
        if event == "presence_diff":
            return event, payload


@pytest_twisted.ensureDeferred
async def test_the_server_in_a_program_of_ones_own(run: Run) -> None:
    async with run() as server:
        phone = await server.phone()
        await phone.join(device="web")
        [meta] = server.presence.list(TOPIC)["alice"]["metas"]
        assert meta["device"] == "web"
        assert (await server.online.statuses(["alice", "bob"]))["alice"].status == "online"
        assert server.metrics.registry.get_sample_value("flowtx_users_online") == 1
        await phone.leave()
