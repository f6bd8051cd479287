"""What makes a model fit into less memory: frozen weights in half precision, activations computed twice, sliced attention, and parts
that wait in the CPU's memory until they are called."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hfi.resources import process_memory

# of the frozen weights: what is trained is kept in float32 (trainable.masters), and so are latents and losses (sd.predict)
PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def lighten(unet: Any, *, gradient_checkpointing: bool = False, attention_slicing: bool = False) -> None:
    """Trades speed for memory in a U-Net, in place. Neither changes what is computed, up to rounding.

    Slicing helps only where torch has no fused attention: it writes the scores out, 541 MiB instead of 31 for 4,096 latent pixels.
    """
    if gradient_checkpointing:
        unet.enable_gradient_checkpointing(checkpointed)
    if attention_slicing:
        unet.set_attention_slice("auto")


def offload(unet: Any, parts: Sequence[Any], device: torch.device) -> None:
    """Moves parts of a model (text encoders, VAE) to the CPU's memory, in place. Each comes to `device` when it is called, and goes
    back when the U-Net is. Nothing that is computed changes.

    Not for a part that gradients flow through: it would be gone when they do. And last of all: a copy of a part made later would
    call the part that it was copied from.
    """
    from accelerate import cpu_offload_with_hook

    waiting = [cpu_offload_with_hook(part, device)[1] for part in parts]

    def send_back(module: Any, args: Any) -> None:
        for hook in waiting:
            if next(hook.model.parameters()).device.type != "cpu":
                hook.offload()

    unet.register_forward_pre_hook(send_back)


def checkpointed(block: Any, *args: Any) -> Tensor:
    """A block whose activations are computed again in the backward pass, with the weights that it has now.

    `predict` swaps weights in for the length of one call. By the time of the backward pass they are gone, and a block that is
    simply called again, as diffusers does, would see the frozen ones.
    """
    weights = dict(block.named_parameters())

    def run(*again: Any) -> Tensor:
        out: Tensor = torch.func.functional_call(block, weights, again)
        return out

    out: Tensor = checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False)  # a model in evaluation draws nothing
    return out


def unrounded(weights: Mapping[str, Tensor], first: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights trained on a copy in `dtype`, with what that rounding took from their first values given back."""
    return {name: value + (first[name].detach() - first[name].detach().to(dtype)) for name, value in weights.items()}


def peak_memory() -> int:
    """The most bytes so far: of the GPU where this process uses one, else of the process."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_initialized() else process_memory()
