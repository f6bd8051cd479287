"""Fréchet distance of two image sets, as Gaussians in an embedding space.

On CLIP embeddings this is not FID, which is defined by one Inception network: name the backbone beside each value and compare
values of one backbone and one n only.
"""

import numpy as np

from hfi.metrics.interval import Z95, Interval

RESAMPLES, FEW_RESAMPLES, WIDE = 100, 20, 512


def frechet_distance(a: np.ndarray, b: np.ndarray, *, paired: bool = False, seed: int = 0) -> Interval:
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
        rows = rng.integers(len(a), size=len(a))
        others = rows if paired else rng.integers(len(b), size=len(b))
        values.append(distance(a[rows], b[others]))
    spread = Z95 * float(np.std(values, ddof=1))
    return Interval(value, min(len(a), len(b)), max(0.0, value - spread), value + spread)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """The squared Fréchet (2-Wasserstein) distance of the two Gaussians, sample covariances with n - 1.

    With S_a = A'A and S_b = B'B, S_a S_b has the eigenvalues of (A B')(A B')', so tr (S_a S_b)^(1/2) is the sum of the singular
    values of A B'. No matrix square root is taken, which is where complex parts and lost digits come from.
    """
    mean_a, root_a = _moments(a)
    mean_b, root_b = _moments(b)
    cross = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    value = np.sum((mean_a - mean_b) ** 2) + np.sum(root_a**2) + np.sum(root_b**2) - 2 * cross
    return max(0.0, float(value))


def too_small(n: int, width: int) -> bool:
    """Whether n images cannot span a covariance of this width: the distance is then badly too high."""
    return n <= width


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D] and a root R [min(N, D), D] of the sample covariance, R'R = S, in double precision."""
    x = np.asarray(x, dtype=np.float64)
    mean = x.mean(axis=0)
    root: np.ndarray = np.linalg.qr((x - mean) / np.sqrt(len(x) - 1), mode="r")  # type: ignore[assignment]
    return mean, root
