"""What the log looks like: a line of text an event, or a JSON object a line.

Whatever is in an event, it makes one line of a bounded length (a traceback follows it in the text form,
indented, and is a field of its own in the JSON form). Control characters are escaped, so that no client
can forge a line or speak to a terminal; what is named like a secret is left out. Each event that is
logged while a call is handled has the call's ids (`flowtx.tracing`).
"""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from twisted.logger import (
    FilteringLogObserver,
    ILogFilterPredicate,
    ILogObserver,
    LogEvent,
    LogLevel,
    LogLevelFilterPredicate,
    PredicateResult,
    eventAsText,
    formatEvent,
    formatTime,
)
from twisted.python.logfile import LogFile
from zope.interface import implementer, provider

from flowtx.recorder import SECRET_NAME
from flowtx.tracing import CALL

MAX_LINE: Final = 16_384
"""Bytes of a line of JSON with a traceback in it, or one that others log."""
MAX_PLAIN: Final = 512
"""Bytes of every other line that flowtx logs, in both forms."""
MAX_PRINTED: Final = 4_096
MAX_VALUE: Final = 1_024
MAX_TRACEBACK: Final = 8_192
MAX_KEYS: Final = 40

LEVELS: Final = {name: LogLevel.lookupByName(name) for name in ("debug", "info", "warn", "error")}

# Whatever ends a line, moves the cursor or turns the direction of what follows.
_UNSAFE: Final = re.compile(
    "[^\\x20-\\x7e\\xa0-\\u200a\\u2010-\\u2027\\u2030-\\u2064\\u2070-\\ud7ff\\ue000-\\U0010ffff]"
)
_PRINTED: Final = frozenset({"stdout", "stderr"})
# What Twisted's older interface adds, and what is said by other keys.
_NOT_SHOWN: Final = frozenset(
    {"time", "level", "namespace", "message", "traceback", "format", "system", "isError", "printed"}
    | {"failure", "why", "logLevel", "log_legacy"}
)

# What an operator finds a line by, and what is bounded already.
_IDS: Final = frozenset({"time", "level", "namespace", "request_id", "traceparent"})
_SHORTEST: Final = 32
"""Bytes that a value is not cut below."""

_predicate = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)


def set_level(level: str) -> None:
    """Log from now on what is at least so grave.

    Args:
        level: ``debug``, ``info``, ``warn`` or ``error``.

    Raises:
        KeyError: it is none of them.
    """
    _predicate.setLogLevelForNamespace("", LEVELS[level])


def make_observer(form: str, out: TextIO) -> Any:
    """Make the observer that a server logs by; `set_level` has effect on it.

    Args:
        form: ``text`` or ``json``.
        out: where to; a line is flushed as soon as it is written.
    """
    write = _Writer(_as_json if form == "json" else _as_text, out)
    return FilteringLogObserver(write, [_let_printed_pass, _predicate])


def observer_for(form: str, options: Mapping[str, Any] | None, soon: Callable[..., None]) -> Any:
    """Make the observer that takes the place of twistd's own, and writes where that would write.

    Args:
        form: ``text`` or ``json``.
        options: twistd's.
        soon: has something called by the reactor, from within a signal handler.

    Returns:
        None where twistd was told to log by ``--logger`` or ``--syslog``.
    """
    options = options or {}
    if options.get("logger") or options.get("syslog"):
        return None
    name = options.get("logfile") or ("-" if options.get("nodaemon") else "twistd.log")
    if name == "-":
        # twistd itself refuses a daemon that would log there.
        return make_observer(form, sys.stdout) if options.get("nodaemon") else None
    file = LogFile.fromFullPath(name)
    if not signal.getsignal(signal.SIGUSR1):
        signal.signal(signal.SIGUSR1, lambda *_: soon(file.rotate))
    return make_observer(form, file)


@provider(ILogFilterPredicate)
def _let_printed_pass(event: LogEvent) -> Any:
    # Who prints does not know of levels.
    return PredicateResult.yes if event.get("log_namespace") in _PRINTED else PredicateResult.maybe


@implementer(ILogObserver)
class _Writer:
    def __init__(self, form: Any, out: TextIO) -> None:
        self._form = form
        self._out = out

    def __call__(self, event: LogEvent) -> None:
        try:
            line = self._form(event)
        except Exception as problem:
            # An event that cannot be written must not vanish.
            why = f"an event of {event.get('log_namespace')} could not be logged: {type(problem).__name__}"
            line = _as_json_line({"level": "error", "message": why})
        if not line:
            return
        try:
            self._out.write(line)
        except UnicodeEncodeError:  # a terminal that is not of UTF-8
            self._out.write(line.encode("ascii", "backslashreplace").decode())
        self._out.flush()


