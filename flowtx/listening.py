"""A Twisted endpoint that is listened on for as long as its service runs."""

from __future__ import annotations

import re
from typing import Any, Final

from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory

from flowtx.errors import ConfigError, StartupError

BACKLOG: Final = 4_096
"""How many connections the system queues until they are accepted, where the endpoint does not say.

Past it the system drops the end of a handshake of TCP: the client takes the connection for made, and
waits for an answer for a minute and more. Twisted's own 50 are few when thousands come back at once.
"""

_WITHOUT_BACKLOG: Final = re.compile(r"(?:haproxy:)?(?:tcp[46]?|ssl|unix):(?!.*(?<!\\):backlog=)", re.DOTALL)


class Listening(Service):
    """Listens while it runs; unlike Twisted's own, a port that cannot be had fails the start.

    Args:
        option: the setting that gives the endpoint, for errors.
        endpoint: e.g. ``tcp:4000:interface=127.0.0.1``.
        factory: makes the protocols.
        reactor: the reactor.

    Raises:
        ConfigError: ``endpoint`` describes none.
    """

    def __init__(self, option: str, endpoint: str, factory: IProtocolFactory, *, reactor: Any) -> None:
        self._option = option
        self._description = endpoint
        self._factory = factory
        try:
            self._endpoint = _endpoint(reactor, endpoint)
        except Exception as error:
            if endpoint.startswith("systemd:") and isinstance(error, LookupError):
                raise StartupError(
                    f"--{option}: systemd has given no socket that {endpoint!r} names; "
                    "it takes a start by a .socket unit"
                ) from None
            # What reads an endpoint is a plugin: OpenSSL has errors of its own, for one.
            raise ConfigError(
                f"--{option}: got {endpoint!r}; it takes a Twisted endpoint such as tcp:4000 ({error})"
            ) from None
        self._port: IListeningPort | None = None

    @property
    def address(self) -> IAddress | None:
        """Where it listens, while it runs."""
        return None if self._port is None else self._port.getHost()

    def startService(self) -> Deferred[None]:
        """Listen; fails with `StartupError` where the address cannot be had."""
        super().startService()
        return Deferred.fromCoroutine(self._listen())

    async def _listen(self) -> None:
        try:
            self._port = await self._endpoint.listen(self._factory)
        except (CannotListenError, OSError, OverflowError) as error:
            cause = getattr(error, "socketError", error)
            why = getattr(cause, "strerror", None) or str(cause)
            raise StartupError(
                f"--{self._option}: cannot listen on {self._description}: {why}; give another address"
            ) from None

    def stopService(self) -> Deferred[None]:
        """Listen no more; connections that are open stay open."""
        super().stopService()
        port, self._port = self._port, None
        if port is None:
            return maybeDeferred(lambda: None)
        return maybeDeferred(port.stopListening).addCallback(lambda _: None)


def _endpoint(reactor: Any, description: str) -> Any:
    if _WITHOUT_BACKLOG.match(description):
        try:
            return serverFromString(reactor, f"{description}:backlog={BACKLOG}")
        except TypeError:
            pass  # it is given without its name, or something else is wrong
    return serverFromString(reactor, description)
