"""An erasure as a LoRA: each changed matrix as base + strength * up @ down, with a strength that is chosen at load time.

A change D [out, in] (a convolution's [out, in, kh, kw] is taken as [out, in kh kw]) is cut after its r largest singular values,
D = U S V^T -> up = U sqrt(S), down = sqrt(S) V^T. Where D has rank r this is exact, and no pair of rank r comes nearer. How near it
came is measured on the numbers that are written, as || D - up down || / || D || (Frobenius).

    diffusers   PEFT's keys; the ranks and scales also stand in the metadata, as diffusers writes them. Holds biases too.
    webui       kohya's keys: A1111's web UI, Forge, ComfyUI, and diffusers. Holds matrices alone.
"""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hfi.errors import HfiError

# kohya's readers scale by alpha / rank. One alpha for all, with the ranks multiplied into the matrices, because diffusers 0.42 loses
# alphas that differ between modules.
_ALPHA = 1.0


@dataclass(frozen=True)
class Pair:
    """scale * up [out, r] @ down [r, ...], and their distance to what they stand for, as Frobenius norms."""

    up: Tensor
    down: Tensor
    scale: float
    off: float
    norm: float

    @property
    def rank(self) -> int:
        return len(self.down)


@dataclass(frozen=True)
class Lora:
    """`errors`: of each changed matrix, relative. `total`: of all changed tensors as one vector, those left out included."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    ranks: dict[str, int]
    errors: dict[str, float]
    total: float
    left_out: list[str]

    @property
    def worst(self) -> float:
        return max(self.errors.values(), default=0.0)


def factorize(change: Tensor, rank: int | None, max_error: float, dtype: torch.dtype, alpha: float | None = None) -> Pair:
    """The pair of the given rank, or else of the smallest rank that stays within max_error. Its scale is alpha / rank, or 1."""
    matrix = change.double().flatten(1)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    lost = s.square().flip(0).cumsum(0).flip(0).sqrt()  # lost[r]: the norm that is missing with the r largest values
    if rank is None:
        rank = int((lost > max_error * lost[0]).sum())
    rank = min(max(rank, 1), len(s))
    scale = alpha / rank if alpha else 1.0
    root = (s[:rank] / scale).sqrt()
    up, down = (u[:, :rank] * root).to(dtype), (root[:, None] * vt[:rank]).to(dtype)
    off = torch.linalg.norm(matrix - scale * up.double() @ down.double())
    return Pair(up.contiguous(), down.reshape(rank, *change.shape[1:]).contiguous(), scale, float(off), float(lost[0]))


def lora(
    base: Mapping[str, Tensor],
    changed: Mapping[str, Tensor],
    *,
    format: str = "diffusers",
    rank: int | None = None,
    max_error: float = 0.01,
    without_biases: bool = False,
    dtype: torch.dtype = torch.float32,
    watch: Callable[[str], None] = lambda name: None,
) -> Lora:
    """The LoRA of a U-Net's changed tensors, by name. HfiError naming what it cannot hold. `watch` hears each matrix's name."""
    changes = {name: new.double() - base[name].detach().cpu().double() for name, new in changed.items()}
    changes = {name: change for name, change in changes.items() if change.any()}
    matrices = {_module(name): change for name, change in changes.items() if name.endswith(".weight") and change.ndim in (2, 4)}
    biases = {_module(name): change for name, change in changes.items() if _is_bias(name, base)}
    held = {f"{module}.weight" for module in matrices}
    if format == "diffusers" and not without_biases:
        held |= {f"{module}.bias" for module in biases}
    left_out = sorted(set(changes) - held)
    _check(changes, left_out, {f"{module}.bias" for module in biases}, without_biases)

    pairs, errors = {}, {}
    for module, change in matrices.items():
        pairs[module] = factorize(change, rank, max_error, dtype, _ALPHA if format == "webui" else None)
        errors[f"{module}.weight"] = pairs[module].off / pairs[module].norm
        watch(module)
    off = math.hypot(*(p.off for p in pairs.values()), *(float(changes[name].norm()) for name in left_out))
    total = off / math.hypot(*(float(change.norm()) for change in changes.values()))
    ranks = {module: pair.rank for module, pair in pairs.items()}
    metadata: dict[str, str] = {}
    if format == "webui":
        tensors = _kohya(pairs)
    else:
        tensors, metadata = _peft(pairs, {} if without_biases else biases, base, dtype)
    return Lora(tensors, metadata, ranks, errors, total, left_out)


def _module(name: str) -> str:
    return name.rpartition(".")[0]


def _is_bias(name: str, base: Mapping[str, Tensor]) -> bool:
    """Whether this is the bias of a matrix: that of a norm is none."""
    weight = base.get(f"{_module(name)}.weight")
    return name.endswith(".bias") and weight is not None and weight.ndim in (2, 4)


def _check(changes: Mapping[str, Tensor], left_out: Sequence[str], biases: Collection[str], without_biases: bool) -> None:
    if not changes:
        raise HfiError("the erasure changes no value of this model: there is nothing to export as a LoRA")
    if strange := [name for name in left_out if not (without_biases and name in biases)]:
        named = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
        hint = "export a folder or a single file instead"
        if all(name in biases for name in strange):
            hint = "--format diffusers holds the biases of matrices, --without-biases leaves them out and counts them as an error"
        raise HfiError(f"a LoRA of this format cannot hold the changed {named}: {hint}")


def _kohya(pairs: Mapping[str, Pair]) -> dict[str, Tensor]:
    tensors = {}
    for module, pair in pairs.items():
        key = f"lora_unet_{module.replace('.', '_')}"
        tensors[f"{key}.lora_up.weight"] = _shape_up(pair)
        tensors[f"{key}.lora_down.weight"] = pair.down
        tensors[f"{key}.alpha"] = torch.tensor(_ALPHA, dtype=pair.up.dtype)
    return tensors


def _peft(
    pairs: Mapping[str, Pair], biases: Mapping[str, Tensor], base: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """PEFT gives all modules a bias or none, so those whose own did not change, or that have none, get zeros."""
    tensors = {}
    nothing = {module: base[f"{module}.weight"].shape for module in biases if module not in pairs}
    for module, shape in nothing.items():
        zero = Pair(torch.zeros(shape[0], 1, dtype=dtype), torch.zeros(1, *shape[1:], dtype=dtype), 1.0, 0.0, 0.0)
        pairs = {**pairs, module: zero}
    for module, pair in pairs.items():
        key = f"unet.{module}"
        tensors[f"{key}.lora_A.weight"] = pair.down
        tensors[f"{key}.lora_B.weight"] = _shape_up(pair)
        if biases:
            bias = biases.get(module)
            tensors[f"{key}.lora_B.bias"] = torch.zeros(len(pair.up), dtype=dtype) if bias is None else bias.to(dtype)
    ranks = {f"^{module}": pair.rank for module, pair in pairs.items()}
    config: dict[str, Any] = {
        "r": max(ranks.values()),
        "lora_alpha": max(ranks.values()),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,  # alpha = rank: a scale of 1 everywhere
        "target_modules": list(pairs),
        "lora_bias": bool(biases),
    }
    return tensors, {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}


def _shape_up(pair: Pair) -> Tensor:
    """[out, r], of a convolution [out, r, 1, 1]."""
    return pair.up.reshape(*pair.up.shape, *(1,) * (pair.down.ndim - 2))
