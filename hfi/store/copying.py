"""Moving a database to another one: from SQLite to PostgreSQL, and back."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, Table, exists, func, insert, inspect, select, text
from sqlalchemy.exc import DatabaseError

from hfi.errors import HfiError
from hfi.store import models as m
from hfi.store.bulk import numbers_go_on, unhurried
from hfi.store.migrate import migrate, migrating
from hfi.store.session import connect, parse, reading, shown, sound

_CHUNK = 2000  # rows in memory
_TABLES = tuple(m.Base.metadata.sorted_tables)  # what is referred to comes before what refers to it


@dataclass(frozen=True)
class Copied:
    """Rows of a table, and the sha256 of them all in the order of their numbers, which is the same on both sides."""

    table: str
    rows: int
    sha256: str


def rows_of(source: Engine) -> int:
    """How many rows there are in all tables."""
    with reading(source) as s:
        return sum(s.scalar(select(func.count()).select_from(table)) or 0 for table in _TABLES)


def copy(source: Engine, url: str, done: Callable[[int, str], None] = lambda n, note: None) -> list[Copied]:
    """Copies every row of a database of today's schema, as it is now, into the empty one that `url` names, and compares both.

    It is one transaction there: interrupted or failed, nothing is left. HfiError for a database that is not empty, where the copy is
    not the same, and where the source is another by then: the copy would lack what was judged since, or hold the name of somebody who
    withdrew.
    """
    target = parse(url)
    connect(url, create=True).dispose()  # says what is wrong with the URL
    engine = migrating(target)
    try:
        with sound(target), engine.begin() as connection:
            check_empty(connection)
            migrate(connection)
            with reading(source) as s:
                read = [_copy(s.connection(), connection, table, done) for table in _TABLES]
            for wanted, table in zip(read, _TABLES, strict=True):
                if (found := _hashed(table, _rows(connection, table))) != wanted:
                    raise HfiError(
                        f"the copy of {table.name} is not the same ({found.rows} rows, {found.sha256[:12]}, and not {wanted.rows},"
                        f" {wanted.sha256[:12]}): nothing was kept, please report it"
                    )
            numbers_go_on(connection)
            unhurried(connection)  # while the source is read once more
            with reading(source) as s:
                now = [_hashed(table, _rows(s.connection(), table)) for table in _TABLES]
            if changed := [one.table for one, before in zip(now, read, strict=True) if one != before]:
                raise HfiError(
                    f"{shown(source.url)} changed while it was copied, in {', '.join(changed)}: nothing was kept, stop the labeling"
                    " server and whatever else writes there, then copy again"
                )
        return read
    except DatabaseError as e:
        raise HfiError(f"the copy to {shown(target)} failed, nothing was kept: {e.orig}") from e
    finally:
        engine.dispose()


def check_empty(connection: Connection) -> None:
    """HfiError for a database that holds rows, or tables of something else."""
    where, there = shown(connection.engine.url), set(inspect(connection).get_table_names())
    known = {table.name for table in _TABLES}
    if strange := sorted(there - known - {"alembic_version"}):
        raise HfiError(f"{where} has tables of something else ({strange[0]}): give a database of its own")
    for table in _TABLES:
        if table.name in there and connection.scalar(select(exists().select_from(text(table.name)))):
            raise HfiError(f"{where} is not empty, it has rows in {table.name}: give an empty one")


def _copy(source: Connection, target: Connection, table: Table, done: Callable[[int, str], None]) -> Copied:
    """Copies a table in chunks; says what was read."""

    def passing() -> Iterator[Sequence[Any]]:
        for part in _rows(source, table):
            target.execute(insert(table), [row._asdict() for row in part])
            done(len(part), table.name)
            yield part

    return _hashed(table, passing())


def _rows(connection: Connection, table: Table) -> Iterator[Sequence[Any]]:
    """The rows in the order of their numbers, a chunk at a time."""
    chunked = {"stream_results": True, "max_row_buffer": _CHUNK}
    yield from connection.execute(select(table).order_by(table.c.id), execution_options=chunked).partitions(_CHUNK)


def _hashed(table: Table, parts: Iterator[Sequence[Any]]) -> Copied:
    digest, count = hashlib.sha256(), 0
    for part in parts:
        count += len(part)
        for row in part:
            digest.update(json.dumps(list(row), default=datetime.isoformat).encode() + b"\n")
    return Copied(table.name, count, digest.hexdigest())
