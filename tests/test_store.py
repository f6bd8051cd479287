"""The store: its guards, its verbs, and migrations that lose nothing."""

import gc
import gzip
import shutil
import sqlite3
import threading
import time
import unicodedata
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import func, select, text
from sqlalchemy.exc import DatabaseError, IntegrityError, StatementError

from hfi.concepts import Concept
from hfi.errors import HfiError, NotFound
from hfi.judgments import JudgmentSet, freeze, frozen
from hfi.store import campaigns, judging, record
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store.migrate import check_current, status, upgrade
from hfi.store.plans import listening
from hfi.store.session import Busy, Engine, connect, reading, writing
from hfi.workspace import Workspace

pytestmark = pytest.mark.databases

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)
NEW = {
    "gold",
    "accounts",
    "login_failures",
    "settings",
    "consent_texts",
    "consents",
    "participants",
    "shifts",
    "adjudications",
    "rounds",
    "jobs",
}  # tables that version 0001 did not have
ASSETS = Path(__file__).parent / "assets"
OLD = ASSETS / "0001.db"
THOUSAND = {  # of 0001-thousand.db.gz: the hash of what each export held when the version that made it wrote it
    ("smoking", "exclude"): "41cae1263ca106c7fbf2e13526368efa4b2ba3685d686b45853665c46f8200b5",
    ("smoking", "only"): "81b466b1e027a6cae328a0fb7291a2a8083a29d071dbafa4c63e11cbbd8d0c9f",
    ("smoking", "include"): "fee2ac0a03e07eb25acc3ca46393808e0bb225bc78e42e4b1f3bb68a2cb2a66f",
    ("brava", "exclude"): "628061287a026a190a9d7021d5c6c44de57f64e44e51b486a62484e888f0e58a",
    ("brava", "only"): "24de3fead4b493e3ccbfe4ff44994b4c1d09d3f6633f08289a0d2ce7d8ada477",
    ("brava", "include"): "4ce7c3070d25db5d6309332dfb551904e651e4afca8587a002f7295e40816ac6",
}
TODAY = {  # of 0002.db.gz
    "smoking": "4aad45bfc73ddcdadcc71d8d14b66fb74781ed0ae8ca42ef1a39be648f42ec16",
    "brava": "2065a2ef7f6aa346619c4edf938f3922c0d45fc4e641ab3e701529f9a7ae61ef",
}


@pytest.fixture
def engine(workspace: Workspace) -> Iterator[Engine]:
    engine = workspace.engine()
    yield engine
    engine.dispose()


def fill(engine: Engine, images: int, *, overlap: int = 1, question: str = "binary", lease: int = 1800) -> campaigns.Campaign:
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking", question=question))  # type: ignore[arg-type]
        made = [q.add_image(s, provenance(i)).id for i in range(images)]
        return campaigns.ensure_campaign(
            s, "smoking", "default", image_ids=made, asking=campaigns.Asking(overlap=overlap, lease_seconds=lease)
        )


def provenance(i: int) -> q.Provenance:
    return q.Provenance(key=f"k{i}", sha256=f"{i:064x}", width=8, height=8, source="generated", prompt=f"p{i}", seed=i)


def person(engine: Engine, name: str, simulated: bool = False) -> q.Annotator:
    with writing(engine) as s:
        return q.ensure_annotator(s, name, simulated)


def claim(engine: Engine, campaign: campaigns.Campaign, who: q.Annotator, now: datetime = NOON) -> judging.Claim:
    with writing(engine) as s:
        found = judging.claim_next(s, campaign.id, who.id, now)
    assert found is not None
    return found


def answer(engine: Engine, campaign: campaigns.Campaign, who: q.Annotator, verdict: str, now: datetime = NOON) -> judging.Claim:
    held = claim(engine, campaign, who, now)
    with writing(engine) as s:
        judging.submit(s, held.token, who.id, verdict, f"{held.token} {now}", now=now)
    return held


# --- reading what was said, some at a time ---


@pytest.mark.parametrize("question", ["binary", "ranking"])
def test_however_few_rows_are_read_at_once_they_are_the_same(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, question: str
) -> None:
    campaign = fill(engine, 23, overlap=2, question=question)
    people = [person(engine, name, name == "Bot") for name in ("Ann", "Bob", "Bot", "Gone")]
    for n in range(6 if question == "ranking" else 34):
        with writing(engine) as s:
            held = judging.claim_next(s, campaign.id, people[n % 4].id, NOON)
            if held is None:
                continue
            order = [image.image_id for image in reversed(held.images)] if question == "ranking" else None
            verdict = "ranked" if order else "shows" if n % 3 else "clean"
            judging.submit(s, held.token, people[n % 4].id, verdict, f"t{n}", ranking=order, now=NOON)
    with writing(engine) as s:
        for task, verdict in [
            (t, v) for t in s.scalars(select(m.Task.id).order_by(m.Task.id.desc())) for v in ("unsure", "none")
        ]:
            verdict = verdict if question == "ranking" or verdict == "unsure" else "clean"
            s.add(m.Adjudication(task_id=task, annotator_id=people[0].id, verdict=verdict, created_at=NOON))
        s.get_one(m.Annotator, people[3].id).withdrawn_at = NOON

    for side in ("exclude", "include", "only"):
        whole = freeze(engine, "smoking", side)  # type: ignore[arg-type]
        assert whole.judgments and any(j.adjudicated for j in whole.judgments) == (side != "only")
        with monkeypatch.context() as few:
            few.setattr(record, "_STREAM", {"yield_per": 2})
            few.setattr("hfi.judgments._PART", 3)
            with frozen(engine, "smoking", side) as found:  # type: ignore[arg-type]
                assert JudgmentSet(found.concept, found.question, tuple(found.judgments)) == whole
                assert found.judged_by == whole.judged_by
                parts = list(found.parts())
                assert len(parts) > 1 or side == "only"
                assert [sha for shas, _ in parts for sha in shas] == list(whole.prompts)
                assert found.count_images() == len(whole.prompts)
                for shas, some in parts:
                    assert some.judgments == tuple(j for j in whole.judgments if set(j.images) & set(shas))


