"""Looking at a model while a concept is taken out of it: pictures, and two figures from the concept's reward model.

    removal   how much of the concept the teacher still shows on flagged prompts. Of a binary question the share of its pictures
              that the reward scores above 0.5. Of a ranking, whose scores have no zero, the mean of
              sigmoid(r(teacher's picture) - r(frozen model's)): the chance that a person puts the teacher's first, 1/2 at the start
    distance  how far the teacher's pictures of harmless prompts are from the frozen model's: the mean of 1 - cosine of their
              embeddings in the reward's CLIP (not the perceptual distance of `hfi evaluate`, which compares layers)

Both compare pictures of the same prompts and seeds. The frozen model is the one that training starts from.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
from PIL import Image
from torch import Tensor

from hfi.contact_sheet import contact_sheet, write_sheet
from hfi.diffusion.sample import sample
from hfi.diffusion.sd import StableDiffusion
from hfi.diffusion.training import Step
from hfi.erase.distil import TrainingConfig
from hfi.erase.removal import Removal
from hfi.errors import HfiError
from hfi.reward.model import RewardModel
from hfi.runs import Run

# of the first picture: below 2^32, as torch keeps 32 bits, and far above what people give to a training
FIRST_SEED = 4_000_000_000


def split(removal: Removal) -> tuple[Removal, Removal]:
    """(what is trained on, what is looked at). Of ten or more distinct prompts of a kind (a concept's flagged ones, the retained
    ones) one in five is looked at alone; where there are fewer, all are both trained on and looked at."""
    kinds = [*removal.contexts, removal.retain]
    distinct = [_mixed(prompts) for prompts in kinds]
    held = [prompts[: len(prompts) // 5] if len(prompts) >= 10 else [] for prompts in distinct]
    away = {prompt for prompts in held for prompt in prompts}
    # a concept all of whose few prompts are held out for another one keeps them, or it would not be removed at all
    trained = [[p for p in prompts if p not in away] or list(prompts) for prompts in kinds]
    seen = [some or prompts for some, prompts in zip(held, distinct, strict=True)]
    of_these, of_those = (replace(removal, contexts=k[:-1], retain=k[-1]) for k in (trained, seen))
    return of_these, of_those


def _mixed(prompts: Iterable[str]) -> list[str]:
    """The distinct prompts but the empty one, in an order that depends on them alone and follows no meaning."""
    return sorted({p for p in prompts if p}, key=lambda p: hashlib.sha256(p.encode()).digest())


def remaining(scores: np.ndarray, frozen: np.ndarray, question: str) -> np.ndarray:
    """How much of the concept each picture still shows, 0 to 1, float64 [N]; from rewards [N] of it and of the frozen model's."""
    if question == "binary":
        return (scores > 0.5).astype(np.float64)
    return 1 / (1 + np.exp(frozen.astype(np.float64) - scores))


def validation(
    sd: StableDiffusion, seen: Removal, rewards: Sequence[RewardModel], config: TrainingConfig, run: Run
) -> Callable[[Step], None]:
    """Gives what looks at a step of `distil`: it writes `validation/<step>.png` into the run and, with the reward model of each
    concept, logs the figures. The frozen model's pictures are made at once; nothing is drawn from training's random numbers.

    HfiError where removal cannot tell when to stop, as the frozen model's pictures do not show the concept either.
    """
    turns = zip_longest(*([(prompt, k) for prompt in prompts] for k, prompts in enumerate(seen.contexts)))
    pairs = [pair for turn in turns for pair in turn if pair]  # of the concepts in turn
    count = config.validate_images
    flagged = [pairs[i % len(pairs)] for i in range(count)]
    retained = _mixed(seen.retain)
    harmless = [retained[i % len(retained)] for i in range(count)] if retained else []
    prompts = [prompt for prompt, _ in flagged] + harmless
    seeds = [FIRST_SEED + i for i in range(len(prompts))]

    def pictures(weights: Mapping[str, Tensor] | None) -> list[Image.Image]:
        here = None if weights is None else {name: value.to(sd.device) for name, value in weights.items()}
        batch = min(config.batch_size, 8)  # takes no more memory than an update
        return list(sample(sd, prompts, seeds, weights=here, batch_size=batch))

    def scored(images: Sequence[Image.Image]) -> list[tuple[RewardModel, np.ndarray]]:
        """Each concept's reward of its flagged prompts' pictures."""
        rows = [[image for image, (_, of) in zip(images, flagged, strict=False) if of == k] for k in range(len(rewards))]
        return [(reward, reward.score(own)) for reward, own in zip(rewards, rows, strict=True) if own]

    def removal(images: Sequence[Image.Image]) -> float:
        both = zip(scored(images), before, strict=True)
        return float(np.concatenate([remaining(now, then, reward.question) for (reward, now), (_, then) in both]).mean())

    frozen = pictures(None)
    if rewards:
        before = scored(frozen)
        removal_frozen = removal(frozen)
        origin = rewards[0].backbone.images(frozen[count:])
        if config.stop_at is not None and removal_frozen <= config.stop_at:
            raise HfiError(
                f"the untouched model's pictures show as little of it (removal {removal_frozen:.2f}) as --stop-at "
                f"{config.stop_at} asks for: under another --name, give a lower --stop-at or more --validate-images, or leave it out"
            )

    def look(step: Step) -> None:
        state = step.state()
        student, teacher = pictures(state["student"]), pictures(state["teacher"])
        rows = []
        for kind, part in (("flagged", slice(None, count)), ("harmless", slice(count, None))):
            if frozen[part]:
                named = (("frozen", frozen), ("student", student), ("teacher", teacher))
                rows += [(f"{name}, {kind} prompts", images[part]) for name, images in named]
        path = run.path / "validation" / f"{step.step:05d}.png"
        write_sheet(path, contact_sheet(rows))
        run.show(path)
        if not rewards:
            return
        figures = {"removal": removal(teacher), "removal_frozen": removal_frozen}
        if harmless:
            there = rewards[0].backbone.images(teacher[count:])
            figures["distance"] = float(np.mean(1 - (there * origin).sum(1)))
        run.log(step=step.step, **figures)

    return look


def ending(metrics: Sequence[Mapping[str, Any]], config: TrainingConfig) -> Literal["removal", "distance"] | None:
    """Why a run of these metrics ends now, if it does: at two validations in a row removal was at most --stop-at, or at the last
    one distance above --stop-distance. Of metrics alone, so that a run that was killed ends where it would have."""
    seen = [line for line in metrics if "removal" in line]
    if config.stop_distance is not None and seen and seen[-1]["distance"] > config.stop_distance:
        return "distance"
    if config.stop_at is not None and len(seen) > 1 and all(line["removal"] <= config.stop_at for line in seen[-2:]):
        return "removal"
    return None
