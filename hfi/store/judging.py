"""Handing out tasks and taking judgments.

A task is found through an index: tasks keep count of themselves (see `hfi.store.models.Task`), and a participant remembers how far
they came. Whatever changes a task's judgments or leases calls `recount` for it in the same transaction.
"""

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, aliased

from hfi import __version__
from hfi.errors import HfiError, NotFound
from hfi.store import models as m
from hfi.store.campaigns import campaign_row, participant
from hfi.store.queries import now_utc

FILTERS = ("none", "blur", "grey", "both")
NO_ANSWER = ("unsure", "skip", "disturbing", "undone")  # verdicts that say nothing of the image
MAX_COMMENT = 2000


@dataclass(frozen=True)
class ClaimImage:
    """`position` is where this annotator sees the image, from 0."""

    position: int
    image_id: int
    sha256: str


@dataclass(frozen=True)
class Claim:
    """A task in an annotator's hands. `token` names it towards the outside; `done` of `total` tasks are behind this annotator."""

    assignment_id: int
    token: str
    campaign_id: int
    concept: str
    title: str
    guideline: str
    question: str
    ties: bool
    images: tuple[ClaimImage, ...]
    opened_at: datetime
    lease_expires_at: datetime
    done: int
    total: int


@dataclass(frozen=True)
class Submitted:
    """`duplicate`: this submission had been taken before, nothing was added."""

    judgment_id: int
    duplicate: bool


@dataclass(frozen=True, kw_only=True)
class Look:
    """How somebody looked at what they judged: see `hfi.store.models.Judgment`."""

    elapsed_ms: int | None = None
    filter: str | None = None
    reveals: int | None = None
    revealed_ms: int | None = None


@dataclass(frozen=True)
class Progress:
    """Tasks of a campaign: `done` by this annotator (or, for all, fully judged) of `total`; counts of living verdicts; how many
    answers count towards total x overlap."""

    done: int
    total: int
    by_verdict: Mapping[str, int]
    answers: int


# --- handing out ---


def claim_next(s: Session, campaign_id: int, annotator_id: int, now: datetime | None = None) -> Claim | None:
    """The annotator's next task: the one already in hand, in the same order as before, else the first that still needs a judgment.

    A task needs one while fewer than `wanted` others have judged it or hold an unexpired lease on it; nobody gets a task twice.
    'unsure', 'skip' and 'disturbing' do not fill it. Now and then it is a gold task. None where nothing is left, or the campaign is
    closed. Needs a writing session; NotFound where the campaign is not this annotator's.
    """
    now = now or now_utc()
    row = campaign_row(s, campaign_id)
    part = participant(s, row, annotator_id)
    if row.state != "open":
        return None
    expire_leases(s, now)
    held = s.scalar(
        open_assignments(row.id, annotator_id).order_by(m.Assignment.opened_at.desc(), m.Assignment.id.desc()).limit(1)
    )
    if held is None:
        held = take(s, row, part, now, given=part.done)
    if held is None:
        return None
    held.lease_expires_at = now + timedelta(seconds=row.lease_seconds)
    s.flush()
    return claim_of_row(s, row, held, part)


def expire_leases(s: Session, now: datetime) -> None:
    """Tasks whose time has run out are free for the others, and for the one who had them first of all that come."""
    lapsed = list(s.scalars(select(m.Assignment).where(m.Assignment.state == "open", m.Assignment.lease_expires_at <= now)))
    for assignment in lapsed:
        assignment.state = "expired"
        task = s.get_one(m.Task, assignment.task_id)
        part = participant(s, campaign_row(s, task.campaign_id), assignment.annotator_id)
        part.cursor = min(part.cursor, task.place - 1)
    recount(s, [assignment.task_id for assignment in lapsed])


def open_assignments(campaign_id: int, annotator_id: int) -> Any:
    """What this annotator has in hand."""
    return (
        select(m.Assignment)
        .join(m.Task, m.Task.id == m.Assignment.task_id)
        .where(m.Assignment.annotator_id == annotator_id, m.Assignment.state == "open", m.Task.campaign_id == campaign_id)
    )


def take(
    s: Session, row: m.Campaign, part: m.Participant, now: datetime, *, given: int, opened_at: datetime | None = None
) -> m.Assignment | None:
    """Another task for this annotator, who has been `given` so many; None where there is none."""
    task = _next_gold(s, row, part, given) or _next_free(s, row, part)
    if task is None:
        return None
    mine = select(m.Assignment).where(m.Assignment.task_id == task.id, m.Assignment.annotator_id == part.annotator_id)
    found = s.scalar(mine)  # an expired one of one's own goes on as it was shown
    if found is None:
        positions = list(s.scalars(select(m.TaskImage.position).where(m.TaskImage.task_id == task.id)))
        order = [positions[i] for i in np.random.default_rng([task.id, part.annotator_id]).permutation(len(positions))]
        found = m.Assignment(
            task_id=task.id,
            annotator_id=part.annotator_id,
            token=secrets.token_urlsafe(24),
            shown_order=json.dumps(order),
        )
        s.add(found)
    found.state, found.opened_at = "open", opened_at or now
    found.lease_expires_at = now + timedelta(seconds=row.lease_seconds)
    if task.kind != "gold":
        part.cursor = max(part.cursor, task.place)
    s.flush()
    recount(s, [task.id])
    return found


