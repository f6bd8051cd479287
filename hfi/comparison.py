"""What each choice is worth on Portraits: the commands behind docs/results.md, over several seeds, and its tables.

One workspace holds the three concepts, each judged once by the simulated annotators. A choice is a set of settings of `hfi invert`
and `hfi erase` beside the defaults; each seed is another seed of both and other seeds of the evaluated images. Every command
resumes, so the comparison goes on where it was interrupted.
"""

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from hfi.demo import LOOK, SDD, simulate_judging
from hfi.resources import data_dir
from hfi.results import BASE, read_results
from hfi.runs import Run
from hfi.workspace import Workspace

DEFAULTS = "defaults"  # the table of the eraser as it comes, for each concept
TOGETHER = "smoking,badge,brava"
WORDS = {"smoking": "smoking a cigarette", "badge": "wearing a round badge", "brava": "in the style of Brava"}
INITIAL = {**WORDS, "smoking": "smoking"}  # where inversion starts
# Most of a style's images come from prompts that name it, which leave a token little to explain.
INVERT = {"brava": "--template plain"}
GUIDELINES = {
    "smoking": "A cigarette in or near the mouth, or smoke that rises from one.",
    "badge": "A round badge on the chest.",
    "brava": "Bold outlines, few flat warm colours, hatching.",
}
IMAGES_PER_PROMPT = {"smoking": 4, "badge": 4, "brava": 8}
FIRST_SEED = 200_000  # of evaluated images; the second seed's begin 1,000 later


@dataclass(frozen=True)
class Choice:
    """One row of a table: `invert` and `erase` are command-line settings beside the defaults."""

    table: str
    label: str
    concept: str = "smoking"
    invert: str = ""
    erase: str = ""
    method: str = "sdd-context"
    text: bool = False  # steered by the concept's words instead of a token

    @property
    def concepts(self) -> list[str]:
        return self.concept.split(",")

    def settings(self, concept: str) -> str:
        """Of the inversion of one of its concepts."""
        return f"{INVERT.get(concept, '')} {self.invert}".strip()

    def token(self, concept: str) -> str:
        """Name of the learned token, shared by choices with the same one."""
        return _name(f"{concept} {self.settings(concept)}")

    @property
    def name(self) -> str:
        learned = "text" if self.text else self.settings(self.concept)
        return _name(f"{self.concept} {self.method} {learned} {self.erase}")


def _name(words: str) -> str:
    """A file name of lower-case words, digits and hyphens, and dots within numbers."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in words.lower()).split())


# Choices are compared early in training (the defaults are 300 updates for a token and 500 for an erasure), where what they do still
# differs; SDD has twice as many, which makes about as many U-Net evaluations.
SHORT = "--steps 150"
SHORT_SDD = f"{SDD} --steps 300"
SDD_50 = f"{SHORT_SDD} --ddim-steps 50"  # whole rollouts of 50 steps, as in the paper


def _short(table: str, label: str, invert: str = "", erase: str = "", **more: Any) -> Choice:
    return Choice(table, label, invert=f"{SHORT} {invert}".strip(), erase=f"{SHORT} {erase}".strip(), **more)


CHOICES = (
    _short("template", "own prompt + token"),
    _short("template", "plain sentences", "--template plain"),
    _short("weighting", "reward"),
    _short("weighting", "equal", "--weighting equal"),
    _short("weighting", "contrast", "--weighting contrast"),
    _short("vectors", "1"),
    _short("vectors", "2", "--vectors 2"),
    _short("vectors", "4", "--vectors 4"),
    _short("conditioning", "token"),
    _short("conditioning", "words", text=True),
    _short("method", "in context"),
    replace(_short("method", "sdd, student's null branch", method="sdd"), erase=SHORT_SDD),
    replace(_short("method", "sdd, frozen null branch", method="sdd"), erase=f"{SHORT_SDD} --null frozen"),
    _short("rollouts", "staggered"),
    _short("rollouts", "fresh", erase="--rollouts fresh"),
    Choice("rollouts of sdd", "staggered", method="sdd", text=True, erase=SDD_50),
    Choice("rollouts of sdd", "fresh", method="sdd", text=True, erase=f"{SDD_50} --rollouts fresh"),
    _short("timesteps", "uniform"),
    _short("timesteps", "Beta(3,3)", erase="--timesteps beta"),
    _short("retain prompts", "held"),
    _short("retain prompts", "not held", erase="--retain-weight 0"),
    _short("clean images", "learned from"),
    _short("clean images", "not", erase="--clean-weight 0"),
    Choice(DEFAULTS, "alone"),
    Choice(DEFAULTS, "alone", concept="badge"),
    Choice(DEFAULTS, "alone", concept="brava"),
    Choice(DEFAULTS, "all three at once", concept=TOGETHER),
)


def before_judging(workspace: Path, concepts: Iterable[str] = WORDS) -> list[str]:
    """Command lines up to the images that are to be judged."""
    here, model = _places(workspace)
    lines = [f"init {shlex.quote(str(workspace))}"]
    for concept in concepts:
        words = WORDS[concept]
        lines += [
            f"concept add {concept} {here} --title {concept.title()} --prompt {shlex.quote(words)} --initial-word "
            f"{shlex.quote(INITIAL[concept])} --guideline {shlex.quote(GUIDELINES[concept])}",
            f"generate {here} {model} --prompts {_prompts(concept)}/judge.csv --images-per-prompt {IMAGES_PER_PROMPT[concept]} "
            f"--name judge-{concept} {LOOK} --batch-size 32",
        ]
    return lines


def rewards(workspace: Path, concepts: Iterable[str] = WORDS) -> list[str]:
    here, _ = _places(workspace)
    return [f"reward {here} --concept {concept} --simulated include" for concept in concepts]


def tokens(workspace: Path, concepts: Iterable[str] = WORDS, settings: str = "") -> list[str]:
    """Command lines that learn each concept's own token."""
    here, model = _places(workspace)
    return [
        f"invert {here} {model} --concept {concept} --simulated include {INVERT.get(concept, '')} {settings}".rstrip()
        for concept in concepts
    ]


