"""Which endpoints only this machine can reach, and what the settings make of that."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from flowtx.config import load
from flowtx.errors import ConfigError
from flowtx.loopback import is_loopback

HERE = [
    "tcp:4002:interface=127.0.0.1",
    "tcp:interface=127.1.2.3:port=4002",
    "tcp4:4002:interface=localhost",
    r"tcp6:4002:interface=\:\:1",
    r"tcp:4002:interface=\:\:1",
    "ssl:4002:interface=127.0.0.1:privateKey=x.pem",
    "unix:/run/flowtx/manhole",
]
ANYWHERE = [
    "tcp:4002",
    "tcp:4002:interface=0.0.0.0",
    "tcp:4002:interface=",
    "tcp:4002:interface=10.0.0.1",
    "tcp:4002:interface=127.0.0.1.example.com",
    r"tcp6:4002:interface=\:\:",
    "tcp:4002:50:127.0.0.1",
    "tcp:4002:interface=127.0.0.1:interface=10.0.0.1",
    r"tcp:4002:backlog=1\:interface=127.0.0.1",
    "systemd:domain=INET:index=0",
    "",
]


class LoopbackTests(SynchronousTestCase):
    def test_what_only_this_machine_can_reach(self) -> None:
        self.assertEqual([endpoint for endpoint in HERE if not is_loopback(endpoint)], [])
        self.assertEqual([endpoint for endpoint in ANYWHERE if is_loopback(endpoint)], [])

    def test_the_manhole_listens_there_unless_told_otherwise(self) -> None:
        for endpoint in ("tcp:4002:interface=127.0.0.1", "unix:/run/manhole"):
            given = {"manhole": endpoint, "manhole-keys": "keys"}
            self.assertEqual(load(given, {}).manhole, endpoint)
        given = {"manhole": "tcp:4002", "manhole-keys": "keys"}
        self.assertEqual(
            str(self.assertRaises(ConfigError, load, given, {})),
            "--manhole: got 'tcp:4002', which other machines can reach; it takes interface=127.0.0.1 or "
            "unix:, or --manhole-anywhere besides",
        )
        self.assertEqual(load({**given, "manhole-anywhere": True}, {}).manhole, "tcp:4002")

    def test_the_manhole_is_off_and_takes_keys(self) -> None:
        self.assertIsNone(load({}, {}).manhole)
        self.assertIsNone(load({"manhole-keys": "keys"}, {}).manhole)
        self.assertEqual(
            str(self.assertRaises(ConfigError, load, {"manhole": "unix:/x"}, {})),
            "--manhole: needs --manhole-keys, an authorized_keys file: there are no passwords",
        )
        wrong = self.assertRaises(ConfigError, load, {"manhole": "bogus:1", "manhole-keys": "keys"}, {})
        self.assertIn("--manhole: got 'bogus:1'", str(wrong))
