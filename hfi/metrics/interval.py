"""95 % intervals: Wilson's for a share of images, the bootstrap over images for a mean. And whether two paired shares differ."""

import math
from dataclasses import dataclass

import numpy as np

Z95 = 1.959963984540054  # normal quantile of 0.975
RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A figure from n images and its 95 % bounds; None where there is none (n = 0, or a metric without an interval)."""

    value: float | None
    n: int
    low: float | None
    high: float | None


def wilson(hits: float, n: int) -> Interval:
    """The share hits/n with Wilson's score interval (1927), which stays honest at 0 and at 1. `hits` may be a sum of shares."""
    if not 0 <= hits <= n:
        raise ValueError(f"{hits} hits of {n}")
    if n == 0:
        return Interval(None, 0, None, None)
    p, z2 = hits / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if hits == 0 else centre - half  # exact at the ends, where rounding leaves 1e-18
    high = 1.0 if hits == n else centre + half
    return Interval(p, n, low, high)


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p of McNemar's test (1947) that two shares of the same n pairs are equal. Only pairs that differ count:
    `lost` are hits in the first alone, `gained` in the second alone."""
    n = lost + gained
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n)


def bootstrap_mean(scores: np.ndarray, *, share: bool = False, seed: int = 0) -> Interval:
    """Mean of per-image scores [N] with the percentile bootstrap over images (2000 resamples, own generator).

    `share` says that scores lie in 0..1. If all of them sit on one end the bootstrap would claim certainty, so Wilson's bounds
    for n hits of n (or 0 of n) are given instead.
    """
    scores = np.asarray(scores, dtype=np.float64)
    n = len(scores)
    if n == 0:
        return Interval(None, 0, None, None)
    value = float(scores.mean())
    if share and value in (0.0, 1.0):
        return wilson(round(value) * n, n)
    rng = np.random.default_rng(seed)
    means = [scores[rng.integers(n, size=n)].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(value, n, float(low), float(high))
