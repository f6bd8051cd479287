"""How a campaign goes, for whoever runs it: what the database knows, in a few indexed queries. `hfi.dashboard` makes figures of it.

Simulated annotators stand apart from people everywhere; whoever withdrew counts nowhere.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import case, func, select
from sqlalchemy.orm import Session, aliased

from hfi.store import models as m
from hfi.store.judging import is_last


@dataclass(frozen=True)
class Filling:
    """How full a campaign is: `full` of `tasks` have the answers they want; `answers` of the `wanted` ones are there. Gold tasks are
    counted nowhere but in `gold`."""

    id: int
    concept: str
    title: str
    name: str
    question: str
    state: str
    overlap: int
    extra_votes: int
    gold_every: int
    access: str
    created_at: datetime
    tasks: int
    full: int
    answers: int
    wanted: int
    benign: int
    gold: int


class Told(NamedTuple):
    """A judgment, which may have been superseded: the last `revision` of its (task, annotator) counts."""

    id: int
    task: int
    annotator: int
    revision: int
    verdict: str
    elapsed_ms: int | None
    created_at: datetime


@dataclass(frozen=True)
class Who:
    id: int
    name: str
    pseudonym: str
    simulated: bool


@dataclass(frozen=True)
class Exposure:
    """How long somebody worked and at how many harmful images they looked, today and altogether."""

    annotator: int
    name: str
    minutes_today: float
    harmful_today: int
    minutes: float
    harmful: int
    last_at: datetime


_SAID: Any = aliased(m.Judgment)
_RANKED: Any = aliased(m.RankedImage)


def fillings(s: Session, campaign_id: int | None = None) -> list[Filling]:
    """Every campaign, or the one of this number, the latest first."""
    gold, benign = ((m.Task.kind == kind) for kind in ("gold", "benign"))
    enough = m.Task.answers >= m.Task.wanted
    counts = select(
        m.Task.campaign_id,
        func.sum(case((gold, 0), else_=1)),
        func.sum(case((gold, 0), (enough, 1), else_=0)),
        func.sum(case((gold, 0), (enough, m.Task.wanted), else_=m.Task.answers)),
        func.sum(case((gold, 0), else_=m.Task.wanted)),
        func.sum(case((benign, 1), else_=0)),
        func.sum(case((gold, 1), else_=0)),
    ).group_by(m.Task.campaign_id)
    rows = select(m.Campaign, m.Concept.slug, m.Concept.title).join(m.Concept, m.Concept.id == m.Campaign.concept_id)
    if campaign_id is not None:
        counts, rows = counts.where(m.Task.campaign_id == campaign_id), rows.where(m.Campaign.id == campaign_id)
    by_campaign = {row[0]: [int(n) for n in row[1:]] for row in s.execute(counts)}
    return [
        Filling(
            row.id, slug, title, row.name, row.question, row.state, row.overlap, row.extra_votes, row.gold_every, row.access,
            row.created_at, *by_campaign.get(row.id, [0] * 6),
        )
        for row, slug, title in s.execute(rows.order_by(m.Campaign.id.desc()))
    ]  # fmt: skip


def told(s: Session, campaign_id: int, after: int = 0) -> list[Told]:
    """The campaign's judgments with numbers above `after`, revisions and all, in the order of their numbers."""
    columns = (_SAID.id, _SAID.task_id, _SAID.annotator_id, _SAID.revision, _SAID.verdict, _SAID.elapsed_ms, _SAID.created_at)
    query = select(*columns, m.Task.campaign_id).join(m.Task, m.Task.id == _SAID.task_id)
    # a few new ones of any campaign are found by their numbers, all of one campaign by its tasks
    query = query.where(_SAID.id > after) if after else query.where(m.Task.campaign_id == campaign_id)
    return [Told(*row) for *row, campaign in s.execute(query.order_by(_SAID.id)) if campaign == campaign_id]


def orders(s: Session, campaign_id: int, after: int = 0) -> dict[int, dict[int, int]]:
    """Of each ranking of the campaign with a number above `after`, by its judgment: image id -> place."""
    query = select(_RANKED.judgment_id, _RANKED.image_id, _RANKED.rank, m.Task.campaign_id)
    query = query.join(_SAID, _SAID.id == _RANKED.judgment_id).join(m.Task, m.Task.id == _SAID.task_id)
    found: dict[int, dict[int, int]] = {}
    query = query.where(_SAID.id > after) if after else query.where(m.Task.campaign_id == campaign_id)
    for judgment, image, rank, campaign in s.execute(query):
        if campaign == campaign_id:
            found.setdefault(judgment, {})[image] = rank
    return found


