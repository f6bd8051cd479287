"""The reward model: a small network on CLIP embeddings, in one file with its provenance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hfi.diffusion.tokens import read_safetensors, write_safetensors
from hfi.embed import ClipBackbone
from hfi.errors import ModelError


class Head(nn.Module):
    """Embedding [N, D] -> score [N]: one hidden layer. Inputs are standardised by the training images' mean and deviation, which
    are saved with the weights."""

    mean: Tensor
    std: Tensor

    def __init__(self, width: int, hidden: int, binary: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.layers = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        self.binary = binary

    def standardise(self, embeddings: Tensor) -> None:
        self.mean.copy_(embeddings.mean(0))
        self.std.copy_(embeddings.std(0, correction=0).clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        score = self.layers((x - self.mean) / self.std).squeeze(-1)
        return score.sigmoid() if self.binary else score


@dataclass(frozen=True)
class RewardModel:
    """r in [0, 1] for a binary question, any real number for a ranking (only differences mean something); higher is more of the
    unwanted concept."""

    head: Head
    backbone: ClipBackbone
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def question(self) -> str:
        return "binary" if self.head.binary else "ranking"

    @property
    def better_than_chance(self) -> bool:
        return self.metadata.get("better_than_chance") == "true"

    def score(self, images: Sequence[Image.Image]) -> np.ndarray:
        """PIL images -> float32 [N]."""
        return self.score_embeddings(self.backbone.images(images))

    @torch.inference_mode()
    def score_embeddings(self, embeddings: np.ndarray) -> np.ndarray:
        """Embeddings [N, D] of this model's backbone -> float32 [N]."""
        return self.head(torch.from_numpy(np.asarray(embeddings, dtype=np.float32))).numpy()

    def save(self, path: Path) -> None:
        own = {"question": self.question, "backbone": self.backbone.name, "backbone_content": self.backbone.content}
        write_safetensors(path, {k: v.contiguous() for k, v in self.head.state_dict().items()}, {**self.metadata, **own})

    @classmethod
    def load(cls, path: Path, backbone: ClipBackbone | None = None, device: str = "cpu") -> "RewardModel":
        """The model in a file, on the backbone that it was trained on. ModelError where that one is missing or another."""
        tensors, metadata = read_safetensors(path, "reward model")
        try:
            hidden, width = tensors["layers.0.weight"].shape
            head = Head(width, hidden, metadata["question"] == "binary")
            head.load_state_dict(tensors)
            wanted, content = metadata["backbone"], metadata["backbone_content"]
        except (KeyError, RuntimeError, ValueError) as e:
            raise ModelError(f"{path} is no reward model of hfi ({str(e).splitlines()[0]})") from None
        backbone = backbone or ClipBackbone.load(wanted, device)
        if backbone.content != content:
            raise ModelError(f"{path} was trained on another CLIP model than {backbone.name}: run 'hfi reward' again")
        return cls(head.eval().requires_grad_(False), backbone, metadata)
