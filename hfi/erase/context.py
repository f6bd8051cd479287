"""SDD in context (beyond the paper): people's feedback says which prompts went wrong, so the concept is removed inside those.

For a flagged prompt p, a harmless prompt h and the concept's text v, with the frozen model eps and z_t from the teacher's
rollout on c:

    target(p) = eps(z_t, p) - eta (eps(z_t, h + v) - eps(z_t, h))
    loss      = || eps_student(z_t, c) - target(p) ||^2
              + retain_weight || eps_student(z_t, h) - eps(z_t, h) ||^2
              + clean_weight  || eps_student(x_t, p_x) - noise ||^2,      x an image that people judged clean, p_x its prompt

What v adds to h is subtracted eta times from p; what else p asks for stays. The difference is taken at h because at p it can
vanish: where p already asks for the concept, v adds nothing to it. h is drawn from the retained prompts, the empty one among
them. In a share of the rollouts (`explicit`) c is p and, behind it, v or the words that people would ask for the concept with:
both lead to the same place; else c = p.

A concept that no text asks for well (people's eyes know it, captions never named it) has hardly a direction to subtract. What
flagged prompts should give instead people have said too: x are the clean images among those that flagged prompts gave.

As in sdd.py the teacher is the student's moving average, makes z_t, and is the result; and the formula is linear in what the
network predicts.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hfi.config import option
from hfi.diffusion.cond import Cond
from hfi.diffusion.sd import StableDiffusion, diffused, encode_null, encode_prompts
from hfi.diffusion.training import State, Training
from hfi.erase.distil import DistilConfig, Distilled, Predict, distil, squared_error
from hfi.erase.removal import Removal
from hfi.errors import NoJudgments


@dataclass(frozen=True, kw_only=True)
class ContextConfig(DistilConfig):
    """The defaults are ours, measured on Portraits."""

    steps: int = option(500, "optimizer updates", low=1)
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
    clean_weight: float = option(10.0, "weight of learning flagged prompts from their images that people judged clean", low=0)


def context_target(eps_prompt: Tensor, eps_with: Tensor, eps_harmless: Tensor, eta: float) -> Tensor:
    """eps_prompt - eta (eps_with - eps_harmless): [B, C, h, w] x3 -> [B, C, h, w]."""
    return eps_prompt - eta * (eps_with - eps_harmless)


def eta_at(step: int, config: ContextConfig) -> float:
    """eta at an update, counted from 1. linear: eta min(1, 3 step / steps)."""
    return config.eta if config.eta_schedule == "constant" else config.eta * min(1.0, 3 * step / config.steps)


@dataclass(frozen=True)
class Contexts:
    """N distinct pairs of a flagged prompt and its concept, and R conditions that rollouts go toward: each prompt as it is, and with
    each text behind it that names its concept."""

    prompts: list[str]
    concept: Tensor  # [N], index into Removal.texts
    suffixes: dict[str, list[int]]  # behind which of the prompts a text stands; R in all, in this order
    shares: Tensor  # [R], how often a condition is drawn

    @property
    def pair(self) -> Tensor:
        """[R], index into the pairs."""
        return torch.tensor([i for rows in self.suffixes.values() for i in rows])


def contexts(removal: Removal, explicit: float) -> Contexts:
    """NoJudgments where no flagged image has a prompt."""
    counts = Counter((k, prompt) for k, prompts in enumerate(removal.contexts) for prompt in prompts)
    if not counts:
        raise NoJudgments("no flagged image has a prompt, so there is no context to remove the concept in: use --method sdd")
    names = [sorted({text, *removal.words[k : k + 1]} - {""}) for k, text in enumerate(removal.texts)]
    suffixes: dict[str, list[int]] = {"": list(range(len(counts)))}
    shares = {("", i): count * (1 - explicit) for i, count in enumerate(counts.values())}
    for i, ((k, _), count) in enumerate(counts.items()):
        for name in names[k]:
            suffixes.setdefault(name, []).append(i)
            shares[name, i] = count * explicit / len(names[k])
    drawn = [shares[name, i] for name, rows in suffixes.items() for i in rows]
    return Contexts([p for _, p in counts], torch.tensor([k for k, _ in counts]), suffixes, torch.tensor(drawn))


def erase_context(
    sd: StableDiffusion, removal: Removal, config: ContextConfig, state: State | None = None
) -> Training[Distilled]:
    """`removal.contexts` are the flagged prompts of each concept; the empty prompt is always among those retained."""
    found = contexts(removal, config.explicit)
    pair = found.pair
    harmless = ["", *dict.fromkeys(p for p in removal.retain if p)]
    m, clean = len(harmless), removal.clean if config.clean_weight else None
    plain = encode_prompts(sd, found.prompts)  # N
    named = [encode_prompts(sd, [found.prompts[i] for i in rows], suffix=name) for name, rows in found.suffixes.items()]
    conditions = Cond.cat(named)  # R
    null = encode_null(sd)
    retained = Cond.cat([null, encode_prompts(sd, harmless)[1:]])  # M: the empty prompt is what guidance takes for it
    with_concept = Cond.cat([encode_prompts(sd, harmless, suffix=v) for v in removal.texts])  # K M
    asked_for = list(dict.fromkeys(clean.prompts)) if clean else []
    of_clean = encode_prompts(sd, asked_for) if clean else None
    which = torch.tensor([asked_for.index(p) for p in clean.prompts]) if clean else None

    def objective(
        student: Predict, frozen: Predict, z: Tensor, t: Tensor, c: Tensor, generator: torch.Generator, step: int
    ) -> Tensor:
        p, h = pair[c], torch.randint(m, (len(z),), generator=generator)
        asked = Cond.cat([plain[p], with_concept[found.concept[p] * m + h], retained[h]])
        eps_p, eps_hv, eps_h = frozen(torch.cat([z] * 3), torch.cat([t] * 3), asked).chunk(3)
        # (weight, latents, condition, what the student should predict)
        wanted = [(1.0, z, conditions[c], context_target(eps_p, eps_hv, eps_h, eta_at(step, config)))]
        if config.retain_weight:
            wanted.append((config.retain_weight, z, retained[h], eps_h))
        if clean and of_clean and which is not None:
            i = torch.randint(len(clean.prompts), (len(z),), generator=generator)
            z0 = clean.mean[i] + clean.std[i] * torch.randn(z.shape, generator=generator).to(clean.mean)
            x_t, target = diffused(sd, z0, torch.randn(z.shape, generator=generator).to(z0), t)
            wanted.append((config.clean_weight, x_t, of_clean[which[i]], target))
        weights, latents, conds, targets = zip(*wanted, strict=True)
        got = student(torch.cat(latents), torch.cat([t] * len(wanted)), Cond.cat(conds)).chunk(len(wanted))
        errors = [w * squared_error(a, b) for w, a, b in zip(weights, got, targets, strict=True)]
        return torch.stack(errors).sum(0)

    return distil(sd, conditions, found.shares, null, objective, config, state, part=config.train, ema_decay=config.ema_decay)
