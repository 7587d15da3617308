"""Public keys out of a JWKS, a file or an https URL, that follow the rotation of the signer's keys.

A key is found by its ``kid`` alone, in a dict; nothing in a token ever names a place to look. What a
stranger can cause is bounded: however many tokens name keys that do not exist, a file is looked at
once a second and a URL is fetched once a minute, by one request that all who wait share.

A change of a file is seen after a second. A new key at a URL is seen with the first token that names
it, or after the minute where a token had it fetched before; one that is gone is taken for five minutes.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Collection
from pathlib import Path
from typing import Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, ResponseDone
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IResponse
from zope.interface import implementer

from flowtx.errors import FlowtxError, Refused, StartupError
from flowtx.keys import KeySet, VerifyingKey, parse_jwks

#: All in seconds.
FETCH_TIMEOUT: Final = 3.0
FETCH_INTERVAL: Final = 60.0
RETRY_INTERVAL: Final = 1.0
MAX_AGE: Final = 300.0
LOOK_INTERVAL: Final = 1.0
#: The largest JWKS, in bytes.
MAX_SIZE: Final = 262_144


class _FetchFailed(FlowtxError):  # noqa: N818
    """A JWKS could not be had; the text says why, for the log."""


class JwksFile:
    """The keys of a file, which is read again when it has changed."""

    _log = Logger()

    def __init__(self, path: str, algorithms: Collection[str], clock: IReactorTime) -> None:
        """Read the file.

        Raises:
            StartupError: it cannot be read, or holds nothing to verify tokens with, or private keys.
        """
        self._path = Path(path).absolute()
        self._algorithms = algorithms
        self._clock = clock
        self._looked_at = clock.seconds()
        try:
            self._stamp = self._stamped()
            self._keys = self._read()
        except OSError as error:
            raise StartupError(f"--jwt-jwks: cannot read {path!r}: {error.strerror}") from None
        except ValueError as error:
            raise StartupError(f"--jwt-jwks: {path!r} is not a JWKS: {error}") from None
        if self._keys.private:
            raise StartupError(f"--jwt-jwks: {path!r} holds a private key; it takes public keys only")
        if not self._keys.keys:
            raise StartupError(
                f"--jwt-jwks: {path!r} holds no key that fits --jwt-algorithms {', '.join(algorithms)}"
            )

    async def find(self, kid: str | None) -> VerifyingKey:
        """Return the key of that name, or the only one.

        Raises:
            Refused: there is none.
        """
        now = self._clock.seconds()
        if now - self._looked_at >= LOOK_INTERVAL:
            self._looked_at = now
            self._look()
        key = self._keys.find(kid)
        if key is None:
            raise Refused("invalid_token")
        return key

    @property
    def ids(self) -> frozenset[str]:
        """Those of the keys that were read last."""
        return self._keys.ids

    def stop(self) -> None:
        """Do nothing: nothing is under way between two calls."""

    def _look(self) -> None:
        try:
            stamp = self._stamped()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            self._keys = self._read()
        except (OSError, ValueError) as error:
            self._log.warn("Keeping the old keys of {path}: {error}", path=str(self._path), error=str(error))
        else:
            self._log.info("Read {count} keys from {path}", count=len(self._keys.keys), path=str(self._path))

    def _stamped(self) -> tuple[int, int, int]:
        status = self._path.stat()
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> KeySet:
        with self._path.open("rb") as file:
            text = file.read(MAX_SIZE + 1)
        if len(text) > MAX_SIZE:
            raise ValueError(f"more than {MAX_SIZE} bytes")
        return parse_jwks(text, self._algorithms)


class JwksUrl:
    """The keys that an http server hands out, fetched at first use and then as the module says."""

    _log = Logger()

    def __init__(self, url: str, algorithms: Collection[str], reactor: IReactorTime) -> None:
        """Fetch nothing yet.

        Args:
            url: as `flowtx.auth.key_source` has checked it.
            algorithms: keys that fit none of them are left out.
            reactor: makes the connections and tells the time. A server's certificate is checked
                against what the system's OpenSSL trusts (``SSL_CERT_FILE`` names other authorities).
        """
        self._url = url
        self._algorithms = algorithms
        self._reactor = reactor
        self._keys: KeySet | None = None
        self._fetched_at = -math.inf
        self._next_fetch = reactor.seconds()
        self._failed = False
        self._fetch: Deferred[KeySet] | None = None
        self._waiting: list[Deferred[None]] = []

    async def find(self, kid: str | None) -> VerifyingKey:
        """Return the key of that name, or the only one, after a fetch where one is due.

        Raises:
            Refused: there is none; or, with the status 503, there is no telling.
        """
        now = self._reactor.seconds()
        stale = self._keys is None or now - self._fetched_at >= MAX_AGE or self._keys.find(kid) is None
        if stale and now >= self._next_fetch:
            await self._fetched()
        key = None if self._keys is None else self._keys.find(kid)
        if key is not None:
            return key
        self._next_fetch = max(self._next_fetch, self._fetched_at + FETCH_INTERVAL)
        if self._failed or self._keys is None:
            raise Refused("unavailable", 503, {"Retry-After": "1"})
        raise Refused("invalid_token")

    @property
    def ids(self) -> frozenset[str]:
        """Those of the keys that were fetched last."""
        return frozenset() if self._keys is None else self._keys.ids

    async def refresh(self) -> bool:
        """Fetch the keys now; whether that succeeded. Where it did not, the old ones are still taken."""
        await self._fetched()
        return not self._failed

    def stop(self) -> None:
        """Fetch nothing more, and give up a fetch that is under way; those who wait for it are refused."""
        if self._fetch is not None:
            self._fetch.cancel()
        self._next_fetch = math.inf

    def _fetched(self) -> Deferred[None]:
        # Each waits on a Deferred of its own, so that one who gives up does not take the fetch away
        # from the others.
        waiter: Deferred[None] = Deferred(self._leave)
        self._waiting.append(waiter)
        if self._fetch is None:
            fetch = self._fetch = Deferred.fromCoroutine(self._get())
            fetch.addTimeout(FETCH_TIMEOUT, self._reactor)
            fetch.addCallbacks(self._succeed, self._fail).addBoth(self._finish)
        return waiter

    async def _get(self) -> KeySet:
        connection = _Connection(self._reactor)
        # The Agent follows no redirect: the keys come from where the operator said, or not at all.
        agent = Agent.usingEndpointFactory(self._reactor, connection)
        headers = Headers({b"accept": [b"application/json"], b"user-agent": [b"flowtx"]})
        try:
            response = await cast(
                "Awaitable[IResponse]", agent.request(b"GET", self._url.encode("ascii"), headers)
            )
            if response.code != 200:
                raise _FetchFailed(f"HTTP status {response.code}")
            body = _Body()
            response.deliverBody(body)
            return parse_jwks(await body.received, self._algorithms)
        finally:
            connection.abort()

    def _succeed(self, keys: KeySet) -> None:
        now = self._reactor.seconds()
        # The very first keys may be followed by others at once, so that a rotation right after the start
        # is seen; `find` takes that back where it was a token of no key that fetched them.
        self._next_fetch = now if self._keys is None else now + FETCH_INTERVAL
        self._keys = keys
        self._fetched_at = now
        self._failed = False
        report = self._log.info if keys.keys else self._log.warn
        report("Fetched {count} usable keys from {url}", count=len(keys.keys), url=self._url)

    def _fail(self, failure: Failure) -> None:
        # Whatever it was, the server lives on with the keys that it has; told once per outage.
        if not self._failed:
            self._log.warn(
                "Cannot fetch {url}: {error}",
                url=self._url,
                error=f"{failure.type.__name__ if failure.type else ''}: {failure.value}"[:300],
            )
        self._failed = True
        self._next_fetch = self._reactor.seconds()
        self._next_fetch += RETRY_INTERVAL if self._keys is None else FETCH_INTERVAL

    def _finish(self, _: object) -> None:
        self._fetch = None
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.called:
                waiter.callback(None)

    def _leave(self, waiter: Deferred[None]) -> None:
        if waiter in self._waiting:
            self._waiting.remove(waiter)


@implementer(IAgentEndpointFactory, IStreamClientEndpoint)
class _Connection:
    """The connection of one fetch, which can be cut.

    A response offers an orderly end only, which over TLS waits for a server that may be stuck.
    """

    def __init__(self, reactor: IReactorTime) -> None:
        self._reactor = reactor
        self._endpoint: IStreamClientEndpoint | None = None
        self._protocol: IProtocol | None = None

    def endpointForURI(self, uri: URI) -> IStreamClientEndpoint:  # noqa: N802
        """Prepare to connect to the server of ``uri``."""
        self._endpoint = HostnameEndpoint(self._reactor, uri.host, uri.port, timeout=FETCH_TIMEOUT)
        if uri.scheme == b"https":
            policy = BrowserLikePolicyForHTTPS().creatorForNetloc(uri.host, uri.port)
            self._endpoint = wrapClientTLS(policy, self._endpoint)
        return cast("IStreamClientEndpoint", self)

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:  # noqa: N803
        """Connect, and keep hold of the connection."""
        assert self._endpoint is not None  # noqa: S101 - for the type checker
        return self._endpoint.connect(protocolFactory).addCallback(self._keep)

    def _keep(self, protocol: IProtocol) -> IProtocol:
        self._protocol = protocol
        return protocol

    def abort(self) -> None:
        """Cut the connection, if there is one."""
        transport = getattr(self._protocol, "transport", None)
        if transport is not None:
            transport.abortConnection()


class _Body(Protocol):
    """Collects a body.

    Attributes:
        received: fires with the body; fails where it is cut off, or longer than what is taken.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._size = 0
        self.received: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:  # noqa: N802
        """Keep a piece, within bounds."""
        if self.received.called:
            return
        self._size += len(data)
        self._pieces.append(data)
        if self._size > MAX_SIZE:
            self._pieces.clear()
            self.received.errback(_FetchFailed(f"more than {MAX_SIZE} bytes"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Hand over the body, if it is whole."""
        if self.received.called:
            return
        # Without a Content-Length the end of the connection is the end of the body.
        if reason.check(ResponseDone, PotentialDataLoss):
            self.received.callback(b"".join(self._pieces))
        else:
            self.received.errback(reason)
