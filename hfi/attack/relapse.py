"""Concept inversion (Pham et al. 2024, arXiv 2308.01508): textual inversion on the cleaned model, from images that people flagged.

    v* = argmin_v  E || target - cleaned model(z_t, t, text(v)) ||^2

The cleaned weights stay as they are; only v, the vectors of a new token, is trained. If harmless prompts with v behind them show
the concept, it was not removed: only the way to it was. The sooner in training this happens, the shallower the removal, so v is
kept every few updates. The same inversion on the untouched model tells how soon it happens where nothing was removed.

The training is hfi/invert/train.py's. Its average is a short one: v of a single update may draw the concept half as often as its
neighbours do, and a long average would still hold much of where v started at the first looks.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from hfi.config import check, option
from hfi.diffusion.sample import sample
from hfi.diffusion.sd import StableDiffusion, encode_images, encode_prompts
from hfi.diffusion.tokens import LearnedToken, install
from hfi.diffusion.training import State, Step, Training
from hfi.invert.train import Examples, InvertConfig, initial_vectors, invert, learned


@dataclass(frozen=True, kw_only=True)
class RelapseConfig:
    """Sources of the defaults: docs/papers.md."""

    vectors: int = option(1, "vectors of the token", low=1)
    template: Literal["prompt", "plain"] = option("prompt", "text around the token: the image's own prompt, or plain sentences")
    error: Literal["prediction", "velocity"] = option("velocity", "what errors are measured in, as for inversion")
    steps: int = option(300, "optimizer updates", low=1)
    every: int = option(50, "updates between two kept tokens", low=1)
    batch_size: int = option(16, "images in one update", low=1)
    learning_rate: float = option(5e-3, "AdamW's learning rate", above=0)
    weight_decay: float = option(1e-2, "AdamW's weight decay", low=0)
    ema_decay: float = option(
        0.9, "a kept token is the average of the iterates with this decay; 0 takes the last one", low=0, high=1
    )
    seed: int = option(0, "seed of images, timesteps and noise", low=0)

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Relapse:
    """The token after 0 updates (where it starts), every `every` updates, and the last one."""

    tokens: Mapping[int, LearnedToken]


def flagged_examples(
    sd: StableDiffusion, images: Sequence[Image.Image], prompts: Sequence[str | None], placeholder: str, initial: str
) -> Examples:
    """What to learn from: K images that people flagged and their prompts (None where unknown), each counting the same.

    `initial` is the word or phrase that v starts from. Cleaning changes no VAE, so one encoding serves all cleaned models.
    """
    mean, std = encode_images(sd, images)
    return Examples(placeholder, initial, mean, std, torch.ones(len(images)).to(mean), prompts)


def relapse(sd: StableDiffusion, examples: Examples, config: RelapseConfig, state: State | None = None) -> Training[Relapse]:
    """Trains the token on the cleaned model `sd`, of which nothing changes; resumes as every training does (`drive`)."""
    inversion = InvertConfig(**{name: value for name, value in asdict(config).items() if name != "every"})
    vectors: dict[int, list[Tensor]] = {0: list(initial_vectors(sd, examples.initial, config.vectors))}
    if state:
        vectors = dict(state["vectors"])
    for step in (training := invert(sd, [examples], inversion, state)):
        if step.step % config.every == 0 or step.step == config.steps:
            vectors[step.step] = step.state()["average"]
        if (yield Step(step.step, step.loss, partial(_state, step, dict(vectors)))):
            training.close()
            break
    return Relapse({at: learned([examples], rows)[0] for at, rows in vectors.items()})


def _state(step: Step, vectors: Mapping[int, list[Tensor]]) -> State:
    return {**step.state(), "vectors": vectors}


def relapsed(
    sd: StableDiffusion, token: LearnedToken, **look: Any
) -> Callable[[Sequence[str], Sequence[int]], Iterator[Image.Image]]:
    """(prompts, seeds) -> images of the prompts with the token behind each; `look` are `sample`'s settings."""
    return partial(sample, install(sd, token), encode=partial(encode_prompts, suffix=token.placeholder), **look)
