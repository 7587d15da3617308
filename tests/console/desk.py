"""A server in memory with its console."""

from __future__ import annotations

from typing import Any

from flowtx.console.console import console_router
from flowtx.console.figures import Readings
from flowtx.console.portrait import Sources
from flowtx.testing import Client, MemoryServer

EVERYTHING = ("admin", "notify", "read")


class Desk(MemoryServer):
    """See the module; who watches has a Session, too.

    Attributes:
        ready: whether the server says that it takes work.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ready = True
        sources = Sources(
            self.sessions, self.notifications, self.online, self.recorder, self.clock, self.wall
        )
        readings = Readings(self.metrics, self.sessions, self.online, lambda: self.ready, wall=self.wall)
        self.router.extend(console_router(sources, self.pubsub, readings, {"node": "memory"}))

    def operator(self, *scopes: str) -> Client:
        """Connect somebody with a key for some scopes."""
        return self.connect("ops", groups=scopes)

    def user(self, user_id: str, device: str | None = None, **claims: Any) -> Client:
        """Connect a user who joins their topic."""
        client = self.connect(user_id, **claims)
        client.join(f"user:{user_id}", {} if device is None else {"device": device})
        return client


def events(client: Client, event: str) -> list[Any]:
    """Take the payloads of an event that have come."""
    return [frame.payload for frame in client.received() if frame.event == event]
