"""The application that a server runs: what ``--app MODULE:NAME`` names, and what it is given.

It is a `Router`, or a function that takes the `Services` and returns one::

    def make_router(services):
        return Router().channel("deal:*", lambda: DealChannel(services.notifications))

Everything that can be wrong with it is told in one line.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Awaitable, Callable
from importlib import import_module
from inspect import iscoroutine
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

from flowtx.channels.router import Router
from flowtx.errors import ConfigError
from flowtx.protocol.topic import TopicPattern
from flowtx.settings import printable

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime

    from flowtx.groups.service import Groups
    from flowtx.interfaces import IPubSub
    from flowtx.notifications.service import NotificationService
    from flowtx.presence.presence import Presence
    from flowtx.sessions.service import SessionService

RESERVED: Final = tuple(
    TopicPattern.parse(pattern)
    for pattern in ("user:*", "users:online", "group:*", "phoenix", "users_socket:*")
)
"""Topics of flowtx's own. Whoever joined the last could close the connections of others."""


class Services(NamedTuple):
    """What an application's Channels work with; the same in `flowtx.testing`.

    Attributes:
        sessions: the Sessions of this node: ``get_session``, ``session_exists``, ``stop_session``.
        notifications: ``push_notification`` and all else of the inboxes.
        presence: ``track``, ``untrack``, ``update``, ``list``.
        groups: ``add_member``, ``remove_member``, ``members``, ``is_member``.
        pubsub: ``broadcast``, ``broadcast_from``, ``broadcast_many``.
        clock: the time: the reactor, or the Clock of a test.
    """

    sessions: SessionService
    notifications: NotificationService
    presence: Presence
    groups: Groups
    pubsub: IPubSub
    clock: IReactorTime


App: TypeAlias = Router | Callable[[Services], Router]


def load_app(name: str) -> App:
    """Import an application, from the current directory too.

    Args:
        name: ``MODULE:NAME``.

    Raises:
        ConfigError: it cannot be imported, or it is no application.
    """
    module_name, _, path = name.partition(":")
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.insert(0, directory)
    try:
        found: Any = import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module_name}.".startswith(f"{missing}."):
            raise ConfigError(
                f"--app: got {name!r}, but there is no module {missing!r}, in {directory!r} or elsewhere"
            ) from None
        raise ConfigError(f"--app: {module_name!r} cannot be imported: {_what(error)}") from None
    except (Exception, SystemExit) as error:
        raise ConfigError(f"--app: {module_name!r} cannot be imported: {_what(error)}") from None
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigError(f"--app: got {name!r}, but {module_name!r} has no {path!r}") from None
    if isinstance(found, type) or not (isinstance(found, Router) or callable(found)):
        kind = f"the class {found.__name__}" if isinstance(found, type) else f"of type {type(found).__name__}"
        raise ConfigError(
            f"--app: {name!r} is {kind}; it takes a Router, or a function of the services that returns one"
        )
    if isinstance(found, Router):
        _check_patterns(found)
    app: App = found
    return app


def router_of(app: App, services: Services) -> Router:
    """Have an application make its Router.

    Raises:
        ConfigError: it fails, gives something else, or serves topics that are flowtx's own.
    """
    if isinstance(app, Router):
        router: Router | Awaitable[Any] = app
    else:
        try:
            router = app(services)
        except (Exception, SystemExit) as error:
            raise ConfigError(f"--app: {_name(app)} failed: {_what(error)}") from None
    if iscoroutine(router):
        router.close()
    if not isinstance(router, Router):
        raise ConfigError(f"--app: {_name(app)} gave a {type(router).__name__}; it takes a Router")
    _check_patterns(router)
    return router


def _check_patterns(router: Router) -> None:
    for pattern in router.patterns:
        for reserved in RESERVED:
            if pattern.overlaps(reserved):
                raise ConfigError(
                    f"--app: the pattern {str(pattern)!r} takes topics of {str(reserved)!r}, "
                    "which are flowtx's own"
                )


def _name(app: App) -> str:
    return getattr(app, "__qualname__", type(app).__name__)


def _what(error: BaseException) -> str:
    """Say what happened, and where, in one line."""
    text = printable(" ".join("".join(traceback.format_exception_only(error)[-1:]).split()))[:200]
    if isinstance(error, SyntaxError):  # which names its own place; the frames are those of its import
        return f"{text} ({error.filename}, line {error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith("<frozen ") and frame.filename != __file__
    ]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text