def escaped(text: str) -> str:
    """Write what is not safe to show in one line as Python's escapes."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode(), text)


def cut(text: str, size: int) -> str:
    """Cut a text to so many bytes of UTF-8, and say so."""
    if len(text.encode("utf-8", "backslashreplace")) <= size:
        return text
    return text.encode("utf-8", "backslashreplace")[: size - 3].decode("utf-8", "ignore") + "…"


def _message(event: Mapping[str, Any]) -> str:
    failure = event.get("log_failure")
    message = formatEvent(dict(event))
    if not message and failure is not None:
        message = f"{failure.type.__name__}: {failure.getErrorMessage()}"
    return message


def _traceback(event: Mapping[str, Any]) -> str:
    failure = event.get("log_failure")
    if failure is None:
        return ""
    text = eventAsText(
        {"log_failure": failure}, includeTimestamp=False, includeSystem=False, includeTraceback=True
    ).strip()
    # The end names the exception, and the frames next to it.
    return text if len(text) <= MAX_TRACEBACK else f"…{text[-MAX_TRACEBACK:]}"


def _level(event: Mapping[str, Any]) -> str:
    level = event.get("log_level")
    return "-" if level is None else str(level.name)


def _as_text(event: LogEvent) -> str:
    message = _message(event)
    if not message:
        return ""
    namespace = str(event.get("log_namespace") or event.get("system") or "-")
    call = CALL.get()
    request_id = event.get("request_id", None if call is None else call.request_id)
    suffix = f" [{escaped(str(request_id))[:128]}]" if request_id is not None else ""
    system = str(event.get("log_system") or f"{namespace}#{_level(event)}")
    head = f"{formatTime(event.get('log_time'))} [{escaped(system)[:100]}] "
    if namespace.startswith("flowtx"):
        shown = cut(escaped(message), MAX_PLAIN - len(head) - len(suffix) - 1)
    else:
        # Others write in several lines, as Twisted's own form of the log has it.
        shown = "\n\t".join(map(escaped, cut(message, MAX_PRINTED).splitlines()))
    lines = [f"{head}{shown}{suffix}"]
    lines += [f"\t{escaped(line)}" for line in _traceback(event).splitlines()]
    return "\n".join(lines) + "\n"


def _as_json(event: LogEvent) -> str:
    message = _message(event)
    if not message:
        return ""
    seconds = event.get("log_time")
    at = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    line: dict[str, object] = {
        "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": _level(event),
        "namespace": str(event.get("log_namespace") or event.get("system") or "-")[:128],
        "message": message[:MAX_VALUE],
    }
    call = CALL.get()
    if call is not None:
        line["request_id"] = call.request_id
        if call.traceparent is not None:
            line["traceparent"] = call.traceparent
    for name, value in event.items():
        if len(line) >= MAX_KEYS:
            break
        if name.startswith("log_") or name in _NOT_SHOWN or SECRET_NAME.search(name):
            continue
        line[name[:64]] = _plain(value)
    traceback = _traceback(event)
    if traceback:
        line["traceback"] = traceback
    plain = not traceback and str(line["namespace"]).startswith("flowtx")
    return _as_json_line(line, MAX_PLAIN if plain else MAX_LINE)


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and abs(value) < 2**63:
        return value
    if isinstance(value, float) and abs(value) < float("inf"):
        return value
    try:
        return str(value)[:MAX_VALUE]
    except Exception:
        return f"({type(value).__name__})"


def _as_json_line(line: dict[str, object], size: int = MAX_PLAIN) -> str:
    text = _encode(line)
    while len(text) >= size:
        # What is longest is cut first: it is the least likely to be ours. The ids stay whole.
        sizes = {
            name: len(_encode(value))
            for name, value in line.items()
            if isinstance(value, str) and name not in _IDS
        }
        longest = max(sizes, key=sizes.__getitem__)
        if sizes[longest] > _SHORTEST:
            line[longest] = _halved(longest, str(line[longest]))
        else:
            line.popitem()
        text = _encode(line)
    return text + "\n"


def _halved(name: str, value: str) -> str:
    # The end of a traceback names the exception; of all else the beginning tells most.
    most = len(value) // 2
    return f"…{value[-most:]}" if name == "traceback" else f"{value[:most]}…"


def _encode(line: object) -> str:
    # All that is not ASCII is escaped, lone surrogates too; and DEL, which json lets pass.
    return json.dumps(line, ensure_ascii=True, separators=(",", ":")).replace("\x7f", "\\u007f")
