"""Who waits for whom where people judge side by side, on PostgreSQL. On SQLite there is one writer, and nothing is done here.

Two kinds of rows are locked, always in this order:

1. the annotator's own, by whoever changes their assignments, parts in campaigns and shifts: two tabs of one person take turns;
2. a task's, by whoever counts its answers anew: of two at once, the second one counts the first one's answer too.

A transaction of judging waits for one annotator, the one who judges, and then for one task, the one that is answered. Whatever else it
needs, the next task and the leases of others that have run out, it takes only where nobody else has it (SKIP LOCKED). So whoever is
waited for waits for nobody, and there is no deadlock. What writes alone (`hfi.store.session.writing`) may wait for several of a kind:
annotators first, each kind in the order of their numbers.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from hfi.store import models as m

_A: Any = m.Assignment.__table__
_P: Any = m.Annotator.__table__
_T: Any = m.Task.__table__
# weaker than FOR UPDATE: rows that refer to this one may be added meanwhile
_PERSON, _TASK = (select(t.c.id).where(t.c.id == bindparam("which")).with_for_update(key_share=True) for t in (_P, _T))
_TASKS = select(_T.c.id).where(_T.c.id.in_(bindparam("which", expanding=True))).order_by(_T.c.id).with_for_update(key_share=True)
_OF_TOKEN = (  # the first of the two kinds is locked first
    select(_T.c.id)
    .select_from(_A.join(_P, _P.c.id == _A.c.annotator_id).join(_T, _T.c.id == _A.c.task_id))
    .where(_A.c.token == bindparam("token"), _A.c.annotator_id == bindparam("person"))
    .with_for_update(of=(_P, _T), key_share=True)
)
_FREE_TASK = select(_T.c.id).where(_T.c.id == bindparam("which")).with_for_update(key_share=True, skip_locked=True)


def side_by_side(s: Session) -> bool:
    """Whether others may write at the same time."""
    return s.get_bind().dialect.name != "sqlite"


def hold_person(s: Session, annotator_id: int) -> None:
    """Until the transaction ends nobody else changes what this annotator has in hand."""
    _hold(s, "people", _PERSON, annotator_id)


def hold_people(s: Session, annotator_ids: Iterable[int]) -> None:
    for number in sorted(set(annotator_ids)):
        hold_person(s, number)


def hold_task(s: Session, task_id: int) -> None:
    """Until the transaction ends nobody else counts this task's answers, or gives it out."""
    _hold(s, "tasks", _TASK, task_id)


def hold_person_and_task(s: Session, annotator_id: int, token: str) -> None:
    """`hold_person`, then `hold_task` of the one that this annotator's `token` names, in one statement."""
    if side_by_side(s):
        number = s.connection().execute(_OF_TOKEN, {"token": token, "person": annotator_id}).scalar_one_or_none()
        if number is not None:
            _held(s, "people").add(annotator_id)
            note_task(s, number)
            return
    hold_person(s, annotator_id)


def hold_tasks(s: Session, task_ids: Iterable[int]) -> None:
    """As `hold_task`, in one statement."""
    if side_by_side(s) and (missing := sorted(set(task_ids) - _held(s, "tasks"))):
        s.connection().execute(_TASKS, {"which": missing})
        _held(s, "tasks").update(missing)


def take_task(s: Session, task_id: int) -> bool:
    """`hold_task` without waiting: whether the task was to be had."""
    if not side_by_side(s) or task_id in _held(s, "tasks"):
        return True
    if s.connection().execute(_FREE_TASK, {"which": task_id}).first() is None:
        return False
    note_task(s, task_id)
    return True


def note_task(s: Session, task_id: int) -> None:
    """A statement of its own has locked the task."""
    _held(s, "tasks").add(task_id)


def _hold(s: Session, kind: str, lock: Any, number: int) -> None:
    if side_by_side(s) and number not in _held(s, kind):
        s.connection().execute(lock, {"which": number})
        _held(s, kind).add(number)


def _held(s: Session, kind: str) -> set[int]:
    """What this transaction has locked: a session is one transaction."""
    found: set[int] = s.info.setdefault(f"hfi {kind}", set())
    return found
