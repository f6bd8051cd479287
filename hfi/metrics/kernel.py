"""Kernel distance of two image sets: KID where the embedding is FID's Inception (Binkowski et al. 2018).

MMD^2 with k(x, y) = (x.y / D + 1)^3, unbiased: it has no floor that falls with the number of images, as the Fréchet distance has,
so few images make it wider but not higher. Of equal distributions it is 0 on average, hence below 0 about half of the time; of a
set and itself it is always a little below.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hfi.metrics.interval import Z95, Interval
from hfi.metrics.rows import BLOCK, Rows, blocks

SUBSETS, SUBSET_SIZE = 100, 1000  # of the authors' code


@dataclass(frozen=True)
class KernelDistance:
    """`interval` holds the value; `std` is the published spread, over `subsets` subsets of `subset_size`; None of one subset."""

    interval: Interval
    std: float | None
    subsets: int
    subset_size: int


def kernel_distance(a: Rows, b: Rows, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0) -> KernelDistance:
    """Of embeddings a [N, D] and b [M, D]; the order of the two makes no difference. n is the smaller of N and M.

    Where a set is larger than `subset_size`, the mean over random subsets; else all images are the one subset. The bounds are
    value +- 1.96 standard errors of the jackknife over images (all of them), which needs three of each.
    """
    a, b = sorted((a, b), key=lambda x: (len(x), sum(float(part.sum()) for _, part in blocks(x))))
    n = len(a)
    if n < 2:
        return KernelDistance(Interval(None, n, None, None), None, 0, n)
    within_a, within_b, (across_a, across_b) = _within(a), _within(b), _across(a, b)
    if len(b) <= subset_size:
        value, std, subsets, size = float(mmd2(within_a.sum(), within_b.sum(), across_a.sum(), n, len(b))), None, 1, n
    else:
        rng = np.random.default_rng(seed)
        size = min(subset_size, n)
        found = []
        for _ in range(subsets):
            x, y = (np.asarray(z[rng.choice(len(z), size, replace=False)], dtype=np.float64) for z in (a, b))
            found.append(mmd2(_within(x).sum(), _within(y).sum(), _across(x, y)[0].sum(), size, size))
        value, std = float(np.mean(found)), float(np.std(found))
    half = Z95 * _jackknife(within_a, within_b, across_a, across_b)
    bounds = (value - half, value + half) if n > 2 else (None, None)
    return KernelDistance(Interval(value, n, *bounds), std, subsets, size)


def mmd2(within_a: Any, within_b: Any, across: Any, n: int, m: int) -> Any:
    """From the sums of k over ordered pairs: of different images of a (n images), of b (m), and over all pairs of an a with a b.
    Numbers, or arrays of several of each."""
    return within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * across / (n * m)


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """x [N, D], y [M, D] -> [N, M]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _across(x: Rows, y: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Row sums [N] and column sums [M] of the kernel, computed in blocks."""
    rows, columns = np.zeros(len(x)), np.zeros(len(y))
    for i, some in blocks(x, BLOCK):
        for j, others in blocks(y, BLOCK):
            part = kernel(some, others)
            rows[i] += part.sum(axis=1)
            columns[j] += part.sum(axis=0)
    return rows, columns


def _within(x: Rows) -> np.ndarray:
    """Sum of the kernel with every other row: [N]."""
    own = [(np.sum(part * part, axis=1) / part.shape[1] + 1) ** 3 for _, part in blocks(x, BLOCK)]
    return _across(x, x)[0] - np.concatenate(own)


def _jackknife(within_a: np.ndarray, within_b: np.ndarray, across_a: np.ndarray, across_b: np.ndarray) -> float:
    """Standard error of MMD^2, from the values that leaving out one image of either set would give."""
    n, m = len(within_a), len(within_b)
    if min(n, m) < 3:
        return 0.0
    total_a, total_b, total = within_a.sum(), within_b.sum(), across_a.sum()
    without_a = mmd2(total_a - 2 * within_a, total_b, total - across_a, n - 1, m)
    without_b = mmd2(total_a, total_b - 2 * within_b, total - across_b, n, m - 1)
    return float(np.sqrt((n - 1) * np.var(without_a) + (m - 1) * np.var(without_b)))
