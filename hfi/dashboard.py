"""Figures of a campaign from what the database says of it: how far it is, how far people agree, who needs a second look.

Flags are hints for a person who looks, never a verdict on anybody: nothing here takes an answer or a person out.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import combinations
from statistics import median

import numpy as np

from hfi.aggregate import MIN_GROUPS, krippendorff_alpha
from hfi.metrics import Interval, mcnemar, wilson
from hfi.store import judging, overview
from hfi.store.overview import Filling, Told, Who
from hfi.store.session import Session

CONTENT = ("shows", "clean")
TOO_FAST = 0.5  # seconds at the median, below which nobody can have looked
TOO_FAST_OF = 20  # judgments whose time is known, of which that is said
LOW_GOLD = 0.8  # share of gold right; said where even the interval's upper end lies below
BOOTSTRAP = 1000
HOUR = timedelta(hours=1)
_LATE = 200  # judgments whose numbers may have been given before, and committed after, the last one that was seen


@dataclass(frozen=True)
class Agreed:
    """Krippendorff's alpha (nominal) with its 95 % bootstrap interval, as `hfi.aggregate.agreement` defines it; None where too little
    was judged twice, or all said the same. `units`: images, or pairs of ranked images, that two or more judged. `raw`: the share of
    pairs of people who say the same of a unit."""

    alpha: float | None
    low: float | None
    high: float | None
    raw: float | None
    units: int


@dataclass(frozen=True)
class Person:
    """Somebody's part. `with_others`: share equal to the majority of the others.

    `confusion`: (consensus shows and so do they, shows and they say clean, clean and they say shows, both clean); the consensus is a
    manager's decision, else the majority of the others.
    """

    who: Who
    judgments: int
    seconds: float | None  # median
    shows: Interval  # share of yes among their answers
    with_others: Interval
    confusion: tuple[int, int, int, int]
    gold: Interval
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """People, or simulated annotators. `verdicts` counts living judgments; gold tasks count in `gold` and in the persons' alone."""

    judgments: int
    verdicts: Mapping[str, int]
    agreed: Agreed
    gold: Interval
    persons: tuple[Person, ...]  # by name


@dataclass(frozen=True)
class Numbers:
    """`hourly`: judgments an hour by people, over the last one (or since they began, if that is less); `hours_left`: at the pace of
    the answers that fill tasks; None where nobody works."""

    filling: Filling
    people: Side
    simulated: Side
    hourly: float | None
    hours_left: float | None


class Watch:
    """The living judgments of a campaign, read once, then only what is new: judgments are only ever added."""

    def __init__(self, campaign_id: int) -> None:
        self.campaign_id = campaign_id
        self._last = 0
        self._living: dict[tuple[int, int], Told] = {}
        self._orders: dict[int, dict[int, int]] = {}
        self._lock = threading.Lock()

    def look(self, s: Session) -> tuple[list[Told], dict[int, dict[int, int]]]:
        """The last judgment of each person on each task, but what was taken back; and the orders of the rankings, by judgment."""
        with self._lock:
            after = max(0, self._last - _LATE)
            for row in overview.told(s, self.campaign_id, after):
                before = self._living.get((row.task, row.annotator))
                if before is None or before.revision <= row.revision:
                    self._living[row.task, row.annotator] = row
                self._last = max(self._last, row.id)
            self._orders |= overview.orders(s, self.campaign_id, after)
            return [row for row in self._living.values() if row.verdict != "undone"], self._orders


def numbers(s: Session, campaign: Filling, now: datetime, watch: Watch | None = None) -> Numbers:
    """The figures of a campaign at this moment. A `watch` that is kept between two looks makes the second one cheap."""
    living, orders = (watch or Watch(campaign.id)).look(s)
    everybody = overview.who(s)
    known, decided = overview.golds(s, campaign.id), overview.decisions(s, campaign.id)
    sides: dict[bool, list[Told]] = {False: [], True: []}
    for row in living:
        if person := everybody.get(row.annotator):
            sides[person.simulated].append(row)
    people, simulated = (_side(sides[kind], everybody, orders, known, decided) for kind in (False, True))
    recent = [row for row in sides[False] if row.created_at > now - HOUR]
    hourly = hours_left = None
    if recent:
        hours = max((now - min(row.created_at for row in recent)).total_seconds() / 3600, 1 / 60)
        hourly = len(recent) / hours
        if answers := sum(row.verdict not in judging.NO_ANSWER and row.task not in known for row in recent):
            hours_left = (campaign.wanted - campaign.answers) * hours / answers
    return Numbers(campaign, people, simulated, hourly, hours_left)


