"""Calls about Sessions and tokens: list, inspect, stop, disconnect, revoke."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta
from twisted.internet.interfaces import IReactorTime
from twisted.web.iweb import IRequest

from flowtx.interfaces import IPubSub
from flowtx.notifications.service import NotificationService
from flowtx.protocol.message import Broadcast
from flowtx.sessions.inspection import SessionInfo, describe
from flowtx.sessions.service import SessionService
from flowtx.sessions.session import socket_topic
from flowtx.web.api import Query, Route
from flowtx.web.requests import (
    ApiError,
    Delivered,
    Key,
    UserId,
    answer,
    number,
    parameter,
    read_body,
    user_id_of,
)

MAX_PAGE: Final = 100


class RevokeBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /api/tokens/revoke``: one of the two."""

    jti: Key | None = None
    user_id: UserId | None = None


class SessionCalls:
    """See the module.

    Args:
        sessions: the Sessions.
        notifications: knows what types their users have subscribed to.
        pubsub: carries ``disconnect``.
        clock: the time that Sessions go by.
    """

    def __init__(
        self,
        sessions: SessionService,
        notifications: NotificationService,
        *,
        pubsub: IPubSub,
        clock: IReactorTime,
    ) -> None:
        self._sessions = sessions
        self._notifications = notifications
        self._pubsub = pubsub
        self._clock = clock

    def routes(self) -> Iterator[Route]:
        """The calls."""
        one = "/api/sessions/<user_id>"
        yield Route(
            "GET",
            "/api/sessions",
            self.sessions,
            scope="read",
            query=(
                Query("limit", Annotated[int, Meta(ge=1, le=MAX_PAGE)], "how many at the most"),
                Query("after", str, "only those after this user id"),
            ),
            answers={200: SessionList},
        )
        yield Route("GET", one, self.session, scope="read", answers={200: SessionInfo}, errors=(404,))
        yield Route("DELETE", one, self.stop_session, answers={200: Stopped}, errors=(404,))
        yield Route(
            "DELETE",
            f"{one}/connections/<connection_id>",
            self.close_connection,
            answers={200: Closed},
            errors=(404,),
        )
        yield Route(
            "POST",
            "/api/users/<user_id>/disconnect",
            self.disconnect,
            answers={202: Delivered},
            errors=(404,),
        )
        yield Route(
            "POST",
            "/api/tokens/revoke",
            self.revoke,
            body=RevokeBody,
            answers={200: Revoked},
            errors=(503,),
        )

    def sessions(self, request: IRequest) -> bytes:
        """List the Sessions on this node, in the order of their users' ids."""
        limit = number(request, "limit", default=MAX_PAGE, most=MAX_PAGE) or MAX_PAGE
        after = parameter(request, "after") or ""
        # Pages by user id: Sessions that come and go meanwhile make no other one appear twice.
        page = nsmallest(limit + 1, (user for user in self._sessions.namedServices if user > after))
        listed = [self._describe(user_id) for user_id in page[:limit]]
        following = page[limit - 1] if len(page) > limit else None
        return answer(request, 200, SessionList(listed, following))

    def session(self, request: IRequest, user_id: str) -> bytes:
        """Inspect a user's Session."""
        return answer(request, 200, self._describe(user_id))

    async def stop_session(self, request: IRequest, user_id: str) -> bytes:
        """Stop a user's Session: its connections are closed, and told to stay away."""
        if not await self._sessions.stop_session(user_id):
            raise _no_session(user_id)
        return answer(request, 200, Stopped())

    def close_connection(self, request: IRequest, user_id: str, connection_id: str) -> bytes:
        """Close one connection of a user's."""
        if not self._sessions.close_connection(user_id, connection_id):
            raise ApiError(404, "not_found", "that user has no such connection here")
        return answer(request, 200, Closed())

    def disconnect(self, request: IRequest, user_id: str) -> bytes:
        """Close a user's connections, as the broadcast ``disconnect`` does."""
        delivered = self._pubsub.publish(Broadcast(socket_topic(user_id_of(user_id)), "disconnect", {}))
        return answer(request, 202, Delivered(delivered))

    async def revoke(self, request: IRequest) -> bytes:
        """Revoke a token by its ``jti``, or all of a user's until now; their connections are closed."""
        body = read_body(request, RevokeBody)
        if (body.jti is None) == (body.user_id is None):
            raise ApiError(422, "invalid_payload", 'it takes exactly one of "jti" and "user_id"')
        closed = await self._sessions.revoke(token_id=body.jti, user_id=body.user_id)
        return answer(request, 200, Revoked(closed))

    def _describe(self, user_id: str) -> SessionInfo:
        session = self._sessions.get_session(user_id)
        if session is None:
            raise _no_session(user_id)
        types = self._notifications.subscriptions(user_id)
        return describe(session, self._clock.seconds(), time.time(), types)


class SessionList(msgspec.Struct):
    sessions: Sequence[SessionInfo]
    next: str | None


class Stopped(msgspec.Struct):
    stopped: Literal[True] = True


class Closed(msgspec.Struct):
    closed: Literal[True] = True


class Revoked(msgspec.Struct):
    closed: int
    revoked: Literal[True] = True


def _no_session(user_id: str) -> ApiError:
    return ApiError(404, "not_found", f"there is no Session of {user_id!r:.140} here")
