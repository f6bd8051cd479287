"""Judgments that were given somewhere else: another workspace, another tool.

They go into a campaign of their own, 'imported', past leases and overlap: they exist already, nobody is asked for them, so it is
closed. A manager's decision stays one: it stands in the place of the votes on its images here as it did there.
"""

import hashlib
import json
import re
import secrets
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from hfi import __version__
from hfi.errors import HfiError
from hfi.store import campaigns, queries
from hfi.store import models as m
from hfi.store.campaigns import participant
from hfi.store.judging import recount
from hfi.store.locks import hold_people

CAMPAIGN = "imported"
_JOINERS = "\u200c\u200d"  # zero width, and part of how Persian and the languages of India are written
_PSEUDONYM = re.compile(r"A-[2-9A-HJKMNP-Z]{4}")


@dataclass(frozen=True)
class Given:
    """One judgment from outside. `annotator` is a pseudonym or a name; `images` are sha256s, of a ranking most of the concept
    first, with `ranks` where some of them tie; `time` None where it is not known. `adjudicated`: a manager's decision."""

    annotator: str
    simulated: bool
    verdict: str
    images: tuple[str, ...]
    time: datetime | None = None
    guideline_version: int = 1
    comment: str | None = None
    elapsed_ms: int | None = None
    ranks: tuple[int, ...] | None = None
    region: tuple[float, ...] | None = None
    adjudicated: bool = False


@dataclass(frozen=True)
class Added:
    """How many judgments were added, how many were there already, and how many are of people who withdrew here."""

    added: int
    known: int
    withdrawn: int


def add_judgments(s: Session, concept_slug: str, given: Sequence[Given]) -> Added:
    """Adds those that are not there yet; the same ones again add nothing.

    Of two by one annotator on the same images the later counts. The images must be there. HfiError for a verdict that the
    question does not know, for a name that is none, and where a person and a simulation would share a name.
    """
    campaigns.ensure_campaign(s, concept_slug, CAMPAIGN, image_ids=())
    owner = s.scalars(select(m.Concept).where(m.Concept.slug == concept_slug)).one()
    campaign = s.scalars(select(m.Campaign).where(m.Campaign.concept_id == owner.id, m.Campaign.name == CAMPAIGN)).one()
    campaign.state = "closed"
    tasks = {shas: task_id for task_id, shas in _pictures(s, m.Campaign.id == campaign.id).items()}
    there = _there(s, owner.id)
    ids = {sha: i for i, sha in s.execute(select(m.Image.id, m.Image.sha256).order_by(m.Image.id.desc()))}
    tokens = set(s.scalars(select(m.Judgment.idempotency_token).where(m.Judgment.idempotency_token.startswith("import-"))))
    people = {who: _annotator(s, *who) for who in dict.fromkeys((item.annotator, item.simulated) for item in given)}
    hold_people(s, (person.id for person in people.values()))
    gone = set(s.scalars(select(m.Annotator.id).where(m.Annotator.withdrawn_at.is_not(None))))
    last = _last(s, campaign.id)
    changed: set[int] = set()
    added = withdrawn = 0
    for item in given:
        _check(owner, item)
        person = people[item.annotator, item.simulated]
        images = frozenset(item.images)
        token = _token(concept_slug, replace(item, annotator=person.pseudonym))
        if person.id in gone:
            withdrawn += 1
            continue
        if (person.id, images, item.verdict, item.time, item.adjudicated) in there or token in tokens:
            continue
        if images not in tasks:
            tasks[images] = _new_task(s, campaign.id, [ids[sha] for sha in item.images])
        task_id = tasks[images]
        if item.adjudicated:
            s.add(_decision(task_id, person.id, item))
            there |= {(person.id, images, item.verdict, time, True) for time in (item.time, None)}
        else:
            before = last.get((task_id, person.id))
            if before is not None and item.time is not None and before.created_at > item.time:
                continue
            last[task_id, person.id] = _add(s, campaign, task_id, person.id, item, token, before)
            tokens.add(token)
            changed.add(task_id)
        added += 1
    recount(s, changed)
    return Added(added, len(given) - added - withdrawn, withdrawn)


def _check(owner: m.Concept, item: Given) -> None:
    allowed = m.BINARY_VERDICTS if owner.question == "binary" else m.RANKING_VERDICTS
    if item.verdict not in allowed:
        raise HfiError(f"unknown verdict {item.verdict!r}: a {owner.question} question knows {', '.join(allowed)}")
    if len(set(item.images)) != len(item.images) or (len(item.images) == 1) != (owner.question == "binary"):
        wanted = "one image" if owner.question == "binary" else "several different images"
        raise HfiError(f"a judgment of {len(item.images)} images: a {owner.question} question is about {wanted}")
    if item.adjudicated and (item.simulated or item.verdict == "ranked"):
        what = "a simulated annotator" if item.simulated else "an order of images"
        raise HfiError(f"{what} cannot stand for a manager's decision: leave the column adjudicated empty")


def _last(s: Session, campaign_id: int) -> dict[tuple[int, int], m.Judgment]:
    """The last revision of each (task, annotator) of the campaign."""
    query = select(m.Judgment).join(m.Task, m.Task.id == m.Judgment.task_id).where(m.Task.campaign_id == campaign_id)
    return {(j.task_id, j.annotator_id): j for j in s.scalars(query.order_by(m.Judgment.revision))}


def _decision(task_id: int, annotator_id: int, item: Given) -> m.Adjudication:
    when = item.time or queries.now_utc()
    return m.Adjudication(task_id=task_id, annotator_id=annotator_id, verdict=item.verdict, note=item.comment, created_at=when)


