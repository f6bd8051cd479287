"""`hfi export`: what comes out, in the formats of other programs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hfi import __version__
from hfi.cli.common import ModelOption, find_file, load_tokens
from hfi.cli.options import JsonOption, WorkspaceOption
from hfi.errors import HfiError
from hfi.files import check_writable
from hfi.hub import pinned
from hfi.progress import progress
from hfi.workspace import Workspace

if TYPE_CHECKING:
    from hfi.erase.erasure import Erasure
    from hfi.export.card import Judged, Measured

app = typer.Typer(help="Write what comes out in the formats of other programs.", no_args_is_help=True)

OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Where to write it (default: the workspace's exports).", show_default=False)
]


ErasureOption = Annotated[list[str], typer.Option("--erasure", help="An erasure, by name or file; several add up.")]
HalfOption = Annotated[bool, typer.Option("--half", help="Write 16-bit floats: half the size, rounded.")]


@dataclass(frozen=True)
class _Source:
    """What is exported: erasures that go together, and the model that they were made for: a name, where that was found, and the
    folder of its configurations."""

    model: str
    found: Path
    folder: Path
    erasures: "Sequence[Erasure]"
    name: str


def _source(space: Workspace, model: str, names: Sequence[str]) -> _Source:
    """Everything that can be said before weights are read."""
    from hfi.diffusion.sd import configurations, content_id, find_model
    from hfi.erase.erasure import Erasure, check_together

    files = [find_file(space.erasures, name, "erasure", "hfi erase") for name in names]
    erasures = [Erasure.load(file) for file in files]
    found = find_model(model)
    model = pinned(model, found)
    check_together(erasures, content_id(found), model)
    return _Source(model, found, configurations(found), erasures, "+".join(file.stem for file in files))


@app.command("folder")
def export_folder(
    workspace: WorkspaceOption = Path("."),
    *,
    model: ModelOption,
    erasure: ErasureOption,
    token: Annotated[
        list[str] | None,
        typer.Option(help="A learned token to install, by name or file; may be repeated.", show_default=False),
    ] = None,
    half: HalfOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the cleaned model as a folder for diffusers, with a model card that says what was removed and what was measured."""
    from hfi.diffusion.sd import load_sd
    from hfi.diffusion.tokens import install
    from hfi.erase.erasure import apply
    from hfi.export.card import card
    from hfi.export.folder import write_folder

    space = Workspace.open(workspace)
    tokens = load_tokens(space, token or [])
    source = _source(space, model, erasure)
    target = _target(out or space.exports / "folder" / source.name)
    steps = [step for e in source.erasures for step in e.history]
    judged, measured = _judged(space, steps), _measured(space, source.erasures)
    sd = apply(load_sd(model), *source.erasures)
    for t in tokens:
        sd = install(sd, t)
    placeholders = [t.placeholder for t in tokens]
    text = card(target.name, steps, judged, measured, placeholders, prediction_type=sd.prediction_type, half=half)
    write_folder(sd, source.folder, target, text, half=half)
    result = {"folder": str(target), "tokens": placeholders, "evaluations": [m.run for m in measured]}
    _say(result, f"{target}\n{target / 'README.md'}", as_json)


