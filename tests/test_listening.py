"""A port that cannot be had fails the start, in one line."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import ConfigError, StartupError
from flowtx.listening import BACKLOG, Listening


class ListeningTests(SynchronousTestCase):
    def make(self, endpoint: str) -> Listening:
        self.reactor: Any = MemoryReactor()
        return Listening("listen", endpoint, Factory(), reactor=self.reactor)

    def test_it_listens_while_it_runs(self) -> None:
        listening = self.make("tcp:4000:interface=127.0.0.1")
        self.assertIsNone(listening.address)
        self.successResultOf(listening.startService())
        [(port, _, _, interface)] = self.reactor.tcpServers
        self.assertEqual((port, interface), (4000, "127.0.0.1"))
        self.assertIsNotNone(listening.address)
        self.successResultOf(listening.stopService())
        self.assertIsNone(listening.address)
        self.successResultOf(listening.stopService())

    def test_a_thousand_can_wait_to_be_accepted(self) -> None:
        for endpoint, backlog in (
            ("tcp:4000", BACKLOG),
            ("tcp:4000:interface=127.0.0.1", BACKLOG),
            ("tcp:port=4000:backlog=7", 7),
            ("tcp:4000:127.0.0.1:8", 8),
            ("tcp6:4000", BACKLOG),
            ("haproxy:tcp:4000", BACKLOG),
        ):
            self.successResultOf(self.make(endpoint).startService())
            self.assertEqual(self.reactor.tcpServers[0][2], backlog, endpoint)
        for endpoint, address, backlog in (
            ("unix:/run/clients", "/run/clients", BACKLOG),
            ("unix:/run/clients:backlog=9", "/run/clients", 9),
            (r"unix:/run/a\:backlog\=3", "/run/a:backlog=3", BACKLOG),
        ):
            self.successResultOf(self.make(endpoint).startService())
            [(where, _, given, *_)] = self.reactor.unixServers
            self.assertEqual((where, given), (address, backlog), endpoint)

    def test_descriptions_that_are_none(self) -> None:
        # A file that is no certificate is an error of OpenSSL's own.
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        nonsense = Path(directory.name, "nonsense")
        nonsense.write_text("nonsense")
        for endpoint in (
            "",
            "tcp",
            "tcp:x",
            "canary:1",
            "tcp:1:x=1",
            "ssl:1:privateKey=/nowhere",
            f"ssl:1:privateKey={nonsense}",
        ):
            message = str(self.assertRaises(ConfigError, self.make, endpoint))
            self.assertIn("--listen: got", message)
            self.assertNotIn("\n", message)

    def test_ports_that_cannot_be_had(self) -> None:
        for error in (OSError(98, "Address already in use"), OverflowError("bind(): port must be 0-65535.")):
            listening = self.make("tcp:4000")

            def fail(*_: object, error: Exception = error, **__: object) -> None:
                raise error

            self.reactor.listenTCP = fail
            failure = self.failureResultOf(listening.startService(), StartupError)
            self.assertIn("--listen: cannot listen on tcp:4000: ", str(failure.value))
            self.assertIsNone(listening.address)
