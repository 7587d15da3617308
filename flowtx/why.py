"""Why did a user drop? What the running server remembers of them, and one sentence about it.

The server's flight recorder is asked over its admin endpoint. What it has forgotten, since it was
started anew, the history of Sessions in the database still tells, if with fewer words.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from ipaddress import ip_address
from socket import AF_UNIX, socket
from typing import Any, Final
from urllib.parse import quote

import msgspec

from flowtx.errors import ConfigError, FlowtxError
from flowtx.interfaces import FinishedSession
from flowtx.logs import escaped

TIMEOUT: Final = 5.0
"""Seconds that the server may take to answer."""
MAX_SHOWN: Final = 40
"""Events that are printed, the latest."""

_PART: Final = re.compile(r"((?:[^:\\]|\\.)*)(?::|\Z)", re.DOTALL)

# By the word of the close; each goes after "Last closed 3 minutes ago: ".
_REASONS: Final = {
    "session_stopped": "the Session was stopped by an operator or the backend",
    "idle_timeout": "the user did nothing for the idle timeout",
    "connection_closed": "an operator or the backend closed this connection",
    "token_ended": "the token expired and the client had not renewed it",
    "token_revoked": "the token was revoked",
    "replaced": "the user opened more connections than max-devices allows",
    "disconnect": "a disconnect was broadcast to the user",
    "heartbeat_timeout": "nothing came from the client any more",
    "too_many_malformed_frames": "the client sent frames that are no messages",
    "too_many_fragments": "the client sent a message in too many fragments",
    "message_timeout": "the client began a message and did not end it",
    "internal_error": "something failed in the server, whose log says what",
    "drain": "the server stopped, or was started anew",
    "slow_consumer": "the client did not read what was sent to it",
    "rate_limited": "the client sent more than the limits allow",
    "connection_lost": "the connection was lost without a word: the network, or the client's end",
}
_CAUSES: Final = {
    "no_pong": "the client did not answer Pings (1002 pong timeout)",
    "no_frame": "no frame came from the client for the heartbeat timeout (1002 heartbeat_timeout)",
}
_ENDS: Final = {
    "window_expired": "the last connection had gone and no other came within the reconnection window",
    "idle_timeout": "the user did nothing for the idle timeout",
    "session_stopped": "it was stopped by an operator or the backend",
    "drain": "the server stopped, or was started anew",
    "crashed": "it crashed too often; the server's log says why",
    "refused": "the user is not known any more",
    "abandoned": "the client left before it was let in",
}
_REFUSALS: Final = {
    "expired_token": "its token has expired",
    "revoked_token": "its token is revoked",
    "unknown_user": "the user directory does not know the user",
    "too_many_devices": "the user has as many connections as max-devices allows",
    "unavailable": "the server or its database could not take it",
    "overloaded": "the server takes no more for the moment",
    "handshake_timeout": "the request was not whole in time",
}


class Unreachable(FlowtxError):  # noqa: N818 - a state, as `Unavailable`
    """The server cannot be asked."""


class Known(msgspec.Struct):
    """What is known of a user; all that is absent was not to be had.

    Attributes:
        events: as `flowtx.recorder.FlightRecorder.events` gives them.
        ends: as `flowtx.recorder.FlightRecorder.ends` gives them.
        connections: how many are open; None where no server was asked.
        unread: how many notifications wait; None where nobody could tell.
        history: the latest Sessions that have ended, the last one first.
    """

    events: Sequence[Mapping[str, Any]] = ()
    ends: Sequence[Mapping[str, Any]] = ()
    connections: int | None = None
    unread: int | None = None
    history: Sequence[FinishedSession] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing at all is known."""
        return not (self.events or self.ends or self.connections or self.history)


# The server


def ask(endpoint: str, api_key: str, user_id: str) -> Known:
    """Ask a running server.

    Args:
        endpoint: its admin endpoint, as it was given to it.
        api_key: a key with the scope ``read``.
        user_id: who it is about.

    Raises:
        Unreachable: it does not answer, or not as it should.
        ConfigError: nobody can connect to such an endpoint.
    """
    with closing(_connection(endpoint)) as connection:
        user = quote(user_id, safe="")
        recorded = _get(connection, f"/api/users/{user}/recorder", api_key)
        session = _get(connection, f"/api/sessions/{user}", api_key)
        inbox = _get(connection, f"/api/users/{user}/notifications?limit=1&unread=true", api_key)
    if recorded is None:
        raise Unreachable("the server has no flight recorder")
    return Known(
        events=recorded["events"],
        ends=recorded["ends"],
        connections=0 if session is None else len(session["connections"]),
        unread=None if inbox is None else inbox["unread"],
    )


