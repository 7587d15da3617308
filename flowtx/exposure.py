"""Warnings of settings that are allowed, and that leave something open which is better closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from twisted.logger import Logger

from flowtx.loopback import is_loopback
from flowtx.settings import Settings

_ENCRYPTED: Final = ("ssl:", "tls:")

_log = Logger()


def warn_of_exposure(settings: Settings) -> None:
    """Log a line for each of the settings that leaves something open."""
    if not is_loopback(settings.admin) and not settings.admin.startswith(_ENCRYPTED):
        _log.warn(
            "--admin: {endpoint} may be reached from other machines, without TLS: API keys cross the "
            "network in the clear; give ssl:…, or an interface behind a proxy that has TLS",
            endpoint=settings.admin,
        )
    if not settings.origins_checked and not all(map(is_loopback, settings.listen)):
        _log.warn(
            "--check-origin: false lets the pages of every site connect, with any token that they have "
            "got hold of; give the origins of your own, such as https://example.com"
        )


def warn_of_arguments(given: Mapping[str, object]) -> None:
    """Log a line where a password is among the arguments of this process, which everybody can list."""
    database = str(given.get("database", ""))
    login = database.partition("://")[2].rpartition("@")[0]
    if ":" in login or "password=" in database:
        _log.warn(
            "--database: what stands on the command line, every user of this machine can read; "
            "give a URL with a password as FLOWTX_DATABASE or in the file of --config"
        )
