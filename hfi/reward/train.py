"""Fits the reward model's head to judgments.

Images are split, never judgments: an image that two people judged is on one side only. Three parts: training; validation, which
stops training early; and a held-out part that nothing but the reported figures ever sees.

Rankings: images that were ranked together stay together (the connected parts of "appeared in one ranking" are split as wholes).
If there are fewer than three such parts, or one holds more than half of all images, single images are split instead, and pairs
that cross the split are dropped.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hfi.config import check, option
from hfi.errors import NoJudgments, NonFiniteLoss, UsageError
from hfi.reward.loss import (
    auc,
    auc_chance_limit,
    binary_loss,
    pair_accuracy,
    pair_accuracy_deviation,
    pair_chance_limit,
    ranking_loss,
)
from hfi.reward.model import Head


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """The paper states none of these numbers; all are ours (docs/papers.md)."""

    hidden: int = option(64, "width of the hidden layer", low=1)
    epochs: int = option(300, "passes over the training images at most", low=1)
    patience: int = option(30, "passes without a better validation loss before training stops", low=1)
    learning_rate: float = option(1e-3, "AdamW's learning rate", above=0)
    weight_decay: float = option(1e-2, "AdamW's weight decay", low=0)
    batch_size: int = option(64, "images, or rankings, in one update", low=1)
    held_out: float = option(0.2, "share of the images that only the reported figures see", above=0, high=0.5)
    validation: float = option(0.15, "share of the images that decide when to stop", above=0, high=0.5)
    seed: int = option(0, "seed of the split, the first weights and the order", low=0)

    def __post_init__(self) -> None:
        check(self)
        if self.held_out + self.validation >= 1:
            raise UsageError(
                f"--held-out {self.held_out} and --validation {self.validation} leave no image to learn from: "
                "give shares that add up to less than 1"
            )


Ranking = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Labels:
    """What people said, by row of the embeddings [N, D].

    Binary: y [N] in [0, 1] and count [N] of judgments behind it. Ranking: `rankings`, each a sequence of places, most of the
    concept first, each with the rows that stand there (several where they tie); y and count are empty.
    """

    y: np.ndarray
    count: np.ndarray
    rankings: Sequence[Ranking] = ()

    @property
    def binary(self) -> bool:
        return not self.rankings


def train_reward(
    embeddings: np.ndarray, labels: Labels, config: RewardConfig, report: Callable[[int, float, float], None] = lambda *_: None
) -> tuple[Head, dict[str, float | int | bool]]:
    """The head with the best validation loss, and its figures on the held-out images. `report(epoch, loss, validation_loss)`.

    NoJudgments where the judgments cannot be learned from: one class only, or too few images to hold any out.
    """
    check_labels(labels)
    generator = torch.Generator().manual_seed(config.seed)
    parts = split(labels, config.held_out, config.validation, config.seed)
    x = torch.from_numpy(np.asarray(embeddings, dtype=np.float32))
    head = _new_head(x.shape[1], config, labels.binary, generator)
    head.standardise(x[parts[0]])
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    items = [_items(labels, part) for part in parts]
    best, best_state, since, epoch = float("inf"), _state(head), 0, 0
    for epoch in range(1, config.epochs + 1):
        total = 0.0
        order = torch.randperm(len(items[0]), generator=generator).tolist()
        for i in range(0, len(order), config.batch_size):
            batch = [items[0][k] for k in order[i : i + config.batch_size]]
            loss = _loss(head, x, labels, batch) * _share(labels, batch, items[0])
            if not torch.isfinite(loss):
                raise NonFiniteLoss(epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        with torch.no_grad():
            validation = float(_loss(head, x, labels, items[1]))
        report(epoch, total / len(order), validation)
        if validation < best - 1e-6:
            best, best_state, since = validation, _state(head), 0
        else:
            since += 1
            if since >= config.patience:
                break
    head.load_state_dict(best_state)
    head.eval().requires_grad_(False)
    scores = head(x).numpy()
    figures = {"epochs": epoch, "validation_loss": best, **measure(scores, labels, parts[2])}
    return head, {**figures, "train_images": len(parts[0]), "validation_images": len(parts[1])}


def measure(scores: np.ndarray, labels: Labels, rows: np.ndarray) -> dict[str, float | int | bool]:
    """Figures of scores [N] on the held-out rows. An even vote (y = 0.5) is neither class and counts in neither figure."""
    if labels.binary:
        rows = rows[labels.y[rows] != 0.5]
        y, r = labels.y[rows] > 0.5, scores[rows]
        value, limit = auc(r, y), auc_chance_limit(int(y.sum()), int((~y).sum()))
        return {
            "held_out_images": len(rows),
            "held_out_positive": int(y.sum()),
            "auc": value,
            "accuracy": float(((r > 0.5) == y).mean()) if len(rows) else float("nan"),
            "chance_limit": limit,
            "better_than_chance": bool(value > limit),
        }
    held = [
        ranking for ranking in _within(labels.rankings, rows) if len(ranking) > 1
    ]  # all in one place: there is no right order
    # several people's orders of the same images are not independent evidence: each set of images counts once, by its mean
    by_set: dict[frozenset[int], list[tuple[float, float]]] = {}
    for ranking in held:
        images, place = _flat(ranking)
        found = pair_accuracy(scores[images], place), pair_accuracy_deviation(place)
        by_set.setdefault(frozenset(images), []).append(found)
    means = [np.mean(of_one_set, axis=0) for of_one_set in by_set.values()]  # a mean deviates by no more than the mean deviation
    value = float(np.mean([share for share, _ in means])) if means else float("nan")
    limit = pair_chance_limit([float(deviation) for _, deviation in means])
    return {
        "held_out_images": len(rows),
        "held_out_rankings": len(held),
        "pair_accuracy": value,
        "chance_limit": limit,
        "better_than_chance": bool(value > limit),
    }


def check_labels(labels: Labels) -> None:
    """NoJudgments unless something can be learned from them."""
    if not labels.binary:
        if len({i for ranking in labels.rankings for i in _flat(ranking)[0]}) < 6:
            raise NoJudgments("too few images are ranked (a reward needs at least 6): rank more with 'hfi ui'")
        if not any(len(ranking) > 1 for ranking in labels.rankings):
            raise NoJudgments(
                "every ranking puts all of its images in one place, so a reward has nothing to tell apart: rank more"
            )
        return
    shows, clean = int((labels.y > 0.5).sum()), int((labels.y < 0.5).sum())
    if not shows or not clean:
        split = len(labels.y) - shows - clean
        raise NoJudgments(
            f"only one class of judgment: of {len(labels.y)} judged images {shows} show the concept, {clean} are clean"
            f"{f' and {split} are undecided' if split else ''}, so a reward has nothing to tell apart; judge images of the other kind "
            "too (generate some from harmless prompts)"
        )
    if min(shows, clean) < 3:
        raise NoJudgments(
            f"too few judgments: {shows} images show the concept and {clean} are clean, at least 3 of each are needed; judge more"
        )


def split(labels: Labels, held_out: float, validation: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows for training, validation and the held-out figures, each sorted. See the module's first lines."""
    rng = np.random.default_rng(seed)
    if labels.binary:
        strata = [np.flatnonzero(labels.y > 0.5), np.flatnonzero(labels.y < 0.5), np.flatnonzero(labels.y == 0.5)]
        groups = [[[int(i)] for i in stratum] for stratum in strata]
    else:
        groups = [_components(labels.rankings)]
        total = sum(map(len, groups[0]))
        if len(groups[0]) < 3 or max(map(len, groups[0])) > total / 2:
            groups = [[[i] for component in groups[0] for i in component]]
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for units in groups:
        count = len(units)
        out = val = 0
        if count >= 3:  # then at least one in each part
            out = min(max(1, round(held_out * count)), count - 2)
            val = min(max(1, round(validation * count)), count - out - 1)
        shuffled = [units[i] for i in rng.permutation(count)]
        for part, some in zip(parts, (shuffled[out + val :], shuffled[out : out + val], shuffled[:out]), strict=True):
            part += [i for unit in some for i in unit]
    train, val_rows, out_rows = (np.array(sorted(part), dtype=np.int64) for part in parts)
    return train, val_rows, out_rows


