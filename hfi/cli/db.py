"""`hfi db`: the schema of the workspace's database."""

import json
from pathlib import Path

import typer

from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.store import migrate
from hfi.store.session import connect, shown
from hfi.workspace import Workspace

app = typer.Typer(help="The database: status, upgrade.", no_args_is_help=True)


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
    """Bring the database to this program's schema. A SQLite file is copied first, and its references are checked after."""
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
