"""Campaigns: a question about a set of images, who is asked, and how often."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from sqlalchemy import bindparam, func, select, text
from sqlalchemy.orm import Session

from hfi.errors import HfiError, NotFound
from hfi.store import models as m
from hfi.store.bulk import append
from hfi.store.locks import hold_person
from hfi.store.queries import concept_row, now_utc

MOST_RANKED = 60  # images of a task: their order is kept in 255 characters


@dataclass(frozen=True)
class Campaign:
    """See `hfi.store.models.Campaign`. `tasks` counts those that are to be judged: gold tasks are not among them."""

    id: int
    concept: str
    name: str
    question: str
    overlap: int
    lease_seconds: int
    tasks: int
    extra_votes: int = 0
    ties: bool = False
    gold_every: int = 0
    access: str = "all"
    state: str = "open"


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a campaign asks: `overlap` people each, `extra_votes` more where they differ, one gold task in about `gold_every` (0: none).

    `compare` asks which of two images of one prompt and seed shows more of the concept, whatever the concept's own question is.
    """

    overlap: int = 1
    extra_votes: int = 0
    ties: bool = False
    gold_every: int = 0
    access: Literal["all", "named"] = "all"
    lease_seconds: int = 1800
    group_size: int = 5
    compare: bool = False
    gold: Mapping[int, str] = field(default_factory=dict)  # image id -> the known answer
    benign: Sequence[int] = ()  # image ids


def ensure_campaign(
    s: Session, concept_slug: str, name: str, *, image_ids: Sequence[int], seed: int = 0, asking: Asking = Asking()
) -> Campaign:
    """The concept's campaign of this name, made where there is none, with a task for each image that it has none for yet.

    New tasks come in an order shuffled by `seed`, after those that are there; benign images lie evenly between them. A ranking
    campaign groups `group_size` images a task; a rest smaller than that waits for more images. A comparing campaign takes its
    images in pairs, as they are given. HfiError where the campaign exists with another overlap, and for a gold answer that its
    question does not know.
    """
    if asking.group_size > MOST_RANKED:
        raise HfiError(f"rankings of {asking.group_size} images: give {MOST_RANKED} at most")
    row = _row(s, concept_slug, name, asking)
    held = select(m.TaskImage.image_id).join(m.Task).where(m.Task.campaign_id == row.id)
    known = set(s.scalars(held))
    last = s.scalar(select(func.max(m.Task.place)).where(m.Task.campaign_id == row.id))
    place = 0 if last is None else last + 1
    rng = np.random.default_rng([seed, place])
    gold = {i: verdict for i, verdict in asking.gold.items() if i not in known}
    benign = [i for i in dict.fromkeys(asking.benign) if i not in known and i not in gold]
    known |= gold.keys() | set(benign)
    fresh = [i for i in dict.fromkeys(image_ids) if i not in known]
    size = {"binary": 1, "compare": 2}.get(row.question, asking.group_size)
    if row.question == "compare":
        groups = [fresh[i : i + 2] for i in range(0, len(fresh) - 1, 2)]
        groups = [groups[i] for i in rng.permutation(len(groups))]
    else:
        fresh = [fresh[i] for i in rng.permutation(len(fresh))]
        groups = [fresh[i : i + size] for i in range(0, len(fresh) - size + 1, size)]
    kinds = [(group, "item") for group in groups]
    harmless = [benign[i] for i in rng.permutation(len(benign))] if size == 1 else []
    for n, i in enumerate(harmless):  # evenly, from the back so that earlier places stay right
        at = round((len(harmless) - n - 0.5) / len(harmless) * len(groups))
        kinds.insert(at, ([i], "benign"))
    known_answers = m.BINARY_VERDICTS[:2] if size == 1 else ()
    if strange := [verdict for verdict in gold.values() if verdict not in known_answers]:
        raise HfiError(f"{strange[0]!r} is no known answer: a gold image of a binary question shows the concept or is clean")
    tasks = _add_tasks(s, row, place, [*kinds, *(([i], "gold") for i in gold)])
    append(s, m.Gold, ("task_id", "verdict"), list(zip(tasks[len(kinds) :], gold.values(), strict=True)))
    return campaign_of(s, row)


def _row(s: Session, concept_slug: str, name: str, ask: Asking) -> m.Campaign:
    owner = concept_row(s, concept_slug)
    question = "compare" if ask.compare else owner.question
    row = s.scalar(select(m.Campaign).where(m.Campaign.concept_id == owner.id, m.Campaign.name == name))
    if row is None:
        row = m.Campaign(
            concept_id=owner.id,
            name=name,
            question=question,
            overlap=ask.overlap,
            extra_votes=ask.extra_votes,
            ties=ask.ties,
            gold_every=ask.gold_every,
            access=ask.access,
            lease_seconds=ask.lease_seconds,
            created_at=now_utc(),
        )
        s.add(row)
        s.flush()
    elif row.overlap != ask.overlap:
        raise HfiError(f"campaign {name!r} asks {row.overlap} people for each image, not {ask.overlap}: give it another name")
    elif row.question != question:
        raise HfiError(f"campaign {name!r} asks {row.question} questions, not {question}: give it another name")
    return row


