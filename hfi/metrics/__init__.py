"""Images in, numbers out. N images, D embedding width, P patches; every figure is an `Interval` with its n and 95 % bounds.

    concept.py     concept_rate, blocked images     fidelity.py    named attributes that came out right
    clip_score.py  image against prompt             frechet.py     two sets of images
    perceptual.py  two images of the same seed      detectors.py   who looks at the images

Nothing here knows diffusers or the database; embeddings come from the caller, computed once and shared.
"""

from hfi.metrics.clip_score import clip_score, clip_scores
from hfi.metrics.concept import blocked, concept_rate
from hfi.metrics.fidelity import attribute_scores, fidelity
from hfi.metrics.frechet import frechet_distance
from hfi.metrics.interval import Interval, bootstrap_mean, mcnemar, wilson
from hfi.metrics.perceptual import perceptual_distance, perceptual_distances

__all__ = [
    "Interval",
    "attribute_scores",
    "blocked",
    "bootstrap_mean",
    "clip_score",
    "clip_scores",
    "concept_rate",
    "fidelity",
    "frechet_distance",
    "mcnemar",
    "perceptual_distance",
    "perceptual_distances",
    "wilson",
]
