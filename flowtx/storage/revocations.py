"""Revoked tokens in PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import psycopg2
from zope.interface import implementer

from flowtx.errors import InvalidPayload, StorageError
from flowtx.interfaces import IRevocations, Principal
from flowtx.storage.link import first_line
from flowtx.storage.postgres import Database

MARGIN: Final = 86_400.0
"""Seconds that a row outlives the tokens it revokes, whatever the clocks and the leeway."""

# The time is the database's, so that it is one for all nodes. Whoever revokes also clears away.
_REVOKE: Final = """
    WITH cleared AS (DELETE FROM flow.revoked_tokens WHERE expires_at < now())
    INSERT INTO flow.revoked_tokens AS r ({column}, revoked_at, expires_at)
    VALUES (%s, clock_timestamp(), clock_timestamp() + make_interval(secs => %s))
    ON CONFLICT ({column}) WHERE {column} IS NOT NULL DO UPDATE
        SET revoked_at = greatest(r.revoked_at, excluded.revoked_at), expires_at = excluded.expires_at
"""
_REVOKE_TOKEN: Final = _REVOKE.format(column="jti")
_REVOKE_USER: Final = _REVOKE.format(column="user_id")

_REVOKED: Final = """
    SELECT p.number
    FROM unnest(%s::text[], %s::text[], %s::float8[])
         WITH ORDINALITY AS p(jti, user_id, issued_at, number)
    WHERE EXISTS (SELECT FROM flow.revoked_tokens r WHERE r.jti = p.jti)
       OR EXISTS (
           SELECT FROM flow.revoked_tokens r
           WHERE r.user_id = p.user_id
             AND (p.issued_at IS NULL OR floor(p.issued_at) <= floor(extract(epoch FROM r.revoked_at)))
       )
"""


@implementer(IRevocations)
class PostgresRevocations:
    """See `flowtx.interfaces.IRevocations`.

    Args:
        database: where.
        max_lifetime: the seconds that a token that is good now may still be good for; a row is kept
            for that long, and for ever where it is 0.
    """

    def __init__(self, database: Database, max_lifetime: float = 0.0) -> None:
        self._database = database
        self._kept_for = max_lifetime + MARGIN if max_lifetime else None

    async def revoke(self, token_id: str | None = None, user_id: str | None = None) -> None:
        if (token_id is None) == (user_id is None):
            raise InvalidPayload("to revoke takes a jti or a user_id, and not both")
        statement, name = (_REVOKE_USER, user_id) if token_id is None else (_REVOKE_TOKEN, token_id)
        try:
            await self._database.query(statement, [name, self._kept_for])
        except (psycopg2.DataError, psycopg2.IntegrityError, ValueError):
            what = "user_id" if token_id is None else "jti"
            raise InvalidPayload(f"got a {what} that no token can carry") from None
        except psycopg2.Error as error:
            raise StorageError(first_line(error)) from None

    async def revoked(self, principals: Sequence[Principal]) -> frozenset[Principal]:
        if not principals:
            return frozenset()
        columns = [
            [getattr(principal, name) for principal in principals]
            for name in ("token_id", "user_id", "issued_at")
        ]
        try:
            rows = await self._database.query(_REVOKED, columns)
        except psycopg2.Error as error:
            raise StorageError(first_line(error)) from None
        return frozenset(principals[number - 1] for (number,) in rows)
