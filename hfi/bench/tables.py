"""Runs a benchmark: erases, samples, measures and attacks, one table after the other, and goes on where it was interrupted.

    <run>/<table>/                    images, raw scores and rows of its systems (hfi/evaluate.py)
    <run>/<table>/attacks/<set>/      the same of an attack; relapse/ has the trainings behind it
    <run>/costs.json                  what each system took: seconds, U-Net evaluations, peak memory
    <run>/results.json, results.csv   every row; `concept` is the table's name there
    <run>/report.html                 the page

Results hold nothing that depends on when or how often the run was interrupted; costs are measured, and do.
"""

import csv
import io
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from hfi.attack import flagged_examples, relapse, relapsed
from hfi.attack.ring_a_bell import direction, ringing
from hfi.bench.attacks import ETAS, RelapseAttack, RingABellAttack
from hfi.bench.plan import Plan, Table
from hfi.diffusion.memory import PRECISIONS
from hfi.diffusion.sd import StableDiffusion, load_sd
from hfi.diffusion.tokens import LearnedToken
from hfi.diffusion.training import clear_state, drive
from hfi.distributed import from_main, is_main
from hfi.erase import METHODS
from hfi.erase.erasure import Erasure
from hfi.evaluate import Backbone, System, evaluate
from hfi.files import write_text
from hfi.judgments import each_once, judged_by
from hfi.metrics.detectors import Detector
from hfi.metrics.features import Features
from hfi.metrics.lpips import Lpips
from hfi.prompts import Prompt
from hfi.results import BASE, Row, system_name, write_results
from hfi.runs import Run
from hfi.systems import Guide, ready, sampler
from hfi.workspace import Workspace


@dataclass(frozen=True)
class Entry:
    """A system of a table: the untouched model, an erased one, or a guided one."""

    table: Table
    method: str = BASE
    conditioning: str = "none"  # none, text or token
    erasure: Path | None = None
    guide: Guide | None = None

    @property
    def name(self) -> str:
        return system_name((self.method, self.conditioning))

    @property
    def evaluations(self) -> int:
        """Of the U-Net, for one step of one image."""
        return self.guide.guidance.evaluations if self.guide else 2

    @property
    def erasures(self) -> tuple[Path, ...]:
        return (self.erasure,) if self.erasure else ()

    @property
    def guided(self) -> dict[str, Any]:
        """What `sample` is told."""
        return {"guidance": self.guide.guidance} if self.guide else {}


@dataclass(frozen=True)
class Bench:
    """A plan and where it runs. `tokens`: what guides put, by concept; `flagged`: images that people flagged and their prompts, by
    concept, for attacks."""

    plan: Plan
    space: Workspace
    name: str
    content: str  # of the untouched model
    device: Any
    detectors: Mapping[str, Detector]  # of each table
    backbone: Backbone | None
    features: Features | None
    lpips: Lpips | None
    tokens: Mapping[str, LearnedToken]
    flagged: Mapping[str, Sequence[tuple[str, str | None]]]

    @property
    def path(self) -> Path:
        return self.space.runs / "bench" / self.name

    def erasure(self, table: Table, method: str, conditioning: str) -> str:
        """Name of an erasure of this benchmark."""
        return f"{self.name}-{table.name}-{method}-{conditioning}"

    def entries(self, table: Table) -> list[Entry]:
        """The untouched model, and each method with words and with tokens."""
        found = [Entry(table)]
        for method in table.methods:
            for kind in table.conditionings:
                if method in METHODS:
                    file = self.space.erasures / f"{self.erasure(table, method, kind)}.safetensors"
                    found.append(Entry(table, method, kind, erasure=file))
                elif kind == "token":
                    tokens = tuple(self.tokens[c.slug] for c in table.concepts)
                    found.append(Entry(table, method, kind, guide=Guide(method, tokens=tokens)))
                else:
                    found.append(Entry(table, method, kind, guide=Guide(method, words=tuple(c.text for c in table.concepts))))
        return found

    @property
    def look(self) -> dict[str, Any]:
        """How every picture is sampled."""
        m = self.plan.measure
        return {"steps": m.steps, "guidance_scale": m.guidance_scale, "batch_size": m.batch_size}


