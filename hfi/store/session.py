"""Engines and transactions, on SQLite and on PostgreSQL.

SQLite has one writer at a time. On PostgreSQL judging happens side by side, row locks keep it right (`hfi.store.locks`), and whatever
else writes does so alone, as it does on SQLite: so nothing that is looked up before it is written can have changed in between.
"""

import random
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, DataError, DBAPIError, DisconnectionError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as NoConnection
from sqlalchemy.orm import Session

from hfi.errors import HfiError, NoRoom

__all__ = [
    "Again",
    "Away",
    "Busy",
    "Engine",
    "Session",
    "again",
    "connect",
    "made",
    "parse",
    "reading",
    "server",
    "shown",
    "writing",
]

T = TypeVar("T")

_BUSY_MS = 30_000
_FULL = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE")  # the second where a file beside the database cannot grow
ALONE = 0x686669  # the advisory lock of whoever writes alone, and of migrations; locks of another database are others
_SETTINGS = {  # of each connection to PostgreSQL: no lock outlives its owner for long, whichever way the owner went
    "lock_timeout": "30s",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "10",
    "tcp_keepalives_count": "3",
    "timezone": "UTC",
}
_CLIENT = {
    "application_name": "hfi",
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
_POOL = {"pool_size": 8, "max_overflow": 8, "pool_timeout": 30}  # the server answers in 8 threads
_FRESH = 1.0  # seconds for which a connection that was of use is not asked whether it still lives
_ESCAPES = "@ as %40, : as %3A, / as %2F, ? as %3F, # as %23, % as %25"


def parse(url: str, given_in: str = "HFI_DATABASE_URL, or unset it") -> URL:
    """A URL of SQLite or PostgreSQL, the latter with the driver that hfi uses. HfiError, which names no password, for any other.
    `given_in`: where the right one goes."""
    given = url.strip()
    if on_server := re.match(r"postgres(ql)?(\+psycopg)?://", given):
        given = "postgresql+psycopg://" + given[on_server.end() :]
    try:
        found = make_url(given)
    except (ArgumentError, ValueError):
        found = None
    address = given.partition("?")[0]
    twice = given.count("@") > 1 or (found is not None and "@" in (found.host or ""))
    if on_server and (twice or ("@" in address and (found is None or found.username is None))):
        raise HfiError(
            f"the database URL cannot be read: in its user name and password write {_ESCAPES};"
            " as in postgresql://ann:p%40ss@host/hfi, or leave the password to PGPASSWORD or ~/.pgpass"
        )
    if found is None or found.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql+psycopg"):
        raise HfiError(
            f"{shown(url)!r} is no database URL of SQLite or PostgreSQL: give one such as postgresql://user@host/name, or"
            f" sqlite:////folder/hfi.db, in {given_in}"
        )
    return found


def shown(url: str | URL) -> str:
    """The URL as it may be printed: without its password."""
    try:
        found = make_url(url)
    except (ArgumentError, ValueError):
        scheme, there, _ = str(url).partition("://")
        return f"{scheme}://..." if there else scheme
    if found.get_backend_name() == "postgresql":
        found = found.set(drivername="postgresql")
    secrets = [key for key in found.query if "password" in key]
    return found.difference_update_query(secrets)._replace(password=None).render_as_string()


def server(engine: Engine) -> str:
    """What the database is, once it was connected to: 'PostgreSQL 15.4', 'SQLite 3.40.1'."""
    name = {"postgresql": "PostgreSQL", "sqlite": "SQLite"}.get(engine.dialect.name, engine.dialect.name)
    return f"{name} {'.'.join(map(str, engine.dialect.server_version_info or ()))}".strip()  # type: ignore[attr-defined]


def made(url: URL, **options: Any) -> Engine:
    """An engine, not tried yet. HfiError where the driver is missing."""
    if url.get_backend_name() == "postgresql":
        given = dict(url.query)
        settings = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
        arguments: dict[str, Any] = {name: value for name, value in _CLIENT.items() if name not in given}
        arguments["options"] = f"{settings} {given.get('options', '')}".strip()
        # what locks a row and then looks at it has to see what the one before it wrote, whatever the server would do by itself
        options = {**_POOL, "isolation_level": "READ COMMITTED", "connect_args": arguments, **options}
    try:
        engine = create_engine(url, **options)
    except (NoSuchModuleError, ImportError) as e:
        raise HfiError(
            f"PostgreSQL needs psycopg, which is not installed here: pip install 'hfi[postgres]', or unset HFI_DATABASE_URL ({e})"
        ) from e
    if url.get_backend_name() == "postgresql":
        _ask_whether_it_lives(engine)
    return engine


def _ask_whether_it_lives(engine: Engine) -> None:
    """A connection that lay in the pool for a while is tried before it is used: its server may have been started anew."""

    def used(connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    def wanted(connection: Any, record: Any, proxy: Any) -> None:
        if time.monotonic() - record.info.get("used", time.monotonic()) > _FRESH:
            try:
                engine.dialect.do_ping(connection)
            except Exception as e:  # whatever the driver says of a connection that is dead
                raise DisconnectionError from e  # the pool gives another one

    event.listen(engine, "checkin", used)
    event.listen(engine, "checkout", wanted)


def connect(url: str, *, create: bool = False) -> Engine:
    """An engine on the database, tried once. HfiError for a URL that is none, a database out of reach or damaged, and for a SQLite
    file that is not there, unless it is to be made."""
    parsed = parse(url)
    if file := _file(parsed):
        if not file.parent.is_dir():
            raise HfiError(f"cannot open the database {file}: there is no folder {file.parent}; check HFI_DATABASE_URL")
        if not create and not file.exists():
            raise HfiError(
                f"the database {file} is missing: set HFI_DATABASE_URL if it was moved, {_restore(file)}, or make an empty one with"
                " 'hfi init'"
            )
    # nobody waits for a connection while holding the turn to write; the last one used has its pages still in memory
    engine = made(parsed, **({"max_overflow": -1, "pool_use_lifo": True} if file else {}))
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    try:
        with sound(parsed), engine.connect():
            pass
    except DatabaseError as e:
        engine.dispose()
        raise HfiError(f"cannot open the database {shown(parsed)}: {_said(e)}; check HFI_DATABASE_URL and the workspace") from e
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
    """HfiError where the block finds the database damaged, out of reach or closed to it, NoRoom where its disk is full, Again where it
    was broken off for others' sake."""
    try:
        yield
    except NoConnection as e:
        raise Away(f"every connection of this program to {shown(url)} is in use: wait a moment, then try again") from e
    except DBAPIError as e:
        if url.get_backend_name() == "postgresql":
            if told := _of_postgres(url, e):
                raise told from e
            raise
        code = getattr(e.orig, "sqlite_errorname", "")
        if code in _FULL:
            raise NoRoom(_file(url), "the disk is full") from e
        if code.startswith("SQLITE_IOERR"):
            raise HfiError(f"cannot read or write the database {_file(url)} ({e.orig}): check its disk and run again") from e
        if type(e) is not DatabaseError or not (file := _file(url)):  # its children are other faults
            raise
        raise HfiError(f"the database {file} is damaged ({e.orig}): {_restore(file)}") from e


class Away(HfiError):
    """The database's server cannot be reached, went away in mid-work, or has no connection free."""


class Again(HfiError):
    """Others wrote the same rows, and the database broke this off. Nothing has been done."""


def again(work: Callable[[], T], seconds: float = 5) -> T:
    """Does the work, a whole transaction, and does it again, for so long, where it was broken off for others' sake."""
    until = time.monotonic() + seconds
    while True:
        try:
            return work()
        except Again:
            if time.monotonic() > until:
                raise
            time.sleep(random.uniform(0.01, 0.1))


def _said(e: DBAPIError) -> str:
    """The first line of what the driver said that says why, without the server's way of calling it."""
    lines = [line.strip() for line in str(e.orig).splitlines() if line.strip()]
    return (
        re.sub(r"^(connection failed: )?(connection to server .*? failed: )?(FATAL:|ERROR:)?\s*", "", lines[0]) if lines else "?"
    )


# sqlstates, by their first letters, and what to do; {db} is the URL without its password, {who} its user, {why} what the server says
_STATES = {
    "25006": "the database {db} is read-only ({why}): name its primary server, or one that may be written to, in HFI_DATABASE_URL",
    "42501": "the user {who} may not do this in {db} ({why}): have its owner grant it, or name another user in HFI_DATABASE_URL",
    "53300": "the server of {db} has no connection free ({why}): raise its max_connections, or run fewer servers at once",
    "22": "a value does not fit into the database {db} ({why}): shorten or correct it, nothing was changed",
}
# of refused connections there is no sqlstate, only words
_WORDS = {
    "no password supplied": "the database {db} asks for the password of {who}, and none was given: put it into PGPASSWORD or ~/.pgpass,"
    f" or into the URL, where {_ESCAPES}",
    "password authentication failed": "the database {db} does not take this password for {who} ({why}): check it;"
    f" in a URL write {_ESCAPES}, or give it in PGPASSWORD or ~/.pgpass",
    'database ".*" does not exist': "there is no database {name} on that server: make it with 'createdb {name}', or check"
    " HFI_DATABASE_URL",
    'role ".*" does not exist|no pg_hba.conf entry': "the database server does not let {who} in ({why}): check the user in"
    " HFI_DATABASE_URL, or have its administrator let them in",
    "too many clients|remaining connection slots|too many connections": _STATES["53300"],
    "invalid connection option": "the database URL {db} has an option that PostgreSQL does not know ({why}): leave it out",
}
_AWAY = "cannot reach the database {db} ({why}): check that its server runs and HFI_DATABASE_URL, then run again; what was kept is safe"


def _of_postgres(url: URL, e: DBAPIError) -> Exception | None:
    """One sentence for what goes wrong with a server, None for the rest."""
    state, why = getattr(e.orig, "sqlstate", None) or "", _said(e)
    if state in ("40001", "40P01"):
        return Again("others are writing the same rows for long: nothing was changed, run the same command again")
    if state == "55P03":
        return Again(
            "another command has been writing for long, such as an import or a campaign being made: nothing was changed, run the same"
            " command again"
        )
    if state in ("53100", "58030"):
        return NoRoom(shown(url), f"the disk of its server is full or broken ({why})")
    if isinstance(e, DataError):  # some of them are found by the driver, and have no sqlstate
        state = state or "22000"
    words = next((line for start, line in _STATES.items() if state.startswith(start)), None)
    if words is None and not state:
        words = next((line for said, line in _WORDS.items() if re.search(said, str(e.orig))), None)
    if words is None and (e.connection_invalidated or state[:3] == "57P" or state[:2] == "08" or _refused(e, state)):
        words = _AWAY
    if words is None:
        return None
    return (Away if words in (_AWAY, _STATES["53300"]) else HfiError)(
        words.format(db=shown(url), who=url.username or "this user", name=url.database or "of that name", why=why)
    )


def _refused(e: DBAPIError, state: str) -> bool:
    return not state and type(e.orig).__name__ in ("OperationalError", "ConnectionTimeout", "InterfaceError")


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
def writing(engine: Engine, *, alone: bool = True, wait: bool = True) -> Iterator[Session]:
    """A transaction that is committed at the end, or rolled back. Keep it short: on SQLite it is the only writer.

    On PostgreSQL it is the only one of those that are `alone`. Those that are not run beside it and one another: what they do has to be
    made for that, as judging is (`hfi.store.locks`).

    Threads of one process wait for one another here, in turn; SQLite would have them sleep and try again, some for long. Without
    `wait`, Busy is raised where another one is writing to a SQLite database; PostgreSQL always waits.
    """
    one_writer = engine.dialect.name == "sqlite"
    turn = _turn(_turns.setdefault(engine, Lock()), wait) if one_writer else nullcontext()
    with turn, sound(engine.url), Session(engine, expire_on_commit=False) as session, session.begin():
        if not wait:
            session.connection(execution_options={"hfi_wait": False})
        if alone and not one_writer:
            session.connection().execute(_TAKE_TURN)
        yield session


@contextmanager
def _turn(lock: Lock, wait: bool) -> Iterator[None]:
    if not lock.acquire(blocking=wait):
        raise Busy
    try:
        yield
    finally:
        lock.release()


_turns: WeakKeyDictionary[Engine, Lock] = WeakKeyDictionary()
_TAKE_TURN = text(f"SELECT pg_advisory_xact_lock({ALONE})")
_VIEW: dict[str, dict[str, Any]] = {
    "sqlite": {"hfi_read_only": True},
    "postgresql": {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True},
}
_GLANCE: dict[str, dict[str, Any]] = {**_VIEW, "postgresql": {"isolation_level": "AUTOCOMMIT"}}


@contextmanager
def reading(engine: Engine, *, once: bool = False) -> Iterator[Session]:
    """A consistent view that blocks nobody; nothing written in it is kept. `once`: for a single statement, which is a view by itself
    and on PostgreSQL needs no others before and after it."""
    with sound(engine.url), Session(engine) as session:
        session.connection(execution_options=(_GLANCE if once else _VIEW)[engine.dialect.name])
        try:
            yield session
        finally:
            session.rollback()
