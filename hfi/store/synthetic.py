"""A database as a team of thousands leaves it: what `hfi bench scale` measures on.

Eight campaigns of three concepts, some finished, some half way, one that has only begun and holds all the other images; three people
each; gold and benign tasks, skipped and undone answers, comments, regions, leases that are held and such that ran out, people who
judged a lot and many who judged little, and some who withdrew. The rows are those that the store's verbs would have written, but
written in bulk. Making goes on where it was interrupted.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Engine, case, func, insert, inspect, literal, select, text
from sqlalchemy.orm import Session

from hfi import __version__
from hfi.concepts import Concept
from hfi.errors import HfiError
from hfi.progress import progress
from hfi.store import models as m
from hfi.store import people, queries
from hfi.store.bulk import append, next_number, numbers_go_on
from hfi.store.copying import check_empty
from hfi.store.judging import NO_ANSWER
from hfi.store.session import connect, reading, writing
from hfi.store.wellbeing import HARMFUL

PASSWORD = "scale-scale-scale"
OVERLAP = 3
GOLD_EVERY = 25
DAYS = 60  # over which the judgments are spread
_KEY = "scale"  # of the setting that says what the database holds
_CHUNK = 10_000  # tasks, or images, of a transaction
_CONCEPTS = (("smoking", "binary"), ("nudity", "binary"), ("brava", "ranking"))
_SIMULATED = 5
_GOLDS = 200
_ERASURE = hashlib.sha256(b"erasure").hexdigest()
_MODEL = hashlib.sha256(b"model").hexdigest()


class Part(NamedTuple):
    """A campaign: its `share` of all judgments, and which part of its tasks has them. `images`: of a task. A manager decided one in
    `decided` of what was judged."""

    name: str
    concept: str
    question: str
    state: str
    access: str
    gold_every: int
    share: float
    full: float
    images: int
    overlap: int = OVERLAP
    decided: int = 500


PARTS = (
    Part("first", "smoking", "binary", "closed", "all", 0, 0.20, 1.0, 1),
    Part("second", "smoking", "binary", "open", "all", 0, 0.15, 1.0, 1),
    Part("third", "smoking", "binary", "open", "all", GOLD_EVERY, 0.20, 0.5, 1),
    Part("first", "nudity", "binary", "open", "all", GOLD_EVERY, 0.20, 0.75, 1),
    Part("named", "nudity", "binary", "open", "named", 0, 0.05, 0.25, 1),
    Part("order", "brava", "ranking", "open", "all", 0, 0.10, 0.5, 5),
    Part("pairs", "smoking", "compare", "open", "all", 0, 0.05, 0.5, 2),
    Part("coming", "nudity", "binary", "open", "all", GOLD_EVERY, 0.05, 0.0, 1),  # the rest of the images
)
_AGAIN = ("ranking", "compare")  # these ask about images that were judged before


@dataclass(frozen=True)
class Size:
    """What to make; `judgments` is met within a few per cent."""

    images: int
    annotators: int
    judgments: int
    seed: int = 0


@dataclass(frozen=True)
class Extent:
    """A campaign's tasks: `judged` of them are, `held` more are in people's hands, then come those that nobody has seen. Its images
    begin at the number `first`."""

    campaign_id: int
    part: Part
    tasks: int
    judged: int
    held: int
    first: int
    golds: int


def extents(size: Size, parts: Sequence[Part] = PARTS) -> list[Extent]:
    """The campaigns of a database of this size, numbered from 1."""
    found, at, again = [], 0, 0
    for number, part in enumerate(parts, 1):
        judged = int(size.judgments * part.share / part.overlap)
        fresh = part.question not in _AGAIN
        tasks = int(judged / part.full) if part.full else max(size.images - at, judged + 1)
        held = min(tasks - judged, max(1, 2 * _active(size) // part.overlap)) if part.state == "open" and part.full < 1 else 0
        golds = min(_GOLDS, tasks // 10) if part.gold_every else 0
        found.append(Extent(number, part, tasks, judged, held, at if fresh else 0, golds))
        if fresh:
            at += tasks * part.images
        else:
            again = max(again, tasks * part.images)
    if max(at, again) > size.images:
        raise HfiError(
            f"{size.images:,} images are too few for {size.judgments:,} judgments: at least {max(at, again):,} are asked about"
        )
    return found


def _active(size: Size) -> int:
    """People who hold tasks at the moment."""
    return max(OVERLAP, size.annotators // 10)


def make(engine: Engine, size: Size, *, parts: Sequence[Part] = PARTS, sha_of: Callable[[int], str] | None = None) -> None:
    """Fills an empty database that has the current schema, or goes on with one that was begun. `sha_of`: gives the sha256 of the image
    with a number, from 0 (default: of pictures that there are none of). HfiError for a database that holds anything else."""
    whole = extents(size, parts)
    sha_of = sha_of or (lambda i: hashlib.sha256(f"picture {size.seed} {i}".encode()).hexdigest())
    with writing(engine) as s:
        began = _claim(s, size)
        if engine.dialect.name == "sqlite":  # for this connection: hashes go everywhere into their indexes
            s.connection().exec_driver_sql("PRAGMA cache_size = -262144")
        _people(s, size, began)
        _campaigns(s, whole, began)
        have = {e.campaign_id: next_number(s, m.Task.place, m.Task.campaign_id == e.campaign_id) for e in whole}
        images = next_number(s, m.Image.id) - 1
    with progress("images", size.images, "rows", min(images, size.images)) as advance:
        for start in range(images, size.images, _CHUNK):
            stop = min(start + _CHUNK, size.images)
            with writing(engine) as s:
                append(s, m.Image, _IMAGE, _images(whole, size, range(start, stop), began, sha_of))
            advance(stop - start, "")
    tasks = sum(e.tasks + e.golds for e in whole)
    with progress("tasks and judgments", tasks, "tasks", sum(have.values())) as advance:
        for extent in whole:
            for start in range(have[extent.campaign_id], extent.tasks + extent.golds, _CHUNK):
                stop = min(start + _CHUNK, extent.tasks + extent.golds)
                with writing(engine) as s:
                    _tasks(s, size, extent, start, stop, began)
                advance(stop - start, f"{extent.part.concept} {extent.part.name}")
    with writing(engine) as s:
        _finish(s, whole, began)
    settle(engine)


def settle(engine: Engine) -> None:
    """PostgreSQL's numbers go on after the rows, and its statistics know them, as autovacuum would see to in time."""
    if engine.dialect.name != "postgresql":
        return
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as c:
        numbers_go_on(c)
        c.execute(text("VACUUM (ANALYZE)"))


