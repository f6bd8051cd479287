"""What a page shows of a task."""

import json
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from hfi.errors import NotFound
from hfi.store import models as m
from hfi.store.judging import check_token, not_yours


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
    """The sha256 of the image that this annotator sees at `position` (from 0) of a task; NotFound for a task not theirs. One
    statement."""
    check_token(token)
    rows = s.connection().execute(_SHOWN, {"token": token, "person": annotator_id}).all()
    if not rows:
        raise not_yours()
    order = json.loads(rows[0].shown_order)
    if not 0 <= position < len(order):
        raise NotFound(f"this task has no image {position}: it has {len(order)}, from 0")
    return next(row.sha256 for row in rows if row.position == order[position])


_A: Any = m.Assignment.__table__
_TI: Any = m.TaskImage.__table__
_I: Any = m.Image.__table__
_SHOWN = (
    select(_A.c.shown_order, _TI.c.position, _I.c.sha256)
    .select_from(_A.join(_TI, _TI.c.task_id == _A.c.task_id).join(_I, _I.c.id == _TI.c.image_id))
    .where(_A.c.token == bindparam("token"), _A.c.annotator_id == bindparam("person"))
)