# --- sharing work ---


def test_eight_people_at_once_never_get_the_same_image(engine: Engine) -> None:
    campaign = fill(engine, 200)
    got: list[int] = []
    errors: list[BaseException] = []

    def work(k: int) -> None:
        try:
            with writing(engine) as s:
                who = q.ensure_annotator(s, f"person {k}")
            for _ in range(25):
                with writing(engine) as s:
                    held = judging.claim_next(s, campaign.id, who.id)
                assert held is not None
                with writing(engine) as s:
                    judging.submit(s, held.token, who.id, "shows", held.token)
                got.append(held.images[0].image_id)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(got) == len(set(got)) == 200
    with reading(engine) as s:
        assert judging.progress(s, campaign.id) == judging.Progress(200, 200, {"shows": 200}, 200)
        assert len(record.current_judgments(s, "smoking")) == 200


def test_each_task_gets_as_many_people_as_the_overlap_and_nobody_twice(engine: Engine) -> None:
    campaign = fill(engine, 3, overlap=2)
    ann, bob, cem = (person(engine, name) for name in ("Ann", "Bob", "Cem"))
    seen = {who.name: [answer(engine, campaign, who, "clean").images[0].sha256 for _ in range(3)] for who in (ann, bob)}
    assert set(seen["Ann"]) == set(seen["Bob"]) == {f"{i:064x}" for i in range(3)}
    with writing(engine) as s:
        assert judging.claim_next(s, campaign.id, cem.id) is None
        assert judging.claim_next(s, campaign.id, ann.id) is None
        assert judging.progress(s, campaign.id, cem.id) == judging.Progress(0, 0, {}, 0)


def test_an_open_lease_fills_a_place_until_it_expires(engine: Engine) -> None:
    campaign = fill(engine, 1, lease=60)
    ann, bob = person(engine, "Ann"), person(engine, "Bob")
    first = claim(engine, campaign, ann)
    assert first.lease_expires_at == NOON + timedelta(seconds=60)
    with writing(engine) as s:
        assert judging.claim_next(s, campaign.id, bob.id, NOON + timedelta(seconds=59)) is None
    late = NOON + timedelta(seconds=60)
    second = claim(engine, campaign, bob, late)
    assert second.images[0].image_id == first.images[0].image_id
    with writing(engine) as s:
        judging.submit(s, second.token, bob.id, "clean", "b", now=late)
    with writing(engine) as s, pytest.raises(HfiError, match="others have judged it"):
        judging.submit(s, first.token, ann.id, "shows", "a", now=late)
    with reading(engine) as s:
        assert [row.verdict for row in record.current_judgments(s, "smoking")] == ["clean"]


def test_a_late_answer_counts_while_nobody_else_has_the_task(engine: Engine) -> None:
    campaign = fill(engine, 1, lease=60)
    ann, bob = person(engine, "Ann"), person(engine, "Bob")
    held = claim(engine, campaign, ann)
    late = NOON + timedelta(hours=2)
    with writing(engine) as s:
        assert judging.submit(s, held.token, ann.id, "shows", "a", now=late).duplicate is False
        assert judging.claim_next(s, campaign.id, bob.id, late) is None


def test_skips_and_doubts_do_not_fill_the_overlap(engine: Engine) -> None:
    campaign = fill(engine, 1)
    for name, verdict in (("Ann", "skip"), ("Bob", "unsure"), ("Cem", "disturbing")):
        answer(engine, campaign, person(engine, name), verdict)
    with reading(engine) as s:
        assert judging.progress(s, campaign.id).done == 0
    answer(engine, campaign, person(engine, "Dee"), "clean")
    with writing(engine) as s:
        assert judging.progress(s, campaign.id).done == 1
        assert judging.claim_next(s, campaign.id, q.ensure_annotator(s, "Eva").id) is None


def test_a_reload_shows_the_same_task_in_the_same_order(engine: Engine) -> None:
    campaign = fill(engine, 10, question="ranking")
    assert campaign.tasks == 2
    ann, bob = person(engine, "Ann"), person(engine, "Bob")
    first = claim(engine, campaign, ann)
    claim(engine, campaign, bob)
    again = claim(engine, campaign, ann, NOON + timedelta(minutes=10))
    assert (again.token, again.images) == (first.token, first.images)
    with reading(engine) as s:
        assert judging.progress(s, campaign.id, ann.id).total == 1  # Bob holds the other one
    assert again.lease_expires_at == NOON + timedelta(minutes=40)  # looking again keeps the task in hand
    assert [image.position for image in first.images] == [0, 1, 2, 3, 4]
    third = claim(engine, campaign, ann, NOON + timedelta(days=1))  # both leases have run out
    assert (third.token, third.images) == (first.token, first.images)


