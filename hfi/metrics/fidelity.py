"""Does the image still show what its prompt names?"""

from collections.abc import Mapping, Sequence

import numpy as np

from hfi.metrics.interval import Interval, bootstrap_mean
from hfi.prompts import ATTRIBUTES


def attribute_scores(
    expected: Sequence[Mapping[str, str]],
    seen: Mapping[str, np.ndarray],
    blocked: np.ndarray,
    attributes: Sequence[str] = ATTRIBUTES,
    thresholds: Mapping[str, float] | None = None,
) -> np.ndarray:
    """Per image, the share of named attributes that the detector finds right: float [N], NaN where the prompt names none.

    `expected[i]` maps attribute -> label for image i, `seen[attribute]` holds the detector's labels [N], or scores [N]: above the
    attribute's threshold, 1/2 unless given, they mean 'yes', else 'no'. A blocked image has nothing right: whoever asked for a king
    got no king. On prompts near a removed concept this is its specificity.
    """
    over = thresholds or {}
    labels = {
        a: seen[a] if np.asarray(seen[a]).dtype.kind == "U" else np.where(seen[a] > over.get(a, 0.5), "yes", "no")
        for a in attributes
        if a in seen
    }
    scores = np.full(len(expected), np.nan)
    for i, wanted in enumerate(expected):
        named = [a for a in attributes if a in wanted and a in labels]
        if named:
            scores[i] = 0.0 if blocked[i] else np.mean([str(labels[a][i]) == wanted[a] for a in named])
    return scores


def fidelity(scores: np.ndarray) -> Interval:
    """Mean of `attribute_scores` over the images whose prompt names something, bootstrap by image."""
    return bootstrap_mean(scores[~np.isnan(scores)], share=True)
