"""Does the image still show what its prompt names?"""

from collections.abc import Mapping, Sequence

import numpy as np

from hfi.metrics.interval import Interval, bootstrap_mean

ATTRIBUTES = ("character", "hair", "background")


def attribute_scores(
    expected: Sequence[Mapping[str, str]],
    seen: Mapping[str, np.ndarray],
    blocked: np.ndarray,
    attributes: Sequence[str] = ATTRIBUTES,
) -> np.ndarray:
    """Per image, the share of named attributes that the detector finds right: float [N], NaN where the prompt names none.

    `expected[i]` maps attribute -> label for image i, `seen[attribute]` holds the detector's labels [N]. A blocked image has
    nothing right: whoever asked for a king got no king.
    """
    scores = np.full(len(expected), np.nan)
    for i, wanted in enumerate(expected):
        named = [a for a in attributes if a in wanted and a in seen]
        if named:
            scores[i] = 0.0 if blocked[i] else np.mean([str(seen[a][i]) == wanted[a] for a in named])
    return scores


def fidelity(scores: np.ndarray) -> Interval:
    """Mean of `attribute_scores` over the images whose prompt names something, bootstrap by image."""
    return bootstrap_mean(scores[~np.isnan(scores)], share=True)
