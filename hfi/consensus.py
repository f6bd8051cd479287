"""One label an image, of everything that people said of it, with bounds where the method has any: `hfi labels aggregate`."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from hfi.aggregate import decisions, rankings, soft_labels
from hfi.errors import NoJudgments, UsageError
from hfi.judgments import JudgmentSet
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
    concept: str
    question: str
    method: AnyMethod
    judgments: str  # the hash of the set
    labels: tuple[Label, ...]

    @property
    def groups(self) -> tuple[int, ...]:
        """Of rankings, how many images each group has that no ranking connects with the others; the largest first."""
        sizes = Counter(label.group for label in self.labels if label.group is not None)
        return tuple(sizes[number] for number in sorted(sizes))


def consensus(judgments: JudgmentSet, method: AnyMethod | None = None) -> Consensus:
    """Every image that was answered for, with its label. UsageError for a method of the other question, NoJudgments where no
    judgment says anything."""
    known = METHODS[judgments.question]
    chosen = method or known[0]
    if chosen not in known:
        raise UsageError(
            f"--method {chosen} is not for {judgments.question} questions, which {judgments.concept!r} is judged by: "
            f"choose {' or '.join(known)}"
        )
    labels = _binary(judgments, chosen) if judgments.question == "binary" else _ranked(judgments, chosen)
    if not labels:
        raise NoJudgments(
            f"no judgment of {judgments.concept!r} says anything of an image (all are none, unsure, skipped or too disturbing): "
            "judge more with 'hfi ui'"
        )
    return Consensus(judgments.concept, judgments.question, chosen, judgments.sha256, tuple(labels))


def _binary(judgments: JudgmentSet, method: Any) -> list[Label]:
    decided = {sha for images in decisions(judgments) for sha in images}
    found = []
    for sha, label in soft_labels(judgments, method).items():
        low = high = None
        if method == "majority" and sha not in decided:
            bounds = wilson(label.y * label.count, label.count)
            low, high = bounds.low, bounds.high
        found.append(Label(sha, label.y, low, high, label.count, sha in decided))
    return found


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


def to_csv(found: Consensus) -> str:
    """One row an image, each with the method and the hash of the judgments."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow((*Label.__dataclass_fields__, "method", "judgments"))
    for label in found.labels:
        cells: Sequence[Any] = list(asdict(label).values())
        shown = [
            "" if v is None else str(v).lower() if isinstance(v, bool) else repr(v) if isinstance(v, float) else v for v in cells
        ]
        writer.writerow((*shown, found.method, found.judgments))
    return text.getvalue()


def to_json(found: Consensus) -> dict[str, Any]:
    groups = {"groups": list(found.groups)} if found.groups else {}
    return {**asdict(found), "labels": [asdict(label) for label in found.labels], **groups}
