"""`hfi portraits`: the embedded model, its world, its quality, its simulated annotators, and what choices are worth on it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image

from hfi.cli.options import WorkspaceOption
from hfi.errors import HfiError, UsageError
from hfi.progress import progress
from hfi.resources import data_dir

app = typer.Typer(
    help="The embedded text-to-image model: where it is, who judges it; render its world, train it, check it, compare choices on it.",
    no_args_is_help=True,
)


@app.command()
def path() -> None:
    """Print the folder that holds the embedded model in 'portraits', prompt sets in 'prompts' and benchmarks in 'bench'."""
    typer.echo(data_dir())


@app.command()
def judge(
    workspace: WorkspaceOption = Path("."),
    concept: Annotated[
        str | None,
        typer.Option("--concept", "-c", help="smoking, badge or brava (default: the only concept).", show_default=False),
    ] = None,
) -> None:
    """Let three simulated annotators judge every image of a workspace. What they say is marked, and left out unless asked for."""
    from hfi.cli.common import the_concept
    from hfi.demo import SIMULATED, simulate_judging
    from hfi.portraits.detector import YES_NO
    from hfi.store.session import reading
    from hfi.workspace import Workspace

    space = Workspace.open(workspace)
    with reading(space.engine()) as session:
        chosen = the_concept(session, concept)
    known = (*YES_NO, "brava")
    if chosen.slug not in known or chosen.question != "binary":
        raise UsageError(
            f"simulated annotators say whether an image shows {', '.join(known)}, and {chosen.slug!r} asks something else:"
            " judge it yourself with 'hfi ui'"
        )
    judged = simulate_judging(space, chosen.slug)
    typer.echo(f"{judged} judgments. {SIMULATED}.\nTake them into account with --simulated include")


@app.command()
def render(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures and captions.csv.")],
    count: Annotated[int, typer.Option(help="How many portraits.", min=1)] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the people.")] = 0,
    sheet: Annotated[bool, typer.Option(help="Also write sheet.png, all pictures in one grid.")] = True,
) -> None:
    """Draw portraits of the world, with captions and ground truth."""
    import csv
    from dataclasses import asdict

    import numpy as np

    from hfi.portraits.render import SIZE
    from hfi.portraits.render import render as draw
    from hfi.portraits.world import describe, draw_person

    rng = np.random.default_rng(seed)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise HfiError(f"cannot write to {out}: {e.strerror}; choose another folder with --out") from e
    columns = min(16, count)
    grid = Image.new("RGB", (columns * SIZE, -(-count // columns) * SIZE), "white")
    rows: list[dict[str, object]] = []
    with progress("drawing", count, "images") as advance:
        for i in range(count):
            person = draw_person(rng)
            picture = draw(person)
            picture.save(out / f"{i:05d}.png")
            rows.append({"file": f"{i:05d}.png", "caption": describe(person, rng).text, **asdict(person)})
            grid.paste(picture, (i % columns * SIZE, i // columns * SIZE))
            advance(1, "")
    with open(out / "captions.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    if sheet:
        grid.save(out / "sheet.png")
    typer.echo(f"{count} portraits and captions.csv in {out}")


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the finished model.")],
    part: Annotated[str, typer.Option(help="vae, detector, clip, unet or all; the U-Net needs the VAE.")] = "all",
    work: Annotated[Path | None, typer.Option(help="Folder of the state between interruptions [default: OUT/training].")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimizer updates, instead of the part's own number.", min=1)] = None,
) -> None:
    """Train the embedded model's parts; an interrupted training goes on when started again."""
    from dataclasses import replace

    from hfi.portraits.train import PARTS, PLANS, TRAINERS

    if part not in (*PARTS, "all"):
        raise UsageError(f"unknown part {part!r}: choose {', '.join(PARTS)} or all")
    if part == "unet" and not (out / "vae" / "config.json").exists():
        raise HfiError(f"no trained VAE in {out}: train it first with 'hfi portraits train --part vae --out {out}'")
    state = work or out / "training"
    try:
        out.mkdir(parents=True, exist_ok=True)
        state.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise HfiError(f"cannot write to {out}: {e.strerror}; choose another folder with --out") from e
    for name in PARTS if part == "all" else (part,):
        plan = replace(PLANS[name], steps=steps) if steps else PLANS[name]
        with progress(f"training {name}", plan.steps, "steps") as advance:
            seen = 0

            def report(step: int, loss: float) -> None:
                nonlocal seen
                advance(step - seen, f"loss {loss:.4f}")
                seen = step

            TRAINERS[name](out, state, plan, report)
    typer.echo(f"trained {part}; the model is in {out}")


@app.command()
def check(
    model: Annotated[Path | None, typer.Option(help="Model folder [default: the embedded one].")] = None,
    images: Annotated[int, typer.Option(help="Pictures sampled for each question.", min=1)] = 512,
    seed: Annotated[int, typer.Option(help="First seed of the pictures.")] = 50_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Measure the model against its world; exit code 1 if a figure lies outside its bounds."""
    from dataclasses import asdict

    from hfi.portraits.check import check as measure

    folder = model or data_dir() / "portraits"
    if not (folder / "detector" / "model.safetensors").exists():
        raise HfiError(f"{folder} holds no Portraits model: train one with 'hfi portraits train --out {folder}'")

    def shown(pictures: Iterable[Image.Image], title: str, total: int) -> Iterable[Image.Image]:
        with progress(title, total, "images") as advance:
            for picture in pictures:
                advance(1, "")
                yield picture

    findings = measure(folder, images=images, seed=seed, progress=shown)
    if as_json:
        rows: list[dict[str, Any]] = [{**asdict(f), "passed": f.passed} for f in findings]
        typer.echo(json.dumps(rows, indent=2))
    else:
        for f in findings:
            mark = "ok  " if f.passed else "FAIL"
            bounds = f"[{f.low:.3f}, {f.high:.3f}]" if (f.low, f.high) != (0.0, 1.0) else ""
            typer.echo(f"{mark} {f.value:6.3f} {bounds:>16}  {f.name} (n={f.n})")
    if not all(f.passed for f in findings):
        raise typer.Exit(1)


@app.command()
def compare(
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="The workspace to make, or to go on with.")] = Path(
        "compare"
    ),
    seeds: Annotated[int, typer.Option(help="How many trainings of each choice.", min=1)] = 3,
    images: Annotated[
        int, typer.Option(help="Pictures for each prompt set, system and seed; defaults get three times as many.", min=1, max=333)
    ] = 32,
) -> None:
    """Measure what each choice of invert and erase is worth: the tables of docs/results.md, in some hours."""
    from hfi.cli.common import say_and_run
    from hfi.comparison import compare as run_all
    from hfi.comparison import tables
    from hfi.files import write_text

    run_all(workspace, range(seeds), images, say_and_run)
    text = tables(workspace, range(seeds))
    write_text(workspace / "tables.md", text)
    typer.echo(text)
