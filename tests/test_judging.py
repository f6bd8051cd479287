"""Handing out tasks: gold, extra votes, ties, named people, benign images, and counts that always agree with what was judged."""

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from hfi.concepts import Concept
from hfi.errors import HfiError, NotFound
from hfi.store import campaigns, judging, record
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store.campaigns import Asking, Campaign
from hfi.store.queries import Annotator
from hfi.store.session import Engine, Session, reading, writing
from hfi.workspace import Workspace

pytestmark = pytest.mark.databases

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
def engine(workspace: Workspace) -> Iterator[Engine]:
    engine = workspace.engine()
    with writing(engine) as s:
        q.add_concept(s, Concept("smoking", "Smoking"))
        q.add_concept(s, Concept("brava", "Brava", question="ranking"))
    yield engine
    engine.dispose()


def pictures(s: Session, count: int, start: int = 0) -> list[int]:
    about = {"width": 8, "height": 8, "source": "generated"}
    return [
        q.add_image(s, q.Provenance(key=f"k{i}", sha256=f"{i:064x}", prompt=f"p{i}", **about)).id  # type: ignore[arg-type]
        for i in range(start, start + count)
    ]


def campaign(engine: Engine, count: int, asking: Asking, concept: str = "smoking", name: str = "people") -> Campaign:
    with writing(engine) as s:
        return campaigns.ensure_campaign(s, concept, name, image_ids=pictures(s, count), asking=asking)


def person(engine: Engine, name: str) -> Annotator:
    with writing(engine) as s:
        return q.ensure_annotator(s, name)


def judge(engine: Engine, where: Campaign, who: Annotator, verdict: str, now: datetime = NOON) -> int | None:
    """Judges the next task and says which image it was; None where nothing is left."""
    with writing(engine) as s:
        claim = judging.claim_next(s, where.id, who.id, now)
        if claim is None:
            return None
        judging.submit(s, claim.token, who.id, verdict, f"{claim.token} {now} {verdict}", now=now)
        return claim.images[0].image_id


def counts(s: Session) -> dict[int, tuple[int, int, int, int]]:
    return {t.id: (t.wanted, t.answers, t.held, t.free) for t in s.scalars(select(m.Task))}


# --- counts ---


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["shows", "clean", "skip", "claim", "undo", "wait"])),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 3),
    st.integers(0, 1),
)
def test_counts_agree_with_a_recount_whatever_people_do(
    engine: Engine, steps: list[tuple[int, str]], overlap: int, extra: int
) -> None:
    with reading(engine) as s:
        name = f"c{len(campaigns.campaigns(s))}"
    where = campaign(engine, 4, Asking(overlap=overlap, extra_votes=extra, lease_seconds=600), name=name)
    people = [person(engine, f"p{i}") for i in range(3)]
    now = NOON
    for who, what in steps:
        now += timedelta(minutes=11 if what == "wait" else 1)
        if what in ("shows", "clean", "skip"):
            judge(engine, where, people[who], what, now)
        with writing(engine) as s:
            if what == "undo":
                judging.undo(s, where.id, people[who].id, now)
            else:
                judging.serve(s, where.id, people[who].id, now)
    with writing(engine) as s:
        kept = counts(s)
        judging.recount(s, kept)
        s.expire_all()
        assert counts(s) == kept
        ours = s.scalars(select(m.Task.id).where(m.Task.campaign_id == where.id)).all()  # earlier examples asked otherwise
        for task_id, (wanted, answers, held, free) in ((one, kept[one]) for one in ours):
            people_on = s.scalars(select(m.Assignment.annotator_id).where(m.Assignment.task_id == task_id)).all()
            assert len(people_on) == len(set(people_on))
            undone = select(func.count()).where(m.Judgment.task_id == task_id, m.Judgment.verdict == "undone")
            assert answers + held <= max(wanted, overlap + extra) + (s.scalar(undone) or 0)  # who undid a skip may still answer
            assert free == max(0, wanted - answers - held)
        for part in s.scalars(select(m.Participant).where(m.Participant.campaign_id == where.id)):
            done = judging.progress(s, where.id, part.annotator_id)
            assert part.done == done.done


