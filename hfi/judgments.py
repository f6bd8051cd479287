"""Judgments as training reads them: a frozen, hashed export, never the live database.

Needs no torch. A file is JSON lines: a head with the concept, the question and the hash, then one judgment a line.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hfi.errors import HfiError, NoJudgments
from hfi.runs import write_text
from hfi.store import queries
from hfi.store.session import Engine, reading

Include = Literal["exclude", "include", "only"]  # what to do with the answers of simulated annotators

CONTENT = {"shows": 1.0, "clean": 0.0}  # verdicts that say something of the image; the others are missing data


@dataclass(frozen=True)
class Judgment:
    """One person's verdict. `images`: sha256 of one image or, of a ranking, of several, most of the concept first; `prompts` go
    with them. `annotator` is a pseudonym, `time` ISO 8601 in UTC."""

    images: tuple[str, ...]
    prompts: tuple[str | None, ...]
    verdict: str
    annotator: str
    simulated: bool
    campaign: str
    time: str
    guideline_version: int
    comment: str | None = None
    elapsed_ms: int | None = None


@dataclass(frozen=True)
class JudgmentSet:
    concept: str
    question: str
    judgments: tuple[Judgment, ...]

    @property
    def sha256(self) -> str:
        """Of concept, question and the judgments in order; what a result names as its source."""
        lines = [json.dumps({"concept": self.concept, "question": self.question}), *map(_line, self.judgments)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def simulated(self) -> bool:
        """Whether any of them comes from a simulation."""
        return any(j.simulated for j in self.judgments)

    @property
    def prompts(self) -> dict[str, str | None]:
        """The prompt of each judged image, None where unknown."""
        return {sha: p for j in self.judgments for sha, p in zip(j.images, j.prompts, strict=True)}


def freeze(engine: Engine, concept: str, simulated: Include = "exclude") -> JudgmentSet:
    """The living judgments of a concept. Simulated ones only where asked for. NoJudgments where nothing is left."""
    wanted = {"exclude": False, "include": None, "only": True}[simulated]
    with reading(engine) as s:
        question = queries.concept(s, concept).question
        rows = queries.current_judgments(s, concept, wanted)
        others = 0 if rows or simulated != "exclude" else len(queries.current_judgments(s, concept, True))
    if not rows:
        hint = f" ({others} simulated ones exist: take them with --simulated include)" if others else ""
        raise NoJudgments(f"no judgments of {concept!r}{hint}: collect some with 'hfi ui', or 'hfi labels import'")
    judgments = [
        Judgment(
            r.images,
            r.prompts,
            r.verdict,
            r.annotator,
            r.simulated,
            r.campaign,
            r.created_at.isoformat(timespec="milliseconds"),
            r.guideline_version,
            r.comment,
            r.elapsed_ms,
        )
        for r in rows
    ]
    return JudgmentSet(concept, question, tuple(judgments))


def save(judgments: JudgmentSet, path: Path) -> None:
    head = {"concept": judgments.concept, "question": judgments.question, "sha256": judgments.sha256}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join([json.dumps(head), *map(_line, judgments.judgments)]) + "\n")
    except OSError as e:
        raise HfiError(f"cannot write {path}: {e.strerror or e}") from e


def load(path: Path) -> JudgmentSet:
    """HfiError for a file that is none, and for one that was changed since it was written."""
    try:
        head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        judgments = [Judgment(**{**line, "images": tuple(line["images"]), "prompts": tuple(line["prompts"])}) for line in lines]
        found = JudgmentSet(head["concept"], head["question"], tuple(judgments))
        stated = head["sha256"]
    except FileNotFoundError:
        raise HfiError(f"no file {path}: check the path") from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as e:
        raise HfiError(f"{path} is no export of judgments ({type(e).__name__}): make one with 'hfi labels export'") from None
    if found.sha256 != stated:
        raise HfiError(f"{path} was changed after it was exported: its hash does not match; export it again")
    return found


def _line(judgment: Judgment) -> str:
    return json.dumps(asdict(judgment), sort_keys=True, ensure_ascii=True)


COLUMNS = ("image", "verdict", "rank", "annotator", "simulated", "campaign", "time", "prompt", "comment", "elapsed_ms")


def to_csv(judgments: Iterable[Judgment]) -> str:
    """One line an image (a ranking has several, with their ranks). Texts that a spreadsheet would run as formulas get a leading '."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for j in judgments:
        ranked = j.verdict == "ranked"
        for rank, (sha, prompt) in enumerate(zip(j.images, j.prompts, strict=True), 1):
            row: Sequence[Any] = (
                sha, j.verdict, rank if ranked else "", j.annotator, str(j.simulated).lower(), j.campaign, j.time,
                prompt or "", j.comment or "", "" if j.elapsed_ms is None else j.elapsed_ms,
            )  # fmt: skip
            writer.writerow([_harmless(cell) for cell in row])
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r")) else cell
