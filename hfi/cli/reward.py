"""`hfi reward`: what people said about images, as a function of an image."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from hfi.aggregate import rankings
from hfi.cli.common import (
    DeviceOption,
    Judged,
    LabelOption,
    SimulatedOption,
    check_writable,
    copy_file,
    judged,
    start_run,
)
from hfi.cli.options import JsonOption, NameOption, WorkspaceOption, with_config
from hfi.errors import NoJudgments
from hfi.progress import progress
from hfi.reward.train import Labels, RewardConfig, check_labels, train_reward
from hfi.store import queries
from hfi.store.session import reading
from hfi.workspace import Workspace

DEFAULT_BACKBONE = "openai/clip-vit-large-patch14"


@with_config(RewardConfig)
def reward(
    workspace: WorkspaceOption = Path("."),
    *,
    concept: Annotated[str, typer.Option("--concept", "-c", help="The concept that was judged.")],
    backbone: Annotated[
        str,
        typer.Option(
            help=f"CLIP folder or hub id; auto is the clip folder of the model that made the images, else {DEFAULT_BACKBONE}."
        ),
    ] = "auto",
    labels: LabelOption = "majority",
    simulated: SimulatedOption = "exclude",
    name: NameOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    config: RewardConfig,
) -> None:
    """Train the reward model of a concept on its judgments, and say how well it does on images that it never saw.

    The concept's own reward model is that of the last run without a --name; 'hfi invert --reward NAME' takes another.
    """
    from hfi.diffusion.sd import pick_device
    from hfi.embed import ClipBackbone, embed_stored, find_clip
    from hfi.reward.model import RewardModel

    space = Workspace.open(workspace)
    found = judged(space, concept, simulated)
    shas, targets = training_labels(found, labels)
    check_labels(targets)
    reference = _backbone(space, shas) if backbone == "auto" else backbone
    find_clip(reference)
    check_writable(space.rewards, space.runs)
    settings = {
        "concept": concept,
        "judgments": found.judgments.sha256,
        "backbone": reference,
        "labels": labels,
        **asdict(config),
    }
    run = start_run(space, "reward", name, concept, settings)
    file = run.path / "reward.safetensors"
    if not run.finished:
        clip = ClipBackbone.load(reference, pick_device(device))
        with progress("embedding images", len(shas), "images") as advance:
            embeddings = embed_stored(clip, space.images, shas, space.path / "embeddings", advance)
        run.truncate_metrics(0)

        def report(epoch: int, loss: float, validation: float) -> None:
            run.log(step=epoch, loss=loss, validation_loss=validation)

        head, figures = train_reward(embeddings, targets, config, report)
        metadata = {
            "concept": concept,
            "judgments": found.judgments.sha256,
            "simulated": str(found.judgments.simulated).lower(),
            "judged_by": json.dumps([found.judgments.judged_by]),
            "labels": labels,
            "config": json.dumps(asdict(config)),
            **{key: json.dumps(value) for key, value in figures.items()},
        }
        RewardModel(head, clip, metadata).save(file)
        run.finish({**figures, "images": len(shas), "simulated": found.judgments.simulated})
    saved = space.rewards / f"{name or concept}.safetensors"
    copy_file(file, saved)
    result = run.result()
    if as_json:
        typer.echo(json.dumps({"file": str(saved), "run": run.path.name, **result}))
        return
    typer.echo(f"{describe(result)}\n{saved}")
    if not result["better_than_chance"]:
        typer.echo("no better than chance: judge more images before going on ('hfi invert' will refuse this reward)", err=True)


def describe(result: dict[str, Any]) -> str:
    """The figures on the held-out images in one line."""
    if "auc" in result:
        return (
            f"AUC {result['auc']:.3f}, accuracy {result['accuracy']:.1%} on {result['held_out_images']} held-out images of "
            f"{result['images']} (chance reaches {result['chance_limit']:.3f} in 5 % of cases)"
        )
    return (
        f"pair accuracy {result['pair_accuracy']:.1%} on {result['held_out_rankings']} held-out rankings, {result['images']} "
        f"images in all (chance reaches {result['chance_limit']:.1%} in 5 % of cases)"
    )


def training_labels(found: Judged, method: Any) -> tuple[list[str], Labels]:
    """The images that were answered for, and their labels by row."""
    answered = found.labels(method)
    if not answered:
        raise NoJudgments(
            f"no judgment of {found.concept.slug!r} says whether an image shows it (all are unsure, skipped or too disturbing): "
            "judge more with 'hfi ui'"
        )
    shas = sorted(answered)
    if found.binary:
        return shas, Labels(np.array([answered[sha][0] for sha in shas]), np.array([answered[sha][1] for sha in shas]))
    row = {sha: i for i, sha in enumerate(shas)}
    return shas, Labels(np.zeros(0), np.zeros(0), [[row[sha] for sha in order] for order in rankings(found.judgments)])


def _backbone(space: Workspace, shas: list[str]) -> str:
    wanted = set(shas)
    with reading(space.engine()) as session:
        models = {image.model for image in queries.images(session) if image.sha256 in wanted and image.model}
    own = [str(Path(model) / "clip") for model in sorted(models) if (Path(model) / "clip" / "config.json").exists()]
    return own[0] if own else DEFAULT_BACKBONE
