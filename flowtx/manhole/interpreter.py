"""What is typed at the prompt, run as Python with ``await``; one shell's own, over the shared namespace.

What a line gives is shown. A coroutine or a Deferred is waited for first, up to a deadline, and shown then.
Nothing that is typed raises an exception here: its traceback is the answer.
"""

from __future__ import annotations

import ast
import traceback
import warnings
from codeop import CommandCompiler
from collections.abc import Callable, Mapping
from inspect import CO_COROUTINE, isawaitable, iscoroutine
from rlcompleter import Completer
from types import CodeType
from typing import Any, Final

from twisted.internet import defer
from twisted.internet.defer import Deferred, ensureDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python import failure
from twisted.python.failure import Failure

from flowtx.manhole.shown import MAX_SHOWN, cut, shown

WAIT: Final = 30.0
"""Seconds for which a coroutine or a Deferred is waited for."""
MAX_UNDER_WAY: Final = 100
"""Coroutines of all shells together, those among them that nobody waits for any more."""
FILE: Final = "<manhole>"
MAX_COMPLETIONS: Final = 200

MAX_CHAIN: Final = 20
"""Exceptions behind an exception whose tracebacks are tidied."""

_CARRIERS: Final = frozenset({__file__, ast.__file__, defer.__file__, failure.__file__})
_AWAIT: Final = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


class Leave(Exception):  # noqa: N818 - no error: what exit() raises
    """The shell is to end."""


class Outcome:
    """What became of a line.

    Attributes:
        failed: whether it raised an exception, or was not waited for to its end.
        left: whether the shell is to end.
    """

    __slots__ = ("failed", "left")

    def __init__(self) -> None:
        self.failed = False
        self.left = False


class Interpreter:
    """See the module.

    Args:
        namespace: the names that there are.
        write: takes text to show, with line ends as ``\\n``.
        clock: the time.
        under_way: keeps what goes on without being waited for; who made it cancels that in the end.
    """

    def __init__(
        self,
        namespace: Mapping[str, object],
        write: Callable[[str], object],
        *,
        clock: IReactorTime,
        under_way: set[Deferred[Any]],
    ) -> None:
        self.names: dict[str, Any] = {
            "__name__": "__manhole__",
            **namespace,
            "print": self._print,
            "exit": _leave,
            "quit": _leave,
            "input": _no_input,
        }
        self.width = 80
        self._write_out = write
        self._clock = clock
        self._under_way = under_way
        self._compile = CommandCompiler()
        self._compile.compiler.flags |= _AWAIT
        self._room = MAX_SHOWN
        self._waiting: Deferred[Any] | None = None

    def wants_more(self, source: str) -> bool:
        """Whether what was typed so far is only the beginning of a statement."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._compile(source, FILE, "single") is None
        except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
            return False

    async def run(self, source: str) -> Outcome:
        """Run statements, one after the other up to the first that fails, and show what they give."""
        outcome = Outcome()
        self._room = MAX_SHOWN
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                statements = ast.parse(source, FILE).body
            for statement in statements:
                await self._run(statement)
        except (SystemExit, Leave):
            outcome.left = True
        except GivenUp as why:
            outcome.failed = True
            self._write(f"{why}\n")
        except BaseException as error:  # noqa: BLE001, RUF100 - KeyboardInterrupt would end the server
            outcome.failed = True
            self._write(_explained(error))
        return outcome

    async def _run(self, statement: ast.stmt) -> None:
        if not isinstance(statement, ast.Expr):
            await self._evaluate(compile(ast.Module([statement], []), FILE, "exec", _AWAIT))
            return
        value = await self._evaluate(compile(ast.Expression(statement.value), FILE, "eval", _AWAIT))
        if isawaitable(value):
            value = await self._wait(value)
        if value is not None:
            self.names["_"] = value
            self._write(f"{shown(value, self.width, max(0, self._room))}\n")

    async def _evaluate(self, code: CodeType) -> Any:
        value = eval(code, self.names)  # noqa: S307 - which is what the manhole is for
        return await self._wait(value) if code.co_flags & CO_COROUTINE else value

    async def _wait(self, awaitable: Any) -> Any:
        """Wait for an outcome; who gives up waiting leaves it to go on."""
        if isinstance(awaitable, Deferred):
            source = awaitable
        elif len(self._under_way) >= MAX_UNDER_WAY:
            if iscoroutine(awaitable):
                awaitable.close()
            raise RuntimeError(f"{MAX_UNDER_WAY} coroutines that nobody waits for go on already")
        else:
            source = ensureDeferred(_awaited(awaitable))
            self._under_way.add(source)
        waiting: Deferred[Any] = Deferred()
        self._waiting = waiting

        def finish(result: Any) -> Any:
            self._under_way.discard(source)
            if not waiting.called:
                waiting.callback(result)
            # Shown here, or to nobody: a failure is not also one that nobody has handled.
            return None if isinstance(result, Failure) else result

        source.addBoth(finish)
        timer = self._clock.callLater(
            WAIT, self.give_up, f"No longer waited for, after {WAIT:g} s; it goes on without you."
        )
        try:
            return await waiting
        finally:
            self._waiting = None
            if timer.active():
                timer.cancel()

    def give_up(self, why: str) -> bool:
        """Wait no longer for what is under way; whether anything was."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or waiting.called:
            return False
        waiting.errback(GivenUp(why))
        return True

    def complete(self, text: str) -> list[str]:
        """List what a name, or the attribute of one, can go on to."""
        completer = Completer(self.names)
        found: dict[str, None] = {}
        try:
            while len(found) < MAX_COMPLETIONS and (match := completer.complete(text, len(found))):
                if match in found:
                    break
                found[match] = None
        except Exception:  # noqa: BLE001, RUF100 - it asks objects for their attributes
            return []
        return list(found)

    def _print(self, *values: object, sep: str | None = None, end: str | None = None, **_: object) -> None:
        """Print to this shell; what else `print` takes is ignored."""
        texts = [value[: MAX_SHOWN + 1] if isinstance(value, str) else f"{value}" for value in values]
        self._write((" " if sep is None else sep).join(texts) + ("\n" if end is None else end))

    def _write(self, text: str) -> None:
        if self._room < 0:
            return
        most, self._room = self._room, self._room - len(text)
        self._write_out(printable(cut(text, most) + ("\n" if self._room < 0 else "")))


class GivenUp(Exception):  # noqa: N818 - said to the user as it is
    """Something is not waited for any longer."""


def printable(text: str) -> str:
    """Keep what is shown from doing anything to the terminal but to show it."""
    if text.replace("\n", "").replace("\t", "").isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in "\n\t" else ascii(character)[1:-1]
        for character in text
    )


async def _awaited(awaitable: Any) -> Any:
    return await awaitable


def _explained(error: BaseException) -> str:
    """Write a traceback, without the frames that only carry one."""
    summary = traceback.TracebackException.from_exception(error)
    told: traceback.TracebackException | None = summary
    for _ in range(MAX_CHAIN):
        if told is None:
            break
        frames = [frame for frame in told.stack if frame.filename not in _CARRIERS]
        told.stack = traceback.StackSummary.from_list(frames)
        told = told.__cause__ or told.__context__
    return "".join(summary.format())


def _leave(*_: object) -> None:
    """Leave the shell; the server goes on."""
    raise Leave


def _no_input(*_: object) -> None:
    """Refuse: it would wait for the server's own terminal, and the server with it."""
    raise RuntimeError("there is no input() here: it would stop the server until somebody types")
