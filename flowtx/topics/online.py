"""The channel ``users:online``: who of all users is online, for every user to see."""

from __future__ import annotations

from typing import Any, Final

from flowtx.channels.channel import Channel
from flowtx.presence.online import OnlineUsers

PRESENCE_STATE: Final = "presence_state"


class OnlineChannel(Channel):
    """Gives its client the state with the join; the changes come as broadcasts of presence.

    Args:
        users: who is online.
    """

    def __init__(self, users: OnlineUsers) -> None:
        self._users = users

    def join(self, payload: Any) -> None:  # noqa: ARG002
        # The state first: the client finds itself in the first diff, like everybody else.
        self.push(PRESENCE_STATE, self._users.state())
        self._users.joined(self.socket)
