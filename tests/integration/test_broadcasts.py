"""Broadcasts by HTTP and by Python in the whole server: who gets them, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest_twisted

from flowtx.sessions.machine import State
from tests.integration.member import Answer, Event, Member, ask
from tests.integration.test_session_life import Run, Server, run, until

__all__ = ["run"]

SALES = "group:sales"
GOOD = {"topic": SALES, "event": "news", "payload": {"n": 1}}


async def post(server: Server, body: object, **options: Any) -> Answer:
    return await ask(server, "POST", "/api/broadcasts", body, **options)


@pytest_twisted.ensureDeferred
async def test_each_form_reaches_exactly_those_it_names(run: Run) -> None:
    async with run() as server:
        desk = await Member.connect(server, "alice", "user:alice", SALES, groups=["sales"])
        phone = await Member.connect(server, "alice", "user:alice")
        bob = await Member.connect(server, "bob", "user:bob", "users:online")
        silent = await Member.connect(server, "bob")  # which has joined nothing
        members = (desk, phone, bob, silent)

        async def heard(body: dict[str, object], delivered: int) -> list[list[Event]]:
            assert await post(server, {"event": "news", "payload": {"n": 1}, **body}) == (
                202,
                {"delivered": delivered},
            )
            return [[event for event in await member.events() if event.event == "news"] for member in members]

        def news(topic: str) -> list[Event]:
            return [Event(topic, "news", {"n": 1})]

        await heard({"topic": "group:nobody"}, 0)
        assert await heard({"topic": SALES}, 1) == [news(SALES), [], [], []]
        assert await heard({"topic": "user:alice"}, 2) == [news("user:alice")] * 2 + [[], []]
        assert await heard({"topic": "users:online"}, 1) == [[], [], news("users:online"), []]
        some = ["alice", "carol", "alice"]
        assert await heard({"user_ids": some}, 2) == [news("user:alice")] * 2 + [[], []]
        both = [news("user:alice")] * 2 + [news("user:bob"), []]
        assert await heard({"user_ids": ["bob", "alice"]}, 3) == both
        assert await heard({"everyone": True}, 3) == both
        for member in members:
            await member.leave()


@pytest_twisted.ensureDeferred
async def test_by_python(run: Run) -> None:
    async with run() as server:
        alice = await Member.connect(server, "alice", "user:alice")
        bob = await Member.connect(server, "bob", "user:bob")
        assert server.pubsub.broadcast("user:alice", "topic", {"n": 1}) == 1
        assert server.sessions.broadcast_to_users(["alice", "carol"], "users", {"n": 2}) == 1
        assert server.sessions.broadcast_to_all("all", {"n": 3}) == 2
        assert [event.event for event in await alice.events()] == ["topic", "users", "all"]
        assert await bob.events() == [Event("user:bob", "all", {"n": 3})]
        for member in (alice, bob):
            await member.leave()


@pytest_twisted.ensureDeferred
async def test_who_is_back_within_the_window_gets_what_was_for_everyone(run: Run) -> None:
    async with run() as server:
        alice = await Member.connect(server, "alice", "user:alice")
        await alice.leave()
        session = server.sessions.get_session("alice")
        assert session is not None
        await until(lambda: session.state is State.AWAY)
        for body in ({"everyone": True}, {"user_ids": ["alice"]}):
            answer = await post(server, {"event": "news", "payload": body, **body})
            assert answer == (202, {"delivered": 1})
        alice = await Member.connect(server, "alice", "user:alice")
        payloads = [event.payload for event in await alice.events()]
        assert payloads == [{"everyone": True}, {"user_ids": ["alice"]}]
        await alice.leave()


@pytest_twisted.ensureDeferred
async def test_payloads_arrive_as_they_were_sent(run: Run) -> None:
    async with run() as server:
        alice = await Member.connect(server, "alice", "user:alice")
        for payload in (
            {},
            {"text": "ż 😀 \u2028 \x00 </script> '; DROP TABLE flow.users; --"},
            {"numbers": [0, -1, 1.5, 2**53, 1e300], "none": None, "yes": True},
            {"x": "y" * (65_536 - len('{"x": ""}'))},
            {"many": [0] * 20_000},
        ):
            answer = await post(server, {"topic": "user:alice", "event": "x" * 128, "payload": payload})
            assert answer == (202, {"delivered": 1})
            assert await alice.event() == Event("user:alice", "x" * 128, payload)
        # White space, which some clients cannot read, is taken out.
        spaced = b'{"topic": "user:alice", "event": "e", "payload": {"a" : [1 , 2]}}'
        assert (await post(server, spaced)).status == 202
        frame = await alice.raw.message()
        assert frame.payload.endswith(b',null,"user:alice","e",{"a":[1,2]}]')
        await alice.leave()


@pytest_twisted.ensureDeferred
async def test_ten_thousand_users_in_a_call(run: Run) -> None:
    async with run() as server:
        alice = await Member.connect(server, "alice", "user:alice")
        users = [f"user-{number}" for number in range(9_999)]
        body = {"user_ids": [*users, "alice"], "event": "news", "payload": {}}
        assert await post(server, body) == (202, {"delivered": 1})
        assert await alice.events() == [Event("user:alice", "news", {})]
        answer = await post(server, {**body, "user_ids": [*users, "alice", "bob"]})
        assert (answer.status, answer.body["error"]) == (413, "too_many_users")
        assert await alice.events() == []
        await alice.leave()


def without(*names: str) -> dict[str, object]:
    return {name: value for name, value in GOOD.items() if name not in names}


def raw(payload: bytes) -> bytes:
    return b'{"topic":"t","event":"e","payload":%b}' % payload


BAD: list[tuple[object, str]] = [
    ([], "expected `object`"),
    (b"", ""),
    (b"{", ""),
    (b"\xff", ""),
    (without("event"), "event: "),
    (without("payload"), "payload: "),
    (without("topic"), "exactly one"),
    ({**GOOD, "everyone": True}, "exactly one"),
    ({**GOOD, "user_ids": ["alice"]}, "exactly one"),
    ({**without("topic"), "user_ids": ["alice"], "everyone": True}, "exactly one"),
    ({**GOOD, "more": 1}, "more: "),
    ({**GOOD, "topic": ""}, "topic: "),
    ({**GOOD, "topic": "x" * 1_025}, "topic: "),
    ({**GOOD, "topic": "a\nb"}, "topic: "),
    ({**GOOD, "topic": 7}, "topic: "),
    ({**GOOD, "event": ""}, "event: "),
    ({**GOOD, "event": "x" * 129}, "event: "),
    ({**GOOD, "event": "a\x00"}, "event: "),
    ({**GOOD, "event": None}, "event: "),
    ({**GOOD, "event": "phx_close"}, "event: "),
    ({**GOOD, "event": "presence_state"}, "event: "),
    ({**without("topic"), "user_ids": ["alice"], "event": "phx_error"}, "event: "),
    ({**without("topic"), "everyone": True, "event": "presence_diff"}, "event: "),
    ({**without("topic"), "user_ids": []}, "user_ids: "),
    ({**without("topic"), "user_ids": "alice"}, "user_ids: "),
    ({**without("topic"), "user_ids": ["alice", "a b"]}, "user_ids[1]: "),
    ({**without("topic"), "user_ids": ["alice", "x" * 129]}, "user_ids[1]: "),
    ({**without("topic"), "user_ids": ["*"]}, "user_ids[0]: "),
    ({**without("topic"), "user_ids": [None]}, "user_ids[0]: "),
    ({**without("topic"), "everyone": False}, "everyone: "),
    ({**without("topic"), "everyone": "yes"}, "everyone: "),
    ({**GOOD, "payload": []}, "payload: "),
    ({**GOOD, "payload": "text"}, "payload: "),
    ({**GOOD, "payload": None}, "payload: "),
    ({**GOOD, "payload": 7}, "payload: "),
    (raw(b'{"x":"' + b"y" * 65_536 + b'"}'), "payload: got 65544 bytes"),
    (raw(b'{"a":' * 33 + b"1" + b"}" * 33), "payload: nested deeper"),
    (raw(b'{"a":' * 100_000 + b"1" + b"}" * 100_000), ""),
    (raw(b'{"a":NaN}'), "payload.a: "),
    (raw(b'{"a":1e999}'), "payload: "),
    (raw(b'{"a":"\\ud800"}'), "payload.a: "),
    (raw(b"{} {}"), ""),
]


@pytest_twisted.ensureDeferred
async def test_bad_input_in_every_field(run: Run) -> None:
    async with run() as server:
        alice = await Member.connect(server, "alice", "user:alice", SALES, groups=["sales"])
        for body, detail in BAD:
            answer = await post(server, body)
            shown = repr(body)[:120]
            assert (answer.status, answer.body["error"]) == (422, "invalid_payload"), (shown, answer)
            assert answer.body["detail"].startswith(detail) or "exactly one" in detail, (shown, answer)
            assert len(answer.body["detail"]) <= 512, shown
        answer = await post(server, GOOD, headers={"Content-Type": "application/json"})
        assert (answer.status, answer.body["error"]) == (401, "unauthorized")
        assert (await ask(server, "GET", "/api/broadcasts")).status == 405
        assert await alice.events() == []
        assert (await post(server, raw(b'{"a":' * 32 + b"1" + b"}" * 32))).status == 202
        await alice.leave()
