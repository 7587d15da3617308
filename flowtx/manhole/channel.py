"""What an operator who has logged in may open: shells, and nothing else.

No forwarding of ports, agents or X11, no subsystems such as sftp, no variables of the environment. Each
request that a channel takes is in a table here; conch's own session channel would look them up by name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from twisted.conch.error import ConchError
from twisted.conch.interfaces import IConchUser
from twisted.conch.ssh.channel import SSHChannel
from twisted.conch.ssh.common import getNS
from twisted.conch.ssh.connection import (
    EXTENDED_DATA_STDERR,
    OPEN_ADMINISTRATIVELY_PROHIBITED,
    OPEN_RESOURCE_SHORTAGE,
    SSHConnection,
)
from twisted.conch.ssh.session import parseRequest_pty_req, parseRequest_window_change
from twisted.logger import ILogObserver, Logger
from zope.interface import implementer

from flowtx.manhole.authorized_keys import AuthorizedKey
from flowtx.manhole.interpreter import Interpreter
from flowtx.manhole.terminal import Script, Shell, Terminal

if TYPE_CHECKING:
    from flowtx.manhole.ssh import Connection

MAX_SHELLS: Final = 5
MAX_CHANNELS: Final = 10
"""Channels of one connection."""
MAX_COMMAND: Final = 4_096
MAX_WAITING: Final = 1_048_576
"""Bytes that wait for a client that does not read; more are dropped."""
MAX_LOGGED: Final = 300
"""Characters of what was typed that one line of the log has; what is longer takes several."""

_log = Logger()


@implementer(ILogObserver)
def _ignore(_: object) -> None:
    """Take an event of the log, and do nothing."""


silent: Final = Logger(observer=_ignore)
"""In the place of conch's loggers, which write what strangers send, some of it as a format to be filled."""


@implementer(IConchUser)
class Operator:
    """Somebody who has logged in.

    Args:
        key: with which key.
        connection: over which connection.
    """

    conn: SSHConnection

    def __init__(self, key: AuthorizedKey, connection: Connection) -> None:
        self.key = key
        self.connection = connection

    def lookupChannel(self, kind: bytes, window: int, packet: int, data: bytes) -> SSHChannel:
        if kind != b"session":
            self.refuse(f"a channel of type {kind!r:.60}")
            raise ConchError(OPEN_ADMINISTRATIVELY_PROHIBITED, "there are only shells here")
        if len(self.conn.channels) >= MAX_CHANNELS:
            raise ConchError(OPEN_RESOURCE_SHORTAGE, f"{MAX_CHANNELS} channels are open")
        return ShellChannel(remoteWindow=window, remoteMaxPacket=packet or 1_024, data=data, avatar=self)

    def lookupSubsystem(self, subsystem: bytes, data: bytes) -> None:
        """Refuse: there are none."""

    def gotGlobalRequest(self, kind: bytes, _: bytes) -> int:
        """Refuse; OpenSSH asks whether the connection lives by a request that nobody knows."""
        if kind == b"tcpip-forward":
            self.refuse("to forward a port")
        return 0

    def typed(self, line: str) -> None:
        """Log what was typed: all of it, in as many lines of the log as that takes."""
        line = line if line.isprintable() else ascii(line)[1:-1]
        parts = [line[start : start + MAX_LOGGED] for start in range(0, len(line), MAX_LOGGED)]
        for number, part in enumerate(parts, 1):
            _log.info(
                "Manhole: {key} typed{part}: {line}",
                key=self.name,
                part=f" ({number}/{len(parts)})" if len(parts) > 1 else "",
                line=part,
            )

    def refuse(self, what: str) -> None:
        """Log what was asked for in vain."""
        _log.warn("Manhole: {key} asked for {what}, which there is not", key=self.name, what=what)

    @property
    def name(self) -> str:
        """The key, for the log."""
        return f"{self.key.fingerprint} ({self.key.comment})" if self.key.comment else self.key.fingerprint


