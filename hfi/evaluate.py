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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
from PIL import Image

from hfi.config import check, option
from hfi.distributed import from_main, gather, in_turn, is_main, mine, rank, scatter, size
from hfi.errors import HfiError
from hfi.files import whole, write_pieces, write_text
from hfi.images import png
from hfi.judgments import judged_by_text
from hfi.measured import Chunk, Measured
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
from hfi.metrics.rows import Rows
from hfi.progress import Advance, progress
from hfi.prompts import ATTRIBUTES, Prompt
from hfi.report import Grid, GridRow, Report
from hfi.results import BASE, METRICS, Row, columns, outcome, read_results, system_name, write_results
from hfi.runs import software

FIRST_SEED = 100_000  # far from the seeds that 'hfi generate' starts at: nothing is evaluated on a noise it was judged on
_CHUNK = 64  # images in memory at once while scoring
_ASKED = 1024  # images that a system is asked for at once, in whole batches
_Place = tuple[tuple[str, str], str]  # system, prompt set


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How images are made and who measures them; written into the run."""

    images: int | None = option(None, "images of each prompt set; beyond the number of prompts, again with new seeds", low=1)
    steps: int = option(25, "DDIM steps", low=1)
    guidance_scale: float = option(7.5, "classifier-free guidance; 1 is none", low=0)
    seed: int = option(FIRST_SEED, "seed of the first prompt; the others follow", low=0)
    batch_size: int = option(
        8, "images sampled together; changes nothing but the speed, and rounding that can show in a pixel", low=1
    )
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
class Plan(Sequence[tuple[Prompt, int]]):
    """(prompt, seed) of each of `total` images, made when they are asked for. A prompt's own seed holds for its first image;
    everything else gets `first` + index."""

    prompts: Sequence[Prompt]
    total: int
    first: int

    def __len__(self) -> int:
        return self.total

    @overload
    def __getitem__(self, i: int, /) -> tuple[Prompt, int]: ...
    @overload
    def __getitem__(self, i: slice, /) -> "list[tuple[Prompt, int]]": ...
    def __getitem__(self, i: int | slice, /) -> tuple[Prompt, int] | list[tuple[Prompt, int]]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(self.total))]
        if not 0 <= i < self.total:
            raise IndexError(i)
        prompt = self.prompts[i % len(self.prompts)]
        own = prompt.seed if i < len(self.prompts) else None
        return prompt, self.first + i if own is None else own


@dataclass(frozen=True)
class _Cell:
    """A system's images of one prompt set: the folder that they are in, and what each is of."""

    folder: Path
    job: Plan

    def file(self, i: int) -> Path:
        return self.folder / f"{i:05d}.png"

    def read(self, part: range) -> list[bytes]:
        return [self.file(i).read_bytes() for i in part]