def test_shown_order_differs_between_people(engine: Engine) -> None:
    campaign = fill(engine, 5, question="ranking", overlap=8)
    orders = {tuple(i.image_id for i in claim(engine, campaign, person(engine, f"p{k}")).images) for k in range(8)}
    assert len(orders) > 1
    assert len({frozenset(order) for order in orders}) == 1


def test_one_persons_lease_in_another_campaign_is_not_taken_for_this_one(engine: Engine) -> None:
    campaign = fill(engine, 2)
    with writing(engine) as s:
        other = campaigns.ensure_campaign(s, "smoking", "again", image_ids=[image.id for image in q.images(s)])
    ann = person(engine, "Ann")
    assert claim(engine, campaign, ann).campaign_id == campaign.id
    assert claim(engine, other, ann).campaign_id == other.id


# --- answers ---


def test_a_replayed_answer_adds_nothing(engine: Engine) -> None:
    campaign, ann, bob = fill(engine, 2, overlap=2), person(engine, "Ann"), person(engine, "Bob")
    held = claim(engine, campaign, ann)
    with writing(engine) as s:
        first = judging.submit(s, held.token, ann.id, "shows", "once")
    with writing(engine) as s:
        assert judging.submit(s, held.token, ann.id, "clean", "once") == replace(first, duplicate=True)
    with writing(engine) as s, pytest.raises(HfiError, match="judged this already"):
        judging.submit(s, held.token, ann.id, "clean", "another")
    with writing(engine) as s, pytest.raises(HfiError, match="somebody else"):
        judging.submit(s, held.token, bob.id, "clean", "once")
    with reading(engine) as s:
        assert [row.verdict for row in record.current_judgments(s, "smoking")] == ["shows"]


def test_a_token_opens_nothing_for_somebody_else(engine: Engine) -> None:
    campaign, ann, bob = fill(engine, 1), person(engine, "Ann"), person(engine, "Bob")
    held = claim(engine, campaign, ann)
    with writing(engine) as s:
        for token, who in ((held.token, bob.id), ("guessed", ann.id)):
            with pytest.raises(NotFound):
                judging.submit(s, token, who, "shows", "x")
            with pytest.raises(NotFound):
                judging.claim_of(s, token, who)
        assert judging.claim_of(s, held.token, ann.id).images == held.images


@pytest.mark.parametrize(
    ("question", "verdict"), [("binary", "ranked"), ("binary", "yes"), ("binary", "undone"), ("ranking", "shows")]
)
def test_a_verdict_that_the_question_does_not_know_is_refused(engine: Engine, question: str, verdict: str) -> None:
    campaign, ann = fill(engine, 5, question=question), person(engine, "Ann")
    held = claim(engine, campaign, ann)
    with writing(engine) as s, pytest.raises(HfiError, match="unknown verdict"):
        judging.submit(s, held.token, ann.id, verdict, "x")


def test_a_ranking_keeps_order_and_shown_places(engine: Engine) -> None:
    campaign, ann = fill(engine, 5, question="ranking"), person(engine, "Ann")
    held = claim(engine, campaign, ann)
    order = [image.image_id for image in reversed(held.images)]
    for wrong in ([], order[:4], [*order[:4], order[0]], [*order[:4], 999]):
        with writing(engine) as s, pytest.raises(HfiError, match="each of the shown images once"):
            judging.submit(s, held.token, ann.id, "ranked", "x", ranking=wrong)
    with writing(engine) as s, pytest.raises(HfiError, match="goes with verdict 'ranked'"):
        judging.submit(s, held.token, ann.id, "none", "x", ranking=order)
    with writing(engine) as s:
        judging.submit(s, held.token, ann.id, "ranked", "x", ranking=order)
        row = record.current_judgments(s, "smoking")[0]
        assert row.images == tuple(image.sha256 for image in reversed(held.images))
        assert row.prompts == tuple(f"p{int(sha, 16)}" for sha in row.images)
        kept = s.execute(text("SELECT image_id, rank, shown_position FROM rankings ORDER BY rank")).all()
    assert kept == [(image, rank, 5 - rank) for rank, image in enumerate(order, 1)]


def test_undo_goes_back_to_the_first_and_leaves_every_row(engine: Engine) -> None:
    campaign, ann = fill(engine, 4), person(engine, "Ann")
    said = [answer(engine, campaign, ann, v, NOON + timedelta(minutes=i)) for i, v in enumerate(("shows", "clean", "unsure"))]
    open_one = claim(engine, campaign, ann)
    later = NOON + timedelta(minutes=9)
    for back in reversed(said):
        with writing(engine) as s:
            reopened = judging.undo(s, campaign.id, ann.id, later)
        assert reopened is not None
        assert (reopened.token, reopened.images) == (back.token, back.images)
        assert claim(engine, campaign, ann, later).token == back.token  # what was undone last is asked first
        later += timedelta(seconds=1)
    with writing(engine) as s:
        assert judging.undo(s, campaign.id, ann.id, later) is None
        assert record.current_judgments(s, "smoking") == []
        assert s.execute(text("SELECT verdict FROM judgments ORDER BY id")).scalars().all() == [
            "shows", "clean", "unsure", "undone", "undone", "undone",
        ]  # fmt: skip
    seen = [answer(engine, campaign, ann, "clean", later + timedelta(seconds=i)).token for i in range(4)]
    assert set(seen) == {c.token for c in (*said, open_one)}
    with reading(engine) as s:
        assert judging.progress(s, campaign.id, ann.id) == judging.Progress(4, 4, {"clean": 4}, 4)


