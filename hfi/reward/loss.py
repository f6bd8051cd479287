"""The two losses of HFI's reward model (Kim et al. 2024), and how well scores agree with judgments."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def binary_loss(r: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of (r - y)^2; r, y in [0, 1], weight >= 0 (here: how many people judged the image), all [N] -> []."""
    return (weight * (r - y) ** 2).sum() / weight.sum()


def ranking_loss(scores: Sequence[Tensor]) -> Tensor:
    """Bradley-Terry: mean over rankings of the mean over its M(M-1)/2 pairs of -log sigmoid(r+ - r-).

    Each element holds the scores [M] of one ranking's images, most of the concept first. (The paper's 1/M^2 is the same up to a
    constant factor for equal M.)
    """
    return torch.stack([pair_losses(r).mean() for r in scores]).mean()


def pair_losses(r: Tensor) -> Tensor:
    """-log sigmoid(r_i - r_j) for each i < j: scores [M], most of the concept first -> [M(M-1)/2]."""
    i, j = torch.triu_indices(len(r), len(r), offset=1)
    return -F.logsigmoid(r[i] - r[j])


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


def pair_accuracy(scores: Sequence[np.ndarray]) -> float:
    """Share of pairs in the right order (ties count half), mean over rankings; each [M], most of the concept first."""
    shares = []
    for r in scores:
        i, j = np.triu_indices(len(r), 1)
        shares.append(float(((r[i] > r[j]) + 0.5 * (r[i] == r[j])).mean()))
    return float(np.mean(shares)) if shares else float("nan")


def pair_chance_limit(sizes: Sequence[int]) -> float:
    """A pair accuracy that scores without information exceed in 5 % of cases, for independent rankings of M images each.

    Accuracy is (1 + tau) / 2 with Kendall's tau, whose variance by chance is 2 (2M + 5) / (9 M (M - 1)).
    """
    if not sizes:
        return float("inf")
    variance = [2 * (2 * m + 5) / (9 * m * (m - 1)) / 4 for m in sizes]
    return 0.5 + 1.645 * float(np.sqrt(np.sum(variance))) / len(sizes)
