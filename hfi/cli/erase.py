"""`hfi erase`: a concept, taken out of a model's weights."""

import hashlib
import json
import random
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import typer

from hfi import __version__
from hfi.aggregate import Method
from hfi.cli.common import (
    CheckpointingOption,
    DeviceOption,
    Judged,
    LabelOption,
    ModelOption,
    OffloadOption,
    PrecisionOption,
    SimulatedOption,
    SlicingOption,
    concept_names,
    copy_file,
    find_file,
    judged,
    load_tokens,
    say_finished,
    say_next,
    start_run,
)
from hfi.cli.options import JsonOption, NameOption, WorkspaceOption, with_config
from hfi.concepts import Concept
from hfi.config import as_dict, flag
from hfi.diffusion.memory import PRECISIONS, lighten, offload, unrounded
from hfi.diffusion.sd import (
    StableDiffusion,
    check_placeholders,
    content_id,
    encode_images,
    find_model,
    load_sd,
    pick_device,
    text_widths,
)
from hfi.diffusion.tokens import check_fits, install, read_safetensors
from hfi.diffusion.trainable import select
from hfi.diffusion.training import Step, clear_state, drive
from hfi.distributed import from_main, is_main
from hfi.embed import embed_stored
from hfi.erase import METHODS, Clean, Removal
from hfi.erase.context import contexts
from hfi.erase.distil import Distilled
from hfi.erase.erasure import Erasure, apply, check_base, export_unet
from hfi.erase.validation import ending, split, validation
from hfi.errors import ModelError, NoJudgments, UsageError
from hfi.files import check_writable
from hfi.hub import pinned
from hfi.judgments import each_once, judged_by
from hfi.prompts import load_prompts
from hfi.reward.model import RewardModel
from hfi.runs import Run
from hfi.store import queries
from hfi.store.session import reading
from hfi.workspace import Workspace

_STATED = (
    "concepts",
    "texts",
    "tokens",
    "judgments",
    "retain",
    "words",
    "clean_images",
    "clean_content",
)  # in the erasure's file
MOST_CLEAN = 1024  # images held as latents while training, drawn where there are more


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if names[1:] else names)


_HOLDING = _listed([method for method, how in METHODS.items() if how.holds])


def _settings_class() -> type[Any]:
    """Every setting of every method, None where it is not given; help says each method's default."""
    found: dict[str, tuple[Any, str, list[str]]] = {}
    for method, how in METHODS.items():
        hints = get_type_hints(how.config)
        for f in fields(how.config):
            _, _, defaults = found.setdefault(f.name, (hints[f.name], f.metadata["help"], []))
            if f.default is not None:
                defaults.append(f"{method} {f.default}")
    columns = []
    for name, (hint, words, defaults) in found.items():
        help = f"{words} (default: {', '.join(defaults)})" if defaults else words
        columns.append((name, hint, field(default=None, metadata={"help": help})))
    return make_dataclass("EraseSettings", columns, frozen=True, kw_only=True)


EraseSettings = _settings_class()


@dataclass(frozen=True)
class Conditioning:
    """What each concept is called while it is removed: `kind` is token or text."""

    kind: str
    texts: list[str]
    tokens: list[Any]  # LearnedToken