def test_one_undo_touches_nobody_else(engine: Engine) -> None:
    campaign, ann, bob = fill(engine, 1, overlap=2), person(engine, "Ann"), person(engine, "Bob")
    answer(engine, campaign, ann, "shows")
    answer(engine, campaign, bob, "clean")
    with writing(engine) as s:
        judging.undo(s, campaign.id, ann.id)
        assert [(r.verdict, r.annotator) for r in record.current_judgments(s, "smoking")] == [("clean", bob.pseudonym)]


def test_people_and_simulations_are_kept_apart(engine: Engine) -> None:
    campaign, ann, bot = fill(engine, 1, overlap=2), person(engine, "Ann"), person(engine, "Bot", simulated=True)
    answer(engine, campaign, ann, "shows")
    answer(engine, campaign, bot, "clean")
    with writing(engine) as s:
        found = {k: [r.verdict for r in record.current_judgments(s, "smoking", k)] for k in (None, False, True)}
        assert found == {None: ["shows", "clean"], False: ["shows"], True: ["clean"]}
        with pytest.raises(HfiError, match="kept apart"):
            q.ensure_annotator(s, "bot")


def test_a_judgment_names_guideline_and_program(engine: Engine) -> None:
    from hfi import __version__

    campaign, ann = fill(engine, 2), person(engine, "Ann")
    answer(engine, campaign, ann, "shows")
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking", "Also a pipe."))
        q.add_concept(s, Concept("smoking", "Smoking!", "Also a pipe."))  # the same guideline is no new version
    answer(engine, campaign, ann, "clean")
    with reading(engine) as s:
        rows = record.current_judgments(s, "smoking")
    assert [(r.guideline_version, r.app_version) for r in rows] == [(1, __version__), (2, __version__)]


# --- names, images, campaigns ---


def test_one_person_is_one_annotator_however_the_name_is_written(engine: Engine) -> None:
    spellings = ["Zoë  Straße", unicodedata.normalize("NFD", "Zoë Straße"), " ZOË STRASSE "]
    assert len({person(engine, name).id for name in spellings}) == 1
    with writing(engine) as s:
        for name in ("", " ", "x" * 81):
            with pytest.raises(HfiError, match="1 to 80"):
                q.ensure_annotator(s, name)
    assert person(engine, "Ann").pseudonym != person(engine, "Bob").pseudonym


def test_an_image_of_the_same_key_is_the_same_image(engine: Engine) -> None:
    with writing(engine) as s:
        first = q.add_image(s, provenance(1))
        assert q.add_image(s, provenance(1)) == first
        q.add_image(s, provenance(2))
        assert q.has_keys(s, ["k1", "k2", "k3"]) == {"k1", "k2"}
        assert [image.seed for image in q.images(s)] == [1, 2]
        assert [image.seed for image in q.images(s, prompt="p2")] == [2]
        assert len(q.images(s, limit=1)) == 1
        assert q.images(s, source="imported") == []


def test_a_campaign_takes_new_images_and_keeps_old_tasks(engine: Engine) -> None:
    campaign, ann = fill(engine, 3), person(engine, "Ann")
    answer(engine, campaign, ann, "shows")
    with writing(engine) as s:
        ids = [image.id for image in q.images(s)] + [q.add_image(s, provenance(i)).id for i in (10, 11)]
        grown = campaigns.ensure_campaign(s, "smoking", "default", image_ids=ids)
        assert (grown.id, grown.tasks) == (campaign.id, 5)
        assert campaigns.ensure_campaign(s, "smoking", "default", image_ids=ids).tasks == 5
        assert judging.progress(s, campaign.id, ann.id) == judging.Progress(1, 5, {"shows": 1}, 1)
        with pytest.raises(HfiError, match="asks 1 people"):
            campaigns.ensure_campaign(s, "smoking", "default", image_ids=ids, asking=campaigns.Asking(overlap=2))
        with pytest.raises(NotFound, match="known are smoking"):
            campaigns.ensure_campaign(s, "gore", "default", image_ids=ids)
        with pytest.raises(NotFound):
            campaigns.campaign(s, 99)


def test_a_large_campaign_is_made_in_few_statements(engine: Engine) -> None:
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking"))
        ids = [q.add_image(s, provenance(i)).id for i in range(1100)]
        asking = campaigns.Asking(overlap=2, benign=ids[:20], gold=dict.fromkeys(ids[20:30], "shows"))
    with listening(engine) as heard, writing(engine) as s:
        made = campaigns.ensure_campaign(s, "smoking", "large", image_ids=ids, asking=asking)
    assert made.tasks == 1090
    assert sum(one.count for one in heard.statements.values()) < 20
    with reading(engine) as s:
        columns = (m.Task.id, m.Task.place, m.Task.kind, m.Task.wanted, m.Task.free, m.Task.answers, m.Task.held)
        tasks = s.execute(select(*columns).order_by(m.Task.place)).all()
        image_of = dict(s.execute(select(m.TaskImage.task_id, m.TaskImage.image_id)).tuples().all())
        known = dict(s.execute(select(m.Gold.task_id, m.Gold.verdict)).tuples().all())
    assert [task.place for task in tasks] == list(range(1100))
    assert [task.id for task in tasks] == sorted(task.id for task in tasks)
    by_kind = {kind: [image_of[task.id] for task in tasks if task.kind == kind] for kind in ("item", "benign", "gold")}
    assert sorted(by_kind["item"]) == ids[30:] and sorted(by_kind["benign"]) == ids[:20] and by_kind["gold"] == ids[20:30]
    assert known == {task.id: "shows" for task in tasks[-10:]}
    assert {tuple(task)[2:] for task in tasks} == {
        ("item", 2, 2, 0, 0), ("benign", 1, 1, 0, 0), ("gold", 0, 0, 0, 0)
    }  # fmt: skip


