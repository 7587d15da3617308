"""The call that broadcasts: on a topic, to users, or to everyone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta
from twisted.web.iweb import IRequest

from flowtx.errors import InvalidPayload
from flowtx.interfaces import IPubSub
from flowtx.protocol.payload import read_json
from flowtx.pubsub.pubsub import MAX_EVENT, MAX_TOPIC
from flowtx.sessions.service import SessionService
from flowtx.web.api import Route
from flowtx.web.requests import ApiError, Delivered, UserId, answer, invalid, read_body

MAX_USERS: Final = 10_000
MAX_PAYLOAD: Final = 65_536


class BroadcastBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of ``POST /api/broadcasts``: exactly one of the first three."""

    event: Annotated[str, Meta(min_length=1, max_length=MAX_EVENT)]
    payload: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]
    topic: Annotated[str, Meta(min_length=1, max_length=MAX_TOPIC)] | None = None
    user_ids: Annotated[list[UserId], Meta(min_length=1)] | None = None
    everyone: Literal[True] | None = None


class BroadcastCalls:
    """See the module.

    Args:
        pubsub: carries what goes to a topic.
        sessions: reaches users.
    """

    def __init__(self, pubsub: IPubSub, sessions: SessionService) -> None:
        self._pubsub = pubsub
        self._sessions = sessions

    def routes(self) -> Iterator[Route]:
        """The calls."""
        yield Route(
            "POST",
            "/api/broadcasts",
            self.broadcast,
            scope="notify",
            body=BroadcastBody,
            answers={202: Delivered},
        )

    def broadcast(self, request: IRequest) -> bytes:
        """``POST /api/broadcasts``: an event for those who are here now; nothing of it is kept.

        To a topic, ``{"topic": "group:sales", "event", "payload"}``; to up to 10,000 users, each on their
        topic ``user:<id>``, ``{"user_ids": […], "event", "payload"}``; or to all who are here,
        ``{"everyone": true, "event", "payload"}``. ``payload`` is an object of at most 65,536 bytes. The
        answer is ``{"delivered": N}``: to how many subscribers on this node.
        """
        body = read_body(request, BroadcastBody)
        if sum(given is not None for given in (body.topic, body.user_ids, body.everyone)) != 1:
            invalid('it takes exactly one of "topic", "user_ids" and "everyone"')
        payload = _payload(body.payload)
        if body.topic is not None:
            delivered = self._pubsub.broadcast(body.topic, body.event, payload)
        elif body.user_ids is not None:
            if len(body.user_ids) > MAX_USERS:
                detail = f"got {len(body.user_ids)} user_ids; a call takes {MAX_USERS}"
                raise ApiError(413, "too_many_users", detail)
            delivered = self._sessions.broadcast_to_users(body.user_ids, body.event, payload)
        else:
            delivered = self._sessions.broadcast_to_all(body.event, payload)
        return answer(request, 202, Delivered(delivered))


def _payload(raw: msgspec.Raw) -> dict[str, Any]:
    text = bytes(raw)
    if len(text) > MAX_PAYLOAD:
        invalid(f"payload: got {len(text)} bytes; it takes at most {MAX_PAYLOAD}")
    try:
        payload = read_json(text, max_nodes=None)
    except InvalidPayload as problem:
        invalid(f"payload: {problem.detail}")
    if not isinstance(payload, dict):
        invalid("payload: it takes an object")
    return payload
