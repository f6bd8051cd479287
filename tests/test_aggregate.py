"""Soft labels and agreement, against sums worked by hand and against slow reference versions."""

import itertools

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import DawidSkene, MajorityVote
from crowdkit.metrics.data import alpha_krippendorff
from hypothesis import given, settings
from hypothesis import strategies as st

from hfi.aggregate import (
    SoftLabel,
    agreement,
    coincidences,
    dawid_skene,
    decisions,
    krippendorff_alpha,
    mean_places,
    pairs,
    rankings,
    soft_labels,
    tally,
)
from hfi.judgments import Judgment, JudgmentSet


def said(image: str | tuple[str, ...], annotator: str, verdict: str, **more: object) -> Judgment:
    images = (image,) if isinstance(image, str) else image
    values = {"simulated": False, "campaign": "default", "time": "2026-11-25T12:00:00.000+00:00", "guideline_version": 1, **more}
    return Judgment(images, (None,) * len(images), verdict, annotator, **values)  # type: ignore[arg-type]


def votes(table: dict[str, str], question: str = "binary") -> JudgmentSet:
    """{"Ann": "10-1"}: Ann says of image 0 yes, of 1 no, nothing of 2, of 3 yes; '?' is unsure."""
    words = {"1": "shows", "0": "clean", "?": "unsure"}
    rows = [said(str(i), name, words[c]) for name, row in table.items() for i, c in enumerate(row) if c != "-"]
    return JudgmentSet("smoking", question, tuple(rows))


def ranked(*orders: tuple[str, str]) -> JudgmentSet:
    return JudgmentSet("brava", "ranking", tuple(said(tuple(order), name, "ranked") for name, order in orders))


def test_majority_is_a_share_and_an_even_vote_stays_one() -> None:
    found = soft_labels(votes({"Ann": "1100?", "Bob": "1001?", "Cem": "11--?"}))
    assert found == {"0": SoftLabel(1.0, 3), "1": SoftLabel(2 / 3, 3), "2": SoftLabel(0.0, 2), "3": SoftLabel(0.5, 2)}
    assert soft_labels(votes({"Ann": "??"})) == {}
    assert soft_labels(votes({"Ann": "??"}), "dawid-skene") == {}


def test_missing_data_never_count() -> None:
    rows = [said("a", "Ann", "shows"), *(said("a", f"p{i}", v) for i, v in enumerate(("unsure", "skip", "disturbing")))]
    found = JudgmentSet("smoking", "binary", tuple(rows))
    for method in ("majority", "dawid-skene"):
        assert soft_labels(found, method)["a"].count == 1  # type: ignore[arg-type]
    assert soft_labels(found)["a"].y == 1
    assert agreement(found).units == 0


def test_the_later_of_one_persons_judgments_counts() -> None:
    early, late = "2026-01-01T00:00:00.000+00:00", "2026-01-02T00:00:00.000+00:00"
    rows = (said("a", "Ann", "shows", time=late, campaign="one"), said("a", "Ann", "clean", time=early, campaign="two"))
    assert soft_labels(JudgmentSet("smoking", "binary", rows)) == {"a": SoftLabel(1.0, 1)}
    taken_back = (*rows, said("a", "Ann", "unsure", time="2026-01-03T00:00:00.000+00:00"))
    assert soft_labels(JudgmentSet("smoking", "binary", taken_back)) == {}
    orders = (said(("x", "y"), "Ann", "ranked", time=late), said(("y", "x"), "Ann", "ranked", time=early))
    assert rankings(JudgmentSet("brava", "ranking", orders)) == [(("x",), ("y",))]


def test_rankings_leave_out_what_orders_nothing() -> None:
    rows = (said(("x", "y"), "Ann", "ranked"), said(("x", "y"), "Bob", "none"), said(("x", "y"), "Cem", "skip"))
    assert rankings(JudgmentSet("brava", "ranking", rows)) == [(("x",), ("y",))]


