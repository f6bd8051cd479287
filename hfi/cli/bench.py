"""`hfi bench`: every method side by side, and what the loops cost on this machine."""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfi.bench.load import LoadConfig
from hfi.bench.processes import ProcessesConfig
from hfi.bench.processes import run as run_processes
from hfi.bench.processes import table as processes_table
from hfi.bench.rows import RowsConfig
from hfi.bench.scale import ScaleConfig
from hfi.bench.speed import SpeedConfig, table
from hfi.bench.speed import run as measure_speed
from hfi.cli import TOGETHER
from hfi.cli.options import JsonOption, WorkspaceOption, name_option, with_config
from hfi.distributed import Terminated, barrier, from_main, is_main, meeting_place, one_process
from hfi.errors import HfiError, NoJudgments, UsageError
from hfi.hub import pinned
from hfi.resources import data_dir
from hfi.workspace import Workspace

if TYPE_CHECKING:
    from hfi.bench.plan import Plan
    from hfi.evaluate import EvaluateConfig

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def bench(ctx: typer.Context) -> None:
    """Every method side by side, and what the loops cost on this machine."""
    if ctx.invoked_subcommand not in ("run", "portraits"):
        one_process(f"hfi bench {ctx.invoked_subcommand}")


TablesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--table",
        help="Make and measure this table alone, and write no report; may be given again. Several such runs can share the work "
        "of a benchmark; the same command without it then writes the report.",
        show_default=False,
    ),
]


@app.command("run")
def run_plan(
    file: Annotated[Path, typer.Argument(help="The benchmark: a TOML file, as those in data/bench.", show_default=False)],
    workspace: WorkspaceOption = Path("."),
    table: TablesOption = None,
    name: Annotated[str | None, name_option("Name of the run (default: the file's).")] = None,
    as_json: JsonOption = False,
) -> None:
    """Erase with every method of a file, measure and attack every system on the same prompts and seeds, and write the report.

    Goes on where it was interrupted. Tokens come from the workspace: make them with 'hfi invert' first.
    """
    from hfi.bench.plan import read_plan

    _run(read_plan(file), Workspace.open(workspace), name or file.stem, table, as_json)


@app.command()
def portraits(
    workspace: Annotated[Path, typer.Option("--workspace", "-w", help="The workspace to make, or to go on with.")] = Path(
        "bench"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="One concept and few images: some minutes instead of hours.")] = False,
    table: TablesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Every method on the embedded model, with simulated annotators: three tables, in hours."""
    from hfi.bench.plan import read_plan
    from hfi.bench.portraits import prepare

    name = "portraits-quick" if quick else "portraits"
    plan = read_plan(data_dir() / "bench" / f"{name}.toml")
    _chosen(plan, table)
    prepare(workspace, plan.concepts, _child, quick=quick)
    _run(plan, Workspace.open(workspace), name, table, as_json)


@app.command()
@with_config(SpeedConfig)
def speed(as_json: JsonOption = False, *, config: SpeedConfig) -> None:
    """Time, U-Net evaluations and memory of invert and erase, beside plain loops written down from the papers, on random models."""
    result = measure_speed(config)
    typer.echo(json.dumps(result) if as_json else table(result))


@app.command()
@with_config(ProcessesConfig)
def processes(as_json: JsonOption = False, *, config: ProcessesConfig) -> None:
    """Images a second of one process and of several that share this machine's cores, and whether their bytes are equal."""
    rows = run_processes(config)
    typer.echo(json.dumps(rows) if as_json else processes_table(rows))


@app.command()
def memory() -> None:
    """GPU memory of every recipe in docs/scaling.md, computed from the models' architectures; needs no GPU and downloads nothing."""
    from hfi.bench.memory import table

    typer.echo(table())


@app.command()
@with_config(LoadConfig)
def load(
    curve: Annotated[bool, typer.Option("--curve", help="1, 10, 50 and 100 annotators, one after the other.")] = False,
    as_json: JsonOption = False,
    *,
    config: LoadConfig,
) -> None:
    """Many annotators at once on a labeling server of their own, as fast as it answers, killed now and then: how long each waits for
    the next task, what the server holds in memory, and whether a judgment was lost or taken twice. On SQLite, or, in a schema of its
    own that goes at the end, on the PostgreSQL database that HFI_DATABASE_URL names."""
    from tempfile import TemporaryDirectory

    from ui.load import run, table

    results = []
    for people in (1, 10, 50, 100) if curve else (config.annotators,):
        with TemporaryDirectory(prefix="hfi-load-") as folder:
            results.append(run(Path(folder) / "workspace", replace(config, annotators=people)))
    typer.echo(json.dumps(results) if as_json else table(results))
    if wrong := [
        r for r in results if r["errors"] or any(r[name] for name in ("lost", "unacknowledged", "duplicates", "over_overlap"))
    ]:
        raise HfiError(f"{len(wrong)} of {len(results)} runs lost, repeated or refused judgments: see the table")