class ShellChannel(SSHChannel):
    """A channel with one shell, or one command."""

    name = b"session"
    _log = silent

    avatar: Operator
    conn: SSHConnection
    _shell: Shell | None = None
    _columns: int | None = None
    _over = False
    _turned_away = False

    def requestReceived(self, kind: bytes, data: bytes) -> int:
        self.avatar.connection.touch()
        requests: dict[bytes, Callable[[bytes], int]] = {
            b"pty-req": self._take_terminal,
            b"window-change": self._resize,
            b"shell": self._open_shell,
            b"exec": self._run_command,
        }
        if kind in requests:
            return requests[kind](data)
        if kind not in (b"env", b"signal", b"break", b"eow@openssh.com"):
            subject = getNS(data)[0] if kind == b"subsystem" else kind
            self.avatar.refuse(f"{subject!r:.60}")
        return 0

    def _take_terminal(self, data: bytes) -> int:
        _, (_, columns, _, _), _ = parseRequest_pty_req(data)
        self._columns = columns or 80
        return 1

    def _resize(self, data: bytes) -> int:
        _, columns, _, _ = parseRequest_window_change(data)
        if self._shell is not None:
            self._shell.resize(columns or 80)
        return 1

    def _open_shell(self, _: bytes) -> int:
        if self._shell is not None or self._turned_away:
            return 0
        interpreter = self._interpreter()
        if interpreter is None:
            return 1
        if self._columns is None:
            self._shell = Script(interpreter, send=self.write, typed=self.avatar.typed, finish=self._finish)
            return 1
        self._shell = terminal = Terminal(
            interpreter,
            send=self.write,
            typed=self.avatar.typed,
            finish=self._finish,
            width=self._columns,
        )
        terminal.start()
        return 1

    def _run_command(self, data: bytes) -> int:
        if self._shell is not None or self._turned_away:
            return 0
        if len(data) > MAX_COMMAND:
            self._say(f"A command takes at most {MAX_COMMAND} bytes; give more on standard input.")
            return 1
        interpreter = self._interpreter()
        if interpreter is None:
            return 1
        self._shell = script = Script(
            interpreter,
            send=self._send_lines,
            typed=self.avatar.typed,
            finish=self._finish,
            command=getNS(data)[0].decode("utf-8", "replace"),
        )
        # After the answer to the request itself.
        self.avatar.connection.soon(script.start)
        return 1

    def _interpreter(self) -> Interpreter | None:
        """Make what runs a shell; None where there are too many already."""
        shells = self.avatar.connection.factory.shells
        if len(shells) >= MAX_SHELLS:
            self._say(f"There are {MAX_SHELLS} shells already, which is the most.")
            return None
        shells.add(self)
        return self.avatar.connection.factory.interpreter(self._show)

    def _say(self, why: str) -> None:
        """Tell why there is no shell, and close."""
        self._turned_away = True
        self.writeExtended(EXTENDED_DATA_STDERR, f"flowtx: {why}\r\n".encode())
        self.avatar.connection.soon(self._finish, 1)

    def _show(self, text: str) -> None:
        if self._shell is not None:
            self._shell.show(text)

    def _send_lines(self, data: bytes) -> None:
        # A terminal that ssh was told to take (-t) has lost its own way to end a line.
        self.write(data if self._columns is None else data.replace(b"\n", b"\r\n"))

    def _finish(self, status: int) -> None:
        if not self._over:
            self._over = True
            self.conn.sendRequest(self, b"exit-status", struct.pack(">L", status))
            self.loseConnection()

    def write(self, data: bytes) -> None:
        if not self.localClosed and len(self.buf) < MAX_WAITING:
            super().write(data)

    def dataReceived(self, data: bytes) -> None:
        self.avatar.connection.touch()
        if self._shell is not None:
            self._shell.data_received(data)

    def extReceived(self, kind: int, data: bytes) -> None:
        """Ignore what no client sends."""

    def eofReceived(self) -> None:
        if self._shell is not None:
            self._shell.end_of_file()
        elif not self._turned_away:
            self.loseConnection()

    def closed(self) -> None:
        self._over = True
        self.avatar.connection.factory.shells.discard(self)


class Channels(SSHConnection):
    """The channels of one connection."""

    _log = silent

    transport: Any
