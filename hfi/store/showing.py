"""What a page shows of the task in hand: its images, and whether to cover them."""

import json

from sqlalchemy import select
from sqlalchemy.orm import Session

from hfi.errors import NotFound
from hfi.store import models as m
from hfi.store.judging import Claim, assignment_of


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
