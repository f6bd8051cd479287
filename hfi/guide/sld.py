"""SLD: Safe Latent Diffusion (Schramowski et al., CVPR 2023, arXiv 2211.05105; numbers are those of its equations).

    e  = e_0 + s_g (e_p - e_0 - g)                              (3)  in the warm-up steps without g
    g  = mu (e_s - e_0) + s_m nu                                (4), (7)
    mu = min(1, s_S |e_p - e_s|) where e_p - e_s < lambda, else 0  (6), in which max is printed
    nu <- beta nu + (1 - beta) g, from 0, warm-up included      (8)

e_0, e_p, e_s: outputs for no prompt, for the prompt, and for the concepts' joined text; all products element by element, so an
image does not depend on its neighbours. Equal to diffusers' StableDiffusionPipelineSafe, as the authors run it, for SD 1.x and 2.x:
there too a network that predicts v has its v in the place of e, so lambda is then a threshold on velocities. For SDXL no such
pipeline exists; ours is the same formula, with the concepts' pooled text beside their states.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hfi.diffusion.sample import Combine, Guidance


@dataclass(frozen=True)
class SLD:
    """Warm-up in steps, s_S, lambda, s_m and beta."""

    warmup: int
    scale: float
    threshold: float
    momentum_scale: float
    momentum_beta: float


WEAK = SLD(15, 20, 0.0, 0.0, 0.0)
MEDIUM = SLD(10, 1000, 0.01, 0.3, 0.4)
STRONG = SLD(7, 2000, 0.025, 0.5, 0.7)
MAX = SLD(0, 5000, 1.0, 0.5, 0.7)


def safety(null: Tensor, cond: Tensor, unsafe: Tensor, config: SLD) -> Tensor:
    """mu (e_s - e_0): [B, C, h, w] x3 -> [B, C, h, w]."""
    apart = cond - unsafe
    mu = (config.scale * apart.abs()).clamp(max=1)
    return torch.where(apart < config.threshold, mu, 0) * (unsafe - null)


def sld(name: str, texts: Sequence[str], config: SLD) -> Guidance:
    def begin(scale: float) -> Combine:
        nu: Tensor | float = 0.0

        def combine(step: int, null: Tensor, cond: Tensor, against: Tensor) -> Tensor:
            nonlocal nu
            g = safety(null, cond, against[0], config) + config.momentum_scale * nu
            nu = config.momentum_beta * nu + (1 - config.momentum_beta) * g
            return null + scale * (cond - null - (g if step >= config.warmup else 0))

        return combine

    return Guidance(name, against=(", ".join(texts),), begin=begin)