def test_an_image_that_people_differ_about_is_asked_once_more(engine: Engine) -> None:
    where = campaign(engine, 1, Asking(overlap=2, extra_votes=1))
    for name, verdict in (("Ann", "shows"), ("Bob", "clean"), ("Cem", "shows")):
        assert judge(engine, where, person(engine, name), verdict)
    assert judge(engine, where, person(engine, "Dee"), "shows") is None
    agreed = campaign(engine, 1, Asking(overlap=2, extra_votes=1), name="agreed")
    for name in ("Ann", "Bob"):
        assert judge(engine, agreed, person(engine, name), "shows")
    assert judge(engine, agreed, person(engine, "Cem"), "shows") is None


def test_taking_back_the_answer_that_differed_ends_the_extra_vote(engine: Engine) -> None:
    where = campaign(engine, 1, Asking(overlap=2, extra_votes=1))
    ann, bob, cem = (person(engine, name) for name in ("Ann", "Bob", "Cem"))
    judge(engine, where, ann, "shows")
    judge(engine, where, bob, "clean")
    with writing(engine) as s:
        judging.undo(s, where.id, bob.id, NOON)
        assert judging.claim_next(s, where.id, cem.id, NOON) is None
    judge(engine, where, bob, "shows", NOON + timedelta(minutes=1))
    assert judge(engine, where, cem, "shows") is None


# --- gold ---


