"""What is wrong with settings and their files is said as the start says it, and nothing is made."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx.application import Flow
from flowtx.config import Settings, load
from flowtx.errors import FlowtxError
from flowtx.preflight import check

SECRET = base64.b64encode(secrets.token_bytes(64)).decode()


class PreflightTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="flowtx-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.data_dir = self.directory / "data"

    def settings(self, **given: object) -> Settings:
        names = {name.replace("_", "-"): value for name, value in given.items()}
        return load({"data-dir": str(self.data_dir), **names}, {})

    def file(self, name: str, text: str | bytes = SECRET, mode: int = 0o600) -> str:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True, mode=0o700)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(mode)
        return str(path)

    def refused(self, *words: str, **given: object) -> None:
        """Verify that the check and the start say the same, and that the check makes nothing."""
        settings = self.settings(**given)
        before = sorted(self.directory.rglob("*"))
        said = str(self.assertRaises(FlowtxError, check, settings))
        self.assertEqual(sorted(self.directory.rglob("*")), before)
        for word in words:
            self.assertIn(word, said)
        starting: Deferred[Any] = Flow(settings, reactor=reactor).startService()
        self.assertEqual(str(self.failureResultOf(starting, FlowtxError).value), said)

    def good(self, **given: object) -> list[str]:
        before = sorted(self.directory.rglob("*"))
        warnings = check(self.settings(**given))
        self.assertEqual(sorted(self.directory.rglob("*")), before)
        return warnings

    def test_good_ones(self) -> None:
        self.assertEqual(self.good(), [])
        self.file("data/secret")
        self.file("data/api-key")
        self.assertEqual(self.good(), [])
        self.assertEqual(self.good(secret_file=self.file("elsewhere")), [])
        self.assertEqual(self.good(secret_file=str(self.directory / "to be made")), [])
        self.assertEqual(self.good(listen=["systemd:domain=INET:index=0"]), [])

    def test_secrets(self) -> None:
        self.refused("easily guessed", secret_file=self.file("weak", "changeme" * 10))
        self.refused("at least 32", secret_file=self.file("short", "x"))
        self.refused("is not text", secret_file=self.file("bytes", b"\xff" * 64))
        self.refused("there is no ", secret_file=str(self.directory / "no" / "such"))
        self.refused("64 for HS512", secret_file=self.file("for 256", SECRET[:40]), jwt_algorithms="HS512")
        self.file("data/secret", "short")
        self.refused("--data-dir: ", "at least 32")

    def test_secret_that_others_can_read(self) -> None:
        (warning,) = self.good(secret_file=self.file("open", mode=0o644))
        self.assertIn("can be read by others (mode 0644); chmod 600 puts that right", warning)

    def test_data_directories(self) -> None:
        self.data_dir.write_text("")
        self.refused("is not a directory")
        self.data_dir.unlink()
        self.data_dir.mkdir()
        self.data_dir.chmod(0o777)
        self.refused("can be written to by others")
        self.data_dir.rmdir()
        self.file("a file")
        self.refused("lies below a file", data_dir=str(self.directory / "a file" / "data"))

    def test_keys(self) -> None:
        for text in ("no key", SECRET):
            self.refused("--jwt-key-file", jwt_algorithms="RS256", jwt_key_file=self.file("key.pem", text))
        self.refused("cannot be read", jwt_algorithms="RS256", jwt_key_file=str(self.directory / "none"))
        self.refused("is not a JWKS", jwt_algorithms="RS256", jwt_jwks=self.file("jwks", "[]"))
        self.refused("https URL", jwt_algorithms="RS256", jwt_jwks="http://example.com/jwks")
        self.refused("api-keys", api_keys=self.file("keys", "billing"))
        self.refused("chmod 600", api_keys=self.file("keys", "", 0o644))
        self.file("data/api-key", "short")
        self.refused("api-key", "at least 32")

    def test_applications(self) -> None:
        self.refused("there is no module", app="no_such_module_at_all:router")
        self.refused("has no 'nothing'", app="flowtx.app:nothing")

    def test_endpoints(self) -> None:
        missing = self.directory / "cert.pem"
        self.refused("--listen: got", listen=[f"ssl:0:privateKey={missing}:certKey={missing}"])
        self.refused("--admin: got", admin=f"ssl:0:privateKey={missing}:certKey={missing}")

    def test_origins(self) -> None:
        self.refused("--check-origin", check_origin=["*"])

    def test_directory_that_cannot_be_written_to(self) -> None:
        if os.geteuid() == 0:
            return  # who may write anywhere
        self.directory.chmod(0o500)
        self.addCleanup(self.directory.chmod, 0o700)
        said = str(self.assertRaises(FlowtxError, check, self.settings()))
        self.assertIn("cannot be written to", said)
