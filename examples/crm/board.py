"""The Channel of the board, ``deals:board``.

What all should see now is a broadcast; what its owner must not miss is a notification. A broadcast is
not kept: whoever was away reads the board again when they join.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec

from examples.crm.deals import Deals
from flowtx import Channel, Reply, Router, error, ok
from flowtx.app import Services
from flowtx.channels.channel import UnhandledEvent
from flowtx.errors import InvalidPayload

TOPIC: Final = "deals:board"

T = TypeVar("T")
# What PostgreSQL takes for a bigint: any JSON number would be a crash, not a bad payload.
Number = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]


class Move(msgspec.Struct, frozen=True):
    """A client moves a deal, of which it has seen ``version``."""

    id: Number
    stage: Literal["lead", "proposal", "won", "lost"]
    version: Number


class Ask(msgspec.Struct, frozen=True):
    """A client asks a deal's owner about it."""

    id: Number


class BoardChannel(Channel):
    """One client that looks at the board.

    Args:
        deals: the deals.
        services: what flowtx gives to an application.
    """

    def __init__(self, deals: Deals, services: Services) -> None:
        self._deals = deals
        self._services = services

    def join(self, payload: Any) -> None:  # noqa: ARG002
        # The board follows the join: what is moved while it is read then comes as a broadcast, and the
        # higher version of a deal wins in the page. Read before the answer, that move would be missed.
        self.send_info("board")
        presence = self._services.presence
        self.push("presence_state", presence.state(self.topic))
        presence.track(self.topic, self.user_id, {"device": self.socket.device}, owner=self)

    async def handle_info(self, message: Any) -> None:  # noqa: ARG002
        self.push("board", {"deals": await self._deals.all(), "names": await self._deals.names()})

    async def handle_in(self, event: str, payload: Any) -> Reply:
        if event == "move":
            return await self._move(_read(payload, Move))
        if event == "ask":
            return await self._ask(_read(payload, Ask))
        raise UnhandledEvent(event)

    async def _move(self, move: Move) -> Reply:
        deal, moved = await self._deals.move(move.id, move.stage, move.version, self.user_id)
        if deal is None:
            return error({"reason": "no_such_deal"})
        if not moved:
            return error({"reason": "moved_meanwhile", "deal": deal})
        self.broadcast_from("deal_moved", {"deal": deal, "by": self.user_id})
        return ok({"deal": deal})

    async def _ask(self, ask: Ask) -> Reply:
        # Nothing of ours is written here, so there is no transaction to be part of.
        deal = await self._deals.find(ask.id)
        if deal is None:
            return error({"reason": "no_such_deal"})
        await self._services.notifications.push_notification(
            deal.owner,
            "deal.asked",
            {"deal": deal.id, "title": deal.title, "by": self.user_id},
            # Asked twice about the same state of a deal, the owner hears of it once.
            f"deal-{deal.id}-{deal.version}-asked-by-{self.user_id}",
        )
        return ok()

    def terminate(self, reason: str) -> None:  # noqa: ARG002
        self._services.presence.untrack_all(self)


def make_router(services: Services) -> Router:
    """The application, for ``--app examples.crm:make_router``; its database is ``DATABASE_URL``."""
    deals = Deals(os.environ["DATABASE_URL"], reactor=services.clock)
    return Router().channel(TOPIC, lambda: BoardChannel(deals, services))


def _read(payload: Any, kind: type[T]) -> T:
    """Take what a client sent; anything else is answered ``invalid_payload``."""
    try:
        return msgspec.convert(payload, kind)
    except msgspec.ValidationError as problem:
        raise InvalidPayload(str(problem)) from None
