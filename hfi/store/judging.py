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
from sqlalchemy import ColumnElement, and_, bindparam, case, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from hfi import __version__
from hfi.errors import HfiError, NotFound
from hfi.store import models as m
from hfi.store.campaigns import campaign_row, participant
from hfi.store.locks import hold_person, hold_person_and_task, hold_task, hold_tasks, note_task, side_by_side, take_task
from hfi.store.queries import now_utc
from hfi.store.session import Again
from hfi.store.wellbeing import HARMFUL

NO_ANSWER = ("unsure", "skip", "disturbing", "undone")  # verdicts that say nothing of the image
MAX_COMMENT = 2000
MOST_LEFT = 1000
_FRESH = 0.1  # a lease of which no more than this part is gone is not written anew


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
    """`duplicate`: this submission had been taken before, nothing was added. `seen`: an earlier answer of theirs to the same task said
    already that it was harmful to look at."""

    judgment_id: int
    campaign_id: int
    duplicate: bool
    seen: bool = False


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
_C: Any = m.Campaign.__table__
_O: Any = m.Concept.__table__
_P: Any = m.Participant.__table__
_W: Any = m.Annotator.__table__
_J: Any = m.Judgment.__table__
_I: Any = m.Image.__table__
_TI: Any = m.TaskImage.__table__
_R: Any = m.RankedImage.__table__
_MINE: Any = _A.alias("mine")
_OTHER: Any = _A.alias("other")

_OF_CAMPAIGN = (
    _C.c.id.label("campaign_id"), _C.c.concept_id, _C.c.question, _C.c.overlap, _C.c.extra_votes, _C.c.ties, _C.c.gold_every,
    _C.c.lease_seconds, _C.c.access, _C.c.state.label("campaign_state"),
)  # fmt: skip
_PART = (_P.c.id.label("part"), _P.c.done, _P.c.cursor)
_PARTAKING = (
    select(
        *_OF_CAMPAIGN,
        *_PART,
        select(_W.c.withdrawn_at).where(_W.c.id == bindparam("person")).scalar_subquery().label("withdrawn"),
    )
    .select_from(_C.outerjoin(_P, and_(_P.c.campaign_id == _C.c.id, _P.c.annotator_id == bindparam("person"))))
    .where(_C.c.id == bindparam("campaign"))
)
_LAPSED = (
    select(_A.c.id, _A.c.task_id, _A.c.annotator_id, _T.c.campaign_id, _T.c.place)
    .join(_T, _T.c.id == _A.c.task_id)
    .join(_W, _W.c.id == _A.c.annotator_id)
    .where(_A.c.state == "open", _A.c.lease_expires_at <= bindparam("now"))
    .with_for_update(of=(_W, _T), key_share=True, skip_locked=True)
)
_LAPSE = (  # it may have been answered, or renewed, before its rows were locked
    update(_A)
    .where(_A.c.id == bindparam("which"), _A.c.state == "open", _A.c.lease_expires_at <= bindparam("now"))
    .values(state="expired")
)
_BACK = (
    update(_P)
    .where(_P.c.campaign_id == bindparam("campaign"), _P.c.annotator_id == bindparam("person"), _P.c.cursor >= bindparam("place"))
    .values(cursor=bindparam("place") - 1)
)


def _covered(assignment: Any) -> Any:
    """Whether its annotator called it too disturbing before: they took that back, as it is in their hands."""
    # a count, since PostgreSQL may answer EXISTS by reading every judgment
    hers = (_J.c.assignment_id == assignment.c.id, _J.c.verdict == "disturbing")
    return select(func.count(_J.c.id)).where(*hers).scalar_subquery().label("covered")


