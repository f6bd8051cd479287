"""A new campaign, from the values of a form or of a command line: looked at before it is made, and made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from hfi.errors import HfiError, NotFound, UsageError
from hfi.scores import read_scores
from hfi.store import campaigns, choosing, overview, queries, rounds
from hfi.store.campaigns import Asking, Campaign
from hfi.store.choosing import Prepared, Recipe, Wanted
from hfi.store.rounds import Round
from hfi.store.session import Session
from hfi.workspace import Workspace

GOLD_EVERY = 20
MAX_NAME = 80


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A campaign that is to be. `reward`: whose scores, where the recipe chooses by them; `people`: names or pseudonyms of those who
    may judge, where `access` is 'named'; `gold_every`: None for `GOLD_EVERY` where there is gold."""

    name: str
    recipe: Recipe
    reward: str | None = None
    overlap: int = 3
    extra_votes: int = 0
    ties: bool = False
    gold_every: int | None = None
    access: Literal["all", "named"] = "all"
    people: tuple[str, ...] = ()
    lease_minutes: float = 30
    group_size: int = 5


@dataclass(frozen=True)
class Preview:
    """What a plan would make: `tasks` beside the gold ones, which want `judgments` answers."""

    prepared: Prepared
    question: str
    tasks: int
    judgments: int


def preview(space: Workspace, s: Session, plan: Plan) -> Preview:
    """UsageError for a plan that contradicts itself, HfiError where nothing fits or the name is taken."""
    _check(s, plan)
    recipe = plan.recipe
    scores = read_scores(space, plan.reward) if recipe.strategy == "uncertain" and plan.reward else None
    prepared = choosing.prepare(s, recipe, scores)
    question = "compare" if recipe.compare else queries.concept(s, recipe.concept).question
    items = choosing.tasks_of(question, len(prepared.image_ids), plan.group_size)
    if not items:
        raise HfiError(f"{len(prepared.image_ids)} images are too few for ranking questions about {plan.group_size}")
    return Preview(prepared, question, items + len(prepared.benign), items * plan.overlap + len(prepared.benign))


def make(space: Workspace, s: Session, plan: Plan) -> Campaign:
    """Makes it. Needs a writing session."""
    people = [_person(s, name) for name in plan.people]
    prepared = preview(space, s, plan).prepared
    asking = Asking(
        overlap=plan.overlap,
        extra_votes=plan.extra_votes,
        ties=plan.ties,
        gold_every=(GOLD_EVERY if plan.gold_every is None else plan.gold_every) if prepared.gold else 0,
        access=plan.access,
        lease_seconds=round(60 * plan.lease_minutes),
        group_size=plan.group_size,
        compare=plan.recipe.compare,
        gold=prepared.gold,
        benign=prepared.benign,
    )
    made = campaigns.ensure_campaign(
        s, plan.recipe.concept, plan.name.strip(), image_ids=prepared.image_ids, seed=plan.recipe.seed, asking=asking
    )
    for person in people:
        campaigns.name_participant(s, made.id, person)
    return made


def round_campaign(space: Workspace, s: Session, concept: str, turn: Round) -> Campaign:
    """The campaign of a round's own images, asked as the one of the round before it. HfiError where the round has no images yet, or has
    its campaign."""
    if turn.campaign_id is not None:
        raise HfiError(f"round {turn.number} has its campaign: {turn.campaign}")
    if turn.images_run is None:
        raise HfiError(f"round {turn.number} has no images yet: generate them first")
    before = [r.campaign_id for r in rounds.rounds(s, concept) if r.number < turn.number and r.campaign_id is not None]
    recipe = Recipe(concept=concept, wanted=Wanted(run=turn.images_run))
    plan = Plan(name=f"round {turn.number}", recipe=recipe)
    if before:
        last = campaigns.campaign(s, before[-1])
        plan = replace(
            plan, overlap=last.overlap, extra_votes=last.extra_votes, ties=last.ties, lease_minutes=last.lease_seconds / 60
        )
    made = make(space, s, plan)
    rounds.note(s, turn.id, campaign_id=made.id)
    return made


def add_gold(s: Session, campaign: Campaign, answers: Mapping[int, str], every: int | None = None) -> int:
    """Adds known answers to a campaign that is there; how many there were new. Images that people are asked about there stay what
    they are."""
    before = _gold_tasks(s, campaign)
    asking = Asking(overlap=campaign.overlap, compare=campaign.question == "compare", gold=answers)
    campaigns.ensure_campaign(s, campaign.concept, campaign.name, image_ids=(), asking=asking)
    if every is not None or not campaign.gold_every:
        campaigns.set_gold_every(s, campaign.id, GOLD_EVERY if every is None else every)
    return _gold_tasks(s, campaign) - before


def _gold_tasks(s: Session, campaign: Campaign) -> int:
    return overview.fillings(s, campaign.id)[0].gold


def _check(s: Session, plan: Plan) -> None:
    name = plan.name.strip()
    mistakes = []
    if not name:
        mistakes.append(f"the campaign has no name: give it one, of at most {MAX_NAME} characters")
    elif len(name) > MAX_NAME or not name.isprintable():
        mistakes.append(f"the name is {name[:20]!r}: give 1 to {MAX_NAME} characters")
    for value, label, low in (
        (plan.overlap, "overlap", 1),
        (plan.extra_votes, "extra votes", 0),
        (plan.gold_every or 0, "gold in every", 0),
        (plan.group_size, "images to rank at once", 2),
    ):
        if value < low:
            mistakes.append(f"{label} is {value}: give {low} or more")
    if not 1 <= plan.lease_minutes <= 24 * 60:
        mistakes.append(f"a task is kept for {plan.lease_minutes:g} minutes: give 1 to 1440")
    if plan.access == "named" and not plan.people:
        mistakes.append("only named people may judge, and nobody is named: name them, or let everybody in")
    if mistakes:
        raise UsageError("; ".join(mistakes))
    if any(c.name == name for c in campaigns.campaigns(s, plan.recipe.concept)):
        raise HfiError(f"there is a campaign {name!r} of {plan.recipe.concept}: give another name")


def _person(s: Session, name: str) -> int:
    wanted = name.strip().casefold()
    for person in queries.annotators(s):
        if wanted in (person.name.casefold(), person.pseudonym.casefold()) and not person.simulated:
            return person.id
    raise NotFound(f"nobody is named {name!r} here: people become known when they first come in, or with 'hfi user add'")


def erasure_names(space: Workspace, s: Session) -> dict[str, str]:
    """What to call the erasures that the workspace's images were made with, by identity: the name that the run was given."""
    found = {}
    for identity, run in choosing.sources(s).erasures.items():
        name = None
        if run is not None:
            try:
                config = json.loads((space.runs / "generate" / run / "config.json").read_text(encoding="utf-8"))
                name = config.get("erasure")
            except (OSError, ValueError):
                pass  # images of a run that was removed
        found[identity] = str(name) if name else identity[:12]
    return found


def find_erasure(space: Workspace, s: Session, name: str) -> str:
    """The identity of an erasure that images were made with, by its name or the start of its identity. NotFound for none or several."""
    names = erasure_names(space, s)
    fits = [i for i, called in names.items() if called == name] or [i for i in names if len(name) >= 6 and i.startswith(name)]
    if len(fits) != 1:
        known = ", ".join(names.values()) or "none"
        why = f"{len(fits)} erasures are" if fits else "no image was made with an erasure"
        raise NotFound(f"{why} named {name!r} (known: {known}): make images with 'hfi generate --erasure'")
    return fits[0]
