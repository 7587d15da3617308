"""What a start would say of the settings and of the files that they name, without starting.

What others may hold is not looked at: ports, the data directory's lock, the database. Nothing is made,
and nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from zope.interface import implementer

from flowtx.app import load_app
from flowtx.auth import key_source
from flowtx.config import HMAC_ALGORITHMS, Settings
from flowtx.data_dir import DataDir, check_creatable
from flowtx.errors import StartupError
from flowtx.exposure import warn_of_exposure
from flowtx.listening import Listening
from flowtx.transports.origin import origin_rule
from flowtx.web.keys import read_keys


def check(settings: Settings) -> list[str]:
    """Check all that can be checked beforehand.

    Returns:
        Warnings, one line each.

    Raises:
        ConfigError, StartupError: what a start would fail with.
    """
    with _warnings() as warnings:
        if settings.app is not None:
            load_app(settings.app)
        data_dir = DataDir.foresee(settings.data_dir)
        if (data_dir.path / "api-key").exists():
            data_dir.api_key()
        _check_keys(settings, data_dir)
        origin_rule(settings)
        warn_of_exposure(settings)
        if settings.api_keys is not None:
            read_keys(Path(settings.api_keys).absolute())
        if settings.manhole_keys is not None:
            from flowtx.manhole.authorized_keys import read_keys as read_authorized_keys  # noqa: PLC0415

            read_authorized_keys(settings.manhole_keys)
        if settings.manhole is not None and (data_dir.path / "ssh_host_ed25519_key").exists():
            from flowtx.manhole.service import host_key  # noqa: PLC0415

            host_key(data_dir)
        for option, endpoint in _endpoints(settings):
            if not endpoint.startswith("systemd:"):  # which systemd gives to the server alone
                Listening(option, endpoint, Factory(), reactor=None)
    return warnings


def _check_keys(settings: Settings, data_dir: DataDir) -> None:
    if not HMAC_ALGORITHMS.issuperset(settings.jwt_algorithms):
        key_source(settings, None, reactor=Clock())
        return
    path = Path(settings.secret_file or data_dir.path / "secret").absolute()
    if path.exists():
        key_source(settings, data_dir.secret(settings.secret_file), reactor=Clock())
    elif settings.secret_file is not None:
        if path.parent.is_dir():
            check_creatable(path, f"--secret-file: {str(path)!r}")
        else:
            raise StartupError(f"--secret-file: there is no {str(path)!r}")


def _endpoints(settings: Settings) -> Iterator[tuple[str, str]]:
    yield from (("listen", endpoint) for endpoint in settings.listen)
    yield "admin", settings.admin
    if settings.manhole is not None:
        yield "manhole", settings.manhole


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what is logged as a warning meanwhile."""
    found: list[str] = []

    @implementer(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_level", LogLevel.info) >= LogLevel.warn:
            found.append(" ".join(formatEvent(event).split()))

    globalLogPublisher.addObserver(observe)
    try:
        yield found
    finally:
        globalLogPublisher.removeObserver(observe)
