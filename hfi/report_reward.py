"""The report of a reward model: how far its scores can be trusted, and where it and people are furthest apart.

Those images are the next to be judged again: they stand in the report and in disagreements.csv, which 'hfi ui --images' makes a
campaign of and 'hfi generate --prompts' reads as prompts.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from hfi import plots
from hfi.aggregate import agreement, pairs, rankings, tally
from hfi.files import spreadsheet_cell, write_text
from hfi.images import ImageStore
from hfi.judgments import JudgmentSet
from hfi.metrics import wilson
from hfi.report import AgreementPart, AnnotatorLine, Curve, Report, RewardPart, data_uri, figure, write_report
from hfi.reward.loss import Bin, brier, calibration, calibration_error
from hfi.runs import Run

AGAIN = 20  # images to judge again at most: minutes for one person, and four ranking questions
GAP = 0.25  # with less between them, score and people say the same
EXTREMES = 12  # images shown at either end of the scores

Scores = Mapping[str, tuple[float, bool]]  # sha256 -> score, and whether the image was held out


@dataclass(frozen=True)
class Scored:
    """A judged image. `label`: the share of people who say it shows the concept; of a ranking question, the share of its pairs that
    it wins (ties: half). `gap`: how far they and the score are apart, 0 to 1: |score - label|, or the share of its pairs that the
    scores order the other way (equal scores: half; ties have no order and are left out)."""

    sha256: str
    prompt: str
    score: float
    label: float
    gap: float
    said: str
    held_out: bool


def write_scores(run: Run, shas: Sequence[str], scores: np.ndarray, held_out: np.ndarray) -> None:
    """Keeps the score [N] of each image in the run; `held_out` are rows."""
    out = set(held_out.tolist())
    lines = [{"image": sha, "score": float(scores[i]), "held_out": i in out} for i, sha in enumerate(shas)]
    write_text(scores_file(run), "".join(json.dumps(line) + "\n" for line in lines))


def read_scores(run: Run) -> Scores:
    lines = [json.loads(line) for line in scores_file(run).read_text(encoding="utf-8").splitlines()]
    return {line["image"]: (line["score"], line["held_out"]) for line in lines}


def scores_file(run: Run) -> Path:
    return run.path / "scores.jsonl"


def write_reward_report(
    run: Run, judgments: JudgmentSet, names: Mapping[str, str], title: str, images: ImageStore
) -> tuple[Path, Path, int]:
    """Writes report.html and disagreements.csv into the run; returns both paths and how many images the second names.

    `names`: what to call annotators instead of their pseudonyms. HfiError where a picture to show is gone.
    """
    scores = read_scores(run)
    judged = compare(judgments, scores)
    again = disagreements(judged)
    file = run.path / "disagreements.csv"
    write_text(file, to_csv(again))
    result, settings = run.result(), run.config()
    chart, bins = _calibration(judgments, scores)
    by_score = sorted(judged, key=lambda i: (-i.score, i.sha256))
    ends = min(EXTREMES, len(by_score) // 2)
    sections = [
        ("calibration", "How far to trust a score", chart),
        (
            "again",
            "Where score and people disagree most",
            _again(again, images, judgments.concept, f"{run.path.name}/{file.name}"),
        ),
        ("highest", "The highest scores", _card("Most of the concept, by the model; highest first.", by_score[:ends], images)),
        ("lowest", "The lowest scores", _card("Least of it, by the model; lowest first.", by_score[::-1][:ends], images)),
    ]
    simulated = sum(j.simulated for j in judgments.judgments)
    losses = {
        name: [(m["step"], m[key]) for m in run.metrics()]
        for name, key in (("training", "loss"), ("validation", "validation_loss"))
    }
    report = Report(
        concept=title,
        rows=(),
        title="Reward report",
        summary=f"{describe(result)}. " + _verdict(result),
        simulated=f"{simulated} of {len(judgments.judgments)} judgments come from simulated annotators." if simulated else "",
        agreement=agreement_part(judgments, names),
        reward=reward_part(result, judgments, scores),
        sections=sections,
        curves=[Curve("Loss by epoch", losses, "Training stops when the validation images gain nothing more.")],
        limits=_limits(judgments, bins),
        provenance={
            "Reward": {key: str(value) for key, value in settings.items()},
            "Images": {
                "trained on": str(result["train_images"]),
                "decided when to stop": str(result["validation_images"]),
                "held out": str(sum(out for _, out in scores.values())),
            },
        },
    )
    return write_report(run.path / "report.html", report), file, len(again)


def describe(result: Mapping[str, Any]) -> str:
    """The figures on the held-out images in one line."""
    if "auc" in result:
        return (
            f"AUC {result['auc']:.3f}, accuracy {100 * result['accuracy']:.1f} % on {result['held_out_images']} held-out images of "
            f"{result['images']} (chance reaches {result['chance_limit']:.3f} in 5 % of cases)"
        )
    return (
        f"pair accuracy {100 * result['pair_accuracy']:.1f} % on {result['held_out_rankings']} held-out rankings, {result['images']} "
        f"images in all (chance reaches {100 * result['chance_limit']:.1f} % in 5 % of cases)"
    )


def _verdict(result: Mapping[str, Any]) -> str:
    if result["better_than_chance"]:
        return "It is better than chance."
    return "It is no better than chance: judge more images before going on."


def agreement_part(judgments: JudgmentSet, names: Mapping[str, str]) -> AgreementPart:
    found = agreement(judgments)
    lines = [AnnotatorLine(names.get(a.name, a.name), a.simulated, a.judgments, a.shows, a.accuracy) for a in found.annotators]
    return AgreementPart(found.alpha, found.low, found.high, found.units, lines)


def reward_part(result: Mapping[str, Any], judgments: JudgmentSet, scores: Scores) -> RewardPart:
    """The figures as tiles; of a binary question the held-out scores by what most people said (even votes are neither)."""
    p, yes, answers = predictions(judgments, scores)
    error = f"{calibration_error(calibration(p, yes, answers)):.3f}"
    if judgments.question == "ranking":
        facts = {
            "pair accuracy on held-out rankings": f"{100 * result['pair_accuracy']:.1f} %",
            "that chance reaches in 5 %": f"{100 * result['chance_limit']:.1f} %",
            "held-out rankings": str(result["held_out_rankings"]),
            "held-out images": f"{result['held_out_images']} of {result['images']}",
            "expected calibration error, of pairs": error,
        }
        return RewardPart(facts)
    positive = result["held_out_positive"] / result["held_out_images"]
    facts = {
        "AUC on held-out images": f"{result['auc']:.3f}",
        "AUC that chance reaches in 5 %": f"{result['chance_limit']:.3f}",
        "accuracy on held-out images": f"{100 * result['accuracy']:.1f} %",
        "accuracy of always saying the same": f"{100 * max(positive, 1 - positive):.1f} %",
        "held-out images": f"{result['held_out_images']} of {result['images']}",
        "expected calibration error": error,
        "Brier score (always ½: 0.250)": f"{brier(p, yes, answers):.3f}",
    }
    clear = 2 * yes != answers
    return RewardPart(facts, p[clear].tolist(), (2 * yes > answers)[clear].tolist())


def compare(judgments: JudgmentSet, scores: Scores) -> list[Scored]:
    """Every judged image with its score, what people said, and how far the two are apart."""
    prompts = judgments.prompts
    if judgments.question == "binary":
        return [
            Scored(
                sha, prompts[sha] or "", scores[sha][0], y := shows / (shows + clean), abs(scores[sha][0] - y),
                f"{shows} shows, {clean} clean", scores[sha][1],
            )
            for sha, (shows, clean) in tally(judgments).items()
        ]  # fmt: skip
    met: dict[str, int] = {}
    won: dict[str, float] = {}
    ordered: dict[str, int] = {}
    against: dict[str, float] = {}
    for more, less, tied in (pair for order in rankings(judgments) for pair in pairs(order)):
        d = scores[more][0] - scores[less][0]
        for sha, wins in ((more, 0.5 if tied else 1.0), (less, 0.5 if tied else 0.0)):
            met[sha] = met.get(sha, 0) + 1
            won[sha] = won.get(sha, 0.0) + wins
            ordered[sha] = ordered.get(sha, 0) + (not tied)
            against[sha] = against.get(sha, 0.0) + (0.0 if tied else (d < 0) + 0.5 * (d == 0))
    return [
        Scored(
            sha, prompts[sha] or "", scores[sha][0], won[sha] / n, against[sha] / max(ordered[sha], 1),
            f"{against[sha]:g} of {ordered[sha]} pairs the other way", scores[sha][1],
        )
        for sha, n in met.items()
    ]  # fmt: skip


def disagreements(judged: Sequence[Scored]) -> list[Scored]:
    """The images to judge again, furthest apart first."""
    return sorted((i for i in judged if i.gap >= GAP), key=lambda i: (-i.gap, i.sha256))[:AGAIN]


def to_csv(found: Sequence[Scored]) -> str:
    """Images for 'hfi ui --images' and prompts for 'hfi generate --prompts' in one file."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("image", "prompt", "score", "label", "people", "held_out"))
    for i in found:
        row = (i.sha256, spreadsheet_cell(i.prompt), f"{i.score:.4f}", f"{i.label:.4f}", i.said, str(i.held_out).lower())
        writer.writerow(row)
    return text.getvalue()


