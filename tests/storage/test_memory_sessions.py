"""The history and the revocations in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.interfaces import IHistoryStore, IRevocations
from flowtx.storage.memory import MemoryHistoryStore, MemoryRevocations
from tests.storage import history_contract, revocations_contract
from tests.storage.revocations_contract import token


class MemoryHistoryStoreTests(SynchronousTestCase):
    """The contract; a test for each of its checks."""

    def test_interface(self) -> None:
        verifyObject(IHistoryStore, MemoryHistoryStore())


class MemoryRevocationsTests(SynchronousTestCase):
    """The contract; a test for each of its checks."""

    def test_interface(self) -> None:
        verifyObject(IRevocations, MemoryRevocations())

    def test_the_second_of_the_revocation(self) -> None:
        now = 100.7
        revocations = MemoryRevocations(lambda: now)
        self.successResultOf(Deferred.fromCoroutine(revocations.revoke(user_id="alice")))
        asked = [token("alice", iat=iat) for iat in (99.0, 100.0, 100.9, 101.0)]
        revoked = self.successResultOf(Deferred.fromCoroutine(revocations.revoked(asked)))
        self.assertEqual(revoked, set(asked[:3]))
        # A clock that is set back does not make tokens good again.
        now = 50.0
        self.successResultOf(Deferred.fromCoroutine(revocations.revoke(user_id="alice")))
        self.assertEqual(self.successResultOf(Deferred.fromCoroutine(revocations.revoked(asked))), revoked)


def _test(check: Callable[[Any], Any], make: Callable[[], object]) -> object:
    def test(self: SynchronousTestCase) -> None:
        self.successResultOf(Deferred.fromCoroutine(check(make())))

    return test


for _history_check in history_contract.CHECKS:
    setattr(
        MemoryHistoryStoreTests,
        f"test_{_history_check.__name__}",
        _test(_history_check, MemoryHistoryStore),
    )
for _revocations_check in revocations_contract.CHECKS:
    setattr(
        MemoryRevocationsTests,
        f"test_{_revocations_check.__name__}",
        _test(_revocations_check, MemoryRevocations),
    )
