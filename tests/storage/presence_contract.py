"""What every store of presence must do; run against the one in memory and the one in PostgreSQL.

The stores go by their own clocks: what is to be in the past is told with an age, and what is to end at
once is given no time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count

from flowtx.presence.store import Instance, IPresenceStore, PresenceChange, PresenceEvent, Seen, Status

Check = Callable[[IPresenceStore], Awaitable[None]]

HERE = Instance("here-1", "here")
AGAIN = Instance("here-2", "here")
THERE = Instance("there-1", "there")

_attempts = count(1)


def change(user_id: str, status: Status, age: float = 0.0, seen_age: float | None = None) -> PresenceChange:
    return PresenceChange(user_id, status, age, age if seen_age is None else seen_age)


async def record(store: IPresenceStore, instance: Instance, **statuses: Status) -> None:
    changes = [change(user_id, status) for user_id, status in statuses.items()]
    await keep(store, instance, *changes)


async def keep(store: IPresenceStore, instance: Instance, *changes: PresenceChange) -> None:
    """Record changes for an instance that is known, or is made so."""
    if not await store.record(instance, next(_attempts), changes):
        await store.beat(instance, 1_000)
        assert await store.record(instance, next(_attempts), changes)


async def events(store: IPresenceStore, after: int = 0) -> list[tuple[str, str, str]]:
    return [(event.user_id, event.event, event.node) for event in await store.events(after, 1_000)]


async def status(store: IPresenceStore, user_id: str, asking: str = "") -> Status | None:
    seen: Seen | None = (await store.seen([user_id], asking)).get(user_id)
    return None if seen is None else seen.status


async def online_and_offline_take_turns(store: IPresenceStore) -> None:
    await record(store, HERE, alice="offline")
    assert await events(store) == []
    for told in ("online", "online", "away", "offline", "offline", "away", "online", "offline"):
        await record(store, HERE, alice=told)
    assert await events(store) == [
        ("alice", event, "here") for event in ("online", "offline", "online", "offline")
    ]


async def what_was_told_is_known(store: IPresenceStore) -> None:
    assert await store.seen(["alice"], "") == {}
    await record(store, HERE, alice="online", bob="away", carol="online")
    await record(store, HERE, carol="offline")
    found = await store.seen(["alice", "bob", "carol", "dora"], "")
    assert {user_id: seen.status for user_id, seen in found.items()} == {
        "alice": "online",
        "bob": "away",
        "carol": "offline",
    }


async def who_asks_knows_better_of_its_own_users(store: IPresenceStore) -> None:
    await record(store, HERE, alice="online")
    await record(store, THERE, bob="online")
    assert [await status(store, user, HERE.id) for user in ("alice", "bob")] == ["offline", "online"]


async def times_are_those_of_what_happened(store: IPresenceStore) -> None:
    await keep(store, HERE, change("alice", "online", 1_000))
    await keep(store, HERE, change("alice", "offline", 100, 130))
    came, went = await store.events(0, 10)
    assert abs(went.at - came.at - 900) < 10
    seen = (await store.seen(["alice"], ""))["alice"]
    assert abs(went.at - seen.last_seen - 30) < 10
    # What happened earlier takes nothing back.
    await keep(store, HERE, change("alice", "online", 5_000))
    assert (await store.seen(["alice"], HERE.id))["alice"].last_seen == seen.last_seen


async def who_is_here_was_seen_when_the_node_last_spoke(store: IPresenceStore) -> None:
    await keep(store, HERE, change("alice", "online", 1_000), change("bob", "online"))
    found = await store.seen(["alice", "bob"], "")
    assert abs(found["alice"].last_seen - found["bob"].last_seen) < 10
    await store.leave(HERE, 1_000)
    found = await store.seen(["alice", "bob"], "")
    assert abs(found["alice"].last_seen - found["bob"].last_seen) < 10


async def ids_grow_and_pages_follow_each_other(store: IPresenceStore) -> None:
    for told in ("online", "offline"):
        changes = [change(f"user-{number}", told) for number in range(50)]
        await keep(store, HERE, *changes)
    read: list[PresenceEvent] = []
    after = 0
    while page := await store.events(after, 7):
        assert len(page) <= 7
        ids = [event.id for event in page]
        assert ids == sorted(ids)
        assert ids[0] > after
        read += page
        after = ids[-1]
    users = [f"user-{number}" for number in range(50)]
    assert [event.user_id for event in read] == users * 2


async def an_attempt_that_comes_late_has_no_effect(store: IPresenceStore) -> None:
    late = next(_attempts)
    await record(store, HERE, alice="online")
    await record(store, HERE, alice="offline")
    assert await store.record(HERE, late, [change("alice", "online")])
    assert await status(store, "alice") == "offline"
    assert len(await events(store)) == 2
    # Attempts of others have numbers of their own.
    await store.beat(THERE, 30)
    assert await store.record(THERE, late, [change("alice", "online")])
    assert await status(store, "alice") == "online"


async def an_attempt_that_is_repeated_has_one_effect(store: IPresenceStore) -> None:
    for _ in range(3):
        await keep(store, HERE, change("alice", "online"), change("bob", "away"))
    assert await events(store) == [("alice", "online", "here"), ("bob", "online", "here")]


async def who_moves_to_another_node_stays_online(store: IPresenceStore) -> None:
    await record(store, HERE, alice="online")
    await record(store, THERE, alice="online")
    await record(store, HERE, alice="offline")
    assert await status(store, "alice") == "online"
    assert await events(store) == [("alice", "online", "here")]
    await record(store, THERE, alice="offline")
    assert await events(store) == [("alice", "online", "here"), ("alice", "offline", "there")]


async def what_happened_before_the_user_moved_is_no_news(store: IPresenceStore) -> None:
    """A node tells again what it does not know to have been heard, though the user has gone on."""
    await keep(store, HERE, change("alice", "online", 100))
    await record(store, THERE, alice="away")
    await keep(store, HERE, change("alice", "online", 100))
    assert await status(store, "alice") == "away"
    await record(store, HERE, alice="offline")
    assert await status(store, "alice") == "away"
    assert await events(store) == [("alice", "online", "here")]


async def who_has_gone_from_another_node_is_told_of_however_late(store: IPresenceStore) -> None:
    await record(store, HERE, alice="online", bob="online")
    await record(store, HERE, alice="offline")
    await store.leave(HERE, 1_000)
    await keep(store, THERE, change("alice", "online", 100), change("bob", "online", 100))
    assert await status(store, "alice") == "online"
    # It is that node's to tell of now.
    await record(store, THERE, bob="offline")
    assert await status(store, "bob") == "offline"


async def after_an_orderly_stop_users_have_the_window(store: IPresenceStore) -> None:
    await record(store, HERE, alice="online", bob="online", carol="offline")
    await store.leave(HERE, 1_000)
    await store.beat(AGAIN, 0)
    assert [await status(store, user) for user in ("alice", "bob")] == ["online", "online"]
    await record(store, AGAIN, alice="online")
    await store.leave(AGAIN, 0)
    await store.beat(THERE, 0)
    assert [await status(store, user) for user in ("alice", "bob")] == ["offline", "online"]
    assert await events(store) == [
        ("alice", "online", "here"),
        ("bob", "online", "here"),
        ("alice", "offline", "here"),
    ]


async def who_returns_too_late_has_been_offline(store: IPresenceStore) -> None:
    await store.beat(AGAIN, 30)
    await record(store, HERE, alice="online", bob="online")
    await store.leave(HERE, 0)
    assert await status(store, "alice") == "offline"
    await record(store, AGAIN, alice="online")
    assert await events(store) == [
        ("alice", "online", "here"),
        ("bob", "online", "here"),
        ("alice", "offline", "here"),
        ("alice", "online", "here"),
    ]
    await store.beat(AGAIN, 0)
    await store.beat(AGAIN, 0)
    assert (await events(store))[4:] == [("bob", "offline", "here")]


async def the_users_of_a_dead_instance_become_offline_once(store: IPresenceStore) -> None:
    await record(store, HERE, alice="online", bob="away")
    await store.beat(AGAIN, 0, silence=1_000)
    assert await status(store, "alice") == "online"
    for _ in range(3):
        await store.beat(AGAIN, 0, silence=-1)
    assert [await status(store, user) for user in ("alice", "bob")] == ["offline", "offline"]
    assert sorted((await events(store))[2:]) == [("alice", "offline", "here"), ("bob", "offline", "here")]


async def an_instance_is_told_that_it_was_not_heard_of(store: IPresenceStore) -> None:
    assert await store.beat(HERE, 30)
    assert not await store.beat(HERE, 30)
    assert await store.beat(HERE, 30, silence=-1)
    await store.leave(HERE, 30)
    assert await store.beat(HERE, 30)
    await record(store, THERE, alice="online")
    assert not await store.beat(THERE, 30)


async def who_is_left_tells_again_when_another_one_has_gone(store: IPresenceStore) -> None:
    """It may have been told of last of a user who is on both."""
    for instance in (HERE, THERE):
        await store.beat(instance, 30)
    assert not await store.beat(THERE, 30)
    await store.leave(HERE, 0)
    assert await store.beat(THERE, 30)
    assert not await store.beat(THERE, 30)
    # One that tells again by itself has not gone.
    await store.beat(HERE, 30)
    await store.leave(HERE, 30, for_good=False)
    assert not await store.beat(THERE, 30)
    # Who finds a dead one tells again, and so do all others.
    await store.beat(HERE, 30)
    assert await store.beat(AGAIN, 30, silence=-1)
    assert not await store.beat(AGAIN, 30)


async def an_instance_that_was_taken_for_dead_tells_again(store: IPresenceStore) -> None:
    await record(store, HERE, alice="online", bob="online")
    await store.leave(HERE, 1_000)
    await record(store, HERE, alice="online")
    await store.beat(THERE, 0)
    assert [await status(store, user) for user in ("alice", "bob")] == ["online", "online"]
    assert len(await events(store)) == 2


async def old_events_are_swept(store: IPresenceStore) -> None:
    await keep(store, HERE, *[change(f"user-{n}", "online", 1_000) for n in range(700)])
    await record(store, HERE, alice="online")
    assert await store.sweep(10_000) == 0
    swept = 0
    while gone := await store.sweep(500):
        swept += gone
    assert swept == 700
    assert await events(store) == [("alice", "online", "here")]
    assert await status(store, "user-1") == "online"


async def an_instance_that_is_not_known_is_told_so(store: IPresenceStore) -> None:
    assert not await store.record(HERE, next(_attempts), [change("alice", "online")])
    assert await store.seen(["alice"], "") == {}
    await record(store, HERE, alice="online")
    await store.leave(HERE, 1_000)
    assert not await store.record(HERE, next(_attempts), [change("alice", "offline")])
    assert await status(store, "alice") == "online"


async def what_is_recorded_is_no_sign_of_life(store: IPresenceStore) -> None:
    """Or an instance that was silent for long would not find out."""
    await record(store, HERE, alice="online")
    await record(store, HERE, alice="away")
    assert await store.beat(HERE, 30, silence=-1)


async def nothing_may_be_recorded(store: IPresenceStore) -> None:
    await record(store, HERE)
    assert await events(store) == []
    assert await store.seen([], "") == {}
    assert not await store.beat(HERE, 30)


CHECKS: list[Check] = [
    online_and_offline_take_turns,
    what_was_told_is_known,
    who_asks_knows_better_of_its_own_users,
    times_are_those_of_what_happened,
    who_is_here_was_seen_when_the_node_last_spoke,
    ids_grow_and_pages_follow_each_other,
    an_attempt_that_comes_late_has_no_effect,
    an_attempt_that_is_repeated_has_one_effect,
    who_moves_to_another_node_stays_online,
    what_happened_before_the_user_moved_is_no_news,
    who_has_gone_from_another_node_is_told_of_however_late,
    after_an_orderly_stop_users_have_the_window,
    who_returns_too_late_has_been_offline,
    the_users_of_a_dead_instance_become_offline_once,
    an_instance_is_told_that_it_was_not_heard_of,
    who_is_left_tells_again_when_another_one_has_gone,
    an_instance_that_was_taken_for_dead_tells_again,
    old_events_are_swept,
    an_instance_that_is_not_known_is_told_so,
    what_is_recorded_is_no_sign_of_life,
    nothing_may_be_recorded,
]
