"""A Phoenix client that waits for each answer, for tests that have no reactor to run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect


class BlockingClient:
    """A connection to a server; made by `connected`."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._refs = count(1)

    def ask(self, topic: str, event: str, payload: object = None) -> dict[str, Any]:
        """Send a message and wait for its reply; its payload, with ``status`` and ``response``."""
        ref = str(next(self._refs))
        self._connection.send(json.dumps([topic, ref, topic, event, payload or {}]))
        while True:
            _, ref_of, _, event_of, answer = json.loads(self._connection.recv(timeout=10))
            if event_of == "phx_reply" and ref_of == ref:
                found: dict[str, Any] = answer
                return found

    def join(self, topic: str) -> dict[str, Any]:
        return self.ask(topic, "phx_join")

    def is_open(self) -> bool:
        """Whether a heartbeat is answered."""
        return bool(self.ask("phoenix", "heartbeat")["status"] == "ok")

    def closed_with(self, within: float = 10.0) -> tuple[int, str]:
        """Wait for the server to close the connection; the code and the reason."""
        deadline = time.monotonic() + within
        try:
            while True:
                self._connection.recv(timeout=max(0.0, deadline - time.monotonic()))
        except ConnectionClosed as end:
            assert end.rcvd is not None, "it was dropped"
            return end.rcvd.code, end.rcvd.reason


@contextmanager
def connected(socket_url: str, token: str, **options: Any) -> Iterator[BlockingClient]:
    """Connect, and close in the end; ``options`` are those of `websockets.sync.client.connect`."""
    url = f"{socket_url}/websocket?vsn=2.0.0&token={token}"
    with connect(url, close_timeout=1, **options) as connection:
        yield BlockingClient(connection)
