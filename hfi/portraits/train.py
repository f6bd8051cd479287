"""Trains the parts of Portraits, each alone and resumable: `hfi portraits train --part vae|detector|clip|unet`.

Every step draws its randomness from (seed, step), so a run that was killed goes on exactly as if it had not been.
"""

import multiprocessing
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from hfi.errors import NonFiniteLoss
from hfi.files import whole
from hfi.portraits import models
from hfi.portraits.detector import DetectorNet, detector_loss, truth
from hfi.portraits.render import render
from hfi.portraits.world import Person, describe, draw_person, twin

IMAGES = 20_000
SEED = 7
_TIMESTEPS = 1000
PARTS = ("vae", "detector", "clip", "unet")

Report = Callable[[int, float], None]  # step, loss


@dataclass(frozen=True)
class Plan:
    """How one part is trained: optimizer updates, images a batch, peak of the one-cycle learning rate, decay of the average."""

    steps: int
    batch: int
    lr: float
    ema: float


PLANS = {
    "vae": Plan(steps=3600, batch=16, lr=2e-3, ema=0.995),
    "detector": Plan(steps=1000, batch=64, lr=2e-3, ema=0.99),
    "clip": Plan(steps=3000, batch=64, lr=1e-3, ema=0.99),
    "unet": Plan(steps=12_000, batch=32, lr=1e-3, ema=0.999),
}


def people(count: int = IMAGES, seed: int = SEED) -> list[Person]:
    rng = np.random.default_rng(seed)
    return [draw_person(rng) for _ in range(count)]


def render_all(persons: list[Person], cache: Path | None = None) -> Tensor:
    """All portraits as uint8 [N, 3, 64, 64]; kept in `cache` for the next part."""
    if cache and cache.exists():
        return torch.from_numpy(np.load(cache))
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pixels = np.stack(pool.map(_pixels, persons, chunksize=256))
    if cache:
        np.save(cache.with_suffix(".tmp.npy"), pixels)
        os.replace(cache.with_suffix(".tmp.npy"), cache)
    return torch.from_numpy(pixels)


