"""What sdd.py, context.py and esd.py share: the student-teacher loop. What differs, the target, is in their own files.

    repeat:  z_t <- the teacher's rollout toward a condition (rollouts.py)
             one AdamW step of the student on the method's loss
             teacher <- m teacher + (1 - m) student
    result:  the teacher

Student, teacher and frozen model are one U-Net with three sets of the trained tensors, kept in float32.

Several processes (hfi/distributed.py) hold the same tensors, draw the same numbers and take the same steps; each computes its share of
the rows whenever the U-Net is asked for many, and the gradients are added up. A method's objective knows nothing of this.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from hfi.config import check, option
from hfi.diffusion.cond import Cond
from hfi.diffusion.sample import predict_guided, schedule
from hfi.diffusion.sd import StableDiffusion, predict, velocity_weight
from hfi.diffusion.trainable import Part, ema_update, masters, select
from hfi.diffusion.training import State, Step, Training
from hfi.distributed import in_shares, total_gradients
from hfi.erase.rollouts import Latents, fresh, move_on, roll, spread, start, timestep_law
from hfi.errors import NonFiniteLoss, UsageError

Predict = Callable[[Tensor, Tensor, Cond], Tensor]  # z [B, C, h, w], t [B], B conditions -> [B, C, h, w]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings that every method with this loop has. Sources of the defaults: docs/papers.md."""

    steps: int = option(1500, "optimizer updates", low=1)
    learning_rate: float = option(1e-5, "AdamW's learning rate", above=0)
    weight_decay: float = option(1e-4, "AdamW's weight decay", low=0)
    max_grad_norm: float = option(1.0, "gradients are scaled down to this norm", above=0)
    batch_size: int = option(1, "latents in one update", low=1)
    guidance_scale: float = option(3.0, "guidance of the teacher's rollouts", low=0)
    ddim_steps: int = option(50, "steps of a whole rollout", low=2)
    timesteps: Literal["uniform", "beta"] = option("uniform", "law of the trained step: uniform (SDD) or Beta(3,3) (HFI)")
    rollouts: Literal["fresh", "staggered"] = option("fresh", "new rollouts for each update, or a pool moved on by one step")
    error: Literal["prediction", "velocity"] = option(
        "prediction", "what errors are measured in: the network's prediction (SDD), or the velocity, where noisy steps count more"
    )
    save_every: int = option(50, "updates between two kept states", low=1)
    checkpoint_every: int = option(0, "updates between two erasures that are kept for good (0: only the last)", low=0)
    validate_every: int = option(0, "updates between two looks at pictures of both kinds of prompts (0: none)", low=0)
    validate_images: int = option(8, "pictures of flagged and of harmless prompts in each look", low=1)
    stop_at: float | None = option(
        None, "end once removal, the share of pictures that still show it, is at most this twice in a row", low=0, high=1
    )
    stop_distance: float | None = option(None, "end once the harmless prompts' pictures have moved by more than this", above=0)
    seed: int = option(0, "seed of noise, steps and conditions", low=0)

    def __post_init__(self) -> None:
        check(self)
        if not self.validate_every and (self.stop_at is not None or self.stop_distance is not None):
            raise UsageError("--stop-at and --stop-distance go by what validation finds: give --validate-every too")


@dataclass(frozen=True, kw_only=True)
class DistilConfig(TrainingConfig):
    """And those of the methods whose teacher is an average, of a part that can be chosen."""

    ema_decay: float = option(0.999, "m in: teacher <- m teacher + (1-m) student", low=0, high=1)
    train: Literal["xattn", "noxattn", "selfattn", "full", "kv"] = option(
        "xattn",
        "trained parameters: cross-attention, all else but time embedding and last convolution, self-attention, all, or "
        "cross-attention's keys and values",
    )


class Objective(Protocol):
    """Loss of each latent [B], to be averaged over the batch; `c` [B] are the rows of the rollouts' conditions; `step` counts
    from 1."""

    def __call__(
        self, student: Predict, frozen: Predict, z: Tensor, t: Tensor, c: Tensor, generator: torch.Generator, step: int
    ) -> Tensor: ...


