"""The two losses of HFI's reward model (Kim et al. 2024), and how well scores agree with judgments."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def binary_loss(r: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of (r - y)^2; r, y in [0, 1], weight >= 0 (here: how many people judged the image), all [N] -> []."""
    return (weight * (r - y) ** 2).sum() / weight.sum()


def ranking_loss(scores: Sequence[Tensor], places: Sequence[Sequence[int]]) -> Tensor:
    """Bradley-Terry: mean over rankings of the mean over its M(M-1)/2 pairs of -log sigmoid(r+ - r-).

    Each element holds the scores [M] of one ranking's images, most of the concept first, and their places [M], equal where they
    tie. (The paper's 1/M^2 is the same up to a constant factor for equal M.)
    """
    return torch.stack([pair_losses(r, place).mean() for r, place in zip(scores, places, strict=True)]).mean()


def pair_losses(r: Tensor, place: Sequence[int]) -> Tensor:
    """-log sigmoid(r_i - r_j) for each i < j: scores [M], most of the concept first -> [M(M-1)/2]. Of two in one place it is the
    mean of both orders: a tie is half a win for each."""
    i, j = torch.triu_indices(len(r), len(r), offset=1)
    where = torch.as_tensor(place, device=r.device)
    first, second = -F.logsigmoid(r[i] - r[j]), -F.logsigmoid(r[j] - r[i])
    return torch.where(where[i] == where[j], (first + second) / 2, first)


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative one (ties count half): scores [N], positive bool [N]. NaN without both."""
    a, b = scores[positive], scores[~positive]
    if not len(a) or not len(b):
        return float("nan")
    difference = a[:, None] - b[None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


def auc_chance_limit(positives: int, negatives: int) -> float:
    """An AUC that scores without information exceed in 5 % of cases: 0.5 + 1.645 sd of the Mann-Whitney statistic."""
    if not positives or not negatives:
        return float("inf")
    return 0.5 + 1.645 * float(np.sqrt((positives + negatives + 1) / (12 * positives * negatives)))


def pair_accuracy(scores: np.ndarray, place: Sequence[int]) -> float:
    """Share of the pairs of one ranking in the right order (equal scores count half): scores [M], most of the concept first, and
    their places. Two in one place have no order and are left out; NaN where all are."""
    i, j = np.triu_indices(len(scores), 1)
    apart = np.asarray(place)[i] != np.asarray(place)[j]
    i, j = i[apart], j[apart]
    return float(((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])).mean()) if len(i) else float("nan")


def pair_accuracy_deviation(place: Sequence[int]) -> float:
    """Standard deviation of `pair_accuracy` over scores without information, on a ranking of these places.

    Over P pairs it is (1 + S / P) / 2 with Kendall's S, whose variance by chance is that of M images less that of each tie of t:
    (M (M-1) (2M + 5) - sum t (t-1) (2t + 5)) / 18 (Kendall, "Rank Correlation Methods").
    """
    sizes = np.bincount(place)
    count = np.array([len(place), *sizes])
    variance = count * (count - 1) * (2 * count + 5) / 18
    pairs = count * (count - 1) / 2
    return float(np.sqrt(variance[0] - variance[1:].sum()) / (2 * (pairs[0] - pairs[1:].sum())))


def pair_chance_limit(deviations: Sequence[float]) -> float:
    """What the mean pair accuracy of independent rankings, of these `pair_accuracy_deviation`s, exceeds in 5 % of cases by chance."""
    if not deviations:
        return float("inf")
    return 0.5 + 1.645 * float(np.sqrt(np.sum(np.square(deviations)))) / len(deviations)


@dataclass(frozen=True)
class Bin:
    """Units (images, or pairs of images) of about the same predicted chance: its mean `score`, and the share of `answers` about
    them that said yes; both by answer."""

    low: float
    high: float
    units: int
    answers: int
    score: float
    share: float


def calibration(p: np.ndarray, yes: np.ndarray, answers: np.ndarray, bins: int = 10) -> list[Bin]:
    """Predicted chances p [N] beside the `yes` of `answers` [N] given, in equal bins of 0..1; empty ones are left out. The upper
    bound belongs to the next bin, 1 to the last."""
    place = np.minimum((np.asarray(p) * bins + 1e-9).astype(int), bins - 1)  # 0.3 * 10 must not fall below 3
    found = []
    for b in np.unique(place):
        rows = place == b
        asked = answers[rows].sum()
        score, share = (p * answers)[rows].sum() / asked, yes[rows].sum() / asked
        found.append(Bin(b / bins, (b + 1) / bins, int(rows.sum()), int(asked), float(score), float(share)))
    return found


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error (Naeini et al. 2015): the mean distance between score and share, by answer."""
    if not bins:
        return float("nan")
    return float(np.average([abs(b.score - b.share) for b in bins], weights=[b.answers for b in bins]))


def brier(p: np.ndarray, yes: np.ndarray, answers: np.ndarray) -> float:
    """Mean of (p - answer)^2 over all answers, each 1 or 0 (Brier 1950). Always saying 1/2 gives 0.25."""
    return float((yes * (1 - p) ** 2 + (answers - yes) * p**2).sum() / answers.sum())