_HELD = (
    select(_A.c.id, _A.c.task_id, _A.c.token, _A.c.shown_order, _A.c.opened_at, _A.c.lease_expires_at, _covered(_A))
    .join(_T, _T.c.id == _A.c.task_id)
    .where(_A.c.annotator_id == bindparam("person"), _A.c.state == "open", _T.c.campaign_id == bindparam("campaign"))
    .order_by(_A.c.opened_at.desc(), _A.c.id.desc())
    .limit(bindparam("most"))
)
_OWN = (  # an expired one goes on as it was shown
    _MINE.c.id.label("own"), _MINE.c.token, _MINE.c.shown_order, _covered(_MINE),
    select(func.count()).select_from(_TI).where(_TI.c.task_id == _T.c.id).scalar_subquery().label("images"),
)  # fmt: skip
_GIVEN = (
    select(_OTHER.c.id)
    .where(_OTHER.c.task_id == _T.c.id, _OTHER.c.annotator_id == bindparam("person"), _OTHER.c.state != "expired")
    .correlate(_T)
)
_FREE = (
    select(_T.c.id, _T.c.place, _T.c.kind, *_OWN)
    .select_from(_T.outerjoin(_MINE, and_(_MINE.c.task_id == _T.c.id, _MINE.c.annotator_id == bindparam("person"))))
    .where(
        _T.c.campaign_id == bindparam("campaign"),
        text("free > 0"),  # as the partial index says it
        ~_GIVEN.exists(),  # of a condition on `mine` PostgreSQL expects that hardly a task fulfils it, and reads and sorts them all
    )
)
_UNLOCKED = _FREE.order_by(_T.c.place).limit(1).with_for_update(of=_T, key_share=True, skip_locked=True)
_FREE_AFTER = _UNLOCKED.where(_T.c.place > bindparam("cursor"))
_FREE_BEFORE = _UNLOCKED.where(_T.c.place <= bindparam("cursor"))
_ANY_FREE = _FREE.order_by(_T.c.place).limit(1)  # in an order, or PostgreSQL takes one to be found anywhere soon
_ANY_LAPSED = (
    select(_A.c.id)
    .join(_T, _T.c.id == _A.c.task_id)
    .where(_A.c.state == "open", _A.c.lease_expires_at <= bindparam("now"), _T.c.campaign_id == bindparam("campaign"))
    .limit(1)
)
_GOLD_LEFT = (
    select(_T.c.id, _T.c.place, _T.c.kind, *_OWN)
    .select_from(_T.outerjoin(_MINE, and_(_MINE.c.task_id == _T.c.id, _MINE.c.annotator_id == bindparam("person"))))
    .where(_T.c.campaign_id == bindparam("campaign"), text("kind = 'gold'"), _MINE.c.id.is_(None))
    .order_by(_T.c.place)
)
_PICTURES = (
    select(_TI.c.position, _I.c.id, _I.c.sha256).join(_I, _I.c.id == _TI.c.image_id).where(_TI.c.task_id == bindparam("task"))
)
_OPEN = insert(_A)
_OPENED = (
    update(_A)
    .where(_A.c.id == bindparam("which"))
    .values(state="open", opened_at=bindparam("opened"), lease_expires_at=bindparam("until"))
)
_RENEW = update(_A).where(_A.c.id == bindparam("which")).values(lease_expires_at=bindparam("until"))
_TAKEN = (
    update(_T).where(_T.c.id == bindparam("task")).values(held=_T.c.held + 1, free=case((_T.c.free > 0, _T.c.free - 1), else_=0))
)
_FARTHER = update(_P).where(_P.c.id == bindparam("part")).values(cursor=bindparam("place"))
_COUNTED_DONE = update(_P).where(_P.c.id == bindparam("part")).values(done=_P.c.done + bindparam("more"))


@dataclass(frozen=True)
class Held:
    """An assignment in somebody's hands. `order`: the positions of its images as this annotator sees them. `covered`: they called it
    too disturbing before, and took that back."""

    id: int
    task_id: int
    token: str
    order: tuple[int, ...]
    opened_at: datetime
    lease_expires_at: datetime
    covered: bool = False


@dataclass(frozen=True)
class Hand:
    """What an annotator has of a campaign: the task in hand, and the one after it; `done` are behind them. `busy`: there is none as
    others are just writing the last ones, in transactions of some milliseconds: ask again, in another transaction. `taken`: how many
    were given out just now."""

    task: Held | None
    ahead: Held | None
    done: int
    busy: bool = False
    taken: int = 0


