"""The example of a settings file: all settings, each as it is."""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from flowtx.config import Settings, load, options
from flowtx.example import example_file
from flowtx.settings import LIVE

FILE = Path(__file__).resolve().parents[1] / "flow.toml.example"
NAMES = [field.name.replace("_", "-") for field in msgspec.structs.fields(Settings)]
#: What has to go along with a setting that cannot be alone.
PARTNERS = {
    "jwt-key-file": 'jwt-algorithms = ["RS256"]',
    "jwt-jwks": 'jwt-algorithms = ["RS256"]',
    "manhole": 'manhole-keys = "keys"',
}


class ExampleTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="flowtx-"))
        self.addCleanup(shutil.rmtree, directory)
        self.path = directory / "flow.toml"

    def load(self, text: str) -> Settings:
        self.path.write_text(text)
        return load({"config": str(self.path)}, {})

    def test_the_file_of_the_project_is_it(self) -> None:
        self.assertEqual(FILE.read_text(), example_file(), "make format writes it anew")

    def test_it_changes_nothing(self) -> None:
        self.assertEqual(self.load(example_file()), Settings())

    def test_each_setting_is_there_once_and_commented_out(self) -> None:
        self.assertEqual(re.findall(r"^#([a-z-]+) = ", example_file(), re.MULTILINE), NAMES)
        for line in example_file().splitlines():
            self.assertTrue(not line or line.startswith("#"), line)
            self.assertLessEqual(len(line), 110)

    def test_each_line_is_good_when_it_is_taken(self) -> None:
        defaults = Settings()
        for line in re.findall(r"^#([a-z-]+ = .*)$", example_file(), re.MULTILINE):
            name = line.partition(" ")[0]
            settings = self.load("\n".join([line, PARTNERS.get(name, "")]))
            default = getattr(defaults, name.replace("-", "_"))
            value = getattr(settings, name.replace("-", "_"))
            if default is None:
                self.assertIsNotNone(value, name)
            else:
                self.assertEqual(value, default, name)

    def test_each_has_its_help_and_what_it_takes(self) -> None:
        text = " ".join(example_file().replace("\n#", "").split())
        for option in options():
            self.assertIn(" ".join(f"{option.help} ({option.takes}".split()), text)

    def test_what_changes_live_is_said(self) -> None:
        blocks = example_file().split("\n\n")
        live = {
            name
            for block in blocks
            for name in re.findall(r"^#([a-z-]+) = ", block, re.MULTILINE)
            if "SIGHUP changes it" in " ".join(block.replace("\n#", "").split())
        }
        self.assertEqual({name.replace("-", "_") for name in live}, LIVE)
        self.assertLessEqual(LIVE, set(Settings.__struct_fields__))