def test_a_rest_of_a_ranking_waits_for_more_images(engine: Engine) -> None:
    campaign = fill(engine, 7, question="ranking")
    assert campaign.tasks == 1
    with writing(engine) as s:
        more = [q.add_image(s, provenance(i)).id for i in range(10)]
        assert campaigns.ensure_campaign(s, "smoking", "default", image_ids=more).tasks == 2


def test_a_concepts_question_does_not_change_under_its_judgments(engine: Engine) -> None:
    fill(engine, 1)
    with writing(engine) as s, pytest.raises(HfiError, match="binary questions already"):
        q.add_concept(s, Concept("smoking", "Smoking", question="ranking"))


# --- guards in the schema ---


def test_judgments_and_rankings_cannot_be_changed_or_removed(engine: Engine) -> None:
    campaign, ann = fill(engine, 5, question="ranking"), person(engine, "Ann")
    held = claim(engine, campaign, ann)
    with writing(engine) as s:
        judging.submit(s, held.token, ann.id, "ranked", "x", ranking=[i.image_id for i in held.images])
    for statement in (
        "UPDATE judgments SET verdict = 'none'",
        "DELETE FROM judgments",
        "UPDATE rankings SET rank = 9",
        "DELETE FROM rankings",
    ):
        with pytest.raises(DatabaseError, match="append-only"), writing(engine) as s:
            s.execute(text(statement))
    with reading(engine) as s:
        assert len(record.current_judgments(s, "smoking")) == 1


def test_the_schema_refuses_what_a_wrong_program_would_write(engine: Engine) -> None:
    campaign, ann = fill(engine, 1), person(engine, "Ann")
    answer(engine, campaign, ann, "shows")
    columns = (
        "task_id, annotator_id, assignment_id, revision, verdict, idempotency_token, guideline_version, app_version, created_at"
    )
    good = {"task_id": 1, "annotator_id": ann.id, "assignment_id": 1, "revision": 2, "verdict": "clean", "token": "t"}
    for wrong, said in (
        ({"revision": 1}, "(?i)unique"),
        ({"token": None}, "(?i)not.null"),
        ({"verdict": "maybe"}, "(?i)check"),
        ({"task_id": 77}, "(?i)foreign key"),
        ({"annotator_id": 77}, "(?i)foreign key"),
    ):
        values = ":task_id, :annotator_id, :assignment_id, :revision, :verdict, :token, 1, '', '2026-01-01'"
        with pytest.raises(IntegrityError, match=said), writing(engine) as s:
            s.execute(text(f"INSERT INTO judgments ({columns}) VALUES ({values})"), {**good, **wrong})
    taken = "INSERT INTO assignments (task_id, annotator_id, token, shown_order, state, opened_at, lease_expires_at)"
    with pytest.raises(IntegrityError, match=r"(?i)unique"), writing(engine) as s:
        s.execute(text(f"{taken} SELECT task_id, annotator_id, 'new', shown_order, state, opened_at, opened_at FROM assignments"))


@pytest.mark.sqlite
def test_every_connection_is_set_for_several_writers(engine: Engine) -> None:
    for _ in range(2):
        with engine.connect() as connection:
            found = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("foreign_keys", "journal_mode", "busy_timeout")
            ]
            assert found[:2] == [1, "wal"]
            assert found[2] >= 5000


def test_reading_sees_one_state_while_others_write(engine: Engine) -> None:
    fill(engine, 1)
    with reading(engine) as s:
        assert len(q.images(s)) == 1
        with writing(engine) as other:
            q.add_image(other, provenance(50))
        assert len(q.images(s)) == 1


def test_a_failure_in_a_transaction_leaves_nothing(engine: Engine) -> None:
    def half_done() -> None:
        with writing(engine) as s:
            q.add_image(s, provenance(1))
            s.execute(text("INSERT INTO task_images (task_id, image_id, position) VALUES (7, 7, 0)"))

    with pytest.raises(IntegrityError):
        half_done()
    with reading(engine) as s:
        assert q.images(s) == []


def test_times_are_aware_and_come_back_as_utc(engine: Engine) -> None:
    campaign, ann = fill(engine, 1), person(engine, "Ann")
    tokyo = datetime(2026, 3, 4, 3, 4, tzinfo=timezone(timedelta(hours=9)))
    answer(engine, campaign, ann, "shows", tokyo)
    with reading(engine) as s:
        time = record.current_judgments(s, "smoking")[0].created_at
    assert time == tokyo
    assert time.tzinfo == UTC
    with writing(engine) as s, pytest.raises(StatementError, match="without its zone"):
        judging.claim_next(s, campaign.id, person_id := ann.id, datetime(2026, 3, 4))
    assert person_id == ann.id


# --- migrations ---


