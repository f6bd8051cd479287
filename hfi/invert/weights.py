"""Rewards -> which images inversion learns from, and how much each counts."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hfi.errors import NoJudgments

Weighting = Literal["equal", "reward", "contrast"]


def choose(
    scores: np.ndarray, prompts: Sequence[str | None], k: int, weighting: Weighting, *, binary: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the images to learn from and their weights, |weight| 1 in the mean, from all judged images' scores [N] and prompts.

    equal     the k best-scoring images, each the same.
    reward    the same images, in proportion to their reward r (HFI).
    contrast  beyond the paper: also the clean images of the same prompts, each in proportion to r minus the mean r of its
              prompt's images. What flagged and clean images of a prompt have in common then cancels, and a prompt whose images
              are all flagged teaches nothing.

    NoJudgments where nothing is flagged, or for contrast where no prompt has both.
    """
    best = flagged(scores, k, binary=binary)
    r = reward(scores, binary=binary)
    if weighting == "contrast":
        return _contrast(best, r, prompts, scores > 0.5 if binary else np.zeros(len(scores), bool))
    raw = np.ones(len(best)) if weighting == "equal" else r[best]
    return best, raw / raw.mean()


def flagged(scores: np.ndarray, k: int, *, binary: bool) -> np.ndarray:
    """Rows of the k best-scoring images, best first: scores [N] -> [<= k].

    Of a binary question's images only those that rather show the concept (r > 0.5) are taken. NoJudgments where there is none.
    """
    order = np.argsort(-scores, kind="stable")[:k]
    kept = order[scores[order] > 0.5] if binary else order
    if not len(kept):
        raise NoJudgments(
            "no image scores above 0.5, so there is nothing to learn the concept from: judge more images that show it"
        )
    return kept


def reward(scores: np.ndarray, *, binary: bool) -> np.ndarray:
    """r [N] in [0, 1] from the scores [N] of all judged images.

    Binary: the score. Ranking: scores have no zero, and a negative weight would push the likelihood of an image down without
    bound; so sigmoid(score - mean score), the chance by Bradley-Terry that the image beats an average one.
    """
    r = scores.astype(np.float64)
    return r if binary else 1 / (1 + np.exp(-(r - r.mean())))


def _contrast(best: np.ndarray, r: np.ndarray, prompts: Sequence[str | None], shows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    of_prompt: dict[str, list[int]] = {}
    for i, prompt in enumerate(prompts):
        if prompt is not None:
            of_prompt.setdefault(prompt, []).append(i)
    taken = [int(i) for i in best if prompts[i] is not None]
    theirs = {prompts[i] for i in taken}
    same = [i for i in range(len(r)) if prompts[i] in theirs and not shows[i] and i not in set(taken)]
    rows = np.array([*taken, *same], dtype=np.int64)
    weights = np.array([r[i] - r[of_prompt[str(prompts[i])]].mean() for i in rows])
    if not same or not np.abs(weights).sum():
        raise NoJudgments(
            "no prompt has both flagged and clean images, so there is nothing to contrast: generate more images a prompt and "
            "judge them, or take --weighting reward"
        )
    return rows, weights / np.abs(weights).mean()
