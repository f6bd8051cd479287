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
from sqlalchemy import ColumnElement, bindparam, case, func, insert, select, text, update
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
    """A task in an annotator's hands. `token` names it towards the outside; `done` tasks are behind this annotator."""

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

# Judging is what the database does all day, so its statements are built once, of tables and not of mapped classes.
_T: Any = m.Task.__table__
_A: Any = m.Assignment.__table__
_P: Any = m.Participant.__table__
_J: Any = m.Judgment.__table__
_I: Any = m.Image.__table__
_TI: Any = m.TaskImage.__table__
_MINE: Any = _A.alias("mine")

_LAPSED = select(_A.c.id, _A.c.task_id, _A.c.annotator_id).where(_A.c.state == "open", _A.c.lease_expires_at <= bindparam("now"))
_HELD = (
    select(_A.c.id, _A.c.task_id, _A.c.token, _A.c.shown_order, _A.c.opened_at, _A.c.lease_expires_at)
    .join(_T, _T.c.id == _A.c.task_id)
    .where(_A.c.annotator_id == bindparam("person"), _A.c.state == "open", _T.c.campaign_id == bindparam("campaign"))
    .order_by(_A.c.opened_at.desc(), _A.c.id.desc())
)
_FREE = select(_T.c.id, _T.c.place, _T.c.kind).where(
    _T.c.campaign_id == bindparam("campaign"),
    text("free > 0"),  # as the partial index says it
    ~select(_MINE.c.id)
    .where(_MINE.c.task_id == _T.c.id, _MINE.c.annotator_id == bindparam("person"), _MINE.c.state.in_(("open", "done")))
    .exists(),
)
_FREE_AFTER = _FREE.where(_T.c.place > bindparam("cursor")).order_by(_T.c.place).limit(1)
_FREE_BEFORE = _FREE.where(_T.c.place <= bindparam("cursor")).order_by(_T.c.place).limit(1)
_GOLD_LEFT = select(_T.c.id, _T.c.place, _T.c.kind).where(
    _T.c.campaign_id == bindparam("campaign"),
    _T.c.kind == "gold",
    ~select(_MINE.c.id).where(_MINE.c.task_id == _T.c.id, _MINE.c.annotator_id == bindparam("person")).exists(),
)
_OWN = select(_A.c.id, _A.c.token, _A.c.shown_order).where(
    _A.c.task_id == bindparam("task"), _A.c.annotator_id == bindparam("person")
)
_PICTURES = (
    select(_TI.c.position, _I.c.id, _I.c.sha256).join(_I, _I.c.id == _TI.c.image_id).where(_TI.c.task_id == bindparam("task"))
)
_POSITIONS = select(_TI.c.position).where(_TI.c.task_id == bindparam("task")).order_by(_TI.c.position)
_REOPEN = update(_A).where(_A.c.id == bindparam("which"))
_RENEW = update(_A).where(_A.c.id == bindparam("which")).values(lease_expires_at=bindparam("until"))
_TAKEN = (
    update(_T).where(_T.c.id == bindparam("task")).values(held=_T.c.held + 1, free=case((_T.c.free > 0, _T.c.free - 1), else_=0))
)
_FARTHER = update(_P).where(_P.c.id == bindparam("part")).values(cursor=bindparam("place"))


@dataclass(frozen=True)
class Held:
    """An assignment in somebody's hands. `order`: the positions of its images as this annotator sees them."""

    id: int
    task_id: int
    token: str
    order: tuple[int, ...]
    opened_at: datetime
    lease_expires_at: datetime


def claim_next(s: Session, campaign_id: int, annotator_id: int, now: datetime | None = None) -> Claim | None:
    """The annotator's next task: the one already in hand, in the same order as before, else the first that still needs a judgment.

    A task needs one while fewer than `wanted` others have judged it or hold an unexpired lease on it; nobody gets a task twice.
    'unsure', 'skip' and 'disturbing' do not fill it. Now and then it is a gold task. None where nothing is left, or the campaign is
    closed. Needs a writing session; NotFound where the campaign is not this annotator's.
    """
    return serve(s, campaign_id, annotator_id, now, ahead=False)[0]


