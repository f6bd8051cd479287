"""Ways to make images that `evaluate` compares: a model, erasures applied to it, a guide while it samples."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfi.diffusion.sample import Guidance, sample
from hfi.diffusion.sd import StableDiffusion
from hfi.diffusion.tokens import LearnedToken, install
from hfi.distributed import from_main
from hfi.erase.erasure import Erasure, apply
from hfi.evaluate import Sampler
from hfi.guide import guidance
from hfi.judgments import each_once, judged_by

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Guide:
    """A guide by name against K concepts, as words or as learned tokens. UsageError as `guidance`."""

    name: str
    words: tuple[str, ...] = ()
    tokens: tuple[LearnedToken, ...] = ()

    def __post_init__(self) -> None:
        if self.words and self.tokens:
            raise ValueError(f"{self.name} against words and tokens at once: these are two systems")
        guidance(self.name, self.texts)

    @property
    def texts(self) -> tuple[str, ...]:
        return self.words or tuple(token.placeholder for token in self.tokens)

    @property
    def guidance(self) -> Guidance:
        return guidance(self.name, self.texts)

    @property
    def conditioning(self) -> str:
        return "token" if self.tokens else "text"

    @property
    def settings(self) -> dict[str, Any]:
        """What its images depend on beside the model and the sampling; JSON values."""
        contents = {"token content": "+".join(token.content[:16] for token in self.tokens)} if self.tokens else {}
        return {"guide": self.name, "against": self.texts[0] if len(self.texts) == 1 else [*self.texts], **contents}

    @property
    def judged_by(self) -> list[dict[str, Any]]:
        return each_once(*(judged_by(token.metadata) for token in self.tokens))


def ready(sd: StableDiffusion, erasures: Sequence[Path] = (), guide: Guide | None = None) -> StableDiffusion:
    """The model with the erasures applied, and with the tokens that the guide names."""
    return _with(sd, list(map(Erasure.load, erasures)), guide)


def _with(sd: StableDiffusion, erasures: Sequence[Erasure], guide: Guide | None) -> StableDiffusion:
    sd = apply(sd, *erasures)
    for token in guide.tokens if guide else ():
        sd = install(sd, token)
    return sd


def sampler(
    untouched: Callable[[], StableDiffusion],
    erasures: Sequence[Path] = (),
    guide: Guide | None = None,
    *,
    steps: int,
    guidance_scale: float,
    batch_size: int,
) -> Sampler:
    """Images of (prompts, seeds). `untouched` is called for the first ones of each system, so it should load the model once. Of several
    processes, all call the sampler together; the erasures are those that the main one reads."""

    def draw(prompts: list[str], seeds: list[int]) -> "Iterable[Image.Image]":
        made = from_main(lambda: list(map(Erasure.load, erasures)))
        sd = _with(untouched(), made, guide)
        method = guide.guidance if guide else None
        return sample(sd, prompts, seeds, steps=steps, guidance_scale=guidance_scale, batch_size=batch_size, guidance=method)

    return draw