def test_the_migrations_make_what_the_models_say(engine: Engine) -> None:
    with engine.connect() as connection:
        difference = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), m.Base.metadata)
        where = {
            "sqlite": "SELECT name FROM sqlite_master WHERE type = 'trigger'",
            "postgresql": "SELECT DISTINCT trigger_name FROM information_schema.triggers",
        }
        triggers = connection.exec_driver_sql(where[engine.dialect.name]).scalars().all()
    assert difference == []
    assert Counter(name.split("_")[0] for name in triggers) == {"judgments": 3, "rankings": 2, "adjudications": 3}


def test_a_database_of_version_0001_keeps_every_row(tmp_path: Path) -> None:
    space = Workspace.create(tmp_path / "a%40b?#")  # a path with signs that mean something in a URL
    path = space.path / "hfi.db"
    shutil.copy(OLD, path)
    before = counts(path)
    assert before == {
        "images": 5,
        "concepts": 2,
        "campaigns": 2,
        "tasks": 6,
        "task_images": 10,
        "annotators": 2,
        "assignments": 6,
        "judgments": 7,
        "rankings": 5,
    }
    upgrade(space.database_url)
    assert counts(path) == before
    engine = space.engine()
    with reading(engine) as s:
        rows = record.current_judgments(s, "smoking")
        said = Counter((r.verdict, r.simulated) for r in rows)
        assert said == {("shows", False): 1, ("clean", False): 1, ("clean", True): 1, ("shows", True): 1}
        assert record.current_judgments(s, "brava")[0].verdict == "ranked"
        assert rows[0].created_at == NOON
        assert {image.original_name for image in q.images(s)} == {None, "photo.jpg"}
    engine.dispose()


def counts(path: Path) -> dict[str, int]:
    with sqlite3.connect(path) as db:
        names = [table.name for table in m.Base.metadata.sorted_tables if table.name not in NEW]
        found = {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}
    db.close()
    return found


def unpacked(name: str, folder: Path) -> Path:
    path = folder / "hfi.db"
    path.write_bytes(gzip.decompress((ASSETS / name).read_bytes()))
    return path


def rows_of(path: Path, like: dict[str, list[str]] | None = None) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, or of those tables and columns that `like` names, by id."""
    with closing(sqlite3.connect(path)) as db:
        if like is None:
            names = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            like = {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in names}
        return {
            name: db.execute(f"SELECT {', '.join(columns)} FROM {name} ORDER BY 1").fetchall() for name, columns in like.items()
        }


def columns_of(path: Path) -> dict[str, list[str]]:
    with closing(sqlite3.connect(path)) as db:
        names = [
            row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name != 'alembic_version'")
        ]
        return {name: [row[1] for row in db.execute(f"PRAGMA table_info({name})")] for name in names}


@pytest.fixture(scope="module")
def old_and_new(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The database with 1,000 judgments as version 0001 left it, and brought to today's schema. Read only: copy it."""
    old = unpacked("0001-thousand.db.gz", tmp_path_factory.mktemp("old"))
    new = unpacked("0001-thousand.db.gz", tmp_path_factory.mktemp("new"))
    done = upgrade(f"sqlite:///{new}")
    assert (done.before, done.backup is not None) == ("0001_initial", True)
    return old, new


def test_a_thousand_judgments_of_version_0001_are_the_same_after_the_upgrade(old_and_new: tuple[Path, Path]) -> None:
    old, new = old_and_new
    columns = columns_of(old)
    before, after = rows_of(old, columns), rows_of(new, columns)
    assert len(before) == 9 and len(before["judgments"]) == 1000
    for name, rows in before.items():
        assert after[name] == rows, name
    engine = connect(f"sqlite:///{new}")
    assert {(c, side): freeze(engine, c, side).sha256 for c, side in THOUSAND} == THOUSAND  # type: ignore[arg-type]
    with reading(engine) as s:
        assert q.concept(s, "smoking").title == 'Smoking: 100 % "it\'s" there'
        assert q.concept(s, "smoking").guideline == "A cigarette; %(x)s 'quoted'."
        assert [(c.name, c.overlap, c.tasks) for c in campaigns.campaigns(s)] == [
            ("people", 3, 300), ('again, 100% "sure"', 1, 60), ("people", 2, 60),
        ]  # fmt: skip
    engine.dispose()
    with closing(sqlite3.connect(new)) as db:
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_the_copy_from_before_an_upgrade_is_the_old_database(old_and_new: tuple[Path, Path]) -> None:
    old, new = old_and_new
    (copy,) = new.parent.glob("*.backup.db")
    assert rows_of(copy) == rows_of(old)
    again = upgrade(f"sqlite:///{new}")
    assert (again.before, again.after, again.backup) == ("0003_scale", "0003_scale", None)
    assert list(new.parent.glob("*.backup.db")) == [copy]