def _side(
    rows: Sequence[Told],
    everybody: Mapping[int, Who],
    orders: Mapping[int, Mapping[int, int]],
    known: Mapping[int, str],
    decided: Mapping[int, str],
) -> Side:
    asked = [row for row in rows if row.task not in known]
    votes = _ranked_votes(asked, orders) if orders else _binary_votes(asked)
    with_others = _with_others(votes)
    confusions = _confusions(votes, decided) if not orders else {}
    by_person: dict[int, list[Told]] = {}
    for row in rows:
        by_person.setdefault(row.annotator, []).append(row)
    persons = [
        _person(everybody[i], mine, known, wilson(*with_others.get(i, (0, 0))), confusions.get(i, (0, 0, 0, 0)))
        for i, mine in by_person.items()
    ]
    persons.sort(key=lambda p: (p.who.name.casefold(), p.who.id))
    right, of = (sum(n) for n in zip(*(_gold(mine, known) for mine in by_person.values()), strict=True)) if rows else (0, 0)
    return Side(len(asked), Counter(row.verdict for row in asked), agreed(votes), wilson(right, of), tuple(persons))


def _person(
    who: Who, mine: Sequence[Told], known: Mapping[int, str], with_others: Interval, confusion: tuple[int, int, int, int]
) -> Person:
    times = [row.elapsed_ms / 1000 for row in mine if row.elapsed_ms is not None]
    said = [row.verdict for row in mine if row.verdict in CONTENT and row.task not in known]
    gold = wilson(*_gold(mine, known))
    seconds = median(times) if times else None
    shows = wilson(said.count("shows"), len(said))
    return Person(who, len(mine), seconds, shows, with_others, confusion, gold, flags(times, gold))


def _gold(rows: Sequence[Told], known: Mapping[int, str]) -> tuple[int, int]:
    """(right answers, answers) on gold tasks."""
    hits = [row.verdict == known[row.task] for row in rows if row.task in known and row.verdict in CONTENT]
    return sum(hits), len(hits)


def flags(seconds: Sequence[float], gold: Interval) -> tuple[str, ...]:
    """Why somebody might look at this person's answers, in words."""
    found = []
    if len(seconds) >= TOO_FAST_OF and median(seconds) < TOO_FAST:
        found.append(f"half of the answers within {TOO_FAST:g} s")
    if gold.high is not None and gold.high < LOW_GOLD:
        found.append(f"gold: {round((gold.value or 0) * gold.n)} of {gold.n} right")
    return tuple(found)


# --- agreement ---

Votes = (
    np.ndarray
)  # int [V, 4]: group, unit, person, value 0 or 1. Groups are independent of one another, their units need not be.


def _votes(rows: Iterable[tuple[int, int, int, int]]) -> Votes:
    return np.array(list(rows), dtype=np.int64).reshape(-1, 4)


def _binary_votes(rows: Sequence[Told]) -> Votes:
    """Each image is a group with one unit."""
    return _votes((row.task, row.task, row.annotator, row.verdict == "shows") for row in rows if row.verdict in CONTENT)


def _ranked_votes(rows: Sequence[Told], orders: Mapping[int, Mapping[int, int]]) -> Votes:
    """Each set of images is a group; its units are the pairs of them, of which 'comes first' is the value. Equal places say nothing."""
    units: dict[tuple[int, int, int], int] = {}
    found = []
    for row in rows:
        places = orders.get(row.id, {})
        for x, y in combinations(sorted(places), 2):
            if places[x] != places[y]:
                unit = units.setdefault((row.task, x, y), len(units))
                found.append((row.task, unit, row.annotator, int(places[x] < places[y])))
    return _votes(found)


def agreed(votes: Votes, seed: int = 0) -> Agreed:
    """See `Agreed`. The bootstrap draws groups."""
    groups, unit = np.unique(votes[:, 0], return_inverse=True)[1], np.unique(votes[:, 1], return_inverse=True)[1]
    said = np.bincount(unit, minlength=1)
    yes = np.bincount(unit, weights=votes[:, 3], minlength=1)
    shared = said > 1
    if not shared.any():
        return Agreed(None, None, None, None, 0)
    n, yes = said[shared].astype(float), yes[shared]
    no = n - yes
    group = np.zeros(len(said), dtype=np.int64)
    group[unit] = groups
    table = np.zeros((groups.max() + 1, 3))
    np.add.at(table, group[shared], np.stack([no * (no - 1), no * yes, yes * (yes - 1)], 1) / (n - 1)[:, None])
    table = table[np.unique(group[shared])]
    if len(table) < MIN_GROUPS:
        return Agreed(None, None, None, None, int(shared.sum()))
    raw = float(((yes * (yes - 1) + no * (no - 1)) / (n * (n - 1))).mean())
    alpha = float(krippendorff_alpha(table.sum(0)))
    if np.isnan(alpha):
        return Agreed(None, None, None, raw, int(shared.sum()))
    kinds, counts = np.unique(table, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(table), counts / counts.sum(), size=BOOTSTRAP)
    spread = krippendorff_alpha(drawn @ kinds)
    low, high = np.nanquantile(spread, (0.025, 0.975))
    return Agreed(alpha, float(low), float(high), raw, int(shared.sum()))