@dataclass(frozen=True)
class _Scores:
    """What the figures of a cell are made of; arrays [N], embeddings [N, D] in files."""

    blocked: np.ndarray
    concept: np.ndarray | None
    fidelity: np.ndarray
    character: np.ndarray
    embeddings: Rows | None
    clip: np.ndarray | None
    perceptual: np.ndarray | None
    features: Rows | None
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
    the system of method 'sd' and left out where there is none. Several processes call it together: main alone reads and writes the
    folder and has the rows; the others give it what they sampled and measured, and have none.
    """
    by = Instruments(detector, backbone, features, lpips)
    _check(systems, concept, prompt_sets, detector, images)
    jobs = {name: plan(prompts, images, seed) for name, prompts in prompt_sets.items()}
    sample_missing(systems, jobs, folder)

    rows: list[Row] = []
    cells: list[dict[str, Any]] = []
    small: dict[tuple[str, int, int], list[str]] = {}
    base = next((s for s in systems if s.method == BASE), None)
    ordered = sorted(systems, key=lambda s: s is not base)
    total = len(systems) * sum(len(job) for job in jobs.values())
    with (
        _lines(folder / "scores.jsonl") if is_main() else nullcontext(print) as write,
        progress("measuring", total, "images") as advance,
    ):
        for name, job in jobs.items():
            reference: _Scores | None = None
            for system in ordered:
                cell = _cell(folder, system, name, job)
                other = _cell(folder, base, name, job) if base and system is not base else None
                note = f"{system_name((system.method, system.conditioning))}, {name}"
                measured = _measure(cell, other, by, advance, note)
                if measured is None:
                    continue
                names = {"method": system.method, "conditioning": system.conditioning, "concept": concept, "prompt_set": name}
                scores = _scores(cell, measured, concept, by, partial(write, names))
                reference = scores if system is base else reference
                figures = _figures(scores, reference if system is not base else None, concept, by)
                rows += [
                    Row(system.method, system.conditioning, concept, name, metric, f.value, f.n, f.low, f.high)
                    for metric, f in figures.items()
                ]
                cells.append(_cell_summary(system, name, scores))
            if reference is not None and len(systems) > 1:
                spaces = [("frechet_distance", reference.embeddings)]
                spaces += [(_feature_metrics(features)[0], reference.features)] if features else []
                for metric, embedded in spaces:
                    if embedded is not None and too_small(len(embedded), embedded.shape[1]):
                        small.setdefault((metric, len(embedded), embedded.shape[1]), []).append(name)
    if not is_main():
        return []
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


def plan(prompts: Sequence[Prompt], images: int | None, seed: int) -> Plan:
    """`images` None means one a prompt."""
    return Plan(prompts, len(prompts) if images is None else images, seed)


def grids(folder: Path, *, count: int = 12) -> list[Grid]:
    """One before/after grid for each prompt set of an evaluated folder: its first `count` images, not chosen ones.

    An image is flagged where the detector's score lies above the threshold of the evaluation.
    """
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    first: dict[_Place, list[dict[str, Any]]] = {}
    for line in read_scores(folder):
        shown = first.setdefault(_place(line), [])
        if len(shown) < count:
            shown.append(line)
    made = []
    for name, total in about["images"].items():
        rows = []
        captions: list[str] = []
        for system in about["systems"]:
            key = (system["method"], system["conditioning"])
            shown = first[key, name]
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
    pair = [(row.system, row.prompt_set) for row in (found.before, found.after)]
    seen = _seen(folder, about, pair)
    return _paired(*(seen[place] for place in pair))


def compared(folder: Path, pairs: Iterable[tuple[tuple[str, str], tuple[str, str]]], prompt_set: str) -> list[float]:
    """For each pair of systems, p of McNemar's exact test that both show the concept as often on the same prompts and seeds. Pairs
    with a blocked image are left out. ValueError without a detector."""
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    if about["detector"] is None:
        raise ValueError(f"nobody looked for the concept in {folder}")
    wanted = [((a, prompt_set), (b, prompt_set)) for a, b in pairs]
    seen = _seen(folder, about, [place for pair in wanted for place in pair])
    return [_paired(seen[a], seen[b]) for a, b in wanted]


_BLOCKED = 2


def _seen(folder: Path, about: Mapping[str, Any], places: Iterable[_Place]) -> dict[_Place, np.ndarray]:
    """Of each image, in order, whether it is flagged (1, else 0) or `_BLOCKED`; a byte an image."""
    found = {place: bytearray() for place in places}
    for line in read_scores(folder):
        if (place := _place(line)) in found:
            found[place].append(_BLOCKED if line["blocked"] else _flagged(line, about))
    return {place: np.frombuffer(states, dtype=np.uint8) for place, states in found.items()}


def _paired(before: np.ndarray, after: np.ndarray) -> float:
    both = (before != _BLOCKED) & (after != _BLOCKED)
    return mcnemar(int((both & (before > after)).sum()), int((both & (before < after)).sum()))


def read_scores(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of an evaluation's scores.jsonl: of each prompt set, system after system, the images in order."""
    with open(folder / "scores.jsonl", encoding="utf-8", newline="\n") as lines:
        yield from map(json.loads, lines)


def _place(line: Mapping[str, Any]) -> _Place:
    return (line["method"], line["conditioning"]), line["prompt_set"]


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


def sample_missing(systems: Sequence[System], jobs: Mapping[str, Plan], folder: Path) -> None:
    """Every image that is not in `folder` yet, of each system and prompt set."""
    for i, system in enumerate(systems, 1):
        _sample_system(system, {name: _cell(folder, system, name, job) for name, job in jobs.items()}, f"{i} of {len(systems)}")


def _cell(folder: Path, system: System, name: str, job: Plan) -> _Cell:
    return _Cell(folder / "images" / system.folder / name, job)


