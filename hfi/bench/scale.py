"""What `hfi bench scale` is asked for; `ui/scale.py` runs it."""

from dataclasses import dataclass

from hfi.config import check, option
from hfi.errors import UsageError

LEAST_IMAGES = 0.45  # for each judgment, so that every campaign has enough


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    images: int = option(1_000_000, "images in the database", low=1_000)
    annotators: int = option(2_000, "people with accounts", low=20)
    judgments: int = option(1_000_000, "judgments in the database, about", low=1_000)
    calls: int = option(1_000, "claims and submissions to measure", low=10)
    clients: int = option(4, "processes that judge at once, on PostgreSQL", low=1)
    large: int = option(10_000, "rows from which on a table may not be read as a whole", low=1)
    seed: int = option(0, "of everything that is drawn")

    def __post_init__(self) -> None:
        check(self)
        if self.images < LEAST_IMAGES * self.judgments:
            raise UsageError(
                f"--images is {self.images:,}: {self.judgments:,} judgments by three people each need "
                f"{round(LEAST_IMAGES * self.judgments):,} or more"
            )
