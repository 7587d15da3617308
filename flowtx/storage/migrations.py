"""The schema ``flow``: made and upgraded by the ``.sql`` files beside this module, in their order."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import NamedTuple

import psycopg2
from twisted.logger import Logger

from flowtx.errors import SchemaError
from flowtx.storage.postgres import Database, Transaction, first_line

TIMEOUT = 600.0
"""Seconds that all migrations together may take."""

_FILE = re.compile(r"(\d{4})_\w+\.sql")
_LOCK = 0x666C6F77
"""Names the advisory lock that keeps two nodes from migrating at once: the letters "flow"."""

_log = Logger()


class Migration(NamedTuple):
    version: int
    name: str
    sql: str


def migrations() -> list[Migration]:
    """Read the migrations that this version of flowtx has, oldest first."""
    found = []
    for file in files("flowtx.storage").joinpath("schema").iterdir():
        match = _FILE.fullmatch(file.name)
        if match:
            found.append(Migration(int(match[1]), file.name, file.read_text(encoding="utf-8")))
    return sorted(found)


async def migrate(database: Database) -> int:
    """Bring the schema up to date, all of it or nothing.

    Returns:
        The version that the schema has now.

    Raises:
        SchemaError: the schema is newer than this version of flowtx, or a migration failed.
        StorageError: the database cannot be asked.
    """
    known = migrations()

    async def run(transaction: Transaction) -> int:
        await transaction.query("SET LOCAL statement_timeout = 0")
        await transaction.query("SET LOCAL lock_timeout = '30s'")
        await transaction.query("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
        version = await _version(transaction)
        newest = known[-1].version
        if version > newest:
            raise SchemaError(
                f"the schema flow has version {version}, this flowtx knows versions up to {newest}: "
                "run a newer flowtx, or give another database"
            )
        for migration in known[version:]:
            _log.info("Migrating the schema: {name}", name=migration.name)
            await transaction.query(migration.sql)
            await transaction.query(
                "INSERT INTO flow.schema_versions (version) VALUES (%s)", [migration.version]
            )
        return newest

    try:
        return await database.transaction(run, timeout=TIMEOUT)
    except psycopg2.Error as error:
        raise SchemaError(f"the schema flow cannot be made or upgraded: {first_line(error)}") from None


async def _version(transaction: Transaction) -> int:
    exists = await transaction.query("SELECT to_regclass('flow.schema_versions') IS NOT NULL")
    if not exists[0][0]:
        await transaction.query(
            "CREATE SCHEMA IF NOT EXISTS flow; CREATE TABLE flow.schema_versions "
            "(version int PRIMARY KEY, migrated_at timestamptz NOT NULL DEFAULT now())"
        )
    rows = await transaction.query("SELECT coalesce(max(version), 0) FROM flow.schema_versions")
    return int(rows[0][0])
