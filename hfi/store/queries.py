"""What the program does with the database, as verbs. Each takes a session (`writing` or `reading`) and returns frozen dataclasses."""

import json
import secrets
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session, aliased

from hfi import __version__, concepts
from hfi.errors import HfiError, NotFound
from hfi.store import models as m

Source = Literal["generated", "imported"]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where an image comes from. `key`: sha256 over everything it was made by, or, imported, of what it is."""

    key: str
    sha256: str
    width: int
    height: int
    source: Source
    prompt: str | None = None
    negative_prompt: str | None = None
    model: str | None = None
    model_content: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    run: str | None = None
    erasure: str | None = None
    original_name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Image(Provenance):
    id: int


@dataclass(frozen=True)
class Campaign:
    id: int
    concept: str
    name: str
    question: str
    overlap: int
    lease_seconds: int
    tasks: int


@dataclass(frozen=True)
class Annotator:
    id: int
    name: str
    pseudonym: str
    simulated: bool


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


@dataclass(frozen=True)
class Progress:
    """Tasks of a campaign: `done` by this annotator (or, for all, fully judged) of `total`; counts of living verdicts; how many
    answers count towards total x overlap."""

    done: int
    total: int
    by_verdict: Mapping[str, int]
    answers: int


@dataclass(frozen=True)
class JudgmentRow:
    """A living judgment. `images`: sha256 of the task's images; of a ranking in ranked order, most of the concept first."""

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


def now_utc() -> datetime:
    return datetime.now(UTC)


# --- images ---

_PROVENANCE = tuple(Provenance.__dataclass_fields__)


def add_image(s: Session, provenance: Provenance) -> Image:
    """Adds the image, or finds the one of the same key; a prompt that was not known is filled in."""
    row = s.scalar(select(m.Image).where(m.Image.key == provenance.key))
    if row is None:
        row = m.Image(**{name: getattr(provenance, name) for name in _PROVENANCE}, created_at=now_utc())
        s.add(row)
        s.flush()
    elif row.prompt is None:
        row.prompt = provenance.prompt
    return _image(row)


def has_keys(s: Session, keys: Iterable[str]) -> set[str]:
    """Those of the keys that the database has."""
    wanted, found = list(keys), set[str]()
    for i in range(0, len(wanted), 500):
        found |= set(s.scalars(select(m.Image.key).where(m.Image.key.in_(wanted[i : i + 500]))))
    return found


def images(
    s: Session,
    *,
    model: str | None = None,
    run: str | None = None,
    prompt: str | None = None,
    source: Source | None = None,
    limit: int | None = None,
) -> list[Image]:
    """Images in the order in which they were added."""
    query = select(m.Image).order_by(m.Image.id).limit(limit)
    for column, value in ((m.Image.model, model), (m.Image.run, run), (m.Image.prompt, prompt), (m.Image.source, source)):
        if value is not None:
            query = query.where(column == value)
    return [_image(row) for row in s.scalars(query)]


def _image(row: m.Image) -> Image:
    return Image(id=row.id, **{name: getattr(row, name) for name in _PROVENANCE})


# --- concepts ---


def add_concept(s: Session, concept: concepts.Concept) -> concepts.Concept:
    """Adds the concept; the same one again changes nothing. A new guideline of a known concept becomes its next version."""
    row = s.scalar(select(m.Concept).where(m.Concept.slug == concept.slug))
    fields = {name: getattr(concept, name) for name in ("title", "guideline", "initial_word", "prompt")}
    if row is None:
        s.add(m.Concept(slug=concept.slug, question=concept.question, guideline_version=1, created_at=now_utc(), **fields))
    elif row.question != concept.question:
        raise HfiError(f"concept {concept.slug!r} is judged by {row.question} questions already: give the new one another name")
    else:
        if row.guideline != concept.guideline:
            row.guideline_version += 1
        for name, value in fields.items():
            setattr(row, name, value)
    s.flush()
    return concept


def concept(s: Session, slug: str) -> concepts.Concept:
    return _concept(_concept_row(s, slug))


def concepts_list(s: Session) -> list[concepts.Concept]:
    return [_concept(row) for row in s.scalars(select(m.Concept).order_by(m.Concept.id))]


def _concept(row: m.Concept) -> concepts.Concept:
    return concepts.Concept(row.slug, row.title, row.guideline, row.question, row.initial_word, row.prompt)  # type: ignore[arg-type]


