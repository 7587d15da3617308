"""Requests and answers of the HTTP API: JSON in and out, parameters, and what errors become."""

from __future__ import annotations

import re
from typing import Annotated, Final, NoReturn, TypeVar

import msgspec
from msgspec import Meta
from twisted.web.iweb import IRequest
from werkzeug.exceptions import HTTPException

from flowtx.errors import Conflict, InvalidPayload, StorageError, UnknownOutcome
from flowtx.protocol.places import of_text

T = TypeVar("T")

Word = Annotated[str, Meta(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
Key = Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*\Z")]
UserId = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.:@-]{1,128}\Z")]

_JSON: Final = re.compile(rb'application/json\s*(;\s*charset="?utf-8"?\s*)?', re.IGNORECASE)
_MAX_NUMBER: Final = 2**63 - 1


class Delivered(msgspec.Struct):
    """To how many on this node something was delivered."""

    delivered: int


class ApiError(Exception):
    """Ends a request with an error.

    Attributes:
        status: the HTTP status.
        code: a word for programs.
        detail: a sentence for people.
        retry_after: seconds after which to try again, or None.
    """

    def __init__(self, status: int, code: str, detail: str, retry_after: int | None = None) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after = retry_after


def read_body(request: IRequest, form: type[T]) -> T:
    """Read a body of JSON.

    Raises:
        ApiError: it is not JSON of that form.
    """
    content_type = request.getHeader(b"content-type") or b""
    if not _JSON.fullmatch(content_type):
        raise ApiError(415, "unsupported_media_type", "give Content-Type: application/json")
    text = request.content.read()
    try:
        return msgspec.json.decode(text, type=form)
    except RecursionError:
        invalid("nested too deep")
    except ValueError as error:
        invalid(of_text(text, error))


def invalid(detail: str) -> NoReturn:
    """End a request whose body has not the form that it takes."""
    raise ApiError(422, "invalid_payload", detail)


def answer(request: IRequest, status: int, value: object) -> bytes:
    """Answer with JSON."""
    request.setResponseCode(status)
    request.setHeader("Content-Type", "application/json")
    request.setHeader("Cache-Control", "no-store")
    body = msgspec.json.encode(value)
    request.setHeader("Content-Length", str(len(body)))
    return body


def parameter(request: IRequest, name: str) -> str | None:
    """A parameter of the query, or None."""
    values = request.args.get(name.encode())
    return values[-1].decode("utf-8", "replace") if values else None


def number(
    request: IRequest, name: str, *, default: int | None, least: int = 1, most: int = _MAX_NUMBER
) -> int | None:
    """A whole number of the query.

    Raises:
        ApiError: it is not one, or out of its bounds.
    """
    text = parameter(request, name)
    if text is None:
        return default
    if not re.fullmatch("[0-9]{1,19}", text) or not least <= int(text) <= most:
        raise ApiError(422, "invalid_parameter", f"{name}: got {text!r:.40}; it takes {least} to {most}")
    return int(text)


def flag(request: IRequest, name: str) -> bool:
    """A yes or no of the query; no where it is absent.

    Raises:
        ApiError: it is neither.
    """
    text = parameter(request, name)
    if text is None:
        return False
    if text.lower() not in _FLAGS:
        raise ApiError(422, "invalid_parameter", f"{name}: got {text!r:.40}; it takes true or false")
    return _FLAGS[text.lower()]


_FLAGS: Final = {"true": True, "1": True, "": True, "false": False, "0": False}


def as_api_error(problem: Exception) -> ApiError | None:
    """What an exception is to the caller; None for a fault of ours."""
    found = None
    match problem:
        case ApiError():
            found = problem
        case HTTPException():
            code = (problem.name or "error").lower().replace(" ", "_")
            found = ApiError(problem.code or 500, code, problem.description or code)
        case InvalidPayload():
            found = ApiError(422, "invalid_payload", problem.detail)
        case Conflict():
            found = ApiError(409, "conflict", str(problem))
        case UnknownOutcome():
            detail = f"{problem}; repeat the call with an idempotency_key"
            found = ApiError(503, "unknown_outcome", detail, retry_after=1)
        case StorageError():
            found = ApiError(503, "unavailable", str(problem), retry_after=1)
    return found


def user_id_of(text: str) -> str:
    """A user id out of a path.

    Raises:
        ApiError: no user can have it.
    """
    if not _USER_ID.fullmatch(text):
        raise ApiError(404, "not_found", "no user can have such an id")
    return text


_USER_ID: Final = re.compile("[A-Za-z0-9_.:@-]{1,128}")
