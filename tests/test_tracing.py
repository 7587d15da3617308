"""The ids of a call: which are taken from a request, and which are made."""

from __future__ import annotations

import re

from twisted.trial.unittest import SynchronousTestCase

from flowtx.tracing import call_of

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class CallTests(SynchronousTestCase):
    def test_request_id_is_taken(self) -> None:
        for given in ("a", "A-Z_a.z-0", "x" * 128):
            self.assertEqual(call_of(given).request_id, given)

    def test_request_id_is_made(self) -> None:
        for given in (None, "", "x" * 129, "a b", "a\n", "é", "a/b", "{x}", "\x1b[31m"):
            made = call_of(given).request_id
            self.assertTrue(re.fullmatch("[0-9a-f]{16}", made), made)
        self.assertNotEqual(call_of(None), call_of(None))

    def test_traceparent_is_carried(self) -> None:
        for given in (
            f"00-{TRACE}-{PARENT}-01",
            f"00-{TRACE}-{PARENT}-00",
            f"cc-{TRACE}-{PARENT}-01",
            f"cc-{TRACE}-{PARENT}-01-what-may-come",
        ):
            self.assertEqual(call_of("a", given).traceparent, given)

    def test_other_traceparents_are_dropped(self) -> None:
        for given in (
            "",
            "00",
            f"ff-{TRACE}-{PARENT}-01",
            f"00-{'0' * 32}-{PARENT}-01",
            f"00-{TRACE}-{'0' * 16}-01",
            f"00-{TRACE.upper()}-{PARENT}-01",
            f"00-{TRACE[:-1]}-{PARENT}-01",
            f"00-{TRACE}-{PARENT}-1",
            f"00-{TRACE}-{PARENT}-01-more",
            f"00-{TRACE}-{PARENT}-01\n",
            f" 00-{TRACE}-{PARENT}-01",
            f"cc-{TRACE}-{PARENT}-01-{'x' * 100}",
        ):
            self.assertIsNone(call_of("a", given).traceparent, given)
