"""Who looks at the images: a detector gives per-image scores by name, with its own name, version and threshold.

Scores are kept raw; a threshold is applied when a figure is made, so that another threshold needs no new images.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast

import numpy as np
from PIL import Image

from hfi.errors import HfiError, UsageError


class Detector(Protocol):
    """images -> scores by name, each [N]: probabilities (float) of concepts, labels (str) of attributes.

    `threshold` is the score above which a concept counts as shown; an optional mapping `thresholds` overrides it by concept.
    Called with no image it returns its names with empty arrays.
    """

    name: str
    version: str
    threshold: float

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]: ...


def threshold_of(detector: Detector, concept: str) -> float:
    """The score above which this detector says that an image shows the concept."""
    thresholds: Mapping[str, float] = getattr(detector, "thresholds", {})
    return thresholds.get(concept, detector.threshold)


def check_knows(detector: Detector, concept: str) -> None:
    """HfiError unless the detector scores this concept."""
    known = [name for name, scores in detector([]).items() if np.asarray(scores).dtype.kind != "U"]
    if concept not in known:
        raise HfiError(
            f"detector {detector.name!r} does not know the concept {concept!r}: it knows {', '.join(known)}; "
            "choose another with --detector, or 'none'"
        )


class RewardDetector:
    """A reward model as the detector of its own concept. It learned from the judgments that steered the removal, so it can
    agree with a removal that fools it: a second opinion, not a referee."""

    threshold = 0.5

    def __init__(self, score: Callable[[list[Image.Image]], np.ndarray], concept: str, version: str) -> None:
        self.score, self.concept, self.name, self.version = score, concept, "reward", version

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        return {self.concept: self.score(list(images)) if len(images) else np.zeros(0, dtype=np.float32)}


def _portraits(argument: str, concept: str) -> Detector:
    from hfi.portraits.detector import load_detector

    return cast(Detector, load_detector(Path(argument) if argument else None))


def _reward(argument: str, concept: str) -> Detector:
    if not argument:
        raise UsageError("detector 'reward' needs its file: give --detector reward:PATH")
    from hfi.reward.model import RewardModel

    reward = RewardModel.load(Path(argument))
    if reward.question != "binary":
        raise HfiError(f"{argument} learned from rankings and has no threshold: choose another --detector, or none")
    version = hashlib.sha256(Path(argument).read_bytes()).hexdigest()[:12]
    return RewardDetector(reward.score, reward.metadata.get("concept", concept), version)


DETECTORS: dict[str, Callable[[str, str], Detector]] = {"portraits": _portraits, "reward": _reward}


def check_name(spec: str) -> None:
    """UsageError for a detector that does not exist."""
    if spec.partition(":")[0] not in (*DETECTORS, "none"):
        raise UsageError(f"unknown detector {spec!r}: choose {', '.join(DETECTORS)} or none")


def load_detector(spec: str, concept: str) -> Detector | None:
    """The detector named `name` or `name:argument` (`reward:PATH`), None for 'none'. UsageError for an unknown name."""
    check_name(spec)
    name, _, argument = spec.partition(":")
    if name == "none":
        return None
    detector = DETECTORS[name](argument, concept)
    check_knows(detector, concept)
    return detector
