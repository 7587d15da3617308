"""SSH, as far as the manhole speaks it: conch's server, with what it leaves open closed.

conch is made for people who trust each other more than a network can. Before anybody has logged in:

- it waits ten hours for a login, counted from the end of the key exchange, and before that for ever;
- it writes names that a client sends into the *format* of a log event, whose fields may call methods;
- it inflates what is compressed, to any size;
- it goes on reading what came with the last try after it has hung up;
- an exception in a packet becomes a traceback in the log.

All that is answered here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from twisted.conch.error import ConchError, ValidPublicKey
from twisted.conch.interfaces import IConchUser
from twisted.conch.ssh.common import getNS
from twisted.conch.ssh.factory import SSHFactory
from twisted.conch.ssh.keys import Key
from twisted.conch.ssh.transport import (
    DISCONNECT_BY_APPLICATION,
    DISCONNECT_PROTOCOL_ERROR,
    SSHServerTransport,
    SSHTransportBase,
)
from twisted.conch.ssh.userauth import SSHUserAuthServer
from twisted.cred.credentials import ISSHPrivateKey
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from flowtx.errors import StartupError
from flowtx.manhole.authorized_keys import AuthorizedKey, read_keys
from flowtx.manhole.channel import Channels, Operator, ShellChannel, silent
from flowtx.manhole.interpreter import Interpreter
from flowtx.oneshot import OneShot

USER: Final = b"flow"
LOGIN_WITHIN: Final = 30.0
"""Seconds from the connection to the login."""
MAX_TRIES: Final = 3
MAX_REQUESTS: Final = 20
"""Requests of a login, with those that are no try."""
IDLE_FOR: Final = 900.0
"""Seconds without a key pressed after which a connection is closed."""
MAX_CONNECTIONS: Final = 20
GONE_WITHIN: Final = 2.0
"""Seconds that a client has to read what it is told at the end."""

#: The algorithms of signatures, with the type of the key of each; SHA-1 is not among them.
_SIGNATURES: Final = {
    b"ssh-ed25519": b"ssh-ed25519",
    b"ecdsa-sha2-nistp256": b"ecdsa-sha2-nistp256",
    b"ecdsa-sha2-nistp384": b"ecdsa-sha2-nistp384",
    b"ecdsa-sha2-nistp521": b"ecdsa-sha2-nistp521",
    b"rsa-sha2-256": b"ssh-rsa",
    b"rsa-sha2-512": b"ssh-rsa",
}

_log = Logger()


class Doorkeeper:
    """Lets in who has a key of the file, as the user ``flow``; what conch calls a portal.

    Args:
        keys_file: the file; read anew each time.
    """

    def __init__(self, keys_file: str) -> None:
        self._keys_file = keys_file

    def listCredentialsInterfaces(self) -> list[type[ISSHPrivateKey]]:
        """Public keys only."""
        return [ISSHPrivateKey]

    def let_in(
        self, credentials: Any, connection: Connection
    ) -> tuple[type[IConchUser], Operator, Callable[[], None]]:
        """Let somebody in.

        Raises:
            UnauthorizedLogin: not so.
            ValidPublicKey: not yet: the key is good, but has signed nothing.
        """
        key = self._verified(credentials)
        operator = Operator(key, connection)
        _log.info("Manhole: {key} logged in from {peer}", key=operator.name, peer=connection.peer)
        connection.logged_in()
        return IConchUser, operator, lambda: _log.info("Manhole: {key} logged out", key=operator.name)

    def _verified(self, credentials: Any) -> AuthorizedKey:
        if credentials.username != USER:
            raise UnauthorizedLogin("the user name is flow")
        try:
            keys = read_keys(self._keys_file)
        except StartupError as error:
            raise UnauthorizedLogin(str(error)) from None
        key = next((key for key in keys if key.blob == credentials.blob), None)
        if key is None:
            raise UnauthorizedLogin("its key is not in --manhole-keys")
        if not credentials.signature:
            raise ValidPublicKey
        if getNS(credentials.signature)[0] != credentials.algName:
            raise UnauthorizedLogin("its signature is of another kind than it says")
        if not Key.fromString(key.blob).verify(credentials.signature, credentials.sigData):
            raise UnauthorizedLogin("its signature is wrong")
        return key


class Login(SSHUserAuthServer):
    """The login of one connection: by public key, at most three times."""

    _log = silent
    attemptsBeforeDisconnect = MAX_TRIES - 1  # conch ends with the try after it
    loginTimeout = int(LOGIN_WITHIN)

    transport: Connection
    _requests = 0

    def serviceStarted(self) -> None:
        self.clock = self.transport.factory.clock
        super().serviceStarted()
        self.portal = _Door(self.portal, self.transport)

    def ssh_USERAUTH_REQUEST(self, packet: bytes) -> Any:
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            self.transport.leave(DISCONNECT_PROTOCOL_ERROR, b"too many requests")
            return None
        return super().ssh_USERAUTH_REQUEST(packet)

    def auth_publickey(self, packet: bytes) -> Deferred[Any]:
        algorithm, blob, _ = getNS(packet[1:], 2)
        if algorithm not in _SIGNATURES or getNS(blob)[0] != _SIGNATURES[algorithm]:
            return fail(UnauthorizedLogin("its kind of key is not taken"))
        answer: Deferred[Any] = super().auth_publickey(packet)
        return answer

    def _ebBadAuth(self, reason: Failure) -> None:
        if self.method != b"none" and reason.check(UnauthorizedLogin, ConchError):
            password = self.method in (b"password", b"keyboard-interactive")
            _log.warn(
                "Manhole: refused {user} from {peer}: {why}",
                user=f"{self.user!r:.80}",
                peer=self.transport.peer,
                why="only public keys are taken" if password else reason.getErrorMessage()[:300],
            )
        super()._ebBadAuth(reason)


class _Door:
    """The doorkeeper, as one connection meets them."""

    def __init__(self, doorkeeper: Doorkeeper, connection: Connection) -> None:
        self._doorkeeper = doorkeeper
        self._connection = connection

    def login(self, credentials: Any, *_: object) -> Deferred[Any]:
        return maybeDeferred(self._doorkeeper.let_in, credentials, self._connection)


class Connection(SSHServerTransport):
    """One SSH connection.

    Attributes:
        factory: what made it.
        peer: where it came from, for the log.
    """

    _log = silent
    ourVersionString = b"SSH-2.0-flowtx"
    supportedCiphers = [  # noqa: RUF012 - conch's form
        name for name in SSHTransportBase.supportedCiphers if name.startswith(b"aes") and b"ctr" in name
    ]
    supportedMACs = [b"hmac-sha2-512", b"hmac-sha2-256"]  # noqa: RUF012
    supportedKeyExchanges = [  # noqa: RUF012
        name
        for name in SSHTransportBase.supportedKeyExchanges
        if not name.endswith(b"sha1") and b"group-exchange" not in name
    ]
    supportedCompressions = [b"none"]  # noqa: RUF012

    factory: ManholeFactory
    transport: Any
    peer = ""
    _timer: IDelayedCall | None = None
    _over = False
    _known = False

    def connectionMade(self) -> None:
        self.factory.connections.add(self)
        self._set_timer(LOGIN_WITHIN)
        super().connectionMade()

    def connectionLost(self, reason: Failure | None = None) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.factory.connections.discard(self)
        try:
            super().connectionLost(reason)
        finally:
            if not self.factory.connections:
                self.factory.emptied.fire()

    def logged_in(self) -> None:
        """Note that somebody has logged in; from now on the connection may be idle for longer."""
        self._known = True
        self._set_timer(IDLE_FOR)

    def touch(self) -> None:
        """Note that somebody is there."""
        if not self._over:
            self._set_timer(IDLE_FOR)

    def soon(self, call: Callable[..., object], *args: object) -> None:
        """Call something once what is under way has been answered, unless the connection ends before."""
        self.factory.clock.callLater(0, lambda: None if self._over else call(*args))

    def leave(self, code: int, why: bytes) -> None:
        """End the connection, whether or not the client reads why."""
        self.sendDisconnect(code, why)

    def dataReceived(self, data: bytes) -> None:
        try:
            super().dataReceived(data)
        except Exception as error:  # noqa: BLE001, RUF100 - one of the four boundaries: a frame
            _log.warn(
                "Manhole: {peer} sent what cannot be understood ({kind})",
                peer=self.peer,
                kind=type(error).__name__,
            )
            self.leave(DISCONNECT_PROTOCOL_ERROR, b"that cannot be understood")

    def dispatchMessage(self, number: int, payload: bytes) -> None:
        # What came with the packet that ended it is not for anybody any more.
        if not self._over:
            super().dispatchMessage(number, payload)

    def sendDisconnect(self, reason: int, desc: bytes) -> None:
        if self._over:
            return
        self._over = True
        super().sendDisconnect(reason, desc[:200])
        self._set_timer(GONE_WITHIN)

    def sendExtInfo(self, _: object) -> None:
        """Tell what signatures are taken; conch would name only those of its host keys."""
        super().sendExtInfo([(b"server-sig-algs", b",".join(_SIGNATURES))])

    def _set_timer(self, seconds: float) -> None:
        if self._timer is None:
            self._timer = self.factory.clock.callLater(seconds, self._time_is_up)
        else:
            self._timer.reset(seconds)

    def _time_is_up(self) -> None:
        self._timer = None
        if self._over:
            self.transport.abortConnection()
        elif self._known:
            self.leave(DISCONNECT_BY_APPLICATION, b"nobody has typed anything for 15 minutes")
        else:
            _log.warn("Manhole: {peer} did not log in within {s:g} s", peer=self.peer, s=LOGIN_WITHIN)
            self.leave(DISCONNECT_BY_APPLICATION, b"no login within 30 seconds")


class ManholeFactory(SSHFactory):
    """Makes connections.

    Args:
        host_key: what the server proves itself with.
        keys_file: who may log in; see `flowtx.manhole.authorized_keys`.
        namespace: the names at the prompt.
        clock: the time.

    Attributes:
        connections: those that are open.
        shells: those that are open, of all connections.
        emptied: fires when the last connection has gone.
    """

    _log = silent
    noisy = False
    protocol = Connection
    services = {b"ssh-userauth": Login, b"ssh-connection": Channels}  # noqa: RUF012
    primes = None

    def __init__(
        self, host_key: Key, keys_file: str, namespace: Mapping[str, object], *, clock: IReactorTime
    ) -> None:
        kind = host_key.sshType()
        self.publicKeys = {kind: host_key.public()}
        self.privateKeys = {kind: host_key}
        self.portal = Doorkeeper(keys_file)
        self.clock = clock
        self.connections: set[Connection] = set()
        self.shells: set[ShellChannel] = set()
        self.emptied = OneShot()
        self._namespace = namespace
        self._under_way: set[Deferred[Any]] = set()

    def buildProtocol(self, addr: IAddress | None) -> Any:
        if len(self.connections) >= MAX_CONNECTIONS:
            _log.warn("Manhole: there are {count} connections, which is the most", count=MAX_CONNECTIONS)
            return None
        connection: Any = super().buildProtocol(addr)
        connection.peer = getattr(addr, "host", "a unix socket")
        return connection

    def interpreter(self, show: Callable[[str], object]) -> Interpreter:
        """Make what runs one shell."""
        return Interpreter(self._namespace, show, clock=self.clock, under_way=self._under_way)

    async def close(self) -> None:
        """Close all connections, and cancel what was left to go on; returns once they are gone."""
        for connection in list(self.connections):
            connection.leave(DISCONNECT_BY_APPLICATION, b"the server stops")
        if self.connections:
            self.emptied = OneShot()
            await self.emptied.when_fired()
        for going_on in list(self._under_way):
            going_on.cancel()
