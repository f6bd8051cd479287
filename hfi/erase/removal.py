"""What a method is asked to remove, and what people say must stay."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Clean:
    """K images that people judged clean, made from prompts that also gave flagged ones: latents z = mean + std * noise,
    [K, C, h, w] each, and prompts."""

    mean: Tensor
    std: Tensor
    prompts: Sequence[str]


@dataclass(frozen=True)
class Removal:
    """`texts`: each concept as words ("smoking a cigarette") or as an installed token ("<smoking>"). `contexts`: for each
    concept the prompts of the images that people flagged, one entry an image. `words`: for each concept other text that asks for
    it, or "". `retain`: prompts that must stay as they are. `clean`: what flagged prompts may give."""

    texts: Sequence[str]
    contexts: Sequence[Sequence[str]] = ()
    retain: Sequence[str] = ()
    words: Sequence[str] = ()
    clean: Clean | None = None
