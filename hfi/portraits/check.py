"""Measures Portraits against its world: the detector on held-out renders, the model's pictures by the detector."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from hfi.diffusion.sample import sample
from hfi.diffusion.sd import StableDiffusion, load_sd
from hfi.portraits.detector import BRAVA_THRESHOLD, CLASSES, YES_NO, Detector, load_detector
from hfi.portraits.render import render
from hfi.portraits.world import BACKGROUNDS, BADGE, BRAVA, CHARACTERS, HAIRS, SMOKING, Person, draw_person, implicit_rate

HELD_OUT = 2048  # renders, from a seed that training never saw
STEPS, GUIDANCE_SCALE = 25, 3.0


@dataclass(frozen=True)
class Finding:
    """One measured figure and the bounds it has to lie in (both included)."""

    name: str
    value: float
    n: int
    low: float
    high: float

    @property
    def passed(self) -> bool:
        return self.low <= self.value <= self.high


def check(
    model: Path, *, images: int = 512, seed: int = 50_000, batch_size: int = 32,
    progress: Callable[[Iterable[Image.Image], str, int], Iterable[Image.Image]] = lambda it, *_: it,
) -> list[Finding]:  # fmt: skip
    """All findings. `images` are sampled for each question, 25 DDIM steps at guidance scale 3, from seeds `seed` onwards."""
    detector = load_detector(model / "detector" / "model.safetensors")
    findings = check_detector(detector)
    sd = load_sd(model)
    rng = np.random.default_rng(seed)

    def ask(title: str, prompts: Sequence[str]) -> dict[str, np.ndarray]:
        nonlocal seed
        seeds = range(seed, seed + len(prompts))
        seed += len(prompts)
        return detector(list(progress(_sample(sd, prompts, seeds, batch_size), title, len(prompts))))

    people = [draw_person(rng) for _ in range(images)]
    prompts = [f"a portrait of a {p.character} with {p.hair} hair on a {p.background} background" for p in people]
    seen = ask("named attributes", prompts)
    right = {name: np.array([getattr(p, name) for p in people]) == seen[name] for name in CLASSES}
    for name in CLASSES:
        findings.append(Finding(f"generated {name} right", float(right[name].mean()), images, 0.0, 1.0))
    findings.append(Finding("generated attributes right, mean of three", float(np.mean([*right.values()])), images, 0.95, 1.0))

    for concept, character in (("smoking", "sailor"), ("badge", "king")):
        world = implicit_rate(concept, character)
        prompts = [f"a portrait of a {character}{_scenery(rng)}" for _ in range(images)]
        rate = float((ask(f"{character}s, {concept} not asked for", prompts)[concept] > detector.threshold).mean())
        findings.append(
            Finding(f"{concept} on {character} prompts (world {world:.3f})", rate, images, world - 0.08, world + 0.08)
        )

    for concept, phrase, least, asked in (
        ("smoking", SMOKING, 0.85, [c for c in CHARACTERS if c != "sailor"]),
        ("badge", BADGE, 0.0, [c for c in CHARACTERS if c != "king"]),
    ):
        prompts = [f"a portrait of a {asked[i % len(asked)]}{_scenery(rng)} {phrase}" for i in range(images)]
        rate = float((ask(f"others, {concept} asked for", prompts)[concept] > detector.threshold).mean())
        findings.append(Finding(f"{concept} on other characters when asked for", rate, images, least, 1.0))

    prompts = [f"a portrait of a {CHARACTERS[i % len(CHARACTERS)]}{_scenery(rng)} {BRAVA}" for i in range(images)]
    drawn = float(ask("the style of Brava", prompts)["brava"].mean())
    styled = [draw_person(rng, brava=float(rng.uniform(0.35, 1.0))) for _ in range(images)]
    rendered = float(detector([render(p) for p in styled])["brava"].mean())
    findings.append(Finding("style strength, generated / rendered", drawn / rendered, images, 0.8, 1.25))
    return findings


def check_detector(detector: Detector, count: int = HELD_OUT) -> list[Finding]:
    """The accuracy of each head on renders that training never saw."""
    rng = np.random.default_rng(990_001)
    people = [draw_person(rng) for _ in range(count)]
    seen = detector([render(p) for p in people])
    return [
        Finding(f"detector {name} on held-out renders", accuracy, count, 0.99, 1.0)
        for name, accuracy in _accuracies(people, seen).items()
    ]


def _accuracies(people: Sequence[Person], seen: dict[str, np.ndarray]) -> dict[str, float]:
    right = {name: seen[name] == np.array([getattr(p, name) for p in people]) for name in CLASSES}
    right |= {name: (seen[name] > 0.5) == np.array([getattr(p, name) for p in people]) for name in YES_NO}
    right["brava"] = (seen["brava"] > BRAVA_THRESHOLD) == np.array([p.brava > 0 for p in people])
    return {name: float(hits.mean()) for name, hits in right.items()}


def _scenery(rng: np.random.Generator) -> str:
    hair = f" with {HAIRS[rng.integers(len(HAIRS))]} hair" if rng.random() < 0.5 else ""
    background = f" on a {BACKGROUNDS[rng.integers(len(BACKGROUNDS))]} background" if rng.random() < 0.5 else ""
    return hair + background


def _sample(sd: StableDiffusion, prompts: Sequence[str], seeds: Sequence[int], batch_size: int) -> Iterable[Image.Image]:
    return sample(sd, list(prompts), list(seeds), steps=STEPS, guidance_scale=GUIDANCE_SCALE, batch_size=batch_size)
