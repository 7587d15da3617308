"""Frames to messages, and replies, pushes and broadcasts to frames."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from flowtx.protocol.message import NULL_REF, Broadcast, Frame, MalformedFrame, Message, UnencodablePayload
from flowtx.protocol.serializer import MAX_REF_BYTES, Serializer, V1Serializer, V2Serializer, serializer_for

V1 = V1Serializer()
V2 = V2Serializer()

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4)
)
field = st.text(max_size=60)
nearly = values.map(json.dumps) | st.lists(values, min_size=3, max_size=7).map(json.dumps)


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class DecodeV2Tests(SynchronousTestCase):
    def test_five_elements(self) -> None:
        message = V2.decode_text(b'["1","2","room:1","new",{"a": [1]}]')
        self.assertEqual(message, Message(b'"1"', b'"2"', "room:1", "new", b'{"a": [1]}'))

    def test_elements_past_the_fifth_are_ignored(self) -> None:
        message = V2.decode_text(b'[null,"2","room:1","new",{},"x",{}]')
        self.assertEqual(message, Message(NULL_REF, b'"2"', "room:1", "new", b"{}"))

    def test_malformed_text(self) -> None:
        for text in (
            b"",
            b"nope",
            b"null",
            b"5",
            b"{}",
            b"[]",
            b'["1","2","t","e"]',
            b'["1","2","t","e",{}',
            b'["1","2","t","e",{}]x',
            b'["1","2","t","e",NaN]',
            b'["1","2",{"t":1},"e",{}]',
            b'["1","2","t",["e"],{}]',
            b'["1","2",["t"],"e",{},"extra"]',
            b'["1","2","\\ud800","e",{}]',
            b"[" * 100_000,
        ):
            with self.assertRaises(MalformedFrame, msg=repr(text[:40])):
                V2.decode_text(text)

    def test_a_ref_may_be_256_bytes_long_and_no_longer(self) -> None:
        longest = b'"' + b"r" * 254 + b'"'
        message = V2.decode_text(b'[%b,%b,"t","e",{}]' % (longest, longest))
        self.assertEqual((message.join_ref, message.ref), (longest, longest))
        for frame in (b'[null,%b,"t","e",{}]', b'[%b,"1","t","e",{}]'):
            with self.assertRaises(MalformedFrame):
                V2.decode_text(frame % (longest[:-1] + b'r"'))

    def test_topic_and_event_may_be_scalars(self) -> None:
        message = V2.decode_text(b'["1","2",123,null,{}]')
        self.assertEqual((message.topic, message.event), (123, None))

    def test_binary_push_of_phoenix_own_tests(self) -> None:
        message = V2.decode_binary(b"\x00\x02\x03\x05\x0512123topicevent\x65\x66\x67")
        self.assertEqual(message, Message(b'"12"', b'"123"', "topic", "event", b"efg", binary=True))

    def test_empty_binary_refs_are_null(self) -> None:
        message = V2.decode_binary(b"\x00\x00\x00\x01\x01te")
        self.assertEqual((message.join_ref, message.ref, message.body), (NULL_REF, NULL_REF, b""))

    def test_malformed_binary(self) -> None:
        for data in (
            b"",
            b"\x00",
            b"\x00\x00\x00\x00",
            b"\x01\x00\x00\x01\x01te",
            b"\x00\x01\x01\x06\x0412",
            b"\x00\x00\x00\x02\x01\xff\xfee",
            b'[null,"1","phoenix","heartbeat",{}]',
        ):
            with self.assertRaises(MalformedFrame, msg=repr(data)):
                V2.decode_binary(data)


class DecodeV1Tests(SynchronousTestCase):
    def test_join_ref_is_optional(self) -> None:
        message = V1.decode_text(b'{"topic":"t","event":"e","payload":{},"ref":1}')
        self.assertEqual(message, Message(NULL_REF, b"1", "t", "e", b"{}"))
        message = V1.decode_text(b'{"topic":"t","event":"e","payload":5,"ref":"1","join_ref":"9","x":0}')
        self.assertEqual(message, Message(b'"9"', b'"1"', "t", "e", b"5"))

    def test_each_other_key_is_required(self) -> None:
        frame = {"topic": "t", "event": "e", "payload": {}, "ref": "1"}
        for key in frame:
            with self.assertRaises(MalformedFrame, msg=key):
                V1.decode_text(dumps({name: frame[name] for name in frame if name != key}).encode())

    def test_a_binary_frame_is_read_as_text(self) -> None:
        message = V1.decode_binary(b'{"topic":"t","event":"e","payload":{},"ref":"1"}')
        self.assertEqual(message.topic, "t")

    def test_a_binary_frame_must_be_utf8(self) -> None:
        with self.assertRaises(MalformedFrame):
            V1.decode_binary(b'{"topic":"t","event":"e","payload":{},"ref":"\xff"}')

    def test_malformed_text(self) -> None:
        for text in (
            b"",
            b"[]",
            b'[null,"1","t","e",{}]',
            b"null",
            b'{"topic":{},"event":"e","payload":1,"ref":1}',
        ):
            with self.assertRaises(MalformedFrame, msg=repr(text)):
                V1.decode_text(text)


class AnyBytesTests(SynchronousTestCase):
    """Whatever comes is a message or malformed; nothing else is raised."""

    def check(self, serializer: Serializer, data: bytes, *, binary: bool) -> None:
        try:
            message = serializer.decode_binary(data) if binary else serializer.decode_text(data)
        except MalformedFrame:
            return
        frame = serializer.reply(message.join_ref, message.ref, message.topic, "ok", {})
        parsed = json.loads(frame.payload.decode())
        reply = (
            parsed if isinstance(parsed, dict) else dict(zip(("join", "ref", "topic"), parsed, strict=False))
        )
        self.assertEqual(dumps(reply["topic"]), dumps(message.topic))

    @settings(deadline=None)
    @given(st.text() | nearly)
    @example('["1","2",1e400,"e",{}]')
    @example('["1","2","t","e",1e400]')
    @example('[1e400,"2","t","e",{}]')
    def test_text_v2(self, text: str) -> None:
        self.check(V2, text.encode(), binary=False)

    @settings(deadline=None)
    @given(
        st.text()
        | st.dictionaries(st.sampled_from(("topic", "event", "payload", "ref", "join_ref")), values).map(
            json.dumps
        )
    )
    def test_text_v1(self, text: str) -> None:
        self.check(V1, text.encode(), binary=False)

    @settings(deadline=None)
    @given(st.binary() | st.binary().map(lambda tail: b"\x00\x01\x01\x01\x01" + tail))
    def test_binary_v2(self, data: bytes) -> None:
        self.check(V2, data, binary=True)

    @settings(deadline=None)
    @given(st.binary() | st.text().map(str.encode))
    def test_binary_v1(self, data: bytes) -> None:
        self.check(V1, data, binary=True)

    @settings(deadline=None)
    @given(field, field, field, field, st.binary())
    def test_round_trip_of_a_binary_push(
        self, join_ref: str, ref: str, topic: str, event: str, data: bytes
    ) -> None:
        parts = [text.encode() for text in (join_ref, ref, topic, event)]
        message = V2.decode_binary(b"\x00" + bytes(map(len, parts)) + b"".join(parts) + data)
        self.assertEqual((message.topic, message.event, message.body), (topic, event, data))
        frame = V2.reply(message.join_ref, message.ref, topic, "ok", data)
        expected = b"\x01" + bytes(map(len, (*parts[:3], b"ok"))) + b"".join(parts[:3]) + b"ok" + data
        self.assertEqual(frame, Frame(expected, binary=True))

    @settings(deadline=None)
    @given(values.map(json.dumps), values.map(dumps))
    def test_refs_come_back_to_the_byte(self, join_ref: str, ref: str) -> None:
        if max(len(join_ref), len(ref.encode())) > MAX_REF_BYTES:
            return
        message = V2.decode_text(f'[{join_ref},{ref},"t","e",{{}}]'.encode())
        frame = V2.reply(message.join_ref, message.ref, "t", "ok", {})
        self.assertTrue(frame.payload.startswith(f'[{join_ref},{ref},"t",'.encode()), frame)
        message = V1.decode_text(f'{{"topic":"t","event":"e","payload":{{}},"ref":{ref}}}'.encode())
        self.assertIn(f'"ref":{ref},"topic"'.encode(), V1.reply(NULL_REF, message.ref, "t", "ok", {}).payload)


class EncodeV2Tests(SynchronousTestCase):
    def test_text(self) -> None:
        self.assertEqual(
            V2.reply(b'"1"', b"2", "t", "ok", {"a": [1, 2]}),
            Frame(b'["1",2,"t","phx_reply",{"response":{"a":[1,2]},"status":"ok"}]'),
        )
        self.assertEqual(
            V2.push(b'"1"', "t", "e", {"a": "é"}), Frame('["1",null,"t","e",{"a":"é"}]'.encode())
        )
        self.assertEqual(V2.control(b'"1"', "t", "phx_close", {}), Frame(b'["1","1","t","phx_close",{}]'))

    def test_binary(self) -> None:
        self.assertEqual(
            V2.push(b'"1"', "t", "ev", b"\x00\xff"), Frame(b"\x00\x01\x01\x021tev\x00\xff", binary=True)
        )
        self.assertEqual(
            V2.reply(b'"1"', b"23", "t", "ok", b"\xff"), Frame(b"\x01\x01\x02\x01\x02123tok\xff", binary=True)
        )
        self.assertEqual(
            V2.reply(NULL_REF, NULL_REF, "t", "ok", b""), Frame(b"\x01\x00\x00\x01\x02tok", binary=True)
        )

    def test_a_ref_that_is_no_text_goes_into_a_binary_reply_as_it_came(self) -> None:
        frame = V2.reply(b"1.50", b'{"a": 1}', "t", "ok", b"")
        self.assertEqual(frame.payload, b'\x01\x04\x08\x01\x021.50{"a": 1}tok')

    def test_a_field_of_a_binary_frame_has_255_bytes_at_most(self) -> None:
        self.assertEqual(V2.push(b'"1"', "t" * 255, "e", b"").payload[2], 255)
        for topic in ("t" * 256, "é" * 128):
            with self.assertRaises(UnencodablePayload):
                V2.push(b'"1"', topic, "e", b"")

    def test_a_payload_must_be_an_object(self) -> None:
        for payload in (None, 1, "x", [], [{}], object(), {"a": object()}, {"a": {1, object()}}):
            with self.assertRaises(UnencodablePayload, msg=repr(payload)):
                V2.push(b'"1"', "t", "e", payload)

    def test_a_response_may_be_any_json(self) -> None:
        responses: tuple[Any, ...] = (None, 1, "x", [], 10**40)
        for response in responses:
            frame = V2.reply(b'"1"', b'"2"', "t", "ok", response)
            self.assertEqual(json.loads(frame.payload)[4]["response"], response)
        with self.assertRaises(UnencodablePayload):
            V2.reply(b'"1"', b'"2"', "t", "ok", object())


class EncodeV1Tests(SynchronousTestCase):
    def test_no_frame_has_a_join_ref(self) -> None:
        frames = [
            V1.reply(b'"9"', b'"2"', "t", "ok", {}),
            V1.push(b'"9"', "t", "e", {}),
            V1.broadcast(b'"9"', Broadcast("t", "e", {})),
            V1.control(b'"9"', "t", "phx_close", {}),
        ]
        for frame in frames:
            self.assertEqual(json.loads(frame.payload).keys(), {"topic", "event", "payload", "ref"})
        self.assertEqual([json.loads(frame.payload)["ref"] for frame in frames], ["2", None, None, "9"])

    def test_no_binary(self) -> None:
        for refused in (
            lambda: V1.reply(NULL_REF, NULL_REF, "t", "ok", b""),
            lambda: V1.push(NULL_REF, "t", "e", b""),
            lambda: V1.broadcast(NULL_REF, Broadcast("t", "e", b"")),
        ):
            with self.assertRaises(UnencodablePayload):
                refused()


class BroadcastTests(SynchronousTestCase):
    def test_each_receiver_has_its_own_join_ref(self) -> None:
        broadcast = Broadcast("t", "e", {"a": 1})
        self.assertEqual(V2.broadcast(b'"1"', broadcast).payload, b'["1",null,"t","e",{"a":1}]')
        self.assertEqual(V2.broadcast(b"22", broadcast).payload, b'[22,null,"t","e",{"a":1}]')

    def test_is_encoded_once_for_each_version(self) -> None:
        payload = {"a": 1}
        broadcast = Broadcast("t", "e", payload)
        V2.broadcast(b'"1"', broadcast)
        first = V1.broadcast(NULL_REF, broadcast)
        tail = broadcast.encoded[V2.version]
        payload["a"] = 2
        self.assertEqual(V2.broadcast(b'"2"', broadcast).payload, b'["2",null,"t","e",{"a":1}]')
        self.assertIs(broadcast.encoded[V2.version], tail)
        self.assertIs(V1.broadcast(NULL_REF, broadcast), first)

    def test_a_binary_one_is_the_same_for_all(self) -> None:
        broadcast = Broadcast("room", "blob", b"\x00\xff")
        frame = V2.broadcast(b'"1"', broadcast)
        self.assertEqual(frame, Frame(b"\x02\x04\x04roomblob\x00\xff", binary=True))
        self.assertIs(V2.broadcast(b'"2"', broadcast), frame)


class SerializerForTests(SynchronousTestCase):
    def test_full_versions_of_1_0_and_2_0(self) -> None:
        for version, expected in (
            ("1.0.0", V1Serializer),
            ("1.0.12", V1Serializer),
            ("2.0.0", V2Serializer),
            ("2.0.7", V2Serializer),
        ):
            self.assertIsInstance(serializer_for(version), expected, version)

    def test_no_others(self) -> None:
        for version in (
            "",
            "2",
            "2.0",
            "2.1.0",
            "3.0.0",
            "2.0.0-dev",
            "2.0.07",
            "v2.0.0",
            " 2.0.0",
            "2.0.0\n",
            "²",
        ):
            self.assertIsNone(serializer_for(version), repr(version))
