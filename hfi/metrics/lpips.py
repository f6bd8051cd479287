"""LPIPS (Zhang et al. 2018, eq. 1), version 0.1 with AlexNet: how different two images of one size look to people.

d(x, y) = sum over l of mean over positions of sum over c of w_lc (f_lc(x) - f_lc(y))^2, with f_l the activations after AlexNet's
five ReLUs, scaled to length 1 at each position. Both files are given: AlexNet as torchvision saves it, and the learned w of the
lpips package. With other weights the value is no LPIPS; `perceptual.py` is the distance that needs no file.
"""

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hfi.diffusion.tokens import read_safetensors
from hfi.errors import HfiError, ModelError, UsageError
from hfi.metrics.features import sha256

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for pixels in -1..1
LEAST = 31  # pixels: AlexNet has nothing left of a smaller side
_TAPS = (1, 4, 7, 9, 11)  # the ReLUs


def alexnet() -> nn.Sequential:
    """AlexNet's convolutions, numbered as in torchvision's `features`: [B, 3, H, W] -> [B, 256, h, w]."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(),
    )  # fmt: skip


class Lpips:
    name = "LPIPS 0.1, AlexNet"

    def __init__(self, trunk: nn.Sequential, heads: Sequence[Tensor], content: str) -> None:
        self.trunk, self.heads, self.content = trunk.eval().requires_grad_(False), list(heads), content

    @classmethod
    def load(cls, spec: str) -> "Lpips":
        """`WEIGHTS:HEADS`, files of torch or safetensors. ModelError for a file that holds something else."""
        weights, _, heads = spec.rpartition(":")
        if not weights or not heads:
            raise UsageError(
                f"--lpips {spec!r}: give torchvision's AlexNet file and the heads of the lpips package, WEIGHTS:HEADS"
            )
        trunk = alexnet()
        values = {k.removeprefix("features."): v for k, v in _read(Path(weights)).items() if k.startswith("features.")}
        try:
            trunk.load_state_dict(values)
        except RuntimeError:
            raise ModelError(f"{weights} is not torchvision's AlexNet: it needs features.0.weight to features.10.bias") from None
        found = _read(Path(heads))
        lins = [found.get(f"lin{i}.model.1.weight", torch.zeros(0)) for i in range(5)]
        widths = [64, 192, 384, 256, 256]
        if [tuple(w.shape) for w in lins] != [(1, width, 1, 1) for width in widths]:
            raise ModelError(f"{heads} holds no heads of LPIPS for AlexNet: it needs lin0.model.1.weight to lin4.model.1.weight")
        content = f"{sha256(Path(weights))[:12]} heads {sha256(Path(heads))[:12]}"
        return cls(trunk, [w.float().reshape(-1) for w in lins], content)

    @torch.inference_mode()
    def distances(self, a: Sequence[Image.Image], b: Sequence[Image.Image]) -> np.ndarray:
        """Pairs of images of one size -> float64 [N], 0 for equal ones. HfiError for a pair of two sizes, or one too small."""
        for x, y in zip(a, b, strict=True):
            check_fits(x, y)
        return np.array([float(self(_pixels(x), _pixels(y))) for x, y in zip(a, b, strict=True)])

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """x, y [B, 3, H, W] in -1..1 -> [B]."""
        total = torch.zeros(len(x))
        for w, f, g in zip(self.heads, self._activations(x), self._activations(y), strict=True):
            total = total + torch.einsum("c,bchw->bhw", w, (f - g) ** 2).mean(dim=(1, 2))
        return total

    def _activations(self, x: Tensor) -> list[Tensor]:
        x = (x - torch.tensor(SHIFT).view(3, 1, 1)) / torch.tensor(SCALE).view(3, 1, 1)
        found = []
        for i, layer in enumerate(self.trunk):
            x = layer(x)
            if i in _TAPS:
                found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found


def check_fits(x: Image.Image, y: Image.Image) -> None:
    """HfiError unless LPIPS can compare the two."""
    if x.size != y.size:
        raise HfiError(f"LPIPS compares images of one size, not {x.width}x{x.height} with {y.width}x{y.height}: resize one set")
    if min(x.size) < LEAST:
        raise HfiError(f"LPIPS needs images of at least {LEAST}x{LEAST}, not {x.width}x{x.height}")


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float() / 127.5 - 1


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a file; of torch's own kind nothing but tensors is unpickled."""
    if not path.is_file():
        raise ModelError(f"no file {path} for --lpips: check the path")
    if path.suffix == ".safetensors":
        return read_safetensors(path, "LPIPS")[0]
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, TypeError, OSError):
        raise ModelError(f"{path} holds no weights that are safe to read: give a file of torch tensors, or safetensors") from None
