"""Rounds: images, their campaign, and what was made of its judgments, turn after turn, until little of the concept is left to see."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from hfi.errors import NotFound
from hfi.store import models as m
from hfi.store.campaigns import campaign_row
from hfi.store.overview import decisions, task_votes
from hfi.store.queries import concept_row, now_utc

PARTS = ("campaign_id", "images_run", "reward", "token", "erasure", "evaluation")  # in the order in which they come about


@dataclass(frozen=True)
class Round:
    """One turn. `shows` of `judged` images show the concept, by a manager's decision or by most people; images on which people are
    evenly divided are not among them. `simulated_shows` and `simulated_judged`: the same by simulated annotators."""

    id: int
    concept: str
    number: int
    campaign_id: int | None
    campaign: str | None
    images_run: str | None
    reward: str | None
    token: str | None
    erasure: str | None
    evaluation: str | None
    created_at: datetime
    shows: int = 0
    judged: int = 0
    simulated_shows: int = 0
    simulated_judged: int = 0


def start_round(s: Session, concept_slug: str, *, images_run: str | None = None, campaign_id: int | None = None) -> Round:
    """The concept's next round. NotFound for an unknown concept or campaign."""
    owner = concept_row(s, concept_slug)
    if campaign_id is not None:
        campaign_row(s, campaign_id)
    last = s.scalar(select(func.max(m.Round.number)).where(m.Round.concept_id == owner.id)) or 0
    row = m.Round(
        concept_id=owner.id, number=last + 1, images_run=images_run, campaign_id=campaign_id, created_at=now_utc()
    )  # fmt: skip
    s.add(row)
    s.flush()
    return _round(s, row, owner.slug)


def note(s: Session, round_id: int, **made: str | int | None) -> None:
    """Keeps what a round came to, by the names in `PARTS`. NotFound for no round; a ValueError for another name."""
    row = s.get(m.Round, round_id)
    if row is None:
        raise NotFound(f"no round {round_id}: reload the page")
    if unknown := made.keys() - set(PARTS):
        raise ValueError(f"a round has no {', '.join(sorted(unknown))}")
    if made.get("campaign_id") is not None:
        campaign_row(s, int(made["campaign_id"] or 0))
    for name, value in made.items():
        setattr(row, name, value)
    s.flush()


def rounds(s: Session, concept_slug: str) -> list[Round]:
    """The concept's rounds, the first one first."""
    owner = concept_row(s, concept_slug)
    found = s.scalars(select(m.Round).where(m.Round.concept_id == owner.id).order_by(m.Round.number))
    return [_round(s, row, owner.slug) for row in found]


def _round(s: Session, row: m.Round, slug: str) -> Round:
    campaign = campaign_row(s, row.campaign_id) if row.campaign_id is not None else None
    counts = [0, 0, 0, 0]
    if campaign is not None and campaign.question == "binary":
        decided = decisions(s, campaign.id)
        counts = [
            *shown_of_judged(task_votes(s, campaign.id, False), decided),
            *shown_of_judged(task_votes(s, campaign.id, True), {}),
        ]
    return Round(
        row.id, slug, row.number, row.campaign_id, campaign.name if campaign else None, row.images_run, row.reward, row.token,
        row.erasure, row.evaluation, row.created_at, *counts,
    )  # fmt: skip


def shown_of_judged(votes: Mapping[int, tuple[int, int]], decided: Mapping[int, str]) -> tuple[int, int]:
    """(images that show the concept, images with an answer): by decision, else by most votes; even votes are no answer."""
    answers = [
        decided.get(task) or ("shows" if yes > no else "clean" if no > yes else "unsure") for task, (yes, no) in votes.items()
    ]
    return answers.count("shows"), len(answers) - answers.count("unsure")
