"""Which statements an action sends to the database, and how the database finds their rows.

    with listening(engine) as heard:
        with heard.step("claim"):
            judging.claim_next(...)
    for plan in explain(engine, heard): ...

A statement that reads a whole table is found by its plan. One that reads a great part of one through an index is found by its work:
on SQLite the instructions that its virtual machine ran, counted while the action ran; on PostgreSQL the pages that a statement which
only reads touched when it was run once more. Both are the same however busy the machine is.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine, PrimaryKeyConstraint, UniqueConstraint, event, func, select

from hfi.store import models as m

_TICK = 100  # instructions of SQLite between two counts


@dataclass
class Statement:
    """One text that was sent, with the parameters that it took longest with. `ms` and `work` are those of its most expensive run."""

    sql: str
    parameters: Any
    steps: list[str]
    count: int = 0
    ms: float = 0.0
    work: int = 0


@dataclass
class Heard:
    """Statements by their text, in the order in which they came first."""

    statements: dict[str, Statement] = field(default_factory=dict)
    _step: str = ""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Everything that is sent in this block is sent for `name`."""
        before, self._step = self._step, name
        try:
            yield
        finally:
            self._step = before


@dataclass(frozen=True)
class Access:
    """How a statement reaches a table: by an `index`, by "rowid" (SQLite's own key), or as a `whole`."""

    table: str
    index: str | None
    whole: bool = False

    def __str__(self) -> str:
        return (
            f"{self.table} as a whole{f' by {self.index}' if self.index else ''}"
            if self.whole
            else f"{self.table} by {self.index}"
        )


@dataclass(frozen=True)
class Plan:
    """`later`: PostgreSQL's plan once the statement has been prepared and used several times, where it is another; it may then be one
    for whatever parameters come. `work`: see the module's first lines; None where it was not counted."""

    on: str  # sqlite, postgresql
    steps: tuple[str, ...]
    sql: str
    access: tuple[Access, ...]
    later: tuple[Access, ...]
    count: int
    ms: float
    work: int | None

    @property
    def name(self) -> str:
        """UPDATE tasks; SELECT assignments, tasks"""
        tables = dict.fromkeys(_written(self.sql) or _tables(self.sql))
        return f"{self.sql.split(None, 1)[0].upper()} {', '.join(tables)}"

    def whole(self, rows: Mapping[str, int], large: int) -> list[str]:
        """The tables of `large` rows or more that are read from end to end."""
        return sorted({a.table for a in (*self.access, *self.later) if a.whole and rows.get(a.table, 0) >= large})


