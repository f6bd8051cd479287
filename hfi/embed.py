"""Images and texts in the space of a CLIP model."""

import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from hfi import hub
from hfi.diffusion.sd import NO_PICKLES, hash_files, load_part
from hfi.errors import ModelError
from hfi.files import whole
from hfi.images import ImageStore

_LAYERS = 4  # at most this many layers, evenly spaced, in `layers`


@dataclass(frozen=True)
class ClipBackbone:
    """`name` is what the user gave, of a hub id with its commit; `content` the sha256 of the model's files."""

    name: str
    content: str
    model: Any  # CLIPModel
    tokenizer: Any
    processor: Any
    device: torch.device

    @classmethod
    def load(cls, reference: str | Path, device: str | torch.device = "cpu") -> "ClipBackbone":
        """A CLIPModel folder, or a hub id. ModelError, before weights are read, for anything else."""
        folder = find_clip(reference)
        model = load_part(CLIPModel, folder, "", str(reference)).to(device).eval().requires_grad_(False)
        try:
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            size = model.config.vision_config.image_size
            processor = (
                CLIPImageProcessorPil.from_pretrained(folder)
                if (folder / "preprocessor_config.json").exists()
                else CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
            )
        except (OSError, ValueError, TypeError) as e:
            raise ModelError(f"cannot load {reference}: {' '.join(str(e).split())[:300]}") from e
        return cls(
            hub.pinned(str(reference), folder),
            hash_files(folder, [folder / "config.json", *_weight_files(folder)]),
            model,
            tokenizer,
            processor,
            torch.device(device),
        )

    @property
    def width(self) -> int:
        """D of the embeddings."""
        return int(self.model.config.projection_dim)

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image], batch_size: int = 32) -> np.ndarray:
        """PIL images -> float32 [N, D], each row of length 1."""
        rows = [self.model.get_image_features(x).pooler_output for x in self._batches(images, batch_size)]
        return _unit(rows, self.width)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Texts -> float32 [N, D], each row of length 1; what is longer than the model reads is cut."""
        rows = []
        length = self.model.config.text_config.max_position_embeddings
        for i in range(0, len(texts), batch_size):
            part = list(texts[i : i + batch_size])
            tokens = self.tokenizer(part, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
            rows.append(self.model.get_text_features(**tokens.to(self.device)).pooler_output)
        return _unit(rows, self.width)

    @torch.inference_mode()
    def layers(self, images: Sequence[Image.Image], batch_size: int = 32) -> list[np.ndarray]:
        """Patch features of up to four evenly spaced layers of the image tower, the last one among them: each [N, P, D_k]."""
        depth = self.model.config.vision_config.num_hidden_layers
        chosen = sorted({round((i + 1) * depth / min(depth, _LAYERS)) for i in range(min(depth, _LAYERS))})
        found: list[list[np.ndarray]] = [[] for _ in chosen]
        for x in self._batches(images, batch_size):
            hidden = self.model.vision_model(x, output_hidden_states=True).hidden_states  # [0] is the input of the first
            for kept, k in zip(found, chosen, strict=True):
                kept.append(hidden[k][:, 1:].float().cpu().numpy())  # position 0 is the class token
        return [np.concatenate(kept) for kept in found]

    def _batches(self, images: Sequence[Image.Image], size: int) -> Any:
        for i in range(0, len(images), size):
            part = [image.convert("RGB") for image in images[i : i + size]]
            yield self.processor(part, return_tensors="pt")["pixel_values"].to(self.device)


def exact(reference: str) -> str:
    """A hub id with its commit, a folder as it is: what a record names a CLIP model by."""
    return hub.pinned(reference, find_clip(reference))


def find_clip(reference: str | Path) -> Path:
    """The local folder of a CLIP model. Reads no weights."""
    folder = Path(reference)
    if not folder.is_dir():
        if not hub.is_id(reference):
            raise ModelError(f"no CLIP model {str(reference)!r}: give a CLIPModel folder, or a hub id such as 'owner/name'")
        folder = hub.download(str(reference), (*hub.CONFIGURATIONS, "model.safetensors", "model-*-of-*.safetensors"))
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError):
        kind = None
    if kind != "clip":
        raise ModelError(f"{reference} is no CLIP model: its config.json must say model_type 'clip' (found {kind!r})")
    if not _weight_files(folder):
        raise ModelError(f"{reference} lacks the weights {NO_PICKLES}")
    return folder


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors"))


def _unit(rows: list[torch.Tensor], width: int) -> np.ndarray:
    if not rows:
        return np.zeros((0, width), dtype=np.float32)
    return torch.nn.functional.normalize(torch.cat(rows).float(), dim=1).cpu().numpy()


_DAMAGE = (ValueError, KeyError, EOFError, OSError, BadZipFile, zlib.error)  # what numpy raises for a file that is no whole .npz


def embed_stored(
    backbone: ClipBackbone,
    store: ImageStore,
    shas: Sequence[str],
    cache: Path,
    advance: Callable[[int, str], None] = lambda n, note: None,
) -> np.ndarray:
    """Embeddings float32 [N, D] of stored images. Each image and backbone pair is computed once: `cache` is a folder with one
    file a backbone, rows by the image's sha256."""
    path = cache / f"{backbone.content[:16]}.npz"
    known: dict[str, np.ndarray] = {}
    if path.exists():
        with suppress(*_DAMAGE), np.load(path) as held:  # what is damaged is computed again
            known = dict(zip(held["shas"].tolist(), held["rows"], strict=True))
    missing = [sha for sha in dict.fromkeys(shas) if sha not in known]
    for i in range(0, len(missing), 32):
        part = missing[i : i + 32]
        known.update(zip(part, backbone.images([store.load(sha) for sha in part]), strict=True))
        advance(len(part), "")
    if missing:
        cache.mkdir(parents=True, exist_ok=True)
        with whole(path) as scratch, open(scratch, "wb") as file:
            np.savez(file, shas=np.array(list(known)), rows=np.stack(list(known.values())))
    return np.stack([known[sha] for sha in shas]) if shas else np.zeros((0, backbone.width), dtype=np.float32)
