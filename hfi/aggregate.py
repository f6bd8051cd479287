"""From several people's verdicts to one soft label an image, and how far people agree.

'unsure', 'skip' and 'disturbing' are missing data: they say nothing about the image and are never read as "no". Where one person
judged the same images twice, in two campaigns, the later judgment counts. A manager's decision stands in the place of all votes on
its images, the last one where there are several: a decided image is what the decision says, and still counts as many judgments as
it had votes; one decided to be unsure, to be skipped or too disturbing has no label. Agreement is that of the votes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np

from hfi.judgments import CONTENT, Anew, Judgment, Judgments, JudgmentSet

Method = Literal["majority", "dawid-skene"]
Places = Sequence[Sequence[str]]  # the images of a ranking by place, most of the concept first; those of one place tie


@dataclass(frozen=True)
class SoftLabel:
    """`y`: how much the image shows the concept, 0 to 1; `count`: how many judgments stand behind it."""

    y: float
    count: int


def soft_labels(judgments: JudgmentSet, method: Method = "majority") -> dict[str, SoftLabel]:
    """A label for each image with at least one verdict that says something; images in the order of their first judgment.

    majority: the share of those who see it. An even vote stays 0.5: it is kept as "people do not agree", never rounded.
    dawid-skene: the probability under the model of Dawid and Skene (1979), which weighs people by their estimated errors; what was
    decided is known, so it also tells how often each person errs.
    """
    return {sha: label for sha, label, _ in labelled(judgments, method)}


def labelled(judgments: Judgments, method: Method = "majority") -> Iterable[tuple[str, SoftLabel, bool]]:
    """`soft_labels` one after the other, and whether a manager decided; to be gone through again and again. By majority, the votes on a
    few images are in memory, and read anew each time; the other method weighs all of them together, as numbers, once."""
    if method == "majority":
        return Anew(partial(_by_majority, judgments))
    people: dict[str, int] = {}
    found = _joined(_votes(some, people) for _, some in judgments.parts())
    weighed = dawid_skene(found.votes, len(found.images), len(people), known=found.known) if len(found.images) else found.known
    return Anew(partial(_each, found, weighed))


def _by_majority(judgments: Judgments) -> Iterator[tuple[str, SoftLabel, bool]]:
    for found in (_votes(some, {}) for _, some in judgments.parts()):
        shows = np.bincount(found.votes[:, 0], weights=found.votes[:, 2], minlength=len(found.images))
        yield from _each(found, np.where(np.isnan(found.known), shows / np.maximum(found.counts, 1), found.known))


def _each(found: "_Votes", y: np.ndarray) -> Iterator[tuple[str, SoftLabel, bool]]:
    for i, name in enumerate(found.images):
        yield name.decode(), SoftLabel(float(y[i]), int(max(found.counts[i], 1))), not np.isnan(found.known[i])


def tally(judgments: JudgmentSet) -> dict[str, tuple[int, int]]:
    """How many people say of an image that it shows the concept, and how many that it does not; of one that was decided, all of
    them say what the decision says."""
    said: dict[str, tuple[int, int]] = {}
    for sha, label in soft_labels(judgments).items():
        shows = round(label.y * label.count)
        said[sha] = (shows, label.count - shows)
    return said


def rankings(judgments: JudgmentSet) -> list[Places]:
    """Each ranking's images by place, most of the concept first."""
    decided = decisions(judgments)
    voted = [j.places for j in _latest(judgments) if j.verdict == "ranked" and frozenset(j.images) not in decided]
    return [*voted, *(j.places for j in decided.values() if j.verdict == "ranked")]


def mean_places(judgments: JudgmentSet) -> dict[str, SoftLabel]:
    """Each ranked image's mean place, 1 the first and 0 the last; those that tie are in the middle of theirs."""
    places: dict[str, list[float]] = {}
    for order in rankings(judgments):
        before, last = 0, sum(map(len, order)) - 1
        for tied in order:
            for sha in tied:
                places.setdefault(sha, []).append(1 - (before + (len(tied) - 1) / 2) / max(last, 1))
            before += len(tied)
    return {sha: SoftLabel(sum(found) / len(found), len(found)) for sha, found in places.items()}


def pairs(order: Places) -> Iterator[tuple[str, str, bool]]:
    """(more, less, whether the two tie) of every two images of a ranking."""
    flat = [(image, place) for place, tied in enumerate(order) for image in tied]
    for (more, above), (less, below) in combinations(flat, 2):
        yield more, less, above == below


def decisions(judgments: JudgmentSet) -> dict[frozenset[str], Judgment]:
    """A manager's last decision on each set of images that was decided."""
    made = sorted((j for j in judgments.judgments if j.adjudicated), key=lambda j: j.time)
    return {frozenset(j.images): j for j in made}


