"""An operator with OpenSSH: keys, a terminal, commands."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.integration.flow_process import FlowProcess, Outcome, environment, eventually, run

PATIENCE = 20.0

needs_ssh = pytest.mark.skipif(
    not (shutil.which("ssh") and shutil.which("ssh-keygen")), reason="there is no OpenSSH client here"
)


def make_key(path: Path, kind: str = "ed25519", comment: str = "ada@laptop") -> Path:
    """Make a key without a passphrase."""
    size = ["-b", "2048"] if kind == "rsa" else []
    made = run(["ssh-keygen", "-q", "-t", kind, *size, "-N", "", "-C", comment, "-f", str(path)], path.parent)
    assert made.status == 0, made
    return path


def allow(file: Path, *keys: Path) -> Path:
    """Write the file of those who may log in."""
    file.write_text("".join(key.with_name(f"{key.name}.pub").read_text() for key in keys))
    file.chmod(0o600)
    return file


class Operator:
    """Somebody with a key, or without.

    Args:
        directory: for what ssh remembers of hosts.
        port: of the manhole, on 127.0.0.1.
        key: the private key.
        user: the name to log in with.
    """

    def __init__(self, directory: Path, port: int, key: Path, user: str = "flow") -> None:
        self._directory = directory
        self._port = port
        self._key = key
        self._user = user

    def ssh(self, *options: str) -> list[str]:
        """The command up to the host, without what the user's own settings would add."""
        settings = {
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "StrictHostKeyChecking": "accept-new",
            "UserKnownHostsFile": self._directory / "known_hosts",
            "LogLevel": "ERROR",
        }
        chosen = [f"-o{name}={value}" for name, value in settings.items()]
        where = [f"-i{self._key}", f"-p{self._port}", *options, f"{self._user}@127.0.0.1"]
        return ["ssh", "-Fnone", *chosen, *where]

    def command(self, source: str, *options: str) -> Outcome:
        """Run a command in the manhole."""
        return run([*self.ssh(*options), source], self._directory, seconds=PATIENCE)

    def pipe(self, text: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Give a text to a shell, on a terminal with ``-tt``."""
        return subprocess.run(
            self.ssh(*options),
            input=text,
            capture_output=True,
            text=True,
            env=environment(),
            cwd=self._directory,
            timeout=PATIENCE,
            check=False,
        )

    def shell(self) -> OpenShell:
        """Open a shell at a terminal."""
        return OpenShell([*self.ssh("-tt")], self._directory)


class OpenShell:
    """A shell that stays open."""

    def __init__(self, command: Sequence[str], directory: Path) -> None:
        self._output = directory / "shell"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, env=environment(), cwd=directory
            )
        self.wait_for(">>> ")

    @property
    def output(self) -> str:
        return self._output.read_bytes().decode("utf-8", "replace")

    def type(self, text: str) -> None:
        """Type something."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())
        self._process.stdin.flush()

    def wait_for(self, text: str) -> None:
        """Wait until something has been shown."""
        eventually(lambda: text in self.output, f"{text!r} is shown, after {self.output!r}", PATIENCE)

    def wait(self) -> int:
        """Wait for its end; the exit status of ssh."""
        try:
            return self._process.wait(PATIENCE)
        finally:
            self._process.kill()


def with_manhole(
    directory: Path, keys: Path, port: int, *options: str, database: str | None = None
) -> FlowProcess:
    """A server with a manhole."""
    return FlowProcess(
        directory,
        f"--manhole=tcp:{port}:interface=127.0.0.1",
        f"--manhole-keys={keys}",
        *options,
        database=database,
    )