def serve(
    s: Session, campaign_id: int, annotator_id: int, now: datetime | None = None, *, ahead: bool = True
) -> tuple[Claim | None, Held | None]:
    """`claim_next`, and the task that will come after it, already this annotator's so that it can be loaded early; None where there
    is no other. It counts as opened before the first, which is therefore given until it is judged."""
    now = now or now_utc()
    s.flush()
    row = campaign_row(s, campaign_id)
    part = participant(s, row, annotator_id)
    if row.state != "open":
        return None, None
    expire_leases(s, now)
    until = now + timedelta(seconds=row.lease_seconds)
    found = s.execute(_HELD, {"person": annotator_id, "campaign": row.id}).all()
    held = [Held(i, t, token, tuple(json.loads(order)), opened, until) for i, t, token, order, opened, _ in found[: 1 + ahead]]
    for one in held:
        s.execute(_RENEW, {"which": one.id, "until": until})
    while len(held) < 1 + ahead:
        opened = held[0].opened_at - timedelta(microseconds=1) if held else now
        taken = _take(s, row, part, now, given=part.done + len(held), opened_at=opened)
        if taken is None:
            break
        held.append(taken)
    if not held:
        return None, None
    return _claim(s, row, held[0], part), held[1] if len(held) > 1 else None


def expire_leases(s: Session, now: datetime) -> None:
    """Tasks whose time has run out are free for the others, and for the one who had them first of all that come."""
    lapsed = s.execute(_LAPSED, {"now": now}).all()
    if not lapsed:
        return
    for assignment_id, task_id, annotator_id in lapsed:
        s.get_one(m.Assignment, assignment_id).state = "expired"
        task = s.get_one(m.Task, task_id)
        part = participant(s, campaign_row(s, task.campaign_id), annotator_id)
        part.cursor = min(part.cursor, task.place - 1)
    recount(s, [task_id for _, task_id, _ in lapsed])


def _take(s: Session, row: m.Campaign, part: m.Participant, now: datetime, *, given: int, opened_at: datetime) -> Held | None:
    """Another task for this annotator, who has been `given` so many; None where there is none."""
    who = {"campaign": row.id, "person": part.annotator_id}
    task = _next_gold(s, row, who, given) or _next_free(s, who, part.cursor)
    if task is None:
        return None
    until = now + timedelta(seconds=row.lease_seconds)
    mine = {"task": task.id, "person": part.annotator_id}
    own = s.execute(_OWN, mine).one_or_none()  # an expired one of one's own goes on as it was shown
    if own is None:
        positions = list(s.execute(_POSITIONS, {"task": task.id}).scalars())
        order = [positions[i] for i in np.random.default_rng([task.id, part.annotator_id]).permutation(len(positions))]
        token = secrets.token_urlsafe(24)
        values = {"task_id": task.id, "annotator_id": part.annotator_id, "token": token, "shown_order": json.dumps(order)}
        leased = {"state": "open", "opened_at": opened_at, "lease_expires_at": until}
        number = s.execute(insert(_A), {**values, **leased}).inserted_primary_key[0]  # type: ignore[attr-defined]
    else:
        number, token, order = own.id, own.token, json.loads(own.shown_order)
        s.execute(_REOPEN.values(state="open", opened_at=opened_at, lease_expires_at=until), {"which": number})
    s.execute(_TAKEN, {"task": task.id})
    if task.kind != "gold" and task.place > part.cursor:
        s.execute(_FARTHER, {"part": part.id, "place": task.place})
        s.expire(part, ["cursor"])
    return Held(number, task.id, token, tuple(order), opened_at, until)


def _next_free(s: Session, who: dict[str, int], cursor: int) -> Any:
    """The first free task after the last one that was given, or, from the front, one that came back."""
    at = {**who, "cursor": cursor}
    return s.execute(_FREE_AFTER, at).one_or_none() or s.execute(_FREE_BEFORE, at).one_or_none()


def _next_gold(s: Session, row: m.Campaign, who: dict[str, int], given: int) -> Any:
    """One in every `gold_every` tasks, at a place in each stretch that nobody can foresee, is one with a known answer."""
    if not row.gold_every:
        return None
    stretch, at = divmod(given, row.gold_every)
    rng = np.random.default_rng([row.id, who["person"], stretch])
    if at != rng.integers(row.gold_every):
        return None
    left = s.execute(_GOLD_LEFT, who).all()
    return left[int(rng.integers(len(left)))] if left else None


