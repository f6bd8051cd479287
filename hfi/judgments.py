"""Judgments as training reads them: a frozen, hashed export, never the live database. And the way back, from files.

Needs no torch. A file is JSON lines: a head with the concept, the question and the hash, then one judgment a line. Tables (CSV,
Parquet) are written and read by `hfi.judgment_tables`, a folder with the images by `hfi.judgment_folder`.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from hfi.errors import HfiError, NoJudgments
from hfi.files import write_pieces
from hfi.store import queries, record
from hfi.store.bulk import unhurried
from hfi.store.models import VERDICTS
from hfi.store.session import Engine, Session, reading

T = TypeVar("T")
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
class Anew(Generic[T]):
    """What `start` gives, begun anew each time that it is gone through."""

    start: Callable[[], Iterator[T]]

    def __iter__(self) -> Iterator[T]:
        return self.start()


@dataclass(frozen=True)
class Judgments(ABC):
    """What was said of a concept. `judgments` can be gone through again and again, and need not be in memory."""

    concept: str
    question: str
    judgments: Iterable[Judgment]

    @property
    def sha256(self) -> str:
        """Of concept, question and the judgments in order; what a result names as its source. Comments are left out: an export
        leaves them out unless asked, and is of the same hash either way."""
        return str(self.judged_by["sha256"])

    @property
    def simulated(self) -> bool:
        """Whether any of them comes from a simulation."""
        return any(j.simulated for j in self.judgments)

    @cached_property
    def judged_by(self) -> dict[str, Any]:
        """What a result says of them: the hash, how many they are, and of how many people and simulated annotators."""
        known = hashlib.sha256(json.dumps({"concept": self.concept, "question": self.question}).encode())
        annotators: dict[str, bool] = {}
        count = 0
        for j in self.judgments:
            count += 1
            known.update(f"\n{_line(replace(j, comment=None))}".encode())
            annotators[j.annotator] = j.simulated
        simulated = sum(annotators.values())
        return {"sha256": known.hexdigest(), "judgments": count, "people": len(annotators) - simulated, "simulated": simulated}

    @abstractmethod
    def count_images(self) -> int: ...

    @abstractmethod
    def parts(self) -> Iterator[tuple[list[str], "JudgmentSet"]]:
        """Images in the order of their first judgment, some at a time, with all judgments that they are in."""

    @abstractmethod
    def each(self, change: Callable[[Judgment], Judgment]) -> "Judgments":
        """The same ones, changed; which images they are of stays."""


@dataclass(frozen=True)
class JudgmentSet(Judgments):
    """In memory."""

    judgments: tuple[Judgment, ...]

    @property
    def prompts(self) -> dict[str, str | None]:
        """The prompt of each judged image, None where unknown."""
        return {sha: p for j in self.judgments for sha, p in zip(j.images, j.prompts, strict=True)}

    def count_images(self) -> int:
        return len(self.prompts)

    def parts(self) -> Iterator[tuple[list[str], "JudgmentSet"]]:
        yield list(self.prompts), self

    def each(self, change: Callable[[Judgment], Judgment]) -> "JudgmentSet":
        return replace(self, judgments=tuple(map(change, self.judgments)))


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
    with frozen(engine, concept, simulated) as found:
        return JudgmentSet(found.concept, found.question, tuple(found.judgments))


@contextmanager
def frozen(engine: Engine, concept: str, simulated: Include = "exclude") -> Iterator[Judgments]:
    """What `freeze` gives, read from the database each time that it is gone through, while the block lasts: the same each time,
    whatever arrives meanwhile."""
    with reading(engine) as s:
        unhurried(s.connection())  # a caller may copy images out of a slow store meanwhile
        found = _Living(concept, queries.concept(s, concept).question, (), s, _SIDES[simulated])
        found = replace(found, judgments=Anew(found.read))
        if next(iter(found.judgments), None) is None:
            others = sum(1 for _ in record.living(s, concept, True)) if simulated == "exclude" else 0
            hint = f" ({others} simulated ones exist: take them with --simulated include)" if others else ""
            raise NoJudgments(f"no judgments of {concept!r}{hint}: collect some with 'hfi ui', or 'hfi labels import'")
        yield found


_SIDES: dict[Include, bool | None] = {"exclude": False, "include": None, "only": True}
_PART = 250  # images of which all judgments are in memory


@dataclass(frozen=True)
class _Living(Judgments):
    """In the database."""

    session: Session
    side: bool | None
    change: Callable[[Judgment], Judgment] = lambda j: j

    def read(self, shas: Collection[str] | None = None) -> Iterator[Judgment]:
        return map(self.change, map(_from_row, record.living(self.session, self.concept, self.side, shas)))

    def count_images(self) -> int:
        return sum(map(len, record.judged_images(self.session, self.concept, self.side)))

    def parts(self) -> Iterator[tuple[list[str], JudgmentSet]]:
        first: list[str] = []
        for some in record.judged_images(self.session, self.concept, self.side):
            first += some
            if len(first) >= _PART:
                yield self._part(first)
                first = []
        if first:
            yield self._part(first)

    def _part(self, shas: list[str]) -> tuple[list[str], JudgmentSet]:
        found = JudgmentSet(self.concept, self.question, tuple(self.read(shas)))
        wanted = set(shas)
        return [sha for sha in found.prompts if sha in wanted], found

    def each(self, change: Callable[[Judgment], Judgment]) -> "_Living":
        made = replace(self, change=lambda j: change(self.change(j)))
        return replace(made, judgments=Anew(made.read))


def _from_row(row: record.JudgmentRow) -> Judgment:
    return Judgment(
        row.images,
        row.prompts,
        row.verdict,
        row.annotator,
        row.simulated,
        row.campaign,
        row.created_at.isoformat(timespec="milliseconds"),
        row.guideline_version,
        row.comment,
        row.elapsed_ms,
        row.ranks,
        row.region,
        row.adjudicated,
    )


def save(judgments: Judgments, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_pieces(path, to_lines(judgments))
    except OSError as e:
        raise HfiError(f"cannot write {path}: {e.strerror or e}") from e


def to_lines(judgments: Judgments) -> Iterator[str]:
    """The lines of a file, each with its end."""
    yield json.dumps({"concept": judgments.concept, "question": judgments.question, "sha256": judgments.sha256}) + "\n"
    for j in judgments.judgments:
        yield _line(j) + "\n"


def to_jsonl(judgments: Judgments) -> str:
    return "".join(to_lines(judgments))


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
