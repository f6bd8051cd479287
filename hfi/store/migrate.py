"""Bringing a database to the current schema, without losing a judgment.

Alembic runs on an engine of its own, on SQLite with foreign keys off, because rebuilding a table with them on silently deletes
the rows that refer to it. They are checked at the end. All migrations are one transaction: killed or failed, nothing has changed;
and a SQLite file is copied before.
"""

import sqlite3
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, Engine, event, inspect, text
from sqlalchemy.exc import DatabaseError

from hfi.errors import HfiError
from hfi.resources import migrations_dir
from hfi.store.session import ALONE, connect, made, parse, shown, sound


@dataclass(frozen=True)
class Status:
    """Revision of the database (None: empty) and of this program."""

    revision: str | None
    head: str

    @property
    def current(self) -> bool:
        return self.revision == self.head


@dataclass(frozen=True)
class Upgrade:
    before: str | None
    after: str
    backup: Path | None


def status(engine: Engine) -> Status:
    with sound(engine.url), engine.connect() as connection:
        revision = MigrationContext.configure(connection).get_current_revision()
    return Status(revision, _head())


def check_current(engine: Engine) -> None:
    """HfiError unless the database has this program's schema."""
    try:
        found = status(engine)
    except DatabaseError as e:
        raise HfiError(f"{shown(engine.url)} is no database of hfi: {e.orig}") from e
    _check_known(found)
    if found.revision is None:
        raise HfiError(
            f"the database {shown(engine.url)} is empty: make its tables with 'hfi db upgrade', or bring a workspace's own database"
            " into it with 'hfi db copy --to' it, without HFI_DATABASE_URL"
        )
    if not found.current:
        raise HfiError(f"the database has schema {found.revision or 'none'}, this hfi needs {found.head}: run 'hfi db upgrade'")


def _check_known(found: Status) -> None:
    """HfiError for a schema that this program has never heard of."""
    if found.revision not in (None, *(script.revision for script in _scripts().walk_revisions())):
        raise HfiError(f"the database was made by a newer hfi (schema {found.revision}): install that version or a later one")


def upgrade(url: str) -> Upgrade:
    """Copies a SQLite database that holds tables, upgrades it, and checks its foreign keys; makes one that is not there. HfiError
    where that fails: the database is as it was."""
    connect(url, create=True).dispose()  # says what is wrong with the URL
    engine = migrating(parse(url))
    try:
        before = status(engine)
        _check_known(before)
        backup = _backup(engine) if not before.current and inspect(engine).get_table_names() else None
        if not before.current:
            with sound(engine.url), engine.begin() as connection:
                before = migrate(connection)
        return Upgrade(before.revision, before.head, backup)
    except DatabaseError as e:
        raise HfiError(f"the upgrade of {shown(engine.url)} failed: {e.orig}") from e
    finally:
        engine.dispose()


def migrating(url: URL) -> Engine:
    """An engine whose transactions may change the schema."""
    engine = made(url)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def migrate(connection: Connection) -> Status:
    """Brings the database to the current schema in the connection's transaction; says what it was. Of several programs that do so at
    once on PostgreSQL one does it, and the others, which wait, find it done."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text(f"SELECT pg_advisory_xact_lock({ALONE})"))
    before = Status(MigrationContext.configure(connection).get_current_revision(), _head())
    _check_known(before)
    config = Config()
    config.set_main_option("script_location", str(migrations_dir()).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    _check_foreign_keys(connection)
    return before


def _prepare_sqlite(connection: sqlite3.Connection, record: object) -> None:
    connection.isolation_level = None  # or the driver would commit after each statement that changes the schema
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute("PRAGMA foreign_keys = OFF")


def _check_foreign_keys(connection: Connection) -> None:
    if connection.dialect.name != "sqlite":
        return
    broken = connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()
    if broken:
        raise HfiError(
            f"the upgrade would leave {len(broken)} rows that refer to rows that do not exist (first in {broken[0][0]}): "
            "nothing was changed, please report it"
        )


def _backup(engine: Engine) -> Path | None:
    """A copy beside the file, made by SQLite itself, so that it is whole while others write. PostgreSQL has pg_dump for it."""
    if engine.dialect.name != "sqlite" or not engine.url.database or engine.url.database == ":memory:":
        return None
    source = Path(engine.url.database)
    target = source.with_name(f"{source.stem}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}.backup{source.suffix}")
    with sqlite3.connect(source) as old, sqlite3.connect(target) as new:
        old.backup(new)
    old.close()
    new.close()
    return target


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(str(migrations_dir()))


def _head() -> str:
    head = _scripts().get_current_head()
    if head is None:
        raise HfiError(f"no migrations in {migrations_dir()}: the installation is incomplete")
    return head
