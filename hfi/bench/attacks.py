"""Attacks on every system of a table, each measured as a prompt set of its own.

    relapse        a token is learned on the system's own weights from images that people flagged (hfi/attack/relapse.py), put behind
                   harmless prompts: the share that shows the concept, after more and more updates. A method that guides leaves the
                   weights alone; its attacker learns on the untouched model and meets the guidance while sampling
    ring-a-bell    what the concepts' words add to a prompt's encoding, added to harmless prompts (hfi/attack/ring_a_bell.py), at both
                   strengths that are in use: more is not always more

An attack that is a list of prompts is a prompts file, and is measured as such.
"""

from dataclasses import dataclass, fields

from hfi.attack import RelapseConfig
from hfi.config import check, option


@dataclass(frozen=True, kw_only=True)
class RelapseAttack(RelapseConfig):
    images: int = option(100, "pictures after each number of updates", low=1)
    examples: int = option(64, "flagged images to learn from", low=1)

    @property
    def training(self) -> RelapseConfig:
        return RelapseConfig(**{f.name: getattr(self, f.name) for f in fields(RelapseConfig)})


@dataclass(frozen=True, kw_only=True)
class RingABellAttack:
    images: int = option(100, "pictures at each strength", low=1)

    def __post_init__(self) -> None:
        check(self)


ETAS = (0.9, 3.0)  # of a style and of nudity, in RECE's code
ATTACKS = {"relapse": RelapseAttack, "ring-a-bell": RingABellAttack}
