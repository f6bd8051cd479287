"""`hfi invert`: the judgments of a concept, or of several, condensed into tokens."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from hfi import __version__
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
    say_finished,
    say_next,
    start_run,
)
from hfi.cli.options import JsonOption, NameOption, WorkspaceOption, with_config
from hfi.diffusion.tokens import LearnedToken, check_placeholder, read_safetensors
from hfi.distributed import from_main, is_main
from hfi.errors import HfiError, UsageError
from hfi.files import check_writable
from hfi.hub import pinned
from hfi.invert.train import Examples, InvertConfig
from hfi.judgments import Include, each_once, judged_by
from hfi.runs import Run
from hfi.workspace import Workspace


@dataclass(frozen=True)
class Asked:
    """One concept of a run: its judgments, the token's placeholder and first word, and the reward's file and metadata."""

    found: Judged
    placeholder: str
    phrase: str
    reward: Path
    about: dict[str, str]

    @property
    def slug(self) -> str:
        return self.found.concept.slug

    @property
    def file(self) -> str:
        """Name of the token's file in the workspace."""
        return f"{self.placeholder.strip('<>')}.safetensors"


@with_config(InvertConfig)
def invert(
    workspace: WorkspaceOption = Path("."),
    *,
    model: ModelOption,
    concept: Annotated[
        str,
        typer.Option("--concept", "-c", help="The concept that was judged; several with commas between them learn in one run."),
    ],
    initial_word: Annotated[
        list[str] | None,
        typer.Option(
            help="Word or phrase that the token starts from; one for each concept (default: the concept's).", show_default=False
        ),
    ] = None,
    reward: Annotated[
        list[str] | None,
        typer.Option(
            help="The reward model, by name or file; one for each concept (default: the concept's).", show_default=False
        ),
    ] = None,
    token: Annotated[
        list[str] | None,
        typer.Option(
            help="Placeholder of the token; one for each concept (default: <name>, of several <name-concept>, or else <concept>).",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on with a reward that is no better than chance.")] = False,
    labels: LabelOption = "majority",
    simulated: SimulatedOption = "exclude",
    name: NameOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    gradient_checkpointing: CheckpointingOption = False,
    attention_slicing: SlicingOption = False,
    cpu_offload: OffloadOption = False,
    as_json: JsonOption = False,
    config: InvertConfig,
) -> None:
    """Condense the judgments into a learned token: reward-weighted textual inversion on the images that people flagged.

    Several concepts share each update's batch, and each learns a token of its own from its own reward.

    The concept's own token is that of the last run without a --name; 'hfi erase --token NAME' takes another.
    """
    import torch

    from hfi.contact_sheet import write_sheet
    from hfi.diffusion.memory import PRECISIONS, lighten, offload
    from hfi.diffusion.sd import content_id, encode_images, find_model, load_sd, pick_device
    from hfi.diffusion.training import Step, clear_state, drive
    from hfi.embed import embed_stored
    from hfi.invert.preview import preview
    from hfi.invert.train import invert as train
    from hfi.invert.train import learned, split
    from hfi.invert.weights import choose
    from hfi.reward.model import RewardModel

    if config.keep == "best" and config.weighting == "contrast":
        raise UsageError("--keep best needs a loss that has a least value, and contrast has none: take --weighting reward")
    where = pick_device(device)

    def ask() -> tuple[Workspace, list[Asked], str, str, Run, bool]:
        space = Workspace.open(workspace)
        asked = _asked(space, concept, initial_word, reward, token, name, simulated, force)
        source = find_model(model)
        exact, content = pinned(model, source), content_id(source)
        check_writable(space.tokens, space.runs)
        settings = {
            "model": exact,
            "model_content": content,
            "concept": _one_or_all([a.slug for a in asked]),
            "placeholder": _one_or_all([a.placeholder for a in asked]),
            "initial_word": _one_or_all([a.phrase for a in asked]),
            "judgments": _one_or_all([a.found.judgments.sha256 for a in asked]),
            "labels": labels,
            "reward": _one_or_all([a.about.get("judgments", "") for a in asked]),
            "reward_content": _one_or_all([hashlib.sha256(a.reward.read_bytes()).hexdigest() for a in asked]),
            "reward_backbone": _one_or_all([a.about.get("backbone_content", "") for a in asked]),
            "precision": precision,
            "gradient_checkpointing": gradient_checkpointing,
            "attention_slicing": attention_slicing,
            **asdict(config),
        }
        run = start_run(space, "invert", name, "+".join(a.slug for a in asked), settings)
        return space, asked, exact, content, run, run.finished

    def choices() -> tuple[list[tuple[list[str], list[str | None], Any]], list[float]]:
        """Of each concept: images, their prompts, their weights. And the lowest reward among them."""
        space.images.check()
        chosen: list[tuple[list[str], list[str | None], Any]] = []
        lowest: list[float] = []
        for a in asked:
            reward_model = RewardModel.load(a.reward, device=str(where))
            prompts = a.found.judgments.prompts
            shas = sorted(a.found.labels(labels))
            embeddings = embed_stored(reward_model.backbone, space.images, shas, space.path / "embeddings")
            scores = reward_model.score_embeddings(embeddings)
            known = [prompts[sha] for sha in shas]
            best, weights = choose(scores, known, config.top_k, config.weighting, binary=reward_model.question == "binary")
            if config.keep == "best":
                split(len(best), config.seed)  # refuses what it could not work with, before a model is loaded
            words = a.found.concept.prompt
            naming = _naming([known[i] for i in best], words)
            if config.template == "prompt" and 2 * naming > len(best):
                typer.echo(
                    f"{naming} of {len(best)} images come from prompts that say {words!r} themselves, which leaves the token little to "
                    "explain: try --template plain",
                    err=True,
                )
            chosen.append(([shas[i] for i in best], [known[i] for i in best], weights))
            lowest.append(float(scores[best].min()))
        return chosen, lowest

    space, asked, exact, content, run, trained = from_main(ask)
    files = [run.path / ("token.safetensors" if len(asked) == 1 else a.file) for a in asked]
    if trained and is_main():
        say_finished(run)
    if not trained:
        chosen, lowest = from_main(choices)
        sd = load_sd(exact, where, PRECISIONS[precision])
        lighten(sd.unet, gradient_checkpointing=gradient_checkpointing, attention_slicing=attention_slicing)
        if cpu_offload:
            offload(sd.unet, [sd.vae], sd.device)  # gradients flow through the text encoders

        def encode() -> list[list[torch.Tensor]]:
            """Of each concept mean and standard deviation of its images' latents, one image at a time: a VAE takes more for one than
            many an update does."""
            if cpu_offload:
                sd.unet.to("cpu")
            each = [[encode_images(sd, [space.images.load(sha)]) for sha in images] for images, _, _ in chosen]
            sd.unet.to(sd.device)
            return [[torch.cat(parts).cpu() for parts in zip(*encoded, strict=True)] for encoded in each]

        examples = []
        for a, (_, texts, weights), parts in zip(asked, chosen, from_main(encode), strict=True):
            mean, std = (part.to(sd.device) for part in parts)
            examples.append(Examples(a.placeholder, a.phrase, mean, std, torch.from_numpy(weights).to(mean), texts))
        previews = run.path / "previews"

        def look(step: Step) -> bool:
            tokens = learned(examples, step.state()["average"])
            path = previews / f"{step.step:05}.png"
            write_sheet(path, preview(sd, examples, tokens))
            run.show(path)
            return False

        if config.preview_every and is_main() and not (previews / "00000.png").exists():
            write_sheet(previews / "00000.png", preview(sd, examples, []))
        result = drive(
            lambda state: train(sd, examples, config, state),
            run,
            steps=config.steps,
            save_every=config.save_every,
            title="inverting",
            validate=look,
            validate_every=config.preview_every,
        )
        if not is_main():
            return
        for a, file, made, (images, _, _) in zip(asked, files, result.tokens, chosen, strict=True):
            others = [other.placeholder for other in asked if other is not a]
            metadata = {
                "placeholder": a.placeholder,
                "concept": a.slug,
                "base": content,
                "base_name": exact,
                "initial_word": a.phrase,
                "judgments": a.found.judgments.sha256,
                "simulated": str(a.found.judgments.simulated).lower(),
                "judged_by": json.dumps(each_once(judged_by(a.about), [a.found.judgments.judged_by])),
                "reward_judgments": a.about.get("judgments", ""),
                "images": str(len(images)),
                "precision": precision,
                "config": json.dumps(asdict(config)),
                "hfi": __version__,
                **({"learned_with": json.dumps(others)} if others else {}),
            }
            LearnedToken(a.placeholder, made.embeddings, metadata).save(file)
        run.finish(
            {
                "images": _one_or_all([len(images) for images, _, _ in chosen]),
                "vectors": config.vectors,
                "lowest_reward": _one_or_all(lowest),
                "kept_step": result.step,
            }
        )
        clear_state(run)
    if not is_main():
        return
    saved = [space.tokens / a.file for a in asked]
    for file, target in zip(files, saved, strict=True):
        copy_file(file, target)
    about = run.result()
    if as_json:
        names, places = [a.placeholder for a in asked], [str(path) for path in saved]
        typer.echo(json.dumps({"token": _one_or_all(names), "file": _one_or_all(places), "run": run.path.name, **about}))
    else:
        counts = about["images"] if len(asked) > 1 else [about["images"]]
        for a, path, count in zip(asked, saved, counts, strict=True):
            typer.echo(f"{a.placeholder} learned from {count} images\n{path}")
        own = [a.slug for a in asked] == [path.stem for path in saved]
        tokens = [] if own else [word for path in saved for word in ("--token", path.stem)]
        say_next(space, "erase", "--model", model, "--concept", ",".join(a.slug for a in asked), *tokens)


def _asked(
    space: Workspace,
    concept: str,
    words: list[str] | None,
    rewards: list[str] | None,
    placeholders: list[str] | None,
    name: str | None,
    simulated: Include,
    force: bool,
) -> list[Asked]:
    """What is known of each concept before a model is loaded, and the errors in it."""
    slugs = concept_names(concept)
    for option, given in (("--initial-word", words), ("--reward", rewards), ("--token", placeholders)):
        if given and len(given) != len(slugs):
            raise UsageError(f"{len(slugs)} concepts and {len(given)} {option}: give one for each concept, in the same order")
    if not placeholders:
        placeholders = [f"<{name or slugs[0]}>"] if len(slugs) == 1 else [f"<{name}-{s}>" if name else f"<{s}>" for s in slugs]
    for placeholder in placeholders:
        check_placeholder(placeholder)
    if len(set(placeholders)) < len(placeholders):
        raise UsageError(f"--token {' '.join(placeholders)}: give each concept a token of its own")
    asked = []
    for i, slug in enumerate(slugs):
        found = judged(space, slug, simulated)
        phrase = words[i] if words else found.concept.initial_word
        if not phrase.strip():
            raise UsageError(f"concept {slug!r} has no initial word: give a word that comes near it with --initial-word")
        file = find_file(space.rewards, rewards[i] if rewards else slug, "reward model", f"hfi reward --concept {slug}")
        about = read_safetensors(file, "reward model")[1]
        if about.get("better_than_chance") != "true" and not force:
            raise HfiError(
                f"the reward model {file} is no better than chance on images that it never saw, so a token learned with it "
                "would mean nothing: judge more images and run 'hfi reward' again, or give --force"
            )
        asked.append(Asked(found, placeholders[i], phrase, file, about))
    return asked


def _naming(prompts: Sequence[str | None], words: str) -> int:
    """How many prompts say the words, as whole words."""
    said = words.strip().lower()
    return sum(f" {said} " in f" {prompt or ''} ".lower() for prompt in prompts) if said else 0


def _one_or_all(values: Sequence[Any]) -> Any:
    """Of one concept its value, of several the list."""
    return values[0] if len(values) == 1 else list(values)
