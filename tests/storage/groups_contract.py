"""What every IGroupStore keeps to; each implementation runs the same checks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from flowtx.interfaces import IGroupStore

Check = Callable[[IGroupStore], Awaitable[None]]


async def nobody_is_in_a_group_at_first(store: IGroupStore) -> None:
    assert await store.members("sales", "", 10) == []
    assert await store.present([("sales", "alice")]) == frozenset()
    assert await store.present([]) == frozenset()
    assert not await store.remove("sales", "alice")


async def a_member_is_added_once_and_removed_once(store: IGroupStore) -> None:
    assert await store.add("sales", "alice")
    assert not await store.add("sales", "alice")
    assert await store.members("sales", "", 10) == ["alice"]
    assert await store.remove("sales", "alice")
    assert not await store.remove("sales", "alice")
    assert await store.members("sales", "", 10) == []
    assert await store.add("sales", "alice")


async def groups_and_users_are_not_mixed_up(store: IGroupStore) -> None:
    for group, user_id in (("a", "b"), ("b", "a"), ("a", "c")):
        await store.add(group, user_id)
    asked = [("a", "b"), ("b", "a"), ("a", "c"), ("c", "a"), ("b", "c"), ("a", "a"), ("A", "b")]
    assert await store.present(asked) == {("a", "b"), ("b", "a"), ("a", "c")}
    await store.remove("a", "b")
    assert await store.present(asked) == {("b", "a"), ("a", "c")}
    assert await store.members("a", "", 10) == ["c"]


async def members_come_in_pages_in_the_order_of_their_codes(store: IGroupStore) -> None:
    users = ["b", "B", "a-1", "a1", "a_1", "Z", "10", "9", "@x", "c:d"]
    for user_id in users:
        await store.add("sales", user_id)
        await store.add("other", f"x{user_id}")
    listed: list[str] = []
    while page := await store.members("sales", listed[-1] if listed else "", 3):
        assert len(page) <= 3
        listed += page
    assert listed == sorted(users)


async def many_are_asked_about_at_once(store: IGroupStore) -> None:
    for number in range(0, 1_000, 100):
        await store.add(f"g{number}", "alice")
    asked = [(f"g{number}", "alice") for number in range(1_000)]
    assert await store.present(asked) == {(f"g{number}", "alice") for number in range(0, 1_000, 100)}


async def the_same_may_be_asked_twice(store: IGroupStore) -> None:
    await store.add("sales", "alice")
    assert await store.present([("sales", "alice")] * 2) == {("sales", "alice")}


CHECKS: list[Check] = [
    nobody_is_in_a_group_at_first,
    a_member_is_added_once_and_removed_once,
    groups_and_users_are_not_mixed_up,
    members_come_in_pages_in_the_order_of_their_codes,
    many_are_asked_about_at_once,
    the_same_may_be_asked_twice,
]