def claim_next(s: Session, campaign_id: int, annotator_id: int, now: datetime | None = None) -> Claim | None:
    """The annotator's next task: the one already in hand, in the same order as before, else the first that still needs a judgment.

    A task needs one while fewer than `wanted` others have judged it or hold an unexpired lease on it; nobody gets a task twice.
    'unsure', 'skip' and 'disturbing' do not fill it. Now and then it is a gold task. None where nothing is left, or the campaign is
    closed. Needs a writing session; NotFound where the campaign is not this annotator's, Again where others are just writing the last
    tasks.
    """
    hand = serve(s, campaign_id, annotator_id, now, ahead=False)
    if hand.busy:
        raise Again("others are taking the last tasks this moment: ask again")
    return None if hand.task is None else _claim(s, hand.task, hand.done)


def serve(s: Session, campaign_id: int, annotator_id: int, now: datetime | None = None, *, ahead: bool = True) -> Hand:
    """As `claim_next`, with the task that will come after it, already this annotator's so that it can be loaded early. That one counts
    as opened before the first, which is therefore given until it is judged."""
    now = now or now_utc()
    hold_person(s, annotator_id)
    expire_leases(s, now)  # it moves cursors back
    part = partaking(s, campaign_id, annotator_id)
    if part.campaign_state != "open":
        return Hand(None, None, part.done)
    c = s.connection()
    until = now + timedelta(seconds=part.lease_seconds)
    found = c.execute(_HELD, {"person": annotator_id, "campaign": campaign_id, "most": 1 + ahead}).all()
    stale = until - _FRESH * timedelta(seconds=part.lease_seconds)
    held = [
        Held(
            row.id, row.task_id, row.token, tuple(json.loads(row.shown_order)), row.opened_at,
            until if row.lease_expires_at < stale else row.lease_expires_at, bool(row.covered),
        )
        for row in found
    ]  # fmt: skip
    if renewed := [{"which": one.id, "until": until} for one in held if one.lease_expires_at == until]:
        c.execute(_RENEW, renewed)
    already = len(held)
    while len(held) < 1 + ahead:
        opened = held[0].opened_at - timedelta(microseconds=1) if held else now
        taken = _take(s, part, annotator_id, given=part.done + len(held), opened_at=opened, until=until)
        if taken is None:
            break
        held.append(taken)
    if not held and side_by_side(s):
        at = {"person": annotator_id, "campaign": campaign_id, "now": now}
        return Hand(None, None, part.done, busy=any(c.execute(query, at).first() for query in (_ANY_FREE, _ANY_LAPSED)))
    return Hand(held[0] if held else None, held[1] if len(held) > 1 else None, part.done, taken=len(held) - already)


def partaking(s: Session, campaign_id: int, annotator_id: int) -> Any:
    """A row of the campaign and of this annotator's part in it, which is made where everybody may take part. NotFound for a campaign
    that there is not, or that is not theirs."""
    s.flush()
    who = {"campaign": campaign_id, "person": annotator_id}
    row = s.connection().execute(_PARTAKING, who).one_or_none()
    if row is not None and row.withdrawn is not None:  # while this was waiting for its turn
        raise not_yours()
    if row is None or row.part is None:
        participant(s, campaign_row(s, campaign_id), annotator_id)
        row = s.connection().execute(_PARTAKING, who).one()
    return row


def expire_leases(s: Session, now: datetime) -> None:
    """Tasks whose time has run out are free for the others, and for the one who had them first of all that come. What others are just
    writing is left to them, or to the next who comes."""
    s.flush()
    c = s.connection()
    changed = []
    for number, task_id, person, campaign_id, place in c.execute(_LAPSED, {"now": now}).all():
        note_task(s, task_id)
        if c.execute(_LAPSE, {"which": number, "now": now}).rowcount:
            c.execute(_BACK, {"campaign": campaign_id, "person": person, "place": place})
            changed.append(task_id)
    if changed:
        recount(s, changed)


