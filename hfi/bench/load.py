"""What `hfi bench load` is asked for; `ui/load.py` runs it."""

from dataclasses import dataclass

from hfi.config import check, option


@dataclass(frozen=True, kw_only=True)
class LoadConfig:
    annotators: int = option(50, "people who judge at once", low=1)
    images: int = option(20_000, "images of the campaign", low=1)
    overlap: int = option(3, "people asked about each image", low=1)
    judgments: int = option(5_000, "judgments to take in all", low=1)
    servers: int = option(1, "labeling servers on the one database, each with its share of the people", low=1)
    kills: int = option(0, "how often the server is killed (SIGKILL) on the way", low=0)
    pictures: bool = option(False, "load each picture, too, as the page does")
    seed: int = option(0, "of verdicts and of the moments of the kills")

    def __post_init__(self) -> None:
        check(self)
