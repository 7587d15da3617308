"""What a team on ASGI runs: uvicorn and Starlette, with PyJWT.

It checks the token of a handshake, echoes what it is sent, and sends to everybody what
``POST /api/broadcasts`` asks for. Nothing else. Started by: ``SECRET_FILE=... uvicorn server:app``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import jwt
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

SECRET = Path(os.environ["SECRET_FILE"]).read_bytes()

clients: set[WebSocket] = set()


async def socket(client: WebSocket) -> None:
    try:
        jwt.decode(client.query_params["token"], SECRET, ["HS256"])
    except (KeyError, jwt.InvalidTokenError):
        await client.close()
        return
    await client.accept()
    clients.add(client)
    try:
        while True:
            await client.send_text(await client.receive_text())
    except WebSocketDisconnect:
        pass
    finally:
        clients.discard(client)


async def broadcast(request: Request) -> JSONResponse:
    asked = await request.json()
    message = json.dumps(
        ["1", None, asked["topic"], asked["event"], asked["payload"]],
        separators=(",", ":"),
        ensure_ascii=False,
    )
    for client in tuple(clients):
        await client.send_text(message)
    return JSONResponse({"delivered": len(clients)}, 202)


app = Starlette(
    routes=[WebSocketRoute("/", socket), Route("/api/broadcasts", broadcast, methods=["POST"])],
)
