"""`hfi init` and `hfi doctor`: a place to work, and whether everything in it is well."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Annotated, Literal

import typer

from hfi import __version__
from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError, NoWorkspace
from hfi.images import ImageStore
from hfi.resources import data_dir, migrations_dir
from hfi.workspace import Workspace

_LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "sqlalchemy", "alembic", "gradio", "pillow", "numpy")
_MODEL_FILES = (
    "model_index.json",
    "unet/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "scheduler/scheduler_config.json",
    "clip/config.json",
    "detector/model.safetensors",
)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. A `note` is worth knowing and no fault."""

    name: str
    state: Literal["ok", "note", "fault"]
    text: str


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


def doctor(
    workspace: WorkspaceOption = Path("."),
    everything: Annotated[bool, typer.Option("--all", help="Read every image file, not only a hundred of them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check versions, devices, database, image store and data files; exit code 1 if something is broken."""
    findings = [*_program(), *_data_files(), *_space(workspace, everything)]
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        width = max(len(f.name) for f in findings)
        for f in findings:
            typer.echo(f"{f.state:5}  {f.name:{width}}  {f.text}")
    if any(f.state == "fault" for f in findings):
        raise typer.Exit(1)


def _program() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("hfi", "ok", f"{__version__} on Python {python}, {os.cpu_count()} CPU cores")
    versions, missing = [], []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        yield Finding("libraries", "fault", f"not installed: {', '.join(missing)}; install hfi again with pip")
    yield Finding("libraries", "ok", ", ".join(versions))
    try:
        import torch
    except Exception as e:  # a broken build of torch fails in many ways, and saying so is what this command is for
        yield Finding("devices", "fault", f"torch does not load: {type(e).__name__}: {e}")
        return
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    yield Finding(
        "devices", "ok" if names else "note", ", ".join(names) or "CPU only: fine for small models, slow for large ones"
    )


def _data_files() -> Iterator[Finding]:
    model = data_dir() / "portraits"
    missing = [name for name in _MODEL_FILES if not (model / name).exists()]
    if missing:
        yield Finding("embedded model", "fault", f"{model} lacks {', '.join(missing)}: 'hfi demo' cannot run; install hfi again")
    else:
        size = sum(p.stat().st_size for p in model.rglob("*") if p.is_file()) / 1e6
        yield Finding("embedded model", "ok", f"{model} ({size:.0f} MB)")
    prompts = sorted(p.parent.name for p in data_dir().glob("prompts/*/implicit.csv"))
    yield Finding("prompt sets", "ok" if prompts else "fault", ", ".join(prompts) or f"none in {data_dir() / 'prompts'}")
    scripts = list(migrations_dir().glob("versions/*.py"))
    yield Finding("migrations", "ok" if scripts else "fault", f"{len(scripts)} in {migrations_dir()}")


def _space(folder: Path, everything: bool) -> Iterator[Finding]:
    try:
        space = Workspace.open(folder)
    except NoWorkspace as e:
        yield Finding("workspace", "note", str(e))
        return
    writable = os.access(folder, os.W_OK)
    free = shutil.disk_usage(folder).free / 1e9
    state: Literal["ok", "note", "fault"] = "fault" if not writable else "note" if free < 1 else "ok"
    yield Finding("workspace", state, f"{folder.resolve()}, {'' if writable else 'not writable, '}{free:.0f} GB free")
    from hfi.store import queries
    from hfi.store.session import reading, shown

    try:
        engine = space.engine()
        with reading(engine) as session:
            images = queries.images(session)
            known = queries.concepts_list(session)
    except HfiError as e:
        yield Finding("database", "fault", str(e))
        return
    counts = f"{len(images)} images, {len(known)} concepts"
    yield Finding("database", "ok", f"{shown(engine.url)}, schema up to date, {counts}")
    engine.dispose()
    try:
        store = space.images
    except HfiError as e:
        yield Finding("image store", "fault", str(e))
        return
    yield from _pictures(store, sorted({image.sha256 for image in images}), everything)


def _pictures(store: ImageStore, shas: list[str], everything: bool) -> Iterator[Finding]:
    """Every file must be there; of a hundred, spread evenly, or of all, the bytes are read too."""
    try:
        there = store.shas()
    except HfiError as e:
        yield Finding("image store", "fault", str(e))
        return
    if unknown := there.difference(shas):  # an interruption leaves one at most
        text = f"{len(unknown)} files in {store.root} that the database does not know, first {min(unknown)[:12]}"
        todo = "'hfi images collect' removes what interruptions leave, or " if shas else ""
        yield Finding("image store", "note" if shas else "fault", f"{text}: {todo}restore the database from a backup")
    if lost := [sha for sha in shas if sha not in there]:
        text = f"{len(lost)} of {len(shas)} files are missing, first {lost[0][:12]}: restore a backup"
        yield Finding("image store", "fault", text)
        return
    sample = shas if everything else shas[:: max(1, len(shas) // 100)]
    wrong = []
    for sha in sample:
        try:
            store.load(sha)
        except HfiError as e:
            wrong.append(str(e))
    if wrong:
        rest = "" if len(sample) == len(shas) else ", 'hfi doctor --all' reads every one"
        read = f"{len(wrong)} of {len(sample)} files that were read, of {len(shas)}{rest}"
        yield Finding("image store", "fault", f"{wrong[0]} ({read})")
    else:
        yield Finding("image store", "ok", f"{len(shas)} files in {store.root}, {len(sample)} of them read and found unchanged")