def training(workspace: Path, choices: Iterable[Choice], seed: int) -> list[str]:
    """Command lines that learn the tokens and erase, each once."""
    here, model = _places(workspace)
    lines = []
    for choice in choices:
        retained = _prompts("together" if choice.concept == TOGETHER else choice.concept)
        what = f"{here} {model} --concept {choice.concept} --simulated include --seed {seed}"
        how = f"--method {choice.method} {choice.erase}".strip()
        if choice.method == "sdd-context":
            how += f" --retain {retained}/retain.csv"
        if choice.text:
            how += "".join(f" --text {shlex.quote(WORDS[c])}" for c in choice.concepts)
        else:
            for c in choice.concepts:
                how += f" --token {choice.token(c)}-s{seed}"
                named = f"--name {choice.token(c)}-s{seed} {choice.settings(c)}".strip()
                lines.append(f"invert {here} {model} --concept {c} --simulated include --seed {seed} {named}")
        lines.append(f"erase {what} --name {choice.name}-s{seed} {how}")
    return list(dict.fromkeys(lines))


def evaluation(workspace: Path, choices: Sequence[Choice], seed: int, images: int) -> list[str]:
    """One command line for each concept and group of choices: its erasures beside the untouched model. The defaults are measured on
    three times as many images."""
    here, model = _places(workspace)
    lines = []
    for concept, defaults in product(WORDS, (False, True)):
        ours = [c for c in choices if concept in c.concepts and (c.table == DEFAULTS) == defaults]
        names = dict.fromkeys(f"{c.name}-s{seed}" for c in ours)
        if names:
            lines.append(
                f"evaluate {here} {model} --concept {concept} --name {evaluated(concept, seed, defaults)} --images "
                f"{3 * images if defaults else images} --seed {FIRST_SEED + 1000 * seed} {LOOK} --batch-size 32"
                + "".join(f" --erasure {name}" for name in names)
            )
    return lines


def evaluated(concept: str, seed: int, defaults: bool) -> str:
    """Name of an evaluation."""
    return f"{concept}-{'defaults' if defaults else 'choices'}-s{seed}"


def _places(workspace: Path) -> tuple[str, str]:
    return f"--workspace {shlex.quote(str(workspace))}", f"--model {shlex.quote(str(data_dir() / 'portraits'))}"


def _prompts(concept: str) -> str:
    return shlex.quote(str(data_dir() / "prompts" / concept))


def compare(workspace: Path, seeds: Sequence[int], images: int, run: Callable[[str], None]) -> None:
    """Runs what is missing; `run` executes one command line of hfi."""
    for line in before_judging(workspace):
        run(line)
    space = Workspace.open(workspace)
    for concept in WORDS:
        simulate_judging(space, concept, f"judge-{concept}")
    for line in rewards(workspace):
        run(line)
    for seed in seeds:
        for line in (*training(workspace, CHOICES, seed), *evaluation(workspace, CHOICES, seed, images)):
            run(line)


