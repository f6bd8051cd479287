"""The model card of an exported folder: what was removed, on whose judgment, how, with what effect, and what that does not say."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hfi.export.about import public_name
from hfi.hub import split
from hfi.results import BASE, METRICS, Row, columns, lookup, show


@dataclass(frozen=True)
class Judged:
    """A set of judgments, as far as the workspace knows it: None where only its hash is known."""

    sha256: str
    judgments: int | None = None
    people: int = 0
    simulated: int = 0

    def text(self) -> str:
        if self.judgments is None:
            return f"set `{self.sha256[:16]}`, which this workspace no longer holds"
        whose = f"{self.people} annotators"
        if self.simulated:
            whose += f"; **{self.simulated} of the judgments are simulated**, made by a program and by no person"
        return f"set `{self.sha256[:16]}`: {self.judgments} judgments of {whose}"


@dataclass(frozen=True)
class Measured:
    """An evaluation's rows of the untouched model and of this one, which it calls `system`."""

    run: str
    detector: str
    system: tuple[str, str]
    rows: Sequence[Row]


def card(
    name: str,
    steps: Sequence[Mapping[str, str]],
    judged: Mapping[str, Judged],
    measured: Sequence[Measured],
    tokens: Sequence[str] = (),
    *,
    prediction_type: str,
    half: bool = False,
) -> str:
    """`steps`: metadata of each removal in turn; `judged`: by hash; `tokens`: placeholders that the folder's tokenizer knows."""
    base = steps[0].get("base_name", "")
    concepts = list(dict.fromkeys(slug for step in steps for slug in json.loads(step["concepts"])))
    head = ["library_name: diffusers", "pipeline_tag: text-to-image", "tags: [concept-erasure, hfi]"]
    if "/" in public_name(base):
        head.append(f"base_model: {split(base)[0]}")
    parts = [
        "\n".join(("---", *head, "---")),
        f"# {name}",
        f"A text-to-image model in Stable Diffusion's layout, from which {_listed(concepts)} was removed with hfi (Human Feedback "
        f"Inversion). It was made from `{public_name(base)}` (content `{steps[0]['base'][:16]}`), predicts {prediction_type} and "
        f"is stored in {'16' if half else '32'}-bit floats.",
        "## What was removed, and how",
        *(_step(step, judged) for step in steps),
        "## Measured effect",
        *(_measured(m) for m in measured),
    ]
    if not measured:
        parts.append("Not measured: no evaluation of the workspace that it was exported from names this model.")
    parts += ["## Limits", _LIMITS, "## How to load it", _usage(tokens)]
    return "\n\n".join(parts) + "\n"


_LIMITS = """- Removal lowers how often the model shows a concept; it does not prove that it never will. Rephrased prompts,
  images as input, new fine-tuning and learned embeddings can bring a concept back.
- What the judgments did not cover was not removed; what resembles the concept may have suffered.
- Figures hold for the prompts, seeds and detector that they were measured with.
- The licence of the base model, and its terms of use, apply to this one."""


def _step(step: Mapping[str, str], judged: Mapping[str, Judged]) -> str:
    called = ", ".join(f"`{text}`" for text in json.loads(step.get("texts", "[]")))
    lines = [f"- **{_listed(json.loads(step['concepts']))}**, by `{step['method']}`" + (f", called {called}" if called else "")]
    hashes = [sha for sha in json.loads(step.get("judgments", "[]")) if sha]
    lines += [f"- judgments: {judged.get(sha, Judged(sha)).text()}" for sha in hashes]
    if not hashes:
        lines.append("- judgments: none; the words above were chosen by hand")
    settings = json.loads(step.get("config", "{}"))
    lines.append("- settings: " + (", ".join(f"{key} {value}" for key, value in settings.items()) or "not recorded"))
    lines.append(f"- content `{step['content'][:16]}`" + (f", made with hfi {step['hfi']}" if "hfi" in step else ""))
    return "\n".join(lines)


def _measured(measured: Measured) -> str:
    """One line a figure: the untouched model's, then this one's, with 95 % intervals."""
    lines = [
        f"Evaluation `{measured.run}`, concept seen by {measured.detector}. 95 % intervals in brackets.",
        "",
        "| prompts | measure | before | after | images |",
        "|---|---|---|---|---|",
    ]
    for prompt_set, metric in columns(measured.rows):
        after = lookup(measured.rows, measured.system, prompt_set, metric)
        before = lookup(measured.rows, (BASE, "none"), prompt_set, metric)
        if after:
            title = METRICS[metric].title if metric in METRICS else metric
            lines.append(f"| {prompt_set} | {title} | {_cell(before)} | {_cell(after)} | {after.n} |")
    return "\n".join(lines)


def _cell(row: Row | None) -> str:
    if row is None:
        return "–"
    return show(row.metric, row.value) + (f" [{row.interval()}]" if row.interval() else "")


def _usage(tokens: Sequence[str]) -> str:
    text = """```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")
image = pipe("a prompt").images[0]
```"""
    if tokens:
        text += f"\n\nIts tokenizer knows the learned tokens {', '.join(f'`{t}`' for t in tokens)}."
    return text


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
