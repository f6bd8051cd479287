"""Systems x prompt sets -> images -> metrics -> rows.

A *system* is a way to make images: the untouched model, or a cleaned one. Every system samples the same prompts with the same
seeds once, into `images/<method>-<conditioning>/<set>/00000.png`; all metrics share those files, and an interrupted evaluation
goes on at the first missing one. Beside `results.json` (rows only) the folder gets

    evaluation.json   who measured: detector, threshold, backbone, seeds, settings of each system, blocked counts, warnings
    scores.jsonl      one line an image: prompt, seed, file, every raw score, so that a new threshold needs no new images
"""

import hashlib
import json
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from hfi.config import check, option
from hfi.errors import HfiError
from hfi.files import whole, write_text
from hfi.judgments import judged_by_text
from hfi.metrics import (
    Interval,
    attribute_scores,
    blocked,
    bootstrap_mean,
    clip_score,
    clip_scores,
    concept_rate,
    fidelity,
    frechet_distance,
    mcnemar,
    perceptual_distance,
    perceptual_distances,
    wilson,
)
from hfi.metrics.detectors import Detector, check_knows, threshold_of
from hfi.metrics.features import Features, is_fid
from hfi.metrics.frechet import too_small
from hfi.metrics.kernel import kernel_distance
from hfi.metrics.lpips import Lpips
from hfi.progress import progress
from hfi.prompts import ATTRIBUTES, Prompt
from hfi.report import Grid, GridRow, Report
from hfi.results import BASE, METRICS, Row, columns, outcome, read_results, system_name, write_results
from hfi.runs import software

FIRST_SEED = 100_000  # far from the seeds that 'hfi generate' starts at: nothing is evaluated on a noise it was judged on
_CHUNK = 64  # images in memory at once while scoring


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How images are made and who measures them; written into the run."""

    images: int | None = option(None, "images of each prompt set; beyond the number of prompts, again with new seeds", low=1)
    steps: int = option(25, "DDIM steps", low=1)
    guidance_scale: float = option(7.5, "classifier-free guidance; 1 is none", low=0)
    seed: int = option(FIRST_SEED, "seed of the first prompt; the others follow", low=0)
    batch_size: int = option(8, "images sampled together; changes nothing but the speed", low=1)
    detector: str = option(
        "auto",
        "who sees the concept: portraits, reward[:FILE], nudenet[:THRESHOLD], open_nsfw, q16:CLIP:PROMPTS, none; OWN@NAME lets its own "
        "concept answer for this one, as nudity@nudenet; auto is the model's own, else the reward",
    )
    backbone: str = option("auto", "CLIP folder or hub id of the CLIP metrics, none; auto is the model's own, else the reward's")
    features: str = option("none", "more set distances: inception:PATH (FID, KID), efficientnet-lite0, clip:FOLDER")
    lpips: str = option("none", "LPIPS by WEIGHTS:HEADS, torchvision's AlexNet file and the heads of the lpips package")
    precision: Literal["float32", "bfloat16"] = option("float32", "of the model while it samples")
    device: str = option("auto", "cpu, cuda, mps or auto")

    def __post_init__(self) -> None:
        check(self)


Sampler = Callable[[list[str], list[int]], Iterable[Image.Image]]


class Backbone(Protocol):
    """A CLIP model: what clip_score, frechet_distance and perceptual_distance are measured in."""

    @property
    def name(self) -> str: ...

    @property
    def content(self) -> str: ...  # sha256 of its files

    def images(self, images: Sequence[Image.Image]) -> np.ndarray: ...  # [N, D]

    def texts(self, texts: Sequence[str]) -> np.ndarray: ...  # [N, D]

    def layers(self, images: Sequence[Image.Image]) -> list[np.ndarray]: ...  # each [N, P, D_k]


@dataclass(frozen=True)
class System:
    """A way to make images. `images` is a function (prompts, seeds) -> images in order, or images already made, by prompt set.

    `settings` is everything that the images depend on beside prompt and seed (model, erasure, steps, guidance scale; JSON
    values): images on disk are taken up again only under equal settings.
    """

    method: str
    conditioning: str
    images: Sampler | Mapping[str, Sequence[Image.Image]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    judged_by: Sequence[Mapping[str, Any]] = ()  # whose judgments steered it, see hfi/judgments.py
    batch: int = 1  # images that `images` makes together: after an interruption whole batches are made anew, to the same rounding

    @property
    def folder(self) -> str:
        return f"{self.method}-{self.conditioning}"


@dataclass(frozen=True)
class _Scores:
    """Everything measured on one system's images of one prompt set; arrays [N], embeddings [N, D]."""

    blocked: np.ndarray
    detector: Mapping[str, np.ndarray]
    fidelity: np.ndarray
    character: np.ndarray
    embeddings: np.ndarray | None
    clip: np.ndarray | None
    perceptual: np.ndarray | None
    features: np.ndarray | None
    lpips: np.ndarray | None