def _take(s: Session, part: Any, annotator_id: int, *, given: int, opened_at: datetime, until: datetime) -> Held | None:
    """Another task for this annotator, who has been `given` so many; None where there is none."""
    c = s.connection()
    who = {"campaign": part.campaign_id, "person": annotator_id}
    task = _next_gold(s, part, who, given) or _next_free(s, who, part.cursor)
    if task is None:
        return None
    note_task(s, task.id)
    if task.own is None:
        order = _shuffled(task.images, task.id, annotator_id)
        token = secrets.token_urlsafe(24)
        values = {"task_id": task.id, "annotator_id": annotator_id, "token": token, "shown_order": json.dumps(order)}
        leased = {"state": "open", "opened_at": opened_at, "lease_expires_at": until}
        number = c.execute(_OPEN, {**values, **leased}).inserted_primary_key[0]  # type: ignore[index]
    else:
        number, token, order = task.own, task.token, json.loads(task.shown_order)
        c.execute(_OPENED, {"which": number, "opened": opened_at, "until": until})
    c.execute(_TAKEN, {"task": task.id})
    if task.kind != "gold" and task.place > part.cursor:
        c.execute(_FARTHER, {"part": part.part, "place": task.place})
    return Held(number, task.id, token, tuple(order), opened_at, until, bool(task.covered))


def _shuffled(images: int, task_id: int, annotator_id: int) -> list[int]:
    """The places of a task's images, in this annotator's order."""
    if images == 1:
        return [0]
    return [int(i) for i in np.random.default_rng([task_id, annotator_id]).permutation(images)]


def _next_free(s: Session, who: dict[str, int], cursor: int) -> Any:
    """The first free task after the last one that was given, or, from the front, one that came back; never one that somebody else is
    just writing."""
    c = s.connection()
    at = {**who, "cursor": cursor}
    return c.execute(_FREE_AFTER, at).one_or_none() or c.execute(_FREE_BEFORE, at).one_or_none()


def _next_gold(s: Session, part: Any, who: dict[str, int], given: int) -> Any:
    """One in every `gold_every` tasks, at a place in each stretch that nobody can foresee, is one with a known answer."""
    if not part.gold_every:
        return None
    stretch, at = divmod(given, part.gold_every)
    rng = np.random.default_rng([part.campaign_id, who["person"], stretch])
    if at != rng.integers(part.gold_every):
        return None
    left = s.connection().execute(_GOLD_LEFT, who).all()
    first = int(rng.integers(len(left))) if left else 0
    return next((task for task in (*left[first:], *left[:first]) if take_task(s, task.id)), None)


def recount(s: Session, task_ids: Iterable[int]) -> None:
    """Makes the counts of these tasks anew, from their judgments and leases. A task is locked first: what others add to it meanwhile is
    counted by them."""
    s.flush()
    c = s.connection()
    numbers = sorted(set(task_ids))
    for i in range(0, len(numbers), 500):  # somebody who judged thousands withdraws
        some = numbers[i : i + 500]
        hold_tasks(s, some)
        said: dict[int, list[str]] = {}
        for verdict, number in c.execute(_ANSWERS_OF_SOME, {"tasks": some}):
            said.setdefault(number, []).append(verdict)
        c.execute(
            _COUNTED, [_counts(task, said.get(task.id, []), task.id, task.open) for task in c.execute(_ASKING, {"tasks": some})]
        )


def _counts(task: Any, said: Sequence[str], number: int, held: int) -> dict[str, int]:
    """What `_COUNTED` writes of the task with that number, which `held` people have in hand; `task` says what its campaign asks for."""
    wanted = {"item": task.overlap, "benign": 1, "gold": 0}[task.kind]
    if task.kind == "item" and task.question == "binary" and len(said) >= task.overlap and len(set(said)) > 1:
        wanted += task.extra_votes
    free = max(0, wanted - len(said) - held)
    return {"task": number, "new_answers": len(said), "new_held": held, "new_wanted": wanted, "new_free": free}


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


_HOW_MANY_HOLD = (
    select(func.count(case((_A.c.state == "open", 1))))  # as a condition it could make SQLite read all that are open
    .where(_A.c.task_id == _T.c.id)
    .scalar_subquery()
    .label("open")
)
_ASKING = (
    select(_T.c.id, _T.c.kind, _C.c.question, _C.c.overlap, _C.c.extra_votes, _HOW_MANY_HOLD)
    .select_from(_T)
    .join(_C, _C.c.id == _T.c.campaign_id)
    .where(_T.c.id.in_(bindparam("tasks", expanding=True)))
)
_ANSWERS_OF_ANY = (
    select(_ANSWER.verdict, _ANSWER.task_id)
    .join(m.Annotator, m.Annotator.id == _ANSWER.annotator_id)
    .where(
        _ANSWER.verdict.not_in(NO_ANSWER),
        is_last(_ANSWER),
        m.Annotator.withdrawn_at.is_(None),
    )
)
_ANSWERS = _ANSWERS_OF_ANY.where(_ANSWER.task_id == bindparam("task"))
_ANSWERS_OF_SOME = _ANSWERS_OF_ANY.where(_ANSWER.task_id.in_(bindparam("tasks", expanding=True)))
_COUNTED = (
    update(_T)
    .where(_T.c.id == bindparam("task"))
    .values(**{name: bindparam(f"new_{name}") for name in ("answers", "held", "wanted", "free")})
)