def _pixels(person: Person) -> np.ndarray:
    return np.asarray(render(person)).transpose(2, 0, 1)


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def fit(
    part: str, module: nn.Module, loss_at: Callable[[float, np.random.Generator, torch.Generator], Tensor],
    plan: Plan, work: Path, report: Report, save_every: int = 250,
) -> dict[str, Tensor]:  # fmt: skip
    """AdamW under a one-cycle learning rate. Returns the averaged weights; `work/<part>.pt` holds the state between kills.

    `loss_at` gets the share of training done (0 to 1) and this step's randomness.
    """
    path = work / f"{part}.pt"
    optimizer = torch.optim.AdamW(module.parameters(), lr=plan.lr, weight_decay=1e-2, fused=True)
    average = {name: value.clone() for name, value in module.state_dict().items()}
    done = 0
    if path.exists():
        state: dict[str, Any] = torch.load(path, weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average, done = state["average"], state["step"]
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=plan.lr, total_steps=plan.steps + 1, pct_start=0.03, last_epoch=done - 1
    )
    for step in range(done + 1, plan.steps + 1):
        rng, generator = np.random.default_rng((SEED, step)), torch.Generator().manual_seed(SEED * 1_000_003 + step)
        loss = loss_at(step / plan.steps, rng, generator)
        if not torch.isfinite(loss):
            raise NonFiniteLoss(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        models.ema_update(average, module, min(plan.ema, step / (step + 10)))
        report(step, loss.item())
        if step % save_every == 0 or step == plan.steps:
            state = {"module": module.state_dict(), "optimizer": optimizer.state_dict(), "average": average, "step": step}
            with whole(path) as scratch, open(scratch, "wb") as file:
                torch.save(state, file)
    return average


def train_vae(out: Path, work: Path, plan: Plan, report: Report) -> None:
    """L1 + MSE + 1e-3 KL; the scaling factor that gives latents unit variance is measured afterwards and saved.

    Four fifths of the steps see 32x32 crops, a quarter of the cost, the rest (at half the batch) whole pictures: the network is
    convolutional, but its group norms have to settle on the statistics of whole pictures.
    """
    pixels = render_all(people(), work / "pixels.npy")
    vae = models.build_vae()

    def loss_at(done: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        whole = done > 0.8
        x = _scaled(pixels[torch.from_numpy(rng.integers(len(pixels), size=plan.batch // 2 if whole else plan.batch))])
        if not whole:
            top, left = rng.integers(33, size=2)
            x = x[..., top : top + 32, left : left + 32]
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)).sample
        return F.l1_loss(y, x) + F.mse_loss(y, x) + 1e-3 * posterior.kl().mean() / posterior.mean[0].numel()

    vae.load_state_dict(fit("vae", vae, loss_at, plan, work, report))
    mean, std = _latents(vae, pixels[:1000])
    vae.register_to_config(scaling_factor=round(1 / float((mean + std * torch.randn(mean.shape)).std()), 4))
    models.save_half(vae, out / "vae")


@torch.inference_mode()
def _latents(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    posteriors = [vae.encode(_scaled(batch)).latent_dist for batch in pixels.split(100)]
    return torch.cat([p.mean for p in posteriors]), torch.cat([p.std for p in posteriors])


def train_detector(out: Path, work: Path, plan: Plan, report: Report) -> None:
    """On renders, half of them blurred or noisy, so that it also reads pictures that a model made."""
    persons = people()
    pixels, targets, net = render_all(persons, work / "pixels.npy"), truth(persons), DetectorNet()

    def loss_at(done: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        index = torch.from_numpy(rng.integers(len(pixels), size=plan.batch))
        x = _scaled(pixels[index])
        half = plan.batch // 2
        small = F.interpolate(x[: half // 2], scale_factor=float(rng.uniform(0.6, 0.9)), mode="bilinear")
        x[: half // 2] = F.interpolate(small, size=x.shape[-2:], mode="bilinear")
        x[:half] += float(rng.uniform(0, 0.15)) * torch.randn(x[:half].shape, generator=generator)
        return detector_loss(net(x), {name: value[index] for name, value in targets.items()})

    net.load_state_dict(fit("detector", net, loss_at, plan, work, report))
    (out / "detector").mkdir(parents=True, exist_ok=True)
    save_file({name: value.half() for name, value in net.state_dict().items()}, out / "detector" / "model.safetensors")


def train_clip(out: Path, work: Path, plan: Plan, report: Report) -> None:
    """Contrastive, on captions that name nearly everything that shows (see `describe(rich=True)`).

    Half of each batch are twins of the other half, the same person with one concept more or less: telling those apart is what
    makes the embedding say who smokes, not only who is a sailor.
    """
    persons = people()
    rng = np.random.default_rng(SEED + 1)
    twins = [twin(person, rng) for person in persons]
    pixels, twin_pixels = render_all(persons, work / "pixels.npy"), render_all(twins, work / "twins.npy")
    tokenizer = models.build_tokenizer()
    clip = models.build_clip(tokenizer)

    def loss_at(done: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        index = rng.integers(len(pixels), size=plan.batch // 2)
        shown = [*(persons[i] for i in index), *(twins[i] for i in index)]
        captions = [describe(person, rng, fragments=0.1, rich=True).text for person in shown]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
        x = _scaled(torch.cat([pixels[torch.from_numpy(index)], twin_pixels[torch.from_numpy(index)]]))
        return clip(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=x, return_loss=True).loss

    clip.load_state_dict(fit("clip", clip, loss_at, plan, work, report))
    folder = out / "clip"
    models.save_half(clip, folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(_PREPROCESSOR)


_PREPROCESSOR = """{
  "image_processor_type": "CLIPImageProcessor",
  "do_center_crop": true, "do_convert_rgb": true, "do_normalize": true, "do_rescale": true, "do_resize": true,
  "crop_size": {"height": 64, "width": 64}, "size": {"shortest_edge": 64}, "resample": 3,
  "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "rescale_factor": 0.00392156862745098
}
"""


class TextToImage(nn.Module):
    """The text encoder and the U-Net, trained together."""

    text_encoder: Any
    unet: Any

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer = models.build_tokenizer()
        self.text_encoder = models.build_text_encoder(self.tokenizer)
        self.unet = models.build_unet()


def train_unet(out: Path, work: Path, plan: Plan, report: Report) -> None:
    """Epsilon prediction on latents encoded once, one caption in ten empty, a fresh caption of the same person every time.

    Errors are weighed by 1 / alpha-bar, which makes the loss that of v-prediction (Salimans & Ho 2022, section 4 and appendix D):
    colours are decided at the noisiest timesteps, where the picture's share in epsilon is a few percent of it. Unweighted, the
    network learns who smokes as fast, and "on a pink background" hardly at all. Half of the timesteps are drawn from 400
    to 899, where small things, a badge, come about or do not; the rest from all. Otherwise they appear on too few people.
    """
    from diffusers import AutoencoderKL

    persons = people()
    cache = work / "latents.pt"
    if not cache.exists():
        vae: Any = AutoencoderKL.from_pretrained(out / "vae").eval().float()
        pixels = render_all(persons, work / "pixels.npy")
        mean, std = (part * vae.config.scaling_factor for part in _latents(vae, pixels))
        torch.save({"mean": mean, "std": std}, cache)
    latents = torch.load(cache, weights_only=True)
    scheduler, net = models.build_scheduler(), TextToImage()

    def loss_at(done: float, rng: np.random.Generator, generator: torch.Generator) -> Tensor:
        index = rng.integers(len(persons), size=plan.batch)
        captions = ["" if rng.random() < 0.1 else describe(persons[i], rng).text for i in index]
        tokens = net.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        mean, std = latents["mean"][index], latents["std"][index]
        z0 = mean + std * torch.randn(mean.shape, generator=generator)
        noise = torch.randn(z0.shape, generator=generator)
        t = torch.randint(_TIMESTEPS, (plan.batch,), generator=generator)
        t[::2] = torch.randint(400, 900, (len(t[::2]),), generator=generator)
        predicted = net.unet(scheduler.add_noise(z0, noise, t), t, net.text_encoder(tokens).last_hidden_state).sample
        return ((predicted - noise).square().mean((1, 2, 3)) / scheduler.alphas_cumprod[t]).mean()

    net.load_state_dict(fit("unet", net, loss_at, plan, work, report))
    save_unet(net, out)


def save_unet(net: TextToImage, out: Path) -> None:
    models.save_half(net.unet, out / "unet")
    models.save_half(net.text_encoder, out / "text_encoder")
    net.tokenizer.save_pretrained(out / "tokenizer")
    models.build_scheduler().save_pretrained(out / "scheduler")
    models.save_model_index(out)


TRAINERS: dict[str, Callable[[Path, Path, Plan, Report], None]] = {
    "vae": train_vae,
    "detector": train_detector,
    "clip": train_clip,
    "unet": train_unet,
}
