"""The call that asks the flight recorder what last happened to a user."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from twisted.web.iweb import IRequest

from flowtx.recorder import FlightRecorder
from flowtx.web.api import Route
from flowtx.web.requests import answer, user_id_of


class Recorded(msgspec.Struct):
    """What the recorder has of a user, the newest last; times are ISO 8601, UTC.

    Attributes:
        user_id: whose it is.
        events: what happened: each has ``at`` and ``event``, and what else there is to say.
        ends: how connections ended: each has ``at``, ``connected_at``, ``reason``, ``code``, ``by`` and
            ``duration`` in seconds.
    """

    user_id: str
    events: Sequence[dict[str, Any]]
    ends: Sequence[dict[str, Any]]


class RecorderCalls:
    """See the module.

    Args:
        recorder: the flight recorder.
    """

    def __init__(self, recorder: FlightRecorder) -> None:
        self._recorder = recorder

    def routes(self) -> Iterator[Route]:
        """The calls."""
        yield Route(
            "GET",
            "/api/users/<user_id>/recorder",
            self.recorder,
            scope="read",
            answers={200: Recorded},
            errors=(404,),
        )

    def recorder(self, request: IRequest, user_id: str) -> bytes:
        """Tell what last happened to a user: the last 200 events, and the last 10 ends of connections.

        It is kept in memory only, and for those whose events are the latest; where nothing is known,
        both lists are empty.
        """
        recorder = self._recorder
        known = user_id_of(user_id)
        return answer(request, 200, Recorded(known, recorder.events(known), recorder.ends(known)))