@app.command("single-file")
def export_single_file(
    workspace: WorkspaceOption = Path("."),
    *,
    model: ModelOption,
    erasure: ErasureOption,
    half: HalfOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the cleaned model as one safetensors file in the original layout, for A1111's web UI, Forge and ComfyUI."""
    from hfi.diffusion.sd import load_sd
    from hfi.diffusion.tokens import write_safetensors
    from hfi.erase.erasure import apply
    from hfi.export.about import metadata
    from hfi.export.compvis import check_layout, checkpoint

    space = Workspace.open(workspace)
    source = _source(space, model, erasure)
    target = _target(out or space.exports / "single-file" / f"{source.name}.safetensors")
    check_layout(source.folder)
    sd = apply(load_sd(model), *source.erasures)
    configs = {"unet": sd.unet.config, "vae": sd.vae.config, "text_encoder": sd.text_encoders[0].config.to_dict()}
    encoders = [encoder.state_dict() for encoder in sd.text_encoders]
    tensors = checkpoint(sd.unet.state_dict(), sd.vae.state_dict(), encoders, configs)
    if half:
        tensors = {name: value.half() if value.is_floating_point() else value for name, value in tensors.items()}
    write_safetensors(target, tensors, {**metadata(source.erasures, __version__), "prediction_type": sd.prediction_type})
    _say({"file": str(target), "tensors": len(tensors)}, str(target), as_json)


@app.command("lora")
def export_lora(
    workspace: WorkspaceOption = Path("."),
    *,
    model: ModelOption,
    erasure: ErasureOption,
    format: Annotated[
        Literal["diffusers", "webui"],
        typer.Option(
            help="For diffusers' load_lora_weights (which needs peft; its fuse_lora cannot merge the biases), or for A1111's web UI, "
            "Forge, ComfyUI and diffusers, without biases.",
        ),
    ] = "diffusers",
    rank: Annotated[
        int | None,
        typer.Option(help="Rank of every matrix (default: the smallest within --max-error).", min=1, show_default=False),
    ] = None,
    max_error: Annotated[
        float, typer.Option(help="How far each matrix may be from the erasure's, relative to its change.", min=0, max=1)
    ] = 0.01,
    without_biases: Annotated[
        bool, typer.Option("--without-biases", help="Leave changed biases out; the stated error counts them.")
    ] = False,
    half: HalfOption = False,
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write an erasure as a LoRA, whose strength is chosen when it is used; says how near it comes to the erasure."""
    import torch

    from hfi.diffusion.sd import load_unet
    from hfi.diffusion.tokens import write_safetensors
    from hfi.erase.erasure import compose
    from hfi.export.about import metadata
    from hfi.export.lora import lora

    space = Workspace.open(workspace)
    source = _source(space, model, erasure)
    target = _target(out or space.exports / f"lora-{format}" / f"{source.name}.safetensors")
    base = load_unet(source.found, model).state_dict()
    changed = compose(base, source.erasures)
    with progress("taking apart", sum(value.ndim > 1 for value in changed.values()), "matrices") as advance:
        made = lora(
            base,
            changed,
            format=format,
            rank=rank,
            max_error=max_error,
            without_biases=without_biases,
            dtype=torch.float16 if half else torch.float32,
            watch=lambda name: advance(1, ""),
        )
    error = {"total_error": f"{made.total:.3g}", "worst_error": f"{made.worst:.3g}", "left_out": json.dumps(made.left_out)}
    write_safetensors(target, made.tensors, {**metadata(source.erasures, __version__), **made.metadata, **error})
    ranks = sorted(made.ranks.values())
    result = {
        "file": str(target),
        "format": format,
        "matrices": len(ranks),
        "ranks": [ranks[0], ranks[-1]] if ranks else [],
        "total_error": made.total,
        "worst_error": made.worst,
        "left_out": made.left_out,
    }
    words = f"{len(ranks)} matrices of rank {ranks[0]} to {ranks[-1]}" if ranks else "biases alone"
    lost = f", {len(made.left_out)} biases left out" if made.left_out else ""
    error_line = f"relative error {made.total:.2g} in all, {made.worst:.2g} in the worst matrix{lost}"
    _say(result, f"{target}\n{words}; {error_line}", as_json)


@app.command("token")
def export_token(
    name: Annotated[str, typer.Argument(help="The token, by name or file.", show_default=False)],
    workspace: WorkspaceOption = Path("."),
    *,
    format: Annotated[
        Literal["diffusers", "webui"],
        typer.Option(help="diffusers' load_textual_inversion, or A1111's web UI and ComfyUI, where a prompt names the file."),
    ] = "diffusers",
    out: OutOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a learned token as one safetensors file for diffusers, A1111's web UI or ComfyUI. SDXL's holds clip_l and clip_g, which
    load_textual_inversion is given one by one: the lines of Python are printed."""
    from hfi.diffusion.tokens import write_safetensors
    from hfi.export.about import public_name
    from hfi.export.tokens import ONE, SDXL, encode, in_diffusers

    space = Workspace.open(workspace)
    (token,) = load_tokens(space, [name])
    keys = (ONE,) if len(token.embeddings) == 1 else SDXL
    tensors = encode(token.placeholder, dict(zip(keys, token.embeddings, strict=True)), format)
    word = token.placeholder.strip("<>")
    target = _target(out or space.exports / format / f"{word}.safetensors")
    about = {**token.metadata, "placeholder": token.placeholder}
    if "base_name" in about:
        about["base_name"] = public_name(about["base_name"])
    write_safetensors(target, tensors, about)
    result = {"file": str(target), "format": format, "token": token.placeholder, "vectors": len(token.names)}
    use = "\n".join([*in_diffusers(target, token.placeholder, len(keys)), f"a prompt names it {token.placeholder}"])
    if format == "webui":
        use = f"a prompt names the file: {target.stem} in A1111's web UI, embedding:{target.stem} in ComfyUI"
    _say(result, f"{target}\n{use}", as_json)


def _judged(space: Workspace, steps: Sequence[Mapping[str, str]]) -> "dict[str, Judged]":
    """What the workspace knows of the judgments that the steps name, by hash."""
    from hfi.export.card import Judged
    from hfi.judgments import load

    found = {}
    for sha in {sha for step in steps for sha in json.loads(step.get("judgments", "[]")) if sha}:
        for file in space.judgments.glob(f"*-{sha[:12]}.jsonl"):
            judgments = load(file).judgments
            people = len({j.annotator for j in judgments})
            found[sha] = Judged(sha, len(judgments), people, sum(j.simulated for j in judgments))
    return found


def _measured(space: Workspace, erasures: "Sequence[Erasure]") -> "list[Measured]":
    """The workspace's evaluations of exactly these erasures together."""
    from hfi.erase.erasure import identity
    from hfi.export.card import Measured
    from hfi.results import BASE, read_results

    content, found = str(identity(erasures))[:16], []
    for file in sorted((space.runs / "evaluate").glob("*/evaluation.json")):
        about = json.loads(file.read_text(encoding="utf-8"))
        for system in about["systems"]:
            if system["settings"].get("erasure content") == content:
                name = (system["method"], system["conditioning"])
                rows = [r for r in read_results(file.with_name("results.json")) if r.system in (name, (BASE, "none"))]
                seen_by = about["detector"] or {"name": "nobody", "version": ""}
                found.append(Measured(file.parent.name, f"{seen_by['name']} {seen_by['version']}".strip(), name, rows))
    return found


def _target(path: Path) -> Path:
    """A place that is free: an export never replaces what lies there."""
    if path.exists():
        raise HfiError(f"{path} is there already: remove it, or give another --out")
    check_writable(path.parent)
    return path


def _say(result: dict[str, Any], words: str, as_json: bool) -> None:
    typer.echo(json.dumps(result) if as_json else words)
