"""Learned tokens: n vectors behind a placeholder, for each text encoder of a model, in one file that other programs read.

One encoder: a single tensor under the placeholder's name, which diffusers' load_textual_inversion takes as it is. Two (SDXL):
`clip_l` and `clip_g`, which ComfyUI and A1111 read and users of diffusers load one by one (docs/architecture.md); the
placeholder is in the metadata.

A token of n vectors becomes the n vocabulary entries <t>, <t>_1, ... <t>_{n-1} (diffusers' names); `expand` writes them out
in a prompt.
"""

import copy
import hashlib
import re
from collections.abc import Mapping, Sequence
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
_KEYS = ("clip_l", "clip_g")  # of a file for two encoders


@dataclass(frozen=True)
class LearnedToken:
    """`placeholder` such as <smoking>, `embeddings` float32 [n, D] for each text encoder, `metadata` says where it comes from."""

    placeholder: str
    embeddings: tuple[Tensor, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_placeholder(self.placeholder)
        shapes = [tuple(vectors.shape) for vectors in self.embeddings]
        if len(shapes) not in (1, 2) or not all(len(s) == 2 and s[0] and s[0] == shapes[0][0] for s in shapes):
            raise ValueError(f"embeddings of shapes {shapes}, not [n, D] for each of one or two encoders")

    @property
    def content(self) -> str:
        """sha256 of the vectors."""
        total = hashlib.sha256()
        for vectors in self.embeddings:
            total.update(vectors.float().contiguous().numpy().tobytes())
        return total.hexdigest()

    @property
    def widths(self) -> tuple[int, ...]:
        """D of each text encoder."""
        return tuple(vectors.shape[1] for vectors in self.embeddings)

    @property
    def names(self) -> list[str]:
        """Its n vocabulary entries."""
        return vector_names(self.placeholder, len(self.embeddings[0]))

    def save(self, path: Path) -> None:
        """float32. For one encoder a single tensor under the placeholder's name: diffusers accepts no dictionary of more."""
        vectors = [v.detach().float().cpu().contiguous() for v in self.embeddings]
        if len(vectors) == 1:
            write_safetensors(path, {self.placeholder: vectors[0]}, self.metadata)
        else:
            about = {**self.metadata, "placeholder": self.placeholder}
            write_safetensors(path, dict(zip(_KEYS, vectors, strict=True)), about)

    @classmethod
    def load(cls, path: Path) -> "LearnedToken":
        tensors, metadata = read_safetensors(path, "token")
        if set(tensors) == set(_KEYS):
            if "placeholder" not in metadata:
                raise ModelError(f"{path} is no learned token of hfi: its metadata do not say which placeholder it stands for")
            name, values = metadata["placeholder"], [tensors[key] for key in _KEYS]
            if len({len(value) for value in values}) > 1:
                raise ModelError(f"{path} is no learned token: clip_l and clip_g hold different numbers of vectors")
        elif len(tensors) == 1:
            ((name, value),) = tensors.items()
            values = [value]
        else:
            raise ModelError(
                f"{path} is no learned token: it holds {len(tensors)} tensors, a token file holds one, or clip_l and clip_g"
            )
        return cls(name, tuple(value.reshape(-1, value.shape[-1]).float() for value in values), metadata)


def check_fits(token: LearnedToken, widths: Sequence[int], model: str) -> None:
    """ModelError unless the token was learned for text encoders of these widths D."""
    if len(token.widths) != len(widths):
        theirs, ours = (f"{n} text encoder{'s' * (n > 1)}" for n in (len(token.widths), len(widths)))
        raise ModelError(
            f"token {token.placeholder} has vectors for {theirs}, {model} has {ours}: it was learned for another model"
        )
    if token.widths != tuple(widths):
        theirs, ours = (" and ".join(map(str, w)) for w in (token.widths, widths))
        raise ModelError(
            f"token {token.placeholder} has width {theirs}, the text encoder of {model} has {ours}: it was learned for another "
            "model"
        )


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
    """The model with the token's rows at the end of each embedding table. `sd` itself does not change, and all other tensors are
    shared with it. ModelError where the name is taken or the token was learned for other encoders."""
    check_fits(token, [encoder.config.hidden_size for encoder in sd.text_encoders], sd.name)
    if taken := [name for name in token.names if any(name in tokenizer.get_vocab() for tokenizer in sd.tokenizers)]:
        raise ModelError(f"{taken[0]} is already in the vocabulary of {sd.name}: give the token another name")
    tokenizers, encoders = [], []
    for old, encoder, vectors in zip(sd.tokenizers, sd.text_encoders, token.embeddings, strict=True):
        table: Tensor = encoder.get_input_embeddings().weight
        rows = torch.cat([table.detach()[: len(old)], vectors.to(table)])
        tokenizers.append(copy.deepcopy(old))
        tokenizers[-1].add_tokens(token.names)
        encoders.append(share_copy(encoder))
        encoders[-1].set_input_embeddings(torch.nn.Embedding.from_pretrained(rows, freeze=True))
        encoders[-1].config.vocab_size = len(rows)
    return replace(sd, tokenizers=tuple(tokenizers), text_encoders=tuple(encoders))


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
