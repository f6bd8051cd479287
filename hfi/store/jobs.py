"""The table of background jobs; `hfi.jobs` starts and watches the processes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from hfi.errors import HfiError, NotFound
from hfi.store import models as m
from hfi.store.queries import now_utc


@dataclass(frozen=True)
class Job:
    """See `hfi.store.models.Job`. `words`: the command without the program's name; `log`: its path from the workspace's folder."""

    id: int
    words: tuple[str, ...]
    log: str
    pid: int | None
    state: str
    code: int | None
    round_id: int | None
    started_by: int | None
    created_at: datetime
    ended_at: datetime | None

    @property
    def running(self) -> bool:
        return self.state == "running"


def add_job(s: Session, words: Sequence[str], *, started_by: int | None = None, round_id: int | None = None) -> Job:
    """A job that is about to start. HfiError where one runs: they would share the machine's memory and the workspace's files."""
    other = s.scalar(select(m.Job).where(m.Job.state == "running"))
    if other is not None:
        raise HfiError(f"job {other.id} ({' '.join(json.loads(other.command)[:1])}) is running: wait for it, or stop it first")
    row = m.Job(
        command=json.dumps(list(words)), log="", state="running", round_id=round_id, started_by=started_by, created_at=now_utc()
    )  # fmt: skip
    s.add(row)
    s.flush()
    row.log = f"runs/jobs/{row.id}/log.txt"
    s.flush()
    return _job(row)


def set_pid(s: Session, job_id: int, pid: int) -> None:
    _row(s, job_id).pid = pid
    s.flush()


def end_job(s: Session, job_id: int, state: str, code: int | None) -> None:
    """Writes down how a running job ended; of one that has ended nothing changes."""
    row = _row(s, job_id)
    if row.state == "running":
        row.state, row.code, row.ended_at = state, code, now_utc()
        s.flush()


def job(s: Session, job_id: int) -> Job:
    return _job(_row(s, job_id))


def jobs(s: Session, *, limit: int = 30, running: bool = False) -> list[Job]:
    """The last jobs, the latest first; or only those that run."""
    query = select(m.Job).order_by(m.Job.id.desc()).limit(limit)
    return [_job(row) for row in s.scalars(query.where(m.Job.state == "running") if running else query)]


def _row(s: Session, job_id: int) -> m.Job:
    row = s.get(m.Job, job_id)
    if row is None:
        raise NotFound(f"no job {job_id}: reload the page")
    return row


def _job(row: m.Job) -> Job:
    return Job(
        row.id, tuple(json.loads(row.command)), row.log, row.pid, row.state, row.code, row.round_id, row.started_by, row.created_at,
        row.ended_at,
    )  # fmt: skip
