"""What is wrong, and where: the detail that a client or a backend gets."""

from __future__ import annotations

from typing import Annotated

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta
from twisted.trial.unittest import SynchronousTestCase

from flowtx.errors import InvalidPayload
from flowtx.protocol.places import MAX_PLACE, of_text, read_as


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    n: int = 0


class Form(msgspec.Struct, forbid_unknown_fields=True):
    names: list[Annotated[str, Meta(min_length=1)]]
    inner: Inner | None = None
    payload: msgspec.Raw = msgspec.Raw()


def detail(text: bytes) -> str:
    try:
        msgspec.json.decode(text, type=Form)
    except ValueError as problem:
        return of_text(text, problem)
    raise AssertionError(text)


class PlacesTests(SynchronousTestCase):
    def test_the_place_comes_first(self) -> None:
        for text, expected in (
            (b"[]", "expected `object`, got `array`"),
            (b"{}", "names: it is required"),
            (b'{"names":[],"more":1}', "more: there is no such field"),
            (b'{"names":[],"inner":{"more":1}}', "inner.more: there is no such field"),
            (b'{"names":["a",""]}', "names[1]: expected `str` of length >= 1"),
            (b'{"names":"a"}', "names: expected `array`, got `str`"),
            (b'{"names":[],"inner":{"n":1e999}}', "inner.n: number out of range"),
            (b'{"names":[],"payload":[{"a":["\\ud800"]}]}', "payload[0].a[0]: has a lone surrogate"),
            (b'{"names":["a","\\uDC00\\uD800"]}', "names[1]: has a lone surrogate"),
            (b'{"names":[],"payload":{"\\ud800":1}}', "payload: has a name with a lone surrogate"),
            (b'{"names":[],"payload":NaN}', "payload: got nan, which JSON has not"),
            (b'{"names":[],"payload":{"a":-Infinity}}', "payload.a: got -inf, which JSON has not"),
            (b'"\\ud800"', "has a lone surrogate"),
        ):
            self.assertEqual(detail(text), expected)

    def test_what_has_no_place(self) -> None:
        for text in (b"", b"{", b"\xff", b'{"names":["\xed\xa0\x80"]}', b"{} {}", b"[" * 10_000 + b"NaN"):
            self.assertTrue(detail(text))

    def test_a_place_is_cut(self) -> None:
        for text in (
            b'{"names":[],"%b":1}' % (b"x" * 10_000),
            b'{"names":[],"payload":{"%b":NaN}}' % (b"x" * 10_000),
        ):
            self.assertLess(len(detail(text)), MAX_PLACE + 50)

    def test_a_decoded_value(self) -> None:
        self.assertEqual(read_as({"names": ["a"]}, Form).names, ["a"])
        problem = self.assertRaises(InvalidPayload, read_as, {"names": [7]}, Form)
        self.assertEqual(problem.detail, "names[0]: expected `str`, got `int`")

    @given(st.binary() | st.text().map(lambda text: f'{{"names":{text}NaN'.encode("utf-8", "surrogatepass")))
    def test_any_text_has_a_detail(self, text: bytes) -> None:
        try:
            msgspec.json.decode(text, type=Form)
        except ValueError as problem:
            self.assertTrue(of_text(text, problem))
