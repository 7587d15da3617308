"""SIGHUP: the settings and the files that they name are read again, and what can change live does.

All that can be wrong is looked for first: after an error, which is one line in the log, nothing has
changed. What `LIVE` does not name needs a restart, and a line says so. Keys are read again even where no
setting has changed; a connection whose token was verified with a key that has gone is closed.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final

import msgspec
from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger

from flowtx.auth import key_source
from flowtx.config import HMAC_ALGORITHMS, Settings
from flowtx.data_dir import DataDir
from flowtx.errors import FlowtxError, StartupError
from flowtx.jwks import JwksUrl
from flowtx.keys import KeySource
from flowtx.logs import set_level
from flowtx.settings import LIVE, LIVE_KEYS
from flowtx.transports.origin import origin_rule

if TYPE_CHECKING:
    from flowtx.application import Flow

LEVELS: Final = ("debug", "info", "warn", "error")


class Reload(Service):
    """See the module.

    Args:
        flow: the server.
        read: reads the settings again; may fail with `FlowtxError`.
        reactor: the reactor.
        reloading: called when it begins.
        reloaded: called when it has ended, with whatever outcome.
    """

    _log = Logger()

    def __init__(
        self,
        flow: Flow,
        read: Callable[[], Settings],
        *,
        reactor: Any,
        reloading: Callable[[], None] = lambda: None,
        reloaded: Callable[[], None] = lambda: None,
    ) -> None:
        self._flow = flow
        self._read = read
        self._reactor = reactor
        self._reloading = reloading
        self._reloaded = reloaded
        self._ready = False
        self._asked = False
        self._under_way: Deferred[None] | None = None
        self._before: Any = signal.SIG_DFL

    def startService(self) -> None:
        """Listen to the signal; one that comes before `ready` is waited with."""
        super().startService()
        self._before = signal.signal(signal.SIGHUP, self._signalled)

    def ready(self) -> None:
        """Tell that the server has started."""
        self._ready = True
        if self._asked:
            self._begin()

    def stopping(self) -> None:
        """Change nothing more: the signal has no effect from now on."""
        self._ready = False
        if self._under_way is not None:
            self._under_way.cancel()

    def stopService(self) -> None:
        """Leave the signal to whoever had it before."""
        super().stopService()
        signal.signal(signal.SIGHUP, self._before)

    def _signalled(self, *_: object) -> None:
        self._reactor.callFromThread(self._ask)

    def _ask(self) -> None:
        self._asked = True
        if self._ready and self._under_way is None:
            self._begin()

    def _begin(self) -> None:
        self._asked = False
        self._reloading()
        under_way = Deferred.fromCoroutine(self._reload())
        if not under_way.called:
            self._under_way = under_way
        under_way.addBoth(self._ended)

    def _ended(self, _: None) -> None:
        self._under_way = None
        self._reloaded()
        if self._asked and self._ready:
            self._begin()

    async def _reload(self) -> None:
        try:
            await self._change(self._read())
        except FlowtxError as error:
            why = str(error).splitlines()[0]
            self._log.error("Reload: nothing has changed, as the settings are not good: {why}", why=why)
        except CancelledError:
            pass  # the server stops
        except Exception:
            self._log.failure("Reload: an error of flowtx's own")

    async def _change(self, asked: Settings) -> None:
        flow = self._flow
        before = flow.settings
        changed = {name for name in before.__struct_fields__ if getattr(before, name) != getattr(asked, name)}
        live = changed & LIVE
        if "jwt_algorithms" in changed:  # with which the names of keys go along; all else stands alone
            live -= LIVE_KEYS
        settings = msgspec.structs.replace(before, **{name: getattr(asked, name) for name in live})
        origins = origin_rule(settings)
        ids = flow.keys.source.ids
        keys = await self._keys(settings)
        other_callers = flow.api_keys.reload()
        # Nothing can fail from here on.
        flow.change(settings)
        flow.keys.change(keys)
        flow.verifier.change_keys(keys)
        flow.factory.change(settings, origins)
        flow.sessions.limit_to(
            max_sessions=settings.max_sessions,
            max_devices=settings.max_devices,
            refuse_devices=settings.device_policy == "refuse",
        )
        for _, session, *_ in flow.sessions.which_children():
            for socket in session.sockets:
                socket.max_topics = settings.max_topics
        taken = keys.ids
        closed = flow.sessions.close_revoked(lambda principal: principal.key_id not in taken)
        words = _names(live)
        words += ["the keys of tokens"] if ids != keys.ids else []
        words += ["the API keys"] if other_callers else []
        # The less strict of the two levels, so that the lines are seen.
        set_level(min(before.log_level, settings.log_level, key=LEVELS.index))
        self._log.info(
            "Reload: {changed} changed{closed}",
            changed=", ".join(words) or "nothing",
            closed=f"; connections closed, as the key of their token has gone: {closed}" if closed else "",
        )
        if changed - live:
            names = ", ".join(_names(changed - live))
            self._log.warn("Reload: a restart is needed for {names}", names=names)
        set_level(settings.log_level)

    async def _keys(self, settings: Settings) -> KeySource:
        """Read the keys that the settings name."""
        flow = self._flow
        source = flow.keys.source
        if isinstance(source, JwksUrl) and settings.jwt_jwks == flow.settings.jwt_jwks:
            await source.refresh()  # where that fails, the keys that were fetched before are good
            return source
        secret = None
        if HMAC_ALGORITHMS.issuperset(settings.jwt_algorithms):
            # Not opened: a file that is missing is an error now, and is not made.
            secret = DataDir.peek(settings.data_dir).secret(settings.secret_file)
        fresh = key_source(settings, secret, reactor=self._reactor)
        if isinstance(fresh, JwksUrl):
            try:
                if not await fresh.refresh():
                    raise StartupError("--jwt-jwks: the keys cannot be fetched, as the line before says")
            except BaseException:
                fresh.stop()
                raise
        return fresh


def _names(names: Collection[str]) -> list[str]:
    """Write settings as they are given, in their order."""
    return [name.replace("_", "-") for name in Settings.__struct_fields__ if name in names]
