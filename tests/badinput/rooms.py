"""The application of the server that bad input is tried on."""

from __future__ import annotations

from typing import Any

from flowtx import Channel, Router, ok


class Room(Channel):
    """Answers with what it is sent."""

    def handle_in(self, event: str, payload: Any) -> Any:
        return ok(payload)


router = Router().channel("room:*", Room)
