"""What the program does with the database, as verbs. Each takes a session (`writing` or `reading`) and returns frozen dataclasses.

Here: images, concepts and annotators. Beside it: campaigns.py, choosing.py (images for them), judging.py, showing.py, record.py (what
was judged), adjudicating.py, overview.py, wellbeing.py, people.py, rounds.py, jobs.py, imports.py. locks.py: who waits for whom on
PostgreSQL; copying.py: a whole database into another.
"""

import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from hfi import concepts
from hfi.errors import HfiError, NotFound
from hfi.store import models as m

Source = Literal["generated", "imported"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an image comes from. `key`: sha256 over everything it was made by, or, imported, of what it is."""

    key: str
    sha256: str
    width: int
    height: int
    source: Source
    prompt: str | None = None
    negative_prompt: str | None = None
    model: str | None = None
    model_content: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    run: str | None = None
    erasure: str | None = None
    guide: str | None = None
    original_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Image(Provenance):
    id: int


@dataclass(frozen=True)
class Annotator:
    id: int
    name: str
    pseudonym: str
    simulated: bool


def now_utc() -> datetime:
    return datetime.now(UTC)


# --- images ---

_PROVENANCE = tuple(Provenance.__dataclass_fields__)


def add_image(s: Session, provenance: Provenance) -> Image:
    """Adds the image, or finds the one of the same key; a prompt that was not known is filled in."""
    row = s.scalar(select(m.Image).where(m.Image.key == provenance.key))
    if row is None:
        row = m.Image(**{name: getattr(provenance, name) for name in _PROVENANCE}, created_at=now_utc())
        s.add(row)
        s.flush()
    elif row.prompt is None:
        row.prompt = provenance.prompt
    return _image(row)


def has_keys(s: Session, keys: Iterable[str]) -> set[str]:
    """Those of the keys that the database has."""
    wanted, found = list(keys), set[str]()
    for i in range(0, len(wanted), 500):
        found |= set(s.scalars(select(m.Image.key).where(m.Image.key.in_(wanted[i : i + 500]))))
    return found


def images(
    s: Session,
    *,
    model: str | None = None,
    run: str | None = None,
    prompt: str | None = None,
    source: Source | None = None,
    limit: int | None = None,
) -> list[Image]:
    """Images in the order in which they were added."""
    query = select(m.Image).order_by(m.Image.id).limit(limit)
    for column, value in ((m.Image.model, model), (m.Image.run, run), (m.Image.prompt, prompt), (m.Image.source, source)):
        if value is not None:
            query = query.where(column == value)
    return [_image(row) for row in s.scalars(query)]


def image(s: Session, image_id: int) -> Image:
    row = s.get(m.Image, image_id)
    if row is None:
        raise NotFound(f"no image {image_id}")
    return _image(row)


def _image(row: m.Image) -> Image:
    return Image(id=row.id, **{name: getattr(row, name) for name in _PROVENANCE})


# --- concepts ---


def add_concept(s: Session, concept: concepts.Concept) -> concepts.Concept:
    """Adds the concept; the same one again changes nothing. A new guideline of a known concept becomes its next version."""
    row = s.scalar(select(m.Concept).where(m.Concept.slug == concept.slug))
    fields = {name: getattr(concept, name) for name in ("title", "guideline", "initial_word", "prompt")}
    if row is None:
        s.add(m.Concept(slug=concept.slug, question=concept.question, guideline_version=1, created_at=now_utc(), **fields))
    elif row.question != concept.question:
        raise HfiError(f"concept {concept.slug!r} is judged by {row.question} questions already: give the new one another name")
    else:
        if row.guideline != concept.guideline:
            row.guideline_version += 1
        for name, value in fields.items():
            setattr(row, name, value)
    s.flush()
    return concept


def concept(s: Session, slug: str) -> concepts.Concept:
    return _concept(concept_row(s, slug))


def concepts_list(s: Session) -> list[concepts.Concept]:
    return [_concept(row) for row in s.scalars(select(m.Concept).order_by(m.Concept.id))]


def _concept(row: m.Concept) -> concepts.Concept:
    return concepts.Concept(row.slug, row.title, row.guideline, row.question, row.initial_word, row.prompt)  # type: ignore[arg-type]


def concept_row(s: Session, slug: str) -> m.Concept:
    row = s.scalar(select(m.Concept).where(m.Concept.slug == slug))
    if row is None:
        known = list(s.scalars(select(m.Concept.slug).order_by(m.Concept.slug)))
        hint = f"known are {', '.join(known)}" if known else "there is none yet: add one with 'hfi concept add'"
        raise NotFound(f"no concept {slug!r}: {hint}")
    return row


# --- annotators ---

_JOINERS = {"\u200c", "\u200d", *(chr(c) for c in range(0xFE00, 0xFE10))}  # shape the letters beside them; alone nobody sees them
_NOT_SHOWN = {"Cc", "Cf", "Cs", "Co", "Cn"}  # control, format (such as "from right to left"), halves, of nobody, of nothing
_BLANKS = {"\u115f", "\u1160", "\u2800"}  # letters that look like a space


def named(name: str) -> tuple[str, str]:
    """A name as it is shown, and its key, which is the same whatever its case, Unicode form and spaces. HfiError for a name that
    is empty or too long, or has something in it that nobody sees: two people could then look the same."""
    shown = " ".join(unicodedata.normalize("NFKC", name).split())
    key = "".join(c for c in shown if c not in _JOINERS).casefold()
    if not key or len(shown) > 80:
        raise HfiError(f"{_short(name)} cannot name an annotator: give 1 to 80 characters")
    for c in shown:
        if c in _BLANKS or (unicodedata.category(c) in _NOT_SHOWN and c not in _JOINERS):
            raise HfiError(f"{_short(name)} cannot name an annotator: leave out the character U+{ord(c):04X}, which nobody sees")
    return shown, key


def _short(name: str) -> str:
    return repr(name if len(name) <= 40 else f"{name[:40]}...")


def ensure_annotator(s: Session, name: str, simulated: bool = False) -> Annotator:
    """The annotator of this name, whatever its case and Unicode form. HfiError where a person and a simulation would share it."""
    shown, key = named(name)
    row = s.scalar(select(m.Annotator).where(m.Annotator.name_key == key))
    if row is None:
        row = m.Annotator(name=shown, name_key=key, pseudonym=_pseudonym(s), simulated=simulated, created_at=now_utc())
        s.add(row)
        s.flush()
    elif row.simulated != simulated:
        kind = "a simulated annotator" if row.simulated else "a person"
        raise HfiError(f"{shown!r} is {kind} already: take another name, the two are kept apart")
    return _annotator(row)


def annotator(s: Session, annotator_id: int) -> Annotator:
    row = s.get(m.Annotator, annotator_id)
    if row is None:
        raise NotFound(f"no annotator {annotator_id}")
    return _annotator(row)


def annotators(s: Session) -> list[Annotator]:
    return [_annotator(row) for row in s.scalars(select(m.Annotator).order_by(m.Annotator.id))]


def _annotator(row: m.Annotator) -> Annotator:
    return Annotator(row.id, row.name, row.pseudonym, row.simulated)


def _pseudonym(s: Session) -> str:
    """A-7F3K: random, of letters and digits that are not mistaken for one another."""
    while True:
        name = "A-" + "".join(secrets.choice("23456789ABCDEFGHJKMNPQRSTUVWXYZ") for _ in range(4))
        if s.scalar(select(m.Annotator.id).where(m.Annotator.pseudonym == name)) is None:
            return name
