"""What a team on Django runs: Channels on Daphne with the in-memory layer, and PyJWT.

It checks the token of a handshake, echoes what it is sent, and has the layer send to everybody what
``POST /api/broadcasts`` asks for. Nothing else. Started by: ``SECRET_FILE=... daphne server:app``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import django
import jwt
from django.conf import settings

settings.configure(
    SECRET_KEY="of a benchmark",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF="server",
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402 - as they need the settings
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.http import HttpRequest, JsonResponse  # noqa: E402
from django.urls import path  # noqa: E402

SECRET = Path(os.environ["SECRET_FILE"]).read_bytes()


class Client(AsyncWebsocketConsumer):
    groups = ("everybody",)

    async def connect(self) -> None:
        try:
            token = parse_qs(self.scope["query_string"].decode())["token"][0]
            jwt.decode(token, SECRET, ["HS256"])
        except (KeyError, jwt.InvalidTokenError):
            await self.close()
            return
        await self.accept()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data, bytes_data)

    async def news(self, event: dict[str, Any]) -> None:
        await self.send(event["text"])


async def broadcast(request: HttpRequest) -> JsonResponse:
    asked = json.loads(request.body)
    text = json.dumps(
        ["1", None, asked["topic"], asked["event"], asked["payload"]],
        separators=(",", ":"),
        ensure_ascii=False,
    )
    await get_channel_layer().group_send("everybody", {"type": "news", "text": text})
    return JsonResponse({"delivered": -1}, status=202)


urlpatterns = [path("api/broadcasts", broadcast)]
app = ProtocolTypeRouter({"http": get_asgi_application(), "websocket": Client.as_asgi()})
