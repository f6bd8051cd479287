"""Reward-weighted textual inversion (HFI, Kim et al. 2024; Gal et al. 2022).

    v* = argmin_v  E_{x ~ p(x|c)} [ -r(x) log p(x|v) ]

With the usual bound of -log p(x|v): minimise  mean_i w_i || target - model(z_t, t, text(v)) ||^2  over the K best-scoring
images the model made, w_i their rewards scaled to mean 1 (weights.py has others). The target is the noise, or the velocity for
v-prediction.

The text around v (`template`): 'plain' is one of a few neutral sentences, as in textual inversion; 'prompt' is the image's own
prompt followed by v, so that v explains only what the prompt does not (beyond the paper). Images without a prompt use plain
sentences.

Only the n x D numbers of v are trained: they replace the output of the embedding lookup at v's positions, the table stays as it
is. A model with two text encoders (SDXL) learns n vectors for each of them, together.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from hfi.config import check, option
from hfi.diffusion.sd import StableDiffusion, encode_ids, predict, tokenize, velocity_weight
from hfi.diffusion.tokens import LearnedToken, install
from hfi.diffusion.training import State, Step, Training
from hfi.errors import NonFiniteLoss, UsageError

PLAIN = ("a picture of {}", "a photo of {}", "an image showing {}", "a portrait with {}", "{}")


@dataclass(frozen=True, kw_only=True)
class InvertConfig:
    """Sources of the defaults: docs/papers.md."""

    vectors: int = option(1, "vectors of the token", low=1)
    template: Literal["prompt", "plain"] = option("prompt", "text around the token: the image's own prompt, or plain sentences")
    weighting: Literal["equal", "reward", "contrast"] = option(
        "reward", "how much an image counts: all the same, its reward, or its reward against the clean images of its prompt"
    )
    error: Literal["prediction", "velocity"] = option(
        "velocity", "what errors are measured in: the network's prediction, or the velocity, where noisy steps count more"
    )
    top_k: int = option(64, "learn from this many best-scoring images", low=1)
    steps: int = option(300, "optimizer updates", low=1)
    batch_size: int = option(16, "images in one update", low=1)
    learning_rate: float = option(5e-3, "AdamW's learning rate", above=0)
    weight_decay: float = option(1e-2, "AdamW's weight decay", low=0)
    ema_decay: float = option(
        0.99, "the token is the average of the iterates with this decay; 0 takes the last one", low=0, high=1
    )
    save_every: int = option(50, "updates between two kept states", low=1)
    seed: int = option(0, "seed of images, timesteps and noise", low=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Examples:
    """The K images to learn from: latents z = mean + std * noise, [K, C, h, w] each; weights [K]; prompts, None where
    unknown."""

    mean: Tensor
    std: Tensor
    weights: Tensor
    prompts: Sequence[str | None]


def inversion_loss(out: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """mean_i w_i mse_i: out, target [B, C, h, w], weight [B] -> []."""
    return (weight * (out - target).pow(2).flatten(1).mean(1)).mean()


def initial_vectors(sd: StableDiffusion, phrase: str, n: int) -> tuple[Tensor, ...]:
    """Where v starts, [n, D] for each encoder: the rows of the phrase's tokens, repeated in turn where there are fewer than n; more
    than n are averaged in n runs of neighbours."""
    started = []
    for tokenizer, encoder in zip(sd.tokenizers, sd.text_encoders, strict=True):
        ids = tokenizer(phrase, add_special_tokens=False, verbose=False).input_ids
        if not ids:
            raise UsageError("inversion needs a word to start from: give --initial-word, or the concept an initial word")
        rows = encoder.get_input_embeddings().weight.detach()[ids].float()
        if len(rows) >= n:
            started.append(torch.stack([part.mean(0) for part in rows.tensor_split(n)]))
        else:
            started.append(rows[torch.arange(n) % len(rows)])
    return tuple(started)


@contextmanager
def injected(sd: StableDiffusion, placeholder: str, vectors: Sequence[Tensor]) -> Iterator[None]:
    """The placeholder's ids look up `vectors`, [n, D] for each encoder, instead of the embedding tables; gradients flow to them."""

    def hook(first: int, rows: Tensor) -> Any:
        def replace(module: Any, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            place = args[0] - first
            ours = (place >= 0) & (place < len(rows))
            return torch.where(ours[..., None], rows[place.clamp(0, len(rows) - 1)].to(output.dtype), output)

        return replace

    with ExitStack() as hooks:
        for tokenizer, encoder, rows in zip(sd.tokenizers, sd.text_encoders, vectors, strict=True):
            first = tokenizer.convert_tokens_to_ids(placeholder)
            hooks.callback(encoder.get_input_embeddings().register_forward_hook(hook(first, rows)).remove)
        yield


def invert(
    sd: StableDiffusion, examples: Examples, placeholder: str, initial: str, config: InvertConfig, state: State | None = None
) -> Training[LearnedToken]:
    """Trains v; the generator's return value is the token, without provenance. NonFiniteLoss where training diverges."""
    start = initial_vectors(sd, initial, config.vectors)
    named = install(sd, LearnedToken(placeholder, start))
    texts = _texts(named, examples, placeholder, config.template)

    v = [rows.to(sd.device).clone().requires_grad_(True) for rows in start]
    average = [rows.detach().clone() for rows in v]
    optimizer = torch.optim.AdamW(v, lr=config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    done = 0
    if state:
        for mine, theirs in zip((*v, *average), (*state["v"], *state["average"]), strict=True):
            mine.data.copy_(theirs)
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        done = int(state["step"])

    for step in range(done + 1, config.steps + 1):
        pick = torch.randint(len(examples.prompts), (config.batch_size,), generator=generator)
        words = [_draw(texts[i], generator) for i in pick.tolist()]
        t = torch.randint(sd.train_steps, (config.batch_size,), generator=generator)
        here = pick.to(examples.mean.device)
        mean, std, weight = examples.mean[here], examples.std[here], examples.weights[here]
        z0 = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        t = t.to(sd.device)
        z_t = sd.scheduler.add_noise(z0, noise, t)
        target = sd.scheduler.get_velocity(z0, noise, t) if sd.prediction_type == "v_prediction" else noise
        with injected(named, placeholder, v):
            cond = encode_ids(named, torch.stack(words))
        if config.error == "velocity":
            weight = weight * velocity_weight(sd, t).to(weight)
        loss = inversion_loss(predict(sd, None, z_t, t, cond).float(), target.float(), weight)
        optimizer.zero_grad()
        loss.backward()
        if not torch.isfinite(loss) or any(rows.grad is None or not torch.isfinite(rows.grad).all() for rows in v):
            raise NonFiniteLoss(step)
        optimizer.step()
        for mean_rows, rows in zip(average, v, strict=True):
            mean_rows.lerp_(rows.detach(), 1 - config.ema_decay)

        def kept() -> State:
            return {
                "v": [rows.detach().cpu().clone() for rows in v],
                "average": [rows.cpu().clone() for rows in average],
                "optimizer": optimizer.state_dict(),
                "generator": generator.get_state(),
            }

        if (yield Step(step, float(loss.detach()), kept)):
            break
    return LearnedToken(placeholder, tuple(rows.cpu() for rows in average))


def _texts(sd: StableDiffusion, examples: Examples, placeholder: str, template: str) -> list[Tensor]:
    """For each image the token ids [T, E, L] of the texts to draw from. A prompt too long is cut, v never is."""
    plain = tokenize(sd, [sentence.format(placeholder) for sentence in PLAIN])
    if template == "plain":
        return [plain] * len(examples.prompts)
    own = list(dict.fromkeys(p for p in examples.prompts if p is not None))
    ids = dict(zip(own, tokenize(sd, own, suffix=placeholder), strict=True)) if own else {}
    return [plain if prompt is None else ids[prompt][None] for prompt in examples.prompts]


def _draw(texts: Tensor, generator: torch.Generator) -> Tensor:
    """One text [E, L] of [T, E, L]; a single one costs no random number."""
    return texts[0] if len(texts) == 1 else texts[int(torch.randint(len(texts), (1,), generator=generator))]
