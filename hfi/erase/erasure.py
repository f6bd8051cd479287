"""The result of a method: the changed tensors alone, in one file with its provenance."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hfi.diffusion.sd import StableDiffusion, quiet
from hfi.diffusion.tokens import read_safetensors, share_copy, write_safetensors
from hfi.errors import HfiError, ModelError


@dataclass(frozen=True)
class Erasure:
    """New values, float32, of some of a U-Net's tensors, by name. Metadata: base (the model's content hash), method, config,
    concepts, judgments, ... ; lists and dicts are JSON."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.metadata["method"]

    @property
    def concepts(self) -> list[str]:
        found: list[str] = json.loads(self.metadata["concepts"])
        return found

    @cached_property
    def content(self) -> str:
        """sha256 of names and values."""
        total = hashlib.sha256()
        for name, value in sorted(self.tensors.items()):
            total.update(name.encode() + value.float().contiguous().numpy().tobytes())
        return total.hexdigest()

    def save(self, path: Path) -> None:
        write_safetensors(path, {name: value.float().contiguous() for name, value in self.tensors.items()}, self.metadata)

    @classmethod
    def load(cls, path: Path) -> "Erasure":
        tensors, metadata = read_safetensors(path, "erasure")
        if not {"base", "method", "concepts"} <= set(metadata):
            raise ModelError(f"{path} is no erasure of hfi: its metadata name no base, method and concepts")
        return cls(tensors, metadata)


def check_base(erasure: Erasure, content: str, name: str) -> None:
    """ModelError unless the erasure was made for the model of this content."""
    if erasure.metadata["base"] != content:
        made_for = erasure.metadata.get("base_name", "another model")
        raise ModelError(f"this erasure was made for {made_for} (content {erasure.metadata['base'][:12]}), not for {name}")


def apply(sd: StableDiffusion, erasure: Erasure) -> StableDiffusion:
    """The cleaned model. `sd` itself does not change, and all other tensors are shared with it. ModelError for another base."""
    check_base(erasure, sd.content, sd.name)
    unet = share_copy(sd.unet)
    for name, value in erasure.tensors.items():
        owner, _, last = name.rpartition(".")
        module = unet.get_submodule(owner)
        old = getattr(module, last)
        setattr(module, last, torch.nn.Parameter(value.to(old), requires_grad=False))
    return replace(sd, unet=unet)


def export_unet(sd: StableDiffusion, folder: Path) -> None:
    """The U-Net as a folder that diffusers' UNet2DConditionModel.from_pretrained reads; an older one there is replaced."""
    scratch = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with quiet():
            sd.unet.save_pretrained(scratch)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(scratch, folder)
    except OSError as e:
        raise HfiError(f"cannot write {folder}: {e}") from e
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
