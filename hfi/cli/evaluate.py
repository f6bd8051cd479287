"""`hfi evaluate`: what was removed, and what was kept."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfi.cli.common import GUIDES
from hfi.cli.options import JsonOption, WorkspaceOption, name_option, with_config
from hfi.distributed import from_main, is_main
from hfi.errors import HfiError, UsageError
from hfi.evaluate import EvaluateConfig, System, report_of
from hfi.evaluate import evaluate as measure
from hfi.hub import pinned
from hfi.judgments import each_once, judged_by
from hfi.prompts import Prompt, load_each
from hfi.report import headline, write_report
from hfi.resources import data_dir
from hfi.results import BASE, Row, columns, lookup, system_name, systems
from hfi.runs import Run
from hfi.workspace import Workspace

if TYPE_CHECKING:
    import torch

    from hfi.systems import Guide


@dataclass(frozen=True)
class _Cleaned:
    """Erasure files that are applied together, mostly one, and how the rows are named."""

    paths: tuple[Path, ...]
    method: str
    conditioning: str
    content: str
    judged_by: list[dict[str, Any]]


@dataclass(frozen=True)
class _Work:
    """What is known before a model is loaded."""

    space: Workspace
    concept: str
    title: str
    sets: dict[str, tuple[Prompt, ...]]
    model: str
    base: str
    cleaned: list[_Cleaned]
    guides: "list[Guide]"
    detector: str
    backbone: str
    features: str


@with_config(EvaluateConfig)
def evaluate(
    workspace: WorkspaceOption = Path("."),
    *,
    model: Annotated[str, typer.Option("--model", "-m", help="The untouched model: a folder, a checkpoint file, or a hub id.")],
    concept: Annotated[
        str,
        typer.Option(
            "--concept", "-c", help="The concept that was to be removed; several with commas between them count together."
        ),
    ],
    erasure: Annotated[
        list[str] | None,
        typer.Option(
            help="An erasure, by name or file; may be repeated (default: all of the concept in the workspace).",
            show_default=False,
        ),
    ] = None,
    together: Annotated[
        bool, typer.Option("--together", help="Measure the given erasures applied together, as one system.")
    ] = False,
    guide: Annotated[
        list[str] | None,
        typer.Option(help=f"Measure the untouched model under this guide too, {GUIDES}; may be repeated.", show_default=False),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            help="What the guides lead away from, in words; may be repeated (default: the concept's own token).",
            show_default=False,
        ),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="A learned token that the guides lead away from, by name or file; may be repeated. With --against, each guide "
            "is measured with either.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            help="A folder with implicit, explicit and harmless prompts, or one prompts file; may be repeated "
            "(default: the packaged prompts of the concept).",
            show_default=False,
        ),
    ] = None,
    name: Annotated[str | None, name_option("Name of the run (default: the concept).")] = None,
    as_json: JsonOption = False,
    config: EvaluateConfig,
) -> None:
    """Measure what was removed and what was kept: the untouched model, every erasure and every guide asked for, on the same prompts
    and seeds."""
    from hfi.cli.common import concept_names, find_file
    from hfi.diffusion.sd import configurations, content_id, find_model, pick_device, text_widths
    from hfi.diffusion.tokens import check_fits
    from hfi.embed import ClipBackbone
    from hfi.metrics.detectors import load_detector
    from hfi.metrics.features import exact_features, load_features
    from hfi.metrics.lpips import Lpips

    def ask() -> _Work:
        space = Workspace.open(workspace)
        slugs = concept_names(concept)
        title = ", ".join(_title(space, slug) for slug in slugs)
        sets = _prompt_sets(prompts, slugs)
        guides = _guides(space, slugs, guide or [], against or [], token or [], config.guidance_scale)
        source = find_model(model)
        exact = pinned(model, source)
        folder, base = configurations(source), content_id(source)
        files = [find_file(space.erasures, e, "erasure", "hfi erase") for e in erasure] if erasure else _erasures(space, slugs)
        cleaned = _cleaned([tuple(files)] if together and len(files) > 1 else [(file,) for file in files], base, model)
        for t in (t for g in guides for t in g.tokens):
            check_fits(t, text_widths(source), model)
        detector = detector_spec(config.detector, folder, space, slugs)
        backbone = backbone_reference(config.backbone, folder, space, slugs[0])
        features = exact_features(config.features)
        return _Work(space, "+".join(slugs), title, sets, exact, base, cleaned, guides, detector, backbone, features)

    work = from_main(ask)
    device = pick_device(config.device)
    features = None if work.features == "none" else load_features(work.features, device)
    lpips = None if config.lpips == "none" else Lpips.load(config.lpips)
    looks = load_detector(work.detector, work.concept)
    clip = None if work.backbone == "none" else ClipBackbone.load(work.backbone, device)
    settings = {
        "model": work.model,
        "content": work.base,
        "concept": work.concept,
        "erasures": [f"{c.method} {c.conditioning} {c.content[:16]}" for c in work.cleaned],
        "prompts": [f"{key} {len(value)} {_digest(value)}" for key, value in work.sets.items()],
        **asdict(replace(config, detector=work.detector, backbone=work.backbone, features=work.features)),
        "detector_version": looks and looks.version,
        "backbone_content": clip and clip.content,
        "features_content": features and features.content,
        "lpips_content": lpips and lpips.content,
    }
    for how in ("batch_size", "device"):  # change nothing but the speed, and rounding
        settings.pop(how)
    if work.guides:
        settings["guides"] = [" ".join(map(str, g.settings.values())) for g in work.guides]

    def begin() -> tuple[Run, bool]:
        run = Run.start(work.space.runs, "evaluate", name or work.concept, settings)
        return run, run.finished

    run, measured = from_main(begin)
    if not measured:
        measure(
            systems_of(work.model, work.base, work.cleaned, work.guides, config, device),
            work.concept,
            work.sets,
            run.path,
            detector=looks,
            backbone=clip,
            features=features,
            lpips=lpips,
            images=config.images,
            seed=config.seed,
        )
    if not is_main():
        return
    report = report_of(run.path, work.title)
    rows = report.rows
    write_report(run.path / "report.html", report)  # anew each time: a later version of the page needs no new images
    if not run.finished:
        run.finish({"rows": len(rows), "headline": headline(report)})
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print_table(rows)
    said = (headline(report), report.simulated, report.summary)
    typer.echo("\n" + "\n".join(filter(None, said)))
    typer.echo(f"{run.path / 'report.html'}\n{run.path / 'results.json'}")


def systems_of(
    model: str, base: str, cleaned: Sequence[_Cleaned], guides: "Sequence[Guide]", config: EvaluateConfig, device: "torch.device"
) -> list[System]:
    """The untouched model, the cleaned ones and the guided ones. The model is loaded when the first missing image is asked for."""
    from hfi.diffusion.memory import PRECISIONS
    from hfi.diffusion.sd import StableDiffusion, load_sd
    from hfi.systems import sampler

    @cache
    def untouched() -> StableDiffusion:
        return load_sd(model, device, PRECISIONS[config.precision])

    scale = config.guidance_scale
    draws = partial(sampler, untouched, steps=config.steps, guidance_scale=scale, batch_size=config.batch_size)
    common = {"model": model, "model content": base[:16], "steps": config.steps, "guidance scale": scale}
    common |= {"precision": config.precision}
    batch = config.batch_size
    made = [System(BASE, "none", draws(), common, batch=batch)]
    for c in cleaned:
        own = {"erasure": "+".join(path.name for path in c.paths), "erasure content": c.content[:16]}
        made.append(System(c.method, c.conditioning, draws(c.paths), {**common, **own}, c.judged_by, batch))
    made += [System(g.name, g.conditioning, draws((), g), {**common, **g.settings}, g.judged_by, batch) for g in guides]
    return made


def print_table(rows: Sequence[Row]) -> None:
    """One table for each prompt set, systems down, metrics across."""
    from rich.console import Console
    from rich.table import Table

    from hfi.results import METRICS

    console = Console(width=None if sys.stdout.isatty() else 120)
    pairs = columns(rows)
    for prompt_set in dict.fromkeys(s for s, _ in pairs):
        metrics = [m for s, m in pairs if s == prompt_set]
        counts = sorted({row.n for row in rows if row.prompt_set == prompt_set})
        size = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
        table = Table(title=f"{prompt_set} prompts, {size}", title_justify="left", title_style="bold")
        table.add_column("system", no_wrap=True)
        for metric in metrics:
            table.add_column(METRICS[metric].title if metric in METRICS else metric, justify="right")
        for system in systems(rows):
            found = [lookup(rows, system, prompt_set, metric) for metric in metrics]
            if any(found):
                cells = [f"{r.text()}\n[dim]{r.interval()}[/dim]" if r else "" for r in found]
                table.add_row(system_name(system), *cells)
        console.print(table)


def _title(space: Workspace, concept: str) -> str:
    """NotFound for an unknown concept."""
    from hfi.store import queries
    from hfi.store.session import reading

    with reading(space.engine()) as session:
        return queries.concept(session, concept).title


def _prompt_sets(given: list[Path] | None, slugs: Sequence[str]) -> dict[str, tuple[Prompt, ...]]:
    if not given:
        packaged = data_dir() / "prompts" / slugs[0]
        if len(slugs) > 1 or not packaged.is_dir():
            raise UsageError(f"no prompts for {', '.join(slugs)} come with hfi: give a folder or a file with --prompts")
        given = [packaged]
    return load_each(given)


def _erasures(space: Workspace, slugs: Sequence[str]) -> list[Path]:
    """The workspace's erasures of all the concepts."""
    from hfi.erase.erasure import Erasure

    return [p for p in sorted(space.erasures.glob("*.safetensors")) if set(slugs) <= set(Erasure.load(p).concepts)]