def check_free(url: str) -> None:
    """HfiError for a database that holds rows, unless they are the benchmark's own; it is left as it is, whatever its schema."""
    engine = connect(url, create=True)
    try:
        with reading(engine) as s:
            connection = s.connection()
            settings = m.Setting.__tablename__ in inspect(connection).get_table_names()
            if not (settings and s.scalar(select(m.Setting.id).where(m.Setting.key == _KEY))):
                check_empty(connection)
    finally:
        engine.dispose()


def _claim(s: Session, size: Size) -> datetime:
    """Marks the database as one of this size, and gives the moment at which it was begun."""
    found = s.scalar(select(m.Setting).where(m.Setting.key == _KEY))
    if found is None:
        check_empty(s.connection())
        now = queries.now_utc().replace(microsecond=0)
        s.add(m.Setting(key=_KEY, value=json.dumps(asdict(size)), changed_at=now))
        return now
    if json.loads(found.value) != asdict(size):
        known = ", ".join(f"{name} {value:,}" for name, value in json.loads(found.value).items())
        raise HfiError(f"this database was made for another size ({known}): give that size again, or a new workspace")
    return found.changed_at


# --- images ---

_IMAGE = (
    "id", "key", "sha256", "width", "height", "source", "prompt", "model", "model_content", "seed", "steps", "guidance_scale",
    "scheduler", "run", "erasure", "created_at",
)  # fmt: skip


