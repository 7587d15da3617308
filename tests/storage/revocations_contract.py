"""What every store of revocations must do; run against the one in memory and the one in PostgreSQL."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from flowtx.errors import InvalidPayload
from flowtx.interfaces import IRevocations, Principal

Check = Callable[[IRevocations], Awaitable[None]]


def token(user_id: str, jti: str | None = None, iat: float | None = None) -> Principal:
    return Principal(user_id, expires_at=4e9, token_id=jti, issued_at=iat)


async def nothing_is_revoked_at_first(revocations: IRevocations) -> None:
    assert await revocations.revoked([token("alice", "a", 1.0), token("bob")]) == frozenset()
    assert await revocations.revoked([]) == frozenset()


async def a_token_is_revoked_by_its_jti(revocations: IRevocations) -> None:
    await revocations.revoke(token_id="a")
    asked = [token("alice", "a"), token("alice", "b"), token("alice"), token("bob", "a"), token("a")]
    assert await revocations.revoked(asked) == {asked[0], asked[3]}


async def a_users_tokens_of_before_are_revoked_and_later_ones_are_good(revocations: IRevocations) -> None:
    before = time.time()
    await revocations.revoke(user_id="alice")
    after = time.time()
    old, same_second = token("alice", iat=before - 3_600), token("alice", iat=float(int(before)))
    next_second, later = token("alice", iat=float(int(after)) + 1), token("alice", iat=after + 3_600)
    other = token("bob", iat=before - 3_600)
    asked = [old, same_second, next_second, later, other]
    assert await revocations.revoked(asked) == {old, same_second}


async def a_token_that_does_not_say_when_it_was_made_is_revoked_with_its_user(
    revocations: IRevocations,
) -> None:
    await revocations.revoke(user_id="alice")
    assert await revocations.revoked([token("alice", "a"), token("bob", "b")]) == {token("alice", "a")}


async def a_jti_is_no_user_and_a_user_no_jti(revocations: IRevocations) -> None:
    await revocations.revoke(token_id="alice")
    await revocations.revoke(user_id="b")
    asked = [token("alice", "c"), token("carol", "b")]
    assert await revocations.revoked(asked) == frozenset()


async def to_revoke_again_is_no_error(revocations: IRevocations) -> None:
    for _ in range(3):
        await revocations.revoke(token_id="a")
        await revocations.revoke(user_id="bob")
    asked = [token("alice", "a"), token("bob", "b")]
    assert await revocations.revoked(asked) == frozenset(asked)


async def many_are_asked_about_at_once(revocations: IRevocations) -> None:
    for number in range(0, 500, 50):
        await revocations.revoke(token_id=f"t{number}")
        await revocations.revoke(user_id=f"u{number + 1}")
    asked = [token(f"u{number}", f"t{number}", 1.0) for number in range(500)]
    expected = {asked[number] for number in range(500) if number % 50 < 2}
    assert await revocations.revoked(asked) == expected


async def odd_names_are_only_names(revocations: IRevocations) -> None:
    odd = 'it\'s; ż 😀 %s \\ {a,b} "NULL"'
    await revocations.revoke(token_id=odd)
    asked = [token("alice", odd), token("alice", "NULL"), token("alice", "it's")]
    assert await revocations.revoked(asked) == {asked[0]}


async def exactly_one_is_named(revocations: IRevocations) -> None:
    for arguments in ({}, {"token_id": "a", "user_id": "alice"}):
        try:
            await revocations.revoke(**arguments)
        except InvalidPayload:
            continue
        raise AssertionError("no InvalidPayload")
    assert await revocations.revoked([token("alice", "a")]) == frozenset()


CHECKS: list[Check] = [
    nothing_is_revoked_at_first,
    a_token_is_revoked_by_its_jti,
    a_users_tokens_of_before_are_revoked_and_later_ones_are_good,
    a_token_that_does_not_say_when_it_was_made_is_revoked_with_its_user,
    a_jti_is_no_user_and_a_user_no_jti,
    to_revoke_again_is_no_error,
    many_are_asked_about_at_once,
    odd_names_are_only_names,
    exactly_one_is_named,
]
