"""SDD: Safe self-Distillation Diffusion (Kim et al. 2023, Algorithm 1; timestep law of HFI 2024 with --timesteps beta).

    loss = || eps_student(z_t, c_s) - stopgrad( eps_student(z_t, "") ) ||^2
    c_s = all concepts joined;  z_t from the teacher with guidance s_g toward c_p = one concept, drawn uniformly
    teacher <- m teacher + (1 - m) student, from the first step on;  the teacher is the result

Linear in what the network predicts, so it holds unchanged for v-prediction. `--null frozen` takes the empty prompt's prediction
from the frozen model instead (beyond the paper: the two branches of the student cannot drift together).

Where the authors' code differs from their paper, this follows the paper:
 - the code samples z_t toward all concepts joined and trains on one of them; the paper, and this, the other way round;
 - its rollout for the first step never stops and pairs a finished picture with the noisiest timestep; here z after k steps is
   always paired with the timestep of step k;
 - it draws a timestep at random between two DDIM steps; here it is exactly the one whose noise level z has;
 - its 'sequential' mode only ever removes the first concept; here concepts are drawn uniformly;
 - its seed does not govern the drawn steps, its batch size changes the learning rate and not the batch, its latents are 64x64
   whatever the model, it cannot resume; here one seeded generator draws everything, a batch is a batch, sizes come from the
   model, and a run goes on exactly;
 - it averages every parameter of the U-Net into the teacher; here the trained ones, which is the same, as the others are equal.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hfi.config import option
from hfi.diffusion.sd import StableDiffusion, encode_null, encode_prompts
from hfi.diffusion.training import State, Training
from hfi.erase.distil import DistilConfig, Distilled, Predict, distil, squared_error
from hfi.erase.removal import Removal


@dataclass(frozen=True, kw_only=True)
class SDDConfig(DistilConfig):
    """The defaults are SDD's own."""

    null: Literal["student", "frozen"] = option("student", "whose prediction for the empty prompt is the target")


def sdd_loss(eps_concept: Tensor, eps_null: Tensor) -> Tensor:
    """|| eps_concept - stopgrad(eps_null) ||^2: [B, C, h, w] x2 -> [B]."""
    return squared_error(eps_concept, eps_null.detach())


def erase_sdd(sd: StableDiffusion, removal: Removal, config: SDDConfig, state: State | None = None) -> Training[Distilled]:
    """`removal.texts` are the concepts, as words or learned tokens."""
    each = encode_prompts(sd, removal.texts)  # c_p, K of them
    joined = encode_prompts(sd, [", ".join(removal.texts)])  # c_s
    null = encode_null(sd)

    def objective(
        student: Predict, frozen: Predict, z: Tensor, t: Tensor, c: Tensor, generator: torch.Generator, step: int
    ) -> Tensor:
        with torch.no_grad():
            target = (student if config.null == "student" else frozen)(z, t, null.expand(len(z)))
        return sdd_loss(student(z, t, joined.expand(len(z))), target)

    return distil(sd, each, torch.ones(len(each)), null, objective, config, state, part=config.train, ema_decay=config.ema_decay)
