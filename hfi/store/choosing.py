"""Which images a campaign takes: those to be judged, pairs from before and after an erasure, gold with known answers, benign ones."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session, aliased

from hfi.errors import HfiError, UsageError
from hfi.store import models as m
from hfi.store.judging import is_last
from hfi.store.queries import Source, concept_row

Strategy = Literal["all", "random", "uncertain", "split"]
STRATEGIES = ("all", "random", "uncertain", "split")
GOLD_VOTES = 3  # so many people, all of one mind, make an answer known
MAX_BENIGN = 0.5  # as a share of the tasks


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Images by where they come from; None takes all. `text` is a part of the prompt, in any case. `erasure`: '' for the untouched
    model's images, else the identity of an erasure (`Image.erasure`). `unjudged`: only what nobody was asked about this concept."""

    text: str = ""
    model: str | None = None
    run: str | None = None
    erasure: str | None = None
    source: Source | None = None
    unjudged: bool = False


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A new campaign's images. `count`: how many, where the strategy is not 'all'; of a comparison, how many pairs.

    all: every image of `wanted`. random: drawn by `seed`. uncertain: those whose score is nearest 0.5. split: those on which the
    votes of earlier campaigns are most evenly divided. `simulated`: whose votes make images split and gold: those of people (False),
    of simulations (True), or both (None).
    """

    concept: str
    wanted: Wanted = Wanted()
    compare: bool = False
    strategy: Strategy = "all"
    count: int | None = None
    seed: int = 0
    simulated: bool | None = False
    gold: int = 0  # images with an answer that is known here
    gold_answers: Mapping[int, str] = field(default_factory=dict)  # further ones, by image id
    benign_run: str | None = None
    benign_share: float = 0.0  # of the tasks


@dataclass(frozen=True)
class Prepared:
    """What `ensure_campaign` takes, and what the recipe came to: `matched` images or pairs fit, `unscored` of them have no score,
    and `unpaired` (prompt, seed) of cleaned images have no untouched twin."""

    image_ids: tuple[int, ...]
    gold: Mapping[int, str]
    benign: tuple[int, ...]
    matched: int
    unscored: int = 0
    unpaired: tuple[tuple[str | None, int | None], ...] = ()


@dataclass(frozen=True)
class Known:
    """An image whose answer is known: by a manager's decision, or because everybody said the same."""

    verdict: str
    adjudicated: bool
    votes: int


def prepare(s: Session, recipe: Recipe, scores: Mapping[str, float] | None = None) -> Prepared:
    """The recipe's images. `scores`: by sha256, for 'uncertain'. UsageError for a recipe that contradicts itself, HfiError where
    nothing fits."""
    _check(s, recipe, scores)
    unscored = 0
    unpaired: list[tuple[str | None, int | None]] = []
    if recipe.compare:
        twins, unpaired = pairs(s, recipe.wanted)
        matched = len(twins)
        if recipe.strategy == "random":
            twins = _drawn(twins, recipe.count or 0, recipe.seed)
        chosen = [i for pair in twins for i in pair]
    else:
        found = matching(s, recipe.wanted, recipe.concept)
        matched = len(found)
        if recipe.strategy == "random":
            found = _drawn(found, recipe.count or 0, recipe.seed)
        elif recipe.strategy == "uncertain":
            known = [(i, sha) for i, sha in found if sha in (scores or {})]
            unscored = len(found) - len(known)
            known.sort(key=lambda pair: (abs((scores or {})[pair[1]] - 0.5), pair[1]))
            found = known[: recipe.count]
        elif recipe.strategy == "split":
            found = _most_split(found, votes(s, recipe.concept, recipe.simulated))[: recipe.count]
        chosen = [i for i, _ in found]
    if not chosen:
        raise HfiError(_nothing(recipe, matched, unscored, len(unpaired)))
    gold = dict(recipe.gold_answers)
    if recipe.gold:
        answers = known_answers(s, recipe.concept, recipe.simulated)
        gold |= pick_gold(answers, recipe.gold, recipe.seed)
    chosen = [i for i in chosen if i not in gold]
    if not chosen:
        raise HfiError(f"all {len(gold)} images are gold: nothing would be asked; take fewer gold images, or more images")
    benign: Sequence[int] = ()
    if recipe.benign_run is not None:
        taken = {*chosen, *gold}
        harmless = [i for i, _ in matching(s, Wanted(run=recipe.benign_run), recipe.concept) if i not in taken]
        benign = _drawn(harmless, benign_count(len(chosen), recipe.benign_share), recipe.seed + 1)
    return Prepared(tuple(chosen), gold, tuple(benign), matched, unscored, tuple(unpaired))


