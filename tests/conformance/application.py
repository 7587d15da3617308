"""The Channels that the recorded cases were made with, in flowtx's terms.

``user:*``, ``room:*`` and ``slow:*`` (a join that takes so many milliseconds); the events are the
methods ``on_…`` of `RecordedChannel`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from flowtx.channels.channel import Channel, InResult, JoinResult, Reply, Stop, error, ok
from flowtx.channels.router import Router
from flowtx.protocol.close import DISCONNECT
from flowtx.protocol.message import Broadcast

BLOB = b"\x00\x01\x02\xff"
MASKED_ID = "x" * 36
"""What the recording has in the place of a random id."""


def make_router(clock: IReactorTime, disconnect: Callable[[str], None]) -> Router:
    """Serve the recorded application.

    Args:
        clock: the time.
        disconnect: closes all connections of a user id with `DISCONNECT`.
    """
    return (
        Router()
        .channel("user:*", lambda: UserChannel(clock, disconnect))
        .channel("room:*", lambda: RecordedChannel(clock, disconnect))
        .channel("slow:*", lambda: SlowChannel(clock, disconnect))
    )


class RecordedChannel(Channel):
    """All the events of the recording."""

    def __init__(self, clock: IReactorTime, disconnect: Callable[[str], None]) -> None:
        self._clock = clock
        self._disconnect = disconnect

    def handle_in(self, event: str, payload: Any) -> InResult | Awaitable[InResult]:
        handler = getattr(self, f"on_{event}", None)
        if handler is None:
            return super().handle_in(event, payload)
        result: InResult | Awaitable[InResult] = handler(payload)
        return result

    def on_ping(self, payload: Any) -> InResult:
        return ok(payload)

    def on_ok_only(self, _: Any) -> InResult:
        return ok()

    def on_err(self, _: Any) -> InResult:
        return error({"reason": "bad"})

    def on_err_only(self, _: Any) -> InResult:
        return error()

    def on_custom_status(self, _: Any) -> InResult:
        return Reply("pending", {"a": 1})

    def on_noreply(self, _: Any) -> InResult:
        return None

    def on_bin_in(self, payload: Any) -> InResult:
        return ok({"size": len(payload)})

    def on_bin_reply(self, _: Any) -> InResult:
        return ok(BLOB)

    def on_bin_push(self, _: Any) -> InResult:
        self.push("blob", BLOB)
        return None

    def on_bin_bcast(self, _: Any) -> InResult:
        self.broadcast("blob", BLOB)
        return None

    def on_push_me(self, payload: Any) -> InResult:
        self.push("pushed", payload)
        return None

    def on_bad_push(self, _: Any) -> InResult:
        self.push("pushed", {"object": object()})
        return None

    def on_shout(self, payload: Any) -> InResult:
        self.broadcast("shout", payload)
        return None

    def on_shout_others(self, payload: Any) -> InResult:
        self.broadcast_from("shout", payload)
        return None

    def on_shout_reply(self, payload: Any) -> InResult:
        self.broadcast("shout", payload)
        return ok()

    def on_async(self, _: Any) -> InResult:
        self._clock.callLater(0, self.reply, self.ref, ok({"async": True}))
        return None

    def on_stop_normal(self, _: Any) -> InResult:
        return Stop()

    def on_stop_reply(self, _: Any) -> InResult:
        return Stop("shutdown", ok({"bye": True}))

    def on_stop_bad(self, _: Any) -> InResult:
        return Stop("boom")

    def on_bad_return(self, _: Any) -> Any:
        return "nonsense"

    def on_crash(self, _: Any) -> InResult:
        raise RuntimeError("crash")

    def on_disconnect(self, payload: Any) -> InResult:
        self._disconnect(payload["id"])
        return ok()

    def on_disconnect_me(self, _: Any) -> InResult:
        self.socket.close(DISCONNECT)
        return ok()

    async def on_sleep(self, payload: Any) -> InResult:
        await deferLater(self._clock, payload["ms"] / 1000)
        return ok()

    def on_bcast(self, payload: Any) -> InResult:
        for _ in range(payload["n"]):
            notification = {"id": MASKED_ID, "title": "hello world"}
            self.socket.pubsub.publish(Broadcast("room:all", "notification", notification))
        return None

    def on_whoami(self, _: Any) -> InResult:
        return ok({"topic": self.topic, "user_id": self.socket.principal.user_id})


class UserChannel(RecordedChannel):
    """Some ids refuse, crash or answer on joining."""

    def join(self, payload: Any) -> JoinResult | Awaitable[JoinResult]:
        match self.topic.removeprefix("user:"):
            case "forbidden":
                return error({"reason": "unauthorized"})
            case "raise":
                raise RuntimeError("raise")
            case "badret":
                nonsense: Any = "nonsense"
                return nonsense  # type: ignore[no-any-return]
            case "reply":
                return ok({"params": payload, "welcome": True})
        return None


class SlowChannel(RecordedChannel):
    async def join(self, payload: Any) -> JoinResult:
        await deferLater(self._clock, int(self.topic.removeprefix("slow:")) / 1000)
        return ok()
