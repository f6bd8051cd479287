"""Many rows at once: written with their numbers or without, and read at leisure."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, text
from sqlalchemy.orm import Session

from hfi.store import models as m


def append(s: Session, table: Any, columns: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    """Appends rows; by COPY on PostgreSQL."""
    if not rows:
        return
    connection = s.connection()
    if connection.dialect.name != "postgresql":
        connection.execute(insert(table), [dict(zip(columns, row, strict=True)) for row in rows])
        return
    driver: Any = connection.connection
    with (
        driver.cursor() as cursor,
        cursor.copy(f"COPY {table.__tablename__} ({', '.join(columns)}) FROM STDIN") as copy,
    ):
        for row in rows:
            copy.write_row(row)


def next_number(s: Session, column: Any, *where: Any) -> int:
    """One more than the largest there; of an empty table 1 for an id, and 0 for anything else."""
    last = s.scalar(select(func.max(column)).where(*where))
    return (1 if column.key == "id" else 0) if last is None else last + 1


def numbers_go_on(connection: Connection) -> None:
    """PostgreSQL, which was given rows with their numbers, goes on behind them, as SQLite does by itself."""
    if connection.dialect.name != "postgresql":
        return
    for table in m.Base.metadata.sorted_tables:
        largest = (
            f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), coalesce(max(id), 0) + 1, false) FROM {table.name}"
        )
        connection.execute(text(largest))


def unhurried(connection: Connection) -> None:
    """Lets a transaction that nobody waits for be idle on PostgreSQL for as long as it takes; others are ended after a minute."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
