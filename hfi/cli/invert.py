"""`hfi invert`: the judgments of a concept, condensed into a token."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hfi import __version__
from hfi.cli.common import (
    CheckpointingOption,
    DeviceOption,
    LabelOption,
    ModelOption,
    PrecisionOption,
    SimulatedOption,
    SlicingOption,
    check_writable,
    copy_file,
    find_file,
    judged,
    say_finished,
    say_next,
    start_run,
)
from hfi.cli.options import JsonOption, NameOption, WorkspaceOption, with_config
from hfi.errors import HfiError, UsageError
from hfi.invert.train import Examples, InvertConfig
from hfi.judgments import each_once, judged_by
from hfi.workspace import Workspace


@with_config(InvertConfig)
def invert(
    workspace: WorkspaceOption = Path("."),
    *,
    model: ModelOption,
    concept: Annotated[str, typer.Option("--concept", "-c", help="The concept that was judged.")],
    initial_word: Annotated[
        str | None, typer.Option(help="Word or phrase that the token starts from (default: the concept's).", show_default=False)
    ] = None,
    reward: Annotated[
        str | None, typer.Option(help="The reward model, by name or file (default: the concept's).", show_default=False)
    ] = None,
    token: Annotated[
        str | None, typer.Option(help="Placeholder of the token (default: <name>, or else <concept>).", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Go on with a reward that is no better than chance.")] = False,
    labels: LabelOption = "majority",
    simulated: SimulatedOption = "exclude",
    name: NameOption = None,
    device: DeviceOption = "auto",
    precision: PrecisionOption = "float32",
    gradient_checkpointing: CheckpointingOption = False,
    attention_slicing: SlicingOption = False,
    as_json: JsonOption = False,
    config: InvertConfig,
) -> None:
    """Condense the judgments into a learned token: reward-weighted textual inversion on the images that people flagged.

    The concept's own token is that of the last run without a --name; 'hfi erase --token NAME' takes another.
    """
    import torch

    from hfi.diffusion.memory import PRECISIONS, lighten
    from hfi.diffusion.sd import content_id, encode_images, find_model, load_sd, pick_device
    from hfi.diffusion.tokens import LearnedToken, check_placeholder, read_safetensors
    from hfi.diffusion.training import clear_state, drive
    from hfi.embed import embed_stored
    from hfi.invert.train import invert as train
    from hfi.invert.weights import choose
    from hfi.reward.model import RewardModel

    space = Workspace.open(workspace)
    placeholder = token or f"<{name or concept}>"
    check_placeholder(placeholder)
    found = judged(space, concept, simulated)
    phrase = initial_word or found.concept.initial_word
    if not phrase.strip():
        raise UsageError(f"concept {concept!r} has no initial word: give a word that comes near it with --initial-word")
    reward_file = find_file(space.rewards, reward or concept, "reward model", f"hfi reward --concept {concept}")
    about = read_safetensors(reward_file, "reward model")[1]
    if about.get("better_than_chance") != "true" and not force:
        raise HfiError(
            f"the reward model {reward_file} is no better than chance on images that it never saw, so a token learned with it "
            "would mean nothing: judge more images and run 'hfi reward' again, or give --force"
        )
    content = content_id(find_model(model))
    check_writable(space.tokens, space.runs)
    settings = {
        "model": model,
        "model_content": content,
        "concept": concept,
        "placeholder": placeholder,
        "initial_word": phrase,
        "judgments": found.judgments.sha256,
        "labels": labels,
        "reward": about.get("judgments", ""),
        "reward_content": hashlib.sha256(reward_file.read_bytes()).hexdigest(),
        "reward_backbone": about.get("backbone_content", ""),
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing,
        "attention_slicing": attention_slicing,
        **asdict(config),
    }
    run = start_run(space, "invert", name, concept, settings)
    file = run.path / "token.safetensors"
    if run.finished:
        say_finished(run)
    else:
        reward_model = RewardModel.load(reward_file, device=str(pick_device(device)))
        prompts = found.judgments.prompts
        shas = sorted(found.labels(labels))
        scores = reward_model.score_embeddings(embed_stored(reward_model.backbone, space.images, shas, space.path / "embeddings"))
        known = [prompts[sha] for sha in shas]
        best, weights = choose(scores, known, config.top_k, config.weighting, binary=reward_model.question == "binary")
        sd = load_sd(model, pick_device(device), PRECISIONS[precision])
        lighten(sd.unet, gradient_checkpointing=gradient_checkpointing, attention_slicing=attention_slicing)
        mean, std = encode_images(sd, [space.images.load(shas[i]) for i in best])
        examples = Examples(mean, std, torch.from_numpy(weights).to(mean), [known[i] for i in best])
        learned = drive(
            lambda state: train(sd, examples, placeholder, phrase, config, state),
            run,
            steps=config.steps,
            save_every=config.save_every,
            title="inverting",
        )
        metadata = {
            "placeholder": placeholder,
            "concept": concept,
            "base": content,
            "base_name": model,
            "initial_word": phrase,
            "judgments": found.judgments.sha256,
            "simulated": str(found.judgments.simulated).lower(),
            "judged_by": json.dumps(each_once(judged_by(about), [found.judgments.judged_by])),
            "reward_judgments": about.get("judgments", ""),
            "images": str(len(best)),
            "precision": precision,
            "config": json.dumps(asdict(config)),
            "hfi": __version__,
        }
        LearnedToken(placeholder, learned.embeddings, metadata).save(file)
        run.finish({"images": len(best), "vectors": config.vectors, "lowest_reward": float(scores[best].min())})
        clear_state(run)
    saved = space.tokens / f"{placeholder.strip('<>')}.safetensors"
    copy_file(file, saved)
    result = {"token": placeholder, "file": str(saved), "run": run.path.name, **run.result()}
    if as_json:
        typer.echo(json.dumps(result))
    else:
        typer.echo(f"{placeholder} learned from {result['images']} images\n{saved}")
        own = [] if saved.stem == concept else ["--token", saved.stem]
        say_next(space, "erase", "--model", model, "--concept", concept, *own)