def _concept_row(s: Session, slug: str) -> m.Concept:
    row = s.scalar(select(m.Concept).where(m.Concept.slug == slug))
    if row is None:
        known = list(s.scalars(select(m.Concept.slug).order_by(m.Concept.slug)))
        hint = f"known are {', '.join(known)}" if known else "there is none yet: add one with 'hfi concept add'"
        raise NotFound(f"no concept {slug!r}: {hint}")
    return row


# --- campaigns ---


def ensure_campaign(
    s: Session,
    concept_slug: str,
    name: str,
    *,
    image_ids: Sequence[int],
    overlap: int = 1,
    group_size: int = 5,
    seed: int = 0,
    lease_seconds: int = 1800,
) -> Campaign:
    """The concept's campaign of this name, made where there is none, with a task for each image that it has none for yet.

    New tasks come in an order shuffled by `seed`, after those that are there. A ranking campaign groups `group_size` images a task;
    a rest smaller than that waits for more images. HfiError where the campaign exists with another overlap.
    """
    owner = _concept_row(s, concept_slug)
    row = s.scalar(select(m.Campaign).where(m.Campaign.concept_id == owner.id, m.Campaign.name == name))
    if row is None:
        row = m.Campaign(
            concept_id=owner.id,
            name=name,
            question=owner.question,
            overlap=overlap,
            lease_seconds=lease_seconds,
            created_at=now_utc(),
        )
        s.add(row)
        s.flush()
    elif row.overlap != overlap:
        raise HfiError(f"campaign {name!r} asks {row.overlap} people for each image, not {overlap}: give it another name")
    held = select(m.TaskImage.image_id).join(m.Task).where(m.Task.campaign_id == row.id)
    known = set(s.scalars(held))
    fresh = [i for i in dict.fromkeys(image_ids) if i not in known]
    last = s.scalar(select(func.max(m.Task.place)).where(m.Task.campaign_id == row.id))
    place = 0 if last is None else last + 1
    fresh = [fresh[i] for i in np.random.default_rng([seed, place]).permutation(len(fresh))]
    size = 1 if row.question == "binary" else group_size
    for i in range(0, len(fresh) - size + 1, size):
        task = m.Task(campaign_id=row.id, place=place)
        s.add(task)
        s.flush()
        s.add_all(m.TaskImage(task_id=task.id, image_id=x, position=p) for p, x in enumerate(fresh[i : i + size]))
        place += 1
    s.flush()
    return _campaign(s, row)


def campaigns(s: Session, concept_slug: str | None = None) -> list[Campaign]:
    query = select(m.Campaign).join(m.Concept).order_by(m.Campaign.id)
    if concept_slug is not None:
        query = query.where(m.Concept.slug == concept_slug)
    return [_campaign(s, row) for row in s.scalars(query)]


def campaign(s: Session, campaign_id: int) -> Campaign:
    row = s.get(m.Campaign, campaign_id)
    if row is None:
        raise NotFound(f"no campaign {campaign_id}: 'hfi labels status' lists them")
    return _campaign(s, row)


def _campaign(s: Session, row: m.Campaign) -> Campaign:
    slug = s.scalar(select(m.Concept.slug).where(m.Concept.id == row.concept_id))
    tasks = s.scalar(select(func.count()).select_from(m.Task).where(m.Task.campaign_id == row.id))
    return Campaign(row.id, str(slug), row.name, row.question, row.overlap, row.lease_seconds, int(tasks or 0))


# --- annotators ---


def ensure_annotator(s: Session, name: str, simulated: bool = False) -> Annotator:
    """The annotator of this name, whatever its case and Unicode form. HfiError where a person and a simulation would share it."""
    shown = " ".join(unicodedata.normalize("NFKC", name).split())
    if not shown or len(shown) > 80:
        raise HfiError(f"{name!r} cannot name an annotator: give 1 to 80 characters")
    key = shown.casefold()
    row = s.scalar(select(m.Annotator).where(m.Annotator.name_key == key))
    if row is None:
        row = m.Annotator(name=shown, name_key=key, pseudonym=_pseudonym(s), simulated=simulated, created_at=now_utc())
        s.add(row)
        s.flush()
    elif row.simulated != simulated:
        kind = "a simulated annotator" if row.simulated else "a person"
        raise HfiError(f"{shown!r} is {kind} already: take another name, the two are kept apart")
    return _annotator(row)


def annotator(s: Session, annotator_id: int) -> Annotator:
    row = s.get(m.Annotator, annotator_id)
    if row is None:
        raise NotFound(f"no annotator {annotator_id}")
    return _annotator(row)


def annotators(s: Session) -> list[Annotator]:
    return [_annotator(row) for row in s.scalars(select(m.Annotator).order_by(m.Annotator.id))]