@contextmanager
def listening(engine: Engine) -> Iterator[Heard]:
    """Notes every statement that is sent through the engine, by one thread."""
    heard = Heard()
    running: list[Any] = [None, 0.0, 0]  # the statement, when it was sent, instructions since

    def close() -> None:
        if running[0] is not None:
            running[0].work = max(running[0].work, running[2])
        running[0], running[2] = None, 0

    def tick() -> None:
        running[2] += _TICK

    def before(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        close()
        if sql.split(None, 1)[0].upper() not in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
            return
        found = heard.statements.setdefault(sql, Statement(sql, parameters[0] if many else parameters, []))
        if heard._step and heard._step not in found.steps:
            found.steps.append(heard._step)
        found.count += 1
        if engine.dialect.name == "sqlite":
            connection.connection.dbapi_connection.set_progress_handler(tick, _TICK)
        running[:] = [found, time.perf_counter(), 0]

    def after(connection: Any, cursor: Any, sql: str, parameters: Any, context: Any, many: bool) -> None:
        found, sent, _ = running
        if found is not None and (ms := 1000 * (time.perf_counter() - sent)) > found.ms:
            found.ms, found.parameters = ms, parameters[0] if many else parameters

    event.listen(engine, "before_cursor_execute", before)
    event.listen(engine, "after_cursor_execute", after)
    try:
        yield heard
    finally:
        close()
        event.remove(engine, "before_cursor_execute", before)
        event.remove(engine, "after_cursor_execute", after)
        if engine.dialect.name == "sqlite":
            engine.dispose()  # and with the connections goes what counts in them


def sizes(engine: Engine) -> dict[str, int]:
    """About how many rows each table has: its highest number."""
    with engine.connect() as c:
        return {t.name: c.scalar(select(func.max(t.c.id))) or 0 for t in m.Base.metadata.sorted_tables}


def explain(engine: Engine, heard: Heard, *, scans: bool = True) -> list[Plan]:
    """How each statement finds its rows. On PostgreSQL whatever reads is run once more; and without `scans` it reads a table as a whole
    only where it has no other way, as it would if all tables were large."""
    ask = _explain_sqlite if engine.dialect.name == "sqlite" else _explain_postgresql
    found = []
    with engine.connect() as c:
        for one in heard.statements.values():
            if not scans and engine.dialect.name == "postgresql":
                for way in ("seqscan", "hashjoin", "mergejoin"):  # both joins go through all of a small table
                    c.exec_driver_sql(f"SET LOCAL enable_{way} = off")
            access, later, work = ask(c, one)
            found.append(Plan(engine.dialect.name, tuple(one.steps), one.sql, access, later, one.count, one.ms, work))
    return found


# --- names ---

_NAMED = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(\w+)(?:\s+AS\s+(\w+))?|,\s*(\w+)\s+AS\s+(\w+)", re.IGNORECASE)
_KNOWN = {t.name for t in m.Base.metadata.sorted_tables}


def _tables(sql: str) -> dict[str, str]:
    """Alias -> table, in the order of the text; a table without an alias is its own."""
    found: dict[str, str] = {}
    for table, alias, other, its in _NAMED.findall(sql):
        name, short = (table, alias) if table else (other, its)
        if name in _KNOWN:
            found[short or name] = name
    return found


def _written(sql: str) -> list[str]:
    """The table that a statement changes."""
    return re.findall(r"^\s*(?:INSERT INTO|UPDATE|DELETE FROM)\s+(\w+)", sql, re.IGNORECASE)


# --- SQLite ---

_LINE = re.compile(
    r"^(SEARCH|SCAN) (\w+)(?: USING (?:(AUTOMATIC )?(?:PARTIAL )?(?:COVERING )?INDEX (\w+)|(INTEGER PRIMARY KEY)))?"
)


def _explain_sqlite(c: Connection, one: Statement) -> tuple[tuple[Access, ...], tuple[Access, ...], int]:
    rows = c.exec_driver_sql(f"EXPLAIN QUERY PLAN {one.sql}", one.parameters).all()
    return tuple(dict.fromkeys(a for row in rows if (a := _sqlite_access(row[3], _tables(one.sql))))), (), one.work


def _sqlite_access(line: str, tables: Mapping[str, str]) -> Access | None:
    """None for a line that reaches no table of ours. An index that SQLite makes for the moment reads the whole table."""
    found = _LINE.match(line)
    if found is None or found[2] not in tables:
        return None
    index = "rowid" if found[5] else found[4]
    return Access(tables[found[2]], index, found[1] == "SCAN" or bool(found[3]))


# --- PostgreSQL ---


_TIMES = 7  # from the sixth on PostgreSQL may plan once for all


def _explain_postgresql(c: Connection, one: Statement) -> tuple[tuple[Access, ...], tuple[Access, ...], int | None]:
    reads = one.sql.lstrip().upper().startswith("SELECT")
    options = "ANALYZE, BUFFERS, FORMAT JSON" if reads else "FORMAT JSON"
    (found,) = c.exec_driver_sql(f"EXPLAIN ({options}) {one.sql}", one.parameters).scalar_one()
    top = found["Plan"]
    work = top["Shared Hit Blocks"] + top["Shared Read Blocks"] if reads else None
    access, later = _postgresql_access(top), _postgresql_access(_prepared(c, one))
    c.rollback()
    return access, () if later == access else later, work


def _prepared(c: Connection, one: Statement) -> Mapping[str, Any]:
    """The plan of a prepared statement, as the driver prepares what is sent often, when it has been used several times."""
    from psycopg import sql as compose

    names: dict[str, int] = {}
    numbered = re.sub(r"%\((\w+)\)s", lambda found: f"${names.setdefault(found[1], len(names) + 1)}", one.sql).replace("%%", "%")
    given = compose.SQL(", ").join(compose.Literal(one.parameters[name]) for name in names)
    run = compose.SQL("EXPLAIN (FORMAT JSON) EXECUTE hfi_prepared") + (
        compose.SQL("({})").format(given) if names else compose.SQL("")
    )
    driver: Any = c.connection.dbapi_connection
    with driver.cursor() as cursor:
        cursor.execute(compose.SQL("PREPARE hfi_prepared AS ") + compose.SQL(numbered), prepare=False)
        try:
            for _ in range(_TIMES):
                ((found,),) = cursor.execute(run, prepare=False).fetchone()
        finally:
            cursor.execute("DEALLOCATE hfi_prepared")
    plan: Mapping[str, Any] = found["Plan"]
    return plan


def _first_columns() -> Iterator[tuple[str, str]]:
    """(index, its first column)."""
    for table in m.Base.metadata.sorted_tables:
        for one in (*table.indexes, *(c for c in table.constraints if isinstance(c, PrimaryKeyConstraint | UniqueConstraint))):
            yield str(one.name), next(iter(one.columns)).name


_FIRST = dict(_first_columns())


def _postgresql_access(top: Mapping[str, Any]) -> tuple[Access, ...]:
    return tuple(dict.fromkeys(_walk(top, limited=False)))


def _walk(node: Mapping[str, Any], limited: bool, table: str | None = None) -> Iterator[Access]:
    kind, table = node["Node Type"], node.get("Relation Name", table)
    if kind == "Seq Scan":
        yield Access(str(table), None, True)
    elif kind in ("Index Scan", "Index Only Scan", "Bitmap Index Scan"):
        # without a condition on its first column it goes through all of the index, unless it may stop at the first row that fits
        name, condition = node["Index Name"], node.get("Index Cond", "")
        yield Access(str(table), name, not limited and not re.search(rf"\b{_FIRST.get(name, '')}\b", condition))
    inner: Sequence[Mapping[str, Any]] = node.get("Plans", ())
    for child in inner:
        yield from _walk(child, limited or kind == "Limit", table)
