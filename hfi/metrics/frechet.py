"""Fréchet distance of two image sets, as Gaussians in an embedding space.

On CLIP embeddings this is not FID, which is defined by one Inception network: name the backbone beside each value and compare
values of one backbone and one n only.
"""

from collections.abc import Iterator

import numpy as np

from hfi.metrics.interval import Z95, Interval
from hfi.metrics.rows import Rows, blocks

RESAMPLES, FEW_RESAMPLES, WIDE = 100, 20, 512


def frechet_distance(a: Rows, b: Rows, *, paired: bool = False, seed: int = 0) -> Interval:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)) of embeddings a [N, D] and b [M, D]; n is the smaller of N and M.

    The value of a small sample is too high (see `too_small`). Resampling repeats that bias, so percentiles of the bootstrap
    would lie beside the value; the interval is value +- 1.96 bootstrap standard deviations, cut at 0, and tells sampling
    spread only. It rests on 100 resamples, on 20 where both n and the width are above 512, as each then takes seconds. `paired`
    resamples both sets by the same rows (the same seeds).
    """
    if min(len(a), len(b)) < 2:
        return Interval(None, min(len(a), len(b)), None, None)
    if paired and len(a) != len(b):
        raise ValueError(f"paired sets of {len(a)} and {len(b)} images")
    value = distance(a, b)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(RESAMPLES if min(len(a), len(b), a.shape[1]) <= WIDE else FEW_RESAMPLES):
        drawn = np.bincount(rng.integers(len(a), size=len(a)), minlength=len(a))
        others = drawn if paired else np.bincount(rng.integers(len(b), size=len(b)), minlength=len(b))
        values.append(distance(a, b, drawn, others))
    spread = Z95 * float(np.std(values, ddof=1))
    return Interval(value, min(len(a), len(b)), max(0.0, value - spread), value + spread)


def distance(a: Rows, b: Rows, times_a: np.ndarray | None = None, times_b: np.ndarray | None = None) -> float:
    """The squared Fréchet (2-Wasserstein) distance of the two Gaussians, sample covariances with n - 1. `times_a` [N] and `times_b`
    [M]: how often each row counts, once unless given.

    With S_a = A'A and S_b = B'B, S_a S_b has the eigenvalues of (A B')(A B')', so tr (S_a S_b)^(1/2) is the sum of the singular
    values of A B'. No matrix square root is taken, which is where complex parts and lost digits come from.
    """
    mean_a, root_a = _moments(a, times_a)
    mean_b, root_b = _moments(b, times_b)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    value = np.sum((mean_a - mean_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2 * cross
    return max(0.0, float(value))


def too_small(n: int, width: int) -> bool:
    """Whether n images cannot span a covariance of this width: the distance is then badly too high."""
    return n <= width


def _moments(x: Rows, times: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and a root R [min(N, D), D] of the sample covariance, R'R = S, in double precision. R is that of a block of centred
    rows, then that of R and the next block under one another, and so on: as sound as one of all rows, whose squares would not be."""
    n = len(x) if times is None else int(times.sum())
    mean = sum((part * often).sum(axis=0) for part, often in _counted(x, times)) / n
    root = np.zeros((0, x.shape[1]))
    for part, often in _counted(x, times):
        centred = (part - mean) * np.sqrt(often) / np.sqrt(n - 1)
        root = np.linalg.qr(np.concatenate([root, centred]), mode="r")  # type: ignore[assignment]
    return mean, root


def _counted(x: Rows, times: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of rows [B, D] with how often each counts [B, 1]; those that do not count are left out."""
    for place, part in blocks(x):
        often = np.ones((len(part), 1)) if times is None else times[place, None]
        counts = often[:, 0] > 0
        yield part[counts], often[counts]
