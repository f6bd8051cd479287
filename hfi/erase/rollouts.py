"""Where the latents z_t come from: DDIM rollouts of the teacher, stopped at step k of S.

fresh      each training step draws k from the law and rolls B new latents from noise to there: S/2 teacher steps a latent.
staggered  a pool of B latents at evenly spread steps; each training step trains on all of them and moves each one teacher step
           on, so a latent visits k = 0 ... S-1 in turn and then starts again with new noise: one teacher step a latent. Every k
           is visited equally often, so a law other than the uniform one becomes a weight, law(k) S, on the loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hfi.diffusion.sample import Schedule, ddim_step

Law = Literal["uniform", "beta"]

Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # x [B, C, h, w], t [B], condition index [B] -> guided output [B, C, h, w]


def timestep_law(law: Law, steps: int) -> Tensor:
    """Probability of each step k = 0 ... S-1, float64 [S].

    uniform: SDD (2023). beta: HFI (2024), k = floor(S u) with u ~ Beta(3, 3), whose distribution function is
    10 u^3 - 15 u^4 + 6 u^5.
    """
    u = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    below = u if law == "uniform" else 10 * u**3 - 15 * u**4 + 6 * u**5
    return below.diff()


@dataclass
class Latents:
    """B latents in mid-course: x [B, C, h, w] after k [B] teacher steps toward condition c [B] (rows of a table)."""

    x: Tensor
    k: Tensor
    c: Tensor

    def state(self) -> dict[str, Tensor]:
        return {"x": self.x.cpu().clone(), "k": self.k.clone(), "c": self.c.clone()}


def start(
    shape: tuple[int, int, int], count: int, shares: Tensor, generator: torch.Generator, device: str | torch.device
) -> Latents:
    """Pure noise, each with a condition drawn by `shares` [N] (any scale). float32 whatever the network computes in: the small
    steps of a rollout would be lost in bfloat16."""
    x = torch.randn((count, *shape), generator=generator).to(device)
    c = torch.multinomial(shares, count, replacement=True, generator=generator)
    return Latents(x, torch.zeros(count, dtype=torch.long), c)


@torch.no_grad()
def roll(latents: Latents, to: Tensor, plan: Schedule, denoise: Denoise) -> None:
    """Moves each latent on to its own step to [B] >= k, in place."""
    while bool((moving := latents.k < to).any()):
        rows = moving.nonzero().squeeze(1)
        k = latents.k[rows].to(plan.timesteps.device)
        here = rows.to(latents.x.device)
        x = latents.x[here]
        out = denoise(x, plan.timesteps[k], latents.c[rows])
        latents.x[here] = ddim_step(x, out, plan.alpha[k], plan.alpha_next[k], plan.kind)
        latents.k[rows] += 1


def fresh(latents: Latents, law: Tensor, plan: Schedule, denoise: Denoise, generator: torch.Generator) -> None:
    """Rolls new latents to steps drawn from the law, in place."""
    to = torch.multinomial(law, len(latents.k), replacement=True, generator=generator)
    roll(latents, to, plan, denoise)


def spread(count: int, steps: int) -> Tensor:
    """Evenly spread first steps of a pool [B]: floor(b S / B)."""
    return torch.arange(count) * steps // count


def move_on(pool: Latents, plan: Schedule, denoise: Denoise, new: Callable[[int], Latents]) -> None:
    """Each latent one step further; one that was at the last step starts again as new noise. In place."""
    done = pool.k == len(plan) - 1
    roll(pool, torch.where(done, pool.k, pool.k + 1), plan, denoise)
    if rows := done.nonzero().squeeze(1).tolist():
        replaced = new(len(rows))
        pool.x[rows], pool.k[rows], pool.c[rows] = replaced.x, replaced.k, replaced.c
