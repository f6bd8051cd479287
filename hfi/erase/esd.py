"""ESD: Erased Stable Diffusion (Gandikota et al. 2023, equation 7).

    target = eps(z_t, "") - eta (eps(z_t, c) - eps(z_t, ""))
    loss   = || eps_student(z_t, c) - target ||^2
    z_t from the student's own rollout with guidance toward c, a concept that is drawn uniformly for each latent

eps is the frozen model: what the concept adds to no prompt, the student learns to take away. There is no moving average: the
student makes z_t and is the result. Linear in what the network predicts, so it holds unchanged for v-prediction.

esd-x trains the cross-attention, which acts where a prompt names the concept; esd-u trains everything else (PARTS says what), which
acts whatever the prompt. The paper's eta is 1 (and its newer code's 2); 3 is that of SDD's comparison, "ESD-x-3" and "ESD-u-3", as
are the other defaults.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hfi.config import option
from hfi.diffusion.cond import Cond
from hfi.diffusion.sd import StableDiffusion, encode_null, encode_prompts
from hfi.diffusion.trainable import Part
from hfi.diffusion.training import State, Training
from hfi.erase.distil import Distilled, Predict, TrainingConfig, distil, squared_error
from hfi.erase.removal import Removal


@dataclass(frozen=True, kw_only=True)
class ESDConfig(TrainingConfig):
    """What both have; the trained part is the method's."""

    train: ClassVar[Part]
    steps: int = option(1000, "optimizer updates", low=1)
    eta: float = option(3.0, "how many times the concept's part is subtracted", above=0)


@dataclass(frozen=True, kw_only=True)
class ESDXConfig(ESDConfig):
    train: ClassVar[Part] = "xattn"


@dataclass(frozen=True, kw_only=True)
class ESDUConfig(ESDConfig):
    train: ClassVar[Part] = "noxattn"


def esd_target(eps_null: Tensor, eps_concept: Tensor, eta: float) -> Tensor:
    """eps_null - eta (eps_concept - eps_null): [B, C, h, w] x2 -> [B, C, h, w]."""
    return eps_null - eta * (eps_concept - eps_null)


def erase_esd(sd: StableDiffusion, removal: Removal, config: ESDConfig, state: State | None = None) -> Training[Distilled]:
    """`removal.texts` are the concepts, as words or learned tokens."""
    each, null = encode_prompts(sd, removal.texts), encode_null(sd)

    def objective(
        student: Predict, frozen: Predict, z: Tensor, t: Tensor, c: Tensor, generator: torch.Generator, step: int
    ) -> Tensor:
        both = Cond.cat([null.expand(len(z)), each[c]])
        eps_null, eps_concept = frozen(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        return squared_error(student(z, t, each[c]), esd_target(eps_null, eps_concept, config.eta))

    return distil(sd, each, torch.ones(len(each)), null, objective, config, state, part=config.train, ema_decay=0.0)
