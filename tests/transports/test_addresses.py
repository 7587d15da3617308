"""Whose connections they are, and how many one address may have."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import Refused
from flowtx.limits import Rate
from flowtx.transports.addresses import FEW, Addresses, client_address, counted_as, parse_networks
from flowtx.transports.handshake import forwarded_for

PROXIES = parse_networks(["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"])


class CountedTests(SynchronousTestCase):
    def test_public_addresses_count(self) -> None:
        self.assertEqual(counted_as("1.1.1.1"), "1.1.1.1")
        self.assertEqual(counted_as("::ffff:1.1.1.1"), "1.1.1.1")

    def test_those_of_one_network_of_64_bits_count_as_one(self) -> None:
        self.assertEqual(counted_as("2606:4700:1:2::1"), "2606:4700:1:2::/64")
        self.assertEqual(counted_as("2606:4700:1:2:ffff::2"), "2606:4700:1:2::/64")
        self.assertNotEqual(counted_as("2606:4700:1:3::1"), counted_as("2606:4700:1:2::1"))

    def test_others_do_not(self) -> None:
        for address in (
            *("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "10.1.2.3", "192.168.0.1", "172.16.0.1"),
            *("100.64.0.1", "169.254.1.1", "fe80::1%eth0", "fd00::1", "unix", "", "nonsense", "1.1.1.1.1"),
        ):
            self.assertIsNone(counted_as(address), address)


class ClientAddressTests(SynchronousTestCase):
    def test_the_last_that_is_no_proxy(self) -> None:
        for peer, forwarded, expected in (
            ("1.1.1.1", [], "1.1.1.1"),
            # From anybody else the header is ignored.
            ("1.1.1.1", ["8.8.8.8"], "1.1.1.1"),
            ("127.0.0.1", [], "127.0.0.1"),
            ("127.0.0.1", ["8.8.8.8"], "8.8.8.8"),
            # What the client claimed stands before what the proxy has seen.
            ("127.0.0.1", ["6.6.6.6", "8.8.8.8"], "8.8.8.8"),
            ("127.0.0.1", ["6.6.6.6", "8.8.8.8", "10.1.1.1"], "8.8.8.8"),
            ("127.0.0.1", ["10.2.2.2", "10.1.1.1"], "10.2.2.2"),
            ("::ffff:127.0.0.1", ["2606:4700::1", "2001:db8::7"], "2606:4700::1"),
            ("127.0.0.1", ["8.8.8.8", "nonsense"], "127.0.0.1"),
            ("127.0.0.1", ["8.8.8.8", ""], "127.0.0.1"),
            ("unix", ["8.8.8.8"], "unix"),
        ):
            self.assertEqual(client_address(peer, forwarded, PROXIES), expected, (peer, forwarded))

    def test_without_proxies_nobody_is_believed(self) -> None:
        self.assertEqual(client_address("127.0.0.1", ["8.8.8.8"], ()), "127.0.0.1")

    def test_the_headers_of_a_request(self) -> None:
        head = (
            b"GET / HTTP/1.1\r\nX-Forwarded-For: 6.6.6.6,8.8.8.8\r\nX-Not-X-Forwarded-For: 9.9.9.9\r\n"
            b"x-forwarded-for:10.1.1.1\r\nHost: h"
        )
        self.assertEqual(forwarded_for(head), ["6.6.6.6", "8.8.8.8", "10.1.1.1"])
        self.assertEqual(forwarded_for(b"GET / HTTP/1.1\r\nHost: X-Forwarded-For: 1.1.1.1"), [])
        self.assertEqual(forwarded_for(b"GET / HTTP/1.1\r\nX-Forwarded-For: \xff,"), ["\xff", ""])


class AddressesTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.addresses = Addresses(Rate(50, 100), 3)

    def refused(self, name: str, now: float) -> Refused:
        refused: Refused = self.assertRaises(Refused, self.addresses.admit, name, now)
        return refused

    def test_a_bound_on_its_connections(self) -> None:
        for _ in range(3):
            self.addresses.admit("a", 0.0)
        refused = self.refused("a", 0.0)
        self.assertEqual((refused.status, refused.reason), (429, "rate_limited"))
        self.assertEqual(refused.headers, {"Retry-After": "1"})
        self.addresses.admit("b", 0.0)
        self.addresses.release("a")
        self.addresses.admit("a", 0.0)
        self.refused("a", 0.0)

    def test_a_bound_on_its_handshakes(self) -> None:
        for _ in range(100):
            self.addresses.admit("a", 0.0)
            self.addresses.release("a")
        self.assertEqual(self.refused("a", 0.0).headers, {"Retry-After": "1"})
        self.addresses.admit("b", 0.0)
        self.addresses.admit("a", 0.02)
        self.refused("a", 0.02)

    def test_a_slow_rate_says_when_to_come_back(self) -> None:
        addresses = Addresses(Rate(0.1, 1), 3)
        addresses.admit("a", 0.0)
        refused = self.assertRaises(Refused, addresses.admit, "a", 1.0)
        self.assertEqual(refused.headers, {"Retry-After": "9"})

    def test_those_that_have_gone_are_forgotten(self) -> None:
        self.addresses.admit("stays", 0.0)
        for number in range(20 * FEW):
            self.addresses.admit(f"{number}", float(number))
            self.addresses.release(f"{number}")
        self.assertLessEqual(len(self.addresses), FEW)
        self.addresses.admit("stays", 0.0)
        self.addresses.admit("stays", 0.0)
        self.refused("stays", 0.0)

    def test_those_that_have_just_come_too_often_are_not(self) -> None:
        for _ in range(100):
            self.addresses.admit("often", 0.0)
            self.addresses.release("often")
        for number in range(3 * FEW):
            self.addresses.admit(f"{number}", 0.0)
            self.addresses.release(f"{number}")
        self.refused("often", 0.0)

    def test_those_that_are_there_are_not(self) -> None:
        for number in range(3 * FEW):
            self.addresses.admit(f"{number}", float(number))
        self.assertEqual(len(self.addresses), 3 * FEW)
        for number in range(3 * FEW):
            self.addresses.release(f"{number}")

    def test_a_change_holds_from_then_on(self) -> None:
        rate = Rate(10, 10)
        addresses = Addresses(rate, 3)
        for _ in range(3):
            addresses.admit("a", 0.0)
        addresses.limit_to(4)
        addresses.admit("a", 0.0)
        addresses.limit_to(1)
        self.assertRaises(Refused, addresses.admit, "a", 60.0)
        for _ in range(4):
            addresses.release("a")
        rate.change(1, 1)
        addresses.admit("a", 120.0)
        addresses.release("a")
        self.assertRaises(Refused, addresses.admit, "a", 120.5)
        addresses.admit("a", 121.1)