def _add_tasks(s: Session, row: m.Campaign, first: int, kinds: Sequence[tuple[Sequence[int], str]]) -> list[int]:
    """A task for each (images, kind), at the places from `first` on; gives their numbers. In bulk, as everybody else who writes waits
    meanwhile."""
    wanted = {"item": row.overlap, "benign": 1, "gold": 0}
    made = [(row.id, place, kind, wanted[kind], wanted[kind], 0, 0) for place, (_, kind) in enumerate(kinds, first)]
    append(s, m.Task, ("campaign_id", "place", "kind", "wanted", "free", "answers", "held"), made)
    tasks = list(s.scalars(select(m.Task.id).where(m.Task.campaign_id == row.id, m.Task.place >= first).order_by(m.Task.place)))
    shown = [(task, i, p) for task, (images, _) in zip(tasks, kinds, strict=True) for p, i in enumerate(images)]
    append(s, m.TaskImage, ("task_id", "image_id", "position"), shown)
    return tasks


def campaigns(s: Session, concept_slug: str | None = None) -> list[Campaign]:
    query = select(m.Campaign).join(m.Concept).order_by(m.Campaign.id)
    if concept_slug is not None:
        query = query.where(m.Concept.slug == concept_slug)
    return [campaign_of(s, row) for row in s.scalars(query)]


def campaign(s: Session, campaign_id: int) -> Campaign:
    return campaign_of(s, campaign_row(s, campaign_id))


def campaign_row(s: Session, campaign_id: int) -> m.Campaign:
    row = s.get(m.Campaign, campaign_id)
    if row is None:
        raise NotFound(f"no campaign {campaign_id}: 'hfi labels status' lists them")
    return row


def campaign_of(s: Session, row: m.Campaign) -> Campaign:
    slug = s.scalar(select(m.Concept.slug).where(m.Concept.id == row.concept_id))
    return Campaign(
        row.id, str(slug), row.name, row.question, row.overlap, row.lease_seconds, _tasks(s, row.id),
        row.extra_votes, row.ties, row.gold_every, row.access, row.state,
    )  # fmt: skip


def _tasks(s: Session, campaign_id: int) -> int:
    """How many tasks a campaign has, gold left out; no counting, as every page asks: places are 0, 1, 2, ... without a gap."""
    places, gold = s.connection().execute(_PLACES, {"campaign": campaign_id}).one()
    return 0 if places is None else int(places) + 1 - int(gold)


_PLACES = select(
    select(func.max(m.Task.place)).where(m.Task.campaign_id == bindparam("campaign")).scalar_subquery(),
    select(func.count(m.Task.id)).where(m.Task.campaign_id == bindparam("campaign"), text("kind = 'gold'")).scalar_subquery(),
)


def set_state(s: Session, campaign_id: int, state: Literal["open", "closed"]) -> None:
    """A closed campaign gives out no task; what is in people's hands may still be sent."""
    campaign_row(s, campaign_id).state = state
    s.flush()


def set_gold_every(s: Session, campaign_id: int, every: int) -> None:
    """About one task in `every` is a gold task from now on; 0: none."""
    if every < 0:
        raise HfiError(f"a gold task in every {every}: give 0 or more")
    campaign_row(s, campaign_id).gold_every = every
    s.flush()


# --- who takes part ---


def open_campaigns(s: Session, annotator_id: int) -> list[Campaign]:
    """Campaigns that this annotator may judge in, the latest first."""
    mine = select(m.Participant.campaign_id).where(m.Participant.annotator_id == annotator_id)
    query = select(m.Campaign).where(m.Campaign.state == "open", (m.Campaign.access == "all") | m.Campaign.id.in_(mine))
    return [campaign_of(s, row) for row in s.scalars(query.order_by(m.Campaign.id.desc()))]


def participant(s: Session, row: m.Campaign, annotator_id: int) -> m.Participant:
    """This annotator's part in the campaign, made where everybody may take part. NotFound where they were not named."""
    found = s.scalar(select(m.Participant).where(m.Participant.campaign_id == row.id, m.Participant.annotator_id == annotator_id))
    if found is None:
        if row.access == "named":
            raise NotFound("this campaign is not yours: ask who runs it to add you")
        found = m.Participant(campaign_id=row.id, annotator_id=annotator_id, done=0, cursor=-1)
        s.add(found)
        s.flush()
    return found


def done_by(s: Session, annotator_id: int) -> dict[int, int]:
    """How many tasks this annotator has done, by campaign."""
    mine = select(m.Participant.campaign_id, m.Participant.done).where(m.Participant.annotator_id == annotator_id)
    return dict(s.execute(mine).tuples().all())


def name_participant(s: Session, campaign_id: int, annotator_id: int) -> None:
    """Lets somebody into a campaign of named people; again changes nothing."""
    row = campaign_row(s, campaign_id)
    hold_person(s, annotator_id)
    there = select(m.Participant.id).where(m.Participant.campaign_id == row.id, m.Participant.annotator_id == annotator_id)
    if s.scalar(there) is None:
        s.add(m.Participant(campaign_id=row.id, annotator_id=annotator_id, done=0, cursor=-1))
        s.flush()
