"""`hfi images`: the image store."""

import json
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from hfi.bucket import Bucket
from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError
from hfi.images import open_store
from hfi.keeping import GRACE, collectable, copy, prepare, remove, strange, take_stock
from hfi.progress import Advance, progress
from hfi.workspace import Workspace

app = typer.Typer(help="The image store: status, copy, collect.", no_args_is_help=True)
_HOURS = GRACE.total_seconds() / 3600


@app.command()
def status(workspace: WorkspaceOption = Path("."), as_json: JsonOption = False) -> None:
    """Say how many images the store holds, and whether they are those of the database; exit code 1 where some are missing."""
    space = Workspace.open(workspace)
    engine = space.engine()
    found = take_stock(engine, space.images)
    unknown = sum(file.size for file in found.unknown)
    if as_json:
        counts = {"files": found.files, "bytes": found.bytes, "known": found.known, "missing": found.missing}
        typer.echo(
            json.dumps({"store": str(space.images.root), **counts, "unknown": len(found.unknown), "unknown_bytes": unknown})
        )
    else:
        typer.echo(f"{space.images.root}: {found.files} files, {_size(found.bytes)}")
        typer.echo(f"{found.known} of them are images of the database, {len(found.unknown)} are not ({_size(unknown)})")
        if found.missing:
            todo = strange(engine, space.images) or "'hfi doctor' names the first, restore a backup"
            typer.echo(f"{found.missing} images of the database have no file: {todo}")
    if found.missing:
        raise typer.Exit(1)


@app.command()
def collect(
    workspace: WorkspaceOption = Path("."),
    *,
    older_than: Annotated[float, typer.Option(min=0, help="Hours that a file must have been there.")] = _HOURS,
    most: Annotated[bool, typer.Option("--most", help="Go on where most of the files would be removed.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove files that no image of the database refers to, as an interrupted command leaves them.

    Other commands may run meanwhile, also on other machines: an image that the database refers to
    stays, unless the store stalls, which is said. A store that other workspaces use as well is
    refused.
    """
    space = Workspace.open(workspace)
    engine, store = space.engine(), space.images
    found = take_stock(engine, store)
    old = collectable(engine, store, found, timedelta(hours=older_than), most=most)
    if dry_run:
        gone = old
    else:
        with progress("removing", len(old), "files") as advance:
            gone = remove(engine, store, old, advance)
    size, young = sum(file.size for file in gone), len(found.unknown) - len(old)
    if as_json:
        counts = {"removed": len(gone), "bytes": size, "young": young, "kept": found.files - len(gone), "dry_run": dry_run}
        typer.echo(json.dumps({"store": str(store.root), **counts}))
    else:
        what = "would be removed" if dry_run else "removed"
        later = f"; {young} younger than {older_than:g} hours are left" if young else ""
        typer.echo(
            f"{len(gone)} files {what} from {store.root} ({_size(size)}), {found.known} images of the database stay{later}"
        )


@app.command("copy")
def copy_(
    workspace: WorkspaceOption = Path("."),
    *,
    to: Annotated[str, typer.Option(help="Where to: s3://bucket/prefix, file:///folder, ...", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Copy every image to another store; HFI_IMAGES_URL moves the workspace there.

    Each image that is copied is read back and its hash compared; what is there already with the
    same length is passed over, 'hfi doctor --all' reads it all. Interrupted, or with more images
    since, the same command copies what is not there yet.
    """
    space = Workspace.open(workspace)
    engine, source, target = space.engine(), space.images, open_store(to, "--to")
    if _place(target.root) == _place(source.root):
        raise HfiError(f"{target.root} is the workspace's image store already: give another one with --to")
    source.check()
    prepare(engine, target, new=True)
    with ExitStack() as stack:

        def begin(total: int) -> Advance:
            return stack.enter_context(progress("copying", total, "images"))

        done = copy(source, target, begin)
    for fault in done.faults[:20]:
        typer.echo(f"skipped: {fault}", err=True)
    if as_json:
        counts = {"copied": done.copied, "known": done.known, "bytes": done.bytes, "skipped": len(done.faults)}
        typer.echo(json.dumps({"from": str(source.root), "to": str(target.root), **counts}))
    else:
        typer.echo(
            f"{done.copied} images copied to {target.root} ({_size(done.bytes)}) and read back, {done.known} were there already, "
            f"{len(done.faults)} skipped"
        )
    if done.faults:
        raise typer.Exit(1)
    if not as_json:
        typer.echo(f"next: export HFI_IMAGES_URL={to} for every command of this workspace, then 'hfi doctor --all'", err=True)


def _place(root: Path | Bucket) -> Path | Bucket:
    return root.resolve() if isinstance(root, Path) else root


def _size(count: int) -> str:
    """Bytes for people."""
    size, units = float(count), iter(("bytes", "kB", "MB", "GB"))
    unit = next(units)
    while size >= 1000 and unit != "GB":
        size, unit = size / 1000, next(units)
    return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
