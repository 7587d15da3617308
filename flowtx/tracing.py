"""Which call is being handled: the ids that tie its log lines together.

An id comes with a request, as ``X-Request-Id``, or is made; with it may come a ``traceparent`` of the
W3C's Trace Context, which is carried on as it is. Both are kept in a context variable: what a coroutine
logs after it has waited still has them, since Twisted runs each coroutine in the context that began it.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Final, NamedTuple

from flowtx.ids import new_id

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")
# https://www.w3.org/TR/trace-context/#traceparent-header; a later version may have more fields.
_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-[!-~]{0,64})?")


class Call(NamedTuple):
    """What names a call, or a connection.

    Attributes:
        request_id: its id.
        traceparent: what the caller gave as such, if it has the form; or None.
    """

    request_id: str
    traceparent: str | None = None


CALL: Final[ContextVar[Call | None]] = ContextVar("flowtx_call", default=None)
"""The call that is being handled; None outside of any."""


def call_of(request_id: str | None, traceparent: str | None = None) -> Call:
    """Name a call by what came with it; what has not the form counts as absent.

    Args:
        request_id: the header ``X-Request-Id``, or None.
        traceparent: the header ``traceparent``, or None.
    """
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = new_id()[:16]
    return Call(request_id, traceparent if traceparent is not None and _is_traceparent(traceparent) else None)


def _is_traceparent(text: str) -> bool:
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return False
    version, trace, parent, further = found.groups()
    if version == "ff" or (version == "00" and further is not None):
        return False
    return trace.strip("0") != "" and parent.strip("0") != ""
