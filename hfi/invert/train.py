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

Several concepts share the batch: its rows go to them in turn, and a row's text holds the token of its own concept alone.

Several processes (hfi/distributed.py) draw the same numbers; each computes the gradients of its share of a batch's rows, and they are
added up.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hfi.config import check, option
from hfi.diffusion.sd import StableDiffusion, diffused, encode_ids, predict, tokenize, velocity_weight
from hfi.diffusion.tokens import LearnedToken, install
from hfi.diffusion.training import State, Step, Training
from hfi.distributed import share, total, total_gradients
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
    schedule: Literal["constant", "cosine"] = option("constant", "the learning rate over the run: the same, or falling to zero")
    weight_decay: float = option(1e-2, "AdamW's weight decay", low=0)
    ema_decay: float = option(
        0.99, "the token is the average of the iterates with this decay; 0 takes the last one", low=0, high=1
    )
    keep: Literal["average", "best"] = option(
        "average", "which average is the token: the last, or that of least error on one in five images, held out of training"
    )
    validate_every: int = option(25, "updates between two looks at the held-out images, for --keep best", low=1)
    preview_every: int = option(0, "updates between two sheets of pictures in the run's previews/; 0 draws none", low=0)
    save_every: int = option(50, "updates between two kept states", low=1)
    seed: int = option(0, "seed of images, timesteps and noise", low=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Examples:
    """A concept's token, the phrase it starts from, and the K images to learn it from: latents z = mean + std * noise,
    [K, C, h, w] each; weights [K]; prompts, None where unknown."""

    placeholder: str
    initial: str
    mean: Tensor
    std: Tensor
    weights: Tensor
    prompts: Sequence[str | None]

    def take(self, rows: Tensor) -> "Examples":
        """Those of the rows [k] alone."""
        here = rows.to(self.mean.device)
        kept = (self.mean[here], self.std[here], self.weights[here], [self.prompts[i] for i in rows.tolist()])
        return Examples(self.placeholder, self.initial, *kept)


@dataclass(frozen=True)
class Inversion:
    """A token for each concept, without provenance: the averages after update `step`."""

    tokens: tuple[LearnedToken, ...]
    step: int


def learning_rate(config: InvertConfig, step: int) -> float:
    """Of update `step`, from 1: half a cosine falls from the full rate at the first to zero after the last."""
    if config.schedule == "constant":
        return config.learning_rate
    return config.learning_rate * (1 + math.cos(math.pi * (step - 1) / config.steps)) / 2


def split(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Of n images, the rows to learn from and one in five that is held out. UsageError for fewer than five."""
    if n < 5:
        raise UsageError(
            f"--keep best holds one in five images of a concept out of training, and there are {n}: judge more that show it, or "
            "take --keep average"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return order[n // 5 :].sort().values, order[: n // 5].sort().values


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


def learned(examples: Sequence[Examples], rows: Sequence[Tensor]) -> tuple[LearnedToken, ...]:
    """The tokens of a state's rows [n, D], which hold each concept's, one for each encoder."""
    size = len(rows) // len(examples)
    return tuple(LearnedToken(e.placeholder, tuple(rows[i * size : (i + 1) * size])) for i, e in enumerate(examples))


def invert(
    sd: StableDiffusion, examples: Sequence[Examples], config: InvertConfig, state: State | None = None
) -> Training[Inversion]:
    """Trains a v for each concept. With `keep` best, a step that looked at the held-out images has their loss in its values.
    NonFiniteLoss where training diverges, UsageError for images too few to hold some out."""
    start = [rows for e in examples for rows in initial_vectors(sd, e.initial, config.vectors)]
    named = sd
    for token in learned(examples, start):
        named = install(named, token)
    held: list[_Batch] = []
    if config.keep == "best":
        parts = [split(len(e.prompts), config.seed) for e in examples]
        held = [_held_out(named, e.take(rows), config) for e, (_, rows) in zip(examples, parts, strict=True)]
        examples = [e.take(rows) for e, (rows, _) in zip(examples, parts, strict=True)]
    # one table of all concepts' images; concept i's begin at firsts[i]
    mean, std, weights = (torch.cat([getattr(e, name) for e in examples]) for name in ("mean", "std", "weights"))
    texts = [text for e in examples for text in _texts(named, e, config.template)]
    sizes = [len(e.prompts) for e in examples]
    firsts = [0, *accumulate(sizes[:-1])]

    v = [rows.to(sd.device).clone().requires_grad_(True) for rows in start]
    average = [rows.detach().clone() for rows in v]
    optimizer = torch.optim.AdamW(v, lr=config.learning_rate, weight_decay=config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    best: State | None = None
    done = step = 0
    if state:
        for mine, theirs in zip((*v, *average), (*state["v"], *state["average"]), strict=True):
            mine.data.copy_(theirs)
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        best = state.get("best")
        done = step = int(state["step"])

    def kept() -> State:
        return {
            "v": [rows.detach().cpu().clone() for rows in v],
            "average": [rows.cpu().clone() for rows in average],
            "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(),
            **({"best": best} if best else {}),
        }

    for step in range(done + 1, config.steps + 1):
        turn = (torch.arange(config.batch_size) + (step - 1) * config.batch_size) % len(examples)  # whose row it is
        pick = torch.empty(config.batch_size, dtype=torch.long)
        for i, (first, size) in enumerate(zip(firsts, sizes, strict=True)):
            pick[turn == i] = first + torch.randint(size, (int((turn == i).sum()),), generator=generator)
        words = torch.stack([_draw(texts[i], generator) for i in pick.tolist()])
        t = torch.randint(sd.train_steps, (config.batch_size,), generator=generator)
        here = pick.to(mean.device)
        z0 = mean[here] + std[here] * torch.randn((len(pick), *mean.shape[1:]), generator=generator).to(mean)
        noise = torch.randn(z0.shape, generator=generator).to(mean)
        batch = _Batch(words, z0, noise, t.to(sd.device), weights[here])
        own, loss = _shared_loss(named, learned(examples, v), batch, config)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        if own.requires_grad:  # it does not in a process that has no row of the batch
            own.backward()
        total_gradients(v)
        if not torch.isfinite(loss) or any(rows.grad is None or not torch.isfinite(rows.grad).all() for rows in v):
            raise NonFiniteLoss(step)
        optimizer.step()
        optimizer.zero_grad()
        for mean_rows, rows in zip(average, v, strict=True):
            mean_rows.lerp_(rows.detach(), 1 - config.ema_decay)
        values = {}
        if held and (step % config.validate_every == 0 or step == config.steps):
            values["held_out"] = _mean_loss(named, learned(examples, average), held, config)
            if best is None or values["held_out"] < best["loss"]:
                best = {"loss": values["held_out"], "step": step, "average": [rows.cpu().clone() for rows in average]}
        if (yield Step(step, float(loss), kept, values)):
            break
    if best:
        return Inversion(learned(examples, best["average"]), int(best["step"]))
    return Inversion(learned(examples, [rows.cpu() for rows in average]), step)


class _Batch(NamedTuple):
    """What a loss is computed on: token ids [B, E, L], latents and their noise [B, C, h, w] each, timesteps [B], weights [B]."""

    words: Tensor
    z0: Tensor
    noise: Tensor
    t: Tensor
    weights: Tensor


def _loss(sd: StableDiffusion, tokens: Sequence[LearnedToken], batch: _Batch, config: InvertConfig) -> Tensor:
    """[], with gradients to the tokens' vectors, which take the place of those that are installed."""
    words, z0, noise, t, weights = batch
    z_t, target = diffused(sd, z0, noise, t)
    with ExitStack() as tables:
        for token in tokens:
            tables.enter_context(injected(sd, token.placeholder, token.embeddings))
        cond = encode_ids(sd, words)
    if config.error == "velocity":
        weights = weights * velocity_weight(sd, t).to(weights)
    return inversion_loss(predict(sd, None, z_t, t, cond).float(), target.float(), weights)


def _shared_loss(
    sd: StableDiffusion, tokens: Sequence[LearnedToken], batch: _Batch, config: InvertConfig
) -> tuple[Tensor, Tensor]:
    """(this process's part of the loss, with gradients; the loss): each of several processes computes its share of the rows."""
    rows, n = share(len(batch.t)), len(batch.t)
    own = torch.zeros((), device=batch.z0.device)
    if rows.stop > rows.start:
        own = _loss(sd, tokens, _Batch(*(x[rows] for x in batch)), config) * ((rows.stop - rows.start) / n)
    whole = own.detach().clone()
    total([whole])
    return own, whole


_LOOKS = 4  # noises of a held-out image


def _held_out(sd: StableDiffusion, examples: Examples, config: InvertConfig) -> _Batch:
    """Each image under a few noises, at timesteps evenly spread over all of them. The same whenever it is made, and of no concern
    to the random numbers of training."""
    generator = torch.Generator().manual_seed(config.seed)
    mean, std, weights = (x.repeat_interleave(_LOOKS, 0) for x in (examples.mean, examples.std, examples.weights))
    words = [_draw(text, generator) for text in _texts(sd, examples, config.template) for _ in range(_LOOKS)]
    t = (torch.arange(len(mean)) + 0.5) * sd.train_steps / len(mean)
    t = t.long()[torch.randperm(len(mean), generator=generator)]
    z0 = mean + std * torch.randn(mean.shape, generator=generator).to(mean)
    noise = torch.randn(mean.shape, generator=generator).to(mean)
    return _Batch(torch.stack(words), z0, noise, t.to(sd.device), weights)


@torch.no_grad()
def _mean_loss(sd: StableDiffusion, tokens: Sequence[LearnedToken], held: Sequence[_Batch], config: InvertConfig) -> float:
    """Over the batches of the concepts, which count the same whatever their sizes."""
    means = []
    for batch in held:
        parts = [_Batch(*part) for part in zip(*(x.split(config.batch_size) for x in batch), strict=True)]
        means.append(sum(len(part.t) * float(_shared_loss(sd, tokens, part, config)[1]) for part in parts) / len(batch.t))
    return sum(means) / len(means)


def _texts(sd: StableDiffusion, examples: Examples, template: str) -> list[Tensor]:
    """For each image the token ids [T, E, L] of the texts to draw from. A prompt too long is cut, v never is."""
    v = examples.placeholder
    plain = tokenize(sd, [sentence.removesuffix("{}") for sentence in PLAIN], suffix=v)
    own = [] if template == "plain" else list(dict.fromkeys(p for p in examples.prompts if p is not None))
    ids = dict(zip(own, tokenize(sd, own, suffix=v), strict=True)) if own else {}
    return [ids[prompt][None] if prompt in ids else plain for prompt in examples.prompts]


def _draw(texts: Tensor, generator: torch.Generator) -> Tensor:
    """One text [E, L] of [T, E, L]; a single one costs no random number."""
    return texts[0] if len(texts) == 1 else texts[int(torch.randint(len(texts), (1,), generator=generator))]
