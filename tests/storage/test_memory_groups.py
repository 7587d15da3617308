from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.interfaces import IGroupStore
from flowtx.storage.groups import MemoryGroupStore
from tests.storage.groups_contract import CHECKS, Check


class MemoryGroupStoreTests(SynchronousTestCase):
    """The contract; a test for each of `CHECKS`."""

    def test_interface(self) -> None:
        verifyObject(IGroupStore, MemoryGroupStore())


def _test(check: Check) -> object:
    def test(self: MemoryGroupStoreTests) -> None:
        self.successResultOf(Deferred.fromCoroutine(check(MemoryGroupStore())))  # type: ignore[arg-type]

    return test


for _check in CHECKS:
    setattr(MemoryGroupStoreTests, f"test_{_check.__name__}", _test(_check))
