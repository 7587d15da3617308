"""The examples of a document, and a reader who runs them as they are printed.

An example is a fenced block in bash, Python, SQL or JavaScript under a comment that names it:

    <!-- example: psql -->
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flowtx.storage.cluster import postgres_programs
from tests.integration.flow_process import Outcome, environment, run

DOCS = Path(__file__).resolve().parents[2] / "docs"
GUIDE = DOCS / "notifications.md"

_SCRIPTS = str(Path(sys.executable).parent)
_BLOCK = re.compile(r"^(?:<!-- example: (\S+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    language: str
    text: str


def examples(document: Path) -> Mapping[str, Example]:
    """Read the examples of a document, by name."""
    found: dict[str, Example] = {}
    for name, language, text in _BLOCK.findall(document.read_text(encoding="utf-8")):
        # JavaScript without a name is not run, only checked.
        if name or language in ("sh", "python", "sql"):
            assert name, f"{document.name}: this example has no name, so nothing runs it:\n{text}"
            assert name not in found, f"{document.name}: two examples are called {name}"
            found[name] = Example(language, text)
    return found


def load(document: Path, *names: str, **given: Any) -> SimpleNamespace:
    """Run Python examples of a document one after the other, as one module; what they define.

    Args:
        document: which.
        names: the names of the examples, in order.
        given: what is defined before.
    """
    found = examples(document)
    module = dict(given)
    for name in names:
        assert found[name].language == "python"
        exec(compile(found[name].text, f"{document.name}: {name}", "exec"), module)
    return SimpleNamespace(**module)


async def run_awaiting(example: Example, **given: Any) -> None:
    """Run a Python example that awaits."""
    code = compile(example.text, "example", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    running = eval(code, dict(given))
    if running is not None:
        await running


class Reader:
    """Somebody with a directory and a shell, who runs examples of the guide.

    Args:
        directory: where everything runs; made if need be.
        database_url: what ``DATABASE_URL`` says.
        environ: further variables.
    """

    def __init__(self, directory: Path, database_url: str, environ: Mapping[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.database_url = database_url
        self._environ = {
            "DATABASE_URL": database_url,
            # As with an activated environment.
            "PATH": os.pathsep.join([_SCRIPTS, str(postgres_programs()), os.environ["PATH"]]),
            **(environ or {}),
        }

    def logged_in_as(self, role: str) -> Reader:
        """The same one, as another role of the database."""
        parts = urlsplit(self.database_url)
        server = parts.netloc.rpartition("@")[2]
        return Reader(self.directory, parts._replace(netloc=f"{role}@{server}").geturl())

    def command(self, example: Example) -> Sequence[str]:
        """The command that runs an example."""
        if example.language == "sh":
            return ("bash", "-e", "-c", example.text)
        path = self.directory / f"example.{example.language}"
        path.write_text(example.text, encoding="utf-8")
        if example.language == "python":
            return (sys.executable, str(path))
        quiet = ("--no-psqlrc", "--no-align", "--tuples-only", "--quiet")
        return ("psql", self.database_url, *quiet, "--set=VERBOSITY=sqlstate", f"--file={path}")

    def run(self, example: Example) -> Outcome:
        """Run an example to its end."""
        return run(self.command(example), self.directory, self._environ)

    def succeed(self, example: Example) -> Sequence[str]:
        """Run an example that takes its course.

        Returns:
            The lines that it printed.
        """
        outcome = self.run(example)
        assert (outcome.status, outcome.stderr) == (0, ""), outcome
        return outcome.stdout.splitlines()

    def start(self, example: Example, output: Path) -> subprocess.Popen[bytes]:
        """Start an example that does not end by itself; what it prints goes to the end of a file."""
        with output.open("ab") as file:
            return subprocess.Popen(
                self.command(example),
                cwd=self.directory,
                env=environment(self._environ),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