def predictions(judgments: JudgmentSet, scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Chances that the model predicts of the held-out images, how many answers said yes, and how many were given: each [N].

    Binary: the score of each image, and those who say it shows the concept. Ranking: for each pair of images, sigmoid of the
    difference of their scores, and those who give the pair the same order as the scores (equal scores, and ties: half).
    """
    held: list[tuple[float, float, int]]
    if judgments.question == "binary":
        held = [(scores[sha][0], shows, shows + clean) for sha, (shows, clean) in tally(judgments).items() if scores[sha][1]]
    else:
        asked: dict[frozenset[str], tuple[float, float, int]] = {}
        for more, less, tied in (pair for order in rankings(judgments) for pair in pairs(order)):
            if scores[more][1] and scores[less][1]:
                d = scores[more][0] - scores[less][0]
                _, same, times = asked.get(frozenset((more, less)), (0, 0.0, 0))
                like = 0.5 if tied or d == 0 else float(d > 0)
                asked[frozenset((more, less))] = (1 / (1 + np.exp(-abs(d))), same + like, times + 1)
        held = list(asked.values())
    p, yes, answers = np.array(held, dtype=float).reshape(-1, 3).T
    return p, yes, answers


# --- parts of the page ---


def _calibration(judgments: JudgmentSet, scores: Scores) -> tuple[str, list[Bin]]:
    binary = judgments.question == "binary"
    bins = calibration(*predictions(judgments, scores))
    spread = [wilson(b.share * b.units, b.units) for b in bins]
    points = [
        plots.Share(b.score, b.share, (i.low or 0.0, i.high or 0.0), b.units, (b.low + b.high) / 2)
        for b, i in zip(bins, spread, strict=True)
    ]
    unit = "images" if binary else "pairs"
    titles = ("predicted", "people who say it shows") if binary else ("predicted order", "people who give that order")
    note = (
        f"Held-out {unit} only. A point on the line is a score that can be read as a share of people; n counts {unit}. "
        "Whiskers are Wilson’s 95 % intervals, "
        + ("all answers on one image counting as one." if binary else "too narrow where pairs share an image.")
    )
    lines = "".join(
        f"<tr><td>{100 * b.low:.0f}–{100 * b.high:.0f} %</td><td>{b.units}</td><td>{b.answers}</td><td>{100 * b.score:.1f} %</td>"
        f"<td>{100 * b.share:.1f} %</td><td>{100 * p.bounds[0]:.1f}–{100 * p.bounds[1]:.1f}</td></tr>"
        for b, p in zip(bins, points, strict=True)
    )
    heads = "".join(f"<th>{name}</th>" for name in ("bin", unit, "answers", titles[0], titles[1], "95 %"))
    table = (
        '<div class="card"><div class="scroll" tabindex="0" role="group" aria-label="calibration by bin">'
        f'<table class="rows"><thead><tr>{heads}</tr></thead><tbody>{lines}</tbody></table></div></div>'
    )
    low = 0.0 if binary else 0.5
    chart = figure(lambda width: plots.calibration(points, *titles, low=low, width=width), note)
    return (f'<div class="figures">{chart}{table}</div>' if bins else ""), bins


def _again(found: Sequence[Scored], images: ImageStore, concept: str, file: str) -> str:
    if not found:
        return _card("Nowhere: no score lies far from what people said.", (), images)
    where = escape(f"runs/reward/{file}")
    note = (
        "One of the two may be wrong. In the workspace’s folder, ask people again, who see neither score nor label: "
        f"<br><code>hfi ui --concept {escape(concept)} --images {where}</code>"
        "<br>Or make more images of these prompts to judge: "
        f"<br><code>hfi generate --model MODEL --seed 1000 --prompts {where}</code>"
        "<br>Then train again."
    )
    return _card(note, found, images)


def _card(note: str, found: Sequence[Scored], images: ImageStore) -> str:
    return f'<div class="card"><p class="note">{note}</p><div class="shots">{_shots(found, images)}</div></div>'


def _shots(found: Sequence[Scored], images: ImageStore) -> str:
    shots = []
    for i in found:
        part = "held out" if i.held_out else "seen in training"
        alt = escape(f"{i.prompt or 'no prompt'}, score {i.score:.2f}", quote=True)
        shots.append(
            f'<figure class="shot"><img src="{data_uri(images.load(i.sha256))}" alt="{alt}"><figcaption><b>{i.score:.2f}</b>'
            f"{escape(i.said)}, {part}<small>{escape(i.prompt)}</small></figcaption></figure>"
        )
    return "".join(shots)


def _limits(judgments: JudgmentSet, bins: Sequence[Bin]) -> list[str]:
    found = [
        "Held-out images come from the same prompts and the same model as the others: on other prompts, and on the images of a "
        "cleaned model, the scores may be worse.",
        "Of images seen in training, score and people agree more than they would otherwise.",
        f"The calibration error rests on {sum(b.units for b in bins)} held-out "
        f"{'images' if judgments.question == 'binary' else 'pairs'} and reads too high when they are few.",
    ]
    if judgments.question == "ranking":
        found.append("Scores of a ranking reward have no unit and no zero: only their differences mean something.")
    return found
