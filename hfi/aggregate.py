"""From several people's verdicts to one soft label an image, and how far people agree.

'unsure', 'skip' and 'disturbing' are missing data: they say nothing about the image and are never read as "no".
"""

from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hfi.judgments import CONTENT, JudgmentSet

Method = Literal["majority", "dawid-skene"]


@dataclass(frozen=True)
class SoftLabel:
    """`y`: how much the image shows the concept, 0 to 1; `count`: how many judgments stand behind it."""

    y: float
    count: int


def soft_labels(judgments: JudgmentSet, method: Method = "majority") -> dict[str, SoftLabel]:
    """A label for each image with at least one verdict that says something; images in the order of their first judgment.

    majority: the share of those who see it. An even vote stays 0.5: it is kept as "people do not agree", never rounded.
    dawid-skene: the probability under the model of Dawid and Skene (1979), which weighs people by their estimated errors.
    """
    images, people, votes = _votes(judgments)
    if not len(votes):
        return {}
    counts = np.bincount(votes[:, 0], minlength=len(images))
    if method == "majority":
        y = np.bincount(votes[:, 0], weights=votes[:, 2], minlength=len(images)) / counts
    else:
        y = dawid_skene(votes, len(images), len(people))
    return {sha: SoftLabel(float(y[i]), int(counts[i])) for i, sha in enumerate(images)}


def rankings(judgments: JudgmentSet) -> list[tuple[str, ...]]:
    """Each ranking's images, most of the concept first."""
    return [j.images for j in judgments.judgments if j.verdict == "ranked"]


def _votes(judgments: JudgmentSet) -> tuple[list[str], list[str], np.ndarray]:
    """Images, people, and votes [V, 3] of (image, person, 0 or 1)."""
    images: dict[str, int] = {}
    people: dict[str, int] = {}
    votes = []
    for j in judgments.judgments:
        if j.verdict in CONTENT:
            image = images.setdefault(j.images[0], len(images))
            votes.append((image, people.setdefault(j.annotator, len(people)), int(CONTENT[j.verdict])))
    return list(images), list(people), np.array(votes, dtype=np.int64).reshape(-1, 3)


def dawid_skene(votes: np.ndarray, images: int, people: int, iterations: int = 200) -> np.ndarray:
    """P(image shows the concept) [images] by expectation maximisation; votes [V, 3] of (image, person, 0 or 1).

    Each person has a chance to say yes of an image that shows it and of one that does not; one imagined right and one imagined wrong
    answer each (a Beta(2, 2) prior) keep somebody with few votes from counting as infallible.
    """
    image, person, said = votes.T
    p = np.bincount(image, weights=said, minlength=images) / np.bincount(image, minlength=images)
    for _ in range(iterations):
        yes_of = {}
        for truth, weight in ((1, p[image]), (0, 1 - p[image])):
            yes = np.bincount(person, weights=weight * said, minlength=people) + 1
            yes_of[truth] = yes / (np.bincount(person, weights=weight, minlength=people) + 2)
        prior = (p.sum() + 1) / (images + 2)
        like = {t: np.log(np.where(said == 1, yes_of[t][person], 1 - yes_of[t][person])) for t in (0, 1)}
        odds = np.log(prior / (1 - prior)) + np.bincount(image, weights=like[1] - like[0], minlength=images)
        new = 1 / (1 + np.exp(-np.clip(odds, -500, 500)))
        if np.abs(new - p).max() < 1e-9:
            return new
        p = new
    return p


@dataclass(frozen=True)
class Annotator:
    """`answers`: verdicts that say something; `shows`: share of yes among them; `accuracy`: share equal to the majority of the others
    on the same image (even votes and images judged alone left out), None where there is none."""

    name: str
    simulated: bool
    judgments: int
    answers: int
    shows: float | None
    accuracy: float | None


@dataclass(frozen=True)
class Agreement:
    """Krippendorff's alpha (nominal) with a 95 % bootstrap interval over images; None where too few images were judged twice.
    `raw`: mean share of agreeing pairs; `units`: images judged at least twice."""

    alpha: float | None
    low: float | None
    high: float | None
    raw: float | None
    units: int
    annotators: tuple[Annotator, ...]


MIN_UNITS = 2  # images judged at least twice, below which agreement is not stated


def agreement(judgments: JudgmentSet, *, bootstrap: int = 1000, seed: int = 0) -> Agreement:
    images, _, votes = _votes(judgments)
    yes = np.bincount(votes[:, 0], weights=votes[:, 2], minlength=len(images))
    total = np.bincount(votes[:, 0], minlength=len(images))
    twice = total >= 2
    n1, n = yes[twice], total[twice].astype(float)
    people = tuple(_annotators(judgments))
    if len(n) < MIN_UNITS:
        return Agreement(None, None, None, None, len(n), people)
    alpha = krippendorff_alpha(n1, n)
    raw = float(((n1 * (n1 - 1) + (n - n1) * (n - n1 - 1)) / (n * (n - 1))).mean())
    rng = np.random.default_rng(seed)
    draws = (rng.integers(len(n), size=len(n)) for _ in range(bootstrap))
    spread = [value for draw in draws if (value := krippendorff_alpha(n1[draw], n[draw])) is not None]
    low, high = (float(np.quantile(spread, q)) for q in (0.025, 0.975)) if alpha is not None else (None, None)
    return Agreement(alpha, low, high, raw, len(n), people)


def krippendorff_alpha(yes: np.ndarray, total: np.ndarray) -> float | None:
    """Nominal alpha for two values: yes [U] of total [U] >= 2 answers of each unit. 1 - observed / expected disagreement; None where
    all answers are the same, so that no disagreement could be expected."""
    no = total - yes
    n, n1 = total.sum(), yes.sum()
    observed = (2 * yes * no / (total - 1)).sum() / n
    expected = 2 * n1 * (n - n1) / (n * (n - 1))
    return None if expected == 0 else float(1 - observed / expected)


def _annotators(judgments: JudgmentSet) -> list[Annotator]:
    said: dict[str, dict[str, float]] = defaultdict(dict)  # image -> person -> vote
    for j in judgments.judgments:
        if j.verdict in CONTENT:
            said[j.images[0]][j.annotator] = CONTENT[j.verdict]
    found = []
    for name in dict.fromkeys(j.annotator for j in judgments.judgments):
        mine = [j for j in judgments.judgments if j.annotator == name]
        answers = [CONTENT[j.verdict] for j in mine if j.verdict in CONTENT]
        hits = []
        for votes in said.values():
            others = [vote for person, vote in votes.items() if person != name]
            if name in votes and others and np.mean(others) != 0.5:
                hits.append(votes[name] == (np.mean(others) > 0.5))
        shows = float(np.mean(answers)) if answers else None
        accuracy = float(np.mean(hits)) if hits else None
        found.append(Annotator(name, mine[0].simulated, len(mine), len(answers), shows, accuracy))
    return found
