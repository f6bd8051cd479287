"""Perceptual distance of two images from the layers of a CLIP image tower.

Built as LPIPS is (Zhang et al. 2018): features of several layers, unit length at each position, squared difference averaged
over positions. It differs in the network (CLIP's transformer instead of AlexNet or VGG) and in having no learned weight per
channel, so its values are not LPIPS values and compare within one backbone only. It needs no download.
"""

from collections.abc import Sequence

import numpy as np

from hfi.metrics.clip_score import unit
from hfi.metrics.interval import Interval, bootstrap_mean


def perceptual_distances(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
    """Mean over layers and patches of 1 - cosine, half the squared difference of unit vectors: float64 [N] in 0..2.

    `a[k]` and `b[k]` are the features of layer k, [N, P, D_k]; row i of both comes from the same prompt and seed.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"features of {len(a)} and {len(b)} layers")
    per_layer = [np.mean(1 - np.sum(unit(x) * unit(y), axis=-1), axis=1) for x, y in zip(a, b, strict=True)]
    return np.maximum(0.0, np.mean(per_layer, axis=0))


def perceptual_distance(distances: np.ndarray) -> Interval:
    """Mean distance with a bootstrap interval over image pairs."""
    return bootstrap_mean(distances)