def _latest(judgments: JudgmentSet) -> list[Judgment]:
    """One judgment by each person of the same images, the last that they gave, in the order of the set; decisions left out."""
    last: dict[tuple[str, frozenset[str]], Judgment] = {}
    for j in sorted(judgments.judgments, key=lambda j: j.time):  # ISO times in UTC sort as text
        if not j.adjudicated:
            last[j.annotator, frozenset(j.images)] = j
    kept = {id(j) for j in last.values()}
    return [j for j in judgments.judgments if id(j) in kept]


@dataclass(frozen=True)
class _Votes:
    """`images` [N]: their names as bytes. `votes` [V, 3] of (image, person, 0 or 1), `counts` [N] of each image's votes; `known` [N]:
    what was decided, else NaN."""

    images: np.ndarray
    votes: np.ndarray
    counts: np.ndarray
    known: np.ndarray


def _joined(parts: Iterable[_Votes]) -> _Votes:
    images, votes, counts, known, start = [], [], [], [], 0
    for part in parts:
        images.append(part.images)
        votes.append(part.votes + np.array([start, 0, 0]))
        counts.append(part.counts)
        known.append(part.known)
        start += len(part.images)
    return _Votes(*(np.concatenate(some) for some in (images, votes, counts, known)))


def _votes(judgments: JudgmentSet, people: dict[str, int]) -> _Votes:
    """Of all the judgments on some images. `people` are those known so far, by their numbers; new ones are added."""
    decided = {j.images[0]: CONTENT.get(j.verdict) for j in decisions(judgments).values() if judgments.question == "binary"}
    images: dict[str, int] = {}
    votes = []
    for j in _latest(judgments):
        if j.verdict in CONTENT and decided.get(j.images[0], 0.0) is not None:
            image = images.setdefault(j.images[0], len(images))
            votes.append((image, people.setdefault(j.annotator, len(people)), int(CONTENT[j.verdict])))
    for sha, y in decided.items():
        if y is not None:
            images.setdefault(sha, len(images))
    table = np.array(votes, dtype=np.int64).reshape(-1, 3)
    known = np.array([np.nan if (y := decided.get(sha)) is None else y for sha in images], dtype=np.float64)
    names = np.array([sha.encode() for sha in images], dtype="S")
    return _Votes(names, table, np.bincount(table[:, 0], minlength=len(images)), known)


def dawid_skene(
    votes: np.ndarray, images: int, people: int, iterations: int = 200, *, known: np.ndarray | None = None, prior: float = 1.0
) -> np.ndarray:
    """P(image shows the concept) [images] by expectation maximisation; votes [V, 3] of (image, person, 0 or 1). `known` [images] is
    the truth where it is a number, and NaN elsewhere.

    Each person has a chance to say yes of an image that shows it and of one that does not; one imagined right and one imagined
    wrong answer each (`prior`: a Beta(2, 2)) keep somebody with few votes from counting as infallible.
    """
    image, person, said = votes.T
    known = np.full(images, np.nan) if known is None else known
    counts = np.bincount(image, minlength=images)
    p = np.where(np.isnan(known), np.bincount(image, weights=said, minlength=images) / np.maximum(counts, 1), known)
    for _ in range(iterations):
        yes_of = {}
        for truth, weight in ((1, p[image]), (0, 1 - p[image])):
            yes = np.bincount(person, weights=weight * said, minlength=people) + prior
            yes_of[truth] = yes / (np.bincount(person, weights=weight, minlength=people) + 2 * prior)
        share = (p.sum() + prior) / (images + 2 * prior)
        like = {t: np.log(np.where(said == 1, yes_of[t][person], 1 - yes_of[t][person])) for t in (0, 1)}
        odds = np.log(share / (1 - share)) + np.bincount(image, weights=like[1] - like[0], minlength=images)
        new = np.where(np.isnan(known), 1 / (1 + np.exp(-np.clip(odds, -500, 500))), known)
        if np.abs(new - p).max() < 1e-9:
            return new
        p = new
    return p


