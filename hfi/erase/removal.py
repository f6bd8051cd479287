"""What a method is asked to remove."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Removal:
    """`texts`: each concept as words ("smoking a cigarette") or as an installed token ("<smoking>"). `contexts`: for each
    concept the prompts of the images that people flagged, one entry an image. `retain`: prompts that must stay as they are."""

    texts: Sequence[str]
    contexts: Sequence[Sequence[str]] = ()
    retain: Sequence[str] = ()