_ABOUT = (
    select(_C.c.id, _O.c.slug, _O.c.title, _O.c.guideline, _C.c.question, _C.c.ties)
    .select_from(_T.join(_C, _C.c.id == _T.c.campaign_id).join(_O, _O.c.id == _C.c.concept_id))
    .where(_T.c.id == bindparam("task"))
)


def _claim(s: Session, held: Held, done: int) -> Claim:
    by_position = {p: (i, sha) for p, i, sha in s.execute(_PICTURES, {"task": held.task_id})}
    images = tuple(ClaimImage(place, *by_position[p]) for place, p in enumerate(held.order))
    about = s.execute(_ABOUT, {"task": held.task_id}).one()
    return Claim(held.id, held.token, *about, images, held.opened_at, held.lease_expires_at, done)


def left(s: Session, campaign_id: int, annotator_id: int) -> int:
    """How many tasks this annotator has in hand or may still be given; of the latter no more than `MOST_LEFT` are counted, so that it
    takes no longer in a campaign of millions. Gold tasks to come are not foretold."""
    free, held = s.connection().execute(_LEFT, {"campaign": campaign_id, "person": annotator_id}).one()
    return int(free + held)


_NOT_GIVEN = (
    select(_T.c.id)
    .where(_T.c.campaign_id == bindparam("campaign"), text("free > 0"), ~_GIVEN.exists())
    .order_by(_T.c.place.desc())  # what nobody has come to is quickly found not to be theirs
    .limit(MOST_LEFT)
)


def total(done: int, left: int) -> int | None:
    """Of what is `left`, as it was counted: all the tasks of an annotator, or None where there are more than are counted."""
    return done + left if left < MOST_LEFT else None


_LEFT = select(
    select(func.count()).select_from(_NOT_GIVEN.subquery()).scalar_subquery(),
    select(func.count())
    .select_from(_A.join(_T, _T.c.id == _A.c.task_id))
    .where(_A.c.annotator_id == bindparam("person"), _A.c.state == "open", _T.c.campaign_id == bindparam("campaign"))
    .scalar_subquery(),
)


def claim_of(s: Session, token: str, annotator_id: int) -> Claim:
    """The claim that a token names. NotFound where it is not this annotator's: a token alone opens nothing."""
    a = asked(s, token, annotator_id)
    held = Held(a.id, a.task_id, token, tuple(json.loads(a.shown_order)), a.opened_at, a.lease_expires_at)
    return _claim(s, held, partaking(s, a.campaign_id, annotator_id).done)


_ASKED = (
    select(
        _A.c.id, _A.c.task_id, _A.c.state, _A.c.shown_order, _A.c.opened_at, _A.c.lease_expires_at, _T.c.kind, _T.c.free,
        select(func.count(case((_OTHER.c.state == "open", 1)))).where(_OTHER.c.task_id == _T.c.id).scalar_subquery().label("open"),
        *_OF_CAMPAIGN, _O.c.guideline_version, _P.c.id.label("part"),
        select(func.max(_J.c.revision))
        .where(_J.c.task_id == _A.c.task_id, _J.c.annotator_id == _A.c.annotator_id)
        .scalar_subquery().label("revision"),
        select(_J.c.id).where(_J.c.idempotency_token == bindparam("once")).exists().label("said"),
        select(_J.c.id)
        .where(_J.c.task_id == _A.c.task_id, _J.c.annotator_id == _A.c.annotator_id, _J.c.verdict.in_(HARMFUL))
        .exists().label("seen"),
    )
    .select_from(
        _A.join(_T, _T.c.id == _A.c.task_id)
        .join(_W, _W.c.id == _A.c.annotator_id)
        .join(_C, _C.c.id == _T.c.campaign_id)
        .join(_O, _O.c.id == _C.c.concept_id)
        .outerjoin(_P, and_(_P.c.campaign_id == _C.c.id, _P.c.annotator_id == _A.c.annotator_id))
    )
    .where(_A.c.token == bindparam("token"), _A.c.annotator_id == bindparam("person"), _W.c.withdrawn_at.is_(None))
)  # fmt: skip


