"""A large database in small: its rows are sound, what is sent all day reads no table as a whole, and it would be seen if it did."""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, delete, func, select, text, update

from hfi.bench.scale import ScaleConfig
from hfi.concepts import Concept
from hfi.errors import HfiError, UsageError
from hfi.store import judging, overview, queries
from hfi.store import models as m
from hfi.store.migrate import status, upgrade
from hfi.store.plans import Plan, explain, listening, sizes
from hfi.store.session import connect, reading, writing
from hfi.store.synthetic import OVERLAP, Size, extents, make
from hfi.workspace import Workspace
from ui.scale import HOT, Cast, act, faults, figures, measure, prepare, run, spread, table

pytestmark = pytest.mark.databases

SMALL = ScaleConfig(images=3_000, annotators=60, judgments=4_000, calls=20, large=1_000, clients=2)
LAPSED = "SELECT assignments, tasks, annotators"
SIZE = Size(SMALL.images, SMALL.annotators, SMALL.judgments)


@pytest.fixture(scope="module")
def engine(new_workspace: Callable[[Path], Workspace], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = new_workspace(tmp_path_factory.mktemp("scale") / "work").engine()
    os.environ.pop("HFI_DATABASE_URL", None)
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def cast(engine: Engine) -> Cast:
    return prepare(engine, SMALL)


def plans(engine: Engine, cast: Cast) -> list[Plan]:
    """As they would be if even these tables were large."""
    return explain(engine, act(engine, cast), scans=False)


# --- the rows ---


def test_tasks_count_what_is_there(engine: Engine, cast: Cast) -> None:
    columns = (m.Task.id, m.Task.wanted, m.Task.answers, m.Task.held, m.Task.free)
    with writing(engine) as s:
        before = s.execute(select(*columns).where(m.Task.id % 7 == 1).order_by(m.Task.id)).all()
        assert len(before) > 400
        s.execute(update(m.Task).values(wanted=9, answers=9, held=9, free=9))
        judging.recount(s, [row.id for row in before[:300]])  # many at once
        for row in before[300:]:
            judging.recount(s, [row.id])
        assert s.execute(select(*columns).where(m.Task.id % 7 == 1).order_by(m.Task.id)).all() == before
        s.rollback()


def test_campaigns_are_finished_half_way_and_only_begun(engine: Engine, cast: Cast) -> None:
    with reading(engine) as s:
        found = {(f.concept, f.name): f for f in overview.fillings(s)}
        assert {name: f.overlap for name, f in found.items()} == dict.fromkeys(found, OVERLAP)
        parts = {name: f.full / f.tasks for name, f in found.items()}
        judgments = s.scalar(select(func.count()).select_from(m.Judgment))
        people = s.scalar(select(func.count(func.distinct(m.Judgment.annotator_id))))
        states = set(s.scalars(select(m.Assignment.state).distinct()))
        kept = [
            s.scalar(select(func.count()).select_from(t)) for t in (m.RankedImage, m.Gold, m.Adjudication, m.Shift, m.Consent)
        ]
        notes = s.scalar(select(func.count()).select_from(m.Judgment).where(m.Judgment.comment.is_not(None)))
    assert parts["smoking", "first"] == parts["smoking", "second"] == 1
    assert 0.4 < parts["smoking", "third"] < 0.5 < parts["nudity", "first"] < 0.75
    assert parts["nudity", "coming"] < 0.1
    assert 4_000 <= judgments <= 4_600
    assert people > 50
    assert states == {"open", "done", "expired"}
    assert min(kept) > 0 and notes


@pytest.mark.sqlite
def test_making_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(name: str, stop: int | None) -> list[tuple[object, ...]]:
        space = Workspace.create(tmp_path / name)
        upgrade(space.database_url)
        engine = connect(space.database_url)
        monkeypatch.setattr("hfi.store.synthetic._CHUNK", 400)
        if stop is not None:
            calls = 0
            real = judging.json.dumps

            def ends(*args: object, **more: object) -> str:
                nonlocal calls
                calls += 1
                if calls == stop:
                    raise KeyboardInterrupt
                return real(*args, **more)

            with monkeypatch.context() as patch:
                patch.setattr("hfi.store.synthetic.json.dumps", ends)
                with pytest.raises(KeyboardInterrupt):
                    make(engine, SIZE)
        make(engine, SIZE)
        with engine.connect() as c:
            found = [tuple(c.execute(text(query)).one()) for query in (
                "SELECT count(*), sum(place), sum(free), sum(answers) FROM tasks",
                "SELECT count(*), sum(task_id * annotator_id) FROM judgments",
                "SELECT count(*), sum(done), sum(cursor) FROM participants",
                "SELECT count(*), sum(judgment_id * image_id * rank) FROM rankings",
            )]  # fmt: skip
        engine.dispose()
        return found

    assert rows("cut", 2_000) == rows("whole", None)


@pytest.mark.sqlite
def test_a_database_of_people_is_left_alone(tmp_path: Path) -> None:
    space = Workspace.create(tmp_path / "work")
    upgrade(space.database_url)
    engine = connect(space.database_url)
    with writing(engine) as s:
        queries.ensure_annotator(s, "Ann")
    with pytest.raises(HfiError, match="is not empty, it has rows in annotators: give an empty one"):
        make(engine, SIZE)
    with writing(engine) as s:
        assert s.scalar(select(func.count()).select_from(m.Campaign)) == 0
        s.execute(delete(m.Annotator))
        queries.add_concept(s, Concept("smoking", "Smoking", "A cigarette is visible."))
    with pytest.raises(HfiError, match="it has rows in concepts"):
        make(engine, SIZE)
    with reading(engine) as s:
        assert queries.concept(s, "smoking").guideline == "A cigarette is visible."
    engine.dispose()


@pytest.mark.sqlite
def test_a_database_of_people_keeps_its_schema(tmp_path: Path, hfi: Callable[..., Any]) -> None:
    old = tmp_path / "old.db"
    shutil.copy(Path(__file__).parent / "assets" / "0001.db", old)
    before = old.read_bytes()
    done = hfi("bench", "scale", "-w", tmp_path / "work", "--database", f"sqlite:///{old}")
    assert done.exit_code == 1 and "is not empty, it has rows in" in done.errors[0]
    engine = connect(f"sqlite:///{old}")
    assert status(engine).revision == "0001_initial"
    engine.dispose()
    assert [p.name for p in tmp_path.glob("*.backup.db")] == [] and len(old.read_bytes()) == len(before)


@pytest.mark.sqlite
def test_the_benchmark_makes_a_database_of_its_own(
    tmp_path: Path, hfi: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = []
    monkeypatch.setattr("ui.scale.run", lambda engine, config, **_: filled.append(engine.url.database) or {"faults": []})
    monkeypatch.setenv("HFI_DATABASE_URL", f"sqlite:///{tmp_path / 'live.db'}")
    assert hfi("bench", "scale", "-w", tmp_path / "work", "--json").exit_code == 0
    assert filled == [str(tmp_path / "work" / "hfi.db")] and not (tmp_path / "live.db").exists()
    engine = connect(f"sqlite:///{filled[0]}")
    make(engine, SIZE)
    engine.dispose()
    assert hfi("bench", "scale", "-w", tmp_path / "work", "--json").exit_code == 0, "it goes on with its own"


def test_another_size_is_refused(engine: Engine, cast: Cast) -> None:
    with pytest.raises(HfiError, match="another size"):
        make(engine, Size(4_000, 60, 4_000))
    with pytest.raises(UsageError, match="three people each need 1,800 or more"):
        ScaleConfig(images=1_000, judgments=4_000)


# --- the statements ---


def test_nothing_that_is_sent_all_day_reads_a_large_table(engine: Engine, cast: Cast) -> None:
    found = plans(engine, cast)
    assert {step for plan in found for step in plan.steps} >= set(HOT)
    assert faults(found, sizes(engine), 1_000) == []
    named = {plan.name: plan for plan in found}
    assert "assignments by ix_assignments_state_lease" in [str(a) for a in named[LAPSED].access]


@pytest.mark.parametrize(
    ("index", "table_", "step"),
    [
        ("ix_assignments_state_lease", "assignments", "lapse"),
        ("ix_judgments_assignment_id", "judgments", "claim"),
        ("ix_shifts_annotator_last", "shifts", "judge"),
    ],
)
def test_a_dropped_index_is_missed(engine: Engine, cast: Cast, index: str, table_: str, step: str) -> None:
    whole = {i.name: i for t in m.Base.metadata.sorted_tables for i in t.indexes}[index]
    whole.drop(engine)
    try:
        found = faults(plans(engine, cast), sizes(engine), 1_000)
    finally:
        whole.create(engine)
    assert any(step in fault and f"rows of {table_}" in fault for fault in found), found


@pytest.mark.sqlite
def test_a_newcomer_passes_what_is_full_only_by_its_index(engine: Engine, cast: Cast) -> None:
    def work() -> int:
        with writing(engine) as s:
            newcomer = queries.ensure_annotator(s, "newcomer")
            s.execute(delete(m.Participant).where(m.Participant.annotator_id == newcomer.id))
        with listening(engine) as heard, writing(engine) as s:
            assert judging.claim_next(s, cast.full, newcomer.id) is None
        return max(one.work for one in heard.statements.values())

    whole = next(i for i in m.Task.__table__.indexes if i.name == "ix_tasks_free")
    before = work()
    whole.drop(engine)
    try:
        after = work()
    finally:
        whole.create(engine)
    assert before < 300 and after > 4 * extents(SIZE)[cast.full - 1].judged


@pytest.mark.sqlite
def test_much_reading_through_an_index_is_seen_too(engine: Engine, cast: Cast) -> None:
    campaign = extents(SIZE)[-1].campaign_id
    with listening(engine) as heard, heard.step("judge"), reading(engine) as s:
        s.execute(select(func.sum(m.Task.wanted)).where(m.Task.campaign_id == campaign))
    (plan,) = explain(engine, heard)
    assert not any(a.whole for a in plan.access)
    assert plan.work is not None and plan.work > 2 * extents(SIZE)[-1].tasks
    few = next(p for p in plans(engine, cast) if p.name == LAPSED)
    assert few.work is not None and few.work < 1_000


@pytest.mark.sqlite
def test_work_does_not_grow_with_the_database(engine: Engine, cast: Cast, tmp_path: Path) -> None:
    space = Workspace.create(tmp_path / "large")
    upgrade(space.database_url)
    large = connect(space.database_url)
    config = ScaleConfig(images=12_000, annotators=60, judgments=4_000)
    before, after = (
        {p.sql: p.work for p in plans(e, c) if "judge" in p.steps} for e, c in ((engine, cast), (large, prepare(large, config)))
    )
    large.dispose()
    grown = {
        sql: (before[sql], work)
        for sql, work in after.items()
        if work and sql in before and work > 2 * (before[sql] or 0) + 8_000
    }
    assert len(after) > 20 and grown == {}


def test_the_whole_benchmark(engine: Engine, cast: Cast) -> None:
    small = (
        SMALL if engine.dialect.name == "sqlite" else replace(SMALL, large=10_000)
    )  # it reads small tables as a whole, and is right
    found = run(engine, small)
    assert found["faults"] == []
    assert ("claim" in found["at_once"]) == (engine.dialect.name == "postgresql")
    assert found["alone"]["claim"]["n"] == found["alone"]["submit"]["n"] == found["alone"]["judge"]["n"] == 20
    assert found["rows"]["images"] >= 3_000 and found["bytes"] > 1e6
    assert {"every campaign's filling", "their table"} <= set(found["seconds"])
    shown = table(found)
    assert found["database"] in shown and "ix_assignments_state_lease" in shown and "p95" in shown
    with reading(engine) as s:  # a withdrawal was timed, and not kept
        assert s.scalar(select(m.Annotator.withdrawn_at).where(m.Annotator.id == cast.busiest.id)) is None


def test_figures_and_times_are_of_this_database(engine: Engine, cast: Cast) -> None:
    with listening(engine) as heard:
        took = figures(engine, cast, heard)
    assert any(name.startswith("withdrawal of the busiest") for name in took)
    before = sizes(engine)["judgments"]
    times = spread(measure(engine, cast, 10, seed=5))
    assert times["submit"]["n"] == 10 and times["submit"]["p95"] > 0
    assert sizes(engine)["judgments"] == before + 20
