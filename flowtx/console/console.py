"""The console: what operators see and do, on the admin endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version

from twisted.internet.interfaces import IProtocolFactory, IReactorTime

from flowtx.channels.router import Router
from flowtx.config import Settings
from flowtx.console.channels import (
    USER_PREFIX,
    CommandsChannel,
    OverviewChannel,
    SessionsChannel,
    UserChannel,
)
from flowtx.console.commands import Commands
from flowtx.console.door import Door
from flowtx.console.figures import Readings
from flowtx.console.operators import OperatorFactory, Operators
from flowtx.console.portrait import Sources
from flowtx.console.search import Search
from flowtx.interfaces import IPubSub
from flowtx.web.keys import ApiKeys


class Console(Operators):
    """The operators, and what they are served.

    Args:
        settings: the settings.
        keys: those that open it.
        sources: who knows something of a user.
        pubsub: carries ``disconnect``.
        readings: reads the figures.
        reactor: the reactor.
    """

    def __init__(
        self,
        settings: Settings,
        keys: ApiKeys,
        sources: Sources,
        *,
        pubsub: IPubSub,
        readings: Readings,
        reactor: IReactorTime,
    ) -> None:
        super().__init__(keys, clock=reactor)
        about = {"node": pubsub.node, "version": version("flowtx"), "started_at": round(sources.wall())}
        router = console_router(sources, pubsub, readings, about)
        self._factory = OperatorFactory(settings, self, router, pubsub, reactor=reactor)

    @property
    def entrance(self) -> OperatorFactory:
        """What lets operators in."""
        return self._factory

    def door(self, site: IProtocolFactory) -> Door:
        """Serve the operators' connections on the port of a site."""
        return Door(site, self._factory, clock=self.clock)


def console_router(
    sources: Sources, pubsub: IPubSub, readings: Readings, about: Mapping[str, object]
) -> Router:
    """Serve the topics of `flowtx.console.channels`.

    Args:
        sources: who knows something of a user.
        pubsub: carries ``disconnect``.
        readings: reads the figures.
        about: what operators are told of the server.
    """
    commands = Commands(sources.sessions, sources.notifications, pubsub)
    search = Search(sources.sessions, clock=sources.clock)
    return (
        Router()
        .channel("console:commands", lambda: CommandsChannel(commands, about))
        .channel("console:overview", lambda: OverviewChannel(readings))
        .channel("console:sessions", lambda: SessionsChannel(search, sources.ahead))
        .channel(f"{USER_PREFIX}*", lambda: UserChannel(sources))
    )
