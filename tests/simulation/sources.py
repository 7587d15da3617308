"""Where flowtx would take chance or the time of day from the machine, it is given those of the simulation."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from random import Random
from types import SimpleNamespace
from uuid import UUID

from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from zope.interface import implementer

import flowtx.faultpoints
from flowtx.faultpoints import Faults


@contextmanager
def replaced(values: dict[str, object]) -> Iterator[None]:
    """Put values in the place of names such as ``flowtx.tracing:new_id``, for a while."""
    before = []
    try:
        for name, value in values.items():
            module_name, _, attribute = name.partition(":")
            import_module(module_name)
            module = sys.modules[module_name]
            before.append((module, attribute, getattr(module, attribute)))
            setattr(module, attribute, value)
        yield
    finally:
        for module, attribute, value in reversed(before):
            setattr(module, attribute, value)


def seeded(chance: Random, wall: Callable[[], float]) -> dict[str, object]:
    """Tell what to put in the place of what; see `replaced`."""

    def uuid4() -> UUID:
        return UUID(int=chance.getrandbits(128), version=4)

    def new_id() -> str:
        return uuid4().hex

    def token_hex(size: int) -> str:
        return chance.randbytes(size).hex()

    return {
        "flowtx.channels.socket:new_id": new_id,
        "flowtx.sessions.session:new_id": new_id,
        "flowtx.tracing:new_id": new_id,
        "flowtx.presence.recorder:uuid4": uuid4,
        "flowtx.storage.memory_inboxes:uuid4": uuid4,
        "flowtx.presence.presence:secrets": SimpleNamespace(token_urlsafe=token_hex),
        "flowtx.transports.factory:time": SimpleNamespace(time=wall),
    }


@contextmanager
def faults_at(faults: Faults) -> Iterator[None]:
    """Have things go wrong at the fault points."""
    flowtx.faultpoints.active = faults
    try:
        yield
    finally:
        flowtx.faultpoints.active = None


@contextmanager
def logged_to(observer: ILogObserver) -> Iterator[None]:
    """Have what is logged go to one observer and nowhere else."""
    # What the log keeps for later would keep alive what has to go.
    before = globalLogPublisher._observers
    globalLogPublisher._observers = [observer]
    try:
        yield
    finally:
        globalLogPublisher._observers = before


@implementer(ILogObserver)
def _nobody(event: LogEvent) -> None:
    """Hear nothing."""


@contextmanager
def bygone() -> Iterator[None]:
    """Let what killed nodes have left half done end unheard: Python ends it when it is collected."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda _: None
    try:
        with logged_to(_nobody):
            yield
    finally:
        sys.unraisablehook = hook
