"""What every store of inboxes must do; run against the one in memory and the one in PostgreSQL."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

import msgspec

from flowtx.errors import Conflict
from flowtx.interfaces import INotificationStore, Notification, ReadMarks

Check = Callable[[INotificationStore], Awaitable[None]]

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


async def push(store: INotificationStore, *user_ids: str, key: str | None = None, n: int = 1) -> list[int]:
    pushed = await store.push(user_ids, "deal.won", b'{"n": %d}' % n, key)
    return [entry.seq for entry in pushed]


async def everything(store: INotificationStore, user_id: str) -> list[Notification]:
    return list((await store.backlog(user_id, 0, 1_000)).notifications)


async def seqs_count_from_one_for_each_user(store: INotificationStore) -> None:
    assert await push(store, "alice") == [1]
    assert await push(store, "alice", "bob") == [2, 1]
    assert await push(store, "bob", "alice") == [2, 3]


async def a_user_named_twice_gets_it_once(store: INotificationStore) -> None:
    pushed = await store.push(["alice", "bob", "alice"], "t", b"{}", None)
    assert [entry.user_id for entry in pushed] == ["alice", "bob"]
    assert [entry.seq for entry in await everything(store, "alice")] == [1]


async def a_notification_comes_back_as_it_was_pushed(store: INotificationStore) -> None:
    content = {"text": "ż 😀 ' ; -- $$ \\ %s", "n": [1, 2.5, None, True], "deep": {"a": {"b": []}}}
    [pushed] = await store.push(["alice"], "it's; --$$\\%s", msgspec.json.encode(content), None)
    [entry] = await everything(store, "alice")
    assert msgspec.json.decode(entry.payload) == content
    assert b": " not in bytes(entry.payload)
    assert (entry.id, entry.seq, entry.type) == (pushed.id, 1, "it's; --$$\\%s")
    assert _TIME.fullmatch(entry.inserted_at)
    assert entry.read_at is None


async def a_key_stores_once(store: INotificationStore) -> None:
    first = await store.push(["alice"], "deal.won", b'{"a": 1}', "key")
    again = await store.push(["alice"], "deal.won", b'{"a":1}', "key")
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


async def the_backlog_without_a_seq_is_what_is_unread(store: INotificationStore) -> None:
    for _ in range(4):
        await push(store, "alice")
    await store.mark_read("alice", ReadMarks(up_to_seq=2))
    backlog = await store.backlog("alice", None, 10)
    assert [entry.seq for entry in backlog.notifications] == [3, 4]
    assert (backlog.unread, backlog.last_seq, backlog.truncated) == (2, 4, False)


async def the_backlog_after_a_seq_has_read_ones_too(store: INotificationStore) -> None:
    for _ in range(4):
        await push(store, "alice")
    await store.mark_read("alice", ReadMarks(all=True))
    backlog = await store.backlog("alice", 1, 10)
    assert [entry.seq for entry in backlog.notifications] == [2, 3, 4]
    assert all(_TIME.fullmatch(entry.read_at or "") for entry in backlog.notifications)
    assert (backlog.unread, backlog.last_seq) == (0, 4)


async def a_long_backlog_gives_the_newest(store: INotificationStore) -> None:
    for _ in range(5):
        await push(store, "alice")
    for after in (None, 0):
        backlog = await store.backlog("alice", after, 3)
        assert [entry.seq for entry in backlog.notifications] == [3, 4, 5]
        assert backlog.truncated
    assert not (await store.backlog("alice", 2, 3)).truncated


async def a_seq_in_the_future_has_nothing_after_it(store: INotificationStore) -> None:
    await push(store, "alice")
    for after in (1, 99, 2**63 - 1):
        backlog = await store.backlog("alice", after, 10)
        assert (list(backlog.notifications), backlog.last_seq) == ([], 1)


async def an_empty_inbox(store: INotificationStore) -> None:
    backlog = await store.backlog("nobody", None, 10)
    assert (list(backlog.notifications), backlog.unread, backlog.last_seq) == ([], 0, 0)
    assert await store.mark_read("nobody", ReadMarks(all=True)) == 0


async def after_reads_each_user_from_their_seq(store: INotificationStore) -> None:
    for _ in range(3):
        await push(store, "alice", "bob")
    found = await store.after({"alice": 1, "bob": 2, "carol": 0}, 10)
    assert {user: [entry.seq for entry in entries] for user, entries in found.items()} == {
        "alice": [2, 3],
        "bob": [3],
    }
    assert [entry.seq for entry in (await store.after({"alice": 0}, 2))["alice"]] == [1, 2]


async def changed_names_each_user_once_a_look(store: INotificationStore) -> None:
    await push(store, "old")
    mark, users = await store.changed(None)
    assert users == frozenset()
    await push(store, "alice", "bob")
    await push(store, "alice")
    mark, users = await store.changed(mark)
    assert users == {"alice", "bob"}
    mark, users = await store.changed(mark)
    assert users == frozenset()


async def read_by_id(store: INotificationStore) -> None:
    pushed = [(await store.push(["alice"], "t", b"{}", None))[0] for _ in range(3)]
    [foreign] = await store.push(["bob"], "t", b"{}", None)
    marks = ReadMarks(ids=(pushed[0].id, pushed[2].id, foreign.id, "00000000-0000-4000-8000-000000000000"))
    assert await store.mark_read("alice", marks) == 1
    assert await store.mark_read("alice", marks) == 1
    assert [entry.read_at is None for entry in await everything(store, "alice")] == [False, True, False]
    assert (await store.backlog("bob", None, 10)).unread == 1
    assert await store.mark_read("alice", ReadMarks(ids=())) == 1


async def read_up_to_a_seq_and_all(store: INotificationStore) -> None:
    for _ in range(4):
        await push(store, "alice")
    assert await store.mark_read("alice", ReadMarks(up_to_seq=0)) == 4
    assert await store.mark_read("alice", ReadMarks(up_to_seq=3)) == 1
    assert await store.mark_read("alice", ReadMarks(all=True)) == 0
    await push(store, "alice")
    assert (await store.backlog("alice", None, 10)).unread == 1


CHECKS: list[Check] = [
    seqs_count_from_one_for_each_user,
    a_user_named_twice_gets_it_once,
    a_notification_comes_back_as_it_was_pushed,
    a_key_stores_once,
    a_key_is_the_users_own,
    a_key_used_for_something_else_stores_nothing,
    the_backlog_without_a_seq_is_what_is_unread,
    the_backlog_after_a_seq_has_read_ones_too,
    a_long_backlog_gives_the_newest,
    a_seq_in_the_future_has_nothing_after_it,
    an_empty_inbox,
    after_reads_each_user_from_their_seq,
    changed_names_each_user_once_a_look,
    read_by_id,
    read_up_to_a_seq_and_all,
]
