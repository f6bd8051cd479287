"""Judgments as training reads them: a frozen, hashed export, never the live database. And the way back, from files.

Needs no torch. A file is JSON lines: a head with the concept, the question and the hash, then one judgment a line. Tables (CSV,
Parquet) are written and read by `hfi.judgment_tables`, a folder with the images by `hfi.judgment_folder`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from hfi.errors import HfiError, NoJudgments
from hfi.files import write_text
from hfi.store import queries, record
from hfi.store.models import VERDICTS
from hfi.store.session import Engine, reading

Include = Literal["exclude", "include", "only"]  # what to do with the answers of simulated annotators

ANSWERS = tuple(verdict for verdict in VERDICTS if verdict != "undone")
CONTENT = {"shows": 1.0, "clean": 0.0}  # verdicts that say something of the image; the others are missing data


@dataclass(frozen=True)
class Judgment:
    """One person's verdict. `images`: sha256 of one image or, of a ranking, of several, most of the concept first; `prompts` go
    with them, and `ranks` where images share a place (1, 2, 2, 4). `annotator` is a pseudonym, or a name where names were asked
    for; `time` ISO 8601 in UTC. `region`: where the concept is, [x, y, width, height] in parts of the image. `adjudicated`: a
    manager's decision in the place of votes."""

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

    @property
    def places(self) -> tuple[tuple[str, ...], ...]:
        """The images of a ranking by place, most of the concept first; those that tie stand together."""
        found: dict[int, list[str]] = {}
        for rank, image in zip(self.ranks or range(len(self.images)), self.images, strict=True):
            found.setdefault(rank, []).append(image)
        return tuple(map(tuple, found.values()))


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
    """HfiError for a file that is none, for a judgment that is none, and for a file that was changed since it was written."""
    try:
        check_size(path)
        head, *lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        concept, question, stated = (_plain(head[name]) for name in ("concept", "question", "sha256"))
        check_rows(len(lines), path)
        judgments = tuple(_from_line(line, f"{path}, judgment {n}") for n, line in enumerate(lines, 1))
    except FileNotFoundError:
        raise HfiError(f"no file {path}: check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise HfiError(f"{path} is no export of judgments ({type(e).__name__}): make one with 'hfi labels export'") from None
    except OSError as e:
        raise HfiError(f"cannot read {path}: {e.strerror or e}") from None
    found = JudgmentSet(concept, question, judgments)
    if found.sha256 != stated:
        raise changed(path)
    return found


def _from_line(line: Any, place: str) -> Judgment:
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in line.items()}
    try:
        return sound(Judgment(**given))
    except NotSound as e:
        raise HfiError(f"{place}: {e}") from None


def changed(path: Path) -> HfiError:
    return HfiError(f"{path} was changed after it was exported: its hash does not match; export it again")


