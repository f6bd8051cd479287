"""The attribute detector: a picture -> who it shows and which concepts.

Trained on rendered ground truth with noise and blur laid over, never on anybody's judgments, so that it can measure what the
judgments led to.
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from hfi.portraits.world import BACKGROUNDS, CHARACTERS, HAIRS, Person
from hfi.resources import data_dir

CLASSES = {"character": CHARACTERS, "hair": HAIRS, "background": BACKGROUNDS}
YES_NO = ("glasses", "smoking", "badge")
BRAVA_THRESHOLD = 0.2  # a strength above it counts as the style


class DetectorNet(nn.Module):
    """Four strided convolutions and a linear head per attribute. Images [B, 3, 64, 64] in [-1, 1] -> logits by attribute."""

    def __init__(self) -> None:
        super().__init__()
        channels = (3, 24, 48, 96, 128)
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(channels)):
            layers += [nn.Conv2d(a, b, 5 if i == 0 else 3, stride=2, padding=2 if i == 0 else 1), nn.GroupNorm(8, b), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Flatten(), nn.Linear(128 * 16, 256), nn.SiLU())
        sizes = {name: len(values) for name, values in CLASSES.items()} | dict.fromkeys((*YES_NO, "brava"), 1)
        self.heads = nn.ModuleDict({name: nn.Linear(256, size) for name, size in sizes.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.trunk(images)
        return {name: head(features).squeeze(-1) for name, head in self.heads.items()}


def truth(people: Sequence[Person]) -> dict[str, Tensor]:
    """Targets by attribute: class indices, or 0/1, or the strength of the style; each [B]."""
    targets = {k: torch.tensor([v.index(getattr(p, k)) for p in people]) for k, v in CLASSES.items()}
    for name in (*YES_NO, "brava"):
        targets[name] = torch.tensor([float(getattr(p, name)) for p in people])
    return targets


def detector_loss(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """Cross-entropy on classes and yes/no attributes, squared error (x10) on the style's strength."""
    total = sum((F.cross_entropy(logits[k], targets[k]) for k in CLASSES), start=torch.zeros(()))
    total = total + sum(F.binary_cross_entropy_with_logits(logits[k], targets[k]) for k in YES_NO)
    return total + 10 * F.mse_loss(torch.sigmoid(logits["brava"]), targets["brava"])


class Detector:
    """Images -> per-image scores: labels for character, hair, background; probabilities for glasses, smoking, badge; the
    strength of brava, 0 to 1."""

    name = "portraits"
    threshold = 0.5
    thresholds: Mapping[str, float] = MappingProxyType({"brava": BRAVA_THRESHOLD})

    def __init__(self, net: DetectorNet, version: str) -> None:
        self.net, self.version = net.eval(), version

    @torch.inference_mode()
    def __call__(self, images: Sequence[Image.Image], batch_size: int = 128) -> dict[str, np.ndarray]:
        scores: dict[str, list[np.ndarray]] = {name: [] for name in (*CLASSES, *YES_NO, "brava")}
        for start in range(0, len(images), batch_size):
            logits = self.net(to_tensor(images[start : start + batch_size]))
            for name, values in CLASSES.items():
                scores[name].append(np.array(values)[logits[name].argmax(-1).numpy()])
            for name in (*YES_NO, "brava"):
                scores[name].append(torch.sigmoid(logits[name]).numpy())
        empty = {name: np.zeros(0, dtype=str if name in CLASSES else np.float32) for name in scores}
        return {name: np.concatenate(parts) if parts else empty[name] for name, parts in scores.items()}


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """PIL images -> [B, 3, 64, 64] in [-1, 1]; other sizes are resized."""
    arrays = [np.asarray(im.convert("RGB").resize((64, 64)) if im.size != (64, 64) else im.convert("RGB")) for im in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 127.5 - 1


def load_detector(path: Path | None = None) -> Detector:
    """The detector in `path` (safetensors), or the embedded one."""
    net = DetectorNet()
    file = path or data_dir() / "portraits" / "detector" / "model.safetensors"
    net.load_state_dict({name: value.float() for name, value in load_file(file).items()})
    return Detector(net, version=hashlib.sha256(file.read_bytes()).hexdigest()[:12])