def test_ties_keep_their_places() -> None:
    rows = (said(("a", "b", "c", "d"), "Ann", "ranked", ranks=(1, 2, 2, 4)),)
    found = JudgmentSet("brava", "ranking", rows)
    assert rankings(found) == [(("a",), ("b", "c"), ("d",))]
    assert list(pairs(rankings(found)[0])) == [
        ("a", "b", False), ("a", "c", False), ("a", "d", False), ("b", "c", True), ("b", "d", False), ("c", "d", False),
    ]  # fmt: skip
    assert {sha: label.y for sha, label in mean_places(found).items()} == {"a": 1, "b": 0.5, "c": 0.5, "d": 0}
    twice = JudgmentSet("brava", "ranking", (*rows, said(("b", "a"), "Bob", "ranked", ranks=(1, 1))))
    assert mean_places(twice)["a"] == SoftLabel(0.75, 2)


# --- decisions ---

NINE, TEN = "2026-11-25T09:00:00.000+00:00", "2026-11-25T10:00:00.000+00:00"


def test_a_decision_stands_in_the_place_of_the_votes() -> None:
    rows = [said("a", name, verdict) for name, verdict in (("Ann", "shows"), ("Bob", "shows"), ("Cem", "clean"))]
    rows += [said("b", "Ann", "shows"), said("c", "Ann", "unsure"), said("d", "Bob", "shows")]
    decided = [
        said("a", "Ann", "clean", adjudicated=True, time=TEN),  # she judged it too: both are kept apart
        said("a", "Eve", "shows", adjudicated=True, time=NINE),  # a later decision counts
        said("c", "Eve", "shows", adjudicated=True, time=NINE),  # nobody could say
        said("d", "Eve", "unsure", adjudicated=True, time=NINE),  # nobody can
    ]
    found = JudgmentSet("smoking", "binary", (*rows, *decided))
    for method in ("majority", "dawid-skene"):
        labels = soft_labels(found, method)  # type: ignore[arg-type]
        assert (labels["a"], labels["c"]) == (SoftLabel(0.0, 3), SoftLabel(1.0, 1))
        assert labels.keys() == {"a", "b", "c"}
    assert tally(found) == {"a": (0, 3), "b": (1, 0), "c": (1, 0)}
    voted = JudgmentSet("smoking", "binary", tuple(rows))
    assert agreement(found) == agreement(voted)
    assert {images: j.verdict for images, j in decisions(found).items()}[frozenset("a")] == "clean"


def test_a_decision_takes_rankings_away() -> None:
    votes_ = (said(("x", "y"), "Ann", "ranked"), said(("x", "y"), "Bob", "ranked"), said(("u", "v"), "Ann", "ranked"))
    none = said(("y", "x"), "Eve", "none", adjudicated=True)
    assert rankings(JudgmentSet("brava", "ranking", (*votes_, none))) == [(("u",), ("v",))]
    order = said(("y", "x"), "Eve", "ranked", adjudicated=True)
    assert rankings(JudgmentSet("brava", "ranking", (*votes_, order))) == [(("u",), ("v",)), (("y",), ("x",))]


def test_what_is_decided_teaches_who_errs() -> None:
    """Two people who never agree: decisions on other images say which of them is right."""
    words = {True: "shows", False: "clean"}
    rows = [said(str(i), name, words[(i % 2 == 0) == (name == "right")]) for i in range(20) for name in ("right", "wrong")]
    undecided = soft_labels(JudgmentSet("smoking", "binary", tuple(rows)), "dawid-skene")
    assert undecided["18"].y == pytest.approx(0.5)
    decided = [said(str(i), "Eve", words[i % 2 == 0], adjudicated=True) for i in range(10)]
    taught = soft_labels(JudgmentSet("smoking", "binary", (*rows, *decided)), "dawid-skene")
    assert taught["18"].y > 0.99 and taught["19"].y < 0.01


# --- Dawid and Skene ---


