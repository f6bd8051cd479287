"""Judgments as training reads them: a frozen, hashed export, never the live database. And the way back, from files.

Needs no torch. A file is JSON lines: a head with the concept, the question and the hash, then one judgment a line; or CSV, one
row an image, which spreadsheets read and other tools write.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from hfi.errors import HfiError, NoJudgments
from hfi.files import from_spreadsheet_cell, spreadsheet_cell, write_text
from hfi.store import queries, record
from hfi.store.models import VERDICTS
from hfi.store.session import Engine, reading

Include = Literal["exclude", "include", "only"]  # what to do with the answers of simulated annotators

ANSWERS = tuple(verdict for verdict in VERDICTS if verdict != "undone")
CONTENT = {"shows": 1.0, "clean": 0.0}  # verdicts that say something of the image; the others are missing data


@dataclass(frozen=True)
class Judgment:
    """One person's verdict. `images`: sha256 of one image or, of a ranking, of several, most of the concept first; `prompts` go
    with them, and `ranks` where images share a place (1, 2, 2, 4). `annotator` is a pseudonym, `time` ISO 8601 in UTC. `region`:
    where the concept is, [x, y, width, height] in parts of the image. `adjudicated`: a manager's decision in the place of votes."""

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
    ranks: tuple[int, ...] | None = None
    region: tuple[float, ...] | None = None
    adjudicated: bool = False