def _annotator(row: m.Annotator) -> Annotator:
    return Annotator(row.id, row.name, row.pseudonym, row.simulated)


def _pseudonym(s: Session) -> str:
    """A-7F3K: random, of letters and digits that are not mistaken for one another."""
    while True:
        name = "A-" + "".join(secrets.choice("23456789ABCDEFGHJKMNPQRSTUVWXYZ") for _ in range(4))
        if s.scalar(select(m.Annotator.id).where(m.Annotator.pseudonym == name)) is None:
            return name


# --- judging ---


def claim_next(s: Session, campaign_id: int, annotator_id: int, now: datetime | None = None) -> Claim | None:
    """The annotator's next task: the one already in hand, in the same order as before, else the first that still needs a judgment.

    A task needs one while fewer than `overlap` others have judged it or hold an unexpired lease on it; nobody gets a task twice.
    'unsure', 'skip' and 'disturbing' do not fill the overlap. None where nothing is left. Needs a writing session.
    """
    now = now or now_utc()
    row = campaign_row(s, campaign_id)
    expired = select(m.Assignment).where(m.Assignment.state == "open", m.Assignment.lease_expires_at <= now)
    for lapsed in s.scalars(expired):
        lapsed.state = "expired"
    s.flush()
    mine = (
        select(m.Assignment)
        .join(m.Task, m.Task.id == m.Assignment.task_id)
        .where(m.Task.campaign_id == campaign_id, m.Assignment.annotator_id == annotator_id)
    )
    held = s.scalar(mine.where(m.Assignment.state == "open").order_by(m.Assignment.opened_at.desc(), m.Assignment.id.desc()))
    if held is not None:
        held.lease_expires_at = now + timedelta(seconds=row.lease_seconds)
        return _claim(s, row, held)
    task = s.scalar(open_tasks(row, annotator_id).limit(1))
    if task is None:
        return None
    lease = now + timedelta(seconds=row.lease_seconds)
    again = s.scalar(mine.where(m.Assignment.task_id == task.id))  # an expired one of one's own, to go on as it was shown
    if again is None:
        positions = list(s.scalars(select(m.TaskImage.position).where(m.TaskImage.task_id == task.id)))
        order = [positions[i] for i in np.random.default_rng([task.id, annotator_id]).permutation(len(positions))]
        again = m.Assignment(
            task_id=task.id,
            annotator_id=annotator_id,
            token=secrets.token_urlsafe(24),
            shown_order=json.dumps(order),
            state="open",
            opened_at=now,
            lease_expires_at=lease,
        )
        s.add(again)
    again.state, again.opened_at, again.lease_expires_at = "open", now, lease
    s.flush()
    return _claim(s, row, again)


def campaign_row(s: Session, campaign_id: int) -> m.Campaign:
    row = s.get(m.Campaign, campaign_id)
    if row is None:
        raise NotFound(f"no campaign {campaign_id}: 'hfi labels status' lists them")
    return row


# made once: building them costs more than the queries
_LATER: Any = aliased(m.Judgment)
_ANSWER: Any = aliased(m.Judgment)
_OTHER: Any = aliased(m.Assignment)

_NO_ANSWER = ("unsure", "skip", "disturbing", "undone")


def open_tasks(row: m.Campaign, annotator_id: int) -> Any:
    """Tasks that this annotator may judge next, in order."""
    answered = (
        select(func.count(_ANSWER.id))
        .where(
            _ANSWER.task_id == m.Task.id,
            _ANSWER.annotator_id != annotator_id,
            _ANSWER.verdict.not_in(_NO_ANSWER),
            _is_last(_ANSWER),
        )
        .scalar_subquery()
    )
    leased = (
        select(func.count())
        .select_from(_OTHER)
        .where(_OTHER.task_id == m.Task.id, _OTHER.state == "open", _OTHER.annotator_id != annotator_id)
        .scalar_subquery()
    )
    done = select(m.Assignment.id).where(
        m.Assignment.task_id == m.Task.id, m.Assignment.annotator_id == annotator_id, m.Assignment.state == "done"
    )
    return (
        select(m.Task).where(m.Task.campaign_id == row.id, ~done.exists(), answered + leased < row.overlap).order_by(m.Task.place)
    )


def _is_last(judgment: Any) -> ColumnElement[bool]:
    """Whether it is the last revision of its (task, annotator)."""
    newer: Any = select(_LATER.id).where(
        _LATER.task_id == judgment.task_id,
        _LATER.annotator_id == judgment.annotator_id,
        _LATER.revision > judgment.revision,
    )
    return ~newer.exists()


