"""SDD in context (beyond the paper): people's feedback says which prompts went wrong, so the concept is removed inside those.

For a flagged prompt p, a harmless prompt h and the concept's text v, with the frozen model eps and z_t from the teacher's
rollout on c:

    target(p) = eps(z_t, p) - eta (eps(z_t, h + v) - eps(z_t, h))
    loss      = || eps_student(z_t, c) - target(p) ||^2,     c = p, or c = p + v in a share of the rollouts (`explicit`)
              + retain_weight || eps_student(z_t, h) - eps(z_t, h) ||^2

What v adds to h is subtracted eta times from p; what else p asks for stays. The difference is taken at h because at p it can
vanish: where p already asks for the concept, v adds nothing to it. h is drawn from the retained prompts, the empty one among
them. With c = p + v, asking for the concept leads to the same place. As in sdd.py the teacher is the student's moving average,
makes z_t, and is the result; and the formula is linear in what the network predicts.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hfi.config import option
from hfi.diffusion.cond import Cond
from hfi.diffusion.sd import StableDiffusion, encode_null, encode_prompts
from hfi.diffusion.training import State, Training
from hfi.erase.distil import DistilConfig, Distilled, Predict, distil, squared_error
from hfi.erase.removal import Removal
from hfi.errors import NoJudgments


@dataclass(frozen=True, kw_only=True)
class ContextConfig(DistilConfig):
    """The defaults are ours, measured on Portraits."""

    steps: int = option(300, "optimizer updates", low=1)
    learning_rate: float = option(5e-4, "AdamW's learning rate", above=0)
    ema_decay: float = option(0.98, "m in: teacher <- m teacher + (1-m) student", low=0, high=1)
    batch_size: int = option(8, "latents in one update", low=1)
    ddim_steps: int = option(25, "steps of a whole rollout", low=2)
    rollouts: Literal["fresh", "staggered"] = option("staggered", "new rollouts for each update, or a pool moved on by one step")
    error: Literal["prediction", "velocity"] = option(
        "velocity", "what errors are measured in: the network's prediction (SDD), or the velocity, where noisy steps count more"
    )
    eta: float = option(4.0, "how many times the concept's part is subtracted", above=0)
    eta_schedule: Literal["constant", "linear"] = option(
        "constant", "eta from the first update on, or growing from 0 over the first third of them"
    )
    explicit: float = option(0.3, "share of the rollouts on prompts that name the concept", low=0, high=1)
    retain_weight: float = option(1.0, "weight of holding harmless prompts to the frozen model", low=0)


def context_target(eps_prompt: Tensor, eps_with: Tensor, eps_harmless: Tensor, eta: float) -> Tensor:
    """eps_prompt - eta (eps_with - eps_harmless): [B, C, h, w] x3 -> [B, C, h, w]."""
    return eps_prompt - eta * (eps_with - eps_harmless)


def eta_at(step: int, config: ContextConfig) -> float:
    """eta at an update, counted from 1. linear: eta min(1, 3 step / steps)."""
    return config.eta if config.eta_schedule == "constant" else config.eta * min(1.0, 3 * step / config.steps)


def contexts(removal: Removal) -> tuple[list[str], list[str], Tensor]:
    """(prompts, concept texts, counts [N]) of each distinct pair of a flagged prompt and its concept."""
    pairs = Counter((prompt, text) for text, prompts in zip(removal.texts, removal.contexts, strict=True) for prompt in prompts)
    if not pairs:
        raise NoJudgments("no flagged image has a prompt, so there is no context to remove the concept in: use --method sdd")
    return [p for p, _ in pairs], [v for _, v in pairs], torch.tensor(list(pairs.values()), dtype=torch.float)


def erase_context(
    sd: StableDiffusion, removal: Removal, config: ContextConfig, state: State | None = None
) -> Training[Distilled]:
    """`removal.contexts` are the flagged prompts of each concept; the empty prompt is always among those retained."""
    prompts, texts, counts = contexts(removal)
    harmless = ["", *dict.fromkeys(p for p in removal.retain if p)]
    n, m = len(prompts), len(harmless)
    plain = encode_prompts(sd, prompts)
    naming = Cond.cat([encode_prompts(sd, [p], suffix=v) for p, v in zip(prompts, texts, strict=True)])
    conditions = Cond.cat([plain, naming])  # 2N
    shares = torch.cat([counts * (1 - config.explicit), counts * config.explicit])
    null = encode_null(sd)
    retained = Cond.cat([null, encode_prompts(sd, harmless)[1:]])  # M: the empty prompt is what guidance takes for it
    concepts = list(dict.fromkeys(texts))
    with_concept = Cond.cat([encode_prompts(sd, harmless, suffix=v) for v in concepts])  # K M
    first = torch.tensor([concepts.index(v) * m for v in texts])  # [N]: where the rows of a flagged prompt's concept begin

    def objective(
        student: Predict, frozen: Predict, z: Tensor, t: Tensor, c: Tensor, generator: torch.Generator, step: int
    ) -> Tensor:
        h = torch.randint(m, (len(z),), generator=generator)
        asked = Cond.cat([plain[c % n], with_concept[first[c % n] + h], retained[h]])
        eps_p, eps_hv, eps_h = frozen(torch.cat([z] * 3), torch.cat([t] * 3), asked).chunk(3)
        target = context_target(eps_p, eps_hv, eps_h, eta_at(step, config))
        if not config.retain_weight:
            return squared_error(student(z, t, conditions[c]), target)
        wanted = Cond.cat([conditions[c], retained[h]])
        got, kept = student(torch.cat([z] * 2), torch.cat([t] * 2), wanted).chunk(2)
        return squared_error(got, target) + config.retain_weight * squared_error(kept, eps_h)

    return distil(sd, conditions, shares, null, objective, config, state)
