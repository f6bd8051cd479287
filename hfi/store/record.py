"""What was said: the living judgments of a concept, as they are exported."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, aliased

from hfi import __version__
from hfi.store import models as m
from hfi.store.judging import is_last
from hfi.store.queries import concept_row


@dataclass(frozen=True)
class JudgmentRow:
    """A living judgment. `images`: sha256 of the task's images; of a ranking in ranked order, most of the concept first, and `ranks`
    with equal numbers where images share a place. `adjudicated`: a manager's decision, which stands in the place of the votes."""

    verdict: str
    images: tuple[str, ...]
    prompts: tuple[str | None, ...]
    annotator: str
    simulated: bool
    campaign: str
    comment: str | None
    elapsed_ms: int | None
    guideline_version: int
    app_version: str
    created_at: datetime
    ranks: tuple[int, ...] | None = None
    region: tuple[float, ...] | None = None
    adjudicated: bool = False


def current_judgments(s: Session, concept_slug: str, simulated: bool | None = None) -> list[JudgmentRow]:
    """Living judgments of a concept's own question, oldest first; of people only (False), of simulations only (True) or of both
    (None); after them, but for simulations alone, managers' decisions. Left out are gold tasks, whose answers say something of people
    alone, comparing campaigns, and whoever withdrew."""
    owner = concept_row(s, concept_slug)
    ours = (m.Campaign.concept_id == owner.id, m.Campaign.question == owner.question, m.Task.kind != "gold")
    query = (
        select(_SAID, m.Annotator, m.Campaign.name)
        .join(m.Annotator, m.Annotator.id == _SAID.annotator_id)
        .join(m.Task, m.Task.id == _SAID.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .where(*ours, m.Annotator.withdrawn_at.is_(None), _SAID.verdict != "undone", is_last(_SAID))
        .order_by(_SAID.id)
    )
    if simulated is not None:
        query = query.where(m.Annotator.simulated == simulated)
    found = s.execute(query).all()
    shown = _images_by_task(s, owner.id)
    ranked = _images_by_ranking(s, owner.id)
    rows = []
    for row, person, name in found:
        pictures = ranked.get(row.id) or shown[row.task_id]
        rows.append(
            JudgmentRow(
                verdict=row.verdict,
                images=tuple(sha for sha, *_ in pictures),
                prompts=tuple(prompt for _, prompt, *_ in pictures),
                annotator=person.pseudonym,
                simulated=person.simulated,
                campaign=name,
                comment=row.comment,
                elapsed_ms=row.elapsed_ms,
                guideline_version=row.guideline_version,
                app_version=row.app_version,
                created_at=row.created_at,
                ranks=_ties([rank for *_, rank in pictures]) if row.id in ranked else None,
                region=tuple(map(float, json.loads(row.region))) if row.region else None,
            )
        )
    return rows if simulated else rows + _adjudications(s, owner, ours, shown)


_SAID: Any = aliased(m.Judgment)


def _ties(ranks: list[int]) -> tuple[int, ...] | None:
    """The places, where two are equal; None where they are 1, 2, 3, ..."""
    return tuple(ranks) if len(set(ranks)) < len(ranks) else None


def _adjudications(s: Session, owner: m.Concept, ours: Any, shown: dict[int, list[Any]]) -> list[JudgmentRow]:
    """The last decision on each task by somebody who has not withdrawn. One that was taken back leaves the votes as they are, and so
    does 'ranked', of which the table holds no order."""
    query = (
        select(m.Adjudication, m.Annotator.pseudonym, m.Campaign.name)
        .join(m.Annotator, m.Annotator.id == m.Adjudication.annotator_id)
        .join(m.Task, m.Task.id == m.Adjudication.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .where(*ours, m.Annotator.withdrawn_at.is_(None))
        .order_by(m.Adjudication.id)
    )
    last = {row.task_id: (row, pseudonym, name) for row, pseudonym, name in s.execute(query)}
    return [
        JudgmentRow(
            verdict=row.verdict,
            images=tuple(sha for sha, *_ in shown[row.task_id]),
            prompts=tuple(prompt for _, prompt, *_ in shown[row.task_id]),
            annotator=pseudonym,
            simulated=False,
            campaign=name,
            comment=row.note,
            elapsed_ms=None,
            guideline_version=owner.guideline_version,
            app_version=__version__,
            created_at=row.created_at,
            adjudicated=True,
        )
        for row, pseudonym, name in sorted(last.values(), key=lambda found: found[0].id)
        if row.verdict not in ("undone", "ranked")
    ]


def _images_by_task(s: Session, concept_id: int) -> dict[int, list[Any]]:
    query = (
        select(m.Task.id, m.Image.sha256, m.Image.prompt)
        .join(m.TaskImage, m.TaskImage.task_id == m.Task.id)
        .join(m.Image, m.Image.id == m.TaskImage.image_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .where(m.Campaign.concept_id == concept_id)
        .order_by(m.Task.id, m.TaskImage.position)
    )
    return _grouped(s.execute(query))


def _images_by_ranking(s: Session, concept_id: int) -> dict[int, list[Any]]:
    query = (
        select(m.RankedImage.judgment_id, m.Image.sha256, m.Image.prompt, m.RankedImage.rank)
        .join(m.Image, m.Image.id == m.RankedImage.image_id)
        .join(m.Judgment, m.Judgment.id == m.RankedImage.judgment_id)
        .join(m.Task, m.Task.id == m.Judgment.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .where(m.Campaign.concept_id == concept_id)
        .order_by(m.RankedImage.judgment_id, m.RankedImage.rank, m.Image.sha256)  # within a tie there is no order but the name's
    )
    return _grouped(s.execute(query))


def _grouped(rows: Iterable[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for key, *rest in rows:
        found.setdefault(key, []).append(tuple(rest))
    return found