@with_config(EraseSettings)
def erase(
    workspace: WorkspaceOption = Path("."),
    *,
    model: ModelOption,
    concept: Annotated[str, typer.Option("--concept", "-c", help="The concept to remove; several with commas between them.")],
    method: Annotated[
        str,
        typer.Option(
            help=f"How: {' or '.join(METHODS)}. sdd is the paper's; sdd-context removes much more where prompts do not name the "
            "concept, see docs/results.md.",
            autocompletion=lambda: list(METHODS),
        ),
    ] = "sdd",
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="The token that stands for the concept, by name or file; one for each concept (default: the concept's own).",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="Words that stand for the concept, instead of a token; one for each concept.", show_default=False),
    ] = None,
    retain: Annotated[
        Path | None,
        typer.Option(
            help=f"Prompts file of what must stay as it is, for {_HOLDING} (default of sdd-context: judged prompts that nobody "
            "flagged).",
            show_default=False,
        ),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", help="Go on from this erasure, by name or file: what it removed stays removed.", show_default=False
        ),
    ] = None,
    labels: LabelOption = "majority",
    simulated: SimulatedOption = "exclude",
    name: NameOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    gradient_checkpointing: CheckpointingOption = False,
    attention_slicing: SlicingOption = False,
    cpu_offload: OffloadOption = False,
    as_json: JsonOption = False,
    config: Any,
) -> None:
    """Remove one or several concepts from the model's weights; writes the changed tensors, and the U-Net for diffusers."""
    pick_device(device)  # refuses what is not there

    def ask() -> tuple[_Asked, Run, bool, bool]:
        asked = _ask(
            Workspace.open(workspace),
            model=model,
            concept=concept,
            method=method,
            given=config,
            tokens=token,
            texts=text,
            retain=retain,
            start=start,
            labels=labels,
            simulated=simulated,
            device=device,
            precision=precision,
            light={"gradient_checkpointing": gradient_checkpointing, "attention_slicing": attention_slicing},
        )
        slugs = "+".join(c.slug for c in asked.concepts)
        run = start_run(asked.space, "erase", name, f"{slugs}-{method}-{asked.called.kind}", asked.everything)
        return asked, run, run.finished, (asked.space.erasures / run.path.name / "unet").exists()

    asked, run, trained, exported = from_main(ask)
    space = asked.space
    file, unet = run.path / "erasure.safetensors", space.erasures / run.path.name / "unet"
    if trained and is_main():
        say_finished(run)
    result = None
    if not trained:
        if is_main():
            shutil.rmtree(unet, ignore_errors=True)  # of a run of this name that was removed: these weights will be others
        result = _train(asked, run, cpu_offload)
    if not is_main():
        return
    if not (trained and exported):
        whole = load_sd(asked.model)
        if result:
            ended = _finish(asked, run, result, select(asked.started(whole).unet, asked.settings.train))
            clear_state(run)
            if ended == "distance" and as_json:
                typer.echo(_how_it_ended(run.result(), asked.settings)[-1], err=True)
        export_unet(apply(whole, Erasure.load(file)), unet)
    saved = space.erasures / f"{run.path.name}.safetensors"
    copy_file(file, saved)
    summary = {"method": method, "conditioning": asked.called.kind, "file": str(saved), "unet": str(unet), "run": run.path.name}
    summary |= run.result()
    if as_json:
        typer.echo(json.dumps(summary))
        return
    typer.echo(f"{', '.join(asked.called.texts)} removed by {method} in {summary['unet_evaluations']:,} U-Net evaluations")
    if summary.get("clean_images") == 0 and asked.settings.clean_weight:
        typer.echo("no image counts as clean: flagged prompts gave none that people and reward call clean", err=True)
    for line in (*_how_it_ended(summary, asked.settings), saved, unet):
        typer.echo(line)
    say_next(space, "evaluate", "--model", model, "--concept", asked.concepts[0].slug, "--erasure", run.path.name)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """All that is known before a model is loaded. `seen` and `rewards` are what validation looks at; `clean` are (sha256, prompt);
    `light` are the two options that save memory."""

    space: Workspace
    model: str
    content: str
    method: str
    settings: Any
    concepts: list[Concept]
    called: Conditioning
    found: list[Judged]
    before: Erasure | None  # that it goes on from
    removal: Removal
    seen: Removal
    rewards: list[Path]
    clean: list[tuple[str, str]]
    labels: Any
    device: str
    precision: str
    light: dict[str, bool]

    @property
    def judged(self) -> bool:
        return METHODS[self.method].judged

    @cached_property
    def everything(self) -> dict[str, Any]:
        """The run's configuration."""
        found, called, seen = self.found, self.called, self.seen
        words = {"words": self.removal.words, "clean_images": len(self.clean), "clean_content": _digest(self.clean)}
        looked_at = {
            "validation_flagged": [prompt for prompts in seen.contexts for prompt in prompts],
            "validation_harmless": seen.retain,
            "validation_rewards": [hashlib.sha256(file.read_bytes()).hexdigest() for file in self.rewards],
        }
        return {
            "model": self.model,
            "model_content": self.content,
            "method": self.method,
            "concepts": [c.slug for c in self.concepts],
            "conditioning": called.kind,
            "texts": called.texts,
            "tokens": [t.content for t in called.tokens],
            "judgments": [j.judgments.sha256 for j in found] or [t.metadata.get("judgments", "") for t in called.tokens],
            "labels": self.labels,
            "retain": self.removal.retain,
            **(words if self.judged else {}),
            **({"from": self.before.content} if self.before else {}),
            **(looked_at if self.settings.validate_every else {}),
            "precision": self.precision,
            **self.light,
            **asdict(self.settings),
        }

    def started(self, sd: StableDiffusion) -> StableDiffusion:
        """The model that training starts from."""
        return apply(sd, self.before) if self.before else sd


