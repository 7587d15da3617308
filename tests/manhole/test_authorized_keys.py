"""The file of keys: what is taken, and that all else is refused in one line."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import StartupError
from flowtx.manhole.authorized_keys import MAX_FILE, read_keys
from tests.manhole.client import ADA, ECDSA, EVE, RSA, SHORT_RSA, line

ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILXQ2Jk3bN2jko44q9U/tFDrOKaBqIJEpBjrco6sdPox"
"""As ``ssh-keygen`` wrote it; its fingerprint is what ``ssh-keygen -l`` says."""
FINGERPRINT = "SHA256:0XVEuXxvOlM7bkycP2J+370pV/SXa7pWRfwXkdXKn1g"


class FileTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="flowtx-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.path = self.directory / "keys"

    def write(self, text: str | bytes, mode: int = 0o600) -> None:
        self.path.write_bytes(text if isinstance(text, bytes) else text.encode())
        self.path.chmod(mode)

    def refused(self, text: str | bytes | None = None) -> str:
        """Verify that the file is refused in one line, and return that."""
        if text is not None:
            self.write(text)
        said = str(self.assertRaises(StartupError, read_keys, str(self.path)))
        self.assertTrue(said.isprintable(), said)
        self.assertLess(len(said), 512)
        self.assertTrue(said.startswith(f"--manhole-keys: {str(self.path)!r}"), said)
        return said

    def test_keys_with_comments(self) -> None:
        self.write(
            f"# those on call\n\n{line(ADA, 'ada@laptop')}\r\n{line(RSA)}\n  {line(ECDSA, 'a b  c')} \n"
        )
        keys = read_keys(str(self.path))
        self.assertEqual([key.blob for key in keys], [key.public().blob() for key in (ADA, RSA, ECDSA)])
        self.assertEqual([key.comment for key in keys], ["ada@laptop", "", "a b  c"])
        self.assertEqual({len(key.fingerprint) for key in keys}, {50})

    def test_the_fingerprint_is_the_one_that_people_know(self) -> None:
        self.write(ED25519)
        (key,) = read_keys(str(self.path))
        self.assertEqual(key.fingerprint, FINGERPRINT)

    def test_comments_do_nothing_to_the_log(self) -> None:
        self.write(line(ADA, "\x1b[31mada\u202e" + 300 * "x"))
        (key,) = read_keys(str(self.path))
        self.assertEqual(key.comment[:9], "?[31mada?")
        self.assertEqual(len(key.comment), 100)

    def test_options_that_forbid_what_there_is_not(self) -> None:
        self.write(f"restrict,no-X11-forwarding {line(ADA, 'ada')}\nno-port-forwarding {line(EVE)}\n")
        self.assertEqual([key.comment for key in read_keys(str(self.path))], ["ada", ""])

    def test_other_options_are_refused_with_the_whole_file(self) -> None:
        for options in ('from="10.0.0.0/8"', 'command="ls -l"', "restrict,pty", "cert-authority", "no-pty"):
            said = self.refused(f"{line(EVE)}\n{options} {line(ADA)}\n")
            self.assertIn(", line 2: begins with", said)
            self.assertIn("no options", said)

    def test_what_is_no_key(self) -> None:
        for text, says in {
            "ssh-ed25519": "is not a public key",
            "garbage": "is not a public key",
            "ssh-ed25519 AAAA": "cannot be read",
            "ssh-ed25519 ====": "cannot be read",
            f"ssh-rsa {line(ADA).split()[1]}": "holds a key of another type",
            "ssh-dss AAAA x": "begins with 'ssh-dss'",
            "sk-ssh-ed25519@openssh.com AAAA x": "begins with",
            "-----BEGIN OPENSSH PRIVATE KEY-----": "begins with '-----BEGIN'",
            line(SHORT_RSA): "its RSA key has 1024 bits; it takes 2048 or more",
        }.items():
            self.assertIn(says, self.refused(text))

    def test_a_private_key_is_not_shown(self) -> None:
        text = ADA.toString("openssh").decode()
        self.assertNotIn(text.split("\n")[1][:20], self.refused(text))

    def test_a_file_without_keys(self) -> None:
        for text in ("", "\n", "# nobody yet\n"):
            self.assertIn("has no key", self.refused(text))

    def test_who_may_read_and_write_it(self) -> None:
        for mode in (0o644, 0o604, 0o602, 0o620, 0o660, 0o666):
            self.write(line(ADA), mode)
            self.assertIn(f"(mode {mode:04o}); chmod 600 puts that right", self.refused())
        for mode in (0o600, 0o400, 0o640, 0o440):
            self.write(line(ADA), mode)
            self.assertEqual(len(read_keys(str(self.path))), 1)

    def test_who_may_put_another_in_its_place(self) -> None:
        self.write(line(ADA))
        self.directory.chmod(0o770)
        self.assertIn("lies in a directory that others can change", self.refused())
        self.directory.chmod(0o1777)  # as /tmp, where nobody can replace what is another's
        self.assertEqual(len(read_keys(str(self.path))), 1)

    def test_whose_it_is(self) -> None:
        self.write(line(ADA))
        self.patch(os, "geteuid", lambda: 4711)
        if self.path.stat().st_uid:
            self.assertIn("belongs to user", self.refused())
        else:  # of root, which may do anything anyway
            self.assertEqual(len(read_keys(str(self.path))), 1)
            os.chown(self.path, 12345, -1)
            self.assertIn("belongs to user 12345", self.refused())

    def test_what_is_no_file(self) -> None:
        self.assertIn("cannot be read: No such file", self.refused())
        os.mkfifo(self.path)
        self.path.chmod(0o600)
        self.assertIn("is not a file", self.refused())
        self.path.unlink()
        self.path.mkdir(0o700)
        self.assertIn(
            "is not a file", self.refused().replace("cannot be read: Is a directory", "is not a file")
        )

    def test_what_is_no_text(self) -> None:
        self.assertIn("is not text", self.refused(b"\xff\xfe"))
        self.assertIn(f"is larger than {MAX_FILE} bytes", self.refused(b"#" * (MAX_FILE + 1)))
        self.assertIn("is not a path", str(self.assertRaises(StartupError, read_keys, "a\0b")))