def _get(connection: HTTPConnection, path: str, api_key: str) -> Any:
    """The JSON of an answer; None for a 404, and where the database cannot be asked."""
    try:
        # The server answers to its own names only.
        headers = {"Authorization": f"Bearer {api_key}", "Host": "localhost"}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        if answer.status in (404, 503):
            return None
        if answer.status != 200:
            raise Unreachable(f"the server answers {answer.status} to {path.partition('?')[0]}")
        return msgspec.json.decode(body)
    except (OSError, HTTPException, ValueError) as error:
        raise Unreachable(f"the server does not answer: {escaped(str(error))[:200]}") from None


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket(AF_UNIX)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def _connection(endpoint: str) -> HTTPConnection:
    kind, *parts = [re.sub(r"\\(.)", r"\1", part) for part in _PART.findall(endpoint)]
    named = dict(part.partition("=")[::2] for part in parts if "=" in part)
    plain = [part for part in parts if part and "=" not in part]
    if kind == "unix":
        return _UnixConnection(named.get("address") or plain[0])
    port = named.get("port") or (plain[0] if plain else "")
    if kind not in ("tcp", "tcp4", "tcp6", "ssl") or not port.isdigit() or port == "0":
        takes = "tcp:PORT, ssl:PORT or unix:PATH, with :interface=ADDRESS if need be"
        raise ConfigError(f"--admin: got {endpoint!r:.80}; to be asked, the server takes {takes}")
    host = named.get("interface") or ("::1" if kind == "tcp6" else "127.0.0.1")
    if ip_address(host).is_unspecified:
        host = "::1" if ":" in host else "127.0.0.1"
    if kind != "ssl":
        return HTTPConnection(host, int(port), timeout=TIMEOUT)
    # The server's own certificate, whatever name is in it, and no other.
    context = ssl.create_default_context(cafile=named.get("certKey") or named.get("privateKey", "server.pem"))
    context.check_hostname = False
    return HTTPSConnection(host, int(port), timeout=TIMEOUT, context=context)


# What there is to say


def tell(known: Known, user_id: str, now: datetime, most: int = MAX_SHOWN) -> list[str]:
    """Write what is known as lines, the conclusion last.

    Args:
        known: what is known.
        user_id: of whom.
        now: the time.
        most: how many events at the most.
    """
    lines = []
    events = known.events[-most:] if most else ()
    if len(events) < len(known.events):
        lines.append(f"({len(known.events) - len(events)} earlier events are left out)")
    lines += [_event(event) for event in events]
    if known.history:
        lines.append("Sessions that have ended, the last one first:")
        lines += [_finished(session) for session in known.history]
    return [*lines, conclusion(known, user_id, now)]


def conclusion(known: Known, user_id: str, now: datetime) -> str:
    """Say in one sentence why a user dropped."""
    if known.empty:
        return f"Nothing is known of {user_id}."
    told = []
    if known.connections:
        told.append(f"{user_id} is connected now, {_count(known.connections, 'connection')}")
    last = known.ends[-1] if known.ends else None
    if last is not None:
        told.append(f"{'last' if told else 'Last'} closed {_ago(last['at'], now)}: {_reason(last)}")
        told += _after(known.events, last["at"], now)
    elif known.history and not known.connections:
        session = known.history[0]
        why = _ENDS.get(session.reason, escaped(session.reason))
        ago = _span(now.timestamp() - session.ended_at)
        told.append(f"The last Session ended {ago} ago: {why} ({session.reason})")
    elif not told:
        refused = _after(known.events, "", now)
        told.append(f"{user_id} was not connected as far back as is known")
        told += refused
    if known.unread:
        told.append(f"{_count(known.unread, 'notification')} wait{'s' if known.unread == 1 else ''}")
    return "; ".join(told) + "."


def _reason(end: Mapping[str, Any]) -> str:
    code = "" if end.get("code") is None else f"{end['code']} "
    given = escaped(str(end.get("reason", "")))
    if end.get("by") == "client":
        return f"the client closed it ({f'{code}{given}'.strip()})"
    cause = _CAUSES.get(str(end.get("cause")))
    word = given.split(" ")[0]
    return cause or f"{_REASONS.get(word, 'the server closed it')} ({code}{given})"


def _after(events: Sequence[Mapping[str, Any]], since: str, now: datetime) -> list[str]:
    """Tell of the handshakes that were refused after the last end."""
    refused = [event for event in events if event["event"] == "refused" and event["at"] >= since]
    if not refused:
        return []
    latest = refused[-1]
    why = _REFUSALS.get(str(latest.get("reason")), "it was refused")
    times = "once" if len(refused) == 1 else f"{len(refused)} times"
    return [f"refused {times} since, last {_ago(latest['at'], now)}: {why} ({latest.get('reason')})"]


def _event(event: Mapping[str, Any]) -> str:
    hidden = ("at", "event", "connected_at", "session", "restarts")
    details = [
        f"{name}={escaped(str(value)[:8] if name == 'connection' else str(value))}"
        for name, value in event.items()
        if name not in hidden and value not in (None, "")
    ]
    return "  ".join([event["at"], event["event"].replace("_", " "), *details])


def _finished(session: FinishedSession) -> str:
    ended = datetime.fromtimestamp(session.ended_at, UTC).isoformat(timespec="seconds")
    lasted = f"after {_span(session.duration_seconds)}"
    connections = _count(session.connections, "connection")
    return "  ".join([ended.replace("+00:00", "Z"), session.reason, lasted, connections, session.node])


def _ago(at: str, now: datetime) -> str:
    return f"{_span((now - datetime.fromisoformat(at)).total_seconds())} ago"


def _span(seconds: float) -> str:
    for size, name in ((86_400, "day"), (3_600, "hour"), (60, "minute")):
        if seconds >= size:
            return _count(int(seconds // size), name)
    return _count(max(0, int(seconds)), "second")


def _count(number: int, name: str) -> str:
    return f"{number} {name}" if number == 1 else f"{number} {name}s"