def _sample_system(system: System, cells: Mapping[str, _Cell], place: str) -> None:
    """Samples every image of the system that is not there yet: several processes take whole batches in turn, main keeps them."""

    def there() -> int:
        for cell in cells.values():
            _clear(system, cell)
        return total - sum(len(batch) for cell in cells.values() for batch in _lacking(cell, system.batch))

    total = sum(len(cell.job) for cell in cells.values())
    done = from_main(there)
    if done == total:
        return
    title = f"sampling {system_name((system.method, system.conditioning))}, {place}"
    with progress(title, total, "images", done) as advance:
        for name, cell in cells.items():
            lacking = _lacking(cell, system.batch)
            while todo := from_main(partial(_some, lacking, _ASKED // system.batch)):
                own = [i for batch in mine(todo) for i in batch]
                made = ((i, png(image)) for i, image in zip(own, _images(system, name, cell.job, own), strict=False))
                for i, data in in_turn(todo, made):
                    with whole(cell.file(i)) as scratch:
                        scratch.write_bytes(data)
                    advance(1, name)


def _some(batches: Iterator[range], count: int) -> list[range]:
    """The next batches: `count`, but one at least; none behind the last."""
    return list(islice(batches, max(1, count)))


def _images(system: System, name: str, job: Plan, todo: Sequence[int]) -> Iterator[Image.Image]:
    """Images of the cell by their indices, one after the other."""
    if isinstance(system.images, Mapping):
        return (system.images[name][i] for i in todo)
    pairs = [job[i] for i in todo]
    return iter(system.images([prompt.text for prompt, _ in pairs], [seed for _, seed in pairs]))


def _lacking(cell: _Cell, size: int) -> Iterator[range]:
    """The batches of the cell in which an image is missing: they are made anew whole."""
    for start in range(0, len(cell.job), size):
        batch = range(start, min(start + size, len(cell.job)))
        if not all(cell.file(i).exists() for i in batch):
            yield batch


def _clear(system: System, cell: _Cell) -> None:
    """Removes the images of other settings, prompts or seeds, and notes in cell.json which those of the cell are."""
    about = cell.folder / "cell.json"
    if _is_text(about, _told(system, cell.job)):
        return
    settings = json.loads(json.dumps(dict(system.settings)))
    try:
        held = json.loads(about.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        held = {"settings": None, "prompts": [], "seeds": []}
    if held["settings"] != settings and cell.folder.exists():
        shutil.rmtree(cell.folder)
    same = list(zip(held["prompts"], held["seeds"], strict=True))
    for i, (prompt, seed) in enumerate(cell.job):
        if i >= len(same) or same[i] != (prompt.text, seed):
            cell.file(i).unlink(missing_ok=True)
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_pieces(about, _told(system, cell.job))


def _told(system: System, job: Plan) -> Iterator[str]:
    """A cell.json, in pieces: {"settings": ..., "prompts": [...], "seeds": [...]}."""
    yield f'{{"settings": {json.dumps(dict(system.settings), ensure_ascii=False)}, "prompts": ['
    yield from (f"{', ' if i else ''}{json.dumps(prompt.text, ensure_ascii=False)}" for i, (prompt, _) in enumerate(job))
    yield '], "seeds": ['
    yield from (f"{', ' if i else ''}{seed}" for i, (_, seed) in enumerate(job))
    yield "]}"


def _is_text(path: Path, pieces: Iterable[str]) -> bool:
    """Whether a file holds just this."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return all(file.read(len(piece)) == piece for piece in pieces) and not file.read(1)
    except (FileNotFoundError, UnicodeDecodeError):
        return False


def _measure(cell: _Cell, reference: _Cell | None, by: Instruments, advance: Advance, note: str) -> Measured | None:
    """Of one cell's images; kept beside them, and measured again only where an image or who measures has changed. Several processes
    take chunks in turn; main reads the images and keeps what was measured, and the others get nothing."""
    measured = Measured(cell.folder, _key(cell, reference, by), len(cell.job), _CHUNK) if is_main() else None
    done = from_main(lambda: measured.done if measured else 0)
    advance(done, note)
    read = [cell, *([reference] if reference and (by.backbone or by.lpips) else [])]
    for start in range(done, len(cell.job), _CHUNK * size()):
        ends = [min(start + _CHUNK * k, len(cell.job)) for k in range(size() + 1)]
        parts = [range(a, b) for a, b in pairwise(ends)]  # the last ones may be empty
        images = scatter(partial(_read, read, parts))
        own = parts[rank()]
        found = _look([prompt.text for prompt, _ in cell.job[own.start : own.stop]], *images, by=by) if own else None
        for chunk in filter(None, gather(found)):
            if measured:
                measured.append(chunk)
            advance(len(chunk), note)
    return measured


def _read(cells: Sequence[_Cell], parts: Sequence[range]) -> list[list[list[bytes]]]:
    """For each part, of each cell, the files of its images."""
    return [[cell.read(part) for cell in cells] for part in parts]


def _look(texts: Sequence[str], images: Sequence[bytes], others: Sequence[bytes] = (), *, by: Instruments) -> Chunk:
    """All that the instruments say of some images of these prompts; `others` are those of the same prompts and seeds that distances of
    pairs are taken to."""
    shown, beside = _load(images), _load(others)
    columns, matrices = {"blocked": blocked(shown)}, {}
    labels = {name: np.asarray(values) for name, values in by.detector(shown).items()} if by.detector else {}
    if by.backbone:
        matrices["images"] = np.asarray(by.backbone.images(shown))
        columns["clip_score"] = clip_scores(matrices["images"], np.asarray(by.backbone.texts(texts)))
        if beside:
            columns["perceptual_distance"] = perceptual_distances(by.backbone.layers(shown), by.backbone.layers(beside))
    if by.features:
        matrices["features"] = np.asarray(by.features.images(shown))
    if by.lpips and beside:
        columns["lpips"] = np.asarray(by.lpips.distances(shown, beside))
    return Chunk(columns, labels, matrices)


def _load(files: Sequence[bytes]) -> list[Image.Image]:
    return [Image.open(BytesIO(file)).convert("RGB") for file in files]


def _key(cell: _Cell, reference: _Cell | None, by: Instruments) -> str:
    """Of all that the scores of a cell depend on: who measures, what the images are of, and when each was made."""
    known = hashlib.sha256(json.dumps(by.names).encode())
    for some in filter(None, (cell, reference)):
        with open(some.folder / "cell.json", "rb") as told:
            while part := told.read(1 << 16):
                known.update(part)
        for i in range(len(some.job)):
            known.update(b" %d" % some.file(i).stat().st_mtime_ns)
    return known.hexdigest()


def _scores(cell: _Cell, measured: Measured, concept: str, by: Instruments, write: Callable[..., object]) -> _Scores:
    """Everything measured on a cell's images, and a line of each, written."""
    limits: dict[str, float] = {}
    arrays: dict[str, np.ndarray] = {}
    start = 0
    for chunk in measured.chunks():
        part = slice(start, start + len(chunk))
        pairs = cell.job[part]
        expected = [prompt.expected for prompt, _ in pairs]
        limits = limits or ({name: threshold_of(by.detector, name) for name in chunk.labels} if by.detector else {})
        own = {
            name: attribute_scores(expected, chunk.labels, chunk.columns["blocked"], some, limits) for name, some in _ASKED_FOR
        }
        if by.detector:
            own["concept"] = chunk.labels[concept]
        for name, values in {**chunk.columns, **own}.items():
            arrays.setdefault(name, np.empty(len(cell.job), values.dtype))[part] = values
        extra = {name: arrays[name] for name in _LINE if name in arrays}
        for i, (prompt, seed) in enumerate(pairs, start):
            raw = {name: values[i - start].item() for name, values in chunk.labels.items()}
            more = {name: float(values[i]) for name, values in extra.items() if not np.isnan(values[i])}
            file = cell.file(i).relative_to(cell.folder.parents[2]).as_posix()
            about = {"prompt": prompt.text, "seed": seed, "file": file, "blocked": bool(arrays["blocked"][i]), "scores": raw}
            write({**about, **more})
        start = part.stop
    return _Scores(
        blocked=arrays["blocked"],
        concept=arrays.get("concept"),
        fidelity=arrays["fidelity"],
        character=arrays["character"],
        embeddings=measured.rows("images"),
        clip=arrays.get("clip_score"),
        perceptual=arrays.get("perceptual_distance"),
        features=measured.rows("features"),
        lpips=arrays.get("lpips"),
    )


_ASKED_FOR = (("fidelity", ATTRIBUTES), ("character", ("character",)))
_LINE = ("clip_score", "perceptual_distance", "fidelity", "lpips")  # of each image, beside the detector's scores


def _figures(scores: _Scores, reference: _Scores | None, concept: str, by: Instruments) -> dict[str, Interval]:
    """Interval by metric name, for what could be measured."""
    figures: dict[str, Interval] = {}
    if by.detector and scores.concept is not None:
        figures["concept_rate"] = concept_rate(scores.concept, threshold_of(by.detector, concept), scores.blocked)
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


@contextmanager
def _lines(path: Path) -> Iterator[Callable[..., object]]:
    """Yields what writes objects as one, in a line of JSON; the file is there, whole, when the block ends."""
    with whole(path) as scratch, open(scratch, "w", encoding="utf-8") as file:
        yield lambda *parts: file.write(json.dumps({k: v for part in parts for k, v in part.items()}, ensure_ascii=False) + "\n")
