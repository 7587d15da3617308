"""The session server for web products: one live Session per signed-in user.

What an application writes with, ``make_service`` to run it in a program of one's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flowtx.app import Services
from flowtx.channels.channel import Channel, Reply, Stop, UnhandledEvent, error, ok
from flowtx.channels.router import Router
from flowtx.errors import InvalidPayload
from flowtx.presence.presence import Presence
from flowtx.protocol.message import Broadcast
from flowtx.sessions.session import Session

if TYPE_CHECKING:
    from flowtx.application import make_service as make_service

__all__ = [
    "Broadcast",
    "Channel",
    "InvalidPayload",
    "Presence",
    "Reply",
    "Router",
    "Services",
    "Session",
    "Stop",
    "UnhandledEvent",
    "error",
    "make_service",
    "ok",
]


def __getattr__(name: str) -> Any:
    # Autobahn installs a reactor when it is imported, which is not for a library to do by itself.
    if name == "make_service":
        from flowtx.application import make_service  # noqa: PLC0415

        return make_service
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
