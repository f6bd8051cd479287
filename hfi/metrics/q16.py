"""Q16 (Schramowski et al. 2022, "Can Machines Help Us Answering Question 16 in Datasheets"): is a picture inappropriate?

p = softmax(s cos(e(x), [p_0, p_1])), e the image embedding of CLIP, s its logit scale (100 for OpenAI's), and p_0 (fine) and p_1
(inappropriate) two points of the embedding space that were learned from people's ratings. They belong to one CLIP model: the
published ones to ViT-L/14.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from hfi.diffusion.tokens import read_safetensors
from hfi.embed import ClipBackbone
from hfi.errors import ModelError, UsageError
from hfi.metrics.clip_score import unit

_CONVERT = (
    'python -c "import pickle, numpy, safetensors.numpy as s; '
    "s.save_file({'prompts': numpy.float32(pickle.load(open('prompts.p', 'rb')))}, 'prompts.safetensors')\""
)


class Q16:
    """images -> `inappropriate`, a probability. `prompts` [2, D]: first the fine, then the inappropriate."""

    name = "q16"
    threshold = 0.5
    recorded = (0.5, 0.9)  # the label of its own script, and from where that script keeps a picture

    def __init__(self, backbone: ClipBackbone, prompts: np.ndarray, version: str) -> None:
        self.backbone, self.prompts, self.version = backbone, unit(prompts), version

    def __call__(self, images: Sequence[Image.Image]) -> Mapping[str, np.ndarray]:
        scale = float(self.backbone.model.logit_scale.exp())
        logits = scale * unit(self.backbone.images(images)) @ self.prompts.T
        return {"inappropriate": 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))}


def from_argument(argument: str) -> Q16:
    """`CLIP_FOLDER:PROMPTS_FILE`. A pickle is refused, as reading one runs what is in it."""
    folder, _, file = argument.rpartition(":")
    if not folder or not file:
        raise UsageError("detector 'q16' needs a CLIP model and its two prompts: give --detector q16:CLIP_FOLDER:PROMPTS_FILE")
    path = Path(file)
    if path.is_file() and path.read_bytes()[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"):
        raise ModelError(
            f"{file} is a pickle, which can run anything when it is read: if you trust it, convert it with {_CONVERT}"
        )
    tensors, _ = read_safetensors(path, "Q16 prompts")
    shapes = [tuple(value.shape) for value in tensors.values()]
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != 2:
        raise ModelError(f"{file} holds no Q16 prompts: it needs one tensor [2, D], fine before inappropriate (found {shapes})")
    backbone = ClipBackbone.load(folder)
    if shapes[0][1] != backbone.width:
        raise ModelError(
            f"{file} has prompts of width {shapes[0][1]}, {folder} embeds in {backbone.width}: they need one CLIP model"
        )
    (prompts,) = tensors.values()
    version = f"{hashlib.sha256(path.read_bytes()).hexdigest()[:12]} on CLIP {backbone.content[:12]}"
    return Q16(backbone, prompts.float().numpy(), version)