def plain_dawid_skene(table: np.ndarray, iterations: int) -> np.ndarray:
    """The same model with loops; table [images, people] of 1, 0 or NaN."""
    images, people = table.shape
    p = np.nanmean(table, axis=1)
    for _ in range(iterations):
        sensitivity, false_alarms = np.empty(people), np.empty(people)
        for k in range(people):
            seen = [i for i in range(images) if not np.isnan(table[i, k])]
            sensitivity[k] = (1 + sum(p[i] * table[i, k] for i in seen)) / (2 + sum(p[i] for i in seen))
            false_alarms[k] = (1 + sum((1 - p[i]) * table[i, k] for i in seen)) / (2 + sum(1 - p[i] for i in seen))
        prior = (p.sum() + 1) / (images + 2)
        new = np.empty(images)
        for i in range(images):
            shows, clean = prior, 1 - prior
            for k in range(people):
                if table[i, k] == 1:
                    shows, clean = shows * sensitivity[k], clean * false_alarms[k]
                elif table[i, k] == 0:
                    shows, clean = shows * (1 - sensitivity[k]), clean * (1 - false_alarms[k])
            new[i] = shows / (shows + clean)
        p = new
    return p


def test_dawid_skene_equals_the_plain_version() -> None:
    rng = np.random.default_rng(3)
    table = (rng.random((12, 4)) < 0.5).astype(float)
    table[rng.random((12, 4)) < 0.2] = np.nan
    table[:, 0] = 1  # every image is judged
    cells = [(i, k, int(table[i, k])) for i in range(12) for k in range(4) if not np.isnan(table[i, k])]
    for iterations in (1, 2, 5):
        found = dawid_skene(np.array(cells), 12, 4, iterations)
        np.testing.assert_allclose(found, plain_dawid_skene(table, iterations), rtol=1e-9)


def test_dawid_skene_believes_two_careful_people_against_three_careless_ones() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.4
    people = {"a": (0.95, 0.03), "b": (0.93, 0.05), "c": (0.55, 0.40), "d": (0.60, 0.45), "e": (0.5, 0.4)}  # hits, false alarms
    table = {
        name: "".join(str(int(rng.random() < (hit if t else alarm))) for t in truth) for name, (hit, alarm) in people.items()
    }
    right = {}
    for method in ("majority", "dawid-skene"):
        y = np.array([label.y for label in soft_labels(votes(table), method).values()])  # type: ignore[arg-type]
        right[method] = float(((y > 0.5) == truth).mean())
    assert right["dawid-skene"] > 0.93
    assert right["dawid-skene"] > right["majority"] + 0.03


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 1)), min_size=1, max_size=30), st.randoms())
def test_labels_depend_on_neither_order_nor_names(cells: list[tuple[int, int, int]], random) -> None:  # type: ignore[no-untyped-def]
    unique = list({(i, k): (i, k, v) for i, k, v in cells}.values())
    rows = [said(f"i{i}", f"p{k}", "shows" if v else "clean") for i, k, v in unique]
    shuffled = random.sample(rows, len(rows))
    for method in ("majority", "dawid-skene"):
        first = soft_labels(JudgmentSet("c", "binary", tuple(rows)), method)  # type: ignore[arg-type]
        second = soft_labels(JudgmentSet("c", "binary", tuple(shuffled)), method)  # type: ignore[arg-type]
        assert first.keys() == second.keys()
        for image, label in first.items():
            assert 0 <= label.y <= 1
            assert label.count == second[image].count
            assert label.y == pytest.approx(second[image].y, abs=1e-6)


# --- agreement ---


def test_alpha_of_the_textbook() -> None:
    """Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", A: two observers, binary, alpha = 0.095."""
    found = agreement(votes({"Meg": "0100000010", "Owen": "1110010000"}))
    # o_00 = 10, o_01 = 4, o_11 = 2; n_0 = 14, n_1 = 6; 1 - 19 * 4 / (14 * 6)
    assert found.alpha == pytest.approx(1 - 19 * 4 / 84)
    assert round(found.alpha, 3) == 0.095
    assert found.raw == pytest.approx(6 / 10)
    assert found.units == 10
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.alpha < found.high


