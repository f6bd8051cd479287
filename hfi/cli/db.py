"""`hfi db`: the schema of the workspace's database, and moving it to another one."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.progress import progress
from hfi.store import migrate
from hfi.store.copying import copy as copy_database
from hfi.store.copying import rows_of
from hfi.store.session import connect, parse, shown
from hfi.workspace import Workspace

app = typer.Typer(help="The database: status, upgrade, copy.", no_args_is_help=True)


@app.command()
def status(workspace: WorkspaceOption = Path("."), as_json: JsonOption = False) -> None:
    """Say which schema the database has; exit code 1 if this program needs another."""
    engine = connect(Workspace.open(workspace).database_url)
    found = migrate.status(engine)
    where = shown(engine.url)
    engine.dispose()
    if as_json:
        typer.echo(json.dumps({"database": where, "schema": found.revision, "needed": found.head, "current": found.current}))
    elif found.current:
        typer.echo(f"{where} has schema {found.revision}, which this program needs")
    else:
        typer.echo(f"{where} has schema {found.revision or 'none'}, this program needs {found.head}: run 'hfi db upgrade'")
    if not found.current:
        raise typer.Exit(1)


@app.command()
def upgrade(workspace: WorkspaceOption = Path("."), as_json: JsonOption = False) -> None:
    """Bring the database to this program's schema. A SQLite file is copied first, and its references are checked after; of PostgreSQL
    make a copy with pg_dump before."""
    url = Workspace.open(workspace).database_url
    connect(url).dispose()  # a lost database is to be restored: only 'hfi init' makes one
    done = migrate.upgrade(url)
    if as_json:
        backup = str(done.backup) if done.backup else None
        typer.echo(json.dumps({"before": done.before, "after": done.after, "backup": backup}))
    elif done.before == done.after:
        typer.echo(f"the database has schema {done.after} already, nothing to do")
    else:
        typer.echo(f"the database went from schema {done.before or 'none'} to {done.after}")
        if done.backup:
            typer.echo(f"the copy from before is {done.backup}")
        elif done.before:
            typer.echo("PostgreSQL keeps no copy by itself: the last one is that of your own pg_dump")


@app.command()
def copy(
    workspace: WorkspaceOption = Path("."),
    *,
    to: Annotated[
        str,
        typer.Option(
            help="The empty database: postgresql://user@host/name, or sqlite:////folder/hfi.db. A password is better kept in"
            " PGPASSWORD or ~/.pgpass than in a command line, which others on this machine can read.",
            show_default=False,
        ),
    ],
    as_json: JsonOption = False,
) -> None:
    """Copy the workspace's database into an empty one, from SQLite to PostgreSQL or back, and compare both, row by row. Stop the
    labeling server before: a copy during which somebody judged, or withdrew, is not kept. From then on a command without
    HFI_DATABASE_URL says where the workspace's own database went, and does nothing."""
    space = Workspace.open(workspace)
    to = _absolute(to)
    moves = space.database_url == space.own_database and to != space.own_database
    source = space.engine()
    rows = rows_of(source)
    with progress("copying", rows, "rows") as advance:
        found = copy_database(source, to, advance)
    old, new = shown(source.url), shown(to)
    source.dispose()
    if moves or to == space.own_database:
        space.note_database(new if moves else None)
    if as_json:
        tables = {one.table: {"rows": one.rows, "sha256": one.sha256} for one in found}
        typer.echo(json.dumps({"from": old, "to": new, "rows": sum(one.rows for one in found), "tables": tables}))
    else:
        for one in found:
            typer.echo(f"{one.table:16} {one.rows:>12,}  {one.sha256}")
        typer.echo(f"{sum(one.rows for one in found):,} rows are the same in {old} and in {new}")
        how = ", with its password unless PGPASSWORD or ~/.pgpass has it" if new.startswith("postgresql") else ""
        typer.echo(f"next: set HFI_DATABASE_URL to {new}{how}")


def _absolute(url: str) -> str:
    """The URL, of a SQLite file with the whole path: the next command may run in another folder."""
    found = parse(url, "--to")
    if found.get_backend_name() == "sqlite" and found.database:
        found = found.set(drivername="sqlite", database=str(Path(found.database).resolve()))
    return found.render_as_string(hide_password=False)
