"""What load to put on a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from flowtx.errors import ConfigError

MAX_CLIENTS: Final = 10_000
MAX_SECONDS: Final = 3_600
MAX_RATE: Final = 1_000

# The schemes of URLs, each with its usual port.
_CLIENTS: Final = {"ws": 80, "wss": 443}
_API: Final = {"http": 80, "https": 443}


class Place(NamedTuple):
    """Where a URL leads.

    Attributes:
        host, port: of the server.
        secure: whether with TLS.
        name: what the server is called there.
    """

    host: str
    port: int
    secure: bool
    name: str


class Plan(NamedTuple):
    """What is to be done.

    Attributes:
        url: where clients connect: ``ws://HOST:PORT``, or ``wss://``.
        api: the HTTP API: ``http://HOST:PORT``.
        api_key: its key; it takes the scope ``notify``.
        tokens: of each client, by user id.
        seconds: of each kind of load.
        rate: messages that a client sends in a second.
    """

    url: str
    api: str
    api_key: str
    tokens: Mapping[str, str]
    seconds: float
    rate: float

    def check(self) -> None:
        """Look whether it can be done.

        Raises:
            ConfigError: a number is out of its bounds, or a URL is none.
        """
        if not 0 < len(self.tokens) <= MAX_CLIENTS:
            raise ConfigError(f"got {len(self.tokens)} clients; it takes 1 to {MAX_CLIENTS:,}")
        for name, value, most in (("seconds", self.seconds, MAX_SECONDS), ("rate", self.rate, MAX_RATE)):
            if not 0 < value <= most:
                raise ConfigError(f"--{name}: got {value:g}; it takes more than 0 and at most {most:,}")
        _place(self.api, _API)
        _place(self.url, _CLIENTS)

    @property
    def place(self) -> Place:
        """Where clients connect."""
        return _place(self.url, _CLIENTS)


def names(clients: int) -> list[str]:
    """Name the users of as many clients."""
    return [f"bench-{number + 1}" for number in range(min(clients, MAX_CLIENTS + 1))]


def read_tokens(file: str) -> dict[str, str]:
    """Read users and their tokens.

    Args:
        file: has a user id and a token a line, with space between.

    Raises:
        ConfigError: it cannot be read, or has something else.
    """
    tokens = {}
    for number, line in enumerate(_text("--tokens", file).splitlines(), 1):
        words = line.split()
        if len(words) != 2:
            raise ConfigError(f"--tokens: line {number} of {file!r} takes a user id and a token")
        tokens[words[0]] = words[1]
    return tokens


def read_api_key(file: str) -> str:
    """Read a key of the HTTP API.

    Raises:
        ConfigError: the file cannot be read.
    """
    return _text("--api-key-file", file).strip()


def _text(option: str, file: str) -> str:
    try:
        return Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}: {error}") from None


def _place(url: str, ports: Mapping[str, int]) -> Place:
    takes = " or ".join(f"{scheme}://HOST:PORT" for scheme in ports)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port == 0 or parts.scheme not in ports or parts.path not in ("", "/"):
        raise ConfigError(f"got the URL {url!r:.80}; it takes {takes}")
    return Place(host, port or ports[parts.scheme], parts.scheme in ("wss", "https"), parts.netloc)
