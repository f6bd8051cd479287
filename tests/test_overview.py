"""The dashboard's figures: counted right, equal to what `hfi.aggregate` and scipy say, people and simulations apart."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import asked
import numpy as np
import pytest
from scipy.stats import binomtest

from hfi import dashboard
from hfi.aggregate import agreement
from hfi.dashboard import numbers
from hfi.errors import HfiError, NotFound
from hfi.judgments import freeze
from hfi.store import adjudicating, judging, overview, rounds
from hfi.store import models as m
from hfi.store import queries as q
from hfi.store.campaigns import Campaign
from hfi.store.judging import Claim
from hfi.store.session import Engine, Session, reading, writing
from hfi.workspace import Workspace

pytestmark = pytest.mark.databases

NOON = datetime(2026, 11, 25, 12, tzinfo=UTC)


@pytest.fixture
def engine(workspace: Workspace) -> Engine:
    engine = workspace.engine()
    asked.concept(engine)
    return engine


def figures(engine: Engine, campaign: Campaign, now: datetime = NOON) -> dashboard.Numbers:
    with reading(engine) as s:
        (filling,) = overview.fillings(s, campaign.id)
        return numbers(s, filling, now)


def noisy(seed: int, ids: list[int], error: float) -> Callable[[Claim], str]:
    """Somebody who errs about an image (every other one shows it) with some chance, and is unsure about one in ten."""

    def say(claim: Claim) -> str:
        i = claim.images[0].image_id
        rng = np.random.default_rng([seed, i])
        if rng.random() < 0.1:
            return "unsure"
        return "shows" if (ids.index(i) % 2 == 0) != (rng.random() < error) else "clean"

    return say


def tasks(s: Session, campaign: Campaign) -> dict[int, int]:
    """image id -> task"""
    query = s.query(m.TaskImage.image_id, m.TaskImage.task_id).join(m.Task).where(m.Task.campaign_id == campaign.id)
    return dict(query.all())


def test_a_campaigns_filling_is_what_judging_says_of_it(engine: Engine) -> None:
    ids = asked.images(engine, 12)
    benign = [asked.image(engine, 100 + i, run="flowers") for i in range(2)]
    here = asked.campaign(engine, ids[:10], overlap=2, extra_votes=1, gold={ids[11]: "clean"}, gold_every=3, benign=benign)
    empty = asked.campaign(engine, [], name="empty")
    for seed, name in enumerate(("Ann", "Bob", "Cem")):
        asked.answers(engine, here, name, lambda c, seed=seed: "shows" if (c.images[0].image_id + seed) % 3 else "clean")
    with reading(engine) as s:
        last, first = overview.fillings(s)
        far = judging.progress(s, here.id)
    assert (first.full, first.tasks, first.answers) == (far.done, far.total, far.answers)
    assert (first.benign, first.gold, first.overlap, first.extra_votes) == (2, 1, 2, 1)
    assert first.wanted > 10 * 2 + 2, "a task whose answers differ wants one more"
    assert (last.id, last.tasks, last.wanted, last.full) == (empty.id, 0, 0, 0)


def test_agreement_is_that_of_the_aggregate(engine: Engine) -> None:
    ids = asked.images(engine, 40)
    here = asked.campaign(engine, ids, overlap=3)
    for seed, error in enumerate((0.05, 0.1, 0.3, 0.2)):
        asked.answers(engine, here, f"person {seed}", noisy(seed, ids, error))
    robots = asked.campaign(engine, ids[:6], name="simulated", overlap=2)
    for seed in (7, 8):
        asked.answers(engine, robots, f"robot {seed}", noisy(seed, ids, 0.4), simulated=True)
    found = figures(engine, here).people
    wanted = agreement(freeze(engine, "smoking"))
    assert found.agreed.alpha == pytest.approx(wanted.alpha, abs=1e-12)
    assert found.agreed.raw == pytest.approx(wanted.raw, abs=1e-12)
    assert found.agreed.units == wanted.units
    assert (found.agreed.low, found.agreed.high) == (pytest.approx(wanted.low, abs=0.03), pytest.approx(wanted.high, abs=0.03))
    people = {a.name: a for a in wanted.annotators}
    for person in found.persons:
        theirs = people[person.who.pseudonym]
        assert person.judgments == theirs.judgments
        assert person.shows.value == pytest.approx(theirs.shows)
        assert person.with_others.value == pytest.approx(theirs.accuracy)
    assert [p.who.name for p in found.persons] == [f"person {i}" for i in range(4)]
    assert figures(engine, here).simulated.persons == ()
    side = figures(engine, robots)
    assert (side.people.judgments, len(side.simulated.persons)) == (0, 2)
    assert side.hourly is None, "nobody waits for a simulation"


def test_agreement_of_rankings_too(engine: Engine) -> None:
    asked.concept(engine, "beauty", "ranking")
    ids = asked.images(engine, 20)
    here = asked.campaign(engine, ids, slug="beauty", overlap=3)

    def order(seed: int) -> Callable[[Claim], list[int]]:
        def say(claim: Claim) -> list[int]:
            rng = np.random.default_rng([seed, claim.images[0].image_id])
            return sorted((i.image_id for i in claim.images), key=lambda i: i + 4 * rng.normal())

        return say

    for seed in range(3):
        asked.answers(engine, here, f"person {seed}", order(seed))
    found = figures(engine, here).people.agreed
    wanted = agreement(freeze(engine, "beauty"))
    assert found.units == wanted.units == 40
    assert found.alpha == pytest.approx(wanted.alpha, abs=1e-12)
    assert 0 < wanted.alpha < 1
    assert (found.low, found.high) == (pytest.approx(wanted.low, abs=0.05), pytest.approx(wanted.high, abs=0.05))


def test_too_little_overlap_is_said_and_not_called_zero(engine: Engine) -> None:
    a, b, c = asked.images(engine, 3)
    here = asked.campaign(engine, [a, b, c], overlap=2)
    asked.answers(engine, here, "Ann", asked.by_image({a: "shows", b: "clean", c: "unsure"}))
    assert figures(engine, here).people.agreed == dashboard.Agreed(None, None, None, None, 0)
    asked.answers(engine, here, "Bob", asked.by_image({a: "shows", b: "unsure", c: "unsure"}))
    assert figures(engine, here).people.agreed == dashboard.Agreed(None, None, None, None, 1)
    asked.answers(engine, here, "Cem", asked.by_image({b: "clean", c: "clean"}))
    assert figures(engine, here).people.agreed.alpha == 1.0


def test_persons_against_the_consensus_and_against_gold(engine: Engine) -> None:
    ids = asked.images(engine, 6)
    gold = {asked.image(engine, 50 + i): "clean" for i in range(8)}
    here = asked.campaign(engine, ids, overlap=4, gold=gold, gold_every=1)
    truth = {i: "shows" if n < 3 else "clean" for n, i in enumerate(ids)} | gold
    for name in ("Ann", "Bob", "Cem"):
        asked.answers(engine, here, name, asked.by_image(truth))
    hasty = truth | {ids[0]: "clean", ids[5]: "shows"} | dict.fromkeys(gold, "shows")
    asked.answers(engine, here, "Dan", asked.by_image(hasty), ms=100)
    people = {p.who.name: p for p in figures(engine, here).people.persons}
    assert people["Ann"].confusion == (3, 0, 0, 3)
    assert people["Dan"].confusion == (2, 1, 1, 2)
    assert (people["Dan"].with_others.value, people["Dan"].with_others.n) == (pytest.approx(4 / 6), 6)
    right = people["Ann"].gold
    assert (right.value, right.n, right.low) == (1.0, 8, pytest.approx(0.6756, abs=1e-4))
    assert people["Dan"].gold.value == 0
    assert people["Dan"].flags == ("gold: 0 of 8 right",), "14 answers are too few to speak of speed"
    assert people["Ann"].flags == ()
    assert people["Dan"].seconds == pytest.approx(0.1)
    side = figures(engine, here).people
    assert side.judgments == 24, "gold answers say something of people alone"
    assert (side.gold.n, side.gold.value) == (32, 24 / 32)
    assert dashboard.flags([0.3] * 11 + [2.0] * 10, right) == ("half of the answers within 0.5 s",)
    assert dashboard.flags([0.3] * 19, right) == ()
    with writing(engine) as s:
        adjudicating.decide(s, tasks(s, here)[ids[0]], people["Ann"].who.id, "clean")
    people = {p.who.name: p for p in figures(engine, here).people.persons}
    assert people["Dan"].confusion == (2, 0, 1, 3), "a decision stands above the majority"
    assert people["Ann"].confusion == (2, 0, 1, 3)


def test_pace_is_of_the_last_hour_and_of_people(engine: Engine) -> None:
    ids = asked.images(engine, 30)
    here = asked.campaign(engine, ids, overlap=1)

    def few(n: int) -> Callable[[Claim], str | None]:
        left = iter([True] * n)
        return lambda claim: "shows" if next(left, False) else None

    asked.answers(engine, here, "Ann", few(5), now=NOON - timedelta(hours=3))
    asked.answers(engine, here, "robot", few(4), now=NOON - timedelta(minutes=10), simulated=True)
    assert figures(engine, here).hourly is None
    asked.answers(engine, here, "Bob", few(6), now=NOON - timedelta(minutes=30))
    found = figures(engine, here)
    assert found.filling.answers == 15
    assert found.hourly == pytest.approx(12)
    assert found.hours_left == pytest.approx(15 / 12)


def test_whoever_withdrew_counts_nowhere(engine: Engine) -> None:
    a, b = asked.images(engine, 2)
    here = asked.campaign(engine, [a, b], overlap=2)
    ann = asked.answers(engine, here, "Ann", lambda c: "shows")
    asked.answers(engine, here, "Bob", lambda c: "clean")
    with writing(engine) as s:
        s.add(m.Shift(annotator_id=ann.id, started_at=NOON, last_at=NOON, judgments=2, harmful=2))
    with writing(engine) as s:
        assert len(adjudicating.disputed(s, here.id)) == 2
        s.get_one(m.Annotator, ann.id).withdrawn_at = NOON
    found = figures(engine, here)
    assert [p.who.name for p in found.people.persons] == ["Bob"]
    with reading(engine) as s:
        assert adjudicating.disputed(s, here.id) == []
        assert overview.exposure(s, NOON) == []


def test_exposure_by_name_today_and_altogether(engine: Engine) -> None:
    with writing(engine) as s:
        people = [q.ensure_annotator(s, name) for name in ("zoe", "Ann")]
        day = timedelta(days=1)
        for person, start, minutes, harmful in (
            (people[0], NOON - day, 30, 5),
            (people[0], NOON - timedelta(minutes=20), 40, 7),
            (people[1], NOON - 2 * day, 10, 1),
        ):
            last = start + timedelta(minutes=minutes)
            s.add(m.Shift(annotator_id=person.id, started_at=start, last_at=last, judgments=9, harmful=harmful))
    with reading(engine) as s:
        ann, zoe = overview.exposure(s, NOON)
    assert (ann.name, ann.minutes_today, ann.harmful_today, ann.minutes, ann.harmful) == ("Ann", 0, 0, 10, 1)
    assert (zoe.name, zoe.minutes_today, zoe.harmful_today, zoe.minutes, zoe.harmful) == ("zoe", 20, 7, 70, 12)


# --- decisions ---


def test_disputed_tasks_come_worst_first_and_go_when_decided(engine: Engine) -> None:
    a, b, c, d = asked.images(engine, 4)
    here = asked.campaign(engine, [a, b, c, d], overlap=4)
    says = {a: "ssss", b: "sssc", c: "sscc", d: "suuc"}
    words = {"s": "shows", "c": "clean", "u": "unsure"}
    for n in range(4):
        person = asked.answers(engine, here, f"person {n}", asked.by_image({i: words[said[n]] for i, said in says.items()}))
    with writing(engine) as s:
        of = tasks(s, here)
        found = adjudicating.disputed(s, here.id)
        assert [(x.task, x.shows, x.clean) for x in found] == [(of[c], 2, 2), (of[d], 1, 1), (of[b], 3, 1)]
        case = adjudicating.case_of(s, of[c])
        assert (case.prompt, [v.verdict for v in case.votes], case.decision) == (
            "prompt 2", ["shows", "shows", "clean", "clean"], None,
        )  # fmt: skip
        adjudicating.decide(s, of[c], person.id, "shows", " it is \n")
        with pytest.raises(HfiError, match="decided this already"):
            adjudicating.decide(s, of[c], person.id, "clean")
        adjudicating.decide(s, of[b], person.id, "unsure")
        adjudicating.decide(s, of[c], person.id, "clean", anew=True)
        assert [x.task for x in adjudicating.disputed(s, here.id)] == [of[d]]
        assert adjudicating.decided(s, here.id) == [of[c], of[b]]
        for verdict, note, words in (("skip", None, "unknown decision"), ("shows", "x" * 2001, "2001 characters")):
            with pytest.raises(HfiError, match=words):
                adjudicating.decide(s, of[d], person.id, verdict, note)
        with pytest.raises(NotFound):
            adjudicating.decide(s, 999, person.id, "shows")
    rows = [j for j in freeze(engine, "smoking").judgments if j.adjudicated]
    assert [(j.verdict, j.comment) for j in rows] == [("unsure", None), ("clean", None)]


def test_only_yes_and_no_is_decided(engine: Engine) -> None:
    asked.concept(engine, "beauty", "ranking")
    here = asked.campaign(engine, asked.images(engine, 5), slug="beauty")
    with reading(engine) as s, pytest.raises(HfiError, match="rankings"):
        adjudicating.disputed(s, here.id)


# --- pairs ---


def pairs(engine: Engine, count: int) -> tuple[Campaign, dict[int, int]]:
    """A comparing campaign, and (untouched image -> its number)."""
    ids, number = [], {}
    for i in range(count):
        before = asked.image(engine, i, prompt=f"p{i}")
        number[before] = i
        ids += [before, asked.image(engine, 1000 + i, prompt=f"p{i}", erasure="e" * 64)]
    return asked.campaign(engine, ids, name="pairs", compare=True, ties=True, overlap=3), number


def preferring(number: dict[int, int], choose: Callable[[int], str]) -> Callable[[Claim], asked.Answer]:
    def say(claim: Claim) -> asked.Answer:
        before, after = sorted((i.image_id for i in claim.images), key=lambda i: i not in number)
        what = choose(number[before])
        orders = {"before": [before, after], "after": [after, before], "same": [[after, before]]}
        return orders.get(what, what)

    return say


def test_the_result_of_a_comparison_is_by_pair_and_tested_exactly(engine: Engine) -> None:
    here, number = pairs(engine, 12)
    plan = ["before"] * 7 + ["after"] * 1 + ["same", "none"] + ["before", "before"]
    for n in range(3):
        # of pair 10 everybody says something else; of pair 11 two are unsure
        def choose(i: int, n: int = n) -> str:
            if i == 10:
                return ("before", "after", "same")[n]
            return "unsure" if i == 11 and n else plan[i]

        asked.answers(engine, here, f"person {n}", preferring(number, choose))
    asked.answers(engine, here, "robot", preferring(number, lambda i: "after"), simulated=True)
    with reading(engine) as s:
        found = dashboard.compared(s, here.id)
        robots = dashboard.compared(s, here.id, simulated=True)
    assert (found.pairs, found.judged, found.split) == (12, 12, 1)
    assert found.counts == {"before": 8, "after": 1, "same": 1, "neither": 1}
    oracle = binomtest(8, 9)
    assert found.p == pytest.approx(oracle.pvalue)
    low, high = oracle.proportion_ci(method="wilson")
    assert (found.share.value, found.share.low, found.share.high) == (8 / 9, pytest.approx(low), pytest.approx(high))
    assert {outcome: len(some) for outcome, some in found.examples.items()} == {"before": 3, "after": 1, "same": 1, "neither": 1}
    assert all(number[pair.before] < 8 for pair in found.examples["before"])
    assert robots.judged == robots.counts["after"] == 1, "the one pair that people left open"
    with reading(engine) as s:
        empty = dashboard.compared(s, asked.campaign(engine, [], name="none yet", compare=True).id)
    assert (empty.pairs, empty.p, empty.share.value) == (0, None, None)


# --- rounds ---


def test_rounds_tell_how_much_is_left(engine: Engine) -> None:
    ids = asked.images(engine, 8)
    first = asked.campaign(engine, ids[:4], name="round 1", overlap=3)
    shows = {ids[0]: "shows", ids[1]: "shows", ids[2]: "shows", ids[3]: "clean"}
    for name in ("Ann", "Bob"):
        asked.answers(engine, first, name, asked.by_image(shows))
    boss = asked.answers(engine, first, "Cem", asked.by_image({**shows, ids[0]: "clean"}))
    second = asked.campaign(engine, ids[4:], name="round 2", overlap=2)
    asked.answers(engine, second, "Ann", asked.by_image({ids[4]: "shows", **dict.fromkeys(ids[5:], "clean")}))
    asked.answers(engine, second, "Bob", asked.by_image(dict.fromkeys(ids[4:], "clean")))
    asked.answers(engine, second, "robot", lambda c: "shows", simulated=True)
    with writing(engine) as s:
        one = rounds.start_round(s, "smoking", images_run="first", campaign_id=first.id)
        rounds.note(s, one.id, reward="smoking-1", erasure="smoking-1")
        two = rounds.start_round(s, "smoking")
        rounds.note(s, two.id, campaign_id=second.id)
        found = rounds.rounds(s, "smoking")
        assert [(r.number, r.campaign, r.shows, r.judged) for r in found] == [(1, "round 1", 3, 4), (2, "round 2", 0, 3)]
        assert (found[0].reward, found[0].erasure, found[0].images_run, found[1].reward) == (
            "smoking-1",
            "smoking-1",
            "first",
            None,
        )
        assert found[1].simulated_judged == 0, "people had filled it before the simulation came"
        adjudicating.decide(s, tasks(s, first)[ids[1]], boss.id, "clean")
        assert rounds.rounds(s, "smoking")[0].shows == 2
        for call, error in (
            (lambda: rounds.note(s, 99, reward="x"), NotFound),
            (lambda: rounds.note(s, one.id, colour="x"), ValueError),
            (lambda: rounds.note(s, one.id, campaign_id=99), NotFound),
            (lambda: rounds.start_round(s, "nothing"), NotFound),
            (lambda: rounds.start_round(s, "smoking", campaign_id=99), NotFound),
        ):
            with pytest.raises(error):
                call()
