"""`hfi measure`: figures of images that were made elsewhere. Needs no workspace."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hfi import __version__
from hfi.cli.options import JsonOption
from hfi.errors import HfiError, UsageError

if TYPE_CHECKING:
    from hfi.measure import Figure, Folder

TITLES = {
    "concept_rate": "shows it",
    "blocked_rate": "blocked",
    "clip_score": "CLIP score",
    "fid": "FID",
    "kid": "KID",
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
    "lpips": "LPIPS",
    "perceptual_distance": "perceptual distance",
}


def measure(
    images: Annotated[Path, typer.Argument(help="A folder of images; those in folders below it count.", show_default=False)],
    reference: Annotated[
        Path | None,
        typer.Option(help="A folder to compare with: distances of the two sets, and of images of one name.", show_default=False),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="The prompts, for the CLIP score: one an image in the order of the file names, or a CSV with file and prompt.",
            show_default=False,
        ),
    ] = None,
    detector: Annotated[
        list[str] | None,
        typer.Option(
            help="Who looks: nudenet[:THRESHOLD[:CLASSES]], open_nsfw, q16:CLIP:PROMPTS, reward:FILE, portraits, "
            "or CONCEPT@one of them for one of its concepts; may be repeated.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="What the two sets are compared in: efficientnet-lite0, inception:FILE (FID, KID), clip:FOLDER; may be repeated.",
            show_default=False,
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="CLIP folder or hub id: the CLIP score, perceptual distance and distances of sets.", show_default=False
        ),
    ] = None,
    lpips: Annotated[
        str | None,
        typer.Option(
            help="WEIGHTS:HEADS, torchvision's AlexNet file and the heads of the lpips package: LPIPS.", show_default=False
        ),
    ] = None,
    scores: Annotated[
        Path | None, typer.Option(help="Write the raw scores of each image here, as JSON lines.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto, for CLIP and features.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure a folder of images that were made elsewhere. What is no sound image is named and left out."""
    specs, spaces = detector or [], features or []
    _check(reference, prompts, specs, spaces, backbone, lpips, scores)
    from hfi.diffusion.sd import pick_device
    from hfi.embed import ClipBackbone
    from hfi.measure import Instruments, assign, check_folder, look
    from hfi.measure import measure as measured
    from hfi.metrics.detectors import load_detector
    from hfi.metrics.features import load_features
    from hfi.metrics.lpips import Lpips
    from hfi.prompts import load_prompts

    given = load_prompts(prompts) if prompts else None
    for path in filter(None, (images, reference)):
        check_folder(path)
    where = pick_device(device)
    looks = {spec: found for spec in specs if (found := load_detector(spec, None))}
    instruments = Instruments(
        looks,
        [load_features(spec, where) for spec in spaces],
        ClipBackbone.load(backbone, where) if backbone else None,
        Lpips.load(lpips) if lpips else None,
    )
    folder = look(images)
    other = look(reference) if reference else None
    texts = assign(folder, given, str(prompts)) if given else None
    result = measured(folder, other, texts, instruments)
    if scores:
        result.write_scores(scores)
    about = {
        "hfi": __version__,
        "images": _about(folder, result.figures[0]),
        "reference": _about(other) if other else None,
        "figures": [asdict(figure) for figure in result.figures],
        "warnings": list(result.warnings),
    }
    if as_json:
        typer.echo(json.dumps(about, indent=2, ensure_ascii=False, allow_nan=False))
        return
    _print(result.figures)
    for part in filter(None, (folder, other)):
        for name, why in part.skipped:
            typer.echo(f"skipped: {part.path / name} {why}", err=True)
    for line in result.warnings:
        typer.echo(f"note: {line}", err=True)


def _check(
    reference: Path | None,
    prompts: Path | None,
    detectors: Sequence[str],
    features: Sequence[str],
    backbone: str | None,
    lpips: str | None,
    scores: Path | None,
) -> None:
    """What cannot work is said before anything is read."""
    from hfi.metrics.detectors import check_name

    for spec in detectors:
        check_name(spec)
        if spec == "none":
            raise UsageError("--detector none sees nothing: leave it out")
    for option, values in (("--detector", detectors), ("--features", features)):
        if len(set(values)) < len(values):
            raise UsageError(f"{option} names one twice: give each once")
    if (features or lpips) and not reference:
        raise UsageError(f"{'--features' if features else '--lpips'} measures a distance: give the other folder with --reference")
    if reference and not (features or lpips or backbone):
        raise UsageError("--reference needs something to compare in: give --features, --lpips or --backbone")
    if prompts and not backbone:
        raise UsageError("--prompts is for the CLIP score: give the CLIP model with --backbone")
    if not (detectors or reference or prompts):
        raise UsageError("nothing to measure with: give --detector, --reference with --features, or --prompts with --backbone")
    if scores and scores.exists():
        raise HfiError(f"{scores} exists: give another name, or remove it first")
    if scores and not scores.parent.is_dir():
        raise HfiError(f"no folder {scores.parent} for --scores: make it first")


def _about(folder: "Folder", hidden: "Figure | None" = None) -> dict[str, Any]:
    counts: dict[str, Any] = {"files": len(folder.images) + len(folder.skipped), "read": len(folder.images)}
    if hidden:
        counts["blocked"] = round((hidden.value or 0) * hidden.n)
    return {**counts, "skipped": [{"file": name, "why": why} for name, why in folder.skipped]}


def _print(figures: "Sequence[Figure]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "of", "value", "95 %", "n", "measured by")
    for figure in figures:
        rate = figure.metric.endswith("_rate")
        bounds = "" if figure.low is None else f"{_show(figure.low, rate)}–{_show(figure.high, rate)}"
        value = f"{_show(figure.value, rate)}{' %' if rate and figure.value is not None else ''}"
        table.add_row(TITLES[figure.metric], figure.of or "", value, bounds, str(figure.n), _by(figure.by))
    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)


def _show(value: float | None, rate: bool) -> str:
    if value is None:
        return "n/a"
    return f"{100 * value:.1f}" if rate else f"{value:.4g}"


def _by(by: Any) -> str:
    words = [f"{by[key]}" for key in ("detector", "features", "version") if key in by]
    if "threshold" in by:
        words.append(f"threshold {by['threshold']:g}")
    if "at" in by:
        words.append("at " + ", ".join(f"{t}: {_show(value, True)} %" for t, value in by["at"].items()))
    if "std" in by:
        words.append(f"std {by['std']:.3g} of {by['subsets']} x {by['subset_size']}" if by["std"] is not None else "all at once")
    return "; ".join(words)
