"""Which of a U-Net's parameters are trained, by name."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from hfi.errors import ModelError

Part = Literal["xattn", "noxattn", "selfattn", "full", "kv"]

# diffusers calls the cross-attention of a transformer block attn2 and its self-attention attn1. As in the code of ESD's paper and in
# SDD's, noxattn leaves out what embeds the time and the last convolution; the paper says no more than "unconditional layers"
PARTS: dict[str, Callable[[str], bool]] = {
    "xattn": lambda name: ".attn2." in name,
    "noxattn": lambda name: not any(part in name for part in (".attn2.", "time_embedding.", "conv_out.")),
    "selfattn": lambda name: ".attn1." in name,
    "full": lambda name: True,
    "kv": lambda name: ".attn2.to_k." in name or ".attn2.to_v." in name,  # all that reads the text
}


def select(unet: Any, part: Part) -> dict[str, Tensor]:
    """The named part's parameters, by name. ModelError where the network has none."""
    chosen = {name: p for name, p in unet.named_parameters() if PARTS[part](name)}
    if not chosen:
        raise ModelError(f"this U-Net has no {part} parameters: choose {', '.join(PARTS)}")
    return chosen


def masters(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """float32 copies to train or average: under a small learning rate a bf16 weight does not move."""
    return {name: value.detach().float().clone() for name, value in weights.items()}


def ema_update(average: dict[str, Tensor], current: dict[str, Tensor], decay: float) -> None:
    """average <- decay average + (1 - decay) current, in place, with the same decay from the first step on."""
    for name, value in average.items():
        value.mul_(decay).add_(current[name].detach(), alpha=1 - decay)
