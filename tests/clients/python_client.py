"""The client of PyPI ``phoenix-channels-python-client``, driven by JSON: see `tests.clients.driver`.

    {"do": "connect", "url": "ws://…/socket/websocket?token=…", "headers": {…}, "version": "2.0",
                      "heartbeat": 0.2}
    {"do": "join", "topic": "…"}
    {"do": "push", "topic": "…", "event": "…", "payload": {…}, "ref": "…"}
    {"do": "leave", "topic": "…"}
    {"do": "disconnect"}

Events: connected, failed (error), joined, refused (error), message (topic, event, payload, join_ref,
expected_join_ref), heartbeat, left, disconnected (error), reconnected, lost (topic, error), ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from phoenix_channels_python_client import PHXChannelsClient, ReconnectPolicy
from phoenix_channels_python_client.exceptions import PHXConnectionError, PHXTopicError
from phoenix_channels_python_client.utils import make_message

#: The client's own delays after a 1012 are made short, and a restart is no reason to give up.
POLICY = ReconnectPolicy(
    base_delay_s=0.1,
    service_restart_min_delay_s=0.1,
    service_restart_max_delay_s=0.2,
    rapid_disconnect_uptime_s=0,
)


def tell(what: str, **fields: object) -> None:
    sys.stdout.write(json.dumps({"what": what, **fields}) + "\n")
    sys.stdout.flush()


class Driver:
    client: PHXChannelsClient

    async def connect(
        self, url: str, headers: dict[str, str] | None = None, version: str = "2.0", heartbeat: float = 0.2
    ) -> None:
        async def disconnected(error: Exception | None) -> None:
            tell("disconnected", error=str(error))

        async def reconnected() -> None:
            tell("reconnected")

        async def lost(topic: str, error: Exception) -> None:
            tell("lost", topic=topic, error=str(error))

        self.client = PHXChannelsClient(
            url,
            "no-key",
            protocol_version=version,
            reconnect_policy=POLICY,
            heartbeat_interval_s=heartbeat,
            on_heartbeat_ack=lambda: tell("heartbeat"),
            on_disconnect=disconnected,
            on_reconnect=reconnected,
            on_topic_lost=lost,
            additional_headers=headers,
        )
        try:
            await self.client.__aenter__()
        except PHXConnectionError as error:
            tell("failed", error=str(error))
        else:
            tell("connected")

    async def join(self, topic: str) -> None:
        async def received(message: Any) -> None:
            tell(
                "message",
                topic=message.topic,
                event=str(message.event),
                payload=message.payload,
                ref=message.ref,
                join_ref=message.join_ref,
                expected_join_ref=self.client.get_current_subscriptions()[topic].join_ref,
            )

        try:
            await self.client.subscribe_to_topic(topic, received)
        except PHXTopicError as error:
            tell("refused", topic=topic, error=str(error))
        else:
            tell("joined", topic=topic)

    async def push(self, topic: str, event: str, payload: dict[str, Any], ref: str) -> None:
        # The client has no call of its own for this: only its codec.
        join_ref = self.client.get_current_subscriptions()[topic].join_ref
        message = make_message(event, topic, ref, payload, join_ref)
        await self.client.get_protocol_handler().send_message(self.client.connection, message)

    async def leave(self, topic: str) -> None:
        await self.client.unsubscribe_from_topic(topic)
        tell("left", topic=topic)

    async def disconnect(self) -> None:
        await self.client.shutdown("the driver was told to")
        tell("ended")


async def main() -> None:
    driver = Driver()
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        options = json.loads(line)
        await getattr(driver, options.pop("do"))(**options)
    await driver.client.shutdown("the driver's input has ended")


if __name__ == "__main__":
    asyncio.run(main())