def _cleaned(groups: Sequence[tuple[Path, ...]], base: str, model: str) -> list[_Cleaned]:
    """Reads what the files say of themselves. Of two with one method and conditioning the second is called sdd-2, and so on."""
    from hfi.erase.erasure import Erasure, check_together, identity

    found: list[_Cleaned] = []
    for paths in groups:
        made = sorted(map(Erasure.load, paths), key=lambda e: (e.method, e.content))
        check_together(made, base, model)
        method = "+".join(e.method for e in made)
        kinds = {e.metadata.get("conditioning", "text") for e in made}
        conditioning = kinds.pop() if len(kinds) == 1 else "mixed"
        taken = {(c.method, c.conditioning) for c in found}
        names = [method, *(f"{method}-{i}" for i in range(2, len(groups) + 2))]
        free = next(n for n in names if (n, conditioning) not in taken)
        steered = each_once(*(judged_by(step) for e in made for step in e.history))
        found.append(_Cleaned(paths, free, conditioning, str(identity(made)), steered))
    return found


def _guides(
    space: Workspace, slugs: Sequence[str], names: Sequence[str], against: Sequence[str], tokens: Sequence[str], scale: float
) -> "list[Guide]":
    """Each guide with the words, with the tokens, or with both in turn; the concept's own token where neither is given."""
    if not names:
        if against or tokens:
            raise UsageError("--against and --token say what a guide leads away from: choose one with --guide")
        return []
    from hfi.cli.common import load_tokens
    from hfi.diffusion.tokens import placeholders
    from hfi.systems import Guide

    if named := [p for text in against for p in placeholders(text)]:
        raise UsageError(f"--against takes words, and {named[0]} names a learned token: give its name or file with --token")
    learned = load_tokens(space, tokens or ([] if against else list(slugs)))
    found = []
    for name in dict.fromkeys(names):
        found += [Guide(name, words=tuple(against))] if against else []
        found += [Guide(name, tokens=tuple(learned))] if learned else []
    for guide in found:
        guide.guidance.check(scale)
    return found