def _next_free(s: Session, row: m.Campaign, part: m.Participant) -> m.Task | None:
    """The first free task after the last one that was given, or, from the front, one that came back."""
    for after in (m.Task.place > part.cursor, m.Task.place <= part.cursor):
        if found := s.scalar(free_tasks(row, part.annotator_id).where(after).order_by(m.Task.place).limit(1)):
            return found
    return None


def free_tasks(row: m.Campaign, annotator_id: int) -> Any:
    """Tasks that this annotator may be given."""
    mine = select(m.Assignment.id).where(
        m.Assignment.task_id == m.Task.id, m.Assignment.annotator_id == annotator_id, m.Assignment.state.in_(("open", "done"))
    )
    return select(m.Task).where(m.Task.campaign_id == row.id, m.Task.free > 0, ~mine.exists())


def _next_gold(s: Session, row: m.Campaign, part: m.Participant, given: int) -> m.Task | None:
    """One in every `gold_every` tasks, at a place in each stretch that nobody can foresee, is one with a known answer."""
    if not row.gold_every:
        return None
    stretch, at = divmod(given, row.gold_every)
    rng = np.random.default_rng([row.id, part.annotator_id, stretch])
    if at != rng.integers(row.gold_every):
        return None
    mine = select(m.Assignment.id).where(m.Assignment.task_id == m.Task.id, m.Assignment.annotator_id == part.annotator_id)
    left = list(s.scalars(select(m.Task).where(m.Task.campaign_id == row.id, m.Task.kind == "gold", ~mine.exists())))
    return left[rng.integers(len(left))] if left else None


def recount(s: Session, task_ids: Iterable[int]) -> None:
    """Makes the counts of these tasks anew, from their judgments and leases."""
    s.flush()
    for task in s.scalars(select(m.Task).where(m.Task.id.in_(sorted(set(task_ids))))):
        row = s.get_one(m.Campaign, task.campaign_id)
        said = s.scalars(
            select(_ANSWER.verdict)
            .join(m.Annotator, m.Annotator.id == _ANSWER.annotator_id)
            .where(
                _ANSWER.task_id == task.id,
                _ANSWER.verdict.not_in(NO_ANSWER),
                is_last(_ANSWER),
                m.Annotator.withdrawn_at.is_(None),
            )
        ).all()
        held = select(func.count()).select_from(m.Assignment).where(m.Assignment.task_id == task.id, m.Assignment.state == "open")
        task.answers, task.held = len(said), s.scalar(held) or 0
        task.wanted = {"item": row.overlap, "benign": 1, "gold": 0}[task.kind]
        if task.kind == "item" and row.question == "binary" and len(said) >= row.overlap and len(set(said)) > 1:
            task.wanted += row.extra_votes
        task.free = max(0, task.wanted - task.answers - task.held)
    s.flush()


# made once: building them costs more than the queries
_LATER: Any = aliased(m.Judgment)
_ANSWER: Any = aliased(m.Judgment)


def is_last(judgment: Any) -> ColumnElement[bool]:
    """Whether it is the last revision of its (task, annotator)."""
    newer: Any = select(_LATER.id).where(
        _LATER.task_id == judgment.task_id,
        _LATER.annotator_id == judgment.annotator_id,
        _LATER.revision > judgment.revision,
    )
    return ~newer.exists()


def claim_of_row(s: Session, row: m.Campaign, assignment: m.Assignment, part: m.Participant) -> Claim:
    owner = s.get_one(m.Concept, row.concept_id)
    query = select(m.TaskImage.position, m.Image.id, m.Image.sha256).join(m.Image, m.Image.id == m.TaskImage.image_id)
    by_position = {p: (i, sha) for p, i, sha in s.execute(query.where(m.TaskImage.task_id == assignment.task_id))}
    order: list[int] = json.loads(assignment.shown_order)
    return Claim(
        assignment.id,
        assignment.token,
        row.id,
        owner.slug,
        owner.title,
        owner.guideline,
        row.question,
        row.ties,
        tuple(ClaimImage(place, *by_position[p]) for place, p in enumerate(order)),
        assignment.opened_at,
        assignment.lease_expires_at,
        part.done,
        part.done + left(s, row, part.annotator_id),
    )


