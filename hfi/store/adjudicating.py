"""Where people disagree about an image, a manager decides: the decision stands in the place of their votes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from hfi.errors import HfiError, NotFound
from hfi.store import models as m
from hfi.store.campaigns import campaign_row
from hfi.store.judging import MAX_COMMENT, is_last
from hfi.store.overview import task_votes
from hfi.store.queries import now_utc

DECISIONS = ("shows", "clean", "unsure")


@dataclass(frozen=True)
class Disputed:
    """A task with votes on both sides."""

    task: int
    shows: int
    clean: int

    @property
    def split(self) -> float:
        """Share of the smaller side, 0 to 0.5."""
        return min(self.shows, self.clean) / (self.shows + self.clean)


@dataclass(frozen=True)
class Vote:
    pseudonym: str
    simulated: bool
    verdict: str
    comment: str | None
    region: tuple[float, ...] | None
    elapsed_ms: int | None


@dataclass(frozen=True)
class Decision:
    verdict: str
    note: str | None
    by: str
    at: datetime


@dataclass(frozen=True)
class Case:
    """All that is known of a task: what it is about, its image, every living vote, and the last decision."""

    task: int
    concept: str  # its title
    image: int
    width: int
    height: int
    prompt: str | None
    votes: tuple[Vote, ...]
    decision: Decision | None


def disputed(s: Session, campaign_id: int, simulated: bool | None = False) -> list[Disputed]:
    """The tasks of a campaign on which answers differ and nobody has decided, the most evenly divided first, then those with most
    answers. Of people (False), simulations (True) or both (None). HfiError for a question without yes and no."""
    _binary(s, campaign_id)
    decided = set(s.scalars(select(m.Adjudication.task_id).join(m.Task).where(m.Task.campaign_id == campaign_id)))
    both = [
        Disputed(task, yes, no)
        for task, (yes, no) in task_votes(s, campaign_id, simulated).items()
        if yes and no and task not in decided
    ]
    return sorted(both, key=lambda d: (-d.split, -(d.shows + d.clean), d.task))


def decided(s: Session, campaign_id: int) -> list[int]:
    """The tasks of a campaign with a decision, the last decided first."""
    query = select(m.Adjudication.task_id).join(m.Task, m.Task.id == m.Adjudication.task_id)
    found = s.scalars(query.where(m.Task.campaign_id == campaign_id).order_by(m.Adjudication.id.desc()))
    return list(dict.fromkeys(found))


def case_of(s: Session, task_id: int) -> Case:
    """NotFound for no task; HfiError for one of a question without yes and no."""
    task = s.get(m.Task, task_id)
    if task is None:
        raise NotFound(f"no task {task_id}: reload the page")
    _binary(s, task.campaign_id)
    title = s.scalars(select(m.Concept.title).join(m.Campaign).where(m.Campaign.id == task.campaign_id)).one()
    image = s.scalars(select(m.Image).join(m.TaskImage).where(m.TaskImage.task_id == task_id)).one()
    query = select(_SAID, m.Annotator).join(m.Annotator, m.Annotator.id == _SAID.annotator_id)
    living = (_SAID.task_id == task_id, _SAID.verdict != "undone", m.Annotator.withdrawn_at.is_(None), is_last(_SAID))
    votes = [
        Vote(who.pseudonym, who.simulated, said.verdict, said.comment, _region(said.region), said.elapsed_ms)
        for said, who in s.execute(query.where(*living).order_by(_SAID.id))
    ]
    last = select(m.Adjudication, m.Annotator.name).join(m.Annotator, m.Annotator.id == m.Adjudication.annotator_id)
    found = s.execute(last.where(m.Adjudication.task_id == task_id).order_by(m.Adjudication.id.desc()).limit(1)).first()
    decision = Decision(found[0].verdict, found[0].note, found[1], found[0].created_at) if found else None
    return Case(task.id, title, image.id, image.width, image.height, image.prompt, tuple(votes), decision)


def decide(s: Session, task_id: int, annotator_id: int, verdict: str, note: str | None = None, *, anew: bool = False) -> None:
    """Writes a decision down. One that is there stays, unless it is made `anew`: a second click must not count. HfiError for a verdict
    that is none, a note of more than 2,000 characters, a question without yes and no, and a decision that is there."""
    known = case_of(s, task_id)
    if verdict not in DECISIONS:
        raise HfiError(f"unknown decision {verdict!r}: choose {', '.join(DECISIONS)}")
    note = (note or "").strip() or None
    if note and len(note) > MAX_COMMENT:
        raise HfiError(f"a note of {len(note)} characters: write at most {MAX_COMMENT:,}")
    if known.decision and not anew:
        raise HfiError("somebody has decided this already: go back to it to decide anew")
    s.add(m.Adjudication(task_id=task_id, annotator_id=annotator_id, verdict=verdict, note=note, created_at=now_utc()))
    s.flush()


_SAID: Any = aliased(m.Judgment)


def _binary(s: Session, campaign_id: int) -> None:
    if campaign_row(s, campaign_id).question != "binary":
        raise HfiError("only whether an image shows the concept is decided here: rankings and comparisons keep all their answers")


def _region(text: str | None) -> tuple[float, ...] | None:
    found: Sequence[float] | None = json.loads(text) if text else None
    return tuple(found) if found else None
