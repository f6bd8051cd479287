"""How much there is to do and who does it, in a few counts: what the server's metrics say of the database."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine, case, func, select
from sqlalchemy.orm import Session

from hfi.store import models as m

ACTIVE = timedelta(minutes=5)


@dataclass(frozen=True)
class Open:
    """Of an open campaign: `left` tasks that want more answers, `free` ones that can be given out now, `tasks` of either kind or full;
    gold ones in none of them."""

    tasks: int
    left: int
    free: int


@dataclass(frozen=True)
class Pulse:
    """`campaigns` by number; `leases`: tasks in people's hands; `active`: people who judged within the last five minutes; `jobs` by
    state."""

    campaigns: Mapping[int, Open]
    leases: int
    active: int
    jobs: Mapping[str, int]


def pulse(s: Session, now: datetime) -> Pulse:
    """Reads every task of the open campaigns: some milliseconds for 20,000."""
    left, free = (func.sum(case((of, 1), else_=0)) for of in (m.Task.answers < m.Task.wanted, m.Task.free > 0))
    query = (
        select(m.Task.campaign_id, func.count(), left, free)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .where(m.Campaign.state == "open", m.Task.kind != "gold")
        .group_by(m.Task.campaign_id)
    )
    campaigns = {number: Open(int(tasks), int(wants), int(can)) for number, tasks, wants, can in s.execute(query)}
    leases = s.scalar(select(func.count()).where(m.Assignment.state == "open")) or 0
    recent = m.Shift.last_at >= now - ACTIVE
    active = s.scalar(select(func.count(m.Shift.annotator_id.distinct())).where(recent)) or 0
    jobs = dict(s.execute(select(m.Job.state, func.count()).group_by(m.Job.state)).tuples().all())
    return Pulse(campaigns, leases, active, {state: jobs.get(state, 0) for state in m.JOB_STATES})


def pool(engine: Engine) -> dict[str, int]:
    """Connections to the database: in use, and kept for the next who asks. Empty for a pool that does not count."""
    counts = {"in_use": "checkedout", "idle": "checkedin"}
    return {state: getattr(engine.pool, name)() for state, name in counts.items() if hasattr(engine.pool, name)}