def recount(s: Session, task_ids: Iterable[int]) -> None:
    """Makes the counts of these tasks anew, from their judgments and leases."""
    s.flush()
    for number in sorted(set(task_ids)):
        kind, campaign_id = s.execute(_KIND, {"task": number}).one()
        row = campaign_row(s, campaign_id)
        said = s.execute(_ANSWERS, {"task": number}).scalars().all()
        held = s.execute(_IN_HAND, {"task": number}).scalar_one()
        wanted = {"item": row.overlap, "benign": 1, "gold": 0}[kind]
        if kind == "item" and row.question == "binary" and len(said) >= row.overlap and len(set(said)) > 1:
            wanted += row.extra_votes
        counts = {"answers": len(said), "held": held, "wanted": wanted, "free": max(0, wanted - len(said) - held)}
        s.execute(_COUNTED, {"task": number, **{f"new_{name}": value for name, value in counts.items()}})


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


_KIND = select(_T.c.kind, _T.c.campaign_id).where(_T.c.id == bindparam("task"))
_ANSWERS = (
    select(_ANSWER.verdict)
    .join(m.Annotator, m.Annotator.id == _ANSWER.annotator_id)
    .where(
        _ANSWER.task_id == bindparam("task"),
        _ANSWER.verdict.not_in(NO_ANSWER),
        is_last(_ANSWER),
        m.Annotator.withdrawn_at.is_(None),
    )
)
_IN_HAND = select(func.count()).select_from(_A).where(_A.c.task_id == bindparam("task"), _A.c.state == "open")
_COUNTED = (
    update(_T)
    .where(_T.c.id == bindparam("task"))
    .values(**{name: bindparam(f"new_{name}") for name in ("answers", "held", "wanted", "free")})
)


def _claim(s: Session, row: m.Campaign, held: Held, part: m.Participant) -> Claim:
    owner = s.get_one(m.Concept, row.concept_id)
    by_position = {p: (i, sha) for p, i, sha in s.execute(_PICTURES, {"task": held.task_id})}
    return Claim(
        held.id,
        held.token,
        row.id,
        owner.slug,
        owner.title,
        owner.guideline,
        row.question,
        row.ties,
        tuple(ClaimImage(place, *by_position[p]) for place, p in enumerate(held.order)),
        held.opened_at,
        held.lease_expires_at,
        part.done,
    )


def left(s: Session, row: m.Campaign, annotator_id: int) -> int:
    """How many tasks this annotator has in hand or may still be given. Gold tasks to come are not foretold."""
    who = {"campaign": row.id, "person": annotator_id}
    free = s.execute(_COUNT_FREE, who).scalar_one()
    mine = s.execute(_COUNT_MINE, who).one()
    return int(free - (mine.free or 0) + (mine.open or 0))


_COUNT_FREE = select(func.count()).select_from(_T).where(_T.c.campaign_id == bindparam("campaign"), text("free > 0"))
_COUNT_MINE = (
    select(
        func.sum(case((_T.c.free > 0, 1), else_=0)).label("free"),
        func.sum(case((_A.c.state == "open", 1), else_=0)).label("open"),
    )
    .join(_T, _T.c.id == _A.c.task_id)
    .where(_A.c.annotator_id == bindparam("person"), _A.c.state.in_(("open", "done")), _T.c.campaign_id == bindparam("campaign"))
)


def claim_of(s: Session, token: str, annotator_id: int) -> Claim:
    """The claim that a token names. NotFound where it is not this annotator's: a token alone opens nothing."""
    assignment = assignment_of(s, token, annotator_id)
    row = campaign_row(s, s.get_one(m.Task, assignment.task_id).campaign_id)
    return _claim(s, row, _held(assignment), participant(s, row, annotator_id))


def _held(a: m.Assignment) -> Held:
    return Held(a.id, a.task_id, a.token, tuple(json.loads(a.shown_order)), a.opened_at, a.lease_expires_at)


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
    s.flush()
    return _claim(s, row, _held(assignment), part)


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
