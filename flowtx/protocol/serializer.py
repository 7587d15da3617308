"""The two serializers of Phoenix Channels: V1 (JSON objects) and V2 (JSON arrays, binary pushes).

V2, text::

    [join_ref, ref, topic, event, payload]

V2, binary; every size is one byte, the fields are UTF-8::

    client to server   00 |join_ref| |ref| |topic| |event|  join_ref ref topic event data…
    push               00 |join_ref| |topic| |event|        join_ref topic event data…
    reply              01 |join_ref| |ref| |topic| |status| join_ref ref topic status data…
    broadcast          02 |topic| |event|                   topic event data…

V1, text only: an object with ``topic``, ``event``, ``payload`` and ``ref``; a client's may have
``join_ref``, a server's never has it.

Unlike Phoenix, every text frame to a client carries the receiver's own join_ref, broadcasts too:
all clients accept it, and one of them drops everything else.
"""

from __future__ import annotations

import re
from typing import Any, Final, Protocol

import msgspec
from msgspec import Raw

from flowtx.protocol.message import (
    NULL_REF,
    REPLY,
    Broadcast,
    Frame,
    MalformedFrame,
    Message,
    Ref,
    UnencodablePayload,
)

MAX_REF_BYTES: Final = 256
MAX_FORMS: Final = 64
"""Forms of one broadcast that are kept, so that the next client with the same join_ref is given the same."""

_OK: Final = b'{"response":{},"status":"ok"}'
"""What most replies say."""

_encoder = msgspec.json.Encoder()
_SCALARS = (str, int, float, type(None))


class Serializer(Protocol):
    """What turns frames into messages and replies, pushes and broadcasts into frames.

    The ``decode`` methods raise `MalformedFrame`, the others `UnencodablePayload`. The text given
    to ``decode_text`` is valid UTF-8; the transport sees to that.
    """

    version: str

    def decode_text(self, data: bytes) -> Message: ...

    def decode_binary(self, data: bytes) -> Message: ...

    def reply(self, join_ref: Ref, ref: Ref, topic: object, status: str, response: object) -> Frame: ...

    def push(self, join_ref: Ref, topic: str, event: str, payload: object) -> Frame: ...

    def control(self, join_ref: Ref, topic: str, event: str, payload: object) -> Frame: ...

    def broadcast(self, join_ref: Ref, broadcast: Broadcast) -> Frame: ...


class _ObjectFrame(msgspec.Struct):
    topic: Any
    event: Any
    payload: Raw
    ref: Raw
    join_ref: Raw = Raw(NULL_REF)


class V1Serializer:
    """Version 1.0: JSON objects in text frames."""

    version = "1.0.0"

    def __init__(self) -> None:
        self._decoder = msgspec.json.Decoder(_ObjectFrame)

    def decode_text(self, data: bytes) -> Message:
        try:
            frame = self._decoder.decode(data)
        except (ValueError, RecursionError) as error:
            raise MalformedFrame(str(error)) from None
        return _message(frame.join_ref, frame.ref, frame.topic, frame.event, frame.payload)

    def decode_binary(self, data: bytes) -> Message:
        try:
            data.decode()
        except UnicodeDecodeError:
            raise MalformedFrame("not UTF-8") from None
        return self.decode_text(data)

    def reply(self, join_ref: Ref, ref: Ref, topic: object, status: str, response: object) -> Frame:  # noqa: ARG002
        return self._frame(REPLY, _reply_body(status, response), ref, topic)

    def push(self, join_ref: Ref, topic: str, event: str, payload: object) -> Frame:  # noqa: ARG002
        return self._frame(event, _object(payload), NULL_REF, topic)

    def control(self, join_ref: Ref, topic: str, event: str, payload: object) -> Frame:
        return self._frame(event, _object(payload), join_ref, topic)

    def broadcast(self, join_ref: Ref, broadcast: Broadcast) -> Frame:
        frame = broadcast.encoded.get(self.version)
        if frame is None:
            frame = self.push(join_ref, broadcast.topic, broadcast.event, broadcast.payload)
            frame.key = broadcast.key
            broadcast.encoded[self.version] = frame
        return frame

    @staticmethod
    def _frame(event: str, body: bytes, ref: Ref, topic: object) -> Frame:
        return Frame(
            b'{"event":%b,"payload":%b,"ref":%b,"topic":%b}' % (_json(event), body, ref, _json(topic))
        )


