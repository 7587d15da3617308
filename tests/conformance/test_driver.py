"""The driver notices what is wrong."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from flowtx.protocol.message import Frame
from tests.conformance.driver import (
    Case,
    Closed,
    Connect,
    Connection,
    Pong,
    Received,
    Step,
    WebSocketFrame,
    load_cases,
    run_case,
)


class Canned:
    """A connection that receives what it is given, then the answers to the driver's probes."""

    def __init__(self, *received: Received) -> None:
        self._received = list(received)
        self.sent: list[str | bytes] = []
        self._probes = 0

    async def send_text(self, text: str) -> None:
        self.sent.append(text)

    async def send_binary(self, data: bytes) -> None:
        self.sent.append(data)

    async def send_raw(self, data: bytes) -> None:
        self.sent.append(data)

    async def receive(self) -> Received:
        if self._received:
            return self._received.pop(0)
        self._probes += 1
        ref = b"probe-%d" % self._probes
        return Frame(b'[null,"%b","phoenix","phx_reply",{"status":"ok","response":{}}]' % ref)


class DriverTests(SynchronousTestCase):
    def play(self, connection: Canned, *steps: Step) -> str | None:
        """Play steps on a connection; None or what was wrong."""

        async def connect(_how: Connect) -> Connection:
            return connection

        async def pause(_seconds: float) -> None:
            pass

        opening = Step(on="C", connect=Connect("2.0.0", "42"))
        played = Deferred.fromCoroutine(run_case(Case("X01", "title", [opening, *steps]), connect, pause))
        wrong: list[str] = []
        played.addErrback(lambda failure: wrong.append(str(failure.trap(AssertionError) and failure.value)))
        self.successResultOf(played)
        return wrong[0] if wrong else None

    def text(self, expected: str, received: str) -> str | None:
        return self.play(Canned(Frame(received.encode())), Step(on="C", expect=expected))

    def test_the_order_of_keys_means_nothing(self) -> None:
        self.assertIsNone(self.text('["1","2","t","e",{"a":1,"b":2}]', '["1","2","t","e",{"b":2,"a":1}]'))

    def test_another_value(self) -> None:
        for received in (
            '["1","2","t","e",{"a":2}]',
            '["1","2","t","e",{"a":1.0}]',
            '["1","2","t","e",{"a":true}]',
            '["1","2","t","e",{}]',
            '["1","2","t","e",{"a":1,"b":1}]',
            '[1,"2","t","e",{"a":1}]',
            '["1",null,"t","e",{"a":1}]',
        ):
            self.assertIn(
                "X01, title, step 1: expected", self.text('["1","2","t","e",{"a":1}]', received) or ""
            )

    def test_a_ref_that_is_the_same_in_other_bytes(self) -> None:
        self.assertIn("expected", self.text('["1",2.0,"t","e",{}]', '["1",2.00,"t","e",{}]') or "")
        self.assertIn("expected", self.text('["1","a","t","e",{}]', '["1","\\u0061","t","e",{}]') or "")

    def test_any_text(self) -> None:
        expected = '["1","2","t","e",{"a":"$TEXT"}]'
        self.assertIsNone(self.text(expected, '["1","2","t","e",{"a":"anything"}]'))
        self.assertIn("expected", self.text(expected, '["1","2","t","e",{"a":1}]') or "")

    def test_text_that_is_not_compact(self) -> None:
        self.assertIn("not compact", self.text('["1","2","t","e",{}]', '["1", "2","t","e",{}]') or "")
        self.assertIsNone(self.text('["1","2","t","e",{"a":" \\" , "}]', '["1","2","t","e",{"a":" \\" , "}]'))

    def test_another_kind_of_frame(self) -> None:
        text = Step(on="C", expect="[]")
        binary = Step(on="C", expect_hex="5b 5d")
        close = Step(on="C", expect_close=1000)
        for step, received in (
            (text, Frame(b"[]", binary=True)),
            (text, Closed(1000)),
            (text, Pong(b"[]")),
            (binary, Frame(b"[]")),
            (binary, Frame(b"[ ]", binary=True)),
            (close, Closed(1001)),
            (close, Frame(b"[]")),
            (Step(on="C", expect_pong="00"), Pong(b"\x01")),
        ):
            self.assertIn("X01, title, step 1: expected", self.play(Canned(received), step) or "", step)
        self.assertIsNone(self.play(Canned(Closed(1001)), Step(on="C", expect_close=[1000, 1001])))
        self.assertIsNone(self.play(Canned(Frame(b"[]", binary=True)), binary))

    def test_a_frame_too_many(self) -> None:
        self.assertIn("after the last step", self.play(Canned(Frame(b"[]"))) or "")
        self.assertIn("step 1", self.play(Canned(Frame(b"[]")), Step(on="C", expect_nothing=True)) or "")

    def test_a_frame_that_may_come(self) -> None:
        step = Step(on="C", expect='["1","2","t","e",{}]', or_nothing=True)
        self.assertIsNone(self.play(Canned(), step))
        self.assertIsNone(self.play(Canned(Frame(b'["1","2","t","e",{}]')), step))
        self.assertIn("step 1: expected", self.play(Canned(Frame(b'["1","3","t","e",{}]')), step) or "")

    def test_what_is_repeated_and_filled_in(self) -> None:
        connection = Canned()
        steps = [
            Step(on="C", repeat=3, steps=[Step(send="<#>")]),
            Step(on="C", send="$X", fill={"$X": ("ab", 3)}),
            Step(on="C", frame=WebSocketFrame(1, text="a")),
        ]
        self.assertIsNone(self.play(connection, *steps))
        self.assertEqual(connection.sent[:-1], ["<0>", "<1>", "<2>", "ababab", b"\x81\x81\x00\x00\x00\x00a"])


class WebSocketFrameTests(SynchronousTestCase):
    """The examples of RFC 6455, section 5.7."""

    def test_text(self) -> None:
        self.assertEqual(WebSocketFrame(1, text="Hello", masked=False).to_bytes(), b"\x81\x05Hello")
        self.assertEqual(WebSocketFrame(1, text="Hel", fin=False, masked=False).to_bytes(), b"\x01\x03Hel")
        self.assertEqual(WebSocketFrame(9, hex="48 65", masked=False).to_bytes(), b"\x89\x02He")

    def test_longer(self) -> None:
        frame = WebSocketFrame(2, hex="00" * 256, masked=False).to_bytes()
        self.assertEqual(frame, b"\x82\x7e\x01\x00" + bytes(256))

    def test_the_steps_of_the_file(self) -> None:
        steps = [step for case in load_cases("socket") for step in case.steps]
        frames = [step.frame.to_bytes() for step in steps if step.frame is not None]
        self.assertGreater(len(frames), 20)
        self.assertEqual([step for step in steps if step.request is not None], [])
