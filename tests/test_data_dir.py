"""The data directory: one server at a time, and secrets that nobody else reads or guesses."""

from __future__ import annotations

import base64
import os
import pwd
import secrets
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import SkipTest, mock

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from twisted.logger import capturedLogs, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from flowtx.data_dir import DataDir, check_secret
from flowtx.errors import StartupError

HOLD = """
import sys
from flowtx.data_dir import DataDir
held = DataDir.open(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class TestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="flowtx-"))
        self.addCleanup(shutil.rmtree, self.root)
        self.root.chmod(0o755)
        self.path = self.root / "flow"

    def open(self, path: Path | None = None) -> DataDir:
        opened = DataDir.open(path or self.path)
        self.addCleanup(opened.close)
        return opened

    def refused(self, function: Callable[..., Any], *args: Any) -> str:
        """Verify that it is refused in one line, and return that."""
        text = str(self.assertRaises(StartupError, function, *args))
        self.assertNotIn("\n", text)
        return text

    def as_nobody(self, code: str, *arguments: object) -> str:
        """Run a piece of Python as a user who is not root, and return what it prints."""
        if os.geteuid() != 0:
            raise SkipTest("only root can become somebody else")
        nobody = pwd.getpwnam("nobody")
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.setgroups([])
                os.setgid(nobody.pw_gid)
                os.setuid(nobody.pw_uid)
                scope = {"DataDir": DataDir, "StartupError": StartupError, "arguments": arguments}
                scope["write"] = lambda text: os.write(write, str(text).encode())
                exec(code, scope)
            finally:
                os._exit(0)
        os.close(write)
        with open(read, "rb") as output:
            text = output.read().decode()
        os.waitpid(child, 0)
        return text


class OpenTests(TestCase):
    def test_it_is_made_with_its_parents(self) -> None:
        deep = self.root / "a" / "b" / "flow"
        self.assertEqual(self.open(deep).path, deep)
        self.assertEqual((mode(deep), mode(deep / "lock")), (0o700, 0o600))

    def test_whatever_the_umask(self) -> None:
        old = os.umask(0)
        try:
            opened = self.open()
            opened.secret()
            opened.api_key()
        finally:
            os.umask(old)
        self.assertEqual(mode(self.path), 0o700)
        self.assertEqual({mode(path) for path in self.path.iterdir()}, {0o600})

    def test_a_relative_path_is_made_absolute(self) -> None:
        relative = os.path.relpath(self.path)
        for data_dir in (self.open(Path(relative)), DataDir.peek(relative)):
            self.assertTrue(data_dir.path.is_absolute())
            self.assertTrue(data_dir.path.samefile(self.path))

    def test_one_that_exists_is_left_as_it_is(self) -> None:
        self.path.mkdir()
        self.path.chmod(0o755)
        (self.path / "mine").write_text("x")
        self.open()
        self.assertEqual(mode(self.path), 0o755)
        self.assertEqual((self.path / "mine").read_text(), "x")

    def test_one_that_others_may_write_to(self) -> None:
        self.path.mkdir()
        for bits in (0o777, 0o770, 0o1777, 0o702):
            self.path.chmod(bits)
            self.assertIn("chmod 700", self.refused(DataDir.open, self.path))

    def test_a_second_one_is_refused_and_told_who_has_it(self) -> None:
        self.open()
        self.assertIn(f"another flowtx (pid {os.getpid()})", self.refused(DataDir.open, self.path))

    def test_another_process_has_it(self) -> None:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(self.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with holder:
            assert holder.stdout is not None
            try:
                self.assertEqual(holder.stdout.readline(), b"held\n")
                self.assertIn(f"(pid {holder.pid})", self.refused(DataDir.open, self.path))
            finally:
                holder.kill()
        # What a killed process leaves behind keeps nobody out.
        self.assertEqual((self.path / "lock").read_text(), f"{holder.pid}\n")
        self.open()
        self.assertEqual((self.path / "lock").read_text(), f"{os.getpid()}\n")

    def test_it_can_be_had_again_once_closed(self) -> None:
        opened = self.open()
        opened.close()
        opened.close()
        self.open()

    def test_a_failure_leaves_no_lock(self) -> None:
        with mock.patch("os.pwrite", side_effect=OSError(28, "No space left on device")):
            self.assertIn("No space left", self.refused(DataDir.open, self.path))
        self.open()

    def test_the_lock_survives_a_fork(self) -> None:
        # As of a daemon: the parent is gone, the child has the directory and says so.
        opened = DataDir.open(self.path)
        read, write = os.pipe()
        child = os.fork()
        if not child:
            try:
                os.close(write)
                opened.note_pid()
                os.read(read, 1)
            finally:
                os._exit(0)
        os.close(read)
        opened.close()
        try:
            self.wait_for(lambda: (self.path / "lock").read_text() == f"{child}\n")
            self.assertIn(f"(pid {child})", self.refused(DataDir.open, self.path))
        finally:
            os.close(write)
            os.waitpid(child, 0)
        self.open()

    def wait_for(self, condition: Callable[[], bool]) -> None:
        pause = threading.Event()
        for _ in range(500):
            if condition():
                return
            pause.wait(0.01)
        self.fail("it did not come about within 5 s")

    def test_nothing_is_left_of_an_older_id(self) -> None:
        self.path.mkdir(0o700)
        (self.path / "lock").write_text("99999999999999\nand more\n")
        self.open()
        self.assertEqual((self.path / "lock").read_text(), f"{os.getpid()}\n")

    def test_an_odd_lock_file(self) -> None:
        for content in (b"", b"x\ny\xff" * 50, b"12 34"):
            opened = DataDir.open(self.path)
            (self.path / "lock").write_bytes(content)
            self.assertTrue(self.refused(DataDir.open, self.path).endswith("another flowtx"))
            opened.close()

    def test_a_lock_that_is_a_link_is_not_followed(self) -> None:
        self.path.mkdir(0o700)
        target = self.root / "precious"
        target.write_text("precious")
        (self.path / "lock").symlink_to(target)
        self.assertIn("--data-dir", self.refused(DataDir.open, self.path))
        self.assertEqual(target.read_text(), "precious")

    def test_what_is_no_directory(self) -> None:
        self.path.write_text("x")
        self.assertIn("not a directory", self.refused(DataDir.open, self.path))
        self.assertIn("below a file", self.refused(DataDir.open, self.path / "below"))
        self.assertIn("below a file", self.refused(DataDir.open, self.path / "below" / "more"))
        self.path.unlink()
        self.path.symlink_to(self.root / "nowhere")
        self.assertIn("--data-dir", self.refused(DataDir.open, self.path))

    def test_paths_that_are_none(self) -> None:
        for odd in ("a\0b", "x" * 300, "a\nb\0"):
            self.assertIn("--data-dir", self.refused(DataDir.open, odd))

    def test_one_that_is_not_ours_to_write(self) -> None:
        code = """
