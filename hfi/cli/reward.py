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
    copy_file,
    judged,
    say_finished,
    say_next,
    start_run,
)
from hfi.cli.options import JsonOption, NameOption, WorkspaceOption, with_config
from hfi.errors import NoJudgments
from hfi.files import check_writable
from hfi.progress import progress
from hfi.reward.train import Labels, RewardConfig, check_labels, split, train_reward
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
    report: Annotated[
        bool, typer.Option("--report", help="Write report.html, and a list of the images where it and people disagree most.")
    ] = False,
    as_json: JsonOption = False,
    config: RewardConfig,
) -> None:
    """Train the reward model of a concept on its judgments, and say how well it does on images that it never saw.

    The concept's own reward model is that of the last run without a --name; 'hfi invert --reward NAME' takes another.
    """
    from hfi.diffusion.sd import pick_device
    from hfi.embed import ClipBackbone, embed_stored, exact
    from hfi.report_reward import describe, scores_file, write_reward_report, write_scores
    from hfi.reward.model import RewardModel

    space = Workspace.open(workspace)
    found = judged(space, concept, simulated)
    shas, targets = training_labels(found, labels)
    check_labels(targets)
    reference = exact(_backbone(space, shas) if backbone == "auto" else backbone)
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
    if run.finished and scores_file(run).exists():
        say_finished(run)
    else:
        space.images.check()
        clip = ClipBackbone.load(reference, pick_device(device))
        with progress("embedding images", len(shas), "images") as advance:
            embeddings = embed_stored(clip, space.images, shas, space.path / "embeddings", advance)
        run.begin_metrics(0)

        def log(epoch: int, loss: float, validation: float) -> None:
            run.log(step=epoch, loss=loss, validation_loss=validation)

        head, figures = train_reward(embeddings, targets, config, log)
        metadata = {
            "concept": concept,
            "judgments": found.judgments.sha256,
            "simulated": str(found.judgments.simulated).lower(),
            "judged_by": json.dumps([found.judgments.judged_by]),
            "labels": labels,
            "config": json.dumps(asdict(config)),
            **{key: json.dumps(value) for key, value in figures.items()},
        }
        model = RewardModel(head, clip, metadata)
        model.save(file)
        held_out = split(targets, config.held_out, config.validation, config.seed)[2]
        write_scores(run, shas, model.score_embeddings(embeddings), held_out)
        run.finish({**figures, "images": len(shas), "simulated": found.judgments.simulated})
    saved = space.rewards / f"{name or concept}.safetensors"
    copy_file(file, saved)
    result = run.result()
    written: dict[str, Any] = {}
    if report:
        page, listed, count = write_reward_report(run, found.judgments, _simulated(space), found.concept.title, space.images)
        written = {"report": str(page), "disagreements": str(listed), "to_judge_again": count}
    if as_json:
        typer.echo(json.dumps({"file": str(saved), "run": run.path.name, **result, **written}))
        return
    typer.echo(f"{describe(result)}\n{saved}")
    if report:
        typer.echo(page)
        there = "" if workspace.resolve() == Path.cwd() else f" --workspace {workspace}"
        ask = f"ask again with 'hfi ui{there} --concept {concept} --images {listed}'" if count else "nothing to ask again"
        typer.echo(f"{listed}: {count} images where it and people are far apart; {ask}")
    if not result["better_than_chance"]:
        typer.echo("no better than chance: judge more images before going on ('hfi invert' will refuse this reward)", err=True)
    else:
        own = ["--reward", name] if name else []
        say_next(space, "invert", "--model", "FOLDER_OR_HUB_ID", "--concept", concept, *own)


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
    orders = [[[row[sha] for sha in place] for place in order] for order in rankings(found.judgments)]
    return shas, Labels(np.zeros(0), np.zeros(0), orders)


def _simulated(space: Workspace) -> dict[str, str]:
    """The names of simulated annotators by pseudonym; people keep theirs to themselves."""
    with reading(space.engine()) as session:
        return {a.pseudonym: a.name for a in queries.annotators(session) if a.simulated}


def _backbone(space: Workspace, shas: list[str]) -> str:
    wanted = set(shas)
    with reading(space.engine()) as session:
        models = {image.model for image in queries.images(session) if image.sha256 in wanted and image.model}
    own = [str(Path(model) / "clip") for model in sorted(models) if (Path(model) / "clip" / "config.json").exists()]
    return own[0] if own else DEFAULT_BACKBONE