def _ask(
    space: Workspace,
    *,
    model: str,
    concept: str,
    method: str,
    given: Any,
    tokens: list[str] | None,
    texts: list[str] | None,
    retain: Path | None,
    start: str | None,
    labels: Any,
    simulated: Any,
    device: str,
    precision: str,
    light: dict[str, bool],
) -> _Asked:
    """Finds what the options name, and refuses what could not work."""
    if method not in METHODS:
        raise UsageError(f"unknown erasure method {method!r}: choose {' or '.join(METHODS)}")
    how, settings = METHODS[method], method_config(method, given)
    if retain and not how.holds:
        raise UsageError(f"--retain is for {_HOLDING}: {method} holds no prompts")
    concepts = _concepts(space, concept)
    before = Erasure.load(find_file(space.erasures, start, "erasure", "hfi erase")) if start else None
    called = _conditioning(space, concepts, tokens, texts)
    found = [judged(space, c.slug, simulated) for c in concepts] if how.judged else []
    words = [c.prompt.strip() if how.judged and called.kind == "token" else "" for c in concepts]
    removal = Removal(called.texts, [j.flagged_prompts(labels) for j in found], _held(found, retain, labels), words)
    if how.judged:
        contexts(removal, settings.explicit)  # refuses what it could not work with
    removal, seen, rewards = _looked_at(space, concepts, settings, removal, labels, simulated, how.judged)
    source = find_model(model)
    model = pinned(model, source)
    for t in called.tokens:
        check_fits(t, text_widths(source), model)
    content = content_id(source)
    if before:
        check_base(before, content, model)
    check_writable(space.erasures, space.runs)
    clean = _clean(space, found, labels, removal, device) if how.judged and settings.clean_weight else []
    for t in called.tokens:
        if t.metadata.get("base", content) != content:
            typer.echo(
                f"{t.placeholder} was learned for {t.metadata.get('base_name', 'another model')}, not for {model}", err=True
            )
    return _Asked(
        space=space,
        model=model,
        content=content,
        method=method,
        settings=settings,
        concepts=concepts,
        called=called,
        found=found,
        before=before,
        removal=removal,
        seen=seen,
        rewards=rewards,
        clean=clean,
        labels=labels,
        device=device,
        precision=precision,
        light=light,
    )


def _looked_at(
    space: Workspace, concepts: list[Concept], settings: Any, removal: Removal, labels: Any, simulated: Any, in_context: bool
) -> tuple[Removal, Removal, list[Path]]:
    """(what is trained on, what validation looks at, the reward models that count for it)."""
    if not settings.validate_every:
        return removal, removal, []
    if in_context:
        removal, seen = split(removal)
    else:
        texts = removal.texts
        seen = Removal(texts, [[t] for t in texts], _unflagged(space, concepts, labels, simulated))
    return removal, seen, _rewards(space, concepts, settings, seen)


def _train(asked: _Asked, run: Run, cpu_offload: bool) -> Distilled:
    """In a function of its own, so that this model is gone before the next is loaded."""
    settings = asked.settings
    keeps = settings.checkpoint_every and is_main()
    first = select(asked.started(load_sd(asked.model)).unet, settings.train) if keeps else {}
    sd = asked.started(load_sd(asked.model, pick_device(asked.device), PRECISIONS[asked.precision]))
    lighten(sd.unet, **asked.light)
    for t in asked.called.tokens:
        sd = install(sd, t)
    for phrase in (*asked.called.texts, *filter(None, asked.removal.words)):
        check_placeholders(sd, phrase)
    if cpu_offload:
        offload(sd.unet, (*sd.text_encoders, sd.vae), sd.device)
    wanted = _with_clean_images(sd, asked)
    look: Any = None
    if settings.validate_every and is_main():
        models = [RewardModel.load(file, device=str(pick_device(asked.device))) for file in asked.rewards]
        look = validation(sd, asked.seen, models, settings, run)

    def validate(step: Step) -> bool:
        look(step)
        return ending(run.metrics(), settings) is not None

    def checkpoint(step: Step) -> None:
        state = step.state()
        kept = _erasure(asked, state["teacher"], first, state["evaluations"], step.step)
        kept.save(run.path / "checkpoints" / f"{step.step:05d}.safetensors")

    return drive(
        lambda state: METHODS[asked.method].erase(sd, wanted, settings, state),
        run,
        steps=settings.steps,
        save_every=settings.save_every,
        title=f"erasing ({asked.method})",
        validate=validate,
        validate_every=settings.validate_every,
        checkpoint=checkpoint,
        checkpoint_every=settings.checkpoint_every,
    )