def left(s: Session, row: m.Campaign, annotator_id: int) -> int:
    """How many tasks this annotator has in hand or may still be given. Gold tasks to come are not foretold."""
    free = s.scalar(select(func.count()).select_from(m.Task).where(m.Task.campaign_id == row.id, m.Task.free > 0)) or 0
    mine = (
        select(m.Assignment.state, m.Task.free > 0, func.count())
        .join(m.Task, m.Task.id == m.Assignment.task_id)
        .where(
            m.Assignment.annotator_id == annotator_id,
            m.Assignment.state.in_(("open", "done")),
            m.Task.campaign_id == row.id,
            (m.Task.free > 0) | (m.Assignment.state == "open"),
        )
        .group_by(m.Assignment.state, m.Task.free > 0)
    )
    for state, is_free, count in s.execute(mine):
        free += (count if state == "open" else 0) - (count if is_free else 0)
    return free


def claim_of(s: Session, token: str, annotator_id: int) -> Claim:
    """The claim that a token names. NotFound where it is not this annotator's: a token alone opens nothing."""
    assignment = assignment_of(s, token, annotator_id)
    row = campaign_row(s, s.get_one(m.Task, assignment.task_id).campaign_id)
    return claim_of_row(s, row, assignment, participant(s, row, annotator_id))


def assignment_of(s: Session, token: str, annotator_id: int) -> m.Assignment:
    found = s.scalar(select(m.Assignment).where(m.Assignment.token == token, m.Assignment.annotator_id == annotator_id))
    if found is None:
        raise NotFound("this task is not yours, or was withdrawn: reload the page")
    return found


# --- taking ---


def submit(
    s: Session,
    token: str,
    annotator_id: int,
    verdict: str,
    idempotency_token: str,
    *,
    ranking: Sequence[int | Sequence[int]] | None = None,
    comment: str | None = None,
    region: Sequence[float] | None = None,
    look: Look = Look(),
    now: datetime | None = None,
) -> Submitted:
    """Takes a judgment of the assignment that `token` names. `ranking`: image ids, most of the concept first, with verdict 'ranked';
    images of the same place stand together in a list, where the campaign allows ties.

    The same `idempotency_token` again adds nothing. A late answer, after the lease, counts unless somebody else has filled the task
    meanwhile. HfiError for a verdict that the question does not know, a task already judged, or one filled by others; for a region
    [x, y, width, height] that is not within the image, in parts of it; and for a comment of more than 2,000 characters.
    """
    before = s.scalar(select(m.Judgment).where(m.Judgment.idempotency_token == idempotency_token))
    if before is not None:
        if before.annotator_id != annotator_id:
            raise HfiError("this answer was given by somebody else: reload the page")
        return Submitted(before.id, True)
    assignment = assignment_of(s, token, annotator_id)
    task = s.get_one(m.Task, assignment.task_id)
    row = campaign_row(s, task.campaign_id)
    part = participant(s, row, annotator_id)
    allowed = m.BINARY_VERDICTS if row.question == "binary" else m.RANKING_VERDICTS
    if verdict not in allowed:
        raise HfiError(f"unknown verdict {verdict!r}: choose {', '.join(allowed)}")
    if assignment.state == "done":
        raise HfiError("you have judged this already: undo first to change it")
    if assignment.state == "expired" and task.kind != "gold" and not task.free:
        raise HfiError("your time for this task ran out and others have judged it: go on with the next")
    if comment and len(comment) > MAX_COMMENT:
        raise HfiError(f"a comment of {len(comment)} characters: write at most {MAX_COMMENT:,}")
    groups = [[one] if isinstance(one, int) else list(one) for one in ranking or ()]
    places = _check_ranking(s, row, task, assignment, verdict, groups)
    judgment = m.Judgment(
        task_id=task.id,
        annotator_id=annotator_id,
        assignment_id=assignment.id,
        revision=_next_revision(s, task.id, annotator_id),
        verdict=verdict,
        comment=_clean(comment),
        region=_region(region),
        elapsed_ms=look.elapsed_ms,
        filter=look.filter,
        reveals=look.reveals,
        revealed_ms=look.revealed_ms,
        idempotency_token=idempotency_token,
        guideline_version=s.get_one(m.Concept, row.concept_id).guideline_version,
        app_version=__version__,
        created_at=now or now_utc(),
    )
    assignment.state = "done"
    part.done += 1
    s.add(judgment)
    s.flush()
    rank = 1
    for group in groups:
        s.add_all(
            m.RankedImage(judgment_id=judgment.id, image_id=image, rank=rank, shown_position=places[image]) for image in group
        )
        rank += len(group)
    recount(s, [task.id])
    return Submitted(judgment.id, False)


