"""The shell of somebody at a terminal: a prompt, a line that can be edited, and what it gives.

A line longer than the terminal is wide is scrolled, not wrapped. What is typed while something is
awaited is kept for afterwards; Ctrl-C gives up waiting.
"""

from __future__ import annotations

import os
import re
from codecs import getincrementaldecoder
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from twisted.conch.insults.insults import ServerProtocol
from twisted.internet.defer import Deferred

from flowtx.manhole.editor import Editor
from flowtx.manhole.interpreter import Interpreter, Outcome

MAX_BLOCK: Final = 65_536
"""Characters of a statement over several lines, and bytes typed ahead."""

PROMPTS: Final = (">>> ", "... ")
GREETING: Final = "flowtx: this is the running server. help() says what there is, Ctrl-D leaves.\n"

_WORD: Final = re.compile(r"[\w.]*\Z")
_INTERRUPT: Final = b"\x03"
_Decoder: Final = getincrementaldecoder("utf-8")


class Terminal:
    """See the module.

    Args:
        interpreter: runs what is typed; its output comes back to `show`.
        send: takes bytes for the terminal.
        typed: told of each line before it is run.
        finish: called once when the shell is left, with its exit status.
        width: columns of the terminal.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        *,
        send: Callable[[bytes], object],
        typed: Callable[[str], object],
        finish: Callable[[int], object],
        width: int,
    ) -> None:
        self._interpreter = interpreter
        self._send = send
        self._typed = typed
        self._finish = finish
        self._editor = Editor()
        self._block: list[str] = []
        self._decoder = _Decoder("replace")
        self._ahead = b""
        self._running = False
        self._left = False
        self._after_return = False
        self._parser: Any = ServerProtocol()
        self._parser.terminalProtocol = self
        keys: Any = self._parser
        edit = self._editor
        self._keys: dict[bytes, Callable[[], object]] = {
            b"\r": self._enter,
            b"\n": self._enter,
            b"\t": self._complete,
            b"\x01": lambda: edit.move(0),
            b"\x02": lambda: edit.move(edit.position - 1),
            b"\x04": self._end_of_file,
            b"\x05": lambda: edit.move(len(edit.text)),
            b"\x06": lambda: edit.move(edit.position + 1),
            b"\x08": self._backspace,
            b"\x0b": lambda: edit.delete(edit.position, len(edit.text)),
            b"\x0c": lambda: self._write("\x1b[H\x1b[2J"),
            b"\x0e": lambda: edit.recall(1),
            b"\x10": lambda: edit.recall(-1),
            b"\x15": lambda: edit.delete(0, edit.position),
            b"\x17": lambda: edit.delete(edit.word_start(), edit.position),
            b"\x7f": self._backspace,
            _INTERRUPT: self._interrupt,
            keys.LEFT_ARROW: lambda: edit.move(edit.position - 1),
            keys.RIGHT_ARROW: lambda: edit.move(edit.position + 1),
            keys.UP_ARROW: lambda: edit.recall(-1),
            keys.DOWN_ARROW: lambda: edit.recall(1),
            keys.HOME: lambda: edit.move(0),
            keys.END: lambda: edit.move(len(edit.text)),
            keys.DELETE: lambda: edit.delete(edit.position, edit.position + 1),
        }
        self.resize(width)

    def start(self) -> None:
        """Greet, and show the prompt."""
        self._write(GREETING)
        self._draw()

    def resize(self, width: int) -> None:
        """Take the terminal's width, in columns."""
        self._interpreter.width = max(20, width)

    def data_received(self, data: bytes) -> None:
        """Take what was typed."""
        if self._running and _INTERRUPT in data:
            self._ahead = b""
            data = data.rpartition(_INTERRUPT)[2]
            self._interpreter.give_up("Interrupted: no longer waited for; it goes on without you.")
        for place in range(len(data)):
            if self._left:
                return
            if self._running:
                self._ahead = (self._ahead + data[place:])[:MAX_BLOCK]
                return
            self._parser.dataReceived(data[place : place + 1])
        if not self._running and not self._left:
            self._draw()

    def end_of_file(self) -> None:
        """Note that nothing more will be typed."""
        self._leave(0)

    # What the parser of keys calls

    def keystrokeReceived(self, key: bytes, modifier: bytes | None) -> None:
        after_return, self._after_return = self._after_return, key == b"\r"
        if modifier is not None or (key == b"\n" and after_return):
            return
        known = self._keys.get(key)
        if known is not None:
            known()
        elif len(key) == 1:
            text = self._decoder.decode(key)
            if text.isprintable() and text and not self._editor.insert(text):
                self._write("\a")

    def unhandledControlSequence(self, sequence: bytes) -> None:
        """Ignore a key that has no meaning here."""

    # What keys do

    def _backspace(self) -> None:
        if self._editor.position:
            self._editor.delete(self._editor.position - 1, self._editor.position)

    def _interrupt(self) -> None:
        self._editor.clear()
        self._block.clear()
        self._write("^C\n")

    def _end_of_file(self) -> None:
        if self._editor.text:
            self._editor.delete(self._editor.position, self._editor.position + 1)
        else:
            self._write("\n")
            self._leave(0)

    def _complete(self) -> None:
        edit = self._editor
        before = edit.text[: edit.position]
        if not before.strip():
            edit.insert("    ")
            return
        found = _WORD.search(before)
        word = found[0] if found else ""
        matches = self._interpreter.complete(word) if word else []
        common = os.path.commonprefix(matches)  # noqa: RUF071 - of names, not of paths
        if len(common) > len(word):
            edit.insert(common[len(word) :])
        elif len(matches) > 1:
            names = "  ".join(match.rpartition(".")[2] for match in matches)
            self._write(f"\n{names}\n")

    def _enter(self) -> None:
        edit = self._editor
        edit.move(len(edit.text))
        self._draw()
        self._write("\n")
        line = edit.take()
        if line.strip():
            self._typed(line)
        self._block.append(line)
        source = "\n".join(self._block)
        if len(source) > MAX_BLOCK:
            self._block.clear()
            self._write(f"A statement takes at most {MAX_BLOCK} characters.\n")
        elif not self._interpreter.wants_more(source):
            self._block.clear()
            if source.strip():
                self._run(source)

    def _run(self, source: str) -> None:
        self._running = True
        Deferred.fromCoroutine(self._interpreter.run(source)).addCallback(self._ran)

    def _ran(self, outcome: Outcome) -> None:
        self._running = False
        if outcome.left:
            self._leave(0)
        ahead, self._ahead = self._ahead, b""
        if self._left:
            return
        self._draw()
        if ahead:
            self.data_received(ahead)

    # What is shown

    def show(self, text: str) -> None:
        """Show what the interpreter has to say; what comes later than its line, above the prompt."""
        if self._left:
            return
        if self._running:
            self._write(text)
        else:
            self._write(f"\r\x1b[K{text}" + ("" if text.endswith("\n") else "\n"))
            self._draw()

    def _draw(self) -> None:
        self._write(self._editor.drawn(PROMPTS[bool(self._block)], self._interpreter.width))

    def _write(self, text: str) -> None:
        self._send(text.replace("\n", "\r\n").encode("utf-8", "replace"))

    def _leave(self, status: int) -> None:
        if not self._left:
            self._left = True
            self._finish(status)