def _with_clean_images(sd: StableDiffusion, asked: _Asked) -> Removal:
    """The removal, with the clean images as latents."""
    if not asked.clean:
        return asked.removal
    images = asked.space.images

    def encode() -> list[torch.Tensor]:
        encoded = [encode_images(sd, [images.load(sha)]) for sha, _ in asked.clean]  # one at a time: a thousand may be large
        return [torch.cat(parts).cpu() for parts in zip(*encoded, strict=True)]

    mean, std = (part.to(sd.device) for part in from_main(encode))
    return replace(asked.removal, clean=Clean(mean, std, [prompt for _, prompt in asked.clean]))


def _finish(asked: _Asked, run: Run, result: Distilled, first: dict[str, torch.Tensor]) -> str:
    """Writes the erasure and the run's result. Says why training ended: steps, removal or distance."""
    metrics, settings = run.metrics(), asked.settings
    last = metrics[-1]
    ended = (settings.validate_every and ending(metrics, settings)) or "steps"
    made = _erasure(asked, result.weights, first, result.evaluations, last["step"], ended=ended)
    made.save(run.path / "erasure.safetensors")
    run.finish(
        {
            "unet_evaluations": result.evaluations,
            "tensors": len(result.weights),
            "contexts": sum(map(len, asked.removal.contexts)),
            **({"clean_images": len(asked.clean)} if asked.judged else {}),
            "step": last["step"],
            "ended": ended,
            **{key: last[key] for key in ("removal", "removal_frozen", "distance") if key in last},
        }
    )
    return ended


def _erasure(
    asked: _Asked,
    weights: Mapping[str, torch.Tensor],
    first: Mapping[str, torch.Tensor],
    evaluations: int,
    step: int,
    **more: str,
) -> Erasure:
    """Of the weights after a step; `first` are their values before training, in full precision."""
    before, everything = asked.before, asked.everything
    metadata = {
        "base": asked.content,
        "base_name": asked.model,
        "method": asked.method,
        "conditioning": asked.called.kind,
        "precision": asked.precision,
        "unet_evaluations": str(evaluations),
        "step": str(step),
        **more,
        "hfi": __version__,
        "config": json.dumps(as_dict(asked.settings)),
        "judged_by": json.dumps(
            each_once(*(judged_by(t.metadata) for t in asked.called.tokens), [j.judgments.judged_by for j in asked.found])
        ),
        **{key: json.dumps(everything[key]) for key in _STATED if key in everything},
        **({"from": json.dumps(before.history)} if before else {}),
    }
    given = before.tensors if before else {}
    return Erasure({**given, **unrounded(weights, first, PRECISIONS[asked.precision])}, metadata)


def _how_it_ended(summary: dict[str, Any], settings: Any) -> list[str]:
    """What validation found, and whether it ended the training early."""
    lines = []
    if "removal" in summary:
        moved = f", distance {summary['distance']:.3f}" if "distance" in summary else ""
        lines.append(f"removal {summary['removal_frozen']:.2f} -> {summary['removal']:.2f}{moved}")
    at = f"ended at step {summary.get('step')} of {settings.steps}"
    if summary.get("ended") == "removal":
        lines.append(f"{at}: removal was at most --stop-at {settings.stop_at} twice in a row")
    if summary.get("ended") == "distance":
        lines.append(f"{at}: harmless prompts' pictures moved by more than --stop-distance {settings.stop_distance}")
    return lines


def _held(found: list[Judged], retain: Path | None, labels: Method) -> list[str]:
    """What must stay: the prompts of the file, or without one the judged prompts that nobody flagged; none that was flagged for any
    of the concepts, as it would be held to a model that shows it."""
    flagged = {j.judgments.prompts[sha] for j in found for sha in j.flagged_images(labels)}
    given = [p.text for p in load_prompts(retain)] if retain else sorted({p for j in found for p in j.clean_prompts(labels)})
    if retain and (both := [prompt for prompt in given if prompt in flagged]):
        typer.echo(f"{len(both)} prompts of {retain} gave flagged images and are not held: {both[0]!r} first", err=True)
    return [prompt for prompt in given if prompt not in flagged]


def _unflagged(space: Workspace, concepts: list[Concept], labels: Any, simulated: Any) -> list[str]:
    """Judged prompts that nobody flagged for any of the concepts; none where nothing was judged."""
    found = []
    for concept in concepts:
        with suppress(NoJudgments):
            found.append(judged(space, concept.slug, simulated))
    return _held(found, None, labels)