class V2Serializer:
    """Version 2.0: JSON arrays in text frames, and binary pushes."""

    version = "2.0.0"

    def __init__(self) -> None:
        self._decoder = msgspec.json.Decoder(tuple[Raw, Raw, Any, Any, Raw])
        self._longer = msgspec.json.Decoder(list[Raw])

    def decode_text(self, data: bytes) -> Message:
        try:
            return _message(*self._decoder.decode(data))
        except msgspec.ValidationError:
            pass
        except (ValueError, RecursionError) as error:
            raise MalformedFrame(str(error)) from None
        # Elements past the fifth are ignored, as Phoenix does.
        try:
            parts = self._longer.decode(data)
            topic, event = (msgspec.json.decode(part) for part in parts[2:4])
            return _message(parts[0], parts[1], topic, event, parts[4])
        except (ValueError, RecursionError, IndexError) as error:
            raise MalformedFrame(f"not an array of five: {error}") from None

    def decode_binary(self, data: bytes) -> Message:
        if len(data) < 5 or data[0] != 0:
            raise MalformedFrame("not a binary push")
        fields: list[str] = []
        start = 5
        for size in data[1:5]:
            end = start + size
            if end > len(data):
                raise MalformedFrame("a field ends past the frame")
            try:
                fields.append(data[start:end].decode())
            except UnicodeDecodeError:
                raise MalformedFrame("a field is not UTF-8") from None
            start = end
        join_ref, ref, topic, event = fields
        return Message(_text_ref(join_ref), _text_ref(ref), topic, event, data[start:], binary=True)

    def reply(self, join_ref: Ref, ref: Ref, topic: object, status: str, response: object) -> Frame:
        if isinstance(response, bytes):
            return _binary(1, (_ref_text(join_ref), _ref_text(ref), str(topic), status), response)
        body = _reply_body(status, response)
        return Frame(b'[%b,%b,%b,"phx_reply",%b]' % (join_ref, ref, _json(topic), body))

    def push(self, join_ref: Ref, topic: str, event: str, payload: object) -> Frame:
        if isinstance(payload, bytes):
            return _binary(0, (_ref_text(join_ref), topic, event), payload)
        return Frame(b"[%b,null,%b,%b,%b]" % (join_ref, _json(topic), _json(event), _object(payload)))

    def control(self, join_ref: Ref, topic: str, event: str, payload: object) -> Frame:
        return Frame(b"[%b,%b,%b,%b,%b]" % (join_ref, join_ref, _json(topic), _json(event), _object(payload)))

    def broadcast(self, join_ref: Ref, broadcast: Broadcast) -> Frame:
        encoded = broadcast.encoded
        frame = encoded.get(join_ref)
        if frame is not None:
            return frame
        cached = encoded.get(self.version)
        if cached is None:
            if isinstance(broadcast.payload, bytes):
                cached = _binary(2, (broadcast.topic, broadcast.event), broadcast.payload)
            else:
                topic, event = _json(broadcast.topic), _json(broadcast.event)
                cached = Frame(b",null,%b,%b,%b]" % (topic, event, _object(broadcast.payload)))
            cached.key = broadcast.key
            encoded[self.version] = cached
        frame = cached if cached.binary else Frame(b"[" + join_ref + cached.payload, key=cached.key)
        # Clients that join their topics in the same order have the same few refs.
        if len(encoded) < MAX_FORMS:
            encoded[join_ref] = frame
        return frame


_SERIALIZERS: Final[tuple[tuple[re.Pattern[str], Serializer], ...]] = (
    (re.compile(r"1\.0\.(0|[1-9][0-9]*)"), V1Serializer()),
    (re.compile(r"2\.0\.(0|[1-9][0-9]*)"), V2Serializer()),
)


def serializer_for(version: str) -> Serializer | None:
    """Find the serializer for what a client gave as ``vsn``: a full version, 1.0.x or 2.0.x."""
    for pattern, serializer in _SERIALIZERS:
        if pattern.fullmatch(version):
            return serializer
    return None


def _message(join_ref: Raw, ref: Raw, topic: Any, event: Any, payload: Raw) -> Message:
    if not (isinstance(topic, _SCALARS) and isinstance(event, _SCALARS)):
        raise MalformedFrame("topic and event must be text")
    if len(join_ref) > MAX_REF_BYTES or len(ref) > MAX_REF_BYTES:
        raise MalformedFrame(f"a ref is longer than {MAX_REF_BYTES} bytes")
    return Message(bytes(join_ref), bytes(ref), topic, event, bytes(payload))


def _json(value: object) -> bytes:
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise UnencodablePayload(f"cannot be written as JSON: {error}") from None


def _object(payload: object) -> bytes:
    if isinstance(payload, bytes):
        raise UnencodablePayload("binary payloads need version 2 of the protocol")
    text = _json(payload)
    if not text.startswith(b"{"):
        raise UnencodablePayload(f"a payload must be an object, not {type(payload).__name__}")
    return text


def _reply_body(status: str, response: object) -> bytes:
    if status == "ok" and response == {}:
        return _OK
    if isinstance(response, bytes):
        raise UnencodablePayload("binary payloads need version 2 of the protocol")
    return b'{"response":%b,"status":%b}' % (_json(response), _json(status))


def _text_ref(text: str) -> Ref:
    return _json(text) if text else NULL_REF


def _ref_text(ref: Ref) -> str:
    if ref.startswith(b'"'):
        return str(msgspec.json.decode(ref))
    return "" if ref == NULL_REF else ref.decode()


def _binary(kind: int, fields: tuple[str, ...], data: bytes) -> Frame:
    parts = [field.encode() for field in fields]
    if any(len(part) > 255 for part in parts):
        raise UnencodablePayload("a field of a binary frame is longer than 255 bytes")
    return Frame(bytes([kind, *map(len, parts)]) + b"".join(parts) + data, binary=True)
