"""The SSH of the manhole: who is let in, and what is not there to be asked for."""

from __future__ import annotations

import re
from typing import Any

from twisted.conch.ssh.common import NS
from twisted.conch.ssh.keys import Key
from twisted.conch.ssh.userauth import MSG_USERAUTH_REQUEST
from twisted.internet.defer import Deferred

from flowtx.manhole import ssh
from flowtx.manhole.channel import MAX_CHANNELS, MAX_SHELLS
from flowtx.manhole.ssh import IDLE_FOR, LOGIN_WITHIN, MAX_CONNECTIONS
from tests.manhole.client import (
    ADA,
    ECDSA,
    EVE,
    MALLORY,
    RSA,
    Auth,
    Client,
    ManholeTestCase,
    Shell,
    line,
)


class LoginTests(ManholeTestCase):
    def test_a_key_of_the_file_lets_in(self) -> None:
        client, _ = self.dial()
        self.assertTrue(client.channels.started)
        (logged,) = self.logged
        self.assertRegex(logged, r"^Manhole: SHA256:\S{43} \(ada@laptop\) logged in from ")

    def test_each_kind_of_key_that_is_taken(self) -> None:
        for key in (ADA, ECDSA):
            self.write_keys(line(key))
            client, _ = self.dial(key)
            self.assertTrue(client.channels.started, key)

    def test_another_key_does_not(self) -> None:
        client, _ = self.dial(EVE)
        self.assertFalse(client.channels.started)
        self.assertEqual(
            self.logged[0],
            "Manhole: refused b'flow' from a unix socket: its key is not in --manhole-keys",
        )
        self.assertTrue(all("only public keys" in logged for logged in self.logged[1:]))

    def test_another_user_does_not_get_in_with_a_good_key(self) -> None:
        client, _ = self.dial(ADA, user=b"root\n{log_source}" + 1_000 * b"x")
        self.assertFalse(client.channels.started)
        self.assertIn("the user name is flow", self.logged[0])
        self.assertTrue(all(logged.isprintable() and len(logged) < 512 for logged in self.logged))

    def test_there_are_no_passwords(self) -> None:
        client = Client(b"flow", [])
        self.dial(client=client)
        client.auth.askForAuth(b"password", b"\0" + NS(b"a password"))
        self.flush(client)
        self.assertEqual(client.auth.can_continue, b"publickey")
        self.assertFalse(client.channels.started)
        self.assertIn("only public keys are taken", self.logged[-1])

    def flush(self, client: Client) -> None:
        self.pump.flush()

    def dial(self, *keys: Key, **others: Any) -> Any:
        client, self.pump = super().dial(*keys, **others)
        return client, self.pump

    def test_the_third_try_is_the_last(self) -> None:
        client, _ = self.dial(EVE, MALLORY, ECDSA, ADA)
        self.assertFalse(client.channels.started)
        self.assertEqual(client.ended, b"too many bad auths")
        self.assertTrue(client.lost)
        self.assertEqual(sum("its key is not in" in logged for logged in self.logged), 3)

    def test_the_third_key_may_be_the_right_one(self) -> None:
        client, _ = self.dial(EVE, MALLORY, ADA)
        self.assertTrue(client.channels.started)

    def test_what_comes_with_the_last_try_is_not_looked_at(self) -> None:
        client = Client(b"flow", [])
        self.dial(client=client)
        for _ in range(50):
            client.auth.askForAuth(b"password", b"\0" + NS(b"guess"))
        self.flush(client)
        self.assertEqual(client.ended, b"too many bad auths")
        self.assertLess(len(self.logged), 4)

    def test_nobody_may_ask_for_ever_what_there_is(self) -> None:
        client = Client(b"flow", [])
        self.dial(client=client)
        for _ in range(50):
            client.auth.askForAuth(b"none", b"")
        self.flush(client)
        self.assertEqual(client.ended, b"too many requests")

    def test_a_key_that_is_taken_out_is_out_at_once(self) -> None:
        self.write_keys(line(ADA), line(EVE))
        self.assertTrue(self.dial(EVE)[0].channels.started)
        self.write_keys(line(ADA))
        self.assertFalse(self.dial(EVE)[0].channels.started)

    def test_a_file_that_went_bad_lets_nobody_in_and_says_why(self) -> None:
        self.keys_file.chmod(0o644)
        self.assertFalse(self.dial()[0].channels.started)
        self.assertIn("chmod 600 puts that right", self.logged[0])
        self.keys_file.unlink()
        self.assertFalse(self.dial()[0].channels.started)
        self.assertIn("cannot be read: No such file", self.logged[-1])

    def test_a_signature_of_something_else_does_not_let_in(self) -> None:
        client = Client(b"flow", [ADA])
        sign = client.auth.signData
        client.auth.signData = lambda key, data: sign(key, data + b"!")
        self.dial(client=client)
        self.assertFalse(client.channels.started)
        self.assertIn("its signature is wrong", self.logged[0])

    def test_sha_1_is_not_taken(self) -> None:
        self.write_keys(line(RSA))
        client = Client(b"flow", [])
        self.dial(client=client)
        client.auth.askForAuth(b"publickey", b"\0" + NS(b"ssh-rsa") + NS(RSA.public().blob()))
        self.flush(client)
        self.assertIn("its kind of key is not taken", self.logged[-1])

    def test_signatures_with_rsa(self) -> None:
        self.write_keys(line(RSA))
        for said, used, is_let_in in (
            (b"rsa-sha2-512", b"rsa-sha2-512", True),
            (b"rsa-sha2-256", b"rsa-sha2-256", True),
            (b"rsa-sha2-512", b"ssh-rsa", False),
        ):
            client = Client(b"flow", [])
            self.dial(client=client)
            auth = client.auth
            asked = b"\1" + NS(said) + NS(RSA.public().blob())
            message = [
                NS(client.sessionID or b""),
                bytes((MSG_USERAUTH_REQUEST,)),
                NS(b"flow"),
                NS(auth.instance.name),
            ]
            signature = RSA.sign(b"".join([*message, NS(b"publickey"), asked]), used)
            auth.askForAuth(b"publickey", asked + NS(signature))
            self.flush(client)
            self.assertEqual(client.channels.started, is_let_in)
        self.assertIn("its signature is of another kind than it says", self.logged[-1])

    def test_the_names_of_algorithms_are_no_formats(self) -> None:
        # conch makes the format of a log event of this one, and a format may call methods.
        called = []
        ssh.Login.canary = lambda _: called.append(1)  # type: ignore[attr-defined]
        self.addCleanup(delattr, ssh.Login, "canary")
        client = Client(b"flow", [])
        self.dial(client=client)
        for blob in (b"junk", NS(b"{log_source.canary()}")):
            client.auth.askForAuth(b"publickey", b"\0" + NS(b"{log_source.canary()}") + NS(blob))
            self.flush(client)
        self.assertEqual(called, [])
        self.assertFalse(any("canary" in logged for logged in self.logged))

    def test_what_cannot_be_understood_ends_the_connection_in_one_line(self) -> None:
        for packet in (b"", b"\0\0\0\xff", b"\xff" * 40):
            client = Client(b"flow", [])
            self.dial(client=client)
            self.logged.clear()
            client.sendPacket(MSG_USERAUTH_REQUEST, packet)
            self.flush(client)
            self.assertTrue(client.lost)
            (logged,) = self.logged
            self.assertRegex(logged, r"^Manhole: .* sent what cannot be understood \(\w+\)$")

    def test_a_channel_before_the_login(self) -> None:
        client = Client(b"flow", [])
        self.dial(client=client)
        client.sendPacket(90, NS(b"session") + bytes(12))
        self.flush(client)
        self.assertEqual(len(self.factory.shells), 0)
        client.auth.transport.requestService(type("Early", (), {"name": b"ssh-connection"})())
        self.flush(client)
        self.assertIn(b"don't have service", client.ended or b"")