def tasks_of(question: str, images: int, group_size: int = 5) -> int:
    """How many tasks so many images make; a rest too small for a ranking waits."""
    return images // {"binary": 1, "compare": 2}.get(question, group_size)


def benign_count(items: int, share: float) -> int:
    """So many benign images make up `share` of all tasks beside `items` others."""
    return round(items * share / (1 - share))


def _check(s: Session, recipe: Recipe, scores: Mapping[str, float] | None) -> None:
    question = "compare" if recipe.compare else concept_row(s, recipe.concept).question
    if recipe.strategy not in STRATEGIES:
        raise UsageError(f"unknown choice {recipe.strategy!r}: choose {', '.join(STRATEGIES)}")
    if recipe.strategy != "all" and (recipe.count is None or recipe.count < 1):
        raise UsageError(f"{recipe.strategy!r} takes some of the images: say how many, 1 or more")
    if recipe.compare:
        if recipe.strategy not in ("all", "random"):
            raise UsageError("pairs from before and after are taken all, or at random")
        if not recipe.wanted.erasure:
            raise UsageError("a comparison needs an erasure: choose whose images stand beside the untouched ones")
    if question != "binary" and (recipe.gold or recipe.gold_answers or recipe.benign_run is not None):
        raise UsageError("gold and benign images go with the question whether an image shows the concept: leave them out here")
    if recipe.strategy == "uncertain" and scores is None:
        raise UsageError("'uncertain' goes by a reward model's scores: name a reward")
    if recipe.benign_run is not None and not 0 < recipe.benign_share <= MAX_BENIGN:
        raise UsageError(f"benign images at a share of {recipe.benign_share:g}: give more than 0, and {MAX_BENIGN:g} at most")


def _nothing(recipe: Recipe, matched: int, unscored: int, unpaired: int) -> str:
    if recipe.compare:
        return (
            f"no pair: {unpaired} images of this erasure, none with an untouched image of the same prompt, seed, model, steps, "
            "guidance and sampler; make them with 'hfi generate', once with --erasure and once without"
        )
    if not matched:
        asked = ", leave --unjudged out (simulated annotators count as well)" if recipe.wanted.unjudged else ""
        return f"no image fits: choose other prompts, models or runs{asked}, or make images with 'hfi generate'"
    if recipe.strategy == "uncertain":
        return f"none of the {unscored} images has a score of this reward: run 'hfi campaign score' first"
    return f"of {matched} images none has votes that differ: choose at random instead"


# --- images ---


def matching(s: Session, wanted: Wanted, concept: str) -> list[tuple[int, str]]:
    """(id, sha256) of the images that fit, in the order in which they came; the same picture once."""
    query = select(m.Image.id, m.Image.sha256).where(*_conditions(wanted)).order_by(m.Image.id)
    if wanted.unjudged:
        owner = concept_row(s, concept)
        same = aliased(m.Image)  # not NOT IN, for which PostgreSQL goes through all that were asked about, image for image
        asked = select(same.id).join(m.TaskImage, m.TaskImage.image_id == same.id).join(m.Task).join(m.Campaign)
        query = query.where(~asked.where(same.sha256 == m.Image.sha256, m.Campaign.concept_id == owner.id).exists())
    first: dict[str, int] = {}
    for i, sha in s.execute(query):
        first.setdefault(sha, i)
    return [(i, sha) for sha, i in first.items()]


def _conditions(wanted: Wanted) -> list[Any]:
    exact = ((m.Image.model, wanted.model), (m.Image.run, wanted.run), (m.Image.source, wanted.source))
    found: list[Any] = [column == value for column, value in exact if value is not None]
    if wanted.text.strip():
        found.append(m.Image.prompt.icontains(wanted.text.strip(), autoescape=True))
    if wanted.erasure is not None:
        found.append(m.Image.erasure == wanted.erasure if wanted.erasure else m.Image.erasure.is_(None))
    return found


_SAME = (
    m.Image.prompt,
    m.Image.seed,
    func.coalesce(m.Image.model_content, m.Image.model),
    m.Image.steps,
    m.Image.guidance_scale,
    m.Image.scheduler,
    m.Image.negative_prompt,
    m.Image.width,
    m.Image.height,
)


