"""conch's own SSH client against the manhole's server, in memory and under a Clock."""

from __future__ import annotations

import shutil
import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from twisted.conch.error import ConchError
from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import NS, getNS
from twisted.conch.ssh.connection import SSHConnection
from twisted.conch.ssh.keys import Key
from twisted.conch.ssh.session import packRequest_pty_req
from twisted.conch.ssh.transport import SSHClientTransport
from twisted.conch.ssh.userauth import SSHUserAuthClient
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.test.iosim import IOPump, connect, makeFakeClient, makeFakeServer
from twisted.trial.unittest import SynchronousTestCase

from flowtx.manhole.ssh import ManholeFactory

ADA, EVE, MALLORY = (Key(ed25519.Ed25519PrivateKey.generate()) for _ in range(3))
RSA = Key(rsa.generate_private_key(65537, 2048))
SHORT_RSA = Key(rsa.generate_private_key(65537, 1024))
ECDSA = Key(ec.generate_private_key(ec.SECP256R1()))
HOST = Key(ed25519.Ed25519PrivateKey.generate())


def line(key: Key, comment: str = "") -> str:
    """The line of a key in a file of keys."""
    text: bytes = key.public().toString("openssh", comment=comment)
    return text.decode()


class Auth(SSHUserAuthClient):
    """Offers keys, one after the other; without any it does nothing by itself.

    Attributes:
        can_continue: what the server took last for methods that can go on, where there are no keys.
    """

    def __init__(self, user: bytes, client: Client, keys: Sequence[Key]) -> None:
        super().__init__(user, client.channels)
        self.can_continue = b""
        self._patient = not keys
        self._keys = list(keys)
        self._key: Key | None = None

    def getPublicKey(self) -> Key | None:
        self._key = self._keys.pop(0) if self._keys else None
        return None if self._key is None else self._key.public()

    def getPrivateKey(self) -> Any:
        return succeed(self._key)

    def getPassword(self, prompt: object = None) -> Deferred[bytes]:
        return succeed(b"a password")

    def ssh_USERAUTH_FAILURE(self, packet: bytes) -> Any:
        if self._patient:
            self.can_continue = getNS(packet)[0]
            return None
        return super().ssh_USERAUTH_FAILURE(packet)


class Client(SSHClientTransport):
    """A client; `ended` says why the server has ended the connection."""

    def __init__(self, user: bytes, keys: Sequence[Key]) -> None:
        self.channels = Channels()
        self.ended: bytes | None = None
        self.lost = False
        self.auth: Any = Auth(user, self, keys)

    def verifyHostKey(self, hostKey: bytes, fingerprint: bytes) -> Deferred[bool]:  # noqa: N803
        assert hostKey == HOST.public().blob()
        return succeed(True)

    def connectionSecure(self) -> None:
        self.requestService(self.auth)

    def receiveError(self, reasonCode: int, description: bytes) -> None:  # noqa: N803
        self.ended = description

    def connectionLost(self, reason: Any = None) -> None:
        self.lost = True
        super().connectionLost(reason)


class Channels(SSHConnection):
    """The channels of a client, once it has logged in."""

    started = False

    def serviceStarted(self) -> None:
        self.started = True


class Shell(SSHChannel):
    """A channel that keeps what it got."""

    name = b"session"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.output = b""
        self.errors = b""
        self.status: int | None = None
        self.refused: ConchError | None = None
        self.is_open = False
        self.is_closed = False
        self.replies: list[bool] = []

    def channelOpen(self, specificData: bytes) -> None:  # noqa: N803
        self.is_open = True

    def openFailed(self, reason: Any) -> None:
        self.refused = reason

    def dataReceived(self, data: bytes) -> None:
        self.output += data

    def extReceived(self, dataType: int, data: bytes) -> None:  # noqa: N803
        self.errors += data

    def request_exit_status(self, data: bytes) -> None:
        (self.status,) = struct.unpack(">L", data)

    def closed(self) -> None:
        self.is_closed = True

    def ask(self, kind: bytes, data: bytes = b"") -> None:
        """Send a request, whose reply is kept."""
        asked: Any = self.conn.sendRequest(self, kind, data, wantReply=1)  # type: ignore[union-attr]
        asked.addCallbacks(lambda _: self.replies.append(True), lambda _: self.replies.append(False))


class ManholeTestCase(SynchronousTestCase):
    """A manhole with Ada's key, and what it logs."""

    names: Mapping[str, object] = {}

    def setUp(self) -> None:
        self.clock = Clock()
        directory = Path(tempfile.mkdtemp(prefix="flowtx-"))
        self.addCleanup(shutil.rmtree, directory)
        self.keys_file = directory / "authorized_keys"
        self.write_keys(line(ADA, "ada@laptop"))
        self.factory = ManholeFactory(HOST, str(self.keys_file), dict(self.names), clock=self.clock)
        self.factory.startFactory()
        self.logged: list[str] = []
        observer: Any = self._observe
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def _observe(self, event: LogEvent) -> None:
        if event.get("log_namespace", "").startswith(("flowtx", "twisted.conch")):
            self.logged.append(formatEvent(event))

    def write_keys(self, *lines: str) -> None:
        self.keys_file.write_text("\n".join(lines) + "\n")
        self.keys_file.chmod(0o600)

    def dial(self, *keys: Key, user: bytes = b"flow", client: Client | None = None) -> tuple[Client, IOPump]:
        """Connect, and log in if the server lets one."""
        client = client or Client(user, keys or (ADA,))
        server = self.factory.buildProtocol(None)
        assert server is not None
        pump = connect(server, makeFakeServer(server), client, makeFakeClient(client))
        pump.flush()
        return client, pump

    def open(self, client: Client, pump: IOPump, shell: Shell | None = None) -> Shell:
        """Open a channel."""
        shell = shell or Shell()
        client.channels.openChannel(shell)
        pump.flush()
        return shell

    def command(self, source: str, *, client: tuple[Client, IOPump] | None = None) -> Shell:
        """Run a command, as ``ssh flow@… COMMAND`` does."""
        connected, pump = client or self.dial()
        shell = self.open(connected, pump)
        shell.ask(b"exec", NS(source.encode()))
        # ssh ends its input right after the command, where it has none.
        connected.channels.sendEOF(shell)
        pump.flush()
        self.clock.advance(0)
        pump.flush()
        return shell

    def terminal(self, client: tuple[Client, IOPump] | None = None, width: int = 80) -> tuple[Shell, IOPump]:
        """Open a shell at a terminal, as ``ssh flow@…`` does."""
        connected, pump = client or self.dial()
        shell = self.open(connected, pump)
        shell.ask(b"pty-req", packRequest_pty_req(b"xterm", (24, width, 0, 0), b""))
        shell.ask(b"shell")
        pump.flush()
        return shell, pump
