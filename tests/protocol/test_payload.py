"""What a client may send as payload, and what it may cost."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import InvalidPayload
from flowtx.protocol.message import Message
from flowtx.protocol.payload import MAX_DEPTH, MAX_NODES, read_json, read_payload


class ReadPayloadTests(SynchronousTestCase):
    def test_text_is_json(self) -> None:
        self.assertEqual(read_payload(Message(b"null", b"null", "t", "e", b'{"a":1}')), {"a": 1})

    def test_binary_is_bytes(self) -> None:
        self.assertEqual(
            read_payload(Message(b"null", b"null", "t", "e", b'{"a":1}', binary=True)), b'{"a":1}'
        )


class ReadJsonTests(SynchronousTestCase):
    def refused(self, text: bytes) -> str:
        error: InvalidPayload = self.assertRaises(InvalidPayload, read_json, text)
        return error.detail

    def test_what_is_no_json(self) -> None:
        for text in (b"", b"{", b"NaN", b'"\xff"', b'"\\ud800"', b"1e400", b"\xef\xbb\xbf{}", b"01"):
            self.assertIn("not JSON", self.refused(text), text)

    def test_of_duplicate_keys_the_last_counts(self) -> None:
        self.assertEqual(read_json(b'{"a":1,"a":2}'), {"a": 2})

    def test_large_integers_are_exact(self) -> None:
        self.assertEqual(read_json(b"123456789012345678901234567890"), 123456789012345678901234567890)

    def test_depth(self) -> None:
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            deepest = opening * MAX_DEPTH + b"1" + closing * MAX_DEPTH
            read_json(deepest)
            self.assertIn("nested deeper than 32", self.refused(opening + deepest + closing))
        self.assertIn("nested deeper than 32", self.refused(b"[" * 33 + b"]" * 33))
        self.assertIn("nested deeper than 32", self.refused(b"[" * 100_000 + b"]" * 100_000))

    def test_number_of_values(self) -> None:
        # The array is a value too.
        self.assertEqual(len(read_json(json.dumps([0] * (MAX_NODES - 1)).encode())), MAX_NODES - 1)
        self.assertIn("more than 2000 values", self.refused(json.dumps([0] * MAX_NODES).encode()))
        nested = [{"a": [1, 2]}] * (MAX_NODES // 4)
        self.assertIn("more than 2000 values", self.refused(json.dumps(nested).encode()))

    def test_brackets_and_commas_in_text_count_for_nothing(self) -> None:
        text = "[{," * 5000
        self.assertEqual(read_json(json.dumps({"a": text}).encode()), {"a": text})

    def test_any_number_of_values_where_the_caller_says_so(self) -> None:
        self.assertEqual(len(read_json(json.dumps([0] * 5000).encode(), max_nodes=None)), 5000)
        self.assertRaises(InvalidPayload, read_json, b"[" * 33 + b"]" * 33, max_nodes=None)

    @settings(deadline=None)
    @given(st.binary() | st.text().map(str.encode))
    def test_any_bytes_are_a_value_or_refused(self, data: bytes) -> None:
        try:
            expected = json.loads(data.decode())
        except (ValueError, RecursionError):
            expected = InvalidPayload
        try:
            value = read_json(data)
        except InvalidPayload:
            return
        self.assertEqual(value, expected)
