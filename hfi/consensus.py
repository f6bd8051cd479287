"""One label an image, of everything that people said of it, with bounds where the method has any: `hfi labels aggregate`."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from hfi.aggregate import SoftLabel, decisions, labelled, rankings
from hfi.errors import NoJudgments, UsageError
from hfi.judgment_tables import lines
from hfi.judgments import Anew, Judgments, JudgmentSet
from hfi.metrics import wilson
from hfi.strengths import strengths

AnyMethod = Literal["majority", "dawid-skene", "bradley-terry", "plackett-luce"]
METHODS: dict[str, tuple[AnyMethod, ...]] = {  # by question; the first is the default
    "binary": ("majority", "dawid-skene"),
    "ranking": ("bradley-terry", "plackett-luce"),
}


@dataclass(frozen=True)
class Label:
    """`label`: of a binary question how much the image shows the concept, 0 to 1; of a ranking its log-strength beside the mean of
    its group, so that sigmoid of a difference is the chance to be put first. `low`, `high`: 95 % bounds, None where the method has
    none or a manager decided. `count`: judgments behind it. `group`: of rankings, the images that it can be compared with; 1 is
    the largest group."""

    image: str
    label: float
    low: float | None
    high: float | None
    count: int
    decided: bool
    group: int | None = None


@dataclass(frozen=True)
class Consensus:
    """`labels` of `images` images can be gone through again and again. `groups`: of rankings, how many images each group has that no
    ranking connects with the others; the largest first."""

    concept: str
    question: str
    method: AnyMethod
    judgments: str  # the hash of the set
    labels: Iterable[Label]
    images: int
    groups: tuple[int, ...] = ()


def consensus(judgments: Judgments, method: AnyMethod | None = None) -> Consensus:
    """Every image that was answered for, with its label. UsageError for a method of the other question, NoJudgments where no
    judgment says anything. By majority a few images are in memory, else every vote (as numbers) or ranking."""
    known = METHODS[judgments.question]
    chosen = method or known[0]
    if chosen not in known:
        raise UsageError(
            f"--method {chosen} is not for {judgments.question} questions, which {judgments.concept!r} is judged by: "
            f"choose {' or '.join(known)}"
        )
    labels: Iterable[Label]
    if judgments.question == "ranking":
        labels = _ranked(JudgmentSet(judgments.concept, judgments.question, tuple(judgments.judgments)), chosen)
    else:
        labels = Anew(partial(_binary, labelled(judgments, chosen), chosen))  # type: ignore[arg-type]
    groups: Counter[int | None] = Counter(label.group for label in labels)
    if not groups:
        raise NoJudgments(
            f"no judgment of {judgments.concept!r} says anything of an image (all are none, unsure, skipped or too disturbing): "
            "judge more with 'hfi ui'"
        )
    sizes = tuple(groups[number] for number in sorted(number for number in groups if number is not None))
    return Consensus(judgments.concept, judgments.question, chosen, judgments.sha256, labels, groups.total(), sizes)


def _binary(labels: Iterable[tuple[str, SoftLabel, bool]], method: AnyMethod) -> Iterator[Label]:
    for sha, label, decided in labels:
        low = high = None
        if method == "majority" and not decided:
            bounds = wilson(label.y * label.count, label.count)
            low, high = bounds.low, bounds.high
        yield Label(sha, label.y, low, high, label.count, decided)


def _ranked(judgments: JudgmentSet, method: Any) -> list[Label]:
    orders = rankings(judgments)
    if not orders:
        return []
    counts = Counter(sha for order in orders for place in order for sha in place)
    decided = {sha for images, j in decisions(judgments).items() if j.verdict == "ranked" for sha in images}
    row = {sha: i for i, sha in enumerate(counts)}
    found = strengths([[[row[sha] for sha in place] for place in order] for order in orders], len(row), method)
    labels = []
    for sha, i in row.items():
        value, half = float(found.value[i]), float(found.half[i])
        low, high = (None, None) if np.isnan(half) else (value - half, value + half)
        labels.append(Label(sha, value, low, high, counts[sha], sha in decided, int(found.group[i]) + 1))
    return labels


def csv_lines(found: Consensus) -> Iterator[str]:
    """One row an image, each with the method and the hash of the judgments."""
    yield from lines([(*Label.__dataclass_fields__, "method", "judgments")])
    for label in found.labels:
        cells: Sequence[Any] = list(asdict(label).values())
        shown = [
            "" if v is None else str(v).lower() if isinstance(v, bool) else repr(v) if isinstance(v, float) else v for v in cells
        ]
        yield from lines([(*shown, found.method, found.judgments)])


def json_pieces(found: Consensus) -> Iterator[str]:
    """One object: concept, question, method, hash of the judgments, `labels`, and of rankings `groups`."""
    about = {"concept": found.concept, "question": found.question, "method": found.method, "judgments": found.judgments}
    yield json.dumps(about, indent=2).removesuffix("\n}") + ',\n  "labels": ['
    for i, label in enumerate(found.labels):
        yield f"{',' if i else ''}\n    " + json.dumps(asdict(label), indent=2).replace("\n", "\n    ")
    groups = json.dumps(found.groups, indent=2).replace("\n", "\n  ")
    yield "\n  ]" + (f',\n  "groups": {groups}' if found.groups else "") + "\n}\n"