def _claim(s: Session, row: m.Campaign, assignment: m.Assignment) -> Claim:
    owner = s.get_one(m.Concept, row.concept_id)
    query = select(m.TaskImage.position, m.Image.id, m.Image.sha256).join(m.Image, m.Image.id == m.TaskImage.image_id)
    by_position = {p: (i, sha) for p, i, sha in s.execute(query.where(m.TaskImage.task_id == assignment.task_id))}
    order: list[int] = json.loads(assignment.shown_order)
    shown = progress(s, row.id, assignment.annotator_id)
    return Claim(
        assignment.id,
        assignment.token,
        row.id,
        owner.slug,
        owner.title,
        owner.guideline,
        row.question,
        tuple(ClaimImage(place, *by_position[p]) for place, p in enumerate(order)),
        assignment.opened_at,
        assignment.lease_expires_at,
        shown.done,
        shown.total,
    )


def claim_of(s: Session, token: str, annotator_id: int) -> Claim:
    """The claim that a token names. NotFound where it is not this annotator's: a token alone opens nothing."""
    assignment = assignment_of(s, token, annotator_id)
    task = s.get_one(m.Task, assignment.task_id)
    return _claim(s, campaign_row(s, task.campaign_id), assignment)


def assignment_of(s: Session, token: str, annotator_id: int) -> m.Assignment:
    found = s.scalar(select(m.Assignment).where(m.Assignment.token == token, m.Assignment.annotator_id == annotator_id))
    if found is None:
        raise NotFound("this task is not yours, or was withdrawn: reload the page")
    return found


def submit(
    s: Session,
    token: str,
    annotator_id: int,
    verdict: str,
    idempotency_token: str,
    *,
    ranking: Sequence[int] | None = None,
    comment: str | None = None,
    elapsed_ms: int | None = None,
    now: datetime | None = None,
) -> Submitted:
    """Takes a judgment of the assignment that `token` names. `ranking`: image ids, most of the concept first, with verdict 'ranked'.

    The same `idempotency_token` again adds nothing. A late answer, after the lease, counts unless somebody else has filled the task
    meanwhile. HfiError for a verdict that the question does not know, a task already judged, or one filled by others.
    """
    before = s.scalar(select(m.Judgment).where(m.Judgment.idempotency_token == idempotency_token))
    if before is not None:
        if before.annotator_id != annotator_id:
            raise HfiError("this answer was given by somebody else: reload the page")
        return Submitted(before.id, True)
    assignment = assignment_of(s, token, annotator_id)
    task = s.get_one(m.Task, assignment.task_id)
    row = campaign_row(s, task.campaign_id)
    allowed = m.BINARY_VERDICTS if row.question == "binary" else m.RANKING_VERDICTS
    if verdict not in allowed:
        raise HfiError(f"unknown verdict {verdict!r}: choose {', '.join(allowed)}")
    if assignment.state == "done":
        raise HfiError("you have judged this already: undo first to change it")
    if assignment.state == "expired" and s.scalar(open_tasks(row, annotator_id).where(m.Task.id == task.id)) is None:
        raise HfiError("your time for this task ran out and others have judged it: go on with the next")
    places = _check_ranking(s, task, assignment, verdict, ranking)
    judgment = m.Judgment(
        task_id=task.id,
        annotator_id=annotator_id,
        assignment_id=assignment.id,
        revision=_next_revision(s, task.id, annotator_id),
        verdict=verdict,
        comment=comment or None,
        elapsed_ms=elapsed_ms,
        idempotency_token=idempotency_token,
        guideline_version=s.get_one(m.Concept, row.concept_id).guideline_version,
        app_version=__version__,
        created_at=now or now_utc(),
    )
    assignment.state = "done"
    s.add(judgment)
    s.flush()
    s.add_all(
        m.RankedImage(judgment_id=judgment.id, image_id=image, rank=rank, shown_position=places[image])
        for rank, image in enumerate(ranking or (), 1)
    )
    s.flush()
    return Submitted(judgment.id, False)


