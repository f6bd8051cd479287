"""The result of a method: the changed tensors alone, in one file with its provenance. And several results on one model.

An erasure that goes on from another holds that one's tensors too, so a file always stands for the whole way from the base model.
Several erasures of one base add up: where more than one changes a tensor, with values v_i where the base has w, it becomes

    w + sum_i (v_i - w)

which no order changes. What is known of this: each v_i was trained alone, so the sum is a guess that an evaluation must confirm.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hfi.diffusion.sd import StableDiffusion, quiet
from hfi.diffusion.tokens import read_safetensors, share_copy, write_safetensors
from hfi.errors import HfiError, ModelError, UsageError
from hfi.files import whole_folder


@dataclass(frozen=True)
class Erasure:
    """New values, float32, of some of a U-Net's tensors, by name. Metadata: base (the model's content hash), method, config,
    concepts, judgments, ..., and `from` where it goes on from another erasure; lists and dicts are JSON."""

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.metadata["method"]

    @property
    def history(self) -> list[dict[str, str]]:
        """Metadata and content of every step that led to it: those of the erasures it goes on from, then its own."""
        before: list[dict[str, str]] = json.loads(self.metadata.get("from", "[]"))
        own = {key: value for key, value in self.metadata.items() if key != "from"}
        return [*before, {**own, "content": self.content}]

    @property
    def concepts(self) -> list[str]:
        """All that it removes, what it goes on from included."""
        return list(dict.fromkeys(slug for step in self.history for slug in json.loads(step["concepts"])))

    @property
    def title(self) -> str:
        return f"{self.method} of {', '.join(self.concepts)} ({self.content[:12]})"

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
        raise ModelError(
            f"the erasure {erasure.title} was made for {made_for} (content {erasure.metadata['base'][:12]}), not for {name}"
        )


def check_together(erasures: Sequence[Erasure], content: str, name: str) -> None:
    """ModelError for another base. UsageError where something would be removed twice."""
    for erasure in erasures:
        check_base(erasure, content, name)
    holds: dict[str, Erasure] = {}  # content of each step -> the erasure that holds it
    for erasure in erasures:
        for step in erasure.history:
            if other := holds.get(step["content"]):
                raise UsageError(
                    f"{other.title} and {erasure.title} both hold {step['method']} of {', '.join(json.loads(step['concepts']))} "
                    f"({step['content'][:12]}), which would count twice: give one of them, or go on from it with 'hfi erase --from'"
                )
            holds[step["content"]] = erasure


def identity(erasures: Sequence[Erasure]) -> str | None:
    """What stands for this set of erasures, in any order: the content of one; None for none."""
    if len(erasures) < 2:
        return erasures[0].content if erasures else None
    return hashlib.sha256("\n".join(sorted(e.content for e in erasures)).encode()).hexdigest()


def compose(base: Mapping[str, Tensor], erasures: Sequence[Erasure]) -> dict[str, Tensor]:
    """The tensors that the erasures change in a U-Net with the tensors `base`, float32; see the formula above."""
    ordered = sorted(erasures, key=lambda e: e.content)  # floating-point sums depend on their order
    changed: dict[str, Tensor] = {}
    for name in sorted({name for e in ordered for name in e.tensors}):
        values = [e.tensors[name] for e in ordered if name in e.tensors]
        if len(values) == 1:
            changed[name] = values[0].float()
        else:
            w = base[name].detach().cpu().double()
            changed[name] = (w + torch.stack([v.double() - w for v in values]).sum(0)).float()
    return changed


def apply(sd: StableDiffusion, *erasures: Erasure) -> StableDiffusion:
    """The cleaned model. `sd` itself does not change, and all other tensors are shared with it. See `check_together`."""
    check_together(erasures, sd.content, sd.name)
    unet = share_copy(sd.unet)
    for name, value in compose(sd.unet.state_dict(), erasures).items():
        owner, _, last = name.rpartition(".")
        module = unet.get_submodule(owner)
        old = getattr(module, last)
        setattr(module, last, torch.nn.Parameter(value.to(old), requires_grad=False))
    return replace(sd, unet=unet)


def export_unet(sd: StableDiffusion, folder: Path) -> None:
    """The U-Net as a folder that diffusers' UNet2DConditionModel.from_pretrained reads; an older one there is replaced."""
    try:
        with quiet(), whole_folder(folder) as scratch:
            sd.unet.save_pretrained(scratch)
    except OSError as e:
        raise HfiError(f"cannot write {folder}: {e}") from e
