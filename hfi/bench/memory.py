"""How much GPU memory a command needs, computed from the architecture alone: networks on torch's meta device have shapes, no numbers.

    weights    of the U-Net, VAE and text encoders, in the precision asked for; none of what waits in the CPU's memory
    trained    student and teacher, gradients' two moments: four float32 numbers for each trained one (hfi/erase/distil.py)
    working    the most that a step holds beside these at one time, gradients among it: every tensor that hfi's own `predict`, its
               backward pass, `decode` and the VAE's encoder make, counted as they come and go

Attention is counted as torch's fused kernel keeps it. What a GPU takes beside the tensors is not: the CUDA context (about half a GiB),
the libraries' workspaces, and gaps between tensors.
"""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from unittest import mock

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from hfi.diffusion.cond import Cond
from hfi.diffusion.memory import PRECISIONS, lighten
from hfi.diffusion.sd import StableDiffusion, decode, predict, quiet
from hfi.diffusion.trainable import masters, select
from hfi.progress import progress

Family = Literal["SD 1.x", "SD 2.x", "SDXL"]
META = torch.device("meta")

# as published: unet/config.json of stable-diffusion-v1-5, stable-diffusion-2-1 and stable-diffusion-xl-base-1.0, where they differ from
# diffusers' defaults; (width, layers, heads, inner width) of each text encoder, the last with a projection where there are two
UNETS: dict[Family, dict[str, Any]] = {
    "SD 1.x": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "SD 2.x": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "SDXL": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
ENCODERS: dict[Family, tuple[tuple[int, int, int, int], ...]] = {
    "SD 1.x": ((768, 12, 12, 3072),),
    "SD 2.x": ((1024, 23, 16, 4096),),
    "SDXL": ((768, 12, 12, 3072), (1280, 32, 20, 5120)),
}
POOLED = 1280  # of SDXL's second encoder


@dataclass(frozen=True)
class Recipe:
    """A command on GPUs of a size. `batch`: rows of a step, or images sampled together, of all processes."""

    gpus: int
    gib: int
    family: Family
    command: Literal["generate", "invert", "erase sdd", "erase sdd-context"]
    batch: int
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = False
    cpu_offload: bool = False

    @property
    def options(self) -> str:
        words = [f"--batch-size {self.batch}"]
        words += ["--precision bfloat16"] * (self.precision == "bfloat16")
        words += ["--gradient-checkpointing"] * self.gradient_checkpointing
        words += ["--cpu-offload"] * self.cpu_offload
        return " ".join(words)


@dataclass(frozen=True)
class Budget:
    """Bytes on each GPU."""

    weights: int
    trained: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.trained + self.working


@cache
def model(family: Family, precision: str, gradient_checkpointing: bool = False) -> StableDiffusion:
    """Without tokenizers and scheduler."""
    dtype = PRECISIONS[precision]
    classes: tuple[Any, ...] = (CLIPTextModel, CLIPTextModelWithProjection)
    with META, quiet():
        unet = UNet2DConditionModel(**UNETS[family])
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,  # type: ignore[arg-type]
            up_block_types=("UpDecoderBlock2D",) * 4,  # type: ignore[arg-type]
            block_out_channels=(128, 256, 512, 512),  # type: ignore[arg-type]
            layers_per_block=2,
        )
        encoders = [
            kind(
                CLIPTextConfig(  # type: ignore[call-arg]
                    hidden_size=width,
                    num_hidden_layers=layers,
                    num_attention_heads=heads,
                    intermediate_size=inner,
                    projection_dim=width,
                )
            )
            for kind, (width, layers, heads, inner) in zip(classes, ENCODERS[family], strict=False)
        ]
        parts = [part.to(dtype).eval().requires_grad_(False) for part in (unet, vae, *encoders)]
    lighten(parts[0], gradient_checkpointing=gradient_checkpointing)
    return StableDiffusion(family, "", (), tuple(parts[2:]), parts[0], parts[1], None, False, META, dtype)


def size_of(module: Any) -> int:
    """Bytes of its parameters."""
    return sum(p.numel() * p.element_size() for p in module.parameters())


