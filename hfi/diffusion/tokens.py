"""Learned tokens: n vectors behind a placeholder, in one file that diffusers' load_textual_inversion reads.

A token of n vectors becomes the n vocabulary entries <t>, <t>_1, ... <t>_{n-1} (diffusers' names); `expand` writes them out
in a prompt.
"""

import copy
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hfi.errors import HfiError, ModelError, UsageError
from hfi.files import share, whole

if TYPE_CHECKING:
    from hfi.diffusion.sd import StableDiffusion

_PLACEHOLDER = re.compile(r"<[a-z0-9][a-z0-9-]*>")


@dataclass(frozen=True)
class LearnedToken:
    """`placeholder` such as <smoking>, `embeddings` float32 [n, D], `metadata` says where it comes from."""

    placeholder: str
    embeddings: Tensor
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_placeholder(self.placeholder)
        if self.embeddings.ndim != 2 or not len(self.embeddings):
            raise ValueError(f"embeddings of shape {tuple(self.embeddings.shape)}, not [n, D]")

    @property
    def content(self) -> str:
        """sha256 of the vectors."""
        return hashlib.sha256(self.embeddings.float().contiguous().numpy().tobytes()).hexdigest()

    @property
    def names(self) -> list[str]:
        """Its n vocabulary entries."""
        return vector_names(self.placeholder, len(self.embeddings))

    def save(self, path: Path) -> None:
        """One tensor under the placeholder's name, float32: the only dictionary that diffusers accepts has one key."""
        tensors = {self.placeholder: self.embeddings.detach().float().cpu().contiguous()}
        write_safetensors(path, tensors, self.metadata)

    @classmethod
    def load(cls, path: Path) -> "LearnedToken":
        tensors, metadata = read_safetensors(path, "token")
        if len(tensors) != 1:
            raise ModelError(f"{path} is no learned token: it holds {len(tensors)} tensors, a token file holds one")
        ((name, value),) = tensors.items()
        return cls(name, value.reshape(-1, value.shape[-1]).float(), metadata)


def check_placeholder(placeholder: str) -> None:
    """UsageError for a name that a lower-casing tokenizer would not find again, or that prompts could contain by chance."""
    if not _PLACEHOLDER.fullmatch(placeholder):
        raise UsageError(
            f"{placeholder!r} cannot name a token: use lower-case letters, digits and '-' between < and >, as in <smoking>"
        )


def vector_names(placeholder: str, n: int) -> list[str]:
    return [placeholder, *(f"{placeholder}_{i}" for i in range(1, n))]


def placeholders(text: str) -> list[str]:
    """The <names> in a text, lower-cased."""
    return _PLACEHOLDER.findall(text.lower())


def install(sd: "StableDiffusion", token: LearnedToken) -> "StableDiffusion":
    """The model with the token's rows at the end of the embedding table. `sd` itself does not change, and all other tensors are
    shared with it. ModelError where the name is taken or the width differs."""
    table: Tensor = sd.text_encoder.get_input_embeddings().weight
    if token.embeddings.shape[1] != table.shape[1]:
        raise ModelError(
            f"token {token.placeholder} has width {token.embeddings.shape[1]}, the text encoder of {sd.name} has "
            f"{table.shape[1]}: it was learned for another model"
        )
    if taken := [name for name in token.names if name in sd.tokenizer.get_vocab()]:
        raise ModelError(f"{taken[0]} is already in the vocabulary of {sd.name}: give the token another name")
    tokenizer = copy.deepcopy(sd.tokenizer)
    first = len(tokenizer)
    tokenizer.add_tokens(token.names)
    encoder = share_copy(sd.text_encoder)
    rows = torch.cat([table.detach()[:first], token.embeddings.to(table)])
    embedding = torch.nn.Embedding.from_pretrained(rows, freeze=True)
    encoder.set_input_embeddings(embedding)
    encoder.config.vocab_size = len(rows)
    return replace(sd, tokenizer=tokenizer, text_encoder=encoder)


def share_copy(module: Any) -> Any:
    """A copy of a module that shares every parameter and buffer with the original: replacing one leaves the original as it is."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def expand(tokenizer: Any, prompt: str) -> str:
    """Writes out multi-vector tokens: '<t>' -> '<t> <t>_1 <t>_2'. Expanding twice changes nothing (diffusers' own doubles).

    Matches what the tokenizer will find: any case, but never '<t>_1' as '<t>', nor a name inside another.
    """
    added = tokenizer.added_tokens_encoder
    for placeholder in dict.fromkeys(placeholders(prompt)):
        n = 1
        while f"{placeholder}_{n}" in added:
            n += 1
        if placeholder in added and n > 1:
            full = " ".join(vector_names(placeholder, n))
            name = re.escape(placeholder)
            prompt = re.sub(rf"{name}(?!_\d)(?:\s*{name}_\d+)*", full, prompt, flags=re.IGNORECASE)
    return prompt


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a whole file or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as scratch:
            save_file(dict(tensors), scratch, metadata=dict(metadata) or None)
            share(scratch)
    except (OSError, SafetensorError) as e:
        raise HfiError(f"cannot write {path}: {e}") from e


def read_safetensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file; `kind` names it in the error."""
    if not path.is_file():
        raise ModelError(f"no {kind} file {path}: check the path")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{path} is no {kind} file: it is not safetensors ({e})") from None