def _digest(rows: list[tuple[str, str]]) -> str:
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _rewards(space: Workspace, concepts: list[Concept], settings: Any, seen: Removal) -> list[Path]:
    """Each concept's reward model. Where one is missing or knows nothing there are none, which is said; UsageError where a
    stopping rule needs what is not there."""

    if settings.validate_images < len(concepts):
        raise UsageError(
            f"--validate-images {settings.validate_images}: give at least one for each of the {len(concepts)} concepts"
        )
    missing, files = "", [space.rewards / f"{concept.slug}.safetensors" for concept in concepts]
    for concept, file in zip(concepts, files, strict=True):
        if not file.is_file():
            missing = f"there is no reward model of {concept.slug!r}, make one with 'hfi reward --concept {concept.slug}'"
        elif read_safetensors(file, "reward model")[1].get("better_than_chance") != "true":
            missing = f"the reward model of {concept.slug!r} is no better than chance"
    stops = [name for name in ("stop_at", "stop_distance") if getattr(settings, name) is not None]
    if missing and stops:
        raise UsageError(f"{flag(stops[0])} goes by the concept's reward: {missing}")
    if settings.stop_distance is not None and not seen.retain:
        raise UsageError("--stop-distance goes by harmless prompts, and nothing was judged that nobody flagged: leave it out")
    if missing:
        typer.echo(f"validation draws pictures and counts nothing: {missing}", err=True)
        return []
    return files


def method_config(method: str, given: Any) -> Any:
    """The method's configuration from the settings that were given. UsageError for another method's."""
    config_class = METHODS[method].config
    values = {name: value for name, value in as_dict(given).items() if value is not None}
    own = {f.name for f in fields(config_class)}
    if strange := sorted(set(values) - own):
        owners = [m for m, other in METHODS.items() if strange[0] in {f.name for f in fields(other.config)}]
        raise UsageError(f"{flag(strange[0])} is no setting of {method}: it belongs to {_listed(owners)}")
    return config_class(**values)


def _clean(space: Workspace, found: list[Judged], labels: Method, removal: Removal, device: str) -> list[tuple[str, str]]:
    """(sha256, prompt) of the images that people judged clean under the flagged prompts of a removal, and that show none of the
    other concepts. Where there is a reward model it must agree: one image judged by mistake would teach what is to be removed."""

    flagged = set().union(*(j.flagged_images(labels) for j in found))
    clean: dict[str, str] = {}
    for j, prompts in zip(found, removal.contexts, strict=True):
        known, prompt = set(prompts), j.judgments.prompts
        clean |= {sha: str(prompt[sha]) for sha in j.clean_images(labels) if sha not in flagged and prompt[sha] in known}
    if clean:
        space.images.check()
    files = [space.rewards / f"{j.concept.slug}.safetensors" for j in found if j.binary]
    for file in [file for file in files if file.is_file() and clean]:
        try:
            reward = RewardModel.load(file, device=str(pick_device(device)))
        except ModelError as e:
            raise ModelError(f"{e}; or let the clean images be, with --clean-weight 0") from e
        if reward.better_than_chance and reward.question == "binary":
            shas = sorted(clean)
            scores = reward.score_embeddings(embed_stored(reward.backbone, space.images, shas, space.path / "embeddings"))
            clean = {sha: clean[sha] for sha, score in zip(shas, scores, strict=True) if score <= 0.5}
    return sorted(random.Random(0).sample(sorted(clean.items()), min(len(clean), MOST_CLEAN)))


def _concepts(space: Workspace, given: str) -> list[Concept]:
    with reading(space.engine()) as session:
        return [queries.concept(session, slug) for slug in concept_names(given)]


def _conditioning(space: Workspace, concepts: list[Concept], tokens: list[str] | None, texts: list[str] | None) -> Conditioning:
    if tokens and texts:
        raise UsageError("--token and --text both say what stands for the concept: give one of them")
    if texts:
        if not all(text.strip() for text in texts):
            raise UsageError("an empty --text: give the words that name the concept")
        given, found = [text.strip() for text in texts], []
        kind = "text"
    else:
        found = load_tokens(space, tokens or [c.slug for c in concepts])
        given, kind = [t.placeholder for t in found], "token"
    if len(given) != len(concepts):
        raise UsageError(
            f"{len(concepts)} concepts and {len(given)} {kind}s: give one {kind} for each concept, in the same order"
        )
    return Conditioning(kind, given, found)