def asked(s: Session, token: str, annotator_id: int) -> Any:
    """A row of the assignment that a token names, its task and its campaign. NotFound where it is not this annotator's."""
    s.flush()
    check_token(token)
    row = s.connection().execute(_ASKED, {"token": token, "person": annotator_id, "once": None}).one_or_none()
    if row is None:
        raise not_yours()
    return row


def check_token(token: str) -> None:
    if "\0" in token:  # PostgreSQL takes no such text, not even to say that it has none
        raise not_yours()


def not_yours() -> NotFound:
    return NotFound("this task is not yours, or was withdrawn: reload the page")


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
    s.flush()
    c = s.connection()
    check_token(token)
    hold_person_and_task(s, annotator_id, token)
    task = c.execute(_ASKED, {"token": token, "person": annotator_id, "once": idempotency_token}).one_or_none()
    if task is None or task.said:
        before = c.execute(_SAID_BEFORE, {"once": idempotency_token}).one_or_none()
        if before is None:
            raise not_yours()
        if before.annotator_id != annotator_id:
            raise _said_by_another()
        return Submitted(before.id, before.campaign_id, True)
    allowed = m.BINARY_VERDICTS if task.question == "binary" else m.RANKING_VERDICTS
    if verdict not in allowed:
        raise HfiError(f"unknown verdict {verdict!r}: choose {', '.join(allowed)}")
    if task.state == "done":
        raise HfiError("you have judged this already: undo first to change it")
    if task.state == "expired" and task.kind != "gold" and not task.free:
        raise HfiError("your time for this task ran out and others have judged it: go on with the next")
    if comment and len(comment) > MAX_COMMENT:
        raise HfiError(f"a comment of {len(comment)} characters: write at most {MAX_COMMENT:,}")
    groups = [[one] if isinstance(one, int) else list(one) for one in ranking or ()]
    places = _check_ranking(s, task, verdict, groups)
    judgment = {
        "task_id": task.task_id,
        "annotator_id": annotator_id,
        "assignment_id": task.id,
        "revision": (task.revision or 0) + 1,
        "verdict": verdict,
        "comment": _clean(comment),
        "region": _region(region),
        "elapsed_ms": look.elapsed_ms,
        "filter": look.filter,
        "reveals": look.reveals,
        "revealed_ms": look.revealed_ms,
        "idempotency_token": idempotency_token,
        "guideline_version": task.guideline_version,
        "app_version": __version__,
        "created_at": now or now_utc(),
    }
    try:
        number = c.execute(_SAY, judgment).inserted_primary_key[0]  # type: ignore[index]
    except IntegrityError as e:  # in the same moment, where people judge side by side
        if "idempotency_token" in str(e.orig):
            raise _said_by_another() from e
        raise
    c.execute(_DONE, {"which": task.id})
    c.execute(_COUNTED_DONE, {"part": task.part, "more": 1})
    rank = 1
    for group in groups:
        for image in group:
            c.execute(_RANK, {"judgment_id": number, "image_id": image, "rank": rank, "shown_position": places[image]})
        rank += len(group)
    said = c.execute(_ANSWERS, {"task": task.task_id}).scalars().all()
    c.execute(_COUNTED, _counts(task, said, task.task_id, task.open - (task.state == "open")))
    return Submitted(number, task.campaign_id, False, bool(task.seen))


def _said_by_another() -> HfiError:
    return HfiError("this answer was given by somebody else: reload the page")


_SAID_BEFORE = (
    select(_J.c.id, _J.c.annotator_id, _T.c.campaign_id)
    .join(_T, _T.c.id == _J.c.task_id)
    .where(_J.c.idempotency_token == bindparam("once"))
)
_SAY, _RANK = insert(_J), insert(_R)
_DONE = update(_A).where(_A.c.id == bindparam("which")).values(state="done")


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


