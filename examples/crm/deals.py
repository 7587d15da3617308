"""The deals, in a table of the application's own beside the schema ``flow``."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred, DeferredLock

from flowtx.storage.postgres import Database, Transaction

MAX_SHOWN: Final = 1_000

_TABLE: Final = """
CREATE SCHEMA IF NOT EXISTS crm;
CREATE TABLE IF NOT EXISTS crm.deals (
    id bigint PRIMARY KEY,
    title text NOT NULL,
    amount bigint NOT NULL,
    owner text NOT NULL,
    stage text NOT NULL DEFAULT 'lead' CHECK (stage IN ('lead', 'proposal', 'won', 'lost')),
    version bigint NOT NULL DEFAULT 1
);
INSERT INTO crm.deals (id, title, amount, owner) VALUES
    (1, 'Acme: 40 seats', 12000, 'alice'), (2, 'Globex: renewal', 30000, 'bob'),
    (3, 'Initech: pilot', 4500, 'alice'), (4, 'Umbrella: support', 9000, 'bob')
    ON CONFLICT DO NOTHING
"""


class Deal(msgspec.Struct, frozen=True):
    """A deal; its version grows by one with each change."""

    id: int
    title: str
    amount: int
    owner: str
    stage: str
    version: int


class Deals:
    """See the module. Its methods fail with `flowtx.errors.StorageError`.

    Args:
        url: of the database that also has the schema ``flow``.
        reactor: the reactor.
    """

    def __init__(self, url: str, *, reactor: Any) -> None:
        self._database = Database(url, reactor=reactor, slots=2, application_name="crm")
        self._reactor = reactor
        self._opening = DeferredLock()
        self._opened = False

    async def all(self) -> list[Deal]:
        """The newest deals."""
        database = await self._open()
        rows = await database.query(
            "SELECT id, title, amount, owner, stage, version FROM crm.deals ORDER BY id DESC LIMIT %s",
            (MAX_SHOWN,),
        )
        return [Deal(*row) for row in rows]

    async def find(self, deal_id: int) -> Deal | None:
        """One deal, or None."""
        database = await self._open()
        return await _find(database, deal_id)

    async def names(self) -> dict[str, str]:
        """The names of users, by id."""
        database = await self._open()
        return dict(
            await database.query("SELECT id, name FROM flow.users ORDER BY id LIMIT %s", (MAX_SHOWN,))
        )

    async def move(self, deal_id: int, stage: str, version: int, by: str) -> tuple[Deal | None, bool]:
        """Move a deal to another stage, and notify its owner if that is somebody else.

        Both are one transaction: the owner is told if and only if the deal was moved, without a queue or
        a table of messages to be sent.

        Args:
            deal_id: which.
            stage: where to.
            version: the one that the mover has seen; where the deal has another one, nothing changes.
            by: who moves it.

        Returns:
            The deal as it is now, None where there is none; and whether it was moved.
        """
        database = await self._open()

        async def work(transaction: Transaction) -> tuple[Deal | None, bool]:
            rows = await transaction.query(
                "UPDATE crm.deals SET stage = %s, version = version + 1 WHERE id = %s AND version = %s "
                "RETURNING id, title, amount, owner, stage, version",
                (stage, deal_id, version),
            )
            if not rows:
                return await _find(transaction, deal_id), False
            deal = Deal(*rows[0])
            if deal.owner != by:
                payload = {"deal": deal.id, "title": deal.title, "stage": deal.stage, "by": by}
                # Last, as it locks the owner's inbox until the commit.
                await transaction.query(
                    "SELECT flow.notify(%s, 'deal.moved', %s)",
                    (deal.owner, msgspec.json.encode(payload).decode()),
                )
            return deal, True

        return await database.transaction(work)

    def stop(self) -> Deferred[None]:
        """Disconnect; the reactor's own shutdown does so too."""
        return self._database.stopService()

    async def _open(self) -> Database:
        """Connect when it is first needed: an embedded database comes up after the application."""
        async with self._opening:
            if not self._opened:
                if not self._database.running:
                    await self._database.startService()
                    self._reactor.addSystemEventTrigger("before", "shutdown", self.stop)
                await self._database.query(_TABLE)
                self._opened = True
        return self._database


async def _find(source: Database | Transaction, deal_id: int) -> Deal | None:
    rows = await source.query(
        "SELECT id, title, amount, owner, stage, version FROM crm.deals WHERE id = %s", (deal_id,)
    )
    return Deal(*rows[0]) if rows else None
