"""How long people look at harmful images, and when they rest.

A shift is a stretch of work: it goes on while somebody judges without a pause of five minutes. Breaks are asked for by its length
and by the harmful images in it; a person may cut a break short. Limits of a day are hard, and a day is one of UTC.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from typing import Any, Literal

from sqlalchemy import bindparam, insert, select, update
from sqlalchemy.orm import Session

from hfi.errors import HfiError, UsageError
from hfi.store import models as m
from hfi.store.locks import hold_person
from hfi.store.queries import now_utc

PAUSE = timedelta(minutes=5)  # nobody judges for so long: the shift is over
HARMFUL = ("shows", "disturbing", "ranked")  # verdicts on what was harmful to look at

_KEY = "wellbeing"
_GOES_ON = (None, "stop")  # whoever stops and comes back within the pause has not rested
_RANGES = {
    "break_minutes": (1, 480),
    "break_after": (1, 10_000),
    "break_length_minutes": (1, 120),
    "day_minutes": (1, 1440),
    "day_harmful": (1, 100_000),
}


@dataclass(frozen=True, kw_only=True)
class Wellbeing:
    """What a manager asks for: a break of `break_length_minutes` after so many minutes of work, and after so many harmful images; at
    most so many minutes and harmful images a day. None: no such break, no such limit. UsageError for a number out of range."""

    break_minutes: int | None = 45
    break_after: int | None = 30
    break_length_minutes: int = 5
    day_minutes: int | None = None
    day_harmful: int | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name != "break_length_minutes":
                continue
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{name.replace('_', ' ')} of {value!r}: give a whole number from {least:,} to {most:,}")


@dataclass(frozen=True)
class Rest:
    """No task for this person until then. `reason`: the shift's length (time) or its harmful images (count), which the person may
    overrule, or a limit of the day, which nobody does."""

    reason: Literal["time", "count", "day"]
    until: datetime

    @property
    def may_end(self) -> bool:
        return self.reason != "day"


@dataclass(frozen=True)
class Seen:
    minutes: float
    judgments: int
    harmful: int


@dataclass(frozen=True)
class Shift:
    """A row of shifts, and the rules as the workspace has them."""

    id: int
    annotator_id: int
    started_at: datetime
    last_at: datetime
    judgments: int
    harmful: int
    ended: str | None
    rest_until: datetime | None
    rules: str | None


@dataclass(frozen=True)
class Exposure:
    """What somebody looked at, today in UTC and ever since."""

    today: Seen
    total: Seen


# --- the rules ---

# Every judgment asks these: statements built once, of tables and not of mapped classes.
_SET: Any = m.Setting.__table__
_S: Any = m.Shift.__table__
_RULES = select(_SET.c.value).where(_SET.c.key == _KEY)
_LAST = (
    select(_S, _RULES.scalar_subquery().label("rules"))
    .where(_S.c.annotator_id == bindparam("person"))
    .order_by(_S.c.last_at.desc(), _S.c.id.desc())
    .limit(1)
)
_BEFORE = select(_S).where(_S.c.annotator_id == bindparam("person"), _S.c.ended == "midnight", _S.c.last_at == bindparam("at"))
_SINCE = select(_S).where(  # the second by the index; every shift is of one day
    _S.c.annotator_id == bindparam("person"), _S.c.started_at >= bindparam("at"), _S.c.last_at >= bindparam("at")
)
_NOTED = (
    update(_S)
    .where(_S.c.id == bindparam("which"))
    .values(
        judgments=_S.c.judgments + 1, harmful=_S.c.harmful + bindparam("more"), last_at=bindparam("at"), ended=bindparam("end")
    )
)
_ENDED = (
    update(_S)
    .where(_S.c.id == bindparam("which"))
    .values(ended=bindparam("end"), last_at=bindparam("at"), rest_until=bindparam("until"))
)


def wellbeing(s: Session) -> Wellbeing:
    """The rules of this workspace; the usual ones where none were set."""
    s.flush()
    return _rules(s.execute(_RULES).scalar_one_or_none())


@lru_cache(maxsize=8)
def _rules(value: str | None) -> Wellbeing:
    if value is None:
        return Wellbeing()
    try:
        return Wellbeing(**json.loads(value))
    except (TypeError, ValueError, UsageError) as e:
        raise HfiError(f"the setting {_KEY!r} in the database is damaged ({e}): set the breaks and limits anew") from e


def set_wellbeing(s: Session, rules: Wellbeing) -> None:
    row = s.scalar(select(m.Setting).where(m.Setting.key == _KEY))
    if row is None:
        row = m.Setting(key=_KEY)
        s.add(row)
    row.value, row.changed_at = json.dumps(asdict(rules)), now_utc()
    s.flush()


# --- shifts ---


def note(s: Session, annotator_id: int, harmful: bool, now: datetime | None = None) -> Shift:
    """Counts a judgment towards the running shift, or starts one; gives it as it is now. Call it in the transaction of the judgment."""
    now = now or now_utc()
    shift = _last(s, annotator_id)
    more = int(harmful)
    if shift is None or not (_resting(shift, now) or _running(shift, now)):
        if shift is not None and shift.ended is None:
            _end(s, shift, "pause")
        shift = _start(s, annotator_id, now, now, more)
    elif not _resting(shift, now) and shift.last_at < _midnight(now):  # every shift is of one day; `_stretch` joins them again
        _end(s, shift, "midnight", at=_midnight(now))
        shift = _start(s, annotator_id, _midnight(now), now, more)
    else:
        shift = replace(shift, judgments=shift.judgments + 1, harmful=shift.harmful + more)
        if not _resting(shift, now):  # what was on its way when the break began is counted, and ends no break
            shift = replace(shift, last_at=max(shift.last_at, now), ended=None)
        s.connection().execute(_NOTED, {"which": shift.id, "more": more, "at": shift.last_at, "end": shift.ended})
    return shift


def rest(s: Session, annotator_id: int, now: datetime | None = None, *, shift: Shift | None = None) -> Rest | None:
    """The rest that this person is to take now; a break that has become due begins with this call. Needs a writing session. `shift`:
    what `note` gave."""
    now = now or now_utc()
    shift = shift or _last(s, annotator_id)
    if shift is None:
        return None
    rules = _rules(shift.rules)
    running = shift.ended is None and _running(shift, now)
    if rules.day_minutes or rules.day_harmful:
        seen = today(s, annotator_id, now)
        if _reached(seen.minutes, rules.day_minutes) or _reached(seen.harmful, rules.day_harmful):
            if running:
                _end(s, shift, "day")
            return Rest("day", _midnight(now) + timedelta(days=1))
    if shift.rest_until is not None and _resting(shift, now):
        return Rest("count" if shift.ended == "count" else "time", shift.rest_until)
    if running:
        seen = _stretch(s, shift)
        by_count = _reached(seen.harmful, rules.break_after)
        if by_count or _reached(seen.minutes, rules.break_minutes):
            found = Rest("count" if by_count else "time", now + timedelta(minutes=rules.break_length_minutes))
            _end(s, shift, found.reason, until=found.until)
            return found
    return None


def end_rest(s: Session, annotator_id: int, now: datetime | None = None) -> None:
    """The person goes on before the break is over. A limit of the day stays."""
    now = now or now_utc()
    shift = _last(s, annotator_id)
    if shift is not None and _resting(shift, now):
        _end(s, shift, shift.ended, until=now)


def end_shift(s: Session, annotator_id: int, reason: str, now: datetime | None = None) -> None:
    """Closes the running shift, where there is one."""
    shift = _last(s, annotator_id)
    if shift is not None and shift.ended is None:
        _end(s, shift, reason if _running(shift, now or now_utc()) else "pause")


def today(s: Session, annotator_id: int, now: datetime | None = None) -> Seen:
    """What somebody looked at today, in UTC."""
    midnight = _midnight(now or now_utc())
    return _sum(s.connection().execute(_SINCE, {"person": annotator_id, "at": midnight}).all())


def exposure(s: Session, annotator_id: int, now: datetime | None = None) -> Exposure:
    every = s.execute(select(_S).where(_S.c.annotator_id == annotator_id)).all()
    midnight = _midnight(now or now_utc())
    return Exposure(_sum([one for one in every if one.started_at >= midnight]), _sum(every))


def _last(s: Session, annotator_id: int) -> Shift | None:
    """This person's latest shift, which nobody else changes until the transaction ends."""
    s.flush()
    hold_person(s, annotator_id)
    row = s.connection().execute(_LAST, {"person": annotator_id}).one_or_none()
    return None if row is None else Shift(**row._asdict())


