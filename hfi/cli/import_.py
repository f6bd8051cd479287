"""`hfi import`: images of one's own."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL.Image import Image

from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError
from hfi.images import SUFFIXES, safe_open
from hfi.progress import progress
from hfi.store import queries
from hfi.store.session import Engine, writing
from hfi.workspace import Workspace


def import_(
    paths: Annotated[list[Path], typer.Argument(help="Image files, and folders to look for them in.", show_default=False)],
    workspace: WorkspaceOption = Path("."),
    *,
    prompt: Annotated[str | None, typer.Option(help="Their prompt, where none is known yet.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Bring images of your own into the workspace. What is no sound image is named and skipped; the same image counts once."""
    space = Workspace.open(workspace)
    engine = space.engine()
    files = list(dict.fromkeys(_files(paths)))
    new, skipped = 0, []
    with progress("importing", len(files), "images") as advance:
        for file in files:
            try:
                image = safe_open(file)
            except HfiError as e:
                skipped.append(str(e))
            else:
                new += keep_image(space, engine, image, file.name, prompt)[1]
            advance(1, "")
    sound = len(files) - len(skipped)
    for line in skipped:
        typer.echo(f"skipped: {line}", err=True)
    if as_json:
        typer.echo(json.dumps({"new": new, "known": sound - new, "skipped": skipped}))
    else:
        typer.echo(f"{new} images imported, {sound - new} were there already, {len(skipped)} skipped")
    if not sound:
        raise HfiError(f"none of the {len(files)} files is a readable image: nothing was imported")


def keep_image(space: Workspace, engine: Engine, image: Image, name: str, prompt: str | None = None) -> tuple[str, bool]:
    """Takes a picture into the workspace: its sha256, and whether it is new. `name` is its file name, without the folder,
    which may name people."""
    sha = space.images.put(image)
    about = queries.Provenance(
        key=hashlib.sha256(f"imported {sha}".encode()).hexdigest(),
        sha256=sha,
        width=image.width,
        height=image.height,
        source="imported",
        prompt=prompt,
        original_name=name,
    )
    with writing(engine) as session:
        known = bool(queries.has_keys(session, [about.key]))
        queries.add_image(session, about)
    return sha, not known


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    """Named files, whatever their suffix, and the image files below named folders in the order of their names."""
    for path in paths:
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file() and p.name[0] != "."]
            if not inside:
                raise HfiError(f"the folder {path} holds no image: files {', '.join(SUFFIXES)} are looked for")
            yield from inside
        elif path.exists():
            yield path
        else:
            raise HfiError(f"no file or folder {path}: check the path")
