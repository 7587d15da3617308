"""Delivery to real clients: windows, receipts, backlogs, marks and subscriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, gatherResults

from flowtx.notifications.reader import WINDOW, WINDOW_BYTES
from tests.integration.inbox_server import InboxServer, Member, fill, program, running, until


async def delivered(server: InboxServer, user_id: str = "alice") -> list[int]:
    """The seqs that are known to have been received."""
    rows = await server.rows(
        "SELECT seq FROM flow.notifications WHERE user_id = %s AND delivered_at IS NOT NULL ORDER BY seq",
        user_id,
    )
    return [seq for (seq,) in rows]


async def until_delivered(server: InboxServer, seqs: list[int], *members: Member) -> None:
    """Wait until these are known to have been received, by members who go on to answer meanwhile."""

    async def are() -> bool:
        for member in members:
            await member.ask("activity")
        return await delivered(server) == seqs

    await until(are)


async def joined(server: InboxServer, user_id: str = "alice", **payload: object) -> Member:
    member = await server.member(user_id)
    await member.join(**payload)
    return member


def proves_by_pong(member: Member) -> None:
    member.answer()


def proves_by_ack(member: Member) -> None:
    member.raw.text(f'["1","9","{member.topic}","ack",{{"seq":{member.seqs[-1]}}}]')


# Windows


@pytest.mark.parametrize("how", ["pong", "ack"])
@pytest_twisted.ensureDeferred
async def test_a_slow_client_is_given_a_window_and_others_everything(
    how: str, database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as server:
        slow, quick = await joined(server), await joined(server)
        slow.answers = False
        await fill(server.database, "alice", 200)
        await quick.seen(200)
        assert quick.seqs == list(range(1, 201))
        await slow.seen(WINDOW)
        await slow.ask("activity")
        assert slow.seqs == list(range(1, WINDOW + 1))
        await until_delivered(server, list(range(1, 201)), quick)
        if how == "pong":
            slow.answer()
        else:
            while slow.seqs[-1] < 200:
                before = len(slow.seqs)
                await slow.ask("ack", seq=slow.seqs[-1])
                assert len(slow.seqs) <= before + WINDOW
        await slow.seen(200)
        assert slow.seqs == list(range(1, 201))
        await server.post("alice")
        for member in (slow, quick):
            await member.seen(201)
            await member.leave()


@pytest_twisted.ensureDeferred
async def test_a_window_is_bounded_in_bytes(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        slow = await joined(server)
        slow.answers = False
        large = '"' + "x" * 60_000 + '"'
        await fill(server.database, "alice", 20, large)
        await slow.seen(1)
        for _ in range(10):
            await slow.ask("list_notifications", limit=1)
        # The one that fills it may go beyond.
        assert WINDOW_BYTES <= sum(len(large) for _ in slow.seqs) < WINDOW_BYTES + len(large)
        slow.answer()
        await slow.seen(20)
        assert slow.seqs == list(range(1, 21))
        await slow.leave()


@pytest_twisted.ensureDeferred
async def test_a_client_that_stops_reading_keeps_nobody_waiting(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        stuck, quick = await joined(server), await joined(server)
        other = await joined(server, "bob")
        stuck.raw.stop_reading()
        await fill(server.database, "alice", 300, '"' + "x" * 5_000 + '"')
        await quick.seen(300)
        assert quick.seqs == list(range(1, 301))
        await server.post("bob")
        await other.seen(1)
        session = server.sessions.get_session("alice")
        assert session is not None
        assert len(session.sockets) == 2
        stuck.raw.go_on_reading()
        await stuck.seen(300)
        assert stuck.seqs == list(range(1, 301))
        for member in (stuck, quick, other):
            await member.leave()


@pytest_twisted.ensureDeferred
async def test_a_window_that_is_lost_is_given_again(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        slow = await joined(server)
        slow.answers = False
        await fill(server.database, "alice", 100)
        await slow.seen(WINDOW)
        await slow.leave()
        assert await delivered(server) == []
        again = await joined(server, last_seq=10)
        await again.seen(100)
        assert again.seqs == list(range(11, 101))
        await until_delivered(server, list(range(1, 101)), again)
        await again.leave()


@pytest_twisted.ensureDeferred
async def test_a_pong_that_nobody_asked_for_proves_nothing(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        member = await joined(server)
        member.answers = False
        await fill(server.database, "alice", 3)
        await member.seen(3)
        for payload in (b"", b"x", b"-1", b"9" * 19, b"9" * 125, "²".encode(), b"99"):
            member.pings = [payload]
            member.answer()
            member.answers = False
        await member.ask("activity")
        assert await member.refusal("ack", seq=99) == {
            "reason": "invalid_payload",
            "detail": "seq: got 99; the latest is 3",
        }
        await member.ask("ack", seq=1)
        await until_delivered(server, [1])
        await member.leave()


# Receipts


@pytest.mark.parametrize("prove", [proves_by_pong, proves_by_ack])
@pytest_twisted.ensureDeferred
async def test_a_receipt_is_kept_but_not_for_what_was_filtered(
    prove: Any, database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as server:
        member = await joined(server)
        member.answers = False
        assert await member.ask("subscribe", types=["deal.*"]) == {"types": ["deal.*"]}
        for type_ in ("deal.won", "task.due", "deal.lost", "dealer"):
            await server.post("alice", type=type_)
        await member.seen(3)
        assert member.seqs == [1, 3]
        assert await delivered(server) == []
        prove(member)
        # The first Ping may have asked for the first one only.
        await until_delivered(server, [1, 3], member)
        await member.leave()


# Backlogs


@pytest_twisted.ensureDeferred
async def test_a_return_gives_the_rest_or_what_is_unread(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        await fill(server.database, "alice", 150)
        member = await joined(server)
        await member.seen(150)
        ids = [entry["id"] for event, entry in member.events if event == "notification"]
        assert await member.ask("mark_read", ids=ids[::2]) == {"unread": 75}
        await member.leave()
        after = await server.member()
        response = await after.join(last_seq=100)
        assert (response["unread"], response["last_seq"], response.get("truncated")) == (75, 150, None)
        await after.seen(150)
        unread = await joined(server)
        await unread.seen(150)
        await server.post("alice")
        for member, expected in (
            (after, [*range(101, 151), 151]),
            (unread, [*range(2, 151, 2), 151]),
        ):
            await member.seen(151)
            assert member.seqs == expected
            await member.leave()


@pytest.mark.parametrize("payload", [{}, {"last_seq": 0}, {"last_seq": 3_999}])
@pytest_twisted.ensureDeferred
async def test_a_backlog_of_5000_with_pushes_in_between(
    payload: dict[str, int], database_url: str, tmp_path: Path
) -> None:
    async with running(database_url, tmp_path) as server:
        await fill(server.database, "alice", 5_000)
        member = await server.member()
        over = False

        async def push_on() -> int:
            seq = 0
            while not over:
                seq = (await server.notifications.push_notification("alice", "t", {})).seq
            return seq

        pushing = Deferred.fromCoroutine(push_on())
        try:
            response = await member.join(**payload)
            await member.seen(5_000)
        finally:
            over = True
            last = await pushing
        assert response["truncated"]
        await member.seen(last)
        first = member.seqs[0]
        # 1,000 at the most, of those that there were at the join.
        assert first == response["last_seq"] - 999
        assert member.seqs == list(range(first, last + 1))
        await member.leave()


@pytest_twisted.ensureDeferred
async def test_a_client_5000_behind_catches_up(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        member, quick = await joined(server), await joined(server)
        member.answers = False
        await fill(server.database, "alice", 5_000)
        await quick.seen(5_000)
        await member.seen(WINDOW)
        member.answer()
        await server.post("alice")
        for one in (member, quick):
            await one.seen(5_001)
            assert one.seqs == list(range(1, 5_002))
            await one.leave()


# Marks


@pytest_twisted.ensureDeferred
async def test_marks_from_several_connections_at_once(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        await fill(server.database, "alice", 300)
        members = [await joined(server, last_seq=0) for _ in range(4)]
        for member in members:
            await member.seen(300)
        ids = [entry["id"] for event, entry in members[0].events if event == "notification"]
        asked: list[dict[str, Any]] = [
            {"ids": ids[::3]},
            {"up_to_seq": 120},
            {"ids": ids[100:200]},
            {"ids": [*ids[::3], ids[299]]},
        ]
        pushing = server.post("alice")
        answers = await gatherResults(
            [
                Deferred.fromCoroutine(member.ask("mark_read", **marks))
                for member, marks in zip(members, asked, strict=True)
            ]
        )
        await pushing
        read = {n for n in range(300) if n % 3 == 0 or n < 200 or n == 299}
        assert min(answer["unread"] for answer in answers) in {300 - len(read), 301 - len(read)}
        status, listed = await server.ask("GET", "/api/users/alice/notifications?unread=1")
        assert (status, listed["unread"]) == (200, 301 - len(read))
        assert [entry["seq"] for entry in listed["notifications"]] == [
            301,
            *(n + 1 for n in reversed(range(300)) if n not in read),
        ]
        for member, own in zip(members, asked, strict=True):
            told = [payload for event, payload in member.events if event == "notifications_read"]
            while len(told) < len(asked) - 1:
                told.append(await member.told("notifications_read"))
            for payload in told:
                payload.pop("unread")
            assert sorted(told, key=str) == sorted((marks for marks in asked if marks is not own), key=str)
        await members[0].ask("mark_read", all=True)
        assert await members[1].told("notifications_read") == {"all": True, "unread": 0}
        assert await server.ask("POST", "/api/users/alice/notifications/read", {"up_to_seq": 5}) == (
            200,
            {"unread": 0},
        )
        # By HTTP, all of the connections are others.
        for member in members:
            assert await member.told("notifications_read") is not None
            await member.leave()


# Subscriptions


@pytest_twisted.ensureDeferred
async def test_subscriptions_survive_a_return_and_a_restart(database_url: str, tmp_path: Path) -> None:
    async with running(database_url, tmp_path) as server:
        member = await joined(server)
        assert await member.ask("subscribe", types=["deal.*", "hello"]) == {"types": ["deal.*", "hello"]}
        assert await member.ask("unsubscribe", types=["hello", "none"]) == {"types": ["deal.*"]}
        status, session = await server.ask("GET", "/api/sessions/alice")
        assert (status, session["notification_subscriptions"]) == (200, ["deal.*"])
        await member.leave()
        member = await joined(server)
        await live(server, member, ["deal.won"], ["task.due"])
        await member.leave()
    async with running(database_url, tmp_path) as server:
        member = await joined(server, last_seq=2)
        status, session = await server.ask("GET", "/api/sessions/alice")
        assert session["notification_subscriptions"] == ["deal.*"]
        other = await joined(server, last_seq=2)
        await live(server, member, ["deal.lost"], ["task.due", "dealer", "Deal.won"])
        # Of another connection of the user, for both.
        assert await other.ask("unsubscribe", types=["deal.*"]) == {"types": []}
        await live(server, member, ["task.due", "deal.won"], [])
        status, session = await server.ask("GET", "/api/sessions/alice")
        assert session["notification_subscriptions"] == []
        await member.leave()
        await other.leave()


async def live(server: InboxServer, member: Member, given: list[str], filtered: list[str]) -> None:
    """Push some types, and see which ones come."""
    before = len(member.events)
    with program(server.database_url) as caller:
        for type_ in (*filtered, *given):
            caller.run("SELECT flow.notify('alice', %s, '{}')", type_)
        caller.connection.commit()
        last = caller.run("SELECT last_seq FROM flow.inboxes WHERE user_id = 'alice'")[0][0]
    await member.seen(last)
    shown = [entry["type"] for event, entry in member.events[before:] if event == "notification"]
    assert shown == given