def test_the_counts_that_an_upgrade_makes_are_those_of_a_recount(old_and_new: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copy(old_and_new[1], tmp_path / "hfi.db")
    engine = connect(f"sqlite:///{tmp_path / 'hfi.db'}")
    fields = (m.Task.id, m.Task.wanted, m.Task.answers, m.Task.held, m.Task.free, m.Task.kind)
    with writing(engine) as s:
        before = s.execute(select(*fields).order_by(m.Task.id)).all()
        judging.recount(s, [row[0] for row in before])
        assert s.execute(select(*fields).order_by(m.Task.id)).all() == before
        assert sum(row.answers for row in before) > 700 and sum(row.held for row in before) == 4
        assert {row.free for row in before} >= {0, 1, 3}
        living: Counter[tuple[int, int]] = Counter()
        for campaign_id, who in s.execute(
            select(m.Task.campaign_id, m.Judgment.annotator_id)
            .join(m.Task, m.Task.id == m.Judgment.task_id)
            .where(m.Judgment.verdict != "undone", judging.is_last(m.Judgment))
        ):
            living[campaign_id, who] += 1
        places = select(m.Task.campaign_id, m.Assignment.annotator_id, func.max(m.Task.place)).join(m.Task)
        far = {(c, who): place for c, who, place in s.execute(places.group_by(m.Task.campaign_id, m.Assignment.annotator_id))}
        found = s.scalars(select(m.Participant)).all()
        assert {(p.campaign_id, p.annotator_id): (p.done, p.cursor) for p in found} == {k: (living[k], far[k]) for k in far}
        assert len(found) == len(far) == 21  # everybody in every campaign
    engine.dispose()


def test_an_upgraded_database_refuses_what_it_always_refused(old_and_new: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copy(old_and_new[1], tmp_path / "hfi.db")
    engine = connect(f"sqlite:///{tmp_path / 'hfi.db'}")
    for statement in (
        "UPDATE judgments SET verdict = 'clean' WHERE id = 1",
        "UPDATE judgments SET comment = 'other' WHERE comment IS NOT NULL",
        "UPDATE judgments SET created_at = '2026-01-01' WHERE id = 1",
        "DELETE FROM judgments WHERE id = 1",
        "UPDATE rankings SET rank = 9",
        "DELETE FROM rankings",
    ):
        with pytest.raises(IntegrityError, match="append-only"), writing(engine) as s:
            s.execute(text(statement))
    with pytest.raises(IntegrityError, match="FOREIGN KEY"), writing(engine) as s:
        s.execute(text("UPDATE tasks SET campaign_id = 99 WHERE id = 1"))
    with writing(engine) as s:
        s.execute(text("UPDATE judgments SET comment = NULL"))  # of somebody who withdrew
    engine.dispose()


def test_judging_goes_on_in_an_upgraded_database(old_and_new: tuple[Path, Path], tmp_path: Path) -> None:
    """Whoever had a task in hand has it still; a judgment from before can be taken back; the campaign comes to its end."""
    shutil.copy(old_and_new[1], tmp_path / "hfi.db")
    engine = connect(f"sqlite:///{tmp_path / 'hfi.db'}")
    now = datetime(2026, 11, 20, 23, 17, tzinfo=UTC)
    with writing(engine) as s:
        campaign = campaigns.campaigns(s, "smoking")[0]
        open_ = select(m.Assignment.annotator_id, m.Assignment.token).where(m.Assignment.state == "open")
        in_hand = dict(s.execute(open_).tuples().all())
        assert len(in_hand) == 4
        ann = q.ensure_annotator(s, "Ann")
        before = judging.progress(s, campaign.id, ann.id)
        held = judging.claim_next(s, campaign.id, ann.id, now)
        assert held is not None and (held.token, held.done) == (in_hand[ann.id], before.done)
        judging.submit(s, held.token, ann.id, "shows", "new-1", now=now)
        back = judging.undo(s, campaign.id, ann.id, now)
        assert back is not None and back.token == held.token
        older = judging.undo(s, campaign.id, ann.id, now)  # what was said before the upgrade
        assert older is not None and older.done == before.done - 1
        judging.submit(s, older.token, ann.id, "clean", "new-2", now=now)
        assert judging.progress(s, campaign.id, ann.id).done == before.done
    later = now + timedelta(days=1)  # every lease has run out
    with reading(engine) as s:
        answers, people = judging.progress(s, campaign.id).answers, q.annotators(s)[1:]
    for n in range(40):
        who = people[n % len(people)]
        with writing(engine) as s:
            claimed = judging.claim_next(s, campaign.id, who.id, later)
            assert claimed is not None
            judging.submit(s, claimed.token, who.id, "clean", f"later-{n}", now=later)
    with reading(engine) as s:
        assert judging.progress(s, campaign.id).answers == answers + 40  # none beyond what was wanted
        assert max(s.scalars(select(m.Task.answers).where(m.Task.campaign_id == campaign.id))) == 3
    engine.dispose()


def test_a_database_of_this_version_stays_readable(tmp_path: Path) -> None:
    """0002.db.gz has rows in every table; every later version has to take them over."""
    path = unpacked("0002.db.gz", tmp_path)
    columns = columns_of(path)
    before = rows_of(path, columns)
    assert len(before) == 20 and all(before.values())
    upgrade(f"sqlite:///{path}")
    assert rows_of(path, columns) == before
    engine = connect(f"sqlite:///{path}")
    assert {c: freeze(engine, c, "include").sha256 for c in TODAY} == TODAY
    said = freeze(engine, "smoking").judgments
    assert [j.verdict for j in said if j.adjudicated] == ["clean"] and any(j.region for j in said)
    assert {j.ranks for j in freeze(engine, "brava").judgments} == {None, (1, 2, 2, 4, 5)}
    engine.dispose()


def test_an_upgrade_copies_a_database_with_tables_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hfi.db"
    url = f"sqlite:///{path}"
    assert upgrade(url).backup is None  # nothing there yet
    assert upgrade(url).backup is None  # nothing to do
    engine = connect(url)
    fill(engine, 3)
    with engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'gone'")
        connection.commit()
    with pytest.raises(HfiError, match="newer hfi"):
        check_current(engine)
    engine.dispose()
    scripts = _with_second_migration(tmp_path)
    monkeypatch.setattr("hfi.store.migrate.migrations_dir", lambda: scripts)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '0003_scale'")
    db.close()
    engine = connect(url)
    assert not status(engine).current
    with pytest.raises(HfiError, match="hfi db upgrade"):
        check_current(engine)
    engine.dispose()

    done = upgrade(url)
    assert (done.before, done.after) == ("0003_scale", "0004_second")
    assert done.backup is not None
    with sqlite3.connect(done.backup) as copy:
        assert copy.execute("SELECT count(*) FROM images").fetchone() == (3,)
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("0003_scale",)
    copy.close()
    with sqlite3.connect(path) as db:  # rebuilding the parent table took no child with it
        assert db.execute("SELECT count(*) FROM task_images").fetchone() == (3,)
        assert "note" in [row[1] for row in db.execute("PRAGMA table_info(images)")]
    db.close()


def _with_second_migration(folder: Path) -> Path:
    """The project's migrations and one more, which rebuilds a table that others refer to."""
    scripts = folder / "migrations"
    shutil.copytree(Path(__file__).parent.parent / "migrations", scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "0004_second.py").write_text(
        "import sqlalchemy as sa\nfrom alembic import op\n"
        "revision = '0004_second'\ndown_revision = '0003_scale'\n\n\n"
        "def upgrade():\n"
        "    with op.batch_alter_table('images', recreate='always') as batch:\n"
        "        batch.add_column(sa.Column('note', sa.Text()))\n"
    )
    return scripts


def test_a_migration_that_breaks_a_reference_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "hfi.db"
    shutil.copy(OLD, path)
    scripts = _with_second_migration(tmp_path)
    (scripts / "versions" / "0004_second.py").write_text(
        "from alembic import op\nrevision = '0004_second'\ndown_revision = '0003_scale'\n\n\n"
        "def upgrade():\n    op.execute('DELETE FROM images WHERE id = 1')\n"
    )
    monkeypatch.setattr("hfi.store.migrate.migrations_dir", lambda: scripts)
    before = counts(path)
    with pytest.raises(HfiError, match=r"leave 3 rows that refer to rows that do not exist .* nothing was changed"):
        upgrade(f"sqlite:///{path}")
    assert counts(path) == before


def test_an_upgrade_that_stops_half_way_can_be_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'hfi.db'}"
    scripts = _with_second_migration(tmp_path)
    whole = (scripts / "versions" / "0004_second.py").read_text()
    (scripts / "versions" / "0004_second.py").write_text(whole + "    raise KeyboardInterrupt\n")
    with monkeypatch.context() as patch:
        patch.setattr("hfi.store.migrate.migrations_dir", lambda: scripts)
        with pytest.raises(KeyboardInterrupt):
            upgrade(url)
    engine = connect(url)
    with engine.connect() as connection:
        assert not connection.exec_driver_sql("SELECT name FROM sqlite_master").all()
    engine.dispose()
    assert upgrade(url).before is None


def test_a_database_of_a_later_program_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "hfi.db"
    shutil.copy(OLD, path)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE alembic_version SET version_num = '0099_later'")
    db.close()
    with pytest.raises(HfiError, match=r"newer hfi .*0099_later"):
        upgrade(f"sqlite:///{path}")
    assert [p.name for p in tmp_path.glob("*.backup.db")] == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "no database URL"),
        ("oracleish://host/db", "no database URL"),
        ("sqlite:////nowhere/at/all/hfi.db", "there is no folder"),
    ],
)
def test_a_bad_url_is_one_clear_sentence(url: str, said: str) -> None:
    for use in (connect, upgrade):
        with pytest.raises(HfiError, match=said):
            use(url)