@dataclass(frozen=True)
class Annotator:
    """`answers`: verdicts that say something; `shows`: share of yes among them, None of a ranking; `accuracy`: share equal to the
    majority of the others on the same unit (even votes and units judged alone left out), None where there is none."""

    name: str
    simulated: bool
    judgments: int
    answers: int
    shows: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha (nominal) with a 95 % bootstrap interval; None where too little was judged twice.

    `units`: images judged by two people or more; of rankings, pairs of images that two people or more ordered, each with the
    value "which comes first", so that alpha is about the mean Kendall tau between two people. Whoever ties a pair gives it no
    order and is left out of it. `raw`: mean share of pairs of people who agree on a unit.
    """

    alpha: float | None
    low: float | None
    high: float | None
    raw: float | None
    units: int
    annotators: tuple[Annotator, ...]


MIN_GROUPS = 2  # images (or ranked sets of images) judged at least twice, below which agreement is not stated

Unit = Mapping[str, bool]  # person -> value


def agreement(judgments: JudgmentSet, *, bootstrap: int = 1000, seed: int = 0) -> Agreement:
    """See `Agreement`. The bootstrap draws images, or ranked sets of images, since the pairs of one set are not independent."""
    groups = _groups(judgments)
    people = tuple(_annotators(judgments, [unit for group in groups for unit in group]))
    shared = [units for group in groups if (units := [unit for unit in group if len(unit) > 1])]
    count = sum(map(len, shared))
    if len(shared) < MIN_GROUPS:
        return Agreement(None, None, None, None, count, people)
    raw = float(np.mean([_agreeing(unit) for group in shared for unit in group]))
    table = np.array([np.sum([coincidences(unit) for unit in group], axis=0) for group in shared])  # [groups, 3]
    alpha = float(krippendorff_alpha(table.sum(0)))
    if np.isnan(alpha):
        return Agreement(None, None, None, raw, count, people)
    kinds, counts = np.unique(table, axis=0, return_counts=True)  # few: drawing how often each occurs is drawing the groups
    drawn = np.random.default_rng(seed).multinomial(len(table), counts / counts.sum(), size=bootstrap)
    spread = krippendorff_alpha(drawn @ kinds)
    spread = spread[~np.isnan(spread)]
    low, high = (float(np.quantile(spread, q)) for q in (0.025, 0.975)) if len(spread) else (None, None)
    return Agreement(alpha, low, high, raw, count, people)


def coincidences(unit: Unit) -> tuple[float, float, float]:
    """A unit's part of Krippendorff's coincidence matrix: no with no, no with yes, yes with yes. m values weigh 1/(m-1) each."""
    yes = sum(unit.values())
    no = len(unit) - yes
    return no * (no - 1) / (len(unit) - 1), no * yes / (len(unit) - 1), yes * (yes - 1) / (len(unit) - 1)


def krippendorff_alpha(table: np.ndarray) -> np.ndarray:
    """Nominal alpha for two values, of summed coincidences [..., 3]: 1 - (n - 1) o_01 / (n_0 n_1).

    NaN where all answers are the same, so that no disagreement could be expected. Krippendorff, "Computing Krippendorff's
    Alpha-Reliability" (2011), B.
    """
    no, mixed, yes = np.moveaxis(np.asarray(table, dtype=np.float64), -1, 0)
    n0, n1 = no + mixed, yes + mixed
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((n0 > 0) & (n1 > 0), 1 - (n0 + n1 - 1) * mixed / (n0 * n1), np.nan)


def _agreeing(unit: Unit) -> float:
    """Share of the pairs of people who say the same."""
    n, yes = len(unit), sum(unit.values())
    return (yes * (yes - 1) + (n - yes) * (n - yes - 1)) / (n * (n - 1))


def _groups(judgments: JudgmentSet) -> list[list[Unit]]:
    """Units in groups that are independent of one another: each image alone, or the pairs of each ranked set of images."""
    by_images: dict[frozenset[str], dict[str, Judgment]] = {}
    for j in _latest(judgments):
        if j.verdict in CONTENT or j.verdict == "ranked":
            by_images.setdefault(frozenset(j.images), {})[j.annotator] = j
    if judgments.question == "binary":
        return [[{name: j.verdict == "shows" for name, j in said.items()}] for said in by_images.values()]
    return [_pair_units(said) for said in by_images.values()]


def _pair_units(said: Mapping[str, Judgment]) -> list[Unit]:
    """Who puts the first of two images (by name) before the second, of every two images of a set."""
    units: dict[tuple[str, str], dict[str, bool]] = {}
    for name, j in said.items():
        for more, less, tied in pairs(j.places if j.verdict == "ranked" else ()):
            if not tied:
                units.setdefault((min(more, less), max(more, less)), {})[name] = more < less
    return list(units.values())


def _annotators(judgments: JudgmentSet, units: list[Unit]) -> list[Annotator]:
    by_name: dict[str, list[Judgment]] = {}
    for j in _latest(judgments):
        by_name.setdefault(j.annotator, []).append(j)
    hits_of: dict[str, list[bool]] = {}
    for unit in units:
        yes = sum(unit.values())
        for name, value in unit.items():
            lead = 2 * (yes - value) - (len(unit) - 1)  # of yes over no, among the others
            if lead:
                hits_of.setdefault(name, []).append(value == (lead > 0))
    found = []
    for name, mine in by_name.items():
        answers = [j.verdict for j in mine if j.verdict in CONTENT or j.verdict == "ranked"]
        hits = hits_of.get(name)
        shows = answers.count("shows") / len(answers) if answers and judgments.question == "binary" else None
        accuracy = float(np.mean(hits)) if hits else None
        found.append(Annotator(name, mine[0].simulated, len(mine), len(answers), shows, accuracy))
    return found