def _start(s: Session, annotator_id: int, started: datetime, now: datetime, harmful: int) -> Shift:
    """A shift with its first judgment."""
    first = {"started_at": started, "last_at": now, "judgments": 1, "harmful": harmful}
    s.connection().execute(insert(_S), {"annotator_id": annotator_id, **first})
    found = _last(s, annotator_id)
    assert found is not None
    return found


def _end(s: Session, shift: Shift, reason: str | None, *, at: datetime | None = None, until: datetime | None = None) -> None:
    values = {"end": reason, "at": at or shift.last_at, "until": until or shift.rest_until}
    s.connection().execute(_ENDED, {"which": shift.id, **values})


def _running(shift: Shift, now: datetime) -> bool:
    return shift.ended in _GOES_ON and now - shift.last_at < PAUSE


def _resting(shift: Shift, now: datetime) -> bool:
    return shift.rest_until is not None and now < shift.rest_until


def _stretch(s: Session, shift: Shift) -> Seen:
    """The shift with what came before midnight."""
    parts: list[Any] = [shift]
    while parts[-1].started_at == _midnight(parts[-1].started_at):
        found = s.connection().execute(_BEFORE, {"person": shift.annotator_id, "at": parts[-1].started_at}).first()
        if found is None:
            break
        parts.append(found)
    return _sum(parts)


def _sum(shifts: Sequence[Any]) -> Seen:
    minutes = sum((one.last_at - one.started_at).total_seconds() for one in shifts) / 60
    return Seen(minutes, sum(one.judgments for one in shifts), sum(one.harmful for one in shifts))


def _midnight(at: datetime) -> datetime:
    return datetime.combine(at.astimezone(UTC).date(), time(), UTC)


def _reached(value: float, limit: int | None) -> bool:
    return limit is not None and value >= limit
