"""Learned tokens as other programs write and read them.

    diffusers   one tensor under the placeholder's name: load_textual_inversion takes the file
    webui       one tensor named emb_params: A1111's web UI, Forge, ComfyUI; a prompt names the file
    (SDXL)      clip_l and clip_g for its two encoders, in either format: diffusers is given them one by one (`in_diffusers`)
    pickled     A1111's own .pt: {"string_to_param": {"*": tensor}, "name": ...}; read, never written

`Vectors` are a token's rows for each text encoder, each [n, D]: under ONE where the model has one encoder, else under SDXL's two
names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hfi.diffusion.tokens import read_safetensors
from hfi.errors import ModelError

Vectors = dict[str, Tensor]
ONE = "emb_params"
SDXL = ("clip_l", "clip_g")
SUFFIXES = (".safetensors", ".pt", ".bin")


@dataclass(frozen=True)
class Found:
    """What a token file says: the vectors, the name it gives them, if any, and its metadata."""

    vectors: Vectors
    name: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def encode(placeholder: str, vectors: Vectors, format: str) -> dict[str, Tensor]:
    """The tensors of a token file."""
    return {placeholder: vectors[ONE]} if format == "diffusers" and set(vectors) == {ONE} else vectors


def in_diffusers(file: Path, placeholder: str, encoders: int) -> list[str]:
    """The lines of Python that load the file into a pipeline `pipe`. One tensor has one encoder: for SDXL, whose file diffusers
    does not take as a whole, each tensor is given with its own."""
    if encoders == 1:
        return [f"pipe.load_textual_inversion({str(file)!r})"]
    lines = ["import safetensors.torch", f"vectors = safetensors.torch.load_file({str(file)!r})"]
    for key, end in zip(SDXL, ("", "_2"), strict=True):
        parts = f"text_encoder=pipe.text_encoder{end}, tokenizer=pipe.tokenizer{end}"
        lines.append(f"pipe.load_textual_inversion(vectors[{key!r}], token={placeholder!r}, {parts})")
    return lines


def read(path: Path) -> Found:
    """A token file of any of these formats. ModelError for what is none, for odd shapes and for values that are not finite.

    A pickle is read with torch's weights_only, which builds tensors and plain containers and runs nothing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ModelError(f"{path} is no token file by its name: {', '.join(SUFFIXES)} are read")
    metadata: Mapping[str, str] = {}
    if path.suffix.lower() == ".safetensors":
        data, metadata = read_safetensors(path, "token")
    else:
        data = _unpickle(path)
    name, given = _decode(data, path)
    vectors = {encoder: _rows(value, path) for encoder, value in given.items()}
    if len({len(rows) for rows in vectors.values()}) > 1:
        raise ModelError(f"{path} holds different numbers of vectors for its two text encoders")
    return Found(vectors, name, metadata)


def _unpickle(path: Path) -> Any:
    if not path.is_file():
        raise ModelError(f"no token file {path}: check the path")
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except Exception as e:  # a damaged or hostile file raises whatever its bytes happen to mean
        raise ModelError(
            f"{path} cannot be read safely ({type(e).__name__}): it is damaged, or holds more than tensors; "
            "ask for a .safetensors file"
        ) from None


def _decode(data: Any, path: Path) -> tuple[str | None, dict[str, Any]]:
    """(name, tensors by encoder) of what the file holds."""
    if isinstance(data, Tensor):
        return None, {ONE: data}
    if isinstance(data, dict) and "string_to_param" in data:
        params = data["string_to_param"]
        if isinstance(params, dict) and (value := params.get("*", _only(params))) is not None:
            return data["name"] if isinstance(data.get("name"), str) else None, {ONE: value}
    elif isinstance(data, dict) and set(data) == set(SDXL):
        return None, data
    elif isinstance(data, dict) and (value := _only(data)) is not None:
        (key,) = data
        return key if isinstance(key, str) and key != ONE else None, {ONE: value}
    held = ", ".join(sorted(map(str, data))[:4]) if isinstance(data, dict) else type(data).__name__
    raise ModelError(
        f"{path} is no token file that hfi knows: it holds {held or 'nothing'}; known are one tensor under any name, "
        "clip_l with clip_g, and A1111's string_to_param"
    )


def _only(values: dict[Any, Any]) -> Any:
    return next(iter(values.values())) if len(values) == 1 else None


def _rows(value: Any, path: Path) -> Tensor:
    """[D] or [n, D] -> [n, D] in float32."""
    if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.numel() or not value.is_floating_point():
        what = f"a tensor of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ModelError(f"{path} is no token file: it holds {what}, not vectors [n, D] of a text encoder")
    rows = value.detach().float().reshape(-1, value.shape[-1]).contiguous()
    if not torch.isfinite(rows).all():
        raise ModelError(f"{path} holds values that are not finite: the token is damaged")
    return rows