class _Live(TorchDispatchMode):
    """Bytes of the storages that are made while it is on, now and at most; not of those that were there, or views of them."""

    def __init__(self, there: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in there}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and (key := (storage := tensor.untyped_storage())._cdata) not in self.known:
                self.known.add(key)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, key, storage.nbytes())
        return out

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Attention as a GPU computes it; on the meta device torch writes all scores out."""
    out: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return out


def peak(work: Callable[[], object], sd: StableDiffusion, *there: Tensor) -> int:
    """The most bytes that `work` holds at one time beside the model and the tensors that are there."""
    parts = (sd.unet, sd.vae, *sd.text_encoders)
    held = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    with mock.patch("torch.nn.functional.scaled_dot_product_attention", _fused), _Live([*held, *there]) as live:
        work()
    return live.peak


def _rows(sd: StableDiffusion, n: int) -> tuple[Tensor, Tensor, Cond]:
    """Latents, timesteps and conditions."""
    width = sum(encoder.config.hidden_size for encoder in sd.text_encoders)
    pooled = torch.empty((n, POOLED), dtype=sd.dtype, device=META) if len(sd.text_encoders) > 1 else None
    cond = Cond(torch.empty((n, 77, width), dtype=sd.dtype, device=META), pooled)
    return torch.empty((n, *sd.latent_shape), device=META), torch.empty(n, device=META), cond


@cache
def looking(family: Family, precision: str, n: int) -> int:
    """Of n rows through the U-Net, no gradients."""
    sd = model(family, precision)
    rows = _rows(sd, n)
    with torch.no_grad():
        return peak(lambda: predict(sd, None, *rows), sd)


@cache
def erasing(family: Family, precision: str, gradient_checkpointing: bool, n: int) -> int:
    """Of n rows through the U-Net and back to its cross-attention, its gradients and the trained values' copies in half precision
    among it."""
    sd = model(family, precision, gradient_checkpointing)
    student = {name: value.requires_grad_(True) for name, value in masters(select(sd.unet, "xattn")).items()}
    rows = _rows(sd, n)
    return peak(lambda: predict(sd, student, *rows).sum().backward(), sd, *student.values())


@cache
def inverting(family: Family, precision: str, gradient_checkpointing: bool, n: int) -> int:
    """Of n rows through text encoders and U-Net, and back to the token."""
    sd = model(family, precision, gradient_checkpointing)
    z, t, cond = _rows(sd, n)

    def step() -> None:
        states = []
        for encoder in sd.text_encoders:
            words = torch.empty((n, 77, encoder.config.hidden_size), dtype=sd.dtype, device=META, requires_grad=True)
            hidden = words
            for layer in encoder.text_model.encoder.layers if hasattr(encoder, "text_model") else encoder.encoder.layers:
                found = layer(hidden, attention_mask=None)
                hidden = found[0] if isinstance(found, tuple) else found
            states.append(hidden)
        predict(sd, None, z, t, Cond(torch.cat(states, -1), cond.pooled)).sum().backward()

    return peak(step, sd)


@cache
def decoding(family: Family, precision: str, n: int) -> int:
    """Of n latents through the VAE."""
    sd = model(family, precision)
    with torch.no_grad():
        return peak(lambda: decode(sd, torch.empty((n, *sd.latent_shape), dtype=sd.dtype, device=META)), sd)


@cache
def encoding(family: Family, precision: str) -> int:
    """Of one picture through the VAE."""
    sd = model(family, precision)
    with torch.no_grad():
        return peak(lambda: sd.vae.encode(torch.empty((1, 3, *sd.image_size), dtype=sd.dtype, device=META)), sd)


def trained_numbers(recipe: Recipe) -> int:
    """Of the U-Net; a token's are next to none."""
    erases = recipe.command.startswith("erase")
    return sum(v.numel() for v in select(model(recipe.family, recipe.precision).unet, "xattn").values()) if erases else 0


def held(recipe: Recipe) -> tuple[int, int]:
    """(weights, trained) that stay there."""
    sd = model(recipe.family, recipe.precision)
    waiting = [sd.vae] if recipe.command == "invert" else [sd.vae, *sd.text_encoders]
    away = waiting if recipe.cpu_offload else []
    weights = sum(map(size_of, (sd.unet, sd.vae, *sd.text_encoders))) - sum(map(size_of, away))
    return weights, 4 * 4 * trained_numbers(recipe)