@app.command()
@with_config(ScaleConfig)
def scale(
    workspace: Annotated[
        Path, typer.Option("--workspace", "-w", help="The workspace to make, or to measure again.", show_default=True)
    ] = Path("scale"),
    database: Annotated[
        str | None,
        typer.Option(
            "--database",
            help="An empty database to fill in the place of the workspace's own, whatever HFI_DATABASE_URL names.",
            show_default=False,
        ),
    ] = None,
    figures: Annotated[bool, typer.Option(help="Also time what managers' pages and exports read.")] = True,
    as_json: JsonOption = False,
    *,
    config: ScaleConfig,
) -> None:
    """A database of a million judgments, made once: how every statement of the judging page finds its rows, and how long a claim and a
    submission take there. Fails where one that is sent all day reads a large table as a whole, or too much of it."""
    from hfi.store.migrate import upgrade
    from hfi.store.session import connect
    from hfi.store.synthetic import check_free
    from ui.scale import run
    from ui.scale import table as shown

    space = Workspace.create(workspace)
    url = database or space.own_database
    check_free(url)  # before its schema is changed
    upgrade(url)
    engine = connect(url)
    result = run(engine, config, also_figures=figures)
    typer.echo(json.dumps(result) if as_json else shown(result))
    if result["faults"]:
        raise HfiError(f"{len(result['faults'])} statements read too much: {'; '.join(result['faults'])}")


@app.command()
@with_config(RowsConfig)
def rows(
    workspace: Annotated[
        Path | None,
        typer.Option(
            "--workspace", "-w", help="A new folder for the workspaces, to keep them (default: none).", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    *,
    config: RowsConfig,
) -> None:
    """The most memory that evaluate, exports and aggregate take on 50,000 rows, beside 1,000. Fails where it grows with the rows."""
    from tempfile import TemporaryDirectory

    from hfi.bench.rows import grown, run, table

    if workspace and workspace.exists():
        raise UsageError(f"{workspace} is there already: name a new folder")
    with TemporaryDirectory(prefix="hfi-rows-") as scratch:
        found = run(config, workspace or Path(scratch))
    typer.echo(json.dumps(found) if as_json else table(found))
    if names := grown(found):
        raise HfiError(f"memory grows with the rows in {', '.join(names)}: see the table")


def _chosen(plan: "Plan", names: list[str] | None) -> "Plan":
    """The plan with the tables of these names alone; all of them for None. UsageError for a name that it does not have."""
    known = [t.name for t in plan.tables]
    if strange := [name for name in names or () if name not in known]:
        raise UsageError(f"this benchmark has no table {strange[0]!r}: choose {', '.join(known)}")
    return replace(plan, tables=tuple(t for t in plan.tables if names is None or t.name in names))


def _run(plan: "Plan", space: Workspace, name: str, only: list[str] | None, as_json: bool) -> None:
    from hfi.bench.costs import costs
    from hfi.bench.page import headlines, markdown, render
    from hfi.bench.tables import Bench, measure, write_tables
    from hfi.cli.common import Judged, find_file, judged
    from hfi.cli.evaluate import backbone_reference, detector_spec
    from hfi.diffusion.sd import configurations, content_id, find_model, pick_device, text_widths
    from hfi.diffusion.tokens import LearnedToken, check_fits
    from hfi.embed import ClipBackbone
    from hfi.erase import METHODS
    from hfi.files import check_writable, write_text
    from hfi.metrics.detectors import load_detector
    from hfi.metrics.features import load_features
    from hfi.metrics.lpips import Lpips
    from hfi.runs import Run

    _chosen(plan, only)  # a wrong name is said first
    judging = "relapse" in plan.attacks or any(METHODS[m].judged for t in plan.tables for m in t.methods if m in METHODS)

    def ask() -> tuple["Plan", str, dict[str, LearnedToken], dict[str, Judged], dict[str, list[Any]], dict[str, str], str]:
        source = find_model(plan.model)
        exact = replace(plan, model=pinned(plan.model, source), measure=_exact(plan.measure))
        folder = configurations(source)
        every = {
            name: LearnedToken.load(find_file(space.tokens, name, "token", "hfi invert"))
            for c in plan.concepts
            for name in (c.token, c.alone)
            if name
        }
        for token in every.values():
            check_fits(token, text_widths(source), plan.model)
        if len({token.placeholder for token in every.values()}) < len(every):
            raise UsageError(f"two tokens share a placeholder: {', '.join(token.placeholder for token in every.values())}")
        found = {c.slug: judged(space, c.slug, plan.simulated) for c in plan.concepts} if judging else {}  # type: ignore[arg-type]
        flagged = {
            slug: [(sha, j.judgments.prompts[sha]) for sha in sorted(j.flagged_images("majority"))] for slug, j in found.items()
        }
        if nothing := [slug for slug, images in flagged.items() if not images]:
            raise NoJudgments(f"no image is judged to show {nothing[0]!r}: judge more with 'hfi ui'")
        check_writable(space.erasures, space.runs)
        specs = {t.name: detector_spec(exact.measure.detector, folder, space, t.slugs) for t in plan.tables}
        reference = backbone_reference(exact.measure.backbone, folder, space, plan.concepts[0].slug)
        return exact, content_id(source), every, found, flagged, specs, reference

    plan, content, every, found, flagged, specs, reference = from_main(ask)
    todo = _chosen(plan, only)
    put = {c.slug: c.learned(behind_prompts=False) for c in plan.concepts}
    tokens = {slug: every[token] for slug, token in put.items() if token}
    detectors = {}
    for t in plan.tables:
        if (detector := load_detector(specs[t.name], "+".join(t.slugs))) is None:
            raise UsageError("a benchmark counts images that show the concept: choose another detector than 'none'")
        detectors[t.name] = detector
    device = pick_device(plan.measure.device)
    features = None if plan.measure.features == "none" else load_features(plan.measure.features, device)
    lpips = None if plan.measure.lpips == "none" else Lpips.load(plan.measure.lpips)
    clip = None if reference == "none" else ClipBackbone.load(reference, device)
    settings = {
        "model": plan.model,
        "model_content": content,
        "measure": {k: v for k, v in asdict(plan.measure).items() if k not in ("batch_size", "device")},
        "methods": dict(plan.methods),
        "attacks": {attack: asdict(config) for attack, config in plan.attacks.items()},
        "tables": {
            t.name: {
                "concepts": t.slugs,
                "texts": [c.text for c in t.concepts],
                "methods": t.methods,
                "attacks": t.attacks,
                "prompts": {key: [[p.text, p.seed, dict(p.expected)] for p in prompts] for key, prompts in t.prompts.items()},
                "detector": [specs[t.name], detectors[t.name].version],
            }
            for t in plan.tables
        },
        "tokens": {name: token.content for name, token in every.items()},
        "judgments": {slug: j.judgments.sha256 for slug, j in found.items()},
    }
    run = from_main(lambda: Run.start(space.runs, "bench", name, settings))
    job = Bench(todo, space, name, content, device, detectors, clip, features, lpips, tokens, flagged)
    rows = measure(job, _child)
    if not is_main():
        return
    spent = costs(job) if only is None else []  # beside other runs that share the work, times would say nothing
    if only is None:
        write_tables(job, rows)
        write_text(run.path / "report.html", render(run.path, plan.title, plan.notes))
        write_text(run.path / "tables.md", markdown(rows, spent))
        if not run.finished:
            run.finish({"rows": len(rows), "systems": len({(r.concept, *r.system) for r in rows})})
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows]))
        return
    typer.echo(markdown(rows, spent))
    for line in headlines(rows):
        typer.echo(line)
    if only is not None:
        return
    typer.echo("")
    for file in ("report.html", "results.json", "results.csv", "tables.md"):
        typer.echo(run.path / file)


