"""What every store of inboxes must do; run against the one in memory and the one in PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from flowtx.errors import Conflict, InvalidPayload
from flowtx.inbox import (
    Backlog,
    INotificationStore,
    Joining,
    Notification,
    Push,
    Pushed,
    ReadMarks,
    Receipts,
    Undeliverable,
    Want,
)

Check = Callable[[INotificationStore], Awaitable[None]]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


async def push_one(
    store: INotificationStore,
    user_ids: Sequence[str],
    type_: str = "deal.won",
    payload: bytes = b"{}",
    key: str | None = None,
    **more: Any,
) -> tuple[Pushed, ...]:
    [outcome] = await store.push([Push(tuple(user_ids), type_, payload, key, **more)], wait=True)
    if isinstance(outcome, Exception):
        raise outcome
    assert isinstance(outcome, tuple), outcome
    return outcome


async def push(
    store: INotificationStore, *user_ids: str, key: str | None = None, n: int = 1, **more: Any
) -> list[int]:
    pushed = await push_one(store, user_ids, payload=b'{"n": %d}' % n, key=key, **more)
    return [entry.seq for entry in pushed]


async def backlog_of(
    store: INotificationStore, user_id: str, after_seq: int | None, limit: int, page_size: int
) -> Backlog:
    [backlog] = await store.backlogs([Joining(user_id, after_seq)], limit, page_size)
    return backlog


async def everything(store: INotificationStore, user_id: str) -> list[Notification]:
    entries = (await backlog_of(store, user_id, 0, 1_000, 1_000)).page.entries
    return [entry for entry in entries if isinstance(entry, Notification)]


def seqs(entries: Sequence[Notification | Undeliverable]) -> list[int]:
    return [entry.seq for entry in entries]


def numbers(entries: Sequence[Notification]) -> list[int]:
    return [msgspec.json.decode(entry.payload)["n"] for entry in entries]


def later(seconds: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=seconds)


async def seqs_count_from_one_for_each_user(store: INotificationStore) -> None:
    assert await push(store, "alice") == [1]
    assert await push(store, "alice", "bob") == [2, 1]
    assert await push(store, "bob", "alice") == [2, 3]


async def a_notification_comes_back_as_it_was_pushed(store: INotificationStore) -> None:
    content = {"text": "ż 😀 ' ; -- $$ \\ %s", "n": [1, 2.5, None, True], "deep": {"a": {"b": []}}}
    [pushed] = await push_one(store, ["alice"], "it's; --$$\\%s", msgspec.json.encode(content))
    [entry] = await everything(store, "alice")
    assert msgspec.json.decode(entry.payload) == content
    assert b": " not in bytes(entry.payload)
    assert (entry.id, entry.seq, entry.type) == (pushed.id, 1, "it's; --$$\\%s")
    assert _TIME.fullmatch(entry.inserted_at)
    assert entry.read_at is None


async def a_key_stores_once(store: INotificationStore) -> None:
    first = await push_one(store, ["alice"], "deal.won", b'{"a": 1}', "key")
    again = await push_one(store, ["alice"], "deal.won", b'{"a":1}', "key")
    assert first == again
    assert len(await everything(store, "alice")) == 1
    assert await push(store, "alice") == [2]


async def a_key_is_the_users_own(store: INotificationStore) -> None:
    assert await push(store, "alice", key="key") == [1]
    assert await push(store, "bob", "alice", key="key") == [1, 1]
    assert len(await everything(store, "alice")) == len(await everything(store, "bob")) == 1


async def a_key_used_for_something_else_stores_nothing(store: INotificationStore) -> None:
    await push(store, "alice", key="key", n=1)
    try:
        await push(store, "alice", "bob", key="key", n=2)
    except Conflict:
        pass
    else:
        raise AssertionError("no Conflict")
    assert len(await everything(store, "alice")) == 1
    assert await everything(store, "bob") == []


async def several_pushes_at_once_count_in_their_order(store: INotificationStore) -> None:
    outcomes = await store.push(
        [
            Push(("bob", "alice"), "a", b"1"),
            Push(("alice",), "b", b"2"),
            Push(("alice", "carol"), "c", b"3"),
        ],
        wait=False,
    )
    placed = [
        [(one.user_id, one.seq) for one in outcome] for outcome in outcomes if isinstance(outcome, tuple)
    ]
    assert placed == [[("bob", 1), ("alice", 1)], [("alice", 2)], [("alice", 3), ("carol", 1)]]
    assert [entry.type for entry in await everything(store, "alice")] == ["a", "b", "c"]
    assert (await backlog_of(store, "alice", None, 10, 10)).unread == 3


async def a_conflict_is_of_one_push_alone(store: INotificationStore) -> None:
    await push(store, "alice", key="key")
    outcomes = await store.push(
        [
            Push(("alice",), "t", b"1"),
            Push(("bob", "alice"), "t", b"2", "key"),
            Push(("alice",), "t", b"3", "other"),
        ],
        wait=False,
    )
    assert [type(outcome) for outcome in outcomes] == [tuple, Conflict, tuple]
    assert seqs(await everything(store, "alice")) == [1, 2, 3]
    assert await everything(store, "bob") == []


async def a_key_covers_all_of_the_content(store: INotificationStore) -> None:
    at = later(3_600)
    await push(store, "alice", key="key", collapse_key="c", expires_at=at)
    assert await push(store, "alice", key="key", collapse_key="c", expires_at=at) == [1]
    for other in ({}, {"collapse_key": "c"}, {"expires_at": at}, {"collapse_key": "d", "expires_at": at}):
        try:
            await push(store, "alice", key="key", **other)
        except Conflict:
            continue
        raise AssertionError(f"no Conflict for {other}")


async def the_backlog_without_a_seq_is_what_is_unread(store: INotificationStore) -> None:
    for _ in range(4):
        await push(store, "alice")
    await store.mark_read("alice", ReadMarks(up_to_seq=2))
    backlog = await backlog_of(store, "alice", None, 10, 10)
    assert seqs(backlog.page.entries) == [3, 4]
    assert (backlog.unread, backlog.last_seq, backlog.truncated, backlog.page.more) == (2, 4, False, False)


async def the_backlog_after_a_seq_has_read_ones_too(store: INotificationStore) -> None:
    for _ in range(4):
        await push(store, "alice")
    await store.mark_read("alice", ReadMarks(up_to_seq=3))
    backlog = await backlog_of(store, "alice", 1, 10, 10)
    assert seqs(backlog.page.entries) == [2, 3, 4]
    assert (backlog.unread, backlog.last_seq) == (1, 4)


async def a_long_backlog_gives_the_newest(store: INotificationStore) -> None:
    for _ in range(5):
        await push(store, "alice")
    for after in (None, 0, 1):
        backlog = await backlog_of(store, "alice", after, 3, 2)
        assert seqs(backlog.page.entries) == [3, 4]
        assert (backlog.truncated, backlog.page.more) == (True, True)
    backlog = await backlog_of(store, "alice", 2, 3, 3)
    assert (backlog.truncated, backlog.page.more) == (False, False)
    assert (await backlog_of(store, "alice", 2, 3, 2)).page.more


async def a_seq_in_the_future_has_nothing_after_it(store: INotificationStore) -> None:
    await push(store, "alice")
    for after in (1, 99, 2**63 - 1):
        backlog = await backlog_of(store, "alice", after, 10, 10)
        assert (list(backlog.page.entries), backlog.last_seq) == ([], 1)


async def an_empty_inbox(store: INotificationStore) -> None:
    backlog = await backlog_of(store, "nobody", None, 10, 10)
    assert (list(backlog.page.entries), backlog.unread, backlog.last_seq) == ([], 0, 0)
    assert (backlog.truncated, backlog.page.more) == (False, False)
    assert await store.mark_read("nobody", ReadMarks(all=True)) == 0
    listed = await store.list_page("nobody", None, 10, False)
    assert (list(listed.notifications), listed.unread, listed.truncated) == ([], 0, False)


async def pages_follow_each_want(store: INotificationStore) -> None:
    for _ in range(4):
        await push(store, "alice", "bob")
    await store.mark_read("alice", ReadMarks(up_to_seq=2))
    wants = [
        Want("alice", 1),
        Want("carol", 0),
        Want("alice", 0, unread_up_to=3),
        Want("bob", 4),
        Want("bob", 2),
        Want("alice", 3, unread_up_to=3),
    ]
    pages = await store.pages(wants, 2)
    assert [(seqs(page.entries), page.more) for page in pages] == [
        ([2, 3], True),
        ([], False),
        ([3], False),
        ([], False),
        ([3, 4], False),
        ([], False),
    ]


async def a_page_is_bounded_in_bytes(store: INotificationStore) -> None:
    for _ in range(7):
        await push_one(store, ["alice"], payload=msgspec.json.encode("x" * 60_000))
    [page] = await store.pages([Want("alice", 0)], 100)
    assert (seqs(page.entries), page.more) == ([1, 2, 3, 4, 5], True)
    [rest] = await store.pages([Want("alice", 5)], 100)
    assert (seqs(rest.entries), rest.more) == ([6, 7], False)
    backlog = await backlog_of(store, "alice", 0, 100, 100)
    assert (seqs(backlog.page.entries), backlog.page.more, backlog.truncated) == (
        [1, 2, 3, 4, 5],
        True,
        False,
    )


async def the_list_has_pages_and_the_newest_first(store: INotificationStore) -> None:
    for _ in range(5):
        await push(store, "alice")
    await store.mark_read("alice", ReadMarks(up_to_seq=2))
    for before, limit, unread, expected in (
        (None, 3, False, [5, 4, 3]),
        (3, 3, False, [2, 1]),
        (1, 3, False, []),
        (None, 9, True, [5, 4, 3]),
        (4, 9, True, [3]),
        (2**63 - 1, 1, False, [5]),
        (0, 1, False, []),
    ):
        listed = await store.list_page("alice", before, limit, unread)
        assert (seqs(listed.notifications), listed.unread) == (expected, 3), (before, limit, unread)
        assert not listed.truncated
    listed = await store.list_page("alice", None, 9, False)
    assert [entry.read_at is None for entry in listed.notifications] == [True, True, True, False, False]


async def a_list_is_bounded_in_bytes(store: INotificationStore) -> None:
    for _ in range(12):
        await push_one(store, ["alice"], payload=msgspec.json.encode("x" * 60_000))
    listed = await store.list_page("alice", None, 100, False)
    assert (seqs(listed.notifications), listed.truncated) == ([12, 11, 10, 9, 8, 7, 6, 5, 4], True)
    listed = await store.list_page("alice", 4, 100, False)
    assert (seqs(listed.notifications), listed.truncated) == ([3, 2, 1], False)


async def what_has_expired_is_not_there(store: INotificationStore) -> None:
    await push(store, "alice", n=1, expires_at=later(3_600))
    await push(store, "alice", n=2, expires_at=later(-1))
    await push(store, "alice", n=3)
    assert numbers(await everything(store, "alice")) == [1, 3]
    backlog = await backlog_of(store, "alice", None, 10, 10)
    assert (seqs(backlog.page.entries), backlog.unread, backlog.last_seq) == ([1, 3], 2, 3)
    listed = await store.list_page("alice", None, 10, False)
    assert (seqs(listed.notifications), listed.unread) == ([3, 1], 2)
    [page] = await store.pages([Want("alice", 0)], 10)
    assert seqs(page.entries) == [1, 3]
    assert await store.mark_read("alice", ReadMarks(up_to_seq=1)) == 1
    assert await store.mark_read("alice", ReadMarks(all=True)) == 0
    await push(store, "alice")
    assert (await backlog_of(store, "alice", None, 10, 10)).unread == 1


async def a_newer_one_takes_the_place_of_the_unread_older_one(store: INotificationStore) -> None:
    await push(store, "alice", "bob", n=1, collapse_key="deal-42")
    await push(store, "alice", n=2, collapse_key="deal-43")
    assert await push(store, "alice", n=3, collapse_key="deal-42") == [3]
    assert numbers(await everything(store, "alice")) == [2, 3]
    assert numbers(await everything(store, "bob")) == [1]
    backlog = await backlog_of(store, "alice", None, 10, 10)
    assert (backlog.unread, backlog.last_seq) == (2, 3)
    assert await store.mark_read("alice", ReadMarks(up_to_seq=3)) == 0
    await push(store, "alice", n=4, collapse_key="deal-42")
    assert numbers(await everything(store, "alice")) == [2, 3, 4]
    assert (await backlog_of(store, "alice", None, 10, 10)).unread == 1


async def what_has_expired_is_replaced_and_counted_once(store: INotificationStore) -> None:
    await push(store, "alice", n=1, collapse_key="c", expires_at=later(-1))
    await push(store, "alice", n=2, collapse_key="c")
    assert numbers(await everything(store, "alice")) == [2]
    assert (await backlog_of(store, "alice", None, 10, 10)).unread == 1
    assert await swept(store, 0, 0) == 0


async def a_sweep_keeps_the_counts_exact(store: INotificationStore) -> None:
    for _ in range(3):
        await push(store, "alice", "bob", expires_at=later(-1))
        await push(store, "alice", "bob")
    await store.mark_read("alice", ReadMarks(up_to_seq=3))
    assert await swept(store, 0, 0) == 6
    for user, unread in (("alice", [4, 6]), ("bob", [2, 4, 6])):
        backlog = await backlog_of(store, user, None, 10, 10)
        assert (seqs(backlog.page.entries), backlog.unread) == (unread, len(unread))


async def of_several_in_one_call_the_last_stays(store: INotificationStore) -> None:
    await push(store, "alice", n=0, collapse_key="c")
    pushes = [Push(("alice",), "t", b'{"n": %d}' % n, collapse_key=key) for n, key in enumerate("cdcc", 1)]
    outcomes = await store.push(pushes, wait=False)
    assert [outcome[0].seq for outcome in outcomes if isinstance(outcome, tuple)] == [2, 3, 4, 5]
    assert numbers(await everything(store, "alice")) == [2, 4]
    backlog = await backlog_of(store, "alice", None, 10, 10)
    assert (backlog.unread, backlog.last_seq) == (2, 5)


async def subscriptions_are_kept_with_the_user(store: INotificationStore) -> None:
    assert await store.subscribe("alice", ["deal.*", "task.due", "deal.*"], []) == ("deal.*", "task.due")
    assert await store.subscribe("alice", ["a"], ["task.due", "unknown"]) == ("a", "deal.*")
    assert await store.subscribe("bob", [], ["a"]) == ()
    await push(store, "alice")
    [page] = await store.pages([Want("alice", 0)], 10)
    assert page.types == ("a", "deal.*")
    assert (await backlog_of(store, "alice", None, 10, 10)).page.types == ("a", "deal.*")
    assert await store.subscribe("alice", [], ["a", "deal.*"]) == ()


async def there_are_at_most_100_subscriptions(store: INotificationStore) -> None:
    patterns = tuple(sorted(f"type-{number}" for number in range(100)))
    assert await store.subscribe("alice", patterns, []) == patterns
    try:
        await store.subscribe("alice", ["one.more"], [])
    except InvalidPayload as problem:
        assert "100" in problem.detail
    else:
        raise AssertionError("no InvalidPayload")
    assert await store.subscribe("alice", [], []) == patterns
    assert len(await store.subscribe("alice", ["one.more"], ["type-0"])) == 100


async def what_was_delivered_or_read_is_not_undelivered(store: INotificationStore) -> None:
    for _ in range(6):
        await push(store, "alice", "bob")
    await push(store, "alice", expires_at=later(-1))
    await store.mark_delivered(Receipts(exact=[("alice", 2), ("alice", 99), ("nobody", 1)]))
    await store.mark_delivered(Receipts(exact=[("alice", 2)], up_to=[("bob", 3), ("nobody", 3)]))
    await store.mark_read("alice", ReadMarks(up_to_seq=1))
    assert await store.find_undelivered(3_600, 100) == 0
    assert await store.find_undelivered(0, 100) == 4 + 3
    assert await store.find_undelivered(0, 100) == 0
    await push(store, "alice")
    await push(store, "bob")
    assert await store.find_undelivered(0, 1) == 1
    assert await store.find_undelivered(0, 1) == 1
    assert await store.find_undelivered(0, 1) == 0


async def a_type_that_is_not_wanted_is_not_delivered_with_the_others(store: INotificationStore) -> None:
    await store.subscribe("alice", ["deal.*"], [])
    await push_one(store, ["alice"], "deal.won")
    await push_one(store, ["alice"], "task.due")
    await push_one(store, ["alice"], "deal.lost")
    await store.mark_delivered(Receipts(up_to=[("alice", 3)]))
    assert await store.find_undelivered(0, 100) == 1


async def swept(store: INotificationStore, max_age: float, max_count: int) -> int:
    gone = 0
    while more := await store.sweep(max_age, max_count):
        gone += more
    return gone


async def a_sweep_keeps_what_is_new_and_little(store: INotificationStore) -> None:
    for _ in range(5):
        await push(store, "alice", key=None)
    await push(store, "bob", key="key")
    assert await swept(store, 0, 0) == 0
    assert await swept(store, 3_600, 5) == 0
    assert seqs(await everything(store, "alice")) == [1, 2, 3, 4, 5]


async def a_sweep_deletes_the_expired(store: INotificationStore) -> None:
    await push(store, "alice", expires_at=later(-1))
    await push(store, "alice", expires_at=later(3_600))
    assert await swept(store, 0, 0) == 1
    backlog = await backlog_of(store, "alice", None, 10, 10)
    assert (seqs(backlog.page.entries), backlog.unread, backlog.last_seq) == ([2], 1, 2)


async def a_sweep_deletes_what_is_too_many(store: INotificationStore) -> None:
    for _ in range(6):
        await push(store, "alice", "bob")
    await push(store, "alice")
    await store.mark_read("alice", ReadMarks(up_to_seq=1))
    assert await swept(store, 0, 3) == 4 + 3
    for user, left in (("alice", [5, 6, 7]), ("bob", [4, 5, 6])):
        backlog = await backlog_of(store, user, None, 10, 10)
        assert (seqs(backlog.page.entries), backlog.unread) == (left, 3)
    assert await push(store, "alice") == [8]


async def a_sweep_deletes_the_old(store: INotificationStore) -> None:
    await push(store, "alice")
    assert await swept(store, 1e-9, 0) == 1
    assert await push(store, "alice") == [2]
    assert (await backlog_of(store, "alice", None, 10, 10)).unread == 1


async def changed_names_each_user_once_a_look(store: INotificationStore) -> None:
    await push(store, "old")
    mark, users = await store.changed(None)
    assert users == frozenset()
    await push(store, "alice", "bob")
    await push(store, "alice")
    mark, users = await store.changed(mark)
    assert users == frozenset({"alice", "bob"})
    mark, users = await store.changed(mark)
    assert users == frozenset()


async def read_by_id(store: INotificationStore) -> None:
    pushed = [(await push_one(store, ["alice"], "t", b"{}"))[0] for _ in range(3)]
    [foreign] = await push_one(store, ["bob"], "t", b"{}")
    marks = ReadMarks(ids=(pushed[0].id, pushed[2].id, foreign.id, "00000000-0000-4000-8000-000000000000"))
    assert await store.mark_read("alice", marks) == 1
    assert await store.mark_read("alice", marks) == 1
    assert [entry.read_at is None for entry in await everything(store, "alice")] == [False, True, False]
    assert (await backlog_of(store, "bob", None, 10, 10)).unread == 1
    assert await store.mark_read("alice", ReadMarks(ids=())) == 1


async def read_up_to_a_seq_and_all(store: INotificationStore) -> None:
    for _ in range(4):
        await push(store, "alice")
    assert await store.mark_read("alice", ReadMarks(up_to_seq=0)) == 4
    assert await store.mark_read("alice", ReadMarks(up_to_seq=3)) == 1
    assert await store.mark_read("alice", ReadMarks(all=True)) == 0
    await push(store, "alice")
    assert (await backlog_of(store, "alice", None, 10, 10)).unread == 1


CHECKS: list[Check] = [
    seqs_count_from_one_for_each_user,
    a_notification_comes_back_as_it_was_pushed,
    a_key_stores_once,
    a_key_is_the_users_own,
    a_key_used_for_something_else_stores_nothing,
    several_pushes_at_once_count_in_their_order,
    a_conflict_is_of_one_push_alone,
    a_key_covers_all_of_the_content,
    the_backlog_without_a_seq_is_what_is_unread,
    the_backlog_after_a_seq_has_read_ones_too,
    a_long_backlog_gives_the_newest,
    a_seq_in_the_future_has_nothing_after_it,
    an_empty_inbox,
    pages_follow_each_want,
    a_page_is_bounded_in_bytes,
    the_list_has_pages_and_the_newest_first,
    a_list_is_bounded_in_bytes,
    what_has_expired_is_not_there,
    a_newer_one_takes_the_place_of_the_unread_older_one,
    what_has_expired_is_replaced_and_counted_once,
    a_sweep_keeps_the_counts_exact,
    of_several_in_one_call_the_last_stays,
    subscriptions_are_kept_with_the_user,
    there_are_at_most_100_subscriptions,
    what_was_delivered_or_read_is_not_undelivered,
    a_type_that_is_not_wanted_is_not_delivered_with_the_others,
    a_sweep_keeps_what_is_new_and_little,
    a_sweep_deletes_the_expired,
    a_sweep_deletes_what_is_too_many,
    a_sweep_deletes_the_old,
    changed_names_each_user_once_a_look,
    read_by_id,
    read_up_to_a_seq_and_all,
]
