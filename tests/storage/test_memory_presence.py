"""Presence in memory."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.presence.store import IPresenceStore
from flowtx.storage.memory_presence import MemoryPresenceStore
from tests.storage import presence_contract
from tests.storage.presence_contract import Check


class MemoryPresenceStoreTests(SynchronousTestCase):
    """The contract; a test for each of its checks."""

    def test_interface(self) -> None:
        verifyObject(IPresenceStore, MemoryPresenceStore())


def _test(check: Check) -> object:
    def test(self: SynchronousTestCase) -> None:
        self.successResultOf(Deferred.fromCoroutine(check(MemoryPresenceStore())))  # type: ignore[arg-type]

    return test


for _check in presence_contract.CHECKS:
    setattr(MemoryPresenceStoreTests, f"test_{_check.__name__}", _test(_check))