def _clean(comment: str | None) -> str | None:
    """Without what a terminal or a database would stumble over; line ends and tabs stay."""
    kept = "".join(
        c for c in comment or "" if c in "\n\t" or c.isprintable() or (ord(c) > 0x9F and not 0xD800 <= ord(c) <= 0xDFFF)
    )
    return kept.strip() or None


def _region(region: Sequence[float] | None) -> str | None:
    if region is None:
        return None
    x, y, width, height = region if len(region) == 4 else (-1.0,) * 4
    if not (0 <= x < x + width <= 1.0001 and 0 <= y < y + height <= 1.0001):
        raise HfiError(f"the region {list(region)} is not within the image: give x, y, width, height from 0 to 1")
    return json.dumps([round(float(v), 4) for v in region])


def _check_ranking(
    s: Session, row: m.Campaign, task: m.Task, assignment: m.Assignment, verdict: str, groups: Sequence[Sequence[int]]
) -> dict[int, int]:
    """Where each of the task's images was shown; HfiError unless a ranking orders exactly these images."""
    query = select(m.TaskImage.position, m.TaskImage.image_id).where(m.TaskImage.task_id == task.id)
    by_position = dict(s.execute(query).tuples().all())
    places = {by_position[p]: place for place, p in enumerate(json.loads(assignment.shown_order))}
    if verdict == "ranked" and sorted(image for group in groups for image in group) != sorted(places):
        raise HfiError("a ranking orders each of the shown images once: give every image a place")
    if verdict != "ranked" and groups:
        raise HfiError(f"an order of images goes with verdict 'ranked', not with {verdict!r}")
    if not row.ties and any(len(group) > 1 for group in groups):
        raise HfiError("this campaign takes no ties: give every image a place of its own")
    return places


def _next_revision(s: Session, task_id: int, annotator_id: int) -> int:
    query = select(func.max(m.Judgment.revision)).where(m.Judgment.task_id == task_id, m.Judgment.annotator_id == annotator_id)
    return (s.scalar(query) or 0) + 1


def undo(s: Session, campaign_id: int, annotator_id: int, now: datetime | None = None) -> Claim | None:
    """Takes back this annotator's latest judgment and reopens its task; again and again back to the first. None where none is left.

    A task in hand waits meanwhile: it comes after the reopened one.
    """
    now = now or now_utc()
    row = campaign_row(s, campaign_id)
    part = participant(s, row, annotator_id)
    query = select(m.Judgment).join(m.Task, m.Task.id == m.Judgment.task_id)
    query = query.where(
        m.Task.campaign_id == campaign_id,
        m.Judgment.annotator_id == annotator_id,
        m.Judgment.verdict != "undone",
        is_last(m.Judgment),
    )
    last = s.scalar(query.order_by(m.Judgment.id.desc()).limit(1))
    if last is None:
        return None
    s.add(
        m.Judgment(
            task_id=last.task_id,
            annotator_id=annotator_id,
            assignment_id=last.assignment_id,
            revision=last.revision + 1,
            verdict="undone",
            idempotency_token=f"undo-{last.id}",
            guideline_version=last.guideline_version,
            app_version=__version__,
            created_at=now,
        )
    )
    assignment = s.get_one(m.Assignment, last.assignment_id)
    assignment.state, assignment.opened_at = "open", now
    assignment.lease_expires_at = now + timedelta(seconds=row.lease_seconds)
    part.done = max(0, part.done - 1)
    recount(s, [last.task_id])
    return claim_of_row(s, row, assignment, part)


# --- looking ---


def progress(s: Session, campaign_id: int, annotator_id: int | None = None) -> Progress:
    """See `Progress`. For one annotator `total` counts the tasks they did and those they may still do."""
    row = campaign_row(s, campaign_id)
    living = (
        select(m.Judgment.verdict, func.count())
        .join(m.Task, m.Task.id == m.Judgment.task_id)
        .where(m.Task.campaign_id == campaign_id, m.Judgment.verdict != "undone", is_last(m.Judgment))
        .group_by(m.Judgment.verdict)
    )
    if annotator_id is not None:
        mine = dict(s.execute(living.where(m.Judgment.annotator_id == annotator_id)).tuples().all())
        done = sum(mine.values())
        return Progress(done, done + left(s, row, annotator_id), mine, done)
    by_verdict: dict[str, int] = dict(s.execute(living).tuples().all())
    tasks = select(m.Task.wanted, m.Task.answers, func.count()).where(m.Task.campaign_id == campaign_id, m.Task.kind != "gold")
    total = full = answers = 0
    for wanted, given, count in s.execute(tasks.group_by(m.Task.wanted, m.Task.answers)):
        total += count
        full += count if given >= wanted else 0
        answers += min(given, wanted) * count
    return Progress(full, total, by_verdict, answers)
