"""What every store of the history must do; run against the one in memory and the one in PostgreSQL."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from flowtx.interfaces import FinishedSession, IHistoryStore

Check = Callable[[IHistoryStore], Awaitable[None]]


def finished(
    session_id: str, user_id: str = "alice", connected_at: float = 1_700_000_000.25
) -> FinishedSession:
    return FinishedSession(
        session_id=session_id,
        user_id=user_id,
        node="node-a",
        connected_at=connected_at,
        ended_at=connected_at + 60.5,
        duration_seconds=60.125,
        reason="idle_timeout",
        connections=3,
        restarts=1,
        messages_received=2**40,
    )


async def a_session_comes_back_as_it_was_added(store: IHistoryStore) -> None:
    await store.add([finished("1")])
    assert list(await store.latest("alice", 10)) == [finished("1")]


async def many_are_added_at_once_and_each_user_has_their_own(store: IHistoryStore) -> None:
    await store.add([finished(str(number), f"user-{number % 2}") for number in range(500)])
    assert len(await store.latest("user-0", 1_000)) == len(await store.latest("user-1", 1_000)) == 250
    assert {session.user_id for session in await store.latest("user-1", 1_000)} == {"user-1"}
    assert list(await store.latest("alice", 10)) == []


async def the_latest_come_first(store: IHistoryStore) -> None:
    await store.add([finished(name, connected_at=float(at)) for name, at in (("b", 2), ("c", 3), ("a", 1))])
    assert [session.session_id for session in await store.latest("alice", 2)] == ["c", "b"]


async def what_is_there_stays_as_it_is(store: IHistoryStore) -> None:
    await store.add([finished("1", "alice"), finished("2", "alice")])
    await store.add([finished("2", "bob"), finished("3", "bob"), finished("3", "carol")])
    found = {
        user_id: [session.session_id for session in await store.latest(user_id, 10)]
        for user_id in ("bob", "carol")
    }
    assert found == {"bob": ["3"], "carol": []}
    assert {session.session_id for session in await store.latest("alice", 10)} == {"1", "2"}


async def nothing_may_be_added(store: IHistoryStore) -> None:
    await store.add([])
    assert list(await store.latest("alice", 10)) == []


async def reasons_of_an_application_are_kept(store: IHistoryStore) -> None:
    odd = FinishedSession("1", "alice", "n", 1.0, 2.0, 1.0, "it's; ż 😀 %s \\", 0, 0, 0)
    await store.add([odd])
    assert list(await store.latest("alice", 1)) == [odd]


CHECKS: list[Check] = [
    a_session_comes_back_as_it_was_added,
    many_are_added_at_once_and_each_user_has_their_own,
    the_latest_come_first,
    what_is_there_stays_as_it_is,
    nothing_may_be_added,
    reasons_of_an_application_are_kept,
]