def pairs(s: Session, wanted: Wanted) -> tuple[list[tuple[int, int]], list[tuple[str | None, int | None]]]:
    """(untouched, cleaned) image ids that differ in nothing but `wanted.erasure`, and prompt and seed of the cleaned ones of `wanted`
    that have no untouched twin."""
    query = select(m.Image.id, m.Image.guide, *_SAME).order_by(m.Image.id)
    before: dict[tuple[Any, ...], int] = {}
    for i, _, *alike in s.execute(query.where(m.Image.erasure.is_(None), m.Image.guide.is_(None), m.Image.seed.is_not(None))):
        before.setdefault(tuple(alike), i)
    found: dict[int, int] = {}
    alone: list[tuple[str | None, int | None]] = []
    for i, guide, *alike in s.execute(query.where(*_conditions(wanted))):
        twin = before.get(tuple(alike)) if guide is None else None
        if twin is None:
            alone.append((alike[0], alike[1]))
        else:
            found.setdefault(twin, i)
    return list(found.items()), alone


def _drawn(found: Sequence[Any], count: int, seed: int) -> list[Any]:
    """`count` of them at random, in their order."""
    rng = np.random.default_rng(seed)
    return [found[i] for i in sorted(rng.permutation(len(found))[:count])]


# --- votes ---