def golds(s: Session, campaign_id: int) -> dict[int, str]:
    """The known answers of the campaign's gold tasks."""
    query = select(m.Gold.task_id, m.Gold.verdict).join(m.Task, m.Task.id == m.Gold.task_id)
    return dict(s.execute(query.where(m.Task.campaign_id == campaign_id)).tuples().all())


def decisions(s: Session, campaign_id: int) -> dict[int, str]:
    """What managers decided, the last decision of each task."""
    query = select(m.Adjudication.task_id, m.Adjudication.verdict).join(m.Task, m.Task.id == m.Adjudication.task_id)
    return dict(s.execute(query.where(m.Task.campaign_id == campaign_id).order_by(m.Adjudication.id)).tuples().all())


def who(s: Session) -> dict[int, Who]:
    """All whose judgments count, by number."""
    columns = (m.Annotator.id, m.Annotator.name, m.Annotator.pseudonym, m.Annotator.simulated)
    return {row[0]: Who(*row) for row in s.execute(select(*columns).where(m.Annotator.withdrawn_at.is_(None)))}


def exposure(s: Session, today: datetime) -> list[Exposure]:
    """Of everybody who has worked, by name; `today` is when the day began."""
    columns = (m.Annotator.id, m.Annotator.name, m.Shift.started_at, m.Shift.last_at, m.Shift.harmful)
    query = select(*columns).join(m.Annotator, m.Annotator.id == m.Shift.annotator_id).where(m.Annotator.withdrawn_at.is_(None))
    found: dict[int, list[Any]] = {}
    for person, name, started, last, harmful in s.execute(query.order_by(m.Shift.last_at)):
        sums = found.setdefault(person, [name, 0.0, 0, 0.0, 0, last])
        if last >= today:
            sums[1] += (last - max(started, today)).total_seconds() / 60
            sums[2] += harmful
        sums[3] += (last - started).total_seconds() / 60
        sums[4] += harmful
        sums[5] = last
    everybody = [Exposure(person, *sums) for person, sums in found.items()]
    return sorted(everybody, key=lambda e: e.name.casefold())


# --- pairs from before and after an erasure ---


@dataclass(frozen=True)
class Pair:
    """The images of a comparing task, the untouched model's first, with the prompt that made both."""

    task: int
    before: int
    after: int
    prompt: str | None


def compared(s: Session, campaign_id: int) -> list[Pair]:
    """The pairs of a comparing campaign in which one image is of the untouched model and one of a cleaned one."""
    query = (
        select(m.Task.id, m.Image.id, m.Image.erasure, m.Image.prompt)
        .join(m.TaskImage, m.TaskImage.task_id == m.Task.id)
        .join(m.Image, m.Image.id == m.TaskImage.image_id)
        .where(m.Task.campaign_id == campaign_id)
        .order_by(m.Task.id, m.TaskImage.position)
    )
    sides: dict[int, dict[bool, tuple[int, str | None]]] = {}
    for task, image, erasure, prompt in s.execute(query):
        sides.setdefault(task, {})[erasure is None] = (image, prompt)
    return [Pair(task, two[True][0], two[False][0], two[True][1]) for task, two in sides.items() if len(two) == 2]


# --- votes ---


def task_votes(s: Session, campaign_id: int, simulated: bool | None = False) -> dict[int, tuple[int, int]]:
    """How many say 'shows' and 'clean' of each task of the campaign that anybody answered; gold and benign ones left out."""
    shows, clean = (func.sum(case((_SAID.verdict == verdict, 1), else_=0)) for verdict in ("shows", "clean"))
    query = (
        select(_SAID.task_id, shows, clean)
        .join(m.Task, m.Task.id == _SAID.task_id)
        .join(m.Annotator, m.Annotator.id == _SAID.annotator_id)
        .where(
            m.Task.campaign_id == campaign_id,
            m.Task.kind == "item",
            m.Annotator.withdrawn_at.is_(None),
            _SAID.verdict.in_(("shows", "clean")),
            is_last(_SAID),
        )
        .group_by(_SAID.task_id)
    )
    if simulated is not None:
        query = query.where(m.Annotator.simulated == simulated)
    return {task: (int(yes), int(no)) for task, yes, no in s.execute(query)}
