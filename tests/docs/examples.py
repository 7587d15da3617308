"""The examples of a document, and a reader who runs them as they are printed.

An example is a fenced block in bash, Python or SQL under a comment that names it:

    <!-- example: psql -->
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from flowtx.storage.cluster import postgres_programs
from tests.integration.flow_process import Outcome, environment, run

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "notifications.md"

_BLOCK = re.compile(r"^(?:<!-- example: (\S+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    language: str
    text: str


def examples(document: Path) -> Mapping[str, Example]:
    """Read the examples of a document, by name."""
    found: dict[str, Example] = {}
    for name, language, text in _BLOCK.findall(document.read_text(encoding="utf-8")):
        if language in ("sh", "python", "sql"):
            assert name, f"{document.name}: this example has no name, so nothing runs it:\n{text}"
            assert name not in found, f"{document.name}: two examples are called {name}"
            found[name] = Example(language, text)
    return found


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
            "PATH": os.pathsep.join([str(postgres_programs()), os.environ["PATH"]]),
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
