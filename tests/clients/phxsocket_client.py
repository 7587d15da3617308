"""The client of PyPI ``phxsocket``, which speaks version 1, driven by JSON: see `tests.clients.driver`.

    {"do": "connect", "url": "ws://…/socket", "params": {…}}
    {"do": "join", "topic": "…", "payload": {…}}
    {"do": "push", "topic": "…", "event": "…", "payload": {…}, "id": "…"}
    {"do": "leave", "topic": "…"}
    {"do": "ping"}
    {"do": "disconnect"}

Events: open, failed (error), join and reply (topic, id, status, response), left, message (topic, event,
payload), pong, disconnected.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from phxsocket import Client
from phxsocket.channel import ChannelEvents


def tell(what: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"what": what, **fields}) + "\n")
    sys.stdout.flush()


class InOrder(Client):
    """Tells of messages in their order: the client itself gives each to a thread of its own."""

    def _on_message(self, text: str) -> None:
        message = json.loads(text)
        if not message["event"].startswith("phx_"):
            tell("message", topic=message["topic"], event=message["event"], payload=message["payload"])
        super()._on_message(text)


class Driver:
    client: Any

    def connect(self, url: str, params: dict[str, str]) -> None:
        self.client = InOrder(f"{url}/websocket", params)
        try:
            self.client.connect()
        except Exception as error:
            tell("failed", error=str(error))
        else:
            tell("open")

    def join(self, topic: str, payload: dict[str, Any]) -> None:
        self._ask("join", topic, ChannelEvents.JOIN, payload)

    def push(self, topic: str, event: str, payload: dict[str, Any], id: str) -> None:  # noqa: A002
        self._ask("reply", topic, event, payload, id=id)

    def leave(self, topic: str) -> None:
        self._ask("left", topic, ChannelEvents.LEAVE, {})

    def ping(self) -> None:
        self._ask("pong", "phoenix", "heartbeat", {})

    def _ask(self, what: str, topic: str, event: Any, payload: dict[str, Any], **more: object) -> None:
        self.client.push(topic, event, payload, cb=lambda answer: tell(what, topic=topic, **more, **answer))

    def disconnect(self) -> None:
        self.client.close()
        tell("disconnected")


def main() -> None:
    driver = Driver()
    while line := sys.stdin.readline():
        options = json.loads(line)
        getattr(driver, options.pop("do"))(**options)


if __name__ == "__main__":
    main()