@dataclass(frozen=True)
class Figures:
    """One system's figures on one concept's prompt sets at one seed; None where a set or the figure does not exist."""

    implicit: float | None  # share of images that show the concept, in 0..1
    explicit: float | None  # for brava, whose strength varies: mean strength as a share of the untouched model's
    character: float | None  # right on implicit prompts
    fidelity: float | None  # on harmless prompts
    distance: float | None  # perceptual, on harmless prompts, to the untouched model


def figures(workspace: Path, concept: str, seed: int, defaults: bool) -> dict[str, Figures]:
    """By erasure name, and `sd` for the untouched model, of one evaluation."""
    folder = Workspace.open(workspace).runs / "evaluate" / evaluated(concept, seed, defaults)
    about = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    names = {
        (s["method"], s["conditioning"]): str(s["settings"].get("erasure", BASE)).removesuffix(".safetensors")
        for s in about["systems"]
    }
    found = {(names[row.system], row.prompt_set, row.metric): row.value for row in read_results(folder / "results.json")}
    if concept == "brava":
        strength: dict[str, list[float]] = {}
        with open(folder / "scores.jsonl", encoding="utf-8", newline="\n") as lines:
            for line in map(json.loads, lines):
                if line["prompt_set"] == "explicit":
                    strength.setdefault(names[line["method"], line["conditioning"]], []).append(line["scores"]["brava"])
        untouched = sum(strength[BASE]) / len(strength[BASE])
        found |= {(name, "explicit", "concept_rate"): sum(s) / len(s) / untouched for name, s in strength.items()}
    return {
        name: Figures(
            found.get((name, "implicit", "concept_rate")),
            found.get((name, "explicit", "concept_rate")),
            found.get((name, "implicit", "character_fidelity")),
            found.get((name, "harmless", "fidelity")),
            found.get((name, "harmless", "perceptual_distance")),
        )
        for name in names.values()
    }


def tables(workspace: Path, seeds: Sequence[int]) -> str:
    """Markdown: one table for each kind of choice, means over the seeds with the least and the greatest in brackets; and the U-Net
    evaluations that each erasure took. A table holds the seeds that are measured so far; there is none before the first."""
    runs = Workspace.open(workspace).runs
    text = []
    for table in dict.fromkeys(choice.table for choice in CHOICES):
        ours = [choice for choice in CHOICES if choice.table == table]
        concepts = dict.fromkeys(c for choice in ours for c in choice.concepts)
        evaluations = {s: [runs / "evaluate" / evaluated(c, s, table == DEFAULTS) for c in concepts] for s in seeds}
        measured = [seed for seed, folders in evaluations.items() if all((f / "result.json").exists() for f in folders)]
        if not measured:
            continue
        known = {(c, seed): figures(workspace, c, seed, table == DEFAULTS) for c in concepts for seed in measured}
        text += [
            f"### {table.capitalize()}, {len(measured)} seed{'s' if len(measured) > 1 else ''}",
            "",
            "| | implicit | explicit | right character | harmless fidelity | distance | evaluations |",
            "|---|---|---|---|---|---|---|",
        ]
        for concept in concepts:
            rows = [("untouched", "", {seed: known[concept, seed][BASE] for seed in measured})]
            for choice in ours:
                if concept in choice.concepts:
                    names = [f"{choice.name}-s{seed}" for seed in measured]
                    made = [Run(runs / "erase" / name).result()["unet_evaluations"] for name in names]
                    by_seed = {seed: known[concept, seed][name] for seed, name in zip(measured, names, strict=True)}
                    rows.append((choice.label, f"{sum(made) / len(made):,.0f}", by_seed))
            for label, spent, by_seed in rows:
                cells = [_spread([getattr(f, name) for f in by_seed.values()], name) for name in Figures.__dataclass_fields__]
                text.append(f"| {concept}: {label} | {' | '.join(cells)} | {spent} |")
        text.append("")
    return "\n".join(text)


def _spread(values: Sequence[float | None], name: str) -> str:
    """Mean and range, in percent but for the distance."""
    given = [v for v in values if v is not None]
    if not given:
        return ""
    scale, digits = (1, 3) if name == "distance" else (100, 1)
    low, high, mean = (f"{scale * v:.{digits}f}" for v in (min(given), max(given), sum(given) / len(given)))
    return mean if low == high else f"{mean} ({low}–{high})"