def _check_ranking(s: Session, task: Any, verdict: str, groups: Sequence[Sequence[int]]) -> dict[int, int]:
    """Where each of the task's images was shown, of a ranking; HfiError unless it orders exactly these images."""
    if verdict != "ranked":
        if groups:
            raise HfiError(f"an order of images goes with verdict 'ranked', not with {verdict!r}")
        return {}
    by_position = {p: i for p, i, _ in s.execute(_PICTURES, {"task": task.task_id})}
    places = {by_position[p]: place for place, p in enumerate(json.loads(task.shown_order))}
    if sorted(image for group in groups for image in group) != sorted(places):
        raise HfiError("a ranking orders each of the shown images once: give every image a place")
    if not task.ties and any(len(group) > 1 for group in groups):
        raise HfiError("this campaign takes no ties: give every image a place of its own")
    return places


def undo(s: Session, campaign_id: int, annotator_id: int, now: datetime | None = None) -> Claim | None:
    """Takes back this annotator's latest judgment and reopens its task; again and again back to the first. None where none is left.

    A task in hand waits meanwhile: it comes after the reopened one.
    """
    now = now or now_utc()
    hold_person(s, annotator_id)
    part = partaking(s, campaign_id, annotator_id)
    last = s.execute(_LAST, {"campaign": campaign_id, "person": annotator_id}).one_or_none()
    if last is None:
        return None
    hold_task(s, last.task_id)
    undone = {
        "task_id": last.task_id,
        "annotator_id": annotator_id,
        "assignment_id": last.assignment_id,
        "revision": last.revision + 1,
        "verdict": "undone",
        "idempotency_token": f"undo-{last.id}",
        "guideline_version": last.guideline_version,
        "app_version": __version__,
        "created_at": now,
    }
    s.execute(_SAY, undone)
    until = now + timedelta(seconds=part.lease_seconds)
    s.execute(_OPENED, {"which": last.assignment_id, "opened": now, "until": until})
    s.execute(_COUNTED_DONE, {"part": part.part, "more": -min(1, part.done)})
    recount(s, [last.task_id])
    held = Held(last.assignment_id, last.task_id, last.token, tuple(json.loads(last.shown_order)), now, until)
    return _claim(s, held, max(0, part.done - 1))


_LAST = (
    select(_ANSWER.id, _ANSWER.task_id, _ANSWER.assignment_id, _ANSWER.revision, _ANSWER.guideline_version, _A.c.token,
           _A.c.shown_order)
    .join(_T, _T.c.id == _ANSWER.task_id)
    .join(_A, _A.c.id == _ANSWER.assignment_id)
    .where(
        _T.c.campaign_id == bindparam("campaign"),
        _ANSWER.annotator_id == bindparam("person"),
        _ANSWER.verdict != "undone",
        is_last(_ANSWER),
    )
    .order_by(_ANSWER.created_at.desc(), _ANSWER.id.desc())  # as the index of a person's judgments has them
    .limit(1)
)  # fmt: skip


# --- looking ---


def progress(s: Session, campaign_id: int, annotator_id: int | None = None) -> Progress:
    """See `Progress`. For one annotator `total` counts the tasks they did and what is `left`."""
    campaign_row(s, campaign_id)
    living = (
        select(m.Judgment.verdict, func.count())
        .join(m.Task, m.Task.id == m.Judgment.task_id)
        .where(m.Task.campaign_id == campaign_id, m.Judgment.verdict != "undone", is_last(m.Judgment))
        .group_by(m.Judgment.verdict)
    )
    if annotator_id is not None:
        mine = dict(s.execute(living.where(m.Judgment.annotator_id == annotator_id)).tuples().all())
        done = sum(mine.values())
        return Progress(done, done + left(s, campaign_id, annotator_id), mine, done)
    by_verdict: dict[str, int] = dict(s.execute(living).tuples().all())
    tasks = select(m.Task.wanted, m.Task.answers, func.count()).where(m.Task.campaign_id == campaign_id, m.Task.kind != "gold")
    total = full = answers = 0
    for wanted, given, count in s.execute(tasks.group_by(m.Task.wanted, m.Task.answers)):
        total += count
        full += count if given >= wanted else 0
        answers += min(given, wanted) * count
    return Progress(full, total, by_verdict, answers)