def test_alpha_with_missing_data_by_hand() -> None:
    # unit 0: two yes; unit 1: three no; unit 2: yes, no, yes; unit 3: one judgment, which pairs with nothing
    found = agreement(votes({"Ann": "1011", "Bob": "100-", "Cem": "-01-"}))
    # o_11 = 2 + 2 * 1 / 2 = 3, o_00 = 3 * 2 / 2 = 3, o_01 = 2 * 1 / 2 = 1; n_0 = n_1 = 4, n = 8
    assert found.alpha == pytest.approx(1 - 7 * 1 / (4 * 4))
    assert found.raw == pytest.approx((1 + 1 + 1 / 3) / 3)
    assert found.units == 3


def test_alpha_says_nothing_where_it_cannot() -> None:
    alone = agreement(votes({"Ann": "1010"}))
    assert (alone.alpha, alone.low, alone.high, alone.raw, alone.units) == (None, None, None, None, 0)
    assert agreement(votes({"Ann": "1", "Bob": "1"})).alpha is None  # one image is not enough
    same = agreement(votes({"Ann": "0000", "Bob": "0000"}))  # no disagreement could be expected
    assert (same.alpha, same.raw, same.units) == (None, 1.0, 4)
    nobody = agreement(votes({"Ann": "??"}))
    assert (nobody.alpha, nobody.annotators[0].answers, nobody.annotators[0].shows) == (None, 0, None)


def test_perfect_agreement_and_its_opposite() -> None:
    assert agreement(votes({"Ann": "1010", "Bob": "1010"})).alpha == 1
    assert agreement(votes({"Ann": "1010", "Bob": "0101"})).alpha == pytest.approx(1 - 7 * 4 / 16)


def slow_alpha(units: list[list[int]]) -> float:
    """1 - D_o / D_e over all pairs of values, as it is defined."""
    units = [u for u in units if len(u) > 1]
    values = [v for u in units for v in u]
    n = len(values)
    observed = sum(sum(a != b for a, b in itertools.permutations(u, 2)) / (len(u) - 1) for u in units) / n
    expected = sum(a != b for a, b in itertools.permutations(values, 2)) / (n * (n - 1))
    return 1 - observed / expected


@settings(max_examples=100)
@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=12))
def test_alpha_is_its_definition(units: list[list[int]]) -> None:
    paired = [u for u in units if len(u) > 1]
    table = np.sum([coincidences({str(i): bool(v) for i, v in enumerate(u)}) for u in paired] or [(0, 0, 0)], axis=0)
    alpha = float(krippendorff_alpha(table))
    if len({v for u in paired for v in u}) < 2:
        assert np.isnan(alpha)
    else:
        assert alpha == pytest.approx(slow_alpha(units))


def test_the_interval_is_a_bootstrap_over_images() -> None:
    rng = np.random.default_rng(1)
    table = {name: "".join(map(str, (rng.random(60) < 0.5).astype(int))) for name in "abc"}
    found = agreement(votes(table), bootstrap=4000)
    units = [[int(row[i]) for row in table.values()] for i in range(60)]
    plain = [slow_alpha([units[i] for i in rng.integers(60, size=60)]) for _ in range(400)]
    assert found.low == pytest.approx(np.quantile(plain, 0.025), abs=0.04)
    assert found.high == pytest.approx(np.quantile(plain, 0.975), abs=0.04)
    assert agreement(votes(table), seed=1) == agreement(votes(table), seed=1)


def test_people_are_measured_against_the_majority_of_the_others() -> None:
    found = {a.name: a for a in agreement(votes({"Ann": "1100", "Bob": "1100", "Cem": "0110?"})).annotators}
    # Ann against Bob and Cem: 0 and 2 are even votes, 1 yes = yes, 3 no = no
    assert (found["Ann"].accuracy, found["Ann"].shows, found["Ann"].judgments, found["Ann"].answers) == (1.0, 0.5, 4, 4)
    assert found["Cem"].accuracy == 0.5  # against two who always agree: wrong on 0 and 2
    assert (found["Cem"].judgments, found["Cem"].answers) == (5, 4)