def _flat(ranking: Ranking) -> tuple[list[int], list[int]]:
    """A ranking's rows, and the place of each."""
    flat = [(i, place) for place, rows in enumerate(ranking) for i in rows]
    return [i for i, _ in flat], [place for _, place in flat]


def _within(rankings: Sequence[Ranking], rows: np.ndarray) -> list[Ranking]:
    """The rankings with these rows alone; those that keep fewer than two are left out."""
    inside = set(rows.tolist())
    kept = [[some for place in ranking if (some := [i for i in place if i in inside])] for ranking in rankings]
    return [ranking for ranking in kept if sum(map(len, ranking)) > 1]


def _components(rankings: Sequence[Ranking]) -> list[list[int]]:
    """Rows connected by appearing in one ranking."""
    parent: dict[int, int] = {}

    def root(i: int) -> int:
        parent.setdefault(i, i)
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for ranking in rankings:
        rows = _flat(ranking)[0]
        for i in rows:
            parent[root(i)] = root(rows[0])
    found: dict[int, list[int]] = {}
    for i in sorted(parent):
        found.setdefault(root(i), []).append(i)
    return list(found.values())


def _items(labels: Labels, rows: np.ndarray) -> list[int] | list[Ranking]:
    """What one update draws from: rows, or the rankings restricted to these rows (of two images or more)."""
    if labels.binary:
        return [int(i) for i in rows]
    kept = _within(labels.rankings, rows)
    if not kept:
        raise NoJudgments("too few rankings to hold some out: rank more images with 'hfi ui'")
    return kept


def _loss(head: Head, x: Tensor, labels: Labels, items: list) -> Tensor:
    if labels.binary:
        y, count = (torch.from_numpy(np.asarray(v[items], dtype=np.float32)) for v in (labels.y, labels.count))
        return binary_loss(head(x[items]), y, count)
    flat = [_flat(ranking) for ranking in items]
    r = head(x[[i for rows, _ in flat for i in rows]])
    return ranking_loss(r.split([len(rows) for rows, _ in flat]), [place for _, place in flat])


def _share(labels: Labels, batch: list, items: list) -> float:
    """What a batch weighs beside the mean batch, so that a count means the same whichever images it meets there."""
    return float(labels.count[batch].mean() / labels.count[items].mean()) if labels.binary else 1.0


def _new_head(width: int, config: RewardConfig, binary: bool, generator: torch.Generator) -> Head:
    """torch's usual first weights (uniform in 1/sqrt(fan in)), from our own generator."""
    head = Head(width, config.hidden, binary)
    with torch.no_grad():
        for layer in head.layers:
            if isinstance(layer, torch.nn.Linear):
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)
    return head


def _state(head: Head) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in head.state_dict().items()}
