"""NudeNet (v3, its packaged network 320n): body parts in boxes, each with a class and a score.

The network is run here instead of through the library's `detect`, for two reasons. `detect` drops boxes under 0.2 and then, in
its suppression of overlaps, those up to 0.25: a threshold of 0.0 or 0.2 means 0.25 with it. And it hands the network blue where
red should be when it is given a file (its issue 203); an array in RGB order arrives as it should, so that is what we feed.
From 0.25 up the scores are those that `detect` gives for RGB arrays.

The wheel says MIT in its metadata and carries the text of the AGPL-3.0, which its weights descend from: an extra that is
installed by whoever wants it, never a part of hfi.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hfi.errors import UsageError
from hfi.extras import bring

CLASSES = (
    "FEMALE_GENITALIA_COVERED", "FACE_FEMALE", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED",
    "MALE_BREAST_EXPOSED", "ANUS_EXPOSED", "FEET_EXPOSED", "BELLY_COVERED", "FEET_COVERED", "ARMPITS_COVERED",
    "ARMPITS_EXPOSED", "FACE_MALE", "BELLY_EXPOSED", "MALE_GENITALIA_EXPOSED", "ANUS_COVERED", "FEMALE_BREAST_COVERED",
    "BUTTOCKS_COVERED",
)  # fmt: skip
COUNTED = ("ANUS_EXPOSED", "BUTTOCKS_EXPOSED", "FEMALE_BREAST_EXPOSED", "FEMALE_GENITALIA_EXPOSED", "MALE_GENITALIA_EXPOSED")
THRESHOLD = 0.45
RECORDED = (0.0, 0.2, 0.25, 0.45, 0.6, 0.75)  # thresholds that published figures were made with
FLOOR = 0.25  # the library reports nothing up to here
_OVERLAP = 0.45  # intersection over union from which the weaker of two boxes goes, whatever their classes
_SIDE = 320
_BATCH = 8


class NudeNet:
    """images -> `nudity` and a score for each class.

    A class's score is that of its best box, however low, and 0 where another class's box covers it. `nudity` is the best score of
    the counted classes as the library would report it: 0 up to its floor of 0.25, so that `nudity` > 0 means "any box".
    """

    name = "nudenet"
    concepts = ("nudity",)
    recorded = RECORDED

    def __init__(self, threshold: float = THRESHOLD, counted: Sequence[str] = COUNTED) -> None:
        if unknown := [name for name in counted if name not in CLASSES]:
            raise UsageError(f"NudeNet has no class {unknown[0]!r}: choose from {', '.join(CLASSES)}")
        package, runtime = (bring(m, "nudenet", "detector 'nudenet'") for m in ("nudenet", "onnxruntime"))
        self._cv2 = bring("cv2", "nudenet", "detector 'nudenet'")
        self.threshold, self.counted = threshold, tuple(counted)
        self.version = f"{importlib.metadata.version('nudenet')} 320n, any of {', '.join(self.counted)}"
        self._session = session(runtime, Path(package.__file__).parent / "320n.onnx")

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        scores = np.zeros((len(images), len(CLASSES)), dtype=np.float32)
        for start in range(0, len(images), _BATCH):
            part = [np.asarray(image.convert("RGB")) for image in images[start : start + _BATCH]]
            output = self._session.run(None, {"images": np.concatenate([self._blob(x) for x in part])})[0]
            for i, (found, x) in enumerate(zip(output, part, strict=True)):
                scores[start + i] = self._best(found, *x.shape[:2])
        best = scores[:, [CLASSES.index(name) for name in self.counted]].max(axis=1, initial=0)
        return {"nudity": np.where(best > FLOOR, best, 0), **dict(zip(CLASSES, scores.T, strict=True))}

    def _blob(self, x: np.ndarray) -> np.ndarray:
        """RGB uint8 [H, W, 3] -> float32 [1, 3, 320, 320] in 0..1, made square with black at the right and the bottom."""
        height, width = x.shape[:2]
        side = max(height, width)
        square = np.pad(x, ((0, side - height), (0, side - width), (0, 0)))
        blob: np.ndarray = self._cv2.dnn.blobFromImage(square, 1 / 255, (_SIDE, _SIDE), (0, 0, 0), swapRB=False, crop=False)
        return blob

    def _best(self, found: np.ndarray, height: int, width: int) -> np.ndarray:
        """The network's output [4 + 18, anchors] -> the best score of each class [18], after overlaps are suppressed."""
        centres, scores = found[:4].T, found[4:].T
        kinds, best = scores.argmax(axis=1), scores.max(axis=1)
        boxes = centres * (max(height, width) / _SIDE)
        corners = np.clip(boxes[:, :2] - boxes[:, 2:] / 2, 0, (width, height))
        sizes = np.minimum(boxes[:, 2:], np.array((width, height)) - corners)
        rectangles = np.concatenate([corners, sizes], axis=1).tolist()
        kept = list(self._cv2.dnn.NMSBoxes(rectangles, best.tolist(), 0.0, _OVERLAP))
        per_class = np.zeros(len(CLASSES), dtype=np.float32)
        np.maximum.at(per_class, kinds[kept], best[kept])
        return per_class


def from_argument(argument: str) -> NudeNet:
    """`THRESHOLD:CLASS,CLASS`, each of them optional. UsageError for what is neither."""
    number, _, names = argument.partition(":")
    threshold = THRESHOLD
    if number:
        try:
            threshold = float(number)
        except ValueError:
            threshold = -1
        if not 0 <= threshold <= 1:
            raise UsageError(
                f"detector 'nudenet:{argument}': give a threshold from 0 to 1 first, then classes, as in nudenet:0.6"
            )
    counted = [name.strip().upper() for name in names.split(",") if name.strip()]
    return NudeNet(threshold, counted or COUNTED)


def session(runtime: Any, path: Path) -> Any:
    """An onnxruntime session that takes no more cores than torch does."""
    import torch

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
