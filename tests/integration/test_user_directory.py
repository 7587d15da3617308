"""Users by SQL, from flowtx's own table and from one of the product's."""

from __future__ import annotations

import pytest
import pytest_twisted

from flowtx.config import USERS_QUERY
from flowtx.errors import StartupError, StorageError
from flowtx.interfaces import Principal, User
from flowtx.storage.postgres import Database
from flowtx.storage.users import SqlUserDirectory, add_user, list_users


def principals(*ids: str) -> list[Principal]:
    return [Principal(user_id, expires_at=4e9) for user_id in ids]


@pytest_twisted.ensureDeferred
async def test_users_of_flowtxs_own_table(database: Database) -> None:
    alice, bob = User("alice", "Alice", "a@example.com"), User("bob", "Bob", None)
    for user in (bob, alice, User("carol", "C", None)):
        await add_user(database, user)
    found = await SqlUserDirectory(database, USERS_QUERY).load(principals("alice", "bob", "nobody"))
    assert found == {"alice": alice, "bob": bob}


@pytest_twisted.ensureDeferred
async def test_adding_again_changes_and_the_list_is_in_order(database: Database) -> None:
    await add_user(database, User("bob", "Bob", None))
    await add_user(database, User("alice", "A", None))
    await add_user(database, User("alice", "Alice", "a@example.com"))
    assert await list_users(database) == [User("alice", "Alice", "a@example.com"), User("bob", "Bob", None)]


@pytest_twisted.ensureDeferred
async def test_the_products_table_may_have_ids_that_are_numbers(database: Database) -> None:
    await database.query("CREATE TABLE people (id int, first text, mail text)")
    await database.query("INSERT INTO people VALUES (7, 'Ada', 'ada@example.com'), (8, NULL, NULL)")
    query = "SELECT id, first, mail FROM people WHERE id::text = ANY(%s)"
    directory = SqlUserDirectory(database, query)
    await directory.check()
    assert await directory.load(principals("7", "8", "x")) == {
        "7": User("7", "Ada", "ada@example.com"),
        "8": User("8", "8", None),
    }


BAD_QUERIES = [
    ("SELECT nonsense FROM flow.users WHERE id = ANY(%s)", 'column "nonsense" does not exist'),
    ("nonsense %s", "syntax error"),
    ("SELECT id FROM unnest(%s::text[]) id;", "id, name, email"),
    ("SELECT id, 1, 2, 3 FROM unnest(%s::text[]) id", "id, name, email"),
    ("SELECT id, name, email FROM flow.users WHERE id LIKE 'a%' AND id = ANY(%s)", "--users-query"),
]


@pytest.mark.parametrize(("query", "said"), BAD_QUERIES)
@pytest_twisted.ensureDeferred
async def test_a_query_that_cannot_work_is_found_at_the_start(
    database: Database, query: str, said: str
) -> None:
    with pytest.raises(StartupError) as caught:
        await SqlUserDirectory(database, query).check()
    assert str(caught.value).startswith("--users-query: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest_twisted.ensureDeferred
async def test_a_query_that_stops_working_is_a_storage_error(database: Database) -> None:
    directory = SqlUserDirectory(database, USERS_QUERY)
    await database.query("DROP TABLE flow.users")
    with pytest.raises(StorageError, match="does not exist"):
        await directory.load(principals("alice"))
