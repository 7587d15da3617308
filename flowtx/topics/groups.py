"""The channel ``group:<name>``: its members get what the backend broadcasts to the group."""

from __future__ import annotations

from enum import Enum
from typing import Any

from flowtx.channels.channel import Channel, Reply, Stop, error, ok
from flowtx.errors import StorageError
from flowtx.groups.service import Groups, Place, group_topic, is_group_name

UNAUTHORIZED = error({"reason": "unauthorized"})


class _Change(Enum):
    LOST = "the user is no member by the table any more"
    RENEWED = "the client's token is another one"


class GroupChannel(Channel):
    """See the module.

    Members listen: whatever they send is refused. Who is no member any more is sent away with
    ``phx_close``: its row was deleted, or it was a member by its token, which it has renewed without the
    group. Where the table must be asked then and cannot be, the channel ends with ``phx_error``, and
    the client joins again when it can.

    Args:
        groups: knows the members.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._place: Place | None = None

    async def join(self, payload: Any) -> Reply:  # noqa: ARG002
        if not self._claimed and not await self._take_place():
            return UNAUTHORIZED
        self.socket.observe_token(self._token_renewed)
        return ok()

    def handle_in(self, event: str, payload: Any) -> Reply:  # noqa: ARG002
        return UNAUTHORIZED

    async def handle_info(self, message: Any) -> Stop | None:
        if message is _Change.LOST:
            self._place = None
        if self._claimed:
            self._release()
        elif self._place is None:
            try:
                if message is _Change.LOST or not await self._take_place():
                    return Stop("normal")
            except StorageError:
                return Stop("unavailable")
        return None

    def terminate(self, reason: str) -> None:  # noqa: ARG002
        self.socket.ignore_token(self._token_renewed)
        self._release()

    @property
    def _group(self) -> str:
        return self.topic.removeprefix(group_topic(""))

    @property
    def _claimed(self) -> bool:
        return self._group in self.socket.principal.groups

    async def _take_place(self) -> bool:
        if not is_group_name(self._group):
            return False
        user_id = self.socket.principal.user_id
        place = Place(self._group, user_id, lambda: self.send_info(_Change.LOST))
        if await self._groups.hold(place):
            self._place = place
        return self._place is not None

    def _release(self) -> None:
        place, self._place = self._place, None
        if place is not None:
            self._groups.release(place)

    def _token_renewed(self) -> None:
        self.send_info(_Change.RENEWED)
