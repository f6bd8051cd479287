"""What the commands that train share: finding things in a workspace, and naming a run."""

import hashlib
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from filecmp import cmp
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hfi.aggregate import Method, mean_places, soft_labels
from hfi.concepts import Concept
from hfi.errors import HfiError, NoJudgments, NotFound, UsageError
from hfi.files import whole
from hfi.judgments import Include, JudgmentSet, freeze, save
from hfi.runs import Run, moved_on
from hfi.store import queries
from hfi.store.session import Session, reading
from hfi.workspace import Workspace

if TYPE_CHECKING:
    from hfi.diffusion.tokens import LearnedToken

ModelOption = Annotated[
    str, typer.Option("--model", "-m", help="The model: a folder in diffusers' layout, a checkpoint file, or a hub id.")
]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, mps or auto.", autocompletion=lambda: ["cpu", "cuda", "mps", "auto"])]
PrecisionOption = Annotated[
    Literal["float32", "bfloat16"], typer.Option(help="Of the frozen weights; what is trained is kept in float32.")
]
CheckpointingOption = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory, slower: compute activations twice instead of keeping them.")
]
SlicingOption = Annotated[
    bool, typer.Option("--attention-slicing", help="Compute attention in parts: only where attention has no kernel of its own.")
]
OffloadOption = Annotated[
    bool,
    typer.Option("--cpu-offload", help="Less GPU memory: what is not trained beside the U-Net waits in the CPU's until called."),
]
GUIDES = "neg, sld-weak, sld-medium, sld-strong, sld-max or sega"  # written out: help needs no torch
SimulatedOption = Annotated[
    Include, typer.Option(help="Judgments of simulated annotators: leave them out, take them too, or take only those.")
]
LabelOption = Annotated[Method, typer.Option("--labels", help="How several people's judgments of an image become one.")]


def say_and_run(line: str) -> None:
    """Runs a command line of hfi within another command, after saying it. Ctrl-C, and a command that fails, end that one, too."""
    from hfi.cli import app

    shown = line if len(line) < 300 else f"{line[:140]} ... {line[-120:]}"
    typer.echo(f"\n$ hfi {' '.join(shown.split())}", err=True)
    code = app(shlex.split(line), standalone_mode=False)  # typer gives the code of an exit back, also that of Ctrl-C
    if code == 130:
        raise KeyboardInterrupt
    if code:
        raise typer.Exit(code)


@dataclass(frozen=True)
class Judged:
    """A concept and its judgments, frozen and kept in the workspace."""

    concept: Concept
    judgments: JudgmentSet

    @property
    def binary(self) -> bool:
        return self.judgments.question == "binary"

    def labels(self, method: Method) -> dict[str, tuple[float, int]]:
        """(y in [0, 1], judgments behind it) of each image that was answered for.

        Of a ranking question, y is the image's mean place: 1 the first, 0 the last.
        """
        found = soft_labels(self.judgments, method) if self.binary else mean_places(self.judgments)
        return {sha: (label.y, label.count) for sha, label in found.items()}

    def flagged_prompts(self, method: Method) -> list[str]:
        """The prompt of each image that rather shows the concept (y > 0.5), one entry an image; those without one are left out.
        NoJudgments where no image is flagged."""
        prompts = self.judgments.prompts
        flagged = self.flagged_images(method)
        if not flagged:
            raise NoJudgments(f"no image is judged to show {self.concept.slug!r}: judge more with 'hfi ui'")
        return [prompt for sha in sorted(flagged) if (prompt := prompts[sha])]

    def clean_prompts(self, method: Method) -> list[str]:
        """Prompts of judged images none of which was flagged."""
        prompts, labels = self.judgments.prompts, self.labels(method)
        bad = {prompts[sha] for sha, (y, _) in labels.items() if y >= 0.5}
        return sorted({prompt for sha in labels if (prompt := prompts[sha]) and prompt not in bad})

    def clean_images(self, method: Method) -> list[str]:
        """sha256 of the images that rather do not show the concept, of the prompts that also gave flagged ones. A ranking says of
        no image that it is clean."""
        if not self.binary:
            return []
        prompts, labels = self.judgments.prompts, self.labels(method)
        bad = {prompts[sha] for sha, (y, _) in labels.items() if y > 0.5} - {None}
        return sorted(sha for sha, (y, _) in labels.items() if y < 0.5 and prompts[sha] in bad)

    def flagged_images(self, method: Method) -> set[str]:
        """sha256 of the images that rather show the concept."""
        return {sha for sha, (y, _) in self.labels(method).items() if y > 0.5}