def _with_others(votes: Votes) -> dict[int, tuple[int, int]]:
    """Of each person (how often they said what most others did, on how many units there was such a majority)."""
    unit = np.unique(votes[:, 1], return_inverse=True)[1]
    value = votes[:, 3]
    others = np.bincount(unit, minlength=1)[unit] - 1
    yes = np.bincount(unit, weights=value, minlength=1)[unit] - value
    clear = 2 * yes != others
    same = (2 * yes > others) == (value == 1)
    people, who = np.unique(votes[:, 2], return_inverse=True)
    hits, of = (np.bincount(who[chosen], minlength=len(people)).tolist() for chosen in (clear & same, clear))
    return dict(zip(people.tolist(), zip(hits, of, strict=True), strict=True))


def _confusions(votes: Votes, decided: Mapping[int, str]) -> dict[int, tuple[int, int, int, int]]:
    """Of votes on images; see `Person`."""
    tasks, unit = np.unique(votes[:, 1], return_inverse=True)
    clean = 1 - votes[:, 3]
    others = np.bincount(unit, weights=2 * votes[:, 3] - 1, minlength=1)[unit] - (2 * votes[:, 3] - 1)  # shows less clean
    consensus = np.select([others > 0, others < 0], [0, 1], -1)
    said = np.array(
        [{"shows": 0, "clean": 1, "unsure": -1}[decided[i]] if i in decided else -2 for i in tasks.tolist()], dtype=int
    )
    if len(said):
        consensus = np.where(said[unit] > -2, said[unit], consensus)
    people, who = np.unique(votes[:, 2], return_inverse=True)
    known = consensus >= 0
    cells = np.bincount((4 * who + 2 * consensus + clean)[known], minlength=4 * len(people)).reshape(-1, 4).tolist()
    return {person: (a, b, c, d) for person, (a, b, c, d) in zip(people.tolist(), cells, strict=True)}


# --- before and after an erasure ---

OUTCOMES = ("before", "after", "same", "neither")


@dataclass(frozen=True)
class Compared:
    """What people say of pairs. Of each pair counts the outcome that most say; `split` pairs have no such. `p`: the exact two-sided
    binomial test that either image is as likely to show more, over the pairs in which one does; `share` of these in which the untouched
    one does."""

    pairs: int  # of the campaign
    judged: int
    counts: Mapping[str, int]  # by outcome
    split: int
    share: Interval
    p: float | None
    examples: Mapping[str, tuple[overview.Pair, ...]]


def compared(s: Session, campaign_id: int, simulated: bool = False, examples: int = 3) -> Compared:
    """The result of a comparing campaign, by people or by simulated annotators."""
    pairs = {pair.task: pair for pair in overview.compared(s, campaign_id)}
    everybody = overview.who(s)
    living, orders = Watch(campaign_id).look(s)
    said: dict[int, Counter[str]] = {}
    for row in living:
        person = everybody.get(row.annotator)
        if person is None or person.simulated != simulated or row.task not in pairs:
            continue
        if row.verdict == "none":
            said.setdefault(row.task, Counter())["neither"] += 1
        elif row.verdict == "ranked":
            place = orders[row.id]
            ahead = place[pairs[row.task].after] - place[pairs[row.task].before]
            said.setdefault(row.task, Counter())["before" if ahead > 0 else "after" if ahead < 0 else "same"] += 1
    counts: Counter[str] = Counter()
    shown: dict[str, list[overview.Pair]] = {}
    for task, votes in said.items():
        (outcome, most), *rest = votes.most_common()
        if rest and rest[0][1] == most:
            counts["split"] += 1
        else:
            counts[outcome] += 1
            shown.setdefault(outcome, []).append(pairs[task])
    before, after = counts["before"], counts["after"]
    return Compared(
        len(pairs),
        len(said),
        {outcome: counts[outcome] for outcome in OUTCOMES},
        counts["split"],
        wilson(before, before + after),
        mcnemar(before, after) if before + after else None,
        {outcome: tuple(found[:examples]) for outcome, found in shown.items()},
    )
