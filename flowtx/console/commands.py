"""What an operator can have done from the console."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta

from flowtx.interfaces import IPubSub
from flowtx.notifications.service import NotificationService
from flowtx.protocol.message import Broadcast
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import socket_topic
from flowtx.web.keys import Scope

UserId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:@-]{1,128}\Z")]


class OfUser(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names a user."""

    user_id: UserId


class OfConnection(OfUser, frozen=True, forbid_unknown_fields=True):
    """Names a connection of a user."""

    connection_id: Annotated[str, Meta(max_length=64)]


class OfNotification(OfUser, frozen=True, forbid_unknown_fields=True):
    """Is a notification for a user."""

    type: str
    payload: Any


class Command(NamedTuple):
    """One of them.

    Attributes:
        scope: what a key must be for.
        form: of what it takes.
        do: does it; gives the response.
    """

    scope: Scope
    form: type[OfUser]
    do: Callable[[Any], Awaitable[dict[str, Any]]]


class Commands:
    """See the module.

    - ``push_notification`` ``{"user_id", "type", "payload"}``: ``{"id", "seq"}``.
    - ``disconnect`` ``{"user_id"}``: ``{"delivered"}``; all connections of the user are closed, as by the
      ``disconnect`` broadcast. Clients come back.
    - ``stop_session`` ``{"user_id"}``: ``{"stopped"}``.
    - ``close_connection`` ``{"user_id", "connection_id"}``: ``{"closed"}``.

    Args:
        sessions: the Sessions.
        notifications: the inboxes.
        pubsub: carries ``disconnect``.
    """

    def __init__(self, sessions: SessionService, notifications: NotificationService, pubsub: IPubSub) -> None:
        self._sessions = sessions
        self._notifications = notifications
        self._pubsub = pubsub
        self._known = {
            "push_notification": Command("notify", OfNotification, self._push_notification),
            "disconnect": Command("admin", OfUser, self._disconnect),
            "stop_session": Command("admin", OfUser, self._stop_session),
            "close_connection": Command("admin", OfConnection, self._close_connection),
        }

    def find(self, event: str) -> Command | None:
        """Find the command of an event; None where it is none."""
        return self._known.get(event)

    async def _push_notification(self, asked: OfNotification) -> dict[str, Any]:
        pushed = await self._notifications.push_notification(asked.user_id, asked.type, asked.payload)
        return {"id": pushed.id, "seq": pushed.seq}

    async def _disconnect(self, asked: OfUser) -> dict[str, Any]:
        return {"delivered": self._pubsub.publish(Broadcast(socket_topic(asked.user_id), "disconnect", {}))}

    async def _stop_session(self, asked: OfUser) -> dict[str, Any]:
        return {"stopped": await self._sessions.stop_session(asked.user_id)}

    async def _close_connection(self, asked: OfConnection) -> dict[str, Any]:
        return {"closed": self._sessions.close_connection(asked.user_id, asked.connection_id)}
