"""The description of the HTTP API in OpenAPI 3.1, made of its routes and of the types of their bodies."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Final

import msgspec
from twisted.web.iweb import IRequest

from flowtx.web.api import Route
from flowtx.web.requests import UserId

REFERENCES: Final = "#/components/schemas/{name}"


class Error(msgspec.Struct):
    """Why a call has failed: a word for programs, and a sentence for people."""

    error: str
    detail: str


ERRORS: Final[Mapping[int, str]] = {
    400: "`bad_request`: what came is not HTTP/1.1 as it can be understood",
    401: "`unauthorized`: no key, an unknown one, or one without the scope of this call",
    403: "`cross_site`: a page of another site calls; `forbidden_host`: the header Host names another host",
    404: "`not_found`: there is none",
    405: "`method_not_allowed`: the path takes what the header Allow says",
    408: "`request_timeout`: the request was not whole within 10 s",
    409: "`conflict`: the idempotency key was used before, for something else",
    413: "`body_too_large`: more than 1 MiB; `too_many_users`: more users than the call takes",
    415: "`unsupported_media_type`: the body is not `application/json` in UTF-8",
    422: "`invalid_payload` or `invalid_parameter`: the detail names the place, and what it takes",
    431: "`header_too_large`: more than 16 KiB or 500 lines of header",
    503: "`unavailable`: try again after `Retry-After` seconds; `unknown_outcome`: it may have been done, "
    "repeat it with an idempotency key",
}
_OF_ALL: Final = (400, 403, 405, 408, 431, 503)
_OF_BODIES: Final = (413, 415, 422)

_PATH_TYPES: Final[Mapping[str, Any]] = {"user_id": UserId, "group": UserId}
_PARAMETER: Final = re.compile(r"<(?:[a-z]+:)?([a-z_]+)>")
#: What a docstring says of the call that is in the description anyway.
_CALL: Final = re.compile(r"\A``[^`]*``:\s*")


class DescriptionCall:
    """Serves the description.

    Args:
        routes: what it describes, besides its own.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        self._document = msgspec.json.encode(describe([*routes, *self.routes()]))

    def routes(self) -> Iterator[Route]:
        """The calls."""
        yield Route(
            "GET", "/api/openapi.json", self.description, open=True, answers={200: dict[str, msgspec.Raw]}
        )

    def description(self, request: IRequest) -> bytes:
        """Describe this API in OpenAPI 3.1."""
        request.setHeader("Content-Type", "application/json")
        return self._document


def describe(routes: Sequence[Route]) -> dict[str, Any]:
    """Make the description of routes, as a value of JSON.

    Raises:
        ValueError: two of them have the same method and path.
    """
    types = [route.body for route in routes if route.body is not None]
    types += [kind for route in routes for kind in route.answers.values() if not _is_media(kind)]
    types += [query.type for route in routes for query in route.query]
    types += [Error, *_PATH_TYPES.values()]
    schemas, components = msgspec.json.schema_components(
        types, schema_hook=_schema_of, ref_template=REFERENCES
    )
    known = _Schemas(list(zip(types, map(_portable, schemas), strict=True)))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = paths.setdefault(_PARAMETER.sub(r"{\1}", route.path), {})
        if route.method.lower() in path:
            raise ValueError(f"{route.method} {route.path} is there twice")
        path[route.method.lower()] = _operation(route, known)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "flowtx",
            "version": version("flowtx"),
            "description": "The HTTP API for backends and operators, on the admin endpoint.",
        },
        "paths": paths,
        "components": {
            "schemas": {name: _portable(schema) for name, schema in components.items()},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


class _Schemas:
    """The schemas of types, which need not be hashable."""

    def __init__(self, pairs: Sequence[tuple[Any, Any]]) -> None:
        self._pairs = pairs

    def __getitem__(self, kind: Any) -> Any:
        return next((schema for known, schema in self._pairs if known is kind), {"type": "string"})


def _operation(route: Route, schemas: _Schemas) -> dict[str, Any]:
    said = _CALL.sub("", inspect.getdoc(route.handle) or "")
    summary, _, rest = said.partition("\n")
    operation: dict[str, Any] = {
        "operationId": f"{route.handle.__name__}_{route.method}".lower(),
        "summary": summary[:1].upper() + summary[1:].rstrip(".:"),
    }
    if rest.strip():
        operation["description"] = rest.strip().replace("``", "`")
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": schemas[_PATH_TYPES.get(name)]}
        for name in _PARAMETER.findall(route.path)
    ]
    parameters += [
        {"name": query.name, "in": "query", "description": query.description, "schema": schemas[query.type]}
        for query in route.query
    ]
    if parameters:
        operation["parameters"] = parameters
    errors = {*route.errors, *_OF_ALL}
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(schemas[route.body])}
        errors.update(_OF_BODIES)
    if route.query:
        errors.add(422)
    if not route.open:
        operation["security"] = [{"key": [route.scope]}]
        errors.add(401)
    answers = {str(status): _answer(kind, schemas) for status, kind in route.answers.items()}
    refusals = {
        str(status): {"description": ERRORS[status], "content": _json(schemas[Error])}
        for status in sorted(errors)
        if status not in route.answers
    }
    operation["responses"] = answers | refusals
    return operation


def _answer(kind: Any, schemas: _Schemas) -> dict[str, Any]:
    if _is_media(kind):
        media = (kind,) if isinstance(kind, str) else kind
        return {"description": "Done", "content": {name: {"schema": {"type": "string"}} for name in media}}
    return {"description": "Done", "content": _json(schemas[kind])}


def _json(schema: Any) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _is_media(kind: Any) -> bool:
    """Whether the type of an answer is the name of media, or several: it is no JSON then."""
    return isinstance(kind, str | tuple)


def _schema_of(kind: type) -> dict[str, Any]:
    """The schema of a type that `msgspec` has none for."""
    if kind is object:
        return {"description": "any value"}  # nothing at all would count as no schema
    raise NotImplementedError


def _portable(schema: Any) -> Any:
    """Write patterns as JavaScript has them, where the end of the text is ``$``."""
    if isinstance(schema, dict):
        return {
            name: value.replace(r"\Z", "$")
            if name == "pattern" and isinstance(value, str)
            else _portable(value)
            for name, value in schema.items()
        }
    return [_portable(value) for value in schema] if isinstance(schema, list) else schema
