"""From rankings to one strength an image, on a scale where differences mean something: an image of strength a is put before one of
strength b with the chance sigmoid(a - b).

Bradley and Terry (1952) read a ranking as its pairs, Luce (1959) and Plackett (1975) as choices: of the first among all, then of the
first among the rest, and so on. Both are choices from sets, of which a pair is the smallest, and one MM algorithm fits them (Hunter,
"MM Algorithms for Generalized Bradley-Terry Models", 2004).

A tie is half a win for each of two (Bradley-Terry), or every order of the tied images equally often (Plackett-Luce). A prior keeps
finite what always wins: every two images that were ranked together count as compared 0.2 times more, half each way.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Literal

import numpy as np

from hfi.errors import UsageError

RankingMethod = Literal["bradley-terry", "plackett-luce"]
Order = Sequence[Sequence[int]]  # images by place, most of the concept first; those of one place tie

PRIOR = 0.1  # wins that each of two images ranked together is given over the other
MAX_TIE = 10  # images in one place: Plackett-Luce takes them in 2^t sets
MAX_GROUP = 2000  # images in a group, above which no bounds are computed: they need a matrix of all by all
_ROUNDS = 20_000
_Z95 = 1.959963984540054  # normal quantile of 0.975


@dataclass(frozen=True)
class Strengths:
    """`value` [N]: the logarithm of each image's strength, of mean 0 in its group. `half` [N]: half the width of its 95 % interval
    beside the group's mean, NaN where there is none. `group` [N]: images with the same number are connected by rankings; only their
    values can be compared. 0 is the largest group."""

    value: np.ndarray
    half: np.ndarray
    group: np.ndarray


def strengths(orders: Sequence[Order], images: int, method: RankingMethod, prior: float = PRIOR) -> Strengths:
    """Of the images 0..N-1, each of which is in one of the orders at least. UsageError for a tie that Plackett-Luce cannot take.

    Bounds are those of Plackett-Luce (the inverse of the observed information): the pairs of one ranking are not independent, so
    Bradley-Terry states none.
    """
    widest = max((len(place) for order in orders for place in order), default=0)
    if method == "plackett-luce" and widest > MAX_TIE:
        raise UsageError(f"a tie of {widest} images: plackett-luce takes at most {MAX_TIE}, choose --method bradley-terry")
    read = _pairs if method == "bradley-terry" else _choices
    together = {pair for order in orders for pair in combinations(sorted(i for place in order for i in place), 2)}
    even = ((chosen, frozenset(pair), prior) for pair in sorted(together) for chosen in pair) if prior else ()
    sets = _sets([*(choice for order in orders for choice in read(order)), *even], images)
    group = groups(orders, images)
    value = _fit(sets, group)
    half = _half_widths(sets, value, group) if method == "plackett-luce" else np.full(images, np.nan)
    return Strengths(value, half, group)


_Choice = tuple[int, frozenset[int], float]  # the chosen image, the set that it was chosen from, the weight


def _pairs(order: Order) -> Iterator[_Choice]:
    places = [(i, place) for place, some in enumerate(order) for i in some]
    for (a, above), (b, below) in combinations(places, 2):
        pair = frozenset((a, b))
        if above == below:
            yield a, pair, 0.5
            yield b, pair, 0.5
        else:
            yield a, pair, 1.0


def _choices(order: Order) -> Iterator[_Choice]:
    """The mean over all orders of the tied images: with k of t left, each set of k is as likely, and each of them is chosen."""
    for place, tied in enumerate(order):
        rest = [i for some in order[place + 1 :] for i in some]
        for left in range(len(tied), 0, -1):
            for some in combinations(tied, left):
                if left + len(rest) > 1:
                    for chosen in some:
                        yield chosen, frozenset((*some, *rest)), 1 / (comb(len(tied), left) * left)


@dataclass(frozen=True)
class _Sets:
    """Image `member[k]` stands in set `of[k]`; `weight` [S]: how often each set was chosen from, `wins` [N]: how often each image
    was chosen."""

    member: np.ndarray
    of: np.ndarray
    weight: np.ndarray
    wins: np.ndarray


def _sets(choices: Iterable[_Choice], images: int) -> _Sets:
    weight: dict[frozenset[int], float] = {}
    wins = np.zeros(images)
    for chosen, among, w in choices:
        weight[among] = weight.get(among, 0.0) + w
        wins[chosen] += w
    member = np.array([i for among in weight for i in sorted(among)], dtype=np.int64)
    of = np.repeat(np.arange(len(weight)), [len(among) for among in weight])
    return _Sets(member, of, np.array(list(weight.values())), wins)


def _fit(sets: _Sets, group: np.ndarray) -> np.ndarray:
    """Where the likelihood is greatest. Each round takes two steps and then leaps as far as they foretell (Varadhan and Roland's
    squared extrapolation, 2008), unless the likelihood is less there: steps alone take very long where a chain of pairs is all that
    connects the images."""
    theta = np.zeros(len(sets.wins))
    for _ in range(_ROUNDS):
        first = _step(sets, theta, group)
        second = _step(sets, first, group)
        if np.abs(second - first).max() < 1e-10:
            return second
        moved, bent = first - theta, second - 2 * first + theta
        with np.errstate(all="ignore"):
            far = max(1.0, float(np.linalg.norm(moved) / np.linalg.norm(bent)))
            leap = _step(sets, theta + 2 * far * moved + far**2 * bent, group)
            better = _likelihood(sets, leap) > _likelihood(sets, second)
        theta = leap if better else second
    return theta


def _step(sets: _Sets, theta: np.ndarray, group: np.ndarray) -> np.ndarray:
    """gamma_i <- wins_i / sum over its sets of weight / (sum of gamma in the set); theta = log gamma, of mean 0 in each group."""
    total = np.bincount(sets.of, weights=np.exp(theta)[sets.member])
    share = np.bincount(sets.member, weights=(sets.weight / total)[sets.of], minlength=len(theta))
    new = np.log(sets.wins / share)
    return new - (np.bincount(group, weights=new) / np.bincount(group))[group]


def _likelihood(sets: _Sets, theta: np.ndarray) -> float:
    total = np.bincount(sets.of, weights=np.exp(theta)[sets.member])
    return float(sets.wins @ theta - sets.weight @ np.log(total))


def _half_widths(sets: _Sets, theta: np.ndarray, group: np.ndarray) -> np.ndarray:
    """1.96 standard errors beside the group's mean. The information of a set is weight (diag(p) - p p^T), p its images' shares."""
    half = np.full(len(theta), np.nan)
    gamma = np.exp(theta)
    p = gamma[sets.member] / np.bincount(sets.of, weights=gamma[sets.member])[sets.of]
    starts = np.searchsorted(sets.of, np.arange(len(sets.weight) + 1))
    by_group: dict[int, list[int]] = {}
    for k, start in enumerate(starts[:-1]):
        by_group.setdefault(int(group[sets.member[start]]), []).append(k)
    for number, inside in by_group.items():
        images = np.flatnonzero(group == number)
        n = len(images)
        if n > MAX_GROUP:
            continue
        information = np.zeros((n, n))
        for k in inside:
            rows = np.searchsorted(images, sets.member[starts[k] : starts[k + 1]])
            share = p[starts[k] : starts[k + 1]]
            information[np.ix_(rows, rows)] += sets.weight[k] * (np.diag(share) - np.outer(share, share))
        variance = np.linalg.inv(information + 1 / n) - 1 / n  # information says nothing of the mean: this is its pseudo-inverse
        half[images] = _Z95 * np.sqrt(np.diag(variance))
    return half


def groups(orders: Iterable[Order], images: int) -> np.ndarray:
    """The number of each image's group: images that a chain of rankings connects have the same; the largest group is 0."""
    parent = list(range(images))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for order in orders:
        inside = [i for place in order for i in place]
        for i in inside:
            parent[root(i)] = root(inside[0])
    roots = np.array([root(i) for i in range(images)], dtype=np.int64)
    _, first, number, size = np.unique(roots, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(size), dtype=np.int64)
    rank[np.lexsort((first, -size))] = np.arange(len(size))
    return rank[number]
