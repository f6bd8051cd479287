"""What a page shows beside the task in hand: its images, whether to cover them, and the task after it, claimed early to load."""

import json
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from hfi.errors import NotFound
from hfi.store import models as m
from hfi.store.campaigns import campaign_row, participant
from hfi.store.judging import Claim, assignment_of, open_assignments, take
from hfi.store.queries import now_utc


@dataclass(frozen=True)
class Ahead:
    """The next task: its token, and how many images it has."""

    token: str
    images: int


def claim_ahead(s: Session, claim: Claim, annotator_id: int, now: datetime | None = None) -> Ahead | None:
    """The task that `claim_next` will give once `claim` is judged, already this annotator's; None where `claim` is the last.

    It counts as opened before `claim`, so `claim_next` keeps giving `claim` first. Needs a writing session.
    """
    now = now or now_utc()
    row = campaign_row(s, claim.campaign_id)
    part = participant(s, row, annotator_id)
    others = open_assignments(row.id, annotator_id).where(m.Assignment.id != claim.assignment_id)
    waiting = s.scalar(others.order_by(m.Assignment.opened_at.desc(), m.Assignment.id.desc()).limit(1))
    if waiting is None:
        before = s.get_one(m.Assignment, claim.assignment_id).opened_at - timedelta(microseconds=1)
        waiting = take(s, row, part, now, given=part.done + 1, opened_at=before)
    if waiting is None:
        return None
    waiting.lease_expires_at = now + timedelta(seconds=row.lease_seconds)
    s.flush()
    return Ahead(waiting.token, len(json.loads(waiting.shown_order)))


def found_disturbing(s: Session, claim: Claim) -> bool:
    """Whether the annotator who has this task called it too disturbing before, and took that back."""
    said = select(m.Judgment.id).where(m.Judgment.assignment_id == claim.assignment_id, m.Judgment.verdict == "disturbing")
    return s.scalar(said.limit(1)) is not None


def campaign_of(s: Session, judgment_id: int) -> int:
    """The campaign that a judgment is of."""
    return s.get_one(m.Task, s.get_one(m.Judgment, judgment_id).task_id).campaign_id


def simulations_judged(s: Session, concept_slug: str) -> bool:
    """Whether a simulated annotator has judged anything of this concept."""
    query = (
        select(m.Judgment.id)
        .join(m.Annotator, m.Annotator.id == m.Judgment.annotator_id)
        .join(m.Task, m.Task.id == m.Judgment.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .join(m.Concept, m.Concept.id == m.Campaign.concept_id)
        .where(m.Concept.slug == concept_slug, m.Annotator.simulated)
    )
    return s.scalar(query.limit(1)) is not None


def shown_image(s: Session, token: str, annotator_id: int, position: int) -> str:
    """The sha256 of the image that this annotator sees at `position` (from 0) of a task; NotFound for a task not theirs."""
    assignment = assignment_of(s, token, annotator_id)
    order = json.loads(assignment.shown_order)
    if not 0 <= position < len(order):
        raise NotFound(f"this task has no image {position}: it has {len(order)}, from 0")
    query = select(m.Image.sha256).join(m.TaskImage, m.TaskImage.image_id == m.Image.id)
    return s.scalars(query.where(m.TaskImage.task_id == assignment.task_id, m.TaskImage.position == order[position])).one()
