"""SDD in context (beyond the paper): people's feedback says which prompts went wrong, so the concept is removed inside those.

For a flagged prompt p and the concept's text v, with the frozen model eps and z_t from the teacher's rollout on c:

    target(p) = eps(z_t, p) - eta (eps(z_t, p + v) - eps(z_t, p))
    loss      = || eps_student(z_t, c) - target(p) ||^2,     c = p, or c = p + v in a share of the rollouts (`explicit`)
              + retain_weight || eps_student(z_t, h) - eps(z_t, h) ||^2,     h a harmless prompt or ""

What v adds to p is subtracted eta times; what else p asks for stays. With c = p + v, asking for the concept leads to the same
place. The retained prompts see the same z_t. As in sdd.py the teacher is the student's moving average, makes z_t, and is the
result; and the formula is linear in what the network predicts.
"""

from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hfi.config import option
from hfi.diffusion.sd import StableDiffusion, encode_prompts
from hfi.diffusion.training import State, Step
from hfi.erase.distil import DistilConfig, Distilled, Predict, distil, squared_error
from hfi.erase.removal import Removal
from hfi.errors import NoJudgments


@dataclass(frozen=True, kw_only=True)
class ContextConfig(DistilConfig):
    """The defaults are ours, measured on Portraits."""

    steps: int = option(300, "optimizer updates", low=1)
    learning_rate: float = option(2e-4, "AdamW's learning rate", above=0)
    ema_decay: float = option(0.98, "m in: teacher <- m teacher + (1-m) student", low=0, high=1)
    batch_size: int = option(8, "latents in one update", low=1)
    ddim_steps: int = option(25, "steps of a whole rollout", low=2)
    rollouts: Literal["fresh", "staggered"] = option("staggered", "new rollouts for each update, or a pool moved on by one step")
    eta: float = option(6.0, "how many times the concept's part is subtracted", above=0)
    explicit: float = option(0.3, "share of the rollouts on prompts that name the concept", low=0, high=1)
    retain_weight: float = option(1.0, "weight of holding harmless prompts to the frozen model", low=0)


def context_target(eps_prompt: Tensor, eps_with: Tensor, eta: float) -> Tensor:
    """eps_prompt - eta (eps_with - eps_prompt): [B, C, h, w] x2 -> [B, C, h, w]."""
    return eps_prompt - eta * (eps_with - eps_prompt)


def contexts(removal: Removal) -> tuple[list[str], list[str], Tensor]:
    """(prompts, concept texts, counts [N]) of each distinct pair of a flagged prompt and its concept."""
    pairs = Counter((prompt, text) for text, prompts in zip(removal.texts, removal.contexts, strict=True) for prompt in prompts)
    if not pairs:
        raise NoJudgments("no flagged image has a prompt, so there is no context to remove the concept in: use --method sdd")
    return [p for p, _ in pairs], [v for _, v in pairs], torch.tensor(list(pairs.values()), dtype=torch.float)


def erase_context(
    sd: StableDiffusion, removal: Removal, config: ContextConfig, state: State | None = None
) -> Generator[Step, None, Distilled]:
    """`removal.contexts` are the flagged prompts of each concept; the empty prompt is always among those retained."""
    prompts, texts, counts = contexts(removal)
    n = len(prompts)
    plain = encode_prompts(sd, prompts)
    naming = torch.cat([encode_prompts(sd, [p], suffix=v) for p, v in zip(prompts, texts, strict=True)])
    conditions = torch.cat([plain, naming])  # [2N, L, D]
    shares = torch.cat([counts * (1 - config.explicit), counts * config.explicit])
    null = encode_prompts(sd, [""])
    retained = encode_prompts(sd, ["", *dict.fromkeys(p for p in removal.retain if p)])

    def objective(student: Predict, frozen: Predict, z: Tensor, t: Tensor, c: Tensor, generator: torch.Generator) -> Tensor:
        b, c = len(z), c.to(conditions.device)
        keep = retained[torch.randint(len(retained), (b,), generator=generator).to(conditions.device)]
        asked = [plain[c % n], naming[c % n]]
        wanted, heard = [conditions[c]], 2
        if config.retain_weight:
            asked, wanted, heard = [*asked, keep], [*wanted, keep], 3
        fixed = frozen(torch.cat([z] * heard), torch.cat([t] * heard), torch.cat(asked)).chunk(heard)
        got = student(torch.cat([z] * len(wanted)), torch.cat([t] * len(wanted)), torch.cat(wanted)).chunk(len(wanted))
        loss = squared_error(got[0], context_target(fixed[0], fixed[1], config.eta))
        return loss + config.retain_weight * squared_error(got[1], fixed[2]) if config.retain_weight else loss

    return distil(sd, conditions, shares, null, objective, config, state)