def budget(recipe: Recipe) -> Budget:
    """Of the process with the most rows."""
    sd = model(recipe.family, recipe.precision)
    family, precision, checkpointing = recipe.family, recipe.precision, recipe.gradient_checkpointing
    own = -(-recipe.batch // recipe.gpus)
    back = size_of(sd.vae) if recipe.cpu_offload else 0  # while it encodes and decodes
    if recipe.command == "generate":  # each process has whole batches
        working = max(looking(family, precision, 2 * recipe.batch), back + decoding(family, precision, recipe.batch))
    elif recipe.command == "invert":
        gone = size_of(sd.unet) if recipe.cpu_offload else 0  # while it encodes, see hfi/cli/invert.py
        working = max(inverting(family, precision, checkpointing, own), back + encoding(family, precision) - gone)
    else:
        groups = 3 if recipe.command == "erase sdd-context" else 1  # flagged, harmless and clean rows, see hfi/erase/context.py
        of_student, without = (-(-n * recipe.batch // recipe.gpus) for n in (groups, max(2, groups)))
        update = 2 * 4 * trained_numbers(recipe)  # gradients, and what AdamW divides by
        working = max(erasing(family, precision, checkpointing, of_student), looking(family, precision, without), update)
        if recipe.command == "erase sdd-context":  # the clean images, one at a time
            working = max(working, back + encoding(family, precision))
    return Budget(*held(recipe), working)


RECIPES = (
    Recipe(1, 8, "SD 1.x", "generate", 4),
    Recipe(1, 8, "SD 1.x", "invert", 4),
    Recipe(1, 8, "SD 1.x", "erase sdd", 1),
    Recipe(1, 8, "SD 1.x", "erase sdd-context", 4, gradient_checkpointing=True),
    Recipe(1, 8, "SD 2.x", "generate", 2),
    Recipe(1, 8, "SD 2.x", "invert", 4, gradient_checkpointing=True),
    Recipe(1, 8, "SD 2.x", "erase sdd", 1),
    Recipe(1, 8, "SD 2.x", "erase sdd-context", 2, gradient_checkpointing=True, cpu_offload=True),
    Recipe(1, 8, "SDXL", "generate", 1, cpu_offload=True),
    Recipe(1, 8, "SDXL", "invert", 1, gradient_checkpointing=True, cpu_offload=True),
    Recipe(1, 24, "SD 1.x", "generate", 16),
    Recipe(1, 24, "SD 1.x", "invert", 16),
    Recipe(1, 24, "SD 1.x", "erase sdd", 8),
    Recipe(1, 24, "SD 1.x", "erase sdd-context", 8),
    Recipe(1, 24, "SD 2.x", "generate", 8),
    Recipe(1, 24, "SD 2.x", "invert", 8),
    Recipe(1, 24, "SD 2.x", "erase sdd", 8),
    Recipe(1, 24, "SD 2.x", "erase sdd-context", 8, gradient_checkpointing=True),
    Recipe(1, 24, "SDXL", "generate", 8),
    Recipe(1, 24, "SDXL", "invert", 8, gradient_checkpointing=True),
    Recipe(1, 24, "SDXL", "erase sdd", 1, cpu_offload=True),
    Recipe(1, 24, "SDXL", "erase sdd-context", 2, gradient_checkpointing=True, cpu_offload=True),
    Recipe(8, 80, "SD 1.x", "generate", 32, "float32"),
    Recipe(8, 80, "SD 1.x", "invert", 64, "float32"),
    Recipe(8, 80, "SD 1.x", "erase sdd", 64, "float32"),
    Recipe(8, 80, "SD 1.x", "erase sdd-context", 64, "float32"),
    Recipe(8, 80, "SD 2.x", "generate", 16, "float32"),
    Recipe(8, 80, "SD 2.x", "invert", 64, "float32"),
    Recipe(8, 80, "SD 2.x", "erase sdd", 64, "float32"),
    Recipe(8, 80, "SD 2.x", "erase sdd-context", 32, "float32"),
    Recipe(8, 80, "SDXL", "generate", 8, "float32"),
    Recipe(8, 80, "SDXL", "invert", 32, "float32"),
    Recipe(8, 80, "SDXL", "erase sdd", 32, "float32"),
    Recipe(8, 80, "SDXL", "erase sdd-context", 64, "bfloat16", gradient_checkpointing=True),
)


def row(recipe: Recipe) -> str:
    b = budget(recipe)
    found = " | ".join(f"{x / 2**30:.1f}" for x in (b.weights, b.trained, b.working, b.total))
    return f"| {recipe.gpus} x {recipe.gib} GB | {recipe.family} | {recipe.command} | `{recipe.options}` | {found} |"


def table(recipes: Sequence[Recipe] = RECIPES) -> str:
    """Markdown, GiB on each GPU."""
    head = "| GPUs | model | command | options | weights | trained | working | together |"
    with progress("computing", len(recipes), "recipes") as advance:
        lines = []
        for recipe in recipes:
            lines.append(row(recipe))
            advance(1, "")
    return "\n".join([head, "|---|---|---|---|--:|--:|--:|--:|", *lines])