def the_concept(session: Session, slug: str | None) -> Concept:
    """The concept of this name; without one, the workspace's only concept."""
    if slug is not None:
        return queries.concept(session, slug)
    known = queries.concepts_list(session)
    if not known:
        raise HfiError("there is no concept to judge by: add one with 'hfi concept add NAME --guideline ...'")
    if len(known) > 1:
        raise UsageError(f"several concepts, {', '.join(c.slug for c in known)}: choose one with --concept")
    return known[0]


def concept_names(given: str) -> list[str]:
    """Those of --concept a,b. UsageError where there is none, or one twice."""
    slugs = [slug.strip() for slug in given.split(",") if slug.strip()]
    if not slugs or len(set(slugs)) < len(slugs):
        raise UsageError(f"--concept {given!r}: give one concept, or several different ones with commas between them")
    return slugs


def judged(space: Workspace, slug: str, simulated: Include) -> Judged:
    """NotFound for an unknown concept, NoJudgments where there is none."""
    engine = space.engine()
    with reading(engine) as session:
        concept = queries.concept(session, slug)
    judgments = freeze(engine, slug, simulated)
    save(judgments, space.judgments / f"{slug}-{judgments.sha256[:12]}.jsonl")
    return Judged(concept, judgments)


def start_run(space: Workspace, command: str, name: str | None, default: str, settings: dict[str, Any]) -> Run:
    """The run of this name; without a name, the first of `default`, `default-2`, ... that is free or has these settings."""
    if name:
        return Run.start(space.runs, command, name, settings)
    wanted = json.loads(json.dumps(settings, default=str))
    for i in range(1, 10_000):
        run = Run(space.runs / command / (default if i == 1 else f"{default}-{i}"))
        if not (run.path / "config.json").exists() or run.config() == wanted:
            return Run.start(space.runs, command, run.path.name, settings)
        if not run.finished and (model := moved_on(run.config(), wanted)):
            typer.echo(
                f"the hub has another version of the model now: --model {model} goes on with the run {run.path.name}", err=True
            )
    raise HfiError(f"there are ten thousand runs named {default}: give a --name")


def say_finished(run: Run) -> None:
    typer.echo(f"the run {run.path.name} was finished before: nothing was trained", err=True)


def say_next(space: Workspace, *words: str) -> None:
    """The command that comes next in the loop, ready to be typed."""
    there = [] if space.path.resolve() == Path.cwd() else ["--workspace", str(space.path)]
    typer.echo(f"next: {shlex.join(['hfi', *words, *there])}", err=True)


def find_file(folder: Path, name: str, kind: str, make: str) -> Path:
    """A file given by its path, or by its name in a folder of the workspace."""
    for path in (Path(name), folder / f"{name.strip('<>')}.safetensors"):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none yet"
    raise NotFound(f"no {kind} {name!r} in {folder} (known: {known}): give its name or path, or make it with '{make}'")


def load_tokens(space: Workspace, names: Sequence[str]) -> "list[LearnedToken]":
    from hfi.diffusion.tokens import LearnedToken

    tokens = [LearnedToken.load(find_file(space.tokens, name, "token", "hfi invert")) for name in names]
    if len({token.placeholder for token in tokens}) < len(tokens):
        raise UsageError(f"two tokens share a placeholder: {', '.join(token.placeholder for token in tokens)}")
    return tokens


def copy_file(source: Path, target: Path) -> None:
    """Copies a result of a run to where the next command looks for it, whole or not at all. Another one that was there is kept,
    in its own run or beside, and said to be."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not cmp(source, target, shallow=False):
            runs = sorted(source.parents[1].glob(f"*/*{source.suffix}"))
            kept = next((path for path in runs if cmp(path, target, shallow=False)), None)
            if kept is None:
                old = target.read_bytes()
                kept = target.with_name(f"{target.name}.{hashlib.sha256(old).hexdigest()[:8]}")
                with whole(kept) as scratch:
                    scratch.write_bytes(old)
            typer.echo(f"{target} was replaced; the earlier one is {kept}", err=True)
        with whole(target) as scratch:
            scratch.write_bytes(source.read_bytes())
    except OSError as e:
        raise HfiError(f"cannot write {target}: {e.strerror or e}") from e