def _add(
    s: Session, campaign: m.Campaign, task_id: int, annotator_id: int, item: Given, token: str, before: m.Judgment | None
) -> m.Judgment:
    """Appends to the annotator's revisions of the task."""
    now = queries.now_utc()
    assignment = s.scalar(select(m.Assignment).where(m.Assignment.task_id == task_id, m.Assignment.annotator_id == annotator_id))
    if assignment is None:
        assignment = m.Assignment(
            task_id=task_id,
            annotator_id=annotator_id,
            token=secrets.token_urlsafe(24),
            shown_order=json.dumps(list(range(len(item.images)))),
            state="open",
            opened_at=now,
            lease_expires_at=now,
        )
        s.add(assignment)
    if assignment.state != "done":
        participant(s, campaign, annotator_id).done += 1
    assignment.state = "done"
    s.flush()
    judgment = m.Judgment(
        task_id=task_id,
        annotator_id=annotator_id,
        assignment_id=assignment.id,
        revision=before.revision + 1 if before else 1,
        verdict=item.verdict,
        comment=item.comment,
        region=json.dumps(item.region) if item.region else None,
        elapsed_ms=item.elapsed_ms,
        idempotency_token=token,
        guideline_version=item.guideline_version,
        app_version=__version__,
        created_at=item.time or now,
    )
    s.add(judgment)
    if item.verdict == "ranked":
        s.flush()
        held = select(m.Image.sha256, m.Image.id, m.TaskImage.position).join(m.TaskImage, m.TaskImage.image_id == m.Image.id)
        places = {sha: (i, place) for sha, i, place in s.execute(held.where(m.TaskImage.task_id == task_id))}
        order = json.loads(assignment.shown_order)
        for rank, sha in zip(item.ranks or range(1, len(item.images) + 1), item.images, strict=True):
            i, place = places[sha]
            s.add(m.RankedImage(judgment_id=judgment.id, image_id=i, rank=rank, shown_position=order.index(place)))
    return judgment


def _annotator(s: Session, name: str, simulated: bool) -> queries.Annotator:
    """The annotator of this pseudonym, or of this name. Another workspace's pseudonym is kept: it names the same annotator there,
    here, and in what is exported from here. HfiError for a name with characters that nobody can see: another person's name could hide
    behind them."""
    shown = unicodedata.normalize("NFKC", name)
    if not all(c.isprintable() or c.isspace() or c in _JOINERS for c in shown):
        raise HfiError(f"{name[:40]!r} cannot name an annotator: it holds characters that cannot be seen; leave them out")
    row = s.scalar(select(m.Annotator).where(m.Annotator.pseudonym == name))
    if row is None:
        found = queries.ensure_annotator(s, name, simulated)
        if _PSEUDONYM.fullmatch(name):
            row = s.get_one(m.Annotator, found.id)
            row.pseudonym = name
            s.flush()
            return replace(found, pseudonym=name)
        return found
    if row.simulated != simulated:
        raise HfiError(f"{name!r} is {'simulated' if row.simulated else 'a person'} here and not in the file: rename one of them")
    return queries.Annotator(row.id, row.name, row.pseudonym, row.simulated)


def _token(concept_slug: str, item: Given) -> str:
    """The same for ever, so fields of later versions are left out where they say nothing."""
    values = {**asdict(item), "images": list(item.images), "time": item.time and item.time.isoformat(), "concept": concept_slug}
    for name in ("ranks", "region", "adjudicated"):
        if not values[name]:
            del values[name]
    return "import-" + hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _there(s: Session, concept_id: int) -> set[tuple[int, frozenset[str], str, datetime | None, bool]]:
    """Who said what of which images when, in any campaign of the concept, and whether as a decision. A decision is there without its
    time too, since nothing else would tell one without a time from the next."""
    pictures = _pictures(s, m.Campaign.concept_id == concept_id)
    found: set[tuple[int, frozenset[str], str, datetime | None, bool]] = set()
    for table in (m.Judgment, m.Adjudication):
        said = select(table.annotator_id, table.task_id, table.verdict, table.created_at)
        rows = s.execute(
            said.join(m.Task, m.Task.id == table.task_id).join(m.Campaign).where(m.Campaign.concept_id == concept_id)
        )
        found |= {(a, pictures[t], v, _milliseconds(time), table is m.Adjudication) for a, t, v, time in rows}
    return found | {(a, images, v, None, True) for a, images, v, _, decided in found if decided}


def _pictures(s: Session, which: ColumnElement[bool]) -> dict[int, frozenset[str]]:
    """Task id -> sha256 of its images."""
    query = select(m.TaskImage.task_id, m.Image.sha256).join(m.Image, m.Image.id == m.TaskImage.image_id)
    query = query.join(m.Task, m.Task.id == m.TaskImage.task_id).join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
    found: dict[int, set[str]] = {}
    for task_id, sha in s.execute(query.where(which)):
        found.setdefault(task_id, set()).add(sha)
    return {task_id: frozenset(shas) for task_id, shas in found.items()}


def _milliseconds(time: datetime) -> datetime:
    """As far as an export keeps it."""
    return time.replace(microsecond=time.microsecond // 1000 * 1000)


def _new_task(s: Session, campaign_id: int, images: Iterable[int]) -> int:
    last = s.scalar(select(func.max(m.Task.place)).where(m.Task.campaign_id == campaign_id))
    task = m.Task(campaign_id=campaign_id, place=0 if last is None else last + 1)
    s.add(task)
    s.flush()
    # not as ranked: whoever judges next must not read it off the order
    s.add_all(m.TaskImage(task_id=task.id, image_id=image, position=place) for place, image in enumerate(sorted(images)))
    s.flush()
    return task.id