@dataclass(frozen=True)
class JudgmentSet:
    concept: str
    question: str
    judgments: tuple[Judgment, ...]

    @property
    def sha256(self) -> str:
        """Of concept, question and the judgments in order; what a result names as its source. Comments are left out: an export
        leaves them out unless asked, and is of the same hash either way."""
        silent = (replace(j, comment=None) for j in self.judgments)
        lines = [json.dumps({"concept": self.concept, "question": self.question}), *map(_line, silent)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def simulated(self) -> bool:
        """Whether any of them comes from a simulation."""
        return any(j.simulated for j in self.judgments)

    @property
    def judged_by(self) -> dict[str, Any]:
        """What a result says of them: the hash, how many they are, and of how many people and simulated annotators."""
        annotators = {j.annotator: j.simulated for j in self.judgments}
        simulated = sum(annotators.values())
        people = len(annotators) - simulated
        return {"sha256": self.sha256, "judgments": len(self.judgments), "people": people, "simulated": simulated}

    @property
    def prompts(self) -> dict[str, str | None]:
        """The prompt of each judged image, None where unknown."""
        return {sha: p for j in self.judgments for sha, p in zip(j.images, j.prompts, strict=True)}


def judged_by(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """`JudgmentSet.judged_by` of the sets behind a result, from its metadata. Of one made before these were kept, only that there
    are simulated judgments."""
    old = [{"sha256": metadata.get("judgments", ""), "simulated": 1}] if metadata.get("simulated") == "true" else []
    return json.loads(metadata["judged_by"]) if "judged_by" in metadata else old


def each_once(*found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Several results of `judged_by` as one, each set of judgments once."""
    sets: dict[str, dict[str, Any]] = {}
    for entry in (entry for entries in found for entry in entries):
        sets[entry["sha256"]] = {**sets.get(entry["sha256"], {}), **entry}
    return list(sets.values())


def judged_by_text(found: Iterable[Mapping[str, Any]]) -> str:
    """'960 judgments of 2 people and 3 simulated annotators', sets apart by commas; empty for none."""

    def one(entry: Mapping[str, Any]) -> str:
        if "judgments" not in entry:
            return "simulated judgments"
        people, simulated = entry["people"], entry["simulated"]
        sides = [f"{people} {'person' if people == 1 else 'people'}"] if people else []
        sides += [f"{simulated} simulated annotator{'' if simulated == 1 else 's'}"] if simulated else []
        return f"{entry['judgments']} judgments of {' and '.join(sides)}"

    return ", ".join(one(entry) for entry in found)


def freeze(engine: Engine, concept: str, simulated: Include = "exclude") -> JudgmentSet:
    """The living judgments of a concept. Simulated ones only where asked for. NoJudgments where nothing is left."""
    wanted = {"exclude": False, "include": None, "only": True}[simulated]
    with reading(engine) as s:
        question = queries.concept(s, concept).question
        rows = record.current_judgments(s, concept, wanted)
        others = 0 if rows or simulated != "exclude" else len(record.current_judgments(s, concept, True))
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
            r.ranks,
            r.region,
            r.adjudicated,
        )
        for r in rows
    ]
    return JudgmentSet(concept, question, tuple(judgments))


def save(judgments: JudgmentSet, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, to_jsonl(judgments))
    except OSError as e:
        raise HfiError(f"cannot write {path}: {e.strerror or e}") from e


def to_jsonl(judgments: JudgmentSet) -> str:
    head = {"concept": judgments.concept, "question": judgments.question, "sha256": judgments.sha256}
    return "\n".join([json.dumps(head), *map(_line, judgments.judgments)]) + "\n"


def load(path: Path) -> JudgmentSet:
    """HfiError for a file that is none, and for one that was changed since it was written."""
    try:
        head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        given: list[dict[str, Any]] = [{k: tuple(v) if isinstance(v, list) else v for k, v in line.items()} for line in lines]
        judgments = [Judgment(**one) for one in given]
        found = JudgmentSet(head["concept"], head["question"], tuple(judgments))
        stated = head["sha256"]
    except FileNotFoundError:
        raise HfiError(f"no file {path}: check the path") from None
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as e:
        raise HfiError(f"{path} is no export of judgments ({type(e).__name__}): make one with 'hfi labels export'") from None
    if found.sha256 != stated:
        raise HfiError(f"{path} was changed after it was exported: its hash does not match; export it again")
    return found


_LATER = {"ranks": None, "region": None, "adjudicated": False}  # fields of later versions: left out where they say nothing


def _line(judgment: Judgment) -> str:
    """As it is written and hashed: the hash of a set without later fields is the one that earlier versions gave it."""
    said = {name: value for name, value in asdict(judgment).items() if name not in _LATER or value != _LATER[name]}
    return json.dumps(said, sort_keys=True, ensure_ascii=True)


COLUMNS = ("judgment", "image", "verdict", "rank", "annotator", "simulated", "campaign", "time", "guideline_version",
           "prompt", "comment", "elapsed_ms")  # fmt: skip


def to_csv(judgments: Iterable[Judgment]) -> str:
    """One row an image: those of a ranking share their number under 'judgment', with their ranks. A text that a spreadsheet would
    run as a formula gets a leading apostrophe, which `from_csv` takes off again."""
    text = io.StringIO()
    writer = csv.writer(text)  # lines end in CR LF, so that a lone CR or LF in a comment is quoted
    writer.writerow(COLUMNS)
    for number, j in enumerate(judgments, 1):
        for rank, (sha, prompt) in enumerate(zip(j.images, j.prompts, strict=True), 1):
            row: Sequence[Any] = (
                number, sha, j.verdict, rank if j.verdict == "ranked" else None, j.annotator, str(j.simulated).lower(),
                j.campaign, j.time, j.guideline_version, prompt, j.comment, j.elapsed_ms,
            )  # fmt: skip
            writer.writerow(["" if cell is None else spreadsheet_cell(str(cell)) for cell in row])
    return text.getvalue()


def from_csv(text: str, source: str = "the file") -> tuple[Judgment, ...]:
    """The judgments in a CSV file named `source`, written by `to_csv` or by hand. Needed are the columns image and verdict, and
    for rankings judgment and rank. What is not given is empty, and the annotator 'imported'; `images` holds what the file says of
    them, which may be a file's name. HfiError naming the line of a mistake.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""))
    groups: dict[str, list[dict[str, str]]] = {}
    lines: dict[str, int] = {}
    try:
        missing = [name for name in ("image", "verdict") if name not in (reader.fieldnames or ())]
        if missing:
            raise HfiError(
                f"{source} has no column {' and no column '.join(missing)}: give the columns image, verdict, annotator"
            )
        for row in reader:
            given = {name: from_spreadsheet_cell(cell) for name, cell in row.items() if name and isinstance(cell, str) and cell}
            number = given.get("judgment", f"line {reader.line_num}")
            groups.setdefault(number, []).append(given)
            lines.setdefault(number, reader.line_num)
    except csv.Error as e:
        raise HfiError(f"{source} is not CSV: {e} after line {reader.line_num}") from None
    found = []
    for number, rows in groups.items():
        try:
            found.append(_from_rows(rows))
        except (KeyError, ValueError) as e:
            words = f"it has no {e.args[0]}" if isinstance(e, KeyError) else str(e)
            raise HfiError(f"{source}, line {lines[number]}: {words}") from None
    return tuple(found)


def _from_rows(rows: Sequence[Mapping[str, str]]) -> Judgment:
    first = rows[0]
    if len({row.get("verdict") for row in rows}) > 1:
        raise ValueError("the rows of one judgment have different verdicts")
    if first["verdict"] not in ANSWERS:
        raise ValueError(f"unknown verdict {first['verdict']!r}: choose {', '.join(ANSWERS)}")
    if first["verdict"] == "ranked":
        rows = sorted(rows, key=lambda row: int(row["rank"]))
        if [int(row["rank"]) for row in rows] != list(range(1, len(rows) + 1)):
            raise ValueError("the ranks of one judgment must be 1, 2, 3, ...")
    time = first.get("time", "")
    if time and datetime.fromisoformat(time).tzinfo is None:
        raise ValueError(f"the time {time!r} has no zone: write it as 2026-01-31T12:00:00+00:00")
    simulated = first.get("simulated", "false").lower()
    if simulated not in ("true", "false"):
        raise ValueError(f"simulated is {simulated!r}: write true or false")
    return Judgment(
        tuple(row["image"] for row in rows),
        tuple(row.get("prompt") for row in rows),
        first["verdict"],
        first.get("annotator", "imported"),
        simulated == "true",
        first.get("campaign", ""),
        time,
        int(first.get("guideline_version", 1)),
        first.get("comment"),
        int(first["elapsed_ms"]) if "elapsed_ms" in first else None,
    )
