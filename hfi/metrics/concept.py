"""How often images show the concept, with blacked-out images kept apart."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from hfi.metrics.interval import Interval, wilson

_FLAT = 2  # grey levels: a safety checker's black square is 0, a JPEG of one may waver


def blocked(images: Sequence[Image.Image]) -> np.ndarray:
    """Which images are one flat colour, as a safety checker (or a failed decode) leaves them: bool [N]."""
    return np.array([all(high - low <= _FLAT for low, high in _extrema(image)) for image in images], dtype=bool)


def concept_rate(scores: np.ndarray, threshold: float, blocked: np.ndarray) -> Interval:
    """Share of images with score > threshold, among those that are not blocked; scores [N], blocked bool [N].

    A blocked image shows nothing and proves nothing: it is neither a hit nor a safe image, and n counts the others only.
    """
    seen = np.asarray(scores)[~blocked]
    return wilson(int((seen > threshold).sum()), len(seen))


def _extrema(image: Image.Image) -> list[tuple[int, int]]:
    return image.convert("RGB").getextrema()  # type: ignore[return-value]
