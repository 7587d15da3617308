"""The topics of the console.

==================== ======== ======================================================================
topic                scope
==================== ======== ======================================================================
``console:commands`` any      the join tells what the key may do; the events are those of `Commands`
``console:overview`` ``read`` ``figures`` once a second
``console:sessions`` ``read`` ``page`` when something in it has changed, at most once a second
``console:user:ID``  ``read`` ``user`` with the parts that have changed, at most once a second
==================== ======== ======================================================================

Each channel has a timer of its own, for as long as it is joined: nobody who watches, no work. A client
for whom something waits still is sent nothing more until it has taken that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from twisted.logger import Logger

from flowtx.channels.channel import Channel, Reply, UnhandledEvent, error, ok
from flowtx.console.commands import Commands
from flowtx.console.figures import Readings
from flowtx.console.portrait import Portrait, Sources
from flowtx.console.search import Query, Row, Search, row
from flowtx.protocol.places import read_as

TICK: Final = "tick"
EVERY: Final = 1.0
"""Seconds between two looks."""
USER_PREFIX: Final = "console:user:"

_USER_ID: Final = re.compile("[A-Za-z0-9_.:@-]{1,128}")
_FORBIDDEN: Final = error({"reason": "unauthorized"})


class CommandsChannel(Channel):
    """Does what the operator asks for, as far as the key may.

    Args:
        commands: does it.
        about: what the join tells of the server.
    """

    _log = Logger()

    def __init__(self, commands: Commands, about: Mapping[str, object]) -> None:
        self._commands = commands
        self._about = about

    def join(self, payload: Any) -> Reply:  # noqa: ARG002
        return ok({"key": self.user_id, "scopes": self.socket.principal.groups, **self._about})

    async def handle_in(self, event: str, payload: Any) -> Reply:
        command = self._commands.find(event)
        if command is None:
            raise UnhandledEvent(event)
        if command.scope not in self.socket.principal.groups:
            return error({"reason": "unauthorized", "detail": f"it takes a key for {command.scope}"})
        asked = read_as(payload, command.form)
        self._log.info(
            "The console does {event} of {user_id} for the key {key}",
            event=event,
            user_id=asked.user_id,
            key=self.user_id,
        )
        return ok(await command.do(asked))


class Watching(Channel):
    """Has a look once a second, from the join on, for a key that may read."""

    def join(self, payload: Any) -> Reply:
        if "read" not in self.socket.principal.groups:
            return _FORBIDDEN
        self.begin(payload)
        self.send_info(TICK)
        return ok()

    def begin(self, payload: Any) -> None:
        """Take what the client wants to see."""

    async def handle_info(self, message: Any) -> None:  # noqa: ARG002
        pause = EVERY
        if not self.socket.transport.waiting_bytes:
            pause = await self.look()
        self.send_after(pause, TICK)

    async def look(self) -> float:
        """Push what is new; after how many seconds to look again."""
        raise NotImplementedError


class OverviewChannel(Watching):
    """Pushes the figures.

    Args:
        readings: reads them.
    """

    def __init__(self, readings: Readings) -> None:
        self._readings = readings

    async def look(self) -> float:
        self.push("figures", msgspec.structs.asdict(self._readings.read()))
        return EVERY


class SessionsChannel(Watching):
    """Pushes a page of the Sessions: the ids in their order, and those rows that are new or have changed.

    The join and the event ``query`` take the fields of `Query`.

    Args:
        search: finds the page.
        ahead: by how much the wall clock is ahead of the Sessions', in seconds.
    """

    def __init__(self, search: Search, ahead: float) -> None:
        self._search = search
        self._ahead = ahead
        self._query = Query()
        self._rows: dict[str, Row] = {}
        self._told: object = None

    def begin(self, payload: Any) -> None:
        self._query = read_as({} if payload is None else payload, Query)
        self._search.watchers += 1

    async def handle_in(self, event: str, payload: Any) -> Reply:
        if event != "query":
            raise UnhandledEvent(event)
        self._query = read_as(payload, Query)
        await self._show()
        return ok()

    async def look(self) -> float:
        return await self._show()

    async def _show(self) -> float:
        query = self._query
        found = await self._search.find(query)
        rows = {session.user_id: row(session, self._ahead) for session in found.sessions}
        changed = [shown for shown in rows.values() if self._rows.get(shown.user_id) != shown]
        told = (query, tuple(rows), found.matched, len(self._search))
        if changed or told != self._told:
            page = {"query": query, "ids": list(rows), "matched": found.matched, "total": len(self._search)}
            self.push("page", {**page, "rows": changed})
        self._rows, self._told = rows, told
        return self._search.pause_after(found)

    def terminate(self, reason: str) -> None:  # noqa: ARG002
        self._search.watchers -= 1


class UserChannel(Watching):
    """Pushes what there is to know of one user.

    Args:
        sources: who knows it.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._portrait: Portrait | None = None

    def join(self, payload: Any) -> Reply:
        user_id = self.topic.removeprefix(USER_PREFIX)
        if not _USER_ID.fullmatch(user_id):
            return error({"reason": "invalid_payload", "detail": "no user can have such an id"})
        self._portrait = Portrait(user_id, self._sources)
        return super().join(payload)

    async def look(self) -> float:
        if self._portrait is not None:
            changes = await self._portrait.changes()
            if changes:
                self.push("user", changes)
        return EVERY