def test_gold_comes_among_the_others_to_everybody_once_and_is_no_judgment_of_an_image(engine: Engine) -> None:
    with writing(engine) as s:
        ids = pictures(s, 30)
        gold = dict.fromkeys(ids[:3], "shows")
        asking = Asking(overlap=1, gold_every=5, gold=gold)
        where = campaigns.ensure_campaign(s, "smoking", "people", image_ids=ids, asking=asking)
    assert where.tasks == 27
    given: dict[str, list[int]] = {}
    for name in ("Ann", "Bob"):
        who = person(engine, name)
        for minute in range(14):
            image = judge(engine, where, who, "clean", NOON + timedelta(minutes=minute))
            if image is not None:
                given.setdefault(name, []).append(image)
    for name, images in given.items():
        at = [i for i, image in enumerate(images) if image in gold]
        assert len(at) == len({images[i] for i in at}) >= 2, name
        assert [i // 5 for i in at] == sorted({i // 5 for i in at}), "one in each five"
    with reading(engine) as s:
        shas = {row.images[0] for row in record.current_judgments(s, "smoking")}
        assert not shas & {f"{i:064x}" for i in range(3)}
        free = s.scalars(select(m.Task.free).where(m.Task.kind == "gold")).all()
    assert set(free) == {0}


def test_a_gold_answer_that_the_question_does_not_know_is_refused(engine: Engine) -> None:
    with writing(engine) as s, pytest.raises(HfiError, match="'perhaps' is no known answer"):
        campaigns.ensure_campaign(s, "smoking", "gold", image_ids=[], asking=Asking(gold={pictures(s, 1)[0]: "perhaps"}))
    with writing(engine) as s, pytest.raises(HfiError, match="'shows' is no known answer"):
        campaigns.ensure_campaign(s, "brava", "gold", image_ids=[], asking=Asking(gold={pictures(s, 1)[0]: "shows"}))


def test_benign_images_lie_evenly_between_the_others_and_one_person_each_is_asked(engine: Engine) -> None:
    with writing(engine) as s:
        ids = pictures(s, 40)
        where = campaigns.ensure_campaign(s, "smoking", "mixed", image_ids=ids, asking=Asking(overlap=2, benign=ids[:10]))
    with reading(engine) as s:
        kinds = s.scalars(select(m.Task.kind).where(m.Task.campaign_id == where.id).order_by(m.Task.place)).all()
        wanted = {t.wanted for t in s.scalars(select(m.Task).where(m.Task.kind == "benign"))}
    assert Counter(kinds) == {"item": 30, "benign": 10}
    at = [i for i, kind in enumerate(kinds) if kind == "benign"]
    assert max(b - a for a, b in pairwise(at)) <= 5
    assert wanted == {1}


# --- rankings ---


def test_ties_are_kept_where_the_campaign_allows_them(engine: Engine) -> None:
    where = campaign(engine, 5, Asking(ties=True), "brava")
    strict = campaign(engine, 5, Asking(), "brava", "strict")
    ann = person(engine, "Ann")
    with writing(engine) as s:
        claim = judging.claim_next(s, where.id, ann.id)
        assert claim is not None
        assert claim.ties
        a, b, c, d, e = (image.image_id for image in claim.images)
        judging.submit(s, claim.token, ann.id, "ranked", "tied", ranking=[c, [a, e], b, d])
        (row,) = record.current_judgments(s, "brava")
        assert row.ranks == (1, 2, 2, 4, 5)
        other = judging.claim_next(s, strict.id, ann.id)
        assert other is not None
        ids = [image.image_id for image in other.images]
        with pytest.raises(HfiError, match="takes no ties"):
            judging.submit(s, other.token, ann.id, "ranked", "refused", ranking=[ids[:2], *ids[2:]])
        judging.submit(s, other.token, ann.id, "ranked", "kept", ranking=ids)
        assert record.current_judgments(s, "brava")[1].ranks is None


def test_before_and_after_are_compared_in_pairs_and_stay_out_of_the_concepts_judgments(engine: Engine) -> None:
    where = campaign(engine, 6, Asking(compare=True, ties=True))
    ann = person(engine, "Ann")
    assert (where.question, where.tasks) == ("compare", 3)
    with writing(engine) as s:
        pairs = set()
        for n in range(3):
            claim = judging.claim_next(s, where.id, ann.id)
            assert claim is not None
            ids = [image.image_id for image in claim.images]
            pairs.add(tuple(sorted(ids)))
            answer = {"ranking": [ids]} if n == 0 else {"ranking": ids} if n == 1 else {}
            judging.submit(s, claim.token, ann.id, "ranked" if answer else "none", f"pair {n}", **answer)
        first = min(i for pair in pairs for i in pair)
        assert pairs == {(first + 2 * k, first + 2 * k + 1) for k in range(3)}, "as they were given"
        assert record.current_judgments(s, "smoking") == []


# --- regions and comments ---


def test_a_region_is_kept_in_parts_of_the_image_and_one_outside_is_refused(engine: Engine) -> None:
    where, ann = campaign(engine, 2, Asking()), person(engine, "Ann")
    with writing(engine) as s:
        claim = judging.claim_next(s, where.id, ann.id)
        assert claim is not None
        for wrong in ([0.5, 0.5, 0.6, 0.1], [-0.1, 0, 0.5, 0.5], [0, 0, 0, 0.5], [0.1, 0.2, 0.3], [float("nan")] * 4):
            with pytest.raises(HfiError, match="not within the image"):
                judging.submit(s, claim.token, ann.id, "shows", "wrong", region=wrong)
        judging.submit(s, claim.token, ann.id, "shows", "right", region=[0.25, 0.5, 0.5, 0.5], comment=" smoke\x00\x1b[31m\n ")
        (row,) = record.current_judgments(s, "smoking")
        assert row.region == (0.25, 0.5, 0.5, 0.5)
        assert row.comment == "smoke[31m"
        claim = judging.claim_next(s, where.id, ann.id)
        assert claim is not None
        with pytest.raises(HfiError, match="at most 2,000"):
            judging.submit(s, claim.token, ann.id, "shows", "long", comment="x" * 2001)


# --- who may judge ---


def test_a_campaign_of_named_people_is_nobody_elses(engine: Engine) -> None:
    where = campaign(engine, 2, Asking(access="named"))
    open_to_all = campaign(engine, 2, Asking(), name="all")
    ann, bob = person(engine, "Ann"), person(engine, "Bob")
    with writing(engine) as s:
        campaigns.name_participant(s, where.id, ann.id)
        campaigns.name_participant(s, where.id, ann.id)
        assert [c.id for c in campaigns.open_campaigns(s, ann.id)] == [open_to_all.id, where.id]
        assert [c.id for c in campaigns.open_campaigns(s, bob.id)] == [open_to_all.id]
        claim = judging.claim_next(s, where.id, ann.id)
        assert claim is not None
        with pytest.raises(NotFound, match="not yours"):
            judging.claim_next(s, where.id, bob.id)
        with pytest.raises(NotFound, match="not yours"):
            judging.undo(s, where.id, bob.id)
        with pytest.raises(NotFound, match="not yours"):
            judging.submit(s, claim.token, bob.id, "shows", "bob's")


def test_a_closed_campaign_gives_nothing_out_and_takes_what_was_in_hand(engine: Engine) -> None:
    where, ann = campaign(engine, 3, Asking()), person(engine, "Ann")
    with writing(engine) as s:
        claim = judging.claim_next(s, where.id, ann.id)
        assert claim is not None
        campaigns.set_state(s, where.id, "closed")
        assert judging.claim_next(s, where.id, ann.id) is None
        judging.submit(s, claim.token, ann.id, "shows", "in hand")
        assert campaigns.open_campaigns(s, ann.id) == []
        campaigns.set_state(s, where.id, "open")
        assert judging.claim_next(s, where.id, ann.id) is not None
