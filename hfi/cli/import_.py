"""`hfi import`: images of one's own."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from PIL.Image import Image

from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError, UsageError
from hfi.files import visible
from hfi.images import SUFFIXES, Found, find_pictures, open_picture, png
from hfi.keeping import add, prepare
from hfi.progress import progress
from hfi.store import queries
from hfi.store.session import Engine
from hfi.workspace import Workspace


def import_(
    paths: Annotated[list[Path], typer.Argument(help="Image files, and folders to look for them in.", show_default=False)],
    workspace: WorkspaceOption = Path("."),
    *,
    prompt: Annotated[str | None, typer.Option(help="Their prompt, where none is known yet.", show_default=False)] = None,
    max_files: Annotated[int, typer.Option(min=1, help="Import nothing where more image files than this are found.")] = 100_000,
    as_json: JsonOption = False,
) -> None:
    """Bring images of your own into the workspace. What is no sound image is named and skipped; the same image counts once.

    PNG, JPEG, WebP, BMP, GIF and TIFF are read. Of several frames or pages the first is taken, what
    is transparent becomes white, and both are said. In a folder, hidden files are passed over and
    links are not followed out of it.
    """
    space = Workspace.open(workspace)
    engine = space.engine()
    there = _files(paths)
    files = list(dict.fromkeys(there.pictures))
    if len(files) > max_files:
        raise UsageError(
            f"{len(files):,} image files are there, more than {max_files:,}: check the folder, or allow them with --max-files "
            f"{len(files)}"
        )
    prepare(engine, space.images)
    new, skipped, notes = 0, list(there.refused), []
    with progress("importing", len(files), "images") as advance:
        for file in files:
            try:
                picture = open_picture(file)
            except HfiError as e:
                skipped.append(str(e))
            else:
                new += keep_image(space, engine, picture.image, file.name, prompt)[1]
                notes += [f"{visible(file)} {note}" for note in picture.notes]
            advance(1, "")
    sound = len(files) + len(there.refused) - len(skipped)
    for line in (*(f"note: {note}" for note in notes), *(f"skipped: {reason}" for reason in skipped)):
        typer.echo(line, err=True)
    passed = {"hidden": there.hidden, "other": there.other}
    if as_json:
        typer.echo(json.dumps({"new": new, "known": sound - new, "skipped": skipped, "notes": notes, **passed}))
    else:
        over = [f"{n} {kind} files" for kind, n in passed.items() if n]
        typer.echo(
            f"{new} images imported, {sound - new} were there already, {len(skipped)} skipped"
            + (f"; passed over: {' and '.join(over)}" if over else "")
        )
    if not sound:
        raise HfiError(f"none of the {len(skipped)} files is a readable image: nothing was imported")


def keep_image(space: Workspace, engine: Engine, image: Image, name: str, prompt: str | None = None) -> tuple[str, bool]:
    """Takes a picture into the workspace: its sha256, and whether it is new. `name` is its file name, without the folder,
    which may name people; what of it is no text (a name need not be) is kept as question marks."""
    data = png(image)
    sha = space.images.write(data)
    about = queries.Provenance(
        key=hashlib.sha256(f"imported {sha}".encode()).hexdigest(),
        sha256=sha,
        width=image.width,
        height=image.height,
        source="imported",
        prompt=prompt,
        original_name=os.fsencode(name).decode("utf-8", "replace"),
    )
    return sha, add(engine, space.images, data, about)


def _files(paths: Sequence[Path]) -> Found:
    """Named files, whatever their suffix, and what is found in named folders."""
    found = []
    for path in paths:
        if path.is_dir():
            inside = find_pictures(path)
            if not inside.pictures and not inside.refused:
                raise HfiError(f"the folder {visible(path)} holds no image: files {', '.join(SUFFIXES)} are looked for")
            found.append(inside)
        elif path.exists():
            found.append(Found((path,), (), 0, 0))
        else:
            raise HfiError(f"no file or folder {visible(path)}: check the path")
    return Found(
        tuple(path for some in found for path in some.pictures),
        tuple(reason for some in found for reason in some.refused),
        sum(some.hidden for some in found),
        sum(some.other for some in found),
    )
