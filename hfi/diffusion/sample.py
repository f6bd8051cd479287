"""Deterministic DDIM (Song et al. 2021, eta 0) with classifier-free guidance, for whole images and for latents in mid-course."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from hfi.diffusion.cond import Cond
from hfi.diffusion.sd import StableDiffusion, decode, encode_null, encode_prompts, predict, to_images
from hfi.errors import UsageError


def noise(sd: StableDiffusion, seeds: Sequence[int]) -> Tensor:
    """[B, C, h, w]: each image's noise comes from its own seed, drawn on the CPU, so batch size and device change nothing."""
    drawn = [torch.randn(sd.latent_shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(sd.device, sd.dtype)


@dataclass(frozen=True)
class Schedule:
    """S sampling steps, noisiest first: timesteps [S] (long), alpha-bar at each [S] and after each [S]; `kind` is what the model
    predicts."""

    timesteps: Tensor
    alpha: Tensor
    alpha_next: Tensor
    kind: str

    def __len__(self) -> int:
        return len(self.timesteps)


def schedule(sd: StableDiffusion, steps: int) -> Schedule:
    """The same steps as DDIMScheduler.set_timesteps(steps)."""
    if not 1 <= steps < sd.train_steps:  # with steps_offset 1 the full number would reach past the last timestep
        raise UsageError(f"{steps} sampling steps: this model takes 1 to {sd.train_steps - 1}")
    scheduler = type(sd.scheduler).from_config(sd.scheduler.config)  # set_timesteps would change the shared one
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps.long()
    following = timesteps - sd.train_steps // steps
    alphas = scheduler.alphas_cumprod
    last = scheduler.final_alpha_cumprod.to(alphas)
    after = torch.where(following >= 0, alphas[following.clamp(min=0)], last)
    return Schedule(timesteps.to(sd.device), alphas[timesteps].to(sd.device), after.to(sd.device), sd.prediction_type)


def ddim_step(x: Tensor, out: Tensor, alpha: Tensor, alpha_next: Tensor, kind: str) -> Tensor:
    """One step from noise level alpha to alpha_next (alpha-bar, [] or [B]): x, out [B, C, h, w] -> [B, C, h, w].

    x0 = (x - sqrt(1-a) eps) / sqrt(a);  x' = sqrt(a') x0 + sqrt(1-a') eps;  for v:  x0 = sqrt(a) x - sqrt(1-a) v,
    eps = sqrt(a) v + sqrt(1-a) x.
    """
    a, b = (v.to(x.dtype).reshape(-1, 1, 1, 1) for v in (alpha, alpha_next))
    if kind == "v_prediction":
        x0, eps = a.sqrt() * x - (1 - a).sqrt() * out, a.sqrt() * out + (1 - a).sqrt() * x
    else:
        x0, eps = (x - (1 - a).sqrt() * out) / a.sqrt(), out
    return b.sqrt() * x0 + (1 - b).sqrt() * eps


def guided(null: Tensor, cond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance (Ho & Salimans 2022): null + scale (cond - null)."""
    return null + scale * (cond - null)


def predict_guided(
    sd: StableDiffusion, weights: Mapping[str, Tensor] | None, x: Tensor, t: Tensor, cond: Cond, null: Cond, scale: float
) -> Tensor:
    """Guided output for x [B, C, h, w], t [B], B conditions and one for null. The null half is not computed at scale 1."""
    if scale == 1:
        return predict(sd, weights, x, t, cond)
    both = predict(sd, weights, torch.cat([x, x]), torch.cat([t, t]), Cond.cat([null.expand(len(x)), cond]))
    of_null, of_cond = both.chunk(2)
    return guided(of_null, of_cond, scale)


@torch.inference_mode()
def sample_latents(
    sd: StableDiffusion,
    cond: Cond,
    null: Cond,
    x: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    weights: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """From noise x [B, C, h, w] to clean latents, toward B conditions and away from one, null. `weights` as in `predict`."""
    plan = schedule(sd, steps)
    for k in range(len(plan)):
        t = plan.timesteps[k].expand(len(x))
        out = predict_guided(sd, weights, x, t, cond, null, guidance_scale)
        x = ddim_step(x, out, plan.alpha[k], plan.alpha_next[k], plan.kind)
    return x


def sample(
    sd: StableDiffusion,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 25,
    guidance_scale: float = 7.5,
    negative_prompt: str | None = None,
    batch_size: int = 8,
    weights: Mapping[str, Tensor] | None = None,
    encode: Callable[[StableDiffusion, Sequence[str]], Cond] = encode_prompts,
) -> Iterator[Image.Image]:
    """Images of (prompt, seed), in order. `guidance_scale` 1 is no guidance, 0 ignores the prompt; a negative prompt takes the
    place of the empty one. `weights` stand in for the U-Net's own tensors of those names; `encode` makes the conditions of the
    prompts. Each image depends on its prompt and seed alone, whatever the batch, up to float rounding."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
    null = encode_prompts(sd, [negative_prompt]) if negative_prompt else encode_null(sd)
    for i in range(0, len(prompts), batch_size):
        cond = encode(sd, prompts[i : i + batch_size])
        x = noise(sd, seeds[i : i + batch_size])
        latents = sample_latents(sd, cond, null, x, steps=steps, guidance_scale=guidance_scale, weights=weights)
        yield from to_images(decode(sd, latents))
