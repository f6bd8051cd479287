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
    Two more options: `concepts` names what it is for, where it scores more beside (all probabilities otherwise), and `recorded`
    lists thresholds that others' figures were made with. `version` names everything that a figure depends on beside the
    threshold. Called with no image it returns its names with empty arrays.
    """

    name: str
    version: str
    threshold: float

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]: ...


def threshold_of(detector: Detector, concept: str) -> float:
    """The score above which this detector says that an image shows the concept."""
    thresholds: Mapping[str, float] = getattr(detector, "thresholds", {})
    return thresholds.get(concept, detector.threshold)


def concepts_of(detector: Detector) -> tuple[str, ...]:
    """The concepts that it is for."""
    return tuple(getattr(detector, "concepts", None) or _scored(detector))


def check_knows(detector: Detector, concept: str) -> None:
    """HfiError unless the detector scores this concept."""
    if concept not in (known := _scored(detector)):
        raise HfiError(
            f"detector {detector.name!r} does not know the concept {concept!r}: it knows {', '.join(known)}; choose another with "
            f"--detector, or 'none', or let one that it knows stand for it with {known[0]}@{detector.name}"
        )


def _scored(detector: Detector) -> list[str]:
    return [name for name, scores in detector([]).items() if np.asarray(scores).dtype.kind != "U"]


class Answering:
    """A detector whose own concept answers for one that is called otherwise here: `nudity@nudenet` for a concept `naked`."""

    def __init__(self, detector: Detector, own: str, concept: str) -> None:
        check_knows(detector, own)
        self.detector, self.own, self.concepts = detector, own, (concept,)
        self.name, self.threshold = detector.name, threshold_of(detector, own)
        self.version = detector.version if own == concept else f"{detector.version}, {own} for {concept}"
        self.recorded = getattr(detector, "recorded", ())

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        scores = self.detector(images)
        return {**scores, self.concepts[0]: scores[self.own]}


class AnyOf:
    """One detector of several concepts at once, named "a+b": shown where any of them is. The joint score is the largest of score -
    threshold, hence shown above 0; the raw scores of each stay beside it. HfiError for a concept that the detector does not know."""

    threshold = 0.0

    def __init__(self, detector: Detector, concepts: Sequence[str]) -> None:
        for concept in concepts:
            check_knows(detector, concept)
        limits = {concept: threshold_of(detector, concept) for concept in concepts}
        self.detector, self.thresholds = detector, limits
        self.concepts = ("+".join(concepts),)
        self.name = detector.name
        self.version = f"{detector.version}, any of {', '.join(f'{c} > {t:g}' for c, t in limits.items())}"

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        scores = self.detector(images)
        margins = [np.asarray(scores[concept]) - limit for concept, limit in self.thresholds.items()]
        return {**scores, self.concepts[0]: np.max(margins, axis=0)}


class RewardDetector:
    """A reward model as the detector of its own concept. It learned from the judgments that steered the removal, so it can
    agree with a removal that fools it: a second opinion, not a referee."""

    threshold = 0.5

    def __init__(self, score: Callable[[list[Image.Image]], np.ndarray], concept: str, version: str) -> None:
        self.score, self.concept, self.name, self.version = score, concept, "reward", version

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        return {self.concept: self.score(list(images)) if len(images) else np.zeros(0, dtype=np.float32)}


def _portraits(argument: str, concept: str | None) -> Detector:
    from hfi.portraits.detector import load_detector

    return cast(Detector, load_detector(Path(argument) if argument else None))


def _reward(argument: str, concept: str | None) -> Detector:
    if not argument:
        raise UsageError("detector 'reward' needs its file: give --detector reward:PATH")
    from hfi.reward.model import RewardModel

    reward = RewardModel.load(Path(argument))
    if reward.question != "binary":
        raise HfiError(f"{argument} learned from rankings and has no threshold: choose another --detector, or none")
    version = hashlib.sha256(Path(argument).read_bytes()).hexdigest()[:12]
    return RewardDetector(reward.score, reward.metadata.get("concept", concept or "concept"), version)


def _nudenet(argument: str, concept: str | None) -> Detector:
    from hfi.metrics.nudity import from_argument

    return from_argument(argument)


def _open_nsfw(argument: str, concept: str | None) -> Detector:
    from hfi.metrics.nsfw import OpenNSFW

    return OpenNSFW()


def _q16(argument: str, concept: str | None) -> Detector:
    from hfi.metrics.q16 import from_argument

    return from_argument(argument)


DETECTORS: dict[str, Callable[[str, str | None], Detector]] = {
    "portraits": _portraits,
    "reward": _reward,
    "nudenet": _nudenet,
    "open_nsfw": _open_nsfw,
    "q16": _q16,
}


def check_name(spec: str) -> None:
    """UsageError for a detector that does not exist."""
    if _split(spec)[1] not in (*DETECTORS, "none"):
        raise UsageError(f"unknown detector {spec!r}: choose {', '.join(DETECTORS)} or none")


def exact_detector(spec: str) -> str:
    """`q16:ID:FILE` with the commit of a hub id; any other as it is."""
    _, name, argument = _split(spec)
    reference, _, file = argument.rpartition(":")
    if name != "q16" or not reference or not file:
        return spec
    from hfi.embed import exact

    return f"{spec.removesuffix(argument)}{exact(reference)}:{file}"


def load_detector(spec: str, concept: str | None) -> Detector | None:
    """The detector named `name` or `name:argument` (`reward:PATH`), None for 'none'. UsageError for an unknown name.

    It must know `concept`, or each of "a+b". `ITS_CONCEPT@name:argument` lets one of its concepts answer for `concept`, which is
    called otherwise. Without a concept it is for whatever it knows, or for ITS_CONCEPT alone.
    """
    check_name(spec)
    own, name, argument = _split(spec)
    if name == "none":
        return None
    detector = DETECTORS[name](argument, concept)
    if own:
        return Answering(detector, own, concept or own)
    if concept and "+" in concept:
        return AnyOf(detector, concept.split("+"))
    if concept:
        check_knows(detector, concept)
    return detector


def _split(spec: str) -> tuple[str, str, str]:
    """`ITS_CONCEPT@name:argument` -> its parts, of which the first and the last may be empty. An @ after the colon is a path's."""
    head, _, argument = spec.partition(":")
    own, _, name = head.rpartition("@")
    return own, name, argument
