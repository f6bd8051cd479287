"""What was said: the living judgments of a concept, as they are exported."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from sqlalchemy import BigInteger, cast, func, select
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
    """`living` judgments in a list."""
    return list(living(s, concept_slug, simulated))


def living(
    s: Session, concept_slug: str, simulated: bool | None = None, shas: Collection[str] | None = None
) -> Iterator[JudgmentRow]:
    """Living judgments of a concept's own question, oldest first; of people only (False), of simulations only (True) or of both
    (None); after them, but for simulations alone, managers' decisions. Left out are gold tasks, whose answers say something of people
    alone, comparing campaigns, and whoever withdrew. `shas`: only those on any of these images.

    They are read as they are asked for, some hundred at a time, so that memory does not grow with them.
    """
    owner = concept_row(s, concept_slug)
    chosen = _chosen(owner, simulated) if shas is None else (*_chosen(owner, simulated), _SAID.task_id.in_(_tasks_of(shas)))
    columns = (*(getattr(_SAID, name) for name in _TOLD), m.Annotator.pseudonym, m.Annotator.simulated, m.Campaign.name)
    query = _of_said(select(*columns)).where(*chosen).order_by(_SAID.id)
    for part in s.execute(query, execution_options=_STREAM).partitions():
        shown = _images_by_task(s, {row.task_id for row in part})
        ranked = _images_by_ranking(s, {row.id for row in part if row.verdict == "ranked"})
        for row in part:
            pictures = ranked.get(row.id) or shown[row.task_id]
            yield JudgmentRow(
                verdict=row.verdict,
                images=tuple(sha for sha, *_ in pictures),
                prompts=tuple(prompt for _, prompt, *_ in pictures),
                annotator=row.pseudonym,
                simulated=row.simulated,
                campaign=row.name,
                comment=row.comment,
                elapsed_ms=row.elapsed_ms,
                guideline_version=row.guideline_version,
                app_version=row.app_version,
                created_at=row.created_at,
                ranks=_ties([rank for *_, rank in pictures]) if row.id in ranked else None,
                region=tuple(map(float, json.loads(row.region))) if row.region else None,
            )
    if not simulated:
        yield from _decisions(s, owner, shas)


def judged_images(s: Session, concept_slug: str, simulated: bool | None = None) -> Iterator[list[str]]:
    """The sha256s of the images of `living` judgments, each once, in the order of their first one; those that were first judged
    together come in one list. Read as they are asked for."""
    owner = concept_row(s, concept_slug)
    said = _of_said(select(_SAID.task_id, cast(_SAID.id, BigInteger).label("place"))).where(*_chosen(owner, simulated))
    decided = _of_decided(select(m.Adjudication.task_id, cast(m.Adjudication.id, BigInteger) + _BEHIND)).where(*_decided(owner))
    each = (said if simulated else said.union_all(decided)).subquery()
    query = (
        select(m.Image.sha256, func.min(each.c.place).label("first"))
        .join(m.TaskImage, m.TaskImage.image_id == m.Image.id)
        .join(each, each.c.task_id == m.TaskImage.task_id)
        .group_by(m.Image.sha256)
        .order_by("first")
    )
    for _, some in groupby(s.execute(query, execution_options=_STREAM), key=lambda row: row.first):
        yield [row.sha256 for row in some]


_SAID: Any = aliased(m.Judgment)
_TOLD = (
    "id", "task_id", "verdict", "comment", "elapsed_ms", "guideline_version", "app_version", "created_at", "region",
)  # fmt: skip
_STREAM = {"yield_per": 250}
_BEHIND = 1 << 62  # decisions stand behind all judgments


def _of_said(query: Any) -> Any:
    return (
        query.join(m.Annotator, m.Annotator.id == _SAID.annotator_id)
        .join(m.Task, m.Task.id == _SAID.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
    )


def _chosen(owner: m.Concept, simulated: bool | None) -> tuple[Any, ...]:
    """Which judgments are living."""
    conditions = (*_ours(owner), m.Annotator.withdrawn_at.is_(None), _SAID.verdict != "undone", is_last(_SAID))
    return conditions if simulated is None else (*conditions, m.Annotator.simulated == simulated)


def _ours(owner: m.Concept) -> tuple[Any, ...]:
    return m.Campaign.concept_id == owner.id, m.Campaign.question == owner.question, m.Task.kind != "gold"


def _tasks_of(shas: Collection[str]) -> Any:
    return select(m.TaskImage.task_id).join(m.Image, m.Image.id == m.TaskImage.image_id).where(m.Image.sha256.in_(shas))


def _ties(ranks: list[int]) -> tuple[int, ...] | None:
    """The places, where two are equal; None where they are 1, 2, 3, ..."""
    return tuple(ranks) if len(set(ranks)) < len(ranks) else None


def _of_decided(query: Any) -> Any:
    return (
        query.join(m.Annotator, m.Annotator.id == m.Adjudication.annotator_id)
        .join(m.Task, m.Task.id == m.Adjudication.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
    )


def _decided(owner: m.Concept) -> tuple[Any, ...]:
    """The last decision on each task by somebody who has not withdrawn. One that was taken back leaves the votes as they are, and so
    does 'ranked', of which the table holds no order."""
    later, who = aliased(m.Adjudication), aliased(m.Annotator)
    newer = (
        select(later.id)
        .join(who, who.id == later.annotator_id)
        .where(later.task_id == m.Adjudication.task_id, later.id > m.Adjudication.id, who.withdrawn_at.is_(None))
    )
    return *_ours(owner), m.Annotator.withdrawn_at.is_(None), ~newer.exists(), m.Adjudication.verdict.not_in(("undone", "ranked"))


def _decisions(s: Session, owner: m.Concept, shas: Collection[str] | None) -> Iterator[JudgmentRow]:
    chosen = _decided(owner) if shas is None else (*_decided(owner), m.Adjudication.task_id.in_(_tasks_of(shas)))
    made = (m.Adjudication.task_id, m.Adjudication.verdict, m.Adjudication.note, m.Adjudication.created_at)
    query = _of_decided(select(*made, m.Annotator.pseudonym, m.Campaign.name)).where(*chosen)
    for part in s.execute(query.order_by(m.Adjudication.id), execution_options=_STREAM).partitions():
        shown = _images_by_task(s, {row.task_id for row in part})
        for row in part:
            yield JudgmentRow(
                verdict=row.verdict,
                images=tuple(sha for sha, *_ in shown[row.task_id]),
                prompts=tuple(prompt for _, prompt, *_ in shown[row.task_id]),
                annotator=row.pseudonym,
                simulated=False,
                campaign=row.name,
                comment=row.note,
                elapsed_ms=None,
                guideline_version=owner.guideline_version,
                app_version=__version__,
                created_at=row.created_at,
                adjudicated=True,
            )


def _images_by_task(s: Session, tasks: Collection[int]) -> dict[int, list[Any]]:
    query = (
        select(m.TaskImage.task_id, m.Image.sha256, m.Image.prompt)
        .join(m.Image, m.Image.id == m.TaskImage.image_id)
        .where(m.TaskImage.task_id.in_(tasks))
        .order_by(m.TaskImage.task_id, m.TaskImage.position)
    )
    return _grouped(s.execute(query))


def _images_by_ranking(s: Session, judgments: Collection[int]) -> dict[int, list[Any]]:
    if not judgments:
        return {}
    query = (
        select(m.RankedImage.judgment_id, m.Image.sha256, m.Image.prompt, m.RankedImage.rank)
        .join(m.Image, m.Image.id == m.RankedImage.image_id)
        .where(m.RankedImage.judgment_id.in_(judgments))
        .order_by(m.RankedImage.judgment_id, m.RankedImage.rank, m.Image.sha256)  # within a tie there is no order but the name's
    )
    return _grouped(s.execute(query))


def _grouped(rows: Iterable[Any]) -> dict[int, list[Any]]:
    found: dict[int, list[Any]] = {}
    for key, *rest in rows:
        found.setdefault(key, []).append(tuple(rest))
    return found
