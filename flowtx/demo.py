"""The first minute: users to try things with, and what to type."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from shutil import which
from typing import TYPE_CHECKING, Final

from twisted.application.service import Service
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress

from flowtx.auth import mint, signing_algorithm
from flowtx.interfaces import User
from flowtx.storage.cluster import postgres_programs
from flowtx.storage.users import add_user

if TYPE_CHECKING:
    from flowtx.application import Flow

USERS: Final = (
    User("alice", "Alice Adams", "alice@example.com"),
    User("bob", "Bob Brown", "bob@example.com"),
)
TOKEN_LIFETIME: Final = 3_600.0

_CURL: Final = (
    'curl -X POST {admin}/api/notifications -H "Authorization: Bearer $(cat {key})" '
    '-H "Content-Type: application/json" '
    """-d '{{"user_ids": ["{user}"], "type": "deal.won", "payload": {{"title": "Acme signed"}}}}'"""
)

_TEXT: Final = """
flowtx is running. Ctrl-C stops it, its database included.

  Open       {page}
  Connect    new Socket("{client}", {{params: {{token}}}})   with npm "phoenix", then join user:{user}
  Token      of {user}, for an hour; flowtx token {user} makes another

{token}

Push a notification by HTTP:

{curl}

Or by SQL, in a transaction of your own:

{psql} {database} -c "SELECT flow.notify('{user}', 'deal.won', '{{\\"title\\": \\"Globex signed\\"}}')"
"""


class Demo(Service):
    """Adds users and prints what to open and what to type, once everything runs.

    Args:
        flow: the server.
        key_file: the file with the API key.
        secret: signs tokens; None where tokens come from elsewhere.
        show: prints a text; None for the terminal.
    """

    def __init__(
        self,
        flow: Flow,
        key_file: Path,
        secret: bytes | None,
        show: Callable[[str], object] | None = None,
    ) -> None:
        self._flow = flow
        self._key_file = key_file
        self._secret = secret
        self._show = show or _print

    def startService(self) -> Deferred[None]:
        super().startService()
        return Deferred.fromCoroutine(self._start())

    async def _start(self) -> None:
        for user in USERS:
            await add_user(self._flow.database, user)
        self._show(self._text())

    def _text(self) -> str:
        user = USERS[0].id
        client = url("ws", self._flow.clients[0].address) + "/socket"
        admin = url("http", self._flow.admin.address)
        return _TEXT.format(
            page=f"{admin}/demo#socket={client}&token={self._token(user)}",
            client=client,
            user=user,
            token=self._token(user),
            curl=_CURL.format(admin=admin, key=quote(str(self._key_file)), user=user),
            psql=quote(which("psql") or str(postgres_programs() / "psql")),
            database=quote(self._flow.database_url),
        )

    def _token(self, user: str) -> str:
        if self._secret is None:
            return "(to be made by your own backend)"
        algorithm = signing_algorithm(self._flow.settings.jwt_algorithms, self._secret)
        return mint(self._secret, algorithm, user, ttl=TOKEN_LIFETIME, now=time.time())


def _print(text: str) -> None:
    # The real one: twistd sends what is written to sys.stdout to the log, a line at a time.
    print(text, end="", file=sys.__stdout__, flush=True)


def url(scheme: str, address: IAddress | None) -> str:
    """Make a URL of where a port listens; of this machine where it listens on all addresses."""
    if not isinstance(address, IPv4Address | IPv6Address):
        return f"{scheme}://localhost"
    host = "127.0.0.1" if address.host in ("0.0.0.0", "::") else address.host  # noqa: S104
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"
