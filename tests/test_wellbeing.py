"""Shifts, breaks, limits of a day: hfi/store/wellbeing.py, at times that the tests give."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from hfi.errors import HfiError, UsageError
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store import wellbeing as well
from hfi.store.session import Session, writing
from hfi.store.wellbeing import Wellbeing
from hfi.workspace import Workspace

pytestmark = pytest.mark.databases

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)


def after(minutes: float, start: datetime = NOON) -> datetime:
    return start + timedelta(minutes=minutes)


@pytest.fixture
def s(workspace: Workspace) -> Iterator[Session]:
    with writing(workspace.engine()) as session:
        yield session


@pytest.fixture
def kim(s: Session) -> int:
    return q.ensure_annotator(s, "Kim").id


def work(s: Session, who: int, minutes: int, start: datetime = NOON, harmful: bool = False) -> datetime:
    """Judges once a minute, from the start to so many minutes later."""
    for i in range(minutes + 1):
        well.note(s, who, harmful, after(i, start))
    return after(minutes, start)


def shifts(s: Session, who: int) -> list[m.Shift]:
    return list(s.scalars(select(m.Shift).where(m.Shift.annotator_id == who).order_by(m.Shift.id)))


# --- rules ---


def test_rules_are_kept_and_damage_is_said(s: Session) -> None:
    assert well.wellbeing(s) == Wellbeing(
        break_minutes=45, break_after=30, break_length_minutes=5, day_minutes=None, day_harmful=None
    )
    for rules in (Wellbeing(break_minutes=None, day_minutes=120), Wellbeing(break_after=7, day_harmful=90)):
        well.set_wellbeing(s, rules)
        assert well.wellbeing(s) == rules
    row = s.scalars(select(m.Setting)).one()
    for damaged in ("{", "[]", '{"break_minutes": 0}', '{"nap": 1}', '{"break_after": "x"}'):
        row.value = damaged
        s.flush()
        with pytest.raises(HfiError, match="damaged"):
            well.wellbeing(s)
    well.set_wellbeing(s, Wellbeing())
    assert json.loads(row.value)["break_minutes"] == 45


@pytest.mark.parametrize("name", ["break_minutes", "break_after", "break_length_minutes", "day_minutes", "day_harmful"])
@pytest.mark.parametrize("value", [0, -1, 10**6, 1.5, True, "9", float("nan")])
def test_a_number_out_of_range_is_refused(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{name.replace('_', ' ')}.*whole number from 1 to"):
        Wellbeing(**{name: value})


def test_a_break_has_a_length() -> None:
    with pytest.raises(UsageError, match="break length"):
        Wellbeing(break_length_minutes=None)  # type: ignore[arg-type]


# --- breaks ---


def test_a_break_is_due_after_so_many_minutes_and_over_after_its_length(s: Session, kim: int) -> None:
    assert well.rest(s, kim, NOON) is None
    now = work(s, kim, 44)
    assert well.rest(s, kim, now) is None
    well.note(s, kim, False, now := after(45))
    found = well.rest(s, kim, now)
    assert found == well.Rest("time", after(50))
    assert found is not None and found.may_end
    assert well.rest(s, kim, after(49.9)) == found, "asking again moves nothing"
    assert well.rest(s, kim, after(50)) is None
    well.note(s, kim, False, after(51))
    assert well.rest(s, kim, after(51)) is None
    assert [(one.ended, one.judgments) for one in shifts(s, kim)] == [("time", 46), (None, 1)]


def test_a_break_is_due_after_so_many_harmful_images(s: Session, kim: int) -> None:
    well.set_wellbeing(s, Wellbeing(break_after=3, break_length_minutes=20))
    for i, harmful in enumerate((True, False, True, False, True)):
        assert well.rest(s, kim, after(i)) is None
        well.note(s, kim, harmful, after(i))
    assert well.rest(s, kim, after(4)) == well.Rest("count", after(24))


def test_a_pause_is_a_break_of_ones_own(s: Session, kim: int) -> None:
    now = work(s, kim, 44)
    well.note(s, kim, True, now + well.PAUSE)
    assert well.rest(s, kim, now + well.PAUSE) is None
    assert [one.ended for one in shifts(s, kim)] == ["pause", None]
    now = work(s, kim, 44, now + timedelta(hours=1))
    assert well.rest(s, kim, now + well.PAUSE) is None, "nobody is sent to rest who has just rested"


def test_what_was_on_its_way_when_a_break_began_is_counted_and_ends_no_break(s: Session, kim: int) -> None:
    well.set_wellbeing(s, Wellbeing(break_after=1))
    well.note(s, kim, True, NOON)
    found = well.rest(s, kim, NOON)
    well.note(s, kim, True, after(0.1))
    assert well.rest(s, kim, after(0.1)) == found
    assert well.exposure(s, kim, after(1)).total == well.Seen(0, 2, 2)


def test_a_break_may_be_cut_short_and_counts_anew(s: Session, kim: int) -> None:
    well.set_wellbeing(s, Wellbeing(break_after=2))
    well.end_rest(s, kim, NOON)
    for i in range(2):
        well.note(s, kim, True, after(i))
    assert well.rest(s, kim, after(1)) is not None
    well.end_rest(s, kim, after(2))
    assert well.rest(s, kim, after(2)) is None
    well.note(s, kim, True, after(3))
    assert well.rest(s, kim, after(3)) is None
    well.note(s, kim, True, after(4))
    assert well.rest(s, kim, after(4)) is not None


def test_stopping_is_no_rest_for_who_comes_straight_back(s: Session, kim: int) -> None:
    now = work(s, kim, 44)
    well.end_shift(s, kim, "stop", now)
    assert [one.ended for one in shifts(s, kim)] == ["stop"]
    assert well.rest(s, kim, now) is None
    well.note(s, kim, False, after(46))
    assert well.rest(s, kim, after(46)) == well.Rest("time", after(51))
    well.end_shift(s, kim, "stop", after(46))
    assert [one.ended for one in shifts(s, kim)] == ["time"], "a break is not called off by a stop"


def test_no_break_where_none_is_asked_for(s: Session, kim: int) -> None:
    well.set_wellbeing(s, Wellbeing(break_minutes=None, break_after=None))
    assert well.rest(s, kim, work(s, kim, 200, harmful=True)) is None


# --- limits of a day ---


@pytest.mark.parametrize("rules", [Wellbeing(day_minutes=10, break_minutes=None), Wellbeing(day_harmful=11, break_after=None)])
def test_a_limit_of_the_day_is_hard_and_ends_at_midnight(s: Session, kim: int, rules: Wellbeing) -> None:
    well.set_wellbeing(s, rules)
    assert well.rest(s, kim, work(s, kim, 9, harmful=True)) is None
    well.note(s, kim, True, after(10))
    midnight = datetime(2026, 3, 5, tzinfo=UTC)
    found = well.rest(s, kim, after(10))
    assert found == well.Rest("day", midnight)
    assert found is not None and not found.may_end
    well.end_rest(s, kim, after(10))
    well.end_shift(s, kim, "stop", after(10))
    well.note(s, kim, False, after(11))
    assert well.rest(s, kim, after(600)) == found
    assert well.rest(s, kim, midnight) is None
    assert well.rest(s, kim, midnight.astimezone() - timedelta(seconds=1)) == found, (
        "a day of UTC, whatever the zone of the clock"
    )


def test_a_shift_over_midnight_is_of_two_days_and_still_one_stretch(s: Session, kim: int) -> None:
    start = datetime(2026, 3, 4, 23, 30, tzinfo=UTC)
    now = work(s, kim, 44, start, harmful=True)
    seen = well.exposure(s, kim, now)
    assert (seen.today, seen.total) == (well.Seen(14, 15, 15), well.Seen(44, 45, 45))
    well.set_wellbeing(s, Wellbeing(day_minutes=20, break_after=None))
    assert well.rest(s, kim, now) is None
    well.note(s, kim, True, now := now + timedelta(minutes=1))
    assert well.rest(s, kim, now) == well.Rest("time", now + timedelta(minutes=5)), "45 minutes without a pause"


# --- whatever happens ---


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["note", "harm", "rest", "go on", "stop"]), st.sampled_from([0, 0.2, 1, 4.99, 5, 30, 700])),
        max_size=60,
    ),
    st.sampled_from([Wellbeing(), Wellbeing(break_minutes=3, break_after=2), Wellbeing(day_minutes=6, day_harmful=3)]),
)
def test_every_judgment_is_counted_once_in_shifts_that_never_overlap(s: Session, steps: list, rules: Wellbeing) -> None:
    who = q.ensure_annotator(s, f"Kim {len(q.annotators(s))}").id
    well.set_wellbeing(s, rules)
    now, notes = NOON, []
    for act, minutes in steps:
        now += timedelta(minutes=minutes)
        if act in ("note", "harm"):
            well.note(s, who, act == "harm", now)
            notes.append((now, act == "harm"))
        elif act == "rest":
            found = well.rest(s, who, now)
            assert found == well.rest(s, who, now)
            assert found is None or found.until > now
        elif act == "go on":
            well.end_rest(s, who, now)
            again = well.rest(s, who, now)
            assert again is None or not again.may_end or again.until - now == timedelta(minutes=rules.break_length_minutes)
        else:
            well.end_shift(s, who, "stop", now)
    seen = well.exposure(s, who, now)
    assert (seen.total.judgments, seen.total.harmful) == (len(notes), sum(harm for _, harm in notes))
    today = [harm for at, harm in notes if at.date() == now.date()]
    assert (seen.today.judgments, seen.today.harmful) == (len(today), sum(today))
    rows = shifts(s, who)
    for one, following in pairwise(rows):
        assert one.ended is not None
        assert one.last_at <= following.started_at
    for one in rows:
        assert one.started_at <= one.last_at
        assert (one.last_at - timedelta(microseconds=1)).date() <= one.started_at.date()
        assert one.judgments >= one.harmful >= 0