def erasing(bench: Bench, table: Table) -> list[str]:
    """Command lines of hfi that make a table's erasures."""
    here = f"--workspace {shlex.quote(str(bench.space.path))} --model {shlex.quote(bench.plan.model)}"
    lines = []
    for entry in bench.entries(table):
        if entry.erasure is None:
            continue
        device = shlex.quote(bench.plan.measure.device)  # as it was asked for: of several processes each chooses its own GPU
        line = f"erase {here} --device {device} --concept {','.join(table.slugs)} --simulated {bench.plan.simulated}"
        line += f" --method {entry.method}"
        line += f" --name {bench.erasure(table, entry.method, entry.conditioning)}"
        for concept in table.concepts:
            token = concept.learned(behind_prompts=METHODS[entry.method].judged)
            what = token if entry.conditioning == "token" else concept.text
            line += f" --{entry.conditioning} {shlex.quote(str(what))}"
        for name, value in bench.plan.methods[entry.method].items():
            line += f" --{name.replace('_', '-')} {shlex.quote(str(value))}"
        if table.retain and METHODS[entry.method].holds:
            line += f" --retain {shlex.quote(str(table.retain))}"
        lines.append(line)
    return lines


def measure(bench: Bench, run: Callable[[str], None]) -> list[Row]:
    """Everything that is missing of the bench's tables. `run` executes one command line of hfi."""

    @cache
    def untouched() -> StableDiffusion:
        return load_sd(bench.plan.model, bench.device, PRECISIONS[bench.plan.measure.precision])

    for table in bench.plan.tables:  # before a model is loaded here: it would lie beside each command's own
        for line in erasing(bench, table):
            run(line)
    rows: list[Row] = []
    for table in bench.plan.tables:
        entries = bench.entries(table)
        rows += _measured(bench, table, table.prompts, [_system(bench, e, untouched) for e in entries], bench.path / table.name)
        for name in table.attacks:
            attack: Callable[..., list[Row]] = _relapse if name == "relapse" else _ring_a_bell
            rows += attack(bench, table, entries, untouched, bench.plan.attacks[name])
    return rows


def write_tables(bench: Bench, rows: Sequence[Row]) -> None:
    """results.json and results.csv."""
    write_results(bench.path / "results.json", rows)
    write_text(bench.path / "results.csv", _csv(rows))


def _measured(
    bench: Bench, table: Table, sets: Mapping[str, Sequence[Prompt]], systems: Sequence[System], folder: Path, **more: Any
) -> list[Row]:
    others = {"backbone": bench.backbone, "features": bench.features, "lpips": bench.lpips}
    given: dict[str, Any] = {"images": bench.plan.measure.images, **others, **more}
    concept = "+".join(table.slugs)
    detector = bench.detectors[table.name]
    rows = evaluate(systems, concept, sets, folder, detector=detector, seed=bench.plan.measure.seed, **given)
    return [replace(row, concept=table.name) for row in rows]


def _system(bench: Bench, entry: Entry, untouched: Callable[[], StableDiffusion]) -> System:
    draw = sampler(untouched, entry.erasures, entry.guide, **bench.look)
    return System(
        entry.method, entry.conditioning, draw, _settings(bench, entry), _judged_by(entry), bench.plan.measure.batch_size
    )


def _settings(bench: Bench, entry: Entry) -> dict[str, Any]:
    m = bench.plan.measure
    common = {
        "model": bench.plan.model,
        "model content": bench.content[:16],
        "steps": m.steps,
        "guidance scale": m.guidance_scale,
        "precision": m.precision,
    }
    if entry.erasure:
        return {**common, "erasure": entry.erasure.name, "erasure content": _made(entry.erasure)[0][:16]}
    return {**common, **entry.guide.settings} if entry.guide else common


def _judged_by(entry: Entry) -> list[dict[str, Any]]:
    if entry.erasure:
        return _made(entry.erasure)[1]
    return entry.guide.judged_by if entry.guide else []


@cache
def _made(erasure: Path) -> tuple[str, list[dict[str, Any]]]:
    """(content, judged by) of an erasure, which is read and hashed once."""
    found = Erasure.load(erasure)
    return found.content, each_once(*(judged_by(step) for step in found.history))


# --- attacks ---

ALONE: dict[str, Any] = {"backbone": None, "features": None, "lpips": None}  # under attack, shares alone are measured


