from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from flowtx.inbox import INotificationStore
from flowtx.interfaces import IUserDirectory, Principal, User
from flowtx.storage.memory import MemoryUserDirectory
from flowtx.storage.memory_inboxes import MemoryNotificationStore
from flowtx.storage.users import ClaimsUserDirectory
from tests.storage.inbox_contract import CHECKS, Check


class MemoryNotificationStoreTests(SynchronousTestCase):
    """The contract; a test for each of `CHECKS`."""

    def test_interface(self) -> None:
        verifyObject(INotificationStore, MemoryNotificationStore())


def _test(check: Check) -> object:
    def test(self: MemoryNotificationStoreTests) -> None:
        self.successResultOf(Deferred.fromCoroutine(check(MemoryNotificationStore())))  # type: ignore[arg-type]

    return test


for _check in CHECKS:
    setattr(MemoryNotificationStoreTests, f"test_{_check.__name__}", _test(_check))


class UserDirectoryTests(SynchronousTestCase):
    def load(self, directory: IUserDirectory, *principals: Principal) -> dict[str, User]:
        return dict(self.successResultOf(Deferred.fromCoroutine(directory.load(principals))))  # type: ignore[arg-type]

    def test_memory_knows_the_users_it_is_given(self) -> None:
        alice = User("alice", "Alice", None)
        found = self.load(MemoryUserDirectory([alice]), Principal("alice", 1.0), Principal("bob", 1.0))
        self.assertEqual(found, {"alice": alice})

    def test_claims_take_everybody(self) -> None:
        named = Principal("alice", 1.0, name="Alice", email="a@example.com")
        found = self.load(ClaimsUserDirectory(), named, Principal("bob", 1.0))
        self.assertEqual(
            found, {"alice": User("alice", "Alice", "a@example.com"), "bob": User("bob", "bob", None)}
        )
