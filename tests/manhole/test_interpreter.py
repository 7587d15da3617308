"""What is typed is run: what is shown, what is awaited, and that nothing of it hurts the server."""

from __future__ import annotations

import gc
from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from flowtx.manhole.interpreter import MAX_UNDER_WAY, WAIT, Interpreter, Outcome, printable
from flowtx.manhole.shown import MAX_SHOWN


class InterpreterTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.written: list[str] = []
        self.under_way: set[Deferred[Any]] = set()
        self.later: Deferred[Any] = Deferred()
        self.interpreter = Interpreter(
            {"later": self.later, "succeed": succeed, "fail": fail, "answer": 42},
            self.written.append,
            clock=self.clock,
            under_way=self.under_way,
        )

    def begin(self, source: str) -> Deferred[Outcome]:
        self.written.clear()
        return Deferred.fromCoroutine(self.interpreter.run(source))

    def run_(self, source: str) -> str:
        """Run to the end; what was shown."""
        self.outcome = self.successResultOf(self.begin(source))
        return "".join(self.written)

    def test_values_are_shown(self) -> None:
        self.assertEqual(self.run_("answer"), "42\n")
        self.assertEqual(self.run_("_ + 1"), "43\n")
        self.assertEqual(self.run_("None"), "")
        self.assertEqual(self.run_("_"), "43\n")
        self.assertEqual(self.run_("x = 1; x\nx + 1"), "1\n2\n")
        self.assertFalse(self.outcome.failed)

    def test_each_shell_has_names_of_its_own(self) -> None:
        self.run_("answer = 1")
        other = Interpreter({"answer": 42}, self.written.append, clock=self.clock, under_way=set())
        self.assertEqual(other.names["answer"], 42)

    def test_definitions_and_await(self) -> None:
        self.run_("async def f(x):\n    return await succeed(x)\n")
        self.assertEqual(self.run_("f(1)"), "1\n")
        self.assertEqual(self.run_("await f(2)"), "2\n")
        self.assertEqual(self.run_("y = await f(3)\ny"), "3\n")
        self.assertEqual(self.run_("[await f(x) for x in range(3)]"), "[0, 1, 2]\n")
        self.assertEqual(self.run_("succeed('x')"), "'x'\n")

    def test_what_prints_prints_here(self) -> None:
        self.assertEqual(self.run_("print(1, 'a', sep='-', end='!')"), "1-a!")
        begun = self.begin("async def f():\n    await later\n    print('later')\nf()")
        self.later.callback(None)
        self.successResultOf(begun)
        self.assertEqual("".join(self.written), "later\n")

    def test_a_deferred_is_waited_for(self) -> None:
        begun = self.begin("later")
        self.assertNoResult(begun)
        self.later.callback({"a": 1})
        self.assertFalse(self.successResultOf(begun).failed)
        self.assertEqual(self.written, ["{'a': 1}\n"])
        self.assertEqual(self.clock.getDelayedCalls(), [])
        # Whoever has it goes on with it.
        self.assertEqual(self.successResultOf(self.later), {"a": 1})

    def test_the_prompt_comes_back(self) -> None:
        begun = self.begin("later")
        self.clock.advance(WAIT)
        self.assertTrue(self.successResultOf(begun).failed)
        self.assertEqual(self.written, ["No longer waited for, after 30 s; it goes on without you.\n"])
        self.later.callback(1)
        self.assertEqual(self.run_("answer"), "42\n")

    def test_waiting_can_be_given_up(self) -> None:
        self.assertFalse(self.interpreter.give_up("no"))
        begun = self.begin("async def f():\n    return await later\nf()\nanswer")
        self.assertTrue(self.interpreter.give_up("enough"))
        self.assertTrue(self.successResultOf(begun).failed)
        self.assertEqual(self.written, ["enough\n"])
        self.assertEqual(len(self.under_way), 1)
        self.later.callback(1)
        self.assertEqual(self.under_way, set())
        self.assertFalse(self.interpreter.give_up("no"))

    def test_not_too_much_goes_on(self) -> None:
        self.run_("async def f():\n    await later\n")
        for _ in range(MAX_UNDER_WAY):
            begun = self.begin("f()")
            self.interpreter.give_up("enough")
            self.successResultOf(begun)
        self.assertIn("100 coroutines that nobody waits for", self.run_("f()"))
        self.later.callback(None)
        self.assertEqual((self.run_("f()"), self.under_way), ("", set()))

    def test_exceptions_are_shown_and_nowhere_else(self) -> None:
        self.assertEqual(
            self.run_("1/0"),
            "Traceback (most recent call last):\n"
            '  File "<manhole>", line 1, in <module>\n'
            "ZeroDivisionError: division by zero\n",
        )
        self.assertTrue(self.outcome.failed)
        for source in ("fail(ValueError('x'))", "await fail(ValueError('x'))"):
            shown = self.run_(source)
            self.assertTrue(shown.endswith("ValueError: x\n"), shown)
            self.assertNotIn("defer.py", shown)
        begun = self.begin("later")
        self.clock.advance(WAIT)
        self.successResultOf(begun)
        self.later.errback(ValueError("late"))
        del self.later, self.interpreter, begun
        gc.collect()
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_what_is_raised_from_another_is_tidied_too(self) -> None:
        shown = self.run_(
            "async def f():\n  try:\n    1/0\n  except Exception as e:\n    raise OSError('y') from e\nf()"
        )
        self.assertIn("ZeroDivisionError", shown)
        self.assertIn("OSError: y", shown)
        self.assertNotIn("interpreter.py", shown)

    def test_what_would_end_the_process_does_not(self) -> None:
        for source in ("raise KeyboardInterrupt", "raise GeneratorExit", "raise BaseException('x')"):
            self.run_(source)
            self.assertEqual((self.outcome.failed, self.outcome.left), (True, False))
        for source in ("exit()", "quit()", "raise SystemExit(3)", "import sys; sys.exit()"):
            self.run_(source)
            self.assertTrue(self.outcome.left)
        self.assertIn("it would stop the server", self.run_("input()"))

    def test_what_is_no_python(self) -> None:
        for source in ("(", "1 +", "é$", "x = = 1", "\0", "(" * 500, "def f(:", "'" * 3, "return 1"):
            self.assertIn("Error", self.run_(source), source)
            self.assertTrue(self.outcome.failed)

    def test_when_there_is_more_to_come(self) -> None:
        wants_more = self.interpreter.wants_more
        for source in ("(", "def f():", "async def f():\n    await x", "if 1:\n  2", "x = '''", "a = [1,\n2"):
            self.assertTrue(wants_more(source), source)
        for source in ("1", "", "x = = 1", ")", "await f()", "def f(): pass\n", "if 1:\n  2\n", "\0"):
            self.assertFalse(wants_more(source), source)

    def test_output_is_bounded(self) -> None:
        shown = self.run_("for i in range(10**5): print('x' * 100)")
        self.assertLess(len(shown), MAX_SHOWN + 200)
        self.assertIn("cut after", shown)
        self.assertLess(len(self.run_("'x' * 10**7")), MAX_SHOWN + 200)
        self.assertLess(len(self.run_("raise ValueError('x' * 10**6)")), MAX_SHOWN + 200)
        self.assertEqual(self.run_("answer"), "42\n")

    def test_output_does_nothing_to_the_terminal(self) -> None:
        self.assertEqual(self.run_(r"print('\x1b[31mred\r\x07\x9b1m ü')"), "\\x1b[31mred\\r\\x07\\x9b1m ü\n")
        self.assertEqual(printable("a\tb\n"), "a\tb\n")

    def test_completions(self) -> None:
        complete = self.interpreter.complete
        self.assertEqual(complete("answ"), ["answer"])
        self.assertEqual(complete("later.addB"), ["later.addBoth("])
        self.assertEqual(complete("nothing.at"), [])
        self.assertEqual(complete("1/0."), [])
        self.assertGreater(len(complete("later.")), 5)