def _check_ranking(
    s: Session, task: m.Task, assignment: m.Assignment, verdict: str, ranking: Sequence[int] | None
) -> dict[int, int]:
    """Where each of the task's images was shown; HfiError unless a ranking orders exactly these images."""
    query = select(m.TaskImage.position, m.TaskImage.image_id).where(m.TaskImage.task_id == task.id)
    by_position = dict(s.execute(query).tuples().all())
    places = {by_position[p]: place for place, p in enumerate(json.loads(assignment.shown_order))}
    if verdict == "ranked" and sorted(ranking or ()) != sorted(places):
        raise HfiError("a ranking orders each of the shown images once: give every image a place")
    if verdict != "ranked" and ranking:
        raise HfiError(f"an order of images goes with verdict 'ranked', not with {verdict!r}")
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
    query = select(m.Judgment).join(m.Task, m.Task.id == m.Judgment.task_id)
    query = query.where(
        m.Task.campaign_id == campaign_id,
        m.Judgment.annotator_id == annotator_id,
        m.Judgment.verdict != "undone",
        _is_last(m.Judgment),
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
    s.flush()
    return _claim(s, row, assignment)


# --- looking ---


def progress(s: Session, campaign_id: int, annotator_id: int | None = None) -> Progress:
    """See `Progress`. For one annotator `total` counts the tasks they did and those they may still do."""
    row = campaign_row(s, campaign_id)
    living = (
        select(m.Judgment.task_id, m.Judgment.verdict)
        .join(m.Task, m.Task.id == m.Judgment.task_id)
        .where(m.Task.campaign_id == campaign_id, m.Judgment.verdict != "undone", _is_last(m.Judgment))
    )
    if annotator_id is not None:
        living = living.where(m.Judgment.annotator_id == annotator_id)
    last = living.subquery()
    counts = s.execute(select(last.c.verdict, func.count()).group_by(last.c.verdict))
    by_verdict: dict[str, int] = dict(counts.tuples().all())
    if annotator_id is not None:
        done = sum(by_verdict.values())
        left = s.scalar(select(func.count()).select_from(open_tasks(row, annotator_id).subquery()))
        return Progress(done, done + int(left or 0), by_verdict, done)
    total = s.scalar(select(func.count()).select_from(m.Task).where(m.Task.campaign_id == campaign_id))
    answers = func.sum(case((last.c.verdict.in_(_NO_ANSWER), 0), else_=1)).label("answers")
    each = list(s.scalars(select(answers).group_by(last.c.task_id)))
    full = sum(n >= row.overlap for n in each)
    return Progress(full, int(total or 0), by_verdict, sum(min(n, row.overlap) for n in each))


def current_judgments(s: Session, concept_slug: str, simulated: bool | None = None) -> list[JudgmentRow]:
    """Living judgments of a concept, oldest first; of people only (False), of simulations only (True) or of both (None)."""
    owner = _concept_row(s, concept_slug)
    j = _ANSWER
    query = (
        select(j, m.Annotator, m.Campaign.name)
        .join(m.Annotator, m.Annotator.id == j.annotator_id)
        .join(m.Task, m.Task.id == j.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .where(m.Campaign.concept_id == owner.id, j.verdict != "undone", _is_last(j))
        .order_by(j.id)
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
                images=tuple(sha for sha, _ in pictures),
                prompts=tuple(prompt for _, prompt in pictures),
                annotator=person.pseudonym,
                simulated=person.simulated,
                campaign=name,
                comment=row.comment,
                elapsed_ms=row.elapsed_ms,
                guideline_version=row.guideline_version,
                app_version=row.app_version,
                created_at=row.created_at,
            )
        )
    return rows


def _images_by_task(s: Session, concept_id: int) -> dict[int, list[tuple[str, str | None]]]:
    query = (
        select(m.Task.id, m.Image.sha256, m.Image.prompt)
        .join(m.TaskImage, m.TaskImage.task_id == m.Task.id)
        .join(m.Image, m.Image.id == m.TaskImage.image_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .where(m.Campaign.concept_id == concept_id)
        .order_by(m.Task.id, m.TaskImage.position)
    )
    return _grouped(s.execute(query))


def _images_by_ranking(s: Session, concept_id: int) -> dict[int, list[tuple[str, str | None]]]:
    query = (
        select(m.RankedImage.judgment_id, m.Image.sha256, m.Image.prompt)
        .join(m.Image, m.Image.id == m.RankedImage.image_id)
        .join(m.Judgment, m.Judgment.id == m.RankedImage.judgment_id)
        .join(m.Task, m.Task.id == m.Judgment.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .where(m.Campaign.concept_id == concept_id)
        .order_by(m.RankedImage.judgment_id, m.RankedImage.rank)
    )
    return _grouped(s.execute(query))


def _grouped(rows: Iterable) -> dict[int, list[tuple[str, str | None]]]:  # type: ignore[type-arg]
    found: dict[int, list[tuple[str, str | None]]] = {}
    for key, sha, prompt in rows:
        found.setdefault(key, []).append((sha, prompt))
    return found
