"""Strengths from rankings: against crowd-kit, against numerical optima, and by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from crowdkit.aggregation import BradleyTerry
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from hfi.errors import UsageError
from hfi.strengths import Order, groups, strengths

METHODS = ("bradley-terry", "plackett-luce")


def drawn(theta: np.ndarray, count: int, size: int, seed: int) -> list[Order]:
    """Rankings of `size` images each from Plackett and Luce's model."""
    rng = np.random.default_rng(seed)
    found: list[Order] = []
    for _ in range(count):
        some = rng.permutation(len(theta))[:size]
        noisy = theta[some] + rng.gumbel(size=size)
        found.append([[int(i)] for i in some[np.argsort(-noisy)]])
    return found


def tied(orders: list[Order], seed: int, share: float = 0.3) -> list[Order]:
    """The same with some neighbours in one place."""
    rng = np.random.default_rng(seed)
    found: list[Order] = []
    for order in orders:
        places: list[list[int]] = []
        for (i,) in order:
            if places and rng.random() < share:
                places[-1].append(i)
            else:
                places.append([i])
        found.append(places)
    return found


def outcomes(orders: list[Order]) -> list[tuple[int, int, bool]]:
    """(more, less, tie) of every pair, written out."""
    found = []
    for order in orders:
        flat = [(i, place) for place, some in enumerate(order) for i in some]
        found += [(a, b, p == q) for (a, p), (b, q) in itertools.combinations(flat, 2)]
    return found