def key(seed: int, number: int) -> str:
    """Of the image with this number, from 0."""
    return hashlib.sha256(f"key {seed} {number}".encode()).hexdigest()


def _images(
    whole: Sequence[Extent], size: Size, numbers: Iterable[int], began: datetime, sha_of: Callable[[int], str]
) -> list[tuple[Any, ...]]:
    """Every two have a prompt and a seed in common; where pairs are compared, the second is a cleaned model's."""
    compared = max((e.tasks * 2 for e in whole if e.part.question == "compare"), default=0)
    made = began - timedelta(days=DAYS + 1)
    return [
        (
            i + 1, key(size.seed, i), sha_of(i), 512, 512, "generated",
            f"a sailor with a cigarette in harbour {i // 2 % 5000}, at dusk", "CompVis/stable-diffusion-v1-4", _MODEL, i // 2, 50,
            7.5, "ddim", f"run-{i // 50_000}", _ERASURE if i < compared and i % 2 else None, made,
        )
        for i in numbers
    ]  # fmt: skip


# --- people ---


def _people(s: Session, size: Size, began: datetime) -> None:
    if s.scalar(select(m.Annotator.id).limit(1)):
        return
    made = began - timedelta(days=DAYS)
    boss = people.add_account(s, "boss", PASSWORD, "manager").annotator.id
    hashed = people.account_row(s, boss).password_hash  # one for all: hashing takes longer than all the rest of their rows
    letters = "23456789ABCDEFGHJKMNPQRSTUVWXYZ"
    gone = set(_withdrawn(size).tolist())
    who = []
    for i in range(2, size.annotators + _SIMULATED + 1):
        digits = i - 2  # pseudonyms of their own kind, so that none is the one that "boss" was given
        pseudonym = "A-" + "".join(letters[digits // 31**p % 31] for p in range(5))
        name = f"person {i}" if i <= size.annotators else f"simulation {i}"
        name, at = (pseudonym, made) if i in gone else (name, None)
        who.append((i, name, name if i in gone else name.casefold(), pseudonym, i > size.annotators, at, made))
    append(s, m.Annotator, ("id", "name", "name_key", "pseudonym", "simulated", "withdrawn_at", "created_at"), who)
    accounts = [
        (i, i, "manager" if i <= 3 else "annotator", hashed, 1, i not in gone, made) for i in range(2, size.annotators + 1)
    ]
    append(s, m.Account, ("id", "annotator_id", "role", "password_hash", "session_version", "active", "created_at"), accounts)
    append(s, m.ConsentText, ("id", "version", "body", "created_at"), [(v, v, f"Consent {v}.", made) for v in (1, 2)])
    agreed = [(v * size.annotators + i, i, v, made) for v in (1, 2) for i in range(1, size.annotators + 1)]
    append(s, m.Consent, ("id", "annotator_id", "version", "agreed_at"), agreed)
    tried = [(i, f"stranger {i}", 1 + i % 9, began - timedelta(minutes=i % 600)) for i in range(1, size.annotators + 1)]
    append(s, m.LoginFailure, ("id", "name_key", "failures", "last_at"), tried)


def _withdrawn(size: Size) -> np.ndarray:
    """One in a hundred, none of the managers."""
    return np.arange(50, size.annotators + 1, 100)


def _weights(size: Size) -> np.ndarray:
    """How much each annotator judges, beside the others: most of them little, a few a great deal. Sums to 1; managers judge too."""
    weights = np.random.default_rng([size.seed, 1]).lognormal(sigma=1.2, size=size.annotators)
    return weights / weights.sum()


# --- campaigns ---


def _campaigns(s: Session, whole: Sequence[Extent], began: datetime) -> None:
    if s.scalar(select(m.Campaign.id).limit(1)):
        return
    made = began - timedelta(days=DAYS)
    asked = {e.part.concept for e in whole}
    for slug, question in ((slug, question) for slug, question in _CONCEPTS if slug in asked):
        queries.add_concept(s, Concept(slug, slug.title(), "What to look at.", question))  # type: ignore[arg-type]
    ids = dict(s.execute(select(m.Concept.slug, m.Concept.id)).tuples().all())
    columns = ("id", "concept_id", "name", "question", "overlap", "gold_every", "access", "state", "lease_seconds", "created_at")
    rows = [
        (e.campaign_id, ids[e.part.concept], e.part.name, e.part.question, e.part.overlap, e.part.gold_every, e.part.access,
         e.part.state, 1800, made)
        for e in whole
    ]  # fmt: skip
    s.flush()
    append(s, m.Campaign, columns, rows)


_TASK = ("id", "campaign_id", "place", "kind", "wanted", "answers", "held", "free")
_TASK_IMAGE = ("id", "task_id", "image_id", "position")
_ASSIGNMENT = ("id", "task_id", "annotator_id", "token", "shown_order", "state", "opened_at", "lease_expires_at")
_JUDGMENT = (
    "id", "task_id", "annotator_id", "assignment_id", "revision", "verdict", "comment", "region", "elapsed_ms", "filter", "reveals",
    "revealed_ms", "idempotency_token", "guideline_version", "app_version", "created_at",
)  # fmt: skip
_RANKING = ("id", "judgment_id", "image_id", "rank", "shown_position")


def _tasks(s: Session, size: Size, e: Extent, start: int, stop: int, began: datetime) -> None:
    """Tasks from place `start` to `stop` of a campaign, and all that was said of them."""
    rng = np.random.default_rng([size.seed, e.campaign_id, start])
    places = np.arange(start, stop)
    images = _shuffled(size, e)
    kinds = np.where(places >= e.tasks, "gold", np.where((e.part.gold_every > 0) & (places % 20 == 7), "benign", "item"))
    wanted = np.select([kinds == "gold", kinds == "benign"], [0, 1], e.part.overlap)
    done = (places < e.judged) | (kinds == "gold")
    asked = np.where(kinds == "gold", max(1, size.annotators // 40), wanted)
    held = (places >= e.judged) & (places < e.judged + e.held)
    lapsed = done & (kinds != "gold") & (rng.random(len(places)) < 0.005)
    picked = np.where(done, asked, np.where(held, wanted, 0)) + lapsed
    task = np.repeat(np.arange(len(places)), picked)  # of each assignment
    nth = np.arange(len(task)) - np.repeat(np.cumsum(picked) - picked, picked)
    gone = _withdrawn(size)
    who = _picked(size, rng, task, nth, gone if e.part.full == 1 else gone[:0])
    if held.any():  # each of those who are at work holds two at most
        mine = held[task]
        working = np.setdiff1d(np.arange(1, size.annotators + 1), gone)[: _active(size)]
        who[mine] = working[(e.part.overlap * (places[task[mine]] - e.judged) + nth[mine]) % len(working)]
    state = np.where(held[task], "open", np.where(lapsed[task] & (nth == picked[task] - 1), "expired", "done"))
    said = state == "done"
    truth = rng.random(len(places)) < 0.35
    verdicts = _verdicts(rng, e, truth[task])
    when = began - timedelta(days=DAYS)
    share = (places[task] + rng.random(len(task))) / max(e.judged + e.held, 1) % 1.0
    seconds = np.where(held[task], DAYS * 86400 - 60.0, share * (DAYS * 86400 - 7200))
    times = [when + timedelta(seconds=round(float(x), 3)) for x in seconds]
    counts = said & ~np.isin(verdicts, NO_ANSWER) & ~np.isin(who, gone)
    answers = np.bincount(task[counts], minlength=len(places))
    in_hand = np.bincount(task[state == "open"], minlength=len(places))
    free = np.maximum(0, wanted - answers - in_hand)

    first = next_number(s, m.Task.id)
    counted = zip(*(column.tolist() for column in (places, kinds, wanted, answers, in_hand, free)), strict=True)
    append(s, m.Task, _TASK, [(first + n, e.campaign_id, *row) for n, row in enumerate(counted)])
    per = e.part.images
    golds = np.arange(e.golds)  # of a gold task: the images of the campaign's first tasks, asked once more
    shown = [images[p * per : (p + 1) * per] if p < e.tasks else images[golds[p - e.tasks]][None] for p in places.tolist()]
    number = next_number(s, m.TaskImage.id)
    held_by = [(number + n * per + k, first + n, int(i) + 1, k) for n, found in enumerate(shown) for k, i in enumerate(found)]
    append(s, m.TaskImage, _TASK_IMAGE, held_by)
    if e.golds and stop > e.tasks:
        gold = [(first + n, "shows" if truth[n] else "clean") for n in range(len(places)) if places[n] >= e.tasks]
        number = next_number(s, m.Gold.id)
        append(s, m.Gold, ("id", "task_id", "verdict"), [(number + n, *row) for n, row in enumerate(gold)])
    _said(s, rng, e, first, task, who, state, verdicts, times, shown)


@lru_cache(maxsize=1)
def _shuffled(size: Size, e: Extent) -> np.ndarray:
    """The numbers of a campaign's images in the order of its places. A pair stays together."""
    rng = np.random.default_rng([size.seed, 2, e.campaign_id])
    if e.part.question == "compare":
        return (e.first + 2 * rng.permutation(e.tasks)[:, None] + np.arange(2)).ravel()
    return e.first + rng.permutation(e.tasks * e.part.images)


def _picked(size: Size, rng: np.random.Generator, task: np.ndarray, nth: np.ndarray, but: np.ndarray) -> np.ndarray:
    """Who was asked: for each assignment an annotator, nobody twice for a task, and nobody of `but`."""
    bounds = np.cumsum(_weights(size))
    todo = np.arange(len(task))
    who = np.zeros(len(task), dtype=np.int64)
    while len(todo):
        who[todo] = 1 + np.minimum(np.searchsorted(bounds, rng.random(len(todo))), size.annotators - 1)
        order = np.lexsort((nth, who, task))
        twice = np.zeros(len(task), dtype=bool)
        twice[order[1:]] = (task[order[1:]] == task[order[:-1]]) & (who[order[1:]] == who[order[:-1]])
        todo = np.flatnonzero(twice | np.isin(who, but))
    return who


def _verdicts(rng: np.random.Generator, e: Extent, truth: np.ndarray) -> np.ndarray:
    """One in ten errs, one in twenty-five gives no answer, but where a campaign is finished: there others have answered since."""
    chance = rng.random(len(truth))
    no_answer = (chance < 0.04) & (e.part.full < 1)
    if e.part.question == "binary":
        yes = truth != (rng.random(len(truth)) < 0.1)
        answer = np.where(yes, "shows", "clean")
    else:
        answer = np.where(rng.random(len(truth)) < 0.05, "none", "ranked")
    return np.where(no_answer, np.select([chance < 0.02, chance < 0.035], ["unsure", "skip"], "disturbing"), answer)


def _said(
    s: Session,
    rng: np.random.Generator,
    e: Extent,
    first: int,
    task: np.ndarray,
    who: np.ndarray,
    state: np.ndarray,
    verdicts: np.ndarray,
    times: Sequence[datetime],
    shown: Sequence[np.ndarray],
) -> None:
    """Assignments, judgments and rankings. One answer in a hundred was taken back and given anew."""
    size, number = len(task), next_number(s, m.Assignment.id)
    lease = timedelta(seconds=1800)
    orders = [rng.permutation(e.part.images).tolist() for _ in range(size)] if e.part.images > 1 else [[0]] * size
    tasks, persons, states = (first + task).tolist(), who.tolist(), state.tolist()
    assigned = [
        (number + n, tasks[n], persons[n], hashlib.sha256(f"token {number + n}".encode()).hexdigest()[:32], json.dumps(orders[n]),
         states[n], times[n] - timedelta(seconds=5), times[n] + lease)
        for n in range(size)
    ]  # fmt: skip
    append(s, m.Assignment, _ASSIGNMENT, assigned)
    judgment, rank = next_number(s, m.Judgment.id), next_number(s, m.RankedImage.id)
    rows: list[tuple[Any, ...]] = []
    ranked: list[tuple[Any, ...]] = []
    took = np.maximum(200, rng.lognormal(7.6, 0.6, size)).astype(int).tolist()
    chance = rng.random((size, 3)).tolist()
    said = verdicts.tolist()
    for n in np.flatnonzero(state == "done").tolist():
        chain = (said[n], "undone", said[n]) if chance[n][0] < 0.01 else (said[n],)
        for revision, verdict in enumerate(chain, 1):
            told = verdict != "undone"
            comment = "A pipe, not a cigarette: does it count?" if told and chance[n][1] < 0.02 else None
            region = "[0.25, 0.25, 0.5, 0.5]" if verdict == "shows" and chance[n][2] < 0.1 else None
            once = f"undo-{judgment - 1}" if not told else f"page-{judgment:012}"
            look = (took[n], "both", 1, took[n] // 2) if told else (None, None, None, None)
            rows.append(
                (judgment, tasks[n], persons[n], number + n, revision, verdict, comment, region, *look, once, 1, __version__,
                 times[n] + timedelta(seconds=revision - 1))
            )  # fmt: skip
            if verdict == "ranked":
                pictures = shown[task[n]]
                for place, at in enumerate(rng.permutation(len(pictures)).tolist(), 1):
                    ranked.append((rank, judgment, int(pictures[at]) + 1, place, orders[n].index(at)))
                    rank += 1
            judgment += 1
    append(s, m.Judgment, _JUDGMENT, rows)
    append(s, m.RankedImage, _RANKING, ranked)


# --- what follows from the judgments ---


def _finish(s: Session, whole: Sequence[Extent], began: datetime) -> None:
    """Everybody's part in each campaign, shifts (one for each person and day), managers' decisions."""
    if s.scalar(select(m.Participant.id).limit(1)):
        return
    parts = (
        select(
            m.Task.campaign_id,
            m.Assignment.annotator_id,
            func.sum(case((m.Assignment.state == "done", 1), else_=0)),
            func.max(case((m.Task.kind == "gold", -1), else_=m.Task.place)),
        )
        .join(m.Task, m.Task.id == m.Assignment.task_id)
        .group_by(m.Task.campaign_id, m.Assignment.annotator_id)
    )
    s.execute(insert(m.Participant).from_select(["campaign_id", "annotator_id", "done", "cursor"], parts))
    told = m.Judgment.verdict != "undone"
    days = select(
        m.Judgment.annotator_id,
        func.min(m.Judgment.created_at),
        func.max(m.Judgment.created_at),
        func.sum(case((told, 1), else_=0)),
        func.sum(case((m.Judgment.verdict.in_(HARMFUL), 1), else_=0)),
        literal("pause"),
    ).group_by(m.Judgment.annotator_id, func.date(m.Judgment.created_at))
    s.execute(insert(m.Shift).from_select(["annotator_id", "started_at", "last_at", "judgments", "harmful", "ended"], days))
    for e in whole:
        if e.part.question == "binary" and e.judged >= 100:
            disputed = (m.Task.campaign_id == e.campaign_id, m.Task.place < e.judged, m.Task.place % e.part.decided == 3)
            mine = select(m.Task.id, literal(1), literal("shows"), func.max(m.Judgment.created_at))
            mine = mine.join(m.Judgment, m.Judgment.task_id == m.Task.id).where(*disputed).group_by(m.Task.id)
            s.execute(insert(m.Adjudication).from_select(["task_id", "annotator_id", "verdict", "created_at"], mine))