def detector_spec(spec: str, model: Path, space: Workspace, slugs: Sequence[str]) -> str:
    """'auto' and 'reward' as the file that they stand for, a hub id with its commit."""
    from hfi.metrics.detectors import check_name, exact_detector

    own, concept = model / "detector" / "model.safetensors", slugs[0]
    reward = space.rewards / f"{concept}.safetensors"
    if spec == "auto" and own.exists():
        return f"portraits:{own}"
    if len(slugs) > 1 and spec in ("auto", "reward"):
        raise UsageError(f"a reward model knows one concept, not {', '.join(slugs)}: choose a detector that knows them all")
    if spec == "auto":
        if not reward.exists():
            raise UsageError(
                f"nothing can see {concept!r} in images of this model: train a reward with 'hfi reward', or choose --detector"
            )
        return f"reward:{reward}"
    check_name(spec)
    if spec == "reward":
        if not reward.exists():
            raise HfiError(f"no reward model of {concept!r} in {space.rewards}: train one with 'hfi reward'")
        return f"reward:{reward}"
    return exact_detector(spec)


def backbone_reference(reference: str, model: Path, space: Workspace, concept: str) -> str:
    """'auto' as the folder or hub id that it stands for, a hub id with its commit; 'none' where there is no CLIP model at hand."""
    from hfi.diffusion.tokens import read_safetensors
    from hfi.embed import exact

    if reference == "auto":
        reward = space.rewards / f"{concept}.safetensors"
        if (model / "clip" / "config.json").exists():
            reference = str(model / "clip")
        elif reward.exists():
            reference = read_safetensors(reward, "reward model")[1].get("backbone", "none")
        else:
            typer.echo("no CLIP model at hand: the CLIP metrics are left out; name one with --backbone", err=True)
            reference = "none"
    return reference if reference == "none" else exact(reference)


def _digest(prompts: Sequence[Prompt]) -> str:
    """Of the JSON list of all [text, seed, expected]."""
    known = hashlib.sha256(b"[")
    for i, p in enumerate(prompts):
        known.update((", " * (i > 0) + json.dumps((p.text, p.seed, dict(p.expected)), ensure_ascii=False)).encode())
    known.update(b"]")
    return known.hexdigest()[:16]