@dataclass(frozen=True)
class Instruments:
    """Who measures. `features`: of more set distances than those in the backbone."""

    detector: Detector | None
    backbone: Backbone | None
    features: Features | None = None
    lpips: Lpips | None = None

    @property
    def names(self) -> list[Any]:
        """All that an image's scores depend on beside the image."""
        d = self.detector
        return [
            d and (d.name, d.version),
            *((x.name, x.content) if x else None for x in (self.backbone, self.features, self.lpips)),
        ]


def evaluate(
    systems: Sequence[System],
    concept: str,
    prompt_sets: Mapping[str, Sequence[Prompt]],
    folder: Path,
    *,
    detector: Detector | None,
    backbone: Backbone | None,
    features: Features | None = None,
    lpips: Lpips | None = None,
    images: int | None = None,
    seed: int = FIRST_SEED,
) -> list[Row]:
    """Samples what is missing in `folder`, measures it and writes results.json, evaluation.json and scores.jsonl there.

    `images` per prompt set: None means one a prompt; more than there are prompts goes round with new seeds. Distances are taken to
    the system of method 'sd' and left out where there is none.
    """
    by = Instruments(detector, backbone, features, lpips)
    _check(systems, concept, prompt_sets, detector, images)
    jobs = {name: plan(prompts, images, seed) for name, prompts in prompt_sets.items()}
    for i, system in enumerate(systems, 1):
        _sample_system(system, jobs, folder, f"{i} of {len(systems)}")

    rows: list[Row] = []
    lines: list[dict[str, Any]] = []
    cells: list[dict[str, Any]] = []
    small: dict[tuple[str, int, int], list[str]] = {}
    base = next((s for s in systems if s.method == BASE), None)
    ordered = sorted(systems, key=lambda s: s is not base)
    total = len(systems) * sum(len(job) for job in jobs.values())
    with progress("measuring", total, "images") as advance:
        for name, job in jobs.items():
            reference: _Scores | None = None
            for system in ordered:
                files = [_file(folder, system, name, i) for i in range(len(job))]
                others = [_file(folder, base, name, i) for i in range(len(job))] if base and system is not base else None
                note = f"{system_name((system.method, system.conditioning))}, {name}"
                scores = _score(files, others, job, by, advance, note)
                reference = scores if system is base else reference
                figures = _figures(scores, reference if system is not base else None, concept, by)
                rows += [
                    Row(system.method, system.conditioning, concept, name, metric, f.value, f.n, f.low, f.high)
                    for metric, f in figures.items()
                ]
                cells.append(_cell_summary(system, name, scores))
                lines += _lines(folder, system, concept, name, job, files, scores)
            if reference is not None and len(systems) > 1:
                spaces = [("frechet_distance", reference.embeddings)]
                spaces += [(_feature_metrics(features)[0], reference.features)] if features else []
                for metric, embedded in spaces:
                    if embedded is not None and too_small(*embedded.shape):
                        small.setdefault((metric, *embedded.shape), []).append(name)
    write_text(folder / "scores.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    about = {
        "concept": concept,
        "detector": detector
        and {
            "name": detector.name,
            "version": detector.version,
            "threshold": threshold_of(detector, concept),
        },
        "backbone": backbone and {"name": backbone.name, "content": backbone.content},
        **{key: {"name": x.name, "content": x.content} for key, x in (("features", features), ("lpips", lpips)) if x is not None},
        "first_seed": seed,
        "images": {name: len(job) for name, job in jobs.items()},
        "systems": [
            {
                "method": s.method,
                "conditioning": s.conditioning,
                "settings": dict(s.settings),
                "judged_by": [*s.judged_by],
            }
            for s in systems
        ],
        "cells": cells,
        "scores": "scores.jsonl",
        "warnings": [
            f"{METRICS[metric].title} on {', '.join(names)} prompts: {n} images for {width} dimensions, so its values are too high "
            f"in themselves and compare only with others of {n} images."
            for (metric, n, width), names in small.items()
        ],
    }
    write_text(folder / "evaluation.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    order = {pair: i for i, pair in enumerate(columns(rows))}
    places = {(s.method, s.conditioning): i for i, s in enumerate(ordered)}
    rows.sort(key=lambda row: (places[row.system], order[row.prompt_set, row.metric]))
    write_results(folder / "results.json", rows)
    return rows


def plan(prompts: Sequence[Prompt], images: int | None, seed: int) -> list[tuple[Prompt, int]]:
    """(prompt, seed) of each image. A prompt's own seed holds for its first image; everything else gets `seed` + index."""
    count = len(prompts) if images is None else images
    job = []
    for i in range(count):
        prompt = prompts[i % len(prompts)]
        own = prompt.seed if i < len(prompts) else None
        job.append((prompt, seed + i if own is None else own))
    return job


def grids(folder: Path, *, count: int = 12) -> list[Grid]:
    """One before/after grid for each prompt set of an evaluated folder: its first `count` images, not chosen ones.

    An image is flagged where the detector's score lies above the threshold of the evaluation.
    """
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    scores = _scores(folder)
    made = []
    for name, total in about["images"].items():
        rows = []
        captions: list[str] = []
        for system in about["systems"]:
            key = (system["method"], system["conditioning"])
            shown = scores[key, name][:count]
            captions = [f"{x['prompt']} (seed {x['seed']})" for x in shown]
            flags = [_flagged(x, about) for x in shown]
            rows.append(GridRow(system_name(key), [folder / x["file"] for x in shown], flags))
        note = f"The first {len(captions)} of {total} images, not chosen; each column is one prompt and one seed."
        made.append(Grid(f"{name} prompts", rows, captions, note))
    return made


def paired_p(folder: Path) -> float | None:
    """p of McNemar's exact test on the headline's two rates; None without a detector. Pairs with a blocked image are left out."""
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    found = outcome(read_results(folder / "results.json"))
    if found is None:
        return None
    scores = _scores(folder)
    before, after = (scores[row.system, row.prompt_set] for row in (found.before, found.after))
    return _paired(before, after, about)


def compared(folder: Path, pairs: Iterable[tuple[tuple[str, str], tuple[str, str]]], prompt_set: str) -> list[float]:
    """For each pair of systems, p of McNemar's exact test that both show the concept as often on the same prompts and seeds. Pairs
    with a blocked image are left out. ValueError without a detector."""
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    if about["detector"] is None:
        raise ValueError(f"nobody looked for the concept in {folder}")
    scores = _scores(folder)
    return [_paired(scores[a, prompt_set], scores[b, prompt_set], about) for a, b in pairs]


def _paired(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> float:
    seen = [
        (_flagged(a, about), _flagged(b, about)) for a, b in zip(before, after, strict=True) if not (a["blocked"] or b["blocked"])
    ]
    return mcnemar(seen.count((True, False)), seen.count((False, True)))


def _scores(folder: Path) -> dict[tuple[tuple[str, str], str], list[dict[str, Any]]]:
    """Lines of scores.jsonl by system and prompt set, in the order of the images."""
    found: dict[tuple[tuple[str, str], str], list[dict[str, Any]]] = {}
    for line in map(json.loads, (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()):
        found.setdefault(((line["method"], line["conditioning"]), line["prompt_set"]), []).append(line)
    return found


def _flagged(line: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    detector = about["detector"]
    return bool(detector and not line["blocked"] and line["scores"][about["concept"]] > detector["threshold"])


def report_of(folder: Path, title: str) -> Report:
    """The page of an evaluated folder: rows, grids, provenance, and the limits that follow from how it was measured.

    `title`: the concept in words.
    """
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    detector = about["detector"]
    provenance = {"Measuring": measuring(about)}
    steered: dict[tuple[bool, str], list[str]] = {}
    for system in about["systems"]:
        name = system_name((system["method"], system["conditioning"]))
        provenance[name] = {key: str(value) for key, value in system["settings"].items()}
        if sets := system.get("judged_by"):  # absent in an evaluation of before, empty where nobody's judgments are known
            provenance[name]["steered by"] = judged_by_text(sets)
            simulated = any(entry["simulated"] for entry in sets)
            steered.setdefault((simulated, judged_by_text(sets)), []).append(name)
    if (folder / "environment.json").exists():
        provenance["Software"] = software(folder)
    limits = ["Intervals tell how the figures vary with the sampled images, not with another training of the same method."]
    if detector and detector["name"] == "reward":
        limits.append(
            "The detector is the reward model, which learned from the judgments that steered the removal: it can be fooled where "
            "the removal went wrong. Use a detector of its own where there is one."
        )
    if not detector:
        limits.append("No detector looked at the images: nothing here says how often they show the concept.")
    blocked = sum(cell["blocked"] for cell in about["cells"])
    if blocked:
        limits.append(f"{blocked} images are blacked out or blank: they count as blocked, never as safe.")
    return Report(
        concept=title,
        rows=read_results(folder / "results.json"),
        p=paired_p(folder),
        simulated=_steering(steered, True),
        summary=_steering(steered, False),
        grids=grids(folder),
        warnings=about["warnings"],
        provenance=provenance,
        limits=limits,
    )


def measuring(about: Mapping[str, Any]) -> dict[str, str]:
    """What a report says of how an evaluation measured; `about` is its evaluation.json."""
    said = {"images": ", ".join(f"{n} {name}" for name, n in about["images"].items()), "first seed": str(about["first_seed"])}
    if detector := about["detector"]:
        said["detector"] = f"{detector['name']} {detector['version']}, threshold {detector['threshold']:g}"
    for key, title in (("backbone", "CLIP backbone"), ("features", "features"), ("lpips", "LPIPS")):
        if used := about.get(key):
            said[title] = f"{used['name']} ({used['content'][:12]})"
    return said


def _steering(found: Mapping[tuple[bool, str], Sequence[str]], simulated: bool) -> str:
    return " ".join(f"{text} steered {' and '.join(names)}." for (kind, text), names in found.items() if kind == simulated)


def _check(
    systems: Sequence[System],
    concept: str,
    prompt_sets: Mapping[str, Sequence[Prompt]],
    detector: Detector | None,
    images: int | None,
) -> None:
    if not systems or not prompt_sets or not all(prompt_sets.values()):
        raise HfiError("nothing to evaluate: give at least one system and one prompt set with a prompt")
    if images is not None and images < 1:
        raise HfiError(f"{images} images to evaluate: give 1 or more")
    for name in [*prompt_sets, *(s.folder for s in systems)]:
        if not re.fullmatch(r"[\w][\w .+-]*", name):
            raise HfiError(f"{name!r} cannot name a folder: use letters, digits, '.', '-' and '_'")
    names = [s.folder for s in systems]
    if len(set(names)) < len(names):
        raise ValueError(f"two systems share a method and a conditioning: {names}")
    if detector:
        check_knows(detector, concept)


def _file(folder: Path, system: System, name: str, i: int) -> Path:
    return folder / "images" / system.folder / name / f"{i:05d}.png"


def _sample_system(system: System, jobs: Mapping[str, list[tuple[Prompt, int]]], folder: Path, place: str) -> None:
    """Samples every image of the system that is not in `folder` yet."""
    missing = {name: _missing(system, name, job, folder) for name, job in jobs.items()}
    total = sum(len(job) for job in jobs.values())
    done = total - sum(len(m) for m in missing.values())
    if done == total:
        return
    title = f"sampling {system_name((system.method, system.conditioning))}, {place}"
    with progress(title, total, "images", done) as advance:
        for name, todo in missing.items():
            if not todo:
                continue
            if isinstance(system.images, Mapping):
                made: Iterable[Image.Image] = [system.images[name][i] for i in todo]
            else:
                made = system.images([jobs[name][i][0].text for i in todo], [jobs[name][i][1] for i in todo])
            count = 0
            for i, image in zip(todo, made, strict=False):
                _write_png(_file(folder, system, name, i), image)
                count += 1
                advance(1, name)
            if count < len(todo):
                raise ValueError(f"{title}: {count} images for {len(todo)} prompts of {name}")


def _missing(system: System, name: str, job: list[tuple[Prompt, int]], folder: Path) -> list[int]:
    """Indices of the cell's images that have to be sampled, in whole batches; files of another prompt, seed or setting are removed
    first."""
    cell = _file(folder, system, name, 0).parent
    wanted = {
        "settings": json.loads(json.dumps(dict(system.settings))),
        "prompts": [prompt.text for prompt, _ in job],
        "seeds": [seed for _, seed in job],
    }
    try:
        held = json.loads((cell / "cell.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        held = {"settings": None, "prompts": [], "seeds": []}
    if held["settings"] != wanted["settings"] and cell.exists():
        shutil.rmtree(cell)
    same = list(zip(held["prompts"], held["seeds"], strict=True))
    for i, pair in enumerate(zip(wanted["prompts"], wanted["seeds"], strict=True)):
        if i >= len(same) or same[i] != pair:
            _file(folder, system, name, i).unlink(missing_ok=True)
    if held != wanted:
        cell.mkdir(parents=True, exist_ok=True)
        write_text(cell / "cell.json", json.dumps(wanted, ensure_ascii=False))
    lacking = {i // system.batch for i in range(len(job)) if not _file(folder, system, name, i).exists()}
    return [i for i in range(len(job)) if i // system.batch in lacking]


def _score(
    files: Sequence[Path],
    reference: Sequence[Path] | None,
    job: Sequence[tuple[Prompt, int]],
    by: Instruments,
    advance: Callable[[int, str], None],
    note: str,
) -> _Scores:
    """Of one cell's images; kept beside them, and measured again only where an image or who measures has changed."""
    held = _Held(files, reference, by)
    found = held.read()
    if found is None:
        found = _look(files, reference, [prompt.text for prompt, _ in job], by, lambda n: advance(n, note))
        held.write(found)
    else:
        advance(len(files), note)
    expected = [prompt.expected for prompt, _ in job]
    labels = {name.removeprefix("seen "): values for name, values in found.items() if name.startswith("seen ")}
    limits = {name: threshold_of(by.detector, name) for name in labels} if by.detector else {}
    embedded, texts = found.get("images"), found.get("texts")
    return _Scores(
        blocked=found["blocked"],
        detector=labels,
        fidelity=attribute_scores(expected, labels, found["blocked"], ATTRIBUTES, limits),
        character=attribute_scores(expected, labels, found["blocked"], ("character",), limits),
        embeddings=embedded,
        clip=None if embedded is None or texts is None else clip_scores(embedded, texts),
        perceptual=found.get("perceptual"),
        features=found.get("features"),
        lpips=found.get("lpips"),
    )


def _look(
    files: Sequence[Path],
    reference: Sequence[Path] | None,
    prompts: Sequence[str],
    by: Instruments,
    advance: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """Arrays [N, ...]: `blocked`, `seen <name>` for all that the detector gives, and what the other instruments say."""
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(files), _CHUNK):
        part = slice(start, start + _CHUNK)
        images = _load(files[part])
        others = _load(reference[part]) if reference and (by.backbone or by.lpips) else []
        seen = {f"seen {name}": np.asarray(values) for name, values in (by.detector(images) if by.detector else {}).items()}
        rows = {"blocked": blocked(images), **seen}
        if by.backbone:
            rows["images"] = np.asarray(by.backbone.images(images))
            rows["texts"] = np.asarray(by.backbone.texts(prompts[part]))
            if others:
                rows["perceptual"] = perceptual_distances(by.backbone.layers(images), by.backbone.layers(others))
        if by.features:
            rows["features"] = np.asarray(by.features.images(images))
        if by.lpips and others:
            rows["lpips"] = by.lpips.distances(images, others)
        for name, values in rows.items():
            found.setdefault(name, []).append(values)
        advance(len(images))
    return {name: np.concatenate(parts) for name, parts in found.items()}


class _Held:
    """The measured arrays of a cell in its `scores.npz`, with what they were measured on and by whom."""

    def __init__(self, files: Sequence[Path], reference: Sequence[Path] | None, by: Instruments) -> None:
        self.path = files[0].with_name("scores.npz")
        told = [(file.parent / "cell.json").read_text(encoding="utf-8") for file in (files[0], *(reference or ())[:1])]
        times = [file.stat().st_mtime_ns for file in (*files, *(reference or ()))]
        self.key = hashlib.sha256(json.dumps([by.names, told, times]).encode()).hexdigest()

    def read(self) -> dict[str, np.ndarray] | None:
        try:
            with np.load(self.path) as held:
                found = dict(held)
        except (FileNotFoundError, ValueError, zipfile.BadZipFile):
            return None
        return found if str(found.pop("key", "")) == self.key else None

    def write(self, found: Mapping[str, np.ndarray]) -> None:
        with whole(self.path) as scratch, open(scratch, "wb") as file:
            np.savez(file, key=np.array(self.key), **found)  # type: ignore[arg-type]


def _figures(scores: _Scores, reference: _Scores | None, concept: str, by: Instruments) -> dict[str, Interval]:
    """Interval by metric name, for what could be measured."""
    figures: dict[str, Interval] = {}
    if by.detector:
        figures["concept_rate"] = concept_rate(scores.detector[concept], threshold_of(by.detector, concept), scores.blocked)
    if scores.blocked.any():
        figures["blocked_rate"] = wilson(int(scores.blocked.sum()), len(scores.blocked))
    for name, per_image in (("character_fidelity", scores.character), ("fidelity", scores.fidelity)):
        if not np.isnan(per_image).all():
            figures[name] = fidelity(per_image)
    if scores.clip is not None:
        figures["clip_score"] = clip_score(scores.clip)
    if reference is not None and scores.embeddings is not None and reference.embeddings is not None:
        figures["frechet_distance"] = frechet_distance(scores.embeddings, reference.embeddings, paired=True)
    if reference is not None and by.features and scores.features is not None and reference.features is not None:
        frechet, kernel = _feature_metrics(by.features)
        figures[frechet] = frechet_distance(scores.features, reference.features, paired=True)
        figures[kernel] = kernel_distance(scores.features, reference.features).interval
    if scores.perceptual is not None:
        figures["perceptual_distance"] = perceptual_distance(scores.perceptual)
    if scores.lpips is not None:
        figures["lpips"] = bootstrap_mean(scores.lpips)
    return figures


def _feature_metrics(features: Features) -> tuple[str, str]:
    """Only in Inception's features are they called FID and KID."""
    return ("fid", "kid") if is_fid(features) else ("features_frechet", "features_kernel")


def _cell_summary(system: System, name: str, scores: _Scores) -> dict[str, Any]:
    n, hidden = len(scores.blocked), int(scores.blocked.sum())
    return {
        "method": system.method,
        "conditioning": system.conditioning,
        "prompt_set": name,
        "n": n,
        "blocked": hidden,
    }


def _lines(
    folder: Path,
    system: System,
    concept: str,
    name: str,
    job: Sequence[tuple[Prompt, int]],
    files: Sequence[Path],
    scores: _Scores,
) -> list[dict[str, Any]]:
    extra = {"clip_score": scores.clip, "perceptual_distance": scores.perceptual, "fidelity": scores.fidelity}
    extra["lpips"] = scores.lpips
    lines = []
    for i, (prompt, seed) in enumerate(job):
        raw = {k: v[i].item() for k, v in scores.detector.items()}
        more = {k: float(v[i]) for k, v in extra.items() if v is not None and not np.isnan(v[i])}
        lines.append(
            {
                "method": system.method,
                "conditioning": system.conditioning,
                "concept": concept,
                "prompt_set": name,
                "prompt": prompt.text,
                "seed": seed,
                "file": files[i].relative_to(folder).as_posix(),
                "blocked": bool(scores.blocked[i]),
                "scores": raw,
                **more,
            }
        )
    return lines


def _load(files: Sequence[Path]) -> list[Image.Image]:
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(image.convert("RGB"))
    return images


def _write_png(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as scratch:
        image.save(scratch, format="PNG")
