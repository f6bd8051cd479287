"""What is to be removed."""

import re
from dataclasses import dataclass
from typing import Literal

from hfi.errors import UsageError

Question = Literal["binary", "ranking"]


@dataclass(frozen=True)
class Concept:
    """A concept as people judge it. `guideline` is Markdown; `initial_word` is where inversion starts; `prompt` is the text that
    people would ask for it with, which sdd-context removes beside the token."""

    slug: str
    title: str
    guideline: str = ""
    question: Question = "binary"
    initial_word: str = ""
    prompt: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", self.slug):
            raise UsageError(f"{self.slug!r} cannot name a concept: use lower-case letters, digits and '-', at most 63")
        if self.question not in ("binary", "ranking"):
            raise UsageError(f"unknown kind of question {self.question!r}: choose binary or ranking")
