"""CLIP score: cosine of image and prompt embedding, as in the SDD tables (0..1 scale, not torchmetrics' 0..100)."""

import numpy as np

from hfi.metrics.interval import Interval, bootstrap_mean


def clip_scores(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Cosine of each image with its own prompt: images [N, D], texts [N, D] -> float64 [N] in -1..1.

    Embeddings are normalised here in double precision, whatever their length. Negative cosines stay: clipping them at 0 (as
    Hessel et al. 2021 do) would bend the mean.
    """
    if images.shape != texts.shape:
        raise ValueError(f"image embeddings {images.shape} and text embeddings {texts.shape} differ in shape")
    return np.sum(unit(images) * unit(texts), axis=1)


def clip_score(scores: np.ndarray) -> Interval:
    """Mean cosine with a bootstrap interval."""
    return bootstrap_mean(scores)


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1, float64; a zero row stays zero."""
    x = np.asarray(x, dtype=np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
