"""The example of a settings file, made from the settings themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Final

import msgspec

from flowtx.config import Option, options
from flowtx.settings import LIVE

WIDTH: Final = 100

_HEAD: Final = """\
# The settings of flowtx. Every line with a setting is commented out and shows the default; those that have
# none show an example. Take the # away to set one.
#
# The server reads this file with `twistd -n flow --config flow.toml`, or where FLOWTX_CONFIG names it. An
# option of the command line (--max-topics) beats the environment (FLOWTX_MAX_TOPICS), which beats this file.
# `flowtx check-config --config flow.toml` says whether it is good. This text is what `flowtx example-config`
# prints.
"""


def example_file() -> str:
    """Write a TOML file with every setting, commented out."""
    return "\n".join([_HEAD, *("\n".join([*_lines(option), ""]) for option in options())])


def _lines(option: Option) -> Iterator[str]:
    notes = [option.takes]
    if option.default is None and not option.flag:
        notes.append("not set by default")
    if option.name.replace("-", "_") in LIVE:
        notes.append("SIGHUP changes it")
    text = f"{option.help} ({'; '.join(notes)})"
    yield from textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ")
    # What JSON has of text, numbers, truth and lists is TOML as well.
    yield f"#{option.name} = {msgspec.json.encode(option.example).decode()}"
