"""SEGA: Semantic Guidance (Brack et al., NeurIPS 2023, arXiv 2301.12247), each concept an edit in the reverse direction.

    e   = e_0 + s_g (e_p - e_0) + g                       in the warm-up steps without g
    g   = sum_k psi_k + s_m nu
    psi = -s_e (e_k - e_0), where its magnitude is in the tail above its quantile lambda, else 0
    nu <- beta nu + (1 - beta) g, from 0, warm-up included

e_0, e_p, e_k: outputs for no prompt, for the prompt, and for concept k's text. The quantile is of each image and latent channel, so
an image does not depend on its neighbours. Equal to diffusers' SemanticStableDiffusionPipeline with `reverse_editing_direction`, for
SD 1.x and 2.x (v has the place of e for a network that predicts it). For SDXL no such pipeline exists; ours is the same formula,
with each concept's pooled text beside its states.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hfi.diffusion.sample import Combine, Guidance

EDIT_SCALE = 5.0
WARMUP = 10
THRESHOLD = 0.9
MOMENTUM_SCALE = 0.1
MOMENTUM_BETA = 0.4


def edit(null: Tensor, concept: Tensor) -> Tensor:
    """psi of one concept: [B, C, h, w] x2 -> [B, C, h, w]."""
    psi = -EDIT_SCALE * (concept - null)
    size = psi.abs()
    bound = torch.quantile(size.flatten(2).float(), THRESHOLD, dim=2).to(size)  # torch has no quantile of half precision
    return torch.where(size >= bound[:, :, None, None], psi, 0)


def sega(texts: Sequence[str]) -> Guidance:
    def begin(scale: float) -> Combine:
        nu: Tensor | float = 0.0

        def combine(step: int, null: Tensor, cond: Tensor, against: Tensor) -> Tensor:
            nonlocal nu
            g = torch.stack([edit(null, concept) for concept in against]).sum(0) + MOMENTUM_SCALE * nu
            nu = MOMENTUM_BETA * nu + (1 - MOMENTUM_BETA) * g
            return null + scale * (cond - null) + (g if step >= WARMUP else 0)

        return combine

    return Guidance("sega", against=tuple(texts), begin=begin)
