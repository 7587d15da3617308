"""The line at the prompt: keys, history, completion, what is typed ahead."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.manhole.editor import MAX_HISTORY, MAX_LINE
from flowtx.manhole.interpreter import Interpreter
from flowtx.manhole.terminal import MAX_BLOCK, Script, Terminal

LEFT, RIGHT, UP, DOWN, DELETE, HOME, END = (
    b"\x1b[D",
    b"\x1b[C",
    b"\x1b[A",
    b"\x1b[B",
    b"\x1b[3~",
    b"\x1b[H",
    b"\x1b[4~",
)


class Screen:
    """The line that the cursor is in, of a terminal that does what it is sent."""

    def __init__(self) -> None:
        self.line = ""
        self.column = 0
        self.above: list[str] = []

    def take(self, data: bytes) -> None:
        text = data.decode()
        while text:
            if text[0] == "\r":
                self.column, text = 0, text[1:]
            elif text[0] == "\n":
                self.above.append(self.line)
                self.line, text = "", text[1:]
            elif found := re.match(r"\x1b\[(\d*)([A-Za-z])|\x1b\[3J", text):
                text = text[found.end() :]
                if found[2] == "K":
                    self.line = self.line[: self.column]
                elif found[2] == "D":
                    self.column -= int(found[1])
            else:
                self.line = self.line[: self.column] + text[0] + self.line[self.column + 1 :]
                self.column, text = self.column + 1, text[1:]


class TerminalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.begin()

    def begin(self, width: int = 80) -> None:
        self.clock = Clock()
        self.sent = b""
        self.screen = Screen()
        self.lines: list[str] = []
        self.statuses: list[int] = []
        self.later: Deferred[Any] = Deferred()
        self.interpreter = Interpreter(
            {"later": self.later, "answer": 42, "answers": 43},
            lambda text: self.terminal.show(text),  # noqa: PLW0108 - which is made after it
            clock=self.clock,
            under_way=set(),
        )
        self.terminal = Terminal(
            self.interpreter,
            send=self._send,
            typed=self.lines.append,
            finish=self.statuses.append,
            width=width,
        )
        self.terminal.start()
        self.screen.above.clear()

    def _send(self, data: bytes) -> None:
        self.sent += data
        self.screen.take(data)

    def type(self, *keys: bytes) -> None:
        for key in keys:
            self.terminal.data_received(key)

    def test_a_line(self) -> None:
        self.assertEqual(self.screen.line, ">>> ")
        self.type(b"1 + 1")
        self.assertEqual((self.screen.line, self.screen.column), (">>> 1 + 1", 9))
        self.type(b"\r")
        self.assertEqual(self.screen.above, [">>> 1 + 1", "2"])
        self.assertEqual((self.lines, self.screen.line), (["1 + 1"], ">>> "))

    def test_moving_and_deleting(self) -> None:
        self.type(b"bd", LEFT, b"c", HOME, b"a", END, b"e", LEFT, LEFT, RIGHT)
        self.assertEqual((self.screen.line, self.screen.column), (">>> abcde", 8))
        self.type(b"\x7f")
        self.assertEqual((self.screen.line, self.screen.column), (">>> abce", 7))
        self.type(DELETE, DELETE, b"\x01", DELETE, b"\x04", b"\x7f", b"\x05x")
        self.assertEqual(self.screen.line, ">>> cx")
        self.type(b" one two \x17")
        self.assertEqual(self.screen.line, ">>> cx one ")
        self.type(LEFT, LEFT, LEFT, b"\x0b")
        self.assertEqual(self.screen.line, ">>> cx o")
        self.type(b"\x15")
        self.assertEqual(self.screen.line, ">>> ")

    def test_characters_of_several_bytes(self) -> None:
        for byte in "'Grüße 日本'".encode():
            self.type(bytes((byte,)))
        self.type(LEFT, b"\x7f", b"\r")
        self.assertEqual(self.lines, ["'Grüße 日'"])
        self.type(b"\xff\xfe1\r")
        self.assertIn("SyntaxError", self.sent.decode())

    def test_history(self) -> None:
        self.type(b"1\r", b"2\r", b"2\r", b"  \r", b"3", UP)
        self.assertEqual(self.screen.line, ">>> 2")
        self.type(UP, UP, UP)
        self.assertEqual(self.screen.line, ">>> 1")
        self.type(DOWN)
        self.assertEqual(self.screen.line, ">>> 2")
        self.type(DOWN, DOWN)
        self.assertEqual(self.screen.line, ">>> ")
        for number in range(MAX_HISTORY + 10):
            self.type(b"%d\r" % number)
        self.type(UP * (MAX_HISTORY + 10))
        self.assertEqual(self.screen.line, ">>> 10")

    def test_statements_of_several_lines(self) -> None:
        self.type(b"def f():\r")
        self.assertEqual(self.screen.line, "... ")
        self.type(b"    return 42\r", b"\r", b"f()\r")
        self.assertEqual(self.screen.above[-1], "42")
        self.assertEqual(self.lines, ["def f():", "    return 42", "f()"])
        self.type(b"(\r", b"\x03")
        self.assertEqual(self.screen.line, ">>> ")

    def test_all_at_once(self) -> None:
        self.type(b"x = 5\r\nfor y in range(2):\r\n\tprint(x * y)\r\n\r\nx\n")
        self.assertEqual(self.lines, ["x = 5", "for y in range(2):", "    print(x * y)", "x"])
        self.assertEqual([line for line in self.screen.above if line.isdigit()], ["0", "5", "5"])
        self.begin()
        self.type(b"def f():\n    return 6\n\nf()\n")
        self.assertEqual(self.screen.above[-1], "6")
        self.type(b"def f():\r\n    x = 7\r\n    return x\r\n\r\nf()\r\n")
        self.assertEqual(self.screen.above[-1], "7")

    def test_completion(self) -> None:
        self.type(b"answ\t")
        self.assertEqual(self.screen.line, ">>> answer")
        self.type(b"\t")
        self.assertEqual(self.screen.above, [">>> answer", "answer  answers"])
        self.assertEqual(self.screen.line, ">>> answer")
        self.type(b"\x15later.addCallba\t")
        self.assertEqual(self.screen.line, ">>> later.addCallback")
        self.type(b"\x15\t")
        self.assertEqual(self.screen.line, ">>>     ")
        self.type(b"?\t")
        self.assertEqual(self.screen.line, ">>>     ?")

    def test_what_is_awaited_and_what_is_typed_ahead(self) -> None:
        self.type(b"later\r")
        self.type(b"ans", b"wer\r1 +")
        self.assertEqual(self.lines, ["later"])
        self.later.callback("done")
        self.assertEqual(self.lines, ["later", "answer"])
        self.assertEqual(self.screen.above[-3:], ["'done'", ">>> answer", "42"])
        self.assertEqual(self.screen.line, ">>> 1 +")

    def test_an_interrupt_gives_up_waiting_and_what_was_typed_ahead(self) -> None:
        self.type(b"later\r", b"answer\r", b"\x03", b"7\r")
        self.assertEqual(self.lines, ["later", "7"])
        self.assertIn("Interrupted", "".join(self.screen.above))
        self.assertEqual(self.screen.above[-1], "7")

    def test_an_interrupt_at_the_prompt(self) -> None:
        self.type(b"abc\x03")
        self.assertEqual(self.screen.line, ">>> ")
        self.assertEqual(self.lines, [])

    def test_what_comes_later_is_shown_above_the_prompt(self) -> None:
        self.type(b"async def f():\r    await later\r    print('late')\r\rf()\r", b"\x03", b"1 + ")
        self.later.callback(None)
        self.assertEqual(self.screen.above[-1], "late")
        self.assertEqual(self.screen.line, ">>> 1 + ")

    def test_the_end(self) -> None:
        self.type(b"1\x04")
        self.assertEqual(self.statuses, [])
        self.type(b"\x7f\x04", b"2\r", b"\x04")
        self.assertEqual((self.statuses, self.lines), ([0], []))
        self.begin()
        self.type(b"exit()\r2\r")
        self.assertEqual((self.statuses, self.lines), ([0], ["exit()"]))
        self.begin()
        self.terminal.end_of_file()
        self.assertEqual(self.statuses, [0])

    def test_a_line_longer_than_the_terminal_scrolls(self) -> None:
        self.begin(width=20)
        self.type(b"abcdefghijklmnopqrstuvwxyz")
        self.assertEqual(self.screen.line, ">>> lmnopqrstuvwxyz")
        self.type(HOME)
        self.assertEqual((self.screen.line, self.screen.column), (">>> abcdefghijklmno", 4))
        self.terminal.resize(40)
        self.type(RIGHT)
        self.assertEqual(self.screen.line, ">>> abcdefghijklmnopqrstuvwxyz")

    def test_bounds(self) -> None:
        self.type(b"x" * (MAX_LINE + 10))
        self.assertIn(b"\a", self.sent)
        self.type(b"\r")
        self.assertEqual(len(self.lines[0]), MAX_LINE)
        self.type(b"(\r", *[b"1," * 2000 + b"\r"] * (MAX_BLOCK // 4000 + 1))
        self.assertIn(f"at most {MAX_BLOCK} characters", "".join(self.screen.above))
        self.assertEqual(self.screen.line, ">>> ")
        self.type(b"later\r", b"1" * 10 * MAX_BLOCK)
        self.assertEqual(len(self.terminal._ahead), MAX_BLOCK)

    def test_keys_that_mean_nothing(self) -> None:
        self.type(b"\x1b[15~", b"\x1bx", b"\x1b[1;5C", b"\x00", b"\x1b[99~", b"\x1bOP", b"\x1b[Z", b"1\r")
        self.assertEqual(self.lines, ["1"])

    @given(st.lists(st.sampled_from([b"a", b"\xc3\xbc", LEFT, RIGHT, b"\x7f", DELETE, HOME, END, UP, b"\r"])))
    def test_the_screen_shows_the_line(self, keys: list[bytes]) -> None:
        self.begin()
        for key in keys:
            self.type(key)
        editor = self.terminal._editor
        self.assertEqual(self.screen.line, f">>> {editor.text}")
        self.assertEqual(self.screen.column, 4 + editor.position)

    @given(st.lists(st.binary(max_size=20), max_size=10))
    def test_nothing_that_is_typed_fails(self, chunks: list[bytes]) -> None:
        self.begin()
        for chunk in chunks:
            self.terminal.data_received(chunk)


class ScriptTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.sent = b""
        self.lines: list[str] = []
        self.statuses: list[int] = []

    def make(self, command: str | None = None) -> Script:
        script: Script
        show = lambda text: script.show(text)  # noqa: E731, PLW0108 - which is made after it
        interpreter = Interpreter({}, show, clock=Clock(), under_way=set())
        script = Script(
            interpreter,
            send=self._send,
            typed=self.lines.append,
            finish=self.statuses.append,
            command=command,
        )
        script.start()
        return script

    def _send(self, data: bytes) -> None:
        self.sent += data

    def test_a_command(self) -> None:
        script = self.make("x = 1\n\nx + 1")
        self.assertEqual((self.sent, self.statuses, self.lines), (b"2\n", [0], ["x = 1", "x + 1"]))
        script.data_received(b"more")
        script.end_of_file()
        self.assertEqual(self.statuses, [0])

    def test_a_command_that_fails(self) -> None:
        self.make("1/0")
        self.assertEqual(self.statuses, [1])
        self.assertIn(b"ZeroDivisionError", self.sent)

    def test_standard_input(self) -> None:
        script = self.make()
        for chunk in (b"def f():\n", b"  return 1\nf", b"()"):
            script.data_received(chunk)
        self.assertEqual(self.statuses, [])
        script.end_of_file()
        script.end_of_file()
        self.assertEqual((self.sent, self.statuses), (b"1\n", [0]))

    def test_standard_input_without_end(self) -> None:
        script = self.make()
        script.data_received(b"x" * (MAX_BLOCK + 1))
        self.assertEqual((self.statuses, self.lines), ([1], []))
        script.data_received(b"x" * MAX_BLOCK)
        script.end_of_file()
        self.assertEqual(self.statuses, [1])