def _exact(config: "EvaluateConfig") -> "EvaluateConfig":
    """Its hub ids with their commits."""
    from hfi.embed import exact
    from hfi.metrics.detectors import exact_detector
    from hfi.metrics.features import exact_features

    backbone = config.backbone if config.backbone in ("auto", "none") else exact(config.backbone)
    return replace(config, backbone=backbone, detector=exact_detector(config.detector), features=exact_features(config.features))


def _child(line: str) -> None:
    """One command line of hfi in a process of its own, so that its cost is its own. Its results go to stderr, as ours is stdout.

    Of several processes each starts it, where they can share it, and they work at it together; else the first does."""
    shared = line.split()[0] in TOGETHER
    if shared or is_main():
        _run_child(line, meeting_place() if shared else {"WORLD_SIZE": "1"})
    if not shared:
        barrier()


def _run_child(line: str, environment: dict[str, str]) -> None:
    shown = line if len(line) < 300 else f"{line[:140]} ... {line[-120:]}"
    if is_main():
        typer.echo(f"\n$ hfi {' '.join(shown.split())}", err=True)
    command = [sys.executable, "-m", "hfi.cli.child", str(os.getpid()), *shlex.split(line)]
    child = subprocess.Popen(command, stdout=sys.stderr, env={**os.environ, **environment})
    try:
        code = child.wait()
    except (KeyboardInterrupt, Terminated):  # the child has it too, and keeps its state before it ends
        child.wait()
        raise
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise HfiError(f"'hfi {line.split()[0]}' failed, see above; run the same command again to go on from there")
