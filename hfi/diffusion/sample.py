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


Combine = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def classifier_free(scale: float) -> Combine:
    """What a step makes of its predictions without any other method."""
    return lambda step, null, cond, against: guided(null, cond, scale)


@dataclass(frozen=True)
class Guidance:
    """A method that leads away from concepts while an image is sampled (`hfi/guide/`).

    `null` is text in the place of the empty prompt, or "". `against` are K texts that are predicted beside null and prompt, in the
    same call of the U-Net. `begin(scale)` starts the rollout of a batch: it gives the function (step, null, cond, against) -> output
    that makes one of a step's predictions, null and cond [B, C, h, w], against [K, B, C, h, w]. Steps count from 0; what the
    function remembers between them is of this rollout alone, and of each image apart.
    """

    name: str
    null: str = ""
    against: tuple[str, ...] = ()
    begin: Callable[[float], Combine] = classifier_free

    @property
    def texts(self) -> tuple[str, ...]:
        """All that it asks the model for."""
        return (*self.against, *([self.null] if self.null else []))

    @property
    def evaluations(self) -> int:
        """Of the U-Net, for one step of one image."""
        return 2 + len(self.against)

    def check(self, scale: float, negative_prompt: str | None = None) -> None:
        """UsageError for a guidance scale at which the method would do nothing, and for two texts in the place of one."""
        if scale <= 1:
            raise UsageError(
                f"guidance scale {scale:g} with {self.name}: it corrects classifier-free guidance, so give more than 1"
            )
        if self.null and negative_prompt:
            raise UsageError(
                f"{self.name} puts the concepts in the place of the negative prompt {negative_prompt!r}: give it as a concept too, "
                "or take another guide"
            )


def predict_each(
    sd: StableDiffusion, weights: Mapping[str, Tensor] | None, x: Tensor, t: Tensor, conditions: Sequence[Cond]
) -> Tensor:
    """Outputs [N, B, C, h, w] for x [B, C, h, w], t [B] under N conditions, each of one row or of B, in one call of the U-Net."""
    n = len(conditions)
    rows = Cond.cat([condition.expand(len(x)) for condition in conditions])
    return predict(sd, weights, torch.cat([x] * n), torch.cat([t] * n), rows).unflatten(0, (n, len(x)))


def predict_guided(
    sd: StableDiffusion, weights: Mapping[str, Tensor] | None, x: Tensor, t: Tensor, cond: Cond, null: Cond, scale: float
) -> Tensor:
    """Guided output for x [B, C, h, w], t [B], B conditions and one for null. The null half is not computed at scale 1."""
    if scale == 1:
        return predict(sd, weights, x, t, cond)
    of_null, of_cond = predict_each(sd, weights, x, t, [null, cond])
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
    guidance: Guidance | None = None,
) -> Tensor:
    """From noise x [B, C, h, w] to clean latents, toward B conditions and away from one, null. `weights` as in `predict`; `guidance`
    is another method than classifier-free guidance alone."""
    plan = schedule(sd, steps)
    if guidance:
        guidance.check(guidance_scale)
        combine = guidance.begin(guidance_scale)
        null = encode_prompts(sd, [guidance.null]) if guidance.null else null
        against = [encode_prompts(sd, [text]) for text in guidance.against]
    for k in range(len(plan)):
        t = plan.timesteps[k].expand(len(x))
        if guidance:
            each = predict_each(sd, weights, x, t, [null, cond, *against])
            out = combine(k, each[0], each[1], each[2:])
        else:
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
    guidance: Guidance | None = None,
    encode: Callable[[StableDiffusion, Sequence[str]], Cond] = encode_prompts,
) -> Iterator[Image.Image]:
    """Images of (prompt, seed), in order. `guidance_scale` 1 is no guidance, 0 ignores the prompt; a negative prompt takes the
    place of the empty one. `weights` stand in for the U-Net's own tensors of those names. `guidance` leads away from concepts; see
    `Guidance.check` for what it cannot be combined with. `encode` makes the conditions of the prompts. Each image depends on its
    prompt and seed alone, whatever the batch, up to float rounding."""
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds")
    if guidance:
        guidance.check(guidance_scale, negative_prompt)
    null = encode_prompts(sd, [negative_prompt]) if negative_prompt else encode_null(sd)
    for i in range(0, len(prompts), batch_size):
        cond = encode(sd, prompts[i : i + batch_size])
        x = noise(sd, seeds[i : i + batch_size])
        latents = sample_latents(
            sd, cond, null, x, steps=steps, guidance_scale=guidance_scale, weights=weights, guidance=guidance
        )
        yield from to_images(decode(sd, latents))
