"""The two loops as one would write them down from the papers, to compare ours with. They draw their random numbers in our order,
so that the same seed gives the same losses. For models with one text encoder.

invert_reference  textual inversion (Gal et al. 2022) with rewards (HFI 2024): images are encoded at each step, the whole embedding
                  table is AdamW's parameter and its other rows are put back after each step
sdd_reference     SDD (Kim et al. 2023), Algorithm 1: whole networks for student and teacher (and frozen model), a rollout from
                  noise for each latent, the teacher averages every parameter
"""

import copy
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from PIL import Image

from hfi.diffusion.sd import StableDiffusion, encode_ids, encode_prompts, to_pixels, tokenize
from hfi.diffusion.tokens import LearnedToken, install
from hfi.erase.rollouts import timestep_law
from hfi.erase.sdd import SDDConfig
from hfi.invert.train import InvertConfig, initial_vectors


def invert_reference(
    sd: StableDiffusion,
    images: Sequence[Image.Image],
    weights: torch.Tensor,
    prompts: Sequence[str],
    placeholder: str,
    initial: str,
    config: InvertConfig,
) -> Iterator[float]:
    """Yields the loss of each step."""
    sd = install(sd, LearnedToken(placeholder, initial_vectors(sd, initial, config.vectors)))
    table = sd.text_encoders[0].get_input_embeddings().weight.requires_grad_(True)
    others = table.detach()[: -config.vectors].clone()
    optimizer = torch.optim.AdamW([table], lr=config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.steps):
        pick = torch.randint(len(images), (config.batch_size,), generator=generator).tolist()
        t = torch.randint(sd.train_steps, (config.batch_size,), generator=generator).to(sd.device)
        with torch.no_grad():
            encoded = sd.vae.encode(to_pixels(sd, [images[i] for i in pick])).latent_dist
        drawn = torch.randn(encoded.mean.shape, generator=generator).to(sd.device)
        z0 = (encoded.mean + encoded.std * drawn) * sd.vae.config.scaling_factor
        noise = torch.randn(z0.shape, generator=generator).to(sd.device)
        z_t = sd.scheduler.add_noise(z0, noise, t)
        target = sd.scheduler.get_velocity(z0, noise, t) if sd.prediction_type == "v_prediction" else noise
        cond = encode_ids(sd, tokenize(sd, [f"{prompts[i]} {placeholder}" for i in pick]))
        errors = F.mse_loss(sd.unet(z_t, t, cond.states).sample, target, reduction="none").flatten(1).mean(1)
        loss = (weights.to(errors)[pick] * errors).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            table[: len(others)] = others
        yield loss.item()


def sdd_reference(sd: StableDiffusion, concepts: Sequence[str], config: SDDConfig) -> Iterator[float]:
    """Yields the loss of each step. The student is `sd`'s own U-Net, which is trained."""
    student, teacher = sd.unet, copy.deepcopy(sd.unet)
    empty = student if config.null == "student" else copy.deepcopy(sd.unet)
    trained = [p.requires_grad_(True) for name, p in student.named_parameters() if ".attn2." in name]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    scheduler = DDIMScheduler.from_config(sd.scheduler.config)
    scheduler.set_timesteps(config.ddim_steps, device=sd.device)
    each, joined, null = (encode_prompts(sd, texts).states for texts in (concepts, [", ".join(concepts)], [""]))
    law = timestep_law(config.timesteps, config.ddim_steps)
    for _ in range(config.steps):
        noise = torch.randn((config.batch_size, *sd.latent_shape), generator=generator).to(sd.device)
        which = torch.multinomial(torch.ones(len(each)), config.batch_size, replacement=True, generator=generator)
        stops = torch.multinomial(law, config.batch_size, replacement=True, generator=generator)
        optimizer.zero_grad()
        total = 0.0
        for z, c, stop in zip(noise.split(1), each[which].split(1), stops.tolist(), strict=True):
            with torch.no_grad():
                for t in scheduler.timesteps[:stop]:
                    both = teacher(torch.cat([z, z]), t, torch.cat([null, c])).sample
                    of_null, of_concept = both.chunk(2)
                    guided = of_null + config.guidance_scale * (of_concept - of_null)
                    z = scheduler.step(guided, t, z).prev_sample
                target = empty(z, scheduler.timesteps[stop], null).sample
            loss = F.mse_loss(student(z, scheduler.timesteps[stop], joined).sample, target) / config.batch_size
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        with torch.no_grad():
            for average, p in zip(teacher.parameters(), student.parameters(), strict=True):
                average.mul_(config.ema_decay).add_(p, alpha=1 - config.ema_decay)
        yield total
