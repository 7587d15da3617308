"""What one channel sends to its client: replies, pushes and the broadcasts on its topic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowtx.channels.channel import Reply
from flowtx.protocol.message import ERROR, NULL_REF, Broadcast, Frame, Message, Ref

if TYPE_CHECKING:
    from flowtx.channels.socket import Socket


class Sender:
    """Writes the frames of one join of a topic.

    What is sent before the join is answered is held until then.

    Attributes:
        topic: the topic.
        join_ref: what the client called the join.
        muted: whether what is sent is dropped: the client has been told that the channel has ended.
    """

    __slots__ = ("_frame_ref", "_held", "_socket", "join_ref", "muted", "topic")

    def __init__(self, socket: Socket, join: Message) -> None:
        self._socket = socket
        self.topic: str = join.topic
        self.join_ref: Ref = join.join_ref
        self._frame_ref: Ref = join.ref if join.join_ref == NULL_REF else join.join_ref
        self._held: list[Frame | bytes] | None = []
        self.muted = False

    def release(self) -> None:
        """Send what was held."""
        held = self._held or []
        # What one of them leads to, such as the answer to a Ping, is held behind the others.
        for frame in held:
            if not self.muted:
                self._write(frame)
        self._held = None

    def reply(self, ref: Ref, reply: Reply) -> None:
        if not self.muted:
            serializer = self._socket.serializer
            self._send(serializer.reply(self._frame_ref, ref, self.topic, reply.status, reply.response))

    def push(self, event: str, payload: object, key: str | None) -> None:
        frame = self._socket.serializer.push(self._frame_ref, self.topic, event, payload)
        frame.key = key
        self._send(frame)

    def forward(self, broadcast: Broadcast) -> None:
        """Send a broadcast on the topic.

        Raises:
            UnencodablePayload: it cannot be sent in the client's version of the protocol.
        """
        socket = self._socket
        frame = socket.serializer.broadcast(self._frame_ref, broadcast)
        if self._held is None and not self.muted:
            socket.send(frame)
        else:
            self._send(frame)

    def ping(self, payload: bytes) -> None:
        self._send(payload)

    def check(self, broadcast: Broadcast) -> None:
        """Encode a broadcast of this channel's own, so that what cannot be sent fails its sender.

        Raises:
            UnencodablePayload: it cannot.
        """
        self._socket.serializer.broadcast(self._frame_ref, broadcast)

    def control_frame(self, event: str) -> Frame:
        """Make the frame that ends the channel."""
        payload = {"reason": "channel_crash"} if event == ERROR else {}
        return self._socket.serializer.control(self.join_ref, self.topic, event, payload)

    def _send(self, frame: Frame | bytes) -> None:
        """Send a frame, or a Ping with a payload, behind what was sent before."""
        if self.muted:
            return
        if self._held is not None:
            self._held.append(frame)
        else:
            self._write(frame)

    def _write(self, frame: Frame | bytes) -> None:
        if isinstance(frame, Frame):
            self._socket.send(frame)
        else:
            self._socket.ping(frame)
