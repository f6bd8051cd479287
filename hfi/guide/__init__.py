"""Methods that leave the weights alone and lead away from concepts while an image is sampled, at the price of that in every image.

To add one: a file with its formula, and a line here. A concept is words ("smoking a cigarette") or an installed learned token
("<smoking>"). A method with one text for several concepts joins them with commas, as `erase/sdd.py` does.
"""

from collections.abc import Callable, Sequence

from hfi.diffusion.sample import Guidance
from hfi.errors import UsageError
from hfi.guide.negative import negative
from hfi.guide.sega import sega
from hfi.guide.sld import MAX, MEDIUM, STRONG, WEAK, sld

GUIDES: dict[str, Callable[[Sequence[str]], Guidance]] = {
    "neg": negative,
    "sld-weak": lambda texts: sld("sld-weak", texts, WEAK),
    "sld-medium": lambda texts: sld("sld-medium", texts, MEDIUM),
    "sld-strong": lambda texts: sld("sld-strong", texts, STRONG),
    "sld-max": lambda texts: sld("sld-max", texts, MAX),
    "sega": sega,
}


def guidance(name: str, texts: Sequence[str]) -> Guidance:
    """The method of this name against K >= 1 concepts. UsageError for an unknown name, and for no or empty texts."""
    if name not in GUIDES:
        raise UsageError(f"unknown guide {name!r}: choose {', '.join(GUIDES)}")
    if not texts or not all(text.strip() for text in texts):
        raise UsageError(
            f"{name} has no text for a concept: give words or a learned token, such as --against 'smoking a cigarette'"
        )
    return GUIDES[name]([text.strip() for text in texts])


__all__ = ["GUIDES", "guidance"]
