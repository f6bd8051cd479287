"""A folder of images that somebody else made -> figures, each with its n, its 95 % bounds and what it was measured by.

Images are taken in the natural order of their paths (2 before 10). Every file is looked at; what is no sound image is named and
left out. Two folders pair by path without suffix (`a/7.png` with `a/7.jpg`), never by order, where one missing file would shift
all that follow. Prompts go to images by a `file` column if they have one, else in order, and then their numbers must be equal.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hfi.embed import ClipBackbone
from hfi.errors import HfiError
from hfi.files import visible, write_text
from hfi.images import SUFFIXES, safe_open
from hfi.metrics import (
    Interval,
    blocked,
    bootstrap_mean,
    clip_score,
    clip_scores,
    concept_rate,
    frechet_distance,
    perceptual_distance,
    perceptual_distances,
    wilson,
)
from hfi.metrics.detectors import Detector, concepts_of, threshold_of
from hfi.metrics.features import Features, is_fid
from hfi.metrics.frechet import too_small
from hfi.metrics.kernel import kernel_distance
from hfi.metrics.lpips import Lpips, check_fits
from hfi.progress import Advance, progress
from hfi.prompts import Prompt

FID_IMAGES = 2048  # fewer cannot span FID's 2048 features; published values have 10,000 to 50,000
_CHUNK = 16  # images in memory at once


@dataclass(frozen=True)
class Folder:
    """The sound images below a folder and what was skipped: (path below the folder, why), both in natural order.

    `order` holds what takes a prompt's place: the images, and files that are called one and are not.
    """

    path: Path
    images: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]
    order: tuple[str, ...]

    def load(self, names: Sequence[str]) -> list[Image.Image]:
        return [safe_open(self.path / name) for name in names]


@dataclass(frozen=True)
class Figure:
    """One number: of n images, 95 % bounds low and high (None where there are none), and everything that it depends on.

    `by` says what measured it (name, version, threshold, width, ...). Rates are in 0..1.
    """

    metric: str
    of: str | None
    value: float | None
    n: int
    low: float | None
    high: float | None
    by: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measurement:
    figures: tuple[Figure, ...]
    warnings: tuple[str, ...]
    scores: tuple[dict[str, Any], ...]  # one for each image: file, blocked, and every raw score

    def write_scores(self, path: Path) -> None:
        """JSON lines, whole or not at all."""
        write_text(path, "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in self.scores))


@dataclass(frozen=True)
class Instruments:
    """Who measures. Detectors by the name that they get in the scores; `backbone` is the CLIP model of CLIP score, perceptual
    distance and one more pair of set distances."""

    detectors: Mapping[str, Detector] = field(default_factory=dict)
    features: Sequence[Features] = ()
    backbone: ClipBackbone | None = None
    lpips: Lpips | None = None


def look(path: Path) -> Folder:
    """Opens every file below a folder but hidden ones. HfiError where none is a sound image."""
    check_folder(path)
    below = [p for p in path.rglob("*") if p.is_file() and not any(part[0] == "." for part in p.relative_to(path).parts)]
    names = sorted((p.relative_to(path).as_posix() for p in below), key=_natural)
    sound, skipped = [], []
    with progress("looking", len(names), "files") as advance:
        for name in names:
            try:
                safe_open(path / name)
                sound.append(name)
            except HfiError as e:
                skipped.append((name, str(e).removeprefix(f"{visible(path / name)} ")))
            advance(1, "")
    if not sound:
        raise HfiError(f"none of the {len(names)} files below {path} is a readable image: give a folder of images")
    order = [name for name in names if name in set(sound) or Path(name).suffix.lower() in SUFFIXES]
    return Folder(path, tuple(sound), tuple(skipped), tuple(order))


def check_folder(path: Path) -> None:
    """HfiError unless there is one."""
    if not path.is_dir():
        raise HfiError(f"no folder {path}: give the folder that holds the images")


def assign(folder: Folder, prompts: Sequence[Prompt], source: str) -> dict[str, str]:
    """The prompt of each image, by its name. HfiError where it is not certain which one belongs to which image."""
    named = [prompt.tags.get("file") for prompt in prompts]
    if any(named):
        texts = {_stem(str(name)): prompt.text for name, prompt in zip(named, prompts, strict=True)}
        if not all(named) or len(texts) < len(prompts):
            raise HfiError(f"the column 'file' of {source} must name another image in each row")
        if missing := [name for name in folder.images if _stem(name) not in texts]:
            raise HfiError(f"{source} names no prompt for {len(missing)} images, such as {missing[0]}: add a row for each")
        return {name: texts[_stem(name)] for name in folder.images}
    if len(prompts) != len(folder.order):
        raise HfiError(
            f"{len(prompts)} prompts in {source} for {len(folder.order)} images: give one prompt an image in the order of the file "
            "names, or a CSV with the columns file and prompt"
        )
    texts = {name: prompt.text for name, prompt in zip(folder.order, prompts, strict=True)}
    return {name: texts[name] for name in folder.images}


def pairs(folder: Folder, reference: Folder) -> list[tuple[str, str]]:
    """Images of one path without suffix in both; where a folder has several of one, none of them."""
    mine, theirs = _unique(folder.images), _unique(reference.images)
    return [(name, theirs[stem]) for stem, name in mine.items() if stem in theirs]


def measure(folder: Folder, reference: Folder | None, texts: Mapping[str, str] | None, instruments: Instruments) -> Measurement:
    """Everything that the instruments can say of the images; distances are to the reference, the CLIP score to `texts` by name."""
    matched = pairs(folder, reference) if reference and (instruments.backbone or instruments.lpips) else []
    total = len(folder.images) + (len(reference.images) if reference else 0) + len(matched)
    with progress("measuring", total, "images") as advance:
        scores = _score(folder, texts, instruments, advance)
        figures, warnings = _own_figures(folder, scores, texts, instruments)
        if reference:
            others = _embed(reference, instruments, advance)
            aligned = pairs(folder, reference) == list(zip(folder.images, reference.images, strict=False))
            aligned = aligned and len(folder.images) == len(reference.images)
            found, said = _distances(scores, others, instruments, paired=aligned)
            figures, warnings = figures + found, warnings + said
            found, said = _paired(folder, reference, matched, scores, instruments, advance)
            figures, warnings = figures + found, warnings + said
    return Measurement(tuple(figures), tuple(warnings), tuple(_lines(folder, scores, texts)))


@dataclass
class _Scores:
    """Of the images in order; arrays [N], embeddings [N, D] in the order of `_spaces`. `pairwise` is filled where images pair."""

    blocked: np.ndarray
    seen: dict[str, dict[str, np.ndarray]]
    embedded: list[np.ndarray]
    clip: np.ndarray | None
    pairwise: dict[str, dict[str, float]] = field(default_factory=dict)  # metric -> image -> distance


def _spaces(instruments: Instruments) -> list[Features]:
    return [*([instruments.backbone] if instruments.backbone else []), *instruments.features]


def _score(folder: Folder, texts: Mapping[str, str] | None, instruments: Instruments, advance: Advance) -> _Scores:
    flat: list[np.ndarray] = []
    seen: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in instruments.detectors}
    embedded: list[list[np.ndarray]] = [[] for _ in _spaces(instruments)]
    for names in _chunks(folder.images):
        images = folder.load(names)
        flat.append(blocked(images))
        for key, detector in instruments.detectors.items():
            for name, values in detector(images).items():
                seen[key].setdefault(name, []).append(np.asarray(values))
        for kept, space in zip(embedded, _spaces(instruments), strict=True):
            kept.append(space.images(images))
        advance(len(images), "")
    joined = [np.concatenate(kept) for kept in embedded]
    clip = None
    if texts is not None and instruments.backbone:
        clip = clip_scores(joined[0], instruments.backbone.texts([texts[name] for name in folder.images]))
    labels = {key: {name: np.concatenate(parts) for name, parts in found.items()} for key, found in seen.items()}
    return _Scores(np.concatenate(flat), labels, joined, clip)


def _embed(reference: Folder, instruments: Instruments, advance: Advance) -> list[np.ndarray]:
    embedded: list[list[np.ndarray]] = [[] for _ in _spaces(instruments)]
    for names in _chunks(reference.images):
        images = reference.load(names)
        for kept, space in zip(embedded, _spaces(instruments), strict=True):
            kept.append(space.images(images))
        advance(len(images), "")
    return [np.concatenate(kept) for kept in embedded]


def _own_figures(
    folder: Folder, scores: _Scores, texts: Mapping[str, str] | None, instruments: Instruments
) -> tuple[list[Figure], list[str]]:
    """What needs no reference."""
    hidden, n = int(scores.blocked.sum()), len(folder.images)
    figures = [_figure("blocked_rate", None, wilson(hidden, n), {})]
    warnings = []
    if hidden:
        warnings.append(
            f"{hidden} of {n} images are one flat colour, as a safety checker leaves them: they count as blocked, are left out of "
            "concept rates, and are part of the CLIP score and of all distances"
        )
    for key, detector in instruments.detectors.items():
        for concept in concepts_of(detector):
            raw, threshold = scores.seen[key][concept], threshold_of(detector, concept)
            by: dict[str, Any] = {"detector": key, "version": detector.version, "threshold": threshold}
            if recorded := getattr(detector, "recorded", ()):
                by["at"] = {f"{t:g}": concept_rate(raw, t, scores.blocked).value for t in recorded}
            figures.append(_figure("concept_rate", concept, concept_rate(raw, threshold, scores.blocked), by))
    if scores.clip is not None and instruments.backbone:
        figures.append(_figure("clip_score", None, clip_score(scores.clip), _made_by(instruments.backbone)))
    return figures, warnings


def _distances(
    scores: _Scores, others: Sequence[np.ndarray], instruments: Instruments, *, paired: bool
) -> tuple[list[Figure], list[str]]:
    """Of the two sets, in each space."""
    figures, warnings = [], []
    for space, a, b in zip(_spaces(instruments), scores.embedded, others, strict=True):
        width, by = a.shape[1], {**_made_by(space), "images": len(a), "reference_images": len(b)}
        by["width"] = width
        n = min(len(a), len(b))
        frechet = frechet_distance(a, b, paired=paired)
        kernel = kernel_distance(a, b)
        fid = is_fid(space)
        figures.append(_figure("fid" if fid else "frechet_distance", None, frechet, by))
        more = {"std": kernel.std, "subsets": kernel.subsets, "subset_size": kernel.subset_size}
        figures.append(_figure("kid" if fid else "kernel_distance", None, kernel.interval, {**by, **more}))
        if too_small(n, width) or (fid and n < FID_IMAGES):
            name = "FID" if fid else f"the Fréchet distance in {space.name}"
            warnings.append(
                f"{n} images are too few for {name}, which has {width} dimensions: its value is too high in itself and compares only "
                f"with others of {n} images; the kernel distance does not have this fault"
            )
        if len(a) != len(b):
            warnings.append(f"{len(a)} images against {len(b)} of the reference: set distances depend on both numbers")
    return figures, list(dict.fromkeys(warnings))


def _paired(
    folder: Folder,
    reference: Folder,
    matched: Sequence[tuple[str, str]],
    scores: _Scores,
    instruments: Instruments,
    advance: Advance,
) -> tuple[list[Figure], list[str]]:
    """Of the images that have a partner in the reference."""
    backbone, lpips = instruments.backbone, instruments.lpips
    if not backbone and not lpips:
        return [], []
    if not matched:
        return [], ["no image of the reference is called as one of the images: distances of pairs are left out"]
    found: dict[str, list[np.ndarray]] = {}
    for part in _chunks(matched):
        mine, theirs = folder.load([a for a, _ in part]), reference.load([b for _, b in part])
        if lpips:
            for (name, _), x, y in zip(part, mine, theirs, strict=True):
                try:
                    check_fits(x, y)
                except HfiError as e:
                    raise HfiError(f"{name}: {e}") from None
            found.setdefault("lpips", []).append(lpips.distances(mine, theirs))
        if backbone:
            found.setdefault("perceptual_distance", []).append(
                perceptual_distances(backbone.layers(mine), backbone.layers(theirs))
            )
        advance(len(part), "")
    figures = []
    for metric, parts in found.items():
        distances = np.concatenate(parts)
        scores.pairwise[metric] = {name: float(d) for (name, _), d in zip(matched, distances, strict=True)}
        if metric == "lpips" and lpips:
            figures.append(_figure(metric, None, bootstrap_mean(distances), _made_by(lpips)))
        elif backbone:
            figures.append(_figure(metric, None, perceptual_distance(distances), _made_by(backbone)))
    alone = len(folder.images) + len(reference.images) - 2 * len(matched)
    said = [f"{len(matched)} images pair by name, {alone} have no partner: those are in no distance of pairs"] if alone else []
    return figures, said


def _figure(metric: str, of: str | None, value: Interval, by: Mapping[str, Any]) -> Figure:
    return Figure(metric, of, value.value, value.n, value.low, value.high, by)


def _made_by(space: Any) -> dict[str, Any]:
    return {"features": space.name, "version": space.content[:12] if len(space.content) == 64 else space.content}


def _lines(folder: Folder, scores: _Scores, texts: Mapping[str, str] | None) -> Iterator[dict[str, Any]]:
    for i, name in enumerate(folder.images):
        line: dict[str, Any] = {"file": name, "blocked": bool(scores.blocked[i])}
        if texts is not None:
            line["prompt"] = texts[name]
        line["scores"] = {key: {k: v[i].item() for k, v in found.items()} for key, found in scores.seen.items()}
        if scores.clip is not None:
            line["clip_score"] = float(scores.clip[i])
        yield line | {metric: by_name[name] for metric, by_name in scores.pairwise.items() if name in by_name}


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts 'img2' before 'img10'."""
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in re.split(r"(\d+)", name)]


def _stem(name: str) -> str:
    return Path(name).with_suffix("").as_posix()


def _unique(names: Sequence[str]) -> dict[str, str]:
    stems = Counter(map(_stem, names))
    return {_stem(name): name for name in names if stems[_stem(name)] == 1}


def _chunks(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for i in range(0, len(items), _CHUNK):
        yield items[i : i + _CHUNK]