class Script:
    """What is run without a terminal: one command, or all that comes on standard input.

    Args:
        interpreter, send, typed, finish: see `Terminal`.
        command: what to run; None for standard input.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        *,
        send: Callable[[bytes], object],
        typed: Callable[[str], object],
        finish: Callable[[int], object],
        command: str | None = None,
    ) -> None:
        self._interpreter = interpreter
        self._send = send
        self._typed = typed
        self._finish = finish
        self._command = command
        self._source = b""
        self._ended = command is not None

    def start(self) -> None:
        """Run the command, if there is one."""
        if self._command is not None:
            self._run(self._command)

    def _run(self, source: str) -> None:
        for line in source.splitlines():
            if line.strip():
                self._typed(line)
        Deferred.fromCoroutine(self._interpreter.run(source)).addCallback(self._ran)

    def _ran(self, outcome: Outcome) -> None:
        self._finish(1 if outcome.failed else 0)

    def data_received(self, data: bytes) -> None:
        """Take more of standard input; a command has none."""
        if self._ended:
            return
        self._source += data
        if len(self._source) > MAX_BLOCK:
            self._ended = True
            self.show(f"The input is longer than {MAX_BLOCK} bytes; nothing of it was run.\n")
            self._finish(1)

    def end_of_file(self) -> None:
        """Run what came on standard input."""
        if not self._ended:
            self._ended = True
            self._run(self._source.decode("utf-8", "replace"))

    def resize(self, width: int) -> None:
        """Ignore the width of a terminal that is not used."""

    def show(self, text: str) -> None:
        """Show what the interpreter has to say."""
        self._send(text.encode("utf-8", "replace"))


Shell: TypeAlias = Terminal | Script
