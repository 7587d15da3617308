"""The topics that flowtx itself serves."""

from __future__ import annotations

from collections.abc import Callable

from flowtx.channels.router import Router
from flowtx.groups.service import Groups
from flowtx.notifications.service import NotificationService
from flowtx.notifications.user_channel import UserChannel
from flowtx.presence.online import OnlineUsers
from flowtx.sessions.service import SessionService
from flowtx.topics.groups import GroupChannel
from flowtx.topics.online import OnlineChannel


def own_router(
    sessions: SessionService,
    notifications: NotificationService,
    online: OnlineUsers,
    groups: Groups,
    jitter_ms: Callable[[], int] = lambda: 1_000,
) -> Router:
    """Serve ``user:*``, ``users:online`` and ``group:*``.

    Args:
        sessions: the Sessions of this node.
        notifications: the inboxes.
        online: who is online.
        groups: who is in which group.
        jitter_ms: see `flowtx.notifications.user_channel.UserChannel`.
    """
    return (
        Router()
        .channel("user:*", lambda: UserChannel(sessions, notifications, jitter_ms, online))
        .channel("users:online", lambda: OnlineChannel(online))
        .channel("group:*", lambda: GroupChannel(groups))
    )
