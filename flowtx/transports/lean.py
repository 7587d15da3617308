"""What Autobahn's protocol need not keep, copy or format for each connection.

- Each connection gets a copy of 29 options of its factory, and formats them for a log that is off: here
  they are attributes of the class. 310 us and 3.3 KiB of each connection.
- The arguments of many a debug line are coloured before anybody asks whether it is logged.
- After the handshake, some 50 attributes say that nothing has happened yet: those are left to the class,
  too, and what only the handshake needed is dropped. 4.5 KiB.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import autobahn.twisted.websocket
import autobahn.websocket.protocol
from autobahn.websocket.protocol import TrafficStats, WebSocketProtocol
from autobahn.websocket.utf8validator import Utf8Validator
from twisted.internet.defer import Deferred

SPENT: Final = frozenset(
    {
        "_results",
        "_transport_details",
        "_valid_events",
        "_wskey",
        "http_headers",
        "http_request_data",
        "http_request_host",
        "http_request_params",
        "http_request_path",
        "http_request_uri",
        "http_response_data",
        "http_status_line",
        "is_open",
        "peer",
        "trafficStats",
        "utf8validator",
        "websocket_extensions",
        "websocket_extensions_in_use",
        "websocket_origin",
        "websocket_protocol_in_use",
        "websocket_protocols",
        "websocket_version",
    }
)
"""What is of no use once the connection is open, or is made anew where it is."""

AT_REST: Final[dict[str, object]] = {
    **dict.fromkeys(
        (
            "_perMessageCompress",
            "autoPingPending",
            "autoPingPendingCall",
            "autoPingPendingSent",
            "autoPingTimeoutCall",
            "closeHandshakeTimeoutCall",
            "current_frame",
            "localCloseCode",
            "localCloseReason",
            "openHandshakeTimeoutCall",
            "remoteCloseCode",
            "remoteCloseReason",
            "trackedTimings",
            "wasNotCleanReason",
        )
    ),
    **dict.fromkeys(
        (
            "closedByMe",
            "droppedByMe",
            "failedByMe",
            "inside_message",
            "triggered",
            "wasClean",
            "wasCloseHandshakeTimeout",
            "wasMaxFramePayloadSizeExceeded",
            "wasMaxMessagePayloadSizeExceeded",
            "wasOpenHandshakeTimeout",
            "wasServerConnectionDropTimeout",
            "wasServingFlashSocketPolicyFile",
        ),
        False,
    ),
    "autoPingPendingSeq": 0,
    "data": b"",
    "send_state": WebSocketProtocol.SEND_STATE_GROUND,
}
"""What the attributes of a connection are for as long as nothing has happened."""


def _made_when_needed(name: str, make: Any) -> Any:
    made: cached_property[Any] = cached_property(make)
    made.attrname = name
    return made


def configured(protocol: type[Any], factory: Any) -> type[Any]:
    """Derive a class of connections that has the options of its factory, and rests as above.

    Args:
        protocol: the class; an option that it sets itself has the say, as it has with Autobahn.
        factory: has the options.
    """
    options = {name: getattr(factory, name) for name in protocol.CONFIG_ATTRS if not hasattr(protocol, name)}
    return type(
        protocol.__name__,
        (protocol,),
        {
            # A function would become a method.
            **{name: staticmethod(value) if callable(value) else value for name, value in options.items()},
            **AT_REST,
            "__module__": protocol.__module__,
            "CONFIG_ATTRS": (),
            # Nothing is ever queued here: nobody sends in pieces.
            "send_queue": (),
            # The only one that is let in.
            "websocket_version": 13,
            # One for all: nobody reads it.
            "trafficStats": TrafficStats(),
            # Most connections never send what takes the long road, nor end by themselves.
            "utf8validator": _made_when_needed("utf8validator", lambda _: Utf8Validator()),
            "is_closed": _made_when_needed("is_closed", lambda _: Deferred()),
            "is_open": _made_when_needed("is_open", lambda _: Deferred()),
        },
    )


def slim(connection: Any) -> None:
    """Take what `SPENT` and `AT_REST` say from a connection that has just been opened."""
    kept = {
        name: value
        for name, value in vars(connection).items()
        if name not in SPENT
        and not (name in AT_REST and value == AT_REST[name])
        and name not in ("send_queue", "is_closed")
    }
    # A dict of its own size; one that others have been taken from stays as large as it was.
    connection.__dict__ = kept


def _plain(value: object) -> object:
    return value


for _module in (autobahn.twisted.websocket, autobahn.websocket.protocol):
    _module.hltype = _module.hlval = _plain
