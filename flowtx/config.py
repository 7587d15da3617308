"""The settings: one typed value out of the command line, the environment and a TOML file.

A command-line option beats the environment (``FLOWTX_MAX_TOPICS``), which beats the file
(``max-topics``). Everything is checked here, and what is wrong is said in one line that names the
setting, what it got and what it takes.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from flowtx.errors import ConfigError
from flowtx.relations import check_relations
from flowtx.settings import (
    CLAIMS,
    HMAC_ALGORITHMS,
    PUBLIC_KEY_ALGORITHMS,
    USERS_QUERY,
    Settings,
    printable,
    redacted_url,
    shortened,
)

__all__ = [
    "CLAIMS",
    "ENVIRONMENT_PREFIX",
    "HMAC_ALGORITHMS",
    "PUBLIC_KEY_ALGORITHMS",
    "USERS_QUERY",
    "Settings",
    "load",
    "options",
    "redacted_url",
]

ENVIRONMENT_PREFIX: Final = "FLOWTX_"


class Option(NamedTuple):
    """One setting as the command line sees it.

    Attributes:
        name: e.g. ``max-topics``.
        help: what it means.
        default: None, or what to show as such.
        flag: whether it takes no value.
        repeatable: whether it may be given several times.
        takes: its type and bounds, in words.
        example: the default where it has one; otherwise a value that makes sense.
    """

    name: str
    help: str
    default: str | None
    flag: bool
    repeatable: bool
    takes: str
    example: object

    @property
    def text(self) -> str:
        """The help with the default."""
        return self.help if self.default is None else f"{self.help} [default: {self.default}]"


class Source(NamedTuple):
    """Where a value came from: its name there, for messages, and the value itself."""

    name: str
    value: object


def options() -> list[Option]:
    """List the settings in the order of their declaration."""
    result = []
    for field in msgspec.structs.fields(Settings):
        hint = _HINTS[field.name]
        plain, meta = _plain(hint), _meta(hint)
        default = field.default
        shown = ",".join(default) if isinstance(default, tuple) else default
        result.append(
            Option(
                name=field.name.replace("_", "-"),
                help=f"{meta.description}",
                default=None if shown is None or plain is bool else f"{shown}",
                flag=plain is bool,
                repeatable=field.name == "listen",
                takes=_takes(hint),
                example=next(iter(meta.examples or ()), None) if default is None else default,
            )
        )
    return result


def load(given: Mapping[str, object], environ: Mapping[str, str] | None = None) -> Settings:
    """Make the settings.

    Args:
        given: the command line: option names, and text, lists of text, or True for flags. The name
            ``config`` names the TOML file.
        environ: the environment; None for this process's own.

    Raises:
        ConfigError: see the module.
    """
    environment = os.environ if environ is None else environ
    variables = {
        name.removeprefix(ENVIRONMENT_PREFIX).lower(): Source(printable(shortened(name)), value)
        for name, value in environment.items()
        if name.startswith(ENVIRONMENT_PREFIX)
    }
    line = {
        name.replace("-", "_"): Source(printable(f"--{shortened(name)}"), value)
        for name, value in given.items()
    }
    sources: dict[str, Source] = {}
    file = line.pop("config", None) or variables.get("config")
    variables.pop("config", None)
    if file is not None:
        sources |= _read_file(str(file.value))
    sources |= variables
    sources |= line
    settings = Settings(**{name: _convert(name, source) for name, source in sources.items()})
    check_relations(settings)
    return settings


def _read_file(path: str) -> dict[str, Source]:
    try:
        table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"--config: cannot read {path!r}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"--config: {path!r} is not a TOML file: nested too deeply") from None
    except ValueError as error:
        raise ConfigError(f"--config: {path!r} is not a TOML file: {error}") from None
    sources: dict[str, Source] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        source = Source(printable(f"{path}: {shortened(key)}"), value)
        if name in sources:
            raise ConfigError(f"{source.name}: is given twice, as {sources[name].name} too")
        sources[name] = source
    return sources


def _convert(name: str, source: Source) -> Any:
    hint = _HINTS.get(name)
    if hint is None:
        close = get_close_matches(name, _HINTS, n=1)
        guess = f"; did you mean {close[0].replace('_', '-')}?" if close else ""
        raise ConfigError(f"{source.name}: there is no such setting{guess}")
    value = source.value
    if name == "check_origin" and f"{value}".strip().lower() == "false":
        value = ["false"]
    if _is_list(hint) and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if isinstance(value, str) and _plain(hint) is bool:
        value = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(
            value.lower(), value
        )
    try:
        converted = msgspec.convert(value, hint, strict=not isinstance(value, str))
    except (msgspec.MsgspecError, ValueError, OverflowError):  # ValueError: bytes that are no UTF-8
        converted = None
    # NaN passes every bound, and infinity where there is no upper one.
    endless = isinstance(converted, float) and not math.isfinite(converted)
    hollow = isinstance(converted, tuple) and not (converted and all(part.strip() for part in converted))
    if converted is None or endless or hollow:
        raise ConfigError(f"{source.name}: got {_shown(name, source.value)}; it takes {_takes(hint)}")
    return converted


def _shown(name: str, value: object) -> str:
    if name == "database":
        return "a value that is not shown"
    try:
        return f"{value!r:.80}"
    except ValueError:  # an int of thousands of digits
        return f"a value of type {type(value).__name__}"


def _takes(hint: Any) -> str:
    """Say in words what a setting takes."""
    plain = _plain(hint)
    kinds = [kind for kind in (get_args(plain) or (plain,)) if kind is not type(None)]
    if _is_list(hint):
        return "a list of text, not empty"
    if get_origin(plain) is Literal:
        return " or ".join(kinds)
    word = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[kinds[0]]
    for meta in get_args(hint)[1:]:
        if kinds[0] is str and meta.min_length:
            word += ", not empty"
        for bound, name in (("ge", "at least"), ("gt", "more than"), ("le", "at most")):
            value = getattr(meta, bound, None)
            if value is not None:
                word += f", {name} {value:.0f}"
    return word


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _is_list(hint: Any) -> bool:
    plain = _plain(hint)
    return any(get_origin(part) is tuple for part in (plain, *get_args(plain)))


def _meta(hint: Any) -> msgspec.Meta:
    """Find what describes a setting."""
    metas: list[msgspec.Meta] = [meta for meta in get_args(hint)[1:] if meta.description]
    return metas[0]


_HINTS: Final = get_type_hints(Settings, include_extras=True)