def test_a_file_that_is_no_database_is_said_and_a_password_is_not(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, only a long enough text to be looked at " * 20)
    with pytest.raises(HfiError, match=r"text.db is damaged .*not a database\): restore it from a backup"):
        connect(f"sqlite:///{tmp_path / 'text.db'}")
    with pytest.raises(HfiError) as told:
        connect("postgresql+nodriver://ann:secret@host/db")
    assert "secret" not in str(told.value)


@pytest.mark.sqlite
def test_who_does_not_want_to_wait_is_told_at_once_and_has_done_nothing(engine: Engine) -> None:
    def add(name: str) -> None:
        with writing(engine, wait=False) as s:
            q.ensure_annotator(s, name)

    add("Ann")
    with writing(engine), pytest.raises(Busy):  # somebody else in this program
        add("Bob")
    with closing(sqlite3.connect(str(engine.url.database), isolation_level=None)) as other:  # and in another one
        other.execute("BEGIN IMMEDIATE")
        before = time.monotonic()
        for _ in range(3):
            with pytest.raises(Busy):
                add("Bob")
        assert time.monotonic() - before < 5  # busy_timeout is 30 s
        other.execute("ROLLBACK")
    add("Cem")
    with reading(engine) as s:
        assert sorted(s.scalars(select(m.Annotator.name))) == ["Ann", "Cem"]
        assert s.connection().exec_driver_sql("PRAGMA busy_timeout").scalar_one() == 30_000


def test_an_engine_that_nobody_uses_any_more_goes(engine: Engine) -> None:
    another = connect(engine.url.render_as_string(hide_password=False))
    with writing(another), reading(another) as s:
        assert not list(s.scalars(select(m.Judgment)))
    gone = weakref.ref(another)
    del another, s
    gc.collect()
    assert gone() is None