def _plain(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


class NotSound(ValueError):
    """A judgment that no workspace could hold; says why."""


MAX_ROWS = 5_000_000  # of a file, as rows of a table or lines: more than the memory of most machines holds
MAX_BYTES = 2 * 2**30  # of a file that is read as text
MAX_TEXT = 100_000  # characters of a prompt, a comment or a name
MAX_IMAGES = 1000  # of one ranking
_MOST = 2**31 - 1  # what every database's integer holds


def check_size(path: Path) -> None:
    """HfiError for a file that would not fit into memory. OSError where there is none."""
    if (size := path.stat().st_size) > MAX_BYTES:
        raise HfiError(f"{path} has {size / 2**30:.1f} GiB: at most {MAX_BYTES // 2**30} are read, split it into several files")


def check_rows(count: int, source: object) -> None:
    if count > MAX_ROWS:
        raise HfiError(f"{source} has more than {MAX_ROWS:,} rows: split it into several files")


def sound(j: Judgment) -> Judgment:
    """The judgment, where a workspace can hold it; else NotSound. What files say is not to be trusted."""
    if j.verdict not in ANSWERS:
        raise NotSound(f"unknown verdict {str(j.verdict)[:40]!r}: choose {', '.join(ANSWERS)}")
    if not (isinstance(j.images, tuple) and isinstance(j.prompts, tuple) and 0 < len(j.images) == len(j.prompts)):
        raise NotSound("the images and prompts of one judgment are not two lists of the same length")
    if len(j.images) > MAX_IMAGES:
        raise NotSound(f"one judgment is about {len(j.images):,} images: at most {MAX_IMAGES:,} can be ranked")
    required = (*j.images, j.annotator, j.campaign, j.time)
    for text in (*required, *(t for t in (*j.prompts, j.comment) if t is not None)):
        if not isinstance(text, str):
            raise NotSound(f"{text!r} stands where a text belongs")
        if len(text) > MAX_TEXT:
            raise NotSound(f"the text {text[:40]!r}... has {len(text):,} characters: at most {MAX_TEXT:,} are taken")
        if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
            raise NotSound(f"the text {text[:40]!r} holds characters that cannot be stored (NUL, or half of a surrogate pair)")
    for name, least, value in (("guideline_version", 1, j.guideline_version), ("elapsed_ms", 0, j.elapsed_ms)):
        if (value is None and name == "elapsed_ms") or (type(value) is int and least <= value <= _MOST):
            continue
        raise NotSound(f"{name} is {value!r}: give a whole number from {least} to {_MOST}")
    for name, value in (("simulated", j.simulated), ("adjudicated", j.adjudicated)):
        if not isinstance(value, bool):
            raise NotSound(f"{name} is {value!r}: write true or false")
    _check_time(j.time)
    _check_ranks(j)
    _check_region(j.region)
    return j


def _check_time(time: str) -> None:
    try:
        if time and datetime.fromisoformat(time).tzinfo is None:
            raise NotSound(f"the time {time!r} has no zone: write it as 2026-01-31T12:00:00+00:00")
        if time:
            datetime.fromisoformat(time).astimezone(UTC)
    except (ValueError, OverflowError) as e:
        if isinstance(e, NotSound):
            raise
        raise NotSound(f"the time {time[:40]!r} is none: write it as 2026-01-31T12:00:00+00:00") from None


def _check_ranks(j: Judgment) -> None:
    """Equal ranks are a tie; the place after n tied images is n later."""
    if j.ranks is None:
        return
    if not (isinstance(j.ranks, tuple) and all(type(rank) is int for rank in j.ranks) and len(j.ranks) == len(j.images)):
        raise NotSound("the ranks of one judgment are not a list of whole numbers, one for each image")
    if j.verdict != "ranked":
        raise NotSound(f"ranks go with the verdict 'ranked', not with {j.verdict!r}")
    last = 1
    for place, rank in enumerate(j.ranks, 1):
        last = place if rank == place else last
        if rank != last:
            raise NotSound("the ranks of one judgment must be 1, 2, 3, ..., and where images tie 1, 2, 2, 4")


def _check_region(region: Any) -> None:
    if region is None:
        return
    if isinstance(region, tuple) and len(region) == 4 and all(type(v) in (int, float) and 0 <= v < 2 for v in region):
        x, y, width, height = region
        if 0 <= x < x + width <= 1.0001 and 0 <= y < y + height <= 1.0001:
            return
    raise NotSound(f"the region {str(region)[:60]} is not within the image: give [x, y, width, height] from 0 to 1")


_LATER = {"ranks": None, "region": None, "adjudicated": False}  # fields of later versions: left out where they say nothing


def _line(judgment: Judgment) -> str:
    """As it is written and hashed: the hash of a set without later fields is the one that earlier versions gave it."""
    said = {name: value for name, value in asdict(judgment).items() if name not in _LATER or value != _LATER[name]}
    return json.dumps(said, sort_keys=True, ensure_ascii=True)