def test_agreement_on_rankings_is_that_of_their_pairs() -> None:
    same = agreement(ranked(("Ann", "abc"), ("Bob", "abc"), ("Ann", "edf"), ("Bob", "edf")))
    assert (same.alpha, same.raw, same.units) == (1, 1, 6)
    # Ann a>b>c, Bob a>c>b: pairs ab and ac agree, bc does not; and d, e, f turned round: no pair agrees
    mixed = agreement(ranked(("Ann", "abc"), ("Bob", "acb"), ("Ann", "def"), ("Bob", "fed")))
    assert mixed.raw == pytest.approx(2 / 6)
    # in alphabetical pairs: Ann says first-first-first, first-first-first; Bob first-first-second, then three times second
    assert mixed.alpha == pytest.approx(1 - 11 * 4 / (8 * 4))
    assert [(a.name, a.accuracy, a.shows) for a in mixed.annotators] == [("Ann", 2 / 6, None), ("Bob", 2 / 6, None)]


def test_a_pair_that_somebody_ties_has_no_order_from_them() -> None:
    rows = [said(tuple("abc"), "Ann", "ranked"), said(tuple("abc"), "Bob", "ranked", ranks=(1, 1, 3))]
    rows += [said(tuple("def"), "Ann", "ranked"), said(tuple("dfe"), "Bob", "ranked")]
    found = agreement(JudgmentSet("brava", "ranking", tuple(rows)))
    assert found.units == 2 + 3  # a and b were ordered by Ann alone
    assert found.raw == pytest.approx(4 / 5)


# --- crowd-kit as an oracle ---


def random_votes(seed: int, images: int = 60, people: int = 5) -> np.ndarray:
    """Votes [V, 3] of people who err in both directions, each image judged by three of them at least."""
    rng = np.random.default_rng(seed)
    truth = rng.random(images) < 0.4
    hits, alarms = rng.uniform(0.6, 0.9, people), rng.uniform(0.1, 0.4, people)
    rows = []
    for i in range(images):
        for k in rng.permutation(people)[: rng.integers(3, people + 1)]:
            rows.append((i, k, int(rng.random() < (hits[k] if truth[i] else alarms[k]))))
    return np.array(rows)


def frame(rows: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["task", "worker", "label"])


def as_set(rows: np.ndarray) -> JudgmentSet:
    words = ("clean", "shows")
    return JudgmentSet("smoking", "binary", tuple(said(str(i), f"p{k}", words[v]) for i, k, v in rows.tolist()))


@pytest.mark.parametrize("seed", range(3))
def test_majority_is_crowd_kits(seed: int) -> None:
    rows = random_votes(seed)
    theirs = MajorityVote().fit_predict_proba(frame(rows))[1]
    ours = soft_labels(as_set(rows))
    np.testing.assert_allclose([ours[str(i)].y for i in theirs.index], theirs)


def test_dawid_skene_without_its_prior_is_crowd_kits() -> None:
    """As many rounds of each: theirs has no prior, and can be told true labels too."""
    rows = random_votes(1)
    known = np.full(60, np.nan)
    known[:15] = np.random.default_rng(2).random(15) < 0.5
    golden = pd.Series(known[:15].astype(int), index=range(15))
    for told, theirs in ((None, None), (known, golden)):
        ours = dawid_skene(rows, 60, 5, 12, known=told, prior=0)
        expected = DawidSkene(n_iter=12, tol=-1).fit_predict_proba(frame(rows), true_labels=theirs)[1].sort_index()
        np.testing.assert_allclose(ours, expected, atol=1e-9)
    ours, bare = dawid_skene(rows, 60, 5), dawid_skene(rows, 60, 5, prior=0)
    assert np.corrcoef(ours, bare)[0, 1] > 0.95  # the prior draws towards doubt, and no further


@pytest.mark.parametrize("seed", range(3))
def test_alpha_is_crowd_kits(seed: int) -> None:
    rows = random_votes(seed)
    assert agreement(as_set(rows)).alpha == pytest.approx(alpha_krippendorff(frame(rows)))
