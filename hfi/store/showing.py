"""What a page shows of a task."""

import json
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from hfi.errors import NotFound
from hfi.store import models as m
from hfi.store.judging import asked


def simulations_judged(s: Session, concept_slug: str) -> bool:
    """Whether a simulated annotator has judged anything of this concept."""
    simulated = s.scalars(select(m.Annotator.id).where(m.Annotator.simulated)).all()  # none or a handful
    query = (
        select(m.Participant.id)
        .join(m.Campaign, m.Campaign.id == m.Participant.campaign_id)
        .join(m.Concept, m.Concept.id == m.Campaign.concept_id)
        .where(m.Concept.slug == concept_slug, m.Participant.annotator_id.in_(simulated), m.Participant.done > 0)
    )
    return s.scalar(query.limit(1)) is not None


def shown_image(s: Session, token: str, annotator_id: int, position: int) -> str:
    """The sha256 of the image that this annotator sees at `position` (from 0) of a task; NotFound for a task not theirs."""
    task = asked(s, token, annotator_id)
    order = json.loads(task.shown_order)
    if not 0 <= position < len(order):
        raise NotFound(f"this task has no image {position}: it has {len(order)}, from 0")
    return str(s.execute(_SHOWN, {"task": task.task_id, "position": order[position]}).scalar_one())


_TI: Any = m.TaskImage.__table__
_I: Any = m.Image.__table__
_SHOWN = (
    select(_I.c.sha256)
    .join(_TI, _TI.c.image_id == _I.c.id)
    .where(_TI.c.task_id == bindparam("task"), _TI.c.position == bindparam("position"))
)