def votes(s: Session, concept: str, simulated: bool | None = False) -> dict[str, tuple[int, int]]:
    """How many say of an image, by its sha256, that it shows the concept, and how many that it does not: in all its campaigns, of
    whoever did not withdraw; gold tasks left out."""
    owner = concept_row(s, concept)
    shows, clean = (func.sum(case((_SAID.verdict == verdict, 1), else_=0)) for verdict in ("shows", "clean"))
    query = (
        select(m.Image.sha256, shows, clean)
        .join(m.TaskImage, m.TaskImage.image_id == m.Image.id)
        .join(m.Task, m.Task.id == m.TaskImage.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .join(_SAID, _SAID.task_id == m.Task.id)
        .join(m.Annotator, m.Annotator.id == _SAID.annotator_id)
        .where(
            m.Campaign.concept_id == owner.id,
            m.Campaign.question == "binary",
            m.Task.kind != "gold",
            m.Annotator.withdrawn_at.is_(None),
            _SAID.verdict.in_(("shows", "clean")),
            is_last(_SAID),
        )
        .group_by(m.Image.sha256)
    )
    if simulated is not None:
        query = query.where(m.Annotator.simulated == simulated)
    return {sha: (int(yes), int(no)) for sha, yes, no in s.execute(query)}


_SAID: Any = aliased(m.Judgment)


def _most_split(found: Iterable[tuple[int, str]], said: Mapping[str, tuple[int, int]]) -> list[tuple[int, str]]:
    """Those with votes on both sides, the most evenly divided first; of equally divided ones, those with more votes."""
    both = [(i, sha, *said[sha]) for i, sha in found if min(said.get(sha, (0, 0))) > 0]
    both.sort(key=lambda row: (-min(row[2:]) / sum(row[2:]), -sum(row[2:]), row[1]))
    return [(i, sha) for i, sha, *_ in both]


# --- gold ---


def known_answers(s: Session, concept: str, simulated: bool | None = False) -> dict[int, Known]:
    """Images of the concept whose answer is known, by id: by the last decision of a manager, else where `GOLD_VOTES` people or more
    all said the same."""
    owner = concept_row(s, concept)
    unanimous = {
        sha: (yes, no) for sha, (yes, no) in votes(s, concept, simulated).items() if not yes * no and yes + no >= GOLD_VOTES
    }
    decided: dict[str, str] = {}
    query = (
        select(m.Image.sha256, m.Adjudication.verdict)
        .join(m.TaskImage, m.TaskImage.image_id == m.Image.id)
        .join(m.Task, m.Task.id == m.TaskImage.task_id)
        .join(m.Campaign, m.Campaign.id == m.Task.campaign_id)
        .join(m.Adjudication, m.Adjudication.task_id == m.Task.id)
        .where(m.Campaign.concept_id == owner.id, m.Campaign.question == "binary")
        .order_by(m.Adjudication.id)
    )
    for sha, verdict in s.execute(query):
        decided[sha] = verdict
    found: dict[int, Known] = {}
    seen: set[str] = set()
    for i, sha in s.execute(select(m.Image.id, m.Image.sha256).order_by(m.Image.id)):
        if sha in seen or (sha not in decided and sha not in unanimous):
            continue
        seen.add(sha)
        yes, no = unanimous.get(sha, (0, 0))
        verdict = decided.get(sha) or ("shows" if yes else "clean")
        if verdict in ("shows", "clean"):
            found[i] = Known(verdict, sha in decided, yes + no)
    return found


def pick_gold(known: Mapping[int, Known], count: int, seed: int = 0) -> dict[int, str]:
    """`count` of them: as many that show the concept as clean ones where there are enough, decided ones before unanimous ones, then
    at random. HfiError where there are fewer."""
    if len(known) < count:
        raise HfiError(
            f"{count} gold images were asked for, and {len(known)} answers are known: a manager's decision makes one known, or "
            f"{GOLD_VOTES} people who all say the same; take fewer, or give a file of images and verdicts"
        )
    order = np.random.default_rng(seed).permutation(len(known)).tolist()
    place = dict(zip(known, order, strict=True))
    ranked = sorted(known, key=lambda i: (not known[i].adjudicated, place[i]))
    sides = {verdict: [i for i in ranked if known[i].verdict == verdict] for verdict in ("shows", "clean")}
    shows = min(len(sides["shows"]), max(count - len(sides["clean"]), count - count // 2))
    chosen = [*sides["shows"][:shows], *sides["clean"][: count - shows]]
    return {i: known[i].verdict for i in sorted(chosen)}


def gold_from_csv(s: Session, text: str, source: str = "the file") -> dict[int, str]:
    """Known answers, by image id, from a CSV of the columns image (a sha256, or the name it was imported under) and verdict (shows or
    clean). HfiError naming the line of a mistake."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""))
    names = [str(name).strip() for name in reader.fieldnames or ()]
    if missing := [name for name in ("image", "verdict") if name not in names]:
        raise HfiError(f"{source} has no column {' and no column '.join(missing)}: give the columns image, verdict")
    reader.fieldnames = names
    by_name: dict[str, set[int]] = {}
    for i, sha, name in s.execute(select(m.Image.id, m.Image.sha256, m.Image.original_name).order_by(m.Image.id.desc())):
        by_name[sha] = {i}  # of the same picture twice, the first
        if name:
            by_name.setdefault(name, set()).add(i)
    found: dict[int, str] = {}
    try:
        for row in reader:
            image, verdict = (str(row.get(name) or "").strip() for name in ("image", "verdict"))
            where = f"{source}, line {reader.line_num}"
            if verdict not in ("shows", "clean"):
                raise HfiError(f"{where}: the verdict {verdict[:40]!r} is no known answer: write shows or clean")
            if len(by_name.get(image, ())) != 1:
                why = "names several images" if image in by_name else "is no image of this workspace"
                raise HfiError(f"{where}: {image[:80]!r} {why}: give its sha256, or the name that it was imported under")
            (i,) = by_name[image]
            if found.setdefault(i, verdict) != verdict:
                raise HfiError(f"{where}: {image[:80]!r} has two answers: give one")
    except csv.Error as e:
        raise HfiError(f"{source} is not CSV: {e} after line {reader.line_num}") from None
    if not found:
        raise HfiError(f"{source} holds no answer: write one a row under the columns image, verdict")
    return found


# --- what can be chosen ---


@dataclass(frozen=True)
class Sources:
    """What the images of the workspace come from: models, runs and erasures (each identity with the last run that used it)."""

    models: tuple[str, ...]
    runs: tuple[str, ...]
    erasures: Mapping[str, str | None]
    images: int


def sources(s: Session) -> Sources:
    def distinct(column: Any) -> tuple[str, ...]:
        query = select(column).where(column.is_not(None)).group_by(column).order_by(func.max(m.Image.id).desc())
        return tuple(s.scalars(query))

    last = func.max(m.Image.id)
    used = select(m.Image.erasure, m.Image.run).where(m.Image.erasure.is_not(None)).group_by(m.Image.erasure, m.Image.run)
    erasures: dict[str, Any] = {}
    for erasure, run in s.execute(used.order_by(last.desc())):
        erasures.setdefault(str(erasure), run)
    count = s.scalar(select(func.count()).select_from(m.Image)) or 0
    return Sources(distinct(m.Image.model), distinct(m.Image.run), erasures, count)
