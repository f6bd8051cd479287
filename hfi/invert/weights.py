"""Rewards -> which images inversion learns from, and how much each counts."""

import numpy as np

from hfi.errors import NoJudgments


def flagged(scores: np.ndarray, k: int, *, binary: bool) -> np.ndarray:
    """Rows of the k best-scoring images, best first: scores [N] -> [<= k].

    Of a binary question's images only those that rather show the concept (r > 0.5) are taken. NoJudgments where there is none.
    """
    order = np.argsort(-scores, kind="stable")[:k]
    kept = order[scores[order] > 0.5] if binary else order
    if not len(kept):
        raise NoJudgments(
            "no image scores above 0.5, so there is nothing to learn the concept from: judge more images that show it"
        )
    return kept


def sample_weights(scores: np.ndarray, everyone: np.ndarray, *, binary: bool) -> np.ndarray:
    """Weights [K] with mean 1 of the flagged images' scores [K]; `everyone` [N] are the scores of all judged images.

    Binary: proportional to r. Ranking: r has no zero, and a negative weight would push the likelihood of an image down without
    bound; so proportional to sigmoid(r - mean of everyone), the chance by Bradley-Terry that the image beats an average one.
    """
    raw = scores.astype(np.float64) if binary else 1 / (1 + np.exp(-(scores.astype(np.float64) - everyone.mean())))
    return raw / raw.mean()
