"""Engines and transactions. SQLite as it has to be set for several writers; any other database as SQLAlchemy has it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError
from sqlalchemy.orm import Session

from hfi.errors import HfiError, NoRoom

__all__ = ["Busy", "Engine", "Session", "connect", "reading", "writing"]

_BUSY_MS = 30_000
_FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # the second where a file beside the database cannot grow


def connect(url: str, *, create: bool = False) -> Engine:
    """An engine on the database, tried once. HfiError for a URL that is none, an unknown driver, a database out of reach or
    damaged, and for a SQLite file that is not there, unless it is to be made."""
    try:
        parsed = make_url(url)
        if file := _file(parsed):
            if not file.parent.is_dir():
                raise HfiError(f"cannot open the database {file}: there is no folder {file.parent}; check HFI_DATABASE_URL")
            if not create and not file.exists():
                raise HfiError(f"the database {file} is missing: {_restore(file)}, or make an empty one with 'hfi init'")
        # nobody waits for a connection while holding the turn to write; the last one used has its pages still in memory
        options: dict[str, Any] = {"max_overflow": -1, "pool_use_lifo": True} if file else {}
        engine = create_engine(parsed, **options)
    except (ArgumentError, NoSuchModuleError, ValueError) as e:
        raise HfiError(
            f"{_hidden(url)} is no database URL: give one such as sqlite:////folder/hfi.db in HFI_DATABASE_URL, or unset it"
        ) from e
    except ImportError as e:
        raise HfiError(f"the driver of {_hidden(url)} is not installed ({e.name}): install it, or unset HFI_DATABASE_URL") from e
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        with sound(parsed), engine.connect():
            pass
    except DatabaseError as e:
        raise HfiError(f"cannot open the database {_hidden(url)}: {e.orig}; check HFI_DATABASE_URL and the workspace") from e
    return engine


def _file(url: URL) -> Path | None:
    """The file of a SQLite database."""
    here = url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
    return Path(str(url.database)) if here else None


def _restore(file: Path) -> str:
    copies = sorted(file.parent.glob(f"{file.stem}.*.backup{file.suffix}"))  # as `hfi.store.migrate` leaves them
    return "restore it from a backup" + (f", such as {copies[-1]}" if copies else "")


@contextmanager
def sound(url: URL) -> Iterator[None]:
    """HfiError where the block finds the bytes of a SQLite file damaged or out of reach, NoRoom where its disk is full."""
    try:
        yield
    except DatabaseError as e:
        code = getattr(e.orig, "sqlite_errorname", "")
        if code in _FULL:
            raise NoRoom(_file(url), "the disk is full") from e
        if code.startswith("SQLITE_IOERR"):
            raise HfiError(f"cannot read or write the database {_file(url)} ({e.orig}): check its disk and run again") from e
        if type(e) is not DatabaseError or not (file := _file(url)):  # its children are other faults
            raise
        raise HfiError(f"the database {file} is damaged ({e.orig}): {_restore(file)}") from e


def _hidden(url: str) -> str:
    """The URL without its password, or as it was given where it cannot be read."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return repr(url)


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # the driver starts no transactions of its own; `_begin_sqlite` does
    for pragma in ("journal_mode = WAL", f"busy_timeout = {_BUSY_MS}", "foreign_keys = ON", "synchronous = NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Any) -> None:
    """A writer takes its lock at once: one that reads first and locks later fails at once when another wrote in between."""
    options = connection.get_execution_options()
    if options.get("hfi_wait", True):
        connection.exec_driver_sql("BEGIN" if options.get("hfi_read_only") else "BEGIN IMMEDIATE")
        return
    driver = connection.connection.dbapi_connection
    driver.execute("PRAGMA busy_timeout = 0")
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.DatabaseError:  # of several kinds; who waits for it will see which
        raise Busy from None
    finally:
        driver.execute(f"PRAGMA busy_timeout = {_BUSY_MS}")


class Busy(Exception):
    """Somebody else is writing, and the caller did not want to wait. Nothing has been done."""


@contextmanager
def writing(engine: Engine, *, wait: bool = True) -> Iterator[Session]:
    """A transaction that is committed at the end, or rolled back. Keep it short: on SQLite it is the only writer.

    Threads of one process wait for one another here, in turn; SQLite would have them sleep and try again, some for long. Without
    `wait`, Busy is raised where another one is writing to a SQLite database.
    """
    turn = _turns.setdefault(engine, Lock()) if engine.dialect.name == "sqlite" else Lock()
    if not turn.acquire(blocking=wait):
        raise Busy
    try:
        with sound(engine.url), Session(engine, expire_on_commit=False) as session, session.begin():
            if not wait:
                session.connection(execution_options={"hfi_wait": False})
            yield session
    finally:
        turn.release()


_turns: WeakKeyDictionary[Engine, Lock] = WeakKeyDictionary()


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """A consistent view that blocks nobody; nothing written in it is kept."""
    with sound(engine.url), Session(engine) as session:
        session.connection(execution_options={"hfi_read_only": True})
        try:
            yield session
        finally:
            session.rollback()
