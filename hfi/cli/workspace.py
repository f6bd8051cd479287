"""`hfi init`: a place to work."""

import json
from pathlib import Path
from typing import Annotated

import typer

from hfi.cli.options import JsonOption
from hfi.errors import NoWorkspace
from hfi.workspace import Workspace


def init(
    folder: Annotated[Path, typer.Argument(envvar="HFI_WORKSPACE", help="Where the workspace goes.")] = Path("."),
    as_json: JsonOption = False,
) -> None:
    """Make a workspace, or bring an existing one up to date."""
    from hfi.store.migrate import upgrade

    known = True
    try:
        Workspace.open(folder)
    except NoWorkspace:
        known = False
    space = Workspace.create(folder)
    done = upgrade(space.database_url)
    if as_json:
        typer.echo(json.dumps({"workspace": str(folder.resolve()), "new": not known, "schema": done.after}))
        return
    where = folder.resolve()
    typer.echo(f"{where} is a workspace already, its database is up to date" if known else f"workspace made in {where}")
    if not known:
        there = "" if where == Path.cwd() else f" --workspace {folder}"
        typer.echo(
            f"next: hfi concept add NAME --guideline 'when does an image show it?'{there}\n"
            f"then: hfi generate{there} --model FOLDER_OR_HUB_ID --prompts FILE, or hfi import{there} IMAGES"
        )