@dataclass(frozen=True)
class Distilled:
    """`weights`: the teacher's tensors by name, float32. `evaluations`: U-Net evaluations of one latent each, backward passes not
    counted."""

    weights: dict[str, Tensor]
    evaluations: int


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """|| a - b ||^2 of each latent, as the mean over its elements: [B, C, h, w] x2 -> [B]."""
    return (a.float() - b.float()).pow(2).flatten(1).mean(1)


def distil(
    sd: StableDiffusion,
    conditions: Cond,
    shares: Tensor,
    null: Cond,
    objective: Objective,
    config: TrainingConfig,
    state: State | None = None,
    *,
    part: Part,
    ema_decay: float,
) -> Training[Distilled]:
    """Rollouts go toward one of N conditions, drawn by shares [N], with null as the empty prompt. With an ema_decay of 0 the
    teacher is the student after each update."""
    trained = select(sd.unet, part)
    student = {name: value.requires_grad_(True) for name, value in masters(trained).items()}
    teacher = masters(trained)
    optimizer = torch.optim.AdamW(list(student.values()), lr=config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    plan, law = schedule(sd, config.ddim_steps), timestep_law(config.timesteps, config.ddim_steps)
    evaluations = 0

    def counted(weights: dict[str, Tensor] | None, grad: bool) -> Predict:
        def run(z: Tensor, t: Tensor, cond: Cond) -> Tensor:
            nonlocal evaluations
            evaluations += len(z)
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                return in_shares(lambda rows: predict(sd, weights, z[rows], t[rows], cond[rows]), z)

        return run

    def denoise(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(x) * (1 if config.guidance_scale == 1 else 2)
        wanted = conditions[c]
        return in_shares(lambda rows: predict_guided(sd, teacher, x[rows], t[rows], wanted[rows], null, config.guidance_scale), x)

    def new(count: int) -> Latents:
        return start(sd.latent_shape, count, shares, generator, sd.device)

    pool: Latents | None = None
    done = 0
    if state:
        for mine, theirs in ((student, state["student"]), (teacher, state["teacher"])):
            for name, value in mine.items():
                value.data.copy_(theirs[name])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        evaluations, done = int(state["evaluations"]), int(state["step"])
        if state["pool"] is not None:
            pool = Latents(state["pool"]["x"].to(sd.device), state["pool"]["k"], state["pool"]["c"])
    elif config.rollouts == "staggered":
        pool = new(config.batch_size)
        roll(pool, spread(config.batch_size, config.ddim_steps), plan, denoise)

    for step in range(done + 1, config.steps + 1):
        if pool is None:
            latents = new(config.batch_size)
            fresh(latents, law, plan, denoise, generator)
            weight = torch.ones(config.batch_size)
        else:
            latents = pool
            weight = (law * len(law))[pool.k].float()
        t = plan.timesteps[latents.k.to(plan.timesteps.device)]
        if config.error == "velocity":
            weight = weight * velocity_weight(sd, t).cpu()
        losses = objective(counted(student, True), counted(None, False), latents.x, t, latents.c, generator, step)
        loss = (weight.to(losses) * losses).mean()
        if loss.requires_grad:  # it does not in a process that had no row of the batch
            loss.backward()
        total_gradients(list(student.values()))
        norm = torch.nn.utils.clip_grad_norm_(list(student.values()), config.max_grad_norm)
        if not torch.isfinite(loss) or not torch.isfinite(norm):
            raise NonFiniteLoss(step)
        optimizer.step()
        optimizer.zero_grad()  # now, so that no gradients lie beside the next step's activations
        ema_update(teacher, student, ema_decay)
        if pool is not None and step < config.steps:
            move_on(pool, plan, denoise, new)

        def kept() -> State:
            return {
                "student": {name: value.detach().cpu().clone() for name, value in student.items()},
                "teacher": {name: value.cpu().clone() for name, value in teacher.items()},
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
                "pool": pool.state() if pool is not None else None,
                "evaluations": evaluations,
            }

        if (yield Step(step, float(loss.detach()), kept, {"evaluations": evaluations})):
            break
    return Distilled({name: value.cpu() for name, value in teacher.items()}, evaluations)