try:
    DataDir.open(arguments[0])
except StartupError as error:
    write(error)
"""
        self.assertIn("Permission denied", self.as_nobody(code, self.path))
        self.path.mkdir(0o755)
        self.path.chmod(0o755)
        self.assertIn("Permission denied", self.as_nobody(code, self.path))

    def test_a_disk_that_is_read_only(self) -> None:
        self.path.mkdir(0o700)
        with mock.patch("os.open", side_effect=OSError(30, "Read-only file system")):
            self.assertIn("Read-only file system", self.refused(DataDir.open, self.path))


class PeekTests(TestCase):
    def test_it_takes_no_lock_and_makes_nothing(self) -> None:
        opened = self.open()
        secret, key = opened.secret(), opened.api_key()
        peeked = DataDir.peek(self.path)
        self.assertEqual((peeked.secret(), peeked.api_key()), (secret, key))
        peeked.close()
        self.assertIn("in use", self.refused(DataDir.open, self.path))

    def test_there_is_none(self) -> None:
        self.assertIn("first starts", self.refused(DataDir.peek, self.path))
        self.assertFalse(self.path.exists())

    def test_there_is_no_secret_yet(self) -> None:
        self.open()
        peeked = DataDir.peek(self.path)
        self.assertIn("first starts", self.refused(peeked.secret))
        self.assertIn("first starts", self.refused(peeked.api_key))
        self.assertEqual([path.name for path in self.path.iterdir()], ["lock"])


class SecretTests(TestCase):
    def test_it_is_made_once(self) -> None:
        opened = self.open()
        secret = opened.secret()
        path = self.path / "secret"
        self.assertEqual(len(base64.b64decode(secret, validate=True)), 64)
        self.assertEqual(path.read_bytes(), secret + b"\n")
        self.assertEqual(mode(path), 0o600)
        self.assertEqual(opened.secret(), secret)
        opened.close()
        self.assertEqual(self.open().secret(), secret)
        self.assertEqual({entry.name for entry in self.path.iterdir()}, {"lock", "secret"})

    def test_no_two_are_alike(self) -> None:
        self.assertNotEqual(self.open().secret(), self.open(self.root / "other").secret())

    def test_the_key_is_the_text_itself(self) -> None:
        opened = self.open()
        path = self.path / "secret"
        text = base64.b64encode(secrets.token_bytes(32))
        for written in (text, text + b"\n", b"\r\n  " + text + b" \t\r\n"):
            path.write_bytes(written)
            path.chmod(0o600)
            self.assertEqual(opened.secret(), text)

    def test_a_file_of_one_s_own(self) -> None:
        path = self.root / "mine"
        made = self.open().secret(str(path))
        self.assertEqual(path.read_bytes(), made + b"\n")
        self.assertEqual(mode(path), 0o600)
        self.assertFalse((self.path / "secret").exists())
        self.assertEqual(DataDir.peek(self.path).secret(str(path)), made)

    def test_a_link_is_followed(self) -> None:
        # As container platforms mount secrets.
        path = self.root / "mine"
        opened = self.open()
        made = opened.secret(str(path))
        (self.root / "link").symlink_to(path)
        self.assertEqual(opened.secret(str(self.root / "link")), made)

    def test_one_that_others_can_read_is_taken_with_a_warning(self) -> None:
        opened = self.open()
        made = opened.secret()
        for bits, warnings in ((0o640, 1), (0o604, 1), (0o444, 1), (0o644, 1), (0o600, 0), (0o400, 0)):
            (self.path / "secret").chmod(bits)
            with capturedLogs() as events:
                self.assertEqual(opened.secret(), made)
            lines = [formatEvent(event) or "" for event in events]
            self.assertEqual(len(lines), warnings)
            self.assertTrue(all("chmod 600" in line and "--data-dir" in line for line in lines))

    def test_files_that_are_none(self) -> None:
        opened = self.open()
        fifo = self.root / "fifo"
        os.mkfifo(fifo, 0o600)
        loop = self.root / "loop"
        loop.symlink_to(loop)
        dangling = self.root / "dangling"
        dangling.symlink_to(self.root / "nowhere")
        for odd in (self.root, fifo, loop, dangling, self.root / "no" / "such", Path(os.devnull)):
            self.assertIn("--secret-file", self.refused(opened.secret, str(odd)))
        self.assertFalse((self.root / "nowhere").exists())

    def test_contents_that_are_no_secret(self) -> None:
        opened = self.open()
        path = self.root / "mine"
        for content, word in (
            (b"", "0 bytes"),
            (b" \n" * 100, "0 bytes"),
            (b"4f" * 15 + b"x", "31 bytes"),
            (b"\xff\xfe" + os.urandom(62), "not text"),
            (b"changeme" * 8, "well known"),
            (base64.b64encode(os.urandom(60_000)), "larger"),
        ):
            path.write_bytes(content)
            path.chmod(0o600)
            text = self.refused(opened.secret, str(path))
            self.assertIn(word, text)
            if len(content) > 8:
                self.assertNotIn(content[:8].decode("latin-1"), text)

    def test_many_who_make_it_agree(self) -> None:
        # Two servers on one machine that share a file, started together.
        opened = [self.open(self.root / f"d{number}") for number in range(8)]
        path = str(self.root / "shared")
        barrier = threading.Barrier(len(opened))
        lexists = os.path.lexists

        def together(name: Any) -> bool:
            answer = lexists(name)
            barrier.wait(10)
            return answer

        got: list[bytes] = []
        with mock.patch("os.path.lexists", together):
            threads = [
                threading.Thread(target=lambda one=one: got.append(one.secret(path))) for one in opened
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(len(got), 8)
        self.assertEqual(len(set(got)), 1)

    def test_a_full_disk_leaves_nothing_half_made(self) -> None:
        opened = self.open()
        with mock.patch("os.fsync", side_effect=OSError(28, "No space left on device")):
            self.assertIn("No space left", self.refused(opened.secret))
        self.assertEqual([entry.name for entry in self.path.iterdir()], ["lock"])
        opened.secret()


class ApiKeyTests(TestCase):
    def test_it_is_made_once(self) -> None:
        opened = self.open()
        key = opened.api_key()
        self.assertRegex(key, r"\A[A-Za-z0-9_-]{43,}\Z")
        self.assertEqual((self.path / "api-key").read_text(), f"{key}\n")
        self.assertEqual(mode(self.path / "api-key"), 0o600)
        self.assertEqual(opened.api_key(), key)
        self.assertNotEqual(key.encode(), opened.secret())

    def test_keys_that_cannot_be_used(self) -> None:
        opened = self.open()
        path = self.path / "api-key"
        good = "Zq3-k9_fV" * 5
        for content, word in (
            ("short", "5 bytes"),
            ("password" * 5, "well known"),
            (f"{good} {good}", "ASCII"),
            (f"{good}\n{good}", "ASCII"),
            (f"{good}ä", "ASCII"),
        ):
            path.write_text(content, encoding="utf-8")
            path.chmod(0o600)
            self.assertIn(word, self.refused(opened.api_key))
        path.write_text(good)
        self.assertEqual(opened.api_key(), good)


class CheckSecretTests(SynchronousTestCase):
    def test_well_known_ones(self) -> None:
        for odd in (
            "secret" * 6,
            "changeme" * 4,
            "secret" + "0" * 30,
            "changeme" + "=" * 40,
            "SECRET-SECRET-SECRET-SECRET-SECRET",
            "x" * 64,
            "0" * 64,
            "ab" * 32,
            "abc123" * 8,
            "\0" * 64,
            "password1234567890password1234567890",
            "your-256-bit-secret-your-256-bit-secret",
            # The defaults of jwt.io, Supabase and of many an example.
            "a-string-secret-at-least-256-bits-long",
            "a-valid-string-secret-that-is-at-least-512-bits-long-which-is-very-long",
            "super-secret-jwt-token-with-at-least-32-characters-long",
            "qwertyuiopasdfghjklzxcvbnm123456",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "0123456789abcdef0123456789abcdef",
            "please-change-me-this-is-not-a-secret",
            "changeme_changeme_changeme_changeme_32",
            "my_super_secret_key_for_development_only",
        ):
            error = self.assertRaises(StartupError, check_secret, odd.encode(), "--secret-file")
            self.assertIn("well known", str(error))
            self.assertNotIn(odd, str(error))

    def test_the_length(self) -> None:
        random = secrets.token_hex(32).encode()
        error = self.assertRaises(StartupError, check_secret, random[:31], "--secret-file")
        self.assertIn("31 bytes; it takes at least 32", str(error))
        check_secret(random[:32], "--secret-file")

    def test_random_ones_are_taken(self) -> None:
        # In each of the forms in which people make them, and no longer than need be.
        for _ in range(2000):
            random = secrets.token_bytes(48)
            for form in (
                random.hex()[:32],
                base64.b64encode(random).decode()[:32],
                base64.b32encode(random).decode()[:32],
                str(int.from_bytes(random, "big"))[:32],
            ):
                check_secret(form.encode(), "--secret-file")

    @hypothesis_settings(deadline=None)
    @given(st.text())
    def test_any_text(self, text: str) -> None:
        try:
            check_secret(text.encode("utf-8", "surrogatepass"), "--secret-file")
        except StartupError as error:
            self.assertNotIn("\n", str(error))