def plain(objective, images: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Where a log-likelihood is greatest, by scipy, with mean 0."""
    found = minimize(lambda theta: -objective(theta - theta.mean()), np.zeros(images), method="BFGS", options={"gtol": 1e-8})
    return found.x - found.x.mean()


def log_sigmoid(d: float) -> float:
    return -math.log1p(math.exp(-d))


def prior_of(theta: np.ndarray, orders: list[Order], prior: float) -> float:
    together = {frozenset((a, b)) for a, b, _ in outcomes(orders)}
    return sum(prior * (log_sigmoid(theta[a] - theta[b]) + log_sigmoid(theta[b] - theta[a])) for a, b in map(tuple, together))


def bradley_terry(theta: np.ndarray, orders: list[Order], prior: float) -> float:
    total = prior_of(theta, orders, prior)
    for a, b, tie in outcomes(orders):
        forth, back = log_sigmoid(theta[a] - theta[b]), log_sigmoid(theta[b] - theta[a])
        total += (forth + back) / 2 if tie else forth
    return total


def plackett_luce(theta: np.ndarray, orders: list[Order], prior: float) -> float:
    """The mean over every order of the tied images, written out."""
    total = prior_of(theta, orders, prior)
    for order in orders:
        every = [list(itertools.chain(*some)) for some in itertools.product(*(itertools.permutations(place) for place in order))]
        for flat in every:
            for k in range(len(flat) - 1):
                total += (theta[flat[k]] - np.log(np.exp(theta[flat[k:]]).sum())) / len(every)
    return total


def crowd_kit(rows: list[tuple[int, int, int]]) -> pd.Series:
    """Its strengths of (left, right, winner). It compares a round with itself to see whether it is done, so with any tolerance above 0
    it stops after the second."""
    return BradleyTerry(n_iter=3000, tol=0).fit_predict(pd.DataFrame(rows, columns=["left", "right", "label"]))


@pytest.mark.parametrize("seed", range(3))
def test_bradley_terry_without_its_prior_is_crowd_kits(seed: int) -> None:
    theta = np.random.default_rng(seed).normal(size=12)
    orders = drawn(theta, 120, 4, seed)
    rows = [(a, b, a) for a, b, _ in outcomes(orders)]
    theirs = crowd_kit(rows)
    ours = np.exp(strengths(orders, 12, "bradley-terry", prior=0).value)
    np.testing.assert_allclose(ours / ours.sum(), theirs.sort_index(), rtol=1e-6)


def test_a_tie_is_half_a_win_for_each() -> None:
    """Crowd-kit knows no ties: everything twice, and each tie once each way."""
    orders = tied(drawn(np.random.default_rng(5).normal(size=8), 80, 4, 5), 6)
    rows = [row for a, b, tie in outcomes(orders) for row in ((a, b, a), (a, b, b if tie else a))]
    theirs = crowd_kit(rows)
    ours = np.exp(strengths(orders, 8, "bradley-terry", prior=0).value)
    np.testing.assert_allclose(ours / ours.sum(), theirs.sort_index(), rtol=1e-6)


@pytest.mark.parametrize("prior", [0.0, 0.1])
@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_strengths_are_where_the_likelihood_is_greatest(method: str, ties: bool, prior: float) -> None:
    theta = np.random.default_rng(1).normal(size=7)
    orders = drawn(theta, 30, 4, 2)
    orders = tied(orders, 3) if ties else orders
    likelihood = bradley_terry if method == "bradley-terry" else plackett_luce
    found = strengths(orders, 7, method, prior=prior).value  # type: ignore[arg-type]
    np.testing.assert_allclose(found, plain(lambda t: likelihood(t, orders, prior), 7), atol=2e-5)
    assert found.mean() == pytest.approx(0, abs=1e-12)


def test_by_hand() -> None:
    """One comparison is 1.1 wins against 0.1, so the difference is log 11; two images that tie are equal."""
    for method in METHODS:
        won = strengths([[[0], [1]]], 2, method)  # type: ignore[arg-type]
        np.testing.assert_allclose(won.value, [math.log(11) / 2, -math.log(11) / 2], atol=1e-8)
        np.testing.assert_allclose(strengths([[[0, 1]]], 2, method).value, [0, 0], atol=1e-8)  # type: ignore[arg-type]


def test_who_always_wins_has_a_finite_strength() -> None:
    for method in METHODS:
        found = strengths([[[0], [1], [2]]] * 50, 3, method)  # type: ignore[arg-type]
        assert np.isfinite(found.value).all()
        assert found.value[0] > found.value[1] > found.value[2]


def test_the_bounds_of_plackett_luce_hold_in_about_19_of_20_cases() -> None:
    theta = np.random.default_rng(0).normal(size=8)
    theta -= theta.mean()
    inside = []
    for seed in range(120):
        found = strengths(drawn(theta, 60, 5, seed), 8, "plackett-luce")
        inside.append(np.abs(found.value - theta) < found.half)
    assert 0.92 < np.mean(inside) < 0.98
    assert np.isnan(strengths(drawn(theta, 9, 5, 0), 8, "bradley-terry").half).all()


def test_bounds_are_those_of_the_likelihoods_curvature() -> None:
    """Of two images compared n times the information on their difference is (n + 0.2) p (1 - p)."""
    orders: list[Order] = [[[0], [1]]] * 12 + [[[1], [0]]] * 5
    found = strengths(orders, 2, "plackett-luce")
    p = 12.1 / 17.2
    deviation = 1 / math.sqrt(17.2 * p * (1 - p))  # of the difference; each of the two is half of it away from their mean
    np.testing.assert_allclose(found.half, [1.959964 * deviation / 2] * 2, rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_long_chain_of_single_comparisons_is_followed_to_its_end(method: str) -> None:
    """Each link is one comparison that nothing else bears on: log 11, up or down."""
    up = np.random.default_rng(0).random(150) < 0.5
    chain: list[Order] = [[[i + 1], [i]] if more else [[i], [i + 1]] for i, more in enumerate(up)]
    found = strengths(chain, 151, method)  # type: ignore[arg-type]
    np.testing.assert_allclose(np.diff(found.value), np.where(up, math.log(11), -math.log(11)), atol=1e-3)


def test_images_that_nothing_connects_are_in_groups_of_their_own() -> None:
    orders: list[Order] = [[[0], [1]], [[5], [6, 7]], [[7], [8]], [[2], [3]], [[3], [4]]]
    assert groups(orders, 9).tolist() == [2, 2, 1, 1, 1, 0, 0, 0, 0]
    for method in METHODS:
        together = strengths(orders, 9, method)  # type: ignore[arg-type]
        for number, inside in enumerate(([5, 6, 7, 8], [2, 3, 4], [0, 1])):
            assert together.value[together.group == number].mean() == pytest.approx(0, abs=1e-9)
            row = {i: n for n, i in enumerate(inside)}
            own: list[Order] = [[[row[i] for i in place] for place in order] for order in orders if order[0][0] in row]
            alone = strengths(own, len(inside), method)  # type: ignore[arg-type]
            np.testing.assert_allclose(together.value[inside], alone.value, atol=1e-7)
            np.testing.assert_allclose(together.half[inside], alone.half, atol=1e-7)


def test_a_long_tie_is_refused_by_plackett_luce_alone() -> None:
    order: list[Order] = [[list(range(11)), [11]]]
    with pytest.raises(UsageError, match="a tie of 11 images: plackett-luce takes at most 10, choose --method bradley-terry"):
        strengths(order, 12, "plackett-luce")
    found = strengths(order, 12, "bradley-terry").value
    assert (found[:11] > found[11]).all()
    np.testing.assert_allclose(found[:11], found[0], atol=1e-8)


@settings(max_examples=30)
@given(st.lists(st.permutations(range(5)), min_size=1, max_size=6), st.permutations(range(5)), st.randoms())
def test_strengths_depend_on_neither_order_nor_names(rows: list[list[int]], names: list[int], random) -> None:  # type: ignore[no-untyped-def]
    orders: list[Order] = [[[i] for i in row] for row in rows]
    for method in METHODS:
        first = strengths(orders, 5, method)  # type: ignore[arg-type]
        renamed: list[Order] = [[[names[i]] for (i,) in order] for order in random.sample(orders, len(orders))]
        second = strengths(renamed, 5, method)  # type: ignore[arg-type]
        np.testing.assert_allclose(second.value[names], first.value, atol=1e-7)