class TimeTests(ManholeTestCase):
    def test_who_says_nothing_is_sent_away(self) -> None:
        class Silent(Client):
            def connectionMade(self) -> None:
                pass

            def dataReceived(self, data: bytes) -> None:
                pass

        client, pump = self.dial(client=Silent(b"flow", []))
        self.clock.advance(LOGIN_WITHIN - 1)
        pump.flush()
        self.assertFalse(client.lost)
        self.clock.advance(1)
        pump.flush()
        self.assertTrue(client.lost)
        self.assertEqual(self.logged, ["Manhole: a unix socket did not log in within 30 s"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_does_not_log_in_is_sent_away(self) -> None:
        client = Client(b"flow", [])
        _, pump = self.dial(client=client)
        for _ in range(6):
            self.clock.advance(LOGIN_WITHIN / 6)
            client.sendIgnore(b"I am still here")
            pump.flush()
        self.assertTrue(client.lost)
        self.assertIn(client.ended, (b"no login within 30 seconds", b"you took too long"))

    def test_who_has_logged_in_may_take_longer(self) -> None:
        client, pump = self.dial()
        self.clock.advance(LOGIN_WITHIN + 1)
        pump.flush()
        self.assertFalse(client.lost)

    def test_who_types_nothing_is_sent_away(self) -> None:
        client, pump = connected = self.dial()
        shell, _ = self.terminal(connected)
        self.clock.advance(IDLE_FOR - 1)
        shell.write(b"x")
        pump.flush()
        self.clock.advance(IDLE_FOR - 1)
        client.sendIgnore(b"only the connection is alive")
        pump.flush()
        self.assertFalse(client.lost)
        self.clock.advance(1)
        pump.flush()
        self.assertEqual(client.ended, b"nobody has typed anything for 15 minutes")
        self.assertTrue(client.lost)
        self.assertEqual(len(self.factory.shells), 0)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_who_does_not_read_the_end_is_cut_off(self) -> None:
        self.dial()
        server = next(iter(self.factory.connections))
        cut_off: list[int] = []
        server.transport.loseConnection = lambda: None
        server.transport.abortConnection = lambda: cut_off.append(1)
        self.clock.advance(IDLE_FOR)
        self.assertEqual(cut_off, [])
        self.clock.advance(ssh.GONE_WITHIN)
        self.assertEqual(cut_off, [1])


class RefusalTests(ManholeTestCase):
    def test_nothing_but_sessions_can_be_opened(self) -> None:
        client, pump = self.dial()
        for kind in (
            b"direct-tcpip",
            b"x11",
            b"forwarded-tcpip",
            b"direct-streamlocal@openssh.com",
            b"\xff{}",
        ):
            shell = Shell()
            shell.name = kind
            self.open(client, pump, shell)
            self.assertFalse(shell.is_open)
            assert shell.refused is not None
            self.assertIn(b"only shells", shell.refused.value)
            self.assertRegex(self.logged[-1], "asked for a channel of type .*, which there is not")
        self.assertFalse(client.lost)

    def test_no_port_is_forwarded(self) -> None:
        client, pump = self.dial()
        for kind in (b"tcpip-forward", b"streamlocal-forward@openssh.com", b"keepalive@openssh.com", b"\xff"):
            asked: Any = client.channels.sendGlobalRequest(kind, NS(b"0.0.0.0") + bytes(4), wantReply=1)
            pump.flush()
            self.failureResultOf(asked)
        self.assertFalse(client.lost)
        self.assertEqual(sum("forward a port" in logged for logged in self.logged), 1)

    def test_no_subsystem_no_agent_no_variables(self) -> None:
        client, pump = self.dial()
        shell = self.open(client, pump)
        shell.ask(b"subsystem", NS(b"sftp"))
        shell.ask(b"auth-agent-req@openssh.com")
        shell.ask(b"x11-req", bytes(20))
        shell.ask(b"env", NS(b"PYTHONSTARTUP") + NS(b"x"))
        shell.ask(b"\xff{log_source}")
        pump.flush()
        self.assertEqual(shell.replies, [False] * 5)
        self.assertTrue(any("asked for b'sftp'" in logged for logged in self.logged))
        self.assertTrue(all(logged.isprintable() for logged in self.logged))

    def test_one_shell_a_channel(self) -> None:
        shell, pump = self.terminal()
        shell.ask(b"shell")
        shell.ask(b"exec", NS(b"1"))
        pump.flush()
        self.assertEqual(shell.replies, [True, True, False, False])

    def test_five_shells_at_once(self) -> None:
        shells = [self.terminal() for _ in range(MAX_SHELLS)]
        sixth = self.command("1")
        self.assertEqual((sixth.status, sixth.output), (1, b""))
        self.assertIn(b"There are 5 shells already", sixth.errors)
        self.assertTrue(sixth.is_closed)
        shell, pump = shells[0]
        shell.write(b"\x04")
        pump.flush()
        self.assertEqual(self.command("1").output, b"1\n")

    def test_ten_channels_of_one_connection(self) -> None:
        client, pump = self.dial()
        shells = [self.open(client, pump) for _ in range(MAX_CHANNELS + 1)]
        self.assertEqual([shell.is_open for shell in shells], [True] * MAX_CHANNELS + [False])

    def test_twenty_connections_at_once(self) -> None:
        dialled = [self.dial() for _ in range(MAX_CONNECTIONS)]
        self.assertIsNone(self.factory.buildProtocol(None))
        client, pump = dialled[0]
        client.transport.loseConnection()  # type: ignore[union-attr]
        pump.flush()
        self.assertIsNotNone(self.factory.buildProtocol(None))

    def test_nothing_is_inflated_and_no_old_algorithm_is_used(self) -> None:
        connection = ssh.Connection
        self.assertEqual(connection.supportedCompressions, [b"none"])
        names = [*connection.supportedCiphers, *connection.supportedMACs, *connection.supportedKeyExchanges]
        self.assertFalse(any(re.search(rb"cbc|3des|md5|sha1|none|group1", name) for name in names))
        self.assertIn(b"curve25519-sha256", names)
        self.assertEqual(connection.ourVersionString, b"SSH-2.0-flowtx")


class EndTests(ManholeTestCase):
    def test_all_are_told_that_the_server_stops(self) -> None:
        client, pump = connected = self.dial()
        self.terminal(connected)
        closing = Deferred.fromCoroutine(self.factory.close())
        self.assertNoResult(closing)
        pump.flush()
        self.successResultOf(closing)
        self.assertEqual(client.ended, b"the server stops")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_what_goes_on_is_cancelled(self) -> None:
        cancelled: list[object] = []
        self.factory._namespace = {"waits": Deferred(cancelled.append)}
        shell, pump = self.terminal()
        shell.write(b"async def wait():\r    await waits\r\rwait()\r")
        pump.flush()
        shell.write(b"\x03\x04")
        pump.flush()
        self.assertTrue(shell.is_closed)
        self.assertEqual(cancelled, [])
        closing = Deferred.fromCoroutine(self.factory.close())
        pump.flush()
        self.successResultOf(closing)
        self.assertEqual(len(cancelled), 1)


class AuthTests(ManholeTestCase):
    def test_a_login_is_told_from_a_logout(self) -> None:
        client, pump = self.dial()
        client.transport.loseConnection()  # type: ignore[union-attr]
        pump.flush()
        self.assertIn("logged out", self.logged[-1])

    def test_an_offer_is_no_login(self) -> None:
        class Offering(Auth):
            def getPrivateKey(self) -> Any:
                return Deferred()

        client = Client(b"flow", [])
        client.auth = Offering(b"flow", client, [ADA])
        self.dial(client=client)
        self.assertFalse(client.channels.started)
        self.assertEqual(self.logged, [])