def _ring_a_bell(
    bench: Bench, table: Table, entries: Sequence[Entry], untouched: Callable[[], StableDiffusion], config: RingABellAttack
) -> list[Row]:
    """The direction is what the concepts' words add to harmless prompts, which no token is needed for."""
    attacked_prompts = [replace(prompt, expected={}) for prompt in table.prompts["harmless"]]
    prompts = [prompt.text for prompt in attacked_prompts[: config.images]]
    words = ", ".join(concept.text for concept in table.concepts)

    @cache
    def by() -> Any:
        return direction(untouched(), [f"{prompt} {words}" for prompt in prompts], prompts)

    rows: list[Row] = []
    for eta in ETAS:

        def attacked(entry: Entry, eta: float = eta) -> System:
            def draw(prompts: list[str], seeds: list[int]) -> Any:
                return ringing(ready(untouched(), entry.erasures, entry.guide), by(), eta, **bench.look, **entry.guided)(
                    prompts, seeds
                )

            settings = {**_settings(bench, entry), "attack": "ring-a-bell", "words": words, "eta": eta}
            return System(entry.method, entry.conditioning, draw, settings, batch=bench.plan.measure.batch_size)

        name = f"ring-a-bell-{eta:g}"
        folder = bench.path / table.name / "attacks" / name
        systems = [attacked(e) for e in entries]
        rows += _measured(bench, table, {name: attacked_prompts}, systems, folder, images=config.images, **ALONE)
    return rows


def _relapse(
    bench: Bench, table: Table, entries: Sequence[Entry], untouched: Callable[[], StableDiffusion], config: RelapseAttack
) -> list[Row]:
    learned = {e.name: _relapse_tokens(bench, table, e, untouched, config) for e in entries}
    rows: list[Row] = []
    for step in learned[entries[0].name]:

        def attacked(entry: Entry, step: int = step) -> System:
            token = learned[entry.name][step]

            def draw(prompts: list[str], seeds: list[int]) -> Any:
                return relapsed(ready(untouched(), entry.erasures, entry.guide), token, **bench.look, **entry.guided)(
                    prompts, seeds
                )

            settings = {**_settings(bench, entry), "attack": f"relapse after {step} updates", "token content": token.content[:16]}
            return System(entry.method, entry.conditioning, draw, settings, batch=bench.plan.measure.batch_size)

        name = f"relapse-{step:03d}"
        sets = {name: [replace(prompt, expected={}) for prompt in table.prompts["harmless"]]}
        folder = bench.path / table.name / "attacks" / name
        rows += _measured(bench, table, sets, [attacked(e) for e in entries], folder, images=config.images, **ALONE)
    return rows


def _relapse_tokens(
    bench: Bench, table: Table, entry: Entry, untouched: Callable[[], StableDiffusion], config: RelapseAttack
) -> dict[int, LearnedToken]:
    """Learned on the system's weights, once for all systems that share them; kept in the run's folder."""
    shared = entry if entry.erasure else Entry(table)
    chosen = _examples(bench, table, config.examples)
    settings = {**_settings(bench, shared), **asdict(config.training), "flagged": [sha for sha, _ in chosen]}

    def begin() -> tuple[Run, bool]:
        folder, name = bench.path / table.name / "attacks", f"{shared.method}-{shared.conditioning}"
        run = Run.start(folder, "relapse", name, settings)
        return run, run.finished

    run, trained = from_main(begin)
    if not trained:
        sd = ready(untouched(), shared.erasures)
        images = [bench.space.images.load(sha) for sha, _ in chosen]
        initial = " ".join(concept.text for concept in table.concepts)
        examples = flagged_examples(sd, images, [prompt for _, prompt in chosen], "<relapse>", initial)
        made = drive(
            lambda state: relapse(sd, examples, config.training, state),
            run,
            steps=config.steps,
            save_every=50,
            title=f"relapse of {entry.name}",
        )
        if is_main():
            for step, token in made.tokens.items():
                token.save(run.path / f"{step:05d}.safetensors")
            run.finish({"tokens": sorted(made.tokens)})
            clear_state(run)
    return from_main(
        lambda: {int(step): LearnedToken.load(run.path / f"{step:05d}.safetensors") for step in run.result()["tokens"]}
    )


def _examples(bench: Bench, table: Table, count: int) -> list[tuple[str, str | None]]:
    """Flagged images and their prompts, the concepts' in turn."""
    turns = zip_longest(*(bench.flagged[concept.slug] for concept in table.concepts))
    return [pair for turn in turns for pair in turn if pair][:count]


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f.name for f in fields(Row)]
    writer.writerow(["table" if name == "concept" else name for name in names])
    writer.writerows([["" if (v := getattr(row, name)) is None else v for name in names] for row in rows])
    return text.getvalue()
